"""What follows from an audit for the use of a measure's numbers, in sentences."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from posthoc.analysis.axes import Axis
from posthoc.analysis.measures import MEASURES
from posthoc.analysis.nulls import NULLS
from posthoc.analysis.records import PURE_NOISE
from posthoc.analysis.responses import SHUFFLED, SPLIT, UNTRAINED, Change, Control, Effect, Reaction, Response, signed
from posthoc.analysis.verdicts import least_p
from posthoc.shown import decimals, digits_apart

GAUSSIAN, NOISE = NULLS["gaussian"].words, NULLS[PURE_NOISE].short
REFERENCES = {
    GAUSSIAN: ("gaussian", GAUSSIAN),
    NULLS["phase-common"].words: ("phase-common", f"the same activations with {NULLS['phase-common'].words},"),
    NULLS["white-LN"].words: ("white-LN", f"{NULLS['white-LN'].words},"),
    NOISE: (PURE_NOISE, f"{NOISE}, which takes channels for independent,"),
}
"""Controls that change nothing, beside which values are put: their nulls, and what they are in a sentence."""
SETTINGS = (
    Change.SMOOTHING, Change.IMAGES, Change.CONTEXT, Change.START, Change.CHANNELS, Change.LAYER, Change.PRECISION,
    Change.PREPARATION, Change.SPACING,
)  # fmt: skip
"""What was chosen, and may differ between runs."""
UNDEFINED = {
    "hurst": "no channel has one",
    "integration": "no channel has an exponent",
    "metastability": "it needs two channels that vary",
    "synchrony": "it needs two channels that vary",
}
"""Why a measure of channels has no value; another says no reason."""
LEVEL = 0.05


def conclusions(
    controls: Sequence[Control], key: str, response: Response, effects: Mapping[str, Effect], axis: Axis
) -> list[str]:
    """Of a measure; effects: by the name of the control."""
    title, value = response.symbol, response.value
    if not np.isfinite(value):
        why = "no document has one" if axis.intervals else UNDEFINED.get(key, "it has no finite value there")
        return [f"{title} of the last checkpoint is undefined: {why}."]
    under = {control.name: control.measures[key] for control in controls}
    sentences = [_of_order(controls, key, response)] if np.isfinite(response.order_p) else []
    if SHUFFLED in effects:
        sentences.append(_of_text(controls, key, response, effects[SHUFFLED]))
    responds = response.which(Reaction.RESPONDS)
    if Change.CLASSES in responds:
        sentences.append(
            f"{title} goes from {decimals(value, 3)} to {decimals(under[SPLIT].mean, 3)} when each class is split in ten at random, which changes "
            f"nothing about the network or the images: values from data sets with different numbers of classes "
            f"cannot be compared."
        )
    if Change.PROBE in responds:
        sentences.append(
            f"{title} differs between the halves of the probe by {responds[Change.PROBE].effect:+.3g}: of another probe it would be "
            "another."
        )
    if settings := [what for what in SETTINGS if what in responds]:
        sentences.append(f"{title} depends on {_listed(settings)}: compare only runs in which these are equal.")
    if Change.LABELS in response.which(Reaction.INDIFFERENT):
        sentences.append(f"{title} {_small(response)} when the labels are permuted.")
    if UNTRAINED in effects:
        sentences += of_training(response, effects[UNTRAINED], under[UNTRAINED].count, axis.intervals)
    for name, (null, what) in REFERENCES.items():
        noise, only = under.get(name), NULLS[null].only
        if noise is not None and np.isfinite(noise.mean) and (not only or key in only):
            where = "lies within that range" if noise.low <= value <= noise.high else "lies outside that range"
            digits = digits_apart([noise.low, noise.high, value], 3)
            mean, low, high, own = (decimals(of, digits) for of in (noise.mean, noise.low, noise.high, value))
            sentences.append(f"{title} of {what} is {mean} ({low} to {high}); this run's {own} {where}.")
    return sentences


def _small(response: Response) -> str:
    """That it changes by less than its margin, or not at all, where it has none."""
    known = np.isfinite(response.margin)
    how = f" ({response.margin_from})" if response.margin_from else ""
    return f"changes by less than {response.margin:.3g}{how}" if known else "does not change"


def _listed(words: Sequence[str]) -> str:
    """Words with commas and an `and`.

    >>> _listed(["a"]), _listed(["a", "b"]), _listed(["a", "b", "c"])
    ('a', 'a and b', 'a, b and c')
    """
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _of_order(controls: Sequence[Control], key: str, response: Response) -> str:
    """Whether the measure differs from what the deciding null draws."""
    control = next(control for control in controls if control.changes in (Change.ORDER, Change.TIME))
    order, title = control.measures[key], response.symbol
    what = (
        "another order of the same images"
        if control.changes == Change.ORDER
        else "the same tokens in another order of time"
    )
    few = LEVEL < response.order_p <= least_p(order.count)
    how = "differs from" if response.order_p <= LEVEL else "cannot be distinguished from"
    function = (
        MEASURES[key].of_measure if key in MEASURES else None
    )  # whose values may agree where those that it is of do not
    of = f" of {MEASURES[function.of].symbol}" if function else ""
    value, mean, sd = map(decimals, (response.value, order.mean, order.sd))
    numbers = f"({value}, and {mean} with sd {sd}; p = {response.order_p:.2g}{of})"
    if few:
        return (
            f"Whether {title} differs from that of {what} cannot be told {numbers}: of {order.count} draws no p is below "
            f"{least_p(order.count):.2g}."
        )
    return f"{title} {how} that of {what} {numbers}."


def _of_text(controls: Sequence[Control], key: str, response: Response, effect: Effect) -> str:
    """What of a measure is the text's order, and what the network makes of tokens without one."""
    title, margin = response.symbol, response.margin
    under = {control.name: control.measures[key] for control in controls}
    time = next(control.measures[key] for control in controls if control.changes == Change.TIME)
    interval = replace(effect, low=-effect.high, high=-effect.low).interval
    match effect.outcome:
        case Reaction.UNDEFINED:
            return f"What of {title} is the text's order is not known: it is undefined with {SHUFFLED}."
        case Reaction.INDIFFERENT:
            return f"{title} changes by less than {margin:g} with {SHUFFLED}: the text's order is no more of it ({interval})."
        case Reaction.UNDECIDED:
            return f"Whether {title} depends on the text's order is undecided: the text's less that of {SHUFFLED} is {signed(-effect.effect)} ({interval})."
        case _:
            return (
                f"Of {title} {decimals(response.value, 3)}, {signed(-effect.effect)} ({interval}) is the text's order, and "
                f"{signed(under[SHUFFLED].mean - time.mean)} what the network makes of {SHUFFLED}; the rest, {decimals(time.mean, 3)}, "
                f"it has in any order of time."
            )


def of_training(response: Response, effect: Effect, count: int, intervals: str = "") -> list[str]:
    """What is to be said of trained against untrained weights; intervals: what the effect's interval is over, where that
    is not the order of images and the `count` initialisations."""
    if effect.outcome == Reaction.UNDEFINED:
        return []
    of = "of one initialisation" if count == 1 else f"of {count} initialisations"
    also = " and the initialisation" if count > 1 else ""
    named, over = (
        (f" ({of})", f"{response.varies or 'with the order of images'}{also}") if not intervals else ("", intervals)
    )
    between = f"{response.symbol} differs between the trained and the untrained network"
    start = {
        Reaction.RESPONDS: between,
        Reaction.INDIFFERENT: f"{response.symbol} of the trained and the untrained network differ by less than {response.margin:.3g}"
        if np.isfinite(response.margin)
        else f"{response.symbol} is the same of the trained and of the untrained network",
        Reaction.UNDECIDED: f"Whether {between} is undecided",
    }[effect.outcome]
    return [f"{start}: untrained weights{named} differ by {signed(effect.effect)}, {effect.interval} {over}."]
