"""The model on its device with the probe beside it: built once, given one checkpoint's weights after another."""

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from posthoc.cpus import cpu_count
from posthoc.errors import PosthocError
from posthoc.replay.arithmetic import arithmetic
from posthoc.replay.controls import altered
from posthoc.replay.forward import State, StrayError, caller, error_line, guarded, own_randomness, place_of, seed_batch
from posthoc.replay.hooks import Recorder
from posthoc.replay.loading import is_own
from posthoc.replay.models import Model
from posthoc.replay.outputs import Scored, scored_part
from posthoc.replay.padding import what_is_read
from posthoc.replay.probes.probe import Batch
from posthoc.replay.scores import Reduced, Score, Scores
from posthoc.replay.transfer import Event, Upload, transfer_to
from posthoc.shown import counted
from posthoc.spool import Spool, Spooled
from posthoc.store import Given

if TYPE_CHECKING:
    from posthoc.replay.plan import Extraction

OF_NULLS = ("token_loss",)
"""What is kept, beside the signals, of what the inputs of a control gave."""
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


class Pass(NamedTuple):
    """Of one batch: signals [B, columns], the output that is scored, what the head is given [B, D]."""

    signals: Tensor
    output: Any
    features: Tensor | None


class Judged(NamedTuple):
    """Of all samples N: what the score needs of the outputs, [N, ...] by name, and, batch by batch, what the head is given [B, D]."""

    reduced: dict[str, Tensor]
    features: list[Tensor]


@dataclass(frozen=True)
class Results:
    """What a checkpoint gave: see `store.Frame`."""

    signals: dict[str, dict[str, Spooled]]
    loss: float
    accuracy: float
    scores: Mapping[str, float]
    behaviour: dict[str, NDArray[Any]]
    head: dict[str, NDArray[np.float32]]
    nulls: dict[str, Given]


class Network:
    """The model on its device, built once; each checkpoint's weights are copied into it.

    Before each checkpoint it is put back into the state it was built in, and before each batch the random numbers are
    set to those of the batch: what a checkpoint gives depends on nothing that ran before it.
    """

    def __init__(self, plan: "Extraction", samples: int | None = None, scratch: Path | None = None) -> None:
        """samples: how many of the probe, all of them unless given; scratch: a folder for signals of tokens, which else
        are kept in memory until the checkpoint is done."""
        self.plan = plan
        self.scratch = scratch if plan.probe.tokens is not None else None
        self.x = probe_batch(plan, samples)
        self.targets = targets_of(plan, self.x, samples)
        self.padding = plan.padding
        self.real = {name: torch.from_numpy(mask[:samples]).to(plan.device) for name, mask in plan.probe.masks.items()}
        module = plan.model.module
        if not plan.model.user:
            module.requires_grad_(False)
        self.module = module._apply(
            lambda tensor: torch.zeros_like(tensor, device=plan.device) if tensor.is_meta else tensor.to(plan.device)
        )
        self.state = State(self.module)
        lay_out(self.module, self.x, self.state.memory)
        self.call = caller(self.module, self.x.keys())
        channels = {name: torch.from_numpy(rows).to(plan.device) for name, rows in plan.stored.channels.items()}
        self.recorder = Recorder(plan.points, channels, plan.identity.signals, plan.head, self.padding.places)
        self.columns = [(signal, point.name) for signal in plan.identity.signals for point in plan.points]
        self.step: Callable[[Batch, Batch, Scored], Pass] = (
            torch.compile(self._step) if plan.identity.compile else self._step
        )
        self.outputs: dict[str, Judged] = {}
        self.spool = Spool()
        self.underway: list[tuple[Tensor, Event | None]] = []
        self.failure: PosthocError | None = None
        self.transfer = transfer_to(plan.device)
        self.staged = self.current = Upload({}, {})
        self.loads, self.is_loader = bool(plan.model.loading), False
        self.unloaded: Mapping[str, Tensor] = {}

    def forward(self, batch: Batch, real: Batch) -> tuple[Any, Tensor]:
        """What the model gives, and the signals [B, columns]; real: which places are no padding, see `Padding.masks`."""
        self.recorder.real, self.recorder.samples, signals = real, length(batch), self.recorder.signals
        self.recorder.strays.clear()
        for layers in signals.values():
            layers.clear()
        # Copies, for it may write to them; the next checkpoint is given the same samples.
        output = self.call({name: tensor.clone() for name, tensor in batch.items()})
        strays: dict[str, int | None] = {layer: None for signal, layer in self.columns if layer not in signals[signal]}
        strays.update(self.recorder.strays)
        if strays:
            raise StrayError(self._about(next(iter(strays))), strays)
        return output, torch.cat([signals[signal][layer].flatten(1) for signal, layer in self.columns], dim=1)

    def _about(self, stray: str) -> str:
        """What is wrong with a layer that not every sample went through, in words."""
        if (rows := self.recorder.strays.get(stray)) is None:
            return f"{self.plan.model.name} took another path than it was planned with: {stray} was not reached; leave it out with --layers."
        given = f"{self.recorder.samples} {self.plan.probe.samples}"
        return f"{stray} gives {counted(rows, 'row')} for {given}; leave it out with --layers."

    def _step(self, batch: Batch, real: Batch, scored: Scored) -> Pass:
        output, signals = self.forward(batch, real)
        return Pass(signals, scored_part(output, scored, length(batch), self.plan.model.name), self.recorder.features)

    def stage(self, tensors: dict[str, Tensor]) -> None:
        """Bring a checkpoint's weights to the device, on CUDA beside what is running."""
        self.staged = self.transfer.upload(tensors)

    def swap(self) -> Mapping[str, Tensor]:
        """Give the module the staged weights, in single precision whatever their own; memory that is free again."""
        staged = self.transfer.arrived(self.staged)
        self.state.put_back()
        state = self.module.state_dict(keep_vars=True)
        buffers = dict(self.module.named_buffers())
        if self.loads:
            self.unloaded, staged = staged, {}
        for name, tensor in staged.items():
            resident = state[name]
            if (memory := self.state.memory.get(id(resident))) is not None:
                resident.data = memory.copy_(tensor)
            elif self.transfer.direct and (resident.ndim != 4 or resident.is_contiguous()):
                # As it lies in memory, and never copied into what is there: that is about to be read into. A buffer
                # gets memory of its own, for a forward pass may write to it.
                resident.data = tensor.to(resident.dtype, copy=name in buffers)
            else:
                resident.data.copy_(tensor)
        before, self.current = self.current, replace(self.staged, tensors={})
        self.staged = Upload({}, {})
        return before.free()

    def load(self, where: str) -> None:
        """Have a network whose code takes part in loading take the weights in itself, as a loop of PyTorch would; raises
        PosthocError where it fails. where: the checkpoint, in words."""
        weights, self.unloaded = self.unloaded, {}
        if not weights:
            return
        try:
            with self.plan.model.at_work(), own_randomness(self.plan.device):
                seed_batch(self.plan.identity.seed, 0)
                if not self.is_loader:  # the same state for all: what train() makes of the constructor's weights
                    self.module.train()
                    self.state, self.is_loader = State(self.module), True
                complete = _complete(self.module, weights)
                nn.Module.load_state_dict(self.module, complete, strict=False)
                if is_own(self.module.load_state_dict):
                    with suppress(
                        Exception
                    ):  # called for what it does besides: the names that it expects are the file's
                        self.module.load_state_dict(complete)
                self.module.eval()
        except torch.OutOfMemoryError:
            raise
        except (Exception, SystemExit) as error:  # whatever the user's code raises
            raise PosthocError(
                f"{where}: {self.plan.model.name} does not take the weights {place_of(error, self.module)} ({error_line(error)}); mend its load_state_dict, train or eval."
            ) from error

    @cached_property
    def inputs(self) -> dict[str, Batch]:
        """All that a checkpoint is given: the probe, under no name, and then the inputs of the controls."""
        return {"": self.x} | {name: probe_batch(altered_plan(self.plan, name)) for name in self.plan.identity.controls}

    def _batches(self, given: Mapping[str, Batch]) -> Iterator[tuple[str, int, Batch]]:
        for name, inputs in given.items():
            for number, batch in enumerate(split(inputs, self.plan.batch_size)):
                yield name, number, batch

    def launch(self, where: str, alone: bool = False) -> None:
        """Run the probe; on CUDA this returns before the device has finished. `where`: the checkpoint, in words; alone:
        without the inputs of the controls and without signals, for `said`.

        What the model raises is kept for `results`. Signals go to the spool behind the network, on CUDA one batch behind
        where memory is not to grow with the batches.
        """
        half = self.plan.identity.dtype == "bfloat16"
        seed = self.plan.identity.seed
        given = {"": self.x} if alone else self.inputs
        self.outputs, self.failure, self.where = {name: Judged({}, []) for name in given}, None, where
        self.spool, self.underway = Spool(self.scratch), []
        try:
            self.load(where)
        except PosthocError as error:
            self.failure = error
            return
        with (
            self.plan.model.at_work(),
            own_randomness(self.plan.device),
            inference(self.plan.model),
            torch.autocast(self.plan.device.type, torch.bfloat16, half),
        ):
            for name, number, batch in self._batches(given):
                rows = slice(number * self.plan.batch_size, number * self.plan.batch_size + length(batch))
                real = first(self.real, rows.stop, rows.start)
                try:
                    with guarded(self.plan.model.name, self.module, batch, where):
                        seed_batch(seed, number)
                        signals, output, features = self.step(batch, real, self.plan.scored)
                    mask = self.padding.of(self.plan.score)
                    counting = real[mask] if mask else None
                    reduced = reduce(self.plan.score, output, batch, self.targets[rows], where, counting)
                    self._keep(self.outputs[name], rows, reduced, features)
                except PosthocError as error:
                    self.failure = error
                    return
                if not alone:
                    self._send(signals)

    def _keep(self, kept: Judged, rows: slice, reduced: Reduced, features: Tensor | None) -> None:
        """Put what is needed of a batch to that of the others.

        Memory for all of them is taken with the first: small pieces, kept while large ones come and go, leave holes
        between them that nothing fits into, and the process would grow with the number of batches.
        """
        if rows.start == 0:
            for name, piece in reduced.items():
                kept.reduced[name] = piece.new_empty(length(self.x), *piece.shape[1:])
        here, before = _forms(reduced), _forms(kept.reduced)
        if here != before:
            raise PosthocError(
                f"{self.where}: the score gives {here} for one batch and {before} for another; let it give one form."
            )
        for name, piece in reduced.items():
            kept.reduced[name][rows] = piece
        if features is not None:
            kept.features.append(features)

    def _send(self, signals: Tensor) -> None:
        """Bring a batch's signals to the CPU and into the spool, the last one's where the device is still at this one's."""
        if not self.scratch:
            self.underway.append((signals, None))
            return
        self.underway.append(self.transfer.download(signals))
        self._receive(1 if self.underway[-1][1] else 0)

    def _receive(self, left: int) -> None:
        """Put into the spool what is underway, but for so many batches."""
        while len(self.underway) > left:
            signals, event = self.underway.pop(0)
            if event:
                event.synchronize()
            self.spool.append(signals.cpu().numpy())

    @contextmanager
    def _finished(self) -> Iterator[dict[str, Judged]]:
        """What was kept of the outputs, which ends with it; raises PosthocError where the model failed."""
        every, failure, self.outputs, self.failure = self.outputs, self.failure, {}, None
        if failure:
            raise failure
        with guarded(self.plan.model.name, self.module, self.x, self.where):  # CUDA fails late
            self._receive(0)
            yield every

    def said(self) -> dict[str, NDArray[Any]]:
        """What the network said of each sample, on the CPU; raises PosthocError where the model failed."""
        with self._finished() as every:
            return {name: tensor.cpu().numpy() for name, tensor in self._scores(every[""]).samples.items()}

    def results(self) -> Results:
        """What came of the probe, on the CPU; raises PosthocError where the model failed."""
        with self._finished() as every:
            signals = dict(zip(every, map(self._by_layer, range(len(every))), strict=True))
            scores = self._scores(outputs := every.pop(""))
            behaviour = {name: tensor.cpu().numpy() for name, tensor in scores.samples.items()}
            head = {}
            if self.recorder.head:
                behaviour["features"] = torch.cat(outputs.features).cpu().numpy()
                head = head_of(self.module.get_submodule(self.recorder.head))
            nulls = {name: Given(signals[name], self._losses(outputs)) for name, outputs in every.items()}
            return Results(signals[""], scores.loss, scores.accuracy, scores.values, behaviour, head, nulls)

    def _losses(self, outputs: Judged) -> dict[str, NDArray[Any]]:
        """What is kept of the scores of a control's inputs."""
        samples = self._scores(outputs).samples
        return {name: samples[name].cpu().numpy() for name in OF_NULLS if name in samples}

    def _scores(self, outputs: Judged) -> Scores:
        if self.plan.score is None:
            return Scores()
        return self.plan.score.finish(outputs.reduced, self.targets)

    def _by_layer(self, number: int) -> dict[str, dict[str, Spooled]]:
        """Signals as a frame has them, of the inputs of that number."""
        N, column, last = length(self.x), 0, self.recorder.signals
        signals: dict[str, dict[str, Spooled]] = {signal: {} for signal, _ in self.columns}
        for signal, layer in self.columns:
            C, *others = last[signal][layer].shape[1:]
            signals[signal][layer] = Spooled(self.spool, number * N, column, (C, N, *others))
            column += math.prod((C, *others))
        return signals


def _complete(module: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """A whole state dict of torch's: weights, by the names that the module gives them, in its types, and what it has besides."""
    called = module.state_dict(keep_vars=True)
    given = {id(called[name]): tensor for name, tensor in weights.items()}
    complete: dict[str, Any] = nn.Module.state_dict(module)
    for name, resident in nn.Module.state_dict(module, keep_vars=True).items():
        if (tensor := given.get(id(resident))) is not None:
            complete[name] = tensor.to(resident.dtype)
    return complete


def _forms(reduced: Reduced) -> str:
    """What a score has for each sample: names, types and shapes."""
    forms = [
        f"{name} ({str(piece.dtype).removeprefix('torch.')}{list(piece.shape[1:]) or ''})"
        for name, piece in reduced.items()
    ]
    return ", ".join(forms)


def altered_plan(plan: "Extraction", control: str) -> "Extraction":
    """The plan with the inputs of a control for its probe."""
    inputs, name = plan.probe.inputs, what_is_read(plan.probe.inputs, tokens=True)
    changed = altered(control, inputs[name], plan.stored.index, plan.identity.seed)
    return replace(plan, probe=replace(plan.probe, inputs={**inputs, name: changed}))


def targets_of(plan: "Extraction", batch: Batch, samples: int | None = None) -> Tensor:
    """The targets of the probe (its first samples) on the device; an empty row for each where there are none."""
    targets = plan.probe.targets
    if targets is None:
        return torch.empty(length(batch), 0, device=plan.device)
    single = targets[:samples].astype(np.float32) if targets.dtype.kind == "f" else targets[:samples]
    return torch.from_numpy(np.ascontiguousarray(single)).to(plan.device)


def reduce(
    score: Score | None, output: Any, batch: Batch, targets: Tensor, where: str, real: Tensor | None = None
) -> Reduced:
    """What a score needs of the output for a batch; raises PosthocError where the user's fails. real: which places of what
    the network reads are no padding, where some are."""
    if score is None:
        return {}
    truth = batch[what_is_read(batch, score.of_tokens)] if score.of_inputs else targets
    masked = (real,) if real is not None and score.of_inputs and truth.shape[:2] == real.shape else ()
    with torch.autocast(truth.device.type, enabled=False):
        try:
            return score.reduce(output, truth, *masked)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise PosthocError(
                f"{where}: the score {score.words} fails ({error_line(error)}); mend it, or name another with --score."
            ) from error


def inference(model: Model) -> AbstractContextManager[object]:
    """To compute outputs in: without gradients, which code of the user's may switch on again for derivatives of its own. In
    inference mode these would fail or, as those of `torch.autograd.functional`, be 0."""
    return torch.no_grad() if model.user else torch.inference_mode()


@contextmanager
def network(plan: "Extraction", samples: int | None = None, scratch: Path | None = None) -> Iterator[Network]:
    """The plan's network with its hooks in place, under the precision and the threads that the plan asks for."""
    with torch.no_grad(), arithmetic(plan.identity.tf32), _threads(), _current(plan.device):
        built = Network(plan, samples, scratch)
        with built.recorder.attached(built.module):
            yield built


def probe_batch(plan: "Extraction", samples: int | None = None) -> Batch:
    """The probe (its first samples) on the device as the network sees it; laid out in memory as planned, whatever the
    layout of what it was made of."""
    pieces = list(plan.probe.batches(plan.device, plan.batch_size, samples))
    whole = {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
    return laid_out(whole, plan.identity.memory_format)


def laid_out(batch: Batch, layout: str) -> Batch:
    """In that memory format, which images alone have a choice of."""
    return {
        name: tensor.contiguous(memory_format=FORMATS[layout if tensor.ndim == 4 else "contiguous"])
        for name, tensor in batch.items()
    }


def lay_out(module: nn.Module, batch: Batch, shared: Collection[int]) -> None:
    """Put the weights of convolutions into the memory format of a batch's images, which else is done anew for every batch;
    of no other tensors, whose code may ask for views of them, and not for images of one channel, of which both are one.

    shared: identities of those of which there are views (`State.memory`), which stay where they are.
    """
    last = not all(tensor.is_contiguous() for tensor in batch.values())
    for part in module.modules():
        weight = part._parameters.get("weight")
        if type(part) in (nn.Conv2d, nn.ConvTranspose2d) and weight is not None and id(weight) not in shared:
            weight.data = weight.data.contiguous(memory_format=FORMATS["channels_last" if last else "contiguous"])


def split(batch: Batch, size: int) -> Iterator[Batch]:
    """So many samples at a time."""
    for start in range(0, length(batch), size):
        yield first(batch, start + size, start)


def first(batch: Batch, stop: int | None, start: int = 0) -> Batch:
    """The samples from `start` up to `stop`."""
    return {name: tensor[start:stop] for name, tensor in batch.items()}


def length(batch: Batch) -> int:
    """How many samples it has."""
    return len(next(iter(batch.values())))


def head_of(layer: nn.Module) -> dict[str, NDArray[np.float32]]:
    """Weight and bias of a layer as they are now; copies, for the next checkpoint is read into their memory."""
    tensors = {name: getattr(layer, name, None) for name in ("weight", "bias")}
    return {
        name: tensor.detach().float().cpu().clone().numpy()
        for name, tensor in tensors.items()
        if isinstance(tensor, Tensor)
    }


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
def _current(device: torch.device) -> Iterator[None]:
    """A GPU is what the user's code means by `cuda`."""
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        yield
