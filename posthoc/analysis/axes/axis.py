"""What an axis is: what plays the part of time, and how recorded signals become series over it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np

from posthoc.analysis import protocol, records
from posthoc.analysis.arrays import FloatArray

if TYPE_CHECKING:
    from posthoc.store import Activations


class Material(Protocol):
    """What the series of one checkpoint are made of, and what a null redraws."""

    axis: ClassVar[str]

    def series(self) -> FloatArray:
        """The observed series [U, T]."""


OverTime = Callable[[FloatArray, np.random.Generator], FloatArray]
"""What redraws series [U, T] over time."""
Redraw = Callable[..., FloatArray]
"""(material, random, live [U]) -> the series of the live units, with what the null redraws drawn anew."""


@dataclass(frozen=True)
class Axis:
    """One axis. points, units: what its points in time and its series are; remedy: what to do where points are too few.

    decides: the null that decides about measures on it; exchangeable: whether that null's draws spread as fresh points
    would, so that intervals come of them, else they are over units; layered: whether a unit belongs to a layer.
    length: the most points that a series has; material: that of every checkpoint.
    """

    key: str
    points: str
    units: str
    remedy: str
    decides: str
    exchangeable: bool
    layered: bool
    length: Callable[["Activations", protocol.Protocol], int]
    material: Callable[["Activations", protocol.Protocol], Callable[[int], Material]]

    @property
    def words(self) -> records.AxisWords:
        """What a file says of it."""
        return records.AxisWords(self.key, self.points, self.units, self.decides)
