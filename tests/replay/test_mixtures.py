"""Experts of a mixture, through which not every sample goes, are no layers to record; what is around them is."""

import re

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import posthoc
from posthoc.cli import main
from posthoc.replay.planning import plan_extraction

NET = """
import torch
from torch import nn

class Mlp(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))

class MoE(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(16, 4)
        nn.init.zeros_(self.gate.weight), nn.init.zeros_(self.gate.bias)  # untrained, it sends all samples to the first
        self.experts = nn.ModuleList(Mlp() for _ in range(4))
    def forward(self, x):
        chosen, y = self.gate(x).argmax(-1), torch.zeros_like(x)
        for k, expert in enumerate(self.experts):
            rows = chosen == k
            if rows.any():
                y[rows] = expert(x[rows])
        return y

class Block(nn.Module):
    def __init__(self, feed_forward):
        super().__init__()
        self.norm, self.ff = nn.LayerNorm(16), feed_forward()
    def forward(self, x):
        return x + self.ff(self.norm(x))

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.into, self.blocks, self.out = nn.Linear(8, 16), nn.Sequential(*map(Block, [Mlp, MoE, Mlp, MoE])), nn.Linear(16, 3)
    def forward(self, x):
        return self.out(self.blocks(self.into(x)))
"""
BLOCKS = [f"blocks.{k}" for k in range(4)]
CHOSEN = {
    "all": ["into", *(
        f"blocks.{k}.{part}"
        for k in range(4)
        for part in (["norm", "ff.gate", "ff"] if k % 2 else ["norm", "ff.0", "ff.1", "ff"])
        + [""] * (k < 3)
    ), "blocks", "out"],
    "residual": BLOCKS,
    "mlp": [f"{block}.ff" for block in BLOCKS],
    "default": BLOCKS,
}  # fmt: skip
CHOSEN["all"] = [name.rstrip(".") for name in CHOSEN["all"]]  # the last block hands on the output of all


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "run").mkdir()
    exec(NET, space := {})
    torch.manual_seed(0)
    for k in (1, 2):
        net = space["Net"]()
        for block in net.blocks[1::2]:
            torch.nn.init.normal_(block.ff.gate.weight)
        torch.save(net.state_dict(), tmp_path / "run" / f"epoch_{k}.pt")
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).standard_normal((40, 8), "f4"), y=np.arange(40) % 3)
    return tmp_path, net.eval()


def extracted(home, *layers):
    words = [
        "extract",
        home / "run",
        "--model",
        home / "net.py",
        "--probe",
        f"npz:{home / 'x.npz'}",
        "--batch-size",
        16,
    ]
    words += ["--layers", ",".join(layers)]
    return CliRunner().invoke(main, list(map(str, [*words, "-o", home / "a.h5", "--force"])))


@pytest.mark.parametrize("layers", CHOSEN)
def test_experts_are_left_out_and_what_is_around_them_is_recorded(layers, folder):
    home, net = folder
    done = extracted(home, layers)
    assert done.exit_code == 0, done.output
    note = re.sub(r"\s+", " ", done.stderr)
    assert ("left out, for not every sample goes through" in note) == (layers in ("all", "residual"))
    given = {}
    for name, part in net.named_modules():
        part.register_forward_hook(lambda _m, _i, out, name=name: given.update({name: out.clone()}))
    with torch.no_grad():
        net(torch.from_numpy(np.load(home / "x.npz")["x"]))
    with posthoc.open_activations(home / "a.h5") as file:
        assert [layer.name for layer in file.recording.identity.layers] == CHOSEN[layers]
        start = 0
        signals = file.read("mean", 1)
        for layer in file.recording.identity.layers:
            rows = signals[start : start + layer.channels]
            np.testing.assert_allclose(rows, given[layer.name].T, rtol=1e-4, atol=1e-5)
            start += layer.channels


def test_an_expert_that_is_asked_for_is_refused_by_its_name(folder):
    home, _ = folder
    for asked in (["blocks.3.ff.experts.0"], ["residual", "blocks.3.ff.e*.0"]):
        done = extracted(home, *asked)
        assert done.exit_code == 1, done.output
        assert re.search(
            r"epoch_1\.pt: blocks\.3\.ff\.experts\.0(\.0)? gives \d rows? for 8 samples; leave it out with --layers\.\n",
            done.stderr,
        ), done.stderr


def test_a_plan_after_another_leaves_out_the_same(folder):
    home, _ = folder
    options = {"model": str(home / "net.py"), "layers": ["residual"]}
    plan = plan_extraction(home / "run", f"npz:{home / 'x.npz'}", **options)
    again = plan_extraction(home / "run", f"npz:{home / 'x.npz'}", before=plan, **options)
    assert again.trial is plan.trial  # none but the first was needed
    assert [point.name for point in again.points] == BLOCKS
    assert again.identity == plan.identity
