"""A config.json beside the weights: which library's network it describes. Nothing in it decides what code runs."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posthoc.errors import PosthocError, UsageError
from posthoc.files import read_json
from posthoc.replay.formats.table import folder_of

NAME = "config.json"
LARGEST = 2**24
"""Bytes of a config.json; those with the names of many classes are long."""
LIBRARIES = {"model_type": "transformers", "_class_name": "diffusers", "architecture": "timm"}
"""By the key, a text, that a library's own configs have."""
REMOTE = ("auto_map", "trust_remote_code", "custom_pipelines")
"""Keys that would have a library run code which comes with the weights."""
PASSING = ("transformers_version", "_diffusers_version", "_name_or_path", "torch_dtype", "dtype")
"""Keys on which nothing depends that single precision gives."""


@dataclass(frozen=True)
class Config:
    """The content of a config.json, and where it lies."""

    path: Path
    content: dict[str, Any]

    @property
    def library(self) -> str | None:
        """The library whose network it describes; None where it is another program's."""
        return next((name for key, name in LIBRARIES.items() if isinstance(self.content.get(key), str)), None)

    @property
    def digest(self) -> str:
        """SHA-256 of what the network depends on."""
        kept = {key: value for key, value in self.content.items() if key not in PASSING}
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def find_config(place: Path) -> Config | None:
    """The config.json beside the weights or in the checkpoint's folder that one of the libraries wrote, if there is one."""
    for folder in dict.fromkeys((folder_of(place), place, place.parent)):
        if (folder / NAME).is_file():
            content = read_json(folder / NAME, LARGEST, "a library")
            if isinstance(content, dict) and (config := Config(folder / NAME, content)).library:
                return config
    return None


def read_config(place: Path) -> Config:
    """The config in a file, or in a folder's config.json, that the command line names."""
    path = place / NAME if place.is_dir() else place
    content = read_json(path, LARGEST, "a library")
    if not isinstance(content, dict):
        raise UsageError(f"{path} is no config of a network, but other JSON; give the folder of one.")
    return Config(path, content)


def refuse_code(config: Config) -> None:
    """Raise PosthocError where the config names code that would have to come with the weights."""
    for key, value in _entries(config.content):
        if key in REMOTE and value:
            raise PosthocError(
                f"{config.path} names code beside the weights ({key}), which is never run; "
                f"pass your own with --model FILE.py:FACTORY."
            )


def _entries(content: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """All keys and values, of what is nested too."""
    waiting: list[Any] = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield from value.items()
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
