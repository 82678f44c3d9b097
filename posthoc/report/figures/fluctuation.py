"""The fluctuation function behind the exponent."""

import math
from typing import Any

import altair as alt
import numpy as np

from posthoc.analysis.records import PURE_NOISE, RunMetrics
from posthoc.analysis.stored import Curve
from posthoc.errors import PosthocError
from posthoc.report.figures.composed import layer
from posthoc.report.figures.figure import Figure, Kind, data, kept, nothing, number, with_epoch
from posthoc.report.theme import NOISE, OTHER, VALUE
from posthoc.report.words import cautions, short

Row = dict[str, Any]


def fluctuation(metrics: RunMetrics, epoch: int | None, width: int) -> Figure:
    """The fluctuation function behind the exponent at one epoch."""
    if not metrics.fluctuation:
        raise PosthocError("This metrics file holds no fluctuation functions; run `posthoc metrics` again.")
    metrics.column("hurst")  # whose slope this is
    shown = {"units": "measured"} | {null: short(metrics, null) for null in (PURE_NOISE, metrics.axis.decides)}
    checkpoints, first = kept(metrics, 40 * len(metrics.scales), epoch)
    rows, slopes = [], []
    for e in checkpoints:
        for name, key in shown.items():
            curve = metrics.fluctuation[e].curves.get(name)
            if curve is not None and np.isfinite(curve.mean).all():
                points, slope = _points(metrics.fluctuation[e].scales, curve)
                rows += [{"at": metrics.when[e], "curve": key, **point} for point in points]
                slopes.append({"at": metrics.when[e], "curve": key, "text": f"{key}: slope {slope:.3f}"})
    keys = [key for key in shown.values() if any(row["curve"] == key for row in rows)]
    marks = _marks(rows, slopes, keys, metrics.axis.points) if rows else [nothing(metrics)]
    protocol, unit = metrics.protocol, metrics.summary.unit
    by_dfa = protocol.estimator == "dfa"
    note = f" H is not that slope but what {protocol.estimator} estimates." if not by_dfa else (
        " H is that slope freed of the bias of short series." if protocol.calibrate else ""
    )  # fmt: skip
    ats = tuple(metrics.when[e] for e in checkpoints)
    return Figure(
        "fluctuation",
        f"The fluctuation function whose slope is H, at one {unit}" if by_dfa else f"The fluctuation function, at one {unit}",
        f"Points are the mean over {metrics.axis.units} of log F(s), each less its own mean; the dashed lines are least-squares fits, the band of what was "
        f"measured holds 95 % of the {metrics.axis.units}, those of redrawn data 95 % of the draws." + note,
        "",
        with_epoch(layer(*marks).properties(width=width, height=300), first, list(ats)),
        epochs=ats,
        widest=640,
        verdicts=cautions(metrics, ["hurst"]),
    )  # fmt: skip


def _points(scales: tuple[int, ...], curve: Curve) -> tuple[list[Row], float]:
    """F(s) with its ends and its fit at every scale, and the slope of that."""
    log_s = np.log(scales)
    slope, level = np.polyfit(log_s, curve.mean, 1)
    columns = {"F": curve.mean, "low": curve.low, "high": curve.high, "fit": level + slope * log_s}
    points = [
        {"s": s} | {name: number(math.exp(values[k])) for name, values in columns.items()} for k, s in enumerate(scales)
    ]
    return points, float(slope)


def _marks(rows: list[Row], slopes: list[Row], keys: list[str], points: str) -> list[Any]:
    """Bands, fits and points of every curve, and their slopes in words."""
    base = alt.Chart(data(rows)).transform_filter("datum.at === epoch")
    scale = alt.Scale(type="log", nice=False)
    x = alt.X("s:Q", title=f"scale s ({points})", scale=scale)
    y = alt.Y("F:Q", title="F(s) / its geometric mean", scale=scale)
    colours = [{"measured": VALUE, "pure noise": NOISE}.get(key, OTHER) for key in keys]
    colour = alt.Color(
        "curve:N", scale=alt.Scale(domain=keys, range=colours), legend=alt.Legend(title=None, symbolOpacity=1)
    )
    shape = alt.Shape("curve:N", scale=alt.Scale(domain=keys), legend=alt.Legend(title=None, symbolOpacity=1))
    tips = [alt.Tooltip("curve:N"), alt.Tooltip("s:Q", title="scale"), alt.Tooltip("F:Q", format=".4f")]
    marks = [
        base.mark_area(opacity=0.2).encode(x=x, y=alt.Y("low:Q", scale=scale), y2="high:Q", color=colour),
        base.mark_line(strokeDash=[4, 3]).encode(x=x, y=alt.Y("fit:Q"), color=colour),
        base.mark_point(filled=True, size=45, opacity=1).encode(x=x, y=y, color=colour, shape=shape, tooltip=tips),
    ]
    for k, key in enumerate(keys):
        words = alt.Chart(data([row for row in slopes if row["curve"] == key])).transform_filter("datum.at === epoch")
        text = words.mark_text(align="left", baseline="top")
        marks.append(text.encode(x=alt.value(8), y=alt.value(6 + 15 * k), text="text:N"))
    return marks


FLUCTUATION = Kind(
    "fluctuation",
    "The fluctuation function behind the exponent at one checkpoint",
    fluctuation,
    fits=lambda metrics: "hurst" in metrics.measures,
)
