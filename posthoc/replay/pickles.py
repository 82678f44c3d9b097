"""The content of a pickle without running it: whatever it would import or call becomes an inert record.

The opcodes are taken apart by the standard library's `pickletools`; nothing is imported, no `__reduce__`,
`__setstate__` or constructor of the file's choosing is called. Only the few functions passed in as `construct` are.
"""

import io
import pickletools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from posthoc.replay.budget import Budget

MAX_LINE = 1 << 20

_MARK = object()


class Global(NamedTuple):
    """The name of a class or function, as the pickle gives it; never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False, repr=False, slots=True)
class Record:
    """What an unknown class or function would have made: its name, arguments and state.

    It has no representation of its content: tuples that hold each other twice take for ever to write down.
    """

    kind: Any
    args: tuple[Any, ...] = ()
    state: Any = None
    items: list[Any] = field(default_factory=list)
    pairs: dict[Any, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Of its class or function."""
        return str(self.kind) if isinstance(self.kind, Global) else "something without a name"


class Readable(Protocol):
    """The part of a binary file that is needed here."""

    def read(self, size: int, /) -> bytes: ...
    def readline(self) -> bytes: ...


class Bounded:
    """A binary file from where it stands to `end`: refuses to read past it or to look for a line's end for ever.

    `read` alone would allocate what a hostile length asks for before it notices that the file is shorter.
    """

    def __init__(self, file: io.BufferedIOBase, end: int) -> None:
        self._file = file
        self.at = file.tell()
        self._end = end

    def read(self, size: int, /) -> bytes:
        self.at += size
        if self.at > self._end:
            raise EOFError("it ends inside a value")
        return self._file.read(size)

    def readline(self) -> bytes:
        line = self._file.readline(MAX_LINE)
        self.at += len(line)
        if not line.endswith(b"\n") or self.at > self._end:
            raise EOFError("a line has no end")
        return line

    def skip(self, size: int) -> None:
        """Go on behind the next `size` bytes."""
        self.at = self._file.seek(size, io.SEEK_CUR)
        if self.at > self._end:
            raise EOFError("it ends inside a value")


def unpickle(
    file: Readable, construct: Mapping[Global, Callable[..., Any]], persistent: Callable[[Any], Any], budget: Budget
) -> Any:
    """The object that the next pickle in `file` describes, and leave `file` behind it.

    `construct` holds the functions that may be called, by name; `persistent` turns persistent ids into objects. Each
    step is charged to `budget`; what they make, they charge themselves. Sets come out as lists, so that nothing hostile
    is hashed. Raises ValueError, EOFError, LookupError or TypeError for what is no pickle, BudgetError.

    >>> import pickle
    >>> from pathlib import Path
    >>> file = io.BytesIO(pickle.dumps([1, io.BytesIO(b"x"), {"a": (2.0, "b")}]))
    >>> values = unpickle(file, {}, lambda key: key, Budget(Path("a.pkl")))
    >>> values[0], str(values[1].kind), values[2]
    (1, '_io.BytesIO', {'a': (2.0, 'b')})
    """
    return _Machine(construct, persistent, budget).run(file)


class _Machine:
    """The pickle machine: a stack, a memo, and what the operations (below) do with them."""

    def __init__(
        self, construct: Mapping[Global, Callable[..., Any]], persistent: Callable[[Any], Any], budget: Budget
    ) -> None:
        self.construct = construct
        self.persistent = persistent
        self.budget = budget
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, file: Readable) -> Any:
        budget = self.budget
        while True:
            budget.operations += 1  # as `operate` does, which is slow to call so often
            if budget.operations > budget.most_operations:
                budget.refuse_operations()
            code = file.read(1)
            if code == b".":
                return self.pop()
            if code not in _STEPS:
                raise EOFError("its pickle has no end") if not code else ValueError(f"it is no pickle at {code!r}")
            reader, step = _STEPS[code]
            if reader is None:
                step(self)
            else:
                step(self, reader(file))

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise ValueError("its pickle stack is in disorder")
        return value

    def since_mark(self) -> list[Any]:
        at = len(self.stack) - 1
        while self.stack[at] is not _MARK:  # an IndexError where there is none
            at -= 1
            if at < 0:
                raise ValueError("its pickle stack is in disorder")
        values = self.stack[at + 1 :]
        del self.stack[at:]
        return values

    def top(self) -> Any:
        value = self.stack[-1]
        if value is _MARK:
            raise ValueError("its pickle stack is in disorder")
        return value

    def pair(self) -> tuple[Any, Any]:
        second = self.pop()
        return self.pop(), second

    def triple(self) -> tuple[Any, Any, Any]:
        third = self.pop()
        return *self.pair(), third

    def extend(self, values: list[Any]) -> None:
        target = self.top()
        if isinstance(target, Record):
            target = target.items
        if not isinstance(target, list):
            raise TypeError("it appends to what is no list")
        target.extend(values)

    def set_items(self, values: Sequence[Any]) -> None:
        target = self.top()
        if isinstance(target, Record):
            target = target.pairs
        if not isinstance(target, dict) or len(values) % 2:
            raise TypeError("it sets items of what is no dictionary")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if isinstance(key, (str, bytes, tuple)) and len(key) > 64:
                self.budget.operate(len(key) >> 6)  # equal ones that are not the same are compared to their ends
            target[_key(key)] = value

    def make_dictionary(self) -> None:
        values = self.since_mark()
        self.stack.append({})
        self.set_items(values)

    def put(self, at: int) -> None:
        self.memo[at] = self.top()

    # What would import and call.
    def named(self) -> Global:
        module, name = self.pair()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise TypeError("it names a class by what is no name")
        return Global(module, name)

    def make(self, kind: Any, arguments: Any) -> Any:
        if not isinstance(arguments, tuple):
            raise TypeError("it calls with what are no arguments")
        if isinstance(kind, Global) and kind in self.construct:
            return self.construct[kind](*arguments)
        return Record(kind, arguments)

    def make_object(self) -> Any:
        kind, *arguments = self.since_mark()
        return self.make(kind, tuple(arguments))

    def make_with_keywords(self) -> Any:
        self.pop()
        return self.make(*self.pair())

    def build(self) -> None:
        state, target = self.pop(), self.top()
        if isinstance(target, Record):
            target.state = state


def _key(value: Any) -> Any:
    """What may be a key: a scalar or a short flat tuple of scalars; anything else stands for itself.

    A tuple of tuples that hold each other twice takes for ever to hash, and a number of a megabyte long each time.
    """
    if _is_plain(value) or (isinstance(value, tuple) and len(value) < 10 and all(map(_is_short, value))):
        return value
    return value if isinstance(value, Record) else Record("key", (value,))


def _is_plain(value: Any) -> bool:
    """None, texts and small whole numbers: others can be made by the thousand to fall into one place of a dictionary."""
    return value is None or isinstance(value, (str, bytes)) or (isinstance(value, int) and value.bit_length() < 60)


def _is_short(value: Any) -> bool:
    return _is_plain(value) and not (isinstance(value, (str, bytes)) and len(value) > 1000)


def _global(argument: str) -> Global:
    return Global(*argument.split(" ", 1))


_OPERATIONS: dict[str, Callable[..., Any]] = {
    "PROTO FRAME": lambda m, argument: None,
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE SHORT_BINUNICODE "
    "BINUNICODE BINUNICODE8 SHORT_BINBYTES BINBYTES BINBYTES8 BYTEARRAY8": lambda m, value: m.stack.append(value),
    "NONE": lambda m: m.stack.append(None),
    "NEWTRUE": lambda m: m.stack.append(True),
    "NEWFALSE": lambda m: m.stack.append(False),
    "EMPTY_TUPLE": lambda m: m.stack.append(()),
    "EMPTY_LIST EMPTY_SET": lambda m: m.stack.append([]),
    "EMPTY_DICT": lambda m: m.stack.append({}),
    "MARK": lambda m: m.stack.append(_MARK),
    "POP": lambda m: m.stack.pop(),
    "POP_MARK": lambda m: m.since_mark(),
    "DUP": lambda m: m.stack.append(m.top()),
    "LIST": lambda m: m.stack.append(m.since_mark()),
    "TUPLE FROZENSET": lambda m: m.stack.append(tuple(m.since_mark())),
    "TUPLE1": lambda m: m.stack.append((m.pop(),)),
    "TUPLE2": lambda m: m.stack.append(m.pair()),
    "TUPLE3": lambda m: m.stack.append(m.triple()),
    "DICT": _Machine.make_dictionary,
    "APPEND": lambda m: m.extend([m.pop()]),
    "APPENDS ADDITEMS": lambda m: m.extend(m.since_mark()),
    "SETITEM": lambda m: m.set_items(m.pair()),
    "SETITEMS": lambda m: m.set_items(m.since_mark()),
    "MEMOIZE": lambda m: m.put(len(m.memo)),
    "PUT BINPUT LONG_BINPUT": _Machine.put,
    "GET BINGET LONG_BINGET": lambda m, at: m.stack.append(m.memo[at]),
    "GLOBAL": lambda m, argument: m.stack.append(_global(argument)),
    "STACK_GLOBAL": lambda m: m.stack.append(m.named()),
    "INST": lambda m, argument: m.stack.append(m.make(_global(argument), tuple(m.since_mark()))),
    "OBJ": lambda m: m.stack.append(m.make_object()),
    "REDUCE NEWOBJ": lambda m: m.stack.append(m.make(*m.pair())),
    "NEWOBJ_EX": lambda m: m.stack.append(m.make_with_keywords()),
    "BUILD": _Machine.build,
    "PERSID": lambda m, argument: m.stack.append(m.persistent(argument)),
    "BINPERSID": lambda m: m.stack.append(m.persistent(m.pop())),
}
"""What each operation does, by its names in `pickletools`; those that are not here are refused."""
_BY_NAME = {name: step for names, step in _OPERATIONS.items() for name in names.split()}
_STEPS: dict[bytes, tuple[Callable[[Any], Any] | None, Callable[..., Any]]] = {
    opcode.code.encode("latin-1"): (opcode.arg.reader if opcode.arg else None, _BY_NAME[opcode.name])
    for opcode in pickletools.opcodes
    if opcode.name in _BY_NAME
}
