"""What a language model makes of tokens that it wrote itself, warm or cold, in loops, with heads pruned or weights noised.

    python -m reproduction.generated runs/lm/prose-0/checkpoint-1000 --text runs/lm/prose-0/held-out.txt

The conditions are those of arXiv 2601.11622, of whose article no more than the abstract was at hand: CHECKPOINT continues
the first tokens of rows of the text in each of them, and the network that wrote the tokens reads them again, beside the
same tokens shuffled and networks with new weights. What H, its surprisal's and M are of every document is kept in
KEEP/generated.json.
"""

import argparse
import json
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import posthoc
from posthoc.analysis.arrays import FloatArray
from posthoc.analysis.axes.over_time import permuted
from posthoc.analysis.axes.token import LOSS, SIGNAL, by_document
from posthoc.analysis.dfa import dfa
from posthoc.analysis.kuramoto import kuramoto
from posthoc.analysis.scales import START, token_scales
from posthoc.files import replacing
from posthoc.store import Activations, open_activations
from posthoc.streams import stream

try:
    import transformers
except ImportError as error:
    raise SystemExit(f"generated.py: {error}; install it: pip install 'posthoc[transformers]'") from error

DOCUMENTS, CONTEXT, CHANNELS = 24, 512, 16
PROMPT = 32
"""Tokens of the text with which every document begins."""
REPEATED = 16
"""Tokens of the prompt that forced repetition repeats."""
USUAL = 0.7
"""The temperature at which networks write where no other is said."""
PRUNED = 0.5
"""The share of each layer's heads that is pruned."""
NOISE = 0.5
"""Standard deviation of the noise that is added to every weight, in those of its tensor."""
ORDERS = 8
"""Permutations in time that are drawn of each document."""
Ids = NDArray[np.int64]


def exponents(x: NDArray[np.floating]) -> FloatArray:
    """Mean exponent of the channels of each document x [D, C, T], [D]; constant channels have none."""
    D, C, T = x.shape
    alpha = np.asarray(dfa(x.reshape(D * C, T), token_scales(T + START)).alpha).reshape(D, C)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of documents without any
        return np.asarray(np.nanmean(alpha, axis=1))


def metastabilities(x: NDArray[np.floating]) -> FloatArray:
    """M of each document x [D, C, T], [D]."""
    return np.array([kuramoto(document).metastability for document in x])


def in_other_orders(x: NDArray[np.floating], measure: Callable[[NDArray[np.floating]], FloatArray]) -> FloatArray:
    """The mean of a measure of documents [D, C, T] whose tokens are permuted, the same for all channels, [D]."""
    random = stream("generated documents", 0)
    drawn = [measure(np.stack([permuted(document, random) for document in x])) for _ in range(ORDERS)]
    return np.asarray(np.mean(drawn, axis=0))


def of_documents(activations: Activations) -> dict[str, FloatArray]:
    """What is kept of each document [D] of a file of one checkpoint."""
    x = by_document(activations.read(SIGNAL, 0))
    loss = activations.behaviour(LOSS, 0)
    shuffled = by_document(activations.read_null("shuffle", SIGNAL, 0))
    white = stream("white documents", 0).standard_normal(x.shape)
    return {
        "hurst": exponents(x),
        "hurst_time": in_other_orders(x, exponents),
        "hurst_shuffle": exponents(shuffled),
        "hurst_untrained": exponents(by_document(activations.read_untrained(SIGNAL, 0))),
        "hurst_white": exponents(white),
        "surprisal": exponents(loss[:, None, START:]),
        "surprisal_shuffle": exponents(activations.behaviour_of_null("shuffle", LOSS, 0)[:, None, START:]),
        "metastability": metastabilities(x),
        "metastability_time": in_other_orders(x, metastabilities),
        "metastability_shuffle": metastabilities(shuffled),
        "metastability_white": metastabilities(white),
        "loss": loss[:, START:].mean(axis=1),
    }


@torch.inference_mode()
def continued(model: Any, prompts: Tensor, temperature: float) -> Ids:
    """Prompts [D, P] continued to rows of CONTEXT tokens [D, T]; temperature: 0 takes the likeliest token."""
    generator = torch.Generator().manual_seed(0)
    ids, given, cache = prompts, prompts, None
    while ids.shape[1] < CONTEXT:
        output = model(input_ids=given, past_key_values=cache, use_cache=True)
        scores, cache = output.logits[:, -1].double(), output.past_key_values
        if temperature:
            given = torch.multinomial((scores / temperature).softmax(-1), 1, generator=generator)
        else:
            given = scores.argmax(-1, keepdim=True)
        ids = torch.cat([ids, given], dim=1)
    return np.asarray(ids.numpy(), dtype=np.int64)


@torch.no_grad()
def with_heads_pruned(model: Any) -> None:
    """Take half of the heads of every layer out of a GPT-NeoX: what they say is no longer read."""
    generator = torch.Generator().manual_seed(0)
    heads = model.config.num_attention_heads
    for layer in model.gpt_neox.layers:
        read = layer.attention.dense.weight.view(model.config.hidden_size, heads, -1)
        read[:, torch.randperm(heads, generator=generator)[: round(PRUNED * heads)]] = 0


@torch.no_grad()
def with_weights_noised(model: nn.Module) -> None:
    """Add noise to all matrices, in proportion to the spread of each."""
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        if weight.ndim > 1:
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=NOISE * float(weight.std()))


def conditions(load: Callable[[], Any], text: Ids) -> Iterator[tuple[str, str, Any, Ids]]:
    """What is read, by which network, that network, and the tokens [D, T]; text: rows as people wrote them."""
    prompts = torch.from_numpy(text[:, :PROMPT])
    model = load()
    yield "text", "", model, text
    for temperature in (0.0, USUAL, 1.0, 2.0):
        yield f"temperature {temperature:g}", "", model, continued(model, prompts, temperature)
    yield "repetition", "", model, np.tile(text[:, :REPEATED], CONTEXT // REPEATED)
    for name, change in (("heads pruned", with_heads_pruned), ("weights noised", with_weights_noised)):
        model = load()
        change(model)
        yield "text", name, model, text
        yield f"temperature {USUAL:g}", name, model, continued(model, prompts, USUAL)


def measured(model: Any, ids: Ids) -> dict[str, FloatArray]:
    """What is kept of each document of tokens that a network reads."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model.save_pretrained(folder / "run" / "checkpoint-1")
        np.save(folder / "ids.npy", ids)
        file = posthoc.extract(
            folder / "run", f"tokens:{folder / 'ids.npy'}", folder / "activations.h5", context=CONTEXT,
            documents=len(ids), channels=CHANNELS, signals=[SIGNAL], controls=["shuffle", "untrained"],
        )  # fmt: skip
        with open_activations(file) as activations:
            return of_documents(activations)


def rows_of(tokenizer: Any, text: str) -> Ids:
    """Rows of the text spread evenly, [D, T]."""
    ids = np.array(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    starts = np.linspace(0, len(ids) - CONTEXT, DOCUMENTS).astype(int)
    return ids[starts[:, None] + np.arange(CONTEXT)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="a folder of reproduction.lm")
    parser.add_argument("--text", type=Path, required=True, help="text that it was not trained on")
    parser.add_argument("--keep", type=Path, default=Path("data/reproduction"), help="default: data/reproduction")
    args = parser.parse_args()

    def load() -> Any:
        return transformers.GPTNeoXForCausalLM.from_pretrained(args.checkpoint, local_files_only=True).eval()

    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(args.checkpoint, local_files_only=True)
    text = rows_of(tokenizer, args.text.read_text(encoding="utf-8"))
    kept = []
    for read, network, model, ids in conditions(load, text):
        values = measured(model, ids)
        documents = {key: [round(float(value), 5) for value in of] for key, of in values.items()}
        kept.append({"read": read, "network": network, "documents": documents})
        print(read, network, {key: round(float(np.nanmean(of)), 3) for key, of in values.items()}, flush=True)
    with replacing(args.keep / "generated.json") as temporary:
        rows = ",\n".join(json.dumps(row) for row in kept)
        temporary.write_text(f"[\n{rows}\n]\n")


if __name__ == "__main__":
    main()
