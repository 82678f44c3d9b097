"""Other inputs for the same weights: the probe's tokens, with what is asked about taken from them.

A control is one entry in `CONTROLS`; `block` takes a number, as in block:64.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from posthoc.errors import UsageError
from posthoc.streams import stream

UNTRAINED = "untrained"
"""New weights instead of other inputs."""
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Control:
    """words: what it is; alter: a row of ids [T], its random numbers, the number after the colon and the commonest id of
    the probe to other ids [T]; numbered: whether it takes a number."""

    words: str
    alter: Callable[[Ids, np.random.Generator, int, int], Ids]
    numbered: bool = False


def _blocks_permuted(row: Ids, random: np.random.Generator, length: int, commonest: int) -> Ids:
    blocks = np.split(row, range(length, len(row), length))
    return np.concatenate([blocks[k] for k in random.permutation(len(blocks))])


CONTROLS = {
    "shuffle": Control("each document's tokens permuted", lambda row, random, *_: random.permutation(row)),
    "block": Control("blocks of so many tokens permuted", _blocks_permuted, numbered=True),
    "constant": Control("one token repeated", lambda row, random, length, commonest: np.full_like(row, commonest)),
}
FORMS = "shuffle, block:LENGTH, constant or untrained"


def parse(name: str) -> tuple[Control, int]:
    """The control of that name and its number; raises UsageError where there is none.

    >>> parse("block:64")[1]
    64
    """
    kind, colon, number = name.partition(":")
    control = CONTROLS.get(kind)
    if control is None or bool(colon) != control.numbered or (colon and not (number.isdecimal() and int(number))):
        raise UsageError(f"--controls {name}: there is no such control; give {FORMS}.")
    return control, int(number or 0)


def check_controls(names: Sequence[str], T: int) -> None:
    """Raise UsageError where one takes nothing from rows of T tokens."""
    for name in names:
        control, length = parse(name)
        if control.numbered and length >= T:
            raise UsageError(f"--controls {name}: a document has {T} tokens, so it is one block; give a smaller one.")


def altered(name: str, ids: Ids, index: NDArray[np.int64], seed: int) -> Ids:
    """The ids [N, T] that a control gives the network; what a document becomes depends on its position `index` [N] in
    all the text and on the seed, not on the others.

    >>> altered("block:2", np.arange(6)[None], np.array([7]), 0).tolist()
    [[2, 3, 0, 1, 4, 5]]
    """
    control, number = parse(name)
    commonest = int(np.bincount(ids.ravel()).argmax()) if name == "constant" else 0
    rows = [
        control.alter(row, stream(f"replay {name}", seed, 0, at), number, commonest)
        for row, at in zip(ids, index.tolist(), strict=True)
    ]
    return np.stack(rows)
