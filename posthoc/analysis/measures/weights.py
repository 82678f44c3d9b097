"""The weights themselves: how large they are and how they move. Nothing is drawn beside them: no null decides."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from posthoc.analysis.arrays import FloatArray
from posthoc.analysis.measures.measure import Measure
from posthoc.analysis.weights import ALL, WeightPath

if TYPE_CHECKING:
    from posthoc.store import Activations

ABOUT = {
    "norm": ("norm of the weights", "root of the sum of the squares of all parameters"),
    "step": ("step length", "distance of the weights from those of the checkpoint before"),
    "start": ("distance from the start", "distance of the weights from those of the first checkpoint"),
    "cosine": ("cosine of successive steps", "of the step to this checkpoint with the step to the next"),
    "stable_rank": (
        "stable rank",
        "squared Frobenius norm over squared spectral norm, mean over the matrices of weights",
    ),
    "hill_alpha": (
        "Hill alpha",
        "exponent of a power law for the tail of the eigenvalues of W^T W, mean over the matrices of weights",
    ),
}
"""Of the columns of a path: what each is called, and what it is."""

LOOKING_AHEAD = ("cosine",)
"""Those of which a value is known only once the next checkpoint is."""


def of_paths(paths: Mapping[str, WeightPath]) -> dict[str, Measure]:
    """The measures of all weights together; none where the file does not hold them."""
    return {
        f"weights_{name}": Measure(
            f"weights_{name}", title, title, about,
            of_activations=_column(paths[ALL], name), headline=False, listed=False, looks_ahead=name in LOOKING_AHEAD,
        )
        for name, (title, about) in ABOUT.items() if paths and getattr(paths[ALL], name).size
    }  # fmt: skip


def _column(path: WeightPath, name: str) -> Callable[["Activations"], tuple[FloatArray, str]]:
    return lambda activations: (getattr(path, name), "weights")
