"""Archives of Stable-Baselines3: the policy's weights are a file of torch.save within a zip archive.

The steps are in its JSON, `data`, beside pickles written as texts, which stay texts.
"""

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from posthoc.replay.formats import torch_zip
from posthoc.replay.formats.table import Content, Format, Preview
from posthoc.replay.formats.torch_pickle import open_torch
from posthoc.replay.source import Source
from posthoc.replay.strangers import UnsupportedError, entries

if TYPE_CHECKING:
    from torch import Tensor

POLICY, DATA = "policy.pth", "data"
MOST_DATA = 1 << 28
"""Bytes of the JSON; it may hold a batch of observations."""


def _matches(seen: Preview) -> bool:
    archive = seen.head.startswith(torch_zip.ENTRY) and not torch_zip.begins(seen.head)
    return archive and {POLICY, DATA} <= set(entries(seen.path))


def _open(source: Source, path: Path) -> Content:
    with source.open(path) as file:
        archive = zipfile.ZipFile(file)
        members = {member.filename: member for member in archive.infolist()}
        source.budget.operate(len(members))
        if len(members) < len(archive.infolist()):
            raise UnsupportedError("its archive has an entry of one name twice")
        start = torch_zip.start_of(file, members[POLICY])
        data = source.budget.json(torch_zip.read_entry(file, members[DATA], MOST_DATA))
    policy = open_torch(source, path, torch_zip.parse, start, start + members[POLICY].file_size)
    steps = data.get("num_timesteps") if isinstance(data, dict) else None
    return Content(policy.tree, {"step": steps}, policy.read)


def _write(weights: Mapping[str, "Tensor"], path: Path) -> None:
    import torch

    policy = io.BytesIO()
    torch.save(dict(weights), policy)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(DATA, json.dumps({"num_timesteps": 40, "policy_class": {":serialized:": "gASVAAAA"}}))
        archive.writestr(POLICY, policy.getvalue())


SB3 = Format("Stable-Baselines3", _matches, _open, endings=(".zip",), write=_write)
