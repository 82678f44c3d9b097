"""The types of records are the schema of what is read into them."""

import json
import math
import random
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import pytest

from posthoc.analysis.audit import audit
from posthoc.analysis.metrics import compute_metrics
from posthoc.analysis.records import RunMetrics, load_metrics
from posthoc.analysis.responses import Audit, load_audit
from posthoc.analysis.runs import as_run
from posthoc.errors import PosthocError
from posthoc.recording import Recording
from posthoc.store import open_activations
from posthoc.typed import MisfitError, Range, Shape, typed, undeclared

V1, V2 = (Path(__file__).parent / "fixtures" / version for version in ("v1", "v2"))


class Inner(TypedDict):
    names: Annotated[list[str], Shape(("L",))]
    table: Annotated[list[list[float | None]], Shape(("E", "L"))]
    note: NotRequired[str | None]


class Light(StrEnum):
    RED = "red"
    GREEN = "green"


@dataclass(frozen=True)
class Outer:
    when: Annotated[tuple[int, ...], Shape(("E",), least=1)]
    inner: Annotated[dict[str, Any], Inner]
    pair: tuple[float, float]
    kind: Literal["a", "b"] = "a"
    share: Annotated[float, Range(0, 1)] = math.nan
    flags: dict[str, bool] = field(default_factory=dict)
    light: Light = Light.RED
    anything: Any = None


SOUND = {
    "when": [3, 5],
    "inner": {"names": ["x"], "table": [[0.5], [None]], "more": 1},
    "pair": [1, None],
    "new": "of a later version",
}


def test_what_fits_becomes_the_record():
    record = typed(Outer, SOUND)
    assert record.when == (3, 5)
    assert record.inner == SOUND["inner"]
    assert record.pair[0] == 1.0
    assert math.isnan(record.pair[1])
    assert math.isnan(record.share)
    assert record.light is Light.RED
    assert typed(Outer, SOUND | {"light": "red"}).light is Light.RED
    assert typed(Outer, SOUND | {"light": "green"}).light is Light.GREEN
    assert undeclared(Outer, SOUND) == ["new", "inner.more"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"when": []}, "when has 0 values, not 1 or more"),
        ({"when": [1, 2.0]}, "when[1] is 2.0, not a whole number"),
        ({"when": [1, True]}, "when[1] is True, not a whole number"),
        ({"when": [1, 2**63]}, "when[1] is 9223372036854775808, not a whole number"),
        ({"when": [1]}, "inner.table has 2 values where 1 belong"),
        ({"inner": {"names": ["x", "y"], "table": [[1.0], [2.0]]}}, "inner.table has 1 value where 2 belong"),
        ({"inner": {"names": "x", "table": []}}, "inner.names is 'x', not a list"),
        ({"inner": {"names": []}}, "inner lacks table"),
        ({"inner": []}, "inner is a list of 0, not an object"),
        ({"pair": [1]}, "pair has 1 value, not 2"),
        ({"pair": [1, 10**400]}, "pair[1] is 1000"),
        ({"kind": "c"}, "kind is 'c', not a or b"),
        ({"share": 2}, "share is 2.0, not within 0 to 1"),
        ({"flags": {"yes": 1}}, "flags.yes is 1, not true or false"),
        ({"light": "blue"}, "light is 'blue', not red or green"),
        ({"light": 1}, "light is 1, not red or green"),
        ({"anything": json.loads("[" * 100 + "]" * 100)}, "anything is nested deeper than 64 levels"),
    ],
)
def test_what_does_not_fit_is_said_with_its_place(change, says):
    with pytest.raises(MisfitError) as error:
        typed(Outer, SOUND | change)
    assert str(error.value).startswith(says)


def test_no_key_that_is_written_is_unknown_to_those_who_read(activations_file, tmp_path):
    """Whoever adds one declares it, in `recording` or `analysis/records`; what is not declared is not checked."""
    for folder in (V1, tmp_path):
        if folder != V1:
            with open_activations(activations_file) as file:
                assert undeclared(Recording, file.recording.to_dict()) == []
                compute_metrics(file, nulls=3).save(folder / "metrics.json")
                audit(file, count=3).save(folder / "audit.json")
        if folder != V1:
            assert undeclared(RunMetrics, json.loads((folder / "metrics.json").read_text())) == HEADER
            assert undeclared(Audit, json.loads((folder / "audit.json").read_text())) == HEADER[:2]
        load_metrics(folder / "metrics.json")
        load_audit(folder / "audit.json")


HEADER = ["format", "format_version", "created_by"]


def spoilt(name, *path, value):
    content = json.loads((V2 / name).read_text())
    place = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return content


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("measures", "hurst", "value", 3), "x", "measures.hurst.value has values that are no numbers"),
        (("checkpoints", 0, "epoch"), 2**70, "checkpoints[0].epoch is 1180591620717411303424, not a whole number"),
        (("measures", "hurst", "nulls", "white"), 1, "measures.hurst.nulls.white is 1, not an object"),
        (
            ("measures", "hurst", "nulls", "white", "draws", 2),
            None,
            "measures.hurst.nulls.white.draws has values that are no",
        ),
        (("measures", "hurst", "by_unit", 2), [1.0], "measures.hurst.by_unit has 1 value where 16 belong"),
        (("measures", "hurst", "by_unit", 2), [], "measures.hurst.by_unit has rows of different lengths"),
        (("checkpoints",), [], "checkpoints has 0 values"),
        (("summary",), {}, "summary lacks "),
        (("measures",), {}, "it lacks accuracy"),
        (("summary", "correlations"), {}, "it lacks integration_metastability, stability_index_accuracy"),
        (("axis", "decides"), "sideways", "it names the null 'sideways' and says nothing of it"),
        (("measures", "hurst", "decided_by"), "sideways", "it names the null 'sideways' and says nothing of it"),
        (("nulls",), {}, "it names the null 'channel' and says nothing of it"),
        (("summary", "settling"), {"white noise": {}}, "it lacks causal, retrospective"),
        (("measures", "hurst", "high"), [], "intervals of 'hurst' have one end only"),
        (("checkpoints", 2, "epoch"), None, "it counts its checkpoints by epoch, which one of them does not have"),
        (("summary", "best_epoch"), 99, "its best epoch 99 is that of no checkpoint"),
        (
            ("health",),
            [{"kind": "a spike of the loss", "began": 12, "checkpoints": 1, "layer": None, "value": 1.0, "usual": 0.1}],
            "it speaks of a checkpoint at place 12, and has 12",
        ),
        (("phase_locking", "ppc"), [[[0.5]]] * 12, "phase_locking.ppc has 1 value where 4 belong"),
        (("representation", "cka_last"), [[0.0] * 4] * 11, "representation.cka_last has 11 values where 12 belong"),
        (("fluctuation", 0, "scales"), [0] * 10, "fluctuation[0].scales is 0, not within 1 to inf"),
        (
            ("input", "recording", "identity", "probe"),
            {"name": "x"},
            "input.recording.identity.probe lacks sha256, samples",
        ),
        (("protocol", "estimator"), "sideways", "protocol.estimator is 'sideways', not dfa or whittle or reml"),
        (("format_version",), "1", "format_version is '1', not a whole number"),
    ],
)
def test_damaged_metrics_are_refused_in_a_sentence(tmp_path, path, value, says):
    file = tmp_path / "metrics.json"
    file.write_text(json.dumps(spoilt("metrics.json", *path, value=value)))
    with pytest.raises(PosthocError) as error:
        load_metrics(file)
    assert str(error.value).startswith(f"{file} is damaged ({says}")
    assert str(error.value).endswith("); write it again with `posthoc metrics`.")


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("epochs", 3, "hurst"), "x", "is not as its version has it"),
        (("epochs", 3), {}, "lacks"),
        (("summary",), {}, "lacks"),
        (("protocol", "axis"), "sideways", "lacks sideways"),
        (("representation", "cka_last"), [[0.0] * 4] * 11, "representation.cka_last has 11 values where 12 belong"),
        (("input", "config", "probe"), {"name": "x"}, "identity.probe lacks sha256, samples"),
    ],
)
def test_damaged_metrics_of_version_1_are_refused_in_a_sentence(tmp_path, path, value, says):
    content = json.loads((V1 / "metrics.json").read_text())
    place = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    (tmp_path / "metrics.json").write_text(json.dumps(content))
    with pytest.raises(PosthocError, match=r"metrics.json is damaged \(") as error:
        load_metrics(tmp_path / "metrics.json")
    assert says in str(error.value)


def test_a_damaged_audit_is_refused_in_a_sentence(tmp_path):
    file = tmp_path / "audit.json"
    file.write_text(json.dumps(spoilt("audit.json", "controls", 2, "measures", "integration", value=None)))
    with pytest.raises(PosthocError, match=r"damaged \(controls\[2\]\.measures\.integration is null, not an object"):
        load_audit(file)
    content = json.loads((V1 / "audit.json").read_text())
    content["controls"][2]["measures"]["else"] = content["controls"][2]["measures"].pop("integration")
    file.write_text(json.dumps(content))
    with pytest.raises(PosthocError, match=r"audit.json is damaged \(control .* lacks integration\); write it again"):
        load_audit(file)
    with pytest.raises(PosthocError, match="is not a metrics file"):
        load_metrics(file)
    with pytest.raises(PosthocError, match="is an activations file; run posthoc metrics"):
        load_metrics(V1 / "activations.h5")


ODD = [None, True, -1, 1.5, 1e308, math.nan, 2**63, "", "x", "\ud800", [], [None], [[1]], {}, {"": 1}]


def places(value, place=()):
    """Every place in nested values, those of a list by its last."""
    yield place
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*place, key))
    elif isinstance(value, list) and value:
        yield from places(value[-1], (*place, -1))


def test_whatever_stands_anywhere_it_is_read_or_refused():
    """In each place of metrics.json something else, or nothing."""
    chance = random.Random(0)
    content = (V2 / "metrics.json").read_text()
    outcomes = Counter()
    for place in places(json.loads(content)):
        if not place:
            continue
        spoilt = inner = json.loads(content)
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = chance.choice(ODD)
        try:
            metrics = typed(RunMetrics, spoilt)
        except MisfitError:
            outcomes["refused"] += 1
        else:
            outcomes["read"] += 1
            run = as_run(metrics, "spoilt")
            assert len(run.when) == sum(not row.untrained for row in metrics.checkpoints)
            assert len(metrics.to_dict()["checkpoints"]) == 12
    assert outcomes["refused"] > 100
    assert outcomes["read"] > 20
