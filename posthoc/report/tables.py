"""Every table, made once: the rows and columns that are printed to a terminal, as CSV, LaTeX, Markdown or HTML."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from posthoc.analysis.records import Correlation, Overall, RunMetrics
from posthoc.analysis.responses import Audit, Effect, Reaction, Response, signed
from posthoc.analysis.settling import sentence
from posthoc.analysis.verdicts import Outcome, verdict
from posthoc.recording import named
from posthoc.report.printing import Column, Table, cell, column
from posthoc.report.words import (
    aside,
    better,
    chosen,
    confounded,
    headlines,
    health,
    left_out,
    listed,
    number,
    over_orders,
    references,
    related,
    sentence_of,
    settled,
    undefined,
)

if TYPE_CHECKING:
    from posthoc.analysis.compare import Difference, Group, Quantity, Row
    from posthoc.analysis.prediction import Prediction
    from posthoc.analysis.runs import Run
    from posthoc.analysis.sensitivity import Cell
    from posthoc.analysis.stopping import Score

Lines = list[tuple[str, str]]
"""Labelled lines."""
MEANS = (
    "Means count every checkpoint once: where these are spaced by doubled steps, each doubling counts alike, and so mostly the "
    "beginning of training; 'last' is the last checkpoint, with its interval over documents."
)
MOST_LEFT_OUT = 8
"""So many checkpoints that were left out are named in a summary."""


def checkpoints(metrics: RunMetrics) -> Table:
    """One row per checkpoint: every listed measure, the headline ones beside the null that decides about them."""
    columns = [column(metrics.summary.unit)]
    values: list[Sequence[Any]] = [metrics.when]
    for key, measured in metrics.measures.items():
        if measured.listed:
            told = measured.headline or measured is metrics.score
            columns.append(Column(measured.symbol, (key,), measured.digits, spare=0 if told else 2))
            values.append(measured.value.tolist())
            beside = measured.nulls.get(measured.decided_by) if measured.headline else None
            if beside is not None:
                null = measured.decided_by
                if beside.mean.any():  # of a difference it is 0
                    columns.append(Column(null, (f"{key}_{null}_mean",), measured.digits, spare=3))
                    values.append(beside.mean.tolist())
                columns.append(column("p", f"{key}_{null}_p", spare=1))
                values.append(beside.p.tolist())
    columns.append(column("dead", spare=1 if any(checkpoint.dead for checkpoint in metrics.checkpoints) else 4))
    values.append([checkpoint.dead for checkpoint in metrics.checkpoints])
    return Table("Checkpoints", columns, list(zip(*values, strict=True)))


def summary(metrics: RunMetrics) -> Lines:
    """The run in a few labelled lines."""
    run, protocol, integration = metrics.summary, metrics.protocol, metrics.measures.get("integration")
    counted = f", {integration.summary.count} of them with an integration" if integration else ""
    lines = [("caution", run.doubt)] if run.doubt else []
    lines += [("left out", text) for text in left_out(metrics)[:MOST_LEFT_OUT]]
    lines += [("health", text) for text in health(metrics)]
    lines += [("undefined", "; ".join(parts))] if (parts := [*undefined(metrics), *_without_course(metrics)]) else []
    lines += [
        ("protocol", f"{protocol.name}, {protocol.axis} axis, estimator {protocol.estimator}, smoothing {protocol.smooth}, "
                     f"scales {list(metrics.scales)}" + (", calibrated" if protocol.calibrate else "")),
        (f"{run.noun}s", f"{run.epochs}{counted}"),
        *_best(metrics),
        *([("which checkpoint", text)] if (text := chosen(metrics)) else []),
        *(at_last(metrics) if metrics.axis.intervals else _means(metrics)),
        *_stability(metrics),
    ]  # fmt: skip
    if reasons := _reasons(metrics):
        lines.append(("dead units", f"{', '.join(reasons)} (units x {run.noun}s), left out"))
    if any(checkpoint.untrained for checkpoint in metrics.checkpoints):
        lines.append((metrics.at_start, "the checkpoint of step 0 is a control and not part of these figures"))
    return lines + nulls(metrics) + [("not measured", f"{what}: {why}") for why, what in aside(metrics)]


def _means(metrics: RunMetrics) -> Lines:
    """The headline measures over the run."""
    return [(of.symbol, _with_sd(of.summary, " +- ")) for of in headlines(metrics).values() if of.summary.count]


def at_last(metrics: RunMetrics) -> Lines:
    """The measures at the last checkpoint with their intervals, beside the null that decides, and of untrained weights.

    Where each checkpoint has intervals by itself: of language models, whose steps are spaced so that a mean over
    checkpoints would be one of the beginning. Nothing where none of those that runs are compared by has a value there.
    """
    if not any(math.isfinite(measured.value[-1]) for measured in headlines(metrics).values()):
        return []
    run = metrics.summary
    untrained = [e for e, checkpoint in enumerate(metrics.checkpoints) if checkpoint.untrained]
    lines = [("last", f"{run.unit} {metrics.when[-1]}, 95 % intervals {metrics.axis.intervals}")]
    for measured in metrics.measures.values():
        if measured.aside or not (measured.listed or measured.headline) or not measured.low.size:
            continue
        value, low, high = (number(of[-1], measured.digits) for of in (measured.value, measured.low, measured.high))
        known = math.isfinite(measured.low[-1]) and math.isfinite(measured.high[-1])
        parts = [f"{value} ({low} to {high})" if known else value]
        if beside := measured.nulls.get(measured.decided_by):
            null = (
                "" if metrics.nulls[measured.decided_by].value else f"{measured.decided_by} {number(beside.mean[-1])}, "
            )
            parts.append(f"{null}p {beside.p[-1]:.2g}")
        if untrained:
            parts.append(f"{metrics.at_start} {number(measured.value[untrained[0]], measured.digits)}")
        lines.append((measured.symbol, "; ".join(parts)))
    return lines


def _stability(metrics: RunMetrics) -> Lines:
    """The stability index and when its volatility settles; nothing where it was not measured."""
    run, index = metrics.summary, metrics.measures.get("stability_index")
    lines = [("Psi", _with_sd(index.summary, ", sd "))] if index and index.summary.count else []
    lines += [
        (r.symbol, f"{number(r.r)}{_interval_of(r)} over {run.noun}s") for r in related(metrics) if not math.isnan(r.r)
    ]
    if "volatility" not in metrics.measures or (index and not index.summary.count):
        return lines
    ways = "; ".join(f"{way}: {when}" for way, when in settled(metrics).items())
    lines.append(("settled", f"{ways} (volatility < {metrics.protocol.threshold})"))
    if run.uneven:
        lines.append(("volatility", f"undefined, for {run.uneven}"))
    if text := sentence(run):
        lines.append(("settled", text))
    return lines


def _without_course(metrics: RunMetrics) -> list[str]:
    """What that relates checkpoints has no value."""
    index = metrics.measures.get("stability_index")
    names = [index.symbol] if index and not index.summary.count else []
    names += [r.symbol for r in related(metrics) if math.isnan(r.r)]
    return [f"{listed(names)} throughout"] if names else []


def _interval_of(r: Correlation) -> str:
    """Of a correlation, where it has one."""
    known = math.isfinite(r.low) and math.isfinite(r.high)
    return f", 95 % interval {number(r.low)} to {number(r.high)}" if known else ", without an interval"


def _best(metrics: RunMetrics) -> Lines:
    """By what the run is judged; nothing where it is said elsewhere why by nothing."""
    run, score = metrics.summary, metrics.score
    if score is not None:
        value = f"{number(metrics.best)} ({run.accuracy_source}) at {run.unit} {run.best_epoch}"
        return [(f"best {score.symbol}", f"{value}{better(score)}")]
    if metrics.measures["accuracy"].aside:
        return []
    if not metrics.trained.any():
        return [("best accuracy", "none: no checkpoint is trained")]
    return [
        ("best accuracy", "none: no accuracy is recorded in the checkpoints, and none could be measured on the probe")
    ]


def _with_sd(overall: Overall, between: str) -> str:
    return f"{number(overall.mean)}{between}{number(overall.sd)}"


def _reasons(metrics: RunMetrics) -> list[str]:
    """Why units have no exponent, with the count of each over the checkpoints."""
    counts: dict[str, int] = {}
    for checkpoint in metrics.checkpoints:
        for why, count in checkpoint.reasons.items():
            counts[why] = counts.get(why, 0) + count
    return [f"{count} {why}" for why, count in counts.items()]


def nulls(metrics: RunMetrics) -> Lines:
    """What the deciding nulls say of the headline measures, and beside which values the references put them."""
    if not any(measured.nulls for measured in metrics.measures.values()):
        return []
    lines, run = [], metrics.summary
    for key, measured in headlines(metrics).items():
        if measured.decided_by and measured.summary.count:
            result = verdict(metrics, key)
            rate = "" if result.outcome is Outcome.NOT_DRAWN else " (false discovery rate 5 %)"
            lines.append((f"null: {result.null}", result.sentence(run.noun) + rate))
    return lines + [(f"reference: {null}", text) for null, text in references(metrics, 4)]


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
        "interval": _interval(key, spare=1, of=quantity.symbol),
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
    """One row per group: mean, sd and interval of every quantity over its runs."""
    columns = [column("group"), column("runs")]
    keys = list(rows[0].quantities) if rows else []
    for key in keys:
        columns += [column(symbols[key], key), column("sd", f"{key}_sd"), _interval(key)]
    table = []
    for group in rows:
        cells: list[Any] = [group.name, len(group.runs)]
        for of in group.quantities.values():
            cells += [of.mean, of.sd, (of.low, of.high)]
        table.append(cells)
    return Table("Groups: mean over runs", columns, table)


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
        "corrected: p as a false discovery rate over all rows of this table; least p: the smallest that so few runs can give."
    ]
    if any(row.warning for row in rows):
        notes.append(
            "Where groups differ in classes, images or smoothing, the protocol alone makes H_eff differ: "
            "read the difference beside the noise's."
        )
    return Table("Differences between groups: p by permuting runs", columns, table, notes)


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
        "differences with 95 % intervals, paired by run; against patience that saves as much (between two lengths in "
        "proportion; none where none does) by configuration. *: no other rule that can be followed saves at least as large a "
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
        column("corrected", "conditional_p_corrected"), column("leads by", "lead"), column("together"),
    ]  # fmt: skip
    table = [
        [row.target, f"{row.symbol} (baseline)" if row.baseline else row.symbol, row.tau, row.p, row.corrected,
         row.conditional, row.conditional_p, row.conditional_corrected, row.lead, row.together]
        for row in rows
    ]  # fmt: skip
    first, most = rows[0], max(row.epochs for row in rows)
    epochs = f"{'' if all(row.epochs == most for row in rows) else 'up to '}{most} epochs"
    return Table("Prediction", columns, table, [
        f"Kendall's tau-b across {first.runs} runs of {first.configurations} configurations, mean over {epochs}; p by "
        "permuting configurations with all their seeds; corrected: as a false discovery rate over all measures and targets.",
        f"Beyond loss: of what is left of both ranks without what the ranks of {known} say, fitted on other configurations.",
        "Leads by: how many checkpoints a measure's steps come before the score's (below 0: after) where they go together most.",
    ])  # fmt: skip


def survives(rows: "Sequence[Prediction]", beyond: str | None) -> str:
    """Which measures say what loss, its slope and what else was taken off do not."""
    kept = [f"{row.symbol} of {row.target}" for row in rows if not row.baseline and row.conditional_corrected <= 0.05]
    known = f"loss, its slope and {', '.join(map(str.strip, beyond.split(',')))}" if beyond else "loss and its slope"
    return (
        f"Beyond {known} something of what is to come is said by: {', '.join(kept) or 'no measure'} (5 %, corrected)."
    )


def sensitivity(cells: "Sequence[Cell]", runs: "Sequence[Run]", names: Sequence[str]) -> Table:
    """One row per choice of the inherited constants."""
    columns = [column("H_opt"), column("sigma_H"), column("w_H"),
               *(column(f"H_eff {run.name}", f"H_eff {run.name}") for run in runs),
               column("r(Psi,acc) below 0", "stability_index_accuracy_below_0"),
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


def audit(result: Audit) -> Table:
    """One row per control: every measure under it."""
    columns = [column("", "control")]
    for key, response in result.measures.items():
        columns += [column(response.symbol, key), column("", f"{key}_sd")]
    table = []
    for control in result.controls:
        cells: list[Any] = [control.name]
        for key in result.measures:
            spread = control.measures[key]
            cells += [spread.mean, f"+- {spread.sd:.4f}" if spread.sd > 0 else ""]
        table.append(cells)
    return Table("Audit", columns, table, [over_orders(result)] if over_orders(result) else [])


def factors(result: Audit) -> Table:
    """One row per measure, one column per change: what it does, the largest of several controls, and what follows."""
    changes = list(dict.fromkeys(control.changes for control in result.controls if control.changes))
    told = {
        key: [
            max(
                (effect for effect in response.effects if effect.changes.split(" (")[0] == change.split(" (")[0]),
                key=lambda effect: abs(effect.effect) if math.isfinite(effect.effect) else -1.0, default=None,
            )
            for change in changes
        ]
        for key, response in result.measures.items()
    }  # fmt: skip
    kept = [k for k in range(len(changes)) if any(row[k] for row in told.values())]
    columns = [column("measure"), *(Column(named(changes[k], result.called), (changes[k],)) for k in kept)]
    rows = [[result.measures[key].symbol, *(_factor(row[k]) for k in kept)] for key, row in told.items()]
    return Table("Measures by what they respond to", columns, rows)


def _factor(effect: Effect | None) -> str | None:
    """One cell: the effect and what follows."""
    if effect is None:
        return None
    return str(effect.outcome) if effect.outcome is Reaction.UNDEFINED else f"{effect.outcome} {effect.effect:+.3g}"


def responses(result: Audit) -> list[Lines]:
    """What each measure responds to, is undecided about and does not respond to, and how it varies."""
    blocks, called = [], result.called
    for key, response in result.measures.items():
        title = response.symbol
        known = math.isfinite(response.margin)  # of files before there was one, what was not seen to move the measure
        how = f", {response.margin_from}," if response.margin_from else ""
        small = f"changes by less than {response.margin:.3g}{how} with" if known else "was not seen to respond to"
        lines = [
            (f"{title} responds to", _effects(response, Reaction.RESPONDS, called) or "nothing"),
            (f"{title} {small}", _effects(response, Reaction.INDIFFERENT, called) or "nothing"),
        ]
        if text := _effects(response, Reaction.UNDECIDED, called):
            lines.append((f"{title} is undecided about", text))
        if undefined := response.which(Reaction.UNDEFINED).values():
            parts = [f"{named(effect.changes, called)} ({_why_undefined(result, key, effect)})" for effect in undefined]
            lines.append((f"{title} cannot be compared under", "; ".join(parts)))
        lines.append(
            (
                f"{title} varies by",
                f"{cell(response.spread_by_order)} (sd) {named(response.varies or result.varies, called)}",
            )
        )
        blocks.append(lines)
    stepped: dict[str, list[str]] = {}
    for control, why in result.aside.items():
        stepped.setdefault(why, []).append(control)
    return blocks + [[(why, ", ".join(controls)) for why, controls in stepped.items()]] * bool(stepped)


def _why_undefined(result: Audit, key: str, effect: Effect) -> str:
    """Why nothing is known of what a control does to a measure."""
    spreads = [control.measures[key] for control in result.controls if control.name == effect.control]
    if not spreads or not math.isfinite(spreads[0].mean):
        return "it has no value there"
    if not math.isfinite(result.measures[key].value):
        return "it has no value as it is"
    return f"{spreads[0].count} {result.called} have it there, which are too few for an interval"


def _effects(response: Response, outcome: Reaction, called: str) -> str:
    """What is changed, and by how much the measure changes; of several controls of one change, each by its name."""
    parts = []
    for what, effects in response.by_change(outcome).items():
        numbers = [f"{effect.control}: {signed(effect.effect)}" for effect in effects]
        text = ", ".join(numbers) if len(effects) > 1 else signed(effects[0].effect)
        parts.append(f"{named(what, called)} ({text})")
    return "; ".join(parts)
