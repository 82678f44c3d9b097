"""A folder of results that came from elsewhere: its record, its logs and its links cost nothing outside it."""

import json
import os
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from posthoc.cli import main
from posthoc.cluster.submission import Submission
from posthoc.errors import PosthocError

ARRAY = {"job": "12", "shards": [1, 2], "count": 2, "offset": 0}
TARGET = {"name": "", "checkpoints": "/runs/a", "count": 4, "arrays": [ARRAY], "finish": "13", "left_out": ""}
RECORD = {"words": [], "measuring": [], "targets": [TARGET], "seconds": {}, "compare": None}


def record(out, **change):
    out.mkdir(exist_ok=True)
    (out / "submission.json").write_text(json.dumps(RECORD | change))
    return out


def target(**change):
    return {"targets": [TARGET | change]}


@pytest.fixture
def queue(tmp_path, monkeypatch):
    """Slurm's commands as a queue of jobs in a file, and a list of what was asked of them."""
    folder = tmp_path / "bin"
    folder.mkdir()
    jobs, asked = tmp_path / "jobs", tmp_path / "asked"
    jobs.write_text("")
    asked.write_text("")
    for name, does in {"squeue": f"cat {jobs}", "scancel": "true", "sbatch": "echo 99", "scontrol": "true"}.items():
        (folder / name).write_text(f'#!/bin/sh\necho "{name} $*" >> {asked}\n{does}\n')
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return jobs, asked


@pytest.fixture
def run(tmp_path):
    """Two checkpoints of the smallest network, and the words with which they are submitted."""
    (tmp_path / "net.py").write_text("from torch import nn\nmodel = lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), "
                                     "nn.Flatten(), nn.Linear(72, 10))\n")  # fmt: skip
    (tmp_path / "run").mkdir()
    for epoch in range(2):
        torch.manual_seed(epoch)
        state = {"0.weight": torch.randn(2, 1, 3, 3), "0.bias": torch.randn(2), "3.weight": torch.randn(10, 72),
                 "3.bias": torch.randn(10)}  # fmt: skip
        save_file(state, tmp_path / "run" / f"epoch-{epoch}.safetensors")
    words = ["--model", f"{tmp_path}/net.py:model", "--probe", "digits", "--images", "80", "--image-size", "8",
             "--normalize", "none"]  # fmt: skip
    return ["submit", str(tmp_path / "run"), *words, "--jobs", "1"]


def said(*words):
    done = CliRunner().invoke(main, [str(word) for word in words])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
    return done


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (target(name="../victim"), "targets[0].name is '../victim', which cannot be"),
        (target(name="/home"), "targets[0].name is '/home', which"),
        (target(name="a/../../b"), "targets[0].name is 'a/../../b', which"),
        (target(name="a\nb"), "targets[0].name is 'a\\nb', which"),
        (target(name=["a"]), "targets[0].name is a list of 1, not a text"),
        (target(count=10**9), "targets[0].count is 1000000000, not within 0 to 1e+06"),
        (target(count="4"), "targets[0].count is '4', not a whole number"),
        (target(arrays=[ARRAY | {"count": 0}]), "targets[0].arrays[0].count is 0, not within"),
        (target(arrays=[ARRAY | {"shards": [10**9]}]), "targets[0].arrays[0].shards is 1000000000, not within"),
        (target(arrays=[ARRAY | {"job": "1 2"}]), "targets[0].arrays[0].job is '1 2', which cannot be"),
        (target(finish="--user=root"), "targets[0].finish is '--user=root', which cannot be"),
        (target(arrays={}), "targets[0].arrays is an object of 0, not a list"),
        ({"compare": "../1"}, "compare is '../1', which cannot be"),
        ({"words": None}, "words is null, not a list"),
        ({"targets": None}, "targets is null, not a list"),
        ({"seconds": {"a": float("nan")}}, "seconds.a is nan, not within"),
        ({"measuring": [1]}, "measuring[0] is 1, not a text"),
    ],
)
def test_a_record_that_is_not_ours_is_refused(tmp_path, change, says):
    out = record(tmp_path / "out", **change)
    with pytest.raises(PosthocError) as error:
        Submission.load(out)
    assert str(error.value).startswith(f"{out}/submission.json is not what posthoc submit wrote ({says}")
    done = said("status", out)
    assert done.exit_code == 1
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("content", ["[]", "{", "[" * 100_000, '{"targets": []}', "null", "\x89HDF\r\n\x1a\n"])
def test_what_is_no_record_is_refused(tmp_path, content):
    out = record(tmp_path / "out")
    (out / "submission.json").write_bytes(content.encode("latin-1"))
    assert said("status", out).stderr.startswith(f"posthoc: {out}/submission.json is ")
    (out / "submission.json").unlink()
    (out / "submission.json").symlink_to("/etc/hostname")
    assert "submission.json is a link, which posthoc did not make" in said("status", out).stderr


def test_what_was_written_is_read(tmp_path):
    out = record(tmp_path / "out", targets=[TARGET | {"name": "lr.1/seed 2"}, TARGET | {"name": "ü"}])
    submission = Submission.load(out)
    submission.save()
    assert Submission.load(out) == submission
    assert json.loads((out / "submission.json").read_text())["targets"][0]["arrays"] == [ARRAY]


def test_a_log_that_is_no_file_holds_nobody_up(tmp_path, queue):
    out = record(tmp_path / "out", compare="14")
    (out / "logs").mkdir()
    os.mkfifo(out / "logs" / "12_1_0_log.out")
    (tmp_path / "secret").write_text("posthoc: SECRET")
    (out / "logs" / "12_2_0_log.out").symlink_to(tmp_path / "secret")
    (out / "logs" / "13_0_log.out").write_text("[/scratch/u]\nposthoc: \x1b[2Jcut short\n")
    shown = said("status", out).stdout
    assert "its log is no file" in shown
    assert "its log is a link, and is not followed" in shown
    assert "SECRET" not in shown
    assert "posthoc: \\x1b[2Jcut short" in shown


def test_only_jobs_of_ours_are_cancelled_and_waited_for(tmp_path, run, queue):
    jobs, asked = queue
    out = tmp_path / "out"
    first = said(*run, "-o", out)
    assert first.exit_code == 0, first.output
    theirs = json.loads((out / "submission.json").read_text())
    theirs["targets"][0]["finish"] = "77"  # somebody's own job
    (out / "submission.json").write_text(json.dumps(theirs))
    for line, cancelled in [
        ("77|PENDING|Dependency|training|/home/me/train.sh\n", False),
        (f"77|PENDING|Dependency|training|{out}/finish.sh\n", False),
        (f"77|PENDING|Dependency|posthoc-measure-b|{tmp_path}/out2/finish.sh\n", False),
        (f"77|PENDING|Dependency|posthoc-measure-out|{out}/finish.sh\n", True),
    ]:
        jobs.write_text(line)
        asked.write_text("")
        (out / "submission.json").write_text(json.dumps(theirs))
        assert said(*run, "-o", out).exit_code == 0
        assert ("scancel 77\n" in asked.read_text()) == cancelled


def test_force_removes_what_is_in_its_own_folders_only(tmp_path, run, queue):
    victim = tmp_path / "victim"
    (victim / "activations.h5.parts").mkdir(parents=True)
    for name in ("activations.h5", "metrics.json", "activations.h5.parts/thesis.tex"):
        (victim / name).write_text("precious")
    kept = {path: path.read_bytes() for path in victim.rglob("*") if path.is_file()}
    out = tmp_path / "out"
    assert said(*run, "-o", out).exit_code == 0
    content = json.loads((out / "submission.json").read_text())
    content["targets"][0]["name"] = "a"
    (out / "submission.json").write_text(json.dumps(content))
    (out / "a").symlink_to(victim)
    done = said(*run, "-o", out, "--force")
    assert done.exit_code == 1
    assert f"{out}/a is a link, which posthoc did not make" in done.stderr
    (out / "a").unlink()
    (out / "a").mkdir()
    (out / "a" / "activations.h5.parts").symlink_to(victim / "activations.h5.parts")
    done = said(*run, "-o", out, "--force")
    assert done.exit_code == 1
    assert "activations.h5.parts is a link" in done.stderr
    (out / "a" / "activations.h5.parts").unlink()
    (out / "a" / "activations.h5").symlink_to(victim / "activations.h5")
    assert said(*run, "-o", out, "--force").exit_code == 0
    assert not os.path.lexists(out / "a" / "activations.h5")
    assert {path: path.read_bytes() for path in victim.rglob("*") if path.is_file()} == kept


def test_what_the_user_says_to_slurm_is_what_holds(tmp_path, run):
    script = said(
        *run, "-o", tmp_path / "out", "--dry-run", "--slurm", "no-requeue", "--slurm", "cpus-per-task=8"
    ).output
    array = script.partition("srun")
    assert "#SBATCH --no-requeue" in array[0]
    assert "#SBATCH --requeue" not in array[0]
    assert "#SBATCH --cpus-per-task=8" in array[0]
    assert "--cpus-per-task=8 --export=ALL" in array[2]


def test_a_lock_of_submit_that_is_a_link_is_refused(tmp_path, run, queue):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".lock").symlink_to(tmp_path / "new")
    done = said(*run, "-o", tmp_path / "out")
    assert done.exit_code == 1
    assert ".lock is a link" in done.stderr
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("where", ["cwd", "output", "run"])
def test_no_line_of_a_name_reaches_a_batch_script(tmp_path, run, where, monkeypatch):
    odd = tmp_path / "x\n#SBATCH --wrap=touch CANARY"
    odd.mkdir()
    words = [*run, "-o", str(odd / "out") if where == "output" else str(tmp_path / "out"), "--dry-run"]
    if where == "run":
        Path(words[1]).rename(odd / "run")
        words[1] = str(odd / "run")
    monkeypatch.chdir(odd if where == "cwd" else tmp_path)
    done = said(*words)
    assert done.exit_code == 2
    assert "has a line's end or another control character, which no batch script may hold" in done.stderr
    assert done.stdout == ""


def sbatch(tmp_path, *answers):
    """What sbatch does, call after call; the last for all further ones."""
    path = tmp_path / "bin" / "sbatch"
    (tmp_path / "calls").write_text("0")
    lines = [f"n=$(cat {tmp_path}/calls); echo $((n + 1)) > {tmp_path}/calls; case $n in"]
    lines += [f"{n if n < len(answers) - 1 else '*'}) {does};;" for n, does in enumerate(answers)]
    path.write_text("\n".join(["#!/bin/sh", *lines, "esac", ""]))


REFUSED = "echo 'sbatch: error: invalid partition specified: gpuu' >&2; exit 1"


def results(out):
    """The files of a run's results, put aside or not, and of its parts."""
    files = [path for path in out.rglob("*") if path.is_file()]
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in files
        if "activations" in str(path) or path.name.endswith("metrics.json")
    }


def test_force_keeps_what_is_there_until_the_scheduler_has_taken_a_job(tmp_path, run, queue):
    out = tmp_path / "out"
    assert said(*run, "-o", out).exit_code == 0
    words = [word for word in run[2:] if word not in ("--jobs", "1")]
    assert said("extract", run[1], *words, "-o", out / "activations.h5", "--shard", "1/2").exit_code == 0
    (out / "metrics.json").write_text("{}")
    (out / "activations.h5").write_text("hours of work")
    before, record = results(out), (out / "submission.json").read_text()
    assert {"activations.h5", "metrics.json", "activations.h5.parts/epoch0-step-1.h5"} <= before.keys()
    sbatch(tmp_path, REFUSED)
    done = said(*run, "-o", out, "--force", "--metrics", "--smooth 3")
    assert done.exit_code == 1
    assert "invalid partition specified: gpuu. The same command goes on from here once that is mended." in done.stderr
    assert results(out) == before
    assert (out / "submission.json").read_text() == record
    sbatch(tmp_path, "echo 99", REFUSED)
    done = said(*run, "-o", out, "--force")
    assert done.exit_code == 1
    assert "What was submitted before stays so; to go on, run the same command without --force." in done.stderr
    assert results(out) == {}
    sbatch(tmp_path, "echo 100")
    assert said(*run, "-o", out).exit_code == 0


def test_what_goes_on_has_no_force(tmp_path, run, queue, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setattr("sys.argv", ["posthoc", *run, "-o", str(out), "--force"])
    last = said(*run, "-o", out, "--force").stdout.splitlines()[-1]
    assert last == f"what is missing is submitted again by: posthoc {' '.join([*run, '-o', str(out)])}"


def test_work_without_a_job_is_not_submitted(tmp_path, run, queue):
    """The scheduler took the array and refused the job that waits for it."""
    out = tmp_path / "out"
    sbatch(tmp_path, "echo 99", REFUSED)
    assert said(*run, "-o", out).exit_code == 1
    (out / "logs" / "99_1_0_log.out").write_text("posthoc: cut short\n")
    done = said("status", out)
    assert done.exit_code == 1
    assert "0 of 1 run measured, 0 of 2 checkpoints replayed; tasks: 1 failed, 1 not submitted" in done.stdout
    words = [word for word in run[2:] if word not in ("--jobs", "1")]
    for shard in ("1/2", "2/2"):
        assert said("extract", run[1], *words, "-o", out / "activations.h5", "--shard", shard).exit_code == 0
    done = said("status", out, "--json")
    assert done.exit_code == 1
    status = json.loads(done.stdout)
    assert (status["done"], status["failed"]) == (False, True)
    (task,) = status["runs"][0]["tasks"]
    assert (task["id"], task["what"], task["state"]) == ("", "measure", "not submitted")


def test_a_run_left_out_is_settled_and_a_damaged_file_hides_no_other(tmp_path, run, queue):
    out = tmp_path / "out"
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "epoch-0.safetensors").write_bytes(b"torn")
    done = said(run[0], run[1], bad, *run[2:], "-o", out, "--on-error", "skip")
    assert done.exit_code == 0, done.stderr
    words = [word for word in run[2:] if word not in ("--jobs", "1")]
    assert said("extract", run[1], *words, "-o", out / "run" / "activations.h5", "--force").exit_code == 0
    (out / "run" / "metrics.json").write_text("{}")
    (out / "comparison.txt").write_text("one run")
    done = said("status", out)
    assert done.exit_code == 3
    assert "1 of 2 runs measured, 2 of 2 checkpoints replayed; tasks: none left" in done.stdout
    assert "left out bad: " in done.stdout
    status = json.loads(said("status", out, "--json").stdout)
    assert (status["done"], status["failed"]) == (True, False)
    assert [bool(one["left_out"]) for one in status["runs"]] == [False, True]
    whole = (out / "run" / "activations.h5").read_bytes()
    (out / "run" / "activations.h5").write_bytes(whole[:3000])
    done = said("status", out)
    assert done.exit_code == 1
    assert "is damaged or cut short" in done.stdout
    assert "left out bad: " in done.stdout


@pytest.mark.parametrize(("asked", "given"), [("16", "16G"), ("1.5", "1536M"), ("0.3", "308M")])
def test_a_checkpoint_is_timed_with_the_memory_of_a_task(tmp_path, run, queue, asked, given):
    (tmp_path / "bin" / "srun").write_text(f'#!/bin/sh\necho "$*" > {tmp_path}/srun\necho 1.5\n')
    (tmp_path / "bin" / "srun").chmod(0o755)
    out = tmp_path / "out"
    words = [word for word in run if word not in ("--jobs", "1")]
    assert said(*words, "-o", out, "--gpus-per-node", "1", "--mem-gb", asked).exit_code == 0
    timed = (tmp_path / "srun").read_text()
    assert f" --mem={given} " in timed
    assert f"#SBATCH --mem={given}\n" in (out / "extract.sh").read_text()


def test_what_was_trained_anew_is_submitted_again(tmp_path, run, queue):
    out = tmp_path / "out"
    assert said(*run, "-o", out).exit_code == 0
    words = [word for word in run[2:] if word not in ("--jobs", "1")]
    for shard in ("1/2", "2/2"):
        assert said("extract", run[1], *words, "-o", out / "activations.h5", "--shard", shard).exit_code == 0
    assert "2 of them replayed; tasks to submit: 0" in said(*run, "-o", out).stdout
    path = tmp_path / "run" / "epoch-1.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(path).items()}, path)
    assert "1 of them replayed; tasks to submit: 1" in said(*run, "-o", out).stdout
