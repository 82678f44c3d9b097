"""Small networks trained on what is no labelled image, and their probes: a table, an autoencoder, masks, no targets."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import posthoc
from posthoc.replay.probes import PROBES, Kind, Probe

EPOCHS = 11
SAMPLES = 160


def mlp(inputs, outputs):
    return nn.Sequential(nn.Linear(inputs, 12), nn.Tanh(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, outputs))


def table():
    return mlp(6, 1)


def autoencoder():
    return mlp(6, 6)


def classifier():
    return mlp(6, 3)


def segmenter():
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 3, 3, padding=1))


def rows():
    random = np.random.default_rng(0)
    x = random.normal(size=(SAMPLES, 6)).astype(np.float32)
    return x, (x[:, :1] * x[:, 1:2] + x[:, 2:3]).astype(np.float32)


def pictures():
    random = np.random.default_rng(1)
    x = random.normal(size=(SAMPLES, 3, 6, 6)).astype(np.float32)
    return x, x.argmax(1)


def probe(kind):
    x, y = pictures() if kind == "segmentation" else rows()
    return {
        "regression": lambda: Probe(x, y, name="a table", samples="rows"),
        "autoencoder": lambda: Probe(x, score="reconstruction", name="vectors"),
        "segmentation": lambda: Probe(x, y, name="pictures", samples="images"),
        "bare": lambda: Probe(x, name="texts", samples="documents"),
        "user": lambda: Probe(x, y, score=absolute_error, name="a table", samples="rows"),
        "classes": lambda: Probe(x, np.digitize(y[:, 0], (-0.5, 0.5)), name="classes", samples="rows"),
    }[kind]()


def absolute_error(output, targets):
    return (output - targets).abs().mean(1)


NETS = {"regression": table, "autoencoder": autoencoder, "segmentation": segmenter, "bare": table, "user": table,
        "classes": classifier}  # fmt: skip
PROBES["task"] = Kind(lambda asked, model: probe(asked.place))


def loss_of(kind, net, x, y):
    if kind in ("segmentation", "classes"):
        return F.cross_entropy(net(x), y)
    return F.mse_loss(net(x), x if kind == "autoencoder" else y)


def activations(kind, folder):
    """Train the network of that kind, a checkpoint an epoch, and replay it over its probe; returns the file's path."""
    torch.manual_seed(0)
    net, given = NETS[kind](), probe(kind if kind not in ("bare", "user") else "regression")
    x, y = torch.tensor(given.inputs["input"]), None if given.targets is None else torch.tensor(given.targets)
    optimiser = torch.optim.Adam(net.parameters(), 0.01)
    run = folder / "run"
    run.mkdir(parents=True)
    for epoch in range(EPOCHS):
        for batch in torch.randperm(len(x)).split(32):
            optimiser.zero_grad()
            loss_of(kind, net, x[batch], None if y is None else y[batch]).backward()
            optimiser.step()
        torch.save(net.state_dict(), run / f"epoch_{epoch}.pt")
    return posthoc.extract(run, f"task:{kind}", folder / "activations.h5", model=f"{__file__}:{NETS[kind].__name__}")
