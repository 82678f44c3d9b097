"""What equal bytes, counts and headers show of a series; nothing here is a matter of degree."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from posthoc.replay.fitting import consecutive
from posthoc.replay.names import places
from posthoc.replay.order import Checkpoint, may_be_equal, stem
from posthoc.replay.series.grid import recognise
from posthoc.replay.series.reading import Described, Statistics
from posthoc.replay.series.records import Finding, Kind, Severity

T = TypeVar("T")
RUNNING = ("running_mean", "running_var")
"""Statistics of the last batches, which are no weights."""
TELLING = 64
"""A tensor of fewer numbers may come back to what it was by chance."""
HALF = 13
"""The lowest bits of a single-precision number that half precision does not have."""
STILL = 32 * 2.0**-23
"""A tensor that moves by no more than that, in its own size, does not train: rounding moves a bias before a normalisation, and
brings it back. The least that was seen of weights that train is some thousand times as much, over a series."""
TOTALS = {"step": ("max_steps", "total_steps", "max_iters", "train_iters"), "epoch": ("max_epochs", "num_epochs", "num_train_epochs")}  # fmt: skip
"""Under which names a checkpoint records how long the training was to be."""


def exact_findings(series: Statistics) -> list[Finding]:
    """All of them, in no particular order."""
    return [
        *equal_checkpoints(series),
        *equal_tensors(series),
        *unchanged(series),
        *missing_steps(series.checkpoints),
        *duplicate_steps(series.checkpoints),
        *labels(series.checkpoints),
        *tensor_sets(series),
        *shapes(series),
        *types(series),
        *rounded(series),
        *not_finite(series),
        *zero(series),
    ]


def weights_of(series: Statistics) -> NDArray[np.bool_]:
    """Which tensors [T] are floating point numbers in all checkpoints that have them; the others count something."""
    return np.asarray([
        all(about[name].dtype.has_fractions for about in series.described if name in about)
        for name in series.tensors
    ], bool)  # fmt: skip


def parameters_of(series: Statistics) -> NDArray[np.bool_]:
    """Which tensors [T] are trained; all weights, where nothing but statistics is there."""
    weights = weights_of(series)
    trained = weights & ~np.asarray([name.endswith(RUNNING) for name in series.tensors], bool)
    return trained if trained.any() else weights


def masks(series: Statistics) -> NDArray[np.bool_]:
    """Which tensors [T] hold infinity, but no NaN, in every checkpoint and never change, as the masks of attention.

    What is NaN from the first checkpoint on never changes either: it is of a training that had diverged by then.
    """
    infinite = ((series.infinite > 0) & (series.nan == 0)).all(0)
    return np.asarray(infinite & np.all(series.digest == series.digest[0], axis=0))


def broken(series: Statistics) -> NDArray[np.bool_]:
    """Which checkpoints [E] hold what is not finite, masks apart: nothing can be said of where they belong."""
    return np.asarray(((series.nan + series.infinite) > 0)[:, ~masks(series)].any(1))


def equal_checkpoints(series: Statistics) -> Iterator[Finding]:
    """Checkpoints of different steps with the same weights; of the first two, if no more than a step is between, a note.

    Those that are not finite are left out: training does not change what has become NaN. evidence: "statistics", where all
    but running means and variances are equal; of two in a row that is a note, for a rate falls to zero at the end of many
    trainings, and is no copy. "block", how many in a row are repeated later on in the same order: the rows are these, then
    those of each repetition.
    """
    whole = _classes(_digests(series))
    trained = [rows for rows in _classes(_digests(series, parameters_of(series))) if rows not in whole]
    for block in [*_blocks(whole), *_blocks(trained)]:
        if len(block) > 1:
            rows = tuple(row for repetition in zip(*block, strict=True) for row in repetition)
            evidence = {"block": float(len(block))} | ({} if block[0] in whole else {"statistics": 1.0})
            yield Finding(Kind.EQUAL, Severity.ERROR, rows, (), evidence)
            continue
        (rows,) = block
        together = list(rows) == list(range(rows[0], rows[-1] + 1))
        still = together and len(rows) == 2 and rows not in whole
        still = still or (rows == (0, 1) and may_be_equal(*series.checkpoints[:2]))
        severity = Severity.NOTE if still else Severity.WARNING if together else Severity.ERROR
        evidence = {"between": float(rows[-1] - rows[0] + 1 - len(rows))}
        yield Finding(Kind.EQUAL, severity, rows, (), evidence | ({} if rows in whole else {"statistics": 1.0}))


def _blocks(classes: Sequence[tuple[int, ...]]) -> list[list[tuple[int, ...]]]:
    """Sets of equal rows, those together that are each one row behind the set before."""
    blocks: list[list[tuple[int, ...]]] = []
    for rows in sorted(classes):
        if blocks and tuple(row - 1 for row in rows) == blocks[-1][-1]:
            blocks[-1].append(rows)
        else:
            blocks.append([rows])
    return blocks


def equal_tensors(series: Statistics) -> Iterator[Finding]:
    """Tensors that are what they were at another step, though they changed in between, as those of another's shard are."""
    digest, weights = np.where(broken(series)[:, None], np.uint64(0), series.digest), weights_of(series)
    whole = {frozenset(rows) for of in (weights, parameters_of(series)) for rows in _classes(_digests(series, of))}
    shared: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for t in map(int, np.flatnonzero(weights & (series.sizes >= TELLING))):
        column = digest[:, t]
        for rows in _classes([value if value else -1 - row for row, value in enumerate(column.tolist())]):
            returned = len(consecutive(rows)) > 1 and not _constant(series, t, rows[0])
            if (returned or (len(rows) == 2 and _paused(column, rows))) and not _stands_still(series, t, rows):
                shared[rows].append(t)
    for rows, columns in shared.items():
        if any(set(rows) <= other for other in whole):
            continue
        numbers = float(series.sizes[columns].sum() / series.sizes[weights].sum())
        severity = Severity.ERROR if len(consecutive(rows)) > 1 else Severity.WARNING
        names = tuple(series.tensors[t] for t in columns)
        yield Finding(Kind.PARTLY_EQUAL, severity, rows, names, {"tensors": len(columns), "share": numbers})


def _digests(series: Statistics, columns: NDArray[np.bool_] | None = None) -> list[object]:
    """Of all weights of each checkpoint, or some; of those that are not finite a number of its own."""
    ill = broken(series)
    digest = series.digest[:, weights_of(series) if columns is None else columns]
    return [row if ill[row] else of.tobytes() for row, of in enumerate(digest)]


def _constant(series: Statistics, t: int, row: int) -> bool:
    """Whether a tensor is all one number, as biases and gains are before training."""
    values = series.sample[t][row]
    return bool(np.all(values == values[0])) if values.size else True


def _stands_still(series: Statistics, t: int, rows: Sequence[int]) -> bool:
    """Whether a tensor differs from its equal values only in the last digits, at half of the checkpoints between or more.

    Of checkpoints one behind the other those beside them are taken.
    """
    between = [row for row in range(rows[0], rows[-1]) if row not in rows] or [rows[0] - 1, rows[-1] + 1]
    sample = series.sample[t].astype(np.float64)
    here = sample[rows[0]]
    moved = np.sqrt(np.mean((sample[between] - here) ** 2, axis=1))
    coarsest = np.array([max(STILL, _spacing(series, t, row)) for row in between])
    limits = np.where(coarsest > _spacing(series, t, rows[0]), coarsest, STILL)
    return bool(2 * np.sum(moved <= limits * np.sqrt(np.mean(here**2))) >= len(between))


def trains(series: Statistics, t: int, rows: Sequence[int]) -> bool:
    """Whether a tensor moves beyond its last digits over some checkpoints, those aside that are not of the usual precision."""
    spacings = [_spacing(series, t, row) for row in rows]
    usual = max(spacings, key=spacings.count)
    sample = series.sample[t][[row for row, of in zip(rows, spacings, strict=True) if of == usual]].astype(np.float64)
    moved = np.mean((sample - sample[0]) ** 2, axis=1)
    return bool(np.max(moved) > STILL**2 * np.max(np.mean(sample**2, axis=1)))


def _spacing(series: Statistics, t: int, row: int) -> float:
    """How far apart the numbers are, in their own size, that a tensor can have, whether stored so or rounded to that before."""
    about = series.described[row].get(series.tensors[t])
    name, unused = about.dtype.name if about else "", int(series.rounded[row, t])
    if name == "bfloat16" or (name == "float32" and unused >= 16):
        return 2.0**-7
    return 2.0**-10 if name == "float16" or (name == "float32" and unused >= HALF) else 2.0**-23


def _paused(column: NDArray[np.uint64], rows: Sequence[int]) -> bool:
    """Whether two checkpoints in a row, neither first nor last, agree in a tensor that changes at every other step."""
    first, second = rows
    if second != first + 1 or first == 0 or second == len(column) - 1:
        return False
    changed = column[1:] != column[:-1]
    return int(np.sum(~changed)) == 1


def _classes(keys: Sequence[object]) -> list[tuple[int, ...]]:
    """The rows of equal keys, where there are two or more."""
    rows: dict[object, list[int]] = defaultdict(list)
    for row, key in enumerate(keys):
        rows[key].append(row)
    return [tuple(equal) for equal in rows.values() if len(equal) > 1]


def unchanged(series: Statistics) -> Iterator[Finding]:
    """Tensors that are the same in all checkpoints."""
    if len(series.checkpoints) < 3:
        return
    same = np.all(series.digest == series.digest[0], axis=0) & weights_of(series)
    if same.any() and not same[weights_of(series)].all():
        names = tuple(series.tensors[t] for t in np.flatnonzero(same))
        yield Finding(Kind.UNCHANGED, Severity.NOTE, (), names, {"tensors": len(names)})


def missing_steps(checkpoints: Sequence[Checkpoint]) -> Iterator[Finding]:
    """Steps that the rule by which the others were saved calls for, and the end where the training was to be longer."""
    for unit in ("step", "epoch"):
        steps = [getattr(checkpoint, unit) for checkpoint in checkpoints]
        if None in steps or len(set(steps)) < 2 or sorted(steps) != steps:
            continue
        steps = sorted(set(steps))
        grid = recognise(steps)
        totals = {total for c in checkpoints for key in TOTALS[unit] if (total := c.header.recorded.get(key))}
        total = totals.pop() if len(totals) == 1 else None
        last = total if total is not None and steps[-1] < total - (unit == "epoch") else None
        if grid is None and last is None:
            continue
        gaps = {f"{unit} {k}": float(step) for k, step in enumerate(grid.missing if grid else ())}
        if last is not None:
            gaps["last"] = last
        if gaps:
            rule = {"every": float(grid.every), "base": float(grid.base)} if grid else {}
            about = {"missing": float(len(gaps)), "in steps": float(unit == "step")}
            yield Finding(Kind.MISSING_STEPS, Severity.WARNING, (), (), {**gaps, **rule, **about})
        return


def less_the_damaged(
    finding: Finding, checkpoints: Sequence[Checkpoint], damaged: Sequence[tuple[Path, str]]
) -> Finding | None:
    """A finding; missing steps without those of which what is damaged is there, None where none is left.

    Those are there that lie between the checkpoints whose names count one less and one more than a damaged one's, if they
    are as many, or have its very number.
    """
    named = places([*(stem(c.path) for c in checkpoints), *(stem(path) for path, _ in damaged)])
    numbers = (named.steps or named.epochs or ()) if named else ()
    if finding.kind is not Kind.MISSING_STEPS or not numbers:
        return finding
    unit = "step" if finding.evidence["in steps"] else "epoch"
    rows = sorted(zip(numbers, (getattr(c, unit) for c in checkpoints), strict=False))
    between = defaultdict(list)
    for number in numbers[len(checkpoints) :]:
        lower, higher = [at for n, at in rows if n < number], [at for n, at in rows if n > number]
        if lower and higher:
            between[lower[-1], higher[0]].append(number)
    holes = {name: step for name, step in finding.evidence.items() if name.startswith(f"{unit} ")}
    there: set[str] = set()
    for (low, high), of in between.items():
        within = [name for name, step in holes.items() if low < step < high]
        exact = [name for name in within if holes[name] in of]
        there.update(exact or (within if len(within) <= len(of) else ()))
    missing = finding.evidence["missing"] - len(there)
    rest = {name: value for name, value in finding.evidence.items() if name not in there}
    return replace(finding, evidence=rest | {"missing": missing}) if missing else None


def duplicate_steps(checkpoints: Sequence[Checkpoint]) -> Iterator[Finding]:
    """Several checkpoints of one epoch and step; whether their weights are the same is another question."""
    for rows in _classes([checkpoint.position for checkpoint in checkpoints]):
        yield Finding(Kind.DUPLICATE_STEPS, Severity.ERROR, rows, (), {"count": float(len(rows))})


def labels(checkpoints: Sequence[Checkpoint]) -> Iterator[Finding]:
    """Checkpoints whose names say another epoch or step than they themselves; all by the same number is a note."""
    named = places([stem(checkpoint.path) for checkpoint in checkpoints])
    if named is None:
        return
    for unit, values in named.units.items():
        inside = [getattr(checkpoint.header, unit) for checkpoint in checkpoints]
        steps = [checkpoint.header.step for checkpoint in checkpoints]
        if not named.sure and unit == "epoch" and None not in steps and _agree(values, inside) < _agree(values, steps):
            inside = steps  # a Trainer's checkpoint-500 is of step 500
        shifts = {
            row: value - recorded
            for row, (value, recorded) in enumerate(zip(values, inside, strict=True))
            if recorded is not None
        }
        wrong = tuple(row for row, shift in shifts.items() if shift)
        if not wrong or (len(set(inside)) == 1 and len(inside) > 1):
            continue
        constant = len(set(shifts.values())) == 1 and len(shifts) > 1
        first = wrong[0]
        evidence = {
            "shift": float(shifts[first]),
            "named": float(values[first]),
            "inside": float(values[first] - shifts[first]),
        }
        severity = Severity.NOTE if constant else Severity.WARNING
        yield Finding(Kind.LABELS, severity, wrong, (), {**evidence, "constant": float(constant)})
        return


def _agree(values: Sequence[int], recorded: Sequence[int | None]) -> int:
    return sum(value == other for value, other in zip(values, recorded, strict=True))


def tensor_sets(series: Statistics) -> Iterator[Finding]:
    """Checkpoints with other tensors than most."""
    sets = [frozenset(about) for about in series.described]
    usual, _ = Counter(sets).most_common(1)[0]
    for odd in dict.fromkeys(names for names in sets if names != usual):
        rows = tuple(row for row, names in enumerate(sets) if names == odd)
        missing, extra = usual - odd, odd - usual
        names = tuple(name for name in series.tensors if name in missing or name in extra)
        yield Finding(Kind.TENSORS, Severity.ERROR, rows, names, {"missing": len(missing), "extra": len(extra)})


def _unusual(series: Statistics, of: Callable[[Described], T]) -> Iterator[tuple[str, tuple[int, ...], T, T]]:
    """Tensors of which some checkpoints have another property than most: name, rows of these, the first's and the usual."""
    for name in series.tensors:
        values = {row: of(about[name]) for row, about in enumerate(series.described) if name in about}
        usual, _ = Counter(values.values()).most_common(1)[0]
        if rows := tuple(row for row, value in values.items() if value != usual):
            yield name, rows, values[rows[0]], usual


def shapes(series: Statistics) -> Iterator[Finding]:
    """Checkpoints in which a tensor has another shape than in most; vocabulary: by how many rows, where that is all."""
    odd: dict[tuple[int, ...], list[str]] = defaultdict(list)
    more: dict[tuple[int, ...], dict[str, float]] = {}
    for name, rows, other, usual in _unusual(series, lambda tensor: tensor.shape):
        odd[rows].append(name)
        if len(other) == len(usual) == 2 and other[1:] == usual[1:]:
            more.setdefault(rows, {"vocabulary": float(other[0] - usual[0])})
    for rows, names in odd.items():
        yield Finding(Kind.SHAPES, Severity.ERROR, rows, tuple(names), {"tensors": len(names), **more.get(rows, {})})


def types(series: Statistics) -> Iterator[Finding]:
    """Checkpoints in which tensors are of another type of numbers than in most."""
    odd: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for name, rows, _, _ in _unusual(series, lambda tensor: tensor.dtype):
        odd[rows].append(name)
    for rows, names in odd.items():
        yield Finding(Kind.TYPES, Severity.WARNING, rows, tuple(names), {"tensors": len(names)})


def rounded(series: Statistics) -> Iterator[Finding]:
    """Checkpoints whose single-precision numbers were rounded to half precision or bfloat16, where those of most were not."""
    large = (series.sizes >= TELLING) & weights_of(series)
    plain = np.array(
        [
            [name in about and about[name].dtype.name == "float32" for name in series.tensors]
            for about in series.described
        ]
    )
    full = plain & large & (series.rounded < HALF)
    short = plain & large & (series.rounded >= HALF) & (series.squares > 0)
    matter = full.any(0)  # what is never anything but round numbers says nothing
    share = (short & matter) @ series.sizes / np.maximum((plain & large & matter) @ series.sizes, 1)
    rows = tuple(int(row) for row in np.flatnonzero(share > 0.9))
    if rows and 2 * len(rows) <= len(share):
        bits = min(int(series.rounded[row, t]) for row in rows for t in np.flatnonzero(short[row] & matter))
        yield Finding(
            Kind.PRECISION, Severity.WARNING, rows, (), {"bits": 32.0 - bits, "share": float(share[list(rows)].min())}
        )


def not_finite(series: Statistics) -> Iterator[Finding]:
    """Checkpoints with NaN or infinity; infinity that is in all of them and never changes (a mask) is a note."""
    bad = (series.nan + series.infinite) > 0
    always = masks(series)
    for columns, severity in ((always, Severity.NOTE), (~always, Severity.ERROR)):
        where = bad & columns
        rows = tuple(int(row) for row in np.flatnonzero(where.any(1)))
        if rows:
            names = tuple(series.tensors[t] for t in np.flatnonzero(where.any(0)))
            counts = {"nan": float(series.nan[where].sum()), "infinite": float(series.infinite[where].sum())}
            yield Finding(Kind.NOT_FINITE, severity, rows, names, counts)


def zero(series: Statistics) -> Iterator[Finding]:
    """Checkpoints in which a tensor is all zero that was not before."""
    empty = (series.squares == 0) & (series.sizes > 1) & (series.nan + series.infinite == 0)
    filled = np.logical_or.accumulate(series.squares > 0, axis=0)
    gone = empty & filled
    tensors: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for t in np.flatnonzero(gone.any(0)):
        tensors[tuple(int(row) for row in np.flatnonzero(gone[:, t]))].append(series.tensors[t])
    for rows, names in tensors.items():
        yield Finding(Kind.ZERO, Severity.ERROR, rows, tuple(names), {"tensors": len(names)})
