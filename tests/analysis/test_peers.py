"""F(s) against other libraries and Peng's own program: the function itself, not only its slope."""

import functools
import importlib
import importlib.util
import os
import sys
import types

import naive
import numpy as np
import pytest

from posthoc.analysis.dfa import dfa
from posthoc.analysis.scales import published_scales

pytestmark = pytest.mark.skipif(os.environ.get("NUMBA_DISABLE_JIT") == "1", reason="compared once, compiled")
SCALES = published_scales(2048)
EVEN = np.array([8, 16, 34, 74, 160])


def series(seed, T=2048):
    """Between white and Brownian, in units of its own."""
    noise = np.random.default_rng(seed).standard_normal(T)
    return 37.5 + 1e-3 * (0.7 * noise + 0.3 * np.cumsum(noise))


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


def nolds(x, scales, overlap, order=1):
    alpha, (_, log_F, line) = nolds_measures().dfa(
        x, nvals=scales, overlap=overlap, order=order, fit_exp="poly", debug_data=True
    )
    return alpha, np.exp(log_F), line[1]


def test_physionet():
    for seed in range(3):
        x = series(seed)
        np.testing.assert_allclose(dfa(x, SCALES).fluctuation, naive.physionet(x, SCALES.tolist()), rtol=1e-8)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_nolds(order):
    x = series(4)
    ours = dfa(x, SCALES, order=order)
    alpha, F, intercept = nolds(x, SCALES, overlap=False, order=order)
    np.testing.assert_allclose(ours.fluctuation, F, rtol=1e-7)
    assert (ours.alpha, ours.intercept) == (pytest.approx(alpha, abs=1e-9), pytest.approx(intercept, abs=1e-8))


def test_nolds_drops_the_last_of_overlapping_windows_where_it_ends_with_the_series():
    x = series(5, 2053)  # here none of these windows does
    np.testing.assert_allclose(dfa(x, EVEN, overlap=0.5).fluctuation, nolds(x, EVEN, True)[1], rtol=1e-8)
    x = x[:2048]  # here those of 8 and 16 points do
    ours, theirs = dfa(x, EVEN, overlap=0.5).fluctuation, nolds(x, EVEN, True)[1]
    np.testing.assert_allclose(ours[2:], theirs[2:], rtol=1e-8)
    assert (np.abs(ours[:2] / theirs[:2] - 1) > 1e-6).all()
    windows = (2048 - EVEN[:2]) // (EVEN[:2] // 2) + 1
    last = np.array([naive.residual(naive.profile(x)[-s:]) for s in EVEN[:2]])
    np.testing.assert_allclose(windows * ours[:2] ** 2 - last, (windows - 1) * theirs[:2] ** 2, rtol=1e-8)


@pytest.mark.slow  # it compiles its own
def test_antropy():
    """Which gives the slope alone."""
    antropy = pytest.importorskip("antropy")
    from antropy.utils import _log_n

    x = series(6)
    assert dfa(x, _log_n(4, 204.8, 1.2)).alpha == pytest.approx(antropy.detrended_fluctuation(x), abs=1e-9)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_fathon(order):
    fathon = pytest.importorskip("fathon")
    from fathon import fathonUtils

    x = series(7)
    analysis = fathon.DFA(fathonUtils.toAggregated(x))
    for two_sided in (False, True):
        _, F = analysis.computeFlucVec(SCALES, revSeg=two_sided, polOrd=order)
        np.testing.assert_allclose(dfa(x, SCALES, order=order, two_sided=two_sided).fluctuation, F, rtol=1e-6)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_mfdfa(order):
    MFDFA = pytest.importorskip("MFDFA")
    x = series(8)
    _, F = MFDFA.MFDFA(x, SCALES, q=2, order=order)
    np.testing.assert_allclose(dfa(x, SCALES, order=order, two_sided=True).fluctuation, F[:, 0], rtol=1e-7)


def test_neurokit2():
    """Which drops the last of overlapping windows as nolds does."""
    neurokit2 = pytest.importorskip("neurokit2")
    for overlap, x, scales in ((False, series(9), SCALES), (True, series(10, 2053), EVEN)):
        ours = dfa(x, scales, overlap=0.5 * overlap)
        alpha, info = neurokit2.fractal_dfa(x, scale=scales, overlap=overlap)
        np.testing.assert_allclose(ours.fluctuation, np.ravel(info["Fluctuations"]), rtol=1e-8)
        assert ours.alpha == pytest.approx(float(alpha), abs=1e-9)
