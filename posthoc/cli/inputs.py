"""What a path is, by its first bytes: wrong ones are refused before anything heavy is imported."""

import glob
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from posthoc.errors import PosthocError
from posthoc.files import HDF5, open_regular

KINDS = {"posthoc-metrics": "metrics", "posthoc-audit": "audit"}
NAMES = {"metrics": "a metrics file", "audit": "an audit", "hdf5": "an activations file"}


def keep_blas_to_one_thread() -> None:
    """Unless its variable says otherwise; before NumPy is imported. The matrices of the analysis are small, and BLAS's
    threads wait for each other at full load, which on a busy machine takes several times the work's time."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def kind_of(path: Path) -> str:
    """metrics, audit, hdf5, json (another's) or, of anything else, the empty string; the content is not judged.

    An index of shards, which is JSON too, is a checkpoint's.
    """
    if not path.is_file():
        return ""
    with open_regular(path) as file:
        start = file.read(4096)
    if start.startswith(HDF5):
        return "hdf5"
    text = start.decode("latin-1").lstrip("\ufeff \t\r\n")
    if not text.startswith(("{", "[")) or "\0" in text:  # the length of a safetensors header may begin so
        return ""
    if text.startswith("{") and (path.name.lower().endswith(".index.json") or '"weight_map"' in text):
        return ""
    stated = re.search(r'"format"\s*:\s*"([\w-]+)"', text)
    return KINDS.get(stated[1], "json") if stated else "json"


def beside(activations: Path, name: str) -> Path:
    """Where what is made of an activations file goes, unless -o says so: `name` beside activations.h5, X.`name` beside X.h5.

    >>> beside(Path("out/activations.h5"), "metrics.json").name, beside(Path("a.h5"), "metrics.json").name
    ('metrics.json', 'a.metrics.json')
    """
    return activations.with_name(name if activations.name == "activations.h5" else f"{activations.stem}.{name}")


def require_activations(path: Path) -> None:
    """Raise PosthocError for a path that is certainly no activations file, saying what it is."""
    wanted = "give the activations.h5 that `posthoc extract` wrote"
    if not path.exists():
        raise PosthocError(f"{path} does not exist; {wanted}.")
    if path.is_dir():
        inside = path / "activations.h5"
        raise PosthocError(f"{path} is a folder; {f'give {inside}' if inside.is_file() else wanted}.")
    kind = kind_of(path)
    if kind in ("metrics", "audit"):
        raise PosthocError(f"{path} is {NAMES[kind]}; `posthoc inspect` shows it. Here {wanted}.")
    if kind != "hdf5" and path.is_file():
        raise PosthocError(f"{path} is not an HDF5 file; {wanted}.")


def require_metrics(places: Sequence[str]) -> None:
    """Raise PosthocError for paths and globs of nothing, and for files that are certainly no metrics."""
    for place in places:
        matches = [place] if os.path.lexists(place) else sorted(glob.glob(place, recursive=True)) or [place]  # noqa: PTH207
        for path in map(Path, matches):
            if not path.exists():
                raise PosthocError(f"No such file or folder: {path}.")
            kind = kind_of(path)
            if kind == "hdf5":
                advice = f"run `posthoc metrics {shlex.quote(str(path))}` and give the {beside(path, 'metrics.json').name} that it writes"
                raise PosthocError(f"{path} is an activations file; {advice}.")
            if kind == "audit":
                raise PosthocError(f"{path} is an audit; give what `posthoc metrics` wrote.")
