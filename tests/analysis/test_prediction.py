"""Prediction across runs: what was planted comes out, what only follows the loss or the epoch does not, and nulls are uniform."""

import functools
import json
import math
from dataclasses import replace

import naive
import numpy as np
import pytest
from click.testing import CliRunner
from scipy import stats

from posthoc.analysis.prediction import (
    PERMUTATIONS,
    TARGETS,
    _of_trials,
    _permutations,
    _residuals,
    _taking_off,
    _tested,
    predict,
)
from posthoc.analysis.runs import from_columns, load_csv
from posthoc.cli import main
from posthoc.errors import UsageError
from posthoc.report import tables_of_runs
from posthoc.report.printing import as_csv

CONFIGURATIONS, SEEDS, EPOCHS = 16, 3, 12


@functools.cache
def template():
    """A run, of which others are made with other columns."""
    names = ("accuracy", "loss", "hurst", "integration", "metastability")
    random = np.random.default_rng(0)
    return from_columns("template", {}, [*range(EPOCHS)], {name: random.standard_normal(EPOCHS) for name in names})


def learning(seed=0, configurations=CONFIGURATIONS, seeds=SEEDS):
    """Runs whose final accuracy is partly that of their configuration and only noisily seen in their loss, with measures:
    `future`: of the final accuracy; `clock`: of the epoch; `follows`: of the loss; `metastability`: noise."""
    random = np.random.default_rng(seed)
    runs = []
    for configuration in range(configurations):
        level = random.uniform(0.5, 0.9)
        for of_seed in range(seeds):
            final = level + 0.02 * random.standard_normal()
            speed = random.uniform(0.2, 0.5)
            accuracy = final * (1 - np.exp(-speed * np.arange(1, EPOCHS + 1))) + 0.005 * random.standard_normal(EPOCHS)
            loss = 2 - 2 * accuracy + 0.3 * random.standard_normal(EPOCHS)
            noise = random.standard_normal((4, EPOCHS))
            columns = {
                "accuracy": accuracy, "loss": loss, "integration": noise[0], "metastability": noise[1],
                "stability_index": accuracy[-1] + 0 * loss, "future": accuracy[-1] + 0.03 * noise[2],
                "clock": np.arange(EPOCHS) + 0.3 * noise[3], "follows": -loss + 0.01 * noise[2],
            }  # fmt: skip
            known = template().measures
            measures = {key: known.get(key, known["integration"]) for key in columns}
            about = {"recipe": configuration, "seed": of_seed}
            runs.append(
                replace(template(), name=f"{configuration}-{of_seed}", about=about, columns=columns, measures=measures)
            )
    return runs


@pytest.fixture(scope="module")
def predicted():
    return {(row.measure, row.target): row for row in predict(learning(), list(TARGETS))}


def test_a_measure_made_of_the_future_accuracy_predicts_beyond_the_loss(predicted):
    row = predicted["future", "final-accuracy"]
    assert row.tau > 0.5
    assert row.conditional > 0.4
    assert row.conditional_p == row.p == 0.001
    assert row.conditional_corrected < 0.05
    assert (row.runs, row.configurations, row.epochs) == (48, 16, 10)


def test_what_looks_ahead_is_no_prediction_whatever_it_is_called(predicted):
    """The stability index of these runs is their final accuracy; so is a measure that its file says looks ahead."""
    assert not [row for row in predicted if row[0] == "stability_index"]
    runs = [
        replace(run, measures={**run.measures, "future": replace(run.measures["future"], looks_ahead=True)})
        for run in learning()
    ]
    formerly = [
        replace(run, measures={k: replace(m, looks_ahead=None) for k, m in run.measures.items()}) for run in runs
    ]
    assert "future" not in {row.measure for row in predict(runs, ["best"])}
    measures = {row.measure for row in predict(formerly, ["best"])}
    assert "future" in measures
    assert "stability_index" not in measures


def test_a_measure_made_of_the_epoch_does_not_survive(predicted):
    for target in TARGETS:
        row = predicted["clock", target]
        assert abs(row.conditional) < 0.15
        assert not row.conditional_corrected < 0.05


def test_a_measure_that_follows_the_loss_says_nothing_that_it_does_not(predicted):
    row = predicted["follows", "final-accuracy"]
    assert row.tau > 0.2
    assert row.corrected < 0.05
    assert abs(row.conditional) < row.tau / 2
    assert not row.conditional_corrected < 0.05


def test_what_is_taken_off_too_leaves_nothing_of_what_only_mirrors_it():
    runs, random = learning(), np.random.default_rng(5)
    for run in runs:
        run.columns["metastability"] = run.columns["future"] + 0.01 * random.standard_normal(EPOCHS)
    before, after = (
        {row.measure: row for row in predict(runs, ["final-accuracy"], beyond=beyond)} for beyond in ([], ["future"])
    )
    assert before["metastability"].conditional > 0.4
    assert abs(after["metastability"].conditional) < before["metastability"].conditional / 4
    assert math.isnan(after["future"].conditional)
    assert after["future"].tau == before["future"].tau


def test_baselines_stand_beside_and_are_not_conditioned_on_themselves(predicted):
    loss = predicted["loss", "final-accuracy"]
    assert loss.baseline
    assert loss.tau < -0.2
    assert math.isnan(loss.conditional)
    assert predicted["score so far", "final-accuracy"].tau > 0.3
    assert not {key for key, _ in predicted} & {"stability_index", "volatility", "integration_z", "accuracy"}


def test_the_mean_over_epochs_is_of_scipys_tau():
    random = np.random.default_rng(0)
    x, y = random.integers(0, 5, (2, 4, 20)).astype(float)
    permuted = np.array([random.permutation(20) for _ in range(99)])
    kept = random.random((4, 20)) < 0.7
    kept[2, 1:] = False  # of one run no tau
    ((tau, p),) = _tested(x[None], y, kept, permuted)
    assert tau == pytest.approx(naive.mean_tau(x, y, kept), abs=1e-12)
    beyond = sum(abs(naive.mean_tau(x[:, order], y, kept)) >= abs(tau) - 1e-9 for order in permuted)
    assert p == (1 + beyond) / 100


def test_what_is_left_is_fitted_without_the_configuration_that_it_is_of():
    random = np.random.default_rng(1)
    known = random.standard_normal((1, 9, 2))
    ranks = (known @ [1.0, 2.0]) + 3
    ranks[0, :3] += 100  # one configuration, which none of the others' fits may see
    without = np.linalg.lstsq(np.column_stack([np.ones(6), known[0, 3:]]), ranks[0, 3:], rcond=None)[0]
    np.testing.assert_allclose(without, [3, 1, 2], atol=1e-9)
    configurations, every = ["a"] * 3 + ["b"] * 3 + ["c"] * 3, np.ones((1, 9), bool)
    left = (_taking_off(known, configurations, every) @ ranks[..., None])[..., 0]
    np.testing.assert_allclose(left[0, :3], 100, atol=1e-6)
    every[0, 3] = False  # nor what is kept out
    ranks[0, 3] -= 50
    left = (_taking_off(known, configurations, every) @ ranks[..., None])[..., 0]
    np.testing.assert_allclose(left[0, :4], [100, 100, 100, 0], atol=1e-6)
    every[0, 5:] = False  # by one other run nothing can be fitted
    assert not (_taking_off(known, configurations, every) @ ranks[..., None]).any()


def test_configurations_change_places_with_all_their_seeds():
    configurations = ["a", "a", "b", "b", "c", "d", "d", "c"]
    orders = _permutations(configurations, 0)
    for order in orders[:50]:
        assert sorted(order) == list(range(8))
        of = [configurations[run] for run in order]
        assert [of[0], of[2], of[4], of[5]] == [of[1], of[3], of[7], of[6]]
    np.testing.assert_array_equal(_permutations(configurations, 0, 2000)[:999], orders)


@pytest.mark.parametrize("sizes", [(1, 2, 3, 4, 5, 6), (3, 3, 3, 2, 2, 2), (3, 3, 3, 3, 3, 3)])
def test_configurations_with_different_numbers_of_runs_are_ranked_by_their_means(sizes):
    runs = [run for run in learning(configurations=6, seeds=6) if run.about["seed"] < sizes[run.about["recipe"]]]
    for run in runs:
        run.about["lr"] = 0.1 * run.about["recipe"]
    row, by_rate = (
        next(row for row in predict(runs, ["final-accuracy"], beyond=beyond) if row.measure == "future")
        for beyond in ((), ["lr"])
    )
    assert (row.runs, row.configurations, row.uneven) == (sum(sizes), 6, len(set(sizes)) > 1)
    assert row.least < 0.01  # all 720 orders of the configurations are there
    assert row.conditional > 0.5
    assert row.conditional_p < 0.05
    assert by_rate.conditional != row.conditional
    note = tables_of_runs.prediction([row]).below[0]
    assert ("the means of 6 configurations" in note) == row.uneven


def test_of_many_measures_permutations_are_as_many_as_one_of_them_needs():
    runs, random = learning(configurations=8, seeds=2), np.random.default_rng(5)
    for run in runs:
        for k in range(60):
            run.columns[f"noise{k}"] = random.standard_normal(EPOCHS)
            run.measures[f"noise{k}"] = replace(run.measures["metastability"], symbol=f"noise{k}")
        run.measures["future"] = replace(run.measures["future"], symbol="future")
    rows = [row for row in predict(runs, ["final-accuracy"]) if not row.baseline]
    assert len(rows) > 50
    (future,) = [row for row in rows if row.measure == "future"]
    assert future.conditional_p < 1 / (PERMUTATIONS + 1)
    assert future.conditional_corrected <= 0.05
    assert "said by: future of final-accuracy (5 %, corrected)." in tables_of_runs.survives(rows, None)
    few = [replace(row, conditional_p=0.002, least=0.002, conditional_corrected=0.1) for row in rows if row is future]
    assert tables_of_runs.survives(few, None).endswith(
        "said by: nothing that can be told (5 %, corrected); too few configurations to tell whether by future of final-accuracy."
    )


@pytest.mark.parametrize("sizes", [(2,) * 10, (1, 1, 1, 1, 6, 6, 6, 6, 2, 2)])
def test_p_of_measures_that_say_nothing_is_uniform(sizes):
    """Of 60 families of runs whose measure is a random walk of each configuration, with a loss that says part of the target."""
    of = np.repeat(np.arange(10), sizes)
    even = len(set(sizes)) == 1
    trials = [[run] for run in range(len(of))] if even else [np.flatnonzero(of == k) for k in range(10)]
    configurations = of.tolist() if even else [*range(10)]
    raw, conditional = [], []
    for family in range(60):
        random = np.random.default_rng([7, family])

        def shared(random=random):
            walks = random.standard_normal((6, 10)).cumsum(axis=0)
            return _of_trials(
                trials, [*(walks[:, of] + (0.2 if even else 1.5) * random.standard_normal((6, len(of)))).T]
            )

        measure, loss, slope = shared(), shared(), shared()
        target = loss + shared()
        x, y, *known = (stats.rankdata(values, axis=1) for values in (measure, target, loss, slope))
        permuted, every = _permutations(configurations, family, 199), np.ones(y.shape, bool)
        raw.append(_tested(x[None], y, every, permuted)[0][1])
        known = np.stack(known, axis=2)
        off = _taking_off(known, configurations, every)
        conditional.append(_tested(_residuals(x[None], known), y, every, permuted, off)[0][1])
    for p in (raw, conditional):
        assert stats.kstest(p, "uniform").pvalue > 0.01
        assert (np.array(p) <= 0.05).mean() <= 0.15


def test_what_only_says_that_it_is_past_foretells_nothing():
    """Runs that rise until a time that nothing foretells, and a measure that is 1 from then on, of 20 families."""
    p = []
    for family in range(20):
        random, runs = np.random.default_rng([3, family]), []
        for k in range(12):
            ends = int(random.integers(5, 17))
            accuracy = np.minimum(np.arange(20), ends) / ends * 0.8 + 0.1 + 1e-9 * np.arange(20)
            past = (np.arange(20) > ends) + 1e-3 * random.standard_normal(20)
            loss = 2 * np.exp(-np.arange(20) / 10) + 0.05 * random.standard_normal(20)
            columns = {"accuracy": accuracy, "loss": loss, "integration": past, "metastability": past}
            runs.append(from_columns(f"{k}", {"model": f"{k}", "seed": 0}, [*range(20)], columns))
        (row,) = [row for row in predict(runs, ["plateau"], measures="integration") if not row.baseline]
        p += [row.p, row.conditional_p]
    assert (np.array(p) <= 0.05).mean() <= 0.15


def test_another_reading_of_the_score_says_nothing_of_what_is_to_come_from_it():
    """Runs of one course, and measures of the accuracy itself and of it as it is measured, with noise, of 25 families."""
    p = []
    for family in range(25):
        random, runs = np.random.default_rng([5, family]), []
        for k in range(12):
            accuracy = 0.5 + 0.01 * np.arange(20) + 0.05 * random.standard_normal(20)
            loss = 2 * np.exp(-np.arange(20) / 10) + 0.05 * random.standard_normal(20)
            mirror = accuracy + 0.02 * random.standard_normal(20)
            columns = {"accuracy": accuracy, "loss": loss, "integration": mirror, "metastability": mirror}
            runs.append(from_columns(f"{k}", {"model": f"{k}", "seed": 0}, [*range(20)], columns))
        rows = {row.measure: row for row in predict(runs, ["remaining"], measures="integration")}
        assert math.isnan(rows["score so far"].conditional)
        p.append(rows["integration"].conditional_p)
    assert (np.array(p) <= 0.05).mean() <= 0.15


def test_checkpoints_without_a_score_are_passed_over():
    gain = np.array([np.nan, 0.0, 0.5, np.nan, 1.0, 0.9, np.nan])
    run = replace(template(), when=tuple(range(7)), columns={"accuracy": gain})
    rows = np.arange(7)
    np.testing.assert_allclose(TARGETS["remaining"](run, rows), [np.nan, 1, 0.5, np.nan, 0, 0, np.nan])
    assert TARGETS["plateau"](replace(run, columns={"accuracy": gain[:5]}), rows).tolist() == [4] * 7
    assert np.isnan(TARGETS["plateau"](replace(run, columns={"accuracy": np.full(7, np.nan)}), rows)).all()


def test_too_little_is_refused():
    with pytest.raises(UsageError, match=r"these 15 runs are of 5, and 6 are needed"):
        predict(learning(configurations=5), ["best"])
    with pytest.raises(UsageError, match="--predict future: give final-accuracy, remaining, best, plateau or all"):
        predict(learning(), ["future"])
    with pytest.raises(UsageError, match="--beyond nosuch: there is no such measure"):
        predict(learning(), ["best"], beyond=["nosuch"])
    with pytest.raises(UsageError, match="--beyond model: it is recorded of the runs, and no measure"):
        predict([replace(run, about={**run.about, "model": "net"}) for run in learning()], ["best"], beyond=["model"])
    with pytest.raises(
        UsageError, match="--beyond lr: it is recorded of the runs, and no measure, nor a number of every"
    ):
        predict([replace(run, about={**run.about, "lr": math.nan}) for run in learning()], ["best"], beyond=["lr"])


def test_runs_that_cannot_be_ranked_together_are_refused():
    runs = learning()
    first, rest = runs[0], runs[1:]
    lossless = replace(first, columns={**first.columns, "loss": np.full(EPOCHS, math.nan)})
    with pytest.raises(UsageError, match=r"takes off what the loss says, and 0-0 has none"):
        predict([lossless, *rest], ["best"])
    broken = replace(first, columns={**first.columns, "accuracy": np.r_[first.accuracy[:-1], math.nan]})
    with pytest.raises(UsageError, match=r"--predict final-accuracy: of 0-0 it is not known"):
        predict([broken, *rest], ["final-accuracy"])
    in_steps = replace(first, summary=replace(first.summary, unit="step"))
    with pytest.raises(UsageError, match=r"these count step \(0-0\) and epoch \(0-1\)"):
        predict([in_steps, *rest], ["best"])
    rmse = replace(first.measures["loss"], symbol="val_rmse")
    measures = {**first.measures, "score_val_rmse": rmse}
    columns = {**first.columns, "score_val_rmse": first.accuracy}
    otherwise = replace(
        first, measures=measures, columns=columns, summary=replace(first.summary, judged_by="score_val_rmse")
    )
    with pytest.raises(UsageError, match=r"are judged by val_rmse \(0-0\) and accuracy \(0-1\)"):
        predict([otherwise, *rest], ["best"])
    with pytest.raises(UsageError, match=r"--measures stability_index: at a checkpoint it knows of later ones"):
        predict(runs, ["best"], measures="future,stability_index")


def test_a_setting_that_is_a_number_is_taken_off_as_a_measure_of_it_is():
    runs = learning()
    for number, run in enumerate(runs):
        run.about["lr"] = 0.1 * (number // 3)
        run.columns["synchrony"] = np.full(EPOCHS, run.about["lr"])
        run.measures["synchrony"] = run.measures["metastability"]
    by_setting, by_measure = (
        {row.measure: row for row in predict(runs, ["final-accuracy"], beyond=[name], measures="future,metastability")}
        for name in ("lr", "synchrony")
    )
    assert by_setting.keys() - by_measure.keys() == set()
    assert {row.measure for row in by_setting.values() if not row.baseline} == {"future", "metastability"}
    assert by_setting["metastability"].conditional == by_measure["metastability"].conditional


def test_the_command_line_takes_off_what_is_named(tmp_path):
    random, paths = np.random.default_rng(3), []
    for k in range(8):
        lines = ["epoch,val_acc,val_loss,Heff,M", *(f"{e},{','.join(map(str, random.random(4)))}" for e in range(6))]
        paths.append(tmp_path / f"net{k}.csv")
        paths[-1].write_text("\n".join(lines))
    words = ["compare", "--from-csv", *map(str, paths), "--predict", "remaining", "--beyond", "accuracy,metastability"]
    given = json.loads(CliRunner().invoke(main, [*words, "--json"]).stdout)["prediction"]
    kept = {row["measure"]: row["conditional"] for row in given}
    (alone,) = [
        row for row in predict(load_csv(paths, {}), ["remaining"], beyond=["accuracy", "metastability"])
        if row.measure == "integration"
    ]  # fmt: skip
    assert kept["integration"] == alone.conditional
    assert kept["metastability"] is None
    printed = CliRunner().invoke(main, words).stdout
    assert printed.splitlines()[1].startswith(
        "Beyond loss, its slope and accuracy, metastability something of what is to come"
    )
    assert "the ranks of loss, of its slope and of accuracy, metastability say" in " ".join(printed.split())
    refused = CliRunner().invoke(main, [*words[:-4], "--beyond", "accuracy"])
    assert (refused.exit_code, "--beyond needs --predict" in refused.output) == (2, True)


def test_the_table_says_what_survives(predicted):
    rows = list(predicted.values())
    table = tables_of_runs.prediction(rows)
    assert tables_of_runs.survives(rows, None).startswith(
        "Beyond loss and its slope something of what is to come is said by: "
    )
    assert [column.title for column in table.columns][:3] == ["target", "measure", "tau"]
    assert "score so far (baseline)" in as_csv(table)
