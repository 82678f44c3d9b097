"""Extraction against the bare forward passes, against reading the files, and against the obvious ways to write it."""

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

from posthoc.replay.arithmetic import arithmetic
from posthoc.replay.network import probe_batch
from posthoc.replay.plan import Extraction
from posthoc.replay.planning import plan_extraction
from posthoc.replay.run import run_extraction

MODELS = ("resnet18", "resnet152", "densenet121", "mobilenet_v2", "vit_b_16")


def write_run(folder: Path, name: str, size: int, checkpoints: int) -> None:
    """Checkpoints of a network, each with a little noise added to the one before."""
    options: dict[str, Any] = {"image_size": size} if name.startswith("vit") else {}
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, num_classes=10, **options)
    for epoch in range(checkpoints):
        save_file(model.state_dict(), folder / f"epoch-{epoch}.safetensors", {"epoch": str(epoch)})
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.01 * torch.randn_like(parameter)


def images_of(plan: Extraction) -> torch.Tensor:
    """The probe as the network sees it."""
    return probe_batch(plan)["images"]


def bare_passes(plan: Extraction, module: nn.Module, memory_format: torch.memory_format) -> Callable[[], None]:
    """The forward passes of the same batches, nothing loaded, nothing recorded."""
    x = images_of(plan).contiguous(memory_format=memory_format)
    module = module.to(plan.device).to(memory_format=memory_format)

    def run() -> None:
        with torch.inference_mode(), arithmetic(plan.identity.tf32):
            for _ in plan.run.checkpoints:
                for batch in x.split(plan.batch_size):
                    module(batch)
            _wait(plan)

    return run


def read_files(plan: Extraction) -> None:
    """Every byte of every checkpoint."""
    for checkpoint in plan.run.checkpoints:
        with checkpoint.path.open("rb") as file:
            while file.read(1 << 24):
                pass


def keep_everything(plan: Extraction, fresh: Callable[[], nn.Module]) -> None:
    """The obvious loop: load, hooks that keep whole feature maps, bring them to the CPU, reduce them there."""
    x = images_of(plan)
    for checkpoint in plan.run.checkpoints:
        model = fresh()
        model.load_state_dict(load_file(checkpoint.path))
        model = model.to(plan.device).eval()
        kept: dict[str, list[torch.Tensor]] = {point.name: [] for point in plan.points}
        for name, maps in kept.items():
            model.get_submodule(name).register_forward_hook(
                lambda module, inputs, output, maps=maps: maps.append(output.cpu())
            )
        with torch.no_grad():
            for batch in x.split(plan.batch_size):
                model(batch)
        for point in plan.points:
            _reduced(torch.cat(kept[point.name]), plan, point.name).numpy()


def extract_features(plan: Extraction, fresh: Callable[[], nn.Module]) -> None:
    """torchvision's feature extractor, reduced batch by batch."""
    x = images_of(plan)
    names = {point.name: point.name for point in plan.points}
    for checkpoint in plan.run.checkpoints:
        model = fresh()
        model.load_state_dict(load_file(checkpoint.path))
        extractor = create_feature_extractor(model.to(plan.device).eval(), names)
        kept: dict[str, list[torch.Tensor]] = {name: [] for name in names}
        with torch.no_grad():
            for batch in x.split(plan.batch_size):
                for name, maps in extractor(batch).items():
                    kept[name].append(_reduced(maps, plan, name).cpu())
        for rows in kept.values():
            torch.cat(rows).numpy()


def _reduced(maps: torch.Tensor, plan: Extraction, layer: str) -> torch.Tensor:
    point = next(point for point in plan.points if point.name == layer)
    axes = [axis for axis in range(1, maps.ndim) if axis != point.channel_axis]
    mean, var = maps.mean(axes), maps.var(axes, correction=0)
    rows = torch.from_numpy(plan.stored.channels[layer]).to(maps.device)
    return torch.stack([mean[:, rows], var[:, rows]])


def _wait(plan: Extraction) -> None:
    if plan.device.type == "cuda":
        torch.cuda.synchronize(plan.device)


def seconds_in_turn(calls: Sequence[Callable[[], Any]], repeats: int) -> list[float]:
    """Median seconds of each call, the calls taking turns."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats):
        for call, seconds in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
    return [float(np.median(seconds)) for seconds in times]


def spent(call: Callable[[], Any]) -> tuple[float, float]:
    """Seconds, and processor seconds of all threads."""
    start = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - start[0], time.process_time() - start[1]


def spent_in_turn(calls: Sequence[Callable[[], Any]], repeats: int) -> NDArray[np.float64]:
    """Seconds and processor seconds of each call in each turn [turns, calls, 2], of turns after a first that is left out."""
    return np.array([[spent(call) for call in calls] for _ in range(repeats + 1)])[1:]


def extract_table(
    models: Sequence[str], images: int, cuda: bool, repeats: int, checkpoints: int, fast: bool = False
) -> None:
    """One row per model: seconds per checkpoint, and the share of each reference's throughput; medians over the turns.

    fast: without the references but the bare passes.
    """
    others = "" if fast else " of reading | times as fast as keeping maps | as a feature extractor |"
    print(f"| model | size | s per checkpoint | of bare passes | by processor time | faster format |{others}")
    print("|" + "---|" * (6 if fast else 9))
    folder = Path(tempfile.mkdtemp(prefix="posthoc-bench-"))
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (images, 32, 32, 3), dtype=np.uint8)
    np.savez(folder / "probe.npz", images=pixels, labels=random.integers(0, 10, images))
    for name in models:
        size = 224 if cuda and name.startswith("vit") else 32
        run = folder / name
        run.mkdir()
        write_run(run, name, size, checkpoints)
        plan = plan_extraction(
            run, f"npz:{folder / 'probe.npz'}", images=images, normalize="cifar10", device="cuda" if cuda else "cpu"
        )
        options: dict[str, Any] = {"image_size": size} if name.startswith("vit") else {}

        fresh = partial(torchvision.models.get_model, name, num_classes=10, **options)
        ours = partial(run_extraction, plan, folder / "activations.h5", force=True)
        calls: list[Callable[[], Any]] = [ours]
        calls += [bare_passes(plan, fresh().eval(), form) for form in (torch.contiguous_format, torch.channels_last)]
        if not fast:
            calls += [partial(read_files, plan), partial(keep_everything, plan, fresh)]
            calls += [partial(extract_features, plan, fresh)]
        seconds = spent_in_turn(calls, repeats)
        times_as_fast = np.median(seconds / seconds[:, :1], axis=0)
        last = int(times_as_fast[2, 0] < times_as_fast[1, 0])
        wall, processor = times_as_fast[1 + last]
        references = "".join(f" {value:.2f} |" for value in times_as_fast[3:, 0])
        print(
            f"| {name} | {size} | {np.median(seconds[:, 0, 0]) / checkpoints:.3g} | {wall:.3f} | {processor:.3f} "
            f"| {('contiguous', 'channels last')[last]} |{references}",
            flush=True,
        )
        shutil.rmtree(run)
    shutil.rmtree(folder)
