#!/usr/bin/env python3
"""How often the 95 % intervals hold what they are for: the tables of docs/intervals.md.

interval_coverage.py images|epochs|runs|calibration|dimension [--replicates R]: one table; seeds are fixed, so that it comes out the same.
"""

import argparse
import itertools

import numpy as np
from numpy.typing import NDArray
from scipy import special

from posthoc.analysis import intervals
from posthoc.analysis.axes.image import ImageMaterial, images_reordered
from posthoc.analysis.dfa import dfa
from posthoc.analysis.kuramoto import metastability_in_halves
from posthoc.analysis.measures.layers import dimension_ends
from posthoc.analysis.measures.outputs import DRAWS, calibrated_errors, calibration_error, with_interval
from posthoc.analysis.representation import intrinsic_dimension
from posthoc.analysis.scales import published_scales

FloatArray = NDArray[np.float64]
LAYERS, CHANNELS, POPULATION, IMAGES, CLASSES, SMOOTH = 4, 32, 256, 2048, 10, 5
KINDS = ("independent", "rho 0.1", "rho 0.3", "rho 0.5", "rank 30", "rank 10")


class Layers:
    """Four layers of 256 channels each, fixed; every replicate sees 32 of each and images of its own."""

    def __init__(self, kind: str, random: np.random.Generator) -> None:
        self.name, _, number = kind.partition(" ")
        self.random = random
        self.strength = float(number or 0)
        rank = int(self.strength) if self.name == "rank" else 0
        self.loadings = random.standard_normal((LAYERS, POPULATION, rank))

    def draw(self) -> FloatArray:
        """Signals of 128 channels for fresh images, [128, 2048]."""
        if self.name == "rank":
            common = self.random.standard_normal((self.loadings.shape[2], IMAGES))
            rows = [layer[self.random.choice(POPULATION, CHANNELS, replace=False)] for layer in self.loadings]
            return np.asarray(np.concatenate(rows) @ common)
        noise = self.random.standard_normal((LAYERS * CHANNELS, IMAGES))
        shared = self.random.standard_normal((LAYERS, IMAGES)).repeat(CHANNELS, axis=0)
        return np.asarray(np.sqrt(self.strength) * shared + np.sqrt(1 - self.strength) * noise)


def measures(series: FloatArray, halves: FloatArray) -> tuple[FloatArray, FloatArray]:
    """H and M of all channels [2], and of one half less the other [2, K]."""
    alpha = dfa(series, published_scales(series.shape[1]), fluctuation="published").alpha
    metastability, differences = metastability_in_halves(series, halves)
    size = len(alpha) // 2
    return np.array([alpha.mean(), metastability]), np.array([(2 * halves - 1) @ alpha / size, differences])


def images(replicates: int, draws: int = intervals.LEAST_DRAWS) -> None:
    """H and M over fresh images and channels."""
    print("| channels | measure | sd over replicates | coverage |\n|---|---|---|---|")
    strata = np.repeat(np.arange(LAYERS), CHANNELS)
    for kind in KINDS:
        random = np.random.default_rng([16, KINDS.index(kind)])
        layers, labels = Layers(kind, random), random.integers(0, CLASSES, IMAGES)
        halves, live = intervals.half_splits(strata, random), np.ones(len(strata), np.bool_)
        values, bounds = np.empty((replicates, 2)), np.empty((replicates, 2, 2))
        for replicate in range(replicates):
            axis = ImageMaterial(layers.draw(), labels, SMOOTH)
            values[replicate] = measures(axis.series(), halves)[0]
            redrawn = [measures(images_reordered(axis, random, live).series(), halves) for _ in range(draws)]
            drawn, differences = (np.array(part) for part in zip(*redrawn, strict=True))
            for k in range(2):
                bounds[replicate, k] = intervals.over_images_and_channels(
                    values[replicate, k], drawn[:, k], differences[:, k]
                )
        expected = values.mean(axis=0)
        covered = ((bounds[:, :, 0] <= expected) & (expected <= bounds[:, :, 1])).mean(axis=0)
        for k, name in enumerate("HM"):
            print(f"| {kind} | {name} | {values[:, k].std(ddof=1):.4f} | {covered[k]:.3f} |", flush=True)


def autoregression(phi: float, E: int, rho: float, random: np.random.Generator) -> FloatArray:
    """Two series [2, E] whose epochs scatter around a correlation of rho; with phi = 1 random walks."""
    before = 0 if phi == 1 else 300
    x = random.standard_normal((2, before + E))
    x[1] = rho * x[0] + np.sqrt(1 - rho**2) * x[1]
    for t in range(1, before + E):
        x[:, t] += phi * x[:, t - 1]
    return np.asarray(x[:, before:])


def epochs(replicates: int) -> None:
    """Means and correlations over the epochs of one run."""
    print("| phi | epochs | mean | r = 0 | r = 0.6 | width of the mean's, sd | width of r's, r = 0 |")
    print("|---|---|---|---|---|---|---|")
    for phi, E in itertools.product((0.0, 0.5, 0.8, 0.9, 0.95, 1.0), (10, 25, 58)):
        random = np.random.default_rng([17, int(100 * phi), E])
        mean: list[tuple[bool, float]] = []
        correlation: dict[float, list[tuple[bool, float]]] = {0.0: [], 0.6: []}
        for _, rho in itertools.product(range(replicates), correlation):
            x, y = autoregression(phi, E, rho, random)
            low, high = intervals.correlation_over_epochs(x, y)
            correlation[rho].append((low <= rho <= high, high - low))
            if rho == 0 and phi < 1:
                low, high = intervals.mean_over_epochs(x)
                mean.append((low <= 0 <= high, (high - low) * np.sqrt(1 - phi**2)))
        cells = [f"{np.mean([hit for hit, _ in rows]):.3f}" if rows else "" for rows in (mean, *correlation.values())]
        if phi == 1:
            cells[2] = ""  # random walks have no correlation to scatter around but 0
        widths = [f"{np.median([width for _, width in rows]):.2f}" if rows else "" for rows in (mean, correlation[0.0])]
        print(f"| {'random walk' if phi == 1 else phi} | {E} | {' | '.join(cells + widths)} |", flush=True)


def runs(replicates: int) -> None:
    """Means over 3 to 9 runs, of normal and of skewed values."""
    print("| runs | normal | exponential |\n|---|---|---|")
    for R in (3, 4, 5, 7, 9):
        random = np.random.default_rng([18, R])
        samples = (random.standard_normal((replicates, R)), random.exponential(size=(replicates, R)) - 1)
        bounds = [np.array([intervals.over_runs(row) for row in rows]) for rows in samples]
        covered = [((low <= 0) & (high >= 0)).mean() for low, high in (table.T for table in bounds)]
        print(f"| {R} | {covered[0]:.3f} | {covered[1]:.3f} |", flush=True)


ACCURACIES = {
    "calibrated": lambda c: c,
    "3 points less": lambda c: c - 0.03,
    "10 points less": lambda c: np.maximum(c - 0.1, 0.0),
    "temperature 1.5": lambda c: special.expit(special.logit(c) / 1.5),
}
"""How often samples of a confidence are right."""


def calibration(replicates: int) -> None:
    """The calibration error of fresh samples, of which confidences spread as Beta(5, 2)."""
    print("| right | samples | true error | mean estimate | coverage | width |\n|---|---|---|---|---|---|")
    for (kind, (name, accuracy)), N in itertools.product(enumerate(ACCURACIES.items()), (300, 1000, 5000)):
        random = np.random.default_rng([19, kind, N])
        everyone = random.beta(5, 2, 2_000_000)
        truth = calibration_error(everyone, accuracy(everyone))
        rows = np.empty((replicates, 3))
        for replicate in range(replicates):
            confidence = random.beta(5, 2, N)
            correct = random.random(N) < accuracy(confidence)
            rows[replicate] = with_interval(
                confidence, correct, calibrated_errors(confidence, DRAWS, random), replicate
            )
        value, low, high = rows.T
        covered = ((low <= truth) & (truth <= high)).mean()
        width = np.median(high - low)
        print(f"| {name} | {N} | {truth:.4f} | {value.mean():.4f} | {covered:.3f} | {width:.3f} |", flush=True)


SPACES = [
    *(("flat torus", d, N) for N in (300, 1000) for d in (1, 2, 5, 8, 15)),
    *(("flat torus", d, 2000) for d in (2, 5)),
    *(("normal", d, N) for N in (300, 1000) for d in (2, 5, 15, 30)),
]
"""What samples lie on, of how many dimensions, and how many they are."""


def dimension(replicates: int) -> None:
    """TwoNN over fresh samples; what is to be covered is the mean of its estimates."""
    print("| samples lie | dimensions | samples | mean estimate | sd | coverage |\n|---|---|---|---|---|---|")
    for kind, d, N in SPACES:
        random = np.random.default_rng([20, len(kind), d, N])
        values = np.empty(replicates)
        for replicate in range(replicates):
            x = random.standard_normal((d, N)) if kind == "normal" else random.uniform(0, 2 * np.pi, (d, N))
            values[replicate] = intrinsic_dimension(x if kind == "normal" else np.concatenate([np.cos(x), np.sin(x)]))[
                0
            ]
        low, high = dimension_ends(values, np.full(replicates, N))
        mean = values.mean()
        covered = ((low <= mean) & (mean <= high)).mean()
        print(f"| {kind} | {d} | {N} | {mean:.2f} | {values.std(ddof=1):.3f} | {covered:.3f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=["images", "epochs", "runs", "calibration", "dimension"])
    parser.add_argument("--replicates", type=int, default=1000)
    args = parser.parse_args()
    tables = {"images": images, "epochs": epochs, "runs": runs, "calibration": calibration, "dimension": dimension}
    tables[args.table](args.replicates)


if __name__ == "__main__":
    main()
