"""The first screen of the page: each claim, what becomes of it, and the numbers that say so."""

from collections.abc import Callable, Iterator
from typing import Any

from reproduction.kept import ROWS, Study
from reproduction.sections import LEAST_EPOCHS
from reproduction.text import CORRELATIONS, listed

Verdict = tuple[str, str, str]
HALF_A_DIGIT = 0.501
COLUMNS = {
    "best_epoch": "best epoch", "best_acc": "best accuracy", "Heff_mean": "mean H_eff", "Heff_std": "sd of H_eff",
    "M_mean": "mean M", "Psi_std": "sd of Psi", "r_Hz_Mz": "r(Hz, Mz)", "r_Psi_acc": "r(Psi, acc)",
}  # fmt: skip
"""Those of the printed table that are recomputed, as the page calls them."""
BY_CHANCE = 0.05
"""Share of checkpoints that may differ from a null where there is nothing."""


def verdicts(study: Study, sections: dict[str, Any]) -> list[Verdict]:
    """Claim, verdict and evidence; of what nothing is kept of, nothing. sections: what the sections of the page say."""
    makers: tuple[Callable[[Study, dict[str, Any]], Iterator[Verdict]], ...] = (
        _printed, _separation, _volatility, _sign, _metastability, _language,
    )  # fmt: skip
    return [verdict for make in makers for verdict in make(study, sections)]


def recomputed(study: Study) -> dict[str, tuple[int, int]]:
    """Of each printed column, in how many rows it is what the published epochs give, of how many."""
    same: dict[str, list[bool]] = {}
    for printed, content in _with_epochs(study):
        quantities = content["quantities"]
        correlations = (quantities[name]["value"] for name in CORRELATIONS)
        given = {
            "best_epoch": content["best_epoch"], "best_acc": quantities["best_accuracy"]["value"],
            "Heff_mean": quantities["integration"]["value"], "Heff_std": quantities["integration"]["sd"],
            "M_mean": quantities["metastability"]["value"], "Psi_std": quantities["stability_index_sd"]["value"],
            **dict(zip(("r_Hz_Mz", "r_Psi_acc"), correlations, strict=True)),
        }  # fmt: skip
        for name, value in given.items():
            unit = 10.0 ** -len(printed[name].partition(".")[2])
            same.setdefault(COLUMNS[name], []).append(
                value is not None and abs(value - float(printed[name])) <= HALF_A_DIGIT * unit
            )
    return {name: (sum(found), len(found)) for name, found in same.items()}


def _with_epochs(study: Study) -> Iterator[tuple[dict[str, str], dict[str, Any]]]:
    """The printed rows, each with what its published epochs give."""
    epochs = {content["run"]: content for content in study.published.get("runs", [])}
    for recipe, printed in study.printed.items():
        if content := epochs.get(ROWS[recipe].published):
            yield printed, content


def _printed(study: Study, sections: dict[str, Any]) -> Iterator[Verdict]:
    columns = recomputed(study)
    held = [name for name, (same, of) in columns.items() if same == of]
    others = [f"{name} in {same} of {of}" for name, (same, of) in columns.items() if same < of]
    if columns:
        evidence = f"{sum(columns[name][0] for name in held)} of {sum(columns[name][1] for name in held)} values of {listed(held)} are what the published epochs give"
        if others:
            evidence += f", {listed(others)} rows"
        few = [
            f"{printed['model']} has an H_eff in {content['epochs_with_integration']} of {content['epochs']} epochs only"
            for printed, content in _with_epochs(study)
            if content["epochs_with_integration"] < LEAST_EPOCHS
        ]
        wrong = [name for name, (same, of) in columns.items() if 2 * same < of]
        verdict = f"**hold, but for {listed(wrong)}**" if wrong else "**hold**"
        yield "The printed numbers", verdict, "; ".join([evidence, *few])


def _separation(study: Study, sections: dict[str, Any]) -> Iterator[Verdict]:
    claim, separation = "1. H_eff tells CIFAR-10 from CIFAR-100", sections["separation"]
    crossed, noise = (
        separation["crossed"],
        f"pure noise through the rows' protocols gives {separation['ten']} and {separation['hundred']}",
    )
    if crossed and crossed["follows"]:
        shares = f"{crossed['by_classes']} % of the variation over {crossed['networks']} networks goes with the number of classes by "
        shares += f"which the same images are centred, {crossed['by_network']} % with the network"
        yield (
            claim,
            "**holds, of the labels**: it counts classes, whatever the network has learned",
            f"{shares}; {noise}",
        )
    elif separation["shown"]:
        yield claim, "**holds, of the protocol**, which gives such a gap without a network", noise
    else:
        yield claim, "not decided", noise


def _volatility(study: Study, sections: dict[str, Any]) -> Iterator[Verdict]:
    convergence = sections["convergence"]
    if convergence["rows"]:
        before = 2 * convergence["early"] > len(convergence["rows"])
        beside = [rules["beside"] for rules in convergence["rules"] if rules["beside"]]
        evidence = f"it comes before the plateau in {convergence['early']} of {len(convergence['rows'])} runs"
        lost = [
            f"{rules['beside']['text']} on {rules['whose']} {rules['count']}"
            for rules in convergence["rules"]
            if rules["beside"]
        ]
        if lost:
            evidence += (
                f"; runs that stop by it lose, in points more than by patience that saves as much, {listed(lost)}"
            )
        evidence += f"; within {convergence['settled_epochs']} epochs it comes in {convergence['white']} of series of white noise, "
        evidence += f"in {convergence['walk']} of random walks and in {convergence['rise']} of those that only rise"
        alike = "as patience does" if beside and all(rule["alike"] for rule in beside) else "beside patience: see there"
        verdict = f"**early, yes, {alike}; of convergence, no**" if before else "**not decided**"
        yield "2. Volatility signals convergence early", verdict, evidence


def _sign(study: Study, sections: dict[str, Any]) -> Iterator[Verdict]:
    signs = sections["signs"]
    claim = "3. The sign of r(Hz, Mz) tells training styles apart"
    if signs["tried"]:
        evidence = f"where ours is sure (its 95 % interval leaves 0 out) it is the printed one in {signs['alike']} of {signs['sure']} runs; "
        evidence += f"with other smoothing of the same activations in {signs['flips']} of {signs['tried']} it is as surely the opposite, in {signs['stays'] or 'none'} as surely the same"
        reproduced = "reproduces" if 2 * signs["alike"] > signs["sure"] else "does not reproduce"
        if not signs["sure"]:
            reproduced = "not decided"
        smoothing = 2 * signs["flips"] > signs["tried"] and not signs["stays"]
        yield claim, f"**{reproduced}; it is the smoothing's**" if smoothing else f"**{reproduced}**", evidence


def _metastability(study: Study, sections: dict[str, Any]) -> Iterator[Verdict]:
    if made := sections["covariance"]:
        evidence = f"in {made['apart']} of {made['checkpoints']} checkpoints it differs from M in another order; of what is above "
        evidence += f"unrelated channels, noise with the same covariance has {made['median']} % (median)"
        verdict = (
            "**no**: channels that vary together"
            if made["apart"] <= BY_CHANCE * made["checkpoints"]
            else "**not decided**"
        )
        yield "M is a dynamics of the network", verdict, evidence


def _language(study: Study, sections: dict[str, Any]) -> Iterator[Verdict]:
    if of := sections["generated"]:
        evidence = f"in it H is lower under {listed(of['lower'])}, not under {listed([*of['alike'], *of['higher']])}; "
        evidence += (
            f"under {listed(of['tokens'])} untrained networks show most of it"
            if of["tokens"]
            else "nulls do not show it"
        )
        yield (
            "Reasoning stands out among a language model's regimes (2601.11622)",
            "**not tested**: one small network that does not reason stood for GPT-2",
            evidence,
        )
