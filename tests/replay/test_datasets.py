"""Probes of tables: saved by the library datasets, or files of Parquet and Arrow. Expected is what the library itself reads."""

import io
import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from torch import nn
from torch.nn import functional as F

import posthoc
from posthoc.cli import main
from posthoc.errors import PosthocError, UsageError
from posthoc.replay.probes import check_probe
from posthoc.replay.probes.datasets import choose, read_samples
from posthoc.replay.probes.probe import Asked
from posthoc.replay.probes.tables import find_table

datasets = pytest.importorskip("datasets")
RANDOM = np.random.default_rng(0)
PICTURES = RANDOM.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
LABELS = [k % 4 for k in range(40)]
FEATURES = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=list("abcdef"))})


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets.disable_progress_bars()


def pictures(labels=LABELS, images=PICTURES):
    rows = {"img": [Image.fromarray(image) for image in images], "label": list(labels)}
    return datasets.Dataset.from_dict(rows, features=FEATURES)


def read(place, columns=None, size=None, **options):
    asked = Asked(f"dataset:{place}", **options)
    table = find_table(place, asked.options.get("split"))
    return read_samples(table, choose(table, columns), asked, size)


def written(folder, **columns):
    pq.write_table(pa.table(columns), folder / "a.parquet")
    return folder / "a.parquet"


@pytest.mark.parametrize("form", ["folder", "shards", "parquet", "row groups", "arrow"])
def test_pictures_and_classes_are_those_the_library_reads(tmp_path, form):
    data = pictures()
    place = tmp_path / "set"
    if form in ("folder", "shards"):
        data.save_to_disk(place, num_shards=3 if form == "shards" else 1)
        expected = datasets.load_from_disk(place)
    elif form == "arrow":
        place.mkdir()
        with pa.ipc.new_file(str(place / "a.arrow"), data.data.schema) as file:
            file.write(data.data.table)
        expected = data
    else:
        place.mkdir()
        data.to_parquet(place / "a.parquet", **({"batch_size": 7} if form == "row groups" else {}))
        expected = data
    samples, words = read(place, samples=30)
    np.testing.assert_array_equal(samples.inputs["img"], [np.asarray(row) for row in expected[:30]["img"]])
    np.testing.assert_array_equal(samples.targets, expected[:30]["label"])
    np.testing.assert_array_equal(samples.index, np.arange(30))
    assert (samples.inputs["img"].dtype, samples.classes) == (np.uint8, 6)
    assert words == "img as input; label as target"


def test_rows_sorted_by_label_are_spread_evenly(tmp_path):
    pictures(sorted(LABELS)).save_to_disk(tmp_path, num_shards=3)
    samples, words = read(tmp_path, samples=8)
    np.testing.assert_array_equal(samples.index, np.arange(8) * 5)
    np.testing.assert_array_equal(samples.targets, [0, 0, 1, 1, 2, 2, 3, 3])
    np.testing.assert_array_equal(samples.inputs["img"], PICTURES[::5])
    assert "spread evenly" in words
    with pytest.raises(PosthocError, match="holds only 40 samples"):
        read(tmp_path, samples=41)


def test_splits(tmp_path):
    shades = {name: pictures(images=np.full_like(PICTURES, k)) for k, name in enumerate(("train", "validation", "odd"))}
    datasets.DatasetDict(shades).save_to_disk(tmp_path / "saved")
    (tmp_path / "files" / "data").mkdir(parents=True)
    (tmp_path / "parts").mkdir()
    for name in ("train", "validation"):
        shades[name].to_parquet(tmp_path / "files" / "data" / f"{name}-00000-of-00001.parquet")
        shades[name].to_parquet(tmp_path / "parts" / name / "0000.parquet")
    for place in ("saved", "files", "parts"):
        samples, words = read(tmp_path / place)
        assert samples.inputs["img"].max() == 1
        assert "split validation (of validation, train" in words
        assert read(tmp_path / place, options={"split": "train"})[0].inputs["img"].max() == 0
        with pytest.raises(PosthocError, match=r"--split test: .* holds .*train"):
            find_table(tmp_path / place, "test")
    assert read(tmp_path / "saved", options={"split": "odd"})[0].inputs["img"].max() == 2
    with pytest.raises(PosthocError, match="has no splits"):
        find_table(tmp_path / "saved" / "odd", "test")
    (tmp_path / "parts" / "other").mkdir()
    shades["train"].to_parquet(tmp_path / "parts" / "other" / "train.parquet")
    with pytest.raises(PosthocError, match=r"several tables \(other, train\)"):
        find_table(tmp_path / "parts")


@given(
    arrays.arrays(
        st.sampled_from(["int8", "uint8", "int64", "float16", "float64", "bool"]),
        arrays.array_shapes(min_dims=2, max_dims=4, max_side=4),
    ),
    st.booleans(),
)
@settings(max_examples=30, deadline=None)
def test_lists_of_one_length_are_arrays(tmp_path_factory, array, fixed):
    kind = pa.from_numpy_dtype(array.dtype)
    for side in reversed(array.shape[1:]):
        kind = pa.list_(kind, side if fixed else -1)
    rows = [
        pa.array(array[k : k + 2].tolist() if array.dtype != np.float16 else list(map(list_of, array[k : k + 2])), kind)
        for k in range(0, len(array), 2)
    ]
    place = tmp_path_factory.mktemp("lists")
    with pa.ipc.new_stream(str(place / "a.arrow"), pa.schema({"x": kind})) as file:
        for chunk in rows:
            file.write(pa.record_batch({"x": chunk}))
    samples, _ = read(place)
    assert samples.inputs["x"].dtype == array.dtype
    np.testing.assert_array_equal(samples.inputs["x"], array)


def list_of(array):
    """Nested lists of NumPy's scalars, which is how pyarrow takes half precision."""
    return [list_of(row) for row in array] if array.ndim else array[()]


def test_arrays_of_the_library_are_its_arrays(tmp_path):
    x, y = RANDOM.normal(size=(6, 2, 3)).astype(np.float32), RANDOM.normal(size=(6, 2)).astype(np.float32)
    features = {"x": datasets.Array2D((2, 3), "float32"), "y": datasets.Sequence(datasets.Value("float32"), length=2)}
    datasets.Dataset.from_dict({"x": x, "y": y}, features=datasets.Features(features)).save_to_disk(tmp_path)
    samples, _ = read(tmp_path)
    np.testing.assert_array_equal(samples.inputs["x"], datasets.load_from_disk(tmp_path).with_format("numpy")[:]["x"])
    np.testing.assert_array_equal(samples.targets, y)


def test_masks_are_pictures_as_stored(tmp_path):
    masks = RANDOM.integers(0, 3, (4, 8, 8), dtype=np.uint8)
    rows = {
        "image": [Image.fromarray(image) for image in PICTURES[:4]],
        "annotation": [Image.fromarray(mask) for mask in masks],
    }
    features = datasets.Features({"image": datasets.Image(), "annotation": datasets.Image()})
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path)
    samples, _ = read(tmp_path)
    np.testing.assert_array_equal(samples.targets, masks)


TABLE = {
    "input_ids": [[1, 2]] * 3, "attention_mask": [[1, 1]] * 3, "text": ["a"] * 3, "a": [1.0] * 3, "b": [2] * 3, "id": [0, 1, 2],
    "label": [0, 1, 0], "other": [5] * 3,
}  # fmt: skip


@pytest.mark.parametrize(
    ("leave", "columns", "inputs", "target"),
    [
        ((), None, ("input_ids", "attention_mask"), "label"),
        ((), ":other", ("input_ids", "attention_mask"), "other"),
        ((), ":", ("input_ids", "attention_mask"), None),
        ((), "a,b", ("a", "b"), "label"),
        ((), "a, b :other", ("a", "b"), "other"),
        ((), "a:", ("a",), None),
        (("input_ids", "attention_mask", "text"), None, ("a", "b", "other"), "label"),
        (("input_ids", "label", "text"), None, ("attention_mask",), None),
    ],
)
def test_columns_are_told_or_named(tmp_path, leave, columns, inputs, target):
    table = find_table(written(tmp_path, **{name: rows for name, rows in TABLE.items() if name not in leave}))
    chosen = choose(table, columns)
    assert (chosen.inputs, chosen.target) == (inputs, target)


def test_labels_that_are_not_given(tmp_path):
    pictures([-1] * 40).save_to_disk(tmp_path)
    samples, words = read(tmp_path)
    assert (samples.targets, samples.classes) == (None, None)
    assert "no target; label is -1 throughout" in words


@pytest.mark.parametrize(
    ("columns", "asked", "says"),
    [
        ({"x": [[1, 2], [3]]}, None, "column x hold 1 to 2 values; bring them to one length"),
        ({"x": [[1.0, None]]}, None, "column x lacks values"),
        ({"x": [None, [1.0]]}, None, "column x lacks values"),
        ({"text": ["a"], "label": [0]}, None, "column text holds text; tokenize"),
        ({"x": [1.0], "label": ["cat"]}, None, "column label holds text; give classes as whole numbers"),
        ({"x": [1.0]}, "z", r"--columns z: .* has no column z; it has x"),
        ({"when": pa.array([0], pa.timestamp("ms"))}, None, r"holds when \(timestamp\[ms\]\): none that could be fed"),
        ({"x": pa.array([], pa.float32())}, None, "holds no rows"),
        ({"image": [b"no picture"]}, None, "row 0 of column image is no picture"),
        ({"image": [{"bytes": None, "path": "/etc/passwd"}]}, None, "row 0 of column image holds no picture"),
        ({"image": pa.array([None], pa.binary())}, None, "row 0 of column image holds no picture"),
    ],
)
def test_unfit_columns_are_refused(tmp_path, columns, asked, says):
    with pytest.raises(PosthocError, match=says):
        read(written(tmp_path, **columns), asked)


def test_pictures_of_several_sizes(tmp_path):
    files = []
    for width in (8, 12):
        Image.new("RGB", (width, 8), (width, 0, 0)).save(file := io.BytesIO(), "png")
        files.append(file.getvalue())
    place = written(tmp_path, image=files)
    with pytest.raises(PosthocError, match="differ in size; pass --image-size"):
        read(place)
    samples, _ = read(place, size=6)
    assert samples.inputs["image"].shape == (2, 6, 6, 3)
    Image.new("1", (20_000, 20_000)).save(file := io.BytesIO(), "png")
    with pytest.raises(PosthocError, match="decompression bomb"):
        read(written(tmp_path, image=[file.getvalue()]))


def damaged(folder, kind):
    place = folder / "set"
    pictures().save_to_disk(place)
    state, data = place / "state.json", place / "data-00000-of-00001.arrow"
    if kind == "torn":
        os.truncate(data, data.stat().st_size // 2)
    elif kind == "garbage":
        data.write_bytes(b"\xff" * 100)
    elif kind == "gone":
        data.unlink()
    elif kind == "pipe":
        data.unlink()
        os.mkfifo(data)
    elif kind == "elsewhere":
        state.write_text(json.dumps({"_data_files": [{"filename": "../../secret.arrow"}]}))
    elif kind == "state":
        state.write_text("{")
    elif kind == "list":
        state.write_text("[]")
    elif kind == "parquet":
        place = folder / "a.parquet"
        place.write_bytes(b"PAR1 torn PAR1")
    elif kind == "empty":
        place = folder / "empty"
        place.mkdir()
    elif kind == "other file":
        place = folder / "a.csv"
        place.write_text("1,2")
    elif kind == "absent":
        place = folder / "none"
    elif kind == "splits":
        place = folder / "splits"
        place.mkdir()
        (place / "dataset_dict.json").write_text(json.dumps({"splits": [".."]}))
    return place


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("torn", "not a readable table"), ("garbage", "not a readable table"), ("gone", "No such file"), ("pipe", "is a pipe"),
        ("elsewhere", "does not say which files"), ("state", "not valid JSON"), ("list", "does not say which files"),
        ("parquet", "not a readable table"), ("empty", "No table in"), ("other file", "is no table"), ("absent", "No such"),
        ("splits", "does not say which splits"),
    ],
)  # fmt: skip
def test_damaged_tables_are_refused_in_a_sentence(tmp_path, kind, says):
    with pytest.raises(PosthocError, match=says) as caught:
        read(damaged(tmp_path, kind))
    assert len(str(caught.value).splitlines()) == 1


def test_features_of_any_form_are_no_harm(tmp_path):
    for text in (
        b"{",
        b"[]",
        b'{"info": {"features": 3}}',
        b'{"info": {"features": {"x": {"_type": "ClassLabel", "names": 3}}}}',
        b"[" * 10**5,
    ):
        table = pa.table({"x": [1, 2]}).replace_schema_metadata({b"huggingface": text})
        pq.write_table(table, tmp_path / "a.parquet")
        assert find_table(tmp_path / "a.parquet").columns["x"].classes is None


def test_the_place_is_checked_before_anything_runs(tmp_path):
    with pytest.raises(UsageError, match="give dataset:DIR"):
        check_probe(Asked("dataset:"))
    with pytest.raises(UsageError, match="--columns is no option of the probe digits"):
        check_probe(Asked("digits", options={"columns": "a"}))
    with pytest.raises(UsageError, match="Unknown normalisation"):
        check_probe(Asked(f"dataset:{written(tmp_path, x=[1])}", options={"normalize": "odd"}))


class Tokens(nn.Module):
    """Means of embeddings over what the mask leaves."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(30, 12), nn.Linear(12, 3)

    def forward(self, input_ids, attention_mask):
        weight = attention_mask[..., None].float()
        return self.head((self.embed(input_ids) * weight).sum(1) / weight.sum(1))


def network_file(folder):
    """The networks of the tests below, as their user would write them down."""
    (folder / "nets.py").write_text(
        "import torch\nfrom torch import nn\n\n\n"
        "def conv():\n    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 6))\n\n\n"
        "def table():\n    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))\n\n\n"
        "class Tokens(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.embed, self.head = nn.Embedding(30, 12), nn.Linear(12, 3)\n\n"
        "    def forward(self, input_ids, attention_mask):\n        weight = attention_mask[..., None].float()\n"
        "        return self.head((self.embed(input_ids) * weight).sum(1) / weight.sum(1))\n"
    )
    return folder / "nets.py"


def trained(folder, network):
    """Two checkpoints; what the network gives at each is told by `of`."""
    (folder / "run").mkdir()
    states = []
    for epoch in range(2):
        torch.manual_seed(epoch)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter += 0.3 * torch.randn_like(parameter)
        states.append({name: tensor.clone() for name, tensor in network.state_dict().items()})
        torch.save(states[-1], folder / "run" / f"epoch_{epoch}.pt")
    return states


def extract(folder, name, *options):
    """As a user would."""
    words = ["extract", folder / "run", "-o", folder / "a.h5", "--model", f"{network_file(folder)}:{name}", *options]
    done = CliRunner().invoke(main, [str(word) for word in words])
    assert done.exit_code == 0, done.stderr
    return done.stderr


def test_extract_of_pictures(tmp_path):
    data = pictures()
    datasets.DatasetDict(train=pictures(images=PICTURES[::-1]), test=data).save_to_disk(tmp_path / "set")
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 6))
    states = trained(tmp_path, network)
    words = extract(
        tmp_path, "conv", "--probe", f"dataset:{tmp_path / 'set'}", "--normalize", "0.5/0.25", "--channels", "all"
    )
    assert "img as input; label as target; split test (of test, train)" in " ".join(words.split())
    x = torch.stack([torch.from_numpy(np.array(row)) for row in data["img"]]).permute(0, 3, 1, 2) / 255
    with posthoc.open_activations(tmp_path / "a.h5") as file, torch.no_grad():
        for epoch, state in enumerate(states):
            network.load_state_dict(state)
            means = network[0]((x - 0.5) / 0.25).mean((2, 3)).T
            torch.testing.assert_close(torch.from_numpy(file.read("mean", epoch, layer="0")), means)
            loss = F.cross_entropy(network((x - 0.5) / 0.25), torch.tensor(data["label"])).item()
            assert file.loss[epoch] == pytest.approx(loss, rel=1e-5)


def test_extract_of_tokens_by_their_names(tmp_path):
    ids, mask = RANDOM.integers(0, 30, (20, 7)), (RANDOM.random((20, 7)) < 0.7).astype(int)
    mask[:, 0] = 1
    rows = {
        "text": ["a"] * 20,
        "label": [k % 3 for k in range(20)],
        "attention_mask": mask.tolist(),
        "input_ids": ids.tolist(),
    }
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "set")
    states = trained(tmp_path, network := Tokens())
    words = extract(tmp_path, "Tokens", "--probe", f"dataset:{tmp_path / 'set'}")
    assert "input_ids, attention_mask as input; label as target; without text" in " ".join(words.split())
    with posthoc.open_activations(tmp_path / "a.h5") as file, torch.no_grad():
        for epoch, state in enumerate(states):
            network.load_state_dict(state)
            scores = network(torch.from_numpy(ids), torch.from_numpy(mask))
            assert file.loss[epoch] == pytest.approx(
                F.cross_entropy(scores, torch.tensor(rows["label"])).item(), rel=1e-5
            )


def test_extract_of_a_table_of_numbers(tmp_path):
    columns = {name: RANDOM.normal(size=50) for name in ("age", "height", "weight")}
    price = RANDOM.normal(size=50)
    place = written(tmp_path, **columns, row=np.arange(50), price=price)
    states = trained(tmp_path, network := nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1)))
    extract(
        tmp_path, "table", "--probe", f"dataset:{place}", "--columns", "age,height,weight:price", "--channels", "all"
    )
    x = torch.from_numpy(np.stack(list(columns.values()), 1)).float()
    with posthoc.open_activations(tmp_path / "a.h5") as file, torch.no_grad():
        for epoch, state in enumerate(states):
            network.load_state_dict(state)
            torch.testing.assert_close(torch.from_numpy(file.read("mean", epoch, layer="0")), network[0](x).T)
            loss = F.mse_loss(network(x)[:, 0], torch.from_numpy(price).float()).item()
            assert file.loss[epoch] == pytest.approx(loss, rel=1e-5)
