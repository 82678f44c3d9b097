"""Which hook points are recorded: the published ones, those of a part of a transformer, or those whose names are given.

The parts of a network are seen from the names and classes of its modules and the shapes of what they give.
"""

import fnmatch
import re
from collections.abc import Sequence

from posthoc.errors import PosthocError, UsageError
from posthoc.replay.architectures import architecture_of
from posthoc.replay.hooks import HookPoint
from posthoc.shown import counted

ATTENTION = re.compile(r"(Attention|Attn|MSA)\d?$")
"""How the names of classes end that are attention, in torch, torchvision, timm, transformers, diffusers and elsewhere."""
FEED_FORWARD = re.compile(
    r"(MLP|Mlp|MLPBlock|MlpBlock|FeedForward|FeedForwardNetwork|FFN|LayerFF|Dense(Gated)?ActDense|MoE|MoeBlock|MoeMLP)$"
)
"""The same of feed-forward layers."""
NORM = re.compile(r"Norm")
SCALING = re.compile(r"Norm|PReLU$")
BLOCK = re.compile(r"(Layer|Block)$")
LINEAR = ("Linear", "Conv1D", "NonDynamicallyQuantizableLinear")
PARTS = ("residual", "attention", "mlp")
"""What of a transformer can be asked for by these words."""
WORDS = ("default", "all", *PARTS)
"""What layers can be asked for by, beside their names."""


def choose(points: Sequence[HookPoint], layers: Sequence[str], model_name: str) -> tuple[list[HookPoint], str]:
    """The hook points asked for, in the order of the network, and how they were chosen, in words.

    `default`: the published layers where the model is of a published family, else four evenly spaced blocks, or two of
    each part of a network that has several;
    `residual`: the output of every block; `attention`, `mlp`: of every attention or feed-forward module;
    `all`: every distinct feature map or sequence (vectors where there is none of these); otherwise globs over the names.
    """
    maps = [point for point in points if not point.is_vector] or list(points)
    if not maps:
        raise PosthocError(
            f"{model_name} has no module with an output for each image, so nothing to record; make its layers modules."
        )
    chosen: set[str] = set()
    words = []
    for layer in layers:
        if layer == "all":
            selected, reason = [point for point in maps if point.same_as is None], "all"
        elif layer == "default":
            selected, reason = _default(maps, model_name)
        elif layer in PARTS:
            selected, reason = _part(maps, layer, model_name)
        else:
            selected = [point for point in points if fnmatch.fnmatchcase(point.name, layer)]
            reason = "asked for"
            if not selected:
                raise UsageError(f"--layers {layer}: no such hook point; `posthoc inspect --layers` lists them.")
        chosen |= {point.name for point in selected}
        words.append(reason)
    return [point for point in points if point.name in chosen], "; ".join(dict.fromkeys(words))


def is_named(layer: str, asked: Sequence[str]) -> bool:
    """Whether a layer is asked for by its own name, rather than for what it is."""
    return any(fnmatch.fnmatchcase(layer, name) for name in asked if name not in WORDS)


def _default(maps: Sequence[HookPoint], model_name: str) -> tuple[list[HookPoint], str]:
    known = architecture_of(model_name)
    names = known.layers if known else ()
    published = [point for point in maps if point.name in names]
    if published and len(published) == len(names):
        return published, "as published"
    blocks = residual_points(maps)
    if blocks and (
        attention_points(maps) or len(blocks[0].shape) == 2
    ):  # what comes after them, as a last normalisation, is another thing
        return _evenly_spaced(blocks), f"evenly spaced of {_counted(blocks)}, whose output is the residual stream"
    sides = _sides(maps)
    if "" in sides:
        return _evenly_spaced(sides[""]), "evenly spaced blocks"
    stages = [point for side in sides.values() for point in _evenly_spaced(side, 2)]
    return stages, f"from the middle and the end of each part ({', '.join(sides)})"


def _part(maps: Sequence[HookPoint], part: str, model_name: str) -> tuple[list[HookPoint], str]:
    if part == "residual":
        matching = residual_points(maps)
        reason = f"residual stream: the output of {_counted(matching)}" if matching else ""
    elif part == "attention":
        matching = attention_points(maps)
        reason = f"attention: the output of {counted(len(matching), 'module')} ({_kinds(matching)})"
    else:
        matching = feed_forward_points(maps)
        reason = f"feed-forward: the output of {counted(len(matching), 'module')} ({_kinds(matching)})"
    if not matching:
        what = {"residual": "list of equal blocks", "attention": "attention module", "mlp": "feed-forward module"}[part]
        raise UsageError(
            f"--layers {part}: {model_name} has no {what} that gives a sequence or map for each sample; give default, all or globs."
        )
    return matching, reason


def parts_of(points: Sequence[HookPoint]) -> dict[str, str]:
    """Of the hook points that are a part of the network, by name which: see `PARTS`."""
    finders = {"residual": residual_points, "attention": attention_points, "mlp": feed_forward_points}
    return {point.name: part for part in PARTS for point in finders[part](points)}


def residual_points(points: Sequence[HookPoint]) -> list[HookPoint]:
    """The blocks of the network: elements of a list of equal ones, with layers in them.

    Of lists within lists (stages of blocks) the inner ones count, but not those within a block, such as the experts
    beside its attention.
    """
    lists = _lists(points)
    inside = {point.name for elements in lists.values() for point in elements}
    blocks: dict[str, None] = {}
    for elements in lists.values():
        for point in elements:
            if any(parent in blocks for parent in _parents(point.name)):
                continue
            within = [other for other in points if _is_within(other.name, point.name)]
            stages = any(other.name in inside for other in within)
            attends = any(
                ATTENTION.search(other.kind)
                and not any(parent in inside for parent in _parents(other.name, point.name))
                for other in within
            )
            if attends or not stages:
                blocks[point.name] = None
    return [point for point in points if point.name in blocks]


def attention_points(points: Sequence[HookPoint]) -> list[HookPoint]:
    """Attention without a normalisation or what is added to it: of modules within each other the outermost such."""
    return _of_kind(points, ATTENTION)


def feed_forward_points(points: Sequence[HookPoint]) -> list[HookPoint]:
    """Feed-forward modules of the blocks; of a block without one the last linear layer that is as wide as the block."""
    blocks = residual_points(points)
    named = _of_kind(points, FEED_FORWARD)
    if not blocks:
        return named
    layers = []
    for block in blocks:
        within = [point for point in points if _is_within(point.name, block.name)]
        modules = [point for point in named if point in within]
        if not modules and not any(ATTENTION.search(point.kind) for point in within):
            continue
        layers += (
            modules
            or [
                point
                for point in within
                if point.kind in LINEAR and point.shape == block.shape and not _is_of_attention(point.name, within)
            ][-1:]
        )
    names = {point.name for point in layers}
    return [point for point in points if point.name in names]


def _of_kind(points: Sequence[HookPoint], kind: re.Pattern[str]) -> list[HookPoint]:
    matching = {point.name: point for point in points if kind.search(point.kind)}
    normed = {parent for point in points if NORM.search(point.kind) for parent in _parents(point.name)}
    innermost = {name for name in matching if not any(name in _parents(other) for other in matching)}
    usable = [name for name in matching if name not in normed or name in innermost]
    return [matching[name] for name in usable if not any(parent in usable for parent in _parents(name))]


def _is_of_attention(name: str, points: Sequence[HookPoint]) -> bool:
    return any(ATTENTION.search(point.kind) and _is_within(name, point.name) for point in points)


def _lists(points: Sequence[HookPoint]) -> dict[str, list[HookPoint]]:
    """The lists of equal blocks by the name of the list, outer ones first: numbered modules of one class, or all of which
    are called a layer or block, each with several layers in it."""
    children: dict[str, int] = {}
    for point in points:
        if point.parameters:
            for parent in _parents(point.name):
                children[parent] = children.get(parent, 0) + 1
    lists: dict[str, list[HookPoint]] = {}
    for point in points:
        home, _, last = point.name.rpartition(".")
        if last[-1:].isdigit():
            lists.setdefault(home, []).append(point)
    equal = {
        home: elements
        for home, elements in lists.items()
        if (len({point.kind for point in elements}) == 1 or all(BLOCK.search(point.kind) for point in elements))
        and all(children.get(point.name, 0) > 1 and not ATTENTION.search(point.kind) for point in elements)
    }
    return dict(sorted(equal.items(), key=lambda row: row[0].count(".")))


def _counted(blocks: Sequence[HookPoint]) -> str:
    """How many, and in which lists.

    >>> block = HookPoint("encoder.layers.0", "Block", (4, 8), 0, 2, 1, 1, None)
    >>> _counted([block])
    '1 block (encoder.layers)'
    """
    homes = dict.fromkeys(point.name.rpartition(".")[0] for point in blocks)
    shown = ", ".join(list(homes)[:3]) + (", ..." if len(homes) > 3 else "")
    return f"{counted(len(blocks), 'block')} ({shown or 'of the network'})"


def _kinds(points: Sequence[HookPoint]) -> str:
    return ", ".join(dict.fromkeys(point.kind for point in points))


def _evenly_spaced(blocks: Sequence[HookPoint], count: int = 4) -> list[HookPoint]:
    """The last of each quarter, or of as many pieces."""
    return [blocks[k] for k in sorted({-(-len(blocks) * piece // count) - 1 for piece in range(1, count + 1)})]


def _sides(points: Sequence[HookPoint]) -> dict[str, list[HookPoint]]:
    """The blocks of each part of the network, by its name; all of them under no name where it has no such parts.

    Blocks are the outermost modules with parameters, but for those that only shift and scale each channel: recorded beside
    the layer before them they would say the same twice. Where these are fewer than four, or one behind however many tables of
    embeddings, the one with most modules in it is opened, and with it those that are parts of the network as it is: an
    encoder and a decoder, two towers.
    """
    trunk = [point for point in points if point.parameters] or list(points)
    while True:
        names = {point.name for point in trunk}
        blocks = [point for point in trunk if not any(parent in names for parent in _parents(point.name))]
        inside = {block.name: [point for point in trunk if block.name in _parents(point.name)] for block in blocks}
        widest = max(inside.values(), key=len)
        if (len(blocks) >= 4 and not _one_behind_tables(blocks)) or len(widest) < 2:
            return {"": [block for block in blocks if not _only_scales(block)] or blocks}
        least = max(block.parameters for block in blocks) / 100
        parts = [block.name for block in blocks if block.parameters >= least and _layers_in(inside[block.name]) > 1]
        if len(parts) > 1:
            return {name: [block for side in _sides(inside[name]).values() for block in side] for name in parts}
        trunk = widest


def _one_behind_tables(blocks: Sequence[HookPoint]) -> bool:
    """Whether all but one are tables of embeddings, as of the columns of a table, or normalisations beside these."""
    layers = [block for block in blocks if not block.kind.startswith("Embedding")]
    return len(layers) < len(blocks) and sum(not _only_scales(block) for block in layers) == 1


def _only_scales(point: HookPoint) -> bool:
    """Whether it is a normalisation, or the like, with a scale and a shift for each channel and no more."""
    return bool(SCALING.search(point.kind)) and point.parameters <= 2 * point.channels


def _layers_in(points: Sequence[HookPoint]) -> int:
    """How many innermost modules do more than shift and scale each channel."""
    outer = {parent for point in points for parent in _parents(point.name)}
    return sum(point.parameters > 2 * point.channels for point in points if point.name not in outer)


def _is_within(name: str, outer: str) -> bool:
    return name.startswith(f"{outer}.")


def _parents(name: str, below: str = "") -> list[str]:
    """The names of the modules around a module, innermost last; `below` one of them only those within it.

    >>> _parents("features.1.conv"), _parents("features.1.conv", "features")
    (['features', 'features.1'], ['features.1'])
    """
    parts = name.split(".")
    return [".".join(parts[:k]) for k in range(1 + (below.count(".") + 1 if below else 0), len(parts))]
