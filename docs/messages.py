"""Every message that an error of posthoc carries, read from the code: of reference/errors.md and tests/test_messages.py."""

import ast
import contextlib
import functools
import importlib
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "posthoc"
FIELD = re.compile("‹([^›]*)›")
"""What stands for something that differs from time to time."""
SUBJECTS = {
    "Files that are read and written": ("files", "folders", "spool", "writing", "typed", "store",
        "soundness", "cli.inputs", "cli.exits", "cli.demo"),
    "Finding the checkpoints of a run": ("replay.layout", "replay.listing", "replay.meant", "replay.order", "replay.duplicates"),
    "Reading a checkpoint": ("replay.formats", "replay.weights", "replay.budget", "replay.source", "replay.marks", "replay.loading"),
    "Making the network": (
        "replay.models", "replay.recognition", "replay.configs", "replay.transformers", "replay.diffusers", "replay.adapters",
        "replay.usercode", "replay.untrained", "usercode",
    ),
    "The probe": ("replay.probes", "replay.padding"),
    "Replaying": (
        "replay.request", "replay.plan", "replay.layers", "replay.forward", "replay.network", "replay.outputs", "replay.pipeline",
        "replay.run", "replay.trial", "replay.dependence", "replay.controls", "replay.cost", "cli.extract",
    ),
    "Going on, and joining parts": ("parts", "shards", "stamps", "homes", "cli.merge"),
    "Checking a series": ("replay.series", "cli.check"),
    "Measuring": ("analysis.metrics", "analysis.protocol", "cli.metrics"),
    "A measure of your own": ("analysis.measures",),
    "Auditing": ("analysis.audit",),
    "Comparing runs": (
        "analysis.compare", "analysis.runs", "analysis.prediction", "analysis.stopping", "analysis.stopping_by",
        "analysis.sensitivity", "analysis.taxonomy", "cli.compare",
    ),
    "Reading results": ("analysis.records", "analysis.responses", "analysis.frames", "cli.inspect"),
    "Making pictures": ("report", "cli.report"),
    "On a cluster": ("cluster", "cli.submit"),
    "Arguments, series and fields from Python": ("api", "errors",
        "analysis.arrays", "analysis.axes", "analysis.dfa", "analysis.fluctuation", "analysis.fractional", "analysis.hurst",
        "analysis.kuramoto", "analysis.similarity",
    ),
}  # fmt: skip
"""What somebody was doing, and the modules that say then what is wrong."""


@dataclass(frozen=True)
class Message:
    """The text of an error with its fields as ‹words›; module: where it is raised, such as replay.order."""

    module: str
    line: int
    exit_code: int
    text: str

    @property
    def subject(self) -> str | None:
        """What somebody was doing."""
        return next(
            (title for title, homes in SUBJECTS.items() for home in homes if f"{self.module}.".startswith(f"{home}.")),
            None,
        )

    @property
    def passes_on(self) -> bool:
        """Whether it says nothing but what another message says."""
        return len(re.findall("[A-Za-z]{2,}", FIELD.sub("", self.text))) < 2


@functools.cache
def trees() -> dict[str, ast.Module]:
    """The package's modules by their names, parsed."""
    paths = sorted(PACKAGE.rglob("*.py"))
    names = [".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__") for path in paths]
    return {name: ast.parse(path.read_text()) for name, path in zip(names, paths, strict=True)}


@functools.cache
def exit_codes() -> dict[str, int]:
    """PosthocError and all classes made of it, with the exit codes that they end in."""
    classes = [node for tree in trees().values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    codes = {"PosthocError": 1}
    for _ in range(3):  # as deep as they are made of each other
        for node in classes:
            bases = [base.id for base in node.bases if isinstance(base, ast.Name) and base.id in codes]
            if bases:
                own = [
                    line.value
                    for line in node.body
                    if isinstance(line, ast.Assign) and line.targets[0].id == "exit_code"
                ]
                codes[node.name] = own[0].value if own else codes[bases[0]]
    return codes


def messages(values: bool = True) -> Iterator[Message]:
    """All of them, in the order of the files; values: constants as what they are, for which the modules are imported."""
    for module, tree in trees().items():
        for raised in (node for node in ast.walk(tree) if isinstance(node, ast.Raise)):
            call = raised.exc
            if isinstance(call, ast.Call) and getattr(call.func, "id", None) in exit_codes() and call.args:
                reader = _Reader(module, raised, values)
                of_stranger = call.func.id == "StrangerError"  # which says that a path is what it is given
                texts = (
                    (f"‹path› is {text}." for text in reader.texts(call.args[1]))
                    if of_stranger
                    else reader.texts(call.args[0])
                )
                for text in dict.fromkeys(texts):
                    yield Message(module, raised.lineno, exit_codes()[call.func.id], text)


@functools.cache
def _functions(module: str) -> list[ast.FunctionDef]:
    """Those of a module, methods included."""
    return [node for node in ast.walk(trees()[module]) if isinstance(node, ast.FunctionDef)]


@functools.cache
def _known(module: str) -> dict[str, ast.FunctionDef]:
    """By their names, those that a module takes from others of the package included."""
    result = {}
    for line in (node for node in trees()[module].body if isinstance(node, ast.ImportFrom)):
        other = (line.module or "").removeprefix("posthoc.")
        names = {alias.name for alias in line.names}
        result |= {node.name: node for node in (_functions(other) if other in trees() else ()) if node.name in names}
    return result | {node.name: node for node in _functions(module)}


class _Reader:
    """What expressions of one `raise` become as texts."""

    def __init__(self, module: str, raised: ast.Raise, values: bool) -> None:
        self.module, self.functions, self.values = module, _known(module), values
        around = [node for node in _functions(module) if node.lineno <= raised.lineno <= node.end_lineno]
        self.function = max(around, key=lambda node: node.lineno, default=None)

    def texts(self, value: ast.expr) -> list[str]:
        """The texts that an expression may be, with fields as ‹words›."""
        match value:
            case ast.Constant():
                return [str(value.value)]
            case ast.JoinedStr():
                return ["".join(parts) for parts in itertools.product(*map(self.texts, value.values))]
            case ast.FormattedValue(value=ast.IfExp(body=body, orelse=orelse)):
                return [text for branch in (body, orelse) for text in self._inner(branch)]
            case ast.FormattedValue():
                return self._inner(value.value)
            case ast.BinOp(op=ast.Add()):
                return [a + b for a in self.texts(value.left) for b in self.texts(value.right)]
            case ast.IfExp():
                return self.texts(value.body) + self.texts(value.orelse)
            case ast.Call(func=ast.Attribute(attr="rstrip", value=inner)):
                return self.texts(inner)
            case ast.Call(
                func=ast.Attribute(attr="join"), args=[ast.Call(func=ast.Name(id="filter"), args=[_, listed])]
            ):
                return self.texts(listed)
            case ast.List(elts=items):
                return [" ".join(self.texts(item)[0] for item in items)]
            case ast.Call(func=ast.Name(id=name)) | ast.Call(func=ast.Attribute(attr=name)) if name in self.functions:
                return self._returned(self.functions[name])
            case ast.Name(id=name) if self.function is not None and (given := self._assigned(name)):
                texts = [text for expression in given for text in self.texts(expression)]
                return [" ".join(texts)] if isinstance(given[0], ast.List) else texts
        return [f"‹{self.word(value)}›"]

    def _inner(self, value: ast.expr) -> list[str]:
        if isinstance(value, ast.Constant | ast.JoinedStr):
            return self.texts(value)
        names = [node.id for node in ast.walk(value) if isinstance(node, ast.Name)]
        if self.values and names and all(name.isupper() or name in ("map", "str") for name in names):
            scope = dict(vars(importlib.import_module(f"posthoc.{self.module}")))
            with contextlib.suppress(NameError):  # a name of the function itself
                return [str(eval(ast.unparse(value), scope))]
        return [f"‹{self.word(value)}›"]

    def _returned(self, function: ast.FunctionDef) -> list[str]:
        inside = self.function
        self.function = function
        returned = [
            node.value for node in ast.walk(function) if isinstance(node, ast.Return) and node.value is not None
        ]
        texts = [text for value in returned for text in self.texts(value)]
        self.function = inside
        return texts

    def _assigned(self, name: str) -> list[ast.expr]:
        """The texts that a name is given in the function."""
        nodes = [node for node in ast.walk(self.function) if isinstance(node, ast.Assign | ast.AugAssign)]
        places = [node.targets[0] if isinstance(node, ast.Assign) else node.target for node in nodes]
        given = [node.value for node, place in zip(nodes, places, strict=True) if getattr(place, "id", None) == name]
        return [value for value in given if isinstance(value, ast.JoinedStr | ast.Constant | ast.IfExp | ast.List)]

    def word(self, value: ast.expr) -> str:
        """What an expression is, in a word or two."""
        match value:
            case ast.Name(id="error" | "reason" | "damage") | ast.Attribute(attr="strerror" | "reason"):
                return "reason"
            case ast.Name(id=name):
                return name.strip("_").replace("_", " ").lower()
            case ast.Attribute(attr="name", value=ast.Name(id=name)) if name not in ("self", "asked"):
                return name
            case ast.Attribute(attr="name", value=ast.Attribute(attr=name)):
                return name
            case ast.Attribute(attr="__name__"):
                return "type"
            case ast.Attribute(attr=name):
                return name.strip("_").replace("_", " ")
            case ast.Call(func=ast.Name(id="error_line")):
                return "reason"
            case ast.Call(func=ast.Name(id="len")):
                return "n"
            case ast.Call(args=[*_, last]) if not isinstance(last, ast.Constant):
                return self.word(last)
            case ast.Call(args=[first, *_]) if not isinstance(first, ast.Constant):
                return self.word(first)
            case ast.Call(func=function):
                return self.word(function.value if isinstance(function, ast.Attribute) else function)
            case ast.BoolOp(values=[first, *_]) | ast.BinOp(left=first) | ast.Subscript(value=first):
                return self.word(first)
            case (
                ast.IfExp(body=first) | ast.GeneratorExp(elt=first) | ast.ListComp(elt=first) | ast.Starred(value=first)
            ):
                return self.word(first)
        return "it"
