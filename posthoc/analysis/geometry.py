"""Records of what lies between and within layers, as metrics.json has them."""

from dataclasses import dataclass, field
from functools import partial
from typing import Annotated

import numpy as np

from posthoc.analysis.arrays import FloatArray
from posthoc.typed import Array

ByLayer = Annotated[FloatArray, Array(("E", "L"))]
ByPair = Annotated[FloatArray, Array(("E", "L", "L"))]
_NO_TABLE, _NO_PAIRS = (partial(np.empty, (0,) * dimensions) for dimensions in (2, 3))


@dataclass(frozen=True, eq=False)
class Locking:
    """Between the channels of every two layers: mean phase-locking value and pairwise phase consistency."""

    plv: ByPair = field(default_factory=_NO_PAIRS)
    ppc: ByPair = field(default_factory=_NO_PAIRS)


@dataclass(frozen=True, eq=False)
class Representation:
    """The geometry of the layers; see `representation`."""

    effective_rank: ByLayer
    participation_ratio: ByLayer
    cka_previous: ByLayer
    cka_last: ByLayer
    cka_layers: ByPair
    participation_ratio_layer: ByLayer = field(default_factory=_NO_TABLE)
    cka_previous_sd: ByLayer = field(default_factory=_NO_TABLE)
    cka_last_sd: ByLayer = field(default_factory=_NO_TABLE)
    cka_layers_sd: ByPair = field(default_factory=_NO_PAIRS)
    rms: ByLayer = field(default_factory=_NO_TABLE)
