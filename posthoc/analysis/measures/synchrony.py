"""Phase synchrony of the units: metastability and synchrony, the spread and the mean of the Kuramoto order parameter."""

from posthoc.analysis.measures.measure import Measure, Reading, Series


def metastability(series: Series) -> Reading:
    """M, the standard deviation over time of R(t) = |mean over units of exp(i phi)|."""
    if series.halves is None:
        return Reading(series.phases.metastability)
    from posthoc.analysis.kuramoto import metastability_in_halves

    value, differences = metastability_in_halves(series.values, series.halves)
    return Reading(value, halves=differences)


METASTABILITY = Measure(
    "metastability",
    "M",
    "metastability M",
    "standard deviation over time of the units' Kuramoto order parameter",
    of_series=metastability,
    limits=(0.0, 1.0),
    margin=0.01,
)
SYNCHRONY = Measure(
    "synchrony",
    "synchrony",
    "synchrony",
    "mean over time of the units' Kuramoto order parameter",
    of_series=lambda series: series.phases.synchrony,
    nulls=False,
    limits=(0.0, 1.0),
    headline=False,
    layers=False,
)
