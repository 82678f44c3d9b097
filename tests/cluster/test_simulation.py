"""The model of scripts/simulate_cluster.py beside what can be said without one."""

import importlib.util
import math
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "simulate_cluster.py"


@pytest.fixture(scope="module")
def model():
    specification = importlib.util.spec_from_file_location("simulate_cluster", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    yield module
    del sys.modules[specification.name]


@pytest.mark.parametrize(("runs", "shards", "gpus"), [(7, 1, 3), (5, 4, 8), (1, 20, 64), (30, 2, 7)])
def test_equal_tasks_without_delays_run_in_full_rounds(model, runs, shards, gpus):
    cluster = model.Cluster(gpus=gpus, measuring=1, plan=0, sbatch=0, start=0)
    work = model.Work(runs, 20, shards, seconds=2.0, start_up=3.0, measure=0.5, spread=(1.0,))
    outcome = model.Simulation(cluster, work).run()
    task = 3 + 20 / shards * 2
    assert outcome.replayed == pytest.approx(math.ceil(runs * shards / gpus) * task)
    assert outcome.held == pytest.approx(runs * shards * task)
    assert outcome.kept == pytest.approx(runs * 20 * 2)
    assert outcome.longest == pytest.approx(task)
    assert (outcome.starts, outcome.queue) == (runs * shards + runs, runs * (shards + 1))
    if runs == 1:
        assert outcome.measured == pytest.approx(outcome.replayed + 3 + 20 * 0.5)


def test_an_array_runs_no_more_tasks_at_once_than_it_may(model):
    cluster = model.Cluster(gpus=8, parallel=2, plan=0, sbatch=0, start=0)
    work = model.Work(1, 8, 8, seconds=1.0, start_up=1.0, spread=(1.0,))
    assert model.Simulation(cluster, work).run().replayed == pytest.approx(4 * 2)
    two = model.Simulation(cluster, model.Work(4, 8, 8, seconds=1.0, start_up=1.0, spread=(1.0,))).run()
    assert two.replayed == pytest.approx(4 * 2)  # what one array may not use, others do


def test_interrupted_tasks_keep_what_they_did_and_do_the_rest_again(model):
    cluster = model.Cluster(gpus=4, plan=0, sbatch=0, start=0, requeue=5)
    work = model.Work(40, 25, 2, seconds=1.0, start_up=2.0, interrupted=0.05, spread=(1.0,))
    outcome = model.Simulation(cluster, work).run()
    again = outcome.starts - 40 * 3
    expected = 1000 * 0.05 / 0.95  # geometric: attempts of a checkpoint that are lost
    assert abs(again - expected) < 4 * math.sqrt(expected / 0.95)
    assert outcome.kept == pytest.approx(1000)
    assert outcome.held - outcome.kept - 2 * (80 + again) == pytest.approx(again / 2, rel=0.3)  # half a checkpoint each
    assert outcome.replayed >= outcome.held / 4


def test_a_task_that_exceeds_its_time_goes_on_later(model):
    cluster = model.Cluster(gpus=1, plan=0, sbatch=0, start=0, time_limit=13.5, requeue=100)
    outcome = model.Simulation(cluster, model.Work(1, 25, 1, seconds=1.0, start_up=3.0, spread=(1.0,))).run()
    assert outcome.replayed == pytest.approx(13 + 100 + 13 + 100 + 8)  # ten checkpoints, ten, five
    with pytest.raises(ValueError, match="time limit"):
        model.Simulation(cluster, model.Work(1, 1, 1, seconds=60.0)).run()


def test_every_bound_is_one(model):
    """Recorded times, delays and all: no outcome is faster than any resource alone."""
    cluster = model.Cluster(gpus=16, measuring=4)
    for shards in (1, 5, 30):
        work = model.Work(60, 30, shards, seconds=0.5)
        outcome = model.Simulation(cluster, work).run()
        needs = model.bounds(cluster, work)
        assert outcome.held / cluster.gpus <= outcome.replayed
        assert outcome.held / cluster.gpus == pytest.approx(needs["GPUs"], rel=0.05)
        assert outcome.measured >= max(needs["submitting"], needs["scheduler"], needs["measuring"])
