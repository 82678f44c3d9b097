"""posthoc check: is this series of checkpoints what it says it is?"""

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from posthoc.cli.exits import echo
from posthoc.cli.output import json_option, notes, order_options, print_json, print_table, progress_on_stderr
from posthoc.errors import PosthocError, UsageError
from posthoc.replay.meant import refuse_folder

if TYPE_CHECKING:
    from posthoc.replay.series.result import Result


@click.command(name="check")
@click.argument("checkpoints", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--select", metavar="GLOB", help="Only names that match; # stands for a number.")
@order_options
@click.option("--weights-key", metavar="KEY", help="Where in each checkpoint the weights are, such as model.encoder.")
@click.option("--ema", is_flag=True, help="Of the moving average of the weights that the checkpoints hold.")
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    metavar="OTHER",
    help="Say instead what the series OTHER is to this one: another training, its copy, continuation or average.",
)
@json_option
def command(
    checkpoints: tuple[Path, ...],
    as_json: bool,
    against: Path | None,
    weights_key: str | None,
    ema: bool,
    **options: Any,
) -> None:
    """Say what is wrong with the series of CHECKPOINTS: copies, swaps, gaps, other runs' weights, broken numbers.

    Every byte is read once; no model and no probe is needed. Several folders are a series each, several files one.
    Exits with 3 where there is a warning or an error.
    """
    if absent := [
        path for path in (*checkpoints, *filter(None, [against])) if not (path.exists() or path.is_symlink())
    ]:
        raise PosthocError(f"No such file or folder: {absent[0]}.")
    if len(checkpoints) == 1:
        refuse_folder(checkpoints[0], options["select"], options["placed"])
    from posthoc.replay.series.result import check_series
    from posthoc.replay.weights import Pick

    pick = Pick(weights_key, ema)
    if against is not None:
        if len(checkpoints) > 1:
            raise UsageError("--against compares two series; give the folder of one, and of the other after --against.")
        _compare(checkpoints[0], against, as_json, pick=pick, **options)
        return
    results = []
    for place in _places(checkpoints):
        with progress_on_stderr("reading") as progress:
            shown = progress if sys.stderr.isatty() else None
            results.append(check_series(place, pick=pick, progress=shown, **options))
    if as_json:
        contents = [result.to_dict() for result in results]
        print_json(contents[0] if len(contents) == 1 else contents)
    else:
        for number, result in enumerate(results):
            if number:
                echo()
            show_check(result)
    if not all(result.sound for result in results):
        sys.exit(3)


def _places(checkpoints: tuple[Path, ...]) -> list[Path | list[Path]]:
    """What makes a series each."""
    from posthoc.replay.listing import are_runs, run_folders

    if len(checkpoints) == 1:
        return [checkpoints[0]]
    if are_runs(checkpoints):
        return [folder for _, folder in run_folders(checkpoints)]
    return [list(checkpoints)]


def _compare(first: Path, second: Path, as_json: bool, **options: Any) -> None:
    """Print what the second series is to the first."""
    from posthoc.replay.series.against import compare_series
    from posthoc.replay.series.words import RELATIONS, listed

    result = compare_series(first, second, **options)
    if as_json:
        print_json(result.to_dict())
        return
    echo(RELATIONS[result.relation])
    if result.shared:
        echo(f"The same weights: {listed([f'{one} and {other}' for one, other in result.shared])}.")
    if math.isfinite(result.cosine):
        echo(f"Largest cosine between the two {result.cosine:.2f} (0 between seeds, 1 at the same weights).")


def show_check(result: "Result") -> None:
    """The verdict, and a row for every finding, the worst first."""
    from posthoc.replay.series.words import count, listed, sentence, untold, verdict, when

    run, series = result.run, result.series
    lines = [
        ("series", f"{run.folder}, {run.span}, {count(len(series.tensors), 'tensor')}, {series.bytes / 1e9:.3g} GB")
    ]
    lines += [("order", run.by)] if run.by else []
    lines += [("note", note) for note in run.notes]
    lines += [("set apart", f"{copy.name} (same weights as {original.name})") for copy, original in run.copies]
    lines += [("set apart", listed([f"{path.name} ({why})" for path, why in run.apart], 8))] if run.apart else []
    echo(verdict(result))
    echo()
    notes(lines)
    if result.findings:
        echo()
        rows = [[f.severity.name.lower(), f.kind.value, when(f, result), sentence(f, result)] for f in result.findings]
        print_table(["severity", "kind", result.unit, "what"], rows)
    if result.untold:
        echo()
    for what in result.untold:
        echo(f"Cannot tell {untold(what, result)}.")
