"""A forward pass is somebody else's code: made repeatable, put back as it was, and whatever it raises is one sentence."""

import copy
import functools
import hashlib
import inspect
import random
import sys
import types
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import posthoc
from posthoc.errors import PosthocError, message_of
from posthoc.errors import error_line as error_line
from posthoc.streams import batch_seed

_OURS = (str(Path(posthoc.__file__).parent), str(Path(torch.__file__).parent))
OUT_OF_GPU_MEMORY = ("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "CUDA error: out of memory")
"""How libraries that take memory of a GPU for themselves say that there is none left."""
_OF_EVERY_MODULE = vars(nn.Module()).keys() - {"training"}


class Arguments(NamedTuple):
    """What a forward pass takes: its arguments in their order, those that it cannot do without, those that can be given
    by their names, how many by their places, and whether it takes any other name."""

    names: tuple[str, ...] = ()
    needed: tuple[str, ...] = ()
    by_name: frozenset[str] = frozenset()
    places: int = 0
    any_name: bool = True


def arguments_of(module: nn.Module) -> Arguments:
    """The arguments of a module's forward pass; of one that does not say, nothing is known."""
    try:
        parameters = list(inspect.signature(module.forward).parameters.values())
    except (TypeError, ValueError):
        return Arguments()
    usual = [each for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
    return Arguments(
        tuple(each.name for each in usual),
        tuple(each.name for each in usual if each.default is each.empty),
        frozenset(each.name for each in usual if each.kind is not each.POSITIONAL_ONLY),
        sum(each.kind is not each.KEYWORD_ONLY for each in usual),
        any(each.kind is each.VAR_KEYWORD for each in parameters),
    )


def caller(module: nn.Module, inputs: Collection[str]) -> Callable[[Mapping[str, Tensor]], Any]:
    """How a module is given batches of these inputs: by the names of its forward pass's arguments, where it has all of these.

    Else images, the only input, as the pixel values of a network that takes other things too; several as one dictionary,
    where there is one argument alone; else by their places.
    """
    arguments = arguments_of(module)
    if set(inputs) <= arguments.by_name:
        return lambda batch: module(**batch)
    if set(inputs) == {"images"} and "pixel_values" in arguments.by_name:
        return lambda batch: module(pixel_values=batch["images"])
    if takes_dictionary(arguments) and len(inputs) > 1:
        return lambda batch: module(dict(batch))
    if len(inputs) == 1 or arguments.places >= len(inputs):
        return lambda batch: module(*batch.values())
    return lambda batch: module(**batch)


def takes_dictionary(arguments: Arguments) -> bool:
    """Whether several inputs can be given as one dictionary alone: to a forward pass of one argument."""
    return len(arguments.names) == arguments.places == 1 and not arguments.any_name


def call(module: nn.Module, batch: Mapping[str, Tensor]) -> Any:
    """What a module gives for a batch, see `caller`."""
    return caller(module, batch.keys())(batch)


class StrayError(PosthocError):
    """Not every sample went through `layers`, as through an expert of a mixture: how many rows each gave, None for one that
    was not reached."""

    def __init__(self, message: str, layers: Mapping[str, int | None]) -> None:
        super().__init__(message)
        self.layers = layers


@contextmanager
def guarded(name: str, module: nn.Module, batch: Mapping[str, Tensor], where: str) -> Iterator[None]:
    """Whatever the module raises is a PosthocError that names layer, batch and checkpoint; memory that runs out is not.

    where: the checkpoint, in words.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except StrayError as error:
        raise StrayError(f"{where}: {error}", error.layers) from error
    except PosthocError as error:
        raise PosthocError(f"{where}: {error}") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever the user's code raises
        shapes = {name: " x ".join(map(str, tensor.shape)) for name, tensor in batch.items()}
        sizes = ", ".join(shapes.values() if len(shapes) == 1 else (f"{n} {shape}" for n, shape in shapes.items()))
        if any(sign in message_of(error) for sign in OUT_OF_GPU_MEMORY):
            raise torch.OutOfMemoryError(message_of(error)) from error
        if isinstance(error, MemoryError) or "can't allocate memory" in message_of(error):
            raise PosthocError(
                f"Out of memory at {where} ({error_line(error)}); pass a smaller --batch-size."
            ) from error
        raise PosthocError(
            f"{where}: {name} fails {place_of(error, module)} on a batch of {sizes} ({error_line(error)}); mend its forward pass, or give the probe that it takes."
        ) from error


def place_of(error: BaseException, module: nn.Module) -> str:
    """The innermost module that was running, and the last line of it that is neither torch's nor ours, in words.

    Read from the traceback, which costs nothing as long as nothing is raised.
    """
    names = {id(part): name for name, part in module.named_modules()}
    layer, line = "", ""
    trace: types.TracebackType | None = error.__traceback__
    while trace:
        code = trace.tb_frame.f_code
        layer = names.get(id(trace.tb_frame.f_locals.get("self"))) or layer
        if _is_users(code.co_filename):
            line = f"line {trace.tb_lineno} of {Path(code.co_filename).name}"
        trace = trace.tb_next
    if layer:
        kind = type(module.get_submodule(layer)).__name__
        return f"in {layer} ({kind}{f', {line}' if line else ''})"
    return f"at {line}" if line else "in its forward pass"


def _is_users(file: str) -> bool:
    return not file.startswith((*_OURS, "<")) and "contextlib" not in file


def weights_digest(module: nn.Module) -> str:
    """SHA-256 of the names and values of a module's tensors."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        if isinstance(tensor, Tensor):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode("utf-8", "backslashreplace"))
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def own_randomness(device: torch.device) -> Iterator[None]:
    """Whatever is drawn within, the program's random numbers go on as if it had not been."""
    python, arrays = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)


def seed_batch(seed: int, batch: int) -> None:
    """Set the random numbers of torch, NumPy and Python to those of the batch of that number."""
    value = batch_seed(seed, batch)
    torch.manual_seed(value)
    np.random.seed(value)
    random.seed(value)


def random_state(device: torch.device) -> dict[str, bytes]:
    """Where each stream of random numbers stands, by the library it belongs to."""
    ours = [torch.get_rng_state()] + ([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])
    return {
        "torch": b"".join(state.numpy().tobytes() for state in ours),
        "numpy.random": repr(np.random.get_state(legacy=False)).encode(),
        "random": repr(random.getstate()).encode(),
    }


class DrawsHeard(TorchDispatchMode):
    """Notes which operations draw random numbers, where, and on behalf of which module."""

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.names = {id(part): name for name, part in module.named_modules()}
        self.device = device
        self.calls: dict[str, None] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **(kwargs or {}))
        before = random_state(self.device)["torch"]
        result = func(*args, **(kwargs or {}))
        if random_state(self.device)["torch"] != before:
            self.calls[self._call(str(func).split(".")[1])] = None
        return result

    def _call(self, operation: str) -> str:
        """In words: the function, the layer, and the user's line."""
        frame: types.FrameType | None = sys._getframe(2)
        layer = None
        while frame:
            code = frame.f_code
            if code.co_filename.endswith("nn/functional.py"):
                operation = code.co_name
            if layer is None:
                layer = self.names.get(id(frame.f_locals.get("self")))
            if _is_users(code.co_filename):
                inside = f" in {layer}" if layer else ""
                return f"{operation}{inside} (line {frame.f_lineno} of {Path(code.co_filename).name})"
            if layer is not None and code.co_name == "_call_impl":
                return f"{operation} in {layer}"
            frame = frame.f_back
        return operation


class State:
    """All that a module is but for its parameters: attributes, buffers, submodules, modes. Taken once, put back often.

    What cannot be copied (an open file, a lock) stays as it is, and so do the parts of a scripted module. Attributes that
    are views of a weight or buffer stay views of it: `memory`, by the identity of such a weight or buffer, is what they
    look at, into which its values are copied.
    """

    def __init__(self, module: nn.Module) -> None:
        self._parts = [part for part in module.modules() if not isinstance(part, torch.jit.ScriptModule)]
        self._names = {id(part): name for name, part in module.named_modules()}
        fixed = [*module.modules(), *module.parameters(), *module.buffers()]
        self._fixed: dict[int, Any] = {id(item): item for item in fixed}
        views, self.memory = _sharing(self._parts, [*module.parameters(), *module.buffers()])
        self._fixed |= {id(view): view for view in views}
        self._members = [
            {group: dict(vars(part)[group]) for group in ("_parameters", "_buffers", "_modules")}
            for part in self._parts
        ]
        self._contents = [(buffer, buffer.clone()) for buffer in module.buffers() if not buffer.is_meta]
        memo = self._fixed.copy()  # one for all: what two modules share stays shared
        self._attributes = [self._copied(_attributes(part), memo) for part in self._parts]

    def put_back(self) -> None:
        """Make the module what it was; its parameters keep their values."""
        for buffer, content in self._contents:
            if (memory := self.memory.get(id(buffer))) is not None:
                buffer.data = memory.copy_(content)
            else:
                buffer.data = content.clone()
        memo = self._fixed.copy()
        for part, members, attributes in zip(self._parts, self._members, self._attributes, strict=True):
            for name in _attributes(part).keys() - attributes.keys():
                del vars(part)[name]
            vars(part).update(self._copied(attributes, memo))
            for group, items in members.items():
                vars(part)[group].clear()
                vars(part)[group].update(items)

    def changed(self) -> list[str]:
        """Names of the attributes and buffers that are not what they were."""
        contents = {id(buffer): content for buffer, content in self._contents}
        names = []
        for part, members, attributes in zip(self._parts, self._members, self._attributes, strict=True):
            buffers = {name: contents.get(id(buffer)) for name, buffer in members["_buffers"].items()}
            now = _attributes(part) | vars(part)["_buffers"]
            before = attributes | buffers
            prefix = self._names.get(id(part), "")
            names += [
                f"{prefix}.{name}".lstrip(".")
                for name in now.keys() | before.keys()
                if name != "training" and not _same(now.get(name), before.get(name))
            ]
        return sorted(names)

    @staticmethod
    def _copied(attributes: Mapping[str, Any], memo: dict[int, Any]) -> dict[str, Any]:
        return {name: _copy(value, memo) for name, value in attributes.items()}


def _attributes(part: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(part).items() if name not in _OF_EVERY_MODULE}


def _sharing(parts: Iterable[nn.Module], own: Iterable[Tensor]) -> tuple[list[Tensor], dict[int, Tensor]]:
    """The attributes that lie in the memory of a module's own tensors, and that memory by the identity of these tensors:
    of all that share it with an attribute or with each other, but for expanded ones, into which nothing can be copied."""
    mine = {id(tensor): tensor for tensor in own if not _is_expanded(tensor)}
    others = [tensor for tensor in _tensors_in(map(_attributes, parts)) if id(tensor) not in mine]
    uses = Counter(map(_storage, (*mine.values(), *others)))
    owned = set(map(_storage, mine.values())) - {None}
    memory = {key: tensor.detach() for key, tensor in mine.items() if (place := _storage(tensor)) and uses[place] > 1}
    return [tensor for tensor in others if _storage(tensor) in owned], memory


def _is_expanded(tensor: Tensor) -> bool:
    """Whether several of its values are one in memory."""
    try:
        return any(step == 0 and size > 1 for step, size in zip(tensor.stride(), tensor.shape, strict=True))
    except (RuntimeError, ValueError):  # as of sparse ones, and of lazy ones
        return False


def _storage(tensor: Tensor) -> tuple[torch.device, int] | None:
    """Where the memory begins that a tensor is a view of; None of those that have none."""
    try:
        start = tensor.untyped_storage().data_ptr()
    except (RuntimeError, ValueError):  # as of sparse ones, and of lazy ones
        return None
    return (tensor.device, start) if start else None


def _tensors_in(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors in attributes: in containers, in objects, and in what functions were made with."""
    left, seen = list(values), {}
    while left:
        value = left.pop()
        if id(value) in seen:
            continue
        seen[id(value)] = value
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, dict):
            left += value.values()
        elif isinstance(value, (list, tuple, set, frozenset)):
            left += value
        elif isinstance(value, functools.partial):
            left += [value.func, value.args, value.keywords]
        elif isinstance(value, types.MethodType):
            left += [value.__self__, value.__func__]
        elif isinstance(value, types.FunctionType):
            left += [value.__defaults__, value.__kwdefaults__, *(value.__closure__ or ())]
        elif isinstance(value, types.CellType):
            left += [value.cell_contents] if value != types.CellType() else []
        elif not isinstance(value, (type, types.ModuleType)):
            left.append(getattr(value, "__dict__", None))


def _copy(value: Any, memo: dict[int, Any]) -> Any:
    kind = type(value)
    if kind.__module__.partition(".")[0] == "torch" and not isinstance(value, (Tensor, torch.Generator)):
        return value  # torch's own records, which no forward pass writes to
    try:
        return copy.deepcopy(value, memo)
    except Exception:  # whatever an object of the user's raises when it is copied
        return value


def _same(value: Any, other: Any) -> bool:
    if value is other:
        return True
    if type(value) is not type(other):
        return False
    if isinstance(value, Tensor):
        return (
            value.shape == other.shape
            and value.dtype == other.dtype
            and bool(((value == other) | (value != value)).all())
        )
    if isinstance(value, np.ndarray):
        return np.array_equal(value, other)
    if isinstance(value, Mapping):
        return value.keys() == other.keys() and all(_same(value[key], other[key]) for key in value)
    if isinstance(value, (list, tuple)):
        return len(value) == len(other) and all(map(_same, value, other))
    if isinstance(value, torch.Generator):
        return bool(torch.equal(value.get_state(), other.get_state()))
    if isinstance(value, (nn.Module, Callable)):  # type: ignore[arg-type]
        return True
    try:
        return bool(value == other) or (hasattr(value, "__dict__") and _same(vars(value), vars(other)))
    except Exception:  # whatever an object of the user's raises when it is compared
        return False
