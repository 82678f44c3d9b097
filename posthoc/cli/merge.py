"""posthoc merge: parts of shards -> activations.h5."""

from pathlib import Path

import click

from posthoc.cli.output import flag_nonfinite, report_skipped


@click.command(name="merge")
@click.argument("activations", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace an existing file.")
def command(activations: Path, force: bool) -> None:
    """Put the parts that `extract --shard` left beside ACTIVATIONS together."""
    from posthoc.parts import merge

    skipped = merge(activations, force)
    flag_nonfinite(activations)
    click.echo(activations)
    report_skipped(skipped)
