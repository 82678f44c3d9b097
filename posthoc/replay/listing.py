"""What in a folder is a checkpoint, a file or a folder, and where below it there are some."""

import contextlib
import os
import re
import stat
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from posthoc.errors import PosthocError, UsageError
from posthoc.files import KINDS, names_apart
from posthoc.replay.formats.folder import model_files
from posthoc.replay.formats.hub import beside_series, revisions
from posthoc.replay.formats.table import (
    folder_formats,
    is_indivisible,
    is_named_like_a_checkpoint,
    looks_like_a_checkpoint,
    parts_of,
    preview,
)
from posthoc.replay.names import counts, is_count, is_of_a_run, place_of, places
from posthoc.replay.order import form_of, stem

FOLDERS_SEARCHED = 2000
"""In so many folders below one a checkpoint is looked for, to tell where there are some."""
STRANGE = re.compile(
    r"\.(onnx|keras|zip|joblib|gguf|pb|tflite|msgpack|pdparams|index|data-\d{5}-of-\d{5}|h5|hdf5|np[yz])\Z",
    re.IGNORECASE,
)
"""Endings of what people take for checkpoints, or keep beside them."""
DATA = re.compile(r"\.(h5|hdf5|np[yz])\Z", re.IGNORECASE)
"""Endings of data, which are no surprise beside checkpoints."""


@dataclass(frozen=True)
class Listing:
    """The checkpoints in a folder, or those given; apart: what is none and is left alone, with the reason; copies: what
    is known to be another once more, and which."""

    folder: Path
    paths: tuple[Path, ...]
    apart: tuple[tuple[Path, str], ...] = ()
    copies: tuple[tuple[Path, Path], ...] = field(default=())


def _is_checkpoint(place: Path) -> bool:
    """Whether `place` is a checkpoint, rather than the folder of a run."""
    if place.is_dir():
        return bool(checkpoint_folders([place]))
    return place.is_file() and (is_named_like_a_checkpoint(place) or is_nameless_checkpoint(place))


def are_runs(given: Sequence[Path]) -> bool:
    """Whether of several places each is a run, rather than each a checkpoint of one."""
    folders = [place for place in given if place.is_dir()]
    files = any(_is_checkpoint(place) for place in given if not place.is_dir())
    return len(given) > 1 and bool(folders) and not files and not checkpoint_folders(folders)


def run_folders(given: Sequence[Path]) -> list[tuple[str, Path]]:
    """Several folders, each that of a run, with the names that tell them apart; files beside them are no run.

    Raises UsageError for a checkpoint, PosthocError for what is not there.
    """
    folders = []
    for place in given:
        if _is_checkpoint(place):
            raise UsageError(f"{place} is a checkpoint; of several runs give the folders, of one run its folder alone.")
        if not place.exists():
            raise PosthocError(f"{place} does not exist.")
        folders += [place] if place.is_dir() else []
    folders = list({folder.resolve(): folder for folder in folders}.values())
    if not folders:
        raise UsageError(f"{', '.join(map(str, given))}: none is a folder; give the folder of each run.")
    # A name with .. in it would leave the folder of results.
    plain = [folder.resolve() if ".." in folder.parts else folder.absolute() for folder in folders]
    return list(zip(names_apart(plain), folders, strict=True))


def checkpoint_folders(folders: Sequence[Path]) -> list[Path]:
    """Those of the folders that are one checkpoint each.

    A folder is one if its files are parts of one; if they are such as trainers write into the folder of a checkpoint,
    without others in folders in it; or if its name is the count of epochs or steps, as that of others alike beside it may
    be at its end, no file in it says another, and one can be the model's.
    """
    known, loose = set(), defaultdict(list)
    for folder in folders:
        formats = folder_formats(folder)
        if any(not form.divisible for form in formats):
            known.add(folder)
        elif formats and any((folder / name).exists() for form in formats for name in form.inside):
            if not _holds_numbered(folder):
                known.add(folder)
        elif formats and not _holds_counted(folder):
            loose[_parent(folder), form_of(folder)].append(folder)
    for alike in loose.values():
        counted = places([stem(folder.absolute()) for folder in alike])
        if counted and (len(alike) > 1 or (counted.sure and is_count(alike[0].absolute().name))):
            known.update(alike)
    return [folder for folder in folders if folder in known]


def _holds_counted(folder: Path) -> bool:
    """Whether the names of the models' files in a folder say which each is, and not all the same as the folder's."""
    name, inside = folder.absolute().name, [stem(Path(file)) for file in model_files(preview(folder).names)]
    others = [value for value in map(place_of, inside) if value and value.isdisjoint(place_of(name))]
    return bool(others) or any(map(is_of_a_run, inside))


def _holds_numbered(folder: Path) -> bool:
    """Whether checkpoints lie in the folder, in folders whose names count; those of DeepSpeed are parts of its own."""
    inside = (child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("global_step"))
    return any(counts(child.name) and folder_formats(child) for child in inside)


def listed(place: Path, whole: bool = False) -> Listing:
    """What lies in the folder; of the revisions in a cache those that count steps, if some do, or the `whole`."""
    listing = _sorted_out(place, _children(place))
    others = beside_series(list(listing.paths)) if place.name == "refs" and not whole else {}
    copies = tuple((path, original) for path, original in others.items() if original)
    apart = tuple((path, "a revision whose name says no step") for path, original in others.items() if not original)
    paths = tuple(path for path in listing.paths if path not in others)
    return Listing(place, paths, listing.apart + apart, copies)


def listed_of(given: Sequence[Path]) -> Listing:
    """The checkpoints that were given one by one, as files in one folder, or as the model's file of a folder each."""
    owners = [_owner(path) for path in given]
    if len(set(map(_parent, given))) > 1 and all(owners):
        given = [owner for owner in owners if owner]
    folders = set(map(_parent, given))
    if len(folders) != 1:
        raise UsageError(
            f"The files of one run lie in one folder, these in {len(folders)} ({given[0]}, ..., {given[-1]}); give the "
            "folder of each run, or link the files into one folder."
        )
    checkpoints = checkpoint_folders([path for path in given if path.is_dir()])
    for path in given:
        if not (path.exists() or path.is_symlink()):
            raise PosthocError(f"{path} does not exist.")
        if path.is_dir() and path not in checkpoints and (listed(path).paths or runs_below(path).runs):
            raise UsageError(
                f"{path} is a folder that holds checkpoints, and not all that was given are such folders; give folders, each "
                "that of a run, or the checkpoints of one run."
            )
    folder = given[0].parent
    return _sorted_out(folder, sorted({folder / path.name for path in given}))


def _parent(path: Path) -> Path:
    """The folder in which a file or folder lies, however that is spelled; a link lies where it is, not where it leads."""
    return path.absolute().parent.resolve()


def _owner(path: Path) -> Path | None:
    """The folder of which a file is the model's."""
    folder = path.parent
    with contextlib.suppress(PosthocError):
        if (
            path.is_file()
            and any(form.files for form in folder_formats(folder))
            and parts_of(folder) == {path, *parts_of(path)}
        ):
            return folder
    return None


def _children(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise PosthocError(f"Cannot read {folder}: {error.strerror or error}.") from error


def _sorted_out(folder: Path, children: Iterable[Path]) -> Listing:
    """What of `children` is a checkpoint. Shards of an index are none of their own."""
    children = list(children)
    whole = set(checkpoint_folders([path for path in children if path.is_dir()]))
    paths, apart = [], []
    for path in children:
        if reason := irregular(path):
            apart.append((path, reason))
        elif path.is_dir():
            if path in whole:
                paths.append(path)
            elif is_named_like_a_checkpoint(path):
                apart.append((path, "a folder"))
        elif not os.access(path, os.R_OK):
            if is_named_like_a_checkpoint(path) or not path.suffix:
                apart.append((path, "not readable"))
        elif is_named_like_a_checkpoint(path) or STRANGE.search(path.name) or is_nameless_checkpoint(path):
            paths.append(path)
    if any(is_named_like_a_checkpoint(path) or not STRANGE.search(path.name) for path in paths):
        paths = [path for path in paths if is_named_like_a_checkpoint(path) or not DATA.search(path.name)]
    parts: set[Path] = set()
    for path in paths:
        with contextlib.suppress(PosthocError):  # what is no checkpoint is met again when it is read
            parts |= parts_of(path) if path.is_file() else set()
    return Listing(folder, tuple(path for path in paths if path not in parts), tuple(apart))


def irregular(path: Path) -> str | None:
    """What a thing is that is neither file nor folder, or a checkpoint's folder with such a thing; it is not opened."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode):
            return None
        if stat.S_ISDIR(mode):
            inside = path.iterdir() if folder_formats(path) else ()
            reasons = ((child.name, irregular(child)) for child in inside if not child.is_dir())
            return next((f"a folder in which {name} is {reason}" for name, reason in reasons if reason), None)
    except OSError as error:
        return "a link to nothing" if path.is_symlink() else f"not readable ({error.strerror or error})"
    return f"a {KINDS.get(stat.S_IFMT(mode), 'special file')}"


def is_nameless_checkpoint(path: Path) -> bool:
    """Whether a file without an ending (or with a number for one) is a checkpoint by its first bytes."""
    return bool(re.fullmatch(r"(\.[0-9]+[A-Za-z]?)?", path.suffix)) and looks_like_a_checkpoint(path)


@dataclass(frozen=True)
class Below:
    """The folders below one that hold checkpoints, none within another; looked: into how many folders was looked; whole:
    whether those are all.

    Where one of several is called `checkpoints`, it alone: what lies beside it are models that were kept.
    """

    runs: list[Path]
    looked: int
    whole: bool

    @property
    def only(self) -> Path | None:
        """The run, if there is one alone for certain."""
        return self.runs[0] if len(self.runs) == 1 and self.whole else None


def runs_below(place: Path) -> Below:
    """Where below a folder there are checkpoints: nearest first, through links to folders that lie in it; a whole disk is not searched."""
    holding: list[Path] = []
    waiting, known, looked = deque([place]), {place.resolve()}, 0
    while waiting and looked < FOLDERS_SEARCHED:
        folder, looked = waiting.popleft(), looked + 1
        folders, files = _inside(folder)
        if folder != place and _holds(folder, folders, files):
            holding.append(folder)
            folders = [child for child in folders if child.name == "checkpoints"]
        for child in folders:
            if child.is_symlink() and (folder != place or child.resolve() in known):  # deeper ones may lead anywhere
                continue
            known.add(child.resolve())
            waiting.append(child)
    named = [folder for folder in holding if folder.name == "checkpoints"]
    return Below(named if len(named) == 1 else sorted(holding), looked, not waiting)


def _inside(folder: Path) -> tuple[list[Path], list[str]]:
    """The folders and the names of files in a folder but hidden folders, in order; nothing of one that cannot be read."""
    try:
        with os.scandir(folder) as entries:
            rows = sorted((entry.name, entry.is_dir()) for entry in entries)
    except OSError:
        return [], []
    return (
        [folder / name for name, is_folder in rows if is_folder and not name.startswith(".")],
        [name for name, is_folder in rows if not is_folder],
    )


def _holds(folder: Path, folders: Sequence[Path], files: Iterable[str]) -> bool:
    named = any(is_named_like_a_checkpoint(Path(name)) for name in files)
    return named or is_indivisible(folder) or bool(revisions(folder)) or bool(checkpoint_folders(folders))
