"""What a run's numbers are of: the file and its checkpoints, the axis, the units, and functions of the user's."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from posthoc.recording import Recording
from posthoc.typed import Range


@dataclass(frozen=True)
class AxisWords:
    """The axis: what its points in time and its series are called, and the null that decides, unless a measure names another;
    intervals: what the measures' intervals are over, where it says so."""

    key: str
    points: str
    units: str
    decides: str
    intervals: str = ""


@dataclass(frozen=True)
class Code:
    """A function of the user's: its file, empty where it has none, its name there, and the SHA-256 of the file, or of the
    function's source where there is that alone, empty where there is neither."""

    file: str
    function: str
    sha256: str


@dataclass(frozen=True)
class Input:
    """The activations that were measured; tokens: per document, where they are of documents."""

    path: str
    sha256: str
    probe_sha256: str
    recording: Recording
    tokens: Annotated[int, Range(1)] | None = None


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint; untrained: saved at step 0, a control that takes no part in z-scores and summary; dead: how many
    units have no exponent, and reasons: why, with the count of each."""

    epoch: Annotated[int, Range(0)] | None
    step: Annotated[int, Range(0)] | None
    untrained: bool
    dead: int
    reasons: dict[str, int]


def trained(checkpoints: Sequence[Checkpoint]) -> NDArray[np.bool_]:
    """Which of a run's checkpoints are not controls, [E]."""
    return np.array([not checkpoint.untrained for checkpoint in checkpoints], dtype=bool)


@dataclass(frozen=True)
class Unit:
    """What a series is of: a channel of a layer, or a layer where there is one number for all of it."""

    layer: str
    channel: int | None
