"""What is said of a run: its verdicts and cautions, in sentences, from what its file holds."""

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from posthoc.analysis.health import Ailment, Symptom
from posthoc.analysis.measures.stability import CONSECUTIVE
from posthoc.analysis.records import WAYS, Aside, Correlation, Measured, RunMetrics
from posthoc.analysis.responses import Audit, Change, Control
from posthoc.analysis.settling import sentence
from posthoc.analysis.verdicts import Outcome, verdict
from posthoc.recording import Recording
from posthoc.report.printing import cell
from posthoc.shown import ROUNDING, counted

if TYPE_CHECKING:
    from posthoc.analysis.compare import Difference, Row
    from posthoc.analysis.runs import Run

LEVEL = 0.05
DROPPED = 0.05
"""Of all units: measures may jump where more of them fall away or come back from one checkpoint to the next."""
"""At which groups of runs are said to differ."""
MOST_LAYERS = 3
"""So many layers that have the same trouble are named, and one more rather than `1 more`."""


def headlines(metrics: RunMetrics) -> dict[str, Measured]:
    """The measures that a run is compared by."""
    return {key: measured for key, measured in metrics.measures.items() if measured.headline}


def related(metrics: RunMetrics) -> list[Correlation]:
    """The correlations of measures that the run has."""
    measures = metrics.measures
    return [
        r
        for r in metrics.summary.correlations.values()
        if {r.first, r.second} <= measures.keys() and not (measures[r.first].aside or measures[r.second].aside)
    ]


def better(score: Measured) -> str:
    """Which way a score is better, in brackets; nothing of accuracy, of which that is known.

    >>> import numpy as np
    >>> better(Measured("R2", "R2", np.zeros(1)))
    ' (higher is better)'
    """
    if score.symbol == "accuracy":
        return ""
    return f" ({'lower' if score.lower_is_better else 'higher'} is better)"


def network_at_start(metrics: RunMetrics) -> str:
    """What the network of step 0 is, in words; of adapters the base, which was trained before."""
    return f"the network {metrics.at_start}" if metrics.recording.provenance.adapters else "the untrained network"


def aside(metrics: RunMetrics) -> list[tuple[str, str]]:
    """Why something steps aside in the run, and what does."""
    stepped: dict[Aside, list[str]] = {}
    for measured in metrics.measures.values():
        of_score = measured.aside in (Aside.SCORED_OTHERWISE, Aside.NOT_SCORED)
        if measured.aside and not (of_score and metrics.score is not None):
            stepped.setdefault(measured.aside, []).append(measured.symbol)
    for null, words in metrics.nulls.items():
        if words.aside:
            stepped.setdefault(words.aside, []).append(f"the null {null} ({words.words})")
    return [(str(why), ", ".join(what)) for why, what in stepped.items()]


def left_out(metrics: RunMetrics) -> list[str]:
    """Which checkpoints are not there, and why, in sentences."""
    return [
        f"{path} was left out: {reason}{'' if reason.endswith('.') else '.'}"
        for path, reason in metrics.skipped.items()
    ]


def health(metrics: RunMetrics) -> list[str]:
    """What went wrong in training, worst first: each kind once, in which layers, from when on and by which number."""
    kinds: dict[Ailment, list[Symptom]] = {}
    for symptom in metrics.health:
        kinds.setdefault(symptom.kind, []).append(symptom)
    return [_ailment(metrics, of_kind) for of_kind in kinds.values()]


def _ailment(metrics: RunMetrics, of_kind: Sequence[Symptom]) -> str:
    """One kind of trouble, in all the layers that have it: when it began in the first of them, and in how many checkpoints
    each of them has it."""
    first, E = min(of_kind, key=lambda symptom: symptom.began), len(metrics.checkpoints)
    what, evidence = _in_layers(metrics, of_kind), _evidence(first)
    lasted = sorted({symptom.checkpoints for symptom in of_kind})
    which = f" ({first.layer})" if evidence and len(of_kind) > 1 and first.kind is not Ailment.DEAD else ""
    return (
        f"{what}, first at {metrics.summary.unit} {metrics.when[first.began]}, "
        f"in {'up to ' * (len(lasted) > 1)}{lasted[-1]} of {counted(E, 'checkpoint')}{' each' * (len(of_kind) > 1)}{evidence}{which}"
    )


def _in_layers(metrics: RunMetrics, of_kind: Sequence[Symptom]) -> str:
    """A kind of trouble with the layers that have it; of many the first few by name."""
    kind, layers = of_kind[0].kind, [symptom.layer for symptom in of_kind if symptom.layer]
    if len(layers) < 2:
        return str(kind) + "".join(f" ({layer})" for layer in layers)
    more = [f"{len(layers) - MOST_LAYERS} more"] if len(layers) > MOST_LAYERS + 1 else layers[MOST_LAYERS:]
    names = listed([*layers[:MOST_LAYERS], *more])
    count = f"{'all ' * (2 < len(layers) == len(metrics.layers))}{len(layers)}"
    return f"{count} layers dead ({names})" if kind is Ailment.DEAD else f"{kind} in {count} layers ({names})"


def _evidence(symptom: Symptom) -> str:
    """By which number trouble is seen, after a colon."""
    value, usual = f"{symptom.value:.4g}", f"{symptom.usual:.4g}"
    return {
        Ailment.WEIGHTS: f": {symptom.value:,.0f} of them",
        Ailment.SIGNALS: f": {symptom.value:,.0f} of them",
        Ailment.DEAD: ": no recorded channel varies",
        Ailment.CONSTANT: ": a layer on the way to them is dead, or they are of its bias alone",
        Ailment.EXPLODING: f": root mean square {value}, at most {usual} before",
        Ailment.COLLAPSED: f": effective rank of the recorded channels {value}, up to {usual} before",
        Ailment.SPIKE: f": {value}, median before {usual}",
    }.get(symptom.kind, "")


def in_short(metrics: RunMetrics) -> list[str]:
    """What was found, in sentences: a doubt about the probe first, how training went, and what the measures' nulls say."""
    run = metrics.summary
    best = f"{metrics.score.symbol} {number(metrics.best)} " if metrics.score else ""
    if len(metrics.checkpoints) == 1:
        where = f"{run.unit} {metrics.when[0]}"
        first = [f"{best}at {where}, the only checkpoint" if best else f"the only checkpoint is {where}"]
    else:
        first = [f"{best}at best, at {run.unit} {run.best_epoch}"] if best else []
    troubles = health(metrics)
    more = f" ({len(troubles) - 1} more below)" if len(troubles) > 1 else ""
    course = f"went wrong: {troubles[0]}{more}" if troubles else "nothing went wrong that the checkpoints show"
    sentences = [sentence_of("; ".join([*first, course]))]
    findings = [text for key, of in headlines(metrics).items() if of.summary.count and (text := finding(metrics, key))]
    if parts := undefined(metrics):
        findings.append(f"Undefined: {'; '.join(parts)}.")
    if text := dropped_out(metrics):
        findings.append(sentence_of(text))
    if findings:
        sentences.append(" ".join(findings))
    return [sentence_of(run.doubt), *sentences] if run.doubt else sentences


def compared(rows: "Sequence[Row]", gaps: "Sequence[Difference]") -> str:
    """What a comparison comes to, in a sentence: how good the runs are, and which groups differ."""
    count = counted(len(rows), "run")
    best = {key: quantity.symbol for row in rows for key, quantity in row.quantities.items() if quantity.best}
    parts = []
    for key, symbol in best.items():
        values = sorted((row.quantities[key].value, row.run.name) for row in rows if key in row.quantities)
        ends = [values[0], values[-1]] if len(values) > 1 else values
        parts.append(f"{symbol} {' to '.join(f'{number(value)} ({name})' for value, name in ends)}")
    differing, wanting = (
        ", ".join(f"{gap.quantity} ({gap.first} and {gap.second})" for gap in some)
        for some in ([gap for gap in gaps if gap.corrected <= LEVEL], [gap for gap in gaps if gap.wanting])
    )
    if gaps and not any(gap.least <= LEVEL for gap in gaps):
        least = min((gap.least for gap in gaps if not math.isnan(gap.least)), default=1.0)
        parts.append(f"no difference between groups can show with so few runs in each (p is {least:.2g} at the least)")
    elif differing or wanting:
        parts += [f"groups differ in {differing}"] if differing else []
        parts += [f"too few runs to tell whether they differ in {wanting}"] if wanting else []
    elif gaps:
        parts.append("in no measure can the groups be distinguished (5 %, corrected)")
    return f"{'; '.join([count, *parts])}."


def confounded(runs: "Sequence[Run]") -> str:
    """A warning where runs differ in what the protocol itself responds to, or in their probe; empty where they do not."""
    from posthoc.analysis.compare import MUST_BE_KNOWN, RESPONDS_TO, words_for

    values = {name: {run.about.get(name) for run in runs} for name in RESPONDS_TO}
    differ = [name for name, of in values.items() if len(of if name in MUST_BE_KNOWN else of - {None}) > 1]
    sentences = []
    if differ:
        names = listed([words_for(runs, name) for name in differ])
        makes = "by itself makes" if len(differ) == 1 else "by themselves make"
        sentences.append(f"Runs differ in {names}, which {makes} measures differ: read them beside the noise.")
    if len({run.about.get("probe") for run in runs}) > 1:
        sentences.append("Runs are of different probes: read their values beside the noise, not beside each other.")
    return " ".join(sentences)


def chosen(metrics: RunMetrics) -> str:
    """Which checkpoint has the least loss on the probe, which cannot be told from it, and how the last ones vary; empty
    where that is not known."""
    result = metrics.choice
    if result is None:
        return ""
    run, when = metrics.summary, metrics.when
    others = [when[e] for e in result.alike if e != result.best]
    if others:
        told = f"{counted(len(others), 'other checkpoint')} ({run.unit} {_ranges(others)}) cannot be told from it"
    elif np.isfinite(result.difference).sum() > 1:
        told = "it can be told from all others"
    else:
        told = "no other has a loss to compare"
    if len(metrics.checkpoints) == 1:
        return f"{result.by} on the probe is {number(result.loss)} at {run.unit} {when[0]}, the only checkpoint"
    called = metrics.recording.provenance.samples
    text = (
        f"{result.by} on the probe is least at {run.unit} {when[result.best]} ({number(result.loss)}); {told} "
        f"(paired over {result.samples} {called}, 95 % for all together)"
    )
    if mean := result.average:
        told = "lower" if mean.high < 0 else "which cannot be told from it"
        text += (
            f"; the mean of the weights of the {mean.count} up to {run.unit} {when[mean.at]} has {number(mean.loss)}, {told} "
            f"(by {number(-mean.difference)}, {number(-mean.high)} to {number(-mean.low)})"
        )
    if result.count < 2:
        return text
    known = "" if np.isfinite(result.difference).sum() == metrics.trained.sum() else " that have one"
    return f"{text}; last {result.count}{known}: {number(result.last)} +- {number(result.last_sd)}"


def _ranges(numbers: list[int]) -> str:
    """The first and last of numbers, and all of them where they are few.

    >>> _ranges([3]), _ranges([18, 19, 20, 22]), _ranges([1, 2, 3, 4, 5, 9])
    ('3', '18, 19, 20, 22', '1 to 9')
    """
    return ", ".join(map(str, numbers)) if len(numbers) < 5 else f"{numbers[0]} to {numbers[-1]}"


def checkpoints_at(unit: str, numbers: list[int]) -> str:
    """Checkpoints by their numbers; of many the first and the last, and how many there are.

    >>> checkpoints_at("epoch", [9]), checkpoints_at("epoch", [9, 10]), checkpoints_at("epoch", [1, 2, 3, 4, 5]), checkpoints_at("step", [1, 2, 3, 4, 5, 9])
    ('epoch 9', 'epochs 9 and 10', 'epochs 1 to 5', 'steps 1 to 9 (6 of them)')
    """
    if len(numbers) > 4:
        count = "" if numbers[-1] - numbers[0] == len(numbers) - 1 else f" ({len(numbers)} of them)"
        return f"{unit}s {numbers[0]} to {numbers[-1]}{count}"
    return f"{unit}{'s' * (len(numbers) > 1)} {listed([str(number) for number in numbers])}"


def probed(recording: Recording) -> str:
    """How many samples the probe has, by what they are called, and of how many classes."""
    probe = recording.identity.probe
    classes = "no labels" if probe.classes is None else counted(probe.classes, "class")
    return f"{probe.samples} {recording.provenance.samples}, {classes}"


def short(metrics: RunMetrics, null: str) -> str:
    """What a null redraws, for a legend."""
    return metrics.nulls[null].short if null in metrics.nulls else null


def finding(metrics: RunMetrics, key: str) -> str:
    """A sentence: whether a measure differs from its deciding null, and in how many checkpoints; empty without nulls."""
    drawn = any(measured.nulls for measured in metrics.measures.values())
    if not drawn or key not in metrics.measures or not metrics.measures[key].decided_by:
        return ""
    return sentence_of(verdict(metrics, key).sentence(metrics.summary.noun))


def sentence_of(text: str) -> str:
    """With a capital, unless it begins with a symbol such as dH, and a full stop.

    >>> sentence_of("it differs"), sentence_of("dH differs")
    ('It differs.', 'dH differs.')
    """
    first = text[:1] if text[1:2].isupper() else text[:1].upper()
    return f"{first}{text[1:]}." if text else ""


def undefined(metrics: RunMetrics) -> list[str]:
    """At which checkpoints no headline measure has a value, which of them have none throughout, and why M has none where
    that is not of the exponents."""
    known = headlines(metrics)
    symbols = [of.symbol for of in known.values()]
    there = np.array([np.isfinite(of.value) for of in known.values()], dtype=bool)
    lost = [metrics.when[e] for e in np.flatnonzero(metrics.trained & ~there.any(axis=0))] if known else []
    parts = [f"{listed(symbols)} at {checkpoints_at(metrics.summary.unit, lost)}"] if lost else []
    never = [of.symbol for of in known.values() if not of.summary.count]
    parts += [] if never in ([], symbols) else [f"{listed(never)} throughout"]
    return parts + ([f"M needs two {metrics.axis.units} that vary"] if _single_units(metrics) else [])


def dropped_out(metrics: RunMetrics) -> str:
    """Between which neighbours so many units dropped out, or came back, that measures may jump for that alone; else empty."""
    U, trained = len(metrics.units), np.flatnonzero(metrics.trained)
    dead = np.array([checkpoint.dead for checkpoint in metrics.checkpoints])
    jumps = [b for a, b in itertools.pairwise(trained) if abs(int(dead[b]) - int(dead[a])) > DROPPED * U]
    if not jumps:
        return ""
    at = checkpoints_at(metrics.summary.unit, [metrics.when[e] for e in jumps])
    least, most = int(dead[trained].min()), int(dead[trained].max())
    return (
        f"measures of all {metrics.axis.units} may jump at {at}, where many of these fall away or come back: "
        f"from {U - most} to {U - least} of {U} are measured"
    )


def _single_units(metrics: RunMetrics) -> bool:
    """Whether M is undefined at a trained checkpoint for want of a second live unit; without any it is said why there is none."""
    measured, U = metrics.measures.get("metastability"), len(metrics.units)
    if measured is None or not U:
        return False
    live = np.array([U - checkpoint.dead for checkpoint in metrics.checkpoints])
    return bool((metrics.trained & np.isnan(measured.value) & (live == 1)).any())


def caution(metrics: RunMetrics, key: str) -> str:
    """The finding where it is not that the measure differs in every checkpoint, and not by their one order; else empty."""
    if key not in metrics.measures:
        return ""
    result = verdict(metrics, key)
    everywhere = result.outcome is Outcome.DIFFERS and result.differs == result.epochs and not result.of_one_order
    return "" if everywhere else finding(metrics, key)


def cautions(metrics: RunMetrics, keys: Iterable[str] | None = None) -> dict[str, str]:
    """Cautions of measures, the headline ones unless others are named, by symbol."""
    keys = headlines(metrics) if keys is None else keys
    return {metrics.measures[key].symbol: text for key in keys if (text := caution(metrics, key))}


def without_convergence(metrics: RunMetrics) -> list[str]:
    """What volatility does on series that do not converge, or why there is none."""
    if metrics.summary.uneven and "volatility" in metrics.measures:
        return [f"There is no volatility, for {metrics.summary.uneven}."]
    return [sentence_of(text)] if (text := sentence(metrics.summary)) else []


def references(metrics: RunMetrics, digits: int = 3) -> list[tuple[str, str]]:
    """Of every null that decides nothing its name, and what the headline measures are under it."""
    lines = []
    for null, words in metrics.nulls.items():
        beside = [
            (measured, measured.summary.nulls[null])
            for measured in headlines(metrics).values()
            if null in measured.summary.nulls and measured.decided_by != null and measured.summary.count
        ]
        if beside:
            values = [f"{measured.symbol} {number(against.mean, digits)}" for measured, against in beside]
            drawn, of = max((against.epochs, measured.summary.count) for measured, against in beside)
            where = f" (drawn in {drawn} of {of} {metrics.summary.noun}s)" if drawn < of else ""
            lines.append((null, f"{', '.join(values)} with {words.words}{where}"))
    return lines


def listed(names: Sequence[str]) -> str:
    """Names with commas and an `and`.

    >>> listed(["a"]), listed(["a", "b"]), listed(["a", "b", "c"])
    ('a', 'a and b', 'a, b and c')
    """
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def settled(metrics: RunMetrics) -> dict[str, str]:
    """When volatility settles in each way that was measured, in words: also where there are too few values of it for three in a row."""
    known = {way: int(np.isfinite(metrics.column(key)).sum()) for way, key in WAYS.items() if key in metrics.measures}
    lacking = "checkpoints unevenly spaced" if metrics.summary.uneven else "too few checkpoints"
    never = {way: "never" if count >= CONSECUTIVE else lacking for way, count in known.items()}
    return {
        way: never[way] if at is None else f"{metrics.summary.unit} {at}"
        for way, at in metrics.summary.convergence.items() if way in known
    }  # fmt: skip


def over_orders(audit: Audit) -> str:
    """What an audit measured in the order of the samples as it is, and states over many orders; empty where nothing."""
    asked = (Change.SMOOTHING, Change.PRECISION, Change.PREPARATION)
    controls = [of for of in audit.controls if of.changes in asked] if not audit.intervals else []
    names = [of.name for of in controls if _in_many_orders(audit, of)]
    if not names:
        return ""
    return (
        f"{sentence_of(listed(names))[:-1]}: shown with the {audit.called} in their order as it is; what is said of "
        f"{'it' if len(names) == 1 else 'them'} is the mean difference over many orders, which may be of the other sign."
    )


def _in_many_orders(audit: Audit, control: Control) -> bool:
    """Whether what is said of a control is another difference than that of what is shown; it is the same in files written
    before orders were paired."""
    as_it_is = {key: of.mean for key, of in audit.controls[0].measures.items()}
    return any(
        abs(effect.effect - (control.measures[key].mean - as_it_is[key])) > ROUNDING * abs(as_it_is[key])
        for key, response in audit.measures.items()
        for effect in response.effects
        if effect.control == control.name
    )


def number(value: float | None, digits: int = 4) -> str:
    """A number in a sentence.

    >>> number(0.12345), number(float("nan")), number(-1e-17)
    ('0.1235', 'undefined', '0.0000')
    """
    return "undefined" if value is None or value != value else cell(value, digits)
