"""A network whose outputs are no numbers has no accuracy: the place of the first NaN is no answer."""

import math

import numpy as np
import pytest
import torch

from posthoc.replay.scores import SCORES
from posthoc.replay.token_scores import next_token, summed_up

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
