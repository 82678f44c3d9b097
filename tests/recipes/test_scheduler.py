"""A scheduler that a module outside the package registers runs what is submitted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import posthoc


def run(*words, code=0):
    """The commands in a process that has imported the module, where there is no Slurm; what they print."""
    path = f"{Path(sys.executable).parent}:/bin"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "PATH": path}
    program = "import toy_scheduler; from posthoc.__main__ import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, words)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stderr


@pytest.mark.slow
def test_a_toy_scheduler_runs_what_is_submitted(run_folder, probe_file, tmp_path):
    out, direct = tmp_path / "out", tmp_path / "direct.h5"
    options = ["--probe", f"npz:{probe_file}", "--normalize", "none", "--images", "80", "--model", "shufflenet_v2_x0_5"]
    words = ["submit", run_folder, *options, "-o", out, "--jobs", "2", "--seconds-per-checkpoint", "600",
             "--setup", "export OF_THE_SETUP=1", "--metrics", "--nulls 0", "--scheduler", "toy"]  # fmt: skip
    shown = run(*words, "--dry-run")
    assert "tasks to submit: 2" in shown
    assert "export OF_THE_SETUP=1\nexport TOY_TASK=1; TOY_ID=$$_1\n" in shown
    assert '--shard "$((TOY_TASK))/2"' in shown
    assert not out.exists()
    shown = run(*words, "--wait")
    assert "merges and measures" in shown
    assert "5 of 5" in shown
    assert json.loads((out / "submission.json").read_text())["scheduler"] == "toy"
    assert len(list((out / "logs").glob("*_[12]_0_log.out"))) == 2
    assert (out / "metrics.json").exists()
    assert "5 of 5" in run("status", out)
    assert run(*words).startswith(f"{Path(run_folder).name}: done\n")
    run("extract", run_folder, *options, "-o", direct)
    with posthoc.open_activations(out / "activations.h5") as submitted, posthoc.open_activations(direct) as others:
        np.testing.assert_array_equal(submitted.loss, others.loss)
        np.testing.assert_array_equal(submitted.read("mean", 4), others.read("mean", 4))


def test_one_folder_is_of_one_scheduler(run_folder, probe_file, tmp_path):
    (tmp_path / "submission.json").write_text(json.dumps({"words": [], "scheduler": "slurm"}))
    words = ["submit", run_folder, "--probe", f"npz:{probe_file}", "-o", tmp_path, "--scheduler"]
    assert "was submitted to 'slurm'; choose another -o" in run(*words, "toy", code=1)
    assert "Unknown scheduler 'pbs'; there is slurm, toy." in run(*words, "pbs", code=2)
