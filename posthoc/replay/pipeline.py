"""The loop that replays: the next checkpoint is read while this one runs and the last one's part is written."""

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from posthoc import store
from posthoc.errors import PosthocError
from posthoc.parts import Control
from posthoc.replay.checkpoint import Header, read_checkpoint
from posthoc.replay.formats.table import digest
from posthoc.replay.marks import Names, assembled, sources
from posthoc.replay.network import Network, network
from posthoc.replay.order import Checkpoint
from posthoc.replay.plan import Extraction
from posthoc.replay.sketching import sketched
from posthoc.replay.source import Source
from posthoc.replay.weights import require_types


@dataclass(frozen=True)
class Replayed:
    """A checkpoint, or an untrained network, that was replayed."""

    item: Checkpoint | Control

    def __str__(self) -> str:
        return _name(self.item)


@dataclass(frozen=True)
class Kept:
    """One whose part was there already."""

    item: Checkpoint | Control

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
    """A checkpoint's tensors on the CPU, by the model's names; weights: what is stored of them."""

    checkpoint: Checkpoint
    sha256: str
    tensors: dict[str, Tensor]
    nonfinite: int = 0
    weights: Mapping[str, NDArray[np.floating]] = field(default_factory=dict)


def replay(
    plan: Extraction,
    checkpoints: Iterable[Checkpoint],
    known: Callable[[Checkpoint], str | None],
    write: Callable[[Checkpoint, store.Frame], None],
    stop: threading.Event | None = None,
    scratch: Path | None = None,
) -> Iterator[Outcome]:
    """Replay the checkpoints and write each one's frame; yields what became of each.

    A checkpoint whose digest `known` returns is left alone. Reading and writing go on in a thread each; what is
    written is the same as without them. A frame has been written when its checkpoint is yielded. Once `stop` is
    set no other checkpoint is begun. scratch: see `Network`.
    """
    source = itertools.takewhile(lambda _: not (stop and stop.is_set()), checkpoints)
    names: dict[int, Names] = {}  # by the identity of the shapes, which the checkpoints of a run share

    def read_next(into: dict[str, Tensor], net: Network | None) -> Loaded | Kept | Failed | None:
        checkpoint = next(source, None)
        if checkpoint is None:
            return None
        try:
            shapes = checkpoint.header.shapes
            if id(shapes) not in names:
                names[id(shapes)] = plan.model.names(shapes)
            item = load(plan, checkpoint, names[id(shapes)], known(checkpoint), into)
            if net and isinstance(item, Loaded):
                net.stage(item.tensors)
            return item
        except PosthocError as error:
            return Failed(checkpoint, error)

    with ThreadPoolExecutor(1, "reader") as reader, ThreadPoolExecutor(1, "writer") as writer, ExitStack() as stack:
        written: tuple[Checkpoint, Future[None]] | None = None
        net: Network | None = None
        running: Loaded | None = None
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
                    frame = _frame_or_failure(plan, running, net)
                    if written:
                        written[1].result()
                        yield Replayed(written[0])
                        written = None
                    if isinstance(frame, PosthocError):
                        yield Failed(running.checkpoint, frame)
                    else:
                        written = running.checkpoint, writer.submit(write, running.checkpoint, frame)
                if not item or not net or (stop and stop.is_set()):
                    break
                running = item
                ahead = reader.submit(read_next, net.swap(), net)
                net.launch(str(item.checkpoint.path))
            except torch.OutOfMemoryError as error:
                reason = str(error).split("\n")[0]
                where = running.checkpoint.path if running else plan.run.folder
                raise PosthocError(f"Out of memory at {where} ({reason}); pass a smaller --batch-size.") from error
        if written:
            written[1].result()
            yield Replayed(written[0])


def load(
    plan: Extraction, checkpoint: Checkpoint, names: Names, known: str | None, into: dict[str, Tensor]
) -> Loaded | Kept:
    """Read a checkpoint's tensors, unless its digest is `known`; raises PosthocError where it is not as planned.

    names: of each tensor in the model, and in the checkpoint; into: tensors whose memory may be used again.
    """
    source = Source(checkpoint.path)  # the same files for the digest and for the tensors, or an error
    sha256 = digest(checkpoint.path, source)
    if sha256 == known:
        return Kept(checkpoint)
    memory = {theirs: into[name] for name, theirs in names.items() if name in into and isinstance(theirs, str)}
    pin = plan.device.type == "cuda"
    now, theirs = read_checkpoint(checkpoint.path, plan.pick, sources(names), memory, pin, source)
    source.require_unchanged()
    planned = checkpoint.header.shapes
    if _stated(now, checkpoint.header) != _stated(checkpoint.header, checkpoint.header):
        raise PosthocError(f"{checkpoint.path} no longer says of itself what it was planned with; run again.")
    if any(name not in theirs or tuple(theirs[name].shape) != planned[name] for name in sources(names)):
        raise PosthocError(f"{checkpoint.path} no longer holds the weights it was planned with; run again.")
    tensors = assembled(names, theirs)
    require_types(plan.model.module, {name: tensor.dtype for name, tensor in tensors.items()}, checkpoint.path)
    weights = sketched(plan.stored.weights, tensors)
    finite = set(itertools.compress(plan.stored.weights, np.isfinite(weights["norm"]))) if weights else set()
    nonfinite = sum(_nonfinite(tensor) for name, tensor in tensors.items() if name not in finite)
    return Loaded(checkpoint, sha256, tensors, nonfinite, weights)


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


def _frame_or_failure(plan: Extraction, loaded: Loaded, net: Network) -> store.Frame | PosthocError:
    """What the checkpoint gave, or what the model raised."""
    checkpoint = loaded.checkpoint
    try:
        results = net.results()
    except PosthocError as error:
        return error
    return store.Frame(
        path=checkpoint.path.relative_to(plan.run.folder).as_posix(),
        sha256=loaded.sha256,
        epoch=checkpoint.epoch,
        step=checkpoint.step,
        recorded=checkpoint.header.recorded,
        nonfinite=loaded.nonfinite,
        weights=loaded.weights,
        **vars(results),
    )
