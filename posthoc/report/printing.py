"""A table, printed five ways: to a terminal, as CSV, LaTeX, Markdown or HTML, each escaping foreign text in its own way."""

import csv
import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from posthoc.errors import UsageError, nearest
from posthoc.shown import decimals, shown

LATEX = {
    "\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "`": r"\textasciigrave{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "[": "{[}", "*": "{*}", '"': "{''}",
    **{sign: f"\\{sign}" for sign in "_%&#$\x7b\x7d"},
}  # fmt: skip
"""Signs that mean something to LaTeX; [ and * would be taken as an argument of the line's end before them."""
NOTHING = 1e-6
"""Of an interval's width: an end nearer to 0 is rounding, and shown as 0."""
FORMULA = re.compile(r"[=+\-@＝＋－＠]")
"""How a cell begins that a spreadsheet would compute."""
Lines = list[tuple[str, str]]
"""Labelled lines."""


@dataclass(frozen=True)
class Column:
    """A column: its title, what its numbers are called in CSV — one name, two of an interval (low, high), or three of a
    number with its interval (value, low, high) — and to how many digits a page shows them.

    of: the title of the column that it belongs to, if to one, by which `full` tells it from others of its title; spare: where there is no room for all columns, those of the highest number go first; 0 never does.
    """

    title: str
    names: tuple[str, ...]
    digits: int = 4
    spare: int = 0
    of: str = ""

    @property
    def full(self) -> str:
        """The title with that of the column that it belongs to."""
        return f"{self.of}: {self.title}" if self.of else self.title


@dataclass(frozen=True)
class Table:
    """A table: a row has a cell per column, a tuple where the column has several names; below stand cautions and notes."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Any]]
    notes: Sequence[str] = ()
    cautions: Sequence[str] = ()

    @property
    def below(self) -> list[str]:
        """What stands below it, the cautions first."""
        return [*self.cautions, *self.notes]

    def flat(self) -> dict[str, list[Any]]:
        """The columns by their names, one value in a row: a cell of several names is several."""
        columns: dict[str, list[Any]] = {}
        for k, column in enumerate(self.columns):
            cells = [row[k] if len(column.names) > 1 else (row[k],) for row in self.rows]
            columns |= {name: [values[n] for values in cells] for n, name in enumerate(column.names)}
        return columns

    def only(self, places: Sequence[int]) -> "Table":
        """With the columns at these places."""
        rows = [[row[k] for k in places] for row in self.rows]
        return replace(self, columns=[self.columns[k] for k in places], rows=rows)

    def selected(self, names: str) -> "Table":
        """With the columns that are named, by title or as in CSV, with commas between, the first before them; or `all`.

        Raises UsageError for one that is not there.
        """
        if names.strip() == "all":
            return self
        places = [0]
        for name in filter(None, map(str.strip, names.split(","))):
            of_name = [k for k, column in enumerate(self.columns) if name in (column.title, *column.names)]
            if not of_name:
                known = [column.names[0] for column in self.columns[1:]]
                raise UsageError(f"--columns: there is no column {name!r}; {nearest(name, known)}")
            places += of_name
        return self.only(list(dict.fromkeys(places)))

    def fitting(self, room: float) -> "tuple[Table, list[Column]]":
        """Without as many columns as must go for the rest to fit into so many letters, and those that went."""
        from rich.cells import cell_len

        widths = [
            max(map(cell_len, [column.title, *(cell(as_text(row[k])) for row in self.rows)]))
            for k, column in enumerate(self.columns)
        ]
        kept, gone = list(range(len(widths))), []
        while sum(widths[k] + 2 for k in kept) - 2 > room:
            last = max(kept, key=lambda k: (self.columns[k].spare, k))
            if not self.columns[last].spare:
                break
            kept.remove(last)
            gone.append(last)
        return self.only(kept), [self.columns[k] for k in sorted(gone)]


def column(title: str, *names: str, spare: int = 0, of: str = "") -> Column:
    """A column that is called as its title says, if no names are given.

    >>> column("best accuracy").names
    ('best_accuracy',)
    """
    return Column(title, names or (title.replace(" ", "_"),), spare=spare, of=of)


def as_csv(table: Table) -> str:
    """One value a column, each under a name of its own; an empty field where there is none."""
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    writer.writerow([_inert(name) for column in table.columns for name in column.names])
    for row in table.rows:
        writer.writerow([
            _inert(value)
            for column, values in zip(table.columns, row, strict=True)
            for value in (values if len(column.names) > 1 else (values,))
        ])  # fmt: skip
    return text.getvalue()


def _inert(value: Any) -> Any:
    """A field that no spreadsheet computes: text that begins like a formula, and is no number, has an apostrophe first."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float):
        return value + 0.0  # no -0.0
    if not isinstance(value, str):
        return value
    text = shown(value)
    try:
        float(text)
    except ValueError:
        return f"'{text}" if FORMULA.match(text) else text
    return text


def as_markdown(table: Table) -> str:
    """A table as GitHub has them, title above and notes below."""
    header = [_markdown(column.title) for column in table.columns]
    rows = [[_markdown(cell(as_text(value))) for value in row] for row in table.rows]
    notes = [re.sub(r"^([-+=])", r"\\\1", _markdown(note)) for note in table.below]
    return "\n".join([f"**{_markdown(table.title)}**", "", markdown_grid(header, rows), "", *notes]) + "\n"


def markdown_grid(header: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    """Header and rows between bars; what the cells hold is Markdown already.

    >>> print(markdown_grid(["a", "b"], [[1, "**2**"]]))
    | a | b |
    |---|---|
    | 1 | **2** |
    """
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in (header, *rows)]
    return "\n".join([lines[0], "|---" * len(header) + "|", *lines[1:]])


def _markdown(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|~#$&])", r"\\\1", shown(text))


def as_latex(table: Table) -> str:
    """A tabular for booktabs, title and notes as comments."""
    lines = [f"% {_latex(table.title)}", r"\begin{tabular}{" + "l" * len(table.columns) + "}", r"\toprule"]
    lines += [" & ".join(_latex(column.title) for column in table.columns) + r" \\", r"\midrule"]
    lines += [" & ".join(_latex(cell(as_text(value))) for value in row) + r" \\" for row in table.rows]
    lines += [r"\bottomrule", r"\end{tabular}", "", *(f"% {_latex(note)}" for note in table.below)]
    return "\n".join(lines) + "\n"


def _latex(text: str) -> str:
    return "".join(LATEX.get(sign, sign) for sign in shown(text))


def as_text(value: Any, digits: int = 4) -> Any:
    """An interval as low..high, a number with its interval as value (low..high), None where it is NaN; anything else as it is.

    digits: of an interval's ends, as many as the number beside which it stands has.

    >>> as_text((0.1, 0.2)), as_text((0.5, 0.1, 0.9)), as_text((math.nan, 0.1, 0.9)), as_text("a")
    ('0.1000..0.2000', '+0.500 (+0.100..+0.900)', None, 'a')
    >>> as_text((1.027e-6, 2.251e-6)), as_text((2.5e-5, -1e-5, 6e-5)), as_text((0.774, 0.801), 3)
    ('1e-06..2.3e-06', '+2.5e-05 (-1e-05..+6e-05)', '0.774..0.801')
    """
    if not isinstance(value, tuple):
        return value
    *first, low, high = value
    if math.isnan(first[0] if first else low):
        return None
    low, high = (0.0 if abs(end) < NOTHING * (high - low) < math.inf else end for end in (low, high))
    if not first:
        return f"{decimals(low, digits)}..{decimals(high, digits)}"
    text, low, high = (decimals(number, 3, "+") for number in (first[0], low, high))
    return text if low.endswith("nan") else f"{text} ({low}..{high})"


def cell(value: Any, digits: int = 4) -> str:
    """One value as text.

    >>> cell(0.25), cell(None), cell(float("nan")), cell(3), cell(0.25, 2), cell(7.512e-6)
    ('0.2500', '-', '-', '3', '0.25', '7.5e-06')
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return decimals(value, digits) if isinstance(value, float) else str(value)


def as_html(table: Table) -> dict[str, Any]:
    """Titles of columns, cells and notes as text, which the page's template escapes and lays out."""
    rows = [
        [
            cell(as_text(value, column.digits)).replace("..", " to ")
            if isinstance(value, tuple)
            else cell(value, column.digits)
            for value, column in zip(row, table.columns, strict=True)
        ]
        for row in table.rows
    ]
    columns = [column.title for column in table.columns]
    return {"title": table.title, "columns": columns, "rows": rows, "notes": table.notes, "cautions": table.cautions}


FORMS: dict[str, Callable[[Table], str]] = {"csv": as_csv, "latex": as_latex, "markdown": as_markdown}
"""Into what tables are printed, but for a person at a terminal and a page."""
