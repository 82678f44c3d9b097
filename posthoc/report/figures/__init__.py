"""The table of figures: what the report shows and `posthoc report --figure` saves.

A figure of your own is one more: `FIGURES["toy"] = Kind("toy", "what it shows", build)`.
"""

from importlib import import_module
from typing import Any

import altair as alt

from posthoc.analysis.records import RunMetrics
from posthoc.errors import UsageError
from posthoc.report.figures.figure import Figure, Kind, Of
from posthoc.report.names import MODULES
from posthoc.report.theme import config

__all__ = ["FIGURES", "Figure", "Kind", "Of", "chart", "figures_of"]

FIGURES: dict[str, Kind] = {
    name: getattr(import_module(f"{__name__}.{module}"), name.upper()) for name, module in MODULES.items()
}


def figures_of(what: Of) -> dict[str, Kind]:
    """The figures of a run, of an audit or of several runs."""
    return {name: kind for name, kind in FIGURES.items() if kind.of is what}


def chart(metrics: RunMetrics, name: str, epoch: int | None = None) -> Any:
    """A figure of a run as an Altair chart with its title; see `RunMetrics.chart`."""
    known = figures_of(Of.RUN)
    if name not in known:
        raise UsageError(f"No figure of one run is called {name!r}; there are {', '.join(known)}.")
    figure = known[name].build(metrics, epoch, 480)
    lines = [text for text in (figure.explanation, figure.caution) if text]
    spec = figure.specification
    rows = spec.pop("datasets")
    title = {"text": figure.title, "subtitle": lines}
    return alt.Chart.from_dict(_inline(spec, rows) | {"title": title, "config": config("sans-serif")})


def _inline(node: Any, rows: dict[str, Any]) -> Any:
    """With the rows where they are used, as charts have them that can be put beside others."""
    if isinstance(node, dict):
        return {
            key: {"values": rows[inner["name"]]} if key == "data" else _inline(inner, rows)
            for key, inner in node.items()
        }
    return [_inline(inner, rows) for inner in node] if isinstance(node, list) else node
