#!/usr/bin/env python3
"""Mutated files through the commands: each ends in a result or one sentence, runs nothing, and touches nothing else.

    scripts/fuzz.py --count 10000 --seed 0

Copies of sound files (checkpoints of each format, probes, and every JSON and HDF5 file that a command reads) with bytes flipped,
cut, doubled or overwritten, with hostile values in place of JSON's, and with hostile names, go through `inspect` and
`extract --dry-run`, or through the commands that read them. Anything but success or an error meant for a user, a file
opened for writing outside the output, code that ran, a process or a socket ends the run with 1, and the file is kept.
Where torch or safetensors still load a mutated checkpoint, the tensors must be the same. Prints a line per entrance.
"""

import argparse
import collections
import contextlib
import io
import json
import os
import pickle
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import torch._dynamo  # some networks need it to be traced; its import makes a folder of its own
from safetensors.torch import load_file, save_file
from torch import nn

import posthoc
from posthoc.cli import main as commands
from posthoc.cluster.submission import Array, Submission, Target
from posthoc.errors import PosthocError
from posthoc.replay.checkpoint import read_header, read_weights
from posthoc.replay.formats.table import FORMATS, files_of

NETWORK = """
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)
    def forward(self, x):
        return self.fc(self.conv(x).relu().mean((2, 3)))
class Table(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
class Words(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Embedding(16, 4), nn.Linear(4, 16))
"""


class Net(nn.Module):
    """The same, to be pickled whole."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)


Reference = Callable[[Path], dict[str, Any]]
HOSTILE_TEXTS = (
    "", "\x1b[31mred\\x07", "[/scratch/u]", "[bold]:x:", "\\ud800", "\\u202egnp.exe", "a\\nb\\r", "../../etc/passwd", "/dev/zero",
    "=HYPERLINK(1)", "\\\\input{/etc/passwd}", "<img src=x onerror=alert(1)>", "$(touch x)", "os:abort", "net.py:Net",
    "torchvision:pwn.py", "x" * 5000, "%s%n{0}", "\\0", "1e999", "nan",
)  # fmt: skip


LIMIT = 10.0
"""Processor seconds that no mutant may take; these files are of some kilobytes."""


@dataclass(frozen=True)
class Entrance:
    """A file that commands read: its content is mutated, and the commands are run.

    place: of a checkpoint what is opened; reference: how its library reads it.
    """

    file: Path
    words: tuple[tuple[str, ...], ...]
    place: Path | None = None
    reference: Reference | None = None


def load_torch(path: Path) -> dict[str, Any]:
    """torch's own safe reading, of plain and wrapped state dicts."""
    content: Any = torch.load(path, map_location="cpu", weights_only=True)
    inner = content.get("state_dict", content)
    return {name: value for name, value in inner.items() if isinstance(name, str) and isinstance(value, torch.Tensor)}


REFERENCES: dict[str, Reference] = {"torch zip": load_torch, "torch pickle": load_torch, "safetensors": load_file}


def states(count: int) -> list[dict[str, torch.Tensor]]:
    """Weights of the network."""
    torch.manual_seed(0)
    return [
        {
            "conv.weight": torch.randn(4, 3, 3, 3),
            "conv.bias": torch.randn(4),
            "fc.weight": torch.randn(5, 4).bfloat16(),
            "fc.bias": torch.randn(5),
        }
        for _ in range(count)
    ]


def looked_at(work: Path, place: Path) -> tuple[tuple[str, ...], ...]:
    """The commands that read a checkpoint or a folder of them."""
    given = ("--probe", f"npz:{work / 'probe.npz'}", "--normalize", "none", "--images", "16")
    options = (*given, "--model", f"{work / 'net.py'}:Net", "-o", str(work / "out" / "a.h5"), "--dry-run")
    return ("inspect", str(place)), ("extract", str(place), *options)


def checkpoints(work: Path) -> dict[str, Entrance]:
    """Every file of a sound checkpoint of each format in the table, of a few more kinds, and a run.json."""
    state, other = states(2)
    optimizer = {"state": {0: state["conv.bias"]}}
    wrapped = {"state_dict": state, "epoch": 3, "global_step": 40, "arch": "mine", "optimizer": optimizer}
    makers: dict[str, tuple[str, Callable[[Path], object], Reference | None]] = {
        form.name: ("".join(form.endings[:1]), partial(form.write, state), REFERENCES.get(form.name))
        for form in FORMATS.values()
        if form.write
    }
    makers |= {
        "torch zip, wrapped": (".ckpt", partial(torch.save, wrapped), load_torch),
        "plain pickle": (".pkl", lambda path: path.write_bytes(pickle.dumps(wrapped)), None),
        "whole module": (".pt", partial(torch.save, Net()), None),
        "whole module, older": (".pth", partial(torch.save, Net(), _use_new_zipfile_serialization=False), None),
    }
    entrances: dict[str, Entrance] = {}
    for k, (name, (ending, write, reference)) in enumerate(makers.items()):
        place = work / f"made{k}" / f"epoch_3{ending}"
        place.parent.mkdir()
        with contextlib.redirect_stderr(io.StringIO()):
            write(place)
        for file in filter(Path.is_file, sorted(place.rglob("*"))) if place.is_dir() else files_of(place):
            entrances[f"{name}, {file.name}"] = Entrance(file, looked_at(work, place), place, reference)
    entrances |= cached(work / "cache" / "models--a--b", state, work)
    run = work / "run"
    run.mkdir()
    for epoch, weights in enumerate((state, other)):
        torch.save(weights, run / f"epoch_{epoch}.pt")
    about = {"model": "torchvision:resnet18", "dataset": "mine", "seed": 1, "image_size": 8, "recipe": "none"}
    (run / "run.json").write_text(json.dumps({**about, "normalization": {"mean": [0.5] * 3, "std": [0.2] * 3}}))
    entrances["run.json"] = Entrance(run / "run.json", looked_at(work, run))
    return entrances


def cached(model: Path, state: dict[str, torch.Tensor], work: Path) -> dict[str, Entrance]:
    """A revision in a Hugging Face cache: the file that names it, and the blob of its weights."""
    commit = "0123456789" * 4
    for name in ("blobs", "refs", f"snapshots/{commit}"):
        (model / name).mkdir(parents=True)
    ref, blob = model / "refs" / "step3", model / "blobs" / "a"
    ref.write_text(commit)
    save_file(state, blob)
    (model / "snapshots" / commit / "model.safetensors").symlink_to("../../blobs/a")
    return {
        f"revision in a Hugging Face cache, {file.name}": Entrance(file, looked_at(work, model), ref)
        for file in (ref, blob)
    }


def probes(work: Path) -> dict[str, Entrance]:
    """Sound files of samples, which come from others, too, and a network that takes each."""
    import pyarrow as pa
    from pyarrow import feather, parquet
    from tokenizers import Tokenizer, models, pre_tokenizers

    place, numbers = work / "probes", np.random.default_rng(1)
    place.mkdir()
    space: dict[str, Any] = {"__name__": "net"}
    exec(NETWORK, space)
    for name in ("Net", "Table", "Words"):
        (place / name).mkdir()
        torch.save(space[name]().state_dict(), place / name / "epoch_1.pt")
    images, ids = numbers.normal(size=(16, 3, 8, 8)).astype("f4"), numbers.integers(0, 16, (40, 8)).astype("u2")
    table = pa.table({name: numbers.normal(size=40) for name in ("a", "b", "c", "y")})
    rows = pa.table({"x": ids.tolist(), "name": ["a"] * 40})
    np.savez(place / "a.npz", x=images, y=np.arange(16) % 5, index=np.arange(16))
    np.save(place / "a.npy", images)
    parquet.write_table(table, place / "a.parquet")
    feather.write_feather(rows, place / "rows.arrow", compression="uncompressed")
    np.save(place / "ids.npy", ids)
    ids.tofile(place / "ids.bin")
    tokenizer = Tokenizer(models.WordLevel({f"w{k}": k for k in range(16)}, "w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(place / "tokenizer.json"))
    lines = [json.dumps({"text": " ".join(f"w{k}" for k in row)}) for row in ids.tolist()]
    (place / "a.jsonl").write_text("\n".join(lines))
    text = ("--tokenizer", str(place / "tokenizer.json"), "--context", "8")
    files: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
        ("a.npz", "npz:a.npz", "Net", ()), ("a.npy", "npy:a.npy", "Net", ()),
        ("a.parquet", "dataset:a.parquet", "Table", ("--columns", "a,b,c:y")), ("rows.arrow", "dataset:rows.arrow", "Words", ()),
        ("ids.npy", "tokens:ids.npy", "Words", ()), ("ids.bin", "tokens:ids.bin", "Words", ("--context", "8")),
        ("a.jsonl", "text:a.jsonl", "Words", text), ("tokenizer.json", "text:a.jsonl", "Words", text),
    )  # fmt: skip
    entrances: dict[str, Entrance] = {}
    for file, spec, network, options in files:
        kind, _, name = spec.partition(":")
        given = (str(place / network), "--probe", f"{kind}:{place / name}", "--model", f"{work / 'net.py'}:{network}")
        words = (("extract", *given, *options, "-o", str(work / "out" / "a.h5"), "--dry-run"),)
        entrances[f"probe {spec}, {file}"] = Entrance(place / file, words)
    return entrances


def results(work: Path) -> dict[str, Entrance]:
    """Sound files of posthoc's own, which come with the data, too, and the commands that read them."""
    run, out = work / "measured", work / "results"
    run.mkdir()
    out.mkdir()
    for epoch, state in enumerate(states(12)):
        torch.save(state, run / f"epoch_{epoch}.pt")
    network, probe = f"{work / 'net.py'}:Net", f"npz:{work / 'probe.npz'}"
    activations = posthoc.extract(run, probe, out / "activations.h5", model=network, normalize="none")
    metrics, audit, record = out / "metrics.json", out / "audit.json", out / "submission.json"
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        commands.main(["metrics", str(activations), "--nulls", "9", "--max-nulls", "9"], standalone_mode=False)
        commands.main(["audit", str(activations), "--draws", "10"], standalone_mode=False)
    target = Target("a", str(run), 12, [Array("12", [1, 2], 2, 1)], "13")
    Submission(out, ["extract"], [], [target], {"a": 1.0}, "14").save()
    fresh = str(work / "out" / "new")
    return {
        "activations.h5": Entrance(
            activations,
            (("inspect", str(activations)), ("metrics", str(activations), "--nulls", "0", "-o", f"{fresh}.json")),
        ),
        "metrics.json": Entrance(
            metrics,
            (
                ("inspect", str(metrics)),
                ("compare", str(metrics), str(metrics), "--stopping", "--latex"),
                ("report", str(metrics), "-o", f"{fresh}.html"),
            ),
        ),
        "audit.json": Entrance(audit, (("report", str(metrics), "-o", f"{fresh}.html"),)),
        "submission.json": Entrance(record, (("status", str(out)),)),
    }


def hostile(source: random.Random) -> Any:
    """A value that no reader expects."""
    deep: Any = []
    for _ in range(source.choice((1, 70, 900))):
        deep = [deep] if source.random() < 0.5 else {"a": deep}
    numbers = (None, True, -1, 0, 1.5, 2**63, 10**400, -(10**30), float("nan"), float("inf"), 10**9)
    return source.choice((*numbers, [], {}, deep, [None] * 2000, {"a": None}, *HOSTILE_TEXTS, *HOSTILE_TEXTS))


def with_hostile_values(content: Any, source: random.Random) -> Any:
    """JSON in which a value or two, or a name, is another."""
    content = json.loads(json.dumps(content))
    for _ in range(source.choice((1, 1, 2))):
        at, key = content, None
        while isinstance(at, (dict, list)) and at:
            above, key = at, source.choice(list(at) if isinstance(at, dict) else range(len(at)))
            at = above[key]
            if source.random() < 0.2:
                break
        if key is None:
            return hostile(source)
        if isinstance(above, dict) and source.random() < 0.2:
            above[source.choice(HOSTILE_TEXTS)] = above.pop(key)
        elif isinstance(above, dict) and source.random() < 0.2:
            del above[key]
        else:
            above[key] = hostile(source)
    return content


def mutated(content: bytes, source: random.Random) -> bytes:
    """A few changes of a random kind, most of them near the file's start or end, where the structure is."""
    data = bytearray(content)
    for _ in range(source.choice((1, 1, 1, 2, 8))):
        size = max(len(data), 1)
        at = source.choice(
            (source.randrange(size), source.randrange(min(size, 400)), size - 1 - source.randrange(min(size, 400)))
        )
        kind = source.randrange(6)
        if kind == 0:
            data[at : at + 1] = bytes([source.randrange(256)])
        elif kind == 1:
            del data[at:]
        elif kind == 2:
            del data[at : at + source.randrange(1, 9)]
        elif kind == 3:
            data[at:at] = data[at : at + source.randrange(1, 65)]
        elif kind == 4:
            data[at : at + 8] = source.choice((2**63 - 1, 2**31, 2**40, 0, 2**64 - 1)).to_bytes(8, "little")
        else:
            data[at : at + 1] = bytes([data[at] ^ (1 << source.randrange(8))]) if at < len(data) else b""
    return bytes(data)


def another(file: Path, whole: bytes, source: random.Random) -> bytes:
    """A mutant of a file's content; of JSON half of them by its values."""
    if file.suffix == ".json" and source.random() < 0.5:
        return json.dumps(with_hostile_values(json.loads(whole), source)).encode()
    return mutated(whole, source)


class Watch:
    """Sees what the interpreter does while a command runs: files opened for writing, code, processes, sockets."""

    def __init__(self, work: Path) -> None:
        self.out = work / "out"
        self.allowed = (str(self.out) + os.sep, os.devnull)
        self.data = str(work) + os.sep
        self.code = str(work / "net.py")
        self.armed = self.on = False
        self.seen: list[str] = []
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "open":
            path, mode, flags = arguments
            writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC) if isinstance(flags, int) else 0
            if (writes or (mode and set(mode) & set("wax+"))) and not self.ours(path):
                self.seen.append(f"{path} was opened to write")
        elif event in ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.symlink", "os.link", "os.truncate"):
            if not self.ours(arguments[0]):
                self.seen.append(f"{event} of {arguments[0]}")
        elif event == "exec":
            file = getattr(arguments[0], "co_filename", "")
            if file.startswith(self.data) and file != self.code:
                self.seen.append(f"{file} was run")
        elif event.startswith(("os.system", "os.exec", "os.posix_spawn", "socket.connect", "pickle.find_class")) or (
            event == "subprocess.Popen" and Path(arguments[0]).name != "squeue"
        ):
            self.seen.append(f"{event} {arguments}")

    def ours(self, path: Any) -> bool:
        if isinstance(path, int):
            return True
        place = Path(os.fsdecode(path)).absolute()
        return place == self.out or str(place).startswith(self.allowed)

    def run(self, words: tuple[str, ...]) -> str:
        """Run a command as the shell would; whether it was "done" or "refused". Anything else is raised."""
        output = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="strict")
        self.on = self.armed
        try:
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
                commands.main(list(words), standalone_mode=False)
        except SystemExit as error:
            return "done" if error.code in (0, 3) else "refused"
        except (PosthocError, click.ClickException) as error:
            if str(error).count("\n") > 20:
                raise AssertionError("the error is no sentence") from error
            return "refused"
        finally:
            self.on = False
            if self.seen:
                raise AssertionError("; ".join(self.seen))
        return "done"


def attempt(entrance: Entrance, watch: Watch, sound: bool = False) -> str:
    """Run the commands on what lies there; what came of it, in a few words. What is `sound` must not be refused."""
    shutil.rmtree(watch.out, ignore_errors=True)
    watch.out.mkdir()
    outcomes = [watch.run(words) for words in entrance.words]
    if sound and set(outcomes) != {"done"} and entrance.words[0][0] != "status":  # whose job has failed
        raise AssertionError("the sound file is refused")
    if entrance.place is None:
        return " and ".join(outcomes)
    try:
        header, weights = read_header(entrance.place), read_weights(entrance.place)
    except PosthocError:
        return "refused"
    if {name: tuple(tensor.shape) for name, tensor in weights.items()} != header.shapes:
        raise AssertionError("the weights are not those of the header")
    if entrance.reference is None:
        return "loaded"
    try:
        theirs = entrance.reference(entrance.place)
    except Exception:  # whatever a library raises for what we may well read
        return "loaded"
    if all(_same(theirs[name], weights[name]) for name in theirs.keys() & weights.keys()):
        return "loaded as by its library"
    # torch fills what a shortened entry lacks with whatever lies in memory; the whole values are right then.
    original = states(1)[0]
    if all(name in original and _same(original[name], weights[name]) for name in weights):
        return "loaded whole where its library does not"
    raise AssertionError("a tensor differs from what its own library reads")


def _same(first: torch.Tensor, second: torch.Tensor) -> bool:
    return torch.equal(first.reshape(-1).view(torch.uint8), second.reshape(-1).view(torch.uint8))


def hostile_names(work: Path) -> Iterator[Entrance]:
    """Folders of checkpoints whose names, and whose tensors', do harm where they are shown or opened."""
    state, other = states(2)
    for k, text in enumerate(HOSTILE_TEXTS):
        folder = work / f"names{k}"
        folder.mkdir()
        word = text.encode("utf-8", "surrogatepass").replace(b"/", b"_").replace(b"\0", b"_")[:200]
        for epoch, weights in enumerate((state, other)):
            name = os.fsdecode(os.fsencode(folder) + b"/epoch_%d" % epoch + word + b".pt")
            torch.save({text: torch.ones(3), **weights, "epoch": epoch} if k % 2 else weights, folder / "a.pt")
            (folder / "a.pt").rename(name)
        yield Entrance(folder, looked_at(work, folder))


def fuzz(name: str, entrance: Entrance, watch: Watch, count: int, seed: int) -> str | None:
    """Try so many mutants of one file; what went wrong, if something did."""
    whole, source = entrance.file.read_bytes(), random.Random(f"{seed} {name}")
    counts: collections.Counter[str] = collections.Counter()
    slowest = 0.0
    for k in range(count + 1):
        entrance.file.write_bytes(another(entrance.file, whole, source) if k else whole)
        start = time.process_time()
        try:
            counts[attempt(entrance, watch, sound=not k)] += 1
        except BaseException as error:
            traceback.print_exc()
            return f"{name}: {type(error).__name__}: {error}; the file is {entrance.file}"
        slowest = max(slowest, time.process_time() - start)
    entrance.file.write_bytes(whole)
    listing = ", ".join(f"{number} {what}" for what, number in sorted(counts.items()))
    print(f"{name}: {listing}; slowest {slowest:.2f} s", flush=True)
    return f"{name}: a mutant took {slowest:.1f} s" if slowest > LIMIT else None


def main() -> int:
    """Mutate and run; 1 where anything but a result or a refusal came of it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=600, help="mutants of each file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--of", choices=("checkpoints", "probes", "results", "all"), default="all", help="what is mutated"
    )
    parser.add_argument("--only", default="", help="entrances whose name holds this")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # torch's, on what it finds in mutated files
    sys.dont_write_bytecode = True
    work = Path(tempfile.mkdtemp(prefix="posthoc-fuzz-")).resolve()
    (work / "bin").mkdir()
    (work / "bin" / "squeue").write_text("#!/bin/sh\n")
    (work / "bin" / "squeue").chmod(0o755)
    os.environ["PATH"] = str(work / "bin")
    (work / "net.py").write_text(NETWORK)
    source = np.random.default_rng(0)
    images = source.integers(0, 256, (256, 8, 8, 3), np.uint8)
    np.savez(work / "probe.npz", images=images, labels=np.arange(256) % 5)
    makers = {"checkpoints": checkpoints, "probes": probes, "results": results}
    entrances: dict[str, Entrance] = {}
    for kind, make in makers.items():
        entrances |= make(work) if arguments.of in (kind, "all") else {}
    watch = Watch(work)
    for entrance in entrances.values():  # what libraries do when they are imported is not watched
        attempt(entrance, watch, sound=True)
    watch.armed = True
    for entrance in hostile_names(work):
        attempt(entrance, watch)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, entrance in entrances.items():
        if arguments.only in name and (fault := fuzz(name, entrance, watch, arguments.count, arguments.seed)):
            print(fault, file=sys.stderr)
            return 1
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"memory: peak grew by {grown:.0f} MB")
    shutil.rmtree(work)
    return int(grown > 300)


if __name__ == "__main__":
    sys.exit(main())
