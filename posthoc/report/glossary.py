"""What symbols mean: the words of the measures and nulls of a run's own table, and where they stand in a text."""

import re
from collections.abc import Iterable

from markupsafe import Markup, escape

from posthoc.analysis.records import RunMetrics
from posthoc.report.words import related
from posthoc.shown import shown


class Glossary:
    """The symbols of all runs of a page with their definitions; each has a number, by which the page finds it."""

    def __init__(self, runs: Iterable[RunMetrics]) -> None:
        meanings: dict[str, dict[str, None]] = {}
        for metrics in runs:
            for measured in metrics.measures.values():
                named = "" if measured.title in (measured.symbol, measured.about) else f"{measured.title}: "
                meanings.setdefault(measured.symbol, {})[f"{named}{measured.about}"] = None
            for r in related(metrics):
                pair = " and ".join(metrics.measures[key].title for key in (r.first, r.second))
                meanings.setdefault(r.symbol, {})[f"Pearson correlation of {pair} over the run"] = None
            for null in metrics.nulls.values():
                meanings.setdefault(null.short, {})[f"null: {null.words}"] = None
        self.terms = {symbol: (k, "; or: ".join(texts)) for k, (symbol, texts) in enumerate(meanings.items())}
        symbols = sorted(
            (term for term in self.terms if not re.fullmatch(r"[a-z][a-z \-]*", term)), key=len, reverse=True
        )
        self._symbols = re.compile(
            rf"(?<![\w/.-])({'|'.join(map(re.escape, symbols))})(?![\w/-])" if symbols else r"(?!)"
        )

    def term(self, symbol: str) -> Markup:
        """A symbol as a button that shows its definition; other text as it is."""
        if symbol not in self.terms:
            return escape(shown(symbol))
        return Markup('<button type="button" class="term" data-term="term-{}" aria-describedby="term-{}">{}</button>').format(
            self.terms[symbol][0], self.terms[symbol][0], shown(symbol)
        )  # fmt: skip

    def marked(self, text: str) -> Markup:
        """A text in which each symbol, where it stands first, is such a button; words such as loss are left as they are, and
        what stands between backticks is code."""
        parts: list[Markup] = []
        met: set[str] = set()
        end = 0
        for match in self._symbols.finditer(text):
            if match[0] not in met:
                met.add(match[0])
                parts += [escape(shown(text[end : match.start()])), self.term(match[0])]
                end = match.end()
        whole = Markup("").join([*parts, escape(shown(text[end:]))])
        return Markup(
            re.sub(r"`([^`<>]+)`", r"<code>\1</code>", str.__str__(whole))
        )  # of Markup it would escape the tags

    @property
    def entries(self) -> list[tuple[str, str, str]]:
        """Symbol, its place on the page, and its definition."""
        return [(symbol, f"term-{k}", text) for symbol, (k, text) in self.terms.items()]
