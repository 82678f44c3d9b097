"""Numbers, intervals and correlations as the page shows them."""

import math
from collections.abc import Iterable, Sequence

from posthoc.analysis.intervals import correlation_over_epochs
from posthoc.analysis.records import RunMetrics
from posthoc.analysis.responses import Spread
from reproduction.kept import correlation

FIELDS = "integration_metastability"
CORRELATIONS = {FIELDS: ("integration", "metastability"), "stability_index_accuracy": ("stability_index", "accuracy")}
"""Those of the printed table, and between which measures they are, z-scored or not."""


def number(value: float | None, digits: int = 3) -> str:
    """A number, or a dash where there is none.

    >>> number(0.12345), number(None), number(float("nan"), 1)
    ('0.123', '-', '-')
    """
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def times(factor: float, value: float | None) -> float | None:
    """A product, or None where there is no value."""
    return None if value is None else factor * value


def interval(value: float | None, ends: Sequence[float | None], digits: int = 3, inner: int = 2) -> str:
    """A number and, where there is one, its interval in brackets."""
    low, high = ends
    return number(value, digits) + ("" if low is None else f" ({number(low, inner)} to {number(high, inner)})")


def extent(values: Iterable[float | None], digits: int = 3) -> str:
    """From the least to the greatest.

    >>> extent([0.5, None, 0.25], 2)
    '0.25 to 0.50'
    """
    known = [value for value in values if value is not None and not math.isnan(value)]
    return f"{min(known):.{digits}f} to {max(known):.{digits}f}" if known else "-"


def listed(names: Sequence[str]) -> str:
    """Names in a row.

    >>> listed(["a", "b", "c"]), listed([])
    ('a, b and c', 'none')
    """
    return " and ".join(part for part in (", ".join(names[:-1]), *names[-1:]) if part) or "none"


def spread(control: Spread | None, digits: int = 3, sd: bool = True) -> str:
    """What an audit's control gives: mean ± sd, or a dash."""
    if control is None:
        return "-"
    return f"{control.mean:.{digits}f}" + (f" ± {control.sd:.{digits}f}" if sd else "")


def over_epochs(metrics: RunMetrics, name: str) -> tuple[float | None, float | None]:
    """The 95 % interval of a correlation, from the epochs that are kept; None where there is none."""
    low, high = correlation_over_epochs(*(metrics.column(key)[metrics.trained] for key in CORRELATIONS[name]))
    return (None, None) if math.isnan(low) else (low, high)


def with_interval(metrics: RunMetrics, name: str) -> str:
    """A correlation and its interval."""
    return interval(correlation(metrics, name), over_epochs(metrics, name))
