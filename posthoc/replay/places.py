"""Of scores at each place of a sample: whether the classes are on their first axis, as of maps, or on the last, as of tokens."""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from posthoc.errors import PosthocError
from posthoc.replay.dependence import instead
from posthoc.replay.hooks import first_tensor, hooked
from posthoc.replay.outputs import Scored, part_of
from posthoc.replay.padding import is_of_decoder, what_is_read
from posthoc.replay.scores import Truth, class_axes

if TYPE_CHECKING:
    from posthoc.replay.network import Network
    from posthoc.replay.trial import Passes


def placed(passes: "Passes", output: Any, scored: Scored, truth: Truth, asked: bool) -> Scored:
    """With where the classes are; nothing is scored where that cannot be known, nor, unless it was asked for, what is said
    of the very tokens that the network is given.

    Where there are as many classes as places, shorter samples show which axis is which, else the last layer.
    """
    assert scored.path is not None
    part = part_of(output, scored.path)
    assert part is not None
    axes = class_axes(tuple(part.shape[1:]), truth)
    if len(axes) > 1:
        axis = next((axis for by in (_by_shorter, _by_last_layer) for axis in by(passes, scored, part)), None)
        if axis is None:
            K, shape = part.shape[1], " x ".join(map(str, part.shape))
            reason = f"the output of {shape} may have its {K} classes first or last, and neither shorter samples nor the last layer"
            return Scored(None, None, f"{reason} show which; give samples of another length than {K}")
        axes = [axis]
    if axes == [-1] and not asked and _are_given(passes.net):
        reason = "the targets are the tokens that the network is given; leave them out"
        return Scored(None, None, f"{reason}, and --score tokens scores what it says of the next ones")
    return replace(scored, classes_last=axes == [-1])


def _by_shorter(passes: "Passes", scored: Scored, part: Tensor) -> Iterator[int]:
    """The axis, first (0) or last (-1), that stays where the samples are shorter by one."""
    net, length = passes.net, part.shape[1]
    for axis in range(1, max(x.ndim for x in net.x.values())):
        long = {name for name, x in net.x.items() if x.ndim > axis and x.shape[axis] == length}
        if not long:
            continue
        shorter = {name: x.narrow(axis, 0, length - 1) if name in long else x for name, x in net.x.items()}
        try:
            with instead(net, shorter):
                scores = part_of(passes.run("contiguous").output, scored.path or ())
        except PosthocError:  # a network of one size
            continue
        if scores is not None and scores.ndim == part.ndim:
            same = [axis for axis in (0, -1) if scores.shape[1:][axis] == length]
            yield from same if len(same) == 1 else ()


def _by_last_layer(passes: "Passes", scored: Scored, part: Tensor) -> Iterator[int]:
    """Where the features are of the layer that gives the scores: last of one that multiplies by a matrix, first of a
    convolution."""
    gave: dict[nn.Module, Tensor] = {}

    def remember(module: nn.Module, inputs: Any, output: Any) -> None:
        tensor = first_tensor(output)
        if tensor is not None and tensor.shape == part.shape:
            gave[module] = tensor.clone()

    weighing = [module for module in passes.net.module.modules() if isinstance(getattr(module, "weight", None), Tensor)]
    with hooked([module.register_forward_hook(remember) for module in weighing]):
        scores = part_of(passes.run("contiguous").output, scored.path or ())
    for module, tensor in gave.items():
        weight: Any = module.weight
        if weight.ndim < 2 or scores is None:
            continue
        here, there = (-1, 1) if weight.ndim == 2 else (1, -1)
        for layout, axis in ((tensor, here), (tensor.movedim(here, there), there)):
            if torch.equal(layout, scores):
                yield min(axis, 0)


def _are_given(net: "Network") -> bool:
    """Whether the targets, but for those below 0, are the tokens that the network is given; its decoder, if it has one."""
    given = {name: x for name, x in net.x.items() if is_of_decoder(name)} or net.x
    ids, targets = given[what_is_read(given, tokens=True)], net.targets
    if ids.is_floating_point() or ids.shape != targets.shape:
        return False
    return bool(((ids == targets) | (targets < 0)).all())
