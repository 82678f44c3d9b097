"""Which measures are computed: by default, all, or those that are named, and nothing of the others anywhere."""

import csv
import json
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from noise import make

import posthoc
from posthoc.analysis.compare import tabulate
from posthoc.analysis.measures import MEASURES, Measure, chosen
from posthoc.analysis.measures.integration import integration
from posthoc.analysis.runs import as_run
from posthoc.analysis.stopping import RULES
from posthoc.cli import main
from posthoc.errors import UsageError
from posthoc.report import tables, tables_of_runs
from posthoc.report.figures import FIGURES, Of
from posthoc.report.page import page
from posthoc.report.sources import Source


@pytest.fixture(scope="module")
def noise_file(tmp_path_factory):
    """Pure noise over 24 checkpoints; do not write to it."""
    return make(tmp_path_factory.mktemp("noise") / "activations.h5")


def measured(path, **options):
    with posthoc.open_activations(path) as activations:
        return posthoc.compute_metrics(activations, nulls=19, max_nulls=19, **options)


@pytest.fixture(scope="module")
def everything(noise_file):
    return measured(noise_file)


def same(first, second):
    """Whether two measures have the same numbers to the bit, by checkpoint, layer and null."""
    columns = ("value", "low", "high", "by_layer")
    for name in columns:
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    assert first.nulls.keys() == second.nulls.keys()
    for null, beside in first.nulls.items():
        for name, values in vars(beside).items():
            np.testing.assert_array_equal(values, getattr(second.nulls[null], name))


def test_what_a_measure_is_made_of_is_measured_too():
    assert list(chosen("volatility")) == ["hurst", "integration", "metastability", "stability_index", "volatility"]
    assert list(chosen("integration_z, metastability")) == ["hurst", "integration", "metastability", "integration_z"]
    assert list(chosen(["synchrony"])) == ["synchrony"]


def test_what_is_not_measured_by_default_is_where_all_are(monkeypatch):
    rare = Measure("rare", "R", "rare", "rarely asked for", of_series=lambda series: 1.0, default=False)
    monkeypatch.setitem(MEASURES, "rare", rare)
    assert list(chosen()) == [key for key, measure in MEASURES.items() if measure.default]
    assert "rare" not in chosen()
    assert list(chosen("all")) == list(MEASURES)
    assert set(chosen("default,rare")) == {*chosen(), "rare"}


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("integraton", "did you mean integration"),
        ("H_ef", "did you mean integration"),
        ("mm", "did you mean metastability"),
        ("zzz", "there are default, all, hurst, integration"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(name, advice):
    with pytest.raises(UsageError, match=rf"There is no measure '{name}'; {advice}"):
        chosen(f"hurst,{name}")


def test_a_symbol_is_a_name():
    assert list(chosen("H_eff,m")) == ["hurst", "integration", "metastability"]
    assert list(chosen(["Psi", "loss"])) == list(chosen("stability_index,loss"))
    assert chosen("EL2N")["difficulty"].listed  # as where it is named
    of_yours = Measure("mine", "M", "mine", "", of_series=lambda series: 1.0)
    assert list(chosen(["M", of_yours])) == ["metastability", "mine"]


def test_what_is_chosen_has_the_numbers_that_it_has_among_all(noise_file, everything):
    few = measured(noise_file, measures=["metastability"])
    assert set(few.measures) == {"metastability", "accuracy", "loss"}
    same(few.measures["metastability"], everything.measures["metastability"])
    assert few.summary.correlations == {}
    assert few.summary.settling == {}
    several = measured(noise_file, measures="stability_index")
    for key in ("hurst", "integration", "metastability", "stability_index"):
        same(several.measures[key], everything.measures[key])
    assert "synchrony" not in several.measures


def test_what_is_not_measured_is_in_no_output(noise_file, tmp_path):
    few = measured(noise_file, measures="metastability")
    few.save(tmp_path / "metrics.json")
    few = posthoc.load_metrics(tmp_path / "metrics.json")
    assert [column.title for column in tables.checkpoints(few).columns] == [
        "epoch", "M", "order", "p", "accuracy", "dead",
    ]  # fmt: skip
    labels = [label for label, _ in tables.summary(few)]
    assert {"M", "null: order"} < set(labels)
    assert not {"H_eff", "Psi", "r(Hz, Mz)", "settled", "volatility"} & set(labels)
    few.save_csv(tmp_path / "metrics.csv")
    header = next(csv.reader((tmp_path / "metrics.csv").open()))
    assert not [name for name in header if re.match("hurst|integration|stability|volatility|synchrony", name)]
    html = page([Source("few", "metrics.json", few)])
    assert "r(Psi" not in html
    assert not re.search('<th scope="col"><button [^>]*>H', html)
    assert '"title": "metastability M"' in html


def test_runs_without_integration_are_compared_by_what_they_have(noise_file, everything):
    runs = [as_run(measured(noise_file, measures="metastability"), "few"), as_run(everything, "all")]
    few, whole = tabulate(runs)
    assert set(few.quantities) == {"best_accuracy", "metastability"}
    assert few.quantities["metastability"] == whole.quantities["metastability"]
    assert str(few.state.name) == "indeterminate"
    assert few.state.reason.startswith("it was measured without Hurst exponent H, integration H_eff")
    table = tables_of_runs.runs([few, whole])
    place = [column.title for column in table.columns].index("H_eff")
    assert np.isnan(table.rows[0][place])
    rules = {rule.family for rule in RULES.values() if rule.fits(runs)}
    assert rules == {"patience", "fixed budget", "reference"}


def test_integration_alone_has_its_figures(noise_file):
    few = measured(noise_file, measures="integration")
    assert [name for name, kind in FIGURES.items() if kind.of is Of.RUN and (not kind.fits or kind.fits(few))] == [
        "training", "measures", "layers", "geometry", "locking", "similarity", "fluctuation",
    ]  # fmt: skip
    np.testing.assert_allclose(few.column("integration"), integration(few.column("hurst")), rtol=1e-12)
    with pytest.raises(posthoc.PosthocError, match="no measure 'metastability'"):
        few.chart("trajectory")


def test_progress_is_that_of_all_that_is_measured_of_a_checkpoint(noise_file):
    seen = []
    with posthoc.open_activations(noise_file) as file:
        names = file.checkpoints
        posthoc.compute_metrics(
            file, nulls=0, measures="synchrony,effective_rank", progress=lambda *row: seen.append(row)
        )
    assert seen == [(e + 1, len(names), name) for e, name in enumerate(names)]


def test_the_command_says_what_could_not_be_measured(noise_file, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "posthoc", "metrics", noise_file, "-o", tmp_path / "metrics.json", "--nulls", "0",
         "--measures", "synchrony,H_s,NC1"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 3
    assert f"not measured, for {noise_file} lacks what they take: nc1, surprisal" in done.stderr
    assert set(json.loads((tmp_path / "metrics.json").read_text())["measures"]) == {
        "synchrony",
        "nc1",
        "accuracy",
        "loss",
    }
    output = tmp_path / "none.json"
    none = CliRunner().invoke(
        main, ["metrics", str(noise_file), "-o", str(output), "--nulls", "0", "--measures", "nc1"]
    )
    assert (none.exit_code, "Nothing is measured or written" in none.stderr, output.exists()) == (1, True, False)


def test_a_file_without_what_a_function_is_of_is_damaged(everything, tmp_path):
    kept = {key: of for key, of in everything.measures.items() if key != "hurst"}
    replace(everything, measures=kept).save(tmp_path / "metrics.json")
    with pytest.raises(posthoc.PosthocError, match="it lacks hurst"):
        posthoc.load_metrics(tmp_path / "metrics.json")
