"""Which steps a series was to be saved at, as far as those that are there show it."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

FEWEST = 5
"""Steps from which a grid can be recognised."""
MOST_MISSING = 0.5
"""Of the steps of a grid, more than these missing and it is none."""


@dataclass(frozen=True)
class Grid:
    """A rule by which steps were saved. every: the step of its even part (0: none); base: powers of it come first (0: no)."""

    every: int
    base: int
    missing: tuple[int, ...] = ()

    @property
    def rule(self) -> str:
        """In words."""
        powers, even = f"powers of {self.base}", f"every {self.every}"
        return f"{powers}, then {even}" if self.every and self.base else powers if self.base else even


def recognise(steps: Sequence[int]) -> Grid | None:
    """The grid of ascending steps, and which of it are missing between the first and the last; None where there is none.

    The first step may be any (0 or 1), and the last (the end of the training). Of grids that the steps agree with, that
    with the fewest missing steps is taken.

    >>> recognise([0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000, 2000, 4000, 5000]).missing
    (3000,)
    >>> recognise([10, 20, 30, 50, 60, 64]).rule, recognise([3, 8, 21, 30, 77])
    ('every 10', None)
    """
    if len(steps) < FEWEST:
        return None
    inner = set(steps[1:-1])
    grids = []
    for every, base, origin in _candidates(steps):
        expected = {step for step in _steps(every, base, origin, steps[-1]) if steps[0] < step < steps[-1]}
        if inner <= expected:
            missing = tuple(sorted(expected - inner))
            if len(missing) <= MOST_MISSING * len(expected):
                grids.append(Grid(every, base, missing))
    return min(grids, key=lambda grid: (len(grid.missing), grid.base), default=None)


def _candidates(steps: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Even steps, the base of the powers before them, and from where even steps are counted."""
    gaps = Counter(b - a for a, b in pairwise(steps))
    for every, _ in gaps.most_common(3):
        yield every, 0, steps[0]
        yield every, 0, 0
    uneven = [step for step in steps[1:-1] if step & (step - 1)]
    yield math.gcd(*uneven), 2, 0
    yield 0, 2, 0
    yield 0, 10, 0


def _steps(every: int, base: int, origin: int, last: int) -> Iterator[int]:
    """The steps of a grid up to the last: powers below the first even step, then even ones."""
    power = 1
    while base and power <= last and (not every or power < every):
        yield power
        power *= base
    if every:
        yield from range(origin, last + 1, every)
