"""Which checkpoints make one training run, and in which order."""

import contextlib
import difflib
import fnmatch
import itertools
import math
import os
import re
import shlex
import stat
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from textwrap import shorten
from typing import Any

from posthoc.errors import PosthocError, UsageError
from posthoc.files import KINDS, names_apart, read_json
from posthoc.replay.checkpoint import MOST_NUMBERS, read_header
from posthoc.replay.copies import Candidate, Group, Shape, without_copies
from posthoc.replay.formats.table import (
    endings,
    files_of,
    is_checkpoint_folder,
    is_indivisible,
    is_named_like_a_checkpoint,
    looks_like_a_checkpoint,
    parts_of,
)
from posthoc.replay.names import as_glob
from posthoc.replay.naming import UNUSED, canonical
from posthoc.replay.order import ORDERS, Checkpoint, Order, form_of, in_order, parse_places
from posthoc.replay.strangers import NoWeightsError, StrangerError
from posthoc.replay.weights import MAIN, Pick

LISTED = 8
"""So many groups are named in an error."""
FOLDERS_SEARCHED = 100
"""In so many folders below one a checkpoint is looked for, to tell where there are some."""
STRANGE = re.compile(
    r"\.(onnx|keras|zip|joblib|gguf|pb|tflite|msgpack|pdparams|index|data-\d{5}-of-\d{5}|h5|hdf5|np[yz])\Z",
    re.IGNORECASE,
)
"""Endings of what people take for checkpoints, or keep beside them."""
DATA = re.compile(r"\.(h5|hdf5|np[yz])\Z", re.IGNORECASE)
"""Endings of data, which are no surprise beside checkpoints."""
RUN_JSON_BYTES = 2**20
RUN_JSON: dict[str, tuple[type, ...]] = {
    "model": (str,), "recipe": (str,), "dataset": (str,), "normalization": (str, dict), "image_size": (int,), "seed": (int,),
}  # fmt: skip
KIND_NAMES = {str: "a text", dict: "an object", int: "a whole number"}


@dataclass(frozen=True)
class Run:
    """The checkpoints of one training run in training order, and its run.json where there is one.

    copies: what was dropped because it holds the same weights as another checkpoint, and which; apart: what is no
    checkpoint, and why; damaged: what could not be read, and why; by: what the order goes by; notes: what a user should
    know of it.
    """

    folder: Path
    checkpoints: tuple[Checkpoint, ...]
    about: dict[str, Any] = field(default_factory=dict)
    copies: tuple[tuple[Path, Path], ...] = ()
    apart: tuple[tuple[Path, str], ...] = ()
    damaged: tuple[tuple[Path, str], ...] = ()
    by: str = ""
    notes: tuple[str, ...] = ()

    @property
    def span(self) -> str:
        """How many checkpoints, and from when to when, in words."""
        first, last = self.checkpoints[0], self.checkpoints[-1]
        if first is last:
            return f"1 checkpoint, {first.when}"
        return f"{len(self.checkpoints)} checkpoints, {first.when} to {last.when}"


def is_file_of_run(place: Path) -> bool:
    """Whether `place` is a checkpoint, rather than the folder of a run."""
    if place.is_dir():
        return is_checkpoint_folder(place)
    return place.is_file() and (is_named_like_a_checkpoint(place) or _is_nameless_checkpoint(place))


def run_folders(places: Sequence[Path]) -> list[tuple[str, Path]]:
    """Several folders, each that of a run, with the names that tell them apart; files beside them are no run.

    Raises UsageError for a checkpoint, PosthocError for what is not there.
    """
    folders = []
    for place in places:
        if is_file_of_run(place):
            raise UsageError(f"{place} is a checkpoint; of several runs give the folders, of one run its folder alone.")
        if not place.exists():
            raise PosthocError(f"{place} does not exist.")
        folders += [place] if place.is_dir() else []
    folders = list({folder.resolve(): folder for folder in folders}.values())
    if not folders:
        raise UsageError(f"{', '.join(map(str, places))}: none is a folder.")
    return list(zip(names_apart([folder.absolute() for folder in folders]), folders, strict=True))


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
    dropped only if it is named otherwise (best, last), and networks of other shapes belong to it. Raises PosthocError where
    there is no checkpoint, more than one run, or no certain order.
    """
    if order not in (None, *ORDERS):
        raise UsageError(f"Unknown --order {order!r}; give {' or '.join(ORDERS)}.")
    given = parse_places(placed)
    if isinstance(place, Path) and not (place.exists() or place.is_symlink()):
        raise PosthocError(f"No such file or folder: {place}.")
    if isinstance(place, Path) and not (place.is_dir() and not is_indivisible(place)):
        return _single(place, pick, order, given)
    folder, paths, strangers = _listed(place)
    places = _placed(folder, paths, given)
    if select is not None:
        paths = [path for path in paths if path in places or _matches(path.name, select)]
        strangers = [(path, reason) for path, reason in strangers if _matches(path.name, select)]
    if not paths:
        raise PosthocError(_nothing(folder, select, strangers))
    candidates, apart, damaged = _read(paths, pick, skip_damaged)
    if not candidates:
        raise PosthocError(_only_strangers(folder, apart, damaged))
    parts = {item.path for item in candidates} <= set(files_of(folder)) if is_checkpoint_folder(folder) else False
    if parts and isinstance(place, Path):
        return _single(place, pick, order, given)
    rest = [item for item in candidates if item.path not in places]
    groups = _grouped(rest, runs=order != "name", networks=sound)
    copies: list[tuple[Path, Path]] = []
    if sound or len(groups) > 1:
        groups, copies = without_copies(groups, pick, skip_damaged)
    if copies and not sound:
        groups, copies = _apart_from_largest(rest, groups, copies)
    if len(groups) > 1 and not (select and _is_one_run(groups)):
        raise PosthocError(_several(folder, groups))
    kept = [item for group in groups for item in group] + [item for item in candidates if item.path in places]
    if sound:
        _require_one_network(kept, places)
    ordered = in_order({item.path: item.header for item in kept}, order, places)
    reasons = (
        (path, error.what if isinstance(error, StrangerError) else "no network's weights") for path, error in apart
    )
    aside = [*strangers, *reasons]
    return _run(folder, ordered, copies, aside, damaged)


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
    if reason := _irregular(place):
        raise PosthocError(f"{place} is {reason}; give a checkpoint or the folder of a run.")
    header = read_header(place, pick)
    placed = _placed(place.absolute().parent, [place.absolute()], given)
    places = {place: next(iter(placed.values()))} if placed else {}
    return _run(place.parent, in_order({place: header}, order, places))


def _placed(folder: Path, paths: Sequence[Path], given: Mapping[str, int]) -> dict[Path, int]:
    """The checkpoints to which --as gives a place; raises UsageError for names that none has."""
    names = {path.name: path for path in paths}
    result = {}
    for text, epoch in given.items():
        name = Path(text).name
        if name not in names or (name != text and (folder / text).absolute() != names[name].absolute()
                                 and Path(text).absolute() != names[name].absolute()):  # fmt: skip
            near = difflib.get_close_matches(name, names, 3, 0.3) or list(names)[:3]
            hint = f"; there are {', '.join(near)}" if near else ""
            raise UsageError(f"--as {text}={epoch}: {folder} holds no checkpoint of that name{hint}.")
        result[names[name]] = epoch
    return result


def _matches(name: str, select: str) -> bool:
    return bool(re.match(fnmatch.translate(select).replace("\\#", r"(?:\d+|\#)"), name))


def _read(
    paths: Sequence[Path], pick: Pick, skip_damaged: bool
) -> tuple[list[Candidate], list[tuple[Path, NoWeightsError]], list[tuple[Path, str]]]:
    """The checkpoints, what is none, and what is damaged, with the reasons."""
    candidates: list[Candidate] = []
    apart, damaged = [], []
    known: dict[tuple[tuple[str, tuple[int, ...]], ...], Candidate] = {}
    for path in paths:
        try:
            header = read_header(path, pick)
        except NoWeightsError as error:
            apart.append((path, error))
        except PosthocError as error:
            if STRANGE.search(path.name) and not is_named_like_a_checkpoint(path):
                apart.append((path, NoWeightsError(str(error))))
                continue
            if not skip_damaged:
                raise
            damaged.append((path, str(error)))
        else:  # a thousand checkpoints name the same tensors
            shapes = tuple(header.shapes.items())
            if shapes not in known:
                known[shapes] = Candidate(path, header, _network(header.shapes))
            alike = known[shapes]
            candidates.append(Candidate(path, replace(header, shapes=alike.header.shapes), alike.network))
    return candidates, apart, damaged


def _network(shapes: Mapping[str, tuple[int, ...]]) -> Shape:
    names = canonical(shapes)
    return frozenset((short, shapes[name]) for name, short in names.items() if not short.endswith(UNUSED))


def _children(folder: Path) -> tuple[Path, list[Path]]:
    try:
        return folder, sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise PosthocError(f"Cannot read {folder}: {error.strerror or error}.") from error


def _given(places: Sequence[Path]) -> tuple[Path, list[Path]]:
    """The folder of checkpoints that were given one by one, and these."""
    folders = {path.absolute().parent for path in places}
    if len(folders) != 1:
        raise UsageError(
            f"The files of one run lie in one folder, these in {len(folders)} ({places[0]}, ..., {places[-1]}); give the "
            "folder of each run, or link the files into one folder."
        )
    for path in places:
        if not (path.exists() or path.is_symlink()):
            raise PosthocError(f"{path} does not exist.")
        if path.is_dir() and not is_checkpoint_folder(path) and _holds_some(path):
            raise UsageError(
                f"{path} is a folder that holds checkpoints, and not all that was given are such folders; give folders, each "
                "that of a run, or the checkpoints of one run."
            )
    folder = places[0].parent
    return folder, sorted({folder / path.name for path in places})


def _listed(place: Path | Sequence[Path]) -> tuple[Path, list[Path], list[tuple[Path, str]]]:
    """The folder, the checkpoints in it or those given, and what is no file and is left alone, with the reason.

    Shards of an index are no checkpoints of their own.
    """
    folder, children = _children(place) if isinstance(place, Path) else _given(place)
    paths, strangers = [], []
    for path in children:
        if reason := _irregular(path):
            strangers.append((path, reason))
        elif path.is_dir():
            if is_checkpoint_folder(path):
                paths.append(path)
            elif is_named_like_a_checkpoint(path):
                strangers.append((path, "a folder"))
        elif not os.access(path, os.R_OK):
            if is_named_like_a_checkpoint(path) or not path.suffix:
                strangers.append((path, "not readable"))
        elif is_named_like_a_checkpoint(path) or STRANGE.search(path.name) or _is_nameless_checkpoint(path):
            paths.append(path)
    if any(is_named_like_a_checkpoint(path) or not STRANGE.search(path.name) for path in paths):
        paths = [path for path in paths if is_named_like_a_checkpoint(path) or not DATA.search(path.name)]
    parts: set[Path] = set()
    for path in paths:
        with contextlib.suppress(PosthocError):  # what is no checkpoint is met again when it is read
            parts |= parts_of(path)
    return folder, [path for path in paths if path not in parts], strangers


def _irregular(path: Path) -> str | None:
    """What a thing is that is neither file nor folder, or a checkpoint's folder with such a thing; it is not opened."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode):
            return None
        if stat.S_ISDIR(mode):
            inside = path.iterdir() if is_checkpoint_folder(path) else ()
            reasons = ((child.name, _irregular(child)) for child in inside if not child.is_dir())
            return next((f"a folder in which {name} is {reason}" for name, reason in reasons if reason), None)
    except OSError as error:
        return "a link to nothing" if path.is_symlink() else f"not readable ({error.strerror or error})"
    return f"a {KINDS.get(stat.S_IFMT(mode), 'special file')}"


def _is_nameless_checkpoint(path: Path) -> bool:
    """Whether a file without an ending (or with a number for one) is a checkpoint by its first bytes."""
    return bool(re.fullmatch(r"(\.[0-9]+)?", path.suffix)) and looks_like_a_checkpoint(path)


def _nothing(place: Path, select: str | None, strangers: Sequence[tuple[Path, str]]) -> str:
    which = f" matching {select!r}" if select else ""
    text = f"No checkpoint{which} in {place} (looked for {', '.join('*' + end for end in endings())})"
    if strangers and not select:
        return f"{text}; {strangers[0][0].name} is {strangers[0][1]}."
    inside = [child for child in sorted(place.iterdir()) if child.is_dir() and _holds_some(child)]
    if not inside or select:
        return f"{text}."
    if linking := _linking(place, inside):
        return (
            f"{text}; it has a folder for each checkpoint ({inside[0].name}, ...), a layout that is not read; link them "
            f"into one folder and give that: {linking}"
        )
    names = ", ".join(str(child) for child in inside[:5])
    return f"{text}; there are some in {names}{', ...' if len(inside) > 5 else ''}: give one of these."


def _holds_some(folder: Path) -> bool:
    """Whether a checkpoint lies in the folder, or a little below; a whole disk is not searched."""
    below = itertools.islice(os.walk(folder), FOLDERS_SEARCHED)
    return any(is_named_like_a_checkpoint(Path(name)) for _, folders, files in below for name in [*files, *folders])


def _linking(place: Path, inside: Sequence[Path]) -> str | None:
    """The command that links the checkpoints of a folder per checkpoint into one folder, if that is the layout."""
    if len({form_of(child, runs=False) for child in inside}) > 1 or len(inside) < 2:
        return None
    names = [{path.name for path in child.iterdir() if is_named_like_a_checkpoint(path)} for child in inside]
    common = set.intersection(*names)
    if not common or max(map(len, names)) > 3:  # a run of its own in each
        return None
    name = min(common, key=lambda name: (not re.search("model|weights|ckpt|checkpoint", name.lower()), name))
    where, to = shlex.quote(str(place)), shlex.quote(f"{place}-links")
    ending = name[name.index(".") :]
    return (
        f'mkdir {to} && for d in {where}/*/; do ln -s "$(realpath "$d")/"{shlex.quote(name)} '
        f'{to}/"$(basename "$d")"{shlex.quote(ending)}; done'
    )


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


def _is_one_run(groups: Sequence[Group]) -> bool:
    """Whether files named in several ways may be one run: of one network, and all say their epoch or step."""
    items = [item for group in groups for item in group]
    placed = any(all(item.place[unit] is not None for item in items) for unit in (0, 1))
    return placed and len({item.network for item in items}) == 1


def _require_one_network(candidates: Sequence[Candidate], placed: Mapping[Path, int]) -> None:
    """Raise where a checkpoint that --as adds is of another network than the others."""
    usual = Counter(item.network for item in candidates).most_common(1)[0][0]
    odd = next((item.path for item in candidates if item.network != usual), None)
    if odd:
        odd = odd if odd in placed else next(iter(placed))
        raise PosthocError(f"{odd}, given a place with --as, holds a network of another shape than the others.")


def _several(place: Path, groups: Sequence[Group]) -> str:
    lines = []
    for group in sorted(groups, key=len, reverse=True)[:LISTED]:
        path, shapes = group[0].path, group[0].header.shapes
        name = path.name if len(group) == 1 else f"{form_of(path)} ({len(group)} files)"
        lines.append(f"{name}: {len(shapes)} tensors, {sum(map(math.prod, shapes.values())):,} values")
    more = ["..."] if len(groups) > LISTED else []
    listed = f"fall into {len(groups)} groups ({'; '.join(lines + more)})"
    networks = len({group[0].network for group in groups})
    what = "networks of different shape" if networks > 1 else "checkpoints named alike"
    advice = [_choice(groups) or "move the others elsewhere"]
    if networks == 1:
        if _is_one_run(groups):
            advice.append("take them all with --select '*'")
        if len({form_of(group[0].path, runs=False) for group in groups}) == 1:
            advice.append("pass --order name if it is one run all the same")
        elif odd := next((group[0].path.name for group in groups if len(group) == 1), None):
            advice.append(f"give a file its place in the run with --as, such as --as {shlex.quote(odd)}=EPOCH")
    return f"{place} holds more than one run: {what} {listed}; {', or '.join(advice)}."


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
        raise PosthocError(f"{path} holds a {type(about).__name__}; expected an object with model, normalization, ...")
    for key, kinds in RUN_JSON.items():
        value = about.get(key)
        if value is not None and (not isinstance(value, kinds) or isinstance(value, bool)):
            expected = " or ".join(KIND_NAMES[kind] for kind in kinds)
            raise PosthocError(f"{path}: {key} is {shorten(repr(value), 60)}; expected {expected}.")
    return about
