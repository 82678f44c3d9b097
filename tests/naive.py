"""Slow and obvious twins of the kernels, straight from the formulas."""

import itertools
import math
from fractions import Fraction

import numpy as np
import scipy.signal
import scipy.stats


def mean_tau(x, y, kept):
    """Kendall's tau-b of the kept of x and y, row by row, and the mean of those that there are."""
    taus = [scipy.stats.kendalltau(a[k], b[k]).statistic for a, b, k in zip(x, y, kept, strict=True) if k.sum() > 1]
    return np.nanmean(taus)


def profile(x):
    """y = cumsum(x - mean x)."""
    x = np.asarray(x, dtype=float)
    return np.cumsum(x - x.mean())


def residual(window, order=1):
    """Mean squared residual of a window about its fitted polynomial."""
    k = np.arange(len(window))
    return np.mean((window - np.polyval(np.polyfit(k, window, order), k)) ** 2)


def fluctuation(x, scales, kind, order=1, overlap=0.0, two_sided=False):
    """F(s): per window a fitted polynomial, the residuals' root mean square, and the mean (or root mean square) of it."""
    y = profile(x)
    values = []
    for s in scales:
        step = max(1, int(s * (1 - Fraction(str(overlap)))))
        squares = []
        for side in [y, y[::-1]] if two_sided else [y]:
            for start in range(0, len(y) - s + 1, step):
                squares.append(residual(side[start : start + s], order))
        values.append(np.mean(np.sqrt(squares)) if kind == "published" else np.sqrt(np.mean(squares)))
    return np.array(values)


def physionet(x, scales):
    """F(n) of Peng's own program: the plain cumulative sum in boxes from its start, a line removed from each."""
    y = np.cumsum(np.asarray(x, dtype=float))
    F = []
    for n in scales:
        design = np.stack([np.ones(n), np.arange(n)], axis=1)
        boxes = len(y) // n
        total = 0.0
        for box in range(boxes):
            part = y[box * n : (box + 1) * n]
            coefficients = np.linalg.lstsq(design, part, rcond=None)[0]
            total += ((part - design @ coefficients) ** 2).sum()
        F.append(np.sqrt(total / (boxes * n)))
    return np.array(F)


def alpha(x, scales, kind):
    """Slope of log F on log s."""
    return np.polyfit(np.log(scales), np.log(fluctuation(x, scales, kind)), 1)[0]


def fgn_covariance(H, T):
    """Matrix of fractional Gaussian noise, element by element."""
    lag = np.abs(np.subtract.outer(np.arange(T), np.arange(T))).astype(float)
    return 0.5 * ((lag + 1) ** (2 * H) - 2 * lag ** (2 * H) + np.abs(lag - 1) ** (2 * H))


def fgn_spectrum(H, w, terms=20_000):
    """Spectral density, from its sum over the frequencies that sampling folds onto w, the far ones as an integral."""
    j = np.arange(-terms, terms + 1)
    p = 2 * H + 1
    folded = (np.abs(np.asarray(w)[:, None] + 2 * np.pi * j) ** -p).sum(axis=1)
    folded += 2 * (2 * np.pi * (terms + 0.5)) ** (1 - p) / (2 * np.pi * (p - 1))
    return np.sin(np.pi * H) * math.gamma(p) / np.pi * (1 - np.cos(w)) * folded


def reml_log_likelihood(x, H):
    """Of x less an unknown mean, in the T - 1 contrasts of an orthonormal basis, by dense linear algebra."""
    T = len(x)
    contrasts = np.linalg.svd(np.ones((1, T)))[2][1:]
    covariance = contrasts @ fgn_covariance(H, T) @ contrasts.T
    y = contrasts @ x
    square = y @ np.linalg.solve(covariance, y)
    return -0.5 * (np.linalg.slogdet(covariance)[1] + (T - 1) * np.log(square))


def whittle_log_likelihood(x, H):
    """Periodogram by the sum that defines it, against its expectation from the covariance matrix."""
    T = len(x)
    levels, logs = [], []
    for k in range(1, T // 2 + 1):
        wave = np.exp(-2j * np.pi * k * np.arange(T) / T)
        expected = (wave.conj() @ fgn_covariance(H, T) @ wave).real / T
        weight = 0.5 if 2 * k == T else 1.0
        levels.append((weight * abs(wave @ x) ** 2 / expected, weight))
        logs.append(weight * np.log(expected))
    level, count = np.sum(levels, axis=0)
    return -count * np.log(level / count) - np.sum(logs)


def order_parameter(x):
    """R(t) = |mean over units of exp(i angle)| of the analytic signals."""
    x = np.asarray(x, dtype=float)
    phase = np.angle(scipy.signal.hilbert(x - x.mean(axis=1, keepdims=True), axis=1))
    return np.abs(np.exp(1j * phase).mean(axis=0))


def phase_locking(x, groups):
    """Means over pairs of units of |mean exp(i difference)| and of its unbiased square."""
    x = np.asarray(x, dtype=float)
    T = x.shape[1]
    phase = np.angle(scipy.signal.hilbert(x - x.mean(axis=1, keepdims=True), axis=1))
    names = list(dict.fromkeys(groups))
    plv, ppc = np.full((2, len(names), len(names)), np.nan)
    for i, first in enumerate(names):
        for j, second in enumerate(names):
            pairs = [
                abs(np.exp(1j * (phase[u] - phase[v])).mean())
                for u in range(len(x))
                for v in range(len(x))
                if u != v and groups[u] == first and groups[v] == second
            ]
            if pairs:
                plv[i, j] = np.mean(pairs)
                ppc[i, j] = np.mean([(value**2 * T * T - T) / (T * (T - 1)) for value in pairs])
    return plv, ppc


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


def squared_covariance(x, y):
    """Unbiased estimate of the squared covariance of two channels, by its definition: the mean, over all choices of four
    different images in order, of (x1 - x2) (y1 - y2) (x3 - x4) (y3 - y4) / 4."""
    fours = itertools.permutations(range(len(x)), 4)
    return np.mean([(x[a] - x[b]) * (y[a] - y[b]) * (x[c] - x[d]) * (y[c] - y[d]) / 4 for a, b, c, d in fours])


def squared_variance(x):
    """Unbiased estimate of the square of the total variance of channels x [C, N], in the same way."""
    fours = itertools.permutations(range(x.shape[1]), 4)
    return np.mean([((x[:, a] - x[:, b]) ** 2).sum() * ((x[:, c] - x[:, d]) ** 2).sum() / 4 for a, b, c, d in fours])


def mean_squared_covariance(x, y, total, same):
    """Over all pairs of channels of two layers; of the same channels, those with themselves stand for 1 in `total`."""
    pairs = np.array([[squared_covariance(a, b) for b in y] for a in x])
    if not same:
        return pairs.mean()
    C = len(x)
    with_itself = np.trace(pairs) / C
    others = (pairs.sum() - np.trace(pairs)) / (C * (C - 1))
    return (with_itself + (total - 1) * others) / total


def cka(x, y, of, same=False):
    """Of layers of of[0] and of[1] channels from samples of them."""
    own = mean_squared_covariance(x, x, of[0], True) * mean_squared_covariance(y, y, of[1], True)
    return mean_squared_covariance(x, y, of[0], same) / np.sqrt(own)


def participation_ratio(x, total):
    """Of a layer of `total` channels from a sample of them."""
    C = len(x)
    one = sum(squared_variance(row[None]) for row in x)
    top = one * total / C + (squared_variance(x) - one) * total * (total - 1) / (C * (C - 1))
    return top / (total**2 * mean_squared_covariance(x, x, total, True))


def debiased_cka(x, y):
    """Through N x N Gram matrices with their diagonals set to zero (Song et al. 2012, equation 5)."""

    def hsic(a, b):
        n = a.shape[1]
        K, L = a.T @ a, b.T @ b
        np.fill_diagonal(K, 0)
        np.fill_diagonal(L, 0)
        one = np.ones(n)
        sums = (one @ K @ one) * (one @ L @ one) / ((n - 1) * (n - 2))
        return (np.trace(K @ L) + sums - 2 / (n - 2) * one @ K @ L @ one) / (n * (n - 3))

    return hsic(x, y) / np.sqrt(hsic(x, x) * hsic(y, y))


def autoregression(x, at, phi):
    """Mean of x at the places `at`, its standard error and the restricted log likelihood, by dense linear algebra."""
    x, at = np.asarray(x, dtype=float), np.asarray(at)
    inverse = np.linalg.inv(phi ** np.abs(at[:, None] - at))
    ones = np.ones(len(x))
    information = ones @ inverse @ ones
    mean = ones @ inverse @ x / information
    squares = (x - mean) @ inverse @ (x - mean)
    freedom = len(x) - 1
    likelihood = (np.linalg.slogdet(inverse)[1] - np.log(information) - freedom * np.log(squares)) / 2
    return mean, np.sqrt(squares / freedom / information), likelihood


def effective_number(product, at):
    """E^2 over the sum of product^distance over all pairs of the places `at`."""
    at = np.asarray(at)
    return len(at) ** 2 / (product ** np.abs(at[:, None] - at).astype(float)).sum()


def signs_p(differences):
    """Two-sided p of a mean of differences among all that have other signs, one by one."""
    differences = [float(d) for d in differences]
    value = sum(differences)
    sums = [
        sum(s * d for s, d in zip(signs, differences, strict=True))
        for signs in itertools.product([1, -1], repeat=len(differences))
    ]
    near = 1e-9 * sum(map(abs, differences))
    tails = [sum(s >= value - near for s in sums), sum(s <= value + near for s in sums)]
    return min(1.0, 2 * min(tails) / len(sums))


def repeated_bigrams(tokens):
    """Whether the pair of a token and the one before it stood earlier in the row."""
    result = np.zeros(np.shape(tokens), bool)
    for d, row in enumerate(np.asarray(tokens).tolist()):
        for t in range(1, len(row)):
            result[d, t] = (row[t - 1], row[t]) in [(row[k - 1], row[k]) for k in range(1, t)]
    return result


def calibration_error(p, labels, bins=15):
    """Sample by sample: probabilities [N, K], each into the bin (k / bins, (k + 1) / bins] of its largest one."""
    inside = [[] for _ in range(bins)]
    for row, label in zip(p, labels, strict=True):
        confidence = max(row)
        k = next(k for k in range(bins) if confidence <= (k + 1) / bins or k == bins - 1)
        inside[k].append((confidence, float(np.argmax(row) == label)))
    gaps = [abs(sum(c for c, _ in members) - sum(right for _, right in members)) for members in inside]
    return sum(gaps) / len(labels)


def two_nearest(x):
    """Dimension of samples x [C, N]: slope through the origin of -log(1 - rank / N) on the log of the ratio of the two
    smallest distances, the largest tenth left out."""
    points = [tuple(column) for column in np.asarray(x, dtype=float).T]
    N = len(points)
    ratios = []
    for i, a in enumerate(points):
        first, second = sorted(math.dist(a, b) for j, b in enumerate(points) if j != i)[:2]
        ratios.append(second / first)
    pairs = [(math.log(ratio), -math.log(1 - k / N)) for k, ratio in enumerate(sorted(ratios)[: int(0.9 * N)], 1)]
    return sum(a * b for a, b in pairs) / sum(a * a for a, _ in pairs)


def anisotropy(x):
    """Mean cosine over pairs of different samples x [C, N]."""
    rows = np.asarray(x, dtype=float).T
    cosines = [a @ b / np.sqrt((a @ a) * (b @ b)) for a, b in itertools.combinations(rows, 2)]
    return np.mean(cosines)


def variability(features, labels):
    """NC1 by its definition, with the pseudo-inverse of the covariance of class means."""
    means = np.array([features[labels == k].mean(axis=0) for k in np.unique(labels)])
    centred = means - means.mean(axis=0)
    between = centred.T @ centred / len(means)
    within = sum(np.outer(d, d) for d in features - means[labels]) / len(labels)
    return np.trace(within @ np.linalg.pinv(between, rcond=1e-12, hermitian=True)) / len(means)


def ridge(fitted, held_out, labels, classes, penalty=1.0):
    """Class by class, by the normal equations of an intercept and standardised columns, the intercept free."""
    mean, sd = fitted.mean(axis=0), fitted.std(axis=0)
    sd = np.where(sd > 0, sd, 1)
    design = np.column_stack([np.ones(len(fitted)), (fitted - mean) / sd])
    new = np.column_stack([np.ones(len(held_out)), (held_out - mean) / sd])
    scores = []
    for k in range(classes):
        shrink = penalty * np.eye(design.shape[1])
        shrink[0, 0] = 0
        target = np.where(labels == k, 1.0, -1.0)
        scores.append(new @ np.linalg.solve(design.T @ design + shrink, design.T @ target))
    return np.argmax(scores, axis=0)


def sketch(values, signs, starts, width):
    """Each number with its sign, added to the sum that its place falls into."""
    sums = [0.0] * width
    span = 64 * width
    for i, value in enumerate(values):
        sums[i % span % width] += value * signs[starts[i // span] + i % span]
    return sums


def hill(values):
    """The exponent of the power law whose lower end brings it nearest to the values from there on, candidate by candidate."""
    fits = []
    for least in sorted(set(values))[:-1]:
        tail = sorted(x for x in values if x >= least)
        alpha = 1 + len(tail) / sum(math.log(x / least) for x in tail)
        distances = [abs((1 - (x / least) ** (1 - alpha)) - sum(y < x for y in tail) / len(tail)) for x in tail]
        fits.append((max(distances), alpha))
    return min(fits)[1]


def expanding(function, *columns, least=5):
    """The last value of a function of columns on epochs 0..e, for every e; NaN before `least` epochs with all values."""
    there = np.cumsum(np.isfinite(np.array(columns)).all(axis=0))
    return np.array([
        function(*(np.asarray(column)[: e + 1] for column in columns))[-1] if there[e] >= least else np.nan
        for e in range(len(there))
    ])  # fmt: skip
