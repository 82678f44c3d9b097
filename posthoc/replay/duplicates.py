"""Checkpoints of a run that hold the weights of another step: which of them, and which step the weights are of.

What is a copy by its name (best, last) was dropped before; these are named as the others are, and one of them lies.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from posthoc.errors import PosthocError
from posthoc.replay.checkpoint import read_arrays
from posthoc.replay.copies import equal_weights, smallest
from posthoc.replay.fitting import FEWEST, beside, best_fit, consecutive
from posthoc.replay.layout import Duplicate, Run
from posthoc.replay.order import Checkpoint, may_be_equal
from posthoc.replay.request import OnDuplicate
from posthoc.replay.weights import Pick
from posthoc.shown import listed

SAMPLED = 2**20
"""So many numbers of the smallest tensors say where weights fit."""


class DuplicatesError(PosthocError):
    """There are such checkpoints, and there are not to be."""


def settle_duplicates(run: Run, pick: Pick, on_duplicate: str) -> Run:
    """The run without those of its checkpoints that hold the weights of another step, or with a note that it has some.

    The first two may be equal, as after a first step at a rate of zero, and so may those of a training that diverged: NaN is
    like NaN, whatever step it is of. What cannot be read is no duplicate: its replay will say why. Raises DuplicatesError where `on_duplicate` is fail.
    """
    notes, dropped = [], []
    place = {checkpoint.path: row for row, checkpoint in enumerate(run.checkpoints)}
    for same in equal_weights([list(run.checkpoints)], pick, skip_damaged=True):
        rows = [place[checkpoint.path] for checkpoint in same]
        names = ", ".join(checkpoint.path.name for checkpoint in same)
        if _holds_nan(same[0], pick):
            held = listed([checkpoint.path.name for checkpoint in same])
            notes.append(f"{held} hold the same weights with NaN in them, as after a training diverged; all are kept")
        elif rows == [0, 1] and may_be_equal(same[0], same[1]):
            notes.append(f"{names} hold the same weights, as after a warm-up from a rate of zero; both are kept")
        elif on_duplicate == OnDuplicate.KEEP:
            notes.append(f"{names} hold the same weights and are kept; posthoc check says whose they are")
        elif on_duplicate == OnDuplicate.FAIL:
            raise DuplicatesError(
                f"{run.folder}: {names} hold the same weights under different steps; see posthoc check, and leave out what is "
                f"wrong with --select, or pass --on-duplicate drop or keep."
            )
        else:
            dropped += _dropped(run.checkpoints, rows, pick)
    out = {duplicate.path for duplicate in dropped}
    kept = tuple(checkpoint for checkpoint in run.checkpoints if checkpoint.path not in out)
    return replace(run, checkpoints=kept, duplicates=tuple(dropped), notes=(*run.notes, *notes))


def _holds_nan(checkpoint: Checkpoint, pick: Pick) -> bool:
    """Whether any weight is NaN; infinity alone is not enough, for masks are made of it."""
    short = smallest(checkpoint.header, np.inf, np.inf)
    tensors = read_arrays(checkpoint.path, pick, short).values()
    return any(np.isnan(tensor.values).any() for tensor in tensors if tensor.dtype.kind == "floating")


def _dropped(checkpoints: Sequence[Checkpoint], rows: Sequence[int], pick: Pick) -> list[Duplicate]:
    """All of the checkpoints with equal weights but the first of those among whose neighbours they fit."""
    spans = consecutive(rows)
    fitting = _fitting(checkpoints, spans, pick) if len(spans) > 1 and len(checkpoints) >= FEWEST else None
    span = spans[fitting or 0]
    kept = span if span == [0, 1] and may_be_equal(*checkpoints[:2]) else span[:1]
    return [
        Duplicate(checkpoints[row].path, checkpoints[kept[0]].path, fitting is not None, checkpoints[row].position)
        for row in rows
        if row not in kept
    ]


def _fitting(checkpoints: Sequence[Checkpoint], spans: Sequence[Sequence[int]], pick: Pick) -> int | None:
    """Which of the spans the weights are of; None where none is clearly so, or the tensors cannot be compared."""
    equal = {row for span in spans for row in span}
    others = [row for row in range(len(checkpoints)) if row not in equal]
    rest = sorted({row for span in spans for row in beside(others, span)})
    rows = sorted([*rest, spans[0][0]])
    try:
        vectors = dict(zip(rows, _values([checkpoints[row] for row in rows], pick), strict=False))
    except PosthocError:  # which the replay will say
        return None
    if not vectors:
        return None
    rows = sorted([*rest, *(span[0] for span in spans)])
    points = np.stack([vectors[spans[0][0] if row in equal else row] for row in rows])
    distances = np.array([np.linalg.norm(points - point, axis=1) for point in points])
    if not np.isfinite(distances).all():
        return None
    fit = best_fit(distances, [[rows.index(span[0])] for span in spans], [rows.index(row) for row in rest])
    return fit.span if fit.is_clear else None


def _values(checkpoints: Sequence[Checkpoint], pick: Pick) -> list[NDArray[np.float64]]:
    """Some of each one's weights as a vector, every tensor in units of its typical step; none where they differ in shape."""
    rows: list[dict[str, NDArray[np.float64]]] = []
    for checkpoint in checkpoints:
        short = smallest(checkpoint.header, np.inf, SAMPLED)
        tensors = read_arrays(checkpoint.path, pick, short)
        rows.append(
            {
                short[name]: tensor.values.astype(np.float64)
                for name, tensor in tensors.items()
                if tensor.dtype.kind == "floating"
            }
        )
    columns = []
    for name, first in rows[0].items():
        if any(name not in row or row[name].shape != first.shape for row in rows):
            return []
        column = np.stack([row[name] for row in rows])
        steps = np.linalg.norm(np.diff(column, axis=0), axis=1)
        if (typical := np.median(steps[steps > 0]) if (steps > 0).any() else 0.0) > 0:
            columns.append(column / typical)
    return list(np.concatenate(columns, axis=1)) if columns else []
