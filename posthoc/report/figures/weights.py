"""The path of the weights: how far each step goes, how far from the start, in which direction, and which layers move."""

import itertools
from typing import Any

import altair as alt
import numpy as np

from posthoc.analysis.arrays import FloatArray
from posthoc.analysis.records import RunMetrics
from posthoc.analysis.weights import ALL
from posthoc.errors import PosthocError
from posthoc.report.figures.composed import vconcat
from posthoc.report.figures.figure import (
    Figure,
    Kind,
    data,
    named,
    names_of,
    number,
    panel,
    rows_of,
    time_axis,
    with_epoch,
    y_axis,
)
from posthoc.report.figures.layers import heat_map
from posthoc.report.theme import SEQUENCE, VALUE
from posthoc.report.words import left_out

PANELS = {
    "step": "step length: distance from the checkpoint before",
    "start": "distance from the start",
    "cosine": "cosine of successive steps",
}


def weights(metrics: RunMetrics, epoch: int | None, width: int) -> Figure:
    """Step length, distance from the start and cosine of successive steps of all weights, and every layer's steps."""
    if ALL not in metrics.weights:
        raise PosthocError("This metrics file has no weights; extract and measure the checkpoints again.")
    path = metrics.weights[ALL]
    rows = rows_of(metrics)
    for name in PANELS:
        for row, value in zip(rows, getattr(path, name), strict=True):
            row[name] = number(value)
    base = alt.Chart(data(rows))
    panels = []
    for name, title in PANELS.items():
        line = base.transform_filter(f"isValid(datum.{name})").mark_line(
            color=VALUE, point={"size": 22, "filled": True, "color": VALUE}
        ).encode(x=time_axis(metrics), y=y_axis(name))  # fmt: skip
        ground = 0 if name == "cosine" else None
        panels.append(panel(rows, metrics, [line], name, width, 110, title, ground))
    layers = {name: of for name, of in metrics.weights.items() if name != ALL}
    largest = max((of.error for of in layers.values()), default=0.0)
    projected = (
        f", and told from random projections, to about {100 * path.error:.1g} % (standard deviation), of a layer {100 * largest:.1g} % at the most"
        if path.error or largest else ""
    )  # fmt: skip
    picture = vconcat(*panels, *([_map(metrics, width)] if len(metrics.when) > 1 else []), spacing=14)
    return Figure(
        "weights",
        _title(metrics, path.start, path.step),
        f"Distances are Euclidean, over all parameters{projected}. The cosine is that of the "
        "step to a checkpoint with the next step: 1 straight on, 0 at right angles, below 0 back. Each cell of the map is a "
        f"layer's step in units of its norm, on a logarithmic scale; × marks where it did not move{'' if np.isfinite(path.step[1:]).all() else ' or is not finite'}.",
        " ".join([*_spaced(metrics), *left_out(metrics)]),
        picture.add_params(names_of("groups", list(layers))),
    )  # fmt: skip


def _title(metrics: RunMetrics, start: FloatArray, step: FloatArray) -> str:
    finite = np.flatnonzero(np.isfinite(start))
    if not finite.size:
        return "The weights are not finite"
    if finite[-1] < len(start) - 1:
        return f"The weights are finite up to {metrics.summary.unit} {metrics.when[finite[-1]]}"
    first = f"{metrics.summary.unit} {metrics.when[finite[0]]}"
    if not np.isfinite(step[finite[0] + 1 :]).all():
        return f"The weights end {start[-1]:.3g} from those of {first}, after a way that is not finite throughout"
    way = float(np.nansum(step))
    if not way > 0:
        return "The weights do not move"
    return f"The weights end {start[-1]:.3g} from those of {first}, after a way of {way:.3g}"


def _spaced(metrics: RunMetrics) -> list[str]:
    """A caution where some checkpoints are farther apart than others."""
    gaps = {b - a for a, b in itertools.pairwise(metrics.when)}
    return ["Steps between checkpoints that are farther apart are longer."] if len(gaps) > 1 else []


def _map(metrics: RunMetrics, width: int) -> Any:
    """Every layer's step at every checkpoint but the first, in units of the layer's norm."""
    layers = {name: path for name, path in metrics.weights.items() if name != ALL}
    rows = []
    for k, (name, path) in enumerate(layers.items()):
        with np.errstate(divide="ignore", invalid="ignore"):
            relative = path.step / path.norm
        rows += [
            {"at": at, "k": k, "layer": name, "relative": number(value) or None}
            for at, value in zip(metrics.when[1:], relative[1:], strict=True)
        ]
    unit = metrics.summary.unit
    base = alt.Chart(data(rows)).encode(
        x=alt.X("at:O", title=unit, axis=alt.Axis(labelAngle=0, labelOverlap=True)),
        y=alt.Y("k:O", title="layer", axis=named("groups")),
        tooltip=[
            alt.Tooltip("layer:N"),
            alt.Tooltip("at:Q", title=unit),
            alt.Tooltip("relative:Q", title="step / norm", format=".3g"),
        ],
    )
    scale = alt.Scale(scheme=SEQUENCE, type="log")
    height = max(80, min(14 * len(layers), 600))
    return with_epoch(heat_map(base, "relative", "step / norm by layer", width, height, scale), None)


WEIGHTS = Kind(
    "weights",
    "Step length, distance from the start and direction of the weights, and how far each layer moves",
    weights,
    fits=lambda metrics: bool(metrics.weights) and len(metrics.when) > 1,
)
