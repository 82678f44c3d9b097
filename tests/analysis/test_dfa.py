"""DFA against its naive twin and other libraries, over all kinds of series."""

import functools
import importlib.util
import os
import sys
import types

import naive
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from posthoc.analysis.dfa import default_scales, dfa, published_scales
from posthoc.errors import UsageError

compiled = pytest.mark.skipif(os.environ.get("NUMBA_DISABLE_JIT") == "1", reason="compared once, compiled")
KINDS = ("published", "peng")
SETTINGS = settings(max_examples=30, deadline=None)
seeds = st.integers(0, 2**32 - 1)


def series(seed, U=3, T=200, power=1.0):
    """Noise between white and Brownian."""
    noise = np.random.default_rng(seed).standard_normal((U, T))
    return (1 - power) * noise + power * np.cumsum(noise, axis=1)


@SETTINGS
@given(
    seeds,
    st.integers(12, 150),
    st.floats(0, 1),
    st.sampled_from(KINDS),
    st.sampled_from([np.float64, np.float32]),
    st.integers(1, 3),
    st.sampled_from([0.0, 0.5, 0.9]),
    st.booleans(),
)
def test_equals_its_naive_twin(seed, T, power, kind, dtype, order, overlap, two_sided):
    x = series(seed, T=T, power=power).astype(dtype)
    scales = [scale for scale in (5, T // 3, T // 2) if 5 <= scale <= T // 2]
    assume(len(set(scales)) > 1)
    options = {"order": order, "overlap": overlap, "two_sided": two_sided}
    result = dfa(x, scales, fluctuation=kind, **options)
    for u, row in enumerate(x):
        expected = naive.fluctuation(row, result.scales.tolist(), kind, **options)
        np.testing.assert_allclose(result.fluctuation[u] / result.fluctuation[u, 0], expected / expected[0], rtol=1e-8)
        slope = np.polyfit(np.log(result.scales), np.log(expected), 1)
        np.testing.assert_allclose((result.alpha[u], result.intercept[u]), (slope[0], result.intercept[u]), atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_polyfit_at_the_published_scales(kind):
    x = series(7, 2, 2048, 0.4)
    result = dfa(x, published_scales(2048), fluctuation=kind)
    for u, row in enumerate(x):
        expected = naive.fluctuation(row, result.scales.tolist(), kind)
        assert result.alpha[u] == pytest.approx(np.polyfit(np.log(result.scales), np.log(expected), 1)[0], abs=1e-9)
        assert result.r2[u] == pytest.approx(np.corrcoef(np.log(result.scales), np.log(expected))[0, 1] ** 2, abs=1e-9)


@SETTINGS
@given(seeds, st.floats(-300, 300), st.sampled_from([-1, 1]))
def test_scale_changes_nothing(seed, exponent, sign):
    x = series(seed, power=0.5)
    np.testing.assert_allclose(dfa(sign * x * 10.0**exponent).alpha, dfa(x).alpha, rtol=0, atol=1e-9)


def test_denormal_series_keep_their_exponent():
    x = np.rint(series(0, power=0) * 1000)
    np.testing.assert_allclose(dfa(x * 5e-324).alpha, dfa(x).alpha, rtol=0, atol=1e-12)


@SETTINGS
@given(seeds)
def test_a_huge_offset_costs_no_more_than_its_own_rounding(seed):
    x = 1e-3 * series(seed, T=400, power=0)
    np.testing.assert_allclose(dfa(x + 1e6).alpha, dfa(x).alpha, rtol=0, atol=1e-6)


def test_a_steep_trend_is_removed_to_the_last_digits():
    """Windows on a parabola as large as the profile of a trend: the residual is a minute part of the sum of squares."""
    t = np.linspace(0, 1, 5000)
    x = 1e4 * t + 1e-3 * np.sin(40 * t)
    scales = default_scales(5000)
    np.testing.assert_allclose(dfa(x, scales).alpha, naive.alpha(x, scales, "peng"), rtol=0, atol=1e-7)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, -1e300, 5e-324, 1e6])
def test_a_constant_series_has_no_exponent(value):
    result = dfa(np.stack([np.full(100, value), series(1, 1, 100)[0]]))
    assert np.isnan(result.alpha[0])
    assert np.isfinite(result.alpha[1])
    assert result.reason == ("constant", None)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_bad_value_takes_its_own_series_only(value):
    x = series(2, 3, 100)
    x[1, 50] = value
    result = dfa(x)
    assert result.reason == (None, "non-finite", None)
    assert np.isnan(result.fluctuation[1]).all()
    np.testing.assert_array_equal(result.alpha[[0, 2]], dfa(x[[0, 2]]).alpha)


def test_a_series_without_fluctuation_at_some_scale_says_so():
    """Zero but for its last point, which only some scales' windows reach: elsewhere the profile is a line."""
    x = np.zeros(300)
    x[-1] = 3e-7
    result = dfa(x, [16, 25, 50], fluctuation="published")
    assert result.reason == ("no fluctuation",)
    assert np.isnan(result.alpha)
    assert np.isfinite(dfa(np.roll(x, 150), [16, 25, 50]).alpha)
    step = np.repeat([-1.0, 1.0], 2048)  # its kink falls between windows of these scales
    assert dfa(step, [16, 64, 256]).reason == ("no fluctuation",)


def test_the_batch_changes_no_bit():
    x = series(3, 9, 500)
    np.testing.assert_array_equal(dfa(x).fluctuation, [dfa(row).fluctuation for row in x])


@pytest.mark.parametrize("T", [1, 2, 3, 5, 9])
def test_too_few_points_are_refused(T):
    with pytest.raises(UsageError, match="at least two scales"):
        dfa(np.arange(T) % 3)


@pytest.mark.parametrize(("T", "largest"), [(2048, 645), (4096, 1024), (100, 25)])
def test_published_scales(T, largest):
    scales = published_scales(T)
    assert scales[0] == 16
    assert scales[-1] <= min(largest, T // 2)
    assert len(published_scales(60)) == 0


@functools.cache
def nolds_measures():
    """nolds' measures without its data module, which newer Pythons cannot import."""
    spec = importlib.util.find_spec("nolds")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("nolds is not installed")
    package = types.ModuleType("nolds")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["nolds"] = package
    return importlib.import_module("nolds.measures")


@compiled
def test_agrees_with_nolds():
    measures = nolds_measures()
    for row in series(4, 3, 2048, power=0.3):
        ours = dfa(row, published_scales(2048))
        theirs = measures.dfa(row, nvals=ours.scales, overlap=False, order=1, fit_exp="poly")
        assert ours.alpha == pytest.approx(theirs, abs=1e-9)


@compiled
def test_agrees_with_fathon():
    fathon = pytest.importorskip("fathon")
    from fathon import fathonUtils

    for row in series(5, 3, 2048, power=0.3):
        ours = dfa(row, published_scales(2048))
        analysis = fathon.DFA(fathonUtils.toAggregated(row))
        _, F = analysis.computeFlucVec(ours.scales, revSeg=False, polOrd=1)
        np.testing.assert_allclose(np.log(F), np.log(ours.fluctuation) - np.log(ours.fluctuation[0] / F[0]), atol=1e-9)


@compiled
def test_agrees_with_mfdfa():
    MFDFA = pytest.importorskip("MFDFA")
    for row in series(8, 3, 2048, power=0.3):
        ours = dfa(row, published_scales(2048), two_sided=True)
        _, F = MFDFA.MFDFA(row, ours.scales, q=2, order=1)
        slope = np.polyfit(np.log(ours.scales), np.log(F[:, 0]), 1)[0]
        assert ours.alpha == pytest.approx(slope, abs=1e-9)


@compiled
def test_agrees_with_neurokit2():
    neurokit2 = pytest.importorskip("neurokit2")
    for row in series(9, 3, 2048, power=0.3):
        ours = dfa(row, published_scales(2048))
        theirs, _ = neurokit2.fractal_dfa(row, scale=ours.scales, overlap=False)
        assert ours.alpha == pytest.approx(float(theirs), abs=1e-9)


def fractional_gaussian_noise(H, T, count, seed):
    """Exact, from the Cholesky factor of the covariance."""
    k = np.arange(T)
    covariance = 0.5 * (np.abs(k + 1) ** (2 * H) - 2 * np.abs(k) ** (2 * H) + np.abs(k - 1) ** (2 * H))
    factor = np.linalg.cholesky(covariance[np.abs(k[:, None] - k)])
    return np.random.default_rng(seed).standard_normal((count, T)) @ factor.T


@compiled
@pytest.mark.parametrize("H", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_recovers_the_exponent_of_fractional_gaussian_noise(H):
    x = fractional_gaussian_noise(H, 1500, 100, seed=int(10 * H))
    scales = np.array([32, 48, 64, 96, 128, 192, 256])  # small windows are biased for anti-persistent noise
    assert dfa(x, scales).alpha.mean() == pytest.approx(H, abs=0.06)
    assert dfa(np.cumsum(x, axis=1), scales).alpha.mean() == pytest.approx(H + 1, abs=0.08)
