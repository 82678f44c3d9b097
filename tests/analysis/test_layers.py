"""Measures of what layers represent: on geometries that are known, against the obvious computation, and in a run's file."""

import tracemalloc

import naive
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from noise import recording

from posthoc.analysis import arrays
from posthoc.analysis.measures import MEASURES, Replay
from posthoc.analysis.measures.collapse import duality, other_than_nearest, simplex, variability
from posthoc.analysis.measures.layers import dimension_ends, settled_at
from posthoc.analysis.measures.probing import ridge_predictions
from posthoc.analysis.metrics import compute_metrics
from posthoc.analysis.records import Aside, load_metrics
from posthoc.analysis.representation import anisotropy, intrinsic_dimension, power_law, spectra
from posthoc.report import tables
from posthoc.store import Frame, Layout, open_activations
from posthoc.writing import write

KEYS = [
    "effective_rank", "participation_ratio", "alpha_req", "anisotropy", "twonn", "cka_previous", "cka_last",
    "cka_untrained", "settled", "dead_units", "saturated_units", "probe_accuracy", "nc1", "nc2_lengths", "nc2_angles",
    "nc3", "nc4",
]  # fmt: skip
N, K, C, D, E = 400, 4, 6, 5, 4
LAYERS = ("turns", "stays")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """An untrained checkpoint and three trained ones of two layers: one learns the classes, one stays as it is, with a
    channel that is dead; what the last layer is given collapses."""
    random = np.random.default_rng(0)
    labels = random.integers(0, K, N)
    start, noise = random.standard_normal((C, N)), random.standard_normal((N, D))
    still = random.standard_normal((C, N))
    still[2] = 0.7
    classes = random.standard_normal((C, K))[:, labels]
    weight = np.linalg.qr(random.standard_normal((D, D)))[0][:K]
    weight -= weight.mean(axis=0)
    frames = []
    for e in range(E):
        features = e * weight[labels] + noise / (1 + e)
        prediction = (features @ weight.T).argmax(1)
        frames.append(
            Frame(f"{e}", f"{e}", e, 10 * e, 0.5, 0.5, {},
                  {"mean": {"turns": (start + e * classes).astype("f4"), "stays": still.astype("f4")}},
                  behaviour={"prediction": prediction, "correct": (prediction == labels).astype("u1"),
                             "features": features.astype("f4"), "loss": np.zeros(N, "f4")},
                  head={"weight": weight.astype("f4"), "bias": np.zeros(K, "f4")})
        )  # fmt: skip
    path = tmp_path_factory.mktemp("layers") / "a.h5"
    channels = dict.fromkeys(LAYERS, np.arange(C))
    write(path, Layout(recording(LAYERS, images=N, classes=K), np.arange(N), labels, channels), frames)
    return path


@pytest.fixture(scope="module")
def run(file):
    with open_activations(file) as activations:
        return compute_metrics(activations, nulls=19, max_nulls=19, measures=KEYS)


def test_every_measure_has_values_layers_and_intervals(run):
    for key in KEYS:
        measured, skipped = run.measures[key], key == "cka_previous"
        assert np.isfinite(measured.value).tolist() == [not skipped, True, True, True], key
        if key.startswith("nc"):
            continue
        assert measured.by_layer.shape == (E, len(LAYERS))
        np.testing.assert_allclose(measured.value[1:], np.nanmean(measured.by_layer[1:], axis=1))
        if key != "settled":
            assert (measured.low[1:] <= measured.value[1:]).all(), key
            assert (measured.value[1:] <= measured.high[1:]).all(), key
            assert np.isfinite(measured.by_layer_low[1:]).all()


def test_the_values_are_those_of_the_data(run, file):
    table = {key: measured.by_layer for key, measured in run.measures.items()}
    with open_activations(file) as activations:
        snapshot = Replay(activations, "mean").at(2)
        for k, x in enumerate(snapshot.channels):
            assert table["twonn"][2, k] == pytest.approx(naive.two_nearest(x))
            assert table["anisotropy"][2, k] == pytest.approx(naive.anisotropy(x))
            eigenvalues = np.sort(np.linalg.eigvalsh(np.cov(x)))[::-1]
            assert table["alpha_req"][2, k] == pytest.approx(power_law(eigenvalues))
        geometry = run.representation
    for key in ("effective_rank", "participation_ratio", "cka_last"):
        np.testing.assert_array_equal(table[key], getattr(geometry, key))
    assert table["dead_units"].tolist() == [[0, 1 / C]] * E
    np.testing.assert_allclose(table["cka_untrained"][:, 1], 1)
    assert table["cka_untrained"][0, 0] == pytest.approx(1)
    assert (np.diff(table["cka_untrained"][:, 0]) < 0).all()
    assert table["settled"][:, 1].tolist() == [1] * E
    assert (np.diff(table["probe_accuracy"][:, 0]) > 0).all()
    assert table["probe_accuracy"][3, 0] > 0.8 > 0.5 > table["probe_accuracy"][3, 1]


def test_labels_decide_about_what_is_read_from_layers(run):
    assert run.measures["probe_accuracy"].decided_by == run.measures["nc1"].decided_by == "label"
    assert run.measures["nc1"].nulls["label"].p[3] == pytest.approx(0.1)
    assert run.measures["nc1"].value[3] < run.measures["nc1"].nulls["label"].low[3]
    assert run.measures["probe_accuracy"].nulls["label"].mean[3] == pytest.approx(1 / K, abs=0.05)


def test_collapse_through_training(run):
    for key in ("nc1", "nc3", "nc4"):
        assert run.column(key)[3] < run.column(key)[0]
    assert run.column("nc3")[3] < 0.05
    assert run.column("nc4")[3] == 0
    assert run.column("nc2_angles")[3] < 0.1


def test_they_come_back_from_the_file_and_are_columns(run, tmp_path):
    run.save(tmp_path / "m.json")
    again = load_metrics(tmp_path / "m.json")
    for key in KEYS:
        np.testing.assert_array_equal(again.column(key), run.column(key))
    assert {"twonn_turns", "twonn_low_stays", "probe_accuracy_label_p", "nc1_low"} <= set(run.flat())


def test_what_lacks_data_says_which(tmp_path):
    random = np.random.default_rng(0)
    frames = [
        Frame(f"{e}", f"{e}", e + 1, None, 0.5, 0.5, {},
              {"mean": {"a": random.standard_normal((C, 90)).astype("f4")}}) for e in range(2)
    ]  # fmt: skip
    layout = Layout(recording(["a"], images=90, classes=None), np.arange(90), None, {"a": np.arange(C)})
    write(tmp_path / "a.h5", layout, frames)
    with open_activations(tmp_path / "a.h5") as activations:
        run = compute_metrics(activations, measures="all")
    reasons = {key: run.measures[key].aside for key in KEYS if run.measures[key].aside}
    assert reasons.pop("cka_untrained") is Aside.NEEDS_UNTRAINED
    assert set(reasons) == {"probe_accuracy", "nc1", "nc2_lengths", "nc2_angles", "nc3", "nc4"}
    assert set(reasons.values()) == {Aside.NEEDS_LABELS}
    assert ("not measured", f"CKA(untrained): {Aside.NEEDS_UNTRAINED}") in tables.summary(run)


def test_neural_collapse_of_a_simplex_and_of_noise():
    """Four points on a simplex, with weights along them: collapsed; a class mean that is longer is not."""
    corners = np.eye(K) - 1 / K
    labels = np.repeat(np.arange(K), 25)
    features = corners[labels] + 3.0
    assert variability(features, labels) == pytest.approx(0, abs=1e-20)
    assert simplex(features, labels) == pytest.approx((0, 0), abs=1e-12)
    assert duality(features, labels, 7 * corners) == pytest.approx(0, abs=1e-12)
    assert duality(features, labels, -corners) == pytest.approx(4)
    assert not other_than_nearest(features, labels, labels).any()
    assert other_than_nearest(features, labels, (labels + 1) % K).all()
    assert simplex(features * (1 + (labels == 0))[:, None], labels)[0] > 0.1
    assert np.isnan(variability(features, np.zeros(100, int)))


@given(st.integers(2, 5), st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_variability_is_the_trace_of_its_definition(classes, width, seed):
    random = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), random.integers(0, classes, 30)])
    features = random.standard_normal((len(labels), width)) + random.standard_normal((classes, width))[labels]
    assert variability(features, labels) == pytest.approx(naive.variability(features, labels), rel=1e-6)


def test_dimension_rank_and_direction_of_what_is_known():
    random = np.random.default_rng(0)
    plane = random.standard_normal((20, 2)) @ random.uniform(size=(2, 2000))
    assert intrinsic_dimension(plane)[0] == pytest.approx(2, abs=0.15)
    assert np.isnan(intrinsic_dimension(np.ones((3, 50)))[0])
    assert power_law(np.arange(1, 30) ** -0.7) == pytest.approx(0.7)
    assert np.isnan(power_law(np.zeros(5)))
    assert anisotropy(np.ones((3, 10))) == pytest.approx(1)
    assert abs(anisotropy(random.standard_normal((50, 500)))) < 0.01


def test_the_interval_of_a_dimension_covers_what_is_expected_of_it():
    """Of fresh samples of flat tori, which have no borders; as of independent ratios it would cover 0.85."""
    random, covered = np.random.default_rng(8), []
    for d in (2, 5):
        turns = random.uniform(0, 2 * np.pi, (200, d, 300))
        values = np.array([intrinsic_dimension(x)[0] for x in np.concatenate([np.cos(turns), np.sin(turns)], axis=1)])
        low, high = dimension_ends(values, np.full(200, 300))
        assert ((low < values) & (values < high)).all()
        covered.append(((low <= values.mean()) & (values.mean() <= high)).mean())
    assert 0.92 <= np.mean(covered) <= 0.98


def test_spectra_without_a_group_are_those_of_the_others():
    random = np.random.default_rng(0)
    x = random.standard_normal((4, 60)) + 2
    groups = np.array_split(random.permutation(60), 5)
    result = spectra(x, groups)
    np.testing.assert_allclose(result[0], np.sort(np.linalg.eigvalsh(np.cov(x, ddof=0)))[::-1])
    left = np.delete(x, groups[3], axis=1)
    np.testing.assert_allclose(result[4], np.sort(np.linalg.eigvalsh(np.cov(left, ddof=0)))[::-1])


def test_ridge_predictions_are_those_of_the_normal_equations():
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 50)
    x = random.standard_normal((70, 4)) * [1, 2, 3, 0] + np.pad(
        np.eye(3)[labels] @ random.standard_normal((3, 4)), ((0, 20), (0, 0))
    )
    expected = naive.ridge(x[:50], x[50:], labels, 3)
    sets = np.stack([labels, labels[::-1]])
    result = list(ridge_predictions(x[:50], x[50:], sets, 3))
    np.testing.assert_array_equal(result[0], expected)
    np.testing.assert_array_equal(result[1], naive.ridge(x[:50], x[50:], labels[::-1], 3))


def test_many_classes_are_probed_some_at_a_time_and_draws_one_after_another(monkeypatch):
    random = np.random.default_rng(1)
    x, labels = random.standard_normal((1000, 32)), random.integers(0, 200, (30, 1000))
    x[:, :8] += labels[0, :, None] / 100
    fitted, held_out, sets = x[:500], x[500:], labels[:, :500]
    whole = list(ridge_predictions(fitted, held_out, sets, 200))
    np.testing.assert_array_equal(whole[0], naive.ridge(fitted, held_out, sets[0], 200))
    monkeypatch.setattr(arrays, "AT_A_TIME", 7 * 1000)
    tracemalloc.start()
    np.testing.assert_array_equal(list(ridge_predictions(fitted, held_out, sets, 200)), whole)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2e6  # all targets at once are 24 MB


def test_a_label_of_a_large_number_is_a_class_as_another(tmp_path):
    random = np.random.default_rng(2)
    labels = np.arange(96) % K
    x = (np.eye(K)[labels].T + 0.7 * random.standard_normal((K, 96))).astype("f4")
    frame = Frame("1", "1", 1, None, 0.5, 0.5, {}, {"mean": {"a": x}})
    probes = []
    for most in (K - 1, 30_000_000):
        large = np.where(labels == K - 1, most, labels)
        layout = Layout(recording(["a"], images=96, classes=K), np.arange(96), large, {"a": np.arange(K)})
        write(tmp_path / f"{most}.h5", layout, [frame])
        with open_activations(tmp_path / f"{most}.h5") as activations:
            run = compute_metrics(activations, measures="probe_accuracy", nulls=9, max_nulls=9)
        probes.append(run.measures["probe_accuracy"])
    small, large = probes
    assert 0.4 < small.value[0] == large.value[0] < 1
    assert small.nulls["label"].mean[0] == large.nulls["label"].mean[0]
    np.testing.assert_array_equal([small.low, small.high], [large.low, large.high])


def test_a_layer_without_a_finite_channel_is_not_probed(tmp_path):
    labels = np.arange(96) % K
    x = (np.eye(K)[labels].T + 0.1 * np.random.default_rng(0).standard_normal((K, 96))).astype("f4")
    layout = Layout(
        recording(["a", "b"], images=96, classes=K), np.arange(96), labels, {"a": np.arange(K), "b": np.arange(K)}
    )
    frame = Frame("1", "1", 1, None, 0.5, 0.5, {}, {"mean": {"a": x, "b": np.full_like(x, np.nan)}})
    write(tmp_path / "a.h5", layout, [frame])
    with open_activations(tmp_path / "a.h5") as activations:
        probe = compute_metrics(activations, measures="probe_accuracy", nulls=3).measures["probe_accuracy"]
    assert probe.value[0] == probe.by_layer[0, 0] > 0.9
    assert np.isnan(probe.by_layer[0, 1])
    assert probe.nulls["label"].draws.tolist() == [3]


def test_when_layers_settle():
    assert settled_at(np.array([[0.2, 0.99, np.nan], [0.96, 0.5, np.nan], [1.0, 1.0, np.nan]])) == [1, 2, None]
    assert MEASURES["settled"].default is False
