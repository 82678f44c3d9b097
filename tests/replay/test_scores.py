"""A network whose outputs are no numbers has no accuracy: the place of the first NaN is no answer."""

import math

import numpy as np
import pytest
import scipy.special
import torch
from torch import nn

import posthoc
from posthoc.analysis.health import Ailment
from posthoc.analysis.metrics import compute_metrics
from posthoc.replay.scores import SCORES, kept_in_half
from posthoc.replay.token_scores import next_token, summed_up

NET = """
from torch import nn

def make():
    return nn.Sequential(nn.Linear(7, 9), nn.Linear(9, 3))
"""
SCORED = {
    "classes": (torch.eye(4, 3), torch.tensor([0, 1, 2, 1])),
    "binary": (torch.tensor([[2.0], [-1.0], [3.0], [-2.0]]), torch.tensor([1, 0, 1, 1])),
    "segmentation": (torch.randn(4, 3, 2, 2), torch.randint(0, 3, (4, 2, 2))),
    "multilabel": (torch.randn(4, 3), torch.randint(0, 2, (4, 3)).float()),
    "regression": (torch.randn(4, 2), torch.randn(4, 2)),
}


def of(name, outputs, targets):
    score = SCORES[name]
    return score.finish(score.reduce(outputs, targets), targets)


@pytest.mark.parametrize("name", SCORED)
def test_of_outputs_that_are_no_numbers_nothing_is_right(name):
    outputs, targets = SCORED[name]
    fine, broken = of(name, outputs, targets), outputs.clone()
    broken[1].view(-1)[0] = math.nan
    scores = of(name, broken, targets)
    assert np.isfinite([fine.loss, *fine.values.values()]).all()
    assert np.isnan([scores.loss, scores.accuracy, *scores.values.values()]).all()
    for key, column in scores.samples.items():
        assert torch.equal(column[[0, 2, 3]], fine.samples[key][[0, 2, 3]]), key
    if name in ("classes", "binary"):
        assert fine.accuracy == 0.75
        assert scores.samples["prediction"][1] == -1
        assert not scores.samples["correct"][1]


@pytest.mark.parametrize("compiled", [True, False])
def test_of_tokens_whose_scores_are_no_numbers_none_is_predicted(compiled, monkeypatch):
    monkeypatch.setattr("posthoc.replay.token_scores._compiles", lambda ids: compiled)
    scores, ids = torch.randn(2, 5, 7), torch.randint(0, 7, (2, 5))
    scores[1, 2, 0] = math.nan
    reduced = next_token(scores, ids)
    loss, accuracy, samples = summed_up(reduced)
    assert math.isnan(loss)
    assert math.isnan(accuracy)
    assert samples["token_prediction"][1].eq(-1).tolist() == [True, False, False, True, False]
    assert reduced["right"][0] == (reduced["token_prediction"][0] == ids[0])[1:].double().mean()


def test_scores_within_half_precision_are_kept_as_they_are_to_the_bit():
    scores = torch.randn(200, 5) * torch.logspace(-8, 4, 200)[:, None]
    scores[3, 1], scores[5, 0], scores[7, 2], scores[9] = math.nan, math.inf, -math.inf, 65504
    for kept in (scores, scores[:, :1]):
        assert kept_in_half(kept).view(torch.int16).equal(kept.half().view(torch.int16))


def test_scores_beyond_half_precision_keep_their_differences():
    scores = torch.tensor([[1e5, 99990.0, 3e4], [-1e6, 1e6, 0.0], [3e38, -3e38, 0.0], [1.0, 2.0, 3.0]])
    scores = torch.cat([scores, torch.tensor([[1e5, -math.inf, 9e4], [1e5, math.inf, 0.0], [1e5, math.nan, 0.0]])])
    most = 65504.0
    expected = [[0, -10, -most], [-most, 0, -most], [0, -most, -most], [1, 2, 3]]
    expected += [[0, -math.inf, -10000], [math.inf, math.inf, 0], [math.inf, math.nan, 0]]
    np.testing.assert_array_equal(kept_in_half(scores).numpy(), np.array(expected, "f2"))
    one = of("binary", torch.tensor([[1e6], [-1e6], [2.0], [math.inf]]), torch.tensor([1, 0, 1, 1])).samples["logits"]
    assert one.tolist() == [[most], [-most], [2.0], [math.inf]]


@pytest.mark.filterwarnings("error")
def test_a_checkpoint_that_diverged_has_what_its_scores_say(tmp_path):
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "run").mkdir()
    torch.manual_seed(0)
    x, y = torch.randn(96, 7), torch.randint(0, 3, (96,))
    given = []
    shifts = [torch.zeros(3), torch.tensor(1e5), torch.zeros(3), torch.zeros(3), torch.tensor([1e7, 0, 0])]
    for epoch, (scale, shift) in enumerate(zip([1, 1, 1e7, 1e7, 1e3], shifts, strict=True)):
        net = nn.Sequential(nn.Linear(7, 9), nn.Linear(9, 3))
        with torch.no_grad():
            net[1].weight *= scale
            net[1].bias += shift
            given.append(net(x))
        torch.save(net.state_dict(), tmp_path / "run" / f"epoch_{epoch}.pt")
    np.savez(tmp_path / "a.npz", x=x.numpy(), y=y.numpy())
    options = {"model": f"{tmp_path / 'net.py'}:make", "layers": ["0"]}
    path = posthoc.extract(tmp_path / "run", f"npz:{tmp_path / 'a.npz'}", tmp_path / "a.h5", **options)
    keys = ["margin", "difficulty", "calibration_error", "kl_previous"]
    with posthoc.open_activations(path) as file:
        run = compute_metrics(file, measures=keys)
        assert np.isfinite(file.behaviour("logits")).all()
        assert np.ptp(file.behaviour("logits", 4), axis=0).max() == 0
    assert Ailment.CONSTANT not in [symptom.kind for symptom in run.health]  # for they differ out of reach
    logs = [scipy.special.log_softmax(scores.double().numpy(), 1) for scores in given]
    rows = np.arange(96)
    for e, log in enumerate(logs):
        far = np.sqrt(((np.exp(log) - np.eye(3)[y]) ** 2).sum(1)).mean()
        assert run.column("difficulty")[e] == pytest.approx(far, rel=1e-2)
        others = log.copy()
        others[rows, y] = -np.inf
        margin = np.clip(log[rows, y] - others.max(1), -65504, 65504).mean()
        assert run.column("margin")[e] == pytest.approx(margin, rel=1e-2)
        assert np.isfinite(run.column("calibration_error")[e])
    p, before = np.exp(logs[0]), logs[0]
    assert run.column("kl_previous")[1] == pytest.approx((p * (before - logs[1])).sum(1).mean(), rel=2e-2)
    assert np.isfinite(run.column("kl_previous")[1:]).all()
