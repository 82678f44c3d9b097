"""Running code that the command line names: a file or module of the user's. Nothing here needs torch."""

import contextlib
import hashlib
import importlib
import importlib.abc
import importlib.util
import os
import re
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from posthoc.errors import PosthocError, UsageError, error_line

_LOADED: dict[str, dict[str, ModuleType]] = {}
"""Where a module of the user's lies -> it and its submodules, by name."""
_STAMPS: dict[str, tuple[int, int] | None] = {}
"""As what the files of those were read; see `_stamp`."""
_AT_WORK: list["UserCode"] = []
"""What is at work, the innermost last."""


class UserCode:
    """A file or module of the user's, run when this is made; only the command line or an API's argument names one.

    While it is at work its folder, of a module the working directory, is the last place to import from: files beside it
    are found, and a `random.py` among them stands in no library's way. The rest of the program imports nothing from
    there, nor does a file of another folder: modules that lie there, or where else it alone looks, are in sys.modules while
    it is at work. Of one file they are one for all; those of files that were edited since are loaded anew. place: as it was named; title: the same without folders; digest: SHA-256 of the file that was run, None of a module;
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
        self._path, self._folder = [*sys.path, str(folder)], folder
        self._modules: dict[str, ModuleType] = {}
        name = _free_name(place.resolve()) if isinstance(place, Path) else place
        advice = f'put what is not the {what} under `if __name__ == "__main__":`'
        with self.calling(f"{place} cannot be imported", advice):
            importlib.invalidate_caches()
            if any(_stamp(file) != stamp for file, stamp in _STAMPS.items()):  # what imports them is as old
                _LOADED.clear()
                _STAMPS.clear()
            if isinstance(place, Path):
                self.module = self._run(place, name)
            else:
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
        try:
            exec(compile(source, path, "exec", dont_inherit=True), module.__dict__)
        except BaseException:
            sys.modules.pop(name, None)
            raise
        return module

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """While it runs: its own `sys.path` and modules, no arguments of ours, what it prints on stderr; and all as it was
        after."""
        argv, stderr = sys.argv, sys.stderr
        outer = _AT_WORK[-1] if _AT_WORK else None
        if outer:
            outer._put_down()
        self._take_up()
        _AT_WORK.append(self)
        sys.argv = list(self._argv)
        try:
            with contextlib.chdir("."), _stdout_to_stderr(), _ending_as_an_exception():
                yield
        finally:
            sys.argv, sys.stderr = argv, stderr
            _AT_WORK.pop()
            self._put_down()
            if outer:
                outer._take_up()

    def _take_up(self) -> None:
        """Put its path and modules in place."""
        self._outside, self._count = list(sys.path), len(sys.modules)
        self._last = next((name for name in reversed(sys.modules) if name not in self._modules), "")
        self._hidden = {name: sys.modules[name] for name in self._modules if name in sys.modules}
        sys.modules.update(self._modules)
        sys.path[:] = self._path
        sys.meta_path.insert(0, _LOADED_BEFORE)

    def _put_down(self) -> None:
        """Put them aside, with what it has imported since; the program's own are as they were."""
        with contextlib.suppress(ValueError):
            sys.meta_path.remove(_LOADED_BEFORE)
        self._path = list(sys.path)
        sys.path[:] = self._outside
        mine = {name: sys.modules.pop(name) for name in self._modules if name in sys.modules}
        if len(sys.modules) + len(self._hidden) != self._count:
            names = list(sys.modules)  # the latest last
            new = names[names.index(self._last) + 1 :] if self._last in names else []
            tops = {name.partition(".")[0] for name in new}
            tops = {top for top in tops if top in mine or self._owns(top)}
            new = [name for name in new if name.partition(".")[0] in tops]
            mine |= {name: sys.modules.pop(name) for name in new}
            _remember(new, mine)
        self._modules = mine
        sys.modules.update(self._hidden)

    def _owns(self, name: str) -> bool:
        """Whether a module that was imported at work lies beside the file, or where the program would not find it."""
        place = _place(getattr(sys.modules.get(name), "__spec__", None))
        if place is None:  # made by a library
            return False
        beside = Path(place).parent == self._folder and self._folder.name not in ("site-packages", "dist-packages")
        return beside or _place(_found(name)) != place

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
    taken = name in sys.modules
    if not taken:
        spec = importlib.util.find_spec(name)
        taken = spec is not None and spec.origin != str(path)
    return f"{name}_{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}" if taken else name


class _Known(importlib.abc.Loader):
    """Gives a module that is loaded already."""

    def __init__(self, module: ModuleType) -> None:
        self.module, self.spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.spec


class _LoadedBefore(importlib.abc.MetaPathFinder):
    """Finds what was loaded for other files of the user's, so that a class is one however it is come by."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        modules = _LOADED.get(_place(_found(name)) or "", {}) if path is None else {}
        if name not in modules:
            return None
        sys.modules.update({key: module for key, module in modules.items() if key != name and key not in sys.modules})
        return importlib.util.spec_from_loader(name, _Known(modules[name]))


_LOADED_BEFORE = _LoadedBefore()


def _found(name: str) -> ModuleSpec | None:
    """Where a module that is not in a package is imported from."""
    finders = (finder for finder in sys.meta_path if finder is not _LOADED_BEFORE and hasattr(finder, "find_spec"))
    return next((spec for finder in finders if (spec := finder.find_spec(name, None))), None)


def _place(spec: ModuleSpec | None) -> str | None:
    """The file of a module, the folder of a package; None of what has none."""
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return next(iter(spec.submodule_search_locations))
    return spec.origin if spec.has_location else None


def _remember(new: Sequence[str], modules: dict[str, ModuleType]) -> None:
    """Keep modules that were imported for other files of the user's; modules: these, and what they are within."""
    for name in sorted(new):  # a package before what is in it
        module, top = modules[name], name.partition(".")[0]
        place = _place(getattr(modules.get(top), "__spec__", None))
        if place and name == top:
            _LOADED[place] = {name: module}
        elif place and _LOADED.get(place, {}).get(top) is modules[top]:
            _LOADED[place][name] = module
        file = getattr(module, "__file__", None)
        if isinstance(file, str):
            _STAMPS[file] = _stamp(file)


def _stamp(file: str) -> tuple[int, int] | None:
    """When a file was written, and its size; None where it is not there."""
    try:
        status = Path(file).stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


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
