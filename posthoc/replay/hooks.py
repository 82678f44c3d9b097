"""Hook points: which modules' outputs are recorded, and how each becomes one number per channel and image."""

import copy
import fnmatch
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from posthoc.errors import PosthocError, UsageError

SIGNALS = ("mean", "var")


@dataclass(frozen=True)
class HookPoint:
    """A module whose output is a feature map [B, C, H, W] (or [B, H, W, C]) or tokens [B, T, C].

    shape: of the output for one image, batch left out; channel_axis: which axis of the batched output holds channels;
    parameters: how many the module holds; same_as: the outermost module that hands on the very same output, if any.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    channel_axis: int
    parameters: int
    same_as: str | None

    @property
    def channels(self) -> int:
        return self.shape[self.channel_axis - 1]


# The layers of arXiv 2604.09716, by the model's name.
PUBLISHED = (
    (r"(wide_)?resnex?t\d+", [f"layer{k}" for k in (1, 2, 3, 4)]),
    (r"densenet", [f"features.denseblock{k}" for k in (1, 2, 3, 4)]),
    (r"mobilenet_v2", [f"features.{k}" for k in (4, 7, 14, 17)]),
    (r"vgg16_bn", [f"features.{k}" for k in (6, 13, 23, 33)]),
    (r"vit_b_", [f"encoder.layers.encoder_layer_{k}" for k in (0, 3, 6, 9)]),
)


def find_hook_points(model: nn.Module, image_size: int) -> list[HookPoint]:
    """All modules of a meta-device model with a feature map or tokens as output, in the order they finish.

    Which axis holds the channels is seen from a second pass with larger images: channels are what does not grow.

    Raises RuntimeError or AssertionError where the model cannot take images of this size.
    """
    outputs = _outputs(model, image_size)
    try:
        grown = {name: tuple(output.shape) for name, output, _ in _outputs(model, 2 * image_size)}
    except (RuntimeError, AssertionError):  # a fixed input size: nothing grows
        grown = {}
    last_with = {(id(output), version): name for name, output, version in outputs}
    points = []
    for name, output, version in outputs:
        shape = tuple(output.shape)
        if len(shape) in (3, 4) and shape[0] == 2:
            module = model.get_submodule(name)
            outermost = last_with[id(output), version]
            points.append(
                HookPoint(
                    name=name,
                    kind=type(module).__name__,
                    shape=shape[1:],
                    channel_axis=_channel_axis(shape, grown.get(name, shape)),
                    parameters=sum(parameter.numel() for parameter in module.parameters()),
                    same_as=None if outermost == name else outermost,
                )
            )
    return points


def _channel_axis(shape: tuple[int, ...], grown: tuple[int, ...]) -> int:
    if len(shape) == 3:
        return 2
    constant = [axis for axis in (1, 2, 3) if shape[axis] == grown[axis]]
    return 3 if constant == [3] else 1


def _outputs(model: nn.Module, image_size: int) -> list[tuple[str, Tensor, int]]:
    """Name, output and in-place version of every module in one meta forward pass; the last call of each counts."""
    seen: dict[str, tuple[str, Tensor, int]] = {}

    def remember(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            seen.pop(name, None)
            if isinstance(output, Tensor):
                seen[name] = (name, output, output._version)

        return hook

    model = copy.deepcopy(model).to("meta")
    for name, module in model.named_modules():
        if name:
            module.register_forward_hook(remember(name))
    # Without inference mode, which keeps no version by which an in-place ReLU is told from what it overwrites.
    with torch.no_grad(), torch.device("meta"):
        model(torch.empty(2, 3, image_size, image_size))
    return list(seen.values())


def choose(points: Sequence[HookPoint], layers: Sequence[str], model_name: str) -> list[HookPoint]:
    """The hook points asked for, in the order of the network.

    `default`: the published layers where the model is of a published family, else four evenly spaced blocks;
    `all`: every distinct output; otherwise globs over the names.
    """
    if not points:
        raise PosthocError(f"{model_name} has no module with a feature map or tokens as output: nothing to record.")
    if list(layers) == ["all"]:
        return [point for point in points if point.same_as is None]
    if list(layers) == ["default"]:
        names = next((names for pattern, names in PUBLISHED if re.match(pattern, model_name)), None)
        return [point for point in points if point.name in names] if names else _evenly_spaced(_blocks(points))
    unmatched = [glob for glob in layers if not fnmatch.filter([point.name for point in points], glob)]
    if unmatched:
        raise UsageError(f"--layers {unmatched[0]}: no such hook point; `posthoc inspect --layers` lists them.")
    return [point for point in points if any(fnmatch.fnmatchcase(point.name, glob) for glob in layers)]


def _evenly_spaced(blocks: Sequence[HookPoint]) -> list[HookPoint]:
    """The last of each quarter."""
    return [blocks[k] for k in sorted({-(-len(blocks) * quarter // 4) - 1 for quarter in (1, 2, 3, 4)})]


def _blocks(points: Sequence[HookPoint]) -> list[HookPoint]:
    """The outermost modules with parameters, inside the part that holds most modules while there are fewer than four."""
    trunk = [point for point in points if point.parameters]
    while True:
        names = {point.name for point in trunk}
        blocks = [point for point in trunk if not any(parent in names for parent in _parents(point.name))]
        inside = {block.name: [point for point in trunk if block.name in _parents(point.name)] for block in blocks}
        widest = max(inside.values(), key=len)
        if len(blocks) >= 4 or len(widest) < 2:
            return blocks
        trunk = widest


def _parents(name: str) -> list[str]:
    """The names of the modules around a module, innermost last.

    >>> _parents("features.1.conv")
    ['features', 'features.1']
    """
    parts = name.split(".")
    return [".".join(parts[:k]) for k in range(1, len(parts))]


class Recorder:
    """Reduces the outputs of the hook points to signals while the model runs.

    After `with recorder.attached(model): model(x)`, `recorder.signals[signal][layer]` is float32 [B, C_l].
    """

    def __init__(self, points: Sequence[HookPoint], channels: dict[str, Tensor], signals: Sequence[str]) -> None:
        self.points = points
        self.channels = channels
        self.signals: dict[str, dict[str, Tensor]] = {signal: {} for signal in signals}

    @contextmanager
    def attached(self, model: nn.Module) -> Iterator[None]:
        modules = dict(model.named_modules())
        handles = [modules[point.name].register_forward_hook(self._hook(point)) for point in self.points]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, point: HookPoint) -> Callable[..., None]:
        axes = [axis for axis in range(1, len(point.shape) + 1) if axis != point.channel_axis]

        def reduce(module: nn.Module, inputs: Any, output: Tensor) -> None:
            # At once: the next module may overwrite its input in place.
            kept = output.index_select(point.channel_axis, self.channels[point.name]).float()
            if "var" in self.signals:
                var, mean = torch.var_mean(kept, dim=axes, correction=0)
                self.signals["var"][point.name] = var
            else:
                mean = kept.mean(dim=axes)
            if "mean" in self.signals:
                self.signals["mean"][point.name] = mean

        return reduce
