"""A kind of probe that a module outside the package registers is replayed by the command line."""

from pathlib import Path

import numpy as np
import pytest
import torch
from recipes.commands import run
from recipes.toy_nets import MLP, Pair
from recipes.toy_probe import vectors
from torch.nn import functional as F

import posthoc

NETS = Path(__file__).parent / "toy_nets.py"


def saved(net, folder):
    """Two checkpoints of a network, and the networks."""
    folder.mkdir()
    nets = []
    for epoch in range(2):
        torch.manual_seed(epoch)
        nets.append(net().eval())
        torch.save(nets[-1].state_dict(), folder / f"epoch_{epoch}.pt")
    return nets


@pytest.mark.parametrize(("place", "net"), [("labelled", MLP), ("bare", MLP), ("pair", Pair)])
def test_vectors_as_a_plain_loop_has_them(place, net, tmp_path):
    nets = saved(net, tmp_path / "run")
    options = ["--probe", f"toy:{place}", "--model", f"{NETS}:{net.__name__}", "--layers", "f1", "--signals", "mean"]
    features = [] if place == "bare" else ["--features"]
    run("recipes.toy_probe", "extract", tmp_path / "run", *options, *features, "-o", tmp_path / "a.h5")
    x, labels = vectors()
    x, labels = torch.tensor(x).float(), torch.tensor(labels)
    with posthoc.open_activations(tmp_path / "a.h5") as activations, torch.inference_mode():
        assert activations.labelled == (place != "bare")
        for e, model in enumerate(nets):
            hidden = model.f1(x - 2 * x.flip(0) if place == "pair" else x)
            scores = model.f2(hidden.relu())
            np.testing.assert_array_equal(activations.read("mean", e), hidden.T.numpy())
            if place == "bare":
                assert activations.behaviours == ()
                assert np.isnan(activations.loss).all()
                continue
            assert activations.loss[e] == F.cross_entropy(scores, labels).item()
            behaviour = {name: activations.behaviour(name, e) for name in activations.behaviours}
            loss = F.cross_entropy(scores, labels, reduction="none").numpy()
            np.testing.assert_array_equal(behaviour["loss"], loss)
            assert abs(loss.mean() - activations.loss[e]) < 1e-6
            np.testing.assert_array_equal(behaviour["prediction"], scores.argmax(1))
            assert behaviour["correct"].mean() == activations.accuracy[e]
            np.testing.assert_array_equal(behaviour["logits"], scores.half())
            np.testing.assert_array_equal(behaviour["features"], hidden.relu())
            head = behaviour["features"] @ activations.head("weight", e).T + activations.head("bias", e)
            np.testing.assert_allclose(head, scores, atol=1e-6)
