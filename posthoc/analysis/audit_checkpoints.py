"""What measures of checkpoints respond to: of outputs, of what layers represent, of weights, and across checkpoints.

Each control changes one thing of what they are made of and measures the last checkpoint again. They do not see the order
of the samples: as noisy counts what random halves of the probe do. What makes no sense is not made: nothing is smoothed;
outputs are of the classes that the network has, which cannot be split; an untrained network has no checkpoint before it.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from posthoc.analysis.altered import OF_CLASSES, Altered
from posthoc.analysis.axes import Axis, Subject
from posthoc.analysis.axes.image import by_class_halved, split_labels
from posthoc.analysis.effects import effects_beside_order, margin_of, told
from posthoc.analysis.geometry import Representation
from posthoc.analysis.intervals import half_splits
from posthoc.analysis.measures import Estimate, Measure, Replay
from posthoc.analysis.representation import representation
from posthoc.analysis.responses import HALVES, LABELS, SPLIT, UNTRAINED, Change, Control, Effect, Response, Spread
from posthoc.analysis.weights import WeightPath
from posthoc.recording import named
from posthoc.store import Activations
from posthoc.streams import stream

DRAWS = 10
"""Of each control that redraws, at the most: a measure of a checkpoint may take a second."""
SPACED = "without the checkpoint before"
Values = dict[str, float]
"""Of each measure of one altered checkpoint; NaN where it has none."""


@dataclass(frozen=True)
class Altering:
    """One control of what a file holds: its name, what it changes, a measurement for each draw, and the name of the control
    that it is compared with (empty: the checkpoint as it is)."""

    name: str
    changes: Change | None
    draws: Sequence[Values]
    beside: str = ""

    def control(self, keys: Iterable[str]) -> Control:
        """As the audit tells it, of the measures that have a value there."""
        spreads = {key: Spread.of(np.array([draw.get(key, math.nan) for draw in self.draws])) for key in keys}
        return Control(self.name, self.changes, {key: spread for key, spread in spreads.items() if spread.count})


class _Near(Replay):
    """A run's file of whose geometry only that of the last checkpoint and the one before it is worked out.

    paths: those of the weights by the rows of the file, which are worked out once for so many, for nothing else changes them.
    """

    def __init__(
        self, view: Altered, signal: str, seed: int, paths: dict[tuple[int, ...], dict[str, WeightPath]]
    ) -> None:
        super().__init__(view, signal, seed)
        self._view, self._paths = view, paths

    @cached_property
    def weight_paths(self) -> dict[str, WeightPath]:
        """As of the checkpoints of the view; none of untrained networks that are no checkpoints."""
        if "weights/sketch" not in self._view.blocks:
            return {}
        rows = tuple(self._view.rows)
        if rows not in self._paths:
            self._paths[rows] = super().weight_paths
        return self._paths[rows]

    @cached_property
    def geometry(self) -> Representation:
        """As of the whole run at its last two checkpoints; NaN before."""
        E = len(self)
        near = representation(self._view.last_two(), self.signal)
        missing = E - min(E, 2)
        columns = {
            name: np.concatenate([np.full((missing, *values.shape[1:]), np.nan), values])
            for name, values in vars(near).items()
        }
        return Representation(**columns)


@dataclass(frozen=True)
class CheckpointAudit:
    """Measures of checkpoints of a subject, as it is and under every control."""

    subject: Subject
    measures: Mapping[str, Measure]

    @property
    def file(self) -> Activations:
        """The file that is altered."""
        return self.subject.activations

    @cached_property
    def estimates(self) -> dict[str, Estimate]:
        """Of the checkpoint as it is."""
        return self._estimates(Altered(self.file))

    @cached_property
    def table(self) -> dict[str, Measure]:
        """The measures that have a value."""
        return {key: measure for key, measure in self.measures.items() if math.isfinite(self.estimates[key].value)}

    @cached_property
    def in_terms_of_classes(self) -> set[str]:
        """The measures that read what the network says in terms of the classes that it has."""
        keys = set()
        for key, measure in self.measures.items():
            view = Altered(self.file)
            assert measure.of_checkpoint is not None
            measure.of_checkpoint(self._near(view).at(self.subject.row))
            keys |= {key} if view.touched & set(OF_CLASSES) else set()
        return keys

    def _estimates(self, view: Altered, without: Iterable[str] = ()) -> dict[str, Estimate]:
        """Of the last checkpoint of a view, `without` some measures."""
        snapshot = self._near(view).at(len(view) - 1)
        estimates = {}
        for key, measure in self.measures.items():
            assert measure.of_checkpoint is not None
            result = None if key in without else measure.of_checkpoint(snapshot)
            estimates[key] = result if isinstance(result, Estimate) else Estimate()
        return estimates

    def _near(self, view: Altered) -> _Near:
        """A view as measures read it."""
        return _Near(view, self.subject.protocol.signal, self.subject.seed, self._known_paths)

    @cached_property
    def _known_paths(self) -> dict[tuple[int, ...], dict[str, WeightPath]]:
        """See `_Near`."""
        return {}

    def _values(self, view: Altered, without: Iterable[str] = ()) -> Values:
        return {key: estimate.value for key, estimate in self._estimates(view, without).items()}

    def controls(self) -> list[Altering]:
        """The checkpoint as it is (of no name), and every control that the file has what it takes for."""
        as_it_is = Altering("", None, [{key: estimate.value for key, estimate in self.estimates.items()}])
        return [as_it_is, *self._of_samples(), *self._of_labels(), *self._of_networks(), *self._of_signals()]

    def _drawn(
        self, name: str, make: Callable[[np.random.Generator], Altered], without: Iterable[str] = ()
    ) -> list[Values]:
        """Of views that are drawn anew, `without` some measures."""
        of = self.subject
        draws = range(max(2, min(of.count, DRAWS)))
        return [self._values(make(stream(name, of.seed, of.row, draw)), without) for draw in draws]

    def _of_samples(self) -> list[Altering]:
        """Another order, one half and the other, and random halves."""
        file, called = self.file, self.file.recording.provenance.samples
        N, labels = len(file.labels), file.labels
        order = f"images{' of each class' if file.labelled else ''} in another order"
        by_class = ", class by class" if file.labelled else ""
        first = f"the first half of the {called}{by_class}"
        halves = [self._values(Altered(file, samples=half)) for half in by_class_halved(labels)]
        return [
            Altering(
                named(order, called),
                Change.ORDER,
                self._drawn("audited order", lambda r: Altered(file, samples=r.permutation(N))),
            ),
            Altering(first, Change.IMAGES, halves[:1]),
            Altering(f"the other half of the {called}", Change.PROBE, halves[1:], first),
            Altering(
                HALVES,
                None,
                self._drawn(
                    "audited samples", lambda r: Altered(file, samples=np.flatnonzero(half_splits(labels, r, 1)[0]))
                ),
            ),
        ]

    def _of_labels(self) -> list[Altering]:
        """Labels permuted, and each class in parts, for measures that are not in terms of the network's classes."""
        file = self.file
        if not file.labelled:
            return []

        parts = self._drawn(
            "audited classes", lambda r: Altered(file, labels=split_labels(file.labels, r)), self.in_terms_of_classes
        )
        permuted = self._drawn("audited labels", lambda r: Altered(file, labels=r.permutation(file.labels)))
        return [Altering(LABELS, Change.LABELS, permuted), Altering(SPLIT, Change.CLASSES, parts)]

    def _of_networks(self) -> list[Altering]:
        """Untrained networks, and the checkpoint two before in place of the one before."""
        file, last = self.file, self.subject.row
        rows = np.flatnonzero(file.steps[:-1] == 0).tolist()
        untrained = [self._values(Altered(file, rows=[row])) for row in rows]
        untrained += [
            self._values(Altered(file, rows=[last], untrained=k)) for k in range(len(file.untrained_seeds))
        ]  # fmt: skip
        altering = [Altering(UNTRAINED, Change.TRAINING, untrained)] if untrained else []
        if last > 1:
            rows = [*range(last - 1), last]
            altering.append(Altering(SPACED, Change.SPACING, [self._values(Altered(file, rows=rows))]))
        return altering

    def _of_signals(self) -> list[Altering]:
        """Half of each layer's channels, half precision, and each layer alone."""
        file = self.file

        def halved(random: np.random.Generator) -> Altered:
            kept = {
                layer: np.sort(random.permutation(len(of))[: max(1, len(of) // 2)])
                for layer, of in file.channels.items()
            }
            return Altered(file, channels=kept)

        layers = {key: estimate.by_layer for key, estimate in self.estimates.items() if estimate.by_layer is not None}
        alone = [
            Altering(
                f"{layer} alone instead of all layers",
                Change.LAYER,
                [{key: float(values[k]) for key, values in layers.items()}],
            )
            for k, layer in enumerate(file.layers if len(file.layers) > 1 else ())
        ]
        return [
            Altering("half of the channels", Change.CHANNELS, self._drawn("audited channels", halved)),
            *alone,
            Altering("values rounded to half precision", Change.PRECISION, [self._values(Altered(file, rounded=True))]),
        ]

    def nonsense(self, key: str, made: Sequence[Control]) -> list[str]:
        """Why controls that were made have nothing of a measure, in sentences."""
        symbol, without = self.table[key].symbol, {control.name for control in made if key not in control.measures}
        sentences = []
        if SPLIT in without:
            sentences.append(
                f"To split classes makes no sense for {symbol}, which is in terms of the classes that the network has."
            )
        if UNTRAINED in without:
            sentences.append(
                f"Of untrained weights there is no {symbol}: it takes a checkpoint before, or what is stored of checkpoints only."
            )
        if LABELS in without:
            sentences.append(
                f"Of other labels there is no {symbol}: the file keeps losses, and not the scores behind them."
            )
        if SPACED in without:
            sentences.append(
                f"Without the checkpoint before there is no {symbol}: the mean of other checkpoints was not replayed."
            )
        return sentences


@dataclass(frozen=True)
class Audited:
    """What was found of measures of checkpoints: the controls, and by measure effects, response and further sentences."""

    made: list[Control]
    effects: dict[str, dict[str, Effect]]
    responses: dict[str, Response]
    sentences: dict[str, list[str]]


def audit_checkpoints(axis: Axis, subject: Subject, measures: Mapping[str, Measure]) -> Audited:
    """The audit of measures of checkpoints that do not look ahead."""
    of = CheckpointAudit(subject, {key: measure for key, measure in measures.items() if not measure.looks_ahead})
    result = Audited([], {}, {}, {})
    if not of.table:
        return result
    altering = of.controls()
    result.made.extend(each.control(of.table) for each in altering)
    beside = {each.name: each.beside for each in altering if each.beside}
    for key, measure in of.table.items():
        made = [control for control in result.made if key in control.measures]
        noise = next((control.measures[key].sd for control in made if control.name == HALVES), math.nan)
        known = {name: other for name, other in beside.items() if any(control.name == other for control in made)}
        margin, margin_from = margin_of(axis, measure, made)
        result.effects[key] = effects_beside_order(made, key, margin, known, any_order=True)
        result.responses[key] = Response(
            measure.symbol, made[0].measures[key].mean, noise, told(result.effects[key]), margin,
            margin_from=margin_from, varies="with the half of the probe",
        )  # fmt: skip
        result.sentences[key] = of.nonsense(key, result.made)
    return result


def joint(controls: dict[str, Control], more: Iterable[Control]) -> dict[str, Control]:
    """The controls with those of other measures, the checkpoint as it is being the first of both."""
    joint = dict(controls)
    for control in more:
        name = control.name or next(iter(joint), "as it is")
        known = joint.get(name, replace(control, name=name, measures={}))
        joint[name] = replace(known, measures=known.measures | control.measures)
    return joint
