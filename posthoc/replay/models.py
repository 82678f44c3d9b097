"""State dict shapes -> nn.Module: the model given, recorded beside the run, or recognised."""

import math
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torchvision import models as zoo

from posthoc.errors import PosthocError, UsageError

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


def build(name: str, shapes: Shapes) -> nn.Module:
    """Build torchvision's model `name` on the meta device, its head and image size taken from `shapes`."""
    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        options = {"init_weights": False, "aux_logits": any(key.lower().startswith("aux") for key in shapes)}
    position = shapes.get("encoder.pos_embedding")
    patch = shapes.get("conv_proj.weight")
    if name.startswith("vit") and position and patch:
        size = patch[-1] * math.isqrt(position[1] - 1)
        if size % int(name.rpartition("_")[2]) == 0:  # the name ends in the model's own patch size
            options["image_size"] = size
    model = _build(name, **options)
    head = shapes.get(list(dict(model.named_parameters()))[-1])
    if head and head[0] != 1000:
        model = _build(name, num_classes=head[0], **options)
    return model.eval()


def _build(name: str, **options: Any) -> nn.Module:
    with OnMeta(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # GoogLeNet and Inception announce a change of their initialisation
        model: nn.Module = zoo.get_model(name, weights=None, **options)
        return model


def resolve_model(given: str | None, recorded: str | None, shapes: Shapes) -> tuple[str, nn.Module]:
    """The name and the meta-device module that `shapes` fit: as given, else as recorded in run.json, else recognised.

    Raises PosthocError that names the differences where the model does not fit, the nearest ones where none does.
    """
    if given is None and recorded is None:
        return recognise(shapes)
    said = given or str(recorded)
    name = said.removeprefix("torchvision:")
    if name not in zoo.list_models(module=zoo):
        raise UsageError(
            f"Unknown model {said!r} ({'--model' if given else 'in run.json'}); "
            f"give torchvision:NAME, one of its classification models such as torchvision:resnet18."
        )
    try:
        model = build(name, shapes)
    except (ValueError, RuntimeError) as error:
        raise PosthocError(f"{name} cannot be built for these weights ({error}).") from error
    differences = differing(model, shapes)
    if differences:
        raise PosthocError(f"The checkpoints do not fit {name}: {_sentence(differences)}.{_hint(shapes)}")
    return name, model


def recognise(shapes: Shapes) -> tuple[str, nn.Module]:
    """The torchvision classification model whose names and shapes are exactly `shapes`."""
    for pattern, members in FAMILIES:
        if any(re.match(pattern, key) for key in shapes):
            for name in zoo.list_models(module=zoo):
                if re.match(members, name):
                    model = build(name, shapes)
                    if not differing(model, shapes):
                        return name, model
            break
    raise PosthocError(f"The checkpoints fit no known model ({len(shapes)} tensors).{_hint(shapes)} Pass --model.")


def differing(model: nn.Module, shapes: Shapes) -> dict[str, list[str]]:
    """Names that are missing from, unexpected in or of another shape than `shapes`, by kind; empty where all fits."""
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    # Counters of seen batches, which older checkpoints lack and evaluation does not use.
    missing = [name for name in wanted if name not in shapes and not name.endswith("num_batches_tracked")]
    kinds = {
        "missing": missing,
        "unexpected": [name for name in shapes if name not in wanted],
        "of another shape": [
            f"{name} {list(shapes[name])} instead of {list(wanted[name])}"
            for name in shapes
            if name in wanted and shapes[name] != wanted[name]
        ],
    }
    return {kind: names for kind, names in kinds.items() if names}


def _sentence(differences: dict[str, list[str]]) -> str:
    parts = []
    for kind, names in differences.items():
        more = f", ... ({len(names)} in all)" if len(names) > 3 else ""
        parts.append(f"{kind}: {', '.join(names[:3])}{more}")
    return "; ".join(parts)


def _hint(shapes: Shapes) -> str:
    """The three models that share most names and shapes, and how the first differs."""
    near = []
    for name in zoo.list_models(module=zoo):
        model = build(name, shapes)
        wanted = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
        shared = sum(shapes.get(key) == shape for key, shape in wanted.items())
        near.append((shared / len(wanted.keys() | shapes.keys()), name, model))
    near.sort(key=lambda row: -row[0])
    names = ", ".join(f"{name} ({share:.0%})" for share, name, _ in near[:3] if share > 0)
    if not names:
        return " No torchvision classification model shares a tensor with them."
    _, first, model = near[0]
    return f" Nearest of torchvision's: {names}; from {first} they differ in {_sentence(differing(model, shapes))}."
