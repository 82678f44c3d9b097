"""What measures are of the series of a checkpoint, of documents each by itself, a part of which is in memory at a time."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from posthoc.analysis.arrays import FloatArray, mean_finite
from posthoc.analysis.axes import Material, Recorded, Source
from posthoc.analysis.kuramoto import PhaseLocking, phase_locking
from posthoc.analysis.measures import Measure, Reading, Series
from posthoc.analysis.measures.integration import mean_alive


class Observed:
    """The material of a checkpoint with its series, of documents a part after another; again as often as it is asked for.

    Read anew each time, but for what is in one part.
    """

    def __init__(self, source: Source, epoch: int, series: Callable[[Material], Series]) -> None:
        self.epoch = epoch
        self._source, self._series = source, series
        self._only: tuple[Material, Series] | None = None

    def __iter__(self) -> Iterator[Material]:
        return (material for material, _ in self.pairs())

    def pairs(self) -> Iterator[tuple[Material, Series]]:
        """Each material with its series."""
        if self._only:
            yield self._only
            return
        for material in self._source.materials(self.epoch):
            pair = material, self._series(material)
            if len(self._source.parts) < 2:
                self._only = pair
            yield pair

    @property
    def whole(self) -> tuple[Material, Series]:
        """Where there are no documents, and one part."""
        return next(self.pairs())

    @property
    def recorded(self) -> Recorded | None:
        """What lies behind the series, where measures ask for it: not of documents."""
        return self.whole[1].recorded


@dataclass
class Readings:
    """What measures are of the series [U, T] of a checkpoint, or of those of its documents, as one after another is added.

    measures: those of series; members: of each layer, which units [U] it has; groups: the layer of each unit [U], of
    which the phase locking is taken, where it is.
    """

    measures: Sequence[Measure]
    members: Sequence[NDArray[np.bool_]]
    groups: NDArray[np.int64] | None = None
    alpha: list[FloatArray] = field(default_factory=list)
    reasons: list[tuple[str | None, ...]] = field(default_factory=list)
    _each: dict[str, list[Reading]] = field(default_factory=dict)
    _of_layers: dict[str, list[list[float]]] = field(default_factory=dict)
    _locking: list[PhaseLocking] = field(default_factory=list)

    def add(self, series: Series, exponents: bool = True) -> None:
        """Measure one document; exponents: whether what became of each unit is kept, too."""
        if exponents:
            self.alpha.append(series.exponents.alpha)
            self.reasons.append(series.exponents.reason)
        for measure in self.measures:
            reading = measure.read(series)
            self._each.setdefault(measure.key, []).append(reading)
            if measure.layers:
                layers = [of_layer(measure, reading, series, units) for units in self.members]
                self._of_layers.setdefault(measure.key, []).append(layers)
        if self.groups is not None:
            self._locking.append(phase_locking(series.values, self.groups))

    def reading(self, measure: Measure, documents: bool) -> Reading:
        """Of a measure, the mean over documents where there are any."""
        each = self._each[measure.key]
        return Reading.over(each) if documents else each[0]

    def layers(self, measure: Measure, reading: Reading) -> FloatArray:
        """A measure, whose reading that is, of the units of each layer by themselves [L]."""
        if reading.units is not None:
            return np.array([mean_alive(reading.units[units]) for units in self.members])
        return np.array([mean_finite(np.array(column)) for column in zip(*self._of_layers[measure.key], strict=True)])

    def table(self) -> dict[str, FloatArray]:
        """Of each document every measure that is drawn, of all units and of each layer, [1 + L, D]."""
        return {
            measure.key: np.array([
                [reading.value for reading in self._each[measure.key]],
                *zip(*self._of_layers.get(measure.key, ()), strict=True),
            ])
            for measure in self.measures if measure.nulls
        }  # fmt: skip

    @property
    def locking(self) -> PhaseLocking | None:
        """Mean over documents, where it was taken."""
        if not self._locking:
            return None
        return PhaseLocking(
            *(np.mean([getattr(each, name) for each in self._locking], axis=0) for name in ("plv", "ppc"))
        )


def of_layer(measure: Measure, reading: Reading, series: Series, units: NDArray[np.bool_]) -> float:
    """A measure of the units of a layer by themselves."""
    if reading.units is not None:
        return mean_alive(reading.units[units])
    return measure.read(series.only(units)).value
