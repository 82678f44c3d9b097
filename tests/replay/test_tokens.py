"""Rows of tokens through language models: equal to the library's own loop, whole, in shards and beside the controls."""

import json
from dataclasses import replace
from functools import partial

import h5py
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from contents import assert_same
from networks import GPT2, T5
from torch.nn import functional as F

import posthoc
from posthoc.analysis.dfa import dfa
from posthoc.analysis.scales import default_scales
from posthoc.cli import main
from posthoc.errors import PosthocError, UsageError
from posthoc.parts import merge
from posthoc.replay import token_scores
from posthoc.replay.controls import altered
from posthoc.replay.cost import require_memory
from posthoc.replay.hooks import dissect
from posthoc.replay.layout import find_run
from posthoc.replay.planning import plan_extraction
from posthoc.replay.probes.text import _encoded, longest
from posthoc.replay.run import extract, run_extraction
from posthoc.replay.transformers import example_tokens
from posthoc.shards import Shard
from posthoc.store import open_activations

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")
V, T = GPT2["vocab_size"], 24
NEOX = {"vocab_size": V, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
BERT = {**NEOX, "max_position_embeddings": 32}
NETWORKS = {
    "GPTNeoXForCausalLM": ("GPTNeoXConfig", {**NEOX, "max_position_embeddings": 32}, "gpt_neox.layers"),
    "GPT2LMHeadModel": ("GPT2Config", GPT2, "transformer.h"),
    "BertForMaskedLM": ("BertConfig", BERT, "bert.encoder.layer"),
    "T5ForConditionalGeneration": ("T5Config", T5, "encoder.block"),
}
NANO = '''
import torch
from torch import nn

class Nano(nn.Module):
    """As nanoGPT: scores of all places where it is given targets, else of the last."""

    def __init__(self):
        super().__init__()
        self.embed, self.mix, self.head = nn.Embedding(64, 16), nn.GRU(16, 16, batch_first=True), nn.Linear(16, 64)

    def forward(self, idx, targets=None):
        x, _ = self.mix(self.embed(idx))
        if targets is None:
            return self.head(x[:, -1:]), None
        logits = self.head(x)
        return logits, nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)
'''


def network(name, seed):
    config, options, _ = NETWORKS[name]
    torch.manual_seed(seed)
    return getattr(transformers, name)(getattr(transformers, config)(**options)).eval()


def series(folder, name="GPT2LMHeadModel", count=3):
    """A run of that many checkpoints, and a file of 300 tokens."""
    for step in range(count):
        network(name, step).save_pretrained(folder / "run" / f"checkpoint-{step}")
    np.save(folder / "ids.npy", np.random.default_rng(0).integers(0, V, 300).astype("u2"))
    return folder / "run"


def probe(folder):
    return f"tokens:{folder / 'ids.npy'}"


def losses(model, ids):
    """The library's own loop: the loss of each token but the first, row by row."""
    ids = torch.from_numpy(ids.astype("i8"))
    with torch.no_grad():
        logits = model(input_ids=ids, labels=ids).logits
    return F.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none").numpy()


@pytest.mark.parametrize("name", ["GPTNeoXForCausalLM", "GPT2LMHeadModel"])
def test_losses_signals_and_controls_are_those_of_the_librarys_own_loop(tmp_path, name):
    run = series(tmp_path, name, 2)
    controls = ("shuffle", "block:8", "constant")
    options = {"context": T, "batch_size": 5, "channels": 4, "controls": controls, "between": True}
    path = extract(run, probe(tmp_path), tmp_path / "a.h5", **options)
    with open_activations(path) as file:
        ids = file.tokens
        middle, ends = network(name, 0), [dict(network(name, row).named_parameters()) for row in range(2)]
        for parameter, *pair in zip(middle.parameters(), *(end.values() for end in ends), strict=True):
            parameter.data = (pair[0] + pair[1]).detach() / 2
        between = file.behaviour_of_average(2, "loss")
        np.testing.assert_allclose(between[1], losses(middle, ids).mean(1), rtol=1e-6)
        assert np.isnan(between[0]).all()
        assert ids.shape == (300 // T, T)
        np.testing.assert_array_equal(ids.ravel(), np.load(tmp_path / "ids.npy")[: ids.size])
        assert file.recording.identity.probe.axes == {"input_ids": ("token",)}
        assert file.recording.provenance.samples == "documents"
        inputs = {control: altered(control, ids.astype("i8"), file.images, 0) for control in controls}
        layer = f"{NETWORKS[name][2]}.1"
        for row in range(2):
            model, seen = network(name, row), {}
            model.get_submodule(layer).register_forward_hook(lambda _, __, out, seen=seen: seen.update(out=out))
            expected = losses(model, ids)
            np.testing.assert_allclose(file.behaviour("token_loss", row)[:, 1:], expected, atol=1e-5)
            np.testing.assert_allclose(file.behaviour("loss", row), expected.mean(1), atol=1e-5)
            assert file.loss[row] == pytest.approx(expected.mean(), abs=1e-5)
            out = seen["out"][0] if isinstance(seen["out"], tuple) else seen["out"]
            values = out.numpy().transpose(2, 0, 1)[file.channels[layer]]
            np.testing.assert_allclose(file.read("token", row, layer), values, rtol=1e-3, atol=1e-4)
            for control, changed in inputs.items():
                expected = losses(model, changed)
                np.testing.assert_allclose(
                    file.behaviour_of_null(control, "token_loss", row)[:, 1:], expected, atol=1e-5
                )
                out = seen["out"][0] if isinstance(seen["out"], tuple) else seen["out"]
                values = out.numpy().transpose(2, 0, 1)[file.channels[layer]]
                np.testing.assert_allclose(file.read_null(control, "token", row, layer), values, rtol=1e-3, atol=1e-4)
            logits = model(torch.from_numpy(ids.astype("i8"))).logits.detach()
            p = logits.softmax(-1)
            entropy = file.behaviour("token_entropy", row)
            np.testing.assert_allclose(entropy[:, 1:], -(p * p.log()).sum(-1)[:, :-1], atol=1e-5)
            prediction = file.behaviour("token_prediction", row)
            np.testing.assert_array_equal(prediction[:, 1:], logits.argmax(-1)[:, :-1])
            assert np.isnan(entropy[:, 0]).all()
            assert (prediction[:, 0] == -1).all()


def test_rows_of_ones_own_are_scored_as_tokens_whatever_the_vocabulary(tmp_path):
    run = series(tmp_path, "GPT2LMHeadModel", 2)
    ids = np.random.default_rng(1).integers(0, V // 2, (9, T))
    for inputs in ({"input_ids": ids}, {"input_ids": ids, "attention_mask": np.ones_like(ids)}):
        path = extract(run, posthoc.Probe(inputs, score="tokens"), tmp_path / "a.h5", force=True)
        with open_activations(path) as file:
            for row in range(2):
                expected = losses(network("GPT2LMHeadModel", row), ids)
                np.testing.assert_allclose(file.behaviour("token_loss", row)[:, 1:], expected, atol=1e-5)
    masked = series(tmp_path / "masked", "BertForMaskedLM", 1)
    plan = plan_extraction(masked, posthoc.Probe({"input_ids": ids}), score="tokens")
    assert "depends on the tokens after it" in dict(plan.notes)["score"]


@pytest.mark.parametrize("name", list(NETWORKS))
def test_hook_points_are_found_without_computing_anything(name):
    module = network(name, 0)
    rows = example_tokens(module)

    def example(samples, larger):
        return {key: torch.from_numpy(ids[:samples, : 24 if larger else 16]) for key, ids in rows.items()}

    here = dissect(module, example)
    there = dissect(module.to("meta"), example)  # which has no numbers to compute with
    assert f"{NETWORKS[name][2]}.1" in [point.name for point in here.points]
    assert there.output == here.output
    assert [(p.name, p.shape, p.same_as) for p in there.points] == [(p.name, p.shape, p.same_as) for p in here.points]


def test_shards_and_a_run_that_goes_on_give_the_same_to_the_bit(tmp_path, monkeypatch):
    run = series(tmp_path)
    options = {"context": T, "documents": 6, "channels": 4, "controls": ("shuffle", "block:8", "constant", "untrained")}
    whole = extract(run, probe(tmp_path), tmp_path / "a.h5", **options)
    monkeypatch.setattr("posthoc.spool.IN_MEMORY", 0)  # and so do signals that go by way of the disk
    monkeypatch.setattr("posthoc.writing.IN_MEMORY", 0)
    for index in (1, 2):
        plan = plan_extraction(run, probe(tmp_path), **options)
        run_extraction(plan, tmp_path / "b.h5", shard=Shard(index, 2))
    merge(tmp_path / "b.h5")
    assert_same(whole, tmp_path / "b.h5")
    plain = extract(run, probe(tmp_path), tmp_path / "c.h5", **options | {"controls": ()})
    with open_activations(whole) as file, open_activations(plain) as other:
        assert len(file.untrained_seeds) == 1
        assert file.nulls == ("shuffle", "block:8", "constant")
        for row in range(3):
            np.testing.assert_array_equal(file.read("token", row), other.read("token", row))
            np.testing.assert_array_equal(file.behaviour("token_loss", row), other.behaviour("token_loss", row))


def test_scores_in_pieces_are_those_of_all_at_once(monkeypatch):
    torch.manual_seed(0)
    scores, ids = torch.randn(5, 9, 11), torch.randint(0, 11, (5, 9))
    whole = token_scores.next_token(scores, ids)
    for values in (1, 40, 150, 250):
        monkeypatch.setattr(token_scores, "VALUES_ON_CPU", values)
        for name, column in token_scores.next_token(scores, ids).items():
            torch.testing.assert_close(column, whole[name], rtol=0, atol=0, equal_nan=True)
    expected = F.cross_entropy(scores[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
    torch.testing.assert_close(whole["token_loss"][:, 1:], expected)
    p = scores[:, :-1].double().softmax(-1)
    torch.testing.assert_close(whole["token_entropy"][:, 1:].double(), -(p * p.log()).sum(-1), rtol=1e-5, atol=1e-6)
    scores[:, :, 3] = -torch.inf  # of a token that the network rules out
    without = token_scores.next_token(scores, ids)
    p = scores[:, :-1].double().softmax(-1)
    torch.testing.assert_close(
        without["token_entropy"][:, 1:].double(), torch.special.entr(p).sum(-1), rtol=1e-5, atol=1e-6
    )
    assert (without["token_loss"][:, 1:][ids[:, 1:] == 3] == torch.inf).all()


@pytest.mark.parametrize("vocabulary", [2, 5000])
def test_the_compiled_scores_are_those_of_torch(vocabulary):
    torch.manual_seed(0)
    scores, ids = 20 * torch.randn(2, 6, vocabulary) - 100, torch.randint(0, vocabulary, (2, 6))
    scores[0, 1, 0], scores[1, 2, 1], scores[1, 3, 0] = -torch.inf, torch.nan, torch.inf
    columns = [(torch.zeros(2, 6), torch.zeros(2, 6), torch.zeros(2, 6, dtype=torch.int32)) for _ in range(2)]
    token_scores._by_torch(scores, ids, *columns[0])
    token_scores._compiled(scores, ids, *columns[1])
    for theirs, ours in zip(*columns, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-5, equal_nan=True)
    assert ours[0, 0] == 0
    assert columns[1][0][:, 1:].isnan().sum() == 2


def test_what_sees_later_tokens_is_recorded_and_not_scored(tmp_path):
    run = series(tmp_path, "BertForMaskedLM", 1)
    plan = plan_extraction(run, probe(tmp_path), context=T)
    assert plan.scored.path is None
    assert "depends on the tokens after it" in plan.scored.reason
    path = run_extraction(plan, tmp_path / "a.h5").path
    with open_activations(path) as file:
        assert file.behaviours == ()
        assert np.isnan(file.loss).all()
        assert file.read("token", 0, "bert.encoder.layer.1").shape == (16, 300 // T, T)


def test_of_an_encoder_and_decoder_the_encoder_is_recorded(tmp_path):
    run = series(tmp_path, "T5ForConditionalGeneration", 1)
    path = extract(run, probe(tmp_path), tmp_path / "a.h5", context=T, layers=("encoder.block.*",), channels=None)
    ids = np.load(tmp_path / "ids.npy")[: 300 // T * T].reshape(-1, T).astype("i8")
    model = network("T5ForConditionalGeneration", 0)
    with torch.no_grad():
        states = model.encoder(torch.from_numpy(ids), output_hidden_states=True).hidden_states
    with open_activations(path) as file:
        assert all(layer.startswith("encoder.block.") for layer in file.layers)
        np.testing.assert_allclose(
            file.read("token", 0, "encoder.block.0"), states[1].permute(2, 0, 1), rtol=1e-3, atol=1e-4
        )


def test_a_network_like_nanogpt_is_given_the_tokens_that_follow(tmp_path):
    series(tmp_path, count=0)
    (tmp_path / "nano.py").write_text(NANO)
    names = {}
    exec(compile(NANO, "nano.py", "exec"), names)
    torch.manual_seed(3)
    model = names["Nano"]()
    torch.save({"model": model.state_dict(), "iter_num": 10}, tmp_path / "ckpt.pt")
    np.load(tmp_path / "ids.npy").tofile(tmp_path / "val.bin")
    path = extract(
        tmp_path / "ckpt.pt", f"tokens:{tmp_path / 'val.bin'}", tmp_path / "a.h5", context=T, layers=("mix",),
        model=f"{tmp_path / 'nano.py'}:Nano",
    )  # fmt: skip
    with open_activations(path) as file, torch.no_grad():
        ids = torch.from_numpy(file.tokens.astype("i8"))
        logits = model(ids, ids)[0]
        expected = F.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
        np.testing.assert_allclose(file.behaviour("token_loss", 0)[:, 1:], expected, atol=1e-5)


KARPATHY = """
import torch
from torch import nn

class Video(nn.Module):
    \"\"\"As gpt.py of ng-video-lecture: scores of all places without targets, flat with them.\"\"\"

    def __init__(self):
        super().__init__()
        self.embed, self.place, self.head = nn.Embedding(64, 16), nn.Embedding(32, 16), nn.Linear(16, 64)
        self.mix = nn.GRU(16, 16, batch_first=True)

    def forward(self, idx, targets=None):
        logits = self.scores(idx)
        if targets is None:
            return logits, None
        logits = logits.view(-1, 64)
        return logits, nn.functional.cross_entropy(logits, targets.view(-1))

    def scores(self, idx):
        place = self.place(torch.arange(idx.shape[1], device=idx.device))
        return self.head(self.mix(place + self.embed(idx))[0])

class Strict(Video):
    \"\"\"Scores of all places where there are targets, of which each must be a token.\"\"\"

    def forward(self, x, targets=None):
        logits = self.scores(x)
        if targets is None:
            return logits[:, -1:], None
        return logits, nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

class Needed(Strict):
    def forward(self, idx, targets):
        return super().forward(idx, targets)

class Shifted(Video):
    \"\"\"Of ids that are no view of those given, and places for each row.\"\"\"

    def forward(self, x):
        place = self.place(torch.arange(x.shape[1], device=x.device).view(1, -1))
        return self.head(self.mix(place + self.embed(x.clone()))[0])
"""


@pytest.mark.parametrize("name", ["Video", "Strict", "Needed", "Shifted"])
def test_the_embeddings_and_the_form_are_found_by_running_whatever_comes_first(tmp_path, name):
    series(tmp_path, count=0)
    (tmp_path / "video.py").write_text(KARPATHY)
    names = {}
    exec(compile(KARPATHY, "video.py", "exec"), names)
    torch.manual_seed(3)
    model = names[name]()
    torch.save({"model": model.state_dict(), "iter_num": 10}, tmp_path / "ckpt.pt")
    asked = {"context": T, "layers": ("mix",), "model": f"{tmp_path / 'video.py'}:{name}", "channels": None}
    np.save(tmp_path / "ids.npy", np.r_[63, np.load(tmp_path / "ids.npy")])  # the last that it knows: places go to 31
    path = extract(tmp_path / "ckpt.pt", probe(tmp_path), tmp_path / "a.h5", **asked)
    with open_activations(path) as file, torch.no_grad():
        ids = torch.from_numpy(file.tokens.astype("i8"))
        logits = model.scores(ids)
        expected = F.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
        np.testing.assert_allclose(file.behaviour("token_loss", 0)[:, 1:], expected, atol=1e-5)
    np.save(tmp_path / "ids.npy", np.full(300, 64))
    with pytest.raises(PosthocError, match="has a token of id 64, beyond the 64 that"):
        plan_extraction(tmp_path / "ckpt.pt", probe(tmp_path), trial=False, **asked)


def test_ids_of_another_type_than_they_are_read_as_are_cautioned_about(tmp_path):
    run = series(tmp_path, count=1)
    ids = np.random.default_rng(0).integers(1, V, 301)
    for kind, read, wider in (("u4", "uint16", "uint32"), ("i8", "uint32", "uint64"), ("i8", "uint16", "uint32")):
        ids.astype(kind).tofile(tmp_path / "ids.bin")
        for context in (T, T - 1):
            asked = {"context": context, "documents": 7, "token_dtype": None if read == "uint16" else read}
            notes = dict(plan_extraction(run, f"tokens:{tmp_path / 'ids.bin'}", trial=False, **asked).notes)
            assert "every second id of" in notes["caution"]
            assert (
                f"is 0, as where ids of {wider} are read as {read}; if they are, pass --token-dtype {wider}"
                in notes["caution"]
            )
        asked["token_dtype"] = {"u4": "uint32", "i8": "int64"}[kind]
        assert "caution" not in dict(plan_extraction(run, f"tokens:{tmp_path / 'ids.bin'}", trial=False, **asked).notes)
    ids.astype("u2").tofile(tmp_path / "ids.bin")
    assert "caution" not in dict(plan_extraction(run, f"tokens:{tmp_path / 'ids.bin'}", trial=False, context=T).notes)


def test_of_scores_of_every_token_there_is_no_single_vector_to_keep(tmp_path):
    with pytest.raises(
        UsageError, match="--features: GPT2LMHeadModel gives scores at many places of each of the documents"
    ):
        plan_extraction(series(tmp_path, count=1), probe(tmp_path), context=T, features=True)


def tokenizer(folder, text):
    """A tokenizer of the words of a text, in a folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: number for number, word in enumerate(["?", *dict.fromkeys(text.split())])}
    made = Tokenizer(models.WordLevel(words, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.enable_truncation(3)
    made.enable_padding(length=5)
    folder.mkdir(exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    return words


def test_text_is_cut_into_rows_that_no_two_texts_share_spread_evenly(tmp_path):
    run = series(tmp_path, count=1)
    texts = ["a b c d e f g", "h i", "b d f a c e g i h\na b c d"]
    words = tokenizer(tmp_path / "tokenizer", " ".join(texts))
    (tmp_path / "texts.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts) + "\n\n")
    rows = ["a b c", "d e f", "b d f", "a c e", "g i h", "a b c"]
    ids = np.array([[words[word] for word in row.split()] for row in rows])
    asked = {"context": 3, "tokenizer": tmp_path / "tokenizer"}
    plan = plan_extraction(run, f"text:{tmp_path / 'texts.jsonl'}", trial=False, **asked)
    np.testing.assert_array_equal(plan.probe.tokens, ids)
    plan = plan_extraction(run, f"text:{tmp_path / 'texts.jsonl'}", trial=False, documents=3, **asked)
    np.testing.assert_array_equal(plan.probe.tokens, ids[::2])
    np.testing.assert_array_equal(plan.stored.index, [0, 2, 4])
    for name, text in zip("abc", texts, strict=True):
        (tmp_path / f"{name}.txt").write_text(text)
    plan = plan_extraction(run, f"text:{tmp_path}/?.txt", trial=False, **asked)
    np.testing.assert_array_equal(plan.probe.tokens, ids)
    np.testing.assert_array_equal(plan.stored.text_bytes, [4] * 6)  # of " b c": the first token is not scored
    digest = plan.probe.sha256
    np.save(tmp_path / "rows.npy", ids.astype("i4"))  # the replay needs no tokenizer
    plan = plan_extraction(run, f"tokens:{tmp_path / 'rows.npy'}", trial=False)
    assert plan.probe.sha256 == digest


def test_bytes_of_a_row_are_those_of_its_text_in_utf8(tmp_path, monkeypatch):
    run = series(tmp_path, count=1)
    text = "aé b€\nc 𝄞𝄞\nd\ne  f\n" * 3
    tokenizer(tmp_path / "tokenizer", text)
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    for piece, reach in ((2**20, 2**12), (24, 8)):  # characters that are made into tokens at a time
        monkeypatch.setattr("posthoc.replay.probes.text.PIECE", piece)
        monkeypatch.setattr("posthoc.replay.probes.text.REACH", reach)
        plan = plan_extraction(
            run, f"text:{tmp_path / 'a.txt'}", trial=False, context=7, tokenizer=tmp_path / "tokenizer"
        )
        expected = len(" b€\nc 𝄞𝄞\nd\ne  f".encode())
        np.testing.assert_array_equal(plan.stored.text_bytes, [expected] * 3)


TOKENIZERS = {
    "words": ("BPE", tokenizers.pre_tokenizers.Metaspace(prepend_scheme="first"), None),
    "bytes": ("BPE", tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True), None),
    "no words": ("BPE", None, tokenizers.normalizers.Prepend("▁")),
    "likeliest": ("Unigram", tokenizers.pre_tokenizers.Metaspace(), None),
}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_text_in_pieces_has_the_tokens_of_the_whole(kind, monkeypatch):
    model, words, normalizer = TOKENIZERS[kind]
    made = tokenizers.Tokenizer(getattr(tokenizers.models, model)())
    if words:
        made.pre_tokenizer = words
    if normalizer:
        made.normalizer = normalizer
    random = np.random.default_rng(0)
    known = ["alpha", "beta", "é€", "one", "two\n", "\n\n", "𝄞𝄞", "  ", "threefold."]
    text = " ".join(random.choice(known, 4000))
    trainers = {"BPE": tokenizers.trainers.BpeTrainer, "Unigram": tokenizers.trainers.UnigramTrainer}
    trainer = trainers[model](vocab_size=100, special_tokens=["<unk>"])
    made.train_from_iterator([text[:5000]], trainer)
    whole, until = _encoded(made, text, "a text")
    encoded = made.encode(text, add_special_tokens=False)
    np.testing.assert_array_equal(whole, encoded.ids)
    np.testing.assert_array_equal(until, [len(text[:end].encode()) for _, end in encoded.offsets])
    monkeypatch.setattr("posthoc.replay.probes.text.PIECE", 1000)
    monkeypatch.setattr("posthoc.replay.probes.text.REACH", 100)
    ids, ends = _encoded(made, text, "a text")
    np.testing.assert_array_equal(ids, whole)
    np.testing.assert_array_equal(ends, until)


def test_a_network_of_text_and_images_says_itself_how_many_tokens_it_takes():
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = transformers.CLIPConfig(
        text_config=sizes | {"vocab_size": 30, "max_position_embeddings": 40},
        vision_config=sizes | {"image_size": 8, "patch_size": 4},
        projection_dim=4,
    )
    assert longest(transformers.CLIPModel(config)) == 40


def test_a_control_depends_on_the_seed_and_the_document_alone():
    ids, index = np.random.default_rng(0).integers(0, 9, (4, 12)), np.array([3, 8, 9, 20])
    for name in ("shuffle", "block:5", "constant"):
        whole = altered(name, ids, index, 7)
        np.testing.assert_array_equal(
            altered(name, ids[2:], index[2:], 7),
            whole[2:] if name != "constant" else altered(name, ids[2:], index[2:], 7),
        )
        assert whole.shape == ids.shape
        if name != "constant":
            np.testing.assert_array_equal(np.sort(whole), np.sort(ids))
            assert not np.array_equal(whole, altered(name, ids, index, 8))
    assert (altered("constant", ids, index, 7) == np.bincount(ids.ravel()).argmax()).all()
    blocks = {tuple(ids[0][k : k + 5]) for k in (0, 5, 10)}
    row = altered("block:5", ids[:1], index[:1], 7)[0].tolist()
    assert any(tuple(row[k : k + 5]) in blocks for k in range(8))


def test_summed_up_signals_agree_with_those_computed_from_every_token(tmp_path):
    config = transformers.GPTNeoXConfig(**{**NETWORKS["GPTNeoXForCausalLM"][1], "max_position_embeddings": 200})
    torch.manual_seed(0)
    transformers.GPTNeoXForCausalLM(config).save_pretrained(tmp_path / "run" / "checkpoint-1")
    np.save(tmp_path / "ids.npy", np.random.default_rng(0).integers(0, V, (5, 200)))
    options = {"channels": None, "batch_size": 2, "controls": ("shuffle",)}
    signals = ("token", "fluctuation", "autocovariance", "covariance", "position_mean", "position_var")
    path = extract(tmp_path / "run", probe(tmp_path), tmp_path / "a.h5", signals=signals, **options)
    with open_activations(path) as file:
        scales, lags = default_scales(200 - 64), 2 ** np.arange(7)
        with h5py.File(path, locking=False) as raw:
            np.testing.assert_array_equal(raw["signals/scale.fluctuation.gpt_neox.layers.0"], scales)
            np.testing.assert_array_equal(raw["signals/lag.autocovariance.gpt_neox.layers.0"], [0, *lags])
            np.testing.assert_array_equal(raw["signals/octave.position_var.gpt_neox.layers.0"], [0, *2 ** np.arange(8)])
            np.testing.assert_array_equal(raw["signals/other.covariance.gpt_neox.layers.1"], np.arange(16))
        for read in (file.read, partial(file.read_null, "shuffle")):
            x = read("token", 0).astype("f8")
            for k, start in enumerate([0, *2 ** np.arange(8)]):
                positions, scale = x[:, :, start : max(1, 2 * start)], x.std()
                np.testing.assert_allclose(read("position_mean", 0)[..., k], positions.mean(-1), atol=2e-3 * scale)
                np.testing.assert_allclose(read("position_var", 0)[..., k], positions.var(-1), 2e-2, 1e-3 * scale**2)
            x = x[:, :, 64:]
            layer = slice(16, 32)
            expected = [np.cov(x[layer, d], bias=True) for d in range(x.shape[1])]
            np.testing.assert_allclose(
                read("covariance", 0, "gpt_neox.layers.1").swapaxes(0, 1), expected, atol=5e-3 * x[layer].var()
            )
            U, D, n = x.shape
            F = dfa(x.reshape(U * D, n), scales).fluctuation.reshape(U, D, -1)
            sums = read("fluctuation", 0)
            np.testing.assert_allclose(np.sqrt(sums / (n // scales * scales)), F, rtol=5e-3)
            x -= x.mean(-1, keepdims=True)
            expected = [(x * x).mean(-1), *((x[..., :-k] * x[..., k:]).sum(-1) / n for k in lags)]
            variance = expected[0]
            for k, column in enumerate(expected):
                assert (np.abs(read("autocovariance", 0)[..., k] - column) < 5e-3 * variance).all()


REFUSED = [
    ("tokens:high.npy", {}, "has a token of id 64, beyond the 64 that GPT2LMHeadModel knows"),
    ("tokens:negative.npy", {}, "holds -1, which is no id of a token"),
    ("tokens:real.npy", {}, "is an array of float64; ids of tokens are whole numbers"),
    ("tokens:cube.npy", {}, "is of shape (2, 2, 2); give one series of ids, or rows of them"),
    ("tokens:object.npy", {}, "is an array of object"),
    ("tokens:columns.npy", {}, "is stored by columns"),
    ("tokens:short.npy", {}, "holds 3 tokens, and a row has 24"),
    ("tokens:cut.npy", {"context": 8}, "is damaged or cut short"),
    ("tokens:wide.npy", {"context": None}, "has rows of 40: GPT2LMHeadModel takes at most 32 tokens"),
    ("tokens:rows.npy", {}, "--context 24: rows.npy has rows of 8, which are taken as they are"),
    ("tokens:odd.bin", {}, "which are no whole number of uint16; pass --token-dtype"),
    ("tokens:ids.npy", {"context": 64}, "--context 64: GPT2LMHeadModel takes at most 32 tokens"),
    ("tokens:ids.npy", {"documents": 40}, "--documents 40: ids.npy gives 12 rows of 24 tokens"),
    ("tokens:ids.npy", {"token_dtype": "uint32"}, "says itself of what type it is"),
    ("tokens:odd.bin", {"token_dtype": "float32"}, "Unknown --token-dtype 'float32'"),
    ("tokens:ids.npy", {"controls": ["block:24"]}, "a document has 24 tokens, so it is one block"),
    ("tokens:ids.npy", {"signals": ["fluctuation"]}, "documents of 24 tokens are too short; 84 are the least"),
    ("tokens:ids.npy", {"controls": ["reverse"]}, "there is no such control; give shuffle, block:LENGTH, constant or"),
    ("tokens:ids.npy", {"tokenizer": "x"}, "--tokenizer is no option of the probe tokens"),
    ("tokens:none.npy", {}, "Cannot read none.npy: No such file or directory"),
    ("text:a.txt", {}, "There is no tokenizer.json beside the checkpoints"),
    ("text:a.txt", {"tokenizer": "bad"}, "is no tokenizer that the library reads"),
    ("text:a.txt", {"tokenizer": "none"}, "--tokenizer none: there is no tokenizer.json"),
    ("text:a.txt", {"tokenizer": "good"}, "3 tokens, and the text has not the 24 of a row"),
    ("text:latin.txt", {"tokenizer": "good"}, "is no text in UTF-8 (byte 1)"),
    ("text:lines.jsonl", {"tokenizer": "good"}, "line 2 has no text"),
    ("text:empty", {"tokenizer": "good"}, "No text in empty"),
    ("text:*.py", {"tokenizer": "good"}, "No file is called like *.py"),
    ("digits", {"context": 8}, "--context is no option of the probe digits"),
]  # fmt: skip


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    series(folder, count=1)
    arrays = {
        "high": np.full(300, V), "negative": np.full(300, -1), "real": np.zeros(300), "cube": np.zeros((2, 2, 2), int),
        "columns": np.asfortranarray(np.zeros((3, 8), int)), "short": np.zeros(3, int), "wide": np.zeros((3, 40), int),
        "rows": np.zeros((3, 8), int), "cut": np.zeros(300, int),
    }  # fmt: skip
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    np.save(folder / "object.npy", np.array([{}] * 300), allow_pickle=True)
    content = (folder / "cut.npy").read_bytes()
    (folder / "cut.npy").write_bytes(content[:-9])
    (folder / "odd.bin").write_bytes(bytes(301))
    (folder / "a.txt").write_text("a b c")
    (folder / "latin.txt").write_bytes(b"a\xe9b")
    (folder / "lines.jsonl").write_text('"a b"\n{"body": 1}\n')
    (folder / "empty").mkdir()
    tokenizer(folder / "good", "a b c")
    (folder / "bad").mkdir()
    (folder / "bad" / "tokenizer.json").write_text('{"version": "1.0"}')
    return folder


@pytest.mark.parametrize(("spec", "options", "sentence"), REFUSED)
def test_what_does_not_fit_is_refused_in_a_sentence(hostile, monkeypatch, spec, options, sentence):
    monkeypatch.chdir(hostile)
    asked = {} if spec == "digits" else {"context": T}
    asked |= {name: value for name, value in options.items()}
    with pytest.raises((PosthocError, UsageError)) as caught:
        plan_extraction(hostile / "run", spec, trial=False, **asked)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_command_says_what_it_costs_and_writes_nothing(tmp_path):
    run = series(tmp_path)
    asked = ["--probe", probe(tmp_path), "--context", str(T), "--controls", "shuffle,untrained", "--dry-run"]
    result = CliRunner().invoke(main, ["extract", str(run), *asked])
    assert result.exit_code == 0, result.output
    parameters = sum(p.numel() for p in network("GPT2LMHeadModel", 0).parameters())
    read = sum(file.stat().st_size for file in run.glob("*/model.safetensors"))
    operations = 2 * parameters * 288 * 7
    line = next(line for line in result.output.splitlines() if line.startswith("cost"))
    assert f"{operations / 1e6:.3g} MFLOP" in line
    assert f"{read / 1e3:.3g} kB read" in line
    assert "288 tokens x (3 checkpoints x 2 inputs + 1 untrained)" in line
    line = next(line for line in result.output.splitlines() if line.startswith("memory"))
    assert f"{8 * parameters / 1e3:.3g} kB for the weights" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ids.npy", "run"]


def test_weights_that_there_is_no_room_for_are_refused_before_anything_is_built(tmp_path):
    checkpoint = find_run(series(tmp_path, count=1)).checkpoints[0]
    require_memory(checkpoint, torch.device("cpu"))
    large = replace(checkpoint, header=replace(checkpoint.header, shapes={"a": (10**6, 10**7), "b": (10**12,)}))
    words = (
        r"checkpoint-0 has 11 T parameters, for which replaying takes 88 TB of memory; cpu has [\d.]+ GB free\. Run it"
    )
    with pytest.raises(PosthocError, match=words):
        require_memory(large, torch.device("cpu"))


def test_sums_are_in_single_precision_whatever_the_networks(tmp_path):
    torch.manual_seed(0)
    config = transformers.GPTNeoXConfig(**{**NETWORKS["GPTNeoXForCausalLM"][1], "max_position_embeddings": 200})
    transformers.GPTNeoXForCausalLM(config).save_pretrained(tmp_path / "run" / "checkpoint-1")
    np.save(tmp_path / "ids.npy", np.random.default_rng(0).integers(0, V, (3, 200)))
    options = {"channels": None, "batch_size": 2, "dtype": "bfloat16", "signals": ("covariance",)}
    with open_activations(extract(tmp_path / "run", probe(tmp_path), tmp_path / "a.h5", **options)) as file:
        covariance = file.read("covariance", 0, "gpt_neox.layers.1").swapaxes(0, 1)
    assert covariance.dtype == np.float32
    assert (covariance != torch.from_numpy(covariance).bfloat16().float().numpy()).mean() > 0.9
    np.testing.assert_array_equal(covariance, covariance.swapaxes(1, 2))
