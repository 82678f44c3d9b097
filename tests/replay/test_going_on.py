"""Going on with a run whose folder has changed: checkpoints that were deleted, renamed, moved or trained anew."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from contents import assert_same
from safetensors.torch import save_file

import posthoc
from posthoc.cli import main
from posthoc.parts import Parts
from posthoc.replay.planning import plan_extraction
from posthoc.replay.run import entries_of, run_extraction
from posthoc.shards import Shard
from posthoc.stamps import Stamp, from_text

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.fc = nn.Conv2d(3, 8, 3, 2), nn.Linear(8, 10)

    def forward(self, x):
        return self.fc(self.a(x).relu().mean((2, 3)))
"""
COMMAND = [sys.executable, "-c", "from posthoc.cli import main; main()"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder to work in, with a network and images."""
    random = np.random.default_rng(0)
    (tmp_path / "nets.py").write_text(NET)
    np.savez(
        tmp_path / "p.npz", images=random.integers(0, 255, (16, 16, 16, 3)).astype("u1"), labels=np.arange(16) % 10
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


OPTIONS = ("--probe", "npz:p.npz", "--model", "nets.py", "--normalize", "none")


def train(folder, epochs, seed=0, form="epoch-{:03d}.safetensors", inside=True):
    """Save these epochs of a training, a file each; inside: whether these say their epoch."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for epoch in epochs:
        random = torch.Generator().manual_seed(1000 * seed + epoch)
        shapes = {"a.weight": (8, 3, 3, 3), "a.bias": (8,), "fc.weight": (10, 8), "fc.bias": (10,)}
        state = {name: torch.randn(shape, generator=random) for name, shape in shapes.items()}
        partial = Path(folder) / f".{epoch}.partial"
        save_file(state, partial, {"epoch": str(epoch)} if inside else None)
        partial.rename(Path(folder) / form.format(epoch))


def delete(folder, *epochs):
    for epoch in epochs:
        (Path(folder) / f"epoch-{epoch:03d}.safetensors").unlink()


def cli(*words):
    done = CliRunner().invoke(main, list(map(str, words)))
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def extract(*words):
    done = cli("extract", *words, *OPTIONS)
    assert done.exit_code == 0, done.stderr
    return done


def epochs(path):
    with posthoc.open_activations(path) as file:
        return file.epochs.tolist()


def wait_for(path, seconds=120):
    start = time.monotonic()
    while not path.exists():
        assert time.monotonic() - start < seconds, f"no {path}"
        time.sleep(0.05)


def test_a_trainer_that_rotates_its_checkpoints_is_followed(place):
    train("run", range(2))
    words = [*COMMAND, "extract", "run", *OPTIONS, "-o", "a.h5", "--follow", "--until-epoch", "3"]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    for epoch in (2, 3):
        wait_for(place / "a.h5.parts" / f"epoch{epoch - 1}-step-1.h5")
        train("run", [epoch])
        delete("run", epoch - 2)
    said = process.communicate()[1]
    assert process.returncode == 0, said
    assert sorted(path.name for path in Path("run").iterdir()) == ["epoch-002.safetensors", "epoch-003.safetensors"]
    gone = "epoch-000.safetensors, epoch-001.safetensors"
    assert f"warning: a.h5 holds 2 checkpoints replayed before and gone since from {place}/run: {gone}.\n" in said
    assert sorted(path.name for path in place.iterdir()) == ["a.h5", "nets.py", "p.npz", "run"]
    train("whole", range(4))
    extract("whole", "-o", "whole.h5")
    assert_same("a.h5", "whole.h5")


@pytest.mark.parametrize("sharded", [False, True])
def test_what_was_replayed_and_then_deleted_stays(place, sharded):
    train("run", range(3))
    extract("run", "-o", "a.h5", "--shard", "1/1")
    delete("run", 0)
    train("run", [3])
    done = extract("run", "-o", "a.h5", *(("--shard", "1/1") if sharded else ()))
    done = cli("merge", "a.h5") if sharded else done
    assert (done.exit_code, done.stderr.count("\n", done.stderr.index("warning: "))) == (0, 1)
    assert f"a.h5 holds 1 checkpoint replayed before and gone since from {place}/run: epoch-000.safeten" in done.stderr
    train("whole", range(4))
    extract("whole", "-o", "whole.h5")
    assert_same("a.h5", "whole.h5")


def test_a_file_that_is_replaced_and_holds_what_is_gone_is_named(place):
    train("run", range(3))
    extract("run", "-o", "a.h5")
    assert "gone since" not in extract("run", "-o", "a.h5", "--force").stderr
    delete("run", 0)
    refused = cli("extract", "run", *OPTIONS, "-o", "a.h5")
    assert (refused.exit_code, epochs("a.h5")) == (1, [0, 1, 2])
    done = extract("run", "-o", "a.h5", "--force")
    says = "warning: a.h5 holds 1 checkpoint gone since from run (epoch-000.safetensors), which will not be in the file that"
    assert done.stderr.count(says) == 1
    assert epochs("a.h5") == [1, 2]


def test_a_checkpoint_that_is_deleted_after_it_was_found_keeps_its_part(place):
    train("run", range(3))
    extract("run", "-o", "a.h5", "--shard", "1/1")
    plan = plan_extraction(Path("run"), "npz:p.npz", model="nets.py", normalize="none")
    delete("run", 1)
    assert (
        run_extraction(plan, Path("b.h5"), skip_errors=True, shard=Shard(1, 1)).skipped[0].path.startswith("epoch-001")
    )
    assert run_extraction(plan, Path("a.h5"), skip_errors=True, shard=Shard(1, 1)).skipped == ()
    assert "a.h5 holds 1 checkpoint replayed before and gone since" in cli("merge", "a.h5").stderr
    assert epochs("a.h5") == [0, 1, 2]


def test_what_is_left_out_by_intent_does_not_stay(place):
    train("run", range(3))
    extract("run", "-o", "a.h5", "--shard", "1/1")
    assert "gone since" not in extract("run", "-o", "a.h5", "--select", "epoch-00[01]*").stderr
    assert epochs("a.h5") == [0, 1]


def test_a_deleted_checkpoint_keeps_the_means_that_were_made_with_it(place):
    train("run", range(4))
    extract("run", "-o", "a.h5", "--average", "2", "--shard", "1/1")
    delete("run", 0, 1)
    done = extract("run", "-o", "a.h5", "--average", "2")
    assert "epoch-002.safetensors, kept" in done.stderr
    train("whole", range(4))
    extract("whole", "-o", "whole.h5", "--average", "2")
    assert_same("a.h5", "whole.h5")


def test_a_renamed_checkpoint_is_there_once(place):
    train("run", range(3))
    extract("run", "-o", "a.h5", "--shard", "1/1")
    for path in list(Path("run").iterdir()):
        path.rename(path.with_stem(f"my-{path.stem}"))
    assert "gone since" not in extract("run", "-o", "a.h5").stderr
    with posthoc.open_activations("a.h5") as file:
        assert file.checkpoints == tuple(f"my-epoch-00{epoch}.safetensors" for epoch in range(3))


def test_a_checkpoint_that_was_given_another_number_is_there_once(place):
    train("run", range(4), inside=False)
    shutil.copy("run/epoch-000.safetensors", "run/epoch-001.safetensors")  # as after a rate of zero: both are kept
    extract("run", "-o", "a.h5", "--shard", "1/1")
    delete("run", 0)
    Path("run/epoch-003.safetensors").rename("run/epoch-005.safetensors")
    extract("run", "-o", "a.h5")
    assert epochs("a.h5") == [0, 1, 2, 5]


def test_a_file_that_is_overwritten_with_the_next_checkpoint_leaves_all_of_them(place):
    train("run", [0], form="latest.safetensors")
    extract("run", "-o", "a.h5", "--shard", "1/1")
    train("run", [1], form="latest.safetensors")
    extract("run", "-o", "a.h5")
    with posthoc.open_activations("a.h5") as file:
        assert (file.epochs.tolist(), file.checkpoints) == ([0, 1], ("latest.safetensors",) * 2)


def test_what_is_gone_of_another_run_is_not_mixed_in(place):
    train("a", range(3))
    train("b", range(2), seed=1)
    extract("a", "-o", "a.h5", "--shard", "1/1")
    done = cli("extract", "b", *OPTIONS, "-o", "a.h5")
    assert done.exit_code == 1
    why = f"a.h5.parts holds parts of {place}/a (epoch-002.safetensors), which are not in {place}/b; choose another -o"
    assert why in done.stderr
    extract("a", "-o", "a.h5")
    assert epochs("a.h5") == [0, 1, 2]


def test_a_training_begun_anew_takes_the_place_of_the_one_before(place):
    """Of the former, what is gone of later in training than a checkpoint that changed is left out."""
    train("run", range(4))
    extract("run", "-o", "a.h5", "--shard", "1/1")
    delete("run", 2, 3)
    train("run", [1], seed=1)
    done = extract("run", "-o", "a.h5")
    assert "warning: epoch-001.safetensors has other weights than when it was replayed before: epoch-002" in done.stderr
    assert "gone since from" not in done.stderr
    extract("run", "-o", "whole.h5")
    assert_same("a.h5", "whole.h5")


def test_shards_and_merge_notice_a_training_begun_anew(place):
    train("run", range(4))
    extract("run", "-o", "a.h5", "--shard", "1/2")
    train("run", range(4), seed=1)
    extract("run", "-o", "a.h5", "--shard", "2/2")
    parts = Parts(Path("a.h5"))
    entries = list(entries_of(plan_extraction(Path("run"), "npz:p.npz", model="nets.py", normalize="none")).values())
    assert parts.standing(entries, Path("run")) == [False, True, False, True]
    failed = cli("merge", "a.h5")
    assert failed.exit_code == 1
    assert failed.stderr == (
        f"posthoc: epoch-000.safetensors, epoch-002.safetensors in {place}/run changed after the parts in a.h5.parts were made "
        "of them; run --shard 1/2, then merge.\n"
    )
    extract("run", "-o", "a.h5", "--shard", "1/2")
    assert cli("merge", "a.h5").exit_code == 0
    extract("run", "-o", "whole.h5")
    assert_same("a.h5", "whole.h5")


def test_files_are_read_again_where_size_or_time_differ_only(place):
    train("run", range(2))
    extract("run", "-o", "a.h5", "--shard", "1/1")
    for epoch in range(2):
        with h5py.File(f"a.h5.parts/epoch{epoch}-step-1.h5") as part:
            (stamp,) = from_text(part["checkpoint/files"].asstr()[0])
        status = Path(f"run/epoch-00{epoch}.safetensors").stat()
        assert stamp == Stamp(f"epoch-00{epoch}.safetensors", status.st_size, status.st_mtime_ns)
    times = [path.stat().st_mtime_ns for path in sorted(Path("run").iterdir())]
    train("run", range(2), seed=1)  # other weights, as large
    os.utime("run/epoch-000.safetensors", ns=(times[0], times[0]))
    done = extract("run", "-o", "a.h5", "--shard", "1/1")
    assert "epoch-000.safetensors, kept" in done.stderr  # the same size and time: its bytes are not looked at
    assert "epoch-001.safetensors, kept" not in done.stderr
    os.utime("run/epoch-001.safetensors")  # the same bytes at another time
    assert "epoch-001.safetensors, kept" in extract("run", "-o", "a.h5", "--shard", "1/1").stderr
    assert cli("merge", "a.h5").exit_code == 0


def test_parts_of_an_earlier_version_are_used(place):
    train("run", range(3))
    extract("run", "-o", "a.h5", "--shard", "1/1")
    plan = json.loads(Path("a.h5.parts/plan.json").read_text())
    for name in ("folder", "gone", "came"):
        del plan[name]
    Path("a.h5.parts/plan.json").write_text(json.dumps(plan))
    for path in Path("a.h5.parts").glob("*.h5"):
        with h5py.File(path, "r+") as part:
            del part["checkpoint/files"]
    shutil.copytree("a.h5.parts", "b.h5.parts")
    assert cli("merge", "b.h5").exit_code == 0
    delete("run", 0)
    assert extract("run", "-o", "a.h5").stderr.count(", kept") == 2
    assert_same("a.h5", "b.h5")


def test_every_stop_says_what_is_kept_and_what_goes_on(place):
    train("run", range(3))
    for force in ((), ("--force",)):
        words = [*COMMAND, "extract", "run", *OPTIONS, "-o", "a.h5", "--follow", *force]
        process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
        for line in process.stderr:
            if "replaying 3/3" in line:
                process.send_signal(signal.SIGTERM)
                break
        said = process.stderr.read()
        assert process.wait() == 143
        command = "the same command without --force" if force else "the same command"
        assert said.endswith(f"posthoc: stopped; 3 of 3 checkpoints are kept in a.h5.parts, and {command} goes on.\n")
    Path("empty").mkdir()
    process = subprocess.Popen([*COMMAND, "extract", "empty", *OPTIONS, "--follow"], stderr=subprocess.PIPE, text=True)
    process.stderr.readline()  # waiting: ...
    process.send_signal(signal.SIGTERM)
    assert process.communicate()[1].endswith("posthoc: stopped.\n")
    assert process.returncode == 143


def test_several_runs_find_what_is_theirs_and_nothing_else(place):
    for seed, folder in enumerate(("s1/a", "s1/b", "s2/a", "s2/b")):
        train(folder, range(2), seed=seed)
    extract("s1/a", "s1/b", "-o", "out")
    made = {path: path.read_bytes() for path in sorted(Path("out").rglob("*.h5"))}
    assert list(map(str, made)) == ["out/a/activations.h5", "out/b/activations.h5"]
    refused = cli("extract", "s2/a", "s2/b", *OPTIONS, "-o", "out")
    says = f"posthoc: out/a/activations.h5 is of {place}/s1/a, not of s2/a; choose another -o, or pass --force to replace it.\n"
    assert (refused.exit_code, refused.stderr) == (1, says)
    done = extract("s1/a", "s1/b", "s2/a", "-o", "out")
    assert done.stderr.count("is there already") == 2
    assert {path: path.read_bytes() for path in made} == made
    assert sorted(map(str, Path("out").rglob("*.h5"))) == [*map(str, made), "out/s2/a/activations.h5"]
    with posthoc.open_activations("out/s2/a/activations.h5") as file:
        assert file.folder == f"{place}/s2/a"
    # An unfinished one is another's, too; a run that was moved, or that an earlier version wrote, keeps what is its.
    extract("s2/a", "s2/b", "-o", "half", "--shard", "1/2")
    refused = cli("extract", "s1/a", "s1/b", *OPTIONS, "-o", "half")
    assert f"half/a/activations.h5.parts is of {place}/s2/a, not of s1/a; choose another -o" in refused.stderr
    Path("s1").rename("moved")
    with h5py.File("out/b/activations.h5", "r+") as file:
        del file.attrs["folder"]
    assert extract("moved/a", "moved/b", "-o", "out").stderr.count("is there already") == 2
    shutil.copytree("s2", "elsewhere")
    assert cli("extract", "elsewhere/a", "elsewhere/b", *OPTIONS, "-o", "out").exit_code == 1
    extract("s2/a", "s2/b", "-o", "out", "--force")
    with posthoc.open_activations("out/b/activations.h5") as file:
        assert file.folder == f"{place}/s2/b"
