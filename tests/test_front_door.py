"""What a user's type checker sees of posthoc."""

import copy
import dataclasses
import inspect
import json
import re
import subprocess
import sys
from html import escape
from pathlib import Path

import numpy as np
import pytest
from numpydoc.docscrape import NumpyDocString

import posthoc
from posthoc.analysis.measures.measure import Series
from posthoc.analysis.protocol import Protocol
from posthoc.analysis.responses import load_audit
from posthoc.analysis.runs import as_run, measured_of_all
from posthoc.errors import UsageError
from posthoc.replay.request import PlanOptions, Request

FIXTURES = Path(__file__).parent / "fixtures" / "v2"
SERIES = Series(np.ones((2, 20)), None)
SCRIPT = """
import posthoc

path = posthoc.extract("run", "cifar10", "a.h5", layers=["default"], channels=8, seed=1, force=True)
reveal_type(path)
with posthoc.open_activations(path) as activations:
    reveal_type(activations.recording.identity.device)
    reveal_type(activations.behaviour("loss"))
    metrics = posthoc.compute_metrics(activations)
reveal_type(metrics)
reveal_type(posthoc.load_metrics("metrics.json"))
reveal_type(posthoc.compute_metrics("activations.h5"))
reveal_type(posthoc.audit("activations.h5"))
reveal_type(posthoc.compare(["a", "b"]).rows)
reveal_type(posthoc.check("run").sound)
posthoc.extract("run", "cifar10", chanels=8)
posthoc.extract("run", "cifar10", channels="8")
posthoc.measured
"""


def test_numbers_of_numpy_are_numbers():
    asked = Request(
        "digits", seed=np.int64(3), average=[np.int32(2)], channels=np.uint8(8), settings={"lr": np.float32(0.5)}
    )
    asked.check()
    plain = Request("digits", seed=3, average=[2], channels=8, settings={"lr": 0.5})
    assert asked == plain
    assert {type(value) for value in (asked.seed, *asked.average, asked.channels)} == {int}
    assert Protocol.named("default", smooth=np.int64(3)) == Protocol.named("default", smooth=3)


@pytest.mark.slow
def test_a_users_script_has_types(tmp_path):
    """In this folder and by its settings, strict ones, for what is known of the libraries from checking the package."""
    script, package = tmp_path / "script.py", Path(posthoc.__file__).parent
    script.write_text(SCRIPT)
    assert (package / "py.typed").exists()
    command = [sys.executable, "-m", "mypy", str(script)]
    result = subprocess.run(command, cwd=package.parent, capture_output=True, text=True)
    lines = [line.partition(": ")[2] for line in result.stdout.splitlines() if script.name in line.partition(":")[0]]
    assert lines[0].endswith('"pathlib.Path"')
    assert lines[1].endswith('"str"')
    assert "ndarray" in lines[2]
    assert lines[3].endswith('"posthoc.analysis.records.RunMetrics"')
    assert lines[4].endswith('"posthoc.analysis.records.RunMetrics"')
    assert lines[5].endswith('"posthoc.analysis.records.RunMetrics"')
    assert lines[6].endswith('"posthoc.analysis.responses.Audit"')
    assert "posthoc.analysis.compare.Row" in lines[7]
    assert lines[8].endswith('"bool"')
    assert 'Unexpected keyword argument "chanels" for "extract"' in lines[9]
    assert '"channels" to "extract" has incompatible type "str"' in lines[-2]
    assert 'no attribute "measured"' in lines[-1]


def test_every_name_that_is_promised_is_there():
    for name in posthoc.__all__:
        assert getattr(posthoc, name) is not None


def test_the_options_of_extract_are_those_of_a_request():
    assert [field.name for field in dataclasses.fields(Request)] == ["probe", *PlanOptions.__annotations__]


def test_what_a_notebook_offers_and_says_of_a_misspelt_name():
    assert set(dir(posthoc)) == set(posthoc.__all__)
    with pytest.raises(AttributeError, match=re.escape("no attribute 'extrct'; did you mean extract?")):
        posthoc.extrct  # noqa: B018
    assert posthoc.list_measures().keys() >= {"hurst", "integration", "metastability"}
    assert posthoc.list_nulls()["order"] == "another order of the same images"


@pytest.fixture(scope="module")
def metrics():
    return posthoc.load_metrics(FIXTURES / "metrics.json")


def test_a_file_is_measured_by_its_path_as_by_itself():
    assert inspect.signature(posthoc.compute_metrics).parameters["nulls"].default == 99
    place = FIXTURES / "activations.h5"
    by_path = posthoc.compute_metrics(str(place), nulls=0, measures=["metastability"])
    with posthoc.open_activations(place) as file:
        by_itself = posthoc.compute_metrics(file, nulls=0, measures=["metastability"])
        assert len(file) == 12  # it is open still
    np.testing.assert_array_equal(by_path.column("metastability"), by_itself.column("metastability"))
    with pytest.raises(posthoc.PosthocError, match=re.escape("nowhere.h5")):
        posthoc.compute_metrics("nowhere.h5")


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: posthoc.compute_metrics("a.h5", nulls="white"), "nulls is 'white'; give a whole number from 0 up"),
        (lambda: posthoc.compute_metrics("a.h5", seed=1.5), "seed is 1.5; give a whole number"),
        (lambda: posthoc.compute_metrics("a.h5", protocol="default"), "protocol is 'default'; give a posthoc.Protocol"),
        (lambda: posthoc.compute_metrics("a.h5", measures=3), "measures is 3; give names of measures"),
        (lambda: posthoc.compute_metrics(3), "activations is 3; give the path"),
        (lambda: posthoc.audit("a.h5", draws="many"), "draws is 'many'; give a whole number"),
        (lambda: posthoc.compare({}), "There are no runs to compare; give what compute_metrics returned"),
        (lambda: posthoc.compare({"a": 3}), "A run is 3; give what compute_metrics"),
        (lambda: posthoc.compare("a.json", by=[1]), "by is 1; give names of fields"),
        (lambda: posthoc.compare([1]), "runs is 1; give a path"),
        (lambda: posthoc.Protocol.named(smooth="3"), "smooth is '3'; give a whole number."),
        (lambda: posthoc.Protocol.named(calibrate=1), "calibrate is 1; give True or False."),
        (lambda: posthoc.Protocol.named(smoth=3), r"A protocol has no setting 'smoth'; did you mean smooth\?"),
        (lambda: posthoc.Protocol.named(axis="depth", smooth=5), "on the depth axis nothing is smoothed"),
        (lambda: posthoc.Protocol.named(span=20), "span is 20, and only the epoch axis has windows"),
        (lambda: posthoc.Protocol.named(estimator="reml"), "smoothed series are not; give --smooth 1"),
        (lambda: posthoc.Protocol.named(estimator="rs"), "estimator is 'rs'; give dfa, whittle, reml."),
        (lambda: posthoc.compute_metrics("a.h5", posthoc.Protocol(axis="q")), "axis is 'q'; give image, depth"),
        (lambda: posthoc.compute_metrics("a.h5", posthoc.Protocol(window=0)), "window 2 or more"),
        (lambda: posthoc.compute_metrics("a.h5", posthoc.Protocol(scales="q")), "scales is 'q'; give published"),
        (lambda: posthoc.audit("a.h5", posthoc.Protocol(axis="token")), "on the token axis nothing is smoothed"),
        (lambda: posthoc.measure(np.mean, limits=3), "limits is 3; give the lowest and the highest value"),
        (lambda: posthoc.measure(np.mean, limits=(1, 0)), r"limits is \(1, 0\); give the lowest"),
        (lambda: posthoc.measure(np.mean, margin="q"), "margin is 'q'; give a number above 0"),
        (lambda: posthoc.measure(np.mean, digits=-1), "digits is -1; give a whole number from 0 up"),
        (lambda: posthoc.measure(np.mean, digits=2.5), "digits is 2.5; give a whole number"),
        (
            lambda: posthoc.measure(lambda x: 10**400, name="big").of_series(SERIES),
            "big gives a whole number that is too",
        ),
        (lambda: posthoc.measure(lambda x: np.array(None), name="o").of_series(SERIES), "o gives an array of object;"),
        (lambda: posthoc.check([]), "checkpoints is empty; give a path"),
        (lambda: posthoc.check(3), "checkpoints is 3; give a path"),
        (lambda: posthoc.load_metrics(3), "3 is no path"),
        (lambda: posthoc.open_activations(None), "None is no path"),
        (lambda: posthoc.extract(3, "digits", "a.h5"), "checkpoints is 3; give the path"),
        (
            lambda: posthoc.extract("run", "digits", "a.h5", layers="all"),
            r"layers is 'all'; give a list, such as \['all'\]",
        ),
        (lambda: posthoc.extract("run", "digits", "a.h5", images="x"), "images is 'x'; give a whole number or None"),
        (lambda: posthoc.extract("run", "digits", "a.h5", settings=3), "settings is 3; give a list or a dictionary"),
        (lambda: posthoc.extract("run", "digits", "a.h5", imags=3), "There is no option 'imags'; did you mean images"),
    ],
)
def test_what_is_of_a_wrong_type_is_said_in_a_sentence(call, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=sentence):
        call()


def test_a_file_whose_protocol_would_be_refused_today_is_read(tmp_path):
    content = json.loads((FIXTURES / "metrics.json").read_text())
    content["protocol"] |= {"axis": "depth", "smooth": 9, "span": 3}
    (tmp_path / "metrics.json").write_text(json.dumps(content))
    assert posthoc.load_metrics(tmp_path / "metrics.json").protocol.smooth == 9


def test_an_attribute_that_is_not_there_raises_with_the_nearest(metrics):
    with pytest.raises(AttributeError, match=r"no attribute 'integraton'; did you mean column\('integration'\)"):
        metrics.integraton  # noqa: B018
    with pytest.raises(AttributeError, match="no attribute 'recordng'; did you mean recording"):
        metrics.recordng  # noqa: B018
    assert not hasattr(metrics, "_ipython_display_")
    assert copy.deepcopy(metrics).when == metrics.when


def test_names_that_are_not_there_raise_with_the_nearest(metrics):
    with pytest.raises(posthoc.PosthocError, match=re.escape("no measure 'H_ef' here; did you mean integration?")):
        metrics.column("H_ef")
    with pytest.raises(posthoc.PosthocError, match="did you mean metastability"):
        metrics.null("white", "metastabilty")
    with pytest.raises(posthoc.PosthocError, match=re.escape("no null 'orders' here; did you mean order?")):
        metrics.null("orders", "hurst")
    with pytest.raises(posthoc.PosthocError, match=re.escape("no number 'median' of a null; did you mean mean?")):
        metrics.null("order", "hurst", "median")
    assert np.isnan(metrics.null("channel", "hurst")).all()  # which is not drawn for it


def test_a_measure_is_asked_for_by_its_symbol_too(metrics):
    assert metrics.column("H_eff") is metrics.column("integration")
    assert metrics.column("m") is metrics.column("metastability")
    assert metrics.column("loss") is metrics.measures["loss"].value  # a name before another's symbol
    np.testing.assert_array_equal(metrics.null("white", "M", "p"), metrics.null("white", "metastability", "p"))
    run = as_run(metrics, "mine")
    assert measured_of_all([run], "Psi, H_eff,integration,M", "--measures") == [
        "stability_index",
        "integration",
        "metastability",
    ]


def test_a_run_as_a_table_and_as_a_data_set(metrics, tmp_path):
    table = metrics.to_pandas()
    assert table.index.name == "epoch"
    assert list(table.index) == list(range(12))
    np.testing.assert_array_equal(table["integration"], metrics.column("integration"))
    np.testing.assert_array_equal(table["metastability_order_p"], metrics.null("order", "metastability", "p"))
    assert len(set(table.columns)) == len(table.columns)
    data = metrics.to_xarray()
    assert data.sizes == {"epoch": 12, "layer": len(metrics.layers)}
    np.testing.assert_array_equal(data.integration.sel(epoch=5), metrics.column("integration")[5])
    np.testing.assert_array_equal(data.effective_rank_by_layer, metrics.representation.effective_rank)
    data.to_netcdf(tmp_path / "metrics.nc", engine="h5netcdf")


def test_what_a_notebook_shows_of_runs(metrics):
    assert len(repr(metrics)) < 200
    assert repr(metrics).startswith("<RunMetrics: 12 checkpoints, epoch 0 to 11, image axis: hurst, integration, ")
    page = metrics._repr_html_()
    assert page.count("<tr>") == 13
    assert "<p>Accuracy 0.9034 at best, at epoch 10;" in page
    both = posthoc.compare({"a": metrics, "<b>": metrics})
    assert repr(both).startswith("<Comparison: 2 runs; best accuracy 0.9034")
    assert "&lt;b&gt;" in both._repr_html_()
    assert "<b>" not in both._repr_html_()
    hidden = posthoc.compare({"a": metrics, "b\u202e": metrics})._repr_html_()
    assert r"b\u202e" in hidden
    assert "\u202e" not in hidden
    audited = load_audit(FIXTURES / "audit.json")
    assert repr(audited) == "<Audit: H_eff, M of 13 controls, 200 images>"
    assert f"<p>{escape(audited.conclusions[0])}</p>" in audited._repr_html_()
    table = both.to_pandas()
    assert list(table.index) == ["a", "<b>"]
    assert table.loc["a", "integration_low"] < table.loc["a", "integration"]
    assert posthoc.compare(FIXTURES / "metrics.json").rows[0].run.measures.keys() == metrics.measures.keys()


REFERENCE = (Path(__file__).parents[1] / "docs/reference/python.md").read_text()
FUNCTIONS = [name for name in posthoc.__all__ if inspect.isfunction(getattr(posthoc, name))]
METHODS = [
    f"{name}.{method}"
    for name, methods in re.findall(r"autoclass:: (\w+)\n +:members: (.+)", REFERENCE)
    for method in methods.split(", ")
]


@pytest.mark.parametrize("name", FUNCTIONS + METHODS)
def test_what_is_public_documents_each_parameter_and_what_it_returns(name):
    holder, _, method = name.partition(".")
    function = getattr(getattr(posthoc, holder), method) if method else getattr(posthoc, holder)
    document, signature = NumpyDocString(inspect.getdoc(function)), inspect.signature(function)
    takes = [str(each).split(":")[0] for each in signature.parameters.values() if each.name != "self"]
    assert [part for given in document["Parameters"] for part in given.name.split(", ")] == [
        take.split("=")[0].strip() for take in takes
    ]
    assert bool(document["Returns"]) == (signature.return_annotation not in (None, "None"))
    assert document["Raises"] or method.startswith(("to_", "save")) or not takes
