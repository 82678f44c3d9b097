#!/usr/bin/env python3
"""Speed as ratios: each row times posthoc and a reference in turn in one process and prints medians and their ratio.

scripts/bench.py kernels             DFA, phase and series kernels against other libraries (extra `bench`)
scripts/bench.py extract [--cuda]    extraction against bare forward passes and the obvious loops
scripts/bench.py tokens [--cuda]     extraction of a language model against its bare forward passes
scripts/bench.py memory              memory for 8, 64 and 512 documents of tokens
scripts/bench.py hostile             what small hostile checkpoints cost at two sizes: seconds and MB
scripts/bench.py growth              how extraction and metrics grow with each of their sizes: processor seconds and MB
"""

import argparse
import contextlib
import importlib
import importlib.util
import os
import platform
import sys
import time
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import bench_tokens as tokens
import numba
import numpy as np
import scipy.signal
import torch
from bench_extract import MODELS, extract_table
from bench_growth import growth_table
from bench_hostile import hostile_table
from numpy.typing import NDArray

from posthoc.analysis.axes.image import image_series
from posthoc.analysis.dfa import dfa
from posthoc.analysis.kernels import thread_count
from posthoc.analysis.kuramoto import kuramoto
from posthoc.analysis.scales import published_scales

Call = Callable[[], Any]
REPEATS = 7
TURN = 0.2


def in_turn(calls: list[Call], repeats: int) -> list[float]:
    """Median seconds of each call, the calls taking turns; a turn is one untimed call and then calls for 0.2 s."""
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats):
        for call, times in zip(calls, seconds, strict=True):
            call()
            start, count = time.perf_counter(), 0
            while not count or time.perf_counter() - start < TURN:
                call()
                count += 1
            times.append((time.perf_counter() - start) / count)
    return [float(np.median(times)) for times in seconds]


def row(what: str, ours: Call, reference: str, theirs: Call, budget: str = "", repeats: int = REPEATS) -> None:
    a, b = in_turn([ours, theirs], repeats)
    print(f"| {what} | {1e3 * a:.3g} | {reference} | {1e3 * b:.4g} | {b / a:.3g} x | {budget} |", flush=True)


def alone(call: Call) -> Call:
    """The call on one thread."""

    def on_one_thread() -> None:
        config: Any = numba.config
        before, config.NUMBA_NUM_THREADS = config.NUMBA_NUM_THREADS, 1
        try:
            call()
        finally:
            config.NUMBA_NUM_THREADS = before

    return on_one_thread


def polyfit_dfa(x: NDArray[np.float64], scales: NDArray[np.int64]) -> list[float]:
    """The usual loop: one numpy.polyfit per window."""
    exponents = []
    for series in x:
        profile = np.cumsum(series - series.mean())
        fluctuation = []
        for s in scales.tolist():
            time_axis = np.arange(s)
            windows = profile[: len(profile) // s * s].reshape(-1, s)
            lines = [np.polyval(np.polyfit(time_axis, window, 1), time_axis) for window in windows]
            fluctuation.append(np.mean(np.sqrt(np.mean((windows - lines) ** 2, axis=1))))
        exponents.append(np.polyfit(np.log(scales), np.log(fluctuation), 1)[0])
    return exponents


def scipy_order_parameter(x: NDArray[np.float64]) -> NDArray[np.float64]:
    z = scipy.signal.hilbert(x - x.mean(axis=1, keepdims=True), axis=1)
    return np.asarray(np.abs(np.exp(1j * np.angle(z)).mean(axis=0)))


def numpy_series(x: NDArray[np.float64], labels: NDArray[np.int64], smooth: int) -> NDArray[np.float64]:
    """Sort, centre and smooth with NumPy and cumulative sums."""
    order = np.argsort(labels, kind="stable")
    x, labels = x[:, order], labels[order]
    for label in np.unique(labels):
        x[:, labels == label] -= x[:, labels == label].mean(axis=1, keepdims=True)
    total = np.pad(np.cumsum(x, axis=1), ((0, 0), (1, 0)))
    last = np.minimum(np.arange(x.shape[1]) - smooth // 2 + smooth, x.shape[1])
    first = np.maximum(np.arange(x.shape[1]) - smooth // 2, 0)
    return np.asarray((total[:, last] - total[:, first]) / (last - first))


def library_rows(x: NDArray[np.float64], scales: NDArray[np.int64], ours: Call) -> None:
    """DFA of other libraries, each on all series, once after a warm-up on few."""

    def each(analyse: Callable[[NDArray[np.float64]], Any]) -> Call:
        return lambda: [analyse(series) for series in x]

    def load(name: str) -> Any:
        spec = importlib.util.find_spec(name)
        if spec is None:
            print(f"| | | {name} | not installed | | |")
            return None
        if name == "nolds":  # its data module does not import on every Python; its measures do
            package = types.ModuleType(name)
            package.__path__ = list(spec.submodule_search_locations or [])
            sys.modules[name] = package
            return importlib.import_module("nolds.measures")
        return importlib.import_module(name)

    if antropy := load("antropy"):
        row("DFA", ours, "antropy (its own scales)", each(antropy.detrended_fluctuation), "80 x")
    if MFDFA := load("MFDFA"):
        row("DFA", ours, "MFDFA", each(lambda s: MFDFA.MFDFA(s, scales, q=2, order=1)))
    if fathon := load("fathon"):
        from fathon import fathonUtils

        def analyse(series: NDArray[np.float64]) -> Any:
            return fathon.DFA(fathonUtils.toAggregated(series)).computeFlucVec(scales, revSeg=False, polOrd=1)

        row("DFA", ours, "fathon", each(analyse), "300 x")
    if neurokit2 := load("neurokit2"):
        options = {"scale": scales, "overlap": False, "show": False}
        row("DFA", ours, "neurokit2", each(lambda s: neurokit2.fractal_dfa(s, **options)))
    if nolds := load("nolds"):
        options = {"nvals": scales, "overlap": False, "order": 1, "fit_exp": "poly"}
        row("DFA", ours, "nolds", each(lambda s: nolds.dfa(s, **options)))


def kernels(fast: bool) -> None:
    random = np.random.default_rng(0)
    x, scales = random.standard_normal((128, 4096)), published_scales(4096)
    small, small_scales = x[:, :2048].copy(), published_scales(2048)
    labels = random.integers(0, 10, 2048)
    threads = thread_count()
    print(f"{_processor()}, {threads} threads; medians of {REPEATS} or more; series 128 x 4096, {len(scales)} scales\n")
    print("| what | posthoc, ms | reference | its ms | faster by | at least |\n|---|---|---|---|---|---|")

    def ours() -> Any:
        return dfa(x, scales, fluctuation="published")

    def scipy() -> Any:
        return scipy_order_parameter(x)

    row("DFA, 1 thread", alone(ours), "numpy.cumsum", partial(np.cumsum, x, axis=1), "", 41)
    row(f"DFA, {threads} threads", ours, "numpy.cumsum", partial(np.cumsum, x, axis=1), "1 x", 41)
    row("R(t), 1 thread", alone(partial(kuramoto, x)), "scipy hilbert, angle, exp", scipy, "", 21)
    row(f"R(t), {threads} threads", partial(kuramoto, x), "scipy hilbert, angle, exp", scipy, "5 x", 21)
    single = x.astype(np.float32)
    row("DFA, float32", lambda: dfa(single, scales, fluctuation="published"), "float64", ours, "", 21)
    row("DFA, order 2", lambda: dfa(x, scales, order=2), "order 1", ours)

    def draw() -> None:
        series = image_series(small[:, random.permutation(2048)], labels, 5)
        dfa(series, small_scales, fluctuation="published")
        kuramoto(series)

    def numpy_draw() -> None:
        series = numpy_series(small[:, random.permutation(2048)], labels, 5)
        polyfit_dfa(series, small_scales)
        scipy_order_parameter(series)

    row("image-axis draw, 128 x 2048", draw, "NumPy and SciPy", numpy_draw, "50 x")
    row(
        "series, 128 x 2048",
        lambda: image_series(small, labels, 5),
        "NumPy",
        lambda: numpy_series(small, labels, 5),
        "",
        21,
    )
    for U, T in ((20_000, 50), (1, 10**6), (1, 10**5), (128, 1024), (1024, 4096)):
        shaped = random.standard_normal((U, T))
        row(f"DFA, {U} x {T}", partial(dfa, shaped), "numpy.cumsum", partial(np.cumsum, shaped, axis=1))
    if not fast:
        library_rows(x, scales, ours)
        row("DFA", ours, "numpy.polyfit loop", lambda: polyfit_dfa(x, scales), "2500 x")


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()}, {len(os.sched_getaffinity(0))} cores"
    return platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["kernels", "extract", "tokens", "memory", "hostile", "growth"])
    parser.add_argument("--fast", action="store_true", help="kernels, extract: leave out the slow references")
    parser.add_argument("--cuda", action="store_true", help="extract, tokens: on the GPU")
    parser.add_argument("--images", type=int, default=2048, help="extract: images in the probe")
    parser.add_argument("--documents", type=int, default=8, help="tokens: documents in the probe")
    parser.add_argument("--models", default=",".join(MODELS), help="extract: torchvision's names")
    parser.add_argument("--repeats", type=int, default=3, help="extract, tokens: turns")
    parser.add_argument("--checkpoints", type=int, default=4, help="extract, tokens: in each run, 3 at least")
    parser.add_argument("--size", default="70m", choices=list(tokens.SIZES), help="tokens: of the network, as Pythia's")
    args = parser.parse_args()
    if args.what == "kernels":
        kernels(args.fast)
    elif args.what == "tokens":
        tokens.speed(args.size, args.documents, args.repeats, args.checkpoints, args.cuda)
    elif args.what == "memory":
        tokens.memory()
    elif args.what == "hostile":
        hostile_table()
    elif args.what == "growth":
        growth_table()
    else:
        print(f"{torch.cuda.get_device_name() if args.cuda else _processor()}, torch {torch.__version__}\n")
        extract_table(args.models.split(","), args.images, args.cuda, args.repeats, args.checkpoints, args.fast)


if __name__ == "__main__":
    main()
