"""How well the network does: accuracy, loss, and other scores by their own names."""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from posthoc.analysis.arrays import FloatArray
from posthoc.analysis.measures.measure import Measure

if TYPE_CHECKING:
    from posthoc.store import Activations


LOWER = re.compile(
    r"(?:^|[^a-z])(?:n?r?ms[el]e?|mae|s?mape|nll|b?ce|ppl|bp[bcd]|bits|nats|crps|ece|kld?|[fk]id|fvd|h?[wcte]er|lpips|brier|epe"
    r"|[af]de|(?:pa)?mpjpe|hinge|huber|chamfer|dist)(?:[^a-z]|$)"
    r"|loss|error|perplexity|distance|distortion|divergence|deviation|entropy|regret"
)
"""What a score is called that falls as the network gets better; of every other, higher is better."""


def lower_is_better(name: str) -> bool:
    """Whether a score falls as the network gets better, by its name.

    >>> lower_is_better("R2"), lower_is_better("val_MSE"), lower_is_better("valRMSE"), lower_is_better("bits_per_byte")
    (False, True, True, True)
    """
    return bool(LOWER.search(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()))


def recorded(activations: "Activations", name: str, replayed: FloatArray) -> tuple[FloatArray, str]:
    """What the checkpoints recorded if all did, else what the replay measured on the probe; and which it is.

    What was recorded of a network that is no longer one, with weights that are not finite and no loss, is NaN.
    """
    column = activations.recorded.get(name)
    if column is None or not np.isfinite(column).all():
        return replayed, "probe"
    broken = (activations.nonfinite_weights > 0) & np.isnan(activations.loss)
    return np.where(broken, np.nan, column), f"recorded {name}"


ACCURACY = Measure(
    "accuracy",
    "accuracy",
    "accuracy",
    "share of samples classified correctly, as the checkpoints recorded it if all did, else on the probe",
    of_activations=lambda activations: recorded(activations, "val_acc", activations.accuracy),
    headline=False,
)
LOSS = Measure(
    "loss",
    "loss",
    "loss",
    "mean loss, as the checkpoints recorded it if all did, else on the probe",
    of_activations=lambda activations: recorded(activations, "val_loss", activations.loss),
    headline=False,
    listed=False,
    lower_is_better=True,
)


def of_file(activations: "Activations") -> dict[str, Measure]:
    """Accuracy, loss, and the other scores that the file holds; the loss by its own name where there is nothing else."""
    measures = {measure.key: measure for measure in (ACCURACY, LOSS, *scores_of(activations))}
    if of_tokens(activations):
        return measures | {"loss": replace(LOSS, title="loss per token", listed=True)}
    columns = {key: measure.of_activations(activations) for key, measure in measures.items() if measure.of_activations}
    if judge({key: column for key, (column, _) in columns.items()}) == "loss":
        source = columns["loss"][1]
        name = activations.recording.provenance.loss if source == "probe" else source.removeprefix("recorded ")
        measures["loss"] = replace(LOSS, symbol=name, title=name, listed=True)
    return measures


def scores_of(activations: "Activations") -> list[Measure]:
    """The other scores that the file holds."""
    return [
        Measure(
            f"score_{name}", name, name, f"{name} on the probe",
            of_activations=_score(name), headline=False, lower_is_better=lower_is_better(name),
        )
        for name in activations.scores
    ]  # fmt: skip


def _score(name: str) -> Callable[["Activations"], tuple[FloatArray, str]]:
    return lambda activations: (activations.scores[name], "probe")


def of_tokens(activations: "Activations") -> bool:
    """Whether it was scored token by token, so that the loss says more than how often the likeliest token was right."""
    return activations.recording.identity.output.score == "tokens"


def judge(columns: Mapping[str, FloatArray], tokens: bool = False) -> str:
    """By which measure a run is judged: accuracy, else the first other score, else the loss; of `tokens` the loss first;
    empty where it has none."""
    keys = ["accuracy", *(key for key in columns if key.startswith("score_")), "loss"]
    keys = ["loss", *keys] if tokens else keys
    return next((key for key in keys if key in columns and np.isfinite(columns[key]).any()), "")
