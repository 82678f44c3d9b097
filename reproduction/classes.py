"""Networks on the images of two data sets, under labels of 10, 20 and 100 classes: what does H_eff follow?

    python -m reproduction.classes runs/resnet18-cifar10 runs/resnet18-cifar100 --cifar10 FILE.npz --cifar100 FILE.npz
    python -m reproduction.classes --other resnet20.th networks.py:resnet20 imagenet --cifar10 FILE.npz --cifar100 FILE.npz

Each RUN is a folder of `reproduction.train`; of other people's checkpoints (--other, of networks of CIFAR-10's classes) the
network is given, too. The untrained and the last checkpoint of a RUN are replayed over the same test images of both data sets. Labels are the data sets' own, CIFAR-100's coarse ones among them, and such as split or join classes at
random, which changes neither network nor image. H_eff of every network, images and labels, and of pure noise under the
same labels, is kept in KEEP/classes.json; a run that is there already is measured anew.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

import posthoc
from posthoc.analysis.altered import Altered
from posthoc.analysis.protocol import Protocol
from posthoc.files import read_json, replacing
from reproduction.kept import Cell, known
from reproduction.noise import of_noise

IMAGES = 4000
"""The first so many of each class alike: a multiple of every number of classes."""
SMOOTH = 5
SMALL_IMAGES = 20_000
"""The first so many of the training images, on which the small networks are trained for 12 epochs."""
Labels = NDArray[np.int64]
LabelSet = tuple[str, str, NDArray[np.uint8], Labels]
"""Of which data set images are, what their labels are, the images and the labels."""


def balanced(labels: Labels, count: int) -> NDArray[np.int64]:
    """Places of the first `count` samples, as many of every class, in their order.

    >>> balanced(np.array([0, 0, 0, 1, 1, 0]), 4).tolist()
    [0, 1, 3, 4]
    """
    classes = np.unique(labels)
    return np.sort(np.concatenate([np.flatnonzero(labels == k)[: count // len(classes)] for k in classes]))


def split(labels: Labels, parts: int, seed: int = 0) -> Labels:
    """Every class divided at random into so many of the same size.

    >>> np.unique(split(np.repeat([0, 1], 6), 3), return_counts=True)[1].tolist()
    [2, 2, 2, 2, 2, 2]
    """
    random, result = np.random.default_rng(seed), np.empty_like(labels)
    for k in np.unique(labels):
        places = random.permutation(np.flatnonzero(labels == k))
        result[places] = k * parts + np.arange(len(places)) % parts
    return result


def joined(labels: Labels, parts: int, seed: int = 0) -> Labels:
    """So many classes at random made one.

    >>> np.unique(joined(np.repeat(range(6), 2), 3), return_counts=True)[1].tolist()
    [6, 6]
    """
    order = np.random.default_rng(seed).permutation(int(labels.max()) + 1)
    places: Labels = order[labels] // parts
    return places


def label_sets(cifar10: Path, cifar100: Path) -> Iterator[LabelSet]:
    """The test images of both data sets under every labelling."""
    with np.load(cifar10) as file:
        own = file["y_test"]
        chosen = balanced(own, IMAGES)
        images, own = file["x_test"][chosen], own[chosen]
    for name, labels in (("own", own), ("each in 2", split(own, 2)), ("each in 10", split(own, 10))):
        yield "CIFAR-10", name, images, labels
    with np.load(cifar100) as file:
        own, coarse = file["y_test"], file["coarse_test"]
        chosen = balanced(own, IMAGES)
        images, own, coarse = file["x_test"][chosen], own[chosen], coarse[chosen]
    for name, labels in (("ten own as one", joined(own, 10)), ("coarse", coarse), ("own", own)):
        yield "CIFAR-100", name, images, labels


@dataclass(frozen=True)
class Network:
    """One that is measured: how it is called, the file of its weights, and what is known of it."""

    run: str
    weights: Path
    seed: int | None = None
    epoch: int | None = None
    accuracy: float | None = None


def of_run(run: Path) -> list[Network]:
    """The untrained and the last network of a folder of `reproduction.train`."""
    about = json.loads((run / "run.json").read_text())
    every = sorted(run.glob("epoch-*.safetensors"))
    return [
        Network(about["recipe"], file, about["seed"], int(file.stem[6:]), accuracy(file))
        for file in (every[0], every[-1])
    ]


def small(out: Path, dataset: str, place: Path) -> tuple[list[Network], Path | None, dict[str, Any]]:
    """A small network, trained in the folder if it is not there: before and after, its run.json, options of `extract`."""
    from reproduction.small import SOUND, layers, train

    how, folder = replace(SOUND, width=24, depth=5, schedule="cosine"), out / dataset
    train(dataset, f"npz:{place}", how, 1, folder, count=SMALL_IMAGES)
    networks = [replace(network, run=f"small-{dataset}") for network in of_run(folder)]
    arguments = [f"width={how.width}", f"depth={how.depth}", f"classes={100 if dataset == 'cifar100' else 10}"]
    options = {
        "model": f"{Path(__file__).parent / 'small.py'}:network",
        "model_arg": arguments,
        "layers": layers(how.depth),
    }
    return networks, folder / "run.json", options


def measure(networks: Sequence[Network], sets: Sequence[LabelSet], about: Path | None, **options: Any) -> list[Cell]:
    """Every cell of networks of one kind; about: the run.json of theirs; options: those of `extract`."""
    cells: list[Cell] = []
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) / "run"
        kept.mkdir()
        for file in [network.weights for network in networks] + ([about] if about else []):
            (kept / file.name).symlink_to(file.resolve())
        for images in dict.fromkeys(images for images, *_ in sets):
            of = [(name, pixels, labels) for other, name, pixels, labels in sets if other == images]
            own = next(labels for name, _, labels in of if name == "own")
            probe, file = Path(folder) / f"{images}.npz", Path(folder) / f"{images}.h5"
            np.savez(probe, images=of[0][1], labels=own)
            posthoc.extract(kept, f"npz:{probe}", file, images=len(own), signals=["mean"], **options)
            with posthoc.open_activations(file) as activations:
                if not about and images == "CIFAR-10":  # which other people's networks have learned
                    known_by = zip(networks, activations.accuracy, strict=True)
                    networks = [replace(network, accuracy=float(right)) for network, right in known_by]
                for name, _, labels in of:
                    cells += labelled(Altered(activations, labels=labels), networks, images, name)
                    print(
                        networks[0].run, images, name, [cell["h_eff"] for cell in cells[-len(networks) :]], flush=True
                    )
    return cells


def labelled(activations: Altered, networks: Sequence[Network], images: str, name: str) -> list[Cell]:
    """The cells of networks on images under the labels that the activations have."""
    measured = posthoc.compute_metrics(
        activations, Protocol.named("published", smooth=SMOOTH), nulls=0, measures=["integration"]
    )
    return [
        Cell(
            run=network.run, seed=network.seed, epoch=network.epoch, accuracy=network.accuracy, images=images,
            labels=name, classes=len(np.unique(activations.labels)), h_eff=known(float(h_eff)),
        )
        for network, h_eff in zip(networks, measured.column("integration"), strict=True)
    ]  # fmt: skip


def of_pure_noise(sets: Sequence[LabelSet]) -> list[Cell]:
    """What noise gives in place of a network, in the mean over seeds."""
    return [
        Cell(
            run="noise", seed=None, epoch=None, accuracy=None, images=images, labels=name, classes=len(np.unique(labels)),
            h_eff=known(statistics.fmean(of_noise(labels, SMOOTH)["integration"])),
        )
        for images, name, _, labels in sets
    ]  # fmt: skip


def accuracy(file: Path) -> float | None:
    """On the test images, as training recorded it with a checkpoint."""
    with safe_open(file, "pt") as opened:
        recorded = (opened.metadata() or {}).get("val_acc")
    return None if recorded is None else float(recorded)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="*", metavar="RUN")
    parser.add_argument("--other", nargs=3, action="append", default=[], metavar=("FILE", "NETWORK", "NORMALIZE"))
    parser.add_argument(
        "--small", type=Path, help="train a small network of each data set in this folder, minutes each, too"
    )
    parser.add_argument("--cifar10", type=Path, required=True, help="npz file with x_test and y_test")
    parser.add_argument("--cifar100", type=Path, required=True, help="npz file with x_test, y_test and coarse_test")
    parser.add_argument("--keep", type=Path, default=Path("data/reproduction"), help="default: data/reproduction")
    args = parser.parse_args()
    path, sets = args.keep / "classes.json", list(label_sets(args.cifar10, args.cifar100))
    cells: list[Any] = read_json(path) if path.exists() else of_pure_noise(sets)
    of = {"cifar10": args.cifar10, "cifar100": args.cifar100}
    kinds: list[tuple[list[Network], Path | None, dict[str, Any]]] = [
        (of_run(run), run / "run.json", {}) for run in args.runs
    ]
    kinds += [small(args.small, dataset, place) for dataset, place in of.items()] if args.small else []
    for weights, network, normalize in args.other:
        options = {"model": network, "normalize": normalize}
        kinds.append(([Network(f"{Path(weights).stem.partition('-')[0]} of others", Path(weights))], None, options))
    for networks, about, options in kinds:
        measured = measure(networks, sets, about, **options)
        key = measured[0]["run"], measured[0]["seed"]
        cells = [cell for cell in cells if (cell["run"], cell["seed"]) != key] + measured
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(cells, indent=1) + "\n")


if __name__ == "__main__":
    main()
