"""What a format is, the table of them, and which of them a file or folder is of."""

import io
import pickle
import re
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posthoc.errors import PosthocError
from posthoc.files import open_regular
from posthoc.replay.source import Source
from posthoc.replay.strangers import NoWeightsError, StrangerError, UnsupportedError, nothing_known, stranger
from posthoc.replay.tensors import Memory

if TYPE_CHECKING:
    from torch import Tensor

HEAD = 4096

# What the libraries raise when a file is not what it should be; an unpickler fed with noise stumbles anywhere.
DAMAGE = (
    pickle.UnpicklingError, zipfile.BadZipFile, struct.error, EOFError, RuntimeError, ValueError,
    LookupError, TypeError, AttributeError, AssertionError, OverflowError, MemoryError, NotImplementedError,
)  # fmt: skip


@dataclass(frozen=True)
class Preview:
    """What is seen of a path before it is opened: a file's first 4,096 bytes, last 8 and size, or a folder's names."""

    path: Path
    head: bytes = b""
    tail: bytes = b""
    size: int = 0
    is_folder: bool = False
    names: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Content:
    """An opened checkpoint.

    tree: its values, nested as saved, with tensors that are not read yet (`Stored`, `Deferred`); recorded: what it says
    beside its weights (epoch, step, numbers), by name; read: fills memory with the bytes of some of the tensors, each from
    its first number to its last.
    """

    tree: Any
    recorded: Mapping[Any, Any]
    read: Callable[[Memory], None]


@dataclass(frozen=True)
class Format:
    """A form in which checkpoints lie on a disk.

    matches: whether a file or folder is of it, by its first bytes or the names in it; open: reads it but for its
    tensors, all that is made being charged to the source's budget; files: those of a checkpoint, itself first, where it
    has several; endings: how names of its files end, in small letters: folders are searched for them, and they say what
    a damaged file was; inside: names of which one makes a folder certainly a checkpoint; divisible: the files of its
    folders may be checkpoints of their own, unless such a name is among them or the folder's name counts epochs or steps;
    write: writes a small sound one, for tests.

    `open` and `files` open files through the source alone. What they raise for a damaged file (ValueError, EOFError,
    LookupError, TypeError, ...) becomes one sentence; UnsupportedError is for what is sound and not read.
    """

    name: str
    matches: Callable[[Preview], bool]
    open: Callable[[Source, Path], Content]
    files: Callable[[Source, Path], list[Path]] | None = None
    endings: tuple[str, ...] = ()
    inside: tuple[str, ...] = ()
    divisible: bool = False
    write: Callable[[Mapping[str, "Tensor"], Path], object] | None = None

    def names(self, path: Path) -> bool:
        """Whether the name of `path` is one for this format."""
        return path.name.lower().endswith(self.endings)


FORMATS: dict[str, Format] = {}
"""By name. Of several that match, the one registered last is taken."""


def endings() -> tuple[str, ...]:
    """The endings of checkpoints' names, in small letters."""
    return tuple(dict.fromkeys(ending for form in FORMATS.values() for ending in form.endings))


def is_named_like_a_checkpoint(path: Path) -> bool:
    """Whether the name ends as those of checkpoints do, in small letters or capitals.

    >>> is_named_like_a_checkpoint(Path("epoch_1.PTH")), is_named_like_a_checkpoint(Path("epoch_1"))
    (True, False)
    """
    return path.name.lower().endswith(endings())


def preview(path: Path, source: Source | None = None) -> Preview:
    """Look at a file or folder; OSError or PosthocError where that cannot be done."""
    if path.is_dir():
        return Preview(path, is_folder=True, names=frozenset(child.name for child in path.iterdir()))
    with source.open(path) if source else open_regular(path) as file:
        head = file.read(HEAD)
        size = file.seek(0, io.SEEK_END)
        file.seek(max(size - 8, 0))
        return Preview(path, head, file.read(8), size)


def format_of(seen: Preview) -> Format | None:
    """The format that a file or folder is of by what is in it."""
    return next((form for form in reversed(FORMATS.values()) if form.matches(seen)), None)


def looks_like_a_checkpoint(path: Path) -> bool:
    """Whether `path` is a regular file in one of the formats, by content, whatever its name says.

    A pickle that torch did not write counts only where its name says that it is a checkpoint.
    """
    try:
        return not path.is_dir() and format_of(preview(path)) is not None
    except (OSError, PosthocError):
        return False


def folder_formats(folder: Path) -> list[Format]:
    """The formats that a folder is of; of none where it may not be looked into."""
    try:
        seen = preview(folder)
    except OSError:
        return []
    return [form for form in FORMATS.values() if seen.is_folder and form.matches(seen)]


def is_indivisible(folder: Path) -> bool:
    """Whether the files in `folder` are parts of one checkpoint and none is a checkpoint of its own."""
    return any(not form.divisible for form in folder_formats(folder))


def format_to_read(seen: Preview) -> Format:
    """The format to read a path in; StrangerError where it is a file of another kind, NoWeightsError for a folder."""
    if form := format_of(seen):
        return form
    if seen.is_folder:
        names = ", ".join(name for form in FORMATS.values() for name in form.inside)
        raise NoWeightsError(f"{seen.path} holds no weights (looked for {names}); give a folder that does.")
    if what := stranger(seen.path, seen.head, seen.tail):
        raise StrangerError(seen.path, what)
    # Damaged, then, as its own format says best, or a pickle, whose oldest forms begin with anything.
    return next((form for form in FORMATS.values() if form.names(seen.path)), FORMATS["torch pickle"])


def open_content(source: Source, path: Path) -> Content:
    """Open a checkpoint, in whatever format; raises as `Format.open` does."""
    seen = preview(path, source)
    content = format_to_read(seen).open(source, path)
    if not seen.is_folder:
        return content
    return replace(content, recorded={**content.recorded, **_trainer_state(source, path)})


def _trainer_state(source: Source, folder: Path) -> dict[str, Any]:
    """Step, epoch and last evaluation that Transformers' Trainer wrote beside the weights; the step is in the name."""
    recorded: dict[str, Any] = {}
    step = re.fullmatch(r".*\D(\d{1,18})", folder.name)
    if folder.name.startswith("checkpoint-") and step:
        recorded["global_step"] = int(step[1])
    path = folder / "trainer_state.json"
    if not path.is_file():
        return recorded
    state = source.read_json(path)
    try:
        recorded |= {key: state[key] for key in ("epoch", "global_step") if key in state}
        for row in state.get("log_history", []):
            if row.get("step") == state.get("global_step"):
                recorded |= {key: value for key, value in row.items() if key.startswith("eval_") or key == "loss"}
    except (TypeError, AttributeError) as error:
        raise PosthocError(f"{path} is not what Transformers' Trainer writes ({error}); mend or remove it.") from error
    return recorded


def files_of(path: Path, source: Source | None = None) -> list[Path]:
    """The files that hold the weights of a checkpoint."""
    source = source or Source(path)
    with readable(path):
        form = format_to_read(preview(path, source))
        return form.files(source, path) if form.files else [path]


def folder_of(path: Path) -> Path:
    """The folder in which a checkpoint's weights lie, and what describes them."""
    return files_of(path)[0].parent


def parts_of(path: Path) -> set[Path]:
    """The files of a checkpoint beside the one that it is opened by."""
    several = path.is_dir() or any(form.files and form.names(path) for form in FORMATS.values() if form.endings)
    return set(files_of(path)) - {path} if several else set()


def digest(path: Path, source: Source | None = None) -> str:
    """SHA-256 of a checkpoint: of its file, or of the names and digests of its files."""
    source = source or Source(path)
    with readable(path):
        return source.digest(files_of(path, source))


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn what the libraries raise for damaged files into one sentence."""
    try:
        yield
    except FileNotFoundError as error:
        raise PosthocError(f"No such file: {error.filename or path}.") from None
    except PosthocError:
        raise
    except UnsupportedError as error:
        raise PosthocError(f"{path} is not read: {error}; {error.remedy}.") from error
    except DAMAGE as error:
        if path.is_file() and not format_of(seen := preview(path)) and (what := nothing_known(seen.head)):
            raise StrangerError(path, what) from error
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        if isinstance(error, KeyError):  # whose text is a key alone
            reason = "it holds what torch.save does not write"
        if path.is_file() and not path.stat().st_size:
            reason = "it is empty"
        raise PosthocError(f"{path} is damaged or cut short ({reason}); remove it or copy it again.") from error
    except OSError as error:
        raise PosthocError(f"Cannot read {path}: {error.strerror or error}.") from error
