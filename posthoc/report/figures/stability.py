"""The stability index, its volatility with the convergence signal, and accuracy or another score."""

from typing import Any

import altair as alt

from posthoc.analysis.records import RunMetrics
from posthoc.analysis.runs import in_percent
from posthoc.report.figures.composed import vconcat
from posthoc.report.figures.figure import Figure, Kind, data, keyed, number, panel, rows_of, time_axis, y_axis
from posthoc.report.theme import INK, MUTED, SECOND, THIRD, VALUE
from posthoc.report.words import better, cautions, settled, without_convergence

WAYS = {"retrospective": "", "causal": "_causal"}
THRESHOLD = "threshold"
KEYS, COLOURS, DASHES = [*WAYS, THRESHOLD], [VALUE, SECOND, MUTED], [[1, 0], [5, 3], [2, 2]]
"""What the legend names, and how it looks."""
FIELDS = {"psi": "stability_index", "volatility": "volatility"}


def stability(metrics: RunMetrics, epoch: int | None, width: int) -> Figure:
    """The stability index, its volatility with the convergence signal, and accuracy or another score."""
    rows = rows_of(metrics)
    columns = {f"{stem}_{way}": f"{key}{suffix}" for stem, key in FIELDS.items() for way, suffix in WAYS.items()}
    score = metrics.score
    if score is not None:
        columns = {"score": metrics.summary.judged_by, **columns}
    for name, key in columns.items():
        for row, value in zip(rows, metrics.column(key), strict=True):
            row[name] = number(value)
    unit, threshold = metrics.summary.unit, metrics.protocol.threshold
    settles = any(at is not None for at in metrics.summary.convergence.values())
    limit = keyed(alt.Chart(data([{"y": threshold}])).mark_rule(strokeDash=[2, 2]), THRESHOLD, KEYS, COLOURS).encode(
        y=y_axis("y"), strokeDash=_dashes(), tooltip=alt.Tooltip("y:Q", title=THRESHOLD)
    )
    known = [row[f"volatility_{way}"] for row in rows for way in WAYS if row[f"volatility_{way}"] is not None]
    roomy = alt.Scale(domain=[0, round(1.35 * max([*known, threshold]), 4)], nice=False)
    vertical, names = _flags(metrics)
    line = alt.Chart(data(rows)).transform_filter("!datum.untrained").mark_line(
        color=THIRD, point={"size": 22, "filled": True, "color": THIRD}
    ).encode(x=time_axis(metrics), y=y_axis("score"))  # fmt: skip
    panels = [
        panel(rows, metrics, _curves(rows, metrics, "psi"), "psi_retrospective", width, 130, "stability index Psi", 0),
        panel(rows, metrics, [limit, *_curves(rows, metrics, "volatility"), *vertical, *names], "volatility_retrospective",
              width, 140, f"volatility of Psi over {metrics.protocol.window} {metrics.summary.noun}s", y=lambda field: y_axis(field).scale(roomy)),
    ]  # fmt: skip
    if score is not None:
        title = f"{score.symbol} ({'share, ' if score.symbol == 'accuracy' and not in_percent(score.value) else ''}{metrics.summary.accuracy_source})"
        panels.append(panel(rows, metrics, [line, *vertical], "score", width, 100, f"{title}{better(score)}"))
    signals = [f"{way}: {when}" for way, when in settled(metrics).items()]
    return Figure(
        "stability",
        f"Volatility settles below {threshold} ({'; '.join(signals)})"
        + ("" if score is None else f"; {score.symbol} is best at {unit} {metrics.summary.best_epoch}"),
        "Psi is the weighted mean of the z-scores of H_eff and M, volatility its rolling standard deviation; training "
        "counts as settled where it has been below the threshold, the dotted line, at three checkpoints in a row.",
        " ".join([
            f"The retrospective curve uses z-scores over the whole run, so at every {metrics.summary.noun} it knows the future; only the causal "
            "one could have stopped the training.",
            *(without_convergence(metrics) if metrics.summary.uneven or settles else []),
        ]),
        vconcat(*panels, spacing=14),
        verdicts=cautions(metrics),
    )  # fmt: skip


def _curves(rows: list[dict[str, Any]], metrics: RunMetrics, stem: str) -> list[Any]:
    """Both ways of one quantity."""
    marks = []
    for way in WAYS:
        line = alt.Chart(data(rows)).mark_line(point={"size": 22, "filled": True})
        line = line.encode(x=time_axis(metrics), y=y_axis(f"{stem}_{way}"), strokeDash=_dashes())
        marks.append(keyed(line, way, KEYS, COLOURS))
    return marks


def _dashes() -> alt.StrokeDash:
    """How lines are dashed, which the legend shows."""
    return alt.StrokeDash(
        "key:N", scale=alt.Scale(domain=KEYS, range=DASHES), legend=alt.Legend(title=None, symbolType="stroke")
    )


def _flags(metrics: RunMetrics) -> tuple[list[Any], list[Any]]:
    """Rules where volatility has settled, and what they are called."""
    flagged = {way: at for way in WAYS if (at := metrics.summary.convergence[way]) is not None}
    if not flagged:
        return [], []
    rows = [{"at": at, "way": way, "text": f"settled, {way}"} for way, at in flagged.items()]
    middle = (metrics.when[0] + metrics.when[-1]) / 2
    flags = alt.Chart(data(rows)).encode(
        x=alt.X("at:Q"), color=alt.Color("way:N", scale=alt.Scale(domain=KEYS, range=COLOURS))
    )
    names = []
    for way, at in flagged.items():
        side = {"align": "left", "dx": 4} if at < middle else {"align": "right", "dx": -4}
        text = (
            alt.Chart(data(rows))
            .mark_text(**side, baseline="top", color=INK)
            .transform_filter(f"datum.way === '{way}'")
        )
        names.append(text.encode(x="at:Q", y=alt.value(2 if way == "retrospective" else 16), text="text:N"))
    return [flags.mark_rule(strokeWidth=1.5)], names


STABILITY = Kind(
    "stability",
    "The stability index, its volatility with the convergence signal, and accuracy or another score",
    stability,
    fits=lambda metrics: (
        {"volatility", "volatility_causal"} <= metrics.measures.keys() and int(metrics.trained.sum()) > 1
    ),
)
