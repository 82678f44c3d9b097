"""The weights themselves: how large they are and how they move. Nothing is drawn beside them: no null decides."""

from collections.abc import Callable

from posthoc.analysis.measures.measure import Measure
from posthoc.analysis.measures.snapshot import Estimate, Snapshot
from posthoc.analysis.records import Aside
from posthoc.analysis.weights import ALL


def _of_all(column: str) -> Callable[[Snapshot], Estimate | Aside]:
    """A column of the path of all weights together."""

    def measure(snapshot: Snapshot) -> Estimate | Aside:
        path = snapshot.replay.weight_paths.get(ALL)
        if path is None:
            return Aside.NEEDS_WEIGHTS
        values = getattr(path, column)
        return Estimate(float(values[snapshot.row])) if values.size else Aside.NEEDS_SPECTRA

    return measure


def _measure(column: str, title: str, about: str, looks_ahead: bool = False) -> Measure:
    return Measure(
        f"weights_{column}", title, title, about,
        of_checkpoint=_of_all(column), headline=False, listed=False, layers=False, looks_ahead=looks_ahead,
    )  # fmt: skip


MEASURES = (
    _measure("norm", "norm of the weights", "root of the sum of the squares of all parameters"),
    _measure("step", "step length", "distance of the weights from those of the checkpoint before"),
    _measure("start", "distance from the start", "distance of the weights from those of the first checkpoint"),
    _measure(
        "cosine", "cosine of successive steps", "of the step to this checkpoint with the step to the next", looks_ahead=True
    ),
    _measure(
        "stable_rank", "stable rank",
        "squared Frobenius norm over squared spectral norm, mean over the matrices of weights",
    ),
    _measure(
        "hill_alpha", "Hill alpha",
        "exponent of a power law for the tail of the eigenvalues of W^T W, mean over the matrices of weights",
    ),
)  # fmt: skip
