"""Numba kernels: arrays in, arrays out, nothing else.

They are compiled without Numba's own threads, which take seconds to compile and, between calls, processor time from
others; instead they let go of the interpreter and `in_threads` spreads their rows. Those that kernels call are compiled
into them (`forceinline`): left to the linker, the process that compiles would call another copy of them than one that
loads the kernel from the cache, and the two would differ in the last digit.
"""

import contextlib
import fcntl
import functools
import itertools
import os
import platform
import stat
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, TypeVar

import numba
import numba.core.config

from posthoc.cpus import cpu_count

Kernel = TypeVar("Kernel", bound=Callable[..., Any])

# Numba takes settings from a file of the working directory, at its import and at each compilation; the environment's stay.
numba.core.config._config_fname = ""
numba.core.config.reload_config()

# Sums may be reordered (for SIMD) and fused, but NaN and infinity keep their meaning.
REORDER = frozenset({"reassoc", "contract", "arcp", "nsz"})


def cache_folder() -> Path | None:
    """Where compiled kernels are kept, or None where that cannot be written or POSTHOC_KERNEL_CACHE is `off`.

    NUMBA_CACHE_DIR, else a folder of this host's in the user's cache: homes are shared and processors differ. Never
    beside the installed package, which may be read-only or on a network disk. Numba loads what is kept as pickles, which
    run what is in them: a folder that is a link, or that anybody else can write to, is not used, with a warning.
    """
    if os.environ.get("POSTHOC_KERNEL_CACHE") == "off":
        return None
    given = os.environ.get("NUMBA_CACHE_DIR")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(given) if given else home / "posthoc" / "kernels" / f"{platform.node()}-{platform.machine()}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        reason = _not_private(folder)
        if not reason and folder.stat().st_mode & 0o011:  # others get into what Numba makes in it, too
            reason = next(filter(None, map(_not_private, filter(Path.is_dir, folder.iterdir()))), "")
    except OSError:
        return None
    if reason:
        warnings.warn(
            f"Compiled kernels are not kept, for {reason}; remove it, or let NUMBA_CACHE_DIR name a folder of your own.",
            stacklevel=2,
        )
        return None
    return folder if os.access(folder, os.W_OK | os.X_OK) else None


def _not_private(folder: Path) -> str:
    """Why others may have put something into a folder; empty where they cannot."""
    about = folder.lstat()
    if stat.S_ISLNK(about.st_mode):
        return f"{folder} is a link"
    if about.st_uid != os.geteuid():
        return f"{folder} belongs to another user"
    return f"others can write to {folder}" if about.st_mode & 0o022 else ""


CACHE = cache_folder()


def jit(**options: Any) -> Callable[[Kernel], Kernel]:
    """`numba.njit` whose machine code is kept in `cache_folder`."""

    def decorate(function: Kernel) -> Kernel:
        config: Any = numba.config
        before = config.CACHE_DIR
        try:
            config.CACHE_DIR = str(CACHE or "")  # read while the decorator runs, and only then
            compiled: Kernel = numba.njit(cache=CACHE is not None, error_model="numpy", nogil=True, **options)(function)
        finally:
            config.CACHE_DIR = before
        if CACHE and not config.DISABLE_JIT:
            compiled.compile = functools.partial(_one_at_a_time, compiled.compile)  # type: ignore[attr-defined]
        return compiled

    return decorate


PATIENCE = 120.0
"""Seconds to wait for another process that compiles."""
_compiling = threading.RLock()
_holding = threading.local()


def _one_at_a_time(compile: Callable[..., Any], *signature: Any) -> Any:
    """Compile, or load what is compiled, while no other process does.

    Of many first calls at once one compiles and the others load. Without this Numba's cache is not safe: it writes the
    index and what the index names one after the other, and numbers new entries by an index that another process may
    just have replaced, so that one could be handed the code of another signature.
    """
    with _compiling, contextlib.ExitStack() as stack:
        outermost = not getattr(_holding, "lock", False)
        if outermost and CACHE:
            _holding.lock = True
            stack.callback(setattr, _holding, "lock", False)
            with contextlib.suppress(OSError):  # a file system without locks: as safe as Numba itself
                _wait_for(stack.enter_context((CACHE / ".lock").open("a")))
        return compile(*signature)


def _wait_for(file: IO[str]) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:  # one that was suspended while it compiled must not hold up the others for ever
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.05)


def thread_count() -> int:
    """How many threads kernels use: NUMBA_NUM_THREADS, else the processors that this process may use."""
    config: Any = numba.config
    threads = int(config.NUMBA_NUM_THREADS)
    return threads if "NUMBA_NUM_THREADS" in os.environ else min(threads, cpu_count())


def in_threads(work: Callable[[int, int], Any], count: int, block: int = 1) -> None:
    """Call work(first, last) for spans that cover range(count), cut at multiples of `block`, on several threads.

    Threads take the next span when they are done with one, so that one which wakes late costs little. Called from
    within a span it does all its work where it is.
    """
    blocks = -(-count // block)
    threads = 1 if getattr(_here, "inside", False) else min(thread_count(), blocks)
    if threads <= 1:
        work(0, count)
        return
    spans = min(blocks, SPANS * threads)
    edges = [min(count, block * (blocks * k // spans)) for k in range(spans + 1)]
    following = itertools.count()

    def take_spans() -> None:
        _here.inside = True
        try:
            while (k := next(following)) < spans:
                work(edges[k], edges[k + 1])
        finally:
            _here.inside = False

    others = [_pool().submit(take_spans) for _ in range(threads - 1)]
    take_spans()
    for other in others:
        if not other.cancel():
            other.result()


SPANS = 8
"""Spans a thread, if all threads were equally fast."""
_here = threading.local()


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_count(), "posthoc-kernel")
