"""What plays the part of time: the recorded signals A -> the series S handed to the kernels."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from posthoc.analysis.kernels import in_threads
from posthoc.analysis.kernels import series as kernel
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
    order = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.diff(labels[order], prepend=labels[order[0]] - 1))
    out = np.empty(x.shape)
    options = (np.ascontiguousarray(x), order, np.append(starts, len(order)), smooth, out)
    in_threads(lambda first, last: kernel.centre_and_smooth(first, last, *options), len(x))
    return out
