"""Which axis of what a module gives holds the channels, as far as the modules of a network say it themselves."""

from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

Convolution = nn.modules.conv._ConvNd
_Normalization = nn.modules.batchnorm._NormBase
COUNTS = (
    (Convolution, "out_channels", 1),
    (_Normalization, "num_features", 1),
    (nn.GroupNorm, "num_channels", 1),
    (nn.Linear, "out_features", -1),
    ((nn.LayerNorm, nn.RMSNorm), "normalized_shape", -1),
    (nn.Embedding, "embedding_dim", -1),
)
"""Layers that know how many channels they give, the attribute which has the number, and the axis where torch puts them."""
POOLS = {
    3: (nn.MaxPool1d, nn.AvgPool1d, nn.AdaptiveMaxPool1d, nn.AdaptiveAvgPool1d),
    4: (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool2d),
    5: (nn.MaxPool3d, nn.AvgPool3d, nn.AdaptiveMaxPool3d, nn.AdaptiveAvgPool3d),
}
"""By how many axes they take a batch of."""
SEQUENTIAL = (nn.RNNBase, nn.MultiheadAttention)


class Channels:
    """Where the channels are of each output of one forward pass; told of every module as it begins and as it ends.

    A layer that has channels says where. One that may as well mix places (a linear layer or a convolution of one place, as
    in an MLP-Mixer) or that normalises leaves them where they were. What else there is (activations, blocks) has them where
    what it was given has them, or the last module within it, if there are as many.
    """

    def __init__(self) -> None:
        self.axes = WeakTensorKeyDictionary()  # weak: outputs are not kept for it
        self.last: Tensor | None = None
        self.before: dict[str, Tensor | None] = {}

    def begin(self, name: str) -> None:
        self.before[name] = self.last

    def end(self, name: str, module: nn.Module, given: Tensor | None, output: Tensor) -> int | None:
        """The axis, the batch counted; None where nothing says it."""
        known = self._of_input(given, self.before.pop(name, None))
        axis = said_by(module, output)
        if axis is not None:
            if known is not None and given is not None and given.ndim == output.ndim and not _decides(module, output):
                axis = known
        elif output in self.axes:
            axis = self.axes[output]
        else:
            inside = next(module.children(), None) is not None
            source, axis = (self.last, self._axis(self.last)) if inside else (given, known)
            if source is None or axis is None or not _is_kept(axis, source, output):
                axis = None
        self.axes[output], self.last = axis, output
        return axis

    def _axis(self, tensor: Tensor | None) -> int | None:
        return None if tensor is None else self.axes.get(tensor)

    def _of_input(self, given: Tensor | None, before: Tensor | None) -> int | None:
        """Of the output of another module, or of what a function made of the last one's, with as many channels there."""
        if given is None or given in self.axes:
            return self._axis(given)
        axis = self._axis(before)
        return axis if before is not None and axis is not None and _is_alone(axis, before, given) else None


def said_by(module: nn.Module, output: Tensor) -> int | None:
    """The axis that has as many channels as a layer gives, first where torch puts them; None for what has no channels.

    >>> import torch
    >>> said_by(nn.Conv1d(3, 8, 5), torch.zeros(2, 8, 96)), said_by(nn.Linear(3, 8), torch.zeros(2, 4, 8))
    (1, 2)
    >>> said_by(nn.ReLU(), torch.zeros(2, 8, 96))
    """
    if isinstance(module, SEQUENTIAL):
        return output.ndim - 1
    if isinstance(module, POOLS.get(output.ndim, ())):
        return 1
    for kinds, attribute, usual in COUNTS:
        if isinstance(module, kinds) and output.ndim > 2:
            count = getattr(module, attribute)
            if isinstance(count, tuple):
                count = count[0] if len(count) == 1 else None
            axes = (1, output.ndim - 1) if usual == 1 else (output.ndim - 1, 1)
            return next((axis for axis in axes if output.shape[axis] == count), None)
    return None


def _decides(module: nn.Module, output: Tensor) -> bool:
    """Whether its channels are where it says, wherever they were in what it was given."""
    if isinstance(module, Convolution):
        return max(module.kernel_size) > 1
    return isinstance(module, SEQUENTIAL) or (isinstance(module, nn.Linear) and output.ndim == 3)


def _is_kept(axis: int, source: Tensor, output: Tensor) -> bool:
    """Whether the channels of the source are on the same axis of an output that a module made of it.

    Where another side is as long as they are many, the two may have changed places, which strides show.
    """
    return _is_alone(axis, source, output) or (source.shape == output.shape and source.stride() == output.stride())


def _is_alone(axis: int, source: Tensor, output: Tensor) -> bool:
    """Whether both have as many channels on that axis, and no other side is as long: then they have not changed places."""
    if source.ndim != output.ndim or output.shape[axis] != (count := source.shape[axis]):
        return False
    return source.shape.count(count) == output.shape.count(count) == 1
