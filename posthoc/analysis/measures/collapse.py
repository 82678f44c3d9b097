"""Neural collapse (Papyan, Han and Donoho 2020): the geometry of what the last layer is given, and of its weights.

Over the probe's samples, which are commonly no training samples: there it is weaker.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from posthoc.analysis.arrays import FloatArray
from posthoc.analysis.measures.snapshot import REACH, Estimate, Snapshot, jackknifed, of_checkpoint, over_samples
from posthoc.analysis.records import Aside
from posthoc.streams import stream

SMALLEST = 1e-10
"""Singular values of the class means, relative to the largest, that count as 0."""


def class_means(features: FloatArray, labels: NDArray[np.int64]) -> tuple[FloatArray, NDArray[np.int64]]:
    """Mean features [K, D] of each class that there is, and the place of each sample's class among those, [N]."""
    classes, place = np.unique(labels, return_inverse=True)
    sums = np.zeros((len(classes), features.shape[1]))
    np.add.at(sums, place, features)
    return sums / np.bincount(place)[:, None], place


def variability(features: FloatArray, labels: NDArray[np.int64]) -> float:
    """NC1: tr(S_W S_B^+) / K of features [N, D], with the covariance S_W of samples about their class's mean and that of
    the K class means about their mean, S_B; 0 where classes have collapsed to points. NaN of one class."""
    means, place = class_means(features, labels)
    K = len(means)
    _, s, directions = np.linalg.svd((means - means.mean(axis=0)) / np.sqrt(K), full_matrices=False)
    kept = s > SMALLEST * s[0]
    if K < 2 or not s[0] > 0:
        return np.nan
    within = (((features - means[place]) @ directions[kept].T) ** 2).mean(axis=0)
    return float((within / s[kept] ** 2).sum() / K)


def simplex(features: FloatArray, labels: NDArray[np.int64]) -> tuple[float, float]:
    """NC2: how far the centred class means are from a simplex: the standard deviation of their lengths over the mean
    length, and the mean distance of their cosines from -1 / (K - 1). NaN of one class."""
    means, _ = class_means(features, labels)
    centred = means - means.mean(axis=0)
    lengths = np.sqrt((centred**2).sum(axis=1))
    K = len(means)
    if K < 2 or not (lengths > 0).all():
        return np.nan, np.nan
    cosines = (centred / lengths[:, None]) @ (centred / lengths[:, None]).T
    return float(lengths.std() / lengths.mean()), float(np.abs(cosines[~np.eye(K, dtype=bool)] + 1 / (K - 1)).mean())


def duality(features: FloatArray, labels: NDArray[np.int64], weight: FloatArray) -> float:
    """NC3: squared distance of the last layer's weights [K, D] and the centred class means, each of norm 1."""
    means, _ = class_means(features, labels)
    centred = means - means.mean(axis=0)
    if centred.shape != weight.shape or not (np.abs(centred).max() > 0 and np.abs(weight).max() > 0):
        return np.nan
    return float(((weight / np.linalg.norm(weight) - centred / np.linalg.norm(centred)) ** 2).sum())


def other_than_nearest(
    features: FloatArray, labels: NDArray[np.int64], prediction: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """NC4: which samples [N] are predicted as another class than that whose mean is nearest."""
    means, _ = class_means(features, labels)
    distances = (means**2).sum(axis=1) - 2 * features @ means.T
    return np.asarray(np.unique(labels)[distances.argmin(axis=1)] != prediction)


def _collapse(
    of: Callable[[Snapshot, FloatArray, NDArray[np.int64]], Estimate],
) -> Callable[[Snapshot], Estimate | Aside]:
    """A measure of the features [N, D] and labels [N] of the samples whose features are finite."""

    def measure(snapshot: Snapshot) -> Estimate | Aside:
        replay = snapshot.replay
        if replay.labels is None:
            return Aside.NEEDS_LABELS
        if not replay.has("features", "prediction"):
            return Aside.NEEDS_FEATURES
        kept = np.isfinite(snapshot.features).all(axis=1)
        return of(snapshot, snapshot.features[kept], replay.labels[kept]) if kept.any() else Estimate()

    return measure


def _estimate(
    function: Callable[[FloatArray, NDArray[np.int64]], float], snapshot: Snapshot, features: FloatArray,
    labels: NDArray[np.int64],
) -> Estimate:  # fmt: skip
    value, se = jackknifed(lambda rows: function(features[rows], labels[rows]), len(labels), snapshot.replay.seed)
    return Estimate(float(value), max(float(value - REACH * se), 0.0), float(value + REACH * se))


def _nc1(snapshot: Snapshot, features: FloatArray, labels: NDArray[np.int64]) -> Estimate:
    random = stream("null label", snapshot.replay.seed, snapshot.row)
    drawn = [variability(features, random.permutation(labels)) for _ in range(snapshot.replay.draws)]
    estimate = _estimate(variability, snapshot, features, labels)
    return Estimate(estimate.value, estimate.low, estimate.high, drawn={"label": np.array(drawn)} if drawn else {})


def _nc3(snapshot: Snapshot, features: FloatArray, labels: NDArray[np.int64]) -> Estimate:
    return _estimate(lambda x, y: duality(x, y, snapshot.head), snapshot, features, labels)


def _nc4(snapshot: Snapshot, features: FloatArray, labels: NDArray[np.int64]) -> Estimate:
    predicted = snapshot.prediction[np.isfinite(snapshot.features).all(axis=1)]
    return over_samples(np.where(predicted < 0, np.nan, other_than_nearest(features, labels, predicted)))


MEASURES = (
    of_checkpoint(
        "nc1", "NC1", "collapse of variability (NC1)",
        "variance of the last layer's input within classes, relative to that between their means", _collapse(_nc1),
        null="label", limits=(0.0, np.nan), lower_is_better=True,
    ),
    of_checkpoint(
        "nc2_lengths", "NC2 lengths", "equal lengths of class means (NC2)",
        "standard deviation of the lengths of the class means of the last layer's input, relative to their mean",
        _collapse(lambda *of: _estimate(lambda x, y: simplex(x, y)[0], *of)), limits=(0.0, np.nan), lower_is_better=True,
    ),
    of_checkpoint(
        "nc2_angles", "NC2 angles", "equal angles of class means (NC2)",
        "mean distance of the cosines of two class means of the last layer's input from -1 / (classes - 1)",
        _collapse(lambda *of: _estimate(lambda x, y: simplex(x, y)[1], *of)), limits=(0.0, 2.0), lower_is_better=True,
    ),
    of_checkpoint(
        "nc3", "NC3", "self-duality (NC3)",
        "squared distance of the last layer's weights and the class means of its input, each of norm 1", _collapse(_nc3),
        limits=(0.0, 4.0), lower_is_better=True,
    ),
    of_checkpoint(
        "nc4", "NC4", "nearest class mean (NC4)",
        "share of samples that are predicted as another class than that whose mean is nearest", _collapse(_nc4),
        limits=(0.0, 1.0), lower_is_better=True,
    ),
)  # fmt: skip
