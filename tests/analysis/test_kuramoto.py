"""The order parameter against its naive twin."""

import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posthoc.analysis.kuramoto import kuramoto
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
    assert result.metastability == pytest.approx(R.std(), abs=1e-9)
    assert result.synchrony == pytest.approx(R.mean(), abs=1e-9)


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


def test_the_threads_change_no_bit():
    import numba

    x = series(1, 7, 1500)
    before = numba.get_num_threads()
    numba.set_num_threads(1)
    single = kuramoto(x).order_parameter
    numba.set_num_threads(before)
    np.testing.assert_array_equal(kuramoto(x).order_parameter, single)


@pytest.mark.parametrize("shape", [(5,), (0, 5), (5, 0), (2, 2, 2)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(UsageError, match="batch of series"):
        kuramoto(np.zeros(shape))
