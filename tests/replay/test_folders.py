"""One folder for each checkpoint, as trainers lay them out, and runs that lie below the folder that is given."""

import json
import os
import re
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors.torch import save_file

from posthoc.errors import PosthocError, UsageError
from posthoc.replay import listing
from posthoc.replay.checkpoint import read_header, read_weights
from posthoc.replay.formats.table import files_of
from posthoc.replay.layout import find_run
from posthoc.replay.listing import are_runs, run_folders
from posthoc.replay.meant import refuse_folder
from posthoc.replay.weights import Pick


def weights(seed):
    torch.manual_seed(seed)
    return {"fc.weight": torch.randn(2, 3), "fc.bias": torch.randn(2)}


def optimizer(state):
    moments = {k: {"step": torch.tensor(5.0), "exp_avg": tensor} for k, tensor in enumerate(state.values())}
    return {"state": moments, "param_groups": [{"lr": 0.1, "params": list(moments)}]}


def save(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path)


def same(path, state, pick=None):
    loaded = read_weights(path, pick or Pick())
    return loaded.keys() == state.keys() and all(torch.equal(loaded[name], state[name]) for name in state)


def places(place, **options):
    return [(c.path.name, c.epoch, c.step) for c in find_run(place, **options).checkpoints]


LAYOUTS = {
    "script": ("epoch_{}", "model.pt", ("optim.pt", "sched.pt", "rng.pth"), "epoch"),
    "one file": ("epoch_{}", "resnet.pth", ("optimizer.pth",), "epoch"),
    "numbers": ("{}", "weights.pt", (), "epoch"),
    "Transformers": ("checkpoint-{}", "pytorch_model.bin", ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"), "step"),
    "step": ("step-{}", "pytorch_model.bin", ("optimizer.bin",), "step"),
    "PEFT": ("checkpoint-{}", "adapter_model.safetensors", ("optimizer.pt",), "step"),
    "LitGPT": ("step-{:08}", "lit_model.pth", (), "step"),
    "OLMo": ("step{}-unsharded", "model.pt", ("optim.pt", "train.pt"), "step"),
    "Diffusers": ("checkpoint-{}", "diffusion_pytorch_model.safetensors", (), "step"),
    "Diffusers, training": ("checkpoint-{}", "unet/diffusion_pytorch_model.safetensors", ("optimizer.bin",), "step"),
    "DeepSpeed": ("global_step{}", "mp_rank_00_model_states.pt", ("zero_pp_rank_0_mp_rank_00_optim_states.pt",), "step"),
    "Megatron": ("iter_{:07}", "mp_rank_00/model_optim_rng.pt", (), "step"),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_folder_for_each_checkpoint(tmp_path, name):
    """The model's file, in the order of the folders' names."""
    folder, file, others, unit = LAYOUTS[name]
    wrapper = {"DeepSpeed": "module", "Megatron": "model"}.get(name)
    for k in (1, 2, 10):
        save(tmp_path / "run" / folder.format(k) / file, {wrapper: weights(k), "args": None} if wrapper else weights(k))
        for other in others:
            save(tmp_path / "run" / folder.format(k) / other, optimizer(weights(0)))
    (tmp_path / "run" / "latest").write_text("global_step10")
    run = find_run(tmp_path / "run")
    expected = [(folder.format(k), *((k, None) if unit == "epoch" else (None, k))) for k in (1, 2, 10)]
    assert [(c.path.name, c.epoch, c.step) for c in run.checkpoints] == expected
    for k, checkpoint in zip((1, 2, 10), run.checkpoints, strict=True):
        assert same(checkpoint.path, weights(k))
        assert files_of(checkpoint.path) == [tmp_path / "run" / folder.format(k) / file]
    given = [tmp_path / "run" / folder.format(k) for k in (10, 1)]
    assert not are_runs(given)
    assert places(given) == [expected[0], expected[2]]
    if "/" not in file:
        assert places([place / file for place in given]) == [expected[0], expected[2]]
    if name != "numbers":
        assert [row[1:] for row in places(given[0])] == [expected[2][1:]]


def test_folders_that_are_runs_stay_several(tmp_path):
    for k in (1, 2):
        for name in (f"seed{k}/final.pt", f"model_v{k}/epoch_1.pt", f"model_v{k}/epoch_2.pt"):
            save(tmp_path / name, weights(k))
        for name in ("checkpoint-5/model.safetensors", "checkpoint-10/model.safetensors", "model.safetensors"):
            save(tmp_path / f"train_{k}" / name, weights(5 if "-5" in name else 10))
    for group in ("seed", "model_v", "train_"):
        given = [tmp_path / f"{group}{k}" for k in (1, 2)]
        assert are_runs(given)
        assert [folder for _, folder in run_folders(given)] == given
    around = [tmp_path / "model_v1", tmp_path / "seed1" / ".." / "model_v2"]
    assert run_folders(around) == [("model_v1", around[0]), ("model_v2", around[1])]
    assert places(tmp_path / "train_1") == [("checkpoint-5", None, 5), ("checkpoint-10", None, 10)]
    with pytest.raises(PosthocError, match=r"there are some in .*model_v1, .*train_1, \.\.\.: give one of these"):
        find_run(tmp_path)


def test_numbers_in_the_name_of_a_run_are_no_epoch(tmp_path):
    for name, place in (("resnet_epochs200/epoch_10.pt", (10, None)), ("vit_200ep/epoch=3-step=40.pt", (3, 40))):
        save(tmp_path / name, weights(1))
        assert places((tmp_path / name).parent) == [(Path(name).name, *place)]
    save(tmp_path / "resnet_epochs200" / "last.pt", weights(2))
    with pytest.raises(PosthocError, match=r"2 groups \(epoch_10\.pt.*last\.pt"):
        find_run(tmp_path / "resnet_epochs200")
    for k in (100, 200):
        for name in (f"resnet_ep{k}/best", f"resnet_ep{k}/last", f"ep{k}/best", f"ep{k}/last", f"vit_ep{k}/net"):
            save(tmp_path / f"{name}.pt", weights(k))
        save(tmp_path / "one" / f"epoch_{k}" / f"epoch_{k}.pt", weights(k))
        for name in ("vit_epoch_", "run-step-"):
            save(tmp_path / name / f"{name}{k}" / "net.pt", weights(k))
    for group in ("resnet_ep", "ep"):
        assert are_runs([tmp_path / f"{group}{k}" for k in (100, 200)])
    assert places(tmp_path / "vit_ep100") == [("net.pt", None, None)]
    assert places(tmp_path / "one") == [("epoch_100", 100, None), ("epoch_200", 200, None)]
    assert places(tmp_path / "vit_epoch_") == [("vit_epoch_100", 100, None), ("vit_epoch_200", 200, None)]
    assert places(tmp_path / "run-step-") == [("run-step-100", None, 100), ("run-step-200", None, 200)]


def test_one_folder_spelled_in_several_ways(tmp_path):
    for k in (0, 1):
        save(tmp_path / "run" / f"epoch_{k}.pt", weights(k))
        save(tmp_path / "each" / f"epoch_{k}" / "model.pt", weights(k))
    (tmp_path / "link").symlink_to(tmp_path / "run")
    around, each = tmp_path / "run" / ".." / "run", tmp_path / "each"
    for folder in (around, tmp_path / "link"):
        given = [tmp_path / "run" / "epoch_0.pt", folder / "epoch_1.pt", folder / "epoch_0.pt"]
        assert places(given) == [("epoch_0.pt", 0, None), ("epoch_1.pt", 1, None)]
    for name in ("", "model.pt"):
        given = [each / "epoch_0" / name, each / ".." / "each" / "epoch_1" / name]
        assert places(given) == [("epoch_0", 0, None), ("epoch_1", 1, None)]


def test_parts_without_their_index_are_no_two_runs(tmp_path):
    save(tmp_path / "model-00001-of-00002.safetensors", weights(1))
    save(tmp_path / "model-00002-of-00002.safetensors", {"head.weight": torch.zeros(2, 2)})
    with pytest.raises(PosthocError, match=r"holds parts of a checkpoint .* without the index"):
        find_run(tmp_path)


def test_the_working_folder_as_a_checkpoint_keeps_its_name(tmp_path, monkeypatch):
    save(tmp_path / "checkpoint-500" / "model.safetensors", weights(1))
    monkeypatch.chdir(tmp_path / "checkpoint-500")
    assert places(Path()) == [("checkpoint-500", None, 500)]


def test_what_lies_in_a_folder_is_decided_by_content_where_names_do_not_tell(tmp_path):
    for k in (1, 2):
        save(tmp_path / "run" / f"epoch_{k}" / "resnet.pt", weights(k))
        save(tmp_path / "run" / f"epoch_{k}" / "moments.pt", optimizer(weights(0)))
        save(tmp_path / "gan" / f"epoch_{k}" / "actor.pt", weights(k))
        save(tmp_path / "gan" / f"epoch_{k}" / "critic.pt", {"state_dict": weights(k + 10), "loss": 3.0})
    assert places(tmp_path / "run") == [("epoch_1", 1, None), ("epoch_2", 2, None)]
    assert same(tmp_path / "run" / "epoch_2", weights(2))
    with pytest.raises(
        PosthocError, match=r"epoch_1 holds several networks; choose with --weights-key actor or critic"
    ):
        find_run(tmp_path / "gan")
    assert places(tmp_path / "gan", pick=Pick("critic")) == [("epoch_1", 1, None), ("epoch_2", 2, None)]
    for k in (1, 2):
        assert same(tmp_path / "gan" / f"epoch_{k}", weights(k), Pick("actor"))
        assert same(tmp_path / "gan" / f"epoch_{k}", weights(k + 10), Pick("critic"))
        assert places(tmp_path / "gan" / f"epoch_{k}", pick=Pick("critic")) == [(f"epoch_{k}", k, None)]
    with pytest.raises(UsageError, match="lie in one folder, these in 2"):
        find_run([tmp_path / "gan" / f"epoch_{k}" / "actor.pt" for k in (1, 2)])


@pytest.mark.parametrize(
    ("names", "command"),
    [
        (("global_step100/zero_pp_rank_0_mp_rank_00_model_states.pt",),
         "python -m deepspeed.utils.zero_to_fp32 {0} {0}/fp32-global_step100 --tag global_step100"),
        (("global_step100/mp_rank_00_model_states.pt", "global_step100/mp_rank_01_model_states.pt"),
         "python tools/convert_checkpoint/deepspeed_to_megatron.py --input_folder {0}/global_step100 "
         "--output_folder {0}/global_step100-merged --target_tp 1 --target_pp 1"),
        (("iter_0000100/mp_rank_00/model_optim_rng.pt", "iter_0000100/mp_rank_01/model_optim_rng.pt"),
         "python tools/checkpoint/convert.py --model-type GPT --loader core --saver core --load-dir {0} --save-dir {0}-merged "
         "--target-tensor-parallel-size 1 --target-pipeline-parallel-size 1"),
    ],
)  # fmt: skip
def test_weights_that_are_split_are_refused_with_the_command_that_merges_them(tmp_path, names, command):
    for name in names:
        save(tmp_path / "run" / name, {"module": weights(1)})
    for place in (tmp_path / "run", tmp_path / "run" / names[0].partition("/")[0]):
        with pytest.raises(PosthocError, match=re.escape(command.format(tmp_path / "run"))):
            find_run(place)


def test_a_trainer_that_left_its_weights_to_deepspeed(tmp_path):
    folder = tmp_path / "checkpoint-500"
    save(folder / "global_step500" / "mp_rank_00_model_states.pt", {"module": weights(1), "global_steps": 500})
    log = [{"step": 500, "eval_loss": 0.5}]
    (folder / "trainer_state.json").write_text(json.dumps({"epoch": 1.0, "global_step": 500, "log_history": log}))
    (folder / "latest").write_text("global_step500")
    save(tmp_path / "checkpoint-600" / "model.safetensors", weights(2))
    save(tmp_path / "checkpoint-600" / "global_step600" / "mp_rank_00_model_states.pt", {"module": weights(2)})
    assert places(tmp_path) == [("checkpoint-500", None, 500), ("checkpoint-600", None, 600)]
    assert same(folder, weights(1))
    header = read_header(folder)
    assert (header.epoch, header.step, header.recorded["eval_loss"]) == (1, 500, 0.5)


BELOW = ["lightning_logs/version_0/checkpoints", "mlruns/0/0123abcd/artifacts/checkpoints", "out/checkpoints"]


@pytest.mark.parametrize("below", BELOW)
def test_the_only_folder_below_that_holds_checkpoints_is_the_run(tmp_path, below):
    for epoch in (1, 2):
        saved = {"state_dict": weights(epoch), "epoch": epoch, "global_step": 9 * epoch}
        save(tmp_path / below / f"epoch={epoch}-step={9 * epoch}.ckpt", saved)
    run = find_run(tmp_path)
    assert [(c.epoch, c.step) for c in run.checkpoints] == [(1, 9), (2, 18)]
    assert run.notes[0] == f"found in {tmp_path / below}, the only folder below that holds checkpoints"
    save(tmp_path / below / ".." / "elsewhere" / "final.pt", weights(3))
    assert len(find_run(tmp_path).checkpoints) == 2
    shutil.copytree(tmp_path / below, tmp_path / "again" / "checkpoints")
    with pytest.raises(PosthocError, match="give one of these"):
        find_run(tmp_path)


def test_what_is_selected_and_placed_is_of_the_run_below(tmp_path):
    folder = tmp_path / BELOW[0]
    for epoch in (1, 2):
        save(folder / f"epoch={epoch}.ckpt", {"state_dict": weights(epoch), "epoch": epoch})
    save(folder / "last.ckpt", {"state_dict": weights(7), "epoch": 3})
    with pytest.raises(PosthocError, match="more than one run"):
        find_run(tmp_path)
    assert [c.epoch for c in find_run(tmp_path, "epoch=#.ckpt").checkpoints] == [1, 2]
    assert [c.epoch for c in find_run(tmp_path, placed=["last.ckpt=3"]).checkpoints] == [1, 2, 3]
    with pytest.raises(PosthocError, match="No checkpoint matching 'net_#"):
        find_run(tmp_path, "net_#.ckpt")
    for select, placed in (("epoch=#.ckpt", ()), (None, ["last.ckpt=3"])):
        refuse_folder(tmp_path, select, placed)


def test_a_linked_folder_below_is_found_and_no_loop_is_followed(tmp_path):
    save(tmp_path / "scratch" / "epoch_1.pt", weights(1))
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "first").symlink_to(tmp_path / "scratch")
    (tmp_path / "runs" / "loop").symlink_to(tmp_path / "runs")
    assert find_run(tmp_path / "runs").folder == tmp_path / "runs" / "first"


def test_a_run_is_not_the_only_one_where_not_all_folders_were_looked_into(tmp_path, monkeypatch):
    monkeypatch.setattr(listing, "FOLDERS_SEARCHED", 20)
    save(tmp_path / "b_run" / "epoch_1.pt", weights(1))
    for k in range(30):
        (tmp_path / "a_data" / str(k)).mkdir(parents=True)
    with pytest.raises(PosthocError, match=r"there are some in .*b_run \(only the first 20 .*\): give it"):
        find_run(tmp_path)
    shutil.rmtree(tmp_path / "b_run")
    with pytest.raises(PosthocError, match=r"\(only the first 20 folders were looked into\)"):
        find_run(tmp_path)


def test_a_folder_that_holds_none_says_so(tmp_path):
    (tmp_path / "epoch_1").mkdir()
    (tmp_path / "epoch_1" / "notes.txt").write_text("none")
    with pytest.raises(PosthocError, match="No checkpoint in"):
        find_run(tmp_path)
    with pytest.raises(PosthocError, match="holds no weights"):
        read_header(tmp_path / "epoch_1")


def test_pipes_and_links_in_folders_hang_nothing(tmp_path):
    for k in (1, 2, 3, 4):
        save(tmp_path / f"epoch_{k}" / "model.pt", weights(k))
    (tmp_path / "epoch_3" / "model.pt").unlink()
    os.mkfifo(tmp_path / "epoch_3" / "model.pt")
    os.mkfifo(tmp_path / "epoch_4" / "log")
    (tmp_path / "epoch_5").symlink_to(tmp_path)
    (tmp_path / "epoch_6").symlink_to("nowhere")
    run = find_run(tmp_path)
    assert [c.path.name for c in run.checkpoints] == ["epoch_1", "epoch_2"]
    assert [(path.name, reason) for path, reason in run.apart] == [
        ("epoch_3", "a folder in which model.pt is a pipe"), ("epoch_4", "a folder in which log is a pipe"),
        ("epoch_6", "a link to nothing"),
    ]  # fmt: skip


def test_many_folders_are_listed_once_each(tmp_path):
    state, listings, watching = weights(0), Counter(), True
    for k in range(300):
        (tmp_path / f"step_{k}").mkdir()
        (tmp_path / f"step_{k}" / "model.safetensors").write_bytes(safetensors.torch.save(state, {"step": str(k)}))
    sys.addaudithook(
        lambda event, what: watching and event in ("os.listdir", "os.scandir") and listings.update([str(what[0])])
    )
    assert len(find_run(tmp_path).checkpoints) == 300
    watching = False
    assert max(count for place, count in listings.items() if place != str(tmp_path)) < 12
    assert listings[str(tmp_path)] < 12
