"""One pass over the bytes of every checkpoint of a series, piece by piece through all of them: no checkpoint is in memory.

A piece is a span of the numbers of one tensor. Of each piece three checkpoints in a row and the first are held at once, so
that memory is four pieces a thread, however large the checkpoints are and however many.
"""

import hashlib
import itertools
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from posthoc import streams
from posthoc.analysis.kernels.differences import SUMS, add_sums, fingerprint, used_bits
from posthoc.cpus import cpu_count
from posthoc.errors import StoppedError
from posthoc.replay.dtypes import DTYPES, DType
from posthoc.replay.formats.table import Content, open_content, readable
from posthoc.replay.naming import canonical
from posthoc.replay.order import Checkpoint
from posthoc.replay.series.share import WHOLE, Share
from posthoc.replay.source import Source
from posthoc.replay.tensors import Numbers, Stored, read_numbers
from posthoc.replay.weights import MAIN, Pick, find_weights

PIECE = 1 << 20
"""Numbers in a piece: of single precision 4 MiB, which a processor's cache holds with the others of its window."""
SAMPLE_BYTES = 1 << 28
MOST_SAMPLED = 1 << 18
"""Of every checkpoint so many numbers are kept, at the same places, and of all together so many bytes."""
Progress = Callable[[int, int, object], None]


@dataclass(frozen=True)
class Described:
    """A tensor as one checkpoint has it."""

    shape: tuple[int, ...]
    dtype: DType


@dataclass(frozen=True, eq=False)
class Statistics:
    """What one reading of E checkpoints with T tensors in all gives.

    tensors: the names, without what wrappers add; described: of each checkpoint by name; digest [E, T]: equal for equal
    bytes (0: absent); squares [E, T]: sum of squares; step, stride and start [E, T]: squared distance from the
    checkpoint before, from the one before that, and from the first, NaN where there is none of the same shape; zeros,
    nan, infinite [E, T]: how many numbers are so; rounded [E, T]: how many of the lowest bits of single-precision numbers
    are never set; sample: of each tensor [E, n] numbers at the same places, NaN where the checkpoint has no such tensor;
    share: what of each tensor was read, of which all these are; squares and distances are scaled up to the whole.
    """

    checkpoints: tuple[Checkpoint, ...]
    tensors: tuple[str, ...]
    described: tuple[Mapping[str, Described], ...]
    digest: NDArray[np.uint64]
    squares: NDArray[np.float64]
    step: NDArray[np.float64]
    stride: NDArray[np.float64]
    start: NDArray[np.float64]
    zeros: NDArray[np.int64]
    nan: NDArray[np.int64]
    infinite: NDArray[np.int64]
    rounded: NDArray[np.int64]
    sample: tuple[NDArray[np.float32], ...] = field(repr=False)
    sizes: NDArray[np.int64]
    bytes: int = 0
    share: Share = WHOLE

    @property
    def names(self) -> list[str]:
        """Those of the checkpoints."""
        return [checkpoint.path.name for checkpoint in self.checkpoints]


class Opened(NamedTuple):
    """A checkpoint whose header was read: where it lies, and its tensors by the names without wrappers."""

    path: Path
    content: Content
    names: dict[str, str]
    stored: dict[str, Any]


class Piece(NamedTuple):
    """A span of the numbers of a tensor, the `number`-th of it."""

    tensor: int
    number: int
    start: int
    end: int


def read_series(
    checkpoints: Sequence[Checkpoint],
    pick: Pick = MAIN,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
    share: Share = WHOLE,
) -> Statistics:
    """Read every checkpoint once, of each tensor the first numbers, as `share` says. Raises PosthocError for one that is damaged, StoppedError when `stop` is set."""
    opened = [_open(checkpoint.path, pick) for checkpoint in checkpoints]
    reading = _Reading(opened, share)
    units = reading.units()
    done = itertools.count(1)

    def read(unit: list[Piece]) -> None:
        if stop is not None and stop.is_set():
            raise StoppedError("stopped; nothing is kept of a check.")
        reading.read(unit)
        if progress is not None:
            progress(next(done), len(units), reading.tensors[unit[0].tensor])

    with ThreadPoolExecutor(min(cpu_count(), len(units)) or 1, "posthoc-check") as pool:
        jobs = [pool.submit(read, unit) for unit in units]
        try:
            for job in jobs:
                job.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return reading.statistics(checkpoints)


def _tell_apart(
    series: "_Reading", digest: NDArray[np.uint64], sums: NDArray[np.float64], broken: NDArray[np.bool_]
) -> None:
    """Give digests of their own to tensors that only seem equal: equal fingerprints are compared byte by byte.

    Of checkpoints one or two apart, and of any and the first, the numbers were compared as they were read.
    """
    for t in range(digest.shape[1]):
        seen: dict[int, list[list[int]]] = {}  # by fingerprint, rows of the same bytes
        for row, key in enumerate(digest[:, t].tolist()):
            if not key:
                continue
            classes = seen.setdefault(key, [])
            same = next((rows for rows in classes if _are_equal(series, t, rows, row, sums, broken)), None)
            if same is not None:
                digest[row, t] = digest[same[0], t]
                same.append(row)
                continue
            if classes:
                text = f"{key} {len(classes)}".encode("utf-8", "surrogatepass")
                digest[row, t] = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") | 1
            classes.append([row])


def _are_equal(
    series: "_Reading", t: int, rows: Sequence[int], row: int, sums: NDArray[np.float64], broken: NDArray[np.bool_]
) -> bool:
    """Whether a checkpoint has the bytes of those of other rows in a tensor, as was seen or is read once more."""
    last = rows[-1]
    place = {1: 1, 2: 2}.get(row - last, 3 if rows[0] == 0 else 0)
    if place and not broken[row, t] and np.isfinite(sums[row, t, place]):
        return bool(sums[row, t, place] == 0)
    return series.equal(t, last, row)


def _open(path: Path, pick: Pick) -> Opened:
    source = Source(path)
    with readable(path):
        content = open_content(source, path)
        stored = find_weights(content.tree, pick, path, source.budget)
    return Opened(path, content, {short: name for name, short in canonical(stored).items()}, stored)


class _Reading:
    """The arrays that pieces fill in; each piece has places of its own, so that threads need no lock."""

    def __init__(self, opened: Sequence[Opened], share: Share) -> None:
        self.opened, self.share = opened, share
        self.tensors = tuple(dict.fromkeys(name for item in opened for name in item.names))
        self.column = {name: t for t, name in enumerate(self.tensors)}
        self.described = tuple(
            {
                short: Described(tuple(item.stored[name].shape), item.stored[name].dtype)
                for short, name in item.names.items()
            }
            for item in opened
        )
        self.sizes = np.array([max(self._sizes(name)) for name in self.tensors], np.int64)
        self.plain = [self._are_plain(name) for name in self.tensors]
        self.read_sizes = np.array([self._read_of(t) for t in range(len(self.tensors))], np.int64)
        self.shape = len(opened), len(self.tensors)
        pieces = [max(1, -(-int(size) // PIECE)) if self._divisible(t) else 1 for t, size in enumerate(self.read_sizes)]
        self.pieces = [self._split(t, count) for t, count in enumerate(pieces)]
        self.sums = [np.zeros((len(opened), count, SUMS)) for count in pieces]
        self.counts = [np.zeros((len(opened), count, 2), np.int64) for count in pieces]
        self.hashes = [np.zeros((len(opened), count), np.uint64) for count in pieces]
        self.bits = [np.zeros((len(opened), count), np.uint32) for count in pieces]
        self.places = [self._places(t) for t in range(len(self.tensors))]
        self.sample = [np.full((len(opened), len(places)), np.nan, np.float32) for places in self.places]

    def _sizes(self, name: str) -> list[int]:
        return [math.prod(about[name].shape) for about in self.described if name in about]

    def _are_plain(self, name: str) -> bool:
        """Whether the numbers of a tensor lie one behind the other in every checkpoint that has it."""
        return all(_is_plain(item.stored[item.names[name]]) for item in self.opened if name in item.names)

    def _divisible(self, tensor: int) -> bool:
        """Whether a span of its numbers can be read by itself from all checkpoints."""
        return self.plain[tensor] and len(set(self._sizes(self.tensors[tensor]))) == 1

    def _read_of(self, tensor: int) -> int:
        """How many numbers of it are read; all where the numbers of some checkpoint do not lie one behind the other."""
        size = int(self.sizes[tensor])
        return self.share.of(size) if self.plain[tensor] else size

    def _split(self, tensor: int, count: int) -> list[Piece]:
        size = int(self.read_sizes[tensor])
        edges = [min(k * PIECE, size) for k in range(count)] + [size]
        return [Piece(tensor, k, start, end) for k, (start, end) in enumerate(itertools.pairwise(edges))]

    def _places(self, tensor: int) -> NDArray[np.int64]:
        """Which numbers of a tensor are kept: drawn from equal strata, the same in every run."""
        size = int(self.read_sizes[tensor])
        share = min(MOST_SAMPLED, SAMPLE_BYTES // (4 * self.shape[0])) // max(1, self.shape[1])
        count = min(size, max(share, 1))
        if count == size:
            return np.arange(size)
        edges = np.linspace(0, size, count + 1)
        offsets = streams.stream("sampled weights", 0, tensor).random(count)
        return np.minimum((edges[:-1] + offsets * np.diff(edges)).astype(np.int64), size - 1)

    def units(self) -> list[list[Piece]]:
        """What is read from each checkpoint at once: one piece, or several small ones in the order of the first file."""
        units: list[list[Piece]] = []
        room = 0
        for piece in itertools.chain.from_iterable(self.pieces):
            size = piece.end - piece.start
            if size > room or any(piece.tensor == other.tensor for other in units[-1]):
                units.append([])
                room = PIECE
            units[-1].append(piece)
            room -= size
        return units

    def read(self, unit: list[Piece]) -> None:
        """Fill in what the pieces of a unit say, checkpoint by checkpoint."""
        windows = {piece: _Window() for piece in unit}
        spare: dict[str, NDArray[np.uint8]] = {}
        for row, item in enumerate(self.opened):
            present = [piece for piece in unit if self.tensors[piece.tensor] in item.names]
            wanted, pieces = {}, {}
            for piece in present:
                name = item.names[self.tensors[piece.tensor]]
                wanted[name], pieces[name] = self._span(item.stored[name], piece), piece
            with readable(item.path):
                tensors = read_numbers(item.content.read, wanted, spare) if wanted else {}
            spare = {}
            for name, tensor in tensors.items():
                piece = pieces[name]
                dropped = self._measure(row, piece, tensor, windows[piece])
                if dropped is not None:
                    spare[name] = dropped

    def _measure(self, row: int, piece: Piece, tensor: Numbers, window: "_Window") -> NDArray[np.uint8] | None:
        """What one piece of one checkpoint says; memory that is no longer needed."""
        t, k = piece.tensor, piece.number
        words = _words(tensor.raw)
        self.hashes[t][row, k] = fingerprint(words)
        if not tensor.dtype.has_fractions:
            return None
        if tensor.dtype == DTYPES["float32"]:
            self.bits[t][row, k] = used_bits(words)
        values = _values(tensor)
        sums = np.zeros(SUMS)
        window.add_sums(row, values, sums)
        if not math.isfinite(sums[0]):
            self.counts[t][row, k] = np.isnan(values).sum(), np.isinf(values).sum()
            values = np.where(np.isfinite(values), values, 0)
            sums[:] = 0
            window.add_sums(row, values, sums)
        for place, other in enumerate(window.rows(row, values), 1):
            if other is None:
                sums[place] = np.nan
        self.sums[t][row, k] = sums
        whole = math.prod(self.described[row][self.tensors[t]].shape) == self.sizes[t]
        if whole and values.size == piece.end - piece.start:
            first, last = np.searchsorted(self.places[t], (piece.start, piece.end))
            self.sample[t][row, first:last] = values[self.places[t][first:last] - piece.start]
        return window.push(row, values, tensor.raw)

    def _span(self, leaf: Any, piece: Piece) -> Any:
        """The part of a tensor that a piece is; the whole where it cannot be taken apart."""
        if not _is_plain(leaf):
            return leaf
        size, whole = math.prod(leaf.shape), self.read_sizes[piece.tensor] == self.sizes[piece.tensor]
        end = min(piece.end, size if whole else self.share.of(size))  # one of another shape may be shorter
        if (piece.start, end) == (0, size):
            return leaf
        return replace(leaf, offset=leaf.offset + piece.start, shape=(end - piece.start,), stride=(1,))

    def equal(self, tensor: int, first: int, second: int) -> bool:
        """Whether two checkpoints have the same bytes in a tensor, read once more."""
        name = self.tensors[tensor]
        for piece in self.pieces[tensor]:
            spans = []
            for item in (self.opened[first], self.opened[second]):
                wanted = {name: self._span(item.stored[item.names[name]], piece)}
                with readable(item.path):
                    spans.append(_words(read_numbers(item.content.read, wanted, {})[name].raw))
            if not np.array_equal(spans[0], spans[1]):
                return False
        return True

    def statistics(self, checkpoints: Sequence[Checkpoint]) -> Statistics:
        """What all pieces say together."""
        E, T = self.shape
        sums = np.stack([sums.sum(1) for sums in self.sums], 1) if T else np.zeros((E, 0, SUMS))
        counts = np.stack([counts.sum(1) for counts in self.counts], 1) if T else np.zeros((E, 0, 2), np.int64)
        bits = np.stack([np.bitwise_or.reduce(bits, 1) for bits in self.bits], 1) if T else np.zeros((E, 0), np.uint32)
        lowest = np.where(bits > 0, np.log2(np.maximum(bits & (~bits + 1), 1)), 0)
        for row, about in enumerate(self.described):
            for t, name in enumerate(self.tensors):
                if name not in about or not about[name].dtype.has_fractions:
                    sums[row, t] = np.nan
        sums[..., :4] *= (self.sizes / np.maximum(self.read_sizes, 1))[:, None]
        digest = np.zeros((E, T), np.uint64)
        for row, about in enumerate(self.described):
            for name, what in about.items():
                t = self.column[name]
                text = f"{what.dtype} {what.shape} ".encode() + self.hashes[t][row].tobytes()
                digest[row, t] = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") | 1
        _tell_apart(self, digest, sums, counts.sum(-1) > 0)
        return Statistics(
            checkpoints=tuple(checkpoints), tensors=self.tensors, described=self.described, digest=digest,
            squares=sums[..., 0], step=sums[..., 1], stride=sums[..., 2], start=sums[..., 3],
            zeros=np.nan_to_num(sums[..., 4]).astype(np.int64), nan=counts[..., 0], infinite=counts[..., 1],
            rounded=lowest.astype(np.int64), sample=tuple(self.sample), sizes=self.sizes,
            bytes=sum(math.prod(leaf.shape) * leaf.dtype.itemsize for item in self.opened for leaf in item.stored.values()),
            share=self.share,
        )  # fmt: skip


class _Window:
    """The same piece of the first checkpoint and of the last two, with the rows of these."""

    def __init__(self) -> None:
        self.first: NDArray[Any] | None = None
        self.last: list[tuple[int, NDArray[Any], NDArray[np.uint8]]] = []

    def rows(self, row: int, values: NDArray[Any]) -> tuple[NDArray[Any] | None, ...]:
        """The checkpoint before, the one before that, and the first; None where it has none of that size."""
        by_row = {number: held for number, held, _ in self.last}
        others = by_row.get(row - 1), by_row.get(row - 2), self.first if row else values
        return tuple(other if other is not None and other.size == values.size else None for other in others)

    def add_sums(self, row: int, values: NDArray[Any], sums: NDArray[np.float64]) -> None:
        """Add the sums over values and their differences from the others; from what there is not they differ by 0."""
        others = (values if other is None else other for other in self.rows(row, values))
        previous, before, first = (other.astype(values.dtype, copy=False) for other in others)
        add_sums(values, previous, before, first, sums)

    def push(self, row: int, values: NDArray[Any], raw: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
        """Hold the values of another checkpoint, which lie in `raw`; the memory of what goes, free to be used again."""
        if self.first is None and row == 0:
            self.first = values.copy() if values.size else values
        self.last.append((row, values, raw))
        return self.last.pop(0)[2] if len(self.last) > 2 else None


def _is_plain(leaf: Any) -> bool:
    return isinstance(leaf, Stored) and leaf.is_contiguous


def _words(raw: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Bytes as words of 32 bits, the last filled up with zeros."""
    if raw.size % 4:
        raw = np.concatenate([raw, np.zeros(-raw.size % 4, np.uint8)])
    return raw.view(np.uint32)


def _values(tensor: Numbers) -> NDArray[Any]:
    """The numbers of a tensor in single or double precision, of complex ones both parts in single."""
    values = tensor.values
    if tensor.dtype.kind == "complex":
        return values.astype(np.complex64, copy=False).view(np.float32)
    return values.astype(np.float32) if values.dtype == np.float16 else values
