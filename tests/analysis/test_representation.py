"""Spectra and similarity: against the obvious computation, and on representations whose geometry is known."""

import naive
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from noise import config

from posthoc.analysis.metrics import compute_metrics
from posthoc.analysis.records import Protocol
from posthoc.analysis.representation import (
    _alignment,
    _Side,
    debiased_cka,
    effective_rank,
    participation_ratio,
    representation,
    singular_values,
)
from posthoc.errors import UsageError
from posthoc.store import Frame, Plan, open_activations, write

SHAPES = st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(8, 60), st.integers(0, 2**32 - 1))


@given(SHAPES, st.sampled_from([1e-100, 1e-6, 1.0, 1e6, 1e100]), st.floats(-1e3, 1e3))
def test_cka_is_that_of_the_gram_matrices_whatever_scale_and_offset(shape, scale, offset):
    C, D, N, seed = shape
    random = np.random.default_rng(seed)
    x, y = random.standard_normal((C, N)), random.standard_normal((D, N))
    y[0] += x[0]
    expected = naive.debiased_cka(x, y)
    if np.isfinite(expected):
        assert debiased_cka(scale * (x + offset), y) == pytest.approx(expected, abs=1e-6)


def test_cka_of_equal_rotated_and_independent_representations():
    random = np.random.default_rng(0)
    x = random.standard_normal((20, 500))
    rotation = np.linalg.qr(random.standard_normal((20, 20)))[0]
    assert debiased_cka(x, 3 * rotation @ x) == pytest.approx(1)
    independent = [debiased_cka(x, random.standard_normal((50, 500))) for _ in range(200)]
    assert abs(np.mean(independent)) < 4 * np.std(independent) / np.sqrt(200)
    assert np.std(independent) < 0.01


def test_what_does_not_vary_or_is_not_finite_has_no_similarity():
    x = np.random.default_rng(0).standard_normal((3, 50))
    assert np.isnan(debiased_cka(x, np.ones((2, 50)) * 0.1))
    with_nan = np.vstack([x, np.full((1, 50), np.nan)])
    assert debiased_cka(with_nan, x) == pytest.approx(1)
    assert np.isnan(debiased_cka(with_nan[3:], x))
    assert np.isnan(_alignment(_Side.of(x[:, :3]), _Side.of(x[:, :3])))
    with pytest.raises(UsageError, match="same 4 or more images"):
        debiased_cka(x, x[:, :20])


def test_spectra_of_known_dimension():
    random = np.random.default_rng(0)
    basis = np.linalg.qr(random.standard_normal((400, 8)))[0].T
    basis -= basis.mean(axis=1, keepdims=True)
    x = np.linalg.qr(random.standard_normal((32, 8)))[0] @ basis
    s = singular_values(x + 7)
    assert effective_rank(s[:8]) == pytest.approx(8, rel=0.02)
    assert effective_rank(s) == pytest.approx(8, rel=0.02)
    assert participation_ratio(s) == pytest.approx(8, rel=0.05)
    assert np.isnan(effective_rank(singular_values(np.ones((4, 50)))))
    assert np.isnan(participation_ratio([]))


@pytest.fixture(scope="module")
def turning(tmp_path_factory):
    """Thirty checkpoints of two layers: one turns slowly into noise of its own, one stays."""
    random = np.random.default_rng(0)
    start, end, still = (random.standard_normal((6, 200)) for _ in range(3))
    plan = Plan(
        config(["turns", "stays"], images=200, classes=5),
        np.arange(200),
        np.arange(200) % 5,
        {"turns": np.arange(6), "stays": np.arange(6)},
    )
    frames = []
    for e in range(30):
        angle = e / 29 * np.pi / 2
        signals = {
            "mean": {"turns": (np.cos(angle) * start + np.sin(angle) * end).astype("f4"), "stays": still.astype("f4")}
        }
        frames.append(Frame(f"{e}", f"{e}", e + 1, None, 0.5, 0.5, {}, signals))
    path = tmp_path_factory.mktemp("turning") / "a.h5"
    write(path, plan, frames)
    return path


def test_a_run_s_geometry(turning):
    with open_activations(turning) as activations:
        found = representation(activations, "mean")
    assert found.layers == ("turns", "stays")
    np.testing.assert_allclose(found.cka_last[:, 1], 1)
    assert np.isnan(found.cka_previous[0]).all()
    assert (found.cka_previous[1:, 0] > 0.9).all()
    assert (np.diff(found.cka_last[:, 0]) > 0).all()
    assert abs(found.cka_last[0, 0]) < 0.1
    np.testing.assert_allclose(np.diagonal(found.cka_layers, axis1=1, axis2=2), 1)
    assert np.abs(found.cka_layers[:, 0, 1]).max() < 0.1
    assert ((found.effective_rank > 5) & (found.effective_rank <= 6)).all()


@pytest.mark.parametrize("signal", ["effective-rank", "participation-ratio"])
def test_as_a_signal_of_the_epoch_axis_and_as_columns(turning, tmp_path, signal):
    with open_activations(turning) as activations:
        metrics = compute_metrics(activations, Protocol.named("default", axis="epoch", signal=signal), nulls=5)
        assert [channel["layer"] for channel in metrics.channels] == ["turns", "stays"]
        assert metrics.epochs[-1].reasons["constant"] == 1  # the layer that stays
        assert np.isfinite(metrics.channels[0]["hurst"][-1])
    metrics.save_csv(tmp_path / "m.csv")
    header = (tmp_path / "m.csv").read_text().splitlines()[0]
    assert "effective_rank_turns" in header
    assert "cka_previous_stays" in header
    with pytest.raises(UsageError, match="use --axis epoch"):
        Protocol.named("default", signal=signal)
