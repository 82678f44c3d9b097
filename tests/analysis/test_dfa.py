"""DFA against its naive twin and other libraries, over all kinds of series."""

import os

import naive
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from posthoc.analysis.dfa import dfa
from posthoc.analysis.kuramoto import kuramoto
from posthoc.analysis.scales import default_scales, published_scales
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
    st.sampled_from([0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95]),
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
        np.testing.assert_allclose(result.fluctuation[u], expected, rtol=1e-8)
        np.testing.assert_allclose(result.log_fluctuation[u], np.log(expected), atol=1e-7)
        slope, intercept = np.polyfit(np.log(result.scales), np.log(expected), 1)
        np.testing.assert_allclose((result.alpha[u], result.intercept[u]), (slope, intercept), atol=1e-7)


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


@SETTINGS
@given(seeds, st.lists(st.floats(-300, 300), min_size=3, max_size=3), st.sampled_from([-1, 1]), st.floats(-10, 10))
def test_fluctuation_and_intercept_are_in_the_units_of_each_row(seed, exponents, sign, offset):
    x = series(seed, power=0.5)
    factors = 10.0 ** np.array(exponents)
    plain, scaled = dfa(x), dfa(sign * factors[:, None] * (x + offset))
    np.testing.assert_allclose(scaled.fluctuation, factors[:, None] * plain.fluctuation, rtol=1e-10)
    np.testing.assert_allclose(scaled.intercept, np.log(factors) + plain.intercept, rtol=0, atol=1e-9)
    relative = plain.relative_log_fluctuation()
    np.testing.assert_allclose(scaled.relative_log_fluctuation(), relative, rtol=0, atol=1e-9)


def test_windows_start_where_the_digits_of_overlap_say():
    """10 * (1 - 0.8) is 1.9999999999999996 in floating point, and 7 * (1 - 5 / 7) is 1.9999999999999998."""
    x = series(5, 1, 300)[0]
    for overlap, s, step in [(0.8, 10, 2), (0.9, 20, 2), (5 / 7, 7, 2), (2 / 3, 9, 3), (0.5, 5, 2), (0.99, 8, 1)]:
        y = naive.profile(x)
        windows = np.array([y[start : start + s] for start in range(0, len(y) - s + 1, step)])
        k = np.arange(s)
        lines = np.array([np.polyval(np.polyfit(k, window, 1), k) for window in windows])
        expected = np.sqrt(((windows - lines) ** 2).mean())
        assert dfa(x, [s, 100], overlap=overlap).fluctuation[0] == pytest.approx(expected, rel=1e-10)


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


@pytest.mark.parametrize("value", [0.3, 1e16, -1e30])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_series_that_varies_by_rounding_alone_is_constant(value, dtype):
    x = np.full(100, value, dtype)
    x[::3] = np.nextafter(x[::3], dtype(np.inf))
    assert dfa(x).reason == ("constant",)
    assert kuramoto(x).n_live == 0
    assert dfa(x.astype(np.longdouble)).reason == (("constant",) if dtype == np.float64 else (None,))


def test_integers_are_exact():
    x = 10**15 + np.arange(100) % 3
    assert dfa(x).alpha == dfa(np.arange(100) % 3).alpha
    assert dfa(np.arange(100) % 2 == 0).alpha == dfa(1.0 * (np.arange(100) % 2 == 0)).alpha
    with pytest.raises(UsageError, match=r"beyond 2\*\*53"):
        dfa(x * 1000)


MASKED = np.ma.masked_equal(np.arange(100.0) % 7, 3)


@pytest.mark.parametrize(("x", "message"), [
    (MASKED, "masked"), ([MASKED, MASKED], "masked"), (1j * np.arange(100), "complex"),
    (["a"] * 100, "real numbers"), (np.array([None] * 100), "real numbers"), ([[1.0], [1.0, 2.0]], "cannot be read"),
    (np.arange(100).astype("M8[s]"), "real numbers"), (np.zeros((2, 2, 50)), "shape"),
])  # fmt: skip
def test_what_is_no_series_is_refused(x, message):
    for measure in (dfa, kuramoto):
        with pytest.raises(UsageError, match=message):
            measure(x)


def test_a_mask_that_hides_nothing_is_no_mask():
    x = series(2, 1, 100)[0]
    assert dfa(np.ma.array(x)).alpha == dfa(x).alpha


@pytest.mark.parametrize("scales", [[4.5, 8, 16], [np.nan, 8, 16], [np.inf, 8], ["8", "16"], [8 + 0j, 16], [[8, 16]],
                                    np.ma.masked_equal([8, 16, 20], 16), [True, False], 8, [2**70, 8], [-8, 16]])  # fmt: skip
def test_scales_are_whole_numbers_and_never_made_so(scales):
    with pytest.raises(UsageError):
        dfa(series(2, 1, 100), scales)
    np.testing.assert_array_equal(dfa(series(2, 1, 100), [16.0, 8, 8]).scales, [8, 16])


@pytest.mark.parametrize("options", [{"order": 1.5}, {"order": "1"}, {"order": 4}, {"overlap": np.nan}, {"overlap": "0"},
                                     {"overlap": 1.0}, {"fluctuation": "rms"}])  # fmt: skip
def test_other_options_out_of_range_are_refused(options):
    with pytest.raises(UsageError):
        dfa(series(2, 1, 100), **options)


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


@pytest.mark.parametrize("T", [1, 2, 3, 5, 9, 19])
def test_too_few_points_are_refused(T):
    with pytest.raises(UsageError, match=rf"^Series of {T} points are too short for DFA; it needs 20\.$"):
        dfa(np.arange(T) % 3)


@pytest.mark.parametrize(("T", "largest"), [(2048, 645), (4096, 1024), (100, 25)])
def test_published_scales(T, largest):
    scales = published_scales(T)
    assert scales[0] == 16
    assert scales[-1] <= min(largest, T // 2)
    assert len(published_scales(60)) == 0


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
