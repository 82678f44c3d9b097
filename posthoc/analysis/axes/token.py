"""The token axis: units are channels within a document, time is its tokens; and the series of surprisal beside them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from posthoc.analysis.axes.axis import Axis, OverTime, Source
from posthoc.analysis.protocol import Protocol
from posthoc.analysis.scales import START

if TYPE_CHECKING:
    from posthoc.store import Activations

SIGNAL = "token"
"""The signal that keeps tokens."""
SURPRISAL = "surprisal"
"""The name of the series of -log p of each token."""
LOSS = "token_loss"
UNTRAINED = "untrained"
Values = NDArray[np.floating]


@dataclass(frozen=True)
class TokenMaterial:
    """Signals x [D, U, T] of the channels over the tokens of each document.

    layers: [U], the layer of every unit; sizes: how many channels each layer has, of which those are some.
    """

    axis: ClassVar[str] = "token"
    x: Values
    layers: NDArray[np.int64]
    sizes: tuple[int, ...]

    def series(self) -> Values:
        """The channels over the tokens, by document."""
        return self.x

    def redrawn(self, over_time: OverTime, random: np.random.Generator, live: NDArray[np.bool_]) -> Values:
        """The series of each document redrawn over its tokens."""
        return np.stack([np.asarray(over_time(document, random)) for document in self.x])

    def noise(self, random: np.random.Generator, live: NDArray[np.bool_]) -> Values:
        """Series of noise, independent in every document, channel and token; none where a unit [D, U] is not live."""
        drawn = random.standard_normal(self.x.shape, dtype=np.float32)
        drawn[~live] = np.nan
        return drawn


def noise_less_mean(material: TokenMaterial, random: np.random.Generator, live: NDArray[np.bool_]) -> Values:
    """Noise less its mean over all channels of its layer at every token, as LayerNorm leaves it.

    Of n channels the covariance is then 1 - 1 / n, and -1 / n between any two: so is that of C of them, drawn as noise
    less 1 - sqrt(1 - C / n) of its mean over these C.
    """
    drawn = random.standard_normal(material.x.shape, dtype=np.float32)
    for layer, size in enumerate(material.sizes):
        members = material.layers == layer
        share = int(members.sum()) / size
        drawn[:, members] -= np.float32(1 - np.sqrt(1 - share)) * drawn[:, members].mean(axis=1, keepdims=True)
    drawn[~live] = np.nan
    return drawn


def by_document(x: Values) -> Values:
    """Signals [U, D, T] as series [D, U, T - START]."""
    return np.ascontiguousarray(np.swapaxes(x[:, :, START:], 0, 1))


def _length(activations: "Activations", protocol: Protocol) -> int:
    shape = activations.blocks[f"signals/{protocol.signal}/{activations.layers[0]}"].shape
    return max(0, shape[3] - START) if len(shape) == 4 else 0


def _sources(activations: "Activations", protocol: Protocol) -> Mapping[str, Source]:
    """The channels and, where the file has it, the surprisal; of both what controls give."""
    sources = {"": _of_channels(activations, protocol.signal)}
    if LOSS in activations.behaviours:
        sources[SURPRISAL] = _of_surprisal(activations)
    return sources


def _of_channels(activations: "Activations", signal: str) -> Source:
    numbers = [len(rows) for rows in activations.channels.values()]
    layers = np.repeat(np.arange(len(numbers)), numbers)
    totals = [layer.size for layer in activations.recording.identity.layers]
    sizes = tuple(max(total or 0, number) for total, number in zip(totals, numbers, strict=True))

    def material(e: int) -> TokenMaterial:
        return TokenMaterial(by_document(activations.read(signal, e)), layers, sizes)

    def given(control: str, e: int) -> Iterator[Values]:
        yield by_document(activations.read_null(control, signal, e))

    def untrained(e: int) -> Iterator[Values]:
        for k in range(len(activations.untrained_seeds)):
            yield by_document(activations.read_untrained(signal, k))

    controls = {control: partial(given, control) for control in activations.nulls}
    if len(activations.untrained_seeds):
        return Source(material, controls | {UNTRAINED: untrained}, frozenset({UNTRAINED}))
    return Source(material, controls)


def _of_surprisal(activations: "Activations") -> Source:
    def series(loss: Values) -> Values:
        return np.ascontiguousarray(loss[:, None, START:])

    def given(control: str, e: int) -> Iterator[Values]:
        yield series(activations.behaviour_of_null(control, LOSS, e))

    has = [control for control in activations.nulls if f"null/{control}/behaviour/{LOSS}" in activations.blocks]
    return Source(
        lambda e: TokenMaterial(series(activations.behaviour(LOSS, e)), np.zeros(1, np.int64), (1,)),
        {control: partial(given, control) for control in has},
    )


_UNLISTED = {"headline": False, "listed": False}
TOKEN = Axis(
    key="token",
    points="tokens",
    units="channels",
    remedy=f"extract with a longer --context, of which the first {START} tokens are left out",
    decides="time",
    exchangeable=False,
    layered=True,
    length=_length,
    sources=_sources,
    intervals="over documents, by bootstrap",
    overrides={
        "hurst": {"headline": True}, "integration": _UNLISTED, "stability_index": _UNLISTED, "volatility": _UNLISTED,
        "volatility_causal": _UNLISTED, "accuracy": _UNLISTED, "synchrony": _UNLISTED,
    },
    not_alone=("metastability", "synchrony"),
)  # fmt: skip
