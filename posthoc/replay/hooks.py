"""Hook points: which modules' outputs are recorded, and how each becomes one number per channel and image."""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from posthoc.errors import message_of
from posthoc.replay.channels import Channels, Convolution
from posthoc.replay.forward import State, arguments_of, call, own_randomness, seed_batch
from posthoc.replay.outputs import tensors_in
from posthoc.replay.probes.probe import Batch
from posthoc.replay.signals import SIGNALS, LayerOutput

AXES = {0: (), 1: ("time",), 2: ("height", "width"), 3: ("depth", "height", "width")}
"""Names of the axes beside that of the channels, by how many there are."""
WORK, HELD = 8e9, 64e6
"""A network is traced with real numbers where a pass takes so many multiplications at the most, and its outputs are so
many numbers: half a second of one core, 256 MB. To trace it without numbers, torch imports its compiler, which takes longer."""


@dataclass(frozen=True)
class HookPoint:
    """A module whose output is a feature map [B, C, H, W] (or [B, H, W, C]), a sequence [B, T, C] or a vector [B, C].

    shape: of the output for one image, batch left out; batch_axis: where the batch is; channel_axis: which axis holds
    the channels once the batch is first; parameters: how many the module holds; calls: how often it is called for one
    batch (the last call counts); same_as: the outermost module that hands on the very same output, if any.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    batch_axis: int
    channel_axis: int
    parameters: int
    calls: int
    same_as: str | None

    @property
    def channels(self) -> int:
        return self.shape[self.channel_axis - 1]

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of its axes: of a sequence token and channel, of a feature map channel, height and width, say."""
        if len(self.shape) == 2 and self.channel_axis == 2:
            return "token", "channel"
        others = AXES[len(self.shape) - 1]
        return (*others[: self.channel_axis - 1], "channel", *others[self.channel_axis - 1 :])

    @property
    def size(self) -> str:
        """The shape with named axes, in words.

        >>> HookPoint("layers.0", "Block", (128, 64), 0, 2, 1, 1, None).size
        'token 128 x channel 64'
        """
        return " x ".join(f"{name} {side}" for name, side in zip(self.axes, self.shape, strict=True))

    @property
    def is_vector(self) -> bool:
        """Whether each channel is one number per image, with nothing to take a mean or variance over."""
        return len(self.shape) == 1


@dataclass(frozen=True)
class Entered:
    """A module that a forward pass came to, and the shape of the first tensor it was given, None where it was none.

    of_batch: whether that is an input of the network, as it is or otherwise arranged.
    """

    name: str
    module: nn.Module
    shape: tuple[int, ...] | None
    of_batch: bool = False

    @property
    def weighs(self) -> bool:
        """Whether it is a layer that multiplies by weights: innermost, with parameters of two axes or more."""
        inside = any(True for _ in self.module.children())
        return bool(self.name) and not inside and any(p.ndim > 1 for p in self.module.parameters(recurse=False))

    @property
    def work(self) -> int:
        """Multiplications by weights of its own, at most: each at every place and for every row that it was given.

        >>> Entered("fc", nn.Linear(8, 3), (2, 8)).work, Entered("conv", nn.Conv2d(8, 3, 1), (2, 8, 5, 5)).work
        (48, 1200)
        """
        if not self.shape or isinstance(self.module, (nn.Embedding, nn.EmbeddingBag)):
            return 0
        weights = sum(p.numel() for p in self.module.parameters(recurse=False) if p.ndim > 1)
        channels = self.shape[1] if isinstance(self.module, Convolution) else self.shape[-1]
        return weights * math.prod(self.shape) // max(channels, 1)


class _TooLargeError(BaseException):
    """A pass would take more than `WORK` or `HELD`; no handler of the user's code is meant."""


class CannotRunError(Exception):
    """A forward pass raised `reason`; entered: the modules it came to until then, in order."""

    def __init__(self, reason: BaseException, entered: Sequence[Entered]) -> None:
        super().__init__(message_of(reason))
        self.reason = reason
        self.entered = tuple(entered)


@dataclass(frozen=True)
class Anatomy:
    """What one small forward pass shows of a model: its hook points in the order they finish, its output's shape, the
    first of its layers that multiplies by weights, and the table of embeddings in which its inputs are looked up."""

    points: tuple[HookPoint, ...]
    output: tuple[int, ...]
    first: Entered | None = None
    table: nn.Embedding | None = None

    @property
    def outputs(self) -> int | None:
        """Scores per image, None where the output is no vector of scores."""
        return self.output[1] if len(self.output) == 2 else None


def dissect(model: nn.Module, example: Callable[[int, bool], Batch]) -> Anatomy:
    """Find all modules whose output is a feature map, a sequence or a vector for each sample.

    Which axis holds the batch and which the channels is seen from a second pass with a larger batch of larger samples:
    the batch grows from 2 to 3, and channels do not grow; where that leaves it open, the modules say where their channels
    are. Of a tuple or dictionary the first tensor counts.

    example: a batch of so many samples, larger ones on request. Raises CannotRunError where the model cannot take it.
    """
    outputs, output, entered = _outputs(model, partial(example, 2, False))
    try:
        second, _, again = _outputs(model, partial(example, 3, True))
    except CannotRunError:  # a fixed input size: only the batch grows
        second, _, again = _outputs(model, partial(example, 3, False))
    last_with = {(id(seen.output), seen.version): name for name, seen in outputs.items()}
    points = []
    for name, seen in outputs.items():
        shape, grown = tuple(seen.output.shape), tuple(second[name].output.shape) if name in second else ()
        batch = [axis for axis in range(len(shape)) if shape[axis] == 2 and grown[axis : axis + 1] == (3,)]
        if not (2 <= len(shape) <= 5 and len(grown) == len(shape) and batch and seen.output.is_floating_point()):
            continue
        module = model.get_submodule(name)
        outermost = last_with[id(seen.output), seen.version]
        rest, larger = (sides[: batch[0]] + sides[batch[0] + 1 :] for sides in (shape, grown))
        points.append(
            HookPoint(
                name=name,
                kind=type(module).__name__,
                shape=rest,
                batch_axis=batch[0],
                channel_axis=_channel_axis(rest, larger, _without_batch(seen.channels, batch[0])),
                parameters=sum(parameter.numel() for parameter in module.parameters()),
                calls=seen.calls,
                same_as=None if outermost == name else outermost,
            )
        )
    first = next((layer for layer in entered if layer.weighs), None)
    return Anatomy(tuple(points), tuple(output.shape), first, _table(entered, again))


def _table(entered: Sequence[Entered], again: Sequence[Entered]) -> nn.Embedding | None:
    """The embeddings in which the network looks its inputs up: those that are given one of them, else the first whose
    input grows with the batch, which positions need not, else the only ones there are.

    entered, again: by batches of 2 and of 3.
    """
    tables = [layer for layer in entered if isinstance(layer.module, nn.Embedding)]
    shapes = {layer.name: layer.shape or () for layer in again}

    def grows(layer: Entered) -> bool:
        return (2, 3) in zip(layer.shape or (), shapes.get(layer.name, ()), strict=False)

    chosen = (
        [layer for layer in tables if layer.of_batch]
        or [layer for layer in tables if grows(layer)]
        or (tables if len({id(layer.module) for layer in tables}) == 1 else [])
    )
    return chosen[0].module if chosen else None  # type: ignore[return-value]


def _without_batch(axis: int | None, batch_axis: int) -> int | None:
    """As it is counted once the batch is first."""
    return None if axis is None or axis == batch_axis else axis + (axis < batch_axis)


def _channel_axis(shape: tuple[int, ...], grown: tuple[int, ...], said: int | None) -> int:
    """Counted from 1: the only axis that did not grow where that is the first or last, else the one that the modules say,
    else the usual one.

    Of a map of which nothing grew, for the network takes one size alone, two equal sides are height and width.
    """
    constant = [axis for axis, (before, after) in enumerate(zip(shape, grown, strict=True), 1) if before == after]
    if constant in ([1], [len(shape)]):
        return constant[0]
    if said in constant:
        return said
    if len(shape) == 3 and len(constant) == 3 and shape[0] == shape[1] != shape[2]:
        return 3
    return 2 if len(shape) == 2 else 1


@dataclass
class _Seen:
    output: Tensor
    version: int
    calls: int
    channels: int | None
    """The axis that holds them, as far as the modules say it."""


def first_tensor(output: Any) -> Tensor | None:
    """The output itself, `logits` where it has them, or the first tensor of a tuple, list or dictionary."""
    if isinstance(output, Tensor):
        return output
    if isinstance(getattr(output, "logits", None), Tensor):
        return output.logits  # type: ignore[no-any-return]
    values = output.values() if isinstance(output, Mapping) else output if isinstance(output, (tuple, list)) else ()
    return next((value for value in values if isinstance(value, Tensor)), None)


def _outputs(model: nn.Module, example: Callable[[], Batch]) -> tuple[dict[str, _Seen], Tensor, list[Entered]]:
    """What every module gives in one forward pass, and the whole model; the last call of each counts.

    Of a small network on the CPU; else on the meta device, where nothing is computed, and where a model needs real
    numbers to find its way, on the CPU all the same. A network of the transformers library looks into its mask, if not
    for one that is given for every pair of tokens.
    """
    if all(_is_plain(tensor) for tensor in (*model.parameters(), *model.buffers())):
        with suppress(_TooLargeError):
            return _on_cpu(model, example, small=True)
    for batch in (example, partial(_masked, model, example)):
        try:
            return _pass(_without_numbers(model), batch, "meta")
        except Exception as error:  # whatever the user's code raises, in its forward pass or when it is copied
            if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
                raise error if isinstance(error, CannotRunError) else CannotRunError(error, ()) from error
        if "attention_mask" not in arguments_of(model).by_name:
            break
    return _on_cpu(model, example)


def _is_plain(tensor: Tensor) -> bool:
    """Whether the CPU computes with it as any device would: numbers in memory, of no type that it may lack operations for."""
    return tensor.device.type == "cpu" and tensor.dtype not in (torch.float16, torch.bfloat16)


def _on_cpu(
    model: nn.Module, example: Callable[[], Batch], small: bool = False
) -> tuple[dict[str, _Seen], Tensor, list[Entered]]:
    state = State(model)
    try:
        with own_randomness(torch.device("cpu")):
            seed_batch(0, 0)
            return _pass(model, example, "cpu", small)
    finally:
        state.put_back()


def _without_numbers(model: nn.Module) -> nn.Module:
    """A copy on the meta device; the numbers are not copied on the way there."""
    memo: dict[int, Any] = {id(tensor): tensor.to("meta") for tensor in model.buffers()}
    for tensor in model.parameters():
        memo[id(tensor)] = nn.Parameter(tensor.detach().to("meta"), tensor.requires_grad)
    return copy.deepcopy(model, memo).to("meta")


def _masked(model: nn.Module, example: Callable[[], Batch]) -> Batch:
    """The batch, rows of tokens with a mask of every pair."""
    batch = example()
    rows = next(iter(batch.values()))
    if rows.ndim != 2 or "attention_mask" in batch:
        return batch
    return batch | {"attention_mask": torch.zeros(len(rows), 1, rows.shape[1], rows.shape[1])}


def _pass(
    model: nn.Module, example: Callable[[], Batch], device: str, small: bool = False
) -> tuple[dict[str, _Seen], Tensor, list[Entered]]:
    """small: raise _TooLargeError before the layer with which the pass exceeds `WORK` or `HELD`."""
    seen: dict[str, _Seen] = {}
    entered: list[Entered] = []
    given: list[Tensor] = []
    channels = Channels()
    work = held = 0

    def enter(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any) -> None:
            nonlocal work
            tensor = first_tensor(inputs)
            shape = None if tensor is None else tuple(tensor.shape)
            of_batch = tensor is not None and any(tensor is each or tensor._base is each for each in given)
            entered.append(Entered(name, module, shape, of_batch))
            work += entered[-1].work
            channels.begin(name)
            if small and (work > WORK or held > HELD):
                raise _TooLargeError

        return hook

    def remember(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            nonlocal held
            calls = seen.pop(name).calls if name in seen else 0
            tensor = first_tensor(output)
            if tensor is not None:
                axis = channels.end(name, module, first_tensor(inputs), tensor)
                seen[name] = _Seen(tensor, tensor._version, calls + 1, axis)
                held += tensor.numel()

        return hook

    handles = [part.register_forward_hook(remember(name)) for name, part in model.named_modules() if name]
    handles += [part.register_forward_pre_hook(enter(name)) for name, part in model.named_modules()]
    try:
        # Without inference mode, which keeps no version by which an in-place ReLU is told from what it overwrites.
        with hooked(handles), torch.no_grad(), torch.device(device):
            batch = {name: tensor.to(device, copy=True) for name, tensor in example().items()}
            given += batch.values()
            whole = call(model, batch)
        output = first_tensor(whole)
        if output is None:  # in an object, or deeper
            output = next((tensor for _, tensor in tensors_in(whole)), None)
        if output is None:
            raise TypeError("its output holds no tensor")
    except (KeyboardInterrupt, _TooLargeError):
        raise
    except BaseException as error:  # whatever the user's code raises
        raise CannotRunError(error, entered) from error
    return seen, output, entered


@contextmanager
def hooked(handles: Sequence[RemovableHandle]) -> Iterator[None]:
    """Take hooks away when done."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Recorder:
    """Reduces the outputs of the hook points to signals while the model runs.

    After `with recorder.attached(model): model(x)`, `recorder.signals[signal][layer]` is float32 [B, C_l], or [B, C_l, T].
    """

    def __init__(
        self,
        points: Sequence[HookPoint],
        channels: dict[str, Tensor],
        signals: Sequence[str],
        head: str | None = None,
        places: Mapping[str, tuple[str, int]] | None = None,
    ) -> None:
        """head: the module whose input is kept as `features`, float32 [B, D]; places: see `Padding`, whose masks `real` has
        for the batch that comes next.

        samples: how many the next batch has, where it is known; strays: how many rows a layer gave, where that is not as many.
        """
        self.points = points
        self.channels = channels
        self.head = head
        self.places = places or {}
        self.real: Mapping[str, Tensor] = {}
        self.samples: int | None = None
        self.strays: dict[str, int] = {}
        self.features: Tensor | None = None
        self.signals: dict[str, dict[str, Tensor]] = {signal: {} for signal in signals}

    @contextmanager
    def attached(self, model: nn.Module) -> Iterator[None]:
        modules = dict(model.named_modules())
        handles = [modules[point.name].register_forward_hook(self._hook(point)) for point in self.points]
        if self.head:
            handles.append(modules[self.head].register_forward_pre_hook(self._keep_features))
        with hooked(handles):
            yield

    def _keep_features(self, module: nn.Module, inputs: Any) -> None:
        tensor = first_tensor(inputs)
        self.features = None if tensor is None else tensor.detach().float().clone()

    def _hook(self, point: HookPoint) -> Callable[..., None]:
        axes = [axis for axis in range(1, len(point.shape) + 1) if axis != point.channel_axis]

        def reduce(module: nn.Module, inputs: Any, output: Any) -> None:
            if not self.signals:  # of a batch that is of another form
                return
            # At once: the next module may overwrite its input in place.
            tensor = first_tensor(output)
            if tensor is None:
                raise TypeError(f"{point.name} gave no tensor")
            kept = tensor.detach().movedim(point.batch_axis, 0)  # it may be in the middle of derivatives of its own
            self.strays.pop(point.name, None)
            if (
                kept.ndim != 1 + len(point.shape)
                or kept.shape[point.channel_axis] != point.shape[point.channel_axis - 1]
            ):
                return  # a module that is used at several places, which gives something else there
            if self.samples not in (None, len(kept)):
                self.strays[point.name] = len(kept)
                return
            kept = kept.index_select(point.channel_axis, self.channels[point.name]).float()
            reduced = LayerOutput(kept, point.channel_axis, axes, self._real(point.name, kept))
            with torch.autocast(kept.device.type, enabled=False):  # signals are sums, in single precision
                for signal, layers in self.signals.items():
                    layers[point.name] = SIGNALS[signal].reduce(reduced)

        return reduce

    def _real(self, layer: str, output: Tensor) -> Tensor | None:
        """Which places of a layer's output are no padding, of as many axes; None where that cannot be told, or all are."""
        if layer not in self.places:
            return None
        name, axis = self.places[layer]
        real, length = self.real[name], output.shape[axis]
        if length > real.shape[1]:
            raise TypeError(f"{layer} gave {length} places, of which {name} has {real.shape[1]}")
        # Fewer: cut to the longest sample of the batch, as pad_packed_sequence has it.
        return real[:, :length].reshape(
            [len(real) if k == 0 else length if k == axis else 1 for k in range(output.ndim)]
        )
