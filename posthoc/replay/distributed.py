"""Folders of torch.distributed.checkpoint (`.metadata` and `*.distcp`), read on one process and without running them."""

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from posthoc.replay.modules import mapping
from posthoc.replay.pickles import Bounded, Record, unpickle
from posthoc.replay.source import Source
from posthoc.replay.strangers import UnsupportedError
from posthoc.replay.tensors import MAX_DIMENSIONS, Maker, Stored, torch_dtype
from posthoc.replay.torchfiles import read_torch

MAX_VALUE = 1 << 16
"""Bytes of a recorded value that is read; larger ones are no epoch or accuracy."""


@dataclass(frozen=True)
class Piece:
    """A block of a tensor, from `offsets` on, as torch.save wrote it into `path` between two places."""

    offsets: tuple[int, ...]
    path: Path
    start: int
    end: int


@dataclass(frozen=True, eq=False)
class Scattered:
    """A tensor whose blocks lie in several files."""

    source: Source
    shape: tuple[int, ...]
    dtype: torch.dtype
    pieces: tuple[Piece, ...]

    def read(self) -> Tensor:
        """Put the blocks together; ValueError or EOFError where they do not make up the tensor."""
        whole = torch.empty(self.shape, dtype=self.dtype)
        seen = torch.zeros(self.shape, dtype=torch.bool)
        for piece in self.pieces:
            file = read_torch(self.source, piece.path, piece.start, piece.end)
            if not isinstance(file.content, Stored):
                raise ValueError("a block of a tensor holds something else")
            block = file.tensors({"": file.content})[""]
            if len(piece.offsets) != block.ndim:
                raise ValueError("a block of a tensor lies outside of it")
            where = tuple(slice(at, at + count) for at, count in zip(piece.offsets, block.shape, strict=True))
            if whole[where].shape != block.shape or block.dtype != self.dtype:
                raise ValueError("a block of a tensor lies outside of it")
            whole[where] = block
            seen[where] = True
        if not seen.all():
            raise EOFError("blocks of a tensor are missing")
        return whole


def read_distributed(source: Source, folder: Path) -> dict[str, Any]:
    """The saved dictionary: nested as it was, `Scattered` tensors, and the other small values as they are."""
    data, budget = source.read(folder / ".metadata"), source.budget
    maker = Maker(budget, lambda *arguments: None)
    metadata = _state(
        unpickle(Bounded(io.BytesIO(data), len(data)), maker.construct, lambda key: Record("storage", (key,)), budget)
    )
    present = {path.name for path in folder.iterdir() if path.is_file()}
    sizes: dict[str, int] = {}
    places: dict[str, list[Piece]] = {}
    for index, info in mapping(metadata["storage_data"]).items():
        budget.operate()
        key, place = _state(index), _state(info)
        name, start, length = place["relative_path"], place["offset"], place["length"]
        if place.get("transform_descriptors"):
            raise UnsupportedError("its tensors were transformed when they were saved")
        if not (isinstance(name, str) and all(type(number) is int and number >= 0 for number in (start, length))):
            raise ValueError("a block has no valid place")
        if name not in present:
            raise FileNotFoundError(2, "a file of it is missing", str(folder / name))
        if name not in sizes:
            sizes[name] = source.size(folder / name)
        if start + length > sizes[name]:
            raise EOFError(f"{name} is shorter than said")
        offsets = key.get("offset")
        places.setdefault(_text(key["fqn"]), []).append(
            Piece(_sides(offsets) if offsets is not None else (), folder / name, start, start + length)
        )
    found: dict[str, Any] = {}
    paths = mapping(metadata.get("planner_data"))
    for name, entry in mapping(metadata["state_dict_metadata"]).items():
        pieces = places.get(_text(name), [])
        said = entry.state if isinstance(entry, Record) and isinstance(entry.state, Mapping) else {}
        value = _scattered(source, said, pieces) if "chunks" in said else _value(source, pieces)
        path = paths.get(name, (name,))
        budget.operate(len(path) if isinstance(path, tuple) else 1)
        _put(found, path, value)
    return found


def _scattered(source: Source, said: Mapping[str, Any], pieces: list[Piece]) -> Scattered:
    shape = _sides(said["size"])
    dtype = torch_dtype(said["properties"].state[0])
    source.budget.tensor(math.prod(shape) * dtype.itemsize)
    zeros = (0,) * len(shape)
    return Scattered(source, shape, dtype, tuple(Piece(p.offsets or zeros, p.path, p.start, p.end) for p in pieces))


def _sides(sizes: Any) -> tuple[int, ...]:
    if not (isinstance(sizes, (tuple, list)) and len(sizes) <= MAX_DIMENSIONS):
        raise ValueError("a tensor has no valid shape")
    if not all(type(side) is int and 0 <= side < 1 << 60 for side in sizes):
        raise ValueError("a tensor has no valid shape")
    return tuple(sizes)


def _value(source: Source, pieces: list[Piece]) -> Any:
    if len(pieces) != 1 or pieces[0].end - pieces[0].start > MAX_VALUE:
        return None
    return read_torch(source, pieces[0].path, pieces[0].start, pieces[0].end).content


def _put(tree: dict[Any, Any], path: Any, value: Any) -> None:
    """Set tree[a][b][c], dictionaries in between made as needed; list positions are keys like any other."""
    if not (isinstance(path, tuple) and path and all(isinstance(part, (str, int)) for part in path)):
        raise TypeError("a name has no valid parts")
    *above, last = path
    for key in above:
        tree = tree.setdefault(key, {})
        if not isinstance(tree, dict):
            raise TypeError("a name stands for a value and for a group of values")
    tree[last] = value


def _text(name: Any) -> str:
    if not isinstance(name, str):
        raise TypeError("a tensor has no valid name")
    return name


def _state(record: Any) -> Mapping[str, Any]:
    if not (isinstance(record, Record) and isinstance(record.state, Mapping)):
        raise TypeError("its metadata are not what torch.distributed.checkpoint writes")
    return record.state
