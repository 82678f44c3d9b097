"""A run in one row: what relates its epochs to each other and to their nulls."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from posthoc.analysis.intervals import correlation_over_epochs
from posthoc.analysis.measures import CAUSAL_EPOCHS, convergence, correlation, mean_finite, sd_finite, unevenness
from posthoc.analysis.records import EpochMetrics, Protocol, counted
from posthoc.analysis.settling import autocorrelation, settling
from posthoc.analysis.verdicts import MEASURES, TESTED, rejected, wanting

FloatArray = NDArray[np.float64]


def summarise(epochs: tuple[EpochMetrics, ...], protocol: Protocol, seed: int = 0) -> dict[str, Any]:
    """A run in one row: means over the epochs with an integration (the published convention), correlations, signals.

    `convergence` gives the epoch (or step) at which volatility has stayed below the threshold: `retrospective`, with
    z-scores over the whole run, which look into the future, and `causal`, with what was known at each epoch. `nulls`:
    in how many epochs each measure differs from each null, at a false discovery rate of 5 % (Benjamini & Hochberg 1995):
    over all epochs and tested measures for the deciding null, over the epochs for each of the references. Intervals of
    correlations: see `intervals.correlation_over_epochs`. `uneven`: why there is no volatility, where that is; `settling`:
    how often and how early it would settle on series that do not converge.
    """
    trained = [epoch for epoch in epochs if not epoch.untrained]

    def column(name: str) -> FloatArray:
        return np.array([getattr(epoch, name) for epoch in trained], dtype=float)

    there = np.isfinite(column("integration"))
    unit, numbers = counted(epochs)
    when = [at for at, epoch in zip(numbers, epochs, strict=True) if not epoch.untrained]
    accuracy = column("accuracy")
    best = int(np.nanargmax(accuracy)) if np.isfinite(accuracy).any() else None
    pairs = {
        "r_integration_metastability": (column("integration_z"), column("metastability_z")),
        "r_stability_index_accuracy": (column("stability_index"), accuracy),
    }
    signals = {
        name: convergence(column(key), protocol.threshold)
        for name, key in (("retrospective", "volatility"), ("causal", "volatility_causal"))
    }
    uneven = unevenness([epoch.step for epoch in trained], [epoch.epoch for epoch in trained])
    return {
        "unit": unit,
        "epochs": len(trained),
        "epochs_with_integration": int(there.sum()),
        "best_accuracy": None if best is None else float(accuracy[best]),
        "best_epoch": None if best is None else when[best],
        "hurst_mean": mean_finite(column("hurst")),
        "integration_mean": mean_finite(column("integration")),
        "integration_sd": sd_finite(column("integration")),
        "metastability_mean": mean_finite(column("metastability")),
        "metastability_sd": sd_finite(column("metastability")),
        "synchrony_mean": mean_finite(column("synchrony")),
        "stability_index_mean": mean_finite(column("stability_index")),
        "stability_index_sd": sd_finite(column("stability_index")),
        **{name: correlation(*pair) for name, pair in pairs.items()},
        **{f"{name}_interval": correlation_over_epochs(*pair) for name, pair in pairs.items()},
        "convergence": {name: None if index is None else when[index] for name, index in signals.items()},
        "uneven": uneven,
        "settling": {}
        if uneven or len(trained) < CAUSAL_EPOCHS
        else _settling(column("integration"), column("metastability"), when, protocol, seed),
        "nulls": _against_nulls(trained, protocol.axis),
    }


def _settling(
    h_eff: FloatArray, m: FloatArray, when: Sequence[int], protocol: Protocol, seed: int
) -> dict[str, dict[str, dict[str, Any]]]:
    """kind of series -> way -> in which share of series volatility settles, and by when in half of those."""
    phi = autocorrelation(h_eff), autocorrelation(m)
    found = settling(len(when), protocol.threshold, protocol.window, protocol.w_h, phi, seed)
    return {
        kind: {
            way: {"share": one.share, "median": None if one.median is None else when[one.median]}
            for way, one in ways.items()
        }
        for kind, ways in found.items()
    }


def _against_nulls(epochs: Sequence[EpochMetrics], axis: str) -> dict[str, dict[str, dict[str, Any]]]:
    """For each null and measure: its mean over epochs, and in how many epochs the measure differs or lacks draws."""
    nulls = next((epoch.nulls for epoch in reversed(epochs) if epoch.nulls), {})
    found: dict[str, dict[str, dict[str, Any]]] = {null: {} for null in nulls}
    for null, measures in nulls.items():
        tested = [key for key in TESTED if key in measures]
        decides = MEASURES[tested[0]].deciding[axis] == null
        for family in [tested] if decides else [[key] for key in tested]:
            compared = {
                key: [epoch.nulls[null][key] for epoch in epochs if key in epoch.nulls.get(null, {})] for key in family
            }
            p = np.concatenate([[one.p for one in compared[key]] for key in family])
            drawn = np.concatenate([[one.draws for one in compared[key]] for key in family])
            differs, lacking = rejected(p), wanting(p, drawn)
            of = np.repeat(np.arange(len(family)), [len(compared[key]) for key in family])
            for key, measure in MEASURES.items():
                if measure.tested in family and key in measures:
                    own = of == family.index(measure.tested)
                    means = [epoch.nulls[null][key].mean for epoch in epochs if key in epoch.nulls.get(null, {})]
                    found[null][key] = {
                        "null_mean": mean_finite(np.array(means)),
                        "epochs_told_apart": int(differs[own].sum()),
                        "epochs_wanting_draws": int(lacking[own].sum()),
                        "epochs": int(np.isfinite(p[own]).sum()),
                        "draws": int(drawn[own].max(initial=0)),
                        "decides": decides,
                    }
    return found
