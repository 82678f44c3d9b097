"""The content of a pickle without running it: whatever it would import or call becomes an inert record.

The opcodes are taken apart by the standard library's `pickletools`; nothing is imported, no `__reduce__`,
`__setstate__` or constructor of the file's choosing is called. Only the few functions passed in as `construct` are.
"""

import io
import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from posthoc.replay.budget import Budget

MAX_LINE = 1 << 20

_MARK = object()
_NOTHING = frozenset({"PROTO", "FRAME"})
_LITERALS = frozenset({
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES",
    "BINBYTES8", "BYTEARRAY8",
})  # fmt: skip


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
    >>> found = unpickle(file, {}, lambda key: key, Budget(Path("a.pkl")))
    >>> found[0], str(found[1].kind), found[2]
    (1, '_io.BytesIO', {'a': (2.0, 'b')})
    """
    return _Machine(construct, persistent, budget).run(file)


class _Machine:
    """The pickle machine: a stack, a memo, and one method per kind of opcode."""

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

    def do_nothing(self, argument: Any) -> None:
        """A protocol's number, the length of a frame."""

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

    # Literals.
    def push(self, value: Any) -> None:
        self.stack.append(value)

    def do_none(self) -> None:
        self.stack.append(None)

    def do_newtrue(self) -> None:
        self.stack.append(True)

    def do_newfalse(self) -> None:
        self.stack.append(False)

    def do_empty_tuple(self) -> None:
        self.stack.append(())

    # Containers.
    def do_mark(self) -> None:
        self.stack.append(_MARK)

    def do_pop(self) -> None:
        self.stack.pop()

    def do_pop_mark(self) -> None:
        self.since_mark()

    def do_dup(self) -> None:
        self.stack.append(self.top())

    def do_empty_list(self) -> None:
        self.stack.append([])

    do_empty_set = do_empty_list

    def do_empty_dict(self) -> None:
        self.stack.append({})

    def do_list(self) -> None:
        self.stack.append(self.since_mark())

    def do_tuple(self) -> None:
        self.stack.append(tuple(self.since_mark()))

    do_frozenset = do_tuple

    def do_tuple1(self) -> None:
        self.stack.append((self.pop(),))

    def do_tuple2(self) -> None:
        second, first = self.pop(), self.pop()
        self.stack.append((first, second))

    def do_tuple3(self) -> None:
        third, second, first = self.pop(), self.pop(), self.pop()
        self.stack.append((first, second, third))

    def do_dict(self) -> None:
        values = self.since_mark()
        self.stack.append({})
        self.set_items(values)

    def do_append(self) -> None:
        self.extend([self.pop()])

    def do_appends(self) -> None:
        self.extend(self.since_mark())

    do_additems = do_appends

    def extend(self, values: list[Any]) -> None:
        target = self.top()
        if isinstance(target, Record):
            target = target.items
        if not isinstance(target, list):
            raise TypeError("it appends to what is no list")
        target.extend(values)

    def do_setitem(self) -> None:
        value, key = self.pop(), self.pop()
        self.set_items([key, value])

    def do_setitems(self) -> None:
        self.set_items(self.since_mark())

    def set_items(self, values: list[Any]) -> None:
        target = self.top()
        if isinstance(target, Record):
            target = target.pairs
        if not isinstance(target, dict) or len(values) % 2:
            raise TypeError("it sets items of what is no dictionary")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if isinstance(key, (str, bytes, tuple)) and len(key) > 64:
                self.budget.operate(len(key) >> 6)  # equal ones that are not the same are compared to their ends
            target[_key(key)] = value

    # Memory.
    def do_memoize(self) -> None:
        self.memo[len(self.memo)] = self.top()

    def do_put(self, at: int) -> None:
        self.memo[at] = self.top()

    do_binput = do_long_binput = do_put

    def do_get(self, at: int) -> None:
        self.stack.append(self.memo[at])

    do_binget = do_long_binget = do_get

    # What would import and call.
    def do_global(self, argument: str) -> None:
        self.stack.append(Global(*argument.split(" ", 1)))

    def do_stack_global(self) -> None:
        name, module = self.pop(), self.pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise TypeError("it names a class by what is no name")
        self.stack.append(Global(module, name))

    def do_inst(self, argument: str) -> None:
        arguments = tuple(self.since_mark())
        self.stack.append(self.make(Global(*argument.split(" ", 1)), arguments))

    def do_obj(self) -> None:
        kind, *arguments = self.since_mark()
        self.stack.append(self.make(kind, tuple(arguments)))

    def do_reduce(self) -> None:
        arguments, kind = self.pop(), self.pop()
        self.stack.append(self.make(kind, arguments))

    do_newobj = do_reduce

    def do_newobj_ex(self) -> None:
        self.pop()
        self.do_reduce()

    def make(self, kind: Any, arguments: Any) -> Any:
        if not isinstance(arguments, tuple):
            raise TypeError("it calls with what are no arguments")
        if isinstance(kind, Global) and kind in self.construct:
            return self.construct[kind](*arguments)
        return Record(kind, arguments)

    def do_build(self) -> None:
        state, target = self.pop(), self.top()
        if isinstance(target, Record):
            target.state = state

    def do_persid(self, argument: str) -> None:
        self.stack.append(self.persistent(argument))

    def do_binpersid(self) -> None:
        self.stack.append(self.persistent(self.pop()))


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


def _steps() -> dict[bytes, tuple[Callable[[Any], Any] | None, Callable[..., None]]]:
    """How each operation's argument is read, and what it does."""
    steps = {}
    for opcode in pickletools.opcodes:
        name = opcode.name
        if name in _LITERALS:
            step: Any = _Machine.push
        elif name in _NOTHING:
            step = _Machine.do_nothing
        else:
            step = getattr(_Machine, f"do_{name.lower()}", None)
        if step is not None:
            steps[opcode.code.encode("latin-1")] = (opcode.arg.reader if opcode.arg else None, step)
    return steps


_STEPS = _steps()
