"""Whether the files of a checkpoint are still those that were read: by size and time first, by their bytes where these differ."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated

from posthoc.errors import PosthocError
from posthoc.files import sha256
from posthoc.typed import MisfitError, Range, typed


@dataclass(frozen=True)
class Stamp:
    """A file as it was when it was read: its path relative to the run's folder, bytes, and when it was last written, in ns."""

    path: str
    size: Annotated[int, Range(0)]
    time: int


class State(Enum):
    """What has become of a checkpoint that was read."""

    SAME = "same"
    CHANGED = "changed"
    GONE = "gone"


def stamp(folder: Path, file: Path, size: int, time: int) -> Stamp:
    """That of a file of the run in `folder`."""
    return Stamp(os.path.relpath(file.absolute(), folder.absolute()), size, time)


def to_text(stamps: Sequence[Stamp]) -> str:
    """As a part of an activations file has it."""
    return json.dumps([astuple(each) for each in stamps])


def from_text(text: str) -> tuple[Stamp, ...]:
    """What `to_text` gave; nothing of a part that does not say which files it was made from."""
    try:
        return tuple(Stamp(*row) for row in typed(list[tuple[str, int, int]], json.loads(text)))
    except (ValueError, MisfitError, RecursionError):
        return ()


def are_untouched(folder: Path, stamps: Sequence[Stamp]) -> bool:
    """Whether the files in `folder` have the sizes and times that they had; False where there are none."""
    return bool(stamps) and _now(folder, stamps) == list(stamps)


def _now(folder: Path, stamps: Sequence[Stamp]) -> list[Stamp] | None:
    """The same files as they are now; None where one is gone."""
    try:
        found = [(each.path, (folder / each.path).stat()) for each in stamps]
    except (OSError, ValueError):
        return None
    return [Stamp(path, status.st_size, status.st_mtime_ns) for path, status in found]


def state(folder: Path, checkpoint: str, stamps: Sequence[Stamp], digest: str) -> State:
    """What has become of a checkpoint of the run in `folder` that was read from such files, of that digest.

    One of which nobody wrote down the files is taken to be the same as long as it is there.
    """
    place = folder / checkpoint
    if not os.path.lexists(place):
        return State.GONE
    now = _now(folder, stamps)
    if now == list(stamps):
        return State.SAME
    if now is None or [each.size for each in now] != [each.size for each in stamps]:
        return State.CHANGED
    files = [folder / each.path for each in stamps]
    try:
        return State.SAME if joined(place, files, list(map(sha256, files))) == digest else State.CHANGED
    except PosthocError:  # no file any more
        return State.CHANGED


def joined(checkpoint: Path, files: Sequence[Path], digests: Sequence[str]) -> str:
    """SHA-256 of a checkpoint from those of its files: of its only file, or of the names and digests of all."""
    if len(files) == 1 and os.path.abspath(files[0]) == os.path.abspath(checkpoint):  # noqa: PTH100 - a link is itself
        return digests[0]
    lines = "".join(f"{digest}  {path.name}\n" for digest, path in zip(digests, files, strict=True))
    return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()
