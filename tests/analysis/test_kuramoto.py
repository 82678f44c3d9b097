"""The order parameter against its naive twin."""

import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posthoc.analysis.arrays import correlation
from posthoc.analysis.intervals import half_splits
from posthoc.analysis.kuramoto import kuramoto, metastability_in_halves, phase_locking
from posthoc.analysis.measures.stability import z_scores
from posthoc.errors import UsageError

SETTINGS = settings(max_examples=30, deadline=None)


def series(seed, U, T):
    return np.random.default_rng(seed).standard_normal((U, T))


@SETTINGS
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(3, 130))
def test_equals_its_naive_twin(seed, U, T):
    x = series(seed, U, T)
    R = naive.order_parameter(x)
    result = kuramoto(x)
    np.testing.assert_allclose(result.order_parameter, R, atol=1e-9)
    both = (R.std(), R.mean()) if U > 1 else (np.nan, np.nan)
    assert (result.metastability, result.synchrony) == pytest.approx(both, abs=1e-9, nan_ok=True)


@SETTINGS
@given(st.integers(0, 2**32 - 1), st.floats(-300, 300), st.floats(-10, 10))
def test_scale_and_offset_of_a_unit_change_nothing(seed, exponent, offset):
    x = series(seed, 5, 97)
    changed = x.copy()
    changed[2] = (x[2] + offset) * 10.0**exponent
    np.testing.assert_allclose(kuramoto(changed).order_parameter, kuramoto(x).order_parameter, atol=1e-9)


@pytest.mark.parametrize("dead", [0.0, 3.7, -1e300, np.nan, np.inf])
def test_dead_units_are_left_out(dead):
    x = series(0, 6, 100)
    with_dead = np.insert(x, 3, dead, axis=0)
    result = kuramoto(with_dead)
    assert result.n_live == 6
    np.testing.assert_array_equal(result.order_parameter, kuramoto(x).order_parameter)


def test_without_live_units_all_is_nan():
    result = kuramoto(np.ones((3, 10)))
    assert result.n_live == 0
    assert np.isnan([result.metastability, result.synchrony]).all()


def test_independent_units_give_the_known_metastability():
    values = [kuramoto(series(seed, 32, 2000)).metastability for seed in range(5)]
    assert np.mean(values) == pytest.approx(np.sqrt((1 - np.pi / 4) / 32), rel=0.05)


@pytest.mark.parametrize("shape", [(0,), (0, 5), (5, 0), (2, 2, 2)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(UsageError, match="expected one series"):
        kuramoto(np.zeros(shape))


@pytest.mark.parametrize("T", [1, 2, 3, 4, 5, 7, 97, 101, 128, 1009])
def test_any_length(T):
    x = series(2, 4, T)
    result = kuramoto(x)
    if T == 1:
        assert result.n_live == 0
    else:
        np.testing.assert_allclose(result.order_parameter, naive.order_parameter(x), atol=1e-9)


def test_one_series_is_always_in_step_with_itself():
    """Which is no finding, so that a single unit, or a half of one, has no metastability."""
    result = kuramoto(series(3, 1, 50)[0])
    np.testing.assert_allclose(result.order_parameter, 1)
    assert np.isnan([result.metastability, result.synchrony]).all()
    value, differences = metastability_in_halves(series(3, 3, 50), np.array([[1.0, 0.0, 0.0]]))
    assert value > 0.1
    assert np.isnan(differences).all()


def test_what_varies_by_rounding_alone_does_not_vary():
    """Units in step and units in counter-step: R is 1 and 0, and z-scores of rounding are none."""
    x = series(3, 1, 500)
    for units, R in ((x * [[1], [3], [1e-9]], 1), (x * [[1], [-1]], 0)):
        result = kuramoto(units)
        np.testing.assert_allclose(result.order_parameter, R, atol=1e-12)
        assert result.metastability == 0
    assert np.isnan(z_scores([0.1 + 0.2, 0.3, np.nan, 0.3])).all()
    assert np.isnan(correlation([0.1 + 0.2, 0.3, 0.3], [1, 2, 3]))
    assert np.isfinite(z_scores([1e-300, 2e-300])).all()


def test_trim_drops_the_ends_after_the_transform():
    x = series(4, 5, 200)
    whole, inner = kuramoto(x), kuramoto(x, trim=0.1)
    np.testing.assert_array_equal(inner.order_parameter, whole.order_parameter[20:180])
    assert inner.metastability == pytest.approx(whole.order_parameter[20:180].std())


def test_band_keeps_what_lies_in_it():
    t = np.arange(2000)
    phases = np.random.default_rng(5).uniform(0, 2 * np.pi, (20, 1))
    x = np.sin(2 * np.pi * 0.05 * t) + 3 * np.sin(2 * np.pi * 0.25 * t + phases)
    assert kuramoto(x, trim=0.1, band=(0.03, 0.07)).synchrony > 0.99
    assert kuramoto(x, trim=0.1, band=(0.2, 0.3)).synchrony < 0.5


@SETTINGS
@given(st.integers(0, 2**32 - 1), st.integers(2, 9), st.integers(5, 80))
def test_phase_locking_equals_its_naive_twin(seed, U, T):
    random = np.random.default_rng(seed)
    x, groups = random.standard_normal((U, T)), random.integers(0, 3, U)
    result = phase_locking(x, groups)
    plv, ppc = naive.phase_locking(x, groups.tolist())
    np.testing.assert_allclose(result.plv, plv, atol=1e-9)
    np.testing.assert_allclose(result.ppc, ppc, atol=1e-9)


def test_phase_consistency_of_independent_units_is_nearer_to_zero_than_the_locking_value():
    x = series(6, 8, 4000)
    result = phase_locking(x, [0, 0, 0, 0, 1, 1, 1, 1])
    assert (np.abs(result.ppc) < 0.002).all()
    assert (result.plv > 0.01).all()
    together = phase_locking(np.stack([x[0], 3 * x[0], x[0] + 1]), [0, 0, 1])
    np.testing.assert_allclose(together.plv[0], 1)
    np.testing.assert_allclose(together.ppc[0], 1)


def test_dead_units_pair_with_none():
    x = series(6, 4, 60)
    with_dead = np.insert(x, 2, np.nan, axis=0)
    alive, dead = phase_locking(x, [0, 0, 1, 1]), phase_locking(with_dead, [0, 0, 0, 1, 1])
    np.testing.assert_allclose(dead.plv, alive.plv, atol=1e-12)
    assert np.isnan(phase_locking(np.ones((2, 9)), [0, 1]).plv).all()


@pytest.mark.parametrize(
    "options",
    [
        {"trim": 0.5},
        {"trim": -0.1},
        {"trim": np.nan},
        {"trim": "0.1"},
        {"band": (0.2, 0.1)},
        {"band": (0.0, 0.1)},
        {"band": 0.1},
        {"band": ("a", "b")},
        {"band": (0.1, np.nan)},
    ],
)
def test_impossible_options_are_refused(options):
    with pytest.raises(UsageError):
        kuramoto(series(0, 3, 100), **options)


def test_series_too_short_to_filter_and_groups_that_do_not_fit_are_refused():
    with pytest.raises(UsageError, match="too short to filter"):
        kuramoto(series(0, 3, 10), band=(0.1, 0.2))
    with pytest.raises(UsageError, match="2 groups for 3 units"):
        phase_locking(series(0, 3, 10), [0, 1])


def test_metastability_in_halves_is_that_of_their_units():
    x = np.random.default_rng(3).standard_normal((9, 300))
    halves = half_splits(np.array([0, 0, 0, 0, 1, 1, 1, 1, 1]), np.random.default_rng(1), 5)
    value, differences = metastability_in_halves(x, halves)
    assert value == kuramoto(x).metastability
    expected = [kuramoto(x[h > 0]).metastability - kuramoto(x[h == 0]).metastability for h in halves]
    np.testing.assert_allclose(differences, expected, atol=1e-13)
    x[2] = 1.0
    assert np.isnan(metastability_in_halves(x, halves)[1]).all()
