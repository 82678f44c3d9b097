"""What goes wrong on real machines: whatever it is, a rerun completes and the file is that of an undisturbed run."""

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from contents import assert_same
from safetensors.torch import load_file, save_file

import posthoc
from posthoc.cli import main
from posthoc.errors import PosthocError, UsageError
from posthoc.parts import Parts, merge
from posthoc.replay.planning import plan_extraction
from posthoc.replay.run import follow_extraction, run_extraction
from posthoc.shards import Shard
from posthoc.store import Skipped

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-c", "from posthoc.cli import main; main()"]


@pytest.fixture
def run(run_folder, tmp_path):
    """A copy of the run that may be spoilt."""
    return shutil.copytree(run_folder, tmp_path / "run")


@pytest.fixture
def probe(probe_file):
    return f"npz:{probe_file}"


def cli(*words):
    return CliRunner().invoke(main, list(map(str, words)))


@pytest.mark.slow
def test_killed_and_stopped_at_random_moments():
    """A short run of scripts/torture.py, which see for a long one."""
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "torture.py", "--kills", "3"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "all equal" in done.stdout


def test_sigterm_finishes_the_part_in_hand(run, probe, activations_file, tmp_path):
    output = tmp_path / "a.h5"
    command = [*COMMAND, "extract", run, "--probe", probe, "-o", output]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if "replaying 1/5" in line:
            process.send_signal(signal.SIGTERM)
            break
    said = process.stderr.read()
    if process.wait() == 143:  # not finished already
        kept = len(list((tmp_path / "a.h5.parts").glob("epoch*.h5")))
        assert (
            f"posthoc: stopped; {kept} of 5 checkpoints are kept in {output}.parts, and the same command goes on."
            in said
        )
        assert not output.exists()
        assert len(list((tmp_path / "a.h5.parts").glob("*.h5"))) >= 1
        posthoc.extract(run, probe, output)
    assert process.returncode in (0, 143)
    assert_same(output, activations_file)


@pytest.fixture
def mounted(tmp_path):
    """Mount a tmpfs of two megabytes; unmounted in the end."""
    folder = tmp_path / "small"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("mounting a file system needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk(run, probe, activations_file, mounted, tmp_path):
    done = cli("extract", run, "--probe", probe, "-o", mounted / "a.h5")
    assert done.exit_code == 1
    assert "Cannot write" in done.stderr
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path for path in mounted.rglob("*.tmp")] == []
    kept = len(list(mounted.rglob("*.h5")))
    assert 1 <= kept < 5
    subprocess.run(["mount", "-o", "remount,size=20m", mounted], check=True)
    done = cli("extract", run, "--probe", probe, "-o", mounted / "a.h5")
    assert done.exit_code == 0
    assert_same(mounted / "a.h5", activations_file)


def test_a_read_only_place(run, probe, mounted):
    subprocess.run(["mount", "-o", "remount,ro", mounted], check=True)
    done = cli("extract", run, "--probe", probe, "-o", mounted / "a.h5")
    assert done.exit_code == 1
    assert "Read-only file system" in done.stderr
    assert len(done.stderr.splitlines()[-1]) < 300


def vanish(path):
    path.unlink()


def shrink(path):
    path.write_bytes(path.read_bytes()[:100_000])


def grow(path):
    path.write_bytes(path.read_bytes() + b"more")


def become_another(path):
    save_file({"weight": torch.zeros(3)}, path)


@pytest.mark.parametrize("spoil", [vanish, shrink, become_another])
def test_a_checkpoint_that_changes_after_it_was_found(run, probe, activations_file, tmp_path, spoil):
    whole = (run / "epoch-003.safetensors").read_bytes()
    plan = plan_extraction(run, probe)
    spoil(run / "epoch-003.safetensors")
    with pytest.raises(PosthocError, match=r"epoch-003\.safetensors"):
        run_extraction(plan, tmp_path / "a.h5")
    assert not (tmp_path / "a.h5").exists()
    (run / "epoch-003.safetensors").write_bytes(whole)
    posthoc.extract(run, probe, tmp_path / "a.h5")
    assert_same(tmp_path / "a.h5", activations_file)


def test_a_checkpoint_that_is_written_to_while_it_is_read(run, probe, activations_file, tmp_path):
    path, over = run / "epoch-000.safetensors", threading.Event()

    def touch():
        while not over.is_set():
            os.utime(path)

    plan = plan_extraction(run, probe)
    writer = threading.Thread(target=touch)
    writer.start()
    try:
        with pytest.raises(PosthocError, match="changed while it was being read"):
            run_extraction(plan, tmp_path / "a.h5")
    finally:
        over.set()
        writer.join()
    posthoc.extract(run, probe, tmp_path / "a.h5")
    assert_same(tmp_path / "a.h5", activations_file)


def test_what_is_not_finite_is_kept_and_flagged(states, run, probe, tmp_path):
    state = {name: tensor.clone() for name, tensor in states[2].items()}
    state["stage3.0.branch1.0.weight"][0, 0, 0, :2] = torch.tensor([np.nan, np.inf])
    save_file(state, run / "epoch-002.safetensors", {"epoch": "2", "step": "14"})
    done = cli("extract", run, "--probe", probe, "-o", tmp_path / "a.h5")
    assert done.exit_code == 0
    assert "epoch-002.safetensors: not finite: 2 weights, " in done.stderr
    with posthoc.open_activations(tmp_path / "a.h5") as activations:
        np.testing.assert_array_equal(activations.nonfinite_weights, [0, 0, 2, 0, 0])
        assert activations.nonfinite["stage2"].sum() == 0
        assert activations.nonfinite["stage4"][2] > 0
        assert activations.nonfinite["stage4"].sum() == activations.nonfinite["stage4"][2]
    assert cli("metrics", tmp_path / "a.h5", "--nulls", "0", "-o", tmp_path / "m.json").exit_code == 0


HOLD = """
import sys, time
from pathlib import Path
from posthoc.parts import Parts
with Parts(Path(sys.argv[1])).held():
    print("held", flush=True)
    time.sleep(600)
"""


def test_two_processes_on_one_output(run, probe, activations_file, tmp_path):
    output = tmp_path / "a.h5"
    other = subprocess.Popen([sys.executable, "-c", HOLD, output], stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    done = cli("extract", run, "--probe", probe, "-o", output)
    assert done.exit_code == 1
    assert f"is being written by process {other.pid} on " in done.stderr
    done = cli("extract", run, "--probe", probe, "-o", output, "--force")
    assert done.exit_code == 1
    other.kill()
    other.wait()
    assert (tmp_path / "a.h5.parts" / ".lock").exists()  # a stale one
    (tmp_path / f".a.h5.{other.pid}.tmp").write_text("what it left behind")
    assert cli("extract", run, "--probe", probe, "-o", output).exit_code == 0
    assert_same(output, activations_file)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.h5", "run"]


def test_a_file_system_without_locks(run, probe, activations_file, tmp_path, monkeypatch):
    def flock(file, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    posthoc.extract(run, probe, tmp_path / "a.h5")
    assert_same(tmp_path / "a.h5", activations_file)


def test_damaged_parts_are_made_again(run, probe, activations_file, tmp_path):
    plan = plan_extraction(run, probe)
    run_extraction(plan, tmp_path / "a.h5", shard=Shard(1, 1))
    parts = sorted((tmp_path / "a.h5.parts").glob("*.h5"))
    parts[1].write_bytes(parts[1].read_bytes()[:5000])
    parts[2].write_bytes(b"")
    parts[3].unlink()
    (tmp_path / "a.h5.parts" / "plan.json").write_text("{")
    posthoc.extract(run, probe, tmp_path / "a.h5")
    assert_same(tmp_path / "a.h5", activations_file)


def test_shards_in_any_order_and_overlap_then_merge(run, probe, activations_file, tmp_path, monkeypatch):
    output = tmp_path / "a.h5"
    words = ("extract", run, "--probe", probe, "-o", output)
    assert cli("merge", output).exit_code == 1
    done = cli(*words, "--shard", "3/3")
    assert done.exit_code == 0
    assert done.stdout == f"{output}.parts\n"
    failed = cli("merge", output)
    assert failed.exit_code == 1
    assert "lacks 4 of 5 checkpoints (epoch-000.safetensors, " in failed.stderr
    assert "run --shard 1/3 and 2/3, then merge" in failed.stderr
    environment = {f"SLURM_ARRAY_TASK_{key}": value for key, value in
                   {"ID": "4", "MIN": "0", "STEP": "4", "COUNT": "3"}.items()}  # fmt: skip
    command = [*COMMAND, *map(str, words), "--shard", "auto"]
    beside = subprocess.Popen(command, env=os.environ | environment)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for task in "08":
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", task)
        assert cli(*words, "--shard", "auto").exit_code == 0
    assert beside.wait() == 0
    assert cli(*words, "--shard", "1/2").exit_code == 0  # overlaps all of them
    assert not output.exists()
    assert cli("merge", output).exit_code == 0
    assert_same(output, activations_file)
    assert not Parts(output).folder.exists()
    assert "is there, and has no parts to be merged" in cli("merge", output).stderr
    with pytest.raises(PosthocError, match="does not exist; run posthoc extract --shard first"):
        merge(tmp_path / "b.h5")


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "a/b", "1/0"])
def test_shards_that_are_none(text):
    with pytest.raises(UsageError, match="give i/n"):
        Shard.parse(text)
    with pytest.raises(UsageError, match="Slurm job array only"):
        Shard.parse("auto")


@pytest.mark.parametrize("last", [{"MAX": "5"}, {}])
def test_an_array_with_gaps_gives_no_shards(monkeypatch, last):
    for name, value in {"ID": "5", "MIN": "2", "STEP": "1", "COUNT": "2", **last}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
    says = r"--shard auto counts the tasks of a Slurm array without gaps, and this one, of 2 tasks from 2 up, has task 5; give i/n"
    with pytest.raises(UsageError, match=says):
        Shard.parse("auto")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    if last:
        with pytest.raises(UsageError, match=says):
            Shard.parse("auto")
    monkeypatch.setenv("SLURM_ARRAY_TASK_MAX", "3")
    assert Shard.parse("auto") == Shard(1, 2)


def test_shards_of_another_configuration_are_refused(run, probe, tmp_path):
    run_extraction(plan_extraction(run, probe), tmp_path / "a.h5", shard=Shard(1, 2))
    with pytest.raises(PosthocError, match="seed: 0 there, 1 now"):
        run_extraction(plan_extraction(run, probe, seed=1), tmp_path / "a.h5", shard=Shard(2, 2))


def test_bad_checkpoints_are_skipped_on_request(run, probe, activations_file, tmp_path):
    whole = {name: (run / name).read_bytes() for name in ("epoch-001.safetensors", "epoch-003.safetensors")}
    shrink(run / "epoch-001.safetensors")
    words = ("extract", run, "--probe", probe, "-o", tmp_path / "a.h5")
    assert cli(*words).exit_code == 1
    done = cli(*words, "--on-error", "skip")
    assert done.exit_code == 3
    assert "skipped epoch-001.safetensors: " in done.stderr
    with posthoc.open_activations(tmp_path / "a.h5") as activations:
        np.testing.assert_array_equal(activations.epochs, [0, 2, 3, 4])
        ((name, reason),) = activations.skipped
        assert name == "epoch-001.safetensors"
        assert "damaged or cut short" in reason
    assert "skipped" in cli("inspect", tmp_path / "a.h5").stdout
    # One that goes bad after the plan was made, and is whole again the next time.
    (run / "epoch-001.safetensors").write_bytes(whole["epoch-001.safetensors"])
    plan = plan_extraction(run, probe)
    vanish(run / "epoch-003.safetensors")
    result = run_extraction(plan, tmp_path / "b.h5", skip_errors=True, shard=Shard(1, 1))
    assert [name for name, _ in result.skipped] == ["epoch-003.safetensors"]
    (run / "epoch-003.safetensors").write_bytes(whole["epoch-003.safetensors"])
    posthoc.extract(run, probe, tmp_path / "b.h5")
    assert_same(tmp_path / "b.h5", activations_file)


def test_several_runs_each_in_shards_then_merged_together(run, probe, tmp_path):
    runs = [tmp_path / "runs" / name for name in ("lr.1", "lr.2", "bad")]
    for folder in runs:
        shutil.copytree(run, folder)
    for path in runs[2].glob("*.safetensors"):
        path.write_bytes(b"")
    words = ["extract", *runs, "--probe", probe, "-o", tmp_path / "out"]
    for shard in ("1/2", "2/2"):
        done = cli(*words, "--shard", shard, "--on-error", "skip")
        assert done.exit_code == 3
        assert "skipped bad: " in done.output
        if shard == "1/2":  # of what is merged together one may be complete
            assert (
                cli("extract", runs[0], *words[4:-1], tmp_path / "out/lr.1/activations.h5", "--shard", "2/2").exit_code
                == 0
            )
            merged = cli("merge", tmp_path / "out")
            assert merged.exit_code == 3, merged.output
            assert "skipped lr.2/activations.h5: " in merged.stderr
            assert merged.stdout.splitlines()[-1] == str(tmp_path / "out/lr.1/activations.h5")
    shutil.copytree(runs[2], tmp_path / "runs" / "worse")
    none = cli("extract", runs[2], tmp_path / "runs" / "worse", *words[4:-1], tmp_path / "none", "--on-error", "skip")
    assert (none.exit_code, none.stderr.count("skipped ")) == (1, 2)
    merged = cli("merge", tmp_path / "out")
    assert merged.exit_code == 0, merged.output
    assert [path.parent.name for path in sorted((tmp_path / "out").rglob("activations.h5"))] == ["lr.1", "lr.2"]
    assert_same(*sorted((tmp_path / "out").rglob("activations.h5")))
    again = cli(*words)
    assert again.exit_code == 1  # bad
    assert "lr.1/activations.h5 is there already" in again.output
    files = cli("extract", *sorted(runs[0].glob("*")), "--probe", probe, "-o", tmp_path / "files.h5")
    assert "5 checkpoints, epoch 0 to epoch 4" in files.stderr  # several files are one run


def test_a_name_that_is_no_utf8_is_skipped_as_any_other(tmp_path):
    parts, name = Parts(tmp_path / "a.h5"), os.fsdecode(b"w\xff 1.pt")
    parts.folder.mkdir()
    parts.skip(Skipped(name, "damaged"))
    assert parts.skipped() == [Skipped(name, "damaged")]
    parts.unskip(name)
    assert parts.skipped() == []


def test_nothing_left_to_merge(run, probe, tmp_path):
    plan = plan_extraction(run, probe)
    for path in run.glob("*.safetensors"):
        path.unlink()
    with pytest.raises(PosthocError, match=r"None of the 5 checkpoints could be replayed: .*No such file"):
        run_extraction(plan, tmp_path / "a.h5", skip_errors=True)


@pytest.mark.parametrize("ending", ["until", "quiet"])
def test_a_growing_folder_is_followed(run_folder, probe, activations_file, tmp_path, ending):
    growing = tmp_path / "growing"
    growing.mkdir()
    shutil.copy(run_folder / "run.json", growing)

    def train():
        for path in sorted(run_folder.glob("*.safetensors")):
            data = path.read_bytes()
            with (growing / path.name).open("wb") as file:  # slowly, so that it is met half written
                file.write(data[: len(data) // 2])
                file.flush()
                time.sleep(0.2)
                file.write(data[len(data) // 2 :])
            time.sleep(0.2)

    trainer = threading.Thread(target=train)
    trainer.start()
    seen = []
    options = {"until_epoch": 4} if ending == "until" else {"quiet": 3.0}
    result = follow_extraction(
        lambda: plan_extraction(growing, probe),
        tmp_path / "a.h5",
        progress=lambda *row: seen.append(str(row[2])),
        **options,
    )
    trainer.join()
    assert result.skipped == ()
    assert {row.removesuffix(", kept") for row in seen} == {path.name for path in run_folder.glob("*.safetensors")}
    assert_same(tmp_path / "a.h5", activations_file)


def test_following_ends_where_nothing_comes(probe, tmp_path):
    (tmp_path / "empty").mkdir()
    done = cli("extract", tmp_path / "empty", "--probe", probe, "--follow", "--quiet", "0", "-o", tmp_path / "a.h5")
    assert done.exit_code == 1
    assert "No checkpoint in" in done.stderr
    assert cli("extract", tmp_path, "--probe", probe, "--follow", "--shard", "1/2").exit_code == 2
    assert cli("extract", tmp_path, "--probe", probe, "--until-epoch", "2").exit_code == 2


def test_following_says_why_it_waits(run_folder, probe, tmp_path):
    folder = tmp_path / "two"
    shutil.copytree(run_folder, folder)
    save_file({"weight": torch.zeros(2)}, folder / "other.safetensors")
    done = cli("extract", folder, "--probe", probe, "--follow", "--quiet", "3", "-o", tmp_path / "a.h5")
    assert done.exit_code == 1
    assert done.stderr.count("waiting: ") == done.stderr.count("holds more than one run") - 1 == 1
    steps = tmp_path / "steps"
    steps.mkdir()
    for k, path in enumerate(sorted(run_folder.glob("*.safetensors"))[:2]):
        save_file(load_file(path), steps / f"step_{100 * k}.safetensors")  # without the epochs inside
    shutil.copy(run_folder / "run.json", steps)
    refused = cli("extract", steps, "--probe", probe, "--follow", "--until-epoch", "2", "-o", tmp_path / "b.h5")
    assert refused.exit_code == 2
    assert "the checkpoints say no epoch" in refused.stderr


MANY = """
import resource, sys
from pathlib import Path
import posthoc
from posthoc.replay.planning import plan_extraction
from posthoc.replay.run import run_extraction
folder = Path(sys.argv[1])
plan = plan_extraction(folder / "run", "npz:" + sys.argv[2], model=str(folder / "tiny.py"), normalize="none", images=100)
peaks = []
def look(done, total, name):
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
run_extraction(plan, folder / "a.h5", progress=look)
print(peaks[49] // 1024, peaks[-1] // 1024, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_checkpoints(probe_file, tmp_path):
    (tmp_path / "tiny.py").write_text(
        "from torch import nn\n"
        "def tiny(): return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.Flatten(), nn.Linear(1800, 40))\n"
    )
    (tmp_path / "run").mkdir()
    state = {"0.weight": torch.randn(8, 3, 3, 3), "0.bias": torch.zeros(8), "2.bias": torch.zeros(40)}
    for epoch in range(250):
        state["2.weight"] = torch.full((40, 1800), 0.001 * epoch)
        save_file(state, tmp_path / "run" / f"{epoch}.safetensors")
    done = subprocess.run(
        [sys.executable, "-c", MANY, tmp_path, probe_file], capture_output=True, text=True, check=True
    )
    early, late, merged = map(int, done.stdout.split())
    assert merged - early < 30  # MB; the 200 checkpoints between are 58
    with posthoc.open_activations(tmp_path / "a.h5") as activations:
        assert len(activations) == 250
    assert late <= merged


def test_checkpoints_of_changing_precision(states, run, probe, tmp_path):
    """Memory is used again for the next checkpoint only where nothing still lies in it."""
    for epoch, state in enumerate(states):
        kind = (torch.float32, torch.float16, torch.float32, torch.bfloat16, torch.float64)[epoch]
        path = run / f"epoch-{epoch:03d}.safetensors"
        save_file(
            {name: t.to(kind) if t.is_floating_point() else t for name, t in state.items()}, path, {"epoch": str(epoch)}
        )
    posthoc.extract(run, probe, tmp_path / "a.h5")
    with posthoc.open_activations(tmp_path / "a.h5") as together:
        for epoch in range(5):
            options = {"select": f"epoch-00{epoch}*"}
            alone_path = posthoc.extract(run, probe, tmp_path / f"{epoch}.h5", **options)
            with posthoc.open_activations(alone_path) as alone:
                np.testing.assert_array_equal(together.read("mean", epoch), alone.read("mean", 0))


def test_parts_without_their_plan_are_of_no_other_configuration(run, probe, tmp_path):
    run_extraction(plan_extraction(run, probe, seed=1), tmp_path / "a.h5", shard=Shard(1, 1))
    (tmp_path / "a.h5.parts" / "plan.json").unlink()
    posthoc.extract(run, probe, tmp_path / "a.h5")
    posthoc.extract(run, probe, tmp_path / "b.h5")
    assert_same(tmp_path / "a.h5", tmp_path / "b.h5")


def test_a_checkpoint_that_became_one_of_another_epoch(run, probe, states, tmp_path):
    plan = plan_extraction(run, probe)
    save_file(states[3], run / "epoch-003.safetensors", {"epoch": "7", "step": "21"})
    with pytest.raises(PosthocError, match="no longer says of itself"):
        run_extraction(plan, tmp_path / "a.h5")


def test_what_was_skipped_and_then_removed_is_forgotten(run, probe, tmp_path):
    shrink(run / "epoch-001.safetensors")
    plan = plan_extraction(run, probe, skip_damaged=True)
    run_extraction(plan, tmp_path / "a.h5", skip_errors=True, shard=Shard(1, 1))
    vanish(run / "epoch-001.safetensors")
    assert run_extraction(plan_extraction(run, probe), tmp_path / "a.h5").skipped == ()


def test_plans_are_readable(run, probe, tmp_path):
    """What belongs to an unfinished file can be read by other programs."""
    run_extraction(plan_extraction(run, probe), tmp_path / "a.h5", shard=Shard(2, 2))
    plan = json.loads((tmp_path / "a.h5.parts" / "plan.json").read_text())
    assert plan["shards"] == 2
    assert plan["checkpoints"][1] == {"path": "epoch-001.safetensors", "epoch": 1, "step": 7}
