"""What is said first of several runs: in what they differ beyond what seeds alone make different."""

import itertools
import math
from typing import Any

from posthoc.analysis.compare import Row, words_for
from posthoc.report import tables_of_runs
from posthoc.report.printing import as_html
from posthoc.report.sources import Several
from posthoc.report.words import number
from posthoc.shown import listed

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
        ranges = [text for key in shown if (text := _range(rows, key))]
        between = f"; between them {'; '.join(ranges)}" if ranges else ""
        return [f"The {len(rows)} runs are of one configuration, as far as is recorded{between}."]
    differ = [_differing(several, key, [_recorded(row, key) for row in rows]) for key in varied]
    sentences = [f"The runs differ in {listed(differ)}."]
    names = _named([*groups])
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
        texts = [f"{name}: {text}" for name, members in repeated.items() if (text := _range(members, key, False))]
        if len(texts) < 2:  # nothing for it to meet
            continue
        (apart if _apart([*repeated.values()], key) else alike).append(f"{_symbol(rows, key)} ({'; '.join(texts)})")
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


def _named(configurations: list[tuple[str, ...]]) -> list[str]:
    """Names of configurations, values of the settings in which they differ: by as few of these as tell all apart, the shortest."""
    places = range(len(configurations[0]))
    for count in range(1, len(places) + 1):
        ways = [
            [", ".join(values[k] for k in chosen) for values in configurations]
            for chosen in itertools.islice(itertools.combinations(places, count), MOST_WAYS)
        ]
        if apart := [way for way in ways if len(set(way)) == len(configurations)]:
            return min(apart, key=lambda way: sum(map(len, way)))
    return [", ".join(values) for values in configurations]


def _symbol(rows: list[Row], key: str) -> str:
    return next(row.quantities[key].symbol for row in rows if key in row.quantities)


def _values(rows: list[Row], key: str) -> list[float]:
    return [v for row in rows if key in row.quantities and math.isfinite(v := row.quantities[key].value)]


def _range(rows: list[Row], key: str, named: bool = True) -> str:
    """Least and greatest of a quantity; empty where there is none."""
    values = _values(rows, key)
    if not values:
        return ""
    start = f"{_symbol(rows, key)} is " if named else ""
    low, high = number(min(values), 3), number(max(values), 3)
    return f"{start}{low}" if low == high else f"{start}{low} to {high}"


def _apart(groups: list[list[Row]], key: str) -> bool:
    """Whether no two configurations' ranges of a quantity meet."""
    known = [values for members in groups if (values := _values(members, key))]
    return len(known) > 1 and all(
        max(a) < min(b) or max(b) < min(a) for a, b in itertools.combinations(known, 2)
    )  # fmt: skip


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
