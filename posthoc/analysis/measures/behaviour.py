"""Accuracy and loss, on the probe or as the checkpoints recorded them."""

from typing import TYPE_CHECKING

import numpy as np

from posthoc.analysis.arrays import FloatArray
from posthoc.analysis.measures.measure import Measure

if TYPE_CHECKING:
    from posthoc.store import Activations


def recorded(activations: "Activations", name: str, replayed: FloatArray) -> tuple[FloatArray, str]:
    """What the checkpoints recorded if all did, else what the replay measured on the probe; and which it is."""
    column = activations.recorded.get(name)
    if column is not None and np.isfinite(column).all():
        return column, f"recorded {name}"
    return replayed, "probe"


ACCURACY = Measure(
    "accuracy",
    "accuracy",
    "accuracy",
    "share of samples classified correctly, as the checkpoints recorded it if all did, else on the probe",
    of_activations=lambda activations: recorded(activations, "val_acc", activations.accuracy),
    headline=False,
)
LOSS = Measure(
    "loss",
    "loss",
    "loss",
    "mean loss, as the checkpoints recorded it if all did, else on the probe",
    of_activations=lambda activations: recorded(activations, "val_loss", activations.loss),
    headline=False,
    listed=False,
)
