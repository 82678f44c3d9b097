"""What large runs say of what is to come: across architectures, and between the seeds of one."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from posthoc.analysis.arrays import FloatArray
from posthoc.analysis.kernels.ranks import mean_taus
from posthoc.analysis.prediction import PERMUTATIONS
from posthoc.analysis.runs import Run, load_csv
from posthoc.analysis.verdicts import FALSE_DISCOVERIES
from posthoc.store import Activations
from posthoc.streams import stream
from reproduction.kept import Kept, Study
from reproduction.text import extent, listed, number

DATASETS = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
NOT_OF_ITS_NAME = "vit_pretrained_cifar10"
"""Whose loss begins at that of a hundred classes."""
BETWEEN_SEEDS = {"metastability": "M", "integration": "H_eff", "loss": "loss", "accuracy": "accuracy so far"}
TARGETS = {
    "final-accuracy": "final accuracy", "remaining": "improvement still to come", "best": "best epoch", "plateau": "plateau",
}  # fmt: skip
TITLES = {"causal": "volatility of Psi, as known at the time", "causal Psi": "Psi, as known at the time"}
LAST = 3
"""Checkpoints of whose weights, or accuracies, the mean is taken."""
Rows = list[Sequence[Any]]


def files_of(folder: Path, dataset: str) -> list[Path]:
    """The published epochs of one data set, of one architecture each."""
    return [path for path in sorted(folder.glob(f"*_{dataset}.csv")) if path.stem != NOT_OF_ITS_NAME]


def between_seeds(folder: Path) -> dict[str, dict[str, float]]:
    """For each series of published seeds the mean over epochs of Kendall's tau-b between a measure and the final accuracy,
    across seeds; and under `all` the mean of these with its p and standard deviation by permuting the seeds within each series."""
    series: dict[str, list[str]] = {}
    for path in sorted((folder / "seeds").glob("*_seed*.csv")):
        if not path.stem.endswith("_v1"):  # first versions, which the authors replaced
            series.setdefault(path.stem.rpartition("_seed")[0], []).append(str(path))
    runs = {name: load_csv(paths) for name, paths in series.items()}
    random = stream("permuted seeds", 0)
    orders = {
        name: [np.arange(len(of))] + [random.permutation(len(of)) for _ in range(PERMUTATIONS)] for name, of in runs.items()
    }  # fmt: skip
    found: dict[str, dict[str, float]] = {name: {} for name in [*runs, "all"]}
    for measure in BETWEEN_SEEDS:
        taus = {name: _taus(of, measure, orders[name]) for name, of in runs.items()}
        drawn = np.mean([*taus.values()], axis=0)
        p = (np.abs(drawn) >= abs(drawn[0]) - 1e-9).mean()
        found["all"] |= {measure: drawn[0], f"{measure} p": float(p), f"{measure} sd": float(drawn.std())}
        for name, of_series in taus.items():
            found[name][measure] = of_series[0]
    return found


def _taus(runs: Sequence[Run], measure: str, orders: Iterable[NDArray[np.int64]]) -> FloatArray:
    """Of a measure and the final accuracy of the runs, whose seeds changed places as each order says."""
    epochs = min(len(run.when) for run in runs) - 1
    values = np.stack([run.column(measure)[1:epochs] for run in runs], axis=1)
    kept = np.isfinite(values) & np.isfinite(values).all(axis=1, keepdims=True)
    final = np.broadcast_to([run.gain[-1] for run in runs], values.shape)
    return mean_taus(np.stack([values[:, order] for order in orders]), np.ascontiguousarray(final), kept)


def of_means(activations: Path) -> dict[str, list[float]]:
    """The accuracy on the probe of every checkpoint from the third epoch on, and of the mean of the last three's weights."""
    with Activations(activations) as of:
        rows = np.flatnonzero(of.epochs >= LAST)
        mean = [of.behaviour_of_average(LAST, "correct", int(row)).mean() for row in rows]
        return {"checkpoint": of.accuracy[rows].tolist(), "mean": list(map(float, mean))}


def foretelling(study: Study) -> dict[str, Any] | None:
    """What the page says of it; None where no published epochs are kept."""
    if "prediction" not in study.published:
        return None
    prediction: dict[str, list[dict[str, Any]]] = study.published["prediction"]
    found = {
        (row["symbol"], row["target"], dataset): row
        for dataset, rows in prediction.items()
        for row in rows
        if not row["baseline"]
    }
    across: Rows = [
        [TITLES.get(symbol, symbol), DATASETS[dataset], *(_beyond(found.get((symbol, target, dataset))) for target in TARGETS)]
        for symbol, dataset in dict.fromkeys((symbol, dataset) for symbol, _, dataset in found)
    ]  # fmt: skip
    seeds = study.published["between_seeds"]
    return {
        "networks": [f"{rows[0]['runs']} {DATASETS[dataset]}" for dataset, rows in prediction.items()],
        "ten": math.log(10), "hundred": math.log(100), "across_header": ["measure", "networks of", *TARGETS.values()],
        "seeds_header": ["runs", *BETWEEN_SEEDS.values()], "least": 2 * seeds["all"]["metastability sd"],
        "across": across,
        "survives": [
            f"{TITLES.get(symbol, symbol)}, of the {TARGETS[target]} on {DATASETS[dataset]} ({row['conditional_corrected']:.2g})"
            for (symbol, target, dataset), row in found.items()
            if row["conditional_corrected"] is not None and row["conditional_corrected"] <= FALSE_DISCOVERIES
        ],
        "seeds": [
            [name, *(number(of[measure], 2) for measure in BETWEEN_SEEDS)] for name, of in seeds.items() if name != "all"
        ]
        + [["mean (p)", *(f"{seeds['all'][key]:.2f} ({seeds['all'][f'{key} p']:.2g})" for key in BETWEEN_SEEDS)]],
        "between": _between(seeds["all"]),
        "p_between": seeds["all"]["metastability p"],
        "means": means(study.runs),
    }  # fmt: skip


def _between(pooled: dict[str, float]) -> str:
    """A sentence on what says something of the final accuracy of seeds."""
    found = [name for measure, name in BETWEEN_SEEDS.items() if pooled[f"{measure} p"] <= FALSE_DISCOVERIES]
    return f"Something of it is said by {listed(found)}."


def _beyond(row: dict[str, Any] | None) -> str:
    if row is None or row["conditional"] is None:
        return "-"
    return f"{row['conditional']:+.2f} ({row['conditional_p']:.2g}, {row['conditional_corrected']:.2g})"


def means(runs: Sequence[Kept]) -> dict[str, Any]:
    """What the mean of the last three checkpoints' weights says of our runs: its accuracy beside that of a checkpoint."""
    rows: Rows = []
    points = []
    for run in runs:
        if run.means.get("mean"):
            each, mean = (100 * np.array(run.means[key]) for key in ("checkpoint", "mean"))
            points.append(float(mean.max() - each.max()))
            rows.append([
                run.name, len(each), number(each.max(), 1), number(mean.max(), 1), number(np.median(mean - each), 1),
                f"{(mean > each).sum()} of {len(each)}",
            ])  # fmt: skip
    return {"rows": rows, "above": sum(gained > 0 for gained in points), "points": extent(points, 1)}
