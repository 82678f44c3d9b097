"""The files of one checkpoint while it is read: regular ones, the same each time they are opened, on one budget."""

import hashlib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from posthoc.errors import PosthocError
from posthoc.files import open_regular
from posthoc.replay.budget import Budget
from posthoc.stamps import Stamp, are_untouched, joined, stamp

Seen = tuple[int, int, int, int, int]
AT_ONCE = 2**18
"""Bytes that are hashed while a processor's cache holds them."""


class Part(NamedTuple):
    """Some bytes of a file as a file of their own, how many they are, and what reads those from a place on into memory
    and says how many there were."""

    file: io.BufferedIOBase
    size: int
    fill: Callable[[int, memoryview], int]


class Hashed:
    """A file whose bytes are hashed as they are read, as far as that is from its beginning on."""

    def __init__(self) -> None:
        self.sha256, self.place = hashlib.sha256(), 0

    def fill(self, file: io.BufferedIOBase, start: int, memory: memoryview) -> int:
        """Read the bytes from `start` on into memory, those before that were not hashed yet, too; how many there were."""
        if start > self.place:
            self._hash(file, start)
        if start != self.place:
            return _fill(file, start, memory)
        file.seek(start)
        for at in range(0, len(memory), AT_ONCE):
            piece = memory[at : at + AT_ONCE]
            count = file.readinto(piece)
            self.sha256.update(piece[:count])
            self.place += count
        return self.place - start

    def digest(self, file: io.BufferedIOBase) -> str:
        """SHA-256 of the file, of which what is left is read."""
        self._hash(file, os.fstat(file.fileno()).st_size)
        return self.sha256.hexdigest()

    def _hash(self, file: io.BufferedIOBase, stop: int) -> None:
        file.seek(self.place)
        memory = memoryview(bytearray(min(AT_ONCE, stop - self.place)))
        while count := file.readinto(memory[: stop - self.place]):
            self.sha256.update(memory[:count])
            self.place += count


def _fill(file: io.BufferedIOBase, start: int, memory: memoryview) -> int:
    file.seek(start)
    return file.readinto(memory)


class Source:
    """A checkpoint that is being read.

    A file that is opened again must be the one that was opened before, unchanged since: what is hashed, parsed and
    copied into the network are the same bytes. Device, inode, size and both times decide; a program may set the time of
    the last modification back, but not that of the last change.
    """

    def __init__(self, path: Path, hashing: bool = False) -> None:
        """hashing: whether files are hashed while their tensors are read, so that `digest` need not read them again."""
        self.path, self.hashing = path, hashing
        self.budget = Budget(path)
        self.seen: dict[Path, Seen] = {}
        self.files: tuple[Path, ...] = ()
        self.hashed: dict[Path, Hashed] = {}

    @contextmanager
    def open(self, path: Path) -> Iterator[io.BufferedReader]:
        """A file of the checkpoint, to read; PosthocError where it is no regular file or another than it was."""
        with open_regular(path) as file:
            self._meet(path, os.fstat(file.fileno()))
            yield file

    def read(self, path: Path) -> bytes:
        """The whole of a small file."""
        with self.open(path) as file:
            return file.read()

    @contextmanager
    def part(self, path: Path, start: int = 0, end: int | None = None) -> Iterator[Part]:
        """The bytes of a file from `start` to `end`, to read; EOFError where it has no such bytes."""
        with self.open(path) as file:
            size = os.fstat(file.fileno()).st_size
            if start == 0 and end is None:
                hashed = self.hashed.setdefault(path, Hashed()) if self.hashing else None
                yield Part(file, size, partial(hashed.fill if hashed else _fill, file))
                return
            end = size if end is None else end
            if not 0 <= start <= end <= size:
                raise EOFError("it ends before one of its tensors")
            self.budget.operate((end - start) >> 12)  # the same bytes may be asked for again and again
            file.seek(start)
            piece = io.BytesIO(file.read(end - start))
            yield Part(piece, end - start, partial(_fill, piece))

    def read_json(self, path: Path) -> Any:
        """The value in a small file of JSON; PosthocError where it holds none."""
        try:
            return self.budget.json(self.read(path))
        except ValueError as error:
            raise PosthocError(f"{path} is not valid JSON ({error}); mend or remove it.") from error

    def size(self, path: Path) -> int:
        """Bytes of a file that is opened later."""
        status = path.stat()
        self._meet(path, status)
        return status.st_size

    def digest(self, files: Sequence[Path]) -> str:
        """SHA-256 of the checkpoint: of its only file, or of the names and digests of its files."""
        digests = []
        for path in files:
            with self.open(path) as file:
                digests.append(self.hashed.setdefault(path, Hashed()).digest(file))
        self.files = tuple(files)
        return joined(self.path, files, digests)

    def stamped(self, folder: Path) -> tuple[Stamp, ...]:
        """The files that `digest` read, of a run in `folder`, as they were then."""
        return tuple(stamp(folder, path, *self.seen[path][2:4]) for path in self.files)

    def is_untouched(self, folder: Path, stamps: Sequence[Stamp]) -> bool:
        """Whether the files have the sizes and times that they had when they were read before; what is opened later is these."""
        if not are_untouched(folder, stamps):
            return False
        self.files = tuple(folder / each.path for each in stamps)
        try:
            for path in self.files:
                self.size(path)
        except OSError:  # gone meanwhile
            return False
        return self.stamped(folder) == tuple(stamps)

    def require_unchanged(self) -> None:
        """Raise PosthocError where a file is no longer what was read."""
        for path in self.seen:
            try:
                self.size(path)
            except OSError as error:
                raise PosthocError(f"Cannot read {path}: {error.strerror or error}.") from error

    def _meet(self, path: Path, status: os.stat_result) -> None:
        seen = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        if path not in self.seen:
            self.seen[path] = seen
            self.budget.grow(status.st_size)
        elif self.seen[path] != seen:
            raise PosthocError(f"{path} changed while it was being read; run again when it is complete.")
