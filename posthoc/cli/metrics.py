"""posthoc metrics: activations.h5 -> metrics.json."""

from collections.abc import Callable
from operator import itemgetter
from pathlib import Path
from typing import Any

import click

from posthoc.cli.exits import echo
from posthoc.cli.inputs import require_activations
from posthoc.cli.output import notes, progress_on_stderr, table
from posthoc.errors import UsageError
from posthoc.files import try_output


@click.command(name="metrics")
@click.argument("activations", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Default: metrics.json beside ACTIVATIONS.")
@click.option("--csv", is_flag=True, help="Write the epochs as a .csv beside the output, too.")
@click.option(
    "--protocol",
    type=click.Choice(["published", "default"]),
    help="published: as arXiv 2604.09716, on the image axis only, where it is the default; "
    "default: no smoothing, usual scales and fluctuation.",
)
@click.option(
    "--axis",
    type=click.Choice(["image", "depth", "epoch"]),
    default="image",
    help="What plays the part of time: the probe's images, the layers, or the checkpoints.",
)
@click.option("--span", type=int, help="On the epoch axis: checkpoints in a window (default: all so far).")
@click.option(
    "--signal",
    default="mean",
    metavar="NAME",
    help="A signal of the file, or effective-rank or participation-ratio, one number per layer, on the epoch axis only.",
)
@click.option(
    "--estimator",
    type=click.Choice(["dfa", "whittle", "reml"]),
    default="dfa",
    help="Of the Hurst exponent: the paper's DFA, or the likelihood of fractional noise, which errs less in short "
    "series without trends: reml below 128 points in time, whittle above.",
)
@click.option(
    "--smooth", type=click.IntRange(min=1), help="Width of the moving mean (default: the protocol's, 5 or 1)."
)
@click.option("--h-opt", type=float, default=0.7, help="Hurst exponent at which integration is 1.")
@click.option("--sigma-h", type=float, default=0.15, help="How fast integration falls off around it.")
@click.option("--w-h", type=float, default=0.5, help="Weight of integration in the stability index.")
@click.option("--window", type=click.IntRange(min=2), default=3, help="Epochs over which volatility is taken.")
@click.option("--threshold", type=float, default=0.35, help="Volatility below which training counts as settled.")
@click.option("--nulls", type=click.IntRange(min=0), default=99, help="Draws of the deciding null for each epoch, "
              "and of the others up to 39; 0: none.")  # fmt: skip
@click.option("--max-nulls", type=click.IntRange(min=1), default=9999, help="Draws of the deciding null at the most, in "
              "epochs where fewer are too few for a verdict.")  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Keys the random numbers of nulls and intervals.")
@click.option("--force", is_flag=True, help="Replace an existing output.")
def command(
    activations: Path,
    output: Path | None,
    csv: bool,
    protocol: str | None,
    nulls: int,
    max_nulls: int,
    seed: int,
    force: bool,
    **changes: Any,
) -> None:
    """Integration, metastability and stability index of every checkpoint in ACTIVATIONS, and of the run."""
    require_activations(activations)
    output = output or activations.with_name("metrics.json")
    outputs = [output, output.with_suffix(".csv")] if csv else [output]
    if csv and outputs[0] == outputs[1]:
        raise UsageError(f"{output}: with --csv the output is the JSON file; give it another ending.")
    for path in outputs:
        try_output(path, force, activations)
    from posthoc.analysis.metrics import compute_metrics
    from posthoc.analysis.records import Protocol
    from posthoc.store import open_activations

    chosen = Protocol.named(protocol or ("published" if changes["axis"] == "image" else "default"), **changes)
    with open_activations(activations) as opened, progress_on_stderr("measuring") as progress:
        metrics = compute_metrics(opened, chosen, nulls, seed, progress, max_nulls)
    metrics.save(output)
    if csv:
        metrics.save_csv(output.with_suffix(".csv"))
    content = metrics.to_dict()
    epoch_table(content)
    echo()
    notes(summary_notes(content))
    for path in outputs:
        echo(path, err=True)


def epoch_table(content: dict[str, Any]) -> None:
    """One line per epoch; H_eff and M beside the null that decides about them."""
    from posthoc.analysis.verdicts import MEASURES

    null = MEASURES["hurst"].deciding[content["protocol"]["axis"]]
    columns: dict[str, Callable[[dict[str, Any]], Any]] = {
        "epoch": itemgetter("epoch"),
        "H": itemgetter("hurst"),
        "H_eff": itemgetter("integration"),
        null: lambda epoch: epoch["nulls"][null]["integration"]["mean"],
        "p ": lambda epoch: epoch["nulls"][null]["integration"]["p"],
        "M": itemgetter("metastability"),
        f"{null} ": lambda epoch: epoch["nulls"][null]["metastability"]["mean"],
        "p": lambda epoch: epoch["nulls"][null]["metastability"]["p"],
        "synchrony": itemgetter("synchrony"),
        "Psi": itemgetter("stability_index"),
        "volatility": itemgetter("volatility"),
        "causal": itemgetter("volatility_causal"),
        "accuracy": itemgetter("accuracy"),
        "dead": itemgetter("n_dead"),
    }
    epochs = content["epochs"]
    if epochs[0]["epoch"] is None:
        columns = {"step": itemgetter("step")} | {title: get for title, get in columns.items() if title != "epoch"}
    if not any(epoch["nulls"] for epoch in epochs):
        columns = {title: get for title, get in columns.items() if title.strip() not in (null, "p")}

    def value(get: Callable[[dict[str, Any]], Any], epoch: dict[str, Any]) -> Any:
        try:
            return get(epoch)
        except KeyError:  # an epoch without nulls
            return None

    table(list(columns), [[value(get, epoch) for get in columns.values()] for epoch in epochs])


def summary_notes(content: dict[str, Any]) -> list[tuple[str, str]]:
    """The run in a few labelled lines."""
    from posthoc.analysis.settling import sentence

    summary, protocol, epochs = content["summary"], content["protocol"], content["epochs"]
    reasons: dict[str, int] = {}
    for epoch in epochs:
        for why, count in epoch["reasons"].items():
            reasons[why] = reasons.get(why, 0) + count
    unit = summary.get("unit", "epoch" if epochs[0]["epoch"] is not None else "step")
    signals = {name: "never" if at is None else f"{unit} {at}" for name, at in summary["convergence"].items()}
    settings = f"{protocol['name']}, {protocol['axis']} axis, estimator {protocol['estimator']}, smoothing {protocol['smooth']}, scales {content['scales']}"
    best = f"{_text(summary['best_accuracy'])} ({summary['accuracy_source']}) at {unit} {summary['best_epoch']}"
    if summary["best_accuracy"] is None:
        best = "none: no accuracy is recorded in the checkpoints, and none could be measured on the probe"
    settled = f"retrospective: {signals['retrospective']}; causal: {signals['causal']}"

    def with_interval(name: str) -> str:
        low, high = summary[f"{name}_interval"]
        return f"{_text(summary[name])}, 95 % interval {_text(low)} to {_text(high)} over epochs"

    lines = [("caution", summary["doubt"])] if summary.get("doubt") else []
    lines += [
        ("protocol", settings + (", calibrated" if protocol["calibrate"] else "")),
        ("epochs", f"{summary['epochs']}, {summary['epochs_with_integration']} of them with an integration"),
        ("best accuracy", best),
        ("H_eff", f"{_text(summary['integration_mean'])} +- {_text(summary['integration_sd'])}"),
        ("M", f"{_text(summary['metastability_mean'])} +- {_text(summary['metastability_sd'])}"),
        ("Psi", f"{_text(summary['stability_index_mean'])}, sd {_text(summary['stability_index_sd'])}"),
        ("r(Hz, Mz)", with_interval("r_integration_metastability")),
        ("r(Psi, acc)", with_interval("r_stability_index_accuracy")),
        ("settled", f"{settled} (volatility < {protocol['threshold']})"),
    ]
    if summary.get("uneven"):
        lines.append(("volatility", f"undefined, for {summary['uneven']}"))
    if text := sentence(summary):
        lines.append(("settled", text))
    if reasons:
        dead = ", ".join(f"{count} {why}" for why, count in reasons.items())
        lines.append(("dead units", f"{dead} (units x epochs), left out"))
    if any(epoch["untrained"] for epoch in epochs):
        lines.append(("untrained", "the checkpoint of step 0 is a control and not part of these figures"))
    return lines + null_notes(content)


def null_notes(content: dict[str, Any]) -> list[tuple[str, str]]:
    """In words, what the deciding null says of H_eff and M, and beside which values the references put them."""
    from posthoc.analysis.verdicts import DESCRIPTIONS, MEASURES, not_drawn, verdict

    summary, axis = content["summary"], content["protocol"]["axis"]
    if not summary["nulls"]:
        return []
    unit = summary.get("unit", "epoch")
    lines = []
    for key in ("integration", "metastability"):
        result = verdict(summary, axis, key)
        text = result.sentence(unit) if result else not_drawn(key, axis)
        lines.append(
            (f"null: {MEASURES[key].deciding[axis]}", f"{text} (false discovery rate 5 %)" if result else text)
        )
    for null, measures in summary["nulls"].items():
        values = [
            f"{MEASURES[key].symbol} {_text(measures[key]['null_mean'])}"
            for key in ("integration", "metastability")
            if key in measures and MEASURES[key].deciding[axis] != null
        ]
        if values:
            lines.append((f"reference: {null}", f"{', '.join(values)} with {DESCRIPTIONS[null]}"))
    return lines


def _text(value: float | None) -> str:
    return "undefined" if value is None else f"{round(value, 4) + 0.0:.4f}"  # no -0.0000
