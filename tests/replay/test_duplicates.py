"""Checkpoints with the weights of another step: named, dropped where that is wanted, and never missed afterwards."""

import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from contents import assert_same
from safetensors.torch import save_file

import posthoc
from posthoc.cli import main
from posthoc.errors import PosthocError, UsageError
from posthoc.replay.duplicates import settle_duplicates
from posthoc.replay.layout import find_run
from posthoc.replay.weights import MAIN
from posthoc.store import open_activations


def walk(folder, count=8):
    """A training as a random walk with a drift, its checkpoints every 100 steps; nothing is recorded inside."""
    torch.manual_seed(0)
    weight, drift = torch.randn(16, 32), torch.randn(16, 32)
    for step in range(0, 100 * count, 100):
        save_file({"a.weight": weight, "a.bias": weight[0].clone()}, folder / f"step-{step}.safetensors")
        weight = weight + 0.1 * drift + 0.05 * torch.randn(16, 32)


def copied(folder, original, *others):
    for other in others:
        shutil.copy(folder / f"step-{original}.safetensors", folder / f"step-{other}.safetensors")


def settled(folder, on_duplicate="drop"):
    return settle_duplicates(find_run(folder), MAIN, on_duplicate)


def dropped(run):
    return {row.path.stem: (row.original.stem, row.fits) for row in run.duplicates}


def test_a_sound_series_is_left_alone(tmp_path):
    walk(tmp_path)
    run = find_run(tmp_path)
    assert settled(tmp_path) == run
    assert settled(tmp_path, "fail") == run


def test_a_copy_is_dropped_where_it_does_not_fit(tmp_path):
    walk(tmp_path)
    copied(tmp_path, 600, 200)
    run = settled(tmp_path)
    assert dropped(run) == {"step-200": ("step-600", True)}
    assert [checkpoint.step for checkpoint in run.checkpoints] == [0, 100, 300, 400, 500, 600, 700]
    assert str(run.duplicates[0]) == "it holds the weights of step-600.safetensors, where they fit; see posthoc check"
    walk(tmp_path)
    copied(tmp_path, 200, 600)
    assert dropped(settled(tmp_path)) == {"step-600": ("step-200", True)}


def test_the_last_under_many_steps(tmp_path):
    walk(tmp_path)
    copied(tmp_path, 700, 100, 300, 400)
    assert dropped(settled(tmp_path)) == dict.fromkeys(("step-100", "step-300", "step-400"), ("step-700", True))


def test_one_after_the_other_the_first_is_kept(tmp_path):
    walk(tmp_path)
    copied(tmp_path, 300, 400, 500)
    assert dropped(settled(tmp_path)) == dict.fromkeys(("step-400", "step-500"), ("step-300", False))


def test_of_few_checkpoints_the_first_is_kept(tmp_path):
    walk(tmp_path, 4)
    copied(tmp_path, 300, 100)
    assert dropped(settled(tmp_path)) == {"step-300": ("step-100", False)}


def test_weights_that_fit_nowhere_better_stay_at_the_first(tmp_path):
    torch.manual_seed(0)
    for step in range(0, 800, 100):  # scattered about a point
        save_file({"a.weight": torch.randn(64, 64)}, tmp_path / f"step-{step}.safetensors")
    copied(tmp_path, 600, 200)
    assert dropped(settled(tmp_path)) == {"step-600": ("step-200", False)}


def test_a_warm_up_from_a_rate_of_zero_is_a_note(tmp_path):
    walk(tmp_path)
    copied(tmp_path, 0, 100)
    for choice in ("drop", "keep", "fail"):
        run = settled(tmp_path, choice)
        assert len(run.checkpoints) == 8
        assert any("as after a warm-up from a rate of zero" in note for note in run.notes)
    copied(tmp_path, 0, 500)
    run = settled(tmp_path)
    assert dropped(run) == {"step-500": ("step-0", True)}
    assert [checkpoint.step for checkpoint in run.checkpoints][:2] == [0, 100]


def test_kept_or_refused(tmp_path):
    walk(tmp_path)
    copied(tmp_path, 600, 200)
    run = settled(tmp_path, "keep")
    assert len(run.checkpoints) == 8
    assert not run.duplicates
    assert "step-200.safetensors, step-600.safetensors hold the same weights and are kept" in run.notes[-1]
    with pytest.raises(
        PosthocError, match=r"step-200\.safetensors, step-600\.safetensors hold the same weights under diff"
    ):
        settled(tmp_path, "fail")


def test_frozen_tensors_make_no_copies(tmp_path):
    frozen = {f"{k}.bias": torch.ones(4) for k in range(40)} | {"large": torch.ones(2**11, 2**10)}
    for step in range(3):
        save_file(frozen | {"head": torch.full((1100, 1024), float(step))}, tmp_path / f"step-{step}.safetensors")
    assert not settled(tmp_path).duplicates


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("on_duplicate", ["drop", "keep"])
def test_a_copy_that_says_inside_what_it_is(tmp_path, shift, on_duplicate):
    """Its name decides; of the others what is inside counts on, steps too, so that the first is untrained."""
    for epoch in range(6):
        weights = {"a.weight": torch.full((8, 8), float(epoch))}
        recorded = {"epoch": str(epoch), "step": str(100 * epoch)}
        save_file(weights, tmp_path / f"epoch-{epoch + shift}.safetensors", recorded)
    shutil.copy(tmp_path / f"epoch-{4 + shift}.safetensors", tmp_path / f"epoch-{2 + shift}.safetensors")
    run = settled(tmp_path, on_duplicate)
    places = {checkpoint.path.stem: (checkpoint.epoch, checkpoint.step) for checkpoint in run.checkpoints}
    expected = {f"epoch-{epoch + shift}": (epoch, 100 * epoch) for epoch in range(6)}
    expected[f"epoch-{2 + shift}"] = (2, None)
    if on_duplicate == "drop":
        assert dropped(run) == {f"epoch-{2 + shift}": (f"epoch-{4 + shift}", True)}
        del expected[f"epoch-{2 + shift}"]
    assert places == expected
    assert list(places) == sorted(places)
    assert run.by == "by the epochs and steps inside the files"
    assert run.newest == (5, 500)
    name = f"epoch-{2 + shift}.safetensors"
    assert run.notes[0] == (
        f"inside, {name} says epoch 4, as another does, of which it may be a copy; its place is that of its name"
    )
    assert any("the epochs in the names are 1 more than those inside" in note for note in run.notes) == bool(shift)


def test_a_training_that_was_resumed_is_ordered_by_its_names(tmp_path):
    for epoch in range(8):
        weights = {"a.weight": torch.full((8, 8), float(epoch))}
        save_file(weights, tmp_path / f"epoch-{epoch}.safetensors", {"epoch": str(epoch % 4)})
    run = settled(tmp_path)
    assert [checkpoint.epoch for checkpoint in run.checkpoints] == list(range(8))
    assert run.by == "by the epochs in the names"


def test_the_latest_of_a_run_may_be_one_that_was_dropped(tmp_path):
    walk(tmp_path)
    copied(tmp_path, 200, 700)
    run = settled(tmp_path)
    assert dropped(run) == {"step-700": ("step-200", True)}
    assert run.newest == (-1, 700)


def cli(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture
def bad(run_folder, tmp_path):
    """A run of five with the fourth's weights under the second epoch, too."""
    folder = shutil.copytree(run_folder, tmp_path / "bad")
    shutil.copy(folder / "epoch-003.safetensors", folder / "epoch-001.safetensors")
    return folder


def test_whole_and_in_shards_what_was_dropped_is_recorded_and_not_missing(bad, probe_file, tmp_path):
    options = ("--probe", f"npz:{probe_file}", "--images", "40")
    whole, parts = tmp_path / "whole.h5", tmp_path / "parts.h5"
    done = cli("extract", bad, *options, "-o", whole)
    assert done.exit_code == 3, done.output
    assert "skipped epoch-001.safetensors: it holds the weights of epoch-003.safetensors, where they fit" in done.stderr
    with open_activations(whole) as file:
        assert file.epochs.tolist() == [0, 2, 3, 4]
        assert [path for path, _ in file.skipped] == ["epoch-001.safetensors"]
    for shard in (2, 1):
        assert cli("extract", bad, *options, "-o", parts, "--shard", f"{shard}/2").exit_code == 3
    assert cli("merge", parts).exit_code == 3
    assert_same(whole, parts)
    kept = tmp_path / "kept.h5"
    assert cli("extract", bad, *options, "-o", kept, "--on-duplicate", "keep").exit_code == 0
    with open_activations(kept) as file:
        assert file.epochs.tolist() == [0, 1, 2, 3, 4]
        assert not file.skipped
        np.testing.assert_array_equal(file.read("mean", 1), file.read("mean", 3))


def test_shown_before_anything_is_done_and_refused_where_that_is_wanted(bad, probe_file, tmp_path):
    options = ("extract", bad, "--probe", f"npz:{probe_file}", "-o", tmp_path / "a.h5")
    shown = cli(*options, "--dry-run")
    assert shown.exit_code == 0
    assert "epoch-001.safetensors (it holds the weights of epoch-003.safetensors, where they fit; see" in shown.stdout
    failed = cli(*options, "--on-duplicate", "fail")
    assert failed.exit_code == 1
    assert "epoch-001.safetensors, epoch-003.safetensors hold the same weights" in failed.stderr
    assert not (tmp_path / "a.h5").exists()
    with pytest.raises(UsageError, match="--on-duplicate 'ask'; give drop, keep, fail"):
        posthoc.extract(bad, f"npz:{probe_file}", tmp_path / "a.h5", on_duplicate="ask")


def test_a_run_that_is_followed_ends_with_a_checkpoint_that_was_dropped_and_at_once_where_none_may_be(
    run_folder, probe_file, tmp_path
):
    folder = shutil.copytree(run_folder, tmp_path / "bad")
    shutil.copy(folder / "epoch-001.safetensors", folder / "epoch-004.safetensors")
    options = ("--probe", f"npz:{probe_file}", "--images", "40", "-o", tmp_path / "a.h5", "--follow", "--quiet", 3000)
    failed = cli("extract", folder, *options, "--on-duplicate", "fail")
    assert failed.exit_code == 1
    assert "epoch-001.safetensors, epoch-004.safetensors hold the same weights" in failed.stderr
    assert cli("extract", folder, *options, "--until-epoch", 4).exit_code == 3
    with open_activations(tmp_path / "a.h5") as file:
        assert file.epochs.tolist() == [0, 1, 2, 3]


def test_checkpoints_of_a_training_that_diverged_are_no_copies(tmp_path):
    walk(tmp_path)
    for step in range(300, 800, 100):
        save_file(
            {"a.weight": torch.full((16, 32), torch.nan), "a.bias": torch.full((32,), torch.nan)},
            tmp_path / f"step-{step}.safetensors",
        )
    for on_duplicate in ("drop", "fail"):
        run = settled(tmp_path, on_duplicate)
        assert [checkpoint.step for checkpoint in run.checkpoints] == list(range(0, 800, 100))
        assert run.notes[-1].startswith(
            "step-300.safetensors, step-400.safetensors, step-500.safetensors, step-600.safetensors and 1 more hold"
        )
