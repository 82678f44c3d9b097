"""Tables fit a terminal and are whole elsewhere, as CSV have unique names, and every command with one prints it as JSON."""

import csv
import dataclasses
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import noise
import numpy as np
import pytest
import torch
from click.testing import CliRunner

import posthoc
from posthoc.analysis.records import load_metrics
from posthoc.cli import main
from posthoc.errors import UsageError
from posthoc.report import tables
from posthoc.report.answers import happened
from posthoc.report.printing import Column, Table, as_csv, as_text, column

FIXTURES = Path(__file__).parents[1] / "fixtures" / "v2"


def run(*words):
    done = CliRunner().invoke(main, list(map(str, words)))
    assert done.exit_code == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def metrics():
    return load_metrics(FIXTURES / "metrics.json")


def test_the_least_important_columns_go_first(metrics):
    table = tables.checkpoints(metrics)
    whole, gone = table.fitting(1000)
    assert (whole.columns, gone) == (table.columns, [])
    narrow, gone = table.fitting(60)
    names = [column.names[0] for column in narrow.columns]
    assert {"epoch", "integration", "metastability", "accuracy"} <= set(names)
    assert "integration_order_mean" not in names
    assert [len(row) for row in narrow.rows] == [len(names)] * len(table.rows)
    assert {column.names[0] for column in gone} | set(names) == {column.names[0] for column in table.columns}
    least, _ = table.fitting(1)
    assert all(column.spare == 0 for column in least.columns)


def test_of_early_files_the_loss_is_best_where_it_is_least(metrics):
    loss = metrics.measures["loss"]
    assert loss.lower_is_better
    assert not metrics.measures["accuracy"].lower_is_better
    text = " ".join(happened(metrics))
    assert f"it is least at epoch {metrics.when[int(np.nanargmin(loss.value))]}" in text


def test_each_way_in_which_volatility_settles_is_a_measure_of_its_own(tmp_path):
    path = noise.make(tmp_path / "activations.h5", epochs=8)
    for name, other in (("volatility", "volatility_causal"), ("volatility_causal", "volatility")):
        run("metrics", path, "--measures", name, "--nulls", 0, "--force")
        known = load_metrics(tmp_path / "metrics.json")
        assert name in known.measures
        assert other not in known.measures
        assert "settled" in dict(tables.summary(known))


def test_layers_may_be_called_as_columns_are(metrics):
    named = dataclasses.replace(metrics, layers=("low", "high", "layer_low", *metrics.layers[3:]))
    columns, hurst = named.flat(), metrics.measures["hurst"]
    np.testing.assert_array_equal(columns["hurst_low"], hurst.low)
    np.testing.assert_allclose(columns["hurst_layer_low"], hurst.by_layer[:, 0], atol=1e-5)
    np.testing.assert_allclose(columns["hurst_layer_layer_low"], hurst.by_layer[:, 2], atol=1e-5)


def test_a_terminal_shows_what_fits_and_says_what_does_not():
    code = (
        "import os, pty, sys\n"
        "os.environ['COLUMNS'] = '70'\n"
        f"pty.spawn([sys.executable, '-m', 'posthoc', 'inspect', {str(FIXTURES / 'metrics.json')!r}])"
    )
    done = subprocess.run([sys.executable, "-c", code], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    lines = re.sub(r"\x1b\[\d*m", "", done.stdout).splitlines()
    header = next(line for line in lines if line.startswith("epoch ") and "H_eff" in line)
    assert len(header.rstrip()) <= 70
    (note,) = (line for line in lines if line.startswith("not shown for want of room: "))
    assert "integration_order_mean" in note
    assert note.endswith("--columns all shows them")


def test_in_a_pipe_all_columns_are_there_or_those_that_are_named():
    whole = run("inspect", FIXTURES / "metrics.json").stdout
    assert "not shown" not in whole
    (header,) = (line for line in whole.splitlines() if line.startswith("epoch ") and "dead" in line)
    assert "volatility" in header
    some = run("inspect", FIXTURES / "metrics.json", "--columns", "metastability, Psi").stdout
    assert any(line.split() == ["epoch", "M", "Psi"] for line in some.splitlines())
    wrong = CliRunner().invoke(main, ["inspect", str(FIXTURES / "metrics.json"), "--columns", "metastable"])
    assert (wrong.exit_code, "did you mean metastability" in wrong.stderr) == (2, True)


def test_a_column_that_is_not_there_stops_no_measuring(tmp_path):
    files = []
    for name in ("a", "b"):
        files.append(tmp_path / name / "activations.h5")
        files[-1].parent.mkdir()
        files[-1].write_bytes((FIXTURES / "activations.h5").read_bytes())
    words = ["metrics", *files, "--nulls", 0, "--measures", "M", "--columns", "metastable"]
    wrong = CliRunner().invoke(main, list(map(str, words)))
    assert (wrong.exit_code, wrong.stderr.count("did you mean metastability")) == (3, 2)
    for file in files:
        assert "metastability" in load_metrics(file.with_name("metrics.json")).measures


def test_names_in_csv_are_unique_and_no_zero_is_below_zero(metrics, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.json").write_bytes((FIXTURES / "metrics.json").read_bytes())
    printed = run("compare", tmp_path, "--csv", "--stopping", "--sensitivity", "--by", "model").stdout
    blocks = printed.split("\n\n")
    assert len(blocks) == 4  # one group has nothing to differ from
    for block in [*blocks, as_csv(tables.checkpoints(metrics))]:
        header, *rows = csv.reader(io.StringIO(block))
        assert len(set(header)) == len(header)
        assert all(len(row) == len(header) for row in rows)
        assert not [value for row in rows for value in row if re.fullmatch(r"-0\.0*|.*\d\.\.\d.*", value)]
    table = Table("", [column("a"), Column("b", ("low", "high"))], [[-0.0, (-1e-9, 0.25)]])
    assert as_csv(table) == '"a","low","high"\n0.0,-1e-09,0.25\n'
    assert as_text((-1e-9, 0.25)) == "0.0000..0.2500"


def tiny(series):
    return float(np.var(series)) * 1e-5


def test_a_small_number_lies_within_its_interval_as_printed(tmp_path):
    path = noise.make(tmp_path / "a.h5", layers=2, channels=4, images=80, epochs=13)
    with posthoc.open_activations(path) as activations:
        posthoc.compute_metrics(activations, nulls=5, measures=[posthoc.measure(tiny)]).save(tmp_path / "metrics.json")
    of = json.loads((tmp_path / "metrics.json").read_text())["measures"]["tiny"]["summary"]
    printed = run("compare", tmp_path / "metrics.json", "--columns", "tiny,tiny_low").stdout
    value, low, high = map(float, re.search(r"(\S+e-0\d)\s+(\S+)\.\.(\S+)", printed).groups())
    assert low <= value <= high
    assert (value, low, high) == pytest.approx((of["mean"], of["low"], of["high"]), rel=0.05)


def test_a_column_is_chosen_by_title_or_name():
    table = Table("", [column("run"), Column("95 %", ("low", "high")), column("x")], [["r", (0.1, 0.2), 1.0]])
    assert table.selected("high").rows == [["r", (0.1, 0.2)]]
    assert [column.title for column in table.selected("x,95 %").columns] == ["run", "x", "95 %"]
    with pytest.raises(UsageError, match="there are low, x"):
        table.selected("nothing of it")


def test_where_outputs_go_and_that_json_is_what_the_file_holds(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("activations.h5", "other.h5"):
        Path(name).write_bytes((FIXTURES / "activations.h5").read_bytes())
    done = run("metrics", "other.h5", "--nulls", "0", "--measures", "metastability", "--json")
    content = json.loads(done.stdout)
    assert content == json.loads(Path("other.metrics.json").read_text())
    assert content["format"] == "posthoc-metrics"
    assert "measuring" in done.stderr
    Path("metrics.json").write_text("something of the user's")
    refused = CliRunner().invoke(main, ["metrics", "activations.h5"])
    assert refused.stderr == "posthoc: metrics.json exists already; pass --force to replace it.\n"
    said = run("metrics", "other.h5", "--nulls", "0", "--measures", "metastability", "--force").stdout.splitlines()
    assert said[:3] == [
        "Accuracy 0.9034 at best, at epoch 10; nothing went wrong that the checkpoints show.",
        "Measures of all channels may jump at epoch 2, where many of these fall away or come back: from 12 to 16 of 16 are measured.",
        "",
    ]


def test_a_run_of_one_checkpoint_says_so_and_all_measures_say_where_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    noise.make(Path("activations.h5"), epochs=1)
    said = run("metrics", "activations.h5", "--nulls", "0", "--measures", "all")
    assert said.stdout.startswith("The only checkpoint is epoch 0; nothing went wrong that the checkpoints show.\n")
    also = next(line for line in said.stderr.splitlines() if line.startswith("also in metrics.json"))
    assert "twonn" in also
    assert "hurst" not in also


def test_inspect_and_a_plan_as_json(run_folder, probe_file):
    content = json.loads(run("inspect", run_folder, "--json").stdout)
    assert content["kind"] == "checkpoints"
    assert content["about"]["model"] == ["shufflenet_v2_x0_5 (from run.json)"]
    assert content["checkpoints"][2] == {
        "file": "epoch-002.safetensors",
        "epoch": 2,
        "step": 14,
        "val_acc": pytest.approx(0.3),
    }
    activations = json.loads(run("inspect", FIXTURES / "activations.h5", "--json").stdout)
    assert activations["kind"] == "activations"
    assert activations["checkpoints"][-1]["epoch"] == 11
    audited = json.loads(run("inspect", FIXTURES / "audit.json", "--json").stdout)
    assert audited["format"] == "posthoc-audit"
    plan = run("extract", run_folder, "--probe", f"npz:{probe_file}", "--dry-run", "--json").stdout
    assert json.loads(plan)["kind"] == "extraction"
    assert len(json.loads(plan)["checkpoints"]) == 5


def test_what_is_not_finite_is_null_in_json(tmp_path):
    for epoch, loss in enumerate((1.5, float("inf"), float("nan"))):
        torch.save(
            {"state_dict": torch.nn.Linear(2, 2).state_dict(), "epoch": epoch, "loss": loss}, tmp_path / f"{epoch}.pt"
        )
    printed = run("inspect", tmp_path, "--json").stdout
    rows = json.loads(printed, parse_constant=pytest.fail)["checkpoints"]
    assert [row["loss"] for row in rows] == [1.5, None, None]
