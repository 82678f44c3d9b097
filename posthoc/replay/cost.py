"""What an extraction costs, as far as a plan shows it."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

from posthoc.analysis.scales import octaves, token_lags, token_scales
from posthoc.errors import PosthocError
from posthoc.memory import available_memory
from posthoc.replay.formats.table import files_of
from posthoc.replay.signals import SIGNALS
from posthoc.replay.source import Source
from posthoc.shown import counted

if TYPE_CHECKING:
    import torch

    from posthoc.replay.order import Checkpoint
    from posthoc.replay.plan import Extraction

SCORED_BYTES = 12
"""Loss, entropy and prediction of a token."""


def cost(plan: "Extraction") -> list[tuple[str, str]]:
    """What is read, computed and stored, as label and text."""
    E, inputs = len(plan.run.checkpoints), 1 + len(plan.identity.controls)
    means = _of_averages(plan)
    passes = E * inputs + plan.untrained + means
    N, units = len(plan.probe), sum(map(len, plan.stored.channels.values()))
    tokens = plan.probe.tokens
    if tokens is None:
        stored = 4 * passes * N * units * len(plan.identity.signals)
        return [("output", f"{stored / 1e6:.1f} MB before compression")]
    T = tokens.shape[1]
    lengths = {"time": T, "scale": len(token_scales(T)), "lag": len(token_lags(T)), "octave": len(octaves(T))}
    kept = [dimension for name in plan.identity.signals for dimension in SIGNALS[name].dimensions[2:] or ("",)]
    values = sum(
        len(channels) * sum(len(channels) if dimension == "other" else lengths.get(dimension, 1) for dimension in kept)
        for channels in plan.stored.channels.values()
    )
    stored = 4 * passes * N * values + E * N * T * (SCORED_BYTES + 4 * (inputs - 1))
    weights = sum(parameter.numel() for parameter in plan.model.module.parameters())
    operations = 2 * weights * N * T * passes
    several = f" x {inputs} inputs" * (inputs > 1) + f" + {plan.untrained} untrained" * (plan.untrained > 0)
    several += f" + {means} means" * (means > 0)
    times = f"({counted(E, 'checkpoint')}{several})" if several else counted(E, "checkpoint")
    what = f"2 x {_short(weights)} parameters x {_short(N * T)} tokens x {times}"
    read = sum(_bytes(checkpoint.path) for checkpoint in plan.run.checkpoints)
    needed = memory(weights, min(read // E, 4 * weights), plan.device)
    return [
        (
            "cost",
            f"{_short(read, 'B')} read, {_short(operations, 'FLOP')} ({what}), at most {_short(stored, 'B')} written",
        ),
        ("memory", f"{_short(needed, 'B')} for the weights, and what a batch of {plan.batch_size} takes"),
    ]


def averaging(plan: "Extraction") -> list[tuple[str, str]]:
    """What the means of weights cost beside the checkpoints, as label and text; nothing where there are none."""
    if not (counts := plan.identity.averaged):
        return []
    E, size = len(plan.run.checkpoints), sum(map(math.prod, plan.run.checkpoints[0].header.shapes.values()))
    most, without = min(counts[-1], E), [str(count) for count in counts if count > E]
    passes = _of_averages(plan)
    none = f"; none of {', '.join(without)}, for the run has {counted(E, 'checkpoint')}" if without else ""
    return [
        (
            "averages",
            f"means of the weights of the last {', '.join(map(str, counts))}: {counted(passes, 'pass')} over the probe "
            f"beside those of {counted(E, 'checkpoint')}, and {_short(4 * size * most, 'B')} of memory for {most} of them{none}",
        )
    ]


def _of_averages(plan: "Extraction") -> int:
    """Passes over the probe with means of weights."""
    return sum(max(len(plan.run.checkpoints) - count + 1, 0) for count in plan.identity.averaged)


def memory(parameters: int, stored: int, device: "torch.device") -> int:
    """Bytes that the weights take on the device: the network's, in single precision whatever the file's, and on a GPU the
    next checkpoint's as they are stored; in the machine's own memory two checkpoints are, of which one may be the network's.
    """
    return 4 * parameters + (stored if device.type == "cuda" else 4 * parameters)


def require_memory(checkpoint: "Checkpoint", device: "torch.device", averaged: int = 0) -> None:
    """Raise PosthocError where the weights take more memory than is free on the device, or in the machine, which plans;
    averaged: of how many checkpoints the machine keeps them beside the network's.

    What a batch takes comes on top, and is known only when one has run.
    """
    import torch

    parameters = sum(map(math.prod, checkpoint.header.shapes.values()))
    stored = min(_bytes(checkpoint.path), 4 * parameters)  # a file may hold more than weights
    machine = torch.device("cpu")
    for place in dict.fromkeys((device, machine)):
        needed, free = memory(parameters, stored, place), available_memory() if place == machine else _free(place)
        needed += averaged * stored * (place == machine)
        if free is not None and needed > free:
            raise PosthocError(
                f"{checkpoint.path} has {_short(parameters)} parameters, for which replaying takes {_short(needed, 'B')} "
                f"of memory; {place.type} has {_short(free, 'B')} free. Run it where there is more."
            )


def _free(device: "torch.device") -> int | None:
    """Bytes of a GPU's memory that are free; None where that cannot be told."""
    if device.type != "cuda":
        return None
    import torch

    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by torch, for what comes next
    return int(torch.cuda.mem_get_info(device)[0]) + held


def _bytes(path: Path) -> int:
    source = Source(path)
    return sum(map(source.size, files_of(path, source)))


def _short(number: float, unit: str = "") -> str:
    """
    >>> _short(1_234_567), _short(12), _short(4e9, "B")
    ('1.23 M', '12', '4 GB')
    """
    for size, name in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {name}{unit}"
    return f"{number} {unit}".rstrip()
