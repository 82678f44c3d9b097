"""Series of adapters over one base, and of denoising networks: replayed as the libraries themselves would."""

import copy
import json
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import posthoc
from posthoc.cli import main
from posthoc.errors import PosthocError, UsageError
from posthoc.replay.checkpoint import read_header, read_weights
from posthoc.replay.models import resolve_model
from posthoc.replay.weights import Pick

peft = pytest.importorskip("peft")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
BASE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.body(x).relu())

def pretrained():
    torch.manual_seed(3)
    return Net()
"""


def run(*command):
    result = CliRunner().invoke(main, [str(part) for part in command], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    """A classifier of sequences, adapters of it after 3, 6 and 9 steps of training, and the sequences."""
    folder = tmp_path_factory.mktemp("lora")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, num_labels=2,
        initializer_range=0.3, hidden_dropout_prob=0,
    )  # fmt: skip
    base = transformers.BertForSequenceClassification(config)
    base.save_pretrained(folder / "base")
    tokens = torch.randint(0, 64, (48, 12))
    labels = (tokens[:, 0] > 31).long()
    np.savez(folder / "probe.npz", input_ids=tokens.numpy(), y=labels.numpy())
    lora = peft.LoraConfig(r=2, target_modules=["query", "value"], task_type="SEQ_CLS")
    network = peft.get_peft_model(copy.deepcopy(base), lora)
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], 1e-2)
    for step in range(1, 10):
        network(input_ids=tokens, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 3 == 0:
            network.save_pretrained(folder / "run" / f"checkpoint-{step}")
    return folder, tokens, labels


def test_a_series_of_adapters_replays_as_peft_loads_them(series, tmp_path):
    folder, tokens, labels = series
    output = tmp_path / "a.h5"
    model = f"transformers:{folder / 'base'}"
    run("extract", folder / "run", "--probe", f"npz:{folder / 'probe.npz'}", "--model", model, "--layers", "residual",
        "--channels", "all", "-o", output)  # fmt: skip
    with posthoc.open_activations(output) as file:
        assert list(file.steps) == [3, 6, 9]
        assert file.recording.provenance.adapters == "LORA"
        assert len(set(np.asarray(file.loss).tolist())) == 3
        for row, name in enumerate(file.checkpoints):
            base = transformers.BertForSequenceClassification.from_pretrained(folder / "base")
            network = peft.PeftModel.from_pretrained(base, folder / "run" / name).eval()
            with torch.no_grad():
                expected = network(input_ids=tokens, output_hidden_states=True)
            loss = torch.nn.functional.cross_entropy(expected.logits, labels)
            assert float(file.loss[row]) == pytest.approx(float(loss), abs=1e-6)
            for layer, states in zip(file.layers, expected.hidden_states[1:], strict=True):
                np.testing.assert_allclose(file.read("mean", row, layer), states.mean(1).T, atol=2e-6)


@pytest.mark.parametrize(
    "options",
    [{"modules_to_save": ["embed_tokens"], "target_modules": ["q_proj"]}, {"target_modules": ["embed_tokens"]}],
)
def test_adapters_of_tied_layers_replay_as_peft_loads_them(options, tmp_path):
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = transformers.LlamaConfig(vocab_size=32, tie_word_embeddings=True, bos_token_id=0, eos_token_id=1, **sizes)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    ids = torch.randint(0, 32, (6, 9))
    np.save(tmp_path / "ids.npy", ids.numpy())
    expected = []
    for step in (1, 2):
        base = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "base")
        network = peft.get_peft_model(base, peft.LoraConfig(r=2, ensure_weight_tying=True, **options))
        for parameter in network.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter)
        network.save_pretrained(tmp_path / "run" / f"checkpoint-{step}")
        base = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "base")
        loaded = peft.PeftModel.from_pretrained(base, tmp_path / "run" / f"checkpoint-{step}").eval()
        with torch.no_grad():
            expected.append(loaded(input_ids=ids, labels=ids).loss.item())
    run("extract", tmp_path / "run", "--probe", f"tokens:{tmp_path / 'ids.npy'}", "--model", f"transformers:{tmp_path / 'base'}",
        "--layers", "residual", "-o", tmp_path / "a.h5")  # fmt: skip
    with posthoc.open_activations(tmp_path / "a.h5") as file:
        np.testing.assert_allclose(file.loss, expected, rtol=1e-5)


def test_a_base_of_the_users_own(tmp_path):
    (tmp_path / "net.py").write_text(BASE)
    scope: dict = {}
    exec(BASE, scope)
    network = peft.get_peft_model(
        scope["pretrained"](), peft.LoraConfig(r=2, target_modules=["body"], modules_to_save=["head"])
    )
    for parameter in network.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter)
    network.save_pretrained(tmp_path / "checkpoint-1")
    header = read_header(tmp_path / "checkpoint-1")
    model = resolve_model(header, f"{tmp_path / 'net.py'}:pretrained", place=tmp_path / "checkpoint-1")
    assert (model.title, model.adapters) == ("net.py:pretrained (given, with LORA adapters)", "LORA")
    assert torch.equal(model.module.body.base_layer.weight, scope["pretrained"]().body.weight)
    assert set(model.names(header.shapes).values()) == set(header.shapes)
    again, other = model.drawn(1), model.drawn(2)
    assert torch.equal(again.body.base_layer.weight, other.body.base_layer.weight)
    assert not torch.equal(again.body.lora_A["default"].weight, other.body.lora_A["default"].weight)


def test_adapters_that_cannot_be_replayed(series, tmp_path):
    folder, *_ = series
    place = folder / "run" / "checkpoint-3"
    header = read_header(place)
    with pytest.raises(PosthocError, match=r"adapters of a base network.*--model transformers:DIR or FILE.py:FACTORY"):
        resolve_model(header, place=place)
    with pytest.raises(UsageError, match="adapters of a base network"):
        resolve_model(header, "torchvision:resnet18", place=place)
    (tmp_path / "net.py").write_text(BASE)
    with pytest.raises(PosthocError, match="the adapter does not fit Net"):
        resolve_model(header, f"{tmp_path / 'net.py'}:pretrained", place=place)
    written = json.loads((place / "adapter_config.json").read_text())
    lone = tmp_path / "checkpoint-3"
    lone.mkdir()
    (lone / "adapter_model.safetensors").write_bytes((place / "adapter_model.safetensors").read_bytes())
    cases = [
        ({"auto_map": {"a": "mine.Net"}}, "names code beside the weights"),
        ({"megatron_config": {"x": 1}, "megatron_core": "mine"}, "adapter of Megatron"),
        ({"peft_type": "MINE"}, "has no peft_type 'MINE'"),
        ({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 2}, "adds to the input"),
        ({"target_modules": ["query"]}, "unexpected: "),
    ]
    for change, message in cases:
        (lone / "adapter_config.json").write_text(json.dumps(written | change))
        with pytest.raises(PosthocError, match=message):
            resolve_model(header, f"transformers:{folder / 'base'}", place=lone)


def test_a_denoising_network_of_diffusers(tmp_path):
    torch.manual_seed(0)
    network = diffusers.UNet2DModel(
        sample_size=16, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).eval()  # fmt: skip
    x, t = torch.randn(8, 3, 16, 16), torch.randint(0, 1000, (8,))
    noise = torch.randn(8, 3, 16, 16)
    np.savez(tmp_path / "probe.npz", sample=x.numpy(), timestep=t.numpy(), y=noise.numpy())
    expected = []
    for epoch in (1, 2):
        torch.nn.init.normal_(network.conv_out.weight)
        network.save_pretrained(tmp_path / "run" / f"epoch-{epoch}")
        with torch.no_grad():
            expected.append(float(((network(x, t).sample - noise) ** 2).mean()))
    output = tmp_path / "a.h5"
    printed = run("extract", tmp_path / "run", "--probe", f"npz:{tmp_path / 'probe.npz'}", "--layers", "residual,attention",
                  "-o", output)  # fmt: skip
    assert "UNet2DModel (from config.json)" in printed
    with posthoc.open_activations(output) as file:
        np.testing.assert_allclose(file.loss, expected, rtol=1e-5)
        assert "mid_block.attentions.0" in file.layers
        assert "up_blocks.1.resnets.1" in file.layers
    config = tmp_path / "run" / "epoch-1" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"_class_name": "DDPMScheduler"}))
    with pytest.raises(PosthocError, match="has no network 'DDPMScheduler'"):
        resolve_model(read_header(tmp_path / "run" / "epoch-1"), place=tmp_path / "run" / "epoch-1")


def test_a_moving_average_that_diffusers_keeps_beside_the_network_is_taken_if_asked_for(tmp_path):
    from diffusers.training_utils import EMAModel

    torch.manual_seed(0)
    network = diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(8,), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
    ).eval()  # fmt: skip
    average = EMAModel(network.parameters(), 0.5, model_cls=type(network), model_config=network.config)
    states = {"unet": [], "unet_ema": []}
    for step in (1, 2):
        with torch.no_grad():
            network.conv_in.weight += torch.randn_like(network.conv_in.weight)
        average.step(network.parameters())
        folder = tmp_path / "run" / f"checkpoint-{step}"
        network.save_pretrained(folder / "unet")
        average.save_pretrained(folder / "unet_ema")
        states["unet"].append(network.conv_in.weight.detach().clone())
        states["unet_ema"].append(
            average.shadow_params[list(dict(network.named_parameters())).index("conv_in.weight")].clone()
        )
    printed = run("inspect", tmp_path / "run")
    assert "a moving average of the weights lies beside them (ema); --ema takes it" in " ".join(printed.split())
    assert "--ema takes it" not in run("inspect", tmp_path / "run", "--ema")
    for pick, part in ((Pick(), "unet"), (Pick(ema=True), "unet_ema")):
        for step, expected in enumerate(states[part], 1):
            place = tmp_path / "run" / f"checkpoint-{step}"
            assert torch.equal(read_weights(place, pick)["conv_in.weight"], expected)
            assert resolve_model(read_header(place, pick), place=place).name == "UNet2DModel"
    shutil.rmtree(tmp_path / "run" / "checkpoint-1" / "unet")
    with pytest.raises(PosthocError, match="holds only a moving average of the weights; pass --ema"):
        read_header(tmp_path / "run" / "checkpoint-1")
    alone = tmp_path / "run" / "checkpoint-1"
    assert resolve_model(read_header(alone, Pick(ema=True)), place=alone).name == "UNet2DModel"
