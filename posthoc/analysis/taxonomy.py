"""Names for the states that runs end up in, and whether a run's epochs are enough to give it one.

`taxonomy-1` is the published rule: thresholds of mean values, which give all nine labels of arXiv 2604.09716 and ask
neither how sure the values are nor whether there is anything in them. `taxonomy-2`, the default, has the same thresholds
and gives a name only where the data carry it; else the state is indeterminate, with the reason.
"""

import math
from dataclasses import dataclass

from posthoc.analysis.records import NOWHERE, Interval
from posthoc.analysis.verdicts import Verdict
from posthoc.errors import UsageError

VERSIONS = ("taxonomy-2", "taxonomy-1")
STATES = (
    "rigidly synchronised", "partial integration", "stable convergent", "metastable, high integration", "transitional",
    "indeterminate",
)  # fmt: skip
LEAST_EPOCHS = 10


@dataclass(frozen=True)
class Taxonomy:
    """Thresholds of mean integration (the paper names states and prints none), and what else is asked of a run.

    Raises UsageError for another version.
    """

    version: str = "taxonomy-2"
    rigid: float = 0.2
    partial: float = 0.6
    high: float = 0.9

    def __post_init__(self) -> None:
        if self.version not in VERSIONS:
            raise UsageError(f"No taxonomy is called {self.version!r}; there are {', '.join(VERSIONS)}.")


@dataclass(frozen=True)
class State:
    """A state's name, and why it is that one, in words."""

    name: str
    reason: str


UNKNOWN_H, UNKNOWN_M = (Verdict(symbol, "order", "another order of the same images") for symbol in ("H", "M"))


@dataclass(frozen=True)
class Evidence:
    """What a run says, with 95 % intervals: mean integration, and two correlations over its checkpoints.

    fields: of integration and metastability; accuracy: of the stability index and accuracy; epochs: how many have an
    integration; hurst, metastability: their verdicts against their deciding nulls.
    """

    integration: float
    fields: float
    accuracy: float
    integration_interval: Interval = NOWHERE
    fields_interval: Interval = NOWHERE
    accuracy_interval: Interval = NOWHERE
    epochs: int = 0
    hurst: Verdict = UNKNOWN_H
    metastability: Verdict = UNKNOWN_M


def classify(evidence: Evidence, taxonomy: Taxonomy | None = None) -> State:
    """The state of a run.

    The rules are tried in order: H_eff below `rigid`, below `partial`, r(Hz, Mz) < 0 with r(Psi, accuracy) > 0, H_eff at
    or above `high`, else transitional. `taxonomy-2` asks for 10 epochs, an interval of H_eff without a threshold in it,
    and an H that differs from its deciding null; where the correlations matter (from `partial` on) also for an M that
    differs from its own, and for intervals of theirs that say whether both have these signs.

    >>> classify(Evidence(0.057, 0.864, -0.760), Taxonomy("taxonomy-1")).name
    'rigidly synchronised'
    >>> classify(Evidence(0.057, 0.864, -0.760)).reason
    'fewer than 10 epochs have an H_eff: 0'
    """
    taxonomy = taxonomy or Taxonomy()
    if not math.isfinite(evidence.integration):
        return State("indeterminate", "there is no integration")
    state = _by_thresholds(evidence, taxonomy)
    reason = "" if taxonomy.version == "taxonomy-1" else _doubt(evidence, taxonomy)
    return State("indeterminate", reason) if reason else state


def _by_thresholds(evidence: Evidence, taxonomy: Taxonomy) -> State:
    h_eff, r_fields, r_accuracy = evidence.integration, evidence.fields, evidence.accuracy
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


def _doubt(evidence: Evidence, taxonomy: Taxonomy) -> str:
    """Why the run carries no name; empty where it does."""
    if evidence.epochs < LEAST_EPOCHS:
        return f"fewer than {LEAST_EPOCHS} epochs have an H_eff: {evidence.epochs}"
    if doubt := _not_different(evidence.hurst):
        return doubt
    low, high = evidence.integration_interval
    if not (math.isfinite(low) and math.isfinite(high)):
        return "the mean H_eff has no interval"
    for threshold in (taxonomy.rigid, taxonomy.partial, taxonomy.high):
        if low < threshold <= high:
            return f"the interval of H_eff, {low:.3f} to {high:.3f}, holds {threshold}"
    if evidence.integration < taxonomy.partial:
        return ""
    if doubt := _not_different(evidence.metastability):
        return doubt
    return _doubt_of_signs(evidence)


def _not_different(verdict: Verdict) -> str:
    """Why a measure does not count as different from its null in most checkpoints; empty where it does."""
    if verdict.mostly is None:
        return f"it is not known whether {verdict.symbol} differs from that of {verdict.words}"
    return (
        ""
        if verdict.mostly
        else f"{verdict.symbol} cannot be distinguished from that of {verdict.words} in most epochs"
    )


def _doubt_of_signs(evidence: Evidence) -> str:
    """Why it is not known whether r(Hz, Mz) < 0 and r(Psi, accuracy) > 0; empty where it is."""
    (low_f, high_f), (low_a, high_a) = evidence.fields_interval, evidence.accuracy_interval
    if low_f >= 0 or high_a <= 0 or (high_f < 0 < low_a):
        return ""
    for name, (low, high) in (("r(Hz, Mz)", (low_f, high_f)), ("r(Psi, accuracy)", (low_a, high_a))):
        if not (math.isfinite(low) and math.isfinite(high)):
            return f"{name} has no interval"
        if low < 0 <= high or low <= 0 < high:
            return f"the interval of {name}, {low:.3f} to {high:.3f}, holds 0"
    return "the intervals of the correlations do not say whether both have the signs of a stable convergent run"
