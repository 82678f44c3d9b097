"""Signals on their way from a network to a file: batch by batch, so that memory need not grow with the samples."""

import math
import os
import tempfile
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from posthoc.errors import PosthocError

IN_MEMORY = 2**25
"""Bytes up to which rows that may go to disk are kept in memory all the same."""
CHUNK_BYTES = 2**20
"""About so many are moved at a time, and make a chunk of a file."""
Rows = NDArray[np.float32]


class Spool:
    """Rows of numbers [samples, columns], added a batch at a time.

    With a folder they are kept in memory up to `IN_MEMORY` bytes, and then all in a file of it that has no name: it goes
    with the process, however that ends.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._batches: list[Rows] = []
        self._file: IO[bytes] | None = None
        self._width = 0

    def append(self, batch: Rows) -> None:
        """Add rows; raises PosthocError where the disk does not take them."""
        self._width = batch.shape[1]
        self._batches.append(batch)
        if self._folder and (self._file or sum(rows.nbytes for rows in self._batches) > IN_MEMORY):
            try:
                self._write(self._folder)
            except OSError as error:
                raise PosthocError(f"Cannot write into {self._folder}: {error.strerror or error}.") from error

    def _write(self, folder: Path) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed with the spool
            weakref.finalize(self, self._file.close)
        for rows in self._batches:
            self._file.write(np.ascontiguousarray(rows).data)
        self._file.flush()
        self._batches.clear()

    def read(self, start: int, stop: int, first: int, last: int) -> Rows:
        """Columns first to last of rows start to stop, [stop - start, last - first]."""
        if self._file is None:
            ends = np.cumsum([len(rows) for rows in self._batches])
            pieces = [
                rows[max(0, start - end + len(rows)) : max(0, stop - end + len(rows)), first:last]
                for rows, end in zip(self._batches, ends.tolist(), strict=True)
            ]
            return np.concatenate(pieces)
        size = 4 * (last - first)
        content = b"".join(
            os.pread(self._file.fileno(), size, 4 * (row * self._width + first)) for row in range(start, stop)
        )
        return np.frombuffer(content, np.float32).reshape(stop - start, last - first)


@dataclass(frozen=True, eq=False)
class Spooled:
    """A signal [C, N] or [C, N, T] that lies in a spool: of each sample in a row of its own, from `row` and `column` on."""

    spool: Spool
    row: int
    column: int
    shape: tuple[int, ...]
    dtype = np.dtype(np.float32)

    @property
    def nbytes(self) -> int:
        """How many bytes it is."""
        return 4 * math.prod(self.shape)

    def samples(self, start: int, stop: int) -> Rows:
        """Of the samples from start to stop, [C, stop - start(, T)]."""
        C, _, *others = self.shape
        width = C * math.prod(others)
        rows = self.spool.read(self.row + start, self.row + stop, self.column, self.column + width)
        return rows.reshape(len(rows), C, *others).swapaxes(0, 1)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self.samples(0, self.shape[1]), dtype)


def at_most(count: int, size: int) -> int:
    """How many of so many things of a size are about a chunk, at least one."""
    return max(1, min(count, CHUNK_BYTES // size))


def pieces(array: NDArray[Any] | Spooled, step: int | None = None) -> Iterator[NDArray[Any]]:
    """So many samples of a signal [C, N, ...] at a time, about a chunk, where it lies in a spool; else all there is."""
    if not isinstance(array, Spooled):
        yield array
        return
    N = array.shape[1]
    step = step or at_most(N, array.nbytes // N)
    for start in range(0, N, step):
        yield array.samples(start, min(start + step, N))
