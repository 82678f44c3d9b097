"""A JSON index of shards, as Transformers and Accelerate write it: which file beside it holds which tensor."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posthoc.errors import PosthocError
from posthoc.replay.formats.table import Content, Format, Preview, format_to_read, preview
from posthoc.replay.modules import mapping
from posthoc.replay.source import Source
from posthoc.replay.strangers import NoWeightsError
from posthoc.replay.tensors import Memory

if TYPE_CHECKING:
    from torch import Tensor


def _matches(seen: Preview) -> bool:
    return SHARDS.names(seen.path) or bool(re.match(rb'\s*{\s*"', seen.head) and b'"weight_map"' in seen.head)


def _open(source: Source, path: Path) -> Content:
    tree: dict[str, Any] = {}
    contents: dict[str, Content] = {}
    weight_map = _weight_map(source, path)
    for shard in dict.fromkeys(weight_map.values()):
        place = path.parent / shard
        form = format_to_read(preview(place, source))
        if form.files:
            raise PosthocError(
                f"{path} names {shard!r}, which is not one file with weights; copy the checkpoint again."
            )
        contents[shard] = form.open(source, place)
        tree.update(mapping(contents[shard].tree))
    missing = [name for name in weight_map if name not in tree]
    if missing:
        raise ValueError(f"no shard holds {missing[0]}")

    def read(wanted: Memory) -> None:
        for shard in {weight_map[name] for name in wanted}:
            contents[shard].read({name: place for name, place in wanted.items() if weight_map[name] == shard})

    return Content({name: tree[name] for name in weight_map}, {}, read)


def _files(source: Source, path: Path) -> list[Path]:
    return [path, *sorted({path.parent / name for name in _weight_map(source, path).values()})]


def _weight_map(source: Source, path: Path) -> dict[str, str]:
    index = source.read_json(path)
    shards = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(shards, dict) or not shards:
        raise NoWeightsError(f"{path} lists no shards of a network's weights; copy the checkpoint again.")
    for shard in dict.fromkeys(map(_text, shards.values())):
        if Path(shard).name != shard or shard.endswith(".json") or "\0" in shard:
            raise PosthocError(f"{path} names {shard!r}, which is no file beside it; copy the checkpoint again.")
        if not (path.parent / shard).is_file():
            raise PosthocError(f"{path} names {shard}, which is missing; copy it there.")
    return shards


def _text(value: Any) -> str:
    """A text as it is; anything else as one that names no file."""
    return value if isinstance(value, str) else f"{value}/"


def _write(weights: Mapping[str, "Tensor"], path: Path) -> None:
    from safetensors.torch import save_file

    shards = {name: f"shard-{k}.safetensors" for k, name in enumerate(weights)}
    for name, shard in shards.items():
        save_file({name: weights[name]}, path.parent / shard)
    path.write_text(json.dumps({"weight_map": shards}))


SHARDS = Format("index of shards", _matches, _open, _files, (".index.json",), write=_write)
