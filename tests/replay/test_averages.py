"""Means of the last checkpoints' weights, as a plain loop over state dicts has them; the same to the bit in any parts."""

import shutil
import threading
from dataclasses import replace

import naive
import numpy as np
import pytest
import torch
from contents import assert_same
from scipy import stats
from torch import nn
from torch.nn import functional as F

import posthoc
from posthoc.analysis.axes.image import by_class_halved
from posthoc.analysis.choice import Average, chosen
from posthoc.analysis.measures import Asked, measure_called
from posthoc.analysis.records import Aside
from posthoc.analysis.responses import HALVES, LABELS
from posthoc.analysis.runs import as_run, measured_of_all
from posthoc.errors import StoppedError, UsageError
from posthoc.parts import merge
from posthoc.replay.cost import averaging, cost
from posthoc.replay.planning import plan_extraction
from posthoc.replay.run import follow_extraction, run_extraction
from posthoc.report import tables, words
from posthoc.shards import Shard

NET = """
from torch import nn

def net():
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
"""
E = 6


def network():
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Six checkpoints of a network with batch normalisation, its file, and a probe."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    x, y = torch.randn(200, 6), torch.randint(0, 4, (200,))
    model = network()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.5)
    (folder / "checkpoints").mkdir()
    for epoch in range(1, E + 1):
        for _ in range(3):
            optimiser.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimiser.step()
        torch.save(model.state_dict(), folder / "checkpoints" / f"epoch-{epoch}.pt")
    (folder / "mine.py").write_text(NET)
    return folder, (x.numpy(), y.numpy())


def options(folder):
    return {"model": f"{folder / 'mine.py'}:net", "layers": ["0"], "channels": 4, "batch_size": 64}


def extracted(run, output, **more):
    folder, probe = run
    return posthoc.extract(folder / "checkpoints", probe, output, **options(folder), **more)


@pytest.fixture(scope="module")
def averaged(run, tmp_path_factory):
    """The run with the means of two and three; do not write to it."""
    return extracted(run, tmp_path_factory.mktemp("whole") / "a.h5", average=[3], between=True, spectra=True)


def by_hand(run, count):
    """Losses [E, N] and what is right of the mean of the last `count` state dicts, in a loop."""
    folder, (x, y) = run
    states = [torch.load(folder / "checkpoints" / f"epoch-{epoch}.pt") for epoch in range(1, E + 1)]
    losses, right = np.full((E, len(y)), np.nan), np.zeros((E, len(y)))
    for e in range(count - 1, E):
        last = states[e - count + 1 : e + 1]
        mean = {
            name: sum(state[name].double() for state in last).div(count).float() if tensor.is_floating_point() else tensor
            for name, tensor in states[e].items()
        }  # fmt: skip
        model = network().eval()
        model.load_state_dict(mean)
        with torch.no_grad():
            scores = model(torch.from_numpy(x))
        losses[e] = F.cross_entropy(scores, torch.from_numpy(y), reduction="none")
        right[e] = scores.argmax(1).numpy() == y
    return losses, right


def test_they_are_those_of_a_loop_over_state_dicts(run, averaged):
    with posthoc.open_activations(averaged) as file:
        assert file.averaged == (2, 3)
        for count in (2, 3):
            losses, right = by_hand(run, count)
            np.testing.assert_allclose(file.behaviour_of_average(count, "loss"), losses, rtol=1e-6, atol=1e-6)
            np.testing.assert_array_equal(file.behaviour_of_average(count, "correct"), right)
        assert len(set(file.averaged_sha256)) == E
        assert file.averaged_sha256[0] == ""


def test_of_a_checkpoint_that_cannot_be_read_there_is_no_mean(run, averaged, tmp_path):
    folder, probe = run
    shutil.copytree(folder / "checkpoints", tmp_path / "checkpoints")
    plan = plan_extraction(tmp_path / "checkpoints", probe, average=[2, 3], **options(folder))
    (tmp_path / "checkpoints" / "epoch-3.pt").write_bytes(b"spoilt since it was planned")
    result = run_extraction(plan, tmp_path / "a.h5", skip_errors=True)
    assert [skip.path for skip in result.skipped] == ["epoch-3.pt"]
    with posthoc.open_activations(tmp_path / "a.h5") as file, posthoc.open_activations(averaged) as whole:
        assert file.epochs.tolist() == [1, 2, 4, 5, 6]
        for count, without in {2: [4], 3: [4, 5]}.items():
            expected = whole.behaviour_of_average(count, "loss")
            expected[[epoch - 1 for epoch in without]] = np.nan
            np.testing.assert_array_equal(file.behaviour_of_average(count, "loss"), np.delete(expected, 2, axis=0))


def test_all_else_is_as_without_them(run, averaged, tmp_path):
    with (
        posthoc.open_activations(extracted(run, tmp_path / "b.h5")) as plain,
        posthoc.open_activations(averaged) as file,
    ):
        assert plain.averaged == ()
        for name in plain.blocks:
            np.testing.assert_array_equal(file.blocks[name][:], plain.blocks[name][:], err_msg=name)
        np.testing.assert_array_equal(file.loss, plain.loss)


def test_in_shards_stopped_and_resumed_they_are_the_same_to_the_bit(run, averaged, tmp_path):
    folder, probe = run
    plan = plan_extraction(folder / "checkpoints", probe, average=[2, 3], spectra=True, **options(folder))
    for index in (2, 1):
        run_extraction(plan, tmp_path / "a.h5", shard=Shard(index, 2))
    merge(tmp_path / "a.h5")
    assert_same(tmp_path / "a.h5", averaged)
    stop = threading.Event()
    with pytest.raises(StoppedError):
        run_extraction(plan, tmp_path / "b.h5", stop=stop, progress=lambda done, *_: done == 3 and stop.set())
    run_extraction(plan, tmp_path / "b.h5")
    assert_same(tmp_path / "b.h5", averaged)


def test_a_run_that_is_followed_ends_in_the_same_file(run, averaged, tmp_path, monkeypatch):
    folder, probe = run
    monkeypatch.setattr("posthoc.replay.run.POLL_SECONDS", 0.01)
    shutil.copytree(folder / "checkpoints", tmp_path / "ready")
    (tmp_path / "checkpoints").mkdir()
    ready = sorted((tmp_path / "ready").iterdir())

    def replan():
        for path in (ready.pop(0) for _ in range(min(2, len(ready)))):
            path.rename(tmp_path / "checkpoints" / path.name)
        return plan_extraction(
            tmp_path / "checkpoints", probe, average=[3], between=True, spectra=True, **options(folder)
        )

    follow_extraction(replan, tmp_path / "a.h5", until_epoch=E)
    assert_same(tmp_path / "a.h5", averaged)


def test_a_mean_is_made_anew_where_one_of_its_checkpoints_changed(run, averaged, tmp_path):
    folder, probe = run
    (tmp_path / "checkpoints").mkdir()
    for epoch in range(1, E + 1):
        taken = 1 if epoch == 3 else epoch
        content = (folder / "checkpoints" / f"epoch-{taken}.pt").read_bytes()
        (tmp_path / "checkpoints" / f"epoch-{epoch}.pt").write_bytes(content)
    more = {"average": [2, 3], "spectra": True, "on_duplicate": "keep", **options(folder)}
    plan = plan_extraction(tmp_path / "checkpoints", probe, **more)
    run_extraction(plan, tmp_path / "a.h5", shard=Shard(1, 1))
    before = {part.name: part.stat().st_mtime_ns for part in (tmp_path / "a.h5.parts").glob("*.h5")}
    (tmp_path / "checkpoints" / "epoch-3.pt").write_bytes((folder / "checkpoints" / "epoch-3.pt").read_bytes())
    plan = plan_extraction(tmp_path / "checkpoints", probe, **more)
    run_extraction(plan, tmp_path / "a.h5", shard=Shard(1, 1))
    after = {part.name: part.stat().st_mtime_ns for part in (tmp_path / "a.h5.parts").glob("*.h5")}
    assert [name[5] for name in sorted(before) if before[name] != after[name]] == ["3", "4", "5"]
    merge(tmp_path / "a.h5")
    assert_same(tmp_path / "a.h5", averaged)


def test_spectra_are_measured_of_every_layer_and_of_all(run, averaged):
    folder, _ = run
    last = torch.load(folder / "checkpoints" / f"epoch-{E}.pt")
    ranks, alphas = {}, {}
    for name in ("0", "3"):
        singular = torch.linalg.svdvals(last[f"{name}.weight"].double()).numpy() ** 2
        ranks[name], alphas[name] = singular.sum() / singular.max(), naive.hill(singular)
    with posthoc.open_activations(averaged) as file:
        names = ["weights_cosine", "weights_stable_rank", "weights_hill_alpha"]
        metrics = posthoc.compute_metrics(file, nulls=0, measures=names)
        given = file.statistics(E - 1)
    assert given["tensor"].tolist() == ["0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias"]
    np.testing.assert_allclose(given["stable_rank"][[0, 4]], list(ranks.values()), rtol=1e-9)
    assert np.isnan(given["hill_alpha"][[1, 2, 3, 5]]).all()
    for name in ("0", "3"):
        assert metrics.weights[name].stable_rank[-1] == pytest.approx(ranks[name])
        assert metrics.weights[name].hill_alpha[-1] == pytest.approx(alphas[name])
    assert np.isnan(metrics.weights["1"].stable_rank).all()
    assert metrics.column("weights_stable_rank")[-1] == pytest.approx(np.mean(list(ranks.values())))
    assert metrics.column("weights_hill_alpha")[-1] == pytest.approx(np.mean(list(alphas.values())))
    assert metrics.measures["weights_cosine"].looks_ahead
    assert not metrics.measures["weights_hill_alpha"].looks_ahead


def test_loss_accuracy_and_barrier_are_measured_with_their_intervals(run, averaged, tmp_path):
    with posthoc.open_activations(averaged) as file:
        names = "average_2_loss,average_3_loss,average_3_accuracy,barrier"
        metrics = posthoc.compute_metrics(file, nulls=0, measures=names)
        own = file.behaviour("loss").astype(float)
    metrics.save(tmp_path / "metrics.json")
    again = posthoc.load_metrics(tmp_path / "metrics.json")
    (middle, _), (losses, right) = by_hand(run, 2), by_hand(run, 3)
    np.testing.assert_allclose(again.column("average_3_loss"), losses.mean(axis=1), rtol=1e-6)
    np.testing.assert_allclose(again.column("average_3_accuracy")[2:], right.mean(axis=1)[2:], rtol=1e-12)
    assert np.isnan(again.column("average_3_accuracy")[:2]).all()
    barriers = middle[1:] - (own[1:] + own[:-1]) / 2
    np.testing.assert_allclose(again.column("barrier"), [np.nan, *barriers.mean(axis=1)], atol=1e-6)
    reach = stats.t.ppf(0.975, 199) * barriers.std(axis=1, ddof=1) / np.sqrt(200)
    np.testing.assert_allclose(again.measures["barrier"].high[1:], barriers.mean(axis=1) + reach, atol=1e-6)
    assert {"barrier", "loss of 2", "loss of 3"} < {column.title for column in tables.checkpoints(again).columns}
    assert {"average_2_loss_low", "average_3_accuracy", "barrier_high"} < again.flat().keys()
    best = again.choice.average
    means = {(count, e): by_hand(run, count)[0][e].mean() for count in (2, 3) for e in range(count - 1, E)}
    lower = min(means.values()) < own.mean(axis=1).min()
    assert (best is not None) == lower
    choice = replace(again.choice, average=Average(3, 4, 0.5, -0.25, -0.4, -0.1))
    assert (
        "; the mean of the weights of the 3 up to epoch 5 has 0.5000, lower (by 0.2500, 0.1000 to 0.4000); last 5:"
        in words.chosen(replace(again, choice=choice))
    )


def test_a_barrier_that_is_planted_is_found_and_none_where_nothing_moved(run, tmp_path):
    """The same function with its hidden units in another order is as good, and far away."""
    folder, probe = run
    state = torch.load(folder / "checkpoints" / f"epoch-{E}.pt")
    order = torch.arange(16).flip(0)
    moved = {name: tensor[order] if tensor.shape[:1] == (16,) else tensor for name, tensor in state.items()}
    moved["3.weight"] = state["3.weight"][:, order]
    (tmp_path / "checkpoints").mkdir()
    for epoch, of in enumerate((state, moved, moved), start=1):
        torch.save(of, tmp_path / "checkpoints" / f"epoch-{epoch}.pt")
    more = {"between": True, "on_duplicate": "keep", **options(folder)}
    with posthoc.open_activations(posthoc.extract(tmp_path / "checkpoints", probe, tmp_path / "a.h5", **more)) as file:
        metrics = posthoc.compute_metrics(file, nulls=0, measures="barrier,difficulty,loss")
    barrier, hardness = metrics.measures["barrier"], metrics.column("difficulty")
    assert barrier.low[1] > 0.01
    assert abs(barrier.value[2]) < 1e-7
    assert hardness[0] == pytest.approx(hardness[1], abs=1e-3)


def test_what_a_file_lacks_is_said_with_the_option_that_records_it(run, tmp_path):
    needs = {
        "barrier": Aside.NEEDS_BETWEEN, "average_3_loss": Aside.NEEDS_AVERAGES, "average_4_accuracy": Aside.NEEDS_AVERAGES,
        "weights_stable_rank": Aside.NEEDS_SPECTRA, "weights_hill_alpha": Aside.NEEDS_SPECTRA,
    }  # fmt: skip
    with posthoc.open_activations(extracted(run, tmp_path / "a.h5")) as file:
        metrics = posthoc.compute_metrics(file, nulls=0, measures=[*needs, "weights_norm"])
        with pytest.raises(UsageError, match=f"barrier {Aside.NEEDS_BETWEEN}"):
            posthoc.audit(file, draws=10, measures="barrier")
        for wrong in ("average_1_loss", "average_3_margin", "score_R2"):
            with pytest.raises(UsageError, match=f"There is no measure '{wrong}'"):
                posthoc.compute_metrics(file, nulls=0, measures=wrong)
        unasked = posthoc.compute_metrics(file, nulls=0, measures="default")
    assert {key: metrics.measures[key].aside for key in needs} == needs
    assert ("not measured", f"barrier: {Aside.NEEDS_BETWEEN}") in tables.summary(metrics)
    assert np.isfinite(metrics.column("weights_norm")).all()
    assert not unasked.measures.keys() & needs.keys()
    with pytest.raises(UsageError, match=f"--beyond barrier: not measured of all runs; .* mine: {Aside.NEEDS_BETWEEN}"):
        measured_of_all([as_run(metrics, "mine")], "barrier", "--beyond")
    with pytest.raises(UsageError, match="--beyond barier: there is no such measure; did you mean barrier"):
        measured_of_all([as_run(metrics, "mine")], "barier", "--beyond")
    with pytest.raises(UsageError, match="Of mine posthoc metrics --measures barrier was not asked for"):
        measured_of_all([as_run(unasked, "mine")], "barrier", "--beyond")
    assert posthoc.list_measures()["average_K_loss"] == "loss of the mean of the last K"
    assert Asked.of(["all", "churn"]).keys == {"churn"}
    assert measure_called("average_12_loss").symbol == "loss of 12"


def test_they_are_audited_as_far_as_what_is_stored_allows(averaged):
    with posthoc.open_activations(averaged) as file:
        audit = posthoc.audit(file, draws=10, measures="barrier,average_3_loss,weights_hill_alpha")
        middle, own = (of[-1].astype(float) for of in (file.behaviour_of_average(2, "loss"), file.behaviour("loss")))
        before, labels = file.behaviour("loss", E - 2).astype(float), file.labels
    controls = {control.name: control.measures for control in audit.controls}
    barriers = middle - (own + before) / 2
    first = by_class_halved(labels)[0]
    (halved,) = [of for name, of in controls.items() if name.startswith("the first half of the")]
    assert halved["barrier"].mean == pytest.approx(barriers[first].mean(), abs=1e-8)
    assert controls[HALVES]["average_3_loss"].sd > 0
    assert controls[LABELS]["barrier"].count == controls["without the checkpoint before"]["average_3_loss"].count == 0
    assert controls[LABELS]["weights_hill_alpha"].sd == 0
    assert (
        "Of other labels there is no barrier: the file keeps losses, and not the scores behind them."
        in audit.conclusions
    )


def test_the_mean_that_is_better_than_any_checkpoint_is_named():
    random = np.random.default_rng(0)
    noise = random.exponential(size=(6, 300))
    losses, better = 1 + noise, {3: 0.7 + noise + 0.01 * random.standard_normal((6, 300))}
    better[3][:2] = np.nan
    best = chosen(losses, np.ones(6, bool), "loss", better).average
    assert (best.count, best.at) == (3, 2 + int(better[3][2:].mean(axis=1).argmin()))
    first = int(losses.mean(axis=1).argmin())
    assert best.difference == pytest.approx((better[3][best.at] - losses[first]).mean())
    level = stats.t.ppf(1 - 0.05 / (2 * 6 * 4), 299)
    reach = level * (better[3][best.at] - losses[first]).std(ddof=1) / np.sqrt(300)
    assert (best.low, best.high) == pytest.approx((best.difference - reach, best.difference + reach))
    assert chosen(losses, np.ones(6, bool), "loss", {3: 2 + better[3]}).average is None


def test_without_labels_there_are_none_and_a_sentence_says_so(run, tmp_path):
    folder, (x, _) = run
    plan = plan_extraction(folder / "checkpoints", (x, None), average=[3], **options(folder))
    assert dict(plan.notes)["averages"] == (
        "none are replayed, for there is no loss of each sample: the probe has no targets"
    )
    run_extraction(plan, tmp_path / "a.h5")
    with posthoc.open_activations(tmp_path / "a.h5") as file:
        assert file.averaged == ()


def test_what_they_cost_is_said(run):
    folder, probe = run
    plan = plan_extraction(folder / "checkpoints", probe, average=[3, 5], spectra=True, **options(folder))
    assert dict(plan.notes)["spectra"] == "of 2 of 6 tensors of weights"
    assert dict(plan.notes)["averages"] == (
        "means of the weights of the last 3, 5: 6 passes over the probe beside those of 6 checkpoints, and 4.9 kB of "
        "memory for 5 of them"
    )
    assert cost(plan)
    plan = plan_extraction(folder / "checkpoints", probe, average=[5, 9], trial=False, **options(folder))
    assert averaging(plan)[0][1] == (
        "means of the weights of the last 5, 9: 2 passes over the probe beside those of 6 checkpoints, and 5.88 kB of "
        "memory for 6 of them; none of 9, for the run has 6 checkpoints"
    )


@pytest.mark.parametrize("count", [1, 0, 1001])
def test_means_of_too_few_or_many_are_refused(run, count):
    folder, probe = run
    with pytest.raises(UsageError, match=f"--average {count}: give numbers of checkpoints from 2 to 1000"):
        plan_extraction(folder / "checkpoints", probe, average=[count])


@pytest.mark.parametrize(
    ("refused", "epochs"), [("600 < most", [1, 2, 4, 5, 6]), ("400 < most < 600", [1, 2, 3, 4, 5, 6])]
)
def test_a_network_that_fails_with_a_checkpoint_or_with_a_mean(run, tmp_path, refused, epochs):
    """Of checkpoints that it fails with there are no means; a checkpoint is kept where it fails with a mean only."""
    folder, (x, y) = run
    shutil.copytree(folder / "checkpoints", tmp_path / "run")
    state = torch.load(tmp_path / "run/epoch-3.pt")
    state["0.weight"][0, 0] = 1000
    torch.save(state, tmp_path / "run/epoch-3.pt")
    source = f"""
from torch import nn

class Net(nn.Sequential):
    def forward(self, x):
        most = float(self[0].weight.max())
        if {refused}:
            raise ValueError("too large")
        return super().forward(x)

def net():
    return Net(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
"""
    (tmp_path / "mine.py").write_text(source)
    plan = plan_extraction(tmp_path / "run", (x, y), average=[2], **options(tmp_path))
    run_extraction(plan, tmp_path / "a.h5", skip_errors=True)
    with posthoc.open_activations(tmp_path / "a.h5") as file:
        assert file.epochs.tolist() == epochs
        made = np.isfinite(file.behaviour_of_average(2, "loss")).all(axis=1)
    assert [epoch for epoch, is_made in zip(epochs, made, strict=True) if is_made] == [2, 5, 6]
