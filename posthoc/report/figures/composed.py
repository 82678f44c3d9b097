"""Charts on one another and beside each other.

Altair composes, too, but copies every part, with all that is in it, in each step, and holds every part against its schema
at each level again: of a page that is most of the time. Here a part becomes Vega-Lite once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

Spec = dict[str, Any]


@dataclass(frozen=True)
class Composed:
    """A composed chart as Vega-Lite, with its rows in `datasets`; the methods are those of Altair's charts."""

    spec: Spec

    def properties(self, **settings: Any) -> "Composed":
        """With a size, a title or a description."""
        return Composed(self.spec | {name: _plain(value) for name, value in settings.items()})

    def resolve_scale(self, **scales: str) -> "Composed":
        """With scales of channels that the parts share, or have each for itself."""
        return Composed(self.spec | {"resolve": {"scale": scales}})

    def add_params(self, *params: Spec) -> "Composed":
        """With parameters, as Vega-Lite has them."""
        return Composed(self.spec | {"params": [*self.spec.get("params", []), *params]})

    def to_dict(self) -> Spec:
        """The whole, its parts' parameters lifted to the top, where Vega-Lite wants those of composed charts: each once, a
        selection with the views that it is made in."""
        spec: Spec = _copied(self.spec)
        params: dict[str, Spec] = {}
        for k, part in enumerate(_parts(spec)):
            for param in part.pop("params", []):
                known = params.setdefault(param["name"], param)
                if "select" in param:
                    part["name"] = f"view_{k}"
                    known["views"] = [*known.get("views", []), part["name"]]
        return {"$schema": alt.SCHEMA_URL, **spec, **({"params": list(params.values())} if params else {})}


def layer(*parts: Any) -> Composed:
    """Charts on one another, the first below."""
    return _composed("layer", parts)


def vconcat(*parts: Any, spacing: int) -> Composed:
    """Charts below each other."""
    return _composed("vconcat", parts, spacing=spacing)


def concat(*parts: Any, columns: int, spacing: int) -> Composed:
    """Charts beside each other, on as many lines as they need."""
    return _composed("concat", parts, columns=columns, spacing=spacing)


def _composed(kind: str, parts: Sequence[Any], **settings: Any) -> Composed:
    specs: list[Spec] = []
    datasets: Spec = {}
    for part in parts:
        spec = dict(part.spec) if isinstance(part, Composed) else part.to_dict(validate=False)
        datasets |= spec.pop("datasets", {})
        specs.append({key: value for key, value in spec.items() if key not in ("$schema", "config")})
    return Composed({kind: specs, **settings, "datasets": datasets})


def _plain(value: Any) -> Any:
    return value.to_dict() if isinstance(value, alt.SchemaBase) else value


def _copied(node: Any) -> Any:
    """A copy whose objects can be changed, rows apart."""
    if isinstance(node, dict):
        return {key: value if key == "datasets" else _copied(value) for key, value in node.items()}
    return [_copied(value) for value in node] if isinstance(node, list) else node


def _parts(spec: Spec) -> Iterator[Spec]:
    """All parts of a chart, the innermost first, and the whole last."""
    for kind in ("layer", "vconcat", "concat"):
        for part in spec.get(kind, []):
            yield from _parts(part)
    yield spec
