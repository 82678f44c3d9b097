"""What each section of the page says: its rows, counts and verdicts, which `page.md` puts into sentences."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from posthoc.analysis.protocol import Protocol
from posthoc.analysis.records import Against, RunMetrics, Settles
from posthoc.analysis.settling import settling
from reproduction.kept import ROWS, Cell, Kept, Row, Study, correlation, known, mean
from reproduction.text import CORRELATIONS, FIELDS, extent, interval, number, over_epochs, spread, times, with_interval

H_OPT = 0.7
PLATEAU = 0.01
WILD = 0.5
"""Standard deviation of an exponent beyond which its draws say nothing."""
ANOTHER_ORDER = "images of each class in another order"
RULES = (
    "volatility < 0.2", "volatility < 0.35", "volatility < 0.4",
    "volatility, threshold chosen on other configurations",
    "volatility < 0.35, whole run known", "volatility < 0.4, whole run known", "patience 1", "patience 3", "patience 5",
    "patience 10", "budget 10", "budget 20", "random epoch", "best in hindsight",
)  # fmt: skip
LEAST_EPOCHS = 10
"""Of which a correlation over epochs is shown."""
SETTLED = (25, 38, 58)
"""Epochs of the shortest, a middling and the longest published run."""
NOT_CONVERGING = {"white": "white noise", "walk": "random walks", "divergent": "a steady rise"}
FIELD_MEASURES = ("integration", "metastability")
THRESHOLD = 0.35
Rows = list[Sequence[Any]]


def what_was_run(study: Study) -> dict[str, Any]:
    """The runs, and which of the recipes were not."""
    rows = [
        [run.recipe, run.seed, len(run.trained()), f"{run.audit.samples:,}", run.metrics.protocol.smooth,
         run.metrics.recording.identity.device, run.metrics.summary.draws]
        for run in study.runs
    ]  # fmt: skip
    trainings = [list(row.values()) for row in study.trainings]
    header = list(study.trainings[0]) if trainings else []
    return {
        "note": study.note,
        "rows": rows,
        "trainings": trainings,
        "header": header,
        "missing": [name for name in ROWS if not _seeds(study, name)],
    }


def _seeds(study: Study, recipe: str) -> list[Kept]:
    """The runs of a recipe."""
    return [run for run in study.runs if run.recipe == recipe]


def nine_rows(study: Study) -> dict[str, Any]:
    """Every row of the table as printed, as published, as ours, and of noise."""
    epochs = {content["run"]: content for content in study.published.get("runs", [])}
    rows: Rows = []
    for recipe, row in ROWS.items():
        if printed := study.printed.get(recipe):
            rows.append([
                f"**{printed['model']}, {printed['dataset']}**", "printed", printed["best_acc"],
                f"{printed['Heff_mean']} ± {printed['Heff_std']}", printed["M_mean"], printed["r_Hz_Mz"], printed["r_Psi_acc"],
            ])  # fmt: skip
        elif _seeds(study, recipe):
            rows.append([f"**{recipe}**", "not printed", *[""] * 5])
        else:
            continue
        if row.published in epochs:
            rows.append(_published(epochs[row.published]))
        rows += map(_ours, _seeds(study, recipe))
        rows.append(_noise(study, row))
    return {"rows": rows, "draws": len(next(iter(study.noise.values()))["integration"])}


def _published(content: dict[str, Any]) -> Sequence[Any]:
    known, every, quantities = content["epochs_with_integration"], content["epochs"], content["quantities"]
    h_eff = quantities["integration"]
    return [
        "", "published epochs" + (f", {known} of {every}" if known < every else ""),
        number(quantities["best_accuracy"]["value"], 1), f"{number(h_eff['value'])} ± {number(h_eff['sd'])}",
        number(quantities["metastability"]["value"], 4),
        *(interval(r["value"], (r["low"], r["high"])) for r in map(quantities.get, CORRELATIONS)),
    ]  # fmt: skip


def _ours(run: Kept) -> Sequence[Any]:
    h_eff = run.metrics.measures["integration"].summary
    return [
        "", f"ours, seed {run.seed}", number(100 * run.metrics.summary.best_accuracy, 1),
        f"{number(h_eff.mean)} ± {number(h_eff.sd)}", number(mean(run.metrics, "metastability"), 4),
        *(with_interval(run.metrics, name) for name in CORRELATIONS),
    ]  # fmt: skip


def _noise(study: Study, row: Row) -> Sequence[Any]:
    h_eff, m = (study.noise[row.protocol][name] for name in ("integration", "metastability"))
    levels = [f"{statistics.fmean(h_eff):.3f} ± {statistics.stdev(h_eff):.3f}", f"{statistics.fmean(m):.4f}"]
    return ["", f"noise, {row.protocol}", "", *levels, "", ""]


def separation(study: Study) -> dict[str, Any]:
    """Whether the number of classes alone moves H_eff: in noise, and where classes are split."""
    ten, hundred = (
        [statistics.fmean(study.noise[row.protocol]["integration"]) for row in ROWS.values() if row.classes == classes]
        for classes in (10, 100)
    )
    rows: Rows = []
    lower = []
    for run in study.runs:
        measured, split = run.control("as it is"), run.control("each class split in ten")
        if measured and split:
            lower.append(split.high < measured.mean)
            rows.append([run.name, spread(measured, sd=False), spread(split), spread(run.control("pure noise"))])
    differences = study.published.get("differences", [])
    found = {run.name: against for run in study.runs if (against := _null(run, "order", "integration"))}
    ordered = [run for run in study.runs if run.name in found and found[run.name].differs * 2 > found[run.name].epochs]
    return {
        "shown": bool(rows) and all(lower) and min(ten) > max(hundred),
        "ten": extent(ten),
        "hundred": extent(hundred),
        "rows": rows,
        "order": _sum([run for run in study.runs if run not in ordered], "order", "integration"),
        "ordered": [_in_order(run) for run in ordered],
        "crossed": _crossed(study.crossed),
        "gap": next((row for row in differences if row["quantity"] == "integration"), None),
        "columns": len(differences),
    }


def _crossed(cells: Sequence[Cell]) -> dict[str, Any] | None:
    """Networks x images and labels, and of the networks' sum of squares the shares that go with the number of classes and
    with the network; None where none are kept."""
    columns = list(dict.fromkeys((cell["images"], cell["labels"], cell["classes"]) for cell in cells))
    networks: dict[str, dict[tuple[str, str, int], float]] = {}
    for cell in cells:
        score = "" if cell["accuracy"] is None else f" ({100 * cell['accuracy']:.1f} %)"
        which = "" if cell["seed"] is None else f", seed {cell['seed']}, " + _epoch(cell["epoch"])
        name = f"{cell['run']}{which}{score}"
        row = networks.setdefault("pure noise" if cell["run"] == "noise" else name, {})
        row[cell["images"], cell["labels"], cell["classes"]] = math.nan if cell["h_eff"] is None else cell["h_eff"]
    table = np.array([[row[column] for column in columns] for name, row in networks.items() if name != "pure noise"])
    if not table.size:
        return None
    of_classes = np.array([[column[2] for column in columns]] * len(table))
    of_network = np.repeat(np.arange(len(table)), len(columns)).reshape(table.shape)
    total = ((table - table.mean()) ** 2).sum()
    by_classes, by_network = (
        sum((groups == k).sum() * (table[groups == k].mean() - table.mean()) ** 2 for k in np.unique(groups)) / total
        for groups in (of_classes, of_network)
    )
    return {
        "header": ["network", *(f"{images} images, {count} classes: {labels}" for images, labels, count in columns)],
        "rows": [[name, *(number(row[column]) for column in columns)] for name, row in networks.items()],
        "by_classes": f"{100 * by_classes:.0f}",
        "by_network": f"{100 * by_network:.0f}",
        "networks": len(table),
        "follows": by_classes > 0.9 and by_network < 0.05,
    }


def _epoch(epoch: int | None) -> str:
    return f"epoch {epoch}" if epoch else "untrained"


def convergence(study: Study) -> dict[str, Any]:
    """The stopping rules over our runs and the published ones, and when the signal comes in ours."""
    places = {("our", "this page"): study.comparison, ("the published", "the published epochs"): study.published}
    rules = [
        {"whose": whose, "of": of, **_stopping(content)}
        for (whose, of), content in places.items()
        if content.get("stopping")
    ]
    rows: Rows = []
    early, last = 0, 0
    for run in study.runs:
        epochs, summary = run.trained(), run.metrics.summary
        if any(epoch["accuracy"] is None for epoch in epochs):
            continue
        causal, top = summary.convergence["causal"], summary.best_accuracy
        plateau = next(epoch["epoch"] for epoch in epochs if epoch["accuracy"] > top - PLATEAU)
        last += summary.best_epoch == epochs[-1]["epoch"]
        early += bool(causal) and causal < plateau
        cost = 100 * (top - max(e["accuracy"] for e in epochs if e["epoch"] <= causal)) if causal else None
        retrospective = summary.convergence["retrospective"] or "never"
        alike = summary.settling.get("autoregressive", {}).get("causal")  # of a handful of epochs nothing is said
        on_noise = f"{alike.share:.0%}, {alike.median or 'never'}" if alike else "-"
        rows.append([
            run.name, retrospective, causal or "never", on_noise, plateau, summary.best_epoch, number(cost, 1)
        ])  # fmt: skip
    shortest = _settled(SETTLED[0])
    return {
        "rules": rules, "rows": rows, "early": early, "last": last, "plateau": f"{100 * PLATEAU:.0f}",
        "settled": [
            [f"{epochs} epochs", *(f"{kinds[kind]['causal'].share:.0%}, {kinds[kind]['causal'].median}" for kind in NOT_CONVERGING)]
            for epochs in SETTLED
            for kinds in [_settled(epochs)]
        ],
        "settled_header": ["", *NOT_CONVERGING.values()],
        "settled_epochs": SETTLED[0],
        "white": f"{shortest['white']['causal'].share:.0%}",
        "rise": f"{shortest['divergent']['causal'].share:.0%}",
        "walk": f"{shortest['walk']['causal'].share:.0%}",
    }  # fmt: skip


def _settled(epochs: int) -> dict[str, dict[str, Settles]]:
    """When the rule with the published threshold fires on series of so many epochs that do not converge."""
    return settling(range(1, epochs + 1), THRESHOLD, Protocol().window, Protocol().w_h, (0.0, 0.0))


def _stopping(content: dict[str, Any]) -> dict[str, Any]:
    """What the stopping rules save and lose over runs, and which rule by volatility is better than which patience."""
    scores = {score["rule"]: score for score in content["stopping"]}
    unit = 1 if max(run["quantities"]["best_accuracy"]["value"] or 0 for run in content["runs"]) > 1.5 else 100
    count = len(content["stopping"][0]["stops"])
    rows = [
        [
            rule,
            interval(score["saved"], score["saved_difference"][1:], 1, 1),
            interval(times(unit, score["lost"]), [times(unit, end) for end in score["lost_difference"][1:]], 1, 1),
            f"{round(score['never'] * count)} of {count}",
            _beside(score, unit) or "-",
        ]
        for rule in RULES
        if (score := scores.get(rule))
    ]
    better = [
        f"“{rule}” against {patience} ({_saved_and_lost(scores[rule], unit)} against "
        f"{_saved_and_lost(scores[patience], unit)})"
        for rule in RULES
        if rule.startswith("volatility") and "whole run" not in rule and rule in scores
        for patience in ("patience 1", "patience 3", "patience 5")
        if patience in scores and _beats(scores[rule], scores[patience])
    ]
    by_threshold = scores.get(f"volatility < {THRESHOLD}")
    beside = _beside(by_threshold, unit) if by_threshold else ""
    return {
        "count": count,
        "rows": rows,
        "better": "; ".join(better) or "none does",
        "beside": {"text": beside, "alike": _alike(by_threshold)} if by_threshold and beside else None,
    }


def _beside(score: dict[str, Any], unit: int) -> str:
    """The accuracy lost, in points, less that of patience which saves as much; empty where no patience does."""
    lost, *ends = (times(unit, value) for value in score["patience_difference"])
    return "" if lost is None else interval(lost, ends, 1, 1)


def _saved_and_lost(score: dict[str, Any], unit: int) -> str:
    return f"{score['saved']:.1f} and {unit * score['lost']:.1f}"


def _beats(rule: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether one stopping rule saves no less and loses no more than another, and does better in one of both."""
    if None in (rule["lost"], other["lost"]):
        return False
    saved, lost = rule["saved"] - other["saved"], other["lost"] - rule["lost"]
    return bool(saved >= 0 and lost >= 0 and saved + lost > 0)


def _alike(score: dict[str, Any]) -> bool:
    _, low, high = score["patience_difference"]
    return low is not None and not _side(low, high)


def signs(study: Study) -> dict[str, Any]:
    """With what the sign of the correlation of H_eff and M goes: the smoothing, and the side of the optimum."""
    in_print = {name: float(row["r_Hz_Mz"]) for name, row in study.printed.items()}
    rows: Rows = []
    sides: list[tuple[float, float, float]] = []
    sure, alike = 0, 0
    for run in study.runs:
        r, sign = correlation(run.metrics, FIELDS), _sure_sign(run.metrics)
        if sign and run.recipe in in_print:
            sure += 1
            alike += sign * in_print[run.recipe] > 0
        pairs = [(e["hurst"], e["metastability"]) for e in run.trained() if e["hurst"] is not None]
        raw = statistics.correlation(*zip(*pairs, strict=True)) if len(pairs) > 2 else None
        h = mean(run.metrics, "hurst")
        if h is not None and raw is not None and r is not None:
            sides.append((h, raw, r))
        rows.append([
            run.name, number(in_print.get(run.recipe)), with_interval(run.metrics, FIELDS), number(h), number(raw),
            with_interval(run.metrics, "stability_index_accuracy"),
        ])  # fmt: skip
    smoothed = [(run.name, run.metrics, run.axes["smoothing"]) for run in study.runs if "smoothing" in run.axes]
    exact = [(name, of) for name, of in study.covariance.items() if of.trained.sum() >= LEAST_EPOCHS]
    both = [(_sure_sign(first), _sure_sign(second)) for _, first, second in smoothed]
    return {
        "rows": rows,
        "sure": sure,
        "alike": alike,
        "h_opt": H_OPT,
        "exact": [
            [
                name.partition("-smooth")[0],
                of.protocol.smooth,
                int(of.trained.sum()),
                number(mean(of, "hurst")),
                interval(_fields(of), over_epochs(of, FIELDS)),
            ]
            for name, of in exact
        ],
        "open": sum(not _sure_sign(of) for _, of in exact),
        "sides": _sides(sides),
        "seeds": [
            f"{name}: {extent(correlation(run.metrics, FIELDS) for run in runs)} over {len(runs)} seeds"
            for name in ROWS
            if len(runs := _seeds(study, name)) > 1
        ],
        "flips": sum(a * b < 0 for a, b in both),
        "stays": sum(a * b > 0 for a, b in both),
        "tried": len(both),
        "smoothed": [
            [name, metrics.protocol.smooth, number(mean(metrics, "hurst")), with_interval(metrics, FIELDS)]
            for name, *pair in smoothed
            for metrics in pair
        ],
        "published": _published_signs(study.published) if study.published else None,
    }


def _sure_sign(metrics: RunMetrics) -> int:
    """1 or -1, the sign of r(Hz, Mz), where its interval leaves 0 out; else 0."""
    return _side(*over_epochs(metrics, FIELDS))


def _side(low: float | None, high: float | None) -> int:
    """1 or -1: on which side of 0 an interval lies; 0 where it holds it, or is none."""
    return 0 if low is None or high is None or low <= 0 <= high else 1 if low > 0 else -1


def _fields(metrics: RunMetrics) -> float:
    """Pearson r of H_eff and M over the trained checkpoints, as of their z-scores."""
    return float(np.corrcoef([metrics.column(key)[metrics.trained] for key in FIELD_MEASURES])[0, 1])


def _published_signs(published: dict[str, Any]) -> dict[str, Any]:
    """The same of the published epochs, and of the later runs over seeds."""
    runs = published["hurst"]
    return {
        "sides": _sides([(run["hurst_mean"], run["r_hurst_m"], run["r_fields"]) for run in runs]),
        "rows": [
            [run["run"], number(run["r_fields"]), number(run["hurst_mean"]), number(run["r_hurst_m"])] for run in runs
        ],
        "seeds": [
            [name, ", ".join(f"{r:+.2f}" for r in values), f"{sum(r > 0 for r in values)} of {len(values)}"]
            for name, values in published.get("seeds", {}).items()
        ],
    }


def _sides(runs: Sequence[tuple[float, float, float]]) -> dict[str, int]:
    """How the signs of r(H, M) and r(H_eff, M) go with the side of the optimum; runs: mean H and both correlations."""
    above, below = ([run for run in runs if (run[0] > H_OPT) is higher] for higher in (True, False))
    return {
        "above": len(above),
        "opposite": sum(raw * r < 0 for _, raw, r in above),
        "below": len(below),
        "same": sum(raw * r > 0 for _, raw, r in below),
        "positive": sum(raw > 0 for _, raw, _ in runs),
        "count": len(runs),
    }


def sensitivity(study: Study) -> dict[str, Any]:
    """What the inherited constants decide."""
    gaps: dict[float, list[float | None]] = {}
    for cell in study.published.get("sensitivity", []):
        gaps.setdefault(cell["h_opt"], []).append(cell["gap"])
    cells = study.comparison.get("sensitivity", [])
    rows: Rows = []
    for place, run in enumerate(study.comparison["runs"] if cells else []):
        known = [r for cell in cells if (r := cell["stability_index_accuracy"][place]) is not None]
        h_eff = extent(cell["integration"][place] for cell in cells)
        rows.append([run["run"], h_eff, f"{sum(r < 0 for r in known)} of {len(known)}"])
    return {
        "published": [[f"{optimum}", extent(values)] for optimum, values in sorted(gaps.items())],
        "rows": rows,
        "settings": len(cells),
    }


def untrained(study: Study) -> Rows:
    """What the measures are of the weights of step 0, beside what training and noise give."""
    rows: Rows = []
    for run in study.runs:
        if first := run.untrained():
            cells = []
            for key, digits in (("integration", 3), ("metastability", 4)):
                values = [epoch[key] for epoch in run.trained()]
                noise = spread(run.control("pure noise", key), digits)
                cells += [number(first[key], digits), extent(values, digits), number(values[-1], digits), noise]
            rows.append([run.name, *cells])
    return rows


def other_axes(study: Study) -> Rows:
    """H and M along depth and epochs, beside the null that decides there and one for reference."""
    return [
        [run.name, axis, *(
            text
            for key, reference in (("hurst", "white"), ("metastability", "phase"))
            for text in (number(mean(metrics, key)), _along(metrics, "time", key), _along(metrics, reference, key))
        )]
        for run in study.runs
        for axis, metrics in run.axes.items()
        if axis != "smoothing"
    ]  # fmt: skip


def information(study: Study) -> dict[str, Any]:
    """Whether the measures differ from those of the same images in another order."""
    runs = study.runs
    rows: Rows = []
    inside, audits = 0, 0
    for run in runs:
        epochs = run.trained()
        names = ("as it is", ANOTHER_ORDER, "each channel", "pure noise")
        measured, other, channels, noise = (run.control(name, "metastability") for name in names)
        if measured and other:
            audits += 1
            inside += other.low <= measured.mean <= other.high
        rows.append([
            run.name, _apart(run, "order", "integration"), _apart(run, "order", "metastability"),
            spread(measured, 4, sd=False), *(spread(control, 4) for control in (other, channels, noise)),
            *(number(epochs[place]["metastability"], 4) for place in (0, -1)),
        ])  # fmt: skip
    return {
        "rows": rows,
        "order": _sum(runs, "order", "integration"),
        "order_m": _sum(runs, "order", "metastability"),
        "inside": inside,
        "audits": audits,
    }


def covariance(study: Study) -> dict[str, Any] | None:
    """Of what M above channels in orders of their own is made: how much of it noise has that has the channels' covariance."""
    if not study.covariance:
        return None
    rows: Rows = []
    shares, apart, checkpoints = [], 0, 0
    for name, metrics in study.covariance.items():
        m = metrics.measures["metastability"]
        if not m.nulls:
            continue
        order, gaussian, channel, white = (m.nulls[null] for null in ("order", "gaussian", "channel", "white"))
        share = (gaussian.mean - channel.mean) / (order.mean - channel.mean)
        share = share[np.isfinite(share)]  # of the checkpoints in which references were drawn
        shares += share.tolist()
        apart += m.summary.nulls["order"].differs
        checkpoints += m.summary.nulls["order"].epochs
        score = known(metrics.summary.best_accuracy)
        rows.append([
            name, number(None if score is None else 100 * score, 1), len(m.value), number(m.value[-1], 4),
            *(f"{beside.mean[-1]:.4f} ± {beside.sd[-1]:.4f}" for beside in (order, gaussian, channel, white)),
            f"{share[0]:.2f}" if len(share) == 1 else f"{share.min():.2f} to {share.max():.2f}",
            f"{m.summary.nulls['order'].differs} of {m.summary.nulls['order'].epochs}",
        ])  # fmt: skip
    return {
        "rows": rows, "median": f"{100 * statistics.median(shares):.0f}", "least": f"{100 * min(shares):.0f}",
        "most": f"{100 * max(shares):.0f}", "apart": apart, "checkpoints": checkpoints,
    }  # fmt: skip


def limits(study: Study) -> dict[str, Any]:
    """How few runs there are."""
    seeds = [len(runs) for recipe in ROWS if (runs := _seeds(study, recipe))]
    models = {recipe.partition("-")[0] for recipe in ROWS if _seeds(study, recipe)}
    return {"architectures": len(models), "seeds": max(seeds, default=0)}


def _null(run: Kept, null: str, measure: str) -> Against | None:
    """In how many epochs a measure differs from a null, and the null's mean over them."""
    return run.metrics.measures[measure].summary.nulls.get(null)


def _apart(run: Kept, null: str, measure: str) -> str:
    against = _null(run, null, measure)
    if not against:
        return "not drawn"
    wanting = f", too few draws in {against.wanting}" if against.wanting else ""
    return f"{against.differs} of {against.epochs}{wanting}"


def _in_order(run: Kept) -> str:
    """A run in most of whose epochs H_eff differs from that of another order, with what it is before training."""
    p = run.metrics.measures["integration"].nulls["order"].p
    untrained = [p[e] for e, checkpoint in enumerate(run.metrics.checkpoints) if checkpoint.untrained]
    before = f"; of untrained weights p is {untrained[0]:.2g}" if untrained else ""
    return f"{run.name} ({_apart(run, 'order', 'integration')}{before})"


def _sum(runs: Sequence[Kept], null: str, measure: str) -> str:
    """Over all runs, in how many epochs of how many a measure differs from a null."""
    known = [against for run in runs if (against := _null(run, null, measure))]
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
        return number(against.mean)
    return f"{number(against.mean)}; differs in {against.differs} of {against.epochs}"
