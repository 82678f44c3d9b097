"""What is said of a run: its verdicts and cautions, in sentences, from what its file holds."""

from posthoc.analysis.records import Measured, RunMetrics
from posthoc.analysis.settling import sentence
from posthoc.analysis.verdicts import Outcome, verdict
from posthoc.report.printing import cell


def headlines(metrics: RunMetrics) -> dict[str, Measured]:
    """The measures that a run is compared by."""
    return {key: measured for key, measured in metrics.measures.items() if measured.headline}


def short(metrics: RunMetrics, null: str) -> str:
    """What a null redraws, for a legend."""
    return metrics.nulls[null].short if null in metrics.nulls else null


def finding(metrics: RunMetrics, key: str) -> str:
    """A sentence: whether a measure differs from its deciding null, and in how many checkpoints; empty without nulls."""
    if not any(measured.nulls for measured in metrics.measures.values()) or not metrics.measures[key].decided_by:
        return ""
    return sentence_of(verdict(metrics, key).sentence(metrics.summary.unit))


def sentence_of(text: str) -> str:
    """With a capital and a full stop."""
    return f"{text[0].upper()}{text[1:]}." if text else ""


def caution(metrics: RunMetrics, key: str) -> str:
    """The finding where it is not that the measure differs in every checkpoint; else empty."""
    result = verdict(metrics, key)
    everywhere = result.outcome is Outcome.DIFFERS and result.differs == result.epochs
    return "" if everywhere else finding(metrics, key)


def cautions(metrics: RunMetrics) -> list[str]:
    """Cautions of the headline measures."""
    return [text for key in headlines(metrics) if (text := caution(metrics, key))]


def without_convergence(metrics: RunMetrics) -> list[str]:
    """What volatility does on series that do not converge, or why there is none."""
    if metrics.summary.uneven:
        return [f"There is no volatility, for {metrics.summary.uneven}."]
    return [sentence_of(text)] if (text := sentence(metrics.summary)) else []


def references(metrics: RunMetrics, digits: int = 3) -> list[tuple[str, str]]:
    """Of every null that decides nothing its name, and what the headline measures are under it."""
    lines = []
    for null, words in metrics.nulls.items():
        values = [
            f"{measured.symbol} {number(measured.summary.nulls[null].mean, digits)}"
            for measured in headlines(metrics).values()
            if null in measured.summary.nulls and measured.decided_by != null
        ]
        if values:
            lines.append((null, f"{', '.join(values)} with {words.words}"))
    return lines


def number(value: float | None, digits: int = 4) -> str:
    """A number in a sentence.

    >>> number(0.12345), number(float("nan")), number(-0.00001)
    ('0.1235', 'undefined', '0.0000')
    """
    return "undefined" if value is None or value != value else cell(value, digits)
