"""Types of numbers without torch, against torch."""

import numpy as np
import pytest
import torch

from posthoc.replay.dtypes import DTYPES, FLOATING, WHOLE

THEIRS = {str(dtype).removeprefix("torch."): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}


def test_all_of_torch_are_known():
    assert THEIRS.keys() <= DTYPES.keys()
    for name, theirs in THEIRS.items():
        assert DTYPES[name].torch is theirs
        assert DTYPES[name].itemsize == theirs.itemsize
        assert DTYPES[name].kind != "complex" or theirs.is_complex
        assert DTYPES[name].kind != "floating" or theirs.is_floating_point


@pytest.mark.parametrize("dtype", sorted(FLOATING | WHOLE, key=str), ids=str)
def test_values_are_those_of_torch(dtype):
    if dtype.itemsize == 1:
        raw = np.arange(2 if dtype.name == "bool" else 256, dtype=np.uint8)
    else:
        raw = np.random.default_rng(0).integers(0, 256, 4096, np.uint8)
        raw[:16] = [0, 0x80, 0x7F, 0xFF, 0x80, 0x7F, 0xC0, 0x7F, 1, 0, 0, 0, 0, 0, 0, 0x80]
    theirs = torch.frombuffer(bytearray(raw), dtype=dtype.torch)
    theirs = theirs.float() if dtype.itemsize < 4 and dtype.kind == "floating" else theirs
    ours = dtype.values(raw)
    assert ours.size == raw.size // dtype.itemsize
    np.testing.assert_array_equal(ours, theirs.numpy())


@pytest.mark.filterwarnings("ignore:ComplexHalf")
def test_complex_numbers_of_half_precision():
    theirs = torch.tensor([1 - 2j, 0.5 + 65504j], dtype=torch.complex64).to(torch.complex32)
    raw = theirs.view(torch.uint8).numpy()
    np.testing.assert_array_equal(DTYPES["complex32"].values(raw), theirs.to(torch.complex64).numpy())
