"""The pages of docs/start: their files written, their commands run in order, what is printed put below them.

`python tests/pages.py` writes what is printed today into the pages.
"""

import hashlib
import os
import pickle
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[1]
START = ROOT / "docs" / "start"
MOST_LINES = 22
"""Of what a command prints, so many lines are shown."""


def _printed(lines):
    """Whether the first of these lines is of an output, which may have blank lines inside."""
    line = next(filter(str.strip, lines[:2]), "")
    return line.startswith("    ") and not line.startswith("    $ ")


def parts(text):
    """The pieces of a page, in order: (None, words), (name of a file, its content), (command, what it prints)."""
    pieces, lines, name = [], text.splitlines(keepends=True), None
    k = 0
    while k < len(lines):
        start = k
        named = re.match(r"`([\w.]+\.py)`", lines[k])
        name = named[1] if named else name
        if lines[k] == "```python\n":
            k = lines.index("```\n", k) + 1
            pieces.append((name, "".join(lines[start + 1 : k - 1])))
        elif lines[k].startswith("    $ "):
            k += 1
            while k < len(lines) and _printed(lines[k:]):
                k += 1
            pieces.append((lines[start][6:].rstrip("\n"), "".join(line[4:] or "\n" for line in lines[start + 1 : k])))
        else:
            k += 1
            pieces.append((None, lines[start]))
    return pieces


def run(command, folder):
    """What a command of a page prints as its result."""
    words = shlex.split(command)
    module = {"posthoc": ["-P", "-m", "posthoc"], "python": []}[words[0]]
    paths = {"PYTHONPATH": str(ROOT)} if words[1:2] == ["-m"] else {}
    environment = os.environ | {"COLUMNS": "110"} | paths
    command = [sys.executable, *module, *words[1:]]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout.replace(f"{folder}/", "")  # which is another each time


def prepared(page, folder):
    """What a page takes for granted."""
    if page.stem != "downloaded-series":
        return
    command = "python -m reproduction.lm --context 128 --steps 16 --out lm"
    run(command, folder)
    cache = folder / "models--EleutherAI--pythia-14m"
    for name in ("snapshots", "refs"):
        (cache / name).mkdir(parents=True)
    steps = sorted(int(path.name.removeprefix("checkpoint-")) for path in (folder / "lm").glob("checkpoint-*"))
    for step in steps:
        commit = f"{step + 1:040x}"
        (folder / "lm" / f"checkpoint-{step}").rename(cache / "snapshots" / commit)
        shutil.copy(folder / "lm" / "tokenizer.json", cache / "snapshots" / commit)
        (cache / "refs" / f"step{step}").write_text(commit)
    shutil.move(folder / "lm" / "held-out.txt", folder / "held-out.txt")


def shown(output):
    """The first lines of what is printed, and a sign that there are more."""
    lines = [line.rstrip() + "\n" for line in output.splitlines()]
    return "".join(lines[:MOST_LINES] + ["...\n"] * (len(lines) > MOST_LINES))


def played(page, folder):
    """The pieces of a page, with what its commands print now."""
    prepared(page, folder)
    for head, body in parts(page.read_text()):
        if head is None:
            yield head, body
        elif head.endswith(".py") and " " not in head:
            (folder / head).write_text(body)
            yield head, body
        else:
            yield head, shown(run(head, folder))


def written(pieces):
    """A page of pieces."""
    for head, body in pieces:
        if head is None:
            yield body
        elif head.endswith(".py") and " " not in head:
            yield f"```python\n{body}```\n"
        else:
            yield f"    $ {head}\n" + "".join(f"    {line}".rstrip() + "\n" for line in body.splitlines())


def write_cifar10(images, labels, monkeypatch):
    """The test part of CIFAR-10 as torchvision finds it, in data/ of the working directory: images [B, 32, 32, 3]."""
    from torchvision.datasets import CIFAR10

    folder = Path("data/cifar-10-batches-py")
    folder.mkdir(parents=True)
    content = {"data": images.transpose(0, 3, 1, 2).reshape(len(images), -1), "labels": list(map(int, labels))}
    sums = {}
    for name, saved in {"test_batch": content, "batches.meta": {"label_names": list("abcdefghij")}}.items():
        (folder / name).write_bytes(pickle.dumps(saved))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    monkeypatch.setattr(CIFAR10, "train_list", [])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": sums["batches.meta"]}
    monkeypatch.setattr(CIFAR10, "meta", meta)
    monkeypatch.setenv("POSTHOC_DATA", "data")


def blocks(text):
    """The code of a page that stands apart: fenced, or indented."""
    fenced = re.findall(r"^```[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return fenced + [
        textwrap.dedent(block) for block in re.findall(r"(?:^(?:    .*)?\n)+", text, re.MULTILINE) if block.strip()
    ]


def words(text):
    """The lines that are printed without their numbers, which differ between processors, and without their widths."""
    return [re.sub(r"[-\d.,e+%]*\d[\d.,e+%-]*", "#", " ".join(line.split())) for line in text.splitlines()]


if __name__ == "__main__":
    for page in map(Path, sys.argv[1:]) if sys.argv[1:] else sorted(START.glob("*.md")):
        with tempfile.TemporaryDirectory() as folder:
            page.write_text("".join(written(played(page, Path(folder)))))
