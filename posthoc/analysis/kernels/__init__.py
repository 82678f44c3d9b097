"""Numba kernels: arrays in, arrays out, nothing else.

They are compiled without Numba's own threads, which take seconds to compile and, between calls, processor time from
others; instead they let go of the interpreter and `in_threads` spreads their rows.
"""

import functools
import os
import platform
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numba

Kernel = TypeVar("Kernel", bound=Callable[..., Any])

# Sums may be reordered (for SIMD) and fused, but NaN and infinity keep their meaning.
REORDER = frozenset({"reassoc", "contract", "arcp", "nsz"})


def cache_folder() -> Path | None:
    """Where compiled kernels are kept, or None where that cannot be written or POSTHOC_KERNEL_CACHE is `off`.

    NUMBA_CACHE_DIR, else a folder of this host's in the user's cache: homes are shared and processors differ. Never
    beside the installed package, which may be read-only or on a network disk. Numba moves finished files into place,
    so processes that compile at the same time do not disturb each other.
    """
    if os.environ.get("POSTHOC_KERNEL_CACHE") == "off":
        return None
    given = os.environ.get("NUMBA_CACHE_DIR")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(given) if given else home / "posthoc" / "kernels" / f"{platform.node()}-{platform.machine()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK | os.X_OK) else None


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
        return compiled

    return decorate


def thread_count() -> int:
    """How many threads kernels use: NUMBA_NUM_THREADS, else the processors that this process may run on."""
    config: Any = numba.config
    return int(config.NUMBA_NUM_THREADS)


def in_threads(work: Callable[[int, int], Any], count: int, block: int = 1) -> None:
    """Call work(first, last) for spans that cover range(count), cut at multiples of `block`, one span a thread.

    Called from within such a span it does all its work where it is.
    """

    def span(first: int, last: int) -> None:
        _here.inside = True
        try:
            work(first, last)
        finally:
            _here.inside = False

    blocks = -(-count // block)
    threads = min(thread_count(), blocks)
    if getattr(_here, "inside", False):
        work(0, count)
    elif threads <= 1:
        span(0, count)
    else:
        edges = [min(count, block * (blocks * k // threads)) for k in range(threads + 1)]
        others = [_pool().submit(span, edges[k], edges[k + 1]) for k in range(1, threads)]
        span(0, edges[1])
        for other in others:
            other.result()


_here = threading.local()


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_count(), "posthoc-kernel")
