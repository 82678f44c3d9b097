"""The folder of parts beside an unfinished activations file: who works on it, what belongs to it, and its merging.

One part per checkpoint, whole or absent, is what resumption, shards, merging and recovery all rest on.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posthoc import store
from posthoc.errors import PosthocError
from posthoc.files import refuse_existing, replacing


@dataclass(frozen=True)
class Entry:
    """A checkpoint of the run: its path relative to the run's folder, and its place in training (-1: unknown)."""

    path: str
    epoch: int
    step: int

    @property
    def part(self) -> str:
        """File name of its part."""
        return f"epoch{self.epoch}-step{self.step}.h5"


class Parts:
    """The parts of the activations file `output`, in the folder `output`.parts."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.folder = output.with_name(output.name + ".parts")

    @contextlib.contextmanager
    def held(self, shared: bool = False) -> Iterator[None]:
        """Hold the folder while working on it: alone, or shared with other shards.

        The lock goes with the process, however it ends. Raises PosthocError where another process holds it. On a file
        system without locks nothing is held: parts are whole or absent all the same.
        """
        path = self.folder / ".lock"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = path.open("a+")
            while True:
                fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                        break
                file.close()  # the one before us finished and took the folder away
                self.folder.mkdir(parents=True, exist_ok=True)
                file = path.open("a+")
        except BlockingIOError:
            file.seek(0)
            who = file.read().strip() or "another process"
            raise PosthocError(f"{self.output} is being written by {who}; wait for it, or choose another -o.") from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
                raise PosthocError(f"Cannot write {path}: {error.strerror or error}.") from error
        try:
            with contextlib.suppress(OSError):  # a full disk is met when there is something to write
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}")
                file.flush()
            if not shared:
                for left in (*self.output.parent.glob(f".{self.output.name}.*.tmp"), *self.folder.glob(".*.tmp")):
                    left.unlink(missing_ok=True)  # of a process that was killed
            yield
        finally:
            file.close()

    def start(
        self, config: dict[str, Any], entries: Sequence[Entry], damaged: Sequence[str] = (), shards: int | None = None
    ) -> None:
        """Write down what belongs here; refuses parts that were made with another configuration.

        What was skipped before and is neither of the run nor `damaged` any more is forgotten.
        """
        path = self.folder / "plan.json"
        before = self._plan()
        if before is not None and before["config"] != config:
            theirs = before["config"]
            keys = sorted(key for key in config.keys() | theirs.keys() if config.get(key) != theirs.get(key))
            what = "; ".join(f"{key}: {_short(theirs.get(key))} there, {_short(config.get(key))} now" for key in keys)
            raise PosthocError(
                f"{self.folder} holds the parts of an extraction that was configured otherwise ({what}); "
                f"finish it with its own options, or pass --force to start anew."
            )
        plan = {"config": config, "checkpoints": [vars(entry) for entry in entries], "shards": shards}
        for gone in self.skipped().keys() - {entry.path for entry in entries} - set(damaged):
            self.unskip(gone)
        if plan != before:
            with replacing(path) as temporary:
                temporary.write_text(json.dumps(plan))

    def _plan(self) -> dict[str, Any] | None:
        try:
            plan: dict[str, Any] = json.loads((self.folder / "plan.json").read_text())
            return plan if {"config", "checkpoints", "shards"} <= plan.keys() else None
        except (OSError, ValueError, AttributeError):
            return None

    def path(self, entry: Entry) -> Path:
        """Where the part of a checkpoint is, or will be."""
        return self.folder / entry.part

    def settled(self, entry: Entry) -> bool:
        """Whether a checkpoint has a part, or was skipped; parts are not looked into."""
        return self.path(entry).exists() or self._skip(entry.path).exists()

    def entries(self) -> list[Entry]:
        """The checkpoints that belong here; none before a task has begun."""
        plan = self._plan()
        return [Entry(**entry) for entry in plan["checkpoints"]] if plan else []

    def digest(self, entry: Entry, config: dict[str, Any]) -> str | None:
        """SHA-256 of the checkpoint that a part was made from; None where there is none of this configuration."""
        try:
            with store.open_activations(self.path(entry)) as one:
                same = len(one) == 1 and one.config == config and one.checkpoints[0] == entry.path
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
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                said = json.loads(file.read_text())
                found[str(said["path"])] = str(said["reason"])
        return found

    def merge(self) -> list[tuple[str, str]]:
        """Put the parts together as the activations file and take their folder away; what was skipped, and why.

        Raises PosthocError that names the missing checkpoints, and the shards that have them to do.
        """
        plan = self._plan()
        if plan is None:
            raise PosthocError(f"{self.folder} holds no parts of an extraction; run posthoc extract first.")
        entries = [Entry(**entry) for entry in plan["checkpoints"]]
        skipped = self.skipped()
        done, missing = [], []
        for k, entry in enumerate(entries):
            if self.digest(entry, plan["config"]) is not None:
                done.append(self.path(entry))
                skipped.pop(entry.path, None)
            elif entry.path not in skipped:
                missing.append((k, entry.path))
        if missing:
            names = ", ".join(name for _, name in missing[:5]) + (", ..." if len(missing) > 5 else "")
            shards = plan["shards"]
            which = sorted({k % shards + 1 for k, _ in missing}) if shards else []
            advice = f"run --shard {' and '.join(f'{i}/{shards}' for i in which)}" if which else "run extract again"
            raise PosthocError(
                f"{self.folder} lacks {len(missing)} of {len(entries)} checkpoints ({names}); {advice}, then merge."
            )
        if not done:
            raise PosthocError(f"None of the {len(entries)} checkpoints could be replayed: {min(skipped.values())}")
        store.merge(self.output, done, list(skipped.items()))
        self.clear()
        shutil.rmtree(self.folder, ignore_errors=True)
        return list(skipped.items())

    def clear(self) -> None:
        """Remove all parts, and then the plan that says what they are; the lock stays."""
        for path in sorted(self.folder.iterdir(), key=lambda path: path.name == "plan.json"):
            if path.name != ".lock":
                path.unlink(missing_ok=True)


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
