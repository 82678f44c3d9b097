"""What a notebook shows of a result: its sentences and its table."""

from collections.abc import Sequence
from html import escape

from posthoc.report.printing import Table, as_html
from posthoc.shown import shown


def as_notebook(sentences: Sequence[str], table: Table) -> str:
    """Sentences above a table, as HTML in which all that is foreign is text."""
    grid = as_html(table)
    lines = [f"<p>{escape(shown(sentence))}</p>" for sentence in sentences]
    header = "".join(f"<th>{escape(shown(title))}</th>" for title in grid["columns"])
    rows = ("".join(f"<td>{escape(shown(text))}</td>" for text in row) for row in grid["rows"])
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return "\n".join([*lines, f"<table><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table>"])
