"""Probes of 8-bit images: the data sets they (or a training run) are taken from, and what a network sees of them."""

import hashlib
import itertools
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import posthoc
from posthoc.errors import PosthocError, UsageError
from posthoc.files import open_regular
from posthoc.recording import image_words, scale_words
from posthoc.replay.probes.archives import Samples, read_samples
from posthoc.replay.probes.probe import Asked, Batch, Kind, Prepare, Probe, as_targets, classes_of, no_classes
from posthoc.shown import counted

if TYPE_CHECKING:
    from posthoc.replay.models import Model

DEFAULT_IMAGES = 2048
"""Images in a probe unless told otherwise (fewer where the data set is smaller)."""


class Normalization(NamedTuple):
    """Per-channel mean and standard deviation of the images a network was trained on, pixels in 0..1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def parse(cls, text: str) -> "Normalization":
        """Read `cifar10`, `none`, ... or `MEAN/STD`, each of one or three comma-separated numbers.

        >>> Normalization.parse("0.5/0.25").std
        (0.25, 0.25, 0.25)
        """
        if text in NORMALIZATIONS:
            return NORMALIZATIONS[text]
        try:
            mean, std = (tuple(float(number) for number in part.split(",")) for part in text.split("/"))
        except ValueError:
            mean = std = ()
        try:
            return cls.of(mean, std)
        except ValueError:
            names = ", ".join(NORMALIZATIONS)
            raise UsageError(
                f"Unknown normalisation {text!r}; give one of {names}, or MEAN/STD such as 0.5,0.5,0.5/0.25."
            ) from None

    @classmethod
    def of(cls, mean: tuple[float, ...], std: tuple[float, ...]) -> "Normalization":
        """One or three numbers each, widened to three; ValueError for others or a deviation that is not above 0."""
        if {len(mean), len(std)} - {1, 3} or not all(value > 0 for value in std):
            raise ValueError(f"mean {mean}, std {std}")
        return cls(mean * (3 // len(mean)), std * (3 // len(std)))


NORMALIZATIONS = {
    "cifar10": Normalization((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": Normalization((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "imagenet": Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "mnist": Normalization((0.1307,) * 3, (0.3081,) * 3),
    "fashionmnist": Normalization((0.2860,) * 3, (0.3530,) * 3),
    "digits": Normalization((0.305,) * 3, (0.376,) * 3),
    "none": Normalization((0.0,) * 3, (1.0,) * 3),
}

SCALES = (
    {"none": NORMALIZATIONS["none"]}
    | NORMALIZATIONS
    | {
        "0.5/0.5": Normalization.parse("0.5/0.5"),  # -1..1
        "0/0.00392157": Normalization.parse("0/0.00392157"),  # 0..255
    }
)
"""What is tried where a network may have seen its images otherwise."""
SIZES = (8, 28, 32)
"""Sides tried beside the run's own, where that is no more than 64: larger ones cost too much for a hint."""
LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R BT.601)."""
CIFAR = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
"""Data sets that torchvision reads and fetches, and the folders it keeps them in."""
DIGITS_TRAIN = 1000
"""The first 1,000 digits train, the other 797 test."""


@dataclass(frozen=True)
class Images:
    """Images in the order of their data set.

    images: uint8 [N, H, W, 3]; targets: int64 [N] in 0..classes-1, real numbers, or none; index: int64 [N], position in
    the data set.
    """

    name: str
    images: NDArray[np.uint8]
    targets: NDArray[Any] | None
    index: NDArray[np.int64]
    classes: int

    @property
    def labels(self) -> NDArray[np.int64]:
        """The classes; raises PosthocError where there are none."""
        if self.targets is None or self.targets.dtype.kind == "f":
            raise PosthocError(f"{self.name} has no labels; give a probe that has.")
        return self.targets

    def __len__(self) -> int:
        return len(self.images)

    @property
    def sha256(self) -> str:
        """Digest of shape, pixels and labels."""
        digest = hashlib.sha256(repr(self.images.shape).encode())
        digest.update(np.ascontiguousarray(self.images).data)
        if self.targets is not None:
            digest.update(np.ascontiguousarray(self.targets).data)
        return digest.hexdigest()

    def take(self, rows: NDArray[np.int64]) -> "Images":
        """The same data set, these rows only."""
        targets = None if self.targets is None else self.targets[rows]
        return replace(self, images=self.images[rows], targets=targets, index=self.index[rows])


def data_root(given: Path | None = None) -> Path:
    """Where data sets are looked for: the option, else POSTHOC_DATA, else ./data."""
    return Path(given) if given else Path(os.environ.get("POSTHOC_DATA", "data"))


def load_images(
    spec: str,
    split: str = "test",
    *,
    root: Path | None = None,
    download: bool = False,
    size: int | None = None,
    resize: int | None = None,
) -> Images:
    """Load one split of `cifar10`, `cifar100`, `digits`, `npz:FILE` or `imagefolder:DIR`.

    `size` is the side to which pictures of an image folder are scaled and cropped (data sets that are arrays keep
    their own), `resize` the length of the shorter side before that; `split` is `train` or `test`.
    """
    check_images(Asked(spec, root=root, download=download))
    kind, _, place = spec.partition(":")
    if kind in CIFAR:
        return _cifar(kind, split, data_root(root), download)
    if kind == "digits":
        return _digits(split)
    return _npz(Path(place), split) if kind == "npz" else _image_folder(Path(place), split, size, resize)


def check_images(asked: Asked) -> None:
    """Raise UsageError for a name that is none of a data set, PosthocError where its files are not there."""
    kind, place, root = asked.kind, asked.place, data_root(asked.root)
    if bool(place) != (kind in ("npz", "imagefolder")) or (kind not in (*CIFAR, "digits") and not place):
        raise UsageError(
            f"Unknown data set {asked.spec!r}; give cifar10, cifar100, digits, npz:FILE or imagefolder:DIR."
        )
    if kind == "npz" and not Path(place).exists():
        raise PosthocError(f"No such file: {place}.")
    if kind == "npz" and not Path(place).is_file():
        raise PosthocError(f"{place} is no file; give an .npz archive.")
    if kind == "imagefolder" and not Path(place).is_dir():
        raise PosthocError(f"{place} is not a folder of class folders of images; give one.")
    if kind in CIFAR and not asked.download and not (root / CIFAR[kind]).is_dir():
        raise PosthocError(absent(kind.upper(), root))
    if asked.options.get("resize") and not asked.options.get("crop"):
        raise UsageError("--resize needs --crop: images of one size.")
    if asked.options.get("normalize"):
        Normalization.parse(asked.options["normalize"])


def absent(name: str, root: Path) -> str:
    """That a data set of torchvision's is not there, and what to do, in words."""
    return (
        f"No intact copy of {name} in {root}; pass --download to fetch it, or --data-root (or POSTHOC_DATA) "
        f"to say where it is."
    )


def probe_images(
    spec: str,
    count: int | None = None,
    *,
    root: Path | None = None,
    download: bool = False,
    size: int | None = None,
    resize: int | None = None,
) -> Images:
    """The fixed probe batch: the first `count` test images (of an image folder, `count` spread evenly over it)."""
    data = load_images(spec, root=root, download=download, size=size, resize=resize)
    rows = first_rows(len(data), count, spec)
    if spec.startswith("imagefolder:"):  # sorted by class: the first would all be of one
        return data.take(rows * len(data) // len(rows))
    return data.take(rows)


def first_rows(length: int, count: int | None, spec: str, samples: str = "images") -> NDArray[np.int64]:
    """Of so many samples the first that are asked for, else the usual number."""
    if count is not None and count > length:
        raise PosthocError(f"--images {count}: the probe {spec} holds only {length} {samples}; ask for fewer.")
    return np.arange(min(count or DEFAULT_IMAGES, length))


def load(asked: Asked, model: "Model") -> Probe:
    """The probe of images, at the size and in the colours that the network takes."""
    wanted = wanted_size(asked, model)
    resize = asked.options.get("resize")
    data = probe_images(asked.spec, asked.samples, root=asked.root, download=asked.download, size=wanted, resize=resize)
    return prepared(data, asked, model)


def wanted_size(asked: Asked, model: "Model") -> int | None:
    """The side of the images that is asked for, recorded, or what the network was made for."""
    from posthoc.replay.probes.fitting import usual_size

    recorded = asked.recorded.get("image_size")
    if recorded is not None and not (isinstance(recorded, int) and recorded > 0):
        raise PosthocError(
            f"run.json: image_size {recorded!r} is not a number of pixels; mend it, or pass --image-size."
        )
    return asked.options.get("crop") or asked.options.get("image_size") or recorded or usual_size(model.module)


def prepared(data: Images, asked: Asked, model: "Model") -> Probe:
    """The images as the network takes them."""
    from posthoc.replay.probes.fitting import fit_images

    scale = normalization(asked)
    size, channels, anatomy = fit_images(model, wanted_size(asked, model), *data.images.shape[1:3])
    return replace(Prepared(data, scale, size, channels).probe(), anatomy=anatomy)


def normalization(asked: Asked) -> Normalization:
    """How the images were scaled in training, as given, recorded or usual; raises UsageError where it is not known."""
    given, recorded = asked.options.get("normalize"), asked.recorded.get("normalization")
    usual = NORMALIZATIONS.get(asked.spec.removeprefix("torchvision:").lower())
    if given:
        return Normalization.parse(given)
    if recorded:
        try:
            return Normalization.of(tuple(map(float, recorded["mean"])), tuple(map(float, recorded["std"])))
        except (KeyError, TypeError, ValueError) as error:
            raise PosthocError(
                f"run.json: normalization {recorded!r} is not {{mean: [...], std: [...]}}; mend it, or pass --normalize."
            ) from error
    if usual:
        return usual
    raise UsageError(
        f"How the images of {asked.spec} were normalised in training is not recorded; "
        f"pass --normalize {'|'.join(NORMALIZATIONS)} or MEAN/STD."
    )


@dataclass(frozen=True)
class Prepared:
    """Images as a network sees them: normalised, scaled to a side of `size`, in colour (3 channels) or grey (1)."""

    data: Images
    normalization: Normalization
    size: int
    channels: int

    def probe(self) -> Probe:
        """As any other probe."""
        mean, std = self.normalization
        small = self.size <= 64
        place = f"{self.data.name}, {counted(len(self.data), 'image')} at {self.size} x {self.size}"
        return Probe(
            name=self.data.name,
            inputs={"images": self.data.images},
            targets=self.data.targets,
            index=self.data.index,
            classes=self.data.classes or None,
            axes={"images": ("height", "width", "colour")},
            prepare=self.prepare,
            example=partial(example, self.size, self.channels),
            digest=self.data.sha256,
            samples="images",
            preparation={
                "image_size": self.size,
                "channels": self.channels,
                "normalization": self.normalization._asdict(),
            },
            words=image_words(list(mean), list(std), self.size, self.channels),
            notes=[
                ("probe", place + ", grey" * (self.channels == 1) + ", no labels" * (self.data.targets is None)),
                ("normalisation", scale_words(list(mean), list(std), self.channels)),
            ],
            batch_size=256 if small else 32,
            few=8 if small else 4,
            alternatives=self.alternatives,
        )

    def prepare(self, batch: Batch) -> Batch:
        """float32 [B, channels, size, size] of uint8 [B, H, W, 3]."""
        import torch
        from torch.nn import functional as F

        x = batch["images"].permute(0, 3, 1, 2)
        mean, std = (torch.tensor(row, device=x.device).view(3, 1, 1) for row in self.normalization)
        x = (x.float() / 255 - mean) / std
        if x.shape[2:] != (self.size, self.size):
            x = F.interpolate(x, size=(self.size, self.size), mode="bilinear", antialias=True)
        if self.channels == 1:
            x = (x * torch.tensor(LUMA, device=x.device).view(3, 1, 1)).sum(1, keepdim=True)
        return {"images": x}

    def alternatives(self, fails: bool) -> Sequence[tuple[str, Prepare]]:
        """Usual ways to scale the images, at the run's own size first; small images at others, too, and of a network that
        fails in all combinations."""
        sizes = sorted({self.size, *(SIZES if self.size <= 64 else ())}, key=lambda side: side != self.size)
        rows: list[tuple[str, Prepare]] = []
        for (name, scale), size in itertools.product(SCALES.items(), sizes):
            if (fails or size == self.size) and (scale, size) != (self.normalization, self.size):
                words = f"--normalize {name}" if size == self.size else f"--normalize {name} --image-size {size}"
                rows.append((words, replace(self, normalization=scale, size=size).prepare))
        for size in sizes[1:] if not fails else ():
            rows.append((f"--image-size {size}", replace(self, size=size).prepare))
        return rows


def example(size: int, channels: int, batch: int, grown: bool) -> Batch:
    """Black images; grown: of twice the side."""
    import torch

    side = 2 * size if grown else size
    return {"images": torch.zeros(batch, channels, side, side)}


def opened(name: str, root: Path, download: bool, **arguments: Any) -> Any:
    """The data set of torchvision's of that name; raises PosthocError where it is not whole, or cannot be fetched."""
    import torchvision

    try:
        return getattr(torchvision.datasets, name)(str(root), download=download, **arguments)
    except MemoryError:
        raise
    except Exception as error:  # absent, a checksum that differs, and whatever its readers of torn files raise
        if not download:
            raise PosthocError(absent(name, root)) from error
        raise PosthocError(
            f"{name} could not be fetched into {root} ({' '.join(str(error).split())}); fetch it where there is a network "
            f"and say with --data-root (or POSTHOC_DATA) where it is."
        ) from error


def _cifar(kind: str, split: str, root: Path, download: bool) -> Images:
    data = opened(kind.upper(), root, download, train=split == "train")
    return _images(kind, np.asarray(data.data), data.targets, classes=len(data.classes))


def _digits(split: str) -> Images:
    package = Path(posthoc.__file__).parent
    places = [folder / "data" / "digits.npz" for folder in (package, package.parent)]  # installed wheel, checkout
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise PosthocError(
            f"The bundled digits are missing (looked at {places[0]} and {places[1]}); reinstall posthoc."
        )
    with np.load(path) as pack:
        rows = slice(0, DIGITS_TRAIN) if split == "train" else slice(DIGITS_TRAIN, None)
        grey = np.rint(pack["images"][rows] * (255 / 16)).astype(np.uint8)  # stored as 0..16
        labels = pack["labels"][rows]
    pictures = np.broadcast_to(grey.repeat(4, axis=1).repeat(4, axis=2)[..., None], (len(grey), 32, 32, 3))
    return _images("digits", pictures, labels, classes=10, first=rows.start)


def _npz(path: Path, split: str) -> Images:
    samples = read_samples(path, "npz", split)
    if len(samples.inputs) > 1:
        raise PosthocError(f"{path} holds {', '.join(samples.inputs)}; expected one array of images, and labels.")
    images = images_of(samples)
    if why := no_classes(images.targets):
        raise PosthocError(f"{images.name}: {why}.")
    return images


def images_of(samples: Samples) -> Images:
    """Images, where the only input is such; raises PosthocError where it is not."""
    images = next(iter(samples.inputs.values()))
    return _images(samples.name, images, samples.targets, samples.classes, samples.index)


def _image_folder(folder: Path, split: str, size: int | None, resize: int | None) -> Images:
    import torchvision

    parts = [folder / name for name in (("train",) if split == "train" else ("test", "val", "valid"))]
    part = next((part for part in parts if part.is_dir()), None)
    if part is None and (split == "train" or (folder / "train").is_dir()):
        raise PosthocError(f"{folder} has no folder {' or '.join(part.name for part in parts)}; name the one to use.")
    folder = part or folder
    try:
        listing = torchvision.datasets.ImageFolder(str(folder))
    except OSError as error:
        raise PosthocError(f"{folder} is not a folder of class folders of images ({error}); give one.") from error
    pictures = []
    for place, _ in listing.samples:
        with open_regular(place) as file:
            pictures.append(read_picture(file, place, size, resize))
    if len({picture.shape for picture in pictures}) > 1:
        raise PosthocError(f"The images in {folder} differ in size; pass --image-size to scale and crop them to one.")
    return _images(f"imagefolder:{folder.name}", np.stack(pictures), listing.targets, classes=len(listing.classes))


def square(size: int, resize: int | None = None) -> Callable[[Any], Any]:
    """Scales the shorter side of a picture of Pillow's to `resize` (default: `size`), and crops `size` from its middle."""
    from torchvision.transforms import v2

    both: Callable[[Any], Any] = v2.Compose([v2.Resize(resize or size), v2.CenterCrop(size)])
    return both


def read_picture(
    file: IO[bytes], name: str, size: int | None = None, resize: int | None = None, mode: str | None = "RGB"
) -> NDArray[Any]:
    """The pixels of a picture; where `size` is given, its shorter side scaled to `resize` (default: `size`) and a square
    of that side cropped from its middle.

    mode: Pillow's name of what the pixels are brought to, None for those that the picture has.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture: Any = Image.open(file)
            picture = picture.convert(mode) if mode else picture
            return np.asarray(square(size, resize)(picture) if size else picture)
    except MemoryError:
        raise
    except Exception as error:  # whatever Pillow's many readers raise
        raise PosthocError(f"{name} is no picture that can be read ({error}); mend or remove it.") from error


def _images(
    name: str, images: Any, targets: Any, classes: int | None = None, index: Any = None, first: int = 0
) -> Images:
    """Check and bring into one form: uint8 [N, H, W, 3], and targets [N, ...] if there are any."""
    images = np.asarray(images)
    if images.dtype != np.uint8:
        raise PosthocError(f"{name}: images are {images.dtype}; give pixels as uint8 in 0..255.")
    if images.ndim == 4 and 1 in (images.shape[1], images.shape[3]) and 3 not in (images.shape[1], images.shape[3]):
        images = images[:, 0] if images.shape[1] == 1 else images[..., 0]
    if images.ndim == 3:
        images = np.broadcast_to(images[..., None], (*images.shape, 3))
    elif images.ndim == 4 and images.shape[1] == 3 and images.shape[3] != 3:
        images = images.transpose(0, 2, 3, 1)
    if images.ndim != 4 or images.shape[3] != 3:
        raise PosthocError(
            f"{name}: images have shape {images.shape}; expected [N, H, W, 3], [N, 3, H, W] or [N, H, W]."
        )
    if targets is not None:
        targets = np.asarray(targets)
        if targets.shape[:1] != images.shape[:1] or targets.dtype.kind not in "biuf" or not len(targets):
            raise PosthocError(
                f"{name}: labels of {targets.dtype} {targets.shape} do not fit {counted(len(images), 'image')}; give one for each."
            )
        targets = as_targets(name, targets)
    if not images.size:
        raise PosthocError(f"{name}: images have shape {images.shape}, in which there are no pixels.")
    index = np.arange(first, first + len(images)) if index is None else np.asarray(index)
    if index.shape != images.shape[:1] or not np.issubdtype(index.dtype, np.integer):
        raise PosthocError(
            f"{name}: an index of {index.dtype} {index.shape} does not fit {counted(len(images), 'image')}; give one for each."
        )
    return Images(name, np.ascontiguousarray(images), targets, index.astype(np.int64), classes or classes_of(targets))


KINDS = {
    name: Kind(load, check_images, ("image_size", "normalize", *more))
    for name, more in {
        "cifar10": ("data_root", "download"), "cifar100": ("data_root", "download"), "digits": (), "imagefolder": ("resize", "crop"),
    }.items()
}  # fmt: skip
