"""From series to a run's measures: formulas, the published numbers, and a real activations file."""

import csv
import json
import math
import subprocess
import sys
from functools import partial

import naive
import numpy as np
import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from noise import make, recording

import posthoc
from posthoc.analysis.arrays import correlation
from posthoc.analysis.kernels import kernel_folder
from posthoc.analysis.measures import MEASURES
from posthoc.analysis.measures.integration import integration
from posthoc.analysis.measures.stability import (
    causal_stability_index,
    convergence,
    stability_index,
    volatility,
    z_scores,
)
from posthoc.analysis.metrics import compute_metrics, whole
from posthoc.analysis.protocol import Protocol
from posthoc.analysis.records import load_metrics
from posthoc.analysis.scales import published_scales
from posthoc.analysis.verdicts import verdict
from posthoc.errors import PosthocError, UsageError
from posthoc.report.words import in_short
from posthoc.store import Frame, Layout, open_activations
from posthoc.writing import write

TABLE1 = {
    ("ResNet-18", "CIFAR-10"): "resnet18_cifar10",
    ("ResNet-34", "CIFAR-10"): "resnet34_cifar10",
    ("ResNet-152", "CIFAR-10"): "resnet152_cifar10",
    ("DenseNet-121", "CIFAR-10"): "densenet121_cifar10",
    ("MobileNetV2", "CIFAR-10"): "mobilenetv2_cifar10",
    ("ViT (pretrained)", "CIFAR-10"): "vit_pretrained_cifar10",
    ("ResNet-50", "CIFAR-100"): "resnet50_cifar100",
    ("ResNet-101", "CIFAR-100"): "resnet101_cifar100",
    ("VGG-16", "CIFAR-100"): "vgg16_cifar100",
}


@pytest.mark.parametrize("name", TABLE1.values())
def test_published_epochs_recompute(published, name):
    run = pandas.read_csv(published / f"{name}.csv")
    np.testing.assert_allclose(integration(run.H_raw), run.Heff, atol=1e-9)
    np.testing.assert_allclose(z_scores(run.Heff), run.Hz, atol=1e-9)
    np.testing.assert_allclose(z_scores(run.M), run.Mz, atol=1e-9)
    np.testing.assert_allclose(stability_index(run.Heff, run.M), run.Psi, atol=1e-9)


def test_published_table_recomputes(published):
    rows = list(csv.DictReader((published / "Table1.csv").open()))
    assert len(rows) == len(TABLE1) == 9
    for row in rows:
        run = pandas.read_csv(published / f"{TABLE1[row['model'], row['dataset']]}.csv")
        psi = stability_index(run.Heff, run.M)
        assert len(run) == int(row["epochs"])
        assert run.val_acc.max() == pytest.approx(float(row["best_acc"]), abs=0.051)
        assert run.epoch[run.val_acc.argmax()] == int(row["best_epoch"])
        # One unit of the last digit: the first row's sd of Psi is 0.94248, printed as 0.943.
        assert np.nanmean(run.Heff) == pytest.approx(float(row["Heff_mean"]), abs=0.00051)
        assert np.nanmean(psi) == pytest.approx(float(row["Psi_mean"]), abs=0.00051)
        assert np.nanstd(psi, ddof=1) == pytest.approx(float(row["Psi_std"]), abs=0.00053)
        assert correlation(z_scores(run.Heff), z_scores(run.M)) == pytest.approx(float(row["r_Hz_Mz"]), abs=0.00051)
        assert correlation(psi, run.val_acc) == pytest.approx(float(row["r_Psi_acc"]), abs=0.00051)


def test_published_stopping_epochs_recompute(published):
    rows = list(csv.DictReader((published / "prospective.csv").open()))
    assert len(rows) == 16
    for row in rows:
        name = row["file"].removeprefix("results_").replace("mobilenet_", "mobilenetv2_")
        run = pandas.read_csv(published / name)
        stopped = convergence(volatility(stability_index(run.Heff, run.M), int(row["window"])), float(row["threshold"]))
        assert (stopped is not None) == (row["status"] == "TRIGGERED")
        at = len(run) - 1 if stopped is None else stopped
        assert run.epoch[at] == int(row["psi_stop_epoch"])
        assert run.val_acc[at] == pytest.approx(float(row["acc_at_psi_stop"]), abs=0.0051)
        assert run.val_acc.max() - run.val_acc[at] == pytest.approx(float(row["acc_delta_vs_max"]), abs=0.0101)
        assert len(run) - run.epoch[at] == int(row["epochs_saved"])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.sampled_from([1.0, 1e-170, 1e12]), st.booleans())
def test_the_causal_index_is_that_of_the_epochs_up_to_each(seed, E, scale, rising):
    random = np.random.default_rng(seed)
    h, m = random.choice([random.uniform(size=E), random.integers(0, 2, E) * 1.0], axis=0), random.uniform(size=E)
    if rising:
        h *= np.geomspace(scale, 1, E)
    h[random.uniform(size=E) < 0.2] = np.nan
    expected = naive.expanding(partial(stability_index, w_h=0.3), h, m * scale)
    np.testing.assert_allclose(causal_stability_index(h, m * scale, 0.3), expected, rtol=1e-9, atol=1e-12)


def test_volatility_needs_its_whole_window():
    psi = np.array([0.0, 1, 2, np.nan, 1, 2, 4])
    expected = pandas.Series(psi).rolling(3).std()
    np.testing.assert_allclose(volatility(psi), expected)
    assert np.isnan(volatility(psi[:2])).all()


def test_measures_of_a_real_file_are_those_of_the_formulas(activations_file):
    protocol = Protocol.named("published", smooth=3)
    with open_activations(activations_file) as activations:
        metrics = compute_metrics(activations, protocol)
        signals = [activations.read("mean", e) for e in range(len(activations))]
        labels = activations.labels
        layers = [layer for layer, _ in activations.units]
    scales = published_scales(len(labels))
    for e in (0, 3):
        signal = signals[e]
        series = naive.image_series(signal[np.ptp(signal, axis=1) > 0], labels, 3)
        F = np.array([naive.fluctuation(row, scales, "published") for row in series])
        flat = F.min(axis=1) < 1e-12 * np.ptp(series, axis=1)
        alphas = np.polyfit(np.log(scales), np.log(F).T, 1)[0]
        hurst = np.mean(alphas[~flat])
        R = naive.order_parameter(series)
        assert metrics.column("hurst")[e] == pytest.approx(hurst, abs=1e-9)
        assert metrics.column("integration")[e] == pytest.approx(math.exp(-((hurst - 0.7) ** 2) / 0.045), abs=1e-9)
        assert metrics.column("metastability")[e] == pytest.approx(R.std(), abs=1e-9)
        assert metrics.column("synchrony")[e] == pytest.approx(R.mean(), abs=1e-9)
        assert metrics.checkpoints[e].dead == 128 - len(series) + sum(flat)
        plv, _ = naive.phase_locking(
            series, [layer for layer, row in zip(layers, signal, strict=True) if np.ptp(row) > 0]
        )
        np.testing.assert_allclose(metrics.phase_locking.plv[e], plv, atol=1e-6)
        of_layer = np.array([layer == layers[-1] for layer, row in zip(layers, signal, strict=True) if np.ptp(row) > 0])
        alive = of_layer & ~flat
        assert metrics.measures["hurst"].by_layer[e, -1] == pytest.approx(np.mean(alphas[alive]), abs=1e-6)
        R_layer = naive.order_parameter(series[of_layer])
        assert metrics.measures["metastability"].by_layer[e, -1] == pytest.approx(R_layer.std(), abs=1e-6)
        log_F = np.log(F[~flat])
        curves = metrics.fluctuation[e]
        assert curves.scales == tuple(scales)
        expected = (log_F - log_F.mean(axis=1, keepdims=True)).mean(axis=0)
        np.testing.assert_allclose(curves.curves["units"].mean, expected, atol=1e-6)
        slope = np.polyfit(np.log(scales), curves.curves["units"].mean, 1)[0]
        assert slope == pytest.approx(hurst, abs=1e-5)
    assert metrics.checkpoints[0].untrained
    assert metrics.when == [0, 1, 2, 3, 4]
    assert math.isnan(metrics.column("stability_index")[0])
    np.testing.assert_allclose(
        metrics.column("stability_index")[1:],
        stability_index(metrics.column("integration")[1:], metrics.column("metastability")[1:]),
    )
    assert metrics.summary.epochs == 4
    assert metrics.summary.best_accuracy == 0.5
    assert metrics.summary.best_epoch == 4


def test_a_lone_untrained_checkpoint_has_measures_and_nulls(tmp_path):
    metrics = compute_metrics(open_activations(make(tmp_path / "a.h5", epochs=1)), nulls=39)
    assert metrics.null("order", "hurst", "draws")[0] == 39
    assert metrics.measures["hurst"].summary.nulls["order"].epochs == 0
    assert in_short(metrics)[0] == "The only checkpoint is epoch 0; nothing went wrong that the checkpoints show."
    assert "only checkpoints of step 0 have it" in verdict(metrics, "metastability").sentence()


def test_a_single_channel_has_no_metastability(tmp_path):
    path = make(tmp_path / "a.h5", layers=1, channels=1, epochs=3)
    metrics = compute_metrics(open_activations(path), nulls=3, max_nulls=3, measures="metastability,synchrony")
    assert np.isnan([metrics.column("metastability"), metrics.column("synchrony")]).all()
    assert "M needs two channels that vary" in in_short(metrics)[-1]


def test_the_saved_file_reads_back(activations_file, tmp_path):
    with open_activations(activations_file) as activations:
        metrics = compute_metrics(activations, nulls=2)
    metrics.save(tmp_path / "metrics.json")
    metrics.save_csv(tmp_path / "metrics.csv")
    content = json.loads((tmp_path / "metrics.json").read_text())
    again = load_metrics(tmp_path / "metrics.json")
    assert again.to_dict() == metrics.to_dict() == content
    assert again.protocol == metrics.protocol
    np.testing.assert_array_equal(again.column("volatility"), metrics.column("volatility"))
    np.testing.assert_array_equal(again.null("white", "hurst"), metrics.null("white", "hurst"))
    assert content["format_version"] == 2
    assert content["protocol"]["smooth"] == 5
    assert content["measures"]["integration"]["value"][2] == metrics.column("integration")[2]
    assert content["measures"]["stability_index"]["value"][0] is None
    assert len(content["units"]) == 128
    assert {"numpy", "numba", "posthoc"} <= content["versions"].keys()
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    assert float(rows[3]["metastability"]) == metrics.column("metastability")[3]
    assert rows[0]["volatility"] == ""
    table = pandas.read_csv(tmp_path / "metrics.csv", index_col="epoch")
    np.testing.assert_allclose(table["integration_white_mean"], metrics.null("white", "integration"))


@pytest.fixture
def dead_file(tmp_path):
    """Three epochs of two layers, in which channels die one after another, for different reasons."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, 128)
    plan = Layout(recording(["a", "b"], images=128), np.arange(128), labels, {"a": np.arange(2), "b": np.arange(1)})
    frames = []
    for epoch in range(3):
        a, b = random.standard_normal((2, 128)).astype("f4"), random.standard_normal((1, 128)).astype("f4")
        if epoch > 0:
            a[0] = 0.5
        if epoch > 1:
            a[1, 5], b[:] = np.nan, 0
        signals = {"mean": {"a": a, "b": b}}
        frames.append(Frame(f"{epoch}.pt", "0", epoch + 1, None, 1.0, 0.5, {}, signals))
    write(tmp_path / "dead.h5", plan, frames)
    return tmp_path / "dead.h5"


def test_dead_channels_are_left_out_counted_and_named(dead_file):
    with open_activations(dead_file) as activations:
        metrics = compute_metrics(activations)
    assert [checkpoint.dead for checkpoint in metrics.checkpoints] == [0, 1, 3]
    assert metrics.checkpoints[1].reasons == {"constant": 1}
    assert metrics.checkpoints[2].reasons == {"constant": 2, "non-finite": 1}
    assert math.isfinite(metrics.column("integration")[1])
    assert math.isnan(metrics.column("integration")[2])
    assert math.isnan(metrics.column("metastability")[2])
    assert metrics.measures["integration"].summary.count == 2
    json.dumps(metrics.to_dict(), allow_nan=False)


def test_measures_made_of_others_go_with_them():
    """Also those that are made of what went."""
    table = {key: measure for key, measure in MEASURES.items() if key != "metastability"}
    gone = {"metastability_z", "stability_index", "volatility", "stability_index_causal", "volatility_causal"}
    assert table.keys() - whole(table).keys() == gone


def test_too_few_images_are_refused(run_folder, probe_file, tmp_path):
    path = posthoc.extract(run_folder, f"npz:{probe_file}", tmp_path / "a.h5", images=60, select="epoch-000*")
    with open_activations(path) as activations:
        with pytest.raises(PosthocError, match="60 images are too few"):
            compute_metrics(activations)
        assert len(compute_metrics(activations, Protocol.named("default")).checkpoints) == 1


@pytest.mark.parametrize("changes", [{"sigma_h": 0.0}, {"w_h": 1.5}, {"window": 1}])
def test_impossible_protocols_are_refused(changes):
    with pytest.raises(UsageError):
        Protocol.named("published", **changes)


def test_the_analysis_never_imports_torch():
    code = (
        "import sys, posthoc.analysis.metrics, posthoc.cli.metrics, posthoc.cli.inspect; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_noise_is_drawn_once_for_all_runs_of_a_probe(tmp_path, monkeypatch):
    """A second run reads what the first has drawn, to the bit; whatever changes what is drawn is drawn anew."""
    kernel_folder()  # kernels are where they were
    cache = tmp_path / "cache"
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(cache))
    path = make(tmp_path / "a.h5", epochs=2)
    other = make(tmp_path / "b.h5", epochs=2, seed=1)

    def white(of=path, smooth=3, measures="metastability", **options):
        protocol = Protocol.named("published", smooth=smooth)
        with open_activations(of) as activations:
            options = {"nulls": 5, "max_nulls": 5} | options
            metrics = compute_metrics(activations, protocol, measures=measures, **options)
        return metrics.to_dict()["measures"][measures]["nulls"]["white"]["mean"]

    def files():
        return sorted(cache.glob("null-white-*.npz"))

    first = white()
    (kept,) = files()
    stamp = kept.stat().st_mtime_ns
    assert white() == first
    assert white(other) == first
    assert (kept.stat().st_mtime_ns, files()) == (stamp, [kept])
    kept.write_bytes(kept.read_bytes()[:-40])
    assert white() == first
    with np.load(kept) as pack:
        stored = {name: pack[name] for name in pack.files}
    np.savez(kept, **stored | {"metastability.values": stored["metastability.values"] + 1})
    assert white()[0] == pytest.approx(first[0] + 1)
    np.savez(kept, **stored | {"metastability.values": np.zeros(4)})
    assert white() == first
    for count, changed in enumerate((dict(smooth=5), dict(seed=1), dict(nulls=7, max_nulls=7), dict(measures="hurst"),
                                     dict(of=make(tmp_path / "c.h5", epochs=1, channels=4)),
                                     dict(of=make(tmp_path / "d.h5", epochs=1, classes=5))), 2):  # fmt: skip
        assert white(**changed) != first
        assert len(files()) == count
    monkeypatch.setenv("POSTHOC_KERNEL_CACHE", "off")
    kept.unlink()
    assert white() == first
    assert kept not in files()
