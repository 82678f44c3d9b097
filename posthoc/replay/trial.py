"""A few samples through the network before the run: which memory format, which output, and can it be repeated at all?

Always with the weights of the run's first checkpoint, so that every shard of a run comes to the same answers.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from posthoc.errors import PosthocError, UsageError
from posthoc.replay.checkpoint import read_checkpoint
from posthoc.replay.dependence import AGREEMENT, Values, alike, furthest, mixing, of_other_places, predicts_none
from posthoc.replay.forward import (
    DrawsHeard,
    State,
    StrayError,
    error_line,
    guarded,
    own_randomness,
    random_state,
    seed_batch,
)
from posthoc.replay.hooks import HookPoint, first_tensor, hooked
from posthoc.replay.loading import require_types
from posthoc.replay.marks import assembled, sources
from posthoc.replay.network import (
    Network,
    first,
    head_of,
    inference,
    laid_out,
    lay_out,
    length,
    network,
    reduce,
)
from posthoc.replay.order import Checkpoint
from posthoc.replay.outputs import Scored, find_asked, find_scored, is_dense, part_of, scored_part, tensors_in
from posthoc.replay.padding import require_targets, what_is_read
from posthoc.replay.places import placed
from posthoc.replay.probes.probe import Batch, require_classes
from posthoc.replay.scores import IGNORED, NONE, has_class, name_of
from posthoc.shown import listed, with_article

if TYPE_CHECKING:
    from posthoc.replay.plan import Extraction

ALIKE, NOISE = 1e-3, 0.1
"""Parameters whose values differ by no more count as all alike, and what is added to them is of that standard deviation."""
BUSY = 7
"""Values through the convolutions of bottlenecks, for each of their weights, from which on channels last is the faster
(docs/performance.md has the networks that were measured)."""
ALL = slice(0, None)
_MODAL = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd, nn.RReLU, nn.RNNBase, nn.MultiheadAttention)


@dataclass(frozen=True)
class Trial:
    """What the trial decided; remarks: what a reader of the numbers should know, as label and text.

    behaviour: names of what is kept of each sample; head: the last layer, whose input and tensors are kept; apart: layers
    with as many places as a mask, which are not its own.
    """

    memory_format: str
    scored: Scored
    remarks: tuple[tuple[str, str], ...] = ()
    behaviour: tuple[str, ...] = ()
    head: str | None = None
    head_tensors: tuple[str, ...] = ()
    apart: tuple[str, ...] = ()


@dataclass(frozen=True)
class Wishes:
    """What the trial is told to decide: memory_format: auto or the one to use; output, score: which one is scored, and
    how, None for what `find_scored` finds."""

    memory_format: str = "auto"
    output: str | None = None
    score: str | None = None


def try_out(plan: "Extraction", wishes: Wishes, skip_errors: bool) -> Trial:
    """Run the first samples of the probe; raises PosthocError where the network cannot.

    skip_errors: try the next checkpoint where the model cannot run with the weights of one.
    """
    exact = plan.changed(memory_format="contiguous", dtype="float32", tf32=False, compile=False)
    failures: list[PosthocError] = []
    with network(exact, min(plan.probe.few, plan.batch_size)) as net, own_randomness(plan.device):
        try:
            for checkpoint in plan.run.checkpoints:
                try:
                    return _tried(Passes(net, checkpoint), plan, wishes)
                except (UsageError, StrayError):
                    raise
                except PosthocError as error:
                    failures.append(error)
                    if not skip_errors:
                        break
                except torch.OutOfMemoryError as error:
                    reason = str(error).split("\n")[0]
                    raise PosthocError(
                        f"Out of memory at {checkpoint.path} ({reason}); pass a smaller --batch-size."
                    ) from error
        finally:
            net.state.put_back()
    raise failures[0]


class Passes:
    """Passes of one small batch under the weights of one checkpoint."""

    def __init__(self, net: Network, checkpoint: Checkpoint) -> None:
        self.net, self.plan, self.checkpoint = net, net.plan, checkpoint
        names = self.plan.model.names(checkpoint.header.shapes)
        _, theirs = read_checkpoint(checkpoint.path, self.plan.pick, sources(names))
        if not sources(names) <= theirs.keys():
            raise PosthocError(f"{checkpoint.path} no longer holds the weights it was planned with; run again.")
        self.weights = assembled(names, theirs)
        require_types(net.module, {name: tensor.dtype for name, tensor in self.weights.items()}, checkpoint.path)

    def stirred(self) -> "Passes":
        """With noise added to parameters whose values are all alike: such as begin as zeros keep a layer from having a say."""
        other = copy.copy(self)
        other.weights = dict(self.weights)
        generator = torch.Generator().manual_seed(0)
        for name, _ in self.net.module.named_parameters(remove_duplicate=False):
            tensor = self.weights.get(name)
            if tensor is None or not tensor.is_floating_point() or not tensor.numel():
                continue
            values = tensor.float()
            if not values.max() - values.min() > ALIKE:  # nor where they are no numbers
                noise = NOISE * torch.randn(values.shape, generator=generator)
                other.weights[name] = (values.nan_to_num(0, 0, 0) + noise.to(values)).to(tensor.dtype)
        return other

    def fresh(self) -> None:
        """Weights and state as at the start of a checkpoint."""
        # Copies: a forward pass may write to its weights, too.
        self.net.stage({name: tensor.clone() for name, tensor in self.weights.items()})
        self.net.swap()
        self.net.load(str(self.checkpoint.path))
        self.start, self.given = self.net.state, self.weights
        if self.net.loads:  # it may merge weights, and keep what it makes of them
            now = self.net.module.state_dict(keep_vars=True)
            self.start, self.given = State(self.net.module), {name: now[name].detach().clone() for name in self.weights}

    def overwritten(self) -> list[str]:
        """Names of the weights that a pass wrote to."""
        now = self.net.module.state_dict(keep_vars=True)
        names = [name for name, _ in self.net.module.named_parameters() if name in self.weights]
        return [
            name
            for name in names
            if not bool(alike(now[name].cpu(), self.given[name].to("cpu", now[name].dtype)).all())
        ]

    def run(self, layout: str, seed: int = 0, part: slice = ALL, dtype: str = "float32", fresh: bool = True) -> Values:
        """One pass, from the state at the start of a checkpoint or from where the last one left it.

        The tensors are copies: a network may hand out what it goes on writing to. part: which of the samples.
        """
        if fresh:
            self.fresh()
        batch = laid_out(first(self.net.x, part.stop, part.start), layout)
        lay_out(self.net.module, batch, self.net.state.memory)
        device = self.plan.device
        with self._guarded(batch), torch.autocast(device.type, torch.bfloat16, dtype == "bfloat16"):
            seed_batch(self.plan.identity.seed + seed, 0)
            before = random_state(device)
            output, signals = self.net.forward(batch, first(self.net.real, part.stop, part.start))
            drawn = tuple(name for name, state in random_state(device).items() if state != before[name])
            if not any(True for _ in tensors_in(output)):
                raise PosthocError(
                    f"{self.plan.model.name} gives {with_article(type(output).__name__)}, in which there is no tensor; let its forward pass return one."
                )
        tensors = {}
        given = self.net.recorder.signals
        blocks = signals.split([given[signal][layer][0].numel() for signal, layer in self.net.columns], dim=1)
        for (signal, layer), block in zip(self.net.columns, blocks, strict=True):
            tensors[f"{signal} of {layer}"] = block.clone()
        for path, tensor in tensors_in(output):
            if is_dense(tensor):
                tensors[f"output {path}"] = tensor.clone()
        return Values(output, tensors, drawn)

    def outputs(self, batch: Batch) -> list[Tensor]:
        """What the model gives for a batch of any form, whose first axis need not be that of the samples."""
        self.fresh()
        signals, self.net.recorder.signals = self.net.recorder.signals, {}
        try:
            with self._guarded(batch):
                seed_batch(self.plan.identity.seed, 0)
                output = self.net.call({name: tensor.clone() for name, tensor in batch.items()})
                return [tensor.clone() for _, tensor in tensors_in(output) if is_dense(tensor)]
        finally:
            self.net.recorder.signals = signals

    @contextmanager
    def _guarded(self, batch: Batch) -> Iterator[None]:
        where = str(self.checkpoint.path)
        with (
            guarded(self.plan.model.name, self.net.module, batch, where),
            self.plan.model.at_work(),
            inference(self.plan.model),
        ):
            yield


def _tried(passes: Passes, plan: "Extraction", wishes: Wishes) -> Trial:
    any_format = wishes.memory_format == "auto"
    base = "contiguous" if any_format else wishes.memory_format
    with _convolutions(passes.net.module) as convolutions:
        start = passes.run(base)
    _refuse_strays(passes, base)
    wanted = _usual_format(convolutions, plan, length(passes.net.x)) if any_format else base
    scored = _scored(passes, plan, start.output, wishes)
    behaviour = _behaviour(passes, plan, start.output, scored)
    head = _find_head(passes, base, scored) if plan.features else None
    tensors = tuple(head_of(passes.net.module.get_submodule(head))) if head else ()
    remarks = _modes(passes.net.module)
    again = passes.run(base, seed=1, fresh=False)
    unsteady = bool(start.drawn) or not _equal(start, again)
    remarks += _unsteady(passes, base, start) if unsteady else mixing(passes, base, start)
    chosen = base
    if wanted != base:
        chosen, reason = _agreeing(passes, base, wanted, start)
        remarks += [("memory format", reason)] if reason else []
    if plan.identity.dtype != "float32":
        passes.run(chosen, dtype=plan.identity.dtype)
    if scored.reason:
        remarks.append(("score", f"none: {scored.reason}"))
    remarks += _assumed(scored, start.output, plan, wishes)
    remarks += _left_out(scored, start.output, plan)
    if head:
        behaviour = (*behaviour, "features")
    return Trial(chosen, scored, tuple(remarks), behaviour, head, tensors, of_other_places(passes, base))


def _scored(passes: Passes, plan: "Extraction", output: Any, wishes: Wishes) -> Scored:
    """Which output is scored, and how."""
    samples, score = length(passes.net.x), wishes.score or plan.probe.score
    sample = tuple(passes.net.x[what_is_read(passes.net.x, score == "tokens")].shape[1:])
    truth = plan.probe.truth(sample, _ids(plan) if score == "tokens" else 0)
    if score in (None, "classes", "segmentation") and wishes.output != NONE:
        require_classes(plan.probe)
    if score is None or isinstance(score, str):
        wish = None if wishes.score else f'The score "{score}" of {plan.probe.name}'
        scored = find_scored(output, samples, truth, score, wishes.output, wish)
        if scored.score == "segmentation":
            return placed(passes, output, scored, truth, score is not None)
        if scored.score == "tokens" and (reason := predicts_none(passes, output, scored, truth.classes or truth.ids)):
            return Scored(None, None, reason)
        if scored.score == "tokens":
            require_targets(plan.probe, plan.padding)
        return scored
    if wishes.output == NONE:
        return Scored(None, None, "asked for none")
    path = find_asked(output, list(tensors_in(output)), wishes.output)[0] if wishes.output else ()
    return Scored(path, None, score=name_of(score))


def _assumed(scored: Scored, output: Any, plan: "Extraction", wishes: Wishes) -> list[tuple[str, str]]:
    """What is assumed of the outputs, and whether they look otherwise."""
    score = plan.probe.score_of(scored.score)
    if score is None or score.assumes is None or scored.path is None:
        return []
    remarks = [] if wishes.score or plan.probe.score else [("score", score.assumes)]
    part = part_of(output, scored.path)
    if part is not None and bool(((part > 0) & (part < 1)).all()):
        text = "the outputs of the first samples lie between 0 and 1; if they went through a sigmoid, give the network without it"
        remarks.append(("note", f"{text}, for they are taken as logits"))
    return remarks


def _left_out(scored: Scored, output: Any, plan: "Extraction") -> list[tuple[str, str]]:
    """Which share of the places of masks is of no class, and not scored."""
    part = part_of(output, scored.path) if scored.path is not None and scored.score == "segmentation" else None
    if part is None or plan.probe.targets is None:
        return []
    kept = has_class(plan.probe.targets, part.shape[-1 if scored.classes_last else 1])
    share = f"{100 * (1 - kept.mean()):.3g} %"
    return [] if kept.all() else [("score", f"{share} of the places are left out, of class {IGNORED} or below 0")]


def _ids(plan: "Extraction") -> int:
    """One more than the largest of the tokens that the network is given; 0 where they are no whole numbers."""
    batches = plan.probe.batches(torch.device("cpu"), plan.batch_size)
    given = (batch[what_is_read(batch, tokens=True)] for batch in batches)
    return max(0 if ids.is_floating_point() or ids.dtype == torch.bool else int(ids.max()) + 1 for ids in given)


def _behaviour(passes: Passes, plan: "Extraction", output: Any, scored: Scored) -> tuple[str, ...]:
    """Names of what the score says of each sample."""
    score, net = plan.probe.score_of(scored.score), passes.net
    if score is None:
        return ()
    where = str(passes.checkpoint.path)
    part = scored_part(output, scored, length(net.x), plan.model.name)
    mask = net.padding.of(score)
    reduced = reduce(score, part, net.x, net.targets, where, net.real[mask] if mask else None)
    with guarded(plan.model.name, net.module, net.x, where):
        return tuple(score.finish(reduced, net.targets).samples)


def _find_head(passes: Passes, layout: str, scored: Scored) -> str:
    """The last layer: it multiplies what it is given, a vector for each sample, by its weights, and gives the scores."""
    if scored.path is None:
        raise UsageError(
            f"--features: nothing is scored ({scored.reason}), so no layer is the last before the scores; leave --features out."
        )
    calls: dict[str, tuple[Tensor, Tensor]] = {}

    def remember(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            given, gave = first_tensor(inputs), first_tensor(output)
            calls.pop(name, None)
            if given is not None and gave is not None and given.ndim == gave.ndim == 2:
                calls[name] = given.clone(), gave.clone()

        return hook

    module = passes.net.module
    layers = [(name, part) for name, part in module.named_modules() if name and _is_linear(part)]
    with hooked([part.register_forward_hook(remember(name)) for name, part in layers]):
        scores = part_of(passes.run(layout).output, scored.path)
    if scores is not None and scores.ndim != 2:
        raise UsageError(
            f"--features: {passes.plan.model.name} gives scores at many places of each of the {passes.plan.probe.samples}, and what the last layer is given is kept of one alone; leave --features out."
        )
    for name, (given, gave) in reversed(calls.items()):
        if scores is not None and gave.shape == scores.shape and bool(alike(gave, scores).all()):
            part: Any = module.get_submodule(name)
            product = F.linear(given.float(), part.weight.float(), getattr(part, "bias", None))
            if torch.allclose(product, scores.float(), 1e-3, 1e-4 * float(scores.abs().max()), equal_nan=True):
                return name
    raise UsageError(
        f"--features: the scores of {passes.plan.model.name} are not what a linear layer gives, so it has no last layer; leave --features out."
    )


def _is_linear(part: nn.Module) -> bool:
    weight = getattr(part, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 2


@contextmanager
def _convolutions(module: nn.Module) -> Iterator[list[tuple[nn.Conv2d, int]]]:
    """Each use of a convolution while it is open, with how many values went in and came out."""
    uses: list[tuple[nn.Conv2d, int]] = []

    def use(layer: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        if isinstance(layer, nn.Conv2d):
            uses.append((layer, sum(tensor.numel() for _, tensor in tensors_in((given, output)))))

    with hooked([part.register_forward_hook(use) for part in module.modules() if isinstance(part, nn.Conv2d)]):
        yield uses


def _refuse_strays(passes: Passes, layout: str) -> None:
    """Raise for layers through which not every sample goes, though none is recorded: they may hide what they are in.

    Looked for among modules in lists of which others gave nothing for each sample, as experts of a mixture do.
    """
    module, plan, samples = passes.net.module, passes.plan, length(passes.net.x)
    points = [point for point in plan.every if point.name not in plan.strays]
    suspects = _suspects(module, points)
    rows: dict[str, int | None] = dict.fromkeys((point.name for point in suspects), None)

    def count(point: HookPoint) -> Callable[..., None]:
        def hook(part: nn.Module, given: Any, output: Any) -> None:
            tensor = first_tensor(output)
            rows.pop(point.name, None)
            if tensor is not None and tensor.ndim > point.batch_axis and tensor.shape[point.batch_axis] != samples:
                rows[point.name] = tensor.shape[point.batch_axis]

        return hook

    if not suspects:
        return
    with hooked([module.get_submodule(point.name).register_forward_hook(count(point)) for point in suspects]):
        passes.run(layout)
    if rows:
        raise StrayError(f"Not every sample goes through {', '.join(rows)}; leave it out with --layers.", rows)


def _suspects(module: nn.Module, points: Sequence[HookPoint]) -> list[HookPoint]:
    """The modules of lists that are not all hook points, and what is within them."""
    names = {point.name for point in points}
    lists = {name: part for name, part in module.named_modules() if isinstance(part, nn.ModuleList)}
    broken = {
        name for name, part in lists.items() if 0 < sum(f"{name}.{k}" in names for k in range(len(part))) < len(part)
    }
    return [point for point in points if any(point.name.startswith(f"{name}.") for name in broken)]


def _usual_format(uses: list[tuple[nn.Conv2d, int]], plan: "Extraction", samples: int) -> str:
    """Channels last for convolutions wherever it is the faster: not in full single precision on CUDA, and not on a CPU
    where bottlenecks have much to multiply few values by, for weights are laid out anew for every batch.

    uses: those of one pass over so many samples.
    """
    if plan.device.type == "cuda":
        return "channels_last" if uses and (plan.identity.tf32 or plan.identity.dtype != "float32") else "contiguous"
    values = sum(values for _, values in uses) * plan.batch_size / samples
    weights = sum(layer.weight.numel() for layer, _ in uses)
    pointwise = sum(layer.weight.numel() for layer, _ in uses if max(layer.kernel_size) == 1)
    by_channel = any(1 < layer.groups == layer.in_channels for layer, _ in uses)
    bottlenecks = not by_channel and pointwise > weights / 4
    return "contiguous" if not uses or (bottlenecks and values < BUSY * weights) else "channels_last"


def _agreeing(passes: Passes, base: str, wanted: str, first: Values) -> tuple[str, str | None]:
    """The memory format wanted if the network works in it and gives the same, else `base`, and why."""
    title = wanted.replace("_", " ")
    try:
        other = passes.run(wanted)
    except PosthocError as error:
        return base, f"{base}, for the network fails with {title} ({error_line(error.__cause__ or error)})"
    distance, where = furthest(first, other)
    if distance <= AGREEMENT:
        return wanted, None
    return base, f"{base}, for with {title} the {where} differs by {distance:.1g} of its standard deviation"


def _modes(module: nn.Module) -> list[tuple[str, str]]:
    """Layers that a forward pass left, or runs, in training mode."""
    layers = [f"{name} ({type(part).__name__})" for name, part in module.named_modules() if _in_training(part)]
    return [("training mode", f"{listed(layers)}: run as in training")] if layers else []


def _in_training(part: nn.Module) -> bool:
    without = isinstance(part, nn.modules.batchnorm._BatchNorm) and part.running_mean is None
    return without or (part.training and isinstance(part, _MODAL))


def _unsteady(passes: Passes, layout: str, first: Values) -> list[tuple[str, str]]:
    """Why two passes differ: random numbers, state that is kept, or something that cannot be put back."""
    remarks = []
    repeated = passes.run(layout)
    steady = _equal(first, repeated)
    carried = passes.run(layout, fresh=False)
    kept = passes.start.changed() + passes.overwritten()
    if first.drawn or (steady and not _equal(first, passes.run(layout, seed=1))):
        passes.fresh()
        with DrawsHeard(passes.net.module, passes.plan.device) as heard:
            passes.run(layout, fresh=False)
        calls = [*heard.calls] + [name for name in first.drawn if name != "torch" or not heard.calls]
        remarks.append((
            "random numbers", f"drawn by {listed(calls)}; set anew for every batch, so that a rerun gives the same"
        ))  # fmt: skip
    if steady and not first.drawn:
        remarks += mixing(passes, layout, first)
    if steady and not _equal(first, carried):
        remarks.append(("state", f"kept from batch to batch ({listed(kept)}); put back before each checkpoint"))
    if not steady:
        distance, where = furthest(first, repeated)
        remarks.append((
            "not repeatable",
            f"two passes over the same {passes.plan.probe.samples} differ by {distance:.1g} of a standard deviation ({where}), with the same "
            f"random numbers and state; what is kept or drawn elsewhere is not put back: a rerun or a shard may differ",
        ))  # fmt: skip
    return remarks


def _equal(values: Values, other: Values) -> bool:
    return values.tensors.keys() == other.tensors.keys() and all(
        a.shape == other.tensors[name].shape and bool((alike(a, other.tensors[name])).all())
        for name, a in values.tensors.items()
    )
