"""Folders that hold one checkpoint: the model's file beside those of optimiser, scheduler and trainer."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posthoc.replay.formats.table import (
    Content,
    Format,
    Preview,
    files_of,
    is_named_like_a_checkpoint,
    open_content,
    preview,
)
from posthoc.replay.names import form
from posthoc.replay.source import Source
from posthoc.replay.strangers import NoWeightsError
from posthoc.replay.tensors import Memory, Stored
from posthoc.replay.weights import MAIN, find_weights, is_network

if TYPE_CHECKING:
    from torch import Tensor

INSIDE = (
    "model.safetensors", "pytorch_model.bin", "model.safetensors.index.json", "pytorch_model.bin.index.json",
    "pytorch_model_fsdp_0", "adapter_model.safetensors", "adapter_model.bin", "lit_model.pth",
    "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin",
    "diffusion_pytorch_model.safetensors.index.json", "model_optim_rng.pt",
)  # fmt: skip
"""What holds the weights in a folder of Transformers, Accelerate, PEFT, Diffusers, LitGPT or Megatron; the first counts."""
USUAL = re.compile(
    r"(model|net|network|weights|state_dict|model_state|model_state_dict|checkpoint|ckpt|consolidated(\.00)?)\.[a-z]+"
)
"""What a script of one's own calls the file of the model, where that lies beside others."""
ACCELERATE = frozenset({"optimizer.bin", "random_states_0.pkl"})
"""What Accelerate writes beside it; further networks, if it was given several, are numbered there."""


def model_files(names: frozenset[str]) -> list[str]:
    """The file of the model among those in a folder; where the names do not tell, those that may be it.

    >>> model_files(frozenset({"model.pt", "optim.pt", "train.pt"})), model_files(frozenset({"actor.pt", "critic.pt"}))
    (['model.pt'], ['actor.pt', 'critic.pt'])
    >>> model_files(frozenset({"model.safetensors", "model_1.safetensors", "optimizer.bin"}))
    ['model.safetensors', 'model_1.safetensors']
    """
    if known := next((name for name in INSIDE if name in names), None):
        stem, _, ending = known.partition(".")
        further = re.compile(rf"{stem}_[0-9]+\.{re.escape(ending)}")
        return [known, *sorted(filter(further.fullmatch, () if ACCELERATE.isdisjoint(names) else names))]
    files = sorted(name for name in names if is_named_like_a_checkpoint(Path(name)) and not name.startswith("."))
    files = [name for name in files if is_network(name)]
    usual = [name for name in files if USUAL.fullmatch(name.lower())]
    return usual if len(usual) == 1 else files


def _matches(seen: Preview) -> bool:
    """Whether there is a file of the model, and not a series of them, whose names differ by their numbers."""
    files = model_files(seen.names) if seen.is_folder else []
    return bool(files) and (files[0] in INSIDE or len(files) == len({form(name) for name in files}))


def _open(source: Source, folder: Path) -> Content:
    files = model_files(preview(folder).names)
    return open_content(source, folder / files[0]) if len(files) == 1 else _several(source, folder, files)


def _several(source: Source, folder: Path, files: list[str]) -> Content:
    """Those of the files that hold weights, by their names without endings; all is as in the file where it is but one."""
    contents: dict[str, Content] = {}
    tree: dict[str, dict[str, Any]] = {}
    for name in files:
        content = open_content(source, folder / name)
        key = name.partition(".")[0]
        key = name if key in contents else key
        try:
            tree[key] = find_weights(content.tree, MAIN, folder / name, source.budget)
            contents[key] = content
        except NoWeightsError:
            continue
    return next(iter(contents.values())) if len(contents) == 1 else together(contents, tree)


def together(contents: Mapping[str, Content], tree: Mapping[str, Mapping[str, Any]]) -> Content:
    """The weights of several files as one content, by the keys of the files."""
    places = {id(_origin(tensor)): key for key, weights in tree.items() for tensor in weights.values()}

    def read(wanted: Memory) -> None:
        for key, content in contents.items():
            part = {name: place for name, place in wanted.items() if places[id(_origin(place[0]))] == key}
            if part:
                content.read(part)

    return Content(dict(tree), {}, read)


def _origin(tensor: Any) -> Any:
    """What a tensor has in common with every part of it that is read by itself."""
    return tensor.storage if isinstance(tensor, Stored) else tensor


def _files(source: Source, folder: Path) -> list[Path]:
    return [file for name in model_files(preview(folder).names) for file in files_of(folder / name, source)]


def _write(weights: Mapping[str, "Tensor"], folder: Path) -> None:
    from safetensors.torch import save_file

    folder.mkdir()
    save_file(dict(weights), folder / INSIDE[0])
    log = [{"step": 40, "epoch": 1.5, "eval_loss": 0.5}]
    state = {"epoch": 1.5, "global_step": 40, "log_history": log}
    (folder / "trainer_state.json").write_text(json.dumps(state))


FOLDER = Format("folder of a checkpoint", _matches, _open, _files, inside=INSIDE, divisible=True, write=_write)
