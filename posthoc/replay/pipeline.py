"""The loop that replays: the next checkpoint is read while this one runs and the last one's part is written."""

import itertools
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from posthoc import store
from posthoc.errors import PosthocError, error_line
from posthoc.manifest import Control, Made
from posthoc.replay.averaging import OF_AVERAGES, Averages, Opened
from posthoc.replay.checkpoint import Header, read_checkpoint
from posthoc.replay.formats.table import digest
from posthoc.replay.loading import require_types
from posthoc.replay.marks import Names, assembled, sources
from posthoc.replay.network import Network, Results, network
from posthoc.replay.order import Checkpoint
from posthoc.replay.plan import Extraction
from posthoc.replay.sketching import sketched
from posthoc.replay.source import Source
from posthoc.replay.spectra import spectral
from posthoc.replay.transfer import is_lost
from posthoc.stamps import Stamp


@dataclass(frozen=True)
class Replayed:
    """A checkpoint, or an untrained network, that was replayed; files: which were read."""

    item: Checkpoint | Control
    files: tuple[Stamp, ...] = ()

    def __str__(self) -> str:
        return _name(self.item)


@dataclass(frozen=True)
class Kept:
    """One whose part was there already; files: the checkpoint's as they are now."""

    item: Checkpoint | Control
    files: tuple[Stamp, ...] = ()

    def __str__(self) -> str:
        return f"{_name(self.item)}, kept"


@dataclass(frozen=True)
class Failed:
    """One that could not be replayed, and why."""

    item: Checkpoint | Control
    error: PosthocError

    def __str__(self) -> str:
        return f"{_name(self.item)}, skipped"


Outcome = Replayed | Kept | Failed


def _name(item: Checkpoint | Control) -> str:
    return item.path if isinstance(item, Control) else item.path.name


@dataclass
class Loaded:
    """A checkpoint's tensors on the CPU, by the model's names; weights: what is stored of them.

    count: of how many checkpoints, of which it is the last, the tensors are the mean, 1 where they are its own; averaged:
    see `Averages.sha256`.
    """

    checkpoint: Checkpoint
    sha256: str
    tensors: dict[str, Tensor]
    nonfinite: int = 0
    weights: Mapping[str, NDArray[np.floating]] = field(default_factory=dict)
    averaged: str = ""
    count: int = 1
    files: tuple[Stamp, ...] = ()

    @property
    def words(self) -> str:
        """What is replayed, for errors."""
        return str(self.checkpoint.path) if self.count == 1 else f"mean of {self.count} up to {self.checkpoint.path}"


def replay(
    plan: Extraction,
    checkpoints: Iterable[Checkpoint],
    known: Callable[[Checkpoint], Made | None],
    write: Callable[[Checkpoint, store.Frame], None],
    stop: threading.Event | None = None,
    scratch: Path | None = None,
    kept: Callable[[], str] = str,
) -> Iterator[Outcome]:
    """Replay the checkpoints and write each one's frame; yields what became of each.

    A checkpoint from which what `known` returns was made is left alone, and so is one that has gone since. Reading and writing go on in a thread each; what is
    written is the same as without them. A frame has been written when its checkpoint is yielded. Once `stop` is
    set no other checkpoint is begun. scratch: see `Network`; kept: what goes on, in words, where a GPU takes no more work.
    """
    source = itertools.takewhile(lambda _: not (stop and stop.is_set()), checkpoints)
    reading = Reading(plan, source, known)

    def read_next(into: Mapping[str, Tensor], net: Network | None) -> Loaded | Kept | Failed | None:
        item = reading.next(into)
        if net and isinstance(item, Loaded):
            net.stage(item.tensors)
        return item

    with ThreadPoolExecutor(1, "reader") as reader, ThreadPoolExecutor(1, "writer") as writer, ExitStack() as stack:
        written: list[tuple[Replayed, Future[None]]] = []
        net: Network | None = None
        running: Loaded | None = None
        frame: store.Frame | PosthocError | None = None
        ahead = reader.submit(read_next, {}, None)
        while True:
            try:
                item = ahead.result()  # read while the network ran
                while isinstance(item, (Kept, Failed)):
                    yield item
                    item = reader.submit(read_next, {}, net).result()
                if item and net is None:
                    net = stack.enter_context(network(plan, scratch=scratch))
                    net.stage(item.tensors)
                if running and net:
                    frame = _gathered(plan, running, net, frame)
                if running and frame and not (item and item.count > 1):  # the last of what its frame is made of
                    yield from _finished(written)
                    if isinstance(frame, PosthocError):
                        if is_lost(plan.device):
                            raise _lost(running.words, str(frame), kept()) from frame
                        reading.averages.failed.add(running.checkpoint.path)
                        yield Failed(running.checkpoint, frame)
                    else:
                        replayed = Replayed(running.checkpoint, frame.files)
                        written.append((replayed, writer.submit(write, running.checkpoint, frame)))
                    frame = None
                if not item or not net or (stop and stop.is_set() and item.count == 1):
                    break
                running = item
                ahead = reader.submit(read_next, net.swap(), net)
                net.launch(item.words, alone=item.count > 1)
            except torch.OutOfMemoryError as error:
                reason = str(error).split("\n")[0]
                where = running.checkpoint.path if running else plan.run.folder
                raise PosthocError(f"Out of memory at {where} ({reason}); pass a smaller --batch-size.") from error
            except RuntimeError as error:  # of CUDA, which says late, and to whoever asks it next, that it failed
                if not is_lost(plan.device):
                    raise
                at = running.words if running else str(plan.run.folder)
                raise _lost(at, error_line(error), kept()) from error
        yield from _finished(written)


def _lost(where: str, reason: str, kept: str) -> PosthocError:
    """A GPU that takes no more work from this process; what else it was given would be said to fail, too."""
    return PosthocError(f"The GPU failed at {where} ({reason}){kept or '; run the same command again'}.")


def _finished(written: list[tuple[Replayed, Future[None]]]) -> Iterator[Replayed]:
    """Those whose frames are being written, once they are."""
    while written:
        replayed, writing = written.pop()
        writing.result()
        yield replayed


class Reading:
    """Reads checkpoints one after another, and after each makes the means that end with it."""

    def __init__(
        self, plan: Extraction, checkpoints: Iterator[Checkpoint], known: Callable[[Checkpoint], Made | None]
    ) -> None:
        self.plan, self.checkpoints, self.known = plan, checkpoints, known
        self.names: dict[int, Names] = {}  # by the identity of the shapes, which the checkpoints of a run share
        self.averages = Averages(plan, self.tensors)
        self.means: Iterator[tuple[int, dict[str, Tensor]]] = iter(())
        self.loaded: Loaded | None = None

    def next(self, into: Mapping[str, Tensor]) -> Loaded | Kept | Failed | None:
        """What comes next, None at the end; into: tensors whose memory may be used again."""
        if self.loaded and (mean := next(self.means, None)):
            return replace(self.loaded, count=mean[0], tensors=mean[1])
        checkpoint = next(self.checkpoints, None)
        if checkpoint is None:
            return None
        try:
            item = self.load(checkpoint, into)
        except PosthocError as error:
            return Failed(checkpoint, error)
        if isinstance(item, Loaded):
            self.loaded, self.means = replace(item, tensors={}), self.averages.means(checkpoint)
        return item

    def load(self, checkpoint: Checkpoint, into: Mapping[str, Tensor]) -> Loaded | Kept:
        """A checkpoint's own weights, unless what is known was made from it; raises PosthocError where it is not as planned."""
        plan, averages = self.plan, self.averages
        folder = plan.run.folder
        source = Source(checkpoint.path, hashing=True)  # the same files for the digest and for the tensors, or an error
        averaged, before = averages.sha256(checkpoint), self.known(checkpoint)
        if before is not None and not os.path.lexists(checkpoint.path):
            return Kept(checkpoint, before.files)
        if before is not None and before.averaged in (None, averaged):
            same = source.is_untouched(folder, before.files)
            opened = Opened(source, before.sha256 if same else digest(checkpoint.path, source))
            if opened.sha256 == before.sha256:
                averages.keep(checkpoint, opened)
                return Kept(checkpoint, source.stamped(folder))
        tensors = self.tensors(checkpoint, source, {} if averages else into)
        opened = Opened(source, digest(checkpoint.path, source))  # of what was read, and of what was left of the files
        source.require_unchanged()
        averages.keep(checkpoint, opened, tensors)
        weights = sketched(plan.stored.weights, tensors)
        if plan.identity.spectra:
            weights |= spectral(plan.stored.weights, tensors)
        finite = set(itertools.compress(plan.stored.weights, np.isfinite(weights["norm"]))) if weights else set()
        nonfinite = sum(_nonfinite(tensor) for name, tensor in tensors.items() if name not in finite)
        if averages and plan.device.type == "cpu":  # a network may write to what it is given
            tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        files = source.stamped(folder)
        return Loaded(checkpoint, opened.sha256, tensors, nonfinite, weights, averaged, files=files)

    def tensors(self, checkpoint: Checkpoint, source: Source, into: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A checkpoint's tensors by the model's names; raises PosthocError where it is not as planned."""
        plan, shapes = self.plan, checkpoint.header.shapes
        if id(shapes) not in self.names:
            self.names[id(shapes)] = plan.model.names(shapes)
        names = self.names[id(shapes)]
        memory = {theirs: into[name] for name, theirs in names.items() if name in into and isinstance(theirs, str)}
        pin = plan.device.type == "cuda"
        now, theirs = read_checkpoint(checkpoint.path, plan.pick, sources(names), memory, pin, source)
        source.require_unchanged()
        if _stated(now, checkpoint.header) != _stated(checkpoint.header, checkpoint.header):
            raise PosthocError(f"{checkpoint.path} no longer says of itself what it was planned with; run again.")
        if any(name not in theirs or tuple(theirs[name].shape) != shapes[name] for name in sources(names)):
            raise PosthocError(f"{checkpoint.path} no longer holds the weights it was planned with; run again.")
        tensors = assembled(names, theirs)
        require_types(plan.model.module, {name: tensor.dtype for name, tensor in tensors.items()}, checkpoint.path)
        return tensors


def _stated(header: Header, planned: Header) -> tuple[int | None, int | None, str]:
    """What a checkpoint says of itself, of the numbers that are planned; as text, in which a NaN is equal to itself."""
    return header.epoch, header.step, repr([header.recorded.get(name) for name in planned.recorded])


def _nonfinite(tensor: Tensor) -> int:
    """How many numbers are NaN or infinite; in NumPy, whose one thread leaves the others to the network."""
    if not tensor.is_floating_point() or not tensor.numel():
        return 0
    if tensor.dtype == torch.bfloat16:
        return int(np.count_nonzero((tensor.view(torch.int16).numpy() & 0x7F80) == 0x7F80))
    if tensor.dtype not in (torch.float16, torch.float32, torch.float64):
        return int((~torch.isfinite(tensor.float())).sum())
    values = tensor.numpy()
    with np.errstate(all="ignore"):
        total = values.sum()  # one pass that nearly always settles it
    return 0 if np.isfinite(total) else int(np.count_nonzero(~np.isfinite(values)))


def _gathered(
    plan: Extraction, loaded: Loaded, net: Network, before: store.Frame | PosthocError | None
) -> store.Frame | PosthocError:
    """What the checkpoint gave, or what the model raised; what a mean gave is added to the frame of the checkpoint that it
    ends with, `before`."""
    if before is None:  # its own weights are replayed first
        try:
            return _frame(plan, loaded, net.results())
        except PosthocError as error:
            return error
    try:
        said = net.said()
    except PosthocError:
        return before  # the checkpoint itself is sound: its mean has no loss, as those that cannot be made
    if isinstance(before, PosthocError):
        return before
    kept = {name: said[name] for name in OF_AVERAGES if name in said}
    return replace(before, averages={**before.averages, loaded.count: kept})


def _frame(plan: Extraction, loaded: Loaded, results: Results) -> store.Frame:
    checkpoint = loaded.checkpoint
    # Of means that cannot be made there is no loss.
    nothing = {
        name: np.full_like(values, np.nan if values.dtype.kind == "f" else 0)
        for name, values in results.behaviour.items()
        if name in OF_AVERAGES
    }
    return store.Frame(
        path=checkpoint.path.relative_to(plan.run.folder).as_posix(),
        sha256=loaded.sha256,
        epoch=checkpoint.epoch,
        step=checkpoint.step,
        recorded=checkpoint.recorded,
        nonfinite=loaded.nonfinite,
        weights=loaded.weights,
        averaged=loaded.averaged,
        files=loaded.files,
        averages=dict.fromkeys(plan.identity.averaged, nothing),
        **vars(results),
    )
