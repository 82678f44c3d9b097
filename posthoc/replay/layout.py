"""Which checkpoints make one training run, and in which order."""

import contextlib
import fnmatch
import itertools
import json
import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from posthoc.errors import PosthocError, UsageError
from posthoc.files import names_apart
from posthoc.replay.naming import UNUSED, canonical
from posthoc.replay.readers import (
    MAIN,
    SUFFIXES,
    Header,
    NoWeightsError,
    Pick,
    files_of,
    is_checkpoint_folder,
    is_indivisible,
    read_header,
    read_weights,
)

NO_EPOCH = re.compile(r"(fold|seed|rank|shard|part|stage|trial|run|lr|rep|split|consolidated|gpu|worker)[^a-z]*$")
"""What stands before a number that counts something else than epochs."""


@dataclass(frozen=True)
class Checkpoint:
    """One saved state: where it lies, when it was saved (None: unknown), what it says of itself."""

    path: Path
    epoch: int | None
    step: int | None
    header: Header

    @property
    def position(self) -> tuple[int, int]:
        """Its place in training, unique within the run: epoch and step, -1 where unknown."""
        return (-1 if self.epoch is None else self.epoch, -1 if self.step is None else self.step)

    @property
    def when(self) -> str:
        """Epoch, or step where there is none, in words."""
        return f"step {self.step}" if self.epoch is None else f"epoch {self.epoch}"


@dataclass(frozen=True)
class Run:
    """The checkpoints of one training run in training order, and its run.json where there is one.

    copies: what was dropped because it holds the same weights as another checkpoint, and which; apart: what holds no
    network's weights; damaged: what could not be read, and why.
    """

    folder: Path
    checkpoints: tuple[Checkpoint, ...]
    about: dict[str, Any] = field(default_factory=dict)
    copies: tuple[tuple[Path, Path], ...] = ()
    apart: tuple[Path, ...] = ()
    damaged: tuple[tuple[Path, str], ...] = ()


def run_folders(places: Sequence[Path]) -> list[tuple[str, Path]]:
    """Several folders, each that of a run, with the names that tell them apart; files beside them are no run.

    Raises UsageError for a checkpoint, PosthocError for what is not there.
    """
    folders = []
    for place in places:
        if is_checkpoint_folder(place) or (place.is_file() and place.suffix in SUFFIXES):
            raise UsageError(f"{place} is a checkpoint; of several runs give the folders, of one run its folder alone.")
        if not place.exists():
            raise PosthocError(f"{place} does not exist.")
        folders += [place] if place.is_dir() else []
    folders = list({folder.resolve(): folder for folder in folders}.values())
    if not folders:
        raise UsageError(f"{', '.join(map(str, places))}: none is a folder.")
    return list(zip(names_apart([folder.absolute() for folder in folders]), folders, strict=True))


def find_run(place: Path, select: str | None = None, pick: Pick = MAIN, skip_damaged: bool = False) -> Run:
    """Find the one run in folder `place` (or the one checkpoint `place`).

    Order: the epoch or step recorded inside the checkpoints, else the number in their names; never the names' alphabet
    or the files' dates. A checkpoint with the weights of another is dropped. `select` is a glob over the names, in
    which # also stands for a number. Raises PosthocError where there is no checkpoint, more than one run, or no certain
    order.
    """
    if place.is_file() or (place.is_dir() and is_indivisible(place)):
        return _single(place, pick)
    if not place.is_dir():
        raise PosthocError(f"No such file or folder: {place}.")
    paths = _listed(place)
    if select is not None:
        pattern = re.compile(fnmatch.translate(select).replace("\\#", r"(?:\d+|\#)"))
        paths = [path for path in paths if pattern.match(path.name)]
    if not paths:
        raise PosthocError(_nothing(place, select))
    headers, apart, damaged = {}, [], []
    known: dict[tuple[tuple[str, tuple[int, ...]], ...], dict[str, tuple[int, ...]]] = {}
    for path in paths:
        try:
            header = read_header(path, pick)
        except NoWeightsError as error:
            apart.append(path)
            reason: PosthocError = error
        except PosthocError as error:
            if not skip_damaged:
                raise
            damaged.append((path, str(error)))
            reason = error
        else:  # a thousand checkpoints name the same tensors
            headers[path] = replace(header, shapes=known.setdefault(tuple(header.shapes.items()), header.shapes))
    if not headers:
        raise reason
    if is_checkpoint_folder(place) and headers.keys() <= set(files_of(place)):
        return _single(place, pick)
    groups, copies = _without_copies(_grouped(headers), headers, pick)
    if len(groups) > 1 and not (select and _are_one(groups, headers)):
        raise PosthocError(_several(place, groups, headers))
    paths = [path for group in groups for path in group]
    if len(paths) == 1 and len(re.findall(r"\d+", _stem(paths[0]))) != 1:
        single = _single(paths[0], pick)
        return replace(single, folder=place, copies=tuple(copies), apart=tuple(apart), damaged=tuple(damaged))
    checkpoints = _ordered({path: headers[path] for path in paths})
    return Run(place, checkpoints, _about(place), tuple(copies), tuple(apart), tuple(damaged))


def _single(place: Path, pick: Pick) -> Run:
    header = read_header(place, pick)
    epoch = header.epoch if header.epoch is not None or header.step is not None else 0
    return Run(place.parent, (Checkpoint(place, epoch, header.step, header),), _about(place.parent))


def _listed(folder: Path) -> list[Path]:
    """Checkpoints in `folder`, shards of an index left out."""
    try:
        children = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise PosthocError(f"Cannot read {folder}: {error.strerror or error}.") from error
    paths = [
        path
        for path in children
        if (path.name.endswith(SUFFIXES) if path.is_file() else path.is_dir() and is_checkpoint_folder(path))
    ]
    shards: set[Path] = set()
    for path in paths:
        if path.name.endswith(".index.json"):
            with contextlib.suppress(PosthocError, OSError):  # one that is none is met again when it is read
                shards.update(files_of(path)[1:])
    return [path for path in paths if path not in shards]


def _nothing(place: Path, select: str | None) -> str:
    which = f" matching {select!r}" if select else ""
    said = f"No checkpoint{which} in {place} (looked for {', '.join('*' + end for end in SUFFIXES)})"
    inside = [child for child in sorted(place.iterdir()) if child.is_dir() and _holds_some(child)]
    if inside and not select:
        names = ", ".join(str(child) for child in inside[:5])
        return f"{said}; there are some in {names}{', ...' if len(inside) > 5 else ''}: give one of these."
    return f"{said}."


def _holds_some(folder: Path) -> bool:
    try:
        return any(path.name.endswith(SUFFIXES) for path in folder.rglob("*"))
    except OSError:
        return False


def _stem(path: Path) -> str:
    """The name without the endings of checkpoints.

    >>> _stem(Path("checkpoint-12.pth.tar")), _stem(Path("epoch=3-step=400-v1.ckpt")), _stem(Path("v0.5"))
    ('checkpoint-12', 'epoch=3-step=400', 'v0.5')
    """
    name = path.name
    while (end := next((end for end in SUFFIXES if name.lower().endswith(end)), None)) and name != end:
        name = name[: -len(end)]
    # Lightning's mark of a second file of the same name.
    return re.sub(r"-v\d+$", "", name) if path.suffix == ".ckpt" else name


def _form(path: Path) -> str:
    """The name with # for each number, which --select takes.

    >>> _form(Path("tudui_29_gpu.pth"))
    'tudui_#_gpu.pth'
    """
    ending = path.name[path.name.rfind(".") :] if path.suffix == ".ckpt" else path.name[len(_stem(path)) :]
    return re.sub(r"\d+", "#", _stem(path)) + ending


def _shape(header: Header) -> frozenset[tuple[str, tuple[int, ...]]]:
    names = canonical(header.shapes)
    return frozenset((short, header.shapes[name]) for name, short in names.items() if not short.endswith(UNUSED))


def _grouped(headers: dict[Path, Header]) -> list[list[Path]]:
    """Checkpoints of one network whose names are equal but for their numbers."""
    groups = defaultdict(list)
    shapes: dict[int, frozenset[tuple[str, tuple[int, ...]]]] = {}  # by identity: most checkpoints share one
    for path, header in headers.items():
        if id(header.shapes) not in shapes:
            shapes[id(header.shapes)] = _shape(header)
        groups[shapes[id(header.shapes)], _form(path)].append(path)
    return list(groups.values())


def _without_copies(
    groups: list[list[Path]], headers: dict[Path, Header], pick: Pick
) -> tuple[list[list[Path]], list[tuple[Path, Path]]]:
    """Drop what holds the same weights as another checkpoint of the same network: copies of the best and the last.

    Weights are compared where a copy is likely: between groups of names, and where two say the same of themselves.
    """
    kept: list[list[Path]] = []
    copies = []
    for group in sorted(groups, key=lambda group: (-len(group), group)):
        shape = _shape(headers[group[0]])
        larger = [path for other in kept if _shape(headers[other[0]]) == shape for path in other]
        left: list[Path] = []
        for path in sorted(group, key=lambda path: (len(path.name), path.name)):
            said = (headers[path].epoch, headers[path].step)
            twins = [other for other in left if said == (headers[other].epoch, headers[other].step) != (None, None)]
            original = next((other for other in larger + twins if _same_weights(path, other, headers, pick)), None)
            if original is None:
                left.append(path)
            else:
                copies.append((path, original))
        if left:
            kept.append(left)
    return sorted(kept), copies


def _same_weights(first: Path, second: Path, headers: dict[Path, Header], pick: Pick) -> bool:
    for name in ("epoch", "step"):
        said = {getattr(headers[path], name) for path in (first, second)}
        if len(said - {None}) > 1:
            return False
    short = [canonical(headers[path].shapes) for path in (first, second)]
    names = [{short[name]: name for name in short} for short in short]
    shapes = headers[first].shapes
    by_size = sorted(names[0], key=lambda name: math.prod(shapes[names[0][name]]))
    # A few small tensors tell most checkpoints apart; only what agrees in them is read to the end.
    for some in ([name for name in by_size if shapes[names[0][name]]][:4], by_size):
        a, b = (
            read_weights(path, pick, [full[name] for name in some if name in full])
            for path, full in zip((first, second), names, strict=True)
        )
        if not all(
            name in names[1]
            and a[names[0][name]].dtype == b[names[1][name]].dtype
            and _same_bytes(a[names[0][name]], b[names[1][name]])
            for name in some
            if not name.endswith(UNUSED)
        ):
            return False
    return True


def _same_bytes(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal to the bit, NaN included."""
    return a.shape == b.shape and torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


def _are_one(groups: Sequence[Sequence[Path]], headers: dict[Path, Header]) -> bool:
    """Whether files named in several ways may be one run: of one network, and all say their epoch or step."""
    paths = [path for group in groups for path in group]
    said = [all(getattr(headers[path], name) is not None for path in paths) for name in ("epoch", "step")]
    return len({_shape(headers[path]) for path in paths}) == 1 and any(said)


def _several(place: Path, groups: list[list[Path]], headers: dict[Path, Header]) -> str:
    lines = []
    for group in groups:
        shapes = headers[group[0]].shapes
        values = sum(map(math.prod, shapes.values()))
        name = group[0].name if len(group) == 1 else f"{_form(group[0])} ({len(group)} files)"
        lines.append(f"{name}: {len(shapes)} tensors, {values:,} values")
    forms = [{_form(path) for path in group} for group in groups]
    largest = max(groups, key=len)[0]
    if len(set.union(*forms)) == len(groups):
        what, advice = "checkpoints named alike", f"choose one with --select GLOB, such as --select '{_form(largest)}'"
    else:
        what, advice = "networks of different shape", "choose one with --select GLOB, or move the others elsewhere"
    return f"{place} holds more than one run: {what} fall into {len(groups)} groups ({'; '.join(lines)}); {advice}."


def _ordered(headers: dict[Path, Header]) -> tuple[Checkpoint, ...]:
    paths = list(headers)
    epochs: dict[Path, int | None] = {path: headers[path].epoch for path in paths}
    steps: dict[Path, int | None] = {path: headers[path].step for path in paths}
    if None in epochs.values() and None in steps.values():
        epochs, steps = _numbers_in_names(paths)
    if None in epochs.values():
        epochs = dict.fromkeys(paths)
    if None in steps.values():
        steps = dict.fromkeys(paths)
    checkpoints = [Checkpoint(path, epochs[path], steps[path], headers[path]) for path in paths]
    checkpoints.sort(key=lambda checkpoint: checkpoint.position)
    for first, second in itertools.pairwise(checkpoints):
        if first.position == second.position:
            raise PosthocError(
                f"{paths[0].parent} holds more than one run: {first.path.name} and {second.path.name} are both of "
                f"{first.when} and hold different weights; choose with --select GLOB."
            )
    return tuple(checkpoints)


def _numbers_in_names(paths: list[Path]) -> tuple[dict[Path, int | None], dict[Path, int | None]]:
    """Epochs and steps by the numbers that differ among names of one form; one unlabelled number counts epochs."""
    pieces = [re.split(r"(\d+)", _stem(path).lower()) for path in paths]
    varying = [k for k in range(1, len(pieces[0]), 2) if len(pieces) == 1 or len({row[k] for row in pieces}) > 1]
    epochs = [k for k in varying if re.search(r"(epoch|(^|[^a-z])(ep|e))[^a-z]*$", pieces[0][k - 1])]
    steps = [k for k in varying if re.search(r"(step|iter|iteration|(^|[^a-z])it)[^a-z]*$", pieces[0][k - 1])]
    if len(varying) == 1 and not steps and not NO_EPOCH.search(pieces[0][varying[0] - 1]):
        epochs = varying
    if len(epochs) > 1 or len(steps) > 1 or not (epochs or steps):
        raise PosthocError(
            f"The order of the checkpoints in {paths[0].parent} is not certain: neither the files nor one number in "
            f"their names ({paths[0].name}, ...) says it; rename them to epoch_1, epoch_2, ... or --select GLOB."
        )

    def column(chosen: list[int]) -> dict[Path, int | None]:
        return {path: int(row[chosen[0]]) if chosen else None for path, row in zip(paths, pieces, strict=True)}

    return column(epochs), column(steps)


def _about(folder: Path) -> dict[str, Any]:
    path = folder / "run.json"
    if not path.is_file():
        return {}
    try:
        about = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise PosthocError(f"{path} is not valid JSON ({error}); mend or remove it.") from error
    except OSError as error:
        raise PosthocError(f"Cannot read {path}: {error.strerror or error}.") from error
    if not isinstance(about, dict):
        raise PosthocError(f"{path} holds a {type(about).__name__}; expected an object with model, normalization, ...")
    return about
