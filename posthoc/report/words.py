"""What is said of a run below its figures."""

from posthoc.analysis.nulls import DESCRIPTIONS
from posthoc.analysis.records import RunMetrics, counted

TITLES = {"hurst": "Hurst exponent H", "integration": "integration H_eff", "metastability": "metastability M"}
STRICTER = {"image": ("order", "channel"), "depth": ("time", "phase"), "epoch": ("time", "phase")}
"""Of each axis, the nulls of H and of M that keep more of the data than pure noise does."""


def unit(metrics: RunMetrics) -> str:
    """What the checkpoints are counted in: `epoch`, `step` or `checkpoint`."""
    return counted(metrics.epochs)[0]


def when(metrics: RunMetrics) -> list[int]:
    """The number of every checkpoint in that unit."""
    return counted(metrics.epochs)[1]


def stricter(metrics: RunMetrics) -> tuple[str, str, str]:
    """The stricter null of H, of H_eff and of M on the run's axis."""
    hurst, phases = STRICTER[metrics.protocol.axis]
    return hurst, hurst, phases


def short(null: str) -> str:
    """What a null redraws, for a legend."""
    return {"order": "images reordered", "channel": "each channel reordered", "time": "time permuted",
            "phase": "phases randomised"}[null]  # fmt: skip


def _found(metrics: RunMetrics, measure: str, null: str) -> tuple[int, int]:
    """In how many epochs a measure is told from a null, and of how many."""
    found = metrics.summary.get("nulls", {}).get(null, {}).get(measure, {})
    return found.get("epochs_told_apart", 0), found.get("epochs", 0)


def told_apart(metrics: RunMetrics, measure: str, null: str) -> str:
    """In how many epochs a measure is told from a null, in words; empty without draws."""
    told, epochs = _found(metrics, measure, null)
    return f"in {told} of {epochs} {unit(metrics)}s" if epochs else ""


def caution(metrics: RunMetrics, measure: str, null: str) -> str:
    """A sentence where a measure cannot be told from a null in every epoch; empty where it can."""
    told, epochs = _found(metrics, measure, null)
    if told == epochs:
        return ""
    how = f"in {epochs - told} of {epochs} {unit(metrics)}s" if told else f"in any of {epochs} {unit(metrics)}s"
    symbol = {"hurst": "H", "integration": "H_eff", "metastability": "M"}[measure]
    return f"{symbol} cannot be told from that of {DESCRIPTIONS[null]} {how}."


def beside_noise(metrics: RunMetrics) -> list[str]:
    """Cautions of both measures against the strictest null there is."""
    _, null, phases = stricter(metrics)
    return [text for text in (caution(metrics, "integration", null), caution(metrics, "metastability", phases)) if text]
