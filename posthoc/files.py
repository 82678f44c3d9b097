"""Files that appear whole or not at all, what may be read of others' files, and their digests."""

import contextlib
import hashlib
import io
import json
import os
import secrets
import shlex
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from posthoc.errors import PosthocError, UsageError

JSON_BYTES = 2**26
"""How large a JSON file may be, unless its reader says otherwise."""
SAFELY = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
AT_ONCE = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
"""How files are opened, as far as the platform knows these flags."""
HDF5 = b"\x89HDF\r\n\x1a\n"
KINDS = {
    stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket", stat.S_IFCHR: "device", stat.S_IFBLK: "device",
}  # fmt: skip


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the path of a new, empty file beside `path`; on success flush it to disk and move it into place.

    On any failure the temporary file goes and whatever stood at `path` stays as it was. Where that is a link, the link
    is replaced and what it leads to stays; what is no file (a folder, a device) is refused.
    """
    # A number drawn anew: on a disk shared by many machines two processes may have the same id.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        _refuse_others(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | SAFELY, 0o666))
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


def _refuse_others(path: Path) -> None:
    """Raise where a path leads to anything but a file; where it leads to nothing there is none to be refused."""
    with contextlib.suppress(FileNotFoundError):
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            kind = KINDS.get(stat.S_IFMT(mode), "special file")
            raise PosthocError(f"Cannot write {path}: it is a {kind}; give the name of a file.")


def open_regular(path: str | os.PathLike[str]) -> io.BufferedReader:
    """Open a regular file, or a link to one, for reading. Raises PosthocError for anything else, and never waits.

    A pipe would hold us up for ever, and a device may act on being opened.
    """
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 - a path as it comes
        if stat.S_ISREG(mode):
            descriptor = os.open(path, os.O_RDONLY | AT_ONCE)
            file = open(descriptor, "rb")  # noqa: SIM115, PTH123 - the caller closes it
            mode = os.fstat(file.fileno()).st_mode  # another may lie there by now
            if stat.S_ISREG(mode):
                return file
            file.close()
    except OSError as error:
        raise PosthocError(f"Cannot read {os.fspath(path)}: {error.strerror or error}.") from error
    except ValueError as error:  # a NUL, or what the file system cannot spell
        raise PosthocError(f"Cannot read {os.fspath(path)}: this is no name of a file; give another.") from error
    raise PosthocError(f"{os.fspath(path)} is a {KINDS.get(stat.S_IFMT(mode), 'special file')}; give a file.")


def read_json(path: str | os.PathLike[str], limit: int = JSON_BYTES, by: str = "posthoc") -> Any:
    """The content of a JSON file. Raises PosthocError where it cannot be read, is no JSON, or larger than `limit` bytes.

    NaN and infinity, which Python writes and JSON does not know, are read. by: what writes such files, for the error.
    """
    with open_regular(path) as file:
        try:
            content = file.read(limit + 1)
        except OSError as error:
            raise PosthocError(f"Cannot read {os.fspath(path)}: {error.strerror or error}.") from error
    if content.startswith(HDF5):
        raise PosthocError(f"{os.fspath(path)} is an activations file; run posthoc metrics on it first.")
    if len(content) > limit:
        raise PosthocError(
            f"{os.fspath(path)} is larger than the {limit / 1e6:.0f} MB that such a file may have; give another."
        )
    try:
        return json.loads(content)
    except RecursionError as error:
        raise PosthocError(
            f"{os.fspath(path)} is not what {by} wrote (it is nested too deep); write it again."
        ) from error
    except ValueError as error:
        raise PosthocError(
            f"{os.fspath(path)} is not what {by} wrote (it is not valid JSON: {error}); write it again."
        ) from error


def write_json(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Write a JSON file, whole or not at all."""
    with replacing(Path(path)) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")


def names_apart(paths: Sequence[Path]) -> list[str]:
    """Of several paths the parts that not all of them share; of a lone one its last. None begins at the root.

    >>> names_apart([Path("runs/a/metrics"), Path("runs/b/metrics")]), names_apart([Path("/run"), Path("/old/run")])
    (['a', 'b'], ['run', 'old/run'])
    """
    parts = [list(path.parts[bool(path.anchor) :]) or ["."] for path in paths]
    if len(parts) == 1:
        return [parts[0][-1]]
    for end in (-1, 0):
        while all(len(row) > 1 for row in parts) and len({row[end] for row in parts}) == 1:
            for row in parts:
                del row[end]
    return ["/".join(row) for row in parts]


def refuse_existing(path: Path, force: bool, source: Path | None = None) -> None:
    """Raise where `path` exists and `force` was not given, where it is what is read from, or where it is no file."""
    if source is not None and path.resolve() == source.resolve():
        raise UsageError(f"{path} is the input; choose another output.")
    _refuse_others(path)
    if path.is_symlink() and not force:
        raise PosthocError(f"{path} is a link to {path.readlink()}; pass --force to replace the link itself.")
    if path.exists() and not force:
        raise PosthocError(f"{path} exists already; pass --force to replace it.")


def try_output(path: Path, force: bool, source: Path | None = None, make: bool = False) -> None:
    """Find out before the work whether `path` can be written after it; nothing stays behind.

    Raises as `refuse_existing`, and PosthocError where its folder is not there, is read-only, or its disk is full. With
    `make` folders that are missing will be made, and it is the one above them that is tried.
    """
    folder = path.parent
    above = next(place for place in path.absolute().parents if place.exists())
    if not above.is_dir():
        raise PosthocError(f"Cannot write {path}: {above} is no folder; choose another output.")
    refuse_existing(path, force, source)
    while make and not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.exists():
        raise PosthocError(
            f"Cannot write {path}: there is no folder {folder}; make it: mkdir -p {shlex.quote(str(folder))}"
        )
    trial = folder / (f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        with trial.open("xb") as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise PosthocError(f"Cannot write {path}: {error.strerror or error}.") from error
    finally:
        with contextlib.suppress(OSError):
            trial.unlink()


def sha256(path: Path) -> str:
    """Digest of a file's content."""
    with open_regular(path) as file:
        try:
            return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise PosthocError(f"Cannot read {path}: {error.strerror or error}.") from error
