"""On what numbers depend: on other samples of the batch, on later tokens; and what is made of it."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from posthoc.errors import UsageError
from posthoc.replay.planning import plan_extraction
from posthoc.replay.run import run_extraction
from posthoc.store import open_activations

V, T = 40, 12
NETS = f"""
import torch
from torch import nn

class Layers(nn.Module):
    first = False  # whether the batch is
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding({V}, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=self.first)
        self.enc, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(16, {V})
    def mask(self, x):
        length = x.shape[1] if self.first else x.shape[0]
        return nn.Transformer.generate_square_subsequent_mask(length, x.device)
    def forward(self, x):
        return self.head(self.enc(self.emb(x), self.mask(x)))

class Transformer(Layers):
    "As the tutorial of PyTorch: src [time, batch]."

class Lstm(nn.Module):
    "As its example of a word language model, which flattens what it gives."
    def __init__(self):
        super().__init__()
        self.emb, self.rnn, self.head = nn.Embedding({V}, 16), nn.LSTM(16, 16), nn.Linear(16, {V})
    def forward(self, x):
        h, hidden = self.rnn(self.emb(x))
        return self.head(h).view(-1, {V}), hidden

class Stateful(Lstm):
    def forward(self, x):
        h, self.hidden = self.rnn(self.emb(x))
        return self.head(h)

class BatchFirst(Transformer):
    def forward(self, x):
        return super().forward(x.transpose(0, 1)).transpose(0, 1)

class Series(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.LSTM(3, 16), nn.Linear(16, 1)
    def forward(self, x):
        return self.head(self.rnn(x)[0][-1])

class SeriesBatchFirst(Series):
    def forward(self, x):
        return super().forward(x.transpose(0, 1))

class Cumulative(Series):
    "A sample is given the sum of those before it, and time is not mixed."
    def forward(self, x):
        return self.head(self.rnn(x.cumsum(0).transpose(0, 1))[0][-1])

class Causal(Layers):
    first = True

class Bigram(Layers):
    def forward(self, x):
        return self.head(self.emb(x))

class Deaf(Layers):
    def forward(self, x):
        return self.head(0 * self.emb(x))

class Masked(Causal):
    def mask(self, x):
        return None

class Gated(Masked):
    "Of what its layers give, as much goes on as a gate lets through."
    def __init__(self):
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(()))
    def forward(self, x):
        h = self.emb(x)
        return self.head(h + self.gate * self.enc(h))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("nets")
    (path / "nets.py").write_text(NETS)
    np.save(path / "ids.npy", np.random.default_rng(0).integers(0, V, 8 * T))
    x = np.random.default_rng(0).normal(size=(12, 7, 3)).astype("f4")
    np.savez(path / "series.npz", x=x, y=x[:, 0, :1])
    return path


def saved(folder, name, zero=(), count=2):
    """A run of a network of that name, of which some parameters begin as zeros; and the networks."""
    names = {}
    exec(NETS, names)
    run, networks = folder / f"{name}{len(zero)}", []
    run.mkdir(exist_ok=True)
    for epoch in range(count):
        torch.manual_seed(epoch)
        networks.append(names[name]().eval())
        for parameter in zero if epoch == 0 else ():
            networks[0].get_parameter(parameter).data.zero_()
        if epoch and name == "Gated":
            networks[epoch].gate.data += 1
        torch.save({"model": networks[-1].state_dict(), "epoch": epoch}, run / f"epoch_{epoch}.pt")
    return run, networks


def planned(folder, name, probe, zero=(), network=None, **options):
    run, networks = saved(folder, name, zero)
    options |= {"context": T} if probe.endswith("npy") else {}
    model = f"{folder / 'nets.py'}:{network or name}"
    return plan_extraction(
        run, f"{probe.split(':')[0]}:{folder / probe.split(':')[1]}", model=model, **options
    ), networks


@pytest.mark.parametrize("options", [{}, {"batch_size": 1}, {"documents": 1}], ids=str)
@pytest.mark.parametrize("name", ["Transformer", "Lstm", "Stateful"])
def test_a_language_model_that_takes_time_first_is_refused(folder, name, options):
    with pytest.raises(
        UsageError, match="time before samples: what it gives of one of the documents depends on the others"
    ) as caught:
        planned(folder, name, "tokens:ids.npy", **options)
    assert "super().forward(x.transpose(0, 1))" in str(caught.value)


def test_a_subclass_that_takes_samples_first_is_replayed_as_it_was_trained(folder):
    plan, networks = planned(folder, "Transformer", "tokens:ids.npy", network="BatchFirst", channels=None)
    assert "batches" not in dict(plan.notes)
    with open_activations(run_extraction(plan, folder / "tokens.h5").path) as file, torch.no_grad():
        ids = torch.from_numpy(file.tokens.astype("i8"))
        for row, network in enumerate(networks):
            logits = network(ids.T).transpose(0, 1)
            expected = F.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
            np.testing.assert_allclose(file.behaviour("token_loss", row)[:, 1:], expected, atol=1e-5)
            inside = network.enc.layers[0](network.emb(ids.T), network.mask(ids.T))
            np.testing.assert_allclose(
                file.read("token", row, "enc.layers.0"), inside.permute(2, 1, 0), rtol=1e-3, atol=1e-4
            )


@pytest.mark.parametrize("batch_size", [256, 5, 1])
def test_series_that_a_network_takes_time_first_are_refused(folder, batch_size):
    with pytest.raises(
        UsageError, match=r"takes time before samples.*returns super\(\)\.forward\(x\.transpose\(0, 1\)\)\.$"
    ):
        planned(folder, "Series", "npz:series.npz", batch_size=batch_size)
    plan, networks = planned(
        folder,
        "Series",
        "npz:series.npz",
        network="SeriesBatchFirst",
        batch_size=batch_size,
        channels=None,
        layers=("rnn",),
    )
    assert "batches" not in dict(plan.notes)
    x = torch.from_numpy(np.load(folder / "series.npz")["x"])
    path = run_extraction(plan, folder / f"series-{batch_size}.h5").path
    with open_activations(path) as file, torch.no_grad():
        for row, network in enumerate(networks):
            h = network.rnn(x.transpose(0, 1))[0]
            np.testing.assert_allclose(file.read("mean", row, "rnn"), h.mean(0).T, atol=1e-5)
            assert file.loss[row] == pytest.approx(F.mse_loss(network.head(h[-1]), x[:, 0, :1]).item(), rel=1e-5)


@pytest.mark.parametrize("batch_size", [256, 1])
def test_samples_that_those_before_them_in_a_batch_change_are_named(folder, batch_size):
    notes = dict(planned(folder, "Cumulative", "npz:series.npz", batch_size=batch_size)[0].notes)
    assert "what a sample gives depends on the others in its batch" in notes["batches"]
    ordinary = planned(folder, "Series", "npz:series.npz", network="SeriesBatchFirst", batch_size=batch_size)[0]
    assert "batches" not in dict(ordinary.notes)


HEAD = ("head.weight", "head.bias")


@pytest.mark.parametrize(
    ("name", "zero"), [("Masked", ()), ("Masked", HEAD), ("Masked", HEAD[:1]), ("Gated", ()), ("Gated", HEAD)], ids=str
)
def test_what_sees_later_tokens_is_not_scored_though_it_begins_without(folder, name, zero):
    scored = planned(folder, name, "tokens:ids.npy", zero)[0].scored
    assert scored.path is None
    assert "depends on the tokens after it" in scored.reason


@pytest.mark.parametrize(
    ("name", "zero"), [("Causal", ()), ("Causal", HEAD), ("Bigram", ()), ("Bigram", HEAD)], ids=str
)
def test_what_sees_none_is_scored_from_the_beginning(folder, name, zero):
    plan, networks = planned(folder, name, "tokens:ids.npy", zero)
    with open_activations(run_extraction(plan, folder / f"{name}{len(zero)}.h5").path) as file, torch.no_grad():
        ids = torch.from_numpy(file.tokens.astype("i8"))
        for row, network in enumerate(networks):
            expected = F.cross_entropy(network(ids)[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
            np.testing.assert_allclose(file.behaviour("token_loss", row)[:, 1:], expected, atol=1e-5)
        assert not zero or file.loss[0] == pytest.approx(math.log(V))


def test_what_no_token_has_a_say_in_is_not_scored(folder):
    assert "depends on no token" in planned(folder, "Deaf", "tokens:ids.npy")[0].scored.reason
