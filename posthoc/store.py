"""activations.h5, the door between the two wings: schema, parts, merge, open.

Both wings read and write this format (version 1) and nothing else of each other:

    /                   attributes: format, format_version, created_by, created, config (JSON), probe_sha256, complete
    /epoch /step [E]    -1: unknown            /image /label [N]
    /checkpoint/path /checkpoint/sha256 [E]    /probe/loss /probe/accuracy [E]    /recorded/<name> [E]
    /signals/<signal>/<layer> [E, C, N] f4     /channel/<layer> [C]
    /checkpoint/nonfinite [E], /nonfinite/<layer> [E]: how many weights, and values of the signals, are NaN or infinite
    /skipped/path /skipped/reason [S]          checkpoints that could not be replayed, where any were skipped
"""

import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from posthoc import __version__
from posthoc.errors import PosthocError
from posthoc.files import replacing

FORMAT = "posthoc-activations"
FORMAT_VERSION = 1
CHUNK_BYTES = 2**20
MEANING = {
    "mean": "spatial mean of the feature map, per channel and image",
    "var": "spatial variance (population) of the feature map, per channel and image",
}


@dataclass(frozen=True)
class Frame:
    """What replaying one checkpoint gives. signals: signal -> layer -> float32 [C, N]; nonfinite: of its weights."""

    path: str
    sha256: str
    epoch: int | None
    step: int | None
    loss: float
    accuracy: float
    recorded: Mapping[str, float]
    signals: Mapping[str, Mapping[str, NDArray[np.float32]]]
    nonfinite: int = 0


@dataclass(frozen=True)
class Plan:
    """What all frames of one file share: how they were made, on which images, which channels of which layers."""

    config: dict[str, Any]
    image: NDArray[np.int64]
    label: NDArray[np.int64]
    channels: dict[str, NDArray[np.int64]]


class Activations:
    """An activations file, open for reading. Use as a context manager, or call `close`.

    epochs, steps: int64 [E], -1 where unknown; labels, images: int64 [N]; loss, accuracy: float64 [E], measured on the
    probe; recorded: name -> float64 [E], what the checkpoints said of themselves; layers in the network's order;
    channels: layer -> int64 [C_l], which channels of the layer were recorded; nonfinite_weights and nonfinite[layer]:
    int64 [E], how many weights, and values of the signals, are NaN or infinite; skipped: path and reason of the
    checkpoints that could not be replayed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = _open(path)
        try:
            self.config: dict[str, Any] = json.loads(self._file.attrs["config"])
            self.created = str(self._file.attrs["created"])
            self.probe_sha256 = str(self._file.attrs["probe_sha256"])
            self.layers: tuple[str, ...] = tuple(layer["name"] for layer in self.config["layers"])
            self.signals: tuple[str, ...] = tuple(self.config["signals"])
            self.epochs = self._file["epoch"][:]
            self.steps = self._file["step"][:]
            self.images = self._file["image"][:]
            self.labels = self._file["label"][:]
            self.channels = {layer: self._file[f"channel/{layer}"][:] for layer in self.layers}
            self.checkpoints: tuple[str, ...] = tuple(self._file["checkpoint/path"].asstr()[:])
            self.checkpoint_sha256: tuple[str, ...] = tuple(self._file["checkpoint/sha256"].asstr()[:])
            self.loss = self._file["probe/loss"][:]
            self.accuracy = self._file["probe/accuracy"][:]
            self.recorded = {name: column[:] for name, column in self._file["recorded"].items()}
            zeros = np.zeros(len(self.epochs), dtype=np.int64)  # files of earlier versions do not say
            said = self._file.get("nonfinite", {})
            self.nonfinite = {layer: said[layer][:] if layer in said else zeros for layer in self.layers}
            self.nonfinite_weights = (
                self._file["checkpoint/nonfinite"][:] if "checkpoint/nonfinite" in self._file else zeros
            )
            skipped = [
                self._file[f"skipped/{name}"].asstr()[:] for name in ("path", "reason") if "skipped" in self._file
            ]
            self.skipped: tuple[tuple[str, str], ...] = tuple(zip(*skipped, strict=True))
            for signal in self.signals:
                for layer in self.layers:
                    shape = (len(self.epochs), len(self.channels[layer]), len(self.labels))
                    if self._file[f"signals/{signal}/{layer}"].shape != shape:
                        raise ValueError(f"/signals/{signal}/{layer} is not of shape {shape}")
        except (KeyError, ValueError, OSError, TypeError) as error:
            self._file.close()
            raise PosthocError(f"{path} is damaged ({error}); extract it again.") from error

    def __len__(self) -> int:
        return len(self.epochs)

    def __enter__(self) -> "Activations":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; reading signals is over."""
        self._file.close()

    @property
    def units(self) -> list[tuple[str, int]]:
        """Layer and channel of every row that `read` returns."""
        return [(layer, int(channel)) for layer in self.layers for channel in self.channels[layer]]

    def read(self, signal: str, row: int) -> NDArray[np.float32]:
        """The signal of the checkpoint in row `row` (0..E-1), float32 [U, N], the layers' channels one after another."""
        if signal not in self.signals:
            raise PosthocError(f"{self.path} holds no signal {signal!r}, only {', '.join(self.signals)}.")
        try:
            return np.concatenate([self._file[f"signals/{signal}/{layer}"][row] for layer in self.layers])
        except OSError as error:
            raise PosthocError(f"{self.path} is damaged ({signal} of row {row}: {error}); extract it again.") from error


def open_activations(path: str | os.PathLike[str]) -> Activations:
    """Open an activations file for reading.

    Raises PosthocError where it is absent, not an activations file, of a later format, or torn.
    """
    return Activations(Path(path))


def write(path: Path, plan: Plan, frames: Sequence[Frame]) -> None:
    """Write a whole file, or a part of one checkpoint; it appears at `path` complete or not at all.

    It is put together in memory: HDF5 does not come back in order from a disk that fills up under it.
    """
    recorded = {name for frame in frames for name in frame.recorded}
    with replacing(path) as temporary:
        blocks = [block for frame in frames for layers in frame.signals.values() for block in layers.values()]
        room = sum(block.nbytes for block in blocks) + 2**18  # at once, for it grows by copying
        with h5py.File(path.name, "w", driver="core", backing_store=False, block_size=room) as file:
            _lay_out(file, plan, len(frames), sorted(recorded))
            for row, frame in enumerate(frames):
                _fill(file, row, frame)
            file.attrs["complete"] = 1
            file.flush()
            image = file.id.get_file_image()
        temporary.write_bytes(image)


def merge(path: Path, parts: Sequence[Path], skipped: Sequence[tuple[str, str]] = ()) -> None:
    """Write the rows of `parts`, in their order, as one file; blocks are copied byte for byte.

    `skipped`: path and reason of the checkpoints that have no part.
    """
    names: set[str] = set()
    size = 0
    for part in parts:
        size += part.stat().st_size
        with Activations(part) as one:
            names |= set(one.recorded)
            plan = Plan(one.config, one.images, one.labels, one.channels)
    if shutil.disk_usage(path.parent).free < size:
        raise PosthocError(f"Cannot write {path}: No space left on device (about {size / 1e6:.0f} MB are needed).")
    with _created(path, plan, len(parts), names) as file:
        for row, part in enumerate(parts):
            with Activations(part) as one:
                _copy(file, row, one)
        if skipped:
            for name, column in zip(("path", "reason"), zip(*skipped, strict=True), strict=True):
                file.create_dataset(f"skipped/{name}", data=list(column), dtype=h5py.string_dtype())


def _copy(file: h5py.File, row: int, one: Activations) -> None:
    """Copy a part's only row: numbers through memory, the signals' blocks byte for byte."""
    theirs = one._file
    for group in ("checkpoint", "probe", "recorded", "nonfinite"):
        for name, column in theirs[group].items():
            file[f"{group}/{name}"][row] = column[0]
    for name in ("epoch", "step"):
        file[name][row] = theirs[name][0]
    for signal in one.signals:
        for layer in one.layers:
            source, target = (some[f"signals/{signal}/{layer}"].id for some in (theirs, file))
            for k in range(source.get_num_chunks()):
                place = source.get_chunk_info(k).chunk_offset
                mask, block = source.read_direct_chunk(place)
                target.write_direct_chunk((row, *place[1:]), block, mask)


@contextmanager
def _created(path: Path, plan: Plan, length: int, recorded: set[str]) -> Iterator[h5py.File]:
    """A new file with every dataset in place and its rows empty, moved to `path` once they are filled."""
    try:
        # No lock: the name is this process's own, and some network file systems have none.
        with replacing(path) as temporary, h5py.File(temporary, "w", locking=False) as file:
            _lay_out(file, plan, length, sorted(recorded))
            yield file
            file.flush()
            file.attrs["complete"] = 1
    except RuntimeError as error:  # HDF5's, on closing a file that it could not write
        said = re.search(r"error message = '([^']+)'", str(error))
        raise PosthocError(f"Cannot write {path}: {said[1] if said else error}.") from error


def _lay_out(file: h5py.File, plan: Plan, length: int, recorded: Sequence[str]) -> None:
    file.attrs["format"] = FORMAT
    file.attrs["format_version"] = FORMAT_VERSION
    file.attrs["created_by"] = f"posthoc {__version__}"
    file.attrs["created"] = datetime.now(UTC).isoformat(timespec="seconds")
    file.attrs["config"] = json.dumps(plan.config)
    file.attrs["probe_sha256"] = plan.config["probe"]["sha256"]
    text = h5py.string_dtype()
    for name, meaning in (("epoch", "epoch of each checkpoint, -1: unknown"), ("step", "step, -1: unknown")):
        _describe(file.create_dataset(name, (length,), "i8"), meaning)
    _describe(file.create_dataset("image", data=plan.image), "position of each image in its data set")
    _describe(file.create_dataset("label", data=plan.label), "class of each image")
    _describe(file.create_dataset("checkpoint/path", (length,), text), "file, relative to the run's folder")
    _describe(file.create_dataset("checkpoint/sha256", (length,), text), "digest of that file")
    _describe(file.create_dataset("checkpoint/nonfinite", (length,), "i8"), "weights that are NaN or infinite")
    _describe(file.create_dataset("probe/loss", (length,), "f8"), "mean cross-entropy over the probe", "nat")
    _describe(file.create_dataset("probe/accuracy", (length,), "f8"), "share of the probe classified correctly", "1")
    for layer in plan.channels:
        column = file.create_dataset(f"nonfinite/{layer}", (length,), "i8")
        _describe(column, f"values of the signals of {layer} that are NaN or infinite")
    file.create_group("recorded")
    for name in recorded:
        column = file.create_dataset(f"recorded/{name}", (length,), "f8", fillvalue=math.nan)
        _describe(column, "as the checkpoint says of itself")
    scales = [file["epoch"], file["image"]]
    for layer, channels in plan.channels.items():
        # In /signals, for netCDF looks for a dimension in a variable's own group and those around it.
        place = f"signals/channel.{layer}"
        scales.append(_describe(file.create_dataset(place, data=channels), f"recorded channels of {layer}"))
        file[f"channel/{layer}"] = h5py.SoftLink("/" + place)
    for scale in scales:
        scale.make_scale()
    for dataset in (
        file["label"],
        file["step"],
        file["probe/loss"],
        file["probe/accuracy"],
        *file["recorded"].values(),
    ):
        dataset.dims[0].attach_scale(file["image" if dataset.name == "/label" else "epoch"])
    for signal in plan.config["signals"]:
        for layer, channels in plan.channels.items():
            shape = (length, len(channels), len(plan.label))
            row_bytes = 4 * shape[2]
            chunk = (1, max(1, min(shape[1], CHUNK_BYTES // row_bytes)), shape[2])
            block = file.create_dataset(
                f"signals/{signal}/{layer}",
                shape,
                "f4",
                chunks=chunk,
            )
            _describe(block, MEANING[signal], "1")
            for axis, scale in enumerate((file["epoch"], file[f"signals/channel.{layer}"], file["image"])):
                block.dims[axis].attach_scale(scale)


def _describe(dataset: h5py.Dataset, meaning: str, units: str | None = None) -> h5py.Dataset:
    dataset.attrs["long_name"] = meaning
    if units:
        dataset.attrs["units"] = units
    return dataset


def _fill(file: h5py.File, row: int, frame: Frame) -> None:
    file["epoch"][row] = -1 if frame.epoch is None else frame.epoch
    file["step"][row] = -1 if frame.step is None else frame.step
    file["checkpoint/path"][row] = frame.path
    file["checkpoint/sha256"][row] = frame.sha256
    file["probe/loss"][row] = frame.loss
    file["probe/accuracy"][row] = frame.accuracy
    file["checkpoint/nonfinite"][row] = frame.nonfinite
    for name, value in frame.recorded.items():
        file[f"recorded/{name}"][row] = value
    for signal, layers in frame.signals.items():
        for layer, block in layers.items():
            file[f"signals/{signal}/{layer}"][row] = block
            file[f"nonfinite/{layer}"][row] += np.count_nonzero(~np.isfinite(block))


def _open(path: Path) -> h5py.File:
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise PosthocError(f"{path} {what}; give the activations.h5 that `posthoc extract` wrote.")
    if not h5py.is_hdf5(path):
        raise PosthocError(f"{path} is not an HDF5 file (or its beginning is lost); give what `posthoc extract` wrote.")
    try:
        try:  # no lock: a file at its final name is never written to again
            file = h5py.File(path, "r", locking=False)
        except OSError:  # open in this process already with a lock, as in a notebook by xarray
            file = h5py.File(path, "r")
    except OSError as error:
        raise PosthocError(f"{path} is damaged or cut short ({error}); extract it again.") from error
    attributes = dict(file.attrs)
    problem = None
    if attributes.get("format") != FORMAT:
        problem = f"{path} is an HDF5 file but not one of posthoc's activations; give what `posthoc extract` wrote."
    elif attributes.get("format_version", 0) > FORMAT_VERSION:
        problem = (
            f"{path} is of format version {attributes['format_version']}, newer than this posthoc reads; upgrade it."
        )
    elif attributes.get("complete") != 1:
        problem = f"{path} was not written to its end; extract it again."
    if problem:
        file.close()
        raise PosthocError(problem)
    return file
