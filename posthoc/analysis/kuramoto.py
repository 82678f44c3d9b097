"""Phase synchrony of a batch of series: the Kuramoto order parameter, and phase locking between groups of series."""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import scipy.fft
from numpy.typing import ArrayLike, NDArray

from posthoc.analysis.arrays import ROUNDING, FloatArray, as_series, real_array
from posthoc.analysis.kernels import in_threads
from posthoc.analysis.kernels import phase as kernel
from posthoc.analysis.kernels.dfa import LIVE
from posthoc.errors import UsageError

BUTTERWORTH_ORDER = 4


@dataclass(frozen=True)
class Kuramoto:
    """Result of `kuramoto`.

    order_parameter: R(t) [T] (less what was trimmed); metastability: its standard deviation (ddof 0), 0 where R varies
    by rounding alone, as that of a single unit, which is 1 throughout; synchrony: its mean; n_live: how many units were
    neither constant nor non-finite.
    """

    order_parameter: FloatArray
    metastability: float
    synchrony: float
    n_live: int


def kuramoto(x: ArrayLike, trim: float = 0.0, band: tuple[float, float] | None = None) -> Kuramoto:
    """Order parameter of U series (Shanahan 2010): R(t) = abs(mean over units of exp(i phi_u(t))).

    phi_u is the phase of the analytic signal of the mean-centred unit. Constant and non-finite units have no phase and
    are left out; without any live unit all is NaN.

    x: [U, T], or one series [T]; trim: fraction of the points dropped at each end after the transform, whose edges
    wrap around; band: lowest and highest frequency kept, in cycles per point (0 to 0.5), by a Butterworth filter run
    forwards and backwards. Raises UsageError for other shapes, fractions or bands.

    Independent units already give a metastability of sqrt((1 - pi/4) / U).

    >>> t = np.linspace(0, 20 * np.pi, 1000, endpoint=False)
    >>> together = kuramoto(np.sin(t) * [[1], [2], [3]])
    >>> round(together.synchrony, 6), round(together.metastability, 6)
    (1.0, 0.0)
    """
    if not (isinstance(trim, Real) and 0 <= trim < 0.5):
        raise UsageError(f"trim is {trim}; give a fraction from 0 to below 0.5.")
    return _synchrony(*_analytic(x, band), trim)


def _synchrony(real: FloatArray, imaginary: FloatArray, live: NDArray[np.bool_], trim: float = 0.0) -> Kuramoto:
    dropped = int(trim * real.shape[1])
    kept = slice(dropped, real.shape[1] - dropped)
    if not len(real):
        return Kuramoto(np.full(len(range(real.shape[1])[kept]), np.nan), np.nan, np.nan, 0)
    R = np.empty(real.shape[1])
    in_threads(lambda first, last: kernel.order_parameter(first, last, real, imaginary, R), len(R), kernel.BLOCK)
    R = R[kept]
    return Kuramoto(R, 0.0 if np.ptp(R) <= ROUNDING else float(R.std()), float(R.mean()), int(live.sum()))


def metastability_in_halves(x: ArrayLike, halves: FloatArray) -> tuple[float, FloatArray]:
    """Metastability of the units of x [U, T], and that of each half of them less that of the other [K].

    halves: [K, U], 1 for the units of a half. NaN where a half has none, or a unit no phase.
    """
    real, imaginary, live = _analytic(x, None)
    value = _synchrony(real, imaginary, live).metastability
    if not live.all():
        return value, np.full(len(halves), np.nan)
    lengths = np.empty((2, len(halves), real.shape[1]))
    options = (real, imaginary, np.ascontiguousarray(halves), lengths)
    in_threads(
        lambda first, last: kernel.halves_order_parameter(first, last, *options), real.shape[1], kernel.HALVES_BLOCK
    )
    units = halves.sum(axis=1)
    with np.errstate(invalid="ignore"):
        first, second = lengths.std(axis=2) / np.array([units, len(real) - units])
    return value, np.asarray(first - second)


@dataclass(frozen=True)
class PhaseLocking:
    """Result of `phase_locking`: means over pairs of units, [L, L] over groups; NaN where a pair of groups has none.

    plv: phase-locking value |mean over t of exp(i (phi_u - phi_v))| (Lachaux 1999), biased upwards by 1 / sqrt(T);
    ppc: pairwise phase consistency (Vinck 2010), the square of it freed of that bias.
    """

    plv: FloatArray
    ppc: FloatArray


def phase_locking(
    x: ArrayLike, groups: Sequence[Any] | NDArray[Any], band: tuple[float, float] | None = None
) -> PhaseLocking:
    """Pairwise phase synchrony between groups of units, such as the layers of a network.

    x: [U, T]; groups: [U], the group of each unit; the rows and columns of the result are the groups in the order in
    which they first appear. A unit is never paired with itself; constant and non-finite units are left out.

    >>> t = np.linspace(0, 20 * np.pi, 1000, endpoint=False)
    >>> phase_locking([np.sin(t), np.cos(t), np.sin(1.5 * t)], ["a", "a", "b"]).plv.round(2)
    array([[ 1.,  0.],
           [ 0., nan]])
    """
    names = list(dict.fromkeys(np.asarray(groups).tolist()))
    member = np.array([names.index(name) for name in np.asarray(groups).tolist()])
    real, imaginary, live = _analytic(x, band)
    if member.shape != live.shape:
        raise UsageError(f"{len(member)} groups for {len(live)} units; give one for each.")
    U, T = real.shape
    z = real + 1j * imaginary
    length = np.abs(z)
    z = np.where(length == 0, 1, z / np.where(length == 0, 1, length))  # the angle of 0 is 0
    square = np.abs(z @ z.conj().T) ** 2
    inside = np.eye(len(names))[member[live]]
    pairs = inside.T @ (1 - np.eye(U)) @ inside

    def mean_over_pairs(values: FloatArray) -> FloatArray:
        np.fill_diagonal(values, 0)
        with np.errstate(invalid="ignore"):
            return np.asarray(inside.T @ values @ inside / np.where(pairs > 0, pairs, np.nan))

    return PhaseLocking(mean_over_pairs(np.sqrt(square) / T), mean_over_pairs((square - T) / (T * (T - 1))))


def _analytic(x: ArrayLike, band: tuple[float, float] | None) -> tuple[FloatArray, FloatArray, NDArray[np.bool_]]:
    """Real and imaginary part [live units, T] of the analytic signals, and which units are live [U]."""
    x, rounding = as_series(x)
    x = np.atleast_2d(x)
    if x.ndim != 2 or 0 in x.shape:
        raise UsageError(f"x has shape {x.shape}; expected one series [T] or a batch [U, T].")
    real = np.empty(x.shape)
    state = np.empty(len(x), np.int8)
    x = np.ascontiguousarray(x)
    in_threads(lambda first, last: kernel.centre_rows(first, last, x, rounding, real, state), len(x))
    live = state == LIVE
    if not live.all():
        real = real[live]
    if band is not None:
        edges = real_array("band", band).tolist()
        if not (isinstance(edges, list) and len(edges) == 2 and 0 < edges[0] < edges[1] < 0.5):
            raise UsageError(f"band is {band}; give two rising frequencies between 0 and 0.5 cycles per point.")
        import scipy.signal  # here, for it takes long to import

        sections = scipy.signal.butter(BUTTERWORTH_ORDER, edges, "bandpass", fs=1, output="sos")
        try:
            real = np.ascontiguousarray(scipy.signal.sosfiltfilt(sections, real, axis=1))
        except ValueError as error:
            raise UsageError(
                f"Series of {x.shape[1]} points are too short to filter ({error}); give longer ones, or no band."
            ) from error
    return real, hilbert(real) if len(real) else real, live


def hilbert(x: FloatArray) -> FloatArray:
    """The Hilbert transform of each row of x [U, T]: the imaginary part of its analytic signal."""
    T = x.shape[1]
    imaginary = np.empty_like(x)

    def transform(first: int, last: int) -> None:
        spectrum = scipy.fft.rfft(x[first:last], axis=1)
        spectrum *= -1j
        spectrum[:, 0] = 0
        spectrum[:, (T + 1) // 2 :] = 0  # the frequency of alternating signs that an even T has
        imaginary[first:last] = scipy.fft.irfft(spectrum, n=T, axis=1, overwrite_x=True)

    in_threads(transform, len(x), block=8)
    return imaginary
