"""A checkpoint's tensors -> nn.Module: the model given, recorded beside the run or inside it, or recognised."""

import contextlib
import importlib.util
import inspect
import re
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import nn

from posthoc.errors import PosthocError, UsageError
from posthoc.replay.adapters import adapt, find_adapter
from posthoc.replay.checkpoint import Header, read_weights
from posthoc.replay.configs import NAME, Config, find_config, read_config
from posthoc.replay.diffusers import build_diffuser
from posthoc.replay.forward import error_line, weights_digest
from posthoc.replay.lazy import initialise, lazy_layers
from posthoc.replay.loading import own_loading, own_names
from posthoc.replay.marks import Names, assembled, sources
from posthoc.replay.meant import LIBRARIES, MODEL_FORMS, require_timm, unknown_model
from posthoc.replay.naming import UNUSED, canonical, readings, shapes_by_name
from posthoc.replay.recognition import (
    Comparison,
    Shapes,
    build,
    changes,
    compare,
    nearest,
    recognise,
    sentence,
    torchvision_names,
)
from posthoc.replay.transformers import skeleton
from posthoc.replay.usercode import Factory, ModelCode
from posthoc.shown import counted, listed

CONFIGURED = ("transformers", "diffusers")
"""Libraries whose networks a config.json describes."""
Made = Callable[[Shapes, int | None], nn.Module]
"""A model for a reading: to be given weights, or with its own, drawn with torch's random numbers from a seed on."""


@dataclass(frozen=True)
class Model:
    """A network that fits the checkpoints, without their weights.

    source: how it was found; left_out: tensors of the checkpoints that are none of its own; note: what was assumed;
    user: the code that defines it, where that is the user's; drawn: makes another, with the weights that its constructor
    draws with torch's random numbers from a seed on (lazy layers are as yet without), None where there is no constructor;
    naming: how its tensors are found in a checkpoint, where not by their names; digest: of the config it is made of; adapters:
    of which kind the checkpoints are, if they are adapters of it; single: whether it was brought to single precision.
    """

    name: str
    source: str
    module: nn.Module
    left_out: tuple[str, ...] = ()
    note: str | None = None
    user: ModelCode | None = None
    drawn: Callable[[int], nn.Module] | None = None
    naming: Callable[[Shapes], Names] | None = None
    digest: str | None = None
    adapters: str | None = None
    single: bool = False

    def in_single(self) -> "Model | None":
        """A network of the user's with all its numbers in single precision; None where they are so already."""
        types = {tensor.dtype for tensor in (*self.module.parameters(), *self.module.buffers())}
        others = sorted(
            str(dtype).removeprefix("torch.") for dtype in types - {torch.float32} if dtype.is_floating_point
        )
        if not self.user or not others:
            return None
        note = f"built in {' and '.join(others)}, brought to single precision"
        drawn = self.drawn
        return replace(
            self,
            module=self.module.float(),
            note=f"{self.note}; {note}" if self.note else note,
            drawn=drawn and (lambda seed: drawn(seed).float()),
            single=True,
        )

    @property
    def code(self) -> str | None:
        """Digest of the user's file, or of the config, that defines it."""
        return self.digest or (self.user.digest if self.user else None)

    def names(self, shapes: Shapes) -> Names:
        """Name of each of its tensors -> name in a checkpoint, or names; raises PosthocError for a checkpoint that does not fit."""
        return self.naming(shapes) if self.naming else name_tensors(self.module, shapes)

    def at_work(self) -> AbstractContextManager[None]:
        """To run its forward pass in: the user's code finds the files beside it, and prints to stderr."""
        return self.user.at_work() if self.user else nullcontext()

    @property
    def loading(self) -> list[str]:
        """What of the user's code takes part when weights are loaded; nothing of a base, which keeps its weights."""
        return own_loading(self.module) if self.user and not self.adapters else []

    @property
    def title(self) -> str:
        """Name, source, and what a reader should know of it."""
        parts = [self.source]
        if own := self.loading:
            parts.append(f"each checkpoint through its load_state_dict() and eval(), for it has {listed(own, 2)}")
        if self.note:
            parts.append(self.note)
        if self.left_out:
            parts.append(f"without {listed(self.left_out, 1)}, which are no part of it")
        return f"{self.name} ({'; '.join(parts)})"


def resolve_model(
    header: Header,
    given: str | None = None,
    recorded: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    place: Path | None = None,
) -> Model:
    """The model that a checkpoint's tensors fit: as given, else as recorded in run.json, a config.json beside the
    checkpoint at `place` or the file itself, else recognised, else as the settings in the file name it.

    Only `given` may name code; all else names models of the libraries, or none. Raises UsageError where the code given
    breaks, else PosthocError that names the differences where the model does not fit.
    """
    shapes, arguments = header.shapes, dict(arguments or {})
    config = find_config(place) if place else None
    if given is not None:
        if place and (adapter := find_adapter(place)):
            return _adapted(adapter, given, shapes, arguments)
        library, _, where = given.partition(":") if isinstance(given, str) else ("", "", "")
        if library in CONFIGURED:
            config = read_config(Path(where)) if where else config
            if config is None or config.library != library:
                raise UsageError(f"--model {given}: no {NAME} of {library} lies there; name its folder: {library}:DIR.")
            return _configured(config, shapes, arguments, "given")
        return _given(given, shapes, arguments, header.arch)
    if arguments:
        raise UsageError("--model-arg needs --model.")
    if recorded is not None:
        return _recorded(recorded, shapes)
    if place and (adapter := find_adapter(place)):
        raise PosthocError(f"{adapter.path}: {_base_wanted(adapter)}")
    if config and config.library in CONFIGURED:
        return _configured(config, shapes, {}, f"from {NAME}")
    if config and config.library == "timm":
        for name in _known(f"timm:{config.content['architecture']}"):
            return _library(name, f"from {NAME}", shapes)
    for name in _known(header.arch):
        with contextlib.suppress(PosthocError):
            return _library(name, "named in the checkpoints", shapes)
    try:
        return _recognised(header)
    except PosthocError:
        for key, text in header.named.items():
            for name in _known(text):
                with contextlib.suppress(PosthocError):
                    return _library(name, f"named in the checkpoints: {key}", shapes)
        raise


def name_tensors(model: nn.Module, shapes: Shapes) -> Names:
    """Name in the model -> name in a checkpoint; raises PosthocError for a checkpoint that does not fit."""
    for names in readings(shapes):
        comparison = compare(model, shapes_by_name(names, shapes))
        if comparison.fits:
            theirs = {short: name for name, short in names.items()}
            return {name: theirs[short] for name, short in comparison.names.items() if short in theirs}
    if own := own_names(model, shapes):
        return own
    raise PosthocError(f"It does not fit the model: {_misfit(_closest(lambda *_: model, shapes))}.")


def _configured(config: Config, shapes: Shapes, arguments: Mapping[str, Any], source: str) -> Model:
    """The network of transformers or diffusers that a config describes."""
    if config.library == "diffusers":
        model = _fitted(
            config.content["_class_name"], source, lambda _, seed: build_diffuser(config, arguments, seed), shapes
        )
        return replace(model, digest=config.digest)
    made = skeleton(config, shapes, arguments)
    return Model(
        made.name, source, made.module, made.left_out, drawn=made.drawn, naming=made.names, digest=config.digest
    )


def _adapted(adapter: Config, given: str, shapes: Shapes, arguments: Mapping[str, Any]) -> Model:
    """The base network that the command line names, with adapters in place; its weights are its own."""
    library, _, where = given.partition(":")
    user = None
    base: Callable[[], nn.Module]
    if library == "transformers" and where:
        base = partial(_with_weights, Path(where), arguments)
        name = type(base()).__name__
    elif library.endswith(".py") and where:
        user = ModelCode(Path(library))
        base = partial(user.make, where, user.attribute(where), arguments)
        name = f"{user.title}:{where}"
    else:
        raise UsageError(f"--model {given}: {_base_wanted(adapter)}")
    made = adapt(base, adapter, shapes)
    digest = sha256(f"{adapter.digest} {weights_digest(base())}".encode()).hexdigest()
    kind = adapter.content["peft_type"]
    return Model(
        name, f"given, with {kind} adapters", made.module, (), None, user, made.drawn, made.names, digest, kind
    )


def _base_wanted(adapter: Config) -> str:
    base = adapter.content.get("base_model_name_or_path")
    return (
        f"the checkpoints are adapters of a base network{f' ({_brief(base)})' if base else ''}; "
        f"name it, with its weights: --model transformers:DIR or FILE.py:FACTORY."
    )


def _with_weights(folder: Path, arguments: Mapping[str, Any]) -> nn.Module:
    """The network of transformers in a folder, with the weights that lie there."""
    weights = read_weights(folder)
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    made = skeleton(read_config(folder), shapes, arguments)
    state = made.module.state_dict(keep_vars=True)
    for name, tensor in assembled(made.names(shapes), weights).items():
        state[name].data = tensor.to(state[name].dtype)
    return made.module


def _known(name: str | None) -> Iterator[str]:
    """The models of torchvision and timm with exactly this name, as LIBRARY:NAME.

    This is how what comes with the data is looked up: it is compared with the libraries' lists, and nothing of it is
    ever opened, imported or downloaded.
    """
    for library in LIBRARIES:
        short = (name or "").removeprefix(f"{library}:")
        if _has(library, short):
            yield f"{library}:{short}"


def _has(library: str, name: str) -> bool:
    if library == "torchvision":
        return bool(name) and name in torchvision_names()
    if not re.fullmatch(r"[\w.]+", name) or importlib.util.find_spec("timm") is None:
        return False
    import timm

    # is_model ignores what follows a dot.
    return name in timm.list_models(pretrained=True) if "." in name else bool(timm.is_model(name))


def _recorded(name: str, shapes: Shapes) -> Model:
    """The model of torchvision or timm that run.json names."""
    failed = None
    for known in _known(name):
        try:
            return _library(known, "from run.json", shapes)
        except PosthocError as error:
            failed = failed or error
    if failed:
        raise failed
    raise PosthocError(
        f"run.json names {_brief(name)}, which is no model of torchvision or timm{_without_timm()}; "
        f"pass --model if it is yours."
    )


def _brief(value: Any) -> str:
    short = reprlib.Repr()
    short.maxstring = short.maxother = 80
    return short.repr(value)


def _without_timm() -> str:
    return " (timm is not installed: posthoc[timm])" if importlib.util.find_spec("timm") is None else ""


def _given(reference: Any, shapes: Shapes, arguments: dict[str, Any], arch: str | None) -> Model:
    """What the command line names, code of the user's included."""
    if not isinstance(reference, str):
        raise UsageError(f"model is {_brief(reference)}; give text: {MODEL_FORMS}.")
    library, _, name = reference.partition(":")
    if library in LIBRARIES or (":" not in reference and not reference.endswith(".py")):
        if library == "timm" and name:
            require_timm(name)
        names = list(_known(reference))
        if not names:
            raise unknown_model(reference, torchvision_names())
        return _library(names[0], "given", shapes, arguments)
    if reference.endswith(".py"):
        return _any_of(ModelCode(Path(reference)), shapes, arguments, arch)
    place, _, name = reference.rpartition(":")
    user = ModelCode(Path(place) if place.endswith(".py") else place)
    factory = user.attribute(name)
    model = _fitted(f"{user.title}:{name}", "given", _maker(user, name, factory, arguments), shapes, user)
    return replace(model, drawn=None) if isinstance(factory, nn.Module) else model


def _maker(user: ModelCode, name: str, factory: Factory, arguments: Mapping[str, Any]) -> Made:
    """The user's model for a reading: the same for all, but for one of lazy layers."""
    module = user.make(name, factory, arguments)
    lazy = bool(lazy_layers(module))

    def made(tensors: Shapes, seed: int | None) -> nn.Module:
        if seed is not None:
            return user.make(name, factory, arguments, seed)
        return initialise(user.make(name, factory, arguments), tensors) if lazy else module

    return made


def _library(name: str, source: str, shapes: Shapes, arguments: Mapping[str, Any] | None = None) -> Model:
    """A model of torchvision or timm, known to be one, with the head, input channels and image size of the shapes."""
    library, _, short = name.partition(":")
    options = dict(arguments or {})

    def made(tensors: Shapes, seed: int | None) -> nn.Module:
        try:
            return (
                build(short, tensors, seed, **options)
                if library == "torchvision"
                else _timm(short, tensors, seed, options)
            )
        except PosthocError as error:
            if options:  # which may be why
                raise UsageError(str(error)) from error
            raise

    model = _fitted(short if library == "torchvision" else name, source, made, shapes)
    return replace(model, note=changes(short, model.module)) if library == "torchvision" else model


def _any_of(user: ModelCode, shapes: Shapes, arguments: dict[str, Any], arch: str | None) -> Model:
    """The model of the file that most of the tensors fit: an autoencoder before its encoder; of equals the first.

    The one that the checkpoints name comes first. Functions are called only where no class fits all tensors.
    """
    factories = user.factories(arguments)
    if arch in factories:
        factories = {arch: factories.pop(arch), **factories}
    fitting: list[tuple[int, str, Made]] = []
    misfits: list[tuple[Comparison, str]] = []
    failures = []
    whole = sum(not name.endswith(UNUSED) for name in shapes)
    for name, factory in factories.items():
        if any(shared >= whole for shared, *_ in fitting) and (inspect.isfunction(factory) or arch == fitting[0][1]):
            break
        try:
            made = _maker(user, name, factory, arguments)
        except UsageError as error:
            failures.append(str(error).rstrip("."))
            continue
        closest = _closest(made, shapes)
        if closest.fits:
            fitting.append((closest.shared, name, made))
        elif own := _own_names(user, made(shapes_by_name(canonical(shapes), shapes), None), shapes):
            fitting.append((len(own), name, made))
        else:
            misfits.append((closest, name))
    if fitting:
        most = max(shared for shared, *_ in fitting)
        (name, made), *others = [(name, made) for shared, name, made in fitting if shared == most]
        model = _fitted(f"{user.title}:{name}", "given", made, shapes, user)
        alike = ", ".join(other for other, _ in others if name != arch)
        drawn = None if isinstance(factories[name], nn.Module) else model.drawn
        return replace(model, note=f"as would {alike} of that file" if alike else None, drawn=drawn)
    raise _none_of(user, arguments, list(factories), misfits, failures)


def _none_of(
    user: ModelCode,
    arguments: Mapping[str, Any],
    tried: Sequence[str],
    misfits: Sequence[tuple[Comparison, str]],
    failures: Sequence[str],
) -> PosthocError:
    """Why no model of a file fits: the nearest, those that could not be made, and those that need arguments."""
    sentences = []
    if misfits:
        closest, name = max(misfits, key=lambda row: row[0].nearness)
        sentences.append(f"The checkpoints fit no model of {user.place} (tried: {', '.join(tried)})")
        sentences.append(f"from {name} they differ in {_misfit(closest)}")
    elif not failures:
        given = f"can be made of {', '.join(arguments)} alone" if arguments else "needs no arguments"
        sentences.append(f"{user.place} defines no model that {given}")
    sentences += failures
    if not arguments and (needing := user.needing_arguments()):
        advice = f"--model {user.place}:NAME --model-arg KEY=VALUE"
        sentences.append(f"not tried without arguments: {', '.join(needing)}; {advice}")
    return (PosthocError if misfits else UsageError)(f"{'; '.join(sentences)}.")


def _fitted(name: str, source: str, made: Made, shapes: Shapes, user: ModelCode | None = None) -> Model:
    """The model for the reading of the names that it fits."""
    misfits, fitting = [], []
    for names in readings(shapes):
        named = shapes_by_name(names, shapes)
        module = made(named, None)
        comparison = compare(module, named)
        if not comparison.fits:
            misfits.append((comparison, named))
            continue
        fitting.append((names, module))
        if len(names) == len(shapes):
            break
    if len(fitting) > 1:
        raise PosthocError(_several([names for names, _ in fitting]))
    if fitting:
        names, module = fitting[0]
        drawn = partial(made, shapes_by_name(names, shapes))
        return Model(name, source, module, _left_out(names, shapes), user=user, drawn=drawn)
    named = shapes_by_name(canonical(shapes), shapes)
    if user and (own := _own_names(user, module := made(named, None), shapes)):
        used = sources(own)
        left_out = tuple(name for name in shapes if name not in used and not name.endswith(UNUSED))

        def naming(asked: Shapes) -> Names:  # checkpoints are read by a thread while the user's code is at work
            return own if asked == shapes else name_tensors(module, asked)

        return Model(name, source, module, left_out, user=user, drawn=partial(made, named), naming=naming)
    closest, named = max(misfits, key=lambda row: row[0].nearness)
    hint = "" if user else nearest(named)
    raise PosthocError(f"The checkpoints do not fit {name}: {_misfit(closest)}. {hint}".rstrip())


def _own_names(user: ModelCode, module: nn.Module, shapes: Shapes) -> Names | None:
    with user.at_work():
        return own_names(module, shapes)


def _closest(made: Made, shapes: Shapes) -> Comparison:
    """The comparison of the reading with most matches."""
    comparisons = []
    for names in readings(shapes):
        named = shapes_by_name(names, shapes)
        comparisons.append(compare(made(named, None), named))
        if comparisons[-1].fits:
            break
    return max(comparisons, key=lambda row: row.nearness)


def _misfit(comparison: Comparison) -> str:
    """What differs and how much agrees."""
    agreeing = f"{comparison.shared} of its {counted(len(comparison.names), 'tensor')} agree"
    return f"{sentence(comparison.differences)}; {agreeing}"


def _recognised(header: Header) -> Model:
    shapes, fitting = header.shapes, []
    for names in readings(shapes):
        match = recognise(shapes_by_name(names, shapes))
        if match and len(names) == len(shapes):
            fitting = [(names, match)]
            break
        if match:
            fitting.append((names, match))
    if len(fitting) == 1:
        names, (name, module) = fitting[0]
        drawn = partial(build, name, shapes_by_name(names, shapes))
        return Model(name, "recognised", module, _left_out(names, shapes), changes(name, module), drawn=drawn)
    if fitting:
        raise PosthocError(_several([names for names, _ in fitting]))
    sentences = [f"The checkpoints fit no known model ({counted(len(shapes), 'tensor')})."]
    if header.kind:
        sentences.append(f"They are pickled modules of class {header.kind}; its code is not in them.")
    sentences += [_named(key, text) for key, text in header.named.items()]
    sentences += [nearest(shapes_by_name(canonical(shapes), shapes)), f"Pass --model {MODEL_FORMS}."]
    raise PosthocError(" ".join(filter(None, sentences)))


def _named(key: str, text: str) -> str:
    """What became of a name in the checkpoints."""
    what = (
        "which they do not fit" if any(_known(text)) else f"which is no model of torchvision or timm{_without_timm()}"
    )
    return f"They name {_brief(text)} ({key}), {what}."


def _left_out(names: Mapping[str, str], shapes: Shapes) -> tuple[str, ...]:
    return tuple(name for name in shapes if name not in names and not name.endswith(UNUSED))


def _several(fitting: Sequence[Mapping[str, str]]) -> str:
    prefixes = [next(name[: -len(short) - 1] for name, short in names.items()) for names in fitting]
    return f"The checkpoints hold several networks that fit; choose one with --weights-key {' or '.join(prefixes)}."


def _timm(name: str, shapes: Shapes, seed: int | None, arguments: dict[str, Any]) -> nn.Module:
    """A model of timm with head, input channels and image size as in `shapes`; torch's random numbers go on from `seed`."""
    import timm

    options: dict[str, Any] = {}
    try:
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
        with torch.random.fork_rng(devices=[], enabled=seed is None):
            torch.manual_seed(seed or 0)
            module: nn.Module = timm.create_model(name, pretrained=False, **{**options, **arguments})
    except Exception as error:  # whatever a constructor makes of such shapes or arguments
        raise PosthocError(
            f"timm:{name} cannot be built for these weights ({error_line(error, whole=True)}); pass your own with --model FILE.py:FACTORY."
        ) from error
    return module.eval()
