"""posthoc check against reading the same files: cold (dropped from the page cache) and warm, in turns, as ratios."""

import argparse
import os
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from bench_extract import seconds_in_turn
from safetensors.torch import save_file

from posthoc.replay.series.result import check_series


def write_series(folder: Path, checkpoints: int, millions: int) -> list[Path]:
    """Checkpoints of a transformer's matrices, each a small step from the one before; flushed to the disk."""
    torch.manual_seed(0)
    width = 768
    layers = max(1, round(millions * 1e6 / (12 * width**2)))
    state = {"embed.weight": torch.randn(8192, width)}
    for layer in range(layers):
        shapes = {
            "qkv": (3 * width, width),
            "out": (width, width),
            "up": (4 * width, width),
            "down": (width, 4 * width),
        }
        state |= {f"layers.{layer}.{name}.weight": 0.02 * torch.randn(*shape) for name, shape in shapes.items()}
        state |= {f"layers.{layer}.norm{k}.weight": torch.ones(width) for k in (1, 2)}
    noise = 1e-3 * torch.randn(max(tensor.numel() for tensor in state.values()))
    paths = []
    for step in range(checkpoints):
        paths.append(folder / f"step-{1000 * step}.safetensors")
        save_file(state, paths[-1])
        for k, tensor in enumerate(state.values()):
            tensor.view(-1).add_(noise[: tensor.numel()].roll(step + k))
    os.sync()
    return paths


def read_files(paths: Sequence[Path], cold: bool) -> None:
    """Every byte, file after file."""
    if cold:
        drop(paths)
    buffer = bytearray(1 << 23)
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def check_files(folder: Path, paths: Sequence[Path], cold: bool) -> None:
    """What `posthoc check` does."""
    if cold:
        drop(paths)
    check_series(folder)


def drop(paths: Sequence[Path]) -> None:
    """Take files out of the page cache."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoints", type=int, default=20)
    parser.add_argument("--millions", type=int, default=160, help="parameters of each")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="posthoc-bench-") as name:
        folder = Path(name)
        paths = write_series(folder, options.checkpoints, options.millions)
        size = sum(path.stat().st_size for path in paths) / 1e9
        check_files(folder, paths[:0], cold=False)  # kernels are compiled
        print("| files | reading, GB/s | posthoc check, GB/s | of reading |\n|---|---|---|---|")
        for cold in (True, False):
            calls = [partial(read_files, paths, cold), partial(check_files, folder, paths, cold)]
            reading, checking = seconds_in_turn(calls, options.repeats)
            what = "cold" if cold else "warm"
            print(f"| {what} | {size / reading:.2f} | {size / checking:.2f} | {reading / checking:.2f} |", flush=True)


if __name__ == "__main__":
    main()
