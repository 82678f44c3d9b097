"""Every control of an audit."""

import altair as alt

from posthoc.analysis.conclusions import LEVEL
from posthoc.analysis.responses import Audit, Reaction
from posthoc.analysis.verdicts import least_p
from posthoc.recording import named as called
from posthoc.report.figures.composed import layer, vconcat
from posthoc.report.figures.figure import NARROW, Figure, Kind, Of, data, digits, named, names_of, number, wrapped
from posthoc.report.theme import INK, MUTED, VALUE
from posthoc.report.words import over_orders


def audit(result: Audit, width: int) -> Figure:
    """Every control of an audit: each measure with one thing changed at a time."""
    names = [control.name for control in result.controls]
    narrow = width < NARROW
    labels = [wrapped(name, 26 if narrow else 60) for name in names]
    step = max(17, 14 * max(map(len, labels)) + 2)
    panels = []
    for key, response in result.measures.items():
        rows = [
            {"control": control.name, "k": k} | {name: number(getattr(control.measures[key], name)) for name in ("mean", "low", "high")}
            for k, control in enumerate(result.controls)
        ]  # fmt: skip
        y = alt.Y(
            "k:O",
            title=None,
            scale=alt.Scale(domain=list(range(len(names)))),
            axis=named("controls", labelOverlap=False),
        )
        base = alt.Chart(data(rows)).transform_filter("isValid(datum.mean)").encode(y=y)
        ends = ("mean", "low", "high")
        numbers = [alt.Tooltip(f"{name}:Q", format=digits(rows, *ends)) for name in ends]
        colour = alt.condition("datum.k === 0", alt.value(VALUE), alt.value(INK))
        x = alt.X("mean:Q", title=None, scale=alt.Scale(zero=True), axis=alt.Axis(tickCount=5 if narrow else 10))
        picture = layer(
            alt.Chart(data(rows[:1])).mark_rule(color=VALUE, strokeDash=[3, 3]).encode(x="mean:Q"),
            base.mark_rule(color=MUTED, strokeWidth=2).encode(x="low:Q", x2="high:Q"),
            base.mark_point(filled=True, size=55, opacity=1).encode(x=x, tooltip=[alt.Tooltip("control:N"), *numbers], color=colour),
        )  # fmt: skip
        panels.append(picture.properties(width=width, height=step * len(names), title=response.symbol))
    bars = f"are 95 % intervals {result.intervals}" if result.intervals else "hold 95 % of the draws"
    return Figure(
        "audit",
        "; ".join(
            f"{response.symbol} responds to {called(', '.join(response.by_change(Reaction.RESPONDS)), result.called) or 'nothing'}"
            for response in result.measures.values()
        ),
        f"The last checkpoint measured again with one thing changed at a time; bars {bars}, the dashed line is the run as it is.",
        over_orders(result),
        vconcat(*panels, spacing=14).add_params(names_of("controls", labels)),
        verdicts={
            response.symbol: f"{response.symbol} cannot be distinguished from that of {result.called} in another order."
            for response in result.measures.values()
            if response.order_p > max(LEVEL, least_p(result.draws)) and not result.intervals
        },
    )


AUDIT = Kind(
    "audit", "Every control of an audit: each measure with one thing changed at a time", audit, Of.AUDIT, reflows=True
)
