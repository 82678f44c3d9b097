"""A run's measures: every checkpoint of an activations file by itself, beside its nulls, and in relation to the others."""

import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version

import numpy as np
from numpy.typing import NDArray

from posthoc import __version__
from posthoc.analysis.arrays import FloatArray, sd_finite
from posthoc.analysis.axes import AXES, Axis
from posthoc.analysis.checkpoint import Measurement, Measuring, draw_until_decided, referenced
from posthoc.analysis.choice import choice
from posthoc.analysis.controlled import beside, controlled, of_documents
from posthoc.analysis.documents import SIGN_WORDS, SIGNS
from posthoc.analysis.geometry import Locking, Representation
from posthoc.analysis.health import Symptom, symptoms
from posthoc.analysis.measures import Asked, Measure, Replay, behaviour, chosen, of_epochs
from posthoc.analysis.measures.stability import unevenness
from posthoc.analysis.nulls import NOTHING, description, words_of
from posthoc.analysis.origins import AxisWords, Checkpoint, Input, Unit, trained
from posthoc.analysis.protocol import SPECTRAL, Protocol
from posthoc.analysis.records import NOWHERE, Aside, Measured, RunMetrics
from posthoc.analysis.snapshots import Row, of_checkpoint, of_checkpoints
from posthoc.analysis.stored import Curve, Fluctuation
from posthoc.analysis.summary import against_nulls, overall, summarise
from posthoc.chance import OF_LABELS, doubt
from posthoc.errors import PosthocError, UsageError
from posthoc.files import sha256
from posthoc.recording import named, with_more
from posthoc.store import Activations

MOST_DRAWS = 9999
"""Draws of a deciding null for one checkpoint, at the most, by default."""


def compute_metrics(
    activations: Activations,
    protocol: Protocol | None = None,
    nulls: int = 0,
    seed: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
    max_nulls: int | None = None,
    measures: str | Iterable[str | Measure] = "default",
) -> RunMetrics:
    """The measures of one run; few checkpoints' signals are in memory at a time.

    nulls: how many times each null is drawn for each checkpoint (0: not at all; references at most 39 times, in at most
    ten checkpoints), with random numbers keyed by `seed`. Where that is too few for a verdict over all checkpoints, the
    deciding null is drawn up to `max_nulls` times (default: 9,999), in the checkpoints that need it.
    measures: names or symbols of MEASURES, `default` or `all`, and measures of your own (`posthoc.measure`), see `measures.chosen`;
    accuracy, loss and other scores that the file has are always there.
    Raises PosthocError where there are too few images, layers or checkpoints for the protocol, or the signal was not
    recorded.
    """
    if max_nulls is not None and max_nulls < nulls:
        raise UsageError(
            f"nulls is {nulls} and max_nulls, which they are drawn at the most, {max_nulls}; give as many or more."
        )
    protocol = protocol or Protocol.fitting(activations.signals)
    axis = AXES[protocol.axis]
    asked = Asked.of(measures, activations)
    table = chosen(asked, axis.unasked, activations)
    _refuse_unfit(activations, protocol, axis)
    units = _units(activations, protocol) if axis.layered else ()
    layers = np.array([activations.layers.index(unit.layer) for unit in units]) if axis.layered else None
    sources = axis.sources(activations, protocol)
    if sources[""].points:
        table = whole({key: measure for key, measure in table.items() if _of_sums(measure, table)})
    main, *others = (
        Measuring(
            axis,
            protocol,
            None if name else layers,
            0 if source.points else nulls,
            referenced(len(activations)),
            seed,
            source,
            table,
            name,
            activations.labelled,
        )
        for name, source in sources.items()
    )
    most = max(nulls, MOST_DRAWS if max_nulls is None else max_nulls) if nulls else 0
    replay = Replay(activations, protocol.signal if axis.intervals else activations.signals[0], seed, nulls)
    results, rows = _results(replay, table, (main, *others), most, progress)
    as_they_are = of_checkpoints(axis, table, rows)
    as_they_are = {key: of for key, of in as_they_are.items() if not of.aside or asked.everything or key in asked.keys}
    return _gathered(activations, main, units, results, replay, as_they_are)


def _results(
    replay: Replay, table: Mapping[str, Measure], measurings: Sequence[Measuring], most: int,
    progress: Callable[[int, int, str], None] | None,
) -> tuple[list[Measurement], list[Row]]:  # fmt: skip
    """What each checkpoint gives, of all series together, and as it is; deciding nulls are drawn up to `most` times where
    more decide."""
    activations, E = replay.activations, len(replay)
    results: list[list[Measurement]] = [[] for _ in measurings]
    rows: list[Row] = []
    for e in range(E):
        rows.append(of_checkpoint(replay, table, e))
        for measuring, measured in zip(measurings, results, strict=True):
            measured.append(measuring.measure(e))
        if progress:
            progress(e + 1, E, activations.checkpoints[e])
    trained = np.flatnonzero(activations.steps != 0).tolist()
    again = [
        (measuring, {e: measured[e] for e in trained}) for measuring, measured in zip(measurings, results, strict=True)
    ]
    for e, count in draw_until_decided(again, most) if most else ():
        if progress:
            progress(E, E, f"{activations.checkpoints[e]} again, {count} draws")
    for measured in results[1:]:
        for result, other in zip(results[0], measured, strict=True):
            result.join(other)
    return results[0], rows


def _units(activations: Activations, protocol: Protocol) -> tuple[Unit, ...]:
    """What the series are of, on an axis whose units are part of a layer."""
    if protocol.signal in SPECTRAL:
        return tuple(Unit(layer, None) for layer in activations.layers)
    return tuple(Unit(layer, channel) for layer, channel in activations.units)


def _refuse_unfit(activations: Activations, protocol: Protocol, axis: Axis) -> None:
    """Raise PosthocError where the points of the axis are too few or, on the epoch axis, unevenly spaced."""
    trained = np.flatnonzero(activations.steps != 0)
    when = ([_known(at) for at in column[trained]] for column in (activations.steps, activations.epochs))
    if axis.key == "epoch" and (uneven := unevenness(*when)):
        raise PosthocError(
            f"{activations.path}: {uneven}; the epoch axis takes them for a series in time. Extract evenly spaced ones."
        )
    T, words = axis.length(activations, protocol), _words(activations, axis)
    if len(protocol.scales_for(T)) >= 2:
        return
    samples = activations.recording.provenance.samples
    raise PosthocError(
        f"{activations.path}: {T} {words.points} are too few for the {axis.key} axis with the {protocol.name} protocol, "
        f"which needs {protocol.least}; {with_more(axis.remedy, samples)}."
    )


def _words(activations: Activations, axis: Axis) -> AxisWords:
    """What is said of the axis, samples being called what they are."""
    samples = activations.recording.provenance.samples
    words = axis.words
    return replace(words, points=named(words.points, samples), units=named(words.units, samples))


def _known(value: np.int64) -> int | None:
    return None if value < 0 else int(value)


def _gathered(
    activations: Activations, measuring: Measuring, units: tuple[Unit, ...], results: Sequence[Measurement],
    replay: Replay, as_they_are: Mapping[str, Measured],
) -> RunMetrics:  # fmt: skip
    """What was measured of the checkpoints, and all that relates them to each other."""
    protocol, axis = measuring.protocol, measuring.axis
    checkpoints = _checkpoints(activations, results)
    table = {**measuring.table, **behaviour.of_file(activations)}
    columns, sources = _columns(table, activations, protocol, results, checkpoints)
    judge = table.get(behaviour.judge(columns, behaviour.of_tokens(activations)))
    measures = {key: _measured(table[key], axis, values, results) for key, values in columns.items()}
    if not np.isfinite(columns["accuracy"]).any():
        aside = _no_accuracy(activations, judge)
        measures["accuracy"] = replace(measures["accuracy"], listed=False, aside=aside)
    measures |= as_they_are
    measures |= of_documents(table, activations, axis, measuring.seed)
    differing = controlled(table, results, measures, measuring.seed)
    measures = _in_order(measures, differing)
    L = len(activations.layers)
    geometry = _no_geometry(len(results), L) if measuring.source.points else replay.geometry
    return RunMetrics(
        protocol=protocol,
        axis=_words(activations, axis),
        scales=tuple(protocol.scales_for(axis.length(activations, protocol)).tolist()),
        input=Input(
            str(activations.path),
            sha256(activations.path),
            activations.probe_sha256,
            activations.recording,
            None if (ids := activations.tokens) is None else ids.shape[1],
        ),
        layers=activations.layers,
        units=units,
        checkpoints=checkpoints,
        nulls=words_of(
            axis.key,
            activations.labelled,
            activations.recording.provenance.samples,
            dict.fromkeys(n for m in as_they_are.values() for n in (*m.nulls, m.decided_by) if n),
        )
        | ({SIGNS: SIGN_WORDS} if differing else {}),
        measures=_related(measures, checkpoints),
        summary=summarise(
            columns,
            checkpoints,
            protocol,
            measuring.seed,
            sources[judge.key if judge else "accuracy"],
            measuring.draws,
            doubt(activations),
            judge,
        ),
        representation=geometry,
        phase_locking=_locking(results if measuring.layers is not None else [], L),
        fluctuation=tuple(map(_fluctuation, results)),
        weights=replay.weight_paths,
        skipped=dict(activations.skipped),
        health=_health(activations, columns["loss"], geometry),
        choice=choice(activations, trained(checkpoints)),
        versions={"posthoc": __version__, "python": platform.python_version()}
        | {name: version(name) for name in ("numpy", "scipy", "numba", "h5py")},
    )


def _checkpoints(activations: Activations, results: Sequence[Measurement]) -> tuple[Checkpoint, ...]:
    return tuple(
        Checkpoint(
            epoch=_known(activations.epochs[e]),
            step=_known(activations.steps[e]),
            untrained=bool(activations.steps[e] == 0),
            dead=result.dead,
            reasons=dict(result.reasons),
        )
        for e, result in enumerate(results)
    )


def _locking(results: Sequence[Measurement], L: int) -> Locking:
    return Locking(
        _stacked([result.locking.plv if result.locking else None for result in results], (L, L)),
        _stacked([result.locking.ppc if result.locking else None for result in results], (L, L)),
    )


def _fluctuation(result: Measurement) -> Fluctuation:
    scales = result.scope.scales if result.curves else ()
    return Fluctuation(scales, {name: Curve(*curve) for name, curve in result.curves.items()})


def _of_sums(measure: Measure, table: Mapping[str, Measure]) -> bool:
    """Whether a measure needs no more of the channels than their F(s)."""
    base = table[measure.of_measure.of] if measure.of_measure else measure
    return bool(base.curve or base.series or not (base.of_series or (base.of_checkpoint and base.layers)))


def whole(table: Mapping[str, Measure]) -> dict[str, Measure]:
    """A table without the measures that are made of others which it lacks."""
    whole = dict(table)
    while lacking := [key for key, measure in whole.items() if not whole.keys() >= set(measure.needs)]:
        for key in lacking:
            del whole[key]
    return whole


def _no_geometry(E: int, L: int) -> Representation:
    """Of signals that do not keep what layers give."""
    by_layer, by_pair = np.full((E, L), np.nan), np.full((E, L, L), np.nan)
    return Representation(by_layer, by_layer, by_layer, by_layer, by_pair)


def _in_order(measures: Mapping[str, Measured], controlled: Mapping[str, Measured]) -> dict[str, Measured]:
    """All measures, each before what controls make of it."""
    ordered = {}
    for key, measured in measures.items():
        ordered[key] = measured
        ordered |= {other: of for other, of in controlled.items() if other.startswith(f"{key}_")}
    return ordered


def _health(activations: Activations, loss: FloatArray, geometry: Representation) -> tuple[Symptom, ...]:
    return symptoms(
        activations.layers, activations.steps == 0, loss, activations.nonfinite_weights, activations.nonfinite,
        geometry.effective_rank, geometry.rms, _same_scores(activations),
    )  # fmt: skip


def _same_scores(activations: Activations) -> NDArray[np.bool_]:
    """At which checkpoints [E] the scores of all samples are the same, finite and more than one."""
    result = np.zeros(len(activations), bool)
    if "logits" in activations.behaviours and len(activations.labels) > 1:
        for e in range(len(activations)):
            scores = np.asarray(activations.behaviour("logits", e))
            within = np.abs(scores) < np.finfo(np.float16).max  # what is kept as the largest number may be any beyond
            result[e] = within.all() and bool((scores == scores[:1]).all())
    return result


def _no_accuracy(activations: Activations, judge: Measure | None) -> Aside:
    """Why a run has no accuracy."""
    if judge is not None:
        return Aside.SCORED_OTHERWISE
    if activations.recording.identity.output.score in OF_LABELS:
        return Aside.NOT_FINITE
    return Aside.NOT_SCORED if activations.labelled else Aside.NEEDS_LABELS


def _columns(
    table: Mapping[str, Measure], activations: Activations, protocol: Protocol, results: Sequence[Measurement],
    checkpoints: Sequence[Checkpoint],
) -> tuple[dict[str, FloatArray], dict[str, str]]:  # fmt: skip
    """Every measure's values [E], and where those of the file come from."""
    columns: dict[str, FloatArray] = {}
    sources: dict[str, str] = {}
    for key, measure in table.items():
        if measure.of_activations:
            columns[key], sources[key] = measure.of_activations(activations)
        elif measure.of_measure or (
            measure.of_series and (not measure.series or any(key in r.values for r in results))
        ):
            columns[key] = np.array([result.values.get(key, np.nan) for result in results])
    columns |= of_epochs(table, columns, protocol, checkpoints)
    return {key: columns[key] for key in table if key in columns}, sources


def _measured(measure: Measure, axis: Axis, values: FloatArray, results: Sequence[Measurement]) -> Measured:
    """A measure of all checkpoints, without what its nulls say over the run."""
    key = measure.key
    ends = np.array([result.intervals.get(key, NOWHERE) for result in results]).T
    with_interval = any(key in result.intervals for result in results)
    units = [result.readings[key].units if key in result.readings else None for result in results]
    by_unit = any(unit is not None for unit in units) and not measure.series
    names = dict.fromkeys(null for result in results for null, compared in result.nulls.items() if key in compared)
    layers = [result.by_layer.get(key) for result in results]
    L = max((len(layer) for layer in layers if layer is not None), default=0)
    low, high = (
        _stacked([result.by_layer_ends[key][:, k] if key in result.by_layer_ends else None for result in results], (L,))
        if L and any(key in result.by_layer_ends for result in results) else np.empty((0, 0))
        for k in (0, 1)
    )  # fmt: skip
    return Measured(
        **description(measure, axis),
        value=values,
        low=ends[0] if with_interval else np.empty(0),
        high=ends[1] if with_interval else np.empty(0),
        sd=np.array([np.nan if unit is None else sd_finite(unit) for unit in units]) if by_unit else np.empty(0),
        by_layer=_stacked(layers, (L,)) if L else np.empty((0, 0)),
        by_layer_low=low,
        by_layer_high=high,
        by_unit=np.stack([result.alpha for result in results]) if by_unit and axis.layered else np.empty((0, 0)),
        nulls={null: beside([result.nulls.get(null, {}).get(key, NOTHING) for result in results]) for null in names},
    )


def _related(measures: dict[str, Measured], checkpoints: Sequence[Checkpoint]) -> dict[str, Measured]:
    """The measures with their summaries over the trained checkpoints."""
    rows = trained(checkpoints)
    nulls = dict.fromkeys(null for measured in measures.values() for null in measured.nulls)
    against = {null: against_nulls(measures, rows, null) for null in nulls}
    return {
        key: replace(
            measured,
            summary=overall(
                measured.value[rows],
                measured.headline,
                measured.limits,
                {null: against[null][key] for null in measured.nulls},
            ),
        )
        for key, measured in measures.items()
    }


def _stacked(rows: Sequence[FloatArray | None], shape: tuple[int, ...]) -> FloatArray:
    """Values by layer, or by pair of layers, of every checkpoint [E, ...]; NaN at those that have none."""
    if not rows:
        return np.empty((0, *shape))
    return np.stack([np.full(shape, np.nan) if row is None else row for row in rows])
