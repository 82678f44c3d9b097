"""What a measure is: a record of what it is called, where it is defined and how it is computed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from posthoc.analysis.arrays import FloatArray, mean_finite
from posthoc.analysis.origins import Code
from posthoc.analysis.protocol import Protocol
from posthoc.analysis.records import NOWHERE, Aside, Interval
from posthoc.errors import UsageError

if TYPE_CHECKING:
    from posthoc.analysis.axes.axis import Recorded
    from posthoc.analysis.fluctuation import DFA
    from posthoc.analysis.kuramoto import Kuramoto
    from posthoc.analysis.measures.snapshot import Estimate, Snapshot
    from posthoc.analysis.measures.tokens import Documents
    from posthoc.store import Activations


@dataclass(frozen=True)
class Scope:
    """Over what series are measured: the protocol, T points in time and the scales [S]; series: which of the material's;
    summed: whether the values are no points but sums over the windows of each scale, of which an exponent alone is made."""

    protocol: Protocol
    T: int
    scales: tuple[int, ...]
    series: str = ""
    summed: bool = False


@dataclass(frozen=True)
class Series:
    """The series of one checkpoint, or of one draw of a null: values [U, T], or [D, U, T] where there are documents, of
    which each is measured by itself.

    halves: [K, U], 1 for the units of the first half: where there are any, the measure in the first half less that in the second is asked for.
    recorded: what lies behind the series, where measures ask for that.
    """

    values: NDArray[np.floating]
    scope: Scope
    halves: FloatArray | None = None
    recorded: "Recorded | None" = None
    computed: dict[str, object] = field(default_factory=dict, init=False, repr=False, compare=False)

    # Not cached_property, whose lock before Python 3.12 is one for all series and would keep threads waiting.
    @property
    def exponents(self) -> "DFA":
        """The exponent of every unit by the protocol's estimator, and its fluctuation function; computed once."""
        if "DFA" not in self.computed:
            from posthoc.analysis.fluctuation import of_sums
            from posthoc.analysis.hurst import exponents

            protocol, scales = self.scope.protocol, np.array(self.scope.scales)
            if self.scope.summed:
                self.computed["DFA"] = of_sums(self.values, scales, self.scope.T)
            else:
                self.computed["DFA"] = exponents(self.values, protocol.estimator, scales, protocol.fluctuation)
        return cast("DFA", self.computed["DFA"])

    @property
    def phases(self) -> "Kuramoto":
        """The order parameter of the units; computed once."""
        if "Kuramoto" not in self.computed:
            from posthoc.analysis.kuramoto import kuramoto

            self.computed["Kuramoto"] = kuramoto(self.values)
        return cast("Kuramoto", self.computed["Kuramoto"])

    @property
    def documents(self) -> tuple["Series", ...]:
        """The series of each document, made once; without documents these series alone."""
        if self.values.ndim == 2:
            return (self,)
        if "documents" not in self.computed:
            self.computed["documents"] = tuple(Series(values, self.scope) for values in self.values)
        return cast(tuple["Series", ...], self.computed["documents"])

    def only(self, units: NDArray[np.bool_], halves: FloatArray | None = None) -> "Series":
        """The series of some units [U]."""
        recorded = None if self.recorded is None else self.recorded.only(units)
        return Series(self.values[..., units, :], self.scope, halves, recorded)


@dataclass(frozen=True)
class Reading:
    """What a measure is of some series. units: [U], where it is the mean over units; halves: [K], see `Series`; curve:
    [3, S], log F(s) less its mean, mean over the units and the ends of the middle 95 % of them; documents: of each, where
    there are documents, whose mean all else is then; layers: [L], where it is the mean over layers."""

    value: float
    units: FloatArray | None = None
    halves: FloatArray | None = None
    curve: FloatArray | None = None
    documents: tuple["Reading", ...] = ()
    layers: FloatArray | None = None

    @classmethod
    def over(cls, documents: Sequence["Reading"]) -> "Reading":
        """The mean over documents; those without a value are left out."""

        def mean(name: str) -> FloatArray | None:
            rows = [row for reading in documents if (row := getattr(reading, name)) is not None]
            return (
                np.array([mean_finite(column) for column in np.stack(rows).reshape(len(rows), -1).T]).reshape(
                    rows[0].shape
                )
                if rows
                else None
            )

        value = mean_finite(np.array([reading.value for reading in documents]))
        return cls(value, mean("units"), None, mean("curve"), tuple(documents))


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
    fits it (nulls: whether it is); series: the name of the series, where they are not those of the channels. of_measure: a
    function of another measure. of_epochs: a column [E] from those of the trained checkpoints. of_activations: a column [E]
    from the file, and where it was recorded. of_documents: each document's [D] at one checkpoint; None where the
    file lacks what it takes, and then there is no such measure. of_checkpoint: of what the file holds of a checkpoint,
    an Estimate, or why there is none; null: the null that decides about it, of which it gives the draws.
    finish: what is reported of values as they were measured, such as an exponent freed of its bias.
    decided_by: axis -> the null that decides, where that is another than the axis has. limits: what it cannot leave
    (NaN: none); margin: below which an audit calls a change small (NaN: none is).
    lower_is_better: of a score, whether it falls as the network gets better.
    default: whether it is measured unless others are asked for; needs: of a measure of_epochs, the measures it is made of.
    under: the nulls that it is drawn under (none: all that are for every measure); asks: what its function takes beside
    series, see `Recorded`; code: the function of the user's that it is.
    looks_ahead: whether its value at a checkpoint knows of later ones, so that nobody who is still training has it.
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
    of_documents: Callable[["Documents"], FloatArray | None] | None = None
    of_checkpoint: Callable[["Snapshot"], "Estimate | Aside"] | None = None
    finish: Callable[[Any, Scope], Any] | None = None
    null: str = ""
    nulls: bool = True
    series: str = ""
    decided_by: Mapping[str, str] | None = None
    limits: Interval = NOWHERE
    margin: float = np.nan
    digits: int = 4
    headline: bool = True
    listed: bool = True
    layers: bool = True
    curve: bool = False
    lower_is_better: bool = False
    looks_ahead: bool = False
    default: bool = True
    needs: tuple[str, ...] = ()
    under: tuple[str, ...] = ()
    asks: tuple[str, ...] = ()
    code: Code | None = None

    def __post_init__(self) -> None:
        ways = (
            self.of_series,
            self.of_measure,
            self.of_epochs,
            self.of_activations,
            self.of_documents,
            self.of_checkpoint,
        )
        if sum(way is not None for way in ways) != 1:
            raise UsageError(
                f"The measure {self.key} needs one of of_series, of_measure, of_epochs, of_activations, of_documents and "
                "of_checkpoint."
            )

    def read(self, series: Series) -> Reading:
        """What a measure of series is of these; each half, where halves are asked for, by itself unless it gives them."""
        assert self.of_series is not None
        if series.values.ndim == 3:
            return Reading.over([self.read(document) for document in series.documents])
        result = self.of_series(series)
        reading = result if isinstance(result, Reading) else Reading(float(result))
        if series.halves is None or reading.halves is not None:
            return reading
        halves = [self.part(series.only(half > 0)) - self.part(series.only(half == 0)) for half in series.halves]
        return replace(reading, halves=np.array(halves))

    def given(self, live: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """The units [U] that a function of the user's is given: the `live` ones [U], of documents [D, U] those that live in all;
        all where no unit changes it."""
        alive = np.asarray(live if live.ndim == 1 else live.all(axis=0))
        return alive if self.nulls else np.ones_like(alive)

    def part(self, series: Series) -> float:
        """What it is of a part of the series; of the user's functions NaN where they fail at so small a one."""
        try:
            return self.read(series).value if len(series.values) else np.nan
        except UsageError:
            if self.code is None:
                raise
            return np.nan

    def finished(self, values: Any, scope: Scope) -> Any:
        """What is reported of values as they were measured."""
        return values if self.finish is None else self.finish(values, scope)
