"""One checkpoint by itself: every measure of its series, beside its nulls."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from posthoc.analysis.arrays import FloatArray, mean_finite
from posthoc.analysis.axes import Axis, Material, Recorded, Source
from posthoc.analysis.axes.image import ImageMaterial
from posthoc.analysis.documents import over_documents
from posthoc.analysis.intervals import (
    half_splits,
    over_halves,
    over_images_and_channels,
    over_samples_and_units,
    over_units,
)
from posthoc.analysis.kuramoto import PhaseLocking
from posthoc.analysis.measures import Measure, Reading, Scope, Series
from posthoc.analysis.measures.integration import means_alive, middle
from posthoc.analysis.nulls import NOTHING, Comparison, Draws, Null, compare, deciding, drawn_once, draws, nulls_of
from posthoc.analysis.protocol import Protocol
from posthoc.analysis.readings import Observed, Readings
from posthoc.analysis.records import NOWHERE, Interval
from posthoc.analysis.scales import LEAST_POINTS
from posthoc.analysis.verdicts import worth_drawing
from posthoc.streams import stream

HALVINGS = 16
"""Halves of the images and of the channels in which a function of the user's is measured for its interval."""
REFERENCE_DRAWS = 39
"""Draws of a null that decides nothing, at the most."""
REFERENCED = 10
"""Checkpoints of a run in which nulls that decide nothing are drawn, at the most."""


@dataclass
class Measurement:
    """What was measured of one checkpoint.

    readings: of every measure of series, as measured; values, intervals: of those and of their functions, finished;
    by_layer: [L]; nulls: null -> measure -> comparison; curves: relative log F(s), mean and the ends of the middle 95 %
    of the units (under "units") or of a null's draws (under its name), [3, S]; drawn: of the deciding nulls, and
    stages: where each measure's draws end, see `verdicts.two_sided_p`. dead: how many series have no exponent.
    Where there are documents live is [D, U] and alpha the mean over them [U]; by_layer_ends: of the layers' intervals
    [L, 2]; documents, controls: measures as measured in every document, of all units and then of each layer [1 + L, D],
    and the same of every control.
    """

    scope: Scope
    live: NDArray[np.bool_]
    alpha: FloatArray
    reasons: Counter[str]
    dead: int
    readings: dict[str, Reading] = field(default_factory=dict)
    values: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, Interval] = field(default_factory=dict)
    by_layer: dict[str, FloatArray] = field(default_factory=dict)
    by_layer_ends: dict[str, FloatArray] = field(default_factory=dict)
    locking: PhaseLocking | None = None
    nulls: dict[str, dict[str, Comparison]] = field(default_factory=dict)
    curves: dict[str, FloatArray] = field(default_factory=dict)
    drawn: dict[str, Draws] = field(default_factory=dict)
    stages: dict[str, list[int]] = field(default_factory=dict)
    documents: dict[str, FloatArray] = field(default_factory=dict)
    controls: dict[str, dict[str, FloatArray]] = field(default_factory=dict)

    def join(self, other: "Measurement") -> None:
        """Add what was measured of other series of the same checkpoint."""
        for name in ("readings", "values", "intervals", "by_layer", "by_layer_ends", "documents"):
            getattr(self, name).update(getattr(other, name))
        for name in ("nulls", "controls"):
            for key, measured in getattr(other, name).items():
                getattr(self, name).setdefault(key, {}).update(measured)


def referenced(checkpoints: int) -> frozenset[int]:
    """The places of the checkpoints in which nulls that decide nothing are drawn: spread evenly, the first and last among
    them, for what a number consists of changes little from one to the next.

    >>> sorted(referenced(4)), sorted(referenced(100))
    ([0, 1, 2, 3], [0, 11, 22, 33, 44, 55, 66, 77, 88, 99])
    """
    places = np.linspace(0, checkpoints - 1, min(checkpoints, REFERENCED)).round()
    return frozenset(places.astype(int).tolist())


Steady = dict[tuple[str, int, int], dict[str, Draws]]
"""Draws of the nulls that do not depend on the checkpoint, by null and the number of units and points."""


@dataclass(frozen=True)
class Measuring:
    """How checkpoints are measured. layers: [U], the layer of every unit, None where units are no part of one; draws: of
    every deciding null (0: none); referenced: the rows in which the others are drawn, too; table: what is measured;
    source: where the series come from, of that name; labelled: whether samples have labels; steady: what was drawn, and
    measured of controls, that the next checkpoint can use."""

    axis: Axis
    protocol: Protocol
    layers: NDArray[np.int64] | None
    draws: int
    referenced: frozenset[int]
    seed: int
    source: Source
    table: Mapping[str, Measure]
    name: str = ""
    labelled: bool = True
    steady: Steady = field(default_factory=dict)
    steady_controls: dict[str, dict[str, FloatArray]] = field(default_factory=dict)

    def measure(self, epoch: int) -> Measurement:
        """Everything of one checkpoint."""
        observed, read, left_out = self._observed(epoch), self._readings(), 0
        for material, series in observed.pairs():
            if len(series.scope.scales) < 2:
                return _of_too_few_points(series)
            for document in series.documents:
                read.add(document)
            left_out += getattr(material, "left_out", 0)
        scope, documents = series.scope, series.values.ndim == 3
        dead = [reason for of_document in read.reasons for reason in of_document]
        live = np.array([reason not in ("constant", "non-finite") for reason in dead])
        alpha = np.stack(read.alpha)
        result = Measurement(
            scope, live.reshape(alpha.shape) if documents else live, means_alive(alpha), Counter(filter(None, dead)),
            int((~np.isfinite(alpha)).sum()), locking=read.locking,
        )  # fmt: skip
        self._read(result, read, observed)
        if documents:
            result.documents = read.table()
            result.controls = {control: self._of_control(control, scope, epoch) for control in self.source.controls}
        if left_out:
            result.reasons["channels non-finite, left out of their layer's mean"] = left_out
        if self.draws:
            self._draw(result, observed)
        self._find_intervals(result, observed)
        result.drawn = {key: Draws(drawn.values) for key, drawn in result.drawn.items()}  # all that more draws add to
        return result

    def _observed(self, epoch: int) -> Observed:
        """The checkpoint's series."""

        def series(material: Material) -> Series:
            values = material.series()
            T = self.source.points or values.shape[-1]
            scales = tuple(self.protocol.scales_for(T).tolist())
            scope = Scope(self.protocol, T, scales, self.name, bool(self.source.points))
            return Series(values, scope, recorded=self._recorded(material, epoch))

        return Observed(self.source, epoch, series)

    def _readings(self, drawn: bool = False) -> Readings:
        """Of its measures of series but those of the user's; drawn: of those only that are drawn."""
        measures = [m for m in self._measures() if m.of_series and not m.code and (m.nulls or not drawn)]
        return Readings(measures, self._members, None if drawn or self.source.points else self.layers)

    def _recorded(self, material: Material, epoch: int) -> Recorded | None:
        """What lies behind the series, as far as measures ask for it."""
        asked = {name for measure in self.table.values() for name in measure.asks}
        return (
            material.recorded(asked, self.layers, self.source, epoch) if isinstance(material, ImageMaterial) else None
        )

    def _read(self, result: Measurement, read: Readings, observed: Observed) -> None:
        """Every measure of the series, of every layer's, and the functions of them."""
        for measure in self._measures():
            if measure.code:
                self._read_users(result, measure, observed)
            elif measure.of_series:
                reading = result.readings[measure.key] = read.reading(measure, result.live.ndim == 2)
                result.values[measure.key] = float(measure.finished(reading.value, result.scope))
                if reading.curve is not None:
                    result.curves["units"] = reading.curve
                if measure.layers and read.members:
                    layers = read.layers(measure, reading)
                    result.by_layer[measure.key] = np.array(
                        [float(measure.finished(layer, result.scope)) for layer in layers]
                    )
            elif measure.of_measure:
                raw = result.readings[measure.of_measure.of].value
                result.values[measure.key] = float(measure.of_measure.value(raw, result.scope))
        for key, reading in result.readings.items():
            if self.table[key].finish and math.isfinite(reading.value) and not math.isfinite(result.values[key]):
                result.reasons["mean exponent beyond the calibration"] = 1

    def _read_users(self, result: Measurement, measure: Measure, observed: Observed) -> None:
        """A function of the user's, of the units that have an exponent: who wrote it need not think of others."""
        live = measure.given(result.live)
        members = [of_layer[live] for of_layer in self._members]
        readings, by_layer = [], []
        for _, series in observed.pairs():
            for document in series.documents:
                of_live = document.only(live)
                reading = measure.read(of_live) if live.any() else Reading(math.nan)
                readings.append(reading)
                if reading.layers is None and measure.layers:
                    by_layer.append([measure.part(of_live.only(of_layer)) for of_layer in members])
        reading = Reading.over(readings) if result.live.ndim == 2 else readings[0]
        result.readings[measure.key], result.values[measure.key] = reading, reading.value
        if reading.layers is not None:  # of a layer without a live unit at the end it knows nothing
            lacking = len(self._members) - len(reading.layers)
            result.by_layer[measure.key] = np.pad(reading.layers, (0, lacking), constant_values=np.nan)
        elif by_layer and members:
            result.by_layer[measure.key] = np.array([mean_finite(column) for column in np.array(by_layer).T])

    @property
    def _members(self) -> list[NDArray[np.bool_]]:
        """Which units belong to each layer."""
        layers = self.layers
        return [] if layers is None else [layers == layer for layer in range(layers[-1] + 1)]

    def _measures(self) -> list[Measure]:
        """Those of these series, and the functions of them, without those that the axis does not give alone."""
        alone = self.axis.not_alone if not self.draws else ()
        return [
            measure for measure in self.table.values()
            if (self.table[measure.of_measure.of] if measure.of_measure else measure).series == self.name
            and measure.key not in alone
        ]  # fmt: skip

    def _of_control(self, control: str, scope: Scope, epoch: int) -> dict[str, FloatArray]:
        """As `Readings.table`, of what a control gives; the mean over its networks, where there are several."""
        if control in self.steady_controls:
            return self.steady_controls[control]
        networks: dict[int, Readings] = {}
        for part in self.source.parts or (self.source,):
            for k, values in enumerate(part.controls[control](epoch)):
                read = networks.setdefault(k, self._readings(drawn=True))
                for document in Series(values, scope).documents:
                    read.add(document, exponents=False)
        tables = [read.table() for read in networks.values()]
        means = {key: np.mean([table[key] for table in tables], axis=0) for key in tables[0]}
        if control in self.source.steady:
            self.steady_controls[control] = means
        return means

    def _strata(self, result: Measurement) -> NDArray[np.int64]:
        return np.zeros(len(result.live), np.int64) if self.layers is None else self.layers

    def _halves(self, result: Measurement, epoch: int) -> FloatArray:
        random = stream(f"halves of {self.axis.decides}", self.seed, epoch)
        return half_splits(self._strata(result)[result.live], random)

    def _draw(self, result: Measurement, observed: Observed) -> None:
        """Draw the checkpoint's nulls, the references at most `REFERENCE_DRAWS` times, and compare."""
        few, epoch = min(self.draws, REFERENCE_DRAWS), observed.epoch
        halves = self._halves(result, epoch) if self.axis.exchangeable else None
        nulls = nulls_of(self.axis.key, self.labelled)
        measured = {null.key: of for null in nulls if (of := null.measures(self.table, self.name))}
        decided = {null: [m for m in of if deciding(m, self.axis) == null] for null, of in measured.items()}
        nulls = [
            null for null in nulls
            if null.key in measured and (decided[null.key] or null.steady or epoch in self.referenced)
        ]  # fmt: skip
        deciders = [null for null in nulls if decided[null.key]]
        references = [null for null in nulls if not decided[null.key] and not null.steady]
        options = (observed, result.live, result.scope)
        recorded = observed.recorded
        behind = None if recorded is None else recorded.only(result.live)
        drawn = self._steady([null for null in nulls if null.steady], options, few, measured, behind)
        drawn |= draws(deciders, *options, self.draws, self.seed, epoch, measured, halves=halves, recorded=behind)
        drawn |= draws(references, *options, few, self.seed, epoch, measured, recorded=behind)
        for null in nulls:
            of_null = drawn[null.key]
            for measure in decided[null.key]:
                result.drawn[measure.key], result.stages[measure.key] = of_null[measure.key], [self.draws]
            result.nulls[null.key] = self._compared(result, of_null, null.key)
            for of_measure in of_null.values():
                if of_measure.curves is not None:
                    result.curves[null.key] = middle(of_measure.curves)

    def _steady(
        self,
        nulls: Sequence[Null],
        options: tuple[Observed, NDArray[np.bool_], Scope],
        count: int,
        measured: Mapping[str, Sequence[Measure]],
        recorded: Recorded | None,
    ) -> dict[str, dict[str, Draws]]:
        """Draws of the nulls that do not depend on the checkpoint: made once for so many units and points, but for the
        measures that ask for what was recorded, which is another at each checkpoint."""
        observed, live, scope = options
        drawn = {}
        for null in nulls:
            key = (null.key, int(live.sum()), scope.T)
            if key not in self.steady:
                of = [measure for measure in measured[null.key] if not measure.asks]

                def draw(null: Null = null, of: list[Measure] = of) -> dict[str, Draws]:
                    return draws([null], *options, count, self.seed, 0, {null.key: of})[null.key]

                material = observed.whole[0] if live.ndim == 1 else None
                self.steady[key] = drawn_once(null, material, live, scope, count, self.seed, of, draw)
            drawn[null.key] = self.steady[key]
            if asking := [measure for measure in measured[null.key] if measure.asks]:
                anew = draws([null], *options, count, self.seed, 0, {null.key: asking}, recorded=recorded)
                drawn[null.key] = drawn[null.key] | anew[null.key]
        return drawn

    def _compared(self, result: Measurement, drawn: Mapping[str, Draws], null: str) -> dict[str, Comparison]:
        """The measures beside one null's draws, and the functions of them, whose p is that of what they are functions of."""
        compared: dict[str, Comparison] = {}
        for key, measure in self.table.items():
            stages = result.stages.get(key, ()) if deciding(measure, self.axis) == null else ()
            if key in drawn:
                compared[key] = _beside(measure, result, drawn[key].values, stages)
            elif measure.of_measure and measure.of_measure.of in drawn:
                values = np.asarray(measure.of_measure.value(drawn[measure.of_measure.of].values, result.scope))
                compared[key] = replace(compare(result.values[key], values), p=compared[measure.of_measure.of].p)
        return compared

    def _find_intervals(self, result: Measurement, observed: Observed) -> None:
        """95 % intervals: over other images and channels where the deciding null reorders the images, over documents where
        there are any, else over units."""
        if result.live.ndim == 2:
            self._intervals_over_documents(result)
            return
        (material, series), epoch = observed.whole, observed.epoch
        strata, live = self._strata(result), result.live
        halved: FloatArray | None = None
        for key, reading in result.readings.items():
            measure = self.table[key]
            if not deciding(measure, self.axis):
                continue
            interval = NOWHERE
            if measure.code and not live.any():
                pass  # it is of no unit
            elif measure.code and isinstance(material, ImageMaterial):
                interval = self._over_samples_and_units(measure, result, series, material, epoch)
            elif self.axis.exchangeable:
                drawn = result.drawn.get(key)
                if drawn is not None and drawn.halves is not None:
                    interval = over_images_and_channels(reading.value, drawn.values, drawn.halves)
            elif reading.units is not None:
                interval = over_units(reading.units, strata)
            else:
                halved = self._halves(result, epoch) if halved is None else halved
                of_live = measure.read(series.only(live, halved))
                if of_live.halves is not None:
                    interval = over_halves(of_live.value, of_live.halves, strata[live])
            low, high = (float(measure.finished(end, result.scope)) for end in interval)
            result.intervals[key] = low, high
        self._intervals_of_functions(result)

    def _over_samples_and_units(
        self, measure: Measure, result: Measurement, series: Series, material: ImageMaterial, epoch: int
    ) -> Interval:
        """Of a function of which nothing is known: by halves of the images and halves of the channels."""
        live, labels = result.live, material.labels
        order = np.argsort(labels, kind="stable")

        def of_samples(chosen: NDArray[np.bool_]) -> float:
            half = material.of_samples(np.flatnonzero(chosen))
            T = int(chosen.sum())
            scope = replace(series.scope, T=T, scales=tuple(self.protocol.scales_for(T).tolist()))
            recorded = None if series.recorded is None else series.recorded.over(chosen[order])
            return measure.part(Series(half.series(), scope, recorded=recorded).only(live))

        halves = half_splits(labels, stream("halves of samples", self.seed, epoch), HALVINGS) > 0
        differences = np.array([of_samples(half) - of_samples(~half) for half in halves])
        of_units = measure.read(series.only(live, self._halves(result, epoch)[:HALVINGS])).halves
        assert of_units is not None
        value = result.values[measure.key]
        return over_samples_and_units(value, differences, labels, of_units, self._strata(result)[live])

    def _intervals_over_documents(self, result: Measurement) -> None:
        for key, values in result.documents.items():
            ends = self.table[key].finished(over_documents(values, self.seed), result.scope)
            result.intervals[key] = float(ends[0, 0]), float(ends[0, 1])
            if len(ends) > 1:
                result.by_layer_ends[key] = ends[1:]
        self._intervals_of_functions(result)

    def _intervals_of_functions(self, result: Measurement) -> None:
        for measure in self.table.values():
            if measure.of_measure and measure.of_measure.of in result.intervals:
                of = result.intervals[measure.of_measure.of]
                result.intervals[measure.key] = measure.of_measure.interval(of, result.scope)

    @property
    def decided(self) -> dict[str, Null]:
        """The measures that a null decides about, and which."""
        null_of = {null.key: null for null in nulls_of(self.axis.key, self.labelled)}
        return {
            key: null_of[decider] for key, measure in self.table.items()
            if measure.of_series and measure.series == self.name and (decider := deciding(measure, self.axis)) in null_of
        }  # fmt: skip

    def draw_again(self, result: Measurement, epoch: int, keys: Sequence[str], most: int) -> Iterator[int]:
        """Draw the deciding nulls of these measures again, twice as often as yet; how many draws each has then."""
        observed, by = self._observed(epoch), self.decided
        for key in keys:
            yield self._draw_more(result, observed, self.table[key], by[key], most)
        for null in {by[key].key: by[key] for key in keys}.values():
            drawn = {key: result.drawn[key] for key in by if by[key] is null}
            result.nulls[null.key].update(self._compared(result, drawn, null.key))

    def _draw_more(self, result: Measurement, observed: Observed, measure: Measure, null: Null, most: int) -> int:
        """Draw a measure as often again and once more; how many draws it has then."""
        stages, before = result.stages[measure.key], result.drawn[measure.key]
        count = min(2 * stages[-1] + 1, most) - stages[-1]
        recorded = observed.recorded if measure.asks else None
        behind = None if recorded is None else recorded.only(result.live)
        options = (observed, result.live, result.scope, count, self.seed, observed.epoch, {null.key: [measure]})
        drawn = draws([null], *options, first=stages[-1], recorded=behind)[null.key][measure.key]
        result.drawn[measure.key] = replace(before, values=np.concatenate([before.values, drawn.values]))
        stages.append(stages[-1] + count)
        return stages[-1]


def draw_until_decided(
    measured: Sequence[tuple[Measuring, Mapping[int, Measurement]]], most: int
) -> Iterator[tuple[int, int]]:
    """Draw the deciding nulls again, twice as often each time, in the checkpoints that lack draws for a verdict; each
    of them, and how many draws it has then.

    The family are all checkpoints and decided measures, of all series. Those whose value lies beyond every draw, without
    being rejected, are given more, as long as `most` draws could decide them.
    """
    family = [
        (place, e, key)
        for place, (measuring, results) in enumerate(measured)
        for e in results
        for key in measuring.decided
    ]
    of = [measured[place][1][e] for place, e, _ in family]
    nulls = [measured[place][0].decided[key].key for place, _, key in family]
    while True:
        compared = [
            result.nulls.get(null, {}).get(key, NOTHING)
            for result, null, (_, _, key) in zip(of, nulls, family, strict=True)
        ]
        left = [result.stages.get(key, [most])[-1] < most for result, (_, _, key) in zip(of, family, strict=True)]
        more = np.array(left, dtype=bool) & worth_drawing([c.p for c in compared], [c.draws for c in compared], most)
        if not more.any():
            return
        wanting: dict[tuple[int, int], list[str]] = {}
        for k in np.flatnonzero(more):
            wanting.setdefault(family[k][:2], []).append(family[k][2])
        for (place, e), keys in wanting.items():
            measuring, results = measured[place]
            for count in measuring.draw_again(results[e], e, keys, most):
                yield e, count


def _of_too_few_points(series: Series) -> Measurement:
    """As at the first checkpoints of the epoch axis."""
    U = series.values.shape[-2]
    reasons = Counter({f"fewer than {LEAST_POINTS} points in time": U})
    return Measurement(series.scope, np.zeros(U, np.bool_), np.full(U, np.nan), reasons, U)


def _beside(measure: Measure, result: Measurement, drawn: FloatArray, stages: Sequence[int]) -> Comparison:
    """A measure of series beside its draws. It is compared as measured: finishing keeps the order, but may end somewhere."""
    scope = result.scope
    compared = compare(result.readings[measure.key].value, drawn, stages)
    if measure.finish is None or not scope.protocol.calibrate or not compared.draws:
        return compared
    mean, low, high = (float(measure.finished(end, scope)) for end in (compared.mean, compared.low, compared.high))
    sd = float(np.std(measure.finished(drawn[np.isfinite(drawn)], scope), ddof=1))
    z = (result.values[measure.key] - mean) / sd if sd > 0 else math.nan
    return replace(compared, mean=mean, sd=sd, z=z, low=low, high=high)
