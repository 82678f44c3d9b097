"""Folders of Diffusers, one for each part of a pipeline (`unet/diffusion_pytorch_model.safetensors`): the network that denoises."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from posthoc.replay.formats.folder import trainer_state
from posthoc.replay.formats.table import Content, Format, Preview, files_of, folder_formats, open_content
from posthoc.replay.source import Source

PARTS = ("unet", "transformer", "prior", "controlnet")
"""Which part it is called; the others (text_encoder, vae) are mostly those of another training."""


def _part(folder: Path, names: frozenset[str]) -> Path | None:
    parts = (folder / name for name in PARTS if name in names and (folder / name).is_dir())
    return next((part for part in parts if any(form.divisible for form in folder_formats(part))), None)


def _matches(seen: Preview) -> bool:
    return seen.is_folder and _part(seen.path, seen.names) is not None


def _network(folder: Path) -> Path:
    part = _part(folder, frozenset(PARTS))
    if part is None:
        raise FileNotFoundError(2, "the network is missing", str(folder / PARTS[0]))
    return part


def _open(source: Source, folder: Path) -> Content:
    content = open_content(source, _network(folder))
    return replace(content, recorded={**content.recorded, **trainer_state(source, folder)})


def _write(weights: Mapping[str, Tensor], folder: Path) -> None:
    (folder / "unet").mkdir(parents=True)
    save_file(dict(weights), folder / "unet" / "diffusion_pytorch_model.safetensors")


DIFFUSERS = Format(
    "Diffusers", _matches, _open, lambda source, folder: files_of(_network(folder), source), write=_write
)
