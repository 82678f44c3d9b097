"""The token axis: units are channels within a document, time is its tokens; and the series of surprisal beside them."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from posthoc.analysis.arrays import in_blocks
from posthoc.analysis.axes.axis import Axis, Factor, OverTime, Source, Subject
from posthoc.analysis.axes.image import image_series
from posthoc.analysis.protocol import Protocol
from posthoc.analysis.records import PURE_NOISE, Aside
from posthoc.analysis.responses import SHUFFLED, UNTRAINED, Change
from posthoc.analysis.scales import START
from posthoc.errors import PosthocError
from posthoc.streams import stream

if TYPE_CHECKING:
    from posthoc.store import Activations

SIGNAL = "token"
"""The signal that keeps tokens."""
SUMMED = "fluctuation"
"""That of which F(s) is made, and nothing else."""
SURPRISAL = "surprisal"
"""The name of the series of -log p of each token."""
LOSS = "token_loss"
WORDS = {
    "shuffle": SHUFFLED, "block": "blocks of {} tokens shuffled", "constant": "one token repeated", "untrained": UNTRAINED,
}  # fmt: skip
SMOOTHINGS = (5, 15)
"""Those that an audit tries."""
HURST_MARGIN = 0.025
"""Of an exponent; where integration follows it most steeply it changes by its own margin of 0.1."""
Values = NDArray[np.floating]


def words(control: str) -> str:
    """What a control is.

    >>> words("block:64")
    'blocks of 64 tokens shuffled'
    """
    name, _, number = control.partition(":")
    return WORDS.get(name, control).format(number)


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


def by_document(x: Values, start: int = START) -> Values:
    """Signals [U, D, T] as series [D, U, T - start]."""
    return np.ascontiguousarray(np.swapaxes(x[:, :, start:], 0, 1))


def _length(activations: "Activations", protocol: Protocol) -> int:
    if protocol.signal == SUMMED and activations.tokens is not None:
        return max(0, int(activations.tokens.shape[1]) - START)
    block = activations.blocks.get(f"signals/{protocol.signal}/{activations.layers[0]}")
    if block is None or len(block.shape) != 4:
        raise PosthocError(
            f"{activations.path}: no signal {protocol.signal} of the tokens of documents is there, which the token axis is "
            "over; give another axis, or extract documents with --signals token."
        )
    return max(0, int(block.shape[3]) - START)


def _sources(activations: "Activations", protocol: Protocol, start: int = START) -> Mapping[str, Source]:
    """The channels and, where the file has it, the surprisal; of both what controls give. start: tokens that are left out."""
    points = _length(activations, protocol) if protocol.signal == SUMMED else 0
    channels = partial(_of_channels, activations, protocol.signal, 0 if points else start, points)
    _, _, D, *length = activations.blocks[f"signals/{protocol.signal}/{activations.layers[0]}"].shape
    sources = {"": _in_parts(channels, D, len(activations.units) * math.prod(length))}
    if LOSS in activations.behaviours:
        sources[SURPRISAL] = _in_parts(partial(_of_surprisal, activations, start), D, math.prod(length))
    return sources


def _in_parts(of: Callable[[slice], Source], count: int, size: int) -> Source:
    """A source of so many documents, and the same of some at a time; size: how many values a document has."""
    return replace(of(slice(None)), parts=tuple(of(documents) for documents in in_blocks(count, size)))


def _of_channels(activations: "Activations", signal: str, start: int, points: int, documents: slice) -> Source:
    numbers = [len(rows) for rows in activations.channels.values()]
    layers = np.repeat(np.arange(len(numbers)), numbers)
    totals = [layer.size for layer in activations.recording.identity.layers]
    sizes = tuple(max(total or 0, number) for total, number in zip(totals, numbers, strict=True))

    def material(e: int) -> TokenMaterial:
        return TokenMaterial(by_document(activations.read(signal, e, samples=documents), start), layers, sizes)

    def given(control: str, e: int) -> Iterator[Values]:
        yield by_document(activations.read_null(control, signal, e, samples=documents), start)

    def untrained(e: int) -> Iterator[Values]:
        for k in range(len(activations.untrained_seeds)):
            yield by_document(activations.read_untrained(signal, k, samples=documents), start)

    controls = {control: partial(given, control) for control in activations.nulls}
    if len(activations.untrained_seeds):
        return Source(material, controls | {"untrained": untrained}, frozenset({"untrained"}), points=points)
    return Source(material, controls, points=points)


def _of_surprisal(activations: "Activations", start: int, documents: slice) -> Source:
    start = max(start, 1)  # of the first token nothing is said

    def series(loss: Values) -> Values:
        return np.ascontiguousarray(loss[:, None, start:])

    def given(control: str, e: int) -> Iterator[Values]:
        yield series(activations.behaviour_of_null(control, LOSS, e, documents))

    has = [control for control in activations.nulls if f"null/{control}/behaviour/{LOSS}" in activations.blocks]
    return Source(
        lambda e: TokenMaterial(series(activations.behaviour(LOSS, e, documents)), np.zeros(1, np.int64), (1,)),
        {control: partial(given, control) for control in has},
    )


def _factors(subject: Subject) -> list[Factor]:
    """The order of time, what other inputs and weights give, and what was chosen: documents, tokens, channels, precision."""
    material = subject.source.material(subject.row)
    assert isinstance(material, TokenMaterial)

    def drawn(name: str, changes: Change | None, null: str) -> Factor:
        return Factor(name, changes, lambda: [material], null)

    references = [] if subject.series else [drawn("", None, "phase-common"), drawn("", None, "white-LN")]
    return [
        Factor("", None, lambda: [material]),
        drawn("tokens in another order of time", Change.TIME, "time"),
        *_of_inputs(subject, material),
        *_of_documents(subject, material),
        *([] if subject.series else _of_channels_kept(subject, material)),
        *references,
        drawn("", None, PURE_NOISE),
    ]


def _of_inputs(subject: Subject, material: TokenMaterial) -> list[Factor]:
    """What the same network makes of other tokens, and networks with new weights of the text."""

    def given(control: str) -> Iterator[TokenMaterial]:
        yield from (replace(material, x=x) for x in subject.source.controls[control](subject.row))

    factors = [
        Factor(words(control), Change.TRAINING if control == "untrained" else Change.TEXT, partial(given, control))
        for control in subject.source.controls
    ]
    wanted = {"shuffle": Change.TEXT} if subject.series else {"shuffle": Change.TEXT, "untrained": Change.TRAINING}
    return factors + [
        Factor(words(control), changes, aside=Aside.NOT_REPLAYED)
        for control, changes in wanted.items() if control not in subject.source.controls
    ]  # fmt: skip


def _of_documents(subject: Subject, material: TokenMaterial) -> list[Factor]:
    """Fewer documents, and fewer of their tokens; tokens smoothed, and rounded."""
    x, (D, _, T) = material.x, material.x.shape

    def changed(name: str, changes: Change, x: Values) -> Factor:
        return Factor(name, changes, lambda: [replace(material, x=x)])

    def from_the_start() -> Iterator[TokenMaterial]:
        whole = _sources(subject.activations, subject.protocol, 0)[subject.series].material(subject.row)
        assert isinstance(whole, TokenMaterial)
        yield whole

    def smoothed(width: int) -> Iterator[TokenMaterial]:
        yield replace(material, x=np.stack([image_series(document, np.zeros(T), width) for document in x]))

    def rounded() -> Iterator[TokenMaterial]:
        yield replace(material, x=as_bfloat16(x))

    late = later(T)
    return [
        changed(f"the first {D // 2} documents", Change.DOCUMENTS, x[: D // 2]),
        changed(f"the first {T // 2} tokens of {T}", Change.CONTEXT, x[..., : T // 2]),
        Factor("no token left out at the start", Change.START, from_the_start),
        changed(f"{START + late} tokens left out at the start", Change.START, x[..., late:]),
        *(
            Factor(f"smoothing {width} instead of 1", Change.SMOOTHING, partial(smoothed, width))
            for width in SMOOTHINGS
        ),
        Factor("values rounded to bfloat16", Change.PRECISION, rounded),
    ]


def later(T: int) -> int:
    """How many of T tokens are left out beside those at the start: as many again, or a quarter, but at most half.

    >>> later(64), later(192), later(960)
    (32, 64, 240)
    """
    return min(max(START, T // 4), T // 2)


def _of_channels_kept(subject: Subject, material: TokenMaterial) -> list[Factor]:
    """Each layer by itself, and random halves of the channels of each layer, as if others had been recorded."""
    layers = material.layers

    def kept(units: NDArray[np.int64]) -> TokenMaterial:
        return replace(material, x=np.ascontiguousarray(material.x[:, units]), layers=layers[units])

    def of_layer(layer: int) -> Iterator[TokenMaterial]:
        yield kept(np.flatnonzero(layers == layer))

    def halves() -> Iterator[TokenMaterial]:
        for draw in range(subject.count):
            random = stream("audited channels", subject.seed, subject.row, draw)
            members = [random.permutation(np.flatnonzero(layers == layer)) for layer in range(int(layers[-1]) + 1)]
            yield kept(np.sort(np.concatenate([of[: max(1, len(of) // 2)] for of in members])))

    names = subject.activations.layers
    alone = [
        Factor(f"{name} alone instead of all layers", Change.LAYER, partial(of_layer, k))
        for k, name in enumerate(names)
    ]
    return [Factor("half of the channels", Change.CHANNELS, halves), *(alone if len(alone) > 1 else [])]


def as_bfloat16(x: Values) -> NDArray[np.float32]:
    """The nearest values that bfloat16 has, ties to even.

    >>> as_bfloat16(np.array([1.0, 1.003, 1.005])).tolist()
    [1.0, 1.0, 1.0078125]
    """
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return np.asarray(np.where(np.isfinite(x), (rounded & np.uint32(0xFFFF0000)).view(np.float32), x), np.float32)


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
        "hurst": {"headline": True, "margin": HURST_MARGIN}, "integration": _UNLISTED, "stability_index": _UNLISTED, "volatility": _UNLISTED,
        "volatility_causal": _UNLISTED, "accuracy": _UNLISTED, "loss": _UNLISTED, "synchrony": _UNLISTED,
    },
    not_alone=("metastability", "synchrony"),
    factors=_factors,
    varies="from document to document",
    unasked=(
        "integration", "integration_z", "metastability_z", "stability_index", "volatility", "stability_index_causal",
        "volatility_causal",
    ),
)  # fmt: skip
