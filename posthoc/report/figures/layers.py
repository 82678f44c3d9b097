"""The measures of every layer by itself, and between every two layers."""

import math
from typing import Any

import altair as alt
import numpy as np
from numpy.typing import NDArray

from posthoc.analysis.records import RunMetrics
from posthoc.errors import PosthocError
from posthoc.report.figures.composed import layer, vconcat
from posthoc.report.figures.figure import (
    Figure,
    Kind,
    data,
    digits,
    hovering,
    kept,
    named,
    names_of,
    number,
    with_epoch,
)
from posthoc.report.theme import LONGEST, MARK, MUTED, SEQUENCE
from posthoc.shown import with_article


def layers(metrics: RunMetrics, epoch: int | None, width: int) -> Figure:
    """Each measure of every layer at every epoch."""
    names = metrics.layers
    shown = {
        key: measured for key, measured in metrics.measures.items()
        if measured.by_layer.size and (measured.listed or measured.headline)
    }  # fmt: skip
    if not shown:
        raise PosthocError(
            f"This metrics file has no measures by layer: its units are {metrics.recording.provenance.samples}, or it is of an older posthoc; "
            "run `posthoc metrics` again on the image axis."
        )
    rows = [
        {"at": at, "k": k, "layer": name} | {key: number(measured.by_layer[e, k]) for key, measured in shown.items()}
        for e, at in enumerate(metrics.when) for k, name in enumerate(names)
    ]  # fmt: skip
    height = height_of(len(names))
    tips = [alt.Tooltip(f"{key}:Q", title=measured.title, format=digits(rows, key)) for key, measured in shown.items()]
    base = alt.Chart(data(rows)).encode(
        x=alt.X("at:O", title=metrics.summary.unit, axis=alt.Axis(labelAngle=0)),
        y=alt.Y("k:O", title="layer", axis=named("layers")),
        tooltip=[alt.Tooltip("layer:N"), alt.Tooltip("at:Q", title=metrics.summary.unit), *tips],
    )
    panels = [heat_map(base, key, f"{measured.title} by layer", width, height) for key, measured in shown.items()]
    measured = next(iter(shown.values()))
    last = measured.by_layer[-1][np.isfinite(measured.by_layer[-1])]
    end = "at the end" if metrics.trained.any() else f"at {metrics.summary.unit} {metrics.when[-1]}"
    title = f"lies between {last.min():.2f} and {last.max():.2f}" if last.size else ""
    sizes = sorted({sum(unit.layer == name for unit in metrics.units) for name in names} - {0})
    expected = ", ".join(f"{math.sqrt((1 - math.pi / 4) / size):.3f} of {size}" for size in sizes)
    return Figure(
        "layers",
        f"{measured.symbol} by layer {title} {end}" if title else f"No layer has {with_article(measured.symbol)} {end}",
        "Each cell is one layer's channels by themselves at one checkpoint; × marks what is undefined.",
        f"Fewer channels alone make M larger: independent ones would give about {expected}." if expected else "",
        with_epoch(vconcat(*panels, spacing=14).resolve_scale(color="independent"), None).add_params(
            names_of("layers", names)
        ),
    )


def height_of(layers: int) -> int:
    """Pixels of a map of so many layers."""
    return max(80, min(14 * layers, 600) if layers > 8 else 24 * layers)


def heat_map(base: Any, key: str, title: str, width: int, height: int, scale: Any = None) -> Any:
    """One number of all layers over the checkpoints; scale: of the colours, where it is not linear."""
    legend = alt.Legend(orient="right", title=None, gradientLength=min(height, 160), tickCount=4)
    scale = scale or alt.Scale(scheme=SEQUENCE, zero=False)
    colour = alt.Color(f"{key}:Q", title=title.removesuffix(" by layer"), scale=scale, legend=legend)
    cells = base.transform_filter(f"isValid(datum.{key})").mark_rect().encode(color=colour)
    empty = base.transform_filter(f"!isValid(datum.{key})").mark_text(text="×", color=MUTED)
    chosen = base.transform_filter("datum.at === epoch").mark_rect(fill=None, stroke=MARK, strokeWidth=2)
    pointed = base.mark_rect(opacity=0).add_params(hovering(key, nearest=False))
    picture = layer(cells, empty, chosen, pointed).resolve_scale(color="independent")
    return picture.properties(width=width, height=height, title=title)


def locking(metrics: RunMetrics, epoch: int | None, width: int) -> Figure:
    """Phase consistency between layers at one epoch."""
    return _matrix(
        metrics, metrics.phase_locking.ppc, epoch, "locking", "Phase locking between layers", "pairwise phase consistency",
        "Mean pairwise phase consistency of the channels of two layers: 0 for independent ones, 1 in step.",
        f"The order of {metrics.recording.provenance.samples}, which all channels share, puts them in step too: read it beside M's null."
        if metrics.axis.key == "image" else "",
    )  # fmt: skip


def similarity(metrics: RunMetrics, epoch: int | None, width: int) -> Figure:
    """Debiased linear CKA between layers at one epoch."""
    return _matrix(
        metrics, metrics.representation.cka_layers, epoch, "similarity", "Similarity of what layers represent",
        "debiased linear CKA",
        f"Debiased linear CKA of two layers over the {metrics.recording.provenance.samples}, from their recorded channels: 0 for unrelated, 1 for equal up "
        "to rotation and scale; debiased estimates scatter a little beyond both. How far it scatters over them and over channels is in metrics.json (cka_layers_sd).",
    )  # fmt: skip


def _matrix(
    metrics: RunMetrics, values: NDArray[np.float64], epoch: int | None, name: str, title: str, what: str,
    explanation: str, caution: str = "",
) -> Figure:  # fmt: skip
    """Layer by layer at one epoch; rows keep a whole line of the matrix, which the figure unfolds."""
    if not values.size:
        raise PosthocError(
            f"There is no {what} between layers on the {metrics.axis.key} axis; measure with --axis image."
        )
    L, unit = len(metrics.layers), metrics.summary.unit
    checkpoints, shown = kept(metrics, L * L, epoch)
    ats = tuple(metrics.when[e] for e in checkpoints)
    rows = [
        {"at": metrics.when[e], "i": i, "v": [None if math.isnan(v) else round(v, 3) for v in line.tolist()]}
        for e in checkpoints for i, line in enumerate(values[e])
    ]  # fmt: skip
    cells = (
        alt.Chart(data(rows))
        .transform_filter("datum.at === epoch")
        .transform_flatten(["v"])
        .transform_window(row="row_number()", groupby=["i"])
        .transform_calculate(j="datum.row - 1")
        .transform_calculate(a="layers[datum.i]", b="layers[datum.j]")
    )
    step = 44 if L <= 8 else max(1, min(28, 280 // L))
    picture = layer(*_cells(cells, what, L <= 8, _top(values))).properties(width=step * L, height=step * L)
    picture = with_epoch(picture.add_params(names_of("layers", metrics.layers)), shown, list(ats))
    return Figure(name, f"{title} at one {unit}", explanation, caution, picture, epochs=ats, widest=0)


def _top(values: NDArray[np.float64]) -> float:
    """Where colours end: the next tenth above the greatest value of all checkpoints, and 1 at the most."""
    known = values[np.isfinite(values)]
    return min(1.0, math.ceil(10 * float(known.max(initial=0.1))) / 10)


def _cells(cells: Any, what: str, written: bool, top: float) -> list[Any]:
    """The cells of a matrix, with their numbers where there is room; top: the value at which colours end."""
    base = cells.encode(
        x=alt.X("j:O", title=None, axis=named("layers", labelAngle=-45, labelLimit=LONGEST // 2)),
        y=alt.Y("i:O", title=None, axis=named("layers", labelLimit=LONGEST // 2)),
        tooltip=[alt.Tooltip("a:N", title="layer"), alt.Tooltip("b:N", title="and layer"), alt.Tooltip("v:Q", title=what, format=".3f")],
    )  # fmt: skip
    legend = alt.Legend(title=None, orient="right", gradientLength=140)
    colour = alt.Color("v:Q", scale=alt.Scale(scheme=SEQUENCE, domain=[0, top], clamp=True), legend=legend)
    valid = base.transform_filter("isValid(datum.v)")
    marks = [
        valid.mark_rect().encode(color=colour),
        base.transform_filter("!isValid(datum.v)").mark_text(text="×", color=MUTED),
    ]
    if written:
        readable = alt.when(f"datum.v < {0.6 * top:.3g}").then(alt.value("white")).otherwise(alt.value("black"))
        marks.append(valid.mark_text(fontSize=10).encode(text=alt.Text("v:Q", format=".2f"), color=readable))
    return marks


LAYERS = Kind("layers", "Each measure of every layer at every checkpoint", layers)
LOCKING = Kind("locking", "Phase consistency between layers at one checkpoint", locking)
SIMILARITY = Kind("similarity", "Debiased linear CKA between layers at one checkpoint", similarity)
