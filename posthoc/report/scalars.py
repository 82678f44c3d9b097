"""The measures of every epoch as TensorBoard's scalars, beside the loss curves of the training."""

import tempfile
from pathlib import Path

import numpy as np

from posthoc.analysis.records import PURE_NOISE, RunMetrics
from posthoc.errors import PosthocError
from posthoc.files import replacing
from posthoc.report.words import headlines

NAME = "events.out.tfevents.0000000000.posthoc"
"""The same each time, so that writing again replaces what was written."""


def write_scalars(metrics: RunMetrics, path: Path) -> None:
    """Write every measure of a run, and pure noise's of the headline ones, to an events file.

    A scalar's step is the training step where all checkpoints have one, else the epoch. Raises PosthocError without
    the package tensorboard.
    """
    try:
        from tensorboard.summary import Writer
    except ImportError as error:
        raise PosthocError("--tensorboard needs the extra tensorboard: pip install 'posthoc[tensorboard]'.") from error
    steps = [checkpoint.step for checkpoint in metrics.checkpoints]
    if None in steps:
        steps = [checkpoint.epoch for checkpoint in metrics.checkpoints]
    series = {f"posthoc/{key}": measured.value for key, measured in metrics.measures.items()}
    series |= {
        f"posthoc_noise/{key}": metrics.null(PURE_NOISE, key)
        for key in headlines(metrics)
        if PURE_NOISE in metrics.nulls
    }
    with tempfile.TemporaryDirectory() as place:
        writer = Writer(place)
        for tag, values in series.items():
            for k in np.flatnonzero(np.isfinite(values)).tolist():
                writer.add_scalar(tag, float(values[k]), k if steps[k] is None else steps[k])
        writer.close()
        content = b"".join(file.read_bytes() for file in sorted(Path(place).iterdir()))
    with replacing(path) as temporary:
        temporary.write_bytes(content)
