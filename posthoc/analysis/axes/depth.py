"""The depth axis: units are images, time is the layers of the network."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from posthoc.analysis.arrays import FloatArray
from posthoc.analysis.axes.axis import Axis, OverTime, Source
from posthoc.analysis.protocol import Protocol

if TYPE_CHECKING:
    from posthoc.store import Activations


def depth_series(x: ArrayLike) -> FloatArray:
    """Series over the layers: units are images, time is depth.

    x: [L, N], the channel mean of each layer for each image; returns [N, L], standardised over the images, a layer
    without variation being zero.
    """
    from posthoc.analysis.kernels.series import ROUNDING

    x = np.asarray(x, dtype=np.float64)
    centred = x - x.mean(axis=1, keepdims=True)
    spread = centred.std(axis=1, keepdims=True)
    varies = spread > ROUNDING * np.abs(x).max(axis=1, keepdims=True)
    return np.ascontiguousarray(np.where(varies, centred / np.where(varies, spread, 1), 0).T)


@dataclass(frozen=True)
class DepthMaterial:
    """Channel means x [L, N] of the layers for each image; left_out: non-finite channels that are not in them."""

    axis: ClassVar[str] = "depth"
    x: FloatArray
    left_out: int = 0

    def series(self) -> FloatArray:
        """The images over the layers."""
        return depth_series(self.x)

    def redrawn(self, over_time: OverTime, random: np.random.Generator, live: NDArray[np.bool_]) -> FloatArray:
        """The series redrawn over the layers, standardised again: that alone makes images sum to zero in every layer."""
        return depth_series(over_time(self.series(), random).T)[live]

    def noise(self, random: np.random.Generator, live: NDArray[np.bool_]) -> FloatArray:
        """Series of noise, independent in every image and layer."""
        return depth_series(random.standard_normal(self.x.shape))[live]


def _material(activations: "Activations", protocol: Protocol) -> Callable[[int], DepthMaterial]:
    sizes = np.cumsum([0, *(len(rows) for rows in activations.channels.values())])

    def of_checkpoint(e: int) -> DepthMaterial:
        x = activations.read(protocol.signal, e).astype(np.float64)
        finite = np.asarray(np.isfinite(x).all(axis=1))
        layers = [x[a:b][finite[a:b]] for a, b in itertools.pairwise(sizes)]
        means = np.stack([layer.mean(axis=0) if len(layer) else np.zeros(x.shape[1]) for layer in layers])
        return DepthMaterial(means, int((~finite).sum()))

    return of_checkpoint


DEPTH = Axis(
    key="depth",
    points="layers",
    units="images",
    remedy="extract with --layers all",
    decides="time",
    exchangeable=False,
    layered=False,
    length=lambda activations, protocol: len(activations.layers),
    sources=lambda activations, protocol: {"": Source(_material(activations, protocol))},
)
