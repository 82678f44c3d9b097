"""Files that earlier versions wrote open for ever: frozen ones, with the values that those versions read from them."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import posthoc
from posthoc.cli import main

FIXTURES = Path(__file__).parent / "fixtures"
V1 = FIXTURES / "v1"


def holds(content, frozen):
    """Whether all that is in a frozen file is in what is made of it, where fields may have been added."""
    if isinstance(frozen, dict):
        return all(key in content and holds(content[key], value) for key, value in frozen.items())
    if isinstance(frozen, list):
        return len(content) == len(frozen) and all(map(holds, content, frozen))
    return content == frozen


@pytest.fixture(scope="module")
def frozen():
    """metrics.json of version 1 as plain JSON."""
    return json.loads((V1 / "metrics.json").read_text())


@pytest.mark.parametrize("version", [1, 2])
def test_activations_hold_what_they_held(version):
    with posthoc.open_activations(FIXTURES / f"v{version}" / "activations.h5") as file:
        assert file.epochs.tolist() == list(range(12))
        assert file.steps.tolist() == [20 * epoch for epoch in range(12)]
        assert file.layers == ("stage2", "stage3", "stage4", "conv5")
        assert file.signals == ("mean", "var")
        assert [len(channels) for channels in file.channels.values()] == [4, 4, 4, 4]
        assert len(file.labels) == 200
        assert np.bincount(file.labels).tolist() == [20, 19, 17, 17, 22, 23, 19, 19, 21, 23]
        assert file.images[[0, 199]].tolist() == [1000, 1199]
        identity, provenance = file.recording.identity, file.recording.provenance
        assert identity.model.architecture == "shufflenet_v2_x1_0"
        assert (identity.device, identity.memory_format, identity.batch_size) == ("cpu", "channels_last", 256)
        assert (provenance.probe, provenance.training_seed) == ("digits", 42)
        assert file.provenances == (provenance,) * 12
        assert file.recorded["val_acc"][[0, 10, 11]] == pytest.approx([0.10037641, 0.90338770, 0.88205772])
        assert file.loss[11] == pytest.approx(0.30637, rel=1e-3)
        assert file.accuracy.max() == 0.94
        assert [skipped.path for skipped in file.skipped] == ["epoch-099.safetensors"]
        assert file.read("mean", 11).shape == (16, 200)
        assert file.read("mean", 11).sum(dtype=float) == pytest.approx(1175.11831, rel=1e-6)
        assert file.read("var", 3)[5, 17] == pytest.approx(0.1289687, rel=1e-6)


def test_activations_of_version_2_hold_what_the_network_said_of_each_sample():
    with posthoc.open_activations(FIXTURES / "v2" / "activations.h5") as file:
        assert file.behaviours == ("loss", "prediction", "correct", "logits")
        assert file.behaviour("logits").shape == (12, 200, 10)
        assert file.behaviour("logits").dtype == np.float16
        np.testing.assert_array_equal(file.behaviour("correct"), file.behaviour("prediction") == file.labels)
        np.testing.assert_array_equal(file.behaviour("correct").mean(axis=1), file.accuracy)
        np.testing.assert_allclose(file.behaviour("loss").mean(axis=1), file.loss, rtol=1e-5)
        np.testing.assert_array_equal(file.behaviour("logits", 11).argmax(axis=1), file.behaviour("prediction", 11))


def test_both_versions_hold_the_same_numbers():
    with (
        posthoc.open_activations(V1 / "activations.h5") as first,
        posthoc.open_activations(FIXTURES / "v2" / "activations.h5") as second,
    ):
        assert first.checkpoint_sha256 == second.checkpoint_sha256
        assert first.units == second.units
        for name in ("labels", "images", "loss", "accuracy"):
            np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
        for signal in first.signals:
            for row in range(12):
                np.testing.assert_array_equal(first.read(signal, row), second.read(signal, row))


def test_metrics_of_version_1_hold_what_they_held(frozen):
    metrics = posthoc.load_metrics(V1 / "metrics.json")
    for name in ("hurst", "integration", "metastability", "stability_index", "accuracy", "loss"):
        expected = [np.nan if row[name] is None else row[name] for row in frozen["epochs"]]
        np.testing.assert_array_equal(metrics.column(name), np.array(expected, float))
    assert metrics.null("white", "integration")[1:] == pytest.approx(
        [row["nulls"]["white"]["integration"]["mean"] for row in frozen["epochs"][1:]]
    )


def test_metrics_of_version_2_hold_what_those_of_version_1_held(frozen):
    metrics = posthoc.load_metrics(FIXTURES / "v2" / "metrics.json")
    content = json.loads((FIXTURES / "v2" / "metrics.json").read_text())
    assert holds(metrics.to_dict(), content)
    assert content["format_version"] == 2
    first = posthoc.load_metrics(V1 / "metrics.json")
    for name in first.measures:
        np.testing.assert_array_equal(metrics.column(name), first.column(name))
    for null in ("white", "order", "label", "split"):  # all but the calendar of versions, the draws are the same
        np.testing.assert_array_equal(metrics.null(null, "hurst"), first.null(null, "hurst"))
    assert metrics.checkpoints == first.checkpoints
    assert metrics.summary.best_accuracy == first.summary.best_accuracy == frozen["summary"]["best_accuracy"]


def test_first_files_counted_by_epochs_where_there_are_some_else_by_steps(frozen, tmp_path):
    del frozen["summary"]["unit"]
    (tmp_path / "metrics.json").write_text(json.dumps(frozen))
    before = posthoc.load_metrics(tmp_path / "metrics.json")
    assert before.summary == posthoc.load_metrics(V1 / "metrics.json").summary
    frozen["epochs"][0] |= {"epoch": None, "step": 0}  # the untrained network, which was saved by a step
    (tmp_path / "metrics.json").write_text(json.dumps(frozen))
    mixed = posthoc.load_metrics(tmp_path / "metrics.json")
    assert mixed.when == list(range(len(frozen["epochs"])))
    assert before.when[mixed.summary.best_epoch] == before.summary.best_epoch == frozen["summary"]["best_epoch"]


def test_measures_of_version_1_activations_are_those_of_version_1(frozen):
    with posthoc.open_activations(V1 / "activations.h5") as file:
        metrics = posthoc.compute_metrics(file, nulls=0)
    for name in ("hurst", "integration", "metastability", "stability_index", "volatility"):
        expected = [np.nan if row[name] is None else row[name] for row in frozen["epochs"]]
        np.testing.assert_allclose(metrics.column(name), np.array(expected, float), atol=2e-6)


@pytest.mark.parametrize("words", [
    ["inspect", "v1/activations.h5"], ["inspect", "v2/activations.h5"], ["inspect", "v1/metrics.json"],
    ["metrics", "v1/activations.h5", "--nulls", "0", "-o", "OUT"], ["compare", "v1/metrics.json"],
    ["report", "v1/metrics.json", "--audit", "v1/audit.json", "-o", "OUT"], ["inspect", "v1/audit.json"],
    ["inspect", "v2/metrics.json"], ["inspect", "v2/audit.json"], ["metrics", "v2/activations.h5", "--nulls", "0", "-o", "OUT"],
    ["compare", "v1/metrics.json", "v2/metrics.json", "--json"], ["report", "v2/metrics.json", "-o", "OUT"],
])  # fmt: skip
def test_every_command_takes_earlier_versions(words, tmp_path, monkeypatch):
    monkeypatch.chdir(FIXTURES)
    words = [str(tmp_path / "out.html") if word == "OUT" else word for word in words]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
