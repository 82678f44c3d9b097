"""Tensors of a checkpoint in torch: read into memory of its own, whether they can take their place in a network, and what
the network's own code has to say to that."""

import copy
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from posthoc.errors import PosthocError
from posthoc.replay.dtypes import DTYPES, FLOATING, WHOLE
from posthoc.replay.formats.table import Content
from posthoc.replay.marks import Names, find_marks, marked, sources
from posthoc.replay.naming import UNUSED, canonical, readings

LIBRARIES = frozenset({"torch", "torchvision", "timm", "transformers", "diffusers", "peft"})
"""Whose own ways of loading come to what putting each tensor in its place comes to."""


def load(
    content: Content, wanted: Mapping[str, Any], into: Mapping[str, Tensor] | None = None, pin: bool = False
) -> dict[str, Tensor]:
    """Some of the tensors of a checkpoint, on the CPU.

    `into`: tensors whose memory may be used again where they are of the same form; `pin`: new memory is pinned. The same
    tensor under several names is read once, and so is memory used once.
    """
    buffers: dict[Any, Tensor] = {}
    memory = {}
    used: set[int] = set()
    for name, leaf in wanted.items():
        if leaf not in buffers:
            old = (into or {}).get(name)
            if old is not None and old.data_ptr() not in used and _fits(old, leaf):
                buffers[leaf] = old.as_strided((leaf.bytes // old.element_size(),), (1,)).view(torch.uint8)
                used.add(old.data_ptr())
            else:
                buffers[leaf] = _empty(leaf.bytes, pin)
            memory[name] = leaf, buffers[leaf].numpy()
    content.read(memory)
    tensors = {
        leaf: buffer.view(leaf.dtype.torch).as_strided(leaf.shape, leaf.stride).contiguous()
        for leaf, buffer in buffers.items()
    }
    return {name: tensors[leaf] for name, leaf in wanted.items()}


def _empty(size: int, pin: bool) -> Tensor:
    """So many bytes; pinned if that is wanted and the machine has as many to pin, else a copy from them is waited for."""
    if pin:
        with suppress(RuntimeError):
            return torch.empty(size, dtype=torch.uint8, pin_memory=True)
    return torch.empty(size, dtype=torch.uint8)


def _fits(tensor: Tensor, leaf: Any) -> bool:
    return (tensor.dtype, tuple(tensor.shape), tensor.stride()) == (leaf.dtype.torch, leaf.shape, leaf.stride)


def require_types(module: nn.Module, types: Mapping[str, torch.dtype], path: Path) -> None:
    """Raise PosthocError where a checkpoint's tensor, by its name in `module`, is of a type that cannot take its place.

    Floating point numbers of any width are what torch's own loading makes of them. Whole numbers take the place of
    buffers, in which they are the same numbers, and of no trained parameter, where they would be quantised ones
    without their scale. An imaginary part is never dropped.
    """
    state = module.state_dict(keep_vars=True)
    for name, dtype in types.items():
        usual, numbers = state[name], DTYPES.get(_type(dtype))
        if dtype.is_complex:
            fits = usual.dtype.is_complex
        elif numbers in WHOLE:
            fits = not (isinstance(usual, nn.Parameter) and (usual.dtype.is_floating_point or usual.dtype.is_complex))
        else:
            fits = numbers in FLOATING
        if not fits:
            raise PosthocError(
                f"{path}: {name} is {_type(dtype)}, where the network has {_type(usual.dtype)}; it is not replayed as "
                f"something else: save it in the network's own type."
            )


def own_loading(module: nn.Module) -> list[str]:
    """What of a network, that is no library's, takes part when weights are loaded or when it goes over to evaluation."""
    words = []
    for part in module.modules():
        kind = type(part).__name__
        methods = ("load_state_dict", "_load_from_state_dict", "train", "eval")
        words += [f"{kind}.{name}" for name in methods if is_own(getattr(part, name, None))]
        hooks = (*part._load_state_dict_pre_hooks.values(), *part._load_state_dict_post_hooks.values())
        words += [f"a hook of {kind}" for hook in hooks if is_own(getattr(hook, "hook", hook))]
    return list(dict.fromkeys(words))


def is_own(function: Any) -> bool:
    """Whether a function is of no library's code."""
    return str(getattr(function, "__module__", "torch")).partition(".")[0] not in LIBRARIES


def own_names(module: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> Names | None:
    """Where the network's own loading puts a checkpoint's tensors, as of older names; None where it refuses them, or does
    more than put them in their places."""
    if not any(
        part._load_state_dict_pre_hooks or is_own(part._load_from_state_dict) or is_own(part.load_state_dict)
        for part in module.modules()
    ):
        return None
    usual = canonical(module.state_dict(keep_vars=True))
    first = next(iter(usual), "")
    prefix = first.removesuffix(usual.get(first, ""))
    for reading in readings(shapes):
        marks = marked({name: shapes[name] for name in reading})
        for called in ({name: name for name in reading}, {name: prefix + short for name, short in reading.items()}):
            with suppress(Exception):  # whatever it raises at names that are none of its own
                other = copy.deepcopy(module).train()
                with torch.no_grad():
                    other.load_state_dict({called[name]: mark.clone() for name, mark in marks.items()})
                names, others = find_marks(other, marks)
                used = sources(names)
                if all(name.endswith(UNUSED) for name in (*others, *(marks.keys() - used))):
                    return names
    return None


def _type(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
