"""posthoc demo, as somebody who has just installed the package tries it."""

import subprocess
import sys

import pytest

import posthoc


@pytest.mark.slow
def test_the_demo_ends_with_a_report_of_a_network_that_has_learnt(tmp_path):
    command = [sys.executable, "-P", "-m", "posthoc", "demo", "out", "--epochs", "3", "--nulls", "0"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    steps = [line.split()[2] for line in done.stdout.splitlines() if line.startswith("$ posthoc ")]
    assert steps == ["check", "extract", "metrics", "audit", "report"]
    metrics = posthoc.load_metrics(tmp_path / "out" / "metrics.json")
    assert [checkpoint.untrained for checkpoint in metrics.checkpoints] == [True, False, False, False]
    assert metrics.best > 0.5
    assert done.stdout.endswith(f"The report: {tmp_path / 'out' / 'report.html'}\n")
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (again.returncode, "pass --force" in again.stderr) == (1, True)
