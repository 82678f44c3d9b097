"""What inputs a network takes: found by running it, and said in its own terms where it takes none."""

import itertools
import math
from collections.abc import Collection, Iterator
from functools import partial

from torch import nn

from posthoc.errors import PosthocError
from posthoc.replay.architectures import architecture_of
from posthoc.replay.forward import arguments_of, error_line
from posthoc.replay.hooks import Anatomy, CannotRunError, Entered, dissect
from posthoc.replay.models import Model
from posthoc.replay.probes.arrays import DECODER_INPUTS
from posthoc.replay.probes.images import example
from posthoc.replay.probes.probe import Probe
from posthoc.shown import counted, with_article

FALLBACK_SIZES = (224, 299)
"""Image sides tried, in turn, where a model cannot take the probe's own."""
CHANNELS = (3, 1)
"""Colour, or grey."""
NATURAL_SIZES = (28, 32, 64, 96, 128, 48, 160, 192, 256, 384, 512)
"""Sides tried where a linear layer asks for another size: images of 28 and 31 pixels may leave it as many numbers."""
LARGEST_SIDE = 1024


def usual_size(network: nn.Module) -> int | None:
    """The image side a network says it was made for."""
    side = getattr(network, "image_size", None)
    if side is None and isinstance(config := getattr(network, "default_cfg", None), dict):  # timm
        side = config.get("input_size", (None,))[-1] if config.get("fixed_input_size") else None
        patches = getattr(getattr(network, "patch_embed", None), "img_size", None)
        side = patches[0] if patches else side
    if side is None:  # transformers
        side = getattr(getattr(network, "config", None), "image_size", None)
    return side if isinstance(side, int) else None


def traced(model: Model, probe: Probe) -> Anatomy:
    """What a pass shows of the network; raises PosthocError where it cannot take the probe."""
    try:
        with model.at_work():
            return dissect(model.module, probe.traced)
    except CannotRunError as error:
        last = error.entered[-1] if error.entered else None
        where = f" in {last.name} ({type(last.module).__name__})" if last and last.name else ""
        known = architecture_of(model.name)
        takes = f"{model.name} takes {known.inputs}, and" if known else model.name
        among = f", {lacking} among them" if (lacking := _lacking(model.module, probe.inputs)) else ""
        raise PosthocError(
            f"{takes} cannot take {probe.name} ({probe.shapes}){where}: {error_line(error.reason)}; give arrays that its forward pass takes{among}."
        ) from error


def _lacking(module: nn.Module, inputs: Collection[str]) -> str | None:
    """What a network of Transformers with a decoder takes for that, where nothing of it is given."""
    decodes = getattr(getattr(module, "config", None), "is_encoder_decoder", False)
    name = DECODER_INPUTS[0]
    return name if decodes and not set(DECODER_INPUTS) & set(inputs) and name in arguments_of(module).names else None


def fit_images(model: Model, wanted: int | None, height: int, width: int | None = None) -> tuple[int, int, Anatomy]:
    """The image side and channels to use and what is found at them: as wanted, else the probe's own, else what the
    network's first linear layer asks for, else a usual one. In colour where that runs, else in grey.

    Raises PosthocError that says what the network takes, as far as a pass shows it.
    """
    with model.at_work():  # files that it imports when it first runs lie beside it
        return _fitted(model, wanted, height, width)


def _fitted(model: Model, wanted: int | None, height: int, width: int | None) -> tuple[int, int, Anatomy]:
    sides = [wanted] if wanted else [*([height] if width in (height, None) else []), *FALLBACK_SIZES]
    tries: Iterator[tuple[int, int]] = itertools.product(sides, CHANNELS)
    tried: set[tuple[int, int]] = set()
    failures: list[tuple[int, int, CannotRunError]] = []
    while (now := next(tries, None)) is not None:
        side, channels = now
        if (side, channels) in tried:
            continue
        tried.add((side, channels))
        try:
            anatomy = dissect(model.module, partial(example, side, channels))
        except CannotRunError as error:
            failures.append((side, channels, error))
            if not wanted and side == sides[0]:
                tries = itertools.chain(tries, _asked_for(model.module, side, channels, error))
            continue
        _refuse_rows(model, anatomy.first, side, channels)
        return side, channels, anatomy
    # The most natural try: of the first side, the one that came furthest.
    side, channels, failure = max(
        (row for row in failures if row[0] == failures[0][0]), key=lambda row: len(row[2].entered)
    )
    raise PosthocError(_refusal(model, side, channels, failure, wanted is not None))


def _asked_for(module: nn.Module, side: int, channels: int, failure: CannotRunError) -> Iterator[tuple[int, int]]:
    """Side and channels at which the linear layer that refused its input would be given as many numbers as it takes."""
    last = failure.entered[-1] if failure.entered else None
    if last is None or not isinstance(last.module, nn.Linear) or last.shape is None or len(last.shape) != 2:
        return
    wanted, given = last.module.in_features, last.shape[1]
    if given == channels * side * side:  # the pixels in a row
        for count in CHANNELS:
            if (fitting := math.isqrt(wanted // count)) ** 2 * count == wanted:
                yield fitting, count
        return
    yield from ((natural, channels) for natural in NATURAL_SIZES if (natural > side) == (given < wanted))
    low, high = (side + 1, min(LARGEST_SIDE, 8 * side)) if given < wanted else (1, side - 1)
    while low <= high:  # what is left of an image after convolutions grows with its side
        middle = (low + high) // 2
        size = _flat_size(module, last.name, middle, channels)
        if size == wanted:
            yield middle, channels
            return
        low, high = (middle + 1, high) if size < wanted else (low, middle - 1)


def _flat_size(module: nn.Module, layer: str, side: int, channels: int) -> int:
    """How many numbers a layer is given at this side; 0 where the images are too small to come so far."""
    try:
        dissect(module, partial(example, side, channels))
    except CannotRunError as failure:
        last = failure.entered[-1] if failure.entered else None
        return last.shape[-1] if last and last.name == layer and last.shape else 0
    linear = module.get_submodule(layer)
    return linear.in_features if isinstance(linear, nn.Linear) else 0


def _refuse_rows(model: Model, first: Entered | None, side: int, channels: int) -> None:
    """Raise where the first layer multiplies each row of pixels by its weights: it was made for vectors."""
    if first is not None and first.shape == (2, channels, side, side) and _is_of_vectors(first.module):
        raise PosthocError(_takes_vectors(model, first.module, side, channels))


def _is_of_vectors(layer: nn.Module) -> bool:
    return all(parameter.ndim <= 2 for parameter in layer.parameters(recurse=False))


def _takes_vectors(model: Model, layer: nn.Module, side: int, channels: int) -> str:
    features = f" of {counted(layer.in_features, 'feature')}" if isinstance(layer, nn.Linear) else ""
    return (
        f"{model.name} takes vectors{features}; an image of {side} x {side} x {channels} has {side * side * channels} "
        f"pixels. Pass --probe npz:FILE with the vectors."
    )


def _refusal(model: Model, side: int, channels: int, failure: CannotRunError, given: bool) -> str:
    """What the network takes, in words, from the pass that came furthest."""
    name, reason = model.name, error_line(failure.reason)
    if len(more := arguments_of(model.module).needed) > 1:
        return f"{name} takes {len(more)} inputs ({', '.join(more)}); pass --probe npz:FILE with arrays of these names."
    last = failure.entered[-1] if failure.entered else None
    image = (2, channels, side, side)
    layers = [layer for layer in failure.entered if layer.weighs or isinstance(layer.module, nn.RNNBase)]
    first = layers[0].module if layers else None
    if isinstance(first, (nn.Embedding, nn.EmbeddingBag)):
        return f"{name} takes tokens ({layers[0].name} is {with_article(type(first).__name__)}); pass --probe text:FILE or tokens:FILE."
    if isinstance(first, (nn.Conv1d, nn.ConvTranspose1d)):
        return f"{name} takes sequences of {counted(first.in_channels, 'channel')} ({layers[0].name} is a Conv1d); pass --probe npz:FILE with such arrays."
    if isinstance(first, (nn.Conv3d, nn.ConvTranspose3d)):
        return f"{name} takes volumes of {counted(first.in_channels, 'channel')} ({layers[0].name} is a Conv3d); pass --probe npz:FILE with such arrays."
    if isinstance(first, nn.RNNBase) and last and last.module is first:
        return f"{name} takes sequences of {counted(first.input_size, 'feature')} ({layers[0].name} is {with_article(type(first).__name__)}); pass --probe npz:FILE with such arrays."
    if isinstance(first, nn.Linear) and last and last.module is first:
        if layers[0].shape == image or first.in_features < min(CHANNELS):
            return _takes_vectors(model, first, side, channels)
        if layers[0].shape == (2, channels * side * side):
            return f"{name} takes {first.in_features} numbers, as many as no square image in colour or grey has pixels; pass --probe npz:FILE with arrays."
    if isinstance(first, nn.Conv2d) and layers[0].shape == image and first.in_channels not in CHANNELS:
        return f"{name} takes images of {counted(first.in_channels, 'channel')}; pictures have 3, or 1 as grey: pass --probe npz:FILE with such arrays."
    where = f" in {last.name} ({type(last.module).__name__})" if last and last.name else ""
    advice = (
        ""
        if given or not isinstance(first, nn.Conv2d) or last is None or last.module is first
        else ("; if it was trained on images of another size, pass --image-size")
    )
    return f"{name} cannot take images of {side} x {side} x {channels}{where}: {reason}{advice}."
