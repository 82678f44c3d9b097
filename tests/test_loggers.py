"""The scripts of docs/loggers.md, as they stand there, into MLflow's store and in the Trainer of transformers."""

import re
import runpy
from pathlib import Path

import numpy as np
import pytest

import posthoc

ROOT = Path(__file__).parents[1]
METRICS = ROOT / "tests" / "fixtures" / "v2" / "metrics.json"
pytestmark = pytest.mark.slow


def script(name, folder):
    """A file of the page, written into a folder."""
    text = (ROOT / "docs" / "loggers.md").read_text()
    content = re.search(rf"`{re.escape(name)}`.*?```python\n(.*?)```", text, re.DOTALL)[1]
    (folder / name).write_text(content)
    return folder / name


def test_mlflow_has_every_measure_at_its_epoch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    (tmp_path / "metrics.json").write_bytes(METRICS.read_bytes())
    runpy.run_path(str(script("log_mlflow.py", tmp_path)))
    import mlflow

    client, metrics = mlflow.MlflowClient(), posthoc.load_metrics(METRICS)
    (run,) = client.search_runs([client.get_experiment_by_name("Default").experiment_id])
    for name in ("integration", "metastability", "accuracy", "integration_order_p"):
        history = {point.step: point.value for point in client.get_metric_history(run.info.run_id, name)}
        column = metrics.to_pandas()[name].dropna()
        assert history == dict(zip(map(int, column.index), column, strict=True))


def test_the_trainers_callback_measures_what_it_saved(tmp_path):
    import torch
    import transformers

    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 160)
    images = (random.integers(0, 128, (160, 3, 32, 32)) + 127 * labels[:, None, None, None]).astype("float32") / 255
    np.savez(tmp_path / "probe.npz", images=images, labels=labels)
    data = [{"pixel_values": torch.from_numpy(x), "labels": int(y)} for x, y in zip(images, labels, strict=True)]
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    network = transformers.ViTForImageClassification(
        transformers.ViTConfig(**sizes, image_size=32, patch_size=8, num_labels=2, initializer_range=0.3)
    )
    arguments = transformers.TrainingArguments(
        str(tmp_path / "run"), per_device_train_batch_size=16, max_steps=12, save_steps=3, learning_rate=3e-3,
        report_to=[], use_cpu=True, disable_tqdm=True, seed=0,
    )  # fmt: skip
    callback = runpy.run_path(str(script("callback.py", tmp_path)))["Posthoc"](f"npz:{tmp_path / 'probe.npz'}")
    transformers.Trainer(network, arguments, train_dataset=data, callbacks=[callback]).train()
    metrics = posthoc.load_metrics(tmp_path / "run.metrics.json")
    assert metrics.to_pandas().index.tolist() == [3, 6, 9, 12]
    assert np.isfinite(metrics.column("metastability")).all()
    assert repr(metrics) == repr(callback.metrics)
