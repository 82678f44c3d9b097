"""State dicts in every form that is read, and files that are none."""

import pytest
import torch
from hostile import safetensors
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from posthoc.errors import PosthocError
from posthoc.replay.checkpoint import read_header, read_weights
from posthoc.replay.formats.safetensors import TYPES
from posthoc.replay.naming import canonical

STATE = {"conv.weight": torch.arange(6.0).reshape(2, 3), "bn.num_batches_tracked": torch.tensor(5)}


def prefixed(prefix):
    return {prefix + name: tensor for name, tensor in STATE.items()}


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        {"state_dict": STATE, "epoch": 3, "optimizer": {"state": {0: {"momentum_buffer": torch.ones(2)}}}},
        {"model": prefixed("module."), "epoch": 3},
        {"model_state_dict": prefixed("_orig_mod.module."), "epoch": 3.0},
        prefixed("module._orig_mod.module."),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_torch_files(tmp_path, content, zipped):
    path = tmp_path / "a.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    header, weights = read_header(path), read_weights(path)
    assert header.epoch == (3 if "epoch" in content else None)
    assert header.recorded == {}
    short = canonical(header.shapes)
    assert {short[name]: shape for name, shape in header.shapes.items()} == {
        "conv.weight": (2, 3),
        "bn.num_batches_tracked": (),
    }
    assert list(weights) == list(header.shapes)
    assert all(torch.equal(weights[name], STATE[short[name]]) for name in weights)


def test_safetensors(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file(prefixed("module."), path, {"epoch": "4", "step": "12", "val_loss": "0.5", "note": "warm"})
    header = read_header(path)
    assert (header.epoch, header.step, header.recorded) == (4, 12, {"val_loss": 0.5})
    weights = read_weights(path)
    assert all(torch.equal(weights[f"module.{name}"], STATE[name]) for name in STATE)


def entry(kind, shape, start, end):
    return {"dtype": kind, "shape": shape, "data_offsets": [start, end]}


def test_safetensors_of_all_types_are_those_of_the_library(tmp_path):
    """Among them tensors without numbers and without sides, in any order."""
    content = bytes(range(1, 129))
    header = {"none": entry("F32", [0, 3], 0, 0), "last": entry("I8", [], 127, 128), "flag": entry("BOOL", [1], 0, 1)}
    place = 1
    for name, kind in TYPES.items():
        if name not in ("BOOL", "F8_E8M0"):  # of which the library has no tensor
            header = {name: entry(name, [2, 1], place, place + 2 * kind.itemsize)} | header
            place += 2 * kind.itemsize
    header["rest"] = entry("U8", [127 - place], place, 127)
    path = tmp_path / "a.safetensors"
    path.write_bytes(safetensors(header, content))
    ours, theirs = read_weights(path), load_file(path)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert (ours[name].dtype, ours[name].shape) == (tensor.dtype, tensor.shape)
        assert bytes(ours[name].reshape(-1).view(torch.uint8)) == bytes(tensor.reshape(-1).view(torch.uint8))


@pytest.mark.parametrize(
    "header",
    [
        {"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 8, 12)},
        {"a": entry("F32", [2], 4, 12)},
        {"a": entry("F32", [2], 0, 8)},
    ],
)
def test_safetensors_with_bytes_of_no_tensor_are_refused_as_by_the_library(tmp_path, header):
    path = tmp_path / "a.safetensors"
    path.write_bytes(safetensors(header, bytes(12)))
    with pytest.raises(SafetensorError):
        load_file(path)
    with pytest.raises(PosthocError, match=r"damaged or cut short .it has bytes that belong to no tensor"):
        read_header(path)


def test_safetensors_of_types_that_are_not_read(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(safetensors({"a": entry("F4", [24], 0, 12)}, bytes(12)))
    with pytest.raises(
        PosthocError, match="is not read: it has tensors of type 'F4'; save them as another type, such as"
    ):
        read_header(path)


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, torch.ones(3)])
def test_what_is_no_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(PosthocError, match="state dict"):
        read_header(tmp_path / "a.pt")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("kept", [0, 7, 0.5, 0.99])
@pytest.mark.parametrize("zipped", [True, False])
def test_files_cut_short_are_refused(tmp_path, suffix, kept, zipped):
    path = tmp_path / f"a{suffix}"
    if suffix == ".pt":
        torch.save(STATE, path, _use_new_zipfile_serialization=zipped)
    else:
        save_file(STATE, path)
    content = path.read_bytes()
    path.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    with pytest.raises(PosthocError, match=r"a\.\w+ is damaged or cut short"):
        read_weights(path)
    with pytest.raises(PosthocError, match="damaged or cut short"):
        read_header(path)


def test_absent_files_are_refused(tmp_path):
    for suffix in (".pt", ".safetensors"):
        with pytest.raises(PosthocError, match="No such file"):
            read_header(tmp_path / f"none{suffix}")
