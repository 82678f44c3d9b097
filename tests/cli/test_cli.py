"""The commands as a user types them: real subprocesses for the path, every bad input once."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from posthoc.cli import main


def posthoc(*words, cwd=None, check=True):
    command = [sys.executable, "-c", "from posthoc.cli import main; main()", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=check)


def test_the_two_commands(run_folder, probe_file, here):
    extracted = posthoc("extract", run_folder, "--probe", f"npz:{probe_file}", cwd=here)
    assert extracted.stdout.splitlines()[-1] == "activations.h5"
    assert "replaying 5/5 epoch-004.safetensors" in extracted.stderr
    measured = posthoc("metrics", "activations.h5", "--csv", cwd=here)
    assert "r(Psi, acc)" in measured.stdout
    assert "\r" not in extracted.stderr + measured.stderr
    assert sorted(path.name for path in here.iterdir()) == ["activations.h5", "metrics.csv", "metrics.json"]
    content = json.loads((here / "metrics.json").read_text())
    assert [row["epoch"] for row in content["checkpoints"]] == [0, 1, 2, 3, 4]
    assert content["measures"]["integration"]["nulls"]["white"]["p"][4] >= 0.01
    assert "M " in measured.stdout
    assert "with pure noise, independent in every channel" in measured.stdout
    assert "another order of the same images" in measured.stdout
    assert "H_eff" in run("inspect", "metrics.json").stdout
    audited = run("audit", "activations.h5", "--draws", "10")
    assert "H_eff responds to" in audited.stdout
    assert (here / "audit.json").exists()


def test_help_waits_for_nothing_heavy():
    code = (
        "import sys; from click.testing import CliRunner; from posthoc.cli import main; import posthoc\n"
        "assert CliRunner().invoke(main, ['--help']).exit_code == 0\n"
        "print(sorted({'torch', 'numpy', 'numba', 'h5py', 'rich', 'scipy'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words):
    return CliRunner().invoke(main, list(map(str, words)))


def test_dry_run_shows_the_plan_and_writes_nothing(run_folder, probe_file, here):
    done = run("extract", run_folder, "--probe", f"npz:{probe_file}", "--dry-run")
    assert done.exit_code == 0
    assert "shufflenet_v2_x0_5 (from run.json), 10 outputs" in done.stdout
    assert "stage2 (32 of 48)" in done.stdout
    assert "epoch-004.safetensors      4    28   0.5000" in done.stdout
    assert not list(here.iterdir())


def test_inspect(run_folder, activations_file):
    folder = run("inspect", run_folder).stdout
    assert "5 checkpoints" in folder
    assert "shufflenet_v2_x0_5" in folder
    layers = run("inspect", run_folder, "--layers").stdout
    assert "stage2.0.branch1.0" in layers
    single = run("inspect", run_folder / "epoch-001.safetensors").stdout
    assert "conv1.0.weight" in single
    activations = run("inspect", activations_file).stdout
    assert "128 channels, 300 images" in activations


@pytest.fixture
def broken(run_folder, probe_file, states, here):
    """Folders and files that are wrong, each in its own way."""
    (here / "empty").mkdir()
    (here / "two").mkdir()
    for name, state in zip(("a_1.pt", "a_2.pt", "b_1.pt"), states, strict=False):
        torch.save(state, here / "two" / name)
    shutil.copytree(run_folder, here / "truncated")
    whole = (here / "truncated" / "epoch-002.safetensors").read_bytes()
    (here / "truncated" / "epoch-002.safetensors").write_bytes(whole[: len(whole) // 2])
    (here / "foreign").mkdir()
    torch.save({"block.weight": torch.ones(3, 3)}, here / "foreign" / "1.pt")
    (here / "text.h5").write_text("not HDF5")
    (here / "there.h5").write_text("something of the user's")
    (here / "run").symlink_to(run_folder)
    (here / "probe.npz").symlink_to(probe_file)
    return here


PROBE = ("--probe", "npz:probe.npz")


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("extract", "empty", *PROBE), 1, "No checkpoint in empty"),
        (("extract", "nowhere", *PROBE), 1, "No such file or folder: nowhere"),
        (("extract", "two", *PROBE), 1, "more than one run"),
        (("extract", "truncated", *PROBE), 1, "epoch-002.safetensors is damaged or cut short"),
        (("extract", "foreign", *PROBE), 1, "fit no known model"),
        (("extract", "run", "--probe", "cifar10"), 1, "--download"),
        (("extract", "run", "--probe", "npz:none.npz"), 1, "No such file: none.npz"),
        (("extract", "run", *PROBE, "--images", "301"), 1, "holds only 300 samples"),
        (("extract", "run", *PROBE, "--device", "cuda:99"), 1, "no such device"),
        (("extract", "run", *PROBE, "--device", "toaster"), 2, "no such device"),
        (("extract", "run", *PROBE, "-o", "there.h5"), 1, "there.h5 exists already; pass --force"),
        (("extract", "run", *PROBE, "-o", "text.h5/a.h5"), 1, "Cannot write"),
        (("extract", "run", *PROBE, "--layers", "layer9"), 2, "no such hook point"),
        (("extract", "run", *PROBE, "--signals", "median"), 2, "Unknown signal median"),
        (("extract", "run", *PROBE, "--seed", str(2**64 - 1)), 2, "give a number from 0 to"),
        (("extract", "run", *PROBE, "--model", "resnet18"), 1, "do not fit resnet18"),
        (("extract", "run", *PROBE, "--channels", "few"), 2, "give a number"),
        (("extract", "run", *PROBE, "--normalize", "celeba"), 2, "Unknown normalisation"),
        (("extract", "run", "--probe", "mnist"), 2, "Unknown data set"),
        (("extract", "run"), 2, "--probe"),
        (("metrics", "text.h5"), 1, "text.h5 is not an HDF5 file"),
        (("metrics", "none.h5"), 1, "none.h5 does not exist"),
        (("metrics", "replayed.h5", "-o", "there.h5"), 1, "there.h5 exists already"),
        (("metrics", "replayed.h5", "--sigma-h", "0"), 2, "sigma_h"),
        (("metrics", "replayed.h5", "--axis", "depth"), 1, "4 layers are too few"),
        (("metrics", "replayed.h5", "--axis", "depth", "--protocol", "published"), 2, "No protocol 'published'"),
        (("metrics", "replayed.h5", "-o", "out.csv", "--csv"), 2, "give it another ending"),
        (("metrics", "replayed.h5", "-o", "replayed.h5", "--force"), 2, "replayed.h5 is the input"),
        (("metrics", "replayed.h5", "--h-opt", "nan"), 2, "must be finite"),
        (("extract", "run", *PROBE, "--layers", ","), 2, "No layers asked for"),
        (("audit", "replayed.h5", "-o", "there.h5"), 1, "there.h5 exists already"),
        (("metrics", "torn.h5"), 1, "damaged or cut short"),
        (("inspect", "probe.npz/x.json"), 1, "No such file"),
        (("inspect", "list.json"), 1, "not a metrics file"),
        (("inspect", "replayed.h5", "--layers"), 2, "--layers does nothing for an activations file"),
        (("inspect", "run", "--probe", "cifar10"), 2, "--probe needs --layers"),
        (("frobnicate",), 2, "No such command"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(broken, activations_file, words, code, says):
    shutil.copy(activations_file, broken / "replayed.h5")
    (broken / "torn.h5").write_bytes(activations_file.read_bytes()[:50_000])
    (broken / "list.json").write_text("[]")
    before = {path: path.read_bytes() for path in broken.rglob("*") if path.is_file()}
    done = run(*words)
    assert done.exit_code == code
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    if code == 1:
        assert done.stderr.splitlines()[-1].startswith("posthoc: ")
    assert {path: path.read_bytes() for path in broken.rglob("*") if path.is_file()} == before


def test_force_replaces(run_folder, probe_file, here):
    (here / "a.h5").write_text("old")
    assert run("extract", run_folder, "--probe", f"npz:{probe_file}", "-o", "a.h5", "--force").exit_code == 0
    assert run("metrics", "a.h5", "--nulls", "0").exit_code == 0
    assert run("metrics", "a.h5", "--nulls", "0").exit_code == 1
    assert run("metrics", "a.h5", "--nulls", "5", "--force", "--protocol", "default", "--smooth", "2").exit_code == 0
    assert np.isfinite(json.loads((here / "a.metrics.json").read_text())["measures"]["hurst"]["value"][1])


def test_force_with_a_shard_makes_its_own_parts_anew(run_folder, probe_file, here):
    words = ("extract", run_folder, "--probe", f"npz:{probe_file}", "-o", "b.h5")
    for shard in ("1/2", "2/2"):
        assert run(*words, "--shard", shard).exit_code == 0
    before = {path.name: path.stat().st_mtime_ns for path in (here / "b.h5.parts").glob("*.h5")}
    again = run(*words, "--shard", "1/2", "--force")
    assert again.exit_code == 0
    assert "kept" not in again.stderr
    after = {path.name: path.stat().st_mtime_ns for path in (here / "b.h5.parts").glob("*.h5")}
    changed = {name for name in after if after[name] != before[name]}
    assert after.keys() == before.keys()
    assert changed < before.keys()
    assert "kept" in run(*words, "--shard", "2/2").stderr


def test_debug_shows_the_traceback(here):
    done = posthoc("--debug", "metrics", "none.h5", check=False)
    assert "Traceback" in done.stderr
    assert done.returncode == 1


def test_several_files_are_measured_and_one_bad_one_does_not_stop_the_others(tmp_path):
    good = Path(__file__).parents[1] / "fixtures" / "v2" / "activations.h5"
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "activations.h5").write_bytes(good.read_bytes())
    (tmp_path / "bad.h5").write_text("nothing")
    files = [str(tmp_path / place) for place in ("a/activations.h5", "bad.h5", "b/activations.h5")]
    how = ["--nulls", "0", "--measures", "metastability"]
    done = CliRunner().invoke(main, ["metrics", *files, *how])
    assert done.exit_code == 3, done.output
    assert f"skipped {files[1]}: " in done.stderr
    assert [line for line in done.stdout.splitlines() if line.endswith(".h5:")] == [f"{files[0]}:", f"{files[2]}:"]
    assert all((tmp_path / name / "metrics.json").exists() for name in ("a", "b"))
    (tmp_path / "worse.h5").write_text("nothing")
    none = CliRunner().invoke(main, ["metrics", files[1], str(tmp_path / "worse.h5"), *how])
    assert (none.exit_code, none.stderr.count("skipped ")) == (1, 2)
    both = CliRunner().invoke(main, ["metrics", files[0], files[2], *how, "--json", "--force"])
    assert both.exit_code == 0
    assert [each["input"]["path"] for each in json.loads(both.stdout)] == [files[0], files[2]]
    refused = CliRunner().invoke(main, ["metrics", *files, "-o", "one.json"])
    assert (refused.exit_code, "-o names one output" in refused.stderr) == (2, True)
