"""One checkpoint, in whatever form -> its state dict, and what it says of itself.

A checkpoint is a file (safetensors, torch.save in its three forms, an index of shards) or a folder (of
torch.distributed.checkpoint, or of a trainer that keeps model and optimizer apart).
"""

import hashlib
import json
import math
import pickle
import re
import struct
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from posthoc.errors import PosthocError, UsageError
from posthoc.files import open_regular, sha256
from posthoc.replay.distributed import Scattered, read_distributed
from posthoc.replay.modules import is_module, mapping, module_tensors
from posthoc.replay.pickles import Record
from posthoc.replay.strangers import ENDINGS, is_safetensors, nothing_known, stranger
from posthoc.replay.strangers import NoWeightsError as NoWeightsError
from posthoc.replay.strangers import StrangerError as StrangerError
from posthoc.replay.torchfiles import Stored, numpy_array, read_safetensors, read_torch

SUFFIXES = ENDINGS
IN_FOLDERS = (
    "model.safetensors", "pytorch_model.bin", "model.safetensors.index.json", "pytorch_model.bin.index.json",
    "pytorch_model_fsdp_0",
)  # fmt: skip
"""What holds the weights in a folder of Transformers' Trainer or of Accelerate."""
WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "weights", "params")
"""Keys under which training scripts put the weights beside their own bookkeeping."""
EMA = (
    "state_dict_ema", "ema_state_dict", "model_ema", "ema_model", "ema", "params_ema", "model_ema_state_dict",
)  # fmt: skip
"""Keys of exponential moving averages of the weights: another network than the one that trained."""
STEP_KEYS = ("step", "global_step", "iteration", "iter", "global_steps", "num_updates")

# What the libraries raise when a file is not what it should be; an unpickler fed with noise stumbles anywhere.
DAMAGE = (
    pickle.UnpicklingError, zipfile.BadZipFile, struct.error, EOFError, RuntimeError, ValueError,
    LookupError, TypeError, AttributeError, AssertionError, OverflowError, MemoryError, NotImplementedError,
)  # fmt: skip


@dataclass(frozen=True)
class Pick:
    """Which weights of a checkpoint: under `key` (nested keys, then a prefix of names, joined by dots), or the EMA."""

    key: str | None = None
    ema: bool = False


MAIN = Pick()
"""The weights that trained."""


@dataclass(frozen=True)
class Header:
    """What a checkpoint holds, without its weights.

    shapes: name -> shape of every tensor, as in the file and in its order; recorded: every other number in it;
    arch: the architecture it names; kind: the class of a whole pickled module.
    """

    epoch: int | None
    step: int | None
    shapes: dict[str, tuple[int, ...]]
    recorded: dict[str, float] = field(default_factory=dict)
    arch: str | None = None
    kind: str | None = None


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
    with _readable(path):
        content = _open(path)
        return _header(content, _weights(content.tree, pick, path))


def read_weights(path: Path, pick: Pick = MAIN, only: Collection[str] | None = None) -> dict[str, Tensor]:
    """Read the state dict of `path` on the CPU, names as in the file (`only` some of them); raises as `read_header`."""
    return read_checkpoint(path, pick, only)[1]


def read_checkpoint(
    path: Path,
    pick: Pick = MAIN,
    only: Collection[str] | None = None,
    into: Mapping[str, Tensor] | None = None,
    pin: bool = False,
) -> tuple[Header, dict[str, Tensor]]:
    """Header and state dict of `path` from one opening.

    `into`: tensors whose memory may be used again; `pin`: new memory is pinned, from which a copy to a CUDA device
    need not be waited for.
    """
    with _readable(path):
        content = _open(path)
        weights = _weights(content.tree, pick, path)
        wanted = {name: leaf for name, leaf in weights.items() if only is None or name in only}
        return _header(content, weights), content.read(wanted, into, pin)


def _header(content: Content, weights: Mapping[str, Any]) -> Header:
    numbers = _numbers(content, weights)
    # A negative epoch is what some trainers leave in a finished run's last checkpoint.
    epoch = next((numbers.pop(key) for key in ("epoch", "current_epoch") if _counts(numbers.get(key))), None)
    step = next((numbers.pop(key) for key in STEP_KEYS if _counts(numbers.get(key))), None)
    arch = content.said.get("arch")
    module = next((value for value in (content.tree, *mapping(content.tree).values()) if is_module(value)), None)
    return Header(
        None if epoch is None else int(epoch),
        None if step is None else int(step),
        {name: tuple(leaf.shape) for name, leaf in weights.items()},
        numbers,
        arch if isinstance(arch, str) else None,
        None if module is None else module.name,
    )


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


def files_of(path: Path) -> list[Path]:
    """The files that hold the weights of a checkpoint."""
    if path.is_dir():
        inside = _in_folder(path)
        return [path / ".metadata", *sorted(path.glob("*.distcp"))] if inside == path else files_of(inside)
    if path.name.endswith(".index.json"):
        return [path, *sorted({path.parent / str(name) for name in _weight_map(path).values()})]
    return [path]


def digest(path: Path) -> str:
    """SHA-256 of a checkpoint: of its file, or of the names and digests of its files."""
    files = files_of(path)
    if files == [path]:
        return sha256(path)
    lines = "".join(f"{sha256(file)}  {file.name}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def _open(path: Path) -> Content:
    if path.is_dir():
        inside = _in_folder(path)
        content = _distributed(path) if inside == path else _open(inside)
        return Content(content.tree, {**content.said, **_trainer_state(path)}, content.read)
    if path.name.endswith(".index.json"):
        return _sharded(path)
    with open_regular(path) as opened:
        what, safe = stranger(opened, path.name), is_safetensors(opened)
    if what is not None:
        raise StrangerError(f"{path} is {what}.")
    if safe or path.suffix == ".safetensors":
        return _safetensors(path)
    file = read_torch(path)
    said = {**mapping(mapping(file.content).get("meta")), **mapping(file.content)}

    def read(weights: dict[str, Any], into: Mapping[str, Tensor] | None, pin: bool) -> dict[str, Tensor]:
        stored = {name: leaf for name, leaf in weights.items() if isinstance(leaf, Stored)}
        tensors = file.tensors(stored, into, pin)
        return {name: tensors.get(name, leaf) for name, leaf in weights.items()}

    return Content(file.content, said, read)


def _safetensors(path: Path) -> Content:
    file, said = read_safetensors(path)
    return Content(file.content, said, file.tensors)


def _sharded(path: Path) -> Content:
    tree: dict[str, Any] = {}
    contents = {}
    weight_map = _weight_map(path)
    for shard in dict.fromkeys(weight_map.values()):
        contents[shard] = _open(path.parent / shard)
        tree.update(mapping(contents[shard].tree))
    missing = [name for name in weight_map if name not in tree]
    if missing:
        raise ValueError(f"no shard holds {missing[0]}")

    def read(weights: dict[str, Any], into: Mapping[str, Tensor] | None, pin: bool) -> dict[str, Tensor]:
        found = {}
        for shard, content in contents.items():
            here = {name: leaf for name, leaf in weights.items() if weight_map.get(name) == shard}
            found.update(content.read(here, into, pin))
        return {name: found[name] for name in weights}

    return Content({name: tree[name] for name in weight_map}, {}, read)


def _weight_map(path: Path) -> dict[str, str]:
    try:
        index = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise PosthocError(f"{path} is not valid JSON ({error}).") from error
    shards = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(shards, dict) or not shards:
        raise NoWeightsError(f"{path} lists no shards of a network's weights.")
    for shard in shards.values():
        if not isinstance(shard, str) or Path(shard).name != shard or shard.endswith(".json"):
            raise PosthocError(f"{path} names {shard!r}, which is no file beside it.")
        if not (path.parent / shard).is_file():
            raise PosthocError(f"{path} names {shard}, which is missing; copy it there.")
    return shards


def _distributed(path: Path) -> Content:
    tree = read_distributed(path)
    return Content(tree, tree, lambda weights, into, pin: {name: leaf.read() for name, leaf in weights.items()})


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
        raise PosthocError(
            f"{folder} is a checkpoint of DeepSpeed, its weights split over processes; put them together with "
            f"`python {place / 'zero_to_fp32.py'} {place} {place / 'fp32'}` and give {place / 'fp32'}."
        )
    raise NoWeightsError(f"{folder} holds no weights (looked for {', '.join(IN_FOLDERS)}, .metadata).")


def _of_deepspeed(names: set[str]) -> bool:
    return "zero_to_fp32.py" in names or any(name.endswith(("_model_states.pt", "_optim_states.pt")) for name in names)


def _trainer_state(folder: Path) -> dict[str, Any]:
    """Step, epoch and last evaluation that Transformers' Trainer wrote beside the weights; the step is in the name."""
    said: dict[str, Any] = {}
    step = re.fullmatch(r".*\D(\d+)", folder.name)
    if folder.name.startswith("checkpoint-") and step:
        said["global_step"] = int(step[1])
    path = folder / "trainer_state.json"
    if not path.is_file():
        return said
    try:
        state = json.loads(path.read_text())
        said |= {key: state[key] for key in ("epoch", "global_step") if key in state}
        for row in state.get("log_history", []):
            if row.get("step") == state.get("global_step"):
                said |= {key: value for key, value in row.items() if key.startswith("eval_") or key == "loss"}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise PosthocError(f"{path} is not what Transformers' Trainer writes ({error}); mend or remove it.") from error
    return said


def _weights(tree: Any, pick: Pick, path: Path) -> dict[str, Any]:
    """The state dict within what was saved."""
    if pick.key:
        weights = _at(tree, pick.key, path)
    elif pick.ema:
        key = next((key for key in EMA if _state_dict(mapping(tree).get(key))), None)
        if key is None:
            raise PosthocError(f"{path} holds no moving average of the weights; found {_keys(tree)}.")
        weights = _state_dict(mapping(tree)[key])
    else:
        weights = _main(tree, path)
    return weights


def _main(tree: Any, path: Path) -> dict[str, Any]:
    """The weights that trained: of a whole module, under one of the usual keys, the dictionary itself, or the only ones."""
    if is_module(tree):
        return _state_dict(tree)
    groups = {key: value for key, value in mapping(tree).items() if isinstance(key, str) and _is_group(value)}
    inner = {key: _state_dict(value) for key, value in groups.items()}
    inner = {key: weights for key, weights in inner.items() if weights}
    wrapped = [key for key in WRAPPERS if key in inner]
    if len(wrapped) > 1:
        raise PosthocError(f"{path} holds several networks; choose with --weights-key {' or '.join(wrapped)}.")
    if wrapped:
        return inner[wrapped[0]]
    own = _state_dict(tree, nested=False)
    others = [key for key in inner if key not in EMA]
    loose, inside = _values(own), sum(_values(inner[key]) for key in others)
    if loose and loose > 10 * inside:
        return own
    if loose and inside <= 10 * loose:
        raise PosthocError(
            f"{path} holds tensors both by themselves and under {', '.join(others)}; choose with --weights-key."
        )
    if len(others) > 1:
        raise PosthocError(f"{path} holds several networks; choose with --weights-key {' or '.join(others)}.")
    if others:
        return inner[others[0]]
    if inner:
        raise PosthocError(f"{path} holds only a moving average of the weights; pass --ema to replay it.")
    raise NoWeightsError(f"{path} holds no state dict ({_keys(tree)}).")


def _state_dict(value: Any, nested: bool = True) -> dict[str, Any]:
    """The named tensors of a module or dictionary, floating ones among them; empty for anything else."""
    if is_module(value):
        return module_tensors(value)
    items = mapping(value)
    if nested and not any(_leaf(item) is not None for item in items.values()):
        groups = {key: _state_dict(item, nested=False) for key, item in items.items() if isinstance(key, str)}
        groups = {key: weights for key, weights in groups.items() if weights}
        if len(groups) == 1:
            return next(iter(groups.values()))
        # Several parts of one network, or several networks: by their names, of which a model takes what fits.
        return {f"{key}.{name}": leaf for key, weights in groups.items() for name, leaf in weights.items()}
    found = {name: leaf for name, item in items.items() if isinstance(name, str) and (leaf := _leaf(item)) is not None}
    strange = [item for item in items.values() if isinstance(item, Record) and "_rebuild_" in item.name]
    if found and strange:
        raise PosthocError(f"Tensors made by {strange[0].name} are not read; convert them to plain tensors.")
    return found if any(leaf.dtype.is_floating_point for leaf in found.values()) else {}


def _values(weights: Mapping[str, Any]) -> int:
    """How many numbers they hold, single ones apart."""
    return sum(math.prod(leaf.shape) for leaf in weights.values() if len(leaf.shape))


def _at(tree: Any, key: str, path: Path) -> dict[str, Any]:
    """Follow `key` through nested dictionaries as far as it goes; the rest is what names of tensors begin with."""
    parts, here = key.split("."), tree
    while parts and not is_module(here):
        inside = mapping(here)
        taken = next((n for n in range(len(parts), 0, -1) if _is_group(inside.get(".".join(parts[:n])))), None)
        if taken is None:
            break
        here, parts = inside[".".join(parts[:taken])], parts[taken:]
    prefix = "".join(f"{part}." for part in parts)
    found = {name.removeprefix(prefix): leaf for name, leaf in _state_dict(here).items() if name.startswith(prefix)}
    if not found:
        raise UsageError(f"--weights-key {key}: {path} has no weights there; found {_keys(tree)}.")
    return found


def _is_group(value: Any) -> bool:
    return is_module(value) or bool(mapping(value))


def _leaf(value: Any) -> Any:
    if isinstance(value, (Stored, Scattered)):
        return value
    return numpy_array(value)


def _keys(tree: Any) -> str:
    items = mapping(tree)
    if not items:
        return f"a {tree.name if isinstance(tree, Record) else type(tree).__name__.lower()}"
    names = [str(key)[:60] for key in list(items)[:8]]
    return ", ".join(names) + (", ..." if len(items) > 8 else "")


def _numbers(content: Content, weights: Collection[str]) -> dict[str, float]:
    """Every number that was saved beside the weights; a slash would be a path in the activations file."""
    said = {name: value for name, value in content.said.items() if isinstance(name, str) and name not in weights}
    single = {
        name: value
        for name, value in said.items()
        if isinstance(value, (Stored, Scattered)) and math.prod(value.shape) == 1
    }
    said |= {
        name: tensor.item() for name, tensor in content.read(single, None, False).items() if not tensor.is_complex()
    }
    said = {name: value for name, value in said.items() if name.strip(".") and name.isprintable()}
    numbers = {name.replace("/", "."): _number(value) for name, value in said.items()}
    return {name: number for name, number in numbers.items() if number is not None}


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def _counts(value: float | None) -> bool:
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
