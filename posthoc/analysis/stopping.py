"""When training could have stopped: rules replayed over runs that went on, and what each would have saved and lost."""

import itertools
import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from posthoc.analysis.intervals import paired
from posthoc.analysis.measures.stability import convergence
from posthoc.analysis.runs import Run
from posthoc.errors import UsageError

THRESHOLDS = (0.2, 0.3, 0.35, 0.4, 0.5, 0.6)
PATIENCE = (1, 3, 5, 10)
MIN_DELTAS = (0.0, 0.001)
BUDGETS = (10, 20, 30)
TOLERANCE = 0.01
"""Share of the best accuracy that a threshold may lose on average on the runs it is chosen on."""

SAME_CONFIGURATION = ("seed", "version", "accuracy_source")
"""What of a run's record may differ between runs of one configuration."""
REFERENCE = "patience 10"
"""The rule that all others are compared with."""


@dataclass(frozen=True)
class Stop:
    """What a rule does to one run: the last checkpoint's index and epoch, whether it fired, what it saves and loses.

    lost: accuracy, or the score that the run is judged by, of its best checkpoint less that of the best one kept until the stop; lost_at_stop: less that
    of the checkpoint at the stop, as published.
    """

    index: int
    when: int
    fired: bool
    saved: float
    lost: float
    lost_at_stop: float


@dataclass(frozen=True)
class Rule:
    """A rule by which training could have stopped, by exactly one of `of_run` and `of_runs`.

    family: what kind of rule it is, for a legend; of_run: the index of the checkpoint at which it fires in a run, None
    where it never does; of_runs: what it does to each of several runs together; fits: to which runs it can be applied;
    looks_ahead: whether it uses what nobody knows who is still training, so that nobody can follow it.
    """

    name: str
    family: str
    of_run: Callable[[Run], int | None] | None = None
    of_runs: Callable[[Sequence[Run]], "list[Stop]"] | None = None
    fits: Callable[[Sequence[Run]], bool] = lambda runs: True
    looks_ahead: bool = False

    def stops(self, runs: Sequence[Run]) -> "list[Stop]":
        """What it does to each run."""
        if self.of_runs:
            return self.of_runs(runs)
        assert self.of_run is not None
        return [apply(self.of_run, run) for run in runs]


@dataclass(frozen=True)
class Score:
    """A rule over several runs that are judged by one score, of that symbol: means, and its differences from `REFERENCE` with
    their 95 % intervals, paired by configuration; by run where all are of one.

    Intervals are Student's, see `intervals.over_runs`; NaN with fewer than three. pareto: whether no other
    rule that can be followed saves at least as large a share and loses no more, and is better in one of the two.
    patience_difference: what is lost more than by patience that saves as large a share, between two of its lengths in
    proportion; NaN where none saves as much. runs: their names, in the order of `stops`.
    """

    rule: str
    family: str
    looks_ahead: bool
    stops: tuple[Stop, ...]
    saved: float
    saved_share: float
    lost: float
    never: float
    saved_difference: tuple[float, float, float]
    lost_difference: tuple[float, float, float]
    pareto: bool
    symbol: str = "accuracy"
    patience_difference: tuple[float, float, float] = (math.nan,) * 3
    runs: tuple[str, ...] = ()


def by_volatility(run: Run, threshold: float, causal: bool = True) -> int | None:
    """The checkpoint at which volatility has stayed below a threshold; not causal: with z-scores over the whole run."""
    return convergence(run.column("volatility_causal" if causal else "volatility"), threshold)


def by_patience(run: Run, patience: int, min_delta: float = 0.0) -> int | None:
    """The checkpoint at which validation loss has not fallen by more than `min_delta` for `patience` checkpoints.

    One without a loss is waited through like one that did not fall; without any loss the rule never fires.
    """
    if not has_loss([run]):
        return None
    best, waited = math.inf, 0
    for e, loss in enumerate(run.column("loss")):
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
    return int(np.nanargmax(run.gain)) if np.isfinite(run.gain).any() else None


def apply(rule: Callable[[Run], int | None], run: Run) -> Stop:
    """What a rule does to a run; one that never fires saves and loses nothing."""
    index = rule(run)
    last = len(run.when) - 1
    at = last if index is None else index
    gain = run.gain
    best, kept = float(np.nanmax(gain)), gain[: at + 1]
    return Stop(
        index=at,
        when=run.when[at],
        fired=index is not None,
        saved=last - at,
        lost=best - float(np.nanmax(kept)) if np.isfinite(kept).any() else math.nan,
        lost_at_stop=best - float(gain[at]),
    )


def has_volatility(runs: Sequence[Run]) -> bool:
    """Whether the stability index of all runs was measured."""
    return all({"volatility", "volatility_causal"} <= run.measures.keys() for run in runs)


def has_loss(runs: Sequence[Run]) -> bool:
    """Whether all runs have a validation loss."""
    return all(np.isfinite(run.column("loss")).any() for run in runs)


def configuration(run: Run) -> Hashable:
    """What was trained and how, without its seed: runs of one configuration are no independent trials of a rule."""
    about = {key: value for key, value in run.about.items() if key not in SAME_CONFIGURATION}
    return tuple(sorted((key, repr(value)) for key, value in about.items())) or run.name


def by_configuration(runs: Sequence[Run]) -> list[list[int]]:
    """The places of the runs of each configuration, in the order of appearance."""
    members: dict[Hashable, list[int]] = {}
    for place, run in enumerate(runs):
        members.setdefault(configuration(run), []).append(place)
    return list(members.values())


def chosen_elsewhere(runs: Sequence[Run]) -> list[Stop]:
    """The volatility rule with, for each run, the threshold that does best on the runs of other configurations."""
    return best_elsewhere([partial(by_volatility, threshold=threshold) for threshold in THRESHOLDS], runs)


def best_elsewhere(choices: Sequence[Callable[[Run], int | None]], runs: Sequence[Run]) -> list[Stop]:
    """What, for each run, that of several rules does which does best on the runs of other configurations.

    Best: most checkpoints saved among those that lose at most 1 % of the best accuracy on average; else least lost.
    """
    table = [[apply(choice, run) for run in runs] for choice in choices]
    best = np.array([abs(run.best) for run in runs])
    lost = np.array([[stop.lost for stop in row] for row in table]) / np.where(best > 0, best, np.inf)
    saved = np.array([[stop.saved for stop in row] for row in table], dtype=float)
    of = [configuration(run) for run in runs]
    chosen: dict[Hashable, int] = {}
    for held_out in dict.fromkeys(of):
        others = [r for r in range(len(runs)) if of[r] != held_out]

        def worth(row: int, others: list[int] = others) -> tuple[bool, float]:
            loses, saves = float(np.mean(lost[row, others])), float(np.mean(saved[row, others]))
            if math.isnan(loses):
                return False, -math.inf
            return (True, saves) if loses <= TOLERANCE else (False, -loses)

        chosen[held_out] = max(range(len(choices)), key=worth)
    return [table[chosen[of[r]]][r] for r in range(len(runs))]


def random_epoch(run: Run) -> Stop:
    """Stopping at an epoch drawn at random: the expectation over all epochs."""
    stops = [apply(partial(by_budget, checkpoints=e + 1), run) for e in range(len(run.when))]
    middle = len(stops) // 2
    return Stop(
        index=middle,
        when=run.when[middle],
        fired=True,
        saved=float(np.mean([stop.saved for stop in stops])),
        lost=float(np.nanmean([stop.lost for stop in stops])),
        lost_at_stop=float(np.nanmean([stop.lost_at_stop for stop in stops])),
    )


def _volatility_rules() -> Iterator[Rule]:
    for threshold in THRESHOLDS:
        rule = partial(by_volatility, threshold=threshold)
        yield Rule(f"volatility < {threshold}", "volatility", rule, fits=has_volatility)
    for threshold in (0.2, 0.35, 0.4):
        rule = partial(by_volatility, threshold=threshold, causal=False)
        family = "volatility, whole run known"
        yield Rule(f"volatility < {threshold}, whole run known", family, rule, fits=has_volatility, looks_ahead=True)


def _patience_rules() -> Iterator[Rule]:
    for patience, delta in itertools.product(PATIENCE, MIN_DELTAS):
        name = f"patience {patience}" + (f", min_delta {delta}" if delta else "")
        yield Rule(name, "patience", partial(by_patience, patience=patience, min_delta=delta), fits=has_loss)


RULES: dict[str, Rule] = {
    rule.name: rule
    for rule in (
        *_volatility_rules(),
        *_patience_rules(),
        *(Rule(f"budget {b}", "fixed budget", partial(by_budget, checkpoints=b)) for b in BUDGETS),
        Rule("best in hindsight", "reference", by_hindsight, looks_ahead=True),
        Rule(
            "volatility, threshold chosen on other configurations",
            "volatility",
            of_runs=chosen_elsewhere,
            fits=lambda runs: has_volatility(runs) and len({configuration(run) for run in runs}) > 2,
        ),
        Rule("random epoch", "reference", of_runs=lambda runs: [random_epoch(run) for run in runs]),
    )
}
"""The table of rules. One of your own is one more: `RULES["third"] = Rule("third", "toy", of_run=lambda run: 2)`."""


def unjudged(runs: Sequence[Run]) -> list[str]:
    """A note on the runs that have no score, by which stopping rules are judged, if there are such."""
    names = [run.name for run in runs if run.score is None]
    return [f"Without an accuracy or other score, and not judged: {', '.join(names)}."] if names else []


def compare_rules(runs: Sequence[Run], more: Sequence[Rule] = ()) -> list[Score]:
    """Every rule that fits over the same runs, and `more` rules, most checkpoints saved first.

    Raises UsageError where a run has no score, or they are judged by different ones. Patience is left out, and with it the differences from it, unless
    all runs have a validation loss.
    """
    symbols = {}
    for run in runs:
        if run.score is None:
            raise UsageError(
                f"{run.name} has no accuracy or other score, by which stopping rules are judged; leave that run out."
            )
        symbols[run.score.symbol] = run.name
    if len(symbols) > 1:
        several = ", ".join(f"{name} by {symbol}" for symbol, name in symbols.items())
        raise UsageError(f"Stopping rules are compared over runs that are judged by one score; here {several}.")
    rules = [rule for rule in (*RULES.values(), *more) if rule.fits(runs)]
    table = {rule.name: rule.stops(runs) for rule in rules}
    saved = {name: _share(stops, runs) for name, stops in table.items()}
    lost = {name: float(np.mean([stop.lost for stop in stops])) for name, stops in table.items()}
    followed = [(saved[rule.name], lost[rule.name]) for rule in rules if not rule.looks_ahead]
    reference = table.get(REFERENCE, [])
    members = _members(runs)
    patience = _Patience.of(runs)

    def beyond(stops: Sequence[Stop], what: Callable[[Stop], float]) -> tuple[float, float, float]:
        return _paired(members, [what(stop) for stop in stops], [what(stop) for stop in reference])

    scores = []
    for rule in rules:
        stops, share, loss = table[rule.name], saved[rule.name], lost[rule.name]
        beaten = any(s >= share and o <= loss and (s, o) != (share, loss) for s, o in followed)
        scores.append(
            Score(
                rule=rule.name,
                family=rule.family,
                looks_ahead=rule.looks_ahead,
                stops=tuple(stops),
                saved=float(np.mean([stop.saved for stop in stops])),
                saved_share=share,
                lost=loss,
                never=float(np.mean([not stop.fired for stop in stops])),
                saved_difference=beyond(stops, lambda stop: stop.saved),
                lost_difference=beyond(stops, lambda stop: stop.lost),
                pareto=not rule.looks_ahead and not math.isnan(loss) and not beaten,
                symbol=next(iter(symbols)),
                patience_difference=_paired(members, [stop.lost for stop in stops], patience.lost_at(share)),
                runs=tuple(run.name for run in runs),
            )
        )
    return sorted(scores, key=lambda score: (-score.saved_share, score.lost))


def _share(stops: Sequence[Stop], runs: Sequence[Run]) -> float:
    """Of their training that stops save, the mean over runs."""
    return float(np.mean([stop.saved / len(run.when) for stop, run in zip(stops, runs, strict=True)]))


def _members(runs: Sequence[Run]) -> list[list[int]]:
    """The places of the runs of each configuration; of each run where all are of one."""
    members = by_configuration(runs)
    return members if len(members) > 1 else [[r] for r in range(len(runs))]


def _paired(
    members: Sequence[Sequence[int]], first: Sequence[float], second: Sequence[float]
) -> tuple[float, float, float]:
    """The mean difference between what is known of every run [R], configuration by configuration, and its 95 % interval;
    NaN where there is nothing to compare with."""
    if not len(second):
        return (math.nan,) * 3
    means = ([float(np.mean([of_run[r] for r in of])) for of in members] for of_run in (first, second))
    return paired(*means)


@dataclass(frozen=True)
class _Patience:
    """What patience loses in each run, for every length of it, by the share that it saves; without any, nothing.

    shares [K], rising from that of never stopping; lost [K, R].
    """

    shares: list[float]
    lost: list[list[float]]

    @classmethod
    def of(cls, runs: Sequence[Run]) -> "_Patience":
        """Of every length up to the longest in `PATIENCE`, for between lengths that are far apart patience would seem worse."""
        lengths = range(1, max(PATIENCE) + 1) if has_loss(runs) else ()
        stops = [[apply(partial(by_patience, patience=k), run) for run in runs] for k in lengths]
        rows = [(_share(of, runs), [stop.lost for stop in of]) for of in stops]
        rows += [(0.0, [0.0] * len(runs))] if rows else []
        rows.sort(key=lambda row: row[0])
        return cls([share for share, _ in rows], [lost for _, lost in rows])

    def lost_at(self, share: float) -> list[float]:
        """What patience that saves so large a share loses in each run [R]; empty where none does."""
        if not self.shares or not self.shares[0] <= share <= self.shares[-1]:
            return []
        above = next(k for k, known in enumerate(self.shares) if known >= share)
        below = max(above - 1, 0)
        width = self.shares[above] - self.shares[below]
        weight = (share - self.shares[below]) / width if width > 0 else 1.0
        patient = (1 - weight) * np.array(self.lost[below]) + weight * np.array(self.lost[above])
        return [float(loss) for loss in patient]
