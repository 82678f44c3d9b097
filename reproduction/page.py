"""The page of results, from the files that `reproduction.run` keeps and from nothing else: `page.md`, filled in."""

from pathlib import Path
from typing import Any

import jinja2

from posthoc.report.printing import markdown_grid
from reproduction import sections
from reproduction.foretelling import foretelling
from reproduction.kept import Study
from reproduction.language import generated
from reproduction.short import verdicts
from reproduction.text import listed

TEMPLATE = Path(__file__).with_name("page.md")


def page(keep: Path) -> str:
    """The whole page in Markdown."""
    study = Study.read(keep)
    makers = (
        sections.what_was_run, sections.nine_rows, sections.separation, sections.convergence, sections.signs, sections.sensitivity,
        sections.untrained, sections.other_axes, sections.information, sections.covariance, sections.limits, foretelling,
    )  # fmt: skip
    content: dict[str, Any] = {make.__name__: make(study) for make in makers}
    content["generated"] = generated(study.generated)
    return filled(TEMPLATE, study=study, runs=study.runs, verdicts=verdicts(study, content), **content)


def filled(template: Path, **content: Any) -> str:
    """A template of Markdown with its content, of which none may be lacking, and with tables by `table(header, rows)`."""
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined
    )
    return environment.from_string(template.read_text(encoding="utf-8")).render(
        table=markdown_grid, listed=listed, **content
    )
