"""The order of a run's checkpoints: by what they say inside, by the numbers in their names, or as the user says."""

import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from posthoc.errors import PosthocError
from posthoc.replay.checkpoint import Header
from posthoc.replay.formats.table import endings
from posthoc.replay.meant import LARGEST
from posthoc.replay.names import Column, Places, form, is_count, is_of_a_run, places, runs_in, why_uncertain

ORDERS = ("name", "inside")


@dataclass(frozen=True)
class Checkpoint:
    """One saved state: where it lies, when it was saved (None: unknown), what it says of itself."""

    path: Path
    epoch: int | None
    step: int | None
    header: Header

    @property
    def position(self) -> tuple[int, int]:
        """Its place in training, unique within the run: epoch and step, -1 where unknown."""
        return (-1 if self.epoch is None else self.epoch, -1 if self.step is None else self.step)

    @property
    def recorded(self) -> dict[str, float]:
        """The numbers in it: its epoch, too, where that does not order the run, as when others' are not whole."""
        epoch = self.header.epoch if self.epoch is None else None
        return ({} if epoch is None else {"epoch": float(epoch)}) | self.header.recorded

    @property
    def when(self) -> str:
        """Epoch, or step where there is none, in words."""
        if self.epoch is None:
            return "epoch unknown" if self.step is None else f"step {self.step}"
        return f"epoch {self.epoch}"


def may_be_equal(first: Checkpoint, second: Checkpoint) -> bool:
    """Whether two checkpoints may well hold the same weights, as after a warm-up from a rate of zero: no more than a step is
    between them, or what is before the training is the first of them."""
    if first.step is None or second.step is None:
        return first.epoch == 0
    return first.step == 0 or second.step - first.step == 1


@dataclass(frozen=True)
class Order:
    """Checkpoints in training order; by: what the order goes by, in words; notes: what a user should know of it."""

    checkpoints: tuple[Checkpoint, ...]
    by: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Source:
    """What the order goes by, also in words, and what a user should know of it.

    unknown: rows of which but the first unit is known; what they say of the other is another's.
    """

    places: Places
    by: str
    notes: tuple[str, ...] = ()
    unknown: frozenset[int] = frozenset()


def in_order(
    headers: Mapping[Path, Header],
    order: str | None = None,
    placed: Mapping[Path, int] | None = None,
    ties: bool = False,
) -> Order:
    """The checkpoints of one run in training order.

    By the epochs or steps inside, where all have one and no two the same; else by those in the names. `order` takes one
    of the two; `placed` is the place of some, in epochs, or in steps where the others have only those. A lone
    checkpoint may have no place. Raises PosthocError where the order is not certain; several of one place, one after the
    other by their names, are an order where `ties` are allowed.
    """
    placed = placed or {}
    rest = [path for path in headers if path not in placed]
    source = _decide(rest, headers, order, lone=len(headers) == 1) if rest else None
    epochs, steps = (
        dict(zip(rest, source.places.units[unit], strict=True)) if source and unit in source.places.units else {}
        for unit in ("epoch", "step")
    )
    for row in source.unknown if source and epochs else ():
        steps.pop(rest[row], None)
    (steps if steps and not epochs else epochs).update(placed)
    checkpoints = [Checkpoint(path, epochs.get(path), steps.get(path), headers[path]) for path in headers]
    for checkpoint in checkpoints:
        if max(checkpoint.position) > LARGEST:
            raise PosthocError(
                f"{checkpoint.path} has an epoch or step beyond 2^63 - 1, the largest number that is stored; rename it, give its place with --as {checkpoint.path.name}=EPOCH, or leave it out with --select."
            )
    checkpoints.sort(key=lambda checkpoint: (checkpoint.position, checkpoint.path.name))
    for first, second in itertools.pairwise(() if ties else checkpoints):
        if first.position == second.position or (
            first.when == second.when and (first.path in placed or second.path in placed)
        ):
            raise PosthocError(_tied(first, second, rest))
    notes = source.notes if source else ()
    if [checkpoint.position for checkpoint in checkpoints] == [(-1, -1)]:
        name = checkpoints[0].path.name
        notes = (f"nothing says which epoch {name} is of; --as {name}=EPOCH gives it one",)
    by = (source.by if source else "", "as given with --as" if placed else "")
    return Order(tuple(checkpoints), " and ".join(filter(None, by)), notes)


def _decide(paths: list[Path], headers: Mapping[Path, Header], order: str | None, lone: bool) -> _Source | None:
    """Which source the order goes by, and what to know of it; none for a lone checkpoint without a place."""
    inside, named = _inside(paths, headers), _named(paths, forced=order == "name")
    if order is not None:
        chosen = named if order == "name" else inside
        if chosen is None:
            raise PosthocError(_cannot(paths, headers, order))
        return _Source(chosen, chosen.by)
    if inside and named and named.sure and named.differ and _count_the_whole(inside.epochs, named.epochs):
        steps = inside.steps if named.steps is None else named.steps
        return _Source(replace(named, steps=steps), named.by, (_repeats(paths, inside),))
    if inside and inside.differ:
        return _Source(inside, inside.by, _disagreement(paths, inside, named))
    if inside and named and named.differ:
        return _but_for_copies(paths, inside, named) or _Source(named, named.by, (_repeats(paths, inside),))
    if chosen := inside or named or (_of_folder(paths[0]) if len(paths) == 1 else None):
        return _Source(chosen, chosen.by)
    if lone:
        return None
    raise PosthocError(_uncertain(paths))


def _but_for_copies(paths: list[Path], inside: Places, named: Places) -> _Source | None:
    """By what is inside, where it repeats but for files that say what another says; these by their names.

    So does a checkpoint that was copied over another. Of more than half of the files the names must agree with what is
    inside, or differ by the same number.
    """
    unit, values = next(iter(inside.units.items()))
    others = named.units.get(unit)
    if others is None or not named.sure:
        return None
    shifts = [other - value for value, other in zip(values, others, strict=True)]
    shift, count = Counter(shifts).most_common(1)[0]
    odd = [row for row, other in enumerate(shifts) if other != shift]
    agreeing = [row for row, other in enumerate(shifts) if other == shift]
    positions = {inside.positions[row] for row in agreeing}
    if 2 * count <= len(paths) or not all(inside.positions[row] in positions for row in odd):
        return None
    columns: dict[str, tuple[int, ...]] = {}
    for counted, column in inside.units.items():
        by_name = named.units.get(counted, column)
        by = by_name[agreeing[0]] - column[agreeing[0]]
        columns[counted] = tuple(by_name[row] - by if row in odd else value for row, value in enumerate(column))
    mended = replace(inside, epochs=columns.get("epoch"), steps=columns.get("step"))
    unknown = frozenset(odd) if columns.keys() - named.units.keys() else frozenset()
    rest = [paths[row] for row in agreeing]
    notes = _disagreement(rest, _at(mended, agreeing), _named(rest, forced=False))
    return _Source(mended, mended.by, (_copied(paths, odd, unit, values), *notes), unknown)


def _at(places: Places, rows: Sequence[int]) -> Places:
    """Those of some of the checkpoints."""
    epochs, steps = (None if c is None else tuple(c[row] for row in rows) for c in (places.epochs, places.steps))
    return replace(places, epochs=epochs, steps=steps)


def _copied(paths: list[Path], odd: list[int], unit: str, values: Sequence[int]) -> str:
    names = ", ".join(paths[row].name for row in odd[:3]) + (", ..." if len(odd) > 3 else "")
    if len(odd) == 1:
        return f"inside, {names} says {unit} {values[odd[0]]}, as another does, of which it may be a copy; its place is that of its name"
    return f"inside, {names} say what others say ({unit} {values[odd[0]]}, ...), of which they may be copies; their places are those of their names"


def _count_the_whole(inside: Column, named: Column) -> bool:
    """Whether the epochs inside are one number for all, as where each file says how long the training is to be."""
    return bool(inside and named) and len(set(inside or ())) == 1 < len(set(named or ()))


def _inside(paths: list[Path], headers: Mapping[Path, Header]) -> Places | None:
    def column(values: list[int | None]) -> Column:
        known = tuple(value for value in values if value is not None)
        return known if len(known) == len(values) else None

    epochs, steps = (column([getattr(headers[path], unit) for path in paths]) for unit in ("epoch", "step"))
    return None if epochs is None and steps is None else Places(epochs, steps, where="inside the files")


def _named(paths: list[Path], forced: bool) -> Places | None:
    """What the names say, which are of one form; of several, if each of them says it by a word, and no two the same."""
    names = [stem(path) for path in paths]
    if len({form_of(path, runs=False) for path in paths}) == 1:
        return places(names, forced)
    alone = [found for found in (places([name]) for name in names) if found and found.sure]
    if len(alone) < len(names) or len({tuple(found.units) for found in alone}) > 1:
        return None
    epochs, steps = (
        tuple(column[0] for found in alone if (column := found.units.get(unit))) for unit in ("epoch", "step")
    )
    together = Places(epochs or None, steps or None)
    return together if together.differ else None


def say_their_places(paths: Sequence[Path]) -> bool:
    """Whether the names of checkpoints of one run say which is which; a number that tells runs apart must be the same in all."""
    named = _named(list(paths), forced=False)
    return named is not None and named.sure and named.differ and len({runs_in(stem(path)) for path in paths}) == 1


def _of_folder(path: Path) -> Places | None:
    """What the name of its folder says of a checkpoint that says nothing itself: epoch_3/model.pt, checkpoint-500/."""
    folder = path.absolute().parent.name
    step = re.fullmatch(r"checkpoint-([0-9]+)", folder)  # as Transformers' Trainer and those that follow it
    named = Places(None, (int(step[1]),)) if step else places([folder])
    known = named and named.sure and is_count(folder) and not is_of_a_run(stem(path))
    return replace(named, where="in the name of its folder") if named and known else None


def _disagreement(paths: list[Path], inside: Places, named: Places | None) -> tuple[str, ...]:
    """What the names say otherwise than the files, where the order goes by the files."""
    if named is None:
        return ()
    remedy = "the order goes by what is inside, --order name goes by the names"
    for unit, values in inside.units.items():
        others = named.units.get(unit) if named.sure else None
        if others is None or values == others:
            continue
        shifts = {b - a for a, b in zip(values, others, strict=True)}
        if len(shifts) == 1 and len(paths) > 1:
            shift = shifts.pop()
            how = f"{abs(shift)} {'more' if shift > 0 else 'less'}"
            return (f"the {unit}s in the names are {how} than those inside; {remedy}",)
        differing = [k for k in range(len(paths)) if values[k] != others[k]]
        first = min(differing, key=lambda k: inside.positions[k])
        more = f" ({len(differing)} of {len(paths)} disagree)" if len(differing) > 1 else ""
        return (f"{paths[first].name} says {unit} {values[first]} inside{more}; {remedy}",)
    rows = sorted(range(len(paths)), key=lambda k: inside.positions[k])
    for first, second in itertools.pairwise(rows):
        if named.positions[first] > named.positions[second]:
            return (f"inside the files {paths[second].name} comes after {paths[first].name}; {remedy}",)
    return ()


def _repeats(paths: list[Path], inside: Places) -> str:
    unit, values = next(iter(inside.units.items()))
    if len(set(values)) == 1:
        return f"all say {unit} {values[0]} inside; the order goes by the names"
    times = Counter(values)
    first = next(value for value in values if times[value] > 1)
    some = [path.name for path, value in zip(paths, values, strict=True) if value == first]
    return (
        f"the {unit}s inside repeat, as after training was resumed or of a copy ({', '.join(some[:3])} say {unit} {first}); "
        "the order goes by the names"
    )


def _uncertain(paths: list[Path]) -> str:
    where = paths[0].parent
    if len({form_of(path, runs=False) for path in paths}) > 1:
        return (
            f"The order of the checkpoints in {where} is not certain: their names differ in more than their numbers and "
            f"not all say an epoch or step inside; {_give_places(paths)}."
        )
    names = [stem(path) for path in paths]
    named = _named(paths, forced=True)
    remedy = "if it counts epochs, pass --order name" if named and named.differ else _give_places(paths)
    return (
        f"The order of the checkpoints in {where} is not certain: not all say an epoch or step inside, and "
        f"{why_uncertain(names)} ({paths[0].name}, ...); {remedy}."
    )


def _give_places(paths: Sequence[Path]) -> str:
    return f"give the place of each with --as FILE=EPOCH, such as --as {paths[0].name}=1"


def _cannot(paths: list[Path], headers: Mapping[Path, Header], order: str) -> str:
    if order == "inside":
        silent = [path for path in paths if (headers[path].epoch, headers[path].step) == (None, None)]
        if not silent:
            return f"--order inside: some checkpoints in {paths[0].parent} say only an epoch, some only a step; {_give_places(paths)}."
        return f"--order inside: {silent[0]} says no epoch or step inside; give its place with --as {silent[0].name}=EPOCH."
    if len({form_of(path, runs=False) for path in paths}) > 1:
        why = "the names differ in more than their numbers"
    else:
        why = why_uncertain([stem(path) for path in paths])
    return f"--order name: {why} ({paths[0].name}, ...); {_give_places(paths)}."


def _tied(first: Checkpoint, second: Checkpoint, rest: list[Path]) -> str:
    """Two checkpoints of one place, and what can help."""
    names = [checkpoint.path.name for checkpoint in (first, second)]
    forms = [form_of(checkpoint.path, whole=True) for checkpoint in (first, second)]
    named = _named(rest, forced=True)
    if first.path not in rest or second.path not in rest:
        remedy = "give another place with --as"
    elif forms[0] != forms[1]:
        remedy = f"choose with --select, such as --select '{forms[0]}'"
    elif named and named.differ:
        remedy = "pass --order name to go by the names"
    else:
        remedy = f"say which is which with --as, such as --as {names[1]}=EPOCH"
    return (
        f"{first.path.parent} holds more than one run, or its order is not certain: {names[0]} and {names[1]} are both "
        f"{first.when} and hold different weights; {remedy}."
    )


def stem(path: Path) -> str:
    """The name without the endings of checkpoints.

    >>> stem(Path("checkpoint-12.pth.tar")), stem(Path("epoch=3-step=400-v1.ckpt")), stem(Path("v0.5"))
    ('checkpoint-12', 'epoch=3-step=400', 'v0.5')
    """
    name, known = path.name, endings()
    while (end := next((end for end in known if name.lower().endswith(end)), None)) and len(name) > len(end):
        name = name[: -len(end)]
    # Lightning's mark of a second file of the same name.
    return re.sub(r"-v\d+$", "", name) if path.suffix == ".ckpt" else name


def form_of(path: Path, runs: bool = True, whole: bool = False) -> str:
    """The name with # for each number, which --select takes; `whole`: with Lightning's mark of a second file.

    >>> form_of(Path("tudui_29_gpu.pth")), form_of(Path("a-v1.ckpt")), form_of(Path("a-v1.ckpt"), whole=True)
    ('tudui_#_gpu.pth', 'a.ckpt', 'a-v#.ckpt')
    """
    bare = stem(path)
    if path.suffix != ".ckpt":
        return form(bare, runs) + path.name[len(bare) :]
    mark = path.name[len(bare) : -len(".ckpt")] if whole else ""
    return form(bare, runs) + re.sub(r"\d+", "#", mark) + ".ckpt"
