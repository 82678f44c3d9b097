"""Which files make one training run, and in which order."""

import fnmatch
import itertools
import json
import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posthoc.errors import PosthocError
from posthoc.replay.readers import SUFFIXES, Header, read_header


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
    """The checkpoints of one training run in training order, and its run.json where there is one."""

    folder: Path
    checkpoints: tuple[Checkpoint, ...]
    about: dict[str, Any] = field(default_factory=dict)


def find_run(place: Path, select: str | None = None) -> Run:
    """Find the one run in folder `place` (or the one checkpoint file `place`).

    Order: the epoch or step recorded inside the files, else the number in their names; never the names' alphabet or
    the files' dates. Raises PosthocError where there is no checkpoint, more than one run, or no certain order.
    """
    if place.is_file():
        header = read_header(place)
        epoch = header.epoch if header.epoch is not None or header.step is not None else 0
        return Run(place.parent, (Checkpoint(place, epoch, header.step, header),), _about(place.parent))
    if not place.is_dir():
        raise PosthocError(f"No such file or folder: {place}.")
    paths = sorted(path for path in place.iterdir() if path.suffix in SUFFIXES and not path.name.startswith("."))
    paths = [path for path in paths if select is None or fnmatch.fnmatch(path.name, select)]
    if not paths:
        which = f" matching {select!r}" if select else ""
        raise PosthocError(f"No checkpoint{which} in {place} (looked for {', '.join('*' + end for end in SUFFIXES)}).")
    _refuse_several(place, _groups_by_name(paths), "files named alike")
    if len(paths) == 1 and len(re.findall(r"\d+", paths[0].stem)) != 1:
        return find_run(paths[0])
    headers = {path: read_header(path) for path in paths}
    shapes = defaultdict(list)
    for path in paths:
        shapes[tuple(sorted(headers[path].shapes.items()))].append(path)
    _refuse_several(place, list(shapes.values()), "networks of different shape")
    return Run(place, _ordered(headers), _about(place))


def _groups_by_name(paths: list[Path]) -> list[list[Path]]:
    """Files whose names are equal but for their numbers.

    >>> [len(group) for group in _groups_by_name([Path("a_1.pt"), Path("a_10.pt"), Path("a_2_gpu.pt")])]
    [2, 1]
    """
    groups = defaultdict(list)
    for path in paths:
        groups[re.sub(r"\d+", "#", path.name)].append(path)
    return list(groups.values())


def _refuse_several(place: Path, groups: list[list[Path]], what: str) -> None:
    if len(groups) > 1:
        listing = "; ".join(f"{group[0].name}{f' and {len(group) - 1} more' * (len(group) > 1)}" for group in groups)
        raise PosthocError(
            f"{place} holds more than one run: {what} fall into {len(groups)} groups ({listing}); "
            f"choose one with --select GLOB."
        )


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
                f"{paths[0].parent} holds more than one run, or copies: {first.path.name} and {second.path.name} are "
                f"both of {first.when}; choose with --select GLOB."
            )
    return tuple(checkpoints)


def _numbers_in_names(paths: list[Path]) -> tuple[dict[Path, int | None], dict[Path, int | None]]:
    """Epochs and steps by the numbers that differ among names of one form; one unlabelled number counts epochs."""
    pieces = [re.split(r"(\d+)", path.stem.lower()) for path in paths]
    varying = [k for k in range(1, len(pieces[0]), 2) if len(pieces) == 1 or len({row[k] for row in pieces}) > 1]
    epochs = [k for k in varying if re.search(r"(epoch|(^|[^a-z])(ep|e))[^a-z]*$", pieces[0][k - 1])]
    steps = [k for k in varying if re.search(r"(step|iter|iteration|(^|[^a-z])it)[^a-z]*$", pieces[0][k - 1])]
    if len(varying) == 1 and not steps:
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
    except ValueError as error:
        raise PosthocError(f"{path} is not valid JSON ({error}); mend or remove it.") from error
    if not isinstance(about, dict):
        raise PosthocError(f"{path} holds a {type(about).__name__}; expected an object with model, normalization, ...")
    return about
