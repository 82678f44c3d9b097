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
from posthoc.replay.padding import is_mask, masks_in
from posthoc.replay.scores import IGNORED, SCORES, Judge, Score, Truth, is_binary, of_user
from posthoc.replay.signals import DEFAULT_SIGNALS

if TYPE_CHECKING:
    from torch import Tensor, device

    from posthoc.replay.hooks import Anatomy
    from posthoc.replay.models import Model

MOST_CLASSES = 1_000_000
Batch = dict[str, "Tensor"]
"""The inputs of some samples, by name: the only one is given to the network by its position, several by their names."""

Prepare = Callable[[Batch], Batch]
"""What the network sees of a batch."""


@dataclass(frozen=True)
class Asked:
    """What a probe is asked for, as KIND:PLACE or FILE.py:NAME; or what was handed over, in `given`.

    samples: how many; root, download: where data sets lie, and whether one may be fetched; options: by the names of the
    command line, those that were given; recorded: what the run says of itself in run.json; beside: where the checkpoints
    lie.
    """

    spec: str
    samples: int | None = None
    root: Path | None = None
    download: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    recorded: Mapping[str, Any] = field(default_factory=dict)
    beside: Sequence[Path] = ()
    given: object = None

    @property
    def kind(self) -> str:
        if self.given is not None or self.spec.partition(":")[0].endswith(".py") or ".py:" in self.spec:
            return "python"
        return self.spec.partition(":")[0]

    @property
    def place(self) -> str:
        return self.spec.partition(":")[2]


@dataclass(frozen=True)
class Probe:
    """Samples, and what is known of them.

    inputs: by the names of the network's arguments, arrays (or tensors, or lists) of any type whose first axis is the
    sample; one alone needs no name. targets: what is right, by sample: whole numbers are classes, of `classes` in all, or
    masks of them, unless the score compares numbers; numbers of any type that are all 0 or 1 are such, too, or several
    labels; other real numbers are to be met. index: int64 [N], positions in the data set; axes: names of each input's axes
    after the first.

    mask: which places of the samples hold something, [N, T] of ones, and zeros where they are padding, which means and
    losses leave out; several by name, none by {}. Unless given, what an input says that is called `attention_mask`, or
    the opposite of one that is called `key_padding_mask`, see `padding.NAMES`.

    score: one of `SCORES`, or a function of what the network gives and the targets, see `Judge` (default: that of
    `SCORES` which takes the targets). prepare: what the network sees of a batch, on its device (default: as it is, in
    single precision); example: a batch of so many samples to trace the network with, on request of larger ones (default:
    the first samples); anatomy: what tracing shows, if that was found already.

    samples: what they are called; preparation: by names, on which numbers depend, and in words; text_bytes: of the text of
    each row of tokens but its first; code: digest of the
    user's file that made it; notes: label and text; batch_size: unless told otherwise; few: samples that tell how a
    network behaves; alternatives: other ways to prepare them, by the options of the command line that say so, of which
    there are more for a network that fails at these.

    >>> len(Probe([[0.5, 1], [2, 3]], targets=[0, 1]))
    2
    """

    inputs: Mapping[str, NDArray[Any]]
    targets: NDArray[Any] | None = None
    score: Judge | str | None = None
    name: str = "probe"
    index: NDArray[np.int64] | None = None
    classes: int | None = None
    axes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    prepare: Prepare | None = None
    example: Callable[[int, bool], Batch] | None = None
    anatomy: "Anatomy | None" = None
    digest: str | None = None
    samples: str = "samples"
    preparation: Mapping[str, Any] = field(default_factory=dict)
    code: str | None = None
    words: str = UNKNOWN
    text_bytes: NDArray[np.int64] | None = None
    notes: Sequence[tuple[str, str]] = ()
    batch_size: int = 256
    few: int = 8
    alternatives: Callable[[bool], Sequence[tuple[str, Prepare]]] | None = None
    mask: Mapping[str, NDArray[Any]] | None = None

    def __post_init__(self) -> None:
        given = self.inputs if isinstance(self.inputs, Mapping) else {"input": self.inputs}
        object.__setattr__(self, "inputs", {name: _array(self.name, name, values) for name, values in given.items()})
        if self.targets is not None:
            object.__setattr__(self, "targets", as_targets(self.name, self.targets))
        object.__setattr__(self, "mask", self._masks())
        if isinstance(self.score, str) and self.score not in SCORES:
            raise PosthocError(
                f"{self.name}: there is no score {self.score!r}; give {', '.join(SCORES)} or a function."
            )
        lengths = {name: len(array) for name, array in self.inputs.items()}
        if self.targets is not None:
            lengths["targets"] = len(self.targets)
        lengths |= {f"mask {name}": len(mask) for name, mask in self.masks.items()}
        if len(set(lengths.values())) != 1 or not all(lengths.values()):
            rows = ", ".join(f"{name} {length}" for name, length in lengths.items()) or "no inputs"
            raise PosthocError(
                f"{self.name}: a probe has as many samples in all its arrays, and one at least ({rows}); make them equally long."
            )

    def _masks(self) -> Mapping[str, NDArray[np.bool_]]:
        """What the mask says; raises PosthocError where it is none."""
        if self.mask is None:
            return masks_in(self.inputs)
        given = self.mask if isinstance(self.mask, Mapping) else {"mask": self.mask}
        masks = {}
        for name, values in given.items():
            array = _array(self.name, f"the mask {name}", values)
            if not is_mask(array):
                raise PosthocError(
                    f"{self.name}: the mask {name} is {array.dtype} {array.shape}; give ones, and zeros where places are "
                    f"padding, a row for each sample."
                )
            masks[name] = array != 0
        return {name: mask for name, mask in masks.items() if not mask.all()}

    @property
    def masks(self) -> Mapping[str, NDArray[np.bool_]]:
        """By name, [N, T], false where a place is padding; nothing where none is."""
        return self.mask or {}

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    @property
    def tokens(self) -> NDArray[np.uint32] | None:
        """The ids [N, T], where the only input is rows of tokens."""
        if list(self.axes.values()) != [("token",)]:
            return None
        return self.inputs[next(iter(self.axes))].astype(np.uint32)

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """The targets, where they are classes: one whole number for each sample, or 0 or 1 of any type."""
        targets = self.targets
        if targets is None or (targets.ndim > 1 if targets.dtype.kind != "f" else targets[0].size > 1):
            return None
        if no_classes(targets):
            return None
        return targets.reshape(-1).astype(np.int64) if targets.dtype.kind != "f" or is_binary(targets) else None

    def truth(self, sample: tuple[int, ...], ids: int = 0) -> Truth:
        """What outputs are scored by, where the network sees samples of that shape, of so many ids."""
        return Truth(self.targets, self.classes or classes_of(self.targets), sample, ids)

    def score_of(self, name: str | None) -> Score | None:
        """The score of that name; the user's function where it is none of `SCORES`, nothing for None."""
        if name is None:
            return None
        return of_user(self.score) if callable(self.score) and name not in SCORES else SCORES[name]

    @property
    def sha256(self) -> str:
        """Digest of names, shapes and values."""
        if self.digest:
            return self.digest
        digest = hashlib.sha256()
        arrays = dict(self.inputs) | ({} if self.targets is None else {"targets": self.targets})
        for name, array in arrays.items():
            digest.update(f"{name} {array.dtype} {array.shape}\n".encode("utf-8", "surrogatepass"))
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
        batch = {name: torch.from_numpy(array[rows]) for name, array in self.inputs.items()}
        return self.prepare(batch) if self.prepare else _plain(batch)


def _array(probe: str, name: str, values: Any) -> NDArray[Any]:
    """An array of numbers; of torch's types that NumPy has not in single precision."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = (values.float() if str(values.dtype) == "torch.bfloat16" else values).numpy()
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise PosthocError(
            f"{probe}: the rows of {name} differ in shape; pad them to one length, and say by `mask` what is padding."
        ) from error
    if array.dtype.kind not in "biuf" or not array.ndim:
        raise PosthocError(f"{probe}: {name} is {array.dtype} {array.shape}; give numbers, one row for each sample.")
    if not array.size:
        raise PosthocError(f"{probe}: {name} is of shape {array.shape}, in which there is nothing.")
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    return native.astype(np.float64) if native.dtype.itemsize > 8 else native


def as_targets(probe: str, values: Any) -> NDArray[Any]:
    """Whole numbers int64 [N] or, as masks are, [N, ...], or real ones; a class in a row of its own counts as one."""
    targets = _array(probe, "targets", values)
    if targets.dtype.kind == "f":
        return targets
    if targets.ndim == 2 and targets.shape[1] == 1:
        targets = targets[:, 0]
    if targets.max() > np.iinfo(np.int64).max:
        raise PosthocError(f"{probe}: {no_classes(targets)}.")
    return targets.astype(np.int64)


def no_classes(targets: NDArray[Any] | None, classes: int | None = None) -> str | None:
    """Why whole numbers are no classes, of so many if that is known, in words; None where they are, or are real numbers.

    >>> no_classes(np.array([3, -9])), no_classes(np.array([3, 9]))
    ('label -9 is negative; labels count from 0', None)
    """
    if targets is None or targets.dtype.kind == "f":
        return None
    least, most = int(targets.min()), int(targets.max())
    if least < 0 and targets.ndim == 1:
        return f"label {least} is negative; labels count from 0"
    if most >= MOST_CLASSES:
        return f"label {most} is no class; labels count from 0 to fewer than {MOST_CLASSES:,}"
    if targets.ndim > 1 and most == IGNORED and not classes and bool(np.isin(targets, (0, IGNORED)).all()):
        return f"the masks hold nothing but 0 and {IGNORED}, which means no class; save them as 0 and 1"
    return None


def require_classes(probe: Probe) -> None:
    """Raise PosthocError where the targets are whole numbers and no classes."""
    if why := no_classes(probe.targets, probe.classes):
        raise PosthocError(
            f"{probe.name}: {why}; or give --score regression, which compares targets as numbers, or --score none."
        )


def classes_of(targets: NDArray[Any] | None) -> int:
    """How many classes targets are of, 0 where they are none."""
    if targets is None or (targets.dtype.kind == "f" and not is_binary(targets)):
        return 0
    if targets.ndim == 1 and no_classes(targets):
        return 0
    masked = targets.ndim > 1 and targets.max() == IGNORED
    return int(np.max(targets, where=(targets != IGNORED) | (not masked), initial=-1)) + 1


def _plain(batch: Batch) -> Batch:
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in batch.items()}


@dataclass(frozen=True)
class Kind:
    """A kind of probe: its key in `PROBES` is what stands before the colon.

    check: raises UsageError for what is mistyped, PosthocError for what is not there, without importing torch;
    load: the probe, for this network; options: the names of those on the command line that it knows; signals: what is
    recorded unless asked for.
    """

    load: Callable[[Asked, "Model"], Probe]
    check: Callable[[Asked], None] = lambda asked: None
    options: tuple[str, ...] = ()
    signals: tuple[str, ...] = DEFAULT_SIGNALS
