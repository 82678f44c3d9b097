"""posthoc's commands in a process that has imported modules from this folder."""

import os
import subprocess
import sys
from pathlib import Path


def run(module, *words):
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (Path(__file__).parent, Path(__file__).parents[1]))),
    }
    program = f"import {module}; from posthoc.__main__ import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, words)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
