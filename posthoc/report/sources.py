"""What is reported on: the measures of runs, and the audits that lie beside them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from posthoc.analysis.compare import Row, tabulate
from posthoc.analysis.records import Measured, RunMetrics, load_metrics
from posthoc.analysis.responses import Audit, load_audit
from posthoc.analysis.runs import Run, as_run, find_metrics, in_one_unit
from posthoc.analysis.stopping import Score, compare_rules
from posthoc.errors import PosthocError, UsageError
from posthoc.report.words import confounded


@dataclass(frozen=True)
class Source:
    """A run to report on: its name, its file, its measures, and its audit if there is one."""

    name: str
    path: str
    metrics: RunMetrics
    audit: Audit | None = None


@dataclass(frozen=True)
class Several:
    """Runs to compare; their table and their stopping rules are made once for all figures of them."""

    runs: Sequence[Run]

    @cached_property
    def rows(self) -> list[Row]:
        """One row per run."""
        return tabulate(self.runs)

    @cached_property
    def judged(self) -> list[Run]:
        """Those that have a score, such as accuracy."""
        return [run for run in self.runs if run.score]

    @cached_property
    def scores(self) -> list[Score]:
        """Every stopping rule over the runs that have a score; raises UsageError unless that is one of them all."""
        return compare_rules(self.judged)

    @property
    def comparable(self) -> bool:
        """Whether there is one score, such as accuracy, by which stopping rules can be compared."""
        return len(self.judges) == 1

    @property
    def judges(self) -> dict[str, str]:
        """What the runs are judged by: the symbols, such as accuracy, each with a name of its own, for one measure (the loss)
        may be of another kind in each run."""
        names: dict[str, str] = {}
        for run in self.judged:
            assert run.score is not None
            key = run.summary.judged_by
            names.setdefault(run.score.symbol, f"{key}_{len(names)}" if key in names.values() else key)
        return names

    @property
    def headlines(self) -> dict[str, Measured]:
        """The headline measures that any of the runs has."""
        known = {key: measured for run in reversed(self.runs) for key, measured in run.measures.items()}
        return {key: measured for key, measured in known.items() if measured.headline}

    @property
    def confounded(self) -> str:
        """A warning where runs differ in what the protocol itself responds to."""
        return confounded(self.runs)


def load_sources(places: Sequence[str], audit_file: Path | None = None) -> list[Source]:
    """Read metrics files, and of each the audit.json beside it if it is of the same activations, or `audit_file`.

    Raises PosthocError where that is the audit of others, UsageError where it is given for several runs.
    """
    files = find_metrics(places)
    if audit_file is not None and len(files) > 1:
        raise UsageError("--audit goes with one run; of several, the audit.json beside each is taken.")
    sources = []
    for path, name in files:
        metrics = load_metrics(path)
        beside = audit_file or _beside(path, "audit.json")
        audit = load_audit(beside) if audit_file or beside.exists() else None
        if audit is not None and audit.sha256 != metrics.input.sha256:
            if audit_file:
                raise PosthocError(
                    f"{audit_file} is the audit of other activations than those of {path}; run `posthoc audit` on those."
                )
            audit = None
        sources.append(Source(name, str(path), metrics, audit))
    return sources


def _beside(metrics: Path, name: str) -> Path:
    """A file that belongs to a metrics file: X.`name` beside X.metrics.json if it is there, else `name`."""
    whole = metrics.with_name(f"{metrics.name.removesuffix('metrics.json')}{name}")
    return whole if metrics.name.endswith(".metrics.json") and whole.exists() else metrics.with_name(name)


def as_runs(sources: Sequence[Source]) -> list[Run]:
    """The runs as a comparison has them, their accuracies in one unit."""
    return in_one_unit([as_run(source.metrics, source.name) for source in sources])
