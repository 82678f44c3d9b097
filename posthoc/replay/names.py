"""The numbers in checkpoints' names: which of them count epochs or steps, and which count something else."""

import bisect
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum


class Counts(Enum):
    """What a number in a name counts."""

    EPOCHS = "epoch"
    STEPS = "step"
    BATCHES = "batch"  # steps where an epoch stands beside it; alone it is rather the size of batches
    CHECKPOINTS = "checkpoint"  # epochs, where no other number could be meant
    RUNS = "run"  # tells runs apart
    MEASURES = "measure"
    UNKNOWN = "unknown"


EPOCHS = ("epoch", "epochs", "ep", "e")
STEPS = ("step", "steps", "iter", "iters", "iteration", "iterations", "it", "its", "update", "updates")
LONG = tuple(word for word in EPOCHS + STEPS if len(word) > 3)
"""Words that count as well where they end a longer one, as in globalstep."""
CHECKPOINTS = (
    "ckpt", "ckp", "cpt", "checkpoint", "chkpt", "chkpnt", "chk", "model", "net", "network", "weights", "state", "dict",
    "snapshot", "save", "saved", "pt", "pth", "tar",
)  # fmt: skip
RUNS = frozenset({
    "fold", "seed", "client", "subject", "subj", "sub", "task", "layer", "alpha", "hidden", "v", "ver", "version",
    "site", "rank", "worker", "shard", "part", "trial", "run", "lr", "rep", "split", "gpu", "stage", "exp",
    "experiment", "member", "ensemble", "agent", "node", "user", "patient", "cv", "group", "job",
})  # fmt: skip
MEASURES = frozenset({
    "loss", "acc", "accuracy", "val", "score", "auc", "map", "iou", "miou", "dice", "ppl", "perplexity", "err",
    "error", "bleu", "psnr", "ssim", "mse", "mae", "reward",
})  # fmt: skip
LIMITS = frozenset({
    "max", "num", "total", "n", "of", "per", "every", "warmup", "lr", "decay", "diffusion", "sampling", "ode", "inner",
    "local", "rollout", "unroll",
})  # fmt: skip
"""Words that make of epochs and steps a setting of the training: max_epochs, of_100, every_5_epochs."""
FILLERS = frozenset({"number", "num", "no", "nr", "end"})
"""What may stand between the word and its number: epoch_no_5."""

KEPT = frozenset({"best", "last", "latest", "final"})
"""What is called so is one of the checkpoints of a run."""

WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[^\W\d_A-Za-z]+")
NUMBER = re.compile(
    r"(?:(?<=[=:])-)?(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?(?:[kKmM](?![A-Za-z]))?"
)
DIGITS = r"[0-9]+(?:\.[0-9]+(?=[kKmM](?![A-Za-z])))?"
"""What # stands for in a form, of what is no measure: 1.5 of 1.5k is one number."""
NO_NUMBER = re.compile(r"(?<![A-Za-z])-?(?:nan|inf)(?![A-Za-z])", re.IGNORECASE)
"""What stands after a measure's name in place of a number."""
UNSIGNED_POWER = re.compile(r"([0-9]+)[eE][0-9]+")
YEAR, MONTH, DAY = "(?:19|20)[0-9]{2}", "(?:0[1-9]|1[0-2])", "(?:0[1-9]|[12][0-9]|3[01])"
DATE = re.compile(
    rf"(?<![0-9])(?:{YEAR}([-_.]?){MONTH}\1{DAY}|{DAY}([-_.]){MONTH}\2{YEAR})"
    r"(?:[-_T. ]*[0-2][0-9]([-_:.h]?)[0-5][0-9](?:\3[0-5][0-9])?)?(?![0-9])"
)
CLOCK = re.compile(r"1[0-9]{9}|1[0-9]{12}")
"""Seconds or milliseconds since 1970."""


@dataclass(frozen=True)
class Number:
    """A number in a name: where it stands, its value (None where it is not whole), what it counts and by which word.

    place: how many # stand before it in the form of the name, by which the numbers of names of one form are matched.
    """

    start: int
    end: int
    place: int
    value: int | None
    counts: Counts
    word: str


Column = tuple[int, ...] | None


@dataclass(frozen=True)
class Places:
    """Epochs and steps of several checkpoints, in their order, from one source; None where not all have one.

    sure: a word says which of the two is counted; otherwise epochs are assumed. where: the source, in words.
    """

    epochs: Column
    steps: Column
    sure: bool = True
    where: str = "in the names"

    @property
    def units(self) -> dict[str, tuple[int, ...]]:
        """The columns that there are, by what they count."""
        columns = {"epoch": self.epochs, "step": self.steps}
        return {unit: column for unit, column in columns.items() if column is not None}

    @property
    def positions(self) -> list[tuple[int, ...]]:
        """Of each checkpoint."""
        return list(zip(*self.units.values(), strict=True))

    @property
    def differ(self) -> bool:
        """Whether no two checkpoints have the same place."""
        return len(set(self.positions)) == len(self.positions) > 0

    @property
    def by(self) -> str:
        """What an order by these goes by, in words."""
        return f"by the {' and '.join(f'{unit}s' for unit in self.units)} {self.where}"


def numbers(name: str, dates: bool = True) -> list[Number]:
    """The numbers in a name without its ending; those of a date are none where `dates` are looked for.

    >>> [(number.value, number.counts.value) for number in numbers("net18_ep05_500k-iters_2024-01-31_val_acc=0.91")]
    [(18, 'checkpoint'), (5, 'epoch'), (500000, 'step'), (None, 'measure')]
    """
    rows = _rows(name, dates)
    starts = [start for start, _ in _marks(name, rows)]
    return [replace(row, place=bisect.bisect_right(starts, row.start) - 1) for row in rows]


def _rows(name: str, dates: bool) -> list[Number]:
    """The numbers in a name, whose places are not known yet."""
    spans = _spans(name, _dates(name) if dates else [])
    texts = [
        [match[0].lower() for match in WORD.finditer(name, start, end)]
        for (_, start), (end, _) in zip([(0, 0), *spans], [*spans, (len(name), 0)], strict=True)
    ]
    units = _units(texts, name, spans)
    lone = len(spans) == 1 and not any(texts)
    rows = []
    for k, (start, end) in enumerate(spans):
        text = name[start:end]
        unit = units[k]
        counts, word = (unit, "") if unit else _kind(texts, k, name, spans, lone)
        if counts is Counts.CHECKPOINTS and CLOCK.fullmatch(text):
            counts = Counts.UNKNOWN
        if counts is Counts.CHECKPOINTS and text[-1] in "kKmM":
            counts = Counts.STEPS
        rows.append(Number(start, end, 0, _value(text), counts, word))
    return rows


def _marks(name: str, rows: Sequence[Number]) -> list[tuple[int, int]]:
    """Where # stands in the form of a name: for every number, with its sign; a measure's is one however it is written."""
    measures = [(row.start, row.end) for row in rows if row.counts is Counts.MEASURES]
    for match in NO_NUMBER.finditer(name):
        words = [word.lower() for word in WORD.findall(name[: match.start()])]
        if words and words[-1] in MEASURES:
            measures.append(match.span())
    signed = [
        (start - (name[start - 1 : start] == "-" and name[start - 2 : start - 1] in ("_", "=", ":")), end)
        for start, end in measures
    ]
    others = [match.span() for match in re.finditer(rf"(?:(?<=[=:])-)?{DIGITS}", name)]
    apart = [(start, end) for start, end in others if not any(a < end and start < b for a, b in signed)]
    return sorted([*signed, *apart])


def counts(name: str) -> bool:
    """Whether a number in a name counts epochs, steps or checkpoints.

    >>> counts("step1000"), counts("main"), counts("seed2")
    (True, False, False)
    """
    return any(number.counts in (Counts.EPOCHS, Counts.STEPS, Counts.CHECKPOINTS) for number in numbers(name))


def is_count(name: str) -> bool:
    """Whether a name begins with a number or a word for what it counts, as a checkpoint's and not as a run's.

    >>> is_count("step1000-unsharded"), is_count("20"), is_count("resnet_ep200"), is_count("seed_2")
    (True, True, False, False)
    """
    first = next(iter(numbers(name)), None)
    words = [word.lower() for word in WORD.findall(name[: first.start])] if first else []
    return first is not None and all(
        word in ("global", *EPOCHS, *STEPS, *CHECKPOINTS, *FILLERS) or word.endswith(LONG) for word in words
    )


def is_of_a_run(name: str) -> bool:
    """Whether a name says which of a run's checkpoints it is of, without a number: best, last."""
    return not KEPT.isdisjoint(word.lower() for word in WORD.findall(name))


def place_of(name: str) -> frozenset[int]:
    """The numbers of epochs and steps that a name says by itself."""
    found = places([name])
    return frozenset(found.positions[0]) if found else frozenset()


def form(name: str, runs: bool = True) -> str:
    """The name with # for each number, which --select takes; numbers that tell `runs` apart stay where another counts.

    >>> form("tudui_29_gpu"), form("seed3_epoch12"), form("client_3"), form("epoch=1-reward=-3.5")
    ('tudui_#_gpu', 'seed3_epoch#', 'client_#', 'epoch=#-reward=#')
    >>> form("step_0.5k_seed2"), form("step_1k_seed2")
    ('step_#k_seed2', 'step_#k_seed2')
    >>> form("epoch=3-loss=0.34"), form("epoch=12-loss=nan"), form("epoch=40-loss=9.5e-05")
    ('epoch=#-loss=#', 'epoch=#-loss=#', 'epoch=#-loss=#')
    """
    rows = _rows(name, True)
    counting = runs and any(row.counts in (Counts.EPOCHS, Counts.STEPS, Counts.CHECKPOINTS) for row in rows)
    kept = [(row.start, row.end) for row in rows if counting and row.counts is Counts.RUNS]
    pieces, at = [], 0
    for start, end in _marks(name, rows):
        if not any(a <= start < b for a, b in kept):
            pieces += [as_glob(name[at:start]), "#"]
            at = end
    return "".join([*pieces, as_glob(name[at:])])


def runs_in(name: str) -> tuple[str, ...]:
    """The numbers in a name that tell runs apart, each with its word.

    >>> runs_in("seed3_epoch12_lr=0.1"), runs_in("epoch_1_ema")
    (('seed 3', 'lr 0.1'), ())
    """
    return tuple(f"{row.word} {name[row.start : row.end]}" for row in numbers(name) if row.counts is Counts.RUNS)


def places(names: Sequence[str], forced: bool = False) -> Places | None:
    """Epochs and steps by the numbers in names of one form, without their endings; None where that is not certain.

    A number counts where a word says so; where none does, one after a word for checkpoints or without any word, if no
    other number differs among the names; `forced`: the one that differs, whatever it follows.
    """
    rows = [{number.place: number for number in numbers(name, dates=not forced)} for name in names]
    shared = sorted(set.intersection(*(set(row) for row in rows)))
    columns = [[row[place] for row in rows] for place in shared]
    columns = [column for column in columns if not any(number.value is None for number in column)]
    if len(rows) == 1:  # model_160m alone is of 160 million parameters
        columns = [column for column in columns if not (column[0].word and names[0][column[0].end - 1] in "mM")]
    differing = [column for column in columns if len(rows) == 1 or len({number.value for number in column}) > 1]
    epochs = _only(columns, differing, Counts.EPOCHS)
    steps = _only(columns, differing, Counts.STEPS)
    if epochs and not steps:
        steps = _only(columns, differing, Counts.BATCHES)
    if any(column in differing for column in (epochs, steps)):
        return Places(_values(epochs), _values(steps), True)
    differing = [column for column in differing if column[0].counts is not Counts.MEASURES]
    if len(differing) != 1 or epochs or steps:
        return None
    counting = _is_of(differing[0], Counts.CHECKPOINTS)
    if len(rows) == 1:  # lenet_5 alone is no epoch 5
        counting = counting and differing[0][0].word in ("", *CHECKPOINTS)
    return Places(_values(differing[0]), None, False) if counting or forced else None


def why_uncertain(names: Sequence[str]) -> str:
    """Why `places` finds none in these names, as the end of a sentence."""
    rows = [{number.place: number for number in numbers(name, dates=False)} for name in names]
    shared = sorted(set.intersection(*(set(row) for row in rows)))
    differing = [place for place in shared if len({row[place].value for row in rows}) > 1]
    if not differing:
        pairs = list(zip(names, rows, strict=True))
        if any(len({name[row[place].start : row[place].end] for name, row in pairs}) > 1 for place in shared):
            return "the numbers that differ among the names are not whole"
        return "the names have no number that differs"
    if len(differing) > 1:
        return "several numbers differ among the names, and no word says which counts epochs or steps"
    word = rows[0][differing[0]].word
    return f"the number in the names follows {word!r}, no word for epochs or steps" if word else (
        "the number in the names has no word that says what it counts"
    )  # fmt: skip


def _values(column: Sequence[Number] | None) -> tuple[int, ...] | None:
    return None if column is None else tuple(number.value for number in column if number.value is not None)


def _is_of(column: Iterable[Number], counts: Counts) -> bool:
    return all(number.counts is counts for number in column)


def _only(columns: list[list[Number]], differing: list[list[Number]], counts: Counts) -> list[Number] | None:
    """The one column that counts this; of several the one that differs."""
    some = [column for column in columns if _is_of(column, counts)]
    if len(some) > 1:
        some = [column for column in some if column in differing]
    return some[0] if len(some) == 1 else None


def _dates(name: str) -> list[tuple[int, int]]:
    """Where dates stand; digits after a word for epochs or steps are none."""
    spans = []
    for match in DATE.finditer(name):
        words = [word.lower() for word in WORD.findall(name[: match.start()])]
        if not (match[0].isdigit() and words and _unit(words)):
            spans.append(match.span())
    return spans


def _spans(name: str, dates: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Where the numbers stand. 1e5 is one number after a word for steps, otherwise a number and an epoch."""
    spans, at = [], 0
    while match := NUMBER.search(name, at):
        start, end = match.span()
        date = next((date for date in dates if date[0] <= start < date[1]), None)
        if date:
            at = date[1]
            continue
        power = UNSIGNED_POWER.fullmatch(name, start, end)
        if power:
            around = [word.lower() for word in WORD.findall(name[:start])[-1:] + WORD.findall(name[end:])[:1]]
            if not any(_unit([word]) is Counts.STEPS for word in around):
                end = power.end(1)
        spans.append((start, end))
        at = end
    return spans


def _units(texts: list[list[str]], name: str, spans: list[tuple[int, int]]) -> list[Counts | None]:
    """Of each number whether a word beside it says epochs or steps, one that touches it first.

    texts: the words before, between and behind the numbers. Otherwise the word before a number names it, or else the one
    after it; the other way round where more numbers are named so (10_epochs_500_steps). No word names two numbers.
    """
    count = len(spans)
    before = [_unit(texts[k]) for k in range(count)]
    after = [_unit(texts[k + 1][:1], texts[k]) for k in range(count)]
    units: list[Counts | None] = [None] * count
    used: set[tuple[int, int]] = set()

    def name_by(side: list[Counts | None], shift: int, touching: bool = False) -> None:
        for k, (start, end) in enumerate(spans):
            word = (k + shift, 0 if shift else len(texts[k]) - 1)
            beside = name[end : end + 1] if shift else name[max(start - 1, 0) : start]
            if units[k] is None and side[k] and word not in used and (beside.isalpha() or not touching):
                units[k] = side[k]
                used.add(word)

    sides = [(before, 0), (after, 1)]
    for side, shift in sides:
        name_by(side, shift, touching=True)
    if sum(map(bool, after)) > sum(map(bool, before)):
        sides.reverse()
    for side, shift in sides:
        name_by(side, shift)
    return units


def _unit(words: Sequence[str], limits: Sequence[str] = ()) -> Counts | None:
    """Whether the last of the words says epochs or steps, and those before it do not make a setting of them."""
    words = list(words)
    while words and words[-1] in FILLERS:
        words.pop()
    if not words or {*words[-2:-1], *limits[-1:]} & LIMITS:
        return None
    word = words[-1]
    if word in EPOCHS or word.endswith(tuple(long for long in LONG if long in EPOCHS)):
        return Counts.EPOCHS
    return Counts.STEPS if word in STEPS or word.endswith(LONG) else None


def _kind(texts: list[list[str]], k: int, name: str, spans: list[tuple[int, int]], lone: bool) -> tuple[Counts, str]:
    """What a number counts that no word says to be epochs or steps, and the word before it that says so."""
    start, end = spans[k]
    words = texts[k]
    word = words[-1] if words else ""
    if word in MEASURES:
        return Counts.MEASURES, word
    if other := next((word for word in reversed(words) if word in RUNS), None):
        return Counts.RUNS, other
    beside = name[max(start - 1, 0) : start], name[end : end + 1]
    # 7b, or part of a digest; the second download of a file; a part of several
    if beside[1].isalpha() or beside == ("(", ")") or re.match(r"[-_ ]?of[-_ ]?[0-9]", name[end:]):
        return Counts.UNKNOWN, word
    if word in ("batch", "ba"):
        return Counts.BATCHES, word
    glued = beside[0].isalpha()
    if k and not words and name[spans[k - 1][0] - 1 : spans[k - 1][0]].isalpha() and texts[k - 1]:
        word, glued = texts[k - 1][-1], False  # resnet20_12: the 20 belongs to the word
    if lone or word in CHECKPOINTS or (not glued and word.endswith(("net", "model", "ckpt", "weights", "network"))):
        return Counts.CHECKPOINTS, word
    return Counts.UNKNOWN, word


def _value(text: str) -> int | None:
    """The number, where it is whole and not negative."""
    text = text.replace(",", "")
    factor = {"k": 1000, "m": 1_000_000}.get(text[-1].lower(), 1)
    digits = text.rstrip("kKmM")
    if digits.isdigit():
        return int(digits) * factor
    value = float(digits) * factor
    return int(value) if value.is_integer() and value >= 0 and not re.fullmatch(r"[0-9]+\.[0-9]+", text) else None


def as_glob(text: str) -> str:
    """A pattern that matches the text alone."""
    return re.sub(r"([*?\[])", r"[\1]", text)
