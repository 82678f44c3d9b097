"""Files of torch.save before its zip archive, which are several pickles and then the numbers; and plain pickles.

Nothing in them is imported or run (see `pickles`), and a tensor is read only when it is asked for.
"""

import io
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posthoc.replay.dtypes import DType
from posthoc.replay.formats.table import Content, Format
from posthoc.replay.modules import mapping
from posthoc.replay.pickles import Bounded, Global, unpickle
from posthoc.replay.source import Source
from posthoc.replay.strangers import UnsupportedError
from posthoc.replay.tensors import STORAGES, Maker, Storage, reader

if TYPE_CHECKING:
    from torch import Tensor

MAGIC = 0x1950A86A20F9469CFC6C
"""What the older form begins with, as a pickled number."""
HEAD = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""That pickle."""
ENDINGS = (".pt", ".pth", ".ckpt", ".th", ".t7", ".bin", ".tar", ".pkl", ".pickle")


class Storages:
    """The storages that a file's pickles refer to; `place` makes one of a name that was not met before."""

    def __init__(self, maker: Maker, place: Callable[[str, DType, int], Storage]) -> None:
        self.maker, self.place = maker, place
        self.by_name: dict[str, Storage] = {}

    def __call__(self, key: Any) -> Storage | Global:
        """What a pickle's persistent id stands for: a storage, or the class of a module pickled with its source."""
        if isinstance(key, tuple) and len(key) > 1 and key[0] == "module" and isinstance(key[1], Global):
            kind: Global = key[1]
            return kind
        if not (isinstance(key, tuple) and len(key) >= 5 and key[0] == "storage" and isinstance(key[1], Global)):
            raise ValueError("it refers to something that is no storage")
        _, kind, name, _, size, *view = key
        if not isinstance(size, int) or not 0 <= size < 1 << 60:
            raise ValueError("a storage has no valid size")
        if kind.name not in STORAGES:
            raise UnsupportedError(f"it has storages of type {kind}")
        name, dtype = _name(name), STORAGES[kind.name]
        self.maker.budget.operate(len(name) >> 6)
        if name not in self.by_name:
            self.by_name[name] = self.place(name, dtype, size)
        if view and view[0] is not None:
            raise UnsupportedError("a storage is a view of another, which torch stopped writing in version 0.4")
        storage = self.by_name[name]
        if (storage.dtype, storage.size) != (dtype, size):
            raise ValueError("a storage is described in two ways")
        return storage


def _name(name: Any) -> str:
    if not (isinstance(name, str) or (isinstance(name, int) and abs(name) < 1 << 64)):
        raise ValueError("a storage has no valid name")
    return str(name)


def parse(file: io.BufferedIOBase, size: int, maker: Maker) -> Any:
    """The older form: number, version, system, content, keys, then every storage with its length; or one pickle."""
    storages = Storages(maker, lambda name, dtype, length: maker.storage(dtype, length))
    stream = Bounded(file, size)

    def unpickled() -> Any:
        return unpickle(stream, maker.construct, storages, maker.budget)

    content = unpickled()
    if content == MAGIC:
        unpickled()
        system = unpickled()
        if isinstance(system, dict) and not system.get("little_endian", True):
            raise UnsupportedError("it was written by a big-endian machine")
        content = unpickled()
        keys = unpickled()
        if not isinstance(keys, (list, tuple)):
            raise TypeError("it does not list its storages")
        for key in keys:
            whole = storages.by_name[_name(key)]
            length = struct.unpack("<q", stream.read(8))[0]
            whole.start = stream.at
            if not whole.size <= length <= (size - stream.at) // whole.dtype.itemsize:
                raise EOFError("it ends inside a tensor")
            stream.skip(length * whole.dtype.itemsize)
    if any(storage.start < 0 and storage.size for storage in storages.by_name.values()):
        raise EOFError("a storage is missing")
    return content


Parse = Callable[[io.BufferedIOBase, int, Maker], Any]


def open_torch(source: Source, path: Path, parse_content: Parse, start: int = 0, end: int | None = None) -> Content:
    """Open what torch.save wrote to `path`, or to its bytes from `start` to `end`.

    Its values are containers, numbers, `Record`s for everything of a class, and `Stored` tensors.
    """
    with source.part(path, start, end) as part:
        tree = parse_content(part.file, part.size, Maker(source.budget, parse))
    items = mapping(tree)
    recorded = {**mapping(items.get("meta")), **_of_fairseq(items), **items}
    return Content(tree, recorded, reader(source, path, start, end))


def _of_fairseq(items: Mapping[Any, Any]) -> dict[str, Any]:
    """Updates and epoch, which fairseq keeps further inside; at the end of an epoch it says the number of the next."""
    history = items.get("optimizer_history")
    if not (isinstance(history, list) and history):
        return {}
    iterator = mapping(mapping(items.get("extra_state")).get("train_iterator"))
    epoch, ended = iterator.get("epoch"), iterator.get("iterations_in_epoch") == 0
    epochs = {"epoch": epoch - ended} if isinstance(epoch, int) else {}
    return {"num_updates": mapping(history[-1]).get("num_updates"), **epochs}


def _write(weights: Mapping[str, "Tensor"], path: Path) -> None:
    import torch

    torch.save({"state_dict": dict(weights), "epoch": 3}, path, _use_new_zipfile_serialization=False)


TORCH_PICKLE = Format(
    "torch pickle",
    lambda seen: seen.head.startswith(HEAD),
    lambda source, path: open_torch(source, path, parse),
    endings=ENDINGS,
    write=_write,
)
