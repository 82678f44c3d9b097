"""Sums over the numbers of a tensor and of the same tensor at other times, and fingerprints of bytes."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from posthoc.analysis.kernels import REORDER, jit

SUMS = 5
"""What `add_sums` sums."""


@jit(fastmath=set(REORDER))
def add_sums(
    x: NDArray[Any], previous: NDArray[Any], before: NDArray[Any], first: NDArray[Any], sums: NDArray[np.float64]
) -> None:
    """Add to sums [5]: the squares of x [N], of its differences from three others, and the number of its zeros."""
    squares, one, two, start, zeros = 0.0, 0.0, 0.0, 0.0, 0
    for i in range(x.size):
        value = np.float64(x[i])
        squares += value * value
        step = value - previous[i]
        one += step * step
        step = value - before[i]
        two += step * step
        step = value - first[i]
        start += step * step
        zeros += x[i] == 0
    sums[0] += squares
    sums[1] += one
    sums[2] += two
    sums[3] += start
    sums[4] += zeros


@jit()
def fingerprint(words: NDArray[np.uint32]) -> np.uint64:
    """A 64-bit hash of words [N]: products of two words, each added to a number of its place, summed modulo 2^64.

    The NH hash of UMAC (Black et al. 1999) with fixed keys: equal words give equal numbers, others hardly ever do,
    unless somebody means them to.
    """
    total = np.uint64(0)
    for pair in range(words.size // 2):
        place = np.uint32(pair + 1)
        key = np.uint32(place * np.uint32(0x9E3779B1))
        key ^= key >> np.uint32(15)
        key = np.uint32(key * np.uint32(0x85EBCA77))
        a = np.uint32(words[2 * pair] + key)
        b = np.uint32(words[2 * pair + 1] + (key ^ np.uint32(0xC2B2AE3D)))
        total += np.uint64(a) * np.uint64(b)
    if words.size % 2:
        total += np.uint64(words[-1]) * np.uint64(0x9E3779B97F4A7C15)
    return total


@jit()
def used_bits(words: NDArray[np.uint32]) -> np.uint32:
    """Which bits are set in any of the words [N]: of single-precision numbers that were rounded, the lowest never are."""
    bits = np.uint32(0)
    for i in range(words.size):
        bits |= words[i]
    return bits
