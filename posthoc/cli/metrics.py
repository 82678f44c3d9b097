"""posthoc metrics: activations.h5 -> metrics.json."""

from pathlib import Path
from typing import Any

import click

from posthoc.cli.output import notes, progress_on_stderr, table


@click.command(name="metrics")
@click.argument("activations", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Default: metrics.json beside ACTIVATIONS.")
@click.option("--csv", is_flag=True, help="Write the epochs as a .csv beside the output, too.")
@click.option(
    "--protocol",
    type=click.Choice(["published", "default"]),
    default="published",
    help="published: as arXiv 2604.09716; default: no smoothing, usual scales and fluctuation.",
)
@click.option("--signal", type=click.Choice(["mean", "var"]), default="mean", help="Which recorded signal.")
@click.option(
    "--smooth", type=click.IntRange(min=1), help="Width of the moving mean (default: the protocol's, 5 or 1)."
)
@click.option("--h-opt", type=float, default=0.7, help="Hurst exponent at which integration is 1.")
@click.option("--sigma-h", type=float, default=0.15, help="How fast integration falls off around it.")
@click.option("--w-h", type=float, default=0.5, help="Weight of integration in the stability index.")
@click.option("--window", type=click.IntRange(min=2), default=3, help="Epochs over which volatility is taken.")
@click.option("--threshold", type=float, default=0.35, help="Volatility below which training counts as settled.")
@click.option("--force", is_flag=True, help="Replace an existing output.")
def command(activations: Path, output: Path | None, csv: bool, protocol: str, force: bool, **changes: Any) -> None:
    """Integration, metastability and stability index of every checkpoint in ACTIVATIONS, and of the run."""
    from posthoc.analysis.metrics import Protocol, compute_metrics
    from posthoc.files import refuse_existing
    from posthoc.store import open_activations

    chosen = Protocol.named(protocol, **changes)
    output = output or activations.with_name("metrics.json")
    outputs = [output, output.with_suffix(".csv")] if csv else [output]
    with open_activations(activations) as opened:
        for path in outputs:
            refuse_existing(path, force)
        with progress_on_stderr("measuring") as progress:
            metrics = compute_metrics(opened, chosen, progress)
    metrics.save(output)
    if csv:
        metrics.save_csv(output.with_suffix(".csv"))
    content = metrics.to_dict()
    epoch_table(content)
    click.echo()
    notes(summary_notes(content))
    for path in outputs:
        click.echo(path, err=True)


def epoch_table(content: dict[str, Any]) -> None:
    """One line per epoch."""
    columns = {
        "epoch": "epoch",
        "H": "hurst",
        "H_eff": "integration",
        "M": "metastability",
        "synchrony": "synchrony",
        "Psi": "stability_index",
        "volatility": "volatility",
        "causal": "volatility_causal",
        "accuracy": "accuracy",
        "dead": "n_dead",
    }
    epochs = content["epochs"]
    if epochs[0]["epoch"] is None:
        columns = {"step": "step"} | {title: key for title, key in columns.items() if key != "epoch"}
    table(list(columns), [[epoch[key] for key in columns.values()] for epoch in epochs])


def summary_notes(content: dict[str, Any]) -> list[tuple[str, str]]:
    """The run in a few labelled lines."""
    summary, protocol, epochs = content["summary"], content["protocol"], content["epochs"]
    reasons: dict[str, int] = {}
    for epoch in epochs:
        for why, count in epoch["reasons"].items():
            reasons[why] = reasons.get(why, 0) + count
    unit = "epoch" if epochs[0]["epoch"] is not None else "step"
    signals = {name: "never" if at is None else f"{unit} {at}" for name, at in summary["convergence"].items()}
    dead = ", ".join(f"{count} {why}" for why, count in reasons.items())
    lines = [
        (
            "protocol",
            f"{protocol['name']}, {protocol['axis']} axis, smoothing {protocol['smooth']}, scales {content['scales']}",
        ),
        ("epochs", f"{summary['epochs']}, {summary['epochs_with_integration']} of them with an integration"),
        (
            "best accuracy",
            f"{_text(summary['best_accuracy'])} ({summary['accuracy_source']}) at {unit} {summary['best_epoch']}",
        ),
        ("H_eff", f"{_text(summary['integration_mean'])} +- {_text(summary['integration_sd'])}"),
        ("M", f"{_text(summary['metastability_mean'])} +- {_text(summary['metastability_sd'])}"),
        ("Psi", f"{_text(summary['stability_index_mean'])}, sd {_text(summary['stability_index_sd'])}"),
        ("r(Hz, Mz)", _text(summary["r_integration_metastability"])),
        ("r(Psi, acc)", _text(summary["r_stability_index_accuracy"])),
        (
            "settled",
            f"retrospective: {signals['retrospective']}; causal: {signals['causal']} (volatility < {protocol['threshold']})",
        ),
    ]
    if dead:
        lines.append(("dead channels", f"{dead} (channels x epochs), left out"))
    if any(epoch["untrained"] for epoch in epochs):
        lines.append(("untrained", "the checkpoint of step 0 is a control and not part of these figures"))
    return lines


def _text(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"
