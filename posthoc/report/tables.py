"""Tables and lines of one run, made once for the terminal, CSV, LaTeX, Markdown and HTML."""

import math
from collections.abc import Sequence
from typing import Any

from posthoc.analysis.records import Correlation, Overall, RunMetrics
from posthoc.analysis.settling import sentence
from posthoc.analysis.verdicts import Outcome, verdict
from posthoc.report.printing import Column, Lines, Table, column
from posthoc.report.words import (
    aside,
    better,
    chosen,
    headlines,
    health,
    left_out,
    listed,
    number,
    references,
    related,
    settled,
    undefined,
)

MOST_LEFT_OUT = 8
"""So many checkpoints that were left out are named in a summary."""


def checkpoints(metrics: RunMetrics) -> Table:
    """One row per checkpoint: every listed measure, the headline ones beside the null that decides about them."""
    columns = [column(metrics.summary.unit)]
    values: list[Sequence[Any]] = [metrics.when]
    for key, measured in metrics.measures.items():
        if measured.listed:
            told = measured.headline or measured is metrics.score
            columns.append(Column(measured.symbol, (key,), measured.digits, spare=0 if told else 2))
            values.append(measured.value.tolist())
            beside = measured.nulls.get(measured.decided_by) if measured.headline else None
            if beside is not None:
                null = measured.decided_by
                if beside.mean.any():  # of a difference it is 0
                    columns.append(Column(null, (f"{key}_{null}_mean",), measured.digits, spare=3))
                    values.append(beside.mean.tolist())
                columns.append(column("p", f"{key}_{null}_p", spare=1))
                values.append(beside.p.tolist())
    columns.append(column("dead", spare=1 if any(checkpoint.dead for checkpoint in metrics.checkpoints) else 4))
    values.append([checkpoint.dead for checkpoint in metrics.checkpoints])
    return Table("Checkpoints", columns, list(zip(*values, strict=True)))


def summary(metrics: RunMetrics) -> Lines:
    """The run in a few labelled lines."""
    run, protocol, integration = metrics.summary, metrics.protocol, metrics.measures.get("integration")
    counted = f", {integration.summary.count} of them with an integration" if integration else ""
    lines = [("caution", run.doubt)] if run.doubt else []
    lines += [("left out", text) for text in left_out(metrics)[:MOST_LEFT_OUT]]
    lines += [("health", text) for text in health(metrics)]
    lines += [("undefined", "; ".join(parts))] if (parts := [*undefined(metrics), *_without_course(metrics)]) else []
    lines += [
        ("protocol", f"{protocol.name}, {protocol.axis} axis, estimator {protocol.estimator}, smoothing {protocol.smooth}, "
                     f"scales {list(metrics.scales)}" + (", calibrated" if protocol.calibrate else "")),
        (f"{run.noun}s", f"{run.epochs}{counted}"),
        *_best(metrics),
        *([("which checkpoint", text)] if (text := chosen(metrics)) else []),
        *(at_last(metrics) if metrics.axis.intervals else _means(metrics)),
        *_stability(metrics),
    ]  # fmt: skip
    if reasons := _reasons(metrics):
        lines.append(("dead units", f"{', '.join(reasons)} (units x {run.noun}s), left out"))
    if any(checkpoint.untrained for checkpoint in metrics.checkpoints):
        lines.append((metrics.at_start, "the checkpoint of step 0 is a control and not part of these figures"))
    return lines + nulls(metrics) + [("not measured", f"{what}: {why}") for why, what in aside(metrics)]


def _means(metrics: RunMetrics) -> Lines:
    """The headline measures over the run."""
    return [(of.symbol, _with_sd(of.summary, " +- ")) for of in headlines(metrics).values() if of.summary.count]


def at_last(metrics: RunMetrics) -> Lines:
    """The measures at the last checkpoint with their intervals, beside the null that decides, and of untrained weights.

    Where each checkpoint has intervals by itself: of language models, whose steps are spaced so that a mean over
    checkpoints would be one of the beginning. Nothing where none of those that runs are compared by has a value there.
    """
    if not any(math.isfinite(measured.value[-1]) for measured in headlines(metrics).values()):
        return []
    run = metrics.summary
    untrained = [e for e, checkpoint in enumerate(metrics.checkpoints) if checkpoint.untrained]
    lines = [("last", f"{run.unit} {metrics.when[-1]}, 95 % intervals {metrics.axis.intervals}")]
    for measured in metrics.measures.values():
        if measured.aside or not (measured.listed or measured.headline) or not measured.low.size:
            continue
        value, low, high = (number(of[-1], measured.digits) for of in (measured.value, measured.low, measured.high))
        known = math.isfinite(measured.low[-1]) and math.isfinite(measured.high[-1])
        parts = [f"{value} ({low} to {high})" if known else value]
        beside = measured.nulls.get(measured.decided_by)
        if beside and math.isfinite(beside.p[-1]):
            null = (
                "" if metrics.nulls[measured.decided_by].value else f"{measured.decided_by} {number(beside.mean[-1])}, "
            )
            parts.append(f"{null}p {beside.p[-1]:.2g}")
        if untrained:
            parts.append(f"{metrics.at_start} {number(measured.value[untrained[0]], measured.digits)}")
        lines.append((measured.symbol, "; ".join(parts)))
    return lines


def _stability(metrics: RunMetrics) -> Lines:
    """The stability index and when its volatility settles; nothing where it was not measured."""
    run, index = metrics.summary, metrics.measures.get("stability_index")
    lines = [("Psi", _with_sd(index.summary, ", sd "))] if index and index.summary.count else []
    lines += [
        (r.symbol, f"{number(r.r)}{_interval_of(r)} over {run.noun}s") for r in related(metrics) if not math.isnan(r.r)
    ]
    ways = "; ".join(f"{way}: {when}" for way, when in settled(metrics).items())
    if not ways or (index and not index.summary.count):
        return lines
    lines.append(("settled", f"{ways} (volatility < {metrics.protocol.threshold})"))
    if run.uneven:
        lines.append(("volatility", f"undefined, for {run.uneven}"))
    if text := sentence(run):
        lines.append(("settled", text))
    return lines


def _without_course(metrics: RunMetrics) -> list[str]:
    """What that relates checkpoints has no value."""
    index = metrics.measures.get("stability_index")
    names = [index.symbol] if index and not index.summary.count else []
    names += [r.symbol for r in related(metrics) if math.isnan(r.r)]
    return [f"{listed(names)} throughout"] if names else []


def _interval_of(r: Correlation) -> str:
    """Of a correlation, where it has one."""
    known = math.isfinite(r.low) and math.isfinite(r.high)
    return f", 95 % interval {number(r.low)} to {number(r.high)}" if known else ", without an interval"


def _best(metrics: RunMetrics) -> Lines:
    """By what the run is judged; nothing where it is said elsewhere why by nothing."""
    run, score = metrics.summary, metrics.score
    if score is not None:
        value = f"{number(metrics.best)} ({run.accuracy_source}) at {run.unit} {run.best_epoch}"
        return [(f"best {score.symbol}", f"{value}{better(score)}")]
    if metrics.measures["accuracy"].aside:
        return []
    if not metrics.trained.any():
        return [("best accuracy", "none: no checkpoint is trained")]
    return [
        ("best accuracy", "none: no accuracy is recorded in the checkpoints, and none could be measured on the probe")
    ]


def _with_sd(overall: Overall, between: str) -> str:
    return f"{number(overall.mean)}{between}{number(overall.sd)}"


def _reasons(metrics: RunMetrics) -> list[str]:
    """Why units have no exponent, with the count of each over the checkpoints."""
    counts: dict[str, int] = {}
    for checkpoint in metrics.checkpoints:
        for why, count in checkpoint.reasons.items():
            counts[why] = counts.get(why, 0) + count
    return [f"{count} {why}" for why, count in counts.items()]


def nulls(metrics: RunMetrics) -> Lines:
    """What the deciding nulls say of the headline measures, and beside which values the references put them."""
    if not any(measured.nulls for measured in metrics.measures.values()):
        return []
    lines, run = [], metrics.summary
    for key, measured in headlines(metrics).items():
        if measured.decided_by and measured.summary.count:
            result = verdict(metrics, key)
            rate = "" if result.outcome is Outcome.NOT_DRAWN else " (false discovery rate 5 %)"
            lines.append((f"null: {result.null}", result.sentence(run.noun) + rate))
    return lines + [(f"reference: {null}", text) for null, text in references(metrics, 4)]
