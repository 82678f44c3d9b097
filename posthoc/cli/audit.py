"""posthoc audit: what do the measures of a run respond to?"""

from pathlib import Path

import click

from posthoc.cli.exits import echo
from posthoc.cli.output import notes, table


@click.command(name="audit")
@click.argument("activations", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Default: audit.json beside ACTIVATIONS.")
@click.option("--smooth", type=click.IntRange(min=1), default=5, help="Width of the moving mean.")
@click.option("--signal", type=click.Choice(["mean", "var"]), default="mean", help="Which recorded signal.")
@click.option("--draws", type=click.IntRange(min=10), default=50, help="Draws of each control that redraws.")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Keys the random numbers.")
@click.option("--force", is_flag=True, help="Replace an existing output.")
def command(
    activations: Path, output: Path | None, smooth: int, signal: str, draws: int, seed: int, force: bool
) -> None:
    """Measure the last checkpoint of ACTIVATIONS again with one thing changed at a time, and say what moved."""
    from posthoc.analysis.audit import MEASURES, audit
    from posthoc.analysis.records import Protocol
    from posthoc.files import refuse_existing
    from posthoc.store import open_activations

    output = output or activations.with_name("audit.json")
    with open_activations(activations) as opened:
        refuse_existing(output, force, activations)
        found = audit(opened, Protocol.named("published", smooth=smooth, signal=signal), draws, seed)
    found.save(output)
    rows = []
    for control in found.controls:
        cells: list[str | float] = [control.name]
        for measure in MEASURES:
            spread = control.measures[measure]
            cells += [spread.mean, f"+- {spread.sd:.4f}" if spread.sd else ""]
        rows.append(cells)
    table(["", *(cell for title in MEASURES.values() for cell in (title, ""))], rows)
    for measure, title in MEASURES.items():
        verdict = found.verdicts[measure]
        echo()
        lines = []
        for label, key in (("responds to", "responds"), ("does not respond to", "indifferent")):
            effects = [f"{what} ({effect['effect']:+.3f})" for what, effect in verdict[key].items()]
            lines.append((f"{title} {label}", ", ".join(effects) or "nothing"))
        if verdict["undefined"]:
            lines.append((f"{title} is undefined for", ", ".join(verdict["undefined"])))
        notes([*lines, (f"{title} varies by", f"{verdict['spread_by_order']:.4f} (sd) with the order of images")])
    echo()
    for sentence in found.conclusions:
        echo(sentence)
    echo(output, err=True)
