"""posthoc submit: checkpoints -> batch jobs of a cluster."""

import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from posthoc.cli.exits import echo
from posthoc.cli.extract import extraction_options, on_error_option
from posthoc.cli.output import AMOUNT
from posthoc.cli.status import show_status
from posthoc.errors import PosthocError, UsageError
from posthoc.files import try_output

if TYPE_CHECKING:
    from posthoc.cluster.submission import Submission

WAIT_SECONDS = 10.0
PATIENCE = 30
"""How often in a row the queue may be silent."""
OWN = ("array", "chdir", "dependency", "job-name", "open-mode", "output", "signal")
"""Options of sbatch that nobody else may set."""


def _pairs(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> tuple[tuple[str, str | bool], ...]:
    pairs = [value.removeprefix("--").partition("=") for value in values]
    if not all(name and name.replace("-", "").isalnum() for name, _, _ in pairs):
        raise click.BadParameter("give NAME=VALUE or NAME, such as account=vision")
    if own := [name for name, _, _ in pairs if name in OWN]:
        raise click.BadParameter(f"{own[0]} is set by posthoc, which finds and resumes its jobs by it; leave it out")
    return tuple((name, value if equals else True) for name, equals, value in pairs)


@click.command(name="submit")
@click.argument("checkpoints", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("posthoc-runs"),
    help="Folder of the results: activations.h5 and metrics.json, of several runs in a folder each; scripts and logs.",
)
@extraction_options
@on_error_option
@click.option(
    "--metrics", "measuring", default="", metavar="OPTIONS", help="Of posthoc metrics, in one word: '--smooth 15'."
)
@click.option("--jobs", type=click.IntRange(min=1), default=16, help="Tasks in a run's array, at the most.")
@click.option("--minutes-per-task", type=AMOUNT, default=10.0, help="Fewer tasks where they would take less; 0: all.")
@click.option(
    "--seconds-per-checkpoint", type=AMOUNT, help="Default: one is timed; without a GPU here, in the cluster."
)
@click.option("--partition", help="Where arrays run.")
@click.option("--metrics-partition", help="Where merging and measuring run, which need no GPU (default: the same).")
@click.option("--gpus-per-node", type=click.IntRange(min=1), help="GPUs of a task.")
@click.option("--cpus-per-task", type=click.IntRange(min=1), default=4, help="Processors of a task.")
@click.option("--mem-gb", type=AMOUNT, help="Memory of a task.")
@click.option("--timeout-min", type=click.IntRange(min=1), default=60, help="Minutes after which a task is ended.")
@click.option(
    "--array-parallelism", type=click.IntRange(min=1), default=256, help="Tasks of an array at the same time."
)
@click.option(
    "--setup", multiple=True, metavar="LINE", help="Shell to run before the work, such as 'module load cuda'."
)
@click.option(
    "--slurm",
    multiple=True,
    metavar="NAME=VALUE",
    callback=_pairs,
    help="Any other option of sbatch, for the arrays; account and such for all jobs.",
)
@click.option("--scheduler", default="slurm", metavar="NAME", help="What runs the jobs.")
@click.option(
    "--wait", is_flag=True, help="Return when all is done; 1 if something failed, 3 if something was skipped."
)
@click.option("--force", is_flag=True, help="Remove what is there and start anew.")
@click.option(
    "--dry-run", is_flag=True, help="Print what would be done and the batch scripts; write and submit nothing."
)
def command(
    checkpoints: tuple[Path, ...],
    output: Path,
    on_error: str,
    measuring: str,
    jobs: int,
    minutes_per_task: float,
    seconds_per_checkpoint: float | None,
    scheduler: str,
    wait: bool,
    force: bool,
    dry_run: bool,
    **options: Any,
) -> None:
    """Replay and measure the run in each folder CHECKPOINTS on a cluster, and compare them.

    The same command again submits what is missing, and nothing that is done or in the queue.
    """
    from posthoc.cluster.scheduler import scheduler_named
    from posthoc.replay.request import PlanOptions, Request

    scheduler_named(scheduler)  # which must be known before anything is done
    words = _measuring(measuring)
    replayed = PlanOptions.__annotations__.keys() | {"probe"}
    Request(**{name: options[name] for name in replayed}).check_places(checkpoints, here=False)
    if not dry_run:
        try_output(output / "submission.json", force=True, make=True)
    from posthoc.cluster.jobs import Resources
    from posthoc.cluster.submit import Work, submit
    from posthoc.replay.listing import run_folders

    context = click.get_current_context()
    extraction = {parameter.name: parameter for parameter in context.command.params if parameter.name in replayed}
    resources = Resources(**{name: value for name, value in options.items() if name not in extraction})
    work = Work(
        extraction={name: options[name] for name in replayed},
        words=tuple(word for name, parameter in extraction.items() for word in _typed(context, parameter)),
        measuring=words,
        skip_errors=on_error == "skip",
        jobs=jobs,
        minutes_per_task=minutes_per_task,
        seconds_per_checkpoint=seconds_per_checkpoint,
        scheduler=scheduler,
    )
    folders = run_folders(checkpoints) if len(checkpoints) > 1 else [("", checkpoints[0])]
    submission = submit(folders, output, work, resources, force=force, dry_run=dry_run, say=echo)
    if dry_run:
        return
    echo()
    echo(f"posthoc status {shlex.quote(str(output))}")
    again = [word for word in sys.argv[1:] if word != "--force"]
    echo(f"what is missing is submitted again by: {shlex.join(['posthoc', *again])}")
    if wait:
        sys.exit(_ended(submission, output))


def _measuring(text: str) -> tuple[str, ...]:
    """The words of --metrics; raises UsageError for what `posthoc metrics` does not take, which else is known when all is replayed."""
    from posthoc.cli.metrics import command as metrics

    try:
        words = shlex.split(text)
        options = metrics.make_context("posthoc metrics", ["activations.h5", *words]).params
    except (ValueError, click.UsageError) as error:
        why = error.format_message() if isinstance(error, click.UsageError) else str(error)
        raise UsageError(
            f"--metrics {text!r} is not what posthoc metrics takes ({why}); give its options in one word, such as '--smooth 15'."
        ) from error
    if options["output"] is not None or len(options["activations"]) > 1:
        raise UsageError(
            f"--metrics {text!r}: each run's measures go beside its activations; give options alone, and no -o."
        )
    return tuple(words)


def _ended(submission: "Submission", output: Path) -> int:
    """The exit code when the last job has ended; says what has become of them."""
    from posthoc.cluster.status import read_status

    _wait_for(submission)
    status = read_status(output)
    show_status(status)
    return status.code if status.done else 1


def _wait_for(submission: "Submission") -> None:
    """Return once none of the jobs is in the queue, or that has not answered for long."""
    from posthoc.cluster.scheduler import scheduler_named

    queue = scheduler_named(submission.scheduler).queue
    failures = 0
    while failures < PATIENCE:  # a busy controller does not always answer
        try:
            if not {task.split("_")[0] for task in queue(submission.out)} & submission.jobs():
                break
            failures = 0
        except PosthocError:
            failures += 1
        time.sleep(WAIT_SECONDS)


def _typed(context: click.Context, parameter: click.Parameter) -> list[str]:
    """An option as it was typed; nothing where it was not."""
    name, value = parameter.name or "", context.params.get(parameter.name or "")
    if context.get_parameter_source(name) != ParameterSource.COMMANDLINE:
        return []
    option = parameter.opts[0]
    if value is True:
        return [option]
    if isinstance(value, tuple):
        return [word for item in value for word in (option, str(item))]
    return [option, ",".join(map(str, value)) if isinstance(value, list) else "all" if value is None else str(value)]
