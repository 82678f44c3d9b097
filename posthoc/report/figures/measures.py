"""Every measure with an interval or nulls, checkpoint by checkpoint."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import altair as alt

from posthoc.analysis.records import PURE_NOISE, Measured, RunMetrics
from posthoc.analysis.verdicts import verdict
from posthoc.errors import PosthocError
from posthoc.report.figures.composed import concat
from posthoc.report.figures.figure import (
    NARROW,
    Figure,
    Kind,
    data,
    keyed,
    number,
    panel,
    rows_of,
    time_axis,
    wrapped,
    y_axis,
)
from posthoc.report.theme import NOISE, OTHER, VALUE
from posthoc.report.words import cautions, headlines, listed, network_at_start, sentence_of, short

MOST_BELOW = 5
"""So many measures stand below each other; more, as of language models, in two columns, which a sheet of paper holds."""


def measures(metrics: RunMetrics, epoch: int | None, width: int) -> Figure:
    """Each measure as measured, with its interval, beside the null that decides and pure noise."""
    shown = {
        key: measured for key, measured in metrics.measures.items()
        if (measured.low.size or measured.nulls) and (measured.headline or measured.listed)
    }  # fmt: skip
    if not shown:
        raise PosthocError(
            "This metrics file has no measure with an interval or nulls; run `posthoc metrics` again, with --nulls."
        )
    rows = rows_of(metrics)
    for key, measured in shown.items():
        for name, values in _columns(key, measured):
            for row, value in zip(rows, values, strict=True):
                row[name] = number(value)
    beside = short(metrics, PURE_NOISE)
    keys, colours, opacities = ["measured", "95 % interval"], [VALUE, VALUE], [1, 0.25]
    noise, deciders = _drawn(rows, shown)
    if noise:
        keys += [*(short(metrics, null) for null in deciders), beside]
        colours += [*(OTHER for _ in deciders), NOISE]
        opacities += [*(0.35 for _ in deciders), 0.5]
    columns = 2 if len(shown) > MOST_BELOW and width >= NARROW else 1
    each = (width - 50 * (columns - 1)) // columns
    panels = []
    for key, measured in shown.items():
        base = alt.Chart(data(rows)).transform_filter("!datum.untrained")
        layers = []
        decides = short(metrics, measured.decided_by)
        for stem, name, thick in (
            (f"{key}_{PURE_NOISE}_", beside, 26),
            (f"{key}_deciding_", decides, 16),
            (f"{key}_", "95 % interval", 6),
        ):
            if name in keys and f"{stem}low" in rows[0]:
                known = base.transform_filter(f"isValid(datum.{stem}low)")
                band = known.mark_rule(strokeWidth=thick) if metrics.trained.sum() == 1 else known.mark_area(line=False)
                band = band.encode(x=time_axis(metrics), y=y_axis(f"{stem}low"), y2=f"{stem}high:Q")
                layers.append(keyed(band, name, keys, colours, opacities))
        line = base.mark_line(point={"size": 22, "filled": True}).encode(x=time_axis(metrics), y=y_axis(key))
        layers.append(keyed(line, "measured", keys, colours, opacities))
        title = wrapped(measured.title, each // 7) if columns > 1 else measured.title
        panels.append(panel(rows, metrics, layers, key, each, 130, title))
    return Figure(
        "measures",
        _title(metrics) or f"Every measure, {metrics.summary.unit} by {metrics.summary.unit}",
        f"The line is what was measured, its band the 95 % interval{metrics.axis.intervals and ' '}{metrics.axis.intervals}"
        + ("" if metrics.trained.all() else f"; the hollow diamond is {network_at_start(metrics)}")
        + (_bands(metrics, deciders) if noise else "."),
        "",
        concat(*panels, columns=columns, spacing=14),
        columns=columns,
        verdicts=cautions(metrics),
    )


def _columns(key: str, measured: Measured) -> Iterator[tuple[str, Any]]:
    """What is drawn of a measure: names of the rows' fields, and their values."""
    yield key, measured.value
    if measured.low.size:
        yield from ((f"{key}_low", measured.low), (f"{key}_high", measured.high))
    for kind, null in ((PURE_NOISE, PURE_NOISE), ("deciding", measured.decided_by)):
        if null in measured.nulls:
            beside = measured.nulls[null]
            yield from ((f"{key}_{kind}_low", beside.low), (f"{key}_{kind}_high", beside.high))


def _title(metrics: RunMetrics) -> str:
    results = [verdict(metrics, key) for key in headlines(metrics)]
    results = [replace(result, words=short(metrics, result.null)) for result in results if result.epochs]
    return (
        ""
        if len(results) > 2
        else sentence_of("; ".join(result.sentence(metrics.summary.noun) for result in results))[:-1]
    )


def _drawn(rows: Sequence[dict[str, Any]], shown: Mapping[str, Measured]) -> tuple[bool, dict[str, list[str]]]:
    """Whether pure noise was drawn for trained checkpoints, and the nulls that decide and were, with the symbols of their measures."""

    def known(field: str) -> bool:
        return any(row.get(field) is not None for row in rows if not row["untrained"])

    deciders: dict[str, list[str]] = {}
    for key, measured in shown.items():
        if known(f"{key}_deciding_low"):
            deciders.setdefault(measured.decided_by, []).append(measured.symbol)
    return any(known(f"{key}_{PURE_NOISE}_low") for key in shown), deciders


def _bands(metrics: RunMetrics, deciders: Mapping[str, Sequence[str]]) -> str:
    """What the bands of redrawn data hold; where several nulls decide, which of them about which measures."""
    several = len(deciders) > 1
    decide = [
        f"{metrics.nulls[null].words}, which decides{f' about {listed(symbols)}' if several else ''}"
        for null, symbols in deciders.items()
    ]
    before = f"{'; '.join(decide)}{';' if several else ','} and " if decide else ""
    return (
        "; the other bands hold the middle 95 % of the same measure of redrawn data: "
        f"{before}{metrics.nulls[PURE_NOISE].words}, for reference."
    )


MEASURES = Kind(
    "measures", "Each measure at every checkpoint, with its interval, its deciding null and pure noise", measures
)
