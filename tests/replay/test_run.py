"""The replay as a whole: right numbers, whole files, resumption."""

import json
import shutil

import numpy as np
import pytest
import torch
import torchvision
from contents import assert_same

import posthoc
from posthoc.errors import PosthocError
from posthoc.recording import Model
from posthoc.replay.planning import plan_extraction

REDUCTIONS = {"mean": lambda maps: maps.mean(2), "var": lambda maps: maps.var(2, correction=0)}


def replay_and_keep(model, layers, x):
    """Scores, and a copy of each layer's whole output."""
    kept = {}
    handles = [
        model.get_submodule(layer).register_forward_hook(lambda m, i, o, key=layer: kept.update({key: o.clone()}))
        for layer in layers
    ]
    with torch.inference_mode():
        scores = model(x)
    for handle in handles:
        handle.remove()
    return scores, kept


def test_numbers_are_those_of_the_obvious_loop(states, activations_file, probe_file):
    with np.load(probe_file) as pack:
        x = (torch.from_numpy(pack["images"]).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
        labels = torch.from_numpy(pack["labels"])
    model = torchvision.models.shufflenet_v2_x0_5(num_classes=10).eval()
    with posthoc.open_activations(activations_file) as activations:
        assert activations.layers == ("stage2", "stage3", "stage4", "conv5")
        np.testing.assert_array_equal(activations.epochs, range(5))
        np.testing.assert_array_equal(activations.steps, np.arange(5) * 7)
        np.testing.assert_allclose(activations.recorded["val_acc"], 0.1 + 0.1 * np.arange(5))
        for e, state in enumerate(states):
            model.load_state_dict(state)
            scores, kept = replay_and_keep(model, activations.layers, x)
            for signal, reduce in (
                ("mean", lambda maps: maps.mean(2)),
                ("var", lambda maps: maps.var(2, correction=0)),
            ):
                maps = torch.cat([reduce(kept[key].flatten(2))[:, activations.channels[key]] for key in kept], dim=1)
                np.testing.assert_allclose(activations.read(signal, e), maps.T.numpy(), rtol=1e-3, atol=1e-5)
            assert activations.accuracy[e] == pytest.approx(
                (scores.argmax(1) == labels).float().mean().item(), abs=0.004
            )
            assert activations.loss[e] == pytest.approx(
                torch.nn.functional.cross_entropy(scores, labels).item(), rel=1e-4
            )


def test_recognised_without_run_json_from_pt_files(states, activations_file, probe_file, tmp_path):
    for epoch, state in enumerate(states):
        torch.save(
            {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, tmp_path / f"ep{epoch}.pth"
        )
    path = posthoc.extract(tmp_path, f"npz:{probe_file}", tmp_path / "a.h5", normalize="0.5/0.25")
    with posthoc.open_activations(path) as ours, posthoc.open_activations(activations_file) as theirs:
        identity, provenance = ours.recording.identity, ours.recording.provenance
        assert identity.model == Model("shufflenet_v2_x0_5", {}, None)
        assert (provenance.source, identity.output.columns) == ("recognised", 10)
        for e in range(5):
            np.testing.assert_array_equal(ours.read("mean", e), theirs.read("mean", e))


def test_channels_belong_to_layer_and_seed(run_folder, probe_file):
    def drawn(**options):
        return plan_extraction(run_folder, f"npz:{probe_file}", **options).stored.channels

    default, alone = drawn(), drawn(layers=["stage3"])
    np.testing.assert_array_equal(default["stage3"], alone["stage3"])
    assert len(default["stage2"]) == 32
    assert not np.array_equal(default["stage3"], drawn(seed=1)["stage3"])
    np.testing.assert_array_equal(drawn(channels=None)["stage2"], np.arange(48))


def test_interrupted_it_goes_on_and_ends_in_the_same_file(run_folder, activations_file, probe_file, tmp_path):
    output = tmp_path / "a.h5"

    def interrupt(done, total, name):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        posthoc.extract(run_folder, f"npz:{probe_file}", output, progress=interrupt)
    assert not output.exists()
    parts = sorted((tmp_path / "a.h5.parts").glob("*.h5"))
    assert [part.name for part in parts] == ["epoch0-step0.h5", "epoch1-step7.h5", "epoch2-step14.h5"]
    written = [part.stat().st_mtime_ns for part in parts]
    seen = []
    posthoc.extract(run_folder, f"npz:{probe_file}", output, progress=lambda *row: seen.append(
        [part.stat().st_mtime_ns for part in parts if part.exists()]
    ))  # fmt: skip
    assert seen[-1] == written
    assert not (tmp_path / "a.h5.parts").exists()
    assert_same(output, activations_file)


def test_a_checkpoint_that_changed_is_replayed_again(run_folder, activations_file, probe_file, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run_folder, folder)
    right = (folder / "epoch-001.safetensors").read_bytes()
    (folder / "epoch-001.safetensors").write_bytes(
        (folder / "epoch-002.safetensors").read_bytes().replace(b'"epoch":"2"', b'"epoch":"1"')
    )

    def interrupt(done, total, name):
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        posthoc.extract(folder, f"npz:{probe_file}", tmp_path / "a.h5", progress=interrupt)
    (folder / "epoch-001.safetensors").write_bytes(right)
    posthoc.extract(folder, f"npz:{probe_file}", tmp_path / "a.h5")
    assert_same(tmp_path / "a.h5", activations_file)


def test_parts_of_other_options_are_refused_then_replaced_on_demand(run_folder, probe_file, tmp_path):
    def interrupt(done, total, name):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        posthoc.extract(run_folder, f"npz:{probe_file}", tmp_path / "a.h5", seed=1, progress=interrupt)
    with pytest.raises(PosthocError, match="seed: 1 there, 0 now"):
        posthoc.extract(run_folder, f"npz:{probe_file}", tmp_path / "a.h5")
    posthoc.extract(run_folder, f"npz:{probe_file}", tmp_path / "a.h5", force=True)


def test_a_model_that_needs_larger_images_gets_them(probe_file, tmp_path):
    model = torchvision.models.alexnet(num_classes=10)
    torch.save(model.state_dict(), tmp_path / "1.pt")
    plan = plan_extraction(tmp_path, f"npz:{probe_file}", normalize="none", images=64)
    assert plan.identity.probe.preparation["image_size"] == 224
    path = posthoc.extract(tmp_path, f"npz:{probe_file}", tmp_path / "a.h5", normalize="none", images=8)
    with posthoc.open_activations(path) as activations:
        assert np.isfinite(activations.read("mean", 0)).all()


def test_half_precision_weights_are_replayed_in_single(states, probe_file, tmp_path):
    half = {name: tensor.bfloat16() if tensor.is_floating_point() else tensor for name, tensor in states[0].items()}
    torch.save(half, tmp_path / "1.pt")
    path = posthoc.extract(tmp_path, f"npz:{probe_file}", tmp_path / "a.h5", normalize="none", images=8)
    with posthoc.open_activations(path) as activations:
        assert activations.read("mean", 0).dtype == np.float32


def test_a_probe_with_more_classes_than_outputs_has_no_accuracy(states, probe_file, tmp_path):
    torch.save(torchvision.models.shufflenet_v2_x0_5(num_classes=3).state_dict(), tmp_path / "1.pt")
    path = posthoc.extract(tmp_path, f"npz:{probe_file}", tmp_path / "a.h5", normalize="none", images=100)
    with posthoc.open_activations(path) as activations:
        assert np.isnan(activations.accuracy).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_agrees_with_the_cpu(run_folder, activations_file, probe_file, tmp_path):
    path = posthoc.extract(run_folder, f"npz:{probe_file}", tmp_path / "a.h5", device="cuda")
    with posthoc.open_activations(path) as ours, posthoc.open_activations(activations_file) as theirs:
        for e in range(5):
            np.testing.assert_allclose(ours.read("mean", e), theirs.read("mean", e), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [2**70, 2**40])
def test_a_recorded_image_size_that_no_image_has_is_refused_in_a_sentence(run_folder, probe_file, tmp_path, size):
    folder = shutil.copytree(run_folder, tmp_path / "run")
    about = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(about | {"image_size": size}))
    with pytest.raises(PosthocError, match="size"):
        posthoc.extract(folder, f"npz:{probe_file}", tmp_path / "a.h5")
    assert not list(tmp_path.glob("a.h5*"))
