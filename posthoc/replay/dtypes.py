"""Types of numbers as torch and safetensors name them, without torch: how wide they are, and NumPy's reading of them."""

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from posthoc.replay.strangers import UnsupportedError

if TYPE_CHECKING:
    import torch

Kind = Literal["floating", "complex", "whole", "other"]


@dataclass(frozen=True)
class DType:
    """A type of numbers by torch's name of it; itemsize in bytes.

    kind: floating and whole numbers are what they say; complex have an imaginary part; others stand for something else
    or need a scale.
    """

    name: str
    itemsize: int
    kind: Kind

    def __str__(self) -> str:
        return self.name

    @property
    def has_fractions(self) -> bool:
        """Whether its numbers, or their parts, are floating point ones."""
        return self.kind in ("floating", "complex")

    @property
    def torch(self) -> "torch.dtype":
        """torch's own; UnsupportedError where this version has none."""
        import torch

        # Looked up by a name of the table below: another attribute of torch may import half of it.
        dtype = getattr(torch, self.name, None)
        if not isinstance(dtype, torch.dtype):
            what = f"it has tensors of type {self.name}, which torch {torch.__version__} does not know"
            raise UnsupportedError(what, "install a newer torch")
        return dtype

    def values(self, raw: NDArray[np.uint8]) -> NDArray[Any]:
        """The numbers in bytes, in NumPy's type where it has it, else in single precision (bfloat16, float8, complex32).

        Of the others, which are no numbers, the bytes themselves.

        >>> DTYPES["bfloat16"].values(np.array([0x80, 0x3F, 0x20, 0xC0], np.uint8))
        array([ 1. , -2.5], dtype=float32)
        """
        if self.name == "bfloat16":
            return (raw.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
        if self.name in _EIGHT_BITS:
            return _table(self.name)[raw]
        if self.name == "complex32":
            return raw.view(np.float16).astype(np.float32).view(np.complex64)
        return raw if self.kind == "other" or self.name == "bcomplex32" else raw.view(self.name)


def _types(kind: Kind, names: str) -> dict[str, DType]:
    pairs = (text.split(":") for text in names.split())
    return {name: DType(name, int(size), kind) for name, size in pairs}


DTYPES = {
    **_types("floating", "float64:8 float32:4 float16:2 bfloat16:2"),
    **_types("floating", "float8_e4m3fn:1 float8_e5m2:1 float8_e4m3fnuz:1 float8_e5m2fnuz:1"),
    **_types("complex", "complex128:16 complex64:8 complex32:4 bcomplex32:4"),
    **_types("whole", "int64:8 int32:4 int16:2 int8:1 uint64:8 uint32:4 uint16:2 uint8:1 bool:1"),
    **_types("other", "float8_e8m0fnu:1 float4_e2m1fn_x2:1 qint8:1 quint8:1 qint32:4 quint4x2:1 quint2x4:1"),
    **_types("other", "bits1x8:1 bits2x4:1 bits4x2:1 bits8:1 bits16:2"),
    **_types("other", " ".join(f"{sign}int{bits}:1" for sign in ("u", "") for bits in range(1, 8))),
}
"""All of torch's, by name."""
PLAIN = frozenset(DTYPES[name] for name in ("float64", "float32", "float16", "bfloat16"))
"""What networks are mostly saved in."""
FLOATING, WHOLE = (
    frozenset(dtype for dtype in DTYPES.values() if dtype.kind == kind) for kind in ("floating", "whole")
)
"""Types of numbers that a network may be given; all others stand for something else or need a scale."""

_EIGHT_BITS = {
    "float8_e4m3fn": (3, 7, "fn"), "float8_e5m2": (2, 15, ""), "float8_e4m3fnuz": (3, 8, "fnuz"),
    "float8_e5m2fnuz": (2, 16, "fnuz"),
}  # fmt: skip
"""Bits of the fraction, bias of the exponent, and which numbers are none: as in IEEE 754, only all ones, or only -0."""


@cache
def _table(name: str) -> NDArray[np.float32]:
    """The numbers that the 256 bytes of an 8-bit type stand for."""
    fraction, bias, special = _EIGHT_BITS[name]
    code = np.arange(256)
    exponent, rest = (code & 0x7F) >> fraction, code & ((1 << fraction) - 1)
    scale = 2.0 ** (np.maximum(exponent, 1) - bias - fraction)
    values = (rest + np.where(exponent > 0, 1 << fraction, 0)) * scale * np.where(code & 0x80, -1, 1)
    if special == "fnuz":
        values[0x80] = np.nan
    elif special == "fn":
        values[[0x7F, 0xFF]] = np.nan
    else:
        top = exponent == (0x7F >> fraction)
        values[top] = np.where(rest[top] > 0, np.nan, np.copysign(np.inf, values[top]))
    result: NDArray[np.float32] = values.astype(np.float32)
    return result
