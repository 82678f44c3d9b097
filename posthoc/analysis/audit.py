"""What do the measures of a run respond to? Every factor of the axis, and a verdict for each measure.

Each control changes one thing and measures again: what training did, the labels, the number of classes, the smoothing,
the number of images, the choice of channels, the order of images within their class; of documents the order of their
tokens and what else `Axis.factors` names. What a control moves by more than the arbitrary order of images does, or other
documents would, the measure responds to. That it does not respond is said only where the change is shown to be smaller
than a margin (two one-sided tests, as of equivalence); else it is undecided.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from posthoc.analysis.arrays import FloatArray, mean_finite
from posthoc.analysis.audit_checkpoints import audit_checkpoints, joint
from posthoc.analysis.axes import AXES, Axis, Factor, Material, Recorded, Subject
from posthoc.analysis.axes.image import ImageMaterial
from posthoc.analysis.conclusions import conclusions
from posthoc.analysis.documents import LEAST_DOCUMENTS, ends, enough, resampled_finite
from posthoc.analysis.effects import effects_beside_order, in_the_same_orders, margin_of, told
from posthoc.analysis.measures import MEASURES, Asked, Measure, Reading, Replay, Scope, Series, chosen
from posthoc.analysis.nulls import NULLS, Draws, deciding, draws, unrounded
from posthoc.analysis.protocol import Protocol
from posthoc.analysis.records import PURE_NOISE, Aside
from posthoc.analysis.responses import Audit, Change, Control, Effect, Reaction, Response, Spread
from posthoc.analysis.verdicts import two_sided_p
from posthoc.errors import PosthocError, UsageError
from posthoc.files import sha256
from posthoc.recording import named, with_more
from posthoc.store import Activations

NOISES = ("white", "gaussian")


def audit(
    activations: Activations, protocol: Protocol | None = None, count: int = 50, seed: int = 0,
    measures: str | Iterable[str | Measure] = "default", other: Activations | None = None,
) -> Audit:  # fmt: skip
    """Audit the last checkpoint of a run, and the untrained network where the file has it: a checkpoint, controls.

    count: draws of each control that redraws; measures: as `compute_metrics` takes them, of which the default ones are
    audited that runs are compared by; other: the same run, recorded over the same samples prepared otherwise.
    Raises UsageError for an axis that has no factors, and for measures of which an audit can change nothing, PosthocError where there are
    too few images, or documents, or `other` does not fit.
    """
    protocol = protocol or Protocol.fitting(activations.signals)
    axis = AXES[protocol.axis]
    samples, last = activations.recording.provenance.samples, len(activations) - 1
    _refuse_unfit(activations, protocol, axis)
    if other is not None:
        _refuse_other(activations, other, protocol, axis)
    table, asked = _table(measures, axis, activations)
    controls: dict[str, Control] = {}
    effects: dict[str, dict[str, Effect]] = {}
    responses: dict[str, Response] = {}
    aside: dict[str, Aside] = {}
    for series, source in axis.sources(activations, protocol).items():
        if source.points:
            raise PosthocError(
                f"{activations.path} holds sums of the signal {protocol.signal} and not the {axis.points} themselves, which an "
                "audit changes; extract with --signals token."
            )
        audited = _audited(axis, series, table, asked)
        subject = Subject(activations, protocol, source, series, last, count, seed, other)
        factors = axis.factors(subject) if axis.factors and audited else []
        aside |= {factor.name: factor.aside for factor in factors if factor.aside}
        runs = [_Run.of(factor, subject, audited) for factor in factors if not factor.aside]
        for run in runs:
            name = run.factor.name or _name(run.factor, activations, last)
            known = controls.get(name, Control(name, run.factor.changes, {}))
            controls[name] = replace(known, measures=known.measures | run.spreads(axis))
        for key, measure in audited.items():
            margin, margin_from = margin_of(axis, measure, list(controls.values()))
            effects[key] = _effects(axis, runs, list(controls.values()), measure, margin)
            response = _response(axis, runs, effects[key], key, measure, margin)
            responses[key] = replace(response, margin_from=margin_from)
    sentences: dict[str, list[str]] = {}
    if axis.key == "image":
        of_checkpoints = audit_checkpoints(axis, subject, {key: m for key, m in table.items() if m.of_checkpoint})
        controls = joint(controls, of_checkpoints.made)
        effects |= of_checkpoints.effects
        responses |= of_checkpoints.responses
        sentences = of_checkpoints.sentences
    _refuse_unanswered(asked - responses.keys(), table, axis, Replay(activations, protocol.signal, seed))
    order = {key: responses[key] for key in (*table, *responses) if key in responses}
    rows = tuple(_complete(control, order) for control in controls.values())
    return Audit(
        path=str(activations.path),
        sha256=sha256(activations.path),
        probe=activations.recording.provenance.probe,
        samples=activations.recording.identity.probe.samples,
        protocol=protocol,
        draws=count,
        seed=seed,
        controls=rows,
        measures=order,
        conclusions=tuple(
            named(sentence, samples)
            for key, response in order.items()
            for sentence in (*conclusions(rows, key, response, effects[key], axis), *sentences.get(key, []))
        ),
        called=samples,
        aside=aside,
        varies=axis.varies,
        intervals=axis.intervals,
    )


def _refuse_unfit(activations: Activations, protocol: Protocol, axis: Axis) -> None:
    """Raise where the axis has no factors, or there is too little for an audit."""
    samples = activations.recording.provenance.samples
    if axis.factors is None:
        known = " and ".join(f"the {key} axis" for key, other in AXES.items() if other.factors)
        raise UsageError(f"There are audits of {known}, not of the {protocol.axis} axis.")
    T, points = axis.length(activations, protocol), named(axis.points, samples)
    if len(protocol.scales_for(T // 2)) < 2:
        raise PosthocError(
            f"{activations.path}: {T} {points} are too few for an audit, which also measures half of them and needs "
            f"{2 * protocol.least}; {with_more(axis.remedy, samples)}."
        )
    if protocol.smooth > T // 2:
        raise UsageError(
            f"smooth is {protocol.smooth}, and an audit also measures half of the {T} {points}; give a width from 1 to {T // 2}."
        )
    if axis.intervals and not enough(len(activations.labels)):
        raise PosthocError(
            f"{activations.path}: {len(activations.labels)} {samples} are too few for an audit, whose intervals are over "
            f"{samples}; extract with --documents {LEAST_DOCUMENTS} or more."
        )


def _refuse_other(activations: Activations, other: Activations, protocol: Protocol, axis: Axis) -> None:
    """Raise PosthocError where another recording is not of the same units and samples."""
    if axis.key != "image":
        raise UsageError(
            f"Another recording is compared with on the image axis, not on the {axis.key} axis; leave it out."
        )
    if protocol.signal not in other.signals or other.units != activations.units:
        raise PosthocError(
            f"{other.path} has not the channels of {activations.path}; extract it with the same --layers."
        )
    if not np.array_equal(other.labels, activations.labels):
        raise PosthocError(
            f"{other.path} is of other samples than {activations.path}: their labels differ; extract it over the same samples."
        )


def _table(
    measures: str | Iterable[str | Measure], axis: Axis, activations: Activations
) -> tuple[dict[str, Measure], set[str]]:
    """The measures to audit, and those among them that were asked for: by name, or as series where all were.

    Measures of checkpoints, of which each control takes seconds, are no default ones."""
    request = Asked.of(measures, activations)
    table = chosen(request, activations=activations)
    keys = set(request.keys)
    if request.everything:
        keys |= {key for key, measure in table.items() if _base(measure).of_series and not _base(measure).series}
    kept = {
        key: measure for key, measure in table.items()
        if key in keys or (request.everything and axis.key == "image" if measure.of_checkpoint else request.default)
    }  # fmt: skip
    return kept, keys


def _refuse_unanswered(keys: Collection[str], table: Mapping[str, Measure], axis: Axis, replay: Replay) -> None:
    """Raise UsageError where measures that were asked for by name have nothing that an audit changes, or no value."""
    of_checkpoints = axis.key == "image"
    for key in sorted(keys):
        if of_checkpoints and (of := table[key].of_checkpoint):
            reason = of(replay.at(len(replay) - 1))
            nowhere = ": undefined at the last checkpoint of this file, or of later checkpoints, of which it has none; leave it out"
            raise UsageError(f"{key}{f' {reason}' if isinstance(reason, Aside) else nowhere}.")
    if keys:
        able = [
            key for key, measure in MEASURES.items()
            if _base(measure).of_series or (of_checkpoints and measure.of_checkpoint)
        ]  # fmt: skip
        raise UsageError(
            f"{', '.join(sorted(keys))}: an audit changes what series and checkpoints hold, and has nothing to change of these; of "
            f"those that it can audit there are {', '.join(able)}."
        )


def _audited(axis: Axis, series: str, table: Mapping[str, Measure], asked: Collection[str]) -> dict[str, Measure]:
    """The headline measures of some series, functions of such, and those that were asked for."""
    return {
        key: measure for key, measure in table.items()
        if _base(measure).of_series and _base(measure).series == series
        and (key in asked or _headline(axis, measure))
    }  # fmt: skip


def _headline(axis: Axis, measure: Measure) -> bool:
    """Whether runs are compared by it."""
    return bool(axis.overrides.get(measure.key, {}).get("headline", measure.headline)) and _base(measure).nulls


def _base(measure: Measure) -> Measure:
    """What a measure is a function of; else itself."""
    return MEASURES[measure.of_measure.of] if measure.of_measure else measure


def _name(factor: Factor, activations: Activations, row: int) -> str:
    """Of a factor that has no name of its own: that of its null, or of the checkpoint as it is."""
    if factor.null:
        null = NULLS[factor.null]
        return named(null.short if factor.null == PURE_NOISE else null.words, activations.recording.provenance.samples)
    epoch, step = int(activations.epochs[row]), int(activations.steps[row])
    if epoch < 0 and step < 0:
        return "as it is"
    return f"as it is ({f'epoch {epoch}' if epoch >= 0 else f'step {step}'})"


def _complete(control: Control, keys: Iterable[str]) -> Control:
    """With every measure, also those that it does not have, in their order."""
    nothing = Spread.of(np.empty(0))
    return replace(control, measures={key: control.measures.get(key, nothing) for key in keys})


def _forgiving(measure: Measure, series: Series) -> Reading:
    """A reading; of the user's functions NaN where they fail at what a control leaves them."""
    return measure.read(series) if measure.code is None else Reading(measure.part(series))


@dataclass(frozen=True)
class _Material:
    """Material to measure. epoch: what its draws are keyed by."""

    material: Material
    subject: Subject
    measures: tuple[Measure, ...]
    epoch: int

    @cached_property
    def series(self) -> Series:
        """As it is, whose exponents and phases are computed once."""
        values = self.material.series()
        T = values.shape[-1]
        protocol = self.subject.protocol
        scope = Scope(protocol, T, tuple(protocol.scales_for(T).tolist()), self.subject.series)
        return Series(values, scope, recorded=self.recorded)

    @cached_property
    def recorded(self) -> Recorded | None:
        """What lies behind the series, as far as measures ask for it."""
        if not isinstance(self.material, ImageMaterial):
            return None
        file = self.subject.activations
        layers = np.array([file.layers.index(layer) for layer, _ in file.units])
        asked = {name for measure in self.measures for name in measure.asks}
        return self.material.recorded(asked, layers, self.subject.source, self.subject.row)

    @cached_property
    def live(self) -> NDArray[np.bool_]:
        """The units that have an exponent, [U] or [D, U]."""
        alive = [np.isfinite(document.exponents.alpha) for document in self.series.documents]
        return np.stack(alive) if self.series.values.ndim == 3 else alive[0]

    def _reading(self, measure: Measure) -> Reading:
        """Of the user's functions those of the live units; NaN where they fail at what is left of these."""
        if measure.code is None:
            return measure.read(self.series)
        series = self.series.only(measure.given(self.live))
        return measure.read(series) if series.values.ndim == 3 else _forgiving(measure, series)

    def read(self) -> dict[str, Draws]:
        """The measures of it as it is."""
        readings = {measure.key: self._reading(measure) for measure in self.measures}
        return {
            key: Draws(
                np.array([reading.value]),
                documents=np.array([[of.value for of in reading.documents]]) if reading.documents else None,
            )
            for key, reading in readings.items()
        }

    def draw(self, null: str) -> dict[str, Draws]:
        """The measures of the draws of a null."""
        live = np.ones_like(self.live) if NULLS[null].steady else self.live
        of = self.subject
        # Noise is on a scale of its own, of which signals are not.
        measures = [m for m in self.measures if not m.under or null in m.under or null not in NOISES]
        behind = None if self.recorded is None else self.recorded.only(live)
        options = ([self.material], live, self.series.scope, of.count, of.seed, self.epoch, {null: measures})
        drawn = draws([NULLS[null]], *options, recorded=behind, read=_forgiving)[null]
        return {measure.key: drawn.get(measure.key, Draws(np.full(of.count, np.nan))) for measure in self.measures}


@dataclass(frozen=True)
class _Run:
    """What was measured of a factor. raw: base measure -> draws; measures: the audited ones.

    ordered: of a paired factor what was measured in other orders, the same as those of the run as it is.
    """

    factor: Factor
    subject: Subject
    scope: Scope
    raw: Mapping[str, Draws]
    measures: Mapping[str, Measure]
    ordered: Mapping[str, Draws] = field(default_factory=dict)

    @classmethod
    def of(cls, factor: Factor, subject: Subject, measures: Mapping[str, Measure]) -> "_Run":
        """Measure a factor; one material is in memory at a time."""
        bases = tuple({base.key: base for base in map(_base, measures.values())}.values())
        epoch = subject.row if factor.key is None else factor.key
        read, scope, ordered = [], None, {}
        for material in factor.materials():
            measured = _Material(material, subject, bases, epoch)
            read.append(measured.draw(factor.null) if factor.null else measured.read())
            scope = measured.series.scope
            if factor.paired:
                ours = tuple(base for base in bases if base.code is None)
                ordered = replace(measured, measures=ours).draw(AXES[subject.protocol.axis].decides)
        assert scope is not None
        raw = {key: _joined([of[key] for of in read]) for key in read[0]}
        return cls(factor, subject, scope, raw, measures, ordered)

    def finished(self, key: str, raw: FloatArray) -> FloatArray:
        """An audited measure of what was measured."""
        measure = self.measures[key]
        finish = measure.of_measure.value if measure.of_measure else measure.finished
        return np.asarray(finish(raw, self.scope), dtype=np.float64)

    def draws(self, key: str) -> Draws:
        """What was measured of an audited measure."""
        return self.raw[_base(self.measures[key]).key]

    def by_document(self, key: str) -> FloatArray:
        """As measured of each document [D], the mean over draws; NaN where there is none."""
        documents = self.draws(key).documents
        assert documents is not None
        return np.array([mean_finite(column) for column in documents.T])

    def value(self, key: str) -> float:
        """Of a factor that is measured once, or the mean over its draws."""
        return float(self.finished(key, np.asarray(mean_finite(self.draws(key).values))))

    def differences(self, ordered: "_Run", key: str) -> FloatArray:
        """Of an audited measure from that of the run as it is, in each of the same orders."""
        drawn = self.ordered[_base(self.measures[key]).key].values
        return self.finished(key, drawn) - ordered.finished(key, ordered.draws(key).values)

    def spreads(self, axis: Axis) -> dict[str, Spread]:
        """Over the draws, or over documents where there are any."""
        spreads = {}
        for key in self.measures:
            of = self.draws(key)
            if of.documents is None or self.factor.null == axis.decides:
                spreads[key] = Spread.of(self.finished(key, of.values))
            else:
                spreads[key] = self._over_documents(key)
        return spreads

    def _over_documents(self, key: str) -> Spread:
        values = self.by_document(key)
        count = int(np.isfinite(values).sum())
        mean = float(self.finished(key, np.asarray(mean_finite(values))))
        if not enough(count):
            return Spread(mean, 0.0, np.nan, np.nan, count)
        means = self.finished(key, resampled_finite(values, self.subject.seed))
        low, high = ends(means[np.isfinite(means)], count)
        return Spread(mean, float(np.nanstd(means)), float(low), float(high), count)


def _joined(read: Sequence[Draws]) -> Draws:
    """The draws of several materials."""
    documents = [of.documents for of in read if of.documents is not None]
    return Draws(np.concatenate([of.values for of in read]), documents=np.concatenate(documents) if documents else None)


def _response(
    axis: Axis, runs: Sequence[_Run], effects: Mapping[str, Effect], key: str, measure: Measure, margin: float
) -> Response:
    """What a measure responds to, and how it varies by itself."""
    first, null = runs[0], deciding(measure, axis) or axis.decides
    ordered = next(run for run in runs if run.factor.null == null)
    of, drawn = first.draws(key), ordered.draws(key)
    if of.documents is None:
        spread = Spread.of(ordered.finished(key, drawn.values)).sd
    else:
        spread = Spread.of(first.finished(key, first.by_document(key))).sd
    p = np.nan
    if deciding(measure, axis):
        p = two_sided_p(float(of.values[0]), unrounded(float(of.values[0]), drawn.values))
    return Response(measure.symbol, first.value(key), spread, told(effects), margin, p)


def _effects(
    axis: Axis, runs: Sequence[_Run], controls: Sequence[Control], measure: Measure, margin: float
) -> dict[str, Effect]:
    """What every control that changes something does to a measure, by its name."""
    key = measure.key
    if not axis.intervals:
        beside = {run.factor.name: run.factor.beside for run in runs if run.factor.beside}
        ordered = next(run for run in runs if run.factor.changes == Change.ORDER)
        return effects_beside_order(controls, key, margin, beside, measure.code is not None) | {
            run.factor.name: in_the_same_orders(run.differences(ordered, key), run.factor.changes, run.factor.name, margin)
            for run in runs if run.factor.changes and _base(measure).key in run.ordered
        }  # fmt: skip
    return {run.factor.name: _paired(runs[0], run, key, margin) for run in runs if run.factor.changes}


def _paired(text: _Run, other: _Run, key: str, margin: float) -> Effect:
    """What a control does to the mean over documents, paired by document: its interval is over documents.

    A change that is sure to be smaller than the margin is small, also where pairs are so alike that it is sure to be one.
    """
    assert other.factor.changes
    pair = [text.by_document(key), other.by_document(key)]
    pair[1] = np.append(pair[1], np.full(len(pair[0]) - len(pair[1]), np.nan))  # of fewer documents, the first
    effect = other.value(key) - text.value(key)
    count = min(int(np.isfinite(values).sum()) for values in pair)
    changes, name = other.factor.changes, other.factor.name
    if not np.isfinite(effect) or not enough(count):
        return Effect(changes, Reaction.UNDEFINED, control=name)
    seed = text.subject.seed
    drawn = [run.finished(key, resampled_finite(values, seed)) for run, values in zip((text, other), pair, strict=True)]
    differences = drawn[1] - drawn[0]
    differences = differences[np.isfinite(differences)]
    low, high = map(float, ends(differences, count))
    least, most = map(float, ends(differences, count, 0.9))
    if (-margin < least and most < margin) or not differences.any():
        return Effect(changes, Reaction.INDIFFERENT, effect, least, most, name)
    outcome = Reaction.UNDECIDED if low <= 0 <= high else Reaction.RESPONDS
    return Effect(changes, outcome, effect, low, high, name)
