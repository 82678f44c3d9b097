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
from posthoc.replay.torchfiles import CONSTRUCT, Stored, read_torch, torch_dtype

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

    shape: tuple[int, ...]
    dtype: torch.dtype
    pieces: tuple[Piece, ...]

    def read(self) -> Tensor:
        """Put the blocks together; ValueError or EOFError where they do not make up the tensor."""
        whole = torch.empty(self.shape, dtype=self.dtype)
        seen = torch.zeros(self.shape, dtype=torch.bool)
        for piece in self.pieces:
            file = read_torch(piece.path, piece.start, piece.end)
            if not isinstance(file.content, Stored):
                raise ValueError("a block of a tensor holds something else")
            block = file.tensors({"": file.content})[""]
            where = tuple(slice(at, at + count) for at, count in zip(piece.offsets, block.shape, strict=True))
            if whole[where].shape != block.shape or block.dtype != self.dtype:
                raise ValueError("a block of a tensor lies outside of it")
            whole[where] = block
            seen[where] = True
        if not seen.all():
            raise EOFError("blocks of a tensor are missing")
        return whole


def read_distributed(folder: Path) -> dict[str, Any]:
    """The saved dictionary: nested as it was, `Scattered` tensors, and the other small values as they are."""
    data = (folder / ".metadata").read_bytes()
    metadata = _state(unpickle(Bounded(io.BytesIO(data), len(data)), CONSTRUCT, lambda key: Record(key)))
    sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
    places: dict[str, list[Piece]] = {}
    for index, info in mapping(metadata["storage_data"]).items():
        key, place = _state(index), _state(info)
        name, start, length = place["relative_path"], place["offset"], place["length"]
        if place.get("transform_descriptors"):
            raise ValueError("its tensors were transformed when they were saved")
        if not (isinstance(name, str) and all(type(number) is int and number >= 0 for number in (start, length))):
            raise ValueError("a block has no valid place")
        if name not in sizes:
            raise FileNotFoundError(2, "a file of it is missing", str(folder / name))
        if start + length > sizes[name]:
            raise EOFError(f"{name} is shorter than said")
        offsets = key.get("offset")
        places.setdefault(_text(key["fqn"]), []).append(
            Piece(tuple(offsets) if offsets is not None else (), folder / name, start, start + length)
        )
    found: dict[str, Any] = {}
    paths = mapping(metadata.get("planner_data"))
    for name, entry in mapping(metadata["state_dict_metadata"]).items():
        pieces = places.get(name, [])
        said = entry.state if isinstance(entry, Record) and isinstance(entry.state, Mapping) else {}
        value = _scattered(said, pieces, sum(sizes.values())) if "chunks" in said else _value(pieces)
        _put(found, paths.get(_text(name), (name,)), value)
    return found


def _scattered(said: Mapping[str, Any], pieces: list[Piece], limit: int) -> Scattered:
    shape = tuple(said["size"])
    if len(shape) > 64:
        raise ValueError("a tensor has no valid shape")
    dtype = torch_dtype(said["properties"].state[0])
    if not all(type(side) is int and side >= 0 for side in shape):
        raise ValueError("a tensor has no valid shape")
    if math.prod(shape) * dtype.itemsize > limit:
        raise EOFError("a tensor is larger than its files")
    zeros = (0,) * len(shape)
    return Scattered(shape, dtype, tuple(Piece(p.offsets or zeros, p.path, p.start, p.end) for p in pieces))


def _value(pieces: list[Piece]) -> Any:
    if len(pieces) != 1 or pieces[0].end - pieces[0].start > MAX_VALUE:
        return None
    return read_torch(pieces[0].path, pieces[0].start, pieces[0].end).content


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
