#!/usr/bin/env python3
"""Mutated checkpoints: every one must end in a PosthocError or load as what it says, and allocate nothing absurd.

    scripts/fuzz.py --count 10000 --seed 0

For each format, so many copies of a sound file with bytes flipped, cut, doubled or overwritten. Where torch or
safetensors themselves still load the mutated file, the tensors must be the same. Prints one line per format; exits
with 1 and keeps the file where something else happened.
"""

import argparse
import collections
import json
import random
import resource
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.checkpoint.state_dict_saver import save as save_distributed

from posthoc.errors import PosthocError
from posthoc.replay.layout import find_run
from posthoc.replay.readers import read_header, read_weights

STATE = {"conv.weight": torch.randn(4, 3, 3, 3), "conv.bias": torch.randn(4), "fc.weight": torch.randn(5, 4).bfloat16()}
WRAPPED = {
    "state_dict": STATE,
    "epoch": 3,
    "global_step": 40,
    "arch": "mine",
    "optimizer": {"state": {0: STATE["conv.bias"]}},
}
Reference = Callable[[Path], dict[str, Any]]


def load_torch(path: Path) -> dict[str, Any]:
    """torch's own safe reading, of plain and wrapped state dicts."""
    found: Any = torch.load(path, map_location="cpu", weights_only=True)
    inner = found.get("state_dict", found)
    return {name: value for name, value in inner.items() if isinstance(name, str) and isinstance(value, torch.Tensor)}


def prepare(folder: Path) -> dict[str, tuple[Path, Path, Reference | None]]:
    """Sound checkpoints: format -> what is opened, which of its files is mutated, how its library reads it."""
    torch.save(STATE, folder / "zip.pt")
    torch.save(WRAPPED, folder / "wrapped.ckpt")
    torch.save(WRAPPED, folder / "older.pth", _use_new_zipfile_serialization=False)
    torch.save(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), folder / "module.pt")
    torch.save(nn.Sequential(nn.Linear(3, 4)), folder / "older_module.pt", _use_new_zipfile_serialization=False)
    save_file(STATE, folder / "a.safetensors", {"epoch": "3"})
    sharded = folder / "sharded"
    sharded.mkdir()
    for k, name in enumerate(STATE):
        save_file({name: STATE[name]}, sharded / f"s{k}.safetensors")
    index = sharded / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {name: f"s{k}.safetensors" for k, name in enumerate(STATE)}}))
    trainer = folder / "checkpoint-40"
    trainer.mkdir()
    save_file(STATE, trainer / "model.safetensors")
    log = [{"step": 40, "epoch": 1.5, "eval_loss": 0.5}]
    (trainer / "trainer_state.json").write_text(json.dumps({"epoch": 1.5, "global_step": 40, "log_history": log}))
    save_distributed({"model": dict(STATE), "epoch": 3}, checkpoint_id=folder / "distributed")
    piece = next((folder / "distributed").glob("*.distcp"))
    return {
        "torch zip": (folder / "zip.pt", folder / "zip.pt", load_torch),
        "torch zip, wrapped": (folder / "wrapped.ckpt", folder / "wrapped.ckpt", load_torch),
        "torch older form": (folder / "older.pth", folder / "older.pth", load_torch),
        "whole module": (folder / "module.pt", folder / "module.pt", None),
        "whole module, older": (folder / "older_module.pt", folder / "older_module.pt", None),
        "safetensors": (folder / "a.safetensors", folder / "a.safetensors", load_file),
        "index of shards": (index, index, None),
        "trainer's folder": (trainer, trainer / "trainer_state.json", None),
        "distributed, metadata": (folder / "distributed", folder / "distributed" / ".metadata", None),
        "distributed, tensors": (folder / "distributed", piece, None),
    }


def mutated(content: bytes, source: random.Random) -> bytes:
    """A few changes of a random kind, most of them near the file's start or end, where the structure is."""
    data = bytearray(content)
    for _ in range(source.choice((1, 1, 1, 2, 8))):
        size = max(len(data), 1)
        at = source.choice(
            (source.randrange(size), source.randrange(min(size, 400)), size - 1 - source.randrange(min(size, 400)))
        )
        kind = source.randrange(6)
        if kind == 0:
            data[at : at + 1] = bytes([source.randrange(256)])
        elif kind == 1:
            del data[at:]
        elif kind == 2:
            del data[at : at + source.randrange(1, 9)]
        elif kind == 3:
            data[at:at] = data[at : at + source.randrange(1, 65)]
        elif kind == 4:
            data[at : at + 8] = source.choice((2**63 - 1, 2**31, 2**40, 0, 2**64 - 1)).to_bytes(8, "little")
        else:
            data[at : at + 1] = bytes([data[at] ^ (1 << source.randrange(8))]) if at < len(data) else b""
    return bytes(data)


def attempt(path: Path, reference: Reference | None) -> str:
    """Read the file as `inspect` and `extract` do; what came of it, in a word."""
    try:
        find_run(path)
        header = read_header(path)
        weights = read_weights(path)
    except PosthocError:
        return "refused"
    if {name: tuple(tensor.shape) for name, tensor in weights.items()} != header.shapes:
        raise AssertionError("the weights are not those of the header")
    if reference is None:
        return "loaded"
    try:
        theirs = reference(path)
    except Exception:  # whatever a library raises for what we may well read
        return "loaded"
    if all(_same(theirs[name], weights[name]) for name in theirs.keys() & weights.keys()):
        return "loaded as by its library"
    # torch fills what a shortened entry lacks with whatever lies in memory; the whole values are right then.
    if all(name in STATE and _same(STATE[name], weights[name]) for name in weights):
        return "loaded whole where its library does not"
    raise AssertionError("a tensor differs from what its own library reads")


def _same(first: torch.Tensor, second: torch.Tensor) -> bool:
    return torch.equal(first.reshape(-1).view(torch.uint8), second.reshape(-1).view(torch.uint8))


def main() -> int:
    """Mutate and read; 1 where anything but a refusal or a right load came of it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=10_000, help="files per format")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    warnings.simplefilter("ignore")  # torch's, on what it finds in mutated files
    folder = Path(tempfile.mkdtemp(prefix="posthoc-fuzz-"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, (place, file, reference) in prepare(folder).items():
        whole, source = file.read_bytes(), random.Random(f"{arguments.seed} {name}")
        counts: collections.Counter[str] = collections.Counter()
        slowest = 0.0
        for _ in range(arguments.count):
            file.write_bytes(mutated(whole, source))
            start = time.monotonic()
            try:
                counts[attempt(place, reference)] += 1
            except BaseException as error:
                print(f"{name}: {type(error).__name__}: {error}; the file is {file}", file=sys.stderr)
                return 1
            slowest = max(slowest, time.monotonic() - start)
        file.write_bytes(whole)
        listing = ", ".join(f"{count} {what}" for what, count in sorted(counts.items()))
        print(f"{name}: {listing}; slowest {slowest:.2f} s", flush=True)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"memory: peak grew by {grown:.0f} MB")
    shutil.rmtree(folder)
    return int(grown > 300)


if __name__ == "__main__":
    sys.exit(main())
