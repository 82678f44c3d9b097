"""Activations files of pure noise."""

import numpy as np

from posthoc.store import Frame, Plan, write


def config(layers, signals=("mean",), images=80, classes=4, sha256="0"):
    """What an activations file says at the least of how it was made."""
    probe = {"sha256": sha256, "name": "noise", "images": images, "classes": classes}
    return {
        "model": {"name": "none", "source": "made up"}, "probe": probe, "layers": [{"name": name} for name in layers],
        "signals": list(signals), "device": "cpu", "dtype": "float32", "versions": {"torch": None},
    }  # fmt: skip


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
    plan = Plan(config(names, images=images, classes=classes), np.arange(images), np.arange(images) % classes, kept)
    write(path, plan, frames)
    return path
