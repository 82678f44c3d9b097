"""A scheduler for the tests, which lies outside the package: jobs are processes of this machine, by their numbers."""

import subprocess
from pathlib import Path

from posthoc.cluster.jobs import Queued
from posthoc.cluster.scheduler import SCHEDULERS, Scheduler


def render(job):
    log = job.folder / "logs" / "${TOY_ID}"
    lines = ["#!/bin/bash", *job.resources.setup]
    for number in job.tasks:
        lines += [f"export TOY_TASK={number}; TOY_ID=$$_{number}", f'{{ {job.command}; }} > "{log}_0_log.out" 2>&1']
    if not job.tasks:
        lines += ["TOY_ID=$$", f'{{ {job.command}\n}} > "{log}_0_log.out" 2>&1']
    return "\n".join([*lines, ""])


def submit(script, after):
    waiting = "".join(f"while grep -qs '^State:.[^Z]' /proc/{job}/status; do sleep 0.1; done; " for job in after)
    process = subprocess.Popen(["bash", "-c", f'{waiting}exec bash "{script}"'], start_new_session=True)
    with script.with_suffix(".jobs").open("a") as jobs:
        jobs.write(f"{process.pid}\n")
    return str(process.pid)


def alive(job):
    try:
        return Path(f"/proc/{job}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def queue(out):
    jobs = [(path, job) for path in out.rglob("*.jobs") for job in path.read_text().split() if alive(job)]
    numbers = range(1, 10)
    return {
        name: Queued(waits=False)
        for path, job in jobs
        for name in ([f"{job}_{number}" for number in numbers] if path.stem == "extract" else [job])
    }


def cancel(job):
    subprocess.run(["kill", job], check=False)


def attend(command, resources):
    return subprocess.run(command, capture_output=True, text=True, check=False)


SCHEDULERS["toy"] = Scheduler("TOY_TASK", render, submit, queue, cancel, attend)
