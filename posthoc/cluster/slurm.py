"""Slurm: its batch scripts, and its commands."""

import functools
import math
import os
import re
import shlex
import subprocess
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from posthoc.cluster.jobs import Job, Queued, Resources
from posthoc.errors import PosthocError

REQUEUES = 20
"""How often a task that ran out of time is put back into the queue; each time it has got further."""
EVERY_JOB = ("account", "comment", "mail-type", "mail-user", "reservation", "export")
"""Options of a user's that all jobs are given; others are for arrays only."""
AFTER_REPLAY = f"""\
code=$?
# 138: time was nearly over (SIGUSR1) and the checkpoint in hand is written; the rest goes back into the queue.
if [ $code -eq 138 ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {REQUEUES} ]; then
    scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID" && exit
fi
# 3: checkpoints were skipped, as asked, and are written down.
if [ $code -eq 3 ]; then exit 0; fi
exit $code"""


def render(job: Job) -> str:
    """The script of an array, whose tasks run under srun, which hands signals on, or of a job of analysis."""
    resources, logs = job.resources, job.folder / "logs"
    options = _amounts(resources) | {
        "partition": job.partition, "nodes": 1, "chdir": Path.cwd(), "open-mode": "append", "requeue": True,
        "signal": f"USR1@{job.notice}",
    }  # fmt: skip
    if not job.tasks:
        del options["gpus-per-node"]
    options |= {name: value for name, value in resources.slurm if job.tasks or name in EVERY_JOB}
    if "no-requeue" in options:  # of the two the last would hold
        del options["requeue"]
    options |= {"job-name": job.name, "output": logs / f"{'%A_%a' if job.tasks else '%j'}_0_log.out"}
    lines = job.command.split("\n")
    if job.tasks:
        options["array"] = f"{_ranges(job.tasks)}%{resources.array_parallelism}"
        # --cpus-per-task is not inherited since Slurm 22.05, and alone would start as many tasks as fit the allocation.
        task = f"--ntasks=1 --cpus-per-task={options['cpus-per-task']} --export=ALL --open-mode=append"
        log = shlex.quote(str(logs / "%A_%a_%t_log.out"))
        lines = [f"srun --unbuffered --output {log} {task} {job.command}", *AFTER_REPLAY.split("\n")]
    head = [f"#SBATCH {option}" for option in _options(options, quote=True)]
    return "\n".join(["#!/bin/bash", *sorted(head), "", *resources.setup, *lines, ""])


def submit(script: Path, after: Collection[str]) -> str:
    """Hand a script to sbatch, to run when other jobs have ended, however they did; the job's id."""
    dependency = [f"--dependency=afterany:{':'.join(sorted(after))}"] if after else []
    return _run("sbatch", "--parsable", *dependency, str(script)).strip().split(";")[0]


def queue(out: Path) -> dict[str, Queued]:
    """This user's jobs and tasks that are waiting or running, by id: those whose scripts lie in `out`.

    Whatever a record says: a job that is called otherwise, or runs what is elsewhere, is not posthoc's.
    """
    words = ["squeue", "--noheader", "--all", "--array", f"--user={os.getuid()}", "--format=%i|%T|%r|%j|%o"]
    rows = [line.split("|", 4) for line in _run(*words).splitlines()]
    place = out.resolve()

    @functools.cache
    def resolved(folder: Path) -> Path:
        return folder.resolve()

    return {
        row[0]: Queued(row[1] == "PENDING", row[2])
        for row in rows
        if len(row) == 5
        and row[3].startswith("posthoc-")
        and resolved(Path(row[4].strip()).parent).is_relative_to(place)
    }


def cancel(job: str) -> None:
    """Take a job out of the queue."""
    _run("scancel", job)


def attend(command: Sequence[str], resources: Resources) -> "subprocess.CompletedProcess[str]":
    """Run a command as a task is run, after the setup, and wait for it."""
    options = _amounts(resources) | {"partition": resources.partition, **dict(resources.slurm)}
    shell = "\n".join([*resources.setup, f"exec {shlex.join(command)}"])
    words = ["srun", "--job-name=posthoc-timing", *_options(options), "bash", "-c", shell]
    environment = {**_outside(), "SLURM_CPUS_PER_TASK": str(resources.cpus_per_task)}
    return subprocess.run(words, capture_output=True, text=True, check=False, env=environment)


def largest() -> int:
    """The largest number that a task of an array may have."""
    setting = re.search(r"^MaxArraySize\s*=\s*(\d+)", _run("scontrol", "show", "config"), re.MULTILINE)
    return max(2, int(setting[1])) - 1 if setting else 1000


def _amounts(resources: Resources) -> dict[str, object]:
    """What a task is given, as options of sbatch and srun, which take whole numbers of memory only."""
    memory = resources.mem_gb or 0
    whole = f"{int(memory)}G" if memory == int(memory) else f"{math.ceil(1024 * memory)}M"
    return {
        "time": resources.timeout_min, "ntasks": 1, "cpus-per-task": resources.cpus_per_task,
        "mem": whole if memory else None, "gpus-per-node": resources.gpus_per_node,
    }  # fmt: skip


def _run(*words: str) -> str:
    """Output of one of Slurm's commands; raises PosthocError with what it complained of."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, env=_outside())
    except FileNotFoundError:
        raise PosthocError(
            f"There is no Slurm here (no {words[0]}); on other schedulers use posthoc extract --shard i/n."
        ) from None
    if done.returncode:
        reason = " ".join((done.stderr or done.stdout).split())
        raise PosthocError(f"{words[0]} failed: {reason}. The same command goes on from here once that is mended.")
    return done.stdout


def _outside() -> dict[str, str]:
    """The environment without what an allocation that this runs in, or a user's taste in listings, has put there."""
    return {
        name: value
        for name, value in os.environ.items()
        if name == "SLURM_CONF" or not name.startswith(("SLURM_", "SQUEUE_"))
    }


def _options(options: Mapping[str, object], quote: bool = False) -> list[str]:
    """Those that have a value, as they are typed."""
    texts = {name: shlex.quote(str(value)) if quote else str(value) for name, value in options.items() if value}
    return [f"--{name}" if options[name] is True else f"--{name}={text}" for name, text in texts.items()]


def _ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers as sbatch takes them.

    >>> _ranges([1, 2, 3, 5, 8, 9])
    '1-3,5,8-9'
    """
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(f"{first}-{last}" if last > first else f"{first}" for first, last in spans)
