"""Files that are no checkpoints are named by what they are; files that cannot be opened hang nothing."""

import io
import json
import os
import pickle
import re
import socket
import struct
import tarfile
import warnings
import zipfile
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from posthoc.cli import main
from posthoc.errors import PosthocError
from posthoc.replay.checkpoint import read_header
from posthoc.replay.formats.table import is_named_like_a_checkpoint, looks_like_a_checkpoint
from posthoc.replay.layout import find_run
from posthoc.replay.strangers import NoWeightsError, StrangerError, stranger


def archive(*names):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as file:
        for name in names:
            file.writestr(name, "{}")
    return data.getvalue()


def written(write):
    data = io.BytesIO()
    write(data)
    return data.getvalue()


def keras():
    data = io.BytesIO()
    with h5py.File(data, "w") as file:
        file["model_weights/conv/kernel"] = np.zeros(3)
    return data.getvalue()


def tar():
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as file:
        file.addfile(tarfile.TarInfo("pickle"))
    return data.getvalue()


STRANGERS = {
    "lfs.pth": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 44730000\n", "Git LFS pointer.*git lfs pull"),
    "page.pt": (b"\n<!DOCTYPE html><html><title>404</title></html>", "HTML or XML page.*download it again"),
    "m.onnx": (bytes([8, 7, 18, 7]) + b"pytorch", "ONNX network"),
    "m.keras": (archive("config.json", "metadata.json", "model.weights.h5"), "Keras archive"),
    "m.h5": (keras(), "HDF5 file"),
    "activations.h5": (
        (Path(__file__).parents[1] / "fixtures" / "v2" / "activations.h5").read_bytes(),
        "activations file, which posthoc extract wrote: give the checkpoints",
    ),
    "rl_model_1000_steps.zip": (archive("data", "pytorch_variables.pth"), r"Stable-Baselines3 without a policy\.pth"),
    "flax_model.msgpack": (b"\x82\xa6params\x81\xa7Dense_0\x80\xa4step\x05", "MessagePack file, such as Flax writes.*safetensors"),
    "m.tflite": (b"\x1c\0\0\0TFL3" + bytes(90), "TensorFlow Lite"),
    "code.zip": (archive("train.py"), "zip archive, but not one of torch.save"),
    "a.npz": (written(lambda file: np.savez(file, w=np.zeros(3))), "NumPy arrays"),
    "a.npy": (written(lambda file: np.save(file, np.zeros(3))), "NumPy array"),
    "scaler.pkl": (b"\x80\x04\x95\xbf\0\0\0\0\0\0\0\x8c\x13joblib.numpy_pickle\x94\x8c\x11NumpyArrayWrapper\x94\x93" + bytes(90), "joblib"),
    "packed.pkl": (zlib.compress(pickle.dumps({"a": 1}), 3), "joblib"),
    "a.gguf": (b"GGUF\3\0\0\0" + bytes(90), "GGUF"),
    "train.bin": (np.arange(3, 900, dtype=np.uint16).tobytes(), "none of the formats"),
    "archive.tar": (tar(), "tar archive: unpack"),
    "a.pth": (b"\x1f\x8b\x08\0" + bytes(90), "gzip"),
    "cp.ckpt.data-00000-of-00001": (bytes(90), "TensorFlow"),
    "cp.ckpt.index": (bytes(90) + struct.pack("<Q", 0xDB4775248B80FB57), "TensorFlow"),
    "checkpoint": (b'model_checkpoint_path: "cp.ckpt"\n', "TensorFlow"),
    "args.pt": (b'{"lr": 0.1}', "JSON text"),
    "notes.pth": (b"epochs were fine, I think\n" * 9, "text file"),
    "lua.t7": (struct.pack("<ii", 4, 1) + bytes(40), "Torch7"),
}  # fmt: skip


FOLDERS = {
    "_CHECKPOINT_METADATA": r"a checkpoint of Orbax \(JAX\): .*safetensors\.flax\.save_file",
    "orbax.checkpoint": "a checkpoint of Orbax",
    "saved_model.pb": "a SavedModel of TensorFlow: load it there",
    ".zgroup": "a store of Zarr",
}


@pytest.mark.parametrize("name", FOLDERS)
def test_folders_of_other_libraries_are_named(tmp_path, name):
    for step in (1000, 2000):
        (tmp_path / "run" / str(step) / "d").mkdir(parents=True)
        (tmp_path / "run" / str(step) / name).write_text("{}")
        (tmp_path / "run" / str(step) / "d" / "model.bin").write_bytes(b"0")
    with pytest.raises(
        PosthocError, match=rf"None of the 2 files in .*run is a checkpoint .*The first: .*1000 is {FOLDERS[name]}"
    ):
        find_run(tmp_path / "run")
    with pytest.raises(StrangerError, match=rf"2000 is {FOLDERS[name]}"):
        find_run(tmp_path / "run" / "2000")
    save_file({"w": torch.ones(3)}, tmp_path / "run" / "step_5.safetensors")
    run = find_run(tmp_path / "run")
    assert len(run.checkpoints) == 1
    assert [path.name for path, _ in run.apart] == ["1000", "2000"]


def test_arrays_of_jax_are_named(tmp_path):
    content = pickle.dumps({"w": 1}, 0).replace(b"I1\n", b"cjax._src.array\n_reconstruct_array\n(tR")
    (tmp_path / "a.pkl").write_bytes(content)
    with pytest.raises(NoWeightsError, match="holds arrays of JAX; save them by name with safetensors"):
        read_header(tmp_path / "a.pkl")


@pytest.mark.parametrize("name", STRANGERS)
def test_a_stranger_is_named_by_what_it_is(tmp_path, name):
    content, what = STRANGERS[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(StrangerError, match=rf"{re.escape(name)} is .*{what}") as error:
        read_header(tmp_path / name)
    assert "damaged" not in str(error.value)
    assert isinstance(error.value, NoWeightsError)
    assert not looks_like_a_checkpoint(tmp_path / name)


def test_what_is_cut_short_is_damaged(tmp_path):
    torch.save({"w": torch.randn(999)}, tmp_path / "zip.pt")
    torch.save({"w": torch.randn(999)}, tmp_path / "older.pt", _use_new_zipfile_serialization=False)
    save_file({"w": torch.randn(999)}, tmp_path / "a.safetensors")
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps({"w": torch.randn(999)}))
    for path in list(tmp_path.iterdir()):
        path.write_bytes(path.read_bytes()[:1500])
        with pytest.raises(PosthocError, match="damaged or cut short") as error:
            read_header(path)
        assert not isinstance(error.value, StrangerError)
    for content, reason in ((b"", "it is empty"), (b"hello", "it holds what torch.save does not write")):
        (tmp_path / "plain.pkl").write_bytes(content)
        with pytest.raises(PosthocError, match=re.escape(f"damaged or cut short ({reason})")):
            read_header(tmp_path / "plain.pkl")


@pytest.mark.parametrize("name", ["net", "net.t7", "net.PTH", "net.Pt", "net.model"])
@pytest.mark.parametrize("form", ["zip", "older", "safetensors"])
def test_checkpoints_are_recognised_by_content(tmp_path, name, form):
    state = {"w": torch.arange(6.0)}
    path = tmp_path / name
    if form == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form == "zip")
    assert looks_like_a_checkpoint(path)
    assert read_header(path).shapes == {"w": (6,)}
    assert is_named_like_a_checkpoint(path) == (name not in ("net", "net.model"))


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    (tmp_path / "folder.pth").mkdir()
    (tmp_path / "device.pth").symlink_to("/dev/zero")
    (tmp_path / "dangling.pth").symlink_to("nowhere")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(tmp_path / "socket.pth"))
    kinds = {
        "pipe": "a pipe",
        "device": "a device",
        "socket": "a socket",
        "folder": "no weights",
        "dangling": "No such",
    }
    for name, what in kinds.items():
        with pytest.raises(PosthocError, match=what):
            read_header(tmp_path / f"{name}.pth")
        assert not looks_like_a_checkpoint(tmp_path / f"{name}.pth")


@pytest.mark.parametrize("second", ["archive/data/0", "archive/DATA/0", "archive/data.pkl", "other/data.pkl"])
def test_an_archive_that_readers_would_take_for_two(tmp_path, second):
    """torch takes one of two entries of a name, and capitals for small letters; another reader takes the other."""
    path = tmp_path / "archive.pt"
    torch.save({"w": torch.zeros(4)}, path)
    with zipfile.ZipFile(path, "a") as file, warnings.catch_warnings(action="ignore"):
        root = file.namelist()[0].split("/")[0]
        file.writestr(second.replace("archive", root), np.ones(4, np.float32).tobytes())
    with pytest.raises(PosthocError, match="is not read: its archive has an entry of one name twice"):
        read_header(path)


def test_a_header_whose_length_begins_like_json_is_no_json(tmp_path):
    head = json.dumps({"a.weight": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}).ljust(ord("{"))
    path = tmp_path / "epoch_3.safetensors"
    path.write_bytes(len(head).to_bytes(8, "little") + head.encode() + bytes(16))
    done = CliRunner().invoke(main, ["inspect", str(path)])
    assert done.exit_code == 0
    assert "a.weight  2x2" in done.output


@pytest.mark.parametrize("length", [376, 40056, 0x121008])
def test_a_header_whose_length_begins_like_another_kind_of_file_is_safetensors(tmp_path, length):
    """As joblib's files, twice, and as an ONNX network."""
    entry = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
    head = json.dumps({"__metadata__": {"epoch": "3"}, "a.weight": entry}).ljust(length)
    path = tmp_path / "a.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + head.encode() + bytes(16))
    assert stranger(path, path.read_bytes()[:4096], b"") is not None
    assert read_header(path).epoch == 3
    assert looks_like_a_checkpoint(path)


def test_a_shard_is_no_index_again(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"w": "a.bin"}}')
    (tmp_path / "a.bin").write_text('{"weight_map": {"w": "a.bin"}}')
    with pytest.raises(PosthocError, match=r"names 'a\.bin', which is not one file with weights"):
        read_header(index)


def test_an_index_is_recognised_by_content(tmp_path):
    save_file({"w": torch.ones(3)}, tmp_path / "part.safetensors")
    index = tmp_path / "weights.json"
    index.write_text('{"metadata": {}, "weight_map": {"w": "part.safetensors"}}')
    assert read_header(index).shapes == {"w": (3,)}
    assert CliRunner().invoke(main, ["inspect", str(index)]).exit_code == 0
