"""Other ways to scale the probe's images, tried where a network does no better than chance."""

import itertools
from dataclasses import replace

import numpy as np
import torch

from posthoc.chance import LEVEL, better_than_chance
from posthoc.errors import PosthocError
from posthoc.replay.forward import guarded, own_randomness, seed_batch
from posthoc.replay.network import Network, network, probe_batch
from posthoc.replay.outputs import part_of, score
from posthoc.replay.plan import Extraction
from posthoc.replay.probes import NORMALIZATIONS, Normalization
from posthoc.replay.trial import Passes

SCALES = NORMALIZATIONS | {
    "0.5/0.5": Normalization.parse("0.5/0.5"),  # -1..1
    "0/0.00392157": Normalization.parse("0/0.00392157"),  # 0..255
}
SIZES = (8, 28, 32)
"""Sides tried beside the run's own, where that is no more than 64: larger ones cost too much for a hint."""


def better_scaling(plan: Extraction) -> str | None:
    """The normalisation and size, of a few usual ones, with which the last checkpoint does best, as options of extract
    and with its accuracy on some of the images; None where none does better than chance.

    The level of the test is divided by how many were tried. Costs no more than a checkpoint.
    """
    small = plan.image_size <= 64
    count = min(100 if small else 64, len(plan.probe))
    probe = plan.probe.take(np.arange(count) * len(plan.probe) // count)
    plan = replace(plan.changed(compile=False), probe=probe)
    sizes = sorted({plan.image_size, *(SIZES if small else ())}, key=lambda side: side != plan.image_size)
    grid = list(itertools.product(SCALES.items(), sizes))
    best, accuracy = "", -1.0
    with network(plan) as net, own_randomness(plan.device):
        try:
            passes = Passes(net, plan.run.checkpoints[-1])
        except PosthocError:  # skipped, or gone by now: the activations are written all the same
            return None
        for (name, normalization), side in grid:
            try:
                now = _accuracy(passes, net, replace(plan, normalization=normalization, image_size=side))
            except (PosthocError, torch.OutOfMemoryError):  # a size that the network does not take
                continue
            if now > accuracy:
                best, accuracy = f"--normalize {name}" + f" --image-size {side}" * (side != plan.image_size), now
        net.state.put_back()
    if not better_than_chance(accuracy, probe.labels, LEVEL / len(grid)):
        return None
    return f"{best} gives {accuracy:.2f} at the last checkpoint, over {count} images"


def _accuracy(passes: Passes, net: Network, plan: Extraction) -> float:
    passes.fresh()
    x, labels = probe_batch(plan)
    scores = []
    for number, batch in enumerate(x.split(plan.batch_size)):
        with (
            guarded(plan.model.name, net.module, tuple(batch.shape), "trial"),
            plan.model.at_work(),
            torch.inference_mode(),
        ):
            seed_batch(plan.identity.seed, number)
            part = part_of(net.module(batch.clone()), plan.scored.path or ())
            if part is None:
                raise PosthocError("no scores")
            scores.append(part.float())
    return score(torch.cat(scores), labels)[1]
