"""Files of torch.save since version 1.6 and of TorchScript: a zip archive of one pickle and the numbers of each storage."""

import io
import re
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from posthoc.replay.dtypes import DType
from posthoc.replay.formats.table import Format, Preview
from posthoc.replay.formats.torch_pickle import ENDINGS, Storages, open_torch
from posthoc.replay.pickles import Bounded, unpickle
from posthoc.replay.strangers import UnsupportedError, entries
from posthoc.replay.tensors import Maker, Storage

if TYPE_CHECKING:
    from torch import Tensor

ENTRY = b"PK\3\4"
MAX_PICKLE = 1 << 30


def begins(head: bytes) -> bool:
    """Whether the first entry is one of torch's."""
    name = head[30 : 30 + int.from_bytes(head[26:28], "little")]
    return head.startswith(ENTRY) and bool(re.match(rb"[^/]*/data(\.pkl|/)", name))


def _matches(seen: Preview) -> bool:
    """By the first entry, or where that is some other by all, which take long to list; or damaged, and no telling."""
    if not seen.head.startswith(ENTRY) or begins(seen.head):
        return seen.head.startswith(ENTRY)
    names = entries(seen.path)
    return not names or any(name.endswith("/data.pkl") for name in names)


def parse(file: io.BufferedIOBase, size: int, maker: Maker) -> Any:
    """The content of an archive; its storages are places in the file."""
    archive = zipfile.ZipFile(file)
    members = {member.filename: member for member in archive.infolist()}
    maker.budget.operate(len(members))
    if min((member.header_offset for member in archive.infolist()), default=0) > 0:
        raise EOFError("it is the beginning of an archive that held another")
    roots = [name.removesuffix("data.pkl") for name in members if re.fullmatch(r"[^/]*/data\.pkl", name)]
    if not roots:
        raise UnsupportedError("its archive has no data.pkl, which torch.save writes")
    root = roots[0]
    # Readers differ in which of two they take, and torch's takes capitals for small letters.
    if len(members) < len(archive.infolist()) or len(roots) > 1 or _in_two_spellings(members, root):
        raise UnsupportedError("its archive has an entry of one name twice")
    if f"{root}byteorder" in members and read_entry(file, members[f"{root}byteorder"]) != b"little":
        raise UnsupportedError("it was written by a big-endian machine")

    def place(name: str, dtype: DType, count: int) -> Storage:
        member = members[f"{root}data/{name}"]
        storage = maker.storage(dtype, count, start_of(file, member))
        if storage.bytes > member.file_size:
            raise EOFError("a storage is shorter than said")
        return storage

    content = read_entry(file, members[f"{root}data.pkl"])
    stream = Bounded(io.BytesIO(content), len(content))
    return unpickle(stream, maker.construct, Storages(maker, place), maker.budget)


def _in_two_spellings(names: Mapping[str, Any], root: str) -> bool:
    used = [name.lower() for name in names if name.lower().startswith((f"{root}data".lower(), f"{root}byteorder"))]
    return len(set(used)) < len(used)


def start_of(file: io.BufferedIOBase, entry: zipfile.ZipInfo) -> int:
    """Where the bytes of a stored entry begin; checked to lie in the file."""
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
        raise UnsupportedError("it is compressed inside, which torch.save does not do")
    file.seek(entry.header_offset)
    header = file.read(30)
    if header[:4] != ENTRY:
        raise ValueError("an entry of the archive is missing")
    name, extra = struct.unpack("<HH", header[26:30])
    start: int = entry.header_offset + 30 + name + extra
    if start + entry.file_size > file.seek(0, io.SEEK_END):
        raise EOFError("it ends inside an entry of the archive")
    return start


def read_entry(file: io.BufferedIOBase, entry: zipfile.ZipInfo, most: int = MAX_PICKLE) -> bytes:
    """The bytes of a stored entry, of which there are at most so many."""
    start = start_of(file, entry)
    if entry.file_size > most:
        raise UnsupportedError(f"its {PurePosixPath(entry.filename).name[:20]} is larger than {most >> 20} MiB")
    file.seek(start)
    return file.read(entry.file_size)


def _write(weights: Mapping[str, "Tensor"], path: Path) -> None:
    import torch

    torch.save({"state_dict": dict(weights), "epoch": 3}, path)


TORCH_ZIP = Format(
    "torch zip",
    _matches,
    lambda source, path: open_torch(source, path, parse),
    endings=ENDINGS,
    write=_write,
)
