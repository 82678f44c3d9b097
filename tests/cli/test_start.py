"""However the command is started, and whatever the data say, no file of the working directory or of the data is run."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
LIBRARIES = (
    "click", "torch", "torchvision", "h5py", "numpy", "numba", "rich", "scipy", "safetensors", "submitit", "typing",
    "json", "zipfile", "pickle", "timm", "sitecustomize", "usercustomize",
)  # fmt: skip


@pytest.fixture(scope="module")
def hostile(tmp_path_factory, states):
    """A working directory with a file for every library that is imported, and a run in it with the same files."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "run").mkdir()
    for place in (folder, folder / "run"):
        for name in LIBRARIES:
            text = f"open({str(folder / f'CANARY-{name}')!r}, 'w').close()\nraise SystemExit('{name} was run')\n"
            (place / f"{name}.py").write_text(text)
    for epoch, state in enumerate(states):
        torch.save({"epoch": epoch, "state_dict": state}, folder / "run" / f"epoch_{epoch}.pth")
    return folder


def run(folder, *command, path=None):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = path
    done = subprocess.run([*map(str, command)], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not list(folder.glob("CANARY-*"))
    return done.stdout


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    """The console script as installers write it."""
    place, function = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["posthoc"].split(":")
    path = tmp_path_factory.mktemp("bin") / "posthoc"
    path.write_text(f"#!{sys.executable}\nimport sys\nfrom {place} import {function}\nsys.exit({function}())\n")
    path.chmod(0o755)
    return path


def test_the_working_directory_is_not_imported_from(hostile, script, activations_file):
    extract = ["extract", "run", "--probe", "digits", "--images", "64", "--normalize", "none", "--device", "cpu"]
    assert "shufflenet_v2_x0_5" in run(hostile, sys.executable, "-m", "posthoc", "inspect", "run")
    assert "shufflenet_v2_x0_5" in run(hostile, script, *extract, "--dry-run")
    # A component left empty means the working directory; site, which Python runs before anything of ours, reads
    # sitecustomize there, so such a file is not laid for it.
    for name in ("sitecustomize", "usercustomize"):
        (hostile / f"{name}.py").rename(hostile / f"{name}.txt")
    measure = ["metrics", activations_file, "--nulls", "0", "-o", hostile / "metrics.json"]
    for path in (":", f"{ROOT / 'tests'}:"):
        assert "H_eff" in run(hostile, script, *measure, "--force", path=path)
    for name in ("sitecustomize", "usercustomize"):
        (hostile / f"{name}.txt").rename(hostile / f"{name}.py")
    # What the user puts on PYTHONPATH stays: here a file that ends the program when it is imported.
    place = hostile.parent / "theirs"
    place.mkdir()
    (place / "click.py").write_text("raise SystemExit('theirs')")
    done = subprocess.run([script], env={**os.environ, "PYTHONPATH": f"{place}:"}, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "theirs\n")


def test_batch_jobs_do_not_import_from_the_working_directory(hostile):
    """The checkpoint that is timed, the commands of the scripts, and one of them run as a node would run it."""
    words = ["--probe", "digits", "--images", "64", "--normalize", "none", "--device", "cpu", "--metrics", "--nulls 0"]
    submit = ["submit", "run", *words, "-o", "out", "--jobs", "2", "--minutes-per-task", "0.001", "--dry-run"]
    text = run(hostile, sys.executable, "-m", "posthoc", *submit)
    assert "about" in text  # so many seconds: it was timed
    commands = re.findall(rf"{re.escape(sys.executable)} \S.* posthoc (?:extract|merge|metrics) .*", text)
    assert len(commands) == 3
    assert all(command.startswith(f"{sys.executable} -P -m posthoc ") for command in commands)
    run(hostile, "bash", "-c", f"SLURM_ARRAY_TASK_ID=1; {commands[0]}")
    assert len(list((hostile / "out" / "activations.h5.parts").glob("epoch*.h5"))) == 3
