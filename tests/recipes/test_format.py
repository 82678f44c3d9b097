"""A checkpoint format that a module outside the package registers is read by every command."""

import hashlib
import json

import h5py
import numpy as np
import pytest
import torch
from recipes.commands import run, run_alone
from recipes.toy_format import MAGIC, save, save_folder

import posthoc

TOY = "recipes.toy_format"


@pytest.mark.parametrize("form", ["file", "folder"])
def test_a_toy_format_is_inspected_and_extracted(form, states, run_folder, probe_file, tmp_path):
    folder = tmp_path / "toys"
    folder.mkdir()
    for epoch, state in enumerate(states):
        if form == "file":
            save(state, folder / f"moment{epoch}.toy", epoch=epoch, val_acc=0.1 + 0.1 * epoch)
        else:
            save_folder(state, folder / f"moment{epoch}", epoch=epoch, val_acc=0.1 + 0.1 * epoch)
    (folder / "notes.toy").write_text("no checkpoint at all, but a note\n")
    shown = (run_alone if form == "file" else run)(TOY, "inspect", folder)
    assert "5 checkpoints, epoch 0 to epoch 4" in shown
    assert "notes.toy (a text file)" in shown
    options = ("--probe", f"npz:{probe_file}", "--normalize", "none", "--images", "64", "--model", "shufflenet_v2_x0_5")
    run(TOY, "extract", folder, *options, "-o", tmp_path / "toy.h5")
    run(TOY, "extract", run_folder, *options, "-o", tmp_path / "safetensors.h5")
    with (
        posthoc.open_activations(tmp_path / "toy.h5") as toys,
        posthoc.open_activations(tmp_path / "safetensors.h5") as others,
    ):
        assert toys.epochs.tolist() == others.epochs.tolist() == [0, 1, 2, 3, 4]
        np.testing.assert_array_equal(toys.recorded["val_acc"], others.recorded["val_acc"])
        np.testing.assert_array_equal(toys.loss, others.loss)
        for epoch in range(5):
            np.testing.assert_array_equal(toys.read("mean", epoch), others.read("mean", epoch))
    with h5py.File(tmp_path / "toy.h5") as file:
        recorded = file["checkpoint/sha256"].asstr()[3]
    if form == "file":
        assert recorded == hashlib.sha256((folder / "moment3.toy").read_bytes()).hexdigest()
    else:
        files = [folder / "moment3" / name for name in ("weights", "toy.log")]
        lines = "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files)
        assert recorded == hashlib.sha256(lines.encode()).hexdigest()


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b'{"tensors": {"w": ["float32", [3]]}}\n' + bytes(11), r"is damaged or cut short (it ends inside a tensor)"),
        (b"{\n", "is damaged or cut short"),
        (b'{"tensors": {"w": ["float32", [-1]]}}\n', "is damaged or cut short (a tensor has no valid shape)"),
        (b"[" * 10_000 + b"\n", "nests values more than 64 deep"),
        (json.dumps({"tensors": {k: ("bool", [0]) for k in range(9000)}}).encode() + b"\n", "describes more than"),
    ],
)
def test_a_hostile_toy_is_refused_in_one_sentence(content, what, tmp_path):
    (tmp_path / "a.toy").write_bytes(MAGIC + content)
    error = run(TOY, "inspect", tmp_path / "a.toy", code=1)
    assert what in error
    assert error.count("\n") <= 3


def test_its_name_says_what_a_toy_was_whose_start_is_damaged(tmp_path):
    save({"w": torch.ones(3)}, tmp_path / "a.toy")
    content = bytearray((tmp_path / "a.toy").read_bytes())
    content[:2] = b"\x80\x04"
    (tmp_path / "a.toy").write_bytes(content)
    assert "is damaged or cut short (its first line is another)" in run(TOY, "inspect", tmp_path / "a.toy", code=1)
