"""A series in the cache of the Hugging Face Hub, written by the hub's own functions."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import file_download, scan_cache_dir, try_to_load_from_cache
from safetensors.torch import load_file, save_file

from posthoc.errors import PosthocError
from posthoc.replay.checkpoint import read_weights
from posthoc.replay.configs import find_config
from posthoc.replay.formats.table import digest, files_of
from posthoc.replay.layout import find_run

STEPS = (0, 1, 8, 64, 512, 1000)
NAME = "org/tiny"


def commit(number):
    return f"{number:040x}"


@pytest.fixture
def cache(tmp_path):
    """Six revisions of a model and main, whose files are links into blobs."""
    model = tmp_path / "hub" / file_download.repo_folder_name(repo_id=NAME, repo_type="model")
    for name in ("blobs", "snapshots", "refs"):
        (model / name).mkdir(parents=True)
    for k, step in enumerate(STEPS):
        snapshot = model / "snapshots" / commit(99 - k)
        snapshot.mkdir()
        torch.manual_seed(step)
        files = {"config.json": b'{"model_type": "gpt2"}'}
        save_file({"fc.weight": torch.randn(2, 3), "fc.bias": torch.randn(2)}, tmp_path / "a")
        files["model.safetensors"] = (tmp_path / "a").read_bytes()
        for name, content in files.items():
            blob = model / "blobs" / f"{k}{name}".encode().hex()
            blob.write_bytes(content)
            file_download._create_symlink(str(blob), str(snapshot / name), new_blob=True)
        file_download._cache_commit_hash_for_specific_revision(str(model), f"step{step}", commit(99 - k))
    file_download._cache_commit_hash_for_specific_revision(str(model), "main", commit(99 - STEPS.index(1000)))
    (tmp_path / "a").unlink()
    return model


def test_a_cache_is_a_series_in_the_order_of_its_steps(cache):
    known = {ref for repo in scan_cache_dir(cache.parent).repos for version in repo.revisions for ref in version.refs}
    assert known == {"main", *(f"step{step}" for step in STEPS)}
    for place in (cache, cache / "snapshots", cache / "refs", cache.parent):
        run = find_run(place)
        assert [(c.path.name, c.epoch, c.step) for c in run.checkpoints] == [(f"step{s}", None, s) for s in STEPS]
        assert [(copy.name, original.name) for copy, original in run.copies] == [("main", "step1000")]
    for checkpoint in run.checkpoints:
        theirs = try_to_load_from_cache(NAME, "model.safetensors", cache.parent, revision=checkpoint.path.name)
        weights = read_weights(checkpoint.path)
        assert weights.keys() == load_file(theirs).keys()
        assert all(torch.equal(weights[name], tensor) for name, tensor in load_file(theirs).items())
        assert [str(path) for path in files_of(checkpoint.path)] == [theirs]
        assert find_config(checkpoint.path).path == Path(theirs).parent / "config.json"
    assert len({digest(checkpoint.path) for checkpoint in run.checkpoints}) == len(STEPS)
    first = try_to_load_from_cache(NAME, "config.json", cache.parent, revision="step0")
    assert run.beside[0] == Path(first).parent  # where a tokenizer lies, too


def test_a_snapshot_is_known_by_the_step_that_names_it(cache):
    checkpoint = find_run(cache / "snapshots" / commit(99 - STEPS.index(1000))).checkpoints[0]
    assert (checkpoint.path.name, checkpoint.step) == ("step1000", 1000)
    assert find_run(cache / "refs" / "main").checkpoints[0].when == "epoch unknown"


def test_main_of_other_weights_is_set_apart(cache):
    shutil.copytree(cache / "snapshots" / commit(99), cache / "snapshots" / commit(5), symlinks=True)
    (cache / "refs" / "main").write_text(commit(5))
    run = find_run(cache)
    assert len(run.checkpoints) == 6
    assert [(path.name, reason) for path, reason in run.apart] == [("main", "a revision whose name says no step")]
    assert [c.step for c in find_run(cache, select="step[01]*").checkpoints] == [0, 1, 1000]
    with pytest.raises(PosthocError, match=r"no checkpoint of that name|holds more than one run|both epoch|both step"):
        find_run(cache, placed=["main=1000"])


def test_revisions_that_are_not_there_are_none(cache):
    (cache / "refs" / "step2000").write_text(commit(2000))
    (cache / "refs" / "step3000").write_text("../../../etc")
    (cache / "refs" / "pr").mkdir()
    os.mkfifo(cache / "refs" / "step4000")
    (cache / "refs" / "step5000").symlink_to("/dev/zero")
    assert [c.step for c in find_run(cache).checkpoints] == list(STEPS)


@pytest.mark.parametrize("kind", ["file", "folder", "snapshot"])
def test_a_link_out_of_the_cache_is_not_followed(cache, tmp_path, kind):
    snapshot = cache / "snapshots" / commit(99)
    outside = tmp_path / "outside"
    shutil.copytree(snapshot, outside)
    if kind == "file":
        (snapshot / "model.safetensors").unlink()
        (snapshot / "model.safetensors").symlink_to(outside / "model.safetensors")
    elif kind == "folder":
        (snapshot / "unet").symlink_to(outside)
    else:
        shutil.rmtree(snapshot)
        snapshot.symlink_to(outside)
    with pytest.raises(PosthocError, match=r"is a link out of the cache .*, which is not followed"):
        find_run(cache)


def test_several_models_in_a_cache_are_told_apart(cache):
    shutil.copytree(cache, cache.parent / "models--org--other", symlinks=True)
    with pytest.raises(PosthocError, match=r"there are some in .*models--org--other, .*models--org--tiny: give one"):
        find_run(cache.parent)
