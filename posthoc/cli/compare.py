"""posthoc compare: runs side by side."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from posthoc.cli.exits import echo
from posthoc.cli.formats import Column, Sheet, column, print_sheets
from posthoc.cli.inputs import require_metrics
from posthoc.errors import UsageError

if TYPE_CHECKING:
    from posthoc.analysis.compare import Difference, Group, Row
    from posthoc.analysis.runs import Run
    from posthoc.analysis.sensitivity import Cell
    from posthoc.analysis.stopping import Score


@click.command(name="compare")
@click.argument("metrics", nargs=-1, required=True)
@click.option(
    "--from-csv", is_flag=True, help="METRICS are CSV files of epochs, such as those published with the paper."
)
@click.option("--column", "columns", multiple=True, metavar="OURS=THEIRS", help="Name of a column in the CSV files: epoch, accuracy, "
              "loss, hurst, h_eff, m.")  # fmt: skip
@click.option("--by", metavar="FIELDS", help="Group runs by recorded fields, such as dataset or dataset,model.")
@click.option("--stopping", is_flag=True, help="Replay stopping rules over the runs.")
@click.option("--sensitivity", is_flag=True, help="Vary H_opt, sigma_H and w_H.")
@click.option("--csv", "form", flag_value="csv", help="Print the tables as CSV.")
@click.option("--json", "form", flag_value="json", help="Print everything as JSON.")
@click.option("--latex", "form", flag_value="latex", help="Print the tables for LaTeX (booktabs).")
@click.option("--markdown", "form", flag_value="markdown", help="Print the tables in Markdown.")
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, help="Of permutations, where there are too many to try all."
)
@click.option("--taxonomy", type=click.Choice(["taxonomy-2", "taxonomy-1"]), default="taxonomy-2", help="Names of states; "
              "taxonomy-1: by the published thresholds alone.")  # fmt: skip
def command(
    metrics: tuple[str, ...],
    from_csv: bool,
    columns: tuple[str, ...],
    by: str | None,
    stopping: bool,
    sensitivity: bool,
    form: str | None,
    seed: int,
    taxonomy: str,
) -> None:
    """Put runs side by side: METRICS are metrics.json files, folders that hold some, or globs.

    Each measure stands beside its 95 % interval and what pure noise gives.
    """
    if columns and not from_csv:
        raise UsageError("--column needs --from-csv.")
    mapping = dict(map(_mapping, columns))
    require_metrics(metrics)
    from posthoc.analysis.compare import differences, group_names, grouped, tabulate
    from posthoc.analysis.runs import in_one_unit, load_csv, load_runs, other_scaling, same_training
    from posthoc.analysis.sensitivity import sensitivity as vary
    from posthoc.analysis.taxonomy import Taxonomy

    runs = load_csv(metrics, mapping) if from_csv else load_runs(metrics)
    runs = in_one_unit(runs)
    rows = tabulate(runs, Taxonomy(taxonomy))
    names = group_names(runs, [field.strip() for field in by.split(",")]) if by else []
    groups = grouped(rows, names) if by else []
    gaps = differences(rows, names, seed) if by else []
    scores, unjudged = _scored(runs) if stopping else ([], [])
    if form in ("csv", "json"):  # which have no room for notes
        for note in unjudged:
            echo(note, err=True)
    cells = vary(runs, names) if sensitivity else []
    if form == "json":
        echo(json.dumps(_plain(rows, groups, gaps, scores, cells), indent=1), lines=True)
        return
    sheets = [_runs(rows, same_training(runs), other_scaling(runs))]
    sheets += [_groups(groups), _differences(gaps)] if by else []
    sheets += [_stopping(scores, unjudged)] if stopping else []
    sheets += [_sensitivity(cells, runs, names)] if sensitivity else []
    print_sheets(sheets, form)


def _scored(runs: "Sequence[Run]") -> "tuple[list[Score], list[str]]":
    """The stopping rules over the runs that have an accuracy, and a note on those that have none."""
    from posthoc.analysis.stopping import compare_rules

    judged = [run for run in runs if any(map(math.isfinite, run.accuracy))]
    if not judged:
        raise UsageError("--stopping: none of the runs has an accuracy, by which stopping rules are judged.")
    others = [run.name for run in runs if all(run is not one for one in judged)]
    return compare_rules(judged), [f"Without an accuracy, and not judged: {', '.join(others)}."] if others else []


def _mapping(text: str) -> tuple[str, str]:
    ours, equals, theirs = text.partition("=")
    if not equals:
        raise UsageError(f"--column {text!r} is not OURS=THEIRS.")
    return ours, theirs


def _runs(
    rows: "Sequence[Row]", twins: Sequence[tuple[str, str]], scaled: Sequence[tuple[str, str, str, str]]
) -> Sheet:
    columns = [
        column("run"), column("model"), column("dataset"), column("epochs"), column("best accuracy"),
        column("at", "best_epoch"), column("H_eff", "h_eff"), column("sd", "h_eff_sd"), _interval("h_eff"),
        column("noise", "h_eff_noise"), column("M", "m"), _interval("m"), column("noise", "m_noise"),
        column("Psi", "psi"), column("sd", "psi_sd"), column("r(Hz,Mz)", "r_fields"), _interval("r_fields"),
        column("r(Psi,acc)", "r_accuracy"), _interval("r_accuracy"), column("state"),
    ]  # fmt: skip
    lines = []
    for row in rows:
        s, i = row.summary, row.intervals
        best = None if math.isnan(s["best_epoch"]) else int(s["best_epoch"])
        lines.append([
            row.run.name, row.run.about.get("model"), row.run.about.get("dataset"), int(s["epochs"]),
            s["best_accuracy"], best, s["h_eff"], s["h_eff_sd"], i["h_eff"], row.noise["h_eff"], s["m"], i["m"],
            row.noise["m"], s["psi"], s["psi_sd"], s["r_fields"], i["r_fields"], s["r_accuracy"], i["r_accuracy"],
            row.state.name,
        ])  # fmt: skip
    notes = [f"{row.run.name}: {row.run.doubt}." for row in rows if row.run.doubt]
    notes += [f"{a} and {b} saw the same probe scaled otherwise: {first}; {second}." for a, first, b, second in scaled]
    notes += [f"{row.run.name}: {row.state.name}, for {row.state.reason}." for row in rows]
    notes += [f"{a} and {b} say they are of the same model, data set and seed." for a, b in twins]
    return Sheet("Runs", columns, lines, notes)


def _groups(groups: "Sequence[Group]") -> Sheet:
    from posthoc.analysis.compare import MEASURES

    columns = [column("group"), column("runs")]
    for measure in MEASURES:
        columns += [column(measure), column("sd", f"{measure}_sd"), _interval(measure)]
    lines = [
        [group.name, len(group.runs),
         *(value for m in MEASURES for value in (group.means[m], group.sds[m], group.intervals[m]))]
        for group in groups
    ]  # fmt: skip
    return Sheet("Groups: mean over runs", columns, lines)


def _differences(gaps: "Sequence[Difference]") -> Sheet:
    columns = [column("measure"), column("first"), column("second"), column("difference"), column("p"),
               column("corrected", "p_corrected"), column("least p", "p_least"),
               column("noise's difference", "noise_difference"), column("differ also in")]  # fmt: skip
    lines = [
        [g.column, g.first, g.second, g.difference, g.p, g.corrected, g.least, g.noise, g.warning or None] for g in gaps
    ]
    notes = [
        "corrected: p as a false discovery rate over all rows of this table; least p: the smallest that so few runs can "
        "give."
    ]
    if any(gap.warning for gap in gaps):
        notes.append(
            "Where groups differ in classes, images or smoothing, the protocol alone makes H_eff differ: "
            "read the difference beside the noise's."
        )
    return Sheet("Differences between groups: p by permuting runs", columns, lines, notes)


def _stopping(scores: "Sequence[Score]", unjudged: Sequence[str]) -> Sheet:
    columns = [
        column("rule"), column("saved"), column("share"), column("accuracy lost"), column("never fires"),
        column("saved, against patience 10", *_ends("saved_difference")),
        column("lost, against patience 10", *_ends("lost_difference")), column("Pareto", "pareto"),
    ]  # fmt: skip
    lines = [
        [s.rule, s.saved, s.saved_share, s.lost, s.never, s.saved_difference, s.lost_difference,
         "*" if s.pareto else ""]
        for s in scores
    ]  # fmt: skip
    notes = [
        "Patience, budgets and what is saved count checkpoints. Accuracy lost: of the run's best checkpoint less that of the best one kept until the stop, means over runs; "
        "differences with 95 % intervals, paired by run. *: no other rule that can be followed saves a larger share and "
        "loses less.",
        "Rules see what was known at each epoch, but for those marked 'whole run known', whose z-scores look ahead.",
        *unjudged,
    ]
    return Sheet("Stopping rules", columns, lines, notes)


def _sensitivity(cells: "Sequence[Cell]", runs: "Sequence[Run]", names: Sequence[str]) -> Sheet:
    columns = [column("H_opt"), column("sigma_H"), column("w_H"),
               *(column(f"H_eff {run.name}", f"H_eff {run.name}") for run in runs),
               column("r(Psi,acc) below 0", "r_accuracy_below_0"), column("of", "r_accuracy_known"), column("gap")]  # fmt: skip
    lines = [
        [f"{c.h_opt}", f"{c.sigma_h}", f"{c.w_h}", *c.h_eff,
         sum(r < 0 for r in c.r_accuracy), sum(math.isfinite(r) for r in c.r_accuracy), c.gap]
        for c in cells
    ]  # fmt: skip
    notes = []
    groups = list(dict.fromkeys(names))
    if len(groups) == 2:
        known = [c.gap for c in cells if math.isfinite(c.gap)]
        below = sorted({(c.h_opt, c.sigma_h) for c in cells if c.gap < 0})
        reversed_at = ", ".join(f"H_opt {h} with sigma_H {s}" for h, s in below) or "nowhere"
        notes.append(
            "No gap: a group has no H_eff."
            if not known
            else f"gap: mean H_eff of {groups[0]} less that of {groups[1]}; below 0: {reversed_at}."
        )
    return Sheet("Sensitivity", columns, lines, notes)


def _interval(name: str) -> Column:
    return column("95 %", f"{name}_low", f"{name}_high")


def _ends(name: str) -> tuple[str, str, str]:
    return name, f"{name}_low", f"{name}_high"


def _plain(
    rows: "Sequence[Row]",
    groups: "Sequence[Group]",
    gaps: "Sequence[Difference]",
    scores: "Sequence[Score]",
    cells: "Sequence[Cell]",
) -> dict[str, Any]:
    from posthoc.analysis.records import plain

    runs = [
        {
            "run": row.run.name,
            "about": row.run.about,
            "doubt": row.run.doubt,
            **row.summary,
            "intervals": row.intervals,
            "noise": row.noise,
            "state": asdict(row.state),
        }
        for row in rows
    ]
    lists = {"groups": groups, "differences": gaps, "stopping": scores, "sensitivity": cells}
    found: dict[str, Any] = plain(
        {"runs": runs, **{name: [asdict(one) for one in some] for name, some in lists.items() if some}}  # type: ignore[call-overload]
    )
    return found
