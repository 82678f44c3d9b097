"""What a probe is: samples, the same for every checkpoint, how the network is given them, and how its output is scored."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from posthoc.errors import PosthocError
from posthoc.recording import UNKNOWN

if TYPE_CHECKING:
    from torch import Tensor, device

    from posthoc.replay.hooks import Anatomy
    from posthoc.replay.models import Model
    from posthoc.replay.outputs import Scoring

Batch = dict[str, "Tensor"]
"""The inputs of some samples, by name: the only one is given to the network by its position, several by their names."""


@dataclass(frozen=True)
class Asked:
    """What a probe is asked for, as KIND:PLACE.

    samples: how many; root, download: where data sets lie, and whether one may be fetched; options: by the names of the
    command line, those that were given; recorded: what the run says of itself in run.json.
    """

    spec: str
    samples: int | None = None
    root: Path | None = None
    download: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    recorded: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        return self.spec.partition(":")[0]

    @property
    def place(self) -> str:
        return self.spec.partition(":")[2]


@dataclass(frozen=True)
class Probe:
    """Samples, and what is known of them.

    inputs: by the names of the network's arguments, arrays of any type whose first axis is the sample; targets: what is
    right, by sample; where these are whole numbers, of `classes` classes; index: int64 [N], positions in the data set;
    axes: names of each input's axes after the first.

    prepare: what the network sees of a batch, on its device (default: as it is, in single precision); example:
    a batch of so many samples to trace the network with, on request of larger ones (default: the first samples);
    scoring: default: as classes, where there are targets; anatomy: what tracing shows, if that was found already.

    samples: what they are called; preparation: by names, on which numbers depend, and in words; notes: label and text;
    batch_size: unless told otherwise; few: samples that tell how a network behaves; alternatives: the same samples
    prepared otherwise, by the options of the command line that say so, to be tried where a network fails at these.
    """

    name: str
    inputs: Mapping[str, NDArray[Any]]
    targets: NDArray[Any] | None = None
    index: NDArray[np.int64] | None = None
    classes: int | None = None
    axes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    prepare: Callable[[Batch], Batch] | None = None
    example: Callable[[int, bool], Batch] | None = None
    scoring: "Scoring | None" = None
    anatomy: "Anatomy | None" = None
    digest: str | None = None
    samples: str = "samples"
    preparation: Mapping[str, Any] = field(default_factory=dict)
    words: str = UNKNOWN
    notes: Sequence[tuple[str, str]] = ()
    batch_size: int = 256
    few: int = 8
    alternatives: Callable[[], Sequence[tuple[str, "Probe"]]] | None = None

    def __post_init__(self) -> None:
        lengths = {name: len(array) for name, array in self.inputs.items()}
        if self.targets is not None:
            lengths["targets"] = len(self.targets)
        if len(set(lengths.values())) != 1 or not all(lengths.values()):
            rows = ", ".join(f"{name} {length}" for name, length in lengths.items()) or "no inputs"
            raise PosthocError(
                f"{self.name}: a probe has as many samples in all its arrays, and one at least ({rows})."
            )

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """The targets, where they are classes."""
        classes = self.targets is not None and self.targets.ndim == 1 and np.issubdtype(self.targets.dtype, np.integer)
        return self.targets.astype(np.int64) if classes and self.targets is not None else None

    @property
    def sha256(self) -> str:
        """Digest of names, shapes and values."""
        if self.digest:
            return self.digest
        digest = hashlib.sha256()
        arrays = dict(self.inputs) | ({} if self.targets is None else {"targets": self.targets})
        for name, array in arrays.items():
            digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    @cached_property
    def shapes(self) -> str:
        """Of the inputs, in words."""
        rows = [
            f"{name} {array.dtype} {' x '.join(map(str, array.shape[1:])) or 'number'}"
            for name, array in self.inputs.items()
        ]
        return ", ".join(rows)

    def batches(self, device: "device", size: int, count: int | None = None) -> Iterator[Batch]:
        """What the network sees of the first `count` samples, all unless given, `size` at a time."""
        import torch

        arrays = {name: torch.from_numpy(array[:count]).to(device) for name, array in self.inputs.items()}
        for start in range(0, len(self) if count is None else min(count, len(self)), size):
            batch = {name: array[start : start + size] for name, array in arrays.items()}
            yield self.prepare(batch) if self.prepare else _plain(batch)

    def traced(self, size: int, grown: bool = False) -> Batch:
        """A batch to trace the network with."""
        if self.example:
            return self.example(size, grown)
        import torch

        rows = np.arange(size) % len(self)
        return _plain({name: torch.from_numpy(array[rows]) for name, array in self.inputs.items()})


def _plain(batch: Batch) -> Batch:
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in batch.items()}


@dataclass(frozen=True)
class Kind:
    """A kind of probe: its key in `PROBES` is what stands before the colon.

    check: raises UsageError for what is mistyped, PosthocError for what is not there, without importing torch;
    load: the probe, for this network; options: the names of those on the command line that it knows.
    """

    load: Callable[[Asked, "Model"], Probe]
    check: Callable[[Asked], None] = lambda asked: None
    options: tuple[str, ...] = ()
