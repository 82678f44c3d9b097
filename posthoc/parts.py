"""The folder of parts beside an unfinished activations file: who works on it, what belongs to it, and its merging.

One part per checkpoint, whole or absent, is what resumption, shards, merging and recovery all rest on.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import socket
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from posthoc import store, writing
from posthoc.errors import PosthocError
from posthoc.files import read_json, refuse_existing, replacing
from posthoc.own import LOCK, files_of, open_lock, own_folder, read_lock, remove, sign_lock
from posthoc.recording import MOST_CONTROLS, Identity, Recording
from posthoc.typed import MisfitError, Range, typed

PLAN = "plan.json"
PART = re.compile(r"(epoch(-1|\d{1,19})-step(-1|\d{1,19})|untrained-\d{1,4})\.h5")
NAMES = re.compile(rf"{re.escape(PLAN)}|{PART.pattern}|skipped-[0-9a-f]{{16}}\.json")
"""Of everything that lies in the folder and is ours, but for the lock and what a process that was killed left behind."""
LEFT = re.compile(rf"\.({NAMES.pattern})\.[0-9a-f]{{1,12}}\.tmp")
SKIP_BYTES = 2**20


@dataclass(frozen=True)
class Entry:
    """A checkpoint of the run: its path relative to the run's folder, and its place in training (-1: unknown)."""

    path: str
    epoch: Annotated[int, Range(-1)]
    step: Annotated[int, Range(-1)]

    @property
    def part(self) -> str:
        """File name of its part."""
        return f"epoch{self.epoch}-step{self.step}.h5"


@dataclass(frozen=True)
class Control:
    """An untrained network beside the run, the `number`-th (0, 1, ...)."""

    number: int

    @property
    def path(self) -> str:
        """What stands in a checkpoint's place where it is spoken of."""
        return f"untrained network {self.number + 1}"

    @property
    def part(self) -> str:
        """File name of its part."""
        return f"untrained-{self.number}.h5"

    @property
    def place(self) -> int:
        """Its place in what shards share: from the end on (-1, -2, ...), for the last ones have the fewest checkpoints,
        and how many there are may differ from shard to shard."""
        return -1 - self.number


@dataclass(frozen=True)
class Manifest:
    """What belongs in the folder; former: the names of parts of checkpoints that are no longer of the run.

    untrained: how many untrained networks there have to be; most: as many as any shard was asked for.
    """

    recording: Recording
    checkpoints: tuple[Entry, ...]
    shards: Annotated[int, Range(1)] | None = None
    former: tuple[str, ...] = ()
    untrained: Annotated[int, Range(0, MOST_CONTROLS)] = 0
    most: Annotated[int, Range(0, MOST_CONTROLS)] = 0

    @property
    def parts(self) -> set[str]:
        """The names of all parts that are, or were, planned here."""
        planned = {entry.part for entry in self.checkpoints} | {control.part for control in controls_of(self.most)}
        return planned | set(filter(PART.fullmatch, self.former))

    @property
    def controls(self) -> tuple[Control, ...]:
        """The untrained networks."""
        return controls_of(self.untrained)


def controls_of(count: int) -> tuple[Control, ...]:
    """So many untrained networks."""
    return tuple(map(Control, range(count)))


@dataclass(frozen=True)
class Skip:
    """A checkpoint that could not be replayed, and why."""

    path: str
    reason: str


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
                folder, lock = self._lock(stack, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
                files_of(folder, self.folder, NAMES)
                with contextlib.suppress(OSError):  # a full disk is met when there is something to write
                    sign_lock(lock, f"process {os.getpid()} on {socket.gethostname()}")
                if not shared:
                    self._tidy(folder)
            except OSError as error:
                raise PosthocError(f"Cannot write into {self.folder}: {error.strerror or error}.") from error
            yield

    def _lock(self, stack: contextlib.ExitStack, how: int) -> tuple[int, int]:
        """Descriptors of the folder and of its lock, held."""
        while True:
            attempt = stack.enter_context(contextlib.ExitStack())
            folder = attempt.enter_context(own_folder(self.folder))
            try:
                lock = open_lock(folder, self.folder)
            except FileNotFoundError:  # the one before us took the folder away just now
                attempt.close()
                continue
            attempt.callback(os.close, lock)
            try:
                fcntl.flock(lock, how | fcntl.LOCK_NB)
            except BlockingIOError:
                who = read_lock(lock).strip() or "another process"
                raise PosthocError(
                    f"{self.output} is being written by {who}; wait for it, or choose another -o."
                ) from None
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
                    raise
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(lock), (self.folder / LOCK).lstat()):
                    return folder, lock
            attempt.close()  # the one before us finished and took the folder away

    def _tidy(self, folder: int) -> None:
        """Remove what processes that were killed had begun to write: here, and beside the output."""
        for name in files_of(folder, self.folder, LEFT):
            remove(folder, self.folder, name)
        mine = re.compile(rf"\.{re.escape(self.output.name)}\.[0-9a-f]{{1,12}}\.tmp")
        with os.scandir(self.output.parent) as entries:
            left = [
                entry.path for entry in entries if mine.fullmatch(entry.name) and entry.is_file(follow_symlinks=False)
            ]
        for path in left:
            Path(path).unlink(missing_ok=True)

    def start(
        self,
        recording: Recording,
        entries: Sequence[Entry],
        damaged: Sequence[str] = (),
        shards: int | None = None,
        untrained: int = 0,
    ) -> None:
        """Write down what belongs here; refuses parts of another identity.

        What was skipped before and is neither of the run nor `damaged` any more is forgotten. Shards have to agree on
        the checkpoints: of those that a shard does not see, no part may be missing. They need not on how many untrained
        networks there are: no more have to be there than all were asked for.
        """
        before = self._plan()
        differences = before.recording.identity.differences(recording.identity) if before else {}
        if differences:
            what = "; ".join(
                f"{name}: {_short(there)} there, {_short(now)} now" for name, (there, now) in differences.items()
            )
            raise PosthocError(
                f"{self.folder} holds the parts of an extraction that was configured otherwise ({what}); "
                f"finish it with its own options, or pass --force to start anew."
            )
        most = untrained
        if shards and before is not None:
            entries = self._agreed(before.checkpoints, entries)
            if before.shards:
                untrained, most = min(before.untrained, untrained), max(before.most, untrained)
        plan = Manifest(recording, tuple(entries), shards, untrained=untrained, most=most)
        plan = replace(plan, former=tuple(sorted(before.parts - plan.parts)) if before else ())
        here = {entry.path for entry in entries} | {control.path for control in controls_of(most)}
        for gone in self.skipped().keys() - here - set(damaged):
            self.unskip(gone)
        if plan != before:
            with replacing(self.folder / PLAN) as temporary:
                temporary.write_text(json.dumps(asdict(plan)))

    def _agreed(self, before: Sequence[Entry], entries: Sequence[Entry]) -> Sequence[Entry]:
        """The checkpoints of a shard with those that other shards have done, in the run's order."""
        there = {entry.part for entry in entries}
        unseen = [entry for entry in before if entry.part not in there]
        if undone := [entry.path for entry in unseen if not self.settled(entry)]:
            names = ", ".join(undone[:5]) + (", ..." if len(undone) > 5 else "")
            raise PosthocError(
                f"{self.folder} is of other checkpoints than this shard has, {names} too; give all shards the same, "
                f"or remove that folder to start anew."
            )
        return sorted([*entries, *unseen], key=lambda entry: (entry.epoch, entry.step)) if unseen else entries

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

    def settled(self, entry: Entry | Control) -> bool:
        """Whether a checkpoint has a part, or was skipped; parts are not looked into."""
        return self.path(entry).exists() or self._skip(entry.path).exists()

    def entries(self) -> list[Entry]:
        """The checkpoints that belong here; none before a task has begun."""
        plan = self._plan()
        return list(plan.checkpoints) if plan else []

    def controls(self) -> tuple[Control, ...]:
        """The untrained networks that belong here; none before a task has begun."""
        plan = self._plan()
        return plan.controls if plan else ()

    def digest(self, entry: Entry | Control, identity: Identity) -> str | None:
        """SHA-256 of the checkpoint that a part was made from; None where there is none of this identity."""
        try:
            with store.open_activations(self.path(entry)) as one:
                same = (
                    len(one) == 1
                    and one.recording.identity.digest == identity.digest
                    and one.checkpoints[0] == entry.path
                )
                return one.checkpoint_sha256[0] if same else None
        except PosthocError:
            return None

    def skip(self, path: str, reason: str) -> None:
        """Record that a checkpoint could not be replayed."""
        with replacing(self._skip(path)) as temporary:
            temporary.write_text(json.dumps({"path": path, "reason": reason}))

    def unskip(self, path: str) -> None:
        """Forget that a checkpoint could not be replayed."""
        self._skip(path).unlink(missing_ok=True)

    def _skip(self, path: str) -> Path:
        return self.folder / f"skipped-{hashlib.sha256(path.encode()).hexdigest()[:16]}.json"

    def skipped(self) -> dict[str, str]:
        """Path and reason of what was skipped."""
        found = {}
        for file in sorted(self.folder.glob("skipped-*.json")):
            with contextlib.suppress(PosthocError, MisfitError):
                skip: Skip = typed(Skip, read_json(file, SKIP_BYTES))
                if file == self._skip(skip.path):
                    found[skip.path] = skip.reason
        return found

    def merge(self) -> list[tuple[str, str]]:
        """Put the parts together as the activations file and take their folder away; what was skipped, and why.

        Raises PosthocError that names the missing checkpoints, and the shards that have them to do.
        """
        plan = self._plan()
        if plan is None:
            raise PosthocError(f"{self.folder} holds no parts of an extraction; run posthoc extract first.")
        entries = plan.checkpoints
        skipped = self.skipped()
        done: list[Path] = []
        untrained: list[tuple[int, Path]] = []
        missing = []
        items: list[tuple[int, Entry | Control]] = [*enumerate(entries)]
        items += [(control.place, control) for control in controls_of(plan.most)]
        for k, item in items:
            if self.digest(item, plan.recording.identity) is not None:
                if isinstance(item, Control):
                    untrained.append((item.number, self.path(item)))
                else:
                    done.append(self.path(item))
                skipped.pop(item.path, None)
            elif item.path not in skipped and not (isinstance(item, Control) and item.number >= plan.untrained):
                missing.append((k, item.path))
        if missing:
            names = ", ".join(name for _, name in missing[:5]) + (", ..." if len(missing) > 5 else "")
            shards = plan.shards
            which = sorted({k % shards + 1 for k, _ in missing}) if shards else []
            advice = f"run --shard {' and '.join(f'{i}/{shards}' for i in which)}" if which else "run extract again"
            raise PosthocError(
                f"{self.folder} lacks {len(missing)} of {len(entries)} checkpoints"
                f"{f' and {len(plan.controls)} untrained networks' if plan.controls else ''} ({names}); "
                f"{advice}, then merge."
            )
        if not done:
            raise PosthocError(f"None of the {len(entries)} checkpoints could be replayed: {min(skipped.values())}")
        writing.merge(self.output, done, list(skipped.items()), untrained)
        self.clear()
        self._leave()
        return list(skipped.items())

    def clear(self) -> None:
        """Remove the parts that are, or were, planned here, and what was skipped, and last the plan; the lock stays."""
        plan = self._plan()
        if plan is None:
            return
        names = plan.parts | {self._skip(path).name for path in self.skipped()}
        with own_folder(self.folder) as folder:
            there = set(files_of(folder, self.folder, NAMES))
            for name in (*sorted(there & names), PLAN):
                remove(folder, self.folder, name)

    def remove(self) -> None:
        """Take away what there is, the folder with it, as when everything begins anew."""
        if os.path.lexists(self.folder):
            with self.held():
                self.clear()
                self._leave()

    def _leave(self) -> None:
        """Take the folder away; what else is in it stays there, and is named."""
        with own_folder(self.folder) as folder:
            others = sorted(set(os.listdir(folder)) - {LOCK})  # noqa: PTH208 - of this very folder
            remove(folder, self.folder, LOCK)
        if others:
            names = ", ".join(others[:5]) + (", ..." if len(others) > 5 else "")
            warnings.warn(f"{self.folder} stays, for it holds what is not posthoc's: {names}.", stacklevel=2)
        else:
            with contextlib.suppress(OSError):  # another process is about to begin there
                self.folder.rmdir()


def merge(output: Path, force: bool = False) -> list[tuple[str, str]]:
    """Merge the parts of `output`, made by shards; path and reason of what was skipped."""
    refuse_existing(output, force)
    parts = Parts(output)
    if not parts.folder.is_dir():
        raise PosthocError(f"{parts.folder} does not exist; run posthoc extract --shard first.")
    with parts.held():
        return parts.merge()


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
