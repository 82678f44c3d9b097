"""Put every measure on trial over small runs of many kinds: train them, measure them, and write what the measures foretell.

Runs lie in OUT/DATA/CONFIGURATION/seed-S; what is there already is not done again. What the page needs is kept in KEEP,
epoch by epoch, and the page follows from that alone.
"""

import argparse
import csv
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import posthoc
from posthoc.analysis.records import RunMetrics, load_metrics
from posthoc.files import replacing
from reproduction.trial_tables import page

HERE = Path(__file__).parent
DATASETS = ("digits", "cifar10")
CHANNELS = 12
"""Of each layer, as many as the narrowest network has."""


@dataclass(frozen=True)
class Job:
    """A run to be made: of which data set, how, by which seed, and where; faulty: what is wrong with it by plan; draw: of
    which draw of configurations it is."""

    dataset: str
    place: str | None
    how: Any
    seed: int
    folder: Path
    faulty: str = ""
    draw: int = 1


def jobs(out: Path, place: str | None, configurations: int | None = None) -> Iterator[Job]:
    """All runs, the sound ones first; of so many configurations of each data set, at the most."""
    from reproduction.small import COUNT, FAULTY, SEEDS
    from reproduction.small import configurations as drawn

    for dataset in DATASETS:
        of = place if dataset == "cifar10" else None
        for seed in SEEDS:
            for k, how in enumerate(drawn(dataset)[:configurations]):
                yield Job(dataset, of, how, seed, out / dataset / how.name / f"seed-{seed}", draw=1 + k // COUNT)
    for dataset in DATASETS:
        of = place if dataset == "cifar10" else None
        for what, how in FAULTY.items():
            yield Job(dataset, of, how, 1, out / "faulty" / dataset / what.replace(" ", "-"), what)


def measure(job: Job) -> None:
    """Train a run, replay it and measure all that can be; nothing is drawn, for ranks need no nulls."""
    from reproduction.small import PROBE_IMAGES, layers, train

    output = job.folder / "metrics.json"
    if output.exists():
        return
    train(job.dataset, job.place, job.how, job.seed, job.folder)
    activations = posthoc.extract(
        job.folder, job.place or job.dataset, job.folder / "activations.h5", force=True, model=f"{HERE / 'small.py'}:network",
        model_arg=[f"width={job.how.width}", f"depth={job.how.depth}"], layers=layers(job.how.depth), channels=CHANNELS,
        images=PROBE_IMAGES, features=True, average=[3], between=True, spectra=True, device="cpu",
    )  # fmt: skip
    posthoc.compute_metrics(activations, nulls=0, measures="all").save(output)
    activations.unlink()


def keep(rows: list[tuple[Job, RunMetrics]], place: Path) -> None:
    """What the page needs of the runs that are measured: their epochs, what their measures are, and their health."""
    place.mkdir(parents=True, exist_ok=True)
    about: dict[str, dict[str, Any]] = {}
    for dataset in DATASETS:
        sound = [(job, metrics) for job, metrics in rows if job.dataset == dataset and not job.faulty]
        lines: list[dict[str, Any]] = []
        for job, metrics in sound:
            about |= {
                key: {"symbol": of.symbol, "looks_ahead": bool(of.looks_ahead)} for key, of in metrics.measures.items()
            }
            about["learning_rate"] = {"symbol": "learning rate", "looks_ahead": False}
            for e in np.flatnonzero(metrics.trained):
                numbers = {key: _short(float(of.value[e])) for key, of in metrics.measures.items()}
                numbers["learning_rate"] = _short(job.how.lr_at(metrics.when[e]))
                about_run = {**asdict(job.how), "draw": job.draw, "seed": job.seed, "epoch": metrics.when[e]}
                lines.append({**about_run, **numbers})
        if lines:
            _write_csv(place / f"{dataset}.csv", lines)
    health = [
        {
            "dataset": job.dataset, "configuration": job.how.name, "seed": job.seed, "faulty": job.faulty,
            "accuracy": _short(float(metrics.measures["accuracy"].value[-1])),
            "symptoms": [asdict(symptom) | {"at": metrics.when[symptom.began]} for symptom in metrics.health],
        }
        for job, metrics in rows
    ]  # fmt: skip
    for name, content in (("measures", about), ("health", health)):
        with replacing(place / f"{name}.json") as temporary:
            temporary.write_text(json.dumps(content, indent=1, default=_short) + "\n")


def _short(value: float) -> str:
    """A number to six digits; nothing where it is undefined."""
    return "" if np.isnan(value) else f"{value:.6g}"


def _write_csv(path: Path, lines: list[dict[str, Any]]) -> None:
    names = list(dict.fromkeys(name for line in lines for name in line))
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", metavar="SPEC", help="where CIFAR-10 is, such as npz:FILE (default: data/)")
    parser.add_argument("--configurations", type=int, help="at the most so many of each data set, for a rehearsal")
    parser.add_argument("--out", type=Path, default=Path("runs/trial"), help="default: runs/trial")
    parser.add_argument("--keep", type=Path, default=Path("data/trial"), help="default: data/trial")
    parser.add_argument("--docs", type=Path, default=Path("docs/trial.md"), help="the page (default: docs/trial.md)")
    parser.add_argument("--page", action="store_true", help="train nothing; write the page of what is kept")
    parser.add_argument("--check", action="store_true", help="only say whether the page is what the kept files give")
    args = parser.parse_args()
    if args.check:
        if args.docs.read_text() != page(args.keep):
            sys.exit(f"{args.docs} is not what {args.keep} gives")
        print(f"{args.docs} is what {args.keep} gives")
        return
    if not args.page:
        import torch

        torch.set_num_threads(1)  # of networks so small that more would wait for each other
        rows = []
        for job in jobs(args.out, args.cifar10, args.configurations):
            measure(job)
            rows.append((job, load_metrics(job.folder / "metrics.json")))
            print(job.folder, flush=True)
        keep(rows, args.keep)
    with replacing(args.docs) as temporary:
        temporary.write_text(page(args.keep))
    print(args.docs)


if __name__ == "__main__":
    main()
