"""What is measured of checkpoints as a file holds them: of their outputs and of what their layers represent."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from posthoc.analysis.axes import Axis
from posthoc.analysis.controlled import beside
from posthoc.analysis.measures import Estimate, Measure, Replay
from posthoc.analysis.nulls import compare, description
from posthoc.analysis.records import Aside, Measured

ENDS = ("", "_low", "_high")


Row = Mapping[str, Estimate | Aside]
"""What measures of checkpoints are of one of them, by their keys."""


def of_checkpoint(replay: Replay, table: Mapping[str, Measure], e: int) -> Row:
    """The measures of checkpoints that a table has, of the checkpoint in a row of the file."""
    return {key: measure.of_checkpoint(replay.at(e)) for key, measure in table.items() if measure.of_checkpoint}


def of_checkpoints(axis: Axis, table: Mapping[str, Measure], rows: Sequence[Row]) -> dict[str, Measured]:
    """The same of all checkpoints, as columns."""
    return {
        key: _measured(measure, axis, [row[key] for row in rows])
        for key, measure in table.items()
        if measure.of_checkpoint
    }


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
