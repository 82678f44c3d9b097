"""A series of safetensors files that lies elsewhere (https://, s3://, hf://, ...), mirrored as far as a check reads it.

Only byte ranges are asked for: the header of each file, then the first numbers of each tensor. They lie in sparse files of a
temporary folder where they lie in the originals, so that all else is done as with files of this machine.
"""

import itertools
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit, urlunsplit

from posthoc.errors import PosthocError, UsageError, error_line
from posthoc.replay.formats.folder import INSIDE, model_files
from posthoc.replay.formats.safetensors import MAX_HEADER
from posthoc.replay.formats.table import is_named_like_a_checkpoint, open_content, readable
from posthoc.replay.series.share import Share
from posthoc.replay.source import Source
from posthoc.replay.tensors import Stored
from posthoc.replay.weights import is_network

WEIGHTS, INDEX = ".safetensors", ".index.json"
BESIDE = ("trainer_state.json", "run.json")
"""What says something of a checkpoint or run, and is read whole."""
MOST_JSON = 1 << 26
"""Bytes of such a file, or of an index."""
SILENCE = 60
"""Seconds without an answer, or a byte of it, after which a server is given up."""
SILENT = "Cannot read {}: the server said nothing for {} seconds; try again later, or download the series."
HEAD = 1 << 16
"""Bytes of a file that are asked for first; few headers are longer."""
GAP, LONGEST, AT_ONCE = 1 << 14, 1 << 23, 1 << 26
"""Bytes: ranges nearer to each other are one; the longest that is asked for; and what is asked for at once."""
MOST_FILES = 10_000
DEPTH = 3
"""So deep a checkpoint's files may lie below the series: checkpoint-500/unet/diffusion_pytorch_model.safetensors."""
Progress = Callable[[int, int, object], None]


@dataclass(frozen=True)
class Mirror:
    """Copies of a series, as far as they are read.

    places: one for each address that was given; apart: names of what is not read from elsewhere; folder and address: what
    stands for what, in messages; read: bytes that were fetched.
    """

    places: tuple[Path, ...]
    folder: Path
    address: str
    apart: tuple[str, ...] = ()
    read: int = 0

    def shown(self, text: str) -> str:
        """A text with the addresses in place of the copies."""
        return text.replace(str(self.folder), self.address)


class _File(NamedTuple):
    """A file elsewhere, and where its copy lies."""

    path: str
    copy: Path


@dataclass
class _Reached:
    """A file system elsewhere, and a place in it."""

    system: Any
    path: str
    url: str
    files: list[_File] = field(default_factory=list)

    @property
    def is_http(self) -> bool:
        return _is_http(self.url)

    @property
    def components(self) -> list[str]:
        """Of the path, without what is asked of a server there."""
        path = shown_url(self.path) if self.is_http else self.path
        return path.rstrip("/").split("/")


@contextmanager
def mirrored(urls: Sequence[str], share: Share, progress: Progress | None = None) -> Iterator[Mirror]:
    """Yield copies of the checkpoints at `urls`: the folder of a series, or several files or folders of one each.

    Raises PosthocError where they cannot be reached or read by ranges, also for what is done with the copies, which are
    gone afterwards.
    """
    reached = [_reach(url) for url in urls]
    above = _common([place.components for place in reached], [_is_file(url) for url in urls])
    with tempfile.TemporaryDirectory(prefix="posthoc-check-") as temporary:
        folder = Path(temporary) / "series"
        first = shown_url(urls[0]).rstrip("/").split("/")
        address = "/".join(first[: len(first) - (len(reached[0].components) - above)])
        mirror = Mirror((), folder, address)
        try:
            yield _filled(reached, above, mirror, share, progress)
        except PosthocError as error:
            error.args = (mirror.shown(str(error)),)
            raise


def shown_url(url: str) -> str:
    """An address without the passwords and keys that it may hold.

    >>> shown_url("https://me:secret@host/run/a.safetensors?key=1")
    'https://host/run/a.safetensors'
    """
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _reach(url: str) -> _Reached:
    try:
        urlsplit(url)
    except ValueError as error:  # of which shown_url can tell no password apart
        place = re.sub(r"//[^/]*@", "//", re.sub(r"[?#].*", "", url))
        raise UsageError(
            f"{place} is no address ({error_line(error, whole=True)}); give one such as https://host/folder."
        ) from None
    url = re.sub(r"^[^:]+", lambda scheme: scheme[0].lower(), url)
    if re.search(r"::(?![^\[]*\])", url):  # an address of version 6 stands in brackets
        raise UsageError(f"{shown_url(url)}: give the address of a folder or file, without :: in it.")
    name = urlsplit(url).path.rsplit("/", 1)[-1].lower()
    if not _is_file(url) and is_named_like_a_checkpoint(Path(name)):
        raise PosthocError(_pickles(shown_url(url), [name]))
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise PosthocError(
            f"{shown_url(url)}: to read what lies elsewhere install the extra `remote`: pip install 'posthoc[remote]'."
        ) from None
    # Ranges are of what is stored, not of its compressed form; proxies are those of the environment.
    options: dict[str, Any] = {}
    with _answering(url):
        if _is_http(url):
            from aiohttp import ClientTimeout  # fsspec's own for such addresses

            patience = ClientTimeout(total=None, sock_connect=SILENCE, sock_read=SILENCE)
            client = {"trust_env": True, "timeout": patience}
            options = {"headers": {"Accept-Encoding": "identity"}, "client_kwargs": client}
        system, path = url_to_fs(url, **options)
    return _Reached(system, path, url)


@contextmanager
def _answering(url: str) -> Iterator[None]:
    """Turn what a library for some kind of place throws, which may be anything, into a sentence."""
    place = shown_url(url)
    try:
        yield
    except PosthocError:
        raise
    except FileNotFoundError as error:
        cause = error.__cause__  # which the library for HTTP keeps to itself
        if isinstance(cause, TimeoutError):
            raise PosthocError(SILENT.format(place, SILENCE)) from error
        if cause is not None and getattr(cause, "status", 0) != 404:
            raise PosthocError(f"Cannot read {place} ({error_line(cause, whole=True)}).") from error
        raise PosthocError(f"There is nothing at {place}; is the address right, and need one be logged in?") from None
    except TimeoutError as error:
        raise PosthocError(SILENT.format(place, SILENCE)) from error
    except ImportError as error:
        raise PosthocError(
            f"{place}: a package for such addresses is missing ({error_line(error)}); install it."
        ) from error
    except Exception as error:
        raise PosthocError(f"Cannot read {place} ({error_line(error, whole=True)}).") from error


def _is_http(url: str) -> bool:
    return url.lower().startswith(("http://", "https://"))


def _is_file(url: str) -> bool:
    return urlsplit(url).path.lower().endswith((WEIGHTS, INDEX))


def _common(places: Sequence[Sequence[str]], files: Sequence[bool]) -> int:
    """How many components all places begin with; of a lone file, those of its folder."""
    if len(places) == 1:
        return len(places[0]) - files[0]
    same = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*places, strict=False))
    above = len(list(same))
    if any(len(place) == above for place in places):
        raise UsageError("one of the addresses lies within another, or is given twice; give each checkpoint's own.")
    return above


def _filled(reached: Sequence[_Reached], above: int, mirror: Mirror, share: Share, progress: Progress | None) -> Mirror:
    """The mirror with the files in it."""
    mirror.folder.mkdir()
    places, apart = [], []
    for place in reached:
        with _answering(place.url):
            local = _local(mirror.folder, place, place.components[above:])
            pickles = _find_files(place, local)
        places.append(local)
        apart += pickles
    files = [file for place in reached for file in place.files]
    if not any(file.copy.name.lower().endswith(WEIGHTS) for file in files):
        if apart:
            raise PosthocError(_pickles(mirror.address, apart))
        raise PosthocError(
            f"No files of safetensors at {mirror.address}; where a server does not list its folders, give the address of each file."
        )
    read = 0
    done = itertools.count(1)
    for place in reached:
        with _answering(place.url):
            read += _fetch_headers(place)
    for place in reached:
        for file in place.files:
            with _answering(place.url):
                read += _fetch_tensors(place, file, share)
            if progress is not None:
                progress(next(done), len(files), file.copy.name)
    return replace(mirror, places=tuple(places), apart=tuple(apart), read=read)


def _pickles(place: str, names: Sequence[str]) -> str:
    return (
        f"{place} holds no safetensors but {names[0]}{', ...' if len(names) > 1 else ''}, of which no ranges can be read: "
        "download it and check that, or save the series as safetensors."
    )


def _local(folder: Path, place: _Reached, parts: Iterable[str]) -> Path:
    """Where the copy lies of what has these components below the series; PosthocError where one is no name of a file."""
    names = [unquote(part) if place.is_http else part for part in parts]
    for name in names:
        if name in ("", ".", "..") or re.search(r"[/\\\0]", name) or len(name.encode(errors="replace")) > 255:
            raise PosthocError(
                f"{shown_url(place.url)} lists {name!r}, which is no name of a file; give the address of each file."
            )
    return folder.joinpath(*names)


def _find_files(place: _Reached, local: Path) -> list[str]:
    """Note the files to be mirrored; the names of checkpoints in folders that hold no safetensors."""
    path = (re.sub(r"[?#].*", "", place.path) if place.is_http else place.path).rstrip("/")
    if not _is_file(place.url):
        return _find_below(place, path + "/" if place.is_http else path, local, DEPTH, itertools.count())
    place.files.append(_File(place.path, local))
    if local.name.lower().endswith(INDEX):
        _add_shards(place, path.rpartition("/")[0], local)
    return []


def _find_below(place: _Reached, path: str, local: Path, depth: int, seen: "itertools.count[int]") -> list[str]:
    root = path.rstrip("/") + "/"
    names: dict[str, str] = {}
    folders: dict[str, str] = {}
    for entry in place.system.ls(path, detail=True):
        if next(seen) >= MOST_FILES:
            raise PosthocError(
                f"{shown_url(place.url)} lists more than {MOST_FILES:,} files; give the folder of one series."
            )
        full = str(entry["name"])
        name = full.removeprefix(root)
        if name == full or re.search(r"[?#]", name):
            continue
        if entry.get("type") == "directory" and name.strip("/") and not name.startswith("."):
            folders[name.strip("/")] = full
        elif "/" not in name:
            names[unquote(name) if place.is_http else name] = full
    chosen = _chosen(frozenset(names))
    for name in chosen:
        place.files.append(_File(names[name], _local(local, place, [names[name].rpartition("/")[2]])))
        if name.lower().endswith(INDEX):
            _add_shards(place, path.rstrip("/"), place.files[-1].copy)
    # Beside the model of a checkpoint lies what belongs to it, beside a series what might be of it.
    others = (
        () if set(INSIDE) & set(chosen) else (name for name in names if not name.startswith(".") and not _is_file(name))
    )
    pickles = [name for name in others if is_named_like_a_checkpoint(Path(name)) and is_network(name)]
    for name, full in folders.items() if depth else ():
        pickles += _find_below(place, full, _local(local, place, [name]), depth - 1, seen)
    return sorted(pickles)


def _chosen(names: frozenset[str]) -> list[str]:
    """Which files of a folder are read: of a checkpoint's own folder the model's, else all with weights; JSON beside."""
    safe = frozenset(name for name in names if name.lower().endswith((WEIGHTS, INDEX)) and not name.startswith("."))
    safe -= {name for name in safe if name.endswith(".bin.index.json")}
    if not safe:
        return []
    model = model_files(safe) if safe & set(INSIDE) else [name for name in safe if is_network(name)]
    return sorted([*model, *(name for name in BESIDE if name in names)])


def _add_shards(place: _Reached, folder: str, index: Path) -> None:
    """Note the files that an index names, which lie beside it."""
    _fetch_json(place, place.files[-1])
    shards: Any = None
    with suppress(ValueError, RecursionError, AttributeError):  # what it is instead is said when it is read
        shards = json.loads(index.read_bytes()).get("weight_map")
    names = {name for name in shards.values() if isinstance(name, str)} if isinstance(shards, dict) else set()
    for name in sorted(names):
        if not re.search(r"[/\\\0?#%]", name) and name.lower().endswith(WEIGHTS):
            copy = _local(index.parent, place, [name])
            if copy not in {file.copy for file in place.files}:
                place.files.append(_File(f"{folder}/{name}", copy))


def _fetch_json(place: _Reached, file: _File) -> int:
    size = _size(place, file)
    if size > MOST_JSON:
        raise PosthocError(
            f"{file.copy.name} at {shown_url(place.url)} is larger than the {MOST_JSON:,} bytes that such a file may have; download the series and check that."
        )
    content = _ranges(place, file, [(0, size)])[0] if size else b""
    file.copy.parent.mkdir(parents=True, exist_ok=True)
    file.copy.write_bytes(content)
    return len(content)


def _size(place: _Reached, file: _File) -> int:
    with _answering(_address(place, file)):
        size = place.system.info(file.path).get("size")
    if not isinstance(size, int) or size < 0:
        raise PosthocError(f"The server does not say how long {_address(place, file)} is; download it.")
    return size


def _address(place: _Reached, file: _File) -> str:
    return shown_url(file.path) if place.is_http else f"{urlsplit(place.url).scheme}://{file.path}"


def _fetch_headers(place: _Reached) -> int:
    """Make the sparse copies, with the headers in them; bytes that were fetched."""
    return sum(_fetch_header(place, file) for file in place.files if not file.copy.exists())


def _fetch_header(place: _Reached, file: _File) -> int:
    if file.copy.suffix.lower() == ".json":
        return _fetch_json(place, file)
    size = _size(place, file)
    if place.is_http:
        _require_ranges(place, file, size)
    head = _ranges(place, file, [(0, min(size, HEAD))])[0] if size else b""
    end = 8 + int.from_bytes(head[:8], "little")
    if len(head) < end <= min(size, MAX_HEADER + 8):
        head += _ranges(place, file, [(len(head), end)])[0]
    file.copy.parent.mkdir(parents=True, exist_ok=True)
    with file.copy.open("xb") as copy:
        copy.write(head)
        copy.truncate(size)
    return len(head)


def _require_ranges(place: _Reached, file: _File, size: int) -> None:
    """Raise PosthocError where the server would send the whole file for a part of it."""
    if size < 3:
        return
    with _answering(_address(place, file)):
        try:
            with place.system.open(file.path, "rb", block_size=1, cache_type="none", size=size) as stream:
                stream.seek(1)
                served = len(stream.read(1)) == 1
        except ValueError:
            served = False
    if not served:
        raise PosthocError(
            f"The server does not send parts of {_address(place, file)}; download the series and check that."
        )


def _fetch_tensors(place: _Reached, file: _File, share: Share) -> int:
    """Put the first numbers of each tensor into a copy; bytes that were fetched."""
    if file.copy.suffix.lower() == ".json":
        return 0
    spans = _spans(file.copy, share)
    need, free = sum(end - start for start, end in spans), shutil.disk_usage(file.copy.parent).free
    if need > free:
        raise PosthocError(
            f"{need / 1e9:.3g} GB of {_address(place, file)} are to be read, and {tempfile.gettempdir()} has "
            f"{free / 1e9:.3g} GB left; ask for a smaller --share, or set TMPDIR to a folder with more room."
        )
    with file.copy.open("r+b") as copy:
        for batch in _batches(spans):
            for (start, _), content in zip(batch, _ranges(place, file, batch), strict=True):
                copy.seek(start)
                copy.write(content)
    return need


def _spans(copy: Path, share: Share) -> list[tuple[int, int]]:
    """Where the first numbers of all tensors lie in a file, in pieces that are asked for by themselves."""
    spans: list[tuple[int, int]] = []
    with suppress(PosthocError), readable(copy):  # what is wrong is said when it is read
        tree = open_content(Source(copy), copy).tree
        leaves = (leaf for leaf in tree.values() if isinstance(leaf, Stored) and leaf.bytes)
        for leaf in sorted(leaves, key=lambda leaf: leaf.storage.start):
            start = leaf.storage.start
            end = start + share.of(leaf.storage.size) * leaf.dtype.itemsize
            if spans and start - spans[-1][1] <= GAP:
                start = spans.pop()[0]
            spans.append((start, end))
    return [(at, min(at + LONGEST, end)) for start, end in spans for at in range(start, end, LONGEST)]


def _batches(spans: Iterable[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    batch: list[tuple[int, int]] = []
    room = AT_ONCE
    for span in spans:
        if batch and span[1] - span[0] > room:
            yield batch
            batch, room = [], AT_ONCE
        batch.append(span)
        room -= span[1] - span[0]
    if batch:
        yield batch


def _ranges(place: _Reached, file: _File, spans: Sequence[tuple[int, int]]) -> list[bytes]:
    """The bytes in ranges of a file; PosthocError where other than those come."""
    with _answering(_address(place, file)):
        starts, ends = [start for start, _ in spans], [end for _, end in spans]
        contents: list[bytes] = place.system.cat_ranges([file.path] * len(spans), starts, ends, on_error="raise")
    for content, (start, end) in zip(contents, spans, strict=True):
        if len(content) != end - start:
            raise PosthocError(
                f"{_address(place, file)} sent {len(content):,} bytes where {end - start:,} were asked for; did it change? Try again, or download it."
            )
    return contents
