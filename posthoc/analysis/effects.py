"""What a control does to a measure: the difference, the interval that decides, and the verdict."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from scipy.special import stdtrit

from posthoc.analysis.arrays import FloatArray
from posthoc.analysis.axes import Axis
from posthoc.analysis.measures import Measure
from posthoc.analysis.nulls import ROUNDING
from posthoc.analysis.responses import HALVES, STRENGTH, UNTRAINED, Change, Control, Effect, Reaction, Response, Spread

LEAST_SEEDS = 3
"""Untrained networks from which the spread over seeds is known."""


def margin_of(axis: Axis, measure: Measure, controls: Sequence[Control]) -> tuple[float, str]:
    """Below which a change of a measure is small, and how that was come by where the measure does not say.

    Then it is the standard deviation over the untrained networks: what the seed alone does to it. NaN with fewer than
    three of them.
    """
    margin = float(axis.overrides.get(measure.key, {}).get("margin", measure.margin))
    untrained = next((control.measures.get(measure.key) for control in controls if control.name == UNTRAINED), None)
    if np.isfinite(margin) or untrained is None or untrained.count < LEAST_SEEDS or axis.intervals:
        return margin, ""
    return untrained.sd, f"its sd over {untrained.count} untrained networks"


def respond(controls: Sequence[Control], key: str, symbol: str, margin: float) -> Response:
    """What moves a measure beyond what comes from the arbitrary order of images, and what by less than its margin."""
    order = next(control for control in controls if control.changes == Change.ORDER).measures[key]
    effects = effects_beside_order(controls, key, margin)
    return Response(symbol, controls[0].measures[key].mean, order.sd, told(effects), margin)


def effects_beside_order(
    controls: Sequence[Control],
    key: str,
    margin: float,
    beside: Mapping[str, str] | None = None,
    any_order: bool = False,
) -> dict[str, Effect]:
    """What every control that changes something does to a measure beside the order of images, by its name.

    beside: controls that are compared with others than the checkpoint as it is. any_order: of a measure that may not
    depend on the order of images, which then says nothing of its noise: as noisy counts what random halves of the probe do.
    """
    under = {control.name: control.measures[key] for control in controls}
    order = next(control for control in controls if control.changes == Change.ORDER).measures[key]
    halves = under.get(HALVES, order)
    noise = halves if any_order and halves.sd > order.sd else order
    as_it_is = Spread(controls[0].measures[key].mean, noise.sd, math.nan, math.nan, 1)
    effects = {}
    for control in controls:
        if control.changes and control.changes != Change.ORDER:
            other = under[beside[control.name]] if beside and control.name in beside else as_it_is
            # One half of a probe less the other varies twice as much as a half, whose sd is that of the whole.
            once = 2 * halves.sd / math.sqrt(2) if control.changes == Change.PROBE else noise.sd
            if (any_order or under[control.name].count > 1) and _same(under[control.name], other):
                effect = Effect(control.changes, Reaction.INDIFFERENT, 0.0, 0.0, 0.0)  # whatever its margin
            else:
                effect = _effect(control.changes, under[control.name], other, noise.count, once, margin)
            effects[control.name] = replace(effect, control=control.name)
    return effects


def told(effects: Mapping[str, Effect]) -> tuple[Effect, ...]:
    """The effects of controls, by their names, in the order in which they are told; what has a name of its own is named.

    What a measure responds to under one control it is not called indifferent to for the sake of another.
    """
    strongest: dict[str, int] = {}
    for effect in effects.values():
        strength = STRENGTH.index(effect.outcome)
        strongest[effect.changes] = max(strength, strongest.get(effect.changes, strength))
    named_effects: list[Effect] = []
    for outcome in Reaction:
        changes: set[str] = set()
        for name, effect in effects.items():
            if effect.outcome is outcome and outcome in (Reaction.UNDEFINED, STRENGTH[strongest[effect.changes]]):
                again = effect.changes in changes and outcome is not Reaction.UNDEFINED
                named_effects.append(replace(effect, changes=f"{effect.changes} ({name})") if again else effect)
                changes.add(effect.changes)
    return tuple(named_effects)


def in_the_same_orders(differences: FloatArray, changes: str, name: str, margin: float) -> Effect:
    """What a control of the same samples does, in the mean over orders of them, from the difference in each of these [n].

    A change that is sure to be smaller than the margin is small, also where it is sure to be one. Orders in which the measure
    is undefined tell nothing.
    """
    differences = differences[np.isfinite(differences)]
    spread = Spread.of(differences)
    if spread.count < 2:
        return Effect(changes, Reaction.UNDEFINED, control=name)
    mean, error = spread.mean, spread.sd / math.sqrt(spread.count)
    sure, likely = (float(stdtrit(spread.count - 1, q)) * error for q in (0.975, 0.95))
    if not differences.any() or abs(mean) + likely < margin:
        return Effect(changes, Reaction.INDIFFERENT, mean, mean - likely, mean + likely, name)
    outcome = Reaction.RESPONDS if abs(mean) > sure else Reaction.UNDECIDED
    return Effect(changes, outcome, mean, mean - sure, mean + sure, name)


def _same(under: Spread, other: Spread) -> bool:
    """Whether two are the same number in every draw, but for rounding."""
    rounding = ROUNDING * abs(other.mean)
    scatter = max((spread.sd for spread in (under, other) if spread.count > 1), default=0.0)
    return abs(under.mean - other.mean) <= rounding and scatter <= rounding


def _effect(changes: str, under: Spread, other: Spread, count: int, once: float, margin: float) -> Effect:
    """What one control does, beside another or the run as it is. once: standard error of what was measured once, for the run
    itself is one order of its images; of others there is a mean. count: of the draws that this is known from."""
    effect = under.mean - other.mean
    if not np.isfinite(effect):
        return Effect(changes, Reaction.UNDEFINED)
    parts = [spread.sd / math.sqrt(spread.count) if spread.count > 1 else once for spread in (under, other)]
    error = math.hypot(*parts)
    freedom = min([count, *(spread.count for spread in (under, other) if spread.count > 1)]) - 1
    sure, likely = (float(stdtrit(freedom, q)) * error for q in (0.975, 0.95))
    small = Reaction.INDIFFERENT if abs(effect) + likely < margin else Reaction.UNDECIDED
    outcome = Reaction.RESPONDS if abs(effect) > sure else small
    reach = likely if outcome is Reaction.INDIFFERENT else sure
    return Effect(changes, outcome, effect, effect - reach, effect + reach)
