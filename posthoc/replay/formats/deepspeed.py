"""Folders of DeepSpeed: read where one file holds all weights, otherwise the error says what puts them together."""

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from posthoc.errors import PosthocError
from posthoc.replay.formats.folder import INSIDE
from posthoc.replay.formats.table import Content, Format, Preview, open_content, preview
from posthoc.replay.source import Source

if TYPE_CHECKING:
    from torch import Tensor

WHOLE = "mp_rank_00_model_states.pt"
"""The weights, if no other process has a part of them; those of the optimiser may be split all the same."""


def _matches(seen: Preview) -> bool:
    """A folder with states of models; or one of Transformers' Trainer that keeps its weights in such a folder."""
    within = {"latest", "trainer_state.json"} <= seen.names and seen.names.isdisjoint(INSIDE)
    return seen.is_folder and (within or any(name.endswith("_model_states.pt") for name in seen.names))


def _states(folder: Path) -> Path:
    """The file that holds the weights; PosthocError where they are split."""
    names = preview(folder).names
    steps = sorted(name for name in names if re.fullmatch(r"global_step\d+", name))
    if len(steps) == 1 and not any(name.endswith("_model_states.pt") for name in names):
        return _states(folder / steps[0])
    states = [name for name in names if name.endswith("_model_states.pt")]
    if not all(re.fullmatch(r"mp_rank_\d+_model_states\.pt", name) for name in states):
        _refuse(folder)
    if states != [WHOLE]:
        words = shlex.join(["--input_folder", str(folder), "--output_folder", f"{folder}-merged"])
        raise PosthocError(
            f"{folder} is a checkpoint of DeepSpeed, each layer split over processes; put it together with `python "
            f"tools/convert_checkpoint/deepspeed_to_megatron.py {words} --target_tp 1 --target_pp 1` in a checkout of "
            f"Megatron-DeepSpeed and give {folder}-merged."
        )
    return folder / WHOLE


def _refuse(folder: Path) -> NoReturn:
    place, tag = (folder.parent, ["--tag", folder.name]) if folder.name.startswith("global_step") else (folder, [])
    merged = place / "-".join(["fp32", *tag[1:]])
    words = shlex.join([str(place), str(merged), *tag])
    raise PosthocError(
        f"{folder} is a checkpoint of DeepSpeed (ZeRO), its weights split over processes; put them together with "
        f"`python -m deepspeed.utils.zero_to_fp32 {words}` and give {merged}."
    )


def _open(source: Source, folder: Path) -> Content:
    return open_content(source, _states(folder))


def _write(weights: Mapping[str, "Tensor"], folder: Path) -> None:
    import torch

    folder.mkdir()
    torch.save({"module": dict(weights), "global_steps": 40}, folder / WHOLE)


DEEPSPEED = Format("DeepSpeed", _matches, _open, lambda source, folder: [_states(folder)], write=_write)
