"""Small real runs: torchvision networks, saved as people save them, and a probe that fits them."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

settings.register_profile("repeatable", derandomize=True)
if os.environ.get("CI"):  # a change lands or not for what it holds; new examples are sought at the desk
    settings.load_profile("repeatable")

collect_ignore_glob = ["recipes/toy_*.py"]  # importing them registers what is not of the package

SHARED = Path(os.environ.get("POSTHOC_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))


def shared(name, what):
    """A file or folder of the shared data; the test is skipped where it is absent."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{what} are not at {path}; set POSTHOC_TEST_DATA")
    return path


@pytest.fixture(scope="session")
def published():
    """The per-epoch numbers published with arXiv 2604.09716."""
    return shared("published", "the published per-epoch numbers")


@pytest.fixture(scope="session")
def checkpoints():
    """Checkpoints that other people trained and published."""
    return shared("checkpoints", "other people's checkpoints")


@pytest.fixture(scope="session")
def exact_probe():
    """CIFAR-10 test images with exact pixels, as a probe's name."""
    return f"npz:{shared('cifar10/exact.npz', 'CIFAR-10 images')}"


@pytest.fixture(scope="session")
def states():
    """State dicts of five moments of a small network's training, in order; the first is untrained."""
    import torch
    import torchvision

    torch.manual_seed(0)
    model = torchvision.models.shufflenet_v2_x0_5(num_classes=10)
    moments = []
    for _ in range(5):
        moments.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.05 * parameter.std(correction=0) * torch.randn_like(parameter)
    return moments


@pytest.fixture(scope="session")
def run_folder(states, tmp_path_factory):
    """A run as reproduction.train leaves it; do not write to it."""
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("run")
    about = {"model": "shufflenet_v2_x0_5", "normalization": {"mean": [0.5] * 3, "std": [0.25] * 3}}
    (folder / "run.json").write_text(json.dumps(about))
    for epoch, state in enumerate(states):
        metadata = {"epoch": str(epoch), "step": str(epoch * 7), "val_acc": str(0.1 + 0.1 * epoch)}
        save_file(state, folder / f"epoch-{epoch:03d}.safetensors", metadata)
    return folder


@pytest.fixture(scope="session")
def probe_file(tmp_path_factory):
    """300 images of 32 x 32 in ten classes, as an npz."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 10, 300)
    tints = random.integers(0, 200, (10, 1, 1, 3))
    images = (tints[labels] + random.integers(0, 56, (300, 32, 32, 3))).astype(np.uint8)
    path = tmp_path_factory.mktemp("probe") / "probe.npz"
    np.savez(path, images=images, labels=labels)
    return path


@pytest.fixture(scope="session")
def activations_file(run_folder, probe_file, tmp_path_factory):
    """The run replayed over the probe; do not write to it."""
    import posthoc

    return posthoc.extract(run_folder, f"npz:{probe_file}", tmp_path_factory.mktemp("activations") / "activations.h5")
