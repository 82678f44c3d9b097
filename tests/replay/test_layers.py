"""Which hook points are the residual stream, attention and feed-forward: by what they give, in networks of four libraries."""

from functools import partial

import pytest
import torch
import torchvision
from networks import CifarResNet
from torch import nn

from posthoc.errors import UsageError
from posthoc.replay.forward import call
from posthoc.replay.hooks import dissect, first_tensor
from posthoc.replay.layers import choose

timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")
SMALL = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 5, "num_attention_heads": 2, "intermediate_size": 32}
T5 = {"vocab_size": 64, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 3, "num_heads": 2}


def tokens(samples, grown=False):
    return {"input_ids": torch.arange(samples * 24).reshape(samples, 24) % 64}


def pairs(samples, grown=False):
    return tokens(samples) | {"decoder_input_ids": tokens(samples)["input_ids"][:, :12]}


def images(samples, grown=False):
    torch.manual_seed(0)
    return {"images": torch.rand(samples, 3, 32, 32)}


def vectors(samples, grown=False):
    torch.manual_seed(0)
    return {"x": torch.rand(samples, 24, 16)}


def gpt2():
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=64, n_positions=32, n_embd=16, n_layer=5, n_head=2, bos_token_id=0, eos_token_id=0
        )
    )


PRE_NORM = {  # a block adds to what it is given what its attention and its feed-forward layer give
    "GPT-2": (gpt2, tokens),
    "GPT-NeoX": (lambda: transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**SMALL)), tokens),
    "T5 encoder": (lambda: transformers.T5EncoderModel(transformers.T5Config(**T5)), tokens),
    "timm ViT": (
        lambda: timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=5, num_classes=10),
        images,
    ),
    "torchvision ViT": (
        lambda: torchvision.models.VisionTransformer(32, 8, 5, 2, 16, 32, num_classes=10),
        images,
    ),
    "torch": (
        lambda: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True), 5, enable_nested_tensor=False
        ),
        vectors,
    ),
}


def outputs(model, batch, points):
    """What each hook point gives, as the network runs."""
    given = {}

    def keep(name):
        return lambda module, inputs, output: given.__setitem__(name, first_tensor(output).clone())

    handles = [model.get_submodule(point.name).register_forward_hook(keep(point.name)) for point in points]
    with torch.no_grad():
        call(model, batch)
    for handle in handles:
        handle.remove()
    return [given[point.name] for point in points]


@pytest.mark.parametrize("name", PRE_NORM)
def test_a_block_adds_what_attention_and_feed_forward_layer_give(name):
    make, example = PRE_NORM[name]
    torch.manual_seed(0)
    model = make().eval()
    points = dissect(model, example).points
    parts = [choose(points, [part], "mine")[0] for part in ("residual", "attention", "mlp")]
    assert len({len(part) for part in parts}) == 1
    stream, attention, feed_forward = (outputs(model, example(2), part) for part in parts)
    for k in range(1, len(stream)):
        torch.testing.assert_close(stream[k], stream[k - 1] + attention[k] + feed_forward[k], rtol=1e-4, atol=1e-5)


def test_the_residual_stream_is_what_the_library_calls_hidden_states():
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**SMALL)).eval()
    points = dissect(model, tokens).points
    chosen, why = choose(points, ["residual"], "mine")
    assert why == "residual stream: the output of 5 blocks (bert.encoder.layer)"
    with torch.no_grad():
        hidden = model(**tokens(2), output_hidden_states=True).hidden_states[1:]
    for ours, theirs in zip(outputs(model, tokens(2), chosen), hidden, strict=True):
        assert torch.equal(ours, theirs)
    # Its attention without what is added, its feed-forward layer by the last of its linear ones.
    names = [point.name for point in choose(points, ["attention", "mlp"], "mine")[0]]
    assert names[:2] == ["bert.encoder.layer.0.attention.self", "bert.encoder.layer.0.output.dense"]


def test_the_default_of_a_language_model_is_spread_over_its_blocks_alone():
    points = dissect(gpt2().eval(), tokens).points
    chosen, why = choose(points, ["default"], "GPT2LMHeadModel")
    assert [point.name for point in chosen] == [f"transformer.h.{k}" for k in (1, 2, 3, 4)]
    assert why == "evenly spaced of 5 blocks (transformer.h), whose output is the residual stream"
    assert {point.size for point in chosen} == {"token 24 x channel 16"}
    state_space = transformers.MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=3)
    points = dissect(transformers.MambaForCausalLM(state_space).eval(), tokens).points
    assert [point.name for point in choose(points, ["default"], "Mamba")[0]] == [
        f"backbone.layers.{k}" for k in range(3)
    ]
    with pytest.raises(UsageError, match="Mamba has no attention module"):
        choose(points, ["attention"], "Mamba")


def test_encoder_and_decoder():
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**T5)).eval()
    points = dissect(model, pairs).points
    chosen, why = choose(points, ["residual"], "mine")
    assert [point.name for point in chosen] == [
        f"{half}.block.{k}" for half in ("encoder", "decoder") for k in range(3)
    ]
    assert "6 blocks (encoder.block, decoder.block)" in why
    assert [point.size for point in chosen[2:4]] == ["token 24 x channel 16", "token 12 x channel 16"]
    attention, _ = choose(points, ["attention"], "mine")
    assert [point.name.rpartition(".")[2] for point in attention[-2:]] == ["SelfAttention", "EncDecAttention"]
    few, _ = choose(points, ["decoder.block.2", "encoder.block.0"], "mine")
    assert [point.name for point in few] == ["encoder.block.0", "decoder.block.2"]


def test_blocks_of_stages_and_of_convolutions():
    swin = timm.create_model("swin_tiny_patch4_window7_224", img_size=56, depths=(2, 2), num_heads=(3, 6), embed_dim=12)
    points = dissect(swin.eval(), lambda samples, grown: {"x": torch.zeros(samples, 3, 56, 56)}).points
    chosen, _ = choose(points, ["residual"], "mine")
    assert [point.name for point in chosen] == [f"layers.{stage}.blocks.{k}" for stage in (0, 1) for k in (0, 1)]
    assert chosen[-1].size == "height 7 x width 7 x channel 24"
    points = dissect(torchvision.models.resnet18().eval(), images).points
    chosen, _ = choose(points, ["residual"], "mine")
    assert [point.name for point in chosen] == [f"layer{stage}.{k}" for stage in (1, 2, 3, 4) for k in (0, 1)]
    assert chosen[0].size == "channel 64 x height 8 x width 8"


class Vae(nn.Module):
    """An encoder of four times as many modules as its decoder, two layers between them that give vectors, and a tower."""

    def __init__(self, wrapped=False):
        super().__init__()
        stages = [[nn.Conv2d(k, k + 4, 3, padding=1), nn.BatchNorm2d(k + 4), nn.ReLU()] for k in (3, 7, 11, 15)]
        self.encoder = nn.Sequential(*(nn.Sequential(*stage) for stage in stages))
        self.mean, self.spread = nn.Linear(19 * 4 * 4, 5), nn.Linear(19 * 4 * 4, 5)
        self.decoder = nn.Sequential(nn.ConvTranspose2d(5, 8, 4), nn.ReLU(), nn.ConvTranspose2d(8, 3, 5))

    def forward(self, x):
        h = nn.functional.adaptive_avg_pool2d(self.encoder(x), 4).flatten(1)
        return self.decoder((self.mean(h) + self.spread(h).exp())[:, :, None, None])


class Towers(nn.Module):
    """Two networks of the same make, and a head over both."""

    def __init__(self):
        super().__init__()
        towers = [nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.Conv2d(6, 6, 3)) for _ in "ab"]
        self.left, self.right = towers
        self.head = nn.Linear(6, 2)

    def forward(self, images):
        return self.head((self.left(images) - self.right(images)).mean((2, 3)))


class Wrapped(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, images):
        return self.net(images)


class Stem(nn.Module):
    """Two small layers before all others are no part of their own."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1))
        self.stages = nn.Sequential(*(nn.Sequential(nn.Conv2d(4 << k, 8 << k, 3), nn.ReLU()) for k in range(6)))

    def forward(self, images):
        return self.stages(self.stem(images))


class Normed(nn.Module):
    """A small network as many write one, whose activation is a function."""

    def __init__(self):
        super().__init__()
        self.bn0 = nn.BatchNorm2d(3)
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 8, 3), nn.GroupNorm(2, 8)
        self.fc = nn.Linear(8, 10)

    def forward(self, images):
        images = torch.relu(self.bn1(self.conv1(self.bn0(images))))
        return self.fc(torch.relu(self.bn2(self.conv2(images))).mean((2, 3)))


PARTED = {
    "layers and their normalisations": (Normed, "conv1, conv2", "evenly spaced blocks"),
    "encoder and decoder": (
        Vae, "encoder.1, encoder.3, decoder.0, decoder.2", "from the middle and the end of each part (encoder, decoder)",
    ),
    "within another": (
        lambda: Wrapped(Vae()), "net.encoder.1, net.encoder.3, net.decoder.0, net.decoder.2",
        "from the middle and the end of each part (net.encoder, net.decoder)",
    ),
    "two towers": (
        Towers, "left.2, left.3, right.2, right.3", "from the middle and the end of each part (left, right)",
    ),
    "a stem": (Stem, "stages.1, stages.2, stages.4, stages.5", "evenly spaced blocks"),
}  # fmt: skip


class Columns(nn.Module):
    """A network of the columns of a table, of which some are categories."""

    def __init__(self, tables):
        super().__init__()
        self.tables, self.norm = nn.ModuleList(nn.Embedding(10, 4) for _ in range(tables)), nn.BatchNorm1d(5)
        self.net = nn.Sequential(
            nn.Linear(4 * tables + 5, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 1)
        )

    def forward(self, numbers, categories):
        columns = [table(categories[:, k]) for k, table in enumerate(self.tables)]
        return self.net(torch.cat([self.norm(numbers), *columns], 1))


@pytest.mark.parametrize("tables", [1, 2, 3, 8])
def test_however_many_tables_of_embeddings_the_layers_behind_them_are_the_default(tables):
    def columns(samples, grown=False):
        return {"numbers": torch.rand(samples, 5), "categories": torch.zeros(samples, tables, dtype=torch.int64)}

    chosen, _ = choose(dissect(Columns(tables).eval(), columns).points, ["default"], "mine")
    assert [point.name for point in chosen] == ["net.0", "net.2", "net.4"]


@pytest.mark.parametrize("name", PARTED)
def test_the_default_is_of_each_part_of_a_network(name):
    make, expected, why = PARTED[name]
    points = dissect(make().eval(), images).points
    chosen, how = choose(points, ["default"], "mine")
    assert (", ".join(point.name for point in chosen), how) == (expected, why)


@pytest.mark.parametrize(
    "make",
    [partial(CifarResNet, 1), torchvision.models.shufflenet_v2_x0_5, PRE_NORM["torchvision ViT"][0], Towers],
    ids=["CifarResNet", "ShuffleNet", "ViT", "Towers"],
)
def test_a_network_is_traced_alike_with_numbers_and_without(make):
    network = make().eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    traced = dissect(network, images)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    without = dissect(make().eval().to("meta"), images)
    assert (traced.points, traced.output) == (without.points, without.output)


DEVICES = []


class Wide(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layer = nn.Linear(width, width)

    def forward(self, x):
        y = self.layer(x)
        DEVICES.append(y.device.type)
        return y


@pytest.mark.parametrize(("width", "devices"), [(16, ["cpu", "cpu"]), (1024, ["meta", "meta"])])
def test_no_layer_of_a_large_network_is_computed_to_trace_it(width, devices):
    DEVICES.clear()
    anatomy = dissect(Wide(width), lambda samples, grown: {"x": torch.zeros(samples, 4096, width)})
    assert devices == DEVICES
    assert [(point.name, point.shape) for point in anatomy.points] == [("layer", (4096, width))]
