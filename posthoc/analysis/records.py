"""What travels between the analysis and its readers: the protocol, a run's measures, and metrics.json."""

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray

from posthoc import __version__
from posthoc.analysis.dfa import default_scales, published_scales
from posthoc.analysis.hurst import ESTIMATORS
from posthoc.analysis.nulls import Comparison
from posthoc.analysis.representation import SIGNALS as SPECTRAL
from posthoc.analysis.schema import Fluctuation, Input, Layers, Locking, Representation, Summary, Unit
from posthoc.errors import UsageError
from posthoc.files import replacing
from posthoc.recording import Recording, upgraded
from posthoc.typed import Range, Shape, read_typed

FORMAT = "posthoc-metrics"
FORMAT_VERSION = 1
AXES = ("image", "depth", "epoch")
PER_LAYER = (
    "effective_rank", "participation_ratio", "participation_ratio_layer",
    "cka_previous", "cka_previous_sd", "cka_last", "cka_last_sd",
)  # fmt: skip
"""Of the representation, what metrics.csv has a column for each layer of."""
LEAST_POINTS = 20
"""Points in time that the default scales, 4 to a quarter of them, need for a slope."""
FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Protocol:
    """Every choice that turns signals into measures.

    `published` is that of arXiv 2604.09716: smoothing over 5 images (its DenseNet, MobileNet and VGG runs: 15), ten
    scales from 16 to N // 4, fluctuation averaged over windows. `default` does not smooth, which by itself shapes
    F(s), and uses twelve log-spaced scales up to a quarter of the series and the usual root-mean-square fluctuation.
    estimator: of the Hurst exponent, `dfa`, or `whittle` or `reml`, which take a series for fractional Gaussian noise and
    its F(s) for no more than a picture (`posthoc.hurst`). calibrate: debias the exponents of DFA by simulated noise of the
    same length. axis: what plays the part of time, `image`,
    `depth` or `epoch`; span: checkpoints in an epoch's window on the epoch axis (None: all so far).
    """

    name: str = "published"
    axis: Annotated[str, Literal["image", "depth", "epoch"]] = "image"
    signal: str = "mean"
    smooth: int = 5
    scales: str = "published"
    fluctuation: str = "published"
    h_opt: float = 0.7
    sigma_h: float = 0.15
    w_h: float = 0.5
    window: int = 3
    threshold: float = 0.35
    calibrate: bool = False
    span: int | None = None
    estimator: Annotated[str, Literal["dfa", "whittle", "reml"]] = "dfa"

    @classmethod
    def named(cls, name: str, **changes: Any) -> "Protocol":
        """The protocol `published` or `default`, with the given fields changed (those that are None are not)."""
        axis = changes.get("axis") or "image"
        if axis not in AXES:
            raise UsageError(f"Unknown axis {axis!r}; give {', '.join(AXES)}.")
        if name not in ("published", "default") or (name == "published" and axis != "image"):
            raise UsageError(
                f"No protocol {name!r} for the {axis} axis; give default{' or published' * (axis == 'image')}."
            )
        start = cls() if name == "published" else cls(name="default", smooth=1, scales="default", fluctuation="peng")
        estimator = changes.get("estimator") or "dfa"
        if estimator not in ESTIMATORS or (estimator != "dfa" and changes.get("calibrate")):
            raise UsageError(f"Estimator {estimator!r}; give {', '.join(ESTIMATORS)}, of which dfa can be calibrated.")
        if axis != "image" and estimator == "dfa":
            start = replace(start, calibrate=True)
        protocol = replace(start, **{key: value for key, value in changes.items() if value is not None})
        numbers = (protocol.h_opt, protocol.sigma_h, protocol.threshold)
        if not all(map(math.isfinite, numbers)) or protocol.sigma_h <= 0:
            raise UsageError("h_opt, sigma_h and threshold must be finite, sigma_h above 0.")
        if not 0 <= protocol.w_h <= 1 or protocol.window < 2:
            raise UsageError("w_h must be in 0..1 and window 2 or more.")
        if protocol.signal in SPECTRAL and axis != "epoch":
            raise UsageError(f"The signal {protocol.signal} is one number per checkpoint and layer: use --axis epoch.")
        if protocol.span is not None and protocol.span < LEAST_POINTS:
            raise UsageError(f"span is {protocol.span}; an exponent needs at least {LEAST_POINTS} points in time.")
        return protocol

    def scales_for(self, T: int) -> NDArray[np.int64]:
        """The scales for series of T points; none where they are too short."""
        return published_scales(T) if self.scales == "published" else default_scales(T)


@dataclass(frozen=True)
class EpochMetrics:
    """One checkpoint's measures; NaN where undefined, `reasons` counting why channels have no exponent.

    Intervals are 95 % (`posthoc.analysis.intervals`): over other images and channels on the image axis, over other units
    on the others. nulls: null -> measure -> comparison. hurst_sd: of the exponents of the units as measured, before calibration. untrained: saved at step 0; such a checkpoint is a control and takes no part in the
    run's z-scores and summary.

    As of RunMetrics, a field that files of earlier versions do not have needs a default.
    """

    epoch: Annotated[int, Range(0)] | None
    step: Annotated[int, Range(0)] | None
    untrained: bool
    hurst: float
    hurst_sd: float
    hurst_interval: tuple[float, float]
    integration: float
    integration_interval: tuple[float, float]
    metastability: float
    metastability_interval: tuple[float, float]
    synchrony: float
    integration_z: float
    metastability_z: float
    stability_index: float
    volatility: float
    stability_index_causal: float
    volatility_causal: float
    accuracy: float
    loss: float = field(default=math.nan, kw_only=True)
    n_dead: int
    reasons: dict[str, int]
    nulls: dict[str, dict[str, Comparison]]


def counted(epochs: Sequence[EpochMetrics]) -> tuple[str, list[int]]:
    """What a run's checkpoints are counted in, and the number of each: epochs, or steps, or places in their order.

    Epochs and steps only where all are known and no two are the same.
    """
    for unit in ("epoch", "step"):
        found = [getattr(epoch, unit) for epoch in epochs]
        if None not in found and len(set(found)) == len(found):
            return unit, found
    return "checkpoint", list(range(len(epochs)))


@dataclass(frozen=True)
class RunMetrics:
    """All measures of one run.

    channels: layer, channel and Hurst exponent, as measured, per epoch [E] of every unit; phase_locking: the layers, and
    the mean phase-locking value (plv) and pairwise phase consistency (ppc) between their channels, [E, L, L] each;
    layers: exponent and metastability of each layer by itself, [E, L] each (neither on the depth axis, whose units are
    images); fluctuation: for each epoch its scales and the curves log F(s), each less its mean over the scales, of the
    units and of every null of H: mean and the ends of the middle 95 % of the units, or draws; representation: effective
    rank, participation ratio and debiased CKA of the layers (see `representation`).
    """

    protocol: Protocol
    scales: tuple[int, ...]
    input: Annotated[dict[str, Any], Input]
    epochs: Annotated[tuple[EpochMetrics, ...], Shape(("E",), least=1)]
    summary: Annotated[dict[str, Any], Summary]
    channels: tuple[Annotated[dict[str, Any], Unit], ...]
    phase_locking: Annotated[dict[str, Any], Locking]
    representation: Annotated[dict[str, Any], Representation]
    layers: Annotated[dict[str, Any], Layers] = field(default_factory=dict)
    fluctuation: Annotated[tuple[Annotated[dict[str, Any], Fluctuation], ...], Shape(("E",))] = ()
    versions: dict[str, str] = field(default_factory=dict)
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    @property
    def recording(self) -> Recording:
        """What was replayed, and how."""
        recording: Recording | None = self.input.get("recording")
        return recording or upgraded(self.input["config"])

    def column(self, name: str) -> FloatArray:
        """One field over all epochs, [E]."""
        return np.array([getattr(epoch, name) for epoch in self.epochs], dtype=float)

    def null(self, null: str, measure: str, name: str = "mean") -> FloatArray:
        """One number of a measure's comparison with a null over all epochs, [E]; NaN where there is none."""
        found = (epoch.nulls.get(null, {}).get(measure) for epoch in self.epochs)
        return np.array([math.nan if one is None else getattr(one, name) for one in found])

    def chart(self, name: str, epoch: int | None = None) -> Any:
        """A figure of the report as an Altair chart (extra `report`); epoch: of figures of one epoch (default: last).

        Raises UsageError for a name that `posthoc report --list` does not know.
        """
        from posthoc.report.figures import chart

        return chart(self, name, epoch)

    def to_dict(self) -> dict[str, Any]:
        """The content of metrics.json: plain values, NaN as None."""
        header = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "created_by": f"posthoc {self.versions.get('posthoc', __version__)}",
        }
        values: dict[str, Any] = plain(header | asdict(self))
        return values

    def save(self, path: str | PathLike[str]) -> None:
        """Write metrics.json."""
        with replacing(Path(path)) as temporary:
            temporary.write_text(json.dumps(self.to_dict(), indent=1) + "\n")

    def save_csv(self, path: str | PathLike[str]) -> None:
        """Write one row per epoch, with an empty field where a measure is undefined."""
        per_layer = [name for name in PER_LAYER if name in self.representation]
        rows = [
            _flat(plain(asdict(epoch)))
            | {f"{name}_{layer}": plain(self.representation[name][e][k]) for name in per_layer
               for k, layer in enumerate(self.representation["layers"])}
            for e, epoch in enumerate(self.epochs)
        ]  # fmt: skip
        with replacing(Path(path)) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, dict.fromkeys(name for row in rows for name in row), restval="")
            writer.writeheader()
            writer.writerows(rows)


def load_metrics(path: str | PathLike[str]) -> RunMetrics:
    """Read a metrics.json. Raises PosthocError where it is absent, damaged or not one."""
    run: RunMetrics
    run, _ = read_typed(path, RunMetrics, FORMAT, FORMAT_VERSION, "a metrics file", "posthoc metrics")
    return run


def plain(value: Any) -> Any:
    """Nested values as JSON has them: tuples as lists, numbers that are not finite as None."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """One epoch's record with a column for each number."""
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if name == "reasons":
            flat[name] = "; ".join(f"{count} {why}" for why, count in value.items())
        elif name == "nulls":
            for null, measures in value.items():
                for measure, comparison in measures.items():
                    flat |= {f"{measure}_{null}_{key}": number for key, number in comparison.items()}
        elif name.endswith("_interval"):
            flat |= {name.replace("_interval", "_low"): value[0], name.replace("_interval", "_high"): value[1]}
        else:
            flat[name] = value
    return flat
