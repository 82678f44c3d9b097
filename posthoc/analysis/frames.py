"""A run's measures as columns, one row per checkpoint: of metrics.csv, pandas and xarray."""

import csv
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from posthoc.analysis.arrays import rounded
from posthoc.errors import PosthocError
from posthoc.files import replacing

if TYPE_CHECKING:
    import pandas
    import xarray

    from posthoc.analysis.arrays import FloatArray
    from posthoc.analysis.records import RunMetrics


def flat(metrics: "RunMetrics") -> dict[str, list[Any]]:
    """Every number of every checkpoint as columns [E]: `integration`, `integration_low`, `integration_order_p`, ..."""
    columns = _of_checkpoints(metrics)
    for table, values in by_layer(metrics).items():
        for layer, column in zip(metrics.layers, rounded(values).T.tolist(), strict=True):
            name = f"{table}_{layer}"
            while name in columns:  # as H of a layer that is called `low`
                name = f"{table}_layer{name.removeprefix(table)}"
            columns[name] = column
    return columns


def _of_checkpoints(metrics: "RunMetrics") -> dict[str, list[Any]]:
    """All but what there is of every layer."""
    checkpoints, measures = metrics.checkpoints, metrics.measures
    columns: dict[str, list[Any]] = {
        "epoch": ["" if checkpoint.epoch is None else checkpoint.epoch for checkpoint in checkpoints],
        "step": ["" if checkpoint.step is None else checkpoint.step for checkpoint in checkpoints],
        "untrained": [checkpoint.untrained for checkpoint in checkpoints],
    }
    for key, measured in measures.items():
        if measured.aside:
            continue
        columns[key] = measured.value.tolist()
        for name in ("low", "high", "sd"):
            if (values := getattr(measured, name)).size:
                columns[f"{key}_{name}"] = values.tolist()
    columns["dead"] = [checkpoint.dead for checkpoint in checkpoints]
    columns["reasons"] = [
        "; ".join(f"{count} {why}" for why, count in checkpoint.reasons.items()) for checkpoint in checkpoints
    ]
    for key, measured in measures.items():
        for null, beside in measured.nulls.items():
            columns |= {f"{key}_{null}_{name}": values.tolist() for name, values in vars(beside).items()}
    return columns


def save_csv(metrics: "RunMetrics", path: Path) -> None:
    """Write one row per checkpoint, with an empty field where a measure is undefined."""
    columns = flat(metrics)
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(
            ["" if value != value else value for value in row] for row in zip(*columns.values(), strict=True)
        )


def by_layer(metrics: "RunMetrics") -> "dict[str, FloatArray]":
    """What there is of every layer, by name, [E, L]."""
    tables = {
        f"{key}{end}": getattr(measured, f"by_layer{end}")
        for key, measured in metrics.measures.items() for end in ("", "_low", "_high", "_p")
    } | vars(metrics.representation)  # fmt: skip
    return {name: table for name, table in tables.items() if table.ndim == 2 and table.size}


def to_pandas(metrics: "RunMetrics") -> "pandas.DataFrame":
    """The columns as a table; see `RunMetrics.to_pandas`."""
    require("pandas")
    import pandas

    columns = flat(metrics)
    places = {name: columns.pop(name) for name in ("epoch", "step")}
    unit = metrics.summary.unit
    others = {name: values for name, values in places.items() if name != unit and any(value != "" for value in values)}
    return pandas.DataFrame(others | columns, index=pandas.Index(metrics.when, name=unit))


def to_xarray(metrics: "RunMetrics") -> "xarray.Dataset":
    """Columns and what there is of every layer as a data set; see `RunMetrics.to_xarray`."""
    require("xarray")
    import xarray

    unit, layered = metrics.summary.unit, by_layer(metrics)
    columns = {
        name: (unit, np.asarray(values))
        for name, values in _of_checkpoints(metrics).items() if name not in ("epoch", "step", "reasons")
    }  # fmt: skip
    coordinates = {
        unit: metrics.when,
        "layer": list(metrics.layers),
    }
    data = xarray.Dataset(
        columns | {f"{name}_by_layer": ((unit, "layer"), table) for name, table in layered.items()},
        coordinates,
        {"model": metrics.recording.provenance.model, "probe": metrics.recording.provenance.probe},
    )
    for key, measured in metrics.measures.items():
        if key in data:
            data[key].attrs["long_name"] = measured.title
    return data


def require(library: str) -> None:
    """Raise PosthocError where a library of an extra of its name is not installed."""
    if find_spec(library) is None:
        raise PosthocError(f"This needs {library}: pip install 'posthoc[{library}]'.")
