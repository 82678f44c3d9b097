"""Is the run well? What went wrong in training, where it began and in which layer: worst first, and nothing if all is well."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from posthoc.analysis.arrays import FloatArray
from posthoc.typed import Range

SPIKE = 2.0
"""Times the median loss of the checkpoints before."""
APART = 10.0
"""Of a loss that may be below 0, such as a log likelihood of densities: how many times as far from that median as those before
are from each other, and as far as the median is from 0."""
BEFORE = 5
"""How many checkpoints before one its loss is compared with, and `LEAST` at the least."""
LEAST = 3
LEAST_LAYERS = 2
"""Of the checkpoints before, that a layer is compared with: the first may be of weights that had not trained yet."""
EXPLOSION, WHILE_LEARNING = 10.0, 100.0
"""Times the largest root mean square of the checkpoints before; the second where the loss is the least so far, for a network
that begins to learn may use a layer for the first time."""
COLLAPSE = 0.25
"""Of the largest effective rank of the checkpoints before."""


class Ailment(StrEnum):
    """What can go wrong, the worst first."""

    WEIGHTS = "weights that are not finite"
    SIGNALS = "values that are not finite"
    LOSS = "a loss that is not finite"
    DEAD = "a dead layer"
    CONSTANT = "the same scores for every sample"
    EXPLODING = "exploding values"
    COLLAPSED = "a collapse of rank"
    SPIKE = "a spike of the loss"


@dataclass(frozen=True)
class Symptom:
    """What went wrong: where in the checkpoints' order it began, in how many of them it is, in which layer (none: of the
    network); value: at the first of them, of what was `usual` before (null: there is nothing to compare it with)."""

    kind: Ailment
    began: Annotated[int, Range(0)]
    checkpoints: Annotated[int, Range(1)]
    layer: str | None
    value: float
    usual: float


def symptoms(
    layers: Sequence[str], untrained: NDArray[np.bool_], loss: FloatArray, nonfinite_weights: NDArray[np.int64],
    nonfinite: Mapping[str, NDArray[np.int64]], rank: FloatArray, size: FloatArray, constant: NDArray[np.bool_],
) -> tuple[Symptom, ...]:  # fmt: skip
    """What went wrong in a run of E checkpoints, of which the `untrained` [E] are only counted for what is not finite.

    loss [E]; nonfinite_weights [E], nonfinite[layer] [E]: how many are; rank, size [E, L]: effective rank of each layer's
    recorded channels (NaN where none varies) and their root mean square, which is empty where layers are not recorded;
    constant [E]: whether the scores of all samples are the same, as where a layer that is not recorded is dead.
    """
    result = [
        *_wherever(Ailment.WEIGHTS, nonfinite_weights > 0, nonfinite_weights),
        *(s for layer in layers for s in _wherever(Ailment.SIGNALS, nonfinite[layer] > 0, nonfinite[layer], layer)),
    ]
    if np.isfinite(loss).any():
        result += _wherever(Ailment.LOSS, ~np.isfinite(loss), loss)
    result += _wherever(Ailment.CONSTANT, constant & ~untrained, constant.astype(np.int64))
    for k, layer in enumerate(layers if size.size else ()):
        broken = untrained | (nonfinite[layer] > 0)
        result += _wherever(Ailment.DEAD, np.isnan(rank[:, k]) & ~broken, rank[:, k], layer)
        result += _beside_before(
            Ailment.EXPLODING, size[:, k], broken, layer, np.where(_least(loss), WHILE_LEARNING, EXPLOSION)
        )
        result += _beside_before(Ailment.COLLAPSED, rank[:, k], broken, layer, np.full(len(loss), COLLAPSE))
    result += _beside_before(Ailment.SPIKE, loss, untrained, None, np.full(len(loss), SPIKE))
    worst = list(Ailment)
    return tuple(sorted(result, key=lambda symptom: (worst.index(symptom.kind), symptom.began)))


def _wherever(
    kind: Ailment, ill: NDArray[np.bool_], values: NDArray[np.int64] | FloatArray, layer: str | None = None
) -> Iterator[Symptom]:
    """What is wrong in some checkpoints [E], if it is in any."""
    if ill.any():
        began = int(ill.argmax())
        yield Symptom(kind, began, int(ill.sum()), layer, float(values[began]), np.nan)


def _least(loss: FloatArray) -> NDArray[np.bool_]:
    """At which checkpoints [E] the loss is below that of all before."""
    before = np.fmin.accumulate(np.concatenate([[np.nan], loss[:-1]]))
    return np.asarray(loss < before)


def _beside_before(
    kind: Ailment, values: FloatArray, left_out: NDArray[np.bool_], layer: str | None, times: FloatArray
) -> Iterator[Symptom]:
    """What is wrong with values [E] that are `times` [E] as large as those of the checkpoints before, or so small a share of
    them, those `left_out` apart."""
    rows = np.flatnonzero(np.isfinite(values) & ~left_out)
    ill: list[tuple[int, float]] = []
    usual_values: list[float] = []
    for e in rows:
        usual = _usual(kind, usual_values)
        if _is_ill(kind, float(values[e]), usual, float(times[e]), usual_values):
            ill.append((int(e), usual))
            continue  # what is ill is no measure of what comes
        usual_values.append(float(values[e]))
    if ill:
        began, usual = ill[0]
        yield Symptom(kind, began, len(ill), layer, float(values[began]), usual)


def _usual(kind: Ailment, before: Sequence[float]) -> float:
    """What values are beside which one is judged: NaN where there are too few."""
    if kind is Ailment.SPIKE:
        return float(np.median(before[-BEFORE:])) if len(before) >= LEAST else np.nan
    return max(before) if len(before) >= LEAST_LAYERS else np.nan


def _is_ill(kind: Ailment, value: float, usual: float, times: float, before: Sequence[float]) -> bool:
    """Whether a value is beyond what was usual; never where nothing was."""
    if kind is Ailment.COLLAPSED:
        return value <= times * usual
    if kind is Ailment.SPIKE and min(before, default=1) <= 0:
        return value - usual >= max(abs(usual), APART * float(np.ptp(before[-BEFORE:])))
    return usual > 0 and value >= times * usual
