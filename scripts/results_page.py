"""The page of results, from the files that reproduce.py keeps and from nothing else."""

import csv
import json
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Rows of the printed table, in its order: our name, the protocol (images/classes/smoothing) and the file of epochs.
ROWS = {
    "resnet18-cifar10": "2048/10/5",
    "resnet34-cifar10": "2048/10/5",
    "resnet152-cifar10": "2048/10/5",
    "densenet121-cifar10": "4096/10/15",
    "mobilenet_v2-cifar10": "4096/10/15",
    "vit_b_16-cifar10": "256/10/5",
    "resnet50-cifar100": "4096/100/5",
    "resnet101-cifar100": "4096/100/5",
    "vgg16_bn-cifar100": "4096/100/15",
}
RULES = (
    "volatility < 0.35, whole run known", "volatility < 0.35", "volatility < 0.4, whole run known", "volatility < 0.4",
    "volatility, threshold chosen on the other runs", "patience 5", "patience 10", "random epoch", "best in hindsight",
)  # fmt: skip


@dataclass(frozen=True)
class Kept:
    """What is kept of one run: its measures, its audit, and its exponents along the other axes where they were made."""

    run: str
    seed: int
    metrics: dict[str, Any]
    audit: dict[str, Any]
    axes: dict[str, dict[str, Any]]

    @property
    def name(self) -> str:
        return f"{self.run}, seed {self.seed}"

    @property
    def summary(self) -> dict[str, Any]:
        found: dict[str, Any] = self.metrics["summary"]
        return found

    def trained(self) -> list[dict[str, Any]]:
        """The epochs without the untrained checkpoint."""
        return [epoch for epoch in self.metrics["epochs"] if not epoch["untrained"]]

    def untrained(self) -> dict[str, Any] | None:
        return next((epoch for epoch in self.metrics["epochs"] if epoch["untrained"]), None)

    def control(self, name: str, measure: str = "integration") -> dict[str, float] | None:
        """An audit's control: mean, sd, low and high of a measure."""
        for control in self.audit["controls"]:
            if control["name"].startswith(name):
                found: dict[str, float] = control["measures"][measure]
                return found
        return None


def kept_runs(keep: Path) -> list[Kept]:
    """All runs that are kept, in the order of the printed table and of their seeds."""
    runs = []
    for run in ROWS:
        for folder in sorted((keep / run).glob("seed-*"), key=lambda folder: int(folder.name[5:])):
            if (folder / "audit.json").exists():
                axes = {axis: _read(folder / f"{axis}.json") for axis in ("depth", "epoch")}
                metrics, audit = _read(folder / "metrics.json"), _read(folder / "audit.json")
                axes = {axis: content for axis, content in axes.items() if content}
                runs.append(Kept(run, int(folder.name[5:]), metrics, audit, axes))
    return runs


def figures(keep: Path) -> dict[str, tuple[str, list[Path], list[str]]]:
    """The page's figures: file -> the figure, what it is of, and further options."""
    runs = [keep / one.run / f"seed-{one.seed}" for one in kept_runs(keep)]
    if not runs:
        return {}
    every = [folder / "metrics.json" for folder in runs]
    found: dict[str, tuple[str, list[Path], list[str]]]
    found = {"audit.svg": ("audit", every[:1], []), "measures.svg": ("measures", every[:1], [])}
    if len(every) > 1:
        found |= {"runs.svg": ("runs", every, []), "stopping.svg": ("stopping", every, [])}
    return found


def page(keep: Path) -> str:
    """The whole page in Markdown."""
    runs = kept_runs(keep)
    noise, comparison = _read(keep / "noise.json"), _read(keep / "comparison.json")
    published = _read(keep / "published.json")
    parts = [
        "# The published study, reproduced and examined\n",
        "Written by `scripts/reproduce.py` from the files beside this page; `scripts/reproduce.py --check` says whether "
        "every number on it is what they give. The study is [arXiv 2604.09716](https://arxiv.org/abs/2604.09716).\n",
        _what_was_run(keep, runs),
        _table(keep, runs, noise),
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
            f"{one.audit['probe']['images']:,}",
            one.metrics["protocol"]["smooth"],
            one.metrics["input"]["config"]["device"],
            one.metrics["summary"]["draws"],
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
        "Every recipe is the paper's, stopped at the epoch at which the published run ended (`scripts/train.py`). Of "
        "each layer 32 channels are drawn once per run; the released code drew them anew for every epoch.\n"
    )
    return "\n".join(lines)


def _table(keep: Path, runs: Sequence[Kept], noise: dict[str, Any]) -> str:
    rows = []
    for run, row in zip(ROWS, _printed(keep), strict=True):
        theirs = [
            row["best_acc"],
            f"{row['Heff_mean']} ± {row['Heff_std']}",
            row["M_mean"],
            row["r_Hz_Mz"],
            row["r_Psi_acc"],
        ]
        rows.append([f"**{row['model']}, {row['dataset']}**", "published", *theirs])
        for one in (one for one in runs if one.run == run):
            s = one.summary
            rows.append([
                "", f"ours, seed {one.seed}", f"{100 * s['best_accuracy']:.1f}",
                f"{s['integration_mean']:.3f} ± {s['integration_sd']:.3f}", f"{s['metastability_mean']:.4f}",
                _with_interval(s, "r_integration_metastability"), _with_interval(s, "r_stability_index_accuracy"),
            ])  # fmt: skip
        h, m = (noise[ROWS[run]][name] for name in ("integration", "metastability"))
        rows.append(["", f"noise, {ROWS[run]}", "", f"{_mean(h):.3f} ± {_sd(h):.3f}", f"{_mean(m):.4f}", "", ""])
    header = ["", "", "best accuracy, %", "H_eff", "M", "r(Hz, Mz)", "r(Psi, acc)"]
    return "\n".join([
        "## The nine rows\n",
        "Each published row as it is printed, ours where there is one (± is the sd over epochs, in brackets the 95 % "
        "interval over epochs), and 128 series of Gaussian noise, without any network, through the same protocol: images/"
        "classes/smoothing (± is the sd over 20 seeds).\n",
        _markdown(header, rows),
        "\n![Every run over its epochs](figures/runs.svg)\n" if len(runs) > 1 else "",
    ])  # fmt: skip


def _separation(runs: Sequence[Kept], noise: dict[str, Any], published: dict[str, Any]) -> str:
    ten = [_mean(noise[key]["integration"]) for run, key in ROWS.items() if run.endswith("cifar10")]
    hundred = [_mean(noise[key]["integration"]) for run, key in ROWS.items() if run.endswith("cifar100")]
    split = [(one, one.control("each class split in ten")) for one in runs]
    rows = [
        [one.name, _pm(one.control("as it is"), sd=False), _pm(control), _pm(one.control("pure noise"))]
        for one, control in split
        if control
    ]
    apart = min(ten) > max(hundred)
    follows = apart and all(control["high"] < one.control("as it is")["mean"] for one, control in split if control)  # type: ignore[index]
    lines = [
        "## 1. Does integration separate CIFAR-10 from CIFAR-100?\n",
        f"**{'The difference is there, and it is the protocol’s: noise has it, too.' if follows else 'Not decided by these runs.'}** "
        f"Through the protocols of the six CIFAR-10 rows pure noise gives an H_eff of {min(ten):.3f} to {max(ten):.3f}, "
        f"through those of the three CIFAR-100 rows {min(hundred):.3f} to {max(hundred):.3f}.",
        "Class-centring pins a sequence sorted by class at the end of every class, and so at one point in "
        "images/classes; how many classes there are shapes the exponent, whatever the network. The test needs no second "
        "data set: split each class in ten at random, which changes nothing about network or images.\n",
        _markdown(
            ["last checkpoint", "H_eff, ten classes", "H_eff, each split in ten", "pure noise, ten classes"], rows
        ),
    ]
    told = [(one, one.summary["nulls"]["order"]["integration"]) for one in runs if "order" in one.summary["nulls"]]
    if told:
        apart_epochs = sum(found["epochs_told_apart"] for _, found in told)
        epochs = sum(found["epochs"] for _, found in told)
        lines.append(
            f"\nNor does the order of images within a class mean anything, yet it is what H_eff is computed along: in "
            f"{apart_epochs} of {epochs} epochs H_eff can be told from that of the same images in another order.\n"
        )
    if runs:
        lines.append(f"![Controls of {runs[0].name}](figures/audit.svg)\n")
    if gap := next((one for one in published.get("differences", []) if one["column"] == "h_eff"), None):
        lines.append(
            f"In the published epochs of all {len(published['runs'])} runs the mean H_eff of CIFAR-10 exceeds that of "
            f"CIFAR-100 by {gap['difference']:.3f} (p = {gap['p']:.1g} by permuting runs). What noise gives through the "
            f"same protocols says where such a difference comes from.\n"
        )
    return "\n".join(lines)


def _convergence(runs: Sequence[Kept], comparison: dict[str, Any], published: dict[str, Any]) -> str:
    places = [("ours", comparison), ("published", published)]
    lines = ["## 2. Does volatility signal convergence before accuracy does?\n"]
    verdicts = []
    tables = []
    for title, content in places:
        scores = {score["rule"]: score for score in content.get("stopping", [])}
        if not scores:
            continue
        unit = 1 if max(run["best_accuracy"] or 0 for run in content["runs"]) > 1.5 else 100
        count = len(next(iter(scores.values()))["stops"])
        rows = [
            [rule, f"{s['saved']:.1f}", f"{unit * s['lost']:.1f}", f"{round(s['never'] * count)} of {count}"]
            for rule in RULES
            if (s := scores.get(rule))
        ]
        tables += [
            f"The {count} runs of {'this page' if title == 'ours' else 'the published epochs'}:\n",
            _markdown(["rule", "epochs saved", "accuracy lost, points", "never fires"], rows),
            "",
        ]
        patience = scores["patience 5"]
        better = [
            rule
            for rule in RULES
            if rule.startswith("volatility")
            and "whole run" not in rule
            and rule in scores
            and scores[rule]["saved"] > patience["saved"]
            and scores[rule]["lost"] < patience["lost"]
        ]
        what = "our runs" if title == "ours" else "the published ones"
        verdicts.append(f"on {what} {_and(better) + ' does both' if better else 'none does both'}")
    signals = [(one, one.summary["convergence"]) for one in runs]
    rows = [
        [one.name, c["retrospective"] or "never", c["causal"] or "never", one.summary["best_epoch"]]
        for one, c in signals
    ]
    early = sum(bool(c["causal"]) and c["causal"] < one.summary["best_epoch"] for one, c in signals)
    costs = [
        f"{one.name}: {100 * (one.summary['best_accuracy'] - _accuracy_until(one, c['causal'])):.1f}"
        for one, c in signals
        if c["causal"]
    ]
    lines += [
        "**The published test looks ahead: its z-scores are taken over the whole run.** Replayed with what was known at "
        "each epoch, a rule by volatility is of use if it saves more epochs than patience 5 on the validation loss and loses "
        f"less accuracy: {'; '.join(verdicts)}.\n"
        if verdicts
        else "",
        *tables,
        "With the published threshold of 0.35 the signal comes at epoch:\n",
        _markdown(["run", "whole run known", "as known at the time", "best epoch"], rows),
        f"\nIn {early} of {len(signals)} runs the causal signal comes before the best epoch. Stopping there costs, in points "
        f"of accuracy of the best checkpoint kept until then: {'; '.join(costs) or 'it never comes'}.\n",
        "![Stopping rules](figures/stopping.svg)\n" if len(runs) > 1 else "",
    ]
    return "\n".join(lines)


def _accuracy_until(one: Kept, epoch: int) -> float:
    return max(float(e["accuracy"]) for e in one.trained() if e["epoch"] <= epoch)


def _signs(keep: Path, runs: Sequence[Kept], published: dict[str, Any]) -> str:
    printed = {run: float(row["r_Hz_Mz"]) for run, row in zip(ROWS, _printed(keep), strict=True)}
    rows, sure, alike, turned = [], [], [], []
    for one in runs:
        r = one.summary["r_integration_metastability"]
        low, high = one.summary["r_integration_metastability_interval"]
        sure.append(low is not None and (low > 0 or high < 0))
        alike.append(r is not None and r * printed[one.run] > 0)
        pairs = [(e["hurst"], e["metastability"]) for e in one.trained() if e["hurst"] is not None]
        raw = statistics.correlation(*zip(*pairs, strict=True)) if len(pairs) > 2 else math.nan
        h, optimum = one.summary["hurst_mean"], one.metrics["protocol"]["h_opt"]
        turned.append((h, raw, math.nan if r is None else r))
        rows.append([
            one.name, f"{printed[one.run]:.3f}", _with_interval(one.summary, "r_integration_metastability"),
            f"{h:.3f}", _number(raw), _with_interval(one.summary, "r_stability_index_accuracy"),
        ])  # fmt: skip
    over_seeds = [
        f"{run}: {_range(one.summary['r_integration_metastability'] for one in some)} over {len(some)} seeds"
        for run in ROWS
        if len(some := [one for one in runs if one.run == run]) > 1
    ]
    optimum = runs[0].metrics["protocol"]["h_opt"] if runs else math.nan
    on_its_side = sum(r * raw * (optimum - h) > 0 for h, raw, r in turned)
    follows = "."
    if turned and on_its_side == len(turned):
        follows = "; but it is that of r(H, M) on one side of H_opt and its opposite on the other, and smoothing moves H across."
    lines = [
        "## 3. Does the sign of r(Hz, Mz) tell training styles apart?\n",
        f"**Its sign is certain in {sum(sure)} of {len(runs)} runs and that of the published run in {sum(alike)}{follows}** "
        f"Above H_opt = {optimum} H_eff falls as H rises, so that there the correlation with H_eff has the opposite sign of that "
        f"with H itself. {_turned('Of our runs', turned, optimum)}\n",
        _markdown(["run", "r(Hz, Mz) published", "ours (95 %)", "mean H", "r(H, M)", "r(Psi, acc) (95 %)"], rows),
        f"\n{'; '.join(over_seeds)}." if over_seeds else "",
    ]
    if published:
        rows = [
            [one["run"], f"{one['r_fields']:.3f}", f"{one['hurst_mean']:.3f}", f"{one['r_hurst_m']:.3f}"]
            for one in published["hurst"]
        ]
        theirs = [(one["hurst_mean"], one["r_hurst_m"], one["r_fields"]) for one in published["hurst"]]
        lines += [
            f"\nFrom the published epochs of the runs that have more than three with an H. {_turned('Of them', theirs, optimum)}\n",
            _markdown(["run", "r(Hz, Mz)", "mean H", "r(H, M)"], rows),
        ]
    lines.append(
        "\nThe intervals are of the block bootstrap over epochs: neighbouring epochs are alike, so a run holds far fewer "
        "independent points than epochs. Whether H and M go together because of the networks or because both are computed "
        "from the same images in the same order, these runs do not say.\n"
    )
    return "\n".join(lines)


def _turned(whose: str, runs: Sequence[tuple[float, float, float]], optimum: float) -> str:
    """How the signs of the two correlations go with the side of the optimum; runs: mean H, r(H, M), r(H_eff, M)."""
    above = [run for run in runs if run[0] > optimum]
    below = [run for run in runs if run[0] <= optimum]
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
            values = [cell["r_accuracy"][k] for cell in cells if cell["r_accuracy"][k] is not None]
            h = [cell["h_eff"][k] for cell in cells]
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
        first, last = one.untrained(), one.trained()[-1]
        if first:
            rows.append([
                one.name, f"{first['integration']:.3f}", f"{last['integration']:.3f}", _pm(one.control("pure noise")),
                f"{first['metastability']:.4f}", f"{last['metastability']:.4f}",
                _pm(one.control("pure noise", "metastability"), 4),
            ])  # fmt: skip
    return "\n".join([
        "## What untrained weights give\n",
        _markdown(
            ["run", "H_eff untrained", "H_eff, last epoch", "H_eff of noise", "M untrained", "M, last epoch", "M of noise"],
            rows,
        ),
        "\nThe bar of what a measure must beat is not only noise but the network before its first step.\n",
    ])  # fmt: skip


def _axes(runs: Sequence[Kept]) -> str:
    rows = []
    for one in runs:
        for axis, content in one.axes.items():
            nulls, summary = content["summary"]["nulls"], content["summary"]
            time, phase = nulls.get("time", {}).get("hurst"), nulls.get("phase", {}).get("metastability")
            rows.append([
                one.name, axis, _number(summary["hurst_mean"]), _told(time), _number(summary["metastability_mean"]), _told(phase),
            ])  # fmt: skip
    if not rows:
        return ""
    return "\n".join([
        "## What the other two axes give\n",
        "The paper's text speaks of coordination across layers and of sequences over epochs. Along **depth** the units are "
        "images and time is the layers (dozens of hook points, 8 channels each); along **epoch** the units are channels and time is "
        "the checkpoints so far. Exponents are debiased by simulated noise of the same length; the nulls permute time (H) "
        "and randomise phases (M).\n",
        _markdown(["run", "axis", "H", "time permuted", "M", "phases randomised"], rows),
        "\nAn exponent that can be told from that of permuted time says that neighbours in depth or in training are alike, which "
        "they are by construction: layers feed each other, and weights move a little at a time. One that cannot holds no "
        "more order than a shuffled series.\n",
    ])  # fmt: skip


def _information(runs: Sequence[Kept]) -> str:
    rows, apart, all_epochs = [], 0, 0
    for one in runs:
        epochs, nulls = one.trained(), one.summary["nulls"]
        white, channel = nulls["white"]["metastability"], nulls["channel"]["metastability"]
        above = sum(epoch["metastability"] > epoch["nulls"]["white"]["metastability"]["mean"] for epoch in epochs)
        apart, all_epochs = apart + channel["epochs_told_apart"], all_epochs + channel["epochs"]
        rows.append([
            one.name, f"{epochs[0]['metastability']:.4f}", f"{epochs[-1]['metastability']:.4f}",
            f"{_told(white, 4)}, above it in {above}", _told(channel, 4),
        ])  # fmt: skip
    return "\n".join([
        "## What does carry information\n",
        f"**M.** In {apart} of {all_epochs} epochs it can be told from the M of the same channels when each has its images in an "
        "order of its own: channels respond to images together, and how much they do changes as the network is trained.\n",
        _markdown(["run", "M, first epoch", "M, last epoch", "pure noise", "each channel's images in its own order"], rows),
        f"\n![H, H_eff and M of {runs[0].name}](figures/measures.svg)\n" if runs else "",
    ])  # fmt: skip


def _limits(runs: Sequence[Kept]) -> str:
    seeds = {run: sum(one.run == run for one in runs) for run in ROWS}
    return "\n".join([
        "## What does not follow\n",
        f"There are {len(runs)} runs here of {sum(bool(n) for n in seeds.values())} architectures, at most "
        f"{max(seeds.values(), default=0)} seeds of one. They show what the measures respond to; they do not show that no dynamics of "
        "training can be read from activations. That H_eff as published cannot be told from another order of the same "
        "images does not mean that activations hold no long-range structure, only that an arbitrary order of images is no "
        "time in which to look for it. M's distance from its nulls says that channels share responses to images; that this "
        "predicts anything was not tested.\n",
    ])  # fmt: skip


def _printed(keep: Path) -> list[dict[str, str]]:
    """The rows of the published table as they are printed."""
    with (keep / "published_table1.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def _told(null: dict[str, Any] | None, digits: int = 3) -> str:
    if not null:
        return "-"
    return f"{_number(null['null_mean'], digits)}; told apart in {null['epochs_told_apart']} of {null['epochs']}"


def _pm(control: dict[str, float] | None, digits: int = 3, sd: bool = True) -> str:
    if control is None:
        return "-"
    return f"{control['mean']:.{digits}f}" + (f" ± {control['sd']:.{digits}f}" if sd else "")


def _with_interval(summary: dict[str, Any], name: str) -> str:
    low, high = summary[f"{name}_interval"]
    return f"{_number(summary[name])} ({_number(low, 2)} to {_number(high, 2)})"


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _range(values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None and not math.isnan(value)]
    return f"{min(known):.3f} to {max(known):.3f}" if known else "-"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _sd(values: Sequence[float]) -> float:
    mean = _mean(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))


def _and(words: Sequence[str]) -> str:
    return ", ".join(f"“{word}”" for word in words)


def _markdown(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    line: Callable[[Sequence[Any]], str] = lambda row: "| " + " | ".join(map(str, row)) + " |"  # noqa: E731
    return "\n".join([line(header), "|---" * len(header) + "|", *map(line, rows)])


def _read(path: Path) -> dict[str, Any]:
    """A JSON file's content; empty where there is none."""
    if not path.exists():
        return {}
    content: dict[str, Any] = json.loads(path.read_text())
    return content
