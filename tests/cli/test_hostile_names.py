"""A run whose names would act on a terminal, in markup, LaTeX, a spreadsheet or a page goes through every command."""

import csv
import os
import pty
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner

from posthoc.cli import main
from posthoc.shown import shown

FOLDER = b"d[/e] :smile: [bold]\x1b[31m\n\\input{x}% <img src=x>&\xe2\x80\xae\xff".replace(b"/", b"")
FILE = "[best]\x1b[2J:x:_epoch_{}.pth"
"""Of the checkpoints."""


def run(*words, code=0):
    done = CliRunner().invoke(main, list(map(str, words)))
    assert done.exit_code == code, done.stderr
    for text in (done.stdout, done.stderr):
        assert all(line.isprintable() for line in text.split("\n")), text
    return done


@pytest.fixture(scope="module")
def measured(states, tmp_path_factory):
    """Two such runs, extracted and measured; each step is looked at on the way."""
    home = tmp_path_factory.mktemp("hostile")
    folder = home / os.fsdecode(FOLDER)
    folder.mkdir()
    for epoch, state in enumerate(states[:3]):
        torch.save({"model": state, "epoch": epoch, "val_acc": 0.5}, folder / FILE.format(epoch))
    done = run("inspect", folder)
    assert shown(folder) in done.stdout
    for epoch in range(3):
        assert shown(FILE.format(epoch)) in done.stdout
    words = ["--probe", "digits", "--images", "150", "--normalize", "none"]
    done = run("extract", folder, *words, "-o", folder / "a.h5")
    assert done.stdout.splitlines()[-1] == shown(folder / "a.h5")
    assert f"replaying 3/3 {shown(FILE.format(2))}" in done.stderr
    assert shown(FILE.format(1)) in run("inspect", folder / "a.h5").stdout
    second = home / "=1+2"
    second.mkdir()
    for place in (folder, second):
        done = run("metrics", folder / "a.h5", "-o", place / "metrics.json", "--nulls", "5")
        assert done.stderr.endswith(f"{shown(place / 'metrics.json')}\n")
    return home


def test_inspect_of_metrics_and_audit(measured):
    folder = measured / os.fsdecode(FOLDER)
    assert shown(folder / "a.h5") in run("inspect", folder / "metrics.json").stdout
    run("audit", folder / "a.h5", "--draws", "10")
    audited = run("inspect", folder / "a.audit.json").stdout
    assert f"of        {shown(folder / 'a.h5')}, sha256 " in audited
    assert "H_eff responds to" in audited
    (folder / "a.audit.json").unlink()


def test_compare_in_every_form(measured):
    name = shown(os.fsdecode(FOLDER))
    table = run("compare", measured).stdout
    assert f"\n{name}" in table
    header, *rows = csv.reader(run("compare", measured, "--csv").stdout.splitlines())
    assert {row[0] for row in rows} == {name, "'=1+2"}
    assert len(header) == len(rows[0])
    latex = run("compare", measured, "--latex").stdout
    assert r"d{[}e] :smile: {[}bold]\textbackslash{}x1b{[}31m" in latex
    assert "\\input" not in latex
    assert r"d\[e\] :smile: \[bold\]\\x1b\[31m" in run("compare", measured, "--markdown").stdout
    assert '"d[e] :smile: [bold]\\u001b[31m\\n' in run("compare", measured, "--json").stdout


@pytest.mark.slow
def test_the_page_and_its_figures(measured, tmp_path):
    done = run("report", measured, "-o", tmp_path / "r.html")
    assert done.stdout == f"{tmp_path / 'r.html'}\n"
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "d[e] :smile: [bold]\\x1b[31m\\n\\input{x}% &lt;img src=x&gt;&amp;\\u202e\\udcff" in page
    assert "<img src=x" not in page
    assert not {"\x1b", "\u202e"} & set(page)
    run("report", measured, "--figure", "runs", "-o", tmp_path / "f.svg")
    assert (tmp_path / "f.svg").stat().st_size > 1000
    assert b"\x1b" not in (tmp_path / "f.svg").read_bytes()


def test_a_file_that_is_there_is_meant_whatever_a_glob_would_make_of_its_name(measured, tmp_path):
    for name, source in (("a[b]", os.fsdecode(FOLDER)), ("ab", "=1+2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.json").write_bytes((measured / source / "metrics.json").read_bytes())
    *_, row = csv.reader(run("compare", tmp_path / "a[b]", "--csv").stdout.splitlines())
    assert row[0] == "a[b]"


def test_a_bar_on_a_terminal_shows_names_whole():
    main_end, terminal = pty.openpty()
    code = (
        "from posthoc.cli.output import progress_on_stderr\n"
        "with progress_on_stderr('replaying [b]') as progress:\n"
        "    progress(1, 2, '[/e] :smile: [bold]x\\x1b[2J')\n"
    )
    environment = {**os.environ, "COLUMNS": "200", "TERM": "xterm"}
    subprocess.run([sys.executable, "-c", code], stderr=terminal, env=environment, check=True)
    os.close(terminal)
    text = b""
    try:
        while piece := os.read(main_end, 65536):
            text += piece
    except OSError:  # how a terminal says that it is at its end
        pass
    os.close(main_end)
    assert rb"[/e] :smile: [bold]x\x1b[2J" in text
    assert b"replaying [b]" in text
