"""Submitting what is missing: of each run the shards without parts, and the jobs that wait for them."""

import contextlib
import copy
import functools
import json
import math
import os
import shlex
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posthoc.cluster.jobs import Job, Resources, compare_job, extract_job, finish_job
from posthoc.cluster.scheduler import Scheduler, scheduler_named
from posthoc.cluster.submission import Array, Submission, Target
from posthoc.errors import PosthocError, UsageError
from posthoc.files import replacing
from posthoc.folders import open_folder, open_lock, refuse_link, remove
from posthoc.locks import hold
from posthoc.manifest import Control, Entry, controls_of
from posthoc.parts import Parts
from posthoc.shards import Shard
from posthoc.shown import counted
from posthoc.store import open_activations

TIMING = "import json, sys; from posthoc.replay.run import time_checkpoint; print(time_checkpoint(**json.loads(sys.argv[1])))"
PARTS = Parts(Path("activations.h5")).folder.name
RESULTS = ("activations.h5", "metrics.json", PARTS)
"""What a run leaves in its folder."""
ASIDE = ".before-"
"""How the names of results begin that others are about to replace."""


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
    scheduler: str = "slurm"


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

    Raises PosthocError where the scheduler refuses a job: what was submitted before is written down, and the same call goes on
    from there.
    """
    out = out.absolute()
    places = [str(Path.cwd()), str(out), *(text for name, folder in folders for text in (name, str(folder)))]
    if unfit := [text for text in (*places, *work.words, *work.measuring) if _has_control(text)]:
        raise UsageError(
            f"{unfit[0]!r} has a line's end or another control character, which no batch script may hold; rename it."
        )
    misread = scheduler_named(work.scheduler).misread
    if any(set(misread) & set(text) for text in (str(out), *(name for name, _ in folders))):
        signs = " and ".join(misread)
        raise UsageError(
            f"{work.scheduler} reads {signs} in the names of logs otherwise; {out} or a run has one: choose another -o."
        )
    if dry_run:
        return _submit(folders, out, work, resources, force, dry_run, say)
    with _locked(out):
        return _submit(folders, out, work, resources, force, dry_run, say)


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Keep a second `submit` into the same folder out."""
    with open_folder(out.resolve(), shared=True) as folder:
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
    new = Submission(out, list(work.words), list(work.measuring), scheduler=work.scheduler)
    submission = Submission.load(out) or new
    if submission.scheduler != work.scheduler:
        raise PosthocError(f"{out} was submitted to {submission.scheduler!r}; choose another -o.")
    before = [*submission.words, *submission.measuring]
    if before != [*work.words, *work.measuring] and not force:
        raise PosthocError(
            f"{out} was submitted with other options ({shlex.join(before) or 'none'}); "
            f"choose another -o, or pass --force to start anew."
        )
    submitter = _Submitter(submission, work, resources, dry_run, say, set())
    submitter.refresh()
    targets = [submitter.target(name, folder.absolute()) for name, folder in folders]
    if force and before != [*work.words, *work.measuring] and len(targets) < len(submission.targets):
        raise UsageError(f"{out} has other runs of other options; give all of them with --force, or another -o.")
    planned = [submitter.plan(target, force) for target in targets]  # and timed, all of them before anything is done
    submitter.refresh()
    try:
        with submitter.anew(targets) if force else contextlib.nullcontext():
            submitted = [
                submitter.submit_run(target, plan) for target, plan in zip(targets, planned, strict=True) if plan
            ]
        pending = submission.compare in submitter.live or (out / "comparison.txt").exists()
        if len(submission.targets) > 1 and (any(submitted) or not pending):
            submitter.submit_comparison()
    except PosthocError as error:
        if force and _accepted(targets):
            raise PosthocError(
                f"{error} What was submitted before stays so; to go on, run the same command without --force."
            ) from error
        raise
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
class _Submitter:
    """One call of `submit`: what it is to do, and what was in the queue when it began."""

    submission: Submission
    work: Work
    resources: Resources
    dry_run: bool
    say: Callable[[str], None]
    live: set[str]

    @functools.cached_property
    def scheduler(self) -> Scheduler:
        return scheduler_named(self.work.scheduler)

    @functools.cached_property
    def largest(self) -> int:
        """The largest number of an array's task; the usual one where a dry run cannot ask for it."""
        try:
            return self.scheduler.largest()
        except PosthocError:
            if not self.dry_run:
                raise
            return 1000

    def refresh(self) -> None:
        """See what is in the queue now."""
        try:
            self.live = set(self.scheduler.queue(self.submission.out))
        except PosthocError:
            if not self.dry_run:  # which needs no scheduler
                raise

    def target(self, name: str, folder: Path) -> Target:
        """The run in `folder`, as it was submitted before, or new."""
        for target in self.submission.targets:
            if target.checkpoints == str(folder):
                return target
            if target.name == name:
                home = self.submission.home(target)
                raise PosthocError(f"{home} is of {target.checkpoints}, not of {folder}; choose another -o.")
        self.submission.targets.append(Target(name, str(folder)))
        return self.submission.targets[-1]

    @contextlib.contextmanager
    def anew(self, targets: Sequence[Target]) -> Iterator[None]:
        """What was made of these runs is put aside meanwhile, and removed once a job is submitted; without one it is put back.

        Refused while their jobs are in the queue.
        """
        if alive := {task.split("_")[0] for task in self.live} & self.submission.jobs():
            jobs = " ".join(sorted(alive))
            raise PosthocError(f"Jobs of {self.submission.out} are in the queue; cancel them first: {jobs}")
        if self.dry_run:
            yield
            return
        before = copy.deepcopy(self.submission)
        self.submission.words, self.submission.measuring = list(self.work.words), list(self.work.measuring)
        homes = [self.submission.home(target) for target in targets]
        for target in targets:
            target.arrays, target.finish = [], None
        try:
            for home in homes:
                _put_aside(home)
            self.submission.save()
            yield
        finally:
            if _accepted(targets):
                for home in homes:
                    _remove_aside(home, *RESULTS)
            else:
                for home in homes:
                    _put_back(home)
                before.save()

    def plan(self, target: Target, anew: bool) -> "_Planned | None":
        """What a run has to do; None where that is done, or where it cannot be planned and such runs are skipped."""
        if (self.submission.home(target) / "metrics.json").exists() and not anew:
            self.say(f"{target.title}: done")
            return None
        from posthoc.replay.planning import plan_extraction

        options = dict(self.work.extraction)
        if self._away:
            options["device"] = "cpu"  # only what there is to do is planned here
        target.left_out = ""
        try:
            plan = plan_extraction(Path(target.checkpoints), skip_damaged=self.work.skip_errors, trial=False, **options)
        except PosthocError as error:
            if not self.work.skip_errors or isinstance(error, UsageError):
                raise
            target.left_out = str(error)
            self.say(f"{target.title}: left out: {error}")
            return None
        from posthoc.replay.run import entries_of

        target.count = len(plan.run.checkpoints)
        entries = list(entries_of(plan).values())
        parts = Parts(self.submission.home(target) / "activations.h5")
        if parts.output.exists() and not anew:
            with open_activations(parts.output) as file:
                handled = {*file.checkpoints, *(path for path, _ in file.skipped)}
            new = len({entry.path for entry in entries} - handled)
            if new:
                raise PosthocError(
                    f"{parts.output} lacks {new} of the checkpoints in {target.checkpoints}, which were saved since; "
                    f"pass --force to start anew, or choose another -o."
                )
            return _Planned(entries, [], None, [])
        untrained = controls_of(plan.untrained)
        items: list[Entry | Control] = [*entries, *untrained]
        places = [*range(len(entries)), *(control.place for control in untrained)]
        standing = [False] * len(items) if anew else parts.standing(items, plan.run.folder)
        lacking = [place for place, stands in zip(places, standing, strict=True) if not stands]
        missing, controls = ([place for place in lacking if (place >= 0) is there] for there in (True, False))
        processors = "GPU" if self.resources.gpus else f"{self.resources.cpus_per_task} processors"
        samples = f"{len(plan.probe)} {plan.probe.samples} ({plan.probe.shapes})"
        if plan.identity.controls:
            samples += f" and {', '.join(plan.identity.controls)}"
        kind = f"{plan.model.name}, {samples}, {processors}, {options.get('dtype', 'float32')}"
        return _Planned(entries, missing, self._seconds(kind, target) if missing or controls else None, controls)

    def submit_run(self, target: Target, planned: "_Planned") -> bool:
        """Submit a run's shards that lack parts, then the job that waits for them; whether anything was."""
        home, missing = self.submission.home(target), planned.missing
        waiting = [
            (array, shard) for array in target.arrays for shard in array.shards if array.task(shard) in self.live
        ]
        # While tasks wait, the run stays cut as it was for them: no checkpoint may belong to two.
        places = [*missing, *planned.controls]
        count = waiting[0][0].count if waiting else self._tasks(len(places), planned.seconds)
        shards = sorted({Shard.of(place, count).index for place in places} - {shard for _, shard in waiting})
        facts = [counted(len(planned.entries), "checkpoint")]
        replayed = len(planned.entries) - len(missing)
        facts += [f"{replayed} of them replayed"] if replayed else []
        facts += [f"about {planned.seconds:.2g} s each"] if planned.seconds else []
        facts += [f"{counted(len(waiting), 'task')} in the queue"] if waiting else []
        self.say(f"{target.title}: {', '.join(facts)}; tasks to submit: {len(shards)}")
        after = {array.job for array, _ in waiting}
        for group in _split(shards, self.largest):
            after.add(self._submit_array(target, group, count, planned.seconds))
        if not shards and target.finish in self.live:
            return False
        self._withdraw(target.finish)
        job = self._hand_over(home / "finish.sh", finish_job(home, self.work.measuring, self.resources), after)
        if not self.dry_run:
            target.finish = job
            self.live.add(job)
            self.submission.save()
            self.say(f"  job {job}: merges and measures, log {self.submission.log(target, job)}")
        return True

    def _submit_array(self, target: Target, shards: list[int], count: int, seconds: float | None) -> str:
        """Submit the array of some shards of `count`; its id. Task k does shard k + offset."""
        home = self.submission.home(target)
        offset = (shards[0] - 1) // self.largest * self.largest
        number = self.scheduler.task + (f" + {offset}" if offset else "")
        tasks = [shard - offset for shard in shards]
        shard = f"$(({number}))/{count}"
        array = extract_job(home, target.checkpoints, self._words(), self.resources, tasks, shard, seconds)
        job = self._hand_over(home / (f"extract-{offset}.sh" if offset else "extract.sh"), array)
        if not self.dry_run:
            target.arrays.append(Array(job, shards, count, offset))
            self.submission.save()
            self.say(f"  job {job}: replays, tasks: {len(shards)}, logs {self.submission.log(target, f'{job}_*')}")
        return job

    def submit_comparison(self) -> None:
        """Submit the job that compares all runs once they are measured."""
        self._withdraw(self.submission.compare)
        after = {target.finish for target in self.submission.targets if target.finish in self.live}
        compare = compare_job(self.submission.out, self.resources)
        job = self._hand_over(self.submission.out / "compare.sh", compare, {str(job) for job in after})
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
            if self._away and self.dry_run:
                self.say(f"{kind}: not timed, for there is no GPU here; at the most --jobs tasks are used")
                return None
            if self._away:
                self.say(f"{kind}: timing a checkpoint in the cluster (--seconds-per-checkpoint does without)")
            done = self._time(target)
            if done.returncode:
                reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
                text = f"A checkpoint of {target.checkpoints} could not be timed: {reason}"
                if not self.work.skip_errors:
                    raise PosthocError(text)
                self.say(text)
                return None
            self.submission.seconds[kind] = float(done.stdout.split()[-1])
        return self.submission.seconds[kind]

    def _time(self, target: Target) -> "subprocess.CompletedProcess[str]":
        options = {"checkpoints": target.checkpoints, "skip_damaged": self.work.skip_errors, **self.work.extraction}
        command = [sys.executable, "-P", "-c", TIMING, json.dumps(options, default=str)]
        if self._away:
            return self.scheduler.attend(command, self.resources)
        environment = {**os.environ, "SLURM_CPUS_PER_TASK": str(self.resources.cpus_per_task)}
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)

    @property
    def _away(self) -> bool:
        """Whether tasks are given GPUs and this machine has none."""
        return self.resources.gpus and not _gpu_here()

    def _hand_over(self, path: Path, job: Job, after: Collection[str] = ()) -> str:
        """Write a job's script and submit it, to run when others have ended, however they did; the job's id."""
        text = self.scheduler.render(job)
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
        return self.scheduler.submit(path, after)

    def _withdraw(self, job: str | None) -> None:
        """Take a job that waits for others out of the queue: one that waits for more takes its place."""
        if job is not None and job in self.live and not self.dry_run:
            self.scheduler.cancel(job)
            self.live.discard(job)


def _accepted(targets: Sequence[Target]) -> bool:
    """Whether the scheduler has taken a job of any of these runs."""
    return any(target.arrays or target.finish for target in targets)


def _put_aside(home: Path) -> None:
    """Give a run's results names that begin with ASIDE; parts that another process works on are refused."""
    parts = Parts(home / "activations.h5")
    with parts.held() if os.path.lexists(parts.folder) else contextlib.nullcontext():
        for name in RESULTS:
            if os.path.lexists(home / name):
                _remove_aside(home, name)  # what a call left that was killed once its jobs were submitted
                _rename(home, name, ASIDE + name)


def _put_back(home: Path) -> None:
    """Give a run's results their names again."""
    for name in RESULTS:
        if os.path.lexists(home / (ASIDE + name)) and not os.path.lexists(home / name):
            _rename(home, ASIDE + name, name)


def _remove_aside(home: Path, *names: str) -> None:
    """Remove results that were put aside."""
    for name in names:
        path = home / (ASIDE + name)
        if name == PARTS:
            Parts(path.with_suffix("")).remove()
        elif os.path.lexists(path):
            with open_folder(home.resolve(), shared=True) as folder:
                remove(folder, home, path.name)


def _rename(home: Path, before: str, after: str) -> None:
    with open_folder(home.resolve(), shared=True) as folder:  # OUT itself may be a link that the user made
        try:
            os.rename(before, after, src_dir_fd=folder, dst_dir_fd=folder)
        except OSError as error:
            raise PosthocError(
                f"Cannot rename {home / before}: {error.strerror or error}; move it away, or choose another -o."
            ) from error


def _has_control(text: str) -> bool:
    """Whether a text does something in a script or a log: ends a line, moves a cursor, is no text."""
    return any(unicodedata.category(sign) in ("Cc", "Cs", "Zl", "Zp") for sign in text)


@functools.cache
def _gpu_here() -> bool:
    import torch

    return torch.cuda.is_available()


def _split(shards: Sequence[int], size: int) -> Iterator[list[int]]:
    """The shards in groups whose numbers, counted from 1, lie in the same span of `size`."""
    for group in sorted({(shard - 1) // size for shard in shards}):
        yield [shard for shard in shards if (shard - 1) // size == group]
