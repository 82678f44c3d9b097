"""Networks that are no image classifiers, from files of arrays, tables, data sets and functions: as a plain loop has them."""

import textwrap

import numpy as np
import pytest
import torch
import torchvision
from click.testing import CliRunner
from torch.nn import functional as F

import posthoc
from posthoc.cli import main
from posthoc.errors import PosthocError, UsageError
from posthoc.parts import merge
from posthoc.replay.planning import plan_extraction
from posthoc.replay.run import run_extraction
from posthoc.shards import Shard
from posthoc.streams import batch_seed

RANDOM = np.random.default_rng(0)
N = 24
NETS = """
import torch
from torch import nn

class Cnn(nn.Module):
    def __init__(self):
        super().__init__()
        self.seen = nn.Conv2d(1, 6, 3); self.head = nn.Linear(6, 10)
    def forward(self, x):
        return self.head(self.seen(x).relu().mean((2, 3)))

class Gru(nn.Module):
    def __init__(self):
        super().__init__()
        self.seen = nn.GRU(4, 12, batch_first=True); self.head = nn.Linear(12, 1)
    def forward(self, x):
        return self.head(self.seen(x)[0][:, -1])

class Conv1(nn.Module):
    def __init__(self):
        super().__init__()
        self.seen = nn.Conv1d(4, 6, 3); self.head = nn.Linear(6, 3)
    def forward(self, x):
        return self.head(self.seen(x).mean(2))

class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.seen = nn.Linear(7, 9); self.head = nn.Linear(9, 2)
    def forward(self, x):
        return self.head(self.seen(x).relu())

class One(nn.Module):
    def __init__(self):
        super().__init__()
        self.seen = nn.Linear(7, 9); self.head = nn.Linear(9, 1)
    def forward(self, x):
        return self.head(self.seen(x).relu())

class Sigmoid(One):
    def forward(self, x):
        return super().forward(x).sigmoid()

class Filter(nn.Module):
    def __init__(self):
        super().__init__()
        self.seen = nn.Conv2d(1, 4, 3, padding=1); self.head = nn.Conv2d(4, 1, 1)
    def forward(self, x):
        return self.head(self.seen(x).relu())

class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 8); self.seen = nn.Linear(8, 8); self.head = nn.Linear(8, 5)
    def forward(self, ids):
        return self.head(self.seen(self.embed(ids)).mean(1))

class OneHot(nn.Module):
    def __init__(self):
        super().__init__()
        self.seen = nn.Linear(27, 8); self.head = nn.Linear(8, 5)
    def forward(self, ids):
        return self.head(self.seen(nn.functional.one_hot(ids, 27).float()).mean(1))

class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 8); self.seen = nn.GRU(8, 8, batch_first=True); self.head = nn.Linear(8, 5)
    def forward(self, ids):
        return self.head(self.seen(self.embed(ids))[0])

class TaggerFirst(Tagger):
    def forward(self, ids):
        return super().forward(ids).transpose(1, 2)

class TaggerBeside(Tagger):
    def forward(self, ids):
        seen = self.seen(self.embed(ids))[0]
        return seen, self.head(seen)

class TaggerFirstBeside(Tagger):
    def forward(self, ids):
        seen = self.seen(self.embed(ids))[0]
        return seen, self.head(seen).transpose(1, 2)

class Fixed(Tagger):
    def __init__(self):
        super().__init__()
        self.place = nn.Parameter(torch.randn(5, 8))
    def forward(self, ids):
        return self.head(self.seen(self.embed(ids) + self.place)[0])

class FixedFirst(Fixed):
    def forward(self, ids):
        return super().forward(ids).transpose(1, 2)

class FixedScaled(Fixed):
    def forward(self, ids):
        return 2 * super().forward(ids)

class FixedConv(Fixed):
    def __init__(self):
        super().__init__()
        self.head = nn.Conv1d(8, 5, 1)
    def forward(self, ids):
        return self.head(self.seen(self.embed(ids) + self.place)[0].transpose(1, 2))

class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.inside = nn.Conv2d(1, 8, 3, padding=1); self.time = nn.Linear(1, 8)
        self.seen = nn.Conv2d(8, 8, 3, padding=1); self.out = nn.Conv2d(8, 1, 3, padding=1)
    def forward(self, x, t):
        return self.out(self.seen((self.inside(x) + self.time(t[:, None].float())[:, :, None, None]).relu()).relu())

class Siamese(nn.Module):
    def __init__(self):
        super().__init__()
        self.seen = nn.Conv2d(1, 6, 3); self.head = nn.Linear(6, 1)
    def forward(self, left, right):
        a, b = (self.seen(x).relu().mean((2, 3)) for x in (left, right))
        return self.head((a - b).abs())

class Generator(nn.Module):
    def __init__(self):
        super().__init__()
        self.main = nn.Sequential(nn.ConvTranspose2d(16, 8, 4), nn.BatchNorm2d(8), nn.ReLU(), nn.ConvTranspose2d(8, 3, 4, 2, 1), nn.Tanh())
    def forward(self, z):
        return self.main(z)

class Autoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.seen = nn.Linear(64, 8); self.decoder = nn.Linear(8, 64)
    def forward(self, x):
        return self.decoder(self.seen(x.flatten(1)).relu()).view_as(x)

class Vae(Autoencoder):
    def __init__(self):
        super().__init__()
        self.spread = nn.Linear(64, 8)
    def forward(self, x):
        mean, log = self.seen(x.flatten(1)), self.spread(x.flatten(1))
        z = mean + torch.randn_like(log) * (log / 2).exp()
        return self.decoder(z).view_as(x), mean, log

class Batched(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(30, 6); self.seen = nn.Linear(6, 8); self.age = nn.Linear(2, 8); self.head = nn.Linear(8, 3)
    def forward(self, batch):
        kept = batch["attention_mask"].unsqueeze(-1).float()
        text = (self.seen(self.embed(batch["input_ids"])) * kept).sum(1) / kept.sum(1)
        return {"loss": None, "logits": self.head((text + self.age(batch["x"])).relu())}

class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.seen = nn.Linear(6, 8); self.head = nn.Linear(8, 4)
    def forward(self, x, mask=None):
        kept = mask.unsqueeze(-1).to(x.dtype)
        return {"logits": self.head((self.seen(x) * kept).sum(1) / kept.sum(1))}
"""


@pytest.fixture(scope="module")
def nets(tmp_path_factory):
    """The networks' file, and one run of two checkpoints of each."""
    folder = tmp_path_factory.mktemp("nets")
    (folder / "nets.py").write_text(NETS)
    space = {"__name__": "nets"}
    exec(NETS, space)

    def of(name):
        made = []
        for epoch in range(2):
            torch.manual_seed(epoch)
            made.append(space[name]().eval())
            (folder / name).mkdir(exist_ok=True)
            torch.save(made[-1].state_dict(), folder / name / f"epoch_{epoch}.pt")
        return made, folder / name, f"{folder / 'nets.py'}:{name}"

    return of


def replayed(module, layer, *inputs):
    """What a network gives, and the mean of a layer's output over all but sample and channel [N, C]."""
    kept = []
    handle = module.get_submodule(layer).register_forward_hook(
        lambda m, i, o: kept.append(o[0] if isinstance(o, tuple) else o)
    )
    with torch.no_grad():
        output = module(*inputs)
    handle.remove()
    return output, kept[-1]


def r2(given, wanted):
    return 1 - ((given - wanted) ** 2).sum() / ((wanted - wanted.mean(0)) ** 2).sum()


IMAGES = RANDOM.random((N, 1, 28, 28), dtype="f4")
CASES = {
    "float images": ("Cnn", {"x": IMAGES, "y": np.arange(N) % 10}, "as they are", lambda x: x, (2, 3)),
    "channels last": (
        "Cnn", {"x_test": np.moveaxis(IMAGES, 1, -1), "y_test": np.arange(N) % 10}, "channels moved first",
        lambda x: np.moveaxis(x, -1, 1), (2, 3),
    ),
    "without channels": (
        "Cnn", {"x": IMAGES[:, 0].astype("f8"), "y": np.arange(N)[:, None] % 10}, "with an axis of one channel",
        lambda x: x[:, None], (2, 3),
    ),
    "time series": ("Gru", {"x": RANDOM.normal(size=(N, 20, 4)), "y": RANDOM.normal(size=N)}, "as they are", lambda x: x, (1,)),
    "time series to a convolution": (
        "Conv1", {"x": RANDOM.normal(size=(N, 20, 4)), "y": np.arange(N) % 3}, "channels moved first",
        lambda x: np.moveaxis(x, -1, 1), (2,),
    ),
    "table": ("Mlp", {"x": RANDOM.normal(size=(N, 7)), "y": RANDOM.normal(size=(N, 2))}, "as they are", lambda x: x, ()),
    "whole numbers": ("Mlp", {"x": RANDOM.integers(0, 9, (N, 7))}, "in single precision", lambda x: x.astype("f4"), ()),
    "whole numbers without an embedding": ("OneHot", {"x": RANDOM.integers(0, 27, (N, 9)).astype("i4"), "y": np.arange(N) % 5},
                                           "as they are", lambda x: x.astype("i8"), (1,)),
    "tokens": ("Tokens", {"input_ids": RANDOM.integers(0, 50, (N, 9)).astype("u2"), "labels": np.arange(N) % 5}, "as they are",
               lambda x: x.astype("i8"), (1,)),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_arrays_of_any_type_and_shape(case, nets, tmp_path):
    name, arrays, words, seen, axes = CASES[case]
    np.savez(tmp_path / "a.npz", **arrays)
    modules, run, model = nets(name)
    path = posthoc.extract(
        run, f"npz:{tmp_path / 'a.npz'}", tmp_path / "a.h5", model=model, layers=["seen"], channels=None
    )
    x, *targets = arrays.values()
    x = torch.from_numpy(np.ascontiguousarray(seen(x)))
    x = x.float() if x.is_floating_point() else x
    with posthoc.open_activations(path) as file:
        assert file.recording.provenance.preparation == words
        assert file.recording.provenance.samples == "samples"
        for e, module in enumerate(modules):
            given, kept = replayed(module, "seen", x)
            np.testing.assert_allclose(
                file.read("mean", e), kept.mean(axes).T if axes else kept.T, rtol=1e-4, atol=1e-6
            )
            if not targets:
                assert not file.labelled
                assert np.isnan([file.loss[e], file.accuracy[e]]).all()
                continue
            y = torch.from_numpy(targets[0])
            if y.is_floating_point():
                error = (given.reshape(y.shape).double() - y) ** 2
                assert file.loss[e] == pytest.approx(error.mean().item(), rel=1e-5)
                assert file.scores["R2"][e] == pytest.approx(r2(given.reshape(y.shape), y).item(), rel=1e-5)
                np.testing.assert_allclose(file.behaviour("loss", e), error.reshape(N, -1).mean(1), rtol=1e-4)
                assert np.isnan(file.accuracy[e])
                assert file.recording.provenance.loss == "mean squared error"
            else:
                y = y.reshape(N)
                assert file.loss[e] == pytest.approx(F.cross_entropy(given, y).item(), rel=1e-5)
                assert file.accuracy[e] == (given.argmax(1) == y).double().mean().item()
                np.testing.assert_array_equal(file.labels, y)


def test_several_inputs_by_name_or_by_place(nets, tmp_path):
    x, t = RANDOM.normal(size=(N, 1, 8, 8)).astype("f4"), RANDOM.integers(0, 100, N)
    modules, run, model = nets("UNet")
    np.savez(tmp_path / "a.npz", t=t, x=x, y=x)
    path = posthoc.extract(
        run, f"npz:{tmp_path / 'a.npz'}", tmp_path / "a.h5", model=model, layers=["seen"], channels=None
    )
    with posthoc.open_activations(path) as file:
        for e, module in enumerate(modules):
            given, kept = replayed(module, "seen", torch.from_numpy(x), torch.from_numpy(t))
            np.testing.assert_allclose(file.read("mean", e), kept.mean((2, 3)).T, rtol=1e-4, atol=1e-6)
            assert file.loss[e] == pytest.approx(((given - torch.from_numpy(x)) ** 2).mean().item(), rel=1e-5)
            assert file.scores["R2"][e] == pytest.approx(r2(given, torch.from_numpy(x)).item(), rel=1e-5)
    modules, run, model = nets("Siamese")
    first, second, y = RANDOM.random((N, 1, 8, 8), "f4"), RANDOM.random((N, 1, 8, 8), "f4"), np.arange(N) % 2
    np.savez(tmp_path / "b.npz", a=first, b=second, y=y)
    path = posthoc.extract(run, f"npz:{tmp_path / 'b.npz'}", tmp_path / "b.h5", model=model, layers=["seen"])
    with posthoc.open_activations(path) as file:
        assert file.recording.identity.output.score == "binary"
        for e, module in enumerate(modules):
            given, last = replayed(module, "seen", torch.from_numpy(first), torch.from_numpy(second))
            np.testing.assert_allclose(file.read("mean", e), last.mean((2, 3)).T, rtol=1e-4, atol=1e-6)
            expected = F.binary_cross_entropy_with_logits(given[:, 0], torch.from_numpy(y).float()).item()
            assert file.loss[e] == pytest.approx(expected, rel=1e-5)
            assert file.accuracy[e] == ((given[:, 0] > 0).long() == torch.from_numpy(y)).double().mean().item()
    notes = plan_extraction(run, f"npz:{tmp_path / 'b.npz'}", model=model, layers=["seen"]).notes
    assert [text for _, text in notes if "several times" in text] == [
        "of what is called several times in a forward pass the last call is recorded: seen (2)"
    ]
    np.savez(tmp_path / "c.npz", a=first, b=second, c=second, y=y)
    with pytest.raises(PosthocError, match=r"takes left, right; the probe npz:c\.npz holds a, b, c"):
        plan_extraction(run, f"npz:{tmp_path / 'c.npz'}", model=model)


def test_a_damaged_header_of_ids_is_refused_in_a_sentence(nets, tmp_path):
    """Which NumPy reads as Python's source, whose tokenizer has errors of its own."""
    np.save(tmp_path / "ids.npy", np.zeros((4, 9), np.int64))
    whole = (tmp_path / "ids.npy").read_bytes()
    (tmp_path / "ids.npy").write_bytes(whole.replace(b"(4, 9), }", b"((((9), }"))
    with pytest.raises(PosthocError, match=r"ids\.npy is damaged or cut short \(its header cannot be read"):
        plan_extraction(nets("Tokens")[1], f"tokens:{tmp_path / 'ids.npy'}", model=nets("Tokens")[2])


def test_a_mask_beside_the_input_and_a_dictionary_as_output(nets, tmp_path):
    x, mask = RANDOM.normal(size=(N, 5, 6)).astype("f4"), RANDOM.random((N, 5)) < 0.7
    mask[:, 0] = True
    modules, run, model = nets("Masked")
    np.savez(tmp_path / "a.npz", mask=mask, x=x, y=np.arange(N) % 4, names=np.array(["a", "b"]))
    path = posthoc.extract(run, f"npz:{tmp_path / 'a.npz'}", tmp_path / "a.h5", model=model, layers=["seen"])
    with posthoc.open_activations(path) as file, torch.no_grad():
        for e, module in enumerate(modules):
            logits = module(torch.from_numpy(x), torch.from_numpy(mask))["logits"]
            np.testing.assert_array_equal(file.behaviour("logits", e), logits.half())


def test_a_forward_pass_that_takes_one_dictionary(nets, tmp_path):
    """As batches of Hugging Face are; first without the arrays that it might not take, which fails, then of all."""
    ids, mask, x = RANDOM.integers(0, 30, (N, 5)), RANDOM.random((N, 5)) < 0.7, RANDOM.normal(size=(N, 2)).astype("f4")
    mask[:, 0] = True
    modules, run, model = nets("Batched")
    np.savez(tmp_path / "a.npz", x=x, input_ids=ids, attention_mask=mask.astype(int), y=np.arange(N) % 3)
    probe = f"npz:{tmp_path / 'a.npz'}"
    assert dict(plan_extraction(run, probe, model=model).notes)["inputs"] == (
        "batch is one dictionary of x, input_ids, attention_mask"
    )
    result = CliRunner().invoke(main, ["inspect", str(run), "--layers", "--probe", probe, "--model", model])
    assert "a.npz (x float32 2, input_ids int64 5, attention_mask int64 5; batch is one dictionary of" in result.output
    path = posthoc.extract(run, probe, tmp_path / "a.h5", model=model, layers=["seen"], channels=None)
    batch = {"x": torch.from_numpy(x), "input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
    with posthoc.open_activations(path) as file:
        for e, module in enumerate(modules):
            given, kept = replayed(module, "seen", batch)
            real = np.stack([row[places].mean(0) for row, places in zip(kept.numpy(), mask, strict=True)])
            np.testing.assert_allclose(file.read("mean", e), real.T, rtol=1e-5, atol=1e-6)
            np.testing.assert_array_equal(file.behaviour("logits", e), given["logits"].half())


def test_a_generator_from_latents_has_neither_labels_nor_scores(nets, tmp_path):
    z = RANDOM.normal(size=(N, 16, 1, 1)).astype("f4")
    np.save(tmp_path / "z.npy", z)
    modules, run, model = nets("Generator")
    plan = plan_extraction(run, f"npy:{tmp_path / 'z.npy'}", model=model)
    assert dict(plan.notes)["score"] == "none: the probe has no targets"
    path = posthoc.extract(run, f"npy:{tmp_path / 'z.npy'}", tmp_path / "a.h5", model=model, layers=["main.0"])
    with posthoc.open_activations(path) as file:
        assert (file.labelled, file.behaviours, file.scores) == (False, (), {})
        for e, module in enumerate(modules):
            _, kept = replayed(module, "main.0", torch.from_numpy(z))
            np.testing.assert_allclose(file.read("mean", e), kept.mean((2, 3)).T, rtol=1e-4, atol=1e-6)


def test_reconstruction_is_scored_where_it_is_asked_for(nets, tmp_path):
    x = RANDOM.random((N, 8, 8), "f4")
    np.savez(tmp_path / "a.npz", x=x)
    modules, run, model = nets("Autoencoder")
    probe = f"npz:{tmp_path / 'a.npz'}"
    plan = plan_extraction(run, probe, model=model)
    assert "--score reconstruction compares them" in dict(plan.notes)["score"]
    path = posthoc.extract(run, probe, tmp_path / "a.h5", model=model, layers=["seen"], score="reconstruction")
    with posthoc.open_activations(path) as file:
        assert file.recording.provenance.loss == "reconstruction error"
        for e, module in enumerate(modules):
            given, _ = replayed(module, "seen", torch.from_numpy(x))
            assert file.loss[e] == pytest.approx(((given - torch.from_numpy(x)) ** 2).mean().item(), rel=1e-5)
    with pytest.raises(UsageError, match="--score classes needs a whole number for each sample"):
        plan_extraction(run, probe, model=model, score="classes")


@pytest.mark.parametrize(
    ("name", "length", "last"),
    [
        ("Tagger", 9, True),
        ("TaggerFirst", 9, False),
        ("Tagger", 5, True),
        ("TaggerFirst", 5, False),
        ("TaggerBeside", 9, True),
        ("TaggerBeside", 5, True),
        ("TaggerFirstBeside", 9, False),
        ("TaggerFirstBeside", 5, False),
        ("Fixed", 5, True),
        ("FixedFirst", 5, False),
        ("FixedConv", 5, False),
    ],
)
def test_classes_of_tokens_are_on_the_axis_that_is_none_of_places(name, length, last, nets, tmp_path):
    """Also where there are as many of one as of the other, beside features, and where the network takes no shorter rows."""
    random = np.random.default_rng(length)
    ids, tags = random.integers(0, 50, (N, length)), random.integers(0, 5, (N, length))
    tags[:, -1] = -100
    tags[0, 0] = 4
    np.savez(tmp_path / "a.npz", input_ids=ids, labels=tags)
    modules, run, model = nets(name)
    path = posthoc.extract(run, f"npz:{tmp_path / 'a.npz'}", tmp_path / "a.h5", model=model, layers=["seen"])
    with posthoc.open_activations(path) as file:
        assert file.recording.identity.output.score == "segmentation"
        for e, module in enumerate(modules):
            given = replayed(module, "seen", torch.from_numpy(ids))[0]
            given = given[1] if isinstance(given, tuple) else given
            given = given.transpose(1, 2) if last else given
            y = torch.from_numpy(tags)
            assert file.loss[e] == pytest.approx(F.cross_entropy(given, y).item(), rel=1e-5)
            right = (given.argmax(1) == y)[y >= 0].double().mean().item()
            assert file.scores["tag_accuracy"][e] == pytest.approx(right)


def test_scores_of_tokens_whose_axes_nothing_shows_are_left_out_and_said(nets, tmp_path):
    random = np.random.default_rng(0)
    np.savez(tmp_path / "a.npz", input_ids=random.integers(0, 50, (N, 5)), labels=random.integers(0, 5, (N, 5)))
    _, run, model = nets("FixedScaled")
    notes = dict(plan_extraction(run, f"npz:{tmp_path / 'a.npz'}", model=model).notes)
    assert notes["score"] == (
        "none: the output of 8 x 5 x 5 may have its 5 classes first or last, and neither shorter samples nor the last layer "
        "show which; give samples of another length than 5"
    )


def test_tokens_as_their_own_targets_are_no_tags(nets, tmp_path):
    """As causal models of Transformers take them, which move them by one themselves."""
    ids = np.random.default_rng(0).integers(0, 5, (N, 9))
    labels = np.where(np.arange(9) < 7, ids, -100)
    np.savez(tmp_path / "a.npz", input_ids=ids, labels=labels)
    _, run, model = nets("Tagger")
    probe = f"npz:{tmp_path / 'a.npz'}"
    assert "--score tokens scores what it says" in dict(plan_extraction(run, probe, model=model).notes)["score"]
    assert plan_extraction(run, probe, model=model, score="segmentation").identity.output.score == "segmentation"


ZEROS_AND_ONES = np.random.default_rng(5)
VECTORS, MAPS = ZEROS_AND_ONES.normal(size=(N, 7)).astype("f4"), ZEROS_AND_ONES.normal(size=(N, 1, 6, 6)).astype("f4")
BINARY = {
    "real numbers": ("One", VECTORS, (N,), "f4"),
    "real numbers in a column": ("One", VECTORS, (N, 1), "f8"),
    "several real labels": ("Mlp", VECTORS, (N, 2), "f4"),
    "several whole labels": ("Mlp", VECTORS, (N, 2), "i8"),
    "a real mask": ("Filter", MAPS, (N, 1, 6, 6), "f4"),
    "a real mask without channels": ("Filter", MAPS, (N, 6, 6), "f4"),
}


@pytest.mark.parametrize("case", BINARY)
def test_zeros_and_ones_are_labels_whatever_their_type(case, nets, tmp_path):
    """For BCEWithLogitsLoss takes real ones alone."""
    name, x, shape, kind = BINARY[case]
    y = ZEROS_AND_ONES.integers(0, 2, shape)
    np.savez(tmp_path / "a.npz", x=x, y=y.astype(kind))
    modules, run, model = nets(name)
    probe = f"npz:{tmp_path / 'a.npz'}"
    notes = plan_extraction(run, probe, model=model).notes
    assert "the outputs are taken as logits; --score regression" in dict(notes)["score"]
    path = posthoc.extract(run, probe, tmp_path / "a.h5", model=model, layers=["seen"])
    other = posthoc.extract(run, probe, tmp_path / "b.h5", model=model, layers=["seen"], score="regression")
    with posthoc.open_activations(path) as file, posthoc.open_activations(other) as asked:
        one = y.size == N
        assert file.recording.identity.output.score == ("binary" if one else "multilabel")
        assert file.recording.provenance.loss == "binary cross-entropy"
        assert file.labelled == one
        if one:
            np.testing.assert_array_equal(file.labels, y.ravel())
        for e, module in enumerate(modules):
            given = replayed(module, "seen", torch.from_numpy(x))[0].reshape(shape)
            truth = torch.from_numpy(y).float()
            each = F.binary_cross_entropy_with_logits(given, truth, reduction="none").flatten(1 if y.ndim > 1 else 0)
            right = ((given > 0) == (truth > 0)).double()
            assert file.loss[e] == pytest.approx(each.mean().item(), rel=1e-5)
            assert (file.accuracy if one else file.scores["label_accuracy"])[e] == pytest.approx(right.mean().item())
            np.testing.assert_allclose(file.behaviour("loss", e), each.reshape(N, -1).mean(1), rtol=1e-4)
            if not one:
                np.testing.assert_allclose(file.behaviour("score", e), right.reshape(N, -1).mean(1), rtol=1e-5)
            assert asked.scores["R2"][e] == pytest.approx(r2(given, truth).item(), rel=1e-4)
            assert asked.loss[e] == pytest.approx(((given - truth) ** 2).mean().item(), rel=1e-5)


def test_outputs_that_look_like_probabilities_are_said_to_be_taken_as_logits(nets, tmp_path):
    np.savez(tmp_path / "a.npz", x=VECTORS, y=np.arange(N) % 2)
    probe = f"npz:{tmp_path / 'a.npz'}"
    for name, told in (("Sigmoid", True), ("One", False)):
        _, run, model = nets(name)
        notes = [text for _, text in plan_extraction(run, probe, model=model).notes]
        assert any("if they went through a sigmoid, give the network without it" in text for text in notes) == told


def test_real_targets_of_other_values_stay_numbers(nets, tmp_path):
    y = ZEROS_AND_ONES.integers(0, 2, N).astype("f4")
    y[3] = 0.5
    np.savez(tmp_path / "a.npz", x=VECTORS, y=y)
    _, run, model = nets("One")
    plan = plan_extraction(run, f"npz:{tmp_path / 'a.npz'}", model=model)
    assert plan.identity.output.score == "regression"
    assert plan.identity.probe.classes is None


def test_a_vae_that_samples_is_the_loop_that_seeds_each_batch_whole_and_in_shards(nets, tmp_path):
    x = torch.from_numpy(RANDOM.random((N, 8, 8), "f4"))
    np.save(tmp_path / "x.npy", x.numpy())
    modules, run, model = nets("Vae")
    probe, seed, size = f"npy:{tmp_path / 'x.npy'}", 5, 10
    options = {"model": model, "layers": ["seen", "decoder"], "score": "reconstruction", "seed": seed, "channels": None}
    options["batch_size"] = size
    plan = plan_extraction(run, probe, **options)
    assert "randn_like (line" in (drawn := dict(plan.notes)["random numbers"])
    assert drawn.endswith("set anew for every batch, so that a rerun gives the same")
    run_extraction(plan, tmp_path / "whole.h5")
    for k in (2, 1):
        run_extraction(plan_extraction(run, probe, **options), tmp_path / "parts.h5", shard=Shard(k, 2))
    merge(tmp_path / "parts.h5")
    with (
        posthoc.open_activations(tmp_path / "whole.h5") as file,
        posthoc.open_activations(tmp_path / "parts.h5") as other,
    ):
        for e, module in enumerate(modules):
            errors, means, decoded = [], [], []
            for number, batch in enumerate(x.split(size)):
                torch.manual_seed(batch_seed(seed, number))
                (given, mean, _), seen = replayed(module, "seen", batch)
                assert torch.equal(seen, mean)
                errors.append((given - batch) ** 2)
                means.append(mean)
                decoded.append(given.flatten(1))
            assert file.loss[e] == pytest.approx(torch.cat(errors).double().mean().item(), rel=1e-6)
            assert torch.equal(torch.from_numpy(file.read("mean", e, "seen")), torch.cat(means).T)
            assert torch.equal(torch.from_numpy(file.read("mean", e, "decoder")), torch.cat(decoded).T)
            assert file.loss[e] == other.loss[e]
            np.testing.assert_array_equal(file.read("mean", e), other.read("mean", e))


def test_float_images_from_0_to_1_are_normalised_where_that_is_asked_for(tmp_path):
    x = RANDOM.random((N, 1, 9, 9)).astype(np.float32)
    (tmp_path / "net.py").write_text(textwrap.dedent(NETS))
    (tmp_path / "run").mkdir()
    module = torch.nn.Sequential()
    module.seen, module.head = torch.nn.Conv2d(1, 6, 3), torch.nn.Linear(6, 10)
    torch.save(module.state_dict(), tmp_path / "run" / "epoch_1.pt")
    options = {"model": f"{tmp_path / 'net.py'}:Cnn", "layers": ["seen"]}
    for name, fed, given in (("raw", x, None), ("scaled", (x - 0.13) / 0.31, "0.13/0.31")):
        np.savez(tmp_path / f"{name}.npz", x=x)
        path = posthoc.extract(
            tmp_path / "run", f"npz:{tmp_path / name}.npz", tmp_path / f"{name}.h5", normalize=given, **options
        )
        with torch.no_grad():
            expected = module.seen(torch.from_numpy(fed)).mean((2, 3)).T.numpy()
        with posthoc.open_activations(path) as file:
            np.testing.assert_allclose(file.read("mean", 0, "seen"), expected, atol=1e-5)
    np.savez(tmp_path / "byte.npz", x=x * 255)
    with pytest.raises(UsageError, match=r"or float images from 0 to 1 as the only input; .* save them as the network"):
        posthoc.extract(
            tmp_path / "run", f"npz:{tmp_path / 'byte.npz'}", tmp_path / "b.h5", normalize="0.1/0.3", **options
        )


def test_masks_of_classes_as_torchvisions_segmentation_gives_them(tmp_path):
    images = RANDOM.integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    masks = RANDOM.integers(0, 5, (4, 64, 64))
    masks[:, :5] = 255
    np.savez(tmp_path / "a.npz", images=images, masks=masks)
    (tmp_path / "net.py").write_text(
        textwrap.dedent("""
        from torchvision.models import segmentation
        def make():
            return segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=5)
    """)
    )
    torch.manual_seed(0)
    module = torchvision.models.segmentation.lraspp_mobilenet_v3_large(None, None, num_classes=5, weights_backbone=None)
    module.eval()
    (tmp_path / "run").mkdir()
    torch.save(module.state_dict(), tmp_path / "run" / "epoch_1.pt")
    options = {"model": f"{tmp_path / 'net.py'}:make", "layers": ["classifier.cbr"], "normalize": "0.5/0.25"}
    path = posthoc.extract(tmp_path / "run", f"npz:{tmp_path / 'a.npz'}", tmp_path / "a.h5", **options)
    x = (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25
    with torch.no_grad():
        out = module(x)["out"]
    y = torch.from_numpy(masks)
    kept = y != 255
    prediction = out.argmax(1)
    overlaps = [
        (((prediction == k) & (y == k)).sum() / (((prediction == k) & kept) | (y == k)).sum()).item() for k in range(5)
    ]
    with posthoc.open_activations(path) as file:
        assert file.recording.identity.output.score == "segmentation"
        assert file.loss[0] == pytest.approx(F.cross_entropy(out, y, ignore_index=255).item(), rel=1e-4)
        assert file.scores["mIoU"][0] == pytest.approx(np.mean(overlaps), abs=1e-3)
        assert file.scores["pixel_accuracy"][0] == pytest.approx(
            (prediction == y)[kept].double().mean().item(), abs=1e-3
        )
        assert np.isnan(file.accuracy[0])
        assert not file.labelled


FORMS = {
    "probe": "posthoc.Probe(x, targets=y, score=mine)",
    "pair": "(x, y)",
    "dataset": "Rows()",
    "loader": "torch.utils.data.DataLoader(Rows(), batch_size=5, shuffle=True)",
}
PROBE = """
import torch, posthoc
x = torch.randn(60, 7, generator=torch.Generator().manual_seed(3))
y = torch.arange(60) % 2

def mine(output, targets):
    return {"loss": (output[:, 0] - targets) ** 2, "margin": output[:, 1] - output[:, 0]}

class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 60
    def __getitem__(self, k):
        return x[k], y[k]

def make():
    return FORM
"""


@pytest.mark.parametrize("form", FORMS)
def test_what_a_function_of_the_users_makes(form, nets, tmp_path):
    (tmp_path / "probe.py").write_text(PROBE.replace("FORM", FORMS[form]))
    modules, run, model = nets("Mlp")
    options = {"model": model, "layers": ["seen"], "channels": None, "images": 30}
    path = posthoc.extract(run, f"{tmp_path / 'probe.py'}:make", tmp_path / "a.h5", **options)
    space = {"__name__": "probe"}
    exec(PROBE.replace("FORM", FORMS[form]), space)
    other = posthoc.extract(run, space["make"](), tmp_path / "b.h5", **options)  # from Python
    x, y = space["x"][:30], space["y"][:30]
    with posthoc.open_activations(path) as file, posthoc.open_activations(other) as same:
        assert len(file.recording.identity.probe.code) == 64
        assert same.recording.identity.probe.code is None
        for e, module in enumerate(modules):
            given, kept = replayed(module, "seen", x)
            for each in (file, same):
                np.testing.assert_allclose(each.read("mean", e), kept.T, rtol=1e-5, atol=1e-6)
                np.testing.assert_array_equal(each.labels, y)
                if form == "probe":
                    assert each.loss[e] == pytest.approx(((given[:, 0] - y) ** 2).mean().item(), rel=1e-5)
                    assert each.scores["margin"][e] == pytest.approx(
                        (given[:, 1] - given[:, 0]).mean().item(), rel=1e-4
                    )
                    np.testing.assert_allclose(
                        each.behaviour("score", e), given[:, 1] - given[:, 0], rtol=1e-4, atol=1e-6
                    )
                    assert np.isnan(each.accuracy[e])
                else:
                    assert each.accuracy[e] == (given.argmax(1) == y).double().mean().item()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def make(): raise ValueError('no data')", r"probe\.py:make failed \(ValueError: no data\)"),
        ("def make(): return 3", r"probe\.py:make gives an int; give a posthoc\.Probe"),
        ("def other(): return 3", r"defines no 'make' \(found: other\)"),
        ("import sys; sys.exit(0)", r"probe\.py cannot be imported \(it ends the program"),
        ("import numpy\ndef make(): return numpy.array(['a']), None", r"input is <U1 \(1,\); give numbers"),
        ("import numpy\ndef make(): return numpy.zeros((3, 7)), numpy.zeros(2)", r"as many samples in all its arrays"),
        ("def make(): return [[1, 2], [3]], None", r"the rows of input differ in shape; pad them to one length"),
        ("import numpy, posthoc\ndef make(): return posthoc.Probe(numpy.zeros((9, 7)), score=lambda o, t: o)",
         r"the score <lambda> fails \(ValueError: <lambda> is of shape \(8, 2\), not one number"),
    ],
)  # fmt: skip
def test_a_function_that_makes_no_probe(text, message, nets, tmp_path):
    (tmp_path / "probe.py").write_text(text)
    _, run, model = nets("Mlp")
    with pytest.raises(PosthocError, match=message):
        plan_extraction(run, f"{tmp_path / 'probe.py'}:make", model=model)


@pytest.mark.parametrize(
    ("name", "inputs", "targets", "has"),
    [
        ("Tokens", np.zeros((9, 6), np.int64), np.arange(9) % 5, "has targets of int64 9"),
        ("Gru", np.zeros((9, 20, 4)), None, "gives real numbers, 20 x 4 for each sample"),
        ("Mlp", np.zeros((9, 7)), None, "gives real numbers, 7 for each sample"),
    ],
)
def test_what_a_probe_has_that_is_not_rows_of_tokens_is_said_with_who_asked(name, inputs, targets, has, nets):
    _, run, model = nets(name)
    for probe, asked, who in (
        (posthoc.Probe(inputs, targets, score="tokens", name="mine"), None, 'The score "tokens" of mine'),
        (posthoc.Probe(inputs, targets), "tokens", "--score tokens"),
    ):
        with pytest.raises(UsageError) as error:
            plan_extraction(run, probe, model=model, score=asked)
        assert str(error.value) == f"{who} needs rows of tokens (whole numbers) and no targets; the probe {has}."


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (lambda out, y: {}, r"it gives nothing, not one number for each sample"),
        (
            lambda out, y: {"right": out.sum(1), "": out.sum(1)},
            "one of the numbers that it gives is called '', which is",
        ),
    ],
)
def test_a_score_that_gives_nothing_or_no_name_is_refused_before_the_run(score, message, nets):
    _, run, model = nets("Mlp")
    probe = posthoc.Probe(np.zeros((9, 7), np.float32), score=score)
    with pytest.raises(PosthocError, match=rf"the score <lambda> fails \(ValueError: {message}"):
        plan_extraction(run, probe, model=model, layers=["seen"])


def test_a_score_names_the_same_for_every_batch(nets, tmp_path):
    _, run, model = nets("Mlp")
    probe = posthoc.Probe(np.zeros((9, 7), np.float32), score=lambda out, y: {f"of {len(out)}": out.sum(1)})
    with pytest.raises(
        PosthocError, match=r"the score gives of 1 \(float32\) for one batch and of 4 \(float32\) for another"
    ):
        posthoc.extract(run, probe, tmp_path / "a.h5", model=model, layers=["seen"], batch_size=4)
