"""What a language model writes, and what is done to it, for the study."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from reproduction import generated  # noqa: E402


def network():
    torch.manual_seed(0)
    config = transformers.GPTNeoXConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32,
        max_position_embeddings=64, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return transformers.GPTNeoXForCausalLM(config).eval()


def test_what_is_written_is_likeliest_by_the_whole_row_or_drawn(monkeypatch):
    monkeypatch.setattr(generated, "CONTEXT", 24)
    model, prompts = network(), torch.arange(12).reshape(3, 4)
    ids = generated.continued(model, prompts, 0.0)
    assert (ids[:, :4] == prompts.numpy()).all()
    with torch.no_grad():
        scores = model(torch.from_numpy(ids)).logits.numpy()
    assert (scores[:, 3:-1].argmax(-1) == ids[:, 4:]).all()
    warm = generated.continued(model, prompts, 2.0)
    assert (warm == generated.continued(model, prompts, 2.0)).all()
    assert (warm != ids).any()


def test_a_pruned_head_says_nothing_and_noise_is_in_proportion():
    model, whole = network(), network()
    generated.with_heads_pruned(model)
    for layer, before in zip(model.gpt_neox.layers, whole.gpt_neox.layers, strict=True):
        heads = layer.attention.dense.weight.reshape(16, 4, 4).abs().sum((0, 2))
        assert int((heads == 0).sum()) == 2
        assert torch.equal(layer.mlp.dense_4h_to_h.weight, before.mlp.dense_4h_to_h.weight)
    generated.with_weights_noised(model := network())
    noise = model.get_output_embeddings().weight - whole.get_output_embeddings().weight
    assert float(noise.std() / whole.get_output_embeddings().weight.std()) == pytest.approx(generated.NOISE, rel=0.1)
    assert torch.equal(model.gpt_neox.final_layer_norm.weight, whole.gpt_neox.final_layer_norm.weight)


def test_measures_of_documents_know_an_order_from_none():
    random = np.random.default_rng(0)
    x = random.standard_normal((3, 4, 448)).cumsum(axis=2)
    assert generated.exponents(x) == pytest.approx([1.5] * 3, abs=0.15)
    assert generated.in_other_orders(x, generated.exponents) == pytest.approx([0.5] * 3, abs=0.06)
    assert np.isnan(generated.exponents(np.ones((1, 2, 448)))).all()
