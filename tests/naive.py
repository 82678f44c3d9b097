"""Slow and obvious twins of the kernels, straight from the formulas."""

import numpy as np
import scipy.signal


def profile(x):
    """y = cumsum(x - mean x)."""
    x = np.asarray(x, dtype=float)
    return np.cumsum(x - x.mean())


def fluctuation(x, scales, kind):
    """F(s): per window a fitted line, the residuals' root mean square, and the mean (or root mean square) of those."""
    y = profile(x)
    values = []
    for s in scales:
        k = np.arange(s)
        squares = []
        for w in range(len(y) // s):
            window = y[w * s : (w + 1) * s]
            line = np.polyval(np.polyfit(k, window, 1), k)
            squares.append(np.mean((window - line) ** 2))
        values.append(np.mean(np.sqrt(squares)) if kind == "published" else np.sqrt(np.mean(squares)))
    return np.array(values)


def alpha(x, scales, kind):
    """Slope of log F on log s."""
    return np.polyfit(np.log(scales), np.log(fluctuation(x, scales, kind)), 1)[0]


def order_parameter(x):
    """R(t) = |mean over units of exp(i angle)| of the analytic signals."""
    x = np.asarray(x, dtype=float)
    phase = np.angle(scipy.signal.hilbert(x - x.mean(axis=1, keepdims=True), axis=1))
    return np.abs(np.exp(1j * phase).mean(axis=0))


def image_series(x, labels, smooth):
    """Sort by label, subtract class means, average over a centred window that shrinks at the edges."""
    x, labels = np.asarray(x, dtype=float), np.asarray(labels)
    order = sorted(range(len(labels)), key=lambda image: labels[image])
    x, labels = x[:, order], labels[order]
    for label in set(labels.tolist()):
        x[:, labels == label] -= x[:, labels == label].mean(axis=1, keepdims=True)
    result = np.empty_like(x)
    for t in range(x.shape[1]):
        first, last = max(0, t - smooth // 2), min(x.shape[1], t - smooth // 2 + smooth)
        result[:, t] = x[:, first:last].mean(axis=1)
    return result
