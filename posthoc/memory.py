"""How much memory this process may still take."""

import contextlib
from collections.abc import Iterator
from pathlib import Path


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes that the machine has free, or fewer where a container or a Slurm job is limited; None where nothing says.

    Both generations of Linux' control groups are read, the process's own and those around it. What they hold of files
    counts as free: it goes when memory is needed.
    """
    free = [*_of_machine(root / "proc/meminfo"), *_of_groups(root)]
    return max(0, min(free)) if free else None


def _of_machine(meminfo: Path) -> Iterator[int]:
    with contextlib.suppress(OSError, ValueError, KeyError, IndexError):
        yield 1024 * int(_fields(meminfo)["MemAvailable:"])


def _of_groups(root: Path) -> Iterator[int]:
    groups = root / "sys/fs/cgroup"
    with contextlib.suppress(OSError, ValueError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            if line.count(":") < 2:
                continue
            _, controllers, path = line.split(":", 2)
            unified = not controllers  # version 2 has one hierarchy, and no names of controllers
            if not unified and "memory" not in controllers.split(","):
                continue
            top = groups if unified else groups / "memory"
            inside = top / path.lstrip("/")  # in a container it may not be there, and the top is the container's own
            for folder in [inside, *inside.parents]:
                yield from _of_group(folder, unified)
                if folder == top:
                    break


def _of_group(folder: Path, unified: bool) -> Iterator[int]:
    names = ("memory.max", "memory.current") if unified else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    prefix = "" if unified else "total_"
    with contextlib.suppress(OSError, ValueError, KeyError, IndexError):  # no such file, or "max": no limit
        limit, used = (int((folder / name).read_text()) for name in names)
        if limit < 0:  # -1 is no limit, too
            return
        held = _fields(folder / "memory.stat")
        yield limit - used + int(held[f"{prefix}inactive_file"]) + int(held[f"{prefix}active_file"])


def _fields(path: Path) -> dict[str, str]:
    """The first word of each line, and its second."""
    return {words[0]: words[1] for line in path.read_text().splitlines() if len(words := line.split()) > 1}
