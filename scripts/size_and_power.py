#!/usr/bin/env python3
"""Size and power of every test that is printed, each under the null that it states: the tables of docs/statistics.md.

size_and_power.py p|images|time|families|groups|audit|settling|documents|prediction [--replicates R]: one table; seeds are fixed, so that it comes
out the same.
"""

import argparse
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

from posthoc.analysis.axes import Material
from posthoc.analysis.axes.epoch import EpochMaterial
from posthoc.analysis.axes.image import ImageMaterial
from posthoc.analysis.compare import permutation_p
from posthoc.analysis.dfa import dfa
from posthoc.analysis.documents import over_documents, signs_flipped
from posthoc.analysis.effects import respond
from posthoc.analysis.kuramoto import hilbert
from posthoc.analysis.measures import MEASURES
from posthoc.analysis.nulls import NULLS
from posthoc.analysis.prediction import predict
from posthoc.analysis.responses import Change, Control, Reaction, Spread
from posthoc.analysis.runs import from_columns
from posthoc.analysis.scales import default_scales
from posthoc.analysis.settling import KINDS, settling
from posthoc.analysis.verdicts import corrected, rejected, two_sided_p, worth_drawing
from posthoc.streams import stream

FloatArray = NDArray[np.float64]
UNITS, IMAGES, CLASSES, SMOOTH, LAYERS = 16, 128, 4, 3, 4
EPOCHS = 40
CHANNELS = ("independent", "rho 0.1", "rho 0.3", "rho 0.5", "rank 8", "rank 3")


def noise(kind: str, points: int, random: np.random.Generator) -> FloatArray:
    """Channels [16, points] that share noise within four layers, or have a low rank, and nothing in time."""
    name, _, number = kind.partition(" ")
    independent = random.standard_normal((UNITS, points))
    if name == "rank":
        return np.asarray(random.standard_normal((UNITS, int(number))) @ random.standard_normal((int(number), points)))
    rho = float(number or 0)
    shared = random.standard_normal((LAYERS, points)).repeat(UNITS // LAYERS, axis=0)
    return np.asarray(np.sqrt(rho) * shared + np.sqrt(1 - rho) * independent)


def unit_phasors(x: FloatArray) -> NDArray[np.complex128]:
    """exp(i phi_u(t)) of each unit of x [U, T]."""
    centred = x - x.mean(axis=1, keepdims=True)
    z = centred + 1j * hilbert(centred)
    return np.asarray(z / np.abs(z))


def p_values(axis: Material, nulls: tuple[str, ...], count: int, seed: int) -> list[float]:
    """p of H and of M against each null."""
    result = []
    for null in nulls:
        live = np.ones(len(axis.series()), np.bool_)
        drawn = [NULLS[null].draw(axis, stream(f"null {null}", seed, 0, draw), live)[0] for draw in range(count)]
        table = np.concatenate([axis.series(), *drawn])  # all at once: a series' exponent and phases are its own
        U, T = live.size, table.shape[1]
        alpha = dfa(table, default_scales(T)).alpha.reshape(count + 1, U).mean(axis=1)
        m = np.abs(unit_phasors(table).reshape(count + 1, U, T).mean(axis=1)).std(axis=1)
        result += [two_sided_p(float(values[0]), values[1:]) for values in (alpha, m)]
    return result


def p(replicates: int) -> None:
    """The rule by which p is computed, on nulls of several shapes."""
    shapes: dict[str, Callable[[np.random.Generator, tuple[int, int]], FloatArray]] = {
        "normal": lambda random, size: random.standard_normal(size),
        "lognormal": lambda random, size: np.exp(random.standard_normal(size)),
        "H_eff near 1": lambda random, size: np.exp(-(0.1 * random.standard_normal(size) ** 2)),
    }
    print("| null | draws | size at 0.05 | size at 0.02 | low 0.1 % quantile seen | high 0.1 % quantile seen |")
    print("|---|---|---|---|---|---|")
    for number, (shape, draw) in enumerate(shapes.items()):
        for count in (19, 39, 99, 199):
            random = np.random.default_rng([1, number, count])
            table = draw(random, (replicates, count + 1))
            ps = np.array([two_sided_p(row[0], row[1:]) for row in table])
            ends = np.quantile(draw(random, (1, 1_000_000)), [0.001, 0.999])
            seen = [np.mean([two_sided_p(end, row[1:]) <= 0.05 for row in table[:1000]]) for end in ends]
            sizes = " | ".join(f"{(ps <= level).mean():.4f}" for level in (0.05, 0.02))
            print(f"| {shape} | {count} | {sizes} | {seen[0]:.2f} | {seen[1]:.2f} |", flush=True)


def images(replicates: int, count: int = 39) -> None:
    """H and M on the image axis: channels that share noise and nothing in the order of the images."""
    labels = np.arange(IMAGES) % CLASSES
    rhythm = np.sin(0.5 * (np.arange(IMAGES) // CLASSES))  # in the order of the images of a class
    print("| channels | H, `order` | M, `order` | H, `white` | M, `white` |\n|---|---|---|---|---|")
    cases = [(kind, 0.0) for kind in CHANNELS] + [("rho 0.3", strength) for strength in (0.5, 1.0, 2.0)]
    for case, (kind, strength) in enumerate(cases):
        random = np.random.default_rng([2, case])
        ps: dict[str, list[list[float]]] = {"order": [], "white": []}
        runs = {"order": replicates if not strength else replicates // 10, "white": replicates // 10}
        for replicate in range(replicates):
            x = noise(kind, IMAGES, random)
            x[: UNITS // 2] += strength * rhythm
            axis = ImageMaterial(x.astype(np.float32), labels, SMOOTH)
            for null in ps:
                if replicate < runs[null]:
                    ps[null].append(p_values(axis, (null,), count, replicate))
        shares = np.concatenate([(np.array(rows) <= 0.05).mean(axis=0) for rows in ps.values()])
        title = kind if not strength else f"{kind}, half of them with a rhythm of {strength:g} in the images' order"
        print(f"| {title} | {' | '.join(f'{share:.4f}' for share in shares)} |", flush=True)


def time(replicates: int, count: int = 39) -> None:
    """H and M on the axes on which time is points: channels that share noise, or have a past."""
    print("| channels | H, `time` | M, `time` |\n|---|---|---|")
    cases = [(kind, 0.0) for kind in ("independent", "rho 0.5", "rank 3")] + [
        ("rho 0.5", phi) for phi in (0.3, 0.6, 0.9)
    ]
    for case, (kind, phi) in enumerate(cases):
        random = np.random.default_rng([3, case])
        ps = []
        for replicate in range(replicates if not phi else replicates // 10):
            x = noise(kind, EPOCHS + 100, random)
            for t in range(1, x.shape[1]):
                x[:, t] += phi * x[:, t - 1]
            ps.append(p_values(EpochMaterial(np.ascontiguousarray(x[:, 100:])), ("time",), count, replicate))
        shares = (np.array(ps) <= 0.05).mean(axis=0)
        print(
            f"| {kind}{f', AR({phi})' if phi else ''} | {' | '.join(f'{share:.4f}' for share in shares)} |", flush=True
        )


def family(values: FloatArray, random: np.random.Generator, start: int, most: int) -> tuple[NDArray[np.bool_], int]:
    """Which tests of a family [m] are rejected, drawn on as the tool does, and how many draws that took in all."""
    drawn = [random.standard_normal(start) for _ in values]
    stages = [[start] for _ in values]
    while True:
        ps = np.array([two_sided_p(*test) for test in zip(values, drawn, stages, strict=True)])
        more = worth_drawing(ps, np.array([len(row) for row in drawn]), most)
        if not more.any():
            return rejected(ps), sum(map(len, drawn))
        for k in np.flatnonzero(more):
            drawn[k] = np.concatenate([drawn[k], random.standard_normal(min(len(drawn[k]) + 1, most - len(drawn[k])))])
            stages[k].append(len(drawn[k]))


def families(replicates: int) -> None:
    """Epochs x measures: how often anything is rejected where there is nothing, and what is found where there is."""
    print("| epochs | epochs alike by | epochs that differ, by sd | draws | any false rejection | false discovery rate | found | "
          "draws an epoch |\n|---|---|---|---|---|---|---|---|")  # fmt: skip
    cases = [(10, 0.0, 0, 0.0), (25, 0.0, 0, 0.0), (25, 0.9, 0, 0.0), (58, 0.0, 0, 0.0), (58, 0.9, 0, 0.0)]
    cases += [(58, 0.0, 1, 5.0), (58, 0.0, 6, 5.0), (58, 0.0, 29, 5.0), (58, 0.0, 58, 5.0)]
    for case, (epochs, rho, differ, shift) in enumerate(cases):
        for start, most in ((99, 99), (99, 9999)) if differ else ((39, 9999), (99, 99), (99, 9999)):
            random = np.random.default_rng([4, case])
            null = np.arange(2 * epochs) >= differ
            any_false, rates, powers, total = 0, [], [], 0
            runs = replicates if not differ else replicates // 10
            for _ in range(runs):
                values = np.sqrt(rho) * random.standard_normal(2).repeat(epochs)
                values = values + np.sqrt(1 - rho) * random.standard_normal(2 * epochs)
                values[~null] = shift + random.standard_normal(differ)
                which, count = family(values, random, start, most)
                false = int((which & null).sum())
                any_false += bool(false)
                rates.append(false / max(1, which.sum()))
                powers.append((which & ~null).sum() / max(1, differ))
                total += count
            print(
                f"| {epochs} | {rho:g} | {f'{differ} of H, {shift:g}' if differ else '0'} | {start} to {most} | "
                f"{any_false / runs:.4f} | {np.mean(rates):.4f} | {f'{np.mean(powers):.2f}' if differ else ''} | "
                f"{total / runs / epochs:.0f} |",
                flush=True,
            )


def groups(replicates: int) -> None:
    """`compare`: runs permuted between two groups, and four columns of them corrected."""
    print(
        "| runs | values | least p | size at 0.05 | any of 4 columns, corrected | power, 3 sd apart |\n|---|---|---|---|---|---|"
    )
    for n in (3, 4, 5):
        for values in ("normal", "lognormal"):
            random = np.random.default_rng([5, n, values == "normal"])
            x = random.standard_normal((replicates, 4, 2 * n))
            x = x if values == "normal" else np.exp(x)
            ps = np.array([[permutation_p(row[:n], row[n:]) for row in columns] for columns in x])
            family = np.mean([(corrected(columns) <= 0.05).any() for columns in ps])
            apart = x[: replicates // 4, 0].copy()
            apart[:, n:] += 3 * (1 if values == "normal" else np.sqrt((math.e - 1) * math.e))
            power = np.mean([permutation_p(row[:n], row[n:]) <= 0.05 for row in apart])
            print(
                f"| {n} and {n} | {values} | {ps.min():.4f} | {(ps <= 0.05).mean():.4f} | {family:.4f} | {power:.2f} |",
                flush=True,
            )


def audits(replicates: int) -> None:
    """`audit`: a change that is none is called one, or is shown to be small; and one as large as the margin is not."""
    print("| control | scatter by order, of the margin | no change: responds | no change: small | change of the margin: small | "
          "change of three margins: responds |\n|---|---|---|---|---|---|")  # fmt: skip
    margin = MEASURES["metastability"].margin
    for name, count in (("measured once", 1), ("50 draws", 50), ("3 initialisations", 3), ("10 initialisations", 10)):
        for share in (0.15, 0.4):
            random = np.random.default_rng([6, count, int(100 * share)])
            cells = []
            for change, kind in (
                (0, Reaction.RESPONDS),
                (0, Reaction.INDIFFERENT),
                (1, Reaction.INDIFFERENT),
                (3, Reaction.RESPONDS),
            ):
                hits = 0
                for _ in range(replicates):
                    values = share * margin * random.standard_normal(51 + count)
                    spreads = (values[:1], values[1:51], change * margin + values[51:])
                    controls = [
                        Control(str(k), (None, Change.ORDER, Change.TRAINING)[k], {"metastability": Spread.of(part)})
                        for k, part in enumerate(spreads)
                    ]
                    hits += bool(respond(controls, "metastability", "M", margin).which(kind))
                cells.append(f"{hits / replicates:.4f}")
            print(f"| {name} | {share} | {' | '.join(cells)} |", flush=True)


def settle(replicates: int) -> None:
    """The convergence signal on series that do not converge; always 1,000 series, those that the tool uses."""
    del replicates
    print("| series | epochs | threshold | settles, causal | half by | settles, retrospective | half by |")
    print("|---|---|---|---|---|---|---|")
    for epochs in (25, 58):
        for threshold in (0.2, 0.35):
            for kind, ways in settling(range(1, epochs + 1), threshold, 3, 0.5, (0.8, 0.8)).items():
                cells = [
                    f"{ways[way].share:.3f} | {'' if ways[way].median is None else ways[way].median}"
                    for way in ("causal", "retrospective")
                ]
                name = f"{KINDS[kind]} (0.8)" if kind == "autoregressive" else KINDS[kind]
                print(f"| {name} | {epochs} | {threshold} | {' | '.join(cells)} |", flush=True)


DOCUMENTS_TABLE = ((8, 12, 24), 8000)
"""Numbers of documents, and how many are simulated, of which each replicate draws its own."""


def exponents_of_documents(memory: FloatArray, phi: float, random: np.random.Generator) -> FloatArray:
    """Mean exponent of four channels over 448 tokens, for each document of noise of exponent `memory` [n], run through an
    autoregression of coefficient phi; half of the channels' variance is shared."""
    n, C, T = len(memory), 4, 448
    frequency = np.arange(T + 1) / (2 * T)
    frequency[0] = np.inf
    x = np.sqrt(0.5) * random.standard_normal((n, C, 2 * T)) + np.sqrt(0.5) * random.standard_normal((n, 1, 2 * T))
    x = np.fft.irfft(np.fft.rfft(x) * frequency ** (0.5 - memory[:, None, None]))[..., :T]
    x = lfilter([1.0], [1.0, -phi], x, axis=-1)
    return np.asarray(dfa(x.reshape(n * C, T), default_scales(T)).alpha.reshape(n, C).mean(axis=1))


def documents(replicates: int) -> None:
    """dH of pairs of documents: both without order, then one with more memory; and the intervals over documents."""
    print("| documents | of | p <= 0.05 | p <= 0.01 | dH covered | H covered |\n|---|---|---|---|---|---|")
    counts, simulated = DOCUMENTS_TABLE
    cases: list[tuple[str, Callable[[np.random.Generator], FloatArray], float, float]] = [
        ("noise, and noise", lambda random: np.full(simulated, 0.5), 0.0, 0.0),
        ("AR(0.8), and the like", lambda random: np.full(simulated, 0.5), 0.8, 0.0),
        ("exponents of 0.5 to 0.9, and the same", lambda random: random.uniform(0.5, 0.9, simulated), 0.0, 0.0),
        *((f"AR(0.8), text with an exponent larger by {more:g}", lambda random: np.full(simulated, 0.5), 0.8, more)
          for more in (0.02, 0.05, 0.1)),
    ]  # fmt: skip
    for case, (name, memory_of, phi, more) in enumerate(cases):
        random = np.random.default_rng([7, case])
        memory = memory_of(random)
        text, other = (exponents_of_documents(memory + extra, phi, random) for extra in (more, 0.0))
        for D in counts:
            p, covered = [], []
            for _ in range(replicates):
                chosen = random.integers(0, simulated, D)
                difference = text[chosen] - other[chosen]
                p.append(signs_flipped(difference, 0).p)
                pairs = zip(over_documents(np.stack([difference, text[chosen]]), 0), (text - other, text), strict=True)
                covered.append([low <= population.mean() <= high for (low, high), population in pairs])
            sizes = " | ".join(f"{(np.array(p) <= level).mean():.4f}" for level in (0.05, 0.01))
            print(
                f"| {D} | {name} | {sizes} | {' | '.join(f'{share:.3f}' for share in np.mean(covered, axis=0))} |",
                flush=True,
            )


PREDICTION_TABLE = (12, 20, 8)
"""Configurations of one run each, epochs, measures."""


def predictions(replicates: int) -> None:
    """p of measures of runs that foretell nothing: whatever they are of, it is known or past."""
    C, E, M = PREDICTION_TABLE
    print("| measure | target | p <= 0.05 | beyond loss p <= 0.05 |\n|---|---|---|---|")
    cases = [
        ("a random walk of the run's own", "final-accuracy"), ("1 from the plateau on", "plateau"),
        ("the accuracy, measured again", "remaining"), ("what the loss is of, measured otherwise", "final-accuracy"),
    ]  # fmt: skip
    for case, (name, target) in enumerate(cases):
        random, raw, beyond = np.random.default_rng([11, case]), [], []
        for _ in range(max(1, replicates // 100)):
            runs = []
            for k in range(C):
                at, quality = np.arange(E), random.standard_normal()
                noise = random.standard_normal((M, E))
                loss = 2 * np.exp(-at / 10) + 0.05 * random.standard_normal(E)
                accuracy = 0.5 + 0.01 * at + 0.05 * random.standard_normal(E)
                measures = noise.cumsum(axis=1)
                if target == "plateau":
                    ends = int(random.integers(5, E - 3))
                    accuracy = 0.1 + 0.8 * np.minimum(at, ends) / ends
                    measures = (at > ends) + 1e-3 * noise
                elif target == "remaining":
                    measures = accuracy + 0.02 * noise
                elif case == 3:
                    loss = quality + 0.05 * random.standard_normal(E)
                    accuracy[-1] = -quality + 0.7 * random.standard_normal()
                    measures = quality + 0.7 * random.standard_normal((M, 1)) + 0.05 * noise
                columns = {"accuracy": accuracy, "loss": loss, "integration": 0 * loss, "metastability": 0 * loss}
                run = from_columns(f"{k}", {"model": f"{k}", "seed": 0}, at.tolist(), columns)
                run.columns.update({f"m{m}": values for m, values in enumerate(measures)})
                run.measures.update({f"m{m}": run.measures["integration"] for m in range(M)})
                runs.append(run)
            rows = [
                row for row in predict(runs, [target], measures=",".join(f"m{m}" for m in range(M))) if not row.baseline
            ]
            raw += [row.p for row in rows]
            beyond += [row.conditional_p for row in rows]
        sizes = " | ".join(f"{(np.array(p) <= 0.05).mean():.3f}" for p in (raw, beyond))
        print(f"| {name} | {target} | {sizes} |", flush=True)


TABLES = {
    "p": p, "images": images, "time": time, "families": families, "groups": groups, "audit": audits, "settling": settle,
    "documents": documents, "prediction": predictions,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--replicates", type=int, default=4000)
    args = parser.parse_args()
    TABLES[args.table](args.replicates)


if __name__ == "__main__":
    main()
