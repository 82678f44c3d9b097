"""Whether an HDF5 file is what our activations files are: found out before anything in it is read.

HDF5 follows links and storage into other files, makes room for whatever a few bytes claim, and runs what filters are
installed. So every object that is read is reached by hard links alone, is laid out as ours are, claims no more than is
stored, and has the type and the lengths that it should. What else is in the file is not opened.
"""

import json
import math
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np
from numpy.typing import NDArray

from posthoc.errors import PosthocError
from posthoc.recording import Provenance, Recording, from_version_1
from posthoc.typed import typed

RECORDING_BYTES = 2**24
DEFLATE, SHUFFLE = h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE
SWELLING = 64
"""How many times larger than stored signals may be where an earlier version compressed them."""
SPARE_BYTES = 2**26
REFERENCE = struct.Struct("<IQI")
"""What stands in a dataset for a text: its length, and where it is."""
HERE = h5py.h5s.ALL
COLUMNS = ("i", "f", "O")
"""Kinds of what has one value for each checkpoint, sample or unit, and is stored at one place: all else is in blocks."""


BROKEN = (OSError, ValueError, TypeError, KeyError, RuntimeError, AttributeError, MemoryError, OverflowError)
"""What HDF5 and h5py raise of a file that is no sound one."""


class UnsoundError(ValueError):
    """What is wrong, as the end of a sentence."""


class SoundFile:
    """The datasets of an open file, each checked when it is asked for. raw: the same file, for its plain bytes.

    Numbers come as int64 or float64, texts as strings; a byte that is no UTF-8 (in a file's name) as half a surrogate.
    """

    def __init__(self, file: h5py.File, raw: BinaryIO) -> None:
        self._file = file
        self._raw = raw
        self._size = os.fstat(raw.fileno()).st_size
        self._stored = 0
        self._groups: dict[str, h5py.h5g.GroupID] = {"": h5py.h5g.open(file.id, b"/")}
        """Those that were opened, by their places."""
        if file.userblock_size:
            raise UnsoundError("something else stands before it")

    def attribute(self, name: str, kind: type) -> Any:
        """A text (str) or a whole number (int) that is an attribute of the file; None where there is none."""
        if name not in self._file.attrs:
            return None
        about = self._file.attrs.get_id(name)
        plain = about.shape == () and (about.dtype.kind in "iu" or h5py.check_string_dtype(about.dtype) is not None)
        value = self._file.attrs[name] if plain else None
        if not isinstance(value, str if kind is str else np.integer):
            raise UnsoundError(f"its attribute {name} is not {'a text' if kind is str else 'a whole number'}")
        return kind(value)

    def recording(self) -> Recording:
        """What was replayed, and how; files of version 1 have it in another form."""
        name = "recording" if "recording" in self._file.attrs else "config"
        text = self.attribute(name, str) or ""
        if len(text) > RECORDING_BYTES:
            raise UnsoundError(f"its {name} is too long")
        try:
            content = json.loads(text)
            return Recording.from_dict(content) if name == "recording" else from_version_1(content)
        except RecursionError:
            raise UnsoundError(f"its {name} is nested too deep") from None
        except ValueError as error:
            raise UnsoundError(f"its {name}: {error}") from error

    def provenances(self, place: str) -> list[Provenance]:
        """A column of provenances."""
        try:
            return [typed(Provenance, json.loads(text)) for text in self.texts(place)]
        except RecursionError:
            raise UnsoundError(f"/{place} is nested too deep") from None
        except ValueError as error:
            raise UnsoundError(f"/{place}: {error}") from error

    def has(self, place: str) -> bool:
        """Whether something has that name."""
        folder, _, name = place.rpartition("/")
        return (not folder or folder in self._groups or self.has(folder)) and _exists(self._group(folder, place), name)

    def names(self, place: str) -> list[str]:
        """What is in a group; nothing where there is none."""
        if not self.has(place):
            return []
        return [key.decode("utf-8", "surrogateescape") for key in self._group(place, place)]

    def numbers(self, place: str, kind: str, length: int | None = None, least: float = -math.inf) -> NDArray[Any]:
        """A column of whole numbers (kind `i`) or others (`f`), none of them below `least`."""
        dataset = self._dataset(place, kind, 1, length)
        values = np.empty(dataset.shape, "i8" if kind == "i" else "f8")
        dataset.read(HERE, HERE, values)
        if (values < least).any():
            raise UnsoundError(f"/{place} has a value below {least:g}")
        return values

    def texts(self, place: str, length: int | None = None) -> tuple[str, ...]:
        """A column of texts."""
        dataset = self._dataset(place, "O", 1, length)
        count, start = dataset.shape[0], dataset.get_offset()
        self._raw.seek(start or 0)
        references = self._raw.read(REFERENCE.size * count)
        if start is None or len(references) != REFERENCE.size * count:
            raise UnsoundError(f"/{place} is not stored as posthoc stores it")
        self._claim(place, sum(size for size, _, _ in REFERENCE.iter_unpack(references)), self._size)
        values = np.empty(dataset.shape, h5py.string_dtype())
        dataset.read(HERE, HERE, values)
        return tuple(value.decode("utf-8", "surrogateescape") for value in values.tolist())

    def block(
        self, place: str, dtype: str, shape: tuple[int | None, ...], more: int = 0, other: str | None = None
    ) -> h5py.Dataset:
        """An array of that shape (None: of any length), by checkpoint, to be read by `row_of`; it may have `more` axes.

        other: another type that it may be of.
        """
        dataset = self._dataset(place, dtype, len(shape), shape[0], more, other)
        chunk = dataset.get_create_plist().get_chunk()
        fits = all(length in (None, actual) for length, actual in zip(shape, dataset.shape, strict=False))
        whole = dataset.get_create_plist().get_nfilters() > 0 or len(chunk) < 4
        in_part = chunk[1:2] if whole else chunk[1:3]
        sides = (1, *map(min, in_part, dataset.shape[1:]), *dataset.shape[1 + len(in_part) :])
        if not fits or chunk != sides:
            lengths = ", ".join("any" if length is None else str(length) for length in shape)
            raise UnsoundError(f"/{place} is of shape {dataset.shape} in blocks of {chunk}, not ({lengths})")
        return h5py.Dataset(dataset)

    def _dataset(
        self, place: str, kind: str, rank: int, length: int | None, more: int = 0, other: str | None = None
    ) -> h5py.h5d.DatasetID:
        """kind: `i`, `f` or `O` (texts), or the exact type of an array in blocks, or `other`."""
        folder, _, name = place.rpartition("/")
        dataset = _open(self._group(folder, place), name, place)
        if not isinstance(dataset, h5py.h5d.DatasetID):
            raise UnsoundError(f"/{place} is no dataset")
        properties, dtype = dataset.get_create_plist(), dataset.dtype
        if properties.get_layout() == h5py.h5d.VIRTUAL or properties.get_external_count():
            raise UnsoundError(f"/{place} is stored in other files")
        if not _is_of(dtype, kind) and (other is None or dtype != np.dtype(other)):
            raise UnsoundError(f"/{place} has values of type {dtype}")
        shape = dataset.shape
        if not rank <= len(shape) <= rank + more or not all(shape) or length not in (None, shape[0]):
            raise UnsoundError(f"/{place} is of shape {shape}" + (f", not {length} long" if length else ""))
        filters = [properties.get_filter(k)[0] for k in range(properties.get_nfilters())]
        in_blocks = kind not in COLUMNS
        usual = [[], [DEFLATE], [SHUFFLE, DEFLATE]] if (kind, len(shape)) == ("<f4", 3) else [[]]
        if (properties.get_layout() == h5py.h5d.CHUNKED) != in_blocks or filters not in usual:
            raise UnsoundError(f"/{place} is not stored as posthoc stores it")
        stored = dataset.get_storage_size()
        most = SWELLING * stored + SPARE_BYTES if filters else stored
        self._claim(place, math.prod(shape) * dtype.itemsize, most)
        self._claim(place, stored, self._size - self._stored)
        self._stored += stored
        return dataset

    def _group(self, folder: str, place: str) -> h5py.h5g.GroupID:
        """The group at `folder`, in which `place` is looked for."""
        if folder not in self._groups:
            above, _, name = folder.rpartition("/")
            inner = _open(self._group(above, place), name, place)
            if not isinstance(inner, h5py.h5g.GroupID):
                raise UnsoundError(f"{name} in /{place} is no group")
            self._groups[folder] = inner
        return self._groups[folder]

    def _claim(self, place: str, claimed: int, most: int) -> None:
        if claimed > most:
            raise UnsoundError(f"/{place} claims {claimed:.3g} bytes where {max(most, 0):.3g} are stored")


def row_of(dataset: h5py.Dataset, row: int, within: tuple[slice, ...] = ()) -> NDArray[Any]:
    """A row of an array in blocks, of signals [C, N], or what lies within such slices of it.

    Blocks that an earlier version compressed are taken apart here: HDF5 would let one swell without end.
    """
    if not dataset.compression:
        values: NDArray[Any] = dataset[(row, *within)]
        return values
    filters = [SHUFFLE, DEFLATE] if dataset.shuffle else [DEFLATE]
    height, width = dataset.chunks[1:]
    out = np.empty((-(-dataset.shape[1] // height) * height, width), "<f4")
    for first in range(0, dataset.shape[1], height):
        mask, block = dataset.id.read_direct_chunk((row, first, 0))
        applied = [name for k, name in enumerate(filters) if not mask >> k & 1]
        raw = zlib.decompressobj().decompress(block, 4 * height * width) if DEFLATE in applied else block
        if len(raw) != 4 * height * width:
            raise OSError(f"a block holds {len(raw)} bytes")
        if SHUFFLE in applied:
            raw = np.frombuffer(raw, "u1").reshape(4, -1).T.tobytes()
        out[first : first + height] = np.frombuffer(raw, "<f4").reshape(height, width)
    return out[: dataset.shape[1]][within]


def _is_of(dtype: np.dtype[Any], kind: str) -> bool:
    if kind == "O":
        text = h5py.check_string_dtype(dtype)
        return text is not None and text.length is None
    if kind in COLUMNS:
        return dtype.kind == kind and dtype.itemsize <= 8
    return bool(dtype == np.dtype(kind))


def _exists(group: h5py.h5g.GroupID, name: str) -> bool:
    key = name.encode("utf-8", "surrogateescape")
    return b"\0" not in key and name not in ("", ".") and bool(group.links.exists(key))


def _open(group: h5py.h5g.GroupID, name: str, place: str) -> Any:
    """What a hard link leads to: others may lead out of the file."""
    if not _exists(group, name):
        raise UnsoundError(f"it lacks /{place}")
    key = name.encode("utf-8", "surrogateescape")
    if group.links.get_info(key).type != h5py.h5l.TYPE_HARD:
        raise UnsoundError(f"/{place} is a link to elsewhere")
    return h5py.h5o.open(group, key)


@contextmanager
def refusing(path: Path) -> Iterator[None]:
    """One sentence for whatever HDF5 and h5py make of a file that is broken, or made to break them."""
    try:
        yield
    except BROKEN as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise PosthocError(
            f"{path} is damaged or cut short, or not what posthoc wrote ({reason}); extract it again."
        ) from error
