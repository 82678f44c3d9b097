"""The path of a run through the plane of integration and metastability."""

import math
from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np

from posthoc.analysis.records import RunMetrics
from posthoc.analysis.taxonomy import Taxonomy
from posthoc.report.figures.figure import Figure, Kind, data, hover, log_spaced, nothing, number, rows_of, with_epoch
from posthoc.report.theme import INK, MARK, MUTED, NOISE, PAPER, REGION, SEQUENCE
from posthoc.report.words import cautions, short

AXES = {"x": "integration", "y": "metastability"}
REGIONS = ["rigidly|synchronised", "partial|integration", "transitional", "high|integration"]
Row = dict[str, Any]


def trajectory(metrics: RunMetrics, epoch: int | None, width: int) -> Figure:
    """The path of a run through the plane of integration and metastability."""
    rows = rows_of(metrics)
    for key in AXES.values():
        for row, value in zip(rows, metrics.column(key), strict=True):
            row[key] = number(value)
    points = [row for row in rows if row["integration"] is not None and row["metastability"] is not None]
    trained = [row for row in points if not row["untrained"]]
    box = _box(metrics)
    x = _range([row["integration"] for row in points] + [box.get("x_low"), box.get("x_high")], 0.25, (0, 1))
    y = _range([row["metastability"] for row in points] + [box.get("y_low"), box.get("y_high")], 0.02, (0, math.inf))
    X = _axis(alt.X, "integration", "integration H_eff", x)
    Y = _axis(alt.Y, "metastability", "metastability M", y)
    layers = [*_areas(x), *_boxes(metrics, box)]
    layers += _path(metrics, points, trained, X, Y, x) if points else [nothing(metrics)]
    moved = "" if len(trained) < 2 else (
        f" from ({trained[0]['integration']:.2f}, {trained[0]['metastability']:.3f})"
        f" to ({trained[-1]['integration']:.2f}, {trained[-1]['metastability']:.3f})"
    )  # fmt: skip
    mean = metrics.measures["integration"].summary.mean
    where = (
        f"; the grey box is where {metrics.nulls[metrics.axis.decides].words} lies, on average over the run."
        if box
        else "."
    )
    return Figure(
        "trajectory",
        f"The run moves through the plane of integration and metastability{moved}"
        if moved else "Integration and metastability of the run in one plane",
        "One point per checkpoint, from dark to light; the shaded bands are those in which the taxonomy puts a run's mean "
        f"H_eff ({'undefined' if math.isnan(mean) else f'here {mean:.3f}'}), stable convergent being a run above 0.6 with "
        f"{_signs(metrics)}{where}",
        "",
        with_epoch(alt.layer(*layers).properties(width=width, height=320), None),
        verdicts=tuple(cautions(metrics)),
    )  # fmt: skip


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
    """Where the deciding null lies, on average over the run; empty where it was not drawn."""
    ends = {
        f"{name}_{end}": metrics.null(metrics.axis.decides, key, end)
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
        dy=4, baseline="top", align="left", color=MUTED, fontSize=10, text=short(metrics, metrics.axis.decides)
    )
    return [
        rect.mark_rect(color=NOISE, opacity=0.5).encode(x="x_low:Q", x2="x_high:Q", y="y_low:Q", y2="y_high:Q"),
        text.encode(x="x_low:Q", y="y_low:Q"),
    ]


def _path(metrics: RunMetrics, points: list[Row], trained: list[Row], X: alt.X, Y: alt.Y, x: list[float]) -> list[Any]:
    """The checkpoints and what joins them, with the first, the last and the untrained one named."""
    unit = metrics.summary.unit
    base = alt.Chart(data(points))
    seen = base.transform_filter("!datum.untrained")
    kind = {"type": "symlog"} if unit == "step" and log_spaced(metrics.when) else {}
    legend = alt.Legend(title=unit, orient="right", gradientLength=120, tickMinStep=1, format="d")
    circles = seen.mark_circle(size=60, opacity=1, stroke=INK, strokeWidth=0.3).encode(
        x=X, y=Y, color=alt.Color("at:Q", scale=alt.Scale(scheme=SEQUENCE, **kind), legend=legend)
    )
    named = [(row, f"{unit} {row['at']}", -12) for row in trained[:1] + trained[1:][-1:]]
    named += [(row, "untrained", 14) for row in points if row["untrained"]]
    halos: list[Any] = []
    labels: list[Any] = []
    for row, text, dy in named:
        place = (row["integration"] - x[0]) / (x[1] - x[0])
        align = "left" if place < 0.15 else "right" if place > 0.85 else "center"
        for marks, halo in ((halos, {"stroke": PAPER, "strokeWidth": 4, "strokeJoin": "round"}), (labels, {})):
            mark = alt.Chart(data([{**row, "text": text}])).mark_text(dy=dy, align=align, fontSize=10, **halo)
            marks.append(mark.encode(x=X, y=Y, text="text:N"))
    return [
        seen.mark_line(color=MUTED, strokeWidth=1, opacity=0.6).encode(x=X, y=Y, order="at:Q"),
        *halos,
        circles,
        base.transform_filter("datum.untrained").mark_point(shape="diamond", size=90, color=INK).encode(x=X, y=Y),
        *labels,
        base.transform_filter("datum.at === epoch").mark_point(size=220, color=MARK, strokeWidth=2.5).encode(x=X, y=Y),
        hover(base.encode(x=X, y=Y), unit, list(AXES.values())),
    ]


def _range(values: Sequence[float | None], least: float, limits: tuple[float, float]) -> list[float]:
    """A domain that holds the values with a margin, at least so wide, within limits."""
    known = [value for value in values if value is not None]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    margin = max(0.08 * (high - low), (least - (high - low)) / 2, 0)
    low, high = max(limits[0], low - margin), min(limits[1], high + 2.4 * margin)
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
    fits=lambda metrics: set(AXES.values()) <= metrics.measures.keys(),
)
