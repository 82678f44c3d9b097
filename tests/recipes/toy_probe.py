"""Two kinds of probe and a signal from outside the package: vectors with labels and without; maxima, and all moments."""

import numpy as np

from posthoc.replay.probes import PROBES, Kind, Probe
from posthoc.replay.signals import SIGNALS, Signal


def vectors():
    random = np.random.default_rng(0)
    return random.normal(size=(50, 8)), random.integers(0, 3, 50)


def load(asked, model):
    x, y = vectors()
    if asked.place == "pair":
        return Probe({"a": x, "b": x[::-1].copy()}, y, name="toy pair")
    return Probe(x, y if asked.place == "labelled" else None, name="toy vectors")


PROBES["toy"] = Kind(load)
SIGNALS["toy"] = Signal("the largest", lambda output: output.values.amax(output.axes) if output.axes else output.values)
SIGNALS["moments"] = Signal(
    "every moment", lambda output: output.values.flatten(2).mean(2, keepdim=True), ("unit", "sample", "time")
)
