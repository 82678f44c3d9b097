"""What was submitted, as OUT/submission.json has it."""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

from posthoc.errors import PosthocError
from posthoc.files import read_json, replacing
from posthoc.folders import refuse_link
from posthoc.typed import Match, MisfitError, Range, typed

RECORD = "submission.json"
MOST = 10**6
"""Checkpoints of a run, or tasks of an array: more than a cluster holds."""
Job = Annotated[str, Match(r"[A-Za-z0-9][A-Za-z0-9.]{0,63}")]
"""What a scheduler calls a job."""
Name = Annotated[str, Match(r"(?!\.\.?(/|$))[^/\x00-\x1f\x7f]+(/(?!\.\.?(/|$))[^/\x00-\x1f\x7f]+)*|")]
"""Folders below another, from its outermost to its innermost, none of which leads out of it; or none."""


@dataclass(frozen=True)
class Array:
    """A submitted array: task k of job `job` does shard k + offset of `count`."""

    job: Job
    shards: Annotated[list[int], Range(1, MOST)]
    count: Annotated[int, Range(1, MOST)]
    offset: Annotated[int, Range(0, MOST)]

    def task(self, shard: int) -> str:
        """The id that the queue and the logs have for a shard's task."""
        return f"{self.job}_{shard - self.offset}"


@dataclass
class Target:
    """A run, where its results go (relative to OUT), its number of checkpoints, and the jobs that were submitted for it.

    left_out: why it could not be planned, where such runs are skipped.
    """

    name: Name
    checkpoints: str
    count: Annotated[int, Range(0, MOST)] = 0
    arrays: list[Array] = field(default_factory=list)
    finish: Job | None = None
    left_out: str = ""

    @property
    def title(self) -> str:
        """Its name; of a lone run that of its checkpoints."""
        return self.name or Path(self.checkpoints).name


@dataclass
class Submission:
    """All that was submitted to make OUT; of one run the results lie in OUT itself, of several in OUT/NAME."""

    out: Annotated[Path, str]
    words: list[str]
    measuring: list[str] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    seconds: dict[str, Annotated[float, Range(0, 1e9)]] = field(default_factory=dict)
    compare: Job | None = None
    scheduler: str = "slurm"

    @classmethod
    def load(cls, out: Path) -> "Submission | None":
        """Read it from its folder; None where nothing was submitted."""
        path = out / RECORD
        if not os.path.lexists(path):
            return None
        refuse_link(path)
        content = read_json(path, by="posthoc submit")
        try:
            if not isinstance(content, dict):
                raise MisfitError("is no record")
            submission: Submission = typed(cls, {**content, "out": ""})
        except MisfitError as error:
            raise PosthocError(
                f"{path} is not what posthoc submit wrote ({error}); move it away, or give another folder."
            ) from error
        submission.out = out
        return submission

    def save(self) -> None:
        content = asdict(self)
        del content["out"]
        with replacing(self.out / RECORD) as temporary:
            temporary.write_text(json.dumps(content, indent=1))

    def home(self, target: Target) -> Path:
        """The folder of a run's results; raises PosthocError where a link would lead out of OUT."""
        place = self.out
        for name in Path(target.name).parts:
            place /= name
            refuse_link(place)
        return place

    def jobs(self) -> set[str]:
        """The ids of all jobs that were submitted."""
        arrays = {array.job for target in self.targets for array in target.arrays}
        return arrays | {job for job in (self.compare, *(target.finish for target in self.targets)) if job}

    def log(self, target: Target | None, task: str) -> Path:
        """Where a task or job writes: of a run, or of the comparison."""
        return (self.home(target) if target else self.out) / "logs" / f"{task}_0_log.out"
