"""The loop that replays: the next checkpoint is read while this one runs and the last one's part is written."""

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from posthoc import store
from posthoc.cpus import cpu_count
from posthoc.errors import PosthocError
from posthoc.replay.hooks import Recorder, first_tensor
from posthoc.replay.models import name_tensors
from posthoc.replay.order import Checkpoint
from posthoc.replay.plan import Extraction
from posthoc.replay.readers import Header, digest, files_of, read_checkpoint

LUMA = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
"""Weights of red, green and blue in grey (ITU-R BT.601)."""


@dataclass
class Loaded:
    """A checkpoint's tensors on the CPU, by the model's names; None where `known` says that its part is there already."""

    checkpoint: Checkpoint
    sha256: str
    tensors: dict[str, Tensor] | None
    nonfinite: int = 0


@dataclass(frozen=True)
class Failed:
    """A checkpoint that cannot be replayed, and why."""

    checkpoint: Checkpoint
    error: PosthocError


def replay(
    plan: Extraction,
    checkpoints: Iterable[Checkpoint],
    known: Callable[[Checkpoint], str | None],
    write: Callable[[Checkpoint, store.Frame], None],
    stop: threading.Event | None = None,
) -> Iterator[tuple[Checkpoint, PosthocError | None, bool]]:
    """Replay the checkpoints and write each one's frame; yields each, what was wrong with it, and whether it was replayed.

    A checkpoint whose digest `known` returns is left alone. Reading and writing go on in a thread each; what is
    written is the same as without them. A frame has been written when its checkpoint is yielded. Once `stop` is
    set no other checkpoint is begun.
    """
    source = itertools.takewhile(lambda _: not (stop and stop.is_set()), checkpoints)
    names: dict[int, dict[str, str]] = {}  # by the identity of the shapes, which the checkpoints of a run share

    def read_next(into: dict[str, Tensor]) -> Loaded | Failed | None:
        checkpoint = next(source, None)
        if checkpoint is None:
            return None
        try:
            shapes = checkpoint.header.shapes
            if id(shapes) not in names:
                names[id(shapes)] = name_tensors(plan.model.module, shapes)
            return load(plan, checkpoint, names[id(shapes)], known(checkpoint), into)
        except PosthocError as error:
            return Failed(checkpoint, error)

    with ThreadPoolExecutor(1, "reader") as reader, ThreadPoolExecutor(1, "writer") as writer, ExitStack() as stack:
        ahead = reader.submit(read_next, {})
        written: tuple[Checkpoint, Future[None]] | None = None
        network: Network | None = None
        running: Loaded | None = None
        while True:
            item = ahead.result()  # read while the network ran
            while isinstance(item, Failed) or (item and item.tensors is None):
                yield item.checkpoint, item.error if isinstance(item, Failed) else None, False
                item = reader.submit(read_next, {}).result()
            try:
                if item and item.tensors is not None:
                    network = network or stack.enter_context(_network(plan))
                    network.stage(item.tensors)
                if running and network:
                    frame = _frame(plan, running, *network.results())
                    if written:
                        written[1].result()
                        yield written[0], None, True
                    written = running.checkpoint, writer.submit(write, running.checkpoint, frame)
                if not item or not network or (stop and stop.is_set()):
                    break
                running = item
                ahead = reader.submit(read_next, network.swap())
                network.launch()
            except torch.OutOfMemoryError as error:
                reason = str(error).split("\n")[0]
                where = running.checkpoint.path if running else plan.run.folder
                raise PosthocError(f"Out of memory at {where} ({reason}); pass a smaller --batch-size.") from error
        if written:
            written[1].result()
            yield written[0], None, True


def load(
    plan: Extraction, checkpoint: Checkpoint, names: dict[str, str], known: str | None, into: dict[str, Tensor]
) -> Loaded:
    """Read a checkpoint's tensors, unless its digest is `known`; raises PosthocError where it is not as planned.

    names: of each tensor in the model, and in the checkpoint; into: tensors whose memory may be used again.
    """
    before = _stamp(checkpoint.path)
    found = digest(checkpoint.path)
    if found == known:
        return Loaded(checkpoint, found, None)
    memory = {names[name]: tensor for name, tensor in into.items() if name in names}
    pin = plan.device.type == "cuda"
    now, theirs = read_checkpoint(checkpoint.path, plan.pick, set(names.values()), memory, pin)
    if _stamp(checkpoint.path) != before:
        raise PosthocError(f"{checkpoint.path} changed while it was being read; run again when it is complete.")
    planned = checkpoint.header.shapes
    if _said(now) != _said(checkpoint.header):
        raise PosthocError(f"{checkpoint.path} no longer says of itself what it was planned with; run again.")
    if any(name not in theirs or tuple(theirs[name].shape) != planned[name] for name in names.values()):
        raise PosthocError(f"{checkpoint.path} no longer holds the weights it was planned with; run again.")
    tensors = {name: theirs[source] for name, source in names.items()}
    return Loaded(checkpoint, found, tensors, sum(map(_nonfinite, tensors.values())))


def _said(header: Header) -> tuple[int | None, int | None, str]:
    """What a checkpoint says of itself; as text, in which a NaN is equal to itself."""
    return header.epoch, header.step, repr(header.recorded)


def _stamp(path: Path) -> list[tuple[int, int]]:
    try:
        return [(status.st_size, status.st_mtime_ns) for status in (file.stat() for file in files_of(path))]
    except OSError as error:
        raise PosthocError(f"Cannot read {error.filename or path}: {error.strerror or error}.") from error


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


class Network:
    """The model on its device, built once; each checkpoint's weights are copied into it."""

    def __init__(self, plan: Extraction) -> None:
        self.plan = plan
        config = plan.stored.config
        self.x, self.labels = _batches(plan)
        module = plan.model.module.requires_grad_(False)
        self.module = module._apply(
            lambda tensor: torch.zeros_like(tensor, device=plan.device) if tensor.is_meta else tensor.to(plan.device)
        )
        if config["memory_format"] == "channels_last":
            self.x = self.x.contiguous(memory_format=torch.channels_last)
        channels = {name: torch.from_numpy(rows).to(plan.device) for name, rows in plan.stored.channels.items()}
        self.recorder = Recorder(plan.points, channels, config["signals"])
        self.columns = [(signal, point.name) for signal in config["signals"] for point in plan.points]
        self.step: Callable[[Tensor], tuple[Tensor, Tensor]] = (
            torch.compile(self._step) if config["compile"] else self._step
        )
        self.outputs: list[tuple[Tensor, Tensor]] = []
        self.staged: dict[str, Tensor] = {}
        self.next: dict[str, Tensor] = {}
        self.current: dict[str, Tensor] = {}
        self.side = torch.cuda.Stream(plan.device) if plan.device.type == "cuda" else None

    def _step(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        signals = self.recorder.signals
        for layers in signals.values():
            layers.clear()
        scores = first_tensor(self.module(batch))
        if scores is None or any(layer not in signals[signal] for signal, layer in self.columns):
            raise PosthocError(
                f"{self.plan.model.name} took another path than it was planned with: a layer was not reached."
            )
        return scores.float(), torch.cat([signals[signal][layer] for signal, layer in self.columns], dim=1)

    def stage(self, tensors: dict[str, Tensor]) -> None:
        """Bring a checkpoint's weights to the device; on CUDA beside what is running, on a stream of their own."""
        self.next = self.staged = tensors
        if self.side is not None:
            with torch.cuda.stream(self.side):
                self.staged = {name: tensor.to(self.plan.device, non_blocking=True) for name, tensor in tensors.items()}

    def swap(self) -> dict[str, Tensor]:
        """Give the module the staged weights, in single precision whatever their own; memory that is free again."""
        if self.side is not None:
            main = torch.cuda.current_stream(self.plan.device)
            main.wait_stream(self.side)
            for tensor in self.staged.values():
                tensor.record_stream(main)
        state = self.module.state_dict(keep_vars=True)  # anew: a forward pass may have put other buffers in place
        for name, tensor in self.staged.items():
            resident = state[name]
            if self.plan.device.type == "cpu":
                # As it lies in memory, and never copied into what is there: that is about to be read into.
                resident.data = tensor.to(resident.dtype)
            else:
                resident.data.copy_(tensor)
        self.staged, self.current, free = {}, self.next, self.current
        return free

    def launch(self) -> None:
        """Run the probe; on CUDA this returns before the device has finished."""
        reduced = self.plan.stored.config["dtype"] == "bfloat16"
        with torch.inference_mode(), torch.autocast(self.plan.device.type, torch.bfloat16, reduced):
            self.outputs = [self.step(batch) for batch in self.x.split(self.plan.batch_size)]

    def results(self) -> tuple[Tensor, float, float]:
        """Signals [N, columns] on the CPU, loss and accuracy."""
        scores, signals = (torch.cat(column) for column in zip(*self.outputs, strict=True))
        self.outputs = []
        return signals.cpu(), *_score(scores, self.labels)


@contextmanager
def _network(plan: Extraction) -> Iterator[Network]:
    with torch.no_grad(), _precision(plan.stored.config["tf32"]), _threads():
        network = Network(plan)
        with network.recorder.attached(network.module):
            yield network


def _frame(plan: Extraction, loaded: Loaded, values: Tensor, loss: float, accuracy: float) -> store.Frame:
    columns = values.numpy()
    signals: dict[str, dict[str, Any]] = {}
    at = 0
    for signal in plan.stored.config["signals"]:
        for layer, rows in plan.stored.channels.items():
            signals.setdefault(signal, {})[layer] = columns[:, at : at + len(rows)].T
            at += len(rows)
    checkpoint = loaded.checkpoint
    return store.Frame(
        path=checkpoint.path.relative_to(plan.run.folder).as_posix(),
        sha256=loaded.sha256,
        epoch=checkpoint.epoch,
        step=checkpoint.step,
        loss=loss,
        accuracy=accuracy,
        recorded=checkpoint.header.recorded,
        signals=signals,
        nonfinite=loaded.nonfinite,
    )


def _score(scores: Tensor, labels: Tensor) -> tuple[float, float]:
    """Mean cross-entropy and accuracy; NaN where the outputs are no scores, or fewer than the probe has classes."""
    if scores.ndim != 2 or int(labels.max()) >= scores.shape[1]:
        return float("nan"), float("nan")
    return F.cross_entropy(scores, labels).item(), (scores.argmax(1) == labels).double().mean().item()


def _batches(plan: Extraction) -> tuple[Tensor, Tensor]:
    """The whole probe on the device: normalised, resized where the model wants another size."""
    x = torch.from_numpy(plan.probe.images).to(plan.device).permute(0, 3, 1, 2)
    mean, std = (torch.tensor(row, device=plan.device).view(3, 1, 1) for row in plan.normalization)
    pieces = []
    for piece in x.split(plan.batch_size):
        piece = (piece.float() / 255 - mean) / std
        if piece.shape[2:] != (plan.image_size, plan.image_size):
            piece = F.interpolate(piece, size=(plan.image_size,) * 2, mode="bilinear", antialias=True)
        if plan.stored.config["probe"]["channels"] == 1:
            piece = (piece * LUMA.to(plan.device)).sum(1, keepdim=True)
        pieces.append(piece)
    return torch.cat(pieces), torch.from_numpy(plan.probe.labels).to(plan.device)


@contextmanager
def _threads() -> Iterator[None]:
    """No more threads than this process has processors, whatever the machine has."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, cpu_count()))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _precision(tf32: bool) -> Iterator[None]:
    """TF32 off unless it was asked for: it moves activations in the fourth digit."""
    backends: list[Any] = [torch.backends.cuda.matmul, torch.backends.cudnn]
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = tf32
        yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.allow_tf32 = value
