"""Tables as terminal, CSV, Markdown and LaTeX have them; each escapes what comes from elsewhere in its own way."""

import csv
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from posthoc.cli.exits import echo, write
from posthoc.cli.output import cell, table
from posthoc.shown import shown

FORMS = ("csv", "latex", "markdown")
LATEX = {
    "\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "`": r"\textasciigrave{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "[": "{[}", "*": "{*}", '"': "{''}",
    **{sign: f"\\{sign}" for sign in "_%&#$\x7b\x7d"},
}  # fmt: skip
"""Signs that mean something to LaTeX; [ and * would be taken as an argument of the line's end before them."""
FORMULA = re.compile(r"[=+\-@＝＋－＠]")
"""How a cell begins that a spreadsheet would compute."""


@dataclass(frozen=True)
class Column:
    """A column: its title, and what its numbers are called in CSV: one name, two of an interval (low, high), or three
    of a number with its interval (value, low, high)."""

    title: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class Sheet:
    """A table: a row has a cell per column, a tuple where the column has several names; notes stand below."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Any]]
    notes: Sequence[str] = field(default_factory=tuple)


def column(title: str, *names: str) -> Column:
    """A column that is called as its title says, if no names are given.

    >>> column("best accuracy").names
    ('best_accuracy',)
    """
    return Column(title, names or (title.replace(" ", "_"),))


def print_sheets(sheets: Sequence[Sheet], form: str | None) -> None:
    """Print tables one below the other; form: None for a person, or one of FORMS."""
    for number, sheet in enumerate(sheets):
        if number:
            echo()
        if form == "csv":
            write(as_csv(sheet))
        elif form == "latex":
            write(as_latex(sheet))
        elif form == "markdown":
            write(as_markdown(sheet))
        else:
            echo(sheet.title)
            table([one.title for one in sheet.columns], [[_text(value) for value in row] for row in sheet.rows])
            for note in sheet.notes:
                echo(note)


def as_csv(sheet: Sheet) -> str:
    """One value a column, each under a name of its own; an empty field where there is none."""
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    writer.writerow([_inert(name) for one in sheet.columns for name in one.names])
    for row in sheet.rows:
        writer.writerow([
            _inert(value)
            for one, values in zip(sheet.columns, row, strict=True)
            for value in (values if len(one.names) > 1 else (values,))
        ])  # fmt: skip
    return text.getvalue()


def _inert(value: Any) -> Any:
    """A field that no spreadsheet computes: text that begins like a formula, and is no number, has an apostrophe first."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if not isinstance(value, str):
        return value
    text = shown(value)
    try:
        float(text)
    except ValueError:
        return f"'{text}" if FORMULA.match(text) else text
    return text


def as_markdown(sheet: Sheet) -> str:
    """A table as GitHub has them, title above and notes below."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(map(_markdown, cells)) + " |"

    lines = [f"**{_markdown(sheet.title)}**", "", line([one.title for one in sheet.columns])]
    lines += ["|---" * len(sheet.columns) + "|", *(line([cell(_text(value)) for value in row]) for row in sheet.rows)]
    lines += ["", *(re.sub(r"^([-+=])", r"\\\1", _markdown(note)) for note in sheet.notes)]
    return "\n".join(lines) + "\n"


def _markdown(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|~#$&])", r"\\\1", shown(text))


def as_latex(sheet: Sheet) -> str:
    """A tabular for booktabs, title and notes as comments."""
    lines = [f"% {_latex(sheet.title)}", r"\begin{tabular}{" + "l" * len(sheet.columns) + "}", r"\toprule"]
    lines += [" & ".join(_latex(one.title) for one in sheet.columns) + r" \\", r"\midrule"]
    lines += [" & ".join(_latex(cell(_text(value))) for value in row) + r" \\" for row in sheet.rows]
    lines += [r"\bottomrule", r"\end{tabular}", "", *(f"% {_latex(note)}" for note in sheet.notes)]
    return "\n".join(lines) + "\n"


def _latex(text: str) -> str:
    return "".join(LATEX.get(sign, sign) for sign in shown(text))


def _text(value: Any) -> Any:
    """An interval as low..high, a number with its interval as value (low..high); anything else as it is."""
    if not isinstance(value, tuple):
        return value
    *first, low, high = value
    if not first:
        return None if math.isnan(low) else f"{low:.3f}..{high:.3f}"
    return f"{first[0]:+.3f}" if math.isnan(low) else f"{first[0]:+.3f} ({low:+.3f}..{high:+.3f})"
