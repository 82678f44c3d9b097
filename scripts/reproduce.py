#!/usr/bin/env python3
"""Carry out the study of arXiv 2604.09716 run by run: train, replay, measure beside the nulls, audit.

Checkpoints and activations go to OUT/RUN/seed-S; the measures of each run, metrics.json and audit.json, are kept in
KEEP/RUN/seed-S. Whatever is there already is not done again.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

# Of each run the images of the probe, the smoothing, and the epochs it was published with.
PROTOCOLS = {
    "resnet18-cifar10": (2048, 5, 25),
    "resnet34-cifar10": (2048, 5, 27),
    "resnet152-cifar10": (2048, 5, 38),
    "densenet121-cifar10": (4096, 15, 25),
    "mobilenet_v2-cifar10": (4096, 15, 27),
    "vit_b_16-cifar10": (256, 5, 30),
    "resnet50-cifar100": (4096, 5, 56),
    "resnet101-cifar100": (4096, 5, 58),
    "vgg16_bn-cifar100": (4096, 15, 55),
}
SEEDS = (42, 123, 1000, 1337, 2026)
"""Those of the published runs over several seeds, the first being that of the single ones."""
HERE = Path(__file__).parent


def reproduce(run: str, seed: int, args: argparse.Namespace) -> None:
    """All stages of one run that are not done yet."""
    images, smooth, epochs = PROTOCOLS[run]
    folder, kept = args.out / run / f"seed-{seed}", args.keep / run / f"seed-{seed}"
    if (kept / "audit.json").exists():
        print(f"{kept}: done", flush=True)
        return
    data = args.data or run.rpartition("-")[2]
    activations = folder / "activations.h5"
    posthoc = [sys.executable, "-c", "from posthoc.cli import main; main()"]
    train = [
        sys.executable,
        HERE / "train.py",
        run,
        "--data",
        data,
        "--seed",
        seed,
        "--epochs",
        epochs,
        "--out",
        folder,
    ]
    extract = [*posthoc, "extract", folder, "--probe", data, "--images", images, "-o", activations]
    smoothing = ["--smooth", smooth, "-o"]
    if not activations.exists():
        _call(*train, "--device", args.device)
        _call(*extract, "--device", args.device)
    for command, name in (("metrics", "metrics.json"), ("audit", "audit.json")):
        if not (folder / name).exists():
            _call(*posthoc, command, activations, *smoothing, folder / name)
    kept.mkdir(parents=True, exist_ok=True)
    for name in ("metrics.json", "audit.json"):  # the audit last: with it the run counts as done
        shutil.copyfile(folder / name, kept / name)


def _call(*words: object) -> None:
    subprocess.run([str(word) for word in words], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", default=",".join(PROTOCOLS), help="which, separated by commas (default: all nine)")
    parser.add_argument("--seeds", type=int, default=1, help=f"how many of {SEEDS} (default: 1)")
    parser.add_argument("--data", help="npz:FILE or imagefolder:DIR instead of the run's own data set")
    parser.add_argument("--out", type=Path, default=Path("runs/reproduction"), help="default: runs/reproduction")
    parser.add_argument("--keep", type=Path, default=Path("data/reproduction"), help="default: data/reproduction")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    args = parser.parse_args()
    runs = args.runs.split(",")
    if unknown := [run for run in runs if run not in PROTOCOLS]:
        parser.error(f"no run is called {', '.join(unknown)}; there are {', '.join(PROTOCOLS)}")
    for run in runs:
        for seed in SEEDS[: args.seeds]:
            try:
                reproduce(run, seed, args)
            except subprocess.CalledProcessError as error:
                sys.exit(f"reproduce.py: {run}, seed {seed}, stopped: {error}")


if __name__ == "__main__":
    main()
