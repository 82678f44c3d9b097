"""Which axis holds the channels: of networks that take one size alone, by what their modules are."""

import h5py
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torch.nn import functional as F

from posthoc.cli import main
from posthoc.replay.hooks import dissect

NETS = """
import torch
from torch import nn
from torch.nn import functional as F

class Flat(nn.Module):
    def __init__(self):
        super().__init__()
        self.c1 = nn.Conv1d(1, 8, 5, stride=2); self.bn = nn.BatchNorm1d(8); self.act = nn.ReLU(); self.pool = nn.MaxPool1d(2)
        self.c2 = nn.Conv1d(8, 8, 5, padding=2); self.fc = nn.Linear(8 * 8, 4)
    def forward(self, x):
        return self.fc(F.relu(self.c2(self.pool(self.act(self.bn(self.c1(x)))))).flatten(1))

class Spectrogram(nn.Module):
    def __init__(self):
        super().__init__()
        self.c1 = nn.Conv2d(1, 8, 3, padding=1); self.pool = nn.MaxPool2d(2); self.c2 = nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8 * 8 * 13, 4)
    def forward(self, x):
        return self.fc(F.relu(self.c2(self.pool(F.relu(self.c1(x))))).flatten(1))

class CausalConv1d(nn.Conv1d):
    def forward(self, x):
        return super().forward(F.pad(x, (self.kernel_size[0] - 1, 0)))

class Causal(nn.Module):
    def __init__(self):
        super().__init__()
        self.c1 = CausalConv1d(2, 8, 3); self.c2 = nn.Conv1d(8, 12, 3); self.fc = nn.Linear(12, 4)
    def forward(self, x):
        return self.fc(F.relu(self.c2(F.relu(self.c1(x)))).mean(2))

class Turned(Causal):
    def forward(self, x):
        return super().forward(x.transpose(1, 2))

class Patches(nn.Module):
    def __init__(self):
        super().__init__()
        self.p = nn.Conv1d(1, 6, 2, 2); self.d = nn.Dropout(0.1); self.places = nn.Parameter(torch.randn(6, 6))
        self.n = nn.LayerNorm(6); self.fc = nn.Linear(36, 4)
    def forward(self, x):
        x = self.d(self.p(x).transpose(1, 2).contiguous())
        return self.fc(self.n(x + self.places).flatten(1))
"""
FORMS = {  # the shape of a sample, and the axes over which means are taken
    "Flat": ((1, 36), {"c1": 2, "bn": 2, "act": 2, "pool": 2, "c2": 2}),
    "Spectrogram": ((1, 16, 26), {"c1": (2, 3), "pool": (2, 3), "c2": (2, 3)}),
    "Causal": ((2, 40), {"c1": 2, "c2": 2}),
    "Turned": ((40, 2), {"c1": 2, "c2": 2}),
    "Patches": ((1, 12), {"p": 2, "d": 1, "n": 1}),
}


@pytest.mark.parametrize("name", FORMS)
def test_means_are_over_the_places_of_what_convolutions_give(name, tmp_path):
    shape, axes = FORMS[name]
    (tmp_path / "net.py").write_text(NETS)
    (tmp_path / "run").mkdir()
    torch.manual_seed(0)
    exec(NETS, space := {})
    net = space[name]().eval()
    torch.save(net.state_dict(), tmp_path / "run" / "epoch_1.pt")
    x = torch.randn(20, *shape)
    np.savez(tmp_path / "x.npz", x=x.numpy(), y=np.arange(20) % 4)
    words = [
        "extract",
        tmp_path / "run",
        "--model",
        f"{tmp_path / 'net.py'}:{name}",
        "--probe",
        f"npz:{tmp_path / 'x.npz'}",
    ]
    words += ["--layers", "all", "--channels", "all", "-o", tmp_path / "a.h5"]
    done = CliRunner().invoke(main, list(map(str, words)), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    given = {}
    for layer in axes:
        net.get_submodule(layer).register_forward_hook(lambda _m, _i, out, layer=layer: given.update({layer: out}))
    with torch.no_grad():
        net(x)
    with h5py.File(tmp_path / "a.h5") as file:
        assert axes.keys() == set(file["signals/mean"])
        for layer, dims in axes.items():
            for signal, expected in (("mean", given[layer].mean(dims)), ("var", given[layer].var(dims, correction=0))):
                np.testing.assert_allclose(file[f"signals/{signal}/{layer}"][0], expected.T, rtol=1e-4, atol=1e-6)


class Made(nn.Module):
    """A network of the modules that are given, and of what its forward pass does with them."""

    def __init__(self, forward, **modules):
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self.path = forward

    def forward(self, x):
        return self.path(self, x)


class Turn(nn.Module):
    def forward(self, x):
        return x.transpose(1, 2)


class LayerNorm2d(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def mixer():
    """As it is often written: places are mixed by convolutions of one place, of which places are the channels."""
    mix = nn.Sequential(nn.Conv1d(9, 36, 1), nn.GELU(), nn.Conv1d(36, 9, 1), nn.Dropout())
    block = Made(lambda s, x: x + s.mix(s.norm(x)), norm=nn.LayerNorm(12), mix=mix)
    return Made(
        lambda s, x: s.fc(s.block(s.embed(x)).mean(1)), embed=nn.Linear(5, 12), block=block, fc=nn.Linear(12, 4)
    )


def gated():
    """A spatial gating unit."""
    gate = Made(lambda s, x: x[..., :6] * s.mix(s.norm(x[..., 6:])), norm=nn.LayerNorm(6), mix=nn.Conv1d(9, 9, 1))
    return Made(lambda s, x: s.out(s.gate(F.gelu(s.into(x)))), into=nn.Linear(5, 12), gate=gate, out=nn.Linear(6, 4))


def residual():
    block = Made(lambda s, x: F.relu(x + s.bn(s.c(x))), c=nn.Conv1d(8, 8, 3, padding=1), bn=nn.BatchNorm1d(8))
    return Made(
        lambda s, x: s.fc(s.act(s.down(s.block(s.c(x)))).flatten(1)),
        c=nn.Conv1d(5, 8, 2), block=block, down=Made(lambda s, x: F.max_pool1d(s.c(x), 2), c=nn.Conv1d(8, 6, 1)),
        act=nn.PReLU(), fc=nn.Linear(24, 4),
    )  # fmt: skip


def frequencies():
    """Maps of channel, time and frequency, whose frequencies are mixed by a linear layer."""
    return Made(
        lambda s, x: s.fc(s.bn2(s.mix(F.relu(s.bn(s.c(x))))).flatten(1)),
        c=nn.Conv2d(1, 6, 3, padding=1), bn=nn.BatchNorm2d(6), mix=nn.Linear(7, 4), bn2=nn.BatchNorm2d(6),
        fc=nn.Linear(6 * 10 * 4, 4),
    )  # fmt: skip


def last():
    """Channels last between a convolution and the next, as in ConvNeXt."""
    mlp = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 24), nn.GELU(), nn.Linear(24, 6))
    block = Made(
        lambda s, x: x + s.mlp(s.c(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2), c=nn.Conv2d(6, 6, 3, padding=1), mlp=mlp
    )
    return Made(
        lambda s, x: s.fc(s.norm(s.block(s.c(x))).flatten(1)),
        c=nn.Conv2d(1, 6, 3, padding=1), block=block, norm=LayerNorm2d(6), fc=nn.Linear(6 * 10 * 7, 4),
    )  # fmt: skip


def pyramid():
    """Tokens of the same shape as an earlier map, from a map of the same shape turned round."""
    return Made(
        lambda s, x: s.fc(s.norm(s.turn(s.c2(s.c1(x)))).flatten(1)),
        c1=nn.Conv1d(5, 4, 2), c2=nn.Conv1d(4, 8, 2, 2), turn=Turn(), norm=nn.LayerNorm(8), fc=nn.Linear(32, 4),
    )  # fmt: skip


def square():
    """As many tokens as channels."""
    return Made(
        lambda s, x: s.fc(s.block(s.turn(s.act(s.c(x)))).flatten(1)),
        c=nn.Conv1d(5, 8, 2), act=nn.ReLU(), turn=Turn(), fc=nn.Linear(64, 4),
        block=Made(lambda s, x: x + s.norm(x), norm=nn.LayerNorm(8)),
    )  # fmt: skip


def recurrent():
    return Made(
        lambda s, x: s.fc(s.attend(*3 * [s.rnn(s.c(x).transpose(1, 2))[0]])[0].flatten(1)),
        c=nn.Conv1d(5, 6, 2), rnn=nn.GRU(6, 6, batch_first=True), attend=nn.MultiheadAttention(6, 2, batch_first=True),
        fc=nn.Linear(48, 4),
    )  # fmt: skip


SIZES = {
    "a mixer": (mixer, (9, 5), {
        "embed": "token 9 x channel 12", "block.norm": "token 9 x channel 12", "block.mix.0": "token 36 x channel 12",
        "block.mix.1": "token 36 x channel 12", "block.mix.3": "token 9 x channel 12", "block": "token 9 x channel 12",
    }),
    "a gate over places": (gated, (9, 5), {"gate.mix": "token 9 x channel 6", "gate": "token 9 x channel 6"}),
    "residual blocks": (residual, (5, 9), {
        "c": "channel 8 x time 8", "block.bn": "channel 8 x time 8", "block": "channel 8 x time 8",
        "down.c": "channel 6 x time 8", "down": "channel 6 x time 4", "act": "channel 6 x time 4",
    }),
    "frequencies": (frequencies, (1, 10, 7), {
        "c": "channel 6 x height 10 x width 7", "mix": "channel 6 x height 10 x width 4", "bn2": "channel 6 x height 10 x width 4",
    }),
    "channels last": (last, (1, 10, 7), {
        "c": "channel 6 x height 10 x width 7", "block.mlp.0": "height 10 x width 7 x channel 6",
        "block.mlp.2": "height 10 x width 7 x channel 24", "block.mlp": "height 10 x width 7 x channel 6",
        "block": "channel 6 x height 10 x width 7", "norm": "channel 6 x height 10 x width 7",
    }),
    "a pyramid": (pyramid, (5, 9), {
        "c1": "channel 4 x time 8", "c2": "channel 8 x time 4", "turn": "token 4 x channel 8", "norm": "token 4 x channel 8",
    }),
    "a square": (square, (5, 9), {
        "c": "channel 8 x time 8", "act": "channel 8 x time 8", "turn": "token 8 x channel 8",
        "block.norm": "token 8 x channel 8", "block": "token 8 x channel 8",
    }),
    "sequences": (recurrent, (5, 9), {
        "c": "channel 6 x time 8", "rnn": "token 8 x channel 6", "attend": "token 8 x channel 6",
    }),
}  # fmt: skip


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("name", SIZES)
def test_channels_are_where_the_modules_have_them(name, device):
    make, shape, expected = SIZES[name]
    points = dissect(make().eval().to(device), lambda samples, grown: {"x": torch.randn(samples, *shape)}).points
    sizes = {point.name: point.size for point in points}
    assert {layer: sizes[layer] for layer in expected} == expected
