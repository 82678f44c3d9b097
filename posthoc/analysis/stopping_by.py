"""Stopping by any measure: by the level that it reaches, or by how little it still varies, chosen on other configurations."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from posthoc.analysis.arrays import FloatArray
from posthoc.analysis.measures import stability
from posthoc.analysis.measures.stability import convergence
from posthoc.analysis.prediction import looks_ahead
from posthoc.analysis.runs import Run, measured_of_all
from posthoc.analysis.stopping import Rule, best_elsewhere, configuration
from posthoc.errors import UsageError

LEVELS = tuple(np.linspace(0.1, 0.9, 9))
"""Of all values of a measure, those at which a level is tried, as shares of them."""
CALM = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7)
"""Of the largest volatility of a measure so far, below which it counts as settled."""
ENOUGH = 3
"""Configurations, with fewer of which nothing is chosen on others."""


def rules_of(runs: Sequence[Run], names: str) -> list[Rule]:
    """Two rules for each of the measures of these names, commas between, or of `all` that every run has.

    Each rule's threshold is, for every run, the one that does best on runs of other configurations, see
    `stopping.best_elsewhere`; where none does, such a run is not stopped. Raises UsageError for a measure that not all runs have, and for fewer than `ENOUGH`
    configurations.
    """
    if (count := len({configuration(run) for run in runs})) < ENOUGH:
        raise UsageError(
            f"--measures: a threshold is chosen on runs of other configurations; these are of {count}, and {ENOUGH} are needed."
        )
    keys = measured_of_all(runs, names, "--measures")
    return [rule for key in keys for rule in (_by_level(runs, key), _by_volatility(runs, key))]


def _by_level(runs: Sequence[Run], key: str) -> Rule:
    """Stop where a measure has risen, or fallen, to a level."""
    values = np.concatenate([run.column(key) for run in runs])
    levels = np.unique(np.quantile(values[np.isfinite(values)], LEVELS))
    choices = [partial(reaching, key=key, level=float(level), sign=sign) for level in levels for sign in (1, -1)]
    return _rule(runs, key, "level", choices)


def _by_volatility(runs: Sequence[Run], key: str) -> Rule:
    """Stop where a measure's volatility has stayed small beside its largest so far."""
    return _rule(runs, key, "volatility", [partial(settling, key=key, share=share) for share in CALM])


def _rule(runs: Sequence[Run], key: str, by: str, choices: Sequence[Callable[[Run], int | None]]) -> Rule:
    name = f"{runs[0].measures[key].symbol} by {by}"
    choices = [*choices, lambda run: None]
    return Rule(
        name, f"measure's {by}", of_runs=partial(best_elsewhere, choices), looks_ahead=looks_ahead(key, runs[0])
    )


def reaching(run: Run, key: str, level: float, sign: int) -> int | None:
    """The first checkpoint at which a measure is at or above a level; below it where `sign` is -1."""
    reached = np.flatnonzero(sign * run.column(key) >= sign * level)
    return int(reached[0]) if len(reached) else None


def settling(run: Run, key: str, share: float) -> int | None:
    """The checkpoint at which a measure's volatility has stayed below that share of its largest so far.

    Never where checkpoints are unevenly spaced, over which there is no volatility.
    """
    return None if run.summary.uneven else convergence(relative_volatility(run.column(key), run.protocol.window), share)


def relative_volatility(values: FloatArray, window: int) -> FloatArray:
    """Of a measure [E] beside its largest so far; NaN while that is 0.

    >>> relative_volatility(np.array([1.0, 2, 3, 3, 3]), 3).round(3).tolist()
    [nan, nan, 1.0, 0.577, 0.0]
    """
    volatility = stability.volatility(values, window)
    largest = np.fmax.accumulate(volatility)
    return np.asarray(np.divide(volatility, largest, out=np.full(len(values), np.nan), where=largest > 0))
