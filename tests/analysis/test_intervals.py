"""Intervals: their parts against dense linear algebra, and how often they hold what they are for."""

import math

import naive
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posthoc.analysis import intervals
from posthoc.analysis.kuramoto import metastability_in_halves


@given(st.data())
def test_an_autoregression_by_its_innovations_is_that_of_its_covariance(data):
    at = np.array(sorted(data.draw(st.sets(st.integers(0, 30), min_size=3, max_size=12))))
    x = np.random.default_rng(data.draw(st.integers(0, 1000))).standard_normal(len(at))
    phi = np.array([-0.7, 0.02, 0.5, 0.95])
    ours = intervals._autoregression(x, at, phi)
    for k, coefficient in enumerate(phi):
        np.testing.assert_allclose([part[k] for part in ours], naive.autoregression(x, at, coefficient), rtol=1e-7)


def test_the_effective_number_of_epochs_counts_pairs_by_their_distance():
    at = np.array([0, 1, 2, 5, 6, 9])
    products = np.array([-0.4, 0.0, 0.3, 0.81, 0.99])
    expected = [min(6, naive.effective_number(product, at)) for product in products]
    np.testing.assert_allclose(intervals._effective_number(products, at), expected, rtol=1e-4)


def autoregressive(phi, E, replicates, random):
    x = random.standard_normal((replicates, 2, 200 + E))
    for t in range(1, 200 + E):
        x[..., t] += phi * x[..., t - 1]
    return x[..., 200:]


@pytest.mark.parametrize("phi", [0.0, 0.8])
def test_intervals_over_epochs_cover(phi):
    pairs = autoregressive(phi, 25, 400, np.random.default_rng(3))
    for bounds in (
        [intervals.mean_over_epochs(x) for x, _ in pairs],
        [intervals.correlation_over_epochs(x, y) for x, y in pairs],
    ):
        low, high = np.array(bounds).T
        assert 0.92 <= ((low <= 0) & (high >= 0)).mean() <= 0.98


def test_intervals_over_epochs_do_not_depend_on_unit_or_offset():
    x, y = autoregressive(0.5, 30, 1, np.random.default_rng(4))[0]
    low, high = intervals.mean_over_epochs(x)
    np.testing.assert_allclose(intervals.mean_over_epochs(5 - 1000 * x), [5 - 1000 * high, 5 - 1000 * low], rtol=1e-6)
    bounds = intervals.correlation_over_epochs(x, y)
    np.testing.assert_allclose(intervals.correlation_over_epochs(3 + 0.01 * x, 7 * y), bounds, rtol=1e-9)
    np.testing.assert_allclose(intervals.correlation_over_epochs(-x, y), [-bounds[1], -bounds[0]], rtol=1e-6)
    assert bounds[0] < np.corrcoef(x, y)[0, 1] < bounds[1]


def test_epochs_without_a_value_keep_their_places():
    x = autoregressive(0.8, 30, 1, np.random.default_rng(5))[0, 0]
    gaps = x.copy()
    gaps[[3, 4, 17]] = np.nan
    low, high = intervals.mean_over_epochs(gaps)
    assert math.isfinite(low)
    assert (low, high) != intervals.mean_over_epochs(gaps[np.isfinite(gaps)])


@pytest.mark.parametrize("unit", [1e-200, 1e-13, 1e200])
def test_intervals_of_values_in_any_unit(unit):
    x, y = autoregressive(0.5, 30, 1, np.random.default_rng(4))[0]
    bounds = np.array(intervals.mean_over_epochs(1 + x))
    np.testing.assert_allclose(intervals.mean_over_epochs(unit * (1 + x)), unit * bounds, rtol=1e-6)
    np.testing.assert_allclose(
        intervals.correlation_over_epochs(unit * x, y), intervals.correlation_over_epochs(x, y), rtol=1e-6
    )


NEARLY = [0.1] * 9 + [float(np.nextafter(0.1, 1))] + [0.1] * 10


@pytest.mark.parametrize(
    "values",
    [[1.0] * 20, [1.0, 2.0] * 4, [math.nan] * 30, NEARLY],
    ids=["constant", "few", "none", "constant but for rounding"],
)
def test_where_nothing_can_be_said_there_is_no_interval(values):
    assert all(map(math.isnan, intervals.mean_over_epochs(values)))
    assert all(map(math.isnan, intervals.correlation_over_epochs(values, np.arange(len(values)))))
    assert all(map(math.isnan, intervals.correlation_over_epochs(np.arange(20), np.arange(20))))


def test_fresh_images_and_channels_add_up():
    random = np.random.default_rng(6)
    drawn = random.standard_normal(4000)
    channels = random.standard_normal(64) * 6  # what the choice of channels does to each split, far above its noise
    differences = channels + 0.1 * random.standard_normal((4000, 64))
    low, high = intervals.over_images_and_channels(10.0, drawn, differences)
    spread = math.sqrt(drawn.var(ddof=1) + (channels**2).mean() / 4)
    assert (low + high) / 2 == pytest.approx(10)
    assert (high - low) / 2 == pytest.approx(1.96 * spread, rel=2e-3)
    alone = intervals.over_images_and_channels(10.0, drawn, 0.1 * random.standard_normal((4000, 64)))
    assert (alone[1] - alone[0]) / 2 == pytest.approx(1.96 * drawn.std(ddof=1), rel=2e-3)
    assert math.isnan(intervals.over_images_and_channels(10.0, drawn[:10], differences[:10])[0])


def test_half_of_every_layer_is_in_each_half():
    strata = np.repeat([0, 1, 2], [4, 7, 32])
    halves = intervals.half_splits(strata, np.random.default_rng(0), 10)
    for layer, half in ((0, 2), (1, 3), (2, 16)):
        assert (halves[:, strata == layer].sum(axis=1) == half).all()
    odd = np.repeat([0, 1, 2, 3, 4, 5], [7, 7, 7, 7, 1, 1])  # halves of unequal size differ in M for that alone
    assert (intervals.half_splits(odd, np.random.default_rng(0), 10).sum(axis=1) == 15).all()
    assert len(np.unique(halves, axis=0)) == 10


def test_over_units_is_student_within_layers():
    random = np.random.default_rng(7)
    strata = np.repeat([0, 1], 16)
    values = np.repeat([5.0, -3.0], 16) + random.standard_normal((1000, 32))
    low, high = np.array([intervals.over_units(row, strata) for row in values]).T
    assert 0.93 <= ((low <= 1) & (high >= 1)).mean() <= 0.97
    assert math.isnan(intervals.over_units(np.array([1.0, 2.0]), np.array([0, 1]))[0])


def test_over_halves_covers_metastability_of_other_units():
    random, strata = np.random.default_rng(9), np.repeat([0, 1], 16)
    values, bounds = [], []
    for series in random.standard_normal((300, 32, 40)):
        value, differences = metastability_in_halves(series, intervals.half_splits(strata, random))
        values.append(value)
        bounds.append(intervals.over_halves(value, differences, strata))
    low, high = np.array(bounds).T
    assert 0.92 <= ((low <= np.mean(values)) & (high >= np.mean(values))).mean() <= 0.98
    assert np.mean(high - low) / 3.92 / np.std(values) == pytest.approx(1, abs=0.15)
    assert math.isnan(intervals.over_halves(0.1, differences, np.arange(32))[0])


def test_over_runs_covers_with_three():
    values = np.random.default_rng(8).standard_normal((2000, 3))
    low, high = np.array([intervals.over_runs(row) for row in values]).T
    assert 0.935 <= ((low <= 0) & (high >= 0)).mean() <= 0.965
    assert math.isnan(intervals.over_runs([1.0, 2.0])[0])
