"""Where the results of several runs go: each to the file that is of it already, else to one by its name."""

import contextlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from posthoc.errors import PosthocError
from posthoc.parts import Parts, run_text
from posthoc.replay.formats.table import digest
from posthoc.store import origin as origin_of

FILE = "activations.h5"


@dataclass(frozen=True)
class Home:
    """A run by its name, the folder of its checkpoints, and the file to write."""

    name: str
    folder: Path
    path: Path


@dataclass(frozen=True)
class _Origin:
    """Of which run something is: where it lay, empty if nothing says it, and the digests of its checkpoints by their paths."""

    what: Path
    folder: str = ""
    digests: Callable[[], dict[str, str]] = dict

    def refuses(self, folder: Path) -> str | None:
        """Why it is of another run than that in `folder`, in words; None where it is not.

        The folder decides; of one that was moved, or that nothing tells, the last of its checkpoints that lies there.
        """
        if self.folder == run_text(folder):
            return None
        for path, before in reversed(self.digests().items()):
            if (folder / path).exists():
                with contextlib.suppress(PosthocError):  # one that is damaged by now decides nothing
                    if digest(folder / path) == before:
                        return None
                    break
        else:
            if not self.folder:
                return None
        return f"{self.what} is of {self.folder or 'other checkpoints'}, not of {folder}"


def homes(folders: Sequence[tuple[str, Path]], out: Path, force: bool = False) -> list[Home]:
    """Where the runs in these folders, with their names, have their results below `out`.

    Raises PosthocError where a run's name is that of another's results, unless these are to be replaced by `force`.
    """
    origins: dict[Path, _Origin | None] = {}
    known: dict[Path, Path] = {}
    for name, folder in folders:
        for path in (out / name / FILE, *_possible(folder, out)):
            if path not in origins:
                origins[path] = _origin(path)
            if (origin := origins[path]) and origin.folder == run_text(folder):
                known.setdefault(folder, path)
    result = []
    for name, folder in folders:
        path = known.get(folder, out / name / FILE)
        if (before := origins[path]) and (why := before.refuses(folder)):
            taken = path in known.values()
            if taken or not force:
                advice = "choose another -o" if taken else "choose another -o, or pass --force to replace it"
                raise PosthocError(f"{why}; {advice}.")
        result.append(Home(path.parent.relative_to(out).as_posix(), folder, path))
    return result


def _possible(folder: Path, out: Path) -> list[Path]:
    """Where a run's results may be by the names that it has beside any other runs, shortest first: see `names_apart`."""
    names = set()
    for parts in (folder.absolute().parts[1:], folder.resolve().parts[1:]):
        ends = itertools.combinations(range(len(parts) + 1), 2)
        names |= {parts[start:stop] for start, stop in ends if ".." not in parts[start:stop]}
    return [out.joinpath(*name) / FILE for name in sorted(names, key=lambda name: (len(name), name))]


def _origin(path: Path) -> _Origin | None:
    """Of which run the file is, or the parts of it that there are; None where there is nothing."""
    parts = Parts(path)
    if not path.exists():
        return _Origin(parts.folder, parts.run_folder(), parts.digests) if parts.folder.exists() else None
    try:
        folder, digests = origin_of(path)
        return _Origin(path, folder, lambda: digests)
    except PosthocError:  # whoever reads it is told so
        return _Origin(path)
