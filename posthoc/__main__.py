"""python -m posthoc: the command line, where its script is not on the path."""

from posthoc.cli import main

main(prog_name="posthoc")
