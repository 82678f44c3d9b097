"""Files of arrays, .npz and .npy: which of them are inputs, targets and positions in the data set. Nothing is unpickled."""

import math
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from posthoc.errors import PosthocError
from posthoc.files import open_regular

Array = NDArray[Any]
TARGETS = ("y", "labels", "label", "targets", "target", "masks")
"""Names of what is right."""
INPUTS = ("images", "image", "x", "inputs", "input", "data")
"""Names of what is fed, where there is other beside it."""
UNPACKED = 100
"""Bytes that an archive may unpack to for each of its own: pictures seldom come to 20."""


@dataclass(frozen=True)
class Samples:
    """Arrays whose first axis is the sample.

    classes: how many the targets are of, where that is known; aside: the names of other arrays, which are neither inputs
    nor targets; target: the name of the targets, where they have one.
    """

    name: str
    inputs: Mapping[str, Array]
    targets: Array | None = None
    index: Array | None = None
    classes: int | None = None
    aside: tuple[str, ...] = ()
    target: str | None = None


class Head(NamedTuple):
    """What an array says of itself; by_columns: whether it is stored so."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    by_columns: bool

    @property
    def holds_numbers(self) -> bool:
        return self.dtype.kind in "biuf" and len(self.shape) > 0


def read_samples(path: Path, kind: str, split: str = "test") -> Samples:
    """The samples in a file of kind `npz` or `npy`.

    In an archive `x_test` and `y_test` (or `test_images` and `test_labels`) come first; else the targets are under one of
    `TARGETS`, and all other arrays of numbers with as many rows are inputs.
    """
    name = f"{kind}:{path.name}"
    if kind == "npy":
        with _refusing(path, "readable .npy file"), open_regular(path) as file:
            return Samples(name, {"input": _read(file, path.stat().st_size)})
    with (
        _refusing(path, "readable .npz archive of arrays"),
        open_regular(path) as file,
        zipfile.ZipFile(file) as archive,
    ):
        _require_sound(path, archive)
        entries = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        heads = {}
        for key, info in entries.items():
            with archive.open(info) as stream:
                heads[key] = _head(stream)
        inputs, target, index = _roles(path, heads, split)

        def read(key: str) -> Array:
            with archive.open(entries[key]) as stream:
                return _read(stream, entries[key].file_size)

        used = {*inputs, target, index}
        aside = tuple(key for key in heads if key not in used and not key.startswith(("x_", "y_", "train_", "val_")))
        return Samples(
            name,
            {key: read(key) for key in inputs},
            read(target) if target else None,
            read(index) if index else None,
            aside=aside,
            target=target,
        )


def _roles(path: Path, heads: Mapping[str, Head], split: str) -> tuple[Sequence[str], str | None, str | None]:
    """The names of the inputs, of the targets, and of the positions in the data set."""
    index = f"{split}_index" if f"{split}_index" in heads else None
    for x, y in ((f"x_{split}", f"y_{split}"), (f"{split}_images", f"{split}_labels"), (f"X_{split}", f"y_{split}")):
        if x in heads:
            return [x], y if y in heads else None, index
    targets = [key for key in TARGETS if key in heads]
    if len(targets) > 1:
        raise PosthocError(f"{path} holds {' and '.join(targets)}, each of which may be the targets; keep one.")
    others = [key for key, head in heads.items() if head.holds_numbers and key not in (*targets, index)]
    if not others:
        names = ", ".join(heads) or "nothing"
        raise PosthocError(f"{path} holds {names}; give inputs as an array of numbers with a row for each sample.")
    rows = heads[next((key for key in INPUTS if key in others), others[0])].shape[0]
    inputs = [key for key in others if heads[key].shape[0] == rows]
    return inputs, targets[0] if targets else None, index


def read_head(stream: IO[bytes]) -> Head:
    """The head of an array in NumPy's format; ValueError for one that is damaged."""
    version = npy.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version[0]}.{version[1]} of the format")
    reader = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    try:
        shape, by_columns, dtype = reader(stream)
    except (OSError, ValueError):
        raise
    except Exception as error:  # of Python's tokenizer and parser, through which NumPy takes any header
        raise ValueError(f"its header cannot be read ({error})") from error
    return Head(shape, dtype, by_columns)


def _head(stream: IO[bytes]) -> Head:
    """As `read_head`; ValueError for pickled objects, too."""
    head = read_head(stream)
    if head.dtype.hasobject:
        raise ValueError("it holds pickled objects")
    if any(side < 0 for side in head.shape):
        raise ValueError(f"an array claims the shape {head.shape}")
    return head


def _read(stream: IO[bytes], size: int) -> Array:
    """The array of a stream that has `size` bytes from here on; no room is made for more than there is."""
    head = _head(stream)
    if math.prod(head.shape) * head.dtype.itemsize > size:
        raise ValueError(f"an array claims the shape {head.shape}, for which {size:,} bytes are too few")
    stream.seek(0)
    array: Array = npy.read_array(stream, allow_pickle=False)
    return array


@contextmanager
def _refusing(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except (PosthocError, MemoryError):
        raise
    except Exception as error:  # numpy, zipfile and Python's tokenizer: no archive, torn, pickled objects, any header
        raise PosthocError(f"{path} is not a {what} ({error}); save it again.") from error


def _require_sound(path: Path, archive: zipfile.ZipFile) -> None:
    """Raise for an archive with a name twice, and for one that unpacks to more than pictures do."""
    entries = archive.infolist()
    if len({entry.filename for entry in entries}) < len(entries):
        raise PosthocError(f"{path} holds two entries of one name; write it again.")
    produced, limit = sum(entry.file_size for entry in entries), UNPACKED * path.stat().st_size + (64 << 20)
    if produced > limit:
        raise PosthocError(
            f"{path} unpacks to {produced:,} bytes, of which a file of its size may have {limit:,}; write it with np.savez, "
            f"not np.savez_compressed."
        )
