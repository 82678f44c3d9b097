"""`torchvision:NAME`: data sets of labelled images that torchvision finds on disk."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from posthoc.errors import PosthocError, UsageError
from posthoc.replay.probes.archives import Samples
from posthoc.replay.probes.arrays import of_samples
from posthoc.replay.probes.images import Normalization, absent, data_root, first_rows, opened, square, wanted_size
from posthoc.replay.probes.probe import Asked, Kind, Probe

if TYPE_CHECKING:
    from posthoc.replay.models import Model


@dataclass(frozen=True)
class Held:
    """A data set of torchvision's.

    classes: how many; splits: the names that its argument `split` takes, or of its argument `train`, False and True;
    pictures: whether it is of files that differ in size and are sorted by class; arguments: what else it is made with.
    """

    classes: int
    splits: tuple[str, ...] = ()
    pictures: bool = False
    arguments: Mapping[str, str] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """Of its splits, that taken unless told otherwise first."""
        return self.splits or ("test", "train")

    def made_with(self, split: str) -> dict[str, Any]:
        """The arguments for a split."""
        return {**self.arguments, **({"split": split} if self.splits else {"train": split == "train"})}


EMNIST = {"balanced": 47, "byclass": 62, "bymerge": 47, "digits": 10, "letters": 27, "mnist": 10}
"""Classes of its parts; those of letters count from 1."""
HELD = {
    **{name: Held(10) for name in ("MNIST", "FashionMNIST", "KMNIST", "USPS", "CIFAR10")},
    "CIFAR100": Held(100),
    "SVHN": Held(10, ("test", "train", "extra")),
    "STL10": Held(10, ("test", "train", "unlabeled")),
    "DTD": Held(47, ("test", "val", "train"), pictures=True),
    "FGVCAircraft": Held(100, ("test", "val", "train", "trainval"), pictures=True),
    "Flowers102": Held(102, ("test", "val", "train"), pictures=True),
    "Food101": Held(101, ("test", "train"), pictures=True),
    "GTSRB": Held(43, ("test", "train"), pictures=True),
    "OxfordIIITPet": Held(37, ("test", "trainval"), pictures=True),
}  # fmt: skip
HELD |= {f"EMNIST/{part}": Held(classes, arguments={"split": part}) for part, classes in EMNIST.items()}


def load(asked: Asked, model: "Model") -> Probe:
    """The probe of a data set of torchvision's, as this network takes it."""
    check(asked)
    samples = read_samples(asked, wanted_size(asked, model))
    probe = of_samples(samples, asked, model)
    return replace(probe, notes=[*probe.notes, ("split", _split(asked))])


def read_samples(asked: Asked, size: int | None = None) -> Samples:
    """The first samples, spread evenly where they are sorted by class; size: of pictures that differ in it."""
    from PIL import Image

    held, root = HELD[asked.place], data_root(asked.root)
    scale = square(size) if held.pictures and size else None
    name = asked.place.partition("/")[0]
    data = opened(name, root, asked.download, transform=scale, **held.made_with(_split(asked)))
    rows = first_rows(len(data), asked.samples, asked.spec)
    if held.pictures:
        rows = rows * len(data) // len(rows)
    images, labels = [], []
    for row in rows:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                image, label = data[int(row)]
                images.append(np.asarray(image))
        except MemoryError:
            raise
        except Exception as error:  # whatever Pillow's many readers raise
            raise PosthocError(
                f"{asked.spec}: image {row} cannot be read ({str(error) or type(error).__name__}); fetch the data set again."
            ) from error
        labels.append(label)
    if len({image.shape for image in images}) > 1:
        raise PosthocError(
            f"The images of {asked.spec} differ in size; pass --image-size to scale and crop them to one."
        )
    unlabelled = set(labels) == {-1}
    targets = None if unlabelled else np.asarray(labels, dtype=np.int64)
    return Samples(asked.spec, {"images": np.stack(images)}, targets, rows, None if unlabelled else held.classes)


def _split(asked: Asked) -> str:
    return str(asked.options.get("split") or HELD[asked.place].names[0])


def check(asked: Asked) -> None:
    """Raise UsageError for a name or split that is not in `HELD`, PosthocError where no data sets lie."""
    held = HELD.get(asked.place)
    if held is None:
        raise UsageError(f"--probe {asked.spec}: give torchvision: and one of {', '.join(HELD)}.")
    if _split(asked) not in held.names:
        raise UsageError(f"--split {_split(asked)}: {asked.place} has {', '.join(held.names)}; give one of these.")
    root = data_root(asked.root)
    if not asked.download and not Path(root).is_dir():
        raise PosthocError(absent(asked.place, root))
    if asked.options.get("normalize"):
        Normalization.parse(asked.options["normalize"])


KINDS = {"torchvision": Kind(load, check, ("image_size", "normalize", "split", "data_root", "download"))}
