"""What reading costs is charged to one account per checkpoint, and bounded by its size."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hostile import KINDS
from safetensors.torch import save_file
from torch.distributed.checkpoint.state_dict_saver import save as save_distributed

from posthoc.errors import PosthocError
from posthoc.replay.budget import SPARE_BYTES, SPARE_OPERATIONS, Budget, BudgetError
from posthoc.replay.checkpoint import read_checkpoint, read_header, read_weights
from posthoc.replay.formats.table import open_content, readable
from posthoc.replay.loading import load
from posthoc.replay.naming import MOST_PARTS, readings
from posthoc.replay.source import Source
from posthoc.replay.weights import MAIN, find_weights

OVER = {"steps", "claims", "describes", "nests"}


def charged(path):
    """The account of a checkpoint of which everything was read, as it stood when that ended or was refused."""
    source = Source(path)
    try:
        with readable(path):
            content = open_content(source, path)
            load(content, find_weights(content.tree, MAIN, path, source.budget))
    except PosthocError:
        pass
    return source.budget


@pytest.mark.parametrize("kind", KINDS)
def test_a_small_file_costs_little(tmp_path, kind):
    """At two sizes the charge is within what the size allows; what is said of the larger names the reason."""
    make, reason = KINDS[kind]
    for size in (10_000, 300_000):
        path = tmp_path / f"{size}.pt"
        path.write_bytes(make(size))
        n = path.stat().st_size
        budget = charged(path)
        assert budget.size == n
        over = any(word in reason for word in OVER)
        if not over:  # the charge that is refused is counted as well: nothing is made for it
            assert budget.operations <= n + SPARE_OPERATIONS
            assert budget.produced <= 4 * n + SPARE_BYTES
    if not reason:
        assert read_weights(path)
        return
    with pytest.raises(PosthocError, match=reason) as error:
        read_header(path)
    assert isinstance(error.value, BudgetError) == over


READ = """
import sys
from pathlib import Path
import torch
from posthoc.errors import PosthocError
from posthoc.replay.checkpoint import read_checkpoint, read_header, read_weights
def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) // 1024
before = peak()
for path in sorted(Path(sys.argv[1]).iterdir()):
    for read in (read_header, read_weights):
        try:
            read(path)
        except PosthocError as error:
            assert "Traceback" not in str(error)
print(peak() - before)
"""


@pytest.mark.parametrize(("size", "most"), [(100_000, 100), pytest.param(1_000_000, 200, marks=pytest.mark.slow)])
def test_the_memory_of_all_of_them(tmp_path, size, most):
    """In a process of their own, whose peak memory is looked at, in megabytes."""
    for kind, (make, _) in KINDS.items():
        (tmp_path / f"{kind}.pt").write_bytes(make(size))
    done = subprocess.run([sys.executable, "-c", READ, tmp_path], capture_output=True, text=True, check=True)
    assert int(done.stdout) < most


def test_files_nested_in_files_share_the_account(tmp_path):
    state = {f"layer.{k}": torch.ones(100, dtype=torch.float64) for k in range(5)}
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(state))
    save_distributed({"model": state}, checkpoint_id=tmp_path / "folder")
    for k, name in enumerate(state):
        save_file({name: state[name]}, tmp_path / f"s{k}.safetensors")
    index = {"weight_map": {name: f"s{k}.safetensors" for k, name in enumerate(state)}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    torch.save(state, tmp_path / "zip.pt")
    once = 5 * 100 * 8
    for name, produced, tensors in (
        ("zip.pt", 2 * once, 5),  # its storages, and their views
        ("plain.pkl", 2 * once, 5),
        ("model.safetensors.index.json", 2 * once, 5),
        ("folder", 3 * once, 10),  # the whole tensors, and their blocks in files of their own
    ):
        budget = charged(tmp_path / name)
        assert (budget.produced, budget.tensors) == (produced, tensors)
        files = [path for path in (tmp_path / name).rglob("*") if path.is_file()] or [tmp_path / name]
        files += sorted(tmp_path.glob("s?.safetensors")) if name.endswith(".json") else []
        assert budget.size == sum(path.stat().st_size for path in files)


def test_the_same_tensor_under_many_names_counts_and_lies_in_memory_once(tmp_path):
    layer = torch.nn.Linear(300, 300)
    state = torch.nn.ModuleList([layer] * 30).state_dict()
    torch.save(state, tmp_path / "a.pt")
    budget = charged(tmp_path / "a.pt")
    assert (budget.tensors, budget.produced) == (2, 2 * 4 * (300 * 300 + 300))
    weights = read_weights(tmp_path / "a.pt")
    assert len(weights) == 60
    assert len({tensor.data_ptr() for tensor in weights.values()}) == 2
    assert all(torch.equal(weights[name], state[name]) for name in state)
    # Memory that names shared is given to one of them when they no longer share.
    apart = {name: torch.randn_like(tensor) for name, tensor in state.items()}
    torch.save(apart, tmp_path / "b.pt")
    _, again = read_checkpoint(tmp_path / "b.pt", into=weights)
    assert all(torch.equal(again[name], apart[name]) for name in apart)
    assert again["0.weight"].data_ptr() == weights["0.weight"].data_ptr()


def test_training_logs_and_small_tensors_are_within_the_account(tmp_path):
    content = {
        "model": {f"layer.{k}.w": torch.ones(1) for k in range(1000)},
        "losses": [k / 7 for k in range(10_000)],
        "by step": {k: k / 7 for k in range(5_000)},
        "by name": {f"step {k}": k for k in range(5_000)},
        "arrays": {k: np.float32([k]) for k in range(300)},
    }
    for form in ("zip", "older", "2", "5"):
        path = tmp_path / f"{form}.pt"
        if form in ("zip", "older"):
            torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
        else:
            path.write_bytes(pickle.dumps(content, int(form)))
        assert len(read_weights(path)) == 1000
        budget = charged(path)
        assert budget.operations < 0.7 * budget.size
        assert budget.produced < 2 * budget.size


def test_an_account_refuses_what_is_too_much():
    for charge, words in (
        (lambda budget: budget.produce(SPARE_BYTES + 5), r"claims 67\.1 MB of tensors in files of 1 bytes"),
        (lambda budget: budget.operate(SPARE_OPERATIONS + 2), "asks for more than 100,001 steps"),
        (lambda budget: [budget.tensor(0) for _ in range(1001)], "describes more than 1,000 tensors"),
        (lambda budget: budget.json(b"[" * 65 + b"]" * 65), "nests values more than 64 deep"),
        (lambda budget: budget.json(b"[" * 99_000 + b"]" * 99_000), "nests values more than 64 deep"),
    ):
        with pytest.raises(BudgetError, match=words):
            charge(Budget(Path("a.pt"), 1))
    budget = Budget(Path("a.pt"), 1)
    assert budget.json(b"[" * 64 + b"]" * 64)
    assert budget.operations == 64
    with pytest.raises(ValueError, match="twice"):
        budget.json(b'{"a": 1, "a": 2}')


def test_parts_are_read_once_and_the_largest_of_many():
    names = [f"p{k}.{row}" for k in range(1000) for row in range(1 + (k % 10 == 3))]
    every = list(readings(names))
    assert len(every) == 1 + MOST_PARTS
    assert list(every[0]) == names
    assert [next(iter(part)) for part in every[1:]] == [f"p{k}.0" for k in range(3, 10 * MOST_PARTS, 10)]
    assert list(readings(["a.x.w", "a.y.w", "b.x.w", "c"]))[1:] == [{"a.x.w": "x.w", "a.y.w": "y.w"}, {"b.x.w": "w"}]
