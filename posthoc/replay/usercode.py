"""The models that a file or module of the user's defines."""

import contextlib
import dis
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from posthoc.errors import UsageError
from posthoc.shown import with_article
from posthoc.usercode import UserCode

Factory = Callable[..., Any] | nn.Module


class ModelCode(UserCode):
    """A file or module of the user's that defines models."""

    @contextlib.contextmanager
    def drawing(self, seed: int | None) -> Iterator[None]:
        """Random numbers drawn within leave the program's as they were, unless a `seed` is given: those go on from there."""
        with torch.random.fork_rng(devices=[], enabled=seed is None):
            torch.manual_seed(seed or 0)
            yield

    def attribute(self, name: str) -> Factory:
        """The function, class or model of that name; a UsageError that lists what there is where there is none."""
        with self.calling(f"{self.title}:{name} cannot be read"):
            factory: Factory | None = getattr(self.module, name, None)
        if not callable(factory):
            names = ", ".join([*self.factories({}), *self.needing_arguments()]) or "none"
            where = getattr(self.module, "__file__", None) or self.title
            raise UsageError(f"{where} defines no model {name!r} (found: {names}).")
        return factory

    def factories(self, arguments: Mapping[str, Any]) -> dict[str, Factory]:
        """What in the file may make a model of just these arguments: module classes, ready models, then functions.

        Of functions only such as return something: others train a model, or are the script's `main`.
        """
        classes: dict[str, Factory] = {}
        models: dict[str, Factory] = {}
        functions: dict[str, Factory] = {}
        for name, value in list(vars(self.module).items()):
            if name.startswith("_"):
                continue
            if isinstance(value, nn.Module):
                if not arguments:
                    models[name] = value
            elif getattr(value, "__module__", None) == self.module.__name__ and _takes(value, arguments):
                if _is_module_class(value):
                    classes[name] = value
                elif inspect.isfunction(value) and _returns(value):
                    functions[name] = value
        return classes | models | functions

    def needing_arguments(self) -> list[str]:
        """The file's module classes that cannot be made without arguments, with those."""
        rows = []
        for name, value in list(vars(self.module).items()):
            mine = _is_module_class(value) and value.__module__ == self.module.__name__
            if mine and not _takes(value, {}):
                rows.append(f"{name}{inspect.signature(value)}")
        return rows

    def make(self, name: str, factory: Factory, arguments: Mapping[str, Any], seed: int | None = None) -> nn.Module:
        """Call the factory, whose name is `name`; raises UsageError where that fails or gives no model.

        seed: see `drawing`.
        """
        title = f"{self.title}:{name}"
        if not isinstance(factory, nn.Module) and not _takes(factory, arguments):
            given = ", ".join(arguments) or "none"
            raise UsageError(
                f"{title}{inspect.signature(factory)} takes other arguments than those given ({given}); "
                f"give them by --model-arg KEY=VALUE."
            )
        with self.calling(f"{title} failed", seed=seed):
            module = factory if isinstance(factory, nn.Module) else factory(**arguments)
            if isinstance(module, nn.Module):
                module.eval()
                module.state_dict(keep_vars=True)  # which may be its own, too
                return module
        raise UsageError(
            f"{title} gives {with_article(type(module).__name__)}, not a torch.nn.Module; let it return one."
        )


def _takes(factory: Any, arguments: Mapping[str, Any]) -> bool:
    """Whether it can be called with just these arguments; true of what has no signature to tell."""
    try:
        inspect.signature(factory).bind(**arguments)
    except TypeError:
        return False
    except ValueError:
        return True
    return True


def _is_module_class(value: Any) -> bool:
    return inspect.isclass(value) and issubclass(value, nn.Module)


def _returns(function: Callable[..., Any]) -> bool:
    """Whether some path through a function returns anything but None.

    >>> _returns(lambda: 1), _returns(lambda x: x or None), _returns(lambda: None)
    (True, True, False)
    """
    code = getattr(inspect.unwrap(function), "__code__", None)
    if code is None or code.co_flags & (inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR):
        return False
    before = None
    for step in dis.get_instructions(code):
        nothing = before is not None and before.opname.startswith("LOAD_CONST") and before.argval is None
        nothing = nothing and not step.is_jump_target  # as of `return made or None`
        if (step.opname == "RETURN_VALUE" and not nothing) or (
            step.opname == "RETURN_CONST" and step.argval is not None
        ):
            return True
        before = step
    return False
