"""The functions of `posthoc.NAME` that take files as well as what is read from them; the defaults are the command line's."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from posthoc.analysis.protocol import Protocol
from posthoc.analysis.records import RunMetrics
from posthoc.analysis.responses import Audit
from posthoc.errors import UsageError, require_count, require_kind
from posthoc.store import Activations, open_activations

if TYPE_CHECKING:
    from posthoc.analysis.compare import Comparison
    from posthoc.analysis.measures import Measure
    from posthoc.replay.series.result import Result

Place = str | PathLike[str]
NULLS = 99
"""Draws of the deciding null."""


def compute_metrics(
    activations: Activations | Place,
    protocol: Protocol | None = None,
    nulls: int = NULLS,
    seed: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
    max_nulls: int | None = None,
    measures: "str | Iterable[str | Measure]" = "default",
) -> RunMetrics:
    """Integration, metastability and other measures of every checkpoint of an activations file, and of the run.

    Parameters
    ----------
    activations
        The file that `extract` wrote, by its path or open.
    protocol
        How series are made and measured; by default the published one on the image axis, or along tokens where the file
        holds those of documents. See `Protocol.named` and `Protocol.fitting`.
    nulls
        How many times each checkpoint's deciding null is drawn (references at most 39 times, in at most ten
        checkpoints); 0: none is, and then nothing says whether a number means anything.
    seed
        Keys the random numbers of nulls and intervals.
    progress
        Called after each checkpoint with how many are done, of how many, and its name.
    max_nulls
        Draws of the deciding null at the most, in checkpoints where fewer are too few for a verdict (default: 9,999).
    measures
        `default`, `all`, names of `list_measures()` or their symbols, such as H_eff, or measures of your own, see `measure`.

    Returns
    -------
    RunMetrics

    Raises
    ------
    PosthocError
        Where the file is none, or has too few images, layers or checkpoints for the protocol.
    """
    require_count("nulls", nulls, 0, ", how often they are drawn; which they are follows from the measures")
    require_count("seed", seed)
    if max_nulls is not None:
        require_count("max_nulls", max_nulls)
    _require_fitting(protocol, measures)
    from posthoc.analysis.metrics import compute_metrics

    with _opened(activations) as file:
        return compute_metrics(file, protocol, nulls, seed, progress, max_nulls, measures)


def audit(
    activations: Activations | Place,
    protocol: Protocol | None = None,
    draws: int = 50,
    seed: int = 0,
    measures: "str | Iterable[str | Measure]" = "default",
    other: Activations | Place | None = None,
) -> Audit:
    """Measure the last checkpoint again with one thing changed at a time: what do the measures respond to?

    Parameters
    ----------
    activations
        The file that `extract` wrote, by its path or open.
    protocol
        As `compute_metrics` takes it.
    draws
        Of each control that redraws.
    seed
        Keys the random numbers.
    measures
        As `compute_metrics` takes them; `default` are those of series by which runs are compared.
    other
        Another extraction of the run, over the same samples prepared otherwise, to compare with.

    Returns
    -------
    Audit
        What each measure responds to; `conclusions` says so in sentences.

    Raises
    ------
    PosthocError
        Where there are too few images or documents, or `other` does not fit.
    """
    require_count("draws", draws, 1)
    require_count("seed", seed)
    _require_fitting(protocol, measures)
    from posthoc.analysis.audit import audit

    with _opened(activations) as file:
        if other is None:
            return audit(file, protocol, draws, seed, measures)
        with _opened(other) as beside:
            return audit(file, protocol, draws, seed, measures, beside)


def compare(
    runs: Mapping[str, RunMetrics] | Place | Sequence[Place], by: str | Sequence[str] = (), seed: int = 0
) -> "Comparison":
    """Put runs side by side, as `posthoc compare` does.

    Parameters
    ----------
    runs
        What `compute_metrics` returned, under the names of the runs; or metrics.json files, folders that hold some, or globs.
    by
        Fields that the runs recorded, such as `dataset`, by which they are grouped and the groups compared.
    seed
        Of permutations, where there are too many to try all.

    Returns
    -------
    Comparison

    Raises
    ------
    PosthocError
        Where a place holds no metrics, or no run recorded a field.
    """
    from posthoc.analysis.compare import Comparison
    from posthoc.analysis.runs import as_run, in_one_unit, load_runs

    require_count("seed", seed)
    fields = [by] if isinstance(by, str) else by
    require_kind("by", fields, Iterable, "the name of a field, or several")
    for field in fields:
        require_kind("by", field, str, "names of fields, such as 'dataset'")
    if isinstance(runs, Mapping):
        if not runs:
            raise UsageError(
                "There are no runs to compare; give what compute_metrics returned, by the names of the runs."
            )
        for metrics in runs.values():
            require_kind("A run", metrics, RunMetrics, "what compute_metrics or load_metrics returned")
        loaded = [as_run(metrics, name) for name, metrics in runs.items()]
    else:
        places = _places("runs", runs)
        loaded = load_runs([str(place) for place in places])
    return Comparison.of(in_one_unit(loaded), list(fields), seed)


def check(
    checkpoints: Place | Sequence[Place],
    select: str | None = None,
    order: str | None = None,
    progress: Callable[[int, int, object], None] | None = None,
) -> "Result":
    """Read every checkpoint of a series once and say what is wrong with it: copies, swaps, gaps, other runs' weights.

    Parameters
    ----------
    checkpoints
        The folder of a run, or its checkpoints.
    select
        Only names that match; # stands for a number.
    order
        `name` or `inside`: what the order goes by (default: what is certain).
    progress
        Called after each checkpoint with how many are done, of how many, and its name.

    Returns
    -------
    Result
        `sound`, and `findings`, the worst first, each with its kind, severity and checkpoints.

    Raises
    ------
    PosthocError
        Where there is no checkpoint, more than one run, or no certain order.
    """
    places = _places("checkpoints", checkpoints)
    from posthoc.replay.series.result import check_series

    place = Path(places[0]) if isinstance(checkpoints, str | PathLike) else [Path(path) for path in places]
    return check_series(place, select, order=order, progress=progress)


def list_measures() -> dict[str, str]:
    """The measures that `compute_metrics` knows.

    Returns
    -------
    dict
        What each is in words, by their names; K stands for a number.

    Examples
    --------
    >>> list_measures()["metastability"]
    'metastability M'
    """
    from posthoc.analysis.measures import names

    return names()


def list_nulls() -> dict[str, str]:
    """The nulls that measures are put beside.

    Returns
    -------
    dict
        What each redraws, in words, by their names.

    Examples
    --------
    >>> list_nulls()["order"]
    'another order of the same images'
    """
    from posthoc.analysis.nulls import NULLS

    return {name: null.words for name, null in NULLS.items()}


def _places(name: str, given: Place | Sequence[Place]) -> list[Place]:
    """One path or several; raises UsageError where they are none."""
    require_kind(name, given, (str, PathLike, Iterable), "a path, or several")
    places = [given] if isinstance(given, str | PathLike) else list(given)
    for place in places:
        require_kind(name, place, (str, PathLike), "a path, or several")
    if not places:
        raise UsageError(f"{name} is empty; give a path, or several.")
    return places


def _require_fitting(protocol: object, measures: object) -> None:
    """Raise UsageError where these are not what they should be."""
    from posthoc.analysis.measures import Measure

    if protocol is not None:
        require_kind("protocol", protocol, Protocol, "a posthoc.Protocol, such as Protocol.named('default')")
        assert isinstance(protocol, Protocol)
        protocol.require_sound()
    require_kind("measures", measures, Iterable, "names of measures, 'default', 'all', or measures of yours")
    if not isinstance(measures, str) and isinstance(measures, Iterable):
        for measure in measures:
            require_kind("A measure", measure, (str, Measure), "the name of one, or what posthoc.measure makes")


@contextmanager
def _opened(activations: Activations | Place) -> Iterator[Activations]:
    """The file, opened and closed where a path was given."""
    if isinstance(activations, Activations):
        yield activations
        return
    require_kind("activations", activations, (str, PathLike), "the path of an activations file, or an open one")
    with open_activations(Path(activations)) as file:
        yield file
