"""The null of the convergence signal: on series in which nothing converges, the rule that the tool applies to runs."""

import dataclasses
import math

import numpy as np
import pytest
from noise import make, recording

from posthoc.analysis import settling as module
from posthoc.analysis.measures.stability import (
    causal_stability_index,
    convergence,
    stability_index,
    unevenness,
    volatility,
)
from posthoc.analysis.metrics import compute_metrics
from posthoc.analysis.protocol import Protocol
from posthoc.analysis.records import Settles
from posthoc.analysis.runs import as_run, load_csv
from posthoc.analysis.settling import KINDS, autocorrelation, sentence, settling
from posthoc.analysis.stopping import by_volatility
from posthoc.errors import PosthocError
from posthoc.store import Frame, Layout, open_activations
from posthoc.writing import write


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("causal", [False, True])
def test_many_series_at_once_are_treated_as_each_by_itself(kind, causal):
    pairs = next(module._series(kind, 30, (0.8, 0.3), 0))[:, :25]
    together = module._psi(pairs, 0.3, causal)
    index = module._first_settled(volatility(together, 3), 0.4)
    for k in range(25):
        alone = (causal_stability_index if causal else stability_index)(*pairs[:, k], w_h=0.3)
        np.testing.assert_allclose(together[k], alone, atol=1e-9)
        settled = convergence(volatility(alone, 3), 0.4)
        assert index[k] == (-1 if settled is None else settled)


def test_what_never_converges_settles_all_the_same():
    table = settling(range(58), 0.35, 3, 0.5, (0.8, 0.8))
    assert table["divergent"]["causal"].share == 1
    assert table["divergent"]["causal"].median == 8
    assert table["walk"]["causal"].share > 0.98
    assert table["autoregressive"]["causal"].share > 0.95
    assert 0.7 < table["white"]["causal"].share < 0.92
    strict = settling(range(58), 0.1, 3, 0.5, (0.8, 0.8))
    assert strict["white"]["causal"].share < 0.1
    assert settling(range(58), 0.35, 3, 0.5, (0.8, 0.8)) == table
    assert settling(range(6), 0.35, 3, 0.5, (math.nan, 0.8))["white"]["causal"].median is None


def test_epochs_without_a_value_are_no_chance_to_settle():
    whole, late = (settling(at, 0.35, 3, 0.5, (0, 0))["white"]["causal"] for at in (range(26), range(19, 45)))
    assert late == Settles(whole.share, whole.median + 19)
    torn = settling([e for e in range(26) if e % 3], 0.35, 3, 0.5, (0, 0))
    assert torn["white"]["causal"] == Settles(0, None)  # no window is whole
    assert settling([*range(20), *range(40, 60)], 0.35, 3, 0.5, (0, 0))["divergent"]["retrospective"].share == 1


def test_autocorrelation_at_lag_one():
    random = np.random.default_rng(0)
    x = random.standard_normal(4000)
    for e in range(1, len(x)):
        x[e] += 0.6 * x[e - 1]
    assert autocorrelation(x) == pytest.approx(0.6, abs=0.04)
    x[::7] = np.nan
    assert autocorrelation(x) == pytest.approx(0.6, abs=0.05)
    assert math.isnan(autocorrelation(np.ones(20)))
    assert math.isnan(autocorrelation([1.0, 2, 3]))


def test_a_run_stands_beside_what_does_not_converge(tmp_path):
    path = make(tmp_path / "a.h5", epochs=24)
    with open_activations(path) as activations:
        summary = compute_metrics(activations, Protocol.named("default", threshold=0.4)).summary
    expected = settling(range(23), 0.4, 3, 0.5, (0.0, 0.0))["white"]["causal"]
    assert summary.settling["white"]["causal"] == Settles(expected.share, expected.median + 1)
    assert summary.uneven == ""
    text = sentence(summary)
    assert f"{expected.share:.0%} of series of white noise, half of them by epoch {expected.median + 1}" in text
    assert sentence(dataclasses.replace(summary, settling={})) == ""


@pytest.mark.parametrize(("steps", "epochs", "gap"), [
    ([10, 20, 30, 50], [None] * 4, None),
    ([10, 20, 30, 51], [None] * 4, "21 steps, is above twice the median one, 10"),
    ([None] * 4, [1, 2, 3, 6], "3 epochs, is above twice the median one, 1"),
    ([100, 200, 300, 400], [1, 2, 3, 9], None),
    ([None, 200, 300, 400], [1, 2, 3, 9], "6 epochs"),
    ([1, 9], [None] * 2, None),
    ([None] * 5, [None] * 5, None),
    # Pythia's: mostly even, after powers of two
    ([*(2 ** np.arange(10)), *range(1000, 144000, 1000)], [None] * 153, "from 1 to 4 are 3 steps, two gaps that are together below the median one, 1000"),
    ([1, 2, 3, *range(1000, 6000, 1000)], [None] * 8, "from 1 to 3 are 2 steps"),
    ([256, 512, *range(1000, 9000, 1000)], [None] * 10, "from 256 to 1000 are 744 steps"),
    ([150, 600, *range(1000, 9000, 1000)], [None] * 10, "from 150 to 1000 are 850 steps"),
    ([*range(500, 5001, 500), 5400, 5410, 5420], [None] * 13, "from 5400 to 5420 are 20 steps"),
    ([None] * 8, [1, 10, 20, 30, 31, 32, 40, 50], "from 30 to 32 are 2 epochs"),
    # OLMo's, evenly saved, one of them missing; a first, a last or a lone one off the grid
    ([*range(1000, 9000, 1000), *range(10000, 15000, 1000)], [None] * 13, None),
    ([1, *range(500, 5001, 500)], [None] * 11, None),
    ([512, *range(1000, 9000, 1000)], [None] * 9, None),
    ([*range(100, 1001, 100), 1001], [None] * 11, None),
    ([1000, 2000, 2340, *range(3000, 9000, 1000)], [None] * 9, None),
])  # fmt: skip
def test_uneven_checkpoints(steps, epochs, gap):
    reason = unevenness(steps, epochs)
    assert bool(reason) == (gap is not None)
    assert (gap or "") in reason


def noise_at(steps, path):
    """Write activations of noise at these steps."""
    random = np.random.default_rng(0)
    frames = [
        Frame(f"{s}.pt", "0", None, s, 1.0, 0.01 * k, {}, {"mean": {"a": random.standard_normal((6, 96), "f4")}})
        for k, s in enumerate(steps)
    ]
    write(path, Layout(recording(["a"], images=96), np.arange(96), np.arange(96) % 4, {"a": np.arange(6)}), frames)


def test_uneven_checkpoints_have_no_volatility_and_no_epoch_axis(tmp_path):
    noise_at([*range(22), *(2**k for k in range(5, 12))], tmp_path / "a.h5")
    with open_activations(tmp_path / "a.h5") as activations:
        with pytest.raises(PosthocError, match="unevenly spaced: the largest gap, 1024 steps, is above twice"):
            compute_metrics(activations, Protocol.named("default", axis="epoch"))
        metrics = compute_metrics(activations, Protocol.named("default"))
    assert np.isnan(metrics.column("volatility")).all()
    assert np.isfinite(metrics.column("stability_index")[1:]).all()
    assert metrics.summary.convergence == {"retrospective": None, "causal": None}
    assert "1024 steps" in metrics.summary.uneven
    assert metrics.summary.settling == {}


def test_evenly_saved_after_powers_of_two_is_no_series_in_time(tmp_path):
    noise_at([1, 2, 4, 8, 16, 32, 64, 128, *range(250, 5500, 250)], tmp_path / "a.h5")
    with open_activations(tmp_path / "a.h5") as activations:
        with pytest.raises(PosthocError, match="from 1 to 4 are 3 steps, two gaps that are together below the median"):
            compute_metrics(activations, Protocol.named("default", axis="epoch"))
        metrics = compute_metrics(activations, Protocol.named("default"))
    assert np.isnan(metrics.column("volatility")).all()
    assert metrics.summary.convergence == {"retrospective": None, "causal": None}
    assert "from 1 to 4 are 3 steps" in metrics.summary.uneven
    run = as_run(metrics, "a")
    assert by_volatility(run, 9.0) is by_volatility(run, 9.0, causal=False) is None


def test_a_table_of_uneven_epochs_has_no_volatility(tmp_path):
    rows = "".join(f"{epoch},{epoch / 100},{0.5 + epoch % 3 / 10},0.1{epoch % 4}\n" for epoch in (*range(1, 20), 40))
    (tmp_path / "a.csv").write_text("epoch,val_acc,Heff,M\n" + rows)
    (run,) = load_csv([str(tmp_path / "a.csv")])
    assert "21 epochs" in run.summary.uneven
    assert by_volatility(run, 9.0) is None
