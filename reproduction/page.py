"""The page of results, from the files that `reproduction.run` keeps and from nothing else."""

import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from posthoc.analysis.intervals import correlation_over_epochs
from posthoc.analysis.records import Against, RunMetrics
from posthoc.analysis.responses import Spread
from reproduction.kept import ROWS, Kept, correlation, kept_runs, mean, printed, read

H_OPT = 0.7
RULES = (
    "volatility < 0.2", "volatility < 0.35", "volatility < 0.4",
    "volatility, threshold chosen on other configurations",
    "volatility < 0.35, whole run known", "volatility < 0.4, whole run known", "patience 1", "patience 3", "patience 5",
    "patience 10", "budget 10", "budget 20", "random epoch", "best in hindsight",
)  # fmt: skip


def page(keep: Path) -> str:
    """The whole page in Markdown."""
    runs = kept_runs(keep)
    noise, comparison = read(keep / "noise.json"), read(keep / "comparison.json")
    published = read(keep / "published.json")
    parts = [
        "# The published study, reproduced and examined\n",
        "Written by `python -m reproduction.run` from the files beside this page; `python -m reproduction.run --check` says whether it, "
        "and the comparison of the runs, are what they give. The study is [arXiv 2604.09716](https://arxiv.org/abs/2604.09716).\n",
        _what_was_run(keep, runs),
        _table(keep, runs, noise, published),
        _separation(runs, noise, published),
        _convergence(runs, comparison, published),
        _signs(keep, runs, published),
        _sensitivity(comparison, published),
        _untrained(runs),
        _axes(runs),
        _information(runs),
        _limits(runs),
    ]
    return "\n".join(part for part in parts if part)


def _what_was_run(keep: Path, runs: Sequence[Kept]) -> str:
    lines = ["## What was run\n"]
    note = keep / "data.txt"
    if note.exists():
        lines.append(f"Images: {note.read_text().strip()}\n")
    rows = [
        [
            one.run,
            one.seed,
            len(one.trained()),
            f"{one.audit.samples:,}",
            one.metrics.protocol.smooth,
            one.metrics.recording.identity.device,
            one.metrics.summary.draws,
        ]
        for one in runs
    ]
    lines.append(
        _markdown(["run", "seed", "epochs", "images in the probe", "smoothing", "replayed on", "draws of a null"], rows)
    )
    missing = [run for run in ROWS if run not in {one.run for one in runs}]
    if missing:
        lines.append(
            f"\nNot run: {', '.join(missing)}. What is said of them below is of the published numbers, or of pure noise "
            f"through their protocol, and says so.\n"
        )
    lines.append(
        "The recipes are the paper's (`python -m reproduction.train`; on a GPU in bfloat16), stopped at the latest at the epoch at which "
        "the published run ended. Of "
        "each layer 32 channels are drawn once per run; the released code drew them anew for every epoch.\n"
    )
    return "\n".join(lines)


def _table(keep: Path, runs: Sequence[Kept], noise: dict[str, Any], published: dict[str, Any]) -> str:
    epochs = {one["run"]: one for one in published.get("runs", [])}
    rows = []
    for (run, ours), row in zip(ROWS.items(), printed(keep), strict=True):
        theirs = [
            row["best_acc"],
            f"{row['Heff_mean']} ± {row['Heff_std']}",
            row["M_mean"],
            row["r_Hz_Mz"],
            row["r_Psi_acc"],
        ]
        rows.append([f"**{row['model']}, {row['dataset']}**", "printed", *theirs])
        if ours.published in epochs:
            s, q = epochs[ours.published], epochs[ours.published]["quantities"]
            few = (
                f", {s['epochs_with_integration']} of {s['epochs']}"
                if s["epochs_with_integration"] < s["epochs"]
                else ""
            )
            h_eff = q["integration"]
            rows.append([
                "", f"published epochs{few}", _number(q["best_accuracy"]["value"], 1),
                f"{_number(h_eff['value'])} ± {_number(h_eff['sd'])}", _number(q["metastability"]["value"], 4),
                *(_interval(r["value"], (r["low"], r["high"])) for r in map(q.get, CORRELATIONS)),
            ])  # fmt: skip
        for one in (one for one in runs if one.run == run):
            h_eff = one.metrics.measures["integration"].summary
            rows.append([
                "", f"ours, seed {one.seed}", _number(100 * one.metrics.summary.best_accuracy, 1),
                f"{_number(h_eff.mean)} ± {_number(h_eff.sd)}", _number(mean(one.metrics, "metastability"), 4),
                *(_with_interval(one.metrics, name) for name in CORRELATIONS),
            ])  # fmt: skip
        h, m = (noise[ours.protocol][name] for name in ("integration", "metastability"))
        rows.append(
            [
                "",
                f"noise, {ours.protocol}",
                "",
                f"{statistics.fmean(h):.3f} ± {statistics.stdev(h):.3f}",
                f"{statistics.fmean(m):.4f}",
                "",
                "",
            ]
        )
    header = ["", "", "best accuracy, %", "H_eff", "M", "r(Hz, Mz)", "r(Psi, acc)"]
    draws = len(next(iter(noise.values()))["integration"])
    return "\n".join([
        "## The nine rows\n",
        "Each row as the paper prints it, as its published epochs give it, as ours do (± is the sd over epochs, in brackets "
        "the 95 % interval over further epochs), and series of Gaussian noise, without any network, through "
        f"the same protocol: images/classes/smoothing (± is the sd over {draws} seeds). What is printed as M, and after ±, "
        "is in most rows not what the published epochs give; “3 of 38” says that only 3 of 38 epochs have an H_eff.\n",
        _markdown(header, rows),
        "\n![Every run over its epochs](figures/runs.svg)\n" if len(runs) > 1 else "",
    ])  # fmt: skip


def _separation(runs: Sequence[Kept], noise: dict[str, Any], published: dict[str, Any]) -> str:
    ten = [statistics.fmean(noise[row.protocol]["integration"]) for run, row in ROWS.items() if run.endswith("cifar10")]
    hundred = [
        statistics.fmean(noise[row.protocol]["integration"]) for run, row in ROWS.items() if run.endswith("cifar100")
    ]
    rows, lower = [], []
    for one in runs:
        own, split = one.control("as it is"), one.control("each class split in ten")
        if own and split:
            lower.append(split.high < own.mean)
            rows.append([one.name, _pm(own, sd=False), _pm(split), _pm(one.control("pure noise"))])
    shown = bool(rows) and all(lower) and min(ten) > max(hundred)
    verdict = "The protocol alone makes such a difference." if shown else "Not decided by these runs."
    lines = [
        "## 1. Does integration separate CIFAR-10 from CIFAR-100?\n",
        f"**{verdict}** Through the protocols of the six CIFAR-10 rows pure noise gives an H_eff of {min(ten):.3f} to "
        f"{max(ten):.3f}, through those of the three CIFAR-100 rows {min(hundred):.3f} to {max(hundred):.3f}.",
        "Class-centring brings the profile of a sequence sorted by class back to zero at the end of every class, so that the "
        "number of classes shapes the exponent, whatever the network. The test needs no second data set: split each class in ten "
        "at random, which changes nothing about network or images.\n",
        _markdown(["last checkpoint", "H_eff", "each class split in ten", "pure noise, classes whole"], rows),
    ]
    if runs:
        lines.append(
            f"\nNor does the order of images within a class mean anything, though H_eff is computed along it: H_eff differs "
            f"from that of another order of the same images in {_sum(runs, 'order', 'integration')} epochs, as is to be expected of "
            f"an order that is arbitrary.\n"
        )
        lines.append(f"![Controls of {runs[0].name}](figures/audit.svg)\n")
    if gap := next((one for one in published.get("differences", []) if one["quantity"] == "integration"), None):
        lines.append(
            f"In the published epochs of all {len(published['runs'])} runs the mean H_eff of CIFAR-10 exceeds that of "
            f"CIFAR-100 by {gap['difference']:.3f} (p = {gap['p']:.1g} by permuting runs, {gap['corrected']:.1g} corrected for "
            f"{len(published['differences'])} columns; {gap['warning']}). Noise gives a "
            "difference of the same sign through the protocols of the nine rows; that the levels of single rows are not those "
            "of noise, the table above shows.\n"
        )
    return "\n".join(lines)


def _convergence(runs: Sequence[Kept], comparison: dict[str, Any], published: dict[str, Any]) -> str:
    places = [("our", comparison), ("the published", published)]
    lines = ["## 2. Does volatility signal convergence before accuracy does?\n"]
    verdicts, tables = [], []
    for whose, content in places:
        scores = {score["rule"]: score for score in content.get("stopping", [])}
        if not scores:
            continue
        unit = 1 if max(run["quantities"]["best_accuracy"]["value"] or 0 for run in content["runs"]) > 1.5 else 100
        count = len(next(iter(scores.values()))["stops"])
        scored = [
            [
                rule,
                _interval(s["saved"], s["saved_difference"][1:], 1, 1),
                _interval(_times(unit, s["lost"]), [_times(unit, end) for end in s["lost_difference"][1:]], 1, 1),
                f"{round(s['never'] * count)} of {count}",
            ]
            for rule in RULES
            if (s := scores.get(rule))
        ]
        tables += [
            f"The {count} runs of {'this page' if whose == 'our' else 'the published epochs'}; in brackets the 95 % interval, "
            "over further runs, of the difference to patience 10:\n",
            _markdown(["rule", "epochs saved", "accuracy lost, points", "never fires"], scored),
            "",
        ]
        better = [
            f"“{rule}” against {patience} ({scores[rule]['saved']:.1f} and {unit * scores[rule]['lost']:.1f} against "
            f"{scores[patience]['saved']:.1f} and {unit * scores[patience]['lost']:.1f})"
            for rule in RULES
            if rule.startswith("volatility") and "whole run" not in rule and rule in scores
            for patience in ("patience 1", "patience 3", "patience 5")
            if patience in scores and _beats(scores[rule], scores[patience])
        ]
        verdicts.append(f"on {whose} {count} runs {'; '.join(better) or 'none does'}")
    rows: list[Sequence[Any]] = []
    early, last = 0, 0
    for one in runs:
        accuracies = [epoch["accuracy"] for epoch in one.trained()]
        if any(accuracy is None for accuracy in accuracies):
            continue
        summary = one.metrics.summary
        signals, best, top = summary.convergence, summary.best_epoch, summary.best_accuracy
        plateau = next(epoch["epoch"] for epoch in one.trained() if epoch["accuracy"] > top - PLATEAU)
        last += best == one.trained()[-1]["epoch"]
        early += bool(signals["causal"]) and signals["causal"] < plateau
        cost = top - _accuracy_until(one, signals["causal"]) if signals["causal"] else None
        rows.append([
            one.name, signals["retrospective"] or "never", signals["causal"] or "never", plateau, best,
            _number(None if cost is None else 100 * cost, 1),
        ])  # fmt: skip
    if verdicts:
        lines.append(
            "**The published test looks ahead: its z-scores are taken over the whole run.** Replayed with what was known at each "
            "epoch, a rule by volatility is of use if it saves at least as many epochs as a patience on the validation loss and "
            f"loses no more accuracy, and is better in one of the two: {'. Then, '.join(verdicts)}. So few runs decide little "
            "between rules that save and lose alike.\n"
        )
    lines += [
        *tables,
        f"With the published threshold of 0.35 the signal comes at epoch (plateau: the first epoch within {100 * PLATEAU:.0f} "
        "point of the best accuracy; cost: points of accuracy lost by stopping at the causal signal with the best checkpoint "
        "until then):\n",
        _markdown(["run", "whole run known", "as known at the time", "plateau", "best epoch", "cost"], rows),
        f"\nIn {early} of {len(rows)} runs the causal signal comes before the plateau. In {last} of {len(rows)} the best epoch "
        "is the last one trained: there accuracy had not stopped rising, and what is saved and lost is relative to where "
        "training was cut.\n",
        "![Stopping rules](figures/stopping.svg)\n" if len(runs) > 1 else "",
    ]
    return "\n".join(lines)


def _beats(rule: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether one stopping rule saves no less and loses no more than another, and does better in one of both."""
    if None in (rule["lost"], other["lost"]):
        return False
    saved, lost = rule["saved"] - other["saved"], other["lost"] - rule["lost"]
    return bool(saved >= 0 and lost >= 0 and saved + lost > 0)


PLATEAU = 0.01


def _accuracy_until(one: Kept, epoch: int) -> float:
    return max(float(e["accuracy"]) for e in one.trained() if e["epoch"] <= epoch)


def _signs(keep: Path, runs: Sequence[Kept], published: dict[str, Any]) -> str:
    in_print = {run: float(row["r_Hz_Mz"]) for run, row in zip(ROWS, printed(keep), strict=True)}
    turned: list[tuple[float, float, float]] = []
    rows: list[Sequence[Any]] = []
    sure, alike = 0, 0
    for one in runs:
        r = correlation(one.metrics, FIELDS)
        low, high = _over_epochs(one.metrics, FIELDS)
        if low is not None and high is not None and (low > 0 or high < 0):
            sure += 1
            alike += (r or 0) * in_print[one.run] > 0
        pairs = [(e["hurst"], e["metastability"]) for e in one.trained() if e["hurst"] is not None]
        raw = statistics.correlation(*zip(*pairs, strict=True)) if len(pairs) > 2 else None
        h = mean(one.metrics, "hurst")
        if h is not None and raw is not None and r is not None:
            turned.append((h, raw, r))
        rows.append([
            one.name, f"{in_print[one.run]:.3f}", _with_interval(one.metrics, FIELDS),
            _number(h), _number(raw), _with_interval(one.metrics, "stability_index_accuracy"),
        ])  # fmt: skip
    over_seeds = [
        f"{run}: {_range(correlation(one.metrics, FIELDS) for one in some)} over {len(some)} seeds"
        for run in ROWS
        if len(some := [one for one in runs if one.run == run]) > 1
    ]
    smoothed = [(one, one.axes["smoothing"]) for one in runs if "smoothing" in one.axes]
    pairs = [(correlation(one.metrics, FIELDS), correlation(other, FIELDS)) for one, other in smoothed]
    flips = sum(a is not None and b is not None and a * b < 0 for a, b in pairs)
    verdict = (
        f"In {flips} of {len(pairs)} runs tried it turns when nothing but the smoothing is changed."
        if flips
        else "Not decided by these runs."
    )
    lines = [
        "## 3. Does the sign of r(Hz, Mz) tell training styles apart?\n",
        f"**{verdict}** The 95 % interval over epochs leaves 0 out in {sure} of {len(runs)} runs, and in {alike} of these the sign "
        f"is the published one; but the sign goes with the side of H_opt = {H_OPT} on which H lies. Above H_opt H_eff falls as H "
        f"rises, so that there the correlation with H_eff has the opposite sign of that with H. "
        f"{_turned('Of our runs', turned)}\n",
        _markdown(["run", "r(Hz, Mz) printed", "ours (95 %)", "mean H", "r(H, M)", "r(Psi, acc) (95 %)"], rows),
        f"\n{'; '.join(over_seeds)}." if over_seeds else "",
    ]
    if smoothed:
        rows = [
            [
                one.name,
                content.protocol.smooth,
                _number(mean(content, "hurst")),
                _with_interval(content, FIELDS),
            ]
            for one, other in smoothed
            for content in (one.metrics, other)
        ]
        lines += [
            "\nThe same activations with the smoothing of the paper's other rows:\n",
            _markdown(["run", "smoothing", "mean H", "r(Hz, Mz) (95 %)"], rows),
        ]
    if published:
        rows = [
            [one["run"], _number(one["r_fields"]), _number(one["hurst_mean"]), _number(one["r_hurst_m"])]
            for one in published["hurst"]
        ]
        theirs = [(one["hurst_mean"], one["r_hurst_m"], one["r_fields"]) for one in published["hurst"]]
        lines += [
            f"\nFrom the published epochs of the runs that have more than three with an H. {_turned('Of them', theirs)}\n",
            _markdown(["run", "r(Hz, Mz)", "mean H", "r(H, M)"], rows),
        ]
        if published.get("seeds"):
            rows = [
                [name, ", ".join(f"{r:+.2f}" for r in values), f"{sum(r > 0 for r in values)} of {len(values)}"]
                for name, values in published["seeds"].items()
            ]
            lines += [
                "\nr(Hz, Mz) of the paper's later runs over seeds, whose smoothing is not that of the printed rows throughout:\n",
                _markdown(["runs", "r(Hz, Mz)", "above 0"], rows),
            ]
    lines.append(
        "\nNeighbouring epochs are alike, so a run holds far fewer independent points than epochs. Whether H and M go together "
        "because of the networks or because both are computed from the same images in the same order, these runs do not say.\n"
    )
    return "\n".join(lines)


def _turned(whose: str, runs: Sequence[tuple[float, float, float]]) -> str:
    """How the signs of the two correlations go with the side of the optimum; runs: mean H, r(H, M), r(H_eff, M)."""
    above = [run for run in runs if run[0] > H_OPT]
    below = [run for run in runs if run[0] <= H_OPT]
    opposite, same = (sum(raw * r < 0 for _, raw, r in above), sum(raw * r > 0 for _, raw, r in below))
    return (
        f"{whose} {len(above)} have a mean H above it, and in {opposite} of these the signs are opposite; {len(below)} have "
        f"one below, and in {same} of these they are the same. r(H, M) is positive in "
        f"{sum(raw > 0 for _, raw, _ in runs)} of {len(runs)}."
    )


def _sensitivity(comparison: dict[str, Any], published: dict[str, Any]) -> str:
    lines = ["## Sensitivity to H_opt, sigma_H and w_H\n"]
    if cells := published.get("sensitivity"):
        optima = sorted({cell["h_opt"] for cell in cells})
        rows = [[f"{optimum}", _range(cell["gap"] for cell in cells if cell["h_opt"] == optimum)] for optimum in optima]
        lines += [
            "Mean H_eff of the published CIFAR-10 runs less that of the CIFAR-100 runs, over all sigma_H and w_H: which of the "
            "two is the more integrated depends on what is called the optimum.\n",
            _markdown(["H_opt", "difference"], rows),
            "",
        ]
    cells = comparison.get("sensitivity", [])
    if cells:
        rows = []
        for k, run in enumerate(comparison["runs"]):
            values = [
                cell["stability_index_accuracy"][k] for cell in cells if cell["stability_index_accuracy"][k] is not None
            ]
            h = [cell["integration"][k] for cell in cells]
            rows.append([run["run"], _range(h), f"{sum(r < 0 for r in values)} of {len(values)}"])
        lines += [
            f"Our runs, over {len(cells)} settings:\n",
            _markdown(["run", "mean H_eff", "settings with r(Psi, acc) below 0"], rows),
            "",
        ]
    return "\n".join(lines)


def _untrained(runs: Sequence[Kept]) -> str:
    rows = []
    for one in runs:
        first, trained = one.untrained(), one.trained()
        if first:
            rows.append([
                one.name, _number(first["integration"]), _range(epoch["integration"] for epoch in trained),
                _number(trained[-1]["integration"]), _pm(one.control("pure noise")), _number(first["metastability"], 4),
                _range((epoch["metastability"] for epoch in trained), 4), _number(trained[-1]["metastability"], 4),
                _pm(one.control("pure noise", "metastability"), 4),
            ])  # fmt: skip
    return "\n".join([
        "## What the weights of step 0 give\n",
        _markdown(
            ["run", "H_eff, step 0", "all epochs", "last epoch", "noise", "M, step 0", "all epochs", "last epoch", "noise"], rows
        ),
        "\nWhat a measure must beat is not only noise but the network before its first step.\n",
    ])  # fmt: skip


def _axes(runs: Sequence[Kept]) -> str:
    rows = []
    for one in runs:
        for axis, content in one.axes.items():
            if axis != "smoothing":
                rows.append([
                    one.name, axis, _number(mean(content, "hurst")), _along(content, "time", "hurst"),
                    _along(content, "white", "hurst"), _number(mean(content, "metastability")),
                    _along(content, "time", "metastability"), _along(content, "phase", "metastability"),
                ])  # fmt: skip
    if not rows:
        return ""
    return "\n".join([
        "## What the other two axes give\n",
        "The paper's text speaks of coordination across layers and of sequences over epochs. Along **depth** the units are "
        "images and time is the layers (dozens of hook points, 8 channels each); along **epoch** the units are channels and time is "
        "the checkpoints so far. Exponents are debiased by simulated noise of the same length. The null that decides is that which "
        "permutes points in time, the same for all units; pure noise and randomised phases stand beside for reference.\n",
        _markdown(
            ["run", "axis", "H", "time permuted", "pure noise", "M", "time permuted", "phases randomised"], rows
        ),
        "\n“Not drawn”: the measures are of a version that did not draw M's deciding null. “Undefined”: the series is so short that the exponents of the null's draws scatter beyond what can be debiased. The "
        "epochs of the epoch axis are windows that hold one another, not so many tests. An exponent above that of noise says that "
        "neighbours in depth or in training are alike, which they are by construction: layers feed each other, and weights move "
        "a little at a time. Of the other runs of this page no activations were at hand when these axes were measured.\n",
    ])  # fmt: skip


def _information(runs: Sequence[Kept]) -> str:
    decided = [one for one in runs if _null(one, "order", "metastability")]
    rows = []
    for one in runs:
        epochs = one.trained()
        rows.append([
            one.name, _apart(one, "order", "integration"), _apart(one, "order", "metastability"),
            _pm(one.control("as it is", "metastability"), 4, sd=False),
            _pm(one.control(ANOTHER_ORDER, "metastability"), 4), _pm(one.control("each channel", "metastability"), 4),
            _pm(one.control("pure noise", "metastability"), 4), _number(epochs[0]["metastability"], 4),
            _number(epochs[-1]["metastability"], 4),
        ])  # fmt: skip
    audits = [
        (own, other) for one in runs
        if (own := one.control("as it is", "metastability")) and (other := one.control(ANOTHER_ORDER, "metastability"))
    ]  # fmt: skip
    inside = sum(other.low <= own.mean <= other.high for own, other in audits)
    sentences = [
        f"H_eff differs from that of another order of the same images in {_sum(runs, 'order', 'integration')} epochs."
    ]
    if decided:
        sentences.append(f"M differs from that of another order in {_sum(decided, 'order', 'metastability')} epochs.")
    if len(decided) < len(runs):
        sentences.append(
            f"For M that null was not drawn at every epoch in {len(runs) - len(decided)} of {len(runs)} runs, whose measures are "
            "of an earlier version."
        )
    if audits:
        sentences.append(
            f"The audits drew it at the last checkpoint: there M lies within the range of 95 % of the draws in {inside} of "
            f"{len(audits)} runs."
        )
    return "\n".join([
        "## Is there anything in the numbers?\n",
        " ".join(sentences) + " What lifts M above channels in orders of their own, and these above noise, is that channels "
        "respond to the same images, as their covariance says, too; it is no dynamics.\n",
        _markdown(
            ["run", "H_eff differs from another order", "M differs from another order", "M, last checkpoint", "in another order",
             "channels in orders of their own", "pure noise", "M, first epoch", "last epoch"],
            rows,
        ),
        f"\n![H, H_eff and M of {runs[0].name}](figures/measures.svg)\n" if runs else "",
    ])  # fmt: skip


ANOTHER_ORDER = "images of each class in another order"


def _limits(runs: Sequence[Kept]) -> str:
    seeds = {run: sum(one.run == run for one in runs) for run in ROWS}
    return "\n".join([
        "## What does not follow\n",
        f"There are {len(runs)} runs here of {sum(bool(n) for n in seeds.values())} architectures, at most "
        f"{max(seeds.values(), default=0)} seeds of one. They show what the measures respond to; they do not show that no dynamics of "
        "training can be read from activations. That H_eff and M as published cannot be distinguished from those of another "
        "order of the same images does not mean that activations hold no long-range structure, only that an arbitrary order "
        "of images is no time in which to look for it. That M exceeds what independent channels give says that channels "
        "share responses to images; that this predicts anything was not tested.\n",
    ])  # fmt: skip


def _null(one: Kept, null: str, measure: str) -> Against | None:
    """In how many epochs a measure differs from a null, and the null's mean over them."""
    return one.metrics.measures[measure].summary.nulls.get(null)


def _apart(one: Kept, null: str, measure: str) -> str:
    against = _null(one, null, measure)
    if not against:
        return "not drawn"
    few = f", too few draws in {against.wanting}" if against.wanting else ""
    return f"{against.differs} of {against.epochs}{few}"


def _sum(runs: Sequence[Kept], null: str, measure: str) -> str:
    """Over all runs, in how many epochs of how many a measure differs from a null."""
    known = [against for one in runs if (against := _null(one, null, measure))]
    return f"{sum(against.differs for against in known)} of {sum(against.epochs for against in known)}"


def _along(metrics: RunMetrics, null: str, measure: str) -> str:
    """A null along another axis: its mean over epochs, where its draws could be debiased, and from how many it differs."""
    measured = metrics.measures[measure]
    against = measured.summary.nulls.get(null)
    if not against:
        return "not drawn"
    beside = measured.nulls[null]
    drawn = np.isfinite(beside.p)
    if not (beside.sd[drawn] <= WILD).all() or np.isnan(beside.mean[drawn]).any():
        return "undefined"
    if measured.decided_by != null:
        return _number(against.mean)
    return f"{_number(against.mean)}; differs in {against.differs} of {against.epochs}"


WILD = 0.5
"""Standard deviation of an exponent beyond which its draws say nothing."""


def _pm(control: Spread | None, digits: int = 3, sd: bool = True) -> str:
    if control is None:
        return "-"
    return f"{control.mean:.{digits}f}" + (f" ± {control.sd:.{digits}f}" if sd else "")


FIELDS = "integration_metastability"
CORRELATIONS = {FIELDS: ("integration", "metastability"), "stability_index_accuracy": ("stability_index", "accuracy")}


def _over_epochs(metrics: RunMetrics, name: str) -> tuple[float | None, float | None]:
    """The 95 % interval of a correlation, from the epochs that are kept; None where there is none."""
    low, high = correlation_over_epochs(*(metrics.column(key)[metrics.trained] for key in CORRELATIONS[name]))
    return (None, None) if math.isnan(low) else (low, high)


def _with_interval(metrics: RunMetrics, name: str) -> str:
    return _interval(correlation(metrics, name), _over_epochs(metrics, name))


def _interval(value: float | None, ends: Sequence[float | None], digits: int = 3, inner: int = 2) -> str:
    low, high = ends
    return _number(value, digits) + ("" if low is None else f" ({_number(low, inner)} to {_number(high, inner)})")


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _times(factor: float, value: float | None) -> float | None:
    return None if value is None else factor * value


def _range(values: Iterable[float | None], digits: int = 3) -> str:
    known = [value for value in values if value is not None and not math.isnan(value)]
    return f"{min(known):.{digits}f} to {max(known):.{digits}f}" if known else "-"


def _markdown(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in (header, *rows)]
    lines.insert(1, "|---" * len(header) + "|")
    return "\n".join(lines)
