"""Checkpoints that hold the same weights as another: copies of the best and the last."""

import hashlib
import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from posthoc.errors import PosthocError
from posthoc.replay.checkpoint import Header, read_weights
from posthoc.replay.naming import UNUSED, canonical
from posthoc.replay.weights import Pick

T = TypeVar("T")
Place = tuple[int | None, ...]
"""Epoch and step that a checkpoint records; as a question, ANY for what does not matter."""
ANY = -1
Shape = frozenset[tuple[str, tuple[int, ...]]]
FEW = 4
"""So many of the smallest tensors tell most checkpoints apart; only what agrees in them is read to the end."""


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

    def digest(item: Candidate, few: int | None) -> bytes:
        try:
            return _digest(item, pick, few)
        except PosthocError:
            if not skip_damaged:
                raise
            return bytes(item.path)

    weights = _classes(_by(_likely(groups), lambda item: item.network), digest)
    kept: list[Group] = []
    copies = []
    originals: dict[tuple[int, Place], Path] = {}  # by weights and what they record, or leave open
    for group in sorted(groups, key=lambda group: (-len(group), [item.path for item in group])):
        left: Group = []
        alike: dict[tuple[int, Place], Path] = {}  # in this group, where something is recorded
        for item in sorted(group, key=lambda item: (len(item.path.name), item.path.name)):
            if item in weights:
                key = weights[item], item.place
                original = next((originals[ask] for ask in _compatible(*key) if ask in originals), alike.get(key))
                if original is not None:
                    copies.append((item.path, original))
                    continue
                if item.place != (None, None):
                    alike[key] = item.path
            left.append(item)
        kept += [left] if left else []
        for item in left:
            if item in weights:
                for asked in itertools.product(*((value, ANY) for value in item.place)):
                    originals.setdefault((weights[item], asked), item.path)
    return sorted(kept, key=lambda group: [item.path for item in group]), copies


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


def _classes(groups: Iterable[Group], digest: Callable[[Candidate, int | None], bytes]) -> dict[Candidate, int]:
    """A number for each checkpoint whose weights are those of another in its group, the same for the same weights."""
    classes: dict[Candidate, int] = {}
    for few in itertools.chain.from_iterable(_by(group, lambda item: digest(item, FEW)) for group in groups):
        for same in _by(few, lambda item: digest(item, None)) if len(few) > 1 else ():
            number = len(classes)
            classes.update(dict.fromkeys(same, number) if len(same) > 1 else {})
    return classes


def _digest(item: Candidate, pick: Pick, few: int | None) -> bytes:
    """Of the names, precisions and bytes of the tensors, or of the `few` smallest that are more than a number."""
    shapes = item.header.shapes
    short = {name: bare for name, bare in canonical(shapes).items() if not bare.endswith(UNUSED)}
    names = sorted(short, key=lambda name: (math.prod(shapes[name]), short[name]))
    if few is not None:
        names = [name for name in names if shapes[name]][:few]
    tensors = read_weights(item.path, pick, names)
    result = hashlib.sha256()
    for name in names:
        tensor = tensors[name].contiguous()
        result.update(f"{short[name]} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        result.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return result.digest()
