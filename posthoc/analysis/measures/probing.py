"""What a linear classifier reads from each layer's recorded channels."""

import numpy as np
from numpy.typing import NDArray

from posthoc.analysis.arrays import FloatArray, mean_finite
from posthoc.analysis.measures.snapshot import Estimate, Snapshot, between_ends, of_checkpoint, over_samples
from posthoc.analysis.records import Aside
from posthoc.streams import stream

PENALTY = 1.0
"""Of the squares of the weights, of channels in units of their standard deviation."""
LEAST_SAMPLES = 20


def ridge_predictions(
    fitted: FloatArray, held_out: FloatArray, labels: NDArray[np.int64], classes: int, penalty: float = PENALTY
) -> NDArray[np.int64]:
    """Classes that a ridge regression on one column for each class predicts, in closed form.

    fitted [n, C], held_out [m, C]; labels [..., n] of the fitted samples, several sets of them at once; returns
    [..., m]. Channels are less their mean and in units of their standard deviation over the fitted samples; targets are
    1 and -1.
    """
    mean, sd = fitted.mean(axis=0), fitted.std(axis=0)
    x, new = ((part - mean) / np.where(sd > 0, sd, 1.0) for part in (fitted, held_out))
    targets = 2.0 * (labels[..., None] == np.arange(classes)) - 1
    centre = targets.mean(axis=-2, keepdims=True)
    weights = np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ (targets - centre))
    return np.asarray((new @ weights + centre).argmax(axis=-1))


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
    random = stream("null label", replay.seed, snapshot.row)
    sets = np.stack([labels, *(random.permutation(labels) for _ in range(replay.draws))])
    right = [
        np.where(
            len(x) > 0,  # else there is no channel that could be read
            ridge_predictions(x.T[first], x.T[second], sets[:, first], int(labels.max()) + 1) == sets[:, second],
            np.nan,
        )
        for x in snapshot.channels
    ]
    shares = [over_samples(of_layer[0]) for of_layer in right]
    values, low, high = np.array([(share.value, share.low, share.high) for share in shares]).T
    drawn = np.array([mean_finite(draw) for draw in np.array(right)[:, 1:].mean(axis=2).T])
    return between_ends(values, low, high, {"label": drawn} if replay.draws else {})


MEASURES = (
    of_checkpoint(
        "probe_accuracy", "probe", "accuracy of a linear probe",
        "share of held-out samples whose class a ridge regression on a layer's recorded channels predicts, mean over layers",
        _accuracy, null="label", limits=(0.0, 1.0),
    ),
)  # fmt: skip
