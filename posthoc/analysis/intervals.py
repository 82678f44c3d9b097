"""95 % intervals, each named for what it covers: fresh images and channels, further epochs of one run, further runs.

None is a bootstrap. Over the units of a layer the bootstrap leaves out the images, which all units share; over epochs
it underrates how much of its past an epoch repeats. How often these cover is measured in docs/intervals.md.
"""

import math
from collections.abc import Sequence

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from posthoc.analysis.arrays import FloatArray, correlation, is_constant, scaled
from posthoc.analysis.records import NOWHERE, Interval

LEAST_EPOCHS = 10
"""With fewer an interval of a correlation covers less than it says (0.88 with six)."""
LEAST_DRAWS = 19
"""With fewer the spread of a null is known to no better than a third."""
SPLITS = 32
PRIOR = 0.3
UPPER = 0.975


def half_splits(strata: NDArray[np.int64], random: np.random.Generator, count: int = SPLITS) -> FloatArray:
    """Random halves of the units of every stratum (layer): 0 or 1 for every split and unit, [count, U].

    The odd unit of a stratum goes to one half and to the other in turn, for metastability depends on how many units a
    half has. Strata of one unit are taken together.

    >>> half_splits(np.array([0, 0, 0, 1, 1, 1]), np.random.default_rng(0), 3).sum(axis=1)
    array([3., 3., 3.])
    """
    halves = np.zeros((count, len(strata)))
    names, sizes = np.unique(strata, return_counts=True)
    together = np.where(np.isin(strata, names[sizes == 1]), -1, strata)
    odd = 0
    for stratum in np.unique(together):
        members = np.flatnonzero(together == stratum)
        size = (len(members) + odd) // 2
        odd = (odd + len(members)) % 2
        for split in halves:
            split[random.permutation(members)[:size]] = 1
    return halves


def over_images_and_channels(value: float, drawn: FloatArray, differences: FloatArray) -> Interval:
    """What a measure is expected to be over other images of the same classes and other channels of the same layers.

    The network is fixed. drawn: [B], the measure under the null that reorders what is exchangeable (images within
    their class), which spreads as it would over fresh images; differences: [B, K], its value in one half of the
    channels less that in the other, under the same draws, for K random halves (`half_splits`). The mean of such a
    difference over the draws is what the choice of channels alone does to half of them; the variance for all of them
    is a quarter of it, for means as for lengths of sums of phases. NaN with fewer than `LEAST_DRAWS` draws.
    """
    good = np.isfinite(drawn) & np.isfinite(differences).all(axis=1)
    B = int(good.sum())
    if B < LEAST_DRAWS or not math.isfinite(value):
        return NOWHERE
    spread = differences[good].mean(axis=0) ** 2 - differences[good].var(axis=0, ddof=1) / B
    variance = drawn[good].var(ddof=1) + max(0.0, float(spread.mean()) / 4)
    margin = float(scipy.special.stdtrit(B - 1, UPPER)) * math.sqrt(variance)
    return value - margin, value + margin


def over_units(values: FloatArray, strata: NDArray[np.int64]) -> Interval:
    """The mean over other units of the same strata [U], what they share being fixed (Student's t, stratified).

    NaN values are left out; NaN where no stratum has two units.
    """
    groups = [values[(strata == stratum) & np.isfinite(values)] for stratum in np.unique(strata)]
    groups = [group for group in groups if len(group)]
    U = sum(map(len, groups))
    freedom = U - len(groups)
    if freedom < 1 or any(len(group) < 2 for group in groups):
        return NOWHERE
    variance = sum(len(group) * group.var(ddof=1) for group in groups) / U**2
    margin = float(scipy.special.stdtrit(freedom, UPPER)) * math.sqrt(variance)
    mean = sum(float(group.sum()) for group in groups) / U
    return mean - margin, mean + margin


def over_halves(value: float, differences: FloatArray, strata: NDArray[np.int64]) -> Interval:
    """What a measure of units [U] together is expected to be over other units of the same strata (Student's t).

    What the units share is fixed. differences: [K], the measure in one half of the units less that in the other, for
    random halves; a quarter of their mean square is the variance for all units, for a mean as for the length of a sum of
    phases (the jackknife makes it four times as large where the units are independent). Of metastability it covers 0.93
    to 0.96, of units that share part of what they do 0.86 to 0.92, of images over depth, whose sum is 0 in every layer,
    0.99. NaN where a stratum has a single unit.
    """
    freedom = len(strata) - len(np.unique(strata))
    if freedom < 1 or np.unique(strata, return_counts=True)[1].min() < 2 or not np.isfinite(differences).all():
        return NOWHERE
    margin = float(scipy.special.stdtrit(freedom, UPPER)) * math.sqrt(float((differences**2).mean()) / 4)
    return value - margin, value + margin


def over_samples_and_units(
    value: float, of_samples: FloatArray, labels: NDArray[np.int64], of_units: FloatArray, strata: NDArray[np.int64]
) -> Interval:
    """What any measure is expected to be over other samples of the same classes and other units of the same strata.

    of_samples: [K], the measure in one half of the samples (of class `labels` [N]) less that in the other, for random
    halves; of_units: the same of halves of the units. Both variances are those of `over_halves`, and add. NaN where either is.
    """
    ends = [over_halves(value, of_samples, labels), over_halves(value, of_units, strata)]
    margin = math.hypot(*((high - low) / 2 for low, high in ends))
    return value - margin, value + margin


def over_runs(values: ArrayLike) -> Interval:
    """The mean over further runs (Student's t over the runs [R]); NaN with fewer than three.

    >>> low, high = over_runs([1.0, 2.0, 3.0])
    >>> round(low, 3), round(high, 3)
    (-0.484, 4.484)
    """
    values = np.asarray(values, dtype=np.float64)
    R = len(values)
    if R < 3 or not np.isfinite(values).all():
        return NOWHERE
    margin = float(scipy.special.stdtrit(R - 1, UPPER)) * float(values.std(ddof=1)) / math.sqrt(R)
    return float(values.mean()) - margin, float(values.mean()) + margin


def mean_over_epochs(values: ArrayLike) -> Interval:
    """The mean that a run's epochs scatter around, [E] in their order, NaN where there is none.

    The epochs are taken for a stationary autoregression of order 1 with unknown mean, variance and coefficient phi.
    Given phi the mean has Student's t distribution (generalised least squares); over phi it is averaged by the
    restricted likelihood with the prior (1 - phi^2)^(-0.3): between a flat one, with which phi near 1 is missed too
    often, and the reference prior of Berger & Yang (1994), whose exponent of -1/2 covers more than it says. The nearer
    phi can be to 1, the wider it is: a series that drifts has no mean to be sure of. NaN with fewer than
    `LEAST_EPOCHS` epochs or without variation.
    """
    x = np.asarray(values, dtype=np.float64)
    at = np.flatnonzero(np.isfinite(x))
    if len(at) < LEAST_EPOCHS or is_constant(x[at]):
        return NOWHERE
    phi = _coefficients(max(100, 8 * math.isqrt(len(at))))
    spread, power = scaled(x[at])
    means, errors, log_likelihood = _autoregression(spread, at, phi)
    weights = _normalised(log_likelihood - PRIOR * np.log1p(-(phi**2)))
    freedom = len(at) - 1

    def beyond(probability: float) -> float:
        def excess(value: float) -> float:
            return float(weights @ scipy.special.stdtr(freedom, (value - means) / errors)) - probability

        reach = 1e3 * errors.max()  # the mixture's own bounds are within those of its widest member
        return float(scipy.optimize.brentq(excess, means.min() - reach, means.max() + reach, xtol=1e-12, rtol=1e-9))

    return math.ldexp(beyond(1 - UPPER), power), math.ldexp(beyond(UPPER), power)


def correlation_over_epochs(x: ArrayLike, y: ArrayLike) -> Interval:
    """The correlation of two series of a run's epochs, [E] each, that its epochs scatter around.

    Around atanh(r), with variance 1 / n, n being the effective number of epochs of two autoregressions of order 1:
    E^2 / sum over pairs of epochs of (phi_x phi_y)^distance (after Bartlett 1946). Over both coefficients it is averaged
    by their restricted likelihoods. Epochs at which a series is NaN are left out; NaN with fewer than `LEAST_EPOCHS`,
    without variation, or where |r| = 1.
    """
    pair = np.array([x, y], dtype=np.float64)
    at = np.flatnonzero(np.isfinite(pair).all(axis=0))
    pair = pair[:, at]
    if len(at) < LEAST_EPOCHS or any(map(is_constant, pair)):
        return NOWHERE
    r = correlation(*pair)
    if abs(r) >= 1 - 1e-12:
        return NOWHERE
    phi = _coefficients(max(60, 4 * math.isqrt(len(at))))
    weights = np.outer(*(_normalised(_autoregression(scaled(row)[0], at, phi)[2]) for row in pair)).ravel()
    root = np.sqrt(_effective_number(np.outer(phi, phi).ravel(), at))

    def excess(margin: float) -> float:
        return float(weights @ scipy.special.ndtr(margin * root)) - UPPER

    margin = float(scipy.optimize.brentq(excess, 0.0, 10.0, xtol=1e-9))
    return math.tanh(math.atanh(r) - margin), math.tanh(math.atanh(r) + margin)


def _coefficients(count: int) -> FloatArray:
    """Midpoints of `count` equal parts of -1..1."""
    return (np.arange(count) + 0.5) / count * 2 - 1


def _normalised(log_weights: FloatArray) -> FloatArray:
    weights = np.exp(log_weights - log_weights.max())
    return np.asarray(weights / weights.sum())


def _autoregression(x: FloatArray, at: NDArray[np.int64], phi: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Mean of x [E] at the places `at`, its standard error and the restricted log likelihood, for each phi [K].

    The innovations of a stationary autoregression are independent: x_i - phi^d x_j, over sqrt(1 - phi^(2 d)), d being
    the distance to the place before.
    """
    passed = phi[:, None] ** np.diff(at)
    scale = np.sqrt(1 - passed**2)
    ones = np.concatenate([np.ones((len(phi), 1)), (1 - passed) / scale], axis=1)
    innovations = np.concatenate([np.full((len(phi), 1), x[0]), (x[1:] - passed * x[:-1]) / scale], axis=1)
    information = (ones**2).sum(axis=1)
    means = (ones * innovations).sum(axis=1) / information
    squares = ((innovations - means[:, None] * ones) ** 2).sum(axis=1)
    freedom = len(x) - 1
    log_likelihood = -np.log(scale).sum(axis=1) - 0.5 * np.log(information) - 0.5 * freedom * np.log(squares)
    return means, np.sqrt(squares / freedom / information), log_likelihood


def _effective_number(product: FloatArray, at: Sequence[int] | NDArray[np.int64]) -> FloatArray:
    """E^2 / sum over pairs of the places `at` of product^distance, at most E; for each product of two coefficients."""
    E = len(at)
    there = np.zeros(int(at[-1] - at[0]) + 1)
    there[np.asarray(at) - at[0]] = 1
    pairs = np.round(np.correlate(there, there, "full")[len(there) - 1 :]) * 2
    pairs[0] = E
    grid = np.linspace(-1, 1, 4001)[1:-1]
    total = np.polynomial.polynomial.polyval(grid, pairs)
    return np.asarray(np.minimum(E, E**2 / np.interp(product, grid, total)))


def paired(ours: ArrayLike, theirs: ArrayLike) -> tuple[float, float, float]:
    """Mean difference of two rules or measures over the same runs [R], and its interval over further runs."""
    difference = np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)
    return (float(difference.mean()), *over_runs(difference))
