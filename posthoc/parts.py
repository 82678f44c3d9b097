"""The folder of parts beside an unfinished activations file: who works on it, what belongs to it, and its merging.

One part per checkpoint, whole or absent, is what resumption, shards, merging and recovery all rest on.
"""

import contextlib
import hashlib
import json
import os
import re
import socket
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from posthoc import store
from posthoc.errors import PosthocError
from posthoc.files import read_json, refuse_existing, replacing
from posthoc.folders import LOCK, files_of, open_folder, open_lock, read_lock, remove, sign_lock
from posthoc.locks import hold
from posthoc.manifest import PART, Control, Entry, Made, Manifest, Progress, controls_of
from posthoc.merging import Merger
from posthoc.recording import Identity, Recording
from posthoc.shards import Shard
from posthoc.shown import counted, listed
from posthoc.stamps import State, state
from posthoc.store import Skipped
from posthoc.typed import MisfitError, typed

PLAN = "plan.json"
NAMES = re.compile(rf"{re.escape(PLAN)}|{PART.pattern}|skipped-[0-9a-f]{{16}}\.json")
"""Of everything that lies in the folder and is ours, but for the lock and what a process that was killed left behind."""
LEFT = re.compile(rf"\.({NAMES.pattern})\.[0-9a-f]{{1,12}}\.tmp")
SKIP_BYTES = 2**20


class Parts:
    """The parts of the activations file `output`, in the folder `output`.parts."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.folder = output.with_name(output.name + ".parts")

    @contextlib.contextmanager
    def held(self, shared: bool = False) -> Iterator[None]:
        """Hold the folder while working on it: alone, or shared with other shards.

        The lock goes with the process, however it ends. Raises PosthocError where another process holds it, and where
        the folder, or what is in it by a name of ours, is a link or somebody else's. On a file system without locks
        nothing is held: parts are whole or absent all the same.
        """
        with contextlib.ExitStack() as stack:
            try:
                folder, lock = self._lock(stack, shared)
                files_of(folder, self.folder, NAMES)
                with contextlib.suppress(OSError):  # a full disk is met when there is something to write
                    sign_lock(lock, f"process {os.getpid()} on {socket.gethostname()}")
                if not shared:
                    self._tidy(folder)
            except OSError as error:
                raise PosthocError(f"Cannot write into {self.folder}: {error.strerror or error}.") from error
            yield

    def _lock(self, stack: contextlib.ExitStack, shared: bool) -> tuple[int, int]:
        """Descriptors of the folder and of its lock, held."""
        while True:
            attempt = stack.enter_context(contextlib.ExitStack())
            folder = attempt.enter_context(open_folder(self.folder))
            try:
                lock = open_lock(folder, self.folder)
            except FileNotFoundError:  # the one before us took the folder away just now
                attempt.close()
                continue
            attempt.callback(os.close, lock)
            try:
                hold(lock, shared)
            except BlockingIOError:
                who = read_lock(lock).strip() or "another process"
                raise PosthocError(
                    f"{self.output} is being written by {who}; wait for it, or choose another -o."
                ) from None
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(lock), (self.folder / LOCK).lstat()):
                    return folder, lock
            attempt.close()  # the one before us finished and took the folder away

    def _tidy(self, folder: int) -> None:
        """Remove what processes that were killed had begun to write: here, and beside the output."""
        for name in files_of(folder, self.folder, LEFT):
            remove(folder, self.folder, name)
        temporary = re.compile(rf"\.{re.escape(self.output.name)}\.[0-9a-f]{{1,12}}\.tmp")
        with os.scandir(self.output.parent) as entries:
            left = [
                entry.path
                for entry in entries
                if temporary.fullmatch(entry.name) and entry.is_file(follow_symlinks=False)
            ]
        for path in left:
            Path(path).unlink(missing_ok=True)

    def start(
        self,
        recording: Recording,
        folder: Path,
        entries: Sequence[Entry],
        damaged: Sequence[str] = (),
        shards: int | None = None,
        untrained: int = 0,
    ) -> None:
        """Write down what belongs here, of the run in `folder`; refuses parts of another identity.

        A checkpoint that was replayed and no longer lies there stays. What was skipped before and is neither of the run
        nor `damaged` any more is forgotten. Shards have to agree on the checkpoints: of those that a shard does not see,
        no part may be missing. They need not on how many untrained networks there are: no more have to be there than all
        were asked for.
        """
        before = self._plan()
        differences = before.recording.identity.differences(recording.identity) if before else {}
        if differences:
            what = "; ".join(
                f"{name}: {_short(recorded)} there, {_short(now)} now" for name, (recorded, now) in differences.items()
            )
            raise PosthocError(
                f"{self.folder} holds the parts of an extraction that was configured otherwise ({what}); finish it with its "
                f"own options, or {'remove that folder' if shards else 'pass --force'} to start anew."
            )
        most = untrained
        if shards and before is not None and before.shards:
            untrained, most = min(before.untrained, untrained), max(before.most, untrained)
        home = os.path.realpath(folder)
        plan = Manifest(recording, tuple(entries), shards, untrained=untrained, most=most, folder=home)
        if before is not None:
            plan = self._going_on(before, plan)
        known = {*damaged, *(entry.path for entry in plan.all), *(control.path for control in controls_of(most))}
        for skip in self.skipped():
            if skip.path not in known:
                self.unskip(skip.path)
        if plan != before:
            self._write_down(plan)

    def _write_down(self, plan: Manifest) -> None:
        with replacing(self.folder / PLAN) as temporary:
            temporary.write_text(json.dumps(asdict(plan)))

    def _going_on(self, before: Manifest, plan: Manifest) -> Manifest:
        """A plan with what stays of the one before."""
        here = {entry.part for entry in plan.checkpoints}
        unseen = [entry for entry in before.all if entry.part not in here]
        looked_at = set(before.gone)  # once is enough, for a folder that is followed is looked at every other second
        gone = [e for e in unseen if (self.path(e).exists() if e in looked_at else self._stays(e, plan))]
        undone = [e.path for e in unseen if e not in gone and not self._skip(e.path).exists()]
        if plan.shards and undone:
            raise PosthocError(
                f"{self.folder} is of other checkpoints than this shard has, {listed(undone)} too; give all shards the same, "
                f"or remove that folder to start anew."
            )
        if gone and before.folder not in ("", plan.folder):
            raise PosthocError(
                f"{self.folder} holds parts of {before.folder} ({listed([entry.path for entry in gone])}), which are not in "
                f"{plan.folder}; choose another -o, or remove that folder to start anew."
            )
        came = {*before.came, *(here - {entry.part for entry in before.all})} if gone else set()
        plan = replace(plan, gone=tuple(gone), came=tuple(sorted(came)))
        return replace(plan, former=tuple(sorted(before.parts - plan.parts)))

    def _stays(self, entry: Entry, plan: Manifest) -> bool:
        """Whether a checkpoint that is not planned any more has a part that can no longer be made.

        One that still lies there is left out by intent, unless a shard has done what another does not see; a file that
        was overwritten with a later checkpoint is none of those.
        """
        made = self.made(entry, plan.recording.identity)
        if made is None:
            return False
        now = state(Path(plan.folder), entry.path, made.files, made.sha256)
        overwritten = now is State.CHANGED and any(
            each.path == entry.path and each.position > entry.position for each in plan.checkpoints
        )
        return plan.shards is not None or now is State.GONE or overwritten

    def _plan(self) -> Manifest | None:
        """What was written down; None where nothing was, or it is spoilt."""
        try:
            plan: Manifest = typed(Manifest, read_json(self.folder / PLAN))
            return plan
        except (PosthocError, MisfitError):
            return None

    def path(self, entry: Entry | Control) -> Path:
        """Where the part of a checkpoint, or of an untrained network, is, or will be."""
        return self.folder / entry.part

    def standing(self, items: Sequence[Entry | Control], folder: Path) -> list[bool]:
        """Whether there is a part, as those here have to be, of each checkpoint of the run in `folder` as that is now, or was
        when it was last there; of an untrained network, whether there is one."""
        plan = self._plan()

        def stands(item: Entry | Control) -> bool:
            made = self.made(item, plan.recording.identity) if plan else None
            if made is None or isinstance(item, Control):
                return made is not None
            return state(folder, item.path, made.files, made.sha256) is not State.CHANGED

        return [stands(item) for item in items]

    def entries(self) -> list[Entry]:
        """The checkpoints that belong here, those too that are gone; none before a task has begun."""
        plan = self._plan()
        return list(plan.all) if plan else []

    def gone(self) -> frozenset[Entry]:
        """Those that have parts, and no longer lie in the run's folder."""
        plan = self._plan()
        return frozenset(plan.gone if plan else ())

    def run_folder(self) -> str:
        """The folder of the run's checkpoints, as an activations file has it; empty where nothing says it."""
        plan = self._plan()
        return folder_text(plan.folder) if plan else ""

    def digests(self) -> dict[str, str]:
        """Those of the checkpoints that have parts, by their paths."""
        plan = self._plan()
        made = {entry.path: self.made(entry, plan.recording.identity) for entry in plan.all} if plan else {}
        return {path: each.sha256 for path, each in made.items() if each}

    def supersede(self, entry: Entry) -> None:
        """Leave out what is gone of later in training than a checkpoint that was replayed again, for it had changed: that is
        of the training before."""
        plan = self._plan()
        if plan is None or not (later := [each for each in plan.gone if each.position > entry.position]):
            return
        gone = tuple(each for each in plan.gone if each not in later)
        former = (*plan.former, *(each.part for each in later))
        self._write_down(replace(plan, gone=gone, former=former))
        warnings.warn(
            f"{entry.path} has other weights than when it was replayed before: {listed([each.path for each in later])}, "
            f"replayed then and gone since, are left out.",
            stacklevel=2,
        )

    def kept(self, force: bool = False) -> str:
        """How much an interrupted extraction has, and what goes on with it, in words; empty where there is nothing."""
        entries = self.entries()
        if not (done := sum(self.path(entry).exists() for entry in entries)):
            return ""
        command = "the same command without --force" if force else "the same command"
        once = f", once {self.output} is moved away" if force and self.output.exists() else ""
        return (
            f"; {done} of {counted(len(entries), 'checkpoint')} are kept in {self.folder}, and {command} goes on{once}"
        )

    def progress(self) -> Progress:
        """How far the parts are, by one look at the names in the folder; nothing belongs there before a task has begun."""
        plan = self._plan()
        if plan is None:
            return Progress((), (), 0, frozenset())
        names: set[str] = set()
        with contextlib.suppress(FileNotFoundError):  # who merges them takes the folder away
            names.update(os.listdir(self.folder))  # noqa: PTH208 - names are all there is to see
        replayed = sum(entry.part in names for entry in plan.checkpoints)
        places: list[tuple[int, Entry | Control]] = [*enumerate(plan.checkpoints)]
        places += [(control.place, control) for control in plan.controls]
        missing = [
            place for place, item in places if item.part not in names and self._skip(item.path).name not in names
        ]
        return Progress(plan.checkpoints, plan.controls, replayed, frozenset(missing))

    def made(self, entry: Entry | Control, identity: Identity) -> Made | None:
        """From what the part of a checkpoint, or of an untrained network, was made; None where there is none of this
        identity."""
        with self._opened(entry, identity) as part:
            if part is None:
                return None
            return Made(part.checkpoint_sha256[0], part.averaged_sha256[0], part.files)

    @contextlib.contextmanager
    def _opened(self, entry: Entry | Control, identity: Identity) -> Iterator[store.Activations | None]:
        """The part of a checkpoint, or of an untrained network; None where there is none of this identity."""
        with contextlib.ExitStack() as stack:
            part: store.Activations | None = None
            with contextlib.suppress(PosthocError):
                part = stack.enter_context(store.open_activations(self.path(entry)))
            same = part is not None and part.recording.identity.digest == identity.digest
            yield part if part is not None and same and part.checkpoints == (entry.path,) else None

    def skip(self, skipped: Skipped) -> None:
        """Record that a checkpoint could not be replayed."""
        with replacing(self._skip(skipped.path)) as temporary:
            temporary.write_text(json.dumps(skipped._asdict()))

    def unskip(self, path: str) -> None:
        """Forget that a checkpoint could not be replayed."""
        self._skip(path).unlink(missing_ok=True)

    def _skip(self, path: str) -> Path:
        return self.folder / f"skipped-{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}.json"

    def skipped(self) -> list[Skipped]:
        """What was skipped, in the order of the names."""
        skipped = []
        for file in sorted(self.folder.glob("skipped-*.json")):
            with contextlib.suppress(PosthocError, MisfitError, TypeError):
                skip = Skipped(**typed(dict[str, str], read_json(file, SKIP_BYTES)))
                if file == self._skip(skip.path):
                    skipped.append(skip)
        return sorted(skipped, key=lambda skip: (len(skip.path), skip.path))  # step-9 before step-10

    def merge(self, looked: bool = False) -> list[Skipped]:
        """Put the parts together as the activations file and take their folder away; what was skipped, and why.

        Raises PosthocError that names the checkpoints that are missing, or have changed since they were replayed, unless
        these were `looked` at just now, and the shards that have them to do.
        """
        plan = self._plan()
        if plan is None:
            raise PosthocError(f"{self.folder} holds no parts of an extraction; run posthoc extract first.")
        merger = Merger()
        missing: list[Entry | Control] = []
        changed: list[Entry | Control] = []
        skipped = {skip.path: skip for skip in self.skipped()}
        gone, spoilt, went = self._unnamed(plan), [], []
        items: list[Entry | Control] = [item for item in plan.all if item in gone or item not in plan.gone]
        for item in (*items, *controls_of(plan.most)):
            with self._opened(item, plan.recording.identity) as part:
                if part is None:
                    if item in gone:
                        spoilt.append(item.path)
                    elif item.path not in skipped and (isinstance(item, Entry) or item.number < plan.untrained):
                        missing.append(item)
                    continue
                skipped.pop(item.path, None)
                now = _state(plan, item, part) if item in plan.checkpoints and not looked else State.SAME
                if now is State.CHANGED:
                    changed.append(item)
                if item in gone or now is State.GONE:
                    went.append(item.path)
                if isinstance(item, Control):
                    merger.add_untrained(item.number, part)
                else:
                    merger.add(part)
        if missing:
            raise PosthocError(self._lacking(plan, missing))
        if changed:
            raise PosthocError(
                f"{listed([item.path for item in changed])} in {plan.folder} changed after the parts in {self.folder} were "
                f"made of them; {_advice(plan, changed)}, then merge."
            )
        if not merger.parts:
            reason = min(skip.reason for skip in skipped.values())
            raise PosthocError(
                f"None of the {counted(len(plan.checkpoints), 'checkpoint')} could be replayed: {reason}"
            )
        merger.write(self.output, list(skipped.values()), folder_text(plan.folder))
        self.clear()
        self._leave()
        if went:
            warnings.warn(
                f"{self.output} holds {counted(len(went), 'checkpoint')} replayed before and gone since from "
                f"{plan.folder}: {listed(went)}.",
                stacklevel=2,
            )
        if spoilt:
            warnings.warn(
                f"{self.output} lacks {listed(spoilt)}: the parts were damaged, and the checkpoints are gone.",
                stacklevel=2,
            )
        return list(skipped.values())

    def _unnamed(self, plan: Manifest) -> set[Entry | Control]:
        """The checkpoints that are gone, without those that are there under another name."""
        if not plan.gone or not plan.came:
            return set(plan.gone)
        identity = plan.recording.identity
        came = [self.made(entry, identity) for entry in plan.checkpoints if entry.part in plan.came]
        digests = {made.sha256 for made in came if made}
        return {entry for entry in plan.gone if not ((made := self.made(entry, identity)) and made.sha256 in digests)}

    def _lacking(self, plan: Manifest, missing: Sequence[Entry | Control]) -> str:
        """What is missing, and how it is made."""
        controls = f" and {counted(plan.untrained, 'untrained network')}" if plan.untrained else ""
        return (
            f"{self.folder} lacks {len(missing)} of {counted(len(plan.checkpoints), 'checkpoint')}{controls} "
            f"({listed([item.path for item in missing])}); {_advice(plan, missing)}, then merge."
        )

    def clear(self) -> None:
        """Remove the parts that are, or were, planned here, and what was skipped, and last the plan; the lock stays."""
        plan = self._plan()
        if plan is None:
            return
        names = plan.parts | {self._skip(skip.path).name for skip in self.skipped()}
        with open_folder(self.folder) as folder:
            for name in (*sorted(names.intersection(files_of(folder, self.folder, NAMES))), PLAN):
                remove(folder, self.folder, name)

    def remove(self) -> None:
        """Take away what there is, the folder with it, as when everything begins anew."""
        if os.path.lexists(self.folder):
            with self.held():
                self.clear()
                self._leave()

    def _leave(self) -> None:
        """Take the folder away; what else is in it stays there, and is named."""
        with open_folder(self.folder) as folder:
            others = sorted(set(os.listdir(folder)) - {LOCK})  # noqa: PTH208 - of this very folder
            remove(folder, self.folder, LOCK)
        if others:
            warnings.warn(f"{self.folder} stays, for it holds what is not posthoc's: {listed(others)}.", stacklevel=2)
        else:
            with contextlib.suppress(OSError):  # another process is about to begin there
                self.folder.rmdir()


def merge(output: Path, force: bool = False) -> list[Skipped]:
    """Merge the parts of `output`, made by shards; what was skipped."""
    refuse_existing(output, force)
    parts = Parts(output)
    if not parts.folder.is_dir():
        raise PosthocError(f"{parts.folder} does not exist; run posthoc extract --shard first.")
    with parts.held():
        return parts.merge()


def folder_text(folder: str) -> str:
    """The path of a folder as an activations file has it: what is no UTF-8 in it spelled out."""
    return folder.encode("utf-8", "backslashreplace").decode()


def run_text(folder: Path) -> str:
    """The same of a run's folder, wherever links lead to it."""
    return folder_text(os.path.realpath(folder))


def _advice(plan: Manifest, items: Sequence[Entry | Control]) -> str:
    """How the parts of some checkpoints are made."""
    if not plan.shards:
        return "run extract again"
    places = [item.place if isinstance(item, Control) else plan.checkpoints.index(item) for item in items]
    shards = sorted({Shard.of(place, plan.shards).index for place in places})
    return f"run --shard {' and '.join(f'{shard}/{plan.shards}' for shard in shards)}"


def _state(plan: Manifest, entry: Entry | Control, part: store.Activations) -> State:
    """What has become of the checkpoint of a part, as far as that can be seen from here."""
    folder = Path(plan.folder)
    if not plan.folder or not folder.is_dir():
        return State.SAME
    return state(folder, entry.path, part.files, part.checkpoint_sha256[0])


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
