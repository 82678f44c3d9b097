"""What do the measures of a run respond to? Every control of the image axis, and a verdict for each measure.

Each control changes one thing and measures again: what training did, the labels, the number of classes, the smoothing,
the number of images, the choice of channels, the order of images within their class. What a control moves by more than
the arbitrary order of images does, the measure responds to. That it does not respond is said only where the change is
shown to be smaller than a margin (two one-sided tests, as of equivalence); else it is undecided.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from scipy.special import stdtrit

from posthoc.analysis.axes.image import ImageMaterial
from posthoc.analysis.measures import MEASURES, Measure, Scope, Series
from posthoc.analysis.nulls import NULLS, Draws, draws
from posthoc.analysis.protocol import Protocol
from posthoc.analysis.records import PURE_NOISE, Aside
from posthoc.analysis.responses import Audit, Change, Control, Effect, Reaction, Response, Spread
from posthoc.analysis.verdicts import two_sided_p
from posthoc.errors import PosthocError, UsageError
from posthoc.files import sha256
from posthoc.recording import named
from posthoc.store import Activations
from posthoc.streams import stream

SMOOTHINGS = (1, 5, 15)
LABELS = "labels permuted"
SPLIT = "each class split in ten"
UNTRAINED = "untrained weights"
GAUSSIAN, NOISE = NULLS["gaussian"].words, NULLS[PURE_NOISE].short
LEVEL = 0.05
STRENGTH = (Reaction.UNDEFINED, Reaction.INDIFFERENT, Reaction.UNDECIDED, Reaction.RESPONDS)
"""Of several outcomes of the same change, the last counts."""


def audit(activations: Activations, protocol: Protocol | None = None, count: int = 50, seed: int = 0) -> Audit:
    """Audit the last checkpoint of a run, and the untrained network where the file has it: a checkpoint, controls.

    count: draws of each control that redraws. Raises UsageError for another axis than the image axis, PosthocError
    where there are too few images.
    """
    protocol = protocol or Protocol()
    if activations.tokens is not None:
        raise PosthocError(
            f"{activations.path} holds documents of tokens, and the audit's controls are of labelled images; read its measures "
            "beside what other tokens give: extract with --controls, then posthoc metrics."
        )
    if protocol.axis != "image":
        raise UsageError(f"The audit's controls are those of the image axis, not of the {protocol.axis} axis.")
    samples, labelled = activations.recording.provenance.samples, activations.labelled
    if len(protocol.scales_for(len(activations.labels) // 2)) < 2:
        raise PosthocError(
            f"{activations.path}: {len(activations.labels)} {samples} are too few for an audit, which also measures half "
            f"of them; extract with more --images."
        )
    last = len(activations) - 1
    trained = _Subject(_material(activations, protocol, last), protocol, last, count, seed)
    name = f"epoch {activations.epochs[last]}" if activations.epochs[last] >= 0 else f"step {activations.steps[last]}"
    ordered = trained.draw("order")
    controls = [
        Control(f"as it is ({name})", None, trained.once()),
        Control(
            f"{samples}{' of each class' if labelled else ''} in another order", Change.ORDER, trained.spreads(ordered)
        ),
        *([Control(LABELS, Change.LABELS, trained.drawn("label"))] if labelled else []),
        *([Control(SPLIT, Change.CLASSES, trained.drawn("split"))] if labelled else []),
        *_of_untrained(activations, trained),
        *_of_settings(trained, samples),
        Control(f"each channel's {samples} in its own order", None, trained.drawn("channel")),
        Control(GAUSSIAN, None, trained.drawn("gaussian")),
        Control(NOISE, None, trained.drawn(PURE_NOISE)),
    ]
    raw = trained.raw()
    measures = {}
    for key, measure in _audited().items():
        base = measure.of_measure.of if measure.of_measure else key
        response = respond(controls, key, measure.symbol, measure.margin)
        measures[key] = replace(response, order_p=two_sided_p(raw[base], ordered[base].values))
    return Audit(
        path=str(activations.path),
        sha256=sha256(activations.path),
        probe=activations.recording.provenance.probe,
        samples=activations.recording.identity.probe.samples,
        protocol=protocol,
        draws=count,
        seed=seed,
        controls=tuple(controls),
        measures=measures,
        conclusions=tuple(
            named(sentence, samples) for key in measures for sentence in _conclusions(controls, key, measures[key])
        ),
        called=samples,
        aside={} if labelled else dict.fromkeys((LABELS, SPLIT), Aside.NEEDS_LABELS),
    )


def _audited() -> dict[str, Measure]:
    """The headline measures of series, and functions of such."""
    return {
        key: measure for key, measure in MEASURES.items()
        if measure.headline and not measure.series and (measure.of_measure or (measure.of_series and measure.nulls))
    }  # fmt: skip


def _material(activations: Activations, protocol: Protocol, row: int) -> ImageMaterial:
    return ImageMaterial(activations.read(protocol.signal, row), activations.labels, protocol.smooth)


@dataclass(frozen=True)
class _Subject:
    """What is measured again and again: a checkpoint's material; epoch: what its draws are keyed by."""

    material: ImageMaterial
    protocol: Protocol
    epoch: int
    count: int
    seed: int

    @property
    def scope(self) -> Scope:
        T = len(self.material.labels)
        return Scope(self.protocol, T, tuple(self.protocol.scales_for(T).tolist()))

    @cached_property
    def observed(self) -> Series:
        """Its series as they are, whose exponents and phases are computed once."""
        return Series(self.material.series(), self.scope)

    def raw(self) -> dict[str, float]:
        """The measures of its series that the audited ones are, or are functions of, as measured."""
        return {measure.key: measure.read(self.observed).value for measure in _bases()}

    def once(self) -> dict[str, Spread]:
        """The measures of it as it is."""
        return self.spreads({key: Draws(np.array([value])) for key, value in self.raw().items()})

    def draw(self, null: str) -> dict[str, Draws]:
        """The measures of the draws of a null."""
        everything = np.ones(len(self.material.x), np.bool_)
        live = everything if NULLS[null].steady else np.isfinite(self.observed.exponents.alpha)
        options = (self.material, live, self.scope, self.count, self.seed, self.epoch, {null: _bases()})
        return draws([NULLS[null]], *options)[null]

    def drawn(self, null: str) -> dict[str, Spread]:
        """The audited measures of the draws of a null."""
        return self.spreads(self.draw(null))

    def spreads(self, drawn: Mapping[str, Draws]) -> dict[str, Spread]:
        """The audited measures of what was measured."""
        spreads = {}
        for key, measure in _audited().items():
            if measure.of_measure:
                values = np.asarray(measure.of_measure.value(drawn[measure.of_measure.of].values, self.scope))
            else:
                values = np.asarray(measure.finished(drawn[key].values, self.scope))
            spreads[key] = Spread.of(values)
        return spreads

    def together(self, subjects: Iterable["_Subject"]) -> dict[str, Spread]:
        """The audited measures over several subjects of its size, each as it is; one is in memory at a time."""
        raw = [subject.raw() for subject in subjects]
        return self.spreads({key: Draws(np.array([values[key] for values in raw])) for key in raw[0]})

    def changed(self, **changes: Any) -> "_Subject":
        """With another material."""
        return replace(self, material=replace(self.material, **changes))


def _bases() -> list[Measure]:
    """The measures of series behind the audited ones."""
    audited = _audited().values()
    return list({m.key: m for m in (MEASURES[m.of_measure.of] if m.of_measure else m for m in audited)}.values())


def _of_untrained(activations: Activations, trained: _Subject) -> list[Control]:
    """The untrained networks: checkpoints of step 0 and controls, each keyed by a number that no other row has."""
    protocol = trained.protocol
    rows = np.flatnonzero(activations.steps[:-1] == 0).tolist()
    fresh = [replace(trained, material=_material(activations, protocol, row), epoch=row) for row in rows]
    for k in range(len(activations.untrained_seeds)):
        x = activations.read_untrained(protocol.signal, k)
        fresh.append(replace(trained.changed(x=x), epoch=len(activations) + k))
    if not fresh:
        return []
    controls = [Control(UNTRAINED, Change.TRAINING, trained.together(fresh))]
    if activations.labelled:
        controls.append(Control(f"{UNTRAINED}, {SPLIT}", None, fresh[0].drawn("split")))
    return controls


def _of_settings(trained: _Subject, samples: str) -> list[Control]:
    """Other smoothings, fewer images, and random halves of the channels, as if others had been recorded."""
    material, smooth = trained.material, trained.protocol.smooth
    controls = [
        Control(f"smoothing {width} instead of {smooth}", Change.SMOOTHING, trained.changed(smooth=width).once())
        for width in SMOOTHINGS if width != smooth
    ]  # fmt: skip
    half = len(material.labels) // 2
    fewer = trained.changed(x=material.x[:, :half], labels=material.labels[:half])
    controls.append(Control(f"the first {half} {samples}", Change.IMAGES, fewer.once()))

    def half_of_channels(draw: int) -> _Subject:
        random = stream("audited channels", trained.seed, trained.epoch, draw)
        chosen = random.permutation(len(material.x))[: max(1, len(material.x) // 2)]
        return trained.changed(x=material.x[np.sort(chosen)])

    halves = trained.together(map(half_of_channels, range(trained.count)))
    controls.append(Control("half of the channels", Change.CHANNELS, halves))
    return controls


def respond(controls: Sequence[Control], key: str, symbol: str, margin: float) -> Response:
    """What moves a measure beyond what comes from the arbitrary order of images, and what by less than its margin."""
    value = controls[0].measures[key].mean
    order = next(control for control in controls if control.changes == Change.ORDER).measures[key]
    effects: list[Effect] = []
    for control in controls:
        if control.changes and control.changes != Change.ORDER:
            effect = _effect(control.changes, control.measures[key], value, order, margin)
            if any(
                other.changes == effect.changes and other.outcome == effect.outcome != Reaction.UNDEFINED
                for other in effects
            ):
                effect = replace(effect, changes=f"{control.changes} ({control.name})")
            effects.append(effect)
    # What a measure responds to under one control it is not called indifferent to for the sake of another.
    strongest: dict[str, int] = {}
    for effect in effects:
        strength = STRENGTH.index(effect.outcome)
        strongest[effect.changes] = max(strength, strongest.get(effect.changes, strength))
    kept = [
        effect for outcome in Reaction for effect in effects
        if effect.outcome is outcome and outcome in (Reaction.UNDEFINED, STRENGTH[strongest[effect.changes]])
    ]  # fmt: skip
    return Response(symbol, value, order.sd, tuple(kept), margin)


def _effect(changes: str, under: Spread, value: float, order: Spread, margin: float) -> Effect:
    """What one control does. The run itself is one order of its images, and so is a control measured once; of others
    there is a mean."""
    effect = under.mean - value
    if not np.isfinite(effect):
        return Effect(changes, Reaction.UNDEFINED)
    repeated = under.sd / np.sqrt(under.count) if under.count > 1 else order.sd
    error = float(np.hypot(order.sd, repeated))
    freedom = min(order.count, under.count if under.count > 1 else order.count) - 1
    sure, likely = (float(stdtrit(freedom, q)) * error for q in (0.975, 0.95))
    small = Reaction.INDIFFERENT if abs(effect) + likely < margin else Reaction.UNDECIDED
    outcome = Reaction.RESPONDS if abs(effect) > sure else small
    return Effect(changes, outcome, effect, effect - sure, effect + sure)


def _conclusions(controls: Sequence[Control], key: str, response: Response) -> list[str]:
    """In sentences, what follows for the use of a measure's numbers."""
    title, value = response.symbol, response.value
    if not np.isfinite(value):
        return [f"{title} of the last checkpoint is undefined: no channel has one."]
    under = {control.name: control.measures[key] for control in controls}
    order = next(control.measures[key] for control in controls if control.changes == Change.ORDER)
    how = "differs from" if response.order_p <= LEVEL else "cannot be distinguished from"
    sentences = [
        f"{title} {how} that of another order of the same images ({value:.4f}, and {order.mean:.4f} with sd "
        f"{order.sd:.4f}; p = {response.order_p:.2g})."
    ]
    responds = response.which(Reaction.RESPONDS)
    if Change.CLASSES in responds:
        sentences.append(
            f"{title} goes from {value:.3f} to {under[SPLIT].mean:.3f} when each class is split in ten at random, which changes "
            f"nothing about the network or the images: values from data sets with different numbers of classes "
            f"cannot be compared."
        )
    if settings := [what for what in (Change.SMOOTHING, Change.IMAGES) if what in responds]:
        sentences.append(f"{title} depends on {' and '.join(settings)}: compare only runs in which these are equal.")
    if Change.LABELS in response.which(Reaction.INDIFFERENT):
        sentences.append(f"{title} changes by less than {response.margin:g} when the labels are permuted.")
    if UNTRAINED in under:
        sentences += _of_training(response, under[UNTRAINED].count)
    for name, what in ((GAUSSIAN, GAUSSIAN), (NOISE, f"{NOISE}, which takes channels for independent,")):
        noise = under[name]
        where = "lies within that range" if noise.low <= value <= noise.high else "lies outside that range"
        sentences.append(
            f"{title} of {what} is {noise.mean:.3f} ({noise.low:.3f} to {noise.high:.3f}); this run's {value:.3f} {where}."
        )
    return sentences


def _of_training(response: Response, count: int) -> list[str]:
    """What is to be said of trained against untrained weights."""
    effect = next((effect for effect in response.effects if effect.changes == Change.TRAINING), None)
    if effect is None or effect.outcome == Reaction.UNDEFINED:
        return []
    of = "of one initialisation" if count == 1 else f"of {count} initialisations"
    also = " and the initialisation" if count > 1 else ""
    between = f"{response.symbol} differs between the trained and the untrained network"
    start = {
        Reaction.RESPONDS: between,
        Reaction.INDIFFERENT: f"{response.symbol} of the trained and the untrained network differ by less than {response.margin:g}",
        Reaction.UNDECIDED: f"Whether {between} is undecided",
    }[effect.outcome]
    return [
        f"{start}: untrained weights ({of}) differ by {effect.effect:+.3f}, {effect.low:+.3f} to {effect.high:+.3f} "
        f"with the order of images{also}."
    ]
