"""Probes that are handed over: objects from Python, and what a function in a file of the user's returns.

A `Probe`, (inputs, targets), inputs by name, a data set (torch's, or what has a length and items) or a DataLoader, whose
first samples are taken in its own order and put together as its loader would.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from posthoc.errors import PosthocError, UsageError
from posthoc.replay.probes.archives import TARGETS
from posthoc.replay.probes.arrays import fitted, is_picture, with_target
from posthoc.replay.probes.images import DEFAULT_IMAGES, Normalization, first_rows, normalization
from posthoc.replay.probes.probe import Asked, Batch, Kind, Probe
from posthoc.shown import with_article

if TYPE_CHECKING:
    from torch.nn import Module

    from posthoc.replay.models import Model
    from posthoc.replay.usercode import ModelCode

AT_ONCE = 256
"""Samples of a data set that are put together at a time."""


def load(asked: Asked, model: "Model") -> Probe:
    """What was handed over, as this network takes it."""
    if asked.given is not None:
        return _for_network(with_randomness(lambda: probe_of(asked.given, asked, "probe", model.module)), asked, model)
    from posthoc.replay.usercode import ModelCode

    path, _, name = asked.spec.rpartition(":")
    user = ModelCode(Path(path))
    title = f"{user.title}:{name}"
    with user.calling(f"{title} failed"):
        made = getattr(user.module, name, None)
        if made is None:
            names = ", ".join(key for key, value in vars(user.module).items() if callable(value) and key[:1] != "_")
            raise UsageError(f"{path} defines no {name!r} (found: {names or 'none'}).")
        probe = with_randomness(lambda: probe_of(made() if _is_function(made) else made, asked, title, model.module))
    guarded = replace(probe, code=user.digest, prepare=_at_work(user, probe.prepare), score=_at_work(user, probe.score))
    return _for_network(guarded, asked, model)


def _is_function(made: Any) -> bool:
    return callable(made) and not isinstance(made, Probe) and not _is_data(made)


def _is_data(value: Any) -> bool:
    """Whether it is a loader, or a data set: torch's, or of others such as Hugging Face's, with a length and items."""
    from torch.utils.data import DataLoader, Dataset

    if isinstance(value, (Dataset, DataLoader)):
        return True
    if isinstance(value, (type, tuple, list, str, bytes)) or hasattr(value, "keys") or _is_array(value):
        return False
    return hasattr(value, "__len__") and hasattr(value, "__getitem__")


def _at_work(user: "ModelCode", function: Any) -> Any:
    """A function of the user's that finds the files beside its own, whenever it is called; what is none as it is."""
    if not callable(function):
        return function

    def called(*arguments: Any) -> Any:
        with user.at_work():
            return function(*arguments)

    called.__name__ = getattr(function, "__name__", "score")
    return called


def with_randomness(make: Callable[[], Probe]) -> Probe:
    """What is drawn in the making is the same every time, and the program's random numbers go on as if it had not been."""
    import torch

    from posthoc.replay.forward import own_randomness, seed_batch

    with own_randomness(torch.device("cpu")):
        seed_batch(0, 0)
        return make()


def _for_network(probe: Probe, asked: Asked, model: "Model") -> Probe:
    if asked.options.get("image_size"):
        raise UsageError("--image-size: a probe of one's own gives the images as the network sees them; leave it out.")
    if probe.prepare is not None:
        return replace(
            probe, prepare=partial(_named, probe.prepare, tuple(probe.inputs)), words="by the probe's function"
        )
    pictures = any(is_picture(array) for array in probe.inputs.values())
    return fitted(probe, model, normalization(asked) if pictures else None)


def _named(prepare: Callable[[Batch], Any], names: Sequence[str], batch: Batch) -> Batch:
    """What a user's function makes of a batch: several by name, or one tensor, which has the first input's name."""
    made = prepare(batch)
    return dict(made) if isinstance(made, Mapping) else {names[0]: made}


def probe_of(value: Any, asked: Asked, name: str, module: "Module") -> Probe:
    """The first samples of what was handed over, for this network; raises PosthocError for what is no probe."""
    if isinstance(value, Probe):
        probe = replace(value, name=name) if value.name == "probe" else value
        return _first(probe, asked)
    is_data = _is_data(value)
    inputs, targets, target = _parted(_collated(value, asked) if is_data else value)
    if not inputs:
        without = ", whose samples hold no array of numbers" if is_data else ""
        raise PosthocError(
            f"{name} gives {with_article(_kind(value))}{without}; give a posthoc.Probe, (inputs, targets), a data set or a "
            f"DataLoader."
        )
    given, told = with_target(inputs, target, targets, module)
    return _first(Probe(given, targets, name=name, notes=told), asked)


def _kind(value: Any) -> str:
    """The type of a value, with its module where that is not Python's own."""
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"


def _first(probe: Probe, asked: Asked) -> Probe:
    count = len(first_rows(len(probe), asked.samples, asked.spec, "samples"))
    if count == len(probe):
        return probe
    return replace(
        probe,
        inputs={name: array[:count] for name, array in probe.inputs.items()},
        mask={name: array[:count] for name, array in probe.masks.items()},
        targets=None if probe.targets is None else probe.targets[:count],
        index=None if probe.index is None else probe.index[:count],
    )


def _collated(data: Any, asked: Asked) -> Any:
    """The first samples of a data set, put together: in pieces, and where these differ in shape, for each is padded to its
    longest sample, all at once."""
    from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

    loader = data if isinstance(data, DataLoader) else None
    dataset: Any = data if loader is None else loader.dataset
    collate = default_collate if loader is None else loader.collate_fn
    if collate is default_collate and not isinstance(dataset, Dataset):
        collate = _of_columns
    count = asked.samples or DEFAULT_IMAGES
    pieces: Iterator[Any]
    if isinstance(dataset, IterableDataset):
        pieces = (collate([item]) for item in dataset) if loader is None else iter(loader)
    else:
        with contextlib.suppress(TypeError):  # without a length
            count = len(first_rows(len(dataset), asked.samples, asked.spec, "samples"))
        starts = range(0, count, AT_ONCE)
        pieces = (collate([dataset[k] for k in range(start, min(start + AT_ONCE, count))]) for start in starts)
    kept: list[Any] = []
    have = 0
    for piece in pieces:
        kept.append(piece)
        have += _rows(piece)
        if have >= count:
            break
    if not kept:
        raise PosthocError("The data set holds nothing; give one with samples.")
    count = min(count, have)
    try:
        return _first_of(_joined(kept), count)
    except ValueError as error:  # of other shapes
        if isinstance(dataset, IterableDataset):
            samples = list(itertools.islice(dataset, count if loader is None or loader.batch_size else 0))
        else:
            samples = [dataset[k] for k in range(count)]
        if len(samples) < count:
            raise PosthocError(
                f"The batches of the data set differ in shape ({error}), and it cannot be gone through again to pad them "
                f"alike; pad every sample to one length."
            ) from error
        return _first_of(collate(samples), count)


def _of_columns(samples: Sequence[Any]) -> Any:
    """Samples put together; of those that are dictionaries, as rows of a table, the columns that hold numbers."""
    from torch import Tensor
    from torch.utils.data import default_collate

    if not isinstance(samples[0], Mapping):
        return default_collate(list(samples))
    columns = {}
    for name in samples[0]:
        values = [sample[name] for sample in samples]
        if not all(isinstance(value, Tensor) for value in values):
            values = [_as_array(value) for value in values]
            numbers = [value.dtype.kind in "biuf" for value in values]
            if not any(numbers):
                continue
            if not all(numbers):
                raise PosthocError(
                    f"The column {name} of the data set lacks numbers in some of its rows; fill them, or leave those rows out."
                )
        if len(shapes := sorted({tuple(value.shape) for value in values})) > 1:
            raise PosthocError(
                f"The rows of the column {name} of the data set differ in shape ({shapes[0]} to {shapes[-1]}); pad them to "
                f"one length (padding='max_length' of a tokenizer, which gives their attention_mask, too), or give a "
                f"DataLoader whose collate_fn does."
            )
        columns[name] = default_collate(values)
    return columns


def _as_array(value: Any) -> NDArray[Any]:
    """What a value holds; objects where that is no array, such as rows of different lengths."""
    try:
        return np.asarray(value)
    except ValueError:
        return np.asarray(None)


def _first_of(value: Any, count: int) -> Any:
    if isinstance(value, Mapping):
        return {key: _first_of(each, count) for key, each in value.items()}
    return tuple(_first_of(each, count) for each in value) if isinstance(value, tuple) else value[:count]


def _rows(piece: Any) -> int:
    if isinstance(piece, Mapping):
        return _rows(next(iter(piece.values())))
    return _rows(piece[0]) if isinstance(piece, (tuple, list)) else len(piece)


def _joined(pieces: Sequence[Any]) -> Any:
    """Batches one after another, whatever they are nested in; texts stay lists."""
    first = pieces[0]
    if isinstance(first, Mapping):
        return {key: _joined([piece[key] for piece in pieces]) for key in first}
    if isinstance(first, (tuple, list)):
        if first and isinstance(first[0], (str, bytes)):
            return [text for piece in pieces for text in piece]
        return tuple(_joined([piece[k] for piece in pieces]) for k in range(len(first)))
    return np.concatenate([np.asarray(piece) for piece in pieces])


def _parted(value: Any) -> tuple[dict[str, Any], Any, str | None]:
    """Inputs by name, and targets: the last of several, or what has one of the names of `TARGETS`, and which."""
    if isinstance(value, Mapping):
        target = next((key for key in TARGETS if key in value), None)
        inputs = {str(key): each for key, each in value.items() if key != target and _is_array(each)}
        return inputs, None if target is None else value[target], target
    if isinstance(value, (tuple, list)) and value and not isinstance(value[0], (int, float, str)):
        *parts, targets = value if len(value) > 1 else (*value, None)
        if len(parts) == 1 and isinstance(parts[0], Mapping):
            return {str(key): each for key, each in parts[0].items() if _is_array(each)}, targets, None
        if len(parts) == 1 and isinstance(parts[0], (tuple, list)) and _is_array(parts[0][0]):
            parts = list(parts[0])
        names = ["input"] if len(parts) == 1 else [f"input_{k}" for k in range(1, len(parts) + 1)]
        return dict(zip(names, parts, strict=True)), targets, None
    return ({"input": value} if _is_array(value) else {}), None, None


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def check(asked: Asked) -> None:
    """Raise UsageError or PosthocError for a file that is not there; it is not run."""
    if asked.given is None:
        path, _, name = asked.spec.rpartition(":")
        if not path:
            raise UsageError(f"--probe {asked.spec}: give FILE.py:NAME, the function that makes the probe.")
        if not Path(path).is_file():
            raise PosthocError(f"No such file: {path}.")
        if not name.isidentifier():
            raise UsageError(f"--probe {asked.spec}: {name!r} is no name of a function; give FILE.py:NAME.")
    if asked.options.get("normalize"):
        Normalization.parse(asked.options["normalize"])


KINDS = {"python": Kind(load, check, ("image_size", "normalize"))}
