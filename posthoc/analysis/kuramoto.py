"""The Kuramoto order parameter of a batch of series: metastability and synchrony."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from posthoc.analysis.kernels import phase as kernel
from posthoc.errors import UsageError


@dataclass(frozen=True)
class Kuramoto:
    """Result of `kuramoto`: R(t) [T], its standard deviation (ddof 0) and its mean, and how many units were live."""

    order_parameter: NDArray[np.float64]
    metastability: float
    synchrony: float
    n_live: int


def kuramoto(x: ArrayLike) -> Kuramoto:
    """Order parameter of U series (Shanahan 2010): R(t) = |mean over units of exp(i phi_u(t))|.

    phi_u is the phase of the analytic signal of the mean-centred unit. Constant and non-finite units have no phase and
    are left out; without any live unit all is NaN. x: [U, T]. Raises UsageError for another shape.

    Independent units already give a metastability of sqrt((1 - pi/4) / U).

    >>> t = np.linspace(0, 20 * np.pi, 1000, endpoint=False)
    >>> together = kuramoto(np.sin(t) * [[1], [2], [3]])
    >>> round(together.synchrony, 6), round(together.metastability, 6)
    (1.0, 0.0)
    """
    x = np.asarray(x, dtype=np.float64)
    if x.ndim != 2 or 0 in x.shape:
        raise UsageError(f"x has shape {x.shape}; expected a batch of series [U, T].")
    finite = x[np.isfinite(x).all(axis=1)]
    peak = np.abs(finite).max(axis=1, initial=0)
    live = finite[np.ptp(finite / 2, axis=1) > kernel.ROUNDING * peak / 2]
    if not len(live):
        return Kuramoto(np.full(x.shape[1], np.nan), np.nan, np.nan, 0)
    # A power of two costs no digit and keeps squares in range.
    live = np.ldexp(live, -np.frexp(np.abs(live).max(axis=1, keepdims=True))[1])
    live -= live.mean(axis=1, keepdims=True)
    live = np.ldexp(live, -np.frexp(np.abs(live).max(axis=1, keepdims=True))[1])
    R = kernel.order_parameter(live, kernel.hilbert(live))
    return Kuramoto(R, float(R.std()), float(R.mean()), len(live))
