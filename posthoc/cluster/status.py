"""What has become of a submission: from its parts, the queue and the logs."""

import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from posthoc.cluster.jobs import Queued
from posthoc.cluster.scheduler import scheduler_named
from posthoc.cluster.submission import RECORD, Submission, Target
from posthoc.errors import PosthocError
from posthoc.files import open_regular
from posthoc.parts import Parts
from posthoc.shards import Shard
from posthoc.store import Skipped, contents

LOG_BYTES = 20_000
"""Of the end of a log that is looked at."""
TELLING = ("posthoc: (?!stopped)", "CANCELLED|[Oo]ut [Oo]f [Mm]emory|oom|Killed", "[Ee]rror")
"""What stands in the line of a log that says why a task ended, the most telling first."""


@dataclass(frozen=True)
class Task:
    """A task that has not done all it had to; state: waiting, running, failed, unknown, or not submitted, which has no id."""

    run: str
    id: str
    what: str
    state: str
    reason: str
    log: Path


@dataclass(frozen=True)
class RunStatus:
    """A run: how many checkpoints it has and of how many there are parts, which were skipped and why, and its tasks.

    left_out: why none of it is replayed, where such runs are skipped.
    """

    name: str
    count: int
    replayed: int
    skipped: tuple[Skipped, ...]
    measured: bool
    tasks: tuple[Task, ...]
    left_out: str = ""


@dataclass(frozen=True)
class Status:
    """All runs of a submission, and the comparison's task where there is one that is not done."""

    runs: tuple[RunStatus, ...]
    comparison: Task | None

    @property
    def tasks(self) -> list[Task]:
        """All tasks that have not done all they had to."""
        tasks = [task for run in self.runs for task in run.tasks]
        return [*tasks, self.comparison] if self.comparison else tasks

    @property
    def done(self) -> bool:
        """Whether every run is measured, or left out, and compared if there are several."""
        return all(run.measured or run.left_out for run in self.runs) and self.comparison is None

    @property
    def failed(self) -> bool:
        """Whether a task ended before its work was done, or was not submitted: nothing comes of it by waiting."""
        return any(task.state in ("failed", "not submitted") for task in self.tasks)

    @property
    def code(self) -> int:
        """The exit code: 1 where something failed, 3 where all is done but what was skipped or left out, as asked."""
        if self.failed:
            return 1
        return 3 if self.done and any(run.left_out or run.skipped for run in self.runs) else 0

    def to_dict(self) -> dict[str, Any]:
        """The content of `posthoc status --json`."""
        content = {"done": self.done, "failed": self.failed, **asdict(self)}
        for run in content["runs"]:
            run["skipped"] = [{"file": name, "why": reason} for name, reason in run["skipped"]]
        return content


def read_status(out: Path) -> Status:
    """What has become of what was submitted into the folder `out`; raises PosthocError where nothing was."""
    submission = Submission.load(out.absolute())
    if submission is None:
        what = f"holds no {RECORD}" if out.is_dir() else "is no folder"
        raise PosthocError(
            f"{out} {what}, and posthoc submit leaves a {RECORD} in its output (posthoc-runs unless -o names another): "
            "give the folder of a submission, or submit first."
        )
    live: dict[str, Queued] | None
    scheduler = scheduler_named(submission.scheduler)
    try:
        live = scheduler.queue(submission.out)
    except PosthocError:
        live = None
    runs = tuple(_run_status(submission, target, live) for target in submission.targets)
    comparison = None
    if len(runs) > 1 and any(not run.left_out for run in runs) and not (submission.out / "comparison.txt").exists():
        comparison = _task(submission, None, submission.compare, "compare", live)
    return Status(runs, comparison)


def _run_status(submission: Submission, target: Target, live: dict[str, Queued] | None) -> RunStatus:
    home = submission.home(target)
    parts = Parts(home / "activations.h5")
    measured = (home / "metrics.json").exists()
    tasks = []
    count, replayed, skipped = target.count, 0, tuple(parts.skipped())
    if target.left_out:
        return RunStatus(target.title, count, replayed, skipped, measured, (), target.left_out)
    if parts.output.exists():
        try:
            replayed, skipped = contents(parts.output)
        except PosthocError as error:
            tasks.append(Task(target.title, "", "read", "failed", str(error), parts.output))
    else:
        progress = parts.progress()
        replayed = progress.replayed
        places = [*range(count), *(control.place for control in progress.controls)]
        missing = {k for k in progress.missing if k < count} | {*range(len(progress.checkpoints), count)}
        missing = set() if measured else missing  # who has the measures may throw the activations away
        for array in reversed(target.arrays):  # what was submitted last is answerable for what is missing
            of_shard: dict[int, set[int]] = {}
            for k in missing:
                of_shard.setdefault(Shard.of(k, array.count).index, set()).add(k)
            for shard in array.shards:
                if share := of_shard.pop(shard, set()):
                    total = sum(map(Shard(shard, array.count).has, places))
                    what = f"replay {shard}/{array.count}, {total - len(share)} of {total} done"
                    tasks.append(_task(submission, target, array.task(shard), what, live))
                missing -= share
        if missing:
            tasks.append(_task(submission, target, None, f"replay, 0 of {len(missing)} done", live))
    if not measured:
        tasks.append(_task(submission, target, target.finish, "measure", live))
    return RunStatus(target.title, count, replayed, skipped, measured, tuple(tasks))


def _task(
    submission: Submission, target: Target | None, id: str | None, what: str, live: dict[str, Queued] | None
) -> Task:
    name = target.title if target else "all"
    if id is None:
        return Task(name, "", what, "not submitted", "the same posthoc submit again", submission.out / RECORD)
    log = submission.log(target, id)
    if live is None:
        return Task(name, id, what, "unknown", "the queue cannot be asked here", log)
    if id in live:
        waits = live[id].waits
        return Task(name, id, what, "waiting" if waits else "running", live[id].reason if waits else "", log)
    return Task(name, id, what, "failed", _last_words(log), log)


def _last_words(log: Path) -> str:
    """The line of a log that says why its task ended; the last one if none does."""
    if log.is_symlink():
        return "its log is a link, and is not followed"
    if log.exists() and not log.is_file():
        return "its log is no file"
    try:
        with open_regular(log) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - LOG_BYTES))
            content = file.read(LOG_BYTES).decode(errors="replace")
            lines = [line.strip() for line in content.splitlines() if line.strip()]
    except (OSError, PosthocError):
        return "it left no log: cancelled before it began, or its node cannot write there"
    for pattern in TELLING:
        if telling := [line for line in lines[-8:] if re.search(pattern, line)]:
            return telling[-1]
    return lines[-1] if lines else "its log is empty"
