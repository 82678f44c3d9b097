"""What an extraction will do: run, model, probe, hook points and shapes, all resolved before anything is computed."""

import hashlib
import socket
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from posthoc import __version__, store, streams
from posthoc.analysis.scales import LEAST_POINTS, LEAST_PUBLISHED, START
from posthoc.errors import PosthocError, UsageError
from posthoc.recording import (
    Identity,
    Layer,
    Output,
    Provenance,
    Recording,
    Weights,
    seed_of_control,
)
from posthoc.recording import Model as RecordedModel
from posthoc.recording import Probe as RecordedProbe
from posthoc.replay.controls import check_controls
from posthoc.replay.cost import averaging, cost, require_memory
from posthoc.replay.forward import StrayError
from posthoc.replay.hooks import HookPoint
from posthoc.replay.layers import choose, is_named
from posthoc.replay.layout import Run
from posthoc.replay.models import Model, resolve_model
from posthoc.replay.outputs import Scored
from posthoc.replay.padding import Padding, padding_of
from posthoc.replay.probes import Probe, load_probe
from posthoc.replay.probes.fitting import traced
from posthoc.replay.request import (
    Request,
    parse_arguments,
    parse_settings,
    require_settings,
)
from posthoc.replay.scores import Score
from posthoc.replay.signals import SIGNALS
from posthoc.replay.sketching import weights_of
from posthoc.replay.spectra import MOST, is_matrix, is_small
from posthoc.replay.trial import Trial, Wishes, try_out
from posthoc.replay.untrained import require_constructor, require_draws
from posthoc.replay.weights import Pick
from posthoc.shown import counted, listed

NAMED = 5
"""So many files are named that were set apart for one reason, and so many reasons."""


@dataclass(frozen=True)
class Extraction:
    """What an extraction will do, decided down to the last shape.

    features: whether what the last layer is given is kept, and its weights; averages: the means of weights that were asked
    for, which are replayed where samples have a loss; every: all hook points of the network; strays: those through which
    not every sample goes; left_out: which of these would have been recorded.
    """

    run: Run
    pick: Pick
    model: Model
    probe: Probe
    points: tuple[HookPoint, ...]
    device: torch.device
    batch_size: int
    stored: store.Layout
    untrained: int = 0
    features: bool = False
    averages: tuple[int, ...] = ()
    every: tuple[HookPoint, ...] = ()
    strays: frozenset[str] = frozenset()
    left_out: frozenset[str] = frozenset()
    trial: Trial | None = None

    @property
    def identity(self) -> Identity:
        """What the numbers depend on."""
        return self.stored.recording.identity

    @property
    def score(self) -> Score | None:
        """How outputs are scored; None where they are not."""
        return self.probe.score_of(self.scored.score)

    @property
    def padding(self) -> Padding:
        """What of the probe's padding is left out of what."""
        return padding_of(self.probe, self.points, self.trial.apart if self.trial else ())

    @property
    def scored(self) -> Scored:
        """Which output is scored."""
        return self.trial.scored if self.trial else Scored(None)

    @property
    def head(self) -> str | None:
        """The last layer, where its input is kept."""
        return self.trial.head if self.trial else None

    @property
    def notes(self) -> list[tuple[str, str]]:
        """What was found and decided, as label and text."""
        identity, probe = self.identity, self.probe
        layers = ", ".join(f"{p.name} ({len(self.stored.channels[p.name])} of {p.channels})" for p in self.points)
        return [
            ("run", f"{self.run.folder}, {self.run.span}"),
            *about_order(self.run),
            *self._about_start(),
            *aside(self.run),
            ("model", f"{self.model.title}, {_outputs(identity.output, self.score)}"),
            *(probe.notes or [("probe", f"{probe.name}, {len(probe)} {probe.samples} ({probe.shapes})")]),
            ("layers", f"{layers}; {self.stored.recording.provenance.layers}"),
            *self._about_strays(),
            *self.padding.notes(scored=self.padding.of(self.score) is not None),
            *self._about_length(),
            *self._about_calls(),
            ("signals", ", ".join(identity.signals)),
            *([("controls", "; ".join(identity.controls))] if identity.controls else []),
            *([("features", f"what {self.head} is given, and its {' and '.join(identity.head)}")] if self.head else []),
            *self._about_untrained(),
            *self._about_averages(),
            *self._about_spectra(),
            ("device", f"{self.device.type}, batches of {self.batch_size}, {_precision(identity)}"),
            *(self.trial.remarks if self.trial else ()),
            *cost(self),
        ]

    def _about_start(self) -> list[tuple[str, str]]:
        """Whether the first checkpoint may be of weights that had not trained, which nothing in it says."""
        first = self.run.checkpoints[0]
        if len(self.run.checkpoints) < 2 or first.epoch != 0 or first.step is not None:
            return []
        text = "epoch 0 counts as trained, for it does not say of itself that it is of step 0; save the untrained network with"
        return [("note", f"{text} a step of 0 beside its weights")]

    def _about_strays(self) -> list[tuple[str, str]]:
        names = [point.name for point in self.every if point.name in self.left_out]
        return [("note", f"{listed(names)} left out, for not every sample goes through")] if names else []

    def _about_length(self) -> list[tuple[str, str]]:
        """Whether there is less than `posthoc metrics` takes unless it is told otherwise."""
        tokens, N = self.probe.tokens, len(self.probe)
        if tokens is None and N < LEAST_PUBLISHED:
            return [
                ("note", f"{N} {self.probe.samples} are too few for posthoc metrics, which needs {LEAST_PUBLISHED}")
            ]
        if tokens is not None and tokens.shape[1] < START + LEAST_POINTS:
            few = f"documents of {tokens.shape[1]} tokens are too short for posthoc metrics, which needs"
            return [("note", f"{few} {START + LEAST_POINTS}; give a longer --context")]
        return []

    def _about_calls(self) -> list[tuple[str, str]]:
        several = [f"{point.name} ({point.calls})" for point in self.points if point.calls > 1]
        named = ", ".join(several[:3]) + ", ..." * (len(several) > 3)
        text = f"of what is called several times in a forward pass the last call is recorded: {named}"
        return [("note", text)] if several else []

    def _about_untrained(self) -> list[tuple[str, str]]:
        if not (seeds := [seed_of_control(self.identity.seed, number) for number in range(self.untrained)]):
            return []
        of = f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]} to {seeds[-1]}"
        return [("untrained", f"{counted(len(seeds), 'initialisation')} of the network, {of}")]

    def _about_averages(self) -> list[tuple[str, str]]:
        if self.averages and not self.identity.averaged:
            reason = self.scored.reason or "the score gives none"
            return [("averages", f"none are replayed, for there is no loss of each sample: {reason}")]
        return averaging(self)

    def _about_spectra(self) -> list[tuple[str, str]]:
        if not self.identity.spectra:
            return []
        shapes = {name: tensor.shape for name, tensor in self.model.module.named_parameters()}
        matrices = [name for name in self.stored.weights if is_matrix(shapes[name])]
        large = [name for name in matrices if not is_small(shapes[name])]
        without = (
            f"; without {', '.join(large[:3])}{', ...' * (len(large) > 3)}, larger than {MOST} x {MOST}"
            if large
            else ""
        )
        return [
            (
                "spectra",
                f"of {len(matrices) - len(large)} of {counted(len(self.stored.weights), 'tensor')} of weights{without}",
            )
        ]

    def settled(self, trial: Trial) -> "Extraction":
        """With what the trial decided; it is part of what the parts of a run must agree with."""
        output = Output(trial.scored.name, trial.scored.columns, trial.scored.score)
        averaged = self.averages if "loss" in trial.behaviour else ()
        apart = {"of_other_places": list(trial.apart)} if trial.apart else {}
        probe = replace(self.identity.probe, preparation={**self.identity.probe.preparation, **apart})
        plan = self.changed(
            memory_format=trial.memory_format, output=output, behaviour=trial.behaviour, head=trial.head_tensors,
            averaged=averaged, probe=probe,
        )  # fmt: skip
        score = self.probe.score_of(trial.scored.score)
        loss, unit = (score.loss, score.unit) if score else ("loss", None)
        plan = plan.told(output=trial.scored.reason, loss=loss, unit=unit)
        return replace(plan, trial=trial)

    def without(self, strays: Collection[str], request: Request) -> "Extraction":
        """With the layers that are asked for chosen among the others."""
        strays = self.strays.union(strays)
        points = [point for point in self.every if point.name not in strays]
        points, chosen = choose(points, request.layers, self.model.name)
        channels = _drawn(points, request)
        plan = self.changed(layers=_recorded_layers(points, channels)).told(layers=chosen)
        stored = replace(plan.stored, channels=channels)
        left_out = self.left_out.union(point.name for point in self.points if point.name in strays)
        return replace(plan, points=tuple(points), stored=stored, strays=strays, left_out=left_out)

    def told(self, **provenance: Any) -> "Extraction":
        """With other values in its provenance."""
        recording = self.stored.recording
        recording = replace(recording, provenance=replace(recording.provenance, **provenance))
        return replace(self, stored=replace(self.stored, recording=recording))

    def changed(self, **identity: Any) -> "Extraction":
        """With other values in its identity."""
        recording = self.stored.recording
        recording = replace(recording, identity=replace(recording.identity, **identity))
        return replace(self, stored=replace(self.stored, recording=recording))


def plan_of(
    request: Request,
    run: Run,
    pick: Pick,
    *,
    skip_damaged: bool = False,
    trial: bool = True,
    before: Extraction | None = None,
) -> Extraction:
    """What is asked for, of a run that was found: see `posthoc.replay.planning.plan_extraction`."""
    device = find_device(request.device)
    if not before:  # else a network of the run is at work already, in memory that counts as taken
        require_memory(run.checkpoints[0], device, max(request.averaged, default=0))
    model = resolve_model(
        run.checkpoints[0].header,
        request.model,
        run.about.get("model"),
        parse_arguments(request.model_arg),
        run.checkpoints[0].path,
    )
    if before and before.model.single:
        model = model.in_single() or model
    try:
        return _plan_of(request, run, pick, model, skip_damaged, trial, before)
    except UsageError:
        raise
    except PosthocError:  # which may be of nothing but the types of numbers
        single = model.in_single()
        if single is None:
            raise
    return _plan_of(request, run, pick, single, skip_damaged, trial, before)


def _plan_of(
    request: Request, run: Run, pick: Pick, model: Model, skip_damaged: bool, trial: bool, before: Extraction | None
) -> Extraction:
    """With the network as it is."""
    plan = _planned(request, run, pick, model)
    if plan.untrained:
        require_constructor(plan)
    if not trial:
        return plan
    if before and before.strays:
        plan = plan.without(before.strays, request)
    if before and before.trial and before.identity == plan.settled(before.trial).identity:
        return plan.settled(before.trial)
    wishes = Wishes(request.memory_format, request.model_output, request.score)
    settled = _tried(plan, request, wishes, skip_damaged)
    if plan.untrained:
        require_draws(settled)
    return settled


def _tried(plan: Extraction, request: Request, wishes: Wishes, skip_errors: bool) -> Extraction:
    """Settled by a trial, without the layers through which it shows that not every sample goes.

    Of those alone that are asked for by their own name it is an error, and so it is where none of all layers is reached.
    """
    while True:
        try:
            return plan.settled(try_out(plan, wishes, skip_errors))
        except StrayError as error:
            rows = error.layers
            strays = {layer for layer in rows if not is_named(layer, request.layers)}
            astray = rows.keys() == {point.name for point in plan.points} and not any(rows.values())
            if not strays or astray:
                raise
        plan = plan.without(strays, request)


def _planned(request: Request, run: Run, pick: Pick, model: Model) -> Extraction:
    """All but what only a trial shows."""
    device, arguments = find_device(request.device), parse_arguments(request.model_arg)
    first = run.checkpoints[0]
    probe = load_probe(replace(request.asked, recorded=run.about, beside=run.beside), model)
    _refuse_without_tokens(request, probe)
    anatomy = probe.anatomy or traced(model, probe)
    points, chosen = choose(anatomy.points, request.layers, model.name)
    channels = _drawn(points, request)
    identity = Identity(
        model=RecordedModel(model.name, arguments, model.code),
        weights=Weights(request.weights_key, request.ema),
        probe=_recorded(probe),
        layers=_recorded_layers(points, channels),
        channels=request.channels,
        signals=request.recorded,
        seed=request.seed,
        device=_device_model(device),
        dtype=request.dtype,
        tf32=request.tf32,
        compile=request.compile,
        memory_format=request.memory_format,
        batch_size=request.batch_size or probe.batch_size,
        output=Output(None, anatomy.outputs),
        controls=request.inputs,
        averaged=request.averaged,
        spectra=request.spectra,
    )
    index = np.arange(len(probe)) if probe.index is None else probe.index
    provenance = _provenance(request, run, model, probe, chosen, device)
    recording = Recording.from_dict(Recording(identity, provenance).to_dict())
    return Extraction(
        run=run,
        pick=pick,
        model=model,
        probe=probe,
        points=tuple(points),
        device=device,
        batch_size=request.batch_size or probe.batch_size,
        stored=store.Layout(
            recording,
            index,
            probe.labels,
            channels,
            probe.tokens,
            probe.text_bytes,
            weights_of(model, first.header.shapes),
        ),
        untrained=request.networks,
        features=request.features,
        averages=request.averaged,
        every=anatomy.points,
    )


def _provenance(
    request: Request, run: Run, model: Model, probe: Probe, layers: str, device: torch.device
) -> Provenance:
    """What is recorded of a plan and no number depends on; layers: how they were chosen."""
    about = _about(request, run)
    return Provenance(
        model=model.name,
        probe=probe.name,
        source=model.source,
        adapters=model.adapters,
        layers=layers,
        signals={name: SIGNALS[name].meaning for name in request.recorded},
        samples=probe.samples,
        preparation="; ".join([probe.words, *(f"without padding ({name})" for name in probe.masks)]),
        recipe=about.get("recipe"),
        training_seed=about.get("seed"),
        dataset=about.get("dataset"),
        settings=about["settings"],
        versions=_versions(device),
        host=socket.gethostname(),
    )


def _about(request: Request, run: Run) -> dict[str, Any]:
    """What run.json and --set, which counts more, say of the run; raises UsageError for what are no settings."""
    recorded = run.about.get("settings") or {}
    require_settings(recorded, f"{run.folder / 'run.json'}")
    settings = {**recorded, **parse_settings(request.settings)}
    known: dict[str, Any] = {key: settings.pop(key) for key in ("recipe", "dataset", "seed") if key in settings}
    return {**run.about, **known, "settings": settings}


def _recorded(probe: Probe) -> RecordedProbe:
    """What of a probe the numbers depend on."""
    counts = None if probe.labels is None else np.unique(probe.labels, return_counts=True)[1]
    return RecordedProbe(
        sha256=probe.sha256,
        samples=len(probe),
        classes=None if counts is None else int(counts.size),
        largest_class=None if counts is None else int(counts.max()),
        preparation={**probe.preparation, **_recorded_padding(probe)},
        code=probe.code,
        axes={name: tuple(axes) for name, axes in probe.axes.items()},
    )


def _recorded_padding(probe: Probe) -> dict[str, Any]:
    """Digests of what says which places are padding; nothing where none are, as before there was any word of it."""
    masks = {
        name: hashlib.sha256(np.packbits(mask, axis=1).tobytes()).hexdigest() for name, mask in probe.masks.items()
    }
    return {"padding": masks} if masks else {}


def _refuse_without_tokens(request: Request, probe: Probe) -> None:
    """Raise UsageError where signals or controls are asked for that rows of tokens alone have, which are not padded."""
    if probe.tokens is not None and not probe.masks:
        check_controls(request.inputs, T := probe.tokens.shape[1])
        summed = [
            name for name in request.recorded if SIGNALS[name].dimensions[2:] in (("scale",), ("lag",), ("other",))
        ]
        if summed and T < START + LEAST_POINTS:
            raise UsageError(
                f"--signals {summed[0]}: documents of {T} tokens are too short; {START + LEAST_POINTS} are the least."
            )
        return
    of_tokens = [f"--signals {name}" for name in request.recorded if SIGNALS[name].of_tokens]
    for what in (*of_tokens, *(f"--controls {name}" for name in request.inputs)):
        whole = f" without padding, which {' and '.join(probe.masks)} has" if probe.masks else ""
        raise UsageError(f"{what} needs rows of tokens{whole}; give text:FILE or tokens:FILE as the probe.")


def _outputs(output: Output, score: Score | None) -> str:
    words = f"{output.columns} outputs" if output.columns else "output" if score else "no scores"
    name = f" ({output.name})" if score and output.name not in (None, "0") else ""
    return ", ".join(filter(None, [words + name, f"scored by {score.words}" if score else ""]))


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
    average = run.checkpoints[0].header.average
    notes = [f"a moving average of the weights lies beside them ({average}); --ema takes it"] if average else []
    return order + [("note", note) for note in (*run.notes, *notes)]


def aside(run: Run) -> list[tuple[str, str]]:
    """What was found beside the run and is no part of it."""
    rows = [(copy.name, f"same weights as {original.name}") for copy, original in run.copies]
    rows += [(path.name, reason) for path, reason in run.apart]
    rows += [(path.name, "damaged") for path, _ in run.damaged]
    rows += [(duplicate.path.name, str(duplicate)) for duplicate in run.duplicates]
    by_reason: dict[str, list[str]] = {}
    for name, reason in rows:
        by_reason.setdefault(reason, []).append(name)
    texts = []
    for reason, names in by_reason.items():
        texts.append(f"{listed(names, NAMED)} ({reason})")
    if len(texts) > NAMED:
        texts[NAMED:] = [f"and {len(rows) - sum(len(names) for names in list(by_reason.values())[:NAMED])} more"]
    return [("set apart", ", ".join(texts))] if texts else []


def _drawn(points: Sequence[HookPoint], request: Request) -> dict[str, NDArray[np.int64]]:
    return {point.name: _draw_channels(point, request.channels, request.seed) for point in points}


def _recorded_layers(points: Sequence[HookPoint], channels: Mapping[str, NDArray[np.int64]]) -> tuple[Layer, ...]:
    return tuple(Layer(p.name, p.kind, tuple(p.shape), len(channels[p.name]), p.channels) for p in points)


def _draw_channels(point: HookPoint, count: int | None, seed: int) -> NDArray[np.int64]:
    """All channels, or `count` of them drawn from a stream of the layer's own, in ascending order."""
    if count is None or count >= point.channels:
        return np.arange(point.channels)
    return np.sort(streams.channels(seed, point.name).choice(point.channels, count, replace=False))


def find_device(name: str) -> torch.device:
    """The device of that name, `auto` being the GPU where there is one; raises PosthocError where it is absent."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "meta":
        raise PosthocError("--device meta computes nothing; pass --device cpu.")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()  # a GPU may be there and be taken, or be older than this torch computes on
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise PosthocError(
            f"--device {name}: this machine has no such device ({reason}); pass --device cpu."
        ) from error
    return device


def _device_model(device: torch.device) -> str:
    return str(torch.cuda.get_device_name(device)) if device.type == "cuda" else device.type


def _versions(device: torch.device) -> dict[str, str | None]:
    on_gpu = device.type == "cuda"
    return {
        "posthoc": __version__,
        "torch": str(torch.__version__),
        "torchvision": version("torchvision"),
        "cuda": torch.version.cuda if on_gpu else None,
    }
