"""Checkpoints -> activations.h5: plan, replay, merge; in shards, beside a training run, and after any interruption."""

import contextlib
import os
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from posthoc import store
from posthoc.errors import PosthocError, StoppedError, UsageError, as_path, require_kind
from posthoc.files import refuse_existing
from posthoc.manifest import Control, Entry, Made, controls_of
from posthoc.parts import Parts, run_text
from posthoc.replay.controls import UNTRAINED
from posthoc.replay.duplicates import DuplicatesError
from posthoc.replay.order import Checkpoint
from posthoc.replay.pipeline import Failed, Kept, Outcome, Replayed, replay
from posthoc.replay.plan import Extraction
from posthoc.replay.planning import plan_extraction
from posthoc.replay.request import PlanOptions
from posthoc.replay.scaling import try_scaling
from posthoc.replay.untrained import replay_untrained
from posthoc.shards import Shard
from posthoc.shown import counted, listed
from posthoc.stamps import Stamp, are_untouched
from posthoc.store import Skipped
from posthoc.writing import write

if TYPE_CHECKING:
    from posthoc.replay.request import ProbeLike

Progress = Callable[[int, int, Outcome], None]
"""Called after each checkpoint and untrained network with done, total and what became of it, which `str` puts in words."""
POLL_SECONDS = 2.0
Finished = dict[str, tuple[Stamp, ...]]
"""Of parts that are made, by name, the files that were read."""


@dataclass(frozen=True)
class Result:
    """What an extraction did: the file, or the folder of parts where other shards have theirs to do, and what it skipped."""

    path: Path
    skipped: tuple[Skipped, ...] = ()


@dataclass(frozen=True)
class Work:
    """How the parts of a run are made: see `run_extraction`."""

    parts: Parts
    progress: Progress | None
    stop: threading.Event | None
    shard: Shard | None = None
    force: bool = False

    @property
    def stopped(self) -> bool:
        """Whether no other checkpoint is to be begun."""
        return self.stop is not None and self.stop.is_set()

    def has(self, place: int) -> bool:
        """Whether what is at that place of the run is of this shard."""
        return self.shard is None or self.shard.has(place)


def extract(
    checkpoints: str | Path | Sequence[str | Path],
    probe: "ProbeLike",
    output: str | Path = "activations.h5",
    *,
    force: bool = False,
    progress: Progress | None = None,
    skip_errors: bool = False,
    **options: Unpack[PlanOptions],
) -> Path:
    """Replay every checkpoint of a run over one fixed probe batch and store the signals.

    Parts of an interrupted run of the same identity are kept and used.

    Parameters
    ----------
    checkpoints
        The folder of a run, one checkpoint, or several of one folder.
    probe
        As `--probe` names one, or a `posthoc.Probe`, (inputs, targets), a data set or a DataLoader.
    output
        The activations file to write.
    force
        Replace what is there, parts of an interrupted run included.
    progress
        Called after each checkpoint with how many are done, of how many, and its name.
    skip_errors
        Record a checkpoint that cannot be replayed, with the reason, and go on.
    **options
        Those of `posthoc extract`, by their names with `_` for `-`: `model`, `layers`, `channels`, `signals`, `images`,
        `device`, `batch_size`, `controls`, ...; `--as` is `placed`.

    Returns
    -------
    pathlib.Path
        The file.

    Raises
    ------
    PosthocError
        Where there is no run, network or probe that fits, the disk is full, or `output` is there already.
    """
    output = as_path(output)
    if not isinstance(checkpoints, (str, Path)):
        require_kind("checkpoints", checkpoints, Iterable, "the path of a folder, or those of checkpoints")
    refuse_existing(output, force)
    place = Path(checkpoints) if isinstance(checkpoints, (str, Path)) else [as_path(path) for path in checkpoints]
    plan = plan_extraction(place, probe, skip_damaged=skip_errors, **options)
    return run_extraction(plan, output, force=force, progress=progress, skip_errors=skip_errors).path


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
    """Replay every checkpoint and write `output`; parts of an interrupted run of the same identity are kept and used.

    `skip_errors` records a checkpoint that cannot be replayed, with the reason, and goes on. `shard`: only its
    checkpoints, left as parts for `posthoc merge`. Once `stop` is set the checkpoint in hand is finished and
    StoppedError raised.
    """
    with _working(plan, output, force, shard) as parts:
        skipped = _replay_into(Work(parts, progress, stop, shard, force), plan, skip_errors)
        if shard:
            return Result(parts.folder, tuple(skipped))
        return Result(output, tuple(parts.merge(looked=True)))


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
    pause = partial(_pause, stop, partial(Parts(output).kept, force))
    plan = _wait_for_first(replan, pause, quiet)
    if until_epoch is not None and plan.run.newest[0] < 0:
        raise UsageError("--until-epoch: the checkpoints say no epoch; leave it out, --quiet ends the watch.")
    with _working(plan, output, force, None) as parts:
        work = Work(parts, progress, stop, force=force)
        newest, since = plan.run.newest, time.monotonic()
        finished: Finished = {}
        while True:
            if time.monotonic() - since > quiet or (until_epoch is not None and plan.run.newest[0] >= until_epoch):
                # What cannot be read now never will be.
                _replay_into(work, replan(), skip_errors)
                return Result(output, tuple(parts.merge(looked=True)))
            _replay_into(work, plan, True, finished)
            pause()
            plan = _grown(plan, replan)
            if plan.run.newest != newest:
                newest, since = plan.run.newest, time.monotonic()


def time_checkpoint(checkpoints: str, probe: str, **options: Unpack[PlanOptions]) -> float:
    """Seconds that the first checkpoint of a run takes; nothing is kept."""
    if root := options.get("data_root"):
        options["data_root"] = Path(root)
    options["untrained"] = 0
    options["controls"] = [name for name in options.get("controls", ()) if name != UNTRAINED]
    plan = plan_extraction(Path(checkpoints), probe, **options)
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        run_extraction(plan, Path(folder) / "a.h5", shard=Shard(1, len(plan.run.checkpoints)))
        return (time.monotonic() - start) * (1 + len(plan.identity.averaged))


@contextlib.contextmanager
def _working(plan: Extraction, output: Path, force: bool, shard: Shard | None) -> Iterator[Parts]:
    refuse_existing(output, force)
    if output.resolve() in [checkpoint.path.resolve() for checkpoint in plan.run.checkpoints]:
        raise UsageError(f"{output} is one of the checkpoints; choose another output.")
    parts = Parts(output)
    with parts.held(shared=shard is not None):
        refuse_existing(output, force)  # another process may have finished it meanwhile
        _say_what_goes(plan, output)
        if force and not shard:
            parts.clear()
        yield parts


def _say_what_goes(plan: Extraction, output: Path) -> None:
    """Warn where the file that is replaced holds checkpoints of the run that can no longer be replayed."""
    folder = plan.run.folder
    with contextlib.suppress(PosthocError):
        of, paths = store.origin(output)
        gone = [path for path in paths if not os.path.lexists(folder / path)]
        if gone and of == run_text(folder):
            warnings.warn(
                f"{output} holds {counted(len(gone), 'checkpoint')} gone since from {folder} ({listed(gone)}), which will not be "
                f"in the file that replaces it; move it away to keep them.",
                stacklevel=2,
            )


def _replay_into(work: Work, plan: Extraction, skip_errors: bool, finished: Finished | None = None) -> list[Skipped]:
    """Make the parts that are missing, but for those `finished`, to which new ones are added; what was skipped."""
    parts, entries, folder = work.parts, entries_of(plan), plan.run.folder
    finished = {} if finished is None else finished
    skipped = [Skipped(_relative(plan, path), reason) for path, reason in plan.run.left_out]
    shards = work.shard.count if work.shard else None
    damaged = [skip.path for skip in skipped]
    parts.start(plan.stored.recording, folder, list(entries.values()), damaged, shards, plan.untrained)
    for skip in skipped:
        parts.skip(skip)
    checkpoints = [
        checkpoint
        for place, checkpoint in enumerate(plan.run.checkpoints)
        if work.has(place) and not are_untouched(folder, finished.get(entries[checkpoint.path].part, ()))
    ]
    if checkpoints and checkpoints[-1] is plan.run.checkpoints[-1] and not work.stopped:  # it is that which is tried
        plan = plan.told(scaling=try_scaling(plan))
    controls = [c for c in controls_of(plan.untrained) if work.has(c.place) and c.part not in finished]
    total = len(checkpoints) + len(controls)
    done = 0
    for outcome in _outcomes(work, plan, entries, checkpoints, controls):
        done += 1
        item = outcome.item if isinstance(outcome.item, Control) else entries[outcome.item.path]
        if isinstance(outcome, Failed):
            if not skip_errors:
                raise outcome.error
            skipped.append(Skipped(item.path, str(outcome.error)))
            parts.path(item).unlink(missing_ok=True)  # of the file as it once was
            parts.skip(skipped[-1])
        else:
            finished[item.part] = outcome.files
        if work.progress:
            work.progress(done, total, outcome)
    if work.stopped and done < total:
        raise StoppedError(f"stopped{parts.kept(work.force)}.")
    return skipped


def _outcomes(
    work: Work,
    plan: Extraction,
    entries: dict[Path, Entry],
    checkpoints: Sequence[Checkpoint],
    controls: Sequence[Control],
) -> Iterator[Outcome]:
    """Replay the checkpoints and then the controls, unless their parts are there."""
    parts, anew = work.parts, work.force and work.shard is not None  # its own, those of other shards stay
    bereft = _bereft(parts, max(plan.identity.averaged, default=1))

    def known(checkpoint: Checkpoint) -> Made | None:
        entry = entries[checkpoint.path]
        made = None if anew else parts.made(entry, plan.identity)
        return replace(made, averaged=None) if made and entry in bereft else made

    def keep(item: Entry | Control, frame: store.Frame) -> None:
        before = parts.made(item, plan.identity)
        write(parts.path(item), plan.stored, [frame])
        parts.unskip(item.path)
        if isinstance(item, Entry) and before and before.sha256 != frame.sha256:
            parts.supersede(item)

    yield from replay(
        plan,
        checkpoints,
        known,
        lambda checkpoint, frame: keep(entries[checkpoint.path], frame),
        work.stop,
        parts.folder,
        partial(parts.kept, work.force),
    )
    for control in controls:
        if work.stopped:
            return
        if not anew and parts.made(control, plan.identity) is not None:
            yield Kept(control)
            continue
        try:
            frame = replay_untrained(plan, control, parts.folder)
        except PosthocError as error:
            yield Failed(control, error)
        else:
            keep(control, frame)
            yield Replayed(control)


def _bereft(parts: Parts, most: int) -> frozenset[Entry]:
    """The checkpoints whose means of up to so many cannot be made again, for some before them are gone."""
    gone, order = parts.gone(), parts.entries()
    return frozenset(entry for k, entry in enumerate(order) if not gone.isdisjoint(order[max(k - most + 1, 0) : k]))


def entries_of(plan: Extraction) -> dict[Path, Entry]:
    """What the parts of a plan's checkpoints are known by, in the run's order."""
    return {
        checkpoint.path: Entry(_relative(plan, checkpoint.path), *checkpoint.position)
        for checkpoint in plan.run.checkpoints
    }


def _relative(plan: Extraction, path: Path) -> str:
    return path.relative_to(plan.run.folder).as_posix()


def _wait_for_first(replan: Callable[[], Extraction], pause: Callable[[], None], quiet: float) -> Extraction:
    start = time.monotonic()
    while True:
        try:
            return replan()
        except (UsageError, DuplicatesError):
            raise
        except PosthocError:  # nothing there yet, or the first checkpoint is still being written
            if time.monotonic() - start > quiet:
                raise
        pause()


def _grown(plan: Extraction, replan: Callable[[], Extraction]) -> Extraction:
    """The plan with the checkpoints that are there now; as it was while the newest cannot be read."""
    try:
        now = replan()
    except DuplicatesError:
        raise
    except PosthocError:
        return plan
    return replace(plan, run=now.run) if now.identity == plan.identity else now


def _pause(stop: threading.Event | None, kept: Callable[[], str]) -> None:
    if stop is None:
        time.sleep(POLL_SECONDS)
    elif stop.wait(POLL_SECONDS):
        raise StoppedError(f"stopped{kept()}.")
