"""posthoc's commands where a module from this folder has been imported: in a process of their own, or in this one."""

import contextlib
import importlib
import os
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner

from posthoc.analysis.measures import MEASURES
from posthoc.analysis.nulls import NULLS
from posthoc.analysis.stopping import RULES
from posthoc.cli import main
from posthoc.replay.formats import FORMATS
from posthoc.replay.probes import PROBES
from posthoc.replay.signals import SIGNALS
from posthoc.report.figures import FIGURES

TABLES = (MEASURES, NULLS, RULES, FIGURES, FORMATS, PROBES, SIGNALS)


def run_alone(module, *words):
    """As a user starts them; what they print."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, Path(__file__).parents[1:3]))}
    program = f"import {module}; from posthoc.__main__ import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, words)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextlib.contextmanager
def registered(module):
    """The entries of a module, while this lasts."""
    before = [dict(table) for table in TABLES]
    sys.modules.pop(module, None)
    importlib.import_module(module)
    try:
        yield
    finally:
        for table, entries in zip(TABLES, before, strict=True):
            table.clear()
            table.update(entries)


def run(module, *words, code=0):
    """What they print, on standard error where they end with another code than 0; module: None for none."""
    with registered(module) if module else contextlib.nullcontext():
        done = CliRunner().invoke(main, list(map(str, words)))
    assert done.exit_code == code, done.output
    return done.stdout if code == 0 else done.stderr
