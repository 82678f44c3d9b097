"""Everything in an HDF5 file, to compare two of them."""

import h5py
import numpy as np


def datasets(path):
    """Dataset name -> its values."""
    found = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: found.update({name: item[()]} if isinstance(item, h5py.Dataset) else {}))
    return found


def assert_same(first, second):
    """All datasets of two files are equal, value for value."""
    a, b = datasets(first), datasets(second)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
