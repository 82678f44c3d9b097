"""The page of results, from the files that `reproduction.run` keeps and from nothing else: `page.md`, filled in."""

from pathlib import Path
from typing import Any

import jinja2

from posthoc.report.printing import markdown_grid
from reproduction import sections
from reproduction.kept import Study
from reproduction.language import generated

TEMPLATE = Path(__file__).with_name("page.md")


def page(keep: Path) -> str:
    """The whole page in Markdown."""
    study = Study.read(keep)
    return filled(
        TEMPLATE,
        study=study,
        runs=study.runs,
        what_was_run=sections.what_was_run(study),
        nine_rows=sections.nine_rows(study),
        separation=sections.separation(study),
        convergence=sections.convergence(study),
        signs=sections.signs(study),
        sensitivity=sections.sensitivity(study),
        untrained=sections.untrained(study),
        other_axes=sections.other_axes(study),
        information=sections.information(study),
        generated=generated(study.generated),
        limits=sections.limits(study),
    )


def filled(template: Path, **content: Any) -> str:
    """A template of Markdown with its content, of which none may be lacking, and with tables by `table(header, rows)`."""
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined
    )
    return environment.from_string(template.read_text(encoding="utf-8")).render(table=markdown_grid, **content)
