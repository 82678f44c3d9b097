"""How much of a result hangs on the inherited constants: H_opt, sigma_H and w_H over a grid."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from posthoc.analysis.arrays import FloatArray, correlation, mean_finite
from posthoc.analysis.measures.integration import integration
from posthoc.analysis.measures.stability import stability_index
from posthoc.analysis.runs import Run
from posthoc.errors import UsageError

H_OPT = (0.5, 0.6, 0.7, 0.8)
SIGMA_H = (0.05, 0.10, 0.15, 0.20, 0.25)
W_H = (0.3, 0.5, 0.7)


@dataclass(frozen=True)
class Cell:
    """One choice of constants: mean integration and r(Psi, accuracy), or another score, of every run, and the gap between two groups'
    integration: mean of the first less that of the second, NaN unless there are two groups."""

    h_opt: float
    sigma_h: float
    w_h: float
    integration: tuple[float, ...]
    stability_index_accuracy: tuple[float, ...]
    gap: float


def sensitivity(runs: Sequence[Run], groups: Sequence[str] = ()) -> list[Cell]:
    """Integration from each run's exponents at every point of the grid; groups: a name for each run, or none.

    Raises UsageError where a run has no exponents.
    """
    for run in runs:
        if not np.isfinite(run.column("hurst")).any():
            raise UsageError(
                f"{run.name} has no exponents (hurst), from which H_eff could be computed anew; leave that run out."
            )
    return [_cell(runs, groups, *constants) for constants in itertools.product(H_OPT, SIGMA_H, W_H)]


def _cell(runs: Sequence[Run], groups: Sequence[str], h_opt: float, sigma_h: float, w_h: float) -> Cell:
    columns = [_integration(run, h_opt, sigma_h) for run in runs]
    means = [mean_finite(column) for column in columns]
    names = list(dict.fromkeys(groups))
    gap = math.nan
    if len(names) == 2:
        of_groups = [
            np.array([mean for mean, group in zip(means, groups, strict=True) if group == name]) for name in names
        ]
        gap = mean_finite(of_groups[0]) - mean_finite(of_groups[1])
    correlations = [
        correlation(stability_index(column, run.column("metastability"), w_h), run.column(run.summary.judged_by))
        for column, run in zip(columns, runs, strict=True)
    ]
    return Cell(h_opt, sigma_h, w_h, tuple(means), tuple(correlations), gap)


def _integration(run: Run, h_opt: float, sigma_h: float) -> FloatArray:
    """Anew; an exponent beyond its calibration is not known, and integration is as good as 0 whatever the constants."""
    hurst = run.column("hurst")
    beyond = np.isnan(hurst) & np.isfinite(run.column("integration"))
    return np.where(beyond, 0.0, integration(hurst, h_opt, sigma_h))
