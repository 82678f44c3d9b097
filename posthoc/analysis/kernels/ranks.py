"""Kendall's tau-b of many pairs of rankings at once (Kendall 1945)."""

import math

import numpy as np
from numpy.typing import NDArray

from posthoc.analysis.arrays import FloatArray
from posthoc.analysis.kernels import jit


@jit()
def mean_taus(x: FloatArray, y: FloatArray, kept: NDArray[np.bool_]) -> FloatArray:
    """For each of several x [M, E, R] the mean over the epochs of tau-b with y [E, R] among the runs `kept` [E, R].

    An epoch at which either is tied throughout is left out; NaN where all are.
    """
    result = np.empty(len(x))
    for m in range(len(x)):
        total, epochs = 0.0, 0
        for e in range(x.shape[1]):
            both, of_x, of_y = 0, 0, 0
            for i in range(x.shape[2]):
                if not kept[e, i]:
                    continue
                for j in range(i):
                    if kept[e, j]:
                        a = int(x[m, e, i] > x[m, e, j]) - int(x[m, e, i] < x[m, e, j])
                        b = int(y[e, i] > y[e, j]) - int(y[e, i] < y[e, j])
                        both += a * b
                        of_x += a * a
                        of_y += b * b
            if of_x and of_y:
                total += both / math.sqrt(of_x * of_y)
                epochs += 1
        result[m] = total / epochs if epochs else np.nan
    return result
