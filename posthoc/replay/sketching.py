"""What is stored of a checkpoint's weights: the norm of every tensor, and a sketch that tells distances between checkpoints."""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from posthoc.replay.models import Model
from posthoc.sketches import SPAN, sketch


def weights_of(model: Model, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """The parameters that a checkpoint of these shapes has, and how many numbers each holds (of complex ones both parts)."""
    names = model.names(shapes)
    sizes = {}
    for name, parameter in model.module.named_parameters():
        if name in names and (parameter.is_floating_point() or parameter.is_complex()):
            theirs = names[name]
            shape = shapes[theirs] if isinstance(theirs, str) else theirs.shape
            sizes[name] = int(np.prod(shape, dtype=np.int64)) * (2 if parameter.is_complex() else 1)
    return {name: size for name, size in sizes.items() if size}


def sketched(weights: Mapping[str, int], tensors: Mapping[str, Tensor]) -> dict[str, NDArray[np.floating]]:
    """norm: float64 [T] of the tensors named in `weights`; sketch: float32 [M], theirs one after another."""
    results = [sketch(name, size, _spans(tensors[name])) for name, size in weights.items()]
    if not results:
        return {}
    squares, sketches = zip(*results, strict=True)
    return {"norm": np.sqrt(squares), "sketch": np.concatenate(sketches)}


def _spans(tensor: Tensor) -> Iterator[NDArray[np.float32]]:
    """The numbers in single precision, a span at a time."""
    flat = (torch.view_as_real(tensor) if tensor.is_complex() else tensor).reshape(-1)
    for start in range(0, flat.numel(), SPAN):
        yield flat[start : start + SPAN].float().numpy()
