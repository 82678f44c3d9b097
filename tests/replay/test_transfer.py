"""Copies beside the computation, through a device that makes each as late as a GPU may: the same numbers as without."""

from pathlib import Path

import numpy as np
import pytest
import torch
from contents import assert_same
from safetensors.torch import save_file

from posthoc.errors import PosthocError
from posthoc.replay import network
from posthoc.replay.arithmetic import arithmetic
from posthoc.replay.forward import guarded
from posthoc.replay.planning import plan_extraction
from posthoc.replay.run import run_extraction
from posthoc.replay.transfer import Transfer, Upload
from posthoc.store import open_activations

NETS = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.mix, self.norm, self.head = nn.Embedding(32, 8), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 32)

    def forward(self, ids):
        if self.head.bias[0] > 50:
            raise ValueError("too large")
        x = self.norm(self.mix(self.embed(ids)).relu().transpose(1, 2))
        return self.head(x.transpose(1, 2))
"""


class Late:
    """An event at which what it stands for is done, and not before."""

    def __init__(self, work):
        self.work = work

    def synchronize(self):
        work, self.work = self.work, None
        if work:
            work()


class LateTransfer(Transfer):
    """Reads what it was given to bring until it is waited for, and writes what it brings no sooner."""

    def __init__(self):
        super().__init__(direct=False)
        self.reading, self.spoilt, self.downloads = [], 0, 0

    def look(self):
        self.spoilt += sum(not torch.equal(source, was) for rows in self.reading for source, was in rows)

    def upload(self, tensors):
        self.look()
        rows = [(tensor, tensor.clone()) for tensor in tensors.values()]
        self.reading.append(rows)
        late = {name: torch.full_like(tensor, 77) for name, tensor in tensors.items()}
        return Upload(tensors, late, Late(lambda: (self.look(), self.reading.remove(rows))))

    def arrived(self, upload):
        for name, tensor in upload.tensors.items():
            tensor.copy_(upload.source[name])
        return upload.tensors

    def download(self, tensor):
        self.downloads += 1
        held, late = tensor.clone(), torch.full_like(tensor, 77)

        def work():
            with torch.inference_mode():
                late.copy_(held)

        return late, Late(work)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Six checkpoints, with the third of which the network fails; 40 documents."""
    folder = tmp_path_factory.mktemp("late")
    (folder / "nets.py").write_text(NETS)
    scope = {}
    exec(NETS, scope)
    (folder / "run").mkdir()
    for step in range(6):
        torch.manual_seed(step)
        state = scope["Net"]().state_dict()
        if step == 2:
            state["head.bias"] += 100
        save_file(state, folder / "run" / f"step-{step}.safetensors", {"step": str(step)})
    np.save(folder / "ids.npy", np.random.default_rng(0).integers(0, 32, 40 * 40).astype("u2"))
    return folder


def replayed(folder: Path, output: Path, device="cpu", **options):
    plan = plan_extraction(
        folder / "run", f"tokens:{folder / 'ids.npy'}", model=str(folder / "nets.py"), context=40, documents=36, batch_size=6,
        controls=("shuffle",), layers=("mix", "head"), device=device, **options,
    )  # fmt: skip
    skipped = run_extraction(plan, output, skip_errors=True).skipped
    assert [name for name, _ in skipped] == ["step-2.safetensors"]
    return output


@pytest.mark.parametrize("options", [{}, {"average": (2,)}], ids=["plain", "averages"])
def test_the_numbers_are_those_of_copies_made_at_once(run, tmp_path, monkeypatch, options):
    at_once = replayed(run, tmp_path / "a.h5", **options)
    used = []
    monkeypatch.setattr(network, "transfer_to", lambda device: used.append(LateTransfer()) or used[-1])
    late = replayed(run, tmp_path / "late.h5", **options)
    assert_same(at_once, late)
    assert sum(transfer.downloads for transfer in used) == 5 * 6 * 2  # checkpoints, batches, the text and its shuffle
    assert not any(transfer.spoilt for transfer in used)


def test_arithmetic_is_what_was_asked_for_whatever_was_set():
    settings = torch.backends
    places = [settings.cuda.matmul] + [getattr(settings.cudnn, name, None) for name in ("conv", "rnn")]
    places = [place for place in places if hasattr(place, "fp32_precision")]  # since torch 2.9
    before = [place.fp32_precision for place in places]
    try:
        for place, value in zip(places, ("tf32", "ieee", "tf32"), strict=False):  # which the older names cannot say
            place.fp32_precision = value
        mixed = [place.fp32_precision for place in places]
        for tf32, word in ((False, "ieee"), (True, "tf32")):
            with arithmetic(tf32):
                assert (settings.cuda.matmul.allow_tf32, settings.cudnn.allow_tf32) == (tf32, tf32)
                assert {place.fp32_precision for place in places} <= {word}
                assert (settings.cudnn.benchmark, settings.cudnn.deterministic) == (False, True)
        assert [place.fp32_precision for place in places] == mixed
    finally:
        for place, value in zip(places, before, strict=True):
            place.fp32_precision = value


def test_memory_that_a_library_of_the_gpu_cannot_get_has_run_out():
    with pytest.raises(torch.OutOfMemoryError), guarded("net", torch.nn.Identity(), {"x": torch.ones(1)}, "a.pt"):
        raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
    with (
        pytest.raises(PosthocError, match="mend its forward pass"),
        guarded("net", torch.nn.Identity(), {"x": torch.ones(1)}, "a.pt"),
    ):
        raise RuntimeError("CUDA error: device-side assert triggered")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(
    "options", [{}, {"average": (2,)}, {"dtype": "bfloat16"}], ids=["plain", "average", "bfloat16"]
)
def test_a_gpu_gives_the_same_twice_and_what_the_cpu_gives(run, tmp_path, options):
    here = replayed(run, tmp_path / "cpu.h5")
    first, second = (replayed(run, tmp_path / f"{name}.h5", "cuda", **options) for name in "ab")
    assert_same(first, second)
    rtol = 0.05 if options.get("dtype") else 1e-4
    with open_activations(here) as ours, open_activations(first) as theirs:
        for row in range(5):
            np.testing.assert_allclose(theirs.read("mean", row), ours.read("mean", row), rtol, rtol)
        np.testing.assert_allclose(theirs.loss, ours.loss, rtol)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_memory_of_a_gpu_that_runs_out_is_a_sentence(run, tmp_path):
    torch.cuda.set_per_process_memory_fraction(1e-6)
    try:
        with pytest.raises(PosthocError, match=r"Out of memory at .*smaller --batch-size"):
            replayed(run, tmp_path / "a.h5", "cuda")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
