"""Every torchvision classification model is recognised from its shapes, and its hook points make sense."""

import argparse
import math
import re
import sys
from functools import partial

import pytest
import torch
import torchvision
from torch import nn
from torchvision import models as zoo

from posthoc.errors import PosthocError, UsageError
from posthoc.replay.checkpoint import Header, read_header
from posthoc.replay.hooks import Recorder, dissect
from posthoc.replay.layers import choose
from posthoc.replay.models import Model, resolve_model
from posthoc.replay.probes.fitting import fit_images, usual_size
from posthoc.replay.probes.images import example
from posthoc.replay.recognition import build, recognise

NAMES = zoo.list_models(module=zoo)
FAMILIES = {
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet", "inception_v3", "maxvit_t",
    "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf", "regnet_y_400mf", "resnet18", "resnet50",
    "resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t", "swin_v2_t", "vgg11", "vgg11_bn", "vit_b_16",
}  # fmt: skip
"""One network of each; the others take a minute together."""
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


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in FAMILIES else pytest.mark.slow) for name in NAMES]
)
def test_recognised_with_four_layers_to_record(name):
    """Four layers of at least eight channels, ever deeper, none of them the head."""
    shapes = shapes_of(name)
    found, model = recognise(shapes)
    assert found == name
    assert {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()} == shapes
    assert all(parameter.is_meta for parameter in model.parameters())
    _, channels, anatomy = fit_images(Model(name, "recognised", model), usual_size(model), 32)
    assert channels == 3
    points, _ = choose(anatomy.points, ["default"], name)
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
    points, chosen = choose(
        dissect(model, partial(example, 224 if name == "vit_b_16" else 32, 3)).points, ["default"], name
    )
    assert [point.name for point in points] == layers
    assert chosen == "as published"


def test_a_vision_transformer_of_another_image_size():
    model = torchvision.models.vit_b_16(image_size=64, num_classes=10)
    found, built = recognise({key: tuple(tensor.shape) for key, tensor in model.state_dict().items()})
    assert (found, built.image_size) == ("vit_b_16", 64)


def header(shapes, **said):
    return Header(None, None, shapes, **said)


def test_a_foreign_network_is_refused_with_the_nearest():
    shapes = shapes_of("resnet18") | {"conv1.weight": (64, 3, 5, 5), "extra.weight": (1,)}
    with pytest.raises(
        PosthocError, match=r"Nearest.*resnet18.*unexpected: extra\.weight.*conv1\.weight \[64, 3, 5, 5\]"
    ):
        resolve_model(header(shapes))
    near = shapes_of("resnet18") | {f"extra.{k}": (1,) for k in range(200)}  # 122 of 322 are shared
    for odd in ({"model.0.weight": (3, 3)}, near):
        with pytest.raises(PosthocError) as caught:
            resolve_model(header(odd))
        assert re.fullmatch(r"The checkpoints fit no known model \(\d+ tensors?\)\. Pass --model .*", str(caught.value))


def test_a_named_model_must_fit():
    shapes = shapes_of("resnet18")
    assert resolve_model(header(shapes), "torchvision:resnet18").name == "resnet18"
    with pytest.raises(PosthocError, match=r"do not fit resnet34: missing: layer1\.2.*Nearest"):
        resolve_model(header(shapes), "torchvision:resnet34", "resnet18")
    with pytest.raises(UsageError, match="Unknown model 'resnet19'"):
        resolve_model(header(shapes), "resnet19")
    assert resolve_model(header(shapes, arch="resnet18")).source == "named in the checkpoints"
    assert resolve_model(header(shapes, arch="mine")).source == "recognised"


def test_the_settings_in_a_checkpoint_may_name_the_model(tmp_path):
    timm = pytest.importorskip("timm")
    path = tmp_path / "1.pt"

    def resolve(name, place, prefix=""):
        state = timm.create_model("test_vit", num_classes=7).state_dict()
        state = {f"{prefix}{key}": tensor for key, tensor in state.items()}
        torch.save({"state_dict": state, "args": 3, **place(name)}, path)
        return resolve_model(read_header(path))

    for place, key, prefix in (
        (lambda name: {"args": argparse.Namespace(lr=0.1, model=name)}, "args.model", ""),
        (lambda name: {"hyper_parameters": {"model_name": name, "arch": None}}, "hyper_parameters.model_name", "net."),
        (lambda name: {"model_name": name}, "model_name", "module."),
    ):
        model = resolve("test_vit", place, prefix)
        assert (model.name, model.source) == ("timm:test_vit", f"named in the checkpoints: {key}")
        assert model.module.num_classes == 7
        with pytest.raises(
            PosthocError, match=rf"They name 'test_resnet' \({key}\), which they do not fit\. .*Pass --m"
        ):
            resolve("test_resnet", place, prefix)
        with pytest.raises(
            PosthocError, match=r"They name '\.\./mine\.py' .*, which is no model of torchvision or timm\."
        ):
            resolve("../mine.py", place, prefix)
    shapes = shapes_of("resnet18")  # what the tensors say comes first
    assert resolve_model(header(shapes, named={"args.model": "tv_resnet18"})).source == "recognised"


def test_heads_and_first_convolutions_are_taken_from_the_shapes():
    """A small-image stem and a grey one, and what was assumed is said."""
    shapes = shapes_of("resnet18") | {"conv1.weight": (64, 3, 3, 3)}
    model = resolve_model(header(shapes))
    assert model.title.startswith("resnet18 (recognised; conv1 of 3 x 3, for which stride 1 and no max pooling")
    assert dict((p.name, p.shape) for p in dissect(model.module, partial(example, 32, 3)).points)["layer1"] == (
        64,
        32,
        32,
    )
    grey = resolve_model(header(shapes_of("resnet18") | {"conv1.weight": (64, 1, 7, 7)}))
    assert "1 input channel" in grey.title
    assert fit_images(grey, None, 32)[1] == 1
    sonar = resolve_model(header(shapes_of("resnet18") | {"conv1.weight": (64, 5, 7, 7)}))
    with pytest.raises(PosthocError, match="takes images of 5 channels"):
        fit_images(sonar, None, 32)


USERS_FILE = """
import torch
from torch import nn
import beside

class Deep(nn.Module):
    def __init__(self, width, depth=2):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3 if k == 0 else width, width, 3) for k in range(depth))
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        for conv in self.convs:
            x = conv(x).relu_()
        return self.head(x.mean((2, 3)))

def deep8():
    return Deep(8)

def deep16():
    return Deep(16)

def needless(argument):
    raise ValueError

def not_a_model():
    return beside.NUMBER

class Stub:
    pass
"""


@pytest.fixture
def users_file(tmp_path):
    (tmp_path / "mynet.py").write_text(USERS_FILE)
    (tmp_path / "beside.py").write_text("NUMBER = 3")
    return tmp_path / "mynet.py"


def test_models_of_the_users_own(users_file, monkeypatch):
    def shapes(width, depth=2):
        rows = {f"convs.{k}.weight": (width, width if k else 3, 3, 3) for k in range(depth)}
        rows |= {f"convs.{k}.bias": (width,) for k in range(depth)}
        return rows | {"head.weight": (10, width), "head.bias": (10,)}

    assert resolve_model(header(shapes(16)), str(users_file)).name == "mynet.py:deep16"
    assert resolve_model(header(shapes(8), arch="deep8"), str(users_file)).name == "mynet.py:deep8"
    given = resolve_model(header(shapes(4, 3)), f"{users_file}:Deep", None, {"width": 4, "depth": 3})
    assert (given.name, given.source, len(given.code)) == ("mynet.py:Deep", "given", 64)
    wrapped = {f"model.module.{name}": shape for name, shape in shapes(8).items()}
    assert resolve_model(header(wrapped), f"{users_file}:deep8").left_out == ()
    monkeypatch.syspath_prepend(users_file.parent)
    assert resolve_model(header(shapes(8)), "mynet:deep8").name == "mynet:deep8"
    for said, arguments, message in (
        ("", {}, r"fit no model of .*mynet\.py \(tried: deep8, deep16, not_a_model\); from deep8 they differ in"),
        (":Deep", {}, r"Deep\(width, depth=2\) takes other arguments than those given \(none\)"),
        (":Deep", {"width": 5}, r"do not fit mynet\.py:Deep: of another shape: convs\.0\.weight \[4, 3, 3, 3\]"),
        (":deep7", {}, r"defines no model 'deep7' \(found: deep8, deep16, not_a_model, Deep\(width, depth=2\)\)"),
        (":not_a_model", {}, "gives an int, not a torch.nn.Module"),
    ):
        with pytest.raises(PosthocError, match=message):
            resolve_model(header(shapes(4)), f"{users_file}{said}", None, arguments)
    with pytest.raises(UsageError, match=r"none\.py: No such file"):
        resolve_model(header(shapes(4)), "none.py:Deep")
    (users_file.parent / "beside.py").write_text("1 / 0")
    sys.modules.pop("beside", None)
    with pytest.raises(PosthocError, match=r"cannot be imported \(ZeroDivisionError"):
        resolve_model(header(shapes(4)), str(users_file))
    with pytest.raises(PosthocError, match="cannot be imported"):
        resolve_model(header(shapes(4)), "no.such.package:factory")
    with pytest.raises(UsageError, match="needs --model"):
        resolve_model(header(shapes(4)), arguments={"width": 4})


class Odd(nn.Module):
    """Tuples, sequences of either order, a layer called three times, and a path that depends on the numbers."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 4, 4)
        self.flat = nn.Flatten(2)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.recurrent = nn.GRU(6, 5)
        self.again = nn.Linear(5, 5)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(5, 10)

    def forward(self, x):
        tokens = self.flat(self.stem(x)).transpose(1, 2)
        tokens, _ = self.attention(tokens, tokens, tokens)
        states, _ = self.recurrent(tokens.transpose(0, 1))
        x = states.mean(0)
        for _ in range(3):
            x = self.again(x)
        if float(x.sum()) > 1e9:
            return x, {}
        return {"loss": None, "logits": self.head(self.act(x))}


def test_any_module_has_hook_points():
    torch.manual_seed(0)
    model = Odd().eval()
    anatomy = dissect(model, partial(example, 32, 3))
    points = {point.name: point for point in anatomy.points}
    assert anatomy.outputs == 10
    assert {name: (p.shape, p.batch_axis, p.channels, p.calls) for name, p in points.items()} == {
        "stem": ((6, 8, 8), 0, 6, 1),
        "flat": ((6, 64), 0, 6, 1),
        "attention": ((64, 6), 0, 6, 1),
        "recurrent": ((64, 5), 1, 5, 1),
        "again": ((5,), 0, 5, 3),
        "act": ((5,), 0, 5, 1),
        "head": ((10,), 0, 10, 1),
    }
    chosen, how = choose(anatomy.points, ["default"], "mine")
    assert ([point.name for point in chosen], how) == (["stem", "attention", "recurrent"], "evenly spaced blocks")
    x = torch.randn(4, 3, 32, 32)
    recorder = Recorder(anatomy.points, {p.name: torch.arange(p.channels) for p in anatomy.points}, ["mean", "var"])
    with torch.inference_mode(), recorder.attached(model):
        model(x)
    with torch.inference_mode():
        tokens = model.flat(model.stem(x)).transpose(1, 2)
        tokens, _ = model.attention(tokens, tokens, tokens)
        states, _ = model.recurrent(tokens.transpose(0, 1))
        y = model.again(model.again(model.again(states.mean(0))))
    for name, values in {
        "attention": tokens.mean(1), "recurrent": states.mean(0), "again": y, "act": y.relu(),
    }.items():  # fmt: skip
        torch.testing.assert_close(recorder.signals["mean"][name], values)
    torch.testing.assert_close(recorder.signals["var"]["recurrent"], states.var(0, correction=0))
    assert not recorder.signals["var"]["again"].any()


@pytest.mark.parametrize("name", SMALL)
def test_recorded_signals_are_those_of_the_kept_feature_maps(name):
    """Against the obvious way: keep every whole output, copied before anything can overwrite it, and reduce it after."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, num_classes=10).eval()
    meta = build(name, {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()})
    points = [point for point in dissect(meta, partial(example, 64, 3)).points if not point.is_vector]
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
    points = dissect(model, partial(example, 32, 3)).points
    names = [point.name for point in choose(points, ["all"], "resnet18")[0]]
    assert "fc" not in names  # scores, not a map
    assert "layer1" in names
    assert "layer1.1" not in names  # hands on what layer1 does
    assert "bn1" in names  # overwritten in place by relu, but seen before
    assert choose(points, ["layer?.0.conv1", "layer4"], "resnet18")[0][-1].name == "layer4"
    with pytest.raises(UsageError, match="no such hook point"):
        choose(points, ["layer9"], "resnet18")


def test_large_vision_transformers_of_another_image_size():
    shapes = {key: tuple(tensor.shape) for key, tensor in build("vit_l_16", {}).state_dict().items()}
    shapes["encoder.pos_embedding"] = (1, 1 + 32 * 32, 1024)
    name, model = recognise(dict(shapes))
    assert (name, model.image_size) == ("vit_l_16", 512)
    shapes["extra"] = (1,)
    with pytest.raises(PosthocError, match=r"Nearest.*vit_l_16"):
        resolve_model(header(shapes))
