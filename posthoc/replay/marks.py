"""Which tensor of a checkpoint a library puts where: it is given tensors that can be told apart, and they are looked for.

Libraries rename tensors as they load them, by rules of many versions; what they do with marked ones shows them all.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from posthoc.errors import PosthocError

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


@dataclass(frozen=True)
class Merged:
    """A tensor of a network that is made of several of a checkpoint, as the experts of a mixture are.

    pieces: name in the checkpoint, and where in the tensor it stands: a position or a range for each leading axis.
    """

    shape: tuple[int, ...]
    pieces: tuple[tuple[str, tuple[int | slice, ...]], ...]

    def renamed(self, name: Callable[[str], str]) -> "Merged":
        return Merged(self.shape, tuple((name(theirs), place) for theirs, place in self.pieces))

    def made_of(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Raises PosthocError where the pieces are of different types."""
        types = {tensors[name].dtype: name for name, _ in self.pieces}
        if len(types) > 1:
            raise PosthocError(
                f"{' and '.join(types.values())} are of different types, and one tensor of the network; save them in one."
            )
        whole = torch.empty(self.shape, dtype=next(iter(types)))
        for name, place in self.pieces:
            whole[place] = tensors[name]
        return whole


Names = Mapping[str, str | Merged]
"""Name of a tensor in a network -> its name in a checkpoint, or what it is made of."""


def sources(names: Names) -> set[str]:
    """The names in the checkpoint."""
    pieces = {name for theirs in names.values() if isinstance(theirs, Merged) for name, _ in theirs.pieces}
    return pieces | {theirs for theirs in names.values() if isinstance(theirs, str)}


def assembled(names: Names, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's tensors by the network's names."""
    return {
        name: tensors[theirs] if isinstance(theirs, str) else theirs.made_of(tensors) for name, theirs in names.items()
    }


def find_marks(module: nn.Module, marks: Mapping[str, Tensor]) -> tuple[dict[str, str | Merged], list[str]]:
    """The module's tensors that are marks, or made of them -> the marks' names; and its tensors that are none.

    Of a tensor that the module has under several names the first counts.
    """
    numbered = list(marks)
    names: dict[str, str | Merged] = {}
    others, seen = [], set()
    for name, tensor in module.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor) or id(tensor) in seen or not tensor.numel():
            continue
        seen.add(id(tensor))
        theirs = _mark(tensor.detach(), marks, numbered)
        if theirs and torch.equal(tensor, marks[theirs].to(tensor.dtype)):
            names[name] = theirs
        elif pieces := _pieces(tensor.detach(), marks, numbered):
            names[name] = Merged(tuple(tensor.shape), tuple(pieces))
        else:
            others.append(name)
    return names, others


def _mark(tensor: Tensor, marks: Mapping[str, Tensor], numbered: Sequence[str]) -> str | None:
    """The mark that a tensor begins with."""
    number = float(tensor.flatten()[0])
    return numbered[int(number)] if number.is_integer() and 0 <= number < len(numbered) else None


def _pieces(
    tensor: Tensor, marks: Mapping[str, Tensor], numbered: Sequence[str], outer: tuple[int | slice, ...] = ()
) -> list[tuple[str, tuple[int | slice, ...]]]:
    """The marks of which a tensor is put together along its leading axes, and where; none where it is not so."""
    pieces: list[tuple[str, tuple[int | slice, ...]]] = []
    row = 0
    while tensor.ndim and row < len(tensor):
        name = _mark(tensor[row], marks, numbered)
        if name is None or not marks[name].numel():
            return []
        place: int | slice = slice(row, row + len(marks[name])) if marks[name].ndim == tensor.ndim else row
        if torch.equal(tensor[place], marks[name].to(tensor.dtype)):
            pieces.append((name, (*outer, place)))
        elif inner := _pieces(tensor[row], marks, numbered, (*outer, row)):
            pieces += inner
            place = row
        else:
            return []
        row = place.stop if isinstance(place, slice) else row + 1
    return pieces
