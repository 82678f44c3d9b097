"""The mean of the last checkpoints' weights: how well it does, and whether loss rises on the way between two checkpoints.

The barrier is that of linear mode connectivity (Frankle et al. 2020, arXiv 1912.05671) at the middle of the line: with
L(w) the mean loss of the probe's samples, L((w' + w) / 2) - (L(w') + L(w)) / 2 for a checkpoint w and the one before, w'.
Along the whole line it may be higher.
"""

import re
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from posthoc.analysis.measures.measure import Measure
from posthoc.analysis.measures.snapshot import Estimate, Snapshot, over_samples
from posthoc.analysis.records import Aside

if TYPE_CHECKING:
    from posthoc.store import Activations

BETWEEN = 2
"""Of how many checkpoints the mean is that lies between two."""
SPELT = {
    "average_K_loss": "loss of the mean of the last K",
    "average_K_accuracy": "accuracy of the mean of the last K",
}
"""How the measures of means are called, K being of how many checkpoints, with their titles."""
NAME = re.compile(r"average_([1-9][0-9]{0,5})_(loss|accuracy)")


def means_of(activations: "Activations") -> list[Measure]:
    """Loss and accuracy of every mean that a file has."""
    measures = []
    for count in activations.averaged:
        measures.append(_loss(count))
        if f"average/{count}/behaviour/correct" in activations.blocks:
            measures.append(_accuracy(count))
    return measures


def mean_of(name: str) -> Measure | None:
    """The measure of that name, if it is one of means of so many checkpoints.

    >>> mean_of("average_3_loss").symbol, mean_of("average_1_loss"), mean_of("average_3_margin")
    ('loss of 3', None, None)
    """
    match = NAME.fullmatch(name)
    if match is None or int(match[1]) < BETWEEN:
        return None
    return (_loss if match[2] == "loss" else _accuracy)(int(match[1]))


def _loss(count: int) -> Measure:
    return _of_mean(count, "loss", "loss", listed=True, lower_is_better=True)


def _accuracy(count: int) -> Measure:
    return _of_mean(count, "accuracy", "correct", listed=False, limits=(0.0, 1.0))


def _of_mean(count: int, name: str, stored: str, **more: Any) -> Measure:
    def measure(snapshot: Snapshot) -> Estimate | Aside:
        file = snapshot.replay.activations
        if f"average/{count}/behaviour/{stored}" not in file.blocks:
            return Aside.NEEDS_AVERAGES
        values = file.behaviour_of_average(count, stored, snapshot.row)
        return over_samples(np.where(np.isnan(_losses(count, snapshot)), np.nan, values))

    about = f"{name} of a network whose weights are the mean of those of the checkpoint and the {count - 1} before it"
    return Measure(
        f"average_{count}_{name}", f"{name} of {count}", f"{name} of the mean of the last {count}", f"{about}, on the probe",
        of_checkpoint=measure, headline=False, layers=False, **more,
    )  # fmt: skip


def _barrier(snapshot: Snapshot) -> Estimate | Aside:
    file = snapshot.replay.activations
    if BETWEEN not in file.averaged:
        return Aside.NEEDS_BETWEEN
    if snapshot.previous is None:
        return Estimate()
    ends = [file.behaviour("loss", row) for row in (snapshot.row - 1, snapshot.row)]
    return over_samples(_losses(BETWEEN, snapshot) - np.mean(ends, axis=0, dtype=np.float64))


def _losses(count: int, snapshot: Snapshot) -> NDArray[np.float64]:
    """Of each sample, [N]; NaN where there is no such mean."""
    return snapshot.replay.activations.behaviour_of_average(count, "loss", snapshot.row).astype(np.float64)


BARRIER = Measure(
    "barrier", "barrier", "barrier to the checkpoint before",
    "loss in the middle between the weights and those of the checkpoint before, less the mean of the two losses, on the probe",
    of_checkpoint=_barrier, headline=False, layers=False, lower_is_better=True,
)  # fmt: skip
