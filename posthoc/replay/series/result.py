"""A check as a whole: what was read, and what was found."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from posthoc.replay.fitting import FEWEST
from posthoc.replay.layout import Run, find_run
from posthoc.replay.series.records import Finding, Kind, Severity, Untold
from posthoc.replay.series.share import WHOLE, Share
from posthoc.replay.weights import MAIN, Pick

if TYPE_CHECKING:
    from posthoc.replay.series.reading import Progress, Statistics

FORMAT, VERSION = "posthoc-check", 1


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """The statistics of a series and its findings, worst first.

    place: where it lies, as a person is told; unordered: rows of which the order cannot be told.
    """

    run: Run
    series: "Statistics"
    findings: tuple[Finding, ...]
    place: str
    unordered: tuple[int, ...] = ()

    def __repr__(self) -> str:
        from posthoc.replay.series.words import verdict

        return f"<Result: {verdict(self)}>"

    @property
    def unit(self) -> str:
        """What the checkpoints are labelled by: epoch or step."""
        return "step" if all(checkpoint.epoch is None for checkpoint in self.series.checkpoints) else "epoch"

    @property
    def sound(self) -> bool:
        """Whether there is nothing but notes."""
        return all(finding.severity is Severity.NOTE for finding in self.findings)

    @property
    def untold(self) -> tuple[Untold, ...]:
        """What could not be judged."""
        checkpoints = self.series.checkpoints
        silent = all(c.header.epoch is None and c.header.step is None for c in checkpoints)
        few = len(checkpoints) < FEWEST
        cases = {
            Untold.FEW: few, Untold.ENDS: not few, Untold.ORDER: bool(self.unordered), Untold.AVERAGES: not few,
            Untold.LABELS: silent, Untold.DIRECTION: silent and not few, Untold.REST: not self.series.share.is_whole,
        }  # fmt: skip
        return tuple(what for what, holds in cases.items() if holds)

    def label(self, row: int) -> str:
        """Epoch or step of a checkpoint, its name where it has neither."""
        checkpoint = self.series.checkpoints[row]
        value = checkpoint.step if checkpoint.epoch is None else checkpoint.epoch
        return checkpoint.path.name if value is None else str(value)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it: the checkpoints, the findings, and each checkpoint's norms and distances."""
        series = self.series
        return {
            "format": FORMAT,
            "version": VERSION,
            "folder": self.place,
            "order": self.run.by,
            "share": self.series.share.part,
            "sound": self.sound,
            "checkpoints": [
                {"name": c.path.name, "epoch": c.epoch, "step": c.step} for c in series.checkpoints
            ],
            "findings": [
                {
                    "kind": f.kind.value,
                    "severity": f.severity.name.lower(),
                    "checkpoints": [f.file] if f.file else [series.names[row] for row in f.checkpoints],
                    "tensors": list(f.tensors),
                    "evidence": dict(f.evidence),
                }
                for f in self.findings
            ],
            "cannot tell": [what.value for what in self.untold],
            "apart": [{"name": path.name, "reason": reason} for path, reason in self.run.apart],
            "unordered": [series.names[row] for row in self.unordered],
            "statistics": {name: _numbers(values) for name, values in self.overall().items()},
        }  # fmt: skip

    def overall(self) -> dict[str, NDArray[np.float64]]:
        """Over all weights of each checkpoint: norm, distance from the one before and from the first, cosine of steps."""
        series = self.series
        norm, step, stride, start = (
            np.sqrt(_total(values)) for values in (series.squares, series.step, series.stride, series.start)
        )
        cosine = np.full(len(norm), np.nan)
        with np.errstate(invalid="ignore", divide="ignore"):
            cosine[1:-1] = (stride[2:] ** 2 - step[1:-1] ** 2 - step[2:] ** 2) / (2 * step[1:-1] * step[2:])
        return {"norm": norm, "step": step, "start": start, "cosine": cosine}


def _total(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums over tensors, NaN where no tensor has any."""
    return np.where(np.isnan(values).all(1), np.nan, np.nansum(values, axis=1))


def _numbers(values: NDArray[np.float64]) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]


def check_series(
    place: Path | Sequence[Path],
    select: str | None = None,
    pick: Pick = MAIN,
    order: str | None = None,
    placed: Sequence[str] = (),
    progress: "Progress | None" = None,
    share: Share = WHOLE,
) -> Result:
    """Read every checkpoint of a run once and say what is wrong with it; raises as `find_run` does.

    share: how much of each tensor is read. What cannot be read is a finding, as long as there is one that can.
    """
    run = find_run(place, select, pick, skip_damaged=True, order=order, placed=placed, sound=False)
    # With Numba and SciPy, which what is wrong with a run need not wait for.
    from posthoc.replay.series.exact import exact_findings, less_the_damaged
    from posthoc.replay.series.geometry import compare
    from posthoc.replay.series.jumps import norm_jumps
    from posthoc.replay.series.placing import placing_findings
    from posthoc.replay.series.reading import read_series

    series = read_series(run.checkpoints, pick, progress, share=share)
    geometry = compare(series)
    findings, unordered = placing_findings(series, geometry, exact_findings(series))
    findings += norm_jumps(series, geometry, findings)
    if run.damaged:
        rest = [less_the_damaged(finding, series.checkpoints, run.damaged) for finding in findings]
        findings = [*map(_damaged, run.damaged), *filter(None, rest)]
    findings.sort(key=lambda finding: (-finding.severity, finding.checkpoints))
    return Result(run, series, tuple(findings), str(run.folder), unordered)


def _damaged(item: tuple[Path, str]) -> Finding:
    return Finding(Kind.DAMAGED, Severity.ERROR, file=item[0].name)
