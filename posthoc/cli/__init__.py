"""The command line: one thin file per subcommand over one library function."""

import importlib
import sys
from typing import Any

import click

from posthoc import __version__
from posthoc.errors import PosthocError

COMMANDS = {
    "extract": "Replay every checkpoint of a run over a fixed probe batch.",
    "merge": "Put the parts that the shards of an extraction made together.",
    "submit": "The same, and what is made of it, as batch jobs on a Slurm cluster.",
    "status": "Say what has become of submitted jobs.",
    "metrics": "Integration, metastability and stability index, epoch by epoch.",
    "audit": "Say what the measures of a run respond to: labels, classes, smoothing, training.",
    "compare": "Runs side by side: groups, stopping rules, sensitivity.",
    "report": "One page of pictures about runs, or one figure of it.",
    "inspect": "Say what a checkpoint folder, a checkpoint, an activations or a metrics file holds.",
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

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except PosthocError as error:
            if context.params["debug"]:
                raise
            click.echo(f"posthoc: {error}", err=True)
            sys.exit(error.exit_code)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(__version__, prog_name="posthoc")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:
    """What happened inside a network while it trained, from the checkpoints you already have."""
