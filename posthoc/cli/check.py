"""posthoc check: is this series of checkpoints what it says it is?"""

import itertools
import math
import re
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from posthoc.cli.exits import PARTLY, echo
from posthoc.cli.output import (
    json_option,
    notes,
    order_options,
    print_json,
    print_table,
    progress_on_stderr,
    report_skipped,
)
from posthoc.errors import PosthocError, StoppedError, UsageError
from posthoc.replay.meant import refuse_folder
from posthoc.shown import counted, listed

if TYPE_CHECKING:
    from posthoc.replay.series.remote import Mirror
    from posthoc.replay.series.result import Result
    from posthoc.replay.series.share import Share

REMOTE_SHARE = 0.05
"""Of what lies elsewhere so much is read by default."""


def is_url(place: str) -> bool:
    """Whether a place lies elsewhere.

    >>> is_url("https://host/run"), is_url("file:///run"), is_url("run"), is_url("C:/run")
    (True, True, False, False)
    """
    return bool(re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", place))


@click.command(name="check")
@click.argument("checkpoints", nargs=-1, required=True)
@click.option("--select", metavar="GLOB", help="Only names that match; # stands for a number.")
@order_options
@click.option("--weights-key", metavar="KEY", help="Where in each checkpoint the weights are, such as model.encoder.")
@click.option("--ema", is_flag=True, help="Of the moving average of the weights that the checkpoints hold.")
@click.option(
    "--against",
    metavar="OTHER",
    help="Say instead what the series OTHER is to this one: another training, its copy, continuation or average.",
)
@click.option(
    "--share",
    type=click.FloatRange(0, 1, min_open=True),
    metavar="PART",
    help="Read only the first part of each tensor, such as 0.1 (default: all of it, of what lies elsewhere 0.05).",
)
@json_option
def command(
    checkpoints: tuple[str, ...],
    as_json: bool,
    against: str | None,
    weights_key: str | None,
    ema: bool,
    share: float | None,
    **options: Any,
) -> None:
    """Say what is wrong with the series of CHECKPOINTS: copies, swaps, gaps, other runs' weights, broken numbers.

    Every byte is read once; no model and no probe is needed. Several folders are a series each, several files one.
    Safetensors may lie elsewhere (https://host/run/, s3://..., hf://...; needs the extra `remote`): only their headers and
    the first numbers of each tensor are fetched. Exits with 3 where there is a warning or an error.
    """
    if against is not None and len(checkpoints) > 1:
        raise UsageError("--against compares two series; give the folder of one, and of the other after --against.")
    given = (*checkpoints, *filter(None, [against]))
    here = [Path(place) for place in given if not is_url(place)]
    if share is not None and math.isnan(share):
        raise UsageError("--share nan: give a part of each tensor, above 0 and up to 1.")
    if absent := [path for path in here if not (path.exists() or path.is_symlink())]:
        raise PosthocError(f"No such file or folder: {absent[0]}.")
    if len(checkpoints) == 1 and not is_url(checkpoints[0]):
        refuse_folder(here[0], options["select"], options["placed"])
    from posthoc.replay.series.result import check_series
    from posthoc.replay.series.share import Share
    from posthoc.replay.weights import Pick

    part = Share(share or (REMOTE_SHARE if len(here) < len(given) else 1.0))
    options |= {"pick": Pick(weights_key, ema), "share": part}
    with ExitStack() as stack:
        paths, mirror = _reached(checkpoints, part, stack)
        if against is not None:
            (other,), others = _reached([against], part, stack)
            _compare(paths[0], other, as_json, [item for item in (mirror, others) if item], **options)
            return
        places = _places(paths)
        results: list[Result] = []
        skipped: list[tuple[str, str]] = []
        for place in places:
            try:
                with progress_on_stderr("reading") as progress:
                    shown = progress if sys.stderr.isatty() else None
                    result = _located(check_series(place, progress=shown, **options), mirror)
            except PosthocError as error:
                if len(places) == 1 or isinstance(error, (StoppedError, UsageError)):
                    raise
                name, reason = str(place), str(error)
                skipped.append((mirror.shown(name), mirror.shown(reason)) if mirror else (name, reason))
                continue
            if not as_json:
                if results:
                    echo()
                show_check(result)
            results.append(result)
    if as_json:
        contents = [result.to_dict() for result in results]
        print_json(contents[0] if len(places) == 1 else contents)
    report_skipped(skipped, done=bool(results))
    if not all(result.sound for result in results):
        sys.exit(PARTLY)


def _reached(places: Sequence[str], share: "Share", stack: ExitStack) -> tuple[tuple[Path, ...], "Mirror | None"]:
    """Where checkpoints lie on this machine; of those that lie elsewhere, copies that are gone when the stack is closed."""
    if not any(map(is_url, places)):
        return tuple(map(Path, places)), None
    if not all(map(is_url, places)):
        raise UsageError(
            "some checkpoints lie here and some elsewhere; give those of one series, or compare with --against."
        )
    from posthoc.replay.series.remote import mirrored

    with progress_on_stderr("fetching") as progress:
        mirror = stack.enter_context(mirrored(places, share, progress if sys.stderr.isatty() else None))
    return mirror.places, mirror


def _located(result: "Result", mirror: "Mirror | None") -> "Result":
    """The result with what lies elsewhere called by its address."""
    if mirror is None:
        return result
    notes = [mirror.shown(note) for note in result.run.notes]
    damaged = tuple((path, mirror.shown(reason)) for path, reason in result.run.damaged)
    if mirror.apart:
        notes.append(f"pickles are not read from elsewhere: {listed(mirror.apart)}")
    notes.append(f"{mirror.read / 1e6:.3g} MB were fetched")
    return replace(
        result, run=replace(result.run, notes=tuple(notes), damaged=damaged), place=mirror.shown(result.place)
    )


def _places(checkpoints: Sequence[Path]) -> list[Path | list[Path]]:
    """What makes a series each."""
    from posthoc.replay.listing import are_runs, run_folders

    if len(checkpoints) == 1:
        return [checkpoints[0]]
    if are_runs(checkpoints):
        return [folder for _, folder in run_folders(checkpoints)]
    return [list(checkpoints)]


def _compare(first: Path, second: Path, as_json: bool, mirrors: "Sequence[Mirror]", **options: Any) -> None:
    """Print what the second series is to the first."""
    from posthoc.replay.series.against import compare_series
    from posthoc.replay.series.words import RELATIONS

    result = compare_series(first, second, **options)
    if as_json:
        content = result.to_dict()
        for key, mirror in itertools.product(("first", "second"), mirrors):
            content[key] = mirror.shown(content[key])
        print_json(content)
        return
    echo(RELATIONS[result.relation])
    if result.shared:
        echo(f"The same weights: {listed([f'{one} and {other}' for one, other in result.shared])}.")
    if math.isfinite(result.cosine):
        echo(f"Largest cosine between the two {result.cosine:.2f} (0 between seeds, 1 at the same weights).")


def show_check(result: "Result") -> None:
    """The verdict, and a row for every finding, the worst first."""
    from posthoc.replay.series.words import read_part, sentence, untold, verdict, when

    run, series = result.run, result.series
    lines = [
        ("series", f"{result.place}, {run.span}, {counted(len(series.tensors), 'tensor')}, {series.bytes / 1e9:.3g} GB")
    ]
    lines += [] if series.share.is_whole else [("read", f"only {read_part(result)}")]
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
