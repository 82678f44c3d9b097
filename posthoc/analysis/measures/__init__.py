"""The table of measures. All that is computed, drawn, stored, printed or plotted of a measure follows from its record.

A measure of your own is one more: `MEASURES["roughness"] = Measure("roughness", "Q", "roughness Q", "...",
of_series=roughness)`. Importing the table compiles nothing.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from posthoc.analysis.arrays import FloatArray
from posthoc.analysis.measures import behaviour, integration, stability, synchrony, tokens
from posthoc.analysis.measures.measure import Epochs, Function, Measure, Reading, Scope, Series
from posthoc.analysis.measures.tokens import Documents
from posthoc.analysis.protocol import Protocol
from posthoc.analysis.records import Checkpoint, trained

__all__ = ["MEASURES", "Documents", "Epochs", "Function", "Measure", "Reading", "Scope", "Series", "of_epochs"]

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
        *tokens.MEASURES,
    )
}


def of_epochs(
    columns: Mapping[str, FloatArray], protocol: Protocol, checkpoints: Sequence[Checkpoint]
) -> dict[str, FloatArray]:
    """The measures [E] that are made of others' columns [E], over the checkpoints that are trained."""
    rows, even = trained(checkpoints), not stability.uneven_of(checkpoints)
    known = {key: values[rows] for key, values in columns.items()}
    made = {}
    for key, measure in MEASURES.items():
        if measure.of_epochs:
            known[key] = measure.of_epochs(Epochs(known, protocol, even))
            made[key] = np.full(len(rows), np.nan)
            made[key][rows] = known[key]
    return made
