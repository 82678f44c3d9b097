"""Every stream of random numbers, by name: any draw can be computed again alone, in any order.

A stream is keyed by the seed, its purpose, the epoch and the draw. The numbers behind a purpose never change, for what
was drawn once must come out the same ever after; a purpose that has none here is keyed by its name.
"""

import zlib
from collections.abc import Callable, Sequence

import numpy as np

Key = Callable[[int, int, int], list[int]]
"""Seed, epoch and draw -> the numbers that key a stream."""


def _at(place: int, first: int = 0) -> Key:
    return lambda seed, epoch, draw: [seed, epoch, place, first + draw]


def _settling(place: int) -> Key:
    return lambda seed, epochs, draw: [seed, place, epochs]


PURPOSES: dict[str, Key] = {
    **{
        f"null {null}": _at(place)
        for place, null in enumerate(("white", "label", "order", "split", "channel", "time", "phase", "gaussian"))
    },
    "halves of order": _at(2, 2**32 - 1),
    "halves of time": _at(5, 2**32 - 1),
    "audited channels": _at(0, 2**31),
    "permuted runs": _at(0, 2**32 - 5),
    **{
        f"settling {kind}": _settling(place)
        for place, kind in enumerate(("white", "autoregressive", "walk", "divergent"))
    },
}


def stream(purpose: str, seed: int, epoch: int = 0, draw: int = 0) -> np.random.Generator:
    """The random numbers of one draw of one purpose, such as `null order`.

    >>> stream("null order", 0, 3, 1).random() == stream("null order", 0, 3, 1).random()
    True
    """
    by_name: Key = _at(2**32 + zlib.crc32(purpose.encode()))
    return keyed(PURPOSES.get(purpose, by_name)(seed, epoch, draw))


def keyed(numbers: Sequence[int]) -> np.random.Generator:
    """The stream that whole numbers key."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(numbers)))


def channels(seed: int, layer: str) -> np.random.Generator:
    """From which the recorded channels of a layer are drawn, whatever other layers there are."""
    name = zlib.crc32(layer.encode("utf-8", "surrogatepass"))
    return np.random.Generator(np.random.Philox(key=np.array([seed, name], np.uint64)))


def batch_seed(seed: int, batch: int) -> int:
    """What the random numbers of a network's own layers are seeded with before a batch."""
    return int(np.random.SeedSequence([seed, batch]).generate_state(1)[0])
