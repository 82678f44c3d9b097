"""The formats in which checkpoints are read: one file and one record each, all in the table FORMATS.

A new format is a file that makes its `Format`, and its line here. A module outside the package registers one as
`FORMATS["name"] = Format("name", ...)`, which is asked before those that were there.
"""

from posthoc.replay.dtypes import DTYPES as DTYPES
from posthoc.replay.formats.deepspeed import DEEPSPEED
from posthoc.replay.formats.diffusers import DIFFUSERS
from posthoc.replay.formats.distributed import DISTRIBUTED
from posthoc.replay.formats.folder import FOLDER
from posthoc.replay.formats.foreign import FOREIGN
from posthoc.replay.formats.hub import HUB
from posthoc.replay.formats.megatron import MEGATRON
from posthoc.replay.formats.mlflow import MLFLOW
from posthoc.replay.formats.safetensors import SAFETENSORS
from posthoc.replay.formats.sb3 import SB3
from posthoc.replay.formats.shards import SHARDS
from posthoc.replay.formats.table import FORMATS as FORMATS
from posthoc.replay.formats.table import Content as Content
from posthoc.replay.formats.table import Format as Format
from posthoc.replay.formats.table import Preview as Preview
from posthoc.replay.formats.torch_pickle import TORCH_PICKLE
from posthoc.replay.formats.torch_zip import TORCH_ZIP
from posthoc.replay.source import Source as Source
from posthoc.replay.tensors import Block as Block
from posthoc.replay.tensors import reader as reader
from posthoc.replay.tensors import stored_blocks as stored_blocks

for _format in (
    SAFETENSORS, TORCH_PICKLE, TORCH_ZIP, SB3, SHARDS, HUB, FOREIGN, FOLDER, DIFFUSERS, MLFLOW, DEEPSPEED, MEGATRON, DISTRIBUTED,
):  # fmt: skip
    FORMATS.setdefault(_format.name, _format)
