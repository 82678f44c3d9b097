"""How many processors this process may use."""

import os


def cpu_count() -> int:
    """Those of its affinity, and in a Slurm job no more than were asked for: not every cluster binds tasks to them."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return min(bound, max(1, int(asked))) if asked.isdigit() else bound
