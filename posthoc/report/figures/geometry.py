"""What layers represent, over training: dimension, and similarity to other checkpoints."""

from typing import Any

import altair as alt
import numpy as np

from posthoc.analysis.records import RunMetrics
from posthoc.errors import PosthocError
from posthoc.report.figures.composed import vconcat
from posthoc.report.figures.figure import Figure, Kind, data, named, names_of, number, with_epoch
from posthoc.report.figures.layers import heat_map, height_of

PANELS = {
    "effective_rank": "effective rank",
    "cka_previous": "similarity (CKA) to the checkpoint before",
    "cka_last": "similarity (CKA) to the last checkpoint",
}


def geometry(metrics: RunMetrics, epoch: int | None, width: int) -> Figure:
    """Effective rank and similarity to other checkpoints of every layer at every checkpoint."""
    tables = {name: getattr(metrics.representation, name) for name in PANELS}
    tables = {name: table for name, table in tables.items() if table.size and np.isfinite(table).any()}
    if not tables:
        raise PosthocError("This metrics file has no geometry of layers; measure a file of several layers.")
    rows: list[dict[str, Any]] = [
        {"at": at, "k": k, "layer": layer} | {name: number(float(table[e, k])) for name, table in tables.items()}
        for e, at in enumerate(metrics.when) for k, layer in enumerate(metrics.layers)
    ]  # fmt: skip
    unit = metrics.summary.unit
    base = alt.Chart(data(rows)).encode(
        x=alt.X("at:O", title=unit, axis=alt.Axis(labelAngle=0)),
        y=alt.Y("k:O", title="layer", axis=named("layers")),
        tooltip=[
            alt.Tooltip("layer:N"), alt.Tooltip("at:Q", title=unit),
            *(alt.Tooltip(f"{name}:Q", title=PANELS[name], format=".3f") for name in tables),
        ],
    )  # fmt: skip
    height = height_of(len(metrics.layers))
    panels = [heat_map(base, name, PANELS[name], width, height) for name in tables]
    picture = vconcat(*panels, spacing=14).resolve_scale(color="independent")
    return Figure(
        "geometry",
        "What layers represent: how many directions they use, and how much that still changes",
        "Effective rank: in how many directions a layer's recorded channels vary. CKA: how alike what a layer represents is at two "
        "checkpoints, 1 for equal up to rotation and scale.",
        "",
        with_epoch(picture, None).add_params(names_of("layers", metrics.layers)),
    )


def _fits(metrics: RunMetrics) -> bool:
    return len(metrics.when) > 1 and any(np.isfinite(getattr(metrics.representation, name)).any() for name in PANELS)


GEOMETRY = Kind(
    "geometry", "Effective rank and CKA to other checkpoints of every layer, over training", geometry, fits=_fits
)
