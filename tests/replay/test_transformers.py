"""Networks of the transformers library, from the config.json beside their weights: equal to the library's own loading."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from networks import GPT2, T5
from safetensors.torch import load_file, save_file

import posthoc
from posthoc.cli import main
from posthoc.errors import PosthocError, UsageError
from posthoc.replay.checkpoint import read_header, read_weights
from posthoc.replay.marks import Merged, assembled
from posthoc.replay.models import resolve_model

transformers = pytest.importorskip("transformers")
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
VIT = {**SMALL, "image_size": 32, "patch_size": 8, "num_labels": 10}
MIXTRAL = {**SMALL, "vocab_size": 64, "num_key_value_heads": 1, "num_local_experts": 3}
NETWORKS = {
    "GPTNeoXForCausalLM": ("GPTNeoXConfig", {**SMALL, "vocab_size": 64}),
    "GPT2LMHeadModel": ("GPT2Config", GPT2),
    "BertForSequenceClassification": ("BertConfig", {**SMALL, "vocab_size": 64, "num_labels": 3}),
    "ViTForImageClassification": ("ViTConfig", VIT),
    "T5EncoderModel": ("T5Config", T5),
    "MixtralForCausalLM": ("MixtralConfig", MIXTRAL),  # its file has each expert's matrices, the network all in one
}


def build(name, **changes):
    """A network with new weights."""
    config, options = NETWORKS[name]
    torch.manual_seed(0)
    return getattr(transformers, name)(getattr(transformers, config)(**{**options, **changes})).eval()


def inputs(name):
    torch.manual_seed(1)
    return torch.rand(2, 3, 32, 32) if name.startswith("ViT") else torch.randint(0, 64, (2, 12))


def resolve(folder, given=None, arguments=None):
    return resolve_model(read_header(folder), given, arguments=arguments, place=folder)


def with_weights(model, folder):
    """The network with a checkpoint's tensors in place of its own, as the pipeline does it."""
    state = model.module.state_dict(keep_vars=True)
    weights = read_weights(folder)
    for name, tensor in assembled(model.names(read_header(folder).shapes), weights).items():
        state[name].data = tensor.to(state[name].dtype)
    return model.module


@pytest.mark.parametrize("name", NETWORKS)
def test_equal_to_the_librarys_own_loading_to_the_bit(tmp_path, name):
    build(name).save_pretrained(tmp_path)
    model = resolve(tmp_path)
    assert (model.name, model.source, model.left_out) == (name, "from config.json", ())
    theirs = getattr(transformers, name).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(with_weights(model, tmp_path)(inputs(name))[0], theirs(inputs(name))[0])


def test_experts_of_a_mixture_are_put_together_at_every_checkpoint(tmp_path):
    tokens = torch.randint(0, 64, (24, 12))
    np.savez(tmp_path / "tokens.npz", input_ids=tokens.numpy())
    for step in (1, 2):
        network = build("MixtralForCausalLM")
        with torch.no_grad():
            for parameter in network.parameters():
                parameter *= step
        network.save_pretrained(tmp_path / "run" / f"checkpoint-{step}")
    names = resolve(tmp_path / "run" / "checkpoint-1").names(read_header(tmp_path / "run" / "checkpoint-1").shapes)
    merged = names["model.layers.1.mlp.experts.gate_up_proj"]
    assert isinstance(merged, Merged)
    assert (merged.shape, len(merged.pieces)) == ((3, 64, 16), 6)
    path = posthoc.extract(
        tmp_path / "run", f"npz:{tmp_path / 'tokens.npz'}", tmp_path / "a.h5", layers=["mlp"], channels=None
    )
    with posthoc.open_activations(path) as file:
        assert file.layers == ("model.layers.0.mlp", "model.layers.1.mlp")
        for row, name in enumerate(file.checkpoints):
            network = transformers.MixtralForCausalLM.from_pretrained(tmp_path / "run" / name).eval()
            kept = []
            hook = network.model.layers[1].mlp.register_forward_hook(lambda m, i, o, kept=kept: kept.append(o))
            with torch.no_grad():
                network(tokens)
            hook.remove()
            np.testing.assert_allclose(file.read("mean", row, file.layers[1]), kept[0].mean(1).T, rtol=1e-4, atol=1e-7)
    weights = read_weights(tmp_path / "run" / "checkpoint-1")
    weights[merged.pieces[0][0]] = weights[merged.pieces[0][0]].half()
    with pytest.raises(PosthocError, match="are of different types, and one tensor of the network"):
        merged.made_of(weights)


def test_other_checkpoints_may_hold_the_tied_weight_or_a_trainers_prefix(tmp_path):
    network = build("GPT2LMHeadModel")
    network.save_pretrained(tmp_path / "tied")
    weights = load_file(tmp_path / "tied" / "model.safetensors")
    assert "lm_head.weight" not in weights
    both = weights | {"lm_head.weight": weights["transformer.wte.weight"].clone()}
    for folder, tensors in {"both": both, "wrapped": {f"module.net.{name}": t for name, t in weights.items()}}.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text((tmp_path / "tied" / "config.json").read_text())
        save_file(tensors, tmp_path / folder / "model.safetensors")
        model = resolve(tmp_path / folder)
        with torch.no_grad():
            ours = with_weights(model, tmp_path / folder)(inputs(""))[0]
            assert torch.equal(ours, network(inputs(""))[0])


def test_weights_that_are_not_all_there_or_of_another_size_are_refused(tmp_path):
    network = build("BertForSequenceClassification")
    network.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    more = weights | {"cls.predictions.bias": torch.zeros(64)}
    save_file(more, tmp_path / "model.safetensors")
    assert resolve(tmp_path).left_out == ("cls.predictions.bias",)
    without = {name: tensor for name, tensor in weights.items() if name != "classifier.weight"}
    save_file(without, tmp_path / "model.safetensors")
    with pytest.raises(PosthocError, match=r"do not fit BertForSequenceClassification: missing: classifier.weight"):
        resolve(tmp_path)
    save_file(weights | {"classifier.weight": torch.zeros(5, 16)}, tmp_path / "model.safetensors")
    with pytest.raises(PosthocError, match=r"of another shape: classifier.weight \[5, 16\] instead of \[3, 16\]"):
        resolve(tmp_path)


def change(folder, **entries):
    path = folder / "config.json"
    content = json.loads(path.read_text()) | entries
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def test_nothing_in_a_config_runs_code(tmp_path):
    build("GPTNeoXForCausalLM").save_pretrained(tmp_path)
    (tmp_path / "mine.py").write_text(f"import pathlib; pathlib.Path({str(tmp_path / 'ran')!r}).touch()\n")
    cases = [
        ({"auto_map": {"AutoModel": "mine.Net"}}, "names code beside the weights"),
        ({"text_config": {"auto_map": {"AutoConfig": "mine.Config"}}}, "names code beside the weights"),
        ({"auto_map": None, "text_config": None, "architectures": ["mine.Net"]}, "has no network mine.Net"),
        ({"architectures": ["PreTrainedModel"]}, "has no network PreTrainedModel"),
        ({"architectures": ["BertModel"]}, "BertModel is no network of model_type gpt_neox"),
        ({"model_type": "../mine"}, "has no model_type"),
        ({"model_type": "gpt_neox", "architectures": None, "quantization_config": {"bits": 4}}, "quantised"),
    ]
    for entries, message in cases:
        change(tmp_path, **entries)
        with pytest.raises(PosthocError, match=message):
            resolve(tmp_path)
    assert not (tmp_path / "ran").exists()
    # Without a class the plain network of the type: its head is not there, and said to be no part of it.
    change(tmp_path, quantization_config=None)
    model = resolve(tmp_path)
    assert (model.name, model.left_out) == ("GPTNeoXModel", ("embed_out.weight",))


def test_given_by_the_command_line(tmp_path):
    network = build("GPTNeoXForCausalLM")
    network.save_pretrained(tmp_path / "run")
    save_file(network.state_dict(), tmp_path / "1.safetensors")
    assert resolve(tmp_path / "run", "transformers").source == "given"
    assert resolve(tmp_path / "1.safetensors", f"transformers:{tmp_path / 'run'}").name == "GPTNeoXForCausalLM"
    config = f"transformers:{tmp_path / 'run' / 'config.json'}"
    options = {"architectures": ["GPTNeoXModel"], "num_hidden_layers": 1}
    smaller = resolve(tmp_path / "1.safetensors", config, options)
    assert smaller.name == "GPTNeoXModel"
    assert len(smaller.module.layers) == 1
    with pytest.raises(UsageError, match=r"no config.json of transformers lies there"):
        resolve(tmp_path / "1.safetensors", "transformers")


def test_new_weights_are_those_of_the_librarys_constructor(tmp_path):
    network = build("ViTForImageClassification")
    network.save_pretrained(tmp_path)
    model = resolve(tmp_path)
    torch.manual_seed(7)
    expected = transformers.ViTForImageClassification(network.config).state_dict()
    drawn = model.drawn(7).state_dict()
    assert all(torch.equal(drawn[name], tensor) for name, tensor in expected.items())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A ViT and what the installed Trainer left of its training on bright and dark images."""
    folder = tmp_path_factory.mktemp("trainer")
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 64)
    images = (generator.integers(0, 128, (64, 32, 32, 3)) + 127 * labels[:, None, None, None]).astype(np.uint8)
    np.savez(folder / "probe.npz", images=images, labels=labels)
    network = build("ViTForImageClassification", num_labels=2, initializer_range=0.3)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    data = [{"pixel_values": x, "labels": int(y)} for x, y in zip(pixels, labels, strict=True)]
    arguments = transformers.TrainingArguments(
        str(folder / "run"), per_device_train_batch_size=16, max_steps=36, save_steps=12, learning_rate=3e-3,
        report_to=[], use_cpu=True, disable_tqdm=True, seed=0,
    )  # fmt: skip
    transformers.Trainer(network, arguments, train_dataset=data).train()
    return folder, pixels, torch.from_numpy(labels)


def test_what_the_trainer_saved_replays_as_a_plain_loop_of_the_library(trained, tmp_path):
    folder, pixels, labels = trained
    output = tmp_path / "a.h5"
    modules = dict(build("ViTForImageClassification").named_modules())
    layers = [name for name, part in modules.items() if type(part).__name__ == "ViTLayer"]
    command = ["extract", str(folder / "run"), "--probe", f"npz:{folder / 'probe.npz'}", "--normalize", "none"]
    command += ["--layers", ",".join(layers), "--channels", "all", "-o", str(output)]
    result = CliRunner().invoke(main, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    with posthoc.open_activations(output) as file:
        assert list(file.checkpoints) == ["checkpoint-12", "checkpoint-24", "checkpoint-36"]
        assert list(file.steps) == [12, 24, 36]
        for row, name in enumerate(file.checkpoints):
            network = transformers.ViTForImageClassification.from_pretrained(folder / "run" / name).eval()
            with torch.no_grad():
                hidden = network(pixels, output_hidden_states=True)
            loss = torch.nn.functional.cross_entropy(hidden.logits, labels)
            assert float(file.loss[row]) == pytest.approx(float(loss), abs=1e-6)
            assert float(file.accuracy[row]) == float((hidden.logits.argmax(1) == labels).double().mean())
            for layer, states in zip(layers, hidden.hidden_states[1:], strict=True):
                np.testing.assert_allclose(file.read("mean", row, layer), states.mean(1).T, atol=2e-6)
        assert float(file.accuracy[-1]) > 0.9


def test_hook_points_are_listed_with_their_axes(tmp_path):
    build("GPT2LMHeadModel").save_pretrained(tmp_path / "run" / "checkpoint-1")
    result = CliRunner().invoke(main, ["inspect", str(tmp_path / "run"), "--layers"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    rows = {line.split()[0]: line for line in result.output.splitlines() if line}
    assert rows["model"].endswith("GPT2LMHeadModel (from config.json)")
    assert "tokens (input_ids int64 32)" in rows["sample"]
    assert "token 32 x channel 16  residual" in rows["transformer.h.1"]
    assert "attention" in rows["transformer.h.0.attn"]
    assert "mlp" in rows["transformer.h.1.mlp"]


def test_a_classifier_of_text_that_the_trainer_saved(tmp_path):
    torch.manual_seed(0)
    tokens = torch.randint(0, 64, (48, 12))
    labels = (tokens[:, 0] > 31).long()
    np.savez(tmp_path / "probe.npz", input_ids=tokens.numpy(), y=labels.numpy())
    data = [{"input_ids": row, "labels": int(label)} for row, label in zip(tokens, labels, strict=True)]
    arguments = transformers.TrainingArguments(
        str(tmp_path / "run"), per_device_train_batch_size=16, max_steps=6, save_steps=3, learning_rate=1e-2,
        report_to=[], use_cpu=True, disable_tqdm=True, seed=0,
    )  # fmt: skip
    network = build("BertForSequenceClassification", num_labels=2, initializer_range=0.3)
    transformers.Trainer(network, arguments, train_dataset=data).train()
    command = ["extract", tmp_path / "run", "--probe", f"npz:{tmp_path / 'probe.npz'}", "-o", tmp_path / "a.h5"]
    command += ["--layers", "residual", "--channels", "all"]
    result = CliRunner().invoke(main, [str(part) for part in command], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    with posthoc.open_activations(tmp_path / "a.h5") as file:
        assert list(file.steps) == [3, 6]
        for row, name in enumerate(file.checkpoints):
            trained = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "run" / name).eval()
            with torch.no_grad():
                expected = trained(tokens, output_hidden_states=True)
            loss = torch.nn.functional.cross_entropy(expected.logits, labels)
            assert float(file.loss[row]) == pytest.approx(float(loss), abs=1e-6)
            for layer, states in zip(file.layers, expected.hidden_states[1:], strict=True):
                np.testing.assert_allclose(file.read("mean", row, layer), states.mean(1).T, atol=2e-6)
