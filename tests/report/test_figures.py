"""Figures: what they draw is what was measured, nothing is empty, and they come out as the files asked for."""

import dataclasses
import json
import math
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import altair
import numpy as np
import pytest
from click.testing import CliRunner
from documents import make as documents
from noise import make

from posthoc.analysis.metrics import compute_metrics
from posthoc.analysis.protocol import Protocol
from posthoc.analysis.records import load_metrics
from posthoc.analysis.runs import as_run
from posthoc.analysis.summary import counted, summarise
from posthoc.analysis.weights import ALL, WeightPath
from posthoc.cli import main
from posthoc.errors import PosthocError, UsageError
from posthoc.report.answers import happened
from posthoc.report.export import export
from posthoc.report.figures import FIGURES, Of, figures_of
from posthoc.report.figures.figure import panel
from posthoc.report.figures.stopping import _title as stopping_title
from posthoc.report.several import beyond_seeds
from posthoc.report.sources import Several
from posthoc.report.words import dropped_out, in_short
from posthoc.store import open_activations

EVERY = [name for name, kind in figures_of(Of.RUN).items() if kind.fits is None]
"""The figures that every run has."""
HOSTILE = "</script><script>alert(1)</script>\"'`\\ ${x} \u202e" + "long" * 60


@pytest.fixture(scope="module")
def metrics(activations_file):
    with open_activations(activations_file) as activations:
        return compute_metrics(activations, nulls=19)


def run(*words):
    return CliRunner().invoke(main, list(map(str, words)))


def texts(path):
    return [element.text for element in ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text")]


def changed(metrics, **columns):
    """The run with other values of some measures."""
    measures = {key: dataclasses.replace(metrics.measures[key], value=value) for key, value in columns.items()}
    return dataclasses.replace(metrics, measures={**metrics.measures, **measures})


def without_nulls(metrics):
    """The run as if no null had been drawn."""
    measures = {
        key: dataclasses.replace(measured, nulls={}, summary=dataclasses.replace(measured.summary, nulls={}))
        for key, measured in metrics.measures.items()
    }
    return dataclasses.replace(metrics, measures=measures)


def without(metrics):
    """The same run with nothing measured in any epoch."""
    E = len(metrics.checkpoints)
    nothing = np.full(E, np.nan)
    measures = {
        key: dataclasses.replace(
            measured, value=nothing, low=nothing, high=nothing, by_layer=np.full_like(measured.by_layer, np.nan),
            summary=dataclasses.replace(measured.summary, mean=math.nan),
        )
        for key, measured in without_nulls(metrics).measures.items()
    }  # fmt: skip
    summary = dataclasses.replace(metrics.summary, best_epoch=None, convergence={"retrospective": None, "causal": None})
    return dataclasses.replace(
        metrics,
        measures=measures,
        checkpoints=tuple(dataclasses.replace(row, reasons={"constant": 128}) for row in metrics.checkpoints),
        phase_locking=dataclasses.replace(metrics.phase_locking, ppc=np.full_like(metrics.phase_locking.ppc, np.nan)),
        fluctuation=tuple(dataclasses.replace(curves, curves={}) for curves in metrics.fluctuation),
        summary=summary,
    )


@pytest.mark.parametrize("name", EVERY)
def test_every_figure_of_a_run_says_what_it_shows(metrics, name, tmp_path):
    figure = export(lambda width: FIGURES[name].build(metrics, None, width), tmp_path / "a.svg", 400)
    assert figure.title
    assert figure.explanation.endswith(".")
    root = ElementTree.parse(tmp_path / "a.svg").getroot()
    if figure.widest != 0:
        assert abs(float(root.get("width")) - 400) <= 12
    assert len(list(root.iter("{http://www.w3.org/2000/svg}path"))) > 5
    spec = figure.specification
    assert figure.explanation in spec["description"]
    assert "values" not in json.dumps(spec["params"])
    altair.Chart.from_dict(spec)  # raises for what Vega-Lite's schema does not allow


@pytest.mark.parametrize("name", EVERY)
def test_without_values_a_figure_says_so_instead_of_being_empty(metrics, name, tmp_path):
    export(lambda width: FIGURES[name].build(without(metrics), None, width), tmp_path / "a.svg", 400)
    said = texts(tmp_path / "a.svg")
    if name == "similarity":
        assert "1.00" in said
    elif name in ("layers", "locking"):
        assert "×" in said
    else:
        assert "undefined at every checkpoint: constant" in said


def test_the_path_of_the_weights(metrics, tmp_path):
    metrics = dataclasses.replace(metrics, skipped={"epoch-9.pt": "it holds the weights of epoch-1.pt"})
    figure = export(lambda width: FIGURES["weights"].build(metrics, None, width), tmp_path / "a.svg", 400)
    path = metrics.weights["all weights"]
    assert f"end {path.start[-1]:.3g} from those of epoch 0, after a way of {np.nansum(path.step):.3g}" in figure.title
    assert figure.caution == "epoch-9.pt was left out: it holds the weights of epoch-1.pt."
    said = texts(tmp_path / "a.svg")
    assert {"distance from the start", "cosine of successive steps", "stage2.0"} <= set(said)
    assert "×" in said  # a gain that never moves
    tables = figure.specification["datasets"].values()
    rows = next(rows for rows in tables if "relative" in rows[0])
    drawn = {(row["layer"], row["at"]): row["relative"] for row in rows}
    assert len(drawn) == (len(metrics.weights) - 1) * 4
    fc = metrics.weights["fc"]
    assert drawn["fc", 3] == pytest.approx(fc.step[3] / fc.norm[3], rel=1e-5)
    assert drawn["conv5.1", 1] is None
    rows = next(rows for rows in tables if "cosine" in rows[0])
    assert [row["cosine"] for row in rows] == [None, *(pytest.approx(v, rel=1e-5) for v in path.cosine[1:-1]), None]


def test_weights_that_do_not_move_or_are_not_there(metrics, tmp_path):
    E = len(metrics.checkpoints)
    still = WeightPath(np.ones(E), np.where(np.arange(E), 0.0, np.nan), np.zeros(E), np.full(E, np.nan), 0.0)
    run = dataclasses.replace(metrics, weights={"a": still, ALL: still})
    figure = export(lambda width: FIGURES["weights"].build(run, None, width), tmp_path / "a.svg", 400)
    assert figure.title == "The weights do not move"
    broken = np.where(np.arange(E) % 2, np.nan, 1.0)
    run = dataclasses.replace(
        metrics, weights={ALL: WeightPath(broken, np.full(E, np.nan), 2 * broken, np.full(E, np.nan), 0.0)}
    )
    title = "The weights end 2 from those of epoch 0, after a way that is not finite throughout"
    assert FIGURES["weights"].build(run, None, 400).title == title
    assert not FIGURES["weights"].fits(dataclasses.replace(metrics, weights={}))
    with pytest.raises(PosthocError, match="no weights"):
        FIGURES["weights"].build(dataclasses.replace(metrics, weights={}), None, 400)


def test_measures_draw_the_values_and_the_nulls(metrics):
    spec = FIGURES["measures"].build(metrics, None, 400).specification
    (rows,) = [rows for rows in spec["datasets"].values() if "integration" in rows[0]]
    np.testing.assert_allclose([row["integration"] for row in rows], metrics.column("integration"), rtol=1e-5)
    np.testing.assert_allclose(
        [row["metastability_white_low"] for row in rows], metrics.null("white", "metastability", "low"), rtol=1e-5
    )
    assert [row["untrained"] for row in rows] == [True, False, False, False, False]


def test_the_axis_of_one_value_holds_its_interval_and_nulls(metrics):
    row = {
        "at": 4,
        "untrained": False,
        "hurst": 0.8,
        "hurst_low": 0.7,
        "hurst_high": None,
        "hurst_white_low": 0.3,
        "M_low": 0,
    }
    spec = json.dumps(panel([row], metrics, [], "hurst", 300, 100, "H").to_dict())
    low, high = map(float, re.search(r'"domain": \[(0[\d.]+), ([\d.]+)\]', spec).groups())
    assert (low, high) == pytest.approx((0.25, 1.35))


def test_a_null_not_rejected_is_a_caution(metrics):
    def with_against(key, change):
        measured = metrics.measures[key]
        nulls = {null: change(null, against) for null, against in measured.summary.nulls.items()}
        nulls = {null: against for null, against in nulls.items() if against}
        summary = dataclasses.replace(measured.summary, nulls=nulls)
        measures = {**metrics.measures, key: dataclasses.replace(measured, summary=summary)}
        return dataclasses.replace(metrics, measures=measures)

    doubtful = with_against("metastability", lambda null, row: dataclasses.replace(row, differs=1, wanting=0))
    caution = FIGURES["measures"].build(doubtful, None, 400).caution
    assert "M differs from that of another order of the same images in 1 of 4 epochs." in caution
    assert "pure noise" not in caution  # a reference
    old = with_against("metastability", lambda null, row: None if null == "order" else row)
    assert "Whether M differs from that of another order of the same images is not known: that null was not drawn." in (
        FIGURES["measures"].build(old, None, 400).caution
    )


def test_the_epoch_of_a_figure_can_be_chosen(metrics, tmp_path):
    shown = {}
    for epoch in (1, 4):
        export(lambda width, epoch=epoch: FIGURES["similarity"].build(metrics, epoch, width), tmp_path / "a.svg", 400)
        shown[epoch] = [text for text in texts(tmp_path / "a.svg") if text and text.replace(".", "").isdigit()]
        expected = {f"{round(value, 3):.2f}" for row in metrics.representation.cka_layers[epoch] for value in row}
        assert expected <= set(shown[epoch])
    assert shown[1] != shown[4]
    with pytest.raises(UsageError, match="No epoch 9 here; there are 0, 1, 2, 3, 4"):
        FIGURES["similarity"].build(metrics, 9, 400)


def test_long_runs_keep_some_epochs_of_what_is_shown_one_at_a_time(metrics):
    many = dataclasses.replace(
        metrics,
        layers=tuple(f"l{k}" for k in range(40)),
        checkpoints=tuple(dataclasses.replace(metrics.checkpoints[k % 5], epoch=k) for k in range(400)),
        phase_locking=dataclasses.replace(metrics.phase_locking, ppc=np.zeros((400, 40, 40))),
    )
    figure = FIGURES["locking"].build(many, None, 400)
    assert figure.epochs[-1] == 399
    assert len(figure.epochs) == 400 // 7 + 1
    assert len(json.dumps(figure.specification)) < 1_000_000
    assert 398 not in figure.epochs
    assert 398 in FIGURES["locking"].build(many, 398, 400).epochs


def test_checkpoints_of_one_epoch_are_counted_in_steps(metrics):
    twice = [dataclasses.replace(row, epoch=k // 2) for k, row in enumerate(metrics.checkpoints)]
    assert counted(twice) == ("step", [0, 7, 14, 21, 28])
    partly = (
        *metrics.checkpoints[:2],
        dataclasses.replace(metrics.checkpoints[2], epoch=None),
        *metrics.checkpoints[3:],
    )
    columns = {key: measured.value for key, measured in metrics.measures.items()}
    summary = summarise(columns, partly, metrics.protocol)
    assert (summary.unit, summary.best_epoch) == ("step", 28)
    in_steps = dataclasses.replace(metrics, checkpoints=partly, summary=summary)
    assert FIGURES["locking"].build(in_steps, None, 400).epochs == (0, 7, 14, 21, 28)
    assert as_run(in_steps, "a").when == (7, 14, 21, 28)
    recording = in_steps.recording
    told = dataclasses.replace(
        recording, provenance=dataclasses.replace(recording.provenance, settings={"lr": 0.1, "model": "mine"})
    )
    about = as_run(dataclasses.replace(in_steps, input=dataclasses.replace(in_steps.input, recording=told)), "a").about
    assert about["lr"] == 0.1
    assert about["model"] == recording.identity.model.architecture


def test_what_is_not_drawn_is_not_explained(metrics):
    bare = without_nulls(metrics)
    assert "noise" not in FIGURES["measures"].build(bare, None, 400).explanation
    assert "noise" not in FIGURES["trajectory"].build(bare, None, 400).explanation


@pytest.mark.parametrize(
    ("low", "high", "says"),
    [
        ([0.5, 0.6, 0.6, 0.7], [0.7, 0.9, 0.9, 0.9], "goes from {} to {} (intervals overlap)"),
        ([0.5, 0.6, 0.6, 0.8], [0.7, 0.9, 0.9, 0.9], "rises from {} to {}"),
        ([0.5, 0.6, 0.6, 0.1], [0.7, 0.9, 0.9, 0.4], "falls from {} to {}"),
        ([0.5, 0.6, 0.6, np.nan], [0.7, 0.9, 0.9, np.nan], "goes from {} to {}"),
        (None, None, "goes from {} to {}"),
    ],
)
def test_that_a_measure_rises_or_falls_is_said_where_its_intervals_show_it(metrics, low, high, says):
    low, high = (np.empty(0) if ends is None else np.array([np.nan, *ends]) for ends in (low, high))
    of = dataclasses.replace(metrics.measures["integration"], low=low, high=high)
    without = dataclasses.replace(metrics.measures["metastability"], low=np.empty(0), high=np.empty(0))
    run = dataclasses.replace(metrics, measures={**metrics.measures, "integration": of, "metastability": without})
    figure = FIGURES["trajectory"].build(run, None, 400)
    H, M = ([f"{values[e]:.3f}" for e in (1, 4)] for values in (of.value, without.value))
    assert figure.title == f"From epoch 1 to 4 H_eff {says.format(*H)} and M goes from {' to '.join(M)}"
    assert ("do not overlap" in figure.explanation) == bool(low.size)


def test_without_nulls_the_path_is_told_without_a_claim(activations_file):
    with open_activations(activations_file) as activations:
        bare = compute_metrics(activations, nulls=0)
    H, M = ([f"{bare.column(key)[e]:.3f}" for e in (1, 4)] for key in ("integration", "metastability"))
    title = FIGURES["trajectory"].build(bare, None, 400).title
    assert title == f"From epoch 1 to 4 H_eff goes from {' to '.join(H)} and M goes from {' to '.join(M)}"


def test_the_box_of_the_null_is_of_trained_checkpoints_alone(metrics):
    def with_null(untrained):
        measures = dict(metrics.measures)
        for key, low in (("integration", 0.5), ("metastability", 0.05)):
            of = measures[key]
            low = np.array([untrained, *(low + 0.02 * np.arange(4))])
            null = dataclasses.replace(of.nulls["order"], low=low, high=low + 0.02)
            measures[key] = dataclasses.replace(of, value=low + 0.01, nulls={**of.nulls, "order": null})
        return dataclasses.replace(metrics, measures=measures)

    for untrained in (0.001, np.nan):
        tables = FIGURES["trajectory"].build(with_null(untrained), None, 400).specification["datasets"].values()
        (box,) = next(rows for rows in tables if "x_low" in rows[0])
        assert box == pytest.approx({"x_low": 0.53, "x_high": 0.55, "y_low": 0.08, "y_high": 0.1})


def test_of_an_untrained_checkpoint_alone_no_course_and_no_end_is_told(tmp_path):
    with open_activations(make(tmp_path / "a.h5", epochs=1)) as activations:
        lone = compute_metrics(activations, nulls=0)
    assert happened(lone) == ["No checkpoint is trained: there is only the untrained network."]
    assert re.fullmatch(
        r"\w+ by layer lies between [\d.]+ and [\d.]+ at epoch 0", FIGURES["layers"].build(lone, None, 400).title
    )
    assert FIGURES["training"].build(lone, None, 400).explanation == "The hollow diamond is the untrained network."


def test_tooltips_have_the_digits_of_small_numbers(metrics):
    def formats(name, run):
        return set(
            re.findall(
                r'"field": "loss", "format": "([^"]*)"', json.dumps(FIGURES[name].build(run, None, 400).specification)
            )
        )

    loss = np.array([2.3, 1.1, 0.4, 0.2, 0.0])
    assert formats("training", changed(metrics, loss=loss)) == {".4f"}
    assert formats("training", changed(metrics, loss=1e-4 * loss)) == {".6~g"}
    runs = Several([as_run(changed(metrics, integration=1e-4 * loss), name) for name in "ab"])
    spec = json.dumps(FIGURES["runs"].build(runs, 400).specification)
    found = dict(re.findall(r'"field": "(integration|metastability)", "format": "([^"]*)"', spec))
    assert found == {"integration": ".6~g", "metastability": ".4f"}


def test_the_base_of_adapters_is_not_called_untrained(metrics):
    provenance = dataclasses.replace(metrics.recording.provenance, adapters="LORA")
    recording = dataclasses.replace(metrics.recording, provenance=provenance)
    adapted = dataclasses.replace(metrics, input=dataclasses.replace(metrics.input, recording=recording))
    for run, base, label in (
        (metrics, "the untrained network", "untrained"),
        (adapted, "the network before fine-tuning", "before fine-tuning"),
    ):
        for name in ("training", "measures"):
            assert f"he hollow diamond is {base}" in FIGURES[name].build(run, None, 400).explanation
        tables = FIGURES["trajectory"].build(run, None, 400).specification["datasets"].values()
        assert label in {row.get("text") for rows in tables for row in rows}


def test_of_several_nulls_that_decide_it_is_said_which_does_of_which_measures(tmp_path):
    with open_activations(documents(tmp_path / "a.h5", 6, 256, steps=(0, 1, 4))) as activations:
        of_documents = compute_metrics(activations, nulls=9, max_nulls=9)
    figure = FIGURES["measures"].build(of_documents, None, 600)
    assert figure.explanation.endswith(
        "redrawn data: the same points in another order of time, which decides about H, M and H_s; the documents' differences "
        "with signs at random, which decides about dH, dM and dH_s; and pure noise, independent in every channel, for reference."
    )
    keys = ["measured", "95 % interval", "time permuted", "signs flipped", "pure noise"]
    assert json.dumps(keys) in json.dumps(figure.specification)


def test_nulls_that_decide_and_were_not_drawn_are_not_explained(metrics):
    assert (
        FIGURES["measures"]
        .build(metrics, None, 400)
        .explanation.endswith(
            ": another order of the same images, which decides, and pure noise, independent in every channel, for reference."
        )
    )
    measures = {
        key: dataclasses.replace(of, nulls={null: of.nulls[null] for null in of.nulls if null != "order"})
        for key, of in metrics.measures.items()
    }
    explanation = FIGURES["measures"].build(dataclasses.replace(metrics, measures=measures), None, 400).explanation
    assert explanation.endswith("redrawn data: pure noise, independent in every channel, for reference.")


def test_a_notebook_gets_the_same_chart(metrics, tmp_path):
    metrics.save(tmp_path / "metrics.json")
    chart = load_metrics(tmp_path / "metrics.json").chart("trajectory")
    spec = chart.to_dict()
    assert spec["title"]["text"].startswith("From epoch 1 to 4 H_eff goes from 0.9")
    assert metrics.chart("similarity", epoch=2).to_dict()["params"][-1]["value"] == 2
    with pytest.raises(UsageError, match="there are training, measures, stability"):
        metrics.chart("nonsense")


@pytest.mark.parametrize("axis", ["depth", "epoch"])
def test_the_other_axes_have_figures_too(axis, tmp_path):
    path = make(tmp_path / "a.h5", layers=24, channels=2, epochs=24)
    with open_activations(path) as activations:
        metrics = compute_metrics(activations, Protocol.named("default", axis=axis), nulls=5)
    for name in {"depth": ("measures", "fluctuation"), "epoch": ("stability", "trajectory")}[axis]:
        export(lambda width, name=name: FIGURES[name].build(metrics, None, width), tmp_path / f"{name}.svg", 400)
        assert len(ElementTree.tostring(ElementTree.parse(tmp_path / f"{name}.svg").getroot())) > 5000


def several(metrics):
    accuracy = metrics.column("accuracy")
    scaled = [changed(metrics, accuracy=accuracy * (1 - 0.1 * k), loss=2 - accuracy) for k in range(3)]
    return [as_run(run, name) for run, name in zip(scaled, ("a", "b", HOSTILE), strict=True)]


@pytest.mark.parametrize("name", figures_of(Of.RUNS))
def test_figures_of_several_runs(metrics, name, tmp_path):
    figure = export(lambda width: FIGURES[name].build(Several(several(metrics)), width), tmp_path / "a.svg", 480)
    assert figure.explanation
    if name != "stopping":
        assert {"a", "b"} <= set(texts(tmp_path / "a.svg"))


def test_accuracies_in_percent_are_not_taken_for_shares(metrics):
    percent = changed(metrics, accuracy=100 * metrics.column("accuracy"))
    for shown, run in ((True, metrics), (False, percent)):
        for name, words in (("stability", "(share"), ("training", "datum.value > 1")):
            assert (words in json.dumps(FIGURES[name].build(run, None, 500).specification)) == shown


def test_runs_without_a_headline_measure_say_so(metrics):
    bare = {key: dataclasses.replace(measured, headline=False) for key, measured in metrics.measures.items()}
    runs = [dataclasses.replace(run, measures=bare) for run in several(metrics)]
    with pytest.raises(PosthocError, match="no headline measure to compare"):
        FIGURES["comparison"].build(Several(runs), 500)


def test_of_several_runs_only_what_more_than_one_configuration_has_is_compared(metrics):
    bare = {key: dataclasses.replace(measured, headline=False) for key, measured in metrics.measures.items()}
    judged = [dataclasses.replace(run, about={"lr": 0.1}) for run in several(metrics)[:2]]
    unjudged = [
        dataclasses.replace(
            run, name=f"{k}", about={"lr": 0.2}, summary=dataclasses.replace(run.summary, best_epoch=None)
        )
        for k, run in enumerate(judged)
    ]
    text = " ".join(beyond_seeds(Several([*judged, *unjudged])))
    assert "accuracy" not in text
    assert " M (lr 0.1: " in text
    nothing = [dataclasses.replace(run, measures=bare) for run in unjudged]
    assert beyond_seeds(Several(nothing)) == ["The 2 runs are of one configuration, as far as is recorded."]


def test_hostile_layer_names_come_out_as_text(metrics, tmp_path):
    names = ['"', "'", "</svg>", HOSTILE]
    renamed = dataclasses.replace(metrics, layers=tuple(names))
    export(lambda width: FIGURES["locking"].build(renamed, None, width), tmp_path / "a.svg", 400)
    assert {'"', "'", "</svg>"} <= set(texts(tmp_path / "a.svg"))


@pytest.fixture
def saved(metrics, tmp_path):
    metrics.save(tmp_path / "metrics.json")
    return tmp_path / "metrics.json"


def test_the_command_saves_figures(saved, tmp_path):
    for form, start in (("svg", b"<svg"), ("png", b"\x89PNG"), ("pdf", b"%PDF")):
        done = run("report", saved, "--figure", "trajectory", "-o", tmp_path / f"a.{form}", "--width", 252)
        assert done.exit_code == 0, done.output
        assert "One point per checkpoint" in done.output
        assert (tmp_path / f"a.{form}").read_bytes().startswith(start)
    assert run("report", saved, "--figure", "trajectory", "-o", tmp_path / "a.pdf").exit_code == 1
    assert run("report", saved, "--figure", "trajectory", "-o", tmp_path / "b.svg", "--font", "Courier").exit_code == 0
    assert "Courier" in (tmp_path / "b.svg").read_text()
    if shutil.which("pdfinfo"):
        info = subprocess.run(["pdfinfo", tmp_path / "a.pdf"], capture_output=True, text=True, check=True).stdout
        assert "252 x" in info


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "Which runs?"),
        (("metrics.json", "--figure", "nonsense", "-o", "a.svg"), "There is no figure 'nonsense'; there are "),
        (("metrics.json", "--figure", "trajectory"), "Where to? Give -o trajectory.pdf"),
        (("metrics.json", "--figure", "trajectory", "-o", "a.jpg"), "a.jpg: a figure is saved as svg, png, pdf"),
        (("metrics.json", "--figure", "trajectory", "-o", "a.svg", "--width", "100"), "leaves no room"),
        (("metrics.json", "--figure", "runs", "-o", "a.svg"), "compares runs; give more than one"),
        (("metrics.json", "--figure", "audit", "-o", "a.svg"), "run `posthoc audit`"),
        (("metrics.json", "--figure", "similarity", "--epoch", "9", "-o", "a.svg"), "No epoch 9 here"),
        (("metrics.json", "--figure", "trajectory", "--epoch", "2", "-o", "a.svg"), "trajectory shows all epochs"),
        (("metrics.json", "-o", "metrics.json", "--force"), "metrics.json is the input"),
        (("metrics.json", "--audit", "other.json"), "other.json is the audit of other activations"),
    ],
)
def test_bad_input_is_one_sentence(saved, words, message, monkeypatch):
    monkeypatch.chdir(saved.parent)
    shutil.copy(Path(__file__).parents[1] / "fixtures" / "v1" / "audit.json", saved.parent / "other.json")
    done = run("report", *words)
    assert done.exit_code in (1, 2)
    assert message in done.output
    assert not list(saved.parent.glob("a.*"))


def test_scalars_for_tensorboard(saved, metrics, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for _ in range(2):  # written again, it replaces what was written
        done = run("report", saved, "--tensorboard", tmp_path / "tb", "--force")
        assert done.exit_code == 0, done.output
    refused = run("report", saved, "--tensorboard", tmp_path / "tb")
    assert refused.exit_code == 1
    assert "--force to replace it, or another folder" in refused.output
    (folder,) = (tmp_path / "tb").iterdir()
    events = EventAccumulator(str(folder)).Reload()
    scalars = events.Tensors("posthoc/metastability")
    assert [scalar.step for scalar in scalars] == [0, 7, 14, 21, 28]
    values = [scalar.tensor_proto.float_val[0] for scalar in scalars]
    np.testing.assert_allclose(values, metrics.column("metastability"), rtol=1e-6)
    assert [scalar.step for scalar in events.Tensors("posthoc/volatility")] == [21, 28]
    assert len(events.Tensors("posthoc_noise/integration")) == 5
    assert events.SummaryMetadata("posthoc/volatility").plugin_data.plugin_name == "scalars"


def test_scalars_need_nothing_of_the_figures(saved, tmp_path):
    code = (
        "import sys; sys.modules |= dict.fromkeys(('altair', 'vl_convert', 'jinja2'))\n"
        f"from posthoc.cli import main; main(['report', {str(saved)!r}, '--tensorboard', {str(tmp_path / 'tb')!r}])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith(".posthoc\n")
    code = code.replace("'--tensorboard'", "'-o'")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        1,
        "posthoc: Figures need the extra report: pip install 'posthoc[report]'.\n",
    )


@pytest.mark.parametrize(
    ("rules", "title"),
    [
        (
            [("volatility", 0.5), ("patience", 0)],
            "No rule of volatility loses less than patience that saves as much, as far as these runs can tell",
        ),
        (
            [("volatility", 0.5, True), ("volatility", 0, True), ("volatility", 0), ("patience", 0, True)],
            "2 rules of volatility lose less than patience that saves as much, as far as these runs can tell",
        ),
        (
            [("volatility", 1), ("patience", 0)],
            "No other rule beats 1 stopping rule; those of volatility never fire here",
        ),
        ([("volatility", 1), ("reference", 0)], "No stopping rule that fires does better than the references"),
    ],
)
def test_the_title_of_the_stopping_rules(rules, title):
    rows = [{"kind": kind, "never": never, "better": bool(better)} for kind, never, *better in rules]
    useful = [row for row in rows if row["kind"] != "reference" and row["never"] < 1]
    assert stopping_title(rows, useful) == title


def test_configurations_are_named_by_what_tells_them_apart_and_lone_runs_are_not_compared(metrics):
    """A long setting that every configuration has otherwise does not stand in their names."""
    first, second = several(metrics)[:2]
    scalings = [f"mean 0.{k}914, 0.4822, 0.4465, std 0.2023, 0.1994, 0.201, 32 x 32, colour" for k in range(3)]
    runs = [
        dataclasses.replace(run, name=f"{k}{run.name}", about={"scaling": scalings[k], "recipe": recipe, "lr": 0.1})
        for k, recipe in enumerate(["a", "b", "c"])
        for run in ([first, second] if recipe != "c" else [first])
    ]
    text = " ".join(beyond_seeds(Several(runs)))
    assert text.startswith(
        "The runs differ in scaling (3 kinds), recipe (a, b, c). recipe c has one run, and is not compared here: add seeds."
    )
    assert " H_eff (recipe a: " in text
    assert "; recipe b: " in text
    assert "c: " not in text


def test_ranges_that_do_not_meet_look_different(metrics):
    best = (0.95010, 0.95012, 0.95021, 0.95024)
    accuracy = metrics.column("accuracy")
    runs = [
        dataclasses.replace(
            as_run(changed(metrics, accuracy=accuracy / accuracy.max() * value), f"{k}"),
            about={"lr": 0.1 / (1 + k // 2)},
        )
        for k, value in enumerate(best)
    ]
    text = " ".join(beyond_seeds(Several(runs)))
    assert "do not meet in best accuracy (lr 0.1: 0.95010 to 0.95012; lr 0.05: 0.95021 to 0.95024)." in text
    assert re.search(
        r"meet in H_eff \(lr 0.1: (0.\d{3}); lr 0.05: \1\)", text
    )  # which are the same, to their usual digits


def test_channels_that_fall_away_are_said_with_what_they_may_do(metrics):
    assert dropped_out(metrics) == ""
    U = len(metrics.units)
    fewer = [
        dataclasses.replace(checkpoint, dead=U // 4 if e >= 3 else 0)
        for e, checkpoint in enumerate(metrics.checkpoints)
    ]
    changed = dataclasses.replace(metrics, checkpoints=tuple(fewer))
    text = "measures of all channels may jump at epoch 3, where many of these fall away or come back: "
    assert dropped_out(changed) == f"{text}from {U - U // 4} to {U} of {U} are measured"
    assert text[1:] in " ".join(in_short(changed))
