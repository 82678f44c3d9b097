"""The audit of measures that are asked for, the user's among them: what was planted is caught."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from noise import make, recording

import posthoc
from posthoc.analysis.axes import AXES
from posthoc.analysis.conclusions import conclusions
from posthoc.analysis.effects import told
from posthoc.analysis.responses import Control, Effect, Reaction, Response, Spread, load_audit
from posthoc.errors import PosthocError, UsageError
from posthoc.report import tables_of_audits
from posthoc.report.words import over_orders
from posthoc.store import Frame, Layout, open_activations
from posthoc.writing import write

FIXTURES = Path(__file__).parents[1] / "fixtures"


def class_count(labels):
    """Sees nothing but the number of classes."""
    return float(len(np.unique(labels)))


def level(signals):
    """Mean over channels and samples."""
    return signals.mean()


def share_of_last_layer(signals, layers):
    return np.abs(signals[layers == layers.max()]).mean() / np.abs(signals).mean()


def scaled(path, seed, factors=(1.0, 1.0), shift=0.0, untrained=0, images=400):
    """Two layers of noise, times a factor each and shifted; untrained networks of mean 0, whose sd is known."""
    random = np.random.default_rng(seed)
    names = ["a", "b"]

    def signals(by=shift):
        return {
            name: (random.standard_normal((8, images)) * factor + by).astype("f4")
            for name, factor in zip(names, factors, strict=True)
        }

    plan = Layout(
        recording(names, images=images, classes=4), np.arange(images), np.arange(images) % 4,
        {name: np.arange(8) for name in names},
    )  # fmt: skip
    first = [Frame(f"{e}.pt", "0", e, 0, 1.0, 0.1, {}, {"mean": signals(0.01 * e)}) for e in range(untrained)]
    last = [Frame("9.pt", "0", 9, 90, 1.0, 0.9, {}, {"mean": signals()})]
    write(path, plan, [*first, *last])
    return path


def audited(path, *measures, **options):
    with open_activations(path) as activations:
        return posthoc.audit(activations, draws=20, measures=measures, **options)


def outcomes(response):
    """change -> outcome; of several controls of a change the strongest."""
    return {effect.changes.partition(" (")[0]: effect.outcome for effect in reversed(response.effects)}


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    path = scaled(tmp_path_factory.mktemp("planted") / "a.h5", 0, factors=(1.0, 3.0), shift=1.0, untrained=1)
    return audited(path, *map(posthoc.measure, (class_count, level, share_of_last_layer)))


def test_a_measure_that_sees_the_number_of_classes_alone_is_caught(planted):
    response = planted.measures["class_count"]
    assert list(response.which(Reaction.RESPONDS)) == ["number of classes"]
    assert response.which(Reaction.RESPONDS)["number of classes"].effect == 36
    assert not response.which(Reaction.UNDECIDED)
    assert any(
        sentence.startswith("class_count goes from 4.000 to 40.000 when each class is split in ten")
        for sentence in planted.conclusions
    )
    assert "class_count does not change when the labels are permuted." in planted.conclusions


def test_what_changes_nothing_and_what_changes_the_level_are_told_apart(planted):
    found = outcomes(planted.measures["level"])
    assert found["training"] == Reaction.RESPONDS
    assert planted.measures["level"].which(Reaction.RESPONDS)["training"].effect == pytest.approx(-1, abs=0.1)
    for change in ("labels", "number of classes", "smoothing"):
        assert found[change] == Reaction.INDIFFERENT
    # The noise is that of another half of the probe, of which the order of images tells nothing.
    for change in ("number of images", "which half of the probe"):
        assert found[change] == Reaction.UNDECIDED
    under = {control.name: control.measures["level"] for control in planted.controls}
    assert under["random halves of the probe"].sd > 0
    assert under["images of each class in another order"].sd < 1e-12


def test_layers_are_left_to_one_and_a_function_that_fails_there_is_undefined(planted):
    found = outcomes(planted.measures["share_of_last_layer"])
    assert found["choice of layers"] == Reaction.RESPONDS
    under = {control.name: control.measures["share_of_last_layer"].mean for control in planted.controls}
    assert under["b alone instead of all layers"] == pytest.approx(1)


def test_each_measure_has_a_row_and_each_change_a_column(planted):
    table = tables_of_audits.factors(planted)
    titles = [column.title for column in table.columns]
    assert titles[0] == "measure"
    assert {"labels", "number of classes", "training", "smoothing", "choice of layers"} < set(titles)
    cells = dict(zip(titles, table.rows[0], strict=True))
    assert (cells["measure"], cells["number of classes"], cells["labels"]) == (
        "class_count", "responds +36", "indifferent +0",
    )  # fmt: skip


def test_without_a_margin_it_is_the_spread_over_untrained_networks(tmp_path):
    path = scaled(tmp_path / "a.h5", 1, untrained=5)
    response = audited(path, posthoc.measure(level)).measures["level"]
    with open_activations(path) as file:
        of_seeds = [file.read("mean", row).mean() for row in range(5)]
    assert response.margin == pytest.approx(np.std(of_seeds, ddof=1), rel=1e-4)
    assert response.margin_from == "its sd over 5 untrained networks"
    given = audited(path, posthoc.measure(level, margin=0.5)).measures["level"]
    assert (given.margin, given.margin_from) == (0.5, "")
    assert outcomes(given)["number of images"] == Reaction.INDIFFERENT


def test_another_preparation_of_the_probe_is_a_factor(tmp_path):
    path, other = scaled(tmp_path / "a.h5", 2), scaled(tmp_path / "b.h5", 2, shift=0.5)
    with open_activations(other) as beside:
        response = audited(path, posthoc.measure(level), other=beside).measures["level"]
    effect = response.which(Reaction.RESPONDS)["preparation of the probe"]
    assert effect.effect == pytest.approx(0.5, abs=1e-6)
    small = make(tmp_path / "c.h5", layers=1, channels=8, images=400, epochs=1)
    with open_activations(small) as beside, pytest.raises(PosthocError, match="has not the channels of"):
        audited(path, posthoc.measure(level), other=beside)


def moved(signals, previous):
    return np.nan if previous is None else np.abs(signals - previous).mean()


def of_the_right(signals, behaviour):
    return signals[:, behaviour["correct"] > 0].mean()


def norm(weights):
    return float(np.sum(weights["norm"]))


def together(signals):
    """Of two channels that are of two layers."""
    return np.corrcoef(signals[0], signals[8])[0, 1]


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    """Four checkpoints of two layers that hardly move, the first of step 0, with what the network said of each sample."""
    path, random, names, N = tmp_path_factory.mktemp("slow") / "a.h5", np.random.default_rng(0), ["a", "b"], 200
    base = {name: random.standard_normal((8, N)) for name in names}
    known = recording(names, images=N, classes=4)
    known = dataclasses.replace(known, identity=dataclasses.replace(known.identity, behaviour=("correct",)))
    frames = []
    for e in range(4):
        signals = {name: (x + 0.1 * random.standard_normal((8, N))).astype("f4") for name, x in base.items()}
        behaviour = {"correct": signals["a"][0] > 0.5}
        frames.append(Frame(f"{e}.pt", "0", e, 10 * e, 1.0, 0.3, {}, {"mean": signals}, behaviour=behaviour))
    write(path, Layout(known, np.arange(N), np.arange(N) % 4, {name: np.arange(8) for name in names}), frames)
    return path


def test_what_belongs_to_a_sample_goes_where_a_null_puts_it(slow):
    mine = [*map(posthoc.measure, (moved, of_the_right))]
    with open_activations(slow) as activations:
        run = posthoc.compute_metrics(activations, nulls=39, max_nulls=39, measures=mine)
    for key, null in (("moved", "order"), ("moved", "label"), ("of_the_right", "label")):
        of = run.measures[key].nulls[null]
        np.testing.assert_allclose(of.mean, run.measures[key].value, rtol=1e-12)
        assert set(of.p[np.isfinite(of.p)]) == {1}
    assert run.measures["of_the_right"].nulls["order"].p.max() == 0.05  # signals beside the answers to other images
    result = audited(slow, *mine)
    for key in ("moved", "of_the_right"):
        assert not {"labels", "number of classes"} & set(result.measures[key].which(Reaction.RESPONDS))
    assert not any("cannot be compared" in sentence for sentence in result.conclusions)


def test_a_function_that_fails_at_what_a_control_leaves_it_is_undefined_there(slow):
    result = audited(slow, *map(posthoc.measure, (of_the_right, together)))
    assert {*result.measures["together"].which(Reaction.UNDEFINED)} == {
        "number and choice of channels",
        "choice of layers",
    }
    assert np.isfinite(result.measures["together"].value)
    untrained = next(control for control in result.controls if control.name == "untrained weights")
    with open_activations(slow) as activations:
        first, right = activations.read("mean", 0), activations.behaviour("correct", 0)
    assert untrained.measures["of_the_right"].mean == pytest.approx(first[:, right > 0].mean(), rel=1e-5)


def test_too_few_draws_are_no_proof_that_the_order_is_nothing(slow):
    def beginning(series):
        return np.abs(series[:, :20]).mean() + (series[0, 0] < series[0, 1:3].min()) + 5 * series[0, 0] ** 2

    with open_activations(slow) as activations:
        result = posthoc.audit(activations, draws=10, measures=[posthoc.measure(beginning)])
    p = result.measures["beginning"].order_p
    told = next(sentence for sentence in result.conclusions if "another order" in sentence)
    few = "cannot be told" in told and told.endswith("of 10 draws no p is below 0.18.")
    assert few == (0.05 < p <= 2 / 11)
    sure = dataclasses.replace(result.measures["beginning"], order_p=2 / 11)
    assert "cannot be told" in conclusions(result.controls, "beginning", sure, {}, AXES["image"])[0]
    unsure = dataclasses.replace(sure, order_p=0.5)
    assert "cannot be distinguished" in conclusions(result.controls, "beginning", unsure, {}, AXES["image"])[0]


def test_measures_that_no_audit_is_of_are_named(tmp_path):
    path = scaled(tmp_path / "a.h5", 3)
    with pytest.raises(UsageError, match=r"^accuracy, loss: an audit changes what series and checkpoints hold"):
        audited(path, "accuracy", "loss")
    assert list(audited(path, "hurst").measures) == ["hurst"]
    assert [*audited(path, "all").measures][:5] == [
        "hurst",
        "integration",
        "metastability",
        "synchrony",
        "effective_rank",
    ]


def test_the_command_audits_a_function_and_its_file_reads_back(tmp_path):
    path = scaled(tmp_path / "a.h5", 4)
    (tmp_path / "mine.py").write_text("def level(signals):\n    return signals.mean()\n")
    words = ["--draws", "10", "--measures", "metastability", "--measure", tmp_path / "mine.py"]
    done = subprocess.run([sys.executable, "-m", "posthoc", "audit", path, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "level was not seen to respond to" in done.stdout
    result = load_audit(tmp_path / "a.audit.json")
    assert list(result.measures) == ["metastability", "level"]
    assert json.loads((tmp_path / "a.audit.json").read_text()) == result.to_dict()


@pytest.mark.parametrize(
    ("found", "expected", "cell", "line"),
    [
        ("iirri", "rr", "responds +0.2", "c2: +0.200, c3: +0.100"),
        ("ruu", "r", "responds +0.2", "c0: +0.200"),
        ("uur", "r", "responds +0.1", "c2: +0.100"),
        ("iii", "iii", "indifferent +0.2", "c0: +0.200, c1: +0.150, c2: +0.100"),
        ("uxu", "uux", "undecided +0.2", "c0: +0.200, c2: +0.100"),
    ],
)
def test_of_several_controls_of_a_change_the_strongest_are_told_by_name(planted, found, expected, cell, line):
    kinds = {"r": Reaction.RESPONDS, "i": Reaction.INDIFFERENT, "u": Reaction.UNDECIDED, "x": Reaction.UNDEFINED}
    sizes = {"iirri": (0.9, 0.8, 0.2, 0.1, 0.7)}.get(found, (0.2, 0.15, 0.1))
    change = "choice of layers"
    effects = {
        f"c{k}": Effect(change, kinds[kind], size if kind != "x" else np.nan, control=f"c{k}")
        for k, (kind, size) in enumerate(zip(found, sizes, strict=True))
    }
    effects["other"] = Effect("labels", Reaction.INDIFFERENT, 0.0, control="other")
    response = Response("Q", 1.0, 0.1, told(effects))
    assert sorted(e.outcome[0] if e.outcome != Reaction.UNDEFINED else "x" for e in response.effects) == sorted(
        expected + "i"
    )
    spread = {"q": Spread(1.0, 0.1, 0.8, 1.2, 9)}
    controls = (Control("as it is", None, spread), *(Control(name, of.changes, spread) for name, of in effects.items()))
    result = dataclasses.replace(planted, controls=controls, measures={"q": response})
    assert tables_of_audits.factors(result).rows[0][1] == cell
    lines = dict(tables_of_audits.responses(result)[0])
    assert f"{change} ({line})" in "; ".join(lines.values())
    if "r" in found:
        assert not any(change in text for label, text in lines.items() if "responds" not in label)


def test_a_measure_of_small_numbers_keeps_its_digits(tmp_path):
    def tiny(series):
        return float(np.var(series)) * 1e-5

    path = scaled(tmp_path / "a.h5", 3, factors=(1.0, 2.0), untrained=3)
    result = audited(path, posthoc.measure(tiny))
    of = result.measures["tiny"]
    text = " ".join(result.conclusions)
    assert not re.search(r"\b0\.0+\b", text)
    assert f"({of.value:.2g}, and " in text
    cells = [cell for row in tables_of_audits.audit(result).rows for cell in row if str(cell).startswith("+- ")]
    assert cells
    sds = [control.measures["tiny"].sd for control in result.controls if control.measures["tiny"].sd > 0]
    assert [float(cell[3:]) for cell in cells] == pytest.approx(sds, rel=0.05)
    effect = Effect("labels", Reaction.RESPONDS, 2.5e-5, 1.0e-5, 4.04e-5)
    assert effect.interval == "95 % interval +1e-05 to +4e-05"


def test_a_measure_of_yours_without_a_value_is_not_said_to_be_of_channels(tmp_path):
    result = audited(scaled(tmp_path / "a.h5", 4), posthoc.measure(lambda signals: np.nan, name="none"))
    assert result.conclusions == ("none of the last checkpoint is undefined: it has no finite value there.",)


def test_only_of_differences_over_many_orders_it_is_said_that_they_are(planted):
    old = load_audit(FIXTURES / "v2" / "audit.json")
    assert over_orders(old) == ""
    as_now = {
        key: dataclasses.replace(
            of,
            effects=tuple(
                dataclasses.replace(effect, control=control.name)
                for control in old.controls
                for effect in of.effects
                if effect.changes.partition(" (")[0] == control.changes
            ),
        )
        for key, of in old.measures.items()
    }
    smoothed = dataclasses.replace(old, measures={"metastability": as_now["metastability"]})
    assert over_orders(smoothed).startswith("Smoothing ")
    assert over_orders(planted) == ""  # level is the same in any order
