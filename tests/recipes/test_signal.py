"""A signal that a module outside the package registers is recorded, and measured."""

import json
from pathlib import Path

import numpy as np
import torch
from recipes.commands import run, run_alone
from recipes.toy_nets import CNN

import posthoc

NETS = Path(__file__).parent / "toy_nets.py"


def test_a_toy_signal_is_recorded_and_measured(tmp_path):
    torch.manual_seed(0)
    net = CNN().eval()
    (tmp_path / "run").mkdir()
    for epoch in range(2):
        torch.save(net.state_dict(), tmp_path / "run" / f"epoch_{epoch}.pt")
    images = np.random.default_rng(0).integers(0, 256, (200, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "p.npz", images=images, labels=np.arange(200) % 10)
    options = ["--probe", f"npz:{tmp_path / 'p.npz'}", "--normalize", "none", "--model", f"{NETS}:CNN"]
    options += ["--layers", "c1", "--signals", "toy,moments", "--channels", "all"]
    run_alone("recipes.toy_probe", "extract", tmp_path / "run", *options, "-o", tmp_path / "a.h5")
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    with posthoc.open_activations(tmp_path / "a.h5") as activations, torch.inference_mode():
        maps = net.c1(x)
        np.testing.assert_allclose(activations.read("toy", 0), maps.amax((2, 3)).T, atol=1e-6)
        assert activations.read("moments", 0).shape == (6, 200, 1)
        assert activations.recording.provenance.signals["toy"] == "the largest"
    run(None, "metrics", tmp_path / "a.h5", "--signal", "toy", "-o", tmp_path / "m.json")
    assert json.loads((tmp_path / "m.json").read_text())["protocol"]["signal"] == "toy"
