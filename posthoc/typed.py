"""Values from outside, held against the types of our records: the one check of every JSON that posthoc reads.

The types are the schema: a field that a record gains is read, and checked, without a second list.
"""

import dataclasses
import functools
import math
import os
import re
import types
import typing
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import numpy as np
from numpy.typing import NDArray

from posthoc.errors import PosthocError, as_path
from posthoc.files import read_json
from posthoc.shown import counted

DEPTH = 64
"""How deep values may be nested where anything may stand."""
MOST = 2**63
TABLE_BYTES = 2**30
"""How large a file may be that holds something of every checkpoint and every two layers."""
NAMES = {
    float: "a number", int: "a whole number", bool: "true or false", str: "a text", list: "a list", tuple: "a list",
    dict: "an object", types.NoneType: "null",
}  # fmt: skip
Sizes = dict[str, int]
Read = Callable[[Any, Sizes], Any]


class MisfitError(ValueError):
    """A value that is not of its type; `where` in what was read: keys and places, outermost first."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what
        self.where: list[str] = []

    def __str__(self) -> str:
        return f"{''.join(self.where).lstrip('.') or 'it'} {self.what}"


@dataclasses.dataclass(frozen=True)
class Shape:
    """Of an `Annotated` list of lists: names of its lengths. Those of one name in a record agree; an empty list does.

    least: of the outermost length.
    """

    names: tuple[str, ...]
    least: int = 0

    def check(self, value: Any, sizes: Sizes) -> None:
        """Raise MisfitError where a length is another than the first of its name."""
        if len(value) < self.least:
            raise MisfitError(f"has {counted(len(value), 'value')}, not {self.least} or more")
        level = [value]
        for depth, name in enumerate(self.names):
            for inner in level:
                if inner and len(inner) != sizes.setdefault(name, len(inner)):
                    raise MisfitError(f"has {counted(len(inner), 'value')} where {sizes[name]} belong")
            if depth + 1 < len(self.names):
                level = [inner for outer in level for inner in outer]


@dataclasses.dataclass(frozen=True)
class Range:
    """Of an `Annotated` number, or list of them: the least and the largest that may be; null is free, NaN is not."""

    low: float
    high: float = math.inf

    def check(self, value: Any, sizes: Sizes) -> None:
        """Raise MisfitError outside the range."""
        for number in value if isinstance(value, (list, tuple)) else [value]:
            if number is not None and not self.low <= number <= self.high:
                raise MisfitError(f"is {_short(number)}, not within {self.low:g} to {self.high:g}")


@dataclasses.dataclass(frozen=True)
class Match:
    """Of an `Annotated` text: the pattern that all of it matches."""

    pattern: str

    def check(self, value: Any, sizes: Sizes) -> None:
        """Raise MisfitError where it does not."""
        if re.fullmatch(self.pattern, value) is None:
            raise MisfitError(f"is {_short(value)}, which cannot be")


@dataclasses.dataclass(frozen=True)
class Array:
    """Of an `Annotated` NumPy array: names of its lengths, as of Shape. Null is read as NaN; an empty list always fits
    unless it must be `full`.

    low, high: the least and the largest number that may be; whole: whether they are whole numbers, none of them null.
    """

    names: tuple[str, ...]
    low: float = -math.inf
    high: float = math.inf
    whole: bool = False
    full: bool = False

    def read(self, value: Any, sizes: Sizes) -> NDArray[Any]:
        """The array of a list of lists; raises MisfitError where it is none, or does not fit."""
        level = [value]
        for name in self.names:
            for inner in level:
                if not isinstance(inner, list):
                    _refuse(list, inner)
                if (inner or self.full) and len(inner) != sizes.setdefault(name, len(inner)):
                    raise MisfitError(f"has {counted(len(inner), 'value')} where {sizes[name]} belong")
            level = [number for inner in level for number in inner]
        if not set(map(type, level)) <= ({int} if self.whole else {float, int, types.NoneType}):
            raise MisfitError(
                "has values that are no whole numbers" if self.whole else "has values that are no numbers"
            )
        try:
            array = np.array(level, dtype=np.int64 if self.whole else np.float64)
        except OverflowError:
            raise MisfitError("has a number that is too large") from None
        shape = [sizes[name] for name in self.names] if level else [0] * len(self.names)
        if array.size != math.prod(shape):
            raise MisfitError("has rows of different lengths")
        if ((array < self.low) | (array > self.high)).any():
            raise MisfitError(f"has a value that is not within {self.low:g} to {self.high:g}")
        return array.reshape(shape)


def typed(kind: Any, value: Any) -> Any:
    """The value as the type `kind` has it: records made, lists as tuples where so annotated, null as NaN for a float.

    kind: a dataclass (unknown keys are left out, absent ones need a default, and whatever equals that is valid), a
    TypedDict (unknown keys stay as they are), an enum of texts, a list, tuple, dict, Union, Literal or Annotated (whose metadata may be a
    Shape, a Range, a Match, or a type that stands for the annotated one) of such, a plain type, or Any. Raises MisfitError.
    """
    return _reader(kind)(value, {})


def read_typed(
    path: str | os.PathLike[str],
    kind: Any,
    format: str,
    version: int,
    what: str,
    command: str,
    upgrades: Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]] | None = None,
) -> tuple[Any, dict[str, Any]]:
    """A JSON file of a format of ours, as the record `kind`, and its content as it stands in the file.

    what: the kind of file, in words; command: what writes such; upgrades: version -> what makes content of that version
    that of `version`. Raises PosthocError where it is absent, something else, of a later version, or not as `kind` has it.
    """
    content = read_json(as_path(path), TABLE_BYTES, f"`{command}`")
    if not isinstance(content, dict) or content.get("format") != format:
        raise PosthocError(f"{path} is not {what}; give what `{command}` wrote.")
    try:
        written = _within("format_version", _reader(int), content.get("format_version"), {})
        if written > version:
            raise PosthocError(f"{path} is of format version {written}, newer than this posthoc reads; upgrade it.")
        return typed(kind, _upgraded(content, (upgrades or {}).get(written))), content
    except MisfitError as error:
        raise PosthocError(f"{path} is damaged ({error}); write it again with `{command}`.") from error


def _upgraded(content: dict[str, Any], upgrade: Callable[[dict[str, Any]], dict[str, Any]] | None) -> dict[str, Any]:
    """Content of an earlier version as the current one has it, which is then checked like any other."""
    if upgrade is None:
        return content
    try:
        return upgrade(content)
    except MisfitError:
        raise
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, OverflowError) as error:
        lacks = isinstance(error, KeyError)
        raise MisfitError(f"lacks {error.args[0]}" if lacks else "is not as its version has it") from error


def undeclared(kind: Any, value: Any, where: str = "") -> list[str]:
    """What is in a value that its type does not declare, and that is therefore read by nobody, or unchecked."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return undeclared(_standing(arguments), value, where)
    if _is_record(kind):
        if not isinstance(value, dict):
            return []
        hints = _hints(kind)
        names = [f"{where}.{name}".lstrip(".") for name in value if name not in hints]
        return names + [
            name for key, hint in hints.items() if key in value
            for name in undeclared(hint, value[key], f"{where}.{key}".lstrip("."))
        ]  # fmt: skip
    inner: list[Any] = [value]
    if isinstance(value, dict) and origin in (dict, Mapping):
        inner = list(value.values())
    elif isinstance(value, (list, tuple)) and origin in (list, tuple):
        inner = list(value)
    return list(dict.fromkeys(name for item in inner for kind in arguments for name in undeclared(kind, item, where)))


@functools.cache
def _reader(kind: Any) -> Read:
    """What reads a value of a type: made once, for files hold many."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        for rule in arguments[1:]:
            if isinstance(rule, Array):
                return rule.read
        return _ruled(_reader(_standing(arguments)), [rule for rule in arguments[1:] if hasattr(rule, "check")])
    if origin in (Union, types.UnionType):
        return _either(arguments)
    if origin is Literal:
        return _choice(arguments, str)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _choice(tuple(item.value for item in kind), kind)
    if _is_record(kind):
        return _record(kind)
    if origin in (list, tuple):
        return _list(origin, arguments)
    if origin in (dict, Mapping):
        return _dict(*map(_reader, arguments))
    return _leaf(kind)


def _ruled(read: Read, rules: list[Any]) -> Read:
    def ruled(value: Any, sizes: Sizes) -> Any:
        value = read(value, sizes)
        for rule in rules:
            rule.check(value, sizes)
        return value

    return ruled


def _record(kind: Any) -> Read:
    """A dataclass or a TypedDict; lengths that are first named in it count in it only."""
    readers = {name: _reader(hint) for name, hint in _hints(kind).items()}
    defaults, required = _defaults(kind), _required(kind)
    plain = typing.is_typeddict(kind)

    def record(value: Any, sizes: Sizes) -> Any:
        if not isinstance(value, dict):
            return _refuse(dict, value)
        if missing := [name for name in readers if name in required and name not in value]:
            raise MisfitError(f"lacks {', '.join(missing)}")
        inside, fields = dict(sizes), dict(value) if plain else {}
        for name, read in readers.items():
            if name in value:
                field = fields[name] = value[name]
                if name in defaults and type(field) is type(defaults[name]) and field == defaults[name]:
                    continue
                fields[name] = _within(f".{name}", read, field, inside)
        return fields if plain else kind(**fields)

    return record


def _list(origin: Any, arguments: tuple[Any, ...]) -> Read:
    exact = origin is tuple and arguments[-1] is not ...
    readers = list(map(_reader, arguments)) if exact else [_reader(arguments[0])]
    plain = arguments[0] == float | None and not exact

    def read_list(value: Any, sizes: Sizes) -> Any:
        if not isinstance(value, (list, tuple)):
            return _refuse(list, value)
        if exact and len(value) != len(readers):
            raise MisfitError(f"has {counted(len(value), 'value')}, not {len(readers)}")
        if plain and set(map(type, value)) <= {float, types.NoneType}:  # most of a file, so at once
            return origin(value)
        each = readers if exact else readers * len(value)
        return origin(_within(f"[{k}]", each[k], inner, sizes) for k, inner in enumerate(value))

    return read_list


def _dict(key: Read, inner: Read) -> Read:
    def read_dict(value: Any, sizes: Sizes) -> Any:
        if not isinstance(value, dict):
            return _refuse(dict, value)
        return {_within("", key, name, sizes): _within(f".{name}", inner, item, sizes) for name, item in value.items()}

    return read_dict


def _either(kinds: tuple[Any, ...]) -> Read:
    optional = types.NoneType in kinds
    readers = [_reader(kind) for kind in kinds if kind is not types.NoneType]

    def either(value: Any, sizes: Sizes) -> Any:
        if optional and value is None:
            return None
        for read in readers[:-1]:
            try:
                return read(value, sizes)
            except MisfitError:
                pass
        return readers[-1](value, sizes)

    return either


def _choice(allowed: tuple[Any, ...], make: Callable[[str], Any]) -> Read:
    def choice(value: Any, sizes: Sizes) -> Any:
        if not isinstance(value, str) or value not in allowed:
            raise MisfitError(f"is {_short(value)}, not {' or '.join(map(str, allowed))}")
        return make(value)

    return choice


def _leaf(kind: Any) -> Read:
    def number(value: Any, sizes: Sizes) -> Any:
        if value is None:
            return math.nan
        whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) < MOST
        return float(value) if whole or isinstance(value, float) else _refuse(kind, value)

    def whole(value: Any, sizes: Sizes) -> Any:
        fits = isinstance(value, int) and not isinstance(value, bool) and -MOST <= value < MOST
        return value if fits else _refuse(kind, value)

    def plain(value: Any, sizes: Sizes) -> Any:
        return value if isinstance(value, kind) else _refuse(kind, value)

    return {float: number, int: whole, Any: _shallow}.get(kind, plain)


def _within(where: str, read: Read, value: Any, sizes: Sizes) -> Any:
    try:
        return read(value, sizes)
    except MisfitError as error:
        error.where.insert(0, where)
        raise


def _refuse(kind: Any, value: Any) -> Any:
    raise MisfitError(f"is {_short(value)}, not {NAMES.get(kind, kind)}")


def _shallow(value: Any, sizes: Sizes) -> Any:
    level = [value]
    for _ in range(DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, (dict, list, tuple))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return value
    raise MisfitError(f"is nested deeper than {DEPTH} levels")


def _short(value: Any) -> str:
    if isinstance(value, (dict, list, tuple)):
        return f"{NAMES[type(value)]} of {len(value)}"
    text = repr(value) if isinstance(value, str) else "null" if value is None else str(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _standing(arguments: tuple[Any, ...]) -> Any:
    """Of what Annotated holds, the type that decides."""
    return next((rule for rule in arguments[1:] if not hasattr(rule, "check")), arguments[0])


def _is_record(kind: Any) -> bool:
    return dataclasses.is_dataclass(kind) or typing.is_typeddict(kind)


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(kind, include_extras=True)
    if typing.is_typeddict(kind):
        bare = (get_args(hint)[0] if get_origin(hint) is typing.NotRequired else hint for hint in hints.values())
        return dict(zip(hints, bare, strict=True))
    return {field.name: hints[field.name] for field in dataclasses.fields(kind) if field.init}


def _defaults(kind: Any) -> dict[str, Any]:
    fields = dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ()
    defaults = {field.name: field.default for field in fields if field.default is not dataclasses.MISSING}
    made = {field.name: field.default_factory for field in fields if field.default_factory is not dataclasses.MISSING}
    return defaults | {name: make() for name, make in made.items()}


def _required(kind: Any) -> frozenset[str]:
    if typing.is_typeddict(kind):
        return frozenset(kind.__required_keys__)
    return frozenset(_hints(kind)) - frozenset(_defaults(kind))
