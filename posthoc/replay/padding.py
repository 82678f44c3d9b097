"""Padding: which places of a probe's samples hold nothing, and what leaves these out.

Samples of different lengths are brought to one by places that hold nothing; a mean over these would tell the length.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from posthoc.errors import PosthocError
from posthoc.shown import counted, listed

if TYPE_CHECKING:
    from posthoc.replay.hooks import HookPoint
    from posthoc.replay.probes.probe import Probe
    from posthoc.replay.scores import Score

NAMES = {
    "attention_mask": True, "decoder_attention_mask": True,
    "padding_mask": False, "key_padding_mask": False, "src_padding_mask": False, "tgt_padding_mask": False,
    "src_key_padding_mask": False, "tgt_key_padding_mask": False,
}  # fmt: skip
"""What inputs are called that say which places are padding: whether their ones are all others, as Hugging Face has it, or
the padding, as torch has it."""
BESIDE = (
    "token_type_ids", "position_ids", "decoder_position_ids", "cache_position", "global_attention_mask",
    "special_tokens_mask", "pixel_mask", "head_mask",
)  # fmt: skip
"""What else inputs are called that say something of another's places."""
OF_DECODERS = ("decoder_", "tgt", "trg")
"""How inputs begin that the decoder of two networks is given."""
NAMED = 3


@dataclass(frozen=True)
class Padding:
    """Which places are padding, and of what they are left out.

    masks: by name, [N, T], false where a place is padding; places: for each layer whose output has such places, the name
    of their mask and the axis that they are on, the batch's being 0; others: the layers whose outputs have other places;
    inputs, tokens: the mask of what the network reads, as inputs of any kind and as rows of tokens, if it has one.
    """

    masks: Mapping[str, NDArray[np.bool_]]
    places: Mapping[str, tuple[str, int]]
    others: tuple[str, ...]
    inputs: str | None
    tokens: str | None

    def of(self, score: "Score | None") -> str | None:
        """The mask by which what is scored is compared with the inputs, if it is, and they have one."""
        if score is None or not score.of_inputs:
            return None
        return self.tokens if score.of_tokens else self.inputs

    def notes(self, scored: bool) -> list[tuple[str, str]]:
        """What is left out of what, as label and text; scored: whether the loss is without padding."""
        if not self.masks:
            return []
        share = 1 - np.mean(np.concatenate([mask.ravel() for mask in self.masks.values()]))
        out = ["the means and variances"] * bool(self.places) + ["the loss"] * scored
        words = (
            f"left out of {' and of '.join(out)}" if out else "in all that is recorded, for no layer has these places"
        )
        rest = f"; it is in those of {listed(self.others, NAMED)}, for which places it is in is not known"
        rest = rest if out and self.others else ""
        return [("padding", f"{share:.0%} of the places, by {', '.join(self.masks)}: {words}{rest}")]


def masks_in(inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.bool_]]:
    """Of the inputs that say which places are padding, by their names, which are not; nothing where none are padding.

    >>> masks_in({"key_padding_mask": np.array([[False, True]]), "attention_mask": np.ones((1, 2))})
    {'key_padding_mask': array([[ True, False]])}
    """
    masks = {name: (array != 0) == NAMES[name] for name, array in inputs.items() if name in NAMES and is_mask(array)}
    return {name: mask for name, mask in masks.items() if not mask.all()}


def is_mask(array: NDArray[Any]) -> bool:
    """Whether it says yes or no of each place, [N, T]."""
    return array.ndim == 2 and bool(np.isin(array, (0, 1)).all())


def what_is_read(inputs: Mapping[str, Any], tokens: bool = False) -> str:
    """Of inputs, arrays or tensors, the one that the network reads and is judged by: the first that does not say something
    of another's places, in whatever order they are given. tokens: the first of these that is rows of whole numbers, if any is.

    >>> inputs = {"attention_mask": np.ones((2, 5), int), "image": np.ones((2, 9)), "input_ids": np.ones((2, 5), int)}
    >>> what_is_read(inputs), what_is_read(inputs, tokens=True)
    ('image', 'input_ids')
    """
    names = [name for name in inputs if not is_beside(name, inputs)] or list(inputs)
    rows = [name for name in names if tokens and _is_rows(inputs[name])]
    return (rows or names)[0]


def is_beside(name: str, inputs: Mapping[str, Any]) -> bool:
    """Whether an input says something of the places of another: by its name, or as a mask of rows of tokens."""
    if name in NAMES or name in BESIDE:
        return True
    others = (other for key, other in inputs.items() if not key.endswith("mask"))
    return name.endswith("mask") and any(_is_rows(other) and other.shape == inputs[name].shape for other in others)


def _is_rows(array: Any) -> bool:
    """Whether it is rows of whole numbers, as tokens are."""
    return array.ndim == 2 and "int" in str(array.dtype)


def with_places(inputs: Mapping[str, Any], mask: str, length: int) -> tuple[list[str], list[str]]:
    """Names of the inputs that have the places of a mask of so many, and of those that have others."""
    names = [name for name, array in inputs.items() if array.ndim > 1 and not is_beside(name, inputs)]
    two = any(map(is_of_decoder, (*inputs, mask)))
    sides = [name for name in names if not two or is_of_decoder(name) == is_of_decoder(mask)]
    own = [name for name in sides if inputs[name].shape[1] == length]
    own = own or [name for name in sides if length in inputs[name].shape[1:]]
    return own, [name for name in names if name not in own]


def padding_of(probe: "Probe", points: Sequence["HookPoint"], apart: Collection[str] = ()) -> Padding:
    """What of a probe's padding is left out; raises PosthocError for a sample that is nothing else. apart: layers that have
    as many places as a mask and not its own, see `of_other_places`."""
    for name, real in probe.masks.items():
        if len(empty := np.flatnonzero(~real.any(1))):
            ones = "ones are padding" if NAMES.get(name) is False else "zeros are padding"
            raise PosthocError(
                f"{probe.name}: {name}, in which {ones}, leaves nothing of {counted(len(empty), 'sample')} (the first is "
                f"{empty[0]}); leave them out, or give a posthoc.Probe with the places that count as its mask."
            )
    two = any(map(is_of_decoder, (*probe.inputs, *probe.masks)))
    places: dict[str, tuple[str, int]] = {}
    others: list[str] = []
    for point in points:
        first = next((axis for axis in range(1, len(point.shape) + 1) if axis != point.channel_axis), None)
        if first is None:
            continue
        beside = [side for axis, side in enumerate(point.shape, 1) if axis not in (first, point.channel_axis)]
        length, decodes = point.shape[first - 1], _decodes(point.name) if two else False
        mask = (
            _of_length(probe.masks, length, decodes, two) if length not in beside and point.name not in apart else None
        )
        if mask is None:
            others.append(point.name)
        else:
            places[point.name] = (mask, first)
    read = [what_is_read(probe.inputs, tokens) for tokens in (False, True)]
    inputs, tokens = (
        _of_length(probe.masks, probe.inputs[name].shape[1], is_of_decoder(name), two)
        if probe.inputs[name].ndim > 1
        else None
        for name in read
    )
    return Padding(probe.masks, places, tuple(others), inputs, tokens)


def _of_length(masks: Mapping[str, NDArray[np.bool_]], length: int, decodes: bool | None, two: bool) -> str | None:
    """The mask of so many places, if there is one alone; of two networks, that of the one which is meant."""
    of_it = {name: mask for name, mask in masks.items() if not two or is_of_decoder(name) == decodes}
    names = [name for name, mask in of_it.items() if mask.shape[1] == length]
    return names[0] if len(names) == 1 else None


def is_of_decoder(name: str) -> bool:
    """Whether an input is of the decoder of two networks."""
    return name.startswith(OF_DECODERS)


def _decodes(layer: str) -> bool | None:
    """Whether a layer is of a decoder, or of an encoder; None where its name does not say, as of keys of one in the other."""
    parts = layer.lower().split(".")
    sides = [part[:7] for part in parts if part.startswith(("encoder", "decoder"))]
    if not sides or any(part.startswith(("encoder_", "encdec", "cross")) for part in parts):
        return None
    return sides[0] == "decoder"


def require_targets(probe: "Probe", padding: Padding) -> None:
    """Raise PosthocError for rows of which no token follows another, so that none is scored."""
    if padding.tokens is None:
        return
    scored = followed(padding.masks[padding.tokens]).any(1)
    if len(short := np.flatnonzero(~scored)):
        raise PosthocError(
            f"{probe.name}: of {counted(len(short), 'sample')} (the first is {short[0]}) no token follows another, by "
            f"{padding.tokens}, so that there is none to predict; leave them out."
        )


def followed(mask: Any) -> Any:
    """Which places are real and follow a real one, [N, T], of an array or a tensor."""
    after = mask & False
    after[:, 1:] = mask[:, 1:] & mask[:, :-1]
    return after
