"""Activations files that are broken, or made to break their reader: one sentence, and nothing outside them is read."""

import json
import random
import shutil

import h5py
import noise
import numpy as np
import pytest
from click.testing import CliRunner
from contents import merge

from posthoc.cli import main
from posthoc.errors import PosthocError
from posthoc.store import Frame, Layout, open_activations
from posthoc.writing import write

LAYERS = ["a", "b.c"]


def frame(e, **about):
    values = np.random.default_rng(e).standard_normal((3, 200)).astype("f4")
    about = {"path": f"{e}.pt", "epoch": e, "recorded": {"val_acc": 0.5}} | about
    signals = {"mean": {name: values for name in LAYERS}}
    return Frame(sha256="0", step=10 * e, loss=1.0, accuracy=0.5, signals=signals, **about)


def plan():
    return Layout(
        noise.recording(LAYERS, images=200), np.arange(200), np.arange(200) % 4, {name: np.arange(3) for name in LAYERS}
    )


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    path = tmp_path_factory.mktemp("sound") / "a.h5"
    write(path, plan(), [frame(e) for e in range(3)])
    merge(path, [path_of(path.parent, e) for e in range(3)], [("9.pt", "it is damaged")])
    return path


def path_of(folder, e):
    write(folder / f"{e}.part", plan(), [frame(e)])
    return folder / f"{e}.part"


def other(file, place, **what):
    del file[place]
    file.create_dataset(place, **what)


def identity(**change):
    def spoil(file):
        content = json.loads(file.attrs["recording"])
        changed = {**content["identity"], **change}
        content["identity"] = {key: value for key, value in changed.items() if value is not ...}
        file.attrs["recording"] = json.dumps(content)

    return spoil


def attribute(name, value):
    return lambda file: file.attrs.__setitem__(name, value)


def dataset(place, **what):
    return lambda file: other(file, place, **what)


def external_storage(file):
    other(file, "checkpoint/path", shape=(3,), dtype="S8", external=[("secret.txt", 0, 24)])


def external_numbers(file):
    other(file, "epoch", shape=(3,), dtype="i8", external=[("secret.txt", 0, 24)])


def external_link(file):
    del file["checkpoint/path"]
    file["checkpoint/path"] = h5py.ExternalLink("other.h5", "secret")


def virtual(file):
    layout = h5py.VirtualLayout((3,), "i8")
    layout[:] = h5py.VirtualSource("other.h5", "numbers", (3,))
    del file["step"]
    file.create_virtual_dataset("step", layout)


def soft_link(file):
    file["recorded/r"] = h5py.SoftLink("/epoch")


def loop(file):
    file["recorded/r"] = file["/"]


def references(file):
    other(file, "probe/loss", data=[file["epoch"].ref] * 3, dtype=h5py.ref_dtype)


def committed(file):
    file["recorded/t"] = np.dtype("f8")


def bomb(file):
    other(file, "signals/mean/a", shape=(3, 3, 200), dtype="f4", chunks=(3, 3, 200), compression="gzip")


def same_text_often(file):
    """Three names that are each the whole of one large text, by its one copy in the file."""
    names = ["n" * 100_000, "m", "o"]
    other(file, "checkpoint/path", data=names, dtype=h5py.string_dtype())
    start = file["checkpoint/path"].id.get_offset()
    file.flush()
    with open(file.filename, "r+b") as raw:  # noqa: PTH123
        raw.seek(start)
        reference = raw.read(16)
        raw.write(reference * 2)


HOSTILE = [
    (external_storage, "/checkpoint/path is stored in other files"),
    (external_numbers, "/epoch is stored in other files"),
    (external_link, "/checkpoint/path is a link to elsewhere"),
    (virtual, "/step is stored in other files"),
    (soft_link, "/recorded/r is a link to elsewhere"),
    (loop, "/recorded/r is no dataset"),
    (references, "/probe/loss has values of type object"),
    (committed, "/recorded/t is no dataset"),
    (bomb, "/signals/mean/a is of shape (3, 3, 200) in blocks of (3, 3, 200)"),
    (dataset("epoch", shape=(10**12,), dtype="i8", chunks=(1024,)), "/epoch is not stored as"),
    (dataset("epoch", shape=(10**9,), dtype="i8"), "/epoch claims 8e+09 bytes where 0 are stored"),
    (
        dataset("sample/label", shape=(3 * 10**8,), dtype="i8", chunks=(10**8,), compression="gzip"),
        "/sample/label is of shape",
    ),
    (dataset("probe/loss", data=np.array([b"a", b"b", b"c"])), "/probe/loss has values of type |S1"),
    (dataset("probe/loss", data=np.zeros((3, 1))), "/probe/loss is of shape (3, 1)"),
    (dataset("checkpoint/sha256", data=np.arange(3)), "/checkpoint/sha256 has values of type int64"),
    (dataset("sample/index", data=np.arange(3)), "/sample/label is of shape (200,), not 3 long"),
    (dataset("sample/label", data=np.arange(200) - 1), "/sample/label has a value below 0"),
    (dataset("epoch", data=np.array([1, 1, 2])), None),
    (dataset("step", data=np.array([0, 10, -2])), "/step has a value below -1"),
    (dataset("step", data=np.array([0.5, 1, 2])), "/step has values of type float64"),
    (dataset("signals/unit.a", data=np.array([1, 1, 2])), "it has equal channels of a"),
    (dataset("signals/mean/a", shape=(3, 3, 200), dtype="S4"), "/signals/mean/a has values of type |S4"),
    (dataset("signals/mean/a", data=np.zeros((3, 2, 200), "f4"), chunks=(1, 2, 200)), "/signals/mean/a is of shape"),
    (dataset("signals/mean/a", shape=(3, 3, 200), dtype="f4", chunks=(1, 3, 200)), "/signals/mean/a claims"),
    (dataset("recorded", data=np.arange(3)), "recorded in /recorded is no group"),
    (dataset("skipped", data=np.arange(3)), "skipped in /skipped is no group"),
    (dataset("nonfinite/a", data=np.zeros(4, int)), "/nonfinite/a is of shape (4,), not 3 long"),
    (lambda file: file.move("sample/label", "labels"), "it lacks /sample/label"),
    (attribute("format", np.arange(3)), "its attribute format is not a text"),
    (attribute("format_version", "1"), "its attribute format_version is not a whole number"),
    (attribute("recording", "[]"), "its recording: it is a list of 0, not an object"),
    (attribute("recording", "[" * 100_000), "its recording is nested too deep"),
    (identity(device=..., probe=...), "its recording: identity lacks probe, device"),
    (identity(model="x"), "its recording: identity.model is 'x', not an object"),
    (identity(seed=2**70), "its recording: identity.seed is 1180591620717411303424, not a whole number"),
    (identity(layers=[{"name": "a"}, {"name": "a"}]), "it has layers of one name"),
    (identity(layers=[{"name": "../epoch"}]), "it lacks /"),
    (identity(signals=[]), "it has no signals"),
]


@pytest.mark.parametrize(("spoil", "says"), HOSTILE)
def test_a_hostile_file_is_refused_in_a_sentence(sound, tmp_path, spoil, says):
    path = tmp_path / "a.h5"
    shutil.copy(sound, path)
    (tmp_path / "secret.txt").write_text("SECRET-LINE " * 10)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["secret"] = ["SECRET-LINE"] * 3
        file["numbers"] = np.arange(3)
    with h5py.File(path, "r+") as file:
        spoil(file)
    done = CliRunner().invoke(main, ["inspect", str(path)])
    assert "SECRET" not in done.output
    if says is None:  # two checkpoints of one epoch, at different steps
        assert done.exit_code == 0
        return
    assert done.exit_code == 1
    assert done.stderr.startswith(f"posthoc: {path} is damaged or cut short, or not what posthoc wrote ({says}")
    assert done.stderr.count("\n") == 1


def test_a_text_is_not_copied_over_and_over(sound, tmp_path):
    path = tmp_path / "a.h5"
    shutil.copy(sound, path)
    with h5py.File(path, "r+") as file:
        same_text_often(file)
    with pytest.raises(PosthocError, match="/checkpoint/path claims 3e\\+05 bytes where"):
        open_activations(path)


@pytest.mark.parametrize("words", [
    ["metrics", "a.h5"], ["audit", "a.h5"], ["inspect", "a.h5"], ["compare", "a.h5"], ["report", "a.h5"], ["merge", "b.h5"],
])  # fmt: skip
def test_every_command_refuses_it(sound, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    shutil.copy(sound, "a.h5")
    with h5py.File("a.h5", "r+") as file:
        external_numbers(file)
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 1
    assert done.stderr.startswith("posthoc: ")
    assert done.stderr.count("\n") == 1


def test_files_with_any_byte_changed_open_or_are_refused(sound, tmp_path):
    content, chance, path = sound.read_bytes(), random.Random(0), tmp_path / "a.h5"
    outcomes = set()
    for _ in range(80):
        spoilt = bytearray(content)
        for _ in range(chance.choice([1, 4])):
            spoilt[chance.randrange(len(spoilt))] = chance.choice([0, 255, chance.randrange(256)])
        path.write_bytes(spoilt)
        try:
            with open_activations(path) as file:
                outcomes.add(file.read("mean", 2).shape)
        except PosthocError:
            outcomes.add("refused")
    assert outcomes == {"refused", (6, 200)}


def test_signals_that_an_earlier_version_compressed_are_read(sound, tmp_path):
    part = path_of(tmp_path, 2)
    with h5py.File(part, "r+") as file:
        for name in LAYERS:
            values = file[f"signals/mean/{name}"][:]
            other(file, f"signals/mean/{name}", data=values, chunks=(1, 2, 200), shuffle=True, compression="gzip")
    merge(tmp_path / "a.h5", [part])
    with open_activations(part) as old, open_activations(tmp_path / "a.h5") as new, open_activations(sound) as file:
        np.testing.assert_array_equal(old.read("mean", 0), file.read("mean", 2))
        np.testing.assert_array_equal(new.read("mean", 0), file.read("mean", 2))


def test_a_block_does_not_swell(tmp_path):
    """A few bytes that unpack to more than a block holds."""
    import zlib

    part = path_of(tmp_path, 2)
    with h5py.File(part, "r+") as file:
        values = file["signals/mean/a"][:]
        other(file, "signals/mean/a", data=values, chunks=(1, 3, 200), compression="gzip")
        file["signals/mean/a"].id.write_direct_chunk((0, 0, 0), zlib.compress(bytes(10**8)))
    with open_activations(part) as file:
        assert not file.read("mean", 0)[:3].any()  # the block's own length of it, no more


NAMES = ["val/acc", ".", "..", "a%b", "val%2Facc", "new\nline", "nul\0", "\ud800", "ü", "x" * 300]


def test_numbers_of_any_name_and_size_are_kept(tmp_path):
    recorded = dict(zip(NAMES, range(len(NAMES)), strict=True)) | {"": 7.0, "large": 10**400}
    write(tmp_path / "a.h5", plan(), [frame(1, recorded=recorded, path="caf\udce9.pt")])
    merge(tmp_path / "b.h5", [tmp_path / "a.h5"], [("caf\udce9.pt", "no \ud800 text")])
    for name in ("a.h5", "b.h5"):
        with open_activations(tmp_path / name) as file:
            expected = {one if one != "\ud800" else "\\ud800": value for one, value in recorded.items() if one}
            assert {one: column[0] for one, column in file.recorded.items()} == expected | {"large": np.inf}
            assert file.checkpoints == ("caf\udce9.pt",)
    with open_activations(tmp_path / "b.h5") as file:
        assert file.skipped == (("caf\udce9.pt", "no \\ud800 text"),)


@pytest.mark.parametrize("place", [2**63, -1])
def test_an_epoch_beyond_what_can_be_counted_is_refused(tmp_path, place):
    with pytest.raises(PosthocError, match=f"x.pt: epoch {place} is beyond what an activations file can hold"):
        write(tmp_path / "a.h5", plan(), [frame(1, epoch=place, path="x.pt")])
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_more_recorded_numbers_than_hdf5_lists(tmp_path):
    import xarray

    recorded = {f"n{k}": float(k) for k in range(4_200)}
    write(tmp_path / "a.h5", plan(), [frame(e, recorded=recorded) for e in range(2)])
    with open_activations(tmp_path / "a.h5") as file:
        assert file.recorded["n4199"].tolist() == [4199.0, 4199.0]
    with xarray.open_dataset(tmp_path / "a.h5", engine="h5netcdf", group="signals/mean") as signals:
        assert signals["b.c"].dims == ("checkpoint", "unit.b.c", "sample")
