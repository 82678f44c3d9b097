"""Extraction of a language model against its bare forward passes, and the memory it takes for few documents and many."""

import resource
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from bench_extract import compared, stages

from posthoc.replay.network import Network, split
from posthoc.replay.pipeline import Loaded, Reading
from posthoc.replay.planning import plan_extraction
from posthoc.replay.run import extract

CONTEXT = 256
SIZES = {
    "70m": {"hidden_size": 512, "num_hidden_layers": 6, "num_attention_heads": 8, "intermediate_size": 2048},
    "160m": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
}
VOCABULARY = 50304
"""As Pythia's."""


def write_series(folder: Path, checkpoints: int, vocabulary: int, **sizes: int) -> int:
    """A run of GPT-NeoX networks with random weights, and ids to feed them; how many parameters they have."""
    import transformers

    for step in range(checkpoints):
        torch.manual_seed(step)
        config = transformers.GPTNeoXConfig(vocab_size=vocabulary, max_position_embeddings=1024, **sizes)
        module = transformers.GPTNeoXForCausalLM(config)
        module.save_pretrained(folder / "run" / f"checkpoint-{step}")
    ids = np.random.default_rng(0).integers(0, vocabulary, 1024 * 512)
    np.save(folder / "ids.npy", ids.astype("u2"))
    return sum(parameter.numel() for parameter in module.parameters())


def speed(size: str, documents: int, repeats: int, checkpoints: int, cuda: bool) -> None:
    """A checkpoint of an extraction with a control beside the same forward passes alone, in turn; what is done once, apart."""
    with tempfile.TemporaryDirectory(prefix="posthoc-bench-") as name:
        folder = Path(name)
        parameters = write_series(folder, checkpoints, VOCABULARY, **SIZES[size])
        plan = plan_extraction(
            folder / "run", f"tokens:{folder / 'ids.npy'}", context=CONTEXT, documents=documents,
            controls=("shuffle",), device="cuda" if cuda else "cpu",
        )  # fmt: skip
        net = Network(plan)
        loaded = Reading(plan, iter([]), lambda _: None).load(plan.run.checkpoints[-1], {})
        assert isinstance(loaded, Loaded)
        net.stage(loaded.tensors)
        net.swap()  # weights that are zeros, and were never written to, take no memory
        ours, theirs = compared(
            partial(stages, plan, folder / "a.h5"), [partial(bare_passes, net, checkpoints)], repeats
        )
        wall, processor = np.median(theirs[:, 0] / checkpoints / ours[:, 0], axis=0)
        each, once = np.median(ours[:, :, 0], axis=0)
        print(f"{parameters / 1e6:.0f} M parameters, {checkpoints} checkpoints")
        print(
            f"{documents} documents of {CONTEXT} tokens and their shuffle: {each:.3g} s a checkpoint, {once:.2g} s once"
        )
        print(f"of the bare forward passes: {wall:.3f} by the clock, {processor:.3f} of processor time")


def bare_passes(net: Network, checkpoints: int) -> None:
    """The forward passes of the same batches, nothing loaded, nothing recorded or scored."""
    with torch.inference_mode():
        for _ in range(checkpoints):
            for inputs in net.inputs.values():
                for batch in split(inputs, net.plan.batch_size):
                    net.call(batch)
        if net.plan.device.type == "cuda":
            torch.cuda.synchronize(net.plan.device)


def memory() -> None:
    """Peak resident memory of extractions that differ in the number of documents, each in a process of its own."""
    print("| documents | peak, MB | above the import, MB | activations.h5, MB |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="posthoc-bench-") as name:
        sizes = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 256}
        write_series(Path(name), 1, 512, **sizes)
        for documents in (8, 64, 512):
            words = [sys.executable, __file__, name, str(documents)]
            print(subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()[-1], flush=True)


def peak() -> float:
    """The most memory that this process had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def extract_in(folder: Path, documents: int) -> None:
    """A row of `memory`."""
    import transformers  # noqa: F401 - part of what is there before

    before = peak()
    path = extract(
        folder / "run", f"tokens:{folder / 'ids.npy'}", folder / "a.h5", context=1024, documents=documents,
        batch_size=8, force=True, layers=["residual"],
    )  # fmt: skip
    print(f"| {documents} | {peak():.0f} | {peak() - before:.0f} | {path.stat().st_size / 1e6:.0f} |")


if __name__ == "__main__":
    extract_in(Path(sys.argv[1]), int(sys.argv[2]))
