"""What scores of the next token say of it, in one pass over them."""

import math

import numpy as np
from numpy.typing import NDArray

from posthoc.analysis.kernels import REORDER, jit

SPAN = 2048
"""Scores that are summed in single precision; their sums in double."""
LOG2_E = np.float32(1.44269504)
LN2_HIGH, LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
P0, P1, P2 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
P3, P4, P5 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)
LOWEST, HALF, ONE = np.float32(-87), np.float32(0.5), np.float32(1)
BIAS, FRACTION = np.int32(127), np.int32(23)


@jit(fastmath=set(REORDER))
def loss_and_entropy(
    scores: NDArray[np.float32],
    likeliest: NDArray[np.int64],
    tokens: NDArray[np.int64],
    loss: NDArray[np.float32],
    entropy: NDArray[np.float32],
) -> None:
    """Of each row of scores [R, V], whose largest is at `likeliest`: -log p of its token, and the entropy of p, in nat.

    NaN where a score is NaN or infinite, but that minus infinity is a p of 0. exp is that of Cephes (Moshier), to 2e-7, which
    becomes vector instructions without a library of them; what is below exp(-87) counts as that much.
    """
    for row in range(scores.shape[0]):
        top = scores[row, likeliest[row]]
        total, product = np.float64(0), np.float64(0)
        for start in range(0, scores.shape[1], SPAN):
            some, of_some = np.float32(0), np.float32(0)
            for k in range(start, min(scores.shape[1], start + SPAN)):
                below = max(scores[row, k] - top, LOWEST)
                power = np.floor(below * LOG2_E + HALF)
                rest = below - power * LN2_HIGH - power * LN2_LOW
                series = ((((P0 * rest + P1) * rest + P2) * rest + P3) * rest + P4) * rest + P5
                scale = np.int32((np.int32(power) + BIAS) << FRACTION).view(np.float32)
                p = (series * rest * rest + rest + ONE) * scale
                some += p
                of_some += p * below
            total += some
            product += of_some
        known = math.isfinite(top)
        loss[row] = math.log(total) - (scores[row, tokens[row]] - top) if known else math.nan
        entropy[row] = math.log(total) - product / total if known else math.nan
