"""Which of the tasks that share a run has what to do; light, for the command line reads `--shard` before anything else."""

import os
from dataclasses import dataclass

from posthoc.errors import UsageError
from posthoc.shown import counted


@dataclass(frozen=True)
class Shard:
    """One of `count` tasks that share a run: every count-th checkpoint, counted from `index` (1..count)."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Read `i/n`, or `auto` in a task of a Slurm job array.

        >>> Shard.parse("2/8")
        Shard(index=2, count=8)
        """
        try:
            if text == "auto":
                return cls._of_slurm()
            index, count = map(int, text.split("/"))
        except KeyError:
            raise UsageError("--shard auto works in a Slurm job array only; give i/n.") from None
        except ValueError:
            index = count = 0
        if not 1 <= index <= count:
            raise UsageError(f"--shard {text}: give i/n with i from 1 to n, such as 1/8, or auto.")
        return cls(index, count)

    @classmethod
    def _of_slurm(cls) -> "Shard":
        """That of the task of a job array that this is; raises KeyError outside of one."""
        task, count = (int(os.environ[f"SLURM_ARRAY_TASK_{name}"]) for name in ("ID", "COUNT"))
        first = int(os.environ.get("SLURM_ARRAY_TASK_MIN", 0))
        step = int(os.environ.get("SLURM_ARRAY_TASK_STEP", 0)) or 1
        last = int(os.environ.get("SLURM_ARRAY_TASK_MAX", first + (count - 1) * step))
        # Of an array with gaps no task is given a share: others would have the same, or one that is not there.
        if last != first + (count - 1) * step or not first <= task <= last:
            raise UsageError(
                f"--shard auto counts the tasks of a Slurm array without gaps, and this one, of {counted(count, 'task')} from "
                f"{first} up, has task {max(last, task)}; give i/n, or submit an array such as 1-{count}."
            )
        return cls((task - first) // step + 1, count)

    @classmethod
    def of(cls, place: int, count: int) -> "Shard":
        """The one of `count` that has what is at that place.

        >>> Shard.of(4, 3)
        Shard(index=2, count=3)
        """
        return cls(place % count + 1, count)

    def has(self, place: int) -> bool:
        """Whether what is at that place of the run, from 0 up, is of this shard.

        >>> [place for place in range(6) if Shard(2, 3).has(place)]
        [1, 4]
        """
        return self == Shard.of(place, self.count)
