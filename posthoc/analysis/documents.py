"""Means over documents: their 95 % intervals by a bootstrap over documents, and whether differences have a sign.

A document is what is drawn anew: its channels share its tokens, and its tokens each other, so that nothing within it is
resampled. Documents are never put together to one series.
"""

import functools
import math
from collections.abc import Iterable, Iterator

import numpy as np
import scipy
from numpy.typing import NDArray

from posthoc.analysis.arrays import FloatArray, in_blocks
from posthoc.analysis.nulls import NOTHING, Comparison
from posthoc.analysis.records import NullWords
from posthoc.analysis.verdicts import two_sided_p
from posthoc.streams import stream

LEAST_DOCUMENTS = 5
"""With fewer a bootstrap has too few samples to resample from."""
RESAMPLED = 9999
EXACT = 13
"""Documents up to which all signs are tried."""
FLIPPED = 9999
"""Signs that are tried with more documents."""
SIGNS = "signs"
SIGN_WORDS = NullWords("the documents' differences with signs at random", "signs flipped", value="0")
"""The null of a difference: which of a pair is which does not matter."""


def enough(count: int) -> bool:
    """Whether there are so many documents that their mean has an interval."""
    return count >= LEAST_DOCUMENTS


def ends(means: FloatArray, count: int, level: float = 0.95) -> FloatArray:
    """Ends of the interval of means of `count` documents from their bootstrap distribution [..., B], [..., 2].

    Percentiles, taken farther out as the few documents demand: the bootstrap's own spread is too small by
    sqrt((D - 1) / D), and the normal quantile below Student's (the expanded percentile interval of Hesterberg 2015).
    """
    reach = math.sqrt(count / (count - 1)) * float(scipy.special.stdtrit(count - 1, (1 + level) / 2))
    outside = float(scipy.special.ndtr(-reach))
    return np.moveaxis(np.quantile(means, [outside, 1 - outside], axis=-1), 0, -1)


@functools.lru_cache(maxsize=8)
def _counts(count: int, seed: int) -> NDArray[np.uint16]:
    """How often each of `count` documents is in each resample, [B, D]; the same for all that is paired by document."""
    random, equal = stream("resampled documents", seed, count), np.full(count, 1 / count)
    counts = np.empty((RESAMPLED, count), np.uint16)
    for some in in_blocks(RESAMPLED, count):
        counts[some] = random.multinomial(count, equal, size=len(counts[some]))
    return counts


def _weights(count: int, seed: int) -> Iterator[FloatArray]:
    """How much each of `count` documents counts in each resample, [b, D] of some resamples after others."""
    counts = _counts(count, seed)
    return (counts[some] / count for some in in_blocks(RESAMPLED, count))


def resampled(values: FloatArray, seed: int) -> FloatArray:
    """Means of resampled documents of values [..., D] without gaps, [..., B]."""
    return np.concatenate([values @ weights.T for weights in _weights(values.shape[-1], seed)], axis=-1)


def resampled_finite(values: FloatArray, seed: int) -> FloatArray:
    """As `resampled`, of values [D] of which some may be NaN: means of the others; NaN where none of them was drawn."""
    finite = np.isfinite(values)
    known = np.where(finite, values, 0)
    with np.errstate(invalid="ignore"):
        return np.concatenate([(weights @ known) / (weights @ finite) for weights in _weights(len(values), seed)])


def over_documents(values: FloatArray, seed: int) -> FloatArray:
    """95 % interval of the mean over documents of values [..., D], [..., 2]; NaN documents are left out of their row.

    NaN with fewer than `LEAST_DOCUMENTS`.
    """
    rows = values.reshape(-1, values.shape[-1])
    result = np.full((len(rows), 2), np.nan)
    for k, row in enumerate(rows):
        finite = row[np.isfinite(row)]
        if enough(len(finite)):
            result[k] = ends(resampled(finite, seed), len(finite))
    return result.reshape(*values.shape[:-1], 2)


def signs_flipped(differences: FloatArray, seed: int) -> Comparison:
    """The mean of differences [D] beside its mean with the signs of documents flipped: all 2^D of them, or many at random.

    Where each of a pair of documents could as well be the other, differences have either sign as likely: p is exact
    (Fisher's paired permutation test). NaN documents are left out; nothing with fewer than two.
    """
    d = differences[np.isfinite(differences)]
    if len(d) < 2 or not np.abs(d).max() > 0:
        return NOTHING
    flips: Iterable[FloatArray]
    if len(d) <= EXACT:
        flips = [np.array([1.0, -1.0])[(np.arange(1, 2 ** len(d))[:, None] >> np.arange(len(d))) & 1]]
    else:
        random, some = stream("signs of documents", seed, len(d)), in_blocks(FLIPPED, len(d))
        flips = (random.choice([1.0, -1.0], (len(range(FLIPPED)[few]), len(d))) for few in some)
    drawn, value = np.concatenate([signs @ d for signs in flips]) / len(d), float(d.mean())
    drawn[np.abs(drawn - value) <= 1e-12 * np.abs(d).mean()] = value  # sums in another order
    sd = float(drawn.std())
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Comparison(0.0, sd, value / sd, two_sided_p(value, drawn), float(low), float(high), len(drawn))
