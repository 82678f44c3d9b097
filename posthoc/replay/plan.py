"""What an extraction will do: run, model, probe, hook points and shapes, all resolved before anything is computed."""

import socket
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
from posthoc.recording import (
    MOST_CONTROLS,
    Identity,
    Layer,
    Output,
    Provenance,
    Recording,
    Weights,
    image_words,
    seed_of_control,
)
from posthoc.recording import Model as RecordedModel
from posthoc.recording import Probe as RecordedProbe
from posthoc.replay.hooks import HookPoint, choose
from posthoc.replay.inputs import fit_images, usual_size
from posthoc.replay.layout import Run, find_run
from posthoc.replay.models import Model, resolve_model
from posthoc.replay.outputs import Scored
from posthoc.replay.probes import NORMALIZATIONS, Images, Normalization, load_probe
from posthoc.replay.request import check_options, parse_arguments
from posthoc.replay.signals import DEFAULT_SIGNALS, SIGNALS
from posthoc.replay.trial import Trial, try_out
from posthoc.replay.untrained import require_constructor, require_draws
from posthoc.replay.weights import Pick

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
    stored: store.Layout
    untrained: int = 0
    trial: Trial | None = None

    @property
    def identity(self) -> Identity:
        """What the numbers depend on."""
        return self.stored.recording.identity

    @property
    def scored(self) -> Scored:
        """Which output is scored."""
        return self.trial.scored if self.trial else Scored(None)

    @property
    def notes(self) -> list[tuple[str, str]]:
        """What was found and decided, as label and text."""
        checkpoints, identity = self.run.checkpoints, self.identity
        signal_bytes = 4 * len(self.probe) * sum(map(len, self.stored.channels.values())) * len(identity.signals)
        return [
            ("run", f"{self.run.folder}, {self.run.span}"),
            *about_order(self.run),
            *aside(self.run),
            ("model", f"{self.model.title}, {_outputs(identity.output)}"),
            (
                "probe",
                f"{self.probe.name}, {len(self.probe)} images at {self.image_size} x {self.image_size}"
                + (", grey" if identity.probe.preparation["channels"] == 1 else ""),
            ),
            ("normalisation", f"mean {self.normalization.mean}, std {self.normalization.std}"),
            (
                "layers",
                ", ".join(f"{p.name} ({len(self.stored.channels[p.name])} of {p.channels})" for p in self.points)
                + f"; {self.stored.recording.provenance.layers}",
            ),
            ("signals", ", ".join(identity.signals)),
            *self._about_untrained(),
            ("device", f"{self.device.type}, batches of {self.batch_size}, {_precision(identity)}"),
            *(self.trial.remarks if self.trial else ()),
            (
                "output",
                f"{(len(checkpoints) + self.untrained) * signal_bytes / 1e6:.1f} MB before compression",
            ),
        ]

    def _about_untrained(self) -> list[tuple[str, str]]:
        if not (seeds := [seed_of_control(self.identity.seed, number) for number in range(self.untrained)]):
            return []
        of = f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]} to {seeds[-1]}"
        return [("untrained", f"{len(seeds)} initialisation{'s' * (len(seeds) > 1)} of the network, {of}")]

    def settled(self, trial: Trial) -> "Extraction":
        """With what the trial decided; it is part of what the parts of a run must agree with."""
        output = Output(trial.scored.name, trial.scored.columns)
        plan = self.changed(memory_format=trial.memory_format, output=output)
        provenance = replace(self.stored.recording.provenance, output=trial.scored.reason)
        recording = replace(plan.stored.recording, provenance=provenance)
        return replace(plan, stored=replace(plan.stored, recording=recording), trial=trial)

    def changed(self, **identity: Any) -> "Extraction":
        """With other values in its identity."""
        recording = self.stored.recording
        recording = replace(recording, identity=replace(recording.identity, **identity))
        return replace(self, stored=replace(self.stored, recording=recording))


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
    signals: Sequence[str] = DEFAULT_SIGNALS,
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
    identity = Identity(
        model=RecordedModel(network.name, parse_arguments(model_arg), network.code),
        weights=Weights(weights_key, ema),
        probe=RecordedProbe(
            sha256=pictures.sha256,
            samples=len(pictures),
            classes=int(np.unique(pictures.labels).size),
            largest_class=int(np.bincount(pictures.labels).max()),
            preparation={"image_size": size, "channels": image_channels, "normalization": normalization._asdict()},
        ),
        layers=tuple(Layer(p.name, p.kind, tuple(p.shape), len(kept[p.name]), p.channels) for p in hooks),
        channels=channels,
        signals=tuple(signals),
        seed=seed,
        device=_device_model(chosen_device),
        dtype=dtype,
        tf32=tf32,
        compile=compile,
        memory_format=memory_format,
        batch_size=batch_size,
        output=Output(None, anatomy.outputs),
    )
    provenance = Provenance(
        model=network.name,
        probe=pictures.name,
        source=network.source,
        layers=chosen,
        signals={name: SIGNALS[name].meaning for name in signals},
        preparation=image_words(list(normalization.mean), list(normalization.std), size, image_channels),
        recipe=run.about.get("recipe"),
        training_seed=run.about.get("seed"),
        dataset=run.about.get("dataset"),
        versions=_versions(chosen_device),
        host=socket.gethostname(),
    )
    recording = Recording.from_dict(Recording(identity, provenance).to_dict())
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
        stored=store.Layout(recording, pictures.index, pictures.labels, kept),
        untrained=untrained,
    )
    if untrained:
        require_constructor(plan)
    if not trial:
        return plan
    if before and before.trial and before.identity == plan.settled(before.trial).identity:
        return plan.settled(before.trial)
    settled = plan.settled(try_out(plan, memory_format, model_output, skip_damaged))
    if untrained:
        require_draws(settled)
    return settled


def _outputs(output: Output) -> str:
    if not output.columns:
        return "no scores"
    return f"{output.columns} outputs" + (f" ({output.name})" if output.name not in (None, "0") else "")


def _precision(identity: Identity) -> str:
    words = [identity.dtype]
    if identity.device != "cpu":
        words.append("with TF32" if identity.tf32 else "without TF32")
    words.append(identity.memory_format.replace("_", " "))
    if identity.compile:
        words.append("compiled")
    return ", ".join(words)


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


def _device_model(device: torch.device) -> str:
    return str(torch.cuda.get_device_name(device)) if device.type == "cuda" else device.type


def _versions(device: torch.device) -> dict[str, str | None]:
    on_gpu = device.type == "cuda"
    return {
        "posthoc": __version__,
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "cuda": torch.version.cuda if on_gpu else None,
    }
