"""A run's measures: every epoch of an activations file by itself, beside its nulls, and in relation to the others."""

import itertools
import math
import platform
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from posthoc import __version__
from posthoc.analysis import representation as representations
from posthoc.analysis.calibration import calibration
from posthoc.analysis.hurst import exponents
from posthoc.analysis.intervals import (
    NOWHERE,
    half_splits,
    over_halves,
    over_images_and_channels,
    over_units,
)
from posthoc.analysis.kuramoto import Kuramoto, PhaseLocking, kuramoto, metastability_in_halves, phase_locking
from posthoc.analysis.measures import (
    expanding,
    integration,
    sd_finite,
    stability_index,
    unevenness,
    volatility,
    z_scores,
)
from posthoc.analysis.nulls import (
    Comparison,
    Drawn,
    compare,
    draws,
    mean_alive,
    middle,
    stream,
)
from posthoc.analysis.records import LEAST_POINTS, EpochMetrics, Protocol, RunMetrics
from posthoc.analysis.series import Axis, DepthAxis, EpochAxis, ImageAxis
from posthoc.analysis.summary import summarise
from posthoc.analysis.verdicts import MEASURES, TESTED, worth_drawing
from posthoc.chance import doubt
from posthoc.errors import PosthocError
from posthoc.files import sha256
from posthoc.store import Activations

REFERENCE_DRAWS = 39
"""Draws of a null that decides nothing, at the most."""
MOST_DRAWS = 9999
"""Draws of a deciding null for one epoch, at the most, unless it is said otherwise."""
FloatArray = NDArray[np.float64]


@dataclass
class Measured:
    """One epoch by itself: exponents and dead units' reasons, phases, and what its nulls gave.

    layer_hurst, layer_metastability: of each layer's units by themselves [L]; curves: relative log F(s), mean and the
    ends of the middle 95 % of the units (under "units") or of a null's draws (under its name), [3, S] over the scales.
    alpha_mean: of the units as measured, before calibration; T: points in time; drawn: the draws of the deciding null,
    and stages: where each of its tested measures' draws end, see `verdicts.two_sided_p`.
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
    alpha_mean: float = math.nan
    T: int = 0
    live: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    drawn: dict[str, FloatArray] = field(default_factory=dict)
    stages: dict[str, list[int]] = field(default_factory=dict)


def compute_metrics(
    activations: Activations,
    protocol: Protocol | None = None,
    nulls: int = 0,
    seed: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
    max_nulls: int | None = None,
) -> RunMetrics:
    """All measures of one run; one checkpoint's signals are in memory at a time.

    nulls: how many times each null is drawn for each epoch (0: not at all; references at most 39 times), with random
    numbers keyed by `seed`. Where that is too few for a verdict over all epochs, the deciding null is drawn up to
    `max_nulls` times (default: 9,999), in the epochs that need it.
    Raises PosthocError where there are too few images, layers or checkpoints for the protocol, or the signal was not
    recorded.
    """
    protocol = protocol or Protocol()
    _refuse_unfit(activations, protocol)
    layers = None  # of each unit; on the depth axis units are images
    spectral = protocol.signal in representations.SIGNALS
    if spectral:
        layers = np.arange(len(activations.layers))
    elif protocol.axis != "depth":
        layers = np.repeat(np.arange(len(activations.layers)), [len(rows) for rows in activations.channels.values()])
    white: WhiteDraws = {}
    measured = []
    axis_of = _axes(activations, protocol)
    for e in range(len(activations)):
        measured.append(_measure(axis_of(e), protocol, layers, nulls, seed, e, white))
        if progress:
            progress(e + 1, len(activations), activations.checkpoints[e])
    if nulls:
        trained = np.flatnonzero(activations.steps != 0).tolist()
        most = max(nulls, MOST_DRAWS if max_nulls is None else max_nulls)
        for e, count in _draw_until_decided(axis_of, {e: measured[e] for e in trained}, protocol, seed, most):
            if progress:
                progress(len(activations), len(activations), f"{activations.checkpoints[e]} again, {count} draws")
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
            "recording": activations.recording,
        },
        epochs=epochs,
        summary=summarise(epochs, protocol, seed)
        | {"accuracy_source": accuracy_source, "draws": nulls, "seed": seed, "doubt": doubt(activations)},
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


WhiteDraws = dict[tuple[int, int], Drawn]
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
    result = exponents(series, protocol.estimator, scales, protocol.fluctuation)
    live = np.array([reason not in ("constant", "non-finite") for reason in result.reason])
    phases = kuramoto(series)

    one = Measured(
        alpha=result.alpha,
        hurst=math.nan,
        h_eff=math.nan,
        interval=NOWHERE,
        phases=phases,
        phases_interval=NOWHERE,
        reasons=Counter(reason for reason in result.reason if reason),
        scales=scales.tolist(),
        curves={"units": middle(result.relative_log_fluctuation())},
        alpha_mean=mean_alive(result.alpha),
        T=T,
        live=live,
    )
    one.hurst = float(_finish(one.alpha_mean, one, protocol))
    # Beyond the calibration integration is 0, to four digits.
    one.h_eff = float(_h_eff(_finish(one.alpha_mean, one, protocol, math.inf), protocol))
    if math.isfinite(one.alpha_mean) and not math.isfinite(one.hurst):
        one.reasons["mean exponent beyond the calibration"] = 1
    if isinstance(axis, DepthAxis) and axis.left_out:
        one.reasons["channels non-finite, left out of their layer's mean"] = axis.left_out
    if layers is not None:
        one.locking = phase_locking(series, layers)
        members = [layers == layer for layer in range(layers[-1] + 1)]
        one.layer_hurst = np.array([float(_finish(mean_alive(result.alpha[own]), one, protocol)) for own in members])
        one.layer_metastability = np.array([kuramoto(series[own]).metastability for own in members])
    strata = np.zeros(U, np.int64) if layers is None else layers
    if nulls:
        _draw(one, axis, protocol, nulls, seed, epoch, strata, white)
    if isinstance(axis, ImageAxis):
        by_alpha, one.phases_interval = (
            over_images_and_channels(value, one.drawn[m], one.drawn[f"{m} halves"]) if nulls else NOWHERE
            for m, value in (("H", one.alpha_mean), ("M", phases.metastability))
        )
    else:
        by_alpha = over_units(result.alpha, strata)
        halves = half_splits(strata[live], stream(seed, epoch, "time", 2**32 - 1))
        one.phases_interval = over_halves(*metastability_in_halves(series[live], halves), strata[live])
    one.interval = float(_finish(by_alpha[0], one, protocol)), float(_finish(by_alpha[1], one, protocol))
    return one


def _draw(
    one: Measured,
    axis: Axis,
    protocol: Protocol,
    count: int,
    seed: int,
    epoch: int,
    strata: NDArray[np.int64],
    white: "WhiteDraws",
) -> None:
    """Draw all nulls of an epoch, the references at most `REFERENCE_DRAWS` times, and compare."""
    options = (one.live, np.array(one.scales), protocol.fluctuation)
    key = (int(one.live.sum()), one.T)
    few, decides = min(count, REFERENCE_DRAWS), MEASURES["hurst"].deciding[protocol.axis]
    if key not in white:
        white[key] = draws(
            axis, *options, few, seed, epoch=0, nulls={"white": axis.nulls["white"]}, estimator=protocol.estimator
        )
    references = {null: measures for null, measures in axis.nulls.items() if null not in ("white", decides)}
    halves = None
    if isinstance(axis, ImageAxis):
        halves = half_splits(strata[one.live], stream(seed, epoch, decides, 2**32 - 1))
    drawn = draws(
        axis, *options, count, seed, epoch, {decides: axis.nulls[decides]}, halves=halves, estimator=protocol.estimator
    )
    one.drawn.update(drawn[decides])
    one.stages.update({key: [count] for key in TESTED})
    for null, values in {
        **white[key],
        **drawn,
        **draws(axis, *options, few, seed, epoch, references, estimator=protocol.estimator),
    }.items():
        one.nulls[null] = _compared(one, values, protocol, one.stages if null == decides else {})
        if "F" in values:
            one.curves[null] = middle(values["F"])


def _compared(
    one: Measured, drawn: Mapping[str, FloatArray], protocol: Protocol, stages: Mapping[str, Sequence[int]]
) -> dict[str, Comparison]:
    """The measures beside one null's draws. H is compared as measured: debiasing keeps its order, but ends where the
    calibration does. The p of H_eff, a function of H, is that of H.
    """
    found: dict[str, Comparison] = {}
    if "H" in drawn:
        by_alpha = compare(one.alpha_mean, drawn["H"], stages.get("hurst", ()))
        found["hurst"] = by_alpha
        if protocol.calibrate and by_alpha.draws:
            mean, low, high = (
                float(_finish(end, one, protocol)) for end in (by_alpha.mean, by_alpha.low, by_alpha.high)
            )
            sd = float(np.std(_finish(drawn["H"][np.isfinite(drawn["H"])], one, protocol), ddof=1))
            found["hurst"] = replace(
                by_alpha, mean=mean, sd=sd, z=(one.hurst - mean) / sd if sd > 0 else math.nan, low=low, high=high
            )
        h_eff = np.asarray(_h_eff(_finish(drawn["H"], one, protocol, math.inf), protocol))
        found["integration"] = replace(compare(one.h_eff, h_eff), p=by_alpha.p)
    if "M" in drawn:
        found["metastability"] = compare(one.phases.metastability, drawn["M"], stages.get("metastability", ()))
    return found


def _finish(alpha: Any, one: Measured, protocol: Protocol, beyond: float = math.nan) -> Any:
    """An exponent debiased, where the protocol says so."""
    if not protocol.calibrate:
        return alpha
    return calibration(one.T, tuple(one.scales), fluctuation=protocol.fluctuation).debias(alpha, beyond)


def _draw_until_decided(
    axis_of: Callable[[int], Axis], measured: Mapping[int, Measured], protocol: Protocol, seed: int, most: int
) -> Iterator[tuple[int, int]]:
    """Draw the deciding null again, twice as often each time, in the epochs that lack draws for a verdict; each of them,
    and how many draws it has then.

    The family are all epochs and tested measures. Epochs whose value lies beyond every draw, without being rejected,
    are given more, as long as `most` draws could decide them.
    """
    family = [(e, key) for e in measured for key in TESTED]
    decides = MEASURES["hurst"].deciding[protocol.axis]

    def comparison(e: int, key: str) -> Comparison:
        return measured[e].nulls.get(decides, {}).get(key, Comparison(math.nan, math.nan, math.nan, math.nan))

    while True:
        found = [comparison(e, key) for e, key in family]
        left = np.array([measured[e].stages.get(key, [most])[-1] < most for e, key in family], dtype=bool)
        more = left & worth_drawing([one.p for one in found], [one.draws for one in found], most)
        if not more.any():
            return
        for e in dict.fromkeys(family[k][0] for k in np.flatnonzero(more)):
            one, axis = measured[e], axis_of(e)
            for key in (family[k][1] for k in np.flatnonzero(more) if family[k][0] == e):
                measure, first = MEASURES[key].drawn, one.stages[key][-1]
                count = min(2 * first + 1, most) - first
                options = (one.live, np.array(one.scales), protocol.fluctuation, count, seed, e)
                values = draws(axis, *options, nulls={decides: measure}, first=first, estimator=protocol.estimator)[
                    decides
                ]
                one.drawn[measure] = np.concatenate([one.drawn[measure], values[measure]])
                one.stages[key].append(first + count)
                yield e, first + count
            one.nulls[decides] = _compared(one, {m: one.drawn[m] for m in "HM"}, protocol, one.stages)


def _axes(activations: Activations, protocol: Protocol) -> Callable[[int], Axis]:
    """The axis of any epoch; on the epoch axis an untrained checkpoint has no past, nor is one."""
    if protocol.axis == "image":
        return lambda e: ImageAxis(activations.read(protocol.signal, e), activations.labels, protocol.smooth)
    if protocol.axis == "depth":
        sizes = np.cumsum([0, *(len(rows) for rows in activations.channels.values())])
        return lambda e: _depth(activations.read(protocol.signal, e).astype(np.float64), sizes)
    trained = np.flatnonzero(activations.steps != 0)
    if protocol.signal in representations.SIGNALS:
        means = representations.spectral_signal(activations, protocol.signal, trained.tolist())
    else:
        rows = (activations.read(protocol.signal, e).mean(axis=1, dtype=np.float64) for e in trained.tolist())
        means = np.stack(list(rows), axis=1)

    def window(e: int) -> Axis:
        last = int(np.searchsorted(trained, e, side="right")) if e in trained else 0
        first = 0 if protocol.span is None else max(0, last - protocol.span)
        return EpochAxis(np.ascontiguousarray(means[:, first:last]))

    return window


def _depth(x: FloatArray, sizes: NDArray[np.int64]) -> DepthAxis:
    """The finite channels' means of every layer; x: [U, N], sizes: where each layer's channels begin and end."""
    finite = np.asarray(np.isfinite(x).all(axis=1))
    layers = [x[a:b][finite[a:b]] for a, b in itertools.pairwise(sizes)]
    means = np.stack([layer.mean(axis=0) if len(layer) else np.zeros(x.shape[1]) for layer in layers])
    return DepthAxis(means, int((~finite).sum()))


def _length(activations: Activations, protocol: Protocol) -> int:
    """The most points in time that a series has."""
    if protocol.axis == "epoch":
        trained = int((activations.steps != 0).sum())
        return min(trained, protocol.span or trained)
    return len(activations.layers) if protocol.axis == "depth" else len(activations.labels)


def _refuse_unfit(activations: Activations, protocol: Protocol) -> None:
    """Raise PosthocError where the points of the axis are too few or, on the epoch axis, unevenly spaced."""
    if protocol.axis == "epoch" and (uneven := _uneven(activations)):
        raise PosthocError(
            f"{activations.path}: {uneven}; the epoch axis takes them for a series in time. Extract evenly spaced ones."
        )
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


def _uneven(activations: Activations) -> str:
    """Why the trained checkpoints are no series in time; empty where they are."""
    trained = np.flatnonzero(activations.steps != 0)
    return unevenness(*([_known(at) for at in column[trained]] for column in (activations.steps, activations.epochs)))


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
        if not _uneven(activations):
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


def _recorded(activations: Activations, name: str, replayed: FloatArray) -> tuple[FloatArray, str]:
    """What the checkpoints say of themselves if all do, else what the replay measured on the probe; and which it is."""
    recorded = activations.recorded.get(name)
    if recorded is not None and np.isfinite(recorded).all():
        return recorded, f"recorded {name}"
    return replayed, "probe"


def _known(value: np.int64) -> int | None:
    return None if value < 0 else int(value)
