"""Checkpoints -> activations.h5: everything is resolved first, then a short loop replays one checkpoint after another."""

import json
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from posthoc import __version__, store
from posthoc.errors import PosthocError, UsageError
from posthoc.files import refuse_existing, sha256
from posthoc.replay.hooks import SIGNALS, HookPoint, Recorder, choose, find_hook_points
from posthoc.replay.layout import Checkpoint, Run, find_run
from posthoc.replay.models import resolve_model
from posthoc.replay.probes import NORMALIZATIONS, Images, Normalization, load_probe
from posthoc.replay.readers import read_weights

FALLBACK_SIZES = (224, 299)
"""Image sides tried, in turn, where a model cannot take the probe's own."""
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Extraction:
    """What an extraction will do, decided down to the last shape; `model` is still on the meta device."""

    run: Run
    model: nn.Module
    probe: Images
    normalization: Normalization
    image_size: int
    points: tuple[HookPoint, ...]
    device: torch.device
    batch_size: int
    stored: store.Plan

    @property
    def notes(self) -> list[tuple[str, str]]:
        """What was found and decided, as label and text."""
        config, checkpoints = self.stored.config, self.run.checkpoints
        first, last = checkpoints[0], checkpoints[-1]
        signal_bytes = 4 * len(self.probe) * sum(map(len, self.stored.channels.values())) * len(config["signals"])
        return [
            ("run", f"{self.run.folder}, {len(checkpoints)} checkpoints, {first.when} to {last.when}"),
            ("model", f"{config['model']['name']} ({config['model']['source']}), {config['model']['outputs']} outputs"),
            ("probe", f"{self.probe.name}, {len(self.probe)} images at {self.image_size} x {self.image_size}"),
            ("normalisation", f"mean {self.normalization.mean}, std {self.normalization.std}"),
            (
                "layers",
                ", ".join(f"{p.name} ({len(self.stored.channels[p.name])} of {p.channels})" for p in self.points),
            ),
            ("signals", ", ".join(config["signals"])),
            ("device", f"{config['device']}, batches of {self.batch_size}, {config['dtype']}"),
            ("output", f"{len(checkpoints) * signal_bytes / 1e6:.1f} MB before compression"),
        ]


def plan_extraction(
    checkpoints: Path,
    probe: str,
    *,
    select: str | None = None,
    model: str | None = None,
    layers: Sequence[str] = ("default",),
    channels: int | None = 32,
    signals: Sequence[str] = SIGNALS,
    images: int | None = None,
    image_size: int | None = None,
    normalize: str | None = None,
    data_root: Path | None = None,
    download: bool = False,
    device: str = "auto",
    batch_size: int | None = None,
    seed: int = 0,
) -> Extraction:
    """Find the run, its model, the probe and the hook points; nothing is written and no weight is read.

    `channels` None records all of each layer; otherwise so many, drawn once per run and layer from `seed`.
    Raises PosthocError for whatever does not fit.
    """
    if not layers:
        raise UsageError("No layers asked for; give default, all, or globs.")
    signals = list(dict.fromkeys(signals))
    unknown = set(signals) - set(SIGNALS)
    if unknown or not signals:
        raise UsageError(f"Unknown signal {', '.join(sorted(unknown)) or '(none)'}; give {' or '.join(SIGNALS)}.")
    chosen_device = find_device(device)
    run = find_run(checkpoints, select)
    shapes = run.checkpoints[0].header.shapes
    recorded = run.about.get("model")
    name, network = resolve_model(model, recorded, shapes)
    recorded_size = run.about.get("image_size")
    if recorded_size is not None and not (isinstance(recorded_size, int) and recorded_size > 0):
        raise PosthocError(f"run.json: image_size {recorded_size!r} is not a number of pixels.")
    size = image_size or recorded_size or getattr(network, "image_size", None)
    pictures = load_probe(probe, images, root=data_root, download=download, size=size)
    normalization = _normalization(normalize, run.about.get("normalization"), probe)
    size, points = fit_images(network, name, size, *pictures.images.shape[1:3])
    hooks = choose(points, layers, name)
    kept = {point.name: _draw_channels(point, channels, seed) for point in hooks}
    batch_size = batch_size or (256 if size <= 64 else 32)
    config = {
        "model": {
            "name": name,
            "source": "given" if model else "from run.json" if recorded else "recognised",
            "outputs": int(list(network.parameters())[-1].shape[0]),
        },
        "probe": {
            "name": pictures.name,
            "images": len(pictures),
            "classes": int(np.unique(pictures.labels).size),
            "image_size": size,
            "normalization": {"mean": list(normalization.mean), "std": list(normalization.std)},
            "sha256": pictures.sha256,
        },
        "layers": [
            {"name": p.name, "type": p.kind, "shape": list(p.shape), "channels": len(kept[p.name])} for p in hooks
        ],
        "channels": "all" if channels is None else channels,
        "signals": list(signals),
        "seed": seed,
        "device": chosen_device.type,
        "dtype": "float32",
        "tf32": False,
        "batch_size": batch_size,
        "recipe": run.about.get("recipe"),
        "dataset": run.about.get("dataset"),
        "versions": _versions(chosen_device),
    }
    return Extraction(
        run=run,
        model=network,
        probe=pictures,
        normalization=normalization,
        image_size=size,
        points=tuple(hooks),
        device=chosen_device,
        batch_size=batch_size,
        stored=store.Plan(json.loads(json.dumps(config)), pictures.index, pictures.labels, kept),
    )


def run_extraction(plan: Extraction, output: Path, *, force: bool = False, progress: Progress | None = None) -> Path:
    """Replay every checkpoint and write `output`; parts of an interrupted run of the same plan are kept and used.

    `progress` is called with done, total and the checkpoint's file name after each checkpoint.
    """
    refuse_existing(output, force)
    if output.resolve() in [checkpoint.path.resolve() for checkpoint in plan.run.checkpoints]:
        raise UsageError(f"{output} is one of the checkpoints; choose another output.")
    parts_folder = output.with_name(output.name + ".parts")
    if force and parts_folder.exists():
        shutil.rmtree(parts_folder)
    x, labels = _batches(plan)
    parts = []
    for done, checkpoint in enumerate(plan.run.checkpoints, start=1):
        part = parts_folder / f"epoch{checkpoint.position[0]}-step{checkpoint.position[1]}.h5"
        digest = sha256(checkpoint.path)
        if not (part.exists() and store.read_part(part, plan.stored) == digest):
            try:
                frame = _replay(plan, checkpoint, digest, x, labels)
            except torch.OutOfMemoryError as error:
                reason = str(error).split("\n")[0]
                raise PosthocError(
                    f"Out of memory at {checkpoint.path} ({reason}); pass a smaller --batch-size."
                ) from error
            store.write(part, plan.stored, [frame])
        parts.append(part)
        if progress:
            progress(done, len(plan.run.checkpoints), checkpoint.path.name)
    store.merge(output, plan.stored, parts)
    shutil.rmtree(parts_folder)
    return output


def extract(checkpoints: str | Path, probe: str, output: str | Path = "activations.h5", **options: Any) -> Path:
    """Replay every checkpoint of a run over one fixed probe batch and store the signals; returns the file's path.

    Options are those of `plan_extraction`, and `force` and `progress` of `run_extraction`.
    """
    writing = {name: options.pop(name) for name in ("force", "progress") if name in options}
    output = Path(output)
    refuse_existing(output, bool(writing.get("force")))
    return run_extraction(plan_extraction(Path(checkpoints), probe, **options), output, **writing)


def _replay(plan: Extraction, checkpoint: Checkpoint, digest: str, x: Tensor, labels: Tensor) -> store.Frame:
    model = plan.model
    weights = {name: _as_float32(tensor).to(plan.device) for name, tensor in read_weights(checkpoint.path).items()}
    try:
        model.load_state_dict(weights, strict=False, assign=True)  # the plan has compared names and shapes
        model.to(plan.device)
    except (RuntimeError, NotImplementedError) as error:
        raise PosthocError(f"{checkpoint.path} no longer holds the weights it was planned with ({error}).") from error
    channels = {name: torch.from_numpy(rows).to(plan.device) for name, rows in plan.stored.channels.items()}
    recorder = Recorder(plan.points, channels, plan.stored.config["signals"])
    collected: dict[tuple[str, str], list[Tensor]] = {}
    scores = []
    with torch.inference_mode(), _full_precision(), recorder.attached(model):
        for batch in x.split(plan.batch_size):
            scores.append(model(batch).float())
            for signal, layers in recorder.signals.items():
                for layer, values in layers.items():
                    collected.setdefault((signal, layer), []).append(values)
        loss, accuracy = _score(torch.cat(scores), labels)
    signals: dict[str, dict[str, NDArray[np.float32]]] = {}
    for (signal, layer), batches in collected.items():
        signals.setdefault(signal, {})[layer] = torch.cat(batches).T.cpu().numpy()
    return store.Frame(
        path=checkpoint.path.relative_to(plan.run.folder).as_posix(),
        sha256=digest,
        epoch=checkpoint.epoch,
        step=checkpoint.step,
        loss=loss,
        accuracy=accuracy,
        recorded=checkpoint.header.recorded,
        signals=signals,
    )


def _score(scores: Tensor, labels: Tensor) -> tuple[float, float]:
    """Mean cross-entropy and accuracy; NaN where the network has fewer outputs than the probe has classes."""
    if int(labels.max()) >= scores.shape[1]:
        return float("nan"), float("nan")
    return F.cross_entropy(scores, labels).item(), (scores.argmax(1) == labels).double().mean().item()


def _batches(plan: Extraction) -> tuple[Tensor, Tensor]:
    """The whole probe on the device: normalised, resized where the model wants another size."""
    x = torch.from_numpy(plan.probe.images).to(plan.device).permute(0, 3, 1, 2)
    mean, std = (torch.tensor(row, device=plan.device).view(3, 1, 1) for row in plan.normalization)
    pieces = []
    for piece in x.split(plan.batch_size):
        piece = (piece.float() / 255 - mean) / std
        if piece.shape[2:] != (plan.image_size, plan.image_size):
            piece = F.interpolate(piece, size=(plan.image_size,) * 2, mode="bilinear", antialias=True)
        pieces.append(piece)
    return torch.cat(pieces), torch.from_numpy(plan.probe.labels).to(plan.device)


def fit_images(
    network: nn.Module, name: str, wanted: int | None, height: int, width: int | None = None
) -> tuple[int, list[HookPoint]]:
    """The image side to use and the hook points found at it: as wanted, else the probe's own, else a usual one."""
    own = [height] if width in (height, None) else []
    tried = [wanted] if wanted else [*own, *FALLBACK_SIZES]
    for side in tried:
        try:
            return side, find_hook_points(network, side)
        except (RuntimeError, AssertionError, ValueError) as error:
            reason = error
    raise PosthocError(
        f"{name} cannot take images of {' or '.join(map(str, tried))} pixels a side ({reason}); pass --image-size."
    )


def _draw_channels(point: HookPoint, count: int | None, seed: int) -> NDArray[np.int64]:
    """All channels, or `count` of them drawn from a stream of the layer's own, in ascending order."""
    if count is None or count >= point.channels:
        return np.arange(point.channels)
    stream = np.random.Generator(np.random.Philox(key=np.array([seed, zlib.crc32(point.name.encode())], np.uint64)))
    return np.sort(stream.choice(point.channels, count, replace=False))


def _normalization(given: str | None, recorded: Any, probe: str) -> Normalization:
    if given:
        return Normalization.parse(given)
    if recorded:
        try:
            return Normalization.of(tuple(map(float, recorded["mean"])), tuple(map(float, recorded["std"])))
        except (KeyError, TypeError, ValueError) as error:
            raise PosthocError(f"run.json: normalization {recorded!r} is not {{mean: [...], std: [...]}}.") from error
    if probe in NORMALIZATIONS:
        return NORMALIZATIONS[probe]
    raise UsageError(
        f"How the images of {probe} were normalised in training is not recorded; "
        f"pass --normalize {'|'.join(NORMALIZATIONS)} or MEAN/STD."
    )


def find_device(name: str) -> torch.device:
    """The device of that name, `auto` being the GPU where there is one; raises PosthocError where it is absent."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise PosthocError(
            f"--device {name}: this machine has no such device ({reason}); pass --device cpu."
        ) from error
    return device


def _versions(device: torch.device) -> dict[str, str | None]:
    on_gpu = device.type == "cuda"
    return {
        "posthoc": __version__,
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "cuda": torch.version.cuda if on_gpu else None,
        "gpu": torch.cuda.get_device_name(device) if on_gpu else None,
    }


@contextmanager
def _full_precision() -> Iterator[None]:
    """TF32 off: it moves activations in the fourth digit."""
    backends: list[Any] = [torch.backends.cuda.matmul, torch.backends.cudnn]
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = False
        yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.allow_tf32 = value


def _as_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor
