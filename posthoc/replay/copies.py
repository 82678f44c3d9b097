"""Checkpoints that hold the same weights as another: copies of the best and the last."""

import hashlib
import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import torch

from posthoc.errors import PosthocError
from posthoc.replay.checkpoint import Header, read_weights
from posthoc.replay.naming import UNUSED, canonical
from posthoc.replay.weights import Pick

T = TypeVar("T")
Said = tuple[int | None, ...]
"""Epoch and step of a checkpoint, by itself; as a question, ANY for what does not matter."""
ANY = -1
Shape = frozenset[tuple[str, tuple[int, ...]]]
FEW = 4
"""So many of the smallest tensors tell most checkpoints apart; only what agrees in them is read to the end."""


def without_copies(
    groups: list[list[Path]],
    headers: dict[Path, Header],
    shape_of: Callable[[Header], Shape],
    pick: Pick,
    skip_damaged: bool,
) -> tuple[list[list[Path]], list[tuple[Path, Path]]]:
    """The groups without what holds the same weights as another checkpoint of the same network, and the copies.

    Weights are compared where a copy is likely: between groups of names, and where two say the same of themselves. They
    are compared by digests, so that the cost grows with the number of checkpoints, not with that of pairs. With
    `skip_damaged` what cannot be read is no copy: its replay will say why.
    """
    largest_first = sorted(groups, key=lambda group: (-len(group), group))
    likely: set[Path] = set()
    for some in _by(groups, lambda group: shape_of(headers[group[0]])):
        if len(some) > 1:
            likely.update(path for group in some for path in group)
    for group in groups:
        for paths in _by(group, lambda path: _said(headers[path])):
            if len(paths) > 1 and _said(headers[paths[0]]) != (None, None):
                likely.update(paths)

    def digest(path: Path, few: int | None) -> bytes:
        try:
            return _digest(path, headers[path], pick, few)
        except PosthocError:
            if not skip_damaged:
                raise
            return bytes(path)

    weights = _classes(_by(likely, lambda path: shape_of(headers[path])), digest)
    kept: list[list[Path]] = []
    copies = []
    originals: dict[tuple[int, Said], Path] = {}  # by weights and what they say, or leave open
    for group in largest_first:
        left: list[Path] = []
        alike: dict[tuple[int, Said], Path] = {}  # in this group, where something is said
        for path in sorted(group, key=lambda path: (len(path.name), path.name)):
            same, said = weights.get(path), _said(headers[path])
            if same is None:
                left.append(path)
                continue
            found = [originals.get((same, other)) for other in _compatible(said)] + [alike.get((same, said))]
            original = next((other for other in found if other is not None), None)
            if original is not None:
                copies.append((path, original))
                continue
            left.append(path)
            if said != (None, None):
                alike[same, said] = path
        kept += [left] if left else []
        for path in left:
            if path in weights:
                for asked in itertools.product(*((value, ANY) for value in _said(headers[path]))):
                    originals.setdefault((weights[path], asked), path)
    return sorted(kept), copies


def _said(header: Header) -> Said:
    return header.epoch, header.step


def _compatible(said: Said) -> Iterable[Said]:
    """What an original may say, to which a copy that says this does not object: the same, or nothing."""
    return itertools.product(*((ANY,) if value is None else (value, None) for value in said))


def _by(items: Iterable[T], key: Callable[[T], object]) -> list[list[T]]:
    groups: dict[object, list[T]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return list(groups.values())


def _classes(groups: Iterable[list[Path]], digest: Callable[[Path, int | None], bytes]) -> dict[Path, int]:
    """A number for each checkpoint whose weights are those of another in its group, the same for the same weights."""
    classes: dict[Path, int] = {}
    for few in itertools.chain.from_iterable(_by(group, lambda path: digest(path, FEW)) for group in groups):
        for same in _by(few, lambda path: digest(path, None)) if len(few) > 1 else ():
            number = len(classes)
            classes.update(dict.fromkeys(same, number) if len(same) > 1 else {})
    return classes


def _digest(path: Path, header: Header, pick: Pick, few: int | None) -> bytes:
    """Of the names, precisions and bytes of the tensors, or of the `few` smallest that are more than a number."""
    short = {name: bare for name, bare in canonical(header.shapes).items() if not bare.endswith(UNUSED)}
    names = sorted(short, key=lambda name: (math.prod(header.shapes[name]), short[name]))
    if few is not None:
        names = [name for name in names if header.shapes[name]][:few]
    tensors = read_weights(path, pick, names)
    result = hashlib.sha256()
    for name in names:
        tensor = tensors[name].contiguous()
        result.update(f"{short[name]} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        result.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return result.digest()
