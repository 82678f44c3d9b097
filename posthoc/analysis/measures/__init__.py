"""The table of measures, and which of them are measured. All that is computed, drawn, stored, printed or plotted of a measure follows from its record.

A measure of your own is one more: `MEASURES["roughness"] = Measure("roughness", "Q", "roughness Q", "...",
of_series=roughness)`. Importing the table compiles nothing.
"""

import difflib
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import fields, replace

import numpy as np

from posthoc.analysis.arrays import FloatArray
from posthoc.analysis.geometry import Representation
from posthoc.analysis.measures import (
    behaviour,
    collapse,
    integration,
    layers,
    outputs,
    probing,
    stability,
    synchrony,
    tokens,
)
from posthoc.analysis.measures.measure import Epochs, Function, Measure, Reading, Scope, Series
from posthoc.analysis.measures.snapshot import Estimate, Replay, Snapshot
from posthoc.analysis.measures.tokens import Documents
from posthoc.analysis.protocol import Protocol
from posthoc.analysis.records import Checkpoint, trained
from posthoc.errors import UsageError

__all__ = [
    "MEASURES", "Documents", "Epochs", "Estimate", "Function", "Measure", "Reading", "Replay", "Scope", "Series", "Snapshot",
    "chosen", "of_epochs",
]  # fmt: skip

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
        *outputs.MEASURES,
        *layers.MEASURES,
        *probing.MEASURES,
        *collapse.MEASURES,
        *tokens.MEASURES,
    )
}


RESERVED = (
    "epoch",
    "step",
    "untrained",
    "dead",
    "reasons",
    "barrier",
    *(table.name for table in fields(Representation)),
)
"""What other columns of a table of checkpoints are called."""


def chosen(names: str | Iterable[str | Measure] = "default", unasked: Container[str] = ()) -> dict[str, Measure]:
    """The measures of these names, of which `default` and `all` stand for several, and those that they are made of.

    names: one text with commas between, or several, and measures of your own; unasked: what `default` does not stand
    for. A measure of checkpoints that is named is listed in their table. Raises UsageError, with the nearest names, where one is unknown, and where one of your own has the name of another.

    >>> list(chosen("volatility"))
    ['hurst', 'integration', 'metastability', 'stability_index', 'volatility']
    """
    wanted: set[str] = set()
    by_name: set[str] = set()
    others: dict[str, Measure] = {}
    for name in names.split(",") if isinstance(names, str) else names:
        if isinstance(name, Measure):
            _refuse_taken(name.key, others)
            others[name.key] = name
        else:
            wanted |= _named(name.strip(), unasked)
            by_name.add(name.strip())
    while more := {needed for key in wanted for needed in _needs(MEASURES[key])} - wanted:
        wanted |= more
    listed = {key: replace(MEASURES[key], listed=True) for key in by_name & wanted if MEASURES[key].of_checkpoint}
    return {key: listed.get(key, measure) for key, measure in MEASURES.items() if key in wanted} | others


def _refuse_taken(key: str, others: Mapping[str, Measure]) -> None:
    """Raise UsageError where a measure of the user's would have the name of another, or of another column."""
    base, _, end = key.rpartition("_")
    known = MEASURES.keys() | others.keys()
    taken = key in known or key in RESERVED or key.startswith(("score_", "weights_", "average_"))
    if taken or (end in ("low", "high", "sd", "p") and base in known):
        raise UsageError(f"There is something called {key!r} already; give your measure another name.")


def _named(name: str, unasked: Container[str]) -> set[str]:
    """Which measures one name stands for."""
    if name in ("all", "default"):
        return {key for key, measure in MEASURES.items() if name == "all" or (measure.default and key not in unasked)}
    if name in MEASURES:
        return {name}
    known = {symbol.lower(): key for key, measure in MEASURES.items() for symbol in (measure.symbol, key)}
    near = list(dict.fromkeys(known[text] for text in difflib.get_close_matches(name.lower(), known, 3)))
    advice = f"did you mean {' or '.join(near)}?" if near else f"there are default, all, {', '.join(MEASURES)}."
    raise UsageError(f"There is no measure {name!r}; {advice}")


def _needs(measure: Measure) -> tuple[str, ...]:
    return (measure.of_measure.of,) if measure.of_measure else measure.needs


def of_epochs(
    table: Mapping[str, Measure],
    columns: Mapping[str, FloatArray],
    protocol: Protocol,
    checkpoints: Sequence[Checkpoint],
) -> dict[str, FloatArray]:
    """The measures [E] of a table that are made of others' columns [E], over the checkpoints that are trained."""
    rows, even = trained(checkpoints), not stability.uneven_of(checkpoints)
    known = {key: values[rows] for key, values in columns.items()}
    made = {}
    for key, measure in table.items():
        if measure.of_epochs:
            known[key] = measure.of_epochs(Epochs(known, protocol, even))
            made[key] = np.full(len(rows), np.nan)
            made[key][rows] = known[key]
    return made
