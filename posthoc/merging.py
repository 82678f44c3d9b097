"""Parts of one checkpoint each, put together as one activations file; whole or absent."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from posthoc.recording import Provenance, seed_of_control
from posthoc.soundness import refusing, row_of
from posthoc.store import FORMAT_VERSION, PLACES, Activations, Frame, Layout, Skipped
from posthoc.writing import Block, Form, blocks_of, create, created, describe, fill, joined, named_of, to_bytes


class Merger:
    """What is known of parts, each looked at once, and then the file made of them: blocks are copied byte for byte.

    Of the checkpoints' behaviour it holds what all parts have.
    """

    def __init__(self) -> None:
        self.parts: list[Path] = []
        self.frames: list[Frame] = []
        self.nonfinite: list[dict[str, int]] = []
        self.provenances: list[Provenance] = []
        self.blocks: dict[str, Block] = {}
        self.untrained: list[tuple[int, Path]] = []
        self.signals: dict[str, Block] = {}
        self.layout: Layout | None = None

    def add(self, part: Activations) -> None:
        """A part, the next row of the file."""
        self.layout = _layout_of(part)
        blocks = _blocks_in(self.layout, part)
        self.blocks = joined([self.blocks, blocks]) if self.parts else blocks
        self.parts.append(part.path)
        self.frames.append(_first_frame(part))
        self.nonfinite.append({layer: int(counts[0]) for layer, counts in part.nonfinite.items()})
        self.provenances += part.provenances

    def add_untrained(self, number: int, part: Activations) -> None:
        """The part of an untrained network, of which the signals are kept."""
        blocks = _blocks_in(_layout_of(part), part)
        self.signals = joined([self.signals, blocks]) if self.untrained else blocks
        self.untrained.append((number, part.path))

    def write(self, path: Path, skipped: Sequence[Skipped] = (), folder: str = "") -> None:
        """Write the file; skipped: checkpoints that have no part; folder: of the run, where that is known."""
        layout, blocks = self.layout, self.blocks
        assert layout is not None
        if "weights/norm" not in blocks:  # some parts are of a version that kept none
            layout = replace(layout, weights={})
        size = sum(part.stat().st_size for part in [*self.parts, *(part for _, part in self.untrained)])
        named = frozenset(place for frame in self.frames for place in named_of(frame))
        with created(path, size, Form(layout, len(self.parts), named, tuple(blocks.items()))) as file:
            targets = {place: file[place] for place in blocks}
            fill(file, self.frames, self.nonfinite)
            for row, part in enumerate(self.parts):
                _copy(part, targets, row)
            if self.untrained:
                self._write_untrained(file, layout, blocks)
            _write_provenances(file, self.provenances)
            if folder:
                file.attrs["folder"] = folder
            if skipped:
                for name, column in zip(Skipped._fields, zip(*skipped, strict=True), strict=True):
                    texts = list(map(to_bytes, column))
                    file.create_dataset(f"skipped/{name}", data=texts, dtype=h5py.string_dtype())

    def _write_untrained(self, file: h5py.File, layout: Layout, blocks: Mapping[str, Block]) -> None:
        """The signals of the untrained networks."""
        group = file.create_group(PLACES[FORMAT_VERSION].untrained)
        seeds = [seed_of_control(layout.recording.identity.seed, number) for number, _ in self.untrained]
        column = group.create_dataset("seed", data=np.array(seeds, "i8"))
        describe(column, "seed from which the weights of an untrained network were drawn")
        signals = {place: block for place, block in blocks.items() if place.startswith("signals/")}
        targets = {
            place: create(group, place.removeprefix("signals/"), block, len(self.untrained))
            for place, block in joined([signals, self.signals]).items()
        }
        for row, (_, part) in enumerate(self.untrained):
            _copy(part, targets, row)


def _layout_of(part: Activations) -> Layout:
    return Layout(
        part.recording,
        part.images,
        part.labels if part.labelled else None,
        part.channels,
        part.tokens,
        part.text_bytes,
        part.weights,
    )


def _blocks_in(layout: Layout, part: Activations) -> dict[str, Block]:
    return blocks_of(layout, {place: (block.shape[1:], block.dtype) for place, block in part.blocks.items()})


def _first_frame(source: Activations) -> Frame:
    """A part's only checkpoint, without its arrays."""
    epoch, step = (None if column[0] < 0 else int(column[0]) for column in (source.epochs, source.steps))
    return Frame(
        source.checkpoints[0],
        source.checkpoint_sha256[0],
        epoch,
        step,
        source.loss[0],
        source.accuracy[0],
        {name: column[0] for name, column in source.recorded.items()},
        {},
        int(source.nonfinite_weights[0]),
        averaged=source.averaged_sha256[0],
        scores={name: column[0] for name, column in source.scores.items()},
    )


def _copy(part: Path, targets: Mapping[str, h5py.Dataset], row: int) -> None:
    """The blocks of a part that was found sound before; raises PosthocError where it no longer is."""
    for target, where, values, mask in _pieces_of(part, targets):
        if mask is None:
            target[row, *where] = values
        else:
            target.id.write_direct_chunk((row, *where), values, mask)


def _pieces_of(part: Path, targets: Mapping[str, h5py.Dataset]) -> Iterator[tuple[h5py.Dataset, Any, Any, int | None]]:
    """Of each target what the part has for it, piece by piece, and where it belongs in a row; mask: of a chunk as it is stored."""
    with refusing(part), h5py.File(part, "r", locking=False) as file:
        for place, target in targets.items():
            source = file[place]
            if source.compression:
                yield target, (), row_of(source, 0), None
            elif (source.chunks, source.dtype) != (target.chunks, target.dtype):
                for _, *sides in source.iter_chunks():
                    yield target, sides, source[0, *sides], None
            else:
                for k in range(source.id.get_num_chunks()):
                    start = source.id.get_chunk_info(k).chunk_offset
                    mask, block = source.id.read_direct_chunk(start)
                    yield target, start[1:], block, mask


def _write_provenances(file: h5py.File, provenances: Sequence[Provenance]) -> None:
    """All provenances of the checkpoints, and which is whose, where that is not the same."""
    texts = [json.dumps(asdict(provenance)) for provenance in provenances]
    if len(distinct := list(dict.fromkeys(texts))) > 1:
        file.create_dataset("provenance", data=distinct, dtype=h5py.string_dtype())
        rows = file.create_dataset("checkpoint/provenance", data=np.array(list(map(distinct.index, texts)), "i8"))
        describe(rows, "which of /provenance each checkpoint was replayed under")
