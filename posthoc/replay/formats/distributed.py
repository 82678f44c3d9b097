"""Folders of torch.distributed.checkpoint (`.metadata` and `*.distcp`), read on one process and without running them."""

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from posthoc.replay.dtypes import DType
from posthoc.replay.formats import torch_pickle, torch_zip
from posthoc.replay.formats.table import Content, Format
from posthoc.replay.modules import mapping
from posthoc.replay.pickles import Bounded, Record, unpickle
from posthoc.replay.source import Source
from posthoc.replay.strangers import UnsupportedError
from posthoc.replay.tensors import Deferred, Maker, Memory, Stored, named_dtype, read_numbers, require_shape

if TYPE_CHECKING:
    from torch import Tensor

METADATA = ".metadata"
MAX_VALUE = 1 << 16
"""Bytes of a recorded value that is read; larger ones are no epoch or accuracy."""


@dataclass(frozen=True)
class Piece:
    """A block of a tensor, from `offsets` on, as torch.save wrote it into `path` between two places."""

    offsets: tuple[int, ...]
    path: Path
    start: int
    end: int


def _open(source: Source, folder: Path) -> Content:
    """The saved dictionary: nested as it was, tensors in blocks, and the other small values as they are."""
    metadata = _metadata(source, folder)
    blocks = _blocks(source, folder, mapping(metadata["storage_data"]))
    tree: dict[str, Any] = {}
    paths = mapping(metadata.get("planner_data"))
    for name, entry in mapping(metadata["state_dict_metadata"]).items():
        pieces = blocks.get(_text(name), [])
        described = entry.state if isinstance(entry, Record) and isinstance(entry.state, Mapping) else {}
        value = _tensor(source, described, pieces) if "chunks" in described else _value(source, pieces)
        path = paths.get(name, (name,))
        source.budget.operate(len(path) if isinstance(path, tuple) else 1)
        _put(tree, path, value)

    def read(wanted: Memory) -> None:
        for deferred, memory in wanted.values():
            deferred.fill(memory)

    return Content(tree, tree, read)


def _metadata(source: Source, folder: Path) -> Mapping[str, Any]:
    with source.part(folder / METADATA) as part:
        maker = Maker(source.budget, lambda *arguments: None)
        stream = Bounded(io.BytesIO(part.file.read()), part.size)
        return _state(unpickle(stream, maker.construct, lambda key: Record("storage", (key,)), source.budget))


def _blocks(source: Source, folder: Path, entries: Mapping[Any, Any]) -> dict[str, list[Piece]]:
    """Where the blocks of each tensor or value lie, by its name."""
    present = {path.name for path in folder.iterdir() if path.is_file()}
    sizes: dict[str, int] = {}
    blocks: dict[str, list[Piece]] = {}
    for index, info in entries.items():
        source.budget.operate()
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
        offsets = () if key.get("offset") is None else _sides(key["offset"])
        blocks.setdefault(_text(key["fqn"]), []).append(Piece(offsets, folder / name, start, start + length))
    return blocks


def _tensor(source: Source, described: Mapping[str, Any], pieces: list[Piece]) -> Deferred:
    shape = _sides(described["size"])
    dtype = named_dtype(described["properties"].state[0])
    source.budget.tensor(math.prod(shape) * dtype.itemsize)
    return Deferred(shape, dtype, lambda memory: _assemble(source, shape, dtype, pieces, memory))


def _assemble(
    source: Source, shape: tuple[int, ...], dtype: DType, pieces: list[Piece], memory: NDArray[np.uint8]
) -> None:
    """Put the blocks together in memory; ValueError or EOFError where they do not make up the tensor."""
    words = f"V{dtype.itemsize}"
    whole = memory.view(words).reshape(shape)
    filled = np.zeros(shape, np.bool_)
    for piece in pieces:
        content = _saved(source, piece)
        if not isinstance(content.tree, Stored):
            raise ValueError("a block of a tensor holds something else")
        saved = read_numbers(content.read, {"": content.tree}, {})[""]
        block = saved.raw.view(words).reshape(saved.shape) if saved.dtype == dtype else np.empty(0, words)
        offsets = piece.offsets or (0,) * len(shape)
        if len(offsets) != block.ndim:
            raise ValueError("a block of a tensor lies outside of it")
        where = tuple(slice(at, at + count) for at, count in zip(offsets, block.shape, strict=True))
        if whole[where].shape != block.shape or saved.dtype != dtype:
            raise ValueError("a block of a tensor lies outside of it")
        whole[where] = block
        filled[where] = True
    if not filled.all():
        raise EOFError("blocks of a tensor are missing")


def _saved(source: Source, piece: Piece) -> Content:
    """What torch.save wrote there."""
    with source.open(piece.path) as file:
        file.seek(piece.start)
        zipped = file.read(4) == torch_zip.ENTRY
    parse = torch_zip.parse if zipped else torch_pickle.parse
    return torch_pickle.open_torch(source, piece.path, parse, piece.start, piece.end)


def _sides(sizes: Any) -> tuple[int, ...]:
    if not isinstance(sizes, (tuple, list)):
        raise ValueError("a tensor has no valid shape")
    require_shape(sizes, len(sizes))
    return tuple(sizes)


def _value(source: Source, pieces: list[Piece]) -> Any:
    if len(pieces) != 1 or pieces[0].end - pieces[0].start > MAX_VALUE:
        return None
    return _saved(source, pieces[0]).tree


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


def _write(weights: Mapping[str, "Tensor"], folder: Path) -> None:
    from torch.distributed.checkpoint.state_dict_saver import save

    save({"model": dict(weights), "epoch": 3}, checkpoint_id=folder)


DISTRIBUTED = Format(
    "distributed",
    lambda seen: METADATA in seen.names,
    _open,
    lambda source, folder: [folder / METADATA, *sorted(folder.glob("*.distcp"))],
    inside=(METADATA,),
    write=_write,
)
