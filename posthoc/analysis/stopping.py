"""When training could have stopped: rules replayed over runs that went on, and what each would have saved and lost."""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from posthoc.analysis.intervals import paired
from posthoc.analysis.measures import convergence, expanding, stability_index, volatility
from posthoc.analysis.runs import Run
from posthoc.errors import UsageError

FloatArray = NDArray[np.float64]
THRESHOLDS = (0.2, 0.3, 0.35, 0.4, 0.5, 0.6)
PATIENCE = (1, 3, 5, 10)
MIN_DELTAS = (0.0, 0.001)
BUDGETS = (10, 20, 30)
TOLERANCE = 0.01
"""Share of the best accuracy that a threshold may lose on average on the runs it is chosen on."""

ELSEWHERE = "volatility, threshold chosen on other configurations"
SAME_CONFIGURATION = ("seed", "version", "accuracy_source")
"""What of a run's record may differ between runs of one configuration."""
HINDSIGHT, LOOKS_AHEAD = "best in hindsight", ", whole run known"
"""What no one who is still training can follow; out of the Pareto set."""

Rule = Callable[[Run], int | None]


@dataclass(frozen=True)
class Stop:
    """What a rule does to one run: the last checkpoint's index and epoch, whether it fired, what it saves and loses.

    lost: accuracy of the run's best checkpoint less that of the best one kept until the stop; lost_at_stop: less that
    of the checkpoint at the stop, as published.
    """

    index: int
    when: int
    fired: bool
    saved: int
    lost: float
    lost_at_stop: float


@dataclass(frozen=True)
class Score:
    """A rule over several runs: means, and 95 % intervals of their differences from `patience 10`, paired by run.

    Intervals are Student's over the runs, see `intervals.over_runs`; NaN with fewer than three.
    """

    rule: str
    stops: tuple[Stop, ...]
    saved: float
    saved_share: float
    lost: float
    never: float
    saved_difference: tuple[float, float, float]
    lost_difference: tuple[float, float, float]
    pareto: bool


def causal_volatility(run: Run) -> FloatArray:
    """Volatility of the stability index as it was known at each epoch; NaN where epochs are unevenly spaced."""
    return _volatility(run, expanding(partial(stability_index, w_h=run.w_h), run.h_eff, run.m))


def _volatility(run: Run, psi: FloatArray) -> FloatArray:
    return np.full(len(psi), np.nan) if run.uneven else volatility(psi, run.window)


def by_volatility(run: Run, threshold: float, causal: bool = True) -> int | None:
    """The epoch at which volatility has stayed below a threshold; not causal: with z-scores over the whole run."""
    return convergence(causal_volatility(run) if causal else _volatility(run, run.psi), threshold)


def by_patience(run: Run, patience: int, min_delta: float = 0.0) -> int | None:
    """The checkpoint at which validation loss has not fallen by more than `min_delta` for `patience` checkpoints.

    One without a loss is waited through like one that did not fall; without any loss the rule never fires.
    """
    if not np.isfinite(run.loss).any():
        return None
    best, waited = math.inf, 0
    for e, loss in enumerate(run.loss):
        if loss < best - min_delta:
            best, waited = float(loss), 0
        else:
            waited += 1
            if waited == patience:
                return e
    return None


def by_budget(run: Run, checkpoints: int) -> int | None:
    """After so many checkpoints."""
    return checkpoints - 1 if checkpoints <= len(run.when) else None


def by_hindsight(run: Run) -> int | None:
    """At the best epoch: no rule can do better."""
    return int(np.nanargmax(run.accuracy)) if np.isfinite(run.accuracy).any() else None


def apply(rule: Rule, run: Run) -> Stop:
    """What a rule does to a run; one that never fires saves and loses nothing."""
    index = rule(run)
    last = len(run.when) - 1
    at = last if index is None else index
    best = float(np.nanmax(run.accuracy))
    kept = run.accuracy[: at + 1]
    return Stop(
        index=at,
        when=run.when[at],
        fired=index is not None,
        saved=last - at,
        lost=best - float(np.nanmax(kept)) if np.isfinite(kept).any() else math.nan,
        lost_at_stop=best - float(run.accuracy[at]),
    )


def rules(patience: bool = True) -> dict[str, Rule]:
    """All rules that look at nothing but the run itself, by name; `patience` those too that need a validation loss."""
    found: dict[str, Rule] = {}
    for threshold in THRESHOLDS:
        found[f"volatility < {threshold}"] = partial(by_volatility, threshold=threshold)
    for threshold in (0.2, 0.35, 0.4):
        found[f"volatility < {threshold}{LOOKS_AHEAD}"] = partial(by_volatility, threshold=threshold, causal=False)
    for wait in PATIENCE if patience else ():
        for delta in MIN_DELTAS:
            name = f"patience {wait}" + (f", min_delta {delta}" if delta else "")
            found[name] = partial(by_patience, patience=wait, min_delta=delta)
    for budget in BUDGETS:
        found[f"budget {budget}"] = partial(by_budget, checkpoints=budget)
    found[HINDSIGHT] = by_hindsight
    return found


def configuration(run: Run) -> Hashable:
    """What was trained and how, without its seed: runs of one configuration are no independent trials of a rule."""
    about = {key: value for key, value in run.about.items() if key not in SAME_CONFIGURATION}
    return tuple(sorted((key, repr(value)) for key, value in about.items())) or run.name


def chosen_elsewhere(runs: Sequence[Run]) -> list[Stop]:
    """The volatility rule with, for each run, the threshold that does best on the runs of other configurations.

    Best: most checkpoints saved among those that lose at most 1 % of the best accuracy on average; else least lost.
    """
    table = [[apply(partial(by_volatility, threshold=threshold), run) for run in runs] for threshold in THRESHOLDS]
    best = np.array([float(np.nanmax(run.accuracy)) for run in runs])
    of = [configuration(run) for run in runs]
    stops = []
    for held_out in range(len(runs)):
        others = [r for r in range(len(runs)) if of[r] != of[held_out]]

        def worth(row: int, others: list[int] = others) -> tuple[bool, float]:
            lost = float(np.mean([table[row][r].lost / best[r] if best[r] > 0 else 0.0 for r in others]))
            saved = float(np.mean([table[row][r].saved for r in others]))
            if math.isnan(lost):
                return False, -math.inf
            return (True, saved) if lost <= TOLERANCE else (False, -lost)

        stops.append(table[max(range(len(THRESHOLDS)), key=worth)][held_out])
    return stops


def random_epoch(run: Run) -> Stop:
    """Stopping at an epoch drawn at random: the expectation over all epochs."""
    stops = [apply(partial(by_budget, checkpoints=e + 1), run) for e in range(len(run.when))]
    middle = len(stops) // 2
    return Stop(
        index=middle,
        when=run.when[middle],
        fired=True,
        saved=round(float(np.mean([stop.saved for stop in stops]))),
        lost=float(np.nanmean([stop.lost for stop in stops])),
        lost_at_stop=float(np.nanmean([stop.lost_at_stop for stop in stops])),
    )


def compare_rules(runs: Sequence[Run], reference: str = "patience 10") -> list[Score]:
    """Every rule over the same runs, most checkpoints saved first.

    Raises UsageError where a run has no accuracy. Patience is left out, and with it the differences from it, unless
    all runs have a validation loss.
    """
    for run in runs:
        if not np.isfinite(run.accuracy).any():
            raise UsageError(f"{run.name} has no accuracy, by which stopping rules are judged.")
    with_loss = all(np.isfinite(run.loss).any() for run in runs)
    table = {name: [apply(rule, run) for run in runs] for name, rule in rules(with_loss).items()}
    if len({configuration(run) for run in runs}) > 2:
        table[ELSEWHERE] = chosen_elsewhere(runs)
    table["random epoch"] = [random_epoch(run) for run in runs]
    means = {
        name: (float(np.mean([s.saved / len(r.when) for s, r in zip(stops, runs, strict=True)])),
               float(np.mean([stop.lost for stop in stops])))
        for name, stops in table.items()
    }  # fmt: skip
    kept = [name for name in table if name != HINDSIGHT and not name.endswith(LOOKS_AHEAD)]
    followed = [means[name] for name in kept]
    nothing = [Stop(0, 0, False, 0, math.nan, math.nan)] * len(runs)
    others = table.get(reference, nothing)
    scores = []
    for name, stops in table.items():
        share, lost = means[name]
        beaten = any(s >= share and o <= lost and (s, o) != (share, lost) for s, o in followed)
        scores.append(
            Score(
                rule=name,
                stops=tuple(stops),
                saved=float(np.mean([stop.saved for stop in stops])),
                saved_share=share,
                lost=lost,
                never=float(np.mean([not stop.fired for stop in stops])),
                saved_difference=paired([s.saved for s in stops], [s.saved if with_loss else math.nan for s in others]),
                lost_difference=paired([s.lost for s in stops], [s.lost for s in others]),
                pareto=name in kept and not math.isnan(lost) and not beaten,
            )
        )
    return sorted(scores, key=lambda score: (-score.saved_share, score.lost))
