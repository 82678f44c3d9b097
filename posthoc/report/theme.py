"""How figures look: a few colours that the colour-blind can tell apart, and the settings common to all."""

from typing import Any

# Of Okabe and Ito (2008), but for the greys. A page replaces each by a variable of this name, light or dark.
COLOURS = {
    "ink": "#1b1f24",
    "muted": "#5c6672",
    "grid": "#dfe3e8",
    "value": "#0072b2",
    "second": "#d55e00",
    "third": "#009e73",
    "noise": "#9aa3ad",
    "other": "#cc9a00",
    "mark": "#b5179e",
    "region": "#f2f4f6",
    "paper": "#ffffff",
}
INK, MUTED, GRID, VALUE, SECOND, THIRD, NOISE, OTHER, MARK, REGION, PAPER = COLOURS.values()
NAMES = {colour: name for name, colour in COLOURS.items()}
SEQUENCE = "viridis"
HALO = {"stroke": PAPER, "strokeWidth": 4, "strokeJoin": "round"}
"""Of text over lines: drawn like this first, then as it is."""
LONGEST = 280
"""Pixels of a label; what is longer is cut, and whole in the tooltip."""


def config(font: str, size: float = 11, width: int = 600) -> dict[str, Any]:
    """Vega-Lite's settings for a figure in this font, so wide in all."""
    text = {"labelFont": font, "titleFont": font, "labelFontSize": size, "titleFontSize": size,
            "labelColor": MUTED, "titleColor": INK, "titleFontWeight": "normal", "labelLimit": min(LONGEST, 0.4 * width)}  # fmt: skip
    return {
        "background": PAPER,
        "font": font,
        "view": {"stroke": None},
        "axis": {**text, "gridColor": GRID, "domainColor": GRID, "tickColor": GRID, "labelOverlap": True, "labelSeparation": 5, "labelFlush": False},
        "legend": {**text, "labelLimit": LONGEST, "orient": "top", "title": None, "symbolType": "square", "columns": 3 if width >= 400 else 2, "offset": 6},
        "header": {**text, "labelFontWeight": "bold", "labelColor": INK},
        "title": {"font": font, "fontSize": size + 1, "color": INK, "anchor": "start", "frame": "group", "fontWeight": "bold",
                  "subtitleFont": font, "subtitleFontSize": size, "subtitleColor": MUTED},
        "text": {"font": font, "fontSize": size, "color": INK},
    }  # fmt: skip


def on_page(value: Any) -> Any:
    """A specification with every colour of ours as the page's variable for it."""
    if isinstance(value, dict):
        return {key: on_page(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [on_page(inner) for inner in value]
    return f"var(--{NAMES[value]})" if isinstance(value, str) and value in NAMES else value
