"""How much of each tensor is read: its first numbers."""

import math
from typing import NamedTuple

LEAST = 4096
"""Numbers of a tensor that are read in any case: one request for fewer takes as long."""


class Share(NamedTuple):
    """The first numbers of each tensor: this part of them, and no fewer than `least`.

    >>> Share(0.05).of(1_000_000), Share(0.05).of(300), Share().of(1_000_000)
    (50000, 300, 1000000)
    """

    part: float = 1.0
    least: int = LEAST

    def of(self, size: int) -> int:
        """How many of a tensor's numbers are read."""
        return min(size, max(self.least, math.ceil(self.part * size)))

    @property
    def is_whole(self) -> bool:
        return self.part >= 1


WHOLE = Share()
