"""Running code that the command line names: a file or module of the user's. Nothing here needs torch."""

import contextlib
import hashlib
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from posthoc.errors import PosthocError, UsageError, error_line

_REGISTERED: dict[str, Path] = {}
"""The names in sys.modules under which files of the user's were run."""


class UserCode:
    """A file or module of the user's, run when this is made; only the command line or an API's argument names one.

    While it is at work its folder, of a module the working directory, is the last place to import from: files beside it
    are found, and a `random.py` among them stands in no library's way. The rest of the program imports nothing from
    there. place: as it was named; title: the same without folders; digest: SHA-256 of the file that was run, None of a module;
    option, what: by which it was named, and what it is to define.
    """

    def __init__(self, place: str | Path, option: str = "--model", what: str = "model") -> None:
        self.place, self.title = str(place), Path(place).name
        self.option, self.what = option, what
        self.digest: str | None = None
        try:
            folder = Path.cwd() if isinstance(place, str) else place.resolve(strict=True).parent
        except OSError as error:
            raise UsageError(f"{option} {place}: {error.strerror or error}.") from error
        self._argv = [self.place]
        self._path = [*sys.path, str(folder)]
        name = _free_name(place.resolve()) if isinstance(place, Path) else place
        advice = f'put what is not the {what} under `if __name__ == "__main__":`'
        with self.calling(f"{place} cannot be imported", advice):
            importlib.invalidate_caches()
            if isinstance(place, Path):
                self.module = self._run(place, name)
            else:
                if _REGISTERED.pop(place.partition(".")[0], None):  # a file of that name, run before, is another
                    sys.modules.pop(place.partition(".")[0], None)
                self.module = importlib.import_module(place)

    def _run(self, path: Path, name: str) -> ModuleType:
        """Run the file's source, never a compiled copy beside it."""
        source = path.read_bytes()
        self.digest = hashlib.sha256(source).hexdigest()
        path = path.resolve()
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None:
            raise ImportError("it is not a Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses, TorchScript and the like look their module up
        _REGISTERED[name] = path
        try:
            exec(compile(source, path, "exec", dont_inherit=True), module.__dict__)
        except BaseException:
            sys.modules.pop(name, None)
            raise
        return module

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """While it runs: its own `sys.path`, no arguments of ours, what it prints on stderr; and all as it was after."""
        path, argv, stderr = list(sys.path), sys.argv, sys.stderr
        sys.path[:], sys.argv = self._path, list(self._argv)
        try:
            with contextlib.chdir("."), _stdout_to_stderr(), _ending_as_an_exception():
                yield
        finally:
            self._path = list(sys.path)
            sys.path[:], sys.argv, sys.stderr = path, argv, stderr

    def drawing(self, seed: int | None) -> contextlib.AbstractContextManager[None]:
        """Within it random numbers may be drawn; a kind of code that draws says what becomes of the program's own."""
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def calling(self, failure: str, advice: str = "", seed: int | None = None) -> Iterator[None]:
        """As `at_work`; whatever is thrown, an end of the program included, is a UsageError `FAILURE (reason); ADVICE`.

        seed: see `drawing`.
        """
        try:
            with self.at_work(), self.drawing(seed):
                yield
        except (PosthocError, KeyboardInterrupt):
            raise
        except SystemExit as error:
            message = f"{failure} (it ends the program, with {error.code!r})"
            raise UsageError(f"{message}; {advice}." if advice else f"{message}.") from error
        except BaseException as error:
            raise UsageError(f"{failure} ({error_line(error, whole=True)}){self._hint(error)}.") from error

    def _hint(self, error: BaseException) -> str:
        """What to do where an import failed for where the file lies, or for a library of the same name."""
        if not isinstance(error, ImportError):
            return ""
        folder = Path(self._path[-1])
        if "relative import" in str(error) and self.digest:
            package = [folder.name]
            while (folder / "__init__.py").is_file() and (folder.parent / "__init__.py").is_file():
                folder = folder.parent
                package.insert(0, folder.name)
            module = ".".join([*package, Path(self.place).stem])
            return f"; it is part of a package: in {folder.parent} pass {self.option} {module}:{'FACTORY' if self.what == 'model' else self.what.upper()}"
        name = (error.name or "").partition(".")[0]
        library = getattr(sys.modules.get(name), "__file__", None)
        if not library or Path(library).parent in (folder, folder / name):
            return ""
        if not ((folder / name).is_dir() or (folder / f"{name}.py").is_file()):
            return ""
        return f"; {name} is {library}, for libraries come first: rename your own, or name its folder in PYTHONPATH"


def _free_name(path: Path) -> str:
    """The name by which files beside it import this one; another where a library, or what is imported, has that."""
    name = re.sub(r"\W", "_", path.stem)
    if name in sys.modules:
        taken = _REGISTERED.get(name) != path
    else:
        spec = importlib.util.find_spec(name)
        taken = spec is not None and spec.origin != str(path)
    return f"{name}_{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}" if taken else name


@contextlib.contextmanager
def _ending_as_an_exception() -> Iterator[None]:
    """os._exit ends this process as sys.exit does, so that it is told; a process that was forked ends at once."""
    ours, end = os.getpid(), os._exit

    def leave(status: int) -> NoReturn:
        if os.getpid() == ours:
            sys.exit(status)
        end(status)

    os._exit = leave
    try:
        yield
    finally:
        os._exit = end


@contextlib.contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """What is printed, by this process or ones that it starts, goes to stderr: stdout is for results."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        with contextlib.suppress(OSError):  # either is closed
            kept = os.dup(1)
            stack.callback(os.close, kept)
            stack.callback(os.dup2, kept, 1)
            os.dup2(2, 1)
        yield
