"""What a network gives -> which tensor in it is scored, and how."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from posthoc.errors import PosthocError, UsageError
from posthoc.replay.scores import NONE, SCORES, Score, Truth, scores_for

Path = tuple[str | int, ...]
MAX_DEPTH = 8
NAMES = ("logits", "out")
"""What libraries call the output that is scored."""


@dataclass(frozen=True)
class Scored:
    """Where in the output the scores are: attributes, keys and positions from the outside in; () is the output itself.

    path: None where nothing is scored, and then `reason` says why. columns: how many scores a sample has, where it has a
    row of them. score: by which they are scored, a key of `SCORES` or the name of the user's function. classes_last: of scores
    at each place, whether the classes are on the last axis, not on the one after the batch.
    """

    path: Path | None
    columns: int | None = None
    reason: str | None = None
    score: str | None = None
    classes_last: bool = False

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


def scored_part(output: Any, scored: Scored, samples: int, model: str) -> Any:
    """What is scored of an output; None where nothing is. Raises PosthocError where it is not there as planned."""
    if scored.path is None:
        return None
    if scored.score not in SCORES and not scored.path:  # the user's, which is given all
        return output
    part = part_of(output, scored.path)
    if part is None or not part.ndim or part.shape[0] != samples or torch.is_complex(part):
        raise PosthocError(
            f"{model} took another path than it was planned with: its output {scored.name} is not there; name another with --model-output."
        )
    return (part.movedim(-1, 1) if scored.classes_last else part).float()


def find_scored(
    output: Any,
    samples: int,
    truth: Truth,
    score: str | None = None,
    asked: str | None = None,
    wish: str | None = None,
) -> Scored:
    """Which tensor of an output of so many samples is scored, and how.

    score: a key of `SCORES`, wish: who asked for it, in words (default: the option); else the first that takes the targets
    and finds an output. Of the outputs that which was asked for by `--model-output` (a name, a position, both joined by
    dots, or none); else the one called `logits` or `out`; else the only one of the shape that the score wants. Of classes an output of another width is never scored
    unasked: it may be features, a reconstruction, or the classes of another data set.

    Raises UsageError where what was asked for is not there, or cannot be scored so.
    """
    if NONE in (asked, score):
        return Scored(None, None, "asked for none")
    if score and not SCORES[score].takes(truth):
        raise UsageError(
            f"{wish or f'--score {score}'} needs {SCORES[score].needs}; the probe {_has(SCORES[score], truth)}."
        )
    every: dict[int, tuple[Path, Tensor]] = {}
    for path, tensor in tensors_in(output):
        every.setdefault(id(tensor), (path, tensor))
    parts = list(every.values())
    candidates = {score: SCORES[score]} if score else scores_for(truth)
    if not candidates:
        return Scored(None, None, f"the probe has {_targets(truth)}{_hint(parts, samples, truth)}")
    if asked is not None:
        return _asked(output, parts, samples, truth, candidates, asked)
    tries = [_unasked(parts, samples, truth, name, candidate) for name, candidate in candidates.items()]
    return next((scored for scored in tries if scored.path is not None), tries[0])


def _unasked(parts: list[tuple[Path, Tensor]], samples: int, truth: Truth, name: str, score: Score) -> Scored:
    rows = [(path, tensor) for path, tensor in parts if _has_rows(tensor, samples)]
    named = [(path, tensor) for path, tensor in rows if path and path[-1] in NAMES]
    fitting = [(path, tensor) for path, tensor in named or rows if score.fits(tuple(tensor.shape[1:]), truth)]
    likelier = ([row for row in fitting if meant(tuple(row[1].shape[1:]), truth)] for meant in score.rather)
    fitting = next((rows for rows in likelier if rows), fitting)
    if len(fitting) == 1:
        path, tensor = fitting[0]
        return Scored(path, _columns(tensor), score=name)
    shown = ", ".join(f"{_title(path)} {_shape(tensor)}" for path, tensor in parts[:6]) + ", ..." * (len(parts) > 6)
    allowed = [(path, tensor) for path, tensor in rows if score.may(tuple(tensor.shape[1:]), truth)]
    names = " or ".join(path_text(path) for path, _ in fitting or allowed)
    if fitting:
        have = f"have {truth.classes} columns" if name == "classes" else f"have {_wanted(score, truth)}"
        reason = f"several outputs {have} ({shown}); --model-output {names} chooses"
    else:
        reason = f"no output has {_wanted(score, truth)} ({shown})"
        reason += f"; --model-output {names} scores one all the same" * bool(allowed)
        alike = any(SCORES["regression"].fits(tuple(tensor.shape[1:]), truth) for _, tensor in rows)
        if alike and truth.kind == "i" and not score.of_inputs:
            reason += "; an output has the shape of the targets: --score regression compares them as numbers"
    return Scored(None, None, reason)


def _asked(
    output: Any, parts: list[tuple[Path, Tensor]], samples: int, truth: Truth, scores: Mapping[str, Score], asked: str
) -> Scored:
    path, tensor = find_asked(output, parts, asked)
    for name, score in scores.items():
        if _has_rows(tensor, samples) and score.may(tuple(tensor.shape[1:]), truth):
            return Scored(path, _columns(tensor), score=name)
    score = next(iter(scores.values()))
    wanted = (
        f"scores of {truth.classes} classes are {samples} x {truth.classes} or wider"
        if "classes" in scores
        else f"what is scored has {_wanted(score, truth)}"
    )
    raise UsageError(f"--model-output {asked} is of shape {_shape(tensor)}; {wanted}.")


def find_asked(output: Any, parts: Sequence[tuple[Path, Tensor]], asked: str) -> tuple[Path, Tensor]:
    """The output that `--model-output` names; raises UsageError where there is none."""
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
    return places[asked]


def _hint(parts: Sequence[tuple[Path, Tensor]], samples: int, truth: Truth) -> str:
    alike = [path for path, tensor in parts if _has_rows(tensor, samples) and tuple(tensor.shape[1:]) == truth.sample]
    return "; an output has the shape of the inputs: --score reconstruction compares them" if alike else ""


def _has(score: Score, truth: Truth) -> str:
    """What a probe has of what a score looks at."""
    if score.of_inputs and truth.targets is None:
        return f"gives {'whole' if truth.ids else 'real'} numbers, {_sides(truth.sample)} for each sample"
    return f"has {_targets(truth)}"


def _targets(truth: Truth) -> str:
    if truth.targets is None:
        return "no targets"
    return f"targets of {truth.targets.dtype} {_sides(truth.targets.shape)}"


def _wanted(score: Score, truth: Truth) -> str:
    return score.wanted.format(
        classes=truth.classes or truth.ids, shape=_sides(truth.shape), sample=_sides(truth.sample)
    )


def _columns(tensor: Tensor) -> int | None:
    return tensor.shape[1] if tensor.ndim == 2 else None


def _has_rows(tensor: Tensor, samples: int) -> bool:
    return tensor.ndim > 0 and tensor.shape[0] == samples and is_dense(tensor)


def _sides(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "a number"


def is_dense(tensor: Tensor) -> bool:
    """Whether it is an ordinary array of real numbers: not whole numbers, complex, sparse or nested."""
    return tensor.is_floating_point() and tensor.layout == torch.strided and not tensor.is_nested


def _title(path: Path) -> str:
    return path_text(path) if path else "the output"


def _shape(tensor: Tensor) -> str:
    return _sides(tensor.shape)
