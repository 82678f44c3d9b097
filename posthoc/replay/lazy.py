"""Lazy layers (LazyLinear, LazyConv2d, LazyBatchNorm2d, ...): their sizes taken from a checkpoint's shapes."""

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy

from posthoc.replay.naming import canonical


def lazy_layers(model: nn.Module) -> list[tuple[str, Any]]:
    """The layers, by name, that learn their sizes from what they are first given."""
    return [(name, part) for name, part in model.named_modules() if isinstance(part, LazyModuleMixin)]


def initialise(model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> nn.Module:
    """Give lazy parameters the shapes that a reading has for them, as loading its state dict would; returns the model.

    torch's own lazy layers become the plain ones that a forward pass would make of them; one of the user's does so in
    its first forward pass. What `shapes` does not name stays uninitialised.
    """
    names = canonical(model.state_dict(keep_vars=True))
    for prefix, layer in lazy_layers(model):
        for name, tensor in [*layer._parameters.items(), *layer._buffers.items()]:
            shape = shapes.get(names.get(f"{prefix}.{name}" if prefix else name, ""))
            if is_lazy(tensor) and shape is not None:
                tensor.materialize(_shape(layer, name, shape))
                tensor.data.zero_()
        if not layer.has_uninitialized_params():
            _settle(layer)
    return model


def _shape(layer: nn.Module, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in the file, but for the sides that the layer itself declares: a head of 10 is none of 5."""
    free = None
    declared: tuple[int | None, ...]
    if isinstance(layer, nn.Linear):
        declared = (layer.out_features,) if name == "bias" else (layer.out_features, free)
    elif isinstance(layer, nn.modules.conv._ConvNd):
        width = layer.out_channels
        sides = (free, width // layer.groups) if layer.transposed else (width, free)
        declared = (width,) if name == "bias" else (*sides, *layer.kernel_size)
    else:
        return shape
    padded = (*shape, *[0] * len(declared))  # of however many sides
    return tuple(padded[k] if side is free else side for k, side in enumerate(declared))


def _settle(layer: Any) -> None:
    """Make a layer whose parameters have their shapes what it is after its first forward pass."""
    weight = layer._parameters.get("weight")
    if isinstance(layer, nn.Linear):
        layer.in_features = layer.weight.shape[1]
    elif isinstance(layer, nn.modules.conv._ConvNd):
        sides = layer.weight.shape
        layer.in_channels = sides[0] if layer.transposed else sides[1] * layer.groups
    elif isinstance(layer, nn.modules.batchnorm._NormBase):
        counted = weight if weight is not None else layer.running_mean
        layer.num_features = layer.num_features if counted is None else len(counted)
    if type(layer).__module__.startswith("torch.nn."):
        layer._infer_parameters(layer, (weight,))
