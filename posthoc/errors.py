"""The one error type: what is wrong, where, and what to do, in a sentence; and the words of others' errors."""

import difflib
from collections.abc import Container, Iterable, Mapping
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any


class PosthocError(Exception):
    """Something the user can mend; the command line prints it without a traceback and exits with `exit_code`."""

    exit_code = 1


class StoppedError(PosthocError):
    """Asked to stop, by a signal; what was in hand is written."""

    exit_code = 143


class UsageError(PosthocError):
    """The request itself is wrong (an option's value, an impossible combination), whatever the input holds."""

    exit_code = 2


def nearest(name: str, known: Iterable[str], spellings: Mapping[str, str] | None = None, most: int = 3) -> str:
    """What to write instead of a name that nothing has: the nearest of those that are known, else all of them.

    spellings: other ways to write some, each with the name that it stands for; most: so many are named at the most.

    >>> nearest("measure", ["measures", "audit"]), nearest("nosuch", ["measures", "audit"])
    ('did you mean measures?', 'there are measures, audit.')
    """
    listed = list(dict.fromkeys(known))
    spelt = {**(spellings or {}), **{each: each for each in listed}}
    lower = {text.lower(): each for text, each in spelt.items()}
    near = dict.fromkeys(lower[text] for text in difflib.get_close_matches(name.lower(), lower, most))
    return f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(listed)}."


def meant(name: str, known: Container[str], spellings: Mapping[str, str]) -> str:
    """The known name that a name is, or is another spelling of, capital letters or not; the name itself where it is none.

    >>> meant("m", ["hurst"], {"H": "hurst", "M": "metastability"}), meant("nosuch", ["hurst"], {"H": "hurst"})
    ('metastability', 'nosuch')
    """
    if name in known or name in spellings:
        return name if name in known else spellings[name]
    return next((of for spelling, of in spellings.items() if spelling.lower() == name.lower()), name)


def plain_number(value: Any) -> Any:
    """A whole or real number of another library as Python's own, which JSON and types know; everything else as it is.

    >>> from fractions import Fraction
    >>> plain_number(Fraction(1, 2)), plain_number(True), plain_number("2")
    (0.5, True, '2')
    """
    if isinstance(value, int | float):
        return value
    return int(value) if isinstance(value, Integral) else float(value) if isinstance(value, Real) else value


def require_count(name: str, value: object, least: int = 0, remark: str = "") -> None:
    """Raise UsageError for what is no whole number from `least` up.

    >>> require_count("nulls", "white")
    Traceback (most recent call last):
    posthoc.errors.UsageError: nulls is 'white'; give a whole number from 0 up.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise UsageError(f"{name} is {value!r}; give a whole number from {least} up{remark}.")


def require_kind(name: str, value: object, kinds: type | tuple[type, ...], words: str) -> None:
    """Raise UsageError for what is of none of these types; words: what to give instead."""
    if not isinstance(value, kinds):
        raise UsageError(f"{name} is {repr(value)[:80]}; give {words}.")


def as_path(place: object) -> Path:
    """A path as such; raises UsageError for what is none."""
    if not isinstance(place, str | PathLike):
        raise UsageError(f"{repr(place)[:80]} is no path; give one.")
    return Path(place)


class Suggesting:
    """Raises AttributeError with the nearest name, of those that there are and of `spellings`, for one that is not there."""

    if not TYPE_CHECKING:

        def __getattr__(self, name):
            message = f"{type(self).__name__!r} has no attribute {name!r}"
            if not name.startswith("_"):
                names = [known for known in dir(type(self)) if not known.startswith("_")]
                advice = nearest(name, names, self._spellings())
                message += f"; {advice}" if advice.startswith("did") else ""
            raise AttributeError(message, name=name, obj=None)

    def _spellings(self) -> Mapping[str, str]:
        return {}


def message_of(error: BaseException) -> str:
    """An error's text; empty where its class, which may be the user's, fails at giving it."""
    try:
        return str(error)
    except Exception:
        return ""


def error_line(error: BaseException, whole: bool = False) -> str:
    """Type and first line of an error, or its `whole` text on one line, cut where it is long.

    >>> error_line(ValueError("no\\n  width"))
    'ValueError: no'
    >>> error_line(ValueError("no\\n  width"), whole=True)
    'ValueError: no width'
    """
    if isinstance(error, SystemExit):
        return f"it calls sys.exit({error.code!r})"
    text = message_of(error).strip()
    text = " ".join(text.split()) if whole else (text.splitlines() or [""])[0]
    text = text if len(text) <= 300 else text[:297] + "..."
    return f"{type(error).__name__}: {text.rstrip('.')}" if text else type(error).__name__
