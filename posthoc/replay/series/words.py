"""What findings say to a person: the one place where there are words for them."""

from collections.abc import Callable, Mapping

from posthoc.replay.fitting import FEWEST
from posthoc.replay.series.against import Relation
from posthoc.replay.series.records import Finding, Kind, Severity, Untold
from posthoc.replay.series.result import Result
from posthoc.shown import counted, listed


def verdict(result: Result) -> str:
    """What all findings come to, in a sentence."""
    errors, warnings = (sum(f.severity is s for f in result.findings) for s in (Severity.ERROR, Severity.WARNING))
    damaged = [f for f in result.findings if f.kind is Kind.DAMAGED]
    total = len(result.series.checkpoints) + len(damaged)
    if not errors + warnings:
        if total == 1:
            return "Nothing is wrong with this checkpoint that can be seen in it."
        return f"Nothing is wrong with these {total} checkpoints that can be seen in them."
    faulty = {row for f in result.findings if f.severity > Severity.NOTE for row in f.checkpoints}
    what = ", ".join(counted(number, word) for number, word in ((errors, "error"), (warnings, "warning")) if number)
    kinds = {f.kind for f in result.findings if f.severity > Severity.NOTE}
    how = _ALONE.get(next(iter(kinds)), _OTHER) if len(kinds) == 1 else _OTHER
    return f"This series {how}: {what}, {counted(len(faulty) + len(damaged), 'checkpoint')} of {total} concerned."


_OTHER = "is not what it says it is"
_ALONE = {
    Kind.NOT_FINITE: "holds weights that are not finite",
    Kind.DAMAGED: "holds checkpoints that cannot be read",
}
"""What a series does of which nothing else is wrong."""


def sentence(finding: Finding, result: Result) -> str:
    """A finding in words, without the checkpoints it is about."""
    return _WORDS[finding.kind](finding, result)


def when(finding: Finding, result: Result) -> str:
    """The checkpoints a finding is about: their steps or epochs."""
    labels = [result.label(row) for row in finding.checkpoints]
    if finding.file:
        return finding.file
    if not labels:
        return "all"
    rows = finding.checkpoints
    if len(rows) > 3 and list(rows) == list(range(rows[0], rows[-1] + 1)):
        return f"{labels[0]} to {labels[-1]}"
    return listed(labels, 6)


def _damaged(finding: Finding, result: Result) -> str:
    path, reason = next(item for item in result.run.damaged if item[0].name == finding.file)
    return reason.removeprefix(f"{path} ").removesuffix(".")


def _equal(finding: Finding, result: Result) -> str:
    statistics = "statistics" in finding.evidence
    same = "the same parameters" if statistics else "the same weights"
    but = ", only running statistics differ" if statistics else ""
    if finding.severity is Severity.NOTE and statistics:
        return f"{same} one after the other{but}: nothing was learned, as at a rate of zero"
    if finding.severity is Severity.NOTE:
        return f"{same}{but}: the first step changed nothing, as in a warm-up from a rate of zero"
    if finding.severity is Severity.WARNING:
        why = "nothing was learned" if statistics else "a copy, or nothing was learned"
        return f"{same} one after the other{but}: {why}"
    if "block" in finding.evidence:
        return _repeated(finding, result, f"{same}{but}")
    return f"{same} at different steps, and others in between{but}: {_at_fault(finding, result)}"


def _repeated(finding: Finding, result: Result, same: str) -> str:
    """Which checkpoints in a row are others once more."""
    e = finding.evidence
    size, labels = int(e["block"]), [result.label(row) for row in finding.checkpoints]
    spans = [f"{labels[k]} to {labels[k + size - 1]}" for k in range(0, len(labels), size)]
    wrong, right = listed(spans[:-1]), spans[-1]
    if finding.checkpoints[0] > finding.checkpoints[-1]:
        return f"{wrong} repeat {right}: {same}, as where a training goes on from an earlier checkpoint"
    longer = f"with them there the way through the rest is {e['longer']:.2g} steps longer"
    return f"{same}, in the same order: they are of {right}, not of {wrong} ({longer})"


def _partly_equal(finding: Finding, result: Result) -> str:
    e = finding.evidence
    part = f"{counted(e['tensors'], 'tensor')} ({e['share']:.0%} of the numbers: {listed(finding.tensors)})"
    return f"the same values of {part} at different steps: {_at_fault(finding, result)}"


def _at_fault(finding: Finding, result: Result) -> str:
    """Which of checkpoints with equal weights are those of another step, as far as it can be told."""
    e = finding.evidence
    if not e.get("clear"):
        return "cannot tell of which they are"
    labels = [result.label(row) for row in finding.checkpoints]
    wrong, right = labels[: int(e["at fault"])], labels[int(e["at fault"]) :]
    where = "there" if len(wrong) > 1 else f"at {wrong[0]}"
    return (
        f"they are of {listed(right)}, not of {listed(wrong)} (with them {where} the way through the rest is "
        f"{e['longer']:.2g} steps longer)"
    )


def _missing(finding: Finding, result: Result) -> str:
    e = finding.evidence
    unit = "step" if e["in steps"] else "epoch"
    steps = [f"{value:.0f}" for name, value in e.items() if name.startswith(f"{unit} ")]
    texts = []
    if steps:
        powers, even = f"powers of {e['base']:.0f}", f"every {e['every']:.0f}"
        rule = f"{powers}, then {even}" if e["every"] and e["base"] else powers if e["base"] else even
        texts.append(f"{unit} {listed(steps, 8)} missing from a grid ({rule})")
    if "last" in e:
        texts.append(f"it ends before {unit} {e['last']:.0f}, up to which the training was to go")
    return "; ".join(texts)


def _labels(finding: Finding, result: Result) -> str:
    e = finding.evidence
    how = f"{abs(e['shift']):.0f} {'more' if e['shift'] > 0 else 'less'}"
    if e["constant"]:
        return f"all names say {how} than is recorded inside"
    return f"the name says {e['named']:.0f}, inside is recorded {e['inside']:.0f}"


def _tensors(finding: Finding, result: Result) -> str:
    e = finding.evidence
    parts = [f"{e[key]:.0f} {key}" for key in ("missing", "extra") if e[key]]
    return f"other tensors than in the rest: {', '.join(parts)} ({listed(finding.tensors)})"


def _shapes(finding: Finding, result: Result) -> str:
    rows = finding.evidence.get("vocabulary")
    text = f"another shape of {listed(finding.tensors)}"
    return text if rows is None else f"{text}: {abs(rows):.0f} rows {'more' if rows > 0 else 'fewer'}"


def _types(finding: Finding, result: Result) -> str:
    name, row = finding.tensors[0], finding.checkpoints[0]
    kinds = [about[name].dtype for about in result.series.described if name in about]
    usual = max(set(kinds), key=kinds.count)
    return f"{result.series.described[row][name].dtype} where the rest are {usual} ({counted(len(finding.tensors), 'tensor')})"


def _rounded(finding: Finding, result: Result) -> str:
    kind = "bfloat16" if finding.evidence["bits"] <= 16 else "half precision"
    return f"float32, but every number was rounded to {kind} ({finding.evidence['bits']:.0f} bits are used)"


def _not_finite(finding: Finding, result: Result) -> str:
    e = finding.evidence
    parts = [f"{e[key]:,.0f} {word}" for key, word in (("nan", "NaN"), ("infinite", "infinite")) if e[key]]
    return f"{' and '.join(parts)} in {listed(finding.tensors)}"


def _order(finding: Finding, result: Result) -> str:
    if "after 0" in finding.evidence:
        pairs = [(row, int(finding.evidence[f"after {k}"])) for k, row in enumerate(finding.checkpoints)]
        places = [f"{result.label(row)} belongs after {result.label(before)}" for row, before in pairs]
        return f"the order of the names is not that of the training, or of the training backwards: {listed(places, 3)}"
    held = [
        f"{result.label(row)} holds what was trained as {result.label(int(finding.evidence[f'of {k}']))}"
        for k, row in enumerate(finding.checkpoints)
    ]
    return (
        f"these lie in the order of their names as texts (1, 10, 11, 2), not in that of the training: {listed(held, 3)}"
    )


def _swapped(finding: Finding, result: Result) -> str:
    return "each has the other's weights: the way through all is shorter where the two change places"


def _unrelated(finding: Finding, result: Result) -> str:
    cosine = f"cosine to the rest {finding.evidence['cosine']:.2f}"
    if finding.severity is Severity.NOTE:
        return f"nothing shows that the first is of the training of the rest ({cosine})"
    return f"weights of another training, as of another seed ({cosine})"


def _splice(finding: Finding, result: Result) -> str:
    e = finding.evidence
    doubt = "" if e["clear"] else "; cannot tell whether begun anew here"
    return f"from here on another training's weights, as of another seed (cosine to what is before {e['cosine']:.2f}){doubt}"


def _restart(finding: Finding, result: Result) -> str:
    e = finding.evidence
    if e["anew"]:
        return f"from here on a training begun anew, from another initialisation (cosine to what is before {e['cosine']:.2f}){'' if e['clear'] else '; or another that goes on, cannot tell'}"
    return f"from here on a training that went back: nearest to {result.unit} {result.label(int(e['to']))} ({e['nearer']:.2f} of the way from the one before)"


def _detour(e: Mapping[str, float]) -> str:
    return f"the way through it is {e['detour']:.2f} times as long as past it"


def _misplaced(finding: Finding, result: Result) -> str:
    e = finding.evidence
    return f"weights from elsewhere: {_detour(e)}; nearest to {result.unit} {result.label(int(e['nearest']))}"


def _average(finding: Finding, result: Result) -> str:
    near = finding.evidence["average"]
    return f"an average of weights before it, as a moving average is, not weights that trained: from an average of the checkpoints before it {near:.2f} times as far as from the nearest of them"


def _partly_misplaced(finding: Finding, result: Result) -> str:
    if "returned" in finding.evidence:
        tensors = counted(finding.evidence["layers"], "tensor")
        return f"{tensors} that stand still before and after have other values here ({listed(finding.tensors)})"
    layers = counted(finding.evidence["layers"], "layer")
    return f"{layers} with weights from elsewhere ({listed(finding.tensors)})"


def _norm_jump(finding: Finding, result: Result) -> str:
    factor = finding.evidence["factor"]
    return f"the norm of all weights is {factor:.2f} times that of the one before, as where the loss had a spike"


RELATIONS: dict[Relation, str] = {
    Relation.COPY: "Every checkpoint of the second is one of the first: a copy.",
    Relation.PARTLY_COPY: "Some checkpoints of the second are those of the first.",
    Relation.CONTINUATION: "The second goes on where the first ends.",
    Relation.AVERAGE: "The second are averages of the first, as moving averages are.",
    Relation.SAME_START: "The two begin with the same weights and are two trainings.",
    Relation.RELATED: "The two are related: from the same initialisation, or one from the other.",
    Relation.UNRELATED: "The two are two trainings: nothing relates their weights.",
    Relation.OTHER_NETWORK: "The two are of different networks.",
}


def untold(what: Untold, result: Result) -> str:
    """What cannot be told, in words that go on after "Cannot tell"."""
    if what is Untold.ORDER:
        labels = [result.label(row) for row in result.unordered]
        return f"the order of {listed(labels, 8)} from each other: with neighbours exchanged the way is as long"
    if what is Untold.REST:
        return f"whether what lies behind {read_part(result)} is sound, for it was not read"
    return _UNTOLD[what]


def read_part(result: Result) -> str:
    """What was read of each tensor."""
    share = result.series.share
    return f"the first {100 * share.part:.3g} % of each tensor (or {share.least:,} numbers, where that is more)"


_UNTOLD: dict[Untold, str] = {
    Untold.FEW: f"whether checkpoints are in their places: fewer than {FEWEST} can be compared",
    Untold.ENDS: "whether the first and the last are in their places, which have nothing on one side",
    Untold.DIRECTION: "in which direction the series runs, for nothing is recorded inside",
    Untold.AVERAGES: "whether weights are averages over less than the time between two checkpoints",
    Untold.LABELS: "whether all labels are shifted, for nothing is recorded inside",
}

_WORDS: dict[Kind, Callable[[Finding, Result], str]] = {
    Kind.EQUAL: _equal,
    Kind.PARTLY_EQUAL: _partly_equal,
    Kind.MISSING_STEPS: _missing,
    Kind.DUPLICATE_STEPS: lambda finding, result: (
        f"{counted(len(finding.checkpoints), 'checkpoint')} of one {result.unit}: "
        f"{listed([result.series.names[row] for row in finding.checkpoints])}"
    ),
    Kind.LABELS: _labels,
    Kind.DAMAGED: _damaged,
    Kind.TENSORS: _tensors,
    Kind.SHAPES: _shapes,
    Kind.TYPES: _types,
    Kind.PRECISION: _rounded,
    Kind.NOT_FINITE: _not_finite,
    Kind.ZERO: lambda finding, result: f"all zero, and not before: {listed(finding.tensors)}",
    Kind.ORDER: _order,
    Kind.SWAPPED: _swapped,
    Kind.UNRELATED: _unrelated,
    Kind.SPLICE: _splice,
    Kind.RESTART: _restart,
    Kind.MISPLACED: _misplaced,
    Kind.AVERAGE: _average,
    Kind.PARTLY_MISPLACED: _partly_misplaced,
    Kind.NORM_JUMP: _norm_jump,
    Kind.UNCHANGED: lambda finding, result: (
        f"{counted(len(finding.tensors), 'tensor')} never change ({listed(finding.tensors)})"
    ),
}
