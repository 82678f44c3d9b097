"""A checkpoint's tensors -> nn.Module: the model given, recorded beside the run or inside it, or recognised."""

import ast
import contextlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torchvision import models as zoo

from posthoc.errors import PosthocError, UsageError
from posthoc.files import sha256
from posthoc.replay.naming import UNUSED, canonical, readings, shapes_by_name
from posthoc.replay.readers import Header
from posthoc.replay.recognition import Shapes, build, changes, differing, nearest, recognise, sentence

FORMS = "torchvision:NAME, timm:NAME, FILE.py:FACTORY or package.module:FACTORY"
Factory = Callable[[Shapes], nn.Module]


@dataclass(frozen=True)
class Model:
    """A network that fits the checkpoints, without their weights.

    source: how it was found; left_out: tensors of the checkpoints that are none of its own; note: what was assumed;
    code: digest of the user's file that defines it.
    """

    name: str
    source: str
    module: nn.Module
    left_out: tuple[str, ...] = ()
    note: str | None = None
    code: str | None = None

    @property
    def title(self) -> str:
        """Name, source, and what a reader should know of it."""
        parts = [self.source]
        if self.note:
            parts.append(self.note)
        if self.left_out:
            more = f" and {len(self.left_out) - 1} more" if len(self.left_out) > 1 else ""
            parts.append(f"without {self.left_out[0]}{more}, which are no part of it")
        return f"{self.name} ({'; '.join(parts)})"


def parse_arguments(pairs: Sequence[str]) -> dict[str, Any]:
    """Read `key=value` arguments of a model's factory; values are Python literals, or else text.

    >>> parse_arguments(["width=64", "act=relu", "stages=[2, 2]"])
    {'width': 64, 'act': 'relu', 'stages': [2, 2]}
    """
    arguments = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier():
            raise UsageError(f"--model-arg {pair!r} is not KEY=VALUE.")
        try:
            arguments[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            arguments[key] = value
    return arguments


def resolve_model(
    header: Header, given: str | None = None, recorded: str | None = None, arguments: Mapping[str, Any] | None = None
) -> Model:
    """The model that a checkpoint's tensors fit: as given, else as recorded in run.json or the file, else recognised.

    Raises PosthocError that names the differences where the model does not fit, the nearest ones where none does.
    """
    shapes, arguments = header.shapes, dict(arguments or {})
    if given is not None:
        return _named(given, "given", shapes, arguments, header.arch)
    if arguments:
        raise UsageError("--model-arg needs --model.")
    if recorded is not None:
        return _named(recorded, "from run.json", shapes, arguments, header.arch)
    if header.arch:
        for library in ("torchvision", "timm"):
            with contextlib.suppress(PosthocError):
                return _named(f"{library}:{header.arch}", "named in the checkpoints", shapes, arguments, None)
    fitting = []
    for names in readings(shapes):
        found = recognise(shapes_by_name(names, shapes))
        if found and len(names) == len(shapes):
            return Model(found[0], "recognised", found[1], (), changes(*found))
        if found:
            fitting.append((names, found))
    if len(fitting) == 1:
        names, (name, module) = fitting[0]
        return Model(name, "recognised", module, _left_out(names, shapes), changes(name, module))
    if fitting:
        raise PosthocError(_several([names for names, _ in fitting]))
    said = [f"The checkpoints fit no known model ({len(shapes)} tensors)."]
    if header.kind:
        said.append(f"They are pickled modules of class {header.kind}; its code is not in them.")
    if header.arch:
        timm = " (if it is timm's, install posthoc[timm])" if importlib.util.find_spec("timm") is None else ""
        said.append(f"They name the architecture {header.arch!r}{timm}.")
    said += [nearest(shapes_by_name(canonical(shapes), shapes)), f"Pass --model {FORMS}."]
    raise PosthocError(" ".join(said))


def name_tensors(model: nn.Module, shapes: Shapes) -> dict[str, str]:
    """Name in the model -> name in a checkpoint, for a checkpoint that fits; KeyError for one that does not."""
    names = next(names for names in readings(shapes) if not differing(model, shapes_by_name(names, shapes)))
    theirs = {short: name for name, short in names.items()}
    return {name: theirs[short] for name, short in canonical(model.state_dict()).items() if short in theirs}


def _named(said: str, source: str, shapes: Shapes, arguments: dict[str, Any], arch: str | None) -> Model:
    place, _, name = said.rpartition(":")
    if place.endswith(".py") or name.endswith(".py"):
        return _from_file(Path(place or name), name if place else None, source, shapes, arguments, arch)
    if place in ("", "torchvision"):
        if name not in zoo.list_models(module=zoo):
            raise UsageError(
                f"Unknown model {said!r} ({source}); give {FORMS}, "
                f"one of torchvision's classification models being torchvision:resnet18."
            )
        model = _fitted(name, source, lambda found: build(name, found, **arguments), shapes)
        return Model(model.name, source, model.module, model.left_out, changes(name, model.module))
    if place == "timm":
        return _fitted(said, source, lambda found: _timm(name, found, arguments), shapes)
    factory = _attribute(_import(place), name, said)
    return _fitted(said, source, lambda _: _made(factory, said, arguments), shapes)


def _fitted(name: str, source: str, factory: Factory, shapes: Shapes, code: str | None = None) -> Model:
    """The model for the reading of the names that it fits."""
    misfits, fitting = [], []
    for names in readings(shapes):
        found = shapes_by_name(names, shapes)
        try:
            module = factory(found)
        except (ValueError, RuntimeError, TypeError, AssertionError) as error:
            raise PosthocError(f"{name} cannot be built for these weights ({error}).") from error
        differences = differing(module, found)
        if not differences:
            fitting.append((names, module))
            if len(names) == len(shapes):
                break
        misfits.append((sum(map(len, differences.values())), differences))
    if len(fitting) > 1:
        raise PosthocError(_several([names for names, _ in fitting]))
    if not fitting:
        least = min(misfits, key=lambda row: row[0])[1]
        hint = nearest(shapes_by_name(canonical(shapes), shapes))
        raise PosthocError(f"The checkpoints do not fit {name}: {sentence(least)}. {hint}")
    names, module = fitting[0]
    return Model(name, source, module, _left_out(names, shapes), None, code)


def _left_out(names: Mapping[str, str], shapes: Shapes) -> tuple[str, ...]:
    return tuple(name for name in shapes if name not in names and not name.endswith(UNUSED))


def _several(fitting: Sequence[Mapping[str, str]]) -> str:
    prefixes = [next(name[: -len(short) - 1] for name, short in names.items()) for names in fitting]
    return f"The checkpoints hold several networks that fit; choose one with --weights-key {' or '.join(prefixes)}."


def _timm(name: str, shapes: Shapes, arguments: dict[str, Any]) -> nn.Module:
    """A model of timm with head, input channels and image size as in `shapes`."""
    if importlib.util.find_spec("timm") is None:
        raise PosthocError(f"timm:{name} needs timm; install posthoc[timm].")
    import timm

    if not timm.is_model(name):
        raise UsageError(f"Unknown model timm:{name}; timm.list_models() names them all.")
    options: dict[str, Any] = {}
    with torch.device("meta"):
        plain = timm.create_model(name, pretrained=False)
    wanted = {key: tuple(tensor.shape) for key, tensor in plain.state_dict().items()}
    head = shapes.get(list(wanted)[-1])
    if head and head[0] != wanted[list(wanted)[-1]][0]:
        options["num_classes"] = head[0]
    first = next((key for key, shape in wanted.items() if len(shape) == 4), "")
    if first in shapes and len(shapes[first]) == 4 and shapes[first][1] != wanted[first][1]:
        options["in_chans"] = shapes[first][1]
    position, patch = shapes.get("pos_embed"), shapes.get("patch_embed.proj.weight")
    if position and patch and len(position) == 3 and position != wanted.get("pos_embed"):
        embedding: Any = plain.patch_embed
        extra = wanted["pos_embed"][1] - embedding.num_patches
        options["img_size"] = patch[-1] * round((position[1] - extra) ** 0.5)
    return _made(timm.create_model, f"timm:{name}", {"model_name": name, "pretrained": False, **options, **arguments})


def _from_file(
    path: Path, name: str | None, source: str, shapes: Shapes, arguments: dict[str, Any], arch: str | None
) -> Model:
    """From a user's file: the factory named, else the one of them whose model fits."""
    module = _import(path)
    code = sha256(path)
    said = f"{path.name}:{name}" if name else path.name
    if name is not None:
        factory = _attribute(module, name, str(path))
        return _fitted(said, source, lambda _: _made(factory, said, arguments), shapes, code)
    found = dict(_factories(module, arguments))
    if arch in found:
        found = {arch: found.pop(arch), **found}
    misfits = []
    for candidate, factory in found.items():
        said = f"{path.name}:{candidate}"
        try:
            made = _made(factory, said, arguments)
        except PosthocError:
            continue
        if any(not differing(made, shapes_by_name(names, shapes)) for names in readings(shapes)):
            return _fitted(said, source, lambda _, made=made: made, shapes, code)  # type: ignore[misc]
        differences = differing(made, shapes_by_name(canonical(shapes), shapes))
        misfits.append((sum(map(len, differences.values())), candidate, sentence(differences)))
    if not misfits:
        raise PosthocError(f"{path} defines no model that needs no arguments; pass --model {path}:FACTORY --model-arg.")
    _, name, least = min(misfits)
    raise PosthocError(
        f"The checkpoints fit no model of {path} (tried: {', '.join(found)}); from {name} they differ in {least}. "
        f"Name one and its arguments: --model {path}:FACTORY --model-arg KEY=VALUE."
    )


def _import(place: str | Path) -> ModuleType:
    """Run the user's file, with its own folder to import from, or import the package named."""
    before = list(sys.path)
    try:
        if isinstance(place, str):
            sys.path.insert(0, "")
            return importlib.import_module(place)
        if not place.is_file():
            raise PosthocError(f"No such file: {place}.")
        sys.path.insert(0, str(place.resolve().parent))
        spec = importlib.util.spec_from_file_location(place.stem, place)
        if spec is None or spec.loader is None:
            raise PosthocError(f"{place} is not a Python file.")
        module = importlib.util.module_from_spec(spec)
        sys.modules.setdefault(place.stem, module)  # dataclasses and the like look their module up
        spec.loader.exec_module(module)
        return module
    except PosthocError:
        raise
    except Exception as error:  # whatever the user's code raises
        raise PosthocError(f"{place} cannot be imported ({type(error).__name__}: {error}).") from error
    finally:
        sys.path[:] = before


def _attribute(module: ModuleType, name: str, place: str) -> Any:
    factory = getattr(module, name, None)
    if not callable(factory):
        names = ", ".join(dict(_factories(module, {}))) or "none"
        raise UsageError(f"{place} defines no model {name!r} (found: {names}).")
    return factory


def _factories(module: ModuleType, arguments: Mapping[str, Any]) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Functions and module classes defined in the file that can be called with just these arguments."""
    for name, value in vars(module).items():
        if getattr(value, "__module__", None) != module.__name__ or name.startswith("_") or not callable(value):
            continue
        if inspect.isclass(value) and not issubclass(value, nn.Module):
            continue
        with contextlib.suppress(TypeError, ValueError):
            inspect.signature(value).bind(**arguments)
            yield name, value


def _made(factory: Callable[..., Any], name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Call the factory; its random initialisation leaves the program's random numbers as they were."""
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = factory(**arguments) if not isinstance(factory, nn.Module) else factory
    except Exception as error:  # whatever the user's code raises
        raise PosthocError(f"{name} failed ({type(error).__name__}: {error}); see --model-arg.") from error
    if not isinstance(module, nn.Module):
        raise PosthocError(f"{name} gives a {type(module).__name__}, not a torch.nn.Module.")
    return module.eval()
