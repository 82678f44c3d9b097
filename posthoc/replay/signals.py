"""Signals: to what numbers the output of a layer is reduced, while the network runs and where it runs.

A signal is one entry in `SIGNALS`. Torch is not imported here, for the names and their meanings are wanted without it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class LayerOutput:
    """What a layer gave for a batch, as signals reduce it.

    values: float32, the batch first, the recorded channels alone on axis `channel_axis`; axes: all others, which is
    nothing for a vector.
    """

    values: "Tensor"
    channel_axis: int
    axes: list[int]
    _mean: "Tensor | None" = None

    @property
    def mean(self) -> "Tensor":
        """Over `axes`, which stay with length 1; computed once for all signals."""
        if self._mean is None:
            self._mean = self.values.mean(dim=self.axes, keepdim=True) if self.axes else self.values
        return self._mean


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
    return (squares.mean(dim=output.axes) if output.axes else squares).flatten(1)


def _token(output: LayerOutput) -> "Tensor":
    return output.values.movedim(output.channel_axis, 1).flatten(2).contiguous()


def _fluctuation(output: LayerOutput) -> "Tensor":
    from posthoc.replay.streamed import fluctuation

    return fluctuation(_token(output))


def _autocovariance(output: LayerOutput) -> "Tensor":
    from posthoc.replay.streamed import autocovariance

    return autocovariance(_token(output))


def _covariance(output: LayerOutput) -> "Tensor":
    from posthoc.replay.streamed import covariance

    return covariance(_token(output))


def _position_mean(output: LayerOutput) -> "Tensor":
    from posthoc.replay.streamed import position_moments

    return position_moments(_token(output))[0]


def _position_var(output: LayerOutput) -> "Tensor":
    from posthoc.replay.streamed import position_moments

    return position_moments(_token(output))[1]


SIGNALS = {
    "mean": Signal("spatial mean of the feature map, per channel and image", _mean),
    "var": Signal("spatial variance (population) of the feature map, per channel and image", _var),
    "token": Signal("output of the layer, per channel, document and token", _token, ("unit", "sample", "time"), True),
    "fluctuation": Signal(
        "sum over windows of squared residuals of the profile less a line, per channel, document and scale",
        _fluctuation,
        ("unit", "sample", "scale"),
        of_tokens=True,
    ),
    "autocovariance": Signal(
        "autocovariance over the tokens, per channel, document and lag",
        _autocovariance,
        ("unit", "sample", "lag"),
        of_tokens=True,
    ),
    "covariance": Signal(
        "covariance over the tokens with every recorded channel, per channel and document",
        _covariance,
        ("unit", "sample", "other"),
        of_tokens=True,
    ),
    "position_mean": Signal(
        "mean over positions 0, 1, 2 to 3, 4 to 7, ..., per channel and document",
        _position_mean,
        ("unit", "sample", "octave"),
        of_tokens=True,
    ),
    "position_var": Signal(
        "variance (population) over positions 0, 1, 2 to 3, 4 to 7, ..., per channel and document",
        _position_var,
        ("unit", "sample", "octave"),
        of_tokens=True,
    ),
}
DEFAULT_SIGNALS = ("mean", "var")
