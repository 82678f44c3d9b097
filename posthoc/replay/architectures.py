"""Architectures that are known by name: what identifies each in a checkpoint, and which of its layers are recorded.

An architecture is one entry in `ARCHITECTURES`; the first that fits counts.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Architecture:
    """A family of networks.

    members: pattern of their names, which in torchvision's list are those that can be recognised; tensor: pattern of
    the name of a tensor that every member has and no other family; layers: recorded by default, all of them or none;
    inputs: the kind of probe that they take.
    """

    members: str
    tensor: str | None = None
    layers: tuple[str, ...] = ()
    inputs: str = "images"


ARCHITECTURES = {  # the layers are those of arXiv 2604.09716
    "resnet": Architecture(
        r"(wide_)?resnex?t\d+", r"layer1\.0\.conv1\.weight", tuple(f"layer{k}" for k in (1, 2, 3, 4))
    ),
    "densenet": Architecture(
        "densenet",
        r"features\.denseblock1\.denselayer1\.norm1\.weight",
        tuple(f"features.denseblock{k}" for k in (1, 2, 3, 4)),
    ),
    "mobilenet_v2": Architecture(
        "mobilenet_v2", r"features\.1\.conv\.0\.0\.weight", tuple(f"features.{k}" for k in (4, 7, 14, 17))
    ),
    "mobilenet_v3": Architecture("mobilenet_v3", r"features\.1\.block\.0\.0\.weight"),
    "efficientnet": Architecture("efficientnet_b", r"features\.1\.0\.block\.1\.fc1\.weight"),
    "efficientnet_v2": Architecture("efficientnet_v2", r"features\.1\.0\.block\.0\.0\.weight"),
    "convnext": Architecture("convnext", r"features\.1\.0\.layer_scale"),
    "swin_v2": Architecture("swin_v2", r"features\.1\.0\.attn\.logit_scale"),
    "swin": Architecture("swin_[tsb]", r"features\.1\.0\.attn\.relative_position_bias_table"),
    "squeezenet": Architecture("squeezenet", r"features\.3\.squeeze\.weight"),
    "vit_b": Architecture(
        "vit_b_", r"encoder\.pos_embedding", tuple(f"encoder.layers.encoder_layer_{k}" for k in (0, 3, 6, 9))
    ),
    "vit": Architecture("vit", r"encoder\.pos_embedding"),
    "maxvit": Architecture("maxvit", r"blocks\.0\.layers\.0\."),
    "regnet_y": Architecture("regnet_y", r"trunk_output\.block1\.block1-0\.f\.se\."),
    "regnet_x": Architecture("regnet_x", r"trunk_output\.block1\."),
    "shufflenet": Architecture("shufflenet", r"stage2\.0\.branch1\.0\.weight"),
    "mnasnet": Architecture("mnasnet", r"layers\.8\.0\.layers\.0\.weight"),
    "googlenet": Architecture("googlenet", r"inception3a\.branch1\.conv\.weight"),
    "inception_v3": Architecture("inception_v3", r"Mixed_5b\.branch1x1\.conv\.weight"),
    "vgg16_bn": Architecture("vgg16_bn", r"classifier\.6\.weight", tuple(f"features.{k}" for k in (6, 13, 23, 33))),
    "vgg": Architecture("alexnet|vgg", r"classifier\.6\.weight"),
}


def architecture_of(name: str) -> Architecture | None:
    """The first whose members have such a name.

    >>> architecture_of("vgg16_bn").layers
    ('features.6', 'features.13', 'features.23', 'features.33')
    """
    return next((known for known in ARCHITECTURES.values() if re.match(known.members, name)), None)
