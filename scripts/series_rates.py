"""How often `posthoc check` is wrong: false alarms on healthy runs, and planted faults that are found and named rightly."""

import argparse
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from series_training import CALIBRATION, LATE, REPORTED, Recipe, Run, State, train

from posthoc.files import replacing
from posthoc.replay.series.records import Finding, Kind, Severity, Untold
from posthoc.replay.series.result import Result, check_series
from posthoc.replay.series.share import WHOLE, Share


@dataclass
class Series:
    """What is written: names' and recorded steps, and weights.

    at: the rows of what was planted; window: of an average, over how much of the time between two checkpoints it is.
    """

    names: list[int]
    inside: list[int] | None
    states: list[State]
    at: tuple[int, ...] = ()
    total: int | None = None
    window: float = 0.0


@dataclass
class Trained:
    """A run, one of another seed, and one from the same first weights over other batches."""

    run: Run
    other: Run
    fork: Run
    decay: float = 0.98


Plant = Callable[[Trained, int, np.random.Generator], Series]


def healthy(trained: Trained) -> Series:
    """As it was trained."""
    return Series(list(trained.run.steps), list(trained.run.steps), list(trained.run.states))


def _silent(trained: Trained) -> Series:
    series = healthy(trained)
    series.inside = None
    return series


def copied(trained: Trained, row: int, random: np.random.Generator) -> Series:
    """A late step's weights under an earlier one."""
    series, last = _silent(trained), len(trained.run.states) - 1
    late = int(random.integers(max(row + 2, 2 * last // 3), last + 1)) if row + 2 <= last else last
    series.states[row], series.at = series.states[late], (row,)
    return series


def swapped(trained: Trained, row: int, random: np.random.Generator) -> Series:
    """Two neighbours, or two further apart."""
    series, last = _silent(trained), len(trained.run.states) - 1
    other = min(row + int(random.choice([1, 1, 2, 4])), last)
    series.states[row], series.states[other] = series.states[other], series.states[row]
    series.at = (row, other)
    return series


def shard(trained: Trained, row: int, random: np.random.Generator) -> Series:
    """The first or second half of the tensors from the final checkpoint."""
    series = _silent(trained)
    names = list(series.states[0])
    half = names[: len(names) // 2] if random.random() < 0.5 else names[len(names) // 2 :]
    series.states[row] = {**series.states[row], **{name: series.states[-1][name] for name in half}}
    series.at = (row,)
    return series


def seeded(trained: Trained, row: int, random: np.random.Generator) -> Series:
    """The same step of a run of another seed."""
    series = _silent(trained)
    series.states[row], series.at = trained.other.states[row], (row,)
    return series


def shifted(trained: Trained, row: int, random: np.random.Generator) -> Series:
    """From a row on names that are one place off; steps are recorded inside."""
    series = healthy(trained)
    names = [*series.names, 2 * series.names[-1] - series.names[-2]]
    series.names = names[:row] + names[row + 1 :]
    series.at = tuple(range(row, len(series.states)))
    return series


def truncated(trained: Trained, row: int, random: np.random.Generator) -> Series:
    """One to three steps gone from the middle, or the last ones gone where the length of the training is recorded."""
    series, count = healthy(trained), int(random.integers(1, 4))
    if random.random() < 0.3:
        series.total, series.at = series.names[-1], tuple(series.names[-count:])
        gone = range(len(series.names) - count, len(series.names))
    else:
        gone = range(row, min(row + count, len(series.names) - 1))
        series.at = tuple(series.names[k] for k in gone)
    kept = [k for k in range(len(series.names)) if k not in gone]
    series.names = [series.names[k] for k in kept]
    series.inside, series.states = list(series.names), [series.states[k] for k in kept]
    return series


def averaged(trained: Trained, row: int, random: np.random.Generator) -> Series:
    """The exponential moving average at that step."""
    series = _silent(trained)
    series.states[row], series.at = trained.run.averages[row], (row,)
    series.window = 1 / (1 - trained.decay) / (trained.run.steps[row] - trained.run.steps[row - 1])
    return series


def restarted(trained: Trained, row: int, random: np.random.Generator) -> Series:
    """From a row on a training from scratch, from other first weights or the same."""
    series = _silent(trained)
    begun = trained.other if random.random() < 0.5 else trained.fork
    series.states[row:], series.at = begun.states[1 : len(series.states) - row + 1], (row,)
    return series


def rounded(trained: Trained, row: int, random: np.random.Generator) -> Series:
    """Half precision, stored so or in single precision."""
    series, single = _silent(trained), random.random() < 0.5
    state = {name: t.half() if t.is_floating_point() else t for name, t in series.states[row].items()}
    series.states[row] = {name: t.float() if single and t.is_floating_point() else t for name, t in state.items()}
    series.at = (row,)
    return series


def spliced(trained: Trained, row: int, random: np.random.Generator) -> Series:
    """From a row on a run of another seed."""
    series = _silent(trained)
    series.states[row:], series.at = trained.other.states[row:], (row,)
    return series


@dataclass(frozen=True)
class Fault:
    """What is planted, by which kinds it is named rightly, where it can be (rows from either end), and in which runs."""

    plant: Plant
    kinds: tuple[Kind, ...]
    start: int = 1
    end: int = 2
    fits: Callable[[Recipe], bool] = lambda recipe: True


FAULTS = {
    "copy of a late step": Fault(copied, (Kind.EQUAL,), 1, 3),
    "two swapped": Fault(swapped, (Kind.SWAPPED,), 1, 2),
    "a shard of the final": Fault(shard, (Kind.PARTLY_EQUAL,), 1, 3),
    "another seed's": Fault(seeded, (Kind.UNRELATED,), 1, 1),
    "labels off by one": Fault(shifted, (Kind.LABELS,), 1, 2),
    "truncated grid": Fault(truncated, (Kind.MISSING_STEPS,), 2, 3, lambda recipe: recipe.steps != LATE),
    "average among raw": Fault(averaged, (Kind.AVERAGE,), 2, 2, lambda recipe: recipe.kept == "weights"),
    "restart from scratch": Fault(restarted, (Kind.RESTART,), 6, 3),
    "half precision": Fault(rounded, (Kind.TYPES, Kind.PRECISION), 1, 1, lambda recipe: not recipe.half),
    "splice": Fault(spliced, (Kind.SPLICE,), 6, 3),
}  # fmt: skip


def check(series: Series, folder: Path, share: Share = WHOLE) -> Result:
    """Write it as files and check these."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for k, (name, state) in enumerate(zip(series.names, series.states, strict=True)):
        metadata = {} if series.inside is None else {"step": str(series.inside[k])}
        metadata |= {} if series.total is None else {"max_steps": str(series.total)}
        save_file(state, folder / f"step-{name}.safetensors", metadata)
    return check_series(folder, order="name", share=share)


def alarms(result: Result) -> list[Finding]:
    """What is more than a note."""
    return [finding for finding in result.findings if finding.severity > Severity.NOTE]


def named_rightly(series: Series, fault: Fault, result: Result) -> bool:
    """Whether a finding of the right kind is about what was planted, and of equal weights the right ones are at fault."""
    return any(finding.kind in fault.kinds and _is_about(finding, series, fault) for finding in alarms(result))


def left_open(series: Series, fault: Fault, result: Result) -> bool:
    """Whether nothing wrong is named and the check says that it cannot tell just what was planted.

    Of two that were exchanged, their order, or whether the last is in its place; of an average, whether it is one over less than the time between two; of two
    trainings joined, whether the second was begun anew there (it is named, as one or the other).
    """
    findings = alarms(result)
    if fault.plant is swapped:
        last = len(series.states) - 1 in series.at and Untold.ENDS in result.untold
        return not findings and (last or set(series.at) <= set(result.unordered))
    if fault.plant is averaged:
        return not findings and Untold.AVERAGES in result.untold and series.window < 1
    joined = [f for f in findings if f.kind in (Kind.RESTART, Kind.SPLICE) and f.checkpoints == series.at]
    return fault.plant in (restarted, spliced) and any(not f.evidence.get("clear", 1) for f in joined)


def _is_about(finding: Finding, series: Series, fault: Fault) -> bool:
    if finding.kind is Kind.MISSING_STEPS:
        steps = {int(value) for name, value in finding.evidence.items() if name.startswith(("step ", "last"))}
        return bool(steps) and steps <= set(series.at)
    if finding.kind is Kind.LABELS:
        least, most = min(series.at), max(series.at)
        return set(finding.checkpoints) == set(range(least, most + 1))
    if finding.kind in (Kind.EQUAL, Kind.PARTLY_EQUAL):
        return finding.checkpoints[: int(finding.evidence.get("at fault", 1))] == series.at
    return tuple(sorted(finding.checkpoints)) == series.at


def strays(series: Series, fault: Fault, result: Result) -> list[Finding]:
    """Alarms that have nothing to do with what was planted.

    What has: the gap that shifted names leave; biases that are zero again in a new training, and weights of its first
    steps that are again those of the old one's.
    """
    follows = {Kind.LABELS: (Kind.MISSING_STEPS,), Kind.RESTART: (Kind.ZERO, Kind.EQUAL)}.get(fault.kinds[0], ())
    return [
        f
        for f in alarms(result)
        if f.kind not in follows and not (f.kind in fault.kinds and _is_about(f, series, fault))
    ]


def trained_of(recipe: Recipe, seed: int, kept: Path | None = None) -> Trained:
    """The three runs that faults are made of; read from the file `kept` where it is there, else written to it."""
    seeds = ((seed, None), (seed + 50, None), (seed + 70, seed))
    if kept is not None and kept.is_file():
        runs = [Run(*parts) for parts in torch.load(kept)]
    else:
        runs = [train(recipe, of, first) for of, first in seeds]
        if kept is not None:
            with replacing(kept) as path:
                torch.save([(run.steps, run.states, run.averages) for run in runs], path)
    run, other, fork = runs
    return Trained(run, other, fork, recipe.decay)


def measure(
    runs: Sequence[tuple[str, Recipe, Trained]], placements: int, seed: int, folder: Path, verbose: bool, share: Share
) -> None:
    """Print both tables."""
    wrong: Counter[str] = Counter()
    for name, _, trained in runs:
        found = alarms(check(healthy(trained), folder, share))
        wrong[name] += bool(found)
        if found and verbose:
            print("  false:", name, [(f.kind.value, f.checkpoints, dict(f.evidence)) for f in found])
    print(f"| healthy runs | with a false alarm |\n|---|---|\n| {len(runs)} | {sum(map(bool, wrong.values()))} |\n")
    print("| fault | placements | named rightly | cannot tell | other alarms beside it |\n|---|---|---|---|---|")
    for number, (title, fault) in enumerate(FAULTS.items()):
        random = np.random.default_rng([seed, number])
        fitting = [entry for entry in runs if fault.fits(entry[1])]
        right = unclear = beside = 0
        for k in range(placements):
            name, _, trained = fitting[k % len(fitting)]
            row = int(random.integers(fault.start, len(trained.run.states) - fault.end + 1))
            series = fault.plant(trained, row, random)
            result = check(series, folder, share)
            good, others = named_rightly(series, fault, result), strays(series, fault, result)
            unclear += not good and left_open(series, fault, result)
            right, beside = right + good, beside + bool(good and others)
            if verbose and (not good or others):
                print("  ", title, name, series.at, "ok" if good else "WRONG",
                      [(f.kind.value, f.checkpoints, {k: round(v, 2) for k, v in f.evidence.items()}) for f in alarms(result)])  # fmt: skip
        print(f"| {title} | {placements} | {right} | {unclear} | {beside} |", flush=True)


def main() -> None:
    """Train, plant, count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calibration", action="store_true", help="the runs by which thresholds were chosen")
    parser.add_argument("--placements", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=1, help="runs of each kind")
    parser.add_argument("--first", type=int, default=0, help="seed of the first run of each kind")
    parser.add_argument("--keep", type=Path, help="a folder in which trained runs are kept and looked for")
    parser.add_argument("--share", type=float, default=1.0, help="part of each tensor that is read")
    parser.add_argument("--least", type=int, default=WHOLE.least, help="numbers of a tensor that are read in any case")
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    recipes = CALIBRATION if options.calibration else REPORTED
    if options.keep:
        options.keep.mkdir(parents=True, exist_ok=True)
    runs = [
        (name, recipe, trained_of(recipe, seed, options.keep and options.keep / f"{name.replace(' ', '-')}.{seed}.pt"))
        for seed in range(options.first, options.first + options.seeds)
        for name, recipe in recipes.items()
    ]
    with tempfile.TemporaryDirectory(prefix="posthoc-rates-") as folder:
        share = Share(options.share, options.least)
        measure(runs, options.placements, options.first, Path(folder) / "run", options.verbose, share)


if __name__ == "__main__":
    main()
