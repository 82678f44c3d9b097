"""A measure that is a function of the user's: what it is given, how it is called, and what it may give.

The function is a stranger's code in the middle of thousands of draws. So its arguments cannot be written to, random
numbers that it draws from `random` and `numpy.random` begin anew with each call, it is called by one thread at a time,
and whatever it raises, or gives that is no number, is one sentence that names the file and the line.
"""

import contextlib
import hashlib
import inspect
import math
import random
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from numbers import Real
from pathlib import Path
from typing import Any, overload

import numpy as np

from posthoc.analysis.arrays import mean_finite
from posthoc.analysis.measures.measure import Measure, Reading, Series
from posthoc.analysis.origins import Code
from posthoc.analysis.records import NOWHERE, Interval
from posthoc.errors import PosthocError, UsageError, error_line, require_count
from posthoc.shown import with_article
from posthoc.usercode import UserCode

Function = Callable[..., Any]
SERIES = "series"
ASKED = ("signals", "labels", "layers", "behaviour", "previous", "weights")
"""What a function may ask for by the names of its parameters, beside the series; see `Recorded`."""
OF_SERIES = ("white", "label", "order", "channel", "time", "phase", "gaussian")
"""The nulls of a function of series."""
OF_SIGNALS = ("label", "order", "channel")
"""Of a function of signals: those that leave their level and scale as they are."""
SLOW = 0.5
"""Seconds of a call from which on it is said that it is slow."""
_LOCK = threading.RLock()


@dataclass(frozen=True, eq=False)
class Call:
    """A function of the user's as `Measure.of_series` calls it. parameters: what each is given, by name, the first by its
    place; file: where it stands, for errors; running: what to call it within."""

    function: Function
    name: str
    parameters: Mapping[str, str]
    file: str
    running: Callable[[], AbstractContextManager[object]] = nullcontext
    seen: set[str] = field(default_factory=set)

    def __call__(self, series: Series) -> Reading:
        """The number that it gives, or one for each layer; called twice the first time, which must not differ."""
        arguments = {name: self._given(what, series) for name, what in self.parameters.items()}
        with _LOCK:
            result = self._number(self._result(arguments), series)
            if self._first("call"):
                start = time.monotonic()  # of the second one, for in the first kernels may be compiled
                self._check(result, self._number(self._result(arguments), series), time.monotonic() - start)
        if isinstance(result, float):
            return Reading(result)
        return Reading(mean_finite(result), layers=result)

    def _first(self, event: str) -> bool:
        """Whether something happens for the first time."""
        before = event in self.seen
        self.seen.add(event)
        return not before

    def _given(self, what: str, series: Series) -> Any:
        if what == SERIES:
            return _locked(series.values)
        if series.recorded is None:
            raise UsageError(
                f"{self.name} asks for {what}, which only the image axis gives; the first parameter of any other name is "
                "given the series."
            )
        given = getattr(series.recorded, what)
        if (
            what in ("signals", "previous") and given is not None
        ):  # so that sums in another order differ by less than matters
            given = given.astype(np.float64)
        if isinstance(given, Mapping):
            return {name: _locked(values) for name, values in given.items()}
        return None if given is None else _locked(given)

    def _result(self, arguments: Mapping[str, Any]) -> Any:
        first, *others = arguments
        try:
            with self.running(), _seeded():
                return self.function(arguments[first], **{name: arguments[name] for name in others})
        except (PosthocError, KeyboardInterrupt, MemoryError):
            raise
        except BaseException as error:
            raise UsageError(
                f"{self.name} fails {self._place(error)} ({error_line(error, whole=True)}); mend the function."
            ) from error

    def _place(self, error: BaseException) -> str:
        """The innermost line of the user's file that was running, in words."""
        line, trace = 0, error.__traceback__
        while trace:
            if trace.tb_frame.f_code.co_filename == self.file:
                line = trace.tb_lineno
            trace = trace.tb_next
        return f"at line {line} of {Path(self.file).name}" if line else "when it is called"

    def _number(self, result: Any, series: Series) -> Any:
        """A float, NaN where it is infinite, or one for each layer [L]; raises UsageError for anything else."""
        layers = None if series.recorded is None else series.recorded.layers
        wanted = "a number" if "layers" not in self.parameters else "a number, or one for each layer"
        try:
            values = np.asarray(_plain(result))
        except MemoryError:
            raise
        except Exception:  # whatever an object of another library raises
            values = np.asarray(None)
        if values.dtype.kind not in "fiub":
            raise UsageError(f"{self.name} gives {_kind_of(result, values)}; give {wanted}.")
        values = values.astype(np.float64)
        L = None if layers is None or "layers" not in self.parameters else int(layers[-1]) + 1
        if values.shape not in ((), *([] if L is None else [(L,)])):
            count = "" if L is None else f" (of {L})"
            raise UsageError(f"{self.name} gives an array of shape {values.shape}; give {wanted}{count}.")
        if np.isinf(values).any():
            if self._first("infinite"):
                warnings.warn(f"{self.name} is infinite somewhere, which is taken for undefined.", stacklevel=2)
            values = np.where(np.isinf(values), np.nan, values)
        return float(values) if values.shape == () else values

    def _check(self, first: Any, second: Any, seconds: float) -> None:
        if not np.array_equal(first, second, equal_nan=True):
            raise UsageError(
                f"{self.name} gives another number each time it is called with the same signals; let it draw random numbers "
                "from a generator with a seed of its own, and keep nothing between calls."
            )
        if seconds > SLOW:
            warnings.warn(
                f"a call of {self.name} takes {seconds:.1f} s, and it is called for every draw of its nulls, every layer and "
                "every half of the signals; fewer --nulls are fewer calls.",
                stacklevel=2,
            )


def _plain(result: Any) -> Any:
    """What NumPy takes for numbers: a tensor of any type and device without its gradient, NaN for what is masked."""
    if isinstance(result, (list, tuple)):
        return [_plain(each) for each in result]
    if hasattr(result, "detach"):
        result = result.detach().cpu()
        return (result.double() if result.is_floating_point() else result).numpy()
    if isinstance(result, np.ma.MaskedArray) and result.dtype.kind in "fiub":
        return np.where(np.ma.getmaskarray(result), np.nan, result.data)
    return result


def _kind_of(result: object, values: Any) -> str:
    """What a function gave that is no number, in words; values: the same as an array."""
    if values.dtype.kind == "c":
        return "complex numbers"
    if isinstance(result, int):
        return "a whole number that is too large for floating point"
    return f"an array of {values.dtype.name}" if isinstance(result, np.ndarray) else with_article(type(result).__name__)


def _locked(values: Any) -> Any:
    """The same array, which cannot be written to."""
    view = np.asarray(values).view()
    view.flags.writeable = False
    return view


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    """Random numbers of `random` and `numpy.random` begin anew, and go on afterwards as if none had been drawn."""
    before, of_numpy = random.getstate(), np.random.get_state()
    random.seed(0)
    np.random.seed(0)
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(of_numpy)


@overload
def measure(
    function: Function, *, name: str = ..., symbol: str = ..., about: str = ..., limits: Interval = ...,
    margin: float = ..., digits: int = ...,
) -> Measure: ...  # fmt: skip


@overload
def measure(
    function: None = ..., *, name: str = ..., symbol: str = ..., about: str = ..., limits: Interval = ...,
    margin: float = ..., digits: int = ...,
) -> Callable[[Function], Measure]: ...  # fmt: skip


def measure(
    function: Function | None = None, *, name: str = "", symbol: str = "", about: str = "", limits: Interval = NOWHERE,
    margin: float = math.nan, digits: int = 4,
) -> Measure | Callable[[Function], Measure]:  # fmt: skip
    """A measure of your own, for `compute_metrics(activations, measures=["default", ...])`; also a decorator.

    Parameters
    ----------
    function
        Of the series [U, T] that the axis makes of the signals, which H and M are taken of: on the image axis U
        channels over T samples sorted by class, less their class's mean and smoothed. A parameter that is called `signals`
        is given what was recorded, [U, T] in the same order, `labels` the classes [T], `layers` the layer of every unit [U],
        `behaviour` what the network said of each sample, by name (`loss`, `correct`, ...; each [T, ...]), `previous` the
        signals at the checkpoint before (None at the first), `weights` what is stored of the tensors, by name (`tensor`,
        `size`, `norm`, ...; each [tensors]); these on the image axis alone. It gives a number, or, if it asks
        for `layers`, one for each. Units without an exponent, constant or not finite, are left out; documents of tokens are
        measured one by one. None makes a decorator.
    name
        By which it is known (default: the function's).
    symbol, about
        As it is shown (default: the name, and the first line of the docstring).
    limits
        What it cannot leave.
    margin
        Below which an audit calls a change small (default: what seeds of untrained networks do, where the file has some).
    digits
        Decimal places that are shown.

    Returns
    -------
    Measure
        To be given in `measures`; without a function, what makes it of one.

    Raises
    ------
    PosthocError
        Where the function's parameters are others.

    Examples
    --------
    >>> @measure
    ... def swing(series):
    ...     "Largest value less the smallest, mean over the units."
    ...     return np.ptp(series, axis=1).mean()
    >>> swing.of_series(Series(np.array([[0.0, 1, 3], [1, 1, 2]]), None)).value
    2.0
    """
    if function is None:
        return lambda function: measure(
            function, name=name, symbol=symbol, about=about, limits=limits, margin=margin, digits=digits
        )
    name = name or getattr(function, "__name__", type(function).__name__)
    if not name.isidentifier():
        raise UsageError(f"A measure cannot be called {name!r}; give the function a name of letters, digits and _.")
    _require_settings(limits, margin, digits)
    parameters = _parameters(function, name)
    asks = tuple(what for what in ASKED if what in parameters.values())
    of_samples = set(parameters.values()) != {"weights"}  # else no sample, channel or layer changes it
    nulls = OF_SERIES if SERIES in parameters.values() else OF_SIGNALS
    lines = (inspect.getdoc(function) or "").strip().splitlines()
    file = getattr(getattr(inspect.unwrap(function), "__code__", None), "co_filename", "")
    return Measure(
        key=name, symbol=symbol or name, title=name.replace("_", " "), about=about or (lines[0] if lines else ""),
        of_series=Call(function, name, parameters, file), limits=limits, margin=margin, digits=digits, asks=asks,
        under=(*nulls, "split") if "labels" in asks else nulls, nulls=of_samples, layers=of_samples, code=Code("", name, _digest(function)),
    )  # fmt: skip


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _require_settings(limits: object, margin: Any, digits: object) -> None:
    """Raise UsageError for what is no interval, no margin or no number of decimal places."""
    ends = list(limits) if isinstance(limits, Sequence) else []
    if len(ends) != 2 or not all(map(_is_number, ends)) or ends[0] >= ends[1]:
        raise UsageError(f"limits is {repr(limits)[:80]}; give the lowest and the highest value, such as (0, 1).")
    if not _is_number(margin) or margin <= 0:
        raise UsageError(f"margin is {repr(margin)[:80]}; give a number above 0.")
    require_count("digits", digits)


def _parameters(function: Function, name: str) -> dict[str, str]:
    """What each parameter of a function is given, by name."""
    try:
        known = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name} is no function whose parameters can be read; give one written in Python.") from error
    given = {}
    for place, parameter in enumerate(known):
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.name in (SERIES, *ASKED):
            given[parameter.name] = parameter.name
        elif not place:
            given[parameter.name] = SERIES
        elif parameter.default is parameter.empty:
            raise UsageError(
                f"{name} asks for {parameter.name!r}; its first parameter is given the series, and others may be "
                f"{', '.join((SERIES, *ASKED))}, or have a default."
            )
    if not given or known[0].kind not in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD):
        raise UsageError(f"{name} takes nothing; its first parameter is given the series [units, time].")
    return given


def _digest(function: Function) -> str:
    """SHA-256 of a function's source; empty where there is none."""
    try:
        return hashlib.sha256(inspect.getsource(inspect.unwrap(function)).encode()).hexdigest()
    except (OSError, TypeError):
        return ""


def load(place: str) -> Measure:
    """The measure that `FILE.py:FUNCTION` names, which is run; raises UsageError where there is none.

    FUNCTION may be left out of a file that defines a single function, and may be what `measure` made of one.
    """
    file, colon, name = place.rpartition(":")
    if not colon or not file.endswith(".py"):
        file, name = place, ""
    if not file.endswith(".py"):
        raise UsageError(f"--measure {place}: give FILE.py:FUNCTION.")
    user = UserCode(Path(file), "--measure", "measure")
    defined = {
        key: value for key, value in vars(user.module).items()
        if isinstance(value, Measure) or (inspect.isfunction(value) and value.__module__ == user.module.__name__)
    }  # fmt: skip
    public = [key for key in defined if not key.startswith("_")]
    if not name and len(public) != 1:
        raise UsageError(
            f"--measure {place}: say which of its functions ({', '.join(public) or 'none'}), as {file}:NAME."
        )
    name = name or public[0]
    value = defined.get(name) or getattr(user.module, name, None)
    if not callable(value) and not isinstance(value, Measure):
        raise UsageError(f"{file} defines no function {name!r} (there are: {', '.join(public) or 'none'}).")
    made = value if isinstance(value, Measure) else measure(value, name=name)
    if not isinstance(made.of_series, Call):
        raise UsageError(f"--measure {place}: it is no measure of a function; give the function.")
    running = replace(made.of_series, file=str(Path(file).resolve()), running=user.at_work)
    return replace(made, of_series=running, code=Code(Path(file).name, name, user.digest or ""))
