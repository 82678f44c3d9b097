"""Tables of several runs: side by side, by groups, their stopping rules, what predicts, and under other constants."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from posthoc.report.printing import Column, Table, column
from posthoc.report.words import confounded, sentence_of

if TYPE_CHECKING:
    from posthoc.analysis.compare import Difference, Group, Quantity, Row
    from posthoc.analysis.prediction import Prediction
    from posthoc.analysis.runs import Run
    from posthoc.analysis.sensitivity import Cell
    from posthoc.analysis.stopping import Score

TRIALS = "A trial is a run; or, where a group has several configurations (runs that differ in more than their seed), the mean of the runs of one."
MEANS = (
    "Means count every checkpoint once: where these are spaced by doubled steps, each doubling counts alike, and so mostly the "
    "beginning of training; 'last' is the last checkpoint, with its interval over documents."
)


def runs(rows: "Sequence[Row]") -> Table:
    """One row per run: every quantity with its interval and noise, and its state; below, what to know of each."""
    every = {key: quantity for row in rows for key, quantity in row.quantities.items()}
    best = {key: quantity.symbol for key, quantity in every.items() if quantity.best}
    columns = [
        column("run"),
        column("model", spare=5),
        column("dataset", spare=5),
        column(_counted(rows), "epochs", spare=5),
        *(column(title, key) for key, title in best.items()),
    ]
    columns += [column("at", "best_epoch", spare=4, of="best")] if best else []
    keys = {key: quantity for key, quantity in every.items() if key not in best}
    parts = {key: _parts([row.quantities[key] for row in rows if key in row.quantities]) for key in keys}
    for key, quantity in keys.items():
        columns += _quantity_columns(key, quantity, parts[key])
    columns.append(column("state"))
    table = []
    for row in rows:
        run = row.run
        cells = [run.name, run.about.get("model"), run.about.get("dataset"), run.summary.epochs]
        cells += [row.quantities[key].value if key in row.quantities else math.nan for key in best]
        cells += [run.summary.best_epoch] if best else []
        for key in keys:
            cells += _quantity_cells(row.quantities.get(key), parts[key])
        table.append([*cells, row.state.name])
    doubts = [f"{row.run.name}: {row.run.summary.doubt}." for row in rows if row.run.summary.doubt]
    states = [f"{row.run.name}: {row.state.name}, for {row.state.reason}." for row in rows]
    means = [MEANS] if any(key.endswith("_last") for key in every) else []
    return Table("Runs", columns, table, [*means, *_alike([row.run for row in rows]), *states], doubts)


def _counted(rows: "Sequence[Row]") -> str:
    """What the checkpoints of all runs are called."""
    nouns = {row.run.summary.noun for row in rows}
    return f"{nouns.pop()}s" if len(nouns) == 1 else "checkpoints"


def _alike(runs: "Sequence[Run]") -> list[str]:
    """Notes on runs that saw the same probe scaled otherwise, on measures of the user's that are not of one code, and on those that say they are of one training."""
    from posthoc.analysis.runs import other_scaling, same_training

    scaled = [
        f"{pair.first} and {pair.second} saw the same probe scaled otherwise: {pair.first_scaling}; {pair.second_scaling}."
        for pair in other_scaling(runs)
    ]
    codes: dict[str, dict[tuple[str, str], str]] = {}
    for run in runs:
        for key, measured in run.measures.items():
            if measured.code:
                codes.setdefault(key, {}).setdefault((measured.code.function, measured.code.sha256), run.name)
    scaled += [
        f"{key} of {' and of '.join(of.values())} was measured by different code: the numbers may not be compared."
        for key, of in codes.items() if len(of) > 1
    ]  # fmt: skip
    return (
        list(filter(None, [confounded(runs)]))
        + scaled
        + [f"{a} and {b} say they are of the same model, data set, seed and settings." for a, b in same_training(runs)]
    )


PARTS = ("sd", "interval", "noise")
"""What may stand beside a quantity's value."""


def _parts(of_runs: "Sequence[Quantity]") -> list[str]:
    """Which of them do, of any of the runs' values of one quantity."""
    known = {
        "sd": any(math.isfinite(quantity.sd) for quantity in of_runs),
        "interval": any(quantity.tested for quantity in of_runs),
        "noise": any(math.isfinite(quantity.noise) for quantity in of_runs),
    }
    return [part for part in PARTS if known[part]]


def _quantity_columns(key: str, quantity: "Quantity", parts: Sequence[str]) -> list[Column]:
    columns = {
        "sd": column("sd", f"{key}_sd", spare=4, of=quantity.symbol),
        "interval": replace(_interval(key, spare=1, of=quantity.symbol), digits=quantity.digits),
        "noise": column("noise", f"{key}_noise", spare=3, of=quantity.symbol),
    }
    return [
        Column(quantity.symbol, (key,), quantity.digits, spare=0 if "sd" in parts else 2),
        *(columns[part] for part in parts),
    ]


def _quantity_cells(quantity: "Quantity | None", parts: Sequence[str]) -> list[Any]:
    """The value and these parts beside it; nothing where a run has no such quantity."""
    if quantity is None:
        return [math.nan, *((math.nan, math.nan) if part == "interval" else math.nan for part in parts)]
    cells = {"sd": quantity.sd, "interval": (quantity.low, quantity.high), "noise": quantity.noise}
    return [quantity.value, *(cells[part] for part in parts)]


def _interval(name: str, spare: int = 0, of: str = "") -> Column:
    return column("95 %", f"{name}_low", f"{name}_high", spare=spare, of=of)


def groups(rows: "Sequence[Group]", symbols: Mapping[str, str]) -> Table:
    """One row per group: mean, sd and interval of every quantity over its trials."""
    columns = [column("group"), column("runs"), column("trials")]
    keys = list(rows[0].quantities) if rows else []
    for key in keys:
        columns += [column(symbols[key], key), column("sd", f"{key}_sd"), _interval(key)]
    table = []
    for group in rows:
        cells: list[Any] = [group.name, len(group.runs), group.trials]
        for of in group.quantities.values():
            cells += [of.mean, of.sd, (of.low, of.high)]
        table.append(cells)
    return Table("Groups: mean over trials", columns, table, [TRIALS])


def differences(rows: "Sequence[Difference]") -> Table:
    """One row per pair of groups and quantity."""
    columns = [column("measure"), column("first"), column("second"), column("difference"), column("p"),
               column("corrected", "p_corrected"), column("least p", "p_least"),
               column("noise's difference", "noise_difference"), column("differ also in")]  # fmt: skip
    table = [
        [d.quantity, d.first, d.second, d.difference, d.p, d.corrected, d.least, d.noise, d.warning or None]
        for d in rows
    ]
    notes = [
        "corrected: p as a false discovery rate over all rows of this table; least p: the smallest that so few trials can give."
    ]
    if any(row.warning for row in rows):
        notes.append(
            "What groups differ in also by itself makes measures differ: read the difference beside the noise's."
        )
    return Table("Differences between groups: p by permuting trials", columns, table, notes)


def stopping(scores: "Sequence[Score]", notes: Sequence[str] = ()) -> Table:
    """One row per stopping rule."""
    from posthoc.analysis.stopping import REFERENCE

    symbol = scores[0].symbol
    columns = [
        column("rule"), column("saved"), column("share"), column(f"{symbol} lost"), column("never fires"),
        *(column(f"{what}, against {REFERENCE}", *(f"{what}_difference{end}" for end in ("", "_low", "_high")))
          for what in ("saved", "lost")),
        column("lost, against patience that saves as much", *(f"patience_difference{end}" for end in ("", "_low", "_high"))),
        column("Pareto", "pareto"),
    ]  # fmt: skip
    names = (
        "rule", "saved", "saved_share", "lost", "never", "saved_difference", "lost_difference", "patience_difference",
    )  # fmt: skip
    table = [[*(getattr(score, name) for name in names), "*" if score.pareto else ""] for score in scores]
    return Table("Stopping rules", columns, table, [
        f"Patience, budgets and what is saved count checkpoints. {sentence_of(symbol)[:-1]} lost: of the run's best checkpoint less that of the best one kept until the stop, means over runs; "
        "differences with 95 % intervals, paired by configuration (by run where there is but one), also against patience that saves as much (between two lengths in "
        "proportion; none where none does). *: no other rule that can be followed saves at least as large a "
        "share and loses no more, and is better in one of the two.",
        "Rules see what was known at each checkpoint, but for those marked 'whole run known', whose z-scores look ahead.",
        *notes,
    ])  # fmt: skip


def prediction(rows: "Sequence[Prediction]", beyond: str | None = None) -> Table:
    """One row per target and measure; beyond: names of what was taken off beside loss and its slope."""
    known = (
        f"loss, of its slope and of {', '.join(map(str.strip, beyond.split(',')))}"
        if beyond
        else "loss and of its slope"
    )
    columns = [
        column("target"), column("measure"), column("tau"), column("p"), column("corrected", "p_corrected"),
        column("tau beyond loss", "tau_conditional"), column("p", "conditional_p"),
        column("corrected", "conditional_p_corrected"),
    ]  # fmt: skip
    table = [
        [row.target, f"{row.symbol} (baseline)" if row.baseline else row.symbol, row.tau, row.p, row.corrected,
         row.conditional, row.conditional_p, row.conditional_corrected]
        for row in rows
    ]  # fmt: skip
    first, most = rows[0], max(row.epochs for row in rows)
    epochs = f"{'' if all(row.epochs == most for row in rows) else 'up to '}{most} epochs"
    across = (
        f"the means of {first.configurations} configurations over their runs, of which they have different numbers"
        if first.uneven
        else f"{first.runs} runs of {first.configurations} configurations"
    )
    return Table("Prediction", columns, table, [
        f"Kendall's tau-b across {across}, mean over {epochs}; p by permuting configurations with all their seeds; "
        "corrected: as a false discovery rate over all measures and targets.",
        f"Beyond loss: of what is left of both ranks without what the ranks of {known} say, fitted on other configurations; "
        "for remaining without the score's, too.",
        "best and plateau: at each epoch among the runs to which it has not happened yet.",
    ])  # fmt: skip


def survives(rows: "Sequence[Prediction]", beyond: str | None) -> str:
    """Which measures say what loss, its slope and what else was taken off do not."""
    kept = [f"{row.symbol} of {row.target}" for row in rows if not row.baseline and row.conditional_corrected <= 0.05]
    wanting = [f"{row.symbol} of {row.target}" for row in rows if not row.baseline and row.wanting]
    known = f"loss, its slope and {', '.join(map(str.strip, beyond.split(',')))}" if beyond else "loss and its slope"
    few = f"; too few configurations to tell whether by {', '.join(wanting)}" if wanting else ""
    none = "nothing that can be told" if wanting else "no measure"
    return f"Beyond {known} something of what is to come is said by: {', '.join(kept) or none} (5 %, corrected){few}."


def sensitivity(cells: "Sequence[Cell]", runs: "Sequence[Run]", names: Sequence[str]) -> Table:
    """One row per choice of the inherited constants."""
    scores = {run.score.symbol for run in runs if run.score} - {"accuracy"}
    columns = [column("H_opt"), column("sigma_H"), column("w_H"),
               *(column(f"H_eff {run.name}", f"H_eff {run.name}") for run in runs),
               column(f"r(Psi,{'score' if scores else 'acc'}) below 0", "stability_index_accuracy_below_0"),
               column("of", "stability_index_accuracy_known"), column("gap")]  # fmt: skip
    table = []
    for choice in cells:
        known = [r for r in choice.stability_index_accuracy if math.isfinite(r)]
        constants = [f"{choice.h_opt}", f"{choice.sigma_h}", f"{choice.w_h}"]
        table.append([*constants, *choice.integration, sum(r < 0 for r in known), len(known), choice.gap])
    groups = list(dict.fromkeys(names))
    notes = []
    if len(groups) == 2 and any(math.isfinite(cell.gap) for cell in cells):
        below = sorted({(cell.h_opt, cell.sigma_h) for cell in cells if cell.gap < 0})
        where = ", ".join(f"H_opt {h} with sigma_H {s}" for h, s in below) or "nowhere"
        notes = [f"gap: mean H_eff of {groups[0]} less that of {groups[1]}; below 0: {where}."]
    elif len(groups) == 2:
        notes = ["No gap: a group has no H_eff."]
    return Table("Sensitivity", columns, table, notes)
