"""The parts of metrics.json and audit.json that are plain dictionaries: their keys, types and lengths.

What is declared here is checked when a file is read; E stands for the number of checkpoints, L for that of layers.
"""

from typing import Annotated, Literal, NotRequired, TypedDict

from posthoc.analysis.verdicts import DESCRIPTIONS
from posthoc.recording import ConfigV1, Recording
from posthoc.typed import Match, Range, Shape

Number = float | None

Logarithms = Annotated[list[Number], Shape(("S",)), Range(-700, 700)]
"""Whose exponentials a float can hold."""
Names = Annotated[list[str], Shape(("L",))]
ByLayer = Annotated[list[list[Number]], Shape(("E", "L"))]
ByPair = Annotated[list[list[list[Number]]], Shape(("E", "L", "L"))]


Null = Annotated[str, Match("|".join(DESCRIPTIONS))]
"""The name of a null."""


class Input(TypedDict):
    """The activations that were measured."""

    path: str
    sha256: str
    probe_sha256: str
    config: NotRequired[ConfigV1]
    recording: NotRequired[Recording]


class Convergence(TypedDict):
    """When volatility had settled, in the summary's unit."""

    retrospective: int | None
    causal: int | None


class ToldApart(TypedDict):
    """A measure and a null over the epochs; what is not required is not in files of the first version."""

    null_mean: Number
    epochs_told_apart: int
    epochs: int
    epochs_wanting_draws: NotRequired[int]
    draws: NotRequired[int]
    decides: NotRequired[bool]


class Settles(TypedDict):
    """In which share of series that do not converge volatility settles, and by when in half of those."""

    share: float
    median: int | None


class Summary(TypedDict):
    """A run in one row."""

    epochs: int
    epochs_with_integration: int
    best_accuracy: Number
    best_epoch: int | None
    hurst_mean: Number
    integration_mean: Number
    integration_sd: Number
    metastability_mean: Number
    metastability_sd: Number
    synchrony_mean: Number
    stability_index_mean: Number
    stability_index_sd: Number
    r_integration_metastability: Number
    r_stability_index_accuracy: Number
    r_integration_metastability_interval: tuple[Number, Number]
    r_stability_index_accuracy_interval: tuple[Number, Number]
    convergence: Convergence
    accuracy_source: str
    unit: NotRequired[Literal["epoch", "step", "checkpoint"]]
    nulls: NotRequired[dict[Null, dict[str, ToldApart]]]
    uneven: NotRequired[str]
    settling: NotRequired[dict[str, dict[str, Settles]]]
    draws: NotRequired[int]
    seed: NotRequired[int]
    doubt: NotRequired[str | None]


class Unit(TypedDict):
    """A channel of a layer, or a layer where there is one number for all of it, and its exponent at every epoch."""

    layer: str
    channel: int | None
    hurst: Annotated[list[Number], Shape(("E",))]


class Locking(TypedDict):
    """Between the channels of every two layers."""

    layers: Names
    plv: ByPair
    ppc: ByPair


class Layers(TypedDict):
    """Each layer by itself."""

    layers: Names
    hurst: ByLayer
    metastability: ByLayer


class Representation(TypedDict):
    """The geometry of the layers."""

    layers: Names
    effective_rank: ByLayer
    participation_ratio: ByLayer
    cka_previous: ByLayer
    cka_last: ByLayer
    cka_layers: ByPair
    participation_ratio_layer: NotRequired[ByLayer]
    cka_previous_sd: NotRequired[ByLayer]
    cka_last_sd: NotRequired[ByLayer]
    cka_layers_sd: NotRequired[ByPair]


class Curve(TypedDict):
    """log F(s), less its mean over the scales, of the units or of a null: mean and ends of the middle 95 %."""

    mean: Logarithms
    low: Logarithms
    high: Logarithms


class Fluctuation(TypedDict):
    """The curves of one checkpoint over its scales S."""

    scales: Annotated[list[int], Shape(("S",)), Range(1)]
    curves: dict[str, Curve]


class Effect(TypedDict):
    """What a control does to a measure, and the range of that with the order of images."""

    effect: Number
    low: Number
    high: Number


class Verdict(TypedDict):
    """What a measure responds to, and to what it does not: by less than `margin`, in files that have one."""

    value: Number
    spread_by_order: Number
    responds: dict[str, Effect]
    indifferent: dict[str, Effect]
    undecided: NotRequired[dict[str, Effect]]
    margin: NotRequired[float]
    order_p: NotRequired[Number]
    undefined: list[str]
