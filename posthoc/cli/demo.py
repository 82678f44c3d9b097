"""posthoc demo: train a small network, and do with its checkpoints what one does with one's own."""

import contextlib
import shlex
from pathlib import Path

import click

from posthoc.cli.exits import echo
from posthoc.cli.output import progress_on_stderr
from posthoc.cli.report import has_extra
from posthoc.errors import PosthocError
from posthoc.files import try_output


@click.command(name="demo")
@click.argument("output", type=click.Path(path_type=Path), default=Path("posthoc-demo"))
@click.option("--epochs", type=click.IntRange(min=3), default=12, help="How long the network is trained.")
@click.option("--nulls", type=click.IntRange(min=0), default=99, help="As of posthoc metrics.")
@click.option("--force", is_flag=True, help="Replace what an earlier demo left in OUTPUT.")
def command(output: Path, epochs: int, nulls: int, force: bool) -> None:
    """Train a small network on the bundled digits and replay, measure, audit and report its checkpoints in the folder OUTPUT.

    The commands are printed as they are run. It takes a few minutes on two cores and no network.
    """
    if output.exists() and (not output.is_dir() or (any(output.iterdir()) and not force)):
        raise PosthocError(f"{output} is there already, and not an empty folder; give another name, or pass --force.")
    run = output / "run"
    try_output(run / "epoch_0.pt", force, make=True)
    from posthoc.replay.demo import train_digits

    with progress_on_stderr("training") as progress:
        train_digits(run, epochs, progress)
    activations, metrics = output / "activations.h5", output / "metrics.json"
    anew = ["--force"] if force else []
    steps = [
        ["check", run],
        ["extract", run, "--probe", "digits", "-o", activations, *anew],
        ["metrics", activations, "--csv", "--nulls", nulls, *anew],
        ["audit", activations, *anew],
    ]
    if has_extra():
        steps.append(["report", metrics, *anew])
    from posthoc.cli import main

    for words in ([str(word) for word in step] for step in steps):
        echo()
        echo(f"$ {shlex.join(['posthoc', *words])}")
        with contextlib.suppress(SystemExit):  # as check ends where it has found something
            main.main(words, standalone_mode=False)
    echo()
    if has_extra():
        echo(f"The report: {(output / 'report.html').absolute()}")
    else:
        echo("A report, with pictures, needs the extra report: pip install 'posthoc[report]'")
