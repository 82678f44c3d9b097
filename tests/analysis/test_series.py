"""The image axis against its naive twin and pandas."""

import naive
import numpy as np
import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posthoc.analysis.axes.image import ImageMaterial, image_series, images_reordered
from posthoc.analysis.dfa import dfa
from posthoc.analysis.kernels.products import product
from posthoc.errors import UsageError


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(1, 12), st.integers(1, 7), st.booleans())
def test_equals_its_naive_twin(seed, N, smooth, classes, single):
    random = np.random.default_rng(seed)
    x = random.standard_normal((3, N)).astype(np.float32 if single else np.float64)
    labels = random.integers(-3, classes, N)
    smooth = min(smooth, N)
    np.testing.assert_allclose(image_series(x, labels, smooth), naive.image_series(x, labels, smooth), atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(1, 12), st.integers(1, 7), st.booleans())
def test_images_reordered_within_classes_are_a_series_of_their_own(seed, N, smooth, classes, single):
    """As if they had been recorded so, dead and non-finite channels included, though classes are centred but once."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((5, N)).astype(np.float32 if single else np.float64)
    x[1], x[2, random.integers(N)] = 0.1, np.inf
    labels, live = random.integers(-3, classes, N), np.array([True, True, True, False, True])
    drawn = images_reordered(ImageMaterial(x, labels, min(smooth, N)), random, live)
    expected = image_series(x[live][:, drawn.order], labels[drawn.order], min(smooth, N))
    np.testing.assert_allclose(drawn.series(), expected, atol=1e-12)
    assert not drawn.series()[1].any()


@pytest.mark.parametrize("smooth", [1, 2, 5, 6, 15])
def test_smoothing_is_that_of_pandas(smooth):
    random = np.random.default_rng(1)
    x, labels = random.standard_normal((4, 200)), np.sort(random.integers(0, 10, 200))
    frame = pandas.DataFrame(x.T)
    centred = frame - frame.groupby(labels).transform("mean")
    expected = centred.rolling(smooth, center=True, min_periods=1).mean().to_numpy().T
    np.testing.assert_allclose(image_series(x, labels, smooth), expected, atol=1e-12)


@pytest.mark.parametrize("value", [0.1, 3.3e10, 1e-320])
def test_a_dead_channel_stays_dead(value):
    """Class means of a constant differ from it by rounding; that residue must not pass for a signal."""
    random = np.random.default_rng(2)
    x = np.full((2, 100), value)
    x[1] = random.standard_normal(100)
    series = image_series(x, random.integers(0, 7, 100))
    assert not series[0].any()
    assert dfa(series).reason == ("constant", None)


@pytest.mark.parametrize("classes", [1, 4])
def test_non_finite_values_stay_visible(classes):
    x = np.ones((1, 60))
    x[0, 7] = np.nan
    series = image_series(x, np.arange(60) % classes)
    assert dfa(series).reason == ("non-finite",)


@pytest.mark.parametrize(("labels", "smooth"), [([0, 1], 1), ([0, 1, 1], 0), ([0, 1, 1], 4)])
def test_what_does_not_fit_is_refused(labels, smooth):
    with pytest.raises(UsageError):
        image_series(np.zeros((2, 3)), labels, smooth)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_products_are_those_of_matrices(dtype):
    random = np.random.default_rng(0)
    a, b = random.standard_normal((7, 30)).astype(dtype), random.standard_normal((1100, 30)).astype(dtype).T
    result = product(a, b)
    assert result.dtype == dtype
    np.testing.assert_allclose(result, a.astype(float) @ b.astype(float), atol=300 * np.finfo(dtype).eps)
