"""The loss of a language model by position in its documents."""

import altair as alt

from posthoc.analysis.records import RunMetrics
from posthoc.errors import PosthocError
from posthoc.report.figures.composed import layer
from posthoc.report.figures.figure import NARROW, Figure, Kind, data, digits, number, with_epoch
from posthoc.report.theme import SEQUENCE

PLACE = "loss_at_"
"""What the names of the measures begin with that are losses from a position on."""


def positions(metrics: RunMetrics, epoch: int | None, width: int) -> Figure:
    """The loss by position, of every checkpoint."""
    unit = metrics.summary.unit
    rows = [
        {"at": at, "place": place, "position": int(key.removeprefix(PLACE)), "loss": number(float(measured.value[place]))}
        for key, measured in metrics.measures.items() if _is_place(key)
        for place, at in enumerate(metrics.when)
    ]  # fmt: skip
    if not _fits(metrics):
        raise PosthocError(
            "There is no loss by position here: the file was not made of documents of tokens; give one that was."
        )
    colour = alt.Color(
        "place:O",
        scale=alt.Scale(scheme=SEQUENCE),
        legend=alt.Legend(
            title=unit, labelExpr=f"{metrics.when}[datum.value]", symbolLimit=60, columns=8 if width > NARROW else 4
        ),
    )
    lines = alt.Chart(data(rows)).transform_filter("isValid(datum.loss)").mark_line(point={"size": 22, "filled": True})
    lines = lines.encode(
        x=alt.X(
            "position:Q", title="position of the token", scale=alt.Scale(type="log", base=2), axis=alt.Axis(grid=False)
        ),
        y=alt.Y("loss:Q", title="loss", scale=alt.Scale(zero=False)),
        color=colour,
        tooltip=[
            alt.Tooltip("at:Q", title=unit),
            alt.Tooltip("position:Q"),
            alt.Tooltip("loss:Q", format=digits(rows, "loss")),
        ],
    )
    return Figure(
        "positions",
        "Loss by position in the document",
        "Each point is the mean loss from a position up to twice as far, over the documents; a line that falls to the right is of "
        f"a network that uses more of what precedes a token. One line per {unit}, from dark to light.",
        "",
        with_epoch(layer(lines).properties(width=width, height=260), None),
    )


def _fits(metrics: RunMetrics) -> bool:
    return any(map(_is_place, metrics.measures))


def _is_place(key: str) -> bool:
    return key.startswith(PLACE) and key.removeprefix(PLACE).isdecimal()


POSITIONS = Kind(
    "positions", "Loss by position in the documents of a language model", positions, fits=_fits, reflows=True
)
