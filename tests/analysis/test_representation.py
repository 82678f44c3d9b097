"""Spectra and similarity: against the obvious computation, and on representations whose geometry is known."""

import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from noise import recording

from posthoc.analysis.metrics import compute_metrics
from posthoc.analysis.protocol import Protocol
from posthoc.analysis.representation import effective_rank, representation
from posthoc.analysis.similarity import (
    Sample,
    _jackknife,
    alignment,
    cross,
    debiased_cka,
    participation_ratios,
    similarity,
)
from posthoc.errors import UsageError
from posthoc.recording import Layer
from posthoc.store import Frame, Layout, open_activations
from posthoc.writing import write

SHAPES = st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(10, 60), st.integers(0, 2**32 - 1))


@given(SHAPES, st.sampled_from([1e-100, 1e-6, 1.0, 1e6, 1e100]), st.floats(-1e3, 1e3))
def test_cka_is_that_of_the_gram_matrices_whatever_scale_and_offset(shape, scale, offset):
    """Where all channels are recorded; near 0 / 0 there may be none."""
    C, D, N, seed = shape
    random = np.random.default_rng(seed)
    x, y = random.standard_normal((C, N)), random.standard_normal((D, N))
    y[0] += x[0]
    result = debiased_cka(scale * (x + offset), y)
    if np.isfinite(result):
        assert result == pytest.approx(naive.debiased_cka(x, y), abs=1e-6)
    assert np.isfinite(result) or N < 20


def test_cka_of_equal_rotated_and_independent_representations():
    random = np.random.default_rng(0)
    x = random.standard_normal((20, 500))
    rotation = np.linalg.qr(random.standard_normal((20, 20)))[0]
    assert debiased_cka(x, 3 * rotation @ x) == pytest.approx(1)
    independent = [debiased_cka(x, random.standard_normal((50, 500))) for _ in range(200)]
    assert abs(np.mean(independent)) < 4 * np.std(independent) / np.sqrt(200)
    assert np.std(independent) < 0.01


def test_what_does_not_vary_or_is_not_finite_has_no_similarity():
    x = np.random.default_rng(0).standard_normal((3, 50))
    assert np.isnan(debiased_cka(x, np.ones((2, 50)) * 0.1))
    with_nan = np.vstack([x, np.full((1, 50), np.nan)])
    assert debiased_cka(with_nan, x) == pytest.approx(1)
    assert np.isnan(debiased_cka(with_nan[3:], x))
    jitter = np.float32(3) + np.float32(2e-7) * (np.arange(100).reshape(2, 50) % 3).astype("f4")
    assert np.isnan(debiased_cka(x, jitter))
    for y in (x[:, :20], x[:, :9], x[0]):
        with pytest.raises(UsageError, match="same 10 or more images"):
            debiased_cka(y, y if y.shape != (3, 20) else x)
    with pytest.raises(UsageError, match="3 of 64 channels"):
        similarity(x, x, (64, 64))
    with pytest.raises(UsageError, match="same channels"):
        similarity(x, x[:2], same=True)
    with pytest.raises(UsageError, match="complex"):
        similarity(x, 1j * x)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 4), st.sampled_from([0, 3, 60]), st.booleans())
def test_sampled_layers_equal_their_naive_twins(seed, C, more, same):
    random = np.random.default_rng(seed)
    x, y = random.standard_normal((2, C, 10)) @ (np.eye(10) + random.standard_normal((10, 10)))
    a, b = Sample.of(x, C + more), Sample.of(y, C + more)
    expected = naive.mean_squared_covariance(a.x, b.x, C + more, same)
    assert cross(a, b, same).value == pytest.approx(expected, rel=1e-7, abs=1e-12)
    ratio = participation_ratios(a)[1]
    assert np.isnan(ratio) == (naive.mean_squared_covariance(a.x, a.x, C + more, True) <= 0)
    if np.isfinite(ratio):
        assert ratio == pytest.approx(naive.participation_ratio(x, C + more), rel=1e-6)
    result = alignment(a, b, same)
    if np.isfinite(result.cka):
        assert result.cka == pytest.approx(naive.cka(x, y, (C + more, C + more), same), rel=1e-6)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(3, 6), st.booleans())
def test_what_it_would_be_with_an_image_or_a_channel_less(seed, C, same):
    random = np.random.default_rng(seed)
    x, y = random.standard_normal((2, C, 15))
    x, y = x - x.mean(axis=1, keepdims=True), y - y.mean(axis=1, keepdims=True)

    def sample(values, kept=slice(None)):
        return Sample(values[kept], np.ones(len(values[kept]), bool), 50)

    whole = cross(sample(x), sample(y), same)
    less = [np.delete(values, 3, axis=1) for values in (x, y)]
    less = [values - values.mean(axis=1, keepdims=True) for values in less]
    assert whole.images[3] == pytest.approx(cross(sample(less[0]), sample(less[1]), same).value, abs=1e-10)
    others = np.arange(C) != 1
    without = cross(sample(x, others), sample(y, others if same else slice(None)), same).value
    assert whole.first[1] == pytest.approx(without, abs=1e-10)
    if not same:
        assert whole.second[1] == pytest.approx(cross(sample(x), sample(y, others), same).value, abs=1e-10)


def test_a_few_channels_stand_for_their_layer():
    """Two layers of 512 channels, equal up to rotation: 32 channels of each are as like as the layers, on average."""
    random = np.random.default_rng(0)
    source = np.linspace(1, 0.02, 512)[:, None] ** 3 * random.standard_normal((512, 800))
    layer, rotated = (np.linalg.qr(random.standard_normal((512, 512)))[0] @ source for _ in range(2))
    assert debiased_cka(layer, rotated) == pytest.approx(1)
    results, plain, ratios = [], [], []
    for _ in range(60):
        x, y = (whole[random.permutation(512)[:32]] for whole in (layer, rotated))
        results.append(similarity(x, y, (512, 512)))
        plain.append(debiased_cka(x, y))
        ratios.append(participation_ratios(Sample.of(x, 512))[1])
    estimates = np.array([(result.cka, result.sd) for result in results])
    assert np.mean(plain) < 0.7
    assert estimates[:, 0].mean() == pytest.approx(1, abs=0.03)
    assert estimates[:, 1].mean() == pytest.approx(estimates[:, 0].std(), rel=0.4)
    assert np.mean(ratios) == pytest.approx(participation_ratios(Sample.of(layer))[0], rel=0.05)
    x = layer[:32]
    assert similarity(x, 2 * x, (512, 512), same=True).cka == pytest.approx(1)


def test_the_spread_over_images_is_measured():
    random = np.random.default_rng(1)
    mixing = random.standard_normal((2, 6, 6))
    estimates = []
    for _ in range(300):
        source = random.standard_normal((6, 30))
        result = similarity(mixing[0] @ source, mixing[1] @ source)
        estimates.append((result.cka, result.sd))
    estimates = np.array(estimates)
    assert estimates[:, 1].mean() == pytest.approx(estimates[:, 0].std(), rel=0.3)


def test_dimensions_are_those_of_many_images():
    random = np.random.default_rng(0)
    basis = np.linalg.qr(random.standard_normal((400, 8)))[0].T
    basis -= basis.mean(axis=1, keepdims=True)
    x = np.linalg.qr(random.standard_normal((32, 8)))[0] @ basis
    assert effective_rank(Sample.of(x + 7).singular_values) == pytest.approx(8, rel=0.02)
    assert np.isnan(effective_rank(Sample.of(np.ones((4, 50))).singular_values))
    assert np.isnan(participation_ratios(Sample.of(np.ones((4, 50))))).all()
    for C, N in ((512, 128), (64, 40), (20, 1000)):
        white = [participation_ratios(Sample.of(random.standard_normal((C, N))))[0] for _ in range(40)]
        assert np.mean(white) == pytest.approx(C, rel=0.03)


@pytest.mark.parametrize(("layer", "total"), [
    ({"total": 64, "shape": [8, 8, 64]}, 64), ({"shape": [64, 8, 8]}, 64), ({"shape": [8, 8, 64]}, 64),
    ({"shape": [512]}, 512), ({"shape": [197, 768]}, 768), ({"shape": [8, 8, 8]}, None), ({"shape": [64, 4, 8]}, None),
    ({}, None),
])  # fmt: skip
def test_how_many_channels_a_layer_has(layer, total):
    assert Layer("a", **layer).size == total


@pytest.fixture(scope="module")
def turning(tmp_path_factory):
    """Thirty checkpoints of two layers: one turns slowly into noise of its own, one stays."""
    random = np.random.default_rng(0)
    start, end, still = (random.standard_normal((6, 200)) for _ in range(3))
    plan = Layout(
        recording(["turns", "stays"], images=200, classes=5),
        np.arange(200),
        np.arange(200) % 5,
        {"turns": np.arange(6), "stays": np.arange(6)},
    )
    frames = []
    for e in range(30):
        angle = e / 29 * np.pi / 2
        signals = {
            "mean": {"turns": (np.cos(angle) * start + np.sin(angle) * end).astype("f4"), "stays": still.astype("f4")}
        }
        frames.append(Frame(f"{e}", f"{e}", e + 1, None, 0.5, 0.5, {}, signals))
    path = tmp_path_factory.mktemp("turning") / "a.h5"
    write(path, plan, frames)
    return path


def test_a_run_s_geometry(turning):
    with open_activations(turning) as activations:
        geometry = representation(activations, "mean")
    np.testing.assert_allclose(geometry.cka_last[:, 1], 1)
    assert np.isnan(geometry.cka_previous[0]).all()
    assert (geometry.cka_previous[1:, 0] > 0.9).all()
    assert (np.diff(geometry.cka_last[:, 0]) > 0).all()
    assert abs(geometry.cka_last[0, 0]) < 0.1
    np.testing.assert_allclose(np.diagonal(geometry.cka_layers, axis1=1, axis2=2), 1)
    assert np.abs(geometry.cka_layers[:, 0, 1]).max() < 0.1
    assert np.nanmax(geometry.cka_last_sd[:, 1]) < 1e-6
    assert 0.01 < geometry.cka_last_sd[10, 0] < 0.1
    assert ((geometry.participation_ratio > 5) & (geometry.participation_ratio < 7)).all()
    assert ((geometry.effective_rank > 5) & (geometry.effective_rank <= 6)).all()


@pytest.mark.parametrize("signal", ["effective-rank", "participation-ratio"])
def test_as_a_signal_of_the_epoch_axis_and_as_columns(turning, tmp_path, signal):
    with open_activations(turning) as activations:
        metrics = compute_metrics(activations, Protocol.named("default", axis="epoch", signal=signal), nulls=5)
        assert [unit.layer for unit in metrics.units] == ["turns", "stays"]
        assert metrics.checkpoints[-1].reasons["constant"] == 1  # the layer that stays
        assert np.isfinite(metrics.measures["hurst"].by_unit[-1, 0])
    metrics.save_csv(tmp_path / "m.csv")
    header = (tmp_path / "m.csv").read_text().splitlines()[0]
    assert "effective_rank_turns" in header
    assert "cka_previous_stays" in header
    assert "cka_last_sd_turns" in header
    with pytest.raises(UsageError, match="use --axis epoch"):
        Protocol.named("default", signal=signal)


def test_what_leaving_a_channel_out_makes_infinite_has_no_variance_and_warns_of_nothing():
    with np.errstate(all="raise"):
        assert np.isnan(_jackknife(np.array([np.inf, 1.0, 2.0])))
    assert _jackknife(np.array([0.0, 2.0])) == 1.0
