"""What the outputs of a classifier say, sample by sample: margin, calibration, and what changes between checkpoints."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from posthoc.analysis.arrays import FloatArray
from posthoc.analysis.measures.snapshot import (
    REACH,
    UPPER,
    Estimate,
    Replay,
    Snapshot,
    jackknifed,
    of_checkpoint,
    over_samples,
)
from posthoc.analysis.records import Aside
from posthoc.streams import stream

BINS = 15
"""Of confidence, all of one width."""
DRAWS = 99
"""Of labels of a calibrated network, at the least."""


def margins(logits: FloatArray, labels: NDArray[np.int64]) -> FloatArray:
    """The score of each sample's class less the largest of the others, [N]; below 0 where the sample is misclassified.

    >>> margins(np.array([[3.0, 1.0, 2.0], [0.0, 0.0, 5.0]]), np.array([0, 1])).tolist()
    [1.0, -5.0]
    """
    rows = np.arange(len(labels))
    others = logits.copy()
    others[rows, labels] = -np.inf
    with np.errstate(invalid="ignore"):  # two infinite scores, whose difference is no number
        return np.asarray(logits[rows, labels] - others.max(axis=1))


def error_norms(log_probabilities: FloatArray, labels: NDArray[np.int64]) -> FloatArray:
    """Of each sample [N] the distance of the probabilities [N, K] from those that are 1 for its class and 0 for all others:
    how hard it is for the network (EL2N; Paul, Ganguli & Dziugaite 2021). From 0 to the root of 2.

    >>> error_norms(np.log([[0.5, 0.5], [1.0, 1e-300]]), np.array([0, 1])).round(6).tolist()
    [0.707107, 1.414214]
    """
    errors = np.exp(log_probabilities)
    errors[np.arange(len(labels)), labels] -= 1
    return np.asarray(np.sqrt((errors**2).sum(axis=1)))


def calibration_error(confidence: FloatArray, correct: NDArray[Any], bins: int = BINS) -> float:
    """The expected calibration error (Naeini et al. 2015; Guo et al. 2017): over bins of confidence (0, 1 / bins], ... the
    distance of mean confidence [N] and share correct [N], weighted by the share of samples in the bin.

    >>> round(calibration_error(np.array([0.9, 0.9, 0.6, 0.6]), np.array([1, 1, 1, 0])), 12)
    0.1
    """
    place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    gaps = np.bincount(place, weights=correct - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))


def forgetting_events(correct: NDArray[Any]) -> NDArray[np.int64]:
    """How often each sample went from right to wrong (Toneva et al. 2019), in checkpoints [E, N] up to each, [E, N].

    correct: whether it is right; where numbers, below 0 where that is not known, which is passed over.

    >>> forgetting_events(np.array([[1, 0, 1], [0, 0, -1], [1, 1, 1], [0, 1, 0]]))[-1].tolist()
    [2, 0, 1]
    """
    known = _last_known(correct)
    events = np.zeros(correct.shape, np.int64)
    events[1:] = np.cumsum((known[:-1] > 0) & (known[1:] == 0), axis=0)
    return events


def learned_at(correct: NDArray[Any]) -> NDArray[np.int64]:
    """The first of the checkpoints [E, N] from which on a sample is always right, [N]; E where it is wrong in the last.

    correct: as of `forgetting_events`.

    >>> learned_at(np.array([[1, 1, 0, 1], [0, 1, 0, -1], [1, 1, 0, 1]])).tolist()
    [2, 0, 3, 0]
    """
    wrong_since = np.flip(np.cumsum(np.flip(_last_known(correct) <= 0, 0), axis=0), 0)
    return np.asarray((wrong_since > 0).sum(axis=0))


def _last_known(correct: NDArray[Any]) -> NDArray[Any]:
    """The same [E, N], where not known that of the last checkpoint before at which it is."""
    rows = np.arange(len(correct))[:, None]
    return np.take_along_axis(correct, np.maximum.accumulate(np.where(correct < 0, 0, rows), axis=0), axis=0)


def _margin(snapshot: Snapshot) -> Estimate | Aside:
    replay = snapshot.replay
    if replay.labels is None:
        return Aside.NEEDS_LABELS
    return over_samples(margins(snapshot.logits, replay.labels)) if replay.has("logits") else Aside.NEEDS_LOGITS


def _difficulty(snapshot: Snapshot) -> Estimate | Aside:
    replay = snapshot.replay
    if replay.labels is None:
        return Aside.NEEDS_LABELS
    return (
        over_samples(error_norms(snapshot.log_probabilities, replay.labels))
        if replay.has("logits")
        else Aside.NEEDS_LOGITS
    )


def _calibration_error(snapshot: Snapshot) -> Estimate | Aside:
    """Under the null labels are drawn from the probabilities (Broecker and Smith 2007)."""
    replay = snapshot.replay
    if not replay.has("logits", "correct"):
        return Aside.NEEDS_LOGITS
    confidence = np.exp(snapshot.log_probabilities.max(axis=1))
    correct = replay.correct[snapshot.row]
    kept = np.isfinite(confidence) & (correct >= 0)
    confidence, correct = confidence[kept], correct[kept]
    if not len(confidence):
        return Estimate()
    random = stream("null calibrated", replay.seed, snapshot.row)
    drawn = calibrated_errors(confidence, max(replay.draws, DRAWS), random)
    value, low, high = with_interval(confidence, correct, drawn, replay.seed)
    return Estimate(value, low, high, drawn={"calibrated": drawn[: replay.draws]} if replay.draws else {})


def calibrated_errors(confidence: FloatArray, draws: int, random: np.random.Generator) -> FloatArray:
    """The calibration error of samples of these confidences [N] that are right as often as they say, [draws]."""
    N = len(confidence)
    return np.array([calibration_error(confidence, random.random(N) < confidence) for _ in range(draws)])


def with_interval(
    confidence: FloatArray, correct: NDArray[Any], drawn: FloatArray, seed: int
) -> tuple[float, float, float]:
    """The calibration error of samples [N] and the ends of its interval, by the grouped jackknife.

    A network that is calibrated has an error, too, of so many samples, which adds to what there is about in quadrature: the
    mean of those `drawn` is taken off so below the value, and where the value is not beyond them, the interval begins at 0.
    """
    error, se = jackknifed(lambda rows: calibration_error(confidence[rows], correct[rows]), len(confidence), seed)
    value = float(error)
    without = math.sqrt(max(value**2 - float(drawn.mean()) ** 2, 0.0))
    low = max(without - REACH * float(se), 0.0) if value > np.quantile(drawn, UPPER) else 0.0
    return value, low, min(value + REACH * float(se), 1.0)


def _churn(snapshot: Snapshot) -> Estimate | Aside:
    if not snapshot.replay.has("prediction"):
        return Aside.NEEDS_PREDICTIONS
    if snapshot.previous is None:
        return Estimate()
    before, now = snapshot.previous.prediction, snapshot.prediction
    return over_samples(np.where((before < 0) | (now < 0), np.nan, before != now))


def _divergence(snapshot: Snapshot) -> Estimate | Aside:
    if not snapshot.replay.has("logits"):
        return Aside.NEEDS_LOGITS
    if snapshot.previous is None:
        return Estimate()
    before, now = snapshot.previous.log_probabilities, snapshot.log_probabilities
    return over_samples((np.exp(before) * (before - now)).sum(axis=1))


def _of_correct(of_run: Callable[[Replay], NDArray[Any]]) -> Callable[[Snapshot], Estimate | Aside]:
    """A measure whose value of every sample at every checkpoint [E, N] is a function of what was right when; of a sample
    for which a checkpoint predicts nothing there is none."""

    def measure(snapshot: Snapshot) -> Estimate | Aside:
        replay = snapshot.replay
        if not replay.has("correct"):
            return Aside.NEEDS_LABELS if replay.labels is None else Aside.NEEDS_PREDICTIONS
        return over_samples(np.where(replay.correct[snapshot.row] < 0, np.nan, of_run(replay)[snapshot.row]))

    return measure


def _forgotten(replay: Replay) -> NDArray[np.int64]:
    """What an untrained network had right by chance is none that training forgets."""
    trained = replay.activations.steps != 0
    events = np.zeros(replay.correct.shape, np.int64)
    events[trained] = forgetting_events(replay.correct[trained])
    return events


def _learned(replay: Replay) -> NDArray[np.bool_]:
    return np.asarray(learned_at(replay.correct) <= np.arange(len(replay))[:, None])


MEASURES = (
    of_checkpoint(
        "margin", "margin", "margin", "score of a sample's class less the largest of the others, mean over samples", _margin,
    ),
    of_checkpoint(
        "difficulty", "EL2N", "difficulty of the samples",
        "distance of a sample's probabilities from 1 for its class and 0 for the others, mean over samples", _difficulty,
        limits=(0.0, math.sqrt(2)), lower_is_better=True,
    ),
    of_checkpoint(
        "calibration_error", "ECE", "expected calibration error",
        f"distance of confidence and accuracy in {BINS} bins of confidence, mean over samples", _calibration_error,
        limits=(0.0, 1.0), null="calibrated", lower_is_better=True,
    ),
    of_checkpoint(
        "churn", "churn", "churn", "share of samples whose predicted class is another than at the checkpoint before", _churn,
        limits=(0.0, 1.0),
    ),
    of_checkpoint(
        "kl_previous", "KL", "divergence from the checkpoint before",
        "Kullback-Leibler divergence, in nats, of the probabilities from those at the checkpoint before, mean over samples",
        _divergence, limits=(0.0, np.nan),
    ),
    of_checkpoint(
        "forgetting", "forgotten", "forgetting events",
        "how often a sample went from right to wrong in training so far, mean over samples", _of_correct(_forgotten),
        limits=(0.0, np.nan),
    ),
    of_checkpoint(
        "learned", "learned", "learned samples",
        "share of samples that are right here and at all later checkpoints: it looks ahead", _of_correct(_learned),
        limits=(0.0, 1.0), looks_ahead=True,
    ),
)  # fmt: skip
