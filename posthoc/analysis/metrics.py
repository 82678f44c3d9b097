"""A run's measures: every epoch of an activations file by itself, beside its nulls, and in relation to the others."""

import itertools
import math
import platform
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from posthoc import __version__
from posthoc.analysis import representation as representations
from posthoc.analysis.calibration import calibration
from posthoc.analysis.dfa import dfa
from posthoc.analysis.kuramoto import Kuramoto, PhaseLocking, kuramoto, phase_locking
from posthoc.analysis.measures import (
    convergence,
    correlation,
    expanding,
    integration,
    mean_finite,
    sd_finite,
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
    middle,
    stream,
)
from posthoc.analysis.records import LEAST_POINTS, EpochMetrics, Protocol, RunMetrics, counted
from posthoc.analysis.series import Axis, DepthAxis, EpochAxis, ImageAxis
from posthoc.errors import PosthocError
from posthoc.files import sha256
from posthoc.store import Activations

FALSE_DISCOVERIES = 0.05
FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Measured:
    """One epoch by itself: exponents and dead units' reasons, phases, and what its nulls gave.

    layer_hurst, layer_metastability: of each layer's units by themselves [L]; curves: relative log F(s), mean and the
    ends of the middle 95 % of the units (under "units") or of a null's draws (under its name), [3, S] over the scales.
    """

    alpha: FloatArray
    hurst: float
    h_eff: float
    interval: tuple[float, float]
    phases: Kuramoto
    phases_interval: tuple[float, float]
    reasons: Counter[str]
    locking: PhaseLocking | None = None
    layer_hurst: FloatArray | None = None
    layer_metastability: FloatArray | None = None
    nulls: dict[str, dict[str, Comparison]] = field(default_factory=dict)
    scales: list[int] = field(default_factory=list)
    curves: dict[str, FloatArray] = field(default_factory=dict)


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
    layers = None  # of each unit; on the depth axis units are images
    spectral = protocol.signal in representations.SIGNALS
    if spectral:
        layers = np.arange(len(activations.layers))
    elif protocol.axis != "depth":
        layers = np.repeat(np.arange(len(activations.layers)), [len(rows) for rows in activations.channels.values()])
    white: WhiteDraws = {}
    measured = []
    for e, axis in enumerate(_axes(activations, protocol)):
        measured.append(_measure(axis, protocol, layers, nulls, seed, e, white))
        if progress:
            progress(e + 1, len(activations), activations.checkpoints[e])
    accuracy, accuracy_source = _recorded(activations, "val_acc", activations.accuracy)
    epochs = _epochs(activations, protocol, measured, accuracy, _recorded(activations, "val_loss", activations.loss)[0])
    units: list[tuple[str, int | None]] = [] if layers is None else list(activations.units)
    if spectral:
        units = [(layer, None) for layer in activations.layers]
    geometry = representations.representation(activations, activations.signals[0])
    of_layers = measured if layers is not None else []
    L = len(activations.layers)
    return RunMetrics(
        protocol=protocol,
        scales=tuple(protocol.scales_for(_length(activations, protocol)).tolist()),
        input={
            "path": str(activations.path),
            "sha256": sha256(activations.path),
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
            "plv": _table(L, [one.locking.plv if one.locking else None for one in of_layers]),
            "ppc": _table(L, [one.locking.ppc if one.locking else None for one in of_layers]),
        },
        layers={
            "layers": activations.layers,
            "hurst": _table(L, [one.layer_hurst for one in of_layers]),
            "metastability": _table(L, [one.layer_metastability for one in of_layers]),
        },
        fluctuation=tuple(
            {
                "scales": one.scales,
                "curves": {
                    name: dict(zip(("mean", "low", "high"), curve.round(6).tolist(), strict=True))
                    for name, curve in one.curves.items()
                },
            }
            for one in measured
        ),
        representation={
            name: value if name == "layers" else np.round(value, 6).tolist() for name, value in vars(geometry).items()
        },
        versions={"posthoc": __version__, "python": platform.python_version()}
        | {name: version(name) for name in ("numpy", "scipy", "numba", "h5py")},
    )


def _table(L: int, rows: Sequence[FloatArray | None]) -> list[Any]:
    """Values by layer, or by pair of layers, of every epoch as JSON has them; NaN at the epochs that have none."""
    shape = next((row.shape for row in rows if row is not None), (L,))
    return [(np.full(shape, np.nan) if row is None else row).round(6).tolist() for row in rows]


WhiteDraws = dict[tuple[int, int], dict[str, dict[str, FloatArray]]]
"""Draws of the white null by number of units and points: they do not depend on the epoch's activations."""


def _measure(
    axis: Axis,
    protocol: Protocol,
    layers: NDArray[np.int64] | None,
    nulls: int,
    seed: int,
    epoch: int,
    white: WhiteDraws,
) -> Measured:
    series = axis.series()
    U, T = series.shape
    scales = protocol.scales_for(T)
    if len(scales) < 2:  # the first epochs of the epoch axis
        nothing = Kuramoto(np.full(T, np.nan), np.nan, np.nan, 0)
        reasons = Counter({f"fewer than {LEAST_POINTS} points in time": U})
        return Measured(np.full(U, np.nan), np.nan, np.nan, NOWHERE, nothing, NOWHERE, reasons)
    result = dfa(series, scales, fluctuation=protocol.fluctuation)
    live = np.array([reason not in ("constant", "non-finite") for reason in result.reason])
    phases = kuramoto(series)

    def finish(alpha: Any, beyond: float = math.nan) -> Any:
        """Debiased, where the protocol says so."""
        if not protocol.calibrate:
            return alpha
        return calibration(T, tuple(scales.tolist()), fluctuation=protocol.fluctuation).debias(alpha, beyond)

    alpha = mean_alive(result.alpha)
    hurst = float(finish(alpha))
    reasons = Counter(reason for reason in result.reason if reason)
    if math.isfinite(alpha) and not math.isfinite(hurst):
        reasons["mean exponent beyond the calibration"] = 1
    if isinstance(axis, DepthAxis) and axis.left_out:
        reasons["channels non-finite, left out of their layer's mean"] = axis.left_out
    h_eff = float(_h_eff(finish(alpha, math.inf), protocol))  # 0, to four digits, beyond the calibration
    strata = np.zeros(U, np.int64) if layers is None else layers
    low, high = hurst_interval(result.alpha, strata, stream(seed, epoch, "white", 2**32 - 1))
    comparisons: dict[str, dict[str, Comparison]] = {}
    curves = {"units": middle(result.relative_log_fluctuation())}
    if nulls:
        key = (int(live.sum()), T)
        options = (live, scales, protocol.fluctuation, nulls, seed)
        if key not in white:
            white[key] = draws(axis, *options, epoch=0, nulls={"white": axis.nulls["white"]})
        others = {null: measures for null, measures in axis.nulls.items() if null != "white"}
        for null, drawn in {**white[key], **draws(axis, *options, epoch=epoch, nulls=others)}.items():
            found = comparisons[null] = {}
            if "H" in drawn:
                # By alpha as measured: debiasing keeps its order, but ends where the calibration does.
                by_alpha = compare(alpha, drawn["H"])
                found["hurst"] = replace(
                    by_alpha, **{name: float(finish(getattr(by_alpha, name))) for name in ("mean", "low", "high")}
                )
                found["integration"] = compare(h_eff, np.asarray(_h_eff(finish(drawn["H"], math.inf), protocol)))
                curves[null] = middle(drawn["F"])
            if "M" in drawn:
                found["metastability"] = compare(phases.metastability, drawn["M"])
    return Measured(
        alpha=result.alpha,
        hurst=hurst,
        h_eff=h_eff,
        interval=(float(finish(low)), float(finish(high))),
        phases=phases,
        phases_interval=metastability_interval(series, phases.metastability),
        reasons=reasons,
        nulls=comparisons,
        scales=scales.tolist(),
        curves=curves,
        **({} if layers is None else _by_layer(series, finish(result.alpha), layers)),
    )


def _by_layer(series: FloatArray, hurst: FloatArray, layers: NDArray[np.int64]) -> dict[str, Any]:
    """Exponent and metastability of each layer by itself, and the phase locking between the layers."""
    members = [layers == layer for layer in range(layers[-1] + 1)]
    return {
        "locking": phase_locking(series, layers),
        "layer_hurst": np.array([mean_alive(hurst[own]) for own in members]),
        "layer_metastability": np.array([kuramoto(series[own]).metastability for own in members]),
    }


NOWHERE = (math.nan, math.nan)


def _axes(activations: Activations, protocol: Protocol) -> Iterator[Axis]:
    """The axis of every epoch, one after another; on the epoch axis an untrained checkpoint has no past, nor is one."""
    if protocol.axis == "epoch":
        trained = np.flatnonzero(activations.steps != 0)
        if protocol.signal in representations.SIGNALS:
            means = representations.spectral_signal(activations, protocol.signal, trained.tolist())
        else:
            rows = (activations.read(protocol.signal, e).mean(axis=1, dtype=np.float64) for e in trained.tolist())
            means = np.stack(list(rows), axis=1)
    sizes = np.cumsum([0, *(len(rows) for rows in activations.channels.values())])
    for e in range(len(activations)):
        if protocol.axis == "epoch":
            last = int(np.searchsorted(trained, e, side="right")) if e in trained else 0
            first = 0 if protocol.span is None else max(0, last - protocol.span)
            yield EpochAxis(np.ascontiguousarray(means[:, first:last]))
        elif protocol.axis == "depth":
            x = activations.read(protocol.signal, e).astype(np.float64)
            finite = np.asarray(np.isfinite(x).all(axis=1))
            layers = [x[a:b][finite[a:b]] for a, b in itertools.pairwise(sizes)]
            means = np.stack([layer.mean(axis=0) if len(layer) else np.zeros(x.shape[1]) for layer in layers])
            yield DepthAxis(means, int((~finite).sum()))
        else:
            yield ImageAxis(activations.read(protocol.signal, e), activations.labels, protocol.smooth)


def _length(activations: Activations, protocol: Protocol) -> int:
    """The most points in time that a series has."""
    if protocol.axis == "epoch":
        trained = int((activations.steps != 0).sum())
        return min(trained, protocol.span or trained)
    return len(activations.layers) if protocol.axis == "depth" else len(activations.labels)


def _refuse_too_few(activations: Activations, protocol: Protocol) -> None:
    T = _length(activations, protocol)
    if len(protocol.scales_for(T)) >= 2:
        return
    least = 72 if protocol.scales == "published" else LEAST_POINTS
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
    if math.isnan(low) or math.isnan(high):
        return NOWHERE
    ends = sorted(float(_h_eff(end, protocol)) for end in (low, high))
    return (ends[0], 1.0) if low <= protocol.h_opt <= high else (ends[0], ends[1])


def _epochs(
    activations: Activations, protocol: Protocol, measured: list[Measured], accuracy: FloatArray, loss: FloatArray
) -> tuple[EpochMetrics, ...]:
    """Everything that relates one epoch to the others."""
    h_eff = np.array([one.h_eff for one in measured])
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
            hurst_sd=sd_finite(one.alpha),
            hurst_interval=one.interval,
            integration=float(h_eff[e]),
            integration_interval=_integration_interval(*one.interval, protocol),
            metastability=one.phases.metastability,
            metastability_interval=one.phases_interval,
            synchrony=one.phases.synchrony,
            accuracy=float(accuracy[e]),
            loss=float(loss[e]),
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
    unit, numbers = counted(epochs)
    when = [at for at, epoch in zip(numbers, epochs, strict=True) if not epoch.untrained]
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
        "unit": unit,
        "epochs": len(trained),
        "epochs_with_integration": int(there.sum()),
        "best_accuracy": None if best is None else float(accuracy[best]),
        "best_epoch": None if best is None else when[best],
        "hurst_mean": mean_finite(column("hurst")),
        "integration_mean": mean_finite(column("integration")),
        "integration_sd": sd_finite(column("integration")),
        "metastability_mean": mean_finite(column("metastability")),
        "metastability_sd": sd_finite(column("metastability")),
        "synchrony_mean": mean_finite(column("synchrony")),
        "stability_index_mean": mean_finite(column("stability_index")),
        "stability_index_sd": sd_finite(column("stability_index")),
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
                "null_mean": mean_finite(np.array([one.mean for one in compared])),
                "epochs_told_apart": int(rejected.sum()),
                "epochs": len(p),
            }
    return found


def _recorded(activations: Activations, name: str, replayed: FloatArray) -> tuple[FloatArray, str]:
    """What the checkpoints say of themselves if all do, else what the replay measured on the probe; and which it is."""
    recorded = activations.recorded.get(name)
    if recorded is not None and np.isfinite(recorded).all():
        return recorded, f"recorded {name}"
    return replayed, "probe"


def _known(value: np.int64) -> int | None:
    return None if value < 0 else int(value)
