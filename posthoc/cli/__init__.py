"""The command line: one thin file per subcommand over one library function."""

import importlib
import itertools
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from posthoc import __version__
from posthoc.cli.exits import ending
from posthoc.errors import nearest

COMMANDS = {
    "extract": "Replay every checkpoint of a run over a fixed probe batch.",
    "merge": "Join the parts that shards of an extraction left into one activations file.",
    "submit": "Extract, measure and compare runs as batch jobs on a Slurm cluster.",
    "status": "Say what has become of submitted jobs.",
    "metrics": "Measure integration, metastability and the stability index, epoch by epoch.",
    "audit": "Say what the measures of a run respond to: labels, classes, the text's order, smoothing, training.",
    "compare": "Put runs side by side: groups, stopping rules, sensitivity.",
    "report": "Make one page of pictures about runs, or one figure of it.",
    "check": "Say whether a series of checkpoints is what it says it is.",
    "demo": "Train a small network on bundled digits and show all of this on its checkpoints.",
    "inspect": "Say what a checkpoint folder, a checkpoint or a file of ours holds.",
}


class Commands(click.Group):
    """Subcommands are imported when they are called, so that `posthoc --help` need not wait for torch."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"posthoc.cli.{name}").command
        return command

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(
        self, context: click.Context, words: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = words[0]
        if name not in COMMANDS and not name.startswith("-") and not context.resilient_parsing:
            raise click.UsageError(f"No such command {name!r}; {nearest(name, COMMANDS, most=1)}", context)
        return super().resolve_command(context, words)

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any) -> Any:  # type: ignore[override]
        """As click's own, but that whatever is thrown ends as `exits` says."""
        if "_POSTHOC_COMPLETE" in os.environ or not extra.get("standalone_mode", True):
            return super().main(args, prog_name or "posthoc", **extra)
        words = sys.argv[1:] if args is None else list(args)

        def run() -> None:
            with self.make_context(prog_name or "posthoc", list(words)) as context:
                self.invoke(context)

        before = itertools.takewhile(lambda word: word.startswith("-"), words)
        sys.exit(ending(run, debug="--debug" in before))


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(__version__, prog_name="posthoc")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:
    """What happened inside a network while it trained, from the checkpoints you already have."""
