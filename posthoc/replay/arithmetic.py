"""How a device multiplies: as it was asked for, whatever the user's code has set."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import backends

PARTS = ("matmul", "conv", "rnn")


@contextmanager
def arithmetic(tf32: bool) -> Iterator[None]:
    """TF32 off unless it was asked for: it moves activations in the fourth digit. No algorithm of cuDNN is chosen by trying,
    which would choose another next time.

    Since torch 2.9 there are two sets of names for this: of the older ones, which parts of torch still read, each fails
    where the newer ones disagree, and leaves on what a newer one has turned on. Both are set, and put back.
    """
    settings = [*_settings(tf32)]
    before = []
    for place, name, _ in settings:
        with suppress(RuntimeError):  # they disagree already, and stay as the others are put back
            before.append((place, name, getattr(place, name)))
    matmul = None
    with suppress(RuntimeError):
        matmul = torch.get_float32_matmul_precision()
    try:
        for place, name, value in settings:
            setattr(place, name, value)
        yield
    finally:
        if matmul:
            torch.set_float32_matmul_precision(matmul)
        for place, name, value in before:
            setattr(place, name, value)


def _settings(tf32: bool) -> Iterator[tuple[Any, str, Any]]:
    """Where each setting is, what it is called, and what it is to be: the older names first, which change the newer."""
    yield backends.cudnn, "benchmark", False
    yield backends.cudnn, "deterministic", True
    yield backends.cuda.matmul, "allow_tf32", tf32
    yield backends.cudnn, "allow_tf32", tf32
    on_gpu = [backends.cuda.matmul, *(getattr(backends.cudnn, part, None) for part in PARTS)]
    on_cpu = [getattr(backends.mkldnn, part, None) for part in PARTS]
    for places, value in ((on_gpu, "tf32" if tf32 else "ieee"), (on_cpu, "ieee")):
        for place in places:
            if hasattr(place, "fp32_precision"):
                yield place, "fp32_precision", value
