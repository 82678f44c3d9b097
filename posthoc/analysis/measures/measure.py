"""What a measure is: a record of what it is called, where it is defined and how it is computed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from posthoc.analysis.arrays import FloatArray
from posthoc.analysis.protocol import Protocol
from posthoc.analysis.records import NOWHERE, Interval
from posthoc.errors import UsageError

if TYPE_CHECKING:
    from posthoc.analysis.fluctuation import DFA
    from posthoc.analysis.kuramoto import Kuramoto
    from posthoc.store import Activations


@dataclass(frozen=True)
class Scope:
    """Over what series are measured: the protocol, T points in time and the scales [S]."""

    protocol: Protocol
    T: int
    scales: tuple[int, ...]


@dataclass(frozen=True)
class Series:
    """The series of one checkpoint, or of one draw of a null: values [U, T].

    halves: [K, U], 1 for the units of the first half: where there are any, the measure in the first half less that in the second is asked for.
    """

    values: FloatArray
    scope: Scope
    halves: FloatArray | None = None
    computed: dict[str, object] = field(default_factory=dict, init=False, repr=False, compare=False)

    # Not cached_property, whose lock before Python 3.12 is one for all series and would keep threads waiting.
    @property
    def exponents(self) -> "DFA":
        """The exponent of every unit by the protocol's estimator, and its fluctuation function; computed once."""
        if "DFA" not in self.computed:
            from posthoc.analysis.hurst import exponents

            protocol, scales = self.scope.protocol, np.array(self.scope.scales)
            self.computed["DFA"] = exponents(self.values, protocol.estimator, scales, protocol.fluctuation)
        return cast("DFA", self.computed["DFA"])

    @property
    def phases(self) -> "Kuramoto":
        """The order parameter of the units; computed once."""
        if "Kuramoto" not in self.computed:
            from posthoc.analysis.kuramoto import kuramoto

            self.computed["Kuramoto"] = kuramoto(self.values)
        return cast("Kuramoto", self.computed["Kuramoto"])

    def only(self, units: NDArray[np.bool_], halves: FloatArray | None = None) -> "Series":
        """The series of some units [U]."""
        return Series(self.values[units], self.scope, halves)


@dataclass(frozen=True)
class Reading:
    """What a measure is of some series. units: [U], where it is the mean over units; halves: [K], see `Series`; curve:
    [3, S], log F(s) less its mean, mean over the units and the ends of the middle 95 % of them."""

    value: float
    units: FloatArray | None = None
    halves: FloatArray | None = None
    curve: FloatArray | None = None


@dataclass(frozen=True)
class Function:
    """A measure that is a function of another, `of`: of its values as they were measured, and of its interval's ends."""

    of: str
    value: Callable[[Any, Scope], Any]
    interval: Callable[[Interval, Scope], Interval]


@dataclass(frozen=True)
class Epochs:
    """A run's trained checkpoints in their order: what was measured of each, [E]; even: whether they are evenly spaced."""

    columns: Mapping[str, FloatArray]
    protocol: Protocol
    even: bool


@dataclass(frozen=True)
class Measure:
    """One measure, by exactly one of the `of_...`.

    key: its name everywhere; symbol, title: as people write it, short and long; about: what it is, in a sentence.
    of_series: of one checkpoint's series [U, T], a Reading or a number; such a measure is drawn under every null that
    fits it (nulls: whether it is). of_measure: a function of another measure. of_epochs: a column [E] from those of the
    trained checkpoints. of_activations: a column [E] from the file, and where it was recorded.
    finish: what is reported of values as they were measured, such as an exponent freed of its bias.
    decided_by: axis -> the null that decides, where that is another than the axis has. limits: what it cannot leave
    (NaN: none); margin: below which an audit calls a change small (NaN: none is).
    headline: whether runs are compared by it; listed: whether the table of checkpoints has it; layers: whether it is
    also taken of every layer by itself; curve: whether its readings have the curve of log F(s).
    """

    key: str
    symbol: str
    title: str
    about: str
    of_series: Callable[[Series], Reading | float] | None = None
    of_measure: Function | None = None
    of_epochs: Callable[[Epochs], FloatArray] | None = None
    of_activations: Callable[["Activations"], tuple[FloatArray, str]] | None = None
    finish: Callable[[Any, Scope], Any] | None = None
    nulls: bool = True
    decided_by: Mapping[str, str] | None = None
    limits: Interval = NOWHERE
    margin: float = np.nan
    digits: int = 4
    headline: bool = True
    listed: bool = True
    layers: bool = True
    curve: bool = False

    def __post_init__(self) -> None:
        ways = (self.of_series, self.of_measure, self.of_epochs, self.of_activations)
        if sum(way is not None for way in ways) != 1:
            raise UsageError(
                f"The measure {self.key} needs one of of_series, of_measure, of_epochs and of_activations."
            )

    def read(self, series: Series) -> Reading:
        """What a measure of series is of these; each half, where halves are asked for, by itself unless it gives them."""
        assert self.of_series is not None
        result = self.of_series(series)
        reading = result if isinstance(result, Reading) else Reading(float(result))
        if series.halves is None or reading.halves is not None:
            return reading
        halves = [
            self.read(series.only(half > 0)).value - self.read(series.only(half == 0)).value for half in series.halves
        ]
        return replace(reading, halves=np.array(halves))

    def finished(self, values: Any, scope: Scope) -> Any:
        """What is reported of values as they were measured."""
        return values if self.finish is None else self.finish(values, scope)
