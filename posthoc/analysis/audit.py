"""What do the measures of a run respond to? Every control of the image axis, and a verdict for each measure.

Each control changes one thing and measures again: what training did, the labels, the number of classes, the smoothing,
the number of images, the choice of channels, the order of images within their class. What a control moves by more than
the arbitrary order of images does, the measure responds to. That it does not respond is said only where the change is
shown to be smaller than a margin (two one-sided tests, as of equivalence); else it is undecided.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from posthoc.analysis.hurst import exponents
from posthoc.analysis.kuramoto import kuramoto
from posthoc.analysis.measures import integration
from posthoc.analysis.nulls import draws, mean_alive, stream
from posthoc.analysis.records import Protocol, plain
from posthoc.analysis.series import ImageAxis
from posthoc.analysis.verdicts import two_sided_p
from posthoc.errors import PosthocError, UsageError
from posthoc.files import replacing, sha256
from posthoc.recording import Recording
from posthoc.store import Activations
from posthoc.typed import Shape, read_typed

FORMAT = "posthoc-audit"
FORMAT_VERSION = 1
MEASURES = {"integration": "H_eff", "metastability": "M"}
MARGINS = {"integration": 0.1, "metastability": 0.01}
"""Changes that are called small, where they are shown to be smaller."""
SMOOTHINGS = (1, 5, 15)
ANOTHER_ORDER = "images of each class in another order"
GAUSSIAN = "Gaussian noise with the channels' covariance"
REPEATED = "HM"
LEVEL = 0.05


Number = float | None


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


@dataclass(frozen=True)
class Spread:
    """A measure under a control: mean over its draws, their standard deviation, the range of 95 % of them, their number.

    count: 0 in files of versions that did not record it.
    """

    mean: float
    sd: float
    low: float
    high: float
    count: int = 0

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> "Spread":
        values = values[np.isfinite(values)]
        if not len(values):
            return cls(np.nan, np.nan, np.nan, np.nan)
        low, high = np.quantile(values, [0.025, 0.975])
        sd = float(values.std(ddof=1)) if len(values) > 1 else 0.0
        return cls(float(values.mean()), sd, float(low), float(high), len(values))


@dataclass(frozen=True)
class Control:
    """One row of the audit. changes: what it alters, None for the run as it is and for mere references."""

    name: str
    changes: str | None
    measures: Mapping[str, Spread]


@dataclass(frozen=True)
class Audit:
    """All controls of a run, and for each measure what it responds to, what it does not, and what follows."""

    path: str
    sha256: str
    probe: dict[str, Any]
    protocol: Protocol
    draws: int
    seed: int
    controls: Annotated[tuple[Control, ...], Shape(("controls",), least=1)]
    verdicts: dict[str, Annotated[dict[str, Any], Verdict]]
    conclusions: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The content of audit.json: plain values, NaN as None."""
        content: dict[str, Any] = plain({"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self)})
        return content

    def save(self, path: str | PathLike[str]) -> None:
        """Write audit.json."""
        with replacing(Path(path)) as temporary:
            temporary.write_text(json.dumps(self.to_dict(), indent=1) + "\n")


def load_audit(path: str | PathLike[str]) -> dict[str, Any]:
    """The content of an audit.json. Raises PosthocError where it is absent or not one."""
    _, content = read_typed(path, Audit, FORMAT, FORMAT_VERSION, "an audit", "posthoc audit")
    return content


def audit(activations: Activations, protocol: Protocol | None = None, count: int = 50, seed: int = 0) -> Audit:
    """Audit the last checkpoint of a run, and the untrained network where the file has it: a checkpoint, controls.

    count: draws of each control that redraws. Raises UsageError for another axis than the image axis, PosthocError
    where there are too few images.
    """
    protocol = protocol or Protocol()
    if protocol.axis != "image":
        raise UsageError(f"The audit's controls are those of the image axis, not of the {protocol.axis} axis.")
    if len(protocol.scales_for(len(activations.labels) // 2)) < 2:
        raise PosthocError(
            f"{activations.path}: {len(activations.labels)} images are too few for an audit, which also measures half "
            f"of them; extract with more --images."
        )
    last = len(activations) - 1
    trained = _axis(activations, protocol, last)
    name = f"epoch {activations.epochs[last]}" if activations.epochs[last] >= 0 else f"step {activations.steps[last]}"

    def drawn(axis: ImageAxis, null: str, epoch: int) -> dict[str, Spread]:
        return _spreads(raw(axis, null, epoch), protocol)

    def raw(axis: ImageAxis, null: str, epoch: int) -> dict[str, NDArray[np.float64]]:
        live = np.ones(len(axis.x), np.bool_) if null == "white" else _live(axis, protocol)
        scales = protocol.scales_for(len(axis.labels))
        return draws(
            axis, live, scales, protocol.fluctuation, count, seed, epoch, {null: REPEATED}, estimator=protocol.estimator
        )[null]

    ordered = raw(trained, "order", last)
    controls = [
        Control(f"as it is ({name})", None, _measure(trained, protocol)),
        Control(ANOTHER_ORDER, "order within class", _spreads(ordered, protocol)),
        Control("labels permuted", "labels", drawn(trained, "label", last)),
        Control("each class split in ten", "number of classes", drawn(trained, "split", last)),
    ]
    fresh = _untrained(activations, protocol)
    if fresh:
        values = np.array([_values(axis, protocol) for _, axis in fresh])
        spreads = {name: Spread.of(column) for name, column in zip(MEASURES, values.T, strict=True)}
        controls.append(Control("untrained weights", "training", spreads))
        split = drawn(fresh[0][1], "split", fresh[0][0])
        controls.append(Control("untrained weights, each class split in ten", None, split))
    for smooth in SMOOTHINGS:
        if smooth != protocol.smooth:
            measures = _measure(replace(trained, smooth=smooth), protocol)
            controls.append(Control(f"smoothing {smooth} instead of {protocol.smooth}", "smoothing", measures))
    half = len(activations.labels) // 2
    fewer = replace(trained, x=trained.x[:, :half], labels=trained.labels[:half])
    controls.append(Control(f"the first {half} images", "number of images", _measure(fewer, protocol)))
    controls.append(
        Control("half of the channels", "number and choice of channels", _halves(trained, protocol, count, seed, last))
    )
    controls.append(Control("each channel's images in its own order", None, drawn(trained, "channel", last)))
    controls.append(Control(GAUSSIAN, None, drawn(trained, "gaussian", last)))
    controls.append(Control("pure noise", None, drawn(trained, "white", last)))
    alpha = mean_alive(_alpha(trained.series(), protocol))
    p = {
        "integration": two_sided_p(alpha, ordered["H"]),
        "metastability": two_sided_p(controls[0].measures["metastability"].mean, ordered["M"]),
    }
    verdicts = {measure: {**_verdict(controls, measure), "order_p": p[measure]} for measure in MEASURES}
    return Audit(
        path=str(activations.path),
        sha256=sha256(activations.path),
        probe=_probe(activations.recording),
        protocol=protocol,
        draws=count,
        seed=seed,
        controls=tuple(controls),
        verdicts=verdicts,
        conclusions=_conclusions(controls, verdicts),
    )


def _probe(recording: Recording) -> dict[str, Any]:
    """The probe as an audit.json has it."""
    probe = recording.identity.probe
    about = {"classes": probe.classes, "largest_class": probe.largest_class}
    known = {name: value for name, value in about.items() if value is not None}
    return {
        "name": recording.provenance.probe,
        "images": probe.samples,
        **known,
        **probe.preparation,
        "sha256": probe.sha256,
    }


def _spreads(found: Mapping[str, NDArray[np.float64]], protocol: Protocol) -> dict[str, Spread]:
    h_eff = integration(found["H"], protocol.h_opt, protocol.sigma_h)
    return {"integration": Spread.of(h_eff), "metastability": Spread.of(found["M"])}


def _axis(activations: Activations, protocol: Protocol, row: int) -> ImageAxis:
    return ImageAxis(activations.read(protocol.signal, row), activations.labels, protocol.smooth)


def _untrained(activations: Activations, protocol: Protocol) -> list[tuple[int, ImageAxis]]:
    """The untrained networks: checkpoints of step 0 and controls, each with a number that no other row has."""
    rows = np.flatnonzero(activations.steps[:-1] == 0).tolist()
    found = [(row, _axis(activations, protocol, row)) for row in rows]
    for k in range(len(activations.untrained_seeds)):
        x = activations.read_untrained(protocol.signal, k)
        found.append((len(activations) + k, ImageAxis(x, activations.labels, protocol.smooth)))
    return found


def _alpha(series: NDArray[np.float64], protocol: Protocol) -> NDArray[np.float64]:
    scales = protocol.scales_for(series.shape[1])
    return exponents(series, protocol.estimator, scales, protocol.fluctuation).alpha


def _live(axis: ImageAxis, protocol: Protocol) -> NDArray[np.bool_]:
    return np.isfinite(_alpha(axis.series(), protocol))


def _values(axis: ImageAxis, protocol: Protocol) -> tuple[float, float]:
    series = axis.series()
    h_eff = integration(mean_alive(_alpha(series, protocol)), protocol.h_opt, protocol.sigma_h)
    return float(h_eff), kuramoto(series).metastability


def _measure(axis: ImageAxis, protocol: Protocol) -> dict[str, Spread]:
    return {name: Spread.of(np.array([value])) for name, value in zip(MEASURES, _values(axis, protocol), strict=True)}


def _halves(axis: ImageAxis, protocol: Protocol, count: int, seed: int, epoch: int) -> dict[str, Spread]:
    """Random halves of the channels, as if others had been recorded."""
    values = []
    for draw in range(count):
        chosen = stream(seed, epoch, "white", 2**31 + draw).permutation(len(axis.x))[: max(1, len(axis.x) // 2)]
        values.append(_values(replace(axis, x=axis.x[np.sort(chosen)]), protocol))
    return {name: Spread.of(column) for name, column in zip(MEASURES, np.array(values).T, strict=True)}


def _verdict(controls: list[Control], measure: str) -> dict[str, Any]:
    """What moves the measure beyond what comes from the arbitrary order of images, and what moves it by less than a margin."""
    value, margin = controls[0].measures[measure].mean, MARGINS[measure]
    order = next(control for control in controls if control.changes == "order within class").measures[measure]
    kinds: dict[str, dict[str, dict[str, float]]] = {"responds": {}, "indifferent": {}, "undecided": {}}
    undefined: list[str] = []
    for control in controls:
        if control.changes and control.changes != "order within class":
            under = control.measures[measure]
            effect = under.mean - value
            if not np.isfinite(effect):
                undefined.append(control.changes)
                continue
            # The run itself is one order of its images, and so is a control measured once; of others there is a mean.
            repeated = under.sd / np.sqrt(under.count) if under.count > 1 else order.sd
            error = float(np.hypot(order.sd, repeated))
            freedom = min(order.count, under.count if under.count > 1 else order.count) - 1
            sure, likely = (float(stdtrit(freedom, q)) * error for q in (0.975, 0.95))
            found = {"effect": effect, "low": effect - sure, "high": effect + sure}
            kind = "responds" if abs(effect) > sure else "indifferent" if abs(effect) + likely < margin else "undecided"
            key = control.changes
            if key in kinds[kind]:
                key = f"{key} ({control.name})"
            kinds[kind][key] = found
    # What a measure responds to under one control it is not called indifferent to for the sake of another.
    kinds["undecided"] = {key: effect for key, effect in kinds["undecided"].items() if key not in kinds["responds"]}
    others = {**kinds["responds"], **kinds["undecided"]}
    kinds["indifferent"] = {key: effect for key, effect in kinds["indifferent"].items() if key not in others}
    return {"value": value, "spread_by_order": order.sd, "margin": margin, **kinds, "undefined": undefined}


def _conclusions(controls: list[Control], verdicts: dict[str, dict[str, Any]]) -> tuple[str, ...]:
    """In sentences, what follows for the use of the numbers."""
    by_name = {control.name: control.measures for control in controls}
    sentences = []
    for measure, title in MEASURES.items():
        verdict = verdicts[measure]
        value, margin = verdict["value"], verdict["margin"]
        if not np.isfinite(value):
            sentences.append(f"{title} of the last checkpoint is undefined: no channel has one.")
            continue
        sentences.append(_against_order(title, verdict, by_name[ANOTHER_ORDER][measure]))
        if "number of classes" in verdict["responds"]:
            split = by_name["each class split in ten"][measure].mean
            sentences.append(
                f"{title} goes from {value:.3f} to {split:.3f} when each class is split in ten at random, which changes "
                f"nothing about the network or the images: values from data sets with different numbers of classes "
                f"cannot be compared."
            )
        settings = [what for what in ("smoothing", "number of images") if what in verdict["responds"]]
        if settings:
            sentences.append(
                f"{title} depends on {' and '.join(settings)}: compare only runs in which these are equal."
            )
        if "labels" in verdict["indifferent"]:
            sentences.append(f"{title} changes by less than {margin:g} when the labels are permuted.")
        if "untrained weights" in by_name:
            sentences += _of_training(title, verdict, by_name["untrained weights"][measure].count)
        for name, what in ((GAUSSIAN, GAUSSIAN), ("pure noise", "pure noise, which takes channels for independent,")):
            noise = by_name[name][measure]
            inside = noise.low <= value <= noise.high
            sentences.append(
                f"{title} of {what} is {noise.mean:.3f} ({noise.low:.3f} to {noise.high:.3f}); "
                f"this run's {value:.3f} {'lies within that range' if inside else 'lies outside that range'}."
            )
    return tuple(sentences)


def _against_order(title: str, verdict: dict[str, Any], order: Spread) -> str:
    """The test that decides: the order of images within their class is arbitrary."""
    p = verdict["order_p"]
    how = "differs from" if p <= LEVEL else "cannot be distinguished from"
    return (
        f"{title} {how} that of another order of the same images ({verdict['value']:.4f}, and {order.mean:.4f} with sd "
        f"{order.sd:.4f}; p = {p:.2g})."
    )


def _of_training(title: str, verdict: dict[str, Any], count: int) -> list[str]:
    """What is to be said of trained against untrained weights."""
    for kind in ("responds", "indifferent", "undecided"):
        if found := verdict[kind].get("training"):
            of = "of one initialisation" if count == 1 else f"of {count} initialisations"
            effect = (
                f"untrained weights ({of}) differ by {found['effect']:+.3f}, {found['low']:+.3f} to {found['high']:+.3f} "
                f"with the order of images{' and the initialisation' if count > 1 else ''}"
            )
            said = {
                "responds": f"{title} differs between the trained and the untrained network",
                "indifferent": f"{title} of the trained and the untrained network differ by less than {verdict['margin']:g}",
                "undecided": f"Whether {title} differs between the trained and the untrained network is undecided",
            }
            return [f"{said[kind]}: {effect}."]
    return []
