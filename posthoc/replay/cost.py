"""What an extraction costs, as far as a plan shows it."""

from pathlib import Path
from typing import TYPE_CHECKING

from posthoc.analysis.scales import token_lags, token_scales
from posthoc.replay.formats.table import files_of
from posthoc.replay.signals import SIGNALS
from posthoc.replay.source import Source

if TYPE_CHECKING:
    from posthoc.replay.plan import Extraction

SCORED_BYTES = 12
"""Loss, entropy and prediction of a token."""


def cost(plan: "Extraction") -> list[tuple[str, str]]:
    """What is read, computed and stored, as label and text."""
    E, inputs = len(plan.run.checkpoints), 1 + len(plan.identity.controls)
    passes = E * inputs + plan.untrained
    N, units = len(plan.probe), sum(map(len, plan.stored.channels.values()))
    tokens = plan.probe.tokens
    if tokens is None:
        stored = 4 * passes * N * units * len(plan.identity.signals)
        return [("output", f"{stored / 1e6:.1f} MB before compression")]
    T = tokens.shape[1]
    lengths = {"time": T, "scale": len(token_scales(T)), "lag": len(token_lags(T))}
    kept = [SIGNALS[name].dimensions[2:] for name in plan.identity.signals]
    values = [lengths[dimensions[0]] if dimensions else 1 for dimensions in kept]
    stored = 4 * passes * N * units * sum(values) + E * N * T * (SCORED_BYTES + 4 * (inputs - 1))
    weights = sum(parameter.numel() for parameter in plan.model.module.parameters())
    operations = 2 * weights * N * T * passes
    several = f" x {inputs} inputs" * (inputs > 1) + f" + {plan.untrained} untrained" * (plan.untrained > 0)
    times = f"({E} checkpoints{several})" if several else f"{E} checkpoints"
    what = f"2 x {_short(weights)} parameters x {_short(N * T)} tokens x {times}"
    read = sum(_bytes(checkpoint.path) for checkpoint in plan.run.checkpoints)
    return [
        (
            "cost",
            f"{_short(read, 'B')} read, {_short(operations, 'FLOP')} ({what}), at most {_short(stored, 'B')} written",
        )
    ]


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
