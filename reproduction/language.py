"""What the page says of a language model that reads what it wrote, from what `reproduction.generated` keeps."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from posthoc.analysis.arrays import FloatArray, mean_finite
from posthoc.analysis.documents import over_documents, signs_flipped
from posthoc.analysis.verdicts import corrected

LEVEL = 0.05
USUAL = ("temperature 0.7", "")
"""What was written by the whole network as networks usually write: beside it stands every other condition."""
MOST = 0.5
"""Share of a difference from which on most of it is said to be there in a control, too."""


@dataclass(frozen=True)
class Condition:
    """What was read, by which network, and what is kept of each document [D]."""

    read: str
    network: str
    documents: dict[str, FloatArray]

    @property
    def name(self) -> str:
        return f"{self.read} ({self.network})" if self.network else self.read

    def mean(self, key: str) -> float:
        return mean_finite(self.documents[key])

    def difference(self, first: str, second: str) -> FloatArray:
        return self.documents[first] - self.documents[second]


def kept_conditions(path: Path) -> list[Condition]:
    """Those of a file that `reproduction.generated` wrote; none where there is no file."""
    content = json.loads(path.read_text()) if path.exists() else []
    return [
        Condition(row["read"], row["network"], {key: np.array(of) for key, of in row["documents"].items()})
        for row in content
    ]


def generated(conditions: Sequence[Condition]) -> dict[str, Any] | None:
    """The tables of the section, and what they come to; None where nothing is kept."""
    if not conditions:
        return None
    usual = next(of for of in conditions if (of.read, of.network) == USUAL)
    others = [of for of in conditions if of is not usual and (of.read == "repetition" or of.read.startswith("temp"))]
    differences = [of.documents["hurst"] - usual.documents["hurst"] for of in others]
    p = corrected([signs_flipped(each, 0).p for each in differences])
    by_itself = [of.difference("metastability", "metastability_time") for of in conditions]
    m = corrected([signs_flipped(each, 0).p for each in by_itself])
    return {
        "documents": len(usual.documents["hurst"]),
        "header": _HEADER,
        "rows": [_row(of) for of in conditions],
        "apart": [_apart(of, usual, q) for of, q in zip(others, p, strict=True)],
        "count": len(others),
        **_verdicts(others, usual, p),
        "m_most": f"{max(abs(float(np.nanmean(each))) for each in by_itself):.4f}",
        "m_rejected": int((m <= LEVEL).sum()),
        "conditions": len(conditions),
        "surprisal": _surprisal(conditions),
    }


_HEADER = (
    "read", "loss", "H", "tokens in another order of time", "shuffled tokens, read again", "untrained", "pure noise", "dH, 95 %", "p",
    "H_s", "shuffled", "M", "another order of time", "shuffled", "pure noise",
)  # fmt: skip


def _row(of: Condition) -> list[str]:
    order = of.difference("hurst", "hurst_shuffle")
    return [
        of.name, f"{of.mean('loss'):.2f}",
        *(f"{of.mean(key):.3f}" for key in ("hurst", "hurst_time", "hurst_shuffle", "hurst_untrained", "hurst_white")),
        _with_interval(order), _p(signs_flipped(order, 0).p),
        *(f"{of.mean(key):.3f}" for key in ("surprisal", "surprisal_shuffle")),
        *(f"{of.mean(f'metastability{null}'):.4f}" for null in ("", "_time", "_shuffle", "_white")),
    ]  # fmt: skip


def _apart(of: Condition, usual: Condition, p: float) -> list[str]:
    """By how much H differs from the usual condition's, and of the controls, whose document begins in the same way."""
    rows = [
        of.documents[key] - usual.documents[key] for key in ("hurst", "hurst_shuffle", "hurst_untrained", "surprisal")
    ]
    return [of.name, _with_interval(rows[0]), _p(p), *map(_with_interval, rows[1:])]


def _verdicts(others: Sequence[Condition], usual: Condition, p: FloatArray) -> dict[str, list[str]]:
    """Conditions by what H does in them, and of those that differ, in which a control differs as much."""
    sides: dict[str, list[str]] = {"lower": [], "higher": [], "alike": [], "filter": [], "tokens": []}
    for of, q in zip(others, p, strict=True):
        apart = of.mean("hurst") - usual.mean("hurst")
        sides["alike" if q > LEVEL else "lower" if apart < 0 else "higher"].append(of.name)
        for side, control in (("filter", "hurst_shuffle"), ("tokens", "hurst_untrained")):
            if q <= LEVEL and (of.mean(control) - usual.mean(control)) / apart >= MOST:
                sides[side].append(of.name)
    return sides


def _surprisal(conditions: Sequence[Condition]) -> list[str]:
    """In which conditions the exponent of surprisal exceeds that of shuffled tokens."""
    differences = [of.difference("surprisal", "surprisal_shuffle") for of in conditions]
    p = corrected([signs_flipped(each, 0).p for each in differences])
    return [
        of.name for of, each, q in zip(conditions, differences, p, strict=True) if q <= LEVEL and np.nanmean(each) > 0
    ]


def _with_interval(values: FloatArray) -> str:
    low, high = over_documents(values, 0)
    return f"{mean_finite(values):+.3f} ({low:+.3f} to {high:+.3f})"


def _p(value: float) -> str:
    return f"{value:.1g}" if value < 0.01 else f"{value:.2f}"
