"""The measures of every epoch as TensorBoard's scalars, beside the loss curves of the training."""

import tempfile
from pathlib import Path

import numpy as np

from posthoc.analysis.records import RunMetrics
from posthoc.errors import PosthocError
from posthoc.files import replacing

SERIES = ("hurst", "integration", "metastability", "synchrony", "stability_index", "stability_index_causal", "volatility",
          "volatility_causal", "accuracy", "loss")  # fmt: skip
NAME = "events.out.tfevents.0000000000.posthoc"
"""The same each time, so that writing again replaces what was written."""


def write_scalars(metrics: RunMetrics, path: Path) -> None:
    """Write the series of a run, and pure noise's, to an events file.

    A scalar's step is the training step where all checkpoints have one, else the epoch. Raises PosthocError without
    the package tensorboard.
    """
    try:
        from tensorboard.summary import Writer
    except ImportError as error:
        raise PosthocError("--tensorboard needs the extra tensorboard: pip install 'posthoc[tensorboard]'.") from error
    steps = [epoch.step for epoch in metrics.epochs]
    if None in steps:
        steps = [epoch.epoch for epoch in metrics.epochs]
    series = {f"posthoc/{name}": metrics.column(name) for name in SERIES}
    series |= {f"posthoc_noise/{name}": metrics.null("white", name) for name in ("integration", "metastability")}
    with tempfile.TemporaryDirectory() as place:
        writer = Writer(place)
        for tag, values in series.items():
            for k in np.flatnonzero(np.isfinite(values)).tolist():
                writer.add_scalar(tag, float(values[k]), k if steps[k] is None else steps[k])
        writer.close()
        content = b"".join(one.read_bytes() for one in sorted(Path(place).iterdir()))
    with replacing(path) as temporary:
        temporary.write_bytes(content)
