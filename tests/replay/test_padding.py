"""Places that are padding are no part of means, variances and losses: as a loop over samples of their own length has them."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import posthoc
from posthoc.analysis.axes import AXES
from posthoc.analysis.controlled import of_documents
from posthoc.analysis.measures import MEASURES, Documents
from posthoc.errors import PosthocError, UsageError
from posthoc.parts import Parts
from posthoc.replay.controls import altered
from posthoc.replay.hooks import HookPoint, Recorder
from posthoc.replay.padding import masks_in, padding_of
from posthoc.replay.planning import plan_extraction
from posthoc.replay.run import run_extraction
from posthoc.replay.token_scores import next_token, summed_up
from posthoc.shards import Shard

N, T = 20, 9
NETS = """
import torch
from torch import nn

class Tagged(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(30, 6); self.seen = nn.Linear(6, 8); self.conv = nn.Conv1d(8, 4, 1)
        self.strided = nn.Conv1d(8, 4, 3, 2); self.head = nn.Linear(4, 3)
    def forward(self, input_ids, attention_mask=None, key_padding_mask=None):
        x = self.seen(self.embed(input_ids)).movedim(2, 1)
        self.strided(x)
        return self.head(self.conv(x).mean(2))

class Gru(nn.Module):
    def __init__(self):
        super().__init__()
        self.seen = nn.GRU(3, 8, batch_first=True); self.identity = nn.Identity(); self.head = nn.Linear(8, 2)
    def forward(self, x, attention_mask):
        lengths = attention_mask.sum(1).long()
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        x = nn.utils.rnn.pad_packed_sequence(self.seen(packed)[0], batch_first=True)[0]
        self.identity(x)
        return self.head(x[:, 0])

class Causal(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(30, 6); self.seen = nn.Linear(6, 8); self.head = nn.Linear(8, 30)
    def forward(self, input_ids, attention_mask=None):
        return self.head(self.seen(self.embed(input_ids)).cumsum(1))

class Several(nn.Module):
    "Given more than tokens, of which it says the next."
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(30, 6); self.seen = nn.Linear(6, 8); self.head = nn.Linear(8, 30)
    def forward(self, input_ids, attention_mask=None, token_type_ids=None, mask=None, pixel_values=None):
        x = self.seen(self.embed(input_ids)).cumsum(1)
        if mask is not None:
            x = x * mask[..., None]
        if token_type_ids is not None:
            x = x + token_type_ids[..., None]
        if pixel_values is not None:
            x = x + pixel_values.mean((1, 2, 3))[:, None, None]
        return self.head(x)

class Copier(Several):
    def forward(self, input_ids, decoder_input_ids):
        x = self.seen(self.embed(decoder_input_ids)).cumsum(1)
        return self.head(x + self.seen(self.embed(input_ids)).mean(1, keepdim=True))

class Masked(Several):
    "Sees the tokens after a place, too."
    def forward(self, input_ids, attention_mask):
        x = self.seen(self.embed(input_ids)) * attention_mask[..., None]
        return self.head(x + x.sum(1, keepdim=True))

class Beside(nn.Module):
    "An image of as many patches as the text has places."
    fixed = False  # of one length
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(30, 6); self.places = nn.Embedding(9, 6); self.gate = nn.Parameter(torch.zeros(()))
        self.text = nn.Linear(6, 8); self.image = nn.Conv2d(3, 8, 4, 4)
        self.patches = nn.Linear(8, 8); self.words = nn.Linear(8, 8); self.looked = nn.Linear(8, 8); self.head = nn.Linear(8, 3)
    def forward(self, pixel_values, input_ids, attention_mask):
        at = torch.arange(9 if self.fixed else input_ids.shape[1]).expand(input_ids.shape)
        text = self.text(self.embed(input_ids) + self.places(at))
        image = self.patches(self.image(pixel_values).flatten(2).movedim(1, 2))
        words = self.words(text + self.gate * image.mean(1, keepdim=True))
        looked = self.looked(image + text.mean(1, keepdim=True))
        return self.head(words.mean(1) + looked.mean(1))

class BesideFixed(Beside):
    fixed = True

class Same(nn.Module):
    def __init__(self):
        super().__init__()
        self.seen = nn.Linear(3, 3)
    def forward(self, x, attention_mask=None):
        return self.seen(x)
"""
RANDOM = np.random.default_rng(5)
LENGTHS = np.concatenate([[T, 2], RANDOM.integers(2, T + 1, N - 2)])
REAL = np.arange(T) < LENGTHS[:, None]
IDS = np.where(REAL, RANDOM.integers(1, 30, (N, T)), 0)
ROWS = RANDOM.normal(size=(N, T, 3)).astype("f4")


def made(name, folder):
    (folder / "nets.py").write_text(NETS)
    space = {"__name__": "nets"}
    exec(NETS, space)
    torch.manual_seed(0)
    module = space[name]().eval()
    (folder / "run").mkdir()
    torch.save(module.state_dict(), folder / "run" / "epoch_1.pt")
    return module, {"model": f"{folder / 'nets.py'}:{name}", "layers": None, "channels": None}


def extracted(folder, probe, options, **more):
    options = {name: value for name, value in (options | more).items() if value is not None or name == "channels"}
    return posthoc.open_activations(posthoc.extract(folder / "run", probe, folder / "a.h5", force=True, **options))


INPUTS = {
    "attention_mask": {"attention_mask": REAL.astype(int)},
    "floats": {"attention_mask": REAL.astype("f4")},
    "key_padding_mask": {"key_padding_mask": ~REAL},
    "declared": {},
}


@pytest.mark.parametrize("said", INPUTS)
def test_means_and_variances_are_those_of_samples_of_their_own_length(said, tmp_path):
    module, options = made("Tagged", tmp_path)
    mask = REAL if said == "declared" else None
    probe = posthoc.Probe({"input_ids": IDS, **INPUTS[said]}, np.arange(N) % 3, mask=mask)
    with extracted(tmp_path, probe, options, layers=["seen", "conv", "strided", "head"], batch_size=7) as file:
        for row, length in enumerate(LENGTHS):
            with torch.no_grad():
                seen = module.seen(module.embed(torch.from_numpy(IDS[row, :length])))
                conv = module.conv(seen.T).T
                whole = module.seen(module.embed(torch.from_numpy(IDS[row]))).T
            for layer, x in (("seen", seen), ("conv", conv), ("strided", module.strided(whole).detach().T)):
                np.testing.assert_allclose(file.read("mean", 0, layer)[:, row], x.mean(0), atol=2e-6)
                np.testing.assert_allclose(file.read("var", 0, layer)[:, row], x.var(0, correction=0), atol=2e-6)
    name = {"declared": "mask", "floats": "attention_mask"}.get(said, said)
    notes = dict(plan_extraction(tmp_path / "run", probe, model=options["model"], layers=["seen", "strided"]).notes)
    share = f"{1 - REAL.mean():.0%} of the places, by {name}"
    assert notes["padding"] == (
        f"{share}: left out of the means and variances; it is in those of strided, for which places it is in is not known"
    )
    assert file.recording.provenance.preparation.endswith(f"without padding ({name})")


def test_without_padding_nothing_changes_to_the_bit(tmp_path):
    _, options = made("Tagged", tmp_path)
    every = {"input_ids": IDS, "attention_mask": np.ones((N, T), int)}
    probes = [
        posthoc.Probe(every),
        posthoc.Probe(every, mask={}),
        posthoc.Probe({**every, "attention_mask": REAL * 1}, mask={}),
    ]
    digests, values = [], []
    for probe in probes:
        with extracted(tmp_path, probe, options, layers=["seen"]) as file:
            values.append(file.read("mean", 0))
            digests.append(file.recording.identity.digest)
            assert "padding" not in file.recording.identity.probe.preparation
    np.testing.assert_array_equal(values[0], values[1])
    np.testing.assert_array_equal(values[0], values[2])
    assert digests[0] == digests[1]


def test_parts_with_padding_in_their_means_are_not_gone_on_with(tmp_path):
    _, options = made("Tagged", tmp_path)
    given = {"input_ids": IDS, "attention_mask": REAL * 1}
    plans = [
        plan_extraction(tmp_path / "run", posthoc.Probe(given, mask=mask), model=options["model"], layers=["seen"])
        for mask in ({}, None)  # as it was, and as it is
    ]
    run_extraction(plans[0], tmp_path / "a.h5", shard=Shard(1, 2))
    assert Parts(tmp_path / "a.h5").folder.is_dir()
    with pytest.raises(PosthocError, match=r"configured otherwise \(probe\.preparation\.padding\.attention_mask: "):
        run_extraction(plans[1], tmp_path / "a.h5", shard=Shard(1, 2))


def test_outputs_cut_to_the_longest_sample_of_each_batch(tmp_path):
    """As pad_packed_sequence gives them."""
    module, options = made("Gru", tmp_path)
    probe = posthoc.Probe({"x": ROWS, "attention_mask": REAL * 1}, np.arange(N) % 2)
    with extracted(tmp_path, probe, options, layers=["identity"], batch_size=3) as file:
        for row, length in enumerate(LENGTHS):
            with torch.no_grad():
                x = module.seen(torch.from_numpy(ROWS[row : row + 1, :length]))[0][0]
            np.testing.assert_allclose(file.read("mean", 0)[:, row], x.mean(0), atol=1e-6)
            np.testing.assert_allclose(file.read("var", 0)[:, row], x.var(0, correction=0), atol=1e-6)


def test_a_longer_output_than_the_mask_is_refused():
    point = HookPoint("seen", "Linear", (4, 3), 0, 2, 0, 1, None)
    net = nn.Sequential()
    net.add_module("seen", nn.Identity())
    recorder = Recorder([point], {"seen": torch.arange(3)}, ["mean"], places={"seen": ("attention_mask", 1)})
    recorder.real = {"attention_mask": torch.ones(2, 4, dtype=torch.bool)}
    with recorder.attached(net), pytest.raises(TypeError, match="seen gave 6 places, of which attention_mask has 4"):
        net(torch.ones(2, 6, 3))


@pytest.mark.parametrize("left", [False, True])
def test_the_loss_of_tokens_is_the_mean_over_those_that_are_real(left, tmp_path):
    module, options = made("Causal", tmp_path)
    ids, real = (
        np.stack([np.roll(r, T - k) for r, k in zip(a, LENGTHS, strict=True)]) if left else a for a in (IDS, REAL)
    )
    probe = posthoc.Probe({"input_ids": ids, "attention_mask": real * 1}, score="tokens", classes=30)
    scored = real[:, 1:] & real[:, :-1]
    with torch.no_grad():
        scores = module(torch.from_numpy(ids))[:, :-1]
    losses = F.cross_entropy(scores.flatten(0, 1), torch.from_numpy(ids[:, 1:]).flatten(), reduction="none").view(N, -1)
    with extracted(tmp_path, probe, options, layers=["seen"], batch_size=6) as file:
        assert file.loss[0] == pytest.approx(losses.numpy()[scored].mean(), rel=1e-6)
        hits = (scores.argmax(2).numpy() == ids[:, 1:])[scored]
        assert file.accuracy[0] == pytest.approx(hits.mean())
        each = [row[kept].mean() for row, kept in zip(losses.numpy(), scored, strict=True)]
        np.testing.assert_allclose(file.behaviour("loss", 0), each, rtol=1e-5)
        np.testing.assert_allclose(file.behaviour("token_loss", 0)[:, 1:][scored], losses.numpy()[scored], rtol=1e-5)
        assert np.isnan(file.behaviour("token_loss", 0)[:, 1:][~scored]).all()
        assert np.isnan(file.behaviour("token_entropy", 0)[:, 1:][~scored]).all()
        assert (file.behaviour("token_prediction", 0)[:, 1:][~scored] == -1).all()
        assert file.recording.identity.behaviour == ("loss", "token_loss", "token_entropy", "token_prediction")
    plan = plan_extraction(tmp_path / "run", probe, model=options["model"], layers=["seen"])
    assert dict(plan.notes)["padding"].endswith("left out of the means and variances and of the loss")


PIXELS = RANDOM.normal(size=(N, 3, 12, 12)).astype("f4")
BEFORE = {
    "attention_mask": {"attention_mask": REAL * 1},
    "token_type_ids": {"token_type_ids": (IDS > 14) * 1, "attention_mask": REAL * 1},
    "mask": {"mask": REAL * 1},
    "pixel_values": {"pixel_values": PIXELS, "attention_mask": REAL * 1},
}


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("case", BEFORE)
def test_tokens_are_scored_wherever_they_stand_among_the_inputs(case, last, tmp_path):
    module, options = made("Several", tmp_path)
    beside = BEFORE[case]
    np.savez(tmp_path / "p.npz", **({**beside, "input_ids": IDS} if last else {"input_ids": IDS, **beside}))
    with torch.no_grad():
        scores = module(torch.from_numpy(IDS), **{name: torch.from_numpy(array) for name, array in beside.items()})
    scored = REAL[:, 1:] & REAL[:, :-1] if "attention_mask" in beside else np.ones((N, T - 1), bool)
    losses = F.cross_entropy(scores[:, :-1].movedim(2, 1), torch.from_numpy(IDS[:, 1:]), reduction="none").numpy()
    with extracted(
        tmp_path, f"npz:{tmp_path / 'p.npz'}", options, layers=["seen"], score="tokens", batch_size=6
    ) as file:
        assert file.loss[0] == pytest.approx(losses[scored].mean(), rel=1e-6)
        hits = (scores[:, :-1].argmax(2).numpy() == IDS[:, 1:])[scored]
        assert file.accuracy[0] == pytest.approx(hits.mean())


def test_controls_change_the_tokens_and_leave_what_stands_before_them(tmp_path):
    module, options = made("Several", tmp_path)
    types = (IDS > 14) * 1
    probe = posthoc.Probe({"token_type_ids": types, "input_ids": IDS}, score="tokens", axes={"input_ids": ("token",)})
    more = {"layers": ["seen"], "signals": ["token"], "controls": ["shuffle"]}
    with extracted(tmp_path, probe, options, **more) as file:
        ids = torch.from_numpy(altered("shuffle", IDS, file.images, 0))
        with torch.no_grad():
            scores = module(ids, token_type_ids=torch.from_numpy(types))[:, :-1].movedim(2, 1)
        losses = F.cross_entropy(scores, ids[:, 1:], reduction="none")
        np.testing.assert_allclose(file.behaviour_of_null("shuffle", "token_loss", 0)[:, 1:], losses, rtol=1e-5)


@pytest.mark.parametrize("case", BEFORE)
def test_tokens_that_are_their_own_targets_are_known_wherever_they_stand(case, tmp_path):
    _, options = made("Several", tmp_path)
    np.savez(tmp_path / "p.npz", **BEFORE[case], input_ids=IDS, labels=np.where(REAL, IDS, -100))
    plan = plan_extraction(tmp_path / "run", f"npz:{tmp_path / 'p.npz'}", model=options["model"], layers=["seen"])
    assert plan.identity.output.score is None
    assert dict(plan.notes)["score"].startswith(
        "none: the targets are the tokens that the network is given; leave them out"
    )


@pytest.mark.parametrize("copied", [False, True])
def test_tokens_that_an_encoder_reads_may_be_what_the_decoder_is_to_say(copied, tmp_path):
    module, options = made("Copier", tmp_path)
    moved = np.pad(IDS, ((0, 0), (1, 0)))[:, :-1]
    np.savez(tmp_path / "p.npz", input_ids=IDS, decoder_input_ids=moved, labels=moved if copied else IDS)
    probe = f"npz:{tmp_path / 'p.npz'}"
    if copied:
        notes = dict(plan_extraction(tmp_path / "run", probe, model=options["model"], layers=["seen"]).notes)
        assert notes["score"].startswith("none: the targets are the tokens that the network is given")
        return
    with torch.no_grad():
        scores = module(torch.from_numpy(IDS), torch.from_numpy(moved)).movedim(2, 1)
    with extracted(tmp_path, probe, options, layers=["seen"]) as file:
        assert file.loss[0] == pytest.approx(F.cross_entropy(scores, torch.from_numpy(IDS)).item(), rel=1e-6)


def test_what_a_masked_model_says_of_tokens_is_no_prediction_of_them_with_the_mask_before_them(tmp_path):
    _, options = made("Masked", tmp_path)
    probe = posthoc.Probe({"attention_mask": REAL * 1, "input_ids": IDS}, score="tokens")
    notes = dict(plan_extraction(tmp_path / "run", probe, model=options["model"], layers=["seen"]).notes)
    assert "depends on the tokens after it, as in masked models" in notes["score"]


def test_padding_is_told_from_tokens_with_which_the_network_failed(tmp_path):
    """At the second checkpoint nothing is known behind token 7, at the third token 9 cannot be."""
    module, options = made("Causal", tmp_path)
    state = module.state_dict()
    without = {name: tensor.clone() for name, tensor in state.items()}
    without["embed.weight"][7] = math.nan
    torch.save(without, tmp_path / "run" / "epoch_2.pt")
    state["head.bias"][9] = -math.inf
    torch.save(state, tmp_path / "run" / "epoch_3.pt")
    probe = posthoc.Probe({"input_ids": IDS, "attention_mask": REAL * 1}, score="tokens", classes=30)
    scored = np.pad(REAL[:, 1:] & REAL[:, :-1], ((0, 0), (1, 0)))
    failed = scored & (np.cumsum(IDS == 7, axis=1) - (IDS == 7) > 0)
    never = scored & (IDS == 9)
    assert 0 < failed.any(axis=1).sum() < N > never.any(axis=1).sum() > 0
    with extracted(tmp_path, probe, options, layers=["seen"]) as file:
        of = [Documents(file, e, file.tokens, slice(None)) for e in range(3)]
        each = [row[kept].mean() for row, kept in zip(of[0].loss, scored, strict=True)]
        measures = of_documents(MEASURES, file, AXES["token"], 0)
        for documents, broken in zip(of, (np.zeros(N, bool), failed.any(axis=1), never.any(axis=1)), strict=True):
            whole = ~np.isnan(documents.behaviour("loss"))  # of others nothing tells padding from what failed
            np.testing.assert_array_equal(documents.scored[whole], scored[whole])
            np.testing.assert_array_equal(documents.broken, broken)
    np.testing.assert_allclose(measures["token_loss"].value, [np.mean(each), math.nan, math.inf])


def test_scores_of_padding_that_are_no_numbers_are_no_part_of_the_loss():
    scores, ids = torch.zeros(2, 4, 5), torch.zeros(2, 4, dtype=torch.long)
    real = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]]).bool()
    scores[0, 2:] = torch.nan  # says of token 3, which is padding
    loss, accuracy, _ = summed_up(next_token(scores, ids, real))
    assert (loss, accuracy) == (pytest.approx(np.log(5)), 1)
    scores[0, 1] = torch.nan
    loss, accuracy, samples = summed_up(next_token(scores, ids, real))
    assert np.isnan(loss)
    assert np.isnan(accuracy)
    assert samples["loss"].isnan().tolist() == [True, False]


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("flat", [False, True])
def test_a_reconstruction_is_compared_at_real_places(flat, named, tmp_path):
    module, options = made("Same", tmp_path)
    x = ROWS[:, :3, 0] if flat else ROWS
    real = (np.arange(3) < np.arange(N)[:, None] % 3 + 1) if flat else REAL
    probe = posthoc.Probe({"x": x}, score="reconstruction", mask=real)
    if named:  # before what it is of
        probe = posthoc.Probe({"attention_mask": real * 1, "x": x}, score="reconstruction")
    with torch.no_grad():
        error = (
            (module(torch.from_numpy(x)) - torch.from_numpy(x)).square().numpy().reshape(N, real.shape[1], -1).mean(2)
        )
    each = [row[kept].mean() for row, kept in zip(error, real, strict=True)]
    with extracted(tmp_path, probe, options, layers=["seen"]) as file:
        np.testing.assert_allclose(file.behaviour("loss", 0), each, rtol=1e-5)
        assert file.loss[0] == pytest.approx(np.mean(each), rel=1e-5)


def test_which_inputs_are_masks():
    some, other = np.array([[1, 1, 0]]), np.array([[1, 0, 0]])
    assert {name: mask.tolist() for name, mask in masks_in({"attention_mask": some}).items()} == {
        "attention_mask": [[True, True, False]]
    }
    assert masks_in({"src_key_padding_mask": other})["src_key_padding_mask"].tolist() == [[False, True, True]]
    assert masks_in({"attention_mask": np.ones((1, 3)), "padding_mask": np.zeros((1, 3))}) == {}
    assert (
        masks_in({"attention_mask": some * -1e4, "mask": some, "token_type_ids": some, "global_attention_mask": some})
        == {}
    )
    assert masks_in({"attention_mask": some[:, None]}) == {}


def point(name, *shape, channel=None):
    return HookPoint(name, "Linear", shape, 0, channel or len(shape), 0, 1, None)


def test_of_an_encoder_and_a_decoder_each_goes_by_its_own():
    ids, mask = np.zeros((2, 5), int), np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    probe = posthoc.Probe(
        {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": ids, "decoder_attention_mask": mask[::-1]}
    )
    points = [
        point("encoder.layers.0", 5, 8), point("decoder.layers.0", 5, 8), point("decoder.layers.0.encoder_attn.k_proj", 5, 8),
        point("lm_head", 5, 30),
    ]  # fmt: skip
    padding = padding_of(probe, points)
    assert padding.places == {
        "encoder.layers.0": ("attention_mask", 1), "decoder.layers.0": ("decoder_attention_mask", 1),
    }  # fmt: skip
    assert padding.others == ("decoder.layers.0.encoder_attn.k_proj", "lm_head")
    alone = padding_of(
        posthoc.Probe({"input_ids": ids, "attention_mask": mask}), [point("model.decoder.layers.0", 5, 8)]
    )
    assert alone.places == {"model.decoder.layers.0": ("attention_mask", 1)}


def test_maps_of_two_axes_of_places_and_vectors_are_left_as_they_are():
    probe = posthoc.Probe({"input_ids": np.zeros((2, 5), int), "attention_mask": np.array([[1, 1, 1, 1, 0]] * 2)})
    points = [
        point("weights", 2, 5, 5, channel=1),
        point("pooled", 5),
        point("heads", 2, 5, 7, channel=1),
        point("later", 4, 5, 3),
    ]
    padding = padding_of(probe, points)
    assert padding.places == {"heads": ("attention_mask", 2)}
    assert padding.others == ("weights", "later")
    none = padding_of(probe, points[1:2]).notes(scored=False)
    assert none == [
        ("padding", "20% of the places, by attention_mask: in all that is recorded, for no layer has these places")
    ]


@pytest.mark.parametrize("prompts", ["several", "one"])
@pytest.mark.parametrize("name", ["Beside", "BesideFixed"])
def test_layers_of_as_many_patches_as_the_text_has_places_do_not_go_by_its_mask(name, prompts, tmp_path):
    """Nor those that text has a say in, but those of text that an image has a say in: in which none has it at first."""
    module, options = made(name, tmp_path)
    ids = IDS if prompts == "several" else np.tile(IDS[0], (N, 1))
    probe = posthoc.Probe({"pixel_values": PIXELS, "input_ids": ids, "attention_mask": REAL * 1}, np.arange(N) % 3)
    layers = ["places", "text", "patches", "words", "looked"]
    seen = {}
    for layer in layers:
        module.get_submodule(layer).register_forward_hook(
            lambda _, given, x, layer=layer: seen.update({layer: x.numpy()})
        )
    with torch.no_grad():
        module(torch.from_numpy(PIXELS), torch.from_numpy(ids), torch.from_numpy(REAL))
    untold = ["patches", "looked"] + ["words"] * (name == "BesideFixed")
    with extracted(tmp_path, probe, options, layers=layers, batch_size=7) as file:
        for layer in layers:
            real = np.ones_like(REAL) if layer in untold else REAL
            means = np.stack([x[kept].mean(0) for x, kept in zip(seen[layer], real, strict=True)])
            variances = np.stack([x[kept].var(0) for x, kept in zip(seen[layer], real, strict=True)])
            np.testing.assert_allclose(file.read("mean", 0, layer).T, means, atol=2e-6)
            np.testing.assert_allclose(file.read("var", 0, layer).T, variances, atol=2e-6)
        assert sorted(file.recording.identity.probe.preparation["of_other_places"]) == sorted(untold)
    notes = dict(plan_extraction(tmp_path / "run", probe, model=options["model"], layers=layers).notes)
    left_in = [layer for layer in layers if layer in untold]
    assert f"; it is in those of {', '.join(left_in)}, for which places it is in is not known" in notes["padding"]


def test_the_patches_of_clip_do_not_go_by_the_mask_of_its_text(tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = sizes | {"vocab_size": 30, "max_position_embeddings": 10, "eos_token_id": 29, "pad_token_id": 0}
    image = sizes | {"image_size": 12, "patch_size": 4}
    torch.manual_seed(0)
    config = transformers.CLIPConfig(text_config=text, vision_config=image, projection_dim=8)
    module = transformers.CLIPModel(config).eval()
    module.save_pretrained(tmp_path / "run" / "checkpoint-1")
    real = np.arange(10) < np.maximum(LENGTHS, 3)[:, None]
    given = {"attention_mask": real * 1, "input_ids": RANDOM.integers(1, 28, (N, 10)), "pixel_values": PIXELS}
    with torch.no_grad():
        said = module(**{name: torch.from_numpy(x) for name, x in given.items()}, output_hidden_states=True)
    words, patches = (said[name].hidden_states[1].numpy() for name in ("text_model_output", "vision_model_output"))
    assert words.shape == patches.shape
    layers = ["text_model.encoder.layers.0", "vision_model.encoder.layers.0"]
    with extracted(tmp_path, posthoc.Probe(given), {"channels": None}, layers=layers) as file:
        np.testing.assert_allclose(file.read("mean", 0, layers[1]).T, patches.mean(1), atol=2e-6)
        means = [row[kept].mean(0) for row, kept in zip(words, real, strict=True)]
        np.testing.assert_allclose(file.read("mean", 0, layers[0]).T, means, atol=2e-6)


REFUSED = {
    "nothing": ({"attention_mask": REAL * 1 * (np.arange(N) != 4)[:, None]}, {},
        r"attention_mask, in which zeros are padding, leaves nothing of 1 sample \(the first is 4\); leave them out"),
    "opposite": ({"key_padding_mask": REAL * 1}, {}, r"key_padding_mask, in which ones are padding, leaves nothing of"),
    "no follower": ({"attention_mask": np.where((np.arange(N) == 6)[:, None], np.arange(T) == 2, REAL) * 1},
        {"score": "tokens", "classes": 30}, r"of 1 sample \(the first is 6\) no token follows another, by attention_mask"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_samples_of_which_nothing_is_left_are_refused(case, tmp_path):
    inputs, options, message = REFUSED[case]
    made("Causal" if options else "Tagged", tmp_path)
    model = f"{tmp_path / 'nets.py'}:{'Causal' if options else 'Tagged'}"
    with pytest.raises(PosthocError, match=message):
        plan_extraction(tmp_path / "run", posthoc.Probe({"input_ids": IDS, **inputs}, **options), model=model)


def test_masks_that_are_none_are_refused():
    with pytest.raises(PosthocError, match=r"the mask attention is int64 \(2, 3\); give ones, and zeros where"):
        posthoc.Probe(np.zeros((2, 3)), mask={"attention": np.full((2, 3), 2)})
    with pytest.raises(PosthocError, match=r"as many samples in all its arrays, .*input 2, mask mask 3"):
        posthoc.Probe(np.zeros((2, 3)), mask=np.eye(3))


def test_signals_of_tokens_are_not_for_padded_rows(tmp_path):
    _, options = made("Causal", tmp_path)
    probe = posthoc.Probe({"input_ids": IDS, "attention_mask": REAL * 1}, axes={"input_ids": ("token",)})
    with pytest.raises(
        UsageError, match=r"--signals token needs rows of tokens without padding, which attention_mask has; give"
    ):
        plan_extraction(tmp_path / "run", probe, model=options["model"], signals=["token"])


def test_a_mask_that_the_network_does_not_take_counts_all_the_same(tmp_path):
    _, options = made("Same", tmp_path)
    (tmp_path / "p.npz").unlink(missing_ok=True)
    np.savez(tmp_path / "p.npz", x=ROWS, attention_mask=REAL * 1)
    with extracted(tmp_path, f"npz:{tmp_path / 'p.npz'}", options, layers=["seen"], images=12) as file:
        assert list(file.recording.identity.probe.preparation["padding"]) == ["attention_mask"]
        space = torch.load(tmp_path / "run" / "epoch_1.pt")
        seen = ROWS @ space["seen.weight"].numpy().T + space["seen.bias"].numpy()
        expected = [row[kept].mean(0) for row, kept in zip(seen, REAL, strict=True)][:12]
        np.testing.assert_allclose(file.read("mean", 0).T, expected, atol=1e-6)
    json.dumps(file.recording.to_dict())
