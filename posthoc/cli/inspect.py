"""posthoc inspect: what is this file or folder?"""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from posthoc.cli.audit import show_audit
from posthoc.cli.exits import echo
from posthoc.cli.inputs import NAMES, kind_of
from posthoc.cli.output import (
    Holding,
    checkpoint_table,
    columns_option,
    json_option,
    model_options,
    notes,
    order_options,
    print_json,
    print_rows,
    recorded_title,
)
from posthoc.errors import PosthocError, UsageError
from posthoc.replay.meant import refuse_folder, refuse_model
from posthoc.report.printing import Table, column
from posthoc.shown import counted

if TYPE_CHECKING:
    from posthoc.analysis.arrays import FloatArray
    from posthoc.replay.layout import Run
    from posthoc.replay.models import Model
    from posthoc.store import Activations


@click.command(name="inspect")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--layers", is_flag=True, help="List the hook points of the checkpoints' model.")
@click.option("--probe", metavar="NAME", help="With --layers: for samples of that probe (default: images, or tokens).")
@click.option("--select", metavar="GLOB", help="Of a folder, only names that match; # stands for a number.")
@order_options
@click.option("--weights-key", metavar="KEY", help="Where in each checkpoint the weights are, such as model.encoder.")
@click.option("--ema", is_flag=True, help="Of the moving average of the weights.")
@model_options
@columns_option()
@json_option
def command(path: Path, columns: str | None, as_json: bool, **options: Any) -> None:
    """Say what PATH holds: a checkpoint folder, a checkpoint, an activations file, a metrics file or an audit."""
    if not os.path.lexists(path):
        raise PosthocError(f"No such file or folder: {path}.")
    kind = kind_of(path)
    if not kind and path.suffix in (".h5", ".hdf5"):
        kind = "hdf5"
    if kind == "json":
        raise PosthocError(
            f"{path} is not a metrics file, an audit or a checkpoint, but other JSON; give one of these."
        )
    if kind:
        _refuse_idle(path, {**options, "columns": columns if kind == "audit" else None}, kind)
    if kind == "metrics":
        _metrics(path, columns, as_json)
        return
    if kind == "audit":
        _audit(path, as_json)
        return
    holding = _activations(path) if kind else _checkpoints(path, **options)
    if as_json:
        print_json(holding.to_dict())
    else:
        holding.show(columns)


def _refuse_idle(path: Path, options: Mapping[str, Any], kind: str) -> None:
    """Raise UsageError for the first of the options that are given, though such a file has nothing they are of."""
    for parameter in click.get_current_context().command.params:
        if options.get(parameter.name or ""):
            raise UsageError(f"{parameter.opts[0]} does nothing for {NAMES[kind]}, which {path} is; leave it out.")


def _checkpoints(
    path: Path,
    *,
    layers: bool,
    probe: str | None,
    select: str | None,
    order: str | None,
    placed: Sequence[str],
    weights_key: str | None,
    ema: bool,
    model: str | None,
    model_arg: Sequence[str],
) -> Holding:
    if probe and not layers:
        raise UsageError("--probe needs --layers.")
    refuse_folder(path, select, placed)
    refuse_model(model)
    from posthoc.replay.duplicates import settle_duplicates
    from posthoc.replay.layout import find_run
    from posthoc.replay.request import OnDuplicate, parse_arguments
    from posthoc.replay.weights import Pick

    pick = Pick(weights_key, ema)
    run = find_run(path, select, pick, order=order, placed=placed)
    run = settle_duplicates(run, pick, OnDuplicate.DROP)
    from posthoc.replay.models import resolve_model  # with torch, which what is wrong with a run need not wait for
    from posthoc.replay.plan import about_order, aside

    header = run.checkpoints[0].header
    try:
        network = resolve_model(
            header, model, run.about.get("model"), parse_arguments(model_arg), run.checkpoints[0].path
        )
        name = network.title
        if layers:
            return _hook_points(network, run, probe)
    except PosthocError as error:
        if layers or model:
            raise
        name = f"unknown. {error}"
    values = sum(math.prod(shape) for shape in header.shapes.values())
    listing = [("run", f"{path}, {run.span}"), ("model", name)]
    listing += [*about_order(run), *aside(run)]
    listing.append(("tensors", f"{len(header.shapes)}, {counted(values, 'value')}"))
    listing += [
        (key, str(run.about[key])) for key in ("recipe", "dataset", "normalization", "seed") if key in run.about
    ]
    listing += _settings(run.about.get("settings") or {})
    tables = {"checkpoints": checkpoint_table(run.checkpoints)}
    if path.is_file():
        rows = [[key, "x".join(map(str, shape)) or "scalar"] for key, shape in header.shapes.items()]
        tables["tensors"] = Table("Tensors", [column("tensor"), column("shape")], rows)
    return Holding("checkpoints", listing, tables)


def _hook_points(network: "Model", run: "Run", probe: str | None) -> Holding:
    """The modules whose outputs can be recorded: what each gives for one sample, and what part of the network it is."""
    from posthoc.replay.layers import parts_of
    from posthoc.replay.probes import Asked, Probe, load_probe
    from posthoc.replay.probes.fitting import fit_images, traced, usual_size
    from posthoc.replay.transformers import example_tokens

    tokens = example_tokens(network.module)
    if probe or tokens:
        asked = Asked(probe or "", recorded=run.about, beside=run.beside)
        loaded = load_probe(asked, network) if probe else Probe(tokens or {}, name="tokens")
        anatomy, prepared = loaded.anatomy or traced(network, loaded), dict(loaded.notes).get("inputs")
        sample = f"{loaded.name} ({loaded.shapes}{f'; {prepared}' if prepared else ''})"
    else:
        size, channels, anatomy = fit_images(network, run.about.get("image_size") or usual_size(network.module), 32)
        sample = f"images of {size} x {size} x {channels}"
    lines = [("model", network.title), ("sample", f"{sample}; a name in brackets: hands on the same output")]
    parts = parts_of(anatomy.points)
    rows = [
        [p.name, p.kind, p.size, parts.get(p.name, ""), p.parameters, p.calls, f"({p.same_as})" if p.same_as else ""]
        for p in anatomy.points
    ]
    columns = [
        column("hook point", "name"),
        *map(column, ("type", "output", "part", "parameters", "calls")),
        column("", "same_as"),
    ]
    return Holding("layers", lines, {"layers": Table("Hook points", columns, rows)})


def _samples(file: "Activations") -> str:
    tokens = file.tokens
    of = "" if tokens is None else f" of {tokens.shape[1]} tokens"
    return f"{len(file.labels)} {file.recording.provenance.samples}{of}"


def _classes(count: int | None) -> str:
    return "no labels, " if count is None else f"{counted(count, 'class')}, "


def _activations(path: Path) -> Holding:
    from posthoc.recording import apart
    from posthoc.store import open_activations

    with open_activations(path) as file:
        identity, provenance = file.recording.identity, file.recording.provenance
        listing = [
            (
                "activations",
                f"{path}, {counted(len(file), 'checkpoint')}, {counted(len(file.units), 'channel')}, {_samples(file)}",
            ),
            (
                "created",
                f"{file.created}, {identity.device}, {identity.dtype}, torch {provenance.versions.get('torch')}",
            ),
            ("model", f"{provenance.model} ({provenance.source})"),
            (
                "probe",
                f"{provenance.probe}, {_classes(identity.probe.classes)}sha256 {file.probe_sha256[:12]}",
            ),
            ("layers", ", ".join(f"{layer} ({len(file.channels[layer])})" for layer in file.layers)),
            ("signals", ", ".join(file.signals)),
            *_settings(provenance.settings),
        ]
        if file.behaviours:
            listing.append(("behaviour", ", ".join(file.behaviours)))
        if file.weights:
            spectra = ", stable ranks and Hill alphas" * file.recording.identity.spectra
            listing.append(("weights", f"{counted(len(file.weights), 'tensor')}, their norms and sketches{spectra}"))
        if file.averaged:
            listing.append(
                ("averages", f"loss of the mean of the weights of the last {', '.join(map(str, file.averaged))}")
            )
        if file.nulls:
            listing.append(("controls", ", ".join(file.nulls)))
        if differences := apart(file.provenances):
            listing.append(("made under", "; ".join(differences)))
        if len(file.untrained_seeds):
            seeds = ", ".join(map(str, file.untrained_seeds[:5])) + (", ..." if len(file.untrained_seeds) > 5 else "")
            count = counted(len(file.untrained_seeds), "initialisation")
            listing.append(("untrained", f"{count} as controls, of seed {seeds}"))
        columns = _columns(file)
        rows = [
            [file.checkpoints[e], *(None if n < 0 else int(n) for n in (file.epochs[e], file.steps[e])),
             *(float(column[e]) for column in columns.values())]
            for e in range(len(file))
        ]  # fmt: skip
        tables = {"checkpoints": Table("Checkpoints", [*map(column, ("file", "epoch", "step", *columns))], rows)}
        if file.skipped:
            tables["skipped"] = Table("Skipped", [column("skipped", "file"), column("why")], file.skipped)
        return Holding("activations", listing, tables)


def _columns(file: "Activations") -> "dict[str, FloatArray]":
    """What was measured on the probe and what the checkpoints recorded, [E], under the titles of columns."""
    loss = "loss" if file.labelled else file.recording.provenance.loss
    probe = {loss: file.loss, "accuracy": file.accuracy, **file.scores}
    there = {f"probe {key}": column for key, column in probe.items() if file.labelled or (column == column).any()}
    return there | {recorded_title(name): column for name, column in file.recorded.items()}


def _audit(path: Path, as_json: bool) -> None:
    from posthoc.analysis.responses import load_audit

    result = load_audit(path)
    if as_json:
        print_json(result.to_dict())
        return
    notes([
        ("audit", str(path)),
        ("of", f"{result.path}, sha256 {result.sha256[:12]}"),
        ("probe", f"{result.probe}, {result.samples} {result.called}"),
        ("protocol", f"{result.protocol.name}, smoothing {result.protocol.smooth}"),
    ])  # fmt: skip
    echo()
    show_audit(result)


def _metrics(path: Path, columns: str | None, as_json: bool) -> None:
    from posthoc.analysis.records import load_metrics
    from posthoc.report import tables

    metrics = load_metrics(path)
    if as_json:
        print_json(metrics.to_dict())
        return
    identity, provenance = metrics.recording.identity, metrics.recording.provenance
    notes([
        ("metrics", f"{path}, {metrics.created}"),
        ("of", f"{metrics.input.path}, sha256 {metrics.input.sha256[:12]}"),
        ("model", provenance.model),
        ("probe", f"{provenance.probe}, {identity.probe.samples} {provenance.samples}"),
        *tables.summary(metrics),
    ])  # fmt: skip
    echo()
    print_rows(tables.checkpoints(metrics), columns)


def _settings(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How the run was trained, where that is recorded, as label and text."""
    return [("settings", ", ".join(f"{key} {value}" for key, value in settings.items()))] if settings else []
