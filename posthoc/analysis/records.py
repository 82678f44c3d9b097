"""What travels between the analysis and its readers: a run's measures, and metrics.json (version 2).

A metrics.json says everything that its readers need: the names of its measures, nulls and axis, and the words for them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray

from posthoc import __version__
from posthoc.analysis.arrays import FloatArray
from posthoc.analysis.choice import Choice
from posthoc.analysis.geometry import ByLayer, Locking, Representation
from posthoc.analysis.health import Symptom
from posthoc.analysis.origins import AxisWords, Checkpoint, Code, Input, Unit, trained
from posthoc.analysis.protocol import Protocol
from posthoc.analysis.stored import Fluctuation, plain
from posthoc.analysis.weights import WeightPath
from posthoc.errors import PosthocError, Suggesting, meant, nearest
from posthoc.files import write_json
from posthoc.recording import Recording
from posthoc.shown import counted
from posthoc.typed import Array, Range, Shape, read_typed

if TYPE_CHECKING:
    import pandas
    import xarray
    from altair import TopLevelMixin

    from posthoc.analysis.measures.measure import Measure

FORMAT = "posthoc-metrics"
FORMAT_VERSION = 2
ALWAYS = "accuracy"
"""The measure that every file has."""
CORRELATIONS = {
    "integration_metastability": ("r(Hz, Mz)", "integration_z", "metastability_z"),
    "stability_index_accuracy": ("r(Psi, acc)", "stability_index", "accuracy"),
}
"""Those between measures that a file has if it has the first: symbol, and the two measures."""
WAYS = {"retrospective": "volatility", "causal": "volatility_causal"}
"""In which ways volatility settles, and the measure that it is each time."""
PURE_NOISE = "white"
"""The null that is pure noise."""
Interval = tuple[float, float]
NOWHERE: Interval = (math.nan, math.nan)
Column = Annotated[FloatArray, Array(("E",), full=True)]
"""One number for every checkpoint, NaN where there is none."""
Optional = Annotated[FloatArray, Array(("E",))]
"""As a column, or empty."""
_NO_COLUMN, _NO_TABLE = (partial(np.empty, (0,) * dimensions) for dimensions in (1, 2))


class Aside(StrEnum):
    """Why something that most runs have steps aside in a run."""

    NEEDS_LABELS = "needs labels"
    SCORED_OTHERWISE = "the outputs are scored otherwise"
    NOT_SCORED = "no output is scored"
    NOT_FINITE = "what the network gives is not finite"
    NEEDS_LOGITS = "needs the scores of the classes, which are kept of classifiers of up to 1,000 classes"
    NEEDS_PREDICTIONS = "needs a predicted class of each sample"
    NOT_REPLAYED = "needs extract --controls"
    NEEDS_SAMPLES = "needs 20 samples or more"
    NEEDS_FEATURES = "needs what the last layer is given, which posthoc extract --features keeps"
    NEEDS_WEIGHTS = "needs the weights, which a file that is extracted anew keeps"
    NEEDS_SPECTRA = "needs the spectra of the weights, which posthoc extract --spectra keeps"
    NEEDS_BETWEEN = "needs the loss between two checkpoints, which posthoc extract --between keeps"
    NEEDS_AVERAGES = "needs the loss of the mean of so many checkpoints, which posthoc extract --average keeps"
    NEEDS_UNTRAINED = "needs an untrained network: a checkpoint of step 0, or those of posthoc extract --untrained"


@dataclass(frozen=True)
class NullWords:
    """A null: what its redrawn data are, and what it redraws, for a legend; aside: why it cannot be drawn in this run;
    value: what a measure is under it, where that is no measurement of redrawn data."""

    words: str
    short: str
    aside: Aside | None = None
    value: str = ""


@dataclass(frozen=True, eq=False)
class Beside:
    """A measure beside one null at every checkpoint: mean and standard deviation of the draws, z, two-sided p, the range
    of the middle 95 % of the draws, and how many there were (0 where none, or in files that do not say)."""

    mean: Column
    sd: Column
    z: Column
    p: Column
    low: Column
    high: Column
    draws: Annotated[NDArray[np.int64], Array(("E",), whole=True, full=True)]


@dataclass(frozen=True)
class Against:
    """A measure against one null over the run: the null's mean, in how many checkpoints the measure differs, and in how
    many draws are wanting to tell, of how many; the most draws of any checkpoint; whether this null decides."""

    mean: float
    differs: int
    wanting: int
    epochs: int
    draws: int
    decides: bool


@dataclass(frozen=True)
class Overall:
    """A measure over the trained checkpoints: mean, sd (ddof 1), the 95 % interval of the mean over further checkpoints
    (of headline measures), how many have a value, and what its nulls say."""

    mean: float = math.nan
    sd: float = math.nan
    low: float = math.nan
    high: float = math.nan
    count: int = 0
    nulls: dict[str, Against] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Measured:
    """One measure of a run: how it is called, its value [E] with the ends of its 95 % interval, and its nulls.

    symbol ... lower_is_better, looks_ahead, code: see `measures.Measure`, None where the file does not say; decided_by: the null that decides, empty where none does;
    function_of: the measure that it is a function of; aside: why it has no value in this run. low, high: empty where it has no interval; sd: over the units, where it is their
    mean; by_layer: of each layer by itself, with its interval and p where the axis has them; by_unit: of every unit as
    measured.
    """

    symbol: str
    title: str
    value: Column
    about: str = ""
    digits: Annotated[int, Range(0, 12)] = 4
    limits: tuple[float, float] = NOWHERE
    headline: bool = False
    listed: bool = True
    decided_by: str = ""
    function_of: str = ""
    lower_is_better: bool | None = None
    looks_ahead: bool | None = None
    aside: Aside | None = None
    code: Code | None = None
    low: Optional = field(default_factory=_NO_COLUMN)
    high: Optional = field(default_factory=_NO_COLUMN)
    sd: Optional = field(default_factory=_NO_COLUMN)
    by_layer: ByLayer = field(default_factory=_NO_TABLE)
    by_layer_low: ByLayer = field(default_factory=_NO_TABLE)
    by_layer_high: ByLayer = field(default_factory=_NO_TABLE)
    by_layer_p: ByLayer = field(default_factory=_NO_TABLE)
    by_unit: Annotated[FloatArray, Array(("E", "U"))] = field(default_factory=_NO_TABLE)
    nulls: dict[str, Beside] = field(default_factory=dict)
    summary: Overall = field(default_factory=Overall)


@dataclass(frozen=True)
class Correlation:
    """Pearson r of two measures over the trained checkpoints, and its 95 % interval over further ones."""

    symbol: str
    first: str
    second: str
    r: float
    low: float
    high: float


@dataclass(frozen=True)
class Settles:
    """In which share of series that do not converge volatility settles, and by when in half of those."""

    share: float
    median: int | None


@dataclass(frozen=True)
class Summary:
    """A run in one row: what relates its trained checkpoints to each other. Of single measures, see `Measured.summary`.

    unit: what checkpoints are counted in; convergence: when volatility has stayed below the threshold, `retrospective`,
    with z-scores over the whole run, which look into the future, and `causal`, with what was known at each checkpoint;
    best_epoch: of what the run is judged by, the measure judged_by: accuracy, or another score where there is none;
    uneven: why there is no volatility, where that is; settling: kind of series -> way -> how often and how early it
    would settle on series that do not converge; draws: of a deciding null, at the least; doubt: why the probe was
    probably not prepared as in training.
    """

    unit: Annotated[str, Literal["epoch", "step", "checkpoint"]]
    epochs: int
    best_accuracy: float
    best_epoch: int | None
    accuracy_source: str
    convergence: dict[str, int | None]
    correlations: dict[str, Correlation]
    uneven: str = ""
    settling: dict[str, dict[str, Settles]] = field(default_factory=dict)
    draws: int = 0
    seed: int = 0
    doubt: str | None = None
    judged_by: str = "accuracy"

    @property
    def noun(self) -> str:
        """What its checkpoints are called where they are counted."""
        return "epoch" if self.unit == "epoch" else "checkpoint"


def keys_by_symbol(measures: "Mapping[str, Measure | Measured]") -> dict[str, str]:
    """The keys of measures by their symbols; the first of those that have the same."""
    return {of.symbol: key for key, of in reversed(list(measures.items()))}


def psi_with(symbol: str) -> str:
    """Under which name a summary has the correlation of the stability index with a score.

    >>> psi_with("accuracy"), psi_with("reconstruction error")
    ('stability_index_accuracy', 'stability_index_reconstruction_error')
    """
    return f"stability_index_{symbol.replace(' ', '_')}"


def score_of(measures: Mapping[str, Measured], summary: Summary) -> Measured | None:
    """What a run is judged by; None where it has no score."""
    return measures.get(summary.judged_by) if summary.best_epoch is not None else None


def best_of(score: Measured, values: FloatArray) -> float:
    """The best of a score's values, of which one at least is finite."""
    return float(np.nanmin(values) if score.lower_is_better else np.nanmax(values))


@dataclass(frozen=True)
class RunMetrics(Suggesting):
    """All measures of one run over its checkpoints E.

    measures: by key, see `Measured`; units: what the rows of `Measured.by_unit` are (none on an axis whose units are no
    part of a layer); phase_locking, representation: between and of the layers; fluctuation: the curves behind the
    exponents of every checkpoint; weights: their paths by layer, and of all; skipped: checkpoints that were left out, and
    why; health: what went wrong in training, worst first; choice: which checkpoint is best, None where the losses of
    samples are not known. A field that files of earlier versions do not have needs a default.
    """

    protocol: Protocol
    axis: AxisWords
    scales: tuple[int, ...]
    input: Input
    layers: Annotated[tuple[str, ...], Shape(("L",))]
    units: Annotated[tuple[Unit, ...], Shape(("U",))]
    checkpoints: Annotated[tuple[Checkpoint, ...], Shape(("E",), least=1)]
    nulls: dict[str, NullWords]
    measures: dict[str, Measured]
    summary: Summary
    representation: Representation
    phase_locking: Locking = field(default_factory=Locking)
    fluctuation: Annotated[tuple[Fluctuation, ...], Shape(("E",))] = ()
    weights: dict[str, WeightPath] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    health: tuple[Symptom, ...] = ()
    choice: Choice | None = None
    versions: dict[str, str] = field(default_factory=dict)
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    @property
    def recording(self) -> Recording:
        """What was replayed, and how."""
        return self.input.recording

    @property
    def at_start(self) -> str:
        """What the network of step 0 is: of adapters the base, which was trained before."""
        return "before fine-tuning" if self.recording.provenance.adapters else "untrained"

    @property
    def trained(self) -> NDArray[np.bool_]:
        """Which checkpoints are not controls, [E]."""
        return trained(self.checkpoints)

    @property
    def when(self) -> list[int]:
        """The number of every checkpoint in the summary's unit: its epoch or step, or its place."""
        if self.summary.unit == "checkpoint":
            return list(range(len(self.checkpoints)))
        return [getattr(checkpoint, self.summary.unit) for checkpoint in self.checkpoints]

    @property
    def score(self) -> Measured | None:
        """What the run is judged by: its accuracy, or another score; None where there is none."""
        return score_of(self.measures, self.summary)

    @property
    def best(self) -> float:
        """The best value of that over the trained checkpoints; NaN where there is none."""
        return math.nan if self.score is None else best_of(self.score, self.score.value[self.trained])

    def column(self, measure: str) -> FloatArray:
        """A measure's value at every checkpoint.

        Parameters
        ----------
        measure
            Its name, as `posthoc.list_measures` gives it, or its symbol.

        Returns
        -------
        numpy.ndarray
            [E], NaN where it is undefined.

        Raises
        ------
        PosthocError
            Where the run has no such measure.
        """
        return self._measured(measure).value

    def null(self, null: str, measure: str, name: str = "mean") -> FloatArray:
        """One number of a measure beside a null at every checkpoint.

        Parameters
        ----------
        null
            Its name, as `posthoc.list_nulls` gives it.
        measure
            The measure's name or symbol.
        name
            `mean`, `sd`, `low`, `high`, `p` or `draws`.

        Returns
        -------
        numpy.ndarray
            [E], NaN where the null is not drawn for that measure.

        Raises
        ------
        PosthocError
            For names that are not there.
        """
        nulls, known = self._measured(measure).nulls, [item.name for item in fields(Beside)]
        if null not in self.nulls:
            raise PosthocError(f"There is no null {null!r} here; {nearest(null, self.nulls)}")
        if name not in known:
            raise PosthocError(f"There is no number {name!r} of a null; {nearest(name, known)}")
        if null not in nulls:
            return np.full(len(self.checkpoints), np.nan)
        return np.asarray(getattr(nulls[null], name), dtype=float)

    def _measured(self, measure: str) -> Measured:
        symbols = keys_by_symbol(self.measures)
        if (key := meant(measure, self.measures, symbols)) not in self.measures:
            raise PosthocError(f"There is no measure {measure!r} here; {nearest(measure, self.measures, symbols)}")
        return self.measures[key]

    def _spellings(self) -> Mapping[str, str]:
        return {key: f"column({key!r})" for key in self.__dict__.get("measures", {})}

    def chart(self, name: str, epoch: int | None = None) -> "TopLevelMixin":
        """A figure of the report (extra `report`).

        Parameters
        ----------
        name
            As `posthoc report --list` gives it.
        epoch
            Of figures of one epoch (default: last).

        Returns
        -------
        altair.TopLevelMixin

        Raises
        ------
        PosthocError
            For a name that is not there, or a figure that this run has nothing for.
        """
        from posthoc.report.figures import chart

        return chart(self, name, epoch)

    def to_dict(self) -> dict[str, Any]:
        """The content of metrics.json: plain values, NaN as None."""
        header = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "created_by": f"posthoc {self.versions.get('posthoc', __version__)}",
        }
        content: dict[str, Any] = plain(self)
        return header | content

    def save(self, path: str | PathLike[str]) -> None:
        """Write metrics.json.

        Parameters
        ----------
        path
            Where; a file that is there is replaced.
        """
        write_json(path, self.to_dict())

    def save_csv(self, path: str | PathLike[str]) -> None:
        """Write one row per checkpoint, with an empty field where a measure is undefined.

        Parameters
        ----------
        path
            Where; a file that is there is replaced.
        """
        from posthoc.analysis.frames import save_csv

        save_csv(self, Path(path))

    def flat(self) -> dict[str, list[Any]]:
        """Every number of every checkpoint as columns [E]: `integration`, `integration_low`, `integration_order_p`, ..."""
        from posthoc.analysis.frames import flat

        return flat(self)

    def to_pandas(self) -> "pandas.DataFrame":
        """The run as a table (extra `pandas`).

        Returns
        -------
        pandas.DataFrame
            One row per checkpoint, as metrics.csv has it, by epoch or step; NaN where a measure is undefined.
        """
        from posthoc.analysis.frames import to_pandas

        return to_pandas(self)

    def to_xarray(self) -> "xarray.Dataset":
        """The run as a labelled data set (extra `xarray`).

        Returns
        -------
        xarray.Dataset
            What `to_pandas` has along a dimension of checkpoints, and what there is of every layer along a second.
        """
        from posthoc.analysis.frames import to_xarray

        return to_xarray(self)

    def __repr__(self) -> str:
        listed = ", ".join(key for key, measured in self.measures.items() if measured.listed)
        span = f"{self.summary.unit} {self.when[0]} to {self.when[-1]}"
        return (
            f"<RunMetrics: {counted(len(self.checkpoints), 'checkpoint')}, {span}, {self.protocol.axis} axis: {listed}>"
        )

    def _repr_html_(self) -> str:
        from posthoc.report.notebook import as_notebook
        from posthoc.report.tables import checkpoints
        from posthoc.report.words import in_short

        return as_notebook(in_short(self), checkpoints(self))


def load_metrics(path: str | PathLike[str]) -> RunMetrics:
    """Read a metrics.json of any version.

    Parameters
    ----------
    path
        The file that `posthoc metrics` wrote.

    Returns
    -------
    RunMetrics

    Raises
    ------
    PosthocError
        Where the file is absent, damaged or not one.
    """
    from posthoc.analysis.consistency import fault
    from posthoc.analysis.version1 import upgraded

    run: RunMetrics
    run, _ = read_typed(path, RunMetrics, FORMAT, FORMAT_VERSION, "a metrics file", "posthoc metrics", {1: upgraded})
    if wrong := fault(run):
        raise PosthocError(f"{path} is damaged ({wrong}); write it again with `posthoc metrics`.")
    return _of_early_files(run)


def _of_early_files(run: RunMetrics) -> RunMetrics:
    """The run with what its file does not say of measures, because it was written before that was said."""
    if all(measured.lower_is_better is not None for measured in run.measures.values()):
        return run
    from posthoc.analysis.measures import MEASURES

    measures = dict(run.measures)
    for key, measured in run.measures.items():
        if measured.lower_is_better is None:
            measures[key] = replace(measured, lower_is_better=key in MEASURES and MEASURES[key].lower_is_better)
    return replace(run, measures=measures)
