"""reproduction.train: checkpoints and nothing else, the same run however often it is interrupted."""

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file

from reproduction.train import main, random_crop

SCRIPT = Path(__file__).parents[1] / "reproduction" / "train.py"


@pytest.fixture(autouse=True)
def _as_before():
    """Training sets what holds for the whole process."""
    deterministic, benchmark = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    yield
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = benchmark


def train(*words, check=True):
    """In this process; what it printed, and its exit code."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(word) for word in words])
        except SystemExit as stopped:
            code = stopped.code
    assert not (check and code), err.getvalue()
    return SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """60 images to train on, 30 to validate on."""
    random = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("data") / "small.npz"
    arrays = {}
    for split, count in (("train", 60), ("test", 30)):
        arrays[f"x_{split}"] = random.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        arrays[f"y_{split}"] = np.arange(count) % 5
    np.savez(path, **arrays)
    return path


def assert_same_weights(first, second):
    a, b = load_file(first), load_file(second)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


def test_a_resumed_run_is_the_uninterrupted_run(data, tmp_path):
    recipe = ("mobilenet_v2-cifar10", "--data", f"npz:{data}", "--seed", 3, "--device", "cpu")  # flips and dropout
    words = map(str, (*recipe, "--epochs", 2, "--out", tmp_path / "whole"))
    subprocess.run([sys.executable, SCRIPT, *words], capture_output=True, check=True)
    train(*recipe, "--epochs", 1, "--out", tmp_path / "cut")
    done = train(*recipe, "--epochs", 2, "--out", tmp_path / "cut")
    assert "going on after epoch 1" in done.stdout
    names = [f"epoch-{epoch:03d}.safetensors" for epoch in range(3)]
    for folder in ("whole", "cut"):
        assert sorted(path.name for path in (tmp_path / folder).iterdir()) == [".resume.pt", *names, "run.json"]
    assert_same_weights(tmp_path / "whole" / names[2], tmp_path / "cut" / names[2])
    with safe_open(tmp_path / "whole" / names[2], "np") as file:
        said = file.metadata()
    assert (said["epoch"], said["step"]) == ("2", "2")
    assert {"train_loss", "val_loss", "val_acc"} <= said.keys()
    about = json.loads((tmp_path / "whole" / "run.json").read_text())
    assert (about["model"], about["num_classes"], about["seed"]) == ("mobilenet_v2", 5, 3)
    assert about["normalization"]["mean"] == [0.4914, 0.4822, 0.4465]

    # Killed between a checkpoint and the state to resume from: the last epoch is trained again, to the same weights.
    (tmp_path / "cut" / names[2]).unlink()
    (tmp_path / "cut" / ".resume.pt").unlink()
    train(*recipe, "--epochs", 2, "--out", tmp_path / "cut")
    assert_same_weights(tmp_path / "whole" / names[2], tmp_path / "cut" / names[2])


def test_crops_are_windows_of_the_reflected_image():
    x = torch.randn(40, 3, 8, 8)
    padded = torch.nn.functional.pad(x, (4,) * 4, mode="reflect").unfold(2, 8, 1).unfold(3, 8, 1)
    crops = random_crop(x, torch.Generator().manual_seed(0))
    same = (padded == crops[:, :, None, None]).flatten(4).all(4).all(1)
    assert (same.flatten(1).sum(1) == 1).all()
    assert len({tuple(offset.tolist()) for offset in same.nonzero()[:, 1:]}) > 20


def test_another_run_in_the_same_folder_is_refused(data, tmp_path):
    recipe = ("digits", "--data", f"npz:{data}", "--epochs", 1, "--device", "cpu", "--out", tmp_path)
    train(*recipe)
    done = train(*recipe, "--seed", 7, check=False)
    assert done.returncode == 1
    assert "holds another run (seed 42 there, 7 asked)" in done.stderr


def test_missing_data_and_weights_say_how_to_get_them(data, tmp_path):
    done = train("resnet18-cifar10", "--data-root", tmp_path, "--out", tmp_path / "run", check=False)
    assert "pass --download" in done.stderr
    done = train("vit_b_16-cifar10", "--data", f"npz:{data}", "--out", tmp_path / "run", check=False)
    assert "starts from ImageNet weights" in done.stderr
    assert done.returncode == 1


def test_an_absent_device_leaves_nothing_and_no_epoch_is_the_untrained_network(data, tmp_path):
    recipe = ("digits", "--data", f"npz:{data}", "--out", tmp_path / "run")
    done = train(*recipe, "--device", "cuda:99", check=False)
    assert done.returncode == 1
    assert "no such device" in done.stderr
    assert not (tmp_path / "run").exists()
    train(*recipe, "--device", "cpu", "--epochs", 0)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["epoch-000.safetensors", "run.json"]
