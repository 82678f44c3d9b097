"""Checkpoints -> activations.h5: everything is resolved first, then a short loop replays one checkpoint after another."""

import itertools
import json
import math
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
from posthoc.files import refuse_existing
from posthoc.replay.hooks import SIGNALS, Anatomy, HookPoint, Recorder, choose, dissect, first_tensor
from posthoc.replay.layout import Checkpoint, Run, find_run
from posthoc.replay.models import Model, name_tensors, parse_arguments, resolve_model
from posthoc.replay.probes import NORMALIZATIONS, Images, Normalization, load_probe
from posthoc.replay.readers import Pick, digest, read_weights
from posthoc.replay.recognition import first_convolution

FALLBACK_SIZES = (224, 299)
"""Image sides tried, in turn, where a model cannot take the probe's own."""
LUMA = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
"""Weights of red, green and blue in grey (ITU-R BT.601)."""
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Extraction:
    """What an extraction will do, decided down to the last shape."""

    run: Run
    pick: Pick
    model: Model
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
            *aside(self.run),
            ("model", f"{self.model.title}, {config['model']['outputs'] or 'no'} outputs"),
            (
                "probe",
                f"{self.probe.name}, {len(self.probe)} images at {self.image_size} x {self.image_size}"
                + (", grey" if config["probe"]["channels"] == 1 else ""),
            ),
            ("normalisation", f"mean {self.normalization.mean}, std {self.normalization.std}"),
            (
                "layers",
                ", ".join(f"{p.name} ({len(self.stored.channels[p.name])} of {p.channels})" for p in self.points)
                + f"; {config['layers_chosen']}",
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
    weights_key: str | None = None,
    ema: bool = False,
    model: str | None = None,
    model_arg: Sequence[str] = (),
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
    pick = Pick(weights_key, ema)
    run = find_run(checkpoints, select, pick)
    recorded = run.about.get("model")
    network = resolve_model(run.checkpoints[0].header, model, recorded, parse_arguments(model_arg))
    recorded_size = run.about.get("image_size")
    if recorded_size is not None and not (isinstance(recorded_size, int) and recorded_size > 0):
        raise PosthocError(f"run.json: image_size {recorded_size!r} is not a number of pixels.")
    size = image_size or recorded_size or usual_size(network.module)
    pictures = load_probe(probe, images, root=data_root, download=download, size=size)
    normalization = _normalization(normalize, run.about.get("normalization"), probe)
    size, image_channels, anatomy = fit_images(network, size, *pictures.images.shape[1:3])
    hooks, chosen = choose(anatomy.points, layers, network.name)
    kept = {point.name: _draw_channels(point, channels, seed) for point in hooks}
    batch_size = batch_size or (256 if size <= 64 else 32)
    config = {
        "model": {
            "name": network.name,
            "source": network.source,
            "arguments": parse_arguments(model_arg),
            "code": network.code,
            "outputs": anatomy.outputs,
        },
        "weights": {"key": weights_key, "ema": ema},
        "probe": {
            "name": pictures.name,
            "images": len(pictures),
            "classes": int(np.unique(pictures.labels).size),
            "image_size": size,
            "channels": image_channels,
            "normalization": {"mean": list(normalization.mean), "std": list(normalization.std)},
            "sha256": pictures.sha256,
        },
        "layers": [
            {"name": p.name, "type": p.kind, "shape": list(p.shape), "channels": len(kept[p.name])} for p in hooks
        ],
        "layers_chosen": chosen,
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
        pick=pick,
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
        found = digest(checkpoint.path)
        if not (part.exists() and store.read_part(part, plan.stored) == found):
            try:
                frame = _replay(plan, checkpoint, found, x, labels)
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


def aside(run: Run) -> list[tuple[str, str]]:
    """What was found beside the run and is no part of it."""
    said = [f"{copy.name} (same weights as {original.name})" for copy, original in run.copies]
    said += [f"{path.name} (no network's weights)" for path in run.apart]
    return [("set apart", ", ".join(said))] if said else []


def _replay(plan: Extraction, checkpoint: Checkpoint, found: str, x: Tensor, labels: Tensor) -> store.Frame:
    model = plan.model.module
    try:
        names = name_tensors(model, checkpoint.header.shapes)
        tensors = read_weights(checkpoint.path, plan.pick, set(names.values()))
        weights = {name: _as_float32(tensors[theirs]).to(plan.device) for name, theirs in names.items()}
        model.load_state_dict(weights, strict=False, assign=True)  # the plan has compared names and shapes
        model.to(plan.device)
    except (KeyError, StopIteration, RuntimeError, NotImplementedError) as error:
        raise PosthocError(f"{checkpoint.path} no longer holds the weights it was planned with ({error}).") from error
    channels = {name: torch.from_numpy(rows).to(plan.device) for name, rows in plan.stored.channels.items()}
    recorder = Recorder(plan.points, channels, plan.stored.config["signals"])
    collected: dict[tuple[str, str], list[Tensor]] = {}
    scores = []
    with torch.inference_mode(), _full_precision(), recorder.attached(model):
        for batch in x.split(plan.batch_size):
            scores.append(first_tensor(model(batch)).float())  # type: ignore[union-attr]
            for signal, layers in recorder.signals.items():
                for layer, values in layers.items():
                    collected.setdefault((signal, layer), []).append(values)
        loss, accuracy = _score(torch.cat(scores), labels)
    signals: dict[str, dict[str, NDArray[np.float32]]] = {}
    for (signal, layer), batches in collected.items():
        signals.setdefault(signal, {})[layer] = torch.cat(batches).T.cpu().numpy()
    return store.Frame(
        path=checkpoint.path.relative_to(plan.run.folder).as_posix(),
        sha256=found,
        epoch=checkpoint.epoch,
        step=checkpoint.step,
        loss=loss,
        accuracy=accuracy,
        recorded=checkpoint.header.recorded,
        signals=signals,
    )


def _score(scores: Tensor, labels: Tensor) -> tuple[float, float]:
    """Mean cross-entropy and accuracy; NaN where the outputs are no scores, or fewer than the probe has classes."""
    if scores.ndim != 2 or int(labels.max()) >= scores.shape[1]:
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
        if plan.stored.config["probe"]["channels"] == 1:
            piece = (piece * LUMA.to(plan.device)).sum(1, keepdim=True)
        pieces.append(piece)
    return torch.cat(pieces), torch.from_numpy(plan.probe.labels).to(plan.device)


def usual_size(network: nn.Module) -> int | None:
    """The image side a network says it was made for."""
    said = getattr(network, "image_size", None)
    if said is None and isinstance(config := getattr(network, "default_cfg", None), dict):  # timm
        said = config.get("input_size", (None,))[-1] if config.get("fixed_input_size") else None
        patches = getattr(getattr(network, "patch_embed", None), "img_size", None)
        said = patches[0] if patches else said
    return said if isinstance(said, int) else None


def fit_images(model: Model, wanted: int | None, height: int, width: int | None = None) -> tuple[int, int, Anatomy]:
    """The image side and channels to use and what is found at them: as wanted, else the probe's own, else a usual one."""
    own = [height] if width in (height, None) else []
    sides = [wanted] if wanted else [*own, *FALLBACK_SIZES]
    first = first_convolution(model.module)
    channels = [first[1].in_channels] if first else [3, 1]
    if not {1, 3} & set(channels):
        raise PosthocError(f"{model.name} takes images of {channels[0]} channels; probes have 3, or 1 as grey.")
    tried = list(itertools.product(sides, channels))
    flat = next((part.in_features for part in model.module.modules() if isinstance(part, nn.Linear)), 0)
    if not first and not wanted:  # one that takes the pixels in a row says how many
        tried = [(side, c) for c in channels if (side := math.isqrt(flat // c)) ** 2 * c == flat] + tried
    for side, count in tried:
        try:
            return side, count, dissect(model.module, side, count)
        except (RuntimeError, AssertionError, ValueError, TypeError, NotImplementedError) as error:
            reason = error
    raise PosthocError(
        f"{model.name} cannot take images of {' or '.join(map(str, sides))} pixels a side ({reason}); pass --image-size."
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
