"""Probes from every source; torchvision's own files in a folder of the same layout."""

import hashlib
import os
import pickle
import zipfile
import zlib

import numpy as np
import pytest
import torchvision
from PIL import Image

from posthoc.errors import PosthocError, UsageError
from posthoc.replay.probes.images import Normalization, load_images, probe_images

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
LABELS = np.arange(20) % 4


def test_digits():
    train, test = load_images("digits", "train"), load_images("digits")
    assert (len(train), len(test), test.classes) == (1000, 797, 10)
    assert test.images.shape == (797, 32, 32, 3)
    assert test.images.max() == 255
    assert test.index[0] == 1000
    assert len(np.unique(test.labels)) == 10


@pytest.mark.parametrize("keys", [("x_test", "y_test"), ("images", "labels"), ("x", "y")])
@pytest.mark.parametrize("form", ["NHWC", "NCHW", "NHW"])
def test_npz(tmp_path, keys, form):
    images = {"NHWC": IMAGES, "NCHW": IMAGES.transpose(0, 3, 1, 2), "NHW": IMAGES[..., 0]}[form]
    np.savez(tmp_path / "a.npz", **dict(zip(keys, (images, LABELS), strict=True)))
    probe = probe_images(f"npz:{tmp_path / 'a.npz'}", 5)
    expected = IMAGES if form != "NHW" else IMAGES[..., :1].repeat(3, axis=3)
    np.testing.assert_array_equal(probe.images, expected[:5])
    np.testing.assert_array_equal(probe.labels, LABELS[:5])
    assert probe.classes == 4


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"images": IMAGES.astype(float), "labels": LABELS}, "give pixels as uint8"),
        ({"images": IMAGES[..., :2], "labels": LABELS}, "images have shape"),
        ({"images": IMAGES, "labels": LABELS[:5]}, "do not fit 20 images"),
        ({"images": IMAGES, "labels": LABELS - 1}, "negative"),
        ({"pictures": np.array(["a"] * 20)}, "holds pictures"),
        ({"images": np.array([None]), "labels": LABELS}, "not a readable"),
    ],
)
def test_unfit_npz_files_are_refused(tmp_path, content, says):
    np.savez(tmp_path / "a.npz", **content)
    with pytest.raises(PosthocError, match=says):
        probe_images(f"npz:{tmp_path / 'a.npz'}")


def test_what_is_no_npz_is_refused(tmp_path):
    with pytest.raises(PosthocError, match="No such file"):
        probe_images(f"npz:{tmp_path / 'none.npz'}")
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(PosthocError, match="not a readable"):
        probe_images(f"npz:{tmp_path / 'a.npz'}")


def test_image_folder_is_taken_evenly_over_its_classes(tmp_path):
    for k, picture in enumerate(IMAGES):
        folder = tmp_path / f"class{k // 5}"
        folder.mkdir(exist_ok=True)
        Image.fromarray(picture).save(folder / f"{k:02d}.png")
    probe = probe_images(f"imagefolder:{tmp_path}", 4)
    np.testing.assert_array_equal(probe.labels, [0, 1, 2, 3])
    np.testing.assert_array_equal(probe.images, IMAGES[::5])
    assert probe_images(f"imagefolder:{tmp_path}", size=4).images.shape == (20, 4, 4, 3)
    Image.fromarray(IMAGES[0, :5]).save(tmp_path / "class0" / "99.png")
    with pytest.raises(PosthocError, match="differ in size"):
        probe_images(f"imagefolder:{tmp_path}")
    with pytest.raises(PosthocError, match="not a folder of class folders"):
        probe_images(f"imagefolder:{tmp_path / 'none'}")


def test_cifar_from_torchvisions_own_files(tmp_path, monkeypatch):
    """Written here in the official layout, hence with other checksums than torchvision's table has."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    pixels = RANDOM.integers(0, 256, (6, 3, 32, 32), dtype=np.uint8)
    files = {
        "test_batch": {"data": pixels.reshape(6, -1), "labels": [0, 9, 3, 3, 1, 2]},
        "batches.meta": {"label_names": [f"class{k}" for k in range(10)]},
    }
    sums = {}
    for name, content in files.items():
        (folder / name).write_bytes(pickle.dumps(content))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    cifar = torchvision.datasets.CIFAR10
    monkeypatch.setattr(cifar, "train_list", [])
    monkeypatch.setattr(cifar, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(cifar, "meta", {"filename": "batches.meta", "key": "label_names", "md5": sums["batches.meta"]})
    probe = probe_images("cifar10", 4, root=tmp_path)
    np.testing.assert_array_equal(probe.images, pixels[:4].transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(probe.labels, [0, 9, 3, 3])
    assert probe.classes == 10


def test_absent_data_sets_say_how_to_get_them(tmp_path):
    with pytest.raises(PosthocError, match=r"--download.*--data-root"):
        probe_images("cifar100", root=tmp_path)
    with pytest.raises(UsageError, match="Unknown data set"):
        probe_images("mnist")
    with pytest.raises(PosthocError, match="holds only 797"):
        probe_images("digits", 800)


def test_normalisation():
    assert Normalization.parse("cifar10").mean == (0.4914, 0.4822, 0.4465)
    assert Normalization.parse("0.1,0.2,0.3/0.5") == Normalization((0.1, 0.2, 0.3), (0.5, 0.5, 0.5))
    for text in ("imagnet", "1/2/3", "0.5", "0.5/0", "1,2/3", "a/b"):
        with pytest.raises(UsageError, match="Unknown normalisation"):
            Normalization.parse(text)


def test_image_folder_with_splits_uses_the_one_for_testing(tmp_path):
    for split, shade in (("train", 0), ("val", 255)):
        for label in ("cat", "dog"):
            (tmp_path / split / label).mkdir(parents=True)
            Image.new("RGB", (8, 8), (shade,) * 3).save(tmp_path / split / label / "0.png")
    probe = probe_images(f"imagefolder:{tmp_path}")
    assert probe.images.min() == 255
    np.testing.assert_array_equal(probe.labels, [0, 1])
    (tmp_path / "val").rename(tmp_path / "other")
    with pytest.raises(PosthocError, match="no folder test or val or valid"):
        probe_images(f"imagefolder:{tmp_path}")


def test_a_single_array_file_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", IMAGES)
    with pytest.raises(PosthocError, match="not a readable"):
        probe_images(f"npz:{tmp_path / 'a.npy'}")


def npy(shape, kind):
    """The head of an array file that claims this shape."""
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


LABELS_OF_5 = npy("(5,)", "<i8") + bytes(40)
ARCHIVES = {
    "no header": ({"x.npy": b"\x93NUMPY\x01\x00\x10\x00" + b"(" * 16}, "is not a readable .npz archive of arrays"),
    "claims": ({"x.npy": npy("(-5, 8, 8, 3)", "|u1")}, "is not a readable .npz archive of arrays"),
    "unpacks": ({"x.npy": npy("(5, 8, 8, 3)", "|u1") + bytes(80 << 20)}, r"unpacks to 83,\d+,\d+ bytes"),
    "twice": ([("x.npy", npy("(5, 8, 8, 3)", "|u1") + bytes(960))] * 2, "holds two entries of one name"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", ARCHIVES)
def test_hostile_archives_are_refused(tmp_path, kind):
    entries, message = ARCHIVES[kind]
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in [*(entries.items() if isinstance(entries, dict) else entries), ("y.npy", LABELS_OF_5)]:
            archive.writestr(name, content)
    with pytest.raises(PosthocError, match=message):
        probe_images(f"npz:{tmp_path / 'a.npz'}")


def test_what_lies_in_an_image_folder_and_is_no_picture(tmp_path):
    Image.fromarray(np.full((8, 8, 3), 7, np.uint8)).save(tmp_path / "sound.png")
    sound = (tmp_path / "sound.png").read_bytes()
    (tmp_path / "a").mkdir()
    place = tmp_path / "a" / "0.png"
    place.write_bytes(sound)
    assert probe_images(f"imagefolder:{tmp_path}").images.tolist() == [[[[7] * 3] * 8] * 8]
    size = (30_000).to_bytes(4, "big") * 2
    head = b"IHDR" + size + sound[24:29]
    huge = sound[:12] + head + zlib.crc32(head).to_bytes(4, "big") + sound[33:]
    for content in (sound[:40], b"", b"text", sound.replace(b"IHDR", b"IHDS"), huge):
        place.write_bytes(content)
        with pytest.raises(PosthocError, match=r"0\.png is no picture that can be read"):
            probe_images(f"imagefolder:{tmp_path}")
    place.unlink()
    os.mkfifo(place)
    with pytest.raises(PosthocError, match=r"0\.png is a pipe"):
        probe_images(f"imagefolder:{tmp_path}")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"y_test": np.full(20, 2**62)}, "label 4611686018427387904 is no class"),
        ({"y_test": np.full(20, 2**64 - 1, np.uint64)}, "label 18446744073709551615 is no class"),
        ({"x_test": IMAGES[:, :0]}, r"shape \(20, 0, 8, 3\), in which there are no pixels"),
        ({"test_index": np.arange(3)}, r"an index of int64 \(3,\) does not fit 20 images"),
        ({"test_index": np.array(["a"] * 20)}, r"an index of <U1 \(20,\) does not fit 20 images"),
    ],
)
def test_arrays_that_are_no_probe(tmp_path, changed, message):
    np.savez(tmp_path / "a.npz", **({"x_test": IMAGES, "y_test": LABELS} | changed))
    with pytest.raises(PosthocError, match=message):
        probe_images(f"npz:{tmp_path / 'a.npz'}")
