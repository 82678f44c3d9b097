"""Files that earlier versions wrote open for ever: frozen ones, with the values that those versions read from them."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import posthoc

V1 = Path(__file__).parent / "fixtures" / "v1"


@pytest.fixture(scope="module")
def frozen():
    """metrics.json of version 1 as plain JSON."""
    return json.loads((V1 / "metrics.json").read_text())


def test_activations_of_version_1_hold_what_they_held():
    with posthoc.open_activations(V1 / "activations.h5") as file:
        assert file.epochs.tolist() == list(range(12))
        assert file.steps.tolist() == [20 * epoch for epoch in range(12)]
        assert file.layers == ("stage2", "stage3", "stage4", "conv5")
        assert file.signals == ("mean", "var")
        assert [len(channels) for channels in file.channels.values()] == [4, 4, 4, 4]
        assert len(file.labels) == 200
        assert file.recording.identity.model.architecture == "shufflenet_v2_x1_0"
        assert file.recorded["val_acc"][[0, 10, 11]] == pytest.approx([0.10037641, 0.90338770, 0.88205772])
        assert [path for path, _ in file.skipped] == ["epoch-099.safetensors"]
        assert file.read("mean", 11).shape == (16, 200)
        assert file.read("mean", 11).sum(dtype=float) == pytest.approx(1175.11831, rel=1e-6)
        assert file.read("var", 3)[5, 17] == pytest.approx(0.1289687, rel=1e-6)


def test_metrics_of_version_1_hold_what_they_held(frozen):
    metrics = posthoc.load_metrics(V1 / "metrics.json")
    for name in ("hurst", "integration", "metastability", "stability_index", "accuracy", "loss"):
        expected = [np.nan if row[name] is None else row[name] for row in frozen["epochs"]]
        np.testing.assert_array_equal(metrics.column(name), np.array(expected, float))
    assert metrics.null("white", "integration")[1:] == pytest.approx(
        [row["nulls"]["white"]["integration"]["mean"] for row in frozen["epochs"][1:]]
    )


def test_measures_of_version_1_activations_are_those_of_version_1(frozen):
    with posthoc.open_activations(V1 / "activations.h5") as file:
        metrics = posthoc.compute_metrics(file)
    for name in ("hurst", "integration", "metastability", "stability_index", "volatility"):
        expected = [np.nan if row[name] is None else row[name] for row in frozen["epochs"]]
        np.testing.assert_allclose(metrics.column(name), np.array(expected, float), atol=2e-6)


@pytest.mark.parametrize("words", [
    ["inspect", "activations.h5"], ["inspect", "metrics.json"], ["metrics", "activations.h5", "--nulls", "0", "-o", "OUT"],
    ["compare", "metrics.json"], ["report", "metrics.json", "--audit", "audit.json", "-o", "OUT"],
])  # fmt: skip
def test_every_command_takes_version_1(words, tmp_path):
    words = [str(tmp_path / "out.html") if word == "OUT" else word for word in words]
    result = subprocess.run([sys.executable, "-m", "posthoc", *words], cwd=V1, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
