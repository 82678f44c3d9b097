"""Stopping by a measure's level or volatility: what knows when to stop beats patience, noise does not, thresholds are others'."""

import functools

import numpy as np
import pytest
from click.testing import CliRunner

from posthoc.analysis.runs import from_columns
from posthoc.analysis.stopping import compare_rules
from posthoc.analysis.stopping_by import reaching, rules_of, settling
from posthoc.cli import main
from posthoc.errors import UsageError
from posthoc.report import tables_of_runs

EPOCHS = 24


@functools.cache
def runs():
    """Whose accuracy peaks at an epoch of their own, of which their loss says nothing but `integration` all: it is 0.9 from
    then on; `metastability` is noise that calms down at the peak; `hurst` is noise."""
    random = np.random.default_rng(0)
    made = []
    for k in range(12):
        peak = int(random.integers(6, 16))
        epochs = np.arange(EPOCHS)
        accuracy = 0.8 - 0.03 * np.abs(epochs - peak)
        columns = {
            "accuracy": accuracy, "loss": 1 - 0.01 * epochs, "hurst": random.random(EPOCHS),
            "integration": np.where(epochs >= peak, 0.9, 0.1 + 0.3 * random.random(EPOCHS)),
            "metastability": np.where(epochs > peak - 2, 0.01, 1.0) * random.standard_normal(EPOCHS),
        }  # fmt: skip
        made.append(from_columns(f"r{k}", {"recipe": k // 2, "seed": k % 2}, [*range(EPOCHS)], columns))
    return made


def test_by_hand():
    run = runs()[0]
    peak = int(np.argmax(run.accuracy))
    assert reaching(run, "integration", 0.9, 1) == peak
    assert reaching(run, "integration", 0.95, 1) is None
    assert reaching(run, "loss", 0.9, -1) == 10
    assert settling(run, "metastability", 0.1) == peak + 3  # 3 in a row, of windows of 3
    assert settling(run, "hurst", 0.05) is None


def test_what_knows_when_to_stop_loses_nothing_and_noise_stops_nothing():
    scores = {score.rule: score for score in compare_rules(runs(), rules_of(runs(), "integration,hurst"))}
    level, noise = scores["H_eff by level"], scores["H by level"]
    assert level.lost < 1e-12
    assert level.saved == pytest.approx(np.mean([EPOCHS - 1 - np.argmax(run.accuracy) for run in runs()]))
    assert level.pareto
    assert (noise.saved, noise.lost, noise.never) == (0, 0, 1)
    assert all(np.isnan(level.patience_difference))  # on a loss that falls for ever patience saves nothing


def test_patience_that_saves_as_much_stands_beside():
    with_loss = [
        from_columns(run.name, run.about, run.when, {**run.columns, "loss": -run.accuracy}) for run in runs()
    ]  # fmt: skip
    scores = {score.rule: score for score in compare_rules(with_loss, rules_of(with_loss, "integration"))}
    assert scores["patience 3"].patience_difference == pytest.approx((0, 0, 0), abs=1e-12)
    early = scores["budget 10"]
    assert early.saved_share == pytest.approx(14 / 24)
    assert np.isnan(early.patience_difference[0])  # patience 1 saves less
    middle = scores["budget 20"]
    assert middle.patience_difference[0] >= 0
    named = [column.title for column in tables_of_runs.stopping(list(scores.values())).columns]
    assert "lost, against patience that saves as much" in named


def test_refusals():
    with pytest.raises(UsageError, match="these are of 2, and 3 are needed"):
        rules_of(runs()[:4], "all")
    with pytest.raises(UsageError, match=r"--measures margin: not measured of all runs; of all there are .*loss"):
        rules_of(runs(), "margin")
    done = CliRunner().invoke(main, ["compare", "nowhere.json", "--measures", "margin"])
    assert (done.exit_code, "--measures needs --stopping or --predict" in done.output) == (2, True)
