"""The commands of the documents run, in their order, on small stand-ins for what they name.

What a page says that they print is compared where it is whole. Those of docs/start are in test_start.py, those of docs/inputs.md and
docs/networks.md in replay/test_docs.py, the study's rehearsal (docs/training.md) in test_reproduce.py.
"""

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pages
import pytest
import safetensors.numpy
from click.testing import CliRunner

from posthoc.cli import main

ROOT = Path(__file__).parents[1]
PAGES = sorted(str(path.relative_to(ROOT)) for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")))
ELSEWHERE = {"docs/inputs.md", "docs/networks.md", "docs/training.md", *(page for page in PAGES if "/start/" in page)}
INSTEAD = {
    "--epochs 25": "--epochs 1",
    "--images 2048": "--images 100",
    "--documents 120": "--documents 24",
    "posthoc submit": "posthoc submit --dry-run --seconds-per-checkpoint 1",
    'main()" metrics': 'main()" metrics --force',
    " --open": "",
    " ...": "",
}
"""What takes hours, a cluster or a screen, and what is run for it."""
GPT = """
from torch import nn
def make():
    return nn.Sequential(nn.Embedding(64, 8), nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 64))
"""


def commands(page):
    """The commands of a page that stand apart, each with what the page says that it prints."""
    text = (ROOT / page).read_text().replace("\\\n", " ")
    command = r"(?:posthoc|python|cp) "
    below = rf"(?:(?:    (?!\$ |{command}).*)?\n)*"
    for line, prints in re.findall(rf"^(?:    |    \$ |\$ )({command}[^\n]*)\n({below})", text, re.MULTILINE):
        yield re.split(r"  +#| \| ", line)[0].rstrip(), re.sub("^    ", "", prints, flags=re.MULTILINE).strip()


def test_every_page_with_commands_is_run():
    assert {page for page in PAGES if any(commands(page))} == {*STAND_INS, *ELSEWHERE}


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("language-model")
    pages.run("python -m reproduction.lm --context 256 --steps 8 --out lm", folder)
    return folder / "lm"


def pictures(count=100):
    random = np.random.default_rng(0)
    return random.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8), np.arange(count) % 10


def checkpoints(given):
    for name in ("checkpoints", "runs/a", "runs/b"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).symlink_to(given("run_folder"))


def cifar(given):
    pages.write_cifar10(*pictures(400), given("monkeypatch"))
    (x, y), (x_test, y_test) = pictures(), pictures()
    np.savez("cifar10.npz", x_train=x, y_train=y, x_test=x_test, y_test=y_test)


def series(given):
    for name in ("run1", "run2"):
        pages.run(f"python -m reproduction.train digits --epochs 1 --out {name}", Path.cwd())


def tables(given):
    Path("published").symlink_to(given("published"))


def elsewhere(given):
    """fsspec's memory for a server, a bucket and a hub."""
    from fsspec.implementations.memory import MemoryFileSystem
    from fsspec.registry import _registry

    for protocol in ("https", "s3", "hf"):
        given("monkeypatch").setitem(_registry, protocol, MemoryFileSystem)
    memory, files = MemoryFileSystem(), sorted(given("run_folder").glob("*.safetensors"))
    for place in ("https://host/run", "s3://bucket/run"):
        for path in files:
            memory.pipe(f"{place}/{path.name}", path.read_bytes())
    for step, path in zip((1000, 2000), files, strict=False):
        without_epoch = safetensors.numpy.save(safetensors.numpy.load_file(path))
        for place in (f"https://host/step{step}", f"hf://org/model@step{step}"):
            memory.pipe(f"{place}/model.safetensors", without_epoch)


def gan(given):
    import torch

    for epoch in (1, 2):
        Path(f"gan/epoch_{epoch}").mkdir(parents=True)
        for name in ("actor", "critic"):
            torch.save(torch.nn.Linear(3, 2).state_dict(), f"gan/epoch_{epoch}/{name}.pt")


def language(given):
    Path("lm").symlink_to(given("language_model"))


def texts(given):
    """Of the names on docs/language-models.md; `out` is a series of nanoGPT's form."""
    import torch

    for name in ("pythia-14m", "run"):
        Path(name).symlink_to(given("language_model"))
    shutil.copy("run/held-out.txt", "book.txt")
    tokens = np.random.default_rng(0).integers(0, 64, (24, 256))
    np.save("shuffled.npy", tokens)
    Path("data/openwebtext").mkdir(parents=True)
    tokens.astype(np.uint16).tofile("data/openwebtext/val.bin")
    Path("model.py").write_text(GPT)
    scope = {}
    exec(GPT, scope)
    Path("out").mkdir()
    for step in (1, 2):
        torch.save({"model": scope["make"]().state_dict(), "iter_num": step}, f"out/ckpt_{step}.pt")
    for name in "bcd":
        Path(f"{name}.h5").symlink_to("a.h5")


def files(given):
    """Of both kinds, as in tests/fixtures, and the measure of docs/your-own-measure.md."""
    for folder in ("runs/a", "runs/b", "."):
        shutil.copytree(ROOT / "tests/fixtures/v2", folder, dirs_exist_ok=True)
    Path("run").symlink_to(given("run_folder"))
    Path("mine.py").write_text(pages.blocks((ROOT / "docs/your-own-measure.md").read_text())[0])


STAND_INS = {
    "README.md": (checkpoints, cifar, language),
    "CONTRIBUTING.md": (files,),
    "docs/check.md": (elsewhere,),
    "docs/checkpoints.md": (gan,),
    "docs/cluster.md": (checkpoints, cifar),
    "docs/compare.md": (series, tables),
    "docs/index.md": (checkpoints, cifar),
    "docs/json.md": (files,),
    "docs/language-models.md": (texts,),
    "docs/loggers.md": (files,),
    "docs/paper.md": (cifar,),
    "docs/report.md": (files,),
    "docs/your-own-measure.md": (files,),
}


@pytest.mark.slow
@pytest.mark.parametrize("page", STAND_INS)
def test_the_commands_of_a_page_run(page, request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for make in STAND_INS[page]:
        make(request.getfixturevalue)
    of_start = {line for start in PAGES if "/start/" in start for line, prints in commands(start) if prints}
    for line, prints in commands(page):
        if prints and line in of_start and "..." in prints:
            continue  # an excerpt
        for long, short in INSTEAD.items():
            line = line.replace(long, short)
        program, *words = shlex.split(line)
        words = [name for word in words for name in (sorted(map(str, Path().glob(word))) if "*" in word else [word])]
        if program == "cp":
            shutil.copy(*words)
        elif program == "python":
            assert pages.run(line, tmp_path)
        else:
            again = ["--force"] if words[0] in ("extract", "metrics", "audit") else []
            result = CliRunner(env={"COLUMNS": "110"}).invoke(main, words + again, catch_exceptions=False)
            if prints and "..." not in prints:
                assert pages.words(result.output) == pages.words(prints)
            else:
                assert result.exit_code == 0, result.output
