"""Models that MLflow keeps: a folder with `MLmodel`, and the pickled module in `data/model.pth`."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from posthoc.replay.formats.table import Content, Format, Preview, files_of, open_content
from posthoc.replay.source import Source

if TYPE_CHECKING:
    from torch import Tensor

FILES = ("data/model.pth", "state_dict.pth", "model.safetensors")


def _file(folder: Path) -> Path:
    return next((folder / name for name in FILES if (folder / name).is_file()), folder / FILES[0])


def _matches(seen: Preview) -> bool:
    return "MLmodel" in seen.names and "data" in seen.names


def _open(source: Source, folder: Path) -> Content:
    return open_content(source, _file(folder))


def _write(weights: Mapping[str, "Tensor"], folder: Path) -> None:
    import torch

    (folder / "data").mkdir(parents=True)
    (folder / "MLmodel").write_text("flavors: pytorch\n")
    torch.save(dict(weights), folder / FILES[0])


MLFLOW = Format("MLflow", _matches, _open, lambda source, folder: files_of(_file(folder), source), write=_write)
