"""Files of safetensors.

Not through the library's memory map: a file that another process cuts short would end this one.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from posthoc.replay.formats.table import Content, Format, Preview
from posthoc.replay.source import Source
from posthoc.replay.tensors import Block, reader, stored_blocks

MAX_HEADER = 100_000_000
"""Bytes of a header, the library's own limit."""
TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64, "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


def _matches(seen: Preview) -> bool:
    """Whether the file begins with the length of a JSON object, which lies in the file."""
    return seen.head[8:9] == b"{" and 2 <= int.from_bytes(seen.head[:8], "little") <= seen.size - 8


def _open(source: Source, path: Path) -> Content:
    size = source.size(path)
    with source.open(path) as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(MAX_HEADER, size - 8):
            raise EOFError("it ends inside its header")
        header = source.budget.json(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("its header is no object")
    metadata = header.pop("__metadata__", None) or {}
    blocks = {name: _block(entry, 8 + length) for name, entry in header.items()}
    tensors = stored_blocks(source, path, blocks)
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise ValueError("its metadata are no texts")
    return Content(tensors, metadata, reader(source, path))


def _block(entry: Any, header: int) -> Block:
    start, end = entry["data_offsets"]
    return Block(TYPES[entry["dtype"]], tuple(entry["shape"]), header + start, header + end)


SAFETENSORS = Format(
    "safetensors",
    _matches,
    _open,
    endings=(".safetensors",),
    write=lambda weights, path: save_file(dict(weights), path, {"epoch": "3"}),
)
