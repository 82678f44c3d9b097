"""Spectra of weights: stable rank and Hill alpha beside singular values, a slow twin and another library."""

import warnings

import naive
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from posthoc.replay import spectra
from posthoc.replay.spectra import eigenvalues, hill_alpha, spectral, stable_rank

SHAPES = {"linear": (30, 12), "wide": (5, 40), "conv": (8, 3, 3, 3), "half": (20, 20), "bias": (9,), "one": (1, 50)}


@pytest.fixture(scope="module")
def tensors():
    torch.manual_seed(0)
    tensors = {name: torch.randn(shape) ** 3 for name, shape in SHAPES.items()}
    return tensors | {"half": tensors["half"].half(), "complex": torch.randn(6, 9, dtype=torch.complex64)}


def test_they_are_those_of_singular_values_and_of_the_slow_twin(tensors):
    found = spectral(tensors, tensors)
    for t, (name, tensor) in enumerate(tensors.items()):
        if name in ("bias", "one"):
            assert np.isnan([found["stable_rank"][t], found["hill_alpha"][t]]).all()
            continue
        matrix = tensor.numpy().astype("c16" if name == "complex" else "f8").reshape(len(tensor), -1)
        singular = np.linalg.svd(matrix, compute_uv=False)
        rank = np.linalg.norm(matrix) ** 2 / np.linalg.norm(matrix, 2) ** 2
        assert found["stable_rank"][t] == pytest.approx(rank, rel=1e-10), name
        assert found["hill_alpha"][t] == pytest.approx(naive.hill(singular**2), rel=1e-8), name


@given(st.integers(2, 60), st.floats(0.3, 4), st.integers(0, 2**32 - 1), st.booleans())
def test_the_exponent_is_that_of_the_slow_twin(n, tail, seed, tied):
    values = np.random.default_rng(seed).pareto(tail, n) + 0.5
    values = np.sort(values.round(1) if tied else values)
    if values[0] < values[-1]:
        assert hill_alpha(values) == pytest.approx(naive.hill(values.tolist()), rel=1e-9)


@pytest.mark.parametrize("tail", [1.0, 2.5])
def test_the_exponent_is_that_of_powerlaw(tail):
    powerlaw = pytest.importorskip("powerlaw")
    values = np.sort(np.random.default_rng(0).pareto(tail, 250) + 0.2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = powerlaw.Fit(values, verbose=False)
    assert hill_alpha(values) == pytest.approx(fit.alpha, rel=1e-9)


def test_what_has_no_spectrum_has_none(tensors, monkeypatch):
    broken = tensors["linear"].clone()
    broken[3, 4] = np.nan
    assert not len(eigenvalues(broken))
    assert np.isnan(stable_rank(eigenvalues(torch.zeros(4, 4))))
    assert np.isnan(hill_alpha(np.full(5, 2.0)))
    assert len(eigenvalues(tensors["linear"][:, [0, 1, 1]])) == 2
    monkeypatch.setattr(spectra, "MOST", 11)
    assert not len(eigenvalues(tensors["linear"]))
    assert len(eigenvalues(tensors["wide"])) == 5
