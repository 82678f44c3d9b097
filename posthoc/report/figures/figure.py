"""What a figure is, and the pieces that figures are made of."""

import itertools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import altair as alt
import numpy as np

from posthoc.analysis.health import Ailment
from posthoc.analysis.records import RunMetrics
from posthoc.errors import UsageError
from posthoc.report.figures.composed import Composed, layer
from posthoc.report.theme import HALO, INK, MARK, MUTED, NOISE
from posthoc.shown import shown

MOST_LINES = 3
NARROW = 420
"""Pixels below which labels are put on more lines, and panels below each other."""
NOT_FINITE = {Ailment.WEIGHTS, Ailment.SIGNALS, Ailment.LOSS}
ROUNDING = 1e-12
"""Numbers below it are shown as 0."""
MOST_CELLS = 100_000
"""Cells of a matrix that a figure keeps over all epochs; of longer runs it keeps every second epoch, or third."""


@dataclass(frozen=True)
class Figure:
    """A chart and what is said of it.

    title: what is seen; explanation: how to read it, in a sentence; remark: what else must be known to read it, or empty;
    chart: an Altair chart, or several of them `composed`; epochs: those a figure of one epoch can show; columns: panels side by side; widest: pixels beyond which it does not
    grow; verdicts: of the measures in it those that do not differ from their null everywhere, by symbol, in sentences.
    """

    name: str
    title: str
    explanation: str
    remark: str
    chart: Any
    epochs: tuple[int, ...] = ()
    columns: int = 1
    widest: int | None = None
    verdicts: dict[str, str] = field(default_factory=dict)

    @property
    def caution(self) -> str:
        """All that must be known to read it."""
        return " ".join(filter(None, [self.remark, *self.verdicts.values()]))

    @property
    def specification(self) -> dict[str, Any]:
        """The chart as Vega-Lite, with its title and explanation for screen readers."""
        words = f"{self.title}. {self.explanation} {self.caution}".strip()
        inert: dict[str, Any] = _inert(self.chart.properties(description=words).to_dict())
        return inert


class Of(Enum):
    """What a figure is of."""

    RUN = "of one run"
    AUDIT = "of an audit"
    RUNS = "of several runs"


@dataclass(frozen=True)
class Kind:
    """A figure that can be made. about: what it shows, in a line; build: (metrics, epoch or None, width) of a run, (audit,
    width) of an audit, (`Several`, width) of several runs; width: of a panel, in pixels; fits: whether a run has what it
    shows, where not every run does; reflows: whether it is laid out otherwise where it is `NARROW`, as all of several columns are."""

    name: str
    about: str
    build: Callable[..., Figure]
    of: Of = Of.RUN
    fits: Callable[[RunMetrics], bool] | None = None
    reflows: bool = False


def _inert(node: Any) -> Any:
    """The same with every text as it is shown: names come from elsewhere, and not every character can be drawn."""
    if isinstance(node, dict):
        return {key: _inert(value) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [_inert(value) for value in node]
    return shown(node, lines=True) if isinstance(node, str) else node


def data(rows: Sequence[dict[str, Any]]) -> Any:
    """Rows that travel with the chart, as a plain object: Altair moves it to the chart's `datasets`, equal ones once, and then
    holds the rest against its schema. Of an `alt.Data` it would validate every row, and of a list copy every row with each
    step in which a chart is made, which both take longer than all else."""
    return {"values": tuple(rows)}


def number(value: float | None) -> float | None:
    """A number as JSON has it, to six digits."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")


def names_of(parameter: str, names: Sequence[str] | Sequence[list[str]]) -> dict[str, Any]:
    """The names, or their lines, that an axis made by `named` shows: data, which nothing takes for a part of an expression."""
    return {"name": parameter, "value": list(names)}


def wrapped(name: str, signs: int) -> list[str]:
    """A name on lines of so many signs at the most, as far as its spaces and slashes allow; of more than three lines the
    first and the last.

    >>> wrapped("resnet18/seed-1", 10), wrapped("pure noise", 24)
    (['resnet18/', 'seed-1'], ['pure noise'])
    """
    lines = [""]
    for part in re.split(r"(?<=[ /])", name):
        if lines[-1] and len(lines[-1] + part.rstrip()) > signs:
            lines.append("")
        lines[-1] += part
    if len(lines) > MOST_LINES:
        lines = [lines[0], "…", lines[-1]]
    return [line.rstrip() for line in lines]


def named(parameter: str, **settings: Any) -> alt.Axis:
    """An axis over 0, 1, 2, ... labelled with names."""
    return alt.Axis(labelExpr=f"{parameter}[datum.value]", **settings)


def y_axis(field: str) -> alt.Y:
    """An axis without a title, for the panel's says what it is."""
    return alt.Y(f"{field}:Q", title=None, scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=5))


def keyed(marks: Any, key: str, keys: list[str], colours: list[str], opacities: list[float] | None = None) -> Any:
    """Marks in the colour and opacity of what they stand for, which the legend names and shows."""
    legend = alt.Legend(title=None)
    marks = marks.transform_calculate(key=repr(key)).encode(
        color=alt.Color("key:N", scale=alt.Scale(domain=keys, range=colours), legend=legend)
    )
    if opacities is None:
        return marks
    return marks.encode(
        opacity=alt.Opacity(
            "key:N", sort=keys, scale=alt.Scale(type="ordinal", domain=keys, range=opacities), legend=legend
        )
    )


def digits(rows: Sequence[dict[str, Any]], *fields: str) -> str:
    """How a tooltip writes numbers of these fields: with four decimals, or, where some are so small that these would leave
    fewer than two digits, with all digits that rows have.

    >>> digits([{"a": 0.5}, {"a": 0.0}, {"a": None}], "a"), digits([{"a": 0.5, "b": 2e-5}], "a", "b")
    ('.4f', '.6~g')
    """
    sizes = [abs(row[field]) for row in rows for field in fields if row[field] is not None]
    return ".6~g" if any(ROUNDING < size < 0.001 for size in sizes) else ".4f"


def hover(
    base: Any,
    rows: Sequence[dict[str, Any]],
    title: str,
    fields: list[str],
    names: Sequence[str] = (),
    parameter: str = "",
) -> Any:
    """Invisible points, of which the nearest to the pointer is the epoch looked at; names: fields of text to tell, too; parameter: by
    which the page finds the pointer, if not by the last field."""
    tips = [alt.Tooltip("at:Q", title=title)]
    tips += [alt.Tooltip(f"{field}:Q", format=digits(rows, field)) for field in fields]
    tips += [alt.Tooltip(f"{name}:N") for name in names]
    return base.mark_point(opacity=0, size=4).encode(tooltip=tips).add_params(hovering(parameter or fields[-1]))


def hovering(name: str, nearest: bool = True) -> alt.Parameter:
    """What points out an epoch; no two panels of a page may call it the same."""
    return alt.selection_point(
        name=f"hover_{name}", on="pointerover", clear="pointerout", nearest=nearest, fields=["at"], empty=False
    )


def with_epoch(picture: Composed, value: int | None, options: list[int] | None = None) -> Composed:
    """With the parameter `epoch`, the epoch looked at; in a notebook it is chosen from `options`."""
    bind = {} if options is None else {"bind": {"input": "select", "options": options, "name": "epoch "}}
    return picture.add_params({"name": "epoch", "value": value, **bind})


def rows_of(metrics: RunMetrics) -> list[dict[str, Any]]:
    """One row for every checkpoint: when it was, and whether it is untrained."""
    return [
        {"at": at, "untrained": checkpoint.untrained}
        for at, checkpoint in zip(metrics.when, metrics.checkpoints, strict=True)
    ]


def time_axis(metrics: RunMetrics) -> alt.X:
    """The axis of checkpoints."""
    return counted_axis(metrics.summary.unit, metrics.when)


def counted_axis(unit: str, when: Sequence[int]) -> alt.X:
    """The axis of checkpoints that are counted in `unit`, from the first to the last; logarithmic, with a place for 0,
    where their steps are spaced so."""
    if not log_spaced(unit, when):
        first, last = min(when), max(when)
        domain = [first, last] if first < last else [first - 1, last + 1]
        spacing: dict[str, Any] = {"tickMinStep": 1} if first < last else {"values": [first]}
        return alt.X(
            "at:Q",
            title=unit,
            scale=alt.Scale(domain=domain, nice=False),
            axis=alt.Axis(**spacing, format="d", grid=False),
        )
    ticks = [0, *(10**k for k in range(len(str(max(when)))))]
    axis = alt.Axis(values=[tick for tick in ticks if min(when) <= tick <= max(when)], format="d", grid=False)
    return alt.X("at:Q", title=unit, scale=alt.Scale(type="symlog"), axis=axis)


def log_spaced(unit: str, when: Sequence[int]) -> bool:
    """Whether rising numbers are steps that lie evenly rather on a logarithmic than on a linear axis.

    >>> tuple(log_spaced("step", when) for when in ([0, 1, 2, 4, 8, 16, 1000, 2000], [0, 100, 200, 300], [5, 6]))
    (True, False, False)
    """
    positive = sorted({at for at in when if at > 0})
    if unit != "step" or len(positive) < 4:
        return False
    gaps = [b - a for a, b in itertools.pairwise(positive)]
    return max(gaps) > 4 * min(gaps) and positive[-1] > 8 * positive[0]


def panel(
    rows: list[dict[str, Any]], metrics: RunMetrics, marks: list[Any], field: str, width: int, height: int, title: str | list[str],
    baseline: float | None = None, y: Callable[[str], alt.Y] = y_axis, tips: Sequence[str] = (),
) -> Any:  # fmt: skip
    """Layers over time with the untrained checkpoint, the mark of the chosen epoch, a tooltip for the nearest, and a mark
    where values stop being finite; y: the axis of a field; tips: fields of text that the tooltip has, too."""
    if all(row[field] is None for row in rows):
        picture = layer(nothing(metrics))
    else:
        base = alt.Chart(data(rows)).transform_filter(f"isValid(datum.{field})")
        values = {row[field] for row in rows} - {None}
        at = y(field)
        if y is y_axis and len(values) == 1:  # else the axis would have one tick, which says 0
            (value,) = values
            ends = [
                row[name]
                for row in rows
                for name in row
                if name.startswith(f"{field}_") and name.endswith(("_low", "_high"))
            ]
            reach = max(0.1 * abs(value) or 1.0, *(1.1 * abs(end - value) for end in ends if end is not None), 0.0)
            at = at.scale(zero=False, domain=[value - reach, value + reach])
        spot = base.encode(x=time_axis(metrics), y=at)
        ground = alt.Chart(data([{"y": baseline}])).mark_rule(color=NOISE).encode(y=y("y"))
        picture = layer(
            *([] if baseline is None else [ground]),
            *marks,
            *_not_finite(rows, metrics, field, width, height),
            spot.transform_filter("datum.untrained").mark_point(shape="diamond", size=70, color=INK),
            base.transform_filter("datum.at === epoch").mark_rule(color=MARK, strokeWidth=1.5).encode(x=time_axis(metrics)),
            spot.transform_filter("datum.at === epoch").mark_point(size=110, color=MARK, strokeWidth=2.5),
            hover(spot, rows, metrics.summary.unit, [field], tips),
        )  # fmt: skip
    return with_epoch(picture.properties(width=width, height=height, title=title), None)


def _not_finite(rows: list[dict[str, Any]], metrics: RunMetrics, field: str, width: int, height: int) -> list[Any]:
    """A rule at the first checkpoint of which a field has no value because something in it is not finite, and that word;
    nothing where there is none."""
    began = [of.began for of in metrics.health if of.kind in NOT_FINITE and rows[of.began][field] is None]
    if not began:
        return []
    x = time_axis(metrics)
    base = alt.Chart(data([rows[min(began)]])).encode(x=x)
    places = np.array([metrics.when[0], metrics.when[min(began)], metrics.when[-1]], dtype=float)
    if log_spaced(metrics.summary.unit, metrics.when):
        places = np.log1p(places)
    room = width * (places[2] - places[1]) > 70 * (places[2] - places[0])  # as wide as the word
    side = {"align": "left", "dx": 5} if room else {"align": "right", "dx": -5}
    words = [
        base.mark_text(text="not finite", color=INK, **side, **halo).encode(y=alt.value(height / 2))
        for halo in (HALO, {})
    ]
    return [base.mark_rule(color=INK, strokeDash=[5, 3]), *words]


def nothing(metrics: RunMetrics) -> Any:
    """In place of an empty chart, why it is empty."""
    reasons = dict.fromkeys(why for checkpoint in metrics.checkpoints for why in checkpoint.reasons)
    text = "undefined at every checkpoint" + (f": {', '.join(reasons)}" if reasons else "")
    return alt.Chart(data([{"text": text}])).mark_text(color=MUTED).encode(text="text:N")


def kept(metrics: RunMetrics, cells: int, epoch: int | None) -> tuple[list[int], int]:
    """The checkpoints that a figure of one epoch keeps, and which is shown first: the epoch asked for, or the last.

    Raises UsageError where there is no such epoch.
    """
    if epoch is not None and epoch not in metrics.when:
        raise UsageError(f"No {metrics.summary.unit} {epoch} here; there are {', '.join(map(str, metrics.when))}.")
    last = len(metrics.when) - 1
    stride = -(-len(metrics.when) * cells // MOST_CELLS)
    shown = last if epoch is None else metrics.when.index(epoch)
    return sorted({*range(last, -1, -stride), shown}), metrics.when[shown]
