"""Several runs over their epochs, as small multiples."""

from typing import Any

import altair as alt

from posthoc.report.figures.composed import concat, layer, vconcat
from posthoc.report.figures.figure import (
    NARROW,
    Figure,
    Kind,
    Of,
    counted_axis,
    data,
    hover,
    number,
    with_epoch,
    wrapped,
)
from posthoc.report.sources import Several
from posthoc.report.theme import MARK, NOISE, THIRD, VALUE

COLUMNS = 3
"""Small multiples side by side."""


def runs(several: Several, width: int) -> Figure:
    """Every headline measure, and accuracy or another score, of every run over its epochs, as small multiples."""
    judges = several.judges
    titles = {key: measured.title for key, measured in several.headlines.items()}
    titles |= {judges[run.score.symbol]: run.score.title for run in several.judged if run.score}
    rows: list[dict[str, Any]] = []
    for place, run in enumerate(several.runs):
        values = {key: run.column(key) for key in several.headlines} | dict.fromkeys(judges.values(), run.column(""))
        if run.score:
            values[judges[run.score.symbol]] = run.column(run.summary.judged_by)
        noise = {f"{key}_noise": number(run.noise(key)) for key in titles}
        for e, at in enumerate(run.when):
            of_epoch = {key: number(float(column[e])) for key, column in values.items()}
            rows.append({"run": run.name, "place": place, "at": at} | of_epoch | noise)
    columns = 1 if width < NARROW else min(COLUMNS, len(several.runs))
    unit = " or ".join(dict.fromkeys(run.summary.unit for run in several.runs))
    each = (width - 50 * (columns - 1)) // columns
    names = [wrapped(run.name, each // 7) for run in several.runs]
    panels = [
        _multiples(rows, key, unit, each, columns, THIRD if key in judges.values() else VALUE, names).properties(title=title)
        for key, title in titles.items() if any(row[key] is not None for row in rows)
    ]  # fmt: skip
    return Figure(
        "runs",
        f"{len(several.runs)} runs side by side, {unit} by {unit}",
        "All panels of a measure share their scale; the dashed line is the mean of pure noise through the run's protocol.",
        several.confounded,
        with_epoch(vconcat(*panels, spacing=24), None),
        columns=columns,
    )


def _multiples(
    rows: list[dict[str, Any]], key: str, unit: str, width: int, columns: int, colour: str, names: list[list[str]]
) -> Any:
    """One measure of every run, a panel each, all with the same scales."""
    values = [value for row in rows for value in (row[key], row[f"{key}_noise"]) if value is not None]
    x = counted_axis(unit, [row["at"] for row in rows])
    scale = alt.Scale(zero=False, domain=[min(values), max(values)] if min(values) < max(values) else alt.Undefined)
    y = alt.Y(f"{key}:Q", title=None, scale=scale, axis=alt.Axis(tickCount=4))
    panels = []
    for place, name in enumerate(names):
        base = alt.Chart(data(rows)).transform_filter(f"datum.place === {place} && isValid(datum.{key})")
        noise = base.transform_filter(f"isValid(datum.{key}_noise)").mark_line(color=NOISE, strokeDash=[4, 3])
        chosen = base.transform_filter("datum.at === epoch")
        picture = layer(
            noise.encode(x=x, y=f"{key}_noise:Q"),
            base.mark_line(color=colour).encode(x=x, y=y),
            chosen.mark_rule(color=MARK, strokeWidth=1.5).encode(x=x),
            chosen.mark_point(size=90, color=MARK, strokeWidth=2.5).encode(x=x, y=y),
            hover(base.encode(x=x, y=y), rows, unit, [key], parameter=f"{key}_{place}"),
        )
        title = alt.TitleParams(name, fontSize=11, fontWeight="normal", limit=width)
        panels.append(picture.properties(width=width, height=90, title=title))
    return concat(*panels, columns=columns, spacing=12)


RUNS = Kind(
    "runs",
    "Every headline measure, and accuracy or another score, of every run over its checkpoints",
    runs,
    Of.RUNS,
)
