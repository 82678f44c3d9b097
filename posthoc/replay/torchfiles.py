"""Files of torch.save, plain pickles and safetensors: their content, with tensors as places in the file.

torch.save has three forms: the zip archive of torch 1.6 and later, the older sequence of pickles, and `pickle.dump` of
an object that holds tensors. Nothing in them is imported or run (see `pickles`), and a tensor is read only when it is
asked for.
"""

import io
import itertools
import math
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from posthoc.replay.pickles import Bounded, Global, unpickle
from posthoc.replay.source import Source
from posthoc.replay.strangers import StrangerError, UnsupportedError, archive_kind
from posthoc.replay.tensors import MAX_DIMENSIONS, STORAGES, Maker, Storage, Stored, contiguous

MAGIC = 0x1950A86A20F9469CFC6C
"""What the older form begins with, as a pickled number."""
MAX_PICKLE = 1 << 30
MAX_HEADER = 100_000_000
"""Bytes of a safetensors header, the library's own limit."""
SAFETENSORS = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64, "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
"""Types of numbers by their names in safetensors files."""


@dataclass(frozen=True)
class TorchFile:
    """What a file holds: containers, numbers, `Record`s for everything of a class, and `Stored` tensors."""

    source: Source
    path: Path
    content: Any
    start: int = 0
    end: int | None = None

    def tensors(
        self, wanted: Mapping[str, Stored], into: Mapping[str, Tensor] | None = None, pin: bool = False
    ) -> dict[str, Tensor]:
        """Read these tensors, into the memory of those of the same name where they fit, else into new (pinned) memory.

        The same tensor under several names is read once, and so is memory of `into` used once.
        """
        read: dict[Stored, Tensor] = {}
        used: set[int] = set()
        with _opened(self.source, self.path, self.start, self.end) as (file, _):
            for name, stored in wanted.items():
                if stored not in read:
                    memory = (into or {}).get(name)
                    if memory is not None and memory.data_ptr() in used:
                        memory = None
                    read[stored] = stored.read(file, memory, pin)
                    used.add(read[stored].data_ptr())
        return {name: read[stored] for name, stored in wanted.items()}


def read_torch(source: Source, path: Path, start: int = 0, end: int | None = None) -> TorchFile:
    """Read what torch.save or pickle.dump wrote to `path` (or to its bytes from `start` to `end`), tensors left there.

    Raises ValueError, LookupError, TypeError, EOFError, OSError and the like for a damaged file, as the libraries do.
    """
    with _opened(source, path, start, end) as (file, size):
        maker = Maker(source.budget, _sequence)
        if file.read(4) == b"PK\3\4":
            content = _zip_archive(file, path, maker)
        else:
            file.seek(0)
            content = _sequence(file, size, maker)
    return TorchFile(source, path, content, start, end)


def read_safetensors(source: Source, path: Path) -> tuple[TorchFile, dict[str, str]]:
    """The tensors of a safetensors file by name, left there, and its metadata; raises as `read_torch` does.

    Not through the library's memory map: a file that another process cuts short would end this one.
    """
    with source.open(path) as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(MAX_HEADER, size - 8):
            raise EOFError("it ends inside its header")
        header = source.budget.json(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("its header is no object")
    found, places = {}, []
    maker = Maker(source.budget, _sequence)
    for name, entry in header.items():
        if name != "__metadata__":
            dtype, shape, (start, end) = SAFETENSORS[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
            if len(shape) > MAX_DIMENSIONS or not all(
                type(side) is int and 0 <= side < 1 << 60 for side in (start, end, *shape)
            ):
                raise ValueError("a tensor has no valid shape")
            count = math.prod(shape)
            if end - start != count * dtype.itemsize or 8 + length + end > size:
                raise EOFError("it ends inside a tensor")
            storage = maker.storage(dtype, count, 8 + length + start)
            found[name] = maker.view(storage, dtype, 0, shape, contiguous(shape))
            places.append((start, end))
    places.sort()
    if any(first[1] > second[0] for first, second in itertools.pairwise(places)):
        raise UnsupportedError("two of its tensors lie in the same bytes")
    said = header.get("__metadata__") or {}
    if not isinstance(said, dict) or not all(isinstance(text, str) for text in said.values()):
        raise ValueError("its metadata are no texts")
    return TorchFile(source, path, found), said


@contextmanager
def _opened(source: Source, path: Path, start: int, end: int | None) -> Iterator[tuple[io.BufferedIOBase, int]]:
    with source.open(path) as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        if start == 0 and end is None:
            yield file, size
            return
        end = size if end is None else end
        if not 0 <= start <= end <= size:
            raise EOFError("it ends before one of its tensors")
        source.budget.operate((end - start) >> 12)  # the same bytes may be asked for again and again
        file.seek(start)
        piece = io.BytesIO(file.read(end - start))
        yield piece, end - start


def _zip_archive(file: io.BufferedIOBase, path: Path, maker: Maker) -> Any:
    archive = zipfile.ZipFile(file)
    entries = {entry.filename: entry for entry in archive.infolist()}
    maker.budget.operate(len(entries))
    roots = [name.removesuffix("data.pkl") for name in entries if re.fullmatch(r"[^/]*/data\.pkl", name)]
    if not roots:
        raise StrangerError(f"{path} is {archive_kind(entries)}.")
    root = roots[0]
    # Readers differ in which of two they take, and torch's takes capitals for small letters.
    if len(entries) < len(archive.infolist()) or len(roots) > 1 or _in_two_spellings(entries, root):
        raise UnsupportedError("its archive has an entry of one name twice")
    if f"{root}byteorder" in entries and _bytes(file, entries[f"{root}byteorder"]) != b"little":
        raise UnsupportedError("it was written by a big-endian machine")

    storages: dict[str, Storage] = {}

    def storage(key: Any) -> Storage | Global:
        if _is_source(key):
            return _source(key)
        dtype, name, size = _persistent(key)
        maker.budget.operate(len(name) >> 6)
        if name not in storages:
            entry = entries[f"{root}data/{name}"]
            storages[name] = maker.storage(dtype, size, _start(file, entry))
            if size * dtype.itemsize > entry.file_size:
                raise EOFError("a storage is shorter than said")
        return _seen_as(storages[name], dtype, size)

    content = _bytes(file, entries[f"{root}data.pkl"])
    return unpickle(Bounded(io.BytesIO(content), len(content)), maker.construct, storage, maker.budget)


def _in_two_spellings(names: Mapping[str, Any], root: str) -> bool:
    used = [name.lower() for name in names if name.lower().startswith((f"{root}data".lower(), f"{root}byteorder"))]
    return len(set(used)) < len(used)


def _start(file: io.BufferedIOBase, entry: zipfile.ZipInfo) -> int:
    """Where the bytes of a stored entry begin; checked to lie in the file."""
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
        raise UnsupportedError("it is compressed inside, which torch.save does not do")
    file.seek(entry.header_offset)
    header = file.read(30)
    if header[:4] != b"PK\3\4":
        raise ValueError("an entry of the archive is missing")
    name, extra = struct.unpack("<HH", header[26:30])
    start: int = entry.header_offset + 30 + name + extra
    if start + entry.file_size > file.seek(0, io.SEEK_END):
        raise EOFError("it ends inside an entry of the archive")
    return start


def _bytes(file: io.BufferedIOBase, entry: zipfile.ZipInfo) -> bytes:
    start = _start(file, entry)
    if entry.file_size > MAX_PICKLE:
        raise UnsupportedError("its pickle is larger than 1 GiB")
    file.seek(start)
    return file.read(entry.file_size)


def _sequence(file: io.BufferedIOBase, size: int, maker: Maker) -> Any:
    """The older form: number, version, system, content, keys, then every storage with its length; or one pickle."""
    storages: dict[str, Storage] = {}

    def storage(key: Any) -> Storage | Global:
        if _is_source(key):
            return _source(key)
        dtype, name, length = _persistent(key)
        maker.budget.operate(len(name) >> 6)
        if name not in storages:
            storages[name] = maker.storage(dtype, length)
        if len(key) > 5 and key[5] is not None:
            raise UnsupportedError("a storage is a view of another, which torch stopped writing in version 0.4")
        return _seen_as(storages[name], dtype, length)

    def unpickled() -> Any:
        return unpickle(stream, maker.construct, storage, maker.budget)

    stream = Bounded(file, size)
    first = unpickled()
    if first != MAGIC:
        _require_placed(storages)
        return first
    unpickled()
    system = unpickled()
    if isinstance(system, dict) and not system.get("little_endian", True):
        raise UnsupportedError("it was written by a big-endian machine")
    content = unpickled()
    keys = unpickled()
    if not isinstance(keys, (list, tuple)):
        raise TypeError("it does not list its storages")
    for key in keys:
        name = _storage_name(key)
        length = struct.unpack("<q", stream.read(8))[0]
        whole = storages[name]
        whole.start = stream.at
        if not whole.size <= length <= (size - stream.at) // whole.dtype.itemsize:
            raise EOFError("it ends inside a tensor")
        stream.skip(length * whole.dtype.itemsize)
    _require_placed(storages)
    return content


def _require_placed(storages: Mapping[str, Storage]) -> None:
    if any(storage.start < 0 and storage.size for storage in storages.values()):
        raise EOFError("a storage is missing")


def _is_source(key: Any) -> bool:
    return isinstance(key, tuple) and len(key) > 1 and key[0] == "module" and isinstance(key[1], Global)


def _source(key: tuple[Any, ...]) -> Global:
    """The class of a module that was pickled together with its source code."""
    kind: Global = key[1]
    return kind


def _persistent(key: Any) -> tuple[torch.dtype, str, int]:
    if not (isinstance(key, tuple) and len(key) >= 5 and key[0] == "storage" and isinstance(key[1], Global)):
        raise ValueError("it refers to something that is no storage")
    name, size = key[2], key[4]
    if not isinstance(size, int) or not 0 <= size < 1 << 60:
        raise ValueError("a storage has no valid size")
    if key[1].name not in STORAGES:
        raise UnsupportedError(f"it has storages of type {key[1]}")
    return STORAGES[key[1].name], _storage_name(name), size


def _storage_name(name: Any) -> str:
    if not (isinstance(name, str) or (isinstance(name, int) and abs(name) < 1 << 64)):
        raise ValueError("a storage has no valid name")
    return str(name)


def _seen_as(storage: Storage, dtype: torch.dtype, size: int) -> Storage:
    if (storage.dtype, storage.size) != (dtype, size):
        raise ValueError("a storage is described in two ways")
    return storage
