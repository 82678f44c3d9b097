"""Tensors of a checkpoint in torch: read into memory of its own, and whether they can take their place in a network."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from posthoc.errors import PosthocError
from posthoc.replay.dtypes import DTYPES, FLOATING, WHOLE
from posthoc.replay.formats.table import Content


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


def _type(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
