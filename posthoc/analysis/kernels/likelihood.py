"""The restricted likelihood of many Gaussian series at once, by the innovations of Durbin and Levinson."""

import math

import numpy as np

from posthoc.analysis.arrays import FloatArray
from posthoc.analysis.kernels import REORDER, jit


@jit(fastmath=set(REORDER))
def restricted(first: int, last: int, y: FloatArray, covariance: FloatArray, log_likelihood: FloatArray) -> None:
    """Fill columns of log_likelihood [U, G], first to last, with that of each series y [U, T] under each model.

    covariance [G, T]: autocovariances at the lags 0 to T - 1. Mean and scale are unknown: the mean is integrated out,
    the scale takes its best value. With R the covariance matrix and P what is left of its inverse once the mean is
    removed, -2 log likelihood = log |R| + log 1'R^-1 1 + (T - 1) log y'P y; y should be centred, to lose no digits.
    """
    U, T = y.shape
    for g in range(first, last):
        gamma = covariance[g]
        weights, before = np.zeros(T), np.zeros(T)  # of y[0] .. y[t - 1] in the prediction of y[t]
        square, cross = np.zeros(U), np.zeros(U)  # y'R^-1 y and 1'R^-1 y so far
        ones = log_determinant = 0.0
        variance = gamma[0]
        for t in range(T):
            if t:
                partial = gamma[t]
                for j in range(t - 1):
                    partial -= before[j] * gamma[j + 1]
                partial /= variance
                weights[0] = partial
                for j in range(1, t):
                    weights[j] = before[j - 1] - partial * before[t - 1 - j]
                variance *= 1.0 - partial * partial
            total = 0.0
            for j in range(t):
                total += weights[j]
            unit = 1.0 - total
            ones += unit * unit / variance
            log_determinant += math.log(variance)
            for u in range(U):
                series = y[u]
                innovation = series[t]
                for j in range(t):
                    innovation -= weights[j] * series[j]
                square[u] += innovation * innovation / variance
                cross[u] += innovation * unit / variance
            weights, before = before, weights
        for u in range(U):
            left = square[u] - cross[u] * cross[u] / ones
            log_likelihood[u, g] = -0.5 * (log_determinant + math.log(ones) + (T - 1) * math.log(left))
