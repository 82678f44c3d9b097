"""posthoc status: what has become of submitted jobs."""

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from posthoc.cli.exits import echo
from posthoc.cli.output import json_option, print_json, print_rows, print_table
from posthoc.report.printing import Table, column
from posthoc.shown import counted

if TYPE_CHECKING:
    from posthoc.cluster.status import RunStatus, Status

STATES = ("failed", "not submitted", "unknown", "running", "waiting")
SHOWN_STATES = ("running", "waiting", "failed")
SHOWN = 50
"""Tasks that are listed, the failed first."""


@click.command(name="status")
@click.argument("output", type=click.Path(path_type=Path), default=Path("posthoc-runs"))
@json_option
def command(output: Path, as_json: bool) -> None:
    """Say of the submission into the folder OUTPUT what is done, running and failed, with reason and log of each.

    Exits with 1 if something failed or was not submitted, with 3 if all is done but what was left out or skipped.
    """
    from posthoc.cluster.status import read_status

    status = read_status(output)
    if as_json:
        print_json(status.to_dict())
    else:
        show_status(status)
    sys.exit(status.code)


def show_status(status: "Status") -> None:
    """Print how far all is, a table of the runs, one of the tasks that are not done, and what was skipped."""
    states = Counter(task.state for task in status.tasks)
    runs = len(status.runs)
    done = sum(run.measured for run in status.runs)
    replayed, count = sum(run.replayed for run in status.runs), sum(run.count for run in status.runs)
    told = [f"{states[state]} {state}" for state in STATES if states[state]]
    echo(
        f"{done} of {counted(runs, 'run')} measured, {replayed} of {counted(count, 'checkpoint')} replayed; tasks: {', '.join(told) or 'none left'}"
    )
    echo()
    columns = [
        column("run"),
        column("replayed"),
        *(column(name, spare=1) for name in ("skipped", *SHOWN_STATES)),
        column("measured"),
    ]
    print_rows(Table("Runs", columns, [_row(run) for run in status.runs]), how=None)
    tasks = sorted(status.tasks, key=lambda task: STATES.index(task.state))
    if tasks:
        echo()
        shown = [[t.id, t.run, t.what, t.state, t.reason, str(t.log)] for t in tasks[:SHOWN]]
        print_table(["task", "run", "work", "state", "reason", "log"], shown)
        if len(tasks) > SHOWN:
            echo(f"and {len(tasks) - SHOWN} more")
    for run in status.runs:
        if run.left_out:
            echo(f"left out {run.name}: {run.left_out}")
        for name, reason in run.skipped:
            echo(f"skipped {run.name}/{name}: {reason}")


def _row(run: "RunStatus") -> list[object]:
    states = Counter(task.state for task in run.tasks)
    replayed = f"{run.replayed} of {run.count}"
    return [
        run.name,
        replayed,
        len(run.skipped),
        *(states[state] for state in SHOWN_STATES),
        "left out" if run.left_out else "yes" if run.measured else "no",
    ]
