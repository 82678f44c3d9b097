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


def cache_folder() -> Path:
    """Where compiled kernels are kept: per user and per host, for homes are shared and processors differ.

    NUMBA_CACHE_DIR overrides it; with POSTHOC_KERNEL_CACHE=off nothing is kept.
    """
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "posthoc" / "kernels" / f"{platform.node()}-{platform.machine()}"


def jit(**options: Any) -> Callable[[Kernel], Kernel]:
    """`numba.njit` whose machine code is kept in `cache_folder`."""

    def decorate(function: Kernel) -> Kernel:
        keep = os.environ.get("POSTHOC_KERNEL_CACHE") != "off"
        config: Any = numba.config
        before = config.CACHE_DIR
        try:
            config.CACHE_DIR = before or str(cache_folder())  # read when the decorator runs, and only then
            compiled: Kernel = numba.njit(cache=keep, error_model="numpy", nogil=True, **options)(function)
        finally:
            config.CACHE_DIR = before
        return compiled

    return decorate
