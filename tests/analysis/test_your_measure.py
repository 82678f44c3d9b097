"""A function of the user's as a measure: the numbers, nulls and intervals that it is given, and how it may fail."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from noise import make, recording

import posthoc
from posthoc.analysis.axes.image import image_series
from posthoc.analysis.checkpoint import referenced
from posthoc.analysis.compare import tabulate
from posthoc.analysis.measures.user import load
from posthoc.analysis.runs import as_run
from posthoc.analysis.scales import published_scales
from posthoc.errors import UsageError
from posthoc.report import tables_of_runs
from posthoc.report.page import page
from posthoc.report.sources import Source
from posthoc.store import Frame, Layout
from posthoc.writing import write


@pytest.fixture(scope="module")
def noise_file(tmp_path_factory):
    """Pure noise over 12 checkpoints of two layers with four channels each; do not write to it."""
    return make(tmp_path_factory.mktemp("noise") / "activations.h5", channels=4, images=160, epochs=12)


def measured(path, *measures, draws=19):
    with posthoc.open_activations(path) as activations:
        return posthoc.compute_metrics(activations, nulls=draws, max_nulls=draws, measures=measures)


def mean_hurst(series):
    """Mean exponent of the units.

    More that is not shown.
    """
    alpha = posthoc.dfa(series, published_scales(series.shape[1]), fluctuation="published").alpha
    return alpha[np.isfinite(alpha)].mean()


def nearness(series):
    """As integration."""
    return np.exp(-((mean_hurst(series) - 0.7) ** 2) / (2 * 0.15**2))


def test_the_mean_exponent_is_the_built_in_one_with_its_nulls_to_the_bit(noise_file):
    run = measured(noise_file, "integration", posthoc.measure(mean_hurst), posthoc.measure(nearness))
    hurst, mine = run.measures["hurst"], run.measures["mean_hurst"]
    np.testing.assert_array_equal(mine.value, hurst.value)
    np.testing.assert_array_equal(mine.by_layer, hurst.by_layer)
    assert mine.nulls.keys() - {"channel"} == hurst.nulls.keys() - {"split"} == {"order", "label", "white", "gaussian"}
    for null in ("order", "label", "white", "gaussian"):
        for name, values in vars(hurst.nulls[null]).items():
            np.testing.assert_array_equal(getattr(mine.nulls[null], name), values)
    np.testing.assert_array_equal(run.column("nearness"), run.column("integration"))
    for name in ("mean", "sd", "z", "low", "high"):
        np.testing.assert_array_equal(run.null("order", "nearness", name), run.null("order", "integration", name))
    assert mine.decided_by == "order"
    assert mine.headline
    assert (mine.low < mine.value).all()
    assert (mine.value < mine.high).all()


def test_it_is_given_what_was_recorded_in_the_order_of_the_series(noise_file):
    given = {}

    def keeping(series, signals, labels, layers, behaviour, previous):
        if "signals" not in given and previous is not None and len(signals) == 8 and len(labels) == 160:
            given.update(series=series, signals=signals, labels=labels, layers=layers, previous=previous, **behaviour)
        return 0.0

    measured(noise_file, posthoc.measure(keeping), draws=0)
    with posthoc.open_activations(noise_file) as file:
        order = np.argsort(file.labels, kind="stable")
        np.testing.assert_array_equal(given["labels"], file.labels[order])
        np.testing.assert_array_equal(given["signals"], file.read("mean", 1)[:, order])
        np.testing.assert_array_equal(given["previous"], file.read("mean", 0)[:, order])
        np.testing.assert_array_equal(given["series"], image_series(file.read("mean", 1), file.labels, 5))
        assert given["layers"].tolist() == [0] * 4 + [1] * 4


def test_behaviour_comes_in_the_order_of_the_series(tmp_path):
    random = np.random.default_rng(0)
    loss = random.random((12, 80)).astype("f4")
    labels = np.arange(80) % 4
    frames = [
        Frame(f"{e}.pt", "0", e, e, 1.0, 0.5, {}, {"mean": {"layer0": random.standard_normal((3, 80), "f4") + loss[e]}},
              behaviour={"loss": loss[e]})
        for e in range(12)
    ]  # fmt: skip
    plan = Layout(recording(["layer0"], images=80, classes=4), np.arange(80), labels, {"layer0": np.arange(3)})
    write(tmp_path / "activations.h5", plan, frames)

    def coupling(signals, behaviour):
        return np.corrcoef(signals.mean(axis=0), behaviour["loss"])[0, 1]

    run = measured(tmp_path / "activations.h5", posthoc.measure(coupling))
    with posthoc.open_activations(tmp_path / "activations.h5") as file:
        expected = [np.corrcoef(file.read("mean", e).mean(axis=0), loss[e])[0, 1] for e in range(12)]
    np.testing.assert_allclose(run.column("coupling"), expected, rtol=1e-6)
    # Reordering the images of a class takes their losses from them.
    assert np.nanmean(np.abs(run.null("order", "coupling"))) < np.mean(expected) / 2


def test_weights_are_those_of_the_checkpoint(tmp_path):
    random = np.random.default_rng(0)
    norms = random.random((12, 2))
    frames = [
        Frame(f"{e}.pt", "0", e, e, 1.0, 0.5, {}, {"mean": {"layer0": random.standard_normal((3, 80), "f4")}},
              weights={"norm": norms[e], "sketch": np.zeros(5, "f4")})
        for e in range(12)
    ]  # fmt: skip
    channels, weights = {"layer0": np.arange(3)}, {"fc.weight": 3, "fc.bias": 2}
    plan = Layout(
        recording(["layer0"], images=80, classes=4), np.arange(80), np.arange(80) % 4, channels, weights=weights
    )
    write(tmp_path / "activations.h5", plan, frames)

    def largest(weights):
        assert weights["tensor"].tolist() == ["fc.weight", "fc.bias"]
        return weights["norm"].max() + weights["size"][0]

    def scaled(signals, weights):
        return signals.std() * weights["norm"][0]

    run = measured(tmp_path / "activations.h5", posthoc.measure(largest), posthoc.measure(scaled))
    np.testing.assert_allclose(run.column("largest"), norms.max(axis=1) + 3, rtol=1e-12)
    alone = run.measures["largest"]
    assert (alone.nulls, alone.low.size, alone.by_layer.size) == ({}, 0, 0)
    with posthoc.open_activations(tmp_path / "activations.h5") as file:
        expected = [file.read("mean", e).astype(float).std() * norms[e, 0] for e in range(12)]
    np.testing.assert_allclose(run.column("scaled"), expected, rtol=1e-6)
    assert run.measures["scaled"].nulls.keys() == {"order", "label", "channel"}


def test_what_does_not_depend_on_the_order_does_not_differ_from_it_by_rounding(noise_file):
    spread = posthoc.measure(lambda signals: signals.std(axis=1).mean(), name="spread")
    run = measured(noise_file, spread)
    assert (run.null("order", "spread", "p") == 1).all()
    assert set(run.null("channel", "spread", "p")[sorted(referenced(12))]) == {1}
    with posthoc.open_activations(noise_file) as file:
        np.testing.assert_allclose(run.column("spread")[3], file.read("mean", 3).std(axis=1).mean(), rtol=1e-6)
        of_layer = file.read("mean", 3, "layer1").std(axis=1).mean()
    np.testing.assert_allclose(run.measures["spread"].by_layer[3, 1], of_layer, rtol=1e-6)
    assert run.measures["spread"].nulls.keys() == {"order", "label", "channel"}


def test_the_interval_of_a_mean_has_the_width_that_statistics_say(tmp_path):
    """Of 16 x 400 independent numbers of variance 1: the mean has sd 1/80, which the interval takes twice (by images and
    by channels, as of two-way data)."""
    path = make(tmp_path / "activations.h5", layers=1, channels=16, images=400, epochs=30, seed=3)
    run = measured(path, posthoc.measure(lambda signals: signals.mean(), name="level"))
    half = (run.measures["level"].high - run.measures["level"].low)[1:] / 2
    assert np.median(half) == pytest.approx(np.sqrt(2) * 2.05 / 80, rel=0.2)
    covered = (run.measures["level"].low <= 0) & (run.measures["level"].high >= 0)
    assert covered.mean() > 0.9


def test_a_number_for_each_layer(noise_file):
    def levels(signals, layers):
        return [signals[layers == k].mean() for k in range(2)]

    run = measured(noise_file, posthoc.measure(levels))
    with posthoc.open_activations(noise_file) as file:
        expected = [[file.read("mean", e, layer).mean() for layer in file.layers] for e in range(12)]
    np.testing.assert_allclose(run.measures["levels"].by_layer, expected, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(run.column("levels"), np.mean(expected, axis=1), rtol=1e-4, atol=1e-7)


def test_pure_noise_is_given_with_what_was_recorded(tmp_path):
    def spread_of_layers(series, layers):
        return len(layers) * series.std()

    path = make(tmp_path / "a.h5", channels=2, images=96, epochs=2)
    run = measured(path, posthoc.measure(spread_of_layers), draws=3)
    assert (run.measures["spread_of_layers"].nulls["white"].draws == 3).all()


def test_where_no_unit_is_live_there_is_no_number(tmp_path):
    layout = Layout(recording(["a"], images=96, classes=4), np.arange(96), np.arange(96) % 4, {"a": np.arange(2)})
    values = [np.random.default_rng(0).standard_normal((2, 96)).astype("f4"), np.zeros((2, 96), "f4")]
    frames = [
        Frame(f"{e}", f"{e}", e + 1, None, 0.5, 0.5, {}, {"mean": {"a": x}}, behaviour={}) for e, x in enumerate(values)
    ]
    write(tmp_path / "a.h5", layout, frames)
    peak = posthoc.measure(lambda series: series[0].max(), name="peak")
    run = measured(tmp_path / "a.h5", peak, posthoc.measure(lambda weights: len(weights), name="known"), draws=3)
    assert np.isfinite(run.column("peak")).tolist() == [True, False]
    assert run.column("known").tolist() == [0, 0]  # of weights alone, which no unit changes
    assert np.isnan(run.measures["peak"].low[1])


def test_a_layer_that_is_dead_has_no_number_of_its_own(tmp_path):
    layout = Layout(recording(["a", "b"], images=96, classes=4), np.arange(96), np.arange(96) % 4,
                    {name: np.arange(2) for name in "ab"})  # fmt: skip
    alive = np.random.default_rng(0).standard_normal((2, 96)).astype("f4")
    frames = [
        Frame(f"{e}", f"{e}", e + 1, None, 0.5, 0.5, {}, {"mean": {"a": alive, "b": alive * (e > 0)}}, behaviour={})
        for e in range(2)
    ]
    write(tmp_path / "a.h5", layout, frames)

    def peaks(series, layers):
        return [series[layers == layer].max() for layer in range(layers.max() + 1)]

    run = measured(tmp_path / "a.h5", posthoc.measure(peaks), draws=0)
    assert np.isfinite(run.measures["peaks"].by_layer).tolist() == [[True, False], [True, True]]


def test_labels_are_those_of_the_null(noise_file):
    classes = posthoc.measure(lambda labels: len(np.unique(labels)), name="classes")
    run = measured(noise_file, classes)
    assert (run.column("classes") == 4).all()
    assert set(run.null("split", "classes")[sorted(referenced(12))]) == {40}


def test_random_numbers_are_the_same_at_each_call_and_the_programs_go_on(noise_file):
    drawing = posthoc.measure(lambda series: series.std() + np.random.standard_normal(), name="drawing")
    np.random.seed(5)
    expected = np.random.random()
    np.random.seed(5)
    first, second = (measured(noise_file, drawing) for _ in range(2))
    assert np.random.random() == expected
    np.testing.assert_array_equal(first.column("drawing"), second.column("drawing"))
    for name in ("mean", "p"):
        np.testing.assert_array_equal(first.null("order", "drawing", name), second.null("order", "drawing", name))


MINE = '''import os
import numpy as np
LEVEL = 2

def spread(signals):
    "Mean spread of the channels."
    print("foreign words")
    return signals.std(axis=1).mean() * LEVEL

def outside(x):
    y = 1
    return x[0, 10**9]

def leaves(x): raise SystemExit(3)
def ends(x): os._exit(5)
def imaginary(x): return 1j
def nothing(x): return None
def text(x): return "much"
def table(x): return x
def ragged(x): return [[1], [1, 2]]
def writes(x): x[0] = 1
def wants(x, batch): return 1
def bare(): return 1
def endless(x): return float("inf")
def undefined(x): return float("nan")
calls = []
def counts(x): calls.append(1); return len(calls)
def draws(x): return np.random.default_rng().random()
'''  # fmt: skip


@pytest.fixture
def mine(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    return tmp_path / "mine.py"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("outside", r"outside fails at line 12 of mine\.py \(IndexError: index 1000000000 is out of bounds"),
        ("leaves", r"leaves fails at line 14 of mine\.py \(it calls sys\.exit\(3\)\)"),
        ("ends", r"ends fails at line 15 of mine\.py \(it calls sys\.exit\(5\)\)"),
        ("imaginary", r"imaginary gives complex numbers; give a number\."),
        ("nothing", r"nothing gives a NoneType; give a number\."),
        ("text", r"text gives a str; give a number\."),
        ("table", r"table gives an array of shape \(8, 160\); give a number\."),
        ("ragged", r"ragged gives a list; give a number\."),
        ("writes", r"writes fails at line 21 of mine\.py \(ValueError: assignment destination is read-only\)"),
        ("wants", r"wants asks for 'batch'; its first parameter is given the series"),
        ("bare", r"bare takes nothing"),
        ("counts", r"counts gives another number each time"),
        ("draws", r"draws gives another number each time"),
        ("missing", r"mine\.py defines no function 'missing' \(there are: spread, outside"),
        ("LEVEL", r"mine\.py defines no function 'LEVEL'"),
    ],
)
def test_what_a_function_may_do_wrong_is_one_sentence(noise_file, mine, name, message):
    with pytest.raises(UsageError, match=message):
        measured(noise_file, load(f"{mine}:{name}"), draws=0)


def test_infinite_and_undefined_numbers_are_no_errors(noise_file, mine):
    with pytest.warns(UserWarning, match="endless is infinite somewhere, which is taken for undefined"):
        run = measured(noise_file, load(f"{mine}:endless"), load(f"{mine}:undefined"))
    assert np.isnan(run.column("endless")).all()
    assert np.isnan(run.column("undefined")).all()
    assert np.isnan(run.null("order", "undefined", "p")).all()


class Odd:
    def __array__(self, *_, **__):
        raise RuntimeError("no array")


def test_what_is_masked_is_undefined(noise_file):
    def scalar(signals):
        return np.ma.masked_less(signals, 1e9).mean()

    def kept(signals):
        return np.ma.masked_less(signals, 0).mean()

    def whole(signals, layers):
        return np.ma.array([7, 8], mask=[False, True])

    def listed(signals, layers):
        return [np.ma.masked, signals.std()]

    run = measured(noise_file, *map(posthoc.measure, (scalar, kept, whole, listed)), draws=0)
    assert np.isnan(run.column("scalar")).all()
    assert (run.column("whole") == 7).all()
    np.testing.assert_array_equal(run.measures["whole"].by_layer, [[7, np.nan]] * 12)
    with posthoc.open_activations(noise_file) as file:
        values = [file.read("mean", e).astype(float) for e in range(12)]
        np.testing.assert_allclose(run.column("kept"), [x[x >= 0].mean() for x in values], rtol=1e-6)
        np.testing.assert_allclose(run.column("listed"), [x.std() for x in values], rtol=1e-6)
    assert np.isnan(run.measures["listed"].by_layer[:, 0]).all()


def test_a_tensor_is_a_number_whatever_its_type_and_gradient(noise_file):
    def graded(signals):
        return (torch.ones(1, requires_grad=True) * float(signals.std())).sum()

    def each(signals, layers):
        weight = torch.ones((), dtype=torch.float64, requires_grad=True)
        return [weight * float(signals[layers == k].std()) for k in range(2)]

    def half(signals):
        return torch.tensor(0.1, dtype=torch.bfloat16)

    run = measured(noise_file, *map(posthoc.measure, (graded, each, half)), draws=0)
    with posthoc.open_activations(noise_file) as file:
        values = [file.read("mean", e).astype(float) for e in range(12)]
        of_layers = [[file.read("mean", e, layer).astype(float).std() for layer in file.layers] for e in range(12)]
    np.testing.assert_allclose(run.column("graded"), [x.std() for x in values], rtol=1e-6)
    np.testing.assert_allclose(run.measures["each"].by_layer, of_layers, rtol=1e-6)
    assert (run.column("half") == 0.10009765625).all()


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        (Odd(), "an Odd"),
        ([Odd(), 1.0], "a list"),
        (torch.tensor(1j), "complex numbers"),
        (torch.eye(2).to_sparse(), "a Tensor"),
        (torch.empty((), device="meta"), "a Tensor"),
        (np.ma.array(["a"], mask=[True]), "an array of str32"),
    ],
)
def test_what_cannot_be_made_an_array_is_one_sentence(noise_file, given, kind):
    with pytest.raises(UsageError, match=f"^odd gives {kind}; give a number\\.$"):
        measured(noise_file, posthoc.measure(lambda signals: given, name="odd"), draws=0)


@pytest.mark.parametrize(
    "name", ["integration", "accuracy", "epoch", "metastability_low", "score_R2", "weights_norm", "rms", "M"]
)
def test_a_name_that_is_taken_is_refused(name):
    with pytest.raises(UsageError, match=f"There is something called '{name}' already"):
        posthoc.analysis.measures.chosen(["default", posthoc.measure(lambda series: 1.0, name=name)])


def test_two_functions_of_one_name_are_refused():
    with pytest.raises(UsageError, match="something called 'nearness' already"):
        posthoc.analysis.measures.chosen([posthoc.measure(nearness), posthoc.measure(nearness)])


def test_it_is_in_every_output_and_read_back_without_its_file(noise_file, mine, tmp_path):
    words = [
        "--nulls",
        "19",
        "--max-nulls",
        "19",
        "--csv",
        "-o",
        tmp_path / "metrics.json",
        "--measures",
        "metastability",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "posthoc", "metrics", noise_file, *words, "--measure", f"{mine}:spread"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "foreign words" not in done.stdout
    assert "spread cannot be distinguished from that of another order of the same images" in done.stdout
    digest = subprocess.run(["sha256sum", mine], capture_output=True, text=True, check=True).stdout.split()[0]
    mine.unlink()
    content = json.loads((tmp_path / "metrics.json").read_text())["measures"]["spread"]
    assert content["code"] == {"file": "mine.py", "function": "spread", "sha256": digest}
    assert content["about"] == "Mean spread of the channels."
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    assert float(rows[2]["spread"]) == content["value"][2]
    run = posthoc.load_metrics(tmp_path / "metrics.json")
    html = page([Source("mine", "metrics.json", run)])
    assert '"title": "spread"' in html
    assert f"mine.py:spread, sha256 {digest}" in html
    (row,) = tabulate([as_run(run, "mine")])
    assert row.quantities["spread"].value == pytest.approx(np.mean(content["value"][1:]))


def test_runs_measured_by_different_code_are_said_to_be(noise_file):
    runs = []
    for name, factor in (("a", 1), ("b", 2)):
        source = f"def level(signals):\n    return signals.mean() * {factor}\n"
        space = {}
        exec(source, space)
        runs.append(as_run(measured(noise_file, posthoc.measure(space["level"]), draws=0), name))
    kept = tables_of_runs.runs(tabulate(runs)).below
    assert not [line for line in kept if "different code" in line]  # their source is not known
    for run, name in zip(runs, ("mean_hurst", "nearness"), strict=True):
        code = posthoc.measure(globals()[name]).code
        run.measures["level"] = run.measures["level"].__class__(**{**vars(run.measures["level"]), "code": code})
    assert "level of a and of b was measured by different code: the numbers may not be compared." in (
        tables_of_runs.runs(tabulate(runs)).below
    )


def test_a_decorated_function_in_a_file_is_taken_as_it_is(noise_file, tmp_path):
    (tmp_path / "mine.py").write_text(
        "import posthoc\n@posthoc.measure(symbol='S', limits=(0, 1))\ndef share(series):\n    return (series > 0).mean()\n"
    )
    made = load(f"{tmp_path / 'mine.py'}")
    assert (made.key, made.symbol, made.limits, made.code.file) == ("share", "S", (0, 1), "mine.py")
    run = measured(noise_file, made, draws=0)
    with posthoc.open_activations(noise_file) as file:
        assert run.column("share")[0] == pytest.approx((image_series(file.read("mean", 0), file.labels, 5) > 0).mean())


def test_signals_are_refused_where_the_axis_does_not_give_them(tmp_path):
    path = make(tmp_path / "activations.h5", layers=24, channels=2, images=30, epochs=3)
    protocol = posthoc.Protocol.named(axis="depth")
    level = posthoc.measure(lambda signals: 1.0, name="level")
    with posthoc.open_activations(path) as file, pytest.raises(UsageError, match="which only the image axis gives"):
        posthoc.compute_metrics(file, protocol, measures=[level])
    with posthoc.open_activations(path) as file:
        mine = posthoc.measure(lambda series: np.diff(series, axis=1).std(), name="roughness")
        run = posthoc.compute_metrics(file, protocol, nulls=19, max_nulls=19, measures=[mine])
    assert run.measures["roughness"].nulls.keys() == {"white", "time", "phase", "gaussian"}
    assert (run.measures["roughness"].low < run.column("roughness")).all()
