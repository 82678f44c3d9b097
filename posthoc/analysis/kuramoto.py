"""Phase synchrony of a batch of series: the Kuramoto order parameter, and phase locking between groups of series."""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from posthoc.analysis.arrays import ROUNDING, FloatArray, as_series, real_array
from posthoc.analysis.kernels import in_threads
from posthoc.analysis.kernels import phase as kernel
from posthoc.analysis.kernels.dfa import LIVE
from posthoc.errors import UsageError
from posthoc.shown import counted

BUTTERWORTH_ORDER = 4
BLOCK = 16
"""Units that are handled together."""


@dataclass(frozen=True)
class Kuramoto:
    """Result of `kuramoto`.

    order_parameter: R(t) [T] (less what was trimmed); metastability: its standard deviation (ddof 0), 0 where R varies
    by rounding alone; synchrony: its mean; both NaN with fewer than two live units, of which a single one has R 1 by
    definition; n_live: how many units were neither constant nor non-finite.
    """

    order_parameter: FloatArray
    metastability: float
    synchrony: float
    n_live: int


def kuramoto(x: ArrayLike, trim: float = 0.0, band: tuple[float, float] | None = None) -> Kuramoto:
    """Order parameter of U series (Shanahan 2010): R(t) = abs(mean over units of exp(i phi_u(t))).

    phi_u is the phase of the analytic signal of the mean-centred unit. Constant and non-finite units have no phase and
    are left out; without any live unit all is NaN.

    Independent units already give a metastability of sqrt((1 - pi/4) / U).

    Parameters
    ----------
    x
        Units over time [U, T], or one series [T].
    trim
        Fraction of the points dropped at each end after the transform, whose edges wrap around.
    band
        Lowest and highest frequency kept, in cycles per point (0 to 0.5), by a Butterworth filter run forwards and backwards.

    Returns
    -------
    Kuramoto
        `R` over time, its standard deviation `metastability`, its mean `synchrony`, and `n_live`, how many units have a phase.

    Raises
    ------
    PosthocError
        For other shapes, fractions or bands.

    Examples
    --------
    >>> t = np.linspace(0, 20 * np.pi, 1000, endpoint=False)
    >>> together = kuramoto(np.sin(t) * [[1], [2], [3]])
    >>> round(together.synchrony, 6), round(together.metastability, 6)
    (1.0, 0.0)
    """
    if not (isinstance(trim, Real) and 0 <= trim < 0.5):
        raise UsageError(f"trim is {trim}; give a fraction from 0 to below 0.5.")
    blocks = _Blocks(x, band)
    sums = np.empty((len(blocks), 2, blocks.x.shape[1]))
    live = np.empty(len(blocks.x), np.bool_)

    def work(first: int, last: int) -> None:
        for block in range(first, last):
            real, imaginary, live[blocks.units(block)] = blocks.analytic(block)
            kernel.unit_phases(real, imaginary, sums[block])

    in_threads(work, len(blocks))
    return _order_parameter(sums.sum(axis=0), int(live.sum()), trim)


def _order_parameter(sums: FloatArray, units: int, trim: float = 0.0) -> Kuramoto:
    """From the sums [2, T] of so many units' cosines and sines."""
    dropped = int(trim * sums.shape[1])
    kept = slice(dropped, sums.shape[1] - dropped)
    if not units:
        return Kuramoto(np.full(sums[0, kept].shape, np.nan), np.nan, np.nan, 0)
    R = np.sqrt(sums[0, kept] ** 2 + sums[1, kept] ** 2) / units
    if units < 2:
        return Kuramoto(R, np.nan, np.nan, units)
    return Kuramoto(R, 0.0 if np.ptp(R) <= ROUNDING else float(R.std()), float(R.mean()), units)


def metastability_in_halves(x: ArrayLike, halves: FloatArray) -> tuple[float, FloatArray]:
    """Metastability of the units of x [U, T], and that of each half of them less that of the other [K].

    halves: [K, U], 1 for the units of a half. NaN where a half has fewer than two, or a unit no phase.
    """
    blocks = _Blocks(x)
    U, T = blocks.x.shape
    sums, of_halves, n_live = np.zeros((2, T)), np.zeros((2, len(halves), T)), 0
    for block in range(len(blocks)):
        real, imaginary, live = blocks.analytic(block)
        of_block = np.empty((2, T))
        kernel.unit_phases(real, imaginary, of_block)
        sums += of_block
        n_live += int(live.sum())
        if live.all():
            kernel.add_halves(real, imaginary, np.ascontiguousarray(halves[:, blocks.units(block)]), of_halves)
    value = _order_parameter(sums, n_live).metastability
    if n_live < U:
        return value, np.full(len(halves), np.nan)
    units, spread = halves.sum(axis=1), np.empty((2, len(halves)))
    kernel.spread_of_halves(sums, of_halves, spread)
    of_each = np.array([units, U - units])
    first, second = spread / np.where(of_each < 2, np.nan, of_each)
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

    A unit is never paired with itself; constant and non-finite units are left out.

    Parameters
    ----------
    x
        Units over time [U, T].
    groups
        The group of each unit, [U].
    band
        As `posthoc.kuramoto` takes it.

    Returns
    -------
    PhaseLocking
        `plv` and `ppc`, means over pairs of units, [L, L]: rows and columns are the groups in the order in which they first
        appear; NaN where a pair of groups has none.

    Raises
    ------
    PosthocError
        Where `groups` are not as many as the units, or for other shapes or bands.

    Examples
    --------
    >>> t = np.linspace(0, 20 * np.pi, 1000, endpoint=False)
    >>> phase_locking([np.sin(t), np.cos(t), np.sin(1.5 * t)], ["a", "a", "b"]).plv.round(2)
    array([[ 1.,  0.],
           [ 0., nan]])
    """
    names = list(dict.fromkeys(np.asarray(groups).tolist()))
    member = np.array([names.index(name) for name in np.asarray(groups).tolist()])
    blocks = _Blocks(x, band)
    parts = [blocks.analytic(block) for block in range(len(blocks))]
    real, imaginary, live = (np.concatenate(part) for part in zip(*parts, strict=True))
    if member.shape != live.shape:
        raise UsageError(f"{counted(len(member), 'group')} for {counted(len(live), 'unit')}; give one for each.")
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


class _Blocks:
    """The units of a batch x [U, T], so many at a time that what is made of them stays near the processor; band: see
    `kuramoto`."""

    def __init__(self, x: ArrayLike, band: tuple[float, float] | None = None) -> None:
        x, self._rounding = as_series(x)
        self.x = np.ascontiguousarray(np.atleast_2d(x))
        if self.x.ndim != 2 or 0 in self.x.shape:
            raise UsageError(f"x has shape {x.shape}; expected one series [T] or a batch [U, T].")
        self._sections = None if band is None else _bandpass(band)

    def __len__(self) -> int:
        return -(-len(self.x) // BLOCK)

    def units(self, block: int) -> slice:
        """Those of a block."""
        return slice(block * BLOCK, (block + 1) * BLOCK)

    def analytic(self, block: int) -> tuple[FloatArray, FloatArray, NDArray[np.bool_]]:
        """Real and imaginary part [live units, T] of a block's analytic signals, and which of its units are live."""
        x = self.x[self.units(block)]
        real, state = np.empty(x.shape), np.empty(len(x), np.int8)
        kernel.centre_rows(0, len(x), x, self._rounding, real, state)
        live = state == LIVE
        if not live.all():
            real = real[live]
        if self._sections is not None and len(real):
            import scipy.signal  # here, for it takes long to import

            try:
                real = np.ascontiguousarray(scipy.signal.sosfiltfilt(self._sections, real, axis=1))
            except ValueError as error:
                raise UsageError(
                    f"Series of {x.shape[1]} points are too short to filter ({error}); give longer ones, or no band."
                ) from error
        return real, hilbert(real), live


def _bandpass(band: tuple[float, float]) -> FloatArray:
    """The second-order sections of a Butterworth filter. Raises UsageError for what is no band."""
    edges = real_array("band", band).tolist()
    if not (isinstance(edges, list) and len(edges) == 2 and 0 < edges[0] < edges[1] < 0.5):
        raise UsageError(f"band is {band}; give two rising frequencies between 0 and 0.5 cycles per point.")
    import scipy.signal  # here, for it takes long to import

    return np.asarray(scipy.signal.butter(BUTTERWORTH_ORDER, edges, "bandpass", fs=1, output="sos"))


def hilbert(x: FloatArray) -> FloatArray:
    """The Hilbert transform of each row of x [U, T]: the imaginary part of its analytic signal."""
    T = x.shape[1]
    if not len(x):
        return np.empty_like(x)
    spectrum = scipy.fft.rfft(x, axis=1)
    kernel.turn(spectrum, T)
    return np.asarray(scipy.fft.irfft(spectrum, n=T, axis=1, overwrite_x=True))
