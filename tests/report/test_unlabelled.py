"""Runs without labels, and those whose score is no accuracy, through every command: the truth, and no accuracy."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import posthoc
from posthoc.__main__ import main
from posthoc.cluster.jobs import Resources, compare_job

sys.path.insert(0, str(Path(__file__).parents[1]))
import tasks

WANTED = {"regression": "best R2 ", "autoencoder": "best reconstruction error ", "bare": "needs labels "}


SLOW = "regression", "autoencoder"


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] if kind in SLOW else []) for kind in WANTED]
)
def test_every_command_takes_a_run_without_labels(kind, tmp_path, monkeypatch):
    path = tasks.activations(kind, tmp_path / kind)
    monkeypatch.chdir(path.parent)
    words = []
    for line in (
        "inspect activations.h5", "metrics activations.h5 --nulls 2 --max-nulls 2 --csv", "audit activations.h5 --draws 10",
        "inspect metrics.json", "inspect audit.json", "compare metrics.json", "report metrics.json",
        "report metrics.json --figure stability -o stability.svg",
    ):  # fmt: skip
        result = CliRunner().invoke(main, line.split())
        assert result.exit_code == 0, (line, result.output)
        words.append(result.output)
    text = "\n".join(words)
    assert WANTED[kind] in text
    assert re.search(r"the null label \(permuted labels\), the null split .*: needs labels", text)
    assert re.search(r"needs labels +labels permuted, each class split in ten", text)
    assert ("accuracy" in text) == (kind == "bare")  # which needs labels
    assert not re.search(r"\bnan\b|\bNone\b|Traceback|images", text)
    with posthoc.open_activations(path) as file:
        x = file.read("mean", 10).astype(float)
    metrics = posthoc.load_metrics("metrics.json")
    assert metrics.axis.points == {"regression": "rows", "autoencoder": "samples", "bare": "documents"}[kind]
    assert np.isnan(metrics.column("accuracy")).all()
    assert {name for name, null in metrics.nulls.items() if null.aside} == {"label", "split"}
    assert metrics.null("order", "hurst").shape == (11,)
    with posthoc.open_activations(path) as file:
        series = posthoc.analysis.axes.image.image_series(x, np.zeros(len(file.labels)), 1)
    np.testing.assert_allclose(series, x - x.mean(axis=1, keepdims=True), atol=1e-9)
    if kind == "bare":  # what a submission ends with, which knows nothing of scores
        subprocess.run(["bash", "-c", compare_job(path.parent, Resources()).command], check=True)
        assert (path.parent / "comparison.txt").stat().st_size
    if kind == "regression":
        assert metrics.best == metrics.column("score_R2").max()
    if kind == "autoencoder":
        assert metrics.best == metrics.column("loss").min()
