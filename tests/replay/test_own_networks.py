"""Networks as people write them: lazy, normalised, tied, side by side; replayed as a plain loop of PyTorch would."""

import textwrap
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

import posthoc
from posthoc.cli import main
from posthoc.errors import PosthocError, UsageError
from posthoc.replay.checkpoint import Header, read_header, read_weights
from posthoc.replay.lazy import lazy_layers
from posthoc.replay.models import name_tensors, resolve_model
from posthoc.replay.weights import Pick

HEAD = """
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, spectral_norm, weight_norm
"""
# Of each: the module's constructor, and its forward pass; `self.seen` is the layer whose means are compared.
NETWORKS = {
    "lazy": (
        "self.down = nn.LazyConv2d(8, 3, stride=2); self.norm = nn.LazyBatchNorm2d(); self.up = nn.LazyConvTranspose2d(6, 2)\n"
        "self.grouped = nn.LazyConv2d(6, 3, groups=2); self.plain = nn.LazyBatchNorm2d(affine=False)\n"
        "self.seen = nn.LazyInstanceNorm2d(affine=True); self.head = nn.LazyLinear(10)",
        "self.head(self.seen(self.plain(self.grouped(self.up(self.norm(self.down(x)))))).relu().mean((2, 3)))",
    ),
    "weight_norm": (
        "self.seen = parametrizations.weight_norm(nn.Conv2d(3, 8, 3)); self.head = parametrizations.weight_norm(nn.Linear(8, 10))",
        "self.head(self.seen(x).relu().mean((2, 3)))",
    ),
    "older weight_norm": (
        "self.seen = weight_norm(nn.Conv2d(3, 8, 3)); self.head = weight_norm(nn.Linear(8, 10), dim=None)",
        "self.head(self.seen(x).relu().mean((2, 3)))",
    ),
    "spectral_norm": (
        "self.seen = parametrizations.spectral_norm(nn.Conv2d(3, 8, 3)); self.head = spectral_norm(nn.Linear(8, 10))",
        "self.head(self.seen(x).relu().mean((2, 3)))",
    ),
    "tied": (
        "self.conv = nn.Conv2d(3, 8, 3); self.seen = nn.Conv2d(8, 8, 3, bias=False)\n"
        "self.again = nn.Conv2d(8, 8, 3, bias=False); self.again.weight = self.seen.weight; self.head = nn.Linear(8, 10)",
        "self.head(self.again(self.seen(self.conv(x)).relu()).relu().mean((2, 3)))",
    ),
    "without convolution or linear layer": (
        "self.weight = nn.Parameter(torch.randn(10, 3)); self.seen = nn.BatchNorm2d(3)",
        "F.softplus(self.seen(x)).mean((2, 3)) @ self.weight.T",
    ),
}


def written(folder, name, body, forward):
    """A file with the class `Net`."""
    lines = textwrap.indent(body, " " * 8)
    text = f"{HEAD}\nclass Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n{lines}\n"
    (folder / name).write_text(f"{text}\n    def forward(self, x):\n        return {forward}\n")
    return folder / name


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("kind", NETWORKS)
def test_replayed_as_a_plain_loop_would(kind, tmp_path, probe_file):
    path = written(tmp_path, "nets.py", *NETWORKS[kind])
    namespace = {}
    exec(path.read_text(), namespace)
    network = namespace["Net"]()
    with np.load(probe_file) as probe:
        x = torch.from_numpy(probe["images"]).permute(0, 3, 1, 2).contiguous().float() / 255
        labels = torch.from_numpy(probe["labels"])
    (tmp_path / "run").mkdir()
    expected = []
    for epoch in range(2):
        torch.manual_seed(epoch)
        network.train()(x[:64] * (epoch + 1))  # and lazy layers have their sizes
        with torch.no_grad():
            for parameter in network.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
        torch.save(network.state_dict(), tmp_path / "run" / f"epoch_{epoch}.pth")
        kept = []
        hook = network.seen.register_forward_hook(lambda module, given, output, kept=kept: kept.append(output))
        with torch.no_grad():
            scores = torch.cat([network.eval()(batch) for batch in x.split(100)])
        hook.remove()
        expected.append((torch.cat(kept).mean((2, 3)).T, F.cross_entropy(scores, labels).item()))
    output = posthoc.extract(
        tmp_path / "run", f"npz:{probe_file}", tmp_path / "a.h5", model=f"{path}:Net", normalize="none",
        layers=["seen"], channels=None, batch_size=100, image_size=32, device="cpu",
    )  # fmt: skip
    with posthoc.open_activations(output) as file:
        for epoch, (means, loss) in enumerate(expected):
            torch.testing.assert_close(torch.from_numpy(file.read("mean", epoch)), means)
            assert file.loss[epoch] == pytest.approx(loss, rel=1e-5)


def test_lazy_layers_take_what_is_theirs_to_take_from_the_shapes(tmp_path):
    path = written(tmp_path, "nets.py", "self.conv = nn.LazyConv2d(8, 3, groups=2); self.head = nn.LazyLinear(10)", "x")
    shapes = {"conv.weight": (8, 3, 3, 3), "conv.bias": (8,), "head.weight": (10, 7), "head.bias": (10,)}
    module = resolve_model(Header(None, None, shapes), f"{path}:Net").module
    assert (module.conv.in_channels, module.head.in_features) == (6, 7)
    assert (type(module.conv), type(module.head), lazy_layers(module)) == (nn.Conv2d, nn.Linear, [])
    for name, shape, message in (
        ("head.weight", (5, 7), r"head\.weight \[5, 7\] instead of \[10, 7\]; 3 of its 4"),
        ("head.weight", (), r"head\.weight \[\] instead of \[10, 0\]"),
        ("conv.weight", (8, 3, 5, 5), r"conv\.weight \[8, 3, 5, 5\] instead of \[8, 3, 3, 3\]"),
        ("conv.bias", (9, 1), r"conv\.bias \[9, 1\] instead of \[8\]"),
    ):
        with pytest.raises(PosthocError, match=message):
            resolve_model(Header(None, None, shapes | {name: shape}), f"{path}:Net")
    del shapes["head.weight"]
    with pytest.raises(PosthocError, match=r"missing: head\.weight; 3 of its 4 tensors agree"):
        resolve_model(Header(None, None, shapes), f"{path}:Net")


def test_of_a_tied_pair_a_file_may_hold_one(tmp_path):
    """As safetensors leaves one out, which changes what all names begin with."""
    body = "self.body = nn.ModuleDict({'a': nn.Linear(4, 4), 'b': nn.Linear(4, 4)}); self.head = nn.Linear(4, 4, bias=False)\n"
    path = written(tmp_path, "nets.py", body + "self.head.weight = self.body['a'].weight", "x")
    shapes = {
        f"body.{part}.{kind}": (4, 4) if kind == "weight" else (4,) for part in "ab" for kind in ("weight", "bias")
    }
    for held in (shapes, shapes | {"head.weight": (4, 4)}):
        model = resolve_model(Header(None, None, held), f"{path}:Net")
        assert model.module.head.weight is model.module.body["a"].weight
        assert name_tensors(model.module, held) == {name: name for name in held}
    other = {name: shape for name, shape in shapes.items() if name != "body.a.weight"} | {"head.weight": (4, 4)}
    model = resolve_model(Header(None, None, other), f"{path}:Net")
    assert name_tensors(model.module, other) == {name: name for name in other}
    del shapes["body.a.weight"]
    with pytest.raises(PosthocError, match=r"missing: a\.weight; 3 of its 4 tensors agree"):
        resolve_model(Header(None, None, shapes), f"{path}:Net")


@pytest.mark.parametrize("held", ["embed", "head"])
def test_which_of_a_tied_pair_was_saved_does_not_matter(tmp_path, held):
    """safetensors' `save_model` keeps the name that comes first in the alphabet."""
    body = (
        "self.head = nn.Linear(4, 9, bias=False); self.embed = nn.Embedding(9, 4); self.head.weight = self.embed.weight"
    )
    path = written(tmp_path, "nets.py", body, "self.head(self.embed(x))")
    torch.manual_seed(0)
    weights = {f"{held}.weight": torch.randn(9, 4)}
    names = {}
    exec(path.read_text(), names)
    network = names["Net"]()
    network.load_state_dict(weights, strict=False)
    for epoch in range(2):
        (tmp_path / "run").mkdir(exist_ok=True)
        save_file(weights, tmp_path / "run" / f"epoch-{epoch}.safetensors")
    ids = torch.arange(60).reshape(20, 3) % 9
    np.savez(tmp_path / "ids.npz", x=ids.numpy())
    output = posthoc.extract(
        tmp_path / "run",
        f"npz:{tmp_path}/ids.npz",
        tmp_path / "a.h5",
        model=f"{path}:Net",
        layers=["head"],
        channels=None,
    )
    with posthoc.open_activations(output) as file:
        np.testing.assert_allclose(file.read("mean", 0), network(ids).mean(1).T.detach().numpy(), atol=1e-6)


PARTS = """
class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(16, 8), nn.Linear(8, 4)

class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 16)
"""
WHOLE = """
class Whole(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = Encoder(), Decoder()

class Alike(Whole):
    pass

def never(width=0):
    if not width:
        raise SystemExit("called for nothing")
    return width
"""


@pytest.mark.parametrize("form", ["state dict", "DataParallel", "in a trainer's dictionary", "whole module"])
def test_one_of_two_networks_side_by_side(form, tmp_path):
    """Whichever was declared first; two that fit alike are asked about, by the key that chooses one."""
    path = tmp_path / "parts.py"
    path.write_text(HEAD + PARTS)

    def network(*widths):
        return nn.ModuleDict({name: nn.Linear(*widths[k : k + 2]) for k, name in enumerate(("first", "second"))})

    def saved(parts):
        both = nn.ModuleDict(parts)
        if form == "whole module":
            torch.save(both, tmp_path / "1.pt")
        elif form == "DataParallel":
            torch.save(nn.DataParallel(both).state_dict(), tmp_path / "1.pt")
        else:
            state = both.state_dict()
            torch.save(state if form == "state dict" else {"epoch": 3, "model": state}, tmp_path / "1.pt")
        return read_header(tmp_path / "1.pt")

    encoder, decoder = network(16, 8, 4), network(4, 8, 16)
    for parts in ({"decoder": decoder, "encoder": encoder}, {"encoder": encoder, "decoder": decoder}):
        header = saved(parts)
        for said, other in (("Encoder", "decoder"), ("Decoder", "encoder")):
            model = resolve_model(header, f"{path}:{said}")
            assert {name.removeprefix("module.").split(".")[0] for name in model.left_out} == {other}
            assert f"{other}.first.weight and 3 more, which are no part of it" in model.title
        assert resolve_model(header, str(path)).title.startswith(
            "parts.py:Encoder (given; as would Decoder of that file; "
        )
    path.write_text(HEAD + PARTS + WHOLE)
    for name, arch, note in (("Whole", None, "as would Alike of that file"), ("Alike", "Alike", None)):
        model = resolve_model(replace(saved({"encoder": encoder, "decoder": decoder}), arch=arch), str(path))
        assert (model.name, model.note, model.left_out) == (f"parts.py:{name}", note, ())
    twins = saved({"target": network(16, 8, 4), "online": encoder})
    prefix = "module." if form == "DataParallel" else ""
    with pytest.raises(PosthocError, match=rf"choose one with --weights-key {prefix}target or {prefix}online\.$"):
        resolve_model(twins, f"{path}:Encoder")
    chosen = Pick(f"{prefix}online")
    model = resolve_model(read_header(tmp_path / "1.pt", chosen), f"{path}:Encoder")
    weights = read_weights(tmp_path / "1.pt", chosen)
    names = name_tensors(model.module, {name: tuple(tensor.shape) for name, tensor in weights.items()})
    model.module.load_state_dict({name: weights[theirs] for name, theirs in names.items()})
    assert torch.equal(model.module.second.weight, encoder["second"].weight)


def test_a_misfit_is_of_the_reading_that_matches_most(tmp_path):
    """Not of a fragment from which little differs because there is little of it; and no architecture that is not near."""
    path = tmp_path / "parts.py"
    path.write_text(HEAD + PARTS)
    shapes = {f"vit.layer.{k}.weight": (4, 4) for k in range(40)} | {
        "vit.first.weight": (8, 16),
        "vit.first.bias": (8,),
    }
    shapes |= {"classifier.weight": (10, 4), "classifier.bias": (10,)}
    with pytest.raises(PosthocError) as caught:
        resolve_model(Header(None, None, shapes), f"{path}:Encoder")
    assert str(caught.value) == (
        "The checkpoints do not fit parts.py:Encoder: missing: second.weight, second.bias; unexpected: layer.0.weight, "
        "layer.1.weight, layer.2.weight, ... (40 in all); 2 of its 4 tensors agree."
    )
    with pytest.raises(
        PosthocError, match=r"tried: Encoder, Decoder\); from Encoder they differ in .*; 2 of its 4 tensors agree\.$"
    ):
        resolve_model(Header(None, None, shapes), str(path))
    with pytest.raises(UsageError, match=r"resnet18 cannot be built for these weights \(TypeError: .*width"):
        resolve_model(Header(None, None, shapes), "torchvision:resnet18", arguments={"width": 3})
    for name in (
        "timm:hf-hub:a/b",
        "timm:local-dir:.",
        "torchvision:parts.py",
        "torchvision:parts",
        "resnet18 ",
    ):
        with pytest.raises(UsageError, match="Unknown model"):
            resolve_model(Header(None, None, shapes), name)


# Of each: a layer whose code takes part in loading, what is said of it, and the layer that the checkpoints were saved from.
LOADERS = {
    "merged for evaluation": (
        """
class Layer(nn.Linear):
    def __init__(self):
        super().__init__(8, 4); self.a = nn.Parameter(torch.randn(2, 8)); self.b = nn.Parameter(torch.randn(4, 2))
        self.merged = False
    def train(self, mode=True):
        super().train(mode)
        if self.merged == mode:
            self.weight.data += (-1 if mode else 1) * self.b @ self.a; self.merged = not mode
        return self
    def forward(self, x):
        y = super().forward(x)
        return y if self.merged else y + x @ self.a.T @ self.b.T
""",
        "Layer.train",
        "Layer()",
    ),
    "kept by a hook": (
        """
class Layer(nn.Linear):
    def __init__(self):
        super().__init__(8, 4); self.register_load_state_dict_post_hook(lambda module, keys: module.refresh()); self.refresh()
    def refresh(self):
        self.unit = F.normalize(self.weight.detach(), dim=1)
    def forward(self, x):
        return F.linear(x, self.unit, self.bias)
""",
        "a hook of Layer",
        "Layer()",
    ),
    "saved transposed": (
        """
class Layer(nn.Linear):
    def __init__(self):
        super().__init__(8, 8)
    def forward(self, x): return super().forward(x)[:, :4]
    def _load_from_state_dict(self, state, prefix, *rest):
        state[f'{prefix}weight'] = state[f'{prefix}weight'].t(); super()._load_from_state_dict(state, prefix, *rest)
""",
        "Layer._load_from_state_dict",
        "Layer()",
    ),
    "older names": (
        """
class Layer(nn.Linear):
    def __init__(self):
        super().__init__(8, 4); self._register_load_state_dict_pre_hook(self.rename)
    def rename(self, state, prefix, *rest):
        for old, new in (('w', 'weight'), ('b', 'bias')):
            if prefix + old in state: state[prefix + new] = state.pop(prefix + old)
class Old(nn.Module):
    def __init__(self):
        super().__init__(); self.w = nn.Parameter(torch.randn(4, 8)); self.b = nn.Parameter(torch.randn(4))
""",
        "a hook of Layer",
        "Old()",
    ),
    "older weight_norm": (
        "def Layer(): return parametrizations.weight_norm(nn.Linear(8, 4))\ndef Old(): return weight_norm(nn.Linear(8, 4))",
        None,
        "Old()",
    ),
}


def loaders(folder, code, saved):
    """A file with the class `Net`, the class, its checkpoints, and inputs with labels."""
    text = HEAD + code + (
        "\nclass Net(nn.Module):\n    def __init__(self, layer=None):\n        super().__init__()\n"
        "        self.first = nn.Linear(8, 8); self.layer = layer or Layer()\n"
        "    def forward(self, x):\n        return self.layer(self.first(x).relu())\n"
    )  # fmt: skip
    (folder / "nets.py").write_text(text)
    names = {}
    exec(text, names)
    (folder / "run").mkdir()
    states = []
    for epoch in range(3):
        torch.manual_seed(epoch)
        states.append(names["Net"](eval(saved, names)).state_dict())
        torch.save(states[-1], folder / "run" / f"epoch_{epoch + 1}.pt")
    random = np.random.default_rng(0)
    x, labels = random.standard_normal((96, 8)).astype(np.float32), random.integers(0, 4, 96)
    np.savez(folder / "probe.npz", x=x, y=labels)
    return names["Net"], states, torch.from_numpy(x), torch.from_numpy(labels)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("kind", LOADERS)
def test_what_its_own_code_does_when_it_is_loaded_is_done(kind, tmp_path):
    code, words, saved = LOADERS[kind]
    net, states, x, labels = loaders(tmp_path, code, saved)
    result = CliRunner().invoke(main, [
        "extract", f"{tmp_path / 'run'}", "--model", f"{tmp_path / 'nets.py'}", "--probe", f"npz:{tmp_path / 'probe.npz'}",
        "-o", f"{tmp_path / 'a.h5'}", "--layers", "all", "--device", "cpu",
    ])  # fmt: skip
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    assert ("through its load_state_dict() and eval(), for it has" in said) == (words is not None)
    assert words is None or words in said
    with posthoc.open_activations(tmp_path / "a.h5") as file:
        for row, state in enumerate(states):
            network = net()
            network.load_state_dict(state)
            with torch.no_grad():
                scores = network.eval()(x)
            assert file.loss[row] == pytest.approx(F.cross_entropy(scores, labels).item(), rel=1e-6)
        assert len(set(file.loss)) == 3
    if kind == "merged for evaluation":  # as they are in the file
        with h5py.File(tmp_path / "a.h5") as file:
            place = [name.decode() for name in file["weights/tensor"][:]].index("layer.weight")
            norms = [state["layer.weight"].norm().item() for state in states]
            assert file["weights/norm"][:, place] == pytest.approx(norms, rel=1e-5)


# Of each: what a class adds to `Net`, and how the names in its checkpoints begin.
ROOTS = {
    "takes the rest for none of its own": (
        """
    def load_state_dict(self, state, strict=True):
        return super().load_state_dict({k[6:]: v for k, v in state.items() if k.startswith('model.')}, strict=False)
""",
        "model.",
    ),
    "strips what begins its names": (
        """
    def load_state_dict(self, state, strict=True):
        return super().load_state_dict({k[6:]: v for k, v in state.items()}, strict)
""",
        "model.",
    ),
    "takes a whole checkpoint": (
        """
    def load_state_dict(self, state, strict=True):
        return super().load_state_dict(state['state_dict'], strict)
""",
        "",
    ),
    "saves a part alone, and freezes it": (
        """
    def __init__(self):
        super().__init__(); nn.init.eye_(self.first.weight); nn.init.zeros_(self.first.bias)
    def state_dict(self, *given, **options):
        return {k: v for k, v in super().state_dict(*given, **options).items() if not k.startswith('first.')}
    def train(self, mode=True):
        super().train(mode); self.first.eval(); return self
""",
        "",
    ),
    "keeps something when it is loaded": (
        """
    kept = 0.0
    def load_state_dict(self, state, strict=True):
        done = super().load_state_dict(state, strict); self.kept = self.layer.bias.detach().clone(); return done
    def forward(self, x):
        return super().forward(x) + self.kept
""",
        "",
    ),
}


@pytest.mark.parametrize("kind", ROOTS)
def test_a_network_that_renames_what_it_is_loaded_from_has_its_weights(kind, tmp_path):
    code, begins = ROOTS[kind]
    net, states, x, labels = loaders(tmp_path, "def Layer(): return nn.Linear(8, 4)", "Layer()")
    with (tmp_path / "nets.py").open("a") as file:
        file.write(f"\nclass Root(Net):{code}")
    for epoch, state in enumerate(states, 1):
        if kind.startswith("saves a part"):
            state["first.weight"], state["first.bias"] = torch.eye(8), torch.zeros(8)
        kept = {
            name: tensor
            for name, tensor in state.items()
            if not (kind.startswith("saves a part") and name.startswith("first."))
        }
        torch.save({begins + name: tensor for name, tensor in kept.items()}, tmp_path / "run" / f"epoch_{epoch}.pt")
    result = CliRunner().invoke(main, [
        "extract", f"{tmp_path / 'run'}", "--model", f"{tmp_path / 'nets.py'}:Root", "--probe",
        f"npz:{tmp_path / 'probe.npz'}", "-o", f"{tmp_path / 'a.h5'}", "--layers", "all", "--device", "cpu",
    ])  # fmt: skip
    assert result.exit_code == 0, result.output
    with posthoc.open_activations(tmp_path / "a.h5") as file, torch.no_grad():
        for row, state in enumerate(states):
            network = net()
            network.load_state_dict(state)
            scores = network(x) + (network.layer.bias if kind.startswith("keeps") else 0)
            assert file.loss[row] == pytest.approx(F.cross_entropy(scores, labels).item(), rel=1e-6)


def test_expanded_buffers_and_a_module_of_several_widths_are_as_in_pytorch(tmp_path):
    code = """
MASK = torch.ones(1, 4)
class Layer(nn.Module):
    def __init__(self):
        super().__init__(); self.o = nn.Linear(8, 6); self.p = nn.Linear(6, 4); self.act = nn.ReLU()
        self.register_buffer('mask', MASK.expand(3, 4), persistent=False); self.v = torch.arange(4.0)
        self.register_buffer('places', self.v.expand(3, -1), persistent=False)
    def forward(self, x):
        return self.act(self.p(self.act(self.o(x)))) * self.mask[0] + self.places[1]
"""
    net, states, x, labels = loaders(tmp_path, code, "Layer()")
    result = CliRunner().invoke(main, [
        "extract", f"{tmp_path / 'run'}", "--model", f"{tmp_path / 'nets.py'}", "--probe", f"npz:{tmp_path / 'probe.npz'}",
        "-o", f"{tmp_path / 'a.h5'}", "--layers", "all", "--device", "cpu",
    ])  # fmt: skip
    assert result.exit_code == 0, result.output
    with posthoc.open_activations(tmp_path / "a.h5") as file, torch.no_grad():
        assert "layer.act" in file.layers
        for row, state in enumerate(states):
            network = net()
            network.load_state_dict(state)
            assert file.loss[row] == pytest.approx(F.cross_entropy(network(x), labels).item(), rel=1e-6)


def test_a_checkpoint_that_its_own_code_does_not_take_is_skipped(tmp_path):
    code = """
class Layer(nn.Linear):
    def __init__(self):
        super().__init__(8, 4)
    def load_state_dict(self, *given, **options): raise NotImplementedError
    def eval(self): return super().eval()
    def train(self, mode=True):
        if not mode and self.bias[0] > 5: raise ValueError('too large')
        return super().train(mode)
"""
    _, states, *_ = loaders(tmp_path, code, "Layer()")
    states[1]["layer.bias"][0] = 9
    torch.save(states[1], tmp_path / "run" / "epoch_2.pt")
    result = CliRunner().invoke(main, [
        "extract", f"{tmp_path / 'run'}", "--model", f"{tmp_path / 'nets.py'}", "--probe", f"npz:{tmp_path / 'probe.npz'}",
        "-o", f"{tmp_path / 'a.h5'}", "--layers", "all", "--device", "cpu", "--on-error", "skip",
    ])  # fmt: skip
    assert result.exit_code == 3, result.output
    said = " ".join(result.output.split())
    assert "does not take the weights in layer (Layer, line" in said
    assert "too large); mend its load_state_dict, train or eval." in said
    with posthoc.open_activations(tmp_path / "a.h5") as file:
        assert list(file.epochs) == [1, 3]


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
def test_a_network_of_another_precision_is_brought_to_single(dtype, tmp_path):
    code = f"def Layer(): return nn.Linear(8, 4)\ndef make(): return Net().to(torch.{dtype})\n"
    net, states, x, labels = loaders(tmp_path, code, "Layer()")
    words = [
        "extract", f"{tmp_path / 'run'}", "--model", f"{tmp_path / 'nets.py'}:make", "--probe", f"npz:{tmp_path / 'probe.npz'}",
        "-o", f"{tmp_path / 'a.h5'}", "--layers", "all", "--device", "cpu", "--untrained", "1",
    ]  # fmt: skip
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    assert f"built in {dtype}, brought to single precision" in " ".join(result.output.split())
    with posthoc.open_activations(tmp_path / "a.h5") as file:
        for row, state in enumerate(states):
            network = net()
            network.load_state_dict(state)
            with torch.no_grad():
                assert file.loss[row] == pytest.approx(F.cross_entropy(network(x), labels).item(), rel=1e-6)
    text = (tmp_path / "nets.py").read_text()
    cast = "return self.layer(self.first(x.to(self.first.weight.dtype)).relu())"
    (tmp_path / "nets.py").write_text(text.replace("return self.layer(self.first(x).relu())", cast))
    result = CliRunner().invoke(main, [*words, "--force"])
    assert result.exit_code == 0, result.output
    assert "brought to single precision" not in " ".join(result.output.split())
    with posthoc.open_activations(tmp_path / "a.h5") as file, torch.no_grad():
        network = net()
        network.load_state_dict(states[0])
        scores = network.to(getattr(torch, dtype))(x.to(getattr(torch, dtype)))
        assert file.loss[0] == pytest.approx(F.cross_entropy(scores.float(), labels).item(), rel=1e-6)
