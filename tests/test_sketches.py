"""Sketches of weights: norms, and distances that need only them."""

import naive
import numpy as np
import pytest

from posthoc import sketches
from posthoc.sketches import SPAN, WIDTH, sketch, width_of


def made(values, name="a"):
    values = np.asarray(values, np.float32)
    return sketch(name, values.size, (values[k : k + SPAN] for k in range(0, values.size, SPAN)))


def test_it_is_that_of_the_obvious_loop():
    random = np.random.default_rng(0)
    for size in (WIDTH + 1, 3 * WIDTH, SPAN - 1, SPAN + 5, 2 * SPAN):
        values = random.standard_normal(size).astype("f4")
        squares, sums = made(values)
        expected = naive.sketch(values, sketches._signs(), sketches._starts("a", -(-size // SPAN)), WIDTH)
        np.testing.assert_allclose(sums, expected, atol=1e-4)
        assert squares == pytest.approx(float((values.astype("f8") ** 2).sum()), rel=1e-6)


def test_small_tensors_are_kept():
    values = np.arange(WIDTH, dtype="f4")
    squares, kept = made(values)
    np.testing.assert_array_equal(kept, values)
    assert kept.base is None
    assert squares == np.square(values.astype("f8")).sum()
    assert made(np.empty(0))[1].shape == (width_of(0),) == (0,)


def test_equal_tensors_have_equal_sketches_and_names_have_signs_of_their_own():
    values = np.random.default_rng(0).standard_normal(5000)
    np.testing.assert_array_equal(made(values)[1], made(values)[1])
    assert not np.array_equal(made(values)[1], made(values, "b")[1])


@pytest.mark.parametrize("kind", ["noise", "constant", "rank one", "one column", "sparse"])
def test_distances_are_as_exact_as_is_said(kind):
    """Over 200 names, whose signs begin elsewhere."""
    random = np.random.default_rng(1)
    values = {
        "noise": random.standard_normal(2**18),
        "constant": np.ones(2**18),
        "rank one": np.outer(random.standard_normal(512), random.standard_normal(512)).ravel(),
        "one column": (random.standard_normal((512, 512)) * (np.arange(512) == 3)).ravel(),
        "sparse": random.standard_normal(2**18) * (random.random(2**18) < 0.01),
    }[kind]
    ratios = []
    for k in range(200):
        squares, sums = made(values, f"{kind} {k}")
        ratios.append(np.square(sums, dtype="f8").sum() / squares)
    assert np.sqrt(np.mean(np.square(np.array(ratios) - 1))) < 1.4 * np.sqrt(2 / WIDTH)
    assert abs(np.mean(ratios) - 1) < np.sqrt(2 / WIDTH)


def test_a_nan_shows():
    values = np.ones(5000)
    values[4000] = np.nan
    squares, sums = made(values)
    assert np.isnan(squares)
    assert np.isnan(sums).sum() == 1
