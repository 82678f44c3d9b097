"""Runs side by side: the columns of a metrics.json or of a published table of epochs, brought into one form."""

import csv
import glob
import io
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from posthoc.analysis.intervals import correlation_over_epochs, mean_over_epochs
from posthoc.analysis.measures import correlation, mean_finite, sd_finite, stability_index, unevenness, z_scores
from posthoc.analysis.records import RunMetrics, counted, load_metrics
from posthoc.analysis.verdicts import verdict
from posthoc.errors import PosthocError, UsageError
from posthoc.files import names_apart, open_regular

FloatArray = NDArray[np.float64]
COLUMNS = {"epoch": "epoch", "accuracy": "val_acc", "loss": "val_loss", "hurst": "H_raw", "h_eff": "Heff", "m": "M"}
"""What is read of a CSV, and the names of the columns in the files published with arXiv 2604.09716."""


CSV_BYTES = 2**27


@dataclass(frozen=True)
class Run:
    """One run's epochs, the untrained left out, [E] each, NaN where unknown.

    when: the number of each, in `unit`; about: what was recorded of it (model, dataset, seed, images, classes, smooth, ...); nulls: null -> measure -> its
    mean over epochs and in how many of them the measure differs from it; uneven: why the epochs are no series in time, where they are not;
    doubt: why its images were probably not scaled as in training.
    """

    name: str
    about: dict[str, Any]
    when: tuple[int, ...]
    accuracy: FloatArray
    loss: FloatArray
    hurst: FloatArray
    h_eff: FloatArray
    m: FloatArray
    w_h: float = 0.5
    window: int = 3
    nulls: dict[str, Any] = field(default_factory=dict)
    draws: int = 0
    unit: str = "epoch"
    uneven: str = ""
    doubt: str | None = None

    @property
    def psi(self) -> FloatArray:
        """The stability index with z-scores over the whole run."""
        return stability_index(self.h_eff, self.m, self.w_h)

    @property
    def summary(self) -> dict[str, float]:
        """The published table's columns, over the epochs with an integration; M over all epochs."""
        best = int(np.nanargmax(self.accuracy)) if np.isfinite(self.accuracy).any() else None
        psi = self.psi
        return {
            "epochs": len(self.when),
            "epochs_with_h_eff": int(np.isfinite(self.h_eff).sum()),
            "best_accuracy": math.nan if best is None else float(self.accuracy[best]),
            "best_epoch": math.nan if best is None else self.when[best],
            "h_eff": mean_finite(self.h_eff),
            "h_eff_sd": sd_finite(self.h_eff),
            "m": mean_finite(self.m),
            "psi": mean_finite(psi),
            "psi_sd": sd_finite(psi),
            "r_fields": correlation(z_scores(self.h_eff), z_scores(self.m)),
            "r_accuracy": correlation(psi, self.accuracy),
        }

    def interval(self, name: str) -> tuple[float, float]:
        """95 % interval of `h_eff`, `m` (means), `r_fields` or `r_accuracy` over further epochs; see `intervals`."""
        if name in ("h_eff", "m"):
            low, high = mean_over_epochs(self.h_eff if name == "h_eff" else self.m)
            return float(np.clip(low, 0, 1)), float(np.clip(high, 0, 1))  # neither measure can leave 0 to 1
        if name == "r_fields":
            return correlation_over_epochs(self.h_eff, self.m)
        return correlation_over_epochs(self.psi, self.accuracy)

    def differs(self, key: str) -> bool | None:
        """Whether a measure (`hurst`, `metastability`) differs from its deciding null in most epochs.

        None where that null was not drawn, or too few times to say.
        """
        result = verdict({"nulls": self.nulls, "draws": self.draws}, str(self.about.get("axis", "image")), key)
        return result.mostly if result else None

    def noise(self, measure: str) -> float:
        """Mean of `integration` or `metastability` of pure noise through the same protocol; NaN without nulls."""
        value = self.nulls.get("white", {}).get(measure, {}).get("null_mean")
        return math.nan if value is None else float(value)


def load_runs(places: Sequence[str]) -> list[Run]:
    """Read metrics files: paths, globs, or folders that hold them at any depth; named by what tells their paths apart.

    Raises PosthocError for a place without any.
    """
    return [as_run(load_metrics(path), name) for path, name in find_metrics(places)]


def find_metrics(places: Sequence[str]) -> list[tuple[Path, str]]:
    """The metrics files at these places, each once, with the name of its run; see `load_runs`."""
    paths: list[Path] = []
    for place in places:
        found = _matching(place)
        for path in found:
            inside = sorted(path.rglob("*metrics*.json")) if path.is_dir() else [path]
            if not inside:
                raise PosthocError(f"{path} holds no metrics.json; give what `posthoc metrics` wrote.")
            paths += inside
    paths = _once(paths)
    names = _distinct([Path(os.path.normpath(path.absolute())) for path in paths])
    return list(zip(paths, names, strict=True))


def load_csv(paths: Sequence[str], columns: Mapping[str, str] | None = None) -> list[Run]:
    """Read one run per CSV file of epochs; `columns` maps our names (see COLUMNS) to the file's.

    Integration and metastability are needed; an empty field is NaN. What a file's name says of model, data set and
    seed is recorded.
    """
    asked = set(columns or ())
    columns = {**COLUMNS, **(columns or {})}
    unknown = asked - set(COLUMNS)
    if unknown:
        raise UsageError(f"No column is called {', '.join(sorted(unknown))}; map {', '.join(COLUMNS)}.")
    files = _once([match for place in paths for match in _matching(place)])
    return [_from_csv(path, columns, asked, name) for path, name in zip(files, _distinct(files), strict=True)]


def as_run(metrics: RunMetrics, name: str) -> Run:
    """A run's measures as one row of a comparison has them."""
    identity, provenance = metrics.recording.identity, metrics.recording.provenance
    protocol = metrics.protocol
    trained = ~metrics.column("untrained").astype(bool)
    unit, when = counted(metrics.epochs)
    about = {
        "model": identity.model.architecture,
        "dataset": _label(provenance.dataset or provenance.probe),
        "probe": provenance.probe,
        "images": identity.probe.samples,
        "classes": identity.probe.classes,
        "scaling": provenance.preparation,
        "protocol": protocol.name,
        **{key: value for key, value in asdict(protocol).items() if key != "name"},
        "accuracy_source": metrics.summary.get("accuracy_source"),
    }
    said = {"recipe": provenance.recipe, "seed": provenance.training_seed}
    about |= {name: _label(value) for name, value in said.items() if value is not None}
    return Run(
        name=name,
        about=about,
        when=tuple(at for at, own in zip(when, trained, strict=True) if own),
        unit=unit,
        accuracy=metrics.column("accuracy")[trained],
        loss=metrics.column("loss")[trained],
        hurst=metrics.column("hurst")[trained],
        h_eff=metrics.column("integration")[trained],
        m=metrics.column("metastability")[trained],
        w_h=protocol.w_h,
        window=protocol.window,
        nulls=metrics.summary.get("nulls", {}),
        draws=metrics.summary.get("draws", 0),
        uneven=unevenness(
            *([getattr(one, key) for one in metrics.epochs if not one.untrained] for key in ("step", "epoch"))
        ),
        doubt=metrics.summary.get("doubt"),
    )


def _label(value: Any) -> Any:
    """What run.json recorded, to group by: whatever is no text and no number as text."""
    return value if isinstance(value, (str, int, float)) else json.dumps(value)


def _from_csv(path: Path, columns: Mapping[str, str], asked: set[str], name: str) -> Run:
    rows = _rows(path)
    there = list(rows[0]) if rows else []
    missing = [f"{ours} ({theirs})" for ours, theirs in columns.items() if theirs not in there]
    needed = [
        f"{ours} ({columns[ours]})" for ours in {"epoch": 0, "h_eff": 0, "m": 0} | dict.fromkeys(sorted(asked), 0)
    ]
    if not rows or set(missing) & set(needed):
        raise PosthocError(
            f"{path} lacks the columns {', '.join(one for one in missing if one in needed) or 'of epochs'}; "
            f"it has {', '.join(map(str, there)) or 'no rows'}. Map them with --column h_eff=NAME."
        )

    def column(key: str) -> FloatArray:
        values = []
        for number, row in enumerate(rows, start=2):
            text = (row.get(columns[key]) or "").strip()
            try:
                values.append(float(text) if text else math.nan)
            except ValueError:
                raise PosthocError(f"{path}, line {number}: {columns[key]} is {text!r}, not a number.") from None
        return np.array(values)

    said = re.fullmatch(r"(.+?)_(cifar\d+|imagenet\w*?|mnist|svhn)(?:_seed(\d+))?(?:_(.*))?", path.stem)
    about: dict[str, Any] = {"model": said[1], "dataset": said[2]} if said else {"model": path.stem}
    if said and said[3]:
        about["seed"] = int(said[3])
    if said and said[4]:
        about["version"] = said[4]
    epochs = column("epoch")
    if not (np.abs(epochs) < 2**53).all():
        raise PosthocError(f"{path}: an epoch has no number, or none that can be counted.")
    return Run(
        name=name,
        about=about,
        when=tuple(int(epoch) for epoch in epochs),
        accuracy=column("accuracy"),
        loss=column("loss"),
        hurst=column("hurst"),
        h_eff=column("h_eff"),
        m=column("m"),
        uneven=unevenness([None] * len(epochs), [int(epoch) for epoch in epochs]),
    )


def _rows(path: Path) -> list[dict[str, str]]:
    with open_regular(path) as raw:
        if os.fstat(raw.fileno()).st_size > CSV_BYTES:
            raise PosthocError(f"{path} is larger than the {CSV_BYTES / 1e6:.0f} MB that a table of epochs may have.")
        try:
            return list(csv.DictReader(io.TextIOWrapper(raw, "utf-8-sig", newline="")))
        except OSError as error:
            raise PosthocError(f"Cannot read {path}: {error.strerror or error}.") from error
        except (csv.Error, UnicodeDecodeError) as error:
            raise PosthocError(f"{path} is not a CSV file ({error}).") from error


def in_one_unit(runs: Sequence[Run]) -> list[Run]:
    """The runs with accuracies as shares of 1 where some have them so and others in percent; else as they are."""
    percent = [bool(np.nanmax(run.accuracy, initial=0.0) > 1.5) for run in runs]
    if all(percent) or not any(percent):
        return list(runs)
    return [
        replace(run, accuracy=run.accuracy / 100) if large else run for run, large in zip(runs, percent, strict=True)
    ]


def other_scaling(runs: Sequence[Run]) -> list[tuple[str, str, str, str]]:
    """Pairs of runs over one probe whose images were scaled otherwise: two names, and how each was scaled."""
    first: dict[str, Run] = {}
    pairs = []
    for run in runs:
        before = first.setdefault(str(run.about.get("probe")), run)
        theirs, ours = (str(one.about.get("scaling")) for one in (before, run))
        if theirs != ours:
            pairs.append((before.name, theirs, run.name, ours))
    return pairs


def same_training(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Names of runs that say they are of one model, data set and seed."""
    known: dict[tuple[Any, ...], str] = {}
    pairs = []
    for run in runs:
        key = tuple(run.about.get(name) for name in ("model", "dataset", "seed", "recipe"))
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
