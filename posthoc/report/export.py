"""One figure as svg, png or pdf, of a width in points."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import vl_convert

from posthoc.errors import UsageError
from posthoc.files import replacing
from posthoc.report.figures.figure import Figure
from posthoc.report.theme import config

FONT = "Helvetica, Arial, Liberation Sans, DejaVu Sans, sans-serif"
FORMATS = ("svg", "png", "pdf")
LEAST = 60
"""Points that a panel needs at the least."""


def export(build: Callable[[int], Figure], path: Path, width: int, font: str = FONT, scale: float = 300 / 72) -> Figure:
    """Save the figure that `build` makes for panels of a given width, so wide in all (points), and return it.

    The ending of `path` says the form; scale: pixels per point of a png. A figure whose size is that of its cells is as
    wide as they are. Raises UsageError for another ending, or a width in which the labels leave no room.
    """
    form = path.suffix.lower().lstrip(".")
    if form not in FORMATS:
        raise UsageError(f"{path}: a figure is saved as {', '.join(FORMATS)}; give one of these endings.")
    figure = build(width)
    if figure.widest != 0:  # axes and legends take their share: measure it, and take it off
        excess = -(-(_width(figure, font, width) - width) // figure.columns)
        if width - excess < LEAST:
            raise UsageError(f"A width of {width} points leaves no room for the figure beside its labels; give more.")
        figure = build(width - excess)
    spec = _dressed(figure, font, width)
    with replacing(path) as temporary:
        if form == "svg":
            temporary.write_text(vl_convert.vegalite_to_svg(spec))
        elif form == "png":
            temporary.write_bytes(vl_convert.vegalite_to_png(spec, scale=scale))
        else:
            temporary.write_bytes(vl_convert.vegalite_to_pdf(spec))
    return figure


def _dressed(figure: Figure, font: str, width: int) -> dict[str, Any]:
    """A figure's specification with its settings."""
    spec = figure.specification
    return {**spec, "config": {**spec.get("config", {}), **config(font, width=width)}}


def _width(figure: Figure, font: str, width: int) -> int:
    svg = vl_convert.vegalite_to_svg(_dressed(figure, font, width))
    return int(float(svg.split('width="', 1)[1].split('"', 1)[0]))
