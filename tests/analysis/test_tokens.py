"""The token axis: documents of tokens, beside their nulls and what other inputs gave."""

import csv
import itertools
import json
import math
import os
from dataclasses import replace
from functools import partial

import naive
import noise
import numpy as np
import pytest
from click.testing import CliRunner
from documents import long_memory, make
from hypothesis import given, settings
from hypothesis import strategies as st

from posthoc.analysis import arrays
from posthoc.analysis.audit import audit
from posthoc.analysis.axes import over_time
from posthoc.analysis.axes.token import START, TokenMaterial, noise_less_mean
from posthoc.analysis.calibration import calibration
from posthoc.analysis.compare import quantities
from posthoc.analysis.dfa import dfa
from posthoc.analysis.documents import SIGNS, over_documents, signs_flipped
from posthoc.analysis.kuramoto import kuramoto
from posthoc.analysis.measures.tokens import in_context, repeated_bigrams
from posthoc.analysis.measures.user import measure
from posthoc.analysis.metrics import compute_metrics
from posthoc.analysis.protocol import Protocol
from posthoc.analysis.records import Aside, load_metrics
from posthoc.analysis.responses import Reaction, load_audit
from posthoc.analysis.runs import as_run
from posthoc.analysis.scales import default_scales
from posthoc.cli import main
from posthoc.errors import PosthocError
from posthoc.report import tables
from posthoc.report.figures import FIGURES, Of, figures_of
from posthoc.report.words import in_short
from posthoc.store import Frame, Given, Layout, open_activations
from posthoc.writing import write

pytestmark = pytest.mark.skipif(os.environ.get("NUMBA_DISABLE_JIT") == "1", reason="many draws, compiled")
D, T = 8, 320


@pytest.fixture(scope="module")
def ordered(tmp_path_factory):
    """Documents whose channels and surprisal are ordered over the text, at steps above 0."""
    return make(tmp_path_factory.mktemp("documents") / "a.h5", D, T, order=0.6, steps=(0, 1, 2, 4, 64))


@pytest.fixture(scope="module")
def metrics(ordered):
    with open_activations(ordered) as activations:
        return compute_metrics(activations, nulls=39)


def test_a_file_of_tokens_is_measured_along_its_tokens_document_by_document(ordered, metrics):
    assert (metrics.axis.key, metrics.protocol.signal, metrics.axis.intervals) == (
        "token", "token", "over documents, by bootstrap",
    )  # fmt: skip
    with open_activations(ordered) as activations:
        x, shuffled = activations.read("token", 3), activations.read_null("shuffle", "token", 3)
        loss = activations.behaviour("token_loss", 3)
    scales = metrics.scales
    known = calibration(T - START, scales)

    def exponents(values):
        return np.array([dfa(values[:, d, START:], scales).alpha for d in range(D)])

    alpha, other = exponents(x), exponents(shuffled)
    measured = metrics.measures["hurst"]
    assert measured.value[3] == pytest.approx(float(known.debias(alpha.mean())))
    np.testing.assert_allclose(measured.by_layer[3], known.debias([alpha[:, :4].mean(), alpha[:, 4:].mean()]))
    np.testing.assert_allclose(measured.by_unit[3], alpha.mean(axis=0), atol=1e-6)
    assert metrics.column("hurst_shuffle")[3] == pytest.approx(float(known.debias(other.mean())))
    difference = metrics.measures["hurst_less_shuffle"]
    assert difference.value[3] == pytest.approx(measured.value[3] - metrics.column("hurst_shuffle")[3])
    assert difference.nulls[SIGNS].p[3] == naive.signs_p(alpha.mean(axis=1) - other.mean(axis=1)) == 2 / 2**D
    assert metrics.column("surprisal")[3] == pytest.approx(
        float(known.debias(np.mean([dfa(row[START:], scales).alpha for row in loss])))
    )
    assert metrics.column("metastability")[3] == pytest.approx(
        np.mean([kuramoto(x[:, d, START:]).metastability for d in range(D)])
    )
    assert metrics.measures["metastability"].nulls.keys() == {"white", "white-LN", "time", "phase", "phase-common"}


def test_documents_are_measured_some_at_a_time_and_nothing_changes_to_the_bit(tmp_path, monkeypatch):
    path = make(tmp_path / "a.h5", 7, T, order=0.6, steps=(0, 4), untrained=2)
    with open_activations(path) as activations:
        whole = compute_metrics(activations, nulls=9, max_nulls=39, measures="default,anisotropy")
        read, documents = activations.read, []

        def watched(*row, **samples):
            documents.append((x := read(*row, **samples)).shape[1])
            return x

        monkeypatch.setattr(activations, "read", watched)
        monkeypatch.setattr(arrays, "AT_A_TIME", 3 * 8 * T)
        parts = compute_metrics(activations, nulls=9, max_nulls=39, measures="default,anisotropy")
    assert max(documents) == 3
    assert replace(parts, created=whole.created).to_dict() == whole.to_dict()
    assert {"hurst_untrained", "surprisal_less_shuffle", "copy", "anisotropy"} <= whole.measures.keys()


def test_order_over_the_text_is_found_and_its_absence_is_not(metrics):
    for key in ("hurst", "surprisal", "hurst_less_shuffle", "surprisal_less_shuffle", "surprisal_less_block16"):
        of = metrics.measures[key].summary.nulls[metrics.measures[key].decided_by]
        assert (of.differs, of.epochs) == (4, 4), key
    untrained = metrics.measures["hurst_less_shuffle"]
    assert untrained.nulls[SIGNS].p[0] > 0.05
    assert untrained.low[0] < 0 < untrained.high[0]
    assert (untrained.low[1:] > 0).all()
    assert (untrained.by_layer_low[1:] > 0).all()
    assert (untrained.by_layer_p[1:] == 2 / 2**D).all()
    assert metrics.measures["metastability"].summary.nulls["time"].differs == 0


def test_language_models_are_judged_by_their_loss(metrics):
    assert metrics.score.title == "loss per token"
    assert (metrics.best, metrics.summary.best_epoch) == (pytest.approx(2.36), 64)
    assert math.isnan(metrics.summary.best_accuracy)
    assert in_short(metrics)[0].startswith("Loss 2.3600 at best, at step 64; ")
    assert quantities(as_run(metrics, "a"))["best_loss"].value == metrics.best


def test_behaviour_of_tokens(ordered, metrics):
    with open_activations(ordered) as activations:
        loss, tokens = activations.behaviour("token_loss", 4), activations.tokens
        predicted = activations.behaviour("token_prediction", 4)
    assert metrics.column("token_loss")[4] == pytest.approx(np.nanmean(loss, axis=1).mean())
    with open_activations(ordered) as activations:
        sizes = activations.text_bytes
    bits = [
        -sum(math.log2(math.exp(-value)) for value in row[1:]) / size for row, size in zip(loss, sizes, strict=True)
    ]
    assert metrics.column("bits_per_byte")[4] == pytest.approx(np.mean(bits), rel=1e-6)
    assert metrics.column("token_accuracy")[4] == pytest.approx((predicted == tokens)[:, 1:].mean())
    assert metrics.column("loss_at_16")[4] == pytest.approx(loss[:, 16:32].mean())
    assert metrics.column("loss_at_256")[4] == pytest.approx(loss[:, 256:].mean())
    assert "loss_at_512" not in metrics.measures
    late = T - 11
    expected = loss[:, 40:61].mean(axis=1) - loss[:, late - 10 : late + 11].mean(axis=1)
    assert metrics.column("in_context")[4] == pytest.approx(expected.mean(), abs=1e-6)
    repeated = naive.repeated_bigrams(tokens)
    copy = [np.nanmean(row[~again]) - np.nanmean(row[again]) for row, again in zip(loss, repeated, strict=True)]
    assert metrics.column("copy")[4] == pytest.approx(np.mean(copy), abs=1e-6)
    for key in ("token_loss", "in_context", "copy"):
        measured = metrics.measures[key]
        assert (measured.low < measured.value).all()
        assert (measured.value < measured.high).all()
    assert np.isnan(in_context(loss[:, :70], ~np.isnan(loss[:, :70]))).all()


def test_losses_that_are_not_finite_make_no_checkpoint_better(tmp_path):
    """At step 2 NaN everywhere, at 3 from position 100 on, at 4 in two documents, at 5 infinite from position 100 to 199."""
    everything, some = np.s_[:, :], np.s_[:2, 100:]
    broken = {2: (everything, np.nan), 3: (np.s_[:, 100:], np.nan), 4: (some, np.nan), 5: (np.s_[1:, 100:200], np.inf)}
    with open_activations(make(tmp_path / "a.h5", D, T, steps=(1, 2, 3, 4, 5), broken=broken)) as activations:
        run = compute_metrics(activations, nulls=0)
        loss = activations.behaviour("token_loss")
    nan, inf = math.nan, math.inf
    for key in ("token_loss", "bits_per_byte", "loss_at_128"):
        measured = run.measures[key]
        np.testing.assert_array_equal(measured.value[1:], [nan, nan, nan, inf], key)
        assert np.isfinite([measured.value[0], measured.low[0], measured.high[0]]).all()
        assert np.isnan([measured.low[1:], measured.high[1:]]).all()
    assert run.column("loss_at_16")[[0, 2, 3, 4]] == pytest.approx(loss[[0, 2, 3, 4], :, 16:32].mean(axis=(1, 2)))
    assert np.isnan(run.column("copy")[1:]).all()
    assert np.isnan(run.column("in_context")[1:4]).all()
    assert np.isfinite(run.column("in_context")[4])  # it is of other positions
    assert np.isnan(run.column("token_accuracy")[1:4]).all()
    assert np.isfinite(run.column("token_accuracy")[4])  # of an infinite loss another token is the likeliest
    run.save(tmp_path / "m.json")
    assert not np.isfinite(load_metrics(tmp_path / "m.json").column("bits_per_byte")[1:]).any()


def test_what_is_measured_is_in_all_outputs(ordered, tmp_path):
    output = tmp_path / "m.json"
    result = CliRunner().invoke(main, ["metrics", str(ordered), "-o", str(output), "--csv", "--nulls", "0"])
    assert result.exit_code == 0, result.output
    assert "as by --axis token" in result.output
    assert "checkpoints" in result.output
    assert not {"stability_index", "volatility"} & load_metrics(output).measures.keys()
    run = load_metrics(output)
    assert np.isnan(run.column("metastability")).all()  # never without its nulls
    rows = list(csv.DictReader(output.with_suffix(".csv").open()))
    names = {
        "hurst_shuffle",
        "hurst_less_shuffle_signs_p",
        "hurst_less_shuffle_low_attention",
        "surprisal",
        "in_context",
    }
    assert names <= rows[0].keys()
    assert float(rows[-1]["hurst_less_shuffle"]) == pytest.approx(run.column("hurst_less_shuffle")[-1])
    json.dumps(run.to_dict(), allow_nan=False)
    result = CliRunner().invoke(main, ["compare", str(output), "--json"])
    assert result.exit_code == 0, result.output
    recording = replace(run.recording, provenance=replace(run.recording.provenance, adapters="LORA"))
    adapted = replace(run, input=replace(run.input, recording=recording))
    assert [{"untrained", "before fine-tuning"} & dict(tables.summary(of)).keys() for of in (run, adapted)] == [
        {"untrained"}, {"before fine-tuning"},
    ]  # fmt: skip
    (compared,) = json.loads(result.output)["runs"]
    assert compared["quantities"]["hurst_last"]["value"] == run.column("hurst")[-1]


def test_the_first_line_about_a_language_model_is_its_loss(metrics):
    identity = metrics.recording.identity
    scored = replace(identity, output=replace(identity.output, score="tokens"))
    run = replace(metrics, input=replace(metrics.input, recording=replace(metrics.recording, identity=scored)))
    loss = run.column("loss")[1:]  # the first is of step 0
    row = int(loss.argmin())
    assert in_short(run)[0].startswith(f"Loss {loss[row]:.4f} at best, at step {(1, 2, 4, 64)[row]}; ")


def test_positions_go_as_far_as_documents(metrics):
    about = metrics.measures["loss_at_256"].about
    assert about == "mean loss of positions 256 to 511, as far as the context goes"


def test_every_figure_of_tokens_is_drawn_and_steps_are_logarithmic(metrics):
    fitting = {name: kind for name, kind in figures_of(Of.RUN).items() if not kind.fits or kind.fits(metrics)}
    assert (
        not {"stability", "trajectory"} & fitting.keys()
    )  # of the stability index, which is measured where it is named
    for name, kind in fitting.items():
        spec = json.dumps(kind.build(metrics, None, 400).specification)
        if name in ("measures", "representation"):
            assert '"symlog"' in spec, name
    spec = FIGURES["positions"].build(metrics, None, 400).specification
    (rows,) = spec["datasets"].values()
    assert {row["position"] for row in rows} == {1, 2, 4, 8, 16, 32, 64, 128, 256}
    assert [row["loss"] for row in rows if row["position"] == 4] == pytest.approx(metrics.column("loss_at_4"), rel=1e-5)


@pytest.fixture(scope="module")
def audited(ordered):
    with open_activations(ordered) as activations:
        return audit(activations, count=10)


def test_an_audit_of_tokens_measures_each_factor_as_a_plain_loop_does(ordered, audited):
    with open_activations(ordered) as activations:
        x, shuffled = (
            activations.read("token", 4)[:, :, START:],
            activations.read_null("shuffle", "token", 4)[:, :, START:],
        )
        whole, loss = activations.read("token", 4), activations.behaviour("token_loss", 4)

    def exponent(values):
        scales = tuple(default_scales(values.shape[-1]).tolist())
        alpha = np.mean([dfa(document, scales).alpha.mean() for document in np.swapaxes(values, 0, 1)])
        return pytest.approx(float(calibration(values.shape[-1], scales).debias(alpha)), abs=1e-9)

    of = {control.name: control.measures for control in audited.controls}
    assert of["as it is (step 64)"]["hurst"].mean == exponent(x)
    assert of["the document's tokens shuffled"]["hurst"].mean == exponent(shuffled)
    assert of["the first 4 documents"]["hurst"].mean == exponent(x[:, :4])
    assert of["the first 128 tokens of 256"]["hurst"].mean == exponent(x[..., :128])
    assert of["no token left out at the start"]["hurst"].mean == exponent(whole)
    assert of["128 tokens left out at the start"]["hurst"].mean == exponent(x[..., 64:])
    assert of["attention alone instead of all layers"]["hurst"].mean == exponent(x[4:])
    assert of["128 tokens left out at the start"]["surprisal"].mean == exponent(loss[None, :, 128:])
    assert of["no token left out at the start"]["surprisal"].mean == exponent(loss[None, :, 1:])
    assert of["values rounded to bfloat16"]["hurst"].mean == exponent(torch_bfloat16(x))
    smoothed = np.stack([naive.image_series(x[:, d].astype(float), np.zeros(256), 5) for d in range(D)], axis=1)
    assert of["smoothing 5 instead of 1"]["hurst"].mean == exponent(smoothed)


def test_of_short_documents_an_audit_leaves_half_of_the_tokens(tmp_path):
    with open_activations(make(tmp_path / "a.h5", 5, START + 64, steps=(0, 1))) as activations:
        of = {control.name: control.measures for control in audit(activations, count=2).controls}
        x = activations.read("token", 1)[:, :, START + 32 :]
    scales = tuple(default_scales(32).tolist())
    alpha = np.mean([dfa(document, scales).alpha.mean() for document in np.swapaxes(x, 0, 1)])
    known = float(calibration(32, scales).debias(alpha))
    assert of["96 tokens left out at the start"]["hurst"].mean == pytest.approx(known, abs=1e-9)


def torch_bfloat16(x):
    torch = pytest.importorskip("torch")
    return torch.tensor(x).bfloat16().float().numpy()


def test_an_audit_of_tokens_tells_the_order_of_the_text_from_what_is_no_more_of_it(audited, metrics, tmp_path):
    hurst, metastability, surprisal = (audited.measures[key] for key in ("hurst", "metastability", "surprisal"))
    for response in (hurst, surprisal):
        assert {"the text", "order of time", "smoothing"} <= response.by_change(Reaction.RESPONDS).keys()
        assert "precision of the values" in response.by_change(Reaction.INDIFFERENT)
        assert response.order_p == 2 / 11
    effect = next(effect for effect in hurst.effects if effect.control == "the document's tokens shuffled")
    difference = metrics.measures["hurst_less_shuffle"]
    assert (-effect.effect, -effect.high, -effect.low) == pytest.approx(
        (difference.value[-1], difference.low[-1], difference.high[-1]), abs=1e-9
    )  # as metrics says of the same checkpoint
    assert any("is the text's order" in sentence and sentence.startswith("Of H ") for sentence in audited.conclusions)
    assert any("M cannot be distinguished from that of the same tokens" in sentence for sentence in audited.conclusions)
    assert "number and choice of channels" in metastability.by_change(Reaction.RESPONDS)
    assert audited.aside == {"untrained weights": Aside.NOT_REPLAYED}
    audited.save(tmp_path / "audit.json")
    assert json.loads((tmp_path / "audit.json").read_text()) == load_audit(tmp_path / "audit.json").to_dict()


def test_an_audit_of_documents_without_order_finds_none(tmp_path):
    path = make(tmp_path / "a.h5", 8, 320, steps=(0, 1), order=0.0, untrained=2)
    with open_activations(path) as activations:
        result = audit(activations, count=10)
        networks = [np.swapaxes(activations.read_untrained("token", k)[:, :, START:], 0, 1) for k in (0, 1)]
    untrained = next(control for control in result.controls if control.name == "untrained weights")
    scales = tuple(default_scales(256).tolist())
    alpha = np.mean([dfa(document, scales).alpha.mean() for documents in networks for document in documents])
    assert untrained.measures["hurst"].mean == pytest.approx(float(calibration(256, scales).debias(alpha)), abs=1e-9)
    assert not result.aside
    for key in ("hurst", "metastability"):
        assert "training" not in result.measures[key].by_change(Reaction.RESPONDS)
    for key in ("hurst", "metastability"):
        assert not result.measures[key].by_change(Reaction.RESPONDS).keys() & {"order of time", "number of documents"}
        assert "number of documents" in result.measures[key].by_change(
            Reaction.UNDEFINED
        )  # of four there is no interval
    told = [result.measures["metastability"].by_change(kind) for kind in (Reaction.INDIFFERENT, Reaction.UNDECIDED)]
    assert "the text" in told[0] | told[1]
    few = make(tmp_path / "b.h5", 4, 320, steps=(1,))
    with open_activations(few) as activations, pytest.raises(PosthocError, match="--documents 5 or more"):
        audit(activations)


def test_a_language_model_is_replayed_and_measured(tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {
        "vocab_size": 32,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    for step in (1, 2):
        model = transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**sizes, max_position_embeddings=128))
        model.save_pretrained(tmp_path / "run" / f"checkpoint-{step}")
    np.save(tmp_path / "ids.npy", np.random.default_rng(0).integers(0, 32, (5, 128)))
    output = tmp_path / "a.h5"
    words = [
        "extract",
        str(tmp_path / "run"),
        "--probe",
        f"tokens:{tmp_path / 'ids.npy'}",
        "--channels",
        "4",
        "-o",
        str(output),
    ]
    summed = ["--signals", "token,fluctuation,autocovariance"]
    result = CliRunner().invoke(main, [*words, *summed, "--controls", "shuffle,block:16,constant,untrained"])
    assert result.exit_code == 0, result.output
    with open_activations(output) as activations:
        run = compute_metrics(activations, nulls=5)
        x = activations.read("token", 1)
        np.testing.assert_allclose(run.column("token_loss"), activations.loss, rtol=1e-5)
    alpha = np.mean([dfa(x[:, d, START:], run.scales).alpha.mean() for d in range(5)])
    assert run.column("hurst")[1] == pytest.approx(float(calibration(64, run.scales).debias(alpha)))
    for control in ("shuffle", "block16", "untrained"):
        assert np.isfinite(run.column(f"hurst_less_{control}")).all(), control
    assert np.isfinite(run.column("surprisal_less_shuffle")).all()
    assert "hurst_constant" in run.measures
    assert np.isfinite(run.representation.effective_rank).all()


def test_exponents_of_streamed_sums_are_those_of_the_tokens(tmp_path, ordered):
    """Of what `--signals fluctuation` sums up while the network runs."""
    from posthoc.replay.streamed import fluctuation

    torch = pytest.importorskip("torch")
    with open_activations(ordered) as file:
        steps, layers, given = file.steps.tolist(), file.layers, {}
        for control in (None, "shuffle"):
            for e in range(len(file)):
                read = partial(file.read, "token") if control is None else partial(file.read_null, control, "token")
                given[control, e] = {name: read(e, name) for name in layers}
        loss = [file.behaviour("token_loss", e) for e in range(len(file))]
        tokens, identity, provenance = file.tokens, file.recording.identity, file.recording.provenance

    def sums(values):
        return {
            name: fluctuation(torch.from_numpy(x.swapaxes(0, 1))).numpy().swapaxes(0, 1) for name, x in values.items()
        }

    identity = replace(identity, signals=("fluctuation",), controls=("shuffle",), behaviour=("token_loss",))
    frames = [
        Frame(f"{step}.pt", "0", None, step, 3.0, np.nan, {}, {"fluctuation": sums(given[None, e])},
              behaviour={"token_loss": loss[e]},
              nulls={"shuffle": Given({"fluctuation": sums(given["shuffle", e])}, {"token_loss": loss[e]})})
        for e, step in enumerate(steps)
    ]  # fmt: skip
    kept = {name: np.arange(len(values)) for name, values in given[None, 0].items()}
    made = replace(noise.recording(list(layers), ("fluctuation",), D, None), identity=identity, provenance=provenance)
    write(tmp_path / "a.h5", Layout(made, np.arange(D), None, kept, tokens), frames)
    with open_activations(tmp_path / "a.h5") as file:
        run = compute_metrics(file, nulls=5, measures="all")
        with pytest.raises(PosthocError, match="--signals token"):
            audit(file)
    with open_activations(ordered) as file:
        whole = compute_metrics(file)
    assert (run.protocol.axis, run.protocol.signal, run.scales) == ("token", "fluctuation", whole.scales)
    for key in ("hurst", "hurst_shuffle", "hurst_less_shuffle", "surprisal"):
        np.testing.assert_allclose(run.column(key), whole.column(key), atol=2e-5, err_msg=key)
        np.testing.assert_allclose(run.measures[key].by_layer, whole.measures[key].by_layer, atol=2e-5)
        np.testing.assert_allclose(run.measures[key].low, whole.measures[key].low, atol=2e-5)
    assert not {"metastability", "stability_index", "volatility"} & run.measures.keys()
    assert not run.health  # what layers gave is not known
    assert not run.measures["hurst"].nulls
    assert run.measures["surprisal"].nulls
    assert run.fluctuation[0].curves["units"].mean == pytest.approx(whole.fluctuation[0].curves["units"].mean, abs=1e-4)
    for kind in figures_of(Of.RUN).values():
        if not kind.fits or kind.fits(run):
            kind.build(run, None, 400)


def test_documents_without_a_live_unit_have_no_number_of_yours(tmp_path):
    random = np.random.default_rng(0)
    tokens = [random.standard_normal((2, 3, 160)).astype("f4"), np.zeros((2, 3, 160), "f4")]
    path = make(tmp_path / "source.h5", 3, 160, steps=(1, 2), controls=(), sizes=False)
    with open_activations(path) as file:
        made, kept = file.recording, {name: np.arange(2) for name in file.layers}
        layout = Layout(made, np.arange(3), None, kept, file.tokens)
    names = list(kept)
    frames = [
        Frame(f"{e}.pt", "0", None, e + 1, 3.0, np.nan, {}, {"token": dict.fromkeys(names, x)},
              behaviour={"token_loss": np.zeros((3, 160), "f4")})
        for e, x in enumerate(tokens)
    ]  # fmt: skip
    write(tmp_path / "a.h5", layout, frames)
    with open_activations(tmp_path / "a.h5") as file:
        run = compute_metrics(file, nulls=3, measures=["default", measure(lambda series: series.max(), name="peak")])
    assert np.isfinite(run.column("peak")).tolist() == [True, False]


def test_contexts_that_are_too_short_are_refused(tmp_path):
    path = make(tmp_path / "a.h5", 2, 80, steps=(1,), controls=())
    with open_activations(path) as activations, pytest.raises(PosthocError, match="16 tokens are too few"):
        compute_metrics(activations)
    with open_activations(path) as activations, pytest.raises(PosthocError, match=r"2 documents .*more --documents"):
        compute_metrics(activations, Protocol.named("default", axis="image", signal="token"))


def test_of_a_single_document_no_p_is_shown_that_is_none(tmp_path):
    path = make(tmp_path / "a.h5", 1, 160, steps=(1, 2), controls=("shuffle",))
    with open_activations(path) as activations:
        run = compute_metrics(activations, nulls=3, max_nulls=3, measures=["metastability"])
    lines = dict(tables.summary(run))
    assert "nan" not in lines["dM"]
    assert "differences other than 0" in lines["null: signs"]


def test_without_controls_there_are_no_differences(tmp_path):
    path = make(tmp_path / "a.h5", 3, 160, steps=(1, 2), controls=(), sizes=False)
    with open_activations(path) as activations:
        run = compute_metrics(activations, Protocol.named(axis="token", signal="token"), nulls=5)
    assert not [key for key in run.measures if "_less_" in key]
    assert "bits_per_byte" not in run.measures  # ids alone do not say
    assert SIGNS not in run.nulls
    assert np.isnan(run.measures["hurst"].low).all()  # three documents are too few for an interval
    assert np.isfinite(run.column("hurst")).all()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-5, 5), min_size=2, max_size=9))
def test_flipped_signs_are_fishers_test(differences):
    p = signs_flipped(np.array(differences, float), 0).p
    assert math.isnan(p) if not any(differences) else p == pytest.approx(naive.signs_p(differences))


def test_many_documents_have_their_signs_drawn():
    random = np.random.default_rng(0)
    none = [signs_flipped(random.standard_normal(20), 0).p for _ in range(200)]
    assert 0.01 <= np.mean(np.array(none) <= 0.05) <= 0.1
    assert signs_flipped(random.standard_normal(20) + 2, 0).p == 2 / 10_000


def test_intervals_over_documents_are_students_for_many_and_wider_for_few():
    random = np.random.default_rng(0)
    many = random.standard_normal(200)
    low, high = over_documents(many, 0)
    assert (high - low) / 2 == pytest.approx(1.972 * many.std(ddof=1) / math.sqrt(200), rel=0.05)
    few = np.array([1.0, 2.0, 3.0, 4.0, np.nan, 6.0])
    low, high = over_documents(few, 0)
    assert low < few[np.isfinite(few)].mean() - 1.96 * few[np.isfinite(few)].std(ddof=1) / math.sqrt(5)
    assert np.isnan(over_documents(few[:4], 0)).all()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), min_size=6, max_size=6), min_size=1, max_size=3))
def test_repeated_bigrams(rows):
    np.testing.assert_array_equal(repeated_bigrams(np.array(rows, np.uint32)), naive.repeated_bigrams(rows))


def test_noise_less_its_mean_has_the_covariance_of_all_channels():
    material = TokenMaterial(np.zeros((1, 6, 200_000), "f4"), np.array([0, 0, 0, 0, 1, 1]), (4, 8))
    drawn = noise_less_mean(material, np.random.default_rng(0), np.ones((1, 6), np.bool_))[0]
    np.testing.assert_allclose(drawn[:4].sum(axis=0), 0, atol=1e-5)
    expected = np.zeros((6, 6))
    expected[:4, :4], expected[4:, 4:] = np.eye(4) - 1 / 4, np.eye(2) - 1 / 8
    np.testing.assert_allclose(np.cov(drawn), expected, atol=0.01)


def test_phases_turned_together_keep_what_channels_share():
    x = long_memory(np.random.default_rng(0), (3, 256), 0.8)
    turned = over_time.phases_turned_together(x, np.random.default_rng(1))
    spectra = [np.fft.rfft(series, axis=1) for series in (x, turned)]
    for i, j in itertools.combinations_with_replacement(range(3), 2):
        crossed = [spectrum[i] * spectrum[j].conj() for spectrum in spectra]
        np.testing.assert_allclose(*crossed, atol=1e-8 * np.abs(crossed[0]).max())
    assert not np.allclose(x, turned)
