"""Of checkpoints with equal weights, whole or in part: which of them is at fault, by which of them lies on the way."""

from dataclasses import replace

import numpy as np

from posthoc.replay.fitting import FEWEST, best_fit, consecutive
from posthoc.replay.series.geometry import Distances, Geometry
from posthoc.replay.series.records import Finding, Kind, Severity


def attributed(finding: Finding, geometry: Geometry) -> Finding:
    """An error of equal weights with those at fault first: the way without them is shortest.

    evidence: "at fault", how many they are; "longer", by how much the next best way is longer, in steps between the
    checkpoints beside. Weights that stood still but for fewer checkpoints than were equal are no copies: those are
    out of place in which they did not. Of a block that is repeated the repetition is taken for the fault if none is clear.
    """
    if finding.kind not in (Kind.EQUAL, Kind.PARTLY_EQUAL) or finding.severity is not Severity.ERROR:
        return finding
    if "block" in finding.evidence:
        return _of_block(finding, geometry)
    rows = sorted(finding.checkpoints)
    spans = consecutive(rows)
    between = tuple(row for row in range(rows[0], rows[-1]) if row not in finding.checkpoints)
    if len(between) < len(rows) - max(map(len, spans)):
        evidence = {"layers": float(len(finding.tensors)), "returned": 1.0}
        return replace(finding, kind=Kind.PARTLY_MISPLACED, checkpoints=between, evidence=evidence)
    if not set(finding.checkpoints) <= set(geometry.rows) or len(geometry.rows) < FEWEST:
        return finding
    distances = _distances(finding, geometry)
    places = {row: k for k, row in enumerate(geometry.rows)}
    rest = [k for k, row in enumerate(geometry.rows) if row not in finding.checkpoints]
    fit = best_fit(distances, [[places[row] for row in span] for span in spans], rest)
    wrong = tuple(row for k, span in enumerate(spans) for row in span if k != fit.span)
    evidence = {**finding.evidence, "at fault": float(len(wrong)), "longer": fit.longer, "clear": float(fit.is_clear)}
    return replace(finding, checkpoints=(*wrong, *spans[fit.span]), evidence=evidence)


def _of_block(finding: Finding, geometry: Geometry) -> Finding:
    size, rows = int(finding.evidence["block"]), finding.checkpoints
    spans = [rows[k : k + size] for k in range(0, len(rows), size)]
    right, evidence = 0, {"longer": 0.0, "clear": 0.0}
    if set(rows) <= set(geometry.rows) and len(geometry.rows) >= FEWEST:
        places = {row: k for k, row in enumerate(geometry.rows)}
        rest = [k for k, row in enumerate(geometry.rows) if row not in rows]
        fit = best_fit(geometry.distances, [[places[row] for row in span] for span in spans], rest)
        right = fit.span if fit.is_clear else 0
        evidence = {"longer": fit.longer, "clear": float(fit.is_clear)}
    wrong = tuple(row for k, span in enumerate(spans) for row in span if k != right)
    evidence = {**finding.evidence, "at fault": float(len(wrong)), **evidence}
    return replace(finding, checkpoints=(*wrong, *spans[right]), evidence=evidence)


def _distances(finding: Finding, geometry: Geometry) -> Distances:
    """Of all weights, or of the layers that a finding is about."""
    if not finding.tensors:
        return geometry.distances
    squares = [geometry.groups[g] ** 2 for g, of in geometry.tensors.items() if set(of) & set(finding.tensors)]
    return np.asarray(np.sqrt(np.sum(squares, axis=0))) if squares else geometry.distances
