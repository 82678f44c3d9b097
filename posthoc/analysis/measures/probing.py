"""What a linear classifier reads from each layer's recorded channels."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from posthoc.analysis.arrays import FloatArray, in_blocks, mean_finite
from posthoc.analysis.measures.snapshot import Estimate, Snapshot, between_ends, of_checkpoint, over_samples
from posthoc.analysis.records import Aside
from posthoc.streams import stream

PENALTY = 1.0
"""Of the squares of the weights, of channels in units of their standard deviation."""
LEAST_SAMPLES = 20


def ridge_predictions(
    fitted: FloatArray, held_out: FloatArray, sets: Iterable[NDArray[np.int64]], classes: int, penalty: float = PENALTY
) -> Iterator[NDArray[np.int64]]:
    """Classes that a ridge regression on one column for each class predicts, in closed form.

    fitted [n, C], held_out [m, C]; sets: of labels [n] of the fitted samples, of each of which the prediction [m] follows.
    Channels are less their mean and in units of their standard deviation over the fitted samples; targets are 1 and -1.
    """
    mean, sd = fitted.mean(axis=0), fitted.std(axis=0)
    x, new = ((part - mean) / np.where(sd > 0, sd, 1.0) for part in (fitted, held_out))
    inverse = np.linalg.inv(x.T @ x + penalty * np.eye(x.shape[1]))
    for labels in sets:
        best, highest = np.zeros(len(new), np.int64), np.full(len(new), -np.inf)
        for some in in_blocks(classes, len(x) + len(new)):
            targets = 2.0 * (labels[:, None] == np.arange(classes)[some]) - 1
            centre = targets.mean(axis=0)
            scores = new @ (inverse @ (x.T @ (targets - centre))) + centre
            place = scores.argmax(axis=1)
            score = scores[np.arange(len(new)), place]
            best = np.where(score > highest, some.start + place, best)
            highest = np.maximum(score, highest)
        yield best


def _accuracy(snapshot: Snapshot) -> Estimate | Aside:
    """Fitted on a random half of the samples, the same at all checkpoints, and scored on the other; under the null labels
    are permuted before."""
    replay, labels = snapshot.replay, snapshot.replay.labels
    if labels is None:
        return Aside.NEEDS_LABELS
    N = len(labels)
    if N < LEAST_SAMPLES:
        return Aside.NEEDS_SAMPLES
    first, second = np.array_split(stream("probe's halves", replay.seed).permutation(N), 2)
    classes, labels = np.unique(labels, return_inverse=True)
    random = stream("null label", replay.seed, snapshot.row)
    sets = np.stack([labels, *(random.permutation(labels) for _ in range(replay.draws))])

    def right(x: FloatArray) -> Iterator[NDArray[Any]]:
        """Which held-out samples are, with each set of labels; not known of a layer without a channel that could be read."""
        if not len(x):
            yield from np.full((len(sets), len(second)), np.nan)
            return
        predicted = ridge_predictions(x.T[first], x.T[second], sets[:, first], len(classes))
        yield from (of_set == row[second] for of_set, row in zip(predicted, sets, strict=True))

    shares, drawn_by = [], []
    for x in snapshot.channels:
        each = right(x)
        shares.append(over_samples(next(each)))
        drawn_by.append([of_draw.mean() for of_draw in each])
    values, low, high = np.array([(share.value, share.low, share.high) for share in shares]).T
    drawn = np.array([mean_finite(draw) for draw in np.array(drawn_by).T])
    return between_ends(values, low, high, {"label": drawn} if replay.draws else {})


MEASURES = (
    of_checkpoint(
        "probe_accuracy", "probe", "accuracy of a linear probe",
        "share of held-out samples whose class a ridge regression on a layer's recorded channels predicts, mean over layers",
        _accuracy, null="label", limits=(0.0, 1.0),
    ),
)  # fmt: skip
