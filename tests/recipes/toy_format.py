"""Checkpoints of a toy trainer, read: a line of magic, a line of JSON, then the numbers; or the same as a folder."""

import json
import math

import torch

from posthoc.replay.formats import DTYPES, FORMATS, Block, Content, Format, reader, stored_blocks

MAGIC = b"TOY 1\n"


def open_file(source, path):
    """The values in the header, and where each tensor lies."""
    with source.open(path) as file:
        if file.readline(len(MAGIC)) != MAGIC:
            raise ValueError("its first line is another")
        header = source.budget.json(file.readline(1 << 20))
        at = file.tell()
    blocks = {}
    for name, (dtype, shape) in header.pop("tensors").items():
        end = at + math.prod(shape) * DTYPES[dtype].itemsize
        blocks[name] = Block(DTYPES[dtype], tuple(shape), at, end)
        at = end
    return Content(stored_blocks(source, path, blocks), header, reader(source, path))


def save(weights, path, **values):
    """Write a checkpoint with values beside the weights."""
    tensors = {name: (str(tensor.dtype).removeprefix("torch."), list(tensor.shape)) for name, tensor in weights.items()}
    content = b"".join(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes() for tensor in weights.values())
    path.write_bytes(MAGIC + json.dumps({**values, "tensors": tensors}).encode() + b"\n" + content)


def save_folder(weights, folder, **values):
    """Write it as a folder, of which the log is a part."""
    folder.mkdir()
    save(weights, folder / "weights", **values)
    (folder / "toy.log").write_text("done\n")


FORMATS["toy"] = Format("toy", lambda seen: seen.head.startswith(MAGIC), open_file, endings=(".toy",), write=save)
FORMATS["toy folder"] = Format(
    "toy folder",
    lambda seen: "toy.log" in seen.names,
    lambda source, folder: open_file(source, folder / "weights"),
    lambda source, folder: [folder / "weights", folder / "toy.log"],
    inside=("toy.log",),
    write=save_folder,
)
