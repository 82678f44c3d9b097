"""Exact noise, and the exponents of short series freed of their bias."""

import os

import numpy as np
import pytest

from posthoc.analysis.calibration import calibration, fractional_gaussian_noise
from posthoc.analysis.dfa import default_scales, dfa
from posthoc.errors import UsageError

pytestmark = pytest.mark.skipif(os.environ.get("NUMBA_DISABLE_JIT") == "1", reason="many series, compiled")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "calibration"))


@pytest.mark.parametrize("H", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("T", [25, 64])
def test_noise_has_exactly_its_covariance(H, T):
    x = fractional_gaussian_noise(H, T, 40_000, np.random.default_rng(0))
    k = np.arange(T)
    expected = 0.5 * ((k + 1.0) ** (2 * H) - 2 * k ** (2 * H) + np.abs(k - 1.0) ** (2 * H))
    np.testing.assert_allclose(x.T @ x / len(x), expected[np.abs(k[:, None] - k)], atol=0.04)
    with pytest.raises(UsageError):
        fractional_gaussian_noise(1.0, T, 1, np.random.default_rng(0))


@pytest.mark.parametrize("T", [25, 58, 128])
@pytest.mark.parametrize("H", [0.3, 0.6, 0.9])
def test_bias_is_removed_and_intervals_cover(H, T):
    scales = default_scales(T)
    x = fractional_gaussian_noise(H, T, 8000, np.random.default_rng(int(100 * H) + T))
    alpha = dfa(x, scales).alpha
    known = calibration(T, tuple(scales.tolist()))
    assert float(known.debias(alpha.mean())) == pytest.approx(H, abs=0.02)
    low, high = known.interval(alpha)
    assert 0.93 <= np.mean((low <= H) & (high >= H)) <= 0.97


def test_nothing_is_clipped():
    known = calibration(40, tuple(default_scales(40).tolist()))
    assert np.isnan(known.debias([-1.0, 5.0])).all()
    low, high = known.interval([-1.0, 5.0])
    assert low.tolist() == [-np.inf, np.inf]
    assert high.tolist() == [-np.inf, np.inf]


def test_dfa_gives_debiased_exponents_on_request():
    x = fractional_gaussian_noise(0.7, 64, 3, np.random.default_rng(0))
    result = dfa(x, calibrate=True)
    assert result.debiased.shape == result.low.shape == (3,)
    assert (result.low < result.debiased).all()
    one = dfa(x[0], calibrate=True)
    assert one.debiased == result.debiased[0]
    assert dfa(x[0]).debiased is None
    with pytest.raises(UsageError):
        dfa(x, overlap=0.5, calibrate=True)


def test_kept_on_disk_and_simulated_again_if_spoilt(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    arguments = (30, tuple(default_scales(30).tolist()))
    first = calibration.__wrapped__(*arguments)
    (file,) = tmp_path.iterdir()
    stamp = file.stat().st_mtime_ns
    np.testing.assert_array_equal(calibration.__wrapped__(*arguments).mean, first.mean)
    assert file.stat().st_mtime_ns == stamp
    file.write_bytes(b"PK spoilt")
    np.testing.assert_array_equal(calibration.__wrapped__(*arguments).mean, first.mean)
