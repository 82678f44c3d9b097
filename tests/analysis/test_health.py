"""What went wrong in a run is said with where it began; of a healthy one nothing. Which checkpoint is best is said with
those that cannot be told from it."""

import math
from dataclasses import replace

import numpy as np
import pytest
from noise import recording

from posthoc.analysis.choice import chosen
from posthoc.analysis.health import Ailment, Symptom, symptoms
from posthoc.analysis.metrics import compute_metrics
from posthoc.analysis.records import load_metrics
from posthoc.report import tables
from posthoc.report.answers import _told, happened, which
from posthoc.report.words import health, in_short
from posthoc.store import Frame, Layout, open_activations
from posthoc.writing import write

E, LAYERS = 8, ("a", "b")


def well():
    """What is known of a run in which nothing goes wrong; the first checkpoint is untrained, and odd in all."""
    random = np.random.default_rng(0)
    loss = np.concatenate([[90.0], np.exp(-np.arange(E - 1) / 4) * random.uniform(0.85, 1.15, E - 1)])
    rank = 12 + random.uniform(-1, 1, (E, 2)) - np.linspace(0, 6, E)[:, None]
    size = np.exp(random.uniform(-1, 1, (E, 2)))
    size[0], rank[0] = 1e-6, 900
    nothing = np.zeros(E, np.int64)
    return {
        "layers": LAYERS, "untrained": np.arange(E) == 0, "loss": loss, "nonfinite_weights": nothing.copy(),
        "nonfinite": {layer: nothing.copy() for layer in LAYERS}, "rank": rank, "size": size, "constant": nothing.astype(bool),
    }  # fmt: skip


def listed(known):
    return [(symptom.kind, symptom.layer, symptom.began, symptom.checkpoints) for symptom in symptoms(**known)]


def test_of_a_healthy_run_there_is_nothing_to_say():
    assert listed(well()) == []


def test_layers_that_are_not_recorded_are_not_called_dead():
    assert listed(well() | {"rank": np.full((E, 2), np.nan), "size": np.empty((0, 0))}) == []


def test_each_planted_fault_is_named_where_it_begins():
    for plant, expected in {
        "loss[5] *= 9": (Ailment.SPIKE, None, 5, 1),
        "loss[6:] = nan": (Ailment.LOSS, None, 6, 2),
        "rank[4:, 1] = nan": (Ailment.DEAD, "b", 4, 4),
        "constant[[0, 5, 6, 7]] = True": (Ailment.CONSTANT, None, 5, 3),
        "rank[3:, 0] = 1.1": (Ailment.COLLAPSED, "a", 3, 5),
        "size[6:, 0] = 1e4": (Ailment.EXPLODING, "a", 6, 2),
        "nonfinite_weights[7] = 3": (Ailment.WEIGHTS, None, 7, 1),
        "nonfinite['b'][2:4] = 9": (Ailment.SIGNALS, "b", 2, 2),
    }.items():
        known = well()
        exec(plant, {"nan": np.nan}, known)
        assert listed(known) == [expected], plant


def test_a_loss_below_0_has_spikes_too():
    known = well()
    known["loss"] = np.array([-3, -5, -5.1, -5.2, -5.3, 40.0, -5.3, -5.4])
    assert listed(known) == [(Ailment.SPIKE, None, 5, 1)]
    known["loss"][5] = -4.1  # a fifth above, and those before are as far apart
    assert listed(known) == []
    known["loss"] = np.random.default_rng(0).standard_normal(8) / 100
    assert listed(known) == []


def test_a_layer_that_is_used_for_the_first_time_as_the_loss_falls_does_not_explode():
    known = well()
    known["size"][:3], known["size"][3:] = 0.2, 2.7
    known["loss"] = np.array([2.34, 2.25, 2.29, 1.38, 1.04, 1.02, 0.59, 0.33])
    assert listed(known) == []
    known["loss"][3:] = 2.3
    assert listed(known) == [(Ailment.EXPLODING, layer, 3, 5) for layer in LAYERS]


def test_the_worst_is_first_and_evidence_stands_beside():
    known = well()
    known["loss"][4] = 50
    known["rank"][5:, 1] = np.nan
    known["nonfinite_weights"][7] = 2
    result = symptoms(**known)
    assert [symptom.kind for symptom in result] == [Ailment.WEIGHTS, Ailment.DEAD, Ailment.SPIKE]
    assert result[2].value == 50
    assert result[2].usual == np.median(known["loss"][1:4])
    known["nonfinite"]["b"][5:] = 1  # then there is nothing to say of its rank
    assert Ailment.DEAD not in {symptom.kind for symptom in symptoms(**known)}


@pytest.fixture(scope="module")
def ill(tmp_path_factory):
    """A run whose second layer dies at epoch 3, and the losses of its samples, which hardly change from there."""
    random = np.random.default_rng(0)
    N = 120
    losses = random.exponential(size=N) + np.array([2.0, 1.0, 0.5, 0.5, 0.5])[:, None]
    losses[2:] += 0.01 * random.standard_normal((3, N))
    frames = []
    for e in range(5):
        signals = {layer: random.standard_normal((4, N)).astype("f4") for layer in LAYERS}
        if e >= 2:
            signals["b"][:] = 0.0
        loss = losses[e].astype("f4")
        behaviour = {"loss": loss}
        frames.append(
            Frame(f"{e}", f"{e}", e + 1, None, float(loss.mean()), 0.5, {}, {"mean": signals}, behaviour=behaviour)
        )
    path = tmp_path_factory.mktemp("ill") / "a.h5"
    layout = Layout(recording(LAYERS, images=N), np.arange(N), np.arange(N) % 4, dict.fromkeys(LAYERS, np.arange(4)))
    write(path, layout, frames)
    with open_activations(path) as activations:
        return losses, compute_metrics(activations)


def test_a_run_s_health_is_in_its_file_and_in_the_terminal(ill, tmp_path):
    run = ill[1]
    assert [(s.kind, s.layer, s.began) for s in run.health] == [(Ailment.DEAD, "b", 2)]
    run.save(tmp_path / "m.json")
    again = load_metrics(tmp_path / "m.json")
    assert [(s.kind, s.layer, s.began, s.checkpoints) for s in again.health] == [(Ailment.DEAD, "b", 2, 3)]
    assert (
        "health", "a dead layer (b), first at epoch 3, in 3 of 5 checkpoints: no recorded channel varies"
    ) in tables.summary(again)  # fmt: skip
    np.testing.assert_array_equal(again.choice.difference, run.choice.difference)


@pytest.mark.parametrize(
    ("first", "where"),
    [
        (3, "H_eff and M at epochs 4, 5 and 6"),
        (0, "H_eff and M at epochs 1 to 6; Psi and r(Psi, acc) throughout"),
    ],
)
def test_what_a_diverged_run_has_no_values_of_is_said_once(first, where, tmp_path):
    random, N = np.random.default_rng(5), 300
    frames = [
        Frame(f"{e}", f"{e}", e + 1, None, 1.0, 0.5 + e / 10, {}, {"mean": {
            layer: np.where(e < first, random.standard_normal((4, N)), math.nan).astype(np.float32) for layer in LAYERS
        }})
        for e in range(6)
    ]  # fmt: skip
    layout = Layout(recording(LAYERS, images=N), np.arange(N), np.arange(N) % 4, dict.fromkeys(LAYERS, np.arange(4)))
    write(tmp_path / "a.h5", layout, frames)
    with open_activations(tmp_path / "a.h5") as activations:
        run = compute_metrics(activations, nulls=19, max_nulls=19, measures="stability_index")
    lines = tables.summary(run)
    assert dict(lines)["undefined"] == where
    assert [label for label, text in lines if "undefined" in f"{label} {text}"] == ["undefined"]
    assert " ".join(in_short(run)).count("ndefined") == 1


def test_layers_with_the_same_trouble_share_a_line(ill):
    def told(*symptoms):
        return health(replace(ill[1], health=symptoms))

    both = [Symptom(Ailment.EXPLODING, began, 4 - began, layer, 50.0, 2.0) for began, layer in ((2, "b"), (1, "a"))]
    assert told(*both, Symptom(Ailment.SPIKE, 3, 1, None, 9.0, 1.0)) == [
        "exploding values in 2 layers (b and a), first at epoch 2, in up to 3 of 5 checkpoints each: "
        "root mean square 50, at most 2 before (a)",
        "a spike of the loss, first at epoch 4, in 1 of 5 checkpoints: 9, median before 1",
    ]
    dead = [Symptom(Ailment.DEAD, 3, 2, f"block.{k}", math.nan, math.nan) for k in range(9)]
    assert told(*dead[:4]) == [
        "4 layers dead (block.0, block.1, block.2 and block.3), first at epoch 4, in 2 of 5 checkpoints each: "
        "no recorded channel varies"
    ]
    assert told(*dead)[0].startswith("9 layers dead (block.0, block.1, block.2 and 6 more), first")


def test_what_some_checkpoints_lack_is_said_of_a_course_that_stands_still_and_of_each_layer(tmp_path):
    random, N, epochs = np.random.default_rng(5), 100, range(1, 11)
    lost = {"a": (4, 5), "b": (8, 9)}
    frames = [
        Frame(f"{e}", f"{e}", e, None, math.nan if e == 7 else 0.25, math.nan if e in (2, 3) else 0.9, {}, {"mean": {
            layer: random.standard_normal((4, N)).astype("f4") * (math.nan if e in lost[layer] else 1) for layer in LAYERS
        }})
        for e in epochs
    ]  # fmt: skip
    layout = Layout(recording(LAYERS, images=N), np.arange(N), np.arange(N) % 4, dict.fromkeys(LAYERS, np.arange(4)))
    write(tmp_path / "a.h5", layout, frames)
    with open_activations(tmp_path / "a.h5") as activations:
        run = compute_metrics(activations, nulls=0)
    assert happened(run)[:2] == [
        "Accuracy stays at 0.9 from epoch 1 to epoch 10; it is undefined at epochs 2 and 3.",
        "Loss stays at 0.25 from epoch 1 to epoch 10; it is not finite at epoch 7.",
    ]
    assert (
        "values that are not finite in 2 layers (a and b), first at epoch 4, in 2 of 10 checkpoints each: 400 of them (a)"
        in health(run)
    )


@pytest.mark.parametrize(
    ("kind", "checkpoints", "words"),
    [
        (
            Ailment.WEIGHTS,
            2,
            ["The training breaks down at epoch 4: from there on there are weights that are not finite."],
        ),
        (Ailment.LOSS, 2, ["The training breaks down at epoch 4: from there on there is a loss that is not finite."]),
        (Ailment.LOSS, 1, []),  # it finds its way
    ],
)
def test_a_training_that_breaks_down_to_its_end_is_called_so(ill, kind, checkpoints, words):
    run = replace(ill[1], health=(Symptom(kind, 3, checkpoints, None, 7.0, math.nan),))
    assert [sentence for sentence in happened(run) if "breaks down" in sentence] == words


def test_which_checkpoint_is_best_and_which_cannot_be_told_from_it(ill):
    losses, run = ill
    result = run.choice
    assert result.best == losses.mean(axis=1).argmin()
    assert sorted(result.alike) == [2, 3, 4]
    np.testing.assert_allclose(result.difference, losses.mean(axis=1) - losses.mean(axis=1).min(), atol=1e-6)
    assert result.last_sd == pytest.approx(losses.mean(axis=1).std(ddof=1), rel=1e-5)
    text = dict(tables.summary(run))["which checkpoint"]
    assert "2 other checkpoints (epoch" in text
    assert "paired over 120 images" in text


def test_the_best_of_many_equals_is_told_from_few():
    """Of ten checkpoints that are equally good, at most one in twenty runs has one that is called worse than the best."""
    random = np.random.default_rng(1)
    told = sum(
        len(chosen(random.exponential(size=(10, 200)), np.ones(10, bool), "loss").alike) < 10 for _ in range(200)
    )
    assert told <= 20


def test_without_losses_of_samples_there_is_no_choice():
    assert chosen(np.full((3, 5), np.nan), np.ones(3, bool), "loss") is None
    assert chosen(np.ones((3, 5)), np.zeros(3, bool), "loss") is None
    result = chosen(np.array([[1.0, 1.0], [np.nan, np.nan], [2.0, 2.0]]), np.ones(3, bool), "loss")
    assert (result.best, result.alike) == (0, [0])


def test_a_checkpoint_without_most_of_its_losses_takes_nothing_from_the_others(ill):
    losses, _run = ill
    broken = np.vstack([losses, np.where(np.arange(losses.shape[1]) < 3, 0.1, np.nan)])
    result = chosen(broken, np.ones(6, bool), "loss")
    alone = chosen(losses, np.ones(5, bool), "loss")
    assert (result.best, result.loss, result.samples) == (alone.best, alone.loss, 120)
    assert np.isnan(result.difference[5])
    few = losses.copy()
    few[1, :5] = np.inf
    few[:, 5:90] = np.nan  # as of samples without a target: of no checkpoint's making
    result = chosen(few, np.ones(5, bool), "loss")
    assert (result.samples, np.isfinite(result.difference).sum()) == (30, 5)


def test_it_is_said_why_there_is_no_choice(ill):
    losses, run = ill
    half = np.where(np.arange(120) < 60, losses[:2].T.reshape(2, -1)[:, :120], np.nan)
    half[1] = half[1][::-1]
    assert chosen(half, np.ones(2, bool), "loss") is None
    for recorded, reason in {
        ("loss",): "Too few samples have a finite loss at all checkpoints for these to be told apart by it.",
        (): "No loss of single samples is recorded, by which checkpoints could be told apart.",
    }.items():
        identity = replace(run.recording.identity, behaviour=recorded)
        known = replace(run.input, recording=replace(run.recording, identity=identity))
        assert which(replace(run, choice=None, input=known))[1] == reason


def test_the_end_of_a_run_whose_last_losses_are_not_finite_did_harm(ill):
    losses, run = ill
    end = losses.copy()
    end[4, 1:] = np.nan
    assert "The end did harm: the last checkpoint's loss is not finite." in which(
        replace(run, choice=chosen(end, np.ones(5, bool), "loss"))
    )


def test_a_score_is_called_1_only_where_it_is():
    assert _told([0.1, 0.9996, 0.9996]) == ["0.1", "0.9996", "0.9996"]
    assert _told([0.1, 1.0, 1.0]) == ["0.1", "1", "1"]
    assert _told([12.5, 99.98, 99.98]) == ["12.5", "99.98", "99.98"]
