"""posthoc: what happened inside a network while it trained, from the checkpoints you already have.

From Python::

    import posthoc

    posthoc.extract("checkpoints/", probe="cifar10", output="activations.h5")
    metrics = posthoc.compute_metrics("activations.h5")
"""

import importlib

TYPE_CHECKING = False
if TYPE_CHECKING:  # for type checkers alone: `python -m posthoc` would take a typing.py of the working directory's
    from posthoc.analysis.compare import Comparison as Comparison
    from posthoc.analysis.dfa import dfa as dfa
    from posthoc.analysis.hurst import hurst as hurst
    from posthoc.analysis.kuramoto import kuramoto as kuramoto
    from posthoc.analysis.kuramoto import phase_locking as phase_locking
    from posthoc.analysis.measures.user import measure as measure
    from posthoc.analysis.protocol import Protocol as Protocol
    from posthoc.analysis.records import RunMetrics as RunMetrics
    from posthoc.analysis.records import load_metrics as load_metrics
    from posthoc.analysis.responses import Audit as Audit
    from posthoc.analysis.responses import load_audit as load_audit
    from posthoc.api import audit as audit
    from posthoc.api import check as check
    from posthoc.api import compare as compare
    from posthoc.api import compute_metrics as compute_metrics
    from posthoc.api import list_measures as list_measures
    from posthoc.api import list_nulls as list_nulls
    from posthoc.errors import PosthocError as PosthocError
    from posthoc.replay.probes.probe import Probe as Probe
    from posthoc.replay.run import extract as extract
    from posthoc.store import open_activations as open_activations

__version__ = "0.1.0"

# Imported on first use: `posthoc --help` waits for neither torch nor numba, and the analysis never needs torch.
_HOMES = {
    "Audit": "posthoc.analysis.responses",
    "Comparison": "posthoc.analysis.compare",
    "PosthocError": "posthoc.errors",
    "Probe": "posthoc.replay.probes.probe",
    "Protocol": "posthoc.analysis.protocol",
    "RunMetrics": "posthoc.analysis.records",
    "audit": "posthoc.api",
    "check": "posthoc.api",
    "compare": "posthoc.api",
    "compute_metrics": "posthoc.api",
    "dfa": "posthoc.analysis.dfa",
    "extract": "posthoc.replay.run",
    "hurst": "posthoc.analysis.hurst",
    "kuramoto": "posthoc.analysis.kuramoto",
    "list_measures": "posthoc.api",
    "list_nulls": "posthoc.api",
    "load_audit": "posthoc.analysis.responses",
    "load_metrics": "posthoc.analysis.records",
    "measure": "posthoc.analysis.measures.user",
    "open_activations": "posthoc.store",
    "phase_locking": "posthoc.analysis.kuramoto",
}
__all__ = ["__version__", *_HOMES]


def __dir__() -> list[str]:
    return sorted(__all__)


if not TYPE_CHECKING:  # which would take any name for one of ours

    def __getattr__(name):
        if name not in _HOMES:
            from posthoc.errors import nearest

            near = nearest(name, _HOMES) if not name.startswith("_") else ""
            raise AttributeError(f"module 'posthoc' has no attribute {name!r}" + (f"; {near}" if near else ""))
        return getattr(importlib.import_module(_HOMES[name]), name)
