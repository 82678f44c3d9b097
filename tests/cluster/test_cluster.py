"""Batch jobs on a real Slurm: arrays, what waits for them, and whatever can befall them."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from cluster.slurm import Slurm
from contents import assert_same
from noise import make
from safetensors.torch import save_file
from torch import nn

from posthoc.cli import main

SCRIPTS = Path(__file__).parents[2] / "scripts" / "slurm"
SLOW = """
import time
from torch import nn

from posthoc.cli import main

class Slow(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU())
        self.last = nn.Linear(8, 10)

    def forward(self, x):
        time.sleep(SECONDS)
        return self.last(self.second(self.first(x)).mean((2, 3)))
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """A cluster of one node, said to have 32 processors, whose arrays hold no more than five tasks."""
    if missing := Slurm.missing():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"Slurm is not installed: no {', '.join(missing)}")
    if os.geteuid() != 0:
        pytest.skip("Slurm's daemons are started as root here")
    with Slurm(tmp_path_factory.mktemp("slurm"), cpus=32, max_array=6) as running:
        yield running


def posthoc_command(*words, check=True, **options):
    command = [sys.executable, "-m", "posthoc", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def make_run(folder, count, seconds=0.0):
    """Checkpoints of a network that takes its time; the words with which it is replayed."""
    folder.mkdir(parents=True)
    code = folder.parent / "slow.py"
    code.write_text(SLOW.replace("SECONDS", str(seconds)))
    torch.manual_seed(count)
    model = nn.ModuleDict({
        "first": nn.ModuleList([nn.Conv2d(3, 8, 3)]), "second": nn.ModuleList([nn.Conv2d(8, 8, 3)]),
        "last": nn.Linear(8, 10),
    })  # fmt: skip
    for epoch in range(count):
        save_file(model.state_dict(), folder / f"epoch-{epoch:03d}.safetensors", {"epoch": str(epoch)})
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.05 * torch.randn_like(parameter)
    return ["--model", f"{code}:Slow", "--probe", "digits", "--images", "100", "--normalize", "0.5/0.25"]


def replayed(logs):
    """The checkpoints that tasks replayed, by their logs, those whose part was there already not counted."""
    lines = [line for log in logs for line in log.read_text().splitlines()]
    return sorted(
        found[1] for line in lines if (found := re.fullmatch(r"replaying \d+/\d+ ([^, ]+)(, about \d+ s left)?", line))
    )


def process_of(shard):
    """The Python process of a shard's task."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:  # it has ended
            continue
        if shard.encode() in words and words[0] == sys.executable.encode():
            return int(path.parent.name)
    raise AssertionError(f"no process does shard {shard}")


@pytest.mark.slow
def test_whatever_befalls_an_array_one_resubmission_completes_it(slurm, tmp_path):
    words = make_run(tmp_path / "run", 24, seconds=5)
    words += ["--score", "none"]  # else the last task tries other scalings of the images first, five seconds each
    out = tmp_path / "out"
    parts = out / "activations.h5.parts"
    submit = ["submit", tmp_path / "run", *words, "-o", out, "--jobs", 8, "--minutes-per-task", 0]
    submit += ["--cpus-per-task", 1, "--metrics", "--nulls 9"]
    said = posthoc_command(*submit).stdout
    first, second = re.findall(r"job (\d+): replays", said)  # arrays hold five
    assert f"posthoc status {out}" in said
    assert "submitted again by: posthoc submit" in said

    # As soon as it has a part, one is cancelled, one killed, one told that its time is over; then the node goes.
    fates = {
        parts / "epoch0-step-1.h5": lambda: slurm.run("scancel", f"{first}_1"),
        parts / "epoch1-step-1.h5": lambda: os.kill(process_of("2/8"), signal.SIGKILL),
        parts / "epoch7-step-1.h5": lambda: slurm.run("scancel", "--signal=USR1", f"{second}_3"),
    }

    def befall():
        for part in [part for part in fates if part.exists()]:
            fates.pop(part)()
        return not fates

    slurm.until(befall, "the first parts of the tasks 1, 2 and 8")
    slurm.until(lambda: not {f"{first}_1", f"{first}_2"} & slurm.queue().keys(), "the ends of two tasks")
    slurm.until(lambda: slurm.queue().get(f"{second}_3") == "PENDING", "the third back in the queue")
    slurm.run("scontrol", "update", f"nodename={slurm.host}", "state=down", "reason=test")
    slurm.until(lambda: "RUNNING" not in slurm.queue().values(), "all tasks off the node")
    shown = posthoc_command("status", out, check=False)
    assert shown.returncode == 1
    lines = {line.split()[0]: line for line in shown.stdout.splitlines() if "replay " in line}
    assert "failed" in lines[f"{first}_1"]
    assert "CANCELLED" in lines[f"{first}_1"]
    assert "failed" in lines[f"{first}_2"]
    assert "Killed" in lines[f"{first}_2"]
    assert "waiting" in lines[f"{second}_3"]
    assert str(out / "logs" / f"{first}_2_0_log.out") in lines[f"{first}_2"]
    slurm.run("scontrol", "update", f"nodename={slurm.host}", "state=resume", check=False)

    again = posthoc_command(*submit).stdout
    assert 3 <= int(re.search(r"(\d+) of them replayed", again)[1]) < 24
    assert "tasks to submit: 2" in again  # the others wait in the queue
    assert "tasks to submit: 0" in posthoc_command(*submit).stdout
    for task, state in slurm.queue().items():
        if state == "PENDING":  # Slurm lets what it put back wait for two minutes
            slurm.run("scontrol", "update", f"jobid={task}", "StartTime=now")
    slurm.until(lambda: (out / "metrics.json").exists(), "the measures")
    slurm.until(lambda: not slurm.queue(), "an empty queue")
    assert not parts.exists()
    assert "24 of 24" in posthoc_command("status", out).stdout
    logs = list((out / "logs").glob("*_*_0_log.out"))
    names = [f"epoch-{epoch:03d}.safetensors" for epoch in range(24)]
    once = replayed(logs)
    assert len(once) == len(set(once))
    assert set(names) - set(once) <= {names[1]}  # killed before it could say so, and then found its part
    assert any("epoch-001.safetensors, kept" in log.read_text() for log in logs)
    assert not any("\r" in log.read_text() for log in logs)
    assert posthoc_command(*submit).stdout.startswith("run: done\n")

    make_run(tmp_path / "quick" / "run", 0)  # the same network, which takes no time
    quick = [word.replace(str(tmp_path), str(tmp_path / "quick")) for word in words]
    here = tmp_path / "here.h5"
    posthoc_command("extract", tmp_path / "run", *quick, "-o", here, env={**os.environ, "SLURM_CPUS_PER_TASK": "1"})
    posthoc_command("metrics", here, "--nulls", 9, "-o", tmp_path / "metrics.json")
    assert_same(here, out / "activations.h5")
    ours, theirs = (json.loads((folder / "metrics.json").read_text()) for folder in (tmp_path, out))
    assert ours["checkpoints"] == theirs["checkpoints"]
    assert ours["measures"] == theirs["measures"]
    assert ours["summary"] == theirs["summary"]


@pytest.mark.slow
def test_many_runs_are_replayed_measured_and_compared(slurm, tmp_path):
    runs = tmp_path / "runs"
    words = make_run(runs / "a", 3)
    make_run(runs / "b", 4)
    make_run(runs / "c", 3)
    torn = runs / "b" / "epoch-002.safetensors"
    torn.write_bytes(torn.read_bytes()[:-9])
    for path in (runs / "c").iterdir():
        path.write_bytes(b"nothing")
    (runs / "notes.txt").write_text("of no run")
    out = tmp_path / "out"
    submit = ["submit", *sorted(runs.glob("[abcn]*")), *words, "-o", out, "--device", "cpu", "--gpus-per-node", 1,
              "--cpus-per-task", 1, "--metrics-partition", "other", "--on-error", "skip", "--metrics", "--nulls 0"]  # fmt: skip
    refused = posthoc_command(*[word for word in submit if word not in ("--on-error", "skip")], check=False)
    assert refused.returncode == 1
    assert "cut short" in refused.stderr
    said = posthoc_command(*submit, "--wait", check=False)
    assert "timing a checkpoint in the cluster" in said.stdout
    assert len(re.findall(r"tasks to submit: 1\n", said.stdout)) == 2  # of ten minutes each
    assert "c: left out" in said.stdout
    assert said.returncode == 3  # c is left out, as asked
    assert "\nleft out c: " in said.stdout
    assert "skipped b/epoch-002.safetensors: " in said.stdout
    shown = {
        line.split()[0]: line.split()[1:4]
        for line in said.stdout.splitlines()
        if " of " in line and " of them" not in line
    }
    assert shown["a"] == ["3", "of", "3"]
    assert "partition=other" in (out / "a" / "finish.sh").read_text()
    compared = (out / "comparison.txt").read_text()
    assert "\n\nRuns\n" in compared
    rows = compared.split("\n\nRuns\n")[1].splitlines()[1:3]
    assert [row.split()[0] for row in rows] == ["a", "b"]
    for changed in (["--images", "50"], ["--metrics", "--nulls 9"]):
        other = posthoc_command("submit", runs / "a", *words, "--device", "cpu", *changed, "-o", out, check=False)
        assert other.returncode == 1
        assert "was submitted with other options" in other.stderr


@pytest.mark.slow
def test_the_sbatch_files_of_ones_own(slurm, tmp_path):
    words = make_run(tmp_path / "run", 2)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    options = {"cwd": tmp_path, "env": {**os.environ, "PATH": path}, "capture_output": True, "text": True}

    def sbatch(*words):
        done = subprocess.run(["sbatch", "--parsable", *map(str, words)], **options, check=True)
        return done.stdout.strip()

    job = sbatch("--array=1-2", SCRIPTS / "extract.sbatch", tmp_path / "run", tmp_path / "a.h5", *words)
    sbatch(f"--dependency=afterok:{job}", SCRIPTS / "metrics.sbatch", tmp_path / "a.h5", "--nulls", "0")
    slurm.until(lambda: not slurm.queue(), "an empty queue")
    logs = "".join(log.read_text() for log in tmp_path.glob("*.log"))
    assert (tmp_path / "a.metrics.json").exists(), logs


@pytest.mark.slow
def test_many_cold_starts_at_once(slurm, tmp_path):
    """16 tasks that all find no kernels and no calibration, in one home, come to the same numbers."""
    activations_file = make(tmp_path / "noise.h5", epochs=21)
    script = tmp_path / "cold.sh"
    script.write_text(f"""#!/bin/bash
export HOME={tmp_path}
unset XDG_CACHE_HOME NUMBA_CACHE_DIR
exec {sys.executable} -m posthoc metrics {activations_file} --nulls 0 --axis epoch -o {tmp_path}/$SLURM_JOB_ID.json
""")
    for _ in range(16):
        slurm.run("sbatch", f"--output={tmp_path}/%j.log", script)
    slurm.until(lambda: not slurm.queue(), "an empty queue", 300)
    found = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    assert len(found) == 16, [log.read_text()[-500:] for log in tmp_path.glob("*.log")][:3]
    assert all(one["measures"] == found[0]["measures"] and one["summary"] == found[0]["summary"] for one in found)
    cache = tmp_path / ".cache" / "posthoc" / "kernels"
    assert list(cache.rglob("*.nbi"))
    assert len(list(cache.rglob("calibration-*.npz"))) == 1


def without_slurm(monkeypatch, *words):
    """A command where no program of Slurm's is on the path."""
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    return CliRunner().invoke(main, list(map(str, words)))


def test_a_dry_run_needs_no_slurm_and_writes_nothing(tmp_path, monkeypatch):
    words = make_run(tmp_path / "run", 12)
    submit = ["submit", tmp_path / "run", *words, "-o", tmp_path / "out", "--jobs", 3, "--seconds-per-checkpoint", 600,
              "--gpus-per-node", 1, "--mem-gb", 16, "--setup", "module load cuda", "--slurm", "account=vision", "--slurm", "exclusive",
              "--slurm", "constraint=a100"]  # fmt: skip
    said = without_slurm(monkeypatch, *submit, "--dry-run")
    assert said.exit_code == 0, said.output
    assert "12 checkpoints, about 6e+02 s each; tasks to submit: 3" in said.output
    array, finish = re.split(r"^--- .*\n", said.output, flags=re.MULTILINE)[1:]
    for line in ("#SBATCH --array=1-3%256", "#SBATCH --gpus-per-node=1", "#SBATCH --account=vision", "module load cuda",
                 "#SBATCH --mem=16G", "#SBATCH --signal=USR1@1230"):  # fmt: skip
        assert line in array.splitlines()
    assert '--device cuda --shard "$((SLURM_ARRAY_TASK_ID))/3"' in array
    assert "#SBATCH --exclusive\n" in array
    assert "constraint=a100" in array
    assert "srun --unbuffered" in array
    assert "--ntasks=1 --cpus-per-task=4" in array
    assert "account=vision" in finish
    for word in ("gpus", "a100", "exclusive"):
        assert word not in finish
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "slow.py"]
    refused = without_slurm(monkeypatch, *submit)
    assert refused.exit_code == 1
    assert "There is no Slurm here" in refused.output
    assert "--shard i/n" in refused.output


@pytest.mark.parametrize(
    ("seconds", "minutes", "tasks"), [(1, 10, 1), (100, 10, 2), (600, 10, 8), (1, 0, 8), (100, 0.1, 8)]
)
def test_tasks_last_their_minutes(tmp_path, monkeypatch, seconds, minutes, tasks):
    words = make_run(tmp_path / "run", 12)
    said = without_slurm(monkeypatch, "submit", tmp_path / "run", *words, "-o", tmp_path / "out", "--jobs", 8,
                         "--seconds-per-checkpoint", seconds, "--minutes-per-task", minutes, "--dry-run")  # fmt: skip
    assert f"tasks to submit: {tasks}\n" in said.output, said.output


def test_what_cannot_be_submitted(tmp_path, monkeypatch):
    words = make_run(tmp_path / "run", 2)
    unmapped = without_slurm(monkeypatch, "submit", tmp_path / "run", *words, "--slurm", "=vision")
    assert unmapped.exit_code == 2
    assert "NAME=VALUE" in unmapped.output
    odd = without_slurm(monkeypatch, "submit", tmp_path / "run", *words, "-o", tmp_path / "100%j", "--dry-run")
    assert odd.exit_code == 2
    assert "choose another -o" in odd.output
    nothing = without_slurm(monkeypatch, "status", tmp_path)
    assert nothing.exit_code == 1
    assert f"{tmp_path} holds no submission.json, and posthoc submit leaves" in nothing.output
    assert "gone is no folder, and" in without_slurm(monkeypatch, "status", tmp_path / "gone").output
    (tmp_path / "submission.json").write_text("{")
    assert "is not what posthoc submit wrote" in without_slurm(monkeypatch, "status", tmp_path).output


def test_threads_follow_the_allocation():
    code = "from posthoc.analysis.kernels import thread_count; from posthoc.cpus import cpu_count; print(cpu_count(), thread_count())"
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_NUM_THREADS"}

    def said(**more):
        done = subprocess.run(
            [sys.executable, "-c", code], env={**environment, **more}, capture_output=True, text=True, check=True
        )
        return done.stdout.split()

    assert said(SLURM_CPUS_PER_TASK="1") == ["1", "1"]
    bound = str(len(os.sched_getaffinity(0)))
    assert said(SLURM_CPUS_PER_TASK="512") == said(SLURM_CPUS_PER_TASK="") == [bound, bound]
