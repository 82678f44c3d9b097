"""Data sets and loaders that are handed over: put together as their collate function would all samples at once."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

import posthoc
from posthoc.errors import PosthocError
from posthoc.replay.probes import given
from posthoc.replay.probes.probe import Asked

LENGTHS = np.random.default_rng(0).integers(2, 9, 40)
ROWS = [np.arange(1, length + 1) for length in LENGTHS]


class Rows(Dataset):
    def __len__(self):
        return len(ROWS)

    def __getitem__(self, row):
        return {"input_ids": torch.from_numpy(ROWS[row]), "labels": row % 3}


class Stream(IterableDataset):
    """once: whether it is used up when it was gone through."""

    def __init__(self, once=False):
        self.rows = iter(Rows()) if once else None

    def __iter__(self):
        return self.rows or (Rows()[row] for row in range(len(ROWS)))


class Plain:
    """A table of others: with a length, items and a shape, whose rows are dictionaries of lists, numbers and text."""

    shape = (len(ROWS), 4)

    def __init__(self, **changes):
        self.changes = changes

    def __len__(self):
        return len(ROWS)

    def __getitem__(self, row):
        if not 0 <= row < len(ROWS):
            raise IndexError(row)
        sample = {"input_ids": [row, row + 1], "weight": 0.5 * row, "text": "a" * row, "labels": row % 3, "none": None}
        return sample | {name: change(row) for name, change in self.changes.items()}


def padded(samples):
    """As `transformers.DataCollatorWithPadding`."""
    ids = torch.nn.utils.rnn.pad_sequence([sample["input_ids"] for sample in samples], batch_first=True)
    return {
        "input_ids": ids,
        "attention_mask": (ids > 0).long(),
        "labels": torch.tensor([sample["labels"] for sample in samples]),
    }


def probe_of(value, count=None):
    return given.probe_of(value, Asked("probe", count, given=value), "probe", torch.nn.Identity())


@pytest.mark.parametrize("count", [None, 10, 33])
@pytest.mark.parametrize("data", [Rows, Stream])
def test_a_loader_that_pads_gives_all_samples_the_length_of_the_longest(data, count, monkeypatch):
    monkeypatch.setattr(given, "AT_ONCE", 3)
    probe = probe_of(DataLoader(data(), batch_size=4, collate_fn=padded), count)
    n = count or len(ROWS)
    longest = LENGTHS[:n].max()
    assert probe.inputs["input_ids"].tolist() == [[*row, *[0] * (longest - len(row))] for row in ROWS[:n]]
    np.testing.assert_array_equal(probe.inputs["attention_mask"].sum(1), LENGTHS[:n])
    np.testing.assert_array_equal(probe.masks["attention_mask"].sum(1), LENGTHS[:n])
    np.testing.assert_array_equal(probe.labels, np.arange(n) % 3)


def test_batches_that_cannot_be_padded_alike_are_refused():
    for loader in (
        DataLoader(Stream(once=True), batch_size=4, collate_fn=padded),
        DataLoader(Batches(), batch_size=None),
    ):
        with pytest.raises(PosthocError, match=r"differ in shape .* cannot be gone through again to pad them alike"):
            probe_of(loader)


class Batches(IterableDataset):
    def __iter__(self):
        return (torch.ones(2, length) for length in (3, 5))


@pytest.mark.parametrize("loaded", [False, True])
def test_what_has_a_length_and_items_is_a_data_set(loaded):
    probe = probe_of(DataLoader(Plain(), batch_size=7) if loaded else Plain(), 12)
    assert set(probe.inputs) == {"input_ids", "weight"}
    np.testing.assert_array_equal(probe.inputs["input_ids"], [[row, row + 1] for row in range(12)])
    np.testing.assert_array_equal(probe.inputs["weight"], np.arange(12) / 2)
    np.testing.assert_array_equal(probe.labels, np.arange(12) % 3)


def test_rows_that_are_no_dictionaries_are_inputs_and_targets():
    class Pairs(Plain):
        def __getitem__(self, row):
            return np.full(3, row, "f4"), row % 2

    probe = probe_of(Pairs(), 5)
    np.testing.assert_array_equal(probe.inputs["input"], np.arange(5)[:, None].repeat(3, 1))
    np.testing.assert_array_equal(probe.labels, [0, 1, 0, 1, 0])


def test_a_data_set_of_hugging_face(tmp_path):
    datasets = pytest.importorskip("datasets")
    mask = (np.arange(8) < LENGTHS[:, None]).astype(int)
    columns = {"input_ids": mask * 7, "attention_mask": mask, "labels": np.arange(len(mask)) % 3}
    made = datasets.Dataset.from_dict({name: values.tolist() for name, values in columns.items()})
    for data in (made, made.with_format("torch"), made.with_format("numpy"), DataLoader(made, batch_size=8)):
        probe = probe_of(data)
        for name in ("input_ids", "attention_mask"):
            np.testing.assert_array_equal(probe.inputs[name], columns[name])
        np.testing.assert_array_equal(probe.labels, columns["labels"])
    with pytest.raises(PosthocError, match=r"probe gives a datasets\.dataset_dict\.DatasetDict; give a posthoc\.Probe"):
        probe_of(datasets.DatasetDict(test=made))


class Frame(Plain):
    def keys(self):
        return ["a"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Plain(input_ids=lambda row: [0] * row), r"rows of the column input_ids of the data set differ in shape \(\(0,\) to \(39,\)\)"),
        (Plain(weight=lambda row: row or None), "column weight of the data set lacks numbers in some of its rows; fill them"),
        (Plain(input_ids=lambda row: "a", weight=lambda row: ""), r"gives a \S*test_data_sets\.Plain, whose samples hold no array of"),
        (Frame(), r"probe gives a \S*test_data_sets\.Frame; give a posthoc\.Probe, \(inputs, targets\), a data set or a DataLoader"),
        (3, "probe gives an int; give"),
    ],
)  # fmt: skip
def test_what_cannot_be_put_together_is_refused_in_a_sentence(value, message):
    with pytest.raises(PosthocError, match=message):
        probe_of(value)


def test_a_plain_data_set_is_replayed_as_arrays_are(tmp_path):
    torch.manual_seed(0)
    (tmp_path / "net.py").write_text(
        "from torch import nn\ndef make(): return nn.Sequential(nn.Embedding(60, 4), nn.Linear(4, 3))\n"
    )
    module = torch.nn.Sequential(torch.nn.Embedding(60, 4), torch.nn.Linear(4, 3))
    (tmp_path / "run").mkdir()
    torch.save(module.state_dict(), tmp_path / "run" / "epoch_1.pt")
    options = {"model": f"{tmp_path / 'net.py'}:make", "layers": ["1"], "channels": None}

    class Ids(Plain):
        def __getitem__(self, row):
            return {"ids": [row, row + 1]}

    ids = np.stack([np.arange(len(ROWS)), np.arange(len(ROWS)) + 1], 1)
    with torch.no_grad():
        expected = module(torch.from_numpy(ids)).mean(1).T
    with posthoc.open_activations(posthoc.extract(tmp_path / "run", Ids(), tmp_path / "a.h5", **options)) as file:
        np.testing.assert_allclose(file.read("mean", 0), expected, atol=1e-6)
