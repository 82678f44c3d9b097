"""Checkpoints that hold the same weights as another: copies of the best and the last."""

import hashlib
import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from posthoc.errors import PosthocError
from posthoc.replay.checkpoint import Header, read_arrays
from posthoc.replay.names import places
from posthoc.replay.naming import UNUSED, canonical
from posthoc.replay.order import stem
from posthoc.replay.weights import Pick

T = TypeVar("T")
Place = tuple[int | None, ...]
"""Epoch and step that a checkpoint records; as a question, ANY for what does not matter."""
ANY = -1
Shape = frozenset[tuple[str, tuple[int, ...]]]
STAGES: tuple[tuple[float, float], ...] = ((4, math.inf), (math.inf, 2**21), (math.inf, math.inf))
"""How many of the smallest tensors, and numbers in them, are compared at first: what differs there is read no further."""


class Saved(Protocol):
    """A checkpoint whose header was read."""

    @property
    def path(self) -> Path: ...
    @property
    def header(self) -> Header: ...


S = TypeVar("S", bound=Saved)


@dataclass(frozen=True, eq=False)
class Candidate:
    """A checkpoint in a folder of some; network: the names and shapes by which networks are told apart."""

    path: Path
    header: Header
    network: Shape

    @property
    def place(self) -> Place:
        return self.header.epoch, self.header.step


Group = list[Candidate]


def without_copies(
    groups: Sequence[Group], pick: Pick, skip_damaged: bool
) -> tuple[list[Group], list[tuple[Path, Path]]]:
    """The groups without what holds the same weights as another checkpoint of the same network, and the copies.

    Weights are compared by digests, so that the cost grows with the number of checkpoints, not with that of pairs. With
    `skip_damaged` what cannot be read is no copy: its replay will say why.
    """

    alike = _by(_likely(groups), lambda item: item.network)
    weights = {item: k for k, same in enumerate(equal_weights(alike, pick, skip_damaged)) for item in same}
    kept: list[Group] = []
    copies = []
    originals: dict[tuple[int, Place], Path] = {}  # by weights and what they record, or leave open
    for group in sorted(groups, key=lambda group: (-len(group), [item.path for item in group])):
        left: Group = []
        here: dict[tuple[int, Place, Place], Path] = {}  # in this group, where something is recorded
        for item in sorted(group, key=lambda item: (len(item.path.name), item.path.name)):
            if item in weights:
                key = weights[item], item.place
                named = *key, _named(item.path)
                original = next((originals[ask] for ask in _compatible(*key) if ask in originals), here.get(named))
                if original is not None:
                    copies.append((item.path, original))
                    continue
                if item.place != (None, None):
                    here[named] = item.path
            left.append(item)
        kept += [left] if left else []
        for item in left:
            if item in weights:
                for asked in itertools.product(*((value, ANY) for value in item.place)):
                    originals.setdefault((weights[item], asked), item.path)
    return sorted(kept, key=lambda group: [item.path for item in group]), copies


def _named(path: Path) -> Place:
    """Epoch and step of a name that is certain to say one: by another name the same weights are no copy but a fault."""
    named = places([stem(path)])
    units = named.units if named and named.sure else {}
    return tuple(units[unit][0] if unit in units else None for unit in ("epoch", "step"))


def _likely(groups: Sequence[Group]) -> set[Candidate]:
    """What may be a copy or have some: where groups are of one network, or two of a group record the same place."""
    likely: set[Candidate] = set()
    for alike in _by(groups, lambda group: group[0].network):
        likely.update(item for group in alike for item in group if len(alike) > 1)
    for group in groups:
        for items in _by(group, lambda item: item.place):
            if len(items) > 1 and items[0].place != (None, None):
                likely.update(items)
    return likely


def _compatible(weights: int, place: Place) -> Iterable[tuple[int, Place]]:
    """What an original may record, to which a copy that records this does not object: the same, or nothing."""
    places = itertools.product(*((ANY,) if value is None else (value, None) for value in place))
    return ((weights, other) for other in places)


def _by(items: Iterable[T], key: Callable[[T], object]) -> list[list[T]]:
    groups: dict[object, list[T]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return list(groups.values())


def equal_weights(groups: Iterable[list[S]], pick: Pick, skip_damaged: bool) -> list[list[S]]:
    """What in each group holds the same weights, where two or more do; with `skip_damaged` what cannot be read is alone."""

    def split(group: list[S], most: tuple[float, float]) -> list[list[S]]:
        def digest(item: S) -> bytes:
            try:
                return _digest(item, pick, *most)
            except PosthocError:
                if not skip_damaged:
                    raise
                return bytes(item.path)

        return [items for items in _by(group, digest) if len(items) > 1]

    for most in STAGES:
        groups = [items for group in groups if len(group) > 1 for items in split(group, most)]
    return list(groups)


def smallest(header: Header, tensors: float, numbers: float) -> dict[str, str]:
    """The smallest tensors, not more than so many, with not more numbers than that in all, and one at the least; by name
    without wrappers."""
    shapes = header.shapes
    short = {name: bare for name, bare in canonical(shapes).items() if not bare.endswith(UNUSED)}
    names = sorted(short, key=lambda name: (math.prod(shapes[name]), short[name]))
    if math.isfinite(tensors):
        names = [name for name in names if shapes[name]][: int(tensors)]
    sizes = itertools.accumulate(math.prod(shapes[name]) for name in names)
    return {
        name: short[name] for k, (name, size) in enumerate(zip(names, sizes, strict=True)) if size <= numbers or not k
    }


def _digest(item: Saved, pick: Pick, tensors: float, numbers: float) -> bytes:
    """Of the names, precisions and bytes of the tensors, or of some that are small; single numbers are not among few."""
    short = smallest(item.header, tensors, numbers)
    values = read_arrays(item.path, pick, short)
    result = hashlib.sha256()
    for name in short:
        tensor = values[name]
        about = f"{short[name]} {tensor.dtype} {tensor.shape}\n"
        result.update(about.encode("utf-8", "surrogatepass"))  # names may be no text
        result.update(tensor.raw.data)
    return result.digest()
