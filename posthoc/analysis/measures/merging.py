"""The mean of the last checkpoints' weights: how well it does, and whether loss rises on the way between two checkpoints.

The barrier is that of linear mode connectivity (Frankle et al. 2020, arXiv 1912.05671) at the middle of the line: with
L(w) the mean loss of the probe's samples, L((w' + w) / 2) - (L(w') + L(w)) / 2 for a checkpoint w and the one before, w'.
Along the whole line it may be higher.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from posthoc.analysis.measures.measure import Measure
from posthoc.analysis.measures.snapshot import Estimate, Snapshot, over_samples

if TYPE_CHECKING:
    from posthoc.store import Activations

BETWEEN = 2
"""Of how many checkpoints the mean is that lies between two."""


def of_file(activations: "Activations") -> dict[str, Measure]:
    """Loss and accuracy of every mean that a file has, and the barrier where it has those of two."""
    measures = [_barrier()] if BETWEEN in activations.averaged else []
    for count in activations.averaged:
        measures.append(_of_mean(count, "loss", "loss", listed=True, lower_is_better=True))
        if f"average/{count}/behaviour/correct" in activations.blocks:
            measures.append(_of_mean(count, "accuracy", "correct", listed=False, limits=(0.0, 1.0)))
    return {measure.key: measure for measure in measures}


def _of_mean(count: int, name: str, stored: str, **more: Any) -> Measure:
    def measure(snapshot: Snapshot) -> Estimate:
        values = snapshot.replay.activations.behaviour_of_average(count, stored, snapshot.row)
        return over_samples(np.where(np.isnan(_losses(count, snapshot)), np.nan, values))

    about = f"{name} of a network whose weights are the mean of those of the checkpoint and the {count - 1} before it"
    return _measure(
        f"average_{count}_{name}",
        f"{name} of {count}",
        f"{name} of the mean of the last {count}",
        about,
        measure,
        **more,
    )


def _barrier() -> Measure:
    def measure(snapshot: Snapshot) -> Estimate:
        if snapshot.previous is None:
            return Estimate()
        ends = [snapshot.replay.activations.behaviour("loss", row) for row in (snapshot.row - 1, snapshot.row)]
        return over_samples(_losses(BETWEEN, snapshot) - np.mean(ends, axis=0, dtype=np.float64))

    about = "loss in the middle between the weights and those of the checkpoint before, less the mean of the two losses"
    return _measure(
        "barrier", "barrier", "barrier to the checkpoint before", about, measure, listed=True, lower_is_better=True
    )


def _losses(count: int, snapshot: Snapshot) -> NDArray[np.float64]:
    """Of each sample, [N]; NaN where there is no such mean."""
    return snapshot.replay.activations.behaviour_of_average(count, "loss", snapshot.row).astype(np.float64)


def _measure(key: str, symbol: str, title: str, about: str, of: Callable[[Snapshot], Estimate], **more: Any) -> Measure:
    return Measure(key, symbol, title, f"{about}, on the probe", of_checkpoint=of, headline=False, **more)
