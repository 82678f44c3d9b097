"""What an axis is: what plays the part of time, and how recorded signals become series over it."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from posthoc.analysis import protocol, records
from posthoc.analysis.arrays import FloatArray
from posthoc.analysis.origins import AxisWords
from posthoc.analysis.responses import Change

if TYPE_CHECKING:
    from posthoc.store import Activations


class Material(Protocol):
    """What the series of one checkpoint are made of, and what a null redraws."""

    axis: ClassVar[str]

    def series(self) -> NDArray[np.floating]:
        """The observed series [U, T], or [D, U, T] of documents."""


OverTime = Callable[[FloatArray, np.random.Generator], FloatArray]
"""What redraws series [U, T] over time."""
Redraw = Callable[..., Any]
"""(material, random, live [U]) -> the series of the live units, or on the image axis what they are made of, `InOrder`, with
what the null redraws drawn anew."""


@dataclass(frozen=True, eq=False)
class Recorded:
    """What was recorded behind series [U, T]: signals [U, T] as they are, labels [T] of the samples, and in which order of
    the file's samples they come, `order` [T]; layers: of the units [U]; behaviour: what the network said of the samples,
    each [T, ...]; previous: the signals [U, T] at the checkpoint before, None at the first; weights: what is stored of the
    checkpoint's tensors of weights, see `Activations.statistics`."""

    signals: NDArray[np.floating]
    labels: NDArray[np.int64]
    order: NDArray[np.int64]
    layers: NDArray[np.int64] | None = None
    behaviour: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    previous: NDArray[np.floating] | None = None
    weights: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def only(self, units: NDArray[np.bool_]) -> "Recorded":
        """Of some units [U]."""
        layers = None if self.layers is None else self.layers[units]
        previous = None if self.previous is None else self.previous[units]
        return replace(self, signals=self.signals[units], layers=layers, previous=previous)

    def over(self, samples: NDArray[np.bool_]) -> "Recorded":
        """Of some samples [T], in the order of the series."""
        return replace(
            self,
            signals=self.signals[:, samples],
            labels=self.labels[samples],
            order=self.order[samples],
            behaviour={name: values[samples] for name, values in self.behaviour.items()},
            previous=None if self.previous is None else self.previous[:, samples],
        )

    def drawn(self, other: "Recorded", places: NDArray[np.int64], apart: bool = False) -> "Recorded":
        """With the signals and labels of a draw, and what else belongs to samples, which goes where they do, from `places`
        [T]; apart: but for behaviour, which stays and so is that of another sample."""
        of = np.arange(len(places)) if apart else places
        return replace(
            self,
            signals=other.signals,
            labels=other.labels,
            order=self.order[places],
            behaviour={name: values[of] for name, values in self.behaviour.items()},
            previous=None if self.previous is None else self.previous[:, places],
        )


@dataclass(frozen=True)
class Source:
    """Series of a file along an axis: their material at every checkpoint, and of the same network given other inputs, or
    untrained, the series themselves.

    controls: name -> checkpoint -> series of one network or of several; steady: those that are the same at each;
    behaviour: what the network said of the file's samples at a checkpoint, by name, each [N, ...]; weights: what is stored of its tensors. points: where series were
    summed up while the network ran, how many points they had; in their place there are then, over the windows of each scale,
    sums of squared residuals of their profile [D, U, S]. parts: the same of some of the documents each, one after another;
    none where all are in memory at once.
    """

    material: Callable[[int], Material]
    controls: Mapping[str, Callable[[int], Iterable[NDArray[np.floating]]]] = field(default_factory=dict)
    steady: frozenset[str] = frozenset()
    behaviour: Callable[[int], Mapping[str, NDArray[Any]]] = lambda row: {}
    weights: Callable[[int], Mapping[str, NDArray[Any]]] = lambda row: {}
    points: int = 0
    parts: tuple["Source", ...] = ()

    def materials(self, row: int) -> Iterator[Material]:
        """The material of a checkpoint, of documents some at a time."""
        return (part.material(row) for part in self.parts or (self,))


@dataclass(frozen=True)
class Subject:
    """What an audit measures again and again: the checkpoint in a row of a file, by one of its sources, of that name.

    count: draws of what is drawn at random, keyed by `seed`; other: another recording of the same run.
    """

    activations: "Activations"
    protocol: protocol.Protocol
    source: Source
    series: str
    row: int
    count: int
    seed: int
    other: "Activations | None" = None


@dataclass(frozen=True)
class Factor:
    """One thing that an audit changes.

    name: what it is changed to; changes: what is changed, None of the checkpoint as it is and of mere references;
    materials: what is measured then, each as it is, or of which `null` is drawn, where it names one; key: what its draws
    are keyed by, where that is not the row of the checkpoint; aside: why the file does not have what it takes; beside: the
    control that it is compared with, where that is not the checkpoint as it is; paired: it has the same samples as that, so
    that both are compared in the same orders of them.
    """

    name: str
    changes: Change | None
    materials: Callable[[], Iterable[Material]] = tuple
    null: str = ""
    key: int | None = None
    aside: records.Aside | None = None
    beside: str = ""
    paired: bool = False


Factors = Callable[[Subject], list[Factor]]
"""All that an audit of a subject measures, the checkpoint as it is (of no name) first."""


@dataclass(frozen=True)
class Axis:
    """One axis. points, units: what its points in time and its series are; remedy: what to do where points are too few.

    decides: the null that decides about measures on it; exchangeable: whether that null's draws spread as fresh points
    would, so that intervals come of them, else they are over units; layered: whether a unit belongs to a layer.
    length: the most points that a series has; sources: the series of a file, those of the layers under the empty name.
    intervals: what intervals are over, where that is not the units; overrides: what is otherwise about measures on it;
    not_alone: the measures that are not given without their nulls. factors: what an audit changes (None: there is no audit);
    varies: with what measures vary by themselves, which effects are compared with; unasked: the measures that say little on
    it and are taken only where they are named.
    """

    key: str
    points: str
    units: str
    remedy: str
    decides: str
    exchangeable: bool
    layered: bool
    length: Callable[["Activations", protocol.Protocol], int]
    sources: Callable[["Activations", protocol.Protocol], Mapping[str, Source]]
    intervals: str = ""
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    not_alone: tuple[str, ...] = ()
    factors: Factors | None = None
    varies: str = ""
    unasked: tuple[str, ...] = ()

    @property
    def words(self) -> AxisWords:
        """What a file says of it."""
        return AxisWords(self.key, self.points, self.units, self.decides, self.intervals)
