"""What a user's type checker sees of posthoc."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import posthoc
from posthoc.replay.request import PlanOptions, Request

SCRIPT = """
import posthoc

path = posthoc.extract("run", "cifar10", "a.h5", layers=["default"], channels=8, seed=1, force=True)
reveal_type(path)
with posthoc.open_activations(path) as activations:
    reveal_type(activations.recording.identity.device)
    reveal_type(activations.behaviour("loss"))
    metrics = posthoc.compute_metrics(activations)
reveal_type(metrics)
reveal_type(posthoc.load_metrics("metrics.json"))
posthoc.extract("run", "cifar10", chanels=8)
posthoc.extract("run", "cifar10", channels="8")
posthoc.measured
"""


def test_a_users_script_has_types(tmp_path):
    """In this folder and by its settings, strict ones, for what is known of the libraries from checking the package."""
    script, package = tmp_path / "script.py", Path(posthoc.__file__).parent
    script.write_text(SCRIPT)
    assert (package / "py.typed").exists()
    command = [sys.executable, "-m", "mypy", str(script)]
    result = subprocess.run(command, cwd=package.parent, capture_output=True, text=True)
    lines = [line.partition(": ")[2] for line in result.stdout.splitlines() if script.name in line.partition(":")[0]]
    assert lines[0].endswith('"pathlib.Path"')
    assert lines[1].endswith('"str"')
    assert "ndarray" in lines[2]
    assert lines[3].endswith('"posthoc.analysis.records.RunMetrics"')
    assert lines[4].endswith('"posthoc.analysis.records.RunMetrics"')
    assert 'Unexpected keyword argument "chanels" for "extract"' in lines[5]
    assert '"channels" to "extract" has incompatible type "str"' in lines[-2]
    assert 'no attribute "measured"' in lines[-1]


def test_every_name_that_is_promised_is_there():
    for name in posthoc.__all__:
        assert getattr(posthoc, name) is not None


def test_the_options_of_extract_are_those_of_a_request():
    assert [field.name for field in dataclasses.fields(Request)] == ["probe", *PlanOptions.__annotations__]
