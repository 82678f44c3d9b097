"""The batch scripts: written by submitit, whole in themselves, with every path absolute."""

import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posthoc.errors import PosthocError

REQUEUES = 20
"""How often a task that ran out of time is put back into the queue; each time it has got further."""
EVERY_JOB = ("account", "comment", "mail-type", "mail-user", "reservation", "export")
POSTHOC = shlex.join([sys.executable, "-P", "-m", "posthoc"])
"""The command, which imports nothing from the working directory."""
AFTER_REPLAY = f"""\
code=$?
# 138: time was nearly over (SIGUSR1) and the checkpoint in hand is written; the rest goes back into the queue.
if [ $code -eq 138 ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {REQUEUES} ]; then
    scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID" && exit
fi
# 3: checkpoints were skipped, as asked, and are written down.
if [ $code -eq 3 ]; then exit 0; fi
exit $code"""


@dataclass(frozen=True)
class Resources:
    """What a task is given; submitit's names. setup: lines of shell before the work; slurm: any other sbatch option.

    Of the last, the jobs that merge, measure and compare are given those of EVERY_JOB only: they need no GPU.
    """

    partition: str | None = None
    gpus_per_node: int | None = None
    cpus_per_task: int = 4
    mem_gb: float | None = None
    timeout_min: int = 60
    array_parallelism: int = 256
    metrics_partition: str | None = None
    setup: tuple[str, ...] = ()
    slurm: tuple[tuple[str, str | bool], ...] = ()

    @property
    def gpus(self) -> bool:
        """Whether tasks are given GPUs, by whatever option."""
        return bool(self.gpus_per_node) or any(
            name in ("gpus", "gpus-per-task", "gpus-per-node") or (name == "gres" and "gpu" in str(value))
            for name, value in self.slurm
        )

    def srun(self, command: Sequence[str]) -> list[str]:
        """One task's command, to run in the cluster at once, after the setup."""
        given = {"ntasks": 1, "partition": self.partition, "gpus-per-node": self.gpus_per_node}
        given |= {"cpus-per-task": self.cpus_per_task, "mem": f"{self.mem_gb}G" if self.mem_gb else None}
        given |= {"time": self.timeout_min, **dict(self.slurm)}
        words = ["srun", "--job-name=posthoc-timing"]
        words += [f"--{name}" if value is True else f"--{name}={value}" for name, value in given.items() if value]
        return [*words, "bash", "-c", "\n".join([*self.setup, f"exec {shlex.join(command)}"])]


def extract_script(
    home: Path,
    checkpoints: str,
    words: Sequence[str],
    resources: Resources,
    shards: Sequence[int],
    count: int,
    offset: int,
    seconds: float | None,
) -> str:
    """An array whose task k replays shard k + offset of `count`; home: the folder of the run's results.

    seconds: what a checkpoint takes, if that is known; Slurm gives notice so long before the time is up.
    """
    shard = "SLURM_ARRAY_TASK_ID" + (f" + {offset}" if offset else "")
    command = f"{POSTHOC} extract {shlex.join([checkpoints, '-o', str(home / 'activations.h5'), *words])}"
    array = _ranges([shard - offset for shard in shards]) + f"%{resources.array_parallelism}"
    notice = int(min(max(120, 2 * (seconds or 0) + 30), 30 * resources.timeout_min))
    return _script(home, "replay", resources, f'{command} --shard "$(({shard}))/{count}"', array, notice)


def finish_script(home: Path, measuring: Sequence[str], resources: Resources) -> str:
    """The job that merges a run's parts and measures them, as far as that is not done."""
    activations, metrics = (shlex.quote(str(home / name)) for name in ("activations.h5", "metrics.json"))
    lines = [
        f"test -e {activations} || {POSTHOC} merge {activations} || test $? -eq 3 # 3: all but what was skipped",
        f"test -e {metrics} || {POSTHOC} metrics {activations} -o {metrics} {shlex.join(measuring)}".rstrip(),
    ]
    return _script(home, "measure", resources, "\n".join(["set -e", *lines]))


def compare_script(out: Path, resources: Resources) -> str:
    """The job that compares all runs measured in `out`."""
    table, new = (shlex.quote(str(out / name)) for name in ("comparison.txt", ".comparison.txt.tmp"))
    lines = [f"rm -f {new}", f"{POSTHOC} compare {shlex.quote(str(out))} --stopping > {new}", f"mv {new} {table}"]
    return _script(out, "compare", resources, "\n".join(["set -e", *lines]))


def _script(
    home: Path, what: str, resources: Resources, command: str, array: str | None = None, notice: int = 60
) -> str:
    """The script of an array, whose tasks run under srun, which hands signals on, or of a job of analysis."""
    try:
        import submitit
    except ImportError:
        raise PosthocError("Batch jobs need submitit: pip install 'posthoc[slurm]'.") from None

    class Writer(submitit.SlurmExecutor):
        """Writes scripts where there is no Slurm, too."""

        @classmethod
        def affinity(cls) -> int:
            return 1

    parameters: dict[str, Any] = {
        "name": re.sub(r"[^\w.-]+", "-", f"posthoc-{what}-{home.name}"),
        "timeout_min": resources.timeout_min,
        "cpus_per_task": resources.cpus_per_task,
        "partition": resources.partition if array else resources.metrics_partition or resources.partition,
        "setup": list(resources.setup),
        "stderr_to_stdout": True,
        "wckey": None,
    }
    asked = {name: value for name, value in resources.slurm if array or name in EVERY_JOB}
    additional = {"chdir": str(Path.cwd()), "requeue": True, "signal": f"USR1@{notice}", "ntasks": 1, **asked}
    if resources.mem_gb:
        parameters["mem_gb"] = resources.mem_gb
    if array:
        additional["array"] = array
        parameters["gpus_per_node"] = resources.gpus_per_node
        # --cpus-per-task is not inherited since Slurm 22.05, and alone would start as many tasks as fit the allocation.
        task = ["--ntasks=1", f"--cpus-per-task={resources.cpus_per_task}"]
        parameters["srun_args"] = [*task, "--export=ALL", "--open-mode=append"]
        parameters["teardown"] = AFTER_REPLAY.splitlines()
    else:
        parameters["use_srun"] = False
    executor = Writer(home / "logs")
    executor.update_parameters(**executor._convert_parameters(parameters), additional_parameters=additional)
    if array:
        executor.parameters["map_count"] = 1  # logs are named after array and task; the array itself is given above
    return executor._make_submission_file_text(command, "")


def _ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers as sbatch takes them.

    >>> _ranges([1, 2, 3, 5, 8, 9])
    '1-3,5,8-9'
    """
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(f"{first}-{last}" if last > first else f"{first}" for first, last in spans)
