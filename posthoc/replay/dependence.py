"""On what the numbers of a sample, or of a token, depend: on the others of its batch, on the tokens after it?"""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from posthoc.errors import PosthocError, UsageError
from posthoc.replay.hooks import HookPoint, first_tensor, hooked
from posthoc.replay.network import Network, first, length
from posthoc.replay.outputs import Scored, scored_part
from posthoc.replay.padding import is_beside, what_is_read, with_places
from posthoc.replay.probes.probe import Batch

if TYPE_CHECKING:
    from posthoc.replay.trial import Passes

AGREEMENT = 1e-4
"""By how much of a signal's standard deviation the two memory formats may differ."""
FORESIGHT = 1e-3
"""Of the scores' standard deviation: by how much those of a token may change with the tokens after it."""
ROUNDING = 1e-6
"""Of the largest value: what differs by less is the same in single precision, however little a signal varies."""


class Values(NamedTuple):
    """What one pass gave: the model's output as it is; every floating tensor of signals and output, by what it is; and
    the libraries whose random numbers were drawn."""

    output: Any
    tensors: dict[str, Tensor]
    drawn: tuple[str, ...]


def predicts_none(passes: "Passes", output: Any, scored: Scored, count: int) -> str | None:
    """Why scores of tokens are no predictions of the next, if they are none.

    A network in which no token has a say in the scores of another, as before training where the last layer, or what each
    block adds, begins as zeros, has not shown what it sees; it is asked again with noise in place of these.
    """
    influence = _influence(passes, output, scored, count)
    if max(influence.earlier, influence.later) <= FORESIGHT:
        stirred = passes.stirred()
        with contextlib.suppress(PosthocError):  # which the weights as they are did not raise
            influence = _influence(stirred, stirred.run("contiguous").output, scored, count)
    if influence.earlier > FORESIGHT:
        return "what the network says of a token depends on the tokens after it, as in masked models: it predicts none"
    if not max(influence):
        return "what the network says depends on no token, so whether it sees the one that it is to predict is unknown"
    return None


class Influence(NamedTuple):
    """By how much the scores at tokens before, between and at some changed ones differ, in their standard deviations."""

    earlier: float
    later: float
    own: float


def _influence(passes: "Passes", output: Any, scored: Scored, count: int) -> Influence:
    """That of every other token in the second half of a row, and of the last.

    output: what the network gives for the samples as they are.
    """
    x, model = passes.net.x, passes.plan.model.name
    ids = x[name := what_is_read(x, tokens=True)]
    T = ids.shape[1]
    changes = torch.zeros(T, dtype=torch.bool, device=ids.device)
    changes[T // 2 :: 2] = changes[-1] = True
    with instead(passes.net, x | {name: torch.where(changes, (ids + 1) % count, ids)}):
        other = passes.run("contiguous").output
    scores, others = (scored_part(given, scored, length(x), model) for given in (output, other))
    between = ~changes
    between[: T // 2] = False
    return Influence(
        _change(scores[:, : T // 2], others[:, : T // 2]),
        _change(scores[:, between], others[:, between]),
        _change(scores[:, changes], others[:, changes]),
    )


def _change(a: Tensor, b: Tensor) -> float:
    """The largest difference between them, in standard deviations of the first."""
    difference = torch.where(alike(a, b), 0.0, (a - b).abs()).nan_to_num(nan=torch.inf)
    if not difference.numel() or not (largest := difference.max()):
        return 0.0
    spread = a[a.isfinite()].std()
    return float(largest / spread) if spread > 0 else math.inf


def of_other_places(passes: "Passes", layout: str) -> tuple[str, ...]:
    """The layers that have as many places as a mask, which are those of another input: as patches of an image beside text.

    Other values of that input change what such a layer gives, and other values of the masked one do not. Beside such
    layers, one that both change goes by the mask only if it has a place fewer where the masked input has.
    """
    net, apart = passes.net, []
    for mask in dict.fromkeys(name for name, _ in net.padding.places.values()):
        names = with_places(net.x, mask, net.real[mask].shape[1])
        own, others = (_exchanged(net.x, each) for each in names)
        if own is None or others is None:
            continue
        stirred = passes.stirred()  # with the weights as they are a layer may have no say yet
        with contextlib.suppress(PosthocError):
            by_own, by_others = _moved(stirred, layout, own), _moved(stirred, layout, others)
            layers = [layer for layer, (name, _) in net.padding.places.items() if name == mask]
            alone = [layer for layer in layers if layer in by_others - by_own]
            both = [layer for layer in layers if alone and layer in by_others & by_own]
            apart += alone + (_as_long(stirred, mask, names[0], both) if both else [])
    return tuple(apart)


def _exchanged(x: Batch, names: list[str]) -> Batch | None:
    """The samples with other values of some inputs: those of the sample before, or of the place before where all are the
    same; None where that is the same, too."""
    for axis in (0, -1):
        other = {name: x[name].roll(1, axis) for name in names}
        if not all(torch.equal(rows, x[name]) for name, rows in other.items()):
            return x | other
    return None


def _moved(passes: "Passes", layout: str, other: Batch) -> set[str]:
    """The layers of which a signal is another where the network is given other samples."""
    before = passes.run(layout)
    with instead(passes.net, other):
        after = passes.run(layout)
    return {
        layer
        for signal, layer in passes.net.columns
        if not bool(alike(before.tensors[key := f"{signal} of {layer}"], after.tensors[key]).all())
    }


def _as_long(passes: "Passes", mask: str, names: list[str], layers: list[str]) -> list[str]:
    """Those of the layers that have no place fewer where a mask and the inputs of these names have; all of them where the
    network takes no such samples."""
    net, length = passes.net, passes.net.real[mask].shape[1]
    sides: dict[str, int] = {}

    def remember(point: HookPoint) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            tensor = first_tensor(output)
            if tensor is not None and tensor.ndim == 1 + len(point.shape):
                sides[point.name] = tensor.movedim(point.batch_axis, 0).shape[net.padding.places[point.name][1]]

        return hook

    shorter = {
        name: _cut(rows, length) if name in names or is_beside(name, net.x) else rows for name, rows in net.x.items()
    }
    points = [point for point in passes.plan.points if point.name in layers]
    with (
        hooked([net.module.get_submodule(point.name).register_forward_hook(remember(point)) for point in points]),
        contextlib.suppress(PosthocError),
    ):
        passes.outputs(shorter)
        return [layer for layer in layers if sides.get(layer, length) >= length]
    return layers


def _cut(rows: Tensor, length: int) -> Tensor:
    """Without the last of so many places, on every axis that has as many."""
    for axis in range(1, rows.ndim):
        if rows.shape[axis] == length:
            rows = rows.narrow(axis, 0, length - 1)
    return rows


def mixing(passes: "Passes", layout: str, values: Values) -> list[tuple[str, str]]:
    """Whether a sample's numbers depend on the others of its batch, as `values` are of it.

    Raises UsageError where that is because the network takes time before the samples.
    """
    x = passes.net.x
    if length(x) == 1:  # with another before it, made of it
        x = {name: torch.cat([rows.roll(1, 1) if rows.ndim > 1 else rows, rows]) for name, rows in x.items()}
    where = _mixed(passes, layout, values, x)
    if where is None:
        return []
    axis = _axis_with_time_first(passes, x)
    if axis is not None:
        back = ".transpose(0, 1)" if axis else ""
        raise UsageError(
            f"{passes.plan.model.name} takes time before samples: what it gives of one of the {passes.plan.probe.samples} depends on the others of its batch ({where}), and does not where the first two axes of the batch are exchanged; pass as --model a subclass whose forward(self, x) returns super().forward(x.transpose(0, 1)){back}."
        )
    return [("batches", f"what a sample gives depends on the others in its batch ({where}); keep --batch-size")]


def _mixed(passes: "Passes", layout: str, values: Values, x: Batch) -> str | None:
    """What of samples is other where they are by themselves, if anything is.

    values: of the samples x, or of the last of them by itself.
    """
    try:
        for whole, part, alone in _parts(passes, layout, values, x):
            rows = {name: tensor[part] for name, tensor in whole.tensors.items() if not name.startswith("output")}
            far, where = furthest(Values(None, rows, ()), alone)
            if far > 100 * AGREEMENT:
                return where
    except (PosthocError, torch.OutOfMemoryError):  # another batch than any of the run's, which need not work
        pass
    return None


def _parts(passes: "Passes", layout: str, values: Values, x: Batch) -> Iterator[tuple[Values, slice, Values]]:
    """Values of a batch, a part of its samples, and values of that part alone: the first part, in which those after it may
    have a say, and the last, in which those before it may."""
    half = length(x) // 2
    if length(x) > length(passes.net.x):
        with instead(passes.net, x):
            both = passes.run(layout)
        yield both, slice(half, None), values
        return
    for part in (slice(0, half), slice(half, length(x))):
        yield values, part, passes.run(layout, part=part)


@contextlib.contextmanager
def instead(net: Network, x: Batch) -> Iterator[None]:
    """Other samples in place of the network's while it is open."""
    before, net.x = net.x, x
    try:
        yield
    finally:
        net.x = before


def _axis_with_time_first(passes: "Passes", x: Batch) -> int | None:
    """Where the samples are in what the network gives for a batch with its first two axes exchanged, if they do not depend
    on each other then; None where they do, or it takes none such."""
    N, half = length(x), length(x) // 2
    try:
        whole, alone = (
            passes.outputs({
                name: rows.transpose(0, 1).contiguous() if rows.ndim > 1 else rows for name, rows in batch.items()
            })
            for batch in (x, first(x, N, half))
        )  # fmt: skip
    except (PosthocError, torch.OutOfMemoryError):
        return None
    if len(whole) != len(alone):
        return None
    axes = []
    for a, b in zip(whole, alone, strict=True):
        axis = next((k for k, (n, m) in enumerate(zip(a.shape, b.shape, strict=False)) if n != m), None)
        if axis is None or a.shape[axis] % N:
            continue
        rows = a.unflatten(axis, (-1, N)).narrow(axis + 1, half, N - half).flatten(axis, axis + 1)
        if furthest(Values(None, {"": rows}, ()), Values(None, {"": b}, ()))[0] > 100 * AGREEMENT:
            return None
        axes.append(axis)
    return axes[0] if axes else None


def alike(a: Tensor, b: Tensor) -> Tensor:
    return (a == b) | ((a != a) & (b != b))


def furthest(values: Values, other: Values) -> tuple[float, str]:
    """The largest difference of a tensor of `values`, in standard deviations of that tensor, and which it is."""
    worst = (0.0, "nothing")
    for name, a in values.tensors.items():
        b = other.tensors.get(name)
        if b is None or a.shape != b.shape:
            return float("inf"), name
        a, b = a.double(), b.double()
        finite = a[a.isfinite()]
        if not len(finite):
            scale = 1.0
        else:
            scale = max(finite.std(correction=0).item(), finite.abs().max().item() * ROUNDING / AGREEMENT)
        difference = torch.where(alike(a, b), 0.0, (a - b).abs()).nan_to_num(nan=torch.inf)
        if difference.numel() and (largest := difference.max().item()) > 0:
            worst = max(worst, (largest / scale if scale else float("inf"), name))
    return worst
