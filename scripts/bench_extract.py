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


def stages(plan: Extraction, output: Path) -> NDArray[np.float64]:
    """Seconds and processor seconds of an extraction [2, 2]: those for each checkpoint, and those that any run takes once.

    Once: the network made and traced, and the trial of scalings. A checkpoint is announced when it is written, which is when
    the next has run: what comes after the first announcement is the work of all but two, and the parts put together.
    """
    stamps: list[tuple[float, float]] = []

    def stamp(*_: object) -> None:
        stamps.append((time.perf_counter(), time.process_time()))

    stamp()
    run_extraction(plan, output, force=True, progress=stamp)
    stamp()
    start, first, end = np.array(stamps)[[0, 1, -1]]
    checkpoints = len(plan.run.checkpoints)
    each = (end - first) / (checkpoints - 2)
    return np.array([each, end - start - checkpoints * each])


def compared(
    ours: Callable[[], NDArray[np.float64]], calls: Sequence[Callable[[], Any]], repeats: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What `ours` returns in each turn [turns, ...], and the seconds and processor seconds of each call [turns, calls, 2], of
    turns after a first that is left out."""
    turns = [(ours(), np.array([spent(call) for call in calls])) for _ in range(repeats + 1)][1:]
    return np.array([turn[0] for turn in turns]), np.array([turn[1] for turn in turns])


def extract_table(
    models: Sequence[str], images: int, cuda: bool, repeats: int, checkpoints: int, fast: bool = False
) -> None:
    """One row per model: seconds per checkpoint, and the share of each reference's throughput; medians over the turns.

    What a run takes once has a column of its own. fast: without the references but the bare passes.
    """
    others = "" if fast else " of reading | times as fast as keeping maps | as a feature extractor |"
    print(f"| model | size | s once | s per checkpoint | of bare passes | by processor time | faster format |{others}")
    print("|" + "---|" * (7 if fast else 10))
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
        calls: list[Callable[[], Any]] = [
            bare_passes(plan, fresh().eval(), form) for form in (torch.contiguous_format, torch.channels_last)
        ]
        if not fast:
            calls += [partial(read_files, plan), partial(keep_everything, plan, fresh)]
            calls += [partial(extract_features, plan, fresh)]
        ours, theirs = compared(partial(stages, plan, folder / "activations.h5"), calls, repeats)
        times_as_fast = np.median(theirs / checkpoints / ours[:, :1], axis=0)
        last = int(times_as_fast[1, 0] < times_as_fast[0, 0])
        wall, processor = times_as_fast[last]
        each, once = np.median(ours[:, :, 0], axis=0)
        references = "".join(f" {value:.2f} |" for value in times_as_fast[2:, 0])
        print(
            f"| {name} | {size} | {once:.2g} | {each:.3g} | {wall:.3f} | {processor:.3f} "
            f"| {('contiguous', 'channels last')[last]} |{references}",
            flush=True,
        )
        shutil.rmtree(run)
    shutil.rmtree(folder)
