"""Names for the states that runs end up in, and whether a run's epochs are enough to give it one.

`taxonomy-1` is the published rule: thresholds of mean values, which give all nine labels of arXiv 2604.09716 and ask
neither how sure the values are nor whether there is anything in them. `taxonomy-2`, the default, has the same thresholds
and gives a name only where the data carry it; else the state is indeterminate, with the reason.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import partial

from posthoc.analysis.axes.image import IMAGE
from posthoc.analysis.measures import Measure
from posthoc.analysis.measures.integration import HURST
from posthoc.analysis.measures.synchrony import METASTABILITY
from posthoc.analysis.nulls import NULLS, deciding
from posthoc.analysis.records import NOWHERE, Interval
from posthoc.analysis.verdicts import Verdict
from posthoc.errors import UsageError

VERSIONS = ("taxonomy-2", "taxonomy-1")
LEAST_EPOCHS = 10


class Name(StrEnum):
    """What a state is called."""

    RIGID = "rigidly synchronised"
    PARTIAL = "partial integration"
    CONVERGENT = "stable convergent"
    METASTABLE = "metastable, high integration"
    TRANSITIONAL = "transitional"
    INDETERMINATE = "indeterminate"


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
    """A state's name and the reason for it, in words."""

    name: Name
    reason: str


def _not_drawn(measure: Measure) -> Verdict:
    """The verdict on a measure of which nothing is known, on the image axis."""
    null = deciding(measure, IMAGE)
    return Verdict(measure.symbol, null, NULLS[null].words)


@dataclass(frozen=True)
class Evidence:
    """What a run says, with 95 % intervals: mean integration, and two correlations over its checkpoints.

    fields: of integration and metastability; accuracy: of the stability index and accuracy, or another score that is
    better the higher it is, by its symbol, score, None where the run has none; epochs: how many have an
    integration; total: of how many; noun: what they are called; hurst, metastability: their verdicts against their deciding nulls;
    noise: the mean integration of pure noise through the same protocol.
    """

    integration: float
    fields: float
    accuracy: float
    integration_interval: Interval = NOWHERE
    fields_interval: Interval = NOWHERE
    accuracy_interval: Interval = NOWHERE
    epochs: int = 0
    hurst: Verdict = field(default_factory=partial(_not_drawn, HURST))
    metastability: Verdict = field(default_factory=partial(_not_drawn, METASTABILITY))
    score: str | None = "accuracy"
    noun: str = "epoch"
    total: int = 0
    noise: float = math.nan

    @property
    def share(self) -> str:
        """How many checkpoints have an integration."""
        return f"{self.epochs} of {self.total}" if self.epochs < self.total else f"{self.epochs}"


def classify(evidence: Evidence, taxonomy: Taxonomy | None = None) -> State:
    """The state of a run.

    The rules are tried in order: H_eff below `rigid`, below `partial`, r(Hz, Mz) < 0 with r(Psi, accuracy) > 0, H_eff at
    or above `high`, else transitional. `taxonomy-2` asks for 10 epochs, an interval of H_eff without a threshold in it,
    an H that differs from its deciding null, and a name that pure noise would not have; where the correlations matter (from `partial` on) also for an M that
    differs from its own, and for intervals of theirs that say whether both have these signs.

    >>> print(classify(Evidence(0.057, 0.864, -0.760), Taxonomy("taxonomy-1")).name)
    rigidly synchronised
    >>> classify(Evidence(0.057, 0.864, -0.760)).reason
    'fewer than 10 epochs have an H_eff: 0'
    """
    taxonomy = taxonomy or Taxonomy()
    if not math.isfinite(evidence.integration):
        return State(Name.INDETERMINATE, "there is no integration")
    doubt = None if taxonomy.version == "taxonomy-1" else next(_doubts(evidence, taxonomy), None)
    name = _by_thresholds(evidence, taxonomy) if doubt is None else Name.INDETERMINATE
    reason = _reason(name, evidence, taxonomy) if doubt is None else doubt
    too_few = doubt is not None and evidence.epochs < LEAST_EPOCHS  # which then is the reason
    if evidence.epochs < evidence.total and not too_few:
        reason += f", from {evidence.share} {evidence.noun}s that have an H_eff"
    return State(name, reason)


def _by_thresholds(evidence: Evidence, taxonomy: Taxonomy) -> Name:
    if evidence.integration < taxonomy.rigid:
        return Name.RIGID
    if evidence.integration < taxonomy.partial:
        return Name.PARTIAL
    if evidence.fields < 0 < evidence.accuracy:
        return Name.CONVERGENT
    return Name.METASTABLE if evidence.integration >= taxonomy.high else Name.TRANSITIONAL


def _reason(name: Name, evidence: Evidence, taxonomy: Taxonomy) -> str:
    """By which thresholds a run has its name."""
    if name is Name.CONVERGENT:
        return f"r(Hz, Mz) = {evidence.fields:.3f} is below 0 and r(Psi, {evidence.score}) = {evidence.accuracy:.3f} above it"
    where = {
        Name.RIGID: f"below {taxonomy.rigid}",
        Name.PARTIAL: f"below {taxonomy.partial}",
        Name.METASTABLE: f"at least {taxonomy.high}",
        Name.TRANSITIONAL: f"between {taxonomy.partial} and {taxonomy.high}",
    }[name]
    return f"H_eff = {evidence.integration:.3f} is {where}"


def _doubts(evidence: Evidence, taxonomy: Taxonomy) -> Iterator[str]:
    """Why the run carries no name, each reason in words; none where it carries one."""
    if evidence.epochs < LEAST_EPOCHS:
        yield f"fewer than {LEAST_EPOCHS} {evidence.noun}s have an H_eff: {evidence.share}"
    yield from _not_different(evidence.hurst, evidence.noun)
    low, high = evidence.integration_interval
    if not (math.isfinite(low) and math.isfinite(high)):
        yield "the mean H_eff has no interval"
    for threshold in (taxonomy.rigid, taxonomy.partial, taxonomy.high):
        if low < threshold <= high:
            yield f"the interval of H_eff, {low:.3f} to {high:.3f}, holds {threshold}"
    if evidence.integration >= taxonomy.partial:
        yield from _not_different(evidence.metastability, evidence.noun)
        yield from _doubts_of_signs(evidence)
    name = _by_thresholds(evidence, taxonomy)
    of_noise = _by_thresholds(replace(evidence, integration=evidence.noise), taxonomy)
    by_level = name is not Name.CONVERGENT  # which is of correlations that noise does not have
    if by_level and name is of_noise and math.isfinite(evidence.noise):
        yield f"pure noise through this protocol would have the same name, with an H_eff of {evidence.noise:.3f}"


def _not_different(verdict: Verdict, noun: str) -> Iterator[str]:
    """Why a measure does not count as different from its null in most checkpoints."""
    if verdict.mostly is None:
        yield f"it is not known whether {verdict.symbol} differs from that of {verdict.words}"
    elif not verdict.mostly:
        yield f"{verdict.symbol} cannot be distinguished from that of {verdict.words} in most {noun}s"


def _doubts_of_signs(evidence: Evidence) -> Iterator[str]:
    """Why it is not known whether r(Hz, Mz) < 0 and r(Psi, score) > 0."""
    (low_f, high_f), (low_a, high_a) = evidence.fields_interval, evidence.accuracy_interval
    if low_f >= 0 or high_a <= 0 or (high_f < 0 < low_a):
        return
    if evidence.score is None:
        yield "it has no score, such as an accuracy, that Psi could rise with"
    for name, (low, high) in (("r(Hz, Mz)", (low_f, high_f)), (f"r(Psi, {evidence.score})", (low_a, high_a))):
        if not (math.isfinite(low) and math.isfinite(high)):
            yield f"{name} has no interval"
        if low < 0 <= high or low <= 0 < high:
            yield f"the interval of {name}, {low:.3f} to {high:.3f}, holds 0"
    yield "the intervals of the correlations do not say whether both have the signs of a stable convergent run"
