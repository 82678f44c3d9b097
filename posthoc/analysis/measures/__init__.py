"""The table of measures, and which of them are measured. All that is computed, drawn, stored, printed or plotted of a measure follows from its record.

A measure of your own is one more: `MEASURES["roughness"] = Measure("roughness", "Q", "roughness Q", "...",
of_series=roughness)`. Importing the table compiles nothing.
"""

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np

from posthoc.analysis.arrays import FloatArray
from posthoc.analysis.geometry import Representation
from posthoc.analysis.measures import (
    behaviour,
    collapse,
    integration,
    layers,
    merging,
    outputs,
    probing,
    stability,
    synchrony,
    tokens,
    weights,
)
from posthoc.analysis.measures.measure import Epochs, Function, Measure, Reading, Scope, Series
from posthoc.analysis.measures.snapshot import Estimate, Replay, Snapshot
from posthoc.analysis.measures.tokens import Documents
from posthoc.analysis.origins import Checkpoint, trained
from posthoc.analysis.protocol import Protocol
from posthoc.analysis.records import Measured, keys_by_symbol
from posthoc.errors import UsageError, meant, nearest

if TYPE_CHECKING:
    from posthoc.store import Activations

__all__ = [
    "MEASURES", "Asked", "Documents", "Epochs", "Estimate", "Function", "Measure", "Reading", "Replay", "Scope", "Series",
    "Snapshot", "chosen", "measure_called", "names", "of_epochs",
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
        *weights.MEASURES,
        merging.BARRIER,
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
    *(table.name for table in fields(Representation)),
)
"""What other columns of a table of checkpoints are called."""
OF_FILES = ("score_", "average_")
"""How measures are called of which a file holds as many as were recorded: other scores, and means of weights."""
SEVERAL = ("default", "all")
"""Names that stand for several measures."""


@dataclass(frozen=True)
class Asked:
    """What is asked for by a text of names with commas between, or by several of them and measures of the user's.

    names: the keys of those that are known, and the rest as they are.

    >>> Asked.of("default, churn, H_eff").names, Asked.of(["all"]).everything
    (('churn', 'integration'), True)
    """

    default: bool
    everything: bool
    names: tuple[str, ...]
    others: tuple[Measure, ...] = ()

    @classmethod
    def of(cls, names: str | Iterable[str | Measure], activations: "Activations | None" = None) -> "Asked":
        """Of a request as `compute_metrics` takes it: names or symbols, also of the file's own scores and means."""
        known = known_of(activations)
        words = names.split(",") if isinstance(names, str) else list(names)
        texts = [word.strip() for word in words if isinstance(word, str)]
        named = tuple(dict.fromkeys(key_of(text, known) for text in texts if text not in SEVERAL))
        return cls(
            "default" in texts, "all" in texts, named, tuple(word for word in words if isinstance(word, Measure))
        )

    @property
    def keys(self) -> set[str]:
        """Of the measures that are asked for one by one."""
        return {*self.names, *(measure.key for measure in self.others)}


def names() -> dict[str, str]:
    """How the measures are called that can be asked for, K standing for a number, with their titles."""
    return {key: measure.title for key, measure in MEASURES.items()} | merging.SPELT


def measure_called(name: str) -> Measure | None:
    """The measure of that name, whether or not a file has what it takes; None where there is none."""
    return MEASURES.get(name) or merging.mean_of(name)


def chosen(
    wanted: str | Iterable[str | Measure] | Asked = "default", unasked: Container[str] = (),
    activations: "Activations | None" = None,
) -> dict[str, Measure]:  # fmt: skip
    """The measures of these names, of which `default` and `all` stand for several, and those that they are made of.

    wanted: one text with commas between, or several, and measures of your own, see `Asked.of`; unasked: what `default` does not stand
    for; activations: the file, whose own scores and means of weights are among them. A measure of checkpoints that is
    named is listed in their table. Raises UsageError, with the nearest names, where one is unknown, and where one of your
    own has the name of another, or asks for labels that there are not.

    >>> list(chosen("volatility"))
    ['hurst', 'integration', 'metastability', 'stability_index', 'volatility']
    """
    asked = wanted if isinstance(wanted, Asked) else Asked.of(wanted, activations)
    known = known_of(activations)
    keys = {
        key for key, of in known.items() if asked.everything or (asked.default and of.default and key not in unasked)
    }
    for name in asked.names:
        known[name] = _named(name, known)
        keys.add(name)
    while more := {needed for key in keys for needed in _needs(known[key])} - keys:
        keys |= more
    table = {key: measure for key, measure in known.items() if key in keys}
    others: dict[str, Measure] = {}
    for measure in asked.others:
        _refuse_taken(measure.key, {*known, *others})
        if activations is not None and "labels" in measure.asks and not activations.labelled:
            raise UsageError(
                f"{measure.key} asks for labels, and the samples of {activations.path} have none; leave that measure out."
            )
        others[measure.key] = measure
    return table | others


def known_of(activations: "Activations | None") -> dict[str, Measure]:
    """All measures by their keys, with those of which a file holds as many as were recorded."""
    of_file = [] if activations is None else [*behaviour.scores_of(activations), *merging.means_of(activations)]
    return MEASURES | {measure.key: measure for measure in of_file}


def key_of(name: str, known: Mapping[str, Measure | Measured]) -> str:
    """The key of the measure of that name or symbol; the name itself where there is none.

    >>> key_of("H_eff", MEASURES), key_of("nosuch", MEASURES)
    ('integration', 'nosuch')
    """
    return meant(name, known, keys_by_symbol(known))


def _refuse_taken(key: str, known: Container[str]) -> None:
    """Raise UsageError where a measure of the user's would have the name of another, or of another column."""
    base, _, end = key.rpartition("_")
    taken = key in known or key in RESERVED or key.startswith(OF_FILES) or key in keys_by_symbol(MEASURES)
    if taken or (end in ("low", "high", "sd", "p") and base in known):
        raise UsageError(f"There is something called {key!r} already; give your measure another name.")


def _named(name: str, known: Mapping[str, Measure]) -> Measure:
    """The measure of a name, listed where it is one of checkpoints."""
    measure = known.get(name) or measure_called(name)
    if measure is None:
        raise UsageError(f"There is no measure {name!r}; {advice(name, known)}")
    return replace(measure, listed=True) if measure.of_checkpoint else measure


def advice(name: str, known: Mapping[str, Measure | Measured]) -> str:
    """What to write instead of a name that no measure has: the key of that which it, or its symbol, is nearest to."""
    return nearest(name, dict.fromkeys([*SEVERAL, *known, *names()]), keys_by_symbol(known))


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
