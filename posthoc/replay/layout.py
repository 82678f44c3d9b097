"""Which checkpoints make one training run, and in which order."""

import itertools
import math
import re
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from textwrap import shorten
from typing import Any

from posthoc.errors import PosthocError, UsageError
from posthoc.files import read_json
from posthoc.replay.checkpoint import MOST_NUMBERS, read_header
from posthoc.replay.copies import Candidate, Group, Shape, without_copies
from posthoc.replay.formats.hub import revisions
from posthoc.replay.formats.table import endings, files_of, folder_of, is_indivisible
from posthoc.replay.listing import (
    STRANGE,
    Below,
    checkpoint_folders,
    irregular,
    listed,
    listed_of,
    runs_below,
)
from posthoc.replay.meant import matches, parse_places, placed_among
from posthoc.replay.names import as_glob
from posthoc.replay.naming import UNUSED, canonical
from posthoc.replay.order import ORDERS, Checkpoint, Order, form_of, in_order, say_their_places
from posthoc.replay.strangers import NoWeightsError
from posthoc.replay.weights import MAIN, Pick
from posthoc.shown import counted, with_article

LISTED = 8
"""So many groups are named in an error."""
RUN_JSON_BYTES = 2**20
RUN_JSON: dict[str, tuple[type, ...]] = {
    "model": (str,), "recipe": (str,), "dataset": (str,), "normalization": (str, dict), "image_size": (int,), "seed": (int,), "settings": (dict,),
}  # fmt: skip
KIND_NAMES = {str: "a text", dict: "an object", int: "a whole number"}


@dataclass(frozen=True)
class Duplicate:
    """A checkpoint that was dropped because it holds the weights of another step, original; fits: whether they fit there
    among the others, else original is but the first that holds them; position: its place in training, as of a checkpoint."""

    path: Path
    original: Path
    fits: bool
    position: tuple[int, int]

    def __str__(self) -> str:
        why = "where they fit" if self.fits else "the first that has them"
        return f"it holds the weights of {self.original.name}, {why}; see posthoc check"


@dataclass(frozen=True)
class Run:
    """The checkpoints of one training run in training order, and its run.json where there is one.

    copies: what was dropped because it holds the same weights as another checkpoint, and which; apart: what is no
    checkpoint, and why; damaged: what could not be read, and why; duplicates: what was dropped because it holds the weights
    of another step; by: what the order goes by; notes: what a user should know of it.
    """

    folder: Path
    checkpoints: tuple[Checkpoint, ...]
    about: dict[str, Any] = field(default_factory=dict)
    copies: tuple[tuple[Path, Path], ...] = ()
    apart: tuple[tuple[Path, str], ...] = ()
    damaged: tuple[tuple[Path, str], ...] = ()
    by: str = ""
    notes: tuple[str, ...] = ()
    duplicates: tuple[Duplicate, ...] = ()

    @property
    def left_out(self) -> tuple[tuple[Path, str], ...]:
        """Checkpoints that are of the run and are not replayed, and why: by their names those without weights, too."""
        forms = {form_of(checkpoint.path) for checkpoint in self.checkpoints}
        lacking = ((path, why) for path, why in self.apart if "#" in form_of(path) and form_of(path) in forms)
        return (*self.damaged, *lacking, *((duplicate.path, str(duplicate)) for duplicate in self.duplicates))

    @property
    def newest(self) -> tuple[int, int]:
        """The position of the latest checkpoint, of those that were dropped, too."""
        return max([*(c.position for c in self.checkpoints), *(d.position for d in self.duplicates)])

    @property
    def beside(self) -> tuple[Path, ...]:
        """Where files that go with the checkpoints may lie: with the first one's weights, itself, its folder, the run's."""
        first = self.checkpoints[0].path
        return folder_of(first), first, first.parent, self.folder

    @property
    def span(self) -> str:
        """How many checkpoints, and from when to when, in words."""
        first, last = self.checkpoints[0], self.checkpoints[-1]
        span = first.when if first is last else f"{first.when} to {last.when}"
        return f"{counted(len(self.checkpoints), 'checkpoint')}, {span}"


def find_run(
    place: Path | Sequence[Path],
    select: str | None = None,
    pick: Pick = MAIN,
    skip_damaged: bool = False,
    order: str | None = None,
    placed: Sequence[str] = (),
    sound: bool = True,
) -> Run:
    """Find the one run in folder `place` (or the one checkpoint `place`, or the several, in one folder).

    Order: the epoch or step recorded inside the checkpoints, else the number in their names that a word says to be one;
    never the names' alphabet or the files' dates. `order` name or inside takes one of the two. `placed` gives some
    checkpoints their place, as FILE=EPOCH. A checkpoint with the weights of another is dropped. `select` is a glob over
    the names, in which # also stands for a number. Where the run need not be `sound`, what holds the weights of another is
    dropped only if it is named otherwise (best, last), and networks of other shapes and several of one step belong to it. Raises PosthocError where
    there is no checkpoint, more than one run, or no certain order.
    """
    if order not in (None, *ORDERS):
        raise UsageError(f"Unknown --order {order!r}; give {' or '.join(ORDERS)}.")
    given = parse_places(placed)
    if isinstance(place, Path):
        if not (place.exists() or place.is_symlink()):
            raise PosthocError(f"No such file or folder: {place}.")
        place = revisions(place) or place
        if not place.is_dir() or is_indivisible(place):
            if select and place.is_file() and not matches(place.name, select):
                raise UsageError(f"--select {select!r} does not mean {place.name}, the file given; leave it out.")
            return _single(place, pick, order, given)
        listing = listed(place, whole=bool(select or placed))
    else:
        listing = listed_of(place)
    folder = listing.folder
    below = Below([], 0, True) if listing.paths else runs_below(folder)
    if isinstance(place, Path) and below.only and below.only != place and not listing.apart:
        run = find_run(below.only, select, pick, skip_damaged, order, placed, sound)
        return replace(run, notes=(f"found in {below.only}, the only folder below that holds checkpoints", *run.notes))
    places = placed_among(folder, listing.paths, given)
    paths = [path for path in listing.paths if select is None or path in places or matches(path.name, select)]
    strangers = [row for row in listing.apart if select is None or matches(row[0].name, select)]
    if not paths:
        raise PosthocError(_nothing(folder, select, strangers, below))
    if isinstance(place, Path) and _is_all_of(place, paths):
        return _single(place, pick, order, given)
    candidates, apart, damaged = _read(paths, pick, skip_damaged)
    if not candidates:
        raise PosthocError(_only_strangers(folder, apart, damaged))
    kept, copies = _only_run(folder, candidates, places, sound, select, pick, skip_damaged, order)
    ordered = in_order({item.path: item.header for item in kept}, order, places, ties=not sound)
    reasons = ((path, error.what) for path, error in apart)
    run = _run(folder, ordered, [*listing.copies, *copies], [*strangers, *reasons], damaged)
    return _with_those_below(run) if isinstance(place, Path) and len(kept) == 1 and not select else run


def _only_run(
    folder: Path,
    candidates: Sequence[Candidate],
    places: Mapping[Path, int],
    sound: bool,
    select: str | None,
    pick: Pick,
    skip_damaged: bool,
    order: str | None,
) -> tuple[list[Candidate], list[tuple[Path, Path]]]:
    """The checkpoints of the only run among the candidates, and the copies that are none; PosthocError for several runs."""
    rest = [item for item in candidates if item.path not in places]
    groups = _grouped(rest, runs=order != "name", networks=sound)
    copies: list[tuple[Path, Path]] = []
    if sound or len(groups) > 1:
        groups, copies = without_copies(groups, pick, skip_damaged)
    if copies and not sound:
        groups, copies = _apart_from_largest(rest, groups, copies)
    if len(groups) > 1 and not (select and _is_one_run(groups, by_name=select == "*")):
        raise PosthocError(_parts_alone(folder, groups) or _several(folder, groups))
    kept = [item for group in groups for item in group] + [item for item in candidates if item.path in places]
    if sound:
        _require_one_network(kept, places)
    return kept, copies


def _with_those_below(run: Run) -> Run:
    """The run of one checkpoint; where more lie in folders beside it, that is noted."""
    below = [place for place in runs_below(run.folder).runs if place not in run.checkpoints[0].path.parents]
    below = [place for place in below if not place.is_relative_to(run.checkpoints[0].path)]
    note = f"more checkpoints lie in {below[0]}; give that folder for them" if below else ""
    return replace(run, notes=(*run.notes, note)) if note else run


def _is_all_of(folder: Path, paths: Sequence[Path]) -> bool:
    """Whether all that holds weights in a folder are the files of one checkpoint, which the folder is."""
    if not checkpoint_folders([folder]):
        return False
    files = set(files_of(folder))
    return not any(_read([path], MAIN, skip_damaged=True)[0] for path in paths if path not in files)


def _run(
    folder: Path,
    order: Order,
    copies: Sequence[tuple[Path, Path]] = (),
    apart: Sequence[tuple[Path, str]] = (),
    damaged: Sequence[tuple[Path, str]] = (),
) -> Run:
    checkpoints, notes = _within_numbers(order.checkpoints)
    return Run(
        folder, checkpoints, _about(folder), tuple(copies), tuple(apart), tuple(damaged), order.by, order.notes + notes
    )  # fmt: skip


def _within_numbers(checkpoints: tuple[Checkpoint, ...]) -> tuple[tuple[Checkpoint, ...], tuple[str, ...]]:
    """The checkpoints with no more than 200 names of recorded numbers in all, and what to say of it."""
    headers = [checkpoint.header for checkpoint in checkpoints]
    names = dict.fromkeys(name for header in headers for name in header.recorded)
    if len(names) <= MOST_NUMBERS and not any(header.unrecorded for header in headers):
        return checkpoints, ()
    kept = set(itertools.islice(names, MOST_NUMBERS))
    note = f"more than {MOST_NUMBERS} numbers are recorded in the checkpoints; the first {MOST_NUMBERS} names are kept"
    return tuple(
        replace(c, header=replace(c.header, recorded={k: v for k, v in c.header.recorded.items() if k in kept}))
        for c in checkpoints
    ), (note,)


def _single(place: Path, pick: Pick, order: str | None, given: Mapping[str, int]) -> Run:
    """The run of one checkpoint, whatever its name."""
    if reason := irregular(place):
        raise PosthocError(f"{place} is {reason}; give a checkpoint or the folder of a run.")
    if place.name in ("", ".."):  # the name of a checkpoint's folder says which it is
        place = place.resolve()
    header = read_header(place, pick)
    placed = placed_among(place.absolute().parent, [place.absolute()], given)
    places = {place: next(iter(placed.values()))} if placed else {}
    return _run(place.parent, in_order({place: header}, order, places))


def _read(
    paths: Sequence[Path], pick: Pick, skip_damaged: bool
) -> tuple[list[Candidate], list[tuple[Path, NoWeightsError]], list[tuple[Path, str]]]:
    """The checkpoints, what is none, and what is damaged, with the reasons.

    A damaged file with the ending of a stranger is one, unless a checkpoint has that ending, too.
    """
    candidates: list[Candidate] = []
    apart, damaged, strange = [], [], []
    known: dict[tuple[tuple[str, tuple[int, ...]], ...], Candidate] = {}
    for path in paths:
        try:
            header = read_header(path, pick)
        except NoWeightsError as error:
            apart.append((path, error))
        except PosthocError as error:
            if STRANGE.search(path.name):
                strange.append((path, error))
            elif not skip_damaged:
                raise
            else:
                damaged.append((path, str(error)))
        else:  # a thousand checkpoints name the same tensors
            shapes = tuple(header.shapes.items())
            if shapes not in known:
                known[shapes] = Candidate(path, header, _network(header.shapes))
            alike = known[shapes]
            candidates.append(Candidate(path, replace(header, shapes=alike.header.shapes), alike.network))
    usual = {item.path.suffix for item in candidates}
    for path, damage in strange:
        if path.suffix not in usual:
            apart.append((path, NoWeightsError(str(damage))))
        elif not skip_damaged:
            raise damage
        else:
            damaged.append((path, str(damage)))
    return candidates, apart, damaged


def _network(shapes: Mapping[str, tuple[int, ...]]) -> Shape:
    names = canonical(shapes)
    return frozenset((short, shapes[name]) for name, short in names.items() if not short.endswith(UNUSED))


def _nothing(place: Path, select: str | None, apart: Sequence[tuple[Path, str]], below: Below) -> str:
    which = f" matching {select!r}" if select else ""
    text = f"No checkpoint{which} in {place} (looked for {', '.join('*' + end for end in endings())})"
    if apart and not select:
        return f"{text}; {apart[0][0].name} is {apart[0][1]}."
    more = "" if below.whole else f" (only the first {below.looked:,} folders were looked into)"
    if not below.runs or select:
        return f"{text}{more}; give the folder of a run."
    names = ", ".join(str(child) for child in below.runs[:5])
    return f"{text}; there are some in {names}{', ...' if len(below.runs) > 5 else ''}{more}: give {'one of these' if len(below.runs) > 1 else 'it'}."


def _only_strangers(
    folder: Path, apart: Sequence[tuple[Path, NoWeightsError]], damaged: Sequence[tuple[Path, str]]
) -> str:
    """The reason of the first of them, and how many others there are."""
    reasons = [reason for _, reason in damaged] + [str(error) for _, error in apart]
    if len(reasons) == 1:
        return reasons[0]
    return f"None of the {len(reasons)} files in {folder} is a checkpoint that can be replayed. The first: {reasons[0]}"


def _grouped(candidates: Iterable[Candidate], runs: bool, networks: bool = True) -> list[Group]:
    """Checkpoints of one network (if `networks` are told apart) whose names are equal but for the numbers that count."""
    groups = defaultdict(list)
    for item in candidates:
        groups[item.network if networks else None, form_of(item.path, runs)].append(item)
    return list(groups.values())


def _apart_from_largest(
    candidates: Sequence[Candidate], groups: Sequence[Group], copies: Sequence[tuple[Path, Path]]
) -> tuple[list[Group], list[tuple[Path, Path]]]:
    """The groups with the copies within the largest put back: of the series itself nothing is dropped."""
    form = form_of(max(groups, key=len)[0].path)
    back = {copy for copy, _ in copies if form_of(copy) == form}
    whole = [item for item in candidates if item.path in back]
    return [
        [*group, *whole] if form_of(group[0].path) == form else group for group in groups
    ], [pair for pair in copies if pair[0] not in back]  # fmt: skip


def _is_one_run(groups: Sequence[Group], by_name: bool = True) -> bool:
    """Whether files named in several ways may be one run: of one network, and all say their epoch or step, inside or
    `by_name`."""
    items = [item for group in groups for item in group]
    if len({item.network for item in items}) > 1:
        return False
    inside = any(all(item.place[unit] is not None for item in items) for unit in (0, 1))
    return inside or (by_name and say_their_places([item.path for item in items]))


def _require_one_network(candidates: Sequence[Candidate], placed: Mapping[Path, int]) -> None:
    """Raise where a checkpoint that --as adds is of another network than the others."""
    usual = Counter(item.network for item in candidates).most_common(1)[0][0]
    odd = next((item.path for item in candidates if item.network != usual), None)
    if odd:
        odd = odd if odd in placed else next(iter(placed))
        raise PosthocError(
            f"{odd}, given a place with --as, holds a network of another shape than the others; take it out of --as."
        )


def _parts_alone(place: Path, groups: Sequence[Group]) -> str | None:
    """What to say where all files are parts of a checkpoint whose index is not there; None where they are not."""
    names = [item.path.name for group in groups for item in group]
    if not all(re.search(r"-\d+-of-\d+\.\w+\Z", name) for name in names):
        return None
    return (
        f"{place} holds parts of a checkpoint ({names[0]}, ...) without the index that belongs to them; copy the "
        "*.index.json there, too."
    )


def _several(place: Path, groups: Sequence[Group]) -> str:
    lines = []
    forms = Counter(form_of(group[0].path) for group in groups)
    for group in sorted(groups, key=len, reverse=True)[:LISTED]:
        shapes, name = group[0].header.shapes, form_of(group[0].path)
        if len(group) == 1:
            name = group[0].path.name
        else:
            some = f"{group[0].path.name} to {group[-1].path.name}, " if forms[name] > 1 else ""
            name += f" ({some}{len(group)} files)"
        lines.append(
            f"{name}: {counted(len(shapes), 'tensor')}, {counted(sum(map(math.prod, shapes.values())), 'value')}"
        )
    more = ["..."] if len(groups) > LISTED else []
    listed = f"fall into {len(groups)} groups ({'; '.join(lines + more)})"
    networks = len({group[0].network for group in groups})
    what = f"networks of different shape ({_difference(groups)})" if networks > 1 else "checkpoints named alike"
    advice = [_choice(groups) or "move the others elsewhere"]
    if networks > 1 and (key := _common_key(groups)):
        advice.insert(0, f"if the network is what they share, pass --weights-key {key}")
    if networks == 1:
        if _is_one_run(groups):
            advice.append("take them all with --select '*'")
        if len({form_of(group[0].path, runs=False) for group in groups}) == 1:
            advice.append("pass --order name if it is one run all the same")
        elif odd := next((group[0].path.name for group in groups if len(group) == 1), None):
            advice.append(f"give a file its place in the run with --as, such as --as {shlex.quote(odd)}=EPOCH")
    return f"{place} holds more than one run: {what} {listed}; {', or '.join(advice)}."


def _difference(groups: Sequence[Group]) -> str:
    """By which tensor two networks differ, one that both have if there is one, and in which files."""
    first = groups[0][0]
    other = next(group[0] for group in groups if group[0].network != first.network)
    here, there = dict(first.network), dict(other.network)
    name = min(
        (name for name in here.keys() | there.keys() if here.get(name) != there.get(name)),
        key=lambda name: (name not in here or name not in there, name),
    )
    shapes = [
        f"{' x '.join(map(str, shapes[name])) or 'a number' if name in shapes else 'not there'} in {item.path.name}"
        for shapes, item in ((here, first), (there, other))
    ]
    found = (_in_full(item).get(name) for item in (first, other))
    return f"{next(filter(None, found), name)} is {', '.join(shapes)}"


def _in_full(item: Candidate) -> dict[str, str]:
    """The names of its network's tensors as they stand in the file."""
    return {short: full for full, short in canonical(item.header.shapes).items()}


def _common_key(groups: Sequence[Group]) -> str | None:
    """Where in the checkpoints all that their networks share lies, and nothing else."""
    shared = {name for name, _ in frozenset.intersection(*(group[0].network for group in groups))}
    keys = set()
    for group in groups:
        names = _in_full(group[0])
        paths = [names[short].split(".")[:-1] for short in names if short in shared]
        same = itertools.takewhile(lambda parts: len({*parts}) == 1, zip(*paths, strict=False))
        key = ".".join(parts[0] for parts in same)
        apart = [full for short, full in names.items() if short not in shared and not short.endswith(UNUSED)]
        if not key or any(full.startswith(f"{key}.") for full in apart):
            return None
        keys.add(key)
    return keys.pop() if len(keys) == 1 else None


def _choice(groups: Sequence[Group]) -> str | None:
    """An option that chooses one of the groups, the largest that can be chosen by its names."""
    forms = Counter(form for group in groups for form in {form_of(item.path) for item in group})
    for group in sorted(groups, key=len, reverse=True):
        form = form_of(group[0].path)
        if forms[form] == 1 or len(group) == 1:
            pattern = form if forms[form] == 1 else as_glob(group[0].path.name)
            return f"choose one with --select GLOB, such as --select {shlex.quote(pattern)}"
    return None


def _about(folder: Path) -> dict[str, Any]:
    """What run.json says of the run; keys that are not known here stay."""
    path = folder / "run.json"
    if not path.is_file():
        return {}
    about = read_json(path, RUN_JSON_BYTES)
    if not isinstance(about, dict):
        raise PosthocError(
            f"{path} holds {with_article(type(about).__name__)}; expected an object with model, normalization, ..."
        )
    for key, kinds in RUN_JSON.items():
        value = about.get(key)
        if value is not None and (not isinstance(value, kinds) or isinstance(value, bool)):
            expected = " or ".join(KIND_NAMES[kind] for kind in kinds)
            raise PosthocError(f"{path}: {key} is {shorten(repr(value), 60)}; expected {expected}.")
    return about
