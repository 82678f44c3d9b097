"""When volatility settles on series in which nothing converges: the null of the convergence signal."""

import functools
import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from posthoc.analysis.arrays import FloatArray, in_blocks
from posthoc.analysis.measures.stability import CAUSAL_EPOCHS, CONSECUTIVE, volatility
from posthoc.analysis.records import WAYS, Settles, Summary
from posthoc.streams import stream

SERIES = 1000
KINDS = {
    "white": "white noise",
    "autoregressive": "noise as autocorrelated as the run's measures",
    "walk": "random walks",
    "divergent": "a steady rise",
}
"""Of which none converges: the first two scatter for ever alike, the others never stop moving."""
STEEPNESS = 0.1
"""Standard deviation of the noise of a rise of 1 an epoch."""


def settling(
    at: Sequence[int], threshold: float, window: int, w_h: float, autocorrelations: tuple[float, float], seed: int = 0
) -> dict[str, dict[str, Settles]]:
    """The rule on 1,000 pairs of series of each kind, `retrospective` and `causal`; kind -> way -> Settles.

    at: the places of a run's epochs in which H_eff and M are known, rising. Of these epochs, the same threshold, window and weight as the run's, the two series of a pair being independent;
    autocorrelations: of the run's H_eff and M at lag one. share: of the series, in which it fires within these epochs;
    median: place of the epoch by which it has fired in half of those, None where it never does.
    """
    return {
        kind: {
            way: _of_kind(kind, way, tuple(at), threshold, window, w_h, _rounded(kind, autocorrelations), seed)
            for way in WAYS
        }
        for kind in KINDS
    }


def _rounded(kind: str, autocorrelations: tuple[float, float]) -> tuple[float, float]:
    """To two digits, below 1, and nothing where the kind has none: so that what was simulated can be used again."""
    if kind != "autoregressive":
        return 0.0, 0.0
    first, second = (0.0 if math.isnan(phi) else round(min(0.99, max(-0.99, phi)), 2) for phi in autocorrelations)
    return first, second


@functools.lru_cache(maxsize=256)
def _of_kind(
    kind: str,
    way: str,
    at: tuple[int, ...],
    threshold: float,
    window: int,
    w_h: float,
    phi: tuple[float, float],
    seed: int,
) -> Settles:
    settled = []
    for pairs in _series(kind, len(at), phi, seed):
        psi = np.full((pairs.shape[1], at[-1] + 1), np.nan)
        psi[:, at] = _psi(pairs, w_h, way == "causal")
        settled.append(_first_settled(volatility(psi, window), threshold))
    index = np.concatenate(settled)
    fired = index[index >= 0]
    return Settles(len(fired) / len(index), int(np.ceil(np.median(fired))) if len(fired) else None)


def _series(kind: str, epochs: int, phi: tuple[float, float], seed: int) -> Iterator[FloatArray]:
    """Pairs of series of a kind, some at a time [2, some, epochs]."""
    blocks = in_blocks(SERIES, epochs)
    counts = [len(range(SERIES)[block]) for block in blocks]
    first, second = (stream(f"settling {kind}", seed, epochs) for _ in range(2))
    for count in counts:  # in the stream the second series of all pairs come after the first ones
        second.standard_normal((count, epochs))
    for count in counts:
        noise = np.stack([random.standard_normal((count, epochs)) for random in (first, second)])
        if kind == "walk":
            noise = noise.cumsum(axis=2)
        elif kind == "divergent":
            noise = np.arange(epochs) + STEEPNESS * noise
        elif kind == "autoregressive":
            for k in range(2):
                for e in range(1, epochs):
                    noise[k, :, e] = phi[k] * noise[k, :, e - 1] + math.sqrt(1 - phi[k] ** 2) * noise[k, :, e]
        yield noise


def _psi(pairs: FloatArray, w_h: float, causal: bool) -> FloatArray:
    """The stability index of each pair [series, epochs]; causal: with what was known at each epoch, after the fifth."""
    if causal:
        z = _expanding_z(pairs)
    else:
        z = (pairs - pairs.mean(axis=2, keepdims=True)) / pairs.std(axis=2, ddof=1, keepdims=True)
    return np.asarray(w_h * z[0] + (1 - w_h) * z[1])


def _expanding_z(x: FloatArray) -> FloatArray:
    """The z-score of each epoch among those up to it, along the last axis; NaN before the fifth epoch."""
    count = np.arange(1, x.shape[-1] + 1)
    mean = x.cumsum(axis=-1) / count
    # Welford's update: the sum of squares about the mean grows by (x - mean before) (x - mean after).
    nothing = np.zeros((*x.shape[:-1], 1))
    before = np.concatenate([nothing, mean[..., :-1]], axis=-1)
    squares = np.concatenate([nothing, ((x - before) * (x - mean))[..., 1:]], axis=-1).cumsum(axis=-1)
    z = np.full(x.shape, np.nan)
    late = slice(CAUSAL_EPOCHS - 1, None)
    z[..., late] = (x - mean)[..., late] / np.sqrt(squares[..., late] / (count[late] - 1))
    return z


def _first_settled(values: FloatArray, threshold: float) -> NDArray[np.int64]:
    """Where volatility [series, epochs] has first stayed below the threshold; -1 where never."""
    below = values < threshold
    calm = below
    for k in range(1, CONSECUTIVE):
        calm = calm[:, :-1] & below[:, k:]
    if not calm.shape[1]:
        return np.full(len(values), -1)
    return np.where(calm.any(axis=1), calm.argmax(axis=1) + CONSECUTIVE - 1, -1)


def autocorrelation(values: ArrayLike) -> float:
    """Autocorrelation at lag one of a run's epochs [E], over neighbours that both have a value; NaN with fewer than five pairs.

    >>> round(autocorrelation([1.0, -1, 1, -1, 1, -1, 1]), 2)
    -1.0
    """
    x = np.asarray(values, dtype=np.float64)
    pairs = np.array([x[:-1], x[1:]])
    pairs = pairs[:, np.isfinite(pairs).all(axis=0)]
    if pairs.shape[1] < CAUSAL_EPOCHS or (pairs.max(axis=1) == pairs.min(axis=1)).any():
        return math.nan
    return float(np.corrcoef(pairs)[0, 1])


def sentence(summary: Summary, way: str = "causal") -> str:
    """How often and how early volatility settles where nothing converges, without a full stop; empty if not known."""
    parts = []
    for kind, ways in summary.settling.items():
        if kind in KINDS:
            median = ways[way].median
            half = "" if median is None else f", half of them by {summary.unit} {median}"
            parts.append(f"{ways[way].share:.0%} of series of {KINDS[kind]}{half}")
    if parts and not any(ways[way].share for kind, ways in summary.settling.items() if kind in KINDS):
        return f"on series of so few checkpoints it never settles, whatever they do ({way})"
    return f"on series that do not converge it settles as well ({way}): {'; '.join(parts)}" if parts else ""
