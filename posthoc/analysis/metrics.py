"""Integration, metastability, stability index and what follows from them, epoch by epoch and for a run."""

import csv
import hashlib
import json
import math
import platform
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from posthoc import __version__
from posthoc.analysis.dfa import default_scales, dfa, published_scales
from posthoc.analysis.kuramoto import kuramoto, phase_locking
from posthoc.analysis.series import image_series
from posthoc.errors import PosthocError, UsageError
from posthoc.files import replacing
from posthoc.store import Activations

FORMAT = "posthoc-metrics"
FORMAT_VERSION = 1
CONSECUTIVE = 3
"""Epochs in a row for which volatility must stay below its threshold."""
CAUSAL_EPOCHS = 5
"""Epochs before which an expanding z-score is undefined."""
FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Protocol:
    """Every choice that turns signals into measures.

    `published` is that of arXiv 2604.09716: smoothing over 5 images (its DenseNet, MobileNet and VGG runs: 15), ten
    scales from 16 to N // 4, fluctuation averaged over windows. `default` does not smooth, which by itself shapes
    F(s), and uses twelve scales from 8 to N // 4 and the usual root-mean-square fluctuation.
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

    @classmethod
    def named(cls, name: str, **changes: Any) -> "Protocol":
        """The protocol `published` or `default`, with the given fields changed (those that are None are not)."""
        if name not in ("published", "default"):
            raise UsageError(f"Unknown protocol {name!r}; give published or default.")
        start = cls() if name == "published" else cls(name="default", smooth=1, scales="default", fluctuation="peng")
        protocol = replace(start, **{key: value for key, value in changes.items() if value is not None})
        if protocol.sigma_h <= 0 or not 0 <= protocol.w_h <= 1 or protocol.window < 2:
            raise UsageError("sigma_h must be above 0, w_h in 0..1 and window 2 or more.")
        return protocol


@dataclass(frozen=True)
class EpochMetrics:
    """One checkpoint's measures; NaN where undefined, `reasons` counting why channels have no exponent.

    untrained: saved at step 0; such a checkpoint is a control and takes no part in the run's z-scores and summary.
    """

    epoch: int | None
    step: int | None
    untrained: bool
    hurst: float
    hurst_sd: float
    integration: float
    metastability: float
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
        plain: dict[str, Any] = _plain(content)
        return plain

    def save(self, path: str | PathLike[str]) -> None:
        """Write metrics.json."""
        with replacing(Path(path)) as temporary:
            temporary.write_text(json.dumps(self.to_dict(), indent=1) + "\n")

    def save_csv(self, path: str | PathLike[str]) -> None:
        """Write one row per epoch, with an empty field where a measure is undefined."""
        rows = [_plain(asdict(epoch)) for epoch in self.epochs]
        with replacing(Path(path)) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(
                row | {"reasons": "; ".join(f"{n} {why}" for why, n in row["reasons"].items())} for row in rows
            )


def integration(hurst: ArrayLike, h_opt: float = 0.7, sigma_h: float = 0.15) -> FloatArray:
    """H_eff = exp(-(H - H_opt)^2 / (2 sigma_H^2)), the nearness of the Hurst exponent to its optimum.

    >>> float(integration(0.7))
    1.0
    """
    hurst = np.asarray(hurst, dtype=float)
    return np.asarray(np.exp(-((hurst - h_opt) ** 2) / (2 * sigma_h**2)))


def z_scores(values: ArrayLike) -> FloatArray:
    """Z-scores (ddof 1) over the values that are there; all NaN where fewer than two are or they do not vary.

    >>> z_scores([1.0, np.nan, 3.0]).round(4).tolist()
    [-0.7071, nan, 0.7071]
    """
    values = np.asarray(values, dtype=float)
    there = values[np.isfinite(values)]
    if len(there) < 2 or np.ptp(there) == 0:
        return np.full(values.shape, np.nan)
    return np.asarray((values - there.mean()) / there.std(ddof=1))


def stability_index(h_eff: ArrayLike, m: ArrayLike, w_h: float = 0.5) -> FloatArray:
    """Psi = w_H z(H_eff) + (1 - w_H) z(M) over the epochs of a run [E]; NaN where either is."""
    return np.asarray(w_h * z_scores(h_eff) + (1 - w_h) * z_scores(m))


def expanding(z: Callable[..., FloatArray], *values: ArrayLike) -> FloatArray:
    """The causal replay of a function of a run's epochs: its last value on epochs 0..e, for every e.

    NaN before there are five epochs with all values.

    >>> expanding(z_scores, [1.0, 2, 3, 4, 5, 5]).round(3).tolist()
    [nan, nan, nan, nan, 1.265, 1.021]
    """
    columns = [np.asarray(column, dtype=float) for column in values]
    there = np.cumsum(np.isfinite(np.array(columns)).all(axis=0))
    result = np.full(len(columns[0]), np.nan)
    for e in np.flatnonzero(there >= CAUSAL_EPOCHS):
        result[e] = z(*(column[: e + 1] for column in columns))[-1]
    return result


def volatility(psi: ArrayLike, window: int = 3) -> FloatArray:
    """Trailing rolling standard deviation (ddof 1) of Psi [E]; NaN unless the whole window is there.

    >>> volatility([1, 2, 3, 3, 3]).tolist()
    [nan, nan, 1.0, 0.5773502691896258, 0.0]
    """
    psi = np.asarray(psi, dtype=float)
    result = np.full(len(psi), np.nan)
    if len(psi) >= window:
        result[window - 1 :] = np.lib.stride_tricks.sliding_window_view(psi, window).std(axis=1, ddof=1)
    return result


def convergence(volatility: ArrayLike, threshold: float, consecutive: int = CONSECUTIVE) -> int | None:
    """Index of the first epoch at which volatility has been below `threshold` for `consecutive` epochs, or None.

    An epoch without volatility starts the count anew.

    >>> convergence([np.nan, 0.1, 0.1, np.nan, 0.1, 0.1, 0.1], threshold=0.35)
    6
    """
    count = 0
    for e, value in enumerate(np.asarray(volatility, dtype=float)):
        count = count + 1 if value < threshold else 0
        if count == consecutive:
            return e
    return None


def correlation(a: ArrayLike, b: ArrayLike) -> float:
    """Pearson r over the epochs at which both are there; NaN with fewer than three of them, or without variation."""
    pair = np.array([a, b], dtype=float)
    pair = pair[:, np.isfinite(pair).all(axis=0)]
    if pair.shape[1] < 3 or (np.ptp(pair, axis=1) == 0).any():
        return math.nan
    return float(np.corrcoef(pair)[0, 1])


def compute_metrics(
    activations: Activations, protocol: Protocol | None = None, progress: Callable[[int, int, str], None] | None = None
) -> RunMetrics:
    """All measures of one run; one checkpoint's signals are in memory at a time.

    Raises PosthocError where the probe is too small for the protocol's scales or the signal was not recorded.
    """
    protocol = protocol or Protocol()
    N = len(activations.labels)
    scales = published_scales(N) if protocol.scales == "published" else default_scales(N)
    if len(scales) < 2:
        least = 68 if protocol.scales == "published" else 20
        raise PosthocError(
            f"{activations.path}: {N} images are too few for the {protocol.name} protocol, which needs {least}; "
            f"extract with more --images."
        )
    hurst = np.empty((len(activations), len(activations.units)))
    m, synchrony = np.empty((2, len(activations)))
    layers = [layer for layer, _ in activations.units]
    plv, ppc = np.empty((2, len(activations), len(activations.layers), len(activations.layers)))
    reasons: list[Counter[str]] = []
    for e in range(len(activations)):
        series = image_series(activations.read(protocol.signal, e), activations.labels, protocol.smooth)
        result = dfa(series, scales, fluctuation=protocol.fluctuation)
        hurst[e] = result.alpha
        reasons.append(Counter(reason for reason in result.reason if reason))
        phases = kuramoto(series)
        m[e], synchrony[e] = phases.metastability, phases.synchrony
        locking = phase_locking(series, layers)
        plv[e], ppc[e] = locking.plv, locking.ppc
        if progress:
            progress(e + 1, len(activations), activations.checkpoints[e])
    accuracy, accuracy_source = _accuracy(activations)
    epochs = _epochs(activations, protocol, hurst, m, synchrony, accuracy, reasons)
    return RunMetrics(
        protocol=protocol,
        scales=tuple(int(s) for s in scales),
        input={
            "path": str(activations.path),
            "sha256": _sha256(activations.path),
            "probe_sha256": activations.probe_sha256,
            "config": activations.config,
        },
        epochs=epochs,
        summary=summarise(epochs, protocol) | {"accuracy_source": accuracy_source},
        channels=tuple(
            {"layer": layer, "channel": channel, "hurst": hurst[:, u].round(6).tolist()}
            for u, (layer, channel) in enumerate(activations.units)
        ),
        phase_locking={"layers": activations.layers, "plv": plv.round(6).tolist(), "ppc": ppc.round(6).tolist()},
        versions={"posthoc": __version__, "python": platform.python_version()}
        | {name: version(name) for name in ("numpy", "scipy", "numba", "h5py")},
    )


def _epochs(
    activations: Activations,
    protocol: Protocol,
    hurst: FloatArray,
    m: FloatArray,
    synchrony: FloatArray,
    accuracy: FloatArray,
    reasons: list[Counter[str]],
) -> tuple[EpochMetrics, ...]:
    """Means over channels, then everything that relates one epoch to the others."""
    live = np.isfinite(hurst)
    n_live = live.sum(axis=1)
    mean, sd = np.full((2, len(hurst)), np.nan)
    for e in np.flatnonzero(n_live):
        mean[e] = hurst[e, live[e]].mean()
        sd[e] = hurst[e, live[e]].std(ddof=1) if n_live[e] > 1 else np.nan
    h_eff = integration(mean, protocol.h_opt, protocol.sigma_h)
    untrained = activations.steps == 0
    trained = ~untrained
    columns = {
        name: np.full(len(hurst), np.nan)
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
            hurst=float(mean[e]),
            hurst_sd=float(sd[e]),
            integration=float(h_eff[e]),
            metastability=float(m[e]),
            synchrony=float(synchrony[e]),
            accuracy=float(accuracy[e]),
            n_dead=int((~live[e]).sum()),
            reasons=dict(reasons[e]),
            **{name: float(column[e]) for name, column in columns.items()},
        )
        for e in range(len(hurst))
    )


def summarise(epochs: tuple[EpochMetrics, ...], protocol: Protocol) -> dict[str, Any]:
    """A run in one row: means over the epochs with an integration (the published convention), correlations, signals.

    `convergence` gives the epoch (or step) at which volatility has stayed below the threshold: `retrospective`, with
    z-scores over the whole run, which look into the future, and `causal`, with what was known at each epoch.
    """
    trained = [epoch for epoch in epochs if not epoch.untrained]

    def column(name: str) -> FloatArray:
        return np.array([getattr(epoch, name) for epoch in trained], dtype=float)

    there = np.isfinite(column("integration"))
    when = [epoch.epoch if epoch.epoch is not None else epoch.step for epoch in trained]
    accuracy = column("accuracy")
    best = int(np.nanargmax(accuracy)) if np.isfinite(accuracy).any() else None
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
        "r_integration_metastability": correlation(column("integration_z"), column("metastability_z")),
        "r_stability_index_accuracy": correlation(column("stability_index"), accuracy),
        "convergence": {name: None if index is None else when[index] for name, index in signals.items()},
    }


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


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
