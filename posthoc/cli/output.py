"""What the commands share: tables and notes on stdout, progress on stderr."""

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from posthoc.cli.exits import echo, write
from posthoc.errors import StoppedError
from posthoc.report.printing import FORMS, Table, as_text, cell
from posthoc.shown import shown


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
        start = time.monotonic()

        def line(done: int, total: int, name: object) -> None:
            left = (time.monotonic() - start) / done * (total - done)
            echo(f"{what} {done}/{total} {name}, about {left:.0f} s left", err=True)

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
            parts = [f"{file.nonfinite_weights[row]} weights"] if file.nonfinite_weights[row] else []
            parts += [f"{count[row]} values of {layer}" for layer, count in file.nonfinite.items() if count[row]]
            if parts:
                echo(f"{name}: not finite: {', '.join(parts)}", err=True)


def report_probe(path: Path, remedy: Callable[[], str | None] | None = None) -> None:
    """How the network does on the probe: first why that may be the images' fault, then the first, best and last.

    `remedy` is asked, where there is a doubt, which other scaling does better.
    """
    from posthoc.chance import doubt, ends
    from posthoc.store import open_activations

    with open_activations(path) as file:
        caution, lines = doubt(file), ends(file)
    if caution:
        better = remedy() if remedy else None
        lines = [("caution", caution + (f"; {better}" if better else "")), *lines]
    if lines:
        notes(lines)


def report_skipped(skipped: Sequence[tuple[str, str]]) -> None:
    """Name on stderr what was skipped and end with exit code 3; nothing where nothing was."""
    for name, reason in skipped:
        echo(f"skipped {name}: {reason}", err=True)
    if skipped:
        sys.exit(3)


def notes(lines: Sequence[tuple[str, str]], err: bool = False) -> None:
    """Print labelled lines."""
    width = max(len(label) for label, _ in lines)
    for label, text in lines:
        echo(f"{label:{width}s}  {text}", err=err)


def print_tables(tables: Sequence[Table], form: str | None = None) -> None:
    """Print tables one below the other, with titles and notes; form: None for a person, or one of `printing.FORMS`."""
    for place, table in enumerate(tables):
        if place:
            echo()
        if form is not None:
            write(FORMS[form](table))
            continue
        echo(table.title)
        print_rows(table)
        for note in table.below:
            echo(note)


def print_rows(table: Table) -> None:
    """Print a table for a person, without its title and notes."""
    print_table([column.title for column in table.columns], table.rows)


def print_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table; what is absent or NaN shows as a dash. Never cut short: what is too wide for a terminal wraps."""
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    rows = [[as_text(value) for value in row] for row in rows]
    grid = Table(*(Column(Text(shown(title))) for title in header), box=None, pad_edge=False, header_style="bold")
    for column, first in zip(grid.columns, rows[0] if rows else header, strict=True):
        column.justify = "left" if isinstance(first, str) else "right"
    for row in rows:
        grid.add_row(*(Text(shown(cell(value))) for value in row))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(1000, console.measure(grid).maximum)
    with console.capture() as printed:
        console.print(grid)
    write(printed.get())


def checkpoint_table(checkpoints: Sequence[Any]) -> None:
    """File, epoch, step and recorded numbers of the checkpoints of a run, in its order."""
    names = sorted({name for checkpoint in checkpoints for name in checkpoint.header.recorded})
    rows = [[c.path.name, c.epoch, c.step, *(c.header.recorded.get(name) for name in names)] for c in checkpoints]
    print_table(["file", "epoch", "step", *names], rows)
