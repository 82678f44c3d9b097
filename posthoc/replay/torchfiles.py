"""Files of torch.save, plain pickles and safetensors: their content, with tensors as places in the file.

torch.save has three forms: the zip archive of torch 1.6 and later, the older sequence of pickles, and `pickle.dump` of
an object that holds tensors. Nothing in them is imported or run (see `pickles`), and a tensor is read only when it is
asked for.
"""

import io
import json
import math
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from posthoc.files import open_regular
from posthoc.replay.pickles import Bounded, Global, Record, unpickle
from posthoc.replay.strangers import StrangerError, archive_kind

MAGIC = 0x1950A86A20F9469CFC6C
"""What the older form begins with, as a pickled number."""
MAX_PICKLE = 1 << 30
MAX_HEADER = 100_000_000
"""Bytes of a safetensors header, the library's own limit."""
MAX_EXPANDED = 1 << 24
"""Elements of a tensor that repeats its storage (a stride of 0); no other may have more than its storage holds."""

STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}


DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}
"""torch's types of numbers by name: looked up here, for an attribute of torch may import half of it."""
SAFETENSORS = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64, "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
"""Types of numbers by their names in safetensors files."""


@dataclass(eq=False)
class Storage:
    """A run of numbers: at `start` of the file (known once the older form has been read to its end) or in `data`."""

    dtype: torch.dtype
    size: int
    start: int = -1
    data: bytes | None = None

    @property
    def bytes(self) -> int:
        return self.size * self.dtype.itemsize


@dataclass(frozen=True, eq=False)
class Stored:
    """A tensor that lies in a file: what `torch.Tensor.as_strided` needs to see it in its storage."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def extent(self) -> int:
        """Elements from its first to its last, both counted."""
        if 0 in self.shape:
            return 0
        return 1 + sum((count - 1) * step for count, step in zip(self.shape, self.stride, strict=True))

    def read(self, file: io.BufferedIOBase, into: Tensor | None = None, pin: bool = False) -> Tensor:
        """Its values, from the file in which it lies; `into` a tensor that fits them, else into new memory."""
        size = self.extent * self.dtype.itemsize
        if into is not None and (into.dtype, into.shape, into.stride()) == (self.dtype, self.shape, self.stride):
            buffer = into.as_strided((self.extent,), (1,)).view(torch.uint8)
        else:
            buffer = torch.empty(size, dtype=torch.uint8, pin_memory=pin)
        start = self.offset * self.dtype.itemsize
        if self.storage.data is not None:
            piece = np.frombuffer(self.storage.data, np.uint8, buffer.numel(), start)
            buffer.copy_(torch.from_numpy(piece.copy()))
        elif buffer.numel():
            file.seek(self.storage.start + start)
            if file.readinto(buffer.numpy().data) != size:
                raise EOFError("it ends inside a tensor")
        return buffer.view(self.dtype).as_strided(self.shape, self.stride).contiguous()


@dataclass(frozen=True)
class TorchFile:
    """What a file holds: containers, numbers, `Record`s for everything of a class, and `Stored` tensors."""

    path: Path
    content: Any
    start: int = 0
    end: int | None = None

    def tensors(
        self, wanted: Mapping[str, Stored], into: Mapping[str, Tensor] | None = None, pin: bool = False
    ) -> dict[str, Tensor]:
        """Read these tensors, into the memory of those of the same name where they fit, else into new (pinned) memory."""
        into = into or {}
        repeated = sum(
            math.prod(stored.shape)
            for stored in wanted.values()
            if math.prod(stored.shape) * stored.dtype.itemsize > stored.storage.bytes
        )
        if repeated > MAX_EXPANDED:
            raise ValueError("its tensors repeat their storage too often")
        with _opened(self.path, self.start, self.end) as (file, size):
            if sum(stored.extent * stored.dtype.itemsize for stored in wanted.values()) > 4 * size + (1 << 26):
                raise ValueError("its tensors are much larger than the file")
            return {name: stored.read(file, into.get(name), pin) for name, stored in wanted.items()}


def read_torch(path: Path, start: int = 0, end: int | None = None) -> TorchFile:
    """Read what torch.save or pickle.dump wrote to `path` (or to its bytes from `start` to `end`), tensors left there.

    Raises ValueError, LookupError, TypeError, EOFError, OSError and the like for a damaged file, as the libraries do.
    """
    with _opened(path, start, end) as (file, size):
        if file.read(4) == b"PK\3\4":
            content = _zip_archive(file, path)
        else:
            file.seek(0)
            content = _sequence(file, size)
    return TorchFile(path, content, start, end)


def read_safetensors(path: Path) -> tuple[TorchFile, dict[str, str]]:
    """The tensors of a safetensors file by name, left there, and its metadata; raises as `read_torch` does.

    Not through the library's memory map: a file that another process cuts short would end this one.
    """
    with open_regular(path) as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(MAX_HEADER, size - 8):
            raise EOFError("it ends inside its header")
        header = json.loads(file.read(length))
    found = {}
    for name, entry in header.items():
        if name != "__metadata__":
            dtype, shape, (start, end) = SAFETENSORS[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
            if len(shape) > 64 or not all(type(side) is int and 0 <= side < 1 << 60 for side in (start, end, *shape)):
                raise ValueError("a tensor has no valid shape")
            count = math.prod(shape)
            if end - start != count * dtype.itemsize or 8 + length + end > size:
                raise EOFError("it ends inside a tensor")
            strides = tuple(math.prod(shape[k + 1 :]) for k in range(len(shape)))
            found[name] = Stored(Storage(dtype, count, 8 + length + start), dtype, 0, shape, strides)
    said = header.get("__metadata__") or {}
    if not all(isinstance(text, str) for text in said.values()):
        raise ValueError("its metadata are no texts")
    return TorchFile(path, found), said


@contextmanager
def _opened(path: Path, start: int, end: int | None) -> Iterator[tuple[io.BufferedIOBase, int]]:
    with open_regular(path) as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        if start == 0 and end is None:
            yield file, size
            return
        end = size if end is None else end
        if not 0 <= start <= end <= size:
            raise EOFError("it ends before one of its tensors")
        file.seek(start)
        piece = io.BytesIO(file.read(end - start))
        yield piece, end - start


def _zip_archive(file: io.BufferedIOBase, path: Path) -> Any:
    archive = zipfile.ZipFile(file)
    entries = {entry.filename: entry for entry in archive.infolist()}
    root = next((name.removesuffix("data.pkl") for name in entries if name.endswith("/data.pkl")), None)
    if root is None:
        raise StrangerError(f"{path} is {archive_kind(entries)}.")
    if f"{root}byteorder" in entries and _bytes(file, entries[f"{root}byteorder"]) != b"little":
        raise ValueError("written by a big-endian machine")

    storages: dict[str, Storage] = {}

    def storage(key: Any) -> Storage | Global:
        if _is_source(key):
            return _source(key)
        dtype, name, size = _persistent(key)
        if name not in storages:
            entry = entries[f"{root}data/{name}"]
            storages[name] = Storage(dtype, size, _start(file, entry))
            if size * dtype.itemsize > entry.file_size:
                raise EOFError("a storage is shorter than said")
        return _seen_as(storages[name], dtype, size)

    data = io.BytesIO(_bytes(file, entries[f"{root}data.pkl"]))
    return unpickle(Bounded(data, len(data.getbuffer())), CONSTRUCT, storage)


def _start(file: io.BufferedIOBase, entry: zipfile.ZipInfo) -> int:
    """Where the bytes of a stored entry begin; checked to lie in the file."""
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
        raise ValueError("compressed inside, which torch.save does not do")
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
        raise ValueError("its pickle is larger than 1 GiB")
    file.seek(start)
    return file.read(entry.file_size)


def _sequence(file: io.BufferedIOBase, size: int) -> Any:
    """The older form: number, version, system, content, keys, then every storage with its length; or one pickle."""
    storages: dict[str, Storage] = {}

    def storage(key: Any) -> Storage | Global:
        if _is_source(key):
            return _source(key)
        dtype, name, length = _persistent(key)
        whole = storages.setdefault(name, Storage(dtype, length))
        if len(key) > 5 and key[5] is not None:
            raise ValueError("a storage is a view of another, which torch stopped writing in version 0.4")
        return _seen_as(whole, dtype, length)

    stream = Bounded(file, size)
    first = unpickle(stream, CONSTRUCT, storage)
    if first != MAGIC:
        return first
    unpickle(stream, CONSTRUCT, storage)
    system = unpickle(stream, CONSTRUCT, storage)
    if isinstance(system, dict) and not system.get("little_endian", True):
        raise ValueError("written by a big-endian machine")
    content = unpickle(stream, CONSTRUCT, storage)
    for key in unpickle(stream, CONSTRUCT, storage):
        name = _storage_name(key)
        length = struct.unpack("<q", stream.read(8))[0]
        dtype = storages[name].dtype
        storages[name].start = file.tell()
        if not storages[name].size <= length <= (size - file.tell()) // dtype.itemsize:
            raise EOFError("it ends inside a tensor")
        file.seek(length * dtype.itemsize, io.SEEK_CUR)
    if any(storage.start < 0 and storage.size for storage in storages.values()):
        raise EOFError("a storage is missing")
    return content


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
        raise ValueError(f"storages of type {key[1]} are not read")
    return STORAGES[key[1].name], _storage_name(name), size


def _storage_name(name: Any) -> str:
    if not (isinstance(name, str) or (isinstance(name, int) and abs(name) < 1 << 64)):
        raise ValueError("a storage has no valid name")
    return str(name)


def _seen_as(storage: Storage, dtype: torch.dtype, size: int) -> Storage:
    if (storage.dtype, storage.size) != (dtype, size):
        raise ValueError("a storage is described in two ways")
    return storage


# The functions that tensors and their containers are made with.


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Stored:
    if len(rest) > 2 and rest[2]:
        raise ValueError("a tensor is a conjugate or negative view, which is not read")
    if not isinstance(storage, Storage):
        raise TypeError("a tensor lies in what is no storage")
    return _checked(storage, storage.dtype, offset, size, stride)


def _typed_tensor(
    storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *rest: Any
) -> Stored:
    return _checked(storage, torch_dtype(dtype), offset, size, stride)


def _checked(storage: Storage, dtype: torch.dtype, offset: Any, size: Any, stride: Any) -> Stored:
    shape, steps = tuple(size), tuple(stride)
    if len(shape) > 64 or len(steps) > 64:
        raise ValueError("a tensor has no valid shape")
    numbers = (offset, *shape, *steps)
    if len(shape) != len(steps) or not all(type(n) is int and 0 <= n < 1 << 60 for n in numbers):
        raise ValueError("a tensor has no valid shape")
    stored = Stored(storage, dtype, offset, shape, steps)
    if (offset + stored.extent) * dtype.itemsize > storage.bytes:
        raise EOFError("a tensor reaches past the end of its storage")
    if math.prod(shape) > max(storage.bytes // dtype.itemsize, MAX_EXPANDED):
        raise ValueError("a tensor repeats its storage too often")
    return stored


def torch_dtype(name: Any) -> torch.dtype:
    """torch's dtype of that recorded name."""
    if not (isinstance(name, Global) and name.module == "torch" and name.name in DTYPES):
        raise ValueError("a tensor is of no type of numbers")
    return DTYPES[name.name]


def _parameter(data: Any, *rest: Any) -> Any:
    return data


def _from_type(function: Any, kind: Any, arguments: Any, state: Any) -> Any:
    known = isinstance(function, Global) and function in CONSTRUCT
    return CONSTRUCT[function](*arguments) if known else Record(function, arguments, state)


def _storage_from_bytes(data: Any) -> Any:
    """A storage in a plain pickle: the older form of torch.save within its bytes."""
    if not isinstance(data, bytes):
        raise TypeError("a storage is none")
    file = io.BytesIO(data)
    storage = _sequence(file, len(data))
    if not isinstance(storage, Storage):
        raise TypeError("a storage is none")
    storage.data = data[storage.start : storage.start + storage.bytes]
    return storage


def _encoded(text: Any, encoding: Any = "utf-8", *rest: Any) -> bytes:
    if not (isinstance(text, str) and encoding in ("latin1", "latin-1", "utf-8", "ascii")):
        raise TypeError("a text in an unknown encoding")
    return text.encode(encoding)


def _scalar(dtype: Any, data: Any = None, *rest: Any) -> Any:
    """A number of NumPy's."""
    kind = _numpy_dtype(dtype)
    if kind is None or not isinstance(data, bytes) or len(data) != kind.itemsize:
        return Record(Global("numpy", "scalar"), (dtype, data))
    return np.frombuffer(data, kind)[0].item()


def _numpy_dtype(record: Any) -> np.dtype[Any] | None:
    """The number type that a pickled NumPy dtype names, in the byte order of its state; None for any other."""
    if not (isinstance(record, Record) and record.name == "numpy.dtype" and record.args):
        return None
    code, state = record.args[0], record.state
    order = state[1] if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">") else "<"
    if not isinstance(code, str) or code not in {f"{kind}{width}" for kind in "fiu" for width in (1, 2, 4, 8)} | {"b1"}:
        return None
    return np.dtype(order + code) if code != "f1" else None


def numpy_array(record: Any) -> Tensor | None:
    """The tensor of a pickled NumPy array of numbers; None for anything else."""
    if isinstance(record, Record) and record.name in _NUMPY_BUFFERS and len(record.args) == 4:
        data, dtype, shape, order = record.args
        fortran = order == "F"
    elif isinstance(record, Record) and record.name in _NUMPY_ARRAYS and isinstance(record.state, tuple):
        _, shape, dtype, fortran, data = record.state
    else:
        return None
    kind = _numpy_dtype(dtype)
    if isinstance(data, str):  # Python 2 had no other bytes
        data = data.encode("latin-1")
    if kind is None or not isinstance(data, (bytes, bytearray)) or not isinstance(shape, tuple):
        return None
    array = np.frombuffer(data, kind).astype(kind.newbyteorder("="))
    return torch.from_numpy(array.reshape(shape, order="F" if fortran else "C").copy())


def _reconstructed(kind: Any, *rest: Any) -> Record:
    """`copyreg._reconstructor`, by which the oldest protocols make any object."""
    return Record(kind)


def _globals(names: Mapping[str, Callable[..., Any]]) -> dict[Global, Callable[..., Any]]:
    return {Global(*name.rsplit(".", 1)): function for name, function in names.items()}


_NUMPY_BUFFERS = ("numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer")
_NUMPY_ARRAYS = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")


def _dictionary(*arguments: Any) -> dict[Any, Any]:
    """An ordered, default or counting dictionary; the oldest protocols pass the items as lists of two."""
    pairs = arguments[0] if arguments and isinstance(arguments[0], list) else []
    return {key: value for key, value in pairs if isinstance(key, str)}


def _sequence_of(*arguments: Any) -> list[Any]:
    return list(arguments[0]) if arguments and isinstance(arguments[0], (list, tuple)) else []


CONSTRUCT: dict[Global, Callable[..., Any]] = _globals({
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _typed_tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _from_type,
    "torch.storage._load_from_bytes": _storage_from_bytes,
    "torch.Size": lambda sizes=(): tuple(sizes),
    "collections.OrderedDict": _dictionary,
    "collections.defaultdict": _dictionary,
    "collections.Counter": _dictionary,
    "builtins.set": _sequence_of,
    "__builtin__.set": _sequence_of,
    "builtins.frozenset": _sequence_of,
    "__builtin__.frozenset": _sequence_of,
    "_codecs.encode": _encoded,
    "copyreg._reconstructor": _reconstructed,
    "copy_reg._reconstructor": _reconstructed,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
})  # fmt: skip
