"""What layers represent: dimension, direction, similarity to other checkpoints, and units that say nothing.

Of the channels that are recorded, where a measure does not say that it is of the whole layer: with fewer channels ranks
and dimensions are lower. Tokens of one document are no independent samples: of them there are no intervals.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from posthoc.analysis.arrays import FloatArray
from posthoc.analysis.measures.snapshot import (
    UPPER,
    Estimate,
    Snapshot,
    Z,
    between_ends,
    jackknifed,
    of_checkpoint,
    over_layers,
    over_samples,
    standard_error,
)
from posthoc.analysis.records import Aside
from posthoc.analysis.representation import anisotropy, cka, effective_rank, intrinsic_dimension, power_law
from posthoc.analysis.similarity import Sample

SETTLED = 0.95
"""Similarity to the last checkpoint from which on a layer counts as settled."""
SHARED = 1.8
"""Ratios of distances that say as much of a dimension as one that is independent of all others: neighbours share distances, and
the fit is no maximum likelihood. By simulation, see docs/intervals.md."""
AT_BOUND = 0.01
"""Share of a channel's range from its ends within which a value counts as at its bound."""


def settled_at(similarity: FloatArray, level: float = SETTLED) -> list[int | None]:
    """Of each layer the first of the checkpoints [E, L] from which on its similarity to the last is never below a level;
    None of one that has none there.

    >>> settled_at(np.array([[0.99, 0.5], [0.9, 0.96], [1.0, 1.0]]))
    [2, 1]
    """
    settled = _settled(similarity, level)
    return [int(column.argmax()) if column.any() else None for column in settled.T]


def _settled(similarity: FloatArray, level: float = SETTLED) -> Any:
    """Whether that is so from each checkpoint on, [E, L]."""
    return np.flip(np.cumprod(np.flip(similarity >= level, 0), axis=0), 0) > 0


def _spectral(of: Callable[[FloatArray], float]) -> Callable[[Snapshot], Estimate]:
    """A measure of the eigenvalues of a layer's covariance."""

    def measure(snapshot: Snapshot) -> Estimate:
        rows = [np.array([of(eigenvalues) for eigenvalues in layer]) for layer in snapshot.spectra]
        se = np.array([standard_error(row[1:]) for row in rows])
        return over_layers([row[0] for row in rows], se if snapshot.replay.independent else np.nan)

    return measure


def _rank(eigenvalues: FloatArray) -> float:
    return effective_rank(np.sqrt(eigenvalues))


def _ratio(eigenvalues: FloatArray) -> float:
    square = float((eigenvalues**2).sum())
    return float(eigenvalues.sum() ** 2 / square) if square > 0 else np.nan


def _of_geometry(name: str, like: Callable[[FloatArray], float]) -> Callable[[Snapshot], Estimate]:
    """What the run's geometry has; the standard error is that of `like`, a measure of the same eigenvalues."""
    spectral = _spectral(like)

    def measure(snapshot: Snapshot) -> Estimate:
        plain = spectral(snapshot)
        assert plain.by_layer is not None
        assert plain.by_layer_high is not None
        values = getattr(snapshot.replay.geometry, name)[snapshot.row]
        return over_layers(values, plain.by_layer_high - plain.by_layer, 1.0)

    return measure


def _similarity(name: str) -> Callable[[Snapshot], Estimate]:
    def measure(snapshot: Snapshot) -> Estimate:
        geometry, row = snapshot.replay.geometry, snapshot.row
        sd = getattr(geometry, f"{name}_sd")[row] if snapshot.replay.independent else np.nan
        return over_layers(getattr(geometry, name)[row], sd, Z)

    return measure


def _to_untrained(snapshot: Snapshot) -> Estimate | Aside:
    """The mean over the untrained networks."""
    replay = snapshot.replay
    if not replay.untrained:
        return Aside.NEEDS_UNTRAINED

    def to(network: list[Sample]) -> list[tuple[float, float]]:
        return [cka(a, b, same=True) for a, b in zip(snapshot.samples, network, strict=True)]

    values, sd = np.moveaxis(np.array([to(network) for network in replay.untrained]), -1, 0).mean(axis=1)
    return over_layers(values, sd if replay.independent else np.nan, Z)


def _is_settled(snapshot: Snapshot) -> Estimate:
    similarity = snapshot.replay.geometry.cka_last
    settled = np.where(np.isfinite(similarity[-1]), _settled(similarity)[snapshot.row], np.nan)
    return over_layers(settled)


def _anisotropy(snapshot: Snapshot) -> Estimate:
    def of_layer(x: FloatArray) -> tuple[FloatArray, float]:
        return jackknifed(lambda rows: anisotropy(x[:, rows]), x.shape[1], snapshot.replay.seed)

    values, se = np.array([of_layer(x) for x in snapshot.channels], dtype=np.float64).T
    return over_layers(values, se if snapshot.replay.independent else np.nan)


def dimension_ends(values: FloatArray, counts: FloatArray) -> FloatArray:
    """Ends [2, ...] of the intervals of intrinsic dimensions of so many samples."""
    from scipy.stats import chi2

    twice = 2 * counts / SHARED
    with np.errstate(invalid="ignore"):
        return np.array([values * chi2.ppf(q, twice) / twice for q in (1 - UPPER, UPPER)])


def _dimension(snapshot: Snapshot) -> Estimate:
    values, counts = np.array([intrinsic_dimension(x) for x in snapshot.channels]).T
    low, high = dimension_ends(values, counts)
    if not snapshot.replay.independent:
        low = high = np.full(values.shape, np.nan)
    return between_ends(values, low, high)


def _dead(snapshot: Snapshot) -> Estimate:
    """Its interval is over the channels of the layer that are not recorded, where there are any."""
    shares = [over_samples(np.ptp(x, axis=1) == 0) for x in snapshot.channels]
    ends = np.array([(share.low, share.high) for share in shares])
    values = np.array([share.value for share in shares])
    whole = np.array([sample.recorded == sample.total for sample in snapshot.samples])
    ends[whole] = values[whole, None]
    return between_ends(values, *ends.T)


def _saturated(snapshot: Snapshot) -> Estimate:
    def share(x: FloatArray) -> FloatArray:
        """Of the channels of each sample, [N]; those that never vary are left out."""
        x = x[np.ptp(x, axis=1) > 0]
        low, high = x.min(axis=1, keepdims=True, initial=np.inf), x.max(axis=1, keepdims=True, initial=-np.inf)
        near = np.minimum(x - low, high - x) <= AT_BOUND * (high - low)
        return np.asarray(near.mean(axis=0)) if len(x) else np.full(x.shape[1], np.nan)

    estimates = [over_samples(share(x)) for x in snapshot.channels]
    low, high = np.array([(e.low, e.high) for e in estimates]).T
    if not snapshot.replay.independent:
        low = high = np.full(len(estimates), np.nan)
    return between_ends(np.array([e.value for e in estimates]), low, high)


OF = "of the recorded channels, mean over layers"
MEASURES = (
    of_checkpoint(
        "effective_rank", "rank", "effective rank", f"exp of the entropy of the singular values, {OF}",
        _of_geometry("effective_rank", _rank), limits=(1.0, np.nan),
    ),
    of_checkpoint(
        "participation_ratio", "PR", "participation ratio",
        f"square of the sum of the covariance's eigenvalues over the sum of their squares, as over any number of samples, {OF}",
        _of_geometry("participation_ratio", _ratio), limits=(1.0, np.nan),
    ),
    of_checkpoint(
        "alpha_req", "alpha-ReQ", "decay of eigenvalues", f"exponent of a power law of the covariance's eigenvalues, {OF}",
        _spectral(power_law),
    ),
    of_checkpoint(
        "anisotropy", "anisotropy", "anisotropy", f"mean cosine of two samples' values, {OF}", _anisotropy, limits=(-1.0, 1.0),
    ),
    of_checkpoint(
        "twonn", "TwoNN", "intrinsic dimension",
        f"dimension by the ratio of the distances to the second nearest and the nearest sample, {OF}", _dimension,
    ),
    of_checkpoint(
        "cka_previous", "CKA(previous)", "similarity to the checkpoint before",
        "debiased CKA of whole layers with the checkpoint before, mean over layers", _similarity("cka_previous"),
    ),
    of_checkpoint(
        "cka_last", "CKA(last)", "similarity to the last checkpoint",
        "debiased CKA of whole layers with the last checkpoint, mean over layers: it looks ahead", _similarity("cka_last"),
        looks_ahead=True,
    ),
    of_checkpoint(
        "cka_untrained", "CKA(untrained)", "similarity to untrained weights",
        "debiased CKA of whole layers with the untrained network, mean over layers", _to_untrained,
    ),
    of_checkpoint(
        "settled", "settled", "settled layers",
        f"share of layers whose CKA with the last checkpoint is {SETTLED} or more here and at all later ones: it looks ahead",
        _is_settled, limits=(0.0, 1.0), looks_ahead=True,
    ),
    of_checkpoint(
        "dead_units", "dead", "dead units", f"share of channels whose signal is the same for all samples, {OF}", _dead,
        limits=(0.0, 1.0),
    ),
    of_checkpoint(
        "saturated_units", "saturated", "saturated units",
        f"share of values within {AT_BOUND:.0%} of a channel's range from its least or greatest, {OF}", _saturated,
        limits=(0.0, 1.0),
    ),
)  # fmt: skip
