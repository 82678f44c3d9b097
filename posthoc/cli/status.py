"""posthoc status: what has become of submitted jobs."""

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from posthoc.cli.exits import echo
from posthoc.cli.output import print_table

if TYPE_CHECKING:
    from posthoc.cluster.status import Status

SHOWN = 50
"""Tasks that are listed, the failed first."""


@click.command(name="status")
@click.argument("output", type=click.Path(path_type=Path), default=Path("posthoc-runs"))
def command(output: Path) -> None:
    """Say of the submission into the folder OUTPUT what is done, running and failed, with reason and log of each.

    Exits with 1 if something failed.
    """
    sys.exit(1 if show_status(output).failed else 0)


def show_status(output: Path) -> "Status":
    """Print a table of the runs, one of the tasks that are not done, and what was skipped."""
    from posthoc.cluster.status import read_status

    status = read_status(output)
    rows = []
    for run in status.runs:
        states = Counter(task.state for task in run.tasks)
        counts = [states[state] for state in ("running", "waiting", "failed")]
        rows.append(
            [run.name, f"{run.replayed} of {run.count}", len(run.skipped), *counts, "yes" if run.measured else "no"]
        )
    print_table(["run", "replayed", "skipped", "running", "waiting", "failed", "measured"], rows)
    tasks = sorted(status.tasks, key=lambda task: ("failed", "unknown", "running", "waiting").index(task.state))
    if tasks:
        echo()
        shown = [[t.id, t.run, t.what, t.state, t.reason, str(t.log)] for t in tasks[:SHOWN]]
        print_table(["task", "run", "work", "state", "reason", "log"], shown)
        if len(tasks) > SHOWN:
            echo(f"and {len(tasks) - SHOWN} more")
    for run in status.runs:
        for name, reason in run.skipped:
            echo(f"skipped {run.name}/{name}: {reason}")
    return status
