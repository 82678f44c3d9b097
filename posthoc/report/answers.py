"""What the page answers first: what happened, whether the run is healthy, which checkpoint, and what can be believed."""

import math
from collections.abc import Sequence, Sized
from dataclasses import dataclass

import numpy as np

from posthoc.analysis.health import LEAST, LEAST_LAYERS, Ailment
from posthoc.analysis.measures.layers import settled_at
from posthoc.analysis.records import Measured, RunMetrics
from posthoc.analysis.responses import Audit
from posthoc.analysis.verdicts import Outcome, Verdict, verdict
from posthoc.report.figures.training import course_of, courses
from posthoc.report.words import checkpoints_at, headlines, health, listed, network_at_start, number, sentence_of
from posthoc.shown import ROUNDING, WHOLE

FEW = 6
"""So many layers are named one by one."""


def happened(metrics: RunMetrics) -> list[str]:
    """The course of the score and the loss in sentences, and when layers settled."""
    known = courses(metrics)
    sentences = [_course(metrics, measured) for measured in known.values()]
    if not metrics.trained.any():
        sentences = [f"No checkpoint is trained: there is only {network_at_start(metrics)}."]
    elif not known:
        sentences = [
            "No accuracy, other score or loss is recorded in the checkpoints, and none could be measured on the probe."
        ]
    return list(filter(None, [_breakdown(metrics), *sentences, _settling(metrics)]))


def _breakdown(metrics: RunMetrics) -> str:
    """From where on something is not finite, to the end; empty of a run that keeps or finds its way."""
    lasting = [
        symptom
        for symptom in metrics.health
        if symptom.kind in (Ailment.WEIGHTS, Ailment.SIGNALS, Ailment.LOSS)
        and symptom.began + symptom.checkpoints == len(metrics.when)
    ]
    if not lasting:
        return ""
    first = min(lasting, key=lambda symptom: symptom.began)  # the worst of those that begin at once
    at, there = f"{metrics.summary.unit} {metrics.when[first.began]}", "is" if first.kind is Ailment.LOSS else "are"
    return f"The training breaks down at {at}: from there on there {there} {first.kind}."


def _course(metrics: RunMetrics, measured: Measured) -> str:
    """From where to where, where it was best, and from when on it stood still."""
    passed, unit, when = course_of(metrics, measured), metrics.summary.unit, metrics.when
    if passed is None:
        return ""
    values = [float(measured.value[e]) for e in (passed.first, passed.last, passed.best)]
    first, last, best = _told(values)
    name = sentence_of(measured.symbol)[:-1]
    extreme = "least" if measured.lower_is_better else "best"
    if passed.first == passed.last:
        only = "the only checkpoint" + ("" if len(when) == 1 else " that has it")
        return f"{name} is {last} at {unit} {when[passed.last]}, {only}."
    lost = [when[e] for e in np.flatnonzero(metrics.trained & ~np.isfinite(measured.value))]
    without = (
        f"; it is {'not finite' if measured.lower_is_better else 'undefined'} at {checkpoints_at(unit, lost)}"
        * bool(lost)
    )
    known = measured.value[metrics.trained & np.isfinite(measured.value)]
    if known.min() == known.max():
        return f"{name} stays at {last} from {unit} {when[passed.first]} to {unit} {when[passed.last]}{without}."
    change = "falls" if values[1] < values[0] else "rises" if values[1] > values[0] else "ends as it began, going"
    if first == last and values[0] != values[1]:
        change = "hardly changes, going"
    text = f"{name} {change} from {first} ({unit} {when[passed.first]}) to {last} ({unit} {when[passed.last]})"
    if values[1] == values[2]:
        text += f", its {extreme}"
    else:
        text += f"; it is {extreme} at {unit} {when[passed.best]}: {best}"
    if passed.plateau is not None:
        end = "on" if passed.last == len(when) - 1 else f"to {when[passed.last]}"
        text += f"; a plateau from {unit} {when[passed.plateau]} {end}"
    return f"{text}{without}."


def _settling(metrics: RunMetrics) -> str:
    """In which order layers settled; empty where that is not known."""
    similarity = metrics.representation.cka_last
    if not similarity.size or metrics.trained.sum() < 3:
        return ""
    unit, E = metrics.summary.unit, len(metrics.when)
    since = {name: e for name, e in zip(metrics.layers, settled_at(similarity), strict=True) if e is not None}
    early = sorted((name for name in since if since[name] < E - 1), key=lambda name: since[name])
    if not since:
        return ""
    if not early:
        return "No layer settles before the last checkpoint."
    if len(since) <= FEW:
        parts = [
            f"{listed([name for name in early if since[name] == e])} from {unit} {metrics.when[e]}"
            for e in dict.fromkeys(since[name] for name in early)
        ]
        rest = [name for name in since if name not in early]
        return f"Layers settle: {'; '.join(parts)}" + (f"; not before the end: {', '.join(rest)}." if rest else ".")
    first, middle = early[0], sorted(since.values())[(len(since) - 1) // 2]
    half = f"half of them by {unit} {metrics.when[middle]}" if middle < E - 1 else "half of them not before the end"
    return (
        f"Of {len(since)} layers the first to settle is {first}, from {unit} {metrics.when[since[first]]} on; {half}."
    )


def _short(value: float) -> str:
    """Three digits.

    >>> _short(0.91091), _short(5.5611), _short(0.00001234)
    ('0.911', '5.56', '1.23e-05')
    """
    return f"{value:.3g}"


def _told(values: Sequence[float]) -> list[str]:
    """Three digits, or as many as tell those apart that differ; 1 or 100 only what is that.

    >>> _told([184.2, 0.5, 0.5]), _told([2.30291, 2.30288]), _told([0.1, 0.9996])
    (['184', '0.5', '0.5'], ['2.3029', '2.3029'], ['0.1', '0.9996'])
    """
    for digits in range(3, 6):
        texts = [_significant(value, digits) for value in values]
        if len(set(texts)) == len(set(values)):
            break
    return texts


def _significant(value: float, digits: int) -> str:
    """A number to so many digits, or as many more as tell it from 1 and 100.

    >>> _significant(0.91091, 3), _significant(1.0, 3), _significant(99.97, 3)
    ('0.911', '1', '99.97')
    """
    text = f"{value:.{digits}g}"
    rounded = float(text) in WHOLE and not math.isclose(value, float(text), rel_tol=ROUNDING)
    return _significant(value, digits + 1) if rounded else text


def well(metrics: RunMetrics) -> str:
    """What was looked at and found in order, where nothing is wrong."""
    if not metrics.representation.rms.size:
        return "Nothing is known to be wrong, but this file does not hold the size of what layers do: it was not looked at."
    trained = int(metrics.trained.sum())
    losses = int(np.isfinite(metrics.column("loss")[metrics.trained]).sum()) if "loss" in metrics.measures else 0
    fine = ["weights, values and losses are finite" if losses else "weights and values are finite"]
    fine.append(f"no layer is dead{', explodes or collapses in rank' if trained > LEAST_LAYERS else ''}")
    fine += ["the loss has no spike"] if losses > LEAST else []
    unseen = [f"a layer that explodes or collapses in rank, for which it takes {LEAST_LAYERS + 1} checkpoints"] * (
        trained <= LEAST_LAYERS
    )
    unseen += [f"a spike of the loss, for which it takes {LEAST + 1} losses"] * (losses <= LEAST)
    start = "The caution above apart, nothing" if metrics.summary.doubt else "Nothing"
    seen = f"{start} is wrong that was looked for: {', '.join(fine[:-1])}, and {fine[-1]}."
    return f"{seen} Not to be seen here: {'; '.join(unseen)}." if unseen else seen


def ill(metrics: RunMetrics) -> list[str]:
    """What is wrong, the worst first."""
    return [sentence_of(text) for text in health(metrics)]


def which(metrics: RunMetrics) -> list[str]:
    """Which checkpoint is best by the loss of every sample, which others are as good, and whether the end was needed."""
    result, run, when = metrics.choice, metrics.summary, metrics.when
    if not metrics.trained.any():
        return ["No checkpoint is trained: there is none to choose."]
    if result is None:
        text = (
            "Too few samples have a finite loss at all checkpoints for these to be told apart by it."
            if "loss" in metrics.recording.identity.behaviour
            else "No loss of single samples is recorded, by which checkpoints could be told apart."
        )
        if metrics.score is None:
            return [text]
        return [f"Take {run.unit} {run.best_epoch}, the best by {metrics.score.symbol}.", text]
    called, unit = metrics.recording.provenance.samples, run.unit
    alike = [e for e in result.alike if e != result.best]
    compared = np.flatnonzero(np.isfinite(result.difference))
    best = f"Take {unit} {when[result.best]}: its {result.by} on the probe is the least, {number(result.loss)}"
    if len(when) == 1:
        return [f"There is one checkpoint, {unit} {when[0]}: its {result.by} on the probe is {number(result.loss)}."]
    if len(compared) < 2:
        return [f"{best}; no other checkpoint has a loss to compare."]
    rest = len(compared) - 1 - len(alike)
    beside = (
        (
            f"{checkpoints_at(unit, [when[e] for e in alike])} cannot be distinguished from it"
            + (f", {_counted(rest)} worse" if rest else "")
        )
        if alike
        else "all others are worse"
    )
    sentences = [
        f"{best}; {beside} (paired over {result.samples} {called}, 95 % for all comparisons together).",
        _end(metrics),
    ]
    if result.count > 1:
        known = "" if len(compared) == metrics.trained.sum() else " that have one"
        sentences.append(
            f"Over the last {result.count} checkpoints{known} its mean is {number(result.last)} "
            f"(standard deviation {_short(result.last_sd)})."
        )
    return sentences  # fmt: skip


def _counted(rest: int) -> str:
    return "the other one is" if rest == 1 else f"the other {rest} are"


def _end(metrics: RunMetrics) -> str:
    """Whether the end of the training was needed."""
    result, unit, when = metrics.choice, metrics.summary.unit, metrics.when
    assert result is not None
    last = int(np.flatnonzero(metrics.trained)[-1])
    first = result.alike[0] if result.alike else result.best
    if not np.isfinite(result.difference[last]):
        return "The end did harm: the last checkpoint's loss is not finite."
    if result.low[last] > 0:
        return (
            f"The end did harm: the last checkpoint's {result.by} is higher by {_short(float(result.difference[last]))} "
            f"({_short(float(result.low[last]))} to {_short(float(result.high[last]))})."
        )
    if first == last:
        return "The end was needed: every earlier checkpoint is worse."
    return f"That the end was needed cannot be shown: {unit} {when[first]} is already as good, as far as this probe can tell."


@dataclass(frozen=True)
class Cell:
    """A measure beside a null. kind: whether it differs `mostly`, in `some` checkpoints or in `none`, or this is
    `unknown`; text: in how many of how many, from those that differ to those beyond all draws, too; sentence: the same in
    words; decides: whether the null is the one that does."""

    kind: str
    text: str
    sentence: str
    decides: bool


MARKS = {"mostly": "●", "some": "◐", "none": "○", "unknown": "?"}
"""How the kinds of cells look."""
LEGEND = {
    "mostly": "differs in most", "some": "differs in some", "none": "cannot be distinguished", "unknown": "too few draws to tell (0–5: five are beyond all)",
}  # fmt: skip


@dataclass(frozen=True)
class Matrix:
    """Measures by nulls: names of the nulls, those that decide first, and of each measure its symbol and its cells."""

    nulls: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell | None, ...]], ...]


def matrix(metrics: RunMetrics) -> Matrix | None:
    """What nulls say of every measure that was drawn under one; None where none was."""
    drawn = {key: m for key, m in metrics.measures.items() if m.summary.nulls and (m.headline or m.listed)}
    if not drawn:
        return None
    deciding = dict.fromkeys(m.decided_by for m in drawn.values() if m.decided_by in m.summary.nulls)
    others = dict.fromkeys(null for m in drawn.values() for null in m.summary.nulls)
    nulls = tuple(dict.fromkeys([*deciding, *others]))
    noun = metrics.summary.noun
    rows = tuple(
        (
            m.symbol,
            tuple(_cell(verdict(metrics, key, null), noun) if null in m.summary.nulls else None for null in nulls),
        )
        for key, m in sorted(drawn.items(), key=lambda item: not item[1].headline)
    )
    return Matrix(nulls, rows)


def _cell(result: Verdict, noun: str) -> Cell:
    most = f"–{result.differs + result.wanting}" if result.wanting else ""
    text = f"{result.differs}{most}/{result.epochs}" if result.epochs else ""
    return Cell(_kind(result), text, sentence_of(result.sentence(noun)), result.decides)


def _kind(result: Verdict) -> str:
    """The kind of cell a verdict makes, by which advice goes, too."""
    kinds = {Outcome.DIFFERS: "mostly" if result.mostly else "some", Outcome.INDISTINGUISHABLE: "none"}
    return kinds.get(result.outcome, "unknown")


def advice(metrics: RunMetrics, audit: Audit | None) -> list[str]:
    """What to do with the numbers."""
    noun, several = metrics.summary.noun, metrics.trained.sum() > 1
    kinds: dict[str, list[Verdict]] = {}
    for key, measured in headlines(metrics).items():
        if measured.decided_by and measured.summary.nulls and measured.summary.count:
            result = verdict(metrics, key)
            kinds.setdefault(_kind(result), []).append(result)
    sentences = []
    mostly = kinds.get("mostly", [])
    if traces := [result for result in mostly if result.of_one_order]:
        where = f"in most {noun}s" if several else f"in the only {noun}"
        sentences.append(
            f"Do not interpret {_symbols(traces)} yet: {_it(traces)} differs from {_nulls(traces)} {where}, and all checkpoints see "
            f"one order, so that this may be a trace of that order: put the samples into an order at random, and extract again."
        )
    if courses := [result for result in mostly if not result.of_one_order]:
        course, where = ("The course of ", f"in most {noun}s") if several else ("", f"in the only {noun}")
        sentences.append(f"{course}{_symbols(courses)} can be read: {_it(courses)} differs from its null {where}.")
    if results := kinds.get("some"):
        counts = listed([f"{result.symbol} in {result.differs} of {result.epochs}" for result in results])
        sentences.append(
            f"Read {_symbols(results)} with care: {_it(results)} differs from its null in some {noun}s only ({counts})."
        )
    if results := [*kinds.get("mostly", []), *kinds.get("some", [])]:
        sentences += _before_training(metrics, [result.symbol for result in results])
    if results := kinds.get("none"):
        they = "it" if len(results) == 1 else "they"
        where = f"in any {noun}" if several else f"in the only {noun}"
        sentences.append(
            f"Do not interpret {_symbols(results)}: {they} cannot be distinguished from {_nulls(results)} {where}."
        )
    unknown = kinds.get("unknown", [])
    if results := [result for result in unknown if not result.of_documents]:
        sentences.append(
            f"Of {_symbols(results)} too little was drawn to tell: run `posthoc metrics` with more --nulls."
        )
    if results := [result for result in unknown if result.of_documents]:
        sentences.append(
            f"For {_symbols(results)} there are too few documents to tell: run `posthoc extract` with more --documents."
        )
    known = [measured.summary.count for measured in headlines(metrics).values()]
    if not metrics.trained.any():
        sentences.append("There is nothing to read: no checkpoint is trained.")
    elif known and not any(known):
        sentences.append(f"There is nothing to read: the measures are undefined in every {noun}.")
    elif not kinds and matrix(metrics) is None:
        sentences.append(
            "No nulls were drawn: nothing can be said of what is in these numbers. Run `posthoc metrics` with --nulls 99."
        )
    if audit is None:
        sentences.append(
            "Run `posthoc audit` to see what the measures respond to; its audit.json beside the metrics is shown here."
        )
    return sentences  # fmt: skip


def _before_training(metrics: RunMetrics, symbols: Sequence[str]) -> list[str]:
    """Which of these measures differ from their nulls at the checkpoint of step 0, too."""
    untrained = [e for e, checkpoint in enumerate(metrics.checkpoints) if checkpoint.untrained]
    found = {
        measured.symbol: beside.p[untrained[0]]
        for measured in headlines(metrics).values()
        if untrained and measured.symbol in symbols and (beside := measured.nulls.get(measured.decided_by))
    }
    known = [f"{symbol} (p {p:.2g})" for symbol, p in found.items() if p <= 0.05]
    if not known:
        return []
    differ = "differs from its null" if len(known) == 1 else "differ from their nulls"
    probe = "the probe, such as the order of its samples, which all checkpoints share"
    if metrics.recording.provenance.adapters:  # their base was trained
        return [
            f"Before fine-tuning {listed(known)} {differ}, too: what makes the difference was there before, at least in part; "
            f"it may be of the base, or of {probe}."
        ]
    return [
        f"Before training {listed(known)} {differ}, too: what makes the difference was not learned, at least in part; "
        f"it may be {probe}."
    ]


def _symbols(results: Sequence[Verdict]) -> str:
    return listed([result.symbol for result in results])


def _nulls(results: Sequence[Verdict]) -> str:
    """What measures are compared with, each once."""
    return " or ".join(dict.fromkeys(result.than for result in results))


def _it(results: Sized) -> str:
    return "it" if len(results) == 1 else "each"
