"""Tensors as places in a file, and what pickles may call to describe them: nothing is read until it is asked for."""

import io
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from posthoc.replay.budget import Budget
from posthoc.replay.dtypes import DTYPES, DType
from posthoc.replay.pickles import Global, Record
from posthoc.replay.source import Source
from posthoc.replay.strangers import UnsupportedError

MAX_DIMENSIONS = 64
NESTED = 100
"""Operations that a file within a file is charged with, beside its own."""

_KINDS = (
    "Double=float64 Float=float32 Half=float16 BFloat16=bfloat16 Long=int64 Int=int32 Short=int16 Char=int8 Byte=uint8 "
    "Bool=bool ComplexFloat=complex64 ComplexDouble=complex128 Untyped=uint8 QInt8=qint8 QUInt8=quint8 QInt32=qint32 "
    "QUInt4x2=quint4x2 QUInt2x4=quint2x4"
)
STORAGES = {f"{kind}Storage": DTYPES[dtype] for kind, dtype in (pair.split("=") for pair in _KINDS.split())}
"""Types of numbers by torch's names of storages."""


@dataclass(eq=False)
class Storage:
    """A run of numbers: at `start` of the file (known once the older form has been read to its end) or in `data`."""

    dtype: DType
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
    dtype: DType
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def extent(self) -> int:
        """Elements from its first to its last, both counted."""
        if 0 in self.shape:
            return 0
        return 1 + sum((count - 1) * step for count, step in zip(self.shape, self.stride, strict=True))

    @property
    def bytes(self) -> int:
        """Of its extent."""
        return self.extent * self.dtype.itemsize

    @property
    def is_contiguous(self) -> bool:
        return self.stride == contiguous(self.shape)

    @property
    def start(self) -> int:
        """Where its first byte is: in the bytes of its storage, or else in its file."""
        return (self.storage.start if self.storage.data is None else 0) + self.offset * self.dtype.itemsize

    def read(self, fill: Callable[[int, memoryview], int], memory: NDArray[np.uint8]) -> None:
        """Fill memory [bytes] with its extent; fill: reads the bytes of its file from there on, and says how many."""
        if self.storage.data is not None and memory.size:
            memory[:] = np.frombuffer(self.storage.data, np.uint8, memory.size, self.start)
        elif memory.size and fill(self.start, memory.data) != memory.size:
            raise EOFError("it ends inside a tensor")


@dataclass(frozen=True, eq=False)
class Deferred:
    """A tensor that `fill` puts together in memory [bytes] when it is asked for; whoever describes it charges the budget for it."""

    shape: tuple[int, ...]
    dtype: DType
    fill: Callable[[NDArray[np.uint8]], None]
    is_contiguous = True

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def stride(self) -> tuple[int, ...]:
        return contiguous(self.shape)


Memory = Mapping[str, tuple[Any, NDArray[np.uint8]]]
"""Tensors by name, each with the bytes of memory that it is to be read into."""


@dataclass(frozen=True, eq=False)
class Numbers:
    """A tensor that was read, without torch: its bytes [numbers x itemsize], rows one behind the other."""

    dtype: DType
    shape: tuple[int, ...]
    raw: NDArray[np.uint8]

    @property
    def values(self) -> NDArray[Any]:
        """Its numbers [numbers], in NumPy's type where it has it, else in single precision."""
        return self.dtype.values(self.raw)


def read_numbers(
    read: Callable[[Memory], None], wanted: Mapping[str, Any], spare: Mapping[str, NDArray[np.uint8]]
) -> dict[str, Numbers]:
    """The numbers of tensors by name, by a `Content.read`; spare: memory by name that may be used again, if it fits."""
    memory = {}
    for name, stored in wanted.items():
        old = spare.get(name)
        if old is None or old.size != stored.bytes:
            old = np.empty(stored.bytes, np.uint8)
        memory[name] = stored, old
    read(memory)
    return {name: Numbers(stored.dtype, stored.shape, _rows(stored, raw)) for name, (stored, raw) in memory.items()}


def _rows(stored: Any, raw: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The bytes of a tensor's extent with its rows one behind the other."""
    if stored.is_contiguous:
        return raw
    width = stored.dtype.itemsize
    strides = [step * width for step in stored.stride]
    words = np.lib.stride_tricks.as_strided(raw.view(f"V{width}"), stored.shape, strides)
    return words.copy().reshape(-1).view(np.uint8)


class Block(NamedTuple):
    """Where the numbers of a tensor lie in a file, its rows one behind the other."""

    dtype: DType
    shape: tuple[int, ...]
    start: int
    end: int


def stored_blocks(source: Source, path: Path, blocks: Mapping[str, Block]) -> dict[str, Stored]:
    """Tensors by name that lie in the file, each in bytes of its own; charged to the source's budget.

    Raises ValueError or EOFError where they do not fit, UnsupportedError where two of them lie in the same bytes.
    """
    maker = Maker(source.budget, lambda *arguments: None)
    tensors, size = {}, source.size(path)
    for name, (dtype, shape, start, end) in blocks.items():
        require_shape((start, end, *shape), len(shape))
        count = math.prod(shape)
        if end - start != count * dtype.itemsize or end > size:
            raise EOFError("it ends inside a tensor")
        tensors[name] = maker.view(maker.storage(dtype, count, start), dtype, 0, shape, contiguous(shape))
    places = sorted((block.start, block.end) for block in blocks.values())
    if any(first[1] > second[0] for first, second in itertools.pairwise(places)):
        raise UnsupportedError("two of its tensors lie in the same bytes")
    return tensors


def reader(source: Source, path: Path, start: int = 0, end: int | None = None) -> Callable[[Memory], None]:
    """A function that reads `Stored` tensors of a file (of its bytes from `start` to `end`), as `Content.read` does."""

    def read(wanted: Memory) -> None:
        with source.part(path, start, end) as part:
            for stored, memory in sorted(wanted.values(), key=lambda pair: pair[0].start):  # in the order of the file
                stored.read(part.fill, memory)

    return read


def require_shape(numbers: Any, dimensions: int) -> None:
    """Raise ValueError where sides (and what counts as they do) are no such numbers, or too many."""
    if dimensions > MAX_DIMENSIONS or not all(type(number) is int and 0 <= number < 1 << 60 for number in numbers):
        raise ValueError("a tensor has no valid shape")


def contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of a tensor whose rows lie one behind the other."""
    return tuple(math.prod(shape[k + 1 :]) for k in range(len(shape)))


class Maker:
    """Makes what a file's pickles call for: tensors and their containers. All that it makes is charged to `budget`.

    construct: the functions that pickles may call, by name; parse: reads a file within the file.
    """

    def __init__(self, budget: Budget, parse: Callable[[io.BufferedIOBase, int, "Maker"], Any]) -> None:
        self.budget = budget
        self.parse = parse
        self.views: dict[Any, Stored] = {}
        numpy = ("numpy.core", "numpy._core")
        known: dict[str, Callable[..., Any]] = {
            "torch._utils._rebuild_tensor torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_tensor_v3": self._typed_tensor,
            "torch._utils._rebuild_parameter torch._utils._rebuild_parameter_with_state": lambda data, *rest: data,
            "torch._tensor._rebuild_from_type_v2": self._from_type,
            "torch.storage._load_from_bytes": self._storage_from_bytes,
            "torch.Size": lambda sizes=(): tuple(self._sequence(sizes)),
            "collections.OrderedDict collections.defaultdict collections.Counter": self._dictionary,
            "builtins.set __builtin__.set builtins.frozenset __builtin__.frozenset": self._sequence,
            "_codecs.encode": self.encoded,
            # By which the oldest protocols make any object.
            "copyreg._reconstructor copy_reg._reconstructor": lambda kind, *rest: Record(kind),
            " ".join(f"{module}.multiarray.scalar" for module in numpy): _scalar,
            " ".join(f"{module}.multiarray._reconstruct" for module in numpy): self._array,
            " ".join(f"{module}.numeric._frombuffer" for module in numpy): self._buffer,
        }
        self.construct = {
            Global(*name.rsplit(".", 1)): function for names, function in known.items() for name in names.split()
        }

    def storage(self, dtype: DType, size: int, start: int = -1, data: bytes | None = None) -> Storage:
        """A storage of `size` numbers."""
        self.budget.produce(size * dtype.itemsize)
        return Storage(dtype, size, start, data)

    def view(
        self, storage: Storage, dtype: DType, offset: int, shape: tuple[int, ...], stride: tuple[int, ...]
    ) -> Stored:
        """A tensor that lies in a storage; the same one again is the same object."""
        key = (id(storage), dtype, offset, shape, stride)
        if key not in self.views:
            stored = Stored(storage, dtype, offset, shape, stride)
            self.budget.tensor(max(math.prod(shape), stored.extent) * dtype.itemsize)
            if (offset + stored.extent) * dtype.itemsize > storage.bytes:
                raise EOFError("a tensor reaches past the end of its storage")
            self.views[key] = stored
        return self.views[key]

    def _checked(self, storage: Any, dtype: DType, offset: Any, size: Any, stride: Any) -> Stored:
        if not isinstance(storage, Storage):
            raise TypeError("a tensor lies in what is no storage")
        if not (isinstance(size, (tuple, list)) and isinstance(stride, (tuple, list)) and len(size) == len(stride)):
            raise ValueError("a tensor has no valid shape")
        require_shape((offset, *size, *stride), len(size))
        return self.view(storage, dtype, offset, tuple(size), tuple(stride))

    def _tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Stored:
        if len(rest) > 2 and rest[2]:
            raise UnsupportedError("a tensor is a conjugate or negative view")
        return self._checked(storage, getattr(storage, "dtype", DTYPES["uint8"]), offset, size, stride)

    def _typed_tensor(
        self, storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *rest: Any
    ) -> Stored:
        return self._checked(storage, named_dtype(dtype), offset, size, stride)

    def _from_type(self, function: Any, kind: Any, arguments: Any, state: Any) -> Any:
        # Not itself again: each call would be one within another.
        known = isinstance(function, Global) and function.name.startswith("_rebuild_") and function in self.construct
        if known and function.module == "torch._utils" and isinstance(arguments, tuple):
            return self.construct[function](*arguments)
        return Record(function, arguments if isinstance(arguments, tuple) else (arguments,), state)

    def _storage_from_bytes(self, data: Any) -> Any:
        """A storage in a plain pickle: the older form of torch.save within its bytes."""
        if not isinstance(data, bytes):
            raise TypeError("a storage is none")
        self.budget.operate(NESTED)
        with self.budget.nested():
            storage = self.parse(io.BytesIO(data), len(data), self)
        if not isinstance(storage, Storage):
            raise TypeError("a storage is none")
        storage.data = data[storage.start : storage.start + storage.bytes]
        return storage

    def _sequence(self, *arguments: Any) -> list[Any]:
        values = arguments[0] if arguments and isinstance(arguments[0], (list, tuple)) else []
        self.budget.operate(len(values))
        return list(values)

    def _dictionary(self, *arguments: Any) -> dict[Any, Any]:
        """An ordered, default or counting dictionary; the oldest protocols pass the items as lists of two."""
        pairs = arguments[0] if arguments and isinstance(arguments[0], list) else []
        self.budget.operate(len(pairs))
        return dict(pair for pair in pairs if _is_pair(pair))

    def encoded(self, text: Any, encoding: Any = "utf-8", *rest: Any) -> bytes:
        """The bytes of a text."""
        if not (isinstance(text, str) and encoding in ("latin1", "latin-1", "utf-8", "ascii")):
            raise TypeError("a text in an unknown encoding")
        self.budget.produce(len(text))
        return text.encode(encoding)

    def _array(self, *arguments: Any) -> "Array":
        return Array(Global("numpy", "ndarray"), arguments, maker=self)

    def _buffer(self, *arguments: Any) -> "Array":
        array = Array(Global("numpy", "ndarray"), (), maker=self)
        if len(arguments) == 4:
            data, dtype, shape, order = arguments
            array.state = (1, shape, dtype, order == "F", data)
        return array


@dataclass(eq=False, repr=False, slots=True)
class Array(Record):
    """A pickled NumPy array, whose state says what is in it."""

    maker: Maker | None = None
    stored: Stored | None = None

    def tensor(self) -> Stored | None:
        """The tensor that it is, in native byte order; None for an array of anything but numbers."""
        if self.stored is None and self.maker and isinstance(self.state, tuple) and len(self.state) == 5:
            _, shape, dtype, fortran, data = self.state
            kind = _numpy_dtype(dtype)
            if isinstance(data, str):  # Python 2 had no other bytes
                data = self.maker.encoded(data, "latin-1")
            if kind is None or not isinstance(data, (bytes, bytearray)) or not isinstance(shape, tuple):
                return None
            if len(shape) > MAX_DIMENSIONS or not all(type(n) is int and 0 <= n < 1 << 60 for n in shape):
                raise ValueError("an array has no valid shape")
            if math.prod(shape) * kind.itemsize != len(data):
                raise EOFError("an array is not as long as said")
            native = np.frombuffer(data, kind).astype(kind.newbyteorder("="), copy=not kind.isnative)
            numbers = DTYPES[native.dtype.name]
            storage = self.maker.storage(numbers, native.size, data=bytes(data) if kind.isnative else native.tobytes())
            stride = contiguous(shape) if not fortran else contiguous(shape[::-1])[::-1]
            self.stored = self.maker.view(storage, numbers, 0, shape, stride)
        return self.stored


def _is_pair(pair: Any) -> bool:
    return isinstance(pair, (list, tuple)) and len(pair) == 2 and isinstance(pair[0], str)


def named_dtype(name: Any) -> DType:
    """The type of that recorded name."""
    if not (isinstance(name, Global) and name.module == "torch" and name.name in DTYPES):
        raise ValueError("a tensor is of no type of numbers")
    return DTYPES[name.name]


def _scalar(dtype: Any, data: Any = None, *rest: Any) -> Any:
    """A number of NumPy's."""
    kind = _numpy_dtype(dtype)
    if kind is None or not isinstance(data, bytes) or len(data) != kind.itemsize:
        return Record(Global("numpy", "scalar"), (dtype, data))
    return np.frombuffer(data, kind)[0].item()


NUMPY_TYPES = frozenset({f"{kind}{width}" for kind in "fiu" for width in (1, 2, 4, 8)} - {"f1"} | {"b1"})


def _numpy_dtype(record: Any) -> np.dtype[Any] | None:
    """The number type that a pickled NumPy dtype names, in the byte order of its state; None for any other."""
    if not (isinstance(record, Record) and record.kind == Global("numpy", "dtype") and record.args):
        return None
    code, state = record.args[0], record.state
    order = state[1] if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">") else "<"
    return np.dtype(order + code) if isinstance(code, str) and code in NUMPY_TYPES else None


@dataclass(frozen=True, eq=False)
class Unread:
    """Where a tensor of a kind that is not read lies; `what` in words. It has a single number's shape."""

    what: str
    shape: tuple[int, ...] = ()
    dtype: DType = DTYPES["float32"]


_UNREAD = {
    "_rebuild_qtensor": "quantised",
    "_rebuild_sparse_tensor": "a sparse tensor",
    "_rebuild_sparse_csr_tensor": "a sparse tensor",
    "_rebuild_meta_tensor_no_storage": "a tensor on the meta device, whose values were never saved",
    "_rebuild_nested_tensor": "a nested tensor",
}


def leaf(value: Any) -> Stored | Deferred | Unread | None:
    """The tensor that a value is, of torch or NumPy; None for any other value."""
    if isinstance(value, (Stored, Deferred)):
        return value
    if isinstance(value, Array):
        return value.tensor()
    if isinstance(value, Record) and isinstance(value.kind, Global):
        if value.kind.name.startswith("_rebuild_"):
            return Unread(_UNREAD.get(value.kind.name, f"made by {value.kind.name[:60]}") + _type_of(value))
        if value.kind.module.startswith("__torch__.torch.classes.quantized"):
            return Unread("packed for quantised operations")
    if isinstance(value, tuple) and 1 < len(value) < 5 and isinstance(value[0], Record):
        return leaf(value[0])  # weight and bias of a quantised layer
    return None


def _type_of(record: Record) -> str:
    storage = record.args[0] if record.args else None
    return f" ({storage.dtype})" if isinstance(storage, Storage) else ""
