"""What an extraction will do: run, model, probe, hook points and shapes, all resolved before anything is computed."""

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from numpy.typing import NDArray

from posthoc import __version__, store
from posthoc.errors import PosthocError, UsageError
from posthoc.parts import controls_of
from posthoc.recording import MOST_CONTROLS
from posthoc.replay.hooks import HookPoint, choose
from posthoc.replay.inputs import fit_images, usual_size
from posthoc.replay.layout import Run, find_run
from posthoc.replay.models import Model, resolve_model
from posthoc.replay.outputs import Scored
from posthoc.replay.probes import NORMALIZATIONS, Images, Normalization, load_probe
from posthoc.replay.readers import Pick
from posthoc.replay.request import SIGNALS, check_options, parse_arguments
from posthoc.replay.trial import Trial, try_out
from posthoc.replay.untrained import require_constructor, require_draws

NAMED = 5
"""So many files are named that were set apart for one reason, and so many reasons."""


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
    trial: Trial | None = None

    @property
    def scored(self) -> Scored:
        """Which output is scored."""
        return self.trial.scored if self.trial else Scored(None)

    @property
    def notes(self) -> list[tuple[str, str]]:
        """What was found and decided, as label and text."""
        config, checkpoints = self.stored.config, self.run.checkpoints
        signal_bytes = 4 * len(self.probe) * sum(map(len, self.stored.channels.values())) * len(config["signals"])
        return [
            ("run", f"{self.run.folder}, {self.run.span}"),
            *about_order(self.run),
            *aside(self.run),
            ("model", f"{self.model.title}, {_outputs(config)}"),
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
            *self._about_untrained(),
            ("device", f"{config['device']}, batches of {self.batch_size}, {_precision(config)}"),
            *(self.trial.remarks if self.trial else ()),
            (
                "output",
                f"{(len(checkpoints) + config.get('untrained', 0)) * signal_bytes / 1e6:.1f} MB before compression",
            ),
        ]

    def _about_untrained(self) -> list[tuple[str, str]]:
        if not (
            seeds := [store.seed_of_control(self.stored.config, c.number) for c in controls_of(self.stored.config)]
        ):
            return []
        of = f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]} to {seeds[-1]}"
        return [("untrained", f"{len(seeds)} initialisation{'s' * (len(seeds) > 1)} of the network, {of}")]

    def settled(self, trial: Trial) -> "Extraction":
        """With what the trial decided; it is part of what the parts of a run must agree with."""
        config, scored = self.stored.config, trial.scored
        model = config["model"] | {"outputs": scored.columns}
        scores = {"output": scored.name, "columns": scored.columns, "reason": scored.reason}
        config = config | {"model": model, "memory_format": trial.memory_format, "scores": scores}
        stored = store.Plan(config, self.stored.image, self.stored.label, self.stored.channels)
        return replace(self, stored=stored, trial=trial)


def plan_extraction(
    checkpoints: Path | Sequence[Path],
    probe: str,
    *,
    select: str | None = None,
    order: str | None = None,
    placed: Sequence[str] = (),
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
    dtype: str = "float32",
    tf32: bool = False,
    compile: bool = False,
    batch_size: int | None = None,
    memory_format: str = "auto",
    model_output: str | None = None,
    seed: int = 0,
    untrained: int = 0,
    skip_damaged: bool = False,
    trial: bool = True,
    before: Extraction | None = None,
) -> Extraction:
    """Find the run, its model, the probe and the hook points, and try the model on a few images; nothing is written.

    `checkpoints` is the folder of a run, one checkpoint, or several of one folder; `order` (name or inside) says by
    what they are ordered, `placed` gives some their place, as FILE=EPOCH.
    `channels` None records all of each layer; otherwise so many, drawn once per run and layer from `seed`. `dtype`
    bfloat16 replays under autocast; `tf32` allows it on CUDA; `compile` runs the network through torch.compile.
    `memory_format` auto takes channels last where it is faster and gives the same; `model_output` says by name or
    position which output is scored, `none` that none is. `untrained`: so many new initialisations of the model are
    replayed beside the run, as controls. `skip_damaged` sets checkpoints apart whose headers cannot be
    read, and goes on where the model cannot run with the weights of one. Without `trial` nothing is run: enough to
    count what there is to do. `before`: a plan of the same run as it was, whose trial holds if all else is as it was.
    Raises PosthocError for whatever does not fit.
    """
    check_options(layers, signals, dtype, memory_format, seed)
    if not 0 <= untrained <= MOST_CONTROLS:
        raise UsageError(f"--untrained {untrained}: give a number from 0 to {MOST_CONTROLS}.")
    signals = list(dict.fromkeys(signals))
    chosen_device = find_device(device)
    pick = Pick(weights_key, ema)
    run = find_run(checkpoints, select, pick, skip_damaged, order, placed)
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
            "largest_class": int(np.bincount(pictures.labels).max()),
            "image_size": size,
            "channels": image_channels,
            "normalization": {"mean": list(normalization.mean), "std": list(normalization.std)},
            "sha256": pictures.sha256,
        },
        "layers": [
            {
                "name": p.name,
                "type": p.kind,
                "shape": list(p.shape),
                "channels": len(kept[p.name]),
                "total": p.channels,
            }
            for p in hooks
        ],
        "layers_chosen": chosen,
        "channels": "all" if channels is None else channels,
        "signals": list(signals),
        "seed": seed,
        **({"untrained": untrained} if untrained else {}),
        "device": chosen_device.type,
        "dtype": dtype,
        "tf32": tf32,
        "compile": compile,
        "memory_format": memory_format,
        "batch_size": batch_size,
        "recipe": run.about.get("recipe"),
        "training_seed": run.about.get("seed"),
        "dataset": run.about.get("dataset"),
        "versions": _versions(chosen_device),
    }
    plan = Extraction(
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
    if untrained:
        require_constructor(plan)
    if not trial:
        return plan
    if before and before.trial and before.stored.config == plan.settled(before.trial).stored.config:
        return plan.settled(before.trial)
    settled = plan.settled(try_out(plan, memory_format, model_output, skip_damaged))
    if untrained:
        require_draws(settled)
    return settled


def _outputs(config: dict[str, Any]) -> str:
    if not (columns := config["model"]["outputs"]):
        return "no scores"
    name = config.get("scores", {}).get("output")
    return f"{columns} outputs" + (f" ({name})" if name not in (None, "0") else "")


def _precision(config: dict[str, Any]) -> str:
    tf32 = ("with TF32" if config["tf32"] else "without TF32",) if config["device"] == "cuda" else ()
    return ", ".join(
        [config["dtype"], *tf32, config["memory_format"].replace("_", " "), *["compiled"] * config["compile"]]
    )


def about_order(run: Run) -> list[tuple[str, str]]:
    """What the checkpoints are ordered by, and what a user should know of it."""
    order = [("order", run.by)] if len(run.checkpoints) > 1 else []
    return order + [("note", note) for note in run.notes]


def aside(run: Run) -> list[tuple[str, str]]:
    """What was found beside the run and is no part of it."""
    rows = [(copy.name, f"same weights as {original.name}") for copy, original in run.copies]
    rows += [(path.name, reason) for path, reason in run.apart]
    rows += [(path.name, "damaged") for path, _ in run.damaged]
    by_reason: dict[str, list[str]] = {}
    for name, reason in rows:
        by_reason.setdefault(reason, []).append(name)
    texts = []
    for reason, names in by_reason.items():
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        texts.append(f"{', '.join(names[:NAMED])}{more} ({reason})")
    if len(texts) > NAMED:
        texts[NAMED:] = [f"and {len(rows) - sum(len(names) for names in list(by_reason.values())[:NAMED])} more"]
    return [("set apart", ", ".join(texts))] if texts else []


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
    if device.type == "meta":
        raise PosthocError("--device meta computes nothing; pass --device cpu.")
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
