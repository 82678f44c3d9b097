"""Fluctuation functions as metrics.json holds them, and any record as plain values of JSON."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any

import numpy as np

from posthoc.analysis.arrays import FloatArray, rounded
from posthoc.typed import Array, Range, Shape

Logarithms = Annotated[FloatArray, Array(("S",), -700, 700)]
"""Whose exponentials a float can hold."""


@dataclass(frozen=True, eq=False)
class Curve:
    """log F(s), less its mean over the scales, of the units or of a null: mean and ends of the middle 95 %."""

    mean: Logarithms
    low: Logarithms
    high: Logarithms


@dataclass(frozen=True)
class Fluctuation:
    """The curves of one checkpoint over its scales S: `units`, and every null of the exponent by its name."""

    scales: Annotated[tuple[int, ...], Shape(("S",)), Range(1)]
    curves: dict[str, Curve]


def plain(value: Any) -> Any:
    """Nested values as JSON has them: records as objects, arrays and tuples as lists, numbers that are not finite as None.

    Tables, of arrays with more than one dimension and of curves, are rounded to `arrays.DIGITS`.
    """
    if is_dataclass(value) and not isinstance(value, type):
        curve = isinstance(value, Curve)
        items = {item.name: getattr(value, item.name) for item in fields(value)}
        return {name: plain(rounded(inner) if curve else inner) for name, inner in items.items()}
    if isinstance(value, np.ndarray):
        return plain((rounded(value) if value.ndim > 1 else value).tolist())
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
