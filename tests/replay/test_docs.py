"""Every command in docs/inputs.md and docs/networks.md runs as it stands there, on small stand-ins for what it names."""

import hashlib
import shlex
from pathlib import Path

import numpy as np
import pages
import pytest
import torch
import torchvision
from click.testing import CliRunner
from networks import GPT2
from PIL import Image
from scipy import io
from torch import nn
from torchvision.transforms import v2

import posthoc
from posthoc.cli import main

DOCS = Path(__file__).parents[2] / "docs"
COMMANDS = [
    line.strip()
    for name in ("inputs.md", "networks.md")
    for line in (DOCS / name).read_text().splitlines()
    if line.startswith("    posthoc ")
]
RANDOM = np.random.default_rng(0)
SMALL = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
NETS = """
import torch
from torch import nn

class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.inside, self.time, self.outside = nn.Conv2d(1, 8, 3), nn.Linear(1, 8), nn.ConvTranspose2d(8, 1, 3)
    def forward(self, x, t):
        return self.outside((self.inside(x) + self.time(t[:, None].float())[:, :, None, None]).relu())

class Mlp(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))

class Cnn(nn.Module):
    def __init__(self, width=8, stages=(1, 1)):
        super().__init__()
        blocks = [nn.Conv2d(3 if k == 0 else width, width, 3, padding=1) for k in range(sum(stages))]
        self.blocks, self.head = nn.Sequential(*blocks), nn.Linear(width, 10)
    def forward(self, x):
        return self.head(self.blocks(x).relu().mean((2, 3)))

Net = make = small = Cnn
"""
PROBE = """
import torch, posthoc
def make():
    return posthoc.Probe(torch.randn(20, 3, 8, 8, generator=torch.Generator().manual_seed(0)), targets=torch.arange(20) % 10)
"""


def nets():
    scope = {"__name__": "nets"}
    exec(NETS, scope)
    return scope


def series(make, folder="run"):
    """Two checkpoints."""
    Path(folder).mkdir()
    for epoch in (1, 2):
        torch.manual_seed(epoch)
        torch.save(make().state_dict(), f"{folder}/epoch_{epoch}.pt")


def of_nets(name, **arguments):
    Path("nets.py").write_text(NETS)
    series(lambda: nets()[name](**arguments))


def noised(monkeypatch):
    of_nets("UNet")
    x = RANDOM.normal(size=(16, 1, 8, 8))
    np.savez("noisy.npz", x=x, t=RANDOM.integers(0, 100, 16), y=x)


def pictures(monkeypatch):
    for k in range(10):
        Path(f"val/class{k}").mkdir(parents=True)
        pixels = RANDOM.integers(0, 256, (300, 260 + 20 * k, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"val/class{k}/a.png")
    series(lambda: torchvision.models.shufflenet_v2_x0_5(num_classes=10))


def houses(monkeypatch):
    import pyarrow as pa
    from pyarrow import parquet

    of_nets("Mlp")
    columns = {name: RANDOM.normal(size=20) for name in ("age", "price", "rooms", "area")}
    parquet.write_table(pa.table(columns), "houses.parquet")


def numbers(monkeypatch):
    of_nets("Cnn")
    data = Path("data")
    data.mkdir()
    monkeypatch.setenv("HOME", str(Path.cwd()))
    images, labels = RANDOM.integers(0, 256, (32, 32, 3, 12), dtype=np.uint8), np.arange(1, 13)[:, None] % 10 + 1
    io.savemat(data / "test_32x32.mat", {"X": images, "y": labels.astype(np.uint8)})
    row = ["", "test_32x32.mat", hashlib.md5((data / "test_32x32.mat").read_bytes()).hexdigest()]
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", {"test": row})


def function(monkeypatch):
    of_nets("Net")
    Path("probe.py").write_text(PROBE)


def cifar(monkeypatch):
    timm = pytest.importorskip("timm")
    series(lambda: timm.create_model("vit_tiny_patch16_224", num_classes=10, img_size=32))
    pages.write_cifar10(RANDOM.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8), np.arange(20) % 10, monkeypatch)


def tokens():
    np.savez("tokens.npz", input_ids=RANDOM.integers(0, 64, (16, 12)))


def language(monkeypatch):
    transformers = pytest.importorskip("transformers")
    tokens()
    for step in (1, 2):
        transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2)).save_pretrained(f"run/checkpoint-{step}")


def configured(monkeypatch):
    transformers = pytest.importorskip("transformers")
    tokens()
    config = transformers.BertConfig(**SMALL, architectures=["BertForMaskedLM"])
    config.save_pretrained("config_folder")
    series(lambda: transformers.BertModel(config), "weights")


def adapters(monkeypatch):
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    tokens()
    base = transformers.BertModel(transformers.BertConfig(**SMALL))
    base.save_pretrained("base")
    network = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["query"], init_lora_weights=False))
    for step in (1, 2):
        nn.init.normal_(next(p for name, p in network.named_parameters() if "lora_B" in name))
        network.save_pretrained(f"lora/checkpoint-{step}")


def denoising(monkeypatch):
    diffusers = pytest.importorskip("diffusers")
    network = diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    for step in (1, 2):
        nn.init.normal_(network.conv_in.weight)
        network.save_pretrained(f"ddpm/checkpoint-{step}/unet")
    np.savez("noised.npz", sample=RANDOM.normal(size=(8, 3, 8, 8)), timestep=RANDOM.integers(0, 1000, 8))


def repository(monkeypatch):
    of_nets("Cnn")
    place = Path("path/to/repository")
    place.mkdir(parents=True)
    Path("nets.py").rename(place / "hubconf.py")


STAND_INS = {
    "noisy.npz": noised,
    "imagefolder:val": pictures,
    "houses.parquet": houses,
    "torchvision:SVHN": numbers,
    "probe.py:make": function,
    "cifar10": cifar,
    "run/ --probe npz:tokens.npz": language,
    "config_folder": configured,
    "lora/": adapters,
    "ddpm/": denoising,
    "nets.py:make": lambda monkeypatch: of_nets("make", width=64, stages=[2, 2]),
    "hubconf.py": repository,
}
"""What makes the files that a command names, by a part of it."""


def run(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (make,) = (make for part, make in STAND_INS.items() if part in command)
    make(monkeypatch)
    words = shlex.split(command)[1:]
    words = [word.replace("~", str(tmp_path)) if word.startswith("~") else word for word in words]  # as a shell does
    result = CliRunner().invoke(main, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.slow
@pytest.mark.parametrize("command", [command for command in COMMANDS if "--resize" not in command])
def test_a_command_of_the_docs(command, tmp_path, monkeypatch):
    run(command, tmp_path, monkeypatch)
    with posthoc.open_activations(tmp_path / "activations.h5") as file:
        assert len(file.checkpoints) == 2
        first, second = (file.read("mean", row) for row in range(2))
        assert np.isfinite(first).all()
        assert not np.array_equal(first, second)


def test_pictures_are_resized_and_cropped_as_torchvision_does(tmp_path, monkeypatch):
    (command,) = (command for command in COMMANDS if "--resize" in command)
    run(command, tmp_path, monkeypatch)
    usual = v2.Compose([
        v2.Resize(256), v2.CenterCrop(224), v2.ToImage(), v2.ToDtype(torch.float32, scale=True),
        v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ])  # fmt: skip
    x = torch.stack([usual(Image.open(f"val/class{k}/a.png").convert("RGB")) for k in range(10)])
    network = torchvision.models.shufflenet_v2_x0_5(num_classes=10).eval()
    with posthoc.open_activations("activations.h5") as file, torch.no_grad():
        for row, name in enumerate(file.checkpoints):
            network.load_state_dict(torch.load(f"run/{name}"))
            loss = nn.functional.cross_entropy(network(x), torch.arange(10)).item()
            assert file.loss[row] == pytest.approx(loss, rel=1e-4)
