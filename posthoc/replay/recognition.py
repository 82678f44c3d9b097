"""Tensor shapes -> which of torchvision's classification models has them, built without computing its weights."""

import functools
import math
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torchvision import models as zoo

from posthoc.replay.naming import UNUSED, canonical

Shapes = Mapping[str, tuple[int, ...]]

# A name every member of the family has and no other family, and the names of its members.
FAMILIES = (
    (r"layer1\.0\.conv1\.weight", r"(wide_)?resne[x]?t\d+"),
    (r"features\.denseblock1\.denselayer1\.norm1\.weight", "densenet"),
    (r"features\.1\.conv\.0\.0\.weight", "mobilenet_v2"),
    (r"features\.1\.block\.0\.0\.weight", "mobilenet_v3"),
    (r"features\.1\.0\.block\.1\.fc1\.weight", "efficientnet_b"),
    (r"features\.1\.0\.block\.0\.0\.weight", "efficientnet_v2"),
    (r"features\.1\.0\.layer_scale", "convnext"),
    (r"features\.1\.0\.attn\.logit_scale", "swin_v2"),
    (r"features\.1\.0\.attn\.relative_position_bias_table", "swin_[tsb]"),
    (r"features\.3\.squeeze\.weight", "squeezenet"),
    (r"encoder\.pos_embedding", "vit"),
    (r"blocks\.0\.layers\.0\.", "maxvit"),
    (r"trunk_output\.block1\.block1-0\.f\.se\.", "regnet_y"),
    (r"trunk_output\.block1\.", "regnet_x"),
    (r"stage2\.0\.branch1\.0\.weight", "shufflenet"),
    (r"layers\.8\.0\.layers\.0\.weight", "mnasnet"),
    (r"inception3a\.branch1\.conv\.weight", "googlenet"),
    (r"Mixed_5b\.branch1x1\.conv\.weight", "inception_v3"),
    (r"classifier\.6\.weight", "alexnet|vgg"),
)


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


def _is_meta(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_meta


def build(name: str, shapes: Shapes, **options: Any) -> nn.Module:
    """Build torchvision's model `name` on the meta device; its head, first convolution and image size are of `shapes`.

    A first convolution of 3 x 3 in place of 7 x 7 is taken for the usual change for small images: stride 1, and no
    max pooling after it. Shapes alone do not say so; `changes` does.
    """
    options = dict(options)
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
        model = _build(name, num_classes=head[0], **options)
    _change_stem(model, shapes)
    return model.eval()


def _build(name: str, **options: Any) -> nn.Module:
    with OnMeta(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # GoogLeNet and Inception announce a change of their initialisation
        model: nn.Module = zoo.get_model(name, weights=None, **options)
        return model


def first_convolution(model: nn.Module) -> tuple[str, nn.Conv2d] | None:
    """Name and module of the first two-dimensional convolution."""
    return next(((name, part) for name, part in model.named_modules() if isinstance(part, nn.Conv2d)), None)


def _change_stem(model: nn.Module, shapes: Shapes) -> None:
    found = first_convolution(model)
    shape = shapes.get(f"{found[0]}.weight") if found else None
    if not found or not shape or len(shape) != 4 or shape == tuple(found[1].weight.shape):
        return
    name, old = found
    if shape[0] != old.out_channels or shape[2] != shape[3] or shape[2] % 2 == 0 or not all(shape):
        return
    small = shape[2] == 3 and old.kernel_size[0] == 7
    same = shape[2] == old.kernel_size[0]
    if not (small or same):
        return
    with OnMeta():
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
    found = first_convolution(model)
    if not original or not found:
        return None
    said = []
    if found[1].in_channels != original[1].in_channels:
        said.append(f"{found[1].in_channels} input channel{'s' * (found[1].in_channels > 1)}")
    if found[1].kernel_size != original[1].kernel_size:
        said.append(f"{found[0]} of 3 x 3, for which stride 1 and no max pooling are assumed")
    return "; ".join(said) or None


def recognise(shapes: Shapes) -> tuple[str, nn.Module] | None:
    """The torchvision classification model whose names and shapes are exactly `shapes`, None where there is none."""
    for pattern, members in FAMILIES:
        if any(re.match(pattern, key) for key in shapes):
            for name in zoo.list_models(module=zoo):
                if re.match(members, name):
                    model = build(name, shapes)
                    if not differing(model, shapes):
                        return name, model
            return None
    return None


def differing(model: nn.Module, shapes: Shapes) -> dict[str, list[str]]:
    """Names that are missing from, unexpected in or of another shape than `shapes`, by kind; empty where all fits.

    `shapes` has canonical names, and so have the differences.
    """
    state = model.state_dict()
    tensors = {name: tensor for name, tensor in state.items() if isinstance(tensor, torch.Tensor)}
    wanted = {short: tuple(tensors[name].shape) for name, short in canonical(tensors).items()}
    kinds = {
        "missing": [name for name in wanted if name not in shapes and not name.endswith(UNUSED)],
        "unexpected": [name for name in shapes if name not in wanted and not name.endswith(UNUSED)],
        "of another shape": [
            f"{name} {list(shapes[name])} instead of {list(wanted[name])}"
            for name in shapes
            if name in wanted and shapes[name] != wanted[name]
        ],
    }
    return {kind: names for kind, names in kinds.items() if names}


def sentence(differences: dict[str, list[str]]) -> str:
    """Differences in words, three names of each kind."""
    parts = []
    for kind, names in differences.items():
        more = f", ... ({len(names)} in all)" if len(names) > 3 else ""
        parts.append(f"{kind}: {', '.join(names[:3])}{more}")
    return "; ".join(parts)


def nearest(shapes: Shapes) -> str:
    """The three models that share most names and shapes, and how the first differs, in words."""
    near = []
    for name in zoo.list_models(module=zoo):
        wanted = _own_shapes(name)
        shared = sum(shapes.get(key) == shape for key, shape in wanted.items())
        near.append((shared / len(wanted.keys() | shapes.keys()), name))
    near.sort(key=lambda row: -row[0])
    names = ", ".join(f"{name} ({share:.0%})" for share, name in near[:3] if share > 0)
    if not names:
        return "No torchvision classification model shares a tensor with them."
    first = near[0][1]
    differences = sentence(differing(build(first, shapes), shapes))
    return f"Nearest of torchvision's: {names}; from {first} they differ in {differences}."


@functools.cache
def _own_shapes(name: str) -> Shapes:
    return {key: tuple(tensor.shape) for key, tensor in _build(name).state_dict().items()}
