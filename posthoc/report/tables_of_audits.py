"""Tables of an audit: every measure under every control, and what follows of each."""

import math
from typing import Any

from posthoc.analysis.responses import STRENGTH, Audit, Effect, Reaction, Response, signed
from posthoc.recording import named
from posthoc.report.printing import Column, Lines, Table, cell, column
from posthoc.report.words import over_orders
from posthoc.shown import decimals


def audit(result: Audit) -> Table:
    """One row per control: every measure under it."""
    columns = [column("", "control")]
    for key, response in result.measures.items():
        columns += [column(response.symbol, key), column("", f"{key}_sd")]
    table = []
    for control in result.controls:
        cells: list[Any] = [control.name]
        for key in result.measures:
            spread = control.measures[key]
            cells += [spread.mean, f"+- {decimals(spread.sd)}" if spread.sd > 0 else ""]
        table.append(cells)
    return Table("Audit", columns, table, [over_orders(result)] if over_orders(result) else [])


def factors(result: Audit) -> Table:
    """One row per measure, one column per change: what it does, and what follows; of several controls what counts most, and
    the largest of these."""
    changes = list(dict.fromkeys(control.changes for control in result.controls if control.changes))
    told = {
        key: [
            max(
                (effect for effect in response.effects if effect.changes.split(" (")[0] == change.split(" (")[0]),
                key=lambda effect: (STRENGTH.index(effect.outcome), abs(effect.effect)), default=None,
            )
            for change in changes
        ]
        for key, response in result.measures.items()
    }  # fmt: skip
    kept = [k for k in range(len(changes)) if any(row[k] for row in told.values())]
    columns = [column("measure"), *(Column(named(changes[k], result.called), (changes[k],)) for k in kept)]
    rows = [[result.measures[key].symbol, *(_factor(row[k]) for k in kept)] for key, row in told.items()]
    return Table("Measures by what they respond to", columns, rows)


def _factor(effect: Effect | None) -> str | None:
    """One cell: the effect and what follows."""
    if effect is None:
        return None
    return str(effect.outcome) if effect.outcome is Reaction.UNDEFINED else f"{effect.outcome} {effect.effect:+.3g}"


def responses(result: Audit) -> list[Lines]:
    """What each measure responds to, is undecided about and does not respond to, and how it varies."""
    blocks, called = [], result.called
    for key, response in result.measures.items():
        title = response.symbol
        known = math.isfinite(response.margin)  # of files before there was one, what was not seen to move the measure
        how = f", {response.margin_from}," if response.margin_from else ""
        small = f"changes by less than {response.margin:.3g}{how} with" if known else "was not seen to respond to"
        lines = [
            (f"{title} responds to", _effects(result, response, Reaction.RESPONDS) or "nothing"),
            (f"{title} {small}", _effects(result, response, Reaction.INDIFFERENT) or "nothing"),
        ]
        if text := _effects(result, response, Reaction.UNDECIDED):
            lines.append((f"{title} is undecided about", text))
        if undefined := response.which(Reaction.UNDEFINED).values():
            parts = [f"{named(effect.changes, called)} ({_why_undefined(result, key, effect)})" for effect in undefined]
            lines.append((f"{title} cannot be compared under", "; ".join(parts)))
        lines.append(
            (
                f"{title} varies by",
                f"{cell(response.spread_by_order)} (sd) {named(response.varies or result.varies, called)}",
            )
        )
        blocks.append(lines)
    stepped: dict[str, list[str]] = {}
    for control, why in result.aside.items():
        stepped.setdefault(why, []).append(control)
    return blocks + [[(why, ", ".join(controls)) for why, controls in stepped.items()]] * bool(stepped)


def _why_undefined(result: Audit, key: str, effect: Effect) -> str:
    """Why nothing is known of what a control does to a measure."""
    spreads = [control.measures[key] for control in result.controls if control.name == effect.control]
    if not spreads or not math.isfinite(spreads[0].mean):
        return "it has no value there"
    if not math.isfinite(result.measures[key].value):
        return "it has no value as it is"
    return f"{spreads[0].count} {result.called} have it there, which are too few for an interval"


def _effects(result: Audit, response: Response, outcome: Reaction) -> str:
    """What is changed, and by how much the measure changes; of several controls of one change, each by its name."""
    made = [control.changes for control in result.controls]
    parts = []
    for what, effects in response.by_change(outcome).items():
        several = made.count(what) > 1 and all(effect.control for effect in effects)
        text = ", ".join(f"{effect.control}: " * several + signed(effect.effect) for effect in effects)
        parts.append(f"{named(what, result.called)} ({text})")
    return "; ".join(parts)
