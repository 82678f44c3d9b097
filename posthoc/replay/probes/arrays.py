"""Arrays of any type and shape as a network takes them: under which names, with which axes where, whole or real numbers.

What runs is found by tracing, in an order that begins with the arrays as they are, and said.
"""

import itertools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from posthoc.errors import PosthocError, UsageError
from posthoc.replay.probes.archives import INPUTS, Samples, read_samples
from posthoc.replay.probes.images import SCALES, Normalization, first_rows, images_of, normalization, prepared
from posthoc.replay.probes.probe import Asked, Batch, Kind, Prepare, Probe
from posthoc.replay.scores import is_binary
from posthoc.shown import counted

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from posthoc.replay.forward import Arguments
    from posthoc.replay.hooks import Anatomy, Entered
    from posthoc.replay.models import Model

Array = NDArray[Any]
MOST_READINGS = 64
COLOURS = (1, 3, 4)
"""Numbers of channels by which the last axis of images is told."""
DECODER_INPUTS = ("decoder_input_ids", "decoder_inputs_embeds")
NO_TOKEN = -100
"""The target of a place that has none, as Transformers has it."""
LAYOUTS = {
    "as it is": "",
    "channels moved first": "moved",
    "with an axis of one channel": "channel",
    "with a last axis of one": "last",
}


@dataclass(frozen=True)
class Reading:
    """How one input is read: with which axes, as whole numbers or in single precision, and scaled as images or not."""

    layout: str
    whole: bool
    normalization: Normalization | None = None
    white: float = 255
    """The brightest value of images."""

    def of(self, x: "Tensor") -> "Tensor":
        """What the network sees of a batch [B, ...]."""
        if self.layout == "moved":
            x = x.movedim(-1, 1)
        elif self.layout == "channel":
            x = x.unsqueeze(1)
        elif self.layout == "last":
            x = x.unsqueeze(-1)
        if self.normalization is not None:
            x = x.float() / self.white
            shape = [-1] + [1] * (x.ndim - 2)
            mean, std = (x.new_tensor(row[: x.shape[1]]).view(shape) for row in self.normalization)
            return (x - mean) / std
        if self.whole:
            return x if x.dtype.is_floating_point or str(x.dtype) == "torch.bool" else x.long()
        return x.float()

    def words(self, array: Array) -> str:
        """What is done with the array, nothing for what is fed as it is."""
        layout = next(words for words, key in LAYOUTS.items() if key == self.layout)
        parts = [layout] if self.layout else []
        parts += ["scaled as images"] if self.normalization else []
        if array.dtype.kind in "biu" and not self.whole and not self.normalization:
            parts.append("in single precision")
        return ", ".join(parts)


def readings(array: Array, scale: Normalization | None) -> list[Reading]:
    """The ways to read an array, the likeliest first."""
    shape = array.shape[1:]
    if len(shape) in (3, 4):
        last = shape[-1] in COLOURS and min(shape[:-1]) > max(COLOURS)
        layouts = ["moved", ""] if last else ["", "moved"]
    else:
        layouts = {0: ["", "last"], 1: ["", "channel", "last"], 2: ["", "moved", "channel"]}.get(len(shape), [""])
    if scale and (is_picture(array) or _is_unit_picture(array)):
        order = ["channel"] if len(shape) == 2 else layouts
        return [Reading(layout, False, scale, 255 if array.dtype == np.uint8 else 1) for layout in order]
    kinds = [False] if array.dtype.kind == "f" else [True, False]
    return [Reading(layout, whole) for layout in layouts for whole in kinds]


def fitted(probe: Probe, model: "Model", scale: Normalization | None = None) -> Probe:
    """The probe as this network takes it; raises PosthocError that says what it takes."""
    failure: PosthocError | None = None
    whole: Probe | None = None
    probe = _with_decoder_inputs(probe, model)
    for given, remarks in named(probe, model):
        alone = len(given.inputs) == 1
        ways = [readings(array, scale if alone or is_picture(array) else None) for array in given.inputs.values()]
        for chosen in itertools.islice(itertools.product(*ways), MOST_READINGS):
            by_name = dict(zip(given.inputs, chosen, strict=True))
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of a try; what is settled on warns when it runs
                    anatomy = _traced(model, replace(given, prepare=partial(_read, by_name)), by_name)
            except PosthocError as error:
                failure = failure or error
                continue
            read = replace(given, prepare=partial(_read, by_name), anatomy=anatomy)
            fed = _told(read, by_name, remarks, scale)
            if all(reading.whole for reading in chosen) and not _looks_up(anatomy):
                whole = whole or fed  # runs where nothing is computed, but may multiply whole numbers by weights
                continue
            return fed
    if whole:
        return whole
    assert failure is not None
    raise failure


def _looks_up(anatomy: "Anatomy") -> bool:
    """Whether the first layer takes whole numbers."""
    return anatomy.first is None or "Embedding" in type(anatomy.first.module).__name__


def _read(by_name: Mapping[str, Reading], batch: Batch) -> Batch:
    return {name: by_name[name].of(tensor) for name, tensor in batch.items()}


def _traced(model: "Model", probe: Probe, by_name: Mapping[str, Reading]) -> "Anatomy":
    """What a pass shows, the second one with longer sequences and larger maps, by which channels are told."""
    from posthoc.replay.probes.fitting import traced

    anatomy = traced(model, probe)

    def example(size: int, grown: bool) -> Batch:
        import torch

        batch = probe.traced(size)
        return {
            name: torch.cat([x, x], axis) if grown and (axis := _growing(x, anatomy.first)) else x
            for name, x in batch.items()
        }

    return traced(model, replace(probe, example=example))


def _growing(x: "Tensor", first: "Entered | None") -> int:
    """The axis along which an input may be longer; 0 where none. first: the layer that it comes to first."""
    from torch import nn

    if x.ndim == 2:
        return 0 if x.is_floating_point() else 1
    if x.ndim == 3:
        if first is None or not first.shape or not isinstance(first.module, (nn.Conv1d, nn.ConvTranspose1d)):
            return 1
        return 1 if x.shape[1] != first.shape[1] == x.shape[2] else 2  # turned round on its way there
    return x.ndim - 1 if x.ndim > 3 else 0


def named(probe: Probe, model: "Model") -> Iterator[tuple[Probe, list[str]]]:
    """With the inputs under the names of the network's arguments, by their own names where these match, else by place, or
    all in one dictionary; and what was done, in words. The likeliest first.
    """
    inputs = dict(probe.inputs)
    if len(inputs) < 2:
        yield probe, []
        return
    from posthoc.replay.forward import arguments_of, takes_dictionary

    arguments = arguments_of(model.module)
    plain = _by_arguments(inputs, arguments)
    if plain:
        yield replace(probe, inputs=plain[0]), plain[1]
    if takes_dictionary(arguments):
        yield probe, [f"{arguments.names[0]} is one dictionary of {', '.join(inputs)}"]
    elif not plain:
        raise PosthocError(
            f"{model.name} takes {', '.join(arguments.names) or 'nothing'}; the probe {probe.name} holds "
            f"{', '.join(inputs)}: name the arrays as the arguments of its forward pass."
        )


def _by_arguments(inputs: Mapping[str, Array], arguments: "Arguments") -> tuple[Mapping[str, Array], list[str]] | None:
    """One input for each argument, and what was done, in words; None where they do not go together."""
    taken, needed, _, _, any_name = arguments
    if set(needed) <= inputs.keys() and (any_name or inputs.keys() <= set(taken)):
        return inputs, []
    matching = [name for name in inputs if name in taken]
    if needed and set(needed) <= set(matching):
        left = [name for name in inputs if name not in matching]
        return {name: inputs[name] for name in matching}, [f"without {', '.join(left)}"]
    if len(needed) == 1 and (main := next((name for name in INPUTS if name in inputs), None)):
        left = [name for name in inputs if name != main]
        return {main: inputs[main]}, [f"without {', '.join(left)}"]
    if len(needed) == len(inputs) or (len(needed) < len(inputs) <= len(taken)):
        names = dict(zip(taken, inputs, strict=False))
        words = [f"{', '.join(f'{old} as {new}' for new, old in names.items())}, by their order"]
        return {new: inputs[old] for new, old in names.items()}, words
    return None


def with_target(
    inputs: Mapping[str, Any], target: str | None, targets: Any, module: "Module"
) -> tuple[Mapping[str, Any], list[tuple[str, str]]]:
    """The inputs, and the targets among them where the forward pass needs an argument of their name beside the inputs; and
    notes: that it is so, or that the forward pass only takes such an argument, which it is not given.

    Networks of Transformers take labels only for a loss, which is not asked of them, and for what their decoder reads, see
    `_with_decoder_inputs`.
    """
    from posthoc.replay.forward import arguments_of

    arguments = arguments_of(module)
    if target not in arguments.names:
        return inputs, []
    others = [name for name in arguments.needed if name != target]
    by_name = dict(zip(others, inputs.values(), strict=True)) if len(others) == len(inputs) == 1 else inputs
    if target not in arguments.needed:
        if any(kind.__module__.partition(".")[0] == "transformers" for kind in type(module).__mro__):
            return inputs, []
        every = ", ".join(f'"{name}": ...' for name in (*by_name, target))
        told = f"is not given; a function that returns posthoc.Probe({{{every}}}) gives it"
        return inputs, [("targets", f"{target}, which the network can do without and {told}")]
    if not others or not set(others) <= by_name.keys():
        return inputs, []
    return {**by_name, target: targets}, [("targets", f"{target}, which the network needs and is given, too")]


def _with_decoder_inputs(probe: Probe, model: "Model") -> Probe:
    """With what the decoder of a network of Transformers reads, where the probe has rows of tokens as targets and nothing
    for it: the targets as the network itself moves them. Without, many give it what the encoder reads.
    """
    from posthoc.replay.forward import arguments_of, error_line

    shift = getattr(model.module, "prepare_decoder_input_ids_from_labels", None)
    targets, inputs = probe.targets, dict(probe.inputs)
    if shift is None or inputs.keys() & DECODER_INPUTS or targets is None or targets.ndim != 2 or targets.dtype != int:
        return probe
    import torch

    try:
        made = shift(torch.from_numpy(np.where(targets < 0, NO_TOKEN, targets))).numpy()
    except Exception as error:  # such as for a config without the token that a row begins with
        raise PosthocError(
            f"{model.name} cannot make decoder_input_ids of the targets ({error_line(error)}); give them in the probe."
        ) from error
    axes = dict(probe.axes)
    if len(inputs) == 1 and (old := next(iter(inputs))) not in (names := arguments_of(model.module).names):
        inputs = {names[0]: inputs[old]}
        axes = {names[0]: axes[old]} if old in axes else {}
    words = f"{DECODER_INPUTS[0]}, the targets as {model.name} moves them by one place; what it says is scored at their own places"
    return replace(
        probe, inputs={**inputs, DECODER_INPUTS[0]: made}, axes=axes, notes=[*probe.notes, ("decoder", words)]
    )


def _told(probe: Probe, by_name: Mapping[str, Reading], remarks: Sequence[str], scale: Normalization | None) -> Probe:
    """With what was done in its notes, its words and its preparation."""
    done = {name: reading.words(probe.inputs[name]) for name, reading in by_name.items()}
    changed = [f"{name} {words}" if len(done) > 1 else words for name, words in done.items() if words]
    words = "; ".join([*remarks, *changed]) or "as they are"
    scaled = any(reading.normalization for reading in by_name.values())
    preparation: dict[str, Any] = {"inputs": done}
    if scaled and scale:
        preparation["normalization"] = scale._asdict()
        words += f", mean {scale.mean}, std {scale.std}"
    notes = [
        ("probe", f"{probe.name}, {len(probe)} {probe.samples} ({probe.shapes}), {targets_in_words(probe)}"),
        ("inputs", words),
    ]
    if len(by_name) == 1:
        (name, reading), *_ = by_name.items()
        if is_picture(array := probe.inputs[name]) or _is_unit_picture(array):
            probe = replace(
                probe, alternatives=partial(_alternatives, name, reading, 255 if array.dtype == np.uint8 else 1)
            )
    large = max(array[0].size for array in probe.inputs.values()) > 3 * 64 * 64
    return replace(
        probe,
        preparation={**probe.preparation, **preparation},
        words=words,
        notes=[*notes, *probe.notes],
        batch_size=32 if large else probe.batch_size,
        few=4 if large else probe.few,
    )


def _alternatives(name: str, reading: Reading, white: float, fails: bool) -> Sequence[tuple[str, Prepare]]:
    """Usual ways to scale images."""
    others = {words: scale for words, scale in SCALES.items() if scale != (reading.normalization or SCALES["none"])}
    return [
        (f"--normalize {words}", partial(_read, {name: replace(reading, normalization=scale, white=white)}))
        for words, scale in others.items()
    ]


def load(asked: Asked, model: "Model") -> Probe:
    """What a file of arrays holds."""
    return of_samples(read_samples(Path(asked.place), asked.kind), asked, model)


def of_samples(samples: Samples, asked: Asked, model: "Model") -> Probe:
    """The first samples, as images where they are such: 8-bit, the only input, and without masks."""
    inputs, told = with_target(samples.inputs, samples.target, samples.targets, model.module)
    samples = replace(samples, inputs=inputs)
    count = len(first_rows(len(next(iter(samples.inputs.values()))), asked.samples, asked.spec, "samples"))
    pictures = all(is_picture(array) for array in samples.inputs.values())
    masks = samples.targets is not None and samples.targets.ndim > 2
    if pictures and len(samples.inputs) == 1 and not masks:
        made = prepared(images_of(samples).take(np.arange(count)), asked, model)
        return replace(made, notes=[*made.notes, *told])
    scale = None
    if any(is_picture(array) for array in samples.inputs.values()):
        scale = normalization(asked)
    elif asked.options.get("normalize") not in (None, "none"):
        kinds = ", ".join(f"{name} {array.dtype}" for name, array in samples.inputs.items())
        if len(samples.inputs) > 1 or not all(map(_is_unit_picture, samples.inputs.values())):
            raise UsageError(
                f"--normalize is for 8-bit images, or float images from 0 to 1 as the only input; {samples.name} holds "
                f"{kinds}, which are fed as they are: save them as the network takes them."
            )
        scale = normalization(asked)
    if asked.options.get("image_size"):
        raise UsageError(f"--image-size is for 8-bit images with one label each; {samples.name} is fed as it is.")
    probe = Probe(
        {name: array[:count] for name, array in samples.inputs.items()},
        None if samples.targets is None else samples.targets[:count],
        name=samples.name,
        classes=samples.classes,
        index=None if samples.index is None else samples.index[:count].astype(np.int64),
        samples="images" if pictures else "samples",
        notes=[*told, *([("left aside", ", ".join(samples.aside))] if samples.aside else [])],
    )
    return fitted(probe, model, scale)


def is_picture(array: Array) -> bool:
    """Whether it holds 8-bit images, in colour or grey."""
    return array.dtype == np.uint8 and _has_colours(array)


def _is_unit_picture(array: Array) -> bool:
    """Whether it holds images of real numbers from 0 to 1, as torchvision's `ToTensor` gives them."""
    return array.dtype.kind == "f" and _has_colours(array) and bool(array.min() >= 0 and array.max() <= 1)


def _has_colours(array: Array) -> bool:
    return array.ndim == 3 or (array.ndim == 4 and (array.shape[1] in (1, 3) or array.shape[3] in (1, 3)))


def check(asked: Asked) -> None:
    """Raise PosthocError where the file is not there, UsageError for a normalisation that is none."""
    path = Path(asked.place)
    if not asked.place:
        raise UsageError(f"--probe {asked.spec}: give {asked.kind}:FILE.")
    if not path.exists():
        raise PosthocError(f"No such file: {path}.")
    if not path.is_file():
        raise PosthocError(f"{path} is no file; give an .{asked.kind} file of arrays.")
    if asked.options.get("normalize"):
        Normalization.parse(asked.options["normalize"])


KINDS = {name: Kind(load, check, ("image_size", "normalize")) for name in ("npz", "npy")}


def targets_in_words(probe: Probe) -> str:
    """What is right, in words.

    >>> targets_in_words(Probe([1.0, 2.0], targets=[0, 4])), targets_in_words(Probe([1.0, 2.0]))
    ('labels of 5 classes', 'no targets')
    """
    if probe.targets is None:
        return "no targets"
    if probe.labels is not None:
        return f"labels of {counted(probe.truth(()).classes, 'class')}"
    binary = is_binary(probe.targets)
    if probe.targets.dtype.kind == "f" or probe.targets.ndim == 1 or (binary and probe.targets.ndim == 2):
        sides = " x ".join(map(str, probe.targets.shape[1:])) or "one number"
        return f"targets of {sides}, each 0 or 1" if binary else f"targets of {sides}"
    return f"masks of {counted(probe.truth(()).classes, 'class')}"
