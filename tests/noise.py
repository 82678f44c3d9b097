"""Activations files of pure noise."""

import numpy as np

from posthoc.recording import Identity, Layer, Model, Probe, Provenance, Recording
from posthoc.store import Frame, Layout
from posthoc.writing import write


def recording(layers, signals=("mean",), images=80, classes=4, sha256="0"):
    """What an activations file says at the least of how it was made."""
    identity = Identity(
        Model("none"), Probe(sha256, images, classes), tuple(map(Layer, layers)), tuple(signals), "cpu", "float32"
    )
    return Recording(identity, Provenance("none", "noise", "made up"))


def make(path, layers=2, channels=3, images=80, epochs=24, seed=0, classes=4):
    """Noise activations, the first epoch saved at step 0."""
    random = np.random.default_rng(seed)
    names = [f"layer{k}" for k in range(layers)]
    kept = {name: np.arange(channels) for name in names}
    frames = [
        Frame(f"{e}.pt", "0", e, 10 * e, 1.0, 0.1 * (e % 7), {}, {
            "mean": {name: random.standard_normal((channels, images), "f4") for name in names}
        })
        for e in range(epochs)
    ]  # fmt: skip
    plan = Layout(
        recording(names, images=images, classes=classes), np.arange(images), np.arange(images) % classes, kept
    )
    write(path, plan, frames)
    return path
