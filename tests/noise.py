"""Activations files of pure noise."""

import numpy as np

from posthoc.store import Frame, Plan, write


def make(path, layers=2, channels=3, images=80, epochs=24, seed=0, classes=4):
    """Noise activations, the first epoch saved at step 0."""
    random = np.random.default_rng(seed)
    names = [f"layer{k}" for k in range(layers)]
    probe = {"sha256": "0", "name": "noise", "images": images}
    config = {"layers": [{"name": name} for name in names], "signals": ["mean"], "probe": probe}
    kept = {name: np.arange(channels) for name in names}
    frames = [
        Frame(f"{e}.pt", "0", e, 10 * e, 1.0, 0.1 * (e % 7), {}, {
            "mean": {name: random.standard_normal((channels, images), "f4") for name in names}
        })
        for e in range(epochs)
    ]  # fmt: skip
    write(path, Plan(config, np.arange(images), np.arange(images) % classes, kept), frames)
    return path
