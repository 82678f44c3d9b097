"""Runs side by side: the columns of a metrics.json or of a published table of epochs, brought into one form."""

import csv
import glob
import io
import json
import math
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from posthoc.analysis.arrays import FloatArray
from posthoc.analysis.axes import AXES
from posthoc.analysis.measures import MEASURES, advice, key_of, measure_called, of_epochs
from posthoc.analysis.nulls import description, words_of
from posthoc.analysis.origins import Checkpoint
from posthoc.analysis.protocol import Protocol
from posthoc.analysis.records import (
    PURE_NOISE,
    Aside,
    Correlation,
    Measured,
    NullWords,
    RunMetrics,
    Summary,
    best_of,
    keys_by_symbol,
    load_metrics,
    score_of,
)
from posthoc.analysis.summary import overall, summarise
from posthoc.errors import PosthocError, UsageError, meant
from posthoc.files import names_apart, open_regular

COLUMNS = {
    "epoch": "epoch", "accuracy": "val_acc", "loss": "val_loss", "hurst": "H_raw", "integration": "Heff",
    "metastability": "M",
}  # fmt: skip
"""What is read of a CSV, and the names of the columns in the files published with arXiv 2604.09716."""
NEEDED = ("epoch", "integration", "metastability")
CSV_BYTES = 2**27
CLASSES = {"cifar10": 10, "cifar100": 100, "imagenet": 1000, "mnist": 10, "svhn": 10}
"""How many classes a data set has, of those that the name of a published table may say."""
LEARNED = 0.25
"""A share that a run which doubles its accuracy reaches at the least, if it is of shares; in percent it would hardly learn."""
DOCUMENT_TOKENS = "document_tokens"
"""The field of how many tokens a document has, of runs over documents."""
OF_MEASURING = {
    "probe",
    "images",
    "samples",
    DOCUMENT_TOKENS,
    "classes",
    "scaling",
    "layers",
    "channels",
    "protocol",
    "accuracy_source",
    *(f.name for f in fields(Protocol)),
}
"""What of a run's record is not of its training but of how it was replayed and measured."""
NO_LABELS = "no labels"
"""What is recorded as the number of classes where there are none."""


@dataclass(frozen=True)
class Run:
    """One run's checkpoints but for the untrained ones, [E].

    when: the number of each, in the summary's unit; about: what was recorded of it (model, dataset, seed, images,
    classes, smooth, ...), to group by; columns: of every measure; measures: what is known of each over the run;
    probe_sha256: digest of the probe's samples, empty where it is not known.
    """

    name: str
    about: dict[str, Any]
    protocol: Protocol
    when: tuple[int, ...]
    columns: dict[str, FloatArray]
    measures: dict[str, Measured]
    nulls: dict[str, NullWords]
    summary: Summary
    probe_sha256: str = ""

    def column(self, measure: str) -> FloatArray:
        """A measure's values [E]; NaN throughout where the run does not have it."""
        return self.columns.get(measure, np.full(len(self.when), np.nan))

    @property
    def accuracy(self) -> FloatArray:
        """Accuracy, [E]."""
        return self.column("accuracy")

    @property
    def score(self) -> Measured | None:
        """What it is judged by: its accuracy, or another score; None where there is none."""
        return score_of(self.measures, self.summary)

    @property
    def best(self) -> float:
        """The best value of that; NaN where there is none."""
        return math.nan if self.score is None else best_of(self.score, self.column(self.summary.judged_by))

    @property
    def gain(self) -> FloatArray:
        """How well the network does, [E]: its score, with the sign turned where lower is better; NaN where there is none."""
        score = self.score
        if score is None:
            return np.full(len(self.when), np.nan)
        values = self.column(self.summary.judged_by)
        return -values if score.lower_is_better else values

    @property
    def related(self) -> dict[str, Correlation]:
        """The correlations of measures that it has."""
        aside = {key for key, measured in self.measures.items() if measured.aside}
        return {name: r for name, r in self.summary.correlations.items() if not aside & {r.first, r.second}}

    def noise(self, measure: str) -> float:
        """Mean of a measure of pure noise through the same protocol; NaN without nulls."""
        against = self.measures[measure].summary.nulls.get(PURE_NOISE) if measure in self.measures else None
        return math.nan if against is None else against.mean


def load_runs(places: Sequence[str]) -> list[Run]:
    """Read metrics files: paths, globs, or folders that hold them at any depth; named by what tells their paths apart.

    Raises PosthocError for a place without any.
    """
    return [as_run(load_metrics(path), name) for path, name in find_metrics(places)]


def find_metrics(places: Sequence[str]) -> list[tuple[Path, str]]:
    """The metrics files at these places, each once, with the name of its run; see `load_runs`."""
    paths: list[Path] = []
    for place in places:
        for path in _matching(place):
            inside = sorted(path.rglob("*metrics*.json")) if path.is_dir() else [path]
            if not inside:
                raise PosthocError(f"{path} holds no metrics.json; give what `posthoc metrics` wrote.")
            paths += inside
    paths = _once(paths)
    names = _distinct([Path(os.path.normpath(path.absolute())) for path in paths])
    return list(zip(paths, names, strict=True))


def load_csv(paths: Sequence[str], columns: Mapping[str, str] | None = None) -> list[Run]:
    """Read one run per CSV file of epochs.

    columns: our names (see COLUMNS) or symbols -> the file's. Integration and metastability are needed; an empty field is NaN.
    What a file's name says of model, data set and seed is recorded.
    """
    symbols = keys_by_symbol({key: MEASURES[key] for key in COLUMNS if key in MEASURES})
    mapped = {meant(key, COLUMNS, symbols): column for key, column in (columns or {}).items()}
    if unknown := sorted(set(mapped) - set(COLUMNS)):
        raise UsageError(f"No column is called {', '.join(unknown)}; map {', '.join(COLUMNS)}.")
    files = _once([match for place in paths for match in _matching(place)])
    return [
        _from_csv(path, COLUMNS | mapped, set(mapped), name) for path, name in zip(files, _distinct(files), strict=True)
    ]


def as_run(metrics: RunMetrics, name: str) -> Run:
    """A run's measures as one row of a comparison has them."""
    identity, provenance, protocol = metrics.recording.identity, metrics.recording.provenance, metrics.protocol
    stepped = {words.aside for words in metrics.nulls.values()}
    classes = identity.probe.classes
    labelled = classes is not None or identity.output.score == "classes"  # which early files say of all
    about = {
        "model": identity.model.architecture,
        "dataset": _label(provenance.dataset or provenance.probe),
        "probe": provenance.probe,
        "images": identity.probe.samples,
        "samples": provenance.samples,
        "classes": NO_LABELS if Aside.NEEDS_LABELS in stepped or not labelled else classes,
        "scaling": provenance.preparation,
        "layers": len(metrics.layers) or None,
        "channels": len(metrics.units) or None,
        "protocol": protocol.name,
        **{key: value for key, value in asdict(protocol).items() if key != "name"},
        "accuracy_source": metrics.summary.accuracy_source,
    }
    if tokens := metrics.input.tokens or identity.probe.preparation.get("context"):
        about[DOCUMENT_TOKENS] = _label(tokens)
    recorded = {key: value for key, value in provenance.settings.items() if key not in about}
    recorded |= {"recipe": provenance.recipe, "seed": provenance.training_seed}
    about |= {key: _label(value) for key, value in recorded.items() if value is not None}
    trained = metrics.trained
    return Run(
        name=name,
        about=about,
        protocol=protocol,
        when=tuple(at for at, kept in zip(metrics.when, trained, strict=True) if kept),
        columns={key: measured.value[trained] for key, measured in metrics.measures.items()},
        measures=metrics.measures,
        nulls=metrics.nulls,
        summary=metrics.summary,
        probe_sha256=metrics.input.probe_sha256,
    )


def _label(value: Any) -> Any:
    """What run.json recorded, to group by: whatever is no text and no number as text."""
    return value if isinstance(value, (str, int, float)) else json.dumps(value)


def _from_csv(path: Path, columns: Mapping[str, str], asked: set[str], name: str) -> Run:
    rows = _rows(path)
    header = list(rows[0]) if rows else []
    needed = [key for key in columns if key in NEEDED or key in asked]
    if missing := [f"{key} ({columns[key]})" for key in needed if columns[key] not in header]:
        raise PosthocError(
            f"{path} lacks the columns {', '.join(missing) if rows else 'of epochs'}; "
            f"it has {', '.join(map(str, header)) or 'no rows'}. Map them with --column integration=NAME."
        )
    values = {key: _numbers(path, rows, column) for key, column in columns.items()}
    epochs = values.pop("epoch")
    if not (np.abs(epochs) < 2**53).all():
        raise PosthocError(
            f"{path}: an epoch has no number, or none that can be counted; mend the column, or map another with --column epoch=NAME."
        )
    for epoch, count in Counter(epochs.tolist()).items():
        if count > 1 or not epoch.is_integer():
            why = "comes twice" if count > 1 else "is no whole number"
            raise PosthocError(
                f"{path}: epoch {epoch:g} {why}; give each row a number of its own, or map another column with --column epoch=NAME."
            )
    order = np.argsort(epochs)
    return from_columns(
        name, _about(path), epochs[order].astype(int).tolist(), {key: column[order] for key, column in values.items()}
    )


def from_columns(name: str, about: dict[str, Any], when: Sequence[int], columns: Mapping[str, FloatArray]) -> Run:
    """A run of the published protocol of which nothing is known but some measures' columns [E] and its epochs."""
    values = dict(columns)
    checkpoints = [Checkpoint(epoch, None, False, 0, {}) for epoch in when]
    protocol, axis = Protocol(), AXES["image"]
    values |= of_epochs(MEASURES, values, protocol, checkpoints)
    measures = {
        key: Measured(
            **description(MEASURES[key], axis),
            value=column,
            summary=overall(column, MEASURES[key].headline, MEASURES[key].limits, {}),
        )
        for key, column in values.items()
    }
    summary = summarise(values, checkpoints, protocol)
    return Run(name, about, protocol, tuple(when), values, measures, words_of(axis.key), summary)


def _about(path: Path) -> dict[str, Any]:
    """What a published file's name says of model, data set, seed and version."""
    parts = re.fullmatch(r"(.+?)_(cifar\d+|imagenet\w*?|mnist|svhn)(?:_seed(\d+))?(?:_(.*))?", path.stem)
    if parts is None:
        return {"model": path.stem}
    about: dict[str, Any] = {"model": parts[1], "dataset": parts[2]}
    about |= {"seed": int(parts[3])} if parts[3] else {}
    return about | ({"version": parts[4]} if parts[4] else {})


def _numbers(path: Path, rows: Sequence[Mapping[str, str]], column: str) -> FloatArray:
    values = []
    for line, row in enumerate(rows, start=2):
        text = (row.get(column) or "").strip()
        try:
            values.append(float(text) if text else math.nan)
        except ValueError:
            raise PosthocError(
                f"{path}, line {line}: {column} is {text!r}, not a number; mend it, or leave it empty."
            ) from None
    return np.array(values)


def _rows(path: Path) -> list[dict[str, str]]:
    with open_regular(path) as raw:
        if os.fstat(raw.fileno()).st_size > CSV_BYTES:
            raise PosthocError(
                f"{path} is larger than the {CSV_BYTES / 1e6:.0f} MB that a table of epochs may have; give a row for each epoch."
            )
        try:
            return list(csv.DictReader(io.TextIOWrapper(raw, "utf-8-sig", newline="")))
        except OSError as error:
            raise PosthocError(f"Cannot read {path}: {error.strerror or error}.") from error
        except (csv.Error, UnicodeDecodeError) as error:
            raise PosthocError(f"{path} is not a CSV file ({error}); save it as one, in UTF-8.") from error


def measured_of_all(runs: Sequence[Run], names: str, option: str) -> list[str]:
    """The keys of the measures of these names or symbols, commas between, or of `all`, that each of the runs has a value of.

    Raises UsageError, which begins with the option, for a name that no measure has, and for a measure that some run lacks,
    with what it would take.
    """
    shared = [key for key in runs[0].measures if all(np.isfinite(run.column(key)).any() for run in runs)]
    known = {key: measured for run in runs for key, measured in run.measures.items()}
    given = [] if names == "all" else [name.strip() for name in names.split(",")]
    wanted = dict.fromkeys(key_of(name, {**MEASURES, **known}) for name in given) if given else shared
    for name in wanted:
        if name in shared:
            continue
        if name not in known and not measure_called(name):
            if any(name in run.about for run in runs):
                raise UsageError(
                    f"{option} {name}: it is recorded of the runs, and no measure, nor a number of every run; leave it out."
                )
            raise UsageError(f"{option} {name}: there is no such measure; {advice(name, {**MEASURES, **known})}")
        raise UsageError(
            f"{option} {name}: not measured of all runs; of all there are {', '.join(shared)}. {_lacking(runs, name)}"
        )
    return list(wanted)


def _lacking(runs: Sequence[Run], key: str) -> str:
    """Why a run has no value of a measure, in a sentence."""
    run = next(run for run in runs if not np.isfinite(run.column(key)).any())
    if key not in run.measures:
        return f"Of {run.name} posthoc metrics --measures {key} was not asked for."
    return f"{run.name}: {run.measures[key].aside or 'it is undefined at every checkpoint'}."


def in_percent(accuracy: FloatArray) -> bool:
    """Whether accuracies [E] are in percent, and no shares of 1."""
    return bool(np.nanmax(accuracy, initial=0.0) > 1 + 1e-6)


def in_one_unit(runs: Sequence[Run]) -> list[Run]:
    """The runs with accuracies as shares of 1 where some have them so and others in percent; else as they are.

    Raises PosthocError for a run that never exceeds 1, beside others of its source in percent, where nothing tells which it is.
    """
    percent: dict[str, list[Run]] = {}
    for run in runs:
        if in_percent(run.accuracy):
            percent.setdefault(run.summary.accuracy_source, []).append(run)
    scaled = [
        in_percent(run.accuracy)
        or (run.summary.accuracy_source in percent and not _is_share(run, percent[run.summary.accuracy_source]))
        for run in runs
    ]
    judged = [of for of, run in zip(scaled, runs, strict=True) if np.isfinite(run.accuracy).any()]
    if len(set(judged)) < 2:
        return list(runs)
    return [_as_share(run) if of else run for of, run in zip(scaled, runs, strict=True)]


def _is_share(run: Run, percent: Sequence[Run]) -> bool:
    """Whether accuracies that never exceed 1 are shares, beside runs of the same source in percent.

    A run that collapsed to 1 % of a hundred classes looks like one that is right from the start, but for its loss.
    """
    known = run.accuracy[np.isfinite(run.accuracy)]
    low, high = np.min(known, initial=np.inf), np.max(known, initial=0.0)
    stuck = len(known) > 1 and low == high
    classes = run.about.get("classes")
    classes = classes if isinstance(classes, int) else CLASSES.get(str(run.about.get("dataset")))
    if stuck and high == 1:  # no run is right from the start
        return False
    if high == 0 or (classes and high / 100 < 0.5 / classes):  # in percent, it would be far below guessing
        return True
    if stuck:
        return False
    peers = [other for other in percent if other.about.get("dataset") == run.about.get("dataset")]
    losses = np.concatenate([other.column("loss") for other in peers]) if peers else np.empty(0)
    losses, loss = losses[np.isfinite(losses)], float(np.fmin.reduce(run.column("loss"), initial=np.inf))
    compared = len(losses) > 0 and math.isfinite(loss)
    learned = high >= max(2 * low, LEARNED) or (compared and loss <= losses.min())
    best = max((other.best for other in peers), default=math.inf)
    # As shares, it would be the best of all with a loss of the worst.
    untrue = compared and loss > np.quantile(losses, 0.9) and 100 * high > best
    if learned != untrue:
        return bool(learned)
    raise PosthocError(
        f"{run.name}: accuracies of {low:g} to {high:g} may be shares of 1 or percent, as those of {percent[0].name} are; "
        f"give those of all runs as shares."
    )


def _as_share(run: Run) -> Run:
    summary = replace(run.summary, best_accuracy=run.summary.best_accuracy / 100)
    return replace(run, columns={**run.columns, "accuracy": run.accuracy / 100}, summary=summary)


@dataclass(frozen=True)
class OtherScaling:
    """Two runs over one probe whose images were scaled otherwise: their names, and how each was scaled."""

    first: str
    first_scaling: str
    second: str
    second_scaling: str


def other_scaling(runs: Sequence[Run]) -> list[OtherScaling]:
    """Pairs of runs over one probe whose images were scaled otherwise."""
    first: dict[str, Run] = {}
    pairs = []
    for run in runs:
        before = first.setdefault(str(run.about.get("probe")), run)
        scaling, other = (str(each.about.get("scaling")) for each in (before, run))
        if scaling != other:
            pairs.append(OtherScaling(before.name, scaling, run.name, other))
    return pairs


def same_training(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Names of runs that say they are of one model, data set, seed and settings, however they were measured."""
    known: dict[tuple[tuple[str, str], ...], str] = {}
    pairs = []
    for run in runs:
        key = tuple(sorted((name, repr(value)) for name, value in run.about.items() if name not in OF_MEASURING))
        if run.about.get("seed") is not None:
            if key in known:
                pairs.append((known[key], run.name))
            known.setdefault(key, run.name)
    return pairs


def _once(paths: Sequence[Path]) -> list[Path]:
    """Each file once, however often and by whatever name it was given."""
    return list({path.resolve(): path for path in reversed(paths)}.values())[::-1]


def _matching(place: str) -> list[Path]:
    """The path itself where it is there, however it is spelt, else the paths of a glob, or of nothing."""
    if os.path.lexists(place):
        return [Path(place)]
    return sorted(Path(match) for match in glob.glob(place, recursive=True)) or [Path(place)]  # noqa: PTH207 - absolute too


def _distinct(paths: Sequence[Path]) -> list[str]:
    """What tells the paths apart, without their endings; a lone file's own folder or name."""
    plain = [path.with_suffix("") for path in paths]
    if len(plain) == 1 and plain[0].name == "metrics" and plain[0].parent.name:
        plain = [plain[0].parent]
    return names_apart(plain)
