"""How much of a result hangs on the inherited constants: H_opt, sigma_H and w_H over a grid."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from posthoc.analysis.measures import correlation, integration, mean_finite, stability_index
from posthoc.analysis.runs import Run
from posthoc.errors import UsageError

H_OPT = (0.5, 0.6, 0.7, 0.8)
SIGMA_H = (0.05, 0.10, 0.15, 0.20, 0.25)
W_H = (0.3, 0.5, 0.7)


@dataclass(frozen=True)
class Cell:
    """One choice of constants: mean H_eff and r(Psi, accuracy) of every run, and the gap between two groups' H_eff.

    gap: mean of the first group less that of the second, NaN unless there are two groups.
    """

    h_opt: float
    sigma_h: float
    w_h: float
    h_eff: tuple[float, ...]
    r_accuracy: tuple[float, ...]
    gap: float


def sensitivity(runs: Sequence[Run], groups: Sequence[str] = ()) -> list[Cell]:
    """H_eff from each run's exponents at every point of the grid; groups: a name for each run, or none.

    Raises UsageError where a run has no exponents.
    """
    for run in runs:
        if not np.isfinite(run.hurst).any():
            raise UsageError(f"{run.name} has no exponents (hurst), from which H_eff could be computed anew.")
    names = list(dict.fromkeys(groups))
    cells = []
    for h_opt, sigma_h, w_h in itertools.product(H_OPT, SIGMA_H, W_H):
        columns = [_integration(run, h_opt, sigma_h) for run in runs]
        means = [mean_finite(column) for column in columns]
        gap = math.nan
        if len(names) == 2:
            first, second = (
                mean_finite(np.array([mean for mean, group in zip(means, groups, strict=True) if group == name]))
                for name in names
            )
            gap = first - second
        correlations = [
            correlation(stability_index(column, run.m, w_h), run.accuracy)
            for column, run in zip(columns, runs, strict=True)
        ]
        cells.append(Cell(h_opt, sigma_h, w_h, tuple(means), tuple(correlations), gap))
    return cells


def _integration(run: Run, h_opt: float, sigma_h: float) -> NDArray[np.float64]:
    """H_eff anew; an exponent beyond its calibration is not known, and H_eff is as good as 0 whatever the constants."""
    return np.where(np.isnan(run.hurst) & np.isfinite(run.h_eff), 0.0, integration(run.hurst, h_opt, sigma_h))
