"""What distances show of a series: planted faults in small training runs, which are silent without them."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from posthoc.analysis.weights import group_of
from posthoc.replay.series.against import Relation, compare_series
from posthoc.replay.series.averages import from_average
from posthoc.replay.series.geometry import detours, distances_of
from posthoc.replay.series.records import Kind, Severity, Untold
from posthoc.replay.series.result import check_series
from posthoc.replay.series.words import sentence, untold

SCRIPTS = str(Path(__file__).resolve().parents[2] / "scripts")


@pytest.fixture(scope="module")
def rates():
    sys.path.insert(0, SCRIPTS)
    try:
        import series_rates

        yield series_rates
    finally:
        sys.path.remove(SCRIPTS)


@pytest.fixture(scope="module")
def trained(rates):
    """One kind, of which the distances between checkpoints differ much: the rate falls to zero."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # networks this small are trained many times as fast so, the more beside other work
    yield rates.trained_of(rates.CALIBRATION["mlp momentum cosine"], 7)
    torch.set_num_threads(threads)


def test_a_healthy_run_is_sound(rates, trained, tmp_path):
    result = rates.check(rates.healthy(trained), tmp_path)
    assert result.findings == ()
    assert result.untold == (Untold.ENDS, Untold.ORDER, Untold.AVERAGES)
    assert set(result.unordered) <= {16, 17, 18, 19, 20}  # where the rate has fallen to nothing


@pytest.mark.parametrize(
    ("title", "row"),
    [
        ("copy of a late step", 3), ("copy of a late step", 15), ("two swapped", 1), ("two swapped", 9),
        ("a shard of the final", 8), ("another seed's", 5), ("another seed's", 20), ("labels off by one", 6),
        ("truncated grid", 12), ("average among raw", 3), ("average among raw", 11), ("restart from scratch", 10),
        ("half precision", 14), ("splice", 10),
    ],
)  # fmt: skip
def test_planted_faults_are_named_rightly(rates, trained, title, row, tmp_path):
    fault = rates.FAULTS[title]
    series = fault.plant(trained, row, np.random.default_rng(row))
    result = rates.check(series, tmp_path)
    assert rates.named_rightly(series, fault, result)
    assert rates.strays(series, fault, result) == []
    assert not result.sound


def test_two_that_were_swapped_further_apart(rates, trained, tmp_path):
    """What lies between is no average of those before it."""
    series = rates.healthy(trained)
    series.inside = None
    series.states[5], series.states[9] = series.states[9], series.states[5]
    (finding,) = rates.check(series, tmp_path).findings
    assert (finding.kind, sorted(finding.checkpoints)) == (Kind.SWAPPED, [5, 9])


def test_what_only_scatters_has_no_order_that_can_be_told(tmp_path):
    """Weights drawn anew about a point: which was first nobody knows, and the check says so."""
    torch.manual_seed(0)
    centre = torch.randn(64, 64)
    for k in range(12):
        save_file({"a.weight": centre + 0.1 * torch.randn(64, 64)}, tmp_path / f"step-{k}.safetensors")
    result = check_series(tmp_path)
    assert result.findings == ()
    assert result.unordered == tuple(range(1, 12))
    assert Untold.ORDER in result.untold


def test_one_that_changes_where_weights_are_frozen_is_at_fault(rates, trained, tmp_path):
    """Not those that stand still before and after it."""
    series = rates.healthy(trained)
    series.inside = None
    frozen = {name: value for name, value in series.states[0].items() if name.startswith("1.")}
    series.states = [{**state, **frozen} for state in series.states]
    series.states[6] = {**series.states[6], **{name: value + 0.01 for name, value in frozen.items()}}
    (finding,) = [f for f in rates.check(series, tmp_path).findings if f.severity > Severity.NOTE]
    assert (finding.kind, finding.checkpoints) == (Kind.PARTLY_MISPLACED, (6,))
    assert finding.tensors == ("1.weight",)


def test_part_of_another_unsaved_state(rates, trained, tmp_path):
    series = rates.healthy(trained)
    series.states[8] = {**series.states[8], "6.weight": trained.fork.states[15]["6.weight"]}
    result = rates.check(series, tmp_path)
    (finding,) = [f for f in result.findings if f.kind is Kind.PARTLY_MISPLACED]
    assert finding.checkpoints == (8,)
    assert finding.tensors == ("6.weight",)  # whose bias is its own


def test_the_copy_is_told_from_the_original(rates, trained, tmp_path):
    series = rates.healthy(trained)
    series.inside = None
    series.states[2] = series.states[7] = series.states[18]
    (finding,) = [f for f in rates.check(series, tmp_path).findings if f.kind is Kind.EQUAL]
    assert finding.checkpoints == (2, 7, 18)
    assert finding.evidence["at fault"] == 2
    series = rates.healthy(trained)
    series.inside = None
    series.states[18] = series.states[2]
    (finding,) = [f for f in rates.check(series, tmp_path).findings if f.kind is Kind.EQUAL]
    assert finding.checkpoints == (18, 2)


@pytest.mark.parametrize("back", [False, True])
def test_a_series_in_the_order_of_its_names_as_texts(tmp_path, back):
    """1, 10, 11, 2: one finding, and no averages; a copy is named beside it, and which of the two it is."""
    texts = sorted(range(24), key=lambda k: str(k + 1))
    order = sorted(range(24), key=lambda k: texts[k]) if back else texts

    def renumber(states):
        states[20] = states[4]
        states[:] = [states[k] for k in order]

    result = before_normalisation(tmp_path / "run", renumber)
    assert [finding.kind for finding in result.findings if finding.severity > Severity.NOTE] == [Kind.ORDER, Kind.EQUAL]
    misordered, equal = result.findings
    held = {row: int(misordered.evidence[f"of {k}"]) for k, row in enumerate(misordered.checkpoints)}
    assert held == {row: order[row] for row in range(24) if order[row] != row}
    assert equal.checkpoints == (order.index(20), order.index(4))
    if not back:
        assert sentence(misordered, result) == (
            "these lie in the order of their names as texts (1, 10, 11, 2), not in that of the training: 2 holds what was "
            "trained as 10, 3 holds what was trained as 11, 4 holds what was trained as 12 and 20 more"
        )


def test_a_series_in_any_order_but_that_of_its_training(tmp_path):
    order = np.random.default_rng(0).permutation(24).tolist()

    def shuffle(states):
        states[:] = [states[k] for k in order]

    (finding,) = before_normalisation(tmp_path / "run", shuffle).findings
    assert finding.kind is Kind.ORDER
    steps = [
        order[row] - order[int(finding.evidence[f"after {k}"])] for k, row in enumerate(finding.checkpoints)
    ]  # of the training, from that after which one is said to belong
    assert len(steps) >= 20
    assert set(steps) in ({1}, {-1})


def test_many_averages_are_no_wrong_order(rates, trained, tmp_path):
    series = rates.healthy(trained)
    series.inside = None
    for row in (4, 7, 9, 12, 15, 18):
        series.states[row] = trained.run.averages[row]
    kinds = {finding.kind for finding in rates.check(series, tmp_path).findings}
    assert Kind.AVERAGE in kinds
    assert Kind.ORDER not in kinds


def test_a_block_that_is_repeated_is_one_finding(rates, trained, tmp_path):
    """As where a training goes on from an earlier checkpoint; what lies where it should is not blamed, nor what follows."""
    series, states = rates.healthy(trained), trained.run.states
    series.inside, series.states = None, [*states[:9], *states[5:17]]
    result = rates.check(series, tmp_path)
    (finding,) = result.findings
    assert (finding.kind, finding.checkpoints) == (Kind.EQUAL, (9, 10, 11, 12, 5, 6, 7, 8))
    assert finding.evidence["at fault"] == finding.evidence["block"] == 4
    repeat = "108 to 144 repeat 60 to 96: the same weights, as where a training goes on from an earlier checkpoint"
    assert sentence(finding, result) == repeat
    series = rates.healthy(trained)
    series.inside, series.states[3:6] = None, states[12:15]
    result = rates.check(series, tmp_path)
    (finding,) = result.findings
    assert (finding.kind, finding.checkpoints) == (Kind.EQUAL, (3, 4, 5, 12, 13, 14))
    assert sentence(finding, result).startswith(
        "the same weights, in the same order: they are of 144 to 168, not of 36 to 60 (with them there the way"
    )


@pytest.mark.slow
def test_runs_of_several_kinds_are_silent(rates, tmp_path):
    """Some of those of docs/check.md, of another seed."""
    kinds = [
        "residual nesterov cosine",
        "mlp nadam",
        "rnn sgd clipped",
        "depthwise rmsprop decaying",
        "mlp noisy labels",
    ]
    for name in kinds:
        run = rates.train(rates.REPORTED[name], 900)
        assert rates.alarms(rates.check(rates.healthy(rates.Trained(run, run, run)), tmp_path / name)) == []


def test_detours():
    line = np.abs(np.subtract.outer(np.arange(5.0), np.arange(5.0)))
    assert detours(line, range(5)) == pytest.approx(np.zeros(3))
    assert np.exp(detours(line, [0, 2, 1, 3])) == pytest.approx([3, 3])
    still = np.zeros((4, 4))
    assert detours(still, range(4)) == pytest.approx(np.zeros(2))


def test_distance_from_the_nearest_average():
    points = np.array([[0.0, 0], [2, 0], [0, 2], [1, 1], [3, 3], [-1, 0]])
    products = points @ points.T
    assert distances_of(products)[1, 2] == pytest.approx(8**0.5)
    assert from_average(products, 3, [0, 1, 2]) == pytest.approx(0, abs=1e-3)
    assert from_average(products, 4, [0, 1, 2]) == pytest.approx(8**0.5, rel=1e-3)
    assert from_average(products, 5, [0, 1, 2]) == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize(
    ("tensor", "group"),
    [("layer1.0.conv1.weight", "layer1.0"), ("fc.weight", "fc"), ("h.11.attn.c_attn.weight", "h.11"), ("w", "w")],
)
def test_layers_by_the_names_of_tensors(tensor, group):
    assert group_of(tensor) == group


def test_two_series_beside_each_other(rates, trained, tmp_path):
    run, other = trained.run, trained.other
    places = {
        "first": (run.steps[:14], run.states[:14]),
        "rest": (run.steps[14:], run.states[14:]),
        "some": (run.steps[3:9], run.states[3:9]),
        "other": (other.steps, other.states),
        "averages": (run.steps[6:14], run.averages[6:14]),
        "fork": (run.steps[:14], [run.states[0], *trained.fork.states[1:14]]),
    }
    for name, (steps, states) in places.items():
        rates.check(rates.Series(list(steps), None, list(states)), tmp_path / name)
    expected = {
        "first": Relation.COPY, "some": Relation.COPY, "rest": Relation.CONTINUATION, "other": Relation.UNRELATED,
        "averages": Relation.AVERAGE, "fork": Relation.SAME_START,
    }  # fmt: skip
    found = {name: compare_series(tmp_path / "first", tmp_path / name).relation for name in expected}
    assert found == expected


def test_a_sudden_jump_of_the_norm_is_a_note(rates, trained, tmp_path):
    series = rates.healthy(trained)
    series.states[12:] = [{name: 1.5 * value for name, value in state.items()} for state in series.states[12:]]
    result = rates.check(series, tmp_path)
    norms = [np.sqrt(sum(float((value.double() ** 2).sum()) for value in state.values())) for state in series.states]
    (finding,) = result.findings
    assert (finding.kind, finding.severity, finding.checkpoints) == (Kind.NORM_JUMP, Severity.NOTE, (12,))
    assert finding.evidence["factor"] == pytest.approx(norms[12] / norms[11], rel=1e-5)
    assert 1.5 < finding.evidence["factor"] < 1.6  # the step itself makes it a little more
    assert result.sound


def test_another_fault_explains_a_jump_of_the_norm(rates, trained, tmp_path):
    series = rates.healthy(trained)
    series.states[12] = {name: 3 * value for name, value in series.states[-1].items()}
    result = rates.check(series, tmp_path)
    assert [finding.kind for finding in result.findings] == [Kind.MISPLACED]


def before_normalisation(
    folder, change=lambda states: None, rate=lambda epoch: 0.05 * (1 + np.cos(np.pi * epoch / 25))
):
    """A network with a bias that a normalisation takes out again, which only rounding moves; by epochs, changed before written."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(3)
    network = nn.Sequential(
        nn.Linear(32, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4)
    )
    inputs, labels = torch.randn(256, 32), torch.randint(4, (256,))
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    states = []
    for epoch in range(1, 25):
        optimiser.param_groups[0]["lr"] = rate(epoch)
        for batch in torch.randperm(256).split(64):
            optimiser.zero_grad()
            functional.cross_entropy(network(inputs[batch]), labels[batch]).backward()
            optimiser.step()
        states.append({name: tensor.clone() for name, tensor in network.state_dict().items()})
    torch.set_num_threads(threads)
    change(states)
    folder.mkdir()
    for epoch, state in enumerate(states, 1):
        torch.save(state, folder / f"epoch_{epoch}.pt")
    return check_series(folder)


def test_a_bias_before_a_normalisation_is_no_copy(tmp_path):
    result = before_normalisation(tmp_path / "run")
    column = result.series.digest[:, result.series.tensors.index("0.bias")].tolist()
    assert len(set(column)) < len(column)  # it does come back
    assert result.findings == ()


def test_a_bias_that_only_rounding_moves_hides_no_swap(tmp_path):
    def swap(states):
        states[4], states[17] = states[17], states[4]

    (finding,) = before_normalisation(tmp_path / "run", swap).findings
    assert (finding.kind, sorted(finding.checkpoints)) == (Kind.SWAPPED, [4, 17])


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("size", [1.0, 0.0])
def test_rounding_to_half_precision_is_all_that_is_said_of_it(tmp_path, single, size):
    """Also of a bias that it moves by much more than the training does, of the usual size or of what begins at zero."""

    def rounded(states):
        walk = torch.zeros(64)
        for epoch, state in enumerate(states):
            walk = walk + 1e-8 * (1 - epoch / 24) * torch.randn(64)
            state["0.bias"] = size * state["0.bias"] + walk
        half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in states[8].items()}
        states[8] = {
            name: half[name].float() if single and half[name].is_floating_point() else half[name] for name in half
        }

    findings = before_normalisation(tmp_path / "run", rounded).findings
    kind = Kind.PRECISION if single else Kind.TYPES
    assert [(f.kind, f.checkpoints) for f in findings if f.kind is not Kind.ZERO] == [(kind, (8,))]


def test_a_rate_of_almost_nothing_puts_nothing_out_of_place(tmp_path):
    assert before_normalisation(tmp_path / "run", rate=lambda epoch: 0.05 if epoch < 14 else 1e-9).findings == ()


def test_of_a_layer_out_of_place_the_tensor_is_named_that_is(tmp_path):
    def moved(states):
        states[9]["3.weight"] = states[9]["3.weight"] + torch.randn(32, 64)

    (finding,) = before_normalisation(tmp_path / "run", moved).findings
    assert (finding.kind, finding.checkpoints, finding.tensors) == (Kind.PARTLY_MISPLACED, (9,), ("3.weight",))


def test_a_series_that_runs_backwards_is_said_to_be_open(tmp_path):
    result = before_normalisation(tmp_path / "run", lambda states: states.reverse())
    assert result.findings == ()
    assert Untold.DIRECTION in result.untold
    assert untold(Untold.DIRECTION, result) == "in which direction the series runs, for nothing is recorded inside"
