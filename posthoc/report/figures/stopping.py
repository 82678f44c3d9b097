"""Every stopping rule: training saved against accuracy, or another score, lost."""

import itertools
import math
from typing import Any

import altair as alt

from posthoc.analysis.runs import in_percent
from posthoc.report.figures.composed import layer
from posthoc.report.figures.figure import Figure, Kind, Of, data, digits, number
from posthoc.report.sources import Several
from posthoc.report.theme import HALO, INK, MUTED, OTHER, SECOND, THIRD, VALUE
from posthoc.shown import counted

COLOURS = {
    "volatility": SECOND, "volatility, whole run known": OTHER, "patience": VALUE, "fixed budget": THIRD, "reference": MUTED,
}  # fmt: skip
"""Of the families of rules; another is drawn in ink."""
HEIGHT = 320
"""Pixels of the plane."""
LOW = 0.04
"""Share of the plane's height that counts as at the axis."""
Row = dict[str, Any]


def stopping(several: Several, width: int) -> Figure:
    """Every stopping rule: training saved against accuracy, or another score, lost."""
    percent = any(in_percent(run.accuracy) for run in several.judged)
    rows: list[Row] = [
        {"rule": score.rule, "kind": score.family, "saved": number(score.saved_share), "epochs": number(score.saved),
         "lost": number(score.lost), "never": number(score.never), "pareto": score.pareto, "better": score.patience_difference[2] < 0}
        for score in several.scores if math.isfinite(score.lost)
    ]  # fmt: skip
    front = sorted((row for row in rows if row["pareto"]), key=lambda row: (row["saved"], row["lost"]))
    x = alt.X("saved:Q", title="share of the training saved", axis=alt.Axis(format="%"), scale=alt.Scale(domain=[0, 1]))
    symbol = several.scores[0].symbol
    unit = "" if symbol != "accuracy" else f" ({'points' if percent else 'share'})"
    y = alt.Y("lost:Q", title=f"{symbol} lost{unit}")
    line = alt.Chart(data(front)).mark_line(color=INK, strokeWidth=1, interpolate="step-before")
    picture = layer(
        line.encode(x=x, y=y, order="saved:Q"),
        _points(rows, x, y),
        *_labels(front, max((row["lost"] for row in rows), default=0) or 1, x, y, width),
    ).properties(width=width, height=HEIGHT)
    useful = [row for row in front if row["kind"] != "reference" and row["never"] < 1]
    others = len(front) - len(useful)
    few = f", and {len(several.judged)} runs are few." if len(several.judged) < 10 else "."
    return Figure(
        "stopping",
        _title(rows, useful),
        f"Each point is a rule, its mean over the runs: right is more training saved, down is less {symbol} lost; the line "
        f"joins those to which no other is equal or better in both, {len(front)} in all"
        + (
            f", of which {others} {'is a reference or never fires' if others == 1 else 'are references or never fire'}."
            if others
            else "."
        ),
        f"Rules marked 'whole run known' look into the future; a fixed threshold that does well here was found here{few}",
        picture,
        widest=760,
    )


def _title(rows: list[Row], useful: list[Row]) -> str:
    """What the figure says; useful: the rules that fire and that no other beats, references apart."""
    if not useful:
        return "No stopping rule that fires does better than the references"
    if not any(row["kind"].startswith("volatility") and row["never"] < 1 for row in rows):
        return f"No other rule beats {counted(len(useful), 'stopping rule')}; those of volatility never fire here"
    better = sum(row["kind"] == "volatility" and row["better"] for row in rows)
    rules = f"{counted(better, 'rule')} of volatility" if better else "No rule of volatility"
    loses = "loses" if better < 2 else "lose"
    return f"{rules} {loses} less than patience that saves as much, as far as these runs can tell"


def _points(rows: list[Row], x: alt.X, y: alt.Y) -> Any:
    """A point for every rule, in the colour and shape of its family."""
    families = list(dict.fromkeys([*COLOURS, *(row["kind"] for row in rows)]))
    colours = [COLOURS.get(family, INK) for family in families]
    tips = [
        alt.Tooltip("rule:N"), alt.Tooltip("saved:Q", format=".1%"),
        alt.Tooltip("epochs:Q", title="checkpoints saved", format=".1f"), alt.Tooltip("lost:Q", format=digits(rows, "lost")),
        alt.Tooltip("never:Q", title="share of runs in which it never fires", format=".0%"),
    ]  # fmt: skip
    legend = alt.Legend(title=None)
    return alt.Chart(data(rows)).mark_point(filled=True, size=70, opacity=0.9).encode(
        x=x, y=y, tooltip=tips, color=alt.Color("kind:N", scale=alt.Scale(domain=families, range=colours), legend=legend),
        shape=alt.Shape("kind:N", scale=alt.Scale(domain=families), legend=legend),
    )  # fmt: skip


def _labels(front: list[Row], highest: float, x: alt.X, y: alt.Y, width: int) -> list[Any]:
    """Names of the rules that no other beats, below the line that joins them, where there is room, and above it where they
    must stand on the left of their point, for there the line has come from below; those that do the same share one."""
    places: dict[tuple[float, float], list[Row]] = {}
    for row in front:
        places.setdefault((row["saved"], row["lost"]), []).append(row)
    labels: list[Row] = []
    taken: list[tuple[float, float, float]] = []
    for (saved, lost), rows in places.items():  # the others have a tooltip
        text = rows[0]["rule"] + (f" and {len(rows) - 1} more" if len(rows) > 1 else "")
        wide, left, down = 6.0 * len(text), saved * width, HEIGHT * (1 - lost / highest)
        right, low = 1.1 * (left + wide) > width, lost < LOW * highest
        down += -9 if low or right else 11
        left -= wide if right else 0
        if all(abs(down - other) > 16 or left > end or left + wide < start for start, end, other in taken):
            taken.append((left, left + wide, down))
            labels.append({**rows[0], "text": text, "right": right, "low": low})
    marks = []
    for right, low in itertools.product((False, True), repeat=2):  # at the axis, which is below, above it
        rows = [row for row in labels if row["right"] is right and row["low"] is low]
        for halo in (HALO, {}):
            side = {"align": "right" if right else "left", "dx": -8 if right else 8, "dy": -9 if low or right else 11}
            text = alt.Chart(data(rows)).mark_text(fontSize=10, **side, **halo)
            marks.append(text.encode(x=x, y=y, text="text:N"))
    return marks


STOPPING = Kind(
    "stopping",
    "Every stopping rule: training saved against accuracy, or another score, lost",
    stopping,
    Of.RUNS,
    reflows=True,
)
