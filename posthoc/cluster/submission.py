"""What was submitted, as OUT/submission.json has it, and Slurm's own word on it."""

import json
import os
import subprocess
from dataclasses import asdict, dataclass, field
from pathlib import Path

from posthoc.errors import PosthocError
from posthoc.files import replacing

RECORD = "submission.json"
Queue = dict[str, tuple[str, str]]
"""State and reason of jobs and tasks that are waiting or running, by id."""


@dataclass(frozen=True)
class Array:
    """A submitted array: task k of job `job` does shard k + offset of `count`."""

    job: str
    shards: list[int]
    count: int
    offset: int

    def task(self, shard: int) -> str:
        """The id that the queue and the logs have for a shard's task."""
        return f"{self.job}_{shard - self.offset}"


@dataclass
class Target:
    """A run, where its results go (relative to OUT), its number of checkpoints, and the jobs that were submitted for it.

    left_out: why it could not be planned, where such runs are skipped.
    """

    name: str
    checkpoints: str
    count: int = 0
    arrays: list[Array] = field(default_factory=list)
    finish: str | None = None
    left_out: str = ""

    @property
    def title(self) -> str:
        """Its name; of a lone run that of its checkpoints."""
        return self.name or Path(self.checkpoints).name


@dataclass
class Submission:
    """All that was submitted to make OUT; of one run the results lie in OUT itself, of several in OUT/NAME."""

    out: Path
    words: list[str]
    measuring: list[str] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    compare: str | None = None

    @classmethod
    def load(cls, out: Path) -> "Submission | None":
        """Read it from its folder; None where nothing was submitted."""
        path = out / RECORD
        try:
            content = json.loads(path.read_text())
            targets = [
                Target(**{**target, "arrays": [Array(**array) for array in target["arrays"]]})
                for target in content.pop("targets")
            ]
            return cls(out=out, targets=targets, **content)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise PosthocError(f"{path} is not what posthoc submit wrote ({error}); choose another -o.") from error

    def save(self) -> None:
        content = asdict(self)
        del content["out"]
        with replacing(self.out / RECORD) as temporary:
            temporary.write_text(json.dumps(content, indent=1))

    def home(self, target: Target) -> Path:
        """The folder of a run's results."""
        return self.out / target.name

    def jobs(self) -> set[str]:
        """The ids of all jobs that were submitted."""
        arrays = {array.job for target in self.targets for array in target.arrays}
        return arrays | {job for job in (self.compare, *(target.finish for target in self.targets)) if job}

    def log(self, target: Target | None, task: str) -> Path:
        """Where a task or job writes: of a run, or of the comparison."""
        return (self.home(target) if target else self.out) / "logs" / f"{task}_0_log.out"


def queue() -> Queue:
    """State and reason of this user's jobs and tasks that are waiting or running, by id."""
    words = ["squeue", "--noheader", "--all", "--array", f"--user={os.getuid()}", "--format=%i|%T|%r"]
    lines = slurm(*words).splitlines()
    return {row[0]: (row[1], row[2]) for row in (line.split("|") for line in lines) if len(row) == 3}


def outside() -> dict[str, str]:
    """The environment without what an allocation that this runs in, or a user's taste in listings, has put there."""
    return {
        name: value
        for name, value in os.environ.items()
        if name == "SLURM_CONF" or not name.startswith(("SLURM_", "SQUEUE_"))
    }


def slurm(*words: str) -> str:
    """Output of one of Slurm's commands; raises PosthocError with what it complained of."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, env=outside())
    except FileNotFoundError:
        raise PosthocError(
            f"There is no Slurm here (no {words[0]}); on other schedulers use posthoc extract --shard i/n."
        ) from None
    if done.returncode:
        reason = " ".join((done.stderr or done.stdout).split())
        raise PosthocError(f"{words[0]} failed: {reason}. The same command goes on from here once that is mended.")
    return done.stdout
