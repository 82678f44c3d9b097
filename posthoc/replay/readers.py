"""One checkpoint file -> its state dict, and what the file says of itself."""

import math
import pickle
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from posthoc.errors import PosthocError

SUFFIXES = (".safetensors", ".pt", ".pth")
WRAPPERS = ("state_dict", "model", "model_state_dict")
"""Keys under which training scripts put the weights beside their own bookkeeping."""
PREFIXES = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put in front of every name."""
STEP_KEYS = ("step", "global_step", "iteration")

# What the libraries raise when a file is not what it should be; an unpickler fed with noise stumbles anywhere.
DAMAGE = (
    SafetensorError, pickle.UnpicklingError, zipfile.BadZipFile, struct.error, EOFError, RuntimeError, ValueError,
    LookupError, TypeError, AttributeError, AssertionError, OverflowError, MemoryError,
)  # fmt: skip

Value = TypeVar("Value")


@dataclass(frozen=True)
class Header:
    """What a checkpoint holds, without its weights.

    shapes: name -> shape of every tensor, prefixes stripped, in the file's order; recorded: every other number in it.
    """

    epoch: int | None
    step: int | None
    shapes: dict[str, tuple[int, ...]]
    recorded: dict[str, float] = field(default_factory=dict)


def read_header(path: Path) -> Header:
    """Read names, shapes, epoch, step and recorded numbers of `path`."""
    if path.suffix == ".safetensors":
        with _readable(path), safe_open(path, "pt") as file:
            said: Mapping[str, Any] = file.metadata() or {}
            names = file.keys()
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
    else:
        said = _load(path, "meta")
        shapes = {name: tuple(tensor.shape) for name, tensor in _weights(said, path).items()}
    # A slash would be a path in the activations file.
    numbers = {
        str(name).replace("/", "."): number for name, value in said.items() if (number := _number(value)) is not None
    }
    epoch = numbers.pop("epoch", None)
    step = next((numbers.pop(key) for key in STEP_KEYS if key in numbers), None)
    return Header(_integer(epoch), _integer(step), strip_prefixes(shapes), numbers)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the state dict of `path` on the CPU, prefixes stripped; raises where it is no state dict."""
    if path.suffix == ".safetensors":
        with _readable(path):
            return strip_prefixes(load_file(path))
    return strip_prefixes(_weights(_load(path, "cpu"), path))


def strip_prefixes(tensors: dict[str, Value]) -> dict[str, Value]:
    """Drop `module.` and `_orig_mod.` from the front of the names, as often as every name has them.

    >>> strip_prefixes({"module._orig_mod.fc.weight": 1, "module._orig_mod.module.bias": 2})
    {'fc.weight': 1, 'module.bias': 2}
    """
    while tensors:
        prefix = next((prefix for prefix in PREFIXES if all(name.startswith(prefix) for name in tensors)), None)
        if prefix is None:
            break
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def _load(path: Path, device: str) -> Mapping[str, Any]:
    with _readable(path):
        try:
            found = torch.load(path, map_location=device, weights_only=True, mmap=zipfile.is_zipfile(path))
        except pickle.UnpicklingError as error:
            if "weights_only" not in str(error).lower():
                raise
            raise PosthocError(
                f"{path} holds Python objects beside tensors (a whole pickled module, perhaps), which are not loaded "
                f"because loading would run code from the file; save model.state_dict() instead."
            ) from None
    if not isinstance(found, Mapping):
        raise PosthocError(f"{path} holds a {type(found).__name__}, not a state dict.")
    return found


def _weights(found: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    inner = next((found[key] for key in WRAPPERS if isinstance(found.get(key), Mapping)), found)
    weights = {name: value for name, value in inner.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if not weights:
        keys = ", ".join(str(key) for key in list(found)[:8])
        raise PosthocError(
            f"{path} holds no state dict, plain or under {', '.join(WRAPPERS)} (found: {keys or 'nothing'})."
        )
    return weights


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn what the libraries raise for damaged files into one sentence."""
    try:
        yield
    except FileNotFoundError:
        raise PosthocError(f"No such file: {path}.") from None
    except DAMAGE as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise PosthocError(f"{path} is damaged or cut short ({reason}); remove it or copy it again.") from error
    except OSError as error:
        raise PosthocError(f"Cannot read {path}: {error.strerror or error}.") from error


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        return float(value)
    except ValueError:
        return None


def _integer(value: float | None) -> int | None:
    return int(value) if value is not None and math.isfinite(value) and value == int(value) else None
