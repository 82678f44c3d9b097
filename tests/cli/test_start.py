"""However the command is started, and whatever the data say, no file of the working directory or of the data is run."""

import json
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
    "click", "torch", "torchvision", "h5py", "numpy", "numba", "rich", "scipy", "safetensors", "typing",
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


@pytest.mark.slow
def test_batch_jobs_do_not_import_from_the_working_directory(hostile):
    """The checkpoint that is timed, the commands of the scripts, and one of them run as a node would run it."""
    words = ["--probe", "digits", "--images", "64", "--normalize", "none", "--device", "cpu", "--metrics", "--nulls 0"]
    submit = ["submit", "run", *words, "-o", "out", "--jobs", "2", "--minutes-per-task", "0.001", "--dry-run"]
    text = run(hostile, sys.executable, "-m", "posthoc", *submit)
    assert "about" in text  # so many seconds: it was timed
    commands = re.findall(rf"{re.escape(sys.executable)} \S.* posthoc (?:extract|merge|metrics) .*", text)
    assert len(commands) == 3
    assert all(command.startswith(f"{sys.executable} -P -m posthoc ") for command in commands)
    (hostile / "out").mkdir()
    run(hostile, "bash", "-c", f"SLURM_ARRAY_TASK_ID=1; {commands[0]}")
    assert len(list((hostile / "out" / "activations.h5.parts").glob("epoch*.h5"))) == 3


WATCH = """
import json, sys
seen = []
def watch(event, given):
    if event in ("exec", "compile"):
        name = given[1] if event == "compile" else given[0].co_filename
        seen.append(f"{event} {name}") if "hostile" in str(name) else None
    elif event in ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "socket.connect", "socket.getaddrinfo"):
        seen.append(f"{event} {given}")
import click.testing, h5py, torch, timm, posthoc.replay.models, posthoc.cli
sys.addaudithook(watch)
for place in json.loads(sys.stdin.read()):
    result = click.testing.CliRunner().invoke(posthoc.cli.main, ["inspect", place])
    print(json.dumps([result.exit_code, result.output, repr(result.exception)]))
print(json.dumps(seen))
"""
NAMES = [
    "run/evil.py", "evil.py", "./evil.py:Net", "evil:Net", "run.evil:Net", "os:abort", "os:system", "builtins:exec",
    "torchvision:evil.py", "torchvision:evil", "timm:evil.py", "hf_hub:a/resnet18", "hf-hub:a/resnet18", "timm:hf-hub:a/b",
    "timm:local-dir:run", "local-dir:run", "timm:hf_hub:resnet18", "torchvision:torchvision:shufflenet_v2_x0_5",
    "timm:resnet18.evil/../x", "shufflenet_v2_x0_5 ", "SHUFFLENET_V2_X0_5", "shufflenet_v2_x0_5\n", "..", "", "\0", "x" * 10**6,
]  # fmt: skip
NOT_TEXT = [5, True, 1.5, ["shufflenet_v2_x0_5"], {"name": "evil.py"}, [[[[[[[[[[]]]]]]]]]]]


def test_what_the_data_name_is_looked_up_and_never_run(hostile, states):
    """In run.json and in a checkpoint: names of files, modules and hubs; nothing of the folder is compiled or run."""
    evil = hostile / "run" / "evil.py"
    evil.write_text(f"open({str(hostile / 'CANARY-evil')!r}, 'w')\nNet = exit\n")
    for name in ("evil.py", "torchvision:evil.py", "timm:evil.py", "torchvision:evil", "hf_hub:a"):
        (hostile / name).write_text(evil.read_text())
    places = []
    for number, name in enumerate([*NAMES, *NOT_TEXT]):
        for kind in ("run.json", "arch"):
            places.append(hostile / f"{kind}-{number}")
            places[-1].mkdir()
            checkpoint = {"epoch": 1, "state_dict": states[0]} | ({"arch": name} if kind == "arch" else {})
            torch.save(checkpoint, places[-1] / "epoch_1.pth")
            (places[-1] / "evil.py").write_text(evil.read_text())
            if kind == "run.json":
                (places[-1] / "run.json").write_text(json.dumps({"model": name}))
    command = [sys.executable, "-P", "-c", WATCH]
    given = json.dumps([str(place) for place in places])
    done = subprocess.run(command, cwd=hostile, input=given, capture_output=True, text=True, check=True)
    *outcomes, seen = map(json.loads, done.stdout.splitlines())
    assert seen == []
    assert not list(hostile.glob("CANARY-*"))
    for number, (place, (code, output, error)) in enumerate(zip(places, outcomes, strict=True)):
        if place.name.startswith("run.json") and number >= 2 * len(NAMES):
            assert (code, error) == (1, "SystemExit(1)"), (place, output)
            assert re.match(r"posthoc: .*run\.json: model is .*; expected a text\.\n", output)
            continue
        assert (code, error) == (0, "None"), (place, output)
        if place.name.startswith("arch"):
            assert "shufflenet_v2_x0_5 (recognised)" in output
        else:
            assert "which is no model of torchvision or timm; pass --model if it is yours" in output
            assert len(output) < 2000
    assert "run.json names 'run/evil.py', which" in outcomes[0][1]
