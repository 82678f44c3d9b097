"""What runs jobs: one record for each scheduler, in one table."""

import subprocess
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from posthoc.cluster import slurm
from posthoc.cluster.jobs import Job, Queued, Resources
from posthoc.errors import UsageError


@dataclass(frozen=True)
class Scheduler:
    """How jobs are run. Its functions raise PosthocError with what the scheduler complained of.

    task: the variable of the shell in which an array's task finds its number. render: a job's script. submit: hand a
    script over, to run when the jobs of these ids have ended, however they did; the job's id, letters, digits and
    points. queue: what waits or runs of this user's jobs whose scripts lie in a folder, by the id of a job, or of an
    array's task as JOB_NUMBER. cancel: take a job out of the queue. attend: run a command in the cluster at once, and
    wait. largest: the largest number that an array's task may have. misread: signs which mean something else in the
    names of logs.
    """

    task: str
    render: Callable[[Job], str]
    submit: Callable[[Path, Collection[str]], str]
    queue: Callable[[Path], dict[str, Queued]]
    cancel: Callable[[str], None]
    attend: Callable[[Sequence[str], Resources], "subprocess.CompletedProcess[str]"]
    largest: Callable[[], int] = lambda: 1000
    misread: str = ""


SCHEDULERS = {
    "slurm": Scheduler(
        "SLURM_ARRAY_TASK_ID", slurm.render, slurm.submit, slurm.queue, slurm.cancel, slurm.attend, slurm.largest, "%\\"
    )
}
"""By the name that posthoc submit --scheduler takes."""


def scheduler_named(name: str) -> Scheduler:
    """Raises UsageError where there is no such scheduler."""
    if name not in SCHEDULERS:
        raise UsageError(f"Unknown scheduler {name!r}; there is {', '.join(SCHEDULERS)}.")
    return SCHEDULERS[name]
