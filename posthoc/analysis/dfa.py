"""Detrended fluctuation analysis: the Hurst exponent of one series or of a batch."""

from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from posthoc.analysis.calibration import calibration
from posthoc.analysis.fluctuation import DFA, Windows, analyse
from posthoc.errors import UsageError


def dfa(
    x: ArrayLike,
    scales: ArrayLike | None = None,
    order: int = 1,
    fluctuation: str = "peng",
    overlap: float = 0.0,
    two_sided: bool = False,
    calibrate: bool = False,
) -> DFA:
    """Detrended fluctuation analysis (Peng et al. 1994).

    The profile y = cumsum(x - mean x) is cut into windows of each scale s, a polynomial of `order` is removed from
    each, and F(s) is the root mean squared residual over all windows (`peng`) or the mean over windows of each one's
    root mean squared residual (`published`, arXiv 2604.09716). alpha is the least-squares slope of log F on log s:
    0.5 for white noise, 1.5 for Brownian motion, H for fractional Gaussian noise.

    A series that is constant or not finite has no exponent: NaN, with the reason. Constant is one whose values differ
    by no more than eight units in the last place of the largest of them, in float32 if it comes as such.

    Parameters
    ----------
    x
        One series [T] or a batch [U, T], real numbers.
    scales
        Whole numbers from order + 2 to T // 2 (default: twelve, log-spaced, up to a quarter of the series).
    order
        Of the polynomial, 1 to 3.
    fluctuation
        `peng` or `published`.
    overlap
        Share of a window that the next one repeats, from 0 to below 1: the next starts s (1 - overlap) points on, or, where
        that is no whole number, as many as is just below (the fraction that its digits stand for: 0.8 is 4/5).
    two_sided
        Cut the profile from its end, too, so that no point is left over.
    calibrate
        Debias each exponent by simulated noise of known exponent and give its interval (no overlap, one side).

    Returns
    -------
    DFA
        `alpha`, `intercept` and `r2`, [U] or scalars; `fluctuation` F(s), [U, S] or [S], at `scales`; `reason` for NaN; with
        `calibrate` also `debiased`, `low` and `high`.

    Raises
    ------
    PosthocError
        Where an argument is out of range, there are fewer than two scales, x has no such shape, or its values are masked,
        complex or no numbers.

    Examples
    --------
    >>> walk = np.cumsum(np.random.default_rng(0).standard_normal(4096))
    >>> round(float(dfa(walk).alpha), 2)
    1.49
    >>> dfa(np.ones(100)).reason
    ('constant',)
    """
    result = analyse(x, scales, Windows(order, fluctuation, overlap, two_sided))
    if calibrate:
        if overlap or two_sided:
            raise UsageError(
                "calibrate goes with windows that do not overlap, from one side; leave overlap and both ends out."
            )
        T = np.shape(x)[-1]
        known = calibration(T, tuple(result.scales.tolist()), order, fluctuation)
        low, high = known.interval(result.alpha)
        result = replace(result, debiased=known.debias(result.alpha), low=low, high=high)
    if np.ndim(x) == 1:
        first = {name: value[0] for name, value in vars(result).items() if isinstance(value, np.ndarray)}
        result = replace(result, **first | {"scales": result.scales})
    return result
