"""`dataset:PLACE`: which columns of a table are inputs and targets, and the arrays that they are as."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from posthoc.errors import PosthocError, UsageError
from posthoc.replay.probes.archives import INPUTS, TARGETS, Samples
from posthoc.replay.probes.arrays import of_samples
from posthoc.replay.probes.images import Normalization, first_rows, read_picture, wanted_size
from posthoc.replay.probes.probe import Asked, Kind, Probe
from posthoc.replay.probes.tables import Column, Table, find_table, refusing, require_pyarrow

if TYPE_CHECKING:
    import pyarrow as pa

    from posthoc.replay.models import Model

Array = NDArray[Any]
TOKENS = ("input_ids", "attention_mask", "token_type_ids")
"""What a tokenizer gives; the first says that it did."""
NAMED_INPUTS = ("pixel_values", *INPUTS, "img")
NAMED_TARGETS = (*TARGETS, "class", "mask", "annotation")
POSITIONS = ("id", "idx", "index", "__index_level_0__")
"""Numbers that say which row it is."""


@dataclass(frozen=True)
class Choice:
    """The columns that are inputs, and that which is right."""

    inputs: tuple[str, ...]
    target: str | None


def choose(table: Table, text: str | None = None) -> Choice:
    """The columns that INPUT[,INPUT...][:TARGET] names; what it leaves out is told by names and types.

    With a colon and no target after it there is none.
    """
    given, colon, target = (text or "").partition(":")
    inputs = tuple(name.strip() for name in given.split(",") if name.strip())
    target = target.strip()
    for name in (*inputs, *([target] if target else [])):
        if name not in table.columns:
            raise PosthocError(
                f"--columns {text}: {table.name} has no column {name}; it has {', '.join(table.columns)}."
            )
    right = target or (
        None if colon else _target([column for column in table.columns.values() if column.name not in inputs])
    )
    inputs = inputs or _inputs(table, [column for column in table.columns.values() if column.name != right])
    for name in (*inputs, *([right] if right else [])):
        if (kind := table.columns[name].kind) not in ("image", "number", "array"):
            raise PosthocError(f"{table.name}: column {name} holds {kind}; {_remedy(kind, name == right)}.")
    return Choice(inputs, right)


def _remedy(kind: str, right: bool) -> str:
    if right:
        return "give classes as whole numbers (class_encode_column of datasets), or name other columns with --columns"
    if kind != "text":
        return "name others with --columns"
    return (
        "tokenize it to rows of equal length first (map and save_to_disk of datasets), or of a language model write it as "
        'lines of {"text": ...} (rename_column and to_json) and pass --probe text:FILE.jsonl'
    )


def _target(columns: Sequence[Column]) -> str | None:
    names = [column.name for column in columns]
    labels = [column.name for column in columns if column.classes]
    return next((name for name in NAMED_TARGETS if name in names), labels[0] if labels else None)


def _inputs(table: Table, columns: Sequence[Column]) -> tuple[str, ...]:
    kinds = {
        kind: [column.name for column in columns if column.kind == kind]
        for kind in ("image", "array", "number", "text")
    }
    if TOKENS[0] in kinds["array"]:
        return tuple(name for name in TOKENS if name in kinds["array"])
    usual = [name for name in NAMED_INPUTS if name in kinds["image"] + kinds["array"]]
    numbers = [name for name in kinds["number"] if name not in POSITIONS]
    inputs = usual[:1] or kinds["image"][:1] or kinds["array"] or kinds["text"][:1] or numbers
    if not inputs:
        names = ", ".join(f"{column.name} ({column.kind})" for column in table.columns.values())
        raise PosthocError(f"{table.name} holds {names or 'no columns'}: none that could be fed; say with --columns.")
    return tuple(inputs)


def load(asked: Asked, model: "Model") -> Probe:
    """The probe of a table, as this network takes it."""
    table = find_table(Path(asked.place), asked.options.get("split"))
    choice = choose(table, asked.options.get("columns"))
    samples, words = read_samples(table, choice, asked, wanted_size(asked, model))
    probe = of_samples(_as_taken(samples, table, model), asked, model)
    return replace(probe, notes=[*probe.notes, ("columns", words)])


def read_samples(table: Table, choice: Choice, asked: Asked, size: int | None = None) -> tuple[Samples, str]:
    """The samples that are asked for, and in words which they are.

    The first rows; spread evenly where they are sorted by their label. size: the side that pictures which differ in size
    are brought to.
    """
    rows, spread = _rows(table, choice.target, asked)
    used = [*choice.inputs, *([choice.target] if choice.target else [])]
    content = table.read(used, rows)
    with refusing(table.files[0]):
        inputs = {name: _array(table, name, content[name], size) for name in choice.inputs}
        targets = _array(table, choice.target, content[choice.target], None, pixels=True) if choice.target else None
    unlabelled = targets is not None and targets.ndim == 1 and targets.dtype.kind == "i" and bool((targets == -1).all())
    aside = [name for name in table.columns if name not in used]
    words = [
        f"{', '.join(choice.inputs)} as input",
        f"{choice.target} as target" if choice.target and not unlabelled else "no target",
        f"{choice.target} is -1 throughout" if unlabelled else "",
        f"without {', '.join(aside)}" if aside else "",
        f"split {table.split} (of {', '.join([table.split, *table.others])})" if table.split and table.others else "",
        "spread evenly over rows that are sorted by label" if spread else "",
    ]
    classes = table.columns[choice.target].classes if choice.target and not unlabelled else None
    samples = Samples(
        table.name, inputs, None if unlabelled else targets, rows, classes, target=None if unlabelled else choice.target
    )
    return samples, "; ".join(filter(None, words))


def _rows(table: Table, target: str | None, asked: Asked) -> tuple[NDArray[np.int64], bool]:
    """The rows that are asked for, and whether they are spread over all."""
    if not len(table):
        raise PosthocError(f"{table.name} holds no rows; give a table that does.")
    rows = first_rows(len(table), asked.samples, asked.spec, "samples")
    if target is None or table.columns[target].kind != "number" or len(rows) == len(table):
        return rows, False
    labels = _numbers(table, target, table.read([target], np.arange(len(table)))[target])
    ordered = labels.dtype.kind in "biu" and bool((labels[1:] >= labels[:-1]).all()) and labels[0] != labels[-1]
    return (rows * len(table) // len(rows), True) if ordered else (rows, False)


def _as_taken(samples: Samples, table: Table, model: "Model") -> Samples:
    """With columns of one number each as the features of one input, unless the network takes them by their names."""
    from posthoc.replay.forward import arguments_of

    taken = arguments_of(model.module).names
    if any(array.ndim > 1 for array in samples.inputs.values()) or set(samples.inputs) <= set(taken):
        return samples
    return replace(samples, inputs={"input": np.stack(list(samples.inputs.values()), axis=1)})


def _array(table: Table, name: str, column: "pa.ChunkedArray", size: int | None, pixels: bool = False) -> Array:
    if table.columns[name].kind == "image":
        return _pictures(table, name, column, size, pixels)
    return _numbers(table, name, column)


def _numbers(table: Table, name: str, column: "pa.ChunkedArray") -> Array:
    """The numbers of a column [N, ...]; lists are axes, and of one length each."""
    import pyarrow as pa
    import pyarrow.compute as pc

    values: Any = pa.concat_arrays([getattr(chunk, "storage", chunk) for chunk in column.chunks])
    shape = [len(values)]
    while True:
        if values.null_count:
            raise PosthocError(
                f"{table.name}: column {name} lacks values in some of its rows; fill them, or leave those rows out."
            )
        if not pa.types.is_nested(values.type):
            numbers: Array = values.to_numpy(zero_copy_only=False).reshape(shape)
            return numbers
        lengths = pc.list_value_length(values)
        least, most = pc.min(lengths).as_py() or 0, pc.max(lengths).as_py() or 0
        if least != most:
            raise PosthocError(
                f"{table.name}: the rows of column {name} hold {least} to {most} values; bring them to one length first "
                f"(padding='max_length' of a tokenizer, which gives the attention_mask by which padding is left out, too)."
            )
        shape.append(most)
        values = values.flatten()
        values = getattr(values, "storage", values)


def _pictures(table: Table, name: str, column: "pa.ChunkedArray", size: int | None, pixels: bool) -> Array:
    """Pictures [N, H, W] in grey, where all are, or [N, H, W, 3]; pixels: as stored, such as the classes of masks."""
    pictures = []
    for row, value in enumerate(column.to_pylist()):
        content = value.get("bytes") if isinstance(value, dict) else value
        where = f"{table.name}: row {row} of column {name}"
        if not content:
            raise PosthocError(f"{where} holds no picture; save the data set with its pictures inside.")
        pictures.append(read_picture(io.BytesIO(content), where, size, mode=None if pixels else "RGB"))
    if len({picture.shape for picture in pictures}) > 1:
        raise PosthocError(
            f"The pictures in column {name} of {table.name} differ in size; pass --image-size to scale and crop them to one."
        )
    return np.stack(pictures)


def check(asked: Asked) -> None:
    """Raise for a place without tables, a split that is not there, and a normalisation that is none."""
    if not asked.place:
        raise UsageError(f"--probe {asked.spec}: give dataset:DIR, or dataset:FILE.")
    require_pyarrow()
    find_table(Path(asked.place), asked.options.get("split"))
    if asked.options.get("normalize"):
        Normalization.parse(asked.options["normalize"])


KINDS = {"dataset": Kind(load, check, ("image_size", "normalize", "split", "columns"))}
