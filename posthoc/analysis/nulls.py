"""Is there anything in the number? The table of nulls, and every measure of the data that they redraw.

A null of your own is one more record: `NULLS["reversed"] = Null("reversed", "the images in reverse", "images reversed",
{"image": redraw})`.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from posthoc.analysis.arrays import FloatArray
from posthoc.analysis.axes import Axis, Material, OverTime, Recorded, Redraw, image, over_time, token
from posthoc.analysis.measures import MEASURES, Measure, Reading, Scope, Series
from posthoc.analysis.records import PURE_NOISE, Aside, NullWords
from posthoc.analysis.verdicts import two_sided_p
from posthoc.recording import named
from posthoc.streams import stream

ROUNDING = 1e-12
HALVED = 39
"""Draws of which halves of the units are measured, too, for the intervals."""


@dataclass(frozen=True)
class Null:
    """What redrawn data are, and how each axis redraws them.

    words: as in "differs from that of ..."; short: for a legend; redraws: axis -> how; only: the measures that it is
    for (none: all that are drawn); steady: whether what is redrawn does not depend on the checkpoint; needs_labels:
    whether it is nothing where samples have no labels. One that no axis redraws is drawn by the measures it decides about.
    """

    key: str
    words: str
    short: str
    redraws: Mapping[str, Redraw]
    only: tuple[str, ...] = ()
    steady: bool = False
    needs_labels: bool = False

    def draw(
        self,
        material: Material,
        random: np.random.Generator,
        live: NDArray[np.bool_],
        recorded: Recorded | None = None,
    ) -> tuple[NDArray[np.floating], Recorded | None]:
        """The series of the `live` units [U], or [D, U], of a checkpoint's material, drawn anew, and what lies behind them then,
        where that is asked for."""
        drawn = self.redraws[material.axis](material, random, live)
        if not isinstance(drawn, image.InOrder):
            return drawn, recorded
        if recorded is None:
            return drawn.series(), None
        assert isinstance(material, image.ImageMaterial)  # the only ones in an order of samples
        behind, within = drawn.recorded(), drawn.labels is material.labels
        return drawn.series(), recorded.drawn(behind, material.place_by_class[behind.order], apart=within)

    def measures(self, table: Mapping[str, Measure], series: str = "") -> list[Measure]:
        """Those of a table and of some series that are drawn under it."""
        drawn = [m for m in table.values() if m.of_series and m.nulls and m.series == series]
        return [
            measure for measure in drawn
            if (self.key in measure.under if measure.under else not self.only or measure.key in self.only)
        ]  # fmt: skip


def _in_order(function: OverTime) -> dict[str, Redraw]:
    """How the axes whose points are in an order redraw series by a function of them."""

    def redraw(material: Any, random: np.random.Generator, live: NDArray[np.bool_]) -> FloatArray:
        return material.redrawn(function, random, live)  # type: ignore[no-any-return]

    return {"depth": redraw, "epoch": redraw, "token": redraw}


def _noise(material: Any, random: np.random.Generator, live: NDArray[np.bool_]) -> FloatArray:
    return material.noise(random, live)  # type: ignore[no-any-return]


_TABLE = (
    Null(PURE_NOISE, "pure noise, independent in every channel", "pure noise",
         {"image": _noise, "depth": _noise, "epoch": _noise, "token": _noise}, steady=True),
    Null("white-LN", "pure noise less its mean over the channels of a layer, as LayerNorm leaves it", "noise less its mean",
         {"token": token.noise_less_mean}, ("metastability",), steady=True),
    Null("label", "permuted labels", "labels permuted", {"image": image.labels_permuted}, needs_labels=True),
    Null("order", "another order of the same images", "images reordered", {"image": image.images_reordered}),
    Null("split", "each class split in ten at random", "classes split", {"image": image.classes_split}, ("hurst",),
         needs_labels=True),
    Null("channel", "each channel's images in an order of its own", "channels reordered",
         {"image": image.channels_reordered}, ("metastability",)),
    Null("time", "the same points in another order of time", "time permuted", _in_order(over_time.permuted)),
    Null("phase", "randomised spectral phases", "phases randomised", _in_order(over_time.phases_randomised),
         ("metastability",)),
    Null("phase-common", "spectral phases turned at random, the same for all channels", "phases turned together",
         {"token": _in_order(over_time.phases_turned_together)["token"]}, ("metastability",)),
    Null("gaussian", "Gaussian noise with the channels' covariance", "Gaussian noise",
         {"image": image.gaussian} | {axis: _in_order(over_time.gaussian)[axis] for axis in ("depth", "epoch")}),
    Null("calibrated", "labels drawn from the probabilities that the network states", "labels drawn", {}),
)  # fmt: skip
NULLS: dict[str, Null] = {null.key: null for null in _TABLE}


def nulls_of(axis: str, labelled: bool = True) -> list[Null]:
    """The nulls of an axis; without labels those that can do without."""
    return [null for null in NULLS.values() if axis in null.redraws and (labelled or not null.needs_labels)]


def words_of(
    axis: str, labelled: bool = True, samples: str = "images", others: Iterable[str] = ()
) -> dict[str, NullWords]:
    """What a file says of the nulls of an axis and of `others`, over what is called `samples`.

    >>> words_of("depth")["gaussian"].words, words_of("image")["gaussian"].words
    ("Gaussian noise with the images' covariance", "Gaussian noise with the channels' covariance")
    """

    def of_units(words: str) -> str:  # whose series are those of samples on the axis of depth
        return words.replace("every channel", "each of the images").replace("channels", "images")

    return {
        null.key: NullWords(
            named(of_units(null.words) if axis == "depth" else null.words, samples),
            named(null.short, samples),
            Aside.NEEDS_LABELS if null.needs_labels and not labelled else None,
        )
        for null in (*nulls_of(axis), *(NULLS[key] for key in others if axis not in NULLS[key].redraws))
    }


def deciding(measure: Measure, axis: Axis) -> str:
    """The null that decides about a measure on an axis; empty where it is not drawn."""
    if measure.of_measure:
        return deciding(MEASURES[measure.of_measure.of], axis)
    if measure.of_checkpoint:
        return measure.null
    drawn = measure.of_series is not None and measure.nulls
    return (measure.decided_by or {}).get(axis.key, axis.decides) if drawn else ""


def description(measure: Measure, axis: Axis) -> dict[str, Any]:
    """What a file says of a measure beside its numbers."""
    names = (
        "symbol", "title", "about", "digits", "limits", "headline", "listed", "lower_is_better", "looks_ahead", "code",
    )  # fmt: skip
    overrides = axis.overrides.get(measure.key, {})
    return {name: overrides.get(name, getattr(measure, name)) for name in names} | {
        "decided_by": deciding(measure, axis),
        "function_of": measure.of_measure.of if measure.of_measure else "",
    }


@dataclass(frozen=True)
class Comparison:
    """A value beside its null: mean and standard deviation of B draws, z = (value - mean) / sd, two-sided p.

    p: see `verdicts.two_sided_p`; low, high: the range of the middle 95 % of the draws; draws: B. NaN where nothing can
    be compared.
    """

    mean: float
    sd: float
    z: float
    p: float
    low: float = math.nan
    high: float = math.nan
    draws: int = 0


NOTHING = Comparison(math.nan, math.nan, math.nan, math.nan)


def unrounded(value: float, drawn: FloatArray) -> FloatArray:
    """Draws of which those that are the value but for rounding are it: sums in another order are no other draws.

    >>> unrounded(0.3, np.array([0.1 + 0.2, 0.4])).tolist()
    [0.3, 0.4]
    """
    return np.where(np.abs(drawn - value) <= ROUNDING * abs(value), value, drawn)


def compare(value: float, drawn: FloatArray, stages: Sequence[int] = ()) -> Comparison:
    """Compare a value with the draws [B] of its null, which were drawn in stages that end at `stages`.

    >>> compare(3.0, np.array([1.0, -1.0, 0.5, -0.5])).p
    0.4
    """
    finite = drawn[np.isfinite(drawn)]
    if len(finite) < 2 or not np.isfinite(value):
        return NOTHING
    drawn = unrounded(value, drawn)
    finite = drawn[np.isfinite(drawn)]
    mean, sd = float(finite.mean()), float(finite.std(ddof=1))
    low, high = np.quantile(finite, [0.025, 0.975])
    z = float((value - mean) / sd) if sd > 0 else math.nan
    return Comparison(mean, sd, z, two_sided_p(value, drawn, stages), float(low), float(high), len(finite))


@dataclass
class Draws:
    """What was measured of B draws: values [B]; halves: [B, K], of the first `HALVED` of them, else NaN, where halves
    were asked for; curves: [B, S], the mean log F(s) behind an exponent, where there is one; documents: [B, D], of each
    document, where there are any."""

    values: FloatArray
    halves: FloatArray | None = None
    curves: FloatArray | None = None
    documents: FloatArray | None = None

    def put(self, draw: int, readings: Sequence[Reading]) -> None:
        """What a draw was measured to be, or its documents."""
        reading = readings[0] if self.documents is None else Reading.over(readings)
        self.values[draw] = reading.value
        if self.documents is not None:
            self.documents[draw] = [document.value for document in readings]
        if self.halves is not None and reading.halves is not None:
            self.halves[draw] = reading.halves
        if self.curves is not None and reading.curve is not None:
            self.curves[draw] = reading.curve[0]


def drawn_once(
    null: Null,
    material: Material | None,
    live: NDArray[np.bool_],
    scope: Scope,
    count: int,
    seed: int,
    measures: Sequence[Measure],
    draw: Callable[[], dict[str, Draws]],
) -> dict[str, Draws]:
    """What measures are of draws of a null that does not depend on the checkpoint, nor then on the run: those that `draw`
    would give, which on the image axis are kept on disk, unless anything but posthoc itself draws or measures them."""
    functions = [*null.redraws.values(), *(measure.of_series for measure in measures)]
    ours = any(null is known for known in _TABLE) and all(
        str(getattr(function, "__module__", "")).startswith("posthoc.") for function in functions
    )
    if not (ours and isinstance(material, image.ImageMaterial)):
        return draw()
    from posthoc.analysis.kept import computed_by, kept

    labels = hashlib.sha256(material.labels.astype(np.int64).tobytes()).hexdigest()
    keys, units = [measure.key for measure in measures], int(live.sum())
    depends_on = repr((null.key, keys, count, seed, units, labels, material.smooth, scope, computed_by()))
    shapes: dict[str, tuple[int, ...]] = {f"{key}.values": (count,) for key in keys}
    shapes |= {f"{measure.key}.curves": (count, len(scope.scales)) for measure in measures if measure.curve}

    def arrays() -> dict[str, FloatArray]:
        drawn = draw()
        whole = {f"{key}.{name}": getattr(of, name) for key, of in drawn.items() for name in ("values", "curves")}
        return {name: array for name, array in whole.items() if array is not None}

    stored = kept(f"null-{null.key}", depends_on, shapes, arrays)
    return {key: Draws(stored[f"{key}.values"], curves=stored.get(f"{key}.curves")) for key in keys}


def _light(reading: Reading) -> Reading:
    """A reading of a draw with no more than is kept of it."""
    return Reading(reading.value, halves=reading.halves, curve=None if reading.curve is None else reading.curve[:1])


def draws(
    nulls: Sequence[Null],
    materials: Iterable[Material],
    live: NDArray[np.bool_],
    scope: Scope,
    count: int,
    seed: int,
    epoch: int,
    measures: Mapping[str, Sequence[Measure]],
    first: int = 0,
    halves: FloatArray | None = None,
    recorded: Recorded | None = None,
    read: Callable[[Measure, Series], Reading] = Measure.read,
) -> dict[str, dict[str, Draws]]:
    """What each null's `measures` are of `count` draws of it: null -> measure -> draws.

    materials: of documents some at a time, else one; live: [U] or [D, U], the units to draw for; first: how many draws there are already, of which these are the next; halves:
    [K, live units], 1 for the units of the first half; recorded: of the live units, where measures ask for it; read: how a measure is read. The draws of all nulls are spread over the threads together.
    """
    from posthoc.analysis.kernels import in_threads

    D = len(live) if live.ndim == 2 else 0

    def unfilled(measure: Measure) -> Draws:
        return Draws(
            np.full(count, np.nan),
            None if halves is None else np.full((count, len(halves)), np.nan),
            np.full((count, len(scope.scales)), np.nan) if measure.curve else None,
            np.full((count, D), np.nan) if D else None,
        )

    drawn = {null.key: {measure.key: unfilled(measure) for measure in measures[null.key]} for null in nulls}
    tasks = [(null, draw) for null in nulls for draw in range(count)]
    randoms = [stream(f"null {null.key}", seed, epoch, first + draw) for null, draw in tasks]
    readings: list[dict[str, list[Reading]]] = [
        {measure.key: [] for measure in measures[null.key]} for null, _ in tasks
    ]
    begun = 0
    for material in materials if live.any() and tasks else ():
        of_part = live[begun : begun + len(material.series())] if D else live
        begun += len(of_part)

        def work(begin: int, end: int, material: Material = material, of_part: NDArray[np.bool_] = of_part) -> None:
            for (null, draw), random, of_task in zip(
                tasks[begin:end], randoms[begin:end], readings[begin:end], strict=True
            ):
                values, of_draw = null.draw(material, random, of_part, recorded)
                series = Series(values, scope, halves if draw < HALVED else None, of_draw)
                for document in series.documents:
                    for measure in measures[null.key]:
                        of = document if measure.code is None else replace(document, halves=None)  # halved otherwise
                        of_task[measure.key].append(_light(read(measure, of)))

        in_threads(work, len(tasks))
    for (null, draw), of_task in zip(tasks, readings, strict=True):
        for key, of_draw in of_task.items():
            if of_draw:
                drawn[null.key][key].put(draw, of_draw)
    return drawn
