"""Tensor shapes -> which of torchvision's classification models has them, built without computing its weights."""

import contextlib
import functools
import math
import re
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from posthoc.errors import PosthocError
from posthoc.replay.architectures import ARCHITECTURES
from posthoc.replay.forward import error_line
from posthoc.replay.naming import UNUSED, canonical
from posthoc.shown import counted

Shapes = Mapping[str, tuple[int, ...]]
NEAR = 0.5
"""Share of tensors from which on an architecture is named as near."""


class OnMeta(TorchFunctionMode):
    """Parameters are born on the meta device and their initialisation is skipped; all else computes as usual.

    `torch.device("meta")` would also catch the arithmetic by which some constructors find their widths.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if func in (torch.empty, torch.zeros, torch.ones):
            kwargs = {**kwargs, "device": "meta"}
        elif re.fullmatch(r"[a-z]\w*[a-z]_", name) and name != "requires_grad_" and args and _is_meta(args[0]):
            return args[0]  # an in-place fill
        return func(*args, **kwargs)


Born = Callable[[], AbstractContextManager[Any]]
"""What a model is constructed in."""


def _is_meta(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_meta


def build(name: str, shapes: Shapes, seed: int | None = None, /, **options: Any) -> nn.Module:
    """Build torchvision's model `name` on the meta device; its head, first convolution and image size are of `shapes`.

    With a `seed` it is built in memory, and its constructors draw its weights with torch's random numbers from there.

    A first convolution of 3 x 3 in place of 7 x 7 is taken for the usual change for small images: stride 1, and no
    max pooling after it. Shapes alone do not say so; `changes` does.
    """
    try:
        return _adapted(name, shapes, seed, dict(options))
    except Exception as error:  # whatever a constructor makes of shapes that no network has
        raise PosthocError(
            f"{name} cannot be built for these weights ({error_line(error, whole=True)}); pass your own with --model FILE.py:FACTORY."
        ) from error


def _adapted(name: str, shapes: Shapes, seed: int | None, options: dict[str, Any]) -> nn.Module:
    if name in ("googlenet", "inception_v3"):
        options |= {"init_weights": False, "aux_logits": any(key.lower().startswith("aux") for key in shapes)}
    position = shapes.get("encoder.pos_embedding")
    patch = shapes.get("conv_proj.weight")
    if name.startswith("vit") and position and patch and len(position) == 3:
        size = patch[-1] * math.isqrt(position[1] - 1)
        if size % int(name.rpartition("_")[2]) == 0:  # the name ends in the model's own patch size
            options.setdefault("image_size", size)
    model = _build(name, **options)
    head = shapes.get(list(dict(model.named_parameters()))[-1])
    if head and head[0] != 1000 and "num_classes" not in options:
        options["num_classes"] = head[0]
        model = _build(name, **options)
    born: Born = OnMeta
    if seed is not None:
        born = nullcontext
        options.pop("init_weights", None)  # GoogLeNet's and Inception's own, which take long and nobody needs on meta
        torch.manual_seed(seed)
        model = _build(name, born, **options)
    _change_stem(model, shapes, born)
    return model.eval()


def torchvision_names() -> list[str]:
    """The models that torchvision has. It is imported where one is looked for: with torch's compiler, which it imports, that
    takes as long as to import torch."""
    from torchvision import models as zoo

    return list(zoo.list_models(module=zoo))


def _build(name: str, born: Born = OnMeta, /, **options: Any) -> nn.Module:
    from torchvision import models as zoo

    with born(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # GoogLeNet and Inception announce a change of their initialisation
        model: nn.Module = zoo.get_model(name, weights=None, **options)
        return model


def first_convolution(model: nn.Module) -> tuple[str, nn.Conv2d] | None:
    """Name and module of the first two-dimensional convolution."""
    return next(((name, part) for name, part in model.named_modules() if isinstance(part, nn.Conv2d)), None)


def _change_stem(model: nn.Module, shapes: Shapes, born: Born) -> None:
    first = first_convolution(model)
    shape = shapes.get(f"{first[0]}.weight") if first else None
    if not first or not shape or len(shape) != 4 or shape == tuple(first[1].weight.shape):
        return
    name, old = first
    if shape[0] != old.out_channels or shape[2] != shape[3] or shape[2] % 2 == 0 or not all(shape):
        return
    small = shape[2] == 3 and old.kernel_size[0] == 7
    same = shape[2] == old.kernel_size[0]
    if not (small or same):
        return
    with born():
        new = nn.Conv2d(
            shape[1],
            shape[0],
            shape[2],
            stride=1 if small else old.stride,  # type: ignore[arg-type]
            padding=1 if small else old.padding,  # type: ignore[arg-type]
            bias=old.bias is not None,
        )
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, new)
    pool = getattr(model, "maxpool", None)
    if small and isinstance(pool, nn.MaxPool2d):
        model.maxpool = nn.Identity()


def changes(name: str, model: nn.Module) -> str | None:
    """How `model` was changed from torchvision's own to take the shapes given, in words."""
    original = first_convolution(_build(name))
    changed = first_convolution(model)
    if not original or not changed:
        return None
    differences = []
    if changed[1].in_channels != original[1].in_channels:
        differences.append(counted(changed[1].in_channels, "input channel"))
    if changed[1].kernel_size != original[1].kernel_size:
        differences.append(f"{changed[0]} of 3 x 3, for which stride 1 and no max pooling are assumed")
    return "; ".join(differences) or None


def recognise(shapes: Shapes) -> tuple[str, nn.Module] | None:
    """The torchvision classification model whose names and shapes are exactly `shapes`, None where there is none."""
    families = [known for known in ARCHITECTURES.values() if known.tensor and _any_named(known.tensor, shapes)]
    for name in dict.fromkeys(name for family in families for name in _members(family.members)):
        with contextlib.suppress(PosthocError):
            model = build(name, shapes)
            if compare(model, shapes).fits:
                return name, model
    return None


def _any_named(pattern: str, shapes: Shapes) -> bool:
    return any(re.match(pattern, name) for name in shapes)


def _members(pattern: str) -> list[str]:
    return [name for name in torchvision_names() if re.match(pattern, name)]


@dataclass(frozen=True)
class Comparison:
    """A model beside a checkpoint's shapes, by canonical names.

    names: of each tensor of the model, in full and canonical; shared: how many of them the checkpoint has in the same
    shape; differences: names that are missing, unexpected or of another shape, by kind.
    """

    names: dict[str, str]
    shared: int
    differences: dict[str, list[str]]

    @property
    def fits(self) -> bool:
        return not self.differences

    @property
    def nearness(self) -> tuple[int, int]:
        """What to choose the nearest of several by: most that is shared, then least that differs."""
        return self.shared, -sum(map(len, self.differences.values()))


def compare(model: nn.Module, shapes: Shapes) -> Comparison:
    """Hold a model against the shapes of a reading, whose names are canonical.

    Of parameters that a model has twice (an output layer tied to an embedding) a checkpoint may hold any one.
    """
    tensors = {name: t for name, t in model.state_dict(keep_vars=True).items() if isinstance(t, torch.Tensor)}
    rows = [_compare(tensors, shapes)]
    alike: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        alike.setdefault(id(tensor), []).append(name)
    if len(alike) < len(tensors) and not rows[0].fits:
        short = canonical(tensors)
        held = [next((name for name in names if short[name] in shapes), names[0]) for names in alike.values()]
        for names in ([names[0] for names in alike.values()], held, [names[-1] for names in alike.values()]):
            rows.append(_compare({name: tensors[name] for name in names}, shapes))
    return max(rows, key=lambda row: row.nearness)


def _compare(tensors: Mapping[str, torch.Tensor], shapes: Shapes) -> Comparison:
    names = canonical(tensors)
    wanted = {short: None if is_lazy(tensors[name]) else tuple(tensors[name].shape) for name, short in names.items()}
    kinds = {
        "missing": [name for name in wanted if name not in shapes and not name.endswith(UNUSED)],
        "unexpected": [name for name in shapes if name not in wanted and not name.endswith(UNUSED)],
        "of another shape": [
            f"{name} {list(shapes[name])} instead of {list(shape or ())}"
            for name, shape in wanted.items()
            if name in shapes and shapes[name] != shape
        ],
    }
    shared = sum(name in shapes and shapes[name] == shape for name, shape in wanted.items())
    return Comparison(names, shared, {kind: rows for kind, rows in kinds.items() if rows})


def sentence(differences: dict[str, list[str]]) -> str:
    """Differences in words, three names of each kind."""
    parts = []
    for kind, names in differences.items():
        more = f", ... ({len(names)} in all)" if len(names) > 3 else ""
        parts.append(f"{kind}: {', '.join(names[:3])}{more}")
    return "; ".join(parts)


def nearest(shapes: Shapes) -> str:
    """The up to three models that share at least half of their names and shapes, and how the first differs, in words.

    Empty where there is none: what shares less says nothing of a network.
    """
    near = []
    for name in torchvision_names():
        wanted = _own_shapes(name)
        shared = sum(shapes.get(key) == shape for key, shape in wanted.items())
        near.append((shared / len(wanted.keys() | shapes.keys()), name))
    near = sorted((row for row in near if row[0] >= NEAR), key=lambda row: -row[0])[:3]
    if not near:
        return ""
    names = ", ".join(f"{name} ({share:.0%})" for share, name in near)
    text = f"Nearest of torchvision's: {names}"
    with contextlib.suppress(PosthocError):
        first = near[0][1]
        comparison = compare(build(first, shapes), shapes)
        differs = f"from {first} they differ in {sentence(comparison.differences)}"
        text += f"; they fit {first} as it is" if comparison.fits else f"; {differs}"
    return f"{text}."


@functools.cache
def _own_shapes(name: str) -> Shapes:
    return {key: tuple(tensor.shape) for key, tensor in _build(name).state_dict().items()}
