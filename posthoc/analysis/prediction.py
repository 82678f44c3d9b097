"""Does a measure say anything of what is to come that loss and its slope do not? Across runs, epoch by epoch.

At each epoch runs are ranked by a measure and by a target, and the ranks compared: Kendall's tau-b, as of measures of
generalisation in Jiang et al. 2020 (arXiv 1912.02178). Conditional: of what is left of both ranks when the ranks of loss
and of its slope are taken off by least squares, fitted without the configuration whose runs they are taken off; of what is
still to come the rank of the score, too, which it is counted from. When something happens is asked, at each epoch, of the
runs to which it has not happened yet. Runs of
one configuration, which differ in their seed, are no independent trials: configurations are held out, and permuted; where
they have different numbers of runs, so that they could not change places, the mean of its runs stands for each.
"""

import itertools
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import scipy
from numpy.typing import NDArray

from posthoc.analysis.arrays import FloatArray
from posthoc.analysis.course import stands_from
from posthoc.analysis.kernels.ranks import mean_taus
from posthoc.analysis.runs import Run, measured_of_all
from posthoc.analysis.stopping import by_configuration, configuration
from posthoc.analysis.verdicts import FALSE_DISCOVERIES, corrected
from posthoc.errors import UsageError
from posthoc.shown import counted
from posthoc.streams import stream

PERMUTATIONS = 999
"""And more of what is larger than in all of them, until one alone of its family could be rejected."""
LEAST_CONFIGURATIONS = 6
"""With fewer there are too few ways to permute them."""
LEAST_EPOCHS = 3
"""Epochs that all runs have."""
LOSS, SLOPE, SCORE = "loss", "slope of the loss", "score so far"
BACK = 2
"""Checkpoints over which a slope is taken."""
FORMERLY_AHEAD = (
    "integration_z", "metastability_z", "stability_index", "volatility", "cka_last", "settled", "learned", "weights_cosine",
)  # fmt: skip
"""Measures that look ahead, of files of a version that did not say which do."""


def final(run: Run, rows: NDArray[np.int64]) -> FloatArray:
    """The last score, at each of the checkpoints `rows`."""
    return np.full(len(rows), run.gain[-1])


def remaining(run: Run, rows: NDArray[np.int64]) -> FloatArray:
    """By how much the best score still to come is above that of the checkpoint."""
    gain = np.where(np.isfinite(run.gain), run.gain, np.nan)[rows]
    return np.asarray(np.fmax(gain, best_later(run, rows)) - gain)


def best_later(run: Run, rows: NDArray[np.int64]) -> FloatArray:
    """The best score of later checkpoints, which is what is still to come and that of the checkpoint together."""
    later = np.append(np.where(np.isfinite(run.gain), run.gain, -np.inf)[1:], -np.inf)
    largest = np.maximum.accumulate(later[::-1])[::-1]
    return np.where(np.isfinite(largest), largest, np.nan)[rows]


def best(run: Run, rows: NDArray[np.int64]) -> FloatArray:
    """When the score is best."""
    return np.full(len(rows), float(run.when[int(np.nanargmax(run.gain))]))


def plateau(run: Run, rows: NDArray[np.int64]) -> FloatArray:
    """From when on the score stands still (`course.stands_from`)."""
    scored = np.flatnonzero(np.isfinite(run.gain))
    if not len(scored):
        return np.full(len(rows), np.nan)
    return np.full(len(rows), float(run.when[scored[stands_from(run.gain[scored])]]))


TARGETS: dict[str, Callable[[Run, NDArray[np.int64]], FloatArray]] = {
    "final-accuracy": final, "remaining": remaining, "best": best, "plateau": plateau,
}  # fmt: skip
"""What may be predicted, of a run at some of its checkpoints [E]; of a run without accuracy its other score."""
EVENTS = (best, plateau)
"""Targets that say when something happens, and nothing where that is past."""


@dataclass(frozen=True)
class Prediction:
    """What a measure says of a target: the mean over epochs of Kendall's tau-b across runs, raw and conditional, each with
    its p by permuting configurations and the false discovery rate at which that would be rejected.

    baseline: whether it is one of the trivial ones that measures stand beside; epochs: of which the mean is; uneven: whether
    configurations, having different numbers of runs, are ranked by the means of these; least: the smallest p that there can be.
    """

    measure: str
    symbol: str
    target: str
    baseline: bool
    tau: float
    p: float
    conditional: float
    conditional_p: float
    epochs: int
    runs: int
    configurations: int
    uneven: bool
    least: float
    corrected: float = math.nan
    conditional_corrected: float = math.nan

    @property
    def wanting(self) -> bool:
        """Whether beyond the loss it is larger than in any other arrangement, and not rejected for want of arrangements."""
        return self.conditional_p <= self.least and self.conditional_corrected > FALSE_DISCOVERIES

    @property
    def undecided(self) -> bool:
        """Whether that is so of either p, so that more permutations may decide."""
        return self.wanting or (self.p <= self.least and self.corrected > FALSE_DISCOVERIES)


def predict(
    runs: Sequence[Run], targets: Sequence[str], seed: int = 0, beyond: Sequence[str] = (), measures: str = "all"
) -> list[Prediction]:
    """Every one of these measures that all runs have, and the trivial baselines, against every target.

    beyond: measures, or recorded settings that are numbers, that are taken off, too, beside loss and its slope; measures:
    names with commas between.

    Raises UsageError for an unknown target, a measure that is named or to be taken off and that not all runs have, fewer than `LEAST_CONFIGURATIONS` configurations, runs without a score or
    loss, and fewer than `LEAST_EPOCHS` epochs that all have.
    """
    if unknown := [name for name in targets if name not in TARGETS]:
        raise UsageError(f"--predict {unknown[0]}: give {', '.join(TARGETS)} or all.")
    table = _Table.of(runs)
    scores = {key for run in runs for key in run.measures if key in ("accuracy", "loss") or key.startswith("score_")}
    keys = [key for key in runs[0].columns if key not in scores and not looks_ahead(key, runs[0])]
    if measures != "all":
        named = measured_of_all(runs, measures, "--measures")
        if ahead := [key for key in named if looks_ahead(key, runs[0])]:
            raise UsageError(
                f"--measures {ahead[0]}: at a checkpoint it knows of later ones, so that it can predict nothing; leave it out."
            )
        keys = [key for key in keys if key in named]
    columns = {key: table.of_measure(key) for key in keys if all(key in run.columns for run in runs)}
    baselines = {LOSS: table.loss, SLOPE: table.slope, SCORE: table.gain}
    taken_off = dict(table.known_of(name.strip()) for name in beyond)
    goals = {target: table.of_target(target) for target in targets}

    def tested(target: str, columns: Mapping[str, FloatArray], permutations: int) -> list[Prediction]:
        permuted = _permutations(table.configurations, seed, permutations)
        results = []
        known = {key: baselines[key] for key in (LOSS, SLOPE, *([SCORE] if TARGETS[target] is remaining else []))}
        known |= taken_off
        for key, result in _compared(table, columns, target, goals[target], [*known.values()], permuted).items():
            if key not in baselines:
                result = replace(result, symbol=runs[0].measures[key].symbol)
            if key in known:  # of which nothing is left
                result = replace(result, conditional=math.nan, conditional_p=math.nan)
            results.append(replace(result, baseline=key in baselines))
        return results

    results = _corrected([row for target in targets for row in tested(target, columns | baselines, PERMUTATIONS)])
    more = math.ceil(sum(not row.baseline for row in results) / FALSE_DISCOVERIES) - 1
    undecided = [row for row in results if row.undecided and not row.baseline]
    if more <= PERMUTATIONS or not undecided:
        return results
    again: dict[tuple[str, str], Prediction] = {}
    for target in targets:
        some = {row.measure: columns[row.measure] for row in undecided if row.target == target}
        again |= {(target, row.measure): row for row in tested(target, some, more)}
    drawn = ((row, again.get((row.target, row.measure))) for row in results)
    return _corrected([_drawn_on(row, after) if after else row for row, after in drawn])


def _drawn_on(before: Prediction, after: Prediction) -> Prediction:
    """With what more permutations say, of a p that none of those before had reached: only of such may drawing go on."""
    p, conditional_p = (
        getattr(after if getattr(before, name) <= before.least else before, name) for name in ("p", "conditional_p")
    )
    return replace(after, p=p, conditional_p=conditional_p)


def looks_ahead(key: str, run: Run) -> bool:
    """Whether a measure knows of later checkpoints, as the run's file says, or files of its version would."""
    ahead = run.measures[key].looks_ahead
    return key in FORMERLY_AHEAD if ahead is None else ahead


@dataclass(frozen=True)
class _Table:
    """Runs at the epochs that all have, but for the last; rows: which checkpoints of every run these are.

    at: the epochs; trials: the places of the runs that are ranked as one, [R] of them, by their mean: those of a
    configuration where not all have as many, else each by itself; configurations: of every trial; loss, slope, gain: [E, R].
    """

    runs: Sequence[Run]
    at: list[int]
    rows: list[NDArray[np.int64]]
    trials: list[list[int]]
    configurations: list[Hashable]
    loss: FloatArray
    slope: FloatArray
    gain: FloatArray

    @classmethod
    def of(cls, runs: Sequence[Run]) -> "_Table":
        """Raises UsageError where there is too little to compare."""
        members = by_configuration(runs)
        if len(members) < LEAST_CONFIGURATIONS:
            raise UsageError(
                f"--predict compares configurations, runs that differ in more than their seed, as recorded (extract --set lr=0.1, "
                f"run.json): these {counted(len(runs), 'run')} are of {len(members)}, and {LEAST_CONFIGURATIONS} are needed."
            )
        uneven = len(set(map(len, members))) > 1
        trials = members if uneven else [[place] for place in range(len(runs))]
        configurations = [configuration(runs[trial[0]]) for trial in trials]
        for run in runs:
            if not np.isfinite(run.gain).any():
                raise UsageError(
                    f"--predict: {run.name} has no accuracy or other score that could be predicted; leave that run out."
                )
        _require_one(runs, "are judged by", [run.score.symbol if run.score else "" for run in runs])
        _require_one(runs, "count", [run.summary.unit for run in runs])
        common = sorted(set.intersection(*(set(run.when[1:-1]) for run in runs)))
        if len(common) < LEAST_EPOCHS:
            raise UsageError(
                f"--predict: the runs have {len(common)} checkpoints at the same time, but for their first and last, and "
                f"{LEAST_EPOCHS} are needed."
            )
        rows = [np.array([run.when.index(at) for at in common]) for run in runs]
        losses = _losses(runs)
        before = [np.maximum(of_run - BACK, 0) for of_run in rows]
        pairs = list(zip(losses, rows, before, runs, strict=True))
        slopes = [(loss[a] - loss[b]) / (np.array(run.when)[a] - np.array(run.when)[b]) for loss, a, b, run in pairs]
        of = partial(_of_trials, trials)
        loss, gain = of([loss[a] for loss, a, _, _ in pairs]), of([run.gain[a] for _, a, _, run in pairs])
        return cls(runs, common, rows, trials, configurations, loss, of(slopes), gain)

    def of_measure(self, key: str) -> FloatArray:
        """A measure [E, R]."""
        return _of_trials(self.trials, [run.columns[key][rows] for run, rows in zip(self.runs, self.rows, strict=True)])

    def known_of(self, name: str) -> tuple[str, FloatArray]:
        """What is to be taken off [E, R], and its key: a measure, or a setting that was recorded of every run, as a number."""
        settings = [run.about.get(name) for run in self.runs]
        if all(isinstance(value, int | float) and math.isfinite(value) for value in settings):
            return name, _of_trials(self.trials, [np.full(len(self.loss), value, np.float64) for value in settings])
        (key,) = measured_of_all(self.runs, name, "--beyond")
        return key, self.of_measure(key)

    def of_target(self, target: str) -> "_Goal":
        """Raises UsageError for runs of which it is not known."""
        of_runs = [TARGETS[target](run, rows) for run, rows in zip(self.runs, self.rows, strict=True)]
        if lacking := [run.name for run, of in zip(self.runs, of_runs, strict=True) if not np.isfinite(of).any()]:
            raise UsageError(
                f"--predict {target}: of {', '.join(lacking)} it is not known, for want of scores; leave such runs out."
            )
        open_ = [of > self.at if TARGETS[target] in EVENTS else np.ones(len(of), np.bool_) for of in of_runs]
        to_come = np.stack([np.all([open_[run] for run in trial], axis=0) for trial in self.trials], axis=1)
        goal = _of_trials(self.trials, of_runs)
        if TARGETS[target] is not remaining:
            return _Goal(goal, goal, to_come)
        later = [best_later(run, rows) for run, rows in zip(self.runs, self.rows, strict=True)]
        return _Goal(goal, _of_trials(self.trials, later), to_come)


@dataclass(frozen=True)
class _Goal:
    """A target [E, R]; what stands for it where the score is taken off, which is not counted from it; and of which trials it
    is still to come."""

    values: FloatArray
    beyond: FloatArray
    to_come: NDArray[np.bool_]


def _of_trials(trials: Sequence[Sequence[int]], of_runs: Sequence[FloatArray]) -> FloatArray:
    """What is known of every run [E], of every trial the mean, [E, R]; NaN where it is not known of one of its runs."""
    return np.stack([np.mean([of_runs[run] for run in trial], axis=0) for trial in trials], axis=1)


def _require_one(runs: Sequence[Run], what: str, names: Sequence[str]) -> None:
    """Raise where runs differ in what cannot be ranked together."""
    if other := next((k for k, name in enumerate(names) if name != names[0]), None):
        raise UsageError(
            f"--predict ranks runs, and these {what} {names[0]} ({runs[0].name}) and {names[other]} ({runs[other].name}); "
            "give such as are alike."
        )


def _losses(runs: Sequence[Run]) -> list[FloatArray]:
    """Every run's loss; where none has one, what its score lacks. Raises UsageError where some have one."""
    lacking = [run.name for run in runs if not np.isfinite(run.column("loss")).any()]
    if len(lacking) == len(runs):
        return [-run.gain for run in runs]
    if lacking:
        raise UsageError(
            f"--predict takes off what the loss says, and {', '.join(lacking)} {'has' if len(lacking) == 1 else 'have'} "
            "none; leave such runs out."
        )
    return [run.column("loss") for run in runs]


def _compared(
    table: _Table, columns: Mapping[str, FloatArray], target: str, goal: _Goal, taken_off: Sequence[FloatArray],
    permuted: NDArray[np.int64],
) -> dict[str, Prediction]:  # fmt: skip
    """Measures [E, R] and one target, each over the epochs at which all runs have both and what is `taken_off`."""
    together: dict[bytes, list[str]] = {}
    for key, values in columns.items():
        known = np.isfinite(np.stack([values, goal.values, goal.beyond, *taken_off])).all(axis=(0, 2))
        known &= goal.to_come.sum(axis=1) > 1
        if known.any():
            together.setdefault(known.tobytes(), []).append(key)
    as_observed = int((permuted == np.arange(permuted.shape[1])).all(axis=1).sum())
    least = (1 + as_observed) / (1 + len(permuted))
    results = {}
    for mask, keys in together.items():
        rows = np.frombuffer(mask, np.bool_)
        to_come = goal.to_come[rows]
        ranks = [scipy.stats.rankdata(values[rows], axis=1) for values in (goal.values, goal.beyond, *taken_off)]
        design = np.stack(ranks[2:], axis=2)
        measured = np.stack([scipy.stats.rankdata(columns[key][rows], axis=1) for key in keys])
        raw = _tested(measured, ranks[0], to_come, permuted)
        taking_off = _taking_off(design, table.configurations, to_come)
        conditional = _tested(_residuals(measured, design), ranks[1], to_come, permuted, taking_off)
        for k, key in enumerate(keys):
            results[key] = Prediction(
                key, key, target, False, *raw[k], *conditional[k], int(rows.sum()), len(table.runs),
                len(set(table.configurations)), len(table.trials) < len(table.runs), least,
            )  # fmt: skip
    return {key: results[key] for key in columns if key in results}


def _design(known: FloatArray) -> FloatArray:
    """What is known [E, R, K], and a constant, [E, R, 1 + K]."""
    return np.concatenate([np.ones((*known.shape[:2], 1)), known], axis=2)


def _taking_off(known: FloatArray, configurations: Sequence[Hashable], kept: NDArray[np.bool_]) -> FloatArray:
    """The matrices [E, R, R] that take off what `known` [E, R, K] says among the runs `kept` [E, R], fitted without the
    configuration taken off from; nothing is left where there are too few others to fit by."""
    names = list(dict.fromkeys(configurations))
    of = np.array([names.index(name) for name in configurations])
    design = _design(known)
    result = np.zeros((len(known), len(of), len(of)))
    for e, held_out in itertools.product(range(len(known)), range(len(names))):
        others, its = (np.flatnonzero(kept[e] & which) for which in (of != held_out, of == held_out))
        if len(others) > design.shape[2]:
            result[e, its, its] = 1
            result[e][np.ix_(its, others)] -= design[e, its] @ np.linalg.pinv(design[e, others])
    return result


def _residuals(values: FloatArray, known: FloatArray) -> FloatArray:
    """Of values [..., E, R] by least squares on what is known [E, R, K], fitted on all."""
    design = _design(known)
    return np.asarray(values - (design @ (np.linalg.pinv(design) @ values[..., None]))[..., 0])


def _tested(
    x: FloatArray, y: FloatArray, kept: NDArray[np.bool_], permuted: NDArray[np.int64], taking_off: FloatArray | None = None
) -> list[tuple[float, float]]:  # fmt: skip
    """For each of several x [M, E, R] its mean tau-b with y [E, R] over the epochs, at each among the runs `kept` [E, R], and
    the two-sided p of that among the runs of x permuted [P, R].

    taking_off: [E, R, R], what takes off of both what else is known; x then are residuals, and what is known is taken off
    anew of each permutation of them, without which p would be too small (Freedman & Lane 1983). Which runs are kept
    may go by y, so that x is what changes places.
    """

    def left(values: FloatArray) -> FloatArray:
        if taking_off is None:
            return values
        return np.asarray((taking_off @ values[..., None])[..., 0].round(9))  # ties but for rounding are ties

    target = left(y)
    value = mean_taus(left(x), target, kept)
    drawn = np.array([mean_taus(left(x[:, :, order]), target, kept) for order in permuted])
    beyond = (np.abs(drawn) >= np.abs(value) - 1e-9).sum(axis=0)
    p = np.where(np.isfinite(value), (1 + beyond) / (1 + len(drawn)), np.nan)
    return list(zip(value.tolist(), p.tolist(), strict=True))


def _permutations(configurations: Sequence[Hashable], seed: int, count: int = PERMUTATIONS) -> NDArray[np.int64]:
    """So many orders of the runs [P, R] in which configurations have changed places with all their runs, of which each has
    as many."""
    members: dict[Hashable, list[int]] = {}
    for run, name in enumerate(configurations):
        members.setdefault(name, []).append(run)
    groups = np.array(list(members.values()))
    random = stream("permuted configurations", seed)
    orders = np.empty((count, len(configurations)), np.int64)
    for order in orders:
        order[groups] = groups[random.permutation(len(groups))]
    return orders


def _corrected(results: Sequence[Prediction]) -> list[Prediction]:
    """With their p as false discovery rates over all measures and targets, the baselines by themselves."""
    made: list[Prediction] = []
    for baseline in (False, True):
        family = [result for result in results if result.baseline == baseline]
        raw, conditional = (corrected([getattr(result, name) for result in family]) for name in ("p", "conditional_p"))
        made += [
            replace(result, corrected=float(a), conditional_corrected=float(b))
            for result, a, b in zip(family, raw, conditional, strict=True)
        ]
    return sorted(made, key=lambda result: [*TARGETS].index(result.target))
