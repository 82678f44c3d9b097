"""A measure, a null, a figure and a stopping rule that a module outside the package registers appear everywhere."""

import csv
import json
import re

import numpy as np
import pytest
from recipes.commands import run, run_alone

import posthoc
from posthoc.analysis.axes.image import image_series
from posthoc.report.printing import cell

TOY = "recipes.toy_analysis"


@pytest.fixture(scope="module")
def measured(activations_file, tmp_path_factory):
    """What the commands wrote and printed of two runs, with the toys."""
    folder = tmp_path_factory.mktemp("toys")
    printed = {}
    for name, smooth, command in (("a", 5, run_alone), ("b", 1, run)):
        (folder / name).mkdir()
        words = ["--nulls", 19, "--max-nulls", 19, "--smooth", smooth, "--csv", "-o", folder / name / "metrics.json"]
        printed[name] = command(TOY, "metrics", activations_file, *words)
    return folder, printed


def test_a_toy_measure_is_in_json_terminal_and_csv(measured, activations_file):
    folder, printed = measured
    content = json.loads((folder / "a" / "metrics.json").read_text())
    result = content["measures"]["roughness"]
    with posthoc.open_activations(activations_file) as file:
        expected = [
            np.abs(np.diff(image_series(file.read("mean", e), file.labels, 5))).mean() for e in range(len(file))
        ]
    np.testing.assert_allclose(result["value"], expected, rtol=1e-12)
    assert result["title"] == "roughness Q"
    assert result["decided_by"] == "order"
    assert all(0 < p <= 1 for p in result["nulls"]["order"]["p"])
    assert all(
        low < value < high for low, value, high in zip(result["low"], result["value"], result["high"], strict=True)
    )
    assert result["summary"]["nulls"]["order"]["epochs"] == 4
    assert result["summary"]["mean"] == pytest.approx(np.mean(expected[1:]))
    assert any("Q" in line.split() for line in printed["a"].splitlines())
    assert f"{expected[2]:.4f}" in printed["a"]
    assert (
        "Q differs from that of another order" in printed["a"]
        or "Q cannot be" in printed["a"]
        or ("whether Q differs" in printed["a"])
    )
    rows = list(csv.DictReader((folder / "a" / "metrics.csv").open()))
    assert float(rows[2]["roughness"]) == result["value"][2]
    assert float(rows[2]["roughness_order_mean"]) == result["nulls"]["order"]["mean"][2]


@pytest.mark.slow
def test_a_toy_measure_is_reported_and_compared_also_where_it_is_not_known(measured):
    folder, _ = measured
    content = json.loads((folder / "a" / "metrics.json").read_text())
    value = content["measures"]["roughness"]["value"][2]
    for module in (TOY, None):  # with the toys, and without
        run(module, "report", folder / "a" / "metrics.json", "-o", folder / "page.html", "--force")
        page = (folder / "page.html").read_text()
        assert re.search('<th scope="col"><button [^>]*>Q<', page)
        assert f"<td>{cell(value)}" in page
        assert '"title": "roughness Q"' in page
        assert ">0 (untrained)<" in page
        assert f"{value:.6g}"[:7] in page
        assert ("Roughness over time" in page) == (module == TOY)
        compared = json.loads(run(module, "compare", folder, "--by", "smooth", "--json"))
        mean = compared["runs"][0]["quantities"]["roughness"]
        assert mean["value"] == content["measures"]["roughness"]["summary"]["mean"]
        assert mean["noise"] == content["measures"]["roughness"]["summary"]["nulls"]["white"]["mean"]
        assert [row["difference"] for row in compared["differences"] if row["quantity"] == "roughness"]
        header = next(csv.reader(run(module, "compare", folder, "--csv").splitlines()))
        assert {"roughness", "roughness_low", "roughness_noise"} <= set(header)
        assert "Q" in run(module, "inspect", folder / "a" / "metrics.json")


def test_a_toy_null_is_everywhere(measured):
    folder, printed = measured
    content = json.loads((folder / "a" / "metrics.json").read_text())
    assert content["nulls"]["reversed"] == {
        "words": "the same images in reverse", "short": "images reversed", "aside": None, "value": "",
    }  # fmt: skip
    drawn = content["measures"]["metastability"]["nulls"]["reversed"]
    assert drawn["draws"] == [19] * 5
    assert max(drawn["sd"]) < 1e-12  # there is one reverse only
    assert "reference: reversed" in printed["a"]
    assert "with the same images in reverse" in printed["a"]
    assert "metastability_reversed_mean" in (folder / "a" / "metrics.csv").read_text().splitlines()[0]
    run(None, "report", folder / "a" / "metrics.json", "-o", folder / "null.html", "--force")
    assert "with the same images in reverse" in (folder / "null.html").read_text()


def test_a_toy_figure_is_listed_and_saved(measured):
    folder, _ = measured
    assert "toy           Roughness over time (of one run)" in run(TOY, "report", "--list")
    run(TOY, "report", folder / "a" / "metrics.json", "--figure", "toy", "-o", folder / "toy.svg", "--force")
    assert (folder / "toy.svg").read_text().startswith("<svg")


def test_a_toy_stopping_rule_is_scored(measured):
    folder, _ = measured
    (score,) = [
        row
        for row in json.loads(run(TOY, "compare", folder, "--stopping", "--json"))["stopping"]
        if row["rule"] == "third"
    ]
    assert score["family"] == "toy"
    assert [stop["index"] for stop in score["stops"]] == [2, 2]
    assert score["saved"] == 1
    assert "third" in run(TOY, "compare", folder, "--stopping")
    assert '"third"' in run(TOY, "compare", folder, "--stopping", "--csv")
    run(TOY, "report", folder, "--figure", "stopping", "-o", folder / "stopping.svg", "--force")
    assert "toy" in (folder / "stopping.svg").read_text()
