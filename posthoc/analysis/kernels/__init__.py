"""Numba kernels: arrays in, arrays out, nothing else.

They are compiled without Numba's own threads, which take seconds to compile and, between calls, processor time from
others; instead they let go of the interpreter and `in_threads` spreads their rows. Those that kernels call are compiled
into them (`forceinline`): left to the linker, the process that compiles would call another copy of them than one that
loads the kernel from the cache, and the two would differ in the last digit.
"""

import contextlib
import functools
import itertools
import os
import platform
import stat
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar, cast

import numba.core.config
from numba.core.caching import NullCache
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import CPUDispatcher

from posthoc.cpus import cpu_count
from posthoc.locks import hold

Function = TypeVar("Function", bound=Callable[..., Any])
config: Any = numba.core.config

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
    chosen, host = os.environ.get("NUMBA_CACHE_DIR"), f"{platform.node()}-{platform.machine()}"
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
        folder = Path(chosen) if chosen else home.expanduser() / "posthoc" / "kernels" / host
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        reason = _not_private(folder)
        if not reason and folder.stat().st_mode & 0o011:  # others get into what Numba makes in it, too
            reason = next(filter(None, map(_not_private, filter(Path.is_dir, folder.iterdir()))), "")
    except (OSError, RuntimeError):  # also where the user has no home
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
    if not hasattr(os, "geteuid"):  # Windows, where a user's folder is the user's
        return ""
    if about.st_uid != os.geteuid():
        return f"{folder} belongs to another user"
    return f"others can write to {folder}" if about.st_mode & 0o022 else ""


kernel_folder = functools.cache(cache_folder)
"""The same, looked for once, when the first kernel is called: importing makes no folder."""
PATIENCE = 120.0
"""Seconds to wait for another process that compiles: one that was suspended must not hold up the others for ever."""


class Kernel(CPUDispatcher):
    """Numba's function, compiled by one process at a time, whose machine code is kept in `cache_folder`.

    Of many first calls at once one compiles and the others load. Without this Numba's cache is not safe: it writes the
    index and what the index names one after the other, and numbers new entries by an index that another process may
    just have replaced, so that one could be handed the code of another signature.
    """

    _cache: Any
    _holding = False  # of the class: whoever has Numba's lock has the file's, too, or waits for it

    def compile(self, sig: Any) -> Any:
        """Compile for a signature, or load what is compiled."""
        with global_compiler_lock, contextlib.ExitStack() as stack:
            folder = kernel_folder()
            if folder and not Kernel._holding:
                Kernel._holding = True
                stack.callback(setattr, Kernel, "_holding", False)
                with contextlib.suppress(OSError):  # as safe as Numba itself
                    hold(stack.enter_context((folder / ".lock").open("a")).fileno(), patience=PATIENCE)
            stack.enter_context(_settings())
            if folder and isinstance(self._cache, NullCache):
                config.CACHE_DIR, before = str(folder), config.CACHE_DIR  # read by what is called here, and only then
                try:
                    self.enable_caching()
                finally:
                    config.CACHE_DIR = before
            return super().compile(sig)


@contextlib.contextmanager
def _settings() -> Iterator[None]:
    """Numba's settings but for those of a file in the working directory, which it reads whenever it compiles."""
    reloader, name = config._env_reloader, config._config_fname
    environment, before = reloader.old_environ, {name: value for name, value in vars(config).items() if name.isupper()}
    config._config_fname = ""
    try:
        config.reload_config()  # changes nothing where there is no such file
        yield
    finally:  # all as it was, what a user has set in code, too
        vars(config).update(before)
        reloader.old_environ, config._config_fname = environment, name


def jit(**options: Any) -> Callable[[Function], Function]:
    """Make a function a `Kernel`, with these options of `numba.njit`; it is compiled when it is called."""

    def decorate(function: Function) -> Function:
        with _settings():
            if config.DISABLE_JIT:
                return function
        defaults = {"nopython": True, "boundscheck": None, "error_model": "numpy", "nogil": True}
        return cast(Function, Kernel(py_func=function, targetoptions=defaults | options))

    return decorate


def thread_count() -> int:
    """How many threads kernels use: NUMBA_NUM_THREADS, else the processors that this process may use."""
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
