"""activations.h5, the door between the two wings: what lies where in it, and reading it.

Both wings know this format (version 2) and nothing else of each other. Dimensions: checkpoint E, unit (the C recorded
channels of a layer), sample N of the probe, and time T where a signal keeps it:

    /                   attributes: format, format_version, created_by, created, recording (JSON), complete, folder (of the
                        run, where that is known)
    /epoch /step [E]    -1: unknown            /sample/index /sample/label [N]: no label where there is none
    /checkpoint/path /checkpoint/sha256 [E]    /probe/loss /probe/accuracy [E]    /recorded/<name> [E]
    /score/<name> [E]                          other scores than accuracy: R2, mIoU, those of the user's function
    /sample/token [N, T] u4                    the ids, where the samples are rows of tokens
    /sample/bytes [N] i8                       of its text in UTF-8 but for its first token, where that is known
    /signals/<signal>/<layer> [E, C, N(, T)] f4, or f2 where a signal keeps T and rounding is far below its variation
                                               `fluctuation` [E, C, N, scale], `autocovariance` [E, C, N, lag],
                                               `covariance` [E, C, N, C], `position_mean`, `position_var` [E, C, N, octave]
    /signals/checkpoint /signals/sample /signals/unit.<layer> [C]: which, for the dimensions of that name
    /behaviour/<name> [E, N, ...], /head/<name> [E, ...]: what the network said of each sample; see `STORED`
    /weights/stable_rank, /weights/hill_alpha [E, T] f8, of the tensors that are matrices, where `identity.spectra` says so
    /weights/norm [E, T] f8, /weights/sketch [E, M] of the network's parameters: norms, and sketches that tell distances
                                               between checkpoints (`posthoc/sketches.py`); /weights/tensor /weights/size
                                               [T]: names, and numbers in each
    /checkpoint/nonfinite [E], /nonfinite/<layer> [E]: how many weights, and values of the signals, are NaN or infinite
    /average/<k>/behaviour/<name> [E, N]       loss and correct of the mean of the weights of a checkpoint and the k - 1
                                               before it, where `identity.averaged` has any k; NaN where there are fewer
    /checkpoint/averaged [E]                   digest of what those means are made of beside the checkpoint
    /checkpoint/files [1]                      of a part: the files that were read, their sizes and times (JSON)
    /skipped/path /skipped/reason [S]          checkpoints that could not be replayed, where any were skipped
    /null/<control>/signals/<signal>/<layer>, /null/<control>/behaviour/<name>: as without, of other inputs
                                               (tokens shuffled, say), where `identity.controls` has any
    /null/untrained/<signal>/<layer> [K, C, N(, T)], /null/untrained/seed [K]: of the network with weights drawn
                                               anew from a seed, where that was asked for: controls, no checkpoints
    /provenance [P], /checkpoint/provenance [E]: where checkpoints differ in it, all provenances (JSON) and which is whose

Version 1 has /image and /label for the samples, /signals/channel.<layer> (at first /channel/<layer>) for the units,
/control/untrained, no behaviour, and a `config` for the recording.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import unquote

import h5py
import numpy as np
from numpy.typing import NDArray

from posthoc.errors import PosthocError, as_path
from posthoc.files import HDF5, open_regular
from posthoc.recording import Provenance, Recording
from posthoc.sketches import width_of
from posthoc.soundness import SoundFile, UnsoundError, refusing, row_of
from posthoc.spool import Spooled
from posthoc.stamps import Stamp, from_text

FORMAT = "posthoc-activations"
FORMAT_VERSION = 2


@dataclass(frozen=True)
class Places:
    """Where a version of the format has what others have elsewhere."""

    index: str
    label: str
    unit: tuple[str, ...]
    untrained: str


PLACES = {
    1: Places("image", "label", ("signals/channel.{}", "channel/{}"), "control/untrained"),
    2: Places("sample/index", "sample/label", ("signals/unit.{}",), "null/untrained"),
}


@dataclass(frozen=True)
class Stored:
    """What may be stored of each checkpoint beside its signals: meaning, type, the dimensions after checkpoint, unit."""

    meaning: str
    dtype: str
    dimensions: tuple[str, ...]
    units: str | None = None


STORED = {
    "behaviour/loss": Stored("loss of each sample", "<f4", ("sample",)),
    "behaviour/token_loss": Stored("-log p of each token given those before it", "<f4", ("sample", "token"), "nat"),
    "behaviour/token_entropy": Stored("entropy of what was said of that token", "<f4", ("sample", "token"), "nat"),
    "behaviour/token_prediction": Stored("the likeliest in its place, -1: none", "<i4", ("sample", "token")),
    "behaviour/score": Stored("score of each sample", "<f4", ("sample",)),
    "behaviour/prediction": Stored("class of the largest score, -1: none", "<i8", ("sample",)),
    "behaviour/correct": Stored("whether that is the sample's label", "|u1", ("sample",)),
    "behaviour/logits": Stored("scores of the classes", "<f2", ("sample", "class")),
    "behaviour/features": Stored("what the last layer is given", "<f4", ("sample", "feature")),
    "head/weight": Stored("weights of the last layer", "<f4", ("class", "feature")),
    "head/bias": Stored("bias of the last layer", "<f4", ("class",)),
    "weights/norm": Stored("norm of each tensor of weights", "<f8", ("tensor",)),
    "weights/stable_rank": Stored("squared Frobenius norm over squared spectral norm", "<f8", ("tensor",), "1"),
    "weights/hill_alpha": Stored("exponent of a power law for the tail of eigenvalues", "<f8", ("tensor",), "1"),
    "weights/sketch": Stored("the tensors' sketches one after another", "<f4", ("entry",)),
}
HALVED = ("token",)
"""Signals that are in half precision where that is enough: those that keep every value."""
Array = NDArray[Any]
Signal = NDArray[np.float32] | Spooled
ALL = slice(None)


class Skipped(NamedTuple):
    """A checkpoint that could not be replayed, by its path relative to the run's folder, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Given:
    """What a checkpoint gives for other inputs than the probe's: signals and behaviour as a frame has them."""

    signals: Mapping[str, Mapping[str, Signal]]
    behaviour: Mapping[str, Array]


@dataclass(frozen=True)
class Frame:
    """What replaying one checkpoint gives.

    signals: signal -> layer -> float32 [C, N], or [C, N, T]; nonfinite: of its weights; behaviour, head: what `STORED`
    has under these names, without the dimension of the checkpoints; scores: other than accuracy; nulls: by control, what
    other inputs gave; averages: by number of checkpoints, the behaviour of the mean of so many; averaged: digest of what those are
    made of beside this one; files: which were read; weights: of the layout's `weights` norm [T] and sketch
    [M], or neither, and where they were asked for stable_rank and hill_alpha [T].
    """

    path: str
    sha256: str
    epoch: int | None
    step: int | None
    loss: float
    accuracy: float
    recorded: Mapping[str, float]
    signals: Mapping[str, Mapping[str, Signal]]
    nonfinite: int = 0
    behaviour: Mapping[str, Array] = field(default_factory=dict)
    head: Mapping[str, Array] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)
    nulls: Mapping[str, Given] = field(default_factory=dict)
    averages: Mapping[int, Mapping[str, Array]] = field(default_factory=dict)
    averaged: str = ""
    weights: Mapping[str, Array] = field(default_factory=dict)
    files: tuple[Stamp, ...] = ()


@dataclass(frozen=True, eq=False)
class Layout:
    """What all frames of one file share: how they were made, on which samples, which channels of which layers.

    tokens: uint32 [N, T], where the samples are rows of tokens; text_bytes: int64 [N], of the text of each but its first
    token, where that is known; weights: the tensors that are sketched, and how many numbers each holds.
    """

    recording: Recording
    index: NDArray[np.int64]
    label: NDArray[np.int64] | None
    channels: dict[str, NDArray[np.int64]]
    tokens: NDArray[np.uint32] | None = None
    text_bytes: NDArray[np.int64] | None = None
    weights: Mapping[str, int] = field(default_factory=dict)

    @property
    def signals(self) -> tuple[str, ...]:
        """Their names."""
        return self.recording.identity.signals


class Activations:
    """An activations file, open for reading. Use as a context manager, or call `close`.

    epochs, steps: int64 [E], -1 where unknown; images: int64 [N], positions of the samples in their data set; labels:
    int64 [N], all 0 unless `labelled`; loss, accuracy, and scores by name: float64 [E], measured on the probe, NaN where
    they are not; recorded: name -> float64 [E], what the checkpoints said of themselves; layers in the network's order;
    channels: layer -> int64 [C_l], which channels of the layer were recorded; nonfinite_weights and nonfinite[layer]:
    int64 [E], how many weights, and values of the signals, are NaN or infinite; skipped: path and reason of the
    checkpoints that could not be replayed; untrained_seeds: int64 [K], of the controls that `read_untrained` reads, none
    in most files; nulls: the controls of other inputs, which `read_null` reads; averaged: of how many checkpoints there are means, which
    `behaviour_of_average` reads, and averaged_sha256 what they are made of; folder: of the run, empty where nothing says it;
    files: of a part, which were read; text_bytes: int64 [N] of rows of tokens, see
    `Layout`, or None; weights: the tensors that `weight` tells of, and how many numbers each holds; provenances: one for each
    checkpoint; blocks: the arrays by checkpoint, by their place in the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not os.path.lexists(path):
            raise PosthocError(f"{path} does not exist; give the activations.h5 that `posthoc extract` wrote.")
        with open_regular(path) as raw, refusing(path):
            self._file = _open(path, raw)
            try:
                self._read(SoundFile(self._file, raw))
            except BaseException:
                self._file.close()
                raise

    def _read(self, file: SoundFile) -> None:
        """Everything but the signals; raises what `refusing` makes a PosthocError of."""
        places = PLACES[_version(self.path, file)]
        self.recording = file.recording()
        identity = self.recording.identity
        self.created = file.attribute("created", str) or "unknown"
        self.folder = file.attribute("folder", str) or ""
        self.probe_sha256 = identity.probe.sha256
        self.layers = tuple(layer.name for layer in identity.layers)
        self.signals = identity.signals
        self.epochs = file.numbers("epoch", "i", None, -1)
        E = len(self.epochs)
        self.steps = file.numbers("step", "i", E, -1)
        self.images = file.numbers(places.index, "i", None, 0)
        N = len(self.images)
        self.labelled = identity.probe.classes is not None or file.has(places.label)
        self.text_bytes = file.numbers("sample/bytes", "i", N, 0) if file.has("sample/bytes") else None
        self.labels = file.numbers(places.label, "i", N, 0) if self.labelled else np.zeros(N, np.int64)
        self.channels = {layer: file.numbers(_first(file, places.unit, layer), "i", None, 0) for layer in self.layers}
        self.checkpoints = file.texts("checkpoint/path", E)
        self.checkpoint_sha256 = file.texts("checkpoint/sha256", E)
        self.files = from_text(file.texts("checkpoint/files", 1)[0]) if file.has("checkpoint/files") else ()
        self.loss = file.numbers("probe/loss", "f", E)
        self.accuracy = file.numbers("probe/accuracy", "f", E)
        self.scores, self.recorded = (
            {
                unquote(name, errors="backslashreplace"): file.numbers(f"{group}/{name}", "f", E)
                for name in file.names(group)
            }
            for group in ("score", "recorded")
        )
        zeros = np.zeros(E, dtype=np.int64)  # the first files do not say
        counted = bool(file.names("nonfinite"))
        self.nonfinite = {
            layer: file.numbers(f"nonfinite/{layer}", "i", E, 0) if counted else zeros for layer in self.layers
        }
        self.nonfinite_weights = file.numbers("checkpoint/nonfinite", "i", E, 0) if counted else zeros
        self.skipped = _skipped_in(file)
        self.provenances = self._provenances_in(file, E)
        self.blocks = self._signals_in(file, "signals", E)
        sizes = {"checkpoint": E, "sample": N}
        self._tokens = file.block("sample/token", "<u4", (N, None)) if file.has("sample/token") else None
        if self._tokens is not None:
            sizes["token"] = self._tokens.shape[1]
        self.weights = self._weights_in(file)
        sizes |= {"tensor": len(self.weights), "entry": sum(map(width_of, self.weights.values()))}
        self.blocks |= self._stored_in(file, sizes)
        self.nulls = tuple(name for name in identity.controls if file.has(f"null/{name}"))
        for name in self.nulls:
            self.blocks |= self._signals_in(file, f"null/{name}/signals", E, f"null/{name}/")
            self.blocks |= self._stored_in(file, sizes, f"null/{name}/")
        self._read_averages(file, sizes)
        self._read_untrained(file, places.untrained)
        self._refuse_repetitions()

    def _read_untrained(self, file: SoundFile, group: str) -> None:
        self.untrained_seeds = np.zeros(0, dtype=np.int64)
        self._untrained: dict[str, h5py.Dataset] = {}
        if file.names(group):
            self.untrained_seeds = file.numbers(f"{group}/seed", "i", None, 0)
            self._untrained = self._signals_in(file, group, len(self.untrained_seeds))

    def _read_averages(self, file: SoundFile, sizes: dict[str, int]) -> None:
        counts = self.recording.identity.averaged
        self.averaged = tuple(count for count in counts if file.has(f"average/{count}"))
        for count in self.averaged:
            self.blocks |= self._stored_in(file, sizes, f"average/{count}/")
        E, known = len(self.epochs), file.has("checkpoint/averaged")
        self.averaged_sha256 = file.texts("checkpoint/averaged", E) if known else ("",) * E

    def _provenances_in(self, file: SoundFile, E: int) -> tuple[Provenance, ...]:
        if not file.has("provenance"):
            return (self.recording.provenance,) * E
        provenances = file.provenances("provenance")
        rows = file.numbers("checkpoint/provenance", "i", E, 0).tolist()
        if max(rows) >= len(provenances):
            raise UnsoundError("/checkpoint/provenance has a value beyond those of /provenance")
        return tuple(provenances[row] for row in rows)

    def _weights_in(self, file: SoundFile) -> dict[str, int]:
        """The tensors of which something is stored, and how many numbers each holds."""
        if not file.has("weights/tensor"):
            return {}
        names = file.texts("weights/tensor")
        weights = dict(zip(names, file.numbers("weights/size", "i", len(names), 1).tolist(), strict=True))
        if len(weights) < len(names):
            raise UnsoundError("it has weights of one name")
        return weights

    def _signals_in(self, file: SoundFile, place: str, rows: int, before: str = "") -> dict[str, h5py.Dataset]:
        """The signals of a group by their places, `before` put before these."""
        return {
            f"{before}signals/{signal}/{layer}": file.block(
                f"{place}/{signal}/{layer}", "<f4", (rows, len(channels), len(self.labels)), 1, "<f2"
            )
            for signal in self.signals
            for layer, channels in self.channels.items()
        }

    def _stored_in(self, file: SoundFile, sizes: dict[str, int], before: str = "") -> dict[str, h5py.Dataset]:
        """What there is of `STORED`, `before` put before the places; classes and features are as many everywhere."""
        blocks = {}
        for name, stored in STORED.items():
            if file.has(place := before + name):
                dimensions = ("checkpoint", *stored.dimensions)
                blocks[place] = file.block(place, stored.dtype, tuple(sizes.get(name) for name in dimensions))
                sizes |= zip(dimensions, blocks[place].shape, strict=True)
        return blocks

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
        if not self.signals or not self.layers:
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

    @property
    def behaviours(self) -> tuple[str, ...]:
        """Names of what `behaviour` reads."""
        return self._names_of("behaviour")

    def _names_of(self, group: str) -> tuple[str, ...]:
        places = [place.removeprefix(f"{group}/") for place in self.blocks if place.startswith(f"{group}/")]
        return tuple(place for place in places if "/" not in place)

    def read(self, signal: str, row: int, layer: str | None = None, samples: slice = ALL) -> NDArray[np.float32]:
        """The signal of the checkpoint in row `row` (0..E-1), float32 [U, N], the layers' channels one after another.

        Of one `layer` [C, N]; of some samples; with a last axis of time where the signal keeps it.
        """
        return self._read_row(self.blocks, signal, row, layer, samples)

    @property
    def tokens(self) -> NDArray[np.uint32] | None:
        """The ids, uint32 [N, T], where the samples are rows of tokens."""
        if self._tokens is None:
            return None
        with refusing(self.path):
            return np.asarray(self._tokens[:], dtype=np.uint32)

    def read_null(
        self, control: str, signal: str, row: int, layer: str | None = None, samples: slice = ALL
    ) -> NDArray[np.float32]:
        """As `read`, of what the checkpoint gave for the inputs of a control, one of `nulls`."""
        return self._read_row(self.blocks, signal, row, layer, samples, self._place_of(control))

    def behaviour_of_null(self, control: str, name: str, row: int | None = None, samples: slice = ALL) -> Array:
        """As `behaviour`, of what the checkpoints gave for the inputs of a control, one of `nulls`."""
        return self._read_stored(f"{self._place_of(control)}behaviour", name, row, samples)

    def behaviour_of_average(self, count: int, name: str, row: int | None = None) -> Array:
        """As `behaviour`, `loss` or `correct` of the mean of so many checkpoints' weights, one of `averaged`."""
        return self._read_stored(f"average/{count}/behaviour", name, row)

    def _place_of(self, control: str) -> str:
        if control not in self.nulls:
            has = f"only {', '.join(self.nulls)}" if self.nulls else "nor any other"
            raise PosthocError(f"{self.path} holds no control {control!r}, {has}; extract it with --controls.")
        return f"null/{control}/"

    def read_untrained(
        self, signal: str, row: int, layer: str | None = None, samples: slice = ALL
    ) -> NDArray[np.float32]:
        """As `read`, of the untrained network whose weights were drawn from `untrained_seeds[row]` (row: 0..K-1)."""
        return self._read_row(self._untrained, signal, row, layer, samples)

    def _read_row(
        self, blocks: Mapping[str, h5py.Dataset], signal: str, row: int, layer: str | None, samples: slice,
        before: str = "",
    ) -> NDArray[np.float32]:  # fmt: skip
        if signal not in self.signals:
            raise PosthocError(
                f"{self.path} holds no signal {signal!r}, only {', '.join(self.signals)}; give one of these."
            )
        if layer not in (None, *self.layers):
            raise PosthocError(
                f"{self.path} holds no layer {layer!r}, only {', '.join(self.layers)}; give one of these."
            )
        parts = [blocks[f"{before}signals/{signal}/{name}"] for name in (self.layers if layer is None else (layer,))]
        if len({part.shape[3:] for part in parts}) > 1:
            raise PosthocError(f"{self.path}: {signal} is not as long in all layers; read one layer at a time.")
        with refusing(self.path):
            return np.concatenate([row_of(part, row, (ALL, samples)) for part in parts]).astype(np.float32, copy=False)

    def behaviour(self, name: str, row: int | None = None, samples: slice = ALL) -> Array:
        """What the networks said of each sample, [E, N, ...] (see `STORED`); of the checkpoint in row `row` [N, ...].

        Raises PosthocError where the file does not hold it.
        """
        return self._read_stored("behaviour", name, row, samples)

    def head(self, name: str, row: int | None = None) -> Array:
        """`weight` [E, K, D] or `bias` [E, K] of the last layer; of the checkpoint in row `row` without the first axis.

        Raises PosthocError where the file does not hold it.
        """
        return self._read_stored("head", name, row)

    def weight(self, name: str, row: int | None = None) -> Array:
        """`norm`, `stable_rank` or `hill_alpha` [E, T] of the tensors in `weights`, or their `sketch` [E, M]; of the checkpoint in row `row` without the
        first axis.

        Raises PosthocError where the file does not hold it.
        """
        return self._read_stored("weights", name, row)

    def statistics(self, row: int) -> dict[str, Array]:
        """What is stored of the tensors of the checkpoint in a row, by name: `tensor`, their names, `size`, how many numbers
        each holds, `norm` and whatever else `weight` reads of every tensor, [T]. Empty where the file holds nothing of them.
        """
        names = [name for name in self._names_of("weights") if STORED[f"weights/{name}"].dimensions == ("tensor",)]
        if not names:
            return {}
        columns = {"tensor": np.array(list(self.weights)), "size": np.array(list(self.weights.values()), np.int64)}
        return columns | {name: self.weight(name, row) for name in names}

    def _read_stored(self, group: str, name: str, row: int | None, samples: slice = ALL) -> Array:
        block = self.blocks.get(f"{group}/{name}")
        if block is None:
            names = ", ".join(self._names_of(group))
            raise PosthocError(
                f"{self.path} holds no {group.rpartition('/')[2]} {name!r}, {f'only {names}' if names else 'nor any other'}; extract it again."
            )
        with refusing(self.path):
            rows = range(len(self)) if row is None else (row,)
            values = [row_of(block, e, (samples,)) for e in rows]
            return np.stack(values) if row is None else values[0]


def open_activations(path: str | os.PathLike[str]) -> Activations:
    """Open an activations file for reading.

    Parameters
    ----------
    path
        The file that `posthoc extract` wrote.

    Returns
    -------
    Activations

    Raises
    ------
    PosthocError
        Where the file is absent, not an activations file, of a later format, or torn.
    """
    return Activations(as_path(path))


def contents(path: Path) -> tuple[int, tuple[Skipped, ...]]:
    """How many checkpoints an activations file has, and which were skipped; raises as `open_activations` does, but for what
    else is in the file, of which nothing is looked at."""
    with open_regular(path) as raw, refusing(path), _open(path, raw) as opened:
        file = SoundFile(opened, raw)
        _version(path, file)
        return len(file.texts("checkpoint/path")), _skipped_in(file)


def origin(path: Path) -> tuple[str, dict[str, str]]:
    """The folder of the run that an activations file is of, empty where it does not say, and the digests of its checkpoints by
    their paths; raises as `contents` does."""
    with open_regular(path) as raw, refusing(path), _open(path, raw) as opened:
        file = SoundFile(opened, raw)
        _version(path, file)
        paths = file.texts("checkpoint/path")
        digests = file.texts("checkpoint/sha256", len(paths))
        return file.attribute("folder", str) or "", dict(zip(paths, digests, strict=True))


def _skipped_in(file: SoundFile) -> tuple[Skipped, ...]:
    columns = [file.texts(f"skipped/{name}") for name in Skipped._fields if file.names("skipped")]
    return tuple(map(Skipped._make, zip(*columns, strict=True)))


def _first(file: SoundFile, places: tuple[str, ...], layer: str) -> str:
    """Where the channels of a layer are: the first place that is there, or the last."""
    names = [place.format(layer) for place in places]
    return next(filter(file.has, names), names[-1])


def _open(path: Path, raw: BinaryIO) -> h5py.File:
    if raw.read(len(HDF5)) != HDF5:
        raise PosthocError(f"{path} is not an HDF5 file (or its beginning is lost); give what `posthoc extract` wrote.")
    try:  # no lock: a file at its final name is never written to again
        return h5py.File(path, "r", locking=False)
    except OSError:  # open in this process already with a lock, as in a notebook by xarray
        return h5py.File(path, "r")


def _version(path: Path, file: SoundFile) -> int:
    """The version of the format; raises PosthocError where it is none that is read, or the file was not finished."""
    if file.attribute("format", str) != FORMAT:
        raise PosthocError(
            f"{path} is an HDF5 file but not one of posthoc's activations; give what `posthoc extract` wrote, or of a "
            f"Keras network its arrays by name in a file of safetensors."
        )
    version = file.attribute("format_version", int) or 0
    if version > max(PLACES):
        raise PosthocError(f"{path} is of format version {version}, newer than this posthoc reads; upgrade it.")
    if file.attribute("complete", int) != 1:
        raise PosthocError(f"{path} was not written to its end; extract it again.")
    return max(version, 1)
