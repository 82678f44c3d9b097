"""What is reported on: the measures of runs, and the audits that lie beside them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posthoc.analysis.audit import load_audit
from posthoc.analysis.records import RunMetrics, load_metrics
from posthoc.analysis.runs import Run, as_run, find_metrics, in_one_unit
from posthoc.errors import PosthocError, UsageError


@dataclass(frozen=True)
class Source:
    """A run to report on: its name, its file, its measures, and its audit if there is one."""

    name: str
    path: str
    metrics: RunMetrics
    audit: Mapping[str, Any] | None = None


def load_sources(places: Sequence[str], audit_file: Path | None = None) -> list[Source]:
    """Read metrics files, and of each the audit.json beside it if it is of the same activations, or `audit_file`.

    Raises PosthocError where that is the audit of others, UsageError where it is given for several runs.
    """
    found = find_metrics(places)
    if audit_file is not None and len(found) > 1:
        raise UsageError("--audit goes with one run; of several, the audit.json beside each is taken.")
    sources = []
    for path, name in found:
        metrics = load_metrics(path)
        beside = audit_file or path.with_name("audit.json")
        audit = load_audit(beside) if audit_file or beside.exists() else None
        if audit is not None and audit.get("sha256") != metrics.input["sha256"]:
            if audit_file:
                raise PosthocError(f"{audit_file} is the audit of other activations than those of {path}.")
            audit = None
        sources.append(Source(name, str(path), metrics, audit))
    return sources


def as_runs(sources: Sequence[Source]) -> list[Run]:
    """The runs as a comparison has them, their accuracies in one unit."""
    return in_one_unit([as_run(source.metrics, source.name) for source in sources])
