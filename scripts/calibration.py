#!/usr/bin/env python3
"""How well the calibration of short series holds: bias of the debiased exponent and coverage of its 95 % interval.

For fractional Gaussian noise of every H and length, 2,000 series each: the debiased exponent of their mean alpha less
H, and the share of intervals that hold H.
"""

import numpy as np

from posthoc.analysis.calibration import calibration
from posthoc.analysis.dfa import default_scales, dfa
from posthoc.analysis.fractional import fractional_gaussian_noise

EXPONENTS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
LENGTHS = (25, 32, 58, 128, 512)
SERIES = 2000


def main() -> None:
    print("| T | " + " | ".join(f"H = {H}" for H in EXPONENTS) + " |")
    print("|---" * (len(EXPONENTS) + 1) + "|")
    for T in LENGTHS:
        scales = default_scales(T)
        known = calibration(T, tuple(scales.tolist()))
        cells = []
        for H in EXPONENTS:
            random = np.random.default_rng([T, round(1000 * H)])
            alpha = dfa(fractional_gaussian_noise(H, T, SERIES, random), scales).alpha
            low, high = known.interval(alpha)
            cells.append(f"{float(known.debias(alpha.mean())) - H:+.3f}, {np.mean((low <= H) & (high >= H)):.1%}")
        print(f"| {T} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
