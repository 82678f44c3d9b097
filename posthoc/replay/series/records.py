"""What a check finds: records of a kind, a severity and numbers; words for them are made elsewhere."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, IntEnum


class Severity(IntEnum):
    """How much a finding matters: a note is worth knowing, a warning may and an error does spoil an analysis."""

    NOTE = 0
    WARNING = 1
    ERROR = 2


class Kind(Enum):
    """What can be wrong with a series of checkpoints, or cannot be known of it."""

    EQUAL = "equal weights"
    PARTLY_EQUAL = "partly equal weights"
    ORDER = "order"
    SWAPPED = "swapped"
    MISPLACED = "out of place"
    PARTLY_MISPLACED = "partly out of place"
    UNRELATED = "unrelated weights"
    SPLICE = "splice"
    RESTART = "restart"
    AVERAGE = "average"
    MISSING_STEPS = "missing steps"
    DUPLICATE_STEPS = "duplicate steps"
    LABELS = "labels"
    TENSORS = "tensors"
    SHAPES = "shapes"
    TYPES = "types"
    PRECISION = "precision"
    NOT_FINITE = "not finite"
    ZERO = "zero"
    UNCHANGED = "unchanged"
    NORM_JUMP = "norm jump"
    DAMAGED = "damaged"


@dataclass(frozen=True)
class Finding:
    """Something that was found.

    checkpoints: rows of the series, those that are at fault first where that is known; tensors: their names, or empty
    where it is about whole checkpoints; evidence: numbers by name; file: name of a checkpoint that could not be read, which
    has no row.
    """

    kind: Kind
    severity: Severity
    checkpoints: tuple[int, ...] = ()
    tensors: tuple[str, ...] = ()
    evidence: Mapping[str, float] = field(default_factory=dict)
    file: str | None = None


class Untold(Enum):
    """What nothing in the files can show."""

    ENDS = "ends"
    ORDER = "order"
    AVERAGES = "averages"
    LABELS = "labels"
    DIRECTION = "direction"
    FEW = "few"
    REST = "rest"
