"""What is said of a run below its figures."""

from typing import Any

from posthoc.analysis.records import RunMetrics, counted
from posthoc.analysis.settling import sentence
from posthoc.analysis.verdicts import DESCRIPTIONS, MEASURES, not_drawn, verdict

TITLES = {"hurst": "Hurst exponent H", "integration": "integration H_eff", "metastability": "metastability M"}


def unit(metrics: RunMetrics) -> str:
    """What the checkpoints are counted in: `epoch`, `step` or `checkpoint`."""
    return counted(metrics.epochs)[0]


def when(metrics: RunMetrics) -> list[int]:
    """The number of every checkpoint in that unit."""
    return counted(metrics.epochs)[1]


def decides(metrics: RunMetrics) -> str:
    """The null that decides about the run's measures."""
    return MEASURES["hurst"].deciding[metrics.protocol.axis]


def short(null: str) -> str:
    """What a deciding null redraws, for a legend."""
    return {"order": "images reordered", "time": "time permuted"}[null]


def finding(metrics: RunMetrics, key: str) -> str:
    """A sentence: whether a measure differs from its deciding null, and in how many epochs; empty without nulls."""
    if not metrics.summary.get("nulls"):
        return ""
    result = verdict(metrics.summary, metrics.protocol.axis, key)
    text = result.sentence(unit(metrics)) if result else not_drawn(key, metrics.protocol.axis)
    return f"{text[0].upper()}{text[1:]}."


def caution(metrics: RunMetrics, key: str) -> str:
    """The finding where it is not that the measure differs in every epoch; else empty."""
    result = verdict(metrics.summary, metrics.protocol.axis, key)
    return "" if result and result.differs == result.epochs else finding(metrics, key)


def cautions(metrics: RunMetrics) -> list[str]:
    """Cautions of both measures."""
    return [text for key in ("integration", "metastability") if (text := caution(metrics, key))]


def without_convergence(metrics: RunMetrics) -> list[str]:
    """What volatility does on series that do not converge, or why there is none."""
    if uneven := metrics.summary.get("uneven"):
        return [f"There is no volatility, for {uneven}."]
    text = sentence(metrics.summary)
    return [f"{text[0].upper()}{text[1:]}."] if text else []


def references(metrics: RunMetrics) -> list[str]:
    """Sentences: what the measures are under the nulls that decide nothing."""
    axis = metrics.protocol.axis
    sentences = []
    for null, measures in metrics.summary.get("nulls", {}).items():
        values = [
            f"{MEASURES[key].symbol} {_number(measures[key]['null_mean'])}"
            for key in ("integration", "metastability")
            if key in measures and MEASURES[key].deciding[axis] != null
        ]
        if values:
            sentences.append(f"For reference, {DESCRIPTIONS[null]}: {', '.join(values)}.")
    return sentences


def _number(value: Any) -> str:
    return "undefined" if value is None or value != value else f"{value:.3f}"
