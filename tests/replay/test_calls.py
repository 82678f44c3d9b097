"""How the inputs of a probe reach a forward pass."""

import pytest
import torch
from torch import nn

from posthoc.replay.forward import call


class Both(nn.Module):
    """A network of text and pictures."""

    def forward(self, input_ids=None, pixel_values=None, **others):
        return input_ids, pixel_values, others


class Pair(nn.Module):
    def forward(self, left, right, scale=1):
        return scale * (left - right)


def test_inputs_find_the_arguments_of_their_names():
    a, b = torch.zeros(1), torch.ones(1)
    assert call(Both(), {"pixel_values": a}) == (None, a, {})
    assert call(Both(), {"images": a}) == (None, a, {})
    assert call(Both(), {"ids": a}) == (a, None, {})
    assert call(Both(), {"pixel_values": a, "input_ids": b}) == (b, a, {})
    assert call(Pair(), {"right": a, "left": b}) == 1
    assert call(Pair(), {"x1": a, "x2": b}) == -1  # by their places
    assert call(Pair(), {"left": a, "right": b, "scale": 3 * b}) == -3
    with pytest.raises(TypeError):
        call(Pair(), {"a": a, "b": a, "c": a, "d": a})
