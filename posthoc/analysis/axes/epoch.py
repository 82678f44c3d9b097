"""The epoch axis: units are channels, or layers where a signal is a number for each layer; time is the checkpoints."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from posthoc.analysis.arrays import FloatArray
from posthoc.analysis.axes.axis import Axis, OverTime, Source
from posthoc.analysis.protocol import SPECTRAL, Protocol

if TYPE_CHECKING:
    from posthoc.store import Activations


@dataclass(frozen=True)
class EpochMaterial:
    """Image means x [U, E] of the channels over the checkpoints of a window."""

    axis: ClassVar[str] = "epoch"
    x: FloatArray

    def series(self) -> FloatArray:
        """The channels over the checkpoints."""
        return self.x

    def redrawn(self, over_time: OverTime, random: np.random.Generator, live: NDArray[np.bool_]) -> FloatArray:
        """The series redrawn over the checkpoints."""
        return over_time(self.x[live], random)

    def noise(self, random: np.random.Generator, live: NDArray[np.bool_]) -> FloatArray:
        """Series of noise, independent in every channel and checkpoint."""
        return random.standard_normal((int(live.sum()), self.x.shape[1]))


def _length(activations: "Activations", protocol: Protocol) -> int:
    trained = int((activations.steps != 0).sum())
    return min(trained, protocol.span or trained)


def _over_samples(x: NDArray[np.floating]) -> FloatArray:
    """Means of signals [U, N], or [U, N, T], of the channels."""
    return np.asarray(x.reshape(len(x), -1).mean(axis=1, dtype=np.float64))


def _material(activations: "Activations", protocol: Protocol) -> Callable[[int], EpochMaterial]:
    """The window of every checkpoint; an untrained checkpoint has none, and stands in none."""
    from posthoc.analysis.representation import spectral_signal

    trained = np.flatnonzero(activations.steps != 0)
    if protocol.signal in SPECTRAL:
        means = spectral_signal(activations, protocol.signal, trained.tolist())
    else:
        rows = (_over_samples(activations.read(protocol.signal, e)) for e in trained.tolist())
        means = np.stack(list(rows), axis=1)

    def window(e: int) -> EpochMaterial:
        last = int(np.searchsorted(trained, e, side="right")) if e in trained else 0
        first = 0 if protocol.span is None else max(0, last - protocol.span)
        return EpochMaterial(np.ascontiguousarray(means[:, first:last]))

    return window


EPOCH = Axis(
    key="epoch",
    points="checkpoints",
    units="channels",
    remedy="save more of them",
    decides="time",
    exchangeable=False,
    layered=True,
    length=_length,
    sources=lambda activations, protocol: {"": Source(_material(activations, protocol))},
)
