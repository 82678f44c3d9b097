"""The model on its device with the probe beside it: built once, given one checkpoint's weights after another."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from posthoc.cpus import cpu_count
from posthoc.errors import PosthocError
from posthoc.replay.forward import State, guarded, own_randomness, seed_batch
from posthoc.replay.hooks import Recorder
from posthoc.replay.outputs import Scored, part_of, same_rows, score

if TYPE_CHECKING:
    from posthoc.replay.plan import Extraction

LUMA = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
"""Weights of red, green and blue in grey (ITU-R BT.601)."""
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


class Network:
    """The model on its device, built once; each checkpoint's weights are copied into it.

    Before each checkpoint it is put back into the state it was built in, and before each batch the random numbers are
    set to those of the batch: what a checkpoint gives depends on nothing that ran before it.
    """

    def __init__(self, plan: "Extraction", images: int | None = None) -> None:
        """images: how many of the probe, all of them unless given."""
        self.plan = plan
        self.x, self.labels = probe_batch(plan, images)
        module = plan.model.module.requires_grad_(False)
        self.module = module._apply(
            lambda tensor: torch.zeros_like(tensor, device=plan.device) if tensor.is_meta else tensor.to(plan.device)
        )
        self.state = State(self.module)
        channels = {name: torch.from_numpy(rows).to(plan.device) for name, rows in plan.stored.channels.items()}
        self.recorder = Recorder(plan.points, channels, plan.identity.signals)
        self.columns = [(signal, point.name) for signal in plan.identity.signals for point in plan.points]
        self.step: Callable[[Tensor, Scored], tuple[Tensor | None, Tensor]] = (
            torch.compile(self._step) if plan.identity.compile else self._step
        )
        self.outputs: list[tuple[Tensor | None, Tensor]] = []
        self.failure: PosthocError | None = None
        self.staged: dict[str, Tensor] = {}
        self.next: dict[str, Tensor] = {}
        self.current: dict[str, Tensor] = {}
        self.side = torch.cuda.Stream(plan.device) if plan.device.type == "cuda" else None

    def forward(self, batch: Tensor) -> tuple[Any, Tensor]:
        """What the model gives, and the signals [B, columns]."""
        signals = self.recorder.signals
        for layers in signals.values():
            layers.clear()
        output = self.module(batch.clone())  # which it may write to; the next checkpoint is given the same images
        for signal, layer in self.columns:
            if layer not in signals[signal]:
                raise PosthocError(
                    f"{self.plan.model.name} took another path than it was planned with: {layer} was not reached."
                )
        return output, torch.cat([signals[signal][layer] for signal, layer in self.columns], dim=1)

    def _step(self, batch: Tensor, scored: Scored) -> tuple[Tensor | None, Tensor]:
        output, signals = self.forward(batch)
        scores = None if scored.path is None else part_of(output, scored.path)
        if (scores is None and scored.path is not None) or not same_rows(scores, len(batch)):
            raise PosthocError(
                f"{self.plan.model.name} took another path than it was planned with: its output {scored.name} is not there."
            )
        return None if scores is None else scores.float(), signals

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
        self.state.put_back()
        state = self.module.state_dict(keep_vars=True)
        buffers = dict(self.module.named_buffers())
        for name, tensor in self.staged.items():
            resident = state[name]
            if self.plan.device.type == "cpu":
                # As it lies in memory, and never copied into what is there: that is about to be read into. A buffer
                # gets memory of its own, for a forward pass may write to it.
                resident.data = tensor.to(resident.dtype, copy=name in buffers)
            else:
                resident.data.copy_(tensor)
        self.staged, self.current, free = {}, self.next, self.current
        return free

    def launch(self, where: str) -> None:
        """Run the probe; on CUDA this returns before the device has finished. `where`: the checkpoint, in words.

        What the model raises is kept for `results`.
        """
        reduced = self.plan.identity.dtype == "bfloat16"
        seed = self.plan.identity.seed
        self.outputs, self.failure, self.where = [], None, where
        with (
            self.plan.model.at_work(),
            own_randomness(self.plan.device),
            torch.inference_mode(),
            torch.autocast(self.plan.device.type, torch.bfloat16, reduced),
        ):
            for number, batch in enumerate(self.x.split(self.plan.batch_size)):
                try:
                    with guarded(self.plan.model.name, self.module, tuple(batch.shape), where):
                        seed_batch(seed, number)
                        self.outputs.append(self.step(batch, self.plan.scored))
                except PosthocError as error:
                    self.failure = error
                    return

    def results(self) -> tuple[Tensor, float, float]:
        """Signals [N, columns] on the CPU, loss and accuracy; raises PosthocError where the model failed."""
        outputs, failure, self.outputs, self.failure = self.outputs, self.failure, [], None
        if failure:
            raise failure
        with guarded(self.plan.model.name, self.module, tuple(self.x.shape), self.where):  # CUDA fails late
            scores = [scores for scores, _ in outputs if scores is not None]
            signals = torch.cat([signals for _, signals in outputs])
            return signals.cpu(), *score(torch.cat(scores) if scores else None, self.labels)


@contextmanager
def network(plan: "Extraction", images: int | None = None) -> Iterator[Network]:
    """The plan's network with its hooks in place, under the precision and the threads that the plan asks for."""
    with torch.no_grad(), _precision(plan.identity.tf32), _threads():
        built = Network(plan, images)
        with built.recorder.attached(built.module):
            yield built


def probe_batch(plan: "Extraction", images: int | None = None) -> tuple[Tensor, Tensor]:
    """The probe (its first images) and its labels on the device: normalised, and resized where the model wants another
    size; laid out in memory as planned, whatever the layout of the pixels."""
    x = torch.from_numpy(plan.probe.images[:images]).to(plan.device).permute(0, 3, 1, 2)
    mean, std = (torch.tensor(row, device=plan.device).view(3, 1, 1) for row in plan.normalization)
    pieces = []
    for piece in x.split(plan.batch_size):
        piece = (piece.float() / 255 - mean) / std
        if piece.shape[2:] != (plan.image_size, plan.image_size):
            piece = F.interpolate(piece, size=(plan.image_size,) * 2, mode="bilinear", antialias=True)
        if plan.identity.probe.preparation["channels"] == 1:
            piece = (piece * LUMA.to(plan.device)).sum(1, keepdim=True)
        pieces.append(piece)
    layout = FORMATS[plan.identity.memory_format]
    return torch.cat(pieces).contiguous(memory_format=layout), torch.from_numpy(plan.probe.labels[:images]).to(
        plan.device
    )


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
