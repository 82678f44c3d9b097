"""The protocol: every choice that turns signals into measures."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray

from posthoc.analysis.scales import LEAST_POINTS, LEAST_PUBLISHED, default_scales, published_scales
from posthoc.errors import UsageError, nearest

SPECTRAL = ("effective-rank", "participation-ratio")
"""What may play the part of a signal on the epoch axis: one number per layer and checkpoint."""
ESTIMATORS = ("dfa", "whittle", "reml")
SCALES = ("published", "default")
FLUCTUATIONS = ("published", "peng")
KINDS: dict[type, tuple[type, str]] = {
    bool: (bool, "True or False"), int: (Integral, "a whole number"), float: (Real, "a number"), str: (str, "a text"),
}  # fmt: skip
"""What a setting may be, and how that is called, by the type of its default."""


@dataclass(frozen=True)
class Protocol:
    """Every choice that turns signals into measures.

    `published` is that of arXiv 2604.09716: smoothing over 5 images (its DenseNet, MobileNet and VGG runs: 15), ten
    scales from 16 to N // 4, fluctuation averaged over windows. `default` does not smooth, which by itself shapes
    F(s), and uses twelve log-spaced scales up to a quarter of the series and the usual root-mean-square fluctuation.
    estimator: of the Hurst exponent, `dfa`, or `whittle` or `reml`, which take a series for fractional Gaussian noise and
    its F(s) for no more than a picture (`posthoc.hurst`). calibrate: debias the exponents of DFA by simulated noise of the
    same length. axis: what plays the part of time, `image`, `depth`, `epoch` or `token`; span: checkpoints in an epoch's window
    on the epoch axis (None: all so far).
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
    estimator: Annotated[str, Literal["dfa", "whittle", "reml"]] = "dfa"

    @classmethod
    def named(cls, name: str = "", **changes: Any) -> "Protocol":
        """The protocol `published` or `default`, with the given fields changed (those that are None are not).

        Without a name, the published one on the image axis, which alone has it, and elsewhere the default one.
        """
        from posthoc.analysis.axes import AXES

        _require_kinds(changes)
        axis = changes.get("axis") or "image"
        if axis not in AXES:
            raise UsageError(f"Unknown axis {axis!r}; give {', '.join(AXES)}.")
        names = ("default", "published") if axis == "image" else ("default",)
        name = name or names[-1]
        if name not in names:
            raise UsageError(f"No protocol {name!r} for the {axis} axis; give {' or '.join(names)}.")
        start = cls() if name == "published" else cls(name="default", smooth=1, scales="default", fluctuation="peng")
        if axis != "image" and (changes.get("estimator") or "dfa") == "dfa":
            start = replace(start, calibrate=True)
        protocol = replace(start, **{key: value for key, value in changes.items() if value is not None})
        protocol.require_sound()
        return protocol

    @classmethod
    def fitting(cls, signals: Sequence[str], name: str = "", **changes: Any) -> "Protocol":
        """As `named`; of the axis and signal that are not given, those that the signals of a file are for.

        Where one keeps the tokens of documents, that is the token axis, else the image axis.
        """
        from posthoc.analysis.axes.token import SIGNAL, SUMMED

        of_tokens = [signal for signal in (SIGNAL, SUMMED) if signal in signals]
        axis = changes.get("axis") or ("token" if of_tokens else "image")
        signal = changes.get("signal") or (of_tokens or [SIGNAL] if axis == "token" else ["mean"])[0]
        return cls.named(name, **changes | {"axis": axis, "signal": signal})

    def require_sound(self) -> None:
        """Raise UsageError for settings that cannot be, or do nothing on the axis: files keep them, and runs are judged by
        them. Not asked of what a file holds, which an earlier version may have written."""
        from posthoc.analysis.axes import AXES

        _require_kinds(vars(self), optional=("span",))
        allowed = {"axis": AXES, "scales": SCALES, "fluctuation": FLUCTUATIONS, "estimator": ESTIMATORS}
        for name, known in allowed.items():
            if getattr(self, name) not in known:
                raise UsageError(f"{name} is {getattr(self, name)!r}; give {', '.join(known)}.")
        likelihood = self.estimator != "dfa"
        if likelihood and self.calibrate:
            raise UsageError(f"calibrate debiases DFA, not {self.estimator}; leave it out, or give the estimator dfa.")
        if self.smooth < 1:
            raise UsageError(f"smooth is {self.smooth}; give a width of 1 or more.")
        if self.smooth > 1 and self.axis != "image":
            raise UsageError(
                f"smooth is {self.smooth}, and on the {self.axis} axis nothing is smoothed; leave it out, or give 1."
            )
        if self.smooth > 1 and likelihood:
            raise UsageError(
                f"The estimator {self.estimator} takes series for fractional noise, which smoothed series are not; "
                "give --smooth 1."
            )
        if self.span is not None and self.axis != "epoch":
            raise UsageError(f"span is {self.span}, and only the epoch axis has windows of checkpoints; leave it out.")
        if not all(map(math.isfinite, (self.h_opt, self.sigma_h, self.threshold))) or self.sigma_h <= 0:
            raise UsageError("h_opt, sigma_h and threshold must be finite, sigma_h above 0.")
        if not 0 <= self.w_h <= 1 or self.window < 2:
            raise UsageError("w_h must be in 0..1 and window 2 or more.")
        if self.signal in SPECTRAL and self.axis != "epoch":
            raise UsageError(f"The signal {self.signal} is one number per checkpoint and layer: use --axis epoch.")
        if self.signal == "fluctuation" and (self.axis, self.estimator) != ("token", "dfa"):
            raise UsageError(
                "The signal fluctuation holds the sums behind DFA on the token axis: give no other axis or estimator."
            )
        if self.span is not None and self.span < LEAST_POINTS:
            raise UsageError(f"span is {self.span}; an exponent needs at least {LEAST_POINTS} points in time.")

    @property
    def least(self) -> int:
        """How many points in time it needs for an exponent."""
        return LEAST_PUBLISHED if self.scales == "published" else LEAST_POINTS

    def scales_for(self, T: int) -> NDArray[np.int64]:
        """The scales for series of T points; none where they are too short."""
        return published_scales(T) if self.scales == "published" else default_scales(T)


def _require_kinds(settings: Mapping[str, Any], optional: Sequence[str] | None = None) -> None:
    """Raise UsageError for what is no setting of a protocol, or of another type than that has; optional: those that may be
    None (default: all)."""
    defaults = {field.name: field.default for field in fields(Protocol)}
    for name, value in settings.items():
        if name not in defaults:
            raise UsageError(f"A protocol has no setting {name!r}; {nearest(name, defaults)}")
        kind, words = KINDS[type(defaults[name]) if defaults[name] is not None else int]
        if value is None and (optional is None or name in optional):
            continue
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise UsageError(f"{name} is {value!r}; give {words}.")
