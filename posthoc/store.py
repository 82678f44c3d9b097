"""activations.h5, the door between the two wings: schema, parts, merge, open.

Both wings read and write this format (version 2) and nothing else of each other:

    /                   attributes: format, format_version, created_by, created, recording (JSON), probe_sha256, complete
    /epoch /step [E]    -1: unknown            /image /label [N]
    /checkpoint/path /checkpoint/sha256 [E]    /probe/loss /probe/accuracy [E]    /recorded/<name> [E]
    /signals/<signal>/<layer> [E, C, N] f4     /channel/<layer> [C]
    /checkpoint/nonfinite [E], /nonfinite/<layer> [E]: how many weights, and values of the signals, are NaN or infinite
    /skipped/path /skipped/reason [S]          checkpoints that could not be replayed, where any were skipped
    /control/untrained/<signal>/<layer> [K, C, N] f4, /control/untrained/seed [K]: of the network with weights drawn
                                               anew from a seed, where that was asked for: controls, no checkpoints
"""

import json
import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import BinaryIO
from urllib.parse import quote, unquote

import h5py
import numpy as np
from numpy.typing import NDArray

from posthoc import __version__
from posthoc.errors import PosthocError
from posthoc.files import HDF5, open_regular, replacing
from posthoc.recording import Recording, seed_of_control
from posthoc.soundness import SoundFile, UnsoundError, row_of

FORMAT = "posthoc-activations"
FORMAT_VERSION = 2
CHUNK_BYTES = 2**20
UNTRAINED = "control/untrained"
MOST_ATTACHED = 4000
"""To one scale of dimensions: what HDF5's list of them holds in 64 kB."""
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
class Layout:
    """What all frames of one file share: how they were made, on which images, which channels of which layers."""

    recording: Recording
    image: NDArray[np.int64]
    label: NDArray[np.int64]
    channels: dict[str, NDArray[np.int64]]

    @property
    def signals(self) -> tuple[str, ...]:
        """Their names."""
        return self.recording.identity.signals

    def by_layer(self, columns: NDArray[np.float32]) -> dict[str, dict[str, NDArray[np.float32]]]:
        """Signals of one checkpoint as a frame has them; columns: float32 [N, signals x channels of all layers]."""
        ends = np.cumsum([len(rows) for _ in self.signals for rows in self.channels.values()])
        blocks = iter(np.split(columns.T, ends[:-1]))
        return {signal: {layer: next(blocks) for layer in self.channels} for signal in self.signals}


class Activations:
    """An activations file, open for reading. Use as a context manager, or call `close`.

    epochs, steps: int64 [E], -1 where unknown; labels, images: int64 [N]; loss, accuracy: float64 [E], measured on the
    probe; recorded: name -> float64 [E], what the checkpoints said of themselves; layers in the network's order;
    channels: layer -> int64 [C_l], which channels of the layer were recorded; nonfinite_weights and nonfinite[layer]:
    int64 [E], how many weights, and values of the signals, are NaN or infinite; skipped: path and reason of the
    checkpoints that could not be replayed; untrained_seeds: int64 [K], of the controls that `read_untrained` reads, none
    in most files.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not os.path.lexists(path):
            raise PosthocError(f"{path} does not exist; give the activations.h5 that `posthoc extract` wrote.")
        with open_regular(path) as raw, _refusing(path):
            self._file = _open(path, raw)
            try:
                self._read(SoundFile(self._file, raw))
            except BaseException:
                self._file.close()
                raise

    def _read(self, file: SoundFile) -> None:
        """Everything but the signals; raises what `_refusing` makes a PosthocError of."""
        _refuse_other_formats(self.path, file)
        self.recording = file.recording()
        identity = self.recording.identity
        self.created = file.attribute("created", str) or "unknown"
        self.probe_sha256: str = file.attribute("probe_sha256", str) or identity.probe.sha256
        self.layers: tuple[str, ...] = tuple(layer.name for layer in identity.layers)
        self.signals = identity.signals
        self.epochs = file.numbers("epoch", "i", None, -1)
        E = len(self.epochs)
        self.steps = file.numbers("step", "i", E, -1)
        self.images = file.numbers("image", "i", None, 0)
        self.labels = file.numbers("label", "i", len(self.images), 0)
        here = set(file.names("signals"))
        self.channels = {
            layer: file.numbers(
                f"signals/channel.{layer}" if f"channel.{layer}".split("/")[0] in here else f"channel/{layer}",
                "i",
                None,
                0,
            )
            for layer in self.layers
        }
        self.checkpoints = file.texts("checkpoint/path", E)
        self.checkpoint_sha256 = file.texts("checkpoint/sha256", E)
        self.loss = file.numbers("probe/loss", "f", E)
        self.accuracy = file.numbers("probe/accuracy", "f", E)
        self.recorded = {_unescaped(name): file.numbers(f"recorded/{name}", "f", E) for name in file.names("recorded")}
        zeros = np.zeros(E, dtype=np.int64)  # files of earlier versions do not say
        counted = bool(file.names("nonfinite"))
        self.nonfinite = {
            layer: file.numbers(f"nonfinite/{layer}", "i", E, 0) if counted else zeros for layer in self.layers
        }
        self.nonfinite_weights = file.numbers("checkpoint/nonfinite", "i", E, 0) if counted else zeros
        skipped = [file.texts(f"skipped/{name}") for name in ("path", "reason") if file.names("skipped")]
        self.skipped: tuple[tuple[str, str], ...] = tuple(zip(*skipped, strict=True))
        self._blocks = self._blocks_in(file, "signals", E)
        self.untrained_seeds = np.zeros(0, dtype=np.int64)
        self._untrained: dict[tuple[str, str], h5py.Dataset] = {}
        if file.names(UNTRAINED):
            self.untrained_seeds = file.numbers(f"{UNTRAINED}/seed", "i", None, 0)
            self._untrained = self._blocks_in(file, UNTRAINED, len(self.untrained_seeds))
        self._refuse_repetitions()

    def _blocks_in(self, file: SoundFile, place: str, rows: int) -> dict[tuple[str, str], h5py.Dataset]:
        return {
            (signal, layer): file.signal(f"{place}/{signal}/{layer}", (rows, len(channels), len(self.labels)))
            for signal in self.signals
            for layer, channels in self.channels.items()
        }

    def _refuse_repetitions(self) -> None:
        for what, values in {
            "checkpoints of one epoch and step": list(zip(self.epochs.tolist(), self.steps.tolist(), strict=True)),
            "untrained networks of one seed": self.untrained_seeds.tolist(),
            "layers of one name": list(self.layers),
            "signals of one name": list(self.signals),
            **{f"equal channels of {layer}": channels.tolist() for layer, channels in self.channels.items()},
        }.items():
            if len(set(values)) < len(values):
                raise UnsoundError(f"it has {what}")
        if not self._blocks:
            raise UnsoundError("it has no signals")

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
        return self._read_row(self._blocks, signal, row)

    def read_untrained(self, signal: str, row: int) -> NDArray[np.float32]:
        """As `read`, of the untrained network whose weights were drawn from `untrained_seeds[row]` (row: 0..K-1)."""
        return self._read_row(self._untrained, signal, row)

    def _read_row(self, blocks: Mapping[tuple[str, str], h5py.Dataset], signal: str, row: int) -> NDArray[np.float32]:
        if signal not in self.signals:
            raise PosthocError(f"{self.path} holds no signal {signal!r}, only {', '.join(self.signals)}.")
        with _refusing(self.path):
            return np.concatenate([row_of(blocks[signal, layer], row) for layer in self.layers])


def open_activations(path: str | os.PathLike[str]) -> Activations:
    """Open an activations file for reading.

    Raises PosthocError where it is absent, not an activations file, of a later format, or torn.
    """
    return Activations(Path(path))


def write(path: Path, plan: Layout, frames: Sequence[Frame]) -> None:
    """Write a whole file, or a part of one checkpoint; it appears at `path` complete or not at all.

    It is put together in memory: HDF5 does not come back in order from a disk that fills up under it.
    """
    recorded = {name for frame in frames for name in frame.recorded if name}
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


def merge(
    path: Path,
    parts: Sequence[Path],
    skipped: Sequence[tuple[str, str]] = (),
    untrained: Sequence[tuple[int, Path]] = (),
) -> None:
    """Write the rows of `parts`, in their order, as one file; blocks are copied byte for byte.

    `skipped`: path and reason of the checkpoints that have no part; `untrained`: number and part of each control.
    """
    names: set[str] = set()
    size = sum(part.stat().st_size for part in [*parts, *(part for _, part in untrained)])
    for part in parts:
        with Activations(part) as one:
            names |= set(one.recorded)
            plan = Layout(one.recording, one.images, one.labels, one.channels)
    if shutil.disk_usage(path.parent).free < size:
        raise PosthocError(f"Cannot write {path}: No space left on device (about {size / 1e6:.0f} MB are needed).")
    with _created(path, plan, len(parts), names) as file:
        for row, part in enumerate(parts):
            with Activations(part) as one:
                _copy(file, row, one)
        if untrained:
            seeds = [seed_of_control(plan.recording.identity.seed, number) for number, _ in untrained]
            column = file.create_dataset(f"{UNTRAINED}/seed", data=np.array(seeds, "i8"))
            _describe(column, "seed from which the weights of an untrained network were drawn")
            _lay_out_blocks(file, plan, UNTRAINED, len(seeds))
            for row, (_, part) in enumerate(untrained):
                with Activations(part) as one:
                    _copy_blocks(file, UNTRAINED, row, one)
        if skipped:
            for name, column in zip(("path", "reason"), zip(*skipped, strict=True), strict=True):
                file.create_dataset(f"skipped/{name}", data=list(map(_bytes, column)), dtype=h5py.string_dtype())


def _copy(file: h5py.File, row: int, one: Activations) -> None:
    """Copy a part's only row: numbers through memory, the signals' blocks byte for byte."""
    columns = {
        "epoch": one.epochs, "step": one.steps, "probe/loss": one.loss, "probe/accuracy": one.accuracy,
        "checkpoint/path": list(map(_bytes, one.checkpoints)), "checkpoint/sha256": one.checkpoint_sha256,
        "checkpoint/nonfinite": one.nonfinite_weights,
        **{f"recorded/{_escaped(name)}": column for name, column in one.recorded.items()},
        **{f"nonfinite/{layer}": column for layer, column in one.nonfinite.items()},
    }  # fmt: skip
    for place, column in columns.items():
        file[place][row] = column[0]
    _copy_blocks(file, "signals", row, one)


def _copy_blocks(file: h5py.File, group: str, row: int, one: Activations) -> None:
    for (signal, layer), source in one._blocks.items():
        target = file[f"{group}/{signal}/{layer}"]
        if source.chunks != target.chunks or source.compression:  # of an earlier version
            target[row] = row_of(source, 0)
            continue
        for k in range(source.id.get_num_chunks()):
            place = source.id.get_chunk_info(k).chunk_offset
            mask, block = source.id.read_direct_chunk(place)
            target.id.write_direct_chunk((row, *place[1:]), block, mask)


@contextmanager
def _created(path: Path, plan: Layout, length: int, recorded: set[str]) -> Iterator[h5py.File]:
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


def _lay_out(file: h5py.File, plan: Layout, length: int, recorded: Sequence[str]) -> None:
    file.attrs["format"] = FORMAT
    file.attrs["format_version"] = FORMAT_VERSION
    file.attrs["created_by"] = f"posthoc {__version__}"
    file.attrs["created"] = datetime.now(UTC).isoformat(timespec="seconds")
    file.attrs["recording"] = json.dumps(plan.recording.to_dict())
    file.attrs["probe_sha256"] = plan.recording.identity.probe.sha256
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
        column = file.create_dataset(f"recorded/{_escaped(name)}", (length,), "f8", fillvalue=math.nan)
        _describe(column, "as the checkpoint says of itself")
    scales = [file["epoch"], file["image"]]
    for layer, channels in plan.channels.items():
        # In /signals, for netCDF looks for a dimension in a variable's own group and those around it.
        place = f"signals/channel.{layer}"
        scales.append(_describe(file.create_dataset(place, data=channels), f"recorded channels of {layer}"))
        file[f"channel/{layer}"] = h5py.SoftLink("/" + place)
    for scale in scales:
        scale.make_scale()
    _lay_out_blocks(file, plan, "signals", length)
    _attach_scales(file, plan)


def _lay_out_blocks(file: h5py.File, plan: Layout, group: str, rows: int) -> None:
    for signal in plan.signals:
        for layer, channels in plan.channels.items():
            shape = (rows, len(channels), len(plan.label))
            row_bytes = 4 * shape[2]
            chunk = (1, max(1, min(shape[1], CHUNK_BYTES // row_bytes)), shape[2])
            block = file.create_dataset(f"{group}/{signal}/{layer}", shape, "f4", chunks=chunk)
            _describe(block, MEANING[signal], "1")


def _attach_scales(file: h5py.File, plan: Layout) -> None:
    """Name the dimensions: of the signals first, for a scale takes a bounded number of datasets."""
    epoch, image = file["epoch"], file["image"]
    pairs = [
        (file[f"signals/{signal}/{layer}"].dims[axis], scale)
        for signal in plan.signals
        for layer in plan.channels
        for axis, scale in enumerate((epoch, file[f"signals/channel.{layer}"], image))
    ]
    pairs.append((file["label"].dims[0], image))
    columns = [file["step"], file["probe/loss"], file["probe/accuracy"], *file["recorded"].values()]
    pairs += [(column.dims[0], epoch) for column in columns]
    taken: Counter[str] = Counter()
    for dimension, scale in pairs:
        if taken[scale.name] < MOST_ATTACHED:
            dimension.attach_scale(scale)
            taken[scale.name] += 1


def _describe(dataset: h5py.Dataset, meaning: str, units: str | None = None) -> h5py.Dataset:
    dataset.attrs["long_name"] = meaning
    if units:
        dataset.attrs["units"] = units
    return dataset


def _fill(file: h5py.File, row: int, frame: Frame) -> None:
    for name, place in (("epoch", frame.epoch), ("step", frame.step)):
        if place is not None and not 0 <= place < 2**63:
            raise PosthocError(f"{frame.path}: {name} {place} is beyond what an activations file can hold.")
        file[name][row] = -1 if place is None else place
    file["checkpoint/path"][row] = _bytes(frame.path)
    file["checkpoint/sha256"][row] = frame.sha256
    file["probe/loss"][row] = frame.loss
    file["probe/accuracy"][row] = frame.accuracy
    file["checkpoint/nonfinite"][row] = frame.nonfinite
    for name, value in frame.recorded.items():
        if name:
            file[f"recorded/{_escaped(name)}"][row] = _float(value)
    for signal, layers in frame.signals.items():
        for layer, block in layers.items():
            file[f"signals/{signal}/{layer}"][row] = block
            file[f"nonfinite/{layer}"][row] += np.count_nonzero(~np.isfinite(block))


def _open(path: Path, raw: BinaryIO) -> h5py.File:
    if raw.read(len(HDF5)) != HDF5:
        raise PosthocError(f"{path} is not an HDF5 file (or its beginning is lost); give what `posthoc extract` wrote.")
    try:  # no lock: a file at its final name is never written to again
        return h5py.File(path, "r", locking=False)
    except OSError:  # open in this process already with a lock, as in a notebook by xarray
        return h5py.File(path, "r")


def _refuse_other_formats(path: Path, file: SoundFile) -> None:
    if file.attribute("format", str) != FORMAT:
        raise PosthocError(
            f"{path} is an HDF5 file but not one of posthoc's activations; give what `posthoc extract` wrote."
        )
    version = file.attribute("format_version", int) or 0
    if version > FORMAT_VERSION:
        raise PosthocError(f"{path} is of format version {version}, newer than this posthoc reads; upgrade it.")
    if file.attribute("complete", int) != 1:
        raise PosthocError(f"{path} was not written to its end; extract it again.")


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """One sentence for whatever HDF5 and h5py make of a file that is broken, or made to break them."""
    try:
        yield
    except (
        OSError,
        ValueError,
        TypeError,
        KeyError,
        RuntimeError,
        AttributeError,
        MemoryError,
        OverflowError,
    ) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise PosthocError(
            f"{path} is damaged or cut short, or not what posthoc wrote ({reason}); extract it again."
        ) from error


def _bytes(text: str) -> bytes:
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


def _unescaped(name: str) -> str:
    return unquote(name, errors="backslashreplace")
