"""What a part was made from decides whether it is used; under what circumstances does not, and is recorded."""

import json
from dataclasses import replace
from pathlib import Path

import h5py
import noise
import numpy as np
import pytest
from click.testing import CliRunner

from posthoc.cli import main
from posthoc.errors import PosthocError
from posthoc.manifest import Control, Entry
from posthoc.parts import Parts
from posthoc.recording import Provenance, Recording, from_version_1
from posthoc.store import Frame, Layout, open_activations
from posthoc.typed import MisfitError
from posthoc.writing import write

V1 = Path(__file__).parent / "fixtures" / "v1"
RECORDING = noise.recording(["a", "b"], images=8)
ENTRIES = [Entry(f"{e}.pt", e, 10 * e) for e in range(3)]


def layout(recording):
    return Layout(recording, np.arange(8), np.arange(8) % 4, {"a": np.arange(2), "b": np.arange(2)})


def frame(path, epoch):
    return Frame(path, "0", epoch, None, 1.0, 0.5, {}, {"mean": {name: np.ones((2, 8), "f4") for name in ("a", "b")}})


def changed(**leaves):
    """The recording as its JSON was changed: names with two underscores for a dot."""
    content = RECORDING.to_dict()
    for name, value in leaves.items():
        *folders, last = name.split("__")
        inner = content
        for folder in folders:
            inner = inner[folder]
        inner[last] = value
    return Recording.from_dict(content)


@pytest.fixture
def parts(tmp_path):
    """Parts of two of three checkpoints."""
    parts = Parts(tmp_path / "a.h5")
    with parts.held():
        parts.start(RECORDING, parts.output.parent / "run", ENTRIES)
        for entry in ENTRIES[:2]:
            write(parts.path(entry), layout(RECORDING), [frame(entry.path, entry.epoch)])
    return parts


def test_a_recording_survives_json():
    assert Recording.from_dict(json.loads(json.dumps(RECORDING.to_dict()))) == RECORDING
    assert RECORDING.identity.digest == changed(provenance__host="elsewhere").identity.digest
    assert RECORDING.identity.digest != changed(identity__seed=1).identity.digest
    with pytest.raises(MisfitError, match=r"identity\.probe lacks samples"):
        Recording.from_dict(
            changed().to_dict() | {"identity": RECORDING.to_dict()["identity"] | {"probe": {"sha256": ""}}}
        )


def test_version_1_is_read():
    with h5py.File(V1 / "activations.h5") as file:
        config = json.loads(file.attrs["config"])
    recording = from_version_1(config)
    assert recording == from_version_1(json.loads((V1 / "metrics.json").read_text())["input"]["config"])
    identity, provenance = recording.identity, recording.provenance
    assert (identity.model.architecture, identity.probe.samples, identity.output.columns) == (
        "shufflenet_v2_x1_0",
        200,
        10,
    )
    assert (identity.device, identity.channels, identity.batch_size, identity.tf32) == ("cpu", 4, 256, False)
    assert identity.probe.preparation["image_size"] == 32
    assert [layer.shape for layer in identity.layers] == [(116, 4, 4), (232, 2, 2), (464, 1, 1), (1024, 1, 1)]
    assert provenance.preparation == "mean 0.305, 0.305, 0.305, std 0.376, 0.376, 0.376, 32 x 32, colour"
    assert (provenance.training_seed, provenance.recipe, provenance.source) == (42, "digits", "from run.json")
    assert provenance.versions["torch"] == config["versions"]["torch"]
    gpu = config | {"device": "cuda", "versions": config["versions"] | {"gpu": "NVIDIA H100"}, "channels": "all"}
    assert (from_version_1(gpu).identity.device, from_version_1(gpu).identity.channels) == ("NVIDIA H100", None)
    with pytest.raises(MisfitError, match="probe lacks samples"):
        from_version_1(config | {"probe": {"name": "x", "classes": 2, "sha256": ""}})


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("provenance__versions", {"torch": "99.0"}, ["versions.torch None (2 checkpoints)", "versions.torch 99.0 (1 "]),
        ("provenance__host", "node7", ["host None (2 checkpoints)", "host node7 (1 checkpoint)"]),
        ("provenance__probe", "other words", ["probe noise (2 checkpoints)", "probe other words (1 checkpoint)"]),
        ("provenance__model", "ResNet, mine", ["model none (2 checkpoints)", "model ResNet, mine (1 checkpoint)"]),
    ],
)
def test_parts_of_another_provenance_are_used_and_it_is_recorded(parts, name, value, words):
    now = changed(**{name: value})
    with parts.held():
        parts.start(now, parts.output.parent / "run", ENTRIES)
        made = [parts.made(entry, now.identity) for entry in ENTRIES]
        assert [each and each.sha256 for each in made] == ["0", "0", None]
        write(parts.path(ENTRIES[2]), layout(now), [frame("2.pt", 2)])
        assert parts.merge() == []
    with open_activations(parts.output) as file:
        assert file.recording == now
        assert file.provenances == (RECORDING.provenance,) * 2 + (now.provenance,)
    output = " ".join(CliRunner().invoke(main, ["inspect", str(parts.output)]).output.split())
    for word in words:
        assert word in output


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("identity__device", "NVIDIA H100", 'device: "cpu" there, "NVIDIA H100" now'),
        ("identity__dtype", "bfloat16", 'dtype: "float32" there, "bfloat16" now'),
        ("identity__tf32", True, "tf32: false there, true now"),
        ("identity__memory_format", "channels_last", 'memory_format: "unknown" there, "channels_last" now'),
        ("identity__batch_size", 64, "batch_size: null there, 64 now"),
        ("identity__probe__sha256", "1", 'probe.sha256: "0" there, "1" now'),
        ("identity__probe__preparation", {"image_size": 64}, "probe.preparation.image_size: null there, 64 now"),
        ("identity__model__code", "f00", 'model.code: null there, "f00" now'),
        ("identity__behaviour", ["features"], 'behaviour: [] there, ["features"] now'),
    ],
)
def test_parts_of_another_identity_are_refused_by_name(parts, name, value, says):
    now = changed(**{name: value})
    with parts.held():
        assert [parts.made(entry, now.identity) for entry in ENTRIES] == [None] * 3
        with pytest.raises(PosthocError) as error:
            parts.start(now, parts.output.parent / "run", ENTRIES)
    assert str(error.value) == (
        f"{parts.folder} holds the parts of an extraction that was configured otherwise ({says}); "
        f"finish it with its own options, or pass --force to start anew."
    )


@pytest.mark.parametrize(("counts", "seeds"), [((1, 3), [1, 3]), ((3, 1), [1, 2])])
def test_shards_may_differ_in_how_many_untrained_networks_they_make(tmp_path, counts, seeds):
    parts = Parts(tmp_path / "a.h5")
    for shard, count in enumerate(counts):
        with parts.held(shared=True):
            parts.start(RECORDING, parts.output.parent / "run", ENTRIES, shards=2, untrained=count)
            for entry in ENTRIES[shard::2]:
                write(parts.path(entry), layout(RECORDING), [frame(entry.path, entry.epoch)])
            for control in map(Control, range(count)):
                if control.place % 2 == shard:
                    write(parts.path(control), layout(RECORDING), [frame(control.path, None)])
    with parts.held():
        assert parts.merge() == []
    with open_activations(parts.output) as file:
        assert file.untrained_seeds.tolist() == seeds
    assert not parts.folder.exists()


def test_a_part_that_was_asked_of_all_shards_has_to_be_there(parts):
    with parts.held(shared=True):
        parts.start(RECORDING, parts.output.parent / "run", ENTRIES, shards=1, untrained=1)
        with pytest.raises(PosthocError, match="untrained network 1"):
            parts.merge()


def test_a_continued_run_with_fewer_untrained_networks_has_fewer(parts):
    for count in (2, 1):
        with parts.held():
            parts.start(RECORDING, parts.output.parent / "run", ENTRIES[:2], untrained=count)
            for control in map(Control, range(count)):
                write(parts.path(control), layout(RECORDING), [frame(control.path, None)])
    with parts.held():
        parts.merge()
    with open_activations(parts.output) as file:
        assert file.untrained_seeds.tolist() == [1]
    assert not parts.folder.exists()


def test_provenances_that_are_none_are_refused(parts):
    with parts.held():
        parts.start(
            replace(RECORDING, provenance=Provenance("none", "noise", host="b")),
            parts.output.parent / "run",
            ENTRIES[:2],
        )
        write(parts.path(ENTRIES[1]), layout(changed(provenance__host="b")), [frame("1.pt", 1)])
        parts.merge()
    with h5py.File(parts.output, "r+") as file:
        file["checkpoint/provenance"][:] = [0, 2]
    with pytest.raises(PosthocError, match="/checkpoint/provenance has a value beyond those of /provenance"):
        open_activations(parts.output)
