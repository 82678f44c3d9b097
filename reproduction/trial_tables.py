"""The page of the trial of measures, from what `reproduction.trial` keeps of its runs and from nothing else."""

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from posthoc.analysis.arrays import FloatArray
from posthoc.analysis.origins import Checkpoint
from posthoc.analysis.prediction import TARGETS, Prediction, predict
from posthoc.analysis.protocol import Protocol
from posthoc.analysis.records import Measured
from posthoc.analysis.runs import Run
from posthoc.analysis.stopping import Score, compare_rules
from posthoc.analysis.stopping_by import rules_of
from posthoc.analysis.summary import summarise
from reproduction.page import filled

TEMPLATE = Path(__file__).with_name("trial.md")
NAMES = {"digits": "digits", "cifar10": "CIFAR-10"}
FACTORS = ("width", "depth", "lr", "schedule", "weight_decay", "batch", "noise")
LEVEL = 0.05
RATE = "learning_rate"
"""Which a person who trains knows, and other measures may only mirror."""
SECOND = "2"
"""The draw of configurations that was added when the first had been looked at."""
MEANS = ("average_2_accuracy", "average_3_accuracy", "average_2_loss", "average_3_loss", "barrier")
"""Measures of means of weights, which scatter less than one checkpoint does: so may a mean of accuracies."""
LATELY = 3
"""Epochs up to each, over which accuracy and loss are averaged for what is known without such means."""
OF_MEANS = ("final-accuracy", "remaining")
"""What is to come of which they are asked again."""
CHANCE = 0.15
"""Accuracy of 500 images up to which a network of ten classes has learned nothing."""
TITLES = {
    "final-accuracy": "final accuracy", "remaining": "improvement still to come", "best": "epoch of the best accuracy",
    "plateau": "epoch from which on 95 % of the way is done",
}  # fmt: skip
HEADER = ("tau", "beyond loss", "p", "corrected")


def kept_runs(place: Path, dataset: str) -> list[Run]:
    """The runs of a data set, each of its configuration and seed."""
    about = json.loads((place / "measures.json").read_text())
    rows: dict[tuple[str, str], list[dict[str, str]]] = {}
    with (place / f"{dataset}.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            rows.setdefault((" ".join(row[name] for name in FACTORS), row["seed"]), []).append(row)
    return [_run(dataset, recipe, seed, of, about) for (recipe, seed), of in rows.items()]


def _run(dataset: str, recipe: str, seed: str, rows: list[dict[str, str]], about: dict[str, Any]) -> Run:
    when = tuple(int(row["epoch"]) for row in rows)
    columns = {key: np.array([float(row[key] or "nan") for row in rows]) for key in about if key in rows[0]}
    measures = {
        key: Measured(about[key]["symbol"], key, column, looks_ahead=about[key]["looks_ahead"])
        for key, column in columns.items()
    }
    checkpoints = [Checkpoint(epoch, None, False, 0, {}) for epoch in when]
    protocol = Protocol()
    known = {"dataset": dataset, "recipe": recipe, "draw": rows[0]["draw"], "seed": int(seed)}
    summary = summarise(columns, checkpoints, protocol)
    return Run(f"{recipe}, seed {seed}", known, protocol, when, columns, measures, {}, summary)


@dataclass(frozen=True)
class Trial:
    """What the page says of one data set."""

    name: str
    runs: list[Run]

    @cached_property
    def predictions(self) -> dict[tuple[str, str], Prediction]:
        """By target and measure, the baselines in brackets."""
        results = predict(self.runs, list(TARGETS))
        return {(row.target, f"({row.measure})" if row.baseline else row.measure): row for row in results}

    @cached_property
    def confirming(self) -> dict[tuple[str, str], Prediction]:
        """As `predictions`, of the second draw of configurations alone."""
        second = [run for run in self.runs if run.about["draw"] == SECOND]
        return {(row.target, row.measure): row for row in predict(second, list(TARGETS)) if not row.baseline}

    @cached_property
    def beyond_all(self) -> dict[tuple[str, str], Prediction]:
        """As `predictions`, the learning rate and the accuracy of the epoch being taken off, too."""
        known = [RATE, "accuracy"]
        return {(row.target, row.measure): row for row in predict(self.runs, list(TARGETS), beyond=known)}

    @cached_property
    def beyond_lately(self) -> dict[tuple[str, str], Prediction]:
        """As `beyond_all`, of `MEANS` alone, accuracy and loss over the last `LATELY` epochs being taken off, too."""
        known = ["accuracy", "loss"]
        kept, lately = [*MEANS, RATE, *known], [f"{key} lately" for key in known]
        runs = []
        for run in self.runs:
            columns = {key: run.columns[key] for key in kept}
            columns |= {f"{key} lately": _lately(run.columns[key]) for key in known}
            measures = {key: run.measures[key.removesuffix(" lately")] for key in columns}
            runs.append(replace(run, columns=columns, measures=measures))
        results = predict(runs, OF_MEANS, beyond=[RATE, "accuracy", *lately])
        return {(row.target, row.measure): row for row in results}

    @cached_property
    def stopping(self) -> dict[str, Score]:
        """By the rule's name."""
        return {score.rule: score for score in compare_rules(self.runs, rules_of(self.runs, "all"))}

    @property
    def described(self) -> list[str]:
        """Runs, configurations, epochs, final accuracies, and how many were best before the last epoch."""
        final = np.array([run.accuracy[-1] for run in self.runs])
        early = np.mean([run.summary.best_epoch < run.when[-1] for run in self.runs if run.summary.best_epoch])
        lost = np.mean([run.best - run.accuracy[-1] for run in self.runs])
        spread = f"{final.min():.2f}, {np.median(final):.2f}, {final.max():.2f}"
        configurations = len({run.about["recipe"] for run in self.runs})
        epochs = str(len(self.runs[0].when))
        return [self.name, str(len(self.runs)), str(configurations), epochs, spread, f"{early:.0%}", f"{lost:.3f}"]


def _lately(values: FloatArray) -> FloatArray:
    """The mean over the last `LATELY` of values [E] up to each, of fewer at the start."""
    return np.array([values[max(k + 1 - LATELY, 0) : k + 1].mean() for k in range(len(values))])


def page(place: Path) -> str:
    """The whole page in Markdown."""
    trials = [Trial(name, kept_runs(place, dataset)) for dataset, name in NAMES.items()]
    health = json.loads((place / "health.json").read_text())
    symbols = {key: of["symbol"] for key, of in json.loads((place / "measures.json").read_text()).items()}
    ahead = [symbols[key] for key, of in trials[0].runs[0].measures.items() if of.looks_ahead]
    return filled(
        TEMPLATE, trials=trials, total=sum(len(trial.runs) for trial in trials), ahead=ahead,
        targets={target: _of_target(trials, target, symbols) for target in TARGETS}, header=_header(trials),
        survivors=survivors(trials), means=_means(trials), titles=TITLES, counts=_counts(trials), stopping=_stopping(trials), better=_better(trials),
        alarms=_alarms(health), faulty=_faulty(health),
    )  # fmt: skip


def _header(trials: Sequence[Trial]) -> list[str]:
    return ["measure", *(f"{trial.name}: {title}" if title == "tau" else title for trial in trials for title in HEADER)]


def _of_target(trials: Sequence[Trial], target: str, symbols: dict[str, str]) -> list[list[str]]:
    """One row for each measure, those that say most beyond the loss first, then the baselines."""
    keys = list(dict.fromkeys(key for trial in trials for of, key in trial.predictions if of == target))

    def order(key: str) -> tuple[bool, float]:
        rows = [row for trial in trials if (row := trial.predictions.get((target, key)))]
        p = [row.conditional_corrected if math.isfinite(row.conditional_corrected) else 1.0 for row in rows]
        return key.startswith("(") or key == RATE, max(p)

    return [
        [
            f"*{symbols[key]}*" if key == RATE else symbols.get(key) or f"*{key[1:-1]}*",
            *(cell for trial in trials for cell in _cells(trial.predictions.get((target, key)))),
        ]
        for key in sorted(keys, key=order)
    ]


def _cells(row: Prediction | None) -> list[str]:
    """tau, what of it is left beyond the loss, p of that, and corrected; bold where it is rejected at 5 %."""
    if row is None:
        return ["-"] * len(HEADER)
    left = _signed(row.conditional)
    bold = f"**{left}**" if row.conditional_corrected <= LEVEL else left
    return [_signed(row.tau), bold, _p(row.conditional_p), _p(row.conditional_corrected)]


def _signed(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:+.2f}"


def _with_p(row: Prediction) -> str:
    return f"{_signed(row.conditional)} ({_p(row.conditional_p)})"


def _p(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def survivors(trials: Sequence[Trial]) -> list[list[str]]:
    """The measures that say something of a target beyond loss and its slope on every data set, in the same direction: what
    is left of tau, the same with p on the second draw of configurations alone, and with learning rate and accuracy taken off, too."""
    kept = []
    for (target, key), row in trials[0].predictions.items():
        rows = [trial.predictions.get((target, key)) for trial in trials]
        rejected = [other for other in rows if other and other.conditional_corrected <= LEVEL]
        if row.baseline or key == RATE or len(rejected) < len(trials):
            continue
        if len({math.copysign(1, other.conditional) for other in rejected}) == 1:
            cells = [TITLES[target], row.symbol]
            for trial, other in zip(trials, rejected, strict=True):
                again, beyond = trial.confirming[target, key], trial.beyond_all[target, key]
                cells += [_signed(other.conditional), _with_p(again), _with_p(beyond)]
            kept.append(cells)
    return kept


def _means(trials: Sequence[Trial]) -> list[list[str]]:
    """Of the measures of means of weights, what is left beyond all, and beyond accuracy and loss lately, too."""
    rows = []
    for target in OF_MEANS:
        for key in MEANS:
            cells = [TITLES[target], trials[0].predictions[target, key].symbol]
            for trial in trials:
                cells += [_with_p(of[target, key]) for of in (trial.beyond_all, trial.beyond_lately)]
            rows.append(cells)
    return rows


def _counts(trials: Sequence[Trial]) -> list[list[str]]:
    """By data set: of how many measures and targets tau itself, and what is left of it, is rejected at 5 %."""
    rows = []
    for trial in trials:
        measures = [row for row in trial.predictions.values() if not row.baseline and row.measure != RATE]
        raw = sum(row.corrected <= LEVEL for row in measures)
        left = sum(row.conditional_corrected <= LEVEL for row in measures)
        rows.append([trial.name, str(len(measures)), str(raw), str(left)])
    return rows


def _stopping(trials: Sequence[Trial]) -> list[list[str]]:
    """Rules that stop some of the runs of either data set, by measures and by patience, which lose least beside patience."""
    names = list(dict.fromkeys(name for trial in trials for name in trial.stopping))
    kept = [name for name in names if name.startswith("patience") and "delta" not in name]
    kept += [name for name in names if any(_is_better(trial.stopping.get(name)) for trial in trials)]
    rows = []
    for name in dict.fromkeys(kept):
        row = [name]
        for trial in trials:
            score = trial.stopping.get(name)
            if score is None:
                row += ["-"] * 3
                continue
            value, low, high = score.patience_difference
            beside = "-" if math.isnan(value) else f"{value:+.3f} ({low:+.3f} to {high:+.3f})"
            row += [f"{score.saved_share:.0%}", f"{score.lost:.3f}", beside]
        rows.append(row)
    return rows


def _is_better(score: Score | None) -> bool:
    """Whether a rule by a measure that can be followed loses less than patience that saves as much."""
    if score is None or score.looks_ahead or not score.family.startswith("measure") or score.saved_share == 0:
        return False
    return score.patience_difference[2] < 0


def _better(trials: Sequence[Trial]) -> list[list[str]]:
    """By data set: rules by measures that can be followed, how many of them stop anything, and how many lose less, and
    more, than patience that saves as much."""
    rows = []
    for trial in trials:
        rules = [s for s in trial.stopping.values() if s.family.startswith("measure") and not s.looks_ahead]
        firing = [score for score in rules if score.saved_share > 0]
        worse = sum(score.patience_difference[1] > 0 for score in firing)
        rows.append([trial.name, str(len(rules)), str(len(firing)), str(sum(map(_is_better, firing))), str(worse)])
    return rows


def _alarms(health: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Of the runs that are sound by plan, those that learn and those that do not: in how many each symptom is told."""
    sound = [row for row in health if not row["faulty"]]
    kinds = sorted({symptom["kind"] for row in sound for symptom in row["symptoms"]})
    rows = []
    for kind in [*kinds, "anything"]:
        row = [kind]
        for learned in (True, False):
            of = [each for each in sound if (float(each["accuracy"]) > CHANCE) == learned]
            ill = sum(any(kind in (s["kind"], "anything") for s in each["symptoms"]) for each in of)
            row.append(f"{ill} of {len(of)}")
        rows.append(row)
    return rows


def _faulty(health: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Of each run that goes wrong by plan, what is told first."""
    rows = []
    for row in health:
        if row["faulty"]:
            told = list(dict.fromkeys(f"{s['kind']} (epoch {s['at']})" for s in row["symptoms"]))
            rows.append([row["faulty"], NAMES[row["dataset"]], "; ".join(told[:3]) or "nothing"])
    return sorted(rows, key=lambda row: row[0])
