"""Probes of the data sets that torchvision finds on disk, in files written as it keeps them."""

import gzip
import hashlib
import os

import numpy as np
import pytest
import torch
import torchvision
from click.testing import CliRunner
from PIL import Image
from scipy import io
from torch.nn import functional as F

import posthoc
from posthoc.cli import main
from posthoc.errors import PosthocError, UsageError
from posthoc.replay.probes import check_probe
from posthoc.replay.probes.probe import Asked
from posthoc.replay.probes.vision import HELD, read_samples

RANDOM = np.random.default_rng(0)


def idx(array):
    """An array of bytes as MNIST's files hold it."""
    return bytes([0, 0, 8, array.ndim]) + b"".join(side.to_bytes(4, "big") for side in array.shape) + array.tobytes()


def mnist(root, name="MNIST", count=30, prefixes=("train", "t10k")):
    """Both splits, packed and unpacked, which is how torchvision leaves them; images and labels by prefix."""
    (root / name.partition("/")[0] / "raw").mkdir(parents=True)
    content = {}
    for prefix in prefixes:
        images = RANDOM.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = RANDOM.integers(0, 10, count).astype(np.uint8)
        for part, array in (("images-idx3", images), ("labels-idx1", labels)):
            path = root / name.partition("/")[0] / "raw" / f"{prefix}-{part}-ubyte"
            path.write_bytes(idx(array))
            path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(idx(array)))
        content[prefix] = images, labels
    return content


def read(name, root, size=None, samples=None, **options):
    return read_samples(Asked(f"torchvision:{name}", samples, root, options=options), size)


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST", "KMNIST"])
def test_mnist_and_its_like(tmp_path, name):
    content = mnist(tmp_path, name)
    for split, prefix in (("test", "t10k"), ("train", "train")):
        samples, (images, labels) = read(name, tmp_path, split=split), content[prefix]
        np.testing.assert_array_equal(samples.inputs["images"], images)
        np.testing.assert_array_equal(samples.targets, labels)
        library = getattr(torchvision.datasets, name)(str(tmp_path), train=split == "train")
        np.testing.assert_array_equal(samples.inputs["images"], library.data)
        np.testing.assert_array_equal(samples.targets, library.targets)
    assert (samples.classes, len(read(name, tmp_path, samples=5).targets)) == (10, 5)
    with pytest.raises(PosthocError, match="holds only 30 images"):
        read(name, tmp_path, samples=31)


def test_emnist_by_its_parts(tmp_path):
    content = mnist(tmp_path, "EMNIST/letters", prefixes=("emnist-letters-test",))
    samples = read("EMNIST/letters", tmp_path)
    np.testing.assert_array_equal(samples.inputs["images"], content["emnist-letters-test"][0])
    assert samples.classes == len(torchvision.datasets.EMNIST.classes_split_dict["letters"])
    for part in torchvision.datasets.EMNIST.splits:
        assert HELD[f"EMNIST/{part}"].classes == len(torchvision.datasets.EMNIST.classes_split_dict[part])


def test_svhn(tmp_path, monkeypatch):
    images, labels = RANDOM.integers(0, 256, (12, 32, 32, 3), dtype=np.uint8), np.arange(12) % 10 + 1
    io.savemat(tmp_path / "test_32x32.mat", {"X": images.transpose(1, 2, 3, 0), "y": labels[:, None].astype(np.uint8)})
    row = ["", "test_32x32.mat", md5(tmp_path / "test_32x32.mat")]
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", {"test": row})
    samples = read("SVHN", tmp_path)
    np.testing.assert_array_equal(samples.inputs["images"], images)
    np.testing.assert_array_equal(samples.targets, labels % 10)  # 10 stands for 0
    os.truncate(tmp_path / "test_32x32.mat", 500)
    with pytest.raises(PosthocError, match="No intact copy of SVHN"):
        read("SVHN", tmp_path)


def test_stl10(tmp_path, monkeypatch):
    library = torchvision.datasets.STL10
    folder = tmp_path / library.base_folder
    folder.mkdir()
    images = RANDOM.integers(0, 256, (5, 3, 96, 96), dtype=np.uint8)
    contents = {"test_X.bin": images.transpose(0, 1, 3, 2), "test_y.bin": np.arange(1, 6, dtype=np.uint8)}
    contents["unlabeled_X.bin"] = contents["test_X.bin"]
    for name, array in contents.items():
        (folder / name).write_bytes(array.tobytes())
    sums = {name: [name, md5(folder / name)] for name in contents}
    monkeypatch.setattr(library, "test_list", [sums["test_X.bin"], sums["test_y.bin"]])
    monkeypatch.setattr(library, "train_list", [sums["test_X.bin"], sums["test_y.bin"], sums["unlabeled_X.bin"]])
    samples = read("STL10", tmp_path)
    np.testing.assert_array_equal(samples.inputs["images"], images.transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(samples.targets, np.arange(5))
    samples = read("STL10", tmp_path, split="unlabeled")
    assert (samples.targets, samples.classes, len(samples.inputs["images"])) == (None, None, 5)


def test_folders_of_pictures_are_spread_over_their_classes(tmp_path):
    folder = tmp_path / "food-101"
    (folder / "meta").mkdir(parents=True)
    shades = {"cake": 10, "pie": 20, "soup": 30}
    for name, shade in shades.items():
        (folder / "images" / name).mkdir(parents=True)
        for k in range(4):
            Image.new("RGB", (20 + k, 16), (shade + k, 0, 0)).save(folder / "images" / name / f"{k}.png")
            (folder / "images" / name / f"{k}.png").rename(folder / "images" / name / f"{k}.jpg")
    (folder / "meta" / "test.json").write_text(
        '{"cake": ["cake/0", "cake/1", "cake/2", "cake/3"], "pie": ["pie/0", "pie/1", "pie/2", "pie/3"], "soup": ["soup/0", "soup/1", "soup/2", "soup/3"]}'
    )
    samples = read("Food101", tmp_path, size=8, samples=6)
    assert samples.inputs["images"].shape == (6, 8, 8, 3)
    np.testing.assert_array_equal(samples.inputs["images"][:, 0, 0, 0], [10, 12, 20, 22, 30, 32])
    np.testing.assert_array_equal(samples.targets, [0, 0, 1, 1, 2, 2])
    np.testing.assert_array_equal(samples.index, np.arange(6) * 2)
    assert samples.classes == 101
    with pytest.raises(PosthocError, match="differ in size; pass --image-size"):
        read("Food101", tmp_path)
    (folder / "images" / "pie" / "2.jpg").write_bytes(b"torn")
    with pytest.raises(PosthocError, match="image 6 cannot be read"):
        read("Food101", tmp_path, size=8, samples=6)


@pytest.mark.parametrize(
    "content", [b"", b"\x00\x00\x08\x03" + b"\xff" * 12, idx(np.zeros((30, 28, 28), np.uint8))[:-9], b"\xff" * 40]
)
def test_damaged_files_are_refused_in_a_sentence(tmp_path, content):
    mnist(tmp_path)
    (tmp_path / "MNIST" / "raw" / "t10k-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(PosthocError, match=r"No intact copy of MNIST in .*; pass --download") as caught:
        read("MNIST", tmp_path)
    assert len(str(caught.value).splitlines()) == 1


def test_images_and_labels_of_different_number(tmp_path):
    mnist(tmp_path)
    (tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").write_bytes(idx(np.zeros(7, np.uint8)))
    with pytest.raises(PosthocError, match="image 7 cannot be read"):
        read("MNIST", tmp_path)


def test_what_is_not_there_is_told_before_anything_runs(tmp_path):
    for name in ("mnist", "", "ImageNet", "datasets", "VisionDataset"):
        with pytest.raises(UsageError, match="give torchvision: and one of MNIST, FashionMNIST"):
            check_probe(Asked(f"torchvision:{name}", root=tmp_path))
    with pytest.raises(UsageError, match="--split extra: MNIST has test, train"):
        check_probe(Asked("torchvision:MNIST", root=tmp_path, options={"split": "extra"}))
    with pytest.raises(PosthocError, match=r"No intact copy of MNIST in .*--download.*--data-root"):
        check_probe(Asked("torchvision:MNIST", root=tmp_path / "none"))
    with pytest.raises(PosthocError, match="No intact copy of MNIST"):
        read("MNIST", tmp_path)


def test_every_name_is_a_data_set_of_torchvisions():
    for name, held in HELD.items():
        library = getattr(torchvision.datasets, name.partition("/")[0])
        assert issubclass(library, torchvision.datasets.VisionDataset)
        assert held.splits == () or held.names[0] == "test"


NETWORK = "nn.Sequential(nn.Conv2d(1, 6, 5), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 10))"


def test_extract_in_grey_with_mnists_scaling(tmp_path, monkeypatch):
    images, labels = mnist(tmp_path / "data")["t10k"]
    (tmp_path / "nets.py").write_text(f"from torch import nn\n\n\ndef net():\n    return {NETWORK}\n")
    exec((tmp_path / "nets.py").read_text(), namespace := {})
    network = namespace["net"]()
    (tmp_path / "run").mkdir()
    x = (torch.from_numpy(images)[:, None] / 255 - 0.1307) / 0.3081
    expected = []
    for epoch in range(2):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
            loss = F.cross_entropy(network(x), torch.from_numpy(labels).long()).item()
            expected.append((network[0](x).mean((2, 3)).T.clone(), loss))
        torch.save(network.state_dict(), tmp_path / "run" / f"epoch_{epoch}.pt")
    monkeypatch.setenv("POSTHOC_DATA", str(tmp_path / "data"))
    words = ["extract", tmp_path / "run", "-o", tmp_path / "a.h5", "--device", "cpu", "--model", f"{tmp_path / 'nets.py'}:net",
             "--probe", "torchvision:MNIST", "--channels", "all"]  # fmt: skip
    done = CliRunner().invoke(main, [str(word) for word in words])
    assert done.exit_code == 0, done.stderr
    with posthoc.open_activations(tmp_path / "a.h5") as file:
        assert file.recording.identity.probe.preparation["channels"] == 1
        for epoch, (means, loss) in enumerate(expected):
            torch.testing.assert_close(
                torch.from_numpy(file.read("mean", epoch, layer="0")), means, rtol=1e-5, atol=1e-5
            )
            assert file.loss[epoch] == pytest.approx(loss, rel=1e-5)
