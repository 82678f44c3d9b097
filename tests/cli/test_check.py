"""posthoc check, as a program."""

import json
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from posthoc.cli import main


@pytest.fixture
def run(tmp_path):
    """A random walk of ten steps."""
    folder = tmp_path / "run"
    folder.mkdir()
    torch.manual_seed(0)
    weight = torch.randn(32, 64)
    for step in range(0, 1000, 100):
        save_file({"a.weight": weight, "a.bias": weight[0].clone()}, folder / f"step-{step}.safetensors")
        weight = weight + 0.01 * torch.randn(32, 64)
    return folder


def posthoc(*arguments):
    return CliRunner().invoke(main, ["check", *map(str, arguments)])


def test_a_sound_series(run):
    result = posthoc(run)
    assert result.exit_code == 0
    assert "10 checkpoints" in result.output
    assert "Nothing is wrong with these 10 checkpoints that can be seen in them." in result.output
    alone = posthoc(min(run.glob("*.safetensors")))
    assert alone.output.startswith("Nothing is wrong with this checkpoint that can be seen in it.\n")


def test_findings_and_exit_code(run):
    (run / "step-200.safetensors").write_bytes((run / "step-900.safetensors").read_bytes())
    (run / "step-500.safetensors").unlink()
    result = posthoc(run)
    assert result.exit_code == 3
    lines = result.output.splitlines()
    assert any(line.startswith("error") and "equal weights" in line and "200, 900" in line for line in lines)
    assert any(line.startswith("warning") and "500 missing from a grid (every 100)" in line for line in lines)
    verdict = next(line for line in lines if "not what it says it is" in line)
    assert verdict.endswith("1 error, 1 warning, 2 checkpoints of 9 concerned.")
    assert "Cannot tell whether the first and the last are in their places" in result.output
    assert "Cannot tell whether all labels are shifted" in result.output


def test_what_cannot_be_read_is_named_beside_what_is_wrong_with_the_rest(run):
    cut = run / "step-500.safetensors"
    cut.write_bytes(cut.read_bytes()[:3000])
    result = posthoc(run)
    assert result.exit_code == 3
    assert result.output.startswith(
        "This series holds checkpoints that cannot be read: 1 error, 1 checkpoint of 10 concerned.\n"
    )
    assert "missing" not in result.output  # it is there, if not whole
    (run / "step-200.safetensors").write_bytes((run / "step-900.safetensors").read_bytes())
    (run / "step-700.safetensors").unlink()
    lines = posthoc(run).output.splitlines()
    assert lines[0].endswith("2 errors, 1 warning, 3 checkpoints of 9 concerned.")
    assert any(line.startswith("error") and "damaged" in line and cut.name in line for line in lines)
    assert any(line.startswith("error") and "equal weights" in line and "200, 900" in line for line in lines)
    assert any(line.startswith("warning") and "step 700 missing from a grid (every 100)" in line for line in lines)
    content = json.loads(posthoc(run, "--json").stdout)
    assert [f["checkpoints"] for f in content["findings"] if f["kind"] == "damaged"] == [[cut.name]]


def test_a_damaged_epoch_is_no_missing_step(run, tmp_path):
    folder = tmp_path / "epochs"
    folder.mkdir()
    for epoch, path in enumerate(sorted(run.glob("*.safetensors"))):
        about = {"epoch": str(epoch), "step": str(60 * epoch)}
        save_file(load_file(path), folder / f"epoch_{epoch}.safetensors", about)
    (folder / "epoch_5.safetensors").write_bytes(b"")
    result = posthoc(folder).output
    assert "1 error, 1 checkpoint of 10 concerned" in result
    (folder / "epoch_6.safetensors").unlink()  # which of the two is there cannot be told
    assert "step 300, 360 missing from a grid (every 60)" in posthoc(folder).output
    (folder / "epoch_6.safetensors").write_bytes(b"")
    assert "2 errors, 2 checkpoints of 10 concerned" in posthoc(folder).output


def test_json(run):
    (run / "step-200.safetensors").write_bytes((run / "step-900.safetensors").read_bytes())
    (run / "step-1000.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    result = posthoc(run, "--json")
    assert result.exit_code == 3
    content = json.loads(result.stdout)
    assert content["format"] == "posthoc-check"
    assert not content["sound"]
    equal = next(finding for finding in content["findings"] if finding["kind"] == "equal weights")
    assert equal["checkpoints"] == ["step-200.safetensors", "step-900.safetensors"]
    assert equal["severity"] == "error"
    assert len(content["statistics"]["norm"]) == len(content["checkpoints"]) == 10
    assert content["statistics"]["step"][0] is None
    reason = "a Git LFS pointer, not the file itself"
    assert content["apart"] == [{"name": "step-1000.safetensors", "reason": reason}]


def test_several_series(run, tmp_path):
    other = tmp_path / "other"
    run.rename(other)
    run.mkdir()
    for path in other.iterdir():
        (run / path.name).write_bytes(path.read_bytes())
    result = posthoc(run, other, "--json")
    assert result.exit_code == 0
    assert [len(content["checkpoints"]) for content in json.loads(result.stdout)] == [10, 10]


def test_one_of_several_that_is_none_loses_nothing_of_the_others(run, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "epoch_1.txt").write_text("none")
    result = posthoc(run, tmp_path / "notes")
    assert result.exit_code == 3
    assert f"series  {run}, 10 checkpoints" in result.stdout
    assert f"skipped {tmp_path / 'notes'}: No checkpoint in" in result.stderr
    result = posthoc(run, tmp_path / "notes", "--json")
    assert (result.exit_code, len(json.loads(result.stdout))) == (3, 1)


def test_nothing_there(tmp_path):
    result = posthoc(tmp_path / "absent")
    assert result.exit_code == 1
    assert "No such file or folder" in result.output


def test_against_another_series(run, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for step in (200, 300, 400):
        (other / f"step-{step}.safetensors").write_bytes((run / f"step-{step}.safetensors").read_bytes())
    result = posthoc(run, "--against", other)
    assert result.exit_code == 0
    assert "Every checkpoint of the second is one of the first: a copy." in result.output
    content = json.loads(posthoc(run, "--against", other, "--json").stdout)
    assert content["relation"] == "copy"
    assert content["shared"][0] == ["step-200.safetensors", "step-200.safetensors"]
    assert posthoc(run, other, "--against", other).exit_code == 2


def test_tensors_of_two_files_of_a_checkpoint_are_read_in_pieces(tmp_path):
    torch.manual_seed(0)
    weight = torch.randn(1100, 1000)  # longer than a piece
    for step in range(1, 4):
        for part in ("unet", "unet_ema"):
            (tmp_path / f"checkpoint-{step}" / part).mkdir(parents=True)
            weight = weight + 0.01 * torch.randn(1100, 1000)
            save_file(
                {"a.weight": weight}, tmp_path / f"checkpoint-{step}" / part / "diffusion_pytorch_model.safetensors"
            )
    result = posthoc(tmp_path)
    assert "3 checkpoints" in result.output
    assert "damaged" not in result.output


WITHOUT_TORCH = """
import json, sys
from pathlib import Path
from posthoc.replay.series.result import check_series
content = check_series(Path(sys.argv[1])).to_dict()
print(json.dumps([content["findings"], content["statistics"], "torch" in sys.modules]))
"""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_safetensors_are_checked_without_torch_and_as_pickles_are(tmp_path, dtype):
    torch.manual_seed(0)
    weight = torch.randn(32, 64)
    states = []
    for step in range(8):
        state = {"a.weight": weight, "a.bias": weight[0].clone(), "b.weight": weight.T.contiguous()}
        states.append({name: tensor.to(dtype) for name, tensor in state.items()} | {"count": torch.tensor(step)})
        weight = weight + 0.5 * torch.randn(32, 64)
    states[2], states[5]["b.weight"] = states[7], states[1]["b.weight"]
    states[4]["a.weight"][0, :3] = float("nan")
    contents = []
    for form, write in (("safetensors", save_file), ("pt", torch.save)):
        (tmp_path / form).mkdir()
        for step, state in enumerate(states):
            write(state, tmp_path / form / f"step-{step}.{form}")
        (tmp_path / form / f"best.{form}").write_bytes((tmp_path / form / f"step-7.{form}").read_bytes())
    for form in ("safetensors", "pt"):
        words = [sys.executable, "-c", WITHOUT_TORCH, str(tmp_path / form)]
        output = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        *content, torch_imported = json.loads(output.replace(".safetensors", ".pt"))
        contents.append(content)
        assert not torch_imported
    assert contents[0] == contents[1]
    kinds = [finding["kind"] for finding in contents[0][0]]
    assert {"equal weights", "partly equal weights", "not finite"} <= set(kinds)
