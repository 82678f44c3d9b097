"""What relates a run's checkpoints to each other: z-scores, the stability index, its volatility, and when that settles."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from posthoc.analysis.arrays import FloatArray, is_constant
from posthoc.analysis.measures.measure import Epochs, Measure
from posthoc.analysis.origins import Checkpoint

CONSECUTIVE = 3
"""Epochs in a row for which volatility must stay below its threshold."""
CAUSAL_EPOCHS = 5
"""Epochs before which an expanding z-score is undefined."""


def z_scores(values: ArrayLike) -> FloatArray:
    """Z-scores (ddof 1) over the values that are there; all NaN where these are fewer than two or vary by rounding alone.

    >>> z_scores([1.0, np.nan, 3.0]).round(4).tolist()
    [-0.7071, nan, 0.7071]
    """
    values = np.asarray(values, dtype=float)
    there = values[np.isfinite(values)]
    if len(there) < 2 or is_constant(there):
        return np.full(values.shape, np.nan)
    power = -np.frexp(np.abs(there).max())[1]  # a power of two changes no digit, and no square underflows
    values, there = np.ldexp(values, power), np.ldexp(there, power)
    return np.asarray((values - there.mean()) / there.std(ddof=1))


def stability_index(h_eff: ArrayLike, m: ArrayLike, w_h: float = 0.5) -> FloatArray:
    """Psi = w_H z(H_eff) + (1 - w_H) z(M) over the epochs of a run [E]; NaN where either is."""
    return np.asarray(w_h * z_scores(h_eff) + (1 - w_h) * z_scores(m))


def expanding_z(values: ArrayLike) -> FloatArray:
    """The z-score of each value [E] among those up to it, the last of their `z_scores`, in one pass (Welford 1962).

    >>> expanding_z([1.0, np.nan, 3.0]).round(4).tolist()
    [nan, nan, 0.7071]
    """
    values = np.asarray(values, dtype=float)
    result = np.full(values.shape, np.nan)
    mean = squares = 0.0
    count = power = 0
    low, high = math.inf, -math.inf
    for e in np.flatnonzero(np.isfinite(values)).tolist():
        value = float(values[e])
        low, high, count = min(low, value), max(high, value), count + 1
        larger = math.frexp(max(-low, high))[1] - power  # all is scaled by the largest, so that no square underflows
        if larger:
            mean, squares, power = math.ldexp(mean, -larger), math.ldexp(squares, -2 * larger), power + larger
        value = math.ldexp(value, -power)
        before, mean = mean, mean + (value - mean) / count
        squares += (value - before) * (value - mean)
        if count > 1 and not is_constant([low, high]):
            result[e] = (value - mean) / math.sqrt(squares / (count - 1))
    return result


def causal_stability_index(h_eff: ArrayLike, m: ArrayLike, w_h: float = 0.5) -> FloatArray:
    """The stability index as it was known at each epoch [E]: that of the epochs up to it.

    NaN before there are five epochs with both, and where either is.

    >>> causal_stability_index([1.0, 2, 3, 4, 5, 5], [1.0, 2, 3, 4, 5, 5]).round(3).tolist()
    [nan, nan, nan, nan, 1.265, 1.021]
    """
    both = np.isfinite(np.array([h_eff, m], dtype=float)).all(axis=0)
    index = w_h * expanding_z(h_eff) + (1 - w_h) * expanding_z(m)
    return np.where(both.cumsum() >= CAUSAL_EPOCHS, index, np.nan)


def volatility(psi: ArrayLike, window: int = 3) -> FloatArray:
    """Trailing rolling standard deviation (ddof 1) of Psi [..., E]; NaN unless the whole window is there.

    >>> volatility([1, 2, 3, 3, 3]).tolist()
    [nan, nan, 1.0, 0.5773502691896258, 0.0]
    """
    psi = np.asarray(psi, dtype=float)
    result = np.full(psi.shape, np.nan)
    if psi.shape[-1] >= window:
        windows = np.lib.stride_tricks.sliding_window_view(psi, window, axis=-1)
        result[..., window - 1 :] = windows.std(axis=-1, ddof=1)
    return result


def unevenness(steps: Sequence[int | None], epochs: Sequence[int | None]) -> str:
    """Why checkpoints are no series in time, in words; empty where they are one.

    They are not where the largest gap is above twice the median one, or two gaps in a row are together below it: volatility
    would be taken over spans of different lengths. A short gap by itself is none, as that before a run's last checkpoint.
    Steps decide where all are known, else epochs; where neither are, nothing is.

    >>> unevenness([None] * 4, [1, 2, 3, 5])
    ''
    >>> unevenness([1, 2, 4, 8, 16], [None] * 5)
    'checkpoints are unevenly spaced: the largest gap, 8 steps, is above twice the median one, 3'
    >>> unevenness([1, 2, 4, 500, 1000, 1500, 2000, 2050], [None] * 8)
    'checkpoints are unevenly spaced: from 1 to 4 are 3 steps, two gaps that are together below the median one, 496'
    """
    for unit, when in (("step", steps), ("epoch", epochs)):
        known = [at for at in when if at is not None]
        if len(known) == len(when) > 2:
            at = np.array(known, dtype=float)
            gaps, pairs = np.diff(at), at[2:] - at[:-2]
            largest, median, least = float(gaps.max()), float(np.median(gaps)), int(pairs.argmin())
            uneven = "checkpoints are unevenly spaced: "
            if largest > 2 * median:
                return f"{uneven}the largest gap, {largest:g} {unit}s, is above twice the median one, {median:g}"
            if pairs[least] < median:
                return (
                    f"{uneven}from {known[least]} to {known[least + 2]} are {pairs[least]:g} {unit}s, two gaps that are "
                    f"together below the median one, {median:g}"
                )
            return ""
    return ""


def uneven_of(checkpoints: Sequence[Checkpoint]) -> str:
    """Why a run's trained checkpoints are no series in time, in words; empty where they are one."""
    kept = [checkpoint for checkpoint in checkpoints if not checkpoint.untrained]
    return unevenness([checkpoint.step for checkpoint in kept], [checkpoint.epoch for checkpoint in kept])


def convergence(volatility: ArrayLike, threshold: float, consecutive: int = CONSECUTIVE) -> int | None:
    """Index of the first epoch at which volatility has been below `threshold` for `consecutive` epochs, or None.

    An epoch without volatility starts the count anew.

    >>> convergence([np.nan, 0.1, 0.1, np.nan, 0.1, 0.1, 0.1], threshold=0.35)
    6
    """
    count = 0
    for e, value in enumerate(np.asarray(volatility, dtype=float)):
        count = count + 1 if value < threshold else 0
        if count == consecutive:
            return e
    return None


def _index(epochs: Epochs) -> FloatArray:
    return stability_index(epochs.columns["integration"], epochs.columns["metastability"], epochs.protocol.w_h)


def _causal_index(epochs: Epochs) -> FloatArray:
    return causal_stability_index(epochs.columns["integration"], epochs.columns["metastability"], epochs.protocol.w_h)


def _volatility(key: str) -> Callable[[Epochs], FloatArray]:
    """Of the stability index `key`; none where epochs are unevenly spaced, for it would span different times."""

    def column(epochs: Epochs) -> FloatArray:
        index = epochs.columns[key]
        return volatility(index, epochs.protocol.window) if epochs.even else np.full(len(index), np.nan)

    return column


FIELDS = ("integration", "metastability")


def _of_epochs(
    key: str, symbol: str, title: str, about: str, needs: tuple[str, ...], of_epochs: Callable[[Epochs], FloatArray],
    listed: bool = False, causal: bool = False,
) -> Measure:  # fmt: skip
    return Measure(
        key, symbol, title, about, of_epochs=of_epochs, needs=needs, headline=False, listed=listed, looks_ahead=not causal,
    )  # fmt: skip


MEASURES = (
    _of_epochs(
        "integration_z", "Hz", "z-score of integration", "integration's z-score among the run's epochs", ("integration",),
        lambda epochs: z_scores(epochs.columns["integration"]),
    ),
    _of_epochs(
        "metastability_z", "Mz", "z-score of metastability", "metastability's z-score among the run's epochs", ("metastability",),
        lambda epochs: z_scores(epochs.columns["metastability"]),
    ),
    _of_epochs(
        "stability_index", "Psi", "stability index Psi",
        "weighted mean of the z-scores of integration and metastability over the whole run", FIELDS, _index, listed=True,
    ),
    _of_epochs(
        "volatility", "volatility", "volatility of Psi", "rolling standard deviation of the stability index", ("stability_index",),
        _volatility("stability_index"), listed=True,
    ),
    _of_epochs(
        "stability_index_causal", "causal Psi", "causal stability index", "as it was known at each epoch", FIELDS, _causal_index,
        causal=True,
    ),
    _of_epochs(
        "volatility_causal", "causal", "causal volatility", "rolling standard deviation of the causal stability index", ("stability_index_causal",),
        _volatility("stability_index_causal"), listed=True, causal=True,
    ),
)  # fmt: skip
