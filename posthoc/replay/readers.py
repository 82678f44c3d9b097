"""One checkpoint, in whatever form -> its state dict, and what it says of itself.

A checkpoint is a file (safetensors, torch.save in its three forms, an index of shards) or a folder (of
torch.distributed.checkpoint, or of a trainer that keeps model and optimizer apart).
"""

import itertools
import math
import pickle
import re
import shlex
import struct
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from posthoc.errors import PosthocError
from posthoc.files import open_regular
from posthoc.replay.distributed import Scattered, read_distributed
from posthoc.replay.modules import is_module, mapping
from posthoc.replay.source import Source
from posthoc.replay.strangers import ENDINGS, UnsupportedError, is_safetensors, nothing_known, stranger
from posthoc.replay.strangers import NoWeightsError as NoWeightsError
from posthoc.replay.strangers import StrangerError as StrangerError
from posthoc.replay.tensors import FLOATING, WHOLE, Stored
from posthoc.replay.torchfiles import read_safetensors, read_torch
from posthoc.replay.weights import MAIN as MAIN
from posthoc.replay.weights import Pick as Pick
from posthoc.replay.weights import find_weights

SUFFIXES = ENDINGS
IN_FOLDERS = (
    "model.safetensors", "pytorch_model.bin", "model.safetensors.index.json", "pytorch_model.bin.index.json",
    "pytorch_model_fsdp_0",
)  # fmt: skip
"""What holds the weights in a folder of Transformers' Trainer or of Accelerate."""
EPOCH_KEYS = ("epoch", "current_epoch", "last_epoch")
STEP_KEYS = ("step", "global_step", "iteration", "iter", "global_steps", "num_updates", "iter_num", "steps")
TOTAL_KEYS = ("epochs",)
"""Of some trainers the epochs trained so far, of most those to be trained: where nothing better is said."""
MOST_NUMBERS = 200
"""How many recorded numbers of a checkpoint are kept; a training log belongs elsewhere."""
MOST_LETTERS = 100
"""How long a name among them may be."""

PLAIN = FLOATING & {torch.float64, torch.float32, torch.float16, torch.bfloat16}

# What the libraries raise when a file is not what it should be; an unpickler fed with noise stumbles anywhere.
DAMAGE = (
    pickle.UnpicklingError, zipfile.BadZipFile, struct.error, EOFError, RuntimeError, ValueError,
    LookupError, TypeError, AttributeError, AssertionError, OverflowError, MemoryError, NotImplementedError,
)  # fmt: skip


@dataclass(frozen=True)
class Header:
    """What a checkpoint holds, without its weights.

    shapes: name -> shape of every tensor, as in the file and in its order; recorded: other numbers at the top of it, the
    first 200 (unrecorded: how many there are beyond); arch: the architecture it names; kind: the class of a whole
    pickled module; types: name -> type of the tensors that are no floating point numbers of 16 to 64 bits.
    """

    epoch: int | None
    step: int | None
    shapes: dict[str, tuple[int, ...]]
    recorded: dict[str, float] = field(default_factory=dict)
    arch: str | None = None
    kind: str | None = None
    types: dict[str, torch.dtype] = field(default_factory=dict)
    unrecorded: int = 0


@dataclass(frozen=True)
class Content:
    """An opened checkpoint: its values and not yet read tensors, nested as saved, and how to read some of them (into
    memory used before, or new and perhaps pinned)."""

    tree: Any
    said: Mapping[Any, Any]
    read: Callable[[dict[str, Any], Mapping[str, Tensor] | None, bool], dict[str, Tensor]]


def read_header(path: Path, pick: Pick = MAIN) -> Header:
    """Read names, shapes, epoch, step and recorded numbers of `path`.

    Raises NoWeightsError where there are none, PosthocError where it is damaged or `pick` is not in it.
    """
    source = Source(path)
    with _readable(path):
        content = _open(source, path)
        return _header(content, find_weights(content.tree, pick, path, source.budget))


def read_weights(path: Path, pick: Pick = MAIN, only: Collection[str] | None = None) -> dict[str, Tensor]:
    """Read the state dict of `path` on the CPU, names as in the file (`only` some of them); raises as `read_header`."""
    return read_checkpoint(path, pick, only)[1]


def read_checkpoint(
    path: Path,
    pick: Pick = MAIN,
    only: Collection[str] | None = None,
    into: Mapping[str, Tensor] | None = None,
    pin: bool = False,
    source: Source | None = None,
) -> tuple[Header, dict[str, Tensor]]:
    """Header and state dict of `path` from one opening.

    `into`: tensors whose memory may be used again; `pin`: new memory is pinned, from which a copy to a CUDA device
    need not be waited for; `source`: `path` opened before, since when its files must be unchanged.
    """
    source = source or Source(path)
    with _readable(path):
        content = _open(source, path)
        weights = find_weights(content.tree, pick, path, source.budget)
        wanted = {name: leaf for name, leaf in weights.items() if only is None or name in only}
        return _header(content, weights), content.read(wanted, into, pin)


def _header(content: Content, weights: Mapping[str, Any]) -> Header:
    numbers = _numbers(content, weights)
    # A negative epoch is what some trainers leave in a finished run's last checkpoint.
    epoch = _taken(numbers, EPOCH_KEYS)
    step = _taken(numbers, STEP_KEYS)
    if epoch is None and step is None:
        epoch = _taken(numbers, TOTAL_KEYS)
    kept = dict(itertools.islice(numbers.items(), MOST_NUMBERS))
    arch = content.said.get("arch")
    module = next((value for value in (content.tree, *mapping(content.tree).values()) if is_module(value)), None)
    return Header(
        epoch,
        step,
        {name: tuple(leaf.shape) for name, leaf in weights.items()},
        kept,
        arch if isinstance(arch, str) else None,
        None if module is None else module.name,
        {name: leaf.dtype for name, leaf in weights.items() if leaf.dtype not in PLAIN},
        len(numbers) - len(kept),
    )


def _taken(numbers: dict[str, float], keys: Sequence[str]) -> int | None:
    """The first of these numbers that counts something, taken out of the others."""
    return next((int(numbers.pop(key)) for key in keys if _counts(numbers.get(key))), None)


def is_checkpoint_folder(folder: Path) -> bool:
    """Whether `folder` is one checkpoint in several files; one that may not be looked into is none."""
    names = _names(folder)
    return bool(names & set(IN_FOLDERS)) or _is_split(names)


def is_indivisible(folder: Path) -> bool:
    """Whether the files in `folder` are parts of one checkpoint and none is a checkpoint of its own."""
    return _is_split(_names(folder))


def _names(folder: Path) -> set[str]:
    try:
        return {path.name for path in folder.iterdir()}
    except OSError:
        return set()


def _is_split(names: set[str]) -> bool:
    return ".metadata" in names or _of_deepspeed(names)


def files_of(path: Path, source: Source | None = None) -> list[Path]:
    """The files that hold the weights of a checkpoint."""
    if path.is_dir():
        inside = _in_folder(path)
        return [path / ".metadata", *sorted(path.glob("*.distcp"))] if inside == path else files_of(inside, source)
    if path.name.endswith(".index.json"):
        weight_map = _weight_map(source or Source(path), path)
        return [path, *sorted({path.parent / name for name in weight_map.values()})]
    return [path]


def digest(path: Path, source: Source | None = None) -> str:
    """SHA-256 of a checkpoint: of its file, or of the names and digests of its files."""
    source = source or Source(path)
    with _readable(path):
        return source.digest(files_of(path, source))


def _open(source: Source, path: Path) -> Content:
    if path.is_dir():
        inside = _in_folder(path)
        content = _distributed(source, path) if inside == path else _open(source, inside)
        return Content(content.tree, {**content.said, **_trainer_state(source, path)}, content.read)
    if path.name.endswith(".index.json"):
        return _sharded(source, path)
    with source.open(path) as opened:
        what, safe = stranger(opened, path.name), is_safetensors(opened)
    if what is not None:
        raise StrangerError(f"{path} is {what}.")
    if safe or path.suffix == ".safetensors":
        found, metadata = read_safetensors(source, path)
        return Content(found.content, metadata, found.tensors)
    file = read_torch(source, path)
    said = {**mapping(mapping(file.content).get("meta")), **mapping(file.content)}
    return Content(file.content, said, file.tensors)


def _sharded(source: Source, path: Path) -> Content:
    tree: dict[str, Any] = {}
    contents = {}
    weight_map = _weight_map(source, path)
    for shard in dict.fromkeys(weight_map.values()):
        contents[shard] = _open(source, path.parent / shard)
        tree.update(mapping(contents[shard].tree))
    missing = [name for name in weight_map if name not in tree]
    if missing:
        raise ValueError(f"no shard holds {missing[0]}")

    def read(weights: dict[str, Any], into: Mapping[str, Tensor] | None, pin: bool) -> dict[str, Tensor]:
        parts: dict[str, dict[str, Any]] = {}
        for name, leaf in weights.items():
            parts.setdefault(weight_map[name], {})[name] = leaf
        read = {}
        for shard, here in parts.items():
            read.update(contents[shard].read(here, into, pin))
        return {name: read[name] for name in weights}

    return Content({name: tree[name] for name in weight_map}, {}, read)


def _weight_map(source: Source, path: Path) -> dict[str, str]:
    index = _json(source, path)
    shards = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(shards, dict) or not shards:
        raise NoWeightsError(f"{path} lists no shards of a network's weights.")
    for shard in dict.fromkeys(map(_text, shards.values())):
        if Path(shard).name != shard or shard.endswith(".json") or "\0" in shard:
            raise PosthocError(f"{path} names {shard!r}, which is no file beside it.")
        if not (path.parent / shard).is_file():
            raise PosthocError(f"{path} names {shard}, which is missing; copy it there.")
    return shards


def _text(value: Any) -> str:
    """A text as it is; anything else as one that names no file."""
    return value if isinstance(value, str) else f"{value}/"


def _json(source: Source, path: Path) -> Any:
    try:
        return source.budget.json(source.read(path))
    except ValueError as error:
        raise PosthocError(f"{path} is not valid JSON ({error}); mend or remove it.") from error


def _distributed(source: Source, path: Path) -> Content:
    tree = read_distributed(source, path)

    def read(weights: dict[str, Any], into: Mapping[str, Tensor] | None, pin: bool) -> dict[str, Tensor]:
        return {name: leaf.read() for name, leaf in weights.items()}

    return Content(tree, tree, read)


def _in_folder(folder: Path) -> Path:
    """The file or folder within a checkpoint's folder that holds the weights; itself where all of it does."""
    names = {path.name for path in folder.iterdir()}
    if ".metadata" in names:
        return folder
    inside = next((name for name in IN_FOLDERS if name in names), None)
    if inside is not None:
        return folder / inside
    if _of_deepspeed(names):
        place = folder if "zero_to_fp32.py" in names or "latest" in names else folder.parent
        words = shlex.join([str(place), str(place / "fp32")])
        raise PosthocError(
            f"{folder} is a checkpoint of DeepSpeed, its weights split over processes; put them together with "
            f"`python -m deepspeed.utils.zero_to_fp32 {words}` and give {place / 'fp32'}."
        )
    raise NoWeightsError(f"{folder} holds no weights (looked for {', '.join(IN_FOLDERS)}, .metadata).")


def _of_deepspeed(names: set[str]) -> bool:
    return "zero_to_fp32.py" in names or any(name.endswith(("_model_states.pt", "_optim_states.pt")) for name in names)


def _trainer_state(source: Source, folder: Path) -> dict[str, Any]:
    """Step, epoch and last evaluation that Transformers' Trainer wrote beside the weights; the step is in the name."""
    said: dict[str, Any] = {}
    step = re.fullmatch(r".*\D(\d{1,18})", folder.name)
    if folder.name.startswith("checkpoint-") and step:
        said["global_step"] = int(step[1])
    path = folder / "trainer_state.json"
    if not path.is_file():
        return said
    state = _json(source, path)
    try:
        said |= {key: state[key] for key in ("epoch", "global_step") if key in state}
        for row in state.get("log_history", []):
            if row.get("step") == state.get("global_step"):
                said |= {key: value for key, value in row.items() if key.startswith("eval_") or key == "loss"}
    except (TypeError, AttributeError) as error:
        raise PosthocError(f"{path} is not what Transformers' Trainer writes ({error}); mend or remove it.") from error
    return said


def _numbers(content: Content, weights: Collection[str]) -> dict[str, float]:
    """The numbers that were saved beside the weights; a slash would be a path in the activations file."""
    said = {
        name: value
        for name, value in content.said.items()
        if isinstance(name, str) and name not in weights and len(name) <= MOST_LETTERS
    }
    said = {name: value for name, value in said.items() if name.strip(".") and name.isprintable()}
    tensors = {name: value for name, value in said.items() if _is_number(value)}
    some = dict(itertools.islice(tensors.items(), 2 * MOST_NUMBERS))
    said |= {name: tensor.item() for name, tensor in content.read(some, None, False).items()}
    numbers = {name.replace("/", "."): _number(value) for name, value in said.items()}
    return {name: number for name, number in numbers.items() if number is not None}


def _is_number(value: Any) -> bool:
    return isinstance(value, (Stored, Scattered)) and math.prod(value.shape) == 1 and value.dtype in PLAIN | WHOLE


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


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn what the libraries raise for damaged files into one sentence."""
    try:
        yield
    except FileNotFoundError as error:
        raise PosthocError(f"No such file: {error.filename or path}.") from None
    except PosthocError:
        raise
    except UnsupportedError as error:
        raise PosthocError(f"{path} is not read: {error}.") from error
    except DAMAGE as error:
        if path.is_file() and (what := _nothing_known(path)):
            raise StrangerError(f"{path} is {what}.") from error
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise PosthocError(f"{path} is damaged or cut short ({reason}); remove it or copy it again.") from error
    except OSError as error:
        raise PosthocError(f"Cannot read {path}: {error.strerror or error}.") from error


def _nothing_known(path: Path) -> str | None:
    with open_regular(path) as file:
        return nothing_known(file)
