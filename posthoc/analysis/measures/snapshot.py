"""What a file holds of one checkpoint, as measures of checkpoints read it, and what such a measure gives."""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from posthoc.analysis.arrays import FloatArray
from posthoc.analysis.measures.measure import Measure
from posthoc.analysis.records import Aside
from posthoc.streams import stream

if TYPE_CHECKING:
    from posthoc.store import Activations

UPPER = 0.975
Z = float(special.ndtri(UPPER))
GROUPS = 20
"""Of samples that are left out one after another, for a standard error."""
REACH = float(special.stdtrit(GROUPS - 1, UPPER))
"""Standard errors of such groups from a value to the ends of its 95 % interval."""


class Replay:
    """A run's file, read checkpoint by checkpoint; the one at hand, the one before it and the last are kept in memory.

    signal: which of the file's signals stands for the layers; seed, draws: of random numbers, how many of each null.
    """

    def __init__(self, activations: "Activations", signal: str, seed: int = 0, draws: int = 0) -> None:
        self.activations, self.signal, self.seed, self.draws = activations, signal, seed, draws
        self._kept: dict[int, Snapshot] = {}

    def __len__(self) -> int:
        return len(self.activations)

    def at(self, row: int) -> "Snapshot":
        """The checkpoint in a row of the file."""
        if row not in self._kept:
            near = {row - 1, row + 1, len(self) - 1}
            self._kept = {e: kept for e, kept in self._kept.items() if e in near} | {row: Snapshot(self, row)}
        return self._kept[row]

    def has(self, *names: str) -> bool:
        """Whether the file has all of these of what the networks said of each sample."""
        return set(names) <= set(self.activations.behaviours)

    @functools.cached_property
    def labels(self) -> NDArray[np.int64] | None:
        """The class of each sample, [N]; None where they have none."""
        return self.activations.labels if self.activations.labelled else None

    @functools.cached_property
    def correct(self) -> NDArray[np.bool_]:
        """Whether each checkpoint is right about each sample, [E, N]."""
        return self.activations.behaviour("correct") > 0


class Snapshot:
    """What a file holds of the checkpoint in a row of it, each part read once."""

    def __init__(self, replay: Replay, row: int) -> None:
        self.replay, self.row = replay, row

    @property
    def previous(self) -> "Snapshot | None":
        """The checkpoint before."""
        return self.replay.at(self.row - 1) if self.row else None

    @functools.cached_property
    def prediction(self) -> NDArray[np.int64]:
        """The class of the largest score of each sample, [N]."""
        return self.replay.activations.behaviour("prediction", self.row)

    @functools.cached_property
    def logits(self) -> FloatArray:
        """The scores of the classes, [N, K]; of one score for two classes 0 and that."""
        scores = self.replay.activations.behaviour("logits", self.row).astype(np.float64)
        return np.pad(scores, ((0, 0), (1, 0))) if scores.shape[1] == 1 else scores

    @functools.cached_property
    def log_probabilities(self) -> FloatArray:
        """log p of the classes, [N, K]; NaN for samples with a score that is not finite."""
        finite = np.isfinite(self.logits).all(axis=1, keepdims=True)
        scores = np.where(finite, self.logits, np.nan)
        return np.asarray(scores - special.logsumexp(scores, axis=1, keepdims=True))


@dataclass(frozen=True, eq=False)
class Estimate:
    """What a measure is of one checkpoint: its value with the ends of its 95 % interval, and of each layer [L].

    drawn: by null, what it is of its draws [B].
    """

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    by_layer: FloatArray | None = None
    by_layer_low: FloatArray | None = None
    by_layer_high: FloatArray | None = None
    drawn: Mapping[str, FloatArray] = field(default_factory=dict)


def of_checkpoint(
    key: str, symbol: str, title: str, about: str, of: Callable[[Snapshot], Estimate | Aside], **more: Any
) -> Measure:
    """A measure of checkpoints that is measured only where it is asked for."""
    return Measure(key, symbol, title, about, of_checkpoint=of, default=False, headline=False, listed=False, **more)


def over_samples(values: NDArray[Any]) -> Estimate:
    """The mean over samples of values [N], with its interval over fresh samples; NaN samples are left out.

    Of shares, of values 0 and 1, the interval is Wilson's (1927), which is none of width 0; else Student's.

    >>> estimate = over_samples(np.zeros(96))
    >>> estimate.value, round(estimate.low, 3), round(estimate.high, 3)
    (0.0, 0.0, 0.038)
    """
    finite = values[np.isfinite(values)].astype(np.float64)
    N = len(finite)
    if not N:
        return Estimate()
    mean = float(finite.mean())
    if np.isin(finite, (0.0, 1.0)).all():
        middle, reach = mean + Z**2 / (2 * N), Z * math.sqrt(mean * (1 - mean) / N + Z**2 / (4 * N * N))
        low, high = ((middle + side * reach) / (1 + Z**2 / N) for side in (-1, 1))
        return Estimate(mean, min(max(low, 0.0), mean), max(min(high, 1.0), mean))
    if N < 2:
        return Estimate(mean)
    reach = float(special.stdtrit(N - 1, UPPER) * finite.std(ddof=1) / math.sqrt(N))
    return Estimate(mean, mean - reach, mean + reach)


def jackknifed(function: Callable[[NDArray[np.int64]], Any], N: int, seed: int) -> tuple[FloatArray, FloatArray]:
    """A function of which samples [n] are there, of all of N, and the standard error over fresh samples of what it gives.

    The grouped jackknife: of what it is without each of `GROUPS` random groups of the samples. NaN of fewer samples.
    """
    value = np.asarray(function(np.arange(N)), dtype=np.float64)
    if N < 2 * GROUPS:
        return value, np.full(value.shape, np.nan)
    groups = np.array_split(stream("jackknifed samples", seed).permutation(N), GROUPS)
    without = np.array([function(np.sort(np.setdiff1d(np.arange(N), group))) for group in groups], dtype=np.float64)
    with np.errstate(invalid="ignore"):
        return value, np.sqrt((GROUPS - 1) / GROUPS * ((without - without.mean(axis=0)) ** 2).sum(axis=0))
