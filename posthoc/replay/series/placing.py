"""Which checkpoints are not where they belong, by their distances from the others: one by one removed, or exchanged."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from posthoc.replay.fitting import FEWEST
from posthoc.replay.series.attribution import attributed
from posthoc.replay.series.averages import exchanged, moves_on, nearness, order_without_averages, usual_nearness
from posthoc.replay.series.exact import RUNNING
from posthoc.replay.series.geometry import LARGE, Distances, Geometry, compare, detours, excess, scale
from posthoc.replay.series.ordering import order_of_texts, order_of_ways, reordered
from posthoc.replay.series.reading import Statistics
from posthoc.replay.series.records import Finding, Kind, Severity

RELATED = 0.2
"""Cosine of two checkpoints below which nothing shows that they are of one training; of two seeds it is near 0."""
OUTLIER, LEAST = 4.0, 0.4
"""A detour is one if its logarithm exceeds that of its neighbours by so many robust standard deviations, and so much."""
OUTLIER_OF_PART, LEAST_OF_PART = 6.0, 0.8
"""The same of a layer; there are many."""
SHORTER, SHORTER_APART = 0.08, 0.25
"""By so much in its logarithm a way is shorter where two neighbours, or others, change places, if they were swapped."""
EVEN = 0.5
"""The step between two neighbours that were swapped is no shorter than that, in geometric means of those beside it."""
FAR = 2.0
"""The first or last step is not so much longer than the one beside it, if a swap is to explain it."""
BACK = 0.9
"""A checkpoint that is nearer than this to an earlier one, in distances from the one before it, went back there."""
BETWEEN_SEEDS, MOST_APART = 0.02, 20.0
"""So much do logarithms of norms differ between seeds beyond what their numbers explain; more than so many times that
counts no more."""
DOUBT = 0.2
"""A training was begun anew, or was not, if its norms are nearer by that in the logarithm to the first or to the last."""
MANY, FEW = 4, 1
"""From so many checkpoints out of their order on another order of all is looked for, which is right if so few are left in it."""
ROUNDING = 4.0
"""A step of so many roundings and less is explained by these."""
SINGLE = (2.0**-24, 0.0)
"""The largest errors of rounding, relative and absolute, of checkpoints that were not rounded to less than single precision."""


class Placing(NamedTuple):
    """Findings, and the rows of neighbours of which either order is as good as the other."""

    findings: list[Finding]
    unordered: tuple[int, ...] = ()


def placing_findings(series: Statistics, whole: Geometry, exact: Sequence[Finding]) -> Placing:
    """What `exact` found, with what the distances say of it, and what they say beyond that; whole: of all checkpoints."""
    misordered = order_of_texts(whole, series.checkpoints) if len(whole.rows) >= FEWEST else None
    order = misordered[1] if misordered else range(len(series.checkpoints))
    whole = reordered(whole, order)
    settled = [*([misordered[0]] if misordered else []), *(attributed(finding, whole) for finding in exact)]
    wrong = _at_fault(settled)
    geometry = reordered(compare(series, wrong), order) if wrong else whole
    if len(geometry.rows) < FEWEST:
        return Placing(settled)
    findings, unordered = _placed(geometry)
    if misordered is None and sum(map(_is_of_order, findings)) >= MANY and (other := order_of_ways(geometry)):
        again = reordered(geometry, other[1])
        placed, open_order = _placed(again)
        if sum(map(_is_of_order, placed)) <= FEW:
            settled = [other[0], *map(_without_attribution, settled)]
            geometry, findings, unordered = again, placed, open_order
    findings = settled + [_in_series(finding, geometry, wrong) for finding in findings]
    return Placing(_unexplained(series, findings), tuple(sorted({geometry.rows[place] for place in unordered})))


def _placed(geometry: Geometry) -> tuple[list[Finding], list[int]]:
    """Findings by places, and places that could as well be exchanged."""
    findings: list[Finding] = []
    unordered: list[int] = []
    for training in _trainings(geometry, findings):
        for part in _set_back(geometry, training, findings):
            raw = order_without_averages(geometry, _exchanged(geometry, part, findings), findings)
            left = _detours(geometry, raw, findings)
            _parts_of_networks(geometry, left, findings)
            unordered += _unordered(geometry, left)
    return findings, unordered


def _is_of_order(finding: Finding) -> bool:
    """Whether a wrong order of the whole series would explain it."""
    kinds = (Kind.SWAPPED, Kind.MISPLACED, Kind.AVERAGE, Kind.RESTART)
    return finding.kind in kinds and not finding.evidence.get("anew")


def _without_attribution(finding: Finding) -> Finding:
    """Which of equal weights is at fault was judged in the order that is wrong."""
    return replace(finding, evidence={**finding.evidence, "clear": 0.0}) if "clear" in finding.evidence else finding


def _unordered(geometry: Geometry, order: Sequence[int]) -> list[int]:
    """Neighbours that could as well have changed places: the way is as long."""
    result = []
    for k in range(1, len(order) - 1):
        before, after = _ways(geometry.distances, order, k, k + 1)
        if before > 0 and abs(math.log(max(after, 1e-12 * before) / before)) < SHORTER:
            result += [order[k], order[k + 1]]
    return result


def _unexplained(series: Statistics, findings: Sequence[Finding]) -> list[Finding]:
    """Without what follows from another finding: from rounding, or from weights that are wrong as a whole."""
    rounded = _roundings(series, findings)
    blamed = {
        row for f in findings for row in f.checkpoints[: int(f.evidence.get("at fault", len(f.checkpoints)))]
        if f.severity > Severity.NOTE and f.kind not in (Kind.LABELS, Kind.PARTLY_MISPLACED)
    }  # fmt: skip
    returned = {row for f in findings if "returned" in f.evidence for row in f.checkpoints}
    result: list[Finding] = []
    for finding in findings:
        rows = finding.checkpoints
        if finding.kind is Kind.PARTLY_MISPLACED and "over" in finding.evidence and set(rows) <= returned:
            continue
        if finding.kind is Kind.SWAPPED and len({series.checkpoints[row].position for row in rows}) == 1:
            continue  # two of one step, of which either may come first
        if finding.kind in (Kind.MISPLACED, Kind.PARTLY_MISPLACED) and _is_rounding(series, finding, rounded):
            continue
        if "returned" in finding.evidence:
            known = next((f for f in result if "returned" in f.evidence and f.checkpoints == rows), None)
            if set(rows) <= blamed or known:
                if known and not set(rows) <= blamed:
                    both = (*known.tensors, *finding.tensors)
                    evidence = {**known.evidence, "layers": float(len(both))}
                    result[result.index(known)] = replace(known, tensors=both, evidence=evidence)
                continue
        result.append(_named(series, finding))
    return result


def _roundings(series: Statistics, findings: Sequence[Finding]) -> dict[int, tuple[float, float]]:
    """The largest errors of rounding, relative and absolute, of the rows that were rounded."""
    units = {"float16": (2.0**-11, 2.0**-25), "bfloat16": (2.0**-8, 0.0)}
    result = {}
    for finding in findings:
        for row in finding.checkpoints:
            if finding.kind is Kind.PRECISION:
                result[row] = units["bfloat16" if finding.evidence["bits"] <= 16 else "float16"]
            elif finding.kind is Kind.TYPES and finding.tensors[0] in series.described[row]:
                result[row] = units.get(series.described[row][finding.tensors[0]].dtype.name, SINGLE)
    return result


def _is_rounding(series: Statistics, finding: Finding, rounded: Mapping[int, tuple[float, float]]) -> bool:
    """Whether a checkpoint lies on the way, but for tensors that are no further from the one before than rounding makes them."""
    row = finding.checkpoints[0]
    if row == 0:
        return False
    names = finding.tensors or [name for name in series.tensors if not name.endswith(RUNNING)]
    columns = [t for t, name in enumerate(series.tensors) if name in names and np.isfinite(series.step[row, t])]
    relative, absolute = rounded.get(row, SINGLE)
    errors = relative**2 * series.squares[row] + absolute**2 * series.sizes
    if np.sum(series.step[row, columns]) < ROUNDING**2 * np.sum(errors[columns]):
        return True
    moved = [t for t in columns if series.step[row, t] >= ROUNDING**2 * errors[t]]
    return row in rounded and len(moved) < len(columns) and _over_of(series, moved, row) <= LEAST


def _over_of(series: Statistics, columns: Sequence[int], row: int) -> float:
    """How far the detour that some tensors make at a checkpoint exceeds that of its neighbours, in the logarithm."""
    typical = np.nanmedian(series.step[1:, columns], axis=0)
    known = [t for t, of in zip(columns, typical, strict=True) if of > 0]
    if not known or row + 1 >= len(series.step):
        return 0.0
    weights = series.sizes[known] / typical[typical > 0]
    step, stride = (np.sqrt(np.nansum(values[:, known] * weights, axis=1)) for values in (series.step, series.stride))
    way = step[1:-1] + step[2:]
    logs = np.log(np.where(way > 0, way, 1.0) / np.where(way > 0, np.maximum(stride[2:], 1e-12 * way), 1.0))
    return float(excess(logs)[row - 1])


def _named(series: Statistics, finding: Finding) -> Finding:
    """With those alone of a layer's tensors that are detours themselves, where there are such."""
    if finding.kind is not Kind.PARTLY_MISPLACED or "over" not in finding.evidence:
        return finding
    odd = tuple(
        t for t in finding.tensors if _over_of(series, [series.tensors.index(t)], finding.checkpoints[0]) > LEAST
    )
    return replace(finding, tensors=odd or finding.tensors)


def _in_series(finding: Finding, geometry: Geometry, left_out: set[int]) -> Finding:
    """With rows of the series; a training that starts again with equal weights starts with these."""
    rows = tuple(geometry.rows[place] for place in finding.checkpoints)
    while finding.kind is Kind.RESTART and rows[0] - 1 in left_out:
        rows = (rows[0] - 1,)
    return replace(finding, checkpoints=rows)


def _at_fault(findings: Sequence[Finding]) -> set[int]:
    """Rows that hold another's weights, of each set of equal ones all but that where they belong."""
    rows: set[int] = set()
    for finding in findings:
        if finding.kind in (Kind.EQUAL, Kind.PARTLY_EQUAL) and finding.severity is Severity.ERROR:
            rows.update(finding.checkpoints[: int(finding.evidence.get("at fault", len(finding.checkpoints) - 1))])
    return rows


def _trainings(geometry: Geometry, findings: list[Finding]) -> list[list[int]]:
    """The places of each training that the series is made of, in order; what is related to none is named and left out."""
    chains: list[list[int]] = []
    for place in range(len(geometry.rows)):
        near = [(geometry.cosines[chain[-1], place], number) for number, chain in enumerate(chains)]
        cosine, number = max(near, default=(-1.0, -1))
        if cosine >= RELATED:
            chains[number].append(place)
        else:
            chains.append([place])
    main = max(chains, key=len)
    result = [main]
    for chain in chains:
        if chain is main:
            continue
        cosine = float(np.max(geometry.cosines[np.ix_(chain, main)]))
        between = main[0] < chain[0] and chain[-1] < main[-1]
        first = chain[0] == 0
        if between or (len(chain) == 1 and not first):
            findings.append(Finding(Kind.UNRELATED, Severity.ERROR, tuple(chain), (), {"cosine": cosine}))
        elif len(chain) == 1:
            findings.append(Finding(Kind.UNRELATED, Severity.NOTE, (0,), (), {"cosine": cosine}))
        else:
            start = main[0] if first else chain[0]
            findings.append(_begun_anew(geometry, start, cosine))
            result.append(chain)
    return sorted(result)


def _begun_anew(geometry: Geometry, start: int, cosine: float) -> Finding:
    """A training from another initialisation: from scratch, if its norms are those of the series' first weights.

    evidence: clear, whether its norms are nearer to those of the first three checkpoints than to those of the two before
    it, or the other way round, beyond doubt.
    """
    to_first = _norms_apart(geometry, start, range(min(3, start)))
    to_last = _norms_apart(geometry, start, range(max(start - 2, 0), start))
    clear = abs(math.log(max(to_first, 1e-9) / max(to_last, 1e-9))) > DOUBT
    kind = Kind.RESTART if to_first < to_last else Kind.SPLICE
    evidence = {
        "cosine": cosine, "norms from the first": to_first, "from the last": to_last, "anew": 1.0, "clear": float(clear),
    }  # fmt: skip
    return Finding(kind, Severity.ERROR, (start,), (), evidence)


def _norms_apart(geometry: Geometry, place: int, others: Iterable[int]) -> float:
    """How far logarithms of norms are from those of the nearest of other checkpoints, in units of what two seeds differ."""
    sizes = geometry.sizes
    usual = np.sqrt(1 / (2 * np.maximum(sizes, 1)) + BETWEEN_SEEDS**2)
    apart = (np.minimum(np.abs(geometry.norms[place] - geometry.norms[k]) / usual, MOST_APART) for k in others)
    return min(math.sqrt(np.average(values**2, weights=sizes)) for values in apart)


def _set_back(geometry: Geometry, chain: list[int], findings: list[Finding]) -> Iterator[list[int]]:
    """Cut where the training goes on from a much earlier checkpoint than from both before it."""
    distances, start = geometry.distances, 0
    for k in range(3, len(chain) - 1):
        here, after, earlier, last = chain[k], chain[k + 1], chain[start : k - 2], chain[k - 2 : k]
        if not earlier:
            continue
        nearest = min(earlier, key=lambda other: distances[other, here])
        # The second nearest, if there are two: one that was exchanged with the last is near without being where it went.
        ratio, again = (
            np.sort(distances[earlier, place])[:2][-1] / max(min(distances[last, place]), 1e-30)
            for place in (here, after)
        )
        if max(ratio, again) < BACK and distances[here, after] < min(distances[last, after]):
            evidence = {"nearer": float(ratio), "to": float(geometry.rows[nearest]), "anew": 0.0}
            findings.append(Finding(Kind.RESTART, Severity.ERROR, (here,), (), evidence))
            yield chain[start:k]
            start = k
    yield chain[start:]


def _exchanged(geometry: Geometry, part: list[int], findings: list[Finding]) -> list[int]:
    """The order in which no exchange of two makes the way much shorter; those that were exchanged are named."""
    order, distances = list(part), geometry.distances
    while True:
        usual = usual_nearness(np.array([nearness(geometry.products, distances, order, k) for k in range(len(order))]))
        suspects = [k + 1 for k, over in enumerate(_over(distances, order)[1]) if over > LEAST]
        near = ((i, j) for i in range(len(order)) for j in range(i + 1, min(i + 4, len(order))))
        suspects += [0, len(order) - 1]
        pairs = {*near, *((i, j) for i in suspects for j in suspects if i < j)}
        ways = {pair: _ways(distances, order, *pair) for pair in pairs}
        likely = [
            (i, j)
            for (i, j), (before, after) in ways.items()
            if 0 < after < before * math.exp(-(SHORTER if j == i + 1 else SHORTER_APART))
            and _fit(distances, order, i, j)
            and moves_on(geometry, order, i, j, usual)
        ]
        best = max(likely, key=lambda pair: ways[pair][0] - ways[pair][1], default=None)
        if best is None:
            return order
        i, j = best
        findings.append(
            Finding(
                Kind.SWAPPED,
                Severity.ERROR,
                (order[j], order[i]),
                (),
                {"shorter": math.log(ways[best][0] / ways[best][1])},
            )
        )
        order = exchanged(order, i, j)


def _fit(distances: Distances, order: Sequence[int], i: int, j: int) -> bool:
    """Whether no checkpoint near two places is a detour once these are exchanged."""
    other = exchanged(order, i, j)
    _, over = _over(distances, other)
    near = {k for place in (i, j) for k in (place - 1, place, place + 1) if 0 < k < len(order) - 1}
    if j == i + 1 and i > 0 and j < len(order) - 1:  # nearer to each other than two that trained would be
        first, middle, last = (distances[other[k], other[k + 1]] for k in (i - 1, i, j))
        if middle < EVEN * math.sqrt(first * last):
            return False
    for end, inner, next_inner in ((0, 1, 2), (-1, -2, -3)):
        # To the end goes whatever fits nowhere, where it has no neighbour beyond: it must not be far from the others.
        step, before = distances[other[end], other[inner]], distances[other[inner], other[next_inner]]
        if end % len(order) in (i, j) and step > FAR * before:
            return False
    return all(over[k - 1] <= max(LEAST, OUTLIER * scale(over)) for k in near)


def _ways(distances: Distances, order: Sequence[int], i: int, j: int) -> tuple[float, float]:
    """How long the way is near two places, as it is and if these are exchanged."""
    edges = sorted({k for place in (i, j) for k in (place - 1, place) if 0 <= k < len(order) - 1})
    other = exchanged(order, i, j)
    before, after = (sum(float(distances[o[k], o[k + 1]]) for k in edges) for o in (order, other))
    return before, after


def _detours(geometry: Geometry, order: list[int], findings: list[Finding]) -> list[int]:
    """The order without detours: of a fault and its neighbours that goes first without which the fewest are left."""
    left, distances = list(order), geometry.distances
    while len(left) >= FEWEST:
        logs, over = _over(distances, left)
        outliers = [k + 1 for k in range(len(over)) if over[k] > max(LEAST, OUTLIER * scale(over))]
        if not outliers:
            break
        k = min(outliers, key=lambda k: (_left_over(distances, left, k), -_saved(distances, left, k)))
        over_in = {group: _over(of, left)[1][k - 1] for group, of in _large(geometry).items()}
        place = left.pop(k)
        odd = [group for group, value in over_in.items() if value > LEAST_OF_PART]
        finding = _misplaced(geometry, place, order, float(np.exp(logs[k - 1])), float(over[k - 1]))
        if 0 < 2 * len(odd) <= len(over_in) and min(over_in.values()) < LEAST:
            finding = _in_part(geometry, place, odd, float(max(over_in.values())), Severity.ERROR)
        findings.append(finding)
    return left


def _over(distances: Distances, order: Sequence[int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    logs = detours(distances, order)
    return logs, excess(logs)


def _left_over(distances: Distances, order: Sequence[int], k: int) -> int:
    """How many detours there are without one of the places."""
    _, over = _over(distances, [*order[:k], *order[k + 1 :]])
    return int(np.sum(over > max(LEAST, OUTLIER * scale(over))))


def _saved(distances: Distances, order: Sequence[int], k: int) -> float:
    """How much shorter the way is without one of its inner places."""
    before, here, after = order[k - 1 : k + 2]
    return float(distances[before, here] + distances[here, after] - distances[before, after])


def _misplaced(geometry: Geometry, place: int, order: list[int], detour: float, over: float) -> Finding:
    """A checkpoint that is out of its place, and which it is nearest to."""
    distances = geometry.distances
    nearest = min((other for other in order if other != place), key=lambda other: distances[other, place])
    evidence = {"detour": detour, "over": over, "nearest": float(geometry.rows[nearest])}
    return Finding(Kind.MISPLACED, Severity.ERROR, (place,), (), evidence)


def _large(geometry: Geometry) -> dict[str, Distances]:
    """Layers of which the way says something: few numbers may well come back to where they were."""
    return {group: of for group, of in geometry.groups.items() if geometry.numbers[group] >= LARGE}


def _parts_of_networks(geometry: Geometry, left: list[int], findings: list[Finding]) -> None:
    """Checkpoints of which only some layers are out of place."""
    groups = _large(geometry)
    if len(left) < FEWEST or len(groups) < 2:
        return
    odd: dict[int, list[str]] = {}
    worst: dict[int, float] = {}
    for group, distances in groups.items():
        _, over = _over(distances, left)
        for k in np.flatnonzero(over > max(LEAST_OF_PART, OUTLIER_OF_PART * scale(over))):
            place = left[k + 1]
            odd.setdefault(place, []).append(group)
            worst[place] = max(worst.get(place, 0), float(over[k]))
    for place, layers in odd.items():
        if worst[place] < max((worst.get(other, 0) for other in (place - 1, place + 1)), default=0):
            continue  # the neighbour of a worse one
        findings.append(_in_part(geometry, place, layers, worst[place], Severity.WARNING))


def _in_part(geometry: Geometry, place: int, layers: Sequence[str], over: float, severity: Severity) -> Finding:
    names = tuple(name for layer in layers for name in geometry.tensors[layer])
    return Finding(Kind.PARTLY_MISPLACED, severity, (place,), names, {"over": over, "layers": float(len(layers))})
