"""A checkpoint that was opened: its state dict, and what it says of itself."""

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posthoc.replay.dtypes import PLAIN, WHOLE
from posthoc.replay.formats.table import Content, open_content, readable
from posthoc.replay.modules import is_module, mapping
from posthoc.replay.pickles import Record
from posthoc.replay.source import Source
from posthoc.replay.tensors import Deferred, Numbers, Stored, read_numbers
from posthoc.replay.weights import MAIN, Pick, average_beside, find_weights

if TYPE_CHECKING:
    from torch import Tensor

EPOCH_KEYS = ("epoch", "current_epoch", "last_epoch")
STEP_KEYS = (
    "step", "global_step", "iteration", "iter", "global_steps", "num_updates", "step_count", "iter_num", "steps",
)  # fmt: skip
TOTAL_KEYS = ("epochs",)
"""Of some trainers the epochs trained so far, of most those to be trained: where nothing better is recorded."""
MOST_NUMBERS = 200
"""How many recorded numbers of a checkpoint are kept; a training log belongs elsewhere."""
MOST_LETTERS = 100
"""How long a name among them may be."""
SETTINGS = ("args", "hyper_parameters", "hparams", "config", "cfg", "opt")
"""Keys of what a training was asked for."""
NAMES = ("arch", "architecture", "model", "model_name", "backbone")
"""Keys, there or at the top, of texts that may name an architecture."""


@dataclass(frozen=True)
class Header:
    """What a checkpoint holds, without its weights.

    shapes: name -> shape of every tensor, as in the file and in its order; recorded: other numbers at the top of it, the
    first 200 (unrecorded: how many there are beyond); arch: the architecture it names; kind: the class of a whole
    pickled module; named: key -> text that may name an architecture; average: the key of a moving average of the weights that was not asked for.
    """

    epoch: int | None
    step: int | None
    shapes: dict[str, tuple[int, ...]]
    recorded: dict[str, float] = field(default_factory=dict)
    arch: str | None = None
    kind: str | None = None
    unrecorded: int = 0
    named: dict[str, str] = field(default_factory=dict)
    average: str | None = None


def read_header(path: Path, pick: Pick = MAIN) -> Header:
    """Read names, shapes, epoch, step and recorded numbers of `path`.

    Raises NoWeightsError where there are none, PosthocError where it is damaged or `pick` is not in it.
    """
    with readable(path):
        source = Source(path)
        content, weights = _opened(source, pick)
        return _header(source, content, weights, pick)


def read_weights(path: Path, pick: Pick = MAIN, only: Collection[str] | None = None) -> dict[str, "Tensor"]:
    """Read the state dict of `path` on the CPU, names as in the file (`only` some of them); raises as `read_header`."""
    return read_checkpoint(path, pick, only)[1]


def read_arrays(path: Path, pick: Pick, only: Collection[str]) -> dict[str, Numbers]:
    """The same without torch."""
    with readable(path):
        content, weights = _opened(Source(path), pick)
        return read_numbers(content.read, {name: leaf for name, leaf in weights.items() if name in only}, {})


def read_checkpoint(
    path: Path,
    pick: Pick = MAIN,
    only: Collection[str] | None = None,
    into: Mapping[str, "Tensor"] | None = None,
    pin: bool = False,
    source: Source | None = None,
) -> tuple[Header, dict[str, "Tensor"]]:
    """Header and state dict of `path` from one opening.

    `into`: tensors whose memory may be used again; `pin`: new memory is pinned, from which a copy to a CUDA device
    need not be waited for; `source`: `path` opened before, since when its files must be unchanged.
    """
    from posthoc.replay.loading import load

    with readable(path):
        source = source or Source(path)
        content, weights = _opened(source, pick)
        wanted = {name: leaf for name, leaf in weights.items() if only is None or name in only}
        return _header(source, content, weights, pick), load(content, wanted, into, pin)


def _opened(source: Source, pick: Pick) -> tuple[Content, dict[str, Any]]:
    content = open_content(source, source.path)
    return content, find_weights(content.tree, pick, source.path, source.budget)


def _header(source: Source, content: Content, weights: Mapping[str, Any], pick: Pick) -> Header:
    numbers = _numbers(content, weights)
    # A negative epoch is what some trainers leave in a finished run's last checkpoint.
    epoch = _take(numbers, EPOCH_KEYS)
    step = _take(numbers, STEP_KEYS)
    if epoch is None and step is None:
        epoch = _take(numbers, TOTAL_KEYS)
    kept = dict(itertools.islice(numbers.items(), MOST_NUMBERS))
    arch = content.recorded.get("arch")
    module = next((value for value in (content.tree, *mapping(content.tree).values()) if is_module(value)), None)
    return Header(
        epoch,
        step,
        {name: tuple(leaf.shape) for name, leaf in weights.items()},
        kept,
        arch if isinstance(arch, str) else None,
        None if module is None else module.name,
        len(numbers) - len(kept),
        _named(content.tree),
        average_beside(content.tree, source.path, source.budget) if pick == MAIN else None,
    )


def _named(tree: Any) -> dict[str, str]:
    """Texts at the top of what was saved, and in the settings there, that may name an architecture, by their keys."""
    top = mapping(tree)
    groups = {"": top} | {f"{key}.": _entries(top.get(key)) for key in SETTINGS}
    texts = {f"{key}{name}": group.get(name) for key, group in groups.items() for name in NAMES}
    return {key: text for key, text in texts.items() if isinstance(text, str) and 0 < len(text) <= MOST_LETTERS}


def _entries(value: Any) -> Mapping[Any, Any]:
    """Of a dictionary, or the attributes of an object such as argparse's."""
    state = value.state if isinstance(value, Record) and isinstance(value.state, Mapping) else {}
    return mapping(value) or state


def _take(numbers: dict[str, float], keys: Sequence[str]) -> int | None:
    """The first of these numbers that counts something, taken out of the others."""
    return next((int(numbers.pop(key)) for key in keys if _counts(numbers.get(key))), None)


def _numbers(content: Content, weights: Collection[str]) -> dict[str, float]:
    """The numbers that were saved beside the weights; a slash would be a path in the activations file."""
    values = {
        name: value
        for name, value in content.recorded.items()
        if isinstance(name, str) and name not in weights and len(name) <= MOST_LETTERS
    }
    values = {name: value for name, value in values.items() if name.strip(".") and name.isprintable()}
    tensors = {name: value for name, value in values.items() if _is_number(value)}
    some = dict(itertools.islice(tensors.items(), 2 * MOST_NUMBERS))
    if some:
        values |= {name: tensor.values.item() for name, tensor in read_numbers(content.read, some, {}).items()}
    numbers = {name.replace("/", "."): _number(value) for name, value in values.items()}
    return {name: number for name, number in numbers.items() if number is not None}


def _is_number(value: Any) -> bool:
    return isinstance(value, (Stored, Deferred)) and math.prod(value.shape) == 1 and value.dtype in PLAIN | WHOLE


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        return None if isinstance(value, str) and len(value) > MOST_LETTERS else float(value)
    except (ValueError, OverflowError):
        return None


def _counts(value: float | None) -> bool:
    """Whether a number can be that of an epoch or step: whole and not negative."""
    return value is not None and math.isfinite(value) and value >= 0 and value == int(value)
