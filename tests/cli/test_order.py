"""Which files are replayed, and in which order, as a user says it and is told."""

import os

import pytest
import torch
from click.testing import CliRunner

import posthoc
from posthoc.cli import main


def run(*words):
    return CliRunner().invoke(main, list(map(str, words)))


@pytest.fixture
def folder(tmp_path, states, monkeypatch):
    """Three checkpoints whose names no word explains, and one of another name, with a pipe and a pointer beside."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    for name, state in zip(("init.pt", "tudui_2.pt", "tudui_10.pt", "tudui_11.pt"), states, strict=False):
        torch.save(state, tmp_path / "run" / name)
    os.mkfifo(tmp_path / "run" / "tudui_12.pt")
    (tmp_path / "run" / "tudui_13.pt").write_text("version https://git-lfs.github.com/spec/v1\n")
    return tmp_path / "run"


ORDER = ("--order", "name", "--as", "init.pt=0")


def test_inspect_tells_the_order_and_what_was_set_apart(folder):
    refused = run("inspect", "run", "--select", "tudui_#.pt")
    assert refused.exit_code == 1
    assert "follows 'tudui', no word for epochs or steps" in refused.output
    shown = run("inspect", "run", *ORDER).stdout
    assert "run, 4 checkpoints, epoch 0 to epoch 11" in shown
    assert "order      by the epochs in the names and as given with --as" in shown
    assert "set apart  tudui_12.pt (a pipe), tudui_13.pt (a Git LFS pointer, not the file itself)" in shown
    assert shown.index("init.pt") < shown.index("tudui_2.pt") < shown.index("tudui_10.pt")
    for words in (("--order", "date"), ("--as", "init.pt"), ("--as", "intit.pt=0")):
        assert run("inspect", "run", *words).exit_code == 2
    assert "there are init.pt" in run("inspect", "run", "--as", "intit.pt=0").output


def test_inspect_tells_where_names_and_files_disagree(folder, states):
    for epoch in (1, 2):
        torch.save({"state_dict": states[epoch], "epoch": 2 - epoch}, folder / f"epoch_{epoch}.pt")
    shown = run("inspect", "run", "--select", "epoch_#.pt").stdout
    assert "note     epoch_2.pt says epoch 0 inside; the order goes by what is inside" in shown
    assert shown.index("epoch_2.pt  ") < shown.index("epoch_1.pt  ")
    shown = run("inspect", "run", "--select", "epoch_#.pt", "--order", "name").stdout
    assert "note" not in shown
    assert shown.index("epoch_1.pt") < shown.index("epoch_2.pt")


def test_several_files_are_replayed_as_one_run(folder, probe_file):
    files = [folder / name for name in ("tudui_10.pt", "init.pt", "tudui_2.pt")]
    options = (
        "--model",
        "shufflenet_v2_x0_5",
        "--probe",
        f"npz:{probe_file}",
        "--normalize",
        "none",
        "--images",
        20,
        *ORDER,
    )
    done = run("extract", *files, *options)
    assert done.exit_code == 0, done.output
    with posthoc.open_activations("activations.h5") as activations:
        assert activations.checkpoints == ("init.pt", "tudui_2.pt", "tudui_10.pt")
        assert activations.epochs.tolist() == [0, 2, 10]
    planned = run("submit", "run", *options, "--seconds-per-checkpoint", 1, "-o", "out", "--dry-run")
    assert planned.exit_code == 0, planned.output
    assert "--order name --as init.pt=0" in planned.stdout


def test_what_is_named_as_the_run_and_holds_no_weights_is_recorded(folder, probe_file):
    options = ("--model", "shufflenet_v2_x0_5", "--probe", f"npz:{probe_file}", "--normalize", "none", "--images", 20)
    done = run("extract", "run", *options, *ORDER)
    assert done.exit_code == 3, done.output
    with posthoc.open_activations("activations.h5") as activations:
        assert len(activations) == 4
        assert activations.skipped == (
            ("tudui_12.pt", "a pipe"),
            ("tudui_13.pt", "a Git LFS pointer, not the file itself"),
        )


def test_a_lone_checkpoint_without_a_place_has_none(folder, probe_file):
    options = ("--model", "shufflenet_v2_x0_5", "--probe", f"npz:{probe_file}", "--normalize", "none", "--images", 20)
    done = run("extract", folder / "init.pt", *options)
    assert done.exit_code == 0, done.output
    assert "1 checkpoint, epoch unknown" in done.output
    assert "--as init.pt=EPOCH gives it one" in done.output
    with posthoc.open_activations("activations.h5") as activations:
        assert (activations.epochs.tolist(), activations.steps.tolist()) == ([-1], [-1])
