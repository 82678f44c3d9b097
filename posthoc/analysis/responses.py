"""What an audit says, and audit.json (version 2): every control, and what each measure responds to."""

import math
from dataclasses import dataclass, field
from enum import StrEnum
from os import PathLike
from typing import Annotated, Any

import numpy as np

from posthoc.analysis.arrays import FloatArray
from posthoc.analysis.protocol import Protocol
from posthoc.analysis.records import Aside
from posthoc.analysis.stored import plain
from posthoc.errors import PosthocError
from posthoc.files import write_json
from posthoc.shown import SMALL, counted, decimals, shown
from posthoc.typed import Shape, read_typed

FORMAT = "posthoc-audit"
FORMAT_VERSION = 2
LABELS = "labels permuted"
SPLIT = "each class split in ten"
UNTRAINED = "untrained weights"
HALVES = "random halves of the probe"
SHUFFLED = "the document's tokens shuffled"
"""Names of controls that conclusions are drawn from."""


class Reaction(StrEnum):
    """What a measure does under a change, in the order in which that is told."""

    RESPONDS = "responds"
    INDIFFERENT = "indifferent"
    UNDECIDED = "undecided"
    UNDEFINED = "undefined"


STRENGTH = (Reaction.UNDEFINED, Reaction.INDIFFERENT, Reaction.UNDECIDED, Reaction.RESPONDS)
"""Of several outcomes of the same change, the last counts."""


class Change(StrEnum):
    """What a control alters."""

    ORDER = "order within class"
    LABELS = "labels"
    CLASSES = "number of classes"
    TRAINING = "training"
    SMOOTHING = "smoothing"
    IMAGES = "number of images"
    CHANNELS = "number and choice of channels"
    TIME = "order of time"
    TEXT = "the text"
    DOCUMENTS = "number of documents"
    CONTEXT = "length of the documents"
    START = "tokens left out at the start"
    LAYER = "choice of layers"
    PRECISION = "precision of the values"
    PROBE = "which half of the probe"
    PREPARATION = "preparation of the probe"
    SPACING = "spacing of the checkpoints"


@dataclass(frozen=True)
class Spread:
    """A measure under a control: mean over its draws, their standard deviation, the range of 95 % of them, their number.

    Over documents, where there are any: the mean over them, its standard error and 95 % interval, and their number.
    count: 0 in files of versions that did not record it.
    """

    mean: float
    sd: float
    low: float
    high: float
    count: int = 0

    @classmethod
    def of(cls, values: FloatArray) -> "Spread":
        """Of the values that are finite."""
        values = values[np.isfinite(values)]
        if not len(values):
            return cls(np.nan, np.nan, np.nan, np.nan)
        low, high = np.quantile(values, [0.025, 0.975])
        sd = float(values.std(ddof=1)) if len(values) > 1 else 0.0
        return cls(float(values.mean()), sd, float(low), float(high), len(values))


@dataclass(frozen=True)
class Control:
    """One row of the audit. changes: what it alters (a `Change`), None for the run as it is and for mere references."""

    name: str
    changes: str | None
    measures: dict[str, Spread]


@dataclass(frozen=True)
class Effect:
    """What a control does to a measure, the interval by which that is decided, and what follows.

    low, high: with the order of images or over documents; the 90 % interval of what is indifferent, since two one-sided
    tests at 5 % decide so, else the 95 % one.
    changes: a `Change`, with the control's name where several of that change come out alike; control: that name (empty in
    files of versions that did not say).
    """

    changes: str
    outcome: Reaction
    effect: float = math.nan
    low: float = math.nan
    high: float = math.nan
    control: str = ""

    @property
    def interval(self) -> str:
        """The interval that decides, with its level.

        >>> Effect("labels", Reaction.INDIFFERENT, 0.01, -0.02, 0.04).interval
        '90 % interval -0.020 to +0.040'
        """
        level = 90 if self.outcome is Reaction.INDIFFERENT else 95
        return f"{level} % interval {signed(self.low)} to {signed(self.high)}"


def signed(value: float) -> str:
    """A difference with its sign.

    >>> signed(0.0642), signed(-3e-5), signed(0.0)
    ('+0.064', '-3e-05', '0')
    """
    return "0" if abs(value) <= SMALL else decimals(value, 3, "+")


@dataclass(frozen=True)
class Response:
    """What one measure responds to. margin_from: how the margin was come by, where the measure has none of its own. value: of the run as it is; spread_by_order: sd over orders of the images, or over
    documents, see `Audit.varies`, or with what `varies` says; margin: below which a change is called small (NaN in files that have none); order_p: of
    the value among the orders that the deciding null draws."""

    symbol: str
    value: float
    spread_by_order: float
    effects: tuple[Effect, ...]
    margin: float = math.nan
    order_p: float = math.nan
    margin_from: str = ""
    varies: str = ""

    def which(self, outcome: Reaction) -> dict[str, Effect]:
        """The effects of one outcome, by what they change."""
        return {effect.changes: effect for effect in self.effects if effect.outcome == outcome}

    def by_change(self, outcome: Reaction) -> dict[str, list[Effect]]:
        """The effects of one outcome, those of several controls of a change together."""
        effects: dict[str, list[Effect]] = {}
        for effect in self.which(outcome).values():
            effects.setdefault(effect.changes.removesuffix(f" ({effect.control})"), []).append(effect)
        return effects


@dataclass(frozen=True, repr=False)
class Audit:
    """All controls of a run, for each measure what it responds to, and what follows, in sentences.

    samples: their number, and called: what they are called; aside: controls that were not made, and why; varies: with what
    measures vary by themselves; intervals: what intervals are over, where that is not the draws.
    """

    path: str
    sha256: str
    probe: str
    samples: int
    protocol: Protocol
    draws: int
    seed: int
    controls: Annotated[tuple[Control, ...], Shape(("controls",), least=1)]
    measures: dict[str, Response]
    conclusions: tuple[str, ...]
    called: str = "images"
    aside: dict[str, Aside] = field(default_factory=dict)
    varies: str = "with the order of images"
    intervals: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The content of audit.json: plain values, NaN as None."""
        content: dict[str, Any] = plain(self)
        return {"format": FORMAT, "format_version": FORMAT_VERSION} | content

    def save(self, path: str | PathLike[str]) -> None:
        """Write audit.json.

        Parameters
        ----------
        path
            Where; a file that is there is replaced.
        """
        write_json(path, self.to_dict())

    def __repr__(self) -> str:
        symbols = ", ".join(response.symbol for response in self.measures.values())
        return f"<Audit: {symbols} of {counted(len(self.controls), 'control')}, {self.samples} {self.called}>"

    def _repr_html_(self) -> str:
        from posthoc.report.notebook import as_notebook
        from posthoc.report.tables_of_audits import factors

        return as_notebook(self.conclusions, factors(self))


def load_audit(path: str | PathLike[str]) -> Audit:
    """Read an audit.json of any version.

    Parameters
    ----------
    path
        The file that `posthoc audit` wrote.

    Returns
    -------
    Audit

    Raises
    ------
    PosthocError
        Where the file is absent, damaged or not one.
    """
    result: Audit
    result, _ = read_typed(path, Audit, FORMAT, FORMAT_VERSION, "an audit", "posthoc audit", {1: _upgraded})
    for control in result.controls:
        if missing := sorted(result.measures.keys() - control.measures.keys()):
            lacking = f"control {shown(control.name)} lacks {shown(', '.join(missing))}"
            raise PosthocError(f"{path} is damaged ({lacking}); write it again with `posthoc audit`.")
    return result


def _upgraded(old: dict[str, Any]) -> dict[str, Any]:
    """Content of version 1 as version 2 has it."""
    from posthoc.analysis.measures import MEASURES

    measures = {}
    for key, verdict in old["verdicts"].items():
        effects = [
            {"changes": changes, "outcome": outcome, **effect}
            for outcome in (Reaction.RESPONDS, Reaction.INDIFFERENT, Reaction.UNDECIDED) for changes, effect in verdict.get(outcome, {}).items()
        ] + [{"changes": changes, "outcome": Reaction.UNDEFINED} for changes in verdict["undefined"]]  # fmt: skip
        names = ("value", "spread_by_order", "margin", "order_p")
        measures[key] = {name: verdict[name] for name in names if name in verdict}
        measures[key] |= {"symbol": MEASURES[key].symbol, "effects": effects}
    return old | {"probe": old["probe"]["name"], "samples": old["probe"]["images"], "measures": measures}
