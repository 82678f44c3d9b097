"""Numba kernels: arrays in, arrays out, nothing else."""

import os
import platform
from collections.abc import Callable
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
