"""The trial of measures: configurations are balanced, runs come out the same again, and the page is what is kept."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from reproduction.small import CHOICES, COUNT, SOUND, configurations, train
from reproduction.trial_tables import kept_runs

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "data" / "trial"


def test_every_choice_is_made_about_as_often_in_each_half():
    drawn = configurations("digits")
    assert len(set(drawn)) == len(drawn) == 2 * COUNT
    assert drawn == configurations("digits") != configurations("cifar10")
    for half in (drawn[:COUNT], drawn[COUNT:]):
        for factor, choices in CHOICES.items():
            counts = Counter(getattr(each, factor) for each in half)
            for choice, count in counts.items():
                assert abs(count - COUNT * choices.count(choice) / len(choices)) <= 1


def test_a_run_comes_out_the_same_again(tmp_path):
    for name in ("a", "b"):
        train("digits", None, SOUND, 1, tmp_path / name, epochs=1)
    first, second = (sorted((tmp_path / name).iterdir()) for name in ("a", "b"))
    assert [path.name for path in first] == ["epoch-000.safetensors", "epoch-001.safetensors", "run.json"]
    for path, other in zip(first[:2], second[:2], strict=True):
        a, b = load_file(path), load_file(other)
        assert a.keys() == b.keys()
        assert all(a[name].equal(b[name]) for name in a)
    assert first[2].read_text() == second[2].read_text()


@pytest.mark.parametrize("dataset", ["digits", "cifar10"])
def test_kept_runs_are_those_of_all_configurations_and_seeds(dataset):
    runs = kept_runs(KEPT, dataset)
    assert len(runs) >= 60
    about = Counter((run.about["recipe"], run.about["draw"]) for run in runs)
    assert set(about.values()) == {2}
    assert Counter(draw for _, draw in about) == {"1": COUNT, "2": COUNT}
    for run in runs:
        assert run.when == tuple(range(1, 13))
        assert np.isfinite(run.accuracy).all()
        assert run.best == run.accuracy.max()
    assert runs[0].measures["settled"].looks_ahead
    assert not runs[0].measures["churn"].looks_ahead


@pytest.mark.slow
def test_the_page_is_what_is_kept():
    done = subprocess.run(
        [sys.executable, "-m", "reproduction.trial", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
