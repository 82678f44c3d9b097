"""Everything in an HDF5 file, to compare two of them; parts put together."""

import h5py
import numpy as np

from posthoc.merging import Merger
from posthoc.store import open_activations


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


def merge(path, parts, skipped=(), untrained=()):
    """The file that is made of parts."""
    merger = Merger()
    for part in parts:
        with open_activations(part) as source:
            merger.add(source)
    for number, part in untrained:
        with open_activations(part) as source:
            merger.add_untrained(number, source)
    merger.write(path, skipped)
