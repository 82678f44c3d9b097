"""Runs and groups of runs as one table: each measure beside its null or its interval."""

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy

from posthoc.analysis.arrays import mean_finite, sd_finite
from posthoc.analysis.axes import AXES
from posthoc.analysis.measures import MEASURES
from posthoc.analysis.protocol import Protocol
from posthoc.analysis.records import CORRELATIONS, PURE_NOISE, Measured, psi_with
from posthoc.analysis.runs import DOCUMENT_TOKENS, Run
from posthoc.analysis.stopping import by_configuration
from posthoc.analysis.taxonomy import Evidence, Name, State, Taxonomy, classify
from posthoc.analysis.verdicts import FALSE_DISCOVERIES, corrected, verdict
from posthoc.errors import UsageError
from posthoc.streams import stream

if TYPE_CHECKING:
    import pandas

NOT_COMPARED = ("name", "window", "threshold")
"""Of the protocol: what only volatility and its settling depend on, by which runs are not compared."""
RESPONDS_TO = (
    "classes",
    "images",
    DOCUMENT_TOKENS,
    "layers",
    "channels",
    *(item.name for item in fields(Protocol) if item.name not in NOT_COMPARED),
)
"""What the measures themselves respond to, whatever the network."""
MUST_BE_KNOWN = ("classes", "images", "smooth")
STATED_BY = ("hurst", "integration", "metastability", "integration_z", "metastability_z", "stability_index")
"""The measures by which a run's state is named."""
PERMUTATIONS = 10_000


@dataclass(frozen=True)
class Quantity:
    """What runs are compared by: a value of a run with the ends of its 95 % interval, what pure noise gives, and of a mean
    over checkpoints their sd.

    tested: whether groups are tested for a difference in it; best: whether it is what the run is judged by, at its best.
    """

    symbol: str
    value: float
    low: float = math.nan
    high: float = math.nan
    noise: float = math.nan
    sd: float = math.nan
    digits: int = 4
    tested: bool = True
    best: bool = False


def quantities(run: Run) -> dict[str, Quantity]:
    """The best accuracy, or other score, the mean of every headline measure, how the stability index varies, and the correlations."""
    score = run.score
    values = {}
    if score is not None:
        values[f"best_{score.symbol.replace(' ', '_')}"] = Quantity(
            f"best {score.symbol}", run.best, tested=False, best=True
        )
    for key, measured in run.measures.items():
        if measured.headline:
            of = measured.summary
            values[key] = Quantity(measured.symbol, of.mean, of.low, of.high, run.noise(key), of.sd, measured.digits)
            if AXES[run.protocol.axis].intervals and measured.low.size:
                values[f"{key}_last"] = _at_last(measured)
    if "stability_index" in run.measures:
        sd = run.measures["stability_index"].summary.sd
        values["stability_index_sd"] = Quantity("sd of Psi", sd, tested=False)
    for name, r in run.related.items():
        values[name] = Quantity(r.symbol, r.r, r.low, r.high)
    return values


def _at_last(measured: Measured) -> Quantity:
    """A measure at the last checkpoint, with the interval that it has by itself."""
    noise = measured.nulls.get(PURE_NOISE)
    value, low, high = (float(of[-1]) for of in (measured.value, measured.low, measured.high))
    drawn = math.nan if noise is None else float(noise.mean[-1])
    return Quantity(f"{measured.symbol} last", value, low, high, drawn, digits=measured.digits)


@dataclass(frozen=True)
class Row:
    """A run in the table."""

    run: Run
    quantities: dict[str, Quantity]
    state: State


@dataclass(frozen=True)
class Member:
    """A quantity of a group: mean, sd and 95 % interval (Student's t) over its trials."""

    mean: float
    sd: float
    low: float
    high: float


@dataclass(frozen=True)
class Group:
    """Several runs that agree in what they were grouped by; trials: how many count (see `trials`)."""

    name: str
    runs: tuple[str, ...]
    trials: int
    quantities: dict[str, Member]


@dataclass(frozen=True)
class Difference:
    """Two groups in one quantity: their difference, its p by permuting trials between them, and the noise's difference.

    corrected: p as a false discovery rate over all quantities and pairs of groups; least: the smallest p that permuting
    so few trials can give; warning: what the groups differ in that the measures themselves respond to; empty where nothing.
    """

    quantity: str
    first: str
    second: str
    difference: float
    p: float
    corrected: float
    least: float
    noise: float
    warning: str

    @property
    def wanting(self) -> bool:
        """Whether no arrangement of the trials is as far apart, and it is for want of trials that this is not rejected."""
        return self.p <= self.least * (1 + 1e-9) and self.corrected > FALSE_DISCOVERIES


@dataclass(frozen=True)
class Comparison:
    """Runs side by side: a row each, and the groups that they make and how these differ, where they were grouped."""

    rows: tuple[Row, ...]
    groups: tuple[Group, ...] = ()
    differences: tuple[Difference, ...] = ()

    @classmethod
    def of(
        cls, runs: Sequence[Run], by: Sequence[str] = (), seed: int = 0, taxonomy: Taxonomy | None = None
    ) -> "Comparison":
        """Of runs whose scores are in one unit; see `tabulate`, `grouped`, `differences`."""
        rows = tabulate(runs, taxonomy)
        if not by:
            return cls(tuple(rows))
        names = group_names(runs, by)
        return cls(tuple(rows), tuple(grouped(rows, names)), tuple(differences(rows, names, seed, by)))

    def to_pandas(self) -> "pandas.DataFrame":
        """The runs as a table (extra `pandas`).

        Returns
        -------
        pandas.DataFrame
            One row per run, in the columns of `posthoc compare --csv`.
        """
        from posthoc.analysis.frames import require
        from posthoc.report.tables_of_runs import runs

        require("pandas")
        import pandas

        return pandas.DataFrame(runs(self.rows).flat()).set_index("run")

    def __repr__(self) -> str:
        from posthoc.report.words import compared

        return f"<Comparison: {compared(self.rows, self.differences)}>"

    def _repr_html_(self) -> str:
        from posthoc.report.notebook import as_notebook
        from posthoc.report.tables_of_runs import runs
        from posthoc.report.words import compared

        return as_notebook([compared(self.rows, self.differences)], runs(self.rows))


def tabulate(runs: Sequence[Run], taxonomy: Taxonomy | None = None) -> list[Row]:
    """One row per run, in the order given."""
    return [Row(run, quantities(run), _state(run, taxonomy)) for run in runs]


def _state(run: Run, taxonomy: Taxonomy | None) -> State:
    if lacking := [MEASURES[key].title for key in STATED_BY if key not in run.measures]:
        return State(Name.INDETERMINATE, f"it was measured without {', '.join(lacking)}")
    of = run.measures["integration"].summary
    signs, accuracy = (run.summary.correlations[name] for name in CORRELATIONS)
    score = run.score
    if score is not None:
        accuracy = run.summary.correlations[psi_with(score.symbol)]
    falls = score is not None and score.lower_is_better
    low, high = (-accuracy.high, -accuracy.low) if falls else (accuracy.low, accuracy.high)
    evidence = Evidence(
        integration=of.mean,
        fields=signs.r,
        accuracy=-accuracy.r if falls else accuracy.r,
        integration_interval=(of.low, of.high),
        fields_interval=(signs.low, signs.high),
        accuracy_interval=(low, high),
        score=None if score is None else f"-{score.symbol}" if falls else score.symbol,
        epochs=of.count,
        total=run.summary.epochs,
        noun=run.summary.noun,
        hurst=verdict(run, "hurst"),
        metastability=verdict(run, "metastability"),
        noise=run.noise("integration"),
    )
    return classify(evidence, taxonomy)


def group_names(runs: Sequence[Run], by: Sequence[str]) -> list[str]:
    """A name for each run's group: its recorded fields `by`, joined; raises UsageError where one was not recorded."""
    for field in by:
        lacking = [run.name for run in runs if run.about.get(field) is None]
        if lacking:
            known = ", ".join(sorted(set().union(*(run.about for run in runs))))
            raise UsageError(
                f"--by {field}: not recorded for {lacking[0]}; recorded: {known}. `posthoc extract --set {field}=...`, or "
                f"settings in a run.json beside the checkpoints, record what the files do not say."
            )
    return [", ".join(str(run.about[field]) for field in by) for run in runs]


def trials(rows: Sequence[Row], names: Sequence[str]) -> dict[str, list[list[Row]]]:
    """What counts once in each group: the runs of one configuration together, where a group has several of them.

    Runs that differ in their seed only are no independent trials of what groups differ in. Where each group is of one
    configuration, each run counts: what is said then is said of these configurations, over seeds.
    """
    groups: dict[str, list[Row]] = {}
    for row, name in zip(rows, names, strict=True):
        groups.setdefault(name, []).append(row)
    members = {name: by_configuration([row.run for row in of]) for name, of in groups.items()}
    if all(len(of) == 1 for of in members.values()):
        return {name: [[row] for row in of] for name, of in groups.items()}
    return {name: [[groups[name][place] for place in places] for places in of] for name, of in members.items()}


def grouped(rows: Sequence[Row], names: Sequence[str]) -> list[Group]:
    """Mean, sd and interval over the trials of each group, in the order of appearance."""
    groups = []
    for name, of in trials(rows, names).items():
        columns = {key: _means(of, key) for key in _keys(rows)}
        summaries = {
            key: Member(mean_finite(values), sd_finite(values), *_student(values)) for key, values in columns.items()
        }
        groups.append(Group(name, tuple(row.run.name for members in of for row in members), len(of), summaries))
    return groups


def _means(of: Sequence[Sequence[Row]], key: str) -> Any:
    """A quantity's mean in every trial, over its runs that have it."""
    return np.array([mean_finite(_values(members, key)) for members in of])


def _keys(rows: Sequence[Row]) -> list[str]:
    """Every quantity that a run has, in order."""
    return list(dict.fromkeys(key for row in rows for key in row.quantities))


def _values(rows: Sequence[Row], key: str, name: str = "value") -> Any:
    """One number of a quantity of every run, [R]; NaN for a run that has it not."""
    return np.array([getattr(row.quantities.get(key), name, math.nan) for row in rows], dtype=float)


def _student(values: Any) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    if len(finite) < 2:
        return math.nan, math.nan
    half = float(scipy.special.stdtrit(len(finite) - 1, 0.975)) * sd_finite(finite) / math.sqrt(len(finite))
    return float(finite.mean()) - half, float(finite.mean()) + half


def differences(rows: Sequence[Row], names: Sequence[str], seed: int = 0, by: Sequence[str] = ()) -> list[Difference]:
    """Every pair of groups in every quantity that is tested: one family of tests; by: the fields that they were grouped by."""
    tested = [key for key in _keys(rows) if any(row.quantities[key].tested for row in rows if key in row.quantities)]
    results = []
    for (first, of_first), (second, of_second) in itertools.combinations(trials(rows, names).items(), 2):
        a, b = ([row for members in of for row in members] for of in (of_first, of_second))
        warning = _confounded(a, b, by)
        for key in tested:
            x, y = (values[np.isfinite(values)] for values in (_means(of, key) for of in (of_first, of_second)))
            noise = [mean_finite(_values(group, key, "noise")) for group in (a, b)]
            results.append(
                Difference(
                    quantity=key,
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
    rates = corrected([result.p for result in results])
    return [replace(result, corrected=float(rate)) for result, rate in zip(results, rates, strict=True)]


def least_permutation_p(first: int, second: int) -> float:
    """The smallest p that permuting so many trials between two groups can give; NaN where one is empty.

    Groups of equal size have a mirror image with the same difference.

    >>> [round(least_permutation_p(n, n), 3) for n in (2, 3, 4)]
    [0.333, 0.1, 0.029]
    """
    if not first or not second:
        return math.nan
    ways = math.comb(first + second, first)
    return (2 if first == second else 1) / ways if ways <= PERMUTATIONS else 1 / (PERMUTATIONS + 1)


def permutation_p(x: Any, y: Any, seed: int = 0) -> float:
    """Two-sided p of a difference of means with trials permuted between the groups: all ways where they are few.

    NaN where a group is empty. With so few that no arrangement is rarer than 1 in 20, p cannot be below 0.05.

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
        random = stream("permuted runs", seed)
        chosen = np.array([random.permutation(len(pool))[: len(x)] for _ in range(PERMUTATIONS)])
        extra = 1

    def gap(rows: Any) -> Any:
        sums = pool[rows].sum(axis=1)
        return np.abs(sums / len(x) - (total - sums) / len(y))

    # Equal but for rounding counts as equal, the arrangement observed among the first.
    least = gap(np.arange(len(x))[None])[0] - 1e-9 * np.abs(pool).max()
    return float((np.count_nonzero(gap(chosen) >= least) + extra) / (len(chosen) + extra))


def words_for(runs: Sequence[Run], field: str) -> str:
    """What a recorded field is called: the number of images by what the samples of these runs are called."""
    if field == DOCUMENT_TOKENS:
        return "tokens per document"
    names = {run.about.get("samples", "images") for run in runs}
    return field if field != "images" else str(names.pop()) if len(names) == 1 else "samples"


def _confounded(a: Sequence[Row], b: Sequence[Row], by: Sequence[str] = ()) -> str:
    """What two groups differ in that the measures themselves respond to, or in their probes, in words."""
    differ = []
    for field in RESPONDS_TO:
        first, second = (Counter(row.run.about.get(field) for row in group) for group in (a, b))
        if field == DOCUMENT_TOKENS and field in by:
            continue
        if None not in first | second and _shares(first) != _shares(second):
            what = words_for([row.run for row in (*a, *b)], field)
            differ.append(f"{what} {_counted(first)} against {_counted(second)}")
    differ += _other_probes(a, b, by)
    unknown = [
        words_for([row.run for row in (*a, *b)], name)
        for name in MUST_BE_KNOWN
        if any(row.run.about.get(name) is None for row in (*a, *b))
    ]
    return ", ".join(differ + ([f"not recorded: {', '.join(unknown)}"] if unknown else []))


def _other_probes(a: Sequence[Row], b: Sequence[Row], by: Sequence[str]) -> list[str]:
    """How the probes of two groups differ, in words, unless they were grouped by that; nothing where that is not known.

    Probes are the same by their samples, whatever they are called. Other samples under one name are said where each
    group has one draw of them, and as many of the same length.
    """
    runs = [row.run for row in (*a, *b)]
    probes = [run.about.get("probe") for run in runs]
    if None in probes or any(probes == [run.about.get(field) for run in runs] for field in by):
        return []
    drawn = [run.probe_sha256 or name for run, name in zip(runs, probes, strict=True)]
    halves = slice(len(a)), slice(len(a), None)
    if _shares(Counter(drawn[halves[0]])) == _shares(Counter(drawn[halves[1]])):
        return []
    first, second = (Counter(probes[half]) for half in halves)
    if _shares(first) != _shares(second):
        return [f"probe {_counted(first)} against {_counted(second)}"]
    sizes = {tuple(run.about.get(field) for field in ("images", DOCUMENT_TOKENS)) for run in runs}
    once = all(len(set(drawn[half])) == len(set(probes[half])) for half in halves)
    return [f"samples of the probe {_counted(first)}"] if once and len(sizes) == 1 else []


def _shares(values: Counter[Any]) -> dict[Any, float]:
    return {value: count / values.total() for value, count in values.items()}


def _counted(values: Counter[Any]) -> str:
    return "/".join(f"{value} ({count} x)" if len(values) > 1 else str(value) for value, count in values.items())
