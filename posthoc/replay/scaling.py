"""Is the probe prepared as the training samples were? Told by the first batch norm, and by other preparations that do better."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from posthoc.chance import LEVEL, better_than_chance, can_tell, largest_share, so_many
from posthoc.errors import PosthocError
from posthoc.recording import Misfit, Scaling
from posthoc.replay.forward import call, guarded, own_randomness, seed_batch
from posthoc.replay.hooks import first_tensor, hooked
from posthoc.replay.network import Network, inference, length, network, probe_batch, reduce, split, targets_of
from posthoc.replay.outputs import scored_part
from posthoc.replay.probes.probe import Prepare, Probe
from posthoc.replay.trial import Passes

if TYPE_CHECKING:
    from posthoc.replay.plan import Extraction

FEW, FEW_LARGE = 100, 32
"""Samples on which every preparation is tried; of large images fewer."""
MORE = 6
"""That which does best of them is compared with the run's own on so many times as many others."""
GAIN, MENDED = 0.04, 0.25
"""It counts if its accuracy is higher by that, and if it mends so large a share of the errors: networks that have hardly
trained may do a little better with another scaling than with their own."""
BATCHES, MEMORY = 30, 0.05
"""The running statistics of a batch norm are those of a training after so many batches, once no more than this share of them
is left of how they began."""
SPREAD, SHIFT = 2.0, 1.5
"""The running statistics do not fit where the samples' standard deviation is so many times theirs, or a part of that, or
the mean so many of theirs away, in half of the channels."""
SCORES = ("classes", "binary")
_BatchNorm = nn.modules.batchnorm._BatchNorm


def try_scaling(plan: "Extraction") -> Scaling | None:
    """What speaks against the preparation of the probe at the last checkpoint; None where nothing does.

    The first batch norm's running statistics are put beside those of what it is given. Where they do not fit, or there
    is none, the probe's alternatives are tried on a few samples; that which does best is compared with the run's own on
    others, by McNemar's exact test. A network at chance is tried with more of them.
    """
    if plan.score is None or plan.scored.score not in SCORES or plan.probe.labels is None:
        return None
    plan = plan.changed(compile=False)
    count = min(FEW if plan.probe.few > 4 else FEW_LARGE, len(plan.probe))
    few = np.arange(count) * len(plan.probe) // count
    last = plan.run.checkpoints[-1]
    with network(replace(plan, probe=_taken(plan.probe, few))) as net, own_randomness(plan.device):
        try:
            result = _judged(Answers(net, Passes(net, last), plan), few)
            return result and replace(result, checkpoint=last.path.name)
        except (PosthocError, torch.OutOfMemoryError):  # which is said, or skipped, where the checkpoint is replayed
            return None
        finally:
            net.state.put_back()


@dataclass(frozen=True)
class Answers:
    """A network under the weights of one checkpoint, given some samples of the probe prepared in several ways."""

    net: Network
    passes: Passes
    plan: "Extraction"

    def right(self, rows: NDArray[np.int64], prepare: Prepare | None = None) -> NDArray[np.bool_]:
        """Which answers are right; prepare: another preparation than the plan's."""
        probe = _taken(self.plan.probe, rows)
        plan = replace(self.plan, probe=replace(probe, prepare=prepare) if prepare else probe)
        self.passes.fresh()
        batch = probe_batch(plan)
        targets, pieces = targets_of(plan, batch), []
        assert plan.score is not None
        for number, piece in enumerate(split(batch, plan.batch_size)):
            with (
                guarded(plan.model.name, self.net.module, piece, "trial"),
                plan.model.at_work(),
                inference(plan.model),
            ):
                seed_batch(plan.identity.seed, number)
                output = call(self.net.module, {name: tensor.clone() for name, tensor in piece.items()})
                part = scored_part(output, plan.scored, length(piece), plan.model.name)
                start = number * plan.batch_size
                pieces.append(reduce(plan.score, part, piece, targets[start : start + length(piece)], "trial"))
        reduced = {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
        return plan.score.finish(reduced, targets).samples["correct"].cpu().numpy().astype(bool)


def _taken(probe: Probe, rows: NDArray[np.int64]) -> Probe:
    targets = None if probe.targets is None else probe.targets[rows]
    return replace(
        probe,
        inputs={name: array[rows] for name, array in probe.inputs.items()},
        mask={name: array[rows] for name, array in probe.masks.items()},
        targets=targets,
        index=None,
    )


def _judged(answers: Answers, few: NDArray[np.int64]) -> Scaling | None:
    probe = answers.plan.probe
    labels = probe.labels
    assert labels is not None
    norms: list[Norm] = []
    with _first_norm(answers.net.module, norms):
        usual = answers.right(few)
    misfit = norms[0].misfit if norms else None
    nothing = Scaling(misfit) if misfit else None
    at_chance = not better_than_chance(float(usual.mean()), labels[few])
    fits = bool(norms) and misfit is None
    if probe.alternatives is None or usual.mean() + GAIN > 1 or (fits and not at_chance):
        return nothing
    if not can_tell(labels[few]):  # none of the many tries could count
        return nothing
    tries = probe.alternatives(at_chance)
    share = largest_share(labels[few]) if at_chance else 0.0
    accuracies = [_accuracy(answers, few, prepare, share) for _, prepare in tries]
    accuracy, (words, prepare) = max(zip(accuracies, tries, strict=True), key=lambda row: row[0])
    if at_chance:
        if not better_than_chance(accuracy, labels[few], LEVEL / len(tries)):
            return nothing
        return Scaling(misfit, words, accuracy, float(usual.mean()), len(few))
    others = np.setdiff1d(np.arange(len(probe)), few)
    others = others[:: max(1, len(others) // (MORE * len(few)))]
    if accuracy <= usual.mean() or not len(others):
        return nothing
    before, after = answers.right(others), answers.right(others, prepare)
    if not _are_more(before, after):
        return nothing
    return Scaling(misfit, words, float(after.mean()), float(before.mean()), len(others))


def _accuracy(answers: Answers, rows: NDArray[np.int64], prepare: Prepare, share: float) -> float:
    """Of samples prepared in that way; share: by one constant answer, where nothing is sought that does no better.

    One that does no better on every third sample is not tried on the others. To count it must be right so much more often
    that this costs a hundredth of the power where a tenth of the answers are right by chance, two at the most.
    """
    try:
        if not share:
            return float(answers.right(rows, prepare).mean())
        right = answers.right(rows[::3], prepare)
        if right.mean() > share:
            right = np.concatenate([right, answers.right(np.delete(rows, np.s_[::3]), prepare)])
        return float(right.mean())
    except (PosthocError, torch.OutOfMemoryError):  # a size that the network does not take
        return -1.0


def _are_more(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> bool:
    """Whether more answers are right after than before: by `GAIN`, `MENDED`, and by McNemar's exact test, one-sided.

    >>> rows = np.arange(100)
    >>> _are_more(rows < 60, rows < 80), _are_more(rows < 60, rows < 63), _are_more(rows < 60, rows >= 35)
    (True, False, False)
    """
    gained, lost = int((after & ~before).sum()), int((before & ~after).sum())
    least = max(GAIN, MENDED * (1 - before.mean()))
    return bool(after.mean() - before.mean() >= least and so_many(gained, gained + lost, 0.5) < LEVEL)


class Norm:
    """The running statistics of a batch norm beside those of what it is given: sums [C] over samples and places."""

    def __init__(self, name: str, layer: Any) -> None:
        self.name, self.layer = name, layer
        self.count, self.sum, self.squares = 0, torch.zeros(()), torch.zeros(())

    def add(self, x: Tensor) -> None:
        axes = [axis for axis in range(x.ndim) if axis != 1]
        x = x.double()
        self.count += x.numel() // x.shape[1]
        self.sum, self.squares = self.sum + x.sum(axes).cpu(), self.squares + (x**2).sum(axes).cpu()

    @property
    def misfit(self) -> Misfit | None:
        """How far they are apart in half of the channels, where that is far."""
        mean = self.sum / self.count
        variance = self.squares / self.count - mean**2
        running, of = (tensor.detach().double().cpu() for tensor in (self.layer.running_mean, self.layer.running_var))
        live = (of > 0) & (variance > 0)
        if not live.any():
            return None
        spread = float(torch.exp((variance[live] / of[live]).log().median() / 2))
        shift = float(((mean - running)[live].abs() / of[live].sqrt()).median())
        apart = not 1 / SPREAD < spread < SPREAD or shift > SHIFT
        return Misfit(self.name, spread, shift) if apart and math.isfinite(spread * shift) else None


@contextmanager
def _first_norm(module: nn.Module, norms: list[Norm]) -> Iterator[None]:
    """Put the first batch norm that is used, if its running statistics are of a training, among `norms`."""

    def listen(name: str) -> Callable[..., None]:
        def hook(layer: Any, inputs: Any) -> None:
            x = first_tensor(inputs)
            if not norms and x is not None and x.ndim > 1:
                norms.append(Norm(name, layer))
            if norms and norms[0].layer is layer and x is not None:
                norms[0].add(x)

        return hook

    layers = [(name, part) for name, part in module.named_modules() if isinstance(part, _BatchNorm)]
    try:
        with hooked([part.register_forward_pre_hook(listen(name)) for name, part in layers]):
            yield
    finally:
        if norms and not _is_trained(norms[0].layer):
            norms.clear()


def _is_trained(layer: Any) -> bool:
    """Whether a batch norm has running statistics, and these are of a training.

    >>> layer = nn.BatchNorm1d(2)
    >>> layer.num_batches_tracked += 100
    >>> slow = nn.BatchNorm1d(2, momentum=0.01)
    >>> slow.num_batches_tracked += 100
    >>> _is_trained(layer), _is_trained(slow), _is_trained(nn.BatchNorm1d(2))
    (True, False, False)
    """
    if layer.running_mean is None or layer.num_batches_tracked is None:
        return False
    batches, momentum = (
        int(layer.num_batches_tracked),
        layer.momentum,
    )  # without momentum they are means over all batches
    return batches >= BATCHES and (momentum is None or (1 - momentum) ** batches <= MEMORY)
