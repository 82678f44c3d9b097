"""Does a network see the probe as it saw its training images? Told by its accuracy, against chance and what it recorded."""

import math
import re
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from posthoc.recording import UNKNOWN, Recording, Scaling
from posthoc.shown import counted

LEVEL = 0.01
ACCURACY = re.compile(r"(acc|accuracy|top[\W_]?1)(?![a-z])")
"""In the name of a recorded number, a loss, a rate or a count apart: `accumulate` is none."""
OF_SEVERAL = re.compile(r"(acc|accuracy|top)[\W_]?([2-9]|\d\d)")
"""In the name of an accuracy that counts an answer among the first few as right."""
ELSEWHERE = {"best", "step", "steps", "grad", "batches"}
"""Words in the names of what is no accuracy of this checkpoint, or counts the batches whose gradients are accumulated."""
LESS = 0.03
"""Of accuracy: another preparation does better if it does so by that than the run ever did with its own."""
OF_LABELS = ("classes", "binary")
"""How outputs are scored that have an accuracy among classes."""
GAP = 0.2
"""By how much the recorded accuracy must be above that on the probe before it is said."""


def largest_share(labels: NDArray[np.int64]) -> float:
    """The share of the most frequent class: the accuracy of an answer that is always the same."""
    return float(np.unique(labels, return_counts=True)[1].max() / len(labels))  # labels may be huge numbers


def so_many(successes: int, trials: int, probability: float) -> float:
    """The probability of so many successes or more among independent trials; NaN where `probability` is none.

    scipy.special has this, too, but takes long to import.

    >>> round(so_many(8, 10, 0.5), 9), so_many(0, 10, 0.5), so_many(3, 10, 1.0), so_many(3, 10, 0.0)
    (0.0546875, 1.0, 1.0, 0.0)
    """
    if not 0 < probability < 1 or successes <= 0:
        return float(successes <= 0 or probability == 1) if 0 <= probability <= 1 else math.nan
    log_factorials = np.cumsum(np.log(np.arange(1, trials + 1)), dtype=np.longdouble)
    factorial = np.concatenate([[0], log_factorials])
    counts = np.arange(successes, trials + 1)
    ways = factorial[trials] - factorial[counts] - factorial[trials - counts]
    odds = counts * math.log(probability) + (trials - counts) * math.log1p(-probability)
    return float(np.exp(ways + odds).sum())


def better_than_chance(accuracy: float, labels: NDArray[np.int64], level: float = LEVEL) -> bool:
    """Whether so many right answers are rarer than `level` for one who always names the most frequent class.

    One-sided exact binomial test; False for an accuracy that is NaN.
    """
    if math.isnan(accuracy):
        return False
    right = round(accuracy * len(labels))
    return right > 0 and bool(so_many(right, len(labels), largest_share(labels)) < level)


def can_tell(labels: NDArray[np.int64]) -> bool:
    """Whether accuracy on these samples can be better than chance at all: with one class, or few samples of several, even
    every answer right is not.

    >>> can_tell(np.zeros(80, np.int64)), can_tell(np.arange(3)), can_tell(np.arange(4))
    (False, False, True)
    """
    return better_than_chance(1.0, labels)


class Replayed(Protocol):
    """What is needed of activations: see posthoc.store.Activations."""

    epochs: NDArray[np.int64]
    steps: NDArray[np.int64]
    labels: NDArray[np.int64]
    loss: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    scores: dict[str, NDArray[np.float64]]
    recorded: dict[str, NDArray[np.float64]]
    nonfinite_weights: NDArray[np.int64]
    recording: Recording


def ends(run: Replayed) -> list[tuple[str, str]]:
    """Loss and scores on the probe of the first, the best and the last checkpoint, as label and text; none where nothing
    was scored. Best is by accuracy, of language models by the loss, else by the first of the other scores, else by the loss."""
    scores = {"accuracy": run.accuracy, **run.scores}
    known = {name: values for name, values in scores.items() if np.isfinite(values).any()}
    if not known and not np.isfinite(run.loss).any():
        return []
    of_tokens = run.recording.identity.output.score == "tokens" and np.isfinite(run.loss).any()
    by = -run.loss if of_tokens else next(iter(known.values()), -run.loss)
    rows = {"first": 0, "best": int(np.nanargmax(by)), "last": len(by) - 1}
    name = run.recording.provenance.loss
    losses = {} if np.isnan(run.loss).all() else {"loss" if known.keys() == {"accuracy"} else name: run.loss}
    return [
        (
            label,
            f"{_place(run.epochs[row], run.steps[row])}: "
            + ", ".join(f"{key} {_number(values[row])}" for key, values in (losses | known).items()),
        )
        for label, row in rows.items()
    ]


def _number(value: float) -> str:
    return "undefined" if math.isnan(value) else f"{value:.4f}"


def standing(run: Replayed) -> str | None:
    """How the last checkpoint does beside chance, in words; None where it has no accuracy, or is not of classes."""
    accuracy = float(run.accuracy[-1])
    if not math.isfinite(accuracy) or run.recording.identity.output.score not in OF_LABELS:
        return None
    chance = largest_share(run.labels)
    return f"probe accuracy {accuracy:.4f} at the last checkpoint ({_place(run.epochs[-1], run.steps[-1])}); chance {chance:.4f}"


def doubt(run: Replayed) -> str | None:
    """Why the images are probably not scaled as in training, in a sentence; None where nothing speaks for it.

    They are where neither the first checkpoint after step 0 nor the last does better than chance, where another
    preparation was tried and does better, where a batch norm was trained on other numbers, or where the last is far
    below the accuracy that it recorded of itself. Of a last checkpoint whose scores are no numbers, or which is no better
    than chance and whose weights are not finite, or which an earlier one was far above, that is said.
    accuracy: on the probe, [E]; epochs, steps: -1 where unknown.
    Nothing is said of a run without accuracy or with nothing but untrained weights, and being no better than chance is held
    against none where no accuracy could be.
    """
    accuracy, epochs, steps, labels = run.accuracy, run.epochs, run.steps, run.labels
    trained = np.flatnonzero(steps != 0)
    if len(trained) > 1 and epochs[trained[0]] == 0 and steps[trained[0]] < 0:  # untrained, or after the first epoch
        trained = trained[1:]
    provenance, score = run.recording.provenance, run.recording.identity.output.score
    what, scaled, options = "the samples", "prepared", f"assumed: {provenance.preparation}"
    if provenance.preparation == UNKNOWN:
        options = "how they were prepared is not recorded"
    if provenance.samples == "images":
        what, scaled, options = "the images", "scaled", f"{options}; options of extract: --normalize, --image-size"
    scored = score in OF_LABELS or np.isfinite(run.loss).any()
    if len(trained) and scored and np.isnan(run.loss[trained[-1]]):
        return _nothing_said(run, int(trained[-1]), what)
    known = [e for e in (trained[0], trained[-1]) if np.isfinite(accuracy[e])] if len(trained) else []
    if not known or score not in OF_LABELS:
        return None
    last = known[-1]
    where = f"probe accuracy {accuracy[last]:.2f} at {_place(epochs[last], steps[last])}"
    if not any(better_than_chance(float(accuracy[e]), labels) for e in known):
        where += f", chance {largest_share(labels):.2f}"
        if broken := _broken(run, int(last)):
            return f"{where}: {broken}, which no scaling of {what} mends"
        best = trained[np.nanargmax(accuracy[trained])]
        if accuracy[last] < accuracy[best] - GAP:
            before = f"{accuracy[best]:.2f} at {_place(epochs[best], steps[best])}"
            return f"{where}, after {before}: the training broke down in between"
        if can_tell(labels):
            reason = f"{where}: {what} are probably not {scaled} as in training ({options}), or nothing was learned"
            return "; ".join([reason, *_evidence(run, int(last))])
    if evidence := _evidence(run, int(last)):
        return f"{where}: {what} are probably not {scaled} as in training ({options}): {'; '.join(evidence)}"
    name, value = _recorded(run.recorded, int(last))
    right = round(accuracy[last] * len(labels))
    if value - accuracy[last] > GAP and so_many(len(labels) - right, len(labels), 1 - value) < LEVEL:
        return (
            f"{where}, where {name} was recorded as {value:.2f}: {what} may not be {scaled} as in training ({options})"
        )
    return None


def _nothing_said(run: Replayed, last: int, what: str) -> str:
    """That the scores of the last checkpoint are no numbers, so that nothing can be said of how good it is."""
    where = _place(run.epochs[last], run.steps[last])
    outputs = f"the network's outputs for some or all of {what} are not"
    if broken := _broken(run, last):
        return f"no score at {where}: {broken}, and {outputs} either"
    return f"no score at {where}: {outputs} finite"


def _broken(run: Replayed, row: int) -> str:
    """How many weights of a checkpoint are not finite, in words; empty where all are."""
    count = int(run.nonfinite_weights[row])
    return f"{counted(count, 'weight')} {'is' if count == 1 else 'are'} not finite" if count else ""


def _evidence(run: Replayed, last: int) -> list[str]:
    """What speaks against the probe's preparation, in words; not that another does better at the end where the run did as
    well before with its own: it was right then. So it was, whatever a batch norm is given, where the last checkpoint reaches
    the accuracy that it recorded, or is far below an earlier one, after which its weights went elsewhere."""
    provenance, words = run.recording.provenance, []
    scaling, best = provenance.scaling or Scaling(), float(np.nanmax(run.accuracy))
    if (
        scaling.better is not None
        and scaling.accuracy is not None
        and scaling.usual is not None
        and (scaling.accuracy >= best + LESS)
    ):
        tried = f"at {scaling.checkpoint}, over {scaling.samples} {provenance.samples}"
        words.append(f"{scaling.better} gives {scaling.accuracy:.2f} instead of {scaling.usual:.2f} {tried}")
    accuracy, (_, recorded) = float(run.accuracy[last]), _recorded(run.recorded, last)
    right = accuracy >= recorded - LESS or accuracy < best - GAP
    if (misfit := scaling.misfit) and not right:
        words.append(
            f"the batch norm {misfit.layer} is given {misfit.spread:.2g} times the standard deviation that it recorded in "
            f"training, and means {misfit.shift:.2g} of these away"
        )
    return words


def _recorded(recorded: dict[str, NDArray[np.float64]], row: int) -> tuple[str, float]:
    """The accuracy that a checkpoint says it had on images it was not trained on, 0..1, and its name; NaN if none."""
    names = [
        name
        for name in recorded
        if ACCURACY.search(name.lower()) and not OF_SEVERAL.search(name.lower())
        if not any(word in ELSEWHERE or word.startswith("train") for word in _words(name))
    ]
    for name in sorted(names, key=lambda name: not _words(name) & {"val", "valid", "test", "eval"}):
        value = float(recorded[name][row])
        value = value / 100 if value > 1 else value
        if 0 <= value <= 1:
            return name, value
    return "", math.nan


def _words(name: str) -> set[str]:
    return set("".join(letter if letter.isalnum() else " " for letter in name.lower()).split())


def _place(epoch: int, step: int) -> str:
    return f"epoch {epoch}" if epoch >= 0 else f"step {step}" if step >= 0 else "an unknown epoch"
