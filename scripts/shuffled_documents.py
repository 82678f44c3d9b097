"""Are the p-values of dH uniform where there is nothing? Of files whose documents are shuffled text themselves.

Each FILE is of `posthoc extract RUN --probe tokens:shuffled.npy --controls shuffle --signals token`, the rows of
shuffled.npy being documents whose tokens were shuffled: shuffling them again changes nothing but the order of what has
none. Documents are taken in groups, as if each were a probe; see docs/language-models.md.
"""

import argparse
from pathlib import Path

import numpy as np

from posthoc.analysis.arrays import FloatArray
from posthoc.analysis.dfa import dfa
from posthoc.analysis.documents import signs_flipped
from posthoc.analysis.scales import START, default_scales
from posthoc.store import Activations, open_activations


def exponents(x: FloatArray) -> FloatArray:
    """Mean exponent of the channels of each document: x [C, D, T], [D]."""
    C, D, T = x.shape
    alpha = np.asarray(dfa(x.reshape(C * D, T), default_scales(T)).alpha)
    return np.asarray(alpha.reshape(C, D).mean(axis=0))


def differences(activations: Activations, row: int) -> dict[str, FloatArray]:
    """Of H and of the exponent of surprisal: the document's less that of the document shuffled again, [D]."""
    pairs = {
        "dH": (activations.read("token", row), activations.read_null("shuffle", "token", row)),
        "dH_s": (
            activations.behaviour("token_loss", row)[None],
            activations.behaviour_of_null("shuffle", "token_loss", row)[None],
        ),
    }
    return {key: exponents(text[..., START:]) - exponents(other[..., START:]) for key, (text, other) in pairs.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--documents", nargs="+", type=int, default=[6, 12], help="in a group (default: 6 12)")
    options = parser.parse_args()
    measured: dict[str, list[FloatArray]] = {}
    for path in options.files:
        with open_activations(path) as activations:
            for row in range(len(activations)):
                for key, values in differences(activations, row).items():
                    measured.setdefault(key, []).append(values)
    print("| documents | of | groups | p <= 0.05 | p <= 0.25 | p <= 0.5 | mean p |\n|---|---|---|---|---|---|---|")
    for count in options.documents:
        for key, runs in measured.items():
            p = [signs_flipped(d[k : k + count], 0).p for d in runs for k in range(0, len(d) - count + 1, count)]
            shares = " | ".join(f"{np.mean(np.array(p) <= level):.4f}" for level in (0.05, 0.25, 0.5))
            print(f"| {count} | {key} | {len(p)} | {shares} | {np.mean(p):.3f} |")


if __name__ == "__main__":
    main()
