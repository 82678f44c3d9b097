"""Controls beside a run: the network that nothing was trained in, its weights drawn anew by its own constructor."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from posthoc import store
from posthoc.errors import PosthocError, UsageError
from posthoc.manifest import Control
from posthoc.recording import seed_of_control
from posthoc.replay.forward import call, guarded, own_randomness, weights_digest
from posthoc.replay.lazy import lazy_layers
from posthoc.replay.network import network, probe_batch

if TYPE_CHECKING:
    from posthoc.replay.plan import Extraction

FEW = 4
"""Samples that lazy layers are given, to learn their sizes from."""


def require_constructor(plan: "Extraction") -> None:
    """Raise UsageError where the model was not made by anything that could be called again."""
    if plan.model.drawn is None:
        raise UsageError(
            f"--untrained: {plan.model.name} is a ready module, with no constructor that would draw its weights anew; "
            f"name its class, or a function that makes it."
        )


def require_draws(plan: "Extraction") -> None:
    """Raise PosthocError where the user's code gives the same weights whatever the random numbers."""
    if not plan.model.user:
        return
    digests = set()
    for number in (0, 1):
        try:
            digests.add(weights_digest(_drawn(plan, number)))
        except PosthocError:  # which is said, or skipped, where this one is replayed
            return
    if len(digests) == 1:
        raise PosthocError(
            f"--untrained: {plan.model.name} gives the same weights under two seeds: it sets its own seed, or loads "
            f"weights; let it draw them anew at each call."
        )


def replay_untrained(plan: "Extraction", control: Control, scratch: Path | None = None) -> store.Frame:
    """The probe through the network with new weights; raises PosthocError where it fails. scratch: see `Network`.

    The whole network is new, and not only its tensors: what else its constructor draws is of the same seed.
    """
    try:
        module = _drawn(plan, control.number)
        digest = weights_digest(module)
        alone = replace(plan.changed(controls=()), model=replace(plan.model, module=module))
        with network(alone, scratch=scratch) as net:
            net.swap()
            net.launch(control.path)
            results = net.results()
    except torch.OutOfMemoryError as error:
        reason = str(error).split("\n")[0]
        raise PosthocError(f"Out of memory at {control.path} ({reason}); pass a smaller --batch-size.") from error
    return store.Frame(control.path, digest, None, 0, recorded={}, **vars(results))


def _drawn(plan: "Extraction", number: int) -> nn.Module:
    """A new network on the CPU, whose numbers are the same for every device that it then goes to."""
    require_constructor(plan)
    assert plan.model.drawn is not None
    with _randomness(plan, seed_of_control(plan.identity.seed, number)) as seed:
        module = plan.model.drawn(seed)
        if lazy_layers(module):  # draw their weights when they are first used, with the numbers that follow
            few = probe_batch(replace(plan, device=torch.device("cpu")), FEW)
            where = Control(number).path
            with torch.no_grad(), plan.model.at_work(), guarded(plan.model.name, module, few, where):
                call(module, few)
    return module


@contextmanager
def _randomness(plan: "Extraction", seed: int) -> Iterator[int]:
    """The random numbers of NumPy and Python from a seed on, and the program's own after; torch's are for the model."""
    with own_randomness(plan.device):
        np.random.seed(seed % 2**32)
        random.seed(seed)
        yield seed
