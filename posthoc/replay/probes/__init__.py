"""Probes, by kind. A kind is one entry in `PROBES`: nothing else knows what the samples are."""

from typing import TYPE_CHECKING

from posthoc.errors import UsageError
from posthoc.replay.probes import arrays, datasets, given, images, text, vision
from posthoc.replay.probes.probe import Asked, Batch, Kind, Probe

if TYPE_CHECKING:
    from posthoc.replay.models import Model

__all__ = ["PROBES", "Asked", "Batch", "Kind", "Probe", "check_probe", "load_probe"]

PROBES: dict[str, Kind] = {
    **images.KINDS,
    **arrays.KINDS,
    **vision.KINDS,
    **datasets.KINDS,
    **text.KINDS,
    **given.KINDS,
}

FORMS = (
    "cifar10, cifar100, digits, npz:FILE, npy:FILE, imagefolder:DIR, torchvision:NAME, dataset:DIR, text:FILE, "
    "tokens:FILE or FILE.py:FUNCTION"
)


def check_probe(asked: Asked) -> None:
    """Raise UsageError or PosthocError for what is mistyped or is not there; torch is not imported."""
    kind = PROBES.get(asked.kind)
    if kind is None:
        raise UsageError(f"Unknown data set {asked.spec!r}; give {FORMS}.")
    for name, value in asked.options.items():
        if value not in (None, False) and name not in kind.options:
            raise UsageError(f"--{name.replace('_', '-')} is no option of the probe {asked.kind}; leave it out.")
    kind.check(asked)


def load_probe(asked: Asked, model: "Model") -> Probe:
    """The probe, for this network; raises as `check_probe`, and PosthocError where the two do not fit."""
    check_probe(asked)
    return PROBES[asked.kind].load(asked, model)
