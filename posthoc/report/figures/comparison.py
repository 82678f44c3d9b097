"""The mean of every headline measure of several runs, beside pure noise."""

import math
from typing import Any

import altair as alt

from posthoc.errors import PosthocError
from posthoc.report.figures.composed import layer, vconcat
from posthoc.report.figures.figure import NARROW, Figure, Kind, Of, data, digits, named, names_of, number, wrapped
from posthoc.report.sources import Several
from posthoc.report.theme import MUTED, VALUE

KEYS = {"mean over checkpoints": (VALUE, "circle"), "pure noise": (MUTED, "diamond")}


def comparison(several: Several, width: int) -> Figure:
    """Mean of every headline measure of every run with its interval, beside pure noise."""
    table, titles = several.rows, several.headlines
    if not titles:
        raise PosthocError(
            "The runs have no headline measure to compare; measure them with posthoc metrics --measures default."
        )
    names = [wrapped(run.name, 18 if width < NARROW else 40) for run in several.runs]
    panels = []
    for key, measured in titles.items():
        rows = [
            {"run": row.run.name, "place": place, "state": row.state.name}
            | {name: number(getattr(row.quantities[key], name)) for name in ("value", "low", "high", "noise")}
            for place, row in enumerate(table) if key in row.quantities
        ]  # fmt: skip
        base = alt.Chart(data(rows)).encode(y=alt.Y("place:O", title=None, axis=named("runs")))
        # What is a function of another measure fills its limits; what is not may stay near 0.
        fills = measured.function_of and all(map(math.isfinite, measured.limits))
        scale = {"zero": False, "domain": list(measured.limits)} if fills else {"zero": True}
        x = alt.X("value:Q", title=None, scale=alt.Scale(**scale))
        fields = ("value", "low", "high", "noise")
        numbers = [alt.Tooltip(f"{name}:Q", format=digits(rows, *fields)) for name in fields]
        tips = [alt.Tooltip("run:N"), *numbers, alt.Tooltip("state:N")]
        noise = _keyed(base.transform_filter("isValid(datum.noise)"), "pure noise").encode(x="noise:Q", tooltip=tips)
        bars = (
            base.transform_filter("isValid(datum.low)")
            .mark_rule(color=VALUE, strokeWidth=2)
            .encode(x="low:Q", x2="high:Q")
        )
        points = _keyed(base.transform_filter("isValid(datum.value)"), "mean over checkpoints").encode(
            x=x, tooltip=tips
        )
        size = {"width": width, "height": max(40, max(20, 14 * max(map(len, names)) + 4) * len(table))}
        panels.append(layer(noise, bars, points).properties(**size, title=f"mean {measured.title}"))
    return Figure(
        "comparison",
        _title(several),
        "A point is a run's mean over its checkpoints, the bar its 95 % interval over further ones where there is one, the diamond what "
        "pure noise gives through the same protocol: a reference, which takes channels for independent.",
        several.confounded,
        vconcat(*panels, spacing=14).add_params(names_of("runs", names)),
    )


def _title(several: Several) -> str:
    key, measured = next(iter(several.headlines.items()))
    of = [row.quantities[key] for row in several.rows if key in row.quantities]
    known = [quantity for quantity in of if math.isfinite(quantity.noise) and math.isfinite(quantity.low)]
    near = sum(quantity.low <= quantity.noise <= quantity.high for quantity in known)
    if not known:
        return f"Mean {' and '.join(measured.symbol for measured in several.headlines.values())} of every run"
    return f"The interval of mean {measured.symbol} holds that of pure noise in {near} of {len(known)} runs"


def _keyed(base: Any, key: str) -> Any:
    """Points in the colour and shape of what they stand for, which the legend names."""
    colours, shapes = ([look[k] for look in KEYS.values()] for k in range(2))
    return (
        base.transform_calculate(key=repr(key))
        .mark_point(filled=True, size=80, opacity=1)
        .encode(
            color=alt.Color("key:N", scale=alt.Scale(domain=list(KEYS), range=colours), legend=alt.Legend(title=None)),
            shape=alt.Shape("key:N", scale=alt.Scale(domain=list(KEYS), range=shapes), legend=alt.Legend(title=None)),
        )
    )


COMPARISON = Kind(
    "comparison", "Mean of every headline measure of every run, beside pure noise", comparison, Of.RUNS, reflows=True
)
