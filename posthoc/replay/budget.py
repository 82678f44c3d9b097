"""What reading a checkpoint may cost, by the size of its files: no small file asks for much time or memory."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from posthoc.errors import PosthocError

SPARE_BYTES, SPARE_OPERATIONS, SPARE_TENSORS = 1 << 26, 100_000, 1_000
"""What any file may ask for, beside what it may by its size."""
MOST_OPERATIONS = 20_000_000
"""More than any checkpoint needs."""
MOST_DEPTH = 64


class BudgetError(PosthocError):
    """The file is sound, perhaps, but asks for more memory or work than a checkpoint of its size can need."""


class Budget:
    """The account of one opened checkpoint, which all of its readers share: files, and files nested in them.

    Of n bytes: `produced`, at most 4 n + 64 MiB, are the bytes that its tensors take, a storage and each distinct view
    of it counted once; `operations`, at most n + 100,000, are steps of pickles, values of JSON and items walked over;
    `tensors`, at most n / 32 + 1,000, are distinct; `depth`, at most 64, is how files and values lie in each other.
    Each charge raises BudgetError where it is too much.

    >>> budget = Budget(Path("a.pt"))
    >>> budget.grow(123)
    >>> budget.produce(20 * 10**9)
    Traceback (most recent call last):
    posthoc.replay.budget.BudgetError: a.pt claims 20 GB of tensors in files of 123 bytes, so it is not read; a sound \
checkpoint of that size holds less.
    """

    def __init__(self, path: Path, size: int = 0) -> None:
        self.path = path
        self.size = self.produced = self.operations = self.tensors = self.depth = 0
        self.grow(size)

    def grow(self, size: int) -> None:
        """Another file of that many bytes belongs to the checkpoint."""
        self.size += size
        self.most_operations = min(self.size + SPARE_OPERATIONS, MOST_OPERATIONS)

    def produce(self, count: int) -> None:
        """So many bytes of tensors or of text are made."""
        self.produced += count
        if self.produced > 4 * self.size + SPARE_BYTES:
            self._refuse(f"claims {_bytes(self.produced)} of tensors")

    def operate(self, count: int = 1) -> None:
        """So many steps are taken."""
        self.operations += count
        if self.operations > self.most_operations:
            self.refuse_operations()

    def refuse_operations(self) -> NoReturn:
        """Raise: there have been too many steps."""
        self._refuse(f"asks for more than {self.most_operations:,} steps")

    def tensor(self, count: int) -> None:
        """A tensor of so many bytes is described."""
        self.tensors += 1
        if self.tensors > self.size // 32 + SPARE_TENSORS:
            self._refuse(f"describes more than {self.tensors - 1:,} tensors")
        self.produce(count)

    @contextmanager
    def nested(self) -> Iterator[None]:
        """What is read inside is a file within the file."""
        self.depth += 1
        if self.depth > MOST_DEPTH:
            self.refuse_depth()
        try:
            yield
        finally:
            self.depth -= 1

    def refuse_depth(self) -> NoReturn:
        """Raise: files or values lie in each other too deep."""
        self._refuse(f"nests values more than {MOST_DEPTH} deep")

    def json(self, content: bytes) -> Any:
        """The value of a JSON text; ValueError where it is none, or where an object has a name twice."""
        self.operate(content.count(b",") + content.count(b"[") + content.count(b"{"))
        try:
            value = json.loads(content, object_pairs_hook=_object)
        except RecursionError:
            self.refuse_depth()
        level = [value]
        for _ in range(MOST_DEPTH):
            level = [
                child
                for item in level
                if isinstance(item, (dict, list))
                for child in (item.values() if isinstance(item, dict) else item)
            ]
            if not level:
                return value
        self.refuse_depth()

    def _refuse(self, what: str) -> NoReturn:
        where = "a file" if self.path.is_file() else "files"
        raise BudgetError(
            f"{self.path} {what} in {where} of {self.size:,} bytes, so it is not read; a sound checkpoint of that "
            f"size holds less."
        )


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("an object has a name twice")
    return members


def _bytes(count: int) -> str:
    for unit, name in ((10**15, "PB"), (10**12, "TB"), (10**9, "GB"), (10**6, "MB")):
        if count >= unit:
            return f"{count / unit:,.3g} {name}" if count < 1000 * unit else f"{count // unit:,} {name}"
    return f"{count:,} bytes"
