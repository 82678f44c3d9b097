"""Scores: how a network's outputs are judged by what is right.

A score is one entry in `SCORES`; the first that takes a probe's targets and finds an output that fits them counts. Torch
is not imported here, for the names and their meanings are wanted without it.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from posthoc.replay.token_scores import next_token, summed_up

if TYPE_CHECKING:
    from torch import Tensor

MOST_LOGITS = 1000
"""Classes up to which the scores of every sample are kept."""
NO_CLASS = -1
"""The prediction of a network that says nothing."""
IGNORED = 255
"""The class of pixels that are none, in masks of fewer classes; so is every negative one."""
LOGITS = "the targets are all 0 or 1, so the outputs are taken as logits; --score regression compares them as numbers"
Reduced = dict[str, "Tensor"]
"""Of the samples of a batch, [B, ...]: all that is needed of their outputs."""


@dataclass(frozen=True)
class Truth:
    """What outputs are scored by: the targets [N, ...], how many classes they are of (or tokens the network knows, 0 where
    that is not known), the shape of one sample as the network sees it, and of whole numbers how many ids they are at the
    least, 0 of others."""

    targets: NDArray[Any] | None
    classes: int
    sample: tuple[int, ...] = ()
    ids: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the target of one sample."""
        return () if self.targets is None else self.targets.shape[1:]

    @property
    def kind(self) -> str:
        """Of the targets' numbers: `i`, `f`, or nothing where there are none."""
        if self.targets is None:
            return ""
        return "f" if self.targets.dtype.kind == "f" else "i"


@dataclass(frozen=True)
class Scores:
    """How a checkpoint did: the mean loss; accuracy, the share of the samples that are right, NaN where they cannot be;
    values of other names; and of each sample what `store.STORED` has as behaviour, on the device.

    Scores that are no numbers, of which the loss is NaN, say nothing: such a sample has the prediction -1, and a mean over
    samples one of which is such is NaN.
    """

    loss: float = math.nan
    accuracy: float = math.nan
    values: Mapping[str, float] = field(default_factory=dict)
    samples: Mapping[str, "Tensor"] = field(default_factory=dict)


@dataclass(frozen=True)
class Score:
    """One way to score; its name is its key in `SCORES`.

    words: what it is; loss, unit: name and unit of the mean loss; needs: the targets that it can do with, in words; takes:
    whether these are such, and unasked: whether it is tried for them by itself. fits: whether an output, of one sample of
    that shape, is scored unasked, and allowed: if it is asked for; wanted: such an output in words; rather: which of
    several that fit are meant, the likeliest first; assumes: what is assumed where it was not asked for, in words.

    reduce: outputs and targets of a batch to what is needed of them; of the inputs where `of_inputs`, which then are the
    targets, and are followed, where some of their places are padding, by which are not [B, T]; rows of tokens where
    `of_tokens`. finish: that of all samples,
    and all targets, to the scores.
    """

    words: str
    loss: str
    unit: str | None
    needs: str
    takes: Callable[[Truth], bool]
    fits: Callable[[tuple[int, ...], Truth], bool]
    wanted: str
    reduce: Callable[..., Reduced]
    finish: Callable[[Reduced, "Tensor"], Scores]
    unasked: Callable[[Truth], bool] = lambda truth: False
    allowed: Callable[[tuple[int, ...], Truth], bool] | None = None
    rather: tuple[Callable[[tuple[int, ...], Truth], bool], ...] = ()
    assumes: str | None = None
    of_inputs: bool = False
    of_tokens: bool = False

    def may(self, shape: tuple[int, ...], truth: Truth) -> bool:
        """Whether an output of that shape can be scored if it is asked for."""
        return (self.allowed or self.fits)(shape, truth)


def _all(scores: "Tensor", targets: "Tensor") -> Reduced:
    return {"scores": scores}


def of_classes(reduced: Reduced, labels: "Tensor") -> Scores:
    """Cross-entropy and the class of the highest score; scores [N, K], labels [N].

    >>> import torch
    >>> of_classes({"scores": torch.tensor([[0.0, 9.0], [9.0, 0.0]])}, torch.tensor([1, 1])).accuracy
    0.5
    """
    from torch.nn import functional as F

    scores = reduced["scores"]
    loss = F.cross_entropy(scores, labels, reduction="none")
    accuracy, samples = _answered(loss, scores.argmax(1), labels)
    if scores.shape[1] <= MOST_LOGITS:
        samples["logits"] = kept_in_half(scores)
    return Scores(F.cross_entropy(scores, labels).item(), accuracy, samples=samples)


def kept_in_half(scores: "Tensor") -> "Tensor":
    """Scores [N, K] in half precision; a sample's that would overflow less the highest of them, which says the same of
    several classes, and what is out of reach yet as the largest number that there is.

    >>> import torch
    >>> kept_in_half(torch.tensor([[1.0, 2.0], [1e5, 1e5 - 8], [1e6, 0.0]])).tolist()
    [[1.0, 2.0], [0.0, -8.0], [0.0, -65504.0]]
    """
    import torch

    half, finite, highest = scores.half(), scores.isfinite(), scores.amax(1, keepdim=True)
    over = (half.isinf() & finite).any(1, keepdim=True) & highest.isfinite()
    lowered = scores - highest if scores.shape[1] > 1 else scores
    most = torch.finfo(torch.float16).max
    return torch.where(over & finite, lowered.clamp(-most, most).half(), half)


def _answered(loss: "Tensor", prediction: "Tensor", labels: "Tensor") -> tuple[float, Reduced]:
    """The share of the answers that are right, and what is kept of each sample, all [N]."""
    import torch

    none = loss.isnan()
    prediction = torch.where(none, NO_CLASS, prediction)
    correct = ~none & (prediction == labels)
    accuracy = math.nan if none.any() else correct.double().mean().item()
    return accuracy, {"loss": loss, "prediction": prediction, "correct": correct.to(torch.uint8)}


def of_two(reduced: Reduced, labels: "Tensor") -> Scores:
    """Binary cross-entropy of one score, and whether it is above 0 where the label is 1; scores [N] or [N, 1]."""
    from torch.nn import functional as F

    scores, labels = (values.reshape(len(labels)) for values in (reduced["scores"], labels))
    loss = F.binary_cross_entropy_with_logits(scores, labels.float(), reduction="none")
    accuracy, samples = _answered(loss, (scores > 0).long(), labels)
    return Scores(loss.double().mean().item(), accuracy, samples=samples | {"logits": kept_in_half(scores[:, None])})


def _by_label(scores: "Tensor", labels: "Tensor") -> Reduced:
    """Of each sample: mean of the binary cross-entropy, share of the right labels."""
    import torch
    from torch.nn import functional as F

    scores = scores.reshape(labels.shape)
    loss = F.binary_cross_entropy_with_logits(scores, labels.float(), reduction="none").flatten(1).double().mean(1)
    right = ((scores > 0) == (labels > 0)).flatten(1).double().mean(1)
    return {"loss": loss, "right": torch.where(loss.isnan(), math.nan, right)}


def of_labels(reduced: Reduced, labels: "Tensor") -> Scores:
    """Mean binary cross-entropy of all labels, and the share of them that are right: 1 less the Hamming loss."""
    loss, right = reduced["loss"], reduced["right"]
    samples = {"loss": loss.float(), "score": right.float()}
    return Scores(loss.mean().item(), values={"label_accuracy": right.mean().item()}, samples=samples)


def has_class(masks: Any, classes: int) -> Any:
    """Where a mask is of a class, for a network of so many: neither of `IGNORED` nor below 0."""
    return (masks >= 0) & ((masks != IGNORED) | (classes > IGNORED))


def _by_place(scores: "Tensor", masks: "Tensor") -> Reduced:
    """Of each sample: sum of the cross-entropy, places, right ones, and of each class the intersection and union."""
    import torch
    from torch.nn import functional as F

    if scores.shape[1] == 1:  # one score for two classes
        scores = torch.cat([torch.zeros_like(scores), scores], 1)
    K = scores.shape[1]
    masks = masks.long()
    kept = has_class(masks, K)
    masks = torch.where(kept, masks, 0)
    loss = F.cross_entropy(scores, masks, reduction="none")
    prediction = scores.argmax(1)

    def counted(classes: "Tensor", where: "Tensor") -> "Tensor":
        """How many places of each class a sample has, [B, K]."""
        rows = torch.arange(len(classes), device=classes.device).view(-1, *[1] * (classes.ndim - 1))
        flat = (rows * K + classes)[where]
        return torch.bincount(flat, minlength=len(classes) * K).view(len(classes), K)

    both = counted(masks, kept & (prediction == masks))
    places = kept.flatten(1).sum(1)
    return {
        "loss": torch.where(kept, loss, 0).flatten(1).sum(1).double(),
        "places": places,
        "right": (kept & (prediction == masks)).flatten(1).sum(1),
        "intersection": both,
        "union": counted(masks, kept) + counted(prediction, kept) - both,
    }


def of_places(reduced: Reduced, masks: "Tensor") -> Scores:
    """Mean cross-entropy of the places, the mean over the classes that there are of intersection over union, and the
    share of the places that are right."""
    import torch

    places = reduced["places"].double()
    right = torch.where(reduced["loss"].isnan(), math.nan, reduced["right"].double())
    union = reduced["union"].sum(0).double()
    present = union > 0
    overlap = (reduced["intersection"].sum(0).double()[present] / union[present]).mean().item()
    values = {
        "mIoU": math.nan if right.isnan().any() else overlap,
        "pixel_accuracy" if masks.ndim > 2 else "tag_accuracy": (right.sum() / places.sum()).item(),
    }
    samples = {"loss": (reduced["loss"] / places).float(), "score": (right / places).float()}
    return Scores((reduced["loss"].sum() / places.sum()).item(), values=values, samples=samples)


def _squared(outputs: "Tensor", targets: "Tensor") -> Reduced:
    difference = outputs.reshape(targets.shape).double() - targets.double()
    return {"error": difference.square().reshape(len(targets), -1).mean(1)}


def of_numbers(reduced: Reduced, targets: "Tensor") -> Scores:
    """Mean squared error, and R2 = 1 - sum of squared errors / sum of squares about each output's mean (NaN where the
    targets do not vary)."""
    error = reduced["error"]
    spread = (targets.double() - targets.double().mean(0)).square().reshape(len(targets), -1).mean(1).sum()
    R2 = 1 - (error.sum() / spread).item() if spread > 0 else math.nan
    return Scores(error.mean().item(), values={"R2": R2}, samples={"loss": error.float()})


def _rebuilt(outputs: "Tensor", inputs: "Tensor", real: "Tensor | None" = None) -> Reduced:
    if real is None:
        return _squared(outputs, inputs)
    squares = (outputs.reshape(inputs.shape).double() - inputs.double()).square().reshape(*real.shape, -1).mean(2)
    return {"error": squares.where(real, 0).sum(1) / real.sum(1)}


def of_inputs(reduced: Reduced, targets: "Tensor") -> Scores:
    """Mean squared difference between what the network gives and what it was given."""
    return Scores(reduced["error"].mean().item(), samples={"loss": reduced["error"].float()})


def of_tokens(reduced: Reduced, targets: "Tensor") -> Scores:
    """Mean loss at the tokens but the first of each document, and the share of them that were predicted."""
    loss, accuracy, samples = summed_up(reduced)
    return Scores(loss, accuracy, samples=samples)


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(length for length in shape if length != 1)


def is_binary(targets: NDArray[Any] | None) -> bool:
    """Whether all are 0 or 1, of whatever type: BCEWithLogitsLoss takes real numbers alone.

    >>> import numpy as np
    >>> is_binary(np.array([0.0, 1.0])), is_binary(np.array([0.5])), is_binary(None)
    (True, False, False)
    """
    return targets is not None and bool(((targets == 0) | (targets == 1)).all())


def class_axes(shape: tuple[int, ...], truth: Truth) -> list[int]:
    """On which axes, first (0) or last (-1), the classes may be of scores of that shape at each place of a target.

    >>> import numpy as np
    >>> tags = Truth(np.zeros((9, 4), int), 3)
    >>> class_axes((3, 4), tags), class_axes((4, 3), tags), class_axes((4, 4), tags), class_axes((5, 5), tags)
    ([0], [-1], [0, -1], [])
    """
    sides = {0: (shape[1:], shape[0]), -1: (shape[:-1], shape[-1])} if shape else {}
    axes = [
        axis for axis, (places, K) in sides.items() if places == truth.shape and truth.classes <= (2 if K == 1 else K)
    ]
    return axes[:1] if set(shape) == {1} else axes


def _fits_places(shape: tuple[int, ...], truth: Truth) -> bool:
    return bool(class_axes(shape, truth))


def _has_classes_first(shape: tuple[int, ...], truth: Truth) -> bool:
    return class_axes(shape, truth) == [0]


def _has_as_many_classes(shape: tuple[int, ...], truth: Truth) -> bool:
    return truth.classes in [shape[axis] for axis in class_axes(shape, truth)]


def _fits_numbers(shape: tuple[int, ...], truth: Truth) -> bool:
    return _without_ones(shape) == _without_ones(truth.shape)


def _fits_tokens(shape: tuple[int, ...], truth: Truth) -> bool:
    return shape == (*truth.sample, truth.classes) if truth.classes else _may_be_of_tokens(shape, truth)


def _may_be_of_tokens(shape: tuple[int, ...], truth: Truth) -> bool:
    return len(shape) == 2 and shape[0] == truth.sample[0] and shape[1] >= max(truth.classes, truth.ids)


SCORES = {
    "classes": Score(
        words="cross-entropy and accuracy", loss="cross-entropy", unit="nat",
        needs="a whole number for each sample, its class",
        takes=lambda truth: truth.kind == "i" and truth.shape == (),
        unasked=lambda truth: True,
        fits=lambda shape, truth: shape == (truth.classes,),
        allowed=lambda shape, truth: len(shape) == 1 and shape[0] >= truth.classes,
        wanted="a column for each of the probe's {classes} classes",
        reduce=_all, finish=of_classes,
    ),
    "binary": Score(
        words="binary cross-entropy and accuracy", loss="binary cross-entropy", unit="nat",
        needs="0 or 1 for each sample",
        takes=lambda truth: _without_ones(truth.shape) == () and is_binary(truth.targets),
        unasked=lambda truth: True,
        fits=lambda shape, truth: shape in ((), (1,)),
        wanted="one score for each sample", assumes=LOGITS,
        reduce=_all, finish=of_two,
    ),
    "segmentation": Score(
        words="cross-entropy, mean intersection over union and the share of places that are right", loss="cross-entropy", unit="nat",
        needs="a mask of classes (whole numbers) for each sample",
        takes=lambda truth: truth.kind == "i" and len(truth.shape) > 0,
        unasked=lambda truth: True,
        fits=_fits_places, rather=(_has_classes_first, _has_as_many_classes),
        wanted="scores of {classes} classes at each of {shape} places",
        reduce=_by_place, finish=of_places,
    ),
    "multilabel": Score(
        words="binary cross-entropy and the share of right labels", loss="binary cross-entropy", unit="nat",
        needs="several numbers for each sample, each 0 or 1",
        takes=lambda truth: _without_ones(truth.shape) != () and is_binary(truth.targets),
        unasked=lambda truth: True,
        fits=_fits_numbers,
        wanted="the shape of the targets, {shape}", assumes=LOGITS,
        reduce=_by_label, finish=of_labels,
    ),
    "regression": Score(
        words="mean squared error and R2", loss="mean squared error", unit=None,
        needs="numbers",
        takes=lambda truth: truth.kind != "",
        unasked=lambda truth: truth.kind == "f",
        fits=_fits_numbers,
        wanted="the shape of the targets, {shape}",
        reduce=_squared, finish=of_numbers,
    ),
    "reconstruction": Score(
        words="mean squared difference from the inputs", loss="reconstruction error", unit=None,
        needs="nothing but the inputs",
        takes=lambda truth: True,
        fits=lambda shape, truth: shape == truth.sample,
        wanted="the shape of the inputs, {sample}",
        reduce=_rebuilt, finish=of_inputs, of_inputs=True,
    ),
    "tokens": Score(
        words="next-token loss, entropy and prediction", loss="next-token cross-entropy", unit="nat",
        needs="rows of tokens (whole numbers) and no targets",
        takes=lambda truth: truth.kind == "" and len(truth.sample) == 1 and truth.ids > 0,
        fits=_fits_tokens,
        allowed=_may_be_of_tokens,
        wanted="scores of {classes} tokens at each of {sample} places",
        reduce=next_token, finish=of_tokens, of_inputs=True, of_tokens=True,
    ),
}  # fmt: skip
NONE = "none"
Judge = Callable[[Any, "Tensor | None"], "Tensor | float | Mapping[str, Tensor | float]"]
"""A user's score: what the network gives for a batch and the batch's targets -> a number for each sample, or several by
name, of which `loss` and `accuracy` are such; a number by itself is the batch's mean."""


def of_user(function: Judge) -> Score:
    """The score of a user's function."""
    name = name_of(function)

    def reduce(output: Any, targets: "Tensor") -> Reduced:
        import torch

        given = function(output, targets if len(targets) else None)
        rows = len(targets)
        columns = {}
        several = given if isinstance(given, Mapping) else {name: given}
        if not several:
            raise ValueError("it gives nothing, not one number for each sample")
        for key, value in several.items():
            if not str(key):
                raise ValueError("one of the numbers that it gives is called '', which is no name")
            column = torch.as_tensor(value).detach().float()
            if column.ndim == 0:
                column = column.expand(rows)
            if column.shape != (rows,):
                raise ValueError(f"{key} is of shape {tuple(column.shape)}, not one number for each of {rows} samples")
            columns[str(key)] = column
        return columns

    def finish(reduced: Reduced, targets: "Tensor") -> Scores:
        means = {key: column.double().mean().item() for key, column in reduced.items()}
        samples = {"loss": reduced["loss"]} if "loss" in reduced else {}
        others = [key for key in reduced if key not in ("loss", "accuracy")]
        samples |= {"score": reduced[others[0]]} if others else {}
        values = {key: means[key] for key in others}
        return Scores(means.get("loss", math.nan), means.get("accuracy", math.nan), values, samples)

    return Score(
        words=name, loss="loss", unit=None, needs="what it needs", takes=lambda truth: True, fits=lambda shape, truth: True,
        wanted="any shape", reduce=reduce, finish=finish,
    )  # fmt: skip


def name_of(function: Judge) -> str:
    """What a user's score is called."""
    return str(getattr(function, "__name__", type(function).__name__))


def scores_for(truth: Truth) -> dict[str, Score]:
    """Those that are tried unasked for such targets."""
    return {name: score for name, score in SCORES.items() if score.takes(truth) and score.unasked(truth)}
