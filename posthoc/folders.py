"""Folders and locks that posthoc makes: no link is followed in them, nothing of others' is written to or removed.

A folder of results may have come from elsewhere, and what lies in it may lead anywhere.
"""

import contextlib
import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from posthoc.errors import PosthocError

LOCK = ".lock"
LOCK_BYTES = 512
HOLDER = re.compile(r"(process \d+ on [^\n]*)?")
"""What is written into a lock: who holds it."""


@contextlib.contextmanager
def open_folder(path: Path, shared: bool = False) -> Iterator[int]:
    """Make a folder, unless it is there, and yield a descriptor of it: what is opened by that is in this very folder.

    Raises PosthocError where a link or no folder has its name, or it belongs to another user, unless it may be `shared`.
    """
    try:
        with contextlib.suppress(FileExistsError):
            path.mkdir(parents=True)
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if path.is_symlink():
            raise PosthocError(
                f"{path} is a link, and what posthoc makes there, and removes again, would be elsewhere; "
                f"move it away, or choose another -o."
            ) from error
        raise PosthocError(f"Cannot write into {path}: {error.strerror or error}.") from error
    try:
        if not shared and not _ours(descriptor, os.fstat(descriptor).st_uid):
            raise PosthocError(f"{path} belongs to another user; choose another -o.")
        yield descriptor
    finally:
        os.close(descriptor)


def refuse_link(path: Path) -> None:
    """Raise PosthocError where a link has the name of a folder or file that is to be ours."""
    if path.is_symlink():
        raise PosthocError(f"{path} is a link, which posthoc did not make; move it away, or choose another -o.")


def open_lock(folder: int, where: Path) -> int:
    """Open the lock file in a folder of ours, whose path is `where`; it is made where it is absent, and never emptied.

    Raises PosthocError where it is a link, or anything but a file that we wrote; OSError where it cannot be opened.
    """
    path = where / LOCK
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(LOCK, flags, 0o666, dir_fd=folder)
    except OSError:
        refuse_link(path)
        raise
    about = os.fstat(descriptor)
    plain = (
        stat.S_ISREG(about.st_mode) and about.st_nlink <= 1 and about.st_uid in (os.geteuid(), os.fstat(folder).st_uid)
    )
    if not plain or about.st_size > LOCK_BYTES or HOLDER.fullmatch(read_lock(descriptor)) is None:
        os.close(descriptor)
        raise PosthocError(f"{path} is not the lock that posthoc makes; move it away, or choose another -o.")
    return descriptor


def read_lock(descriptor: int) -> str:
    """Who holds a lock, or held it last."""
    return os.pread(descriptor, LOCK_BYTES, 0).decode(errors="replace")


def sign_lock(descriptor: int, holder: str) -> None:
    """Write down who holds a lock."""
    content = holder.replace("\n", " ").encode(errors="replace")[: LOCK_BYTES - 1]
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, content, 0)


def files_of(folder: int, where: Path, names: re.Pattern[str]) -> list[str]:
    """The files in a folder of ours whose names match, sorted; raises PosthocError where such a name is no file."""
    with os.scandir(folder) as entries:
        files = sorted(entry.name for entry in entries if names.fullmatch(entry.name))
    for name in files:
        mode = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
        if not stat.S_ISREG(mode):
            what = "a link" if stat.S_ISLNK(mode) else "no file"
            raise PosthocError(
                f"{where / name} is {what}, which posthoc did not make; move it away, or choose another -o."
            )
    return files


def remove(folder: int, where: Path, name: str) -> None:
    """Remove a file, or a link itself, from a folder of ours; one that is gone already is none to worry about."""
    try:
        os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise PosthocError(f"Cannot remove {where / name}: {error.strerror or error}.") from error


def _ours(folder: int, owner: int) -> bool:
    """Whether a folder's owner is who owns what we make there: on some network disks that is never this user."""
    if owner == os.geteuid():
        return True
    name = f".{secrets.token_hex(6)}.tmp"
    try:
        trial = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        return False
    try:
        return os.fstat(trial).st_uid == owner
    finally:
        os.close(trial)
        os.unlink(name, dir_fd=folder)
