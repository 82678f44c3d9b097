"""Exact noise, and the exponents of short series freed of their bias."""

import os

import numpy as np
import pytest

from posthoc.analysis.calibration import calibration
from posthoc.analysis.dfa import dfa
from posthoc.analysis.fractional import arfima, arfima_covariance, fractional, fractional_gaussian_noise
from posthoc.analysis.kernels import kernel_folder
from posthoc.analysis.scales import default_scales
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


@pytest.mark.parametrize("d", [-0.48, -0.2, 0.3, 0.48])
def test_arfima_has_the_covariance_of_its_spectrum(d):
    """Against the integral of the spectral density, its pole at 0 removed by the substitution w = pi u^power."""
    u = (np.arange(400_000) + 0.5) / 400_000
    power = 2 / (1 - 2 * d)
    w = np.pi * u**power
    weight = np.sinc(w / (2 * np.pi)) ** (-2 * d) * u
    expected = [(weight * np.cos(k * w)).mean() / weight.mean() for k in range(20)]
    np.testing.assert_allclose(arfima_covariance(d, 20), expected, atol=1e-4)
    covariance = arfima_covariance(d, 65)
    assert np.fft.rfft(np.concatenate([covariance, covariance[-2:0:-1]])).real.min() > 0


@pytest.mark.parametrize("T", [25, 58, 128])
@pytest.mark.parametrize("exponent", [0.2, 0.5, 0.9, 1.05, 1.2, 1.5, 1.8])
def test_bias_is_removed_and_intervals_cover(exponent, T):
    scales = default_scales(T)
    known = calibration(T, tuple(scales.tolist()))
    for family in (fractional, arfima):
        x = family(exponent, T, 6000, np.random.default_rng([T, round(100 * exponent)]))
        alpha = dfa(x, scales).alpha
        if family is fractional and not 1 < exponent < 1.28:
            assert float(known.debias(alpha.mean())) == pytest.approx(exponent, abs=0.03)
        low, high = known.interval(alpha)
        share = np.mean((low <= exponent) & (high >= exponent))
        assert 0.93 <= share <= (0.975 if family is fractional else 0.985)


def test_curves_rise_and_intervals_hold_their_exponent():
    known = calibration(58, tuple(default_scales(58).tolist()))
    assert (np.diff(known.mean) > 0).all()
    assert (np.diff(known.low) >= 0).all()
    assert (np.diff(known.high) >= 0).all()
    low, high = known.interval(known.mean)
    assert ((low <= known.exponent) & (known.exponent <= high)).all()


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
    single = dfa(x[0], calibrate=True)
    assert single.debiased == result.debiased[0]
    assert dfa(x[0]).debiased is None
    with pytest.raises(UsageError):
        dfa(x, overlap=0.5, calibrate=True)


def test_kept_on_disk_and_simulated_again_if_spoilt(tmp_path, monkeypatch):
    kernel_folder()  # kernels are where they were
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    arguments = (30, tuple(default_scales(30).tolist()))
    first = calibration.__wrapped__(*arguments)
    (file,) = tmp_path.glob("calibration-*")
    stamp = file.stat().st_mtime_ns
    np.testing.assert_array_equal(calibration.__wrapped__(*arguments).mean, first.mean)
    assert file.stat().st_mtime_ns == stamp
    content = file.read_bytes()
    method = content.index(b"PK\1\2") + 10  # how it says that it is packed
    for spoilt in (content[:method], content[:method] + b"\x63" + content[method + 1 :]):
        file.write_bytes(spoilt)
        np.testing.assert_array_equal(calibration.__wrapped__(*arguments).mean, first.mean)
