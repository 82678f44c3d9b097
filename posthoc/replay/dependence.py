"""On what the numbers of a sample, or of a token, depend: on the others of its batch, on the tokens after it?"""

import contextlib
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from posthoc.errors import PosthocError, UsageError
from posthoc.replay.network import Network, first, length
from posthoc.replay.outputs import Scored, scored_part
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
    name, ids = next(iter(x.items()))
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
