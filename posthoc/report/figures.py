"""The figures of one run: what the report shows and `posthoc report --figure` saves."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import altair as alt
import numpy as np

from posthoc.analysis.records import RunMetrics
from posthoc.analysis.taxonomy import Taxonomy
from posthoc.analysis.verdicts import DESCRIPTIONS, MEASURES, verdict
from posthoc.errors import PosthocError, UsageError
from posthoc.report.figure import Figure, data, hover, hovering, keyed, named, names_of, number, with_epoch, y_axis
from posthoc.report.theme import (
    INK,
    LONGEST,
    MARK,
    MUTED,
    NOISE,
    OTHER,
    PAPER,
    REGION,
    SECOND,
    SEQUENCE,
    THIRD,
    VALUE,
    config,
)
from posthoc.report.words import TITLES, caution, cautions, decides, short, unit, when, without_convergence

MOST_CELLS = 100_000
"""Cells of a matrix that a figure keeps over all epochs; of longer runs it keeps every second epoch, or third."""


def chart(metrics: RunMetrics, name: str, epoch: int | None = None) -> Any:
    """A figure of a run as an Altair chart with its title; see `RunMetrics.chart`."""
    if name not in FIGURES:
        raise UsageError(f"No figure of one run is called {name!r}; there are {', '.join(FIGURES)}.")
    figure = FIGURES[name](metrics, epoch, 480)
    titled = figure.chart.properties(
        title=alt.TitleParams(figure.title, subtitle=[text for text in (figure.explanation, figure.caution) if text])
    )
    return titled.configure(**config("sans-serif"))


def measures(metrics: RunMetrics, epoch: int | None, width: int) -> Figure:
    """H, H_eff and M at every epoch, each with its interval, beside the null that decides and pure noise."""
    null = decides(metrics)
    rows = _rows(metrics)
    for measure in MEASURES:
        values = metrics.column(measure)
        for e, row in enumerate(rows):
            low, high = getattr(metrics.epochs[e], f"{measure}_interval")
            row |= {f"{measure}": number(values[e]), f"{measure}_low": number(low), f"{measure}_high": number(high)}
            for kind, name in (("white", "white"), ("deciding", null)):
                found = metrics.epochs[e].nulls.get(name, {}).get(measure)
                for end in ("low", "high"):
                    row[f"{measure}_{kind}_{end}"] = number(getattr(found, end)) if found else None
    keys = ["measured", "95 % interval", short(null), "pure noise"]
    colours = [VALUE, VALUE, OTHER, NOISE]
    if not any(row["integration_white_low"] is not None for row in rows):
        keys, colours = keys[:2], colours[:2]
    panels = []
    for measure in MEASURES:
        base = alt.Chart(data(rows)).transform_filter("!datum.untrained")
        layers = []
        for kind, key, opacity in (
            ("white", "pure noise", 0.45),
            ("deciding", short(null), 0.3),
            ("", "95 % interval", 0.25),
        ):
            if key in keys:
                stem = f"{measure}_{kind}_" if kind else f"{measure}_"
                band = base.transform_filter(f"isValid(datum.{stem}low)").mark_area(opacity=opacity, line=False)
                band = band.encode(x=_time(metrics), y=y_axis(f"{stem}low"), y2=f"{stem}high:Q")
                layers.append(keyed(band, key, keys, colours))
        line = base.mark_line(point={"size": 22, "filled": True})
        line = keyed(line.encode(x=_time(metrics), y=y_axis(measure)), "measured", keys, colours)
        panels.append(_panel(rows, metrics, [*layers, line], measure, width, 130, TITLES[measure]))
    results = [verdict(metrics.summary, metrics.protocol.axis, key) for key in ("integration", "metastability")]
    title = "; ".join(
        f"{one.measure.symbol} differs from {short(null)} in {one.differs} of {one.epochs} {unit(metrics)}s"
        for one in results if one
    )  # fmt: skip
    bands = (
        f"; the other bands hold the middle 95 % of the same measure of redrawn data: {DESCRIPTIONS[null]}, which decides, "
        f"and {DESCRIPTIONS['white']}, for reference."
    )
    return Figure(
        "measures",
        title or "Integration and metastability, epoch by epoch",
        "The line is what was measured, its band the 95 % interval; the hollow diamond is the untrained network"
        + (bands if len(keys) > 2 else "."),
        " ".join(cautions(metrics)),
        alt.vconcat(*panels, spacing=14),
    )


def stability(metrics: RunMetrics, epoch: int | None, width: int) -> Figure:
    """The stability index, its volatility with the convergence signal, and accuracy."""
    ways = {"retrospective": "", "causal": "_causal"}
    rows = _rows(metrics)
    for row, own in zip(rows, metrics.epochs, strict=True):
        row["accuracy"] = number(own.accuracy)
        for way, suffix in ways.items():
            row[f"psi_{way}"] = number(getattr(own, f"stability_index{suffix}"))
            row[f"volatility_{way}"] = number(getattr(own, f"volatility{suffix}"))
    settled = metrics.summary["convergence"]
    keys, colours = list(ways), [VALUE, SECOND]

    def curves(stem: str) -> list[Any]:
        return [
            keyed(
                alt.Chart(data(rows))
                .mark_line(point={"size": 22, "filled": True}, strokeDash=[1, 0] if way == "retrospective" else [5, 3])
                .encode(x=_time(metrics), y=y_axis(f"{stem}_{way}")),
                way,
                keys,
                colours,
            )
            for way in ways
        ]

    signals = [{"at": settled[way], "way": way, "text": f"settled, {way}"} for way in ways if settled[way] is not None]
    middle = (when(metrics)[0] + when(metrics)[-1]) / 2
    flags = alt.Chart(data(signals)).encode(
        x=alt.X("at:Q"), color=alt.Color("way:N", scale=alt.Scale(domain=keys, range=colours))
    )
    limit = (
        alt.Chart(data([{"y": metrics.protocol.threshold}]))
        .mark_rule(color=MUTED, strokeDash=[2, 2])
        .encode(y=y_axis("y"), tooltip=alt.Tooltip("y:Q", title="threshold"))
    )
    vertical = [flags.mark_rule(strokeWidth=1.5)] if signals else []
    names = [
        flags.mark_text(
            **({"align": "left", "dx": 4} if settled[way] < middle else {"align": "right", "dx": -4}), baseline="top"
        ).encode(
            y=alt.value(2 if way == "retrospective" else 16), text="text:N"
        ).transform_filter(f"datum.way === '{way}'")
        for way in ways if settled[way] is not None
    ]  # fmt: skip
    accuracy = alt.Chart(data(rows)).transform_filter("!datum.untrained").mark_line(
        color=THIRD, point={"size": 22, "filled": True, "color": THIRD}
    ).encode(x=_time(metrics), y=y_axis("accuracy"))  # fmt: skip
    panels = [
        _panel(rows, metrics, curves("psi"), "psi_retrospective", width, 130, "stability index Psi", 0),
        _panel(rows, metrics, [limit, *curves("volatility"), *vertical, *names], "volatility_retrospective",
               width, 120, f"volatility of Psi over {metrics.protocol.window} {unit(metrics)}s"),
        _panel(rows, metrics, [accuracy, *vertical], "accuracy", width, 100, f"accuracy (share, {_source(metrics)})"),
    ]  # fmt: skip
    said = [f"{way}: {unit(metrics)} {settled[way]}" if settled[way] is not None else f"{way}: never" for way in ways]
    best = metrics.summary["best_epoch"]
    title = f"Volatility settles below {metrics.protocol.threshold} ({'; '.join(said)})"
    looks_ahead = (
        "The retrospective curve uses z-scores over the whole run, so at every epoch it knows the future; only the causal "
        "one could have stopped the training."
    )
    return Figure(
        "stability",
        title + (f"; accuracy is best at {unit(metrics)} {best}" if best is not None else ""),
        "Psi is the weighted mean of the z-scores of H_eff and M, volatility its rolling standard deviation; training "
        "counts as settled after three epochs below the dashed threshold.",
        " ".join([looks_ahead, *without_convergence(metrics), *cautions(metrics)]),
        alt.vconcat(*panels, spacing=14),
    )


def trajectory(metrics: RunMetrics, epoch: int | None, width: int) -> Figure:
    """The path of a run through the plane of integration and metastability."""
    rows = _rows(metrics)
    for row, own in zip(rows, metrics.epochs, strict=True):
        row |= {"integration": number(own.integration), "metastability": number(own.metastability)}
    there = [row for row in rows if row["integration"] is not None and row["metastability"] is not None]
    box = {
        f"{name}_{end}": float(np.nanmean(column)) if np.isfinite(column := metrics.null(decides(metrics), measure, end)).any() else None
        for name, measure in (("x", "integration"), ("y", "metastability")) for end in ("low", "high")
    }  # fmt: skip
    noise = [box] if None not in box.values() else []
    x = _range([row["integration"] for row in there] + [box[key] for key in ("x_low", "x_high")], 0.25, (0, 1))
    y = _range([row["metastability"] for row in there] + [box[key] for key in ("y_low", "y_high")], 0.02, (0, math.inf))
    X = alt.X(
        "integration:Q",
        title="integration H_eff",
        scale=alt.Scale(domain=x, nice=False, zero=False),
        axis=alt.Axis(grid=False),
    )
    Y = alt.Y(
        "metastability:Q",
        title="metastability M",
        scale=alt.Scale(domain=y, nice=False, zero=False),
        axis=alt.Axis(grid=False),
    )
    base = alt.Chart(data(there))
    seen = base.transform_filter("!datum.untrained")
    path = seen.mark_line(color=MUTED, strokeWidth=1, opacity=0.6).encode(x=X, y=Y, order="at:Q")
    points = seen.mark_circle(size=60, opacity=1, stroke=INK, strokeWidth=0.3).encode(
        x=X, y=Y,
        color=alt.Color("at:Q", scale=alt.Scale(scheme=SEQUENCE), legend=alt.Legend(
            title=unit(metrics), orient="right", gradientLength=120, tickMinStep=1, format="d")),
    )  # fmt: skip
    trained = [row for row in there if not row["untrained"]]
    named = [(row, f"{unit(metrics)} {row['at']}", -12) for row in trained[:1] + trained[1:][-1:]]
    named += [(row, "untrained", 14) for row in there if row["untrained"]]
    labels = []
    for row, text, dy in named:
        place = (row["integration"] - x[0]) / (x[1] - x[0])
        align = "left" if place < 0.15 else "right" if place > 0.85 else "center"
        for halo in ({"stroke": PAPER, "strokeWidth": 4, "strokeJoin": "round"}, {}):
            mark = alt.Chart(data([{**row, "text": text}])).mark_text(dy=dy, align=align, fontSize=10, **halo)
            labels.append(mark.encode(x=X, y=Y, text="text:N"))
    mean, bounds = metrics.summary["integration_mean"], _regions(x)
    areas = alt.Chart(data(bounds)).encode(
        x=alt.X("from:Q", title="integration H_eff", scale=alt.Scale(domain=x, nice=False)), x2="to:Q"
    )
    layers = [areas.mark_rect(color=REGION).transform_filter("datum.shaded")]
    layers.append(
        alt.Chart(data(bounds)).mark_text(baseline="top", color=MUTED, fontSize=10, lineBreak="|").encode(
            x=alt.X("middle:Q", title="integration H_eff"), y=alt.value(4), text="name:N"
        )
    )  # fmt: skip
    if noise:
        rect = alt.Chart(data(noise))
        layers += [
            rect.mark_rect(color=NOISE, opacity=0.5).encode(x="x_low:Q", x2="x_high:Q", y="y_low:Q", y2="y_high:Q"),
            rect.mark_text(
                dy=4, baseline="top", align="left", color=MUTED, fontSize=10, text=short(decides(metrics))
            ).encode(x="x_low:Q", y="y_low:Q"),
        ]
    if there:
        layers += [
            path, *labels[::2], points, base.transform_filter("datum.untrained").mark_point(shape="diamond", size=90, color=INK).encode(x=X, y=Y),
            *labels[1::2],
            base.transform_filter("datum.at === epoch").mark_point(size=220, color=MARK, strokeWidth=2.5).encode(x=X, y=Y),
            hover(base.encode(x=X, y=Y), unit(metrics), ["integration", "metastability"]),
        ]  # fmt: skip
    else:
        layers.append(_nothing(metrics))
    moved = "" if len(trained) < 2 else (
        f" from ({trained[0]['integration']:.2f}, {trained[0]['metastability']:.3f})"
        f" to ({trained[-1]['integration']:.2f}, {trained[-1]['metastability']:.3f})"
    )  # fmt: skip
    return Figure(
        "trajectory",
        f"The run moves through the plane of integration and metastability{moved}"
        if moved
        else "Integration and metastability of the run in one plane",
        "One point per checkpoint, from dark to light; the shaded bands are those in which the taxonomy puts a run's mean "
        f"H_eff ({'undefined' if mean is None else f'here {mean:.3f}'}), stable convergent being a run above 0.6 with "
        "r(Hz, Mz) < 0 < r(Psi, accuracy)"
        + (
            f"; the grey box is where {DESCRIPTIONS[decides(metrics)]} lies, on average over the run." if noise else "."
        ),
        " ".join(cautions(metrics)),
        with_epoch(alt.layer(*layers).properties(width=width, height=320), None),
    )


def layers(metrics: RunMetrics, epoch: int | None, width: int) -> Figure:
    """Exponent and metastability of every layer at every epoch."""
    names = metrics.layers.get("layers", ())
    if not metrics.layers.get("hurst"):
        raise PosthocError(
            "This metrics file has no measures by layer: its units are images, or it is of an older posthoc; "
            "run `posthoc metrics` again on the image axis."
        )
    rows = [
        {"at": at, "k": k, "layer": name, **{key: number(_float(metrics.layers[key][e][k])) for key in ("hurst", "metastability")}}
        for e, at in enumerate(when(metrics)) for k, name in enumerate(names)
    ]  # fmt: skip
    height = max(80, min(14 * len(names), 600) if len(names) > 8 else 24 * len(names))
    base = alt.Chart(data(rows)).encode(
        x=alt.X("at:O", title=unit(metrics), axis=alt.Axis(labelAngle=0)),
        y=alt.Y("k:O", title="layer", axis=named("layers")),
        tooltip=[alt.Tooltip("layer:N"), alt.Tooltip("at:Q", title=unit(metrics)),
                 *(alt.Tooltip(f"{key}:Q", title=TITLES[key], format=".4f") for key in ("hurst", "metastability"))],
    )  # fmt: skip
    panels = []
    for key in ("hurst", "metastability"):
        colour = alt.Color(f"{key}:Q", title=TITLES[key], scale=alt.Scale(scheme=SEQUENCE, zero=False),
                           legend=alt.Legend(orient="right", title=None, gradientLength=min(height, 160), tickCount=4))  # fmt: skip
        cells = base.transform_filter(f"isValid(datum.{key})").mark_rect().encode(color=colour)
        empty = base.transform_filter(f"!isValid(datum.{key})").mark_text(text="×", color=MUTED)
        chosen = base.transform_filter("datum.at === epoch").mark_rect(fill=None, stroke=MARK, strokeWidth=2)
        pointed = base.mark_rect(opacity=0).add_params(hovering(key, nearest=False))
        panels.append(
            alt.layer(cells, empty, chosen, pointed).resolve_scale(color="independent")
            .properties(width=width, height=height, title=f"{TITLES[key]} by layer")
        )  # fmt: skip
    last = [_float(value) for value in metrics.layers["hurst"][-1]]
    sizes = {sum(channel["layer"] == name for channel in metrics.channels) for name in names}
    expected = ", ".join(f"{math.sqrt((1 - math.pi / 4) / size):.3f}" for size in sorted(sizes) if size)
    found = [value for value in last if math.isfinite(value)]
    title = (
        f"H by layer lies between {min(found):.2f} and {max(found):.2f} at the end"
        if found
        else "No layer has an H at the end"
    )
    return Figure(
        "layers",
        title,
        "Each cell is one layer's channels by themselves at one checkpoint; × marks what is undefined.",
        f"Fewer channels alone make M larger: independent ones would give about {expected}." if expected else "",
        with_epoch(alt.vconcat(*panels, spacing=14).resolve_scale(color="independent"), None).add_params(
            names_of("layers", names)
        ),
    )


def locking(metrics: RunMetrics, epoch: int | None, width: int) -> Figure:
    """Phase consistency between layers at one epoch."""
    return _matrix(
        metrics, "locking", metrics.phase_locking.get("ppc"), metrics.phase_locking.get("layers", ()), epoch, width,
        "Phase locking between layers", "pairwise phase consistency",
        "Mean pairwise phase consistency of the channels of two layers: 0 for independent ones, 1 in step.",
        "The order of images, which all channels share, puts them in step too: read it beside M's null."
        if metrics.protocol.axis == "image" else "",
    )  # fmt: skip


def similarity(metrics: RunMetrics, epoch: int | None, width: int) -> Figure:
    """Debiased linear CKA between layers at one epoch."""
    return _matrix(
        metrics, "similarity", metrics.representation.get("cka_layers"), metrics.representation.get("layers", ()), epoch,
        width, "Similarity of what layers represent", "debiased linear CKA",
        "Debiased linear CKA of two layers over the images, from their recorded channels: 0 for unrelated, 1 for equal up "
        "to rotation and scale. How far it scatters over images and channels is in metrics.json (cka_layers_sd).",
        "",
    )  # fmt: skip


def fluctuation(metrics: RunMetrics, epoch: int | None, width: int) -> Figure:
    """The fluctuation function behind the exponent at one epoch."""
    if not metrics.fluctuation:
        raise PosthocError("This metrics file holds no fluctuation functions; run `posthoc metrics` again.")
    shown = {"units": "measured", "white": "pure noise", decides(metrics): short(decides(metrics))}
    kept, shown_first = _kept(metrics, 40 * len(metrics.scales), epoch)
    ats, rows, slopes = when(metrics), [], []
    for e in kept:
        own = metrics.fluctuation[e]
        for name, key in shown.items():
            curve = own["curves"].get(name)
            if not curve or None in curve["mean"] or not np.isfinite(curve["mean"]).all():
                continue
            log_s = np.log(own["scales"])
            slope, level = np.polyfit(log_s, curve["mean"], 1)
            for k, s in enumerate(own["scales"]):
                mean, low, high = (math.exp(curve[end][k]) for end in ("mean", "low", "high"))
                fit = math.exp(level + slope * log_s[k])
                rows.append({"at": ats[e], "curve": key, "s": s, "F": number(mean), "low": number(low),
                             "high": number(high), "fit": number(fit)})  # fmt: skip
            slopes.append({"at": ats[e], "curve": key, "text": f"{key}: slope {slope:.3f}"})
    keys = [key for key in shown.values() if any(row["curve"] == key for row in rows)]
    colours = [{"measured": VALUE, "pure noise": NOISE}.get(key, OTHER) for key in keys]
    base = alt.Chart(data(rows)).transform_filter("datum.at === epoch")
    time = {"image": "images", "depth": "layers", "epoch": "checkpoints"}[metrics.protocol.axis]
    x = alt.X("s:Q", title=f"scale s ({time})", scale=alt.Scale(type="log", nice=False))
    y = alt.Y("F:Q", title="F(s) / its geometric mean", scale=alt.Scale(type="log", nice=False))
    colour = alt.Color("curve:N", scale=alt.Scale(domain=keys, range=colours), legend=alt.Legend(title=None))
    marks = [
        base.mark_area(opacity=0.2).encode(x=x, y=alt.Y("low:Q", scale=alt.Scale(type="log", nice=False)), y2="high:Q", color=colour),
        base.mark_line(strokeDash=[4, 3]).encode(x=x, y=alt.Y("fit:Q"), color=colour),
        base.mark_point(filled=True, size=45, opacity=1).encode(
            x=x, y=y, color=colour, shape=alt.Shape("curve:N", scale=alt.Scale(domain=keys), legend=alt.Legend(title=None)),
            tooltip=[alt.Tooltip("curve:N"), alt.Tooltip("s:Q", title="scale"), alt.Tooltip("F:Q", format=".4f")],
        ),
    ]  # fmt: skip
    for k, key in enumerate(keys):
        own_slopes = [row for row in slopes if row["curve"] == key]
        marks.append(
            alt.Chart(data(own_slopes)).transform_filter("datum.at === epoch").mark_text(align="left", baseline="top")
            .encode(x=alt.value(8), y=alt.value(6 + 15 * k), text="text:N")
        )  # fmt: skip
    if not rows:
        marks = [_nothing(metrics)]
    protocol = metrics.protocol
    calibrated = " H is that slope freed of the bias of short series." if protocol.calibrate else ""
    if protocol.estimator != "dfa":
        calibrated = f" H is not that slope but what {protocol.estimator} estimates."
    return Figure(
        "fluctuation",
        f"The fluctuation function{' whose slope is H' * (protocol.estimator == 'dfa')}, at one {unit(metrics)}",
        "Mean over channels of log F(s), each less its own mean; the dashed lines are least-squares fits, the band of what was "
        "measured holds 95 % of the channels, those of redrawn data 95 % of the draws." + calibrated,
        caution(metrics, "hurst"),
        with_epoch(alt.layer(*marks).properties(width=width, height=300), shown_first, [ats[e] for e in kept]),
        epochs=tuple(ats[e] for e in kept),
        widest=640,
    )  # fmt: skip


FIGURES: dict[str, Callable[[RunMetrics, int | None, int], Figure]] = {
    "measures": measures,
    "stability": stability,
    "trajectory": trajectory,
    "layers": layers,
    "locking": locking,
    "similarity": similarity,
    "fluctuation": fluctuation,
}


def _matrix(
    metrics: RunMetrics, name: str, values: Any, names: Sequence[str], epoch: int | None, width: int,
    title: str, what: str, explanation: str, caution: str,
) -> Figure:  # fmt: skip
    """Layer by layer at one epoch; rows keep a whole line of the matrix, which the figure unfolds."""
    if not values:
        raise PosthocError(f"There is no {what} between layers on the {metrics.protocol.axis} axis.")
    L, ats = len(names), when(metrics)
    kept, shown = _kept(metrics, L * L, epoch)
    rows = [
        {"at": ats[e], "i": i, "v": [None if _float(v) != _float(v) else round(_float(v), 3) for v in line]}
        for e in kept for i, line in enumerate(values[e])
    ]  # fmt: skip
    cells = (
        alt.Chart(data(rows))
        .transform_filter("datum.at === epoch")
        .transform_flatten(["v"])
        .transform_window(row="row_number()", groupby=["i"])
        .transform_calculate(j="datum.row - 1")
        .transform_calculate(a="layers[datum.i]", b="layers[datum.j]")
    )
    step = max(1, min(28, 280 // L))
    base = cells.encode(
        x=alt.X("j:O", title=None, axis=named("layers", labelAngle=-45, labelLimit=LONGEST // 2)),
        y=alt.Y("i:O", title=None, axis=named("layers", labelLimit=LONGEST // 2)),
        tooltip=[alt.Tooltip("a:N", title="layer"), alt.Tooltip("b:N", title="and layer"), alt.Tooltip("v:Q", title=what, format=".3f")],
    )  # fmt: skip
    colour = alt.Color("v:Q", scale=alt.Scale(scheme=SEQUENCE, domain=[0, 1], clamp=True), legend=alt.Legend(
        title=None, orient="right", gradientLength=140))  # fmt: skip
    marks = [base.transform_filter("isValid(datum.v)").mark_rect().encode(color=colour),
             base.transform_filter("!isValid(datum.v)").mark_text(text="×", color=MUTED)]  # fmt: skip
    if L <= 8:
        written = base.transform_filter("isValid(datum.v)").mark_text(fontSize=10)
        readable = alt.when("datum.v < 0.6").then(alt.value("white")).otherwise(alt.value("black"))
        marks.append(written.encode(text=alt.Text("v:Q", format=".2f"), color=readable))
        step = 44
    picture = alt.layer(*marks).properties(width=step * L, height=step * L).add_params(names_of("layers", names))
    return Figure(
        name,
        f"{title} at one {unit(metrics)}",
        explanation,
        caution,
        with_epoch(picture, shown, [ats[e] for e in kept]),
        epochs=tuple(ats[e] for e in kept),
        widest=0,
    )


def _rows(metrics: RunMetrics) -> list[dict[str, Any]]:
    return [
        {"at": at, "untrained": own.untrained} for at, own in zip(when(metrics), metrics.epochs, strict=True)
    ]  # fmt: skip


def _time(metrics: RunMetrics) -> alt.X:
    return alt.X("at:Q", title=unit(metrics), axis=alt.Axis(tickMinStep=1, format="d", grid=False))


def _panel(
    rows: list[dict[str, Any]], metrics: RunMetrics, marks: list[Any], field: str, width: int, height: int, title: str,
    baseline: float | None = None,
) -> Any:  # fmt: skip
    """Layers over time with the untrained checkpoint, the mark of the chosen epoch, and a tooltip for the nearest."""
    if all(row[field] is None for row in rows):
        picture = alt.layer(_nothing(metrics))
    else:
        base = alt.Chart(data(rows)).transform_filter(f"isValid(datum.{field})")
        spot = base.encode(x=_time(metrics), y=y_axis(field))
        ground = (
            []
            if baseline is None
            else [alt.Chart(data([{"y": baseline}])).mark_rule(color=NOISE).encode(y=y_axis("y"))]
        )
        picture = alt.layer(
            *ground,
            *marks,
            spot.transform_filter("datum.untrained").mark_point(shape="diamond", size=70, color=INK),
            base.transform_filter("datum.at === epoch").mark_rule(color=MARK, strokeWidth=1.5).encode(x=_time(metrics)),
            spot.transform_filter("datum.at === epoch").mark_point(size=110, color=MARK, strokeWidth=2.5),
            hover(spot, unit(metrics), [field]),
        )
    return with_epoch(picture.properties(width=width, height=height, title=title), None)


def _nothing(metrics: RunMetrics) -> Any:
    """In place of an empty chart, why it is empty."""
    reasons = dict.fromkeys(why for own in metrics.epochs for why in own.reasons)
    text = "undefined at every checkpoint" + (f": {', '.join(reasons)}" if reasons else "")
    return alt.Chart(data([{"text": text}])).mark_text(color=MUTED).encode(text="text:N")


def _kept(metrics: RunMetrics, cells: int, epoch: int | None) -> tuple[list[int], int]:
    """The checkpoints that a figure of one epoch keeps, and which is shown first: the epoch asked for, or the last.

    Raises UsageError where there is no such epoch.
    """
    ats = when(metrics)
    if epoch is not None and epoch not in ats:
        raise UsageError(f"No {unit(metrics)} {epoch} here; there are {', '.join(map(str, ats))}.")
    last = len(ats) - 1
    stride = -(-len(ats) * cells // MOST_CELLS)
    shown = last if epoch is None else ats.index(epoch)
    return sorted({*range(last, -1, -stride), shown}), ats[shown]


def _source(metrics: RunMetrics) -> str:
    return str(metrics.summary.get("accuracy_source", "probe"))


def _range(values: Sequence[float | None], least: float, limits: tuple[float, float]) -> list[float]:
    """A domain that holds the values with a margin, at least so wide, within limits."""
    there = [value for value in values if value is not None]
    low, high = (min(there), max(there)) if there else (0.0, 1.0)
    margin = max(0.08 * (high - low), (least - (high - low)) / 2, 0)
    low, high = max(limits[0], low - margin), min(limits[1], high + 2.4 * margin)
    return [round(low, 4), round(high, 4)]


def _regions(x: Sequence[float]) -> list[dict[str, Any]]:
    """The taxonomy's bands of mean integration, as far as they are in sight."""
    known = Taxonomy()
    edges = [0.0, known.rigid, known.partial, known.high, 1.0]
    names = ["rigidly|synchronised", "partial|integration", "transitional", "high|integration"]
    found = []
    for k, name in enumerate(names):
        low, high = max(edges[k], x[0]), min(edges[k + 1], x[1])
        if low < high:
            wide = high - low > 0.09 * (x[1] - x[0])
            found.append(
                {
                    "from": low,
                    "to": high,
                    "middle": (low + high) / 2,
                    "name": name if wide else "",
                    "shaded": k % 2 == 0,
                }
            )
    return found


def _float(value: float | None) -> float:
    return math.nan if value is None else float(value)
