"""Carry out the study of arXiv 2604.09716 and write one page of results.

Each run is trained (checkpoints only), replayed, measured beside its nulls and audited, in OUT/RUN/seed-S; then all runs
are compared, and the page is written from what is kept of them in KEEP: metrics.json, audit.json and the exponents along
the other two axes. Whatever is there already is not done again. A run whose measures are kept is done, though its
checkpoints be gone.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from posthoc.analysis.arrays import correlation, mean_finite
from posthoc.analysis.records import load_metrics
from posthoc.analysis.runs import load_csv
from posthoc.files import replacing
from posthoc.replay.probes.images import load_images
from posthoc.shown import shown
from reproduction.foretelling import DATASETS, LAST, between_seeds, files_of, of_means
from reproduction.kept import ROWS, figures, kept_runs, pruned
from reproduction.noise import of_noise
from reproduction.page import page

SEEDS = (42, 123, 1000, 1337, 2026)
"""Those of the published runs over several seeds, the first being that of the single ones."""
HERE = Path(__file__).parent
POSTHOC = (sys.executable, "-P", "-m", "posthoc")
DEPTH_IMAGES = 512
DEPTH_LAYERS = {"densenet121": "*.conv2", "resnet50": "*.conv?", "resnet101": "*.conv?", "resnet152": "*.conv3"}
"""The hook points that are a series in depth, where there are hundreds; elsewhere all."""


def reproduce(run: str, seed: int, args: argparse.Namespace) -> None:
    """All stages of one run that are not done yet."""
    row = ROWS[run]
    images, epochs = min(row.images, args.images or row.images), min(row.epochs, args.epochs or row.epochs)
    folder, kept = args.out / run / f"seed-{seed}", args.keep / run / f"seed-{seed}"
    activations, depth, means = (folder / f"{name}.h5" for name in ("activations", "depth", "means"))
    if (kept / "audit.json").exists() and not activations.exists():
        print(f"{kept}: done", flush=True)
        return
    data = args.data or run.rpartition("-")[2]
    there = load_images(data).classes
    if there != row.classes:
        sys.exit(f"{shown(run)} is of {row.classes} classes, {shown(data)} of {there}; give its own --data.")
    if not activations.exists():
        train = [sys.executable, HERE / "train.py", run, "--data", data, "--seed", seed, "--epochs", epochs]
        train += ["--out", folder, "--device", args.device]
        train += ["--bfloat16"] if torch.cuda.is_available() and args.device != "cpu" else []
        train += ["--weights", args.weights] if args.weights and run.startswith("vit") else []
        _call(*train)
    extract = [*POSTHOC, "extract", folder, "--probe", data, "--device", args.device]
    if not activations.exists():
        _call(*extract, "--images", images, "-o", activations)
    if not depth.exists():  # the four layers of the probe are no series
        layers = DEPTH_LAYERS.get(run.split("-")[0], "all")
        few = ["--layers", layers, "--channels", 8, "--signals", "mean", "--images", min(images, DEPTH_IMAGES)]
        _call(*extract, *few, "-o", depth)
    if not means.exists():
        few = ["--channels", 1, "--signals", "mean", "--images", images, "--average", LAST]
        _call(*extract, *few, "-o", means)
    _save(kept / "means.json", json.dumps(of_means(means), indent=1))
    measures = {
        "metrics.json": ["metrics", activations, "--smooth", row.smooth],
        "smoothing.json": ["metrics", activations, "--smooth", 20 - row.smooth, "--nulls", 0],  # 15 for 5, 5 for 15
        "epoch.json": ["metrics", activations, "--axis", "epoch"],
        "depth.json": ["metrics", depth, "--axis", "depth"],
        "audit.json": ["audit", activations, "--smooth", row.smooth],  # the last: with it the run counts as done
    }
    if epochs < LEAST_POINTS:
        del measures["epoch.json"]
    for name, words in measures.items():
        if not (folder / name).exists():
            _call(*POSTHOC, *words, "-o", folder / name)
        if name in ("metrics.json", "audit.json"):
            content = json.loads((folder / name).read_text())
        else:
            content = pruned(load_metrics(folder / name))
        # where the file of images lay is nothing of the run, and tells one data set from itself
        _save(kept / name, json.dumps(content, indent=1).replace(data, without_folder(data)))


def without_folder(data: str) -> str:
    """A data set's name without the folder of its file.

    >>> without_folder("npz:runs/cifar10.npz"), without_folder("cifar10")
    ('npz:cifar10.npz', 'cifar10')
    """
    kind, colon, place = data.partition(":")
    return f"{kind}{colon}{Path(place).name}"


LEAST_POINTS = 20
"""Checkpoints without which there is no exponent along the epochs."""


def noise(keep: Path) -> None:
    """What pure noise gives through the protocols of all rows."""
    noises = {
        protocol: of_noise(np.arange(row.images) % row.classes, row.smooth)
        for protocol, row in sorted({row.protocol: row for row in ROWS.values()}.items())
    }
    _save(keep / "noise.json", json.dumps(noises, indent=1))


def read_published(keep: Path, folder: Path) -> None:
    """The comparison of the published epochs, and of each run with enough of them how H itself goes with M."""
    files = [str(path) for path in sorted(folder.glob("*_cifar10*.csv"))]
    words = [*POSTHOC, "compare", "--from-csv", *files, "--by", "dataset", "--stopping", "--sensitivity", "--json"]
    content = json.loads(_call(*words))
    content["hurst"] = [
        {
            "run": run.name,
            "hurst_mean": mean_finite(run.column("hurst")),
            "r_hurst_m": correlation(run.column("hurst"), run.column("metastability")),
            "r_fields": run.summary.correlations["integration_metastability"].r,
        }
        for run in load_csv(files, {"hurst": "H_raw"})
        if run.measures["integration"].summary.count > 3
    ]
    content["seeds"] = {}
    for path in sorted((folder / "seeds").glob("*_seed*.csv")):
        if not path.stem.endswith("_v1"):  # first versions, which the authors replaced
            [run] = load_csv([str(path)])
            content["seeds"].setdefault(path.stem.rpartition("_seed")[0], []).append(
                run.summary.correlations["integration_metastability"].r
            )
    content["prediction"] = {
        dataset: json.loads(
            _call(*POSTHOC, "compare", "--from-csv", *files_of(folder, dataset), "--predict", "all", "--json")
        )["prediction"]
        for dataset in DATASETS
    }
    content["between_seeds"] = between_seeds(folder)
    _save(keep / "published.json", json.dumps(content, indent=1))


def compare(keep: Path, out: Path) -> None:
    """The comparison of all kept runs, as JSON."""
    runs = [keep / run.recipe / f"seed-{run.seed}" / "metrics.json" for run in kept_runs(keep)]
    _save(out, _call(*POSTHOC, "compare", *runs, "--by", "model", "--stopping", "--sensitivity", "--json"))


def draw(keep: Path) -> None:
    """The figures of the page."""
    for name, (figure, places) in figures(keep).items():
        (keep / "figures").mkdir(exist_ok=True)
        words = ["--figure", figure, "-o", keep / "figures" / name, "--width", 500, "--force"]
        _call(*POSTHOC, "report", *places, *words)


def check(keep: Path) -> list[str]:
    """What of the page and the comparison is not what the kept measures give; nothing if all is."""
    wrong = []
    with tempfile.TemporaryDirectory() as folder:
        compare(keep, Path(folder) / "comparison.json")
        if not _alike(*(json.loads((place / "comparison.json").read_text()) for place in (Path(folder), keep))):
            wrong.append(f"{keep / 'comparison.json'} is not what the kept runs give")
    there = (keep / "README.md").read_text().splitlines()
    ours = page(keep).splitlines()
    for number in range(max(len(ours), len(there))):
        a, b = (lines[number] if number < len(lines) else "" for lines in (there, ours))
        if a != b:
            wrong.append(f"{keep / 'README.md'}, line {number + 1}: {a!r} there, {b!r} from the files")
    return wrong


def _alike(a: Any, b: Any) -> bool:
    """Whether two contents of JSON files are equal, numbers but for rounding, which processors do differently."""
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-9)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_alike, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_alike(a[key], b[key]) for key in a)
    return bool(a == b)


def _call(*words: object) -> str:
    """Run a command; what it prints, which is shown where it is no JSON."""
    done = subprocess.run([str(word) for word in words], check=True, stdout=subprocess.PIPE, text=True)
    if not done.stdout.startswith("{"):
        print(done.stdout, end="", flush=True)
    return done.stdout


def _save(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text.rstrip() + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", default=",".join(ROWS), help="which, separated by commas (default: all nine)")
    parser.add_argument("--seeds", type=int, default=1, help=f"how many of {SEEDS} (default: 1)")
    parser.add_argument("--data", help="npz:FILE or imagefolder:DIR instead of the run's own data set")
    parser.add_argument("--data-note", help="what is to be said of these images on the page")
    parser.add_argument("--weights", help="file of the weights that the ViT starts from (default: torchvision's)")
    parser.add_argument("--published", type=Path, help="folder of CSV files of epochs published with the paper")
    parser.add_argument("--out", type=Path, default=Path("runs/reproduction"), help="default: runs/reproduction")
    parser.add_argument("--keep", type=Path, default=Path("data/reproduction"), help="default: data/reproduction")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    parser.add_argument("--epochs", type=int, help="at the most so many, for a rehearsal")
    parser.add_argument("--images", type=int, help="at the most so many in the probe, for a rehearsal")
    parser.add_argument("--page", action="store_true", help="train nothing; write the page of what is kept")
    parser.add_argument("--check", action="store_true", help="only say whether the page is what the kept files give")
    args = parser.parse_args()
    if args.check:
        if wrong := check(args.keep):
            sys.exit("\n".join(wrong))
        print(f"{args.keep / 'README.md'} is what the kept files give")
        return
    if (args.epochs or args.images) and parser.get_default("keep") == args.keep:
        parser.error("a rehearsal (--epochs, --images) is no result: give it a --keep and an --out of its own")
    runs = args.runs.split(",")
    if unknown := [run for run in runs if run not in ROWS]:
        parser.error(f"no run is called {', '.join(unknown)}; there are {', '.join(ROWS)}")
    for run in [] if args.page else runs:
        for seed in SEEDS[: args.seeds]:
            try:
                reproduce(run, seed, args)
            except subprocess.CalledProcessError as error:
                sys.exit(f"{run}, seed {seed}, stopped: {shown(error)}")
    args.keep.mkdir(parents=True, exist_ok=True)
    if args.data_note:
        _save(args.keep / "data.txt", args.data_note)
    if not kept_runs(args.keep):
        sys.exit(f"{args.keep} holds no runs to write of")
    if not (args.keep / "noise.json").exists():
        noise(args.keep)
    if args.published:
        read_published(args.keep, args.published)
    compare(args.keep, args.keep / "comparison.json")
    draw(args.keep)
    _save(args.keep / "README.md", page(args.keep))
    args.out.mkdir(parents=True, exist_ok=True)
    _call(*POSTHOC, "report", args.keep, "-o", args.out / "report.html", "--force")
    print(args.keep / "README.md")


if __name__ == "__main__":
    main()
