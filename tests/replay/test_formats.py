"""Checkpoints as the libraries people train with write them: found, ordered, loaded and replayed."""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

import posthoc
from posthoc.errors import PosthocError
from posthoc.replay.checkpoint import Header, read_header, read_weights
from posthoc.replay.formats.table import digest
from posthoc.replay.layout import find_run
from posthoc.replay.models import name_tensors, resolve_model
from posthoc.replay.weights import Pick

NETWORKS = Path(__file__).parents[1] / "networks.py"


class Small(nn.Module):
    """A network that trains in no time."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(3600, 10))

    def forward(self, x):
        return self.net(x)


def dataset(count=8):
    torch.manual_seed(0)
    return [(torch.randn(3, 32, 32), k % 10) for k in range(count)]


def assert_loads(path, model, pick=None):
    """The weights of `path` are those of `model`, by the names under which it has them."""
    pick = pick or Pick()
    header = read_header(path, pick)
    names = name_tensors(model, header.shapes)
    weights = read_weights(path, pick)
    state = model.state_dict()
    assert names.keys() >= {name for name in state if not name.endswith("num_batches_tracked")}
    for mine, theirs in names.items():
        torch.testing.assert_close(weights[theirs], state[mine], rtol=0, atol=0)


@pytest.fixture(scope="module")
def lightning_run(tmp_path_factory):
    import lightning

    class Task(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.save_hyperparameters({"width": 4})
            self.model = Small()
            self.loss = nn.CrossEntropyLoss(weight=torch.ones(10))  # a buffer that is no part of the network

        def training_step(self, batch, index):
            x, y = batch
            return self.loss(self.model(x), y)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    folder = tmp_path_factory.mktemp("lightning")
    saver = lightning.pytorch.callbacks.ModelCheckpoint(folder, "{epoch}-{step}", save_top_k=-1, save_last=True)
    trainer = lightning.Trainer(
        max_epochs=3, accelerator="cpu", callbacks=[saver], logger=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    task = Task()
    trainer.fit(task, torch.utils.data.DataLoader(dataset(), batch_size=4))
    shutil.copy(folder / "epoch=1-step=4.ckpt", folder / "epoch=1-step=4-v1.ckpt")  # as a second fit leaves it
    return folder, task


def test_lightning(lightning_run):
    folder, task = lightning_run
    run = find_run(folder)
    assert [(c.path.name, c.epoch, c.step) for c in run.checkpoints] == [
        (f"epoch={e}-step={2 * e + 2}.ckpt", e, 2 * e + 2) for e in range(3)
    ]
    assert {copy.name for copy, _ in run.copies} == {"last.ckpt", "epoch=1-step=4-v1.ckpt"}
    assert_loads(run.checkpoints[2].path, task.model)
    model = resolve_model(run.checkpoints[0].header, f"{__file__}:Small")
    assert model.left_out == ("loss.weight",)
    assert "without loss.weight" in model.title


def test_timm(tmp_path):
    import timm
    from timm.utils import CheckpointSaver, ModelEmaV2

    model = timm.create_model("resnet10t", num_classes=10)
    ema = ModelEmaV2(model, decay=0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    saver = CheckpointSaver(
        model,
        optimizer,
        argparse.Namespace(model="resnet10t"),
        ema,
        checkpoint_dir=str(tmp_path),
        recovery_dir=str(tmp_path),
    )
    for epoch in (9, 10, 11):
        with torch.no_grad():
            model.fc.bias += 1
        ema.update(model)
        saver.save_checkpoint(epoch, metric=epoch / 100)
    run = find_run(tmp_path)
    assert [(c.path.name, c.epoch) for c in run.checkpoints] == [(f"checkpoint-{e}.pth.tar", e) for e in (9, 10, 11)]
    assert {copy.name for copy, _ in run.copies} == {"last.pth.tar", "model_best.pth.tar"}
    assert run.checkpoints[0].header.recorded["metric"] == 0.09
    found = resolve_model(run.checkpoints[0].header)
    assert (found.name, found.source) == ("timm:resnet10t", "named in the checkpoints")
    assert_loads(tmp_path / "last.pth.tar", model)
    assert_loads(tmp_path / "last.pth.tar", ema.module, Pick(ema=True))
    assert_loads(tmp_path / "last.pth.tar", ema.module, Pick("state_dict_ema"))
    bias = [read_weights(tmp_path / "last.pth.tar", Pick(ema=ema))["fc.bias"] for ema in (False, True)]
    assert not torch.equal(*bias)


def test_timm_models_take_head_channels_and_image_size_from_the_shapes():
    import timm

    for name, options in (
        ("resnet10t", {"in_chans": 1, "num_classes": 7}),
        ("vit_tiny_patch16_224", {"img_size": 64, "num_classes": 3}),
    ):
        shapes = {key: tuple(t.shape) for key, t in timm.create_model(name, **options).state_dict().items()}
        header = Header(None, None, shapes, arch=name)
        assert resolve_model(header).name == f"timm:{name}"


@pytest.fixture(scope="module")
def trainer_run(tmp_path_factory):
    from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainingArguments

    folder = tmp_path_factory.mktemp("trainer")
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=10, layer_type="basic")
    model = ResNetForImageClassification(config)
    arguments = TrainingArguments(
        str(folder), num_train_epochs=3, per_device_train_batch_size=4, save_strategy="steps", save_steps=3,
        eval_strategy="steps", eval_steps=3, use_cpu=True, report_to=[], disable_tqdm=True,
    )  # fmt: skip
    data = [{"pixel_values": x, "labels": y} for x, y in dataset()]
    trainer = Trainer(model, arguments, train_dataset=data, eval_dataset=data)
    trainer.train()
    trainer.save_model()
    return folder, model


def test_transformers_trainer(trainer_run, probe_file, tmp_path):
    folder, model = trainer_run
    run = find_run(folder)
    assert [(c.path.name, c.epoch, c.step) for c in run.checkpoints] == [
        ("checkpoint-3", None, 3),
        ("checkpoint-6", None, 6),
    ]
    assert [c.recorded.get("epoch") for c in run.checkpoints] == [1.5, 3.0]
    assert run.checkpoints[1].header.epoch == 3
    assert run.checkpoints[0].header.recorded["eval_loss"] > 0
    assert [copy.name for copy, _ in run.copies] == ["model.safetensors"]
    assert_loads(folder / "checkpoint-6", model)
    single = find_run(folder / "checkpoint-6").checkpoints
    assert [(c.path.name, c.epoch, c.step) for c in single] == [("checkpoint-6", 3, 6)]
    factory = tmp_path / "network.py"
    factory.write_text(
        "from transformers import ResNetConfig, ResNetForImageClassification\n"
        "def network(labels=10):\n"
        "    return ResNetForImageClassification(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1],\n"
        "        num_labels=labels, layer_type='basic'))\n"
    )
    options = {"model": f"{factory}:network", "model_arg": ["labels=10"], "normalize": "none", "images": 50}
    path = posthoc.extract(folder, f"npz:{probe_file}", tmp_path / "a.h5", **options)
    with posthoc.open_activations(path) as activations:
        assert activations.checkpoints == ("checkpoint-3", "checkpoint-6")
        assert activations.accuracy[1] >= 0


def test_sharded(tmp_path):
    from transformers import ResNetConfig, ResNetForImageClassification

    model = ResNetForImageClassification(ResNetConfig(hidden_sizes=[64, 128], depths=[1, 1], num_labels=10))
    for step in (100, 20):
        model.save_pretrained(tmp_path / f"step_{step}", max_shard_size="100KB")
    shards = list((tmp_path / "step_20").glob("*.safetensors"))
    assert len(shards) > 1
    run = find_run(tmp_path)
    assert [c.step for c in run.checkpoints] == [20, 100]
    assert_loads(tmp_path / "step_20", model)
    assert_loads(tmp_path / "step_20" / "model.safetensors.index.json", model)
    assert find_run(tmp_path / "step_20").checkpoints[0].path == tmp_path / "step_20"
    before = digest(tmp_path / "step_20")
    shards[0].unlink()
    with pytest.raises(PosthocError, match=rf"names {shards[0].name}, which is missing"):
        read_header(tmp_path / "step_20")
    assert digest(tmp_path / "step_100") == before


def test_accelerate(tmp_path):
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model = Small()
    prepared, _ = accelerator.prepare(model, torch.optim.Adam(model.parameters()))
    for epoch in (10, 9):
        accelerator.save_state(tmp_path / f"epoch_{epoch}")
    run = find_run(tmp_path)
    assert [(c.path.name, c.epoch) for c in run.checkpoints] == [("epoch_9", 9), ("epoch_10", 10)]
    assert_loads(tmp_path / "epoch_9", prepared)
    assert find_run(tmp_path / "epoch_9").checkpoints[0].path == tmp_path / "epoch_9"
    second, third = accelerator.prepare(Small(), Small())
    accelerator.save_state(tmp_path / "several" / "checkpoint_0")
    with pytest.raises(PosthocError, match="several networks; choose with --weights-key model or model_1 or model_2"):
        find_run(tmp_path / "several")
    for key, network in (("model", prepared), ("model_1", second), ("model_2", third)):
        assert_loads(tmp_path / "several" / "checkpoint_0", network, Pick(key))
    assert find_run(tmp_path / "several" / "checkpoint_0", pick=Pick("model_2")).checkpoints[0].epoch == 0


SAVE_DISTRIBUTED = """
import os, sys, torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

def work(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/.rendezvous", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    for epoch in (1, 2):
        torch.manual_seed(epoch)
        state = {"layer.weight": torch.randn(5, 3), "layer.bias": torch.randn(5).bfloat16(), "n": torch.tensor(7)}
        if rank == 0:
            torch.save(state, f"{folder}/whole{epoch}.pt")
        parts = {name: distribute_tensor(t, mesh, [Shard(0)]) if t.ndim else t for name, t in state.items()}
        moments = {name: {"exp_avg": torch.zeros_like(t)} for name, t in parts.items() if t.ndim}
        dcp.save({"model": parts, "optimizer": moments, "epoch": epoch, "acc": 0.25}, checkpoint_id=f"{folder}/run/{epoch}")
    dist.barrier()
    os._exit(0)  # gloo's threads now and then abort a process that ends in the usual way

if __name__ == "__main__":
    torch.multiprocessing.spawn(work, (sys.argv[1],), nprocs=2)
"""


def test_torch_distributed_checkpoint(tmp_path):
    (tmp_path / "save.py").write_text(SAVE_DISTRIBUTED)
    subprocess.run([sys.executable, tmp_path / "save.py", tmp_path], check=True)
    run = find_run(tmp_path / "run")
    assert [c.epoch for c in run.checkpoints] == [1, 2]
    assert run.checkpoints[0].header.recorded == {"acc": 0.25}
    for epoch in (1, 2):
        whole = torch.load(tmp_path / f"whole{epoch}.pt")
        weights = read_weights(tmp_path / "run" / str(epoch))
        assert weights.keys() == whole.keys()
        for name, tensor in whole.items():
            torch.testing.assert_close(weights[name], tensor, rtol=0, atol=0)
    assert digest(tmp_path / "run" / "1") != digest(tmp_path / "run" / "2")
    piece = max((tmp_path / "run" / "1").glob("*.distcp"), key=lambda path: path.stat().st_size)
    piece.write_bytes(piece.read_bytes()[:1000])
    with pytest.raises(PosthocError, match="damaged or cut short"):
        read_weights(tmp_path / "run" / "1")
    piece.unlink()
    with pytest.raises(PosthocError, match=rf"No such file: .*{piece.name}"):
        read_header(tmp_path / "run" / "1")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", ["resnet18", "compiled", "parallel", "scripted"])
def test_whole_modules(tmp_path, kind, zipped):
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=10)
    saved = {"compiled": torch.compile, "parallel": nn.DataParallel}.get(kind, lambda model: model)(model)
    path = tmp_path / "7.pt"
    if kind == "scripted":
        torch.jit.save(torch.jit.script(model.eval()), path)
    elif kind == "compiled":  # a compiled module itself cannot be pickled; its state dict can
        torch.save({"net": saved.state_dict(), "acc": 0.5}, path, _use_new_zipfile_serialization=zipped)
    else:
        torch.save({"model": saved, "epoch": 7}, path, _use_new_zipfile_serialization=zipped)
    header = read_header(path)
    assert resolve_model(header).name == "resnet18"
    assert_loads(path, model)
    if kind == "parallel":
        assert header.kind == "torch.nn.parallel.data_parallel.DataParallel"


def test_a_foreign_module_names_its_class(tmp_path):
    torch.save(Small(), tmp_path / "1.pt")
    with pytest.raises(PosthocError, match=r"pickled modules of class .*test_formats\.Small; its code is not in them"):
        resolve_model(read_header(tmp_path / "1.pt"))
    assert_loads(tmp_path / "1.pt", torch.load(tmp_path / "1.pt", weights_only=False))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", ["1.pt", "1.safetensors"])
def test_other_precisions(tmp_path, dtype, name):
    model = Small().to(dtype)
    if name == "1.pt":
        torch.save(model.state_dict(), tmp_path / name)
    else:
        save_file(model.state_dict(), tmp_path / name)
    assert_loads(tmp_path / name, model)


def test_which_weights_of_several(tmp_path):
    first, second = Small(), Small()
    for name, content in {
        "ema.pt": {"ema": first.state_dict(), "model": second.state_dict()},
        "only_ema.pt": {"ema": first.state_dict(), "epoch": 2},
        "two.pt": {"generator": first.state_dict(), "critic": second.state_dict()},
        "nested.pt": {"epoch": 1, "trainer": {"model": {"state_dict": first.state_dict()}}},
        "loose.pt": {"class_weights": torch.ones(5), "encoder": first.state_dict()},
        "both.pt": {"memory": torch.ones(40_000), "encoder": first.state_dict()},
        "parts.pt": {"state_dict": {"model": first.state_dict(), "head": {"w": torch.ones(3)}}},
        "alone.pt": {"state_dict": {"backbone": first.state_dict()}},
        "twice.pt": {"net": first.state_dict(), "module": second.state_dict()},
        "one.pt": {"backbone": first.state_dict(), "optimizer": torch.optim.Adam(first.parameters()).state_dict()},
        "flat.pt": {**first.state_dict(), "optimizer": {
            f"state.{name}.{moment}": tensor for name, tensor in second.state_dict().items() for moment in ("exp_avg", "exp_avg_sq")
        }},
        "student.pt": {f"{who}.{name}": tensor for who, net in (("teacher", first), ("student", second))
                       for name, tensor in net.state_dict().items()},
    }.items():  # fmt: skip
        torch.save(content, tmp_path / name)
    assert_loads(tmp_path / "ema.pt", second)
    assert_loads(tmp_path / "ema.pt", first, Pick(ema=True))
    with pytest.raises(PosthocError, match="pass --ema"):
        read_header(tmp_path / "only_ema.pt")
    with pytest.raises(PosthocError, match=r"holds no moving average .* found generator, critic"):
        read_header(tmp_path / "two.pt", Pick(ema=True))
    with pytest.raises(PosthocError, match="--weights-key generator or critic"):
        read_header(tmp_path / "two.pt")
    assert_loads(tmp_path / "two.pt", second, Pick("critic"))
    assert_loads(tmp_path / "nested.pt", first, Pick("trainer.model"))
    for name in ("one.pt", "loose.pt", "parts.pt", "alone.pt", "flat.pt"):
        assert_loads(tmp_path / name, first)
    with pytest.raises(PosthocError, match="both by themselves and under encoder"):
        read_header(tmp_path / "both.pt")
    assert_loads(tmp_path / "both.pt", first, Pick("encoder"))
    with pytest.raises(PosthocError, match="--weights-key net or module"):
        read_header(tmp_path / "twice.pt")
    with pytest.raises(PosthocError, match=r"--weights-key teacher\.net or student\.net"):
        resolve_model(read_header(tmp_path / "student.pt"), f"{__file__}:Small")
    assert_loads(tmp_path / "student.pt", second, Pick("student"))
    with pytest.raises(PosthocError, match=r"--weights-key pupil: .* has no weights there"):
        read_header(tmp_path / "student.pt", Pick("pupil"))


def test_optimizer_files_beside_the_weights_are_set_apart(tmp_path):
    model = Small()
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    for epoch in (1, 2):
        torch.save(model.state_dict(), tmp_path / f"model_{epoch}.pt")
        torch.save(optimizer.state_dict(), tmp_path / f"optimizer_{epoch}.pt")
    run = find_run(tmp_path)
    assert [c.path.name for c in run.checkpoints] == ["model_1.pt", "model_2.pt"]
    assert [path.name for path, _ in run.apart] == ["optimizer_1.pt", "optimizer_2.pt"]


REAL = [
    ("tutorial_cnn_state_dict", {"normalize": "none", "order": "name"}, [0.299, 0.533]),
    ("tutorial_cnn_whole_module", {"normalize": "none", "select": "tudui_#.pth", "order": "name"}, [0.294, 0.556]),
    ("cifar_resnet_dataparallel", {"normalize": "cifar10", "images": 1000, "select": "resnet20-*"}, [0.912]),
    ("cifar_resnet_dataparallel", {"normalize": "cifar10", "images": 1000, "select": "resnet56-*"}, [0.932]),
    ("cifar_resnet_dataparallel", {"normalize": "imagenet", "select": "resnet20-*"}, [0.9164]),
]


@pytest.mark.slow
@pytest.mark.parametrize(("folder", "options", "accuracy"), REAL)
def test_checkpoints_that_other_people_published(checkpoints, exact_probe, tmp_path, folder, options, accuracy):
    """Their accuracy over images with exact pixels, first and last epoch."""
    options = {"model": str(NETWORKS), "layers": ["*"], "channels": 1, "signals": ["mean"], **options}
    path = posthoc.extract(checkpoints / folder, exact_probe, tmp_path / "a.h5", **options)
    with posthoc.open_activations(path) as activations:
        assert len(activations) == (10 if folder.startswith("tutorial") else 1)
        ends = [activations.accuracy[0], activations.accuracy[-1]][-len(accuracy) :]
        assert ends == pytest.approx(accuracy, abs=0.0005)


def test_mixed_folders_that_other_people_published(checkpoints):
    with pytest.raises(PosthocError, match=r"2 groups \(tudui_#\.pth \(10 files\).*tudui_29_gpu\.pth.*'tudui_#\.pth'"):
        find_run(checkpoints / "tutorial_cnn_whole_module")
    with pytest.raises(PosthocError, match=r"2 groups .*97 tensors.*277 tensors"):
        find_run(checkpoints / "cifar_resnet_dataparallel")


def test_a_lightning_file_that_other_people_published(checkpoints):
    checkpoint = find_run(checkpoints / "lightning_mnist").checkpoints[0]
    assert (checkpoint.epoch, checkpoint.step) == (4, 4690)
    assert resolve_model(checkpoint.header, str(NETWORKS)).name == "networks.py:Autoencoder"
    theirs = torch.load(checkpoint.path, map_location="cpu", weights_only=True)["state_dict"]
    ours = read_weights(checkpoint.path)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
