"""What is recorded of an extraction, in an activations file and in what is measured of it.

Two parts: its identity is what the numbers depend on, and decides alone whether a part of it may be used; its
provenance is whatever else a reader may want to know, and never blocks anything.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any, TypedDict

from posthoc.shown import counted
from posthoc.typed import Range, typed

MOST_CONTROLS = 1000
"""Untrained networks beside a run."""
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Model:
    """The network: its architecture's name, what that was called with, the digest of the user's code that defines it."""

    architecture: str
    arguments: dict[str, Any] = field(default_factory=dict)
    code: str | None = None


@dataclass(frozen=True)
class Weights:
    """Which of the weights in a checkpoint were replayed."""

    key: str | None = None
    ema: bool = False


@dataclass(frozen=True)
class Probe:
    """What was fed: digest and number of samples; number of classes and size of the largest, where there are labels.

    preparation: how the samples were made ready for the network, by names that the probe's kind knows; code: digest of
    the user's file that made them; axes: names of each input's axes after the first.
    """

    sha256: str
    samples: Annotated[int, Range(1)]
    classes: Annotated[int, Range(1)] | None = None
    largest_class: Annotated[int, Range(1)] | None = None
    preparation: dict[str, Any] = field(default_factory=dict)
    code: str | None = None
    axes: dict[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Layer:
    """A hook point: its module's type, the shape of its output for one sample, how many channels were recorded, of what
    total."""

    name: str
    type: str | None = None
    shape: tuple[int, ...] = ()
    channels: int | None = None
    total: int | None = None

    @property
    def size(self) -> int | None:
        """How many channels the layer has; where that is not recorded from its shape, if that leaves no doubt.

        >>> Layer("fc", shape=(512,)).size, Layer("block", shape=(197, 768)).size, Layer("conv", shape=(64, 8, 8)).size
        (512, 768, 64)
        """
        if self.total is not None:
            return self.total
        match self.shape:
            case (C,) | (_, C):  # a vector, or a sequence
                return C
            case (a, b, c) if (a == b) != (b == c):  # a square map, [H, W, C] or [C, H, W]
                return c if a == b else a
        return None


@dataclass(frozen=True)
class Output:
    """Which output was scored, and how many columns it has, None where none is; score: how, if any was."""

    name: str | None = None
    columns: int | None = None
    score: str | None = "classes"


@dataclass(frozen=True)
class Identity:
    """What the numbers depend on.

    channels: recorded of each layer, None for all; device: its model, "cpu" or the GPU's name; behaviour, head: names of
    what is stored of each checkpoint beside the signals; controls: the other inputs that each was given, too;
    averaged: of how many checkpoints up to each the mean of the weights was replayed beside its own; spectra:
    whether statistics of the spectra of the weights are stored.
    """

    model: Model
    probe: Probe
    layers: tuple[Layer, ...]
    signals: tuple[str, ...]
    device: str
    dtype: str
    weights: Weights = Weights()
    channels: int | None = None
    seed: int = 0
    tf32: bool = False
    compile: bool = False
    memory_format: str = UNKNOWN
    batch_size: int | None = None
    output: Output = Output()
    behaviour: tuple[str, ...] = ()
    head: tuple[str, ...] = ()
    controls: tuple[str, ...] = ()
    averaged: Annotated[tuple[int, ...], Range(2)] = ()
    spectra: bool = False

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def differences(self, other: "Identity") -> dict[str, tuple[Any, Any]]:
        """What differs: name -> this value and the other's.

        >>> a = Identity(Model("vgg"), Probe("00", 8), (), (), "cpu", "float32")
        >>> b = Identity(Model("vgg"), Probe("ff", 8), (), (), "cpu", "bfloat16")
        >>> a.differences(b)
        {'probe.sha256': ('00', 'ff'), 'dtype': ('float32', 'bfloat16')}
        """
        values, others = dict(_leaves(asdict(self))), dict(_leaves(asdict(other)))
        names = [name for name in values | others if json.dumps(values.get(name)) != json.dumps(others.get(name))]
        return {name: (values.get(name), others.get(name)) for name in names}


@dataclass(frozen=True)
class Misfit:
    """A batch norm whose running statistics are not those of what it is given: in the median of its channels the standard
    deviation is `spread` times theirs, and the mean `shift` of their standard deviations away."""

    layer: str
    spread: float
    shift: float


@dataclass(frozen=True)
class Scaling:
    """What speaks against the preparation of the probe, seen at a checkpoint: the last that there was.

    better: the options of extract with which the network does better, its accuracy so and as it was, of so many samples.
    """

    misfit: Misfit | None = None
    better: str | None = None
    accuracy: float | None = None
    usual: float | None = None
    samples: int = 0
    checkpoint: str = ""


@dataclass(frozen=True)
class Provenance:
    """What the numbers do not depend on: names and words, versions of libraries, where it was made.

    model, probe: as they are called; source: how the model was found; dataset, recipe, training_seed, settings
    (hyperparameters by name): as the run says of itself; layers: how they were chosen; signals: what each means; samples: what they are called; preparation: of the
    probe, in words; output: why none was scored; loss, unit: name and unit of the loss on the probe; adapters:
    the kind of adapters that the checkpoints are, over a base that was trained before; scaling: what speaks against the
    probe's preparation, if anything does.
    """

    model: str
    probe: str
    source: str = UNKNOWN
    dataset: Any = None
    recipe: Any = None
    training_seed: Any = None
    settings: dict[str, Any] = field(default_factory=dict)
    layers: str = ""
    signals: dict[str, str] = field(default_factory=dict)
    samples: str = "images"
    preparation: str = UNKNOWN
    output: str | None = None
    loss: str = "cross-entropy"
    unit: str | None = "nat"
    adapters: str | None = None
    scaling: Scaling | None = None
    versions: dict[str, str | None] = field(default_factory=dict)
    host: str | None = None


@dataclass(frozen=True)
class Recording:
    """What was replayed, and how."""

    identity: Identity
    provenance: Provenance

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        content: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return content

    @classmethod
    def from_dict(cls, content: Any) -> "Recording":
        """What `to_dict` gave; raises MisfitError where it is something else."""
        recording: Recording = typed(cls, content)
        return recording


def apart(provenances: Sequence[Provenance]) -> list[str]:
    """In what the provenances of several checkpoints differ, in words, and how many have which; nothing if they do not.

    What speaks against the probe's preparation is left out: it was seen at the last checkpoint that there was.

    >>> apart([Provenance("vgg", "digits", host="a"), Provenance("vgg", "digits", host="b")])
    ['host a (1 checkpoint)', 'host b (1 checkpoint)']
    """
    leaves = [dict(_leaves(asdict(replace(provenance, scaling=None)))) for provenance in provenances]
    every = dict.fromkeys(name for each in leaves for name in each)
    names = [name for name in every if len({json.dumps(each.get(name)) for each in leaves}) > 1]
    counts = Counter(", ".join(f"{name} {each.get(name)}" for name in names) for each in leaves)
    return [f"{words} ({counted(n, 'checkpoint')})" for words, n in counts.items()] if names else []


def seed_of_control(seed: int, number: int) -> int:
    """From which the weights of the untrained network of that number (0, 1, ...) are drawn; the run's seed is none of them."""
    return (seed + 1 + number) % 2**63


def named(text: str, samples: str) -> str:
    """Words about images, of samples that are called otherwise.

    >>> named("another order of the same images", "documents")
    'another order of the same documents'
    """
    return text.replace("images", samples)


def with_more(remedy: str, samples: str) -> str:
    """What to do where images are too few, of samples that are called otherwise: only those of documents have another option.

    >>> with_more("extract with more --images", "documents"), with_more("extract with more --images", "rows")
    ('extract with more --documents', 'extract with more --images')
    """
    return remedy.replace("--images", "--documents") if samples == "documents" else remedy


def image_words(mean: list[float], std: list[float], size: int, channels: int | None) -> str:
    """How images are prepared, in words.

    >>> image_words([0.5], [0.25], 28, 1)
    'mean 0.5, std 0.25, 28 x 28, grey'
    >>> image_words([0.5] * 3, [0.25] * 3, 28, 1) == image_words([0.5], [0.25], 28, 1)
    True
    """
    return f"{scale_words(mean, std, channels)}, {size} x {size}, {'grey' if channels == 1 else 'colour'}"


def scale_words(mean: list[float], std: list[float], channels: int | None) -> str:
    """How images are scaled, in words: of grey ones by one number each, unless the three that make it differ."""
    alike = channels == 1 and len(set(mean)) == len(set(std)) == 1
    means, deviations = (
        ", ".join(f"{value:.4g}" for value in (values[:1] if alike else values)) for values in (mean, std)
    )
    return f"mean {means}, std {deviations}"


def _leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


class NormalizationV1(TypedDict):
    """By channel of the images."""

    mean: Annotated[list[float], Range(-1e9, 1e9)]
    std: Annotated[list[float], Range(-1e9, 1e9)]


VERSION_1 = {
    "identity.model.architecture": "model.name", "identity.model.arguments": "model.arguments",
    "identity.model.code": "model.code", "identity.probe.sha256": "probe.sha256", "identity.probe.samples": "probe.images",
    "identity.probe.classes": "probe.classes", "identity.probe.largest_class": "probe.largest_class",
    **{f"identity.probe.preparation.{name}": f"probe.{name}" for name in ("image_size", "channels", "normalization")},
    "identity.output.name": "scores.output", "identity.output.columns": "model.outputs",
    **{f"identity.{name}": name for name in (
        "layers", "signals", "device", "dtype", "weights", "channels", "seed", "tf32", "compile", "memory_format",
        "batch_size",
    )},
    "provenance.model": "model.name", "provenance.source": "model.source", "provenance.probe": "probe.name",
    "provenance.layers": "layers_chosen", "provenance.output": "scores.reason", "provenance.versions": "versions",
    **{f"provenance.{name}": name for name in ("dataset", "recipe", "training_seed")},
}  # fmt: skip
"""Where in a recording that is which stood elsewhere in the `config` of activations.h5 and metrics.json of version 1."""


def from_version_1(config: Any) -> Recording:
    """The recording that a `config` of version 1 describes; raises MisfitError where it is something else."""
    content: dict[str, Any] = {"identity": {"probe": {}}, "provenance": {}}
    for place, old in VERSION_1.items():
        value = config
        for name in old.split("."):
            value = value.get(name, _ABSENT) if isinstance(value, dict) else _ABSENT
        if value is not _ABSENT and (old, value) != ("channels", "all"):
            *folders, last = place.split(".")
            inner = content
            for folder in folders:
                inner = inner.setdefault(folder, {})
            inner[last] = value
    recording = Recording.from_dict(content)
    identity, provenance = recording.identity, recording.provenance
    versions = dict(provenance.versions)
    if gpu := versions.pop("gpu", None):
        identity = replace(identity, device=gpu)
    preparation = identity.probe.preparation
    if {"normalization", "image_size"} <= preparation.keys():
        normalization = typed(NormalizationV1, preparation["normalization"])
        words = image_words(**normalization, size=preparation["image_size"], channels=preparation.get("channels"))
        provenance = replace(provenance, preparation=words)
    return Recording(identity, replace(provenance, versions=versions))


_ABSENT = object()
