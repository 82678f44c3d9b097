"""What the commands share: tables and notes on stdout, progress on stderr."""

import json
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from posthoc.cli.exits import FAILED, PARTLY, echo, write
from posthoc.errors import StoppedError
from posthoc.report.printing import FORMS, Column, Table, as_text, cell, column
from posthoc.shown import counted, shown


class _Amount(click.FloatRange):
    """A number from 0 up: neither infinite nor NaN, which no bound refuses."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is no amount; give a number from 0 up.", param, ctx)
        return number


AMOUNT = _Amount(min=0)
"""The type of options that are seconds, minutes or gigabytes."""


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options by which a user says what network the checkpoints are of."""
    names = (
        "torchvision:NAME, timm:NAME, transformers[:DIR] and diffusers[:DIR] (a config.json), FILE.py[:FACTORY] or package.module:FACTORY "
        "(default: recorded, a config.json beside the weights, or recognised)."
    )
    command = click.option("--model-arg", multiple=True, metavar="KEY=VALUE", help="Argument of the factory.")(command)
    return click.option("--model", metavar="MODEL", help=names)(command)


def order_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options by which a user says in which order the checkpoints are."""
    command = click.option(
        "--as", "placed", multiple=True, metavar="FILE=EPOCH", help="Give a checkpoint its place, such as init.pt=0."
    )(command)
    orders = click.Choice(["name", "inside"])
    return click.option("--order", type=orders, help="Go by the names, or by what is inside (default: as is certain).")(
        command
    )


@contextmanager
def progress_on_stderr(what: str) -> Iterator[Callable[[int, int, object], None]]:
    """Yield a callback (done, total, name): a bar with ETA on a terminal, plain lines in a log."""
    if not sys.stderr.isatty():
        first: list[tuple[int, float]] = []  # the first of all takes longer: libraries are loaded, and kernels compiled

        def line(done: int, total: int, name: object) -> None:
            now = time.monotonic()
            left = ""
            if str(name).endswith(", kept"):  # which takes no time
                first.clear()
            elif not first:
                first.append((done, now))
            elif first[0][0] < done < total:
                begun, at = first[0]
                left = f", about {(now - at) / (done - begun) * (total - done):.0f} s left"
            echo(f"{what} {done}/{total} {name}{left}", err=True)

        yield line
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn(what, markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total, name: bar.update(task, completed=done, total=total, description=shown(str(name)))


@contextmanager
def stop_on_signal() -> Iterator[threading.Event]:
    """Yield an event that SIGTERM or SIGUSR1 sets, in place of ending the program at once.

    Batch systems send them when a task is preempted or its time is nearly over. What is stopped so exits as the signal
    itself would have made it: with 128 and the signal's number.
    """
    stop, got = threading.Event(), []

    def note(number: int, frame: Any) -> None:
        got.append(number)
        stop.set()

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield stop
    except StoppedError as error:
        if got:
            error.exit_code = 128 + got[0]
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def flag_nonfinite(path: Path) -> None:
    """Say on stderr which checkpoints of an activations file have weights or activations that are not finite."""
    from posthoc.store import open_activations

    with open_activations(path) as file:
        for row, name in enumerate(file.checkpoints):
            parts = [counted(file.nonfinite_weights[row], "weight")] if file.nonfinite_weights[row] else []
            parts += [
                f"{counted(count[row], 'value')} of {layer}" for layer, count in file.nonfinite.items() if count[row]
            ]
            if parts:
                echo(f"{name}: not finite: {', '.join(parts)}", err=True)


def report_probe(path: Path) -> None:
    """How the network does on the probe: first the result, or why it may be the images' fault, then the first, best and last."""
    from posthoc.chance import doubt, ends, standing
    from posthoc.store import open_activations

    with open_activations(path) as file:
        caution, lines = doubt(file), ends(file)
        result = standing(file)
    if result and not caution:
        lines = [("result", result), *lines]
    if caution:
        lines = [("caution", caution), *lines]
    if lines:
        notes(lines)


def report_skipped(skipped: Sequence[tuple[str, str]], done: bool = True) -> None:
    """Name on stderr what was skipped and end with exit code 3, or with 1 where nothing was done; nothing where nothing was
    skipped."""
    for name, reason in skipped:
        echo(f"skipped {name}: {reason}", err=True)
    if skipped:
        sys.exit(PARTLY if done else FAILED)


def notes(lines: Sequence[tuple[str, str]], err: bool = False) -> None:
    """Print labelled lines."""
    width = max(len(label) for label, _ in lines)
    for label, text in lines:
        echo(f"{label:{width}s}  {text}", err=err)


def print_json(content: Any) -> None:
    """Print JSON, in which what is foreign is escaped; numbers that are not finite, which it does not have, are null."""
    from posthoc.analysis.stored import plain

    write(json.dumps(plain(content), indent=1, default=str, allow_nan=False) + "\n")


def print_tables(tables: Sequence[Table], form: str | None = None, columns: str | None = None) -> None:
    """Print tables one below the other, with titles and notes; form: None for a person, or one of `printing.FORMS`.

    columns: as --columns names those of the first table.
    """
    for place, table in enumerate(tables):
        if place:
            echo()
        chosen = None if place else columns
        if form is not None:
            write(FORMS[form](table.selected(chosen or "all")))
            continue
        echo(table.title)
        print_rows(table, chosen, "--columns all" if place == 0 else None)
        for note in table.below:
            echo(note)


def print_rows(table: Table, columns: str | None = None, how: str | None = "--columns all") -> None:
    """Print a table for a person, without its title and notes; what is absent or NaN shows as a dash.

    On a terminal it has as many columns as fit, the spare ones going first, with a line on those that are not shown and
    `how` to have them, and the rest wraps; elsewhere it has all, or those that `columns` names, and is never cut.
    """
    from rich.console import Console
    from rich.table import Column as RichColumn
    from rich.table import Table as Grid
    from rich.text import Text

    console = Console(highlight=False)
    gone: list[Column] = []
    if columns:
        table = table.selected(columns)
    elif console.is_terminal:
        table, gone = table.fitting(console.width)
    titles, rows = [column.title for column in table.columns], [[as_text(value) for value in row] for row in table.rows]
    grid = Grid(*(RichColumn(Text(shown(title))) for title in titles), box=None, pad_edge=False, header_style="bold")
    for place, first in zip(grid.columns, rows[0] if rows else titles, strict=True):
        place.justify = "left" if isinstance(first, str) else "right"
    for row in rows:
        grid.add_row(*(Text(shown(cell(value))) for value in row))
    if not console.is_terminal:
        console.width = max(1000, console.measure(grid).maximum)
    with console.capture() as printed:
        console.print(grid)
    write(printed.get())
    if gone:
        names = ", ".join(column.names[0] for column in gone)
        echo(f"not shown for want of room: {names}; a wider window{f' or {how}' if how else ''} shows them")


def print_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table of columns none of which is spare."""
    print_rows(Table("", list(map(column, header)), rows))


def checkpoint_table(checkpoints: Sequence[Any]) -> Table:
    """File, epoch, step and recorded numbers of the checkpoints of a run, in its order."""
    names = sorted({name for checkpoint in checkpoints for name in checkpoint.recorded})
    rows = [[c.path.name, c.epoch, c.step, *(c.recorded.get(name) for name in names)] for c in checkpoints]
    columns = [
        column("file"),
        column("epoch"),
        column("step"),
        *(column(recorded_title(name), spare=1) for name in names),
    ]
    return Table("Checkpoints", columns, rows)


def recorded_title(name: str) -> str:
    """Of a column of numbers that checkpoints recorded: a Trainer's epoch of 1.5 is not that by which they are ordered.

    >>> recorded_title("epoch"), recorded_title("loss")
    ('epoch recorded', 'loss')
    """
    return f"{name} recorded" if name in ("epoch", "step") else name


def as_records(table: Table) -> list[dict[str, Any]]:
    """The rows of a table of one name a column, as objects."""
    return [{column.names[0]: value for column, value in zip(table.columns, row, strict=True)} for row in table.rows]


@dataclass(frozen=True)
class Holding:
    """What a path holds: its kind, labelled lines, and tables by name."""

    kind: str
    lines: Sequence[tuple[str, str]]
    tables: dict[str, Table]

    def show(self, columns: str | None = None) -> None:
        """Print it for a person; `columns` are those of the first table."""
        notes(self.lines)
        for place, table in enumerate(self.tables.values()):
            echo()
            print_rows(table, None if place else columns, None if place else "--columns all")

    def to_dict(self) -> dict[str, Any]:
        """The content of --json."""
        lines: dict[str, list[str]] = {}
        for label, text in self.lines:
            lines.setdefault(label, []).append(text)
        return {"kind": self.kind, "about": lines} | {name: as_records(table) for name, table in self.tables.items()}


json_option = click.option("--json", "as_json", is_flag=True, help="Print it as JSON; docs/json.md says what is in it.")


def columns_option(name: str = "columns") -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The option by which a user says which columns of a table are shown."""
    words = "Of the table: titles, or names as in CSV, with commas between; or all (default: all; on a terminal as many as fit)."
    return click.option("--columns", name, metavar="NAMES", help=words)
