"""Across runs: the published table, states, seeds and stops again, from the published numbers; groups, rules, constants."""

import csv
import json
from dataclasses import replace
from functools import partial

import documents
import numpy as np
import pytest
from click.testing import CliRunner

from posthoc.analysis.compare import (
    differences,
    group_names,
    grouped,
    least_permutation_p,
    permutation_p,
    tabulate,
)
from posthoc.analysis.metrics import compute_metrics
from posthoc.analysis.records import Against
from posthoc.analysis.runs import as_run, from_columns, in_one_unit, load_csv, load_runs, same_training
from posthoc.analysis.sensitivity import sensitivity
from posthoc.analysis.stopping import (
    apply,
    by_budget,
    by_hindsight,
    by_patience,
    by_volatility,
    chosen_elsewhere,
    compare_rules,
    configuration,
    random_epoch,
)
from posthoc.analysis.taxonomy import Evidence, Taxonomy, classify
from posthoc.analysis.verdicts import Verdict, verdict
from posthoc.cli import main
from posthoc.errors import PosthocError, UsageError
from posthoc.report import tables_of_runs
from posthoc.report.words import compared, confounded
from posthoc.store import open_activations

FILES = {
    "ResNet-18": "resnet18_cifar10", "ResNet-34": "resnet34_cifar10", "ResNet-152": "resnet152_cifar10",
    "DenseNet-121": "densenet121_cifar10", "MobileNetV2": "mobilenetv2_cifar10", "ResNet-50": "resnet50_cifar100",
    "ResNet-101": "resnet101_cifar100", "VGG-16": "vgg16_cifar100",
}  # fmt: skip
STATES = {
    "Transitional": "transitional", "Metastable H-I": "metastable, high integration",
    "Stable Convergent": "stable convergent", "Rigidly Sync.": "rigidly synchronised",
    "Partial Integr.": "partial integration",
}  # fmt: skip


def cli(*words):
    return CliRunner().invoke(main, list(map(str, words)))


@pytest.fixture(scope="module")
def table1(published):
    with (published / "Table1.csv").open() as file:
        return list(csv.DictReader(file))


ELSEWHERE = "volatility, threshold chosen on other configurations"


def run(name="a", accuracy=(), loss=(), h_eff=(), m=(), hurst=(), **about):
    E = max(map(len, (accuracy, loss, h_eff)))
    known = {"accuracy": accuracy, "loss": loss, "hurst": hurst, "integration": h_eff, "metastability": m}
    columns = {key: np.array(c if len(c) else np.full(E, np.nan), dtype=float) for key, c in known.items()}
    return from_columns(name, about, range(1, E + 1), columns)


def with_null(run, null, key, **numbers):
    """The run with a measure's result against a null."""
    against = Against(
        **{"mean": np.nan, "differs": 0, "wanting": 0, "epochs": 0, "draws": 99, "decides": True, **numbers}
    )
    measured = run.measures[key]
    summary = replace(measured.summary, nulls={**measured.summary.nulls, null: against})
    return replace(run, measures={**run.measures, key: replace(measured, summary=summary)})


def test_all_nine_published_states(table1):
    assert len(table1) == 9
    for row in table1:
        label = next(state for begins, state in STATES.items() if row["state"].startswith(begins))
        values = Evidence(float(row["Heff_mean"]), float(row["r_Hz_Mz"]), float(row["r_Psi_acc"]))
        assert classify(values, Taxonomy("taxonomy-1")).name == label, row
        assert classify(values).name == "indeterminate"


def test_the_published_states_from_the_published_epochs(table1, published):
    files = [published / f"{FILES.get(row['model'], 'vit_pretrained_cifar10')}.csv" for row in table1]
    states = [
        [run["state"] for run in json.loads(done.stdout)["runs"]]
        for done in (
            cli("compare", "--from-csv", *files, "--json", *words) for words in ((), ("--taxonomy", "taxonomy-1"))
        )
    ]
    assert {state["name"] for state in states[0]} == {"indeterminate"}  # of a CSV no null is known
    assert "not known whether H differs" in states[0][0]["reason"]
    labels = [next(ours for theirs, ours in STATES.items() if row["state"].startswith(theirs)) for row in table1]
    assert [state["name"] for state in states[1]] == labels
    assert cli("compare", "--from-csv", files[0], "--taxonomy", "taxonomy-3").exit_code == 2
    with pytest.raises(UsageError, match=r"No taxonomy is called 'taxonomy-3'; there are taxonomy-2, taxonomy-1\."):
        Taxonomy("taxonomy-3")


def differs(symbol, epochs, words="another order of the same images"):
    """A verdict: in how many of 25 epochs a measure differs; None where its null was not drawn."""
    return Verdict(symbol, "order", words, epochs or 0, epochs=0 if epochs is None else 25)


CERTAIN = Evidence(
    0.88, -0.4, 0.6, (0.85, 0.89), (-0.6, -0.2), (0.3, 0.8), 25, differs("H", 25), differs("M", 25)
)  # fmt: skip


@pytest.mark.parametrize(("changes", "name", "reason"), [
    ({}, "stable convergent", "r(Hz, Mz) = -0.400 is below 0"),
    ({"epochs": 9}, "indeterminate", "fewer than 10 epochs have an H_eff: 9"),
    ({"epochs": 9, "noun": "checkpoint"}, "indeterminate", "fewer than 10 checkpoints have an H_eff: 9"),
    ({"integration": float("nan")}, "indeterminate", "there is no integration"),
    ({"hurst": differs("H", 5)}, "indeterminate",
     "H cannot be distinguished from that of another order of the same images in most epochs"),
    ({"hurst": differs("H", None)}, "indeterminate", "it is not known whether H differs from that of another order"),
    ({"hurst": differs("H", 0, "the same points in another order of time")}, "indeterminate",
     "H cannot be distinguished from that of the same points in another order of time in most epochs"),
    ({"integration_interval": (np.nan, np.nan)}, "indeterminate", "the mean H_eff has no interval"),
    ({"integration_interval": (0.85, 0.91)}, "indeterminate", "the interval of H_eff, 0.850 to 0.910, holds 0.9"),
    ({"metastability": differs("M", 0)}, "indeterminate", "M cannot be distinguished"),
    ({"metastability": differs("M", None)}, "indeterminate", "it is not known whether M differs"),
    ({"fields_interval": (-0.6, 0.1)}, "indeterminate", "the interval of r(Hz, Mz), -0.600 to 0.100, holds 0"),
    ({"accuracy_interval": (np.nan, np.nan)}, "indeterminate", "r(Psi, accuracy) has no interval"),
    # That one of both has the other sign is enough to say that the run is not stable convergent.
    ({"fields": 0.4, "fields_interval": (0.1, 0.6), "accuracy_interval": (-0.1, 0.8)}, "transitional", "between"),
    ({"integration": 0.95, "integration_interval": (0.92, 0.97), "accuracy": -0.5, "accuracy_interval": (-0.7, -0.2)},
     "metastable, high integration", "at least 0.9"),
    # What rests on H_eff alone asks nothing of M or of the correlations.
    ({"integration": 0.1, "integration_interval": (0.05, 0.15), "metastability": differs("M", 0), "fields_interval": (-1, 1)},
     "rigidly synchronised", "below 0.2"),
    # What pure noise gives as well is no name.
    ({"integration": 0.1, "integration_interval": (0.05, 0.15), "noise": 0.03}, "indeterminate", "pure noise through this protocol would"),
    ({"integration": 0.1, "integration_interval": (0.05, 0.15), "noise": 0.3}, "rigidly synchronised", "below 0.2"),
    ({"noise": 0.7}, "stable convergent", "r(Hz, Mz) = -0.400 is below 0"),
])  # fmt: skip
def test_a_name_needs_data_that_carry_it(changes, name, reason):
    state = classify(replace(CERTAIN, **changes))
    assert (state.name, reason in state.reason) == (name, True), state


def test_thresholds_are_parameters():
    assert classify(Evidence(0.5, 0.5, 0.5), Taxonomy("taxonomy-1", partial=0.4)).name == "transitional"


def test_the_published_table_from_the_published_epochs(table1, published):
    """Every column to the printed digits but the two that the source itself contradicts: sd of H_eff, and mean M."""
    wrong = {"integration_sd": set(), "metastability": set()}
    for row in table1:
        name = FILES.get(row["model"], "vit_pretrained_cifar10")
        (table,) = load_csv([str(published / f"{name}.csv")])
        summary, of = table.summary, {key: measured.summary for key, measured in table.measures.items()}
        assert (summary.epochs, summary.best_epoch) == (int(row["epochs"]), int(row["best_epoch"]))
        for value, theirs, digits in (
            (summary.best_accuracy, "best_acc", 1),
            (of["integration"].mean, "Heff_mean", 3),
            (of["stability_index"].mean, "Psi_mean", 3),
            (of["stability_index"].sd, "Psi_std", 3),
            (summary.correlations["integration_metastability"].r, "r_Hz_Mz", 3),
            (summary.correlations["stability_index_accuracy"].r, "r_Psi_acc", 3),
        ):
            assert value == pytest.approx(float(row[theirs]), abs=0.51 * 10**-digits + 1e-3 * (digits == 3)), row
        if abs(of["integration"].sd - float(row["Heff_std"])) > 0.00051:
            wrong["integration_sd"].add(row["model"])
        if abs(of["metastability"].mean - float(row["M_mean"])) > 0.000051:
            wrong["metastability"].add(row["model"])
    assert len(wrong["integration_sd"]) == 8
    assert len(wrong["metastability"]) == 9


def test_seeds_as_groups_beside_the_authors_summaries(published):
    tables = [path for path in sorted((published / "seeds").glob("*_seed*.csv")) if "_v1" not in path.name]
    runs = load_csv(list(map(str, tables)))
    assert len(runs) == 20
    names = group_names(runs, ["model", "dataset"])
    groups = {group.name: group for group in grouped(tabulate(runs), names)}
    assert {len(group.runs) for group in groups.values()} == {5}
    for name, file in (
        ("densenet121, cifar10", "summary_densenet121_cifar10.json"),
        ("mobilenetv2, cifar10", "summary_mobilenetv2_cifar10.json"),
        ("resnet101, cifar100", "summary_resnet101_cifar100.json"),
        ("vgg16bn, cifar100", "summary_vgg16bn_cifar100.json"),
    ):
        numbers = []

        def collect(value, numbers=numbers):
            for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
                collect(inner)
            if isinstance(value, float):
                numbers.append(value)

        collect(json.loads((published / "seeds" / file).read_text()))
        mean = groups[name].quantities["integration"].mean
        assert min(abs(np.array(numbers) - mean)) < 1e-6, (name, mean)
    # Smoothing was swapped by accident between the published runs and these: H_eff goes where noise puts it.
    assert groups["resnet101, cifar100"].quantities["integration"].mean == pytest.approx(0.474, abs=0.001)
    assert groups["vgg16bn, cifar100"].quantities["integration"].mean == pytest.approx(0.037, abs=0.001)


def test_the_published_stops_again_and_what_a_user_would_have_had(published):
    with (published / "prospective.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 16
    causal = []
    for row in rows:
        (each,) = load_csv(
            [str(published / row["file"].removeprefix("results_").replace("mobilenet_", "mobilenetv2_"))]
        )
        threshold = float(row["threshold"])
        stop = apply(partial(by_volatility, threshold=threshold, causal=False), each)
        assert stop.fired == (row["status"] == "TRIGGERED")
        assert stop.when == int(row["psi_stop_epoch"])
        assert stop.lost_at_stop == pytest.approx(float(row["acc_delta_vs_max"]), abs=0.0101)
        assert stop.saved == int(row["epochs_saved"])
        causal.append(apply(partial(by_volatility, threshold=threshold), each))
    published_stops = [int(row["psi_stop_epoch"]) for row in rows]
    differ = sum(a.when != b for a, b in zip(causal, published_stops, strict=True))
    assert differ > 0  # they looked ahead


def test_the_published_claim_of_sensitivity(published):
    names = [f"{name}_cifar10" for name in ("resnet18", "resnet34", "resnet152", "densenet121", "mobilenetv2")]
    names += [f"{name}_cifar100" for name in ("resnet50", "resnet101", "vgg16")]
    runs = load_csv([str(published / f"{name}.csv") for name in names])
    cells = sensitivity(runs, group_names(runs, ["dataset"]))
    assert len(cells) == 60
    for each in cells:
        if each.h_opt == 0.5:
            assert each.gap < 0
        elif each.sigma_h >= 0.1:
            assert each.gap > 0.2
    same = next(each for each in cells if (each.h_opt, each.sigma_h, each.w_h) == (0.7, 0.15, 0.5))
    np.testing.assert_allclose(same.integration, [each.measures["integration"].summary.mean for each in runs])
    expected = [each.summary.correlations["stability_index_accuracy"].r for each in runs]
    np.testing.assert_allclose(same.stability_index_accuracy, expected)
    by_loss = [replace(each, summary=replace(each.summary, judged_by="loss")) for each in runs]
    by_loss = sensitivity(by_loss)[0].stability_index_accuracy
    assert (np.multiply(by_loss, cells[0].stability_index_accuracy) < 0).sum() == 7  # of eight; the other is near 0


def test_patience_and_budgets_by_hand():
    each = run(accuracy=[0.1, 0.3, 0.5, 0.4, 0.6, 0.55], loss=[1.0, 0.8, 0.8005, 0.7995, 0.5, 0.6])
    assert by_patience(each, 1) == 2
    assert by_patience(each, 2) is None
    assert by_patience(each, 2, 0.001) == 3
    assert by_patience(run(accuracy=[0.1, 0.2], loss=[1.0, np.nan]), 1) == 1
    assert by_budget(each, 3) == 2
    assert by_budget(each, 7) is None
    assert by_hindsight(each) == 4
    stop = apply(partial(by_budget, checkpoints=4), each)
    assert (stop.index, stop.when, stop.fired, stop.saved) == (3, 4, True, 2)
    assert stop.lost == pytest.approx(0.1)
    assert stop.lost_at_stop == pytest.approx(0.2)
    assert random_epoch(each).saved == 2.5
    never = apply(partial(by_patience, patience=2), each)
    assert (never.fired, never.saved, never.lost) == (False, 0, 0)


def test_rows_of_a_table_are_taken_by_their_epochs(tmp_path):
    lines = [f"{epoch},{epoch / 20},{0.5 + 0.1 * np.sin(epoch)},0.1,1" for epoch in range(1, 21)]
    random = np.random.default_rng(0)
    for name, rows in {"a": lines, "b": lines[::-1], "c": random.permutation(lines)}.items():
        (tmp_path / f"{name}.csv").write_text("\n".join(["epoch,val_acc,Heff,M,val_loss", *rows]))
    first, *others = load_csv([str(tmp_path / f"{name}.csv") for name in "abc"])
    for other in others:
        assert other.when == first.when == tuple(range(1, 21))
        assert not other.summary.uneven
        for key, column in first.columns.items():
            np.testing.assert_array_equal(column, other.columns[key])


def random_runs(count, E=40):
    random = np.random.default_rng(1)
    return [
        run(f"run{k}", accuracy=1 - np.exp(-np.arange(E) / 10) + 0.01 * random.standard_normal(E),
            loss=np.exp(-np.arange(E) / 10) + 0.01 * random.standard_normal(E),
            h_eff=random.random(E), m=random.random(E), hurst=random.random(E), model=f"net{k}")
        for k in range(count)
    ]  # fmt: skip


def test_causal_rules_do_not_look_ahead():
    for each in random_runs(5):
        whole = each.column("volatility_causal")
        for e in (10, 20, 39):
            part = run(
                accuracy=each.accuracy[: e + 1],
                h_eff=each.column("integration")[: e + 1],
                m=each.column("metastability")[: e + 1],
            )
            np.testing.assert_array_equal(part.column("volatility_causal")[: e + 1], whole[: e + 1])


def test_rules_are_compared_on_the_same_runs():
    scores = {score.rule: score for score in compare_rules(random_runs(6))}
    hindsight, last = scores["best in hindsight"], scores["patience 10"]
    assert hindsight.lost == 0
    assert not hindsight.pareto  # no one can follow it
    assert any(score.pareto for score in scores.values())
    assert last.saved_difference[0] == 0
    assert scores["budget 10"].saved == 30
    assert scores["budget 10"].saved_difference[1] <= scores["budget 10"].saved_difference[2]
    assert 0 < scores["random epoch"].lost < scores["patience 1"].lost + 1
    assert ELSEWHERE in scores
    shares = [score.saved_share for score in compare_rules(random_runs(6))]
    assert shares == sorted(shares, reverse=True)
    with pytest.raises(UsageError, match="has no accuracy"):
        compare_rules([run(h_eff=[0.1, 0.2], m=[0.1, 0.2])])


def test_a_threshold_is_scored_on_runs_it_was_not_chosen_on():
    runs = random_runs(5)
    before = chosen_elsewhere(runs)
    calm = run(
        "calm",
        accuracy=np.linspace(0, 1, 40),
        h_eff=np.tile([0.5, 0.5001], 20),
        m=np.tile([0.1, 0.3], 20),
        model="calm",
    )
    after = chosen_elsewhere([*runs[:4], calm])
    assert len(before) == len(after) == 5
    alone = [apply(partial(by_volatility, threshold=t), calm).index for t in (0.2, 0.3, 0.35, 0.4, 0.5, 0.6)]
    assert after[4].index in alone


def test_seeds_of_one_configuration_do_not_choose_for_each_other():
    """A threshold that pays on one network only is not chosen for another seed of it."""
    E = 40
    others = random_runs(3)
    rising = np.linspace(0, 1, E)
    shaky = np.tile([0.2, 0.2, 0.8, 0.8], 10)
    seeds = [
        run(f"s{seed}", accuracy=np.minimum(rising, 0.2) if seed else rising, h_eff=shaky, m=shaky, model="x", seed=seed)
        for seed in (0, 1, 2)
    ]  # fmt: skip
    with_all, alone = chosen_elsewhere([*others, *seeds]), chosen_elsewhere([*others, seeds[0]])
    assert with_all[3] == alone[3]
    assert len({configuration(each) for each in (*others, *seeds)}) == 4
    assert ELSEWHERE not in {score.rule for score in compare_rules([*others[:1], *seeds])}
    assert len({configuration(run(name)) for name in "ab"}) == 2  # nothing is known of them


def test_permutations_by_hand():
    assert permutation_p(np.array([1.0, 2]), np.array([3.0, 4])) == pytest.approx(2 / 6)
    assert permutation_p(np.array([1.0]), np.array([1.0])) == 1
    assert np.isnan(permutation_p(np.array([]), np.array([1.0])))
    for x, y in ((2, 2), (3, 3), (4, 4), (3, 4), (1, 5)):
        smallest = permutation_p(np.arange(x) * 1.0, 100 + np.arange(y) * 1.0)
        assert smallest == pytest.approx(least_permutation_p(x, y))
    assert np.isnan(least_permutation_p(0, 3))
    assert least_permutation_p(12, 12) == pytest.approx(1 / 10_001)
    random = np.random.default_rng(0)
    p = [permutation_p(random.standard_normal(12), random.standard_normal(12), seed) for seed in range(100)]
    assert 0.35 < np.mean(p) < 0.65
    assert permutation_p(random.standard_normal(12) + 9, random.standard_normal(12)) < 0.001


def seeded(name, integration, m=0.1, **about):
    """A run of that mean integration."""
    values = np.array([integration - 0.01, integration, integration + 0.01])
    return run(name, accuracy=[1, 2, 3], h_eff=values, m=[m, m + 0.1, m], classes=10, images=64, smooth=5, **about)


def test_seeds_of_one_configuration_count_once_where_a_group_has_several():
    kinds = [("a", 1, (0.1, 0.3)), ("a", 2, (0.2,)), ("b", 1, (0.4, 0.6)), ("b", 2, (0.8, 0.9))]
    runs = [
        seeded(f"{group}{lr}{seed}", value, dataset=group, lr=lr, seed=seed)
        for group, lr, values in kinds for seed, value in enumerate(values)
    ]  # fmt: skip
    rows, names = tabulate(runs), group_names(runs, ["dataset"])
    first, second = grouped(rows, names)
    assert (first.runs, first.trials, second.trials) == (("a10", "a11", "a20"), 2, 2)
    assert first.quantities["integration"].mean == pytest.approx(0.2)
    assert second.quantities["integration"].mean == pytest.approx((0.5 + 0.85) / 2)
    gap = next(gap for gap in differences(rows, names) if gap.quantity == "integration")
    assert gap.difference == pytest.approx(0.2 - 0.675)
    assert gap.p == gap.least == pytest.approx(2 / 6)
    of_one = [row for row in rows if row.run.about["lr"] == 1]
    assert [group.trials for group in grouped(of_one, group_names([row.run for row in of_one], ["dataset"]))] == [2, 2]


def test_size_and_coverage_with_seeds_of_several_configurations():
    """Two groups of one population: three configurations of three seeds each, which are alike."""
    random, p, covered = np.random.default_rng(1), [], []
    made = [seeded(f"{k}", 0.5, dataset="ab"[k // 9], lr=k // 3, seed=k % 3) for k in range(18)]
    rows, names = tabulate(made), group_names(made, ["dataset"])
    for _ in range(200):
        values = random.standard_normal(6).repeat(3) + 0.2 * random.standard_normal(18)
        drawn = [
            replace(row, quantities={"integration": replace(row.quantities["integration"], value=value)})
            for row, value in zip(rows, values, strict=True)
        ]
        p.append(differences(drawn, names)[0].p)
        of = grouped(drawn, names)[0].quantities["integration"]
        covered.append(of.low <= 0 <= of.high)
    assert (np.array(p) <= 0.1).mean() <= 0.16
    assert 0.9 <= np.mean(covered) <= 0.99


def test_too_few_runs_is_no_proof_that_groups_are_alike():
    runs = [
        seeded(f"{k}", 0.2 + 0.6 * (k > 3) + k / 1000, m=0.1 + (k * 5 % 8) / 100, dataset="ab"[k > 3], seed=k)
        for k in range(8)
    ]
    rows = tabulate(runs)
    gaps = differences(rows, group_names(runs, ["dataset"]))
    far = next(gap for gap in gaps if gap.quantity == "integration")
    assert (far.p, far.wanting) == (pytest.approx(far.least), True)
    assert far.corrected > 0.05
    assert compared(rows, gaps).endswith("; too few runs to tell whether they differ in integration (a and b).")
    decided = [replace(gap, corrected=0.01) if gap is far else gap for gap in gaps]
    assert compared(rows, decided).endswith("; groups differ in integration (a and b).")


def test_rules_are_set_against_patience_by_configuration():
    losses = [[9, 5, 4, *[6] * 12], [9, 8, 3, *[6] * 12]]
    runs = [
        run(f"{lr}{seed}", accuracy=np.r_[np.arange(9 + lr), [3] * (6 - lr)], loss=losses[seed % 2], h_eff=[0.5] * 15, m=[0.1] * 15, lr=lr, seed=seed)
        for lr in range(3) for seed in range(1 + lr)
    ]  # fmt: skip
    scores = {score.rule: score for score in compare_rules(runs)}
    stops, reference = scores["budget 10"].stops, scores["patience 10"].stops
    differ = np.array([a.lost - b.lost for a, b in zip(stops, reference, strict=True)])
    means = [differ[[0]].mean(), differ[[1, 2]].mean(), differ[[3, 4, 5]].mean()]
    assert scores["budget 10"].lost_difference[0] == pytest.approx(np.mean(means))
    assert np.mean(means) != pytest.approx(differ.mean())
    alike = {score.rule: score for score in compare_rules(runs[3:])}
    assert np.isfinite(alike["budget 10"].lost_difference).all()  # of one configuration: by run


def test_what_runs_of_several_protocols_differ_in_is_named():
    runs = [seeded("a", 0.5, scales="published", axis="image"), seeded("b", 0.5, scales="default", axis="epoch")]
    assert (
        confounded(runs)
        == "Runs differ in axis and scales, which by themselves make measures differ: read them beside the noise."
    )
    assert confounded([runs[0], seeded("c", 0.4)]) == ""


def test_groups_that_the_protocol_itself_tells_apart_carry_a_warning():
    few = [run(f"f{k}", accuracy=[1, 2, 3], h_eff=[0.9, 0.91, 0.9 + k / 50], m=[1, 2, 1], classes=10) for k in range(3)]
    many = [
        run(f"m{k}", accuracy=[1, 2, 3], h_eff=[0.3, 0.31, 0.3 + k / 50], m=[1, 2, 1], classes=100) for k in range(3)
    ]
    few = [with_null(each, "white", "integration", mean=0.95, epochs=3) for each in few]
    many = [with_null(each, "white", "integration", mean=0.31) for each in many]
    rows = tabulate([*few, *many])
    gaps = {gap.quantity: gap for gap in differences(rows, group_names([*few, *many], ["classes"]))}
    assert gaps["integration"].warning == "classes 10 against 100, not recorded: images, smooth"
    assert gaps["integration"].noise == pytest.approx(0.64)
    assert gaps["integration"].p == gaps["integration"].least == pytest.approx(0.1)
    assert gaps["integration"].corrected == pytest.approx(
        min(1, 0.1 * sum(np.isfinite(gap.p) for gap in gaps.values()))
    )
    alike = "6 runs; best accuracy 3.0000 (f0) to 3.0000 (m2); "
    few_runs = "no difference between groups can show with so few runs in each (p is 0.1 at the least)."
    assert compared(rows, list(gaps.values())) == alike + few_runs
    more = [replace(gap, least=0.01) for gap in gaps.values()]
    assert compared(rows, more) == alike + "in no measure can the groups be distinguished (5 %, corrected)."
    with pytest.raises(UsageError, match=r"--by dataset: not recorded for f0; recorded: classes"):
        group_names(few, ["dataset"])


def saved(folder, name, metrics, probe, digest, **settings):
    """The metrics file of a run over a probe of that name and digest."""
    recording = metrics.recording
    provenance = replace(recording.provenance, probe=probe, dataset="text", settings=settings)
    told = replace(metrics.input, probe_sha256=digest, recording=replace(recording, provenance=provenance))
    (folder / name).mkdir(parents=True)
    replace(metrics, input=told).save(folder / name / "metrics.json")


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Four runs over documents, measured: two over 320 tokens, two over 640."""
    folder, runs = tmp_path_factory.mktemp("texts"), []
    for seed, tokens in enumerate((320, 320, 640, 640)):
        path = documents.make(folder / f"{seed}.h5", tokens=tokens, seed=seed, steps=(100, 200), controls=(), channels=3,
                              layers=("residual",))  # fmt: skip
        with open_activations(path) as activations:
            runs.append(compute_metrics(activations))
    return runs


def test_groups_of_other_context_lengths_and_probes_carry_a_warning(texts, tmp_path):
    def warnings(folder, by):
        done = cli("compare", tmp_path / folder, "--by", by, "--json")
        assert done.exit_code == 0, done.output
        return {gap["warning"] for gap in json.loads(done.stdout)["differences"]}

    def save(folder, *kinds):
        for k, (metrics, probe, digest) in enumerate(kinds):
            saved(tmp_path / folder, f"run{k}", metrics, probe, digest, lr=[0.1, 0.01][k // 2], decay=k)

    a, b, c, d = texts
    save("both", (a, "text:kjv", "00"), (b, "text:kjv", "00"), (c, "text:python", "ff"), (d, "text:python", "ff"))
    lengths, probes = "tokens per document 320 against 640", "probe text:kjv against text:python"
    assert warnings("both", "lr") == {f"{lengths}, {probes}"}
    assert warnings("both", "document_tokens") == {probes}
    assert warnings("both", "probe") == {lengths}
    assert (
        "Runs differ in tokens per document, which by itself makes measures differ"
        in cli("compare", tmp_path / "both").stdout
    )
    save("length", (a, "text:kjv", "00"), (b, "text:kjv", "00"), (c, "text:kjv", "11"), (d, "text:kjv", "11"))
    assert warnings("length", "lr") == {lengths}  # which makes other samples of itself
    save(
        "samples",
        *((of, "text:kjv", digest) for of, digest in zip((a, b, a, b), ("00", "00", "11", "11"), strict=True)),
    )
    assert warnings("samples", "lr") == {"samples of the probe text:kjv"}
    save("drawn", *((of, "text:kjv", str(k)) for k, of in enumerate((a, b, a, b))))  # each run other samples
    save("named", *((of, probe, "00") for of, probe in zip((a, b, a, b), ("x", "x", "y", "y"), strict=True)))
    save("mixed", *((of, probe, probe) for of, probe in zip((a, b, a, b), ("x", "y", "y", "x"), strict=True)))
    for alike in ("drawn", "named", "mixed"):
        assert warnings(alike, "lr") == {""}
    for path in (tmp_path / "both").glob("*/metrics.json"):  # as files were before they said how long a document is
        content = json.loads(path.read_text())
        del content["input"]["tokens"]
        path.write_text(json.dumps(content))
    assert warnings("both", "lr") == {probes}
    about = as_run(a, "a").about
    assert (about["document_tokens"], about["classes"]) == (320, "no labels")


def test_grouped_by_data_set_each_group_has_its_own_probe():
    runs = [
        seeded(f"{k}", 0.5 + k / 100, dataset=name, probe=name, lr=k // 2)
        for k, name in enumerate(("cifar10", "cifar10", "digits", "digits"))
    ]
    rows = tabulate(runs)
    for by, warning in (("dataset", ""), ("lr", "probe cifar10 against digits")):
        assert {gap.warning for gap in differences(rows, group_names(runs, [by]), by=[by])} == {warning}


@pytest.fixture(scope="module")
def metrics_files(activations_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("metrics")
    for k, smooth in enumerate((1, 5)):
        (folder / f"run{k}").mkdir()
        done = cli(
            "metrics", activations_file, "-o", folder / f"run{k}" / "metrics.json", "--nulls", "19", "--smooth", smooth
        )
        assert done.exit_code == 0, done.output
    return folder


def test_without_the_z_scores_there_is_no_state(activations_file):
    with open_activations(activations_file) as activations:
        run = as_run(compute_metrics(activations, measures="stability_index"), "a")
    (row,) = tabulate([run])
    assert row.state.reason == "it was measured without z-score of integration, z-score of metastability"


def test_the_command_on_metrics_files(metrics_files):
    runs = load_runs([str(metrics_files)])
    assert [each.name for each in runs] == ["run0", "run1"]
    assert runs[0].about["smooth"] == 1
    assert np.isfinite(runs[0].noise("integration"))
    assert np.isfinite(runs[0].column("loss")).all()
    done = cli("compare", metrics_files / "*" / "metrics.json", "--by", "smooth", "--stopping", "--sensitivity")
    assert done.exit_code == 0
    assert "Runs differ in smooth, which by itself makes measures differ" in done.stdout
    for title in ("Runs", "Groups", "Differences", "smooth 1 against 5", "Stopping rules", "Sensitivity"):
        assert title in done.stdout
    content = json.loads(cli("compare", metrics_files, "--by", "smooth", "--json").stdout)
    assert content["runs"][0]["quantities"]["integration"]["noise"] == pytest.approx(runs[0].noise("integration"))
    assert len(content["differences"]) == 4


@pytest.mark.parametrize(("form", "begins"), [("csv", '"run","model",'), ("latex", "% Runs"), ("markdown", "**Runs**")])
def test_other_forms_of_the_table(metrics_files, form, begins):
    done = cli("compare", metrics_files, f"--{form}")
    assert done.exit_code == 0
    assert done.stdout.startswith(begins)
    assert "run1" in done.stdout
    if form == "latex":
        assert r"shufflenet\_v2\_x0\_5" in done.stdout
    if form == "csv":
        header, first, _ = csv.reader(done.stdout.splitlines())
        assert len(set(header)) == len(header) == len(first)
        row = dict(zip(header, first, strict=True))
        assert float(row["integration"]) == load_runs([str(metrics_files)])[0].measures["integration"].summary.mean
        assert {
            "integration_low",
            "integration_high",
            "metastability_low",
            "stability_index_accuracy_high",
        } <= row.keys()


def test_a_run_without_accuracy_is_left_out_of_the_stopping_rules(tmp_path):
    for name, accuracies in (("a", (0.2, 0.5, 0.4)), ("b", ("", "", ""))):
        rows = [f"{e},{value},1,0.{e},0.1" for e, value in enumerate(accuracies, 1)]
        (tmp_path / f"{name}_cifar10.csv").write_text("\n".join(["epoch,val_acc,val_loss,Heff,M", *rows]) + "\n")
    both = cli("compare", "--from-csv", tmp_path / "*.csv", "--stopping")
    assert both.exit_code == 0
    assert "Without an accuracy or other score, and not judged: b_cifar10." in both.stdout
    alone = cli("compare", "--from-csv", tmp_path / "a_cifar10.csv", "--stopping", "--json")
    done = cli("compare", "--from-csv", tmp_path / "*.csv", "--stopping", "--json")
    assert json.loads(done.stdout)["stopping"] == json.loads(alone.stdout)["stopping"]
    assert done.stderr == "Without an accuracy or other score, and not judged: b_cifar10.\n"
    assert (" at " in cli("compare", "--from-csv", tmp_path / "b_cifar10.csv").stdout) is False
    none = cli("compare", "--from-csv", tmp_path / "b_cifar10.csv", "--stopping")
    assert none.exit_code == 2
    assert "none of the runs has an accuracy" in none.stderr
    ahead = cli("compare", "--from-csv", tmp_path / "b_cifar10.csv", "--predict", "all")
    assert ahead.exit_code == 2
    assert "none of the runs has an accuracy" in ahead.stderr


def test_columns_of_other_names_and_bad_files(tmp_path):
    (tmp_path / "a_cifar10.csv").write_text("ep,acc,I,MM\n1,0.5,0.6,0.1\n2,,0.7,0.2\n3,0.6,,0.1\n")
    mapping = {"epoch": "ep", "accuracy": "acc", "h_eff": "I", "m": "MM"}
    (each,) = load_csv([str(tmp_path / "a_cifar10.csv")], mapping)
    assert (each.about, each.when) == ({"model": "a", "dataset": "cifar10"}, (1, 2, 3))
    np.testing.assert_array_equal(each.column("integration"), [0.6, 0.7, np.nan])
    words = [f"--column={ours}={theirs}" for ours, theirs in mapping.items()]
    assert cli("compare", "--from-csv", tmp_path / "a_cifar10.csv", *words).exit_code == 0
    with pytest.raises(
        PosthocError,
        match=r"lacks the columns epoch \(epoch\), integration \(Heff\), metastability \(M\); it has ep, acc",
    ):
        load_csv([str(tmp_path / "a_cifar10.csv")])
    with pytest.raises(PosthocError, match=r"lacks the columns loss \(typo\)"):
        load_csv([str(tmp_path / "a_cifar10.csv")], {**mapping, "loss": "typo"})
    with pytest.raises(UsageError, match="No column is called speed"):
        load_csv([str(tmp_path / "a_cifar10.csv")], {"speed": "x"})
    (tmp_path / "b.csv").write_text("epoch,Heff,M\n1,high,0.1\n")
    with pytest.raises(PosthocError, match="line 2: Heff is 'high', not a number"):
        load_csv([str(tmp_path / "b.csv")])
    for epochs, why in (("0.5\n1", "epoch 0.5 is no whole number"), ("3\n3", "epoch 3 comes twice")):
        rows = [f"{epoch},0.8,0.1" for epoch in epochs.split()]
        (tmp_path / "b.csv").write_text("\n".join(["epoch,Heff,M", *rows]))
        with pytest.raises(PosthocError, match=why):
            load_csv([str(tmp_path / "b.csv")])
    with pytest.raises(PosthocError, match="No such file"):
        load_csv([str(tmp_path / "none.csv")])
    (tmp_path / "empty").mkdir()
    assert "holds no metrics.json" in cli("compare", tmp_path / "empty").stderr
    assert cli("compare", tmp_path, "--column", "m=M").exit_code == 2
    assert cli("compare", "--from-csv", tmp_path / "b.csv", "--column", "m").exit_code == 2


def test_without_a_validation_loss_there_is_no_patience():
    runs = [run(f"r{k}", accuracy=np.linspace(0, 1, 30), h_eff=np.random.default_rng(k).random(30),
                m=np.random.default_rng(k + 9).random(30)) for k in range(3)]  # fmt: skip
    assert by_patience(runs[0], 1) is None
    scores = compare_rules(runs)
    assert not any(score.rule.startswith("patience") for score in scores)
    assert all(np.isnan(score.saved_difference[0]) for score in scores)


def test_what_cannot_be_judged_is_not_the_best():
    accuracy = np.where(np.arange(30) < 15, np.nan, np.linspace(0, 1, 30))
    runs = [run(f"r{k}", accuracy=accuracy, loss=np.linspace(1, 0, 30), h_eff=np.random.default_rng(k).random(30),
                m=np.random.default_rng(k + 9).random(30)) for k in range(3)]  # fmt: skip
    early = next(score for score in compare_rules(runs) if score.rule == "budget 10")
    assert np.isnan(early.lost)
    assert not early.pareto


def test_p_counts_the_arrangement_observed():
    assert permutation_p(np.array([0.950012, 0.949893, 0.9499, 0.949936]), np.array([0.950073])) == pytest.approx(0.2)
    random = np.random.default_rng(0)
    for _ in range(300):
        x, y = 0.9 + 1e-4 * random.standard_normal(4), 0.9 + 1e-4 * random.standard_normal(2)
        assert permutation_p(x, y) >= 1 / 15 - 1e-12


def test_runs_are_counted_once_and_in_one_unit(published, tmp_path):
    path = published / "resnet18_cifar10.csv"
    (tmp_path / "link.csv").symlink_to(path)
    (percent,) = load_csv([str(path), str(path), str(tmp_path / "link.csv")])
    share = replace(percent, name="b", columns={**percent.columns, "accuracy": percent.accuracy / 100})
    a, b = in_one_unit([percent, share])
    np.testing.assert_allclose(a.accuracy, b.accuracy)
    assert in_one_unit([percent])[0] is percent
    unjudged = replace(percent, columns={**percent.columns, "accuracy": np.full(len(percent.when), np.nan)})
    assert in_one_unit([percent, unjudged])[0] is percent
    twins = [replace(percent, name=name, about={**percent.about, "seed": 0}) for name in "ab"]
    assert same_training(twins) == [("a", "b")]
    assert same_training([percent, share]) == []
    dead = replace(percent, name="c", columns={**percent.columns, "accuracy": np.ones(len(percent.when))})
    assert in_one_unit([percent, dead])[0] is percent
    assert in_one_unit([share, dead, percent])[1].accuracy.max() == 0.01
    assert in_one_unit([share, dead])[1] is dead
    rates = [replace(run, about={**run.about, "lr": lr}) for run, lr in zip(twins, (0.1, 0.01), strict=True)]
    assert same_training(rates) == []
    remeasured = [
        replace(run, about={**run.about, "lr": 0.1, "smooth": smooth})
        for run, smooth in zip(twins, (1, 5), strict=True)
    ]
    assert same_training(remeasured) == [("a", "b")]


EPOCHS = np.arange(1, 31)
DEAD = np.where(EPOCHS % 2, 1.0, 0.95)
DEAD_LOSS = 4.61 + 0.02 * (EPOCHS % 2)
LEARNS, LEARNS_LOSS = np.linspace(2, 54.8, 30), np.linspace(4.9, 1.8, 30)


def scored(name, accuracy, loss=(), **about):
    values = 0.5 + 0.01 * (np.arange(len(accuracy)) % 3)
    return run(name, accuracy=accuracy, loss=loss, h_eff=values, m=values, **about)


@pytest.mark.parametrize(("accuracy", "loss", "dataset", "share"), [
    (DEAD, DEAD_LOSS, "cifar100", False),  # at chance, beside one that learns
    (DEAD, DEAD_LOSS, None, False),
    (DEAD / 100, DEAD_LOSS, "cifar100", True),  # the same in shares
    (np.full(30, 0.1), (), "cifar10", True),  # stuck at the chance of ten classes
    (np.full(30, 0.5), (), None, False),  # stuck at that of two hundred
    (np.ones(30), (), "cifar10", False),
    (np.zeros(30), (), None, True),
    (LEARNS / 100, LEARNS_LOSS, "cifar100", True),
    (LEARNS / 100, (), None, True),
    (np.linspace(0.85, 0.92, 30), np.linspace(0.6, 0.3, 30), "cifar100", True),  # fine-tuned
    (np.linspace(0.9, 0.97, 30), (), "mnist", True),
    (np.linspace(0.85, 0.92, 30), (), "cifar100", None),
    (np.where(EPOCHS == 9, 0.0, DEAD), DEAD_LOSS, "cifar100", None),  # as if it learned, with a loss as if it did not
    (DEAD, (), "cifar100", None),
    (np.linspace(0.85, 0.92, 30), np.linspace(2.2, 2.0, 30), "cifar100", None),  # a loss of another kind
])  # fmt: skip
def test_accuracies_up_to_1_beside_others_in_percent(accuracy, loss, dataset, share):
    about = {"dataset": dataset} if dataset else {}
    learns, other = scored("learns", LEARNS, LEARNS_LOSS, **about), scored("other", accuracy, loss, **about)
    if share is None:
        with pytest.raises(
            PosthocError,
            match=r"^other: accuracies of 0\S* to [01.]\S* may be shares of 1 or percent, as those of learns are; give those of all runs as shares\.$",
        ):
            in_one_unit([learns, other])
        return
    a, b = in_one_unit([learns, other])
    if share and accuracy.any():
        assert (a.best, b.best) == pytest.approx((0.548, accuracy.max()))
        assert a.summary.best_accuracy == pytest.approx(0.548)
    elif not share:
        assert (a, b) == (learns, other)  # all are in percent
        known = scored("known", LEARNS / 100, LEARNS_LOSS, **about)
        a, b, c = in_one_unit([learns, other, known])
        assert (a.best, b.best, c.best) == pytest.approx((0.548, accuracy.max() / 100, 0.548))


def test_accuracies_of_another_source_say_nothing_of_a_unit():
    learns, replayed = scored("a", LEARNS, LEARNS_LOSS), scored("b", np.linspace(0.9, 0.95, 30), DEAD_LOSS)
    replayed = replace(replayed, summary=replace(replayed.summary, accuracy_source="probe"))
    a, b = in_one_unit([learns, replayed])
    assert (a.best, b.best) == pytest.approx((0.548, 0.95))
    assert b is replayed


def test_a_collapsed_run_in_percent_is_no_run_at_100_percent(tmp_path):
    for seed, accuracy, loss in ((1, LEARNS, LEARNS_LOSS), (2, DEAD, DEAD_LOSS)):
        rows = [
            f"{e},{a:.2f},{v:.3f},0.{e % 3 + 5},0.0{e % 3 + 8}" for e, a, v in zip(EPOCHS, accuracy, loss, strict=True)
        ]
        path = tmp_path / f"resnet18_cifar100_seed{seed}.csv"
        path.write_text("\n".join(["epoch,val_acc,val_loss,Heff,M", *rows]) + "\n")
    done = cli("compare", "--from-csv", tmp_path / "*.csv", "--csv")
    assert done.exit_code == 0, done.output
    best = [float(row["best_accuracy"]) for row in csv.DictReader(done.stdout.splitlines())]
    assert best == [54.8, 1.0]


def test_the_columns_do_not_depend_on_the_order_of_the_runs(metrics_files):
    drawn = load_runs([str(metrics_files)])
    bare = replace(
        drawn[0], name="bare", measures={
            key: replace(measured, nulls={}, summary=replace(measured.summary, nulls={}))
            for key, measured in drawn[0].measures.items()
        },
    )  # fmt: skip
    tables_of = [tables_of_runs.runs(tabulate(rows)) for rows in ((bare, drawn[1]), (drawn[1], bare))]
    names = [[name for column in table.columns for name in column.names] for table in tables_of]
    assert names[0] == names[1]
    assert "metastability_noise" in names[0]


def test_few_epochs_and_few_draws_are_said(published):
    (each,) = load_csv([str(published / "resnet152_cifar10.csv")])
    assert tabulate([each])[0].state.reason == "fewer than 10 epochs have an H_eff: 3 of 38"
    wanting = with_null(each, "order", "hurst", epochs=38, wanting=38, draws=9)
    assert verdict(wanting, "hurst").mostly is None
    told = with_null(with_null(each, "order", "hurst", epochs=38, wanting=3), "white", "metastability", epochs=38)
    assert verdict(told, "hurst").mostly is False
    assert verdict(told, "metastability").mostly is None  # `white` decides nothing


def test_exponents_beyond_the_calibration_stay_without_integration():
    each = run(accuracy=[1, 2, 3], h_eff=[0.9, 0.0, np.nan], m=[1, 2, 1], hurst=[0.7, np.nan, np.nan])
    cell = next(c for c in sensitivity([each]) if (c.h_opt, c.sigma_h) == (0.7, 0.15))
    assert cell.integration == pytest.approx((0.5,))
    with pytest.raises(UsageError, match="has no exponents"):
        sensitivity([run(accuracy=[1, 2], h_eff=[0.5, 0.5], m=[1, 2])])
