"""The three axes through one path, beside their nulls: from a real activations file and from made ones."""

import json
import math
import os

import numpy as np
import pytest
from noise import make, recording

import posthoc
from posthoc.analysis.axes.depth import depth_series
from posthoc.analysis.calibration import calibration
from posthoc.analysis.conclusions import GAUSSIAN, of_training
from posthoc.analysis.dfa import dfa
from posthoc.analysis.effects import in_the_same_orders, respond
from posthoc.analysis.measures import MEASURES
from posthoc.analysis.metrics import compute_metrics
from posthoc.analysis.protocol import Protocol
from posthoc.analysis.responses import Change, Control, Reaction, Spread, load_audit
from posthoc.analysis.scales import default_scales
from posthoc.analysis.stored import plain
from posthoc.analysis.verdicts import verdict
from posthoc.errors import PosthocError, UsageError
from posthoc.report.words import references
from posthoc.store import Frame, Layout, open_activations
from posthoc.writing import write

pytestmark = pytest.mark.skipif(os.environ.get("NUMBA_DISABLE_JIT") == "1", reason="many draws, compiled")


def measured(path, axis, nulls=0, seed=0, **changes):
    name = changes.pop("name", "default")
    with open_activations(path) as activations:
        return compute_metrics(activations, Protocol.named(name, axis=axis, **changes), nulls, seed)


def test_depth_series_are_standardised_over_the_images():
    x = np.random.default_rng(0).standard_normal((3, 50)) * [[1], [5], [0]] + 2
    series = depth_series(x)
    assert series.shape == (50, 3)
    np.testing.assert_allclose(series.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(series.std(axis=0), [1, 1, 0], atol=1e-12)


def test_the_depth_axis_runs_over_the_layers(tmp_path):
    path = make(tmp_path / "a.h5", layers=24, epochs=3)
    metrics = measured(path, "depth", nulls=9)
    assert metrics.protocol.calibrate
    assert metrics.scales == tuple(default_scales(24).tolist())
    with open_activations(path) as activations:
        x = activations.read("mean", 1).reshape(24, 3, 80).mean(axis=1)
    alpha = dfa(depth_series(x), metrics.scales).alpha.mean()
    expected = float(calibration(24, metrics.scales).debias(alpha))
    assert metrics.column("hurst")[1] == pytest.approx(expected, abs=1e-6)
    assert (
        list(metrics.measures["metastability"].nulls) == list(metrics.nulls) == ["white", "time", "phase", "gaussian"]
    )
    assert metrics.units == ()
    assert metrics.axis.points == "layers"
    json.dumps(plain(metrics.to_dict()), allow_nan=False)


def test_the_epoch_axis_runs_over_the_checkpoints_so_far(tmp_path):
    path = make(tmp_path / "a.h5", epochs=24)
    metrics = measured(path, "epoch", nulls=5)
    assert np.isfinite(metrics.column("metastability")).tolist() == [False] * 20 + [True] * 4
    assert metrics.checkpoints[0].reasons == {"fewer than 20 points in time": 6}
    assert metrics.phase_locking.plv.shape == (24, 2, 2)
    with open_activations(path) as activations:
        x = np.stack([activations.read("mean", e).mean(axis=1, dtype=float) for e in range(1, 23)], axis=1)
    hurst = metrics.measures["hurst"]
    np.testing.assert_allclose(hurst.by_unit[22], dfa(x, default_scales(22)).alpha, atol=1e-5)
    layers = hurst.by_unit[22].reshape(2, 3).mean(axis=1)  # freed of their bias as means, as the run's is
    np.testing.assert_allclose(
        hurst.by_layer[22], calibration(22, tuple(default_scales(22).tolist())).debias(layers), atol=1e-5
    )
    white = hurst.nulls["white"]  # value and null on one scale
    np.testing.assert_allclose(white.z[20:], ((hurst.value - white.mean) / white.sd)[20:], rtol=1e-6)
    windowed = measured(path, "epoch", span=20)
    by_unit = windowed.measures["hurst"].by_unit
    np.testing.assert_allclose(by_unit[22], dfa(x[:, 2:], default_scales(20)).alpha, atol=1e-5)


def frames(signals, epochs):
    return [Frame(f"{e}.pt", "0", e, 10 * e, 1.0, 0.5, {}, {"mean": signals(e)}) for e in range(epochs)]


def plan(layers, channels, images):
    return Layout(
        recording(layers, images=images),
        np.arange(images),
        np.arange(images) % 4,
        {layer: np.arange(channels) for layer in layers},
    )


def test_one_bad_channel_does_not_take_its_layer_on_the_depth_axis(tmp_path):
    random = np.random.default_rng(0)
    layers = [f"l{k}" for k in range(24)]
    signals = {layer: random.standard_normal((3, 60), "f4") for layer in layers}
    signals["l5"][1, 7] = np.inf
    signals["l6"][:] = 0.1
    write(tmp_path / "a.h5", plan(layers, 3, 60), frames(lambda e: signals, 2))
    metrics = measured(tmp_path / "a.h5", "depth")
    assert metrics.checkpoints[1].dead == 0
    assert metrics.checkpoints[1].reasons == {"channels non-finite, left out of their layer's mean": 1}
    assert math.isfinite(metrics.column("hurst")[1])


def test_exponents_beyond_the_calibration_are_named_and_still_compared(tmp_path):
    """Channels that all decay smoothly: a stronger trend than any simulated motion has."""
    decay = np.arange(1.0, 9)[:, None] * np.ones(60)
    write(tmp_path / "a.h5", plan(["a"], 8, 60), frames(lambda e: {"a": (decay * np.exp(-e / 8)).astype("f4")}, 31))
    metrics = measured(tmp_path / "a.h5", "epoch", nulls=19)
    assert math.isnan(metrics.column("hurst")[-1])
    assert "mean exponent beyond the calibration" in metrics.checkpoints[-1].reasons
    assert metrics.column("integration")[-1] == 0
    assert metrics.null("white", "hurst", "p")[-1] == 2 / 20


def test_the_audit_of_a_collapsed_network_says_so(tmp_path):
    good = np.random.default_rng(0).standard_normal((8, 400)).astype("f4")
    write(
        tmp_path / "a.h5",
        plan(["a"], 8, 400),
        frames(lambda e: {"a": good if e == 0 else np.full_like(good, np.nan)}, 2),
    )
    with open_activations(tmp_path / "a.h5") as activations:
        result = posthoc.audit(activations, draws=10)
    assert result.conclusions == (
        "H_eff of the last checkpoint is undefined: no channel has an exponent.",
        "M of the last checkpoint is undefined: it needs two channels that vary.",
    )
    assert "training" in result.measures["integration"].which(Reaction.UNDEFINED)


def test_every_measure_stands_beside_its_nulls(activations_file):
    metrics = measured(activations_file, "image", nulls=19, name="published")
    hurst, integration, metastability = (metrics.measures[key] for key in ("hurst", "integration", "metastability"))
    assert list(metrics.nulls) == ["white", "label", "order", "split", "channel", "gaussian"]
    assert metastability.nulls.keys() == metrics.nulls.keys() - {"split"}
    assert hurst.nulls.keys() == integration.nulls.keys() == metrics.nulls.keys() - {"channel"}
    for result in (hurst, metastability):
        for null, beside in result.nulls.items():
            assert ((2 / (beside.draws + 1) <= beside.p) & (beside.p <= 1)).all()
            assert (beside.draws == 19).all() or null == "order"
    for null, beside in hurst.nulls.items():  # H_eff is tested through H, of which it is a function
        np.testing.assert_array_equal(integration.nulls[null].p, beside.p)
    assert ((hurst.low <= hurst.value) & (hurst.value <= hurst.high)).all()
    assert ((integration.low >= 0) & (integration.high <= 1)).all()
    assert ((integration.low <= integration.value) & (integration.value <= integration.high)).all()
    against = metastability.summary.nulls["order"]
    assert against.decides
    assert not metastability.summary.nulls["white"].decides
    assert against.epochs == 4
    assert 0 <= against.differs + against.wanting <= 4
    assert math.isnan(metrics.summary.correlations["integration_metastability"].low)  # four epochs are too few


def test_the_same_seed_gives_the_same_draws_and_another_does_not(activations_file):
    first, again, other = (measured(activations_file, "image", 5, seed, name="published") for seed in (1, 1, 2))
    assert plain(first.measures) == plain(again.measures)
    assert first.null("order", "metastability")[2] != other.null("order", "metastability")[2]


def test_too_few_layers_or_checkpoints_are_refused_with_the_number_needed(activations_file):
    with pytest.raises(PosthocError, match=r"4 layers are too few .* needs 20; extract with --layers all"):
        measured(activations_file, "depth")
    with pytest.raises(PosthocError, match=r"4 checkpoints are too few .* needs 20"):
        measured(activations_file, "epoch")


@pytest.mark.parametrize("changes", [{"axis": "depth"}, {"axis": "time"}, {"axis": "epoch", "span": 19}])
def test_impossible_axes_are_refused(changes):
    with pytest.raises(UsageError):
        Protocol.named("published" if changes["axis"] == "depth" else "default", **changes)


def test_the_audit_finds_that_integration_follows_the_number_of_classes(tmp_path):
    """On noise: nothing but the protocol can respond."""
    path = make(tmp_path / "a.h5", layers=4, channels=12, images=1024, epochs=2, classes=10)
    with open_activations(path) as activations:
        result = posthoc.audit(activations, draws=20)
    assert result.measures["integration"].which(Reaction.RESPONDS)["number of classes"].high < -0.3
    for key, response in result.measures.items():
        for what in ("training", "labels"):
            effect = (response.which(Reaction.INDIFFERENT) | response.which(Reaction.UNDECIDED))[what]
            small = max(-effect.low, effect.high) < response.margin  # a wider interval than that of equivalence
            assert small <= (what in response.which(Reaction.INDIFFERENT))
        assert response.margin == MEASURES[key].margin == {"integration": 0.1, "metastability": 0.01}[key]
        assert 2 / 21 <= response.order_p <= 1
    assert any("each class is split in ten" in sentence for sentence in result.conclusions)
    p = {key: response.order_p for key, response in result.measures.items()}
    assert any(sentence.endswith(f"; p = {p['integration']:.2g} of H).") for sentence in result.conclusions)
    assert any(sentence.endswith(f"; p = {p['metastability']:.2g}).") for sentence in result.conclusions)
    assert "M changes by less than 0.01 when the labels are permuted." in result.conclusions
    assert not any("does not" in sentence for sentence in result.conclusions)
    result.save(tmp_path / "audit.json")
    again = load_audit(tmp_path / "audit.json")
    assert again.to_dict() == result.to_dict() == json.loads((tmp_path / "audit.json").read_text())
    names = [control.name for control in again.controls]
    assert {
        "untrained weights",
        "pure noise",
        GAUSSIAN,
        "labels permuted",
        "the first half of the images, class by class",
    } <= set(names)


def spread(*values):
    return {"integration": Spread.of(np.array(values)), "metastability": Spread.of(np.array(values))}


@pytest.mark.parametrize(("values", "kind"), [
    ([0.5], "undecided"),  # one initialisation, of which only the scatter by order is known
    ([0.49, 0.51, 0.5], "indifferent"),
    ([0.30, 0.5, 0.7], "undecided"),
    ([0.9, 0.91, 0.92], "responds"),
])  # fmt: skip
def test_what_is_not_shown_to_be_small_is_undecided(values, kind):
    order = spread(*np.linspace(0.4, 0.6, 40)) if len(values) == 1 else spread(*np.linspace(0.495, 0.505, 40))
    controls = [
        Control("as it is", None, spread(0.5)),
        Control("images of each class in another order", Change.ORDER, order),
        Control("untrained weights", "training", spread(*values)),
    ]
    response = respond(controls, "integration", "H_eff", 0.1)
    assert [(effect.changes, effect.outcome) for effect in response.effects] == [("training", kind)]
    (sentence,) = of_training(response, response.effects[0], len(values))
    assert ("one initialisation" in sentence) == (len(values) == 1)
    assert {"responds": "H_eff differs between", "indifferent": "differ by less than 0.1",
            "undecided": "is undecided"}[kind] in sentence  # fmt: skip
    assert ("90 % interval" if kind == "indifferent" else "95 % interval") in sentence  # that which decides


def test_the_audit_refuses_what_it_cannot_do(activations_file, tmp_path):
    with open_activations(activations_file) as activations, pytest.raises(UsageError, match="image axis"):
        posthoc.audit(activations, Protocol.named("default", axis="depth"))
    small = make(tmp_path / "a.h5", images=100, epochs=1)
    with open_activations(small) as activations, pytest.raises(PosthocError, match="100 images are too few"):
        posthoc.audit(activations)


def with_a_rhythm(path, epochs):
    """Noise, but for a slow rhythm in the images' order within their class that most channels share at late epochs."""
    random = np.random.default_rng(0)
    N = 256
    labels = np.arange(N) % 4
    rhythm = np.sin(0.4 * (np.arange(N) // 4)).astype("f4")  # what the sort by class lays out in a row
    made = Layout(recording(["a"], images=N), np.arange(N), labels, {"a": np.arange(12)})
    noise = [random.standard_normal((12, N), "f4") for _ in range(epochs)]
    write(path, made, frames(lambda e: {"a": noise[e] + (1.5 * rhythm if e > 2 else 0)}, epochs))
    return path


def test_draws_grow_only_where_a_verdict_needs_them(tmp_path):
    path = with_a_rhythm(tmp_path / "a.h5", 12)
    few, grown = (
        compute_metrics(open_activations(path), Protocol.named("default", smooth=1), 19, max_nulls=most)
        for most in (19, 2559)
    )
    against = few.measures["metastability"].summary.nulls["order"]
    assert against.differs == 0  # 19 draws cannot decide, and say so
    assert against.wanting >= 9
    against = grown.measures["metastability"].summary.nulls["order"]
    assert against.differs == 9
    assert against.wanting == 0
    drawn = grown.null("order", "metastability", "draws")
    assert min(drawn[3:]) >= 39
    assert max(drawn) < 2559
    of_references = grown.null("label", "metastability", "draws")
    assert np.flatnonzero(of_references == 0).tolist() == [3, 8]  # ten of twelve, spread evenly
    assert set(of_references[of_references > 0]) == {19}
    assert set(grown.null("white", "metastability", "draws")) == {19}
    assert verdict(grown, "metastability", "label").sentence().endswith("; that null was drawn in 9 of 11")
    assert "drawn" not in verdict(grown, "metastability").sentence()
    texts = dict(references(grown))
    assert texts["label"].endswith("with permuted labels (drawn in 9 of 11 epochs)")
    assert texts["white"].endswith("independent in every channel")
    again = compute_metrics(open_activations(path), Protocol.named("default", smooth=1), 19, max_nulls=2559)
    assert plain(again.measures) == plain(grown.measures)


@pytest.mark.parametrize(
    ("differences", "outcome", "effect"),
    [
        ([0, 0, np.nan, 0], Reaction.INDIFFERENT, 0),  # whatever the margin
        ([1, 1.5, np.nan, 2, np.inf], Reaction.RESPONDS, 1.5),
        ([-1, 1, np.nan, 3], Reaction.UNDECIDED, 1),
        ([1, np.nan], Reaction.UNDEFINED, np.nan),
        ([np.nan, np.nan], Reaction.UNDEFINED, np.nan),
        ([], Reaction.UNDEFINED, np.nan),
    ],
)
def test_orders_in_which_a_measure_is_undefined_tell_nothing(differences, outcome, effect):
    result = in_the_same_orders(np.array(differences, dtype=float), Change.SMOOTHING, "wider", np.nan)
    assert result.outcome is outcome
    np.testing.assert_allclose(result.effect, effect)


def test_what_has_the_same_samples_is_compared_in_the_same_orders(tmp_path):
    with open_activations(make(tmp_path / "a.h5", images=256, channels=8, epochs=3)) as file:
        usual, wider = (posthoc.audit(file, Protocol.named("published", smooth=smooth), draws=12) for smooth in (5, 15))
    ordered = [next(c.measures for c in audit.controls if c.changes == Change.ORDER) for audit in (usual, wider)]
    for key in ("integration", "metastability"):
        effects = {effect.control: effect for effect in usual.measures[key].effects}
        widened = effects["smoothing 15 instead of 5"]
        assert widened.effect == pytest.approx(ordered[1][key].mean - ordered[0][key].mean, rel=1e-9)
        rounded = effects["values rounded to half precision"]
        assert abs(rounded.effect) < 1e-3
        assert rounded.outcome is Reaction.INDIFFERENT
    assert ordered[0]["integration"].sd > usual.measures["integration"].margin / 3  # orders alone do more than rounding


def test_what_is_too_little_for_an_audit_is_said_with_how_much_is_enough(tmp_path):
    path = make(tmp_path / "a.h5", images=143, channels=2, epochs=2)
    with open_activations(path) as file:
        with pytest.raises(PosthocError, match=r"143 images are too few .* and needs 144; extract with more --images"):
            posthoc.audit(file)
        with pytest.raises(
            UsageError, match=r"smooth is 72, and an audit .* half of the 143 images; give a width from 1 to 71"
        ):
            posthoc.audit(file, Protocol.named("default", smooth=72))


def test_a_file_without_tokens_has_no_token_axis(tmp_path):
    path = make(tmp_path / "a.h5", channels=2, epochs=2)
    for signal in ("token", "mean"):
        with pytest.raises(PosthocError, match=f"no signal {signal} of the tokens of documents is there"):
            posthoc.compute_metrics(path, Protocol.named(axis="token", signal=signal))


def test_fewer_draws_at_the_most_than_there_are_to_begin_with_are_refused(tmp_path):
    with pytest.raises(UsageError, match="nulls is 9 and max_nulls, which they are drawn at the most, 5; give"):
        posthoc.compute_metrics(make(tmp_path / "a.h5", epochs=2), nulls=9, max_nulls=5)
