"""Networks as people write them: the numbers are those of a plain loop, and what cannot be so is said."""

import json
import re

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from contents import assert_same
from torch.nn import functional as F

import posthoc
from posthoc.cli import main
from posthoc.errors import PosthocError, UsageError
from posthoc.parts import merge
from posthoc.replay.network import FORMATS
from posthoc.replay.planning import plan_extraction
from posthoc.replay.probes.images import probe_images
from posthoc.replay.run import run_extraction
from posthoc.shards import Shard

HEAD = """
import collections, dataclasses, random
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
"""
FLATTEN = {"view": "x.view(x.size(0), -1)", "reshape": "x.reshape(x.size(0), -1)"}
PLAIN = {
    "Tutorial": """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5); self.pool = nn.MaxPool2d(2, 2); self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(400, 120); self.fc2 = nn.Linear(120, 84); self.fc3 = nn.Linear(84, 10)
    def forward(self, x):
        x = self.pool(F.relu(self.conv2(self.pool(F.relu(self.conv1(x))))))
        x = FLAT
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))
""",
    "LeNet": """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5); self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(256, 84); self.fc2 = nn.Linear(84, 10)
    def forward(self, x):
        x = F.max_pool2d(torch.tanh(self.conv1(x)), 2)
        x = F.max_pool2d(torch.tanh(self.conv2(x)), 2)
        return self.fc2(torch.tanh(self.fc1(FLAT)))
""",
    "MLP": """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3072, 64); self.b = nn.Linear(64, 32); self.c = nn.Linear(32, 10)
    def forward(self, x):
        return self.c(F.relu(self.b(F.relu(self.a(FLAT)))))
""",
    "VAE": """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 4, 4); self.mu = nn.Linear(512, 12); self.logvar = nn.Linear(512, 12)
        self.back = nn.Linear(12, 3072)
    def forward(self, x):
        x = F.relu(self.conv(x)); x = FLAT
        mu, logvar = self.mu(x), self.logvar(x)
        z = mu + torch.randn_like(mu) * torch.exp(logvar / 2)
        return torch.sigmoid(self.back(z)), mu, logvar
""",
    "TwoHeads": """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 4, 4); self.coarse = nn.Linear(512, 3); self.fine = nn.Linear(512, 10)
    def forward(self, x):
        x = F.relu(self.conv(x)); x = FLAT
        return {"coarse": self.coarse(x), "fine": self.fine(x)}
""",
}
SCORED = {"Tutorial": (), "LeNet": (), "MLP": (), "VAE": None, "TwoHeads": ("fine",)}


def written(folder, code, moments=3):
    """A model file, its class, and a run of it: untrained weights of three seeds."""
    (folder / "net.py").write_text(HEAD + code)
    names = {}
    exec(HEAD + code, names)
    run = folder / "run"
    run.mkdir()
    for epoch in range(1, moments + 1):
        torch.manual_seed(epoch)
        torch.save(names["Net"]().state_dict(), run / f"epoch_{epoch}.pth")
    return names["Net"]


def options(folder, **more):
    return {"model": str(folder / "net.py"), "normalize": "0.4/0.3", "images": 100, "batch_size": 32} | more


def planned(folder, **more):
    return plan_extraction(folder / "run", "digits", **options(folder, **more))


def in_shards(folder, output, **more):
    """Three tasks, each with a plan of its own, and their merging."""
    for k in (3, 1, 2):
        run_extraction(planned(folder, **more), output, shard=Shard(k, 3))
    merge(output)


def plain_loop(net, state, plan, seed):
    """Signals and scores of a checkpoint: PyTorch and nothing else, a fresh module, batch after batch."""
    preparation = plan.identity.probe.preparation
    probe = probe_images("digits", 100)
    x = (torch.from_numpy(probe.images).permute(0, 3, 1, 2).float() / 255 - 0.4) / 0.3
    if preparation["image_size"] != 32:
        x = F.interpolate(x, size=preparation["image_size"], mode="bilinear", antialias=True)
    if preparation["channels"] == 1:
        x = (x * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
    x = x.contiguous(memory_format=FORMATS[plan.identity.memory_format])
    model = net().eval()
    model.load_state_dict(state)
    rows, outputs = {}, []

    def keep(name, channels):
        def hook(module, inputs, output):
            kept = output[:, channels]
            axes = tuple(range(2, output.ndim))
            mean = kept.mean(axes, keepdim=True) if axes else kept
            var = (kept - mean).square()
            rows.setdefault(("mean", name), []).append(mean.flatten(1))
            rows.setdefault(("var", name), []).append(var.mean(axes) if axes else var)

        return hook

    for name, channels in plan.stored.channels.items():
        model.get_submodule(name).register_forward_hook(keep(name, torch.from_numpy(channels)))
    with torch.inference_mode():
        for number, batch in enumerate(x.split(32)):
            torch.manual_seed(int(np.random.SeedSequence([seed, number]).generate_state(1)[0]))
            outputs.append(model(batch))
    return {key: torch.cat(blocks).T.numpy() for key, blocks in rows.items()}, outputs


@pytest.mark.parametrize("flatten", FLATTEN)
@pytest.mark.parametrize("name", PLAIN)
def test_to_the_bit_as_a_plain_loop_whole_and_in_shards(tmp_path, name, flatten):
    net = written(tmp_path, PLAIN[name].replace("FLAT", FLATTEN[flatten]))
    plan = planned(tmp_path)
    if name != "LeNet":  # of one channel, in which both formats are one
        lasting = name != "MLP" and flatten == "reshape"
        assert plan.identity.memory_format == ("channels_last" if lasting else "contiguous")
    assert plan.identity.probe.preparation["image_size"] == (28 if name == "LeNet" else 32)
    run_extraction(plan, tmp_path / "a.h5")
    in_shards(tmp_path, tmp_path / "b.h5")
    assert_same(tmp_path / "a.h5", tmp_path / "b.h5")
    labels = torch.from_numpy(probe_images("digits", 100).labels)
    with posthoc.open_activations(tmp_path / "a.h5") as file:
        for e, path in enumerate(sorted((tmp_path / "run").iterdir())):
            signals, outputs = plain_loop(net, torch.load(path), plan, 0)
            for signal in ("mean", "var"):
                expected = np.concatenate([signals[signal, layer] for layer in file.layers])
                np.testing.assert_array_equal(file.read(signal, e), expected)
            if SCORED[name] is None:
                assert np.isnan(file.accuracy[e])
                assert np.isnan(file.loss[e])
                continue
            scores = torch.cat([output[SCORED[name][0]] if SCORED[name] else output for output in outputs])
            assert file.accuracy[e] == (scores.argmax(1) == labels).double().mean().item()
            assert file.loss[e] == F.cross_entropy(scores, labels).item()


SHIFTED = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 10)
        self.place = nn.Parameter(torch.randn(1, 4, 32, 32))
    def forward(self, x):
        return self.fc((self.conv(x).flatten(2) + self.place.view(4096).view(4, 1024)).relu().mean(2))
"""
"""A network that views a parameter of four axes, as embeddings of places are."""


@pytest.mark.parametrize("name", ["Tutorial", "LeNet", "TwoHeads", "Shifted"])
def test_the_two_memory_formats_agree(tmp_path, name):
    written(tmp_path, PLAIN.get(name, SHIFTED).replace("FLAT", FLATTEN["reshape"]), 1)
    for layout in ("contiguous", "channels_last"):
        run_extraction(planned(tmp_path, memory_format=layout), tmp_path / f"{layout}.h5")
    with (
        posthoc.open_activations(tmp_path / "contiguous.h5") as one,
        posthoc.open_activations(tmp_path / "channels_last.h5") as two,
    ):
        assert (one.recording.identity.memory_format, two.recording.identity.memory_format) == (
            "contiguous",
            "channels_last",
        )
        for signal in ("mean", "var"):
            a, b = one.read(signal, 0), two.read(signal, 0)
            assert np.abs(a - b).max() <= 1e-4 * a.std()


@pytest.mark.parametrize(
    ("layers", "batch", "expected"),
    [
        # 3,072 + 1,024 values an image go through 3,072 weights, and 64 + 2,048 through 131,072: 24 a weight at 512 images
        ("nn.Conv2d(3, 64, 4, 8), nn.AdaptiveAvgPool2d(1), nn.Conv2d(64, 2048, 1)", 512, "channels_last"),
        ("nn.Conv2d(3, 64, 4, 8), nn.AdaptiveAvgPool2d(1), nn.Conv2d(64, 2048, 1)", 64, "contiguous"),
        ("nn.Conv2d(3, 64, 4, 8), nn.AdaptiveAvgPool2d(2), nn.Conv2d(64, 512, 2)", 64, "channels_last"),
        (
            "nn.Conv2d(3, 64, 4, 8), nn.AdaptiveAvgPool2d(1), nn.Conv2d(64, 2048, 1), nn.Conv2d(2048, 2048, 1, groups=2048)",
            64,
            "channels_last",
        ),
        ("nn.Flatten(), nn.Linear(3072, 64)", 64, "contiguous"),
    ],
    ids=["few weights", "bottleneck", "spatial", "depthwise", "no convolution"],
)
def test_bottlenecks_with_few_values_for_each_weight_run_contiguous(tmp_path, layers, batch, expected):
    written(tmp_path, f"""
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential({layers})
    def forward(self, x):
        return self.body(x).flatten(1)[:, :10]
""")  # fmt: skip
    assert planned(tmp_path, batch_size=batch).identity.memory_format == expected


def test_a_network_that_reads_memory_as_it_lies_gets_it_contiguous(tmp_path):
    """It works with channels last, and gives something else."""
    written(tmp_path, """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 4, 4); self.fc = nn.Linear(512, 10)
    def forward(self, x):
        x = self.conv(x)
        return self.fc(torch.as_strided(x, (x.size(0), 512), (512, 1)))
""")  # fmt: skip
    plan = planned(tmp_path)
    assert plan.identity.memory_format == "contiguous"
    assert "contiguous, for with channels last the output" in dict(plan.notes)["memory format"]
    with pytest.raises(UsageError, match="give auto or contiguous or channels_last"):
        planned(tmp_path, memory_format="last")


CONVS = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.c1 = nn.Conv2d(3, 8, 3, padding=1); self.c2 = nn.Conv2d(8, 8, 3, padding=1); self.fc = nn.Linear(8, 10)
        EXTRA
    def forward(self, x):
        BODY
"""


def convs(body, extra="pass"):
    return CONVS.replace("EXTRA", extra).replace("BODY", body)


RANDOM = {
    "dropout in a function": ("x = F.dropout(F.relu(self.c1(x)), 0.5)", "pass", "dropout in c1|dropout \\(line|dropout in"),
    "a layer kept in training": ("x = self.d.train()(self.c1(x))", "self.d = nn.Dropout(0.5)", "dropout in d"),
    "noise": ("x = self.c1(x); x = x + torch.randn_like(x)", "pass", "randn_like"),
    "numpy": ("x = self.c1(x) * np.random.rand()", "pass", r"numpy\.random"),
    "python": ("x = self.c1(x) * random.random()", "pass", "random"),
}  # fmt: skip


@pytest.mark.parametrize("kind", RANDOM)
def test_what_is_random_is_said_and_the_same_every_time(tmp_path, kind):
    body, extra, drawn = RANDOM[kind]
    written(tmp_path, convs(f"{body}; return self.fc(F.relu(self.c2(x)).mean((2, 3)))", extra))
    plan = planned(tmp_path)
    notes = dict(plan.notes)
    assert notes["random numbers"].startswith("drawn by ")
    assert re.search(drawn, notes["random numbers"])
    assert ("training mode" in notes) == (kind == "a layer kept in training")
    torch.manual_seed(5)
    before = torch.rand(1)
    torch.manual_seed(5)
    run_extraction(plan, tmp_path / "a.h5")
    assert torch.rand(1) == before  # the program's own random numbers go on as they were
    run_extraction(planned(tmp_path), tmp_path / "b.h5")
    in_shards(tmp_path, tmp_path / "c.h5")
    assert_same(tmp_path / "a.h5", tmp_path / "b.h5")
    assert_same(tmp_path / "a.h5", tmp_path / "c.h5")
    run_extraction(planned(tmp_path, seed=1, channels=None), tmp_path / "d.h5")
    with posthoc.open_activations(tmp_path / "a.h5") as one, posthoc.open_activations(tmp_path / "d.h5") as other:
        assert not np.array_equal(one.read("mean", 0), other.read("mean", 0))


STATE = {
    "a buffer": (
        "x = self.c1(x); self.run = 0.9 * self.run + 0.1 * x.mean((0, 2, 3)); x = x - self.run.view(1, -1, 1, 1)",
        "self.register_buffer('run', torch.zeros(8), persistent=False)",
        "run",
    ),
    "a buffer in place": (
        "x = self.c1(x); self.run.mul_(0.9).add_(x.mean((0, 2, 3))); x = x - self.run.view(1, -1, 1, 1)",
        "self.register_buffer('run', torch.zeros(8), persistent=False)",
        "run",
    ),
    "an attribute that is made": (
        "x = self.c1(x) + getattr(self, 'hidden', 0); self.hidden = x.mean()", "pass", "hidden"
    ),
    "a list inside another module": (
        "self.c2.seen.append(1); x = self.c1(x) * len(self.c2.seen)", "self.c2.seen = []", "c2.seen"
    ),
    "a nested record": (
        "self.memory['steps'][0] += 1; x = self.c1(x) * self.memory['steps'][0]", "self.memory = {'steps': [0]}", "memory"
    ),
    "a generator": (
        "x = self.c1(x) * torch.rand(1, generator=self.noise)", "self.noise = torch.Generator().manual_seed(3)", "noise"
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", STATE)
def test_state_is_put_back_before_each_checkpoint(tmp_path, kind):
    body, extra, name = STATE[kind]
    net = written(tmp_path, convs(f"{body}; return self.fc(F.relu(self.c2(x)).mean((2, 3)))", extra))
    plan = planned(tmp_path)
    assert f"kept from batch to batch ({name})" in dict(plan.notes)["state"]
    run_extraction(plan, tmp_path / "a.h5")
    in_shards(tmp_path, tmp_path / "b.h5")
    assert_same(tmp_path / "a.h5", tmp_path / "b.h5")
    with posthoc.open_activations(tmp_path / "a.h5") as file:
        signals, _ = plain_loop(net, torch.load(tmp_path / "run" / "epoch_3.pth"), plan, 0)
        expected = np.concatenate([signals["mean", layer] for layer in file.layers])
        np.testing.assert_array_equal(file.read("mean", 2), expected)


VIEWS = {
    "of a weight": ("self.row", "self.row = self.fc.weight[0]"),
    "of its data, in a list": ("self.rows[0]", "self.rows = [self.fc.weight.data[0]]"),
    "of a convolution's weight": ("self.row", "self.row = self.c2.weight.detach()[0, :, 0, 0]"),
    "in a function": ("self.row()", "row = self.fc.weight.data[0]; self.row = lambda: row"),
    "of a buffer": ("self.row", "self.register_buffer('rows', torch.randn(2, 8)); self.row = self.rows[0]"),
    "of a buffer that is written to": (
        "self.rows.mul_(0.9)[0] + self.row", "self.register_buffer('rows', torch.randn(2, 8)); self.row = self.rows[0]"
    ),
    "that is a buffer": ("self.row", "self.register_buffer('row', self.fc.weight.data[0], persistent=False)"),
}  # fmt: skip


@pytest.mark.parametrize("kind", VIEWS)
def test_a_view_of_a_weight_or_buffer_follows_it(tmp_path, kind):
    row, extra = VIEWS[kind]
    net = written(tmp_path, convs(
        f"x = F.relu(self.c1(x)) * ({row}).view(1, -1, 1, 1); return self.fc(F.relu(self.c2(x)).mean((2, 3)))", extra
    ))  # fmt: skip
    plan = planned(tmp_path)
    run_extraction(plan, tmp_path / "a.h5")
    in_shards(tmp_path, tmp_path / "b.h5")
    assert_same(tmp_path / "a.h5", tmp_path / "b.h5")
    labels = torch.from_numpy(probe_images("digits", 100).labels)
    with posthoc.open_activations(tmp_path / "a.h5") as file:
        for row in range(3):
            signals, outputs = plain_loop(net, torch.load(tmp_path / "run" / f"epoch_{row + 1}.pth"), plan, 0)
            expected = np.concatenate([signals["mean", layer] for layer in file.layers])
            np.testing.assert_array_equal(file.read("mean", row), expected)
            assert file.loss[row] == F.cross_entropy(torch.cat(outputs), labels).item()


DERIVATIVES = {
    "of an energy": "e = self.e(x); return -torch.autograd.grad(e.sum(), x)[0], e",
    "by autograd's functions": "return torch.autograd.functional.jvp(self.e, x, torch.ones_like(x))[1]",
    "backward": "self.e(x).sum().backward(); return x.grad",
    "by a step of its own weights": (
        "w, = torch.autograd.grad(self.e(x).square().mean(), [self.a.weight])\n"
        "            return self.b(torch.tanh(F.linear(x, self.a.weight - w)))"
    ),
}


@pytest.mark.parametrize("kind", DERIVATIVES)
def test_a_network_may_differentiate(tmp_path, kind):
    net = written(tmp_path, f"""
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 16); self.b = nn.Linear(16, 1); self.end = nn.Identity()
    def e(self, x):
        return self.b(torch.tanh(self.a(x)))
    def given(self, x):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            {DERIVATIVES[kind]}
    def forward(self, x):
        given = self.given(x)
        return self.end(given[0]) if isinstance(given, tuple) else self.end(given)
""")  # fmt: skip
    x = np.random.default_rng(0).standard_normal((70, 6)).astype(np.float32)
    np.savez(tmp_path / "probe.npz", x=x)
    result = CliRunner().invoke(main, [
        "extract", f"{tmp_path / 'run'}", "--model", f"{tmp_path / 'net.py'}", "--probe", f"npz:{tmp_path / 'probe.npz'}",
        "-o", f"{tmp_path / 'a.h5'}", "--layers", "a,end", "--channels", "all", "--batch-size", "70", "--device", "cpu",
    ])  # fmt: skip
    assert result.exit_code == 0, result.output
    with posthoc.open_activations(tmp_path / "a.h5") as file:
        for row in range(3):
            network = net()
            network.load_state_dict(torch.load(tmp_path / "run" / f"epoch_{row + 1}.pth"))
            with torch.no_grad():
                expected = network.eval()(torch.from_numpy(x)).detach()
            assert expected.abs().min() > 0
            np.testing.assert_allclose(file.read("mean", row, "end"), expected.T.numpy(), rtol=1e-5)


def test_layers_that_look_at_the_whole_batch_are_named(tmp_path):
    written(tmp_path, convs(
        "self.bn.train(); return self.fc(F.relu(self.bn(self.c2(self.c1(x)))).mean((2, 3)))", "self.bn = nn.BatchNorm2d(8)"
    ))  # fmt: skip
    plan = planned(tmp_path, layers=["all"])
    notes = dict(plan.notes)
    assert notes["training mode"] == "bn (BatchNorm2d): run as in training"
    assert "depends on the others in its batch" in notes["batches"]
    run_extraction(plan, tmp_path / "a.h5")
    in_shards(tmp_path, tmp_path / "b.h5", layers=["all"])
    assert_same(tmp_path / "a.h5", tmp_path / "b.h5")


def test_an_ordinary_network_has_nothing_said_of_it(tmp_path):
    written(tmp_path, convs("return self.fc(F.relu(self.c2(F.relu(self.c1(x)))).mean((2, 3)))"))
    labels = dict(planned(tmp_path).notes)
    assert not {"random numbers", "state", "training mode", "batches", "not repeatable", "score"} & labels.keys()


def test_what_cannot_be_put_back_is_said(tmp_path):
    written(
        tmp_path,
        "CALLS = []\n"
        + convs("CALLS.append(1); return self.fc(F.relu(self.c2(self.c1(x) * len(CALLS))).mean((2, 3)))"),
    )
    assert "a rerun or a shard may differ" in dict(planned(tmp_path).notes)["not repeatable"]


@pytest.mark.parametrize("writes", ["x.mul_(0.5)", "x -= x.new_tensor(0.25)"])
def test_a_network_may_write_to_the_images_it_is_given(tmp_path, writes):
    body = "return self.fc(F.relu(self.c2(F.relu(self.c1(x)))).mean((2, 3)))"
    written(tmp_path, convs(f"{writes}; {body}"))
    plan = planned(tmp_path)
    assert not {"state", "not repeatable"} & dict(plan.notes).keys()
    run_extraction(plan, tmp_path / "a.h5")
    in_shards(tmp_path, tmp_path / "b.h5")
    assert_same(tmp_path / "a.h5", tmp_path / "b.h5")
    (tmp_path / "net.py").write_text(HEAD + convs(f"x = x.clone(); {writes}; {body}"))
    run_extraction(planned(tmp_path), tmp_path / "c.h5")
    with posthoc.open_activations(tmp_path / "a.h5") as one, posthoc.open_activations(tmp_path / "c.h5") as other:
        for row in range(3):
            np.testing.assert_array_equal(one.read("var", row), other.read("var", row))


def test_a_network_may_write_to_its_weights(tmp_path):
    body = "self.c1.weight.data.mul_(1.5); return self.fc(F.relu(self.c2(F.relu(self.c1(x)))).mean((2, 3)))"
    written(tmp_path, convs(body))
    plan = planned(tmp_path)
    assert dict(plan.notes)["state"] == "kept from batch to batch (c1.weight); put back before each checkpoint"
    run_extraction(plan, tmp_path / "a.h5")
    in_shards(tmp_path, tmp_path / "b.h5")
    assert_same(tmp_path / "a.h5", tmp_path / "b.h5")


FORMS = {
    "a key": ("{'features': f, 'logits': y}", {}, "logits"),
    "an attribute": ("Out(f, y)", {}, "logits"),
    "a field": ("Named(f, y)", {}, "logits"),
    "a dataclass": ("Plain([f, y], None)", {}, "deep.1"),
    "sparse": ("[y, y.to_sparse()]", {}, "0"),
    "nested": ("(f, {'head': {'logits': y}})", {}, "1.head.logits"),
    "the only one as wide": ("[f, (y, None)]", {}, "1.0"),
    "chosen by position": ("(y + 1, y)", {"model_output": "1"}, "1"),
    "chosen by name": ("{'a': y + 1, 'b': y}", {"model_output": "b"}, "b"),
    "chosen, wider": ("torch.cat([y, y - 100], 1)", {"model_output": "0"}, "0"),
    "two as wide": ("(y, y + 1)", {}, None),
    "features": ("f", {}, None),
    "wider": ("torch.cat([y, y], 1)", {}, None),
    "not wanted": ("y", {"model_output": "none"}, None),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_output_that_is_scored(tmp_path, form):
    output, chosen, name = FORMS[form]
    kinds = """
@dataclasses.dataclass
class Out:
    hidden: torch.Tensor
    logits: torch.Tensor

@dataclasses.dataclass
class Plain:
    deep: list
    nothing: None

Named = collections.namedtuple("Named", ["hidden", "logits"])
"""
    body = "f = F.relu(self.c2(F.relu(self.c1(x)))).mean((2, 3)); y = self.fc(f); f = torch.cat([f, f], 1)"
    net = written(tmp_path, kinds + convs(f"{body}; return {output}"), 2)
    plan = planned(tmp_path, **chosen)
    run_extraction(plan, tmp_path / "a.h5")
    probe = probe_images("digits", 100)
    x = (torch.from_numpy(probe.images).permute(0, 3, 1, 2).float() / 255 - 0.4) / 0.3
    with posthoc.open_activations(tmp_path / "a.h5") as file:
        assert file.recording.identity.output.name == name
        assert ("score" in dict(plan.notes)) == (name is None)
        for e in range(2):
            model = net().eval()
            model.load_state_dict(torch.load(tmp_path / "run" / f"epoch_{e + 1}.pth"))
            with torch.inference_mode():
                scores = model.fc(F.relu(model.c2(F.relu(model.c1(x)))).mean((2, 3)))
            accuracy = (scores.argmax(1) == torch.from_numpy(probe.labels)).double().mean().item()
            assert (
                np.isnan(file.accuracy[e]) if name is None else file.accuracy[e] == pytest.approx(accuracy, abs=0.011)
            )


def test_an_output_that_is_not_there(tmp_path):
    written(tmp_path, convs("f = self.c2(self.c1(x)).mean((2, 3)); return {'f': f, 'y': self.fc(f)}"), 1)
    with pytest.raises(UsageError, match="has no such output; give f 8 x 8, y 8 x 10, or none"):
        planned(tmp_path, model_output="scores")
    with pytest.raises(UsageError, match="is of shape 8 x 8; scores of 10 classes"):
        planned(tmp_path, model_output="f")


THROWN = {
    "an error": ("x = self.c2(self.c1(x)[:, :3])", r"in c2 \(Conv2d, line \d+ of net\.py\) on a batch of 8 x 3 x 32 x 32 \(RuntimeError"),
    "an end": ("import sys; sys.exit(0)", r"at line \d+ of net\.py .*sys\.exit\(0\)"),
    "an odd class": ("raise type('Odd', (Exception,), {})", "Odd"),
    "an end of another kind": ("raise GeneratorExit", "GeneratorExit"),
    "a class that has no words": ("raise type('Mute', (Exception,), {'__str__': lambda self: 1 / 0})", r"\(Mute\)"),
    "no tensor": ("self.fc(self.c2(self.c1(x)).mean((2, 3))); return 'done'", "gives a str, in which there is no tensor"),
    "nothing": ("self.fc(self.c2(self.c1(x)).mean((2, 3))); return None", "gives a NoneType, in which there is no tensor"),
    "another path": ("return self.fc(x[:, 0, 0, :8])", "another path than it was planned with: c1 was not reached"),
}  # fmt: skip


@pytest.mark.parametrize("kind", THROWN)
def test_whatever_a_forward_pass_throws_is_one_sentence_and_found_by_a_dry_run(tmp_path, kind):
    """Thrown at real images only: a dissection on zeros passes."""
    body, message = THROWN[kind]
    written(tmp_path, convs(f"""
        if not x.is_meta and x.abs().sum() > 0:
            {body}
        return self.fc(F.relu(self.c2(F.relu(self.c1(x)))).mean((2, 3)))"""))  # fmt: skip
    words = ["extract", tmp_path / "run", "--probe", "digits", "--model", tmp_path / "net.py", "--normalize", "none"]
    for more in (["--dry-run"], ["-o", tmp_path / "a.h5"], ["-o", tmp_path / "a.h5", "--on-error", "skip"]):
        done = CliRunner().invoke(main, list(map(str, [*words, *more])))
        assert done.exit_code == 1
        assert "Traceback" not in done.output
        assert re.search(message, done.stderr), done.stderr
        assert str(tmp_path / "run" / "epoch_1.pth") in done.stderr


@pytest.mark.parametrize("bad", [1, 2, 3])
def test_a_forward_pass_that_fails_for_one_checkpoint_is_skipped(tmp_path, bad):
    body = "return self.fc(F.relu(self.c2(F.relu(self.c1(x)))).mean((2, 3)))"
    written(tmp_path, convs(body))
    run_extraction(planned(tmp_path), tmp_path / "whole.h5")
    path = tmp_path / "run" / f"epoch_{bad}.pth"
    torch.save(torch.load(path) | {"fc.bias": torch.full((10,), 9.0)}, path)
    (tmp_path / "net.py").write_text(HEAD + convs(f"""
        if not x.is_meta and self.fc.bias.mean() == 9:
            raise ValueError("nine")
        {body}"""))  # fmt: skip
    words = ["extract", tmp_path / "run", "--probe", "digits", "--model", tmp_path / "net.py", "--normalize", "0.4/0.3"]
    words += ["--images", 100, "--batch-size", 32, "-o", tmp_path / "a.h5"]
    done = CliRunner().invoke(main, list(map(str, words)))
    assert done.exit_code == 1
    assert f"epoch_{bad}.pth: net.py:Net fails at line" in done.stderr
    done = CliRunner().invoke(main, list(map(str, [*words, "--on-error", "skip"])))
    assert done.exit_code == 3
    with posthoc.open_activations(tmp_path / "a.h5") as file, posthoc.open_activations(tmp_path / "whole.h5") as whole:
        others = [e for e in (1, 2, 3) if e != bad]
        assert file.epochs.tolist() == others
        assert file.skipped[0][0] == f"epoch_{bad}.pth"
        assert "ValueError: nine" in file.skipped[0][1]
        for row, epoch in enumerate(others):
            np.testing.assert_array_equal(file.read("mean", row), whole.read("mean", epoch - 1))


def test_a_shard_agrees_whatever_it_was_told_to_use(tmp_path):
    """A plan that decides otherwise does not mix its parts with those that are there."""
    written(tmp_path, PLAIN["Tutorial"].replace("FLAT", FLATTEN["reshape"]))
    run_extraction(planned(tmp_path), tmp_path / "a.h5", shard=Shard(1, 3))
    other = planned(tmp_path, memory_format="contiguous")
    with pytest.raises(PosthocError, match='memory_format: "channels_last" there, "contiguous" now'):
        run_extraction(other, tmp_path / "a.h5", shard=Shard(2, 3))
    identity = json.loads((tmp_path / "a.h5.parts" / "plan.json").read_text())["recording"]["identity"]
    assert (identity["memory_format"], identity["batch_size"]) == ("channels_last", 32)
