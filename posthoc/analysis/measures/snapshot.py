"""What a file holds of one checkpoint, as measures of checkpoints read it, and what such a measure gives."""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy
from numpy.typing import NDArray

from posthoc.analysis.arrays import FloatArray, mean_finite
from posthoc.analysis.geometry import Representation
from posthoc.analysis.measures.measure import Measure
from posthoc.analysis.records import Aside
from posthoc.analysis.representation import centred, channels_of, representation, samples_of, spectra
from posthoc.analysis.similarity import Sample
from posthoc.analysis.weights import WeightPath, weight_paths
from posthoc.streams import stream

if TYPE_CHECKING:
    from posthoc.store import Activations

UPPER = 0.975
Z = 1.959963984540054
"""That quantile of a normal distribution: written out, as the next, for scipy.special takes long to import."""
GROUPS = 20
"""Of samples that are left out one after another, for a standard error."""
REACH = 2.0930240544083087
"""Standard errors of such groups from a value to the ends of its 95 % interval: Student's t at GROUPS - 1 degrees."""


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
    def independent(self) -> bool:
        """Whether what layers hold of one sample is independent of the others: tokens of one document are not."""
        return self.activations.tokens is None

    @functools.cached_property
    def geometry(self) -> Representation:
        """The geometry of the layers through training."""
        return representation(self.activations, self.signal)

    @functools.cached_property
    def weight_paths(self) -> dict[str, WeightPath]:
        """The paths of the layers' weights; none where the file does not hold them."""
        return weight_paths(self.activations)

    @functools.cached_property
    def untrained(self) -> list[list[Sample]]:
        """The layers of the untrained networks: of the checkpoint of step 0, else of those that the file has as controls."""
        file = self.activations
        if (first := np.flatnonzero(file.steps == 0)).size:
            return [samples_of(file, file.read, self.signal, int(first[0]))]
        controls = range(len(file.untrained_seeds))
        return [samples_of(file, file.read_untrained, self.signal, row) for row in controls]

    @functools.cached_property
    def correct(self) -> NDArray[np.int8]:
        """Whether each checkpoint is right about each sample, [E, N]: 1 or 0, and -1 where it predicts nothing."""
        correct = (self.activations.behaviour("correct") > 0).astype(np.int8)
        if self.has("prediction"):
            correct[self.activations.behaviour("prediction") < 0] = -1
        return correct


class Snapshot:
    """What a file holds of the checkpoint in a row of it, each part read once."""

    def __init__(self, replay: Replay, row: int) -> None:
        self.replay, self.row = replay, row

    @property
    def previous(self) -> "Snapshot | None":
        """The checkpoint before."""
        return self.replay.at(self.row - 1) if self.row else None

    @functools.cached_property
    def channels(self) -> list[FloatArray]:
        """The recorded channels of each layer, [C, N]: those that are finite."""
        return [x[np.isfinite(x).all(axis=1)].astype(np.float64) for x in self._recorded]

    @functools.cached_property
    def samples(self) -> list[Sample]:
        """The recorded channels of each layer, centred, and of how many."""
        return centred(self.replay.activations, self._recorded)

    @functools.cached_property
    def _recorded(self) -> list[NDArray[np.floating]]:
        """The recorded channels of each layer, [C, N]."""
        file = self.replay.activations
        return channels_of(file, file.read, self.replay.signal, self.row)

    @functools.cached_property
    def spectra(self) -> list[FloatArray]:
        """Eigenvalues of each layer's covariance, over all samples and without each group of the jackknife, [1 + G, C]."""
        return [spectra(x.x[x.finite], jackknife_groups(x.x.shape[1], self.replay.seed)) for x in self.samples]

    @functools.cached_property
    def prediction(self) -> NDArray[np.int64]:
        """The class of the largest score of each sample, [N]; -1 where scores are no numbers."""
        return self.replay.activations.behaviour("prediction", self.row)

    @functools.cached_property
    def features(self) -> FloatArray:
        """What the last layer is given, [N, D]."""
        return self.replay.activations.behaviour("features", self.row).astype(np.float64)

    @functools.cached_property
    def head(self) -> FloatArray:
        """The weights of the last layer, [K, D]."""
        return self.replay.activations.head("weight", self.row).astype(np.float64)

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
        return np.asarray(scores - scipy.special.logsumexp(scores, axis=1, keepdims=True))


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
    reach = float(scipy.special.stdtrit(N - 1, UPPER) * finite.std(ddof=1) / math.sqrt(N))
    return Estimate(mean, mean - reach, mean + reach)


def over_layers(values: Any, se: Any = math.nan, reach: float = REACH) -> Estimate:
    """A measure of each layer, values [L], and the mean over those that have one; se: standard errors [L], of which
    `reach` is an interval's half. The mean's interval is as if layers, which share their samples, all erred together."""
    values = np.asarray(values, dtype=np.float64)
    width = reach * np.broadcast_to(np.asarray(se, dtype=np.float64), values.shape)
    return between_ends(values, values - width, values + width)


def between_ends(
    values: FloatArray, low: FloatArray, high: FloatArray, drawn: Mapping[str, FloatArray] | None = None
) -> Estimate:
    """As `over_layers`, with intervals [L] that are known."""
    there = np.isfinite(values)
    least, most = (float(end[there].mean()) if there.any() else math.nan for end in (low, high))
    return Estimate(mean_finite(values), least, most, values, low, high, drawn or {})


def jackknife_groups(N: int, seed: int) -> list[NDArray[np.int64]]:
    """Random groups of N samples, as equal as can be; none where there would be fewer than two in one."""
    if N < 2 * GROUPS:
        return []
    return list(np.array_split(stream("jackknifed samples", seed).permutation(N), GROUPS))


def standard_error(without: FloatArray) -> Any:
    """Over fresh samples, of what is [...], from what it is without each of the groups, [G, ...] (the grouped jackknife)."""
    if len(without) < GROUPS:
        return np.full(without.shape[1:], np.nan)
    with np.errstate(invalid="ignore"):
        return np.sqrt((GROUPS - 1) / GROUPS * ((without - without.mean(axis=0)) ** 2).sum(axis=0))


def jackknifed(function: Callable[[NDArray[np.int64]], Any], N: int, seed: int) -> tuple[FloatArray, Any]:
    """A function of which samples [n] are there, of all of N, and the standard error over fresh samples of what it gives."""
    value = np.asarray(function(np.arange(N)), dtype=np.float64)
    without = [function(np.setdiff1d(np.arange(N), group)) for group in jackknife_groups(N, seed)]
    return value, standard_error(np.array(without, dtype=np.float64).reshape(-1, *value.shape))
