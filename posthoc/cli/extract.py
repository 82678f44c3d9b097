"""posthoc extract: checkpoints -> activations.h5."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from posthoc.cli.exits import echo, interruptible
from posthoc.cli.output import (
    AMOUNT,
    Holding,
    checkpoint_table,
    flag_nonfinite,
    model_options,
    notes,
    order_options,
    print_json,
    progress_on_stderr,
    report_probe,
    report_skipped,
    stop_on_signal,
)
from posthoc.errors import PosthocError, StoppedError, UsageError
from posthoc.files import try_output
from posthoc.recording import MOST_CONTROLS
from posthoc.replay.controls import FORMS
from posthoc.replay.probes import FORMS as PROBE_FORMS
from posthoc.replay.request import OnDuplicate
from posthoc.replay.scores import SCORES
from posthoc.replay.signals import DEFAULT_SIGNALS, SIGNALS

if TYPE_CHECKING:
    from posthoc.shards import Shard
    from posthoc.store import Skipped


def _count(context: click.Context, parameter: click.Parameter, value: str) -> int | None:
    if value == "all":
        return None
    if not value.isdigit() or int(value) == 0:
        raise click.BadParameter("give a number from 1 up, or all")
    return int(value)


def _list(context: click.Context, parameter: click.Parameter, value: str | None) -> list[str] | None:
    return None if value is None else [part.strip() for part in value.split(",") if part.strip()]


def _numbers(context: click.Context, parameter: click.Parameter, value: str) -> list[int]:
    parts = _list(context, parameter, value) or []
    if not all(part.isdecimal() for part in parts):
        raise click.BadParameter("give whole numbers with commas between, such as 3,5")
    return list(map(int, parts))


CHECKPOINTS = (
    click.option(
        "--probe", required=True, metavar="NAME", help=f"{PROBE_FORMS}."
    ),
    click.option("--select", metavar="GLOB", help="Only names that match; # stands for a number."),
    order_options,
    click.option(
        "--on-duplicate", type=click.Choice([choice.value for choice in OnDuplicate]), default=OnDuplicate.DROP.value, help="With a checkpoint that holds the weights of another step."
    ),
)  # fmt: skip
"""The probe, and which checkpoints are replayed over it."""

NETWORK = (
    click.option(
        "--weights-key", metavar="KEY", help="Where in each checkpoint the weights are, such as model.encoder."
    ),
    click.option("--ema", is_flag=True, help="Replay the moving average of the weights that the checkpoints hold."),
    model_options,
)  # fmt: skip
"""What is found in a checkpoint, and what it is loaded into."""

RECORDED = (
    click.option(
        "--layers", default="default", callback=_list, help="Of default, residual, attention, mlp (their outputs), all, and globs, separated by commas."
    ),
    click.option("--channels", default="32", callback=_count, help="Channels recorded per layer, or all."),
    click.option(
        "--signals",
        callback=_list,
        help=f"Of {', '.join(SIGNALS)} (default: {','.join(DEFAULT_SIGNALS)}, of tokens: token).",
    ),
)  # fmt: skip
"""What is recorded of the network."""

SAMPLES = (
    click.option(
        "--images", type=click.IntRange(min=1), help="Samples in the probe (default: of images 2048, or all if fewer)."
    ),
    click.option(
        "--image-size", type=click.IntRange(min=1), help="Side to scale images to (default: what the model takes)."
    ),
    click.option("--context", type=click.IntRange(min=2), metavar="TOKENS", help="Tokens in a row (default: what the model takes, at most 1024)."),
    click.option("--documents", type=click.IntRange(min=1), metavar="N", help="Rows of tokens in the probe (default: 32, or all if fewer)."),
    click.option("--tokenizer", type=click.Path(path_type=Path), help="tokenizer.json, or its folder (default: beside the checkpoints)."),
    click.option("--token-dtype", metavar="TYPE", help="Of tokens:FILE.bin (default: uint16)."),
    click.option("--resize", type=click.IntRange(min=1), help="Shorter side of the images of a folder before they are cropped."),
    click.option("--crop", type=click.IntRange(min=1), help="Side of the square cut from the middle of them."),
    click.option("--normalize", metavar="NAME|MEAN/STD|none", help="Default: from run.json, else the data set's."),
    click.option("--split", metavar="NAME", help="Of dataset: and torchvision: (default: test, else validation)."),
    click.option("--columns", metavar="INPUT[,...][:TARGET]", help="Of dataset: (default: by names and types)."),
    click.option(
        "--data-root",
        type=click.Path(path_type=Path),
        help="Where data sets lie (default: POSTHOC_DATA, else data).",
    ),
    click.option("--download", is_flag=True, help="Fetch the probe's data set if it is absent."),
)  # fmt: skip
"""What the probe is made of."""

MACHINE = (
    click.option("--device", default="auto", help="auto, cpu, cuda or cuda:N."),
    click.option("--dtype", default="float32", help="float32, or bfloat16 (autocast)."),
    click.option("--tf32", is_flag=True, help="Allow TF32 on CUDA: faster, and different in the fourth digit."),
    click.option("--compile", is_flag=True, help="Run the network through torch.compile."),
    click.option(
        "--batch-size", type=click.IntRange(min=1), help="Default: 256 for images up to 64 pixels, else 32."
    ),
    click.option(
        "--memory-format",
        default="auto",
        help="auto, contiguous or channels_last (auto: channels last where it is faster and gives the same).",
    ),
)  # fmt: skip
"""Where the network runs, and in which precision."""

MORE = (
    click.option(
        "--model-output",
        metavar="NAME|INDEX|none",
        help="Which of the network's outputs holds the scores (default: logits, or the one as wide as the probe has classes).",
    ),
    click.option("--score", metavar="NAME", help=f"How outputs are scored: {', '.join(SCORES)} or none (default: by the targets)."),
    click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Record a hyperparameter of the training, such as lr=0.1, for compare --by."),
    click.option("--features", is_flag=True, help="Keep what the last layer is given, and its weights."),
    click.option("--seed", type=click.IntRange(min=0), default=0, help="Draws the recorded channels, and what the network draws."),
    click.option(
        "--untrained",
        type=click.IntRange(0, MOST_CONTROLS),
        default=0,
        metavar="K",
        help="Replay K new initialisations of the network too, as controls for the audit.",
    ),
    click.option("--average", default="", callback=_numbers, metavar="K,...", help="Replay the mean of the weights of the last K checkpoints, too."),
    click.option("--between", is_flag=True, help="Replay the middle between a checkpoint and the one before, for the barrier."),
    click.option("--spectra", is_flag=True, help="Keep stable rank and tail of the spectrum of every matrix of weights."),
    click.option("--controls", default="", callback=_list, help=f"Other inputs for every checkpoint, of tokens: {FORMS}."),
)  # fmt: skip
"""What else is kept, and replayed beside."""


def extraction_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say what is replayed, and how: those of `plan_extraction`."""
    for option in reversed((*CHECKPOINTS, *NETWORK, *RECORDED, *SAMPLES, *MACHINE, *MORE)):
        command = option(command)
    return command


def on_error_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--on-error", type=click.Choice(["fail", "skip"]), default="fail", help="With a bad checkpoint or run."
    )(command)


@click.command(name="extract")
@click.argument("checkpoints", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="File to write (default: activations.h5); of several runs the folder for NAME/activations.h5 (default: posthoc-runs).",
)
@extraction_options
@click.option("--shard", metavar="i/n", help="Only every n-th checkpoint from the i-th; auto in a Slurm array.")
@on_error_option
@click.option("--follow", is_flag=True, help="Keep watching a growing folder.")
@click.option("--until-epoch", type=int, help="Follow until this epoch's checkpoint is there.")
@click.option(
    "--quiet",
    type=AMOUNT,
    help="Follow until so many seconds pass without a new checkpoint (default: 600).",
)
@click.option("--force", is_flag=True, help="Replace an existing output.")
@click.option("--dry-run", is_flag=True, help="Show what was found and would be done; write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Of --dry-run: as JSON; docs/json.md says what is in it.")
def command(
    checkpoints: tuple[Path, ...],
    output: Path | None,
    shard: str | None,
    on_error: str,
    follow: bool,
    until_epoch: int | None,
    quiet: float | None,
    force: bool,
    dry_run: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Replay every checkpoint in the folder CHECKPOINTS over a fixed probe batch and store each layer's signals.

    Several folders are a run each, several files one run. Interrupted, the same command goes on where it stopped.
    """
    from posthoc.replay.request import Request
    from posthoc.shards import Shard

    if as_json and not dry_run:
        raise UsageError("--json needs --dry-run: what is extracted is written to a file.")
    share = Shard.parse(shard) if shard else None
    if share and dry_run:
        raise UsageError("--dry-run shows the whole run; leave --shard out.")
    limits: dict[str, Any] = {
        name: value for name, value in (("until_epoch", until_epoch), ("quiet", quiet)) if value is not None
    }
    _refuse_following(checkpoints, follow, share is not None, limits)
    if len(checkpoints) == 1 and not dry_run:
        try_output(output or Path("activations.h5"), force)
    Request(**options).check_places(() if follow else checkpoints)
    from posthoc.parts import Parts
    from posthoc.replay.listing import are_runs
    from posthoc.store import Skipped

    several, skip = are_runs(checkpoints), on_error == "skip"
    work = _work(checkpoints, output, several, force)
    if len(checkpoints) > 1 and not dry_run:
        for _, _, path in work:
            try_output(path, force or several, make=several)
    carry_out = partial(_follow, **limits) if follow else partial(_replay, shard=share)
    skipped: list[Skipped] = []
    failed = 0
    previews: list[Holding] = []
    with stop_on_signal() as stop:
        for name, place, path in work:
            if several and path.exists() and not (force or dry_run):
                echo(f"{path} is there already", err=True)
                continue
            try:
                with interruptible(partial(Parts(path).kept, force)):
                    if dry_run:
                        previews.append(_preview(place, skip, options))
                        if not as_json:
                            previews[-1].show()
                        continue
                    left_out = carry_out(place, path, options, force=force, skip_errors=skip, stop=stop)
                skipped += [Skipped(f"{name}/{path}" if name else path, reason) for path, reason in left_out]
            except (StoppedError, UsageError):
                raise
            except PosthocError as error:
                if not (skip and several):
                    raise
                skipped.append(Skipped(name, str(error)))
                failed += 1
    if as_json:
        contents = [preview.to_dict() for preview in previews]
        print_json(contents if several else contents[0])
    report_skipped(skipped, done=failed < len(work))


def _refuse_following(checkpoints: Sequence[Path], follow: bool, sharded: bool, limits: Mapping[str, float]) -> None:
    """Raise UsageError where what is asked for does not go with following a run, or needs it."""
    if follow and sharded:
        raise UsageError(
            "--follow and --shard exclude each other: a shard of a growing run is not known; give one of them."
        )
    if limits and not follow:
        raise UsageError(f"--{next(iter(limits)).replace('_', '-')} needs --follow.")
    if follow and len(checkpoints) > 1:
        raise UsageError("--follow watches one folder; give one.")


def _work(
    checkpoints: Sequence[Path], output: Path | None, several: bool, force: bool
) -> list[tuple[str, Path | list[Path], Path]]:
    """Each run's name, where its checkpoints are, and the file to write; one run has no name."""
    from posthoc.homes import homes
    from posthoc.replay.listing import run_folders

    if several:
        out = output or Path("posthoc-runs")
        return [(home.name, home.folder, home.path) for home in homes(run_folders(checkpoints), out, force)]
    place = checkpoints[0] if len(checkpoints) == 1 else list(checkpoints)
    return [("", place, output or Path("activations.h5"))]


def _preview(place: Path | list[Path], skip: bool, options: Mapping[str, Any]) -> Holding:
    """What was found of a run and would be done."""
    from posthoc.replay.planning import plan_extraction

    plan = plan_extraction(place, skip_damaged=skip, **options)
    return Holding("extraction", plan.notes, {"checkpoints": checkpoint_table(plan.run.checkpoints)})


def _replay(
    place: Path | list[Path], path: Path, options: Mapping[str, Any], *, shard: "Shard | None", **writing: Any
) -> "tuple[Skipped, ...]":
    """Replay a run that is there; what was skipped of it, and why."""
    from posthoc.replay.planning import plan_extraction

    plan = plan_extraction(place, skip_damaged=writing["skip_errors"], **options)
    from posthoc.replay.run import run_extraction  # with torch, which what is wrong with a run need not wait for

    notes(plan.notes, err=True)
    with progress_on_stderr("replaying") as progress:
        result = run_extraction(plan, path, progress=progress, shard=shard, **writing)
    if shard is None:
        _report(path)
    echo(result.path)
    return result.skipped


def _follow(place: Path | list[Path], path: Path, options: Mapping[str, Any], **writing: Any) -> "tuple[Skipped, ...]":
    """Replay a run while it grows; what was skipped of it, and why."""
    from posthoc.replay.planning import plan_extraction
    from posthoc.replay.run import follow_extraction

    plan: Any = None
    failures: Counter[str] = Counter()

    def replan() -> Any:
        nonlocal plan
        try:
            plan = plan_extraction(place, skip_damaged=writing["skip_errors"], before=plan, **options)
        except UsageError:
            raise
        except PosthocError as error:
            failures[str(error)] += 1
            if failures[str(error)] == 2:  # the first time a checkpoint may just be written
                echo(f"waiting: {error}", err=True)
            raise
        return plan

    with progress_on_stderr("replaying") as progress:
        result = follow_extraction(replan, path, progress=progress, **writing)
    _report(path)
    echo(result.path)
    return result.skipped


def _report(path: Path) -> None:
    """Point to what in the whole file a user should look at."""
    flag_nonfinite(path)
    report_probe(path)
