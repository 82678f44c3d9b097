"""Checkpoints of trainers that are not installed here, written by hand in their layouts."""

import base64
import json
import pickle
import zipfile

import pytest
import torch
from torch import nn

from posthoc.errors import PosthocError
from posthoc.replay.checkpoint import read_header, read_weights
from posthoc.replay.layout import find_run
from posthoc.replay.weights import Pick


def weights(seed):
    torch.manual_seed(seed)
    return {"fc.weight": torch.randn(2, 3), "fc.bias": torch.randn(2)}


def places(place, **options):
    return [(c.path.name, c.epoch, c.step) for c in find_run(place, **options).checkpoints]


def assert_same(path, state, pick=None):
    loaded = read_weights(path, pick or Pick())
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return exec, (f"open({self.path!r}, 'w').close()",)


def save_agent(path, steps, bomb, **data):
    """As Stable-Baselines3: JSON with pickles as texts, then files of torch.save."""
    serialized = {":type:": "x", ":serialized:": base64.b64encode(pickle.dumps(Bomb(bomb))).decode()}
    content = {"policy_class": serialized, "num_timesteps": steps, "_last_obs": serialized, **data}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data", json.dumps(content, indent=4))
        for name, saved in (
            ("pytorch_variables.pth", {}),
            ("policy.pth", weights(steps)),
            ("policy.optimizer.pth", {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": []}),
        ):
            with archive.open(name, "w", force_zip64=True) as file:
                torch.save(saved, file)
        archive.writestr("_stable_baselines3_version", "2.3.2")


def test_archives_of_stable_baselines(tmp_path):
    for steps in (1000, 20000, 3000):
        save_agent(tmp_path / f"rl_model_{steps}_steps.zip", steps, tmp_path / "ran")
    (tmp_path / "rl_model_vecnormalize_1000_steps.pkl").write_bytes(pickle.dumps({"obs_rms": [1.0]}))
    with zipfile.ZipFile(tmp_path / "videos.zip", "w") as archive:
        archive.writestr("a.mp4", "0")
    run = find_run(tmp_path)
    assert [(c.path.name, c.epoch, c.step) for c in run.checkpoints] == [
        (f"rl_model_{steps}_steps.zip", None, steps) for steps in (1000, 3000, 20000)
    ]
    assert sorted(path.name for path, _ in run.apart) == ["rl_model_vecnormalize_1000_steps.pkl", "videos.zip"]
    for checkpoint in run.checkpoints:
        with zipfile.ZipFile(checkpoint.path) as archive, archive.open("policy.pth") as file:
            assert_same(checkpoint.path, torch.load(file))
    assert not (tmp_path / "ran").exists()
    assert places([tmp_path / "rl_model_3000_steps.zip", tmp_path / "rl_model_1000_steps.zip"])[0][2] == 1000
    whole = (tmp_path / "rl_model_3000_steps.zip").read_bytes()
    (tmp_path / "rl_model_3000_steps.zip").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PosthocError, match=r"rl_model_3000_steps\.zip is damaged or cut short"):
        find_run(tmp_path)
    assert [path.name for path, _ in find_run(tmp_path, skip_damaged=True).damaged] == ["rl_model_3000_steps.zip"]


@pytest.mark.parametrize("steps", [True, None, "soon", -3, [1]])
def test_an_agent_that_says_no_steps_is_ordered_by_its_name(tmp_path, steps):
    save_agent(tmp_path / "rl_model_7_steps.zip", 7, tmp_path / "ran", num_timesteps=steps)
    assert places(tmp_path) == [("rl_model_7_steps.zip", None, 7)]


@pytest.mark.parametrize("case", ["twice", "compressed", "deep", "no object"])
def test_a_hostile_agent_is_one_sentence(tmp_path, case):
    path = tmp_path / "a.zip"
    save_agent(path, 7, tmp_path / "ran")
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    kind = zipfile.ZIP_DEFLATED if case == "compressed" else zipfile.ZIP_STORED
    if case in ("deep", "no object"):
        entries["data"] = b'{"a":' * 5000 + b"1" + b"}" * 5000 if case == "deep" else b"[1, 2]"
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
        if case == "twice":
            with pytest.warns(UserWarning, match="Duplicate"):
                archive.writestr("policy.pth", entries["policy.pth"])
    if case == "no object":
        assert read_header(path).step is None
    else:
        what = {"twice": "one name twice", "compressed": "compressed inside", "deep": "nests values more than"}
        with pytest.raises(PosthocError, match=what[case]):
            read_header(path)


def nanogpt(step):
    optimizer = {"state": {0: {"step": torch.tensor(5.0), "exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}
    return {
        "model": {f"_orig_mod.{name}": tensor for name, tensor in weights(step).items()},
        "optimizer": optimizer, "model_args": {"n_layer": 2, "block_size": 8, "dropout": 0.0}, "iter_num": step,
        "best_val_loss": torch.tensor(3.5), "config": {"max_iters": 5000, "eval_interval": 2000, "out_dir": "out"},
    }  # fmt: skip


def test_the_iterations_of_nanogpt_are_steps(tmp_path):
    torch.save(nanogpt(2000), tmp_path / "ckpt.pt")
    assert places(tmp_path) == places(tmp_path / "ckpt.pt") == [("ckpt.pt", None, 2000)]
    header = read_header(tmp_path / "ckpt.pt")
    assert header.recorded == {"best_val_loss": 3.5}
    assert_same(tmp_path / "ckpt.pt", torch.load(tmp_path / "ckpt.pt")["model"])
    for k, step in ((1, 500), (2, 1000), (3, 4000)):
        torch.save(nanogpt(step), tmp_path / f"ckpt{k}.pt")
    assert places(tmp_path, select="ckpt#.pt") == [
        ("ckpt1.pt", None, 500),
        ("ckpt2.pt", None, 1000),
        ("ckpt3.pt", None, 4000),
    ]


def test_the_steps_of_litgpt_are_those_of_the_optimizer(tmp_path):
    for step in (1000, 2000):
        folder = tmp_path / f"step-{step:08}"
        folder.mkdir()
        saved = {"model": weights(step), "iter_num": 8 * step, "step_count": step, "hparams": {"lr": 0.1}}
        torch.save(saved, folder / "lit_model.pth")
        (folder / "model_config.yaml").write_text("n_layer: 2\n")
    run = find_run(tmp_path)
    assert [(c.path.name, c.step) for c in run.checkpoints] == [("step-00001000", 1000), ("step-00002000", 2000)]
    assert run.notes == ()
    assert run.checkpoints[0].header.recorded == {"iter_num": 8000}


def test_an_average_in_the_place_of_the_weights(tmp_path):
    """As Lightning's WeightAveraging does."""
    saved = {
        "state_dict": weights(9),
        "current_model_state": weights(1),
        "averaging_state": {"n_averaged": torch.tensor(3)},
    }
    torch.save(saved, tmp_path / "epoch=1.ckpt")
    assert_same(tmp_path / "epoch=1.ckpt", weights(1))
    assert_same(tmp_path / "epoch=1.ckpt", weights(9), Pick(ema=True))
    assert read_header(tmp_path / "epoch=1.ckpt").average == "state_dict"


def test_an_average_beside_the_network_that_trains(tmp_path):
    """As ema_pytorch keeps them."""
    both = {
        f"{key}.{name}": tensor
        for key, k in (("online_model", 1), ("ema_model", 9))
        for name, tensor in weights(k).items()
    }
    ema = {**both, "initted": torch.tensor(True), "step": torch.tensor(5)}
    torch.save({"step": 1000, "model": weights(1), "opt": {}, "ema": ema}, tmp_path / "model-1.pt")
    assert_same(tmp_path / "model-1.pt", weights(1))
    assert_same(tmp_path / "model-1.pt", weights(9), Pick(ema=True))
    assert read_header(tmp_path / "model-1.pt").average == "ema"


@pytest.mark.parametrize("buffer", ["norm.running_mean", "sigmas"])
def test_an_average_without_names(tmp_path, buffer):
    """As torch_ema lists the parameters; which of the others is none is known of normalisation alone."""
    model = {**weights(1), buffer: torch.ones(4)}
    ema = {"decay": 0.99, "num_updates": 4, "shadow_params": list(weights(9).values())}
    torch.save({"model": model, "step": 7, "ema": ema}, tmp_path / "checkpoint_7.pth")
    assert_same(tmp_path / "checkpoint_7.pth", model)
    if buffer == "sigmas":
        assert read_header(tmp_path / "checkpoint_7.pth").average is None
        with pytest.raises(PosthocError, match=r"no moving average .* but a list without names"):
            read_header(tmp_path / "checkpoint_7.pth", Pick(ema=True))
    else:
        assert read_header(tmp_path / "checkpoint_7.pth").average == "ema"
        assert_same(tmp_path / "checkpoint_7.pth", {**weights(9), buffer: torch.ones(4)}, Pick(ema=True))


def test_the_batches_of_composer_are_steps_beside_an_epoch(tmp_path):
    for batch in (1000, 2000):
        saved = {"state": {"model": weights(batch), "optimizers": {"Adam": {"state": {}}}}, "rng": []}
        torch.save(saved, tmp_path / f"ep0-ba{batch}-rank0.pt")
    assert places(tmp_path) == [("ep0-ba1000-rank0.pt", 0, 1000), ("ep0-ba2000-rank0.pt", 0, 2000)]
    assert_same(tmp_path / "ep0-ba2000-rank0.pt", weights(2000))


def test_the_updates_of_fairseq_are_steps(tmp_path):
    """At the end of an epoch it writes the number of the next."""
    for name, updates, epoch, iterations in (
        ("checkpoint_1_500.pt", 500, 1, 500), ("checkpoint1.pt", 1000, 2, 0),
        ("checkpoint_2_1500.pt", 1500, 2, 500), ("checkpoint2.pt", 2000, 3, 0), ("checkpoint_last.pt", 2000, 3, 0),
    ):  # fmt: skip
        history = [{"num_updates": 3}, {"num_updates": updates, "lr_scheduler_state": {}}]
        iterator = {"epoch": epoch, "iterations_in_epoch": iterations}
        saved = {"model": weights(updates), "optimizer_history": history, "extra_state": {"train_iterator": iterator}}
        torch.save(saved, tmp_path / name)
    within = [("checkpoint_1_500.pt", 1, 500), ("checkpoint_2_1500.pt", 2, 1500)]
    assert places(tmp_path, select="checkpoint_#_#.pt") == within
    with pytest.raises(PosthocError, match=r"take them all with --select '\*'"):
        find_run(tmp_path)
    assert places(tmp_path, select="*") == [
        within[0],
        ("checkpoint1.pt", 1, 1000),
        within[1],
        ("checkpoint2.pt", 2, 2000),
    ]


class Detector(nn.Module):
    """Pickled whole, as ultralytics does."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))


def detector(epoch, stripped=False):
    """While it trains the weights are under `ema` alone; at the end they are moved to `model`."""
    network = Detector(epoch).half()
    saved = {"epoch": epoch, "best_fitness": 0.5, "model": None, "ema": network, "updates": 9, "optimizer": None}
    return {**saved, "epoch": -1, "model": network, "ema": None} if stripped else saved


def test_ultralytics(tmp_path):
    for epoch in (0, 10, 20):
        torch.save(detector(epoch), tmp_path / f"epoch{epoch}.pt")
    torch.save(detector(20, stripped=True), tmp_path / "last.pt")
    torch.save(detector(10, stripped=True), tmp_path / "best.pt")
    with pytest.raises(PosthocError, match=r"epoch0\.pt holds only a moving average of the weights; pass --ema"):
        find_run(tmp_path, select="epoch#.pt")
    run = find_run(tmp_path, pick=Pick(ema=True))
    assert [(c.path.name, c.epoch) for c in run.checkpoints] == [
        ("epoch0.pt", 0),
        ("epoch10.pt", 10),
        ("epoch20.pt", 20),
    ]
    assert {copy.name: original.name for copy, original in run.copies} == {
        "last.pt": "epoch20.pt",
        "best.pt": "epoch10.pt",
    }
    for epoch in (0, 10, 20):
        assert_same(tmp_path / f"epoch{epoch}.pt", Detector(epoch).half().state_dict(), Pick(ema=True))
    assert_same(tmp_path / "last.pt", Detector(20).half().state_dict())
    torch.save(detector(25, stripped=True), tmp_path / "last.pt")
    with pytest.raises(PosthocError, match=r"2 groups \(epoch#\.pt \(3 files\).*last\.pt.*--as last\.pt=EPOCH"):
        find_run(tmp_path, pick=Pick(ema=True))
    torch.save({"epoch": 30, "model": Detector(3), "other": 1}, tmp_path / "epoch30.pt")
    run = find_run(tmp_path, "epoch#.pt", Pick(ema=True))
    assert [(path.name, reason) for path, reason in run.apart] == [("epoch30.pt", "no moving average of the weights")]


def test_mlflow(tmp_path):
    """A run with checkpoints, as its callback writes them, beside a model that was logged."""
    artifacts = tmp_path / "mlruns" / "0" / "0123456789abcdef" / "artifacts"
    for epoch in (0, 1, 10):
        folder = artifacts / "checkpoints" / f"epoch_{epoch}"
        folder.mkdir(parents=True)
        saved = {"state_dict": weights(epoch), "epoch": epoch, "global_step": 7 * epoch}
        torch.save(saved, folder / "checkpoint.pth")
        (folder / "checkpoint_metrics.json").write_text("{}")
    model = artifacts / "model"
    (model / "data").mkdir(parents=True)
    network = Detector(3)
    torch.save(network, model / "data" / "model.pth")
    (model / "data" / "pickle_module_info.txt").write_text("mlflow.pytorch.pickle_module")
    (model / "MLmodel").write_text("flavors:\n  pytorch:\n    model_data: data\n")
    for place in (tmp_path / "mlruns", artifacts.parent, artifacts / "checkpoints"):
        assert places(place) == [(f"epoch_{epoch}", epoch, 7 * epoch) for epoch in (0, 1, 10)]
    for place in (model, artifacts):
        assert_same(find_run(place).checkpoints[0].path, network.state_dict())
    assert find_run(artifacts).notes == (
        "nothing says which epoch model is of; --as model=EPOCH gives it one",
        f"more checkpoints lie in {artifacts / 'checkpoints'}; give that folder for them",
    )
