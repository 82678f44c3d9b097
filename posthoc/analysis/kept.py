"""What takes long to draw, and is the same for every run, is drawn once and kept in the user's cache, beside the kernels."""

import contextlib
import functools
import hashlib
import os
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

import numpy as np

import posthoc
from posthoc.analysis.arrays import FloatArray
from posthoc.analysis.kernels import cache_folder
from posthoc.errors import PosthocError
from posthoc.files import replacing

MOST = 200
"""Files of a kind that are kept; the oldest go."""


def kept(
    kind: str, key: str, shapes: Mapping[str, tuple[int, ...]], make: Callable[[], Mapping[str, FloatArray]]
) -> Mapping[str, FloatArray]:
    """Arrays of these names and shapes, made once and read ever after; made anew where there is no cache, or it is spoilt.

    kind: begins the file's name; key: all that they depend on, in any words. Files appear whole or not at all, so that many
    processes may do this at once. There is no cache where `cache_folder` has none (`POSTHOC_KERNEL_CACHE=off`).
    """
    folder = cache_folder()
    if folder is None:
        return make()
    path = folder / f"{kind}-{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz"
    if stored := _read(path, shapes):
        return stored
    made = make()
    # a cache that cannot be written is done without
    with contextlib.suppress(PosthocError, OSError):
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **made)  # type: ignore[arg-type]
        for old in sorted(folder.glob(f"{kind}-*.npz"), key=lambda file: file.stat().st_mtime)[:-MOST]:
            old.unlink(missing_ok=True)
    return made


def _read(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> Mapping[str, FloatArray]:
    """What a file holds; nothing where it is absent, spoilt or holds something else."""
    try:
        with np.load(path, allow_pickle=False) as pack:
            stored = {name: pack[name] for name in pack.files}
    except Exception:  # of a spoilt archive zipfile, and what unpacks it, raise anything
        return {}
    fits = {name: array.shape for name, array in stored.items() if array.dtype == np.float64} == dict(shapes)
    return stored if fits else {}


@functools.cache
def computed_by() -> str:
    """What numbers depend on to the last bit beside what they are computed of: the code, its libraries and the processor."""
    from llvmlite import binding  # type: ignore[import-untyped]

    package, digest = Path(posthoc.__file__).parent, hashlib.sha256()
    for file in sorted([package / "streams.py", *(package / "analysis").rglob("*.py")]):
        digest.update(file.read_bytes())
    versions = {name: version(name) for name in ("numpy", "scipy", "numba", "llvmlite")}
    settings = {name: os.environ[name] for name in sorted(os.environ) if name.startswith("NUMBA_")}
    for name in ("NUMBA_NUM_THREADS", "NUMBA_CACHE_DIR"):
        settings.pop(name, None)
    processor = [binding.get_host_cpu_name()]
    with contextlib.suppress(RuntimeError):  # LLVM does not know them everywhere
        processor.append(binding.get_host_cpu_features().flatten())
    return repr((posthoc.__version__, digest.hexdigest(), versions, settings, processor))
