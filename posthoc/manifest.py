"""What belongs in the folder of parts beside an unfinished activations file, and from what each part was made."""

import re
from dataclasses import dataclass
from typing import Annotated

from posthoc.recording import MOST_CONTROLS, Recording
from posthoc.stamps import Stamp
from posthoc.typed import Range

PART = re.compile(r"(epoch(-1|\d{1,19})-step(-1|\d{1,19})|untrained-\d{1,4})\.h5")


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

    @property
    def position(self) -> tuple[int, int]:
        """Its place in training."""
        return self.epoch, self.step


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
class Made:
    """From what a part was made: SHA-256 of the checkpoint, and of what else went into its means of weights (None: it does
    not matter), and the files that were read."""

    sha256: str
    averaged: str | None
    files: tuple[Stamp, ...]


@dataclass(frozen=True)
class Manifest:
    """What belongs in the folder; former: the names of parts of checkpoints that are no longer of the run.

    untrained: how many untrained networks there have to be; most: as many as any shard was asked for; folder: the run's,
    empty where an earlier version wrote this; gone: checkpoints that have parts and no longer lie there; came: the names of
    parts of those that came when some had gone, each of which may be one of these under another name.
    """

    recording: Recording
    checkpoints: tuple[Entry, ...]
    shards: Annotated[int, Range(1)] | None = None
    former: tuple[str, ...] = ()
    untrained: Annotated[int, Range(0, MOST_CONTROLS)] = 0
    most: Annotated[int, Range(0, MOST_CONTROLS)] = 0
    folder: str = ""
    gone: tuple[Entry, ...] = ()
    came: tuple[str, ...] = ()

    @property
    def all(self) -> tuple[Entry, ...]:
        """The checkpoints that are there and those that are gone, in the run's order."""
        if not self.gone:
            return self.checkpoints
        return tuple(sorted((*self.checkpoints, *self.gone), key=lambda entry: entry.position))

    @property
    def parts(self) -> set[str]:
        """The names of all parts that are, or were, planned here."""
        planned = {entry.part for entry in self.all} | {control.part for control in controls_of(self.most)}
        return planned | set(filter(PART.fullmatch, self.former))

    @property
    def controls(self) -> tuple[Control, ...]:
        """The untrained networks."""
        return controls_of(self.untrained)


@dataclass(frozen=True)
class Progress:
    """How far the parts of a run are. replayed: of how many checkpoints there are parts; missing: the places of checkpoints
    (0, 1, ...) and untrained networks (-1, -2, ...) that have none and were not skipped."""

    checkpoints: tuple[Entry, ...]
    controls: tuple[Control, ...]
    replayed: int
    missing: frozenset[int]


def controls_of(count: int) -> tuple[Control, ...]:
    """So many untrained networks."""
    return tuple(map(Control, range(count)))
