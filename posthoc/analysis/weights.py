"""The path of a run's weights: how large they are, how far each step goes, how far from the start, and in which direction.

Norms are exact. Distances are of sketches (`posthoc/sketches.py`): exact for small tensors, of large ones to about 2 %.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import numpy as np

from posthoc.analysis.arrays import FloatArray, mean_finite
from posthoc.sketches import WIDTH, width_of
from posthoc.typed import Array

if TYPE_CHECKING:
    from posthoc.store import Activations

MOST_GROUPS = 64
"""Layers that are told apart; of more, the parts of the network that they are in."""
ALL = "all weights"
"""The group of all tensors."""
Column = Annotated[FloatArray, Array(("E",), full=True)]
Optional = Annotated[FloatArray, Array(("E",))]
SPECTRAL = ("stable_rank", "hill_alpha")
"""What is stored of the spectra of matrices."""


@dataclass(frozen=True, eq=False)
class WeightPath:
    """The way of a group of tensors through all checkpoints [E].

    norm; step: distance from the checkpoint before, NaN at the first; start: from the first; cosine: of the step that ends
    there and the next one, NaN at the first and the last; error: the relative standard deviation of a step, at the most.
    stable_rank, hill_alpha: means over the tensors that have a spectrum, empty where the file holds none.
    """

    norm: Column
    step: Column
    start: Column
    cosine: Column
    error: float
    stable_rank: Optional = field(default_factory=lambda: np.empty(0))
    hill_alpha: Optional = field(default_factory=lambda: np.empty(0))


def group_of(tensor: str) -> str:
    """The layer of a tensor by its name: up to the first number, else all but the last part.

    >>> group_of("gpt_neox.layers.3.attention.dense.weight"), group_of("embed_in.weight"), group_of("bias")
    ('gpt_neox.layers.3', 'embed_in', 'bias')
    """
    parts = tensor.split(".")
    number = next((k for k, part in enumerate(parts) if re.fullmatch("[0-9]+", part)), len(parts) - 2)
    return ".".join(parts[: max(number + 1, 1)])


def weight_paths(activations: "Activations") -> dict[str, WeightPath]:
    """The paths of the layers' weights by their names, and that of `ALL`; none where the file does not hold them."""
    if not {"weights/norm", "weights/sketch"} <= activations.blocks.keys():
        return {}
    groups = [group_of(name) for name in activations.weights]
    if len(set(groups)) > MOST_GROUPS:
        groups = [group.partition(".")[0] for group in groups]
    squares, steps, starts, products = (np.array(rows) for rows in zip(*_sums(activations), strict=True))
    variance = np.array([2 / WIDTH if size > WIDTH else 0.0 for size in activations.weights.values()])
    spectral = {name: activations.weight(name) for name in SPECTRAL if f"weights/{name}" in activations.blocks}
    paths = {}
    for name in (*dict.fromkeys(groups), ALL):
        of = [t for t, group in enumerate(groups) if name in (group, ALL)]
        norm, step, start, product = (values[:, of].sum(1) for values in (squares, steps, starts, products))
        cosine = np.full(len(step), np.nan)
        with np.errstate(divide="ignore", invalid="ignore"):
            cosine[1:-1] = np.clip(product[2:] / np.sqrt(step[1:-1] * step[2:]), -1, 1)
            errors = np.sqrt(steps[:, of] ** 2 @ variance[of]) / step / 2
        step[0] = np.nan
        error = float(np.max(errors, initial=0.0, where=np.isfinite(errors)))
        means = {key: np.array([mean_finite(row) for row in values[:, of]]) for key, values in spectral.items()}
        paths[name] = WeightPath(np.sqrt(norm), np.sqrt(step), np.sqrt(start), cosine, error, **means)
    return paths


def _sums(activations: "Activations") -> Iterator[tuple[FloatArray, ...]]:
    """Of each checkpoint, by tensor [T]: the squares of the weights, of the step to them and of the way from the first, and
    the product of that step with the one before."""
    edges = np.cumsum([0, *map(width_of, activations.weights.values())])[:-1]
    first = before = activations.weight("sketch", 0).astype(np.float64)
    last_step = np.zeros_like(first)
    for e in range(len(activations)):
        here = activations.weight("sketch", e).astype(np.float64)
        with np.errstate(invalid="ignore", over="ignore"):  # of weights that are not finite
            step, way = here - before, here - first
            products = [np.add.reduceat(values, edges) for values in (step * step, way * way, step * last_step)]
            squares = activations.weight("norm", e) ** 2
        yield squares, *products
        before, last_step = here, step
