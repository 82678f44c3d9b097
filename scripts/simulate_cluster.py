#!/usr/bin/env python3
"""What a large submission would take on a cluster, for several numbers of shards: a model, no measurement.

scripts/simulate_cluster.py [--runs 1000] [--checkpoints 100] [--gpus 64] [--seconds 0.5] [--shards 1,2,4,10,25]

As `posthoc submit` does, all runs are planned, then each is submitted as an array and a job that merges and measures it.
Every task wants one GPU, so first come, first served and Slurm's backfill start the same tasks. A task starts up, takes
its checkpoints one after the other, and is put back into the queue where it is interrupted, losing the checkpoint in hand.
"""

import argparse
import heapq
import itertools
from collections import deque
from dataclasses import dataclass, replace

import numpy as np

SPREAD = (
    0.85,
    1.15,
    1.06,
    1.32,
    1.13,
    1.14,
    1.08,
    1.04,
    1.09,
    0.80,
    1.21,
    1.17,
    1.01,
    0.91,
    0.63,
    0.90,
    0.90,
    1.20,
    1.09,
    1.17,
    0.98,
    0.80,
    0.92,
    0.94,
    1.12,
    0.86,
    0.92,
    0.87,
    0.73,
)
"""Recorded: times between the parts of one small run, after its first checkpoint, over their mean, on busy cores."""


@dataclass(frozen=True)
class Cluster:
    """Slots, limits and delays, the last in seconds; limits are Slurm's defaults.

    measuring: jobs that merge and measure at once; start: what the scheduler needs to start a task; requeue: what a
    task that was interrupted waits before it may start again.
    """

    gpus: int = 64
    measuring: int = 64
    parallel: int = 256
    largest_array: int = 1000
    most_jobs: int = 10_000
    time_limit: float = 3600.0
    plan: float = 0.25
    sbatch: float = 0.05
    start: float = 0.05
    requeue: float = 120.0


@dataclass(frozen=True)
class Work:
    """Runs of equal size, cut into `shards` tasks each; `interrupted` is a checkpoint's chance to be so."""

    runs: int = 1000
    checkpoints: int = 100
    shards: int = 1
    seconds: float = 0.5
    start_up: float = 3.0
    measure: float = 0.54
    interrupted: float = 0.0
    spread: tuple[float, ...] = SPREAD


@dataclass
class Outcome:
    """Seconds: when all was replayed and measured; GPU seconds of checkpoints that were kept, and those that tasks held.

    queue: the most jobs and tasks that were in it at once; longest: seconds of the longest task.
    """

    replayed: float = 0.0
    measured: float = 0.0
    kept: float = 0.0
    held: float = 0.0
    starts: int = 0
    queue: int = 0
    longest: float = 0.0


class Simulation:
    """One submission, event by event; `run` gives what came of it."""

    def __init__(self, cluster: Cluster, work: Work, seed: int = 0) -> None:
        self.cluster, self.work = cluster, work
        self.random = np.random.default_rng(seed)
        self.outcome = Outcome()
        self.events: list[tuple[float, int, str, int, int]] = []  # time, order, what, run, checkpoints left of a task
        self.order = itertools.count()
        self.pending: list[deque[int]] = [deque() for _ in range(work.runs)]
        self.unfinished = [work.shards] * work.runs
        self.running = [0] * work.runs
        self.ready: list[int] = []  # runs that have a task to start, a heap: the first submitted comes first
        self.measurable: deque[int] = deque()
        self.gpus, self.slots, self.queue = cluster.gpus, cluster.measuring, 0
        self.scheduler_free = 0.0

    def at(self, time: float, what: str, run: int, left: int = 0) -> None:
        heapq.heappush(self.events, (time, next(self.order), what, run, left))

    def run(self) -> Outcome:
        work, cluster = self.work, self.cluster
        arrays = -(-work.shards // cluster.largest_array)
        for run in range(work.runs):  # an array, or several, and a job that waits for them
            self.at(work.runs * cluster.plan + (run + 1) * (arrays + 1) * cluster.sbatch, "submitted", run)
        while self.events:
            now, _, what, run, left = heapq.heappop(self.events)
            if what == "submitted":
                self.submitted(run)
            elif what == "again":
                self.wait(run, left)
            elif what == "task ends":
                self.task_ends(now, run, left)
            else:
                self.slots += 1
                self.queue -= 1
                self.outcome.measured = now
            self.start_what_fits(now)
        return self.outcome

    def submitted(self, run: int) -> None:
        sizes = (len(range(k, self.work.checkpoints, self.work.shards)) for k in range(self.work.shards))
        for size in sizes:
            self.wait(run, size)
        self.queue += self.work.shards + 1
        self.outcome.queue = max(self.outcome.queue, self.queue)

    def wait(self, run: int, left: int) -> None:
        self.pending[run].append(left)
        self.mark_ready(run)

    def mark_ready(self, run: int) -> None:
        if self.pending[run] and self.running[run] < self.cluster.parallel and run not in self.ready[:1]:
            heapq.heappush(self.ready, run)

    def task_ends(self, now: float, run: int, left: int) -> None:
        self.gpus += 1
        self.running[run] -= 1
        self.mark_ready(run)
        if left:
            self.at(now + self.cluster.requeue, "again", run, left)
            return
        self.queue -= 1
        self.unfinished[run] -= 1
        if not self.unfinished[run]:
            self.outcome.replayed = now
            self.measurable.append(run)

    def start_what_fits(self, now: float) -> None:
        while self.gpus and self.ready:
            run = self.ready[0]
            if not self.pending[run] or self.running[run] >= self.cluster.parallel:
                heapq.heappop(self.ready)
                continue
            self.gpus -= 1
            self.running[run] += 1
            left = self.pending[run].popleft()
            begins = self.begins(now)
            seconds, remaining = self.task(left)
            self.outcome.held += seconds
            self.outcome.longest = max(self.outcome.longest, seconds)
            self.at(begins + seconds, "task ends", run, remaining)
        while self.slots and self.measurable:
            self.slots -= 1
            seconds = self.work.start_up + self.work.measure * self.work.checkpoints
            self.at(self.begins(now) + seconds, "measured", self.measurable.popleft())

    def begins(self, now: float) -> float:
        """When a job begins that fits now: one scheduler starts them one after the other."""
        self.scheduler_free = max(self.scheduler_free, now) + self.cluster.start
        self.outcome.starts += 1
        return self.scheduler_free

    def task(self, left: int) -> tuple[float, int]:
        """Seconds that a task of `left` checkpoints holds its GPU, and how many of them are then still to be done."""
        times = self.work.seconds * self.random.choice(self.work.spread, left)
        ends = self.work.start_up + np.cumsum(times)
        done = int(np.searchsorted(ends, self.cluster.time_limit, side="right"))  # what goes beyond goes back
        if not done:
            raise ValueError("A checkpoint takes longer than the time limit of a task.")
        bad = np.flatnonzero(self.random.random(done) < self.work.interrupted)
        lost = 0.0
        if len(bad):
            done = int(bad[0])
            lost = self.random.random() * float(times[done])
        self.outcome.kept += float(times[:done].sum())
        return (float(ends[done - 1]) if done else self.work.start_up) + lost, left - done


def bounds(cluster: Cluster, work: Work) -> dict[str, float]:
    """Seconds that each resource alone needs at the least, on average times, without interruptions."""
    tasks = work.runs * work.shards
    replay = work.checkpoints * work.seconds * float(np.mean(work.spread))
    arrays = -(-work.shards // cluster.largest_array)
    return {
        "GPUs": (work.runs * replay + tasks * work.start_up) / cluster.gpus,
        "submitting": work.runs * (cluster.plan + (arrays + 1) * cluster.sbatch),
        "scheduler": (tasks + work.runs) * cluster.start,
        "measuring": work.runs * (work.start_up + work.measure * work.checkpoints) / cluster.measuring,
    }


def shares_of_limits(cluster: Cluster, work: Work, outcome: Outcome) -> dict[str, float]:
    """How much of each limit is used; above 1 it does not fit."""
    return {
        "jobs in the queue": outcome.queue / cluster.most_jobs,
        "size of an array": work.shards / cluster.largest_array,
        "time limit": outcome.longest / cluster.time_limit,
        "files in a folder": max(work.checkpoints, work.shards)
        / 100_000,  # of parts, and of logs; then listing is slow
    }


def row(cluster: Cluster, work: Work) -> str:
    outcome = Simulation(cluster, work).run()
    needs, limits = bounds(cluster, work), shares_of_limits(cluster, work, outcome)
    total = cluster.gpus * outcome.replayed
    bound, nearest = max(needs, key=needs.__getitem__), max(limits, key=limits.__getitem__)
    cells = [
        f"{work.seconds:g}", f"{work.shards}", f"{100 * work.interrupted:g} %", f"{outcome.replayed / 60:.0f}",
        f"{outcome.measured / 60:.0f}", f"{100 * (1 - outcome.held / total):.0f} %",
        f"{100 * (outcome.held - outcome.kept) / total:.0f} %", f"{bound} ({needs[bound] / 60:.0f})",
        f"{nearest} ({100 * limits[nearest]:.0f} %)",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--checkpoints", type=int, default=100, help="of each run")
    parser.add_argument("--gpus", type=int, default=64)
    parser.add_argument("--measuring", type=int, default=64, help="jobs that merge and measure at once")
    parser.add_argument("--seconds", default="0.5,30", help="of a checkpoint's replay; several by commas")
    parser.add_argument("--shards", default="1,4,10,25", help="tasks of each run; several by commas")
    parser.add_argument("--interrupted", default="0,0.001", help="chance that a checkpoint is; several by commas")
    args = parser.parse_args()
    cluster = Cluster(gpus=args.gpus, measuring=args.measuring)
    print(
        "| s per checkpoint | shards | interrupted | replayed, min | measured, min | GPUs free | start-up and lost ",
        end="",
    )
    print("| bound, min at the least | nearest limit |\n|---|---|---|---|---|---|---|---|---|")
    for seconds, interrupted, shards in itertools.product(
        *(a.split(",") for a in (args.seconds, args.interrupted, args.shards))
    ):
        work = Work(args.runs, args.checkpoints, int(shards), float(seconds))
        print(row(cluster, replace(work, interrupted=float(interrupted))), flush=True)


if __name__ == "__main__":
    main()
