"""posthoc audit: what do the measures of a run respond to?"""

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click

from posthoc.cli.exits import echo
from posthoc.cli.inputs import beside, keep_blas_to_one_thread, require_activations
from posthoc.cli.output import json_option, notes, print_json, print_rows
from posthoc.files import try_output

if TYPE_CHECKING:
    from posthoc.analysis.responses import Audit


@click.command(name="audit")
@click.argument("activations", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Default: audit.json beside activations.h5, X.audit.json beside any other X.h5.",
)
@click.option("--smooth", type=click.IntRange(min=1), help="Width of the moving mean over images (default: 5).")
@click.option(
    "--signal", metavar="NAME", help="A signal of the file (default: token where it holds tokens, else mean)."
)
@click.option("--draws", type=click.IntRange(min=10), default=50, help="Draws of each control that redraws.")
@click.option("--measures", default="default", metavar="NAMES", help="What is audited: default, all, or names with commas "
              "between, as posthoc metrics takes them.")  # fmt: skip
@click.option("--measure", "functions", multiple=True, metavar="FILE.py:FUNCTION", help="Audit this function of the signals, "
              "too; it is run.")  # fmt: skip
@click.option("--other", type=click.Path(path_type=Path), help="Another extraction of the run, over the same samples "
              "prepared otherwise, to compare with.")  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Keys the random numbers.")
@click.option("--force", is_flag=True, help="Replace an existing output.")
@json_option
def command(
    activations: Path, output: Path | None, smooth: int | None, signal: str | None, draws: int, measures: str,
    functions: tuple[str, ...], other: Path | None, seed: int, force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Measure the last checkpoint of ACTIVATIONS again with one thing changed at a time, and say what moved."""
    output = output or beside(activations, "audit.json")
    require_activations(activations)
    try_output(output, force, activations)
    keep_blas_to_one_thread()
    from posthoc.analysis.audit import audit
    from posthoc.analysis.measures import Measure
    from posthoc.analysis.measures.user import load
    from posthoc.analysis.protocol import Protocol
    from posthoc.store import open_activations

    if other:
        require_activations(other)
    chosen: list[str | Measure] = [*measures.split(","), *(load(place) for place in functions)]
    with open_activations(activations) as opened, open_activations(other) if other else nullcontext() as prepared:
        protocol = Protocol.fitting(opened.signals, smooth=smooth, signal=signal)
        result = audit(opened, protocol, draws, seed, chosen, prepared)
    result.save(output)
    if as_json:
        print_json(result.to_dict())
    else:
        show_audit(result)
    echo(output, err=True)


def show_audit(result: "Audit") -> None:
    """What follows, the controls as a table, each measure by each change, and what each responds to."""
    from posthoc.report import tables_of_audits

    for sentence in result.conclusions:
        echo(sentence)
    echo()
    table = tables_of_audits.audit(result)
    print_rows(table, how=None)
    for note in table.notes:
        echo(note)
    echo()
    print_rows(tables_of_audits.factors(result))
    for lines in tables_of_audits.responses(result):
        echo()
        notes(lines)
