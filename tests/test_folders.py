"""What lies in a folder of parts and leads elsewhere is refused; what is not ours stays as it was."""

import json
import os
import warnings

import noise
import numpy as np
import pytest
from click.testing import CliRunner

from posthoc.cli import main
from posthoc.errors import PosthocError
from posthoc.files import refuse_existing, replacing
from posthoc.manifest import Entry
from posthoc.parts import Parts, merge
from posthoc.store import Frame, Layout, open_activations
from posthoc.writing import write

LAYERS = ["a", "b"]
ENTRIES = [Entry(f"{e}.pt", e, 10 * e) for e in range(3)]
PLAN = Layout(
    noise.recording(LAYERS, images=8), np.arange(8), np.arange(8) % 4, {name: np.arange(2) for name in LAYERS}
)


def frame(e):
    signals = {"mean": {name: np.full((2, 8), e, "f4") for name in LAYERS}}
    return Frame(f"{e}.pt", "0", e, 10 * e, 1.0, 0.5, {}, signals)


@pytest.fixture
def parts(tmp_path):
    """Three parts, ready to be merged, beside a thesis."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("precious")
    parts = Parts(tmp_path / "out" / "a.h5")
    with parts.held():
        parts.start(PLAN.recording, parts.output.parent / "run", ENTRIES, shards=1)
        for e, entry in enumerate(ENTRIES):
            write(parts.path(entry), PLAN, [frame(e)])
    return parts


def merged(parts):
    """`posthoc merge` on the command line, and that the thesis is as it was."""
    done = CliRunner().invoke(main, ["merge", str(parts.output)])
    home = parts.output.parents[1] / "home"
    assert [(path.name, path.read_text()) for path in home.iterdir()] == [("thesis.tex", "precious")]
    assert done.exception is None or isinstance(done.exception, SystemExit)
    return done


def refused(parts, name, what):
    done = merged(parts)
    assert done.exit_code == 1
    assert done.stderr.count("\n") == 1
    assert f"posthoc: {parts.folder / name if name else parts.folder} {what}" in done.stderr
    assert not parts.output.exists()


@pytest.mark.parametrize("place", ["home", "nowhere"])
def test_a_folder_of_parts_that_is_a_link_is_refused(parts, tmp_path, place):
    parts.folder.rename(tmp_path / "away")
    parts.folder.symlink_to(tmp_path / place)
    with pytest.raises(PosthocError, match="is a link, and what posthoc makes there, and removes"), parts.held():
        pass
    assert not (tmp_path / "nowhere").exists()
    if place == "home":
        refused(parts, "", "is a link")


@pytest.mark.parametrize("name", [".lock", "plan.json", "epoch1-step10.h5", "skipped-0123456789abcdef.json"])
@pytest.mark.parametrize("kind", ["link", "dangling", "pipe", "folder"])
def test_links_and_what_is_no_file_under_names_of_ours_are_refused(parts, tmp_path, name, kind):
    path = parts.folder / name
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "home" / ("thesis.tex" if kind == "link" else "new"))
    done = merged(parts)
    assert done.exit_code == 1
    assert str(path if name != ".lock" or kind != "folder" else parts.folder) in done.stderr
    assert done.stderr.count("\n") == 1
    assert sorted(child.name for child in (tmp_path / "home").iterdir()) == ["thesis.tex"]


def test_a_lock_that_is_not_ours_is_not_written_to(parts, tmp_path):
    lock = parts.folder / ".lock"
    lock.write_text("ssh-ed25519 AAAA")
    refused(parts, ".lock", "is not the lock that posthoc makes")
    assert lock.read_text() == "ssh-ed25519 AAAA"
    lock.unlink()
    os.link(tmp_path / "home" / "thesis.tex", lock)  # not by a link, but by another name
    refused(parts, ".lock", "is not the lock that posthoc makes")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
@pytest.mark.parametrize("name", ["", ".lock"])
def test_what_belongs_to_another_user_is_refused(parts, name):
    os.chown(parts.folder / name, 4321, -1)
    refused(parts, name, "is not the lock that posthoc makes" if name else "belongs to another user")


def test_what_is_not_of_the_plan_stays_and_is_named(parts):
    (parts.folder / "notes").mkdir()
    (parts.folder / "notes" / "a.txt").write_text("mine")
    (parts.folder / "epoch9-step90.h5").write_text("of no plan")
    (parts.folder / ".epoch2-step20.h5.0123456789ab.tmp").write_text("of a process that was killed")
    done = merged(parts)
    assert done.exit_code == 0
    assert (
        f"warning: {parts.folder} stays, for it holds what is not posthoc's: epoch9-step90.h5, notes.\n" in done.stderr
    )
    assert sorted(path.name for path in parts.folder.iterdir()) == ["epoch9-step90.h5", "notes"]
    assert (parts.folder / "notes" / "a.txt").read_text() == "mine"
    with open_activations(parts.output) as file:
        assert file.epochs.tolist() == [0, 1, 2]
        assert file.read("mean", 2).tolist() == np.full((4, 8), 2.0).tolist()


def test_a_plan_names_parts_and_nothing_else(parts, tmp_path):
    """Whatever a plan says: what is removed lies in the folder, by a name that parts have."""
    plan = json.loads((parts.folder / "plan.json").read_text())
    plan["former"] = ["../../home/thesis.tex", "notes.txt", "epoch7-step70.h5", ".lock/.."]
    (parts.folder / "plan.json").write_text(json.dumps(plan))
    for name in ("notes.txt", "epoch7-step70.h5"):
        (parts.folder / name).write_text(name)
    with parts.held():
        parts.clear()
    assert sorted(path.name for path in parts.folder.iterdir()) == [".lock", "notes.txt"]
    assert (tmp_path / "home" / "thesis.tex").read_text() == "precious"


@pytest.mark.parametrize(
    "spoil",
    [
        {"checkpoints": [{"path": "0.pt", "epoch": 2**80, "step": 0}]},
        {"checkpoints": [{"path": 0, "epoch": 0, "step": 0}]},
        {"checkpoints": {"0.pt": 1}},
        {"shards": 0},
        {"recording": "none"},
    ],
)
def test_a_spoilt_plan_is_none(parts, spoil):
    plan = json.loads((parts.folder / "plan.json").read_text())
    (parts.folder / "plan.json").write_text(json.dumps(plan | spoil))
    assert parts.entries() == []
    refused(parts, "", "holds no parts of an extraction")


def test_shards_agree_on_the_checkpoints(parts):
    with parts.held(shared=True):
        parts.start(PLAN.recording, parts.output.parent / "run", ENTRIES[:2], shards=1)  # the third is done: it stays
        assert parts.entries() == ENTRIES
        parts.path(ENTRIES[2]).unlink()
        with pytest.raises(PosthocError, match=r"is of other checkpoints than this shard has, 2\.pt too"):
            parts.start(PLAN.recording, parts.output.parent / "run", ENTRIES[:2], shards=1)


def test_parts_of_checkpoints_that_are_left_out_are_removed_with_the_rest(parts):
    (parts.output.parent / "run").mkdir()
    for entry in ENTRIES:
        (parts.output.parent / "run" / entry.path).touch()
    with parts.held():
        parts.start(PLAN.recording, parts.output.parent / "run", ENTRIES[1:])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert merge(parts.output) == []
    with open_activations(parts.output) as file:
        assert file.epochs.tolist() == [1, 2]
    assert not parts.folder.exists()


def test_a_link_in_place_of_an_output_is_replaced_itself(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    for name, target in (("a", "thesis.tex"), ("b", "nowhere")):
        path = tmp_path / name
        path.symlink_to(tmp_path / target)
        with pytest.raises(
            PosthocError, match=f"{name} is a link to .*{target}; pass --force to replace the link itself"
        ):
            refuse_existing(path, force=False)
        refuse_existing(path, force=True)
        with replacing(path) as temporary:
            temporary.write_text("new")
        assert not path.is_symlink()
        assert path.read_text() == "new"
    assert (tmp_path / "thesis.tex").read_text() == "precious"
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_nothing_but_a_file_is_replaced(tmp_path, kind):
    path = tmp_path / "a"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/full")
    with pytest.raises(PosthocError, match=f"it is a {kind}; give the name of a file"), replacing(path) as temporary:
        temporary.write_text("new")
    assert [child.name for child in tmp_path.iterdir()] == ["a"]
