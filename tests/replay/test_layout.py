"""Which files make a run, in which order; real files, named as people name them."""

import json
import os
import shutil
import socket
import sys
from collections import Counter

import pytest
import torch
from safetensors.torch import save_file

from posthoc.errors import PosthocError, UsageError
from posthoc.replay.layout import find_run
from posthoc.replay.weights import Pick

TENSORS = {"fc.weight": torch.zeros(2, 3)}
OTHER = {"fc.weight": torch.ones(2, 3)}


def save(folder, name, tensors=TENSORS, **said):
    path = folder / name
    if path.suffix == ".safetensors":
        save_file(tensors, path, {key: str(value) for key, value in said.items()})
    else:
        torch.save({"state_dict": tensors, **said} if said else tensors, path)


def series(folder, names, **said):
    """Checkpoints of different weights, each saying of itself what the lists `said` have for it."""
    for k, name in enumerate(names):
        save(folder, name, {"fc.weight": torch.full((2, 3), float(k))}, **{key: said[key][k] for key in said})


def places(folder, **options):
    return [(c.path.name, c.epoch, c.step) for c in find_run(folder, **options).checkpoints]


def order(folder, **options):
    return [checkpoint.path.name for checkpoint in find_run(folder, **options).checkpoints]


def test_the_sign_of_a_number_does_not_split_a_run(tmp_path):
    names = ["epoch=0-reward=-3.5.ckpt", "epoch=1-reward=-1.25.ckpt", "epoch=2-reward=4.2.ckpt"]
    series(tmp_path, names)
    assert places(tmp_path) == [(name, epoch, None) for epoch, name in enumerate(names)]
    assert order(tmp_path, select="epoch=#-reward=#.#.ckpt") == names


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
        save(tmp_path, f"a_net_{epoch}.pt")
        save(tmp_path, f"b_net_{epoch}.pt", OTHER)
    save(tmp_path, "a_net_29_gpu.pt", {"fc.weight": torch.eye(3)[:2]})
    listed = r"3 groups \(a_net_#\.pt \(2 files\).*b_net_#\.pt \(2 files\).*a_net_29_gpu\.pt"
    with pytest.raises(PosthocError, match=listed + r".*--select 'a_net_#\.pt'.*--as a_net_29_gpu\.pt=EPOCH"):
        find_run(tmp_path)
    assert order(tmp_path, select="b_*") == ["b_net_1.pt", "b_net_2.pt"]
    assert order(tmp_path, select="a_net_#.pt") == ["a_net_1.pt", "a_net_2.pt"]
    assert places(tmp_path, select="a_net_#.pt", placed=["a_net_29_gpu.pt=29"])[2] == ("a_net_29_gpu.pt", 29, None)
    with pytest.raises(PosthocError, match="2 groups"):  # which of the names count epochs is anybody's guess
        find_run(tmp_path, select="a_*")


def test_two_architectures_are_refused(tmp_path):
    save(tmp_path, "1.pt")
    save(tmp_path, "2.pt", {"fc.weight": torch.zeros(4, 3)})
    with pytest.raises(
        PosthocError, match=r"different shape \(fc\.weight is 2 x 3 in 1\.pt, 4 x 3 in 2\.pt\) .*--select 1\.pt"
    ):
        find_run(tmp_path)
    assert order(tmp_path, select="1.pt") == ["1.pt"]


def test_a_head_that_was_replaced_is_said_with_the_files(tmp_path):
    for epoch in range(6):
        weights = {"a": torch.full((2, 3), float(epoch)), "o": torch.full((3 if epoch < 3 else 7, 2), float(epoch))}
        save(tmp_path, f"epoch_{epoch}.pt", weights)
    both = r"o is 3 x 2 in epoch_0\.pt, 7 x 2 in epoch_3\.pt\) fall into 2 groups \(epoch_#\.pt \(epoch_0\.pt to epoch_2\.pt, 3 files\)"
    with pytest.raises(PosthocError, match=both):
        find_run(tmp_path)


def test_what_grows_beside_the_network_is_left_out_by_a_key_that_is_named(tmp_path):
    for epoch in (1, 2, 3):
        weights = {"net.fc": torch.full((2, 3), float(epoch)), "loss.bank": torch.zeros(10 * epoch, 2)}
        save(tmp_path, f"epoch_{epoch}.pt", weights)
    with pytest.raises(PosthocError, match=r"if the network is what they share, pass --weights-key net, or"):
        find_run(tmp_path)
    assert [c.epoch for c in find_run(tmp_path, pick=Pick("net")).checkpoints] == [1, 2, 3]


def test_a_measure_that_is_written_in_several_ways_is_one_form(tmp_path):
    names = ["epoch=3-loss=0.34.pt", "epoch=12-loss=nan.pt", "epoch=40-loss=9.5e-05.pt", "epoch=41-loss=-1.pt"]
    series(tmp_path, names)
    assert places(tmp_path) == [(name, epoch, None) for name, epoch in zip(names, (3, 12, 40, 41), strict=True)]
    assert order(tmp_path, select="epoch=#-loss=#.pt") == names


def test_names_of_several_forms_that_say_their_epochs_are_one_run_where_they_are_chosen(tmp_path):
    names = ["epoch_1_a3f9c.pt", "epoch_2_77b1x.pt", "epoch_10_zz.pt"]
    series(tmp_path, names)
    with pytest.raises(PosthocError, match=r"take them all with --select '\*'"):
        find_run(tmp_path)
    assert order(tmp_path, select="*") == names
    with pytest.raises(PosthocError, match="more than one run"):
        find_run(tmp_path, select="epoch*")
    save(tmp_path, "epoch_10_other.pt", {"fc.weight": torch.full((2, 3), 5.0)})
    with pytest.raises(PosthocError, match="more than one run"):
        find_run(tmp_path, select="*")


@pytest.mark.parametrize("word", ["seed", "fold", "lr"])
def test_numbers_that_tell_runs_apart_do_whatever_is_chosen(word, tmp_path):
    series(tmp_path, [f"{word}1_epoch1.pt", f"{word}1_epoch2.pt", f"{word}2_epoch3.pt", f"{word}2_epoch4.pt"])
    for select in ("*", "*.pt", f"{word}*", f"{word}#_epoch#.pt"):
        with pytest.raises(PosthocError, match="more than one run") as refused:
            find_run(tmp_path, select=select)
        assert "take them all" not in str(refused.value)


def test_a_question_mark_is_one_character_and_no_number(tmp_path):
    names = [f"epoch_{k}.pt" for k in (1, 2, 3, 9, 10, 11, 12)]
    series(tmp_path, names)
    assert order(tmp_path, select="epoch_?.pt") == names[:4]
    assert order(tmp_path, select="epoch_[!1]*.pt") == names[1:4]


@pytest.mark.parametrize("prefix", ["", "module.", "enc.module.", "enc._orig_mod."])
def test_networks_of_different_shape_are_named_by_their_tensors_in_the_files(prefix, tmp_path):
    for epoch, size in ((1, 4), (2, 4), (3, 5)):
        weights = {
            f"{prefix}fc.weight": torch.full((3, size), float(epoch)),
            "head.weight": torch.full((2, 3), float(epoch)),
        }
        save(tmp_path, f"epoch_{epoch}.pt", weights)
    with pytest.raises(PosthocError, match=rf"\({prefix}fc\.weight is 3 x 4 in epoch_1\.pt, 3 x 5 in epoch_3\.pt\)"):
        find_run(tmp_path)


@pytest.mark.parametrize("prefix", ["backbone", "module.backbone", "model.backbone"])
def test_the_key_that_is_named_takes_what_networks_share(prefix, tmp_path):
    above = prefix.removesuffix("backbone")
    for epoch in (1, 2, 3, 4):
        weights = {f"{prefix}.a.weight": torch.full((2, 3), float(epoch)), f"{prefix}.b": torch.zeros(2)}
        save(tmp_path, f"epoch_{epoch}.pt", weights | {f"{above}head.weight": torch.zeros(2 + epoch // 3, 2)})
    with pytest.raises(PosthocError, match=rf"pass --weights-key {prefix}, or"):
        find_run(tmp_path)
    assert [c.epoch for c in find_run(tmp_path, pick=Pick(prefix)).checkpoints] == [1, 2, 3, 4]


def test_ties_are_refused_with_what_helps(tmp_path):
    series(tmp_path, ["first.pt", "second.pt"], epoch=[7, 8])
    with pytest.raises(PosthocError, match=r"2 groups .*--select first\.pt, or take them all with --select '\*'"):
        find_run(tmp_path)
    assert order(tmp_path, select="*") == ["first.pt", "second.pt"]
    series(tmp_path, ["first.pt", "second.pt"], epoch=[7, 7])
    with pytest.raises(PosthocError, match=r"first\.pt and second\.pt are both epoch 7.*--select 'first\.pt'"):
        find_run(tmp_path, select="*")
    assert order(tmp_path, select="first.pt") == ["first.pt"]
    (tmp_path / "sweep").mkdir()
    series(tmp_path / "sweep", ["s1.pt", "s2.pt"], epoch=[7, 7])
    with pytest.raises(PosthocError, match=r"both epoch 7.*--order name"):
        find_run(tmp_path / "sweep")
    assert places(tmp_path / "sweep", order="name") == [("s1.pt", 1, None), ("s2.pt", 2, None)]
    with pytest.raises(PosthocError, match=r"both epoch 7.*--order name"):
        find_run(tmp_path / "sweep", order="inside")


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
    for name in ("below", "beside"):
        (tmp_path / "above" / name).mkdir(parents=True)
        save(tmp_path / "above" / name, "1.pt")
    with pytest.raises(PosthocError, match=r"there are some in .*above/below, .*above/beside: give one"):
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


def test_names_of_tensors_that_are_no_text_are_compared_all_the_same(tmp_path):
    for name, value in (("epoch_1", 1.0), ("epoch_2", 2.0), ("best", 2.0)):
        save(tmp_path, f"{name}.pth", {"fc\udcff.weight": torch.full((2, 3), value)})
    run = find_run(tmp_path)
    assert [(copy.name, original.name) for copy, original in run.copies] == [("best.pth", "epoch_2.pth")]


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


@pytest.mark.parametrize(
    "form",
    [
        "fold_{}.pth", "seed{}.pt", "rank{}.pt", "consolidated.0{}.pth", "client_{}.pth", "subject_{}_net.pth", "task{}.pt",
        "layer_{}.pt", "alpha_{}.pt", "hidden_{}.pt", "model_v{}.pt", "site-{}.pth", "worker{}.pt", "shard_{}.pt",
        "part_{}.bin", "trial_{}.pt", "run_{}.pt", "lr_{}.pt", "version_{}.ckpt", "client_model_{}.pt", "2024-01-0{}.pt",
        "2024010{}.pt", "net_20240101_1{}0000.pth", "ckpt_2024-01-01_1{}-30-00.pt", "170000000{}.pt", "model_{}b.pt",
        "x{}.pt", "max_epochs_{}.pt", "every_{}_steps.pt", "n_step_{}.pt", "val_loss=0.{}.pt", "acc_9{}.pt", "batch_{}.pt",
        "epoch_0.{}.pt", "lr_step_{}.pt", "local_epochs_{}.pt", "kl_weight_{}.pt", "model ({}).pt", "model-{}-of-3.pt",
        "checkpoint.{}.0.pt", "data_{}.pt",
    ],
)  # fmt: skip
def test_numbers_that_count_something_else_are_no_epochs(tmp_path, form):
    series(tmp_path, [form.format(k) for k in (1, 2, 3)])
    with pytest.raises(PosthocError, match="not certain"):
        find_run(tmp_path)


@pytest.mark.parametrize(
    ("form", "unit"),
    [
        ("rl_model_{}_steps.pt", "step"), ("global_step{}.pt", "step"), ("step={}.ckpt", "step"), ("iter_{}.pth", "step"),
        ("{}k-iters.pt", "thousand"), ("ckpt_{}k.pt", "thousand"), ("it{}.pt", "step"), ("{}_updates.pt", "step"),
        ("agent_{}_timesteps.pt", "step"), ("epoch_{}_2024-01-0{}.pt", "epoch"), ("netEpoch{}.pth", "epoch"),
        ("resnet20_{}.pth", "epoch"), ("mynet-{}.pt", "epoch"), ("model.{}.pt", "epoch"), ("state_dict_{}.pt", "epoch"),
        ("{}ep.pt", "epoch"), ("epoch={}-val_loss=0.3{}.ckpt", "epoch"), ("model_{}_acc_0.9{}.pt", "epoch"),
        ("epoch_no_{}_of_100.pt", "epoch"), ("lr1e-3_e{}.pt", "epoch"), ("save{}", "epoch"),
        ("ckpt.pth.{}", "epoch"), ("Step_{},000.pt", "thousand"), ("net_{}.PTH", "epoch"),
    ],
)  # fmt: skip
def test_numbers_count_epochs_or_steps_where_a_word_says_so(tmp_path, form, unit):
    series(tmp_path, [form.format(k, 9 - k) for k in (8, 2, 3)])
    factor = 1000 if unit == "thousand" else 1
    found = [(c.epoch, c.step) for c in find_run(tmp_path).checkpoints]
    assert found == [(k, None) if unit == "epoch" else (None, k * factor) for k in (2, 3, 8)]


def test_numbers_that_tell_runs_apart_make_groups(tmp_path):
    series(tmp_path, [f"seed{seed}_epoch{epoch}.pt" for seed in (1, 2) for epoch in (5 + seed, 10)])
    with pytest.raises(PosthocError, match=r"2 groups \(seed1_epoch#\.pt \(2 files\).*--select 'seed1_epoch#\.pt'"):
        find_run(tmp_path)
    assert places(tmp_path, select="seed2_epoch#.pt") == [("seed2_epoch7.pt", 7, None), ("seed2_epoch10.pt", 10, None)]


def test_epochs_and_steps_in_names_are_both_used(tmp_path):
    series(tmp_path, ["epoch=0-step=100.pt", "epoch=0-step=50.pt", "epoch=1-step=150.pt", "epoch_2_batch_3.pt"])
    assert places(tmp_path, select="*step*") == [
        ("epoch=0-step=50.pt", 0, 50), ("epoch=0-step=100.pt", 0, 100), ("epoch=1-step=150.pt", 1, 150),
    ]  # fmt: skip
    assert places(tmp_path / "epoch_2_batch_3.pt") == [("epoch_2_batch_3.pt", 2, 3)]


def test_the_user_may_say_that_the_names_count(tmp_path):
    series(tmp_path, ["tudui_10.pth", "tudui_9.pth"])
    with pytest.raises(PosthocError, match=r"follows 'tudui'.*if it counts epochs, pass --order name"):
        find_run(tmp_path)
    assert places(tmp_path, order="name") == [("tudui_9.pth", 9, None), ("tudui_10.pth", 10, None)]
    assert find_run(tmp_path, order="name").by == "by the epochs in the names"
    series(tmp_path, ["x3_y7.pt", "x4_y6.pt"])
    with pytest.raises(PosthocError, match=r"--order name: several numbers differ .*--as x3_y7\.pt=1"):
        find_run(tmp_path, select="x*", order="name")
    with pytest.raises(UsageError, match="Unknown --order 'date'"):
        find_run(tmp_path, order="date")


def test_names_that_disagree_with_the_files_are_told(tmp_path):
    series(tmp_path, ["epoch_1.pt", "epoch_2.pt", "epoch_3.pt"], epoch=[2, 1, 0])
    run = find_run(tmp_path)
    assert [c.path.name for c in run.checkpoints] == ["epoch_3.pt", "epoch_2.pt", "epoch_1.pt"]
    assert run.by == "by the epochs inside the files"
    assert run.notes == (
        "epoch_3.pt says epoch 0 inside (3 of 3 disagree); the order goes by what is inside, --order name goes by the names",
    )
    assert order(tmp_path, order="name") == ["epoch_1.pt", "epoch_2.pt", "epoch_3.pt"]
    assert find_run(tmp_path, order="name").notes == ()
    assert find_run(tmp_path, order="inside").notes == ()
    single = find_run(tmp_path / "epoch_3.pt")
    assert (single.checkpoints[0].epoch, len(single.notes)) == (0, 1)


def test_files_that_count_from_zero_and_names_from_one(tmp_path):
    series(tmp_path, ["epoch_1.pt", "epoch_2.pt"], epoch=[0, 1])
    run = find_run(tmp_path)
    assert [c.epoch for c in run.checkpoints] == [0, 1]
    assert run.notes[0].startswith("the epochs in the names are 1 more than those inside")


def test_steps_in_names_and_epochs_inside_do_not_disagree(tmp_path):
    series(tmp_path, ["step_100.pt", "step_200.pt"], epoch=[1, 2])
    assert find_run(tmp_path).notes == ()
    series(tmp_path, ["step_100.pt", "step_200.pt"], epoch=[2, 1])
    assert find_run(tmp_path).notes[0].startswith("inside the files step_100.pt comes after step_200.pt")


@pytest.mark.parametrize(
    ("epochs", "note"),
    [
        ([100] * 4, "all say epoch 100 inside; the order goes by the names"),
        ([0, 1, 0, 1], "the epochs inside repeat, as after training was resumed or of a copy (epoch_1.pt, epoch_3.pt say epoch 0); "
                       "the order goes by the names"),
    ],
)  # fmt: skip
def test_epochs_inside_that_tell_nothing_leave_the_order_to_the_names(tmp_path, epochs, note):
    series(tmp_path, [f"epoch_{k}.pt" for k in (1, 2, 3, 4)], epoch=epochs)
    run = find_run(tmp_path)
    assert [c.epoch for c in run.checkpoints] == [1, 2, 3, 4]
    assert (run.by, run.notes) == ("by the epochs in the names", (note,))


def test_the_epochs_of_the_whole_training_inside_beside_steps(tmp_path):
    series(tmp_path, ["epoch_1.pt", "epoch_2.pt"], epoch=[100, 100], global_step=[50, 90])
    assert places(tmp_path) == [("epoch_1.pt", 1, 50), ("epoch_2.pt", 2, 90)]


def test_checkpoints_are_given_a_place(tmp_path):
    series(tmp_path, ["epoch_init.pt", "epoch_1.pt", "epoch_2.pt", "final.pth"])
    with pytest.raises(PosthocError, match=r"3 groups .*--as epoch_init\.pt=EPOCH"):
        find_run(tmp_path)
    run = find_run(tmp_path, placed=["epoch_init.pt=0", f"{tmp_path}/final.pth=20"])
    assert [(c.path.name, c.epoch) for c in run.checkpoints] == [
        ("epoch_init.pt", 0), ("epoch_1.pt", 1), ("epoch_2.pt", 2), ("final.pth", 20),
    ]  # fmt: skip
    assert run.by == "by the epochs in the names and as given with --as"
    with pytest.raises(PosthocError, match=r"both epoch 2 .*give another place with --as"):
        find_run(tmp_path, placed=["epoch_init.pt=0", "final.pth=2"])
    with pytest.raises(
        UsageError, match=r"--as epoch_inti\.pt=0: .* no checkpoint of that name; there are epoch_init\.pt"
    ):
        find_run(tmp_path, placed=["epoch_inti.pt=0"])
    for text in ("final.pth", "final.pth=x", "final.pth=-1", "=3", f"final.pth={2**63}"):
        with pytest.raises(UsageError, match="give FILE=EPOCH"):
            find_run(tmp_path, placed=[text])
    with pytest.raises(UsageError, match="two epochs, 1 and 2"):
        find_run(tmp_path, placed=["final.pth=1", "final.pth=2"])
    save(tmp_path, "other.pt", {"fc.weight": torch.zeros(5, 5)})
    with pytest.raises(PosthocError, match=r"other\.pt, given a place with --as, holds a network of another shape"):
        find_run(tmp_path, placed=["epoch_init.pt=0", "final.pth=20", "other.pt=3"])


def test_places_in_steps_and_of_all_files(tmp_path):
    series(tmp_path, ["init.pt", "step_100.pt", "step_200.pt"])
    assert places(tmp_path, placed=["init.pt=0"])[0] == ("init.pt", None, 0)
    series(tmp_path, ["alice.bin", "bob.bin"])
    assert places(tmp_path, select="*.bin", placed=["bob.bin=1", "alice.bin=2"]) == [
        ("bob.bin", 1, None), ("alice.bin", 2, None),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("model_epoch_7.pt", (7, None)), ("model_7.pt", (7, None)), ("7.pt", (7, None)), ("iter_500.pth", (None, 500)),
        ("resnet18.pt", (None, None)), ("lenet_5.pt", (None, None)), ("final.pt", (None, None)), ("fold_1.pt", (None, None)),
        ("vgg16_bn-6c64b313.pth", (None, None)), ("checkpoint-500/adapter_model.safetensors", (None, 500)),
        ("epoch_3/model.pt", (3, None)), ("3/model.pt", (None, None)),
    ],
)  # fmt: skip
def test_a_lone_checkpoint_keeps_its_epoch(tmp_path, name, place):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    save(path.parent, path.name)
    assert [(c.epoch, c.step) for c in find_run(path).checkpoints] == [place]
    assert [(c.epoch, c.step) for c in find_run(path.parent).checkpoints] == [place]
    assert [c.epoch for c in find_run(path, placed=[f"{path.name}=4"]).checkpoints] == [4]
    assert bool(find_run(path).notes) == (place == (None, None))


def test_several_files_are_one_run(tmp_path):
    series(tmp_path, ["epoch_1.pt", "epoch_2.pt", "epoch_3.pt"])
    (tmp_path / "log.txt").write_text("beside")
    assert order([tmp_path / name for name in ("epoch_3.pt", "log.txt", "epoch_1.pt")]) == ["epoch_1.pt", "epoch_3.pt"]
    (tmp_path / "sub").mkdir()
    series(tmp_path / "sub", ["epoch_9.pt"])
    with pytest.raises(UsageError, match="lie in one folder, these in 2"):
        find_run([tmp_path / "epoch_1.pt", tmp_path / "sub" / "epoch_9.pt"])
    with pytest.raises(UsageError, match=r"sub is a folder that holds checkpoints, and not all"):
        find_run([tmp_path / "epoch_1.pt", tmp_path / "sub"])


def test_what_is_no_file_is_set_apart_and_named(tmp_path):
    series(tmp_path, ["epoch_1.pt", "epoch_2.pt"])
    os.mkfifo(tmp_path / "epoch_3.pt")
    (tmp_path / "epoch_4.pt").symlink_to("/dev/zero")
    (tmp_path / "epoch_5.pt").symlink_to(tmp_path / "nowhere")
    (tmp_path / "epoch_6.pt").mkdir()
    (tmp_path / "loop.pt").symlink_to(tmp_path / "loop.pt")
    for name, weights in (("checkpoint-7", "model.safetensors"), ("8", ".metadata")):
        (tmp_path / name).mkdir()
        os.mkfifo(tmp_path / name / weights)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(tmp_path / "sock"))
    run = find_run(tmp_path)
    assert [c.path.name for c in run.checkpoints] == ["epoch_1.pt", "epoch_2.pt"]
    assert {path.name: reason for path, reason in run.apart} == {
        "epoch_3.pt": "a pipe", "epoch_4.pt": "a device", "epoch_5.pt": "a link to nothing", "epoch_6.pt": "a folder",
        "loop.pt": "a link to nothing", "sock": "a socket",
        "checkpoint-7": "a folder in which model.safetensors is a pipe", "8": "a folder in which .metadata is a pipe",
    }  # fmt: skip
    for name, what in (("epoch_3.pt", "a pipe"), ("epoch_5.pt", "a link to nothing"), ("8", "a folder in which .meta")):
        with pytest.raises(PosthocError, match=rf"{name} is {what}"):
            find_run(tmp_path / name)


def test_files_without_an_ending_are_known_by_their_first_bytes(tmp_path):
    series(tmp_path, ["epoch_1", "epoch_2", "epoch_3.T7"])
    save_file(TENSORS, tmp_path / "model.4")
    for name in ("README", "LICENSE", "notes.10"):
        (tmp_path / name).write_text("for people")
    assert order(tmp_path, select="epoch_#") == ["epoch_1", "epoch_2"]
    assert order(tmp_path / "model.4") == ["model.4"]


def test_many_checkpoints_in_letters_are_read_a_few_times_each(tmp_path):
    opened, watching = Counter(), True
    sys.addaudithook(lambda event, what: watching and event == "open" and opened.update([str(what[0])]))
    series(tmp_path, [f"{a}{b}.pt" for a in "abcdef" for b in "abcdefgh"])
    save(tmp_path, "zz.pt", {"fc.weight": torch.full((2, 3), 5.0)})
    opened.clear()
    with pytest.raises(PosthocError, match=r"48 groups \(.*; \.\.\.\)"):
        find_run(tmp_path)
    watching = False
    times = [opened[str(path)] for path in tmp_path.iterdir()]
    assert 0 < max(times) < 12  # for what it is, its smallest tensors, all of them where those agree; not once a pair


def test_a_number_that_cannot_be_stored_is_one_sentence(tmp_path):
    series(tmp_path, ["epoch_1.pt", "epoch_99999999999999999999.pt"])
    with pytest.raises(PosthocError, match=r"epoch_9+\.pt has an epoch or step beyond 2\^63 - 1, .*--as"):
        find_run(tmp_path)
    assert places(tmp_path, placed=["epoch_99999999999999999999.pt=2"])[1][1] == 2
    series(tmp_path, ["a1.pt", "a2.pt"], epoch=[10**30, 10**300])
    with pytest.raises(PosthocError, match=r"a1\.pt has an epoch or step beyond"):
        find_run(tmp_path, select="a*")
    assert order(tmp_path, select="a*", order="name") == ["a1.pt", "a2.pt"]


@pytest.mark.parametrize("epoch", [float("nan"), float("inf"), -1, "soon"])
def test_epochs_inside_that_are_none_are_ignored(tmp_path, epoch):
    series(tmp_path, ["epoch_1.pt", "epoch_2.pt"], epoch=[epoch, epoch])
    assert [c.epoch for c in find_run(tmp_path).checkpoints] == [1, 2]


def test_an_index_that_is_none_and_a_broken_run_json(tmp_path):
    save(tmp_path, "epoch_1.pt")
    (tmp_path / "x.index.json").write_text("{}")
    assert find_run(tmp_path).apart == ((tmp_path / "x.index.json", "no network's weights"),)
    (tmp_path / "run.json").write_text("[" * 100_000)
    with pytest.raises(PosthocError, match=r"run\.json .*nested too deep"):
        find_run(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("model", 18, "a text"), ("model", ["resnet18"], "a text"), ("dataset", {}, "a text"), ("recipe", True, "a text"),
        ("normalization", 3, "a text or an object"), ("image_size", "32", "a whole number"), ("seed", 1.5, "a whole number"),
        ("image_size", True, "a whole number"),
    ],
)  # fmt: skip
def test_a_run_json_of_other_types_is_refused(tmp_path, key, value, expected):
    save(tmp_path, "1.pt")
    (tmp_path / "run.json").write_text(json.dumps({"else": [1], key: value}))
    with pytest.raises(PosthocError, match=rf"run\.json: {key} is .*; expected {expected}"):
        find_run(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({"else": [1], key: None}))
    assert order(tmp_path) == ["1.pt"]


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 44730000\n"


def test_strangers_beside_checkpoints_are_set_apart_and_named(tmp_path):
    series(tmp_path, ["epoch_1.pth", "epoch_2.pth"])
    (tmp_path / "epoch_3.pth").write_text(LFS)
    (tmp_path / "net.onnx").write_bytes(bytes([8, 7, 18, 7]) + b"pytorch")
    (tmp_path / "train.bin").write_bytes(bytes(range(3, 250)) * 9)
    (tmp_path / "torn.zip").write_bytes(b"PK\3\4" + bytes(30))
    (tmp_path / "activations.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(30))
    (tmp_path / "README.md").write_text("for people")
    run = find_run(tmp_path)
    assert [c.path.name for c in run.checkpoints] == ["epoch_1.pth", "epoch_2.pth"]
    apart = {path.name: reason for path, reason in run.apart}
    assert apart.pop("torn.zip")
    assert apart == {
        "epoch_3.pth": "a Git LFS pointer, not the file itself", "net.onnx": "an ONNX network",
        "train.bin": "of none of the formats that are read here (torch.save, safetensors, pickles of tensors)",
    }  # fmt: skip
    whole = (tmp_path / "epoch_2.pth").read_bytes()
    (tmp_path / "epoch_2.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PosthocError, match="damaged or cut short"):
        find_run(tmp_path)


def test_a_folder_of_strangers_says_what_they_are(tmp_path):
    for k in (1, 2):
        (tmp_path / f"epoch_{k}.pth").write_text(LFS)
    with pytest.raises(PosthocError, match=r"None of the 2 files .*epoch_1\.pth is a Git LFS pointer.*git lfs pull"):
        find_run(tmp_path)
    (tmp_path / "keras").mkdir()
    (tmp_path / "keras" / "weights.05-0.32.hdf5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(30))
    with pytest.raises(PosthocError, match="HDF5 file, such as Keras writes"):
        find_run(tmp_path / "keras")


def test_copies_are_those_of_what_says_the_same(tmp_path):
    """Equal weights, of which one more says another epoch, one the same, one none."""
    same = {"fc.weight": torch.ones(2, 3)}
    for name, epoch in (("epoch_1.pt", 1), ("epoch_2.pt", 2), ("best.pt", 2), ("other.pt", 3)):
        save(tmp_path, name, same, epoch=epoch)
    save(tmp_path, "last.pt", same, loss=0.5)
    with pytest.raises(PosthocError, match=r"2 groups \(epoch_#\.pt \(2 files\).*; other\.pt: "):
        find_run(tmp_path)
    run = find_run(tmp_path, select="[bel]*")
    assert {copy.name: original.name for copy, original in run.copies} == {
        "best.pt": "epoch_2.pt",
        "last.pt": "epoch_1.pt",
    }
