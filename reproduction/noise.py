"""Pure Gaussian noise, without any network, through the published protocol."""

import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from posthoc.analysis.metrics import compute_metrics
from posthoc.analysis.protocol import Protocol
from posthoc.recording import Identity, Layer, Model, Probe, Provenance, Recording
from posthoc.store import Frame, Layout, open_activations
from posthoc.writing import write

SEEDS = 20
LAYERS, CHANNELS = 4, 32


def of_noise(labels: NDArray[np.int64], smooth: int) -> dict[str, list[float]]:
    """H_eff and M of 128 series at a time, one value a seed, of samples with these labels [N]."""
    random = np.random.default_rng(0)
    layers = [f"layer{k}" for k in range(LAYERS)]
    probe = Probe("0", len(labels), len(np.unique(labels)))
    identity = Identity(Model("none"), probe, tuple(map(Layer, layers)), ("mean",), "cpu", "float32")
    plan = Layout(
        Recording(identity, Provenance("none", "noise", "pure noise")),
        np.arange(len(labels)),
        labels,
        {name: np.arange(CHANNELS) for name in layers},
    )
    frames = [
        Frame(str(k), "0", k, k + 1, 0.0, 0.0, {}, {
            "mean": {name: random.standard_normal((CHANNELS, len(labels)), "f4") for name in layers}
        })
        for k in range(SEEDS)
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "noise.h5"
        write(path, plan, frames)
        with open_activations(path) as opened:
            metrics = compute_metrics(opened, Protocol.named("published", smooth=smooth), nulls=0)
    return {name: metrics.column(name).tolist() for name in ("integration", "metastability")}
