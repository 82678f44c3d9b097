"""Folders of other libraries' checkpoints: known by what is in them, named, and not read."""

from pathlib import Path
from typing import NoReturn

from posthoc.replay.formats.table import Format, preview
from posthoc.replay.source import Source
from posthoc.replay.strangers import StrangerError

FOLDERS = (
    (
        ("_CHECKPOINT_METADATA", "orbax.checkpoint", "_METADATA", "manifest.ocdbt"),
        "a checkpoint of Orbax (JAX): restore it in JAX and save its arrays by name with safetensors.flax.save_file, a file "
        "for each step",
    ),
    (
        ("saved_model.pb",),
        "a SavedModel of TensorFlow: load it there and save its arrays by name with safetensors.tensorflow.save_file",
    ),
    (
        ("zarr.json", ".zgroup"),
        "a store of Zarr, such as JAX's libraries write: save the arrays by name with safetensors",
    ),
)
"""Names by one of which a folder is known, and what it is, with the way out."""


def _what(names: frozenset[str]) -> str | None:
    return next((what for inside, what in FOLDERS if not names.isdisjoint(inside)), None)


def _refuse(source: Source, folder: Path) -> NoReturn:
    raise StrangerError(
        folder, _what(preview(folder).names) or "of another library: save its arrays by name with safetensors"
    )


FOREIGN = Format(
    "other libraries' folders", lambda seen: seen.is_folder and _what(seen.names) is not None, _refuse, _refuse
)
