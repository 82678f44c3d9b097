"""The files of one checkpoint while it is read: regular ones, the same each time they are opened, on one budget."""

import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from posthoc.errors import PosthocError
from posthoc.files import open_regular
from posthoc.replay.budget import Budget

Stamp = tuple[int, int, int, int, int]


class Part(NamedTuple):
    """Some bytes of a file as a file of their own, and how many they are."""

    file: io.BufferedIOBase
    size: int


class Source:
    """A checkpoint that is being read.

    A file that is opened again must be the one that was opened before, unchanged since: what is hashed, parsed and
    copied into the network are the same bytes. Device, inode, size and both times decide; a program may set the time of
    the last modification back, but not that of the last change.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.budget = Budget(path)
        self.stamps: dict[Path, Stamp] = {}

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
                yield Part(file, size)
                return
            end = size if end is None else end
            if not 0 <= start <= end <= size:
                raise EOFError("it ends before one of its tensors")
            self.budget.operate((end - start) >> 12)  # the same bytes may be asked for again and again
            file.seek(start)
            yield Part(io.BytesIO(file.read(end - start)), end - start)

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
                digests.append(hashlib.file_digest(file, "sha256").hexdigest())
        if list(files) == [self.path]:
            return digests[0]
        lines = "".join(f"{digest}  {path.name}\n" for digest, path in zip(digests, files, strict=True))
        return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()

    def require_unchanged(self) -> None:
        """Raise PosthocError where a file is no longer what was read."""
        for path in self.stamps:
            try:
                self.size(path)
            except OSError as error:
                raise PosthocError(f"Cannot read {path}: {error.strerror or error}.") from error

    def _meet(self, path: Path, status: os.stat_result) -> None:
        stamp = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        if path not in self.stamps:
            self.stamps[path] = stamp
            self.budget.grow(status.st_size)
        elif self.stamps[path] != stamp:
            raise PosthocError(f"{path} changed while it was being read; run again when it is complete.")
