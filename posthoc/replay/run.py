"""Checkpoints -> activations.h5: plan, replay, merge; in shards, beside a training run, and after any interruption."""

import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from posthoc import store
from posthoc.errors import PosthocError, StoppedError, UsageError
from posthoc.files import refuse_existing
from posthoc.parts import Control, Entry, Parts, controls_of
from posthoc.replay.order import Checkpoint
from posthoc.replay.pipeline import replay
from posthoc.replay.plan import Extraction, plan_extraction
from posthoc.replay.request import Shard
from posthoc.replay.untrained import replay_untrained
from posthoc.writing import write

Progress = Callable[[int, int, str], None]
POLL_SECONDS = 2.0


@dataclass(frozen=True)
class Result:
    """What an extraction did: the file, or the folder of parts where other shards have theirs to do, and what it skipped."""

    path: Path
    skipped: tuple[tuple[str, str], ...] = ()


def run_extraction(
    plan: Extraction,
    output: Path,
    *,
    force: bool = False,
    progress: Progress | None = None,
    skip_errors: bool = False,
    shard: Shard | None = None,
    stop: threading.Event | None = None,
) -> Result:
    """Replay every checkpoint and write `output`; parts of an interrupted run of the same plan are kept and used.

    `progress` is called after each checkpoint with done, total and its file name, which says if the part was kept.
    `skip_errors` records a checkpoint that cannot be replayed, with the reason, and goes on. `shard`: only its checkpoints, left as parts for
    `posthoc merge`. Once `stop` is set the checkpoint in hand is finished and StoppedError raised.
    """
    with _working(plan, output, force, shard) as parts:
        skipped = _replay_into(parts, plan, progress, skip_errors, shard, stop)
        if shard:
            return Result(parts.folder, tuple(skipped))
        return Result(output, tuple(parts.merge()))


def follow_extraction(
    replan: Callable[[], Extraction],
    output: Path,
    *,
    force: bool = False,
    progress: Progress | None = None,
    skip_errors: bool = False,
    stop: threading.Event | None = None,
    until_epoch: int | None = None,
    quiet: float = 600.0,
) -> Result:
    """As `run_extraction` over a folder that grows: until a checkpoint of `until_epoch` is there, or `quiet` seconds
    have passed without a new one. `replan` looks at the folder anew.

    A checkpoint that cannot be read yet is tried again as long as the run is followed.
    """
    plan = _wait_for_first(replan, stop, quiet)
    with _working(plan, output, force, None) as parts:
        newest, since = plan.run.checkpoints[-1].position, time.monotonic()
        finished: set[Path] = set()
        while True:
            last = plan.run.checkpoints[-1].epoch
            over = time.monotonic() - since > quiet or (
                until_epoch is not None and last is not None and last >= until_epoch
            )
            if over:  # what cannot be read now never will be
                plan = replan()
            _replay_into(parts, plan, progress, skip_errors or not over, None, stop, None if over else finished)
            if over:
                return Result(output, tuple(parts.merge()))
            _pause(stop, POLL_SECONDS)
            plan = _grown(plan, replan)
            if plan.run.checkpoints[-1].position != newest:
                newest, since = plan.run.checkpoints[-1].position, time.monotonic()


def time_checkpoint(checkpoints: str, probe: str, **options: Any) -> float:
    """Seconds that the first checkpoint of a run takes; nothing is kept. Options are those of `plan_extraction`."""
    if options.get("data_root"):
        options["data_root"] = Path(options["data_root"])
    plan = plan_extraction(Path(checkpoints), probe, **{**options, "untrained": 0})
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        run_extraction(plan, Path(folder) / "a.h5", shard=Shard(1, len(plan.run.checkpoints)))
        return time.monotonic() - start


def extract(
    checkpoints: str | Path | Sequence[Path], probe: str, output: str | Path = "activations.h5", **options: Any
) -> Path:
    """Replay every checkpoint of a run over one fixed probe batch and store the signals; returns the file's path.

    Options are those of `plan_extraction`, and `force`, `progress` and `skip_errors` of `run_extraction`.
    """
    writing = {name: options.pop(name) for name in ("force", "progress", "skip_errors") if name in options}
    output = Path(output)
    refuse_existing(output, bool(writing.get("force")))
    place = Path(checkpoints) if isinstance(checkpoints, (str, Path)) else [Path(path) for path in checkpoints]
    plan = plan_extraction(place, probe, skip_damaged=bool(writing.get("skip_errors")), **options)
    return run_extraction(plan, output, **writing).path


@contextmanager
def _working(plan: Extraction, output: Path, force: bool, shard: Shard | None) -> Iterator[Parts]:
    refuse_existing(output, force)
    if output.resolve() in [checkpoint.path.resolve() for checkpoint in plan.run.checkpoints]:
        raise UsageError(f"{output} is one of the checkpoints; choose another output.")
    parts = Parts(output)
    with parts.held(shared=shard is not None):
        refuse_existing(output, force)  # another process may have finished it meanwhile
        if force and not shard:
            parts.clear()
        yield parts


def _replay_into(
    parts: Parts,
    plan: Extraction,
    progress: Progress | None,
    skip_errors: bool,
    shard: Shard | None,
    stop: threading.Event | None,
    finished: set[Path] | None = None,
) -> list[tuple[str, str]]:
    """Make the parts that are missing, but for those `finished`, to which new ones are added; what was skipped, and why."""
    entries = entries_of(plan)
    skipped = [(_relative(plan, path), reason) for path, reason in plan.run.damaged]
    parts.start(
        plan.stored.recording,
        list(entries.values()),
        [path for path, _ in skipped],
        shard.count if shard else None,
        plan.untrained,
    )
    for path, reason in skipped:
        parts.skip(path, reason)
    finished = set() if finished is None else finished
    mine = list(plan.run.checkpoints)
    mine = mine[shard.index - 1 :: shard.count] if shard else mine
    mine = [checkpoint for checkpoint in mine if checkpoint.path not in finished]
    controls = [
        control
        for control in controls_of(plan.untrained)
        if parts.path(control) not in finished and (not shard or control.place % shard.count == shard.index - 1)
    ]
    total = len(mine) + len(controls)

    def keep(checkpoint: Checkpoint, frame: store.Frame) -> None:
        write(parts.path(entries[checkpoint.path]), plan.stored, [frame])
        parts.unskip(entries[checkpoint.path].path)

    def known(checkpoint: Checkpoint) -> str | None:
        return parts.digest(entries[checkpoint.path], plan.identity)

    def outcomes() -> Iterator[tuple[Path, Entry | Control, PosthocError | None, bool]]:
        for checkpoint, error, fresh in replay(plan, mine, known, keep, stop):
            yield checkpoint.path, entries[checkpoint.path], error, fresh
        for control in controls:
            if stop and stop.is_set():
                return
            yield parts.path(control), control, *_replay_control(parts, plan, control)

    done = 0
    for place, item, error, fresh in outcomes():
        done += 1
        how = "" if fresh else ", skipped" if error else ", kept"
        if error is not None:
            if not skip_errors:
                raise error
            skipped.append((item.path, str(error)))
            parts.path(item).unlink(missing_ok=True)  # of the file as it once was
            parts.skip(item.path, str(error))
        else:
            finished.add(place)
        if progress:
            progress(done, total, (item.path if isinstance(item, Control) else place.name) + how)
    if stop and stop.is_set() and done < total:
        raise StoppedError(f"stopped after {done} of {total} checkpoints; the same command goes on from there.")
    return skipped


def _replay_control(parts: Parts, plan: Extraction, control: Control) -> tuple[PosthocError | None, bool]:
    """Make the part of an untrained network, unless it is there; what was wrong with it, and whether it was replayed."""
    if parts.digest(control, plan.identity) is not None:
        return None, False
    try:
        frame = replay_untrained(plan, control)
    except PosthocError as error:
        return error, False
    write(parts.path(control), plan.stored, [frame])
    parts.unskip(control.path)
    return None, True


def entries_of(plan: Extraction) -> dict[Path, Entry]:
    """What the parts of a plan's checkpoints are known by, in the run's order."""
    return {
        checkpoint.path: Entry(_relative(plan, checkpoint.path), *checkpoint.position)
        for checkpoint in plan.run.checkpoints
    }


def _relative(plan: Extraction, path: Path) -> str:
    return path.relative_to(plan.run.folder).as_posix()


def _wait_for_first(replan: Callable[[], Extraction], stop: threading.Event | None, quiet: float) -> Extraction:
    start = time.monotonic()
    while True:
        try:
            return replan()
        except UsageError:
            raise
        except PosthocError:  # nothing there yet, or the first checkpoint is still being written
            if time.monotonic() - start > quiet:
                raise
        _pause(stop, POLL_SECONDS)


def _grown(plan: Extraction, replan: Callable[[], Extraction]) -> Extraction:
    """The plan with the checkpoints that are there now; as it was while the newest cannot be read."""
    try:
        now = replan()
    except PosthocError:
        return plan
    return replace(plan, run=now.run) if now.identity == plan.identity else now


def _pause(stop: threading.Event | None, seconds: float) -> None:
    if stop is None:
        time.sleep(seconds)
    elif stop.wait(seconds):
        raise StoppedError("stopped; the same command goes on from there.")
