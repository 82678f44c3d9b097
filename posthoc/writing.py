"""Writing activations files: whole, or a part of one checkpoint; there completely or not at all."""

import functools
import itertools
import json
import math
import re
import secrets
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import h5py
import numpy as np

from posthoc import __version__
from posthoc.analysis.scales import octaves, token_lags, token_scales
from posthoc.errors import PosthocError
from posthoc.files import replacing
from posthoc.precision import survey
from posthoc.spool import Spooled, at_most, pieces
from posthoc.stamps import to_text
from posthoc.store import (
    FORMAT,
    FORMAT_VERSION,
    HALVED,
    PLACES,
    STORED,
    Array,
    Frame,
    Given,
    Layout,
    Stored,
)

IN_MEMORY = 2**26
"""Bytes up to which a file is put together in memory."""
THIRD = {
    "fluctuation": "scale",
    "autocovariance": "lag",
    "covariance": "other",
    "position_mean": "octave",
    "position_var": "octave",
}
"""What signals have in place of time."""
MOST_ATTACHED = 4000
"""To one scale of dimensions: what HDF5's list of them holds in 64 kB."""


@dataclass(frozen=True)
class Block:
    """An array of each checkpoint: what it is, and its shape without the dimension of the checkpoints."""

    stored: Stored
    shape: tuple[int, ...]

    @property
    def chunk(self) -> tuple[int, ...]:
        """Of one checkpoint; about so many bytes at a time. Of signals over time some channels of some samples, for these
        come batch by batch."""
        item = np.dtype(self.stored.dtype).itemsize
        if len(self.shape) < 3:
            first, *rest = self.shape
            return (1, at_most(first, math.prod(rest) * item), *rest)
        C, N, *rest = self.shape
        channels = at_most(C, math.prod(rest) * item)
        return (1, channels, at_most(N, channels * math.prod(rest) * item), *rest)


def write(path: Path, layout: Layout, frames: Sequence[Frame]) -> None:
    """Write a whole file, or a part of one checkpoint; it appears at `path` complete or not at all.

    A small one is put together in memory, for HDF5 does not come back in order from a disk that fills up under it;
    signals over time go through memory a few samples at a time.
    """
    named = {place for frame in frames for place in named_of(frame)}
    arrays = [_arrays(frame) for frame in frames]
    surveys = [{place: survey(array, _is_halved(place)) for place, array in row.items()} for row in arrays]
    blocks = joined([
        blocks_of(layout, {place: (array.shape, of[place].dtype) for place, array in row.items()})
        for row, of in zip(arrays, surveys, strict=True)
    ])  # fmt: skip
    size = sum(array.nbytes for row in arrays for array in row.values()) + 2**18
    size += 0 if layout.tokens is None else layout.tokens.nbytes
    form = Form(layout, len(frames), frozenset(named), tuple(blocks.items()))
    with _in_memory(path, size, form) if size <= IN_MEMORY else created(path, size, form) as file:
        nonfinite: list[Counter[str]] = [Counter() for _ in frames]
        for row, (array_of, surveyed) in enumerate(zip(arrays, surveys, strict=True)):
            for place, array in array_of.items():
                _put(file[place], row, array)
                if place.startswith("signals/"):
                    nonfinite[row][place.split("/", 2)[2]] += surveyed[place].nonfinite
        fill(file, frames, nonfinite)
        if any(frame.files for frame in frames):  # a part: what is put together of parts outlives its checkpoints
            texts = [to_text(frame.files) for frame in frames]
            describe(
                file.create_dataset("checkpoint/files", data=texts, dtype=h5py.string_dtype()), "files that were read"
            )


@dataclass(frozen=True)
class Form:
    """What two files have alike that differ in their numbers alone; named: groups and names of columns."""

    layout: Layout
    length: int
    named: frozenset[tuple[str, str]]
    blocks: tuple[tuple[str, Block], ...]


@contextmanager
def _in_memory(path: Path, size: int, form: Form) -> Iterator[h5py.File]:
    """A new file of about that size, put together in memory and written to `path` once it is filled."""
    access = _core(size)
    access.set_file_image(_empty(form))
    name = secrets.token_hex().encode()  # HDF5 refuses that of a file in the working directory
    with replacing(path) as temporary, h5py.File(h5py.h5f.open(name, h5py.h5f.ACC_RDWR, access)) as file:
        yield file
        _complete(file)
        file.flush()
        temporary.write_bytes(file.id.get_file_image())


def _core(size: int) -> h5py.h5p.PropFAID:
    """Access to a file that is in memory alone, all the room at once, for it grows by copying."""
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_fapl_core(size, False)
    access.set_fclose_degree(h5py.h5f.CLOSE_STRONG)
    return access


@functools.lru_cache(maxsize=1)
def _empty(form: Form) -> bytes:
    """A file of that form with nothing filled in; kept, for the parts of a run have one, and to fill it takes less time
    than to lay it out."""
    with h5py.File(h5py.h5f.create(b"empty", h5py.h5f.ACC_TRUNC, fapl=_core(2**18))) as file:
        _lay_out(file, form)
        file.flush()
        image: bytes = file.id.get_file_image()
        return image


def _complete(file: h5py.File) -> None:
    file.attrs["created"] = datetime.now(UTC).isoformat(timespec="seconds")
    file.attrs["complete"] = 1


def _arrays(frame: Frame) -> dict[str, Array | Spooled]:
    """A frame's arrays by their places."""
    given = {"": Given(frame.signals, frame.behaviour)} | {f"null/{name}/": null for name, null in frame.nulls.items()}
    arrays: dict[str, Array | Spooled] = {}
    for before, part in given.items():
        for signal, layers in part.signals.items():
            arrays |= {f"{before}signals/{signal}/{layer}": block for layer, block in layers.items()}
        arrays |= {f"{before}behaviour/{name}": array for name, array in part.behaviour.items()}
    for count, behaviour in frame.averages.items():
        arrays |= {f"average/{count}/behaviour/{name}": array for name, array in behaviour.items()}
    arrays |= {f"head/{name}": array for name, array in frame.head.items()}
    return arrays | {f"weights/{name}": array for name, array in frame.weights.items()}


def _is_halved(place: str) -> bool:
    return any(f"signals/{signal}/" in place for signal in HALVED)


def _put(dataset: h5py.Dataset, row: int, array: Array | Spooled) -> None:
    """An array in the row of its checkpoint; from a spool whole chunks at a time."""
    if not isinstance(array, Spooled):
        dataset[row] = array.astype(dataset.dtype, copy=False)
        return
    start, step = 0, dataset.chunks[2]
    for piece in pieces(array, step):
        dataset[row, :, start : start + step] = piece.astype(dataset.dtype, copy=False)
        start += step


def named_of(frame: Frame) -> dict[tuple[str, str], float]:
    """What of a frame has a column under a name of its own, by the column's group and name."""
    groups = {"recorded": frame.recorded, "score": frame.scores}
    return {(group, name): value for group, values in groups.items() for name, value in values.items() if name}


def blocks_of(layout: Layout, arrays: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]) -> dict[str, Block]:
    """What is to be laid out, signals first, for arrays of one checkpoint of these shapes and types by their places."""
    blocks = {}
    meanings = layout.recording.provenance.signals
    groups = [
        "",
        *(before for name in layout.recording.identity.controls if _any_in(arrays, before := f"null/{name}/")),
    ]
    for before, signal, layer in itertools.product(groups, layout.signals, layout.channels):
        shape, dtype = arrays[f"{before}signals/{signal}/{layer}"]
        dimensions = (f"unit.{layer}", "sample", f"{THIRD.get(signal, 'time')}.{signal}.{layer}")[: len(shape)]
        stored = Stored(meanings.get(signal, signal), "<f2" if dtype == np.float16 else "<f4", dimensions, "1")
        blocks[f"{before}signals/{signal}/{layer}"] = Block(stored, shape)
    provenance = layout.recording.provenance
    loss = replace(STORED["behaviour/loss"], meaning=f"{provenance.loss} of each sample", units=provenance.unit)
    table = STORED | {"behaviour/loss": loss}
    groups += [f"average/{count}/" for count in layout.recording.identity.averaged]
    for before, (place, stored) in itertools.product(groups, table.items()):
        if (here := before + place) in arrays:
            blocks[here] = Block(stored, arrays[here][0])
    return blocks


def _any_in(arrays: Mapping[str, object], before: str) -> bool:
    return any(place.startswith(before) for place in arrays)


def joined(rows: Sequence[dict[str, Block]]) -> dict[str, Block]:
    """What all of these have, in the wider of two types."""
    joined = rows[0]
    for row in rows[1:]:
        joined = {place: max(block, row[place], key=_width) for place, block in joined.items() if place in row}
    return joined


def _width(block: Block) -> int:
    return np.dtype(block.stored.dtype).itemsize


@contextmanager
def created(path: Path, size: int, form: Form) -> Iterator[h5py.File]:
    """A new file of about that size and of that form, moved to `path` once it is filled."""
    if shutil.disk_usage(path.parent).free < size:
        raise PosthocError(f"Cannot write {path}: No space left on device (about {size / 1e6:.0f} MB are needed).")
    try:
        # No lock: the name is this process's alone, and some network file systems have none.
        with replacing(path) as temporary, h5py.File(temporary, "w", locking=False) as file:
            _lay_out(file, form)
            yield file
            file.flush()
            _complete(file)
    except RuntimeError as error:  # HDF5's, on closing a file that it could not write
        reason = re.search(r"error message = '([^']+)'", str(error))
        raise PosthocError(f"Cannot write {path}: {reason[1] if reason else error}.") from error


def _lay_out(file: h5py.File, form: Form) -> None:
    """Every dataset in its place, the rows of the checkpoints empty."""
    layout, length = form.layout, form.length
    file.attrs["format"] = FORMAT
    file.attrs["format_version"] = FORMAT_VERSION
    file.attrs["created_by"] = f"posthoc {__version__}"
    file.attrs["recording"] = json.dumps(layout.recording.to_dict())
    text = h5py.string_dtype()
    for name, meaning in (("epoch", "epoch of each checkpoint, -1: unknown"), ("step", "step, -1: unknown")):
        describe(file.create_dataset(name, (length,), "i8"), meaning)
    places = PLACES[FORMAT_VERSION]
    describe(file.create_dataset(places.index, data=layout.index), "position of each sample in its data set")
    if layout.tokens is not None:
        tokens = file.create_dataset(
            "sample/token", data=layout.tokens, dtype="<u4", chunks=(1, layout.tokens.shape[1])
        )
        describe(tokens, "ids of the tokens of each sample")
    if layout.text_bytes is not None:
        sizes = file.create_dataset("sample/bytes", data=layout.text_bytes, dtype="<i8")
        describe(sizes, "bytes in UTF-8 of the text of each sample but its first token")
    if layout.weights:
        names = file.create_dataset(
            "weights/tensor", data=list(map(to_bytes, layout.weights)), dtype=h5py.string_dtype()
        )
        describe(names, "name of each tensor").make_scale()
        counts = np.array(list(layout.weights.values()), "i8")
        describe(file.create_dataset("weights/size", data=counts), "numbers in each tensor")
    if layout.label is not None:
        describe(file.create_dataset(places.label, data=layout.label), "class of each sample")
    describe(file.create_dataset("checkpoint/path", (length,), text), "file, relative to the run's folder")
    describe(file.create_dataset("checkpoint/sha256", (length,), text), "digest of that file")
    if layout.recording.identity.averaged:
        column = file.create_dataset("checkpoint/averaged", (length,), text)
        describe(column, "digest of what its means of weights are made of, beside its own")
    describe(file.create_dataset("checkpoint/nonfinite", (length,), "i8"), "weights that are NaN or infinite")
    loss, unit = layout.recording.provenance.loss, layout.recording.provenance.unit
    describe(file.create_dataset("probe/loss", (length,), "f8"), f"mean {loss} over the probe", unit)
    describe(file.create_dataset("probe/accuracy", (length,), "f8"), "share of the probe classified correctly", "1")
    for layer in layout.channels:
        column = file.create_dataset(f"nonfinite/{layer}", (length,), "i8")
        describe(column, f"values of the signals of {layer} that are NaN or infinite")
    file.create_group("recorded")
    meanings = {"recorded": "as the checkpoint says of itself", "score": "score on the probe"}
    for group, name in sorted(form.named):
        column = file.create_dataset(f"{group}/{_escaped(name)}", (length,), "f8", fillvalue=math.nan)
        describe(column, meanings[group])
    _name_dimensions(file, layout, dict(form.blocks), length)


def create(group: h5py.Group, place: str, block: Block, length: int) -> h5py.Dataset:
    dataset = group.create_dataset(place, (length, *block.shape), block.stored.dtype, chunks=block.chunk)
    return describe(dataset, block.stored.meaning, block.stored.units)


def _name_dimensions(file: h5py.File, layout: Layout, blocks: Mapping[str, Block], length: int) -> None:
    """Make the blocks, with scales for their dimensions, and for the columns of a checkpoint.

    The scales lie in each group, for netCDF looks for a dimension in a variable's own group and those around it. Signals
    come first, for a scale takes a bounded number of datasets.
    """
    known = {"checkpoint": np.arange(length), "sample": layout.index}
    known |= {f"unit.{layer}": channels for layer, channels in layout.channels.items()}
    if layout.tokens is not None:
        T = layout.tokens.shape[1]
        for layer, channels in layout.channels.items():
            known |= {f"scale.fluctuation.{layer}": token_scales(T), f"lag.autocovariance.{layer}": token_lags(T)}
            known |= {f"octave.position_{name}.{layer}": octaves(T) for name in ("mean", "var")}
            known |= {f"other.covariance.{layer}": channels}
    meanings = {"checkpoint": "row of each checkpoint", "sample": "position of each sample in its data set"}
    scales: dict[str, h5py.Dataset] = {place: file[place] for place in ("weights/tensor", "epoch") if place in file}
    taken: Counter[str] = Counter()

    def attach(dataset: h5py.Dataset, axis: int, name: str) -> None:
        if taken[name] < MOST_ATTACHED:
            h5py.h5ds.attach_scale(dataset.id, scales[name].id, axis)
            taken[name] += 1

    for place, block in blocks.items():
        dataset = create(file, place, block, length)
        group = place.split("/")[0]
        for axis, (name, size) in enumerate(zip(("checkpoint", *block.stored.dimensions), dataset.shape, strict=True)):
            if (here := f"{group}/{name}") not in scales:
                scales[here] = file.create_dataset(here, data=known.get(name, np.arange(size)))
                describe(scales[here], meanings.get(name, f"number of each {name.split('.')[0]}")).make_scale()
            attach(dataset, axis, here)
    scales["epoch"].make_scale()
    scores = file["score"].values() if "score" in file else ()
    for column in (file["step"], file["probe/loss"], file["probe/accuracy"], *scores, *file["recorded"].values()):
        attach(column, 0, "epoch")


def describe(dataset: h5py.Dataset, meaning: str, units: str | None = None) -> h5py.Dataset:
    dataset.attrs["long_name"] = meaning
    if units:
        dataset.attrs["units"] = units
    return dataset


def fill(file: h5py.File, frames: Sequence[Frame], nonfinite: Sequence[Mapping[str, int]]) -> None:
    """The columns, of all checkpoints; nonfinite: by layer, of each of them."""
    for frame in frames:
        for name, number in (("epoch", frame.epoch), ("step", frame.step)):
            if number is not None and not 0 <= number < 2**63:
                raise PosthocError(
                    f"{frame.path}: {name} {number} is beyond what an activations file can hold; leave it out."
                )
    columns: dict[str, list[Any]] = {
        "epoch": [-1 if frame.epoch is None else frame.epoch for frame in frames],
        "step": [-1 if frame.step is None else frame.step for frame in frames],
        "checkpoint/path": [to_bytes(frame.path) for frame in frames],
        "checkpoint/sha256": [frame.sha256 for frame in frames],
        "probe/loss": [frame.loss for frame in frames],
        "probe/accuracy": [frame.accuracy for frame in frames],
        "checkpoint/nonfinite": [frame.nonfinite for frame in frames],
    }
    if "averaged" in file["checkpoint"]:
        columns["checkpoint/averaged"] = [frame.averaged for frame in frames]
    named = [named_of(frame) for frame in frames]
    for group, name in set().union(*named):
        columns[f"{group}/{_escaped(name)}"] = [_float(row.get((group, name), math.nan)) for row in named]
    for layer in nonfinite[0]:
        columns[f"nonfinite/{layer}"] = [counts[layer] for counts in nonfinite]
    for place, values in columns.items():
        file[place][...] = values


def to_bytes(text: str) -> bytes:
    """A text as HDF5 takes it; a file's name that is no UTF-8 as the bytes that it is."""
    try:
        content = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        content = text.encode("utf-8", "backslashreplace")
    return content.replace(b"\0", b"\\0")


def _float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:  # a whole number of 400 digits
        return math.inf if value > 0 else -math.inf


def _escaped(name: str) -> str:
    """A name that HDF5 takes as one: without what parts its paths, ends its strings, or is no text."""
    text = name.encode("utf-8", "backslashreplace").decode()
    return "".join(quote(sign, "") if sign in "/%" or not sign.isprintable() else sign for sign in text).replace(
        ".", "%2E", 0 if text.strip(".") else -1
    )
