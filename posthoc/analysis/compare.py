"""Runs and groups of runs as one table: the published columns, each beside its null or its interval."""

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import stats

from posthoc.analysis.measures import mean_finite, sd_finite
from posthoc.analysis.nulls import stream
from posthoc.analysis.runs import Run
from posthoc.analysis.taxonomy import Evidence, State, Taxonomy, classify
from posthoc.analysis.verdicts import corrected
from posthoc.errors import UsageError

MEASURES = ("best_accuracy", "h_eff", "m", "psi_sd", "r_fields", "r_accuracy")
"""Columns of a run's summary that groups are compared by."""
RESPONDS_TO = (
    "classes", "images", "smooth", "axis", "signal", "scales", "fluctuation", "h_opt", "sigma_h", "w_h", "calibrate", "estimator",
    "span",
)  # fmt: skip
"""What the protocol itself responds to, whatever the network."""
MUST_BE_KNOWN = ("classes", "images", "smooth")
PERMUTATIONS = 10_000


@dataclass(frozen=True)
class Row:
    """A run in the table. intervals: 95 %, by column; noise: what pure noise gives, by column, NaN without nulls."""

    run: Run
    summary: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    noise: dict[str, float]
    state: State


@dataclass(frozen=True)
class Group:
    """Several runs that agree in what they were grouped by: mean, sd and 95 % interval over runs (Student's t)."""

    name: str
    runs: tuple[str, ...]
    means: dict[str, float]
    sds: dict[str, float]
    intervals: dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Difference:
    """Two groups in one column: their difference, its p by permuting runs between them, and the noise's difference.

    corrected: p as a false discovery rate over all columns and pairs of groups; least: the smallest p that permuting so
    few runs can give; warning: what the groups differ in that the protocol itself responds to; empty where nothing.
    """

    column: str
    first: str
    second: str
    difference: float
    p: float
    corrected: float
    least: float
    noise: float
    warning: str


def tabulate(runs: Sequence[Run], taxonomy: Taxonomy | None = None) -> list[Row]:
    """One row per run, in the order given."""
    rows = []
    for run in runs:
        summary = run.summary
        intervals = {name: run.interval(name) for name in ("h_eff", "m", "r_fields", "r_accuracy")}
        evidence = Evidence(
            h_eff=summary["h_eff"],
            r_fields=summary["r_fields"],
            r_accuracy=summary["r_accuracy"],
            h_eff_interval=intervals["h_eff"],
            r_fields_interval=intervals["r_fields"],
            r_accuracy_interval=intervals["r_accuracy"],
            epochs=int(summary["epochs_with_h_eff"]),
            hurst_differs=run.differs("hurst"),
            metastability_differs=run.differs("metastability"),
            axis=str(run.about.get("axis", "image")),
        )
        state = classify(evidence, taxonomy)
        if 0 < summary["epochs_with_h_eff"] < summary["epochs"]:
            share = f"{summary['epochs_with_h_eff']:.0f} of {summary['epochs']:.0f} epochs"
            state = State(state.name, f"{state.reason}, from {share} that have an H_eff")
        noise = {"h_eff": run.noise("integration"), "m": run.noise("metastability")}
        rows.append(Row(run, summary, intervals, noise, state))
    return rows


def group_names(runs: Sequence[Run], by: Sequence[str]) -> list[str]:
    """A name for each run's group: its recorded fields `by`, joined; raises UsageError where one was not recorded."""
    for field in by:
        lacking = [run.name for run in runs if run.about.get(field) is None]
        if lacking:
            known = ", ".join(sorted(set().union(*(run.about for run in runs))))
            raise UsageError(f"--by {field}: not recorded for {lacking[0]}; recorded: {known}.")
    return [", ".join(str(run.about[field]) for field in by) for run in runs]


def grouped(rows: Sequence[Row], names: Sequence[str]) -> list[Group]:
    """Mean, sd and interval over the runs of each group, in the order of appearance."""
    groups = []
    for name in dict.fromkeys(names):
        members = [row for row, own in zip(rows, names, strict=True) if own == name]
        columns = {key: np.array([row.summary[key] for row in members], dtype=float) for key in MEASURES}
        groups.append(
            Group(
                name=name,
                runs=tuple(row.run.name for row in members),
                means={key: mean_finite(values) for key, values in columns.items()},
                sds={key: sd_finite(values) for key, values in columns.items()},
                intervals={key: _student(values) for key, values in columns.items()},
            )
        )
    return groups


def _student(values: Any) -> tuple[float, float]:
    there = values[np.isfinite(values)]
    if len(there) < 2:
        return math.nan, math.nan
    half = float(stats.t.ppf(0.975, len(there) - 1)) * sd_finite(there) / math.sqrt(len(there))
    return float(there.mean()) - half, float(there.mean()) + half


def differences(rows: Sequence[Row], names: Sequence[str], seed: int = 0) -> list[Difference]:
    """Every pair of groups in H_eff, M and the two correlations: one family of tests."""
    found = []
    for first, second in itertools.combinations(dict.fromkeys(names), 2):
        a, b = ([row for row, own in zip(rows, names, strict=True) if own == name] for name in (first, second))
        warning = _confounded(a, b)
        for column in ("h_eff", "m", "r_fields", "r_accuracy"):
            x, y = (np.array([row.summary[column] for row in group], dtype=float) for group in (a, b))
            x, y = x[np.isfinite(x)], y[np.isfinite(y)]
            noise = [mean_finite(np.array([row.noise.get(column, math.nan) for row in group])) for group in (a, b)]
            found.append(
                Difference(
                    column=column,
                    first=first,
                    second=second,
                    difference=mean_finite(x) - mean_finite(y),
                    p=permutation_p(x, y, seed),
                    corrected=math.nan,
                    least=least_permutation_p(len(x), len(y)),
                    noise=noise[0] - noise[1],
                    warning=warning,
                )
            )
    rates = corrected([difference.p for difference in found])
    return [replace(difference, corrected=float(rate)) for difference, rate in zip(found, rates, strict=True)]


def least_permutation_p(first: int, second: int) -> float:
    """The smallest p that permuting so many runs between two groups can give; NaN where one is empty.

    Groups of equal size have a mirror image with the same difference.

    >>> [round(least_permutation_p(n, n), 3) for n in (2, 3, 4)]
    [0.333, 0.1, 0.029]
    """
    if not first or not second:
        return math.nan
    ways = math.comb(first + second, first)
    return (2 if first == second else 1) / ways if ways <= PERMUTATIONS else 1 / (PERMUTATIONS + 1)


def permutation_p(x: Any, y: Any, seed: int = 0) -> float:
    """Two-sided p of a difference of means with runs permuted between the groups: all ways where they are few.

    NaN where a group is empty. With so few runs that no arrangement is rarer than 1 in 20, p cannot be below 0.05.

    >>> round(permutation_p(np.array([1.0, 2, 3]), np.array([7.0, 8, 9])), 3)
    0.1
    """
    if not len(x) or not len(y):
        return math.nan
    pool = np.concatenate([x, y])
    pool = pool - pool.mean()
    total = pool.sum()
    if math.comb(len(pool), len(x)) <= PERMUTATIONS:
        chosen = np.array(list(itertools.combinations(range(len(pool)), len(x))))
        extra = 0
    else:
        random = stream(seed, 0, "white", 2**32 - 5)
        chosen = np.array([random.permutation(len(pool))[: len(x)] for _ in range(PERMUTATIONS)])
        extra = 1

    def gap(rows: Any) -> Any:
        sums = pool[rows].sum(axis=1)
        return np.abs(sums / len(x) - (total - sums) / len(y))

    # Equal but for rounding counts as equal, the arrangement observed among the first.
    least = gap(np.arange(len(x))[None])[0] - 1e-9 * np.abs(pool).max()
    return float((np.count_nonzero(gap(chosen) >= least) + extra) / (len(chosen) + extra))


def _confounded(a: Sequence[Row], b: Sequence[Row]) -> str:
    """What two groups differ in that the protocol itself responds to, in words."""
    said = []
    for field in RESPONDS_TO:
        first, second = (Counter(row.run.about.get(field) for row in group) for group in (a, b))
        shares = [{value: count / total.total() for value, count in total.items()} for total in (first, second)]
        if None not in first | second and shares[0] != shares[1]:
            said.append(f"{field} {_values(first)} against {_values(second)}")
    unknown = [name for name in MUST_BE_KNOWN if any(row.run.about.get(name) is None for row in (*a, *b))]
    return ", ".join(said + ([f"not recorded: {', '.join(unknown)}"] if unknown else []))


def _values(values: Counter[Any]) -> str:
    return "/".join(f"{value} ({count} x)" if len(values) > 1 else str(value) for value, count in values.items())
