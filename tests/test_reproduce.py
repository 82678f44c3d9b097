"""The study as a whole: a rehearsal of it, and the page that is in the repository."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau

import posthoc
from reproduction import sections
from reproduction.foretelling import LAST, between_seeds, of_means
from reproduction.kept import read_kept

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "data" / "reproduction"


def reproduce(*words):
    command = [sys.executable, "-m", "reproduction.run", *words]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, cwd=ROOT)


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory):
    """One epoch of one run on 300 noisy pictures, its measures kept in `kept`."""
    folder = tmp_path_factory.mktemp("rehearsal")
    random = np.random.default_rng(0)
    splits = {}
    for split in ("train", "test"):
        labels = np.arange(300) % 10
        splits[f"y_{split}"] = labels
        splits[f"x_{split}"] = (labels[:, None, None, None] * 20 + random.integers(0, 50, (300, 32, 32, 3))).astype(
            "u1"
        )
    np.savez(folder / "pictures.npz", **splits)
    (folder / "kept").mkdir()
    shutil.copy(KEPT / "published_table1.csv", folder / "kept")
    return folder


@pytest.mark.slow
def test_a_rehearsal_of_the_whole(rehearsal):
    words = ["--runs", "resnet18-cifar10", "--epochs", 1, "--images", 300, "--data", f"npz:{rehearsal / 'pictures.npz'}",
             "--out", rehearsal / "out", "--keep", rehearsal / "kept", "--device", "cpu"]  # fmt: skip
    done = reproduce(*words, "--data-note", "three hundred pictures.")
    assert done.returncode == 0, done.stdout + done.stderr
    kept = rehearsal / "kept"
    run = kept / "resnet18-cifar10" / "seed-42"
    names = ["audit", "depth", "means", "metrics", "smoothing"]
    assert sorted(path.name for path in run.iterdir()) == [f"{name}.json" for name in names]
    page = (kept / "README.md").read_text()
    assert "\nthree hundred pictures.\n" in page
    metrics = json.loads((run / "metrics.json").read_text())
    assert f"| ours, seed 42 | {100 * metrics['summary']['best_accuracy']:.1f} |" in page.replace("|  | ours", "| ours")
    for figure in ("audit.svg", "measures.svg"):
        assert f"](figures/{figure})" in page
        assert (kept / "figures" / figure).read_text().startswith("<svg")
    assert (rehearsal / "out" / "report.html").exists()
    assert not [path for path in kept.rglob("*") if path.suffix in (".safetensors", ".h5")]

    assert reproduce("--check", "--keep", kept).returncode == 0
    classes_of_another_data_set(rehearsal)
    metrics["measures"]["metastability"]["value"][-1] += 0.01
    metrics["measures"]["metastability"]["summary"]["mean"] += 0.01
    (run / "metrics.json").write_text(json.dumps(metrics))
    wrong = reproduce("--check", "--keep", kept)
    assert wrong.returncode == 1
    assert "README.md, line" in wrong.stderr
    assert "comparison.json is not what the kept runs give" in wrong.stderr


def classes_of_another_data_set(rehearsal):
    """The same run on the images and labels of another data set, and the page with it."""
    with np.load(rehearsal / "pictures.npz") as file:
        hundred = np.arange(300) % 100
        np.savez(rehearsal / "others.npz", x_test=file["x_test"][::-1], y_test=hundred, coarse_test=hundred // 5)
    kept, run = rehearsal / "kept", rehearsal / "out" / "resnet18-cifar10" / "seed-42"
    command = [sys.executable, "-m", "reproduction.classes", run, "--keep", kept]
    command += ["--cifar10", rehearsal / "pictures.npz", "--cifar100", rehearsal / "others.npz"]
    for _ in range(2):  # the second replaces what the first kept
        subprocess.run(list(map(str, command)), check=True, cwd=ROOT)
    cells = json.loads((kept / "classes.json").read_text())
    networks = {("noise", None), ("resnet18-cifar10", 0), ("resnet18-cifar10", 1)}
    assert {(cell["run"], cell["epoch"]) for cell in cells} == networks
    assert [cell["classes"] for cell in cells[:6]] == [10, 20, 100, 10, 20, 100]
    assert len(cells) == 18
    assert reproduce("--page", "--keep", kept, "--out", rehearsal / "out").returncode == 0
    page = (kept / "README.md").read_text()
    assert "| network | CIFAR-10 images, 10 classes: own | CIFAR-10 images, 20 classes: each in 2 |" in page
    assert "| resnet18-cifar10, seed 42, epoch 1 (" in page
    assert reproduce("--check", "--keep", kept).returncode == 0


@pytest.mark.parametrize("follows", [True, False])
def test_what_h_eff_goes_with(follows):
    """The shares of a table that is made of the number of classes alone, and of the network alone."""
    columns = [("a", "own", 10), ("a", "split", 100), ("b", "joined", 10), ("b", "own", 100)]
    cells = [
        {"run": f"run{k}", "seed": 1, "epoch": 5, "accuracy": 0.5, "images": images, "labels": labels, "classes": count,
         "h_eff": 1 / count if follows else k / 10}
        for k in range(3) for images, labels, count in columns
    ]  # fmt: skip
    crossed = sections._crossed(cells)
    assert (crossed["by_classes"], crossed["by_network"]) == (("100", "0") if follows else ("0", "100"))
    assert crossed["follows"] == follows
    assert crossed["rows"][0] == [
        "run0, seed 1, epoch 5 (50.0 %)",
        *(["0.100", "0.010"] * 2 if follows else ["0.000"] * 4),
    ]


def test_what_measures_say_between_seeds_is_the_mean_of_kendalls_tau(published):
    found = between_seeds(published)
    every = {name: of for name, of in found.items() if name != "all"}
    assert [*every] == ["densenet121_cifar10", "mobilenetv2_cifar10", "resnet101_cifar100", "vgg16bn_cifar100"]
    for measure, column in {
        "metastability": "M",
        "integration": "Heff",
        "loss": "val_loss",
        "accuracy": "val_acc",
    }.items():
        for name, of in every.items():
            runs = [
                np.genfromtxt(path, delimiter=",", names=True)
                for path in sorted((published / "seeds").glob(f"{name}_seed*.csv"))
                if "_v1" not in path.name
            ]
            final = [run["val_acc"][-1] for run in runs]
            epochs = [[run[column][e] for run in runs] for e in range(1, min(map(len, runs)) - 1)]
            taus = [kendalltau(values, final).statistic for values in epochs if np.isfinite(values).all()]
            assert of[measure] == pytest.approx(np.nanmean(taus))
        assert found["all"][measure] == pytest.approx(np.mean([of[measure] for of in every.values()]))
        assert 0 < found["all"][f"{measure} p"] <= 1


def test_means_of_weights_stand_beside_the_checkpoints(tmp_path):
    torch.manual_seed(0)
    states = [torch.nn.Sequential(torch.nn.Linear(4, 3)).state_dict() for _ in range(5)]
    for epoch, state in enumerate(states):
        torch.save(state, tmp_path / f"epoch-{epoch}.pt")
    x, y = torch.randn(200, 4), torch.arange(200) % 3
    (tmp_path / "net.py").write_text(
        "import torch\n\ndef net():\n    return torch.nn.Sequential(torch.nn.Linear(4, 3))\n"
    )
    output = posthoc.extract(
        tmp_path, (x.numpy(), y.numpy()), tmp_path / "means.h5", model=f"{tmp_path / 'net.py'}:net", channels=1,
        average=[LAST],
    )  # fmt: skip

    def accuracy(states):
        weight, bias = (torch.stack([state[name] for state in states]).mean(0) for name in ("0.weight", "0.bias"))
        return ((x @ weight.T + bias).argmax(1) == y).double().mean().item()

    found = of_means(output)
    assert found["checkpoint"] == pytest.approx([accuracy(states[e : e + 1]) for e in (3, 4)])
    assert found["mean"] == pytest.approx([accuracy(states[e - 2 : e + 1]) for e in (3, 4)])


def test_the_page_in_the_repository_is_what_its_files_give():
    done = reproduce("--check")
    assert done.returncode == 0, done.stderr


def test_a_network_starts_from_given_weights(rehearsal, tmp_path, capsys):
    import torchvision
    from safetensors.torch import load_file, save_file

    from reproduction.train import main

    weights = torchvision.models.resnet18(num_classes=7).state_dict()
    save_file(weights, tmp_path / "weights.safetensors")

    def train(weights):
        words = ["resnet18-cifar10", "--epochs", 0, "--out", tmp_path / "out"]
        words += ["--data", f"npz:{rehearsal / 'pictures.npz'}", "--weights", weights, "--device", "cpu"]
        deterministic = torch.are_deterministic_algorithms_enabled()
        try:
            main([str(word) for word in words])
        finally:
            torch.use_deterministic_algorithms(deterministic)

    train(tmp_path / "weights.safetensors")
    started = load_file(tmp_path / "out" / "epoch-000.safetensors")
    assert started["fc.weight"].shape == (10, 512)
    assert all(torch.equal(started[name], weights[name]) for name in weights if not name.startswith("fc."))
    save_file(
        {name: tensor for name, tensor in weights.items() if "layer4" not in name}, tmp_path / "other.safetensors"
    )
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(SystemExit) as refused:
        train(tmp_path / "other.safetensors")
    assert refused.value.code == 1
    assert "holds no resnet18" in capsys.readouterr().err


def test_the_figures_in_the_readme_are_those_of_the_kept_files():
    opening = (ROOT / "README.md").read_text().split("## Documentation")[0]
    controls = {
        control["name"].partition(" (")[0]: control["measures"]["integration"]["mean"]
        for control in json.loads((KEPT / "resnet18-cifar10" / "seed-42" / "audit.json").read_text())["controls"]
    }
    assert f"falls from {controls['as it is']:.2f} to {controls['each class split in ten']:.3f}" in opening
    assert f"of untrained weights it is {controls['untrained weights']:.2f}" in opening
    assert f"pure noise {controls['pure noise']:.2f}" in opening
    for run in ("resnet18-cifar10", "densenet121-cifar10"):
        own, other = (
            read_kept(KEPT / run / f"seed-42/{name}.json").summary.correlations["integration_metastability"].r
            for name in ("metrics", "smoothing")
        )
        assert f"from {own:+.2f} to {other:+.2f}" in opening
    assert "0.0670, and 0.0679 ± 0.0017" in opening
    last = read_kept(KEPT / "resnet18-cifar10/seed-42/metrics.json").measures["metastability"]
    assert f"{last.value[-1]:.4f}" == "0.0670"
    gained = [
        max(of["mean"]) - max(of["checkpoint"])
        for of in (json.loads(path.read_text()) for path in KEPT.glob("*/*/means.json"))
    ]
    assert len(gained) == 5
    assert f"is {100 * min(gained):.1f} to {100 * max(gained):.1f} points better" in " ".join(opening.split())
