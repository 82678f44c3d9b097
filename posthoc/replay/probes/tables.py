"""Tables on disk, read by pyarrow: what the library datasets saves, and files of Parquet or Arrow. No code of theirs runs."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from posthoc.errors import PosthocError
from posthoc.files import open_regular, read_json

if TYPE_CHECKING:
    import pyarrow as pa

ARROW = (".arrow", ".feather")
ENDINGS = (".parquet", *ARROW)
SPLITS = ("test", "testing", "validation", "valid", "val", "dev", "eval", "train", "training")
"""Names of splits as they stand in names of files and folders, the one to be taken first."""
ROWS = 1024
"""So many rows are unpacked at a time."""


@dataclass(frozen=True)
class Column:
    """kind: image, number, array, text, or what pyarrow calls the type; classes: how many, where the labels have names."""

    name: str
    kind: str
    classes: int | None = None


@dataclass(frozen=True)
class Table:
    """The rows of one split, in the order of its files. split: its name, if it has one; others: those beside it."""

    name: str
    files: tuple[Path, ...]
    split: str | None = None
    others: tuple[str, ...] = ()

    @cached_property
    def _opened(self) -> "list[_File]":
        files = [_open(path) for path in self.files]
        for file in files[1:]:
            if file.schema.names != files[0].schema.names:
                raise PosthocError(f"{file.path} has other columns than {files[0].path}; give one of them.")
        return files

    def __len__(self) -> int:
        return sum(file.rows for file in self._opened)

    @cached_property
    def columns(self) -> dict[str, Column]:
        """By their names."""
        schema = self._opened[0].schema
        features = _features(schema)
        return {field.name: _column(field.name, field.type, features.get(field.name)) for field in schema}

    def read(self, columns: Sequence[str], rows: NDArray[np.int64]) -> "pa.Table":
        """Those rows, in ascending order, of those columns."""
        import pyarrow as pa

        taken, start = [], 0
        for file in self._opened:
            inside = rows[(rows >= start) & (rows < start + file.rows)] - start
            start += file.rows
            if len(inside):
                with refusing(file.path):
                    taken += list(file.take(columns, inside))
        with refusing(self._opened[0].path):
            return pa.Table.from_batches(taken).select(list(columns))


@dataclass(frozen=True)
class _File:
    """An open file: a table in memory (mapped), or a ParquetFile."""

    path: Path
    content: Any
    rows: int
    schema: "pa.Schema"

    def take(self, columns: Sequence[str], rows: NDArray[np.int64]) -> "Iterator[pa.RecordBatch]":
        """Those rows, in ascending order."""
        import pyarrow as pa

        for start, batch in self._batches(columns, rows):
            inside = rows[(rows >= start) & (rows < start + batch.num_rows)] - start
            if len(inside):
                yield batch.take(pa.array(inside))

    def _batches(self, columns: Sequence[str], rows: NDArray[np.int64]) -> "Iterator[tuple[int, pa.RecordBatch]]":
        """Batches with the row that each begins at; what holds none of the rows may be left out."""
        if not hasattr(self.content, "metadata"):
            start = 0
            for batch in self.content.select(list(columns)).to_batches(ROWS):
                yield start, batch
                start += batch.num_rows
            return
        end = 0
        for group in range(self.content.metadata.num_row_groups):
            start, end = end, end + self.content.metadata.row_group(group).num_rows
            if not ((rows >= start) & (rows < end)).any():
                continue
            for batch in self.content.iter_batches(ROWS, row_groups=[group], columns=list(columns)):
                yield start, batch
                start += batch.num_rows


@contextmanager
def refusing(path: Path) -> Iterator[None]:
    """Raise PosthocError for whatever pyarrow raises."""
    try:
        yield
    except (PosthocError, MemoryError):
        raise
    except Exception as error:  # torn, no such file at all, types that pyarrow cannot read
        from posthoc.replay.forward import error_line

        raise PosthocError(f"{path} is not a readable table ({error_line(error)}); save it again.") from error


def require_pyarrow() -> None:
    """Raise PosthocError where pyarrow is missing."""
    if find_spec("pyarrow") is None:
        raise PosthocError(
            "Tables are read by pyarrow, of the extra transformers: pip install 'posthoc[transformers]'."
        )


def find_table(place: Path, split: str | None = None) -> Table:
    """The table at a place: a file, or a folder of files or of what `save_to_disk` left; only names and JSON are read.

    split: which to take of several; otherwise the first of `SPLITS` that is there.
    """
    name = f"dataset:{place.name or place}"
    if place.is_file():
        if place.suffix not in ENDINGS:
            raise PosthocError(f"{place} is no table; give a file {' or '.join(ENDINGS)}, or a folder.")
        splits: dict[str | None, list[Path]] = {_split_of(place.stem): [place]}
    elif not place.is_dir():
        raise PosthocError(f"No such file or folder: {place}.")
    elif (place / "dataset_dict.json").is_file():
        names = _names(place / "dataset_dict.json", "splits")
        chosen = _chosen(place, names, split)
        return Table(name, _saved(place / chosen), chosen, tuple(name for name in names if name != chosen))
    elif (place / "state.json").is_file():
        splits = {None: list(_saved(place))}
    else:
        splits = _files(place)
    if set(splits) == {None} and split is None:
        return Table(name, tuple(splits[None]))
    chosen = _chosen(place, [name for name in splits if name], split)
    return Table(name, tuple(splits[chosen]), chosen, tuple(name for name in splits if name and name != chosen))


def _files(folder: Path) -> dict[str | None, list[Path]]:
    """The files of a folder, and of the folders in it, by split; all of them together where none is named for one."""
    paths = sorted(path for depth in ("*", "*/*") for path in folder.glob(depth) if path.suffix in ENDINGS)
    paths = [path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    if not paths:
        raise PosthocError(
            f"No table in {folder}: give a folder that datasets saved, or of files {', '.join(ENDINGS)}."
        )
    splits: dict[str | None, list[Path]] = {}
    for path in paths:
        split = _split_of(path.stem) or (_split_of(path.parent.name) if path.parent != folder else None)
        splits.setdefault(split, []).append(path)
    if len(splits) > 1:
        splits.pop(None, None)
    for files in splits.values():
        if len(parents := {path.parent for path in files}) > 1:
            raise PosthocError(
                f"{folder} holds several tables ({', '.join(sorted(p.name for p in parents))}); give one folder."
            )
    return splits


def _split_of(name: str) -> str | None:
    """The split that a file or folder is named for.

    >>> _split_of("test-00000-of-00001"), _split_of("mnist-train"), _split_of("latest")
    ('test', 'train', None)
    """
    words = re.findall(r"[a-z]+", name.lower())
    return next((word for word in reversed(words) if word in SPLITS), None)


def _chosen(place: Path, names: Sequence[str], split: str | None) -> str:
    if split in names:
        return str(split)
    held = f"holds {', '.join(names)}" if names else "has no splits"
    if split is not None:
        raise PosthocError(f"--split {split}: {place} {held}; name a split that it has, or none.")
    usual = [name for name in SPLITS if name in names] or (list(names) if len(names) == 1 else [])
    if not usual:
        raise PosthocError(f"{place} {held}; say with --split which to take.")
    return usual[0]


def _saved(folder: Path) -> tuple[Path, ...]:
    """The files of a data set as `save_to_disk` leaves it."""
    state = _object(folder / "state.json")
    if state.get("_indices_data_files"):
        raise PosthocError(f"{folder} was saved with a selection of its rows beside them; save it again.")
    files = state.get("_data_files")
    names = [row.get("filename") if isinstance(row, dict) else None for row in files] if isinstance(files, list) else []
    if not names or not all(map(_is_name, names)):
        raise PosthocError(f"{folder / 'state.json'} does not say which files hold the rows; save the data set again.")
    return tuple(folder / str(name) for name in names)


def _names(path: Path, key: str) -> list[str]:
    names = _object(path).get(key)
    if not isinstance(names, list) or not names or not all(map(_is_name, names)):
        raise PosthocError(f"{path} does not say which {key} there are.")
    return names


def _is_name(name: object) -> bool:
    """Whether it names what lies in the same folder."""
    return isinstance(name, str) and name not in ("", ".", "..") and not re.search(r"[/\\\0]", name)


def _object(path: Path) -> dict[str, Any]:
    content = read_json(path, by="datasets")
    return content if isinstance(content, dict) else {}


def _open(path: Path) -> _File:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with refusing(path), open_regular(path) as file:
        if path.suffix not in ARROW:
            content = pq.ParquetFile(str(path))
            return _File(path, content, content.metadata.num_rows, content.schema_arrow)
        whole = file.read(6) == b"ARROW1"  # else a stream, as datasets writes it
        source = pa.memory_map(str(path))
        reader = pa.ipc.open_file(source) if whole else pa.ipc.open_stream(source)
        table = reader.read_all()
        return _File(path, table, table.num_rows, table.schema)


def _features(schema: "pa.Schema") -> Mapping[str, Any]:
    """What datasets says of the columns, nothing where it says nothing that can be read."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}
    return features if isinstance(features, dict) else {}


def _column(name: str, kind: "pa.DataType", feature: Any) -> Column:
    from pyarrow import types

    feature = feature if isinstance(feature, dict) else {}
    kind = getattr(kind, "storage_type", kind)
    fields = {kind.field(k).name for k in range(kind.num_fields)} if types.is_struct(kind) else set()
    if types.is_binary(kind) or types.is_large_binary(kind) or {"bytes", "path"} <= fields:
        return Column(name, "image")
    if types.is_string(kind) or types.is_large_string(kind):
        return Column(name, "text")
    if _is_number(kind):
        names = feature.get("names")
        return Column(
            name, "number", len(names) if feature.get("_type") == "ClassLabel" and isinstance(names, list) else None
        )
    inner = kind
    while types.is_list(inner) or types.is_large_list(inner) or types.is_fixed_size_list(inner):
        inner = getattr(inner.value_type, "storage_type", inner.value_type)
    return Column(name, "array" if inner is not kind and _is_number(inner) else str(kind).partition("<")[0])


def _is_number(kind: "pa.DataType") -> bool:
    from pyarrow import types

    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind))
