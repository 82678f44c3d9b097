"""posthoc compare: runs side by side."""

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from posthoc.cli.output import cell, table
from posthoc.errors import UsageError

if TYPE_CHECKING:
    from posthoc.analysis.compare import Difference, Group, Row
    from posthoc.analysis.runs import Run
    from posthoc.analysis.sensitivity import Cell
    from posthoc.analysis.stopping import Score

Table = tuple[str, list[str], list[list[Any]], list[str]]
"""A title, a header, rows, and notes to print below."""


@click.command(name="compare")
@click.argument("metrics", nargs=-1, required=True)
@click.option(
    "--from-csv", is_flag=True, help="METRICS are CSV files of epochs, such as those published with the paper."
)
@click.option("--column", multiple=True, metavar="OURS=THEIRS", help="Name of a column in the CSV files: epoch, accuracy, "
              "loss, hurst, h_eff, m.")  # fmt: skip
@click.option("--by", metavar="FIELDS", help="Group runs by recorded fields, such as dataset or dataset,model.")
@click.option("--stopping", is_flag=True, help="Replay stopping rules over the runs.")
@click.option("--sensitivity", is_flag=True, help="Vary H_opt, sigma_H and w_H.")
@click.option("--csv", "form", flag_value="csv", help="Print the tables as CSV.")
@click.option("--json", "form", flag_value="json", help="Print everything as JSON.")
@click.option("--latex", "form", flag_value="latex", help="Print the tables for LaTeX (booktabs).")
@click.option("--markdown", "form", flag_value="markdown", help="Print the tables in Markdown.")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Of bootstraps and permutations.")
def command(
    metrics: tuple[str, ...],
    from_csv: bool,
    column: tuple[str, ...],
    by: str | None,
    stopping: bool,
    sensitivity: bool,
    form: str | None,
    seed: int,
) -> None:
    """Put runs side by side: METRICS are metrics.json files, folders that hold some, or globs.

    Each measure stands beside its 95 % interval and what pure noise gives.
    """
    from posthoc.analysis.compare import differences, group_names, grouped, tabulate
    from posthoc.analysis.runs import in_one_unit, load_csv, load_runs, same_training
    from posthoc.analysis.sensitivity import sensitivity as vary
    from posthoc.analysis.stopping import compare_rules

    if column and not from_csv:
        raise UsageError("--column needs --from-csv.")
    runs = load_csv(metrics, dict(map(_mapping, column))) if from_csv else load_runs(metrics)
    runs = in_one_unit(runs)
    rows = tabulate(runs, seed=seed)
    names = group_names(runs, [field.strip() for field in by.split(",")]) if by else []
    groups = grouped(rows, names) if by else []
    gaps = differences(rows, names, seed) if by else []
    scores = compare_rules(runs, seed=seed) if stopping else []
    cells = vary(runs, names) if sensitivity else []
    if form == "json":
        click.echo(json.dumps(_plain(rows, groups, gaps, scores, cells), indent=1))
        return
    tables = [_runs_table(rows, same_training(runs))]
    tables += [_groups_table(groups), _differences_table(gaps)] if by else []
    tables += [_stopping_table(scores)] if stopping else []
    tables += [_sensitivity_table(cells, runs, names)] if sensitivity else []
    _print(tables, form)


def _mapping(text: str) -> tuple[str, str]:
    ours, equals, theirs = text.partition("=")
    if not equals:
        raise UsageError(f"--column {text!r} is not OURS=THEIRS.")
    return ours, theirs


def _runs_table(rows: "Sequence[Row]", twins: Sequence[tuple[str, str]]) -> Table:
    header = ["run", "model", "dataset", "epochs", "best accuracy", "at", "H_eff", "sd", "95 %", "noise", "M", "95 %",
              "noise", "Psi", "sd", "r(Hz,Mz)", "95 %", "r(Psi,acc)", "95 %", "state"]  # fmt: skip
    lines = []
    for row in rows:
        s, i = row.summary, {name: _interval(pair) for name, pair in row.intervals.items()}
        best = None if math.isnan(s["best_epoch"]) else int(s["best_epoch"])
        lines.append([
            row.run.name, row.run.about.get("model"), row.run.about.get("dataset"), int(s["epochs"]),
            s["best_accuracy"], best, s["h_eff"], s["h_eff_sd"], i["h_eff"], row.noise["h_eff"], s["m"], i["m"],
            row.noise["m"], s["psi"], s["psi_sd"], s["r_fields"], i["r_fields"], s["r_accuracy"], i["r_accuracy"],
            row.state.name,
        ])  # fmt: skip
    notes = [f"{row.run.name}: {row.state.name}, for {row.state.reason}." for row in rows]
    notes += [f"{a} and {b} say they are of the same model, data set and seed." for a, b in twins]
    return "Runs", header, lines, notes


def _groups_table(groups: "Sequence[Group]") -> Table:
    from posthoc.analysis.compare import MEASURES

    header = ["group", "runs", *(name for measure in MEASURES for name in (measure, "sd", "95 %"))]
    lines = [
        [group.name, len(group.runs),
         *(value for m in MEASURES for value in (group.means[m], group.sds[m], _interval(group.intervals[m])))]
        for group in groups
    ]  # fmt: skip
    return "Groups: mean over runs", header, lines, []


def _differences_table(gaps: "Sequence[Difference]") -> Table:
    header = ["measure", "first", "second", "difference", "p", "noise's difference", "differ also in"]
    lines = [[g.column, g.first, g.second, g.difference, g.p, g.noise, g.warning or "-"] for g in gaps]
    notes = []
    if any(gap.warning for gap in gaps):
        notes.append(
            "Where groups differ in classes, images or smoothing, the protocol alone makes H_eff differ: "
            "read the difference beside the noise's."
        )
    return "Differences between groups: p by permuting runs", header, lines, notes


def _stopping_table(scores: "Sequence[Score]") -> Table:
    header = ["rule", "saved", "share", "accuracy lost", "never fires", "saved, against patience 10",
              "lost, against patience 10", "Pareto"]  # fmt: skip
    lines = [
        [s.rule, s.saved, s.saved_share, s.lost, s.never, _difference(s.saved_difference),
         _difference(s.lost_difference), "*" if s.pareto else ""]
        for s in scores
    ]  # fmt: skip
    notes = [
        "Patience, budgets and what is saved count checkpoints. Accuracy lost: of the run's best checkpoint less that of the best one kept until the stop, means over runs; "
        "differences with 95 % intervals, paired by run. *: no other rule that can be followed saves a larger share and "
        "loses less.",
        "Rules see what was known at each epoch, but for those marked 'whole run known', whose z-scores look ahead.",
    ]
    return "Stopping rules", header, lines, notes


def _sensitivity_table(cells: "Sequence[Cell]", runs: "Sequence[Run]", names: Sequence[str]) -> Table:
    header = ["H_opt", "sigma_H", "w_H", *(f"H_eff {run.name}" for run in runs), "r(Psi,acc) below 0", "gap"]
    lines = [
        [f"{c.h_opt}", f"{c.sigma_h}", f"{c.w_h}", *c.h_eff,
         f"{sum(r < 0 for r in c.r_accuracy)} of {sum(math.isfinite(r) for r in c.r_accuracy)}", c.gap]
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
    return "Sensitivity", header, lines, notes


def _interval(pair: tuple[float, float]) -> str:
    low, high = pair
    return "-" if math.isnan(low) else f"{low:.3f}..{high:.3f}"


def _difference(triple: tuple[float, float, float]) -> str:
    mean, low, high = triple
    return f"{mean:+.3f}" if math.isnan(low) else f"{mean:+.3f} ({low:+.3f}..{high:+.3f})"


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


def _print(tables: Sequence[Table], form: str | None) -> None:
    for number, (title, header, lines, notes) in enumerate(tables):
        if form is None:
            click.echo(f"{'' if not number else chr(10)}{title}")
            table(header, lines)
        elif form == "csv":
            text = io.StringIO()
            csv.writer(text).writerows([header, *([_exact(value) for value in line] for line in lines)])
            click.echo(("" if not number else "\n") + text.getvalue(), nl=False)
        else:
            cells = [[cell(value) for value in line] for line in lines]
            click.echo((_latex if form == "latex" else _markdown)(title, header, cells))
        if form != "csv":
            for note in notes:
                click.echo(f"% {note}" if form == "latex" else note)


def _exact(value: Any) -> Any:
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else value


def _markdown(title: str, header: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    lines = [f"**{title}**", "", "| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    lines += ["| " + " | ".join(one.replace("|", "\\|") for one in row) + " |" for row in cells]
    return "\n".join(lines) + "\n"


def _latex(title: str, header: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """A tabular for booktabs."""
    signs = {"\\": r"\textbackslash{}", "_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "$": r"\$", "^": r"\^{}",
             "{": r"\{", "}": r"\}", "~": r"\~{}"}  # fmt: skip

    def safe(text: str) -> str:
        return "".join(signs.get(sign, sign) for sign in text)

    lines = [f"% {title}", r"\begin{tabular}{" + "l" * len(header) + "}", r"\toprule"]
    lines += [" & ".join(map(safe, header)) + r" \\", r"\midrule"]
    lines += [" & ".join(map(safe, row)) + r" \\" for row in cells]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"
