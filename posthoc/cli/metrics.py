"""posthoc metrics: activations.h5 -> metrics.json."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from posthoc.cli.exits import PARTLY, echo, interruptible
from posthoc.cli.inputs import beside, keep_blas_to_one_thread, require_activations
from posthoc.cli.output import (
    columns_option,
    json_option,
    notes,
    print_json,
    print_rows,
    progress_on_stderr,
    report_skipped,
)
from posthoc.errors import PosthocError, StoppedError, UsageError
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
@click.argument("activations", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Of one file (default: metrics.json beside activations.h5, X.metrics.json beside any other X.h5).",
)
@click.option("--csv", is_flag=True, help="Write the measures of every checkpoint as a .csv beside the output, too.")
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
@click.option("--window", type=click.IntRange(min=2), default=3, help="Checkpoints over which volatility is taken.")
@click.option("--threshold", type=float, default=0.35, help="Volatility below which training counts as settled.")
@click.option("--nulls", type=click.IntRange(min=0), default=99, help="Draws of the deciding null for each checkpoint, "
              "and of the others up to 39; 0: none.")  # fmt: skip
@click.option("--max-nulls", type=click.IntRange(min=1), help="Draws of the deciding null at the most, in "
              "checkpoints where fewer are too few for a verdict (default: 9999).")  # fmt: skip
@click.option("--measures", default="default", metavar="NAMES", help="What is measured: default, all, or names or "
              "symbols with commas between, see below. Accuracy, loss and other scores are always there.")  # fmt: skip
@click.option("--measure", "functions", multiple=True, metavar="FILE.py:FUNCTION", help="Measure this function of the signals, too; "
              "it is run. Several may be given. See docs/your-own-measure.md.")  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Keys the random numbers of nulls and intervals.")
@click.option("--force", is_flag=True, help="Replace an existing output.")
@columns_option()
@json_option
def command(
    activations: tuple[Path, ...], output: Path | None, columns: str | None, as_json: bool, **asked: Any
) -> None:
    """Integration, metastability and other measures of every checkpoint in ACTIVATIONS, and of the run.

    Of several files each is measured by itself and written beside its own; those that cannot be are named at the end.
    Exits with 3 where a file or a measure that was named could not be measured, or a column that was named is not there,
    with 1 where nothing could be measured.
    """
    keep_blas_to_one_thread()
    files = list(dict.fromkeys(activations))
    several = len(files) > 1
    if several and output is not None:
        raise UsageError("-o names one output, and there are several files; each is written beside its own.")
    contents, skipped, partly = [], [], False
    for path in files:
        try:
            metrics, unmeasured = _measure(path, output, **asked)
        except StoppedError:
            raise
        except PosthocError as error:
            if not several:
                raise
            skipped.append((str(path), str(error)))
            continue
        partly |= bool(unmeasured)
        if as_json:
            contents.append(metrics.to_dict())
        else:
            if several:
                echo(f"{path}:")
            try:
                show_metrics(metrics, columns)
            except UsageError as error:  # of a column, known only now: what was measured is written
                echo(error, err=True)
                partly = True
            if several:
                echo()
        for written in _outputs(path, output, asked["csv"]):
            echo(written, err=True)
    if as_json:
        print_json(contents if several else contents[0])
    report_skipped(skipped, done=len(skipped) < len(files))
    if partly:
        sys.exit(PARTLY)


def _outputs(activations: Path, output: Path | None, csv: bool) -> list[Path]:
    output = output or beside(activations, "metrics.json")
    return [output, output.with_suffix(".csv")] if csv else [output]


def _measure(
    activations: Path, output: Path | None, *, csv: bool, protocol: str | None, nulls: int, max_nulls: int | None, measures: str,
    functions: tuple[str, ...], seed: int, force: bool, **changes: Any,
) -> "tuple[RunMetrics, list[str]]":  # fmt: skip
    """What one file measures to, which is written, and which measures that were named it has not what they take for.

    Raises PosthocError where that is all that was asked for.
    """
    require_activations(activations)
    outputs = _outputs(activations, output, csv)
    output = outputs[0]
    if csv and outputs[0] == outputs[1]:
        raise UsageError(f"{output}: with --csv the output is the JSON file; give it another ending.")
    for path in outputs:
        try_output(path, force, activations)
    from posthoc.analysis.measures import Asked, Measure
    from posthoc.analysis.measures import chosen as table_of
    from posthoc.analysis.measures.user import load

    wanted: list[str | Measure] = [*measures.split(","), *map(load, functions)]
    from posthoc.analysis.protocol import Protocol
    from posthoc.store import open_activations

    anew = f"; {output} is not written, and the same command starts anew"
    with (
        interruptible(lambda: anew),
        open_activations(activations) as opened,
        progress_on_stderr("measuring") as progress,
    ):
        asked = Asked.of(wanted, opened)
        table_of(asked, activations=opened)  # of a wrong one there is nothing to wait for
        from posthoc.analysis.metrics import compute_metrics

        chosen = Protocol.fitting(opened.signals, protocol or "", **changes)
        if chosen.axis == "token" and not changes["axis"]:
            echo(f"{activations} holds the tokens of documents: measured along them, as by --axis token", err=True)
        metrics = compute_metrics(opened, chosen, nulls, seed, progress, max_nulls, wanted)
    measured = {key for key, of in metrics.measures.items() if not of.aside}
    if lacking := sorted(asked.keys - measured):
        why = f"{activations} lacks what they take: {', '.join(lacking)}"
        if not (asked.default or asked.everything or asked.keys & measured):
            raise PosthocError(f"Nothing is measured or written, for {why}; docs/measures.md says what each needs.")
        echo(f"not measured, for {why}", err=True)
    if asked.everything:
        untold = [key for key, measured in metrics.measures.items() if not (measured.listed or measured.headline)]
        echo(f"also in {output}, in a table where --measures names them: {', '.join(untold)}", err=True)
    metrics.save(output)
    if csv:
        metrics.save_csv(output.with_suffix(".csv"))
    return metrics, lacking


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
