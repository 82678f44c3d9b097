"""Phase synchrony of many series: the analytic signal by real Fourier transforms, the order parameter without angles."""

import math
import os

import numpy as np
import scipy.fft
from numba import prange
from numpy.typing import NDArray

from posthoc.analysis.kernels import REORDER, jit

BLOCK = 512
ROUNDING = 8 * np.finfo(np.float64).eps


def hilbert(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """The Hilbert transform of each row of x [U, T]: the imaginary part of its analytic signal."""
    T = x.shape[1]
    workers = len(os.sched_getaffinity(0))
    spectrum = scipy.fft.rfft(x, axis=1, workers=workers)
    spectrum *= -1j
    spectrum[:, 0] = 0
    if T % 2 == 0:
        spectrum[:, -1] = 0
    return np.asarray(scipy.fft.irfft(spectrum, n=T, axis=1, workers=workers, overwrite_x=True))


@jit(parallel=True, fastmath=set(REORDER))
def order_parameter(x: NDArray[np.float64], h: NDArray[np.float64]) -> NDArray[np.float64]:
    """R(t) [T]: the length of the mean over units of z / |z|, z = x + i h, x and h being [U, T].

    Parallel over time, the units always added in their order: the threads do not change the sum.
    """
    U, T = x.shape
    R = np.empty(T)
    for block in prange((T + BLOCK - 1) // BLOCK):
        start = block * BLOCK
        length = min(BLOCK, T - start)
        cosine = np.zeros(length)
        sine = np.zeros(length)
        for u in range(U):
            for t in range(length):
                a = x[u, start + t]
                b = h[u, start + t]
                square = a * a + b * b
                inverse = 1.0 / math.sqrt(square) if square > 0.0 else 0.0
                cosine[t] += a * inverse if square > 0.0 else 1.0  # the angle of 0 is 0
                sine[t] += b * inverse
        for t in range(length):
            R[start + t] = math.sqrt(cosine[t] * cosine[t] + sine[t] * sine[t]) / U
    return R
