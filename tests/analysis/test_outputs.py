"""Measures of a classifier's outputs: by hand, against the obvious computation, and as a run's file holds them."""

import math
from pathlib import Path

import naive
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from noise import recording

from posthoc.analysis.measures import MEASURES
from posthoc.analysis.measures.behaviour import lower_is_better
from posthoc.analysis.measures.outputs import (
    calibrated_errors,
    calibration_error,
    forgetting_events,
    learned_at,
    margins,
    with_interval,
)
from posthoc.analysis.measures.snapshot import jackknifed, over_samples
from posthoc.analysis.measures.user import measure
from posthoc.analysis.metrics import compute_metrics
from posthoc.analysis.protocol import Protocol
from posthoc.analysis.records import Aside, load_metrics
from posthoc.errors import UsageError
from posthoc.report import tables
from posthoc.store import Frame, Layout, open_activations
from posthoc.writing import write

KEYS = ["margin", "difficulty", "calibration_error", "churn", "kl_previous", "forgetting", "learned"]
N, K, E = 400, 4, 5


def written(path, logits, labels=None, keep=("loss", "prediction", "correct", "logits"), steps=None):
    """An activations file of checkpoints that gave these scores [E, N, K]; layers are noise. Where scores are NaN, so is the
    loss, and nothing is predicted."""
    E, N, K = logits.shape
    random = np.random.default_rng(0)
    layout = Layout(
        recording(["a"], images=N, classes=None if labels is None else K), np.arange(N), labels, {"a": np.arange(3)}
    )
    frames = []
    for e in range(E):
        none = np.isnan(logits[e]).any(axis=1)
        prediction = np.where(none, -1, logits[e].argmax(1))
        said = {
            "loss": np.where(none, np.nan, 0).astype("f4"),
            "prediction": prediction,
            "logits": logits[e].astype("f2"),
        }
        if labels is not None:
            said["correct"] = (prediction == labels).astype("u1")
        signals = {"mean": {"a": random.standard_normal((3, N)).astype("f4")}}
        behaviour = {name: said[name] for name in keep if name in said}
        epoch, step = (e + 1, None) if steps is None else (None, steps[e])
        frames.append(Frame(f"{e}", f"{e}", epoch, step, 0.5, 0.5, {}, signals, behaviour=behaviour))
    write(path, layout, frames)
    return path


@pytest.fixture(scope="module")
def learning(tmp_path_factory):
    """Scores of a network that learns, and the labels; their file measured."""
    random = np.random.default_rng(1)
    labels = random.integers(0, K, N)
    right = np.eye(K)[labels]
    logits = (np.arange(E)[:, None, None] * right + random.standard_normal((E, N, K))).astype("f2")
    path = written(tmp_path_factory.mktemp("learning") / "a.h5", logits, labels)
    with open_activations(path) as activations:
        return logits.astype(float), labels, compute_metrics(activations, nulls=19, max_nulls=19, measures=KEYS)


def test_the_values_of_a_run_are_those_of_the_obvious_computation(learning):
    logits, labels, run = learning
    p = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
    for e in range(E):
        assert run.column("calibration_error")[e] == pytest.approx(naive.calibration_error(p[e], labels), abs=1e-12)
        assert run.column("margin")[e] == pytest.approx(
            np.mean([x[y] - max(np.delete(x, y)) for x, y in zip(logits[e], labels, strict=True)])
        )
        far = [math.dist(row, np.arange(K) == y) for row, y in zip(p[e], labels, strict=True)]
        assert run.column("difficulty")[e] == pytest.approx(np.mean(far))
        if e:
            changed = sum(a.argmax() != b.argmax() for a, b in zip(p[e - 1], p[e], strict=True)) / N
            divergence = sum((a * np.log(a / b)).sum() for a, b in zip(p[e - 1], p[e], strict=True)) / N
            assert run.column("churn")[e] == pytest.approx(changed)
            assert run.column("kl_previous")[e] == pytest.approx(divergence)
    right = (logits.argmax(2) == labels).tolist()
    forgotten = [
        sum(right[k - 1][n] and not right[k][n] for n in range(N) for k in range(1, e + 1)) / N for e in range(E)
    ]
    np.testing.assert_allclose(run.column("forgetting"), forgotten)
    learned = [sum(all(right[k][n] for k in range(e, E)) for n in range(N)) / N for e in range(E)]
    np.testing.assert_allclose(run.column("learned"), learned)


def test_each_value_has_an_interval_where_there_is_one(learning):
    run = learning[2]
    for key in KEYS:
        measured, there = run.measures[key], np.isfinite(run.column(key))
        first = 1 if key in ("churn", "kl_previous") else 0  # there is nothing before the first
        assert there.tolist() == [False] * first + [True] * (E - first)
        inside = (measured.low <= measured.value) & (measured.value <= measured.high) & (measured.low < measured.high)
        assert (inside == there).sum() >= E - 1  # nothing is forgotten at the first
        assert measured.about
        assert measured.aside is None
    null = run.measures["calibration_error"].nulls["calibrated"]
    assert run.measures["calibration_error"].decided_by == "calibrated"
    assert null.draws.tolist() == [19] * E
    assert run.nulls["calibrated"].words == "labels drawn from the probabilities that the network states"
    assert run.measures["calibration_error"].summary.nulls["calibrated"].decides


def test_they_are_measured_only_where_they_are_asked_for_and_survive_the_file(learning, tmp_path):
    logits, labels, run = learning
    with open_activations(written(tmp_path / "a.h5", logits, labels)) as activations:
        assert not set(KEYS) & compute_metrics(activations).measures.keys()
    run.save(tmp_path / "m.json")
    again = load_metrics(tmp_path / "m.json")
    np.testing.assert_array_equal(again.column("churn"), run.column("churn"))
    assert "churn" in [column.title for column in tables.checkpoints(again).columns]  # for it is named
    assert {"churn", "churn_low", "calibration_error_calibrated_p"} <= set(again.flat())


def test_without_draws_the_file_says_what_the_deciding_null_is(learning, tmp_path):
    logits, labels, _ = learning
    with open_activations(written(tmp_path / "a.h5", logits, labels)) as activations:
        compute_metrics(activations, measures="calibration_error").save(tmp_path / "m.json")
    assert load_metrics(tmp_path / "m.json").measures["calibration_error"].decided_by == "calibrated"


def test_what_lacks_data_says_which(tmp_path):
    random = np.random.default_rng(2)
    logits = random.standard_normal((2, N, K))
    with open_activations(written(tmp_path / "unlabelled.h5", logits)) as activations:
        run = compute_metrics(activations, measures=KEYS)
        with pytest.raises(
            UsageError, match=r"of_classes asks for labels, and the samples of .*unlabelled\.h5 have none"
        ):
            compute_metrics(activations, measures=[measure(lambda labels: 1.0, name="of_classes")])
    assert {key for key in KEYS if run.measures[key].aside is None} == {"churn", "kl_previous"}
    assert run.measures["margin"].aside is Aside.NEEDS_LABELS
    without = written(
        tmp_path / "scoreless.h5", logits, random.integers(0, K, N), keep=("loss", "prediction", "correct")
    )
    with open_activations(without) as activations:
        run = compute_metrics(activations, measures=KEYS)
    assert {key: run.measures[key].aside for key in KEYS if run.measures[key].aside} == dict.fromkeys(
        ["margin", "difficulty", "calibration_error", "kl_previous"], Aside.NEEDS_LOGITS
    )
    assert ("not measured", f"margin, EL2N, ECE, KL: {Aside.NEEDS_LOGITS}") in tables.summary(run)
    assert "margin" not in run.flat()


@given(st.integers(1, 60), st.integers(2, 6), st.integers(0, 2**32 - 1))
def test_calibration_error_is_that_of_its_bins(count, classes, seed):
    random = np.random.default_rng(seed)
    p = random.dirichlet(np.ones(classes), count)
    labels = random.integers(0, classes, count)
    result = calibration_error(p.max(1), p.argmax(1) == labels)
    assert result == pytest.approx(naive.calibration_error(p, labels), abs=1e-12)


def test_margins_forgetting_and_learning_by_hand():
    assert margins(np.array([[2.0, 1.0, 5.0]]), np.array([2])).tolist() == [3.0]
    correct = np.array([[0, 1, 1], [1, 0, 1], [0, 1, 1], [1, 1, 1]]) > 0
    assert forgetting_events(correct).tolist() == [[0, 0, 0], [0, 1, 0], [1, 1, 0], [1, 1, 0]]
    assert learned_at(correct).tolist() == [3, 2, 0]
    known = np.array([[-1, 1, 0, 1], [1, -1, -1, 1], [1, -1, 1, 0], [-1, 1, 1, -1]])
    assert forgetting_events(known)[-1].tolist() == [0, 0, 0, 1]
    assert learned_at(known).tolist() == [1, 0, 2, 4]


def test_a_checkpoint_that_predicts_nothing_forgets_nothing(tmp_path):
    """Of six checkpoints the third gives no numbers for any sample, the fifth none for the first; the last sample is forgotten
    over the third, the one before at the fourth, and learned again."""
    labels = np.arange(N) % K
    logits = np.repeat(3.0 * np.eye(K)[None, labels], 6, axis=0)
    logits[3:, -1] = logits[3, -2] = 3.0 * np.eye(K)[(labels[-1] + 2) % K]
    nan = np.zeros((6, N), bool)
    nan[2], nan[4, 0] = True, True
    logits[nan] = np.nan
    with open_activations(written(tmp_path / "a.h5", logits, labels)) as activations:
        run = compute_metrics(activations, measures=["forgetting", "learned"])
    np.testing.assert_allclose(run.column("forgetting"), [0, 0, np.nan, 2 / N, 2 / (N - 1), 2 / N])
    learned = [(N - 2) / N, (N - 2) / N, np.nan, (N - 2) / N, (N - 2) / (N - 1), (N - 1) / N]
    np.testing.assert_allclose(run.column("learned"), learned)
    for key in ("forgetting", "learned"):
        measured = run.measures[key]
        np.testing.assert_array_equal(np.isfinite([measured.low, measured.high]), np.isfinite([measured.value] * 2))


def test_what_an_untrained_network_has_right_by_chance_is_not_forgotten(tmp_path):
    labels = np.arange(N) % 2
    hard = np.arange(N) < N // 3
    trained = 3.0 * np.eye(2)[np.where(hard, 1 - labels, labels)]
    logits = np.stack([np.random.default_rng(3).standard_normal((N, 2)), trained, trained, -trained])
    path = written(tmp_path / "a.h5", logits, labels, steps=(0, 100, 200, 300))
    with open_activations(path) as activations:
        run = compute_metrics(activations, measures=["forgetting", "learned"])
    assert ((logits[0].argmax(1) == labels) & hard).sum() > N // 8
    np.testing.assert_allclose(run.column("forgetting"), [0, 0, 0, 1 - hard.mean()])
    np.testing.assert_allclose(run.column("learned")[1:], [0, 0, hard.mean()])


def test_intervals_over_samples_cover():
    """Of a share, a mean and a function of both; of 300 repetitions at 95 % at least 92 %."""
    random = np.random.default_rng(0)
    covered = np.zeros(3)
    for seed in range(300):
        share, x = over_samples(random.random(60) < 0.05), random.exponential(size=(2, 200))
        mean = over_samples(x[0])
        ratio, se = jackknifed(lambda rows, x=x: x[0, rows].mean() / x[1, rows].mean(), 200, seed)
        covered += [share.low <= 0.05 <= share.high, mean.low <= 1 <= mean.high, abs(ratio - 1) < 2.09 * se]
    assert (covered / 300 >= 0.92).all()


def test_a_calibrated_network_is_not_called_otherwise(tmp_path):
    """Labels are drawn from the stated probabilities: the interval holds 0; shifted scores are overconfident."""
    random = np.random.default_rng(4)
    logits = 1.5 * random.standard_normal((1, 1000, K)).astype("f2")
    p = np.exp(logits[0].astype(float))
    labels = np.array([random.choice(K, p=row / row.sum()) for row in p])
    for scale, honest in ((1, True), (3, False)):
        with open_activations(written(tmp_path / f"{scale}.h5", scale * logits, labels)) as activations:
            run = compute_metrics(activations, Protocol.named("default"), nulls=99, max_nulls=99, measures=KEYS)
        measured = run.measures["calibration_error"]
        assert (measured.low[0] == 0) == honest
        assert (measured.nulls["calibrated"].p[0] > 0.05) == honest
    assert MEASURES["calibration_error"].lower_is_better


def test_which_scores_fall_is_told_by_their_names():
    falling = [
        "rmsle",
        "smape",
        "ppl",
        "bits_per_byte",
        "valRMSE",
        "EPE",
        "minADE",
        "FVD",
        "edit_dist",
        "huber",
        "logLoss",
        "top1Error",
        "WER",
        "KL",
    ]
    rising = [
        "R2",
        "mIoU",
        "auc",
        "grade",
        "F1",
        "ELBO",
        "psnr",
        "accuracy",
        "mAP",
        "log_likelihood",
        "Dice",
        "order",
        "edit_similarity",
        "hamming_score",
    ]
    assert [name for name in falling if not lower_is_better(name)] == []
    assert [name for name in rising if lower_is_better(name)] == []


def test_the_interval_of_a_small_calibration_error_covers_it():
    """Accuracies of 3 points less than said, of 300 samples; the estimate alone is more than twice as large."""
    random, covered, values = np.random.default_rng(5), 0, []
    for seed in range(60):
        confidence = random.beta(5, 2, 300)
        correct = random.random(300) < confidence - 0.03
        value, low, high = with_interval(confidence, correct, calibrated_errors(confidence, 39, random), seed)
        covered += low <= 0.03 <= high
        values.append(value)
        assert low <= value <= high
    assert covered >= 55
    assert np.mean(values) > 0.06


def test_the_documentation_lists_every_measure():
    text = (Path(__file__).parents[2] / "docs" / "measures.md").read_text()
    missing = [key for key in MEASURES if f"`{key}`" not in text and not key.startswith("loss_at_")]
    assert missing == []
