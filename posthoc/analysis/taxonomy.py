"""Names for the states that runs end up in: `taxonomy-1`, whose thresholds give all nine labels of arXiv 2604.09716."""

import math
from dataclasses import dataclass

STATES = (
    "rigidly synchronised", "partial integration", "stable convergent", "metastable, high integration", "transitional",
    "indeterminate",
)  # fmt: skip


@dataclass(frozen=True)
class Taxonomy:
    """Thresholds of mean integration; the paper names states and prints no thresholds of its own."""

    version: str = "taxonomy-1"
    rigid: float = 0.2
    partial: float = 0.6
    high: float = 0.9


@dataclass(frozen=True)
class State:
    """A state's name, and why it is that one, in words."""

    name: str
    reason: str


def classify(
    h_eff: float,
    r_fields: float,
    r_accuracy: float,
    interval: tuple[float, float] = (math.nan, math.nan),
    told_apart: bool | None = None,
    taxonomy: Taxonomy | None = None,
) -> State:
    """The state of a run from its mean integration, r(Hz, Mz) and r(Psi, accuracy).

    interval: of the mean integration, NaN where it is not known; told_apart: whether H or M can be told from its null,
    None where there are no nulls. The rules are tried in order: below `rigid`, below `partial`, r(Hz, Mz) < 0 with
    r(Psi, accuracy) > 0, at or above `high`, else transitional. Where the interval holds a threshold, or neither
    measure can be told from its null, the state is indeterminate.

    >>> classify(0.057, 0.864, -0.760).name
    'rigidly synchronised'
    >>> classify(0.88, -0.371, 0.6).reason
    'r(Hz, Mz) = -0.371 is below 0 and r(Psi, accuracy) = 0.600 above it'
    """
    taxonomy = taxonomy or Taxonomy()
    if not math.isfinite(h_eff):
        return State("indeterminate", "there is no integration")
    if told_apart is False:
        return State("indeterminate", "neither integration nor metastability can be told from pure noise")
    low, high = interval
    for threshold in (taxonomy.rigid, taxonomy.partial, taxonomy.high):
        if low < threshold <= high:
            return State("indeterminate", f"the interval of H_eff, {low:.3f} to {high:.3f}, holds {threshold}")
    if h_eff < taxonomy.rigid:
        return State("rigidly synchronised", f"H_eff = {h_eff:.3f} is below {taxonomy.rigid}")
    if h_eff < taxonomy.partial:
        return State("partial integration", f"H_eff = {h_eff:.3f} is below {taxonomy.partial}")
    if r_fields < 0 < r_accuracy:
        reason = f"r(Hz, Mz) = {r_fields:.3f} is below 0 and r(Psi, accuracy) = {r_accuracy:.3f} above it"
        return State("stable convergent", reason)
    if h_eff >= taxonomy.high:
        return State("metastable, high integration", f"H_eff = {h_eff:.3f} is at least {taxonomy.high}")
    return State("transitional", f"H_eff = {h_eff:.3f} is between {taxonomy.partial} and {taxonomy.high}")
