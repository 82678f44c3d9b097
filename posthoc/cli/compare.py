"""posthoc compare: runs side by side."""

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import click

from posthoc.cli.exits import echo
from posthoc.cli.inputs import require_metrics
from posthoc.cli.output import columns_option, print_json, print_tables
from posthoc.errors import UsageError

if TYPE_CHECKING:
    from posthoc.analysis.compare import Row
    from posthoc.analysis.prediction import Prediction
    from posthoc.analysis.runs import Run
    from posthoc.analysis.stopping import Score


@click.command(name="compare")
@click.argument("metrics", nargs=-1, required=True)
@click.option(
    "--from-csv", is_flag=True, help="METRICS are CSV files of epochs, such as those published with the paper."
)
@click.option("--column", "columns", multiple=True, metavar="OURS=THEIRS", help="Name of a column in the CSV files: epoch, accuracy, "
              "loss, hurst, integration, metastability.")  # fmt: skip
@click.option("--by", metavar="FIELDS", help="Group runs by recorded fields, such as dataset or dataset,model.")
@click.option("--stopping", is_flag=True, help="Replay stopping rules over the runs.")
@click.option("--measures", metavar="NAMES", help="With --stopping: stopping by these measures, too, by the level and by the volatility "
              "of each, whose threshold is chosen on other configurations; with --predict: only these. Names with commas between, or all.")  # fmt: skip
@click.option("--predict", metavar="TARGETS", help="What measures say of what is to come, across runs: final-accuracy, "
              "remaining, best, plateau, with commas between, or all.")  # fmt: skip
@click.option("--beyond", metavar="MEASURES", help="With --predict: what is known besides loss and its slope, and taken off, too: "
              "measures, and settings that are numbers, with commas between, such as accuracy,lr.")  # fmt: skip
@click.option("--sensitivity", is_flag=True, help="Vary H_opt, sigma_H and w_H.")
@click.option("--csv", "form", flag_value="csv", help="Print the tables as CSV.")
@click.option("--json", "form", flag_value="json", help="Print everything as JSON; docs/json.md says what is in it.")
@click.option("--latex", "form", flag_value="latex", help="Print the tables for LaTeX (booktabs).")
@click.option("--markdown", "form", flag_value="markdown", help="Print the tables in Markdown.")
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, help="Of permutations, where there are too many to try all."
)
@columns_option("shown_columns")
@click.option("--taxonomy", type=click.Choice(["taxonomy-2", "taxonomy-1"]), default="taxonomy-2", help="Names of states; "
              "taxonomy-1: by the published thresholds alone.")  # fmt: skip
def command(
    metrics: tuple[str, ...],
    from_csv: bool,
    columns: tuple[str, ...],
    by: str | None,
    stopping: bool,
    measures: str | None,
    predict: str | None,
    beyond: str | None,
    sensitivity: bool,
    form: str | None,
    seed: int,
    taxonomy: str,
    shown_columns: str | None,
) -> None:
    """Put runs side by side: METRICS are metrics.json files, folders that hold some, or globs.

    Each measure stands beside its 95 % interval and what pure noise gives.
    """
    if columns and not from_csv:
        raise UsageError("--column needs --from-csv.")
    if measures and not (stopping or predict):
        raise UsageError("--measures needs --stopping or --predict.")
    if beyond and not predict:
        raise UsageError("--beyond needs --predict.")
    mapping = dict(map(_mapping, columns))
    require_metrics(metrics)
    from posthoc.analysis.compare import Comparison, group_names
    from posthoc.analysis.runs import in_one_unit, load_csv, load_runs
    from posthoc.analysis.sensitivity import sensitivity as vary
    from posthoc.analysis.taxonomy import Taxonomy
    from posthoc.report import tables_of_runs
    from posthoc.report.words import compared

    runs = in_one_unit(load_csv(metrics, mapping) if from_csv else load_runs(metrics))
    fields = [field.strip() for field in by.split(",")] if by else []
    names = group_names(runs, fields) if by else []
    comparison = Comparison.of(runs, fields, seed, Taxonomy(taxonomy))
    rows, groups, gaps = comparison.rows, comparison.groups, comparison.differences
    scores, unjudged = _scored(runs, measures) if stopping else ({}, [])
    if form in ("csv", "json"):  # which have no room for notes
        for note in unjudged:
            echo(note, err=True)
    cells = vary(runs, names) if sensitivity else []
    foretold = _predicted(runs, predict, beyond, measures, seed) if predict else []
    if form == "json":
        lists = {
            "groups": groups,
            "differences": gaps,
            "stopping": list(chain(*scores.values())),
            "sensitivity": cells,
            "prediction": foretold,
        }
        content = {"runs": list(map(_plain, rows)), **{name: some for name, some in lists.items() if some}}
        print_json(content)
        return
    symbols = {key: quantity.symbol for row in rows for key, quantity in row.quantities.items()}
    printed = [tables_of_runs.runs(rows)]
    printed += [tables_of_runs.groups(groups, symbols)] if groups else []
    printed += [tables_of_runs.differences(gaps)] if gaps else []
    printed += [tables_of_runs.stopping(of_score, unjudged) for of_score in scores.values()]
    printed += [tables_of_runs.sensitivity(cells, runs, names)] if sensitivity else []
    printed += [tables_of_runs.prediction(foretold, beyond)] if foretold else []
    if form is None:
        if shown_columns:
            printed[0].selected(shown_columns)  # a name that is not there is said before anything is printed
        echo(compared(rows, gaps))
        if foretold:
            echo(tables_of_runs.survives(foretold, beyond))
        echo()
    print_tables(printed, form, shown_columns)


def _predicted(
    runs: "Sequence[Run]", names: str, beyond: str | None, measures: str | None, seed: int
) -> "list[Prediction]":
    from posthoc.analysis.prediction import TARGETS, predict

    judged = [run for run in runs if run.score is not None]
    if others := [run.name for run in runs if run.score is None]:
        echo(f"--predict: without an accuracy or other score, and left out: {', '.join(others)}.", err=True)
    if not judged:
        raise UsageError("--predict: none of the runs has an accuracy or other score to predict; leave it out.")
    targets = [*TARGETS] if names == "all" else [name.strip() for name in names.split(",")]
    return predict(judged, targets, seed, beyond.split(",") if beyond else (), measures or "all")


def _scored(runs: "Sequence[Run]", measures: str | None) -> "tuple[dict[str, list[Score]], list[str]]":
    """The stopping rules over the runs of each score, such as accuracy, those by measures too, and a note on the runs that
    have none."""
    from posthoc.analysis.stopping import compare_rules, unjudged
    from posthoc.analysis.stopping_by import rules_of

    judged: dict[str, list[Run]] = {}
    for run in runs:
        if run.score is not None:
            judged.setdefault(run.score.symbol, []).append(run)
    if not judged:
        raise UsageError(
            "--stopping: none of the runs has an accuracy or other score, by which stopping rules are judged; leave it out."
        )
    return {
        symbol: compare_rules(of_score, rules_of(of_score, measures) if measures else ())
        for symbol, of_score in judged.items()
    }, unjudged(runs)


def _mapping(text: str) -> tuple[str, str]:
    ours, equals, theirs = text.partition("=")
    if not equals:
        raise UsageError(f"--column {text!r} is not OURS=THEIRS, such as integration=h.")
    return ours, theirs


def _plain(row: "Row") -> dict[str, Any]:
    """What JSON has of a run."""
    run = row.run
    return {
        "run": run.name,
        "about": run.about,
        "epochs": run.summary.epochs,
        "epochs_with_integration": run.measures["integration"].summary.count if "integration" in run.measures else 0,
        "best_epoch": run.summary.best_epoch,
        "doubt": run.summary.doubt,
        "quantities": row.quantities,
        "state": row.state,
    }
