"""Which of the tasks that share a run has what to do; light, for the command line reads `--shard` before anything else."""

import os
from dataclasses import dataclass

from posthoc.errors import UsageError


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
                first, step = (int(os.environ.get(f"SLURM_ARRAY_TASK_{name}", 0)) for name in ("MIN", "STEP"))
                count = int(os.environ["SLURM_ARRAY_TASK_COUNT"])
                index = (int(os.environ["SLURM_ARRAY_TASK_ID"]) - first) // (step or 1) + 1
            else:
                index, count = map(int, text.split("/"))
        except KeyError:
            raise UsageError("--shard auto works in a Slurm job array only; give i/n.") from None
        except ValueError:
            index = count = 0
        if not 1 <= index <= count:
            raise UsageError(f"--shard {text}: give i/n with i from 1 to n, such as 1/8, or auto.")
        return cls(index, count)

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
