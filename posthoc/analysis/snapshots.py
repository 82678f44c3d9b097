"""What is measured of checkpoints as a file holds them: of their outputs and of what their layers represent."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from posthoc.analysis.axes import Axis
from posthoc.analysis.controlled import beside
from posthoc.analysis.measures import Estimate, Measure, Replay
from posthoc.analysis.nulls import compare, description
from posthoc.analysis.records import Aside, Measured

ENDS = ("", "_low", "_high")


def of_checkpoints(
    replay: Replay, axis: Axis, table: Mapping[str, Measure], progress: Callable[[int], None] | None = None
) -> dict[str, Measured]:
    """The measures of checkpoints that a table has, in one pass over the file."""
    measures = {key: of for key, of in table.items() if of.of_checkpoint}
    rows: dict[str, list[Estimate | Aside]] = {key: [] for key in measures}
    for e in range(len(replay) if measures else 0):
        for key, measure in measures.items():
            assert measure.of_checkpoint is not None
            rows[key].append(measure.of_checkpoint(replay.at(e)))
        if progress:
            progress(e)
    return {key: _measured(measure, axis, rows[key]) for key, measure in measures.items()}


def _measured(measure: Measure, axis: Axis, rows: Sequence[Estimate | Aside]) -> Measured:
    """A measure's columns, or why it has none."""
    about = description(measure, axis)
    estimates = [row if isinstance(row, Estimate) else Estimate() for row in rows]
    columns: dict[str, Any] = {
        end.lstrip("_") or "value": np.array([getattr(estimate, end.lstrip("_") or "value") for estimate in estimates])
        for end in ENDS
    }
    asides = [row for row in rows if isinstance(row, Aside)]
    if len(asides) == len(rows):
        return Measured(**about | {"listed": False, "decided_by": ""}, aside=asides[0], value=columns["value"])
    if not np.isfinite(columns["low"]).any():
        columns |= {"low": np.empty(0), "high": np.empty(0)}
    names = dict.fromkeys(null for estimate in estimates for null in estimate.drawn)
    nothing = np.empty(0)
    compared = {
        null: beside([compare(estimate.value, estimate.drawn.get(null, nothing)) for estimate in estimates])
        for null in names
    }
    return Measured(**about, **columns, **_by_layer(estimates), nulls=compared)


def _by_layer(estimates: Sequence[Estimate]) -> dict[str, Any]:
    """The columns by layer of those that there are."""
    tables = {}
    for name in (f"by_layer{end}" for end in ENDS):
        rows = [getattr(estimate, name) for estimate in estimates]
        L = max((len(row) for row in rows if row is not None), default=0)
        if L:
            tables[name] = np.stack([np.full(L, np.nan) if row is None else row for row in rows])
    return tables
