"""A model in the cache of the Hugging Face Hub: each revision is a file in `refs` that holds the name of a snapshot.

The checkpoint is that file, so that its name, `step1000`, says what it is of; the snapshot's own is a digest.
"""

import itertools
import os
import re
from pathlib import Path

from posthoc.errors import PosthocError
from posthoc.replay.formats.table import Content, Format, Preview, files_of, open_content, preview
from posthoc.replay.names import counts
from posthoc.replay.source import Source

COMMIT = re.compile(rb"[0-9a-f]{40}")
MOST_FILES = 10_000
"""So many files of a snapshot are looked at."""


def revisions(place: Path) -> Path | None:
    """The folder of the revisions, where `place` is that, a model in a cache, or its folder of snapshots; else None.

    Of a snapshot, the revision that it is of.
    """
    place = place.absolute()
    for model in (place, place.parent):
        if _is_model(model) and place in (model, model / "snapshots", model / "refs"):
            return model / "refs"
    if place.parent.name == "snapshots" and _is_model(model := place.parent.parent):
        refs = [ref for ref in sorted((model / "refs").iterdir()) if _snapshot(_look(ref)) == place]
        return next(iter(sorted(refs, key=lambda ref: not counts(ref.name))), None)
    return None


def _is_model(folder: Path) -> bool:
    return folder.name.startswith("models--") and all((folder / name).is_dir() for name in ("refs", "snapshots"))


def beside_series(refs: list[Path]) -> dict[Path, Path | None]:
    """The revisions whose names say no step, where others' do, and which of these is the same snapshot, if any."""
    places = {ref: _snapshot(_look(ref)) for ref in refs}
    steps = {place: ref for ref, place in places.items() if place and counts(ref.name)}
    return {ref: steps.get(place) for ref, place in places.items() if place and not counts(ref.name)} if steps else {}


def _look(ref: Path) -> Preview:
    try:
        return preview(ref)
    except (OSError, PosthocError):
        return Preview(ref)


def _snapshot(seen: Preview) -> Path | None:
    """The folder that a file of `refs` names."""
    commit = seen.head.strip()
    model = seen.path.absolute().parent.parent
    if seen.path.absolute().parent.name != "refs" or not COMMIT.fullmatch(commit):
        return None
    folder = model / "snapshots" / commit.decode()
    return folder if folder.is_dir() else None


def _checked(source: Source, ref: Path) -> Path:
    """The snapshot; PosthocError where one of its files leads out of the cache, as none of the library's does."""
    folder = _snapshot(preview(ref, source))
    if folder is None:
        raise PosthocError(f"{ref} names no snapshot that is there; download it again.")
    cache = folder.parent.parent.parent.resolve()
    walk = ((Path(above), name) for above, folders, files in os.walk(folder) for name in (*folders, *files))
    for above, name in itertools.chain([(folder.parent, folder.name)], itertools.islice(walk, MOST_FILES)):
        place = above / name
        if not place.resolve().is_relative_to(cache):
            raise PosthocError(f"{place} is a link out of the cache {cache}, which is not followed; download it again.")
    return folder


def _open(source: Source, ref: Path) -> Content:
    return open_content(source, _checked(source, ref))


def _files(source: Source, ref: Path) -> list[Path]:
    return files_of(_checked(source, ref), source)


HUB = Format("revision in a Hugging Face cache", lambda seen: _snapshot(seen) is not None, _open, _files)
