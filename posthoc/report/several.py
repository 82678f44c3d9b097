"""What is said first of several runs: in what they differ beyond what seeds alone make different."""

import itertools
import math
from typing import Any

from posthoc.analysis.compare import Row, words_for
from posthoc.report import tables_of_runs
from posthoc.report.printing import as_html
from posthoc.report.sources import Several
from posthoc.report.words import number
from posthoc.shown import digits_apart, listed

NO_CONFIGURATION = ("seed", "samples", "accuracy_source")
"""Of what is recorded of runs: by what they do not count as of another configuration."""
LONG = 80
"""Signs, up to which the values of a setting are told."""
MOST_WAYS = 1000
"""Of choosing settings that tell configurations apart, that are tried for each number of them."""
ACROSS = 6
"""So many runs stand as columns of their table; of more, each is a row."""


def beyond_seeds(several: Several) -> list[str]:
    """In what the runs' configurations differ, and which quantities differ more between them than between seeds."""
    rows = several.rows
    keys = dict.fromkeys(key for row in rows for key in row.run.about if key not in NO_CONFIGURATION)
    varied = [key for key in keys if len({_recorded(row, key) for row in rows}) > 1]
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(_recorded(row, key) for key in varied), []).append(row)
    shown = dict.fromkeys(
        key for row in rows for key, quantity in row.quantities.items()
        if quantity.best or (key in row.run.measures and row.run.measures[key].headline and math.isfinite(quantity.value))
    )  # fmt: skip
    if not varied:
        ranges = [f"{_symbol(rows, key)} is {_between(values, 3)}" for key in shown if (values := _values(rows, key))]
        between = f"; between them {'; '.join(ranges)}" if ranges else ""
        return [f"The {len(rows)} runs are of one configuration, as far as is recorded{between}."]
    differ = [_differing(several, key, [_recorded(row, key) for row in rows]) for key in varied]
    sentences = [f"The runs differ in {listed(differ)}."]
    names = _named([*groups], [words_for(several.runs, key) for key in varied])
    repeated = {name: members for name, members in zip(names, groups.values(), strict=True) if len(members) > 1}
    if not repeated:
        return [
            *sentences,
            "Each configuration has one run: what they make different cannot be told from what seeds alone do. Add seeds.",
        ]
    if single := [name for name in names if name not in repeated]:
        has = "has one run, and is" if len(single) == 1 else "have one run each, and are"
        sentences.append(f"{listed(single)} {has} not compared here: add seeds.")
    apart: list[str] = []
    alike: list[str] = []
    for key in shown:
        known = {name: values for name, members in repeated.items() if (values := _values(members, key))}
        if len(known) < 2:  # nothing for it to meet
            continue
        ends = [end for values in known.values() for end in (min(values), max(values))]
        do = _apart([*known.values()])
        texts = "; ".join(f"{name}: {_between(of, digits_apart(ends, 3) if do else 3)}" for name, of in known.items())
        (apart if do else alike).append(f"{_symbol(rows, key)} ({texts})")
    if apart:
        sentences.append(f"Their ranges over runs that differ in the seed alone do not meet in {', '.join(apart)}.")
    if alike:
        sentences.append(
            f"{'They meet' if apart else 'Ranges over runs that differ in the seed alone meet'} in {', '.join(alike)}."
        )
    if apart or alike:
        sentences.append("Ranges of so few runs are no test; `posthoc compare --by` gives one.")
    return sentences


def _differing(several: Several, key: str, values: list[str]) -> str:
    """What a setting is called, with its values where they are short."""
    texts = ", ".join(dict.fromkeys(values))
    return f"{words_for(several.runs, key)} ({texts if len(texts) <= LONG else f'{len(set(values))} kinds'})"


def _named(configurations: list[tuple[str, ...]], called: list[str]) -> list[str]:
    """Names of configurations, the settings in which they differ with their values: as few of these as tell all apart, those
    of the shortest values."""
    places = range(len(called))
    ways = [tuple(places)]
    for count in range(1, len(called) + 1):
        some = itertools.islice(itertools.combinations(places, count), MOST_WAYS)
        if apart := [
            way for way in some if len({tuple(of[k] for k in way) for of in configurations}) == len(configurations)
        ]:
            ways = apart
            break
    best = min(ways, key=lambda way: sum(len(of[k]) for of in configurations for k in way))
    return [", ".join(f"{called[k]} {of[k]}" for k in best) for of in configurations]


def _symbol(rows: list[Row], key: str) -> str:
    return next(row.quantities[key].symbol for row in rows if key in row.quantities)


def _values(rows: list[Row], key: str) -> list[float]:
    return [v for row in rows if key in row.quantities and math.isfinite(v := row.quantities[key].value)]


def _between(values: list[float], digits: int) -> str:
    """Least and greatest of values; one number where they are one."""
    low, high = number(min(values), digits), number(max(values), digits)
    return low if low == high else f"{low} to {high}"


def _apart(groups: list[list[float]]) -> bool:
    """Whether no two configurations' ranges of a quantity meet."""
    return all(max(a) < min(b) or max(b) < min(a) for a, b in itertools.combinations(groups, 2))


def _recorded(row: Row, key: str) -> str:
    """A setting of a run in words."""
    value = row.run.about.get(key)
    return "not recorded" if value is None else str(value)


def side_by_side(rows: list[Row]) -> dict[str, Any]:
    """The table of runs for the page: few runs as columns, each with its numbers below; more as rows. What is said of
    the states of several runs is said once."""
    table = tables_of_runs.runs(rows)
    plain = as_html(table)
    why: dict[str, list[str]] = {}
    for row in rows:
        why.setdefault(f"{row.state.name}, for {row.state.reason}.", []).append(row.run.name)
    single = {f"{name}: {text}" for text, names in why.items() for name in names}
    states = [
        f"{'All runs' if len(names) == len(rows) > 1 else ', '.join(names)}: {text}" for text, names in why.items()
    ]
    plain["cautions"] = []  # which the banner says
    plain["notes"] = [*(note for note in table.notes if note not in single), *states]
    if len(table.rows) > ACROSS:
        return plain
    names, *lines = ([*line] for line in zip([column.full for column in table.columns], *plain["rows"], strict=True))
    same = [line for line in lines if len(rows) > 1 and len(set(line[1:])) == 1]
    if said := ", ".join(f"{line[0]} {line[1]}" for line in same if line[0] != "state" and line[1] != "-"):
        plain["notes"].insert(0, f"The same in all runs: {said}.")
    differing = [line for line in lines if line not in same]
    return plain | {"columns": ["", *names[1:]], "rows": differing, "across": True}
