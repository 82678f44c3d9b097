"""posthoc merge: parts of shards -> activations.h5."""

from pathlib import Path

import click

from posthoc.cli.exits import echo
from posthoc.cli.output import flag_nonfinite, report_probe, report_skipped
from posthoc.errors import PosthocError
from posthoc.files import try_output


@click.command(name="merge")
@click.argument("activations", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace an existing file.")
def command(activations: Path, force: bool) -> None:
    """Put the parts that `extract --shard` left beside ACTIVATIONS (in ACTIVATIONS.parts), or anywhere in the folder ACTIVATIONS, together."""
    if activations.suffix == ".parts":
        activations = activations.with_suffix("")
    paths = [activations]
    if not activations.is_dir():
        folder = activations.with_name(activations.name + ".parts")
        if not folder.is_dir():
            whole = f"{activations} is there, and has" if activations.exists() else f"{activations} has"
            raise PosthocError(
                f"{whole} no parts to be merged (no folder {folder}); posthoc extract --shard makes them."
            )
        try_output(activations, force)
    else:
        paths = sorted(folder.with_suffix("") for folder in activations.rglob("*.h5.parts"))
        if not paths:
            raise PosthocError(
                f"{activations} holds no parts to be merged (no folder *.h5.parts); posthoc extract --shard makes them."
            )
    from posthoc.parts import merge

    skipped, merged = [], False
    for path in paths:
        name = "" if path == activations else f"{path.parent.relative_to(activations)}/"
        try:
            left_out = merge(path, force)
        except PosthocError as error:
            if path == activations:
                raise
            skipped.append((f"{name}{path.name}", str(error)))  # the other runs of the folder may be complete
            continue
        merged = True
        skipped += [(f"{name}{checkpoint}", reason) for checkpoint, reason in left_out]
        flag_nonfinite(path)
        report_probe(path)
        echo(path)
    report_skipped(skipped, done=merged)
