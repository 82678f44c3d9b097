"""posthoc metrics: activations.h5 -> metrics.json."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from posthoc.cli.exits import echo, interruptible
from posthoc.cli.inputs import beside, require_activations
from posthoc.cli.output import columns_option, json_option, notes, print_json, print_rows, progress_on_stderr
from posthoc.errors import UsageError
from posthoc.files import try_output

if TYPE_CHECKING:
    from posthoc.analysis.records import RunMetrics


class Metrics(click.Command):
    """Its help ends with the names of all measures, which are imported only for that."""

    def format_epilog(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        from posthoc.analysis.measures import names

        with formatter.section("Measures"), formatter.indentation():
            formatter.write_text(f"{', '.join(names())}; docs/measures.md says what each is and needs.")


@click.command(name="metrics", cls=Metrics)
@click.argument("activations", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Default: metrics.json beside activations.h5, X.metrics.json beside any other X.h5.",
)
@click.option("--csv", is_flag=True, help="Write the epochs as a .csv beside the output, too.")
@click.option(
    "--protocol",
    type=click.Choice(["published", "default"]),
    help="published: as arXiv 2604.09716, on the image axis only, where it is the default; "
    "default: no smoothing, usual scales and fluctuation.",
)
@click.option(
    "--axis",
    type=click.Choice(["image", "depth", "epoch", "token"]),
    help="What plays the part of time: the probe's images, the layers, the checkpoints, or the tokens of documents. "
    "Default: token where the file has the signal of that name, else image.",
)
@click.option("--span", type=int, help="On the epoch axis: checkpoints in a window (default: all so far).")
@click.option(
    "--signal",
    metavar="NAME",
    help="A signal of the file (default: token on the token axis, else mean), or effective-rank or participation-ratio, one number per layer, on the epoch axis only.",
)
@click.option(
    "--estimator",
    type=click.Choice(["dfa", "whittle", "reml"]),
    default="dfa",
    help="Of the Hurst exponent: the paper's DFA, or the likelihood of fractional noise, which errs less in short "
    "series without trends: reml below 128 points in time, whittle above.",
)
@click.option(
    "--smooth", type=click.IntRange(min=1), help="Width of the moving mean (default: the protocol's, 5 or 1)."
)
@click.option("--h-opt", type=float, default=0.7, help="Hurst exponent at which integration is 1.")
@click.option("--sigma-h", type=float, default=0.15, help="How fast integration falls off around it.")
@click.option("--w-h", type=float, default=0.5, help="Weight of integration in the stability index.")
@click.option("--window", type=click.IntRange(min=2), default=3, help="Epochs over which volatility is taken.")
@click.option("--threshold", type=float, default=0.35, help="Volatility below which training counts as settled.")
@click.option("--nulls", type=click.IntRange(min=0), default=99, help="Draws of the deciding null for each epoch, "
              "and of the others up to 39; 0: none.")  # fmt: skip
@click.option("--max-nulls", type=click.IntRange(min=1), default=9999, help="Draws of the deciding null at the most, in "
              "epochs where fewer are too few for a verdict.")  # fmt: skip
@click.option("--measures", default="default", metavar="NAMES", help="What is measured: default, all, or names with commas "
              "between, see below. Accuracy, loss and other scores are always there.")  # fmt: skip
@click.option("--measure", "functions", multiple=True, metavar="FILE.py:FUNCTION", help="Measure this function of the signals, too; "
              "it is run. Several may be given. See docs/your-own-measure.md.")  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Keys the random numbers of nulls and intervals.")
@click.option("--force", is_flag=True, help="Replace an existing output.")
@columns_option()
@json_option
def command(
    activations: Path,
    output: Path | None,
    columns: str | None,
    as_json: bool,
    csv: bool,
    protocol: str | None,
    nulls: int,
    max_nulls: int,
    measures: str,
    functions: tuple[str, ...],
    seed: int,
    force: bool,
    **changes: Any,
) -> None:
    """Integration, metastability and other measures of every checkpoint in ACTIVATIONS, and of the run."""
    require_activations(activations)
    output = output or beside(activations, "metrics.json")
    outputs = [output, output.with_suffix(".csv")] if csv else [output]
    if csv and outputs[0] == outputs[1]:
        raise UsageError(f"{output}: with --csv the output is the JSON file; give it another ending.")
    for path in outputs:
        try_output(path, force, activations)
    from posthoc.analysis.measures import Asked, Measure
    from posthoc.analysis.measures.user import load
    from posthoc.analysis.metrics import compute_metrics
    from posthoc.analysis.protocol import Protocol
    from posthoc.store import open_activations

    own = [load(place) for place in functions]
    anew = f"; {output} is not written, and the same command starts anew"
    with (
        interruptible(lambda: anew),
        open_activations(activations) as opened,
        progress_on_stderr("measuring") as progress,
    ):
        chosen = Protocol.fitting(opened.signals, protocol or "", **changes)
        if chosen.axis == "token" and not changes["axis"]:
            echo(f"{activations} holds the tokens of documents: measured along them, as by --axis token", err=True)
        wanted: list[str | Measure] = [*measures.split(","), *own]
        metrics = compute_metrics(opened, chosen, nulls, seed, progress, max_nulls, wanted)
    asked = Asked.of(wanted)
    if lacking := asked.keys - metrics.measures.keys():
        echo(f"not measured, for {activations} lacks what they take: {', '.join(sorted(lacking))}", err=True)
    if asked.everything:
        untold = [key for key, measured in metrics.measures.items() if not (measured.listed or measured.headline)]
        echo(f"also in {output}, in a table where --measures names them: {', '.join(untold)}", err=True)
    metrics.save(output)
    if csv:
        metrics.save_csv(output.with_suffix(".csv"))
    if as_json:
        print_json(metrics.to_dict())
    else:
        show_metrics(metrics, columns)
    for path in outputs:
        echo(path, err=True)


def show_metrics(metrics: "RunMetrics", columns: str | None) -> None:
    """What was found, the checkpoints as a table, and what to know of them."""
    from posthoc.report import tables
    from posthoc.report.words import in_short

    for sentence in in_short(metrics):
        echo(sentence)
    echo()
    print_rows(tables.checkpoints(metrics), columns)
    echo()
    notes(tables.summary(metrics))
