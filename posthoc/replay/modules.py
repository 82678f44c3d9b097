"""A pickled module tree, as inert records -> its state dict."""

from collections.abc import Mapping
from typing import Any

from posthoc.replay.pickles import Global, Record
from posthoc.replay.torchfiles import Stored

MAX_MODULES, MAX_DEPTH = 100_000, 200


def is_module(value: Any) -> bool:
    """Whether a record is that of a pickled module."""
    if not isinstance(value, Record) or not isinstance(value.state, Mapping):
        return False
    return _is_scripted(value) or {"_parameters", "_modules"} <= value.state.keys()


def module_tensors(module: Record) -> dict[str, Any]:
    """The state dict of a pickled module tree: parameters and persistent buffers, named as torch names them.

    Also of a TorchScript module, whose parameters and submodules are attributes. Raises ValueError for modules that
    hold each other without end.
    """
    found: dict[str, Any] = {}
    waiting = [("", module)]
    visited = 0
    while waiting:
        prefix, record = waiting.pop()
        if visited > MAX_MODULES or prefix.count(".") > MAX_DEPTH or len(found) + len(waiting) > MAX_MODULES:
            raise ValueError("its modules hold each other without end")
        visited += 1
        state = record.state if isinstance(record.state, Mapping) else {}
        scripted = _is_scripted(record)
        volatile = state.get("_non_persistent_buffers_set") or ()
        for group in [state] if scripted else [mapping(state.get("_parameters")), mapping(state.get("_buffers"))]:
            for name, value in group.items():
                if isinstance(value, Stored) and name not in volatile:
                    found[f"{prefix}{name}"] = value
        children = state if scripted else mapping(state.get("_modules"))
        for name, child in reversed(list(children.items())):
            if isinstance(child, Record):
                waiting.append((f"{prefix}{name}.", child))
    return found


def mapping(value: Any) -> Mapping[Any, Any]:
    """The items of a dictionary, or of a record of some class of dictionaries; empty for anything else."""
    if isinstance(value, Mapping):
        return value
    return value.pairs if isinstance(value, Record) else {}


def _is_scripted(module: Record) -> bool:
    return isinstance(module.kind, Global) and module.kind.module.startswith("__torch__")
