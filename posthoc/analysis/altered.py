"""A file of activations with one thing changed, as measures of checkpoints read it."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from posthoc.store import ALL, Activations

OF_CLASSES = ("logits", "prediction", "correct", "loss", "head")
"""What the network said in terms of the classes that it has."""


class Altered(Activations):
    """A view of an open file: some of its checkpoints, samples and channels, other labels, coarser values.

    rows: which checkpoints, in that order (None: all); samples [n]: which of the samples; labels: of all of the file's
    samples [N]; channels: layer -> places of the recorded channels to keep; rounded: signals in half precision; untrained:
    in place of each checkpoint the signals of that untrained network, of which nothing else is known. touched: names of
    what the network said that were read.
    """

    def __init__(
        self, file: Activations, *, rows: Sequence[int] | None = None, samples: NDArray[np.int64] | None = None,
        labels: NDArray[np.int64] | None = None, channels: dict[str, NDArray[np.int64]] | None = None,
        rounded: bool = False, untrained: int | None = None,
    ) -> None:  # fmt: skip
        self.__dict__ |= file.__dict__
        self.rows = list(range(len(file))) if rows is None else list(rows)
        self._samples, self._kept, self._rounded, self._network = samples, channels, rounded, untrained
        self._relabelled = labels is not None
        self.touched: set[str] = set()
        if untrained is not None:
            self.averaged: tuple[int, ...] = ()
            stored_only = ("weights/", "average/")
            self.blocks = {place: block for place, block in file.blocks.items() if not place.startswith(stored_only)}
        labels = file.labels if labels is None else labels
        self.labels = labels if samples is None else labels[samples]
        self.epochs, self.steps = file.epochs[self.rows], file.steps[self.rows]
        if channels is not None:
            self.channels = {layer: of[channels[layer]] for layer, of in file.channels.items()}

    def last_two(self) -> "Altered":
        """Of its checkpoints the last and the one before it, where there is one."""
        view = copy.copy(self)
        view.rows = self.rows[-2:]
        view.epochs, view.steps = self.epochs[-2:], self.steps[-2:]
        return view

    @property
    def behaviours(self) -> tuple[str, ...]:
        """Names of what `behaviour` reads; of untrained networks nothing is known but their signals."""
        return () if self._network is not None else super().behaviours

    def read(self, signal: str, row: int, layer: str | None = None, samples: slice = ALL) -> NDArray[np.float32]:
        """As the file's, changed."""
        layers = self.layers if layer is None else (layer,)
        return np.concatenate([self._layer(signal, row, name) for name in layers])[:, samples]

    def _layer(self, signal: str, row: int, layer: str) -> NDArray[np.float32]:
        if self._network is None:
            return self._changed(super().read(signal, self.rows[row], layer), layer)
        return self._changed(super().read_untrained(signal, self._network, layer), layer)

    def read_untrained(
        self, signal: str, row: int, layer: str | None = None, samples: slice = ALL
    ) -> NDArray[np.float32]:
        """As the file's, changed."""
        read = super().read_untrained
        layers = self.layers if layer is None else (layer,)
        return np.concatenate([self._changed(read(signal, row, name), name) for name in layers])[:, samples]

    def _changed(self, x: NDArray[np.float32], layer: str) -> NDArray[np.float32]:
        x = x if self._kept is None else x[self._kept[layer]]
        x = x if self._samples is None else x[:, self._samples]
        return x.astype(np.float16).astype(np.float32) if self._rounded else x

    def behaviour(self, name: str, row: int | None = None, samples: slice = ALL) -> Any:
        """As the file's, changed; what is right follows the labels."""
        self.touched.add(name)
        if row is None:
            return np.stack([self.behaviour(name, e, samples) for e in range(len(self))])
        if name == "correct" and self._relabelled and "prediction" in self.behaviours:
            return (self.behaviour("prediction", row) == self.labels).astype(np.float32)[samples]
        if name == "loss" and self._relabelled:
            return np.full(len(self.labels), np.nan, np.float32)[samples]
        values = super().behaviour(name, self.rows[row])
        return values[samples] if self._samples is None else values[self._samples][samples]

    def behaviour_of_average(self, count: int, name: str, row: int | None = None) -> Any:
        """As the file's, changed; NaN for other labels and of other checkpoints' mean, of which nothing was replayed."""
        self.touched.add(name)
        if row is None:
            return np.stack([self.behaviour_of_average(count, name, e) for e in range(len(self))])
        last = self.rows[row]
        if self._relabelled or self.rows[: row + 1][-count:] != list(range(last - count + 1, last + 1)):
            return np.full(len(self.labels), np.nan, np.float32)
        values = super().behaviour_of_average(count, name, last)
        return values if self._samples is None else values[self._samples]

    def head(self, name: str, row: int | None = None) -> Any:
        """As the file's, of these checkpoints."""
        self.touched.add("head")
        return (
            np.stack([self.head(name, e) for e in range(len(self))])
            if row is None
            else super().head(name, self.rows[row])
        )

    def weight(self, name: str, row: int | None = None) -> Any:
        """As the file's, of these checkpoints."""
        if row is None:
            return np.stack([self.weight(name, e) for e in range(len(self))])
        return super().weight(name, self.rows[row])
