"""Adapters of the PEFT library (LoRA and its like) beside the base network that they change."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from posthoc.errors import PosthocError
from posthoc.files import read_json
from posthoc.replay.configs import LARGEST, Config, refuse_code
from posthoc.replay.formats.table import folder_of
from posthoc.replay.forward import error_line
from posthoc.replay.marks import Names, find_marks, marked, sources
from posthoc.replay.recognition import Shapes, sentence

ADAPTER = "adapter_config.json"
ADAPTER_NAME = "default"


def find_adapter(place: Path) -> Config | None:
    """The adapter_config.json in a checkpoint's folder, or beside its file."""
    path = folder_of(place) / ADAPTER
    if not path.is_file():
        return None
    content = read_json(path, LARGEST, "PEFT")
    if not isinstance(content, dict) or not isinstance(content.get("peft_type"), str):
        raise PosthocError(f"{path} names no peft_type; save the adapter again, with save_pretrained.")
    return Config(path, content)


@dataclass(frozen=True)
class Adapted:
    """A base network with an adapter in place: names, and drawn, are those of `transformers.Skeleton`.

    module: the base network itself, whose layers keep their names and hold the adapter.
    """

    module: nn.Module
    names: Callable[[Shapes], Names]
    drawn: Callable[[int], nn.Module]


def adapt(base: Callable[[], nn.Module], adapter: Config, shapes: Shapes) -> Adapted:
    """The network that `base` makes, with the adapter of that config for a checkpoint's tensors.

    Raises PosthocError where the adapter is of a kind that changes more than layers, or its tensors do not fit.
    """
    if find_spec("peft") is None:
        raise PosthocError(f"{adapter.path} needs peft; install posthoc[peft].")
    refuse_code(adapter)
    wrapped = _wrapped(base(), adapter)
    names = partial(_names, wrapped, adapter)
    first_names = names(shapes)

    def drawn(seed: int) -> nn.Module:
        network = base()
        torch.manual_seed(seed)
        return _inner(_wrapped(network, adapter))

    return Adapted(_inner(wrapped), lambda other: first_names if other == shapes else names(other), drawn)


def _inner(wrapped: Any) -> nn.Module:
    module: nn.Module = wrapped.get_base_model().eval()
    return module


def _wrapped(base: nn.Module, adapter: Config) -> Any:
    """PEFT's own module around the base, as its from_pretrained makes it."""
    import peft

    content, path = adapter.content, adapter.path
    kind = content["peft_type"]
    if kind not in {str(getattr(key, "value", key)) for key in peft.PEFT_TYPE_TO_CONFIG_MAPPING}:
        raise PosthocError(f"{path}: peft {peft.__version__} has no peft_type {kind!r}; install a version that has.")
    if content.get("megatron_config"):
        raise PosthocError(
            f"{path} is an adapter of Megatron, whose module it names; it is not replayed: save the network with its adapter merged."
        )
    config_class = peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(kind)]
    known = {name: value for name, value in content.items() if name in config_class.__dataclass_fields__}
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[], enabled=False):
            warnings.simplefilter("ignore")
            config = config_class(**known | {"inference_mode": True, "base_model_name_or_path": None})
            if config.is_prompt_learning:
                raise PosthocError(
                    f"{path}: {kind} adds to the input, and not to layers, which is not replayed; give adapters of layers, such as LORA."
                )
            return peft.PeftModel(base.eval(), config, ADAPTER_NAME)
    except PosthocError:
        raise
    except Exception as error:  # whatever the library makes of such values and such a base
        raise PosthocError(
            f"{path}: the adapter does not fit {type(base).__name__} ({error_line(error, whole=True)}); give the base that it was trained on."
        ) from error


def _names(wrapped: Any, adapter: Config, shapes: Shapes) -> Names:
    """The tensors of the base network with its adapter -> those of a checkpoint."""
    import peft

    saved = peft.get_peft_model_state_dict(wrapped)
    wanted = {name: tuple(tensor.shape) for name, tensor in saved.items()}
    kinds = {
        "missing": [name for name in wanted if name not in shapes],
        "unexpected": [name for name in shapes if name not in wanted],
        "of another shape": [
            f"{name} {list(shapes[name])} instead of {list(shape)}"
            for name, shape in wanted.items()
            if name in shapes and shapes[name] != shape
        ],
    }
    if any(kinds.values()):
        words = sentence({kind: names for kind, names in kinds.items() if names})
        raise PosthocError(
            f"The adapter does not fit {type(wrapped.get_base_model()).__name__}: {words}; give the base that it was trained on."
        )
    inner = wrapped.get_base_model()
    kept = {name: tensor.clone() for name, tensor in inner.state_dict().items()}
    marks = marked(shapes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft.set_peft_model_state_dict(wrapped, dict(marks), adapter_name=ADAPTER_NAME)
    names, _ = find_marks(inner, marks)
    inner.load_state_dict(kept)
    found = {saved[name].data_ptr() for name in sources(names)}
    if lost := [
        name for name in shapes if saved[name].data_ptr() not in found
    ]:  # of tied ones peft takes one of the file
        raise PosthocError(
            f"{adapter.path}: peft puts {min(lost)} nowhere in {type(inner).__name__}; save the network with its adapter merged."
        )
    return names
