"""The report: one page of HTML that needs nothing else."""

import functools
from collections.abc import Callable, Sequence
from functools import partial
from importlib.resources import files
from typing import Any

import jinja2
import numpy as np
import vl_convert
from markupsafe import Markup
from numpy.typing import NDArray

from posthoc import __version__
from posthoc.analysis.compare import Row
from posthoc.analysis.records import RunMetrics
from posthoc.analysis.stopping import unjudged
from posthoc.errors import PosthocError
from posthoc.report import tables, tables_of_runs
from posthoc.report.answers import LEGEND, MARKS, advice, happened, ill, matrix, well, which
from posthoc.report.figures import Figure, Kind, Of, figures_of
from posthoc.report.glossary import Glossary
from posthoc.report.printing import as_html
from posthoc.report.several import beyond_seeds, side_by_side
from posthoc.report.sources import Several, Source, as_runs
from posthoc.report.theme import config, on_page
from posthoc.report.words import (
    aside,
    finding,
    headlines,
    left_out,
    listed,
    network_at_start,
    number,
    probed,
    references,
    sentence_of,
    short,
)
from posthoc.shown import shown

FONT = "system-ui, sans-serif"
WIDTH = 600
PHONE = 320
"""Pixels of a panel before the page fits it to its place, and where that is narrow."""
SECTIONS = {"training": "first", "positions": "first", "audit": "audit", "locking": "pair", "similarity": "pair"}
"""Where figures stand, but for those of the rest."""


def page(sources: Sequence[Source]) -> str:
    """The report on one run, or on several: first all beside each other, then each by itself."""
    several = Several(as_runs(sources))
    charts: dict[str, Any] = {}
    glossary = Glossary(source.metrics for source in sources)
    overview = _overview(several, charts) if len(sources) > 1 else None
    sections = [
        _run(source, row, charts, f"run{k}") for k, (source, row) in enumerate(zip(sources, several.rows, strict=True))
    ]
    ats = sorted({at for source in sources for at in source.metrics.when})
    known = [at for source in sources for at in np.array(source.metrics.when)[_known(source.metrics)].tolist()]
    units = {source.metrics.summary.unit for source in sources}
    folder = files("posthoc.report")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, finalize=_shown)
    environment.filters |= {"term": glossary.term, "marked": glossary.marked}
    template = environment.from_string((folder / "page.html").read_text())
    return template.render(
        name=_title(sources),
        overview=overview,
        runs=sections,
        unit=" or ".join(sorted(units)),
        samples=" or ".join(sorted({source.metrics.recording.provenance.samples for source in sources})),
        at_start=" or ".join(sorted({network_at_start(source.metrics) for source in sources})),
        ats=ats,
        chosen=max(known, default=ats[-1]),
        charts=charts,
        glossary=glossary.entries,
        marks=MARKS,
        legend=LEGEND,
        version=__version__,
        style=Markup((folder / "page.css").read_text()),
        script=Markup((folder / "page.js").read_text()),
        vega=Markup(_vega()),
    )


def _title(sources: Sequence[Source]) -> str:
    """The models, of what they were asked, and the name of the run or how many there are."""
    recordings = [source.metrics.recording for source in sources]
    models = dict.fromkeys(of.provenance.model.rsplit("/", 1)[-1] for of in recordings)
    probes = dict.fromkeys(of.provenance.probe.rsplit("/", 1)[-1] for of in recordings)
    about = f"{listed(list(models))} on {listed(list(probes))}" if len(models) < 4 and len(probes) < 4 else ""
    named = f"{len(sources)} runs" if len(sources) > 1 else sources[0].name
    return f"{about} ({named})" if about else named


def _known(metrics: RunMetrics) -> NDArray[np.bool_]:
    """At which checkpoints a measure that leads the tables has a value, [E]."""
    known = np.zeros(len(metrics.checkpoints), dtype=bool)
    for measured in metrics.measures.values():
        known |= measured.headline & np.isfinite(measured.value)
    return known


def _shown(value: Any) -> Any:
    """What comes from elsewhere as it is shown to a person; the page's own parts as they are."""
    return shown(value) if isinstance(value, str) and not isinstance(value, Markup) else value


@functools.cache
def _vega() -> str:
    """Vega, Vega-Lite and Vega-Embed for a script element; making it takes as long as a page's figures."""
    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return bundle.replace("</script", "<\\/script")


def _place(
    kind: Kind, build: Callable[[int], Figure], charts: dict[str, Any], run: str, told: set[str]
) -> dict[str, Any]:
    """What the template shows of a figure; its specification goes to `charts`, and a remark that was `told` is not again."""
    figure = build(WIDTH)
    key = f"{run}-{figure.name}"
    charts[key] = _chart(figure, 720)
    if kind.reflows or figure.columns > 1:
        charts[key]["narrow"] = _chart(build(PHONE), 430)
    remark = "" if figure.remark in told else figure.remark
    told.add(remark)
    return {"id": key, "name": figure.name, "title": figure.title, "explanation": figure.explanation, "remark": remark,
            "doubtful": listed(list(figure.verdicts)), "verdicts": " ".join(figure.verdicts.values()), "chosen": bool(figure.epochs)}  # fmt: skip


def _chart(figure: Figure, width: int) -> dict[str, Any]:
    """What the page's script draws; width: about that of the whole, by which labels are cut."""
    spec = on_page(figure.specification)
    spec["config"] = on_page({**spec.get("config", {}), **config(FONT, 12, width), "background": "transparent"})
    spec["padding"] = {"left": 5, "top": 5, "right": 5, "bottom": 16}  # Vega makes high columns of panels too low
    for parameter in spec.get("params", []):
        parameter.pop("bind", None)  # the page's own slider
    return {"spec": spec, "epochs": figure.epochs, "columns": figure.columns, "widest": figure.widest}


def _overview(several: Several, charts: dict[str, Any]) -> dict[str, Any]:
    figures, missing, told = [], [], set[str]()
    for name, kind in figures_of(Of.RUNS).items():
        try:
            if several.judged or name != "stopping":  # without any score, no rule is judged
                figures.append(_place(kind, partial(kind.build, several), charts, "all", told))
        except PosthocError as error:
            missing.append(f"{name}: {error}")
    return {
        "figures": figures,
        "missing": missing,
        "first": beyond_seeds(several),
        "table": side_by_side(several.rows),
        "stopping": as_html(tables_of_runs.stopping(several.scores, unjudged(several.runs)))
        if several.comparable
        else None,
    }


def _run(source: Source, row: Row, charts: dict[str, Any], key: str) -> dict[str, Any]:
    """Everything the template says of one run."""
    metrics, told = source.metrics, set(left_out(source.metrics))
    figures, missing = [], []
    for name, kind in (figures_of(Of.RUN) | figures_of(Of.AUDIT)).items():
        if kind.of is Of.AUDIT:
            if source.audit:
                figures.append(_place(kind, partial(kind.build, source.audit), charts, key, told))
        elif not kind.fits or kind.fits(metrics):
            try:
                figures.append(_place(kind, partial(kind.build, metrics, None), charts, key, told))
            except PosthocError as error:
                missing.append(f"{name}: {error}")
    places: dict[str, list[dict[str, Any]]] = {name: [] for name in ("first", "audit", "pair", "rest")}
    for figure in figures:
        places[SECTIONS.get(figure["name"], "rest")].append(figure)
    return {
        "name": source.name,
        "unit": metrics.summary.unit,
        "noun": metrics.summary.noun,
        "doubt": metrics.summary.doubt,
        "happened": [*happened(metrics), *left_out(metrics)],
        "ill": ill(metrics),
        "well": well(metrics),
        "which": which(metrics),
        "matrix": matrix(metrics),
        "advice": advice(metrics, source.audit),
        "state": row.state if "integration" in metrics.measures else None,
        "last": tables.at_last(metrics) if metrics.axis.intervals else [],
        "means": _means(metrics),
        "sentences": _sentences(metrics),
        "conclusions": source.audit.conclusions if source.audit else (),
        "nulls": {null: words.short for null, words in metrics.nulls.items()},
        "figures": places,
        "missing": missing,
        "about": _about(metrics),
        "checkpoints": _checkpoints(metrics),
    }


def _means(metrics: RunMetrics) -> str:
    """The headline measures over the run, in a sentence; of documents, whose measures are given at the last checkpoint, none."""
    if metrics.axis.intervals:
        return ""
    return sentence_of(
        ", ".join(
            f"{'mean ' if metrics.trained.sum() > 1 else ''}{m.symbol} {number(m.summary.mean, m.digits)}"
            for m in headlines(metrics).values()
        )
    )


def _sentences(metrics: RunMetrics) -> list[str]:
    """Whether the measures differ from their deciding null, what they are under the others, and what stepped aside."""
    findings = [text for key in headlines(metrics) if (text := finding(metrics, key))]
    findings += [f"For reference, {text}." for _, text in references(metrics)]
    return [*findings, *(f"{sentence_of(why)[:-1]}: {what}." for why, what in aside(metrics))]


def _checkpoints(metrics: RunMetrics) -> dict[str, Any]:
    """The table of checkpoints, the untrained ones marked."""
    table = as_html(tables.checkpoints(metrics))
    table["columns"] = [short(metrics, title) for title in table["columns"]]
    for row, checkpoint in zip(table["rows"], metrics.checkpoints, strict=True):
        row[0] += f" ({metrics.at_start})" if checkpoint.untrained else ""
    return table


def _about(metrics: RunMetrics) -> list[tuple[str, str]]:
    """What was analysed, in labelled lines."""
    protocol, identity, provenance = metrics.protocol, metrics.recording.identity, metrics.recording.provenance
    layers = ", ".join(layer.name for layer in identity.layers)
    versions = {**provenance.versions, **metrics.versions}
    lines = [
        ("activations", metrics.input.path),
        ("sha256", metrics.input.sha256),
        ("checkpoints", f"{len(metrics.when)}, {metrics.summary.unit} {metrics.when[0]} to {metrics.when[-1]}"),
        ("model", f"{provenance.model} ({provenance.source})"),
        ("layers", layers),
        ("probe", f"{provenance.probe}, {probed(metrics.recording)}"),
        ("probe sha256", metrics.input.probe_sha256),
        ("device", f"{identity.device}, {identity.dtype}, batches of {identity.batch_size}"),
        ("protocol", f"{protocol.name}, {protocol.axis} axis, signal {protocol.signal}, smoothing {protocol.smooth}, "
                     f"scales {', '.join(map(str, metrics.scales))}, fluctuation {protocol.fluctuation}, "
                     f"estimator {protocol.estimator}"
                     + (", calibrated" if protocol.calibrate else "")),
        ("constants", f"H_opt {protocol.h_opt}, sigma_H {protocol.sigma_h}, w_H {protocol.w_h}, window {protocol.window}, "
                      f"threshold {protocol.threshold}"),
        ("nulls", f"{metrics.summary.draws} draws to begin with, seed {metrics.summary.seed}"),
        ("versions", ", ".join(f"{name} {value}" for name, value in versions.items() if value)),
        ("measured", metrics.created),
    ]  # fmt: skip
    about = {
        "recipe": provenance.recipe,
        "data set": provenance.dataset,
        "training seed": provenance.training_seed,
    }
    lines += [
        (f"measure {key}", f"{measured.code.file or 'a function'}:{measured.code.function}, sha256 {measured.code.sha256}")
        for key, measured in metrics.measures.items() if measured.code
    ]  # fmt: skip
    return lines + [(name, str(value)) for name, value in about.items() if value is not None]
