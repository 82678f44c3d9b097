"""What is kept of the study's runs: their measures and audits, and what the printed table says."""

import csv
import io
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from posthoc.analysis.geometry import Locking, Representation
from posthoc.analysis.records import RunMetrics
from posthoc.analysis.responses import Audit, Spread, load_audit
from posthoc.files import read_json
from posthoc.typed import typed
from reproduction.language import Condition, kept_conditions


@dataclass(frozen=True)
class Row:
    """A row of the printed table: its protocol, the epochs it was trained for, and the name of its published epochs."""

    images: int
    smooth: int
    classes: int
    epochs: int
    published: str

    @property
    def protocol(self) -> str:
        return f"{self.images}/{self.classes}/{self.smooth}"


ROWS = {
    "resnet18-cifar10": Row(2048, 5, 10, 25, "resnet18_cifar10"),
    "resnet34-cifar10": Row(2048, 5, 10, 27, "resnet34_cifar10"),
    "resnet152-cifar10": Row(2048, 5, 10, 38, "resnet152_cifar10"),
    "densenet121-cifar10": Row(4096, 15, 10, 25, "densenet121_cifar10"),
    "mobilenet_v2-cifar10": Row(4096, 15, 10, 27, "mobilenetv2_cifar10"),
    "vit_b_16-cifar10": Row(256, 5, 10, 30, "vit_pretrained_cifar10"),
    "resnet50-cifar100": Row(4096, 5, 100, 56, "resnet50_cifar100"),
    "resnet101-cifar100": Row(4096, 5, 100, 58, "resnet101_cifar100"),
    "vgg16_bn-cifar100": Row(4096, 15, 100, 55, "vgg16_cifar100"),
    "resnet18-cifar100": Row(4096, 5, 100, 38, "resnet18_cifar100"),
}
"""By the names of our recipes: those of the printed table, in its order, and what is published without a row of it."""


@dataclass(frozen=True)
class Kept:
    """What is kept of one run: its measures, its audit, its exponents along the other axes where they were made, and so
    the accuracies of the means of its checkpoints' weights."""

    recipe: str
    seed: int
    metrics: RunMetrics
    audit: Audit
    axes: dict[str, RunMetrics]
    means: dict[str, list[float]]

    @property
    def name(self) -> str:
        return f"{self.recipe}, seed {self.seed}"

    def trained(self) -> list[dict[str, Any]]:
        """The measures of every checkpoint but the untrained, None where undefined."""
        return [row for row in rows_of(self.metrics) if not row["untrained"]]

    def untrained(self) -> dict[str, Any] | None:
        return next((row for row in rows_of(self.metrics) if row["untrained"]), None)

    def control(self, name: str, measure: str = "integration") -> Spread | None:
        """An audit's control of a measure."""
        return next((row.measures.get(measure) for row in self.audit.controls if row.name.startswith(name)), None)


class Cell(TypedDict):
    """H_eff of a network on images under labels; accuracy: on the images it was trained for, as training recorded it."""

    run: str
    seed: int | None
    epoch: int | None
    accuracy: float | None
    images: str
    labels: str
    classes: int
    h_eff: float | None


@dataclass(frozen=True)
class Study:
    """Everything that is kept: the runs, noise through each protocol, the comparison of the runs, that of the published
    epochs, the rows as they are printed, networks on the images and labels of both data sets, what a language model
    makes of what it wrote, and networks whose M stands beside noise with their covariance; trainings: what was trained, on what, and for how long."""

    runs: list[Kept]
    noise: dict[str, dict[str, list[float]]]
    comparison: dict[str, Any]
    published: dict[str, Any]
    printed: dict[str, dict[str, str]]
    crossed: list[Cell]
    generated: list[Condition]
    covariance: dict[str, RunMetrics]
    trainings: list[dict[str, str]]
    note: str

    @classmethod
    def read(cls, keep: Path) -> "Study":
        """What a folder keeps; empty what it does not have."""
        noise, comparison, published = (
            _content(keep / f"{name}.json") for name in ("noise", "comparison", "published")
        )
        with (keep / "published_table1.csv").open(newline="") as file:
            rows = dict(zip(ROWS, csv.DictReader(file), strict=False))
        note = keep / "data.txt"
        text = note.read_text().strip() if note.exists() else ""
        crossed = read_json(keep / "classes.json") if (keep / "classes.json").exists() else []
        generated = kept_conditions(keep / "generated.json")
        covariance = {path.stem: read_kept(path) for path in sorted((keep / "covariance").glob("*.json"))}
        with (keep / "trainings.csv").open(newline="") if (keep / "trainings.csv").exists() else io.StringIO() as file:
            trainings = list(csv.DictReader(file))
        return cls(kept_runs(keep), noise, comparison, published, rows, crossed, generated, covariance, trainings, text)


def rows_of(metrics: RunMetrics) -> list[dict[str, Any]]:
    """One row for every checkpoint."""
    return [
        {"epoch": checkpoint.epoch, "untrained": checkpoint.untrained}
        | {key: known(float(measured.value[e])) for key, measured in metrics.measures.items()}
        for e, checkpoint in enumerate(metrics.checkpoints)
    ]


def known(value: float) -> float | None:
    """None for what is undefined."""
    return None if math.isnan(value) else value


def mean(metrics: RunMetrics, measure: str) -> float | None:
    """Of a measure over the trained checkpoints."""
    return known(metrics.measures[measure].summary.mean)


def correlation(metrics: RunMetrics, name: str) -> float | None:
    """Pearson r of two measures over the trained checkpoints."""
    return known(metrics.summary.correlations[name].r)


def kept_runs(keep: Path) -> list[Kept]:
    """All runs that are kept, in the order of the printed table and of their seeds."""
    runs = []
    for run in ROWS:
        for folder in sorted((keep / run).glob("seed-*"), key=lambda folder: int(folder.name[5:])):
            if (folder / "audit.json").exists():
                files = {axis: folder / f"{axis}.json" for axis in ("depth", "epoch", "smoothing")}
                axes = {axis: read_kept(file) for axis, file in files.items() if file.exists()}
                metrics, audit = read_kept(folder / "metrics.json"), load_audit(folder / "audit.json")
                means = _content(folder / "means.json")
                runs.append(Kept(run, int(folder.name[5:]), metrics, audit, axes, means))
    return runs


def read_kept(path: Path) -> RunMetrics:
    """Measures, of which only what the page needs may be all that is left (`pruned`)."""
    metrics: RunMetrics = typed(RunMetrics, read_json(path, 2**30))
    return metrics


def pruned(metrics: RunMetrics) -> dict[str, Any]:
    """Only what the page shows, as JSON: between dozens of layers there is much more."""
    table = np.empty((0, 0))
    measures = {key: replace(m, by_layer=table, by_unit=table) for key, m in metrics.measures.items()}
    nothing = Representation(table, table, table, table, np.empty((0, 0, 0)))
    small = replace(
        metrics, measures=measures, units=(), fluctuation=(), phase_locking=Locking(), representation=nothing
    )
    return small.to_dict()


def figures(keep: Path) -> dict[str, tuple[str, list[Path]]]:
    """The page's figures: file -> the figure, and what it is of."""
    every = [keep / run.recipe / f"seed-{run.seed}" / "metrics.json" for run in kept_runs(keep)]
    files = {"audit.svg": ("audit", every[:1]), "measures.svg": ("measures", every[:1])}
    if len(every) > 1:
        files |= {"runs.svg": ("runs", every), "stopping.svg": ("stopping", every)}
    return files


def _content(path: Path) -> dict[str, Any]:
    """A JSON file's content; empty where there is none."""
    if not path.exists():
        return {}
    content: dict[str, Any] = json.loads(path.read_text())
    return content
