"""Which files make a run, in which order; real files, named as people name them."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from posthoc.errors import PosthocError
from posthoc.replay.layout import find_run

TENSORS = {"fc.weight": torch.zeros(2, 3)}
OTHER = {"fc.weight": torch.ones(2, 3)}


def save(folder, name, tensors=TENSORS, **said):
    path = folder / name
    if path.suffix == ".safetensors":
        save_file(tensors, path, {key: str(value) for key, value in said.items()})
    else:
        torch.save({"state_dict": tensors, **said} if said else tensors, path)


def order(folder, **options):
    return [checkpoint.path.name for checkpoint in find_run(folder, **options).checkpoints]


@pytest.mark.parametrize(
    "form", ["model_{}.pth", "epoch={}.pt", "ckpt-e{}-v2.safetensors", "{}.pt", "net18_ep{}_b512.pth"]
)
def test_numbers_in_names_count_not_their_alphabet(tmp_path, form):
    for epoch in (10, 9, 1, 100):
        save(tmp_path, form.format(epoch))
    assert order(tmp_path) == [form.format(epoch) for epoch in (1, 9, 10, 100)]
    assert [checkpoint.epoch for checkpoint in find_run(tmp_path).checkpoints] == [1, 9, 10, 100]


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_the_epoch_inside_wins_over_the_name(tmp_path, suffix):
    for epoch, letter in ((3, 1), (1, 2), (2, 3)):
        save(tmp_path, f"save_{letter}.{suffix}", epoch=epoch, global_step=epoch * 100, val_acc=0.5)
    run = find_run(tmp_path)
    assert [checkpoint.epoch for checkpoint in run.checkpoints] == [1, 2, 3]
    assert [checkpoint.step for checkpoint in run.checkpoints] == [100, 200, 300]
    assert run.checkpoints[0].header.recorded == {"val_acc": 0.5}


def test_epoch_and_step_in_one_name(tmp_path):
    for epoch, step in ((0, 400), (1, 800), (2, 1200)):
        save(tmp_path, f"epoch={epoch}-step={step}.pt")
    assert [checkpoint.epoch for checkpoint in find_run(tmp_path).checkpoints] == [0, 1, 2]


def test_steps_only(tmp_path):
    for step in (1000, 200):
        save(tmp_path, f"step_{step}.pt")
    run = find_run(tmp_path)
    assert [(checkpoint.epoch, checkpoint.step) for checkpoint in run.checkpoints] == [(None, 200), (None, 1000)]


def test_a_single_file_is_a_run_of_one(tmp_path):
    save(tmp_path, "final.pt")
    assert order(tmp_path / "final.pt") == ["final.pt"]


def test_run_json_is_read_and_hidden_files_are_not(tmp_path):
    save(tmp_path, "1.pt")
    (tmp_path / ".resume.pt").write_bytes(b"not for us")
    (tmp_path / "run.json").write_text(json.dumps({"model": "resnet18"}))
    assert find_run(tmp_path).about == {"model": "resnet18"}


def test_two_runs_by_name_are_listed_and_one_can_be_chosen(tmp_path):
    for epoch in (1, 2):
        save(tmp_path, f"a_{epoch}.pt")
        save(tmp_path, f"b_{epoch}.pt", OTHER)
    save(tmp_path, "a_29_gpu.pt", {"fc.weight": torch.eye(3)[:2]})
    with pytest.raises(PosthocError, match=r"3 groups \(a_#\.pt \(2 files\).*a_29_gpu\.pt.*b_#\.pt \(2 files\)"):
        find_run(tmp_path)
    assert order(tmp_path, select="b_*") == ["b_1.pt", "b_2.pt"]
    assert order(tmp_path, select="a_#.pt") == ["a_1.pt", "a_2.pt"]
    with pytest.raises(PosthocError, match="2 groups"):  # which of the names count epochs is anybody's guess
        find_run(tmp_path, select="a_*")


def test_two_architectures_are_refused(tmp_path):
    save(tmp_path, "1.pt")
    save(tmp_path, "2.pt", {"fc.weight": torch.zeros(4, 3)})
    with pytest.raises(PosthocError, match="networks of different shape"):
        find_run(tmp_path)


def test_ties_are_refused(tmp_path):
    for k in (1, 2):
        save(tmp_path, f"save_{k}.pt", {"fc.weight": torch.full((2, 3), float(k))}, epoch=7)
    with pytest.raises(PosthocError, match=r"save_1\.pt and save_2\.pt are both of epoch 7"):
        find_run(tmp_path)


def test_an_uncertain_order_is_refused(tmp_path):
    save(tmp_path, "x3_y7.pt")
    save(tmp_path, "x4_y6.pt")
    with pytest.raises(PosthocError, match=r"order .* is not certain"):
        find_run(tmp_path)


def test_places_without_checkpoints_are_refused(tmp_path):
    with pytest.raises(PosthocError, match="No checkpoint in"):
        find_run(tmp_path)
    with pytest.raises(PosthocError, match="No such file or folder"):
        find_run(tmp_path / "nowhere")
    save(tmp_path, "1.pt")
    with pytest.raises(PosthocError, match=r"matching '\*\.ckpt'"):
        find_run(tmp_path, select="*.ckpt")
    (tmp_path / "above" / "below").mkdir(parents=True)
    save(tmp_path / "above" / "below", "1.pt")
    with pytest.raises(PosthocError, match=r"there are some in .*above/below: give one"):
        find_run(tmp_path / "above")


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_run_json_is_refused(tmp_path, content):
    save(tmp_path, "1.pt")
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(PosthocError, match=r"run\.json"):
        find_run(tmp_path)


def test_several_checkpoints_of_one_epoch_are_ordered_by_step(tmp_path):
    for epoch, step in ((1, 300), (0, 1000), (0, 200)):
        save(tmp_path, f"save_{step}.pt", epoch=epoch, step=step)
    assert order(tmp_path) == ["save_200.pt", "save_1000.pt", "save_300.pt"]


def test_a_folder_of_one_file_needs_no_number(tmp_path):
    save(tmp_path, "model.pt")
    assert order(tmp_path) == ["model.pt"]


def test_names_of_recorded_numbers_hold_no_slash(tmp_path):
    save(tmp_path, "1.pt", **{"val/acc": 0.5})
    assert find_run(tmp_path).checkpoints[0].header.recorded == {"val.acc": 0.5}


def test_copies_of_best_and_last_are_dropped_and_named(tmp_path):
    for epoch in (1, 2, 3):
        save(tmp_path, f"epoch_{epoch}.pth", {"fc.weight": torch.full((2, 3), float(epoch))})
    shutil.copy(tmp_path / "epoch_2.pth", tmp_path / "best.pth")
    save(tmp_path, "last.pth", {"module.fc.weight": torch.full((2, 3), 3.0)}, loss=0.5)  # the same weights, no more
    run = find_run(tmp_path)
    assert [checkpoint.path.name for checkpoint in run.checkpoints] == [f"epoch_{epoch}.pth" for epoch in (1, 2, 3)]
    assert {copy.name: original.name for copy, original in run.copies} == {
        "best.pth": "epoch_2.pth",
        "last.pth": "epoch_3.pth",
    }
    save(tmp_path, "last.pth", {"fc.weight": torch.full((2, 3), 4.0)})
    with pytest.raises(PosthocError, match=r"2 groups \(epoch_#\.pth \(3 files\).*last\.pth"):
        find_run(tmp_path)


def test_equal_weights_at_other_epochs_stay(tmp_path):
    for epoch in (1, 2):
        save(tmp_path, f"a{epoch}.pt")
        save(tmp_path, f"epoch_{epoch}.pt", epoch=epoch + 2, step=epoch)
    assert order(tmp_path, select="epoch_*") == ["epoch_1.pt", "epoch_2.pt"]


def test_files_named_in_several_ways_are_one_run_where_they_are_chosen_and_say_so(tmp_path):
    for epoch, name in ((5, "final.pt"), (1, "epoch_1.pt"), (2, "epoch_2.pt")):
        save(tmp_path, name, {"fc.weight": torch.full((2, 3), float(epoch))}, epoch=epoch)
    with pytest.raises(PosthocError, match="2 groups"):
        find_run(tmp_path)
    assert order(tmp_path, select="*") == ["epoch_1.pt", "epoch_2.pt", "final.pt"]


def test_wrapped_and_plain_names_are_one_network(tmp_path):
    for epoch, prefix in ((1, ""), (2, "module."), (3, "_orig_mod.")):
        save(tmp_path, f"{epoch}.pt", {f"{prefix}fc.weight": torch.full((2, 3), float(epoch))})
    assert order(tmp_path) == ["1.pt", "2.pt", "3.pt"]


def test_copies_of_a_diverged_checkpoint_are_copies(tmp_path):
    for epoch in (1, 2):
        save(tmp_path, f"epoch_{epoch}.pt", {"fc.weight": torch.full((2, 3), float("nan") if epoch == 2 else 1.0)})
    shutil.copy(tmp_path / "epoch_2.pt", tmp_path / "last.pt")
    assert [copy.name for copy, _ in find_run(tmp_path).copies] == ["last.pt"]


def test_a_finished_run_s_last_checkpoint_without_an_epoch_is_not_the_first(tmp_path):
    for name, epoch in (("epoch0.pt", 0), ("epoch5.pt", 5), ("last.pt", -1)):
        save(tmp_path, name, {"fc.weight": torch.full((2, 3), float(epoch))}, epoch=epoch)
    with pytest.raises(PosthocError, match="more than one run"):
        find_run(tmp_path, select="*")


@pytest.mark.parametrize("form", ["fold_{}.pth", "seed{}.pt", "rank{}.pt", "consolidated.0{}.pth"])
def test_numbers_that_count_something_else_are_no_epochs(tmp_path, form):
    for k in range(3):
        save(tmp_path, form.format(k), {"fc.weight": torch.full((2, 3), float(k))})
    with pytest.raises(PosthocError, match="not certain"):
        find_run(tmp_path)


def test_an_index_that_is_none_and_a_broken_run_json(tmp_path):
    save(tmp_path, "epoch_1.pt")
    (tmp_path / "x.index.json").write_text("{}")
    assert [path.name for path in find_run(tmp_path).apart] == ["x.index.json"]
    (tmp_path / "run.json").write_text("[" * 100_000)
    with pytest.raises(PosthocError, match=r"run\.json is not valid JSON"):
        find_run(tmp_path)
