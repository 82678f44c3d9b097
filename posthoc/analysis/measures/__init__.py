"""The table of measures. All that is computed, drawn, stored, printed or plotted of a measure follows from its record.

A measure of your own is one more: `MEASURES["roughness"] = Measure("roughness", "Q", "roughness Q", "...",
of_series=roughness)`. Importing the table compiles nothing.
"""

from posthoc.analysis.measures import behaviour, integration, stability, synchrony
from posthoc.analysis.measures.measure import Epochs, Function, Measure, Reading, Scope, Series

__all__ = ["MEASURES", "Epochs", "Function", "Measure", "Reading", "Scope", "Series"]

MEASURES: dict[str, Measure] = {
    measure.key: measure
    for measure in (
        integration.HURST,
        integration.INTEGRATION,
        synchrony.METASTABILITY,
        synchrony.SYNCHRONY,
        *stability.MEASURES,
        behaviour.ACCURACY,
        behaviour.LOSS,
    )
}
