"""Folders of DeepSpeed, whose weights are split over processes: they are recognised and not read."""

import shlex
from pathlib import Path
from typing import NoReturn

from posthoc.errors import PosthocError
from posthoc.replay.formats.table import Format, Preview
from posthoc.replay.source import Source

SCRIPT = "zero_to_fp32.py"


def _matches(seen: Preview) -> bool:
    return SCRIPT in seen.names or any(name.endswith(("_model_states.pt", "_optim_states.pt")) for name in seen.names)


def _refuse(source: Source, folder: Path) -> NoReturn:
    place = folder if any((folder / name).exists() for name in (SCRIPT, "latest")) else folder.parent
    words = shlex.join([str(place), str(place / "fp32")])
    raise PosthocError(
        f"{folder} is a checkpoint of DeepSpeed, its weights split over processes; put them together with "
        f"`python -m deepspeed.utils.zero_to_fp32 {words}` and give {place / 'fp32'}."
    )


DEEPSPEED = Format("DeepSpeed", _matches, _refuse, _refuse)
