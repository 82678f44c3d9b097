"""metrics.json of version 1, read as version 2 has it: from one object for every checkpoint to columns of measures."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from posthoc.analysis.axes import AXES
from posthoc.analysis.intervals import correlation_over_epochs
from posthoc.analysis.measures import MEASURES
from posthoc.analysis.nulls import deciding, description, words_of
from posthoc.analysis.records import CORRELATIONS, Interval
from posthoc.analysis.stored import plain
from posthoc.analysis.summary import overall
from posthoc.recording import from_version_1

KEYS = (
    "hurst", "integration", "metastability", "synchrony", "integration_z", "metastability_z", "stability_index",
    "volatility", "stability_index_causal", "volatility_causal", "accuracy", "loss",
)  # fmt: skip
SUMMARY = ("epochs", "best_accuracy", "best_epoch", "accuracy_source", "convergence", "uneven", "settling", "draws", "seed",
           "doubt")  # fmt: skip
Content = dict[str, Any]


def upgraded(old: Content) -> Content:
    """Content of version 1 as of version 2. What is not as version 1 has it raises, or is found when the result is read."""
    axis = AXES[old["protocol"].get("axis", "image")]
    epochs, summary = old["epochs"], old["summary"]
    layers = old["representation"]["layers"]
    new: Content = {
        name: old[name] for name in ("protocol", "scales", "fluctuation", "versions", "created") if name in old
    }
    new["input"] = {name: old["input"][name] for name in ("path", "sha256", "probe_sha256")}
    new["input"]["recording"] = from_version_1(old["input"]["config"]).to_dict()
    new["axis"] = plain(axis.words)
    new["layers"] = layers
    new["units"] = [{"layer": unit["layer"], "channel": unit["channel"]} for unit in old["channels"]]
    new["checkpoints"] = [
        {name: row[name] for name in ("epoch", "step", "untrained", "reasons")} | {"dead": row["n_dead"]}
        for row in epochs
    ]
    new["nulls"] = plain(words_of(axis.key))
    new["measures"] = {key: _measure(key, old) for key in KEYS}
    new["summary"] = {name: summary[name] for name in SUMMARY if name in summary}
    new["summary"] |= {"unit": summary["unit"]} if "unit" in summary else _in_one_unit(summary, epochs)
    new["summary"]["correlations"] = {
        name: {"symbol": symbol, "first": first, "second": second, "r": summary[f"r_{name}"]}
        | dict(zip(("low", "high"), plain(_interval(epochs, first, second)), strict=True))
        for name, (symbol, first, second) in CORRELATIONS.items()
    }
    new["representation"] = {name: table for name, table in old["representation"].items() if name != "layers"}
    new["phase_locking"] = {name: old["phase_locking"][name] for name in ("plv", "ppc")}
    return new


def _in_one_unit(summary: Content, epochs: Sequence[Content]) -> Content:
    """What files that name no unit count by: the epoch of a checkpoint, or else its step; where only some have epochs, places."""
    with_epoch = {row["epoch"] is not None for row in epochs}
    if len(with_epoch) == 1:
        return {"unit": "epoch" if True in with_epoch else "step"}
    numbers = [row["step"] if row["epoch"] is None else row["epoch"] for row in epochs]
    places = {number: k for k, (number, row) in enumerate(zip(numbers, epochs, strict=True)) if not row["untrained"]}
    convergence = {way: places.get(number) for way, number in summary["convergence"].items()}
    return {"unit": "checkpoint", "best_epoch": places.get(summary["best_epoch"]), "convergence": convergence}


def _measure(key: str, old: Content) -> Content:
    measure, axis, epochs = MEASURES[key], AXES[old["protocol"].get("axis", "image")], old["epochs"]
    value = [row.get(key) if key == "loss" else row[key] for row in epochs]
    columns: Content = {"value": value}
    if key in ("hurst", "integration", "metastability"):
        ends = [row[f"{key}_interval"] for row in epochs]
        columns |= {"low": [low for low, _ in ends], "high": [high for _, high in ends]}
    if key == "hurst":
        columns["sd"] = [row["hurst_sd"] for row in epochs]
        channels = [unit["hurst"] for unit in old["channels"]]
        columns["by_unit"] = [list(row) for row in zip(*channels, strict=True)]
    by_layer = old.get("layers", {}).get(key)
    if by_layer:
        columns["by_layer"] = by_layer
    trained = [number for number, row in zip(value, epochs, strict=True) if not row["untrained"]]
    against = {null: _against(of[key]) for null, of in old["summary"].get("nulls", {}).items() if key in of}
    summary = overall(np.array([math.nan if number is None else number for number in trained], dtype=float),
                      measure.headline, measure.limits, {})  # fmt: skip
    drawn = old["summary"].get("draws", 0)
    for null, row in against.items():
        row["draws"] = drawn if row["draws"] is None else row["draws"]
        row["decides"] = null == deciding(measure, axis)
    nulls = dict.fromkeys(null for row in epochs for null, of in row["nulls"].items() if key in of)
    return {
        **plain(description(measure, axis)),
        **columns,
        "nulls": {null: _beside([row["nulls"].get(null, {}).get(key, {}) for row in epochs]) for null in nulls},
        "summary": plain(summary) | {"nulls": against},
    }


def _interval(epochs: Sequence[Content], first: str, second: str) -> Interval:
    """Of a correlation, anew: early files have one of another kind."""
    trained = [row for row in epochs if not row["untrained"]]
    columns = ([math.nan if row[key] is None else row[key] for row in trained] for key in (first, second))
    return correlation_over_epochs(*columns)


def _beside(rows: Sequence[Content]) -> Content:
    names = ("mean", "sd", "z", "p", "low", "high")
    return {name: [row.get(name) for row in rows] for name in names} | {"draws": [row.get("draws", 0) for row in rows]}


def _against(row: Content) -> Content:
    return {
        "mean": row["null_mean"],
        "differs": row["epochs_told_apart"],
        "wanting": row.get("epochs_wanting_draws", 0),
        "epochs": row["epochs"],
        "draws": row.get("draws"),
    }
