"""Which dictionary in a checkpoint is the network."""

import contextlib
import itertools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posthoc.errors import PosthocError, UsageError
from posthoc.replay.budget import Budget
from posthoc.replay.dtypes import FLOATING
from posthoc.replay.modules import is_module, mapping, module_tensors
from posthoc.replay.names import WORD
from posthoc.replay.pickles import Global, Record
from posthoc.replay.strangers import NoWeightsError
from posthoc.replay.tensors import Stored, Unread, leaf
from posthoc.shown import with_article

WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "weights", "params")
"""Keys under which training scripts put the weights beside their own bookkeeping."""
EMA = (
    "state_dict_ema", "ema_state_dict", "model_ema", "ema_model", "ema", "params_ema", "model_ema_state_dict",
)  # fmt: skip
"""Keys of exponential moving averages of the weights: another network than the one that trained."""
BESIDE_AVERAGE = "current_model_state"
"""Under this key are those that trained where Lightning's WeightAveraging put the average under `state_dict`."""
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""Buffers of normalisation: how their names end."""
OTHERS = frozenset({"optim", "optimizer", "optimiser", "opt", "scheduler", "sched", "scaler", "rng", "random", "args"})
"""Words in the keys, and in the names of files, of what is no network beside one."""
GETATTR = (Global("builtins", "getattr"), Global("__builtin__", "getattr"))


@dataclass(frozen=True)
class Pick:
    """Which weights of a checkpoint: under `key` (nested keys, then a prefix of names, joined by dots), or the EMA."""

    key: str | None = None
    ema: bool = False


MAIN = Pick()
"""The weights that trained."""


def find_weights(tree: Any, pick: Pick, path: Path, budget: Budget) -> dict[str, Any]:
    """The state dict within what was saved: names and tensors that are not read yet.

    Raises NoWeightsError where there is none; PosthocError where there are several, or where one of its tensors is of a
    kind that is not read (quantised, sparse, ...).
    """
    weights = _Finder(tree, path, budget).find(pick)
    for name, tensor in weights.items():
        if isinstance(tensor, Unread):
            raise PosthocError(
                f"{path}: {name} is {tensor.what}, which is not replayed; save the network with plain tensors of floating "
                f"point numbers in its place."
            )
    return weights


def average_beside(tree: Any, path: Path, budget: Budget) -> str | None:
    """The key of a moving average of the weights in what was saved."""
    return _Finder(tree, path, budget).average()[0]


def is_network(name: str) -> bool:
    """Whether a key or file is not by its name an optimiser's or the like.

    >>> is_network("encoder"), is_network("optimizer_states"), is_network("random_states_0.pkl")
    (True, False, False)
    """
    return OTHERS.isdisjoint(word.lower() for word in WORD.findall(name))


class _Finder:
    """Looks through what was saved; each item looked at is charged, for the same may lie in many places."""

    def __init__(self, tree: Any, path: Path, budget: Budget) -> None:
        self.tree, self.path, self.budget = tree, path, budget

    def find(self, pick: Pick) -> dict[str, Any]:
        if pick.key:
            return self.at(pick.key)
        if not pick.ema:
            return self.main()
        if weights := self.average()[1]:
            return weights
        items = mapping(self.tree)
        if any(key in items and items[key] is None for key in EMA):  # moved to the place of the weights at the end
            return self.main()
        what = "no moving average of the weights"
        if any("shadow_params" in mapping(items.get(key)) for key in EMA):
            what += " but a list without names that cannot be paired with the parameters"
        raise NoWeightsError(f"{self.path} holds {what}; found {_keys(self.tree)}.", what)

    def average(self) -> tuple[str | None, dict[str, Any]]:
        """The moving average of the weights and its key; None and nothing where there is none."""
        items = mapping(self.tree)
        for key in ("state_dict",) if {"state_dict", BESIDE_AVERAGE} <= items.keys() else EMA:
            weights = self.state_dict(items.get(key)) or self.nameless(mapping(items.get(key)).get("shadow_params"))
            if weights and all(name.startswith(("ema_model.", "online_model.")) or "." not in name for name in weights):
                weights = _below("ema_model.", weights) or weights  # ema_pytorch keeps both networks there
            if weights:
                return key, weights
        return None, {}

    def nameless(self, averages: Any) -> dict[str, Any]:
        """torch_ema's list of the parameters that train, in their order, by their names; nothing where the shapes differ.

        What is in no list, statistics of normalisation, is that of the network, as where torch_ema puts them there.
        """
        if not isinstance(averages, list):
            return {}
        with contextlib.suppress(PosthocError):
            weights = self.main()
            names = [name for name in weights if not name.endswith(STATISTICS)]
            self.budget.operate(len(averages))
            tensors = [tensor for item in averages if (tensor := leaf(item)) is not None]
            if [tuple(tensor.shape) for tensor in tensors] == [tuple(weights[name].shape) for name in names]:
                return weights | dict(zip(names, tensors, strict=True))
        return {}

    def main(self) -> dict[str, Any]:
        """Those that trained: of a whole module, under a usual key, the dictionary itself, or the only ones."""
        tree, path = self.tree, self.path
        if is_module(tree):
            return self.state_dict(tree)
        groups = {key: value for key, value in mapping(tree).items() if isinstance(key, str) and _is_group(value)}
        inner = {key: self.state_dict(value) for key, value in groups.items()}
        inner = {key: weights for key, weights in inner.items() if weights}
        if BESIDE_AVERAGE in inner and "state_dict" in inner:
            return inner[BESIDE_AVERAGE]
        # Accelerate numbers all but the first: model, model_1
        wrapped = [key for key in inner if re.sub(r"_[0-9]+\Z", "", key) in WRAPPERS]
        if len(wrapped) > 1:
            raise PosthocError(f"{path} holds several networks; choose with --weights-key {_listed(wrapped, ' or ')}.")
        if wrapped:
            return inner[wrapped[0]]
        top = self.state_dict(tree, nested=False)
        others = [key for key in inner if key not in EMA and is_network(key)]
        loose, inside = _values(top), sum(_values(inner[key]) for key in others)
        if loose and loose > 10 * inside:
            return top
        if loose and inside <= 10 * loose:
            raise PosthocError(
                f"{path} holds tensors both by themselves and under {_listed(others)}; choose with --weights-key."
            )
        if len(others) > 1:
            raise PosthocError(f"{path} holds several networks; choose with --weights-key {_listed(others, ' or ')}.")
        if others:
            return inner[others[0]]
        if any(key in EMA for key in inner):
            raise PosthocError(f"{path} holds only a moving average of the weights; pass --ema to replay it.")
        raise NoWeightsError(f"{path} {self.without()}.")

    def without(self) -> str:
        """What a file without weights holds instead, in words."""
        tree = self.tree
        keys = mapping(tree).keys()
        if isinstance(tree, Record) and tree.kind in GETATTR and tree.args[1:] == ("state_dict",):
            return (
                "was saved by torch.save(model.state_dict), without the brackets that call it, and holds the method in "
                "place of the weights; save model.state_dict() instead"
            )
        if {"state", "param_groups"} <= keys:
            return "holds the state of an optimiser and no network's weights"
        if any(
            isinstance(item, Record) and item.name.startswith(("jax.", "jaxlib.")) for item in mapping(tree).values()
        ):
            return "holds arrays of JAX; save them by name with safetensors.flax.save_file"
        tensors = [(name, item) for name, item in mapping(tree).items() if isinstance(item, Stored)]
        if tensors and not any(item.dtype in FLOATING for _, item in tensors):
            return f"holds no tensor of floating point numbers ({tensors[0][0]} is {tensors[0][1].dtype})"
        return f"holds no state dict ({_keys(tree)})"

    def at(self, key: str) -> dict[str, Any]:
        """Follow `key` through nested dictionaries as far as it goes; the rest is what names of tensors begin with."""
        parts, group = key.split("."), self.tree
        while parts and not is_module(group):
            inside = mapping(group)
            taken = next((n for n in range(len(parts), 0, -1) if _is_group(inside.get(".".join(parts[:n])))), None)
            if taken is None:
                break
            group, parts = inside[".".join(parts[:taken])], parts[taken:]
        prefix = "".join(f"{part}." for part in parts)
        weights = _below(prefix, self.state_dict(group))
        if not weights and group is self.tree:  # a prefix within what is replayed without a key
            with contextlib.suppress(PosthocError):
                weights = _below(prefix, self.main())
        if not weights:
            raise UsageError(f"--weights-key {key}: {self.path} has no weights there; found {_keys(self.tree)}.")
        return weights

    def state_dict(self, value: Any, nested: bool = True) -> dict[str, Any]:
        """The named tensors of a module or dictionary, floating ones among them; empty for anything else."""
        if is_module(value):
            return module_tensors(value, self.budget)
        items = mapping(value)
        self.budget.operate(len(items))
        leaves = {name: tensor for name, item in items.items() if (tensor := leaf(item)) is not None}
        if nested and not leaves:
            return self.parts(items)
        weights = {name: leaf for name, leaf in leaves.items() if isinstance(name, str)}
        types = [leaf.dtype for leaf in weights.values()]
        return weights if any(dtype.has_fractions for dtype in types) else {}

    def parts(self, items: Mapping[Any, Any]) -> dict[str, Any]:
        """Several parts of one network, or several networks: by their names, of which a model takes what fits."""
        groups = {key: self.state_dict(item, nested=False) for key, item in items.items() if isinstance(key, str)}
        groups = {key: weights for key, weights in groups.items() if weights}
        if len(groups) == 1:
            return next(iter(groups.values()))
        for key, weights in groups.items():
            self.budget.produce(len(weights) * len(key))
        return {f"{key}.{name}": leaf for key, weights in groups.items() for name, leaf in weights.items()}


def _below(prefix: str, weights: Mapping[str, Any]) -> dict[str, Any]:
    """Those whose names begin so, by the rest of their names."""
    return {name.removeprefix(prefix): leaf for name, leaf in weights.items() if name.startswith(prefix)}


def _values(weights: Mapping[str, Any]) -> int:
    """How many numbers they hold, single ones apart."""
    return sum(math.prod(leaf.shape) for leaf in weights.values() if len(leaf.shape) or isinstance(leaf, Unread))


def _is_group(value: Any) -> bool:
    return is_module(value) or bool(mapping(value))


def _listed(names: list[str], between: str = ", ") -> str:
    return between.join(name[:60] for name in names[:8]) + (", ..." if len(names) > 8 else "")


def _keys(tree: Any) -> str:
    items = mapping(tree)
    if not items:
        return with_article(tree.name if isinstance(tree, Record) else type(tree).__name__.lower())
    keys = itertools.islice(items, 9)
    return _listed([with_article(key.name) if isinstance(key, Record) else str(key) for key in keys])
