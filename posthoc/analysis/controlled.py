"""What is measured by document: of the file itself, and of a network that was given other tokens, paired with the text."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from posthoc.analysis.arrays import FloatArray, in_blocks, mean_finite
from posthoc.analysis.axes import Axis
from posthoc.analysis.axes.token import words
from posthoc.analysis.checkpoint import Measurement
from posthoc.analysis.documents import SIGNS, ends, enough, over_documents, resampled, signs_flipped
from posthoc.analysis.measures import Documents, Measure
from posthoc.analysis.nulls import NOTHING, Comparison, description
from posthoc.analysis.records import Beside, Measured
from posthoc.store import Activations

FILTER = "shuffle"
"""The control whose exponent is what the network itself makes of tokens without an order."""
Rows = list[tuple[float, float, float]]


def of_documents(table: Mapping[str, Measure], activations: Activations, axis: Axis, seed: int) -> dict[str, Measured]:
    """The measures of documents in a table that the file has what it takes for, with their intervals over documents."""
    rows: dict[str, list[FloatArray | None]] = {}
    broken = []
    tokens = activations.tokens
    blocks = in_blocks(len(activations.labels), 1 if tokens is None else tokens.shape[1])
    for e in range(len(activations)):
        parts = [Documents(activations, e, None if tokens is None else tokens[some], some) for some in blocks]
        broken.append(np.concatenate([part.broken for part in parts]))
        for key, measure in table.items():
            if measure.of_documents:
                given_by = [row for part in parts if (row := measure.of_documents(part)) is not None]
                rows.setdefault(key, []).append(np.concatenate(given_by) if len(given_by) == len(parts) else None)
    measures = {}
    for key, of_measure in rows.items():
        given = [row for row in of_measure if row is not None]
        if len(given) < len(of_measure):
            continue
        values = np.stack(given)
        value = np.array([_mean(row, without) for row, without in zip(values, broken, strict=True)])
        low, high = np.where(np.isfinite(value), over_documents(values, seed).T, np.nan)
        measures[key] = Measured(**description(table[key], axis), value=value, low=low, high=high)
    return measures


def _mean(values: FloatArray, broken: NDArray[np.bool_]) -> float:
    """Mean over documents [D] of those that have a value; NaN where one has none because the network failed with it."""
    counted = values[~np.isnan(values) | broken]
    with np.errstate(invalid="ignore"):
        return float(counted.mean()) if len(counted) else np.nan


def controlled(
    table: Mapping[str, Measure], results: Sequence[Measurement], measures: Mapping[str, Measured], seed: int
) -> dict[str, Measured]:
    """For every control and measure that is drawn: the measure under the control, and the text's less that.

    Keys `hurst_shuffle`, `hurst_less_shuffle`, ...: one draw of each document, and so no null of many draws; whether a
    difference is one is asked by flipping the signs of the documents' differences. Checkpoints without either are NaN.
    """
    names = dict.fromkeys((control, key) for result in results for control, of in result.controls.items() for key in of)
    made: dict[str, Measured] = {}
    for control, key in names:
        measured, measure, name = measures[key], table[key], control.replace(":", "")
        symbol = f"{measured.symbol}_filter" if (control, key) == (FILTER, "hurst") else f"{measured.symbol}({control})"
        about: dict[str, Any] = {"digits": measured.digits, "limits": measured.limits}
        made[f"{key}_{name}"] = Measured(
            symbol, f"{measured.title}, {words(control)}", about=f"{measured.about}; of {words(control)}",
            listed=(control, key) == (FILTER, "hurst"),
            **about, **_columns(measure, results, [result.controls.get(control, {}).get(key) for result in results], seed),
        )  # fmt: skip
        headline = control == FILTER and measured.headline
        made[f"{key}_less_{name}"] = Measured(
            f"d{measured.symbol}" + ("" if control == FILTER else f"({control})"),
            f"{measured.title}, text less {words(control)}",
            about="mean over documents of the difference", headline=headline, listed=headline, decided_by=SIGNS,
            digits=measured.digits, **_differences(measure, results, control, seed),
        )  # fmt: skip
    return made


def _columns(
    measure: Measure, results: Sequence[Measurement], tables: Sequence[FloatArray | None], seed: int
) -> dict[str, Any]:
    """Values with their intervals, of all units and by layer, of tables [1 + L, D] as measured."""
    rows = []
    for result, table in zip(results, tables, strict=True):
        if table is not None:
            means = np.array([mean_finite(row) for row in table])
            rows.append(measure.finished(np.column_stack([means, over_documents(table, seed)]), result.scope))
        else:
            rows.append(None)
    return _arranged(rows)


def _differences(measure: Measure, results: Sequence[Measurement], control: str, seed: int) -> dict[str, Any]:
    """Differences paired by document with their intervals, of all units and by layer, and what flipped signs say."""
    rows: list[FloatArray | None] = []
    tests: list[list[Comparison]] = []
    for result in results:
        text, other = result.documents.get(measure.key), result.controls.get(control, {}).get(measure.key)
        if text is None or other is None:
            rows.append(None)
            tests.append([])
            continue
        rows.append(np.array([_difference(measure, a, b, result, seed) for a, b in zip(text, other, strict=True)]))
        tests.append([signs_flipped(a - b, seed) for a, b in zip(text, other, strict=True)])
    compared = [of[0] if of else NOTHING for of in tests]
    table = _arranged(rows)
    layers = table["by_layer"].shape[1]
    if layers:
        p = [[test.p for test in of[1:]] if of else [np.nan] * layers for of in tests]
        table["by_layer_p"] = np.array(p)
    return table | {"nulls": {SIGNS: beside(compared)}}


def _difference(
    measure: Measure, text: FloatArray, other: FloatArray, result: Measurement, seed: int
) -> tuple[float, float, float]:
    """A difference of means of documents [D] as reported, and the ends of its interval; of those that have both."""
    both = np.isfinite(text) & np.isfinite(other)
    pair = np.array([text[both], other[both]])
    if not both.any():
        return np.nan, np.nan, np.nan
    first, second = measure.finished(pair.mean(axis=1), result.scope)
    if not enough(int(both.sum())):
        return first - second, np.nan, np.nan
    resamples = measure.finished(resampled(pair, seed), result.scope)
    low, high = ends(resamples[0] - resamples[1], int(both.sum()))
    return first - second, low, high


def _arranged(rows: Sequence[FloatArray | None]) -> dict[str, Any]:
    """Value, low and high of every checkpoint [1 + L, 3] as the columns of a `Measured`."""
    shape = next(row.shape for row in rows if row is not None)
    table = np.stack([np.full(shape, np.nan) if row is None else row for row in rows])
    columns = {"value": table[:, 0, 0], "low": table[:, 0, 1], "high": table[:, 0, 2]}
    by_layer = {f"by_layer{end}": table[:, 1:, k] for k, end in enumerate(("", "_low", "_high"))}
    return columns | by_layer if shape[0] > 1 else columns | {"by_layer": np.empty((0, 0))}


def beside(compared: Sequence[Comparison]) -> Beside:
    """One comparison for every checkpoint as columns."""
    numbers = {
        name: np.array([getattr(row, name) for row in compared]) for name in ("mean", "sd", "z", "p", "low", "high")
    }
    return Beside(**numbers, draws=np.array([row.draws for row in compared], dtype=np.int64))
