"""Untrained networks beside a run: drawn as a plain loop of PyTorch draws them, and kept apart from the checkpoints."""

import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import torchvision
from click.testing import CliRunner
from contents import assert_same
from torch import nn

import posthoc
from posthoc.cli import main
from posthoc.cluster.status import read_status
from posthoc.cluster.submission import Array, Submission, Target
from posthoc.errors import PosthocError, UsageError
from posthoc.parts import merge
from posthoc.replay.planning import plan_extraction
from posthoc.replay.run import run_extraction
from posthoc.shards import Shard

NET = """
import numpy as np
import torch
from torch import nn

def unsteady(count):
    if count > 5:
        raise RuntimeError("too large a draw")

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.LazyConv2d(8, 3)
        self.bn = nn.BatchNorm2d(8)
        self.second = nn.LazyConv2d(8, 3)
        self.third = nn.Conv2d(8, 8, 3)
        self.register_buffer("phase", torch.rand(8, 1, 1), persistent=False)
        self.weights = torch.from_numpy(np.random.rand(8, 1, 1).astype("f4"))
        self.last = nn.Linear(8, 10)

    def forward(self, x):
        x = torch.sin(self.bn(self.first(x)) + self.phase)
        x = torch.relu(self.second(x)) * self.weights
        return self.last(self.third(x).mean((2, 3)))

ready = Net()

def fixed():
    torch.manual_seed(7)
    return Net()

def failing():
    if torch.initial_seed() == 2:
        raise ValueError("an unlucky draw")
    return Net()
"""


@pytest.fixture(scope="module")
def file_run(tmp_path_factory):
    """A model file, the folder of a run of it, and its namespace."""
    folder = tmp_path_factory.mktemp("file")
    (folder / "net.py").write_text(NET)
    names = {}
    exec(NET, names)
    (folder / "run").mkdir()
    for epoch in (1, 2):
        net = names["Net"]()
        net(torch.rand(2, 3, 32, 32))
        torch.save(net.state_dict(), folder / "run" / f"epoch_{epoch}.pth")
    return folder, names


def planned(folder, name="Net", **more):
    options = {"model": f"{folder / 'net.py'}:{name}", "normalize": "0.4/0.3", "images": 100, "batch_size": 32}
    return plan_extraction(folder / "run", "digits", **options | more)


def assert_loop(model, plan, activations, k):
    """The control's signals are, to the bit, those of hooks on `model`, batch after batch."""
    config = plan.identity.probe.preparation["normalization"]
    mean, std = (torch.tensor(config[key]).view(3, 1, 1) for key in ("mean", "std"))
    x = (torch.from_numpy(plan.probe.inputs["images"]).permute(0, 3, 1, 2).float() / 255 - mean) / std
    if plan.identity.memory_format == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    else:
        x = x.contiguous()
    kept = {layer: [] for layer in activations.layers}
    for layer, channels in activations.channels.items():
        rows = torch.from_numpy(channels)
        model.get_submodule(layer).register_forward_hook(
            lambda m, i, o, layer=layer, rows=rows: kept[layer].append(
                o[:, rows].mean((2, 3)) if o.ndim == 4 else o[:, rows]
            )
        )
    with torch.inference_mode():
        for batch in x.split(plan.batch_size):
            model(batch)
    expected = torch.cat([torch.cat(kept[layer]).T for layer in activations.layers]).numpy()
    np.testing.assert_array_equal(activations.read_untrained("mean", k), expected)


def test_of_a_recognised_model_whole_and_in_shards(run_folder, activations_file, probe_file, tmp_path):
    plan = plan_extraction(run_folder, f"npz:{probe_file}", untrained=3)
    assert ("untrained", "3 initialisations of the network, seeds 1 to 3") in plan.notes
    run_extraction(plan, tmp_path / "a.h5")
    with posthoc.open_activations(tmp_path / "a.h5") as file, posthoc.open_activations(activations_file) as plain:
        assert file.untrained_seeds.tolist() == [1, 2, 3]
        assert plain.untrained_seeds.tolist() == []
        assert len(file) == len(plain) == 5
        for k in range(3):
            torch.manual_seed(1 + k)
            assert_loop(torchvision.models.shufflenet_v2_x0_5(num_classes=10).eval(), plan, file, k)
        rows = [file.read_untrained("var", k) for k in range(3)] + [file.read("var", e) for e in range(5)]
        assert len({row.tobytes() for row in rows}) == 8
        audited = posthoc.audit(file, draws=10)
        untrained = next(control for control in audited.controls if control.name == "untrained weights")
        assert untrained.measures["metastability"].count == 4  # epoch 0 is one, too
        assert any("of 4 initialisations" in sentence for sentence in audited.conclusions)
        ours, theirs = posthoc.compute_metrics(file, nulls=0), posthoc.compute_metrics(plain, nulls=0)
        for part in ("checkpoints", "measures"):
            assert repr(ours.to_dict()[part]) == repr(theirs.to_dict()[part])
    for k in (2, 1, 3):
        run_extraction(plan, tmp_path / "b.h5", shard=Shard(k, 3))
    merge(tmp_path / "b.h5")
    assert_same(tmp_path / "b.h5", tmp_path / "a.h5")
    for k in (1, 2):
        run_extraction(plan, tmp_path / "c.h5", shard=Shard(k, 3))
    (tmp_path / "c.h5.parts" / "untrained-1.h5").unlink()
    with pytest.raises(PosthocError, match=r"lacks 3 of 5 checkpoints and 3 untrained networks .*--shard 2/3 and 3/3"):
        merge(tmp_path / "c.h5")


def test_what_a_submission_has_left_of_them(run_folder, probe_file, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))  # without Slurm
    words = ["submit", run_folder, "--probe", f"npz:{probe_file}", "--untrained", 3, "-o", tmp_path / "out"]
    words += ["--minutes-per-task", 0, "--dry-run"]
    said = CliRunner().invoke(main, list(map(str, words)))
    assert "5 checkpoints; tasks to submit: 8\n" in said.output, said.output
    assert "--untrained 3" in said.output
    output = tmp_path / "out" / "activations.h5"
    output.parent.mkdir()
    plan = plan_extraction(run_folder, f"npz:{probe_file}", untrained=3)
    for k in range(1, 6):
        run_extraction(plan, output, shard=Shard(k, 8))
    said = CliRunner().invoke(main, list(map(str, words)))
    assert "5 checkpoints, 5 of them replayed; tasks to submit: 3\n" in said.output, said.output
    target = Target("", str(run_folder), count=5, arrays=[Array("17", list(range(1, 9)), 8, 0)])
    Submission(output.parent, [], [], targets=[target]).save()
    (run,) = read_status(output.parent).runs
    assert run.replayed == 5
    assert [task.what for task in run.tasks] == [f"replay {k}/8, 0 of 1 done" for k in (6, 7, 8)] + ["measure"]


def test_of_the_users_model_with_lazy_layers_and_whatever_else_it_draws(file_run, tmp_path):
    folder, names = file_run
    plan = planned(folder, seed=4, untrained=3, layers=["all"])
    done = []

    def interrupt(count, total, name):
        done.append(str(name))
        if count == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_extraction(plan, tmp_path / "a.h5", progress=interrupt)
    assert done == ["epoch_1.pth", "epoch_2.pth", "untrained network 1", "untrained network 2"]
    said = []
    run_extraction(plan, tmp_path / "a.h5", progress=lambda count, total, name: said.append((count, total, str(name))))
    assert said[-2:] == [(4, 5, "untrained network 2, kept"), (5, 5, "untrained network 3")]
    with posthoc.open_activations(tmp_path / "a.h5") as file:
        assert file.untrained_seeds.tolist() == [5, 6, 7]
        for k in range(3):
            torch.manual_seed(5 + k)
            np.random.seed(5 + k)
            net = names["Net"]().eval()
            with torch.no_grad():
                net(torch.zeros(1, 3, 32, 32))  # lazy layers draw their weights
            assert_loop(net, plan, file, k)


def test_a_control_that_fails_is_skipped_on_demand(file_run, tmp_path):
    folder, _ = file_run
    plan = planned(folder, "failing", untrained=3)
    with pytest.raises(PosthocError, match="an unlucky draw"):
        run_extraction(plan, tmp_path / "a.h5")
    result = run_extraction(plan, tmp_path / "a.h5", skip_errors=True)
    assert [path for path, _ in result.skipped] == ["untrained network 2"]
    with posthoc.open_activations(tmp_path / "a.h5") as file:
        assert file.untrained_seeds.tolist() == [1, 3]
        assert len(file) == 2


def test_models_whose_weights_nothing_draws(file_run):
    folder, _ = file_run
    with pytest.raises(UsageError, match=r"net.py:ready is a ready module, with no constructor"):
        planned(folder, "ready", untrained=1, trial=False)
    with pytest.raises(PosthocError, match="gives the same weights under two seeds"):
        planned(folder, "fixed", untrained=1)


def test_heads_and_first_convolutions_are_drawn_too():
    from posthoc.replay.recognition import build

    shapes = {"conv1.weight": (64, 3, 3, 3), "fc.bias": (7,)}
    model = build("resnet18", shapes, 5)
    torch.manual_seed(5)
    plain = torchvision.models.resnet18(num_classes=7)
    plain.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    for name, tensor in plain.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


@pytest.mark.parametrize("damage", ["seed", "shape", "lacking"])
def test_controls_are_checked_on_opening(run_folder, probe_file, tmp_path, damage):
    path = posthoc.extract(run_folder, f"npz:{probe_file}", tmp_path / "a.h5", untrained=2, images=64)
    with h5py.File(path, "a") as file:
        group = file["null/untrained"]
        if damage == "seed":
            group["seed"][1] = group["seed"][0]
        else:
            first = group["mean"]["stage2"][:1]
            del group["mean"]["stage2"]
            if damage == "shape":
                group["mean"].create_dataset("stage2", data=first, chunks=first.shape)
    with pytest.raises(PosthocError, match="untrained"):
        posthoc.open_activations(path)


def test_as_many_as_a_file_may_hold(file_run):
    with pytest.raises(UsageError, match="give a number from 0 to 1000"):
        planned(file_run[0], untrained=1001)
