"""reproduction.lm: a series that transformers reads, the same bytes however often it is interrupted."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

import posthoc
from posthoc.replay.layout import find_run
from reproduction.lm import main

ROOT = Path(__file__).parents[1]
SMALL = ("--context", 32, "--batch", 8, "--steps", 30, "--device", "cpu")
STEPS = [0, 1, 2, 4, 8, 16, 30]


@pytest.fixture(scope="module", autouse=True)
def _as_before():
    """Training sets what holds for the whole process."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


def train(*words):
    main([str(word) for word in words])


def refused(capsys, *words):
    """The message and exit code of a request that cannot be met."""
    with pytest.raises(SystemExit) as stopped:
        train(*words)
    return capsys.readouterr().err, stopped.value.code


def contents(folder):
    """All that a run leaves but the state to resume from, by name."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".resume.pt"
    }


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A dozen small documents in words that follow each other by rule, beside what is no text."""
    random = np.random.default_rng(0)
    words = ["".join(random.choice(list("aeioumnrst"), 5)) for _ in range(300)]
    folder = tmp_path_factory.mktemp("text")
    for document in range(12):
        place, sentence = int(random.integers(300)), []
        for _ in range(600):
            place = (place * 7 + int(random.integers(3))) % 300
            sentence.append(words[place])
        (folder / f"{document:02d}.txt").write_text(" ".join(sentence))
    (folder / "picture.bin").write_bytes(b"\x89\xff\xfe\x00")
    return folder


@pytest.fixture(scope="module")
def series(text, tmp_path_factory):
    """Uninterrupted runs of both architectures; do not write to them."""
    out = tmp_path_factory.mktemp("series")
    for arch in ("gpt-neox", "gpt2"):
        train("--arch", arch, "--text", text, *SMALL, "--out", out / arch)
    return out


@pytest.mark.slow
def test_a_killed_run_ends_in_the_same_bytes(text, series, tmp_path, capsys):
    words = ("--arch", "gpt-neox", "--text", text, *SMALL, "--out", tmp_path / "cut")
    command = [sys.executable, "-m", "reproduction.lm", *map(str, words)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        for line in process.stdout:
            if line.startswith("step     8"):
                process.kill()
    capsys.readouterr()
    train(*words)
    assert "going on after step" in capsys.readouterr().out
    whole = contents(series / "gpt-neox")
    assert contents(tmp_path / "cut") == whole
    assert {name.split("/")[0] for name in whole if "/" in name} == {f"checkpoint-{step}" for step in STEPS}
    train(*words)
    assert capsys.readouterr().out == f"{tmp_path / 'cut'}: going on after step 30\n"
    assert contents(tmp_path / "cut") == whole


@pytest.mark.parametrize("arch", ["gpt-neox", "gpt2"])
def test_transformers_reads_what_is_written(series, arch):
    held_out = (series / arch / "held-out.txt").read_text()
    losses = []
    for step in STEPS:
        folder = series / arch / f"checkpoint-{step}"
        model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        ids = tokenizer(held_out, return_tensors="pt")["input_ids"]
        assert tokenizer.decode(ids[0]) == held_out
        ids = torch.cat([ids, torch.tensor([[tokenizer.eos_token_id]])], 1)
        starts = torch.linspace(0, ids.shape[1] - 32, 32).long().unique()
        rows = torch.stack([ids[0, start : start + 32] for start in starts.tolist()])
        with torch.no_grad():
            loss = model(input_ids=rows, labels=rows).loss.item()
        state = json.loads((folder / "trainer_state.json").read_text())
        assert state["global_step"] == step
        assert [row["step"] for row in state["log_history"]] == STEPS[: STEPS.index(step) + 1]
        assert state["log_history"][-1]["eval_loss"] == pytest.approx(loss, abs=1e-5)
        losses.append(loss)
    vocabulary = model.config.vocab_size
    assert losses[0] == pytest.approx(math.log(vocabulary), abs=0.1)
    assert losses[-1] < losses[0] - 1.5


def test_the_checkpoints_are_a_run_in_order(series):
    run = find_run(series / "gpt2")
    assert [checkpoint.step for checkpoint in run.checkpoints] == STEPS
    about = json.loads((series / "gpt2" / "run.json").read_text())
    assert (about["arch"], about["seed"], about["steps"], about["context"], about["batch"]) == ("gpt2", 0, 30, 32, 8)
    assert 400_000 < about["parameters"] < 600_000
    assert (series / "gpt2" / "checkpoint-4" / "model.safetensors").stat().st_mode & 0o444 == 0o444 & (
        (series / "gpt2" / "run.json").stat().st_mode
    )


def test_every_tenth_document_is_set_aside(text, series, tmp_path):
    held_out = (series / "gpt2" / "held-out.txt").read_text()
    assert held_out == (text / "09.txt").read_text()
    book = tmp_path / "book.txt"
    book.write_text((text / "00.txt").read_text() * 3)
    train("--text", book, *SMALL, "--steps", 0, "--out", tmp_path / "run")
    whole = book.read_text()
    assert (tmp_path / "run" / "held-out.txt").read_text() == whole[len(whole) * 9 // 10 :]


def test_python_itself_is_text_enough(tmp_path):
    train(*SMALL, "--steps", 0, "--out", tmp_path)
    about = json.loads((tmp_path / "run.json").read_text())
    assert about["text"] == f"the standard library of Python {sys.version.split()[0]}"
    assert about["train_tokens"] > 1_500_000
    assert about["held_out_tokens"] > 100_000
    assert "def " in (tmp_path / "held-out.txt").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--seed", 7, *SMALL), "holds another run (seed 0 there, 7 asked)"),
        ((*SMALL, "--context", 8000), "are too few for a --context of 8000; give more text with --text."),
        ((*SMALL, "--context", 1), "--context takes 2 or more"),
        ((*SMALL, "--device", "cuda:99"), "no such device"),
    ],
)
def test_what_cannot_be_done_is_a_sentence(text, series, capsys, words, message):
    before = contents(series / "gpt-neox")
    error, code = refused(capsys, "--text", text, *words, "--out", series / "gpt-neox")
    assert message in error
    assert code in (1, 2)
    assert contents(series / "gpt-neox") == before


def test_what_was_damaged_since_is_named(text, tmp_path, capsys):
    words = ("--text", text, *SMALL, "--steps", 2, "--out", tmp_path)
    train(*words)
    weights = tmp_path / "checkpoint-2" / "model.safetensors"
    for damaged in (weights, tmp_path / ".resume.pt"):
        content = damaged.read_bytes()
        damaged.write_bytes(content[: len(content) // 2])
        error, code = refused(capsys, *words)
        assert f"remove {tmp_path / '.resume.pt'}." in error
        assert (code, error.count("\n")) == (1, 1)
    (tmp_path / ".resume.pt").unlink()
    train(*words)
    assert weights.stat().st_size > 1_500_000


def test_a_text_that_is_none_is_refused(text, tmp_path, capsys):
    for place, message in (
        (text / "picture.bin", "is not text in UTF-8 (byte 0); convert it."),
        (tmp_path, "There is no text in"),
        (tmp_path / "absent", "Cannot read"),
    ):
        assert message in refused(capsys, "--text", place, *SMALL, "--out", tmp_path / "run")[0]
        assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_demo_of_a_language_model_ends_in_a_report(tmp_path):
    out = tmp_path / "demo"
    done = subprocess.run(
        ["bash", ROOT / "scripts" / "demo", "--lm", out],
        env={**os.environ, "PYTHON": sys.executable, "STEPS": "2"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"The report: {out / 'report.html'}\n")
    metrics = posthoc.load_metrics(out / "metrics.json")
    assert [checkpoint.step for checkpoint in metrics.checkpoints] == [0, 1, 2]
    assert {"hurst", "hurst_shuffle", "hurst_less_shuffle", "token_loss"} <= metrics.measures.keys()
    assert (out / "report.html").read_text().startswith("<!DOCTYPE html>")
