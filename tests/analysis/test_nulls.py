"""Nulls: each redraws what it says and keeps the rest, p-values are uniform where there is nothing, M is found where."""

import os

import numpy as np
import pytest
import scipy.stats

from posthoc.analysis.axes.depth import DepthMaterial
from posthoc.analysis.axes.epoch import EpochMaterial
from posthoc.analysis.axes.image import ImageMaterial, image_series
from posthoc.analysis.dfa import dfa
from posthoc.analysis.kuramoto import kuramoto
from posthoc.analysis.measures import MEASURES, Scope
from posthoc.analysis.measures.integration import integration, mean_alive
from posthoc.analysis.nulls import NULLS, compare, draws, nulls_of
from posthoc.analysis.protocol import Protocol
from posthoc.analysis.scales import default_scales, published_scales
from posthoc.streams import stream

compiled = pytest.mark.skipif(os.environ.get("NUMBA_DISABLE_JIT") == "1", reason="many draws, compiled")
LABELS = np.arange(96) % 4


def image_axis(seed, U=6, smooth=1):
    return ImageMaterial(np.random.default_rng(seed).standard_normal((U, 96)), LABELS, smooth)


def depth_axis(seed, N=40, L=32):
    return DepthMaterial(np.random.default_rng(seed).standard_normal((L, N)))


def epoch_axis(seed, U=10, E=40):
    return EpochMaterial(np.random.default_rng(seed).standard_normal((U, E)))


def everything(axis):
    return np.ones(len(axis.series()), np.bool_)


def redraw(axis, null, live=None, draw=0, seed=0, epoch=0):
    random = stream(f"null {null}", seed, epoch, draw)
    return NULLS[null].draw(axis, random, everything(axis) if live is None else live)[0]


def drawn(axis, null, count, seed=0, epoch=0, live=None, keys=None, **options):
    T = axis.series().shape[1]
    scope = Scope(Protocol.named("default"), T, tuple(default_scales(T).tolist()))
    measures = NULLS[null].measures(MEASURES) if keys is None else [MEASURES[key] for key in keys]
    live = everything(axis) if live is None else live
    return draws([NULLS[null]], [axis], live, scope, count, seed, epoch, {null: measures}, **options)[null]


def sorted_within(series):
    return np.sort(series.reshape(len(series), 4, 24), axis=2)


@pytest.mark.parametrize("null", ["order", "channel"])
def test_reordering_within_classes_keeps_each_class_of_each_channel(null):
    axis = image_axis(0)
    redrawn = redraw(axis, null)
    np.testing.assert_allclose(sorted_within(redrawn), sorted_within(axis.series()), atol=1e-12)
    assert not np.allclose(redrawn, axis.series())
    rank = np.argsort(np.argsort(redrawn[:, :24], axis=1), axis=1)
    original = np.argsort(np.argsort(axis.series()[:, :24], axis=1), axis=1)
    moved = [[original[u].tolist().index(r) for r in rank[u]] for u in range(len(rank))]
    assert all(row == moved[0] for row in moved) == (null == "order")


def test_splitting_centres_every_part_of_every_class():
    axis = ImageMaterial(np.random.default_rng(1).standard_normal((3, 160)), np.arange(160) % 4, 1)
    redrawn = redraw(axis, "split")
    np.testing.assert_allclose(redrawn.reshape(3, 40, 4).mean(axis=2), 0, atol=1e-12)


def test_permuted_labels_keep_their_counts_and_the_values():
    axis = image_axis(2)
    redrawn = redraw(axis, "label")
    np.testing.assert_allclose(redrawn.reshape(6, 4, 24).mean(axis=2), 0, atol=1e-12)
    assert not np.allclose(sorted_within(redrawn), sorted_within(axis.series()))


def test_white_noise_is_of_the_same_size_and_nothing_else():
    axis = image_axis(3)
    live = np.array([True, False, True, True, True, True])
    first, second = (redraw(axis, "white", live, k) for k in (0, 1))
    assert first.shape == (5, 96)
    assert not np.allclose(first, second)
    other = ImageMaterial(1e6 * axis.x, LABELS, 1)
    np.testing.assert_array_equal(redraw(other, "white", live), first)


@pytest.mark.parametrize("T", [31, 32])
def test_phase_randomisation_keeps_every_spectrum(T):
    axis = EpochMaterial(np.random.default_rng(4).standard_normal((5, T)) + 3)
    redrawn = redraw(axis, "phase")
    np.testing.assert_allclose(np.abs(np.fft.rfft(redrawn)), np.abs(np.fft.rfft(axis.x)), atol=1e-10)
    assert not np.allclose(redrawn, axis.x)


@pytest.mark.parametrize("axis", [epoch_axis(5), depth_axis(5)])
def test_permuting_time_keeps_the_values_and_their_partners(axis):
    redrawn = redraw(axis, "time")
    np.testing.assert_allclose(np.corrcoef(redrawn), np.corrcoef(axis.series()))
    np.testing.assert_allclose(np.sort(redrawn), np.sort(axis.series()))


def test_any_draw_can_be_had_alone():
    axis = image_axis(6)
    whole = {null: drawn(axis, null, 9, 3, 2) for null in ("order", "channel")}
    channel, order = (
        drawn(axis, null, 4, 3, 2, keys=[key]) for null, key in (("channel", "metastability"), ("order", "hurst"))
    )
    np.testing.assert_array_equal(whole["channel"]["metastability"].values[:4], channel["metastability"].values)
    np.testing.assert_array_equal(whole["order"]["hurst"].values[:4], order["hurst"].values)
    alpha = dfa(redraw(axis, "order", draw=7, seed=3, epoch=2), default_scales(96)).alpha
    assert whole["order"]["hurst"].values[7] == mean_alive(alpha)
    assert [null.key for null in nulls_of("image")] == ["white", "label", "order", "split", "channel", "gaussian"]
    assert whole["channel"].keys() == {"metastability"}
    later = drawn(axis, "order", 5, 3, 2, first=4)
    np.testing.assert_array_equal(whole["order"]["metastability"].values[4:], later["metastability"].values)


@pytest.mark.parametrize("axis", [image_axis(8), epoch_axis(8), depth_axis(8)])
def test_gaussian_noise_has_the_covariance_of_the_channels(axis):
    """Of one common part in all units, which independent noise would not have."""
    if isinstance(axis, ImageMaterial):
        axis.x[:] += 2 * np.random.default_rng(1).standard_normal(96)
        axis.x[2] = 0.5
    elif isinstance(axis, EpochMaterial):
        axis.x[:] += 2 * np.random.default_rng(1).standard_normal(40)
    live = np.array([np.ptp(row) > 0 for row in axis.series()])
    expected = np.cov(axis.series()[live])
    redrawn = [redraw(axis, "gaussian", live, k) for k in range(400)]
    covariance = np.mean([np.cov(series) for series in redrawn], axis=0)
    np.testing.assert_allclose(covariance, expected, atol=0.12 * np.abs(expected).max())
    lagged = np.mean([(series[:, 1:] * series[:, :-1]).mean() for series in redrawn])
    assert abs(lagged) < 0.05 * np.trace(expected) / len(expected)


def test_a_channel_that_is_not_finite_has_no_part_in_the_covariance():
    axis = image_axis(9)
    axis.x[1, 3] = np.inf
    live = np.arange(6) != 1
    assert np.isfinite(redraw(axis, "gaussian", live)).all()


def test_the_halves_of_the_units_are_measured_under_the_same_draws():
    axis = image_axis(10)
    halves = np.array([[1.0, 1, 1, 0, 0, 0], [0, 1, 0, 1, 0, 1]])
    result = drawn(axis, "order", 3, halves=halves)
    for draw in range(3):
        series = redraw(axis, "order", draw=draw)
        alpha = dfa(series, default_scales(96)).alpha
        for k, half in enumerate(halves == 1):
            assert result["hurst"].halves[draw, k] == pytest.approx(alpha[half].mean() - alpha[~half].mean())
            m = kuramoto(series[half]).metastability - kuramoto(series[~half]).metastability
            assert result["metastability"].halves[draw, k] == pytest.approx(m, abs=1e-6)


def test_without_live_units_nothing_is_drawn():
    axis = image_axis(7)
    values = drawn(axis, "white", 3, live=np.zeros(6, np.bool_))["hurst"].values
    assert np.isnan(values).all()
    assert np.isnan(compare(np.nan, values).p)


CASES = [
    (make, null.key, measure.key)
    for make, axis in ((image_axis, "image"), (depth_axis, "depth"), (epoch_axis, "epoch"))
    for null in nulls_of(axis) if null.key not in ("split", "gaussian")
    for measure in null.measures(MEASURES)
]  # fmt: skip


@pytest.mark.slow
@compiled
@pytest.mark.parametrize(("make", "null", "measure"), CASES)
def test_p_values_of_noise_are_uniform(make, null, measure):
    """120 replicates, scripts/size_and_power.py has more; p is one of (B + 1) / 2 values, so it is spread evenly below its step before it is tested.

    Not for `split`, which changes H of noise, too: that is what it shows. Nor for `gaussian`, whose covariance is
    estimated.
    """
    count, random = 19, np.random.default_rng(0)
    p = []
    for replicate in range(120):
        axis = make(1000 + replicate)
        series = axis.series()
        scales = default_scales(series.shape[1])
        value = mean_alive(dfa(series, scales).alpha) if measure == "hurst" else kuramoto(series).metastability
        values = drawn(axis, null, count, replicate, keys=[measure])[measure].values
        p.append(compare(value, values).p - 2 * random.random() / (count + 1))
    assert scipy.stats.kstest(p, "uniform").pvalue > 0.05 / len(CASES)


@compiled
@pytest.mark.parametrize("null", ["white", "channel", "phase"])
def test_coupling_is_found(null):
    """A common oscillation in a third of the units."""
    rejections = 0
    for replicate in range(30):
        random = np.random.default_rng(replicate)
        x = random.standard_normal((24, 512))
        x[:8] += 2 * np.sin(0.3 * np.arange(512) + random.uniform(0, 6))
        axis = EpochMaterial(x) if null == "phase" else ImageMaterial(x, np.arange(512) // 128, 1)
        value = kuramoto(axis.series()).metastability
        values = drawn(axis, null, 39, replicate, keys=["metastability"])["metastability"].values
        rejections += compare(value, values).p <= 0.05
    assert rejections > 28


@compiled
@pytest.mark.parametrize(
    ("N", "classes", "smooth", "published"),
    [(4096, 100, 15, 0.310), (4096, 10, 15, 0.948), (4096, 100, 5, 0.03), (2048, 10, 5, 0.687)],
)
def test_noise_through_the_published_protocol(N, classes, smooth, published):
    """What pure noise gives, mean of 20 seeds; the last figure is this test's own, the others are known elsewhere."""
    exponents = []
    for seed in range(20):
        random = np.random.default_rng(seed)
        series = image_series(random.standard_normal((128, N)), random.integers(0, classes, N), smooth)
        exponents.append(mean_alive(dfa(series, published_scales(N), fluctuation="published").alpha))
    assert integration(exponents).mean() == pytest.approx(published, abs=0.01)
