"""The scales, in points of time, over which fluctuations are taken."""

import numpy as np
from numpy.typing import NDArray

START = 64
"""Tokens at the start of a document that are left out: little precedes them, and what networks make of them drifts."""
LEAST_POINTS, LEAST_PUBLISHED = 20, 72
"""Points in time that the default scales, 4 to a quarter of them, and the published ones need for a slope."""


def published_scales(T: int) -> NDArray[np.int64]:
    """The scales of arXiv 2604.09716: ten from 16 to T // 4, log-spaced, truncated, those with two windows or more.

    >>> published_scales(2048)
    array([ 16,  23,  34,  50,  74, 109, 161, 237, 348, 512])
    """
    if T // 4 < 16:
        return np.empty(0, np.int64)
    scales = np.unique(np.logspace(np.log10(16), np.log10(T // 4), 10).astype(np.int64))
    return scales[T // scales >= 2]


def default_scales(T: int) -> NDArray[np.int64]:
    """Twelve log-spaced scales from 8 (4 for series shorter than 256) to T // 4.

    >>> default_scales(64)
    array([ 4,  5,  6,  7,  8,  9, 10, 11, 12, 14, 16])
    """
    low, high = (8 if T >= 256 else 4), T // 4
    if high <= low:
        return np.empty(0, np.int64)
    return np.unique(np.rint(np.geomspace(low, high, 12)).astype(np.int64))


def token_scales(T: int) -> NDArray[np.int64]:
    """The default scales of a document of T tokens, without those at its start.

    >>> token_scales(256)
    array([ 4,  5,  6,  8, 10, 12, 16, 19, 24, 31, 38, 48])
    """
    return default_scales(T - START)


def octaves(T: int) -> NDArray[np.int64]:
    """The first positions of 0, 1, 2 to 3, 4 to 7, ... in a document of T tokens.

    >>> octaves(9)
    array([0, 1, 2, 4, 8])
    """
    return np.array([0, *(2**k for k in range((T - 1).bit_length()))])


def token_lags(T: int) -> NDArray[np.int64]:
    """0 and the powers of 2 up to half of a document of T tokens, without those at its start.

    >>> token_lags(256)
    array([ 0,  1,  2,  4,  8, 16, 32, 64])
    """
    half = (T - START) // 2
    return np.array([0, *(2**k for k in range(max(half, 0).bit_length()))])
