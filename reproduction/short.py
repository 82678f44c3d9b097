"""The first screen of the page: each claim, what becomes of it, and the numbers that say so."""

from collections.abc import Callable, Iterator
from typing import Any

from reproduction.kept import ROWS, Study
from reproduction.text import CORRELATIONS, listed

Verdict = tuple[str, str, str]
HALF_A_DIGIT = 0.501
BY_CHANCE = 0.05
"""Share of checkpoints that may differ from a null where there is nothing."""


def verdicts(study: Study, sections: dict[str, Any]) -> list[Verdict]:
    """Claim, verdict and evidence; of what nothing is kept of, nothing. sections: what the sections of the page say."""
    makers: tuple[Callable[[Study, dict[str, Any]], Iterator[Verdict]], ...] = (
        _printed, _separation, _volatility, _sign, _metastability, _language,
    )  # fmt: skip
    return [verdict for make in makers for verdict in make(study, sections)]


def recomputed(study: Study) -> tuple[int, int]:
    """How many of the printed best accuracies, mean H_eff and correlations the published epochs give, of how many."""
    epochs = {content["run"]: content["quantities"] for content in study.published.get("runs", [])}
    same = []
    for recipe, printed in study.printed.items():
        quantities = epochs.get(ROWS[recipe].published)
        for name, quantity in (
            ("best_acc", "best_accuracy"), ("Heff_mean", "integration"), *zip(("r_Hz_Mz", "r_Psi_acc"), CORRELATIONS, strict=True),
        ):  # fmt: skip
            if quantities and (value := quantities[quantity]["value"]) is not None:
                unit = 10.0 ** -len(printed[name].partition(".")[2])
                same.append(abs(value - float(printed[name])) <= HALF_A_DIGIT * unit)
    return sum(same), len(same)


def _printed(study: Study, sections: dict[str, Any]) -> Iterator[Verdict]:
    same, of = recomputed(study)
    if of:
        evidence = f"{same} of {of} printed accuracies, mean H_eff and correlations are what the published epochs give"
        yield "The printed numbers", "**hold**", evidence


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
        early = f"it comes before the plateau in {convergence['early']} of {len(convergence['rows'])} runs"
        evidence = (
            f"{early}, and within {convergence['settled_epochs']} epochs in {convergence['rise']} of series that "
        )
        evidence += f"only rise and in {convergence['walk']} of random walks"
        before = 2 * convergence["early"] > len(convergence["rows"])
        verdict = "**early, yes; of convergence, no**" if before else "**not decided**"
        yield "2. Volatility signals convergence early", verdict, evidence


def _sign(study: Study, sections: dict[str, Any]) -> Iterator[Verdict]:
    signs = sections["signs"]
    claim = "3. The sign of r(Hz, Mz) tells training styles apart"
    if signs["tried"]:
        evidence = f"where ours is sure it is the printed one in {signs['alike']} of {signs['sure']} runs; with other smoothing "
        evidence += f"of the same activations it turns in {signs['flips']} of {signs['tried']}"
        reproduced = "reproduces" if 2 * signs["alike"] > signs["sure"] else "does not reproduce"
        if not signs["sure"]:
            reproduced = "not decided"
        yield claim, f"**{reproduced}; it is the smoothing's**" if signs["flips"] else f"**{reproduced}**", evidence


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
        evidence = f"H is lower under {listed(of['lower'])}, not under {listed([*of['alike'], *of['higher']])}; "
        evidence += (
            f"under {listed(of['tokens'])} untrained networks show most of it"
            if of["tokens"]
            else "nulls do not show it"
        )
        yield (
            "Reasoning stands out among a language model's regimes (2601.11622)",
            "**in part**, mostly of the tokens",
            evidence,
        )
