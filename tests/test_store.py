"""activations.h5: what is written is read; what is torn is refused."""

from dataclasses import replace

import h5py
import noise
import numpy as np
import pytest
from click.testing import CliRunner
from contents import assert_same, merge

from posthoc.cli import main
from posthoc.errors import PosthocError
from posthoc.merging import Merger
from posthoc.store import STORED, Frame, Layout, Stored, open_activations
from posthoc.writing import write


def plan():
    channels = {"layer1": np.array([1, 4, 6]), "block.2": np.arange(2)}
    return Layout(
        noise.recording(channels, ("mean", "var"), 50, 5, "abc"), np.arange(10, 60), np.arange(50) % 5, channels
    )


def frame(epoch, step=None, **recorded):
    random = np.random.default_rng(epoch)
    signals = {
        signal: {"layer1": random.standard_normal((3, 50), "f4"), "block.2": random.standard_normal((2, 50), "f4")}
        for signal in ("mean", "var")
    }
    return Frame(f"e{epoch}.pt", f"sha{epoch}", epoch, step, 0.5, 0.25, recorded, signals)


def test_reads_what_was_written(tmp_path):
    frames = [frame(1, 10, val_acc=0.3), frame(2, None, val_loss=1.0)]
    write(tmp_path / "a.h5", plan(), frames)
    with open_activations(tmp_path / "a.h5") as activations:
        assert len(activations) == 2
        assert activations.layers == ("layer1", "block.2")
        assert activations.units == [("layer1", 1), ("layer1", 4), ("layer1", 6), ("block.2", 0), ("block.2", 1)]
        np.testing.assert_array_equal(activations.epochs, [1, 2])
        np.testing.assert_array_equal(activations.steps, [10, -1])
        np.testing.assert_array_equal(activations.images, np.arange(10, 60))
        np.testing.assert_array_equal(activations.recorded["val_acc"], [0.3, np.nan])
        assert activations.checkpoints == ("e1.pt", "e2.pt")
        expected = np.concatenate([frames[1].signals["var"]["layer1"], frames[1].signals["var"]["block.2"]])
        np.testing.assert_array_equal(activations.read("var", 1), expected)
        with pytest.raises(PosthocError, match="no signal 'max'"):
            activations.read("max", 0)


def test_a_file_is_replaced_from_within_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for epoch in (1, 2):
        write(tmp_path / "a.h5", plan(), [frame(epoch)])
    with open_activations("a.h5") as activations:
        assert activations.epochs.tolist() == [2]


def test_merged_parts_equal_the_file_written_at_once(tmp_path):
    frames = [frame(1, 10, val_acc=0.3), frame(2, 20), frame(3, 30, val_loss=1.0), frame(4, 40, val_loss=2.0)]
    layout = plan()
    write(tmp_path / "whole.h5", layout, frames)
    parts = [tmp_path / f"{k}.h5" for k in range(4)]
    for part, made in zip(parts, frames, strict=True):  # the last two have one form
        write(part, layout, [made])
    merge(tmp_path / "merged.h5", parts)
    assert_same(tmp_path / "whole.h5", tmp_path / "merged.h5")


def test_a_part_that_is_torn_while_it_is_merged_is_named(tmp_path):
    merger = Merger()
    for e in range(2):
        write(tmp_path / f"{e}.h5", plan(), [frame(e)])
        with open_activations(tmp_path / f"{e}.h5") as part:
            merger.add(part)
    content = (tmp_path / "1.h5").read_bytes()
    (tmp_path / "1.h5").write_bytes(content[:8] + bytes(len(content) - 8))
    with pytest.raises(PosthocError, match=r"1\.h5 is damaged or cut short"):
        merger.write(tmp_path / "a.h5")
    assert not (tmp_path / "a.h5").exists()


def test_what_is_not_finite_is_counted_and_what_was_skipped_is_kept(tmp_path):
    bad = frame(2)
    bad.signals["mean"]["layer1"][0, :3] = np.nan
    bad.signals["var"]["layer1"][1, 0] = np.inf
    for k, made in enumerate((frame(1), replace(bad, nonfinite=7))):
        write(tmp_path / f"{k}.h5", plan(), [made])
    merge(tmp_path / "a.h5", [tmp_path / "0.h5", tmp_path / "1.h5"], [("e3.pt", "it is damaged")])
    with open_activations(tmp_path / "a.h5") as activations:
        np.testing.assert_array_equal(activations.nonfinite_weights, [0, 7])
        np.testing.assert_array_equal(activations.nonfinite["layer1"], [0, 4])
        np.testing.assert_array_equal(activations.nonfinite["block.2"], [0, 0])
        assert activations.skipped == (("e3.pt", "it is damaged"),)


def test_a_failed_write_leaves_what_was_there(tmp_path):
    write(tmp_path / "a.h5", plan(), [frame(1)])
    before = (tmp_path / "a.h5").read_bytes()
    broken = frame(2)
    broken.signals["mean"]["layer1"] = np.zeros((7, 7), "f4")
    with pytest.raises(TypeError):
        write(tmp_path / "a.h5", plan(), [frame(1), broken])
    assert (tmp_path / "a.h5").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]


def spoil_attribute(name, value):
    def spoil(path):
        with h5py.File(path, "r+") as file:
            file.attrs[name] = value

    return spoil


def cut(path):
    path.write_bytes(path.read_bytes()[:3000])


def empty(path):
    path.write_bytes(b"")


def without_labels(path):
    with h5py.File(path, "r+") as file:
        del file["sample/label"]


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (spoil_attribute("format", "something"), "not one of posthoc's"),
        (spoil_attribute("format_version", 3), "newer than this posthoc"),
        (spoil_attribute("complete", 0), "not written to its end"),
        (spoil_attribute("recording", "{"), "damaged"),
        (cut, "damaged|cut short"),
        (empty, "not an HDF5 file"),
        (without_labels, "damaged"),
    ],
)
def test_what_is_not_a_whole_file_is_refused(tmp_path, spoil, says):
    path = tmp_path / "a.h5"
    write(path, plan(), [frame(1)])
    spoil(path)
    with pytest.raises(PosthocError, match=says):
        open_activations(path)


def test_absent_files_and_folders_are_refused(tmp_path):
    with pytest.raises(PosthocError, match="does not exist"):
        open_activations(tmp_path / "none.h5")
    with pytest.raises(PosthocError, match="is a folder"):
        open_activations(tmp_path)


def whole(epoch):
    """A frame with all that can be stored of a checkpoint, and a signal that keeps time."""
    random = np.random.default_rng(epoch)
    made = frame(epoch, 10 * epoch)
    made.signals["var"].update({
        "layer1": random.standard_normal((3, 50, 7), "f4"), "block.2": random.standard_normal((2, 50, 4), "f4")
    })  # fmt: skip
    logits = random.standard_normal((50, 5))
    behaviour = {
        "loss": random.random(50, "f4"), "prediction": logits.argmax(1), "correct": logits.argmax(1) == np.arange(50) % 5,
        "logits": logits.astype("f2"), "features": random.standard_normal((50, 6), "f4"),
    }  # fmt: skip
    head = {"weight": random.standard_normal((5, 6), "f4"), "bias": random.standard_normal(5, "f4")}
    return replace(made, behaviour=behaviour, head=head)


def test_behaviour_head_and_time_are_read_as_they_were_written_and_merged(tmp_path):
    frames = [whole(1), whole(2)]
    for k, made in enumerate(frames):
        write(tmp_path / f"{k}.h5", plan(), [made])
    merge(tmp_path / "a.h5", [tmp_path / "0.h5", tmp_path / "1.h5"], untrained=[(0, tmp_path / "0.h5")])
    with open_activations(tmp_path / "a.h5") as file:
        assert file.behaviours == ("loss", "prediction", "correct", "logits", "features")
        for name, values in frames[1].behaviour.items():
            assert file.behaviour(name).shape == (2, *values.shape)
            np.testing.assert_array_equal(file.behaviour(name)[1], values)
            np.testing.assert_array_equal(file.behaviour(name, 1), values)
        assert file.behaviour("logits").dtype == np.float16
        np.testing.assert_array_equal(file.head("weight", 0), frames[0].head["weight"])
        assert file.head("bias").shape == (2, 5)
        np.testing.assert_array_equal(file.read("var", 0, "layer1"), frames[0].signals["var"]["layer1"])
        np.testing.assert_array_equal(file.read_untrained("var", 0, "block.2"), frames[0].signals["var"]["block.2"])
        assert file.read("mean", 0).shape == (5, 50)
        with pytest.raises(PosthocError, match="var is not as long in all layers; read one layer at a time"):
            file.read("var", 0)
        with pytest.raises(PosthocError, match="holds no behaviour 'margin', only loss, prediction, correct, logits"):
            file.behaviour("margin")
    output = CliRunner().invoke(main, ["inspect", str(tmp_path / "a.h5")]).output
    assert "loss, prediction, correct, logits, features" in output
    write(tmp_path / "b.h5", plan(), [frame(1)])
    with open_activations(tmp_path / "b.h5") as file:
        assert file.behaviours == ()
        with pytest.raises(PosthocError, match="holds no head 'bias', nor any other; extract it again"):
            file.head("bias")


def test_samples_need_no_labels(tmp_path):
    recording = plan().recording
    probe = replace(recording.identity.probe, classes=None)
    recording = replace(recording, identity=replace(recording.identity, probe=probe))
    write(tmp_path / "a.h5", replace(plan(), recording=recording, label=None), [frame(1)])
    merge(tmp_path / "b.h5", [tmp_path / "a.h5"])
    with h5py.File(tmp_path / "b.h5") as file:
        assert list(file["sample"]) == ["index"]
    with open_activations(tmp_path / "b.h5") as file:
        assert file.labels.tolist() == [0] * 50


@pytest.mark.parametrize(
    ("place", "content", "says"),
    [
        ("behaviour/loss", np.zeros((1, 49), "f4"), "of shape .1, 49. in blocks of .1, 49., not .1, 50."),
        ("behaviour/loss", np.zeros((1, 50), "f8"), "has values of type float64"),
        ("behaviour/logits", np.zeros((1, 50, 4), "f2"), "/behaviour/features|/head/weight is of shape"),
        ("head/weight", np.zeros((1, 5), "f4"), "/head/weight is of shape"),
    ],
)
def test_what_is_stored_has_its_shape_and_type(tmp_path, place, content, says):
    write(tmp_path / "a.h5", plan(), [whole(1)])
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        del file[place]
        file.create_dataset(place, data=content, chunks=content.shape)
    with pytest.raises(PosthocError, match=says):
        open_activations(tmp_path / "a.h5")


def test_a_new_thing_to_be_stored_is_one_record(tmp_path, monkeypatch):
    monkeypatch.setitem(STORED, "behaviour/margin", Stored("by how much it is right", "<f4", ("sample",)))
    write(tmp_path / "a.h5", plan(), [replace(whole(1), behaviour={"margin": np.arange(50)})])
    with open_activations(tmp_path / "a.h5") as file:
        assert file.behaviour("margin").tolist() == [list(range(50))]


def test_xarray_sees_behaviour(tmp_path):
    import xarray

    write(tmp_path / "a.h5", plan(), [whole(1), whole(2)])
    with xarray.open_dataset(tmp_path / "a.h5", engine="h5netcdf", group="behaviour") as behaviour:
        assert behaviour["logits"].dims == ("checkpoint", "sample", "class")
        assert behaviour["sample"].values.tolist() == list(range(10, 60))
    with xarray.open_dataset(tmp_path / "a.h5", engine="h5netcdf", group="signals/var") as signals:
        assert signals["layer1"].dims == ("checkpoint", "unit.layer1", "sample", "time.var.layer1")
    with xarray.open_dataset(tmp_path / "a.h5", engine="h5netcdf", group="head") as head:
        assert head["weight"].dims == ("checkpoint", "class", "feature")


def test_xarray_sees_named_dimensions(activations_file):
    import xarray

    with (
        xarray.open_dataset(activations_file, engine="h5netcdf", group="signals/mean") as signals,
        open_activations(activations_file) as activations,
    ):
        layer = activations.layers[1]
        assert signals[layer].dims == ("checkpoint", f"unit.{layer}", "sample")
        assert signals.sizes["sample"] == 300
        np.testing.assert_array_equal(
            signals[layer].isel(checkpoint=2),
            activations.read("mean", 2)[[name == layer for name, _ in activations.units]],
        )
