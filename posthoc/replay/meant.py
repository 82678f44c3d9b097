"""Which checkpoints and which network are meant: mistakes that names alone tell, before torch is imported.

What is refused here is certainly wrong; what is not may still turn out to be, once the files are opened.
"""

import difflib
import fnmatch
import re
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from posthoc.errors import PosthocError, UsageError
from posthoc.replay.names import DIGITS, form

LARGEST = 2**63 - 1
"""Of epochs and steps."""
LIBRARIES = ("torchvision", "timm")
"""Whose networks are known by name."""
MODEL_FORMS = (
    "torchvision:NAME, timm:NAME, transformers[:DIR], diffusers[:DIR], FILE.py:FACTORY or package.module:FACTORY"
)
NO_WEIGHTS = re.compile(
    r".*\.(txt|md|rst|html?|css|js|json|jsonl|ya?ml|toml|cfg|ini|csv|tsv|log|out|err|py|pyc|ipynb|sh|sbatch|png|jpe?g|gif|svg|pdf|xml|lock)"
    r"|events\.out\.tfevents\..*|LICENSE|Makefile",
    re.IGNORECASE,
)
"""Names of files that hold no weights."""
PERHAPS = re.compile(r".*\.index\.json|latest.*", re.IGNORECASE)
"""Names among them that belong to checkpoints of several files."""


def parse_places(placed: Sequence[str]) -> dict[str, int]:
    """Read FILE=EPOCH, of which each gives a checkpoint its place; raises UsageError.

    >>> parse_places(["epoch_init.pt=0", "epoch=3.ckpt=4"])
    {'epoch_init.pt': 0, 'epoch=3.ckpt': 4}
    """
    result: dict[str, int] = {}
    for text in placed:
        name, _, epoch = text.rpartition("=")
        if not name or not re.fullmatch(r"[0-9]{1,19}", epoch) or int(epoch) > LARGEST:
            raise UsageError(f"--as {text}: give FILE=EPOCH with an epoch from 0 up, such as init.pt=0.")
        if result.get(name, int(epoch)) != int(epoch):
            raise UsageError(f"--as gives {name} two epochs, {result[name]} and {int(epoch)}; give one.")
        result[name] = int(epoch)
    return result


def placed_among(folder: Path, paths: Sequence[Path], given: Mapping[str, int]) -> dict[Path, int]:
    """The checkpoints to which --as gives a place; raises UsageError for names that none has."""
    names = {path.name: path for path in paths}
    result = {}
    for text, epoch in given.items():
        name = Path(text).name
        if name not in names or (name != text and (folder / text).absolute() != names[name].absolute()
                                 and Path(text).absolute() != names[name].absolute()):  # fmt: skip
            near = difflib.get_close_matches(name, names, 3, 0.3) or list(names)[:3]
            hint = f"; there are {', '.join(near)}" if near else ""
            raise UsageError(f"--as {text}={epoch}: {folder} holds no checkpoint of that name{hint}.")
        result[names[name]] = epoch
    return result


def matches(name: str, select: str) -> bool:
    """Whether a name is one that --select means, where # stands for a number, as in the form of a name.

    >>> matches("net_12.pth", "net_#.pth"), matches("net_a.pth", "net_#.pth"), matches("r=-1.pth", "r=#.pth")
    (True, False, True)
    >>> matches("epoch=3-loss=0.34.pt", "epoch=#-loss=#.pt"), matches("epoch=3-loss=0.34.pt", "epoch=#-loss=#.#.pt")
    (True, True)
    """
    texts = (name, form(name)) if "#" in select and not {"?", "["} & {*select} else (name,)
    return any(re.match(fnmatch.translate(select).replace("\\#", rf"(?:-?{DIGITS}|\#)"), text) for text in texts)


def refuse_folder(place: Path, select: str | None = None, placed: Sequence[str] = ()) -> None:
    """Raise for a folder that certainly holds no checkpoint, or none of the names that --select and --as give."""
    given = parse_places(placed)
    if not place.is_dir():
        return
    children = children_of(place)
    names = [child.name for child in children]
    if all(child.is_file() for child in children) and all(
        NO_WEIGHTS.fullmatch(name) and not PERHAPS.fullmatch(name) for name in names
    ):
        raise PosthocError(
            f"No checkpoint in {place}: it holds {_some(names)}, and no weights; give the folder of a run."
        )
    if {"refs", "snapshots"} & set(names):  # of a cache the revisions are meant
        return
    if all(child.is_dir() or NO_WEIGHTS.fullmatch(child.name) for child in children):  # the run may be one below
        return
    placed_among(place, [child for child in children if not NO_WEIGHTS.fullmatch(child.name)], given)
    if select is not None and not any(matches(name, select) for name in names):
        raise PosthocError(f"No checkpoint matching {select!r} in {place}; there are {_some(names)}.")


def children_of(place: Path) -> list[Path]:
    """What a folder holds, but for hidden files; raises PosthocError where that is nothing, or cannot be read."""
    try:
        children = sorted(child for child in place.iterdir() if not child.name.startswith("."))
    except OSError as error:
        raise PosthocError(f"Cannot read {place}: {error.strerror or error}.") from error
    if not children:
        raise PosthocError(f"No checkpoint in {place}: the folder is empty; give the folder of a run.")
    return children


def _some(names: Sequence[str], most: int = 3) -> str:
    """The first names of several, and how many more there are.

    >>> _some(["a", "b"]), _some(["a", "b", "c", "d", "e"])
    ('a and b', 'a, b, c and 2 more')
    """
    *first, last = [*names[:most], f"{len(names) - most} more"] if len(names) > most else names
    return f"{', '.join(first)} and {last}" if first else last


def refuse_model(reference: str | None) -> None:
    """Raise UsageError for a name that stands nowhere in the sources of torchvision's and timm's models.

    The libraries take seconds to import, their sources milliseconds to read.
    """
    library, _, name = (reference or "").rpartition(":")
    if not name or name.endswith(".py") or library not in ("", *LIBRARIES) or name in ("transformers", "diffusers"):
        return
    libraries = [library] if library else LIBRARIES
    if library == "timm":
        require_timm(name)
    if any(package in sys.modules for package in libraries):  # where others may have registered networks of theirs
        return
    word = re.compile(rf"\b{re.escape(name.partition('.')[0])}\b")
    texts = []
    for package in libraries:
        texts.append(_sources(package))
        if word.search(texts[-1]):
            return
    raise unknown_model(
        str(reference), [found for text in texts for found in re.findall(r"^def ([a-z]\w+)\(", text, re.M)]
    )


def require_timm(name: str) -> None:
    """Raise PosthocError where timm, which has the network of that name, is not installed."""
    if find_spec("timm") is None:
        raise PosthocError(f"timm:{name} needs timm; install posthoc[timm].")


def unknown_model(reference: str, known: Sequence[str]) -> UsageError:
    """That no library has a network of that name, with the nearest that there are."""
    near = difflib.get_close_matches(reference.rpartition(":")[2], list(dict.fromkeys(known)), 3)
    hint = f"did you mean {' or '.join(near)}? Else give" if near else "give"
    return UsageError(
        f"Unknown model {reference!r}; {hint} {MODEL_FORMS}, such as torchvision:resnet18 "
        "(torchvision.models.list_models() and timm.list_models() name theirs)."
    )


def _sources(library: str) -> str:
    """The text of the modules that define a library's networks; empty where it is not installed."""
    spec = find_spec(library)
    folders = (spec.submodule_search_locations if spec else None) or ()
    files = (file for folder in folders for file in (Path(folder) / "models").rglob("*.py"))
    return "\n".join(file.read_text(encoding="utf-8", errors="ignore") for file in files)
