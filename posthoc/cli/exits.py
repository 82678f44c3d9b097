"""How a command ends: its exit code, and one sentence for whatever was thrown.

0: done. 1: failed, nothing of what was asked for was done. 2: wrong usage. 3: done in part, or something was found. 128 and
its number: stopped by a signal.
"""

import contextlib
import difflib
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TextIO

import click

from posthoc.errors import PosthocError, StoppedError
from posthoc.shown import shown

FAILED, PARTLY = 1, 3
REPLAYING = ("torch", "torchvision", "safetensors")
"""What the commands that measure, audit, compare and show can do without."""


class Terminated(KeyboardInterrupt):
    """SIGTERM came: as an interruption from the keyboard, so that what is half written is taken away."""


class OutputError(PosthocError):
    """What is printed cannot be written."""


def echo(text: object = "", err: bool = False, lines: bool = False) -> None:
    """Print text that may hold what comes from elsewhere; `lines`: its line breaks are ours."""
    write(shown(text, lines) + "\n", err)


def write(text: str, err: bool = False) -> None:
    """Print text that is shown already.

    Results that cannot be written are an OutputError. Remarks that cannot be are lost, and the work goes on.
    """
    try:
        click.echo(text, err=err, nl=False)
    except OSError as error:
        if err:
            _hush(sys.stderr)
        elif isinstance(error, BrokenPipeError):
            raise
        else:
            raise OutputError(f"Cannot write to standard output: {error.strerror or error}.") from error


def ending(run: Callable[[], object], debug: bool = False) -> int:
    """Call `run` and say in a sentence on stderr why it failed, if it did; the exit code. No exception leaves."""
    try:
        with _streams():
            try:
                return _code(run)
            except BaseException as error:
                code, text = _sentence(error)
                if debug:
                    echo(traceback.format_exc(), err=True, lines=True)
                if text:
                    echo(text, err=True, lines=isinstance(error, click.ClickException))
                return code
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError, AttributeError):  # nothing is left to say it to
                _hush(stream)


@contextlib.contextmanager
def interruptible(kept: Callable[[], str]) -> Iterator[None]:
    """Interrupted from the keyboard or by SIGTERM, say what is `kept`: words that follow "stopped", asked for then."""
    try:
        yield
    except KeyboardInterrupt as error:
        stopped = StoppedError(f"stopped{kept()}.")
        stopped.exit_code = _signal(error)
        raise stopped from None


def _signal(error: BaseException) -> int:
    return 128 + (signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT)


def _code(run: Callable[[], object]) -> int:
    code: object = 0
    try:
        run()
    except SystemExit as error:
        code = error.code
    except click.exceptions.Exit as error:
        code = error.exit_code
    write("")  # what is still to be written fails here or not at all
    if isinstance(code, str):
        raise PosthocError(code)
    return int(code) if isinstance(code, int) else 0


def _sentence(error: BaseException) -> tuple[int, str]:
    """Exit code and words for what was thrown."""
    if isinstance(error, PosthocError):
        return error.exit_code, f"posthoc: {error}"
    if isinstance(error, click.ClickException):
        return error.exit_code, _usage(error)
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return _signal(error), "posthoc: stopped."
    if isinstance(error, BrokenPipeError):  # the reader has read enough
        return 128 + signal.SIGPIPE, ""
    if isinstance(error, MemoryError):
        return 1, f"posthoc: this needs more memory than there is{_of(error)}."
    if isinstance(error, RecursionError):
        return 1, "posthoc: what it was given is nested too deeply to be read."
    if isinstance(error, ModuleNotFoundError) and error.name in REPLAYING:
        return (
            1,
            f"posthoc: this command reads or runs networks and needs {error.name}: pip install {' '.join(REPLAYING)}.",
        )
    if isinstance(error, OSError) and error.strerror:
        place = f" {error.filename}" if error.filename is not None else ""
        return 1, f"posthoc: cannot read or write{place}: {error.strerror}."
    return 1, (
        f"posthoc: an error of its own ({type(error).__name__}{_of(error)}); please report it with the traceback that "
        "`posthoc --debug` and the same words show."
    )


def _of(error: BaseException) -> str:
    """What an exception says of itself, on one line."""
    text = " ".join(str(error).split())
    return f": {text}" if text else ""


def _usage(error: click.ClickException) -> str:
    """A fault of usage as click words it, without what is foreign acting in it."""
    context = getattr(error, "ctx", None)
    if context is None:
        return f"Error: {shown(error.format_message())}"
    if error.message == context.get_help():  # called without words
        return error.message
    message = _no_option(error, context) if isinstance(error, click.NoSuchOption) else error.format_message()
    return f"{context.get_usage()}\nTry '{context.command_path} -h' for help.\n\nError: {shown(message, lines=True)}"


def _no_option(error: click.NoSuchOption, context: click.Context) -> str:
    """An option that is not there, with one that is meant by its name, not one that looks a little like it."""
    name = error.option_name
    if name == "--debug":
        return "--debug stands before the command: posthoc --debug COMMAND ..."
    known = [option for parameter in context.command.get_params(context) for option in parameter.opts]
    near = difflib.get_close_matches(name, known, 1, 0.75)
    return f"No such option {name!r}" + (f"; did you mean {near[0]}?" if near else ".")


@contextlib.contextmanager
def _streams() -> Iterator[None]:
    """Nothing that is printed fails for its characters, warnings are lines, and SIGTERM is an interruption."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError, OSError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]

    def warned(message: Any, category: Any, filename: Any, lineno: Any, file: Any = None, line: Any = None) -> None:
        echo(f"warning: {message}", err=True)

    def terminated(number: int, frame: Any) -> None:
        raise Terminated

    here = threading.current_thread() is threading.main_thread()
    mine = here and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    with warnings.catch_warnings():
        warnings.showwarning = warned
        if mine:
            signal.signal(signal.SIGTERM, terminated)
        try:
            yield
        finally:
            if mine:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _hush(stream: TextIO) -> None:
    """Send what is left of a stream nowhere, so that the interpreter does not fail over it at its end."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
