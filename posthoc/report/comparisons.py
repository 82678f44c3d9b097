"""The figures of several runs, and of an audit."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import altair as alt

from posthoc.analysis.audit import MEASURES as AUDITED
from posthoc.analysis.compare import MUST_BE_KNOWN, Row, tabulate
from posthoc.analysis.runs import Run
from posthoc.analysis.stopping import HINDSIGHT, LOOKS_AHEAD, Score, compare_rules
from posthoc.report.figure import Figure, data, hover, named, names_of, number, with_epoch
from posthoc.report.theme import INK, MARK, MUTED, NOISE, OTHER, SECOND, THIRD, VALUE
from posthoc.report.words import TITLES

COLUMNS = 3
"""Small multiples side by side."""


@dataclass(frozen=True)
class Several:
    """Runs to compare. Their table and their stopping rules take bootstraps, done once for all figures of them."""

    runs: Sequence[Run]

    @cached_property
    def rows(self) -> list[Row]:
        """One row per run."""
        return tabulate(self.runs)

    @cached_property
    def scores(self) -> list[Score]:
        """Every stopping rule over the runs; raises UsageError where one has no accuracy."""
        return compare_rules(self.runs)


def comparison(several: Several, width: int) -> Figure:
    """Mean H_eff and M of every run with their intervals, beside pure noise."""
    titles = {"h_eff": "mean integration H_eff", "m": "mean metastability M"}
    rows, table = [], several.rows
    for place, row in enumerate(table):
        for key in titles:
            low, high = row.intervals[key]
            rows.append({"run": row.run.name, "place": place, "measure": key, "value": number(row.summary[key]), "low": number(low),
                         "high": number(high), "noise": number(row.noise[key]), "state": row.state.name})  # fmt: skip
    panels = []
    for key, title in titles.items():
        base = alt.Chart(data([row for row in rows if row["measure"] == key])).encode(
            y=alt.Y("place:O", title=None, axis=named("runs"))
        )
        x = alt.X(
            "value:Q", title=None, scale=alt.Scale(zero=key == "m", **({"domain": [0, 1]} if key == "h_eff" else {}))
        )
        shown = [alt.Tooltip("run:N"), *(alt.Tooltip(f"{name}:Q", format=".4f") for name in ("value", "low", "high", "noise")),
                 alt.Tooltip("state:N")]  # fmt: skip
        panels.append(
            alt.layer(
                _keyed(base.transform_filter("isValid(datum.noise)"), "pure noise").encode(x="noise:Q", tooltip=shown),
                base.transform_filter("isValid(datum.low)").mark_rule(color=VALUE, strokeWidth=2).encode(x="low:Q", x2="high:Q"),
                _keyed(base.transform_filter("isValid(datum.value)"), "mean over epochs").encode(x=x, tooltip=shown),
            ).properties(width=width, height=max(40, 20 * len(table)), title=title)
        )  # fmt: skip
    near = sum(
        low <= row.noise["h_eff"] <= high for row in table for low, high in [row.intervals["h_eff"]]
        if math.isfinite(row.noise["h_eff"])
    )  # fmt: skip
    known = sum(math.isfinite(row.noise["h_eff"]) and math.isfinite(row.intervals["h_eff"][0]) for row in table)
    return Figure(
        "comparison",
        f"The interval of mean H_eff holds that of pure noise in {near} of {known} runs"
        if known
        else "Mean H_eff and M of every run",
        "A point is a run's mean over its epochs, the bar its 95 % interval over further epochs where there is one, the diamond what "
        "pure noise gives through the same protocol: a reference, which takes channels for independent.",
        _confounded(several.runs),
        alt.vconcat(*panels, spacing=14).add_params(names_of("runs", [run.name for run in several.runs])),
    )


def runs(several: Several, width: int) -> Figure:
    """Integration, metastability and accuracy of every run over its epochs, as small multiples."""
    titles = {key: TITLES[key] for key in ("integration", "metastability")} | {"accuracy": "accuracy"}
    rows = [
        {"run": run.name, "place": place, "at": at, "integration": number(run.h_eff[e]), "metastability": number(run.m[e]),
         "accuracy": number(run.accuracy[e]), "integration_noise": number(run.noise("integration")),
         "metastability_noise": number(run.noise("metastability")), "accuracy_noise": None}
        for place, run in enumerate(several.runs) for e, at in enumerate(run.when)
    ]  # fmt: skip
    columns = min(COLUMNS, len(several.runs))
    unit = " or ".join(dict.fromkeys(run.unit for run in several.runs))
    panels, each = [], (width - 50 * (columns - 1)) // columns
    for key, title in titles.items():
        if all(row[key] is None for row in rows):
            continue
        base = alt.Chart().transform_filter(f"isValid(datum.{key})")
        x = alt.X("at:Q", title=unit, axis=alt.Axis(tickMinStep=1, format="d", grid=False))
        y = alt.Y(f"{key}:Q", title=None, scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=4))
        picture = alt.layer(
            # First, and named, for Altair puts what points out a facet's epoch there.
            hover(base.encode(x=x, y=y), unit, [key]).properties(name=f"points_{key}"),
            base.transform_filter(f"isValid(datum.{key}_noise)").mark_line(color=NOISE, strokeDash=[4, 3]).encode(x=x, y=f"{key}_noise:Q"),
            base.mark_line(color=THIRD if key == "accuracy" else VALUE).encode(x=x, y=y),
            base.transform_filter("datum.at === epoch").mark_rule(color=MARK, strokeWidth=1.5).encode(x=x),
            base.transform_filter("datum.at === epoch").mark_point(size=90, color=MARK, strokeWidth=2.5).encode(x=x, y=y),
            data=data(rows),
        ).properties(width=each, height=90)  # fmt: skip
        facets = picture.facet(
            facet=alt.Facet("place:O", title=None, header=alt.Header(labelExpr="runs[datum.value]", labelLimit=each)),
            columns=columns,
        ).properties(title=title)
        panels.append(facets)
    return Figure(
        "runs",
        f"{len(several.runs)} runs side by side, {unit} by {unit}",
        "All panels of a measure share their scale; the dashed line is the mean of pure noise through the run's protocol.",
        _confounded(several.runs),
        with_epoch(alt.vconcat(*panels, spacing=18), None).add_params(
            names_of("runs", [run.name for run in several.runs])
        ),
        columns=columns,
    )


def stopping(several: Several, width: int) -> Figure:
    """Every stopping rule: training saved against accuracy lost."""
    percent = any(float(run.summary["best_accuracy"]) > 1.5 for run in several.runs)
    kinds = {
        "volatility": SECOND,
        "volatility, whole run known": OTHER,
        "patience": VALUE,
        "fixed budget": THIRD,
        "reference": MUTED,
    }
    rows: list[dict[str, Any]] = [
        {"rule": score.rule, "kind": _kind(score.rule), "saved": number(score.saved_share), "epochs": number(score.saved),
         "lost": number(score.lost), "never": number(score.never), "pareto": score.pareto}
        for score in several.scores if math.isfinite(score.lost)
    ]  # fmt: skip
    front = sorted((row for row in rows if row["pareto"]), key=lambda row: (row["saved"], row["lost"]))
    names: dict[tuple[float, float], dict[str, Any]] = {}
    for row in front:  # rules that do the same share one label
        own = names.setdefault((row["saved"], row["lost"]), {**row, "rules": []})
        own["rules"].append(row["rule"])
    highest = max((row["lost"] for row in rows), default=0) or 1
    labels: list[dict[str, Any]] = []
    for row in names.values():  # the others have a tooltip
        if all(
            abs(row["lost"] - own["lost"]) > 0.05 * highest or abs(row["saved"] - own["saved"]) > 0.4 for own in labels
        ):
            more = f" (+{len(row['rules']) - 1})" if len(row["rules"]) > 1 else ""
            labels.append({**row, "text": row["rules"][0] + more})
    x = alt.X("saved:Q", title="share of the training saved", axis=alt.Axis(format="%"), scale=alt.Scale(domain=[0, 1]))
    y = alt.Y("lost:Q", title=f"accuracy lost ({'points' if percent else 'share'})")
    base = alt.Chart(data(rows))
    shown = [alt.Tooltip("rule:N"), alt.Tooltip("saved:Q", format=".1%"), alt.Tooltip("epochs:Q", title="checkpoints saved", format=".1f"),
             alt.Tooltip("lost:Q", format=".4f"), alt.Tooltip("never:Q", title="share of runs in which it never fires", format=".0%")]  # fmt: skip
    picture = alt.layer(
        alt.Chart(data(front)).mark_line(color=INK, strokeWidth=1, interpolate="step-before").encode(x=x, y=y, order="saved:Q"),
        base.mark_point(filled=True, size=70, opacity=0.9).encode(
            x=x, y=y, tooltip=shown,
            color=alt.Color("kind:N", scale=alt.Scale(domain=list(kinds), range=list(kinds.values())), legend=alt.Legend(title=None)),
            shape=alt.Shape("kind:N", scale=alt.Scale(domain=list(kinds)), legend=alt.Legend(title=None)),
        ),
        alt.Chart(data(labels)).mark_text(align="right", dx=-6, dy=-8, fontSize=10).encode(x=x, y=y, text="text:N").transform_filter("datum.saved > 0.5"),
        alt.Chart(data(labels)).mark_text(align="left", dx=6, dy=-8, fontSize=10).encode(x=x, y=y, text="text:N").transform_filter("datum.saved <= 0.5"),
    ).properties(width=width, height=320)  # fmt: skip
    useful = [row for row in front if row["kind"] != "reference" and row["never"] < 1]
    best = [row["rule"] for row in useful if row["kind"] == "volatility"]
    return Figure(
        "stopping",
        f"Of the {len(useful)} rules that fire and that no other beats, {len(best)} use{'s' if len(best) == 1 else ''} volatility",
        "Each point is a rule, its mean over the runs: right is more training saved, down is less accuracy lost; the line "
        "joins those that no other rule beats in both.",
        "Rules marked 'whole run known' look into the future; a fixed threshold that does well here was found here"
        + (f", and {len(several.runs)} runs are few." if len(several.runs) < 10 else "."),
        picture,
        widest=760,
    )


def audit(content: Mapping[str, Any], width: int) -> Figure:
    """Every control of an audit: H_eff and M with one thing changed at a time."""
    names = [control["name"] for control in content["controls"]]
    panels = []
    for key in AUDITED:
        rows = [
            {"control": control["name"], **{name: number(control["measures"][key][name]) for name in ("mean", "low", "high")}}
            for control in content["controls"]
        ]  # fmt: skip
        base = alt.Chart(data(rows)).transform_filter("isValid(datum.mean)").encode(
            y=alt.Y("control:N", sort=names, title=None, scale=alt.Scale(domain=names))
        )  # fmt: skip
        shown = [
            alt.Tooltip("control:N"),
            *(alt.Tooltip(f"{name}:Q", format=".4f") for name in ("mean", "low", "high")),
        ]
        panels.append(
            alt.layer(
                alt.Chart(data(rows[:1])).mark_rule(color=VALUE, strokeDash=[3, 3]).encode(x="mean:Q"),
                base.mark_rule(color=MUTED, strokeWidth=2).encode(x="low:Q", x2="high:Q"),
                base.mark_point(filled=True, size=55, opacity=1).encode(
                    x=alt.X("mean:Q", title=None, scale=alt.Scale(zero=True)), tooltip=shown,
                    color=alt.condition(f"datum.control === {names[0]!r}", alt.value(VALUE), alt.value(INK)),
                ),
            ).properties(width=width, height=17 * len(names), title=TITLES[key])
        )  # fmt: skip
    verdicts = content["verdicts"]
    said = [
        f"{symbol} responds to {', '.join(verdicts[key]['responds']) or 'nothing'}"
        for key, symbol in AUDITED.items() if key in verdicts
    ]  # fmt: skip
    return Figure(
        "audit",
        "; ".join(said),
        "The last checkpoint measured again with one thing changed at a time; bars hold 95 % of the draws, the dashed line is "
        "the run as it is.",
        " ".join(text for text in content["conclusions"] if "cannot be" in text),
        alt.vconcat(*panels, spacing=14),
    )


FIGURES: dict[str, Callable[[Several, int], Figure]] = {
    "comparison": comparison,
    "runs": runs,
    "stopping": stopping,
}


def _keyed(base: Any, key: str) -> Any:
    """Points in the colour and shape of what they stand for, which the legend names."""
    keys, colours, shapes = ["mean over epochs", "pure noise"], [VALUE, MUTED], ["circle", "diamond"]
    return (
        base.transform_calculate(key=repr(key))
        .mark_point(filled=True, size=80, opacity=1)
        .encode(
            color=alt.Color("key:N", scale=alt.Scale(domain=keys, range=colours), legend=alt.Legend(title=None)),
            shape=alt.Shape("key:N", scale=alt.Scale(domain=keys, range=shapes), legend=alt.Legend(title=None)),
        )
    )


def _confounded(several: Sequence[Run]) -> str:
    """A warning where runs differ in what the protocol itself responds to."""
    differ = [
        name for name in MUST_BE_KNOWN
        if len({run.about.get(name) for run in several}) > 1
    ]  # fmt: skip
    if not differ:
        return ""
    return f"Runs differ in {', '.join(differ)}, which by themselves make H_eff differ: read it beside the noise."


def _kind(rule: str) -> str:
    if rule.endswith(LOOKS_AHEAD):
        return "volatility, whole run known"
    if rule in (HINDSIGHT, "random epoch"):
        return "reference"
    return "fixed budget" if rule.startswith("budget") else rule.split()[0].strip(",")
