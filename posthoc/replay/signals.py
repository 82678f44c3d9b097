"""Signals: to what numbers the output of a layer is reduced, while the network runs and where it runs.

A signal is one entry in `SIGNALS`. Torch is not imported here, for the names and their meanings are wanted without it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class LayerOutput:
    """What a layer gave for a batch, as signals reduce it.

    values: float32, the batch first, the recorded channels alone on axis `channel_axis`; axes: all others, which is
    nothing for a vector; real: where some places are padding, which are not, of as many axes.
    """

    values: "Tensor"
    channel_axis: int
    axes: list[int]
    real: "Tensor | None" = None
    _mean: "Tensor | None" = None
    _series: "Tensor | None" = None

    @property
    def mean(self) -> "Tensor":
        """Over `axes`, which stay with length 1; computed once for all signals."""
        if self._mean is None:
            self._mean = self.average(self.values)
        return self._mean

    def average(self, values: "Tensor") -> "Tensor":
        """The mean of what has these axes over `axes`, which stay with length 1; padding is no part of it."""
        if not self.axes:
            return values
        if self.real is None:
            return values.mean(dim=self.axes, keepdim=True)
        alike = math.prod(values.shape[axis] for axis in self.axes) // math.prod(self.real.shape[1:])
        count = self.real.sum(dim=self.axes, keepdim=True) * alike
        return values.where(self.real, 0).sum(dim=self.axes, keepdim=True) / count

    @property
    def series(self) -> "Tensor":
        """The channels along the tokens, [B, C, T]; laid out once for all signals."""
        if self._series is None:
            self._series = self.values.movedim(self.channel_axis, 1).flatten(2).contiguous()
        return self._series


@dataclass(frozen=True)
class Signal:
    """One way to reduce a layer's output; its name is its key in `SIGNALS`.

    meaning: in words, as files have it; reduce: from a layer's output to float32 [B, C], or [B, C, T] where the
    dimensions kept end in `time`, or in what stands for it (as many for every batch); of_tokens: whether the probe has to
    hold rows of tokens.
    """

    meaning: str
    reduce: Callable[[LayerOutput], "Tensor"]
    dimensions: tuple[str, ...] = ("unit", "sample")
    of_tokens: bool = False


def _mean(output: LayerOutput) -> "Tensor":
    return output.mean.flatten(1)


def _var(output: LayerOutput) -> "Tensor":
    """In two passes: as exact as torch.var, and several times as fast."""
    squares = (output.values - output.mean).square_()
    return output.average(squares).flatten(1)


def _of_documents(meaning: str, function: str, dimension: str) -> Signal:
    """A signal that sums a document's tokens up, by a function of `posthoc.replay.streamed`, which needs torch."""

    def reduce(output: LayerOutput) -> "Tensor":
        from posthoc.replay import streamed

        return cast("Tensor", getattr(streamed, function)(output.series))

    return Signal(meaning, reduce, ("unit", "sample", dimension), of_tokens=True)


SIGNALS = {
    "mean": Signal("spatial mean of the feature map, per channel and image", _mean),
    "var": Signal("spatial variance (population) of the feature map, per channel and image", _var),
    "token": Signal(
        "output of the layer, per channel, document and token",
        lambda output: output.series, ("unit", "sample", "time"), of_tokens=True,
    ),
    "fluctuation": _of_documents(
        "sum over windows of squared residuals of the profile less a line, per channel, document and scale",
        "fluctuation", "scale",
    ),
    "autocovariance": _of_documents(
        "autocovariance over the tokens, per channel, document and lag", "autocovariance", "lag"
    ),
    "covariance": _of_documents(
        "covariance over the tokens with every recorded channel, per channel and document", "covariance", "other"
    ),
    "position_mean": _of_documents(
        "mean over positions 0, 1, 2 to 3, 4 to 7, ..., per channel and document", "position_mean", "octave"
    ),
    "position_var": _of_documents(
        "variance (population) over positions 0, 1, 2 to 3, 4 to 7, ..., per channel and document", "position_var", "octave"
    ),
}  # fmt: skip
DEFAULT_SIGNALS = ("mean", "var")
