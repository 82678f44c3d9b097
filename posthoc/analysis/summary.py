"""A run in one row: what relates its checkpoints to each other and to their nulls. The one summary, of whatever file."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from posthoc.analysis.arrays import FloatArray, correlation, mean_finite, sd_finite
from posthoc.analysis.intervals import correlation_over_epochs, mean_over_epochs
from posthoc.analysis.measures.behaviour import ACCURACY
from posthoc.analysis.measures.measure import Measure
from posthoc.analysis.measures.stability import CAUSAL_EPOCHS, convergence, uneven_of
from posthoc.analysis.origins import Checkpoint, trained
from posthoc.analysis.protocol import Protocol
from posthoc.analysis.records import (
    CORRELATIONS,
    WAYS,
    Against,
    Beside,
    Correlation,
    Measured,
    Overall,
    Settles,
    Summary,
    psi_with,
)
from posthoc.analysis.settling import autocorrelation, settling
from posthoc.analysis.verdicts import rejected, wanting


def counted(checkpoints: Sequence[Checkpoint]) -> tuple[str, list[int]]:
    """What a run's checkpoints are counted in, and the number of each: epochs, or steps, or places in their order.

    Epochs and steps only where all are known and no two are the same.
    """
    for unit in ("epoch", "step"):
        numbers = [getattr(checkpoint, unit) for checkpoint in checkpoints]
        if None not in numbers and len(set(numbers)) == len(numbers):
            return unit, numbers
    return "checkpoint", list(range(len(checkpoints)))


def overall(values: FloatArray, headline: bool, limits: tuple[float, float], nulls: dict[str, Against]) -> Overall:
    """A measure over the trained checkpoints [E]; the interval of its mean, of headline measures, kept within limits."""
    low, high = mean_over_epochs(values) if headline else (np.nan, np.nan)
    if np.isfinite(low):
        least, most = limits  # NaN limits nothing
        low, high = (float(np.fmin(np.fmax(end, least), most)) for end in (low, high))
    return Overall(mean_finite(values), sd_finite(values), low, high, int(np.isfinite(values).sum()), nulls)


def summarise(
    columns: Mapping[str, FloatArray], checkpoints: Sequence[Checkpoint], protocol: Protocol, seed: int = 0,
    accuracy_source: str = "", draws: int = 0, doubt: str | None = None, judge: Measure | None = ACCURACY,
) -> Summary:  # fmt: skip
    """The summary of a run from its measures' columns [E]; those that it has not count as undefined.

    judge: the measure by which the run is judged, None where there is none; accuracy_source: where that comes from.
    """
    rows = trained(checkpoints)
    unit, numbers = counted(checkpoints)
    when = [number for number, kept in zip(numbers, rows, strict=True) if kept]

    def column(key: str) -> FloatArray:
        return columns[key][rows] if key in columns else np.full(len(when), np.nan)

    score = column(judge.key) if judge else np.full(len(when), np.nan)
    best = int(np.nanargmax(-score if judge and judge.lower_is_better else score)) if np.isfinite(score).any() else None
    related = dict(CORRELATIONS)
    if judge and judge.key != "accuracy":
        related[psi_with(judge.symbol)] = (f"r(Psi, {judge.symbol})", "stability_index", judge.key)
    settled = {way: convergence(column(key), protocol.threshold) for way, key in WAYS.items()}
    uneven = uneven_of(checkpoints)
    return Summary(
        unit=unit,
        epochs=len(when),
        best_accuracy=float(score[best]) if best is not None and judge is ACCURACY else np.nan,
        best_epoch=None if best is None else when[best],
        accuracy_source=accuracy_source,
        convergence={way: None if index is None else when[index] for way, index in settled.items()},
        correlations={
            name: Correlation(
                symbol, first, second,
                correlation(column(first), column(second)), *correlation_over_epochs(column(first), column(second)),
            )
            for name, (symbol, first, second) in related.items() if first in columns
        },
        uneven=uneven,
        settling={}
        if uneven or "volatility" not in columns
        else _settling(column("integration"), column("metastability"), when, protocol, seed),
        draws=draws,
        seed=seed,
        doubt=doubt,
        judged_by=judge.key if judge else "",
    )  # fmt: skip


def _settling(
    integration: FloatArray, metastability: FloatArray, when: Sequence[int], protocol: Protocol, seed: int
) -> dict[str, dict[str, Settles]]:
    """kind of series -> way -> in which share of series volatility settles, and by when in half of those; empty where it
    cannot in any."""
    at = np.flatnonzero(np.isfinite(integration) & np.isfinite(metastability)).tolist()
    if len(at) < CAUSAL_EPOCHS:
        return {}
    phi = autocorrelation(integration), autocorrelation(metastability)
    return {
        kind: {
            way: replace(result, median=None if result.median is None else when[result.median])
            for way, result in ways.items()
        }
        for kind, ways in settling(at, protocol.threshold, protocol.window, protocol.w_h, phi, seed).items()
    }


def against_nulls(measures: Mapping[str, Measured], compared: NDArray[np.bool_], null: str) -> dict[str, Against]:
    """For each measure: one null's mean over the checkpoints `compared` [E], and in how many the measure differs or lacks
    draws, at a false discovery rate of 5 % (Benjamini & Hochberg 1995): over all of them and all measures that the null
    decides about, and over them for each of the others by itself."""
    beside = {key: measured.nulls[null] for key, measured in measures.items() if null in measured.nulls}
    tested = [key for key in beside if not measures[key].function_of]
    decided = [key for key in tested if measures[key].decided_by == null]
    results: dict[str, Against] = {}
    for family in filter(None, [decided, *([key] for key in tested if key not in decided)]):
        p = np.concatenate([beside[key].p[compared] for key in family])
        draws = np.concatenate([beside[key].draws[compared] for key in family])
        differs, lacking = (flags.reshape(len(family), -1) for flags in (rejected(p), wanting(p, draws)))
        for key in beside:
            of = measures[key].function_of or key
            if of in family:
                k = family.index(of)
                results[key] = _against(beside[key], compared, differs[k], lacking[k], beside[of], family is decided)
    return {key: results[key] for key in beside if key in results}


def _against(
    beside: Beside, compared: NDArray[np.bool_], differs: NDArray[np.bool_], lacking: NDArray[np.bool_], tested: Beside,
    decides: bool,
) -> Against:  # fmt: skip
    return Against(
        mean=mean_finite(beside.mean[compared]),
        differs=int(differs.sum()),
        wanting=int(lacking.sum()),
        epochs=int(np.isfinite(tested.p[compared]).sum()),
        draws=int(tested.draws[compared].max(initial=0)),
        decides=decides,
    )
