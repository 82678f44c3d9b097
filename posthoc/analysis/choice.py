"""Which checkpoint is best, and which others cannot be told from it: by the loss of every sample, paired."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import numpy as np
import scipy
from numpy.typing import NDArray

from posthoc.analysis.arrays import FloatArray
from posthoc.typed import Array, Range

if TYPE_CHECKING:
    from posthoc.store import Activations

LAST = 5
"""The last checkpoints whose spread is said."""
LEVEL = 0.05


@dataclass(frozen=True)
class Average:
    """The mean of the weights of some checkpoints: of how many (count), which end at a place in the run (at), its loss, and
    by how much that differs from the loss of the best checkpoint, with the ends of its interval over samples, paired."""

    count: Annotated[int, Range(2)]
    at: Annotated[int, Range(0)]
    loss: float
    difference: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Choice:
    """The checkpoint of the least loss on the probe, beside the others.

    by: what the loss is called; samples: over how many; best: its place in the run; difference: the loss of each
    checkpoint less that of the best, [E], with the ends of its interval over samples, paired, which together hold at
    95 %; NaN of those that are not trained. last, last_sd: mean loss of the last few (`count`) and its standard deviation; average: of the means of weights
    that were replayed the best one, where its loss is lower than that of the best checkpoint.
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
    average: Average | None = None

    @property
    def alike(self) -> list[int]:
        """The checkpoints that cannot be told from the best, that among them."""
        return np.flatnonzero(self.low <= 0).tolist()


def choice(activations: "Activations", trained: NDArray[np.bool_]) -> Choice | None:
    """The best of the trained checkpoints [E]; None where no loss of samples is recorded, or of fewer than two."""
    if "loss" not in activations.behaviours or not trained.any():
        return None
    losses = activations.behaviour("loss").astype(np.float64)
    averages = {
        count: activations.behaviour_of_average(count, "loss").astype(np.float64) for count in activations.averaged
    }
    return chosen(losses, trained, activations.recording.provenance.loss, averages)


def chosen(
    losses: FloatArray, trained: NDArray[np.bool_], by: str, averages: Mapping[int, FloatArray] | None = None
) -> Choice | None:
    """Of the losses [E, N] of checkpoints, some of them `trained` [E]; averages: losses [E, N] of means of weights by the
    number of checkpoints.

    The level of the intervals is shared among all pairs of checkpoints, for any could have come out best (Bonferroni). Samples whose loss is not finite at some
    checkpoint are left out of all. Checkpoints at which most of those are not that are finite at any are no candidates: for
    their sake hardly a sample would be left.
    """
    finite = np.isfinite(losses) & trained[:, None]
    counts = finite.sum(axis=1)
    rows = np.flatnonzero((counts > 0) & (2 * counts >= finite.any(axis=0).sum()))
    columns = np.flatnonzero(finite[rows].all(axis=0))
    kept = losses[np.ix_(rows, columns)]
    R, N = kept.shape
    if not R or N < 2:
        return None
    means = kept.mean(axis=1)
    best = int(means.argmin())
    differences = kept - kept[best]
    quantile = float(scipy.special.stdtrit(N - 1, 1 - LEVEL / max(R * (R - 1), 1)))
    reach = quantile * differences.std(axis=1, ddof=1) / math.sqrt(N)
    difference, low, high = np.full((3, len(losses)), np.nan)
    difference[rows] = means - means[best]
    low[rows], high[rows] = difference[rows] - reach, difference[rows] + reach
    last = means[-LAST:]
    sd = float(last.std(ddof=1)) if len(last) > 1 else math.nan
    average = _best_average({count: of[:, columns] for count, of in (averages or {}).items()}, trained, kept[best], R)
    return Choice(
        by, N, int(rows[best]), float(means[best]), difference, low, high, float(last.mean()), sd, len(last), average
    )


def _best_average(
    averages: Mapping[int, FloatArray], trained: NDArray[np.bool_], best: FloatArray, R: int
) -> Average | None:
    """Of means [E, N] that of the least loss, where it is below that of the best checkpoint [N] of R; the level is shared
    among all pairs of a mean and a checkpoint."""
    known = [
        (float(losses[e].mean()), count, e)
        for count, losses in averages.items()
        for e in np.flatnonzero(trained & np.isfinite(losses).all(axis=1)).tolist()
    ]
    if not known or min(known)[0] >= best.mean():
        return None
    loss, count, e = min(known)
    differences, N = averages[count][e] - best, len(best)
    quantile = float(scipy.special.stdtrit(N - 1, 1 - LEVEL / (2 * R * len(known))))
    middle, reach = float(differences.mean()), quantile * float(differences.std(ddof=1)) / math.sqrt(N)
    return Average(count, e, loss, middle, middle - reach, middle + reach)
