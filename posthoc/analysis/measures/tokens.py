"""What is measured of the tokens of documents: surprisal as a series, and what networks predict well."""

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from posthoc.analysis.arrays import FloatArray
from posthoc.analysis.axes.token import HURST_MARGIN, LOSS, SURPRISAL
from posthoc.analysis.measures.integration import debiased, hurst
from posthoc.analysis.measures.measure import Measure

if TYPE_CHECKING:
    from posthoc.store import Activations

EARLY, LATE, AROUND = 50, 900, 10
"""Positions whose losses the in-context score compares, and how many on either side are averaged with them."""
POSITIONS = tuple(2**k for k in range(17))


@dataclass(frozen=True, eq=False)
class Documents:
    """Some of the documents of the checkpoint in a row of the file, whose tokens [D, T] are these."""

    activations: "Activations"
    row: int
    tokens: NDArray[np.uint32] | None
    samples: slice

    @functools.cached_property
    def loss(self) -> FloatArray | None:
        """-log p of each token [D, T], read once for all measures; None where the file has none."""
        if LOSS not in self.activations.behaviours:
            return None
        return np.asarray(self.behaviour(LOSS), dtype=np.float64)

    @functools.cached_property
    def scored(self) -> NDArray[np.bool_]:
        """Which tokens [D, T] are scored: not the first and no padding, whose loss is NaN. So is that of tokens with which the
        network failed: the loss of the document then is NaN, too, and padding in it is not told from them."""
        assert self.loss is not None
        file, scored = self.activations, ~np.isnan(self.loss)
        if "padding" not in file.recording.identity.probe.preparation:
            scored[:, 1:] = True
        elif "loss" in file.behaviours:
            scored[np.isnan(self.behaviour("loss")), 1:] = True
        return scored

    @functools.cached_property
    def broken(self) -> NDArray[np.bool_]:
        """Whether the loss of a scored token of each document is not finite, [D]."""
        if self.loss is None:
            return np.zeros(len(self.activations.labels[self.samples]), np.bool_)
        return np.asarray((self.scored & ~np.isfinite(self.loss)).any(axis=1))

    def behaviour(self, name: str) -> NDArray[Any]:
        """What the network said of each token, [D, T]."""
        return self.activations.behaviour(name, self.row, self.samples)


def means(values: FloatArray, chosen: NDArray[np.bool_]) -> FloatArray:
    """Mean of each row of values [D, T] over those that are `chosen`; NaN where there are none, or one is NaN."""
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(chosen, values, 0).sum(axis=1, dtype=np.float64) / chosen.sum(axis=1))


def repeated_bigrams(tokens: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether a token followed the same one already, earlier in its row of tokens [D, T].

    >>> repeated_bigrams(np.array([[1, 2, 3, 1, 2, 2]])).tolist()
    [[False, False, False, False, True, False]]
    """
    result = np.zeros(tokens.shape, np.bool_)
    pairs = tokens[:, :-1].astype(np.int64) << 32 | tokens[:, 1:].astype(np.int64)
    for row, of_row in enumerate(pairs):
        _, first = np.unique(of_row, return_index=True)
        result[row, 1:] = True
        result[row, 1 + first] = False
    return result


def in_context(loss: FloatArray, scored: NDArray[np.bool_]) -> FloatArray:
    """Loss around position 50 less that around position 900, or as late as the rows [D, T] go, of the tokens that are scored;
    NaN where they are too short."""
    T = loss.shape[1]
    late = min(LATE, T - 1 - AROUND)
    if late - AROUND <= EARLY + AROUND:
        return np.full(len(loss), np.nan)
    early, end = (slice(middle - AROUND, middle + AROUND + 1) for middle in (EARLY, late))
    return _difference(means(loss[:, early], scored[:, early]), means(loss[:, end], scored[:, end]))


def _difference(a: FloatArray, b: FloatArray) -> FloatArray:
    with np.errstate(invalid="ignore"):  # of two that are infinite
        return a - b


def _token_loss(documents: Documents) -> FloatArray | None:
    return None if documents.loss is None else means(documents.loss, documents.scored)


def _bits_per_byte(documents: Documents) -> FloatArray | None:
    """The first token is not scored, and its bytes are not counted."""
    if documents.loss is None or documents.activations.text_bytes is None:
        return None
    sizes = documents.activations.text_bytes[documents.samples]
    total = np.where(documents.scored, documents.loss, 0).sum(axis=1)
    return np.asarray(total / np.log(2) / np.where(sizes > 0, sizes, np.nan))


def _in_context(documents: Documents) -> FloatArray | None:
    return None if documents.loss is None else in_context(documents.loss, documents.scored)


def _copy(documents: Documents) -> FloatArray | None:
    loss, tokens = documents.loss, documents.tokens
    if loss is None or tokens is None:
        return None
    repeated, scored = repeated_bigrams(tokens), documents.scored
    return _difference(means(loss, scored & ~repeated), means(loss, scored & repeated))


def _token_accuracy(documents: Documents) -> FloatArray | None:
    tokens = documents.tokens
    if tokens is None or "token_prediction" not in documents.activations.behaviours:
        return None
    predicted = documents.behaviour("token_prediction")
    scored = predicted >= 0 if documents.loss is None else documents.scored
    return means(np.where(predicted >= 0, predicted == tokens, np.nan), scored)


def _at(position: int, documents: Documents) -> FloatArray | None:
    """Mean loss from a position up to twice as far."""
    loss, here = documents.loss, slice(position, 2 * position)
    return None if loss is None or loss.shape[1] <= position else means(loss[:, here], documents.scored[:, here])


MEASURES = (
    Measure(
        "surprisal", "H_s", "Hurst exponent of surprisal H_s",
        "exponent of the fluctuations of -log p of each token, mean over documents",
        of_series=hurst, finish=debiased, series=SURPRISAL, layers=False, margin=HURST_MARGIN,
    ),
    Measure(
        "token_loss", "loss", "loss of a token", "mean loss over the tokens of a document, mean over documents",
        of_documents=_token_loss,
    ),
    Measure(
        "bits_per_byte", "bits/byte", "bits per byte",
        "loss of all tokens of a document in bits, by the bytes of their text in UTF-8, mean over documents",
        of_documents=_bits_per_byte, listed=False,
    ),
    Measure(
        "token_accuracy", "top-1", "accuracy of a token", "share of tokens that are the likeliest prediction",
        of_documents=_token_accuracy, limits=(0.0, 1.0), listed=False,
    ),
    Measure(
        "in_context", "in-context", "in-context score",
        f"loss around position {EARLY} less that around position {LATE}, or as late as the context goes",
        of_documents=_in_context, listed=False,
    ),
    Measure(
        "copy", "copy", "copy score",
        "loss of tokens that had not followed the one before them earlier in the document less that of those that had",
        of_documents=_copy, listed=False,
    ),
    *(
        Measure(
            f"loss_at_{position}", f"loss from {position}", f"loss from position {position}",
            f"mean loss of positions {position} to {2 * position - 1}, as far as the context goes",
            of_documents=functools.partial(_at, position), headline=False, listed=False,
        )
        for position in POSITIONS
    ),
)  # fmt: skip
