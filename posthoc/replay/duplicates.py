"""Checkpoints of a run that hold the weights of another step: which of them, and which step the weights are of.

What is a copy by its name (best, last) was dropped before; these are named as the others are, and one of them lies.
"""

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from posthoc.errors import PosthocError
from posthoc.replay.checkpoint import read_arrays
from posthoc.replay.copies import equal_weights, smallest
from posthoc.replay.layout import Duplicate, Run
from posthoc.replay.order import Checkpoint
from posthoc.replay.request import OnDuplicate
from posthoc.replay.weights import Pick

SAMPLED = 2**20
"""So many numbers of the smallest tensors say where weights fit."""
FEWEST = 5
"""Checkpoints from which it can be said where weights fit."""
CLEAR = 1.2
"""A place fits if the way through any other is longer by that factor."""


def settle_duplicates(run: Run, pick: Pick, on_duplicate: str) -> Run:
    """The run without those of its checkpoints that hold the weights of another step, or with a note that it has some.

    The first two may be equal, as after a warm-up from a rate of zero. What cannot be read is no duplicate: its replay will
    say why. Raises PosthocError where `on_duplicate` is fail.
    """
    notes, dropped = [], []
    place = {checkpoint.path: row for row, checkpoint in enumerate(run.checkpoints)}
    for same in equal_weights([list(run.checkpoints)], pick, skip_damaged=True):
        rows = [place[checkpoint.path] for checkpoint in same]
        names = ", ".join(checkpoint.path.name for checkpoint in same)
        if rows == [0, 1]:
            notes.append(f"{names} hold the same weights, as after a warm-up from a rate of zero; both are kept")
        elif on_duplicate == OnDuplicate.KEEP:
            notes.append(f"{names} hold the same weights and are kept; posthoc check says whose they are")
        elif on_duplicate == OnDuplicate.FAIL:
            raise PosthocError(
                f"{run.folder}: {names} hold the same weights under different steps; see posthoc check, and leave out what is "
                f"wrong with --select, or pass --on-duplicate drop or keep."
            )
        else:
            dropped += _dropped(run.checkpoints, rows, pick)
    out = {duplicate.path for duplicate in dropped}
    kept = tuple(checkpoint for checkpoint in run.checkpoints if checkpoint.path not in out)
    return replace(run, checkpoints=kept, duplicates=tuple(dropped), notes=(*run.notes, *notes))


def _dropped(checkpoints: Sequence[Checkpoint], rows: Sequence[int], pick: Pick) -> list[Duplicate]:
    """All of the checkpoints with equal weights but the first of those among whose neighbours they fit."""
    spans = consecutive(rows)
    fitting = _fitting(checkpoints, spans, pick) if len(spans) > 1 and len(checkpoints) >= FEWEST else None
    span = spans[fitting or 0]
    kept = span if span == [0, 1] else span[:1]
    return [
        Duplicate(checkpoints[row].path, checkpoints[kept[0]].path, fitting is not None)
        for row in rows
        if row not in kept
    ]


def consecutive(rows: Sequence[int]) -> list[list[int]]:
    """Ascending rows cut where they are not one behind the other.

    >>> consecutive([0, 1, 5])
    [[0, 1], [5]]
    """
    runs = itertools.groupby(enumerate(rows), key=lambda item: item[1] - item[0])
    return [[row for _, row in run] for _, run in runs]


def _fitting(checkpoints: Sequence[Checkpoint], spans: Sequence[Sequence[int]], pick: Pick) -> int | None:
    """Which of the spans the weights are of: the way through the others is not much longer for going through it there.

    None where none is clearly so, or the tensors cannot be compared.
    """
    equal = {row for span in spans for row in span}
    here = spans[0][0]
    beside = []
    for span in spans:
        before = next((row for row in range(span[0] - 1, -1, -1) if row not in equal), None)
        after = next((row for row in range(span[-1] + 1, len(checkpoints)) if row not in equal), None)
        beside.append([row for row in (before, here, after) if row is not None])
    rows = sorted({row for way in beside for row in way})
    try:
        values = _values([checkpoints[row] for row in rows], pick)
    except PosthocError:  # which the replay will say
        return None
    vectors = dict(zip(rows, values, strict=True)) if values else {}

    def distance(a: int, b: int) -> float:
        return float(np.linalg.norm(vectors[a] - vectors[b]))

    longer = []
    for way in beside if vectors else ():
        direct = distance(way[0], way[-1]) if len(way) == 3 else 0.0
        longer.append(sum(distance(a, b) for a, b in itertools.pairwise(way)) - direct)
    order = np.argsort(longer)
    clear = len(longer) > 1 and np.isfinite(longer).all() and longer[order[1]] > CLEAR * max(longer[order[0]], 0.0)
    return int(order[0]) if clear else None


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
