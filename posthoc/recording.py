"""What is recorded of an extraction in an activations file, and goes from there into what is measured of it."""

from typing import Annotated, Any, NotRequired, TypedDict

from posthoc.typed import Range

MOST_CONTROLS = 1000
"""Untrained networks beside a run."""


class Model(TypedDict):
    """The network: how it was found, with what arguments, the digest of its code, how many scores it gives."""

    name: str
    source: str
    arguments: NotRequired[dict[str, Any]]
    code: NotRequired[str | None]
    outputs: NotRequired[int | None]


class Weights(TypedDict):
    """Which of the weights in a checkpoint were replayed."""

    key: str | None
    ema: bool


class Normalization(TypedDict):
    """By channel of the images."""

    mean: Annotated[list[float], Range(-1e9, 1e9)]
    std: Annotated[list[float], Range(-1e9, 1e9)]


class Probe(TypedDict):
    """The images that were fed."""

    name: str
    images: Annotated[int, Range(1)]
    classes: Annotated[int, Range(1)]
    sha256: str
    largest_class: NotRequired[Annotated[int, Range(1)]]
    image_size: NotRequired[int]
    channels: NotRequired[int]
    normalization: NotRequired[Normalization]


class Layer(TypedDict):
    """A hook point: its module's type, the shape of its output for one image, how many channels were recorded, of what total."""

    name: str
    type: NotRequired[str]
    shape: NotRequired[list[int]]
    channels: NotRequired[int]
    total: NotRequired[int]


class Scores(TypedDict):
    """Which output was scored, how many classes it has, or why none was."""

    output: str | None
    columns: int | None
    reason: str | None


class Versions(TypedDict):
    """Of what the numbers may depend on."""

    torch: str | None
    posthoc: NotRequired[str | None]
    torchvision: NotRequired[str | None]
    cuda: NotRequired[str | None]
    gpu: NotRequired[str | None]


class Config(TypedDict):
    """How an activations file was made. Files may hold more, which is kept and not looked at."""

    model: Model
    probe: Probe
    layers: list[Layer]
    signals: list[str]
    device: str
    dtype: str
    versions: Versions
    weights: NotRequired[Weights]
    scores: NotRequired[Scores]
    layers_chosen: NotRequired[str]
    channels: NotRequired[int | str]
    seed: NotRequired[int]
    untrained: NotRequired[Annotated[int, Range(0, MOST_CONTROLS)]]
    tf32: NotRequired[bool]
    compile: NotRequired[bool]
    memory_format: NotRequired[str]
    batch_size: NotRequired[int]
    recipe: NotRequired[Any]
    training_seed: NotRequired[Any]
    dataset: NotRequired[Any]
