"""The jobs of a submission: what each of them runs, with every path absolute, and what it is given."""

import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

POSTHOC = shlex.join([sys.executable, "-P", "-m", "posthoc"])
"""The command, which imports nothing from the working directory."""


@dataclass(frozen=True)
class Resources:
    """What a task is given. setup: lines of shell before the work; slurm: any other option of sbatch.

    Jobs that merge, measure and compare need no GPU, and run in metrics_partition where there is one.
    """

    partition: str | None = None
    gpus_per_node: int | None = None
    cpus_per_task: int = 4
    mem_gb: float | None = None
    timeout_min: int = 60
    array_parallelism: int = 256
    metrics_partition: str | None = None
    setup: tuple[str, ...] = ()
    slurm: tuple[tuple[str, str | bool], ...] = ()

    @property
    def gpus(self) -> bool:
        """Whether tasks are given GPUs, by whatever option."""
        return bool(self.gpus_per_node) or any(
            name in ("gpus", "gpus-per-task", "gpus-per-node") or (name == "gres" and "gpu" in str(value))
            for name, value in self.slurm
        )


@dataclass(frozen=True)
class Job:
    """What a scheduler is to run: lines of shell, of an array one command.

    tasks: the numbers of an array's tasks, which the command finds in the variable `Scheduler.task`; none of a lone
    job. Job or task ID writes to `folder`/logs/ID_0_log.out. notice: so many seconds before the time is up an array's
    command takes SIGUSR1; it then ends with 138, and goes on when it is run again. Ended with 3 it has done all it could.
    """

    name: str
    folder: Path
    command: str
    resources: Resources
    tasks: tuple[int, ...] = ()
    notice: int = 60

    @property
    def partition(self) -> str | None:
        """Where it runs."""
        return (not self.tasks and self.resources.metrics_partition) or self.resources.partition


@dataclass(frozen=True)
class Queued:
    """A job or task that waits, or else runs; reason: what it waits for."""

    waits: bool
    reason: str = ""


def extract_job(
    home: Path,
    checkpoints: str,
    words: Sequence[str],
    resources: Resources,
    tasks: Sequence[int],
    shard: str,
    seconds: float | None,
) -> Job:
    """An array whose tasks replay a shard each, as shell has it; home: the folder of the run's results.

    seconds: what a checkpoint takes, if that is known; notice is given so long before the time is up.
    """
    command = f"{POSTHOC} extract {shlex.join([checkpoints, '-o', str(home / 'activations.h5'), *words])}"
    notice = int(min(max(120, 2 * (seconds or 0) + 30), 30 * resources.timeout_min))
    return Job(_name("replay", home), home, f'{command} --shard "{shard}"', resources, tuple(tasks), notice)


def finish_job(home: Path, measuring: Sequence[str], resources: Resources) -> Job:
    """The job that merges a run's parts and measures them, as far as that is not done."""
    activations, metrics = (shlex.quote(str(home / name)) for name in ("activations.h5", "metrics.json"))
    lines = [
        "set -e",
        f"test -e {activations} || {POSTHOC} merge {activations} || test $? -eq 3 # 3: all but what was skipped",
        f"test -e {metrics} || {POSTHOC} metrics {activations} -o {metrics} {shlex.join(measuring)}".rstrip(),
    ]
    return Job(_name("measure", home), home, "\n".join(lines), resources)


def compare_job(out: Path, resources: Resources) -> Job:
    """The job that compares all runs measured in `out`."""
    table, new = (shlex.quote(str(out / name)) for name in ("comparison.txt", ".comparison.txt.tmp"))
    command = f"{POSTHOC} compare {shlex.quote(str(out))}"
    compare = f"{command} --stopping > {new} || {command} > {new} # where no run has scores nothing says when to stop"
    return Job(
        _name("compare", out), out, "\n".join(["set -e", f"rm -f {new}", compare, f"mv {new} {table}"]), resources
    )


def _name(work: str, home: Path) -> str:
    return re.sub(r"[^\w.-]+", "-", f"posthoc-{work}-{home.name}")
