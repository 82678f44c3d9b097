"""Which tensor of a checkpoint a library puts where: it is given tensors that can be told apart, and they are looked for.

Libraries rename tensors as they load them, by rules of many versions; what they do with marked ones shows them all.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

MARKS = 2**16
"""Values of the tensors: whole numbers, so that buffers of integers keep them."""


def marked(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """A tensor of each name and shape that is like no other, nor like itself turned round: its number, then drawn values.

    >>> first, second = marked({"a": (2, 2), "b": (2, 2)}).values()
    >>> torch.equal(first, second), torch.equal(first, first.T)
    (False, False)
    """
    marks = {}
    for number, (name, shape) in enumerate(shapes.items()):
        marks[name] = torch.randint(0, MARKS, shape, generator=torch.Generator().manual_seed(number)).float()
        marks[name].view(-1)[:1] = number
    return marks


def find_marks(module: nn.Module, marks: Mapping[str, Tensor]) -> tuple[dict[str, str], list[str]]:
    """The module's tensors that are marks -> the marks' names; and its tensors that are none.

    Of a tensor that the module has under several names the first counts.
    """
    numbered = list(marks)
    names: dict[str, str] = {}
    others, seen = [], set()
    for name, tensor in module.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor) or id(tensor) in seen or not tensor.numel():
            continue
        seen.add(id(tensor))
        number = float(tensor.detach().flatten()[0])
        theirs = numbered[int(number)] if number.is_integer() and 0 <= number < len(numbered) else None
        if theirs and torch.equal(tensor, marks[theirs].to(tensor.dtype)):
            names[name] = theirs
        else:
            others.append(name)
    return names, others
