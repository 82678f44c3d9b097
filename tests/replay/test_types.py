"""Tensors of every type are replayed as what they are, or refused by name; numbers and keys of every kind."""

import os
import shutil
import threading

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.ao.nn.quantized.dynamic import Linear as QuantisedLinear

import posthoc
from posthoc.errors import PosthocError
from posthoc.files import sha256
from posthoc.replay import pipeline
from posthoc.replay.checkpoint import MOST_NUMBERS, read_header, read_weights
from posthoc.replay.formats.table import digest
from posthoc.replay.layout import find_run
from posthoc.replay.planning import plan_extraction
from posthoc.replay.run import run_extraction
from posthoc.replay.source import AT_ONCE, Source
from posthoc.replay.strangers import NoWeightsError

MODEL = f"{__file__}:Net"


class Net(nn.Module):
    """A network with buffers of whole numbers, and of floating point numbers that some files hold as whole ones."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 10)
        self.register_buffer("index", torch.arange(4).flip(0))
        self.register_buffer("mask", torch.tensor([True, True, False, True]))
        self.register_buffer("anchors", torch.tensor([1.0, 2.0, 3.0, 4.0]))

    def forward(self, x):
        x = self.bn(self.conv(x)).relu().mean((2, 3))
        return self.fc((x * self.mask * self.anchors)[:, self.index])


@pytest.fixture(scope="module")
def saved():
    torch.manual_seed(0)
    states = []
    for _ in range(2):
        net = Net()
        net.bn.running_mean.normal_()
        states.append(net.state_dict())
    return states


def extracted(states, change, probe_file, folder):
    """Loss of each checkpoint as posthoc replays it, and as torch's own loading does."""
    folder.mkdir()
    ours, net = [change(dict(state)) for state in states], Net().eval()
    losses = []
    with np.load(probe_file) as probe, torch.no_grad():
        x = torch.from_numpy(probe["images"]).permute(0, 3, 1, 2).float() / 255
        for k, state in enumerate(ours):
            torch.save(state, folder / f"epoch_{k}.pt")
            net.load_state_dict(state)
            losses.append(nn.functional.cross_entropy(net(x), torch.from_numpy(probe["labels"]).long()).item())
    path = posthoc.extract(folder, f"npz:{probe_file}", folder / "a.h5", model=MODEL, normalize="none", layers=["conv"])
    with posthoc.open_activations(path) as activations:
        return list(activations.loss), losses


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state,
        lambda state: {name: tensor.half() for name, tensor in state.items()},
        lambda state: {**state, "conv.weight": state["conv.weight"].to(torch.float8_e4m3fn)},
        lambda state: {**state, "fc.weight": state["fc.weight"].to(torch.float8_e5m2)},
        lambda state: {**state, "anchors": state["anchors"].long(), "index": state["index"].to(torch.int16)},
        lambda state: {**state, "mask": state["mask"].to(torch.uint8), "fc.bias": state["fc.bias"].double()},
    ],
    ids=["own", "half", "float8", "float8 of five bits", "whole buffers", "mask of bytes"],
)
def test_types_that_torch_loads_alike_give_the_same_network(saved, change, probe_file, tmp_path):
    ours, theirs = extracted(saved, change, probe_file, tmp_path / "run")
    assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("name", ["int8", "uint8", "bool", "int64", "complex64", "complex128", "bits8"])
@pytest.mark.parametrize("form", ["torch", "safetensors"])
def test_weights_of_other_types_are_refused_by_name(saved, name, form, probe_file, tmp_path):
    if form == "safetensors" and name in ("complex128", "bits8"):
        return  # no such type in it
    weight = saved[0]["conv.weight"]
    other = weight.view(torch.bits8) if name == "bits8" else weight.to(getattr(torch, name))
    if name == "bits8":
        other = (weight * 9).to(torch.uint8).view(torch.bits8)
    state = {**saved[0], "conv.weight": other}
    (tmp_path / "run").mkdir()
    for k in range(2):
        if form == "torch":
            torch.save(state, tmp_path / "run" / f"epoch_{k}.pt")
        else:
            save_file(state, tmp_path / "run" / f"epoch_{k}.safetensors")
    with pytest.raises(PosthocError, match=rf"epoch_0\.\w+: conv\.weight is {name}, where the network has float32"):
        posthoc.extract(tmp_path / "run", f"npz:{probe_file}", tmp_path / "a.h5", model=MODEL, normalize="none")
    assert not (tmp_path / "a.h5").exists()


def quantised():
    return torch.quantize_per_tensor(torch.randn(4, 3), 0.1, 0, torch.qint8)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("make", "what"),
    [
        (quantised, r"quantised \(qint8\)"),
        (lambda: torch.eye(4).to_sparse(), "a sparse tensor"),
        (lambda: torch.eye(4).to_sparse_csr(), "a sparse tensor"),
        (lambda: torch.empty(4, 3, device="meta"), "a tensor on the meta device"),
    ],
)
def test_tensors_that_are_not_read_are_named(tmp_path, make, what, zipped):
    """In a state dict they are named; beside one, in an optimiser's state, they do no harm."""
    torch.save(
        {"conv.weight": make(), "conv.bias": torch.ones(4)}, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped
    )
    with pytest.raises(PosthocError, match=rf"a\.pt: conv\.weight is {what}") as error:
        read_header(tmp_path / "a.pt")
    assert "damaged" not in str(error.value)
    beside = {"model": {"w": torch.ones(3)}, "optimizer": {"state": {0: {"g": make()}}, "param_groups": []}}
    torch.save(beside, tmp_path / "b.pt", _use_new_zipfile_serialization=zipped)
    assert torch.equal(read_weights(tmp_path / "b.pt")["w"], torch.ones(3))


def test_a_quantised_layer_is_named(tmp_path):
    torch.backends.quantized.engine = torch.backends.quantized.supported_engines[-1]
    torch.save(QuantisedLinear(3, 4).state_dict(), tmp_path / "a.pt")
    with pytest.raises(PosthocError, match=r"_packed_params\._packed_params is quantised"):
        read_header(tmp_path / "a.pt")


def test_files_without_weights_say_what_they_hold(tmp_path):
    net = nn.Linear(3, 4)
    for content, what in (
        (net.state_dict, r"torch\.save\(model\.state_dict\), without the brackets"),
        (torch.optim.SGD(net.parameters(), 0.1).state_dict(), "the state of an optimiser and no network"),
        ({"w": torch.ones(3, dtype=torch.int8)}, r"no tensor of floating point numbers \(w is int8\)"),
        ({"loss": torch.tensor(0.5)}, r"no state dict \(loss\)"),
        ([1, 2], r"no state dict \(a list\)"),
    ):
        torch.save(content, tmp_path / "a.pt")
        with pytest.raises(NoWeightsError, match=what):
            read_header(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("said", "epoch", "step"),
    [
        ({"epoch": 3, "epochs": 90, "last_epoch": 2}, 3, None),
        ({"last_epoch": 4, "epochs": 90}, 4, None),
        ({"epochs": 5}, 5, None),
        ({"epochs": 5, "iter_num": 2000}, None, 2000),
        ({"iter_num": 2000}, None, 2000),
        ({"iteration": 7}, None, 7),
        ({"steps": 8}, None, 8),
        ({"num_updates": np.int64(9)}, None, 9),
        ({"lr_scheduler": {"last_epoch": 6}, "args": {"epochs": 90, "steps": 5}}, None, None),
        ({"epoch": -1, "current_epoch": 2}, 2, None),
        ({"epoch": float("nan"), "step": float("inf")}, None, None),
        ({"epoch": 2.5}, None, None),
        ({"epoch": torch.tensor(3)}, 3, None),
        ({"epoch": torch.tensor(3 + 1j)}, None, None),
        ({"epoch": "x" * 1000, "step": 10**400}, None, None),
    ],
)
def test_keys_of_epochs_and_steps(tmp_path, said, epoch, step):
    torch.save({"model": {"w": torch.ones(3)}, **said}, tmp_path / "a.pt")
    header = read_header(tmp_path / "a.pt")
    assert (header.epoch, header.step) == (epoch, step)


def test_thousands_of_recorded_numbers_are_not_all_kept(run_folder, probe_file, tmp_path):
    folder = shutil.copytree(run_folder, tmp_path / "run")
    state = {name: tensor.clone() for name, tensor in read_weights(folder / "epoch-000.safetensors").items()}
    for path in folder.glob("*.safetensors"):
        path.unlink()
    for k in range(2):
        numbers = {f"loss of step {j}": j / 7 for j in range(5000 * k, 5000 * k + 4999)}
        torch.save({"model": state, "epoch": k, "acc": 0.5 + k, **numbers}, folder / f"a{k}.pt")
        state = {name: tensor + 1 for name, tensor in state.items()}
    assert read_header(folder / "a0.pt").unrecorded == 5000 - MOST_NUMBERS
    assert find_run(folder).notes[-1] == (
        "more than 200 numbers are recorded in the checkpoints; the first 200 names are kept"
    )
    with posthoc.open_activations(posthoc.extract(folder, f"npz:{probe_file}", tmp_path / "a.h5")) as activations:
        assert len(activations.recorded) == MOST_NUMBERS
        assert list(activations.recorded["acc"]) == [0.5, 1.5]


def exchanged(path, other, way):
    """Put another file of the same size and time in the place of `path`."""
    status = path.stat()
    if way == "renamed":
        shutil.copyfile(other, path.with_suffix(".new"))
        path.with_suffix(".new").rename(path)
    else:
        path.write_bytes(other.read_bytes())
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)


@pytest.mark.parametrize("way", ["renamed", "written over"])
def test_a_file_that_is_exchanged_after_its_digest_was_taken(run_folder, tmp_path, way):
    """The digest recorded is that of the weights that were replayed, whatever size and time say."""
    run = shutil.copytree(run_folder, tmp_path / "run")
    path, other = run / "epoch-001.safetensors", run_folder / "epoch-003.safetensors"
    source = Source(path)
    assert digest(path, source) == sha256(path)
    exchanged(path, other, way)
    with pytest.raises(PosthocError, match=r"epoch-001\.safetensors changed while it was being read"):
        pipeline.read_checkpoint(path, source=source)
    with pytest.raises(PosthocError, match="changed while it was being read"):
        source.require_unchanged()
    assert digest(path) == sha256(other)


@pytest.mark.parametrize("ending", ["safetensors", "pt", "old.pt"])
def test_a_file_that_is_hashed_while_it_is_read(tmp_path, ending):
    """Tensors that share memory, and in an order other than the file's, some left out: the digest is that of the file."""
    path, memory = tmp_path / f"a.{ending}", torch.arange(3 * AT_ONCE // 4).float()
    state = {"b": memory[99:100_000], "a": memory[50_000:190_000], "c": memory[:7].clone(), "d": torch.ones(3, 5)}
    if ending == "safetensors":
        save_file({name: tensor.clone() for name, tensor in state.items()}, path)
    else:
        torch.save({"optimizer": memory + 1, "state_dict": state}, path, _use_new_zipfile_serialization=ending == "pt")
    source = Source(path, hashing=True)
    _, tensors = pipeline.read_checkpoint(path, only=("d", "a", "b"), source=source)
    assert all(torch.equal(tensors[name], state[name]) for name in ("a", "b", "d"))
    assert source.hashed[path].place > 0
    assert digest(path, source) == sha256(path) == digest(path, source)
    assert torch.equal(pipeline.read_checkpoint(path, only=("a",), source=source)[1]["a"], state["a"])


def test_exchanged_over_and_over_while_it_is_replayed(run_folder, probe_file, tmp_path):
    """Whichever of two files is met, digest and activations are those of one of them, or the run says so."""
    run = shutil.copytree(run_folder, tmp_path / "run")
    path, over = run / "epoch-001.safetensors", threading.Event()
    versions = [run_folder / "epoch-001.safetensors", run_folder / "epoch-003.safetensors"]
    plan = plan_extraction(run, f"npz:{probe_file}")
    losses = {}
    with posthoc.open_activations(posthoc.extract(run, f"npz:{probe_file}", tmp_path / "still.h5")) as activations:
        losses = dict(zip(activations.checkpoint_sha256, activations.loss, strict=True))

    def exchange():
        turn = 0
        while not over.is_set():
            turn = 1 - turn
            exchanged(path, versions[turn], "renamed")

    writer = threading.Thread(target=exchange)
    writer.start()
    try:
        for k in range(3):
            try:
                run_extraction(plan, tmp_path / f"{k}.h5")
            except PosthocError:
                continue
            with posthoc.open_activations(tmp_path / f"{k}.h5") as activations:
                assert activations.loss[1] == losses[activations.checkpoint_sha256[1]]
    finally:
        over.set()
        writer.join()
