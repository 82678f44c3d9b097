#!/usr/bin/env python3
"""Extractions killed at random moments: nothing may be lost or torn, and what is finished in the end must be equal.

    scripts/torture.py --kills 200 --seed 0

Forks extractions of a small run and kills each (SIGKILL, or at times SIGTERM) at a random moment. After every kill all
parts and the output must be whole or absent, and no finished part may be gone; the next attempt goes on from there.
Each finished file is compared, dataset by dataset, with that of an undisturbed run. Exits with 1 where anything
differs.
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import h5py
import numpy as np
import torch
from safetensors.torch import save_file

from posthoc.errors import PosthocError
from posthoc.replay.planning import plan_extraction
from posthoc.replay.run import run_extraction
from posthoc.store import open_activations

CHECKPOINTS = 6
NETWORK = """
from torch import nn

def network():
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(25088, 10))
"""


def prepare(folder: Path) -> None:
    """A run of small checkpoints, their network's code and a probe."""
    (folder / "network.py").write_text(NETWORK)
    (folder / "run").mkdir()
    weights = np.random.default_rng(0)
    layers = {"0": (16, 3, 3, 3), "2": (32, 16, 3, 3), "5": (10, 25088)}
    for epoch in range(CHECKPOINTS):
        state = {f"{name}.weight": torch.tensor(weights.standard_normal(shape, "f4")) for name, shape in layers.items()}
        state |= {f"{name}.bias": torch.zeros(shape[0]) for name, shape in layers.items()}
        save_file(state, folder / "run" / f"epoch-{epoch}.safetensors", {"epoch": str(epoch)})
    pixels = weights.integers(0, 256, (256, 32, 32, 3), dtype=np.uint8)
    np.savez(folder / "probe.npz", images=pixels, labels=weights.integers(0, 10, 256))


def start(folder: Path, output: Path) -> int:
    """Fork an extraction; its process id. A fork, for importing torch takes longer than the extraction."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        stop = threading.Event()
        signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
        torch.set_num_threads(1)
        plan = plan_extraction(
            folder / "run", f"npz:{folder / 'probe.npz'}", model=str(folder / "network.py"), normalize="none"
        )
        run_extraction(plan, output, stop=stop)
        code = 0
    except PosthocError as error:
        print(error, file=sys.stderr)
        code = error.exit_code
    finally:
        os._exit(code)
    raise AssertionError


def whole_parts(output: Path) -> set[str]:
    """The parts that are there, each of which must open."""
    names = set()
    with contextlib.suppress(FileNotFoundError):
        for path in sorted(output.with_name(output.name + ".parts").glob("*.h5")):
            with contextlib.suppress(FileNotFoundError), open_activations(path) as part:
                part.read("mean", 0)
                names.add(path.name)
    return names


def datasets(path: Path) -> dict[str, bytes]:
    """Every dataset's bytes."""
    contents: dict[str, bytes] = {}
    with h5py.File(path) as file:
        file.visititems(
            lambda name, item: contents.update({name: np.asarray(item[()]).tobytes() if item.dtype.kind != "O" else
                                             repr(item[()].tolist()).encode()})
            if isinstance(item, h5py.Dataset) else None
        )  # fmt: skip
    return contents


def main() -> int:
    """Kill, look, go on; 1 where something was lost, torn or different."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    folder = Path(tempfile.mkdtemp(prefix="posthoc-torture-"))
    prepare(folder)
    began = time.monotonic()
    if os.waitstatus_to_exitcode(os.waitpid(start(folder, folder / "reference.h5"), 0)[1]):
        return 1
    duration = time.monotonic() - began
    reference = datasets(folder / "reference.h5")
    output = folder / "activations.h5"
    kills = stops = finished = during_merge = 0
    kept: set[str] = set()
    while kills + stops < arguments.kills or not finished:
        child = start(folder, output)
        time.sleep(chance.uniform(0, 1.1 * duration))
        number = signal.SIGTERM if chance.random() < 0.2 else signal.SIGKILL
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code == -signal.SIGKILL:
            kills += 1
        elif code == 143:
            stops += 1
        elif code:
            print(f"exit code {code}; see {folder}", file=sys.stderr)
            return 1
        if output.exists():
            finished += 1
            during_merge += code != 0
            if datasets(output) != reference:
                print(f"{output} differs from the undisturbed {folder / 'reference.h5'}", file=sys.stderr)
                return 1
            output.unlink()
            shutil.rmtree(output.with_name(output.name + ".parts"), ignore_errors=True)
            kept = set()
        else:
            parts = whole_parts(output)
            if not kept <= parts:
                print(f"lost: {sorted(kept - parts)}", file=sys.stderr)
                return 1
            kept = parts
    print(
        f"{kills} killed, {stops} stopped, {finished} finished ({during_merge} of them killed after the merge), all equal"
    )
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
