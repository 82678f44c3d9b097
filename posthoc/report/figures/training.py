"""What happened: the score and the loss over training, with what is noteworthy marked."""

from typing import Any

import altair as alt
import numpy as np

from posthoc.analysis.course import Course, course
from posthoc.analysis.health import Ailment
from posthoc.analysis.measures.layers import SETTLED, settled_at
from posthoc.analysis.records import Measured, RunMetrics
from posthoc.analysis.runs import in_percent
from posthoc.errors import PosthocError
from posthoc.report.figures.composed import vconcat
from posthoc.report.figures.figure import Figure, Kind, data, number, panel, rows_of, time_axis
from posthoc.report.theme import INK, MUTED, REGION, SECOND, THIRD, VALUE
from posthoc.report.words import better, left_out, network_at_start

WIDE = 20.0
"""How many times its least value a loss's greatest must be for a logarithmic axis."""
ROOM, MARGIN = 0.3, 0.12
"""Of the range of values: what an axis leaves for words, and elsewhere."""
Row = dict[str, Any]


def training(metrics: RunMetrics, epoch: int | None, width: int) -> Figure:
    """Score, loss and the share of layers that have settled, over the checkpoints."""
    shown = courses(metrics)
    if not shown:
        raise PosthocError(
            "No accuracy, other score or loss of this run is known; extract with a probe that has targets."
        )
    rows = rows_of(metrics)
    for key, measured in shown.items():
        for row, value in zip(rows, measured.value, strict=True):
            row[key] = number(value)
    panels = [_panel(rows, metrics, key, measured, width) for key, measured in shown.items()]
    settled = _settled(rows, metrics, width)
    passed = [known for measured in shown.values() if (known := course_of(metrics, measured))]
    ring = "The ring with a value is the best." if len(rows) > 1 else "The ring has the value."
    names = " and ".join(measured.symbol for measured in shown.values())
    return Figure(
        "training",
        f"{names[:1].upper()}{names[1:]} {'over training' if len(rows) > 1 else 'of the only checkpoint'}",
        " ".join(filter(None, [
            ring if passed else "",
            f"The shaded part is a plateau: from there on the value{_until(metrics)} stays within 5 % of the way from the first to the best."
            if any(of.plateau is not None for of in passed) else "",
            "" if metrics.trained.all() else f"The hollow diamond is {network_at_start(metrics)}.",
            f"A layer counts as settled from where its similarity (CKA) to the last checkpoint stays at {SETTLED} or more."
            if settled else "",
        ])),
        " ".join(left_out(metrics)),
        vconcat(*panels, *settled, spacing=14),
    )  # fmt: skip


def courses(metrics: RunMetrics) -> dict[str, Measured]:
    """What a run is judged by, and its loss, as far as they are known."""
    keys = dict.fromkeys([metrics.summary.judged_by if metrics.score else "", "loss"])
    return {
        key: metrics.measures[key] for key in keys
        if key in metrics.measures and np.isfinite(metrics.measures[key].value).any()
    }  # fmt: skip


def course_of(metrics: RunMetrics, measured: Measured) -> Course | None:
    """The course over the trained checkpoints."""
    return course(np.where(metrics.trained, measured.value, np.nan), bool(measured.lower_is_better))


def _until(metrics: RunMetrics) -> str:
    """That a plateau ends where values are no longer finite."""
    last = len(metrics.when) - 1
    ended = any((passed := course_of(metrics, m)) and passed.last < last for m in courses(metrics).values())
    return ", while it is finite," if ended else ""


def _panel(rows: list[Row], metrics: RunMetrics, key: str, measured: Measured, width: int) -> Any:
    values = [row[key] for row in rows if row[key] is not None]
    low, high = min(values), max(values)
    lower = bool(measured.lower_is_better)
    wide = lower and low > 0 and high > WIDE * low
    domain = _domain(low, high, wide, lower)
    colour = SECOND if lower else THIRD

    def y(field: str) -> alt.Y:
        scale = alt.Scale(type="log", domain=domain) if wide else alt.Scale(domain=domain, nice=False, zero=False)
        axis = alt.Axis(tickCount=5, format=".4~g" if wide else "")
        if key == "accuracy" and not in_percent(measured.value):  # above 1 is room for a label, and no value
            axis.labelExpr = "datum.value > 1 ? '' : datum.label"
        return alt.Y(f"{field}:Q", title=None, scale=scale, axis=axis)

    line = alt.Chart(data(rows)).transform_filter(f"!datum.untrained && isValid(datum.{key})").mark_line(
        color=colour, point={"size": 22, "filled": True, "color": colour}
    ).encode(x=time_axis(metrics), y=y(key))  # fmt: skip
    under, over = _marks(rows, metrics, key, measured, y, domain)
    source = metrics.summary.accuracy_source if key == metrics.summary.judged_by else ""
    title = (
        measured.title
        + (better(measured) if key == metrics.summary.judged_by else "")
        + (f", {source}" if source else "")
        + (", log axis" if wide else "")
    )
    return panel(rows, metrics, [*under, line, *over], key, width, 130, title, y=y)


def _domain(low: float, high: float, wide: bool, falls: bool) -> list[float]:
    """With room for words where the best is, above or below, and a little elsewhere; a loss of 0 is the end."""
    if wide:
        beyond = (high / low) ** MARGIN
        return [float(f"{low / beyond:.3g}"), float(f"{high * beyond:.3g}")]
    reach = high - low or 0.2 * abs(high) or 1.0
    below = low - (ROOM if falls else MARGIN) * reach
    ends = max(below, 0.0) if low >= 0 else below, high + (MARGIN if falls else ROOM) * reach
    return [float(f"{end:.6g}") for end in ends]


def _marks(
    rows: list[Row], metrics: RunMetrics, key: str, measured: Measured, y: Any, domain: list[float]
) -> tuple[list[Any], list[Any]]:
    """What is noteworthy, with its name: below the line the plateau, above it the best value and where a spike began."""
    passed = course_of(metrics, measured)
    if passed is None:
        return [], []
    under, over, x, when = [], [], time_axis(metrics), metrics.when
    edge = "bottom" if measured.lower_is_better else "top"
    if passed.plateau is not None:
        part = alt.Chart(data([{"at": when[passed.plateau], "to": when[passed.last]}]))
        under.append(part.mark_rect(color=REGION).encode(x=x, x2="to:Q"))
        at = {"y": alt.value(4)} if edge == "bottom" else {"y": alt.value(126)}
        late = when[passed.plateau] > (when[0] + when[-1]) / 2  # the word may be wider than the plateau
        ends = {"align": "right", "dx": -4} if late else {"align": "left", "dx": 4}
        word = part.mark_text(text="plateau", **ends, color=MUTED, baseline="top" if edge == "bottom" else "bottom")
        under.append(word.encode(x=alt.X("to:Q") if late else x, **at))
    late = when[passed.best] > (when[0] + when[-1]) / 2
    best = alt.Chart(
        data(
            [
                {
                    **rows[passed.best],
                    "text": f"{'least' if measured.lower_is_better else 'best'}: {measured.value[passed.best]:.3g}",
                }
            ]
        )
    )
    side = {"align": "right" if late else "left", "dx": -8 if late else 8}
    room = edge == "bottom" and min(row[key] for row in rows if row[key] is not None) - domain[0] > 0.2 * (
        domain[1] - domain[0]
    )
    word = best.mark_text(**side, dy=13 if room else -12, color=INK)
    over += [
        best.mark_point(shape="circle", size=90, color=INK, strokeWidth=1.5).encode(x=x, y=y(key)),
        word.encode(x=x, y=y(key), text="text:N"),
    ]
    if key == "loss":
        for symptom in metrics.health:
            if symptom.kind is Ailment.SPIKE and rows[symptom.began][key] is not None:
                spike = alt.Chart(data([rows[symptom.began]]))
                word = spike.mark_text(text="spike", dx=-7, align="right", color=INK)  # where the loss was low yet
                over.append(word.encode(x=x, y=y(key)))
    return under, over  # fmt: skip


def _settled(rows: list[Row], metrics: RunMetrics, width: int) -> list[Any]:
    """The share of layers that have settled; nothing where that is not known, or of fewer than three checkpoints."""
    similarity = metrics.representation.cka_last
    if not similarity.size or len(rows) < 3:
        return []
    since = {name: e for name, e in zip(metrics.layers, settled_at(similarity), strict=True) if e is not None}
    if not since:
        return []
    for e, row in enumerate(rows):  # of the last checkpoint, where every layer is, what was before
        row["share"] = sum(begun <= min(e, len(rows) - 2) for begun in since.values()) / similarity.shape[1]
        row["which"] = ", ".join(name for name, begun in since.items() if begun == e)

    def y(field: str) -> alt.Y:
        return alt.Y(
            f"{field}:Q", title=None, scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(values=[0, 0.5, 1], format=".0%")
        )

    base = alt.Chart(data(rows)).encode(x=time_axis(metrics), y=y("share"))
    area = base.mark_area(interpolate="step-after", color=VALUE, opacity=0.35, line={"color": VALUE})
    return [panel(rows, metrics, [area], "share", width, 60, "layers that have settled", y=y, tips=["which"])]


TRAINING = Kind(
    "training", "Accuracy or another score, loss, and how many layers have settled, over training", training,
    fits=lambda metrics: bool(courses(metrics)),
)  # fmt: skip
