"""Other ways to prepare the probe, tried where a network does no better than chance."""

import math
from dataclasses import replace

import torch

from posthoc.chance import LEVEL, better_than_chance
from posthoc.errors import PosthocError
from posthoc.replay.forward import call, guarded, own_randomness, seed_batch
from posthoc.replay.network import Network, length, network, probe_batch, reduce, split, targets_of
from posthoc.replay.outputs import scored_part
from posthoc.replay.plan import Extraction
from posthoc.replay.trial import Passes


def better_scaling(plan: Extraction) -> str | None:
    """The preparation, of the probe's alternatives, with which the last checkpoint does best, as options of extract and
    with its accuracy; None where none does better than chance.

    The level of the test is divided by how many were tried. Costs no more than a checkpoint.
    """
    tries = plan.probe.alternatives() if plan.probe.alternatives else []
    if not tries:
        return None
    few = tries[0][1]
    plan = replace(plan.changed(compile=False), probe=few)
    best, accuracy = "", -1.0
    with network(plan) as net, own_randomness(plan.device):
        try:
            passes = Passes(net, plan.run.checkpoints[-1])
        except PosthocError:  # skipped, or gone by now: the activations are written all the same
            return None
        for words, probe in tries:
            try:
                now = _accuracy(passes, net, replace(plan, probe=probe))
            except (PosthocError, torch.OutOfMemoryError):  # a size that the network does not take
                continue
            if now > accuracy:
                best, accuracy = words, now
        net.state.put_back()
    if few.labels is None or not better_than_chance(accuracy, few.labels, LEVEL / len(tries)):
        return None
    return f"{best} gives {accuracy:.2f} at the last checkpoint, over {len(few)} {few.samples}"


def _accuracy(passes: Passes, net: Network, plan: Extraction) -> float:
    if plan.score is None:
        return math.nan
    passes.fresh()
    batch = probe_batch(plan)
    targets, pieces = targets_of(plan, batch), []
    for number, piece in enumerate(split(batch, plan.batch_size)):
        with guarded(plan.model.name, net.module, piece, "trial"), plan.model.at_work(), torch.inference_mode():
            seed_batch(plan.identity.seed, number)
            output = call(net.module, {name: tensor.clone() for name, tensor in piece.items()})
            part = scored_part(output, plan.scored, length(piece), plan.model.name)
            pieces.append(
                reduce(plan.score, part, piece, targets[number * plan.batch_size :][: length(piece)], "trial")
            )
    reduced = {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
    return plan.score.finish(reduced, targets).accuracy
