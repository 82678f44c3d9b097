"""What the draws of a null allow to be said of a measure: tests, their family, and verdicts, of which words come last."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from posthoc.analysis.arrays import FloatArray

if TYPE_CHECKING:
    from posthoc.analysis.records import RunMetrics
    from posthoc.analysis.runs import Run

FALSE_DISCOVERIES = 0.05


class Outcome(Enum):
    """What is known of a measure beside a null."""

    DIFFERS = "differs"
    """In at least one checkpoint."""
    INDISTINGUISHABLE = "indistinguishable"
    UNDETERMINED = "undetermined"
    """Too few draws to tell."""
    NOT_DRAWN = "not drawn"


def two_sided_p(value: float, drawn: ArrayLike, stages: Sequence[int] = ()) -> float:
    """Twice the smaller tail of a value among the draws [B] of its null, drawn in stages that end at `stages` (B).

    p of a tail is (1 + G) / (n + 1), G being how many of n draws lie as far out as the value or farther. Where none
    does, more may be drawn, for whatever reason; a tail that a draw has reached is closed, and keeps the p of that
    stage. So P(p <= a) <= a holds when drawing may stop at any stage, whatever made it stop there (with one exceedance
    to wait for, the rule of Besag & Clifford 1991 in batches), and with one stage p is the ordinary one. Ranks make it
    right on skewed nulls, too. NaN without draws or value.

    >>> two_sided_p(3.0, [1.0, -1.0, 0.5, -0.5])
    0.4
    >>> two_sided_p(3.0, [1.0] * 9 + [4.0] + [1.0] * 9, stages=(9, 19))
    0.2
    """
    drawn = np.asarray(drawn, dtype=np.float64)
    if not math.isfinite(value) or not np.isfinite(drawn).any():
        return math.nan
    return min(1.0, 2 * min(_tail_p(drawn, beyond, stages) for beyond in (drawn >= value, drawn <= value)))


def _tail_p(drawn: FloatArray, beyond: NDArray[np.bool_], stages: Sequence[int]) -> float:
    """drawn, beyond: [B]; a draw without a value counts as none."""
    p = 1.0
    for end in stages or (len(drawn),):
        n, reached = int(np.isfinite(drawn[:end]).sum()), int(beyond[:end].sum())
        p = (1 + reached) / (n + 1)
        if reached:
            break
    return p


def least_p(draws: int) -> float:
    """The smallest two-sided p that so many draws can give.

    >>> least_p(39)
    0.05
    """
    return min(1.0, 2 / (draws + 1))


def rejected(p: ArrayLike, level: float = FALSE_DISCOVERIES) -> NDArray[np.bool_]:
    """Which tests of a family are rejected at this false discovery rate (Benjamini & Hochberg 1995); never one of p NaN."""
    adjusted = corrected(p)
    return np.asarray(np.where(np.isnan(adjusted), False, adjusted <= level * (1 + 1e-9)), dtype=bool)


def corrected(p: ArrayLike) -> FloatArray:
    """The p of a family, each as the false discovery rate at which it would be rejected; NaN stays and is not counted."""
    p = np.asarray(p, dtype=np.float64)
    result = np.full(p.shape, np.nan)
    there = np.isfinite(p)
    order = np.argsort(p[there], axis=None)
    # scipy.stats has this, too, but takes a second to import
    adjusted = p[there][order] * (len(order) / np.arange(1, len(order) + 1))
    ordered = np.minimum.accumulate(adjusted[::-1])[::-1].clip(0, 1)
    result[there] = ordered[np.argsort(order)]
    return result


def worth_drawing(p: ArrayLike, draws: ArrayLike, most: int) -> NDArray[np.bool_]:
    """The tests of a family that are not rejected only for want of draws, [m] each, and that `most` draws could decide.

    Those whose value lies beyond every draw so far, are not rejected, and would be if the rest of so many draws did not
    reach it either.
    """
    p, draws = np.asarray(p, dtype=np.float64), np.asarray(draws)
    waiting = wanting(p, draws)
    best = np.where(waiting, np.minimum(p, least_p(most)), p)
    return np.asarray(waiting & rejected(best) & (draws < most))


def wanting(p: ArrayLike, draws: ArrayLike) -> NDArray[np.bool_]:
    """The tests of a family that are not rejected though the value lies beyond every draw: too few were drawn, [m]."""
    p, draws = np.asarray(p, dtype=np.float64), np.asarray(draws)
    with np.errstate(invalid="ignore"):
        beyond = p <= np.minimum(1.0, 2 / (draws + 1)) * (1 + 1e-9)
    return np.asarray(beyond & ~rejected(p))


@dataclass(frozen=True)
class Verdict:
    """What a run's checkpoints say of a measure against a null.

    symbol, words: of the measure, and of the null; differs, wanting, epochs: in how many checkpoints it differs, lacks
    draws to tell, of how many in which the null was drawn; count: how many have a value; draws: the most that any
    checkpoint has; decides: whether this null is the one that decides; value: see `NullWords`; undefined: whether the measure has no value
    in any trained checkpoint; untrained: whether it has one in others.
    """

    symbol: str
    null: str
    words: str
    differs: int = 0
    wanting: int = 0
    epochs: int = 0
    count: int = 0
    draws: int = 0
    decides: bool = True
    value: str = ""
    undefined: bool = False
    untrained: bool = False

    @property
    def outcome(self) -> Outcome:
        """What is known over all checkpoints."""
        if not self.epochs:
            return Outcome.NOT_DRAWN
        if self.differs:
            return Outcome.DIFFERS
        return Outcome.UNDETERMINED if self.wanting else Outcome.INDISTINGUISHABLE

    @property
    def mostly(self) -> bool | None:
        """Whether the measure differs in most checkpoints; None where draws are lacking to say, or there are none."""
        if not self.epochs or (self.differs * 2 <= self.epochs < (self.differs + self.wanting) * 2):
            return None
        return self.differs * 2 > self.epochs

    @property
    def of_one_order(self) -> bool:
        """Whether it may be the one order that all checkpoints see their samples in that differs from others."""
        return self.null == "order" and bool(self.mostly)

    @property
    def than(self) -> str:
        """What the measure is compared with, in words."""
        return self.value or f"that of {self.words}"

    @property
    def of_documents(self) -> bool:
        """Whether the null is of the signs of documents' differences, of which there are as many as documents allow."""
        return bool(self.value)

    @property
    def _drawn(self) -> str:
        """Of a null that was drawn in some checkpoints only."""
        return f"; that null was drawn in {self.epochs} of {self.count}" if self.epochs < self.count else ""

    def _why_not_drawn(self, unit: str) -> str:
        """Why the null was drawn in no trained checkpoint."""
        if self.undefined:
            return "only checkpoints of step 0 have it" if self.untrained else f"it is undefined in every {unit}"
        if self.of_documents:
            return "signs are flipped of two documents or more, with differences other than 0"
        return "that null was not drawn"

    def sentence(self, unit: str = "epoch") -> str:
        """In words, without a full stop."""
        than = self.than
        lacking, ways = ("documents", "ways to flip their signs") if self.of_documents else ("draws", "draws")
        few = (
            f"too few {lacking}{f' in {self.wanting} of {self.epochs} {unit}s' if self.epochs > 1 else ''} "
            f"({self.draws} {ways}: no p below {least_p(self.draws):.2g})"
        )
        match self.outcome:
            case Outcome.NOT_DRAWN:
                return f"whether {self.symbol} differs from {than} is not known: {self._why_not_drawn(unit)}"
            case Outcome.UNDETERMINED:
                return f"whether {self.symbol} differs from {than} cannot be told: {few}{self._drawn}"
            case Outcome.INDISTINGUISHABLE:
                where = f"in any of {self.epochs} {unit}s" if self.epochs > 1 else f"in the only {unit} that has it"
                return f"{self.symbol} cannot be distinguished from {than} {where}{self._drawn}"
        text = f"{self.symbol} differs from {than} in {self.differs} of {self.epochs} {unit}s{self._drawn}"
        if self.of_one_order and self.epochs > 1:
            text += ", which all see one order: it may be that order"
        return f"{text}; {few}" if self.wanting else text


def verdict(run: "RunMetrics | Run", key: str, null: str = "") -> Verdict:
    """A measure's verdict in a run, against its deciding null or another."""
    measured = run.measures[key]
    null = null or measured.decided_by
    known = run.nulls.get(null)
    result = Verdict(
        measured.symbol, null, known.words if known else null, value=known.value if known else "",
        undefined=not measured.summary.count, untrained=bool(np.isfinite(measured.value).any()),
    )  # fmt: skip
    if of := measured.summary.nulls.get(null):
        decides = null == measured.decided_by
        result = replace(
            result, differs=of.differs, wanting=of.wanting, epochs=of.epochs, count=measured.summary.count,
            draws=of.draws, decides=decides,
        )  # fmt: skip
    return result
