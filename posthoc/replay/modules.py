"""A pickled module tree, as inert records -> its state dict."""

from collections.abc import Mapping
from typing import Any

from posthoc.replay.budget import Budget
from posthoc.replay.pickles import Global, Record
from posthoc.replay.tensors import leaf

STEPS = 10
"""Operations that looking at a module is charged with, beside its items."""


def is_module(value: Any) -> bool:
    """Whether a record is that of a pickled module."""
    if not isinstance(value, Record) or not isinstance(value.state, Mapping):
        return False
    return _is_scripted(value) or {"_parameters", "_modules"} <= value.state.keys()


def module_tensors(module: Record, budget: Budget) -> dict[str, Any]:
    """The state dict of a pickled module tree: parameters and persistent buffers, named as torch names them.

    Also of a TorchScript module, whose parameters and submodules are attributes. Each item and name is charged: modules
    may hold each other many times, or without end.
    """
    tensors: dict[str, Any] = {}
    waiting = [("", module)]
    while waiting:
        prefix, record = waiting.pop()
        state = record.state if isinstance(record.state, Mapping) else {}
        scripted = _is_scripted(record)
        volatile = _texts(state.get("_non_persistent_buffers_set"))
        children = state if scripted else mapping(state.get("_modules"))
        groups = [state] if scripted else [mapping(state.get("_parameters")), mapping(state.get("_buffers"))]
        budget.operate(STEPS + len(children) + sum(map(len, groups)) + len(volatile))
        for group in groups:
            for name, value in group.items():
                tensor = leaf(value)
                if tensor is not None and name not in volatile:
                    budget.produce(len(prefix) + len(str(name)))
                    tensors[f"{prefix}{name}"] = tensor
        for name, child in reversed(list(children.items())):
            if isinstance(child, Record):
                budget.produce(len(prefix) + len(str(name)))
                waiting.append((f"{prefix}{name}.", child))
    return tensors


def mapping(value: Any) -> Mapping[Any, Any]:
    """The items of a dictionary, or of a record of some class of dictionaries; empty for anything else."""
    if isinstance(value, Mapping):
        return value
    return value.pairs if isinstance(value, Record) else {}


def _is_scripted(module: Record) -> bool:
    return isinstance(module.kind, Global) and module.kind.module.startswith("__torch__")


def _texts(values: Any) -> frozenset[str]:
    return frozenset(value for value in values if isinstance(value, str)) if isinstance(values, list) else frozenset()
