"""Rows of tokens as a probe: text and the tokenizer that the network was trained with, or ids as they are."""

import glob
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from posthoc.errors import PosthocError, UsageError
from posthoc.files import open_regular, sha256
from posthoc.replay.probes.archives import read_head
from posthoc.replay.probes.probe import Asked, Batch, Kind, Prepare, Probe
from posthoc.shown import counted

if TYPE_CHECKING:
    from posthoc.replay.hooks import Anatomy
    from posthoc.replay.models import Model

DEFAULT_DOCUMENTS = 32
"""Rows in a probe unless told otherwise (fewer where there are fewer)."""
LONGEST = 1024
"""Tokens in a row, at the most, unless told otherwise."""
MOST_BYTES = 2**28
"""Of text: all of it is made into tokens, to take rows from everywhere."""
MOST_TOKENIZER_BYTES = 2**28
PIECE, REACH = 2**20, 2**12
"""Characters that are made into tokens at a time, and how many of them lie on either side of where two such pieces are
joined: tokenizers mark the beginning of what they are given, and a token may go on past any character."""
ALIKE = 4
"""Tokens before and behind a place that are the same in two pieces, where these are joined."""
FEW, MANY, STRETCH = 4, 16, 64
"""Ids of another type show in this: at every other place one of a few values, at those between so many times as many, of
so many places that are read or more."""
DTYPES = ("uint16", "uint32", "int32", "int64", "uint8", "int16", "uint64")
SUFFIXES = (".txt", ".md", ".jsonl")
"""Of the files of a folder that are text."""
MOST_SCORES = 2**28
"""Of a batch: 1 GiB in single precision."""
LARGEST_BATCH = 32
LIMITS = ("max_position_embeddings", "n_positions", "block_size", "context_length", "n_ctx", "max_seq_len")
"""What networks, or their configs, call the tokens that they take."""
TOKENIZER = "tokenizer.json"
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Rows:
    """Rows of tokens: ids int64 [N, T]; index: int64 [N], their positions among all rows; preparation, words: how they
    were made; text_bytes: int64 [N], of the text of each but its first token, where that is known."""

    ids: Ids
    index: NDArray[np.int64]
    preparation: dict[str, Any]
    words: str
    text_bytes: NDArray[np.int64] | None = None


def _check_counts(asked: Asked) -> None:
    for name, least in (("context", 2), ("documents", 1)):
        value = asked.options.get(name)
        if value is not None and value < least:
            raise UsageError(f"--{name} {value}: give a number from {least} up.")


def check_text(asked: Asked) -> None:
    """Raise where there is no text, no such tokenizer, or no library for it."""
    _check_counts(asked)
    _files(asked.place)
    if find_spec("tokenizers") is None:
        raise PosthocError(f"--probe {asked.spec} needs tokenizers; install posthoc[transformers].")
    if asked.options.get("tokenizer") is not None:
        _tokenizer_file(asked)


def check_tokens(asked: Asked) -> None:
    """Raise where the file is not there, or of no such type."""
    _check_counts(asked)
    path = Path(asked.place)
    if path.suffix not in (".npy", ".bin"):
        raise UsageError(f"--probe {asked.spec}: give tokens:FILE.npy or tokens:FILE.bin.")
    dtype = asked.options.get("token_dtype")
    if dtype is not None and path.suffix == ".npy":
        raise UsageError(f"--token-dtype {dtype}: {path} says itself of what type it is; leave it out.")
    if dtype is not None and dtype not in DTYPES:
        raise UsageError(f"Unknown --token-dtype {dtype!r}; give {', '.join(DTYPES)}.")
    open_regular(path).close()


def load_text(asked: Asked, model: "Model") -> Probe:
    """Rows of the text's tokens, as many as asked for, spread evenly over all of it.

    Every file, and every line of a .jsonl, is a text by itself: no row goes from one into the next.
    """
    T, path = _context(asked, model), _tokenizer_file(asked)
    tokenizer = _tokenizer(path)
    pieces, sizes, tokens, size = [], [], 0, 0
    for name, text in _texts(_files(asked.place)):
        ids, ends = _encoded(tokenizer, text, name)
        tokens, size = tokens + len(ids), size + len(text.encode("utf-8", "surrogatepass"))
        whole = len(ids) // T * T
        pieces.append(ids[:whole].reshape(-1, T))
        sizes.append(np.ptp(ends[:whole].reshape(-1, T)[:, [0, -1]], axis=1))
    rows = np.concatenate([np.empty((0, T), np.int64), *pieces])
    if not len(rows):
        what = "text" if len(pieces) == 1 else f"longest of {len(pieces)} texts"
        raise PosthocError(
            f"--probe {asked.spec}: {counted(tokens, 'token')}, and the {what} has not the {T} of a row; give more text, or a "
            f"smaller --context."
        )
    index = _spread(asked, len(rows), T)
    preparation = {"tokenizer": sha256(path), "bytes_per_token": size / tokens}
    words = f"{path.name} of {path.parent}, rows of {T} tokens"
    return _probe(asked, model, Rows(rows[index], index, preparation, words, np.concatenate(sizes)[index]))


def load_tokens(asked: Asked, model: "Model") -> Probe:
    """Rows of the ids in a file: one series of them is cut into rows, rows are taken as they are."""
    path = Path(asked.place)
    with open_regular(path) as file:
        try:
            start, shape, dtype = _layout(file, path, asked.options.get("token_dtype") or DTYPES[0])
            T = _context(asked, model, shape[1] if len(shape) == 2 else None)
            total = shape[0] if len(shape) == 2 else shape[0] // T
            if not total:
                raise PosthocError(
                    f"{path} holds {counted(shape[0], 'token')}, and a row has {T}; pass a smaller --context."
                )
            index = _spread(asked, total, T)
            ids = np.empty((len(index), T), np.int64)
            for row, number in enumerate(index.tolist()):
                file.seek(start + number * T * dtype.itemsize)
                values = np.frombuffer(file.read(T * dtype.itemsize), dtype)
                if dtype.kind == "u" and dtype.itemsize == 8 and values.size and values.max() >= 2**63:
                    raise PosthocError(f"{path} holds {values.max()}, which is no id of a token; save the ids again.")
                ids[row] = values
        except (OSError, ValueError) as error:
            raise PosthocError(f"{path} is damaged or cut short ({error}); make it anew.") from error
    probe = _probe(asked, model, Rows(ids, index, {"tokenizer": None}, f"ids as they are, rows of {T}"))
    if path.suffix == ".bin" and dtype.itemsize < 8 and (few := _every_second(ids, index * T)):
        wider = f"uint{16 * dtype.itemsize}"
        text = f"every second id of {path} is {few}, as where ids of {wider} are read as {dtype.name}; if they are, pass --token-dtype {wider}"
        probe = replace(probe, notes=[*probe.notes, ("caution", text)])
    return probe


def _every_second(ids: Ids, starts: NDArray[np.int64]) -> str | None:
    """The few ids at every other place of a file, in words, if there are so few beside those between; starts: where in it
    the rows begin."""
    places = (starts[:, None] + np.arange(ids.shape[1])) % 2
    values = sorted((np.unique(ids[places == parity]) for parity in (0, 1)), key=len)
    if ids.size < STRETCH or len(values[1]) < MANY * len(values[0]) or len(values[0]) > FEW:
        return None
    return " or ".join(map(str, values[0]))


def _layout(file: BinaryIO, path: Path, dtype: str) -> tuple[int, tuple[int, ...], np.dtype[Any]]:
    """Where the ids begin, their shape, and their type."""
    size = file.seek(0, 2)
    file.seek(0)
    if path.suffix == ".bin":
        kind = np.dtype(dtype).newbyteorder("<")
        if size % kind.itemsize:
            raise PosthocError(f"{path} has {size} bytes, which are no whole number of {dtype}; pass --token-dtype.")
        return 0, (size // kind.itemsize,), kind
    shape, kind, by_columns = read_head(file)
    if kind.kind not in "iu":
        raise PosthocError(f"{path} is an array of {kind}; ids of tokens are whole numbers.")
    if len(shape) not in (1, 2):
        raise PosthocError(f"{path} is of shape {shape}; give one series of ids, or rows of them.")
    if by_columns and len(shape) == 2:
        raise PosthocError(f"{path} is stored by columns; save np.ascontiguousarray of it.")
    start = file.tell()
    if math.prod(shape) * kind.itemsize != size - start:
        raise ValueError(f"{size - start} bytes for an array of {shape}")
    return start, shape, kind


def _context(asked: Asked, model: "Model", given: int | None = None) -> int:
    """Tokens in a row. given: of rows as they are."""
    most, option = longest(model.module), asked.options.get("context")
    if given is not None and option not in (None, given):
        raise UsageError(
            f"--context {option}: {asked.place} has rows of {given}, which are taken as they are; leave it out."
        )
    T = given or option or min(most or LONGEST, LONGEST)
    if given is not None and given < 2:
        raise PosthocError(f"{asked.place} has rows of {counted(given, 'token')}; two is the least.")
    if most and most < T:
        what = f"{asked.place} has rows of {T}" if given else f"--context {T}"
        raise UsageError(f"{what}: {model.name} takes at most {most} tokens; ask for fewer.")
    return int(T)


def longest(module: Any) -> int | None:
    """How many tokens a network says that it takes."""
    config = getattr(module, "config", None)
    for holder in (config, getattr(config, "text_config", None), module):
        for name in LIMITS:
            value = holder.get(name) if isinstance(holder, dict) else getattr(holder, name, None)
            if isinstance(value, int) and not isinstance(value, bool) and value > 1:
                return value - _before_first(module)
    return None


def _before_first(module: Any) -> int:
    """Positions that no token has: those up to the padding's, as in RoBERTa."""
    import torch

    for name, part in module.named_modules():
        if (
            name.endswith("position_embeddings")
            and isinstance(part, torch.nn.Embedding)
            and part.padding_idx is not None
        ):
            return part.padding_idx + 1
    return 0


def _spread(asked: Asked, total: int, T: int) -> NDArray[np.int64]:
    """Which of so many rows are taken."""
    wanted = asked.options.get("documents") or asked.samples
    if wanted and wanted > total:
        raise UsageError(
            f"--documents {wanted}: {asked.place} gives {counted(total, 'row')} of {T} tokens; ask for fewer."
        )
    count = wanted or min(total, DEFAULT_DOCUMENTS)
    return np.arange(count, dtype=np.int64) * total // count


def _files(place: str) -> list[Path]:
    """The files of text: the one named, those of a folder, or those that a glob finds."""
    path = Path(place)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES and file.is_file())
        if not files:
            raise PosthocError(f"No text in {path} ({', '.join(SUFFIXES)}); name other files by a glob, such as *.py.")
    elif not path.exists() and glob.has_magic(place):
        files = [Path(name) for name in sorted(glob.glob(place, recursive=True)) if Path(name).is_file()]  # noqa: PTH207
        if not files:
            raise PosthocError(f"No file is called like {place}; mend the glob.")
    else:
        open_regular(path).close()
        files = [path]
    if (size := sum(file.stat().st_size for file in files)) > MOST_BYTES:
        raise PosthocError(
            f"{place} is {size / 1e9:.3g} GB of text, more than the {MOST_BYTES / 1e9:.2g} GB of which rows are taken; "
            f"give a part of it."
        )
    return files


def _texts(files: Sequence[Path]) -> Iterator[tuple[str, str]]:
    """Name and content of every text: of a file, or of a line of a .jsonl."""
    for path in files:
        with open_regular(path) as file:
            content = file.read(MOST_BYTES + 1)
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise PosthocError(f"{path} is no text in UTF-8 (byte {error.start}); convert it.") from error
        if path.suffix != ".jsonl":
            yield str(path), text
            continue
        for number, line in enumerate(text.splitlines() if "\n" not in text else text.split("\n"), 1):
            if line.strip():
                yield f"{path}, line {number}", _text_in(line, path, number)


def _text_in(line: str, path: Path, number: int) -> str:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise PosthocError(f"{path}, line {number} is not valid JSON ({error}); mend or remove it.") from error
    text = value.get("text") if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise PosthocError(f'{path}, line {number} has no text: give lines such as {{"text": "..."}}.')
    return text


def _tokenizer_file(asked: Asked) -> Path:
    """The tokenizer.json: as given, else beside the checkpoints."""
    given = asked.options.get("tokenizer")
    places = [Path(given)] if given is not None else list(asked.beside)
    for place in places:
        path = place / TOKENIZER if place.is_dir() else place
        if (path.name == TOKENIZER and path.is_file()) or (given is not None and path.is_file()):
            return path
    if given is not None:
        raise PosthocError(f"--tokenizer {given}: there is no {TOKENIZER}.")
    raise PosthocError(
        f"There is no {TOKENIZER} beside the checkpoints ({places[0] if places else 'nowhere'}); pass --tokenizer FILE|DIR, "
        f"or ids themselves: --probe tokens:FILE.npy."
    )


def _tokenizer(path: Path) -> Any:
    from tokenizers import Tokenizer

    from posthoc.replay.forward import error_line

    with open_regular(path) as file:
        content = file.read(MOST_TOKENIZER_BYTES + 1)
    try:
        if len(content) > MOST_TOKENIZER_BYTES:
            raise ValueError("it is too large")
        tokenizer = Tokenizer.from_buffer(content)
        tokenizer.no_truncation()
        tokenizer.no_padding()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a panic of the library is no Exception
        raise PosthocError(
            f"{path} is no tokenizer that the library reads ({error_line(error, whole=True)}); save it again, with tokenizers."
        ) from error
    return tokenizer


def _encoded(tokenizer: Any, text: str, name: str) -> tuple[Ids, NDArray[np.int64]]:
    """The ids of a text, without any that stand for its beginning or end, and at which byte in UTF-8 each ends."""
    pieces: list[NDArray[np.int64]] = []
    start, before = 0, 0
    while True:
        stop = min(start + PIECE, len(text))
        piece = text[start:stop]
        ids, ends = _tokens(tokenizer, piece, name)
        characters = np.frombuffer(piece.encode("utf-32-le", "surrogatepass"), "<u4")
        bytes_until = np.concatenate([[before], before + _utf8_bytes(characters).cumsum()])
        rows = np.stack([ids, start + ends, bytes_until[ends]])
        if pieces:
            last, first = _seam(pieces[-1], rows, start + REACH)
            pieces[-1], rows = pieces[-1][:, :last], rows[:, first:]
        pieces.append(rows)
        if stop == len(text):
            break
        start, before = stop - 2 * REACH, int(bytes_until[-1 - 2 * REACH])
    ids, _, ends = np.concatenate(pieces, axis=1)
    return ids, ends


def _tokens(tokenizer: Any, text: str, name: str) -> tuple[Ids, NDArray[np.int64]]:
    """The ids of a piece of text, and at which character each ends."""
    from posthoc.replay.forward import error_line

    try:
        encoded = tokenizer.encode(text, add_special_tokens=False)
        ids, spans = encoded.ids, encoded.offsets
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a panic of the library is no Exception
        raise PosthocError(
            f"{name} cannot be made into tokens ({error_line(error, whole=True)}); pass another --tokenizer."
        ) from error
    return np.array(ids, np.int64), np.array([end for _, end in spans], np.int64)


def _seam(before: NDArray[np.int64], after: NDArray[np.int64], middle: int) -> tuple[int, int]:
    """How many tokens of a piece are taken, and how many left out of the next one, whose characters begin with the last of
    the first: at the place next to their middle around which both have the same tokens, else there. Rows: ids and ends.
    """
    common = np.intersect1d(before[1], after[1])
    for place in [*common[np.abs(common - middle).argsort(kind="stable")].tolist(), middle]:
        last, first = (int(np.searchsorted(rows[1], place, "right")) for rows in (before, after))
        here, there = (rows[:2, max(0, k - ALIKE) : k + ALIKE] for rows, k in ((before, last), (after, first)))
        if min(last, first) >= ALIKE and np.array_equal(here, there):
            break
    return last, first


def _utf8_bytes(characters: NDArray[np.uint32]) -> NDArray[np.int64]:
    """How many bytes each character takes in UTF-8.

    >>> _utf8_bytes(np.array([ord("a"), ord("é"), ord("€"), ord("𝄞")], np.uint32)).tolist()
    [1, 2, 3, 4]
    """
    steps = np.array([0x80, 0x800, 0x10000], np.uint32)
    return np.asarray(1 + np.searchsorted(steps, characters, side="right"), np.int64)


def _probe(asked: Asked, model: "Model", rows: Rows) -> Probe:
    """The probe of rows of tokens, for this network; raises PosthocError where the two do not fit."""
    N, T = rows.ids.shape
    least, most = int(rows.ids.min()), int(rows.ids.max())
    if least < 0:
        raise PosthocError(f"{asked.place} holds {least}, which is no id of a token; give rows without padding.")
    name, forms = _given(model.module)
    probe = Probe(
        {name: rows.ids},
        score="tokens",
        name=asked.spec,
        index=rows.index,
        classes=most + 1,
        axes={name: ("token",)},
        digest=hashlib.sha256(f"{N} {T}\n".encode() + rows.ids.astype("<u4").tobytes()).hexdigest(),
        samples="documents",
        preparation={"context": T, **rows.preparation},
        words=rows.words,
        text_bytes=rows.text_bytes,
        notes=[("probe", f"{asked.spec}, {counted(N, 'document')} of {T} tokens, {rows.words}")],
        few=2,
    )
    probe, anatomy = _fed(model, probe, name, forms)
    table = anatomy.table
    ids = int(table.num_embeddings) if table is not None and type(table).__name__ == "Embedding" else None
    if ids is not None and most >= ids:
        raise PosthocError(
            f"{asked.place} has a token of id {most}, beyond the {ids} that {model.name} knows; was it made with another "
            f"tokenizer{', or of another --token-dtype' if asked.place.endswith('.bin') else ''}?"
        )
    scores = math.prod(anatomy.output[1:])
    if ids is None:  # as many as there are scores, if there are
        ids = max(anatomy.output[-1], most + 1) if anatomy.output[1:2] == (T,) else most + 1
    return replace(
        probe, anatomy=anatomy, classes=ids, batch_size=max(1, min(LARGEST_BATCH, MOST_SCORES // max(scores, 1)))
    )


@dataclass(frozen=True)
class _Example:
    """A batch to trace a network with: rows of T tokens of id 0, which every network knows, or shorter ones."""

    T: int
    name: str
    prepare: Any

    def __call__(self, size: int, grown: bool) -> Batch:
        import torch

        rows = torch.zeros(size, max(2, self.T - 1) if grown else self.T, dtype=torch.int64)
        return dict(self.prepare({self.name: rows}))


def _fed(model: "Model", probe: Probe, name: str, forms: Sequence[Prepare]) -> tuple[Probe, "Anatomy"]:
    """The probe, given in the first form for which the network has scores at every place, else in the last that it takes;
    and what a pass shows."""
    T = probe.inputs[name].shape[1]
    taken: tuple[Probe, Anatomy] | None = None
    failure: PosthocError | None = None
    for prepare in forms:
        given = replace(probe, prepare=prepare, example=_Example(T, name, prepare))
        try:
            taken = given, _anatomy(model, given, T)
        except PosthocError as error:
            failure = error
            continue
        if taken[1].output[1:-1] == (T,):
            break
    if taken is None:
        assert failure is not None
        raise failure
    return taken


def _given(module: Any) -> tuple[str, tuple[Prepare, ...]]:
    """What a network calls the ids, and what else it may be given beside them, in the order in which that is tried."""
    from posthoc.replay.forward import arguments_of

    config = getattr(module, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        return "input_ids", (_with_decoder,)
    arguments = arguments_of(module)
    if arguments.names[1:2] == ("targets",) and arguments.places > 1:
        name = "idx" if arguments.names[0] == "idx" else "input_ids"
        return name, (_with_targets,) if "targets" in arguments.needed else (_alone, _with_targets)
    return "input_ids", (_alone,)


def _alone(batch: Batch) -> Batch:
    return batch


def _with_decoder(batch: Batch) -> Batch:
    """An encoder and a decoder: the encoder reads the tokens, and the decoder says the first."""
    return {**batch, "decoder_input_ids": batch["input_ids"][:, :1]}


def _with_targets(batch: Batch) -> Batch:
    """nanoGPT gives the scores of all positions only where it is told the tokens that follow, of which it makes a loss that
    nothing is done with; after the last one it is told that one again, for what stands for none is known to it alone."""
    import torch

    ids = next(iter(batch.values()))
    return {**batch, "targets": torch.cat([ids[:, 1:], ids[:, -1:]], 1)}


def _anatomy(model: "Model", probe: Probe, T: int) -> "Anatomy":
    """What a pass shows of the network: of its modules those that give something for each token."""
    from posthoc.replay.forward import error_line
    from posthoc.replay.hooks import CannotRunError, dissect

    try:
        with model.at_work():
            anatomy = dissect(model.module, probe.traced)
    except CannotRunError as error:
        last = error.entered[-1] if error.entered else None
        where = f" in {last.name} ({type(last.module).__name__})" if last and last.name else ""
        raise PosthocError(
            f"{model.name} cannot take rows of {T} tokens{where}: {error_line(error.reason)}; give others, or a smaller --context."
        ) from error
    points = tuple(
        point for point in anatomy.points if len(point.shape) == 2 and point.shape[2 - point.channel_axis] == T
    )
    if not points:
        raise PosthocError(
            f"{model.name} has no module that gives something for each token, so nothing to record; make its layers modules."
        )
    return replace(anatomy, points=points)


KINDS = {
    "text": Kind(load_text, check_text, ("context", "documents", "tokenizer"), ("token",)),
    "tokens": Kind(load_tokens, check_tokens, ("context", "documents", "token_dtype"), ("token",)),
}
