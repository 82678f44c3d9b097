"""Files of safetensors.

Not through the library's memory map: a file that another process cuts short would end this one.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posthoc.replay.dtypes import DTYPES
from posthoc.replay.formats.table import Content, Format, Preview
from posthoc.replay.source import Source
from posthoc.replay.strangers import UnsupportedError
from posthoc.replay.tensors import Block, reader, stored_blocks

if TYPE_CHECKING:
    from torch import Tensor

MAX_HEADER = 100_000_000
"""Bytes of a header, the library's own limit."""
_NAMES = (
    "F64=float64 F32=float32 F16=float16 BF16=bfloat16 I64=int64 I32=int32 I16=int16 I8=int8 U8=uint8 BOOL=bool U16=uint16 "
    "U32=uint32 U64=uint64 C64=complex64 F8_E4M3=float8_e4m3fn F8_E5M2=float8_e5m2 F8_E4M3FNUZ=float8_e4m3fnuz "
    "F8_E5M2FNUZ=float8_e5m2fnuz F8_E8M0=float8_e8m0fnu"
)
TYPES = {theirs: DTYPES[name] for theirs, name in (pair.split("=") for pair in _NAMES.split())}
"""Types of numbers by the format's names of them."""


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
    if sum(block.end - block.start for block in blocks.values()) != size - 8 - length:  # as the library says of it
        raise ValueError("it has bytes that belong to no tensor")
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise ValueError("its metadata are no texts")
    return Content(tensors, metadata, reader(source, path))


def _block(entry: Any, header: int) -> Block:
    start, end = entry["data_offsets"]
    if entry["dtype"] not in TYPES:
        what = f"it has tensors of type {str(entry['dtype'])[:20]!r}"
        raise UnsupportedError(what, "save them as another type, such as float32 or bfloat16")
    return Block(TYPES[entry["dtype"]], tuple(entry["shape"]), header + start, header + end)


def _write(weights: Mapping[str, "Tensor"], path: Path) -> None:
    from safetensors.torch import save_file

    save_file(dict(weights), path, {"epoch": "3"})


SAFETENSORS = Format("safetensors", _matches, _open, endings=(".safetensors",), write=_write)
