"""Folders of Transformers' Trainer and of Accelerate, which keep the model's file beside others."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from posthoc.errors import PosthocError
from posthoc.replay.formats.table import Content, Format, Preview, files_of, open_content
from posthoc.replay.source import Source

INSIDE = (
    "model.safetensors", "pytorch_model.bin", "model.safetensors.index.json", "pytorch_model.bin.index.json",
    "pytorch_model_fsdp_0",
)  # fmt: skip
"""What holds the weights, the first of these that is there."""


def _matches(seen: Preview) -> bool:
    return not seen.names.isdisjoint(INSIDE)


def _model(folder: Path) -> Path:
    names = {path.name for path in folder.iterdir()}
    return folder / next(name for name in INSIDE if name in names)


def _open(source: Source, folder: Path) -> Content:
    content = open_content(source, _model(folder))
    return replace(content, recorded={**content.recorded, **trainer_state(source, folder)})


def trainer_state(source: Source, folder: Path) -> dict[str, Any]:
    """Step, epoch and last evaluation that Transformers' Trainer wrote beside the weights; the step is in the name."""
    recorded: dict[str, Any] = {}
    step = re.fullmatch(r".*\D(\d{1,18})", folder.name)
    if folder.name.startswith("checkpoint-") and step:
        recorded["global_step"] = int(step[1])
    path = folder / "trainer_state.json"
    if not path.is_file():
        return recorded
    state = source.read_json(path)
    try:
        recorded |= {key: state[key] for key in ("epoch", "global_step") if key in state}
        for row in state.get("log_history", []):
            if row.get("step") == state.get("global_step"):
                recorded |= {key: value for key, value in row.items() if key.startswith("eval_") or key == "loss"}
    except (TypeError, AttributeError) as error:
        raise PosthocError(f"{path} is not what Transformers' Trainer writes ({error}); mend or remove it.") from error
    return recorded


def _write(weights: Mapping[str, Tensor], folder: Path) -> None:
    folder.mkdir()
    save_file(dict(weights), folder / INSIDE[0])
    log = [{"step": 40, "epoch": 1.5, "eval_loss": 0.5}]
    state = {"epoch": 1.5, "global_step": 40, "log_history": log}
    (folder / "trainer_state.json").write_text(json.dumps(state))


TRAINER = Format(
    "trainer's folder",
    _matches,
    _open,
    lambda source, folder: files_of(_model(folder), source),
    inside=INSIDE,
    divisible=True,
    write=_write,
)
