"""What a network gives -> the scores in it, one row per image and one column per class, if there are any."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from posthoc.errors import UsageError

Path = tuple[str | int, ...]
MAX_DEPTH = 8
NONE = "none"
MOST_LOGITS = 1000
"""Classes up to which the scores of every sample are kept."""


@dataclass(frozen=True)
class Scored:
    """Where in the output the scores are: attributes, keys and positions from the outside in; () is the output itself.

    path: None where nothing is scored, and then `reason` says why. columns: how many scores an image has.
    """

    path: Path | None
    columns: int | None = None
    reason: str | None = None

    @property
    def name(self) -> str | None:
        """The path as `--model-output` takes it."""
        return None if self.path is None else path_text(self.path)


def path_text(path: Path) -> str:
    """
    >>> path_text(("heads", 1)), path_text(())
    ('heads.1', '0')
    """
    return ".".join(map(str, path)) or "0"


def items(output: Any) -> list[tuple[str | int, Any]]:
    """The parts of a dictionary, dataclass, tuple, list or any other object, by key, attribute or position."""
    if isinstance(output, Mapping):
        return [(key if isinstance(key, str) else k, value) for k, (key, value) in enumerate(output.items())]
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return list(zip(output._fields, output, strict=True))
    if isinstance(output, (tuple, list)):
        return list(enumerate(output))
    if isinstance(output, (str, bytes, type)) or output is None:
        return []
    if dataclasses.is_dataclass(output):
        return [(entry.name, getattr(output, entry.name, None)) for entry in dataclasses.fields(output)]
    rest = [(name, value) for name, value in getattr(output, "__dict__", {}).items() if name != "logits"]
    return [("logits", logits), *rest] if isinstance(logits := getattr(output, "logits", None), Tensor) else rest


def tensors_in(output: Any, at: Path = ()) -> Iterator[tuple[Path, Tensor]]:
    """Every tensor in an output and where it is, in the output's order."""
    if isinstance(output, Tensor):
        yield at, output
    elif len(at) < MAX_DEPTH:
        for name, value in items(output):
            yield from tensors_in(value, (*at, name))


def part_of(output: Any, path: Path) -> Tensor | None:
    """The tensor at `path`; None where there is none."""
    for step in path:
        output = next((value for name, value in items(output) if name == step), None)
    return output if isinstance(output, Tensor) else None


def find_scores(output: Any, images: int, classes: int, asked: str | None = None) -> Scored:
    """Which tensor of an output of so many images holds scores of the probe's classes.

    What was asked for by `--model-output` (a name, a position, both joined by dots, or none); else the one called
    `logits`; else the only one with a column for each class. An output of another width is never scored unasked: it
    may be features, a reconstruction, or the classes of another data set.

    Raises UsageError where what was asked for is not there, or cannot be scores.
    """
    every: dict[int, tuple[Path, Tensor]] = {}
    for path, tensor in tensors_in(output):
        every.setdefault(id(tensor), (path, tensor))
    parts = list(every.values())
    if asked == NONE:
        return Scored(None, None, "asked for none")
    if asked is not None:
        return _asked(output, parts, images, classes, asked)
    rows = [(path, tensor) for path, tensor in parts if _is_table(tensor, images)]
    named = [(path, tensor) for path, tensor in rows if path and path[-1] == "logits"]
    fitting = [(path, tensor) for path, tensor in named or rows if tensor.shape[1] == classes]
    if len(fitting) == 1:
        return Scored(fitting[0][0], classes)
    shown = ", ".join(f"{_title(path)} {_shape(tensor)}" for path, tensor in parts[:6]) + ", ..." * (len(parts) > 6)
    names = " or ".join(path_text(path) for path, _ in fitting or rows)
    if fitting:
        reason = f"several outputs have {classes} columns ({shown}); --model-output {names} chooses"
    else:
        reason = f"no output has a column for each of the probe's {classes} classes ({shown})"
        reason += f"; --model-output {names} scores one all the same" * any(t.shape[1] >= classes for _, t in rows)
    return Scored(None, None, reason)


def _asked(output: Any, parts: list[tuple[Path, Tensor]], images: int, classes: int, asked: str) -> Scored:
    places = {path_text(path): (path, tensor) for path, tensor in parts}
    for k, (name, value) in enumerate(items(output) if not isinstance(output, Tensor) else []):
        if isinstance(value, Tensor):  # by position, too
            places.setdefault(str(k), ((name,), value))
    last = [path for path, _ in parts if path and str(path[-1]) == asked]
    if len(last) == 1:
        places.setdefault(asked, (last[0], dict(parts)[last[0]]))
    if asked not in places:
        names = ", ".join(f"{path_text(path)} {_shape(tensor)}" for path, tensor in parts[:12])
        raise UsageError(f"--model-output {asked}: the network has no such output; give {names}, or none.")
    path, tensor = places[asked]
    if not _is_table(tensor, images) or tensor.shape[1] < classes:
        raise UsageError(
            f"--model-output {asked} is of shape {_shape(tensor)}; scores of {classes} classes are {images} x {classes} "
            f"or wider."
        )
    return Scored(path, tensor.shape[1])


def _is_table(tensor: Tensor, images: int) -> bool:
    return tensor.ndim == 2 and tensor.shape[0] == images and is_dense(tensor)


def is_dense(tensor: Tensor) -> bool:
    """Whether it is an ordinary array of real numbers: not whole numbers, complex, sparse or nested."""
    return tensor.is_floating_point() and tensor.layout == torch.strided and not tensor.is_nested


def _title(path: Path) -> str:
    return path_text(path) if path else "the output"


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "a number"


@dataclass(frozen=True)
class Scores:
    """How a checkpoint did: mean loss (nat) and share of the samples that are right, and of each sample what
    `store.STORED` has as behaviour, on the device."""

    loss: float
    accuracy: float
    samples: dict[str, Tensor]


@dataclass(frozen=True)
class Scoring:
    """How a probe's outputs are scored.

    find: where the scores are in an output of so many samples, for a probe of so many classes, as was asked;
    score: all samples' scores against their targets.
    """

    find: Callable[[Any, int, int, str | None], Scored]
    score: Callable[[Tensor, Tensor], Scores]


def score_classes(scores: Tensor, labels: Tensor) -> Scores:
    """Cross-entropy and the class of the highest score; scores [N, K], labels [N].

    >>> score_classes(torch.tensor([[0.0, 9.0], [9.0, 0.0]]), torch.tensor([1, 1])).accuracy
    0.5
    """
    prediction = scores.argmax(1)
    correct = prediction == labels
    samples = {
        "loss": F.cross_entropy(scores, labels, reduction="none"),
        "prediction": prediction,
        "correct": correct.to(torch.uint8),
    }
    if scores.shape[1] <= MOST_LOGITS:
        samples["logits"] = scores.half()
    return Scores(F.cross_entropy(scores, labels).item(), correct.double().mean().item(), samples)


CLASSES = Scoring(find_scores, score_classes)


def same_rows(scores: Tensor | None, images: int) -> bool:
    """Whether scores are what they were planned as: a row for each image."""
    return scores is None or (scores.ndim == 2 and scores.shape[0] == images and not torch.is_complex(scores))
