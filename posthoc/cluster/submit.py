"""Submitting what is missing: of each run the shards without parts, and the jobs that wait for them."""

import contextlib
import functools
import json
import math
import os
import re
import shlex
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posthoc.cluster.scripts import Resources, compare_script, extract_script, finish_script
from posthoc.cluster.submission import Array, Submission, Target, outside, queue, slurm
from posthoc.errors import PosthocError, UsageError
from posthoc.files import replacing
from posthoc.locks import hold
from posthoc.own import open_lock, own_folder, refuse_link, remove
from posthoc.parts import Entry, Parts, controls_of
from posthoc.store import open_activations

TIMING = "import json, sys; from posthoc.replay.run import time_checkpoint; print(time_checkpoint(**json.loads(sys.argv[1])))"


@dataclass(frozen=True)
class Work:
    """What is to be done with each run, and in how many pieces.

    extraction: options of `plan_extraction`; words: the same, as they are typed; measuring: those of `posthoc metrics`.
    """

    extraction: dict[str, Any]
    words: tuple[str, ...]
    measuring: tuple[str, ...] = ()
    skip_errors: bool = False
    jobs: int = 16
    minutes_per_task: float = 10.0
    seconds_per_checkpoint: float | None = None


def submit(
    folders: Sequence[tuple[str, Path]],
    out: Path,
    work: Work,
    resources: Resources,
    *,
    force: bool = False,
    dry_run: bool = False,
    say: Callable[[str], None] = print,
) -> Submission:
    """Submit what is missing of these runs, names and folders, and is in no queue; `say` is told, line by line.

    Raises PosthocError where Slurm refuses a job: what was submitted before is written down, and the same call goes on
    from there.
    """
    out = out.absolute()
    places = [str(Path.cwd()), str(out), *(text for name, folder in folders for text in (name, str(folder)))]
    if unfit := [text for text in (*places, *work.words, *work.measuring) if _acts(text)]:
        raise UsageError(f"{unfit[0]!r} has a line's end or another control character, which no batch script may hold.")
    if any(set("%\\") & set(text) for text in (str(out), *(name for name, _ in folders))):
        raise UsageError(
            f"Slurm reads % and \\ in the names of logs otherwise; {out} or a run has one: choose another -o."
        )
    if dry_run:
        return _submit(folders, out, work, resources, force, dry_run, say)
    with _alone(out):
        return _submit(folders, out, work, resources, force, dry_run, say)


@contextlib.contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Keep a second `submit` into the same folder out."""
    with own_folder(out.resolve(), shared=True) as folder:
        try:
            lock = open_lock(folder, out)
        except OSError as error:
            raise PosthocError(f"Cannot write into {out}: {error.strerror or error}.") from error
        try:
            hold(lock)
        except BlockingIOError:
            raise PosthocError(f"Another posthoc submit is at work in {out}; wait for it.") from None
        try:
            yield
        finally:
            os.close(lock)


def _submit(
    folders: Sequence[tuple[str, Path]],
    out: Path,
    work: Work,
    resources: Resources,
    force: bool,
    dry_run: bool,
    say: Callable[[str], None],
) -> Submission:
    submission = Submission.load(out) or Submission(out, list(work.words), list(work.measuring))
    there = [*submission.words, *submission.measuring]
    if there != [*work.words, *work.measuring] and not force:
        raise PosthocError(
            f"{out} was submitted with other options ({shlex.join(there) or 'none'}); "
            f"choose another -o, or pass --force to start anew."
        )
    desk = _Desk(submission, work, resources, dry_run, say, set())
    desk.look()
    targets = [desk.target(name, folder.absolute()) for name, folder in folders]
    if force and there != [*work.words, *work.measuring] and len(targets) < len(submission.targets):
        raise UsageError(f"{out} has other runs of other options; give all of them with --force, or another -o.")
    planned = [desk.plan(target, force) for target in targets]  # and timed, all of them before anything is done
    desk.look()
    if force:
        desk.start_anew(targets)
    submitted = [desk.submit_run(target, plan) for target, plan in zip(targets, planned, strict=True) if plan]
    pending = submission.compare in desk.live or (out / "comparison.txt").exists()
    if len(submission.targets) > 1 and (any(submitted) or not pending):
        desk.submit_comparison()
    return submission


@dataclass(frozen=True)
class _Planned:
    """A run's checkpoints, which of them have no part, and how long one takes, if that is known.

    controls: the places (-1, -2, ...) of the untrained networks that have no part.
    """

    entries: list[Entry]
    missing: list[int]
    seconds: float | None
    controls: list[int]


@dataclass
class _Desk:
    """One call of `submit`: what it is to do, and what Slurm said when it began."""

    submission: Submission
    work: Work
    resources: Resources
    dry_run: bool
    say: Callable[[str], None]
    live: set[str]

    def look(self) -> None:
        """See what is in the queue now."""
        try:
            self.live = set(queue(self.submission.out))
        except PosthocError:
            if not self.dry_run:  # which needs no Slurm
                raise

    def target(self, name: str, folder: Path) -> Target:
        """The run in `folder`, as it was submitted before, or new."""
        for there in self.submission.targets:
            if there.checkpoints == str(folder):
                return there
            if there.name == name:
                raise PosthocError(
                    f"{self.submission.home(there)} is of {there.checkpoints}, not of {folder}; choose another -o."
                )
        self.submission.targets.append(Target(name, str(folder)))
        return self.submission.targets[-1]

    def start_anew(self, targets: Sequence[Target]) -> None:
        """Remove what was made of these runs; refused while their jobs are in the queue."""
        if alive := {task.split("_")[0] for task in self.live} & self.submission.jobs():
            raise PosthocError(
                f"Jobs of {self.submission.out} are in the queue; first: scancel {' '.join(sorted(alive))}"
            )
        if self.dry_run:
            return
        self.submission.words, self.submission.measuring = list(self.work.words), list(self.work.measuring)
        for target in targets:
            home = self.submission.home(target)
            Parts(home / "activations.h5").remove()
            for name in ("activations.h5", "metrics.json"):
                if home.is_dir():
                    with own_folder(
                        home.resolve(), shared=True
                    ) as folder:  # OUT itself may be a link that the user made
                        remove(folder, home, name)
            target.arrays, target.finish = [], None
        self.submission.save()

    def plan(self, target: Target, anew: bool) -> "_Planned | None":
        """What a run has to do; None where that is done, or where it cannot be planned and such runs are skipped."""
        if (self.submission.home(target) / "metrics.json").exists() and not anew:
            self.say(f"{target.title}: done")
            return None
        from posthoc.replay.plan import plan_extraction
        from posthoc.replay.run import entries_of

        asked = dict(self.work.extraction)
        if self._away:
            asked["device"] = "cpu"  # only what there is to do is planned here
        target.left_out = ""
        try:
            plan = plan_extraction(Path(target.checkpoints), skip_damaged=self.work.skip_errors, trial=False, **asked)
        except PosthocError as error:
            if not self.work.skip_errors or isinstance(error, UsageError):
                raise
            target.left_out = str(error)
            self.say(f"{target.title}: left out: {error}")
            return None
        target.count = len(plan.run.checkpoints)
        entries = list(entries_of(plan).values())
        parts = Parts(self.submission.home(target) / "activations.h5")
        if parts.output.exists() and not anew:
            with open_activations(parts.output) as file:
                new = len(
                    {entry.path for entry in entries} - set(file.checkpoints) - {path for path, _ in file.skipped}
                )
            if new:
                raise PosthocError(
                    f"{parts.output} lacks {new} of the checkpoints in {target.checkpoints}, which were saved since; "
                    f"pass --force to start anew, or choose another -o."
                )
            return _Planned(entries, [], None, [])
        missing = [k for k, entry in enumerate(entries) if anew or not parts.path(entry).exists()]
        untrained = controls_of(plan.untrained)
        controls = [one.place for one in untrained if anew or not parts.path(one).exists()]
        given = self.resources
        kind = (
            f"{plan.model.name}, {len(plan.probe)} {plan.probe.samples}, "
            f"{'GPU' if given.gpus else f'{given.cpus_per_task} processors'}, {asked.get('dtype', 'float32')}"
        )
        return _Planned(entries, missing, self._seconds(kind, target) if missing or controls else None, controls)

    def submit_run(self, target: Target, planned: "_Planned") -> bool:
        """Submit a run's shards that lack parts, then the job that waits for them; whether anything was."""
        home, entries, missing, seconds = (
            self.submission.home(target),
            planned.entries,
            planned.missing,
            planned.seconds,
        )
        waiting = [
            (array, shard) for array in target.arrays for shard in array.shards if array.task(shard) in self.live
        ]
        # While tasks wait, the run stays cut as it was for them: no checkpoint may belong to two.
        places = [*missing, *planned.controls]
        count = waiting[0][0].count if waiting else self._tasks(len(places), seconds)
        shards = sorted({k % count + 1 for k in places} - {shard for _, shard in waiting})
        said = [f"{len(entries)} checkpoints"]
        said += [f"{len(entries) - len(missing)} of them replayed"] if len(missing) < len(entries) else []
        said += [f"about {seconds:.2g} s each"] if seconds else []
        said += [f"{len(waiting)} tasks in the queue"] if waiting else []
        self.say(f"{target.title}: {', '.join(said)}; tasks to submit: {len(shards)}")
        after = {array.job for array, _ in waiting}
        size = _max_array_size(self.dry_run) - 1
        for group in _split(shards, size):
            offset = (group[0] - 1) // size * size
            text = extract_script(
                home, target.checkpoints, self._words(), self.resources, group, count, offset, seconds
            )
            job = self._sbatch(home / (f"extract-{offset}.sh" if offset else "extract.sh"), text)
            after.add(job)
            if not self.dry_run:
                target.arrays.append(Array(job, group, count, offset))
                self.submission.save()
                self.say(f"  job {job}: replays, tasks: {len(group)}, logs {self.submission.log(target, f'{job}_*')}")
        if not shards and target.finish in self.live:
            return False
        self._withdraw(target.finish)
        job = self._sbatch(home / "finish.sh", finish_script(home, self.work.measuring, self.resources), after)
        if not self.dry_run:
            target.finish = job
            self.live.add(job)
            self.submission.save()
            self.say(f"  job {job}: merges and measures, log {self.submission.log(target, job)}")
        return True

    def submit_comparison(self) -> None:
        """Submit the job that compares all runs once they are measured."""
        self._withdraw(self.submission.compare)
        after = {target.finish for target in self.submission.targets if target.finish in self.live}
        text = compare_script(self.submission.out, self.resources)
        job = self._sbatch(self.submission.out / "compare.sh", text, {str(job) for job in after})
        if not self.dry_run:
            (self.submission.out / "comparison.txt").unlink(missing_ok=True)  # of fewer runs
            self.submission.compare = job
            self.submission.save()
            self.say(f"job {job}: compares the runs, log {self.submission.log(None, job)}")

    def _words(self) -> list[str]:
        words = [*self.work.words, *(["--on-error", "skip"] if self.work.skip_errors else [])]
        if self.resources.gpus and self.work.extraction.get("device", "auto") == "auto":
            words += ["--device", "cuda"]  # a node whose GPU does not work shall say so
        return words

    def _tasks(self, checkpoints: int, seconds: float | None) -> int:
        """Into how many tasks a run is cut, so that each has its minutes."""
        least = 60 * self.work.minutes_per_task
        needed = math.ceil(checkpoints * seconds / least) if seconds is not None and least else checkpoints
        return max(1, min(self.work.jobs, needed))

    def _seconds(self, kind: str, target: Target) -> float | None:
        """How long a checkpoint takes, timed once for each kind; None where that is of no use or unknown."""
        if self.work.seconds_per_checkpoint is not None or self.work.jobs == 1 or not self.work.minutes_per_task:
            return self.work.seconds_per_checkpoint
        if kind not in self.submission.seconds:
            command = [sys.executable, "-P", "-c", TIMING]
            asked = {"checkpoints": target.checkpoints, "skip_damaged": self.work.skip_errors, **self.work.extraction}
            command.append(json.dumps(asked, default=str))
            if self._away and self.dry_run:
                self.say(f"{kind}: not timed, for there is no GPU here; at the most --jobs tasks are used")
                return None
            if self._away:
                self.say(f"{kind}: timing a checkpoint in the cluster (--seconds-per-checkpoint does without)")
                command = self.resources.srun(command)
            environment = {**outside(), "SLURM_CPUS_PER_TASK": str(self.resources.cpus_per_task)}
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
            if done.returncode:
                reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
                said = f"A checkpoint of {target.checkpoints} could not be timed: {reason}"
                if not self.work.skip_errors:
                    raise PosthocError(said)
                self.say(said)
                return None
            self.submission.seconds[kind] = float(done.stdout.split()[-1])
        return self.submission.seconds[kind]

    @property
    def _away(self) -> bool:
        """Whether tasks are given GPUs and this machine has none."""
        return self.resources.gpus and not _gpu_here()

    def _sbatch(self, path: Path, text: str, after: set[str] | None = None) -> str:
        """Write a script and submit it, to run when others have ended, however they did; the job's id."""
        if self.dry_run:
            condition = f", when {', '.join(sorted(after))} has ended" if after else ""
            self.say(f"--- {path}{condition} (it needs the folder {path.parent / 'logs'})")
            for line in text.split("\n"):
                self.say(line)
            return path.name
        refuse_link(path.parent / "logs")
        (path.parent / "logs").mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_text(text)
        dependency = [f"--dependency=afterany:{':'.join(sorted(after))}"] if after else []
        return slurm("sbatch", "--parsable", *dependency, str(path)).strip().split(";")[0]

    def _withdraw(self, job: str | None) -> None:
        """Take a job that waits for others out of the queue: one that waits for more takes its place."""
        if job in self.live and not self.dry_run:
            slurm("scancel", str(job))
            self.live.discard(str(job))


def _acts(text: str) -> bool:
    """Whether a text does something in a script or a log: ends a line, moves a cursor, is no text."""
    return any(unicodedata.category(sign) in ("Cc", "Cs", "Zl", "Zp") for sign in text)


@functools.cache
def _gpu_here() -> bool:
    import torch

    return torch.cuda.is_available()


@functools.cache
def _max_array_size(dry_run: bool) -> int:
    """One more than the largest number that a task of an array may have; Slurm's default where Slurm cannot be asked."""
    try:
        found = re.search(r"^MaxArraySize\s*=\s*(\d+)", slurm("scontrol", "show", "config"), re.MULTILINE)
    except PosthocError:
        if not dry_run:
            raise
        found = None
    return max(2, int(found[1])) if found else 1001


def _split(shards: Sequence[int], size: int) -> Iterator[list[int]]:
    """The shards in groups whose numbers, counted from 1, lie in the same span of `size`."""
    for group in sorted({(shard - 1) // size for shard in shards}):
        yield [shard for shard in shards if (shard - 1) // size == group]
