"""Files that appear whole or not at all, and their digests."""

import contextlib
import hashlib
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path

from posthoc.errors import PosthocError, UsageError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush it to disk and move it into place.

    On any failure the temporary file goes and whatever stood at `path` stays as it was.
    """
    # A number drawn anew: on a disk shared by many machines two processes may have the same id.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(path)
    except OSError as error:
        raise PosthocError(f"Cannot write {path}: {error.strerror or error}.") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def names_apart(paths: Sequence[Path]) -> list[str]:
    """Of several paths the parts that not all of them share; of a lone one its last.

    >>> names_apart([Path("runs/a/metrics"), Path("runs/b/metrics")])
    ['a', 'b']
    """
    parts = [list(path.parts) for path in paths]
    if len(parts) == 1:
        return [parts[0][-1]]
    for end in (-1, 0):
        while all(len(row) > 1 for row in parts) and len({row[end] for row in parts}) == 1:
            for row in parts:
                del row[end]
    return ["/".join(row) for row in parts]


def refuse_existing(path: Path, force: bool, source: Path | None = None) -> None:
    """Raise where `path` exists and `force` was not given, or where it is what is read from."""
    if source is not None and path.resolve() == source.resolve():
        raise UsageError(f"{path} is the input; choose another output.")
    if path.exists() and not force:
        raise PosthocError(f"{path} exists already; pass --force to replace it, or -o to write elsewhere.")


def sha256(path: Path) -> str:
    """Digest of a file's content."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise PosthocError(f"Cannot read {path}: {error.strerror or error}.") from error
