"""Small networks trained in many ways, seconds each: runs for putting measures on trial, and some that go wrong.

Each run is a folder: run.json, and a file of weights for the untrained network and after every epoch. All of it follows
from the configuration and the seed.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from posthoc.replay.probes.images import NORMALIZATIONS, Images, load_images
from reproduction.train import MOMENTUM, Batches, Recipe, checkpoint, claim, evaluate, save, train_epoch

EPOCHS = 12
SEEDS = (1, 2)
TRAIN_IMAGES = {"digits": 800, "cifar10": 1600}
"""The first so many; small sets, of which networks learn more than is true of others."""
PROBE_IMAGES = 500
"""The first so many test images: on them the accuracy is, and all that is measured."""

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda share: 1.0,
    "cosine": lambda share: 0.5 * (1 + math.cos(math.pi * share)),
    "steps": lambda share: 1.0 if share < 0.5 else 0.1 if share < 0.75 else 0.01,
}
"""The learning rate at a share of the training, as one of its first."""


@dataclass(frozen=True)
class Configuration:
    """How a network is trained; noise: the share of training labels drawn at random; bias: what is added to those of the
    first layer before training."""

    width: int
    depth: int
    lr: float
    schedule: str
    weight_decay: float
    batch: int
    noise: float
    bias: float = 0.0

    @property
    def name(self) -> str:
        """As its folder is called."""
        decay, faulty = f"{self.weight_decay:g}", f"-bias{self.bias:g}" if self.bias else ""
        return (
            f"w{self.width}-d{self.depth}-lr{self.lr:g}-{self.schedule}-wd{decay}-b{self.batch}-n{self.noise:g}{faulty}"
        )

    def lr_at(self, epoch: int, epochs: int = EPOCHS) -> float:
        """The learning rate during an epoch, the first being 1.

        >>> [round(SOUND.lr_at(epoch), 4) for epoch in (1, 12)]
        [0.03, 0.03]
        """
        return self.lr * SCHEDULES[self.schedule]((epoch - 1) / epochs)


CHOICES: dict[str, tuple[Any, ...]] = {
    "width": (12, 16, 24),
    "depth": (3, 4, 5),
    "lr": (0.01, 0.03, 0.1),
    "schedule": tuple(SCHEDULES),
    "weight_decay": (0.0, 5e-4, 5e-3),
    "batch": (25, 50, 100),
    "noise": (0.0, 0.0, 0.2, 0.4),
}
COUNT, DRAWS = 16, 2
"""Configurations of each data set: so many at once, so many times."""


def configurations(dataset: str) -> list[Configuration]:
    """`COUNT` of them `DRAWS` times: each time every choice of a factor about as often as any other, paired at random."""
    random, drawn = np.random.default_rng([*dataset.encode()]), []
    for _ in range(DRAWS):
        columns = {
            factor: [choices[k % len(choices)] for k in random.permutation(COUNT)]
            for factor, choices in CHOICES.items()
        }
        drawn += [Configuration(**{factor: column[k] for factor, column in columns.items()}) for k in range(COUNT)]
    return drawn


SOUND = Configuration(16, 4, 0.03, "constant", 5e-4, 50, 0.0)
FAULTY: Mapping[str, Configuration] = {
    "rate far too high": replace(SOUND, lr=3.0),
    "rate too high": replace(SOUND, lr=0.6),
    "dead first layer": replace(SOUND, bias=-30.0),
    "weights decay to nothing": replace(SOUND, weight_decay=0.9),
}
"""What is wrong by plan -> how such a run is trained."""


def network(width: int = 16, depth: int = 4, classes: int = 10, bias: float = 0.0) -> nn.Module:
    """Convolutions with ReLU, of which the first three halve the side; the mean over places; one linear layer."""
    layers: list[nn.Module] = []
    for k in range(depth):
        convolution = nn.Conv2d(width if k else 3, width, 3, stride=2 if k < 3 else 1, padding=1)
        nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
        with torch.no_grad():
            convolution.bias = nn.Parameter(torch.full((width,), bias if k == 0 else 0.0))
        layers.append(nn.Sequential(convolution, nn.ReLU()))
    return Network(nn.Sequential(*layers), nn.Linear(width, classes))


class Network(nn.Module):
    """Blocks, the mean over places, and a linear layer."""

    def __init__(self, blocks: nn.Sequential, head: nn.Linear) -> None:
        super().__init__()
        self.blocks, self.head = blocks, head

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.head(self.blocks(images).mean((2, 3)))
        return scores


def layers(depth: int) -> tuple[str, ...]:
    """Those that are recorded: first, middle and last."""
    return tuple(f"blocks.{k}" for k in (0, depth // 2, depth - 1))


@cache
def images(dataset: str, place: str | None, split: str, count: int | None = None) -> Images:
    """The first so many of the data set of that name, or at another place."""
    data = load_images(place or dataset, split)
    return data.take(np.arange(count or (TRAIN_IMAGES[dataset] if split == "train" else PROBE_IMAGES)))


def noisy(data: Images, share: float, seed: int) -> Images:
    """With that share of labels drawn from all classes alike."""
    random = np.random.default_rng(seed)
    drawn = random.random(len(data)) < share
    return replace(data, targets=np.where(drawn, random.integers(0, data.classes, len(data)), data.labels))


def train(
    dataset: str,
    place: str | None,
    how: Configuration,
    seed: int,
    out: Path,
    epochs: int = EPOCHS,
    count: int | None = None,
) -> None:
    """Train a run in the folder `out`, unless it is there wholly.

    place: of the images, where they are not of the data set's usual place; count: of them for training, where not
    `TRAIN_IMAGES`.
    """
    if checkpoint(out, epochs).exists():
        return
    data, test = noisy(images(dataset, place, "train", count), how.noise, seed), images(dataset, place, "test")
    statistics = NORMALIZATIONS[dataset]
    out.mkdir(parents=True, exist_ok=True)
    claim(out, {
        "recipe": how.name, **asdict(how), "dataset": dataset, "num_classes": data.classes, "seed": seed,
        "normalization": {"mean": list(statistics.mean), "std": list(statistics.std)},
    })  # fmt: skip
    recipe = Recipe("small", dataset, how.lr, how.weight_decay, batch=how.batch, flip=dataset != "digits")
    device = torch.device("cpu")
    training, testing = (Batches(split, recipe, device) for split in (data, test))
    torch.manual_seed(seed)
    model = network(how.width, how.depth, data.classes, how.bias).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), how.lr, MOMENTUM, weight_decay=how.weight_decay)
    larger = replace(recipe, batch=500)
    for epoch in range(epochs + 1):
        numbers: dict[str, float] = {"step": epoch * -(-len(training) // how.batch)}
        if epoch:
            for group in optimizer.param_groups:
                group["lr"] = how.lr_at(epoch, epochs)
            numbers["train_loss"] = train_epoch(model, optimizer, training, recipe, seed * 1_000_003 + epoch)
        val_loss, val_acc = evaluate(model, testing, larger)
        save(model, out, epoch, numbers | {"val_loss": val_loss, "val_acc": val_acc})
