"""A run's measures: every epoch of an activations file by itself, beside its nulls, and in relation to the others."""

import csv
import hashlib
import itertools
import json
import math
import platform
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from posthoc import __version__
from posthoc.analysis.calibration import calibration
from posthoc.analysis.dfa import default_scales, dfa, published_scales
from posthoc.analysis.kuramoto import Kuramoto, PhaseLocking, kuramoto, phase_locking
from posthoc.analysis.measures import (
    convergence,
    correlation,
    expanding,
    integration,
    stability_index,
    volatility,
    z_scores,
)
from posthoc.analysis.nulls import (
    Comparison,
    block_bootstrap,
    compare,
    draws,
    hurst_interval,
    mean_alive,
    metastability_interval,
    stream,
)
from posthoc.analysis.series import Axis, DepthAxis, EpochAxis, ImageAxis
from posthoc.errors import PosthocError, UsageError
from posthoc.files import replacing
from posthoc.store import Activations

FORMAT = "posthoc-metrics"
FORMAT_VERSION = 1
AXES = ("image", "depth", "epoch")
FALSE_DISCOVERIES = 0.05
LEAST_POINTS = 20
"""Points in time that the default scales, 4 to a quarter of them, need for a slope."""
FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Protocol:
    """Every choice that turns signals into measures.

    `published` is that of arXiv 2604.09716: smoothing over 5 images (its DenseNet, MobileNet and VGG runs: 15), ten
    scales from 16 to N // 4, fluctuation averaged over windows. `default` does not smooth, which by itself shapes
    F(s), and uses twelve log-spaced scales up to a quarter of the series and the usual root-mean-square fluctuation.
    calibrate: debias exponents by simulated noise of the same length. axis: what plays the part of time, `image`,
    `depth` or `epoch`; span: checkpoints in an epoch's window on the epoch axis (None: all so far).
    """

    name: str = "published"
    axis: str = "image"
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
        if axis != "image":
            start = replace(start, calibrate=True)
        protocol = replace(start, **{key: value for key, value in changes.items() if value is not None})
        if protocol.sigma_h <= 0 or not 0 <= protocol.w_h <= 1 or protocol.window < 2:
            raise UsageError("sigma_h must be above 0, w_h in 0..1 and window 2 or more.")
        if protocol.span is not None and protocol.span < LEAST_POINTS:
            raise UsageError(f"span is {protocol.span}; an exponent needs at least {LEAST_POINTS} points in time.")
        return protocol


@dataclass(frozen=True)
class EpochMetrics:
    """One checkpoint's measures; NaN where undefined, `reasons` counting why channels have no exponent.

    Intervals are 95 %: of hurst and integration by the bootstrap over units, of metastability by the jackknife. nulls:
    null -> measure -> comparison. untrained: saved at step 0; such a checkpoint is a control and takes no part in the run's z-scores and summary.
    """

    epoch: int | None
    step: int | None
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
    n_dead: int
    reasons: dict[str, int]
    nulls: dict[str, dict[str, Comparison]]


@dataclass(frozen=True)
class RunMetrics:
    """All measures of one run.

    channels: layer, channel and Hurst exponent per epoch [E] of every unit; phase_locking: the layers, and the mean
    phase-locking value (plv) and pairwise phase consistency (ppc) between their channels, [E, L, L] each.
    """

    protocol: Protocol
    scales: tuple[int, ...]
    input: dict[str, Any]
    epochs: tuple[EpochMetrics, ...]
    summary: dict[str, Any]
    channels: tuple[dict[str, Any], ...]
    phase_locking: dict[str, Any]
    versions: dict[str, str] = field(default_factory=dict)

    def column(self, name: str) -> FloatArray:
        """One field over all epochs, [E]."""
        return np.array([getattr(epoch, name) for epoch in self.epochs], dtype=float)

    def to_dict(self) -> dict[str, Any]:
        """The content of metrics.json: plain values, NaN as None."""
        content = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "created_by": f"posthoc {__version__}",
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            **asdict(self),
        }
        values: dict[str, Any] = plain(content)
        return values

    def save(self, path: str | PathLike[str]) -> None:
        """Write metrics.json."""
        with replacing(Path(path)) as temporary:
            temporary.write_text(json.dumps(self.to_dict(), indent=1) + "\n")

    def save_csv(self, path: str | PathLike[str]) -> None:
        """Write one row per epoch, with an empty field where a measure is undefined."""
        rows = [_flat(plain(asdict(epoch))) for epoch in self.epochs]
        with replacing(Path(path)) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, dict.fromkeys(name for row in rows for name in row), restval="")
            writer.writeheader()
            writer.writerows(rows)


@dataclass(frozen=True)
class Measured:
    """One epoch by itself: exponents and dead units' reasons, phases, and the draws of its nulls."""

    alpha: FloatArray
    hurst: float
    interval: tuple[float, float]
    phases: Kuramoto
    phases_interval: tuple[float, float]
    locking: PhaseLocking | None
    reasons: Counter[str]
    nulls: dict[str, dict[str, Comparison]]


def compute_metrics(
    activations: Activations,
    protocol: Protocol | None = None,
    nulls: int = 0,
    seed: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
) -> RunMetrics:
    """All measures of one run; one checkpoint's signals are in memory at a time.

    nulls: how many times each null is drawn for each epoch (0: not at all), with random numbers keyed by `seed`.
    Raises PosthocError where there are too few images, layers or checkpoints for the protocol, or the signal was not
    recorded.
    """
    protocol = protocol or Protocol()
    _refuse_too_few(activations, protocol)
    strata = np.repeat(np.arange(len(activations.layers)), [len(rows) for rows in activations.channels.values()])
    white: WhiteDraws = {}
    measured = []
    for e, axis in enumerate(_axes(activations, protocol)):
        measured.append(_measure(axis, protocol, strata, nulls, seed, e, white))
        if progress:
            progress(e + 1, len(activations), activations.checkpoints[e])
    accuracy, accuracy_source = _accuracy(activations)
    epochs = _epochs(activations, protocol, measured, accuracy)
    units = [] if protocol.axis == "depth" else activations.units  # there units are images
    locking = [one.locking for one in measured if one.locking]
    return RunMetrics(
        protocol=protocol,
        scales=tuple(_scales(protocol, _length(activations, protocol)).tolist()),
        input={
            "path": str(activations.path),
            "sha256": _sha256(activations.path),
            "probe_sha256": activations.probe_sha256,
            "config": activations.config,
        },
        epochs=epochs,
        summary=summarise(epochs, protocol, seed) | {"accuracy_source": accuracy_source, "draws": nulls, "seed": seed},
        channels=tuple(
            {"layer": layer, "channel": channel, "hurst": [round(float(one.alpha[u]), 6) for one in measured]}
            for u, (layer, channel) in enumerate(units)
        ),
        phase_locking={
            "layers": activations.layers,
            "plv": [one.plv.round(6).tolist() for one in locking],
            "ppc": [one.ppc.round(6).tolist() for one in locking],
        },
        versions={"posthoc": __version__, "python": platform.python_version()}
        | {name: version(name) for name in ("numpy", "scipy", "numba", "h5py")},
    )


WhiteDraws = dict[tuple[int, int], dict[str, dict[str, FloatArray]]]
"""Draws of the white null by number of units and points: they do not depend on the epoch's activations."""


def _measure(
    axis: Axis, protocol: Protocol, strata: NDArray[np.int64], nulls: int, seed: int, epoch: int, white: WhiteDraws
) -> Measured:
    series = axis.series()
    U, T = series.shape
    scales = _scales(protocol, T)
    if len(scales) < 2:  # the first epochs of the epoch axis
        nothing = Kuramoto(np.full(T, np.nan), np.nan, np.nan, 0)
        reasons = Counter({f"fewer than {LEAST_POINTS} points in time": U})
        return Measured(np.full(U, np.nan), np.nan, NOWHERE, nothing, NOWHERE, None, reasons, {})
    result = dfa(series, scales, fluctuation=protocol.fluctuation)
    live = np.isfinite(result.alpha)
    phases = kuramoto(series)

    def finish(alpha: Any) -> Any:
        """Debiased, where the protocol says so."""
        if not protocol.calibrate:
            return alpha
        return calibration(T, tuple(scales.tolist()), fluctuation=protocol.fluctuation).debias(alpha)

    alpha = mean_alive(result.alpha)
    hurst = float(finish(alpha))
    groups = strata if len(strata) == U else np.zeros(U, np.int64)
    low, high = hurst_interval(result.alpha, groups, stream(seed, epoch, "white", 2**32 - 1))
    comparisons: dict[str, dict[str, Comparison]] = {}
    if nulls:
        key = (int(live.sum()), T)
        options = (live, scales, protocol.fluctuation, nulls, seed)
        if key not in white:
            white[key] = draws(axis, *options, epoch=0, nulls={"white": axis.nulls["white"]})
        others = {null: measures for null, measures in axis.nulls.items() if null != "white"}
        for null, drawn in {**white[key], **draws(axis, *options, epoch=epoch, nulls=others)}.items():
            found = comparisons[null] = {}
            if "H" in drawn:
                exponents = np.asarray(finish(drawn["H"]))
                found["hurst"] = compare(hurst, exponents)
                found["integration"] = compare(_h_eff(hurst, protocol), _h_eff(exponents, protocol))
            if "M" in drawn:
                found["metastability"] = compare(phases.metastability, drawn["M"])
    return Measured(
        alpha=result.alpha,
        hurst=hurst,
        interval=(float(finish(low)), float(finish(high))),
        phases=phases,
        phases_interval=metastability_interval(series, phases.metastability),
        locking=phase_locking(series, strata) if len(strata) == U else None,
        reasons=Counter(reason for reason in result.reason if reason),
        nulls=comparisons,
    )


NOWHERE = (math.nan, math.nan)


def _axes(activations: Activations, protocol: Protocol) -> Iterator[Axis]:
    """The axis of every epoch, one after another."""
    if protocol.axis == "epoch":
        means = np.stack([activations.read(protocol.signal, e).mean(axis=1) for e in range(len(activations))], axis=1)
    sizes = np.cumsum([0, *(len(rows) for rows in activations.channels.values())])
    for e in range(len(activations)):
        if protocol.axis == "epoch":
            first = 0 if protocol.span is None else max(0, e + 1 - protocol.span)
            yield EpochAxis(means[:, first : e + 1].astype(np.float64))
        elif protocol.axis == "depth":
            x = activations.read(protocol.signal, e)
            yield DepthAxis(np.stack([x[a:b].mean(axis=0, dtype=np.float64) for a, b in itertools.pairwise(sizes)]))
        else:
            yield ImageAxis(activations.read(protocol.signal, e), activations.labels, protocol.smooth)


def _length(activations: Activations, protocol: Protocol) -> int:
    """The most points in time that a series has."""
    if protocol.axis == "epoch":
        return min(len(activations), protocol.span or len(activations))
    return len(activations.layers) if protocol.axis == "depth" else len(activations.labels)


def _scales(protocol: Protocol, T: int) -> NDArray[np.int64]:
    return published_scales(T) if protocol.scales == "published" else default_scales(T)


def _refuse_too_few(activations: Activations, protocol: Protocol) -> None:
    T = _length(activations, protocol)
    if len(_scales(protocol, T)) >= 2:
        return
    least = 68 if protocol.scales == "published" else LEAST_POINTS
    what, remedy = {
        "image": ("images", "extract with more --images"),
        "depth": ("layers", "extract with --layers all"),
        "epoch": ("checkpoints", "save more of them"),
    }[protocol.axis]
    raise PosthocError(
        f"{activations.path}: {T} {what} are too few for the {protocol.axis} axis with the {protocol.name} protocol, "
        f"which needs {least}; {remedy}."
    )


def _h_eff(hurst: Any, protocol: Protocol) -> Any:
    return integration(hurst, protocol.h_opt, protocol.sigma_h)


def _integration_interval(low: float, high: float, protocol: Protocol) -> tuple[float, float]:
    """What integration can be while the exponent is in its interval: up to 1 where that holds the optimum."""
    ends = sorted(float(_h_eff(end, protocol)) for end in (low, high))
    return (ends[0], 1.0) if low <= protocol.h_opt <= high else (ends[0], ends[1])


def _epochs(
    activations: Activations, protocol: Protocol, measured: list[Measured], accuracy: FloatArray
) -> tuple[EpochMetrics, ...]:
    """Everything that relates one epoch to the others."""
    h_eff = np.array([float(_h_eff(one.hurst, protocol)) for one in measured])
    m = np.array([one.phases.metastability for one in measured])
    untrained = activations.steps == 0
    trained = ~untrained
    columns = {
        name: np.full(len(measured), np.nan)
        for name in (
            "integration_z", "metastability_z",
            "stability_index", "volatility", "stability_index_causal", "volatility_causal",
        )
    }  # fmt: skip
    columns["integration_z"][trained] = z_scores(h_eff[trained])
    columns["metastability_z"][trained] = z_scores(m[trained])
    psi = stability_index(h_eff[trained], m[trained], protocol.w_h)
    causal = expanding(partial(stability_index, w_h=protocol.w_h), h_eff[trained], m[trained])
    for suffix, values in (("", psi), ("_causal", causal)):
        columns["stability_index" + suffix][trained] = values
        columns["volatility" + suffix][trained] = volatility(values, protocol.window)
    return tuple(
        EpochMetrics(
            epoch=_known(activations.epochs[e]),
            step=_known(activations.steps[e]),
            untrained=bool(untrained[e]),
            hurst=one.hurst,
            hurst_sd=_sd(one.alpha),
            hurst_interval=one.interval,
            integration=float(h_eff[e]),
            integration_interval=_integration_interval(*one.interval, protocol),
            metastability=one.phases.metastability,
            metastability_interval=one.phases_interval,
            synchrony=one.phases.synchrony,
            accuracy=float(accuracy[e]),
            n_dead=int((~np.isfinite(one.alpha)).sum()),
            reasons=dict(one.reasons),
            nulls=one.nulls,
            **{name: float(column[e]) for name, column in columns.items()},
        )
        for e, one in enumerate(measured)
    )


def summarise(epochs: tuple[EpochMetrics, ...], protocol: Protocol, seed: int = 0) -> dict[str, Any]:
    """A run in one row: means over the epochs with an integration (the published convention), correlations, signals.

    `convergence` gives the epoch (or step) at which volatility has stayed below the threshold: `retrospective`, with
    z-scores over the whole run, which look into the future, and `causal`, with what was known at each epoch. `nulls`:
    in how many epochs each measure can be told from each null, at a false discovery rate of 5 % over the epochs
    (Benjamini and Hochberg 1995). Intervals of correlations are those of the block bootstrap over epochs.
    """
    trained = [epoch for epoch in epochs if not epoch.untrained]

    def column(name: str) -> FloatArray:
        return np.array([getattr(epoch, name) for epoch in trained], dtype=float)

    there = np.isfinite(column("integration"))
    when = [epoch.epoch if epoch.epoch is not None else epoch.step for epoch in trained]
    accuracy = column("accuracy")
    best = int(np.nanargmax(accuracy)) if np.isfinite(accuracy).any() else None
    pairs = {
        "r_integration_metastability": (column("integration_z"), column("metastability_z")),
        "r_stability_index_accuracy": (column("stability_index"), accuracy),
    }
    signals = {
        name: convergence(column(key), protocol.threshold)
        for name, key in (("retrospective", "volatility"), ("causal", "volatility_causal"))
    }
    return {
        "epochs": len(trained),
        "epochs_with_integration": int(there.sum()),
        "best_accuracy": None if best is None else float(accuracy[best]),
        "best_epoch": None if best is None else when[best],
        "hurst_mean": _mean(column("hurst")),
        "integration_mean": _mean(column("integration")),
        "integration_sd": _sd(column("integration")),
        "metastability_mean": _mean(column("metastability")),
        "metastability_sd": _sd(column("metastability")),
        "synchrony_mean": _mean(column("synchrony")),
        "stability_index_mean": _mean(column("stability_index")),
        "stability_index_sd": _sd(column("stability_index")),
        **{name: correlation(*pair) for name, pair in pairs.items()},
        **{
            f"{name}_interval": block_bootstrap(correlation, pair, stream(seed, 0, "white", 2**32 - 2))
            for name, pair in pairs.items()
        },
        "convergence": {name: None if index is None else when[index] for name, index in signals.items()},
        "nulls": _told_apart(trained),
    }


def _told_apart(epochs: Sequence[EpochMetrics]) -> dict[str, dict[str, dict[str, Any]]]:
    """For each null and measure: its mean over epochs, and the epochs in which the measure can be told from it."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    nulls = next((epoch.nulls for epoch in reversed(epochs) if epoch.nulls), {})
    if nulls:
        from scipy.stats import false_discovery_control  # here, for it takes long to import
    for null, measures in nulls.items():
        found[null] = {}
        for measure in measures:
            compared = [epoch.nulls[null][measure] for epoch in epochs if epoch.nulls]
            p = np.array([one.p for one in compared if math.isfinite(one.p)])
            rejected = false_discovery_control(p) <= FALSE_DISCOVERIES if len(p) else p
            found[null][measure] = {
                "null_mean": _mean(np.array([one.mean for one in compared])),
                "epochs_told_apart": int(rejected.sum()),
                "epochs": len(p),
            }
    return found


def load_metrics(path: str | PathLike[str]) -> dict[str, Any]:
    """The content of a metrics.json. Raises PosthocError where it is absent or not one."""
    try:
        content = json.loads(Path(path).read_text())
    except OSError as error:
        raise PosthocError(f"Cannot read {path}: {error.strerror or error}.") from error
    except ValueError as error:
        raise PosthocError(f"{path} is not valid JSON ({error}); give what `posthoc metrics` wrote.") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise PosthocError(f"{path} is not a metrics file; give what `posthoc metrics` wrote.")
    if content["format_version"] > FORMAT_VERSION:
        raise PosthocError(
            f"{path} is of format version {content['format_version']}, newer than this posthoc reads; upgrade it."
        )
    return content


def _accuracy(activations: Activations) -> tuple[FloatArray, str]:
    """What the checkpoints say of their validation accuracy if all do, else what the replay measured on the probe."""
    recorded = activations.recorded.get("val_acc")
    if recorded is not None and np.isfinite(recorded).all():
        return recorded, "recorded val_acc"
    return activations.accuracy, "probe"


def _known(value: np.int64) -> int | None:
    return None if value < 0 else int(value)


def _mean(values: FloatArray) -> float:
    there = values[np.isfinite(values)]
    return float(there.mean()) if len(there) else math.nan


def _sd(values: FloatArray) -> float:
    there = values[np.isfinite(values)]
    return float(there.std(ddof=1)) if len(there) > 1 else math.nan


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


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
