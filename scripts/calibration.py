#!/usr/bin/env python3
"""How far the estimators can be believed: the tables of docs/estimators.md, by simulation.

scripts/calibration.py exponents       bias of DFA's debiased exponent and coverage of its interval
scripts/calibration.py estimators      errors and coverage of the three estimators of H
scripts/calibration.py trends          what a trend or a step does to each
scripts/calibration.py representation  CKA and participation ratio from few channels and few images

Series are exact: fractional Gaussian noise and motion, and ARFIMA(0, d, 0). Each cell has a seed of its own.
"""

import argparse
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from posthoc.analysis.calibration import calibration
from posthoc.analysis.dfa import dfa
from posthoc.analysis.fractional import arfima, fractional
from posthoc.analysis.hurst import hurst
from posthoc.analysis.protocol import ESTIMATORS
from posthoc.analysis.scales import default_scales
from posthoc.analysis.similarity import Sample, debiased_cka, participation_ratios, similarity

LENGTHS = (25, 32, 58, 128, 512, 2048)
FAMILIES = {"fractional": fractional, "ARFIMA": arfima}
FloatArray = NDArray[np.float64]


def table(head: list[str], row: Callable[[int], list[str]], lengths: tuple[int, ...] = LENGTHS) -> None:
    print("| T | " + " | ".join(head) + " |")
    print("|---" * (len(head) + 1) + "|")
    for T in lengths:
        print(f"| {T} | " + " | ".join(row(T)) + " |", flush=True)


def coverage(low: FloatArray, high: FloatArray, truth: float) -> str:
    return f"{np.mean((low <= truth) & (high >= truth)):.1%}"


def exponents(series: int) -> None:
    """The debiased exponent of the mean alpha less the true one, and the share of intervals that hold it."""
    truths = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.05, 1.1, 1.2, 1.3, 1.5, 1.7, 1.8)
    for name, family in FAMILIES.items():
        some = [truth for truth in truths if truth != 1 or name == "ARFIMA"]

        def row(T: int, family: Callable[..., FloatArray] = family, some: list[float] = some) -> list[str]:
            scales = default_scales(T)
            known, cells = calibration(T, tuple(scales.tolist())), []
            for truth in some:
                random = np.random.default_rng([T, round(1000 * truth)])
                alpha = dfa(family(truth, T, series, random), scales).alpha
                bias = float(known.debias(alpha.mean())) - truth
                cells.append(f"{bias:+.3f}, {coverage(*known.interval(alpha), truth)}")
            return cells

        print(f"\n{name}\n")
        table([f"{truth:g}" for truth in some], row)


def estimators(series: int) -> None:
    """RMSE of H, DFA's taken into (0, 1) as the likelihoods' is, and coverage; for DFA the share of empty intervals."""
    truths = (0.2, 0.5, 0.7, 0.9)
    for estimator in ESTIMATORS:

        def row(T: int, estimator: str = estimator) -> list[str]:
            if estimator == "reml" and T > 512:
                return ["" for _ in truths]
            cells = []
            for truth in truths:
                count = series if T < 512 or estimator == "whittle" else series // 10
                x = fractional(truth, T, count, np.random.default_rng([T, round(1000 * truth), 1]))
                result = hurst(x, estimator)
                H = result.H
                if estimator == "dfa":
                    alpha = dfa(x).alpha  # beyond the calibration: at the nearer end
                    H = np.where(np.isnan(H), np.where(alpha > np.median(alpha), 1.0, 0.0), H)
                error = np.sqrt(np.mean((np.clip(H, 0, 1) - truth) ** 2))
                empty = f", {np.mean(result.undetermined):.0%}" if estimator == "dfa" else ""
                cells.append(f"{error:.3f}, {coverage(result.low, result.high, truth)}{empty}")
            return cells

        print(f"\n{estimator}\n")
        table([f"H = {truth}" for truth in truths], row)


def trends(series: int) -> None:
    """Mean H of white noise (H = 0.5) under a trend or a step of a size in standard deviations of the noise."""
    shapes = {
        "nothing": lambda t: 0 * t,
        "line, 1 sd": lambda t: t,
        "line, 3 sd": lambda t: 3 * t,
        "step, 1 sd": lambda t: 1.0 * (t > 0.5),
        "step, 3 sd": lambda t: 3.0 * (t > 0.5),
    }
    for order in (1, 2):

        def row(T: int, order: int = order) -> list[str]:
            x = fractional(0.5, T, series, np.random.default_rng([T, 2]))
            t = np.linspace(0, 1, T)
            cells = []
            for shape in shapes.values():
                y = x + shape(t)
                scales = default_scales(T)
                scales = scales[scales >= order + 2]
                alpha = dfa(y, scales, order=order).alpha.mean()
                known = calibration(T, tuple(scales.tolist()), order)
                cell = f"dfa {float(known.debias(alpha)):.2f}"
                if order == 1:
                    cell += f", whittle {hurst(y, 'whittle').H.mean():.2f}, reml {hurst(y, 'reml').H.mean():.2f}"
                cells.append(cell)
            return cells

        print(f"\nDFA of order {order}\n")
        table(list(shapes), row, (58, 128, 512))


def representation(repeats: int) -> None:
    random = np.random.default_rng(0)
    print("\n| white noise, channels x images | participation ratio, plain | debiased |\n|---|---|---|")
    for C, N in ((512, 128), (512, 40), (64, 40), (32, 2048)):
        ratios = []
        for _ in range(repeats):
            x = random.standard_normal((C, N))
            values = np.linalg.eigvalsh(np.cov(x))
            ratios.append((values.sum() ** 2 / (values**2).sum(), participation_ratios(Sample.of(x))[0]))
        mean, sd = np.mean(ratios, axis=0), np.std(ratios, axis=0)
        print(f"| {C} x {N} | {mean[0]:.1f} +- {sd[0]:.1f} | {mean[1]:.1f} +- {sd[1]:.1f} |")
    print(
        "\n| channels of 512 | images | CKA, plain | of the layers | its sd | estimated sd |\n|---|---|---|---|---|---|"
    )
    for C, N in ((4, 2000), (8, 2000), (32, 2000), (128, 2000), (512, 2000), (32, 100), (32, 20), (512, 10)):
        estimates = []
        for _ in range(repeats):
            source = np.linspace(1, 0.02, 512)[:, None] ** 3 * random.standard_normal((512, N))
            x, y = (np.linalg.qr(random.standard_normal((512, 512)))[0][:C] @ source for _ in range(2))
            result = similarity(x, y, (512, 512))
            estimates.append((debiased_cka(x, y), result.cka, result.sd))
        plain, whole, estimated = np.array(estimates).T
        none = f", none in {np.mean(np.isnan(whole)):.0%}" if np.isnan(whole).any() else ""
        print(
            f"| {C} | {N} | {np.nanmean(plain):.3f} | {np.nanmean(whole):.3f}{none} | {np.nanstd(whole):.3f} | "
            f"{np.nanmedian(estimated):.3f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tables = {function.__name__: function for function in (exponents, estimators, trends, representation)}
    parser.add_argument("table", choices=list(tables))
    parser.add_argument("--series", type=int, help="how many a cell (default 2000; representation: 100)")
    args = parser.parse_args()
    tables[args.table](args.series or (100 if args.table == "representation" else 2000))


if __name__ == "__main__":
    main()
