"""Every torchvision classification model is recognised from its shapes, and its hook points make sense."""

import math

import pytest
import torch
import torchvision
from torchvision import models as zoo

from posthoc.errors import PosthocError, UsageError
from posthoc.replay.hooks import Recorder, choose, find_hook_points
from posthoc.replay.models import build, recognise, resolve_model
from posthoc.replay.run import fit_images

NAMES = zoo.list_models(module=zoo)
SMALL = [
    "resnet18",
    "densenet121",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "swin_t",
    "convnext_tiny",
    "shufflenet_v2_x0_5",
]


def shapes_of(name, classes=7):
    """As a file would give them: of that many classes, in alphabetical order."""
    options = {"aux": ()} if name in ("googlenet", "inception_v3") else {}
    model = build(name, {"fc.bias": (classes,), "head": (), **options})
    shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    return dict(sorted(shapes.items()))


@pytest.mark.parametrize("name", NAMES)
def test_recognised_with_four_layers_to_record(name):
    """Four layers of at least eight channels, ever deeper, none of them the head."""
    shapes = shapes_of(name)
    found, model = recognise(shapes)
    assert found == name
    assert {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()} == shapes
    assert all(parameter.is_meta for parameter in model.parameters())
    points = choose(fit_images(model, name, getattr(model, "image_size", None), 32)[1], ["default"], name)
    assert len(points) == 4
    assert all(point.channels >= 8 for point in points)
    areas = [math.prod(point.shape) // point.channels for point in points]
    assert areas == sorted(areas, reverse=True)
    assert not any(point.name.startswith(("classifier", "fc", "head", "avgpool")) for point in points)


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("resnet152", ["layer1", "layer2", "layer3", "layer4"]),
        ("densenet121", [f"features.denseblock{k}" for k in (1, 2, 3, 4)]),
        ("mobilenet_v2", [f"features.{k}" for k in (4, 7, 14, 17)]),
        ("vgg16_bn", [f"features.{k}" for k in (6, 13, 23, 33)]),
        ("vit_b_16", [f"encoder.layers.encoder_layer_{k}" for k in (0, 3, 6, 9)]),
    ],
)
def test_published_hook_points(name, layers):
    _, model = recognise(shapes_of(name))
    points = find_hook_points(model, 224 if name == "vit_b_16" else 32)
    assert [point.name for point in choose(points, ["default"], name)] == layers


def test_a_vision_transformer_of_another_image_size():
    model = torchvision.models.vit_b_16(image_size=64, num_classes=10)
    found, built = recognise({key: tuple(tensor.shape) for key, tensor in model.state_dict().items()})
    assert (found, built.image_size) == ("vit_b_16", 64)


def test_a_foreign_network_is_refused_with_the_nearest():
    shapes = shapes_of("resnet18") | {"conv1.weight": (64, 3, 3, 3), "extra.weight": (1,)}
    with pytest.raises(
        PosthocError, match=r"Nearest.*resnet18.*unexpected: extra\.weight.*conv1\.weight \[64, 3, 3, 3\]"
    ):
        recognise(shapes)
    with pytest.raises(PosthocError, match="No torchvision classification model shares"):
        recognise({"model.0.weight": (3, 3)})


def test_a_named_model_must_fit():
    shapes = shapes_of("resnet18")
    assert resolve_model("torchvision:resnet18", None, shapes)[0] == "resnet18"
    with pytest.raises(PosthocError, match=r"do not fit resnet34: missing: layer1\.2"):
        resolve_model("torchvision:resnet34", "resnet18", shapes)
    with pytest.raises(UsageError, match="Unknown model 'resnet19'"):
        resolve_model(None, "resnet19", shapes)


@pytest.mark.parametrize("name", SMALL)
def test_recorded_signals_are_those_of_the_kept_feature_maps(name):
    """Against the obvious way: keep every whole output, copied before anything can overwrite it, and reduce it after."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, num_classes=10).eval()
    meta = build(name, {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()})
    points = find_hook_points(meta, 64)
    kept = {}
    handles = [
        model.get_submodule(point.name).register_forward_hook(
            lambda module, inputs, output, key=point.name: kept.update({key: output.clone()})
        )
        for point in points
    ]
    x = torch.randn(5, 3, 64, 64)
    with torch.inference_mode():
        model(x)
    for handle in handles:
        handle.remove()
    channels = {point.name: torch.arange(0, point.channels, 3) for point in points}
    recorder = Recorder(points, channels, ["mean", "var"])
    with torch.inference_mode(), recorder.attached(model):
        model(x)
    for point in points:
        maps = kept[point.name].movedim(point.channel_axis, 1)[:, channels[point.name]].flatten(2).double()
        torch.testing.assert_close(recorder.signals["mean"][point.name].double(), maps.mean(2), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            recorder.signals["var"][point.name].double(), maps.var(2, correction=0), rtol=1e-3, atol=1e-5
        )


def test_all_means_every_distinct_output_once():
    _, model = recognise(shapes_of("resnet18"))
    names = [point.name for point in choose(find_hook_points(model, 32), ["all"], "resnet18")]
    assert "layer1" in names
    assert "layer1.1" not in names  # hands on what layer1 does
    assert "bn1" in names  # overwritten in place by relu, but seen before
    assert choose(find_hook_points(model, 32), ["layer?.0.conv1", "layer4"], "resnet18")[-1].name == "layer4"
    with pytest.raises(UsageError, match="no such hook point"):
        choose(find_hook_points(model, 32), ["layer9"], "resnet18")


def test_large_vision_transformers_of_another_image_size():
    shapes = {key: tuple(tensor.shape) for key, tensor in build("vit_l_16", {}).state_dict().items()}
    shapes["encoder.pos_embedding"] = (1, 1 + 32 * 32, 1024)
    name, model = recognise(dict(shapes))
    assert (name, model.image_size) == ("vit_l_16", 512)
    shapes["extra"] = (1,)
    with pytest.raises(PosthocError, match=r"Nearest.*vit_l_16"):
        recognise(shapes)
