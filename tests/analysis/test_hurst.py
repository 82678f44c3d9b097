"""Likelihoods of fractional Gaussian noise against dense linear algebra, and what the estimators find in known noise."""

import os

import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from noise import make as noise_file

from posthoc import hurst, load_metrics, open_activations
from posthoc.analysis.compare import RESPONDS_TO
from posthoc.analysis.dfa import dfa
from posthoc.analysis.fractional import fractional_gaussian_noise
from posthoc.analysis.hurst import (
    FINE,
    GRID,
    _expected_periodogram,
    exponents,
    reml_log_likelihood,
    whittle_log_likelihood,
)
from posthoc.analysis.measures.integration import middle
from posthoc.analysis.metrics import compute_metrics
from posthoc.analysis.protocol import Protocol
from posthoc.errors import UsageError

compiled = pytest.mark.skipif(os.environ.get("NUMBA_DISABLE_JIT") == "1", reason="many series, compiled")
SETTINGS = settings(max_examples=10, deadline=None)
LIKELIHOODS = {
    "reml": (reml_log_likelihood, naive.reml_log_likelihood),
    "whittle": (whittle_log_likelihood, naive.whittle_log_likelihood),
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "calibration"))


def noise(H, T, count, seed=0):
    return fractional_gaussian_noise(H, T, count, np.random.default_rng([seed, T, round(100 * H)]))


@SETTINGS
@pytest.mark.parametrize("estimator", LIKELIHOODS)
@given(st.integers(0, 2**32 - 1), st.integers(10, 40), st.floats(0, 1))
def test_likelihoods_equal_their_naive_twins_up_to_a_constant(estimator, seed, T, power):
    x = np.random.default_rng(seed).standard_normal((2, T))
    x = (1 - power) * x + power * np.cumsum(x, axis=1)
    fast, slow = LIKELIHOODS[estimator]
    likelihood = fast(x - x.mean(axis=1, keepdims=True))
    some = [0, 9, 30, 46, 55]
    for u, row in enumerate(x):
        expected = np.array([slow(row, GRID[g]) for g in some])
        np.testing.assert_allclose(np.diff(likelihood[u, some]), np.diff(expected), atol=1e-6)


@SETTINGS
@given(st.integers(0, 2**32 - 1), st.integers(10, 40), st.sampled_from([*LIKELIHOODS]))
def test_estimate_and_interval_are_of_the_naive_likelihood(seed, T, estimator):
    x = np.random.default_rng(seed).standard_normal(T)
    result = hurst(x, estimator)
    slow = LIKELIHOODS[estimator][1]
    best = slow(x, float(result.H))
    assert best >= max(slow(x, H) for H in FINE[::45]) - 1e-4
    for end, limit in ((result.low, 0.0), (result.high, 1.0)):
        if end == limit:
            assert best - slow(x, abs(limit - 0.005)) <= 1.9208 + 0.01
        else:
            assert best - slow(x, float(end)) == pytest.approx(1.9208, abs=0.1)
    assert result.low <= result.H <= result.high


def test_the_expected_periodogram_tends_to_the_spectral_density():
    expected, _ = _expected_periodogram(4096)
    some = np.array([40, 300, 1000, 2047])
    for g in (5, 28, 50):
        density = naive.fgn_spectrum(GRID[g], (some + 1) * 2 * np.pi / 4096)
        np.testing.assert_allclose(expected[some, g], 2 * np.pi * density, rtol=0.01)


@compiled
@pytest.mark.parametrize(("T", "H", "estimator", "error"), [
    (25, 0.5, "reml", 0.17), (25, 0.7, "reml", 0.18), (25, 0.5, "whittle", 0.18), (25, 0.7, "whittle", 0.19),
    (58, 0.5, "reml", 0.10), (58, 0.7, "reml", 0.10), (58, 0.5, "whittle", 0.10), (58, 0.7, "whittle", 0.10),
    (512, 0.5, "whittle", 0.029), (512, 0.7, "whittle", 0.029),
])  # fmt: skip
def test_errors_and_intervals_of_the_likelihoods(T, H, estimator, error):
    result = hurst(noise(H, T, 3000), estimator)
    assert np.sqrt(np.mean((result.H - H) ** 2)) <= 1.1 * error
    assert 0.93 <= np.mean((result.low <= H) & (result.high >= H)) <= 0.97


@pytest.mark.parametrize("estimator", [*LIKELIHOODS])
@pytest.mark.parametrize("factor", [1e-300, -3.0, 1e300])
def test_units_and_offset_change_nothing(estimator, factor):
    x = noise(0.7, 60, 3)
    plain, scaled = hurst(x, estimator), hurst(factor * (x + 2), estimator)
    np.testing.assert_allclose(scaled.H, plain.H, atol=1e-6)
    np.testing.assert_allclose(scaled.low, plain.low, atol=0.0011)


@pytest.mark.parametrize("estimator", [pytest.param("dfa", marks=compiled), *LIKELIHOODS])
def test_a_batch_of_any_shape(estimator):
    x = noise(0.6, 40, 6).reshape(3, 2, 40)
    x[0, 1] = 7.0
    x[2, 0, 3] = np.nan
    result = hurst(x, estimator)
    assert result.H.shape == result.low.shape == result.high.shape == (3, 2)
    assert [result.reason[k] for k in (1, 4)] == ["constant", "non-finite"]
    assert np.isnan(result.H.ravel()[[1, 4]]).all()
    single = hurst(x[1, 0], estimator)
    np.testing.assert_allclose(
        (single.H, single.low, single.high), (result.H[1, 0], result.low[1, 0], result.high[1, 0]), atol=1e-9
    )


@compiled
def test_what_cannot_be_said_is_said():
    x = noise(0.6, 60, 1)[0]
    assert str(hurst(np.ones(50), "reml")) == "H constant"
    assert str(hurst(x, "reml")) == "H 0.69 (95 %: 0.50 to 0.93)"
    many = hurst(noise(0.6, 20, 50), "dfa")
    k = int(np.flatnonzero(many.undetermined)[0])
    assert "undetermined" in str(hurst(noise(0.6, 20, 50)[k], "dfa"))


@pytest.mark.parametrize(("x", "options", "message"), [
    (np.arange(9.0), {"estimator": "reml"}, "too short"), (np.arange(50.0), {"estimator": "rs"}, "give dfa"),
    (np.arange(3000.0), {"estimator": "reml"}, "whittle is as good"), (np.arange(50.0), {"estimator": "reml", "scales": [4, 8]}, "estimator dfa"), (3.0, {}, "shape"),
    (np.zeros((0, 50)), {}, "shape"), (1j * np.arange(50), {"estimator": "whittle"}, "complex"),
])  # fmt: skip
def test_what_makes_no_sense_is_refused(x, options, message):
    with pytest.raises(UsageError, match=message):
        hurst(x, **options)


def test_exponents_of_measures():
    x = noise(0.7, 80, 4)
    scales = np.array([4, 8, 16])
    by_dfa, by_reml = exponents(x, "dfa", scales, "published"), exponents(x, "reml", scales, "published")
    np.testing.assert_array_equal(by_dfa.alpha, dfa(x, scales, fluctuation="published").alpha)
    np.testing.assert_array_equal(by_reml.alpha, hurst(x, "reml").H)
    np.testing.assert_array_equal(by_reml.fluctuation, by_dfa.fluctuation)


@compiled
def test_metrics_by_likelihood(tmp_path):
    """Noise of 24 checkpoints at its last: the mean over the channels, beside draws by the same estimator."""
    path = noise_file(tmp_path / "a.h5", channels=6)
    protocol = Protocol.named("default", axis="epoch", estimator="reml")
    assert not protocol.calibrate
    with open_activations(path) as activations:
        series = np.stack([activations.read("mean", e).mean(axis=1, dtype=float) for e in range(1, 24)], axis=1)
        metrics = compute_metrics(activations, protocol, nulls=39)
    assert metrics.column("hurst")[-1] == pytest.approx(hurst(series, "reml").H.mean())
    assert metrics.null("time", "hurst")[-1] == pytest.approx(0.5, abs=0.07)
    assert "estimator" in RESPONDS_TO
    metrics.save(tmp_path / "m.json")
    assert load_metrics(tmp_path / "m.json").protocol == protocol
    with pytest.raises(UsageError, match="give dfa, whittle, reml"):
        Protocol.named("default", estimator="rs")
    with pytest.raises(UsageError, match="calibrate debiases DFA, not reml"):
        Protocol.named("default", estimator="reml", calibrate=True)


@pytest.mark.parametrize("n", [1, 2, 3, 40, 41, 64])
def test_the_middle_of_curves_is_that_of_numpy_to_the_bit(n):
    curves = np.random.default_rng(n).standard_normal((n, 12))
    expected = np.quantile(curves, [0.025, 0.975], axis=0)
    np.testing.assert_array_equal(middle(curves), [curves.mean(axis=0), *expected])
