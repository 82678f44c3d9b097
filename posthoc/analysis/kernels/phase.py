"""Phase synchrony of many series: the analytic signal by real Fourier transforms, phases without angles."""

import math

import numba
import numpy as np
import scipy.fft
from numba import prange
from numpy.typing import NDArray

from posthoc.analysis.kernels import REORDER, jit
from posthoc.analysis.kernels.dfa import LIVE, centre

BLOCK = 512


@jit(parallel=True)
def centre_rows(x: NDArray[np.floating], out: NDArray[np.float64], live: NDArray[np.bool_]) -> None:
    """Fill out [U, T] with the rows of x [U, T], centred and scaled to about 1, and live [U] with which have a phase."""
    for u in prange(len(x)):
        state, mean = centre(x[u], out[u])
        live[u] = state == LIVE
        for t in range(x.shape[1]):
            out[u, t] -= mean


@jit(parallel=True)
def _rotate(spectrum: NDArray[np.complex128], last: int) -> None:
    """Multiply the spectra [U, F] by -i in place, and by 0 at frequency 0 and from `last` on."""
    for u in prange(len(spectrum)):
        spectrum[u, 0] = 0.0
        for f in range(1, last):
            value = spectrum[u, f]
            spectrum[u, f] = complex(value.imag, -value.real)
        for f in range(last, spectrum.shape[1]):
            spectrum[u, f] = 0.0


def hilbert(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """The Hilbert transform of each row of x [U, T]: the imaginary part of its analytic signal."""
    T = x.shape[1]
    # Waking a thread for less costs more than it saves.
    workers = max(1, min(numba.get_num_threads(), x.size // 2**19))
    spectrum = scipy.fft.rfft(x, axis=1, workers=workers)
    _rotate(spectrum, (T + 1) // 2)  # without the frequency of alternating signs that an even T has
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
            row, transform = x[u, start : start + length], h[u, start : start + length]
            for t in range(length):
                a, b = row[t], transform[t]
                square = a * a + b * b
                inverse = 1.0 / math.sqrt(square) if square > 0.0 else 0.0
                cosine[t] += a * inverse if square > 0.0 else 1.0  # the angle of 0 is 0
                sine[t] += b * inverse
        for t in range(length):
            R[start + t] = math.sqrt(cosine[t] * cosine[t] + sine[t] * sine[t]) / U
    return R


@jit(parallel=True)
def phasors(x: NDArray[np.float64], h: NDArray[np.float64], z: NDArray[np.complex128]) -> None:
    """Fill z [U, T] with exp(i phi) = (x + i h) / |x + i h|."""
    for u in prange(len(x)):
        for t in range(x.shape[1]):
            a, b = x[u, t], h[u, t]
            square = a * a + b * b
            inverse = 1.0 / math.sqrt(square) if square > 0.0 else 0.0
            z[u, t] = complex(a * inverse, b * inverse) if square > 0.0 else 1.0
