"""The image axis: units are channels, time is the images of the probe sorted by class."""

import itertools
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from posthoc.analysis.arrays import FloatArray
from posthoc.analysis.axes.axis import Axis, Factor, Recorded, Source, Subject
from posthoc.analysis.intervals import half_splits
from posthoc.analysis.records import PURE_NOISE, Aside
from posthoc.analysis.responses import HALVES, LABELS, SPLIT, UNTRAINED, Change
from posthoc.errors import UsageError
from posthoc.recording import named
from posthoc.streams import stream

PARTS = 10
"""Pseudo-classes of each class when classes are split."""
SMOOTHINGS = (1, 5, 15)
"""Those that an audit tries."""


def image_series(x: ArrayLike, labels: ArrayLike, smooth: int = 5) -> FloatArray:
    """Series over the images of a probe: units are channels, time is images sorted by class.

    Images are sorted by label (stable), each class's mean is subtracted per channel, and a centred moving mean of
    width `smooth` is taken, its window shrinking at the edges as pandas' `rolling(smooth, center=True,
    min_periods=1)`.

    x: [U, N]; labels: [N]; returns float64 [U, N]. Raises UsageError where shapes or `smooth` do not fit.

    >>> image_series([[1, 5, 3, 9]], [0, 1, 0, 1], smooth=1)
    array([[-1.,  1., -2.,  2.]])
    """
    x, labels = np.asarray(x), np.asarray(labels)
    if x.ndim != 2 or labels.shape != x.shape[1:] or not labels.size:
        raise UsageError(f"x of shape {x.shape} and labels of shape {labels.shape}: expected [U, N] and [N].")
    if not 1 <= smooth <= x.shape[1]:
        raise UsageError(f"smooth is {smooth}; give a width from 1 to the number of images, {x.shape[1]}.")
    if x.dtype != np.float32:
        x = x.astype(np.float64, copy=False)
    return _centred(x, *_by_class(labels), smooth)


def _centred(x: NDArray[np.floating], order: NDArray[np.int64], starts: NDArray[np.int64], smooth: int) -> FloatArray:
    from posthoc.analysis.kernels import in_threads
    from posthoc.analysis.kernels import series as kernel

    x, out = np.ascontiguousarray(x), np.empty(x.shape)
    in_threads(lambda first, last: kernel.centre_and_smooth(first, last, x, order, starts, smooth, out), len(x))
    return out


def _reordered(centred: FloatArray, least: FloatArray, order: NDArray[np.int64], smooth: int) -> FloatArray:
    from posthoc.analysis.kernels import in_threads
    from posthoc.analysis.kernels import series as kernel

    out = np.empty_like(centred)
    options = (centred, least, order, smooth, out)
    in_threads(lambda first, last: kernel.reorder_and_smooth(first, last, *options), len(out))
    return out


def _by_class(labels: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The images sorted by class (stable) [N], and where each class begins in that order, and N at the end [K + 1]."""
    order = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.diff(labels[order], prepend=labels[order[0]] - 1))
    return order, np.append(starts, len(order))


@dataclass(frozen=True)
class InOrder:
    """Signals x [U, N] of samples with these labels [N], which the series takes in an order [N] in which the classes begin
    at `starts` [K + 1]; centred: where it is known, `x` less its classes' means and what is rounding alone in each unit;
    samples: which sample each of `x` is, where they are in another order than the material's (None: they are not)."""

    x: NDArray[np.floating]
    labels: NDArray[np.int64]
    order: NDArray[np.int64]
    starts: NDArray[np.int64]
    smooth: int
    centred: tuple[FloatArray, FloatArray] | None = None
    samples: NDArray[np.int64] | None = None

    def series(self) -> FloatArray:
        """The channels over the images in that order, less their class's mean and smoothed [U, N]."""
        if self.centred is None:
            return _centred(self.x, self.order, self.starts, self.smooth)
        return _reordered(*self.centred, self.order, self.smooth)

    def recorded(self) -> Recorded:
        """The signals and labels in that order."""
        order = self.order if self.samples is None else self.samples[self.order]
        return Recorded(self.x[:, self.order], self.labels[self.order], order)


@dataclass(frozen=True)
class ImageMaterial:
    """Signals x [U, N] over labelled images. units, samples: which of the file's they are (None: all); row: which checkpoint
    of the file they are of, where that is not the one audited; alone: whether the file has nothing else of that network."""

    axis: ClassVar[str] = "image"
    x: NDArray[np.floating]
    labels: NDArray[np.int64]
    smooth: int
    units: NDArray[np.int64] | None = None
    samples: NDArray[np.int64] | None = None
    row: int | None = None
    alone: bool = False

    def series(self) -> FloatArray:
        """The channels over the images sorted by class."""
        return image_series(self.x, self.labels, self.smooth)

    def recorded(
        self, asked: Collection[str], layers: NDArray[np.int64] | None, source: Source, row: int
    ) -> Recorded | None:
        """What lies behind the series of the checkpoint in a row of the file, as far as it is asked for; None if nothing is."""
        if not asked:
            return None
        row = row if self.row is None else self.row
        recorded = self.in_order(self.x, self.labels).recorded()
        units = slice(None) if self.units is None else self.units
        order = recorded.order if self.samples is None else self.samples[recorded.order]
        if layers is not None:  # from 0, also where a layer is alone
            layers = np.unique(layers[units], return_inverse=True)[1]
        recorded = replace(recorded, layers=layers)
        if "behaviour" in asked and not self.alone:
            behaviour = {name: values[order] for name, values in source.behaviour(row).items()}
            recorded = replace(recorded, behaviour=behaviour)
        if "weights" in asked and not self.alone:
            recorded = replace(recorded, weights=source.weights(row))
        if "previous" in asked and row and not self.alone:
            before = source.material(row - 1)
            assert isinstance(before, ImageMaterial)
            recorded = replace(recorded, previous=before.x[units][:, order])
        return recorded

    def of_units(self, units: NDArray[np.int64]) -> "ImageMaterial":
        """Of some of the units, by their places."""
        return replace(self, x=self.x[units], units=units)

    def of_samples(self, samples: NDArray[np.int64]) -> "ImageMaterial":
        """Of some of the samples, by their places."""
        return replace(self, x=self.x[:, samples], labels=self.labels[samples], samples=samples)

    def in_order(self, x: NDArray[np.floating], labels: NDArray[np.int64]) -> InOrder:
        """Other signals, or images with other labels, in the order of their series."""
        return InOrder(x, labels, *(self.by_class if labels is self.labels else _by_class(labels)), self.smooth)

    def live(self, live: NDArray[np.bool_]) -> NDArray[np.floating]:
        """The signals of the live units."""
        return self.x if live.all() else self.x[live]

    def noise(self, random: np.random.Generator, live: NDArray[np.bool_]) -> InOrder:
        """Noise, independent in every channel and image."""
        return self.in_order(random.standard_normal(self.live(live).shape, dtype=np.float32), self.labels)

    @cached_property
    def by_class(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The images sorted by class, and where each class begins, see `_by_class`."""
        return _by_class(self.labels)

    @cached_property
    def place_by_class(self) -> NDArray[np.int64]:
        """Where each image stands among those sorted by class [N]."""
        return np.argsort(self.by_class[0])

    @cached_property
    def _centred(self) -> tuple[FloatArray, FloatArray]:
        from posthoc.analysis.kernels import series as kernel

        order, starts = self.by_class
        centred, least = np.empty(self.x.shape), np.empty(len(self.x))
        centred[:, order] = _centred(self.x, order, starts, 1)
        kernel.rounding_of(self.x, centred, least)
        return centred, least

    def centred(self, live: NDArray[np.bool_]) -> tuple[FloatArray, FloatArray]:
        """The signals of the live units less their classes' means [U, N], and what is rounding alone in each [U]."""
        centred, least = self._centred
        return (centred, least) if live.all() else (centred[live], least[live])

    @cached_property
    def mixing(self) -> NDArray[np.float32]:
        """The factor [U, U] that gives independent noise the channels' covariance within classes."""
        finite = np.isfinite(self.x).all(axis=1, keepdims=True)
        within = image_series(np.where(finite, self.x, 0), self.labels, 1)
        values, vectors = np.linalg.eigh(within @ within.T / within.shape[1])
        return np.asarray(vectors * np.sqrt(np.maximum(values, 0)), dtype=np.float32)


def labels_permuted(material: ImageMaterial, random: np.random.Generator, live: NDArray[np.bool_]) -> InOrder:
    """The same images under permuted labels."""
    return material.in_order(material.live(live), random.permutation(material.labels))


def images_reordered(material: ImageMaterial, random: np.random.Generator, live: NDArray[np.bool_]) -> InOrder:
    """The images of each class in another order, the same for all channels."""
    labels = material.labels
    # The stable sort of shuffled images permutes them within their class.
    shuffled = random.permutation(len(labels))
    order = shuffled[_by_class(labels[shuffled])[0]]
    return InOrder(material.live(live), labels, order, material.by_class[1], material.smooth, material.centred(live))


def split_labels(labels: NDArray[np.int64], random: np.random.Generator) -> NDArray[np.int64]:
    """Labels [N] of each class in `PARTS` equally large parts, drawn at random."""
    parts = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        parts[random.permutation(members)] = np.arange(len(members)) % PARTS
    return labels * PARTS + parts


def classes_split(material: ImageMaterial, random: np.random.Generator, live: NDArray[np.bool_]) -> InOrder:
    """Each class in `PARTS` equally large parts, drawn at random."""
    return material.in_order(material.live(live), split_labels(material.labels, random))


def channels_reordered(material: ImageMaterial, random: np.random.Generator, live: NDArray[np.bool_]) -> InOrder:
    """Each channel's images of a class in an order of its own."""
    from posthoc.analysis.kernels import series as kernel

    order, starts = material.by_class
    x: NDArray[np.floating] = np.take(material.live(live), order, axis=1)  # which takes a third of the time of indexing
    kernel.shuffle_within(x, starts, random.random(x.shape))
    return InOrder(x, material.labels[order], np.arange(len(order)), starts, material.smooth, samples=order)


def gaussian(material: ImageMaterial, random: np.random.Generator, live: NDArray[np.bool_]) -> InOrder:
    """Noise, independent from image to image, with the channels' covariance."""
    from posthoc.analysis.kernels.products import product

    noise = random.standard_normal(material.x.shape, dtype=np.float32)
    return material.in_order(product(material.mixing[live], noise), material.labels)


def by_class_halved(labels: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The places of two equal halves of the samples, the first and the last of each class, so that both have the same
    classes in whatever order a probe keeps its samples; what classes of odd size have in the middle goes to one after the
    other.

    >>> [half.tolist() for half in by_class_halved(np.array([0, 0, 0, 0, 0, 1, 1, 1]))]
    [[0, 1, 2, 5], [3, 4, 6, 7]]
    """
    order, starts = _by_class(labels)
    first, rest, middle = [], [], []
    for start, end in itertools.pairwise(starts.tolist()):
        half = (end - start) // 2
        first.append(order[start : start + half])
        rest.append(order[end - half : end])
        middle += order[start + half : end - half].tolist()
    pairs = np.array(middle[: len(middle) // 2 * 2], np.int64).reshape(-1, 2)
    return np.sort(np.concatenate([*first, pairs[:, 0]])), np.sort(np.concatenate([*rest, pairs[:, 1]]))


def _factors(subject: Subject) -> list[Factor]:
    """The order of the images, the labels and classes, training, and the settings of the protocol and the probe."""
    activations, labelled = subject.activations, subject.activations.labelled
    samples, material = activations.recording.provenance.samples, subject.source.material(subject.row)
    assert isinstance(material, ImageMaterial)

    def drawn(name: str, changes: Change | None, null: str) -> Factor:
        return Factor(named(name, samples), changes, lambda: [material], null)

    order = f"images{' of each class' if labelled else ''} in another order"
    of_labels = [drawn(LABELS, Change.LABELS, "label"), drawn(SPLIT, Change.CLASSES, "split")]
    if not labelled:
        of_labels = [Factor(factor.name, factor.changes, aside=Aside.NEEDS_LABELS) for factor in of_labels]
    return [
        Factor("", None, lambda: [material]),
        drawn(order, Change.ORDER, "order"),
        *of_labels,
        *_of_untrained(subject, material),
        *_of_settings(subject, material, samples),
        *_of_recording(subject, material, drawn(order, Change.ORDER, "order").name),
        drawn("each channel's images in its own order", None, "channel"),
        drawn("", None, "gaussian"),
        drawn("", None, PURE_NOISE),
    ]


def _of_untrained(subject: Subject, material: ImageMaterial) -> list[Factor]:
    """The untrained networks: checkpoints of step 0 and controls, each keyed by a number that no other row has."""
    activations, signal = subject.activations, subject.protocol.signal
    rows = np.flatnonzero(activations.steps[:-1] == 0).tolist()
    seeds = len(activations.untrained_seeds)

    def untrained() -> Iterator[ImageMaterial]:
        yield from (replace(material, x=activations.read(signal, row), row=row) for row in rows)
        yield from (replace(material, x=activations.read_untrained(signal, k), alone=True) for k in range(seeds))

    if not rows and not seeds:
        return []
    factors = [Factor(UNTRAINED, Change.TRAINING, untrained)]
    if activations.labelled:
        first = rows[0] if rows else len(activations)
        factors.append(Factor(f"{UNTRAINED}, {SPLIT}", None, lambda: [next(untrained())], "split", first))
    return factors


def _of_settings(subject: Subject, material: ImageMaterial, samples: str) -> list[Factor]:
    """Other smoothings, fewer images, and random halves of the channels, as if others had been recorded."""
    by_class = ", class by class" if subject.activations.labelled else ""
    smooth, first_half = material.smooth, f"the first half of the {samples}{by_class}"

    def smoothed(width: int) -> Factor:
        changed = replace(material, smooth=width)
        return Factor(f"smoothing {width} instead of {smooth}", Change.SMOOTHING, lambda: [changed], paired=True)

    widths = SMOOTHINGS if subject.protocol.estimator == "dfa" else ()  # likelihoods are of series that nobody smoothed
    first, rest = map(material.of_samples, by_class_halved(material.labels))

    def halves_of_channels() -> Iterator[ImageMaterial]:
        for draw in range(subject.count):
            random = stream("audited channels", subject.seed, subject.row, draw)
            chosen = random.permutation(len(material.x))[: max(1, len(material.x) // 2)]
            yield material.of_units(np.sort(chosen))

    def halves_of_samples() -> Iterator[ImageMaterial]:
        for draw in range(subject.count):
            halved = half_splits(material.labels, stream("audited samples", subject.seed, subject.row, draw), 1)[0]
            yield material.of_samples(np.flatnonzero(halved))

    return [
        *(smoothed(width) for width in widths if width != smooth),
        Factor(first_half, Change.IMAGES, lambda: [first]),
        Factor(f"the other half of the {samples}", Change.PROBE, lambda: [rest], beside=first_half),
        Factor(HALVES, None, halves_of_samples),
        Factor("half of the channels", Change.CHANNELS, halves_of_channels),
    ]


def _of_recording(subject: Subject, material: ImageMaterial, order: str) -> list[Factor]:
    """Each layer alone, beside all of them in the same orders of the images; half precision; another recording."""
    activations = subject.activations
    layers = np.array([activations.layers.index(layer) for layer, _ in activations.units])

    def alone(layer: int) -> Factor:
        units = np.flatnonzero(layers == layer)
        name = f"{activations.layers[layer]} alone instead of all layers"
        return Factor(name, Change.LAYER, lambda: [material.of_units(units)], "order", beside=order)

    rounded = replace(material, x=material.x.astype(np.float16).astype(np.float32))
    factors = [alone(layer) for layer in range(len(activations.layers))] if len(activations.layers) > 1 else []
    factors.append(Factor("values rounded to half precision", Change.PRECISION, lambda: [rounded], paired=True))
    if subject.other is not None:
        other = subject.other
        prepared = replace(material, x=other.read(subject.protocol.signal, len(other) - 1), alone=True)
        name = other.recording.provenance.preparation
        factors.append(Factor(f"prepared otherwise: {name}", Change.PREPARATION, lambda: [prepared], paired=True))
    return factors


IMAGE = Axis(
    key="image",
    points="images",
    units="channels",
    remedy="extract with more --images",
    decides="order",
    exchangeable=True,
    layered=True,
    length=lambda activations, protocol: len(activations.labels),
    sources=lambda activations, protocol: {
        "": Source(
            lambda e: ImageMaterial(activations.read(protocol.signal, e), activations.labels, protocol.smooth),
            behaviour=lambda e: {name: activations.behaviour(name, e) for name in activations.behaviours},
            weights=activations.statistics,
        )
    },
    factors=_factors,
    varies="with the order of images",
)
