"""What the parts of a metrics file must say of each other, so that its readers may look up what it names."""

from posthoc.analysis.records import ALWAYS, CORRELATIONS, WAYS, RunMetrics, psi_with


def fault(run: RunMetrics) -> str:
    """What is wrong between the parts of a metrics file, of which each is as its type has it; empty where nothing is."""
    if lacking := _lacking(run):
        return f"it lacks {', '.join(sorted(lacking))}"
    named = {run.axis.decides}
    for measured in run.measures.values():
        named |= {*measured.nulls, *measured.summary.nulls, *filter(None, [measured.decided_by])}
    if unknown := named - run.nulls.keys():
        return f"it names the null {min(unknown)[:99]!r} and says nothing of it"
    for key, measured in run.measures.items():
        pairs = (measured.low, measured.high), (measured.by_layer_low, measured.by_layer_high)
        if any(low.size != high.size for low, high in pairs):
            return f"intervals of {key[:99]!r} have one end only"
    when, E = run.when, len(run.checkpoints)
    if None in when:
        return f"it counts its checkpoints by {run.summary.unit}, which one of them does not have"
    if run.summary.best_epoch is not None and run.summary.best_epoch not in when:
        return f"its best {run.summary.unit} {run.summary.best_epoch} is that of no checkpoint"
    places = [symptom.began for symptom in run.health]
    if run.choice is not None:
        places += [run.choice.best, *([run.choice.average.at] if run.choice.average else [])]
    if beyond := [place for place in places if place >= E]:
        return f"it speaks of a checkpoint at place {beyond[0]}, and has {E}"
    return ""


def _lacking(run: RunMetrics) -> set[str]:
    """The names of measures, correlations and ways of settling that are spoken of and are not there."""
    summary, measures = run.summary, run.measures
    wanted = {ALWAYS, *(measured.function_of for measured in measures.values() if measured.function_of)}
    wanted |= {summary.judged_by} if summary.best_epoch is not None else set()
    lacking = wanted - measures.keys() | (WAYS.keys() - summary.convergence.keys())
    related = {name for name, (_, first, _) in CORRELATIONS.items() if first in measures}
    if run.score is not None and "stability_index" in measures:
        related.add(psi_with(run.score.symbol))
    lacking |= related - summary.correlations.keys()
    return lacking.union(*(WAYS.keys() - ways.keys() for ways in summary.settling.values()))
