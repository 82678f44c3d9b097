"""The fluctuation functions of a batch of series, and the exponents that are their slopes."""

import functools
from dataclasses import dataclass
from fractions import Fraction
from numbers import Integral, Real

import numpy as np
from numpy.typing import ArrayLike, NDArray

from posthoc.analysis.arrays import FloatArray, as_series, whole_numbers
from posthoc.analysis.kernels import dfa as kernel
from posthoc.analysis.kernels import in_threads
from posthoc.analysis.scales import default_scales
from posthoc.errors import UsageError

REASONS = {
    kernel.CONSTANT: "constant",
    kernel.NON_FINITE: "non-finite",
    kernel.NO_FLUCTUATION: "no fluctuation",
}


@dataclass(frozen=True)
class DFA:
    """Result of `dfa`. For a batch of U series alpha, intercept and r2 are [U], fluctuation [U, S]; else scalars, [S].

    alpha, intercept, r2: of the line log F = intercept + alpha log s (natural logarithms); fluctuation: F(s), in the
    units of x, each series in its own; log_fluctuation: log F(s), also where F itself over- or underflows; reason: why
    an exponent is NaN (`constant`, `non-finite`, `no fluctuation`), None where there is one.
    debiased, low, high: if asked for, the exponent freed of the bias of short series and its 95 % interval.
    """

    alpha: FloatArray
    intercept: FloatArray
    r2: FloatArray
    scales: NDArray[np.int64]
    fluctuation: FloatArray
    log_fluctuation: FloatArray
    reason: tuple[str | None, ...]
    debiased: FloatArray | None = None
    low: FloatArray | None = None
    high: FloatArray | None = None

    def relative_log_fluctuation(self) -> FloatArray:
        """Of a batch, log F(s) less its mean over the scales, of the series that have an exponent [live, S].

        The least-squares line through their mean has the mean of their alpha for its slope.
        """
        log_F = self.log_fluctuation[np.isfinite(self.alpha)]
        relative: FloatArray = log_F - log_F.mean(axis=1, keepdims=True)
        return relative


@dataclass(frozen=True)
class Windows:
    """How series are cut into windows and fluctuations taken of these, as of `dfa`; UsageError for what is out of range."""

    order: int = 1
    fluctuation: str = "peng"
    overlap: float = 0.0
    two_sided: bool = False

    def __post_init__(self) -> None:
        order, overlap = self.order, self.overlap
        if self.fluctuation not in ("peng", "published"):
            raise UsageError(f"fluctuation is {self.fluctuation!r}; give peng or published.")
        if not (isinstance(order, Integral) and 1 <= order <= 3 and isinstance(overlap, Real) and 0 <= overlap < 1):
            raise UsageError(f"order {order}, overlap {overlap}: give an order of 1, 2 or 3 and an overlap in [0, 1).")


def analyse(x: ArrayLike, scales: ArrayLike | None = None, windows: Windows | None = None) -> DFA:
    """As `dfa`, of one series or more, always as a batch, and without calibration, which is simulated by this."""
    windows = windows or Windows()
    x, rounding = as_series(x)
    if x.ndim not in (1, 2):
        raise UsageError(f"x has shape {x.shape}; expected one series [T] or a batch [U, T].")
    batch = np.ascontiguousarray(np.atleast_2d(x))
    U, T = batch.shape
    chosen = _chosen(scales, T, windows.order)
    steps = _steps(chosen, float(windows.overlap))
    basis = np.concatenate([_polynomials(s, windows.order) for s in chosen.tolist()], axis=1)
    F = np.empty((U, len(chosen)))
    power, state = np.zeros(U, np.int64), np.empty(U, np.int8)
    choices = windows.fluctuation == "published", bool(windows.two_sided)
    options = (batch, rounding, chosen, steps, basis, *choices, F, power, state)
    in_threads(lambda first, last: kernel.fluctuation(first, last, *options), U)
    alpha, intercept, r2 = log_log_fit(chosen, F)
    for numbers in (alpha, intercept, r2):
        numbers[state != kernel.LIVE] = np.nan
    with np.errstate(divide="ignore", over="ignore", under="ignore"):
        log_F = np.log(F) - power[:, None] * np.log(2)
        F = np.ldexp(F, -power[:, None])
    live = bool((state == kernel.LIVE).all())
    reason = (None,) * U if live else tuple(REASONS.get(code) for code in state.tolist())
    return DFA(alpha, intercept - power * np.log(2), r2, chosen, F, log_F, reason)


def of_sums(sums: ArrayLike, scales: NDArray[np.int64], T: int) -> DFA:
    """As `dfa` with its defaults, of series of T points of which the sums over windows were kept: of squared residuals of
    the profile less a line, [U, S]."""
    windows = T // scales
    with np.errstate(invalid="ignore"):
        F = np.sqrt(np.asarray(sums, dtype=np.float64) / (windows * scales))
    finite, moves = (np.asarray(rows.all(axis=1)) for rows in (np.isfinite(F), F > 0))
    alpha, intercept, r2 = log_log_fit(scales, np.where((finite & moves)[:, None], F, np.nan))
    with np.errstate(divide="ignore", invalid="ignore"):
        log_F = np.log(F)
    reason = tuple(
        None if known else REASONS[kernel.NO_FLUCTUATION if real else kernel.NON_FINITE]
        for known, real in zip(finite & moves, finite, strict=True)
    )
    return DFA(alpha, intercept, r2, scales, F, log_F, reason)


def _chosen(scales: ArrayLike | None, T: int, order: int) -> NDArray[np.int64]:
    """The scales that are asked for, rising; UsageError where they do not fit."""
    chosen = default_scales(T).tolist() if scales is None else whole_numbers("scales", scales)
    if scales is None and len(chosen) < 2:
        raise UsageError(f"Series of {T} points are too short for DFA; it needs 20.")
    least = order + 2
    if len(chosen) < 2 or chosen[0] < least or chosen[-1] > T // 2:
        raise UsageError(
            f"Series of {T} points with scales {chosen}: "
            f"at least two scales from {least} to {T // 2} are needed for order {order}."
        )
    return np.array(chosen)


def _steps(scales: NDArray[np.int64], overlap: float) -> NDArray[np.int64]:
    """Points from the start of a window of each scale to that of the next; exact, where 10 * (1 - 0.8) is not 2."""
    if not overlap:
        return scales
    moved = 1 - Fraction(overlap).limit_denominator(10**6)
    return np.array([max(1, int(s * moved)) for s in scales.tolist()])


@functools.lru_cache(maxsize=256)
def _polynomials(s: int, order: int) -> FloatArray:
    """Orthonormal polynomials of degree 1 to `order` over s equidistant points, orthogonal to the constant [order, s]."""
    time = (np.arange(s) - (s - 1) / 2) / s
    orthonormal, _ = np.linalg.qr(np.vander(time, order + 1, increasing=True))
    return np.ascontiguousarray(orthonormal.T[1:])


def log_log_fit(scales: NDArray[np.int64], F: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Slope, intercept and r2 [U] of the least-squares line of log F [U, S] on log scales."""
    with np.errstate(divide="ignore", invalid="ignore"):
        log_s, log_F = np.log(scales), np.log(F)
        centred = log_s - log_s.mean()
        middle = log_F.mean(axis=1, keepdims=True)
        slope = (centred * (log_F - middle)).sum(axis=1) / (centred**2).sum()
        intercept = middle[:, 0] - slope * log_s.mean()
        left = log_F - middle - slope[:, None] * centred
        r2 = 1 - (left**2).sum(axis=1) / ((log_F - middle) ** 2).sum(axis=1)
    return slope, intercept, r2
