"""Phase synchrony of many series: the analytic signal by real Fourier transforms, phases without angles."""

import math

import numpy as np
from numpy.typing import NDArray

from posthoc.analysis.arrays import FloatArray
from posthoc.analysis.kernels import REORDER, jit
from posthoc.analysis.kernels.dfa import centre

BLOCK = 512
HALVES_BLOCK = 128


@jit()
def centre_rows(
    first: int, last: int, x: NDArray[np.floating], rounding: float, out: FloatArray, state: NDArray[np.int8]
) -> None:
    """Fill rows of out [U, T] with those of x [U, T], centred and scaled to about 1, and state [U] (`centre`).

    rounding: within which share of its largest value a row is constant.
    """
    for u in range(first, last):
        row = out[u]
        state[u], mean, _ = centre(x[u], rounding, row)
        for t in range(len(row)):
            row[t] -= mean


@jit(fastmath=set(REORDER))
def order_parameter(first: int, last: int, x: FloatArray, h: FloatArray, R: FloatArray) -> None:
    """Fill R [T] from `first` to `last`: the length of the mean over units of z / |z|, z = x + i h, both [U, T].

    Always in the same blocks of time, the units added in their order: threads do not change the sum.
    """
    U = len(x)
    cosine, sine = np.empty(BLOCK), np.empty(BLOCK)
    for start in range(first, last, BLOCK):
        length = min(BLOCK, last - start)
        cosine[:] = 0.0
        sine[:] = 0.0
        for u in range(U):
            row, transform = x[u, start : start + length], h[u, start : start + length]
            for t in range(length):
                a, b = row[t], transform[t]
                square = a * a + b * b
                inverse = 1.0 / math.sqrt(square) if square > 0.0 else 0.0
                cosine[t] += a * inverse if square > 0.0 else 1.0  # the angle of 0 is 0
                sine[t] += b * inverse
        for t in range(length):
            R[start + t] = math.sqrt(cosine[t] * cosine[t] + sine[t] * sine[t]) / U


@jit(fastmath=set(REORDER))
def halves_order_parameter(
    first: int, last: int, x: FloatArray, h: FloatArray, halves: FloatArray, lengths: FloatArray
) -> None:
    """Fill lengths [2, K, T] from `first` to `last`: of the sums over the units of each half, and the rest, of z / |z|.

    z = x + i h, both [U, T]; halves: [K, U], 1 for the units of a half, 0 for the rest. In blocks of time, as above.
    """
    U = len(x)
    cosine, sine = np.empty((U, HALVES_BLOCK)), np.empty((U, HALVES_BLOCK))
    all_cosine, all_sine = np.empty(HALVES_BLOCK), np.empty(HALVES_BLOCK)
    half_cosine, half_sine = np.empty(HALVES_BLOCK), np.empty(HALVES_BLOCK)
    for start in range(first, last, HALVES_BLOCK):
        length = min(HALVES_BLOCK, last - start)
        all_cosine[:] = 0.0
        all_sine[:] = 0.0
        for u in range(U):
            for t in range(length):
                a, b = x[u, start + t], h[u, start + t]
                square = a * a + b * b
                inverse = 1.0 / math.sqrt(square) if square > 0.0 else 0.0
                cosine[u, t] = a * inverse if square > 0.0 else 1.0
                sine[u, t] = b * inverse
                all_cosine[t] += cosine[u, t]
                all_sine[t] += sine[u, t]
        for k in range(len(halves)):
            half_cosine[:] = 0.0
            half_sine[:] = 0.0
            for u in range(U):
                if halves[k, u] > 0:
                    for t in range(length):
                        half_cosine[t] += cosine[u, t]
                        half_sine[t] += sine[u, t]
            for t in range(length):
                a, b = half_cosine[t], half_sine[t]
                lengths[0, k, start + t] = math.sqrt(a * a + b * b)
                a, b = all_cosine[t] - a, all_sine[t] - b
                lengths[1, k, start + t] = math.sqrt(a * a + b * b)
