"""How processor time and memory of `posthoc extract` and `posthoc metrics` grow: each of their sizes doubled three times."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from bench_extract import write_run
from bench_tokens import write_series
from numpy.typing import NDArray

from posthoc.recording import Identity, Layer, Model, Probe, Provenance, Recording
from posthoc.store import Frame, Layout
from posthoc.writing import write

FACTORS = (1, 2, 4, 8)
MEASURED = {"checkpoints": 25, "images": 512, "units": 32}
SEEN = {"checkpoints": 8, "images": 256}
READ = {"documents": 16, "width": 128}
DRAWS = 19
COMMAND = """
import json, resource, sys
from posthoc.cli import main
main(sys.argv[1:], standalone_mode=False)
usage = resource.getrusage(resource.RUSAGE_SELF)
[peak] = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(json.dumps([usage.ru_utime + usage.ru_stime, int(peak) / 1000]))
"""
"""Linux counts the peak of a process anew when it starts a program, but that of its usage with that of its parent."""


def noise(path: Path, checkpoints: int, images: int, units: int) -> None:
    """Activations of noise, of one layer."""
    random = np.random.default_rng(0)
    identity = Identity(Model("none"), Probe("0", images, 4), (Layer("layer"),), ("mean",), "cpu", "float32")
    recording = Recording(identity, Provenance("none", "noise", "made up"))
    layout = Layout(recording, np.arange(images), np.arange(images) % 4, {"layer": np.arange(units)})

    def frame(k: int) -> Frame:
        values = random.standard_normal((units, images), "f4")
        return Frame(f"{k}.pt", "0", k, 10 * k, 1.0, 0.5, {}, {"mean": {"layer": values}})

    write(path, layout, [frame(k) for k in range(checkpoints)])


def measured(folder: Path, checkpoints: int, images: int, units: int) -> list[str]:
    """Measures of activations of noise, beside nulls drawn a few times."""
    noise(folder / "activations.h5", checkpoints, images, units)
    return ["metrics", str(folder / "activations.h5"), "--nulls", str(DRAWS), "--max-nulls", str(DRAWS)]


def seen(folder: Path, checkpoints: int, images: int) -> list[str]:
    """A ResNet-18 that reads images."""
    (folder / "run").mkdir()
    write_run(folder / "run", "resnet18", 32, checkpoints)
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (images, 32, 32, 3), dtype=np.uint8)
    np.savez(folder / "probe.npz", images=pixels, labels=random.integers(0, 10, images))
    return [
        "extract",
        str(folder / "run"),
        "--probe",
        f"npz:{folder / 'probe.npz'}",
        "--images",
        str(images),
        "--normalize",
        "cifar10",
    ]


def read(folder: Path, documents: int, width: int) -> list[str]:
    """A language model that reads documents of 256 tokens; its parameters grow with the square of its width."""
    sizes = {"hidden_size": width, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 4 * width}
    write_series(folder, 2, 512, **sizes)
    ids = f"tokens:{folder / 'ids.npy'}"
    return ["extract", str(folder / "run"), "--probe", ids, "--context", "256", "--documents", str(documents)]


def cost(words: Sequence[str]) -> tuple[float, float]:
    """Processor seconds and peak MB of a command in a process of its own; of two turns the quicker."""
    turns = []
    alone = os.environ | {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}  # threads that wait take time, too
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", COMMAND, *words], capture_output=True, text=True, check=True, env=alone
        )
        turns.append(json.loads(done.stdout.splitlines()[-1]))
    seconds, megabytes = min(turns)
    return seconds, megabytes


def fitted(sizes: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """(b, c) of the least squares fit c + a n^b: the exponent, and what is there whatever the size.

    >>> [round(number, 2) for number in fitted([1, 2, 4, 8], [5, 6, 8, 12])]
    [1.0, 4.0]
    """
    x, y = np.array(sizes) / sizes[0], np.array(seconds)
    fits: list[tuple[float, float, float]] = []
    for b in np.arange(0.3, 3, 0.01):
        terms: NDArray[np.float64] = np.stack([x**b, np.ones_like(x)], axis=1)
        (a, c), *_ = np.linalg.lstsq(terms, y)
        fits.append((float(((terms @ [a, c] - y) ** 2).sum()), float(b), float(c)))
    _, b, c = min(fits)
    return b, c


def growth_table() -> None:
    """A row for each size of each command."""
    print("| command | over | sizes | processor s | of it whatever the size | exponent | MB at the most |")
    print("|" + "---|" * 7)
    kinds: list[tuple[str, Callable[..., list[str]], dict[str, int]]] = [
        ("metrics", measured, MEASURED),
        ("extract, ResNet-18", seen, SEEN),
        ("extract, language model", read, READ),
    ]
    for name, make, base in kinds:
        for over, smallest in base.items():
            sizes = [smallest * factor for factor in FACTORS]
            costs = []
            for size in sizes:
                with tempfile.TemporaryDirectory(prefix="posthoc-bench-") as folder:
                    words = make(Path(folder), **{**base, over: size})
                    costs.append(cost([*words, "-o", str(Path(folder) / "out"), "--force"]))
            seconds, megabytes = zip(*costs, strict=True)
            grown = [factor**2 for factor in FACTORS] if over == "width" else sizes
            exponent, once = fitted(grown, seconds)
            cells = (
                name, "times the parameters" if over == "width" else over, ", ".join(map(str, grown)),
                ", ".join(f"{x:.3g}" for x in seconds), f"{once:.1f}", f"{exponent:.2f}", ", ".join(f"{x:.0f}" for x in megabytes),
            )  # fmt: skip
            print(f"| {' | '.join(cells)} |", flush=True)
