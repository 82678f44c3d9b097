"""posthoc audit: what do the measures of a run respond to?"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from posthoc.cli.exits import echo
from posthoc.cli.inputs import require_activations
from posthoc.cli.output import cell, notes, table
from posthoc.files import try_output


@click.command(name="audit")
@click.argument("activations", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Default: audit.json beside ACTIVATIONS.")
@click.option("--smooth", type=click.IntRange(min=1), default=5, help="Width of the moving mean.")
@click.option("--signal", default="mean", metavar="NAME", help="Which signal of the file.")
@click.option("--draws", type=click.IntRange(min=10), default=50, help="Draws of each control that redraws.")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Keys the random numbers.")
@click.option("--force", is_flag=True, help="Replace an existing output.")
def command(
    activations: Path, output: Path | None, smooth: int, signal: str, draws: int, seed: int, force: bool
) -> None:
    """Measure the last checkpoint of ACTIVATIONS again with one thing changed at a time, and say what moved."""
    output = output or activations.with_name("audit.json")
    require_activations(activations)
    try_output(output, force, activations)
    from posthoc.analysis.audit import audit
    from posthoc.analysis.records import Protocol
    from posthoc.store import open_activations

    with open_activations(activations) as opened:
        found = audit(opened, Protocol.named("published", smooth=smooth, signal=signal), draws, seed)
    found.save(output)
    show_audit(found.to_dict())
    echo(output, err=True)


def show_audit(content: Mapping[str, Any]) -> None:
    """The controls as a table, what each measure responds to, and what follows; content: of an audit.json."""
    from posthoc.analysis.audit import MEASURES

    rows = []
    for control in content["controls"]:
        cells: list[str | float | None] = [control["name"]]
        for measure in MEASURES:
            spread = control["measures"][measure]
            cells += [spread["mean"], f"+- {spread['sd']:.4f}" if spread["sd"] else ""]
        rows.append(cells)
    table(["", *(text for title in MEASURES.values() for text in (title, ""))], rows)
    for measure, title in MEASURES.items():
        verdict = content["verdicts"][measure]
        echo()
        lines = []
        margin = verdict.get("margin")  # of files before there was one, what was not seen to move the measure
        small = "was not seen to respond to" if margin is None else f"changes by less than {margin:g} with"
        for label, key in (("responds to", "responds"), (small, "indifferent"), ("is undecided about", "undecided")):
            effects = [f"{what} ({effect['effect']:+.3f})" for what, effect in verdict.get(key, {}).items()]
            if key == "undecided" and not effects:
                continue
            lines.append((f"{title} {label}", ", ".join(effects) or "nothing"))
        if verdict["undefined"]:
            lines.append((f"{title} is undefined for", ", ".join(verdict["undefined"])))
        spread = cell(verdict["spread_by_order"])
        notes([*lines, (f"{title} varies by", f"{spread} (sd) with the order of images")])
    echo()
    for sentence in content["conclusions"]:
        echo(sentence)
