"""Folders of Megatron-LM (`iter_0001000/mp_rank_00/model_optim_rng.pt`), read where one process held the whole network."""

import re
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posthoc.errors import PosthocError
from posthoc.replay.formats.table import Content, Format, open_content, preview
from posthoc.replay.modules import mapping
from posthoc.replay.source import Source
from posthoc.replay.tensors import leaf

if TYPE_CHECKING:
    from torch import Tensor

FILES = ("model_optim_rng.pt", "model_rng.pt")
DEPTH = 6
"""So deep dictionaries may lie in each other: model, language_model, encoder."""


def _ranks(names: frozenset[str]) -> list[str]:
    return sorted(name for name in names if re.fullmatch(r"mp_rank_\d\d(_\d\d\d)*", name))


def _file(folder: Path) -> Path:
    """The file of the only process; PosthocError where there are several."""
    ranks = _ranks(preview(folder).names)
    if len(ranks) > 1:
        run = folder.parent
        words = shlex.join(["--load-dir", str(run), "--save-dir", f"{run}-merged"])
        raise PosthocError(
            f"{folder} is a checkpoint of Megatron-LM, its weights split over {len(ranks)} processes; put them together with "
            f"`python tools/checkpoint/convert.py --model-type GPT --loader core --saver core {words} "
            f"--target-tensor-parallel-size 1 --target-pipeline-parallel-size 1` in a checkout of Megatron-LM (which "
            f"converts the checkpoint that latest_checkpointed_iteration.txt names) and give {run}-merged."
        )
    rank = folder / ranks[0]
    return next((rank / name for name in FILES if (rank / name).exists()), rank / FILES[0])


def _open(source: Source, folder: Path) -> Content:
    content = open_content(source, _file(folder))
    tree = mapping(content.tree)
    return replace(content, tree={**tree, "model": _flat(source, mapping(tree.get("model")))})


def _flat(source: Source, items: Mapping[Any, Any], depth: int = DEPTH) -> dict[str, Any]:
    """The tensors in dictionaries that lie in each other, by the names joined with dots."""
    source.budget.operate(len(items))
    tensors = {}
    for name, value in items.items():
        if leaf(value) is not None:
            tensors[str(name)] = value
        elif depth and isinstance(name, str):
            inside = _flat(source, mapping(value), depth - 1)
            source.budget.produce(len(inside) * len(name))
            tensors.update({f"{name}.{inner}": tensor for inner, tensor in inside.items()})
    return tensors


def _write(weights: Mapping[str, "Tensor"], folder: Path) -> None:
    import torch

    (folder / "mp_rank_00").mkdir(parents=True)
    nested = {"language_model": {"encoder": dict(weights)}}
    torch.save({"model": nested, "iteration": 40}, folder / "mp_rank_00" / FILES[0])


MEGATRON = Format(
    "Megatron-LM", lambda seen: bool(_ranks(seen.names)), _open, lambda source, folder: [_file(folder)], write=_write
)
