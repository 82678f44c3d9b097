"""Folders of Diffusers, one for each part of a pipeline (`unet/diffusion_pytorch_model.safetensors`): the network that denoises."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from posthoc.replay.formats.folder import together
from posthoc.replay.formats.table import Content, Format, Preview, files_of, folder_formats, open_content
from posthoc.replay.source import Source
from posthoc.replay.weights import MAIN, find_weights

if TYPE_CHECKING:
    from torch import Tensor

PARTS = ("unet", "transformer", "prior", "controlnet")
"""Which part it is called; the others (text_encoder, vae) are mostly those of another training."""


def _parts(folder: Path, names: frozenset[str]) -> dict[str, Path]:
    """The folders of the network and of its moving average, under the keys that single files have for these."""
    for part in PARTS:
        places = {key: folder / name for key, name in (("model", part), ("ema", f"{part}_ema")) if name in names}
        places = {key: place for key, place in places.items() if _holds_weights(place)}
        if places:
            return places
    return {}


def _holds_weights(folder: Path) -> bool:
    return folder.is_dir() and any(form.divisible for form in folder_formats(folder))


def _matches(seen: Preview) -> bool:
    return seen.is_folder and bool(_parts(seen.path, seen.names))


def _networks(folder: Path) -> dict[str, Path]:
    parts = _parts(folder, frozenset(name for part in PARTS for name in (part, f"{part}_ema")))
    if not parts:
        raise FileNotFoundError(2, "the network is missing", str(folder / PARTS[0]))
    return parts


def _open(source: Source, folder: Path) -> Content:
    contents = {key: open_content(source, place) for key, place in _networks(folder).items()}
    if list(contents) == ["model"]:
        return contents["model"]
    tree = {key: find_weights(part.tree, MAIN, folder, source.budget) for key, part in contents.items()}
    return together(contents, tree)


def _files(source: Source, folder: Path) -> list[Path]:
    return [file for place in _networks(folder).values() for file in files_of(place, source)]


def _write(weights: Mapping[str, "Tensor"], folder: Path) -> None:
    from safetensors.torch import save_file

    (folder / "unet").mkdir(parents=True)
    save_file(dict(weights), folder / "unet" / "diffusion_pytorch_model.safetensors")


DIFFUSERS = Format("Diffusers", _matches, _open, _files, write=_write)
