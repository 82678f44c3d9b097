"""Which tensor of a checkpoint is which of a model: names that wrappers lengthened, compared without their additions."""

from collections.abc import Iterable, Iterator, Mapping

WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Components that DataParallel, torch.compile, FSDP and activation checkpointing put into names, at any depth."""
UNUSED = ("num_batches_tracked", "n_averaged", "_extra_state")
"""Counters that evaluation does not use; some checkpoints lack them, others add them."""


MOST_PARTS = 64
"""How many parts of a checkpoint are tried as networks of their own; each is compared with a model."""


def canonical(names: Iterable[str]) -> dict[str, str]:
    """Each name without wrappers and without the leading components that all of them share.

    Applied to both a checkpoint's names and a model's, it makes names equal that differ by DataParallel, torch.compile,
    or the attribute under which a trainer keeps its network.

    >>> canonical(["model.module.0.weight", "model._orig_mod.module.1.weight"])
    {'model.module.0.weight': '0.weight', 'model._orig_mod.module.1.weight': '1.weight'}
    """
    parts = {name: name.split(".") for name in names}
    bare = {name: [part for part in row[:-1] if part not in WRAPPERS] + row[-1:] for name, row in parts.items()}
    if len(set(map(tuple, bare.values()))) == len(bare):
        parts = bare
    used = [row for row in parts.values() if row[0] not in UNUSED]
    shared = 0
    while used and all(len(row) > shared + 1 and row[shared] == used[0][shared] for row in used):
        shared += 1
    return {name: ".".join(row[shared:] if len(row) > shared else row) for name, row in parts.items()}


def readings(names: Iterable[str]) -> Iterator[dict[str, str]]:
    """The ways to read a checkpoint's names: all of them, then those of one part only (a trainer's model, a teacher).

    Of a checkpoint with more than 64 parts only the largest are read, in the order of the file.
    """
    names = list(names)
    shortened = canonical(names)
    yield shortened
    parts: dict[str, list[str]] = {}
    for name, short in shortened.items():
        part, dot, _ = short.partition(".")
        if dot:
            parts.setdefault(part, []).append(name)
    largest = sorted(parts, key=lambda part: -len(parts[part]))[:MOST_PARTS]
    for part in [part for part in parts if part in set(largest)]:
        yield canonical(parts[part])


def shapes_by_name(names: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The shapes of a reading, by canonical name."""
    return {short: shapes[name] for name, short in names.items()}
