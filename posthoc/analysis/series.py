"""What plays the part of time: the recorded signals A -> the series S handed to the kernels.

Each axis knows its series and how every null that applies to it redraws them; what follows is one path for all.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from posthoc.analysis.kernels import in_threads
from posthoc.analysis.kernels import series as kernel
from posthoc.analysis.kernels.products import product
from posthoc.errors import UsageError


def image_series(x: ArrayLike, labels: ArrayLike, smooth: int = 5) -> NDArray[np.float64]:
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


def _centred(
    x: NDArray[np.floating], order: NDArray[np.int64], starts: NDArray[np.int64], smooth: int
) -> NDArray[np.float64]:
    x, out = np.ascontiguousarray(x), np.empty(x.shape)
    in_threads(lambda first, last: kernel.centre_and_smooth(first, last, x, order, starts, smooth, out), len(x))
    return out


def _by_class(labels: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The images sorted by class (stable) [N], and where each class begins in that order, and N at the end [K + 1]."""
    order = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.diff(labels[order], prepend=labels[order[0]] - 1))
    return order, np.append(starts, len(order))


def depth_series(x: ArrayLike) -> NDArray[np.float64]:
    """Series over the layers: units are images, time is depth.

    x: [L, N], the channel mean of each layer for each image; returns [N, L], standardised over the images, a layer
    without variation being zero.
    """
    x = np.asarray(x, dtype=np.float64)
    centred = x - x.mean(axis=1, keepdims=True)
    spread = centred.std(axis=1, keepdims=True)
    varies = spread > kernel.ROUNDING * np.abs(x).max(axis=1, keepdims=True)
    return np.ascontiguousarray(np.where(varies, centred / np.where(varies, spread, 1), 0).T)


class Axis(Protocol):
    """The material of one epoch. nulls: which measures (H, M) each applicable null is for."""

    nulls: ClassVar[dict[str, str]]

    def series(self) -> NDArray[np.float64]:
        """The observed series [U, T]."""

    def redraw(self, null: str, random: np.random.Generator, live: NDArray[np.bool_]) -> NDArray[np.float64]:
        """The series of the `live` units [U] with what the null redraws drawn anew."""


@dataclass(frozen=True)
class ImageAxis:
    """Signals x [U, N] over labelled images. split: pseudo-classes per class of the null of that name."""

    nulls: ClassVar[dict[str, str]] = {
        "white": "HM", "label": "HM", "order": "HM", "split": "H", "channel": "M", "gaussian": "HM",
    }  # fmt: skip
    x: NDArray[np.floating]
    labels: NDArray[np.int64]
    smooth: int
    split: int = 10

    def series(self) -> NDArray[np.float64]:
        return image_series(self.x, self.labels, self.smooth)

    def redraw(self, null: str, random: np.random.Generator, live: NDArray[np.bool_]) -> NDArray[np.float64]:
        x, labels = self.x if live.all() else self.x[live], self.labels
        if null == "label":
            labels = random.permutation(labels)
        elif null == "split":
            labels = labels * self.split + self._parts(random)
        order, starts = _by_class(labels)
        if null == "white":
            x = random.standard_normal(x.shape, dtype=np.float32)
        elif null == "gaussian":
            x = product(self._mixing[live], random.standard_normal(self.x.shape, dtype=np.float32))
        elif null == "order":  # the stable sort of shuffled images permutes them within their class
            shuffled = random.permutation(len(labels))
            order = shuffled[_by_class(labels[shuffled])[0]]
        elif null == "channel":
            x, order = x[:, order], np.arange(len(labels))
            kernel.shuffle_within(x, starts, random.random(x.shape))
        return _centred(x, order, starts, self.smooth)

    @cached_property
    def _mixing(self) -> NDArray[np.float32]:
        """The factor [U, U] that gives independent noise the channels' covariance within classes."""
        finite = np.isfinite(self.x).all(axis=1, keepdims=True)
        within = image_series(np.where(finite, self.x, 0), self.labels, 1)
        values, vectors = np.linalg.eigh(within @ within.T / within.shape[1])
        return np.asarray(vectors * np.sqrt(np.maximum(values, 0)), dtype=np.float32)

    def _parts(self, random: np.random.Generator) -> NDArray[np.int64]:
        """For each image one of `split` parts of its class, the parts of a class being equally large."""
        parts = np.empty(len(self.labels), np.int64)
        for label in np.unique(self.labels):
            members = np.flatnonzero(self.labels == label)
            parts[random.permutation(members)] = np.arange(len(members)) % self.split
        return parts


@dataclass(frozen=True)
class DepthAxis:
    """Channel means x [L, N] of the layers for each image; left_out: non-finite channels that are not in them."""

    nulls: ClassVar[dict[str, str]] = {"white": "HM", "time": "HM", "phase": "M", "gaussian": "HM"}
    x: NDArray[np.float64]
    left_out: int = 0

    def series(self) -> NDArray[np.float64]:
        return depth_series(self.x)

    def redraw(self, null: str, random: np.random.Generator, live: NDArray[np.bool_]) -> NDArray[np.float64]:
        if null == "white":
            return replace(self, x=random.standard_normal(self.x.shape)).series()[live]
        if null == "gaussian":
            return replace(self, x=_gaussian(self.series(), random).T).series()[live]
        # Standardised again, for that alone makes the images sum to zero in every layer.
        return replace(self, x=_redraw_in_time(self.series(), null, random).T).series()[live]


@dataclass(frozen=True)
class EpochAxis:
    """Image means x [U, E] of the channels over the checkpoints of a window."""

    nulls: ClassVar[dict[str, str]] = DepthAxis.nulls
    x: NDArray[np.float64]

    def series(self) -> NDArray[np.float64]:
        return self.x

    def redraw(self, null: str, random: np.random.Generator, live: NDArray[np.bool_]) -> NDArray[np.float64]:
        if null == "white":
            return random.standard_normal((int(live.sum()), self.x.shape[1]))
        if null == "gaussian":
            return _gaussian(self.x[live], random)
        return _redraw_in_time(self.x[live], null, random)


def _gaussian(x: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.float64]:
    """Gaussian noise, independent from point to point, with the covariance that the units x [U, T] have over time."""
    centred = x - x.mean(axis=1, keepdims=True)
    return np.asarray(product(centred, random.standard_normal((x.shape[1], x.shape[1]))) / np.sqrt(x.shape[1]))


def _redraw_in_time(x: NDArray[np.float64], null: str, random: np.random.Generator) -> NDArray[np.float64]:
    """Time points permuted, the same for all units (`time`), or Fourier phases randomised for each (`phase`)."""
    if null == "time":
        return x[:, random.permutation(x.shape[1])]
    spectrum = np.fft.rfft(x, axis=1)
    turned = spectrum * np.exp(2j * np.pi * random.random(spectrum.shape))
    turned[:, 0] = spectrum[:, 0]
    if x.shape[1] % 2 == 0:  # real by definition: it can only change its sign
        turned[:, -1] = spectrum[:, -1] * random.choice([-1.0, 1.0], len(x))
    return np.fft.irfft(turned, n=x.shape[1], axis=1)
