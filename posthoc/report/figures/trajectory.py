"""The path of a run through the plane of integration and metastability."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np

from posthoc.analysis.records import Measured, RunMetrics
from posthoc.analysis.taxonomy import Taxonomy
from posthoc.report.figures.composed import layer
from posthoc.report.figures.figure import Figure, Kind, data, hover, log_spaced, nothing, number, rows_of, with_epoch
from posthoc.report.theme import HALO, INK, MARK, MUTED, NOISE, REGION, SEQUENCE
from posthoc.report.words import cautions, short

AXES = {"x": "integration", "y": "metastability"}
REGIONS = ["rigidly|synchronised", "partial|integration", "transitional", "high|integration"]
Row = dict[str, Any]
Box = tuple[float, float, float, float]
HEIGHT = 320
"""Pixels of the plane."""


def trajectory(metrics: RunMetrics, epoch: int | None, width: int) -> Figure:
    """The path of a run through the plane of integration and metastability."""
    rows = rows_of(metrics)
    for key in AXES.values():
        for row, value in zip(rows, metrics.column(key), strict=True):
            row[key] = number(value)
    points = [row for row in rows if row["integration"] is not None and row["metastability"] is not None]
    trained = [row for row in points if not row["untrained"]]
    box = _box(metrics)
    x = _range([row["integration"] for row in points], 0.1, (0, 1))
    y = _range([row["metastability"] for row in points], 0.01, (0, math.inf))
    box = _within(box, x, y)
    X = _axis(alt.X, "integration", "integration H_eff", x)
    Y = _axis(alt.Y, "metastability", "metastability M", y)
    layers = [*_areas(x), *_boxes(metrics, box)]
    plane = Plane(x, y, width)
    layers += _path(metrics, points, trained, X, Y, plane, box) if points else [nothing(metrics)]
    mean = metrics.measures["integration"].summary.mean
    where = (
        f"; the grey box is where {metrics.nulls[metrics.axis.decides].words} lies, on average over the run, as far as it is in sight."
        if box
        else "."
    )
    return Figure(
        "trajectory",
        _title(metrics, trained),
        "One point per checkpoint, from dark to light and along the arrows; the shaded bands are those in which the taxonomy puts a run's mean "
        f"H_eff ({'undefined' if math.isnan(mean) else f'here {mean:.3f}'}), stable convergent being a run above 0.6 with "
        f"{_signs(metrics)}{where}{_told_by(metrics)}",
        "",
        with_epoch(layer(*layers).properties(width=width, height=HEIGHT), None),
        verdicts=cautions(metrics),
    )  # fmt: skip


def _title(metrics: RunMetrics, trained: list[Row]) -> str:
    """Where the path begins and ends; a measure rises or falls where its intervals at both ends do not overlap."""
    if len(trained) < 2:
        return "Integration and metastability of the run in one plane"
    when = list(metrics.when)
    first, last = (when.index(row["at"]) for row in (trained[0], trained[-1]))
    integration, metastability = (_way(metrics.measures[key], first, last) for key in AXES.values())
    ends = f"{metrics.summary.unit} {trained[0]['at']} to {trained[-1]['at']}"
    return f"From {ends} H_eff {integration} and M {metastability}"


def _way(of: Measured, first: int, last: int) -> str:
    """What a measure does from one checkpoint to another, as far as its intervals there say."""
    ends = f"from {of.value[first]:.3f} to {of.value[last]:.3f}"
    if not of.low.size or not np.isfinite([of.low[[first, last]], of.high[[first, last]]]).all():
        return f"goes {ends}"
    if of.high[last] < of.low[first]:
        return f"falls {ends}"
    return f"rises {ends}" if of.low[last] > of.high[first] else f"goes {ends} (intervals overlap)"


def _told_by(metrics: RunMetrics) -> str:
    """By what it is said that a measure rises or falls; nothing where there is no interval."""
    known = any(np.isfinite(metrics.measures[key].low).any() for key in AXES.values())
    return (
        " A measure rises or falls where its intervals at both ends do not overlap; where they do, it cannot be told."
        * known
    )


def _within(box: Row, x: list[float], y: list[float]) -> Row:
    """The part of the box that lies in sight; empty where none does."""
    if not box:
        return {}
    ends = {"x_low": max(box["x_low"], x[0]), "x_high": min(box["x_high"], x[1]),
            "y_low": max(box["y_low"], y[0]), "y_high": min(box["y_high"], y[1])}  # fmt: skip
    return ends if ends["x_low"] < ends["x_high"] and ends["y_low"] < ends["y_high"] else {}


def _signs(metrics: RunMetrics) -> str:
    """Of a stable convergent run, by what this one is judged by."""
    score = metrics.score
    if score is None and metrics.measures["accuracy"].aside:
        return "r(Hz, Mz) < 0, and a Psi that rises with a score, of which this run has none"
    symbol = "accuracy" if score is None else f"-{score.symbol}" if score.lower_is_better else score.symbol
    return f"r(Hz, Mz) < 0 < r(Psi, {symbol})"


def _axis(channel: Any, key: str, title: str, domain: list[float]) -> Any:
    scale = alt.Scale(domain=domain, nice=False, zero=False)
    return channel(f"{key}:Q", title=title, scale=scale, axis=alt.Axis(grid=False))


def _box(metrics: RunMetrics) -> Row:
    """Where the deciding null lies, on average over the trained checkpoints; empty where it was not drawn."""
    ends = {
        f"{name}_{end}": metrics.null(metrics.axis.decides, key, end)[metrics.trained]
        for name, key in AXES.items() for end in ("low", "high")
    }  # fmt: skip
    if not all(np.isfinite(values).any() for values in ends.values()):
        return {}
    return {name: float(np.nanmean(values)) for name, values in ends.items()}


def _boxes(metrics: RunMetrics, box: Row) -> list[Any]:
    if not box:
        return []
    rect = alt.Chart(data([box]))
    text = rect.mark_text(
        dx=4, dy=-4, baseline="bottom", align="left", color=INK, fontSize=10, text=short(metrics, metrics.axis.decides)
    )
    return [
        rect.mark_rect(color=NOISE, opacity=0.5).encode(x="x_low:Q", x2="x_high:Q", y="y_low:Q", y2="y_high:Q"),
        text.encode(x="x_low:Q", y="y_low:Q"),
    ]


@dataclass(frozen=True)
class Plane:
    """The domains of the axes and the pixels that they are drawn over, about."""

    x: list[float]
    y: list[float]
    width: int

    def place(self, row: Row) -> tuple[float, float]:
        """Pixels from the left and from the top."""
        across = (row["integration"] - self.x[0]) / (self.x[1] - self.x[0])
        up = (row["metastability"] - self.y[0]) / (self.y[1] - self.y[0])
        return across * self.width, (1 - up) * HEIGHT


def _path(
    metrics: RunMetrics, points: list[Row], trained: list[Row], X: alt.X, Y: alt.Y, plane: Plane, box: Row
) -> list[Any]:
    """The checkpoints and what joins them, with the first, the last and the untrained one named."""
    unit = metrics.summary.unit
    base = alt.Chart(data(points))
    seen = base.transform_filter("!datum.untrained")
    kind = {"type": "symlog"} if log_spaced(unit, metrics.when) else {}
    legend = alt.Legend(title=unit, orient="right", gradientLength=120, tickMinStep=1, format="d")
    circles = seen.mark_circle(size=60, opacity=1, stroke=INK, strokeWidth=0.3).encode(
        x=X, y=Y, color=alt.Color("at:Q", scale=alt.Scale(scheme=SEQUENCE, **kind), legend=legend)
    )
    corner = plane.place({"integration": box["x_low"], "metastability": box["y_low"]}) if box else None
    taken = [_box_of(corner, (4, -11, "left"), short(metrics, metrics.axis.decides))] if corner else []
    named = [(row, f"{unit} {row['at']}") for row in trained[:1] + trained[1:][-1:]]
    named += [(row, metrics.at_start) for row in points if row["untrained"]]
    return [
        seen.mark_line(color=MUTED, strokeWidth=1, opacity=0.6).encode(x=X, y=Y, order="at:Q"),
        *_arrows(trained, X, Y, plane),
        circles,
        base.transform_filter("datum.untrained").mark_point(shape="diamond", size=90, color=INK).encode(x=X, y=Y),
        *_labels(named, [plane.place(row) for row in points], X, Y, plane, taken),
        base.transform_filter("datum.at === epoch").mark_point(size=220, color=MARK, strokeWidth=2.5).encode(x=X, y=Y),
        hover(base.encode(x=X, y=Y), points, unit, list(AXES.values())),
    ]


def _arrows(trained: list[Row], X: alt.X, Y: alt.Y, plane: Plane) -> list[Any]:
    """Heads of arrows half way between checkpoints that lie apart."""
    heads = []
    for first, second in itertools.pairwise(trained):
        (a, b), (c, d) = plane.place(first), plane.place(second)
        if math.hypot(c - a, d - b) > 40:
            middle = {key: (first[key] + second[key]) / 2 for key in AXES.values()}
            heads.append({**middle, "turn": round(math.degrees(math.atan2(c - a, b - d)))})
    marks = alt.Chart(data(heads)).mark_point(shape="triangle-up", size=30, filled=True, color=MUTED, opacity=1)
    return [marks.encode(x=X, y=Y, angle=alt.Angle("turn:Q", scale=None))] if heads else []


SIDES = ((0, -13, "center"), (0, 15, "center"), (11, 0, "left"), (-11, 0, "right"), (9, -12, "left"), (-9, -12, "right"),
         (9, 13, "left"), (-9, 13, "right"))  # fmt: skip
"""Where a name may stand beside its point: pixels across and down, and the end that stands there."""


def _labels(
    named: list[tuple[Row, str]], points: list[tuple[float, float]], X: alt.X, Y: alt.Y, plane: Plane, taken: list[Box]
) -> list[Any]:
    """Names of points, each where it covers fewest points and no other name."""
    halos: list[Any] = []
    labels: list[Any] = []
    for row, text in named:
        boxes = [(_box_of(plane.place(row), side, text), side) for side in SIDES]
        box, (dx, dy, align) = min(boxes, key=lambda option: _covers(option[0], points, taken, plane.width))
        taken = [*taken, box]
        for marks, halo in ((halos, HALO), (labels, {})):
            mark = alt.Chart(data([{**row, "text": text}])).mark_text(dx=dx, dy=dy, align=align, fontSize=10, **halo)
            marks.append(mark.encode(x=X, y=Y, text="text:N"))
    return [*halos, *labels]


def _box_of(place: tuple[float, float], side: tuple[int, int, str], text: str) -> Box:
    """Left, top, right and bottom of a name beside a point, about."""
    wide, (dx, dy, align) = 6.0 * len(text), side
    left = place[0] + dx - {"left": 0.0, "center": wide / 2, "right": wide}[align]
    return left, place[1] + dy - 7, left + wide, place[1] + dy + 7


def _covers(box: Box, points: list[tuple[float, float]], taken: list[Box], width: int) -> float:
    """How much a name would cover: a point 1, another name 10, what is outside of the drawing 5."""
    left, top, right, bottom = box
    on_points = sum(left - 5 < px < right + 5 and top - 5 < py < bottom + 5 for px, py in points)
    on_names = sum(left < other[2] and other[0] < right and top < other[3] and other[1] < bottom for other in taken)
    return on_points + 10 * on_names + 5 * (left < 0 or right > width or top < 0 or bottom > HEIGHT)


def _range(values: Sequence[float | None], least: float, limits: tuple[float, float]) -> list[float]:
    """A domain that holds the values with a margin, at least so wide, within limits."""
    known = [value for value in values if value is not None]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    margin = max(0.08 * (high - low), (least - (high - low)) / 2, 0)
    low, high = max(limits[0], low - 1.5 * margin), min(limits[1], high + 2.4 * margin)
    return [round(low, 4), round(high, 4)]


def _areas(x: Sequence[float]) -> list[Any]:
    """The taxonomy's bands of mean integration, as far as they are in sight, and their names."""
    known = Taxonomy()
    edges = [0.0, known.rigid, known.partial, known.high, 1.0]
    bands = []
    for k, name in enumerate(REGIONS):
        low, high = max(edges[k], x[0]), min(edges[k + 1], x[1])
        wide = high - low > 0.09 * (x[1] - x[0])
        if low < high:
            bands.append(
                {
                    "from": low,
                    "to": high,
                    "middle": (low + high) / 2,
                    "name": name if wide else "",
                    "shaded": k % 2 == 0,
                }
            )
    chart, title = alt.Chart(data(bands)), "integration H_eff"
    scale = alt.Scale(domain=x, nice=False)
    areas = chart.encode(x=alt.X("from:Q", title=title, scale=scale), x2="to:Q").mark_rect(color=REGION)
    names = chart.mark_text(baseline="top", color=MUTED, fontSize=10, lineBreak="|")
    return [
        areas.transform_filter("datum.shaded"),
        names.encode(x=alt.X("middle:Q", title=title), y=alt.value(4), text="name:N"),
    ]


TRAJECTORY = Kind(
    "trajectory",
    "The path of a run through the plane of integration and metastability",
    trajectory,
    reflows=True,
    fits=lambda metrics: set(AXES.values()) <= metrics.measures.keys() and int(metrics.trained.sum()) > 1,
)
