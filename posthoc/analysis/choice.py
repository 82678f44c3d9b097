"""Which checkpoint is best, and which others cannot be told from it: by the loss of every sample, paired."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import numpy as np
from numpy.typing import NDArray
from scipy import special

from posthoc.analysis.arrays import FloatArray
from posthoc.typed import Array, Range

if TYPE_CHECKING:
    from posthoc.store import Activations

LAST = 5
"""The last checkpoints whose spread is said."""
LEVEL = 0.05


@dataclass(frozen=True, eq=False)
class Choice:
    """The checkpoint of the least loss on the probe, beside the others.

    by: what the loss is called; samples: over how many; best: its place in the run; difference: the loss of each
    checkpoint less that of the best, [E], with the ends of its interval over samples, paired, which together hold at
    95 %; NaN of those that are not trained. last, last_sd: mean loss of the last few (`count`) and its standard deviation.
    """

    by: str
    samples: Annotated[int, Range(0)]
    best: Annotated[int, Range(0)]
    loss: float
    difference: Annotated[FloatArray, Array(("E",), full=True)]
    low: Annotated[FloatArray, Array(("E",), full=True)]
    high: Annotated[FloatArray, Array(("E",), full=True)]
    last: float
    last_sd: float
    count: Annotated[int, Range(0)]

    @property
    def alike(self) -> list[int]:
        """The checkpoints that cannot be told from the best, that among them."""
        return np.flatnonzero(self.low <= 0).tolist()


def choice(activations: "Activations", trained: NDArray[np.bool_]) -> Choice | None:
    """The best of the trained checkpoints [E]; None where no loss of samples is recorded, or of fewer than two."""
    if "loss" not in activations.behaviours or not trained.any():
        return None
    losses = np.stack([activations.behaviour("loss", e) for e in range(len(activations))]).astype(np.float64)
    return chosen(losses, trained, activations.recording.provenance.loss)


def chosen(losses: FloatArray, trained: NDArray[np.bool_], by: str) -> Choice | None:
    """Of the losses [E, N] of checkpoints, some of them `trained` [E].

    The level of the intervals is shared among all pairs of checkpoints, for any could have come out best (Bonferroni). Samples whose loss is not finite at some
    checkpoint are left out of all, and checkpoints without any finite loss are no candidates.
    """
    rows = np.flatnonzero(trained & np.isfinite(losses).any(axis=1))
    kept = losses[np.ix_(rows, np.flatnonzero(np.isfinite(losses[rows]).all(axis=0)))]
    R, N = kept.shape
    if not R or N < 2:
        return None
    means = kept.mean(axis=1)
    best = int(means.argmin())
    differences = kept - kept[best]
    quantile = float(special.stdtrit(N - 1, 1 - LEVEL / max(R * (R - 1), 1)))
    reach = quantile * differences.std(axis=1, ddof=1) / math.sqrt(N)
    difference, low, high = np.full((3, len(losses)), np.nan)
    difference[rows] = means - means[best]
    low[rows], high[rows] = difference[rows] - reach, difference[rows] + reach
    last = means[-LAST:]
    sd = float(last.std(ddof=1)) if len(last) > 1 else math.nan
    return Choice(by, N, int(rows[best]), float(means[best]), difference, low, high, float(last.mean()), sd, len(last))
