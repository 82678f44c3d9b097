"""posthoc report: metrics.json -> a page, a figure, or scalars."""

import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

from posthoc.cli.exits import echo
from posthoc.cli.inputs import require_metrics
from posthoc.cli.output import print_json
from posthoc.errors import PosthocError, UsageError, nearest
from posthoc.files import refuse_existing, try_output
from posthoc.report.names import MODULES

if TYPE_CHECKING:
    from collections.abc import Callable

    from posthoc.report.figures import Figure
    from posthoc.report.sources import Source


@click.command(name="report")
@click.argument("metrics", nargs=-1)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Default: report.html beside METRICS, or here for several runs.",
)
@click.option("--figure", metavar="NAME", help="Save one figure instead, as .svg, .png or .pdf.")
@click.option("--list", "listing", is_flag=True, help="Name the figures.")
@click.option("--json", "as_json", is_flag=True, help="Of --list: as JSON; docs/json.md says what is in it.")
@click.option("--epoch", type=int, help="Of a figure of one epoch: which (default: the last).")
@click.option("--width", type=click.IntRange(min=100), default=480, help="Of a saved figure, in points (1/72 inch).")
@click.option("--font", help="Of a saved figure (default: Helvetica or the like).")
@click.option("--dpi", type=click.IntRange(min=30), default=300, help="Of a saved .png.")
@click.option(
    "--audit",
    "audit_file",
    type=click.Path(path_type=Path),
    help="Default: audit.json beside METRICS, if it is of the same activations.",
)
@click.option(
    "--tensorboard",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Write the measures of every checkpoint as scalars under DIR/RUN instead.",
)
@click.option("--open", "show", is_flag=True, help="Open the page in the browser.")
@click.option("--force", is_flag=True, help="Replace an existing output.")
def command(
    metrics: tuple[str, ...],
    output: Path | None,
    figure: str | None,
    listing: bool,
    as_json: bool,
    epoch: int | None,
    width: int,
    font: str | None,
    dpi: int,
    audit_file: Path | None,
    tensorboard: Path | None,
    show: bool,
    force: bool,
) -> None:
    """One self-contained page about the runs in METRICS: metrics.json files, folders that hold some, or globs."""
    if as_json and not listing:
        raise UsageError("--json needs --list; what a report shows is in metrics.json.")
    if tensorboard is not None and (figure is not None or output is not None):
        raise UsageError("--tensorboard writes scalars into its own folder; ask for a page or a figure without it.")
    if tensorboard is None:
        _require_extra()
    if listing:
        _list(as_json)
        return
    if not metrics:
        raise UsageError("Which runs? Give metrics.json files, or folders that hold some.")
    if figure is not None:
        _refuse_figure(figure)
    if figure is not None and output is None:
        raise UsageError(f"Where to? Give -o {figure}.pdf, .svg or .png.")
    require_metrics(metrics)
    if output is not None:
        try_output(output, force)
    from posthoc.files import replacing
    from posthoc.report.sources import load_sources

    sources = load_sources(metrics, audit_file)
    if tensorboard is not None:
        _write_scalars(sources, tensorboard, force)
        return
    if figure is not None and output is not None:
        _refuse(output, sources, force)
        _save(figure, sources, output, epoch, width, dpi, font)
        return
    from posthoc.report.page import page

    if output is None:
        output = Path("report.html") if len(sources) > 1 else Path(sources[0].path).with_name("report.html")
    _refuse(output, sources, force)
    content = page(sources)
    with replacing(output) as temporary:
        temporary.write_text(content, encoding="utf-8", errors="backslashreplace")
    echo(output)
    if show:
        import webbrowser

        webbrowser.open(output.resolve().as_uri())


def _refuse_figure(name: str) -> None:
    """Raise UsageError for a figure that is not known, before altair is imported, which takes a second."""
    added = "posthoc.report.figures" in sys.modules  # there others may have been added
    if not added and name not in MODULES:
        raise UsageError(f"There is no figure {name!r}; {nearest(name, MODULES)}")


def _write_scalars(sources: "list[Source]", folder: Path, force: bool) -> None:
    from posthoc.report.scalars import NAME, write_scalars

    paths = [
        folder.joinpath(*Path(source.name).relative_to(Path(source.name).anchor).parts, NAME) for source in sources
    ]
    if not force and (existing := [path for path in paths if path.exists()]):
        raise PosthocError(f"{existing[0]} exists already; pass --force to replace it, or another folder.")
    for path in paths:
        try_output(path, force, make=True)
    for source, path in zip(sources, paths, strict=True):
        write_scalars(source.metrics, path)
        echo(path)


def _refuse(output: Path, sources: "list[Source]", force: bool) -> None:
    """Raise where the output exists and is not to be replaced, or is what is read from."""
    for source in sources:
        refuse_existing(output, force, Path(source.path))
    try_output(output, force)


def has_extra() -> bool:
    """Whether figures can be drawn."""
    return all(map(find_spec, ("altair", "vl_convert", "jinja2")))


def _require_extra() -> None:
    if not has_extra():
        raise PosthocError("Figures need the extra report: pip install 'posthoc[report]'.")


def _list(as_json: bool) -> None:
    from posthoc.report.figures import FIGURES

    if as_json:
        print_json([{"name": name, "about": kind.about, "of": kind.of.value} for name, kind in FIGURES.items()])
        return
    for name, kind in FIGURES.items():
        echo(f"{name:12s}  {kind.about} ({kind.of.value})")


def _save(
    name: str, sources: "list[Source]", output: Path, epoch: int | None, width: int, dpi: int, font: str | None
) -> None:
    """Write one figure and print what to say of it."""
    from posthoc.report.export import FONT, export

    build = _builder(name, sources, epoch)
    if epoch is not None and not build(width).epochs:
        raise UsageError(f"The figure {name} shows all epochs; --epoch goes with those of one.")
    figure = export(build, output, width, font or FONT, dpi / 72)
    for text in (figure.title + ".", figure.explanation, figure.caution):
        if text:
            echo(text)
    echo(output, err=True)


def _builder(name: str, sources: "list[Source]", epoch: int | None) -> "Callable[[int], Figure]":
    """What makes the figure of that name, of what was given, for panels of a width."""
    from posthoc.report.figures import FIGURES, Of
    from posthoc.report.sources import Several, as_runs

    if name not in FIGURES:
        raise UsageError(f"There is no figure {name!r}; {nearest(name, FIGURES)}")
    kind = FIGURES[name]
    if kind.of is Of.RUNS:
        if len(sources) < 2:
            raise UsageError(f"The figure {name} compares runs; give more than one metrics file.")
        return partial(kind.build, Several(as_runs(sources)))
    if len(sources) > 1:
        raise UsageError(f"The figure {name} is of one run, and these are {len(sources)}; give one.")
    if kind.of is Of.RUN:
        return partial(kind.build, sources[0].metrics, epoch)
    audit = sources[0].audit
    if audit is None:
        raise PosthocError(f"No audit.json of these activations lies beside {sources[0].path}; run `posthoc audit`.")
    return partial(kind.build, audit)
