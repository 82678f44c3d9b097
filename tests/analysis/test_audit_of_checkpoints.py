"""The audit of measures of checkpoints: each responds to what it is made of, to nothing else, and what makes no sense is said."""

import numpy as np
import pytest
from noise import recording

import posthoc
from posthoc.analysis.altered import Altered
from posthoc.analysis.measures.snapshot import Estimate, of_checkpoint
from posthoc.analysis.responses import Reaction, load_audit
from posthoc.errors import UsageError
from posthoc.report import tables_of_audits
from posthoc.store import Frame, Layout, open_activations
from posthoc.writing import write

N, CHANNELS, CLASSES = 200, 10, 4
CLASS_COUNT = of_checkpoint(
    "class_count", "classes", "classes", "how many there are",
    lambda snapshot: Estimate(float(len(np.unique(snapshot.replay.labels)))),
)  # fmt: skip


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Four checkpoints, the first untrained: a layer that holds the class more and more, and one of noise; each checkpoint
    predicts otherwise than the one before in every tenth sample, and than the one before that in every fifth."""
    random = np.random.default_rng(0)
    labels = np.arange(N) % CLASSES
    codes = random.standard_normal((CHANNELS, CLASSES))
    frames = []
    for e in range(4):
        signals = {
            "a": (e * codes[:, labels] + random.standard_normal((CHANNELS, N))).astype("f4"),
            "b": random.standard_normal((CHANNELS, N)).astype("f4"),
        }
        prediction = np.where(np.arange(N) % 10 < 3 - e, (labels + 1) % CLASSES, labels)
        logits = (4.0 * np.eye(CLASSES)[prediction] + random.standard_normal((N, CLASSES))).astype("f2")
        behaviour = {
            "loss": np.ones(N, "f4"), "prediction": prediction, "correct": prediction == labels, "logits": logits,
        }  # fmt: skip
        frames.append(Frame(f"{e}", f"{e}", e, e, 1.0, 0.5, {}, {"mean": signals}, behaviour=behaviour))
    path = tmp_path_factory.mktemp("checkpoints") / "a.h5"
    about = recording(["a", "b"], images=N, classes=CLASSES)
    write(path, Layout(about, np.arange(N), labels, {"a": np.arange(CHANNELS), "b": np.arange(CHANNELS)}), frames)
    return path


@pytest.fixture(scope="module")
def result(path):
    with open_activations(path) as file:
        measures = ["churn", "margin", "probe_accuracy", "effective_rank", CLASS_COUNT]
        return posthoc.audit(file, draws=10, measures=measures)


def responds(result, key):
    return {what.split(" (")[0] for what in result.measures[key].which(Reaction.RESPONDS)}


def test_each_responds_to_what_it_is_made_of(result):
    assert responds(result, "class_count") == {"number of classes"}
    assert result.measures["class_count"].which(Reaction.RESPONDS)["number of classes"].effect == 9 * CLASSES
    assert responds(result, "churn") == {"spacing of the checkpoints"}
    churn = result.measures["churn"]
    assert churn.value == pytest.approx(0.1)
    assert churn.which(Reaction.RESPONDS)["spacing of the checkpoints"].effect == pytest.approx(0.1)
    assert {"labels", "training"} <= responds(result, "margin")
    assert {"labels", "number of classes", "choice of layers"} <= responds(result, "probe_accuracy")
    assert "number and choice of channels" in responds(result, "effective_rank")


def test_what_it_is_not_made_of_changes_nothing(result):
    for key, changes in {
        "churn": ("labels", "number and choice of channels", "precision of the values"),
        "margin": ("number and choice of channels", "spacing of the checkpoints"),
        "effective_rank": ("labels", "number of classes", "spacing of the checkpoints"),
        "class_count": ("labels", "training", "number of images", "which half of the probe"),
    }.items():
        unmoved = result.measures[key].which(Reaction.INDIFFERENT)
        assert {change: unmoved[change].effect for change in changes} == dict.fromkeys(changes, 0.0), key


def test_what_makes_no_sense_is_said_and_has_no_cell(result, tmp_path):
    table = tables_of_audits.factors(result)
    cells = {row[0]: dict(zip([column.title for column in table.columns], row, strict=True)) for row in table.rows}
    assert cells["churn"]["number of classes"] is None
    assert cells["churn"]["training"] is None
    assert cells["classes"]["number of classes"] == "responds +36"
    said = " ".join(result.conclusions)
    assert "To split classes makes no sense for churn" in said
    assert "Of untrained weights there is no churn" in said
    assert "churn depends on spacing of the checkpoints: compare only runs in which these are equal." in said
    assert "95 % interval" in said
    assert "with the half of the probe" in said
    result.save(tmp_path / "audit.json")
    assert load_audit(tmp_path / "audit.json").measures["churn"].value == result.measures["churn"].value


def test_what_has_no_value_there_is_refused(path):
    with open_activations(path) as file, pytest.raises(UsageError, match="settled: undefined at the last checkpoint"):
        posthoc.audit(file, draws=10, measures="settled")


def test_an_altered_file_is_the_file_with_that_alone_changed(path):
    with open_activations(path) as file:
        rows = np.array([5, 3, 8])
        kept = {"a": np.array([1, 4]), "b": np.array([0])}
        view = Altered(file, rows=[0, 3], samples=rows, labels=(file.labels + 1) % CLASSES, channels=kept, rounded=True)
        assert (len(view), view.epochs.tolist(), view.units) == (2, [0, 3], [("a", 1), ("a", 4), ("b", 0)])
        there = file.read("mean", 3)[[1, 4, 10]][:, rows].astype("f2")
        np.testing.assert_array_equal(view.read("mean", 1), there)
        np.testing.assert_array_equal(view.labels, (rows + 1) % CLASSES)
        np.testing.assert_array_equal(view.behaviour("prediction"), file.behaviour("prediction")[[0, 3]][:, rows])
        assert view.behaviour("correct", 1).sum() == 0  # nothing is right of labels that are all others
        assert len(file) == 4
