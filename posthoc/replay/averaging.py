"""The mean of the last few checkpoints' weights, which is replayed beside each checkpoint's own."""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from posthoc.errors import PosthocError
from posthoc.replay.formats.table import digest
from posthoc.replay.source import Source

if TYPE_CHECKING:
    from pathlib import Path

    from posthoc.replay.order import Checkpoint
    from posthoc.replay.plan import Extraction


OF_AVERAGES = ("loss", "correct")
"""What is kept of what a mean says of the samples, as far as a checkpoint's own weights say it."""


class Opened(NamedTuple):
    """A checkpoint whose files have been hashed: it is read from the same ones, or not at all."""

    source: Source
    sha256: str


class Averages:
    """The means that a plan asks for, of 2 checkpoints or more that follow each other in its run.

    A mean is of all its checkpoints anew, in their order, so that it is the same to the bit wherever the replay began;
    the tensors of as many checkpoints as the longest mean takes are in memory, so that each file is read once.
    """

    def __init__(
        self, plan: "Extraction", read: "Callable[[Checkpoint, Source, Mapping[str, Tensor]], dict[str, Tensor]]"
    ) -> None:
        """read: a checkpoint's tensors on the CPU, by the model's names, as `pipeline.read_tensors` does."""
        self.counts, self.checkpoints, self.read = plan.identity.averaged, plan.run.checkpoints, read
        self.most = max(self.counts, default=1)
        self.places = {checkpoint.path: place for place, checkpoint in enumerate(self.checkpoints)}
        self.opened: dict[Path, Opened] = {}
        self.tensors: dict[Path, dict[str, Tensor]] = {}
        self.failed: set[Path] = set()
        """Checkpoints with whose weights the network fails, of which there are no means."""

    def __bool__(self) -> bool:
        return bool(self.counts)

    def sha256(self, checkpoint: "Checkpoint") -> str:
        """SHA-256 of the digests of what its means are made of beside itself, an empty one for what cannot be read; empty
        where that is nothing."""
        before = self._last(checkpoint, self.most)[:-1]
        digests = []
        for other in before:
            with contextlib.suppress(PosthocError):
                self._open(other)
            digests.append(self.opened[other.path].sha256 if other.path in self.opened else "")
        return hashlib.sha256("\n".join(digests).encode()).hexdigest() if before else ""

    def keep(self, checkpoint: "Checkpoint", opened: Opened, tensors: dict[str, Tensor] | None = None) -> None:
        """Remember a checkpoint, and its tensors where they were read, as long as means may need it."""
        self.opened[checkpoint.path] = opened
        if tensors is not None:
            self.tensors[checkpoint.path] = tensors
        oldest = self.places[checkpoint.path] - self.most + 1
        for kept in (self.opened, self.tensors):
            for path in [path for path in kept if self.places[path] < oldest]:
                del kept[path]

    def means(self, checkpoint: "Checkpoint") -> Iterator[tuple[int, dict[str, Tensor]]]:
        """Of how many checkpoints that end with this one, and the mean of their weights; those that can be made."""
        for count in self.counts:
            last = self._last(checkpoint, count)
            if len(last) == count and self.failed.isdisjoint(other.path for other in last):
                with contextlib.suppress(PosthocError):  # which the checkpoint that cannot be read says itself
                    yield count, mean([self._tensors(other) for other in last])

    def _last(self, checkpoint: "Checkpoint", count: int) -> "tuple[Checkpoint, ...]":
        """So many checkpoints that end with this one, or as many as there are."""
        place = self.places[checkpoint.path]
        return self.checkpoints[max(place - count + 1, 0) : place + 1]

    def _open(self, checkpoint: "Checkpoint") -> Opened:
        if checkpoint.path not in self.opened:
            source = Source(checkpoint.path)
            self.opened[checkpoint.path] = Opened(source, digest(checkpoint.path, source))
        return self.opened[checkpoint.path]

    def _tensors(self, checkpoint: "Checkpoint") -> dict[str, Tensor]:
        if checkpoint.path not in self.tensors:
            self.tensors[checkpoint.path] = self.read(checkpoint, self._open(checkpoint).source, {})
        return self.tensors[checkpoint.path]


def mean(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of state dicts of the same names and shapes, summed in double precision, given in single at the least.

    Statistics that a network keeps in buffers, such as those of batch normalisation, are averaged like its weights, and
    not computed anew over data; whole numbers are those of the last.

    >>> mean([{"w": torch.tensor([1.0, 2.0]), "n": torch.tensor(1)}, {"w": torch.tensor([3.0, 6.0]), "n": torch.tensor(5)}])
    {'w': tensor([2., 4.]), 'n': tensor(5)}
    """
    means = {}
    for name, tensor in states[-1].items():
        if not (tensor.is_floating_point() or tensor.is_complex()):
            means[name] = tensor.clone()
            continue
        wide, single = (torch.complex128, torch.complex64) if tensor.is_complex() else (torch.float64, torch.float32)
        total = torch.zeros(tensor.shape, dtype=wide)
        for state in states:
            total += state[name].to(wide)
        means[name] = (total / len(states)).to(wide if tensor.dtype == wide else single)
    return means
