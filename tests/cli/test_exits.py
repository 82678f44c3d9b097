"""How commands end: exit codes, one sentence whatever is thrown, outputs that cannot be written, signals."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file

from posthoc.cli import COMMANDS, main
from posthoc.cli.exits import echo, ending
from posthoc.errors import PosthocError, UsageError

COMMAND = [sys.executable, "-m", "posthoc"]
FIXTURES = Path(__file__).parents[1] / "fixtures" / "v1"
HEAVY = ("torch", "numba", "h5py", "scipy", "altair", "rich")


def run(*words):
    return CliRunner().invoke(main, list(map(str, words)))


def throwing(error):
    def throw():
        raise error

    return throw


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (PosthocError("a [/b] \x1b[2J\nc :x:"), 1, r"posthoc: a [/b] \x1b[2J\nc :x:"),
        (UsageError("not so"), 2, "posthoc: not so"),
        (KeyboardInterrupt(), 130, "posthoc: stopped."),
        (MemoryError(), 1, "posthoc: this needs more memory than there is."),
        (RecursionError("maximum"), 1, "posthoc: what it was given is nested too deeply to be read."),
        (PermissionError(errno.EACCES, "Permission denied", "a\nb"), 1, r"read or write a\nb: Permission denied."),
        (TypeError("x\ny"), 1, "posthoc: an error of its own (TypeError: x y); please report it with the traceback"),
        (EOFError(), 1, "posthoc: an error of its own (EOFError); please report it with the traceback"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 141, ""),
        (SystemExit("no \x1b"), 1, r"posthoc: no \x1b"),
        (SystemExit(3), 3, ""),
        (SystemExit(None), 0, ""),
        (click.exceptions.Exit(2), 2, ""),
        (click.UsageError("odd \x1b"), 2, r"Error: odd \x1b"),
    ],
)
def test_whatever_is_thrown_ends_in_a_sentence_and_a_code(capsys, error, code, says):
    assert ending(throwing(error)) == code
    said = capsys.readouterr().err
    assert said.count("\n") == bool(says)
    assert says in said
    assert "Traceback" not in said


def test_debug_shows_the_traceback_with_the_sentence(capsys):
    assert ending(throwing(TypeError("x\x1b")), debug=True) == 1
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert "\x1b" not in said
    assert "posthoc: an error of its own" in said.splitlines()[-1]


def test_warnings_are_lines(capsys):
    assert ending(lambda: warnings.warn("odd\n\x1b[1m", UserWarning, stacklevel=1)) == 0
    assert capsys.readouterr().err == "warning: odd\\n\\x1b[1m\n"


def test_sigterm_interrupts_and_the_handler_of_before_is_put_back(capsys):
    before = signal.getsignal(signal.SIGTERM)

    def work():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    assert ending(work) == 143
    assert signal.getsignal(signal.SIGTERM) == before
    assert capsys.readouterr().err == "posthoc: stopped.\n"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("metrcs", "a.h5"), "No such command 'metrcs'; did you mean metrics?"),
        (("zzz\x1b",), r"No such command 'zzz\x1b'; there are extract, merge"),
        (("--odd\x1b",), r"No such option '--odd\x1b'."),
        (("merge", "a.h5", "--json"), "No such option '--json'."),
        (("metrics", "a.h5", "--smoth", "5"), "No such option '--smoth'; did you mean --smooth?"),
        (("metrics", "a.h5", "--debug"), "--debug stands before the command"),
        (("extract", "a", "--probe", "digits", "--quiet", "5"), "--quiet needs --follow"),
        (("extract", "a", "--probe", "digits", "--follow", "--quiet", "nan"), "nan is no amount"),
        (("extract", "a", "--probe", "digits", "--shard", "1/2", "--dry-run"), "leave --shard out"),
        (("extract", "tests", "--probe", "digits", "--data-root", "b"), "--data-root is no option of the probe digits"),
        (("extract", "tests", "--probe", "digits", "--download"), "--download is no option of the probe digits"),
        (("submit", "a", "--probe", "digits", "--metrics", "--smoth 15"), "No such option '--smoth'"),
        (("submit", "a", "--probe", "digits", "--metrics", "--smooth '15"), "No closing quotation"),
        (("submit", "a", "--probe", "digits", "--metrics", "--smooth many"), "is not a valid integer"),
        (("submit", "a", "--probe", "digits", "--metrics", "-o b.json"), "and no -o"),
        (("submit", "a", "--probe", "digits", "--mem-gb", "inf"), "inf is no amount"),
        (("submit", "a", "--probe", "digits", "--mem-gb", "-4"), "-4.0 is not in the range"),
        (("submit", "a", "--probe", "digits", "--slurm", "array=1-4"), "array is set by posthoc"),
        (("report", "a", "--figure", "measures", "-o", "a.svg", "--tensorboard", "b"), "without it"),
    ],
)
def test_wrong_words_are_answered(words, says):
    done = run(*words)
    assert done.exit_code == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


MISTAKES = [
    ("extract", "nowhere", "--probe", "digits"),
    ("extract", "empty", "--probe", "digits"),
    ("extract", "run", "--probe", "mnist"),
    ("extract", "run", "--probe", "cifar10", "--data-root", "nowhere"),
    ("extract", "run", "--probe", "npz:none.npz"),
    ("extract", "run", "--probe", "imagefolder:none"),
    ("extract", "run", "--probe", "digits", "--normalize", "odd"),
    ("extract", "run", "--probe", "digits", "--signals", "median"),
    ("extract", "run", "--probe", "digits", "--layers", ","),
    ("extract", "run", "--probe", "digits", "--dtype", "int8"),
    ("extract", "run", "--probe", "digits", "--device", "toaster"),
    ("extract", "run", "--probe", "digits", "--shard", "3/2"),
    ("extract", "run", "--probe", "digits", "--model", "none.py"),
    ("extract", "run", "--probe", "digits", "-o", "there.h5"),
    ("extract", "run", "--probe", "digits", "-o", "new.h5", "--model", "torchvision:resnet81"),
    ("extract", "run", "--probe", "digits", "-o", "new.h5", "--model", "timm:nosuch"),
    ("extract", "run", "--probe", "digits", "-o", "new.h5", "--as", "init.pt=0"),
    ("extract", "run", "--probe", "digits", "-o", "new.h5", "--select", "net_#.pt"),
    ("extract", "notes", "--probe", "digits", "-o", "new.h5"),
    ("inspect", "notes"),
    ("inspect", "run", "--as", "init.pt=0"),
    ("inspect", "run", "--model", "nosuch"),
    ("check", "notes"),
    ("report", "metrics.json", "--figure", "measure"),
    ("extract", "run", "--probe", "digits", "-o", "nowhere/a.h5"),
    ("extract", "run", "--probe", "digits", "-o", "run"),
    ("extract", "run", "--probe", "digits", "-o", "/dev/null", "--force"),
    ("submit", "nowhere", "--probe", "digits"),
    ("submit", "run", "--probe", "mnist", "--dry-run"),
    ("metrics", "nowhere.h5"),
    ("metrics", "run"),
    ("metrics", "metrics.json"),
    ("metrics", "activations.h5", "-o", "there.h5"),
    ("metrics", "activations.h5", "-o", "/dev/full", "--force"),
    ("audit", "nowhere.h5"),
    ("audit", "metrics.json"),
    ("audit", "activations.h5", "-o", "there.h5"),
    ("audit", "activations.h5", "-o", "nowhere/a.json"),
    ("compare", "nowhere.json"),
    ("compare", "no*.json"),
    ("compare", "activations.h5"),
    ("compare", "metrics.json", "--column", "a=b"),
    ("report", "nowhere.json"),
    ("report", "activations.h5"),
    ("report", "metrics.json", "-o", "there.h5"),
    ("report", "metrics.json", "--figure", "measures"),
    ("inspect", "nowhere"),
    ("inspect", "list.json"),
    ("merge", "activations.h5"),
    ("merge", "nowhere.h5"),
]


def test_mistakes_answer_before_anything_heavy_is_imported(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "readme.txt").write_text("none")
    (tmp_path / "run" / "epoch_1.pt").write_bytes(b"")
    (tmp_path / "there.h5").write_text("something of the user's")
    (tmp_path / "list.json").write_text("[]")
    for name in ("activations.h5", "metrics.json"):
        (tmp_path / name).symlink_to(FIXTURES / name)
    code = (
        "import json, sys\nfrom click.testing import CliRunner\nfrom posthoc.cli import main\n"
        "for words in json.loads(sys.argv[1]):\n"
        "    done = CliRunner().invoke(main, words)\n"
        f"    heavy = [name for name in {HEAVY} if name in sys.modules]\n"
        "    print(json.dumps([words, done.exit_code, done.stdout, done.stderr, heavy]))\n"
    )
    before = sorted(tmp_path.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(MISTAKES)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(MISTAKES)
    for words, exit_code, out, err, heavy in answers:
        assert exit_code in (1, 2), words
        assert heavy == [], words
        assert out == "", words
        assert err.splitlines()[-1].startswith(("posthoc: ", "Error: ")), words
        assert "error of its own" not in err, words
    assert sorted(tmp_path.rglob("*")) == before
    said = {" ".join(words): err for words, _, _, err, _ in answers}
    assert "did you mean resnet18" in said["extract run --probe digits -o new.h5 --model torchvision:resnet81"]
    assert "there are epoch_1.pt" in said["extract run --probe digits -o new.h5 --as init.pt=0"]
    assert "there are epoch_1.pt" in said["extract run --probe digits -o new.h5 --select net_#.pt"]
    assert "it holds readme.txt, and no weights" in said["extract notes --probe digits -o new.h5"]
    assert "did you mean measures?" in said["report metrics.json --figure measure"]
    assert "mkdir -p nowhere" in said["extract run --probe digits -o nowhere/a.h5"]
    assert "it is a device" in said["metrics activations.h5 -o /dev/full --force"]
    assert "run `posthoc metrics activations.h5`" in said["compare activations.h5"]
    assert "is a metrics file" in said["metrics metrics.json"]
    assert "no parts to be merged" in said["merge activations.h5"]
    assert "-o" not in said["merge activations.h5"]


def test_a_run_without_any_accuracy_is_said_to_have_none(tmp_path):
    content = json.loads((FIXTURES / "metrics.json").read_text())
    content["summary"] |= {"best_accuracy": None, "best_epoch": None}
    (tmp_path / "metrics.json").write_text(json.dumps(content))
    lines = run("inspect", tmp_path / "metrics.json").stdout.splitlines()
    (line,) = (line for line in lines if line.startswith("best accuracy"))
    assert "none: no accuracy is recorded in the checkpoints" in line
    assert "None" not in line


def test_a_mistyped_command_line_is_told_what_the_commands_do():
    listing = run("--help").stdout
    for name, says in COMMANDS.items():
        assert name in listing
        assert says.endswith(".")


@pytest.mark.parametrize("words", [("--help",), ("inspect", "metrics.json"), ("compare", "metrics.json", "--csv")])
def test_standard_output_that_is_full_is_one_sentence(words):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([*COMMAND, *words], stdout=full, stderr=subprocess.PIPE, text=True, cwd=FIXTURES)
    assert done.returncode == 1
    assert done.stderr.startswith("posthoc: ")
    assert done.stderr.endswith("No space left on device.\n")
    assert done.stderr.count("\n") == 1


def test_a_reader_that_has_read_enough_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        done = subprocess.run(
            [*COMMAND, "inspect", "metrics.json"], stdout=pipe, stderr=subprocess.PIPE, text=True, cwd=FIXTURES
        )
    assert (done.returncode, done.stderr) == (141, "")


def test_remarks_that_cannot_be_written_are_lost_and_the_work_goes_on(tmp_path):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*COMMAND, "metrics", FIXTURES / "activations.h5", "--nulls", "0", "-o", tmp_path / "m.json"],
            stdout=subprocess.PIPE,
            stderr=full,
        )
    assert done.returncode == 0
    assert (tmp_path / "m.json").exists()


def test_no_encoding_of_a_stream_fails(tmp_path):
    folder = os.fsdecode(b"caf\xe9-\xff")
    (tmp_path / folder).mkdir()
    for encoding in ("ascii", "latin-1", "utf-8"):
        done = subprocess.run(
            [*COMMAND, "metrics", folder],
            cwd=tmp_path,
            capture_output=True,
            env={**os.environ, "PYTHONIOENCODING": encoding},
        )
        assert done.returncode == 1
        assert done.stderr.startswith(rb"posthoc: caf\udce9-\udcff is a folder")


def test_interrupted_from_the_keyboard_it_says_what_is_kept(run_folder, probe_file, tmp_path):
    output = tmp_path / "a.h5"
    words = ["extract", run_folder, "--probe", f"npz:{probe_file}", "-o", output]
    child = subprocess.Popen([*COMMAND, *words], stderr=subprocess.PIPE, text=True)
    for line in child.stderr:
        if line.startswith("replaying 2/5"):
            break
    child.send_signal(signal.SIGINT)
    said = child.stderr.read()
    if output.exists():  # it had come to its end
        assert child.wait() == 0
        return
    assert child.wait() == 130
    kept = len(list((tmp_path / "a.h5.parts").glob("epoch*.h5")))
    assert kept >= 2
    expected = f"posthoc: stopped; {kept} of 5 checkpoints are kept in {output}.parts, and the same command goes on."
    assert said.splitlines()[-1] == expected


def test_echo_shows(capsys):
    echo("a\x1b\nb")
    echo("a\nb", lines=True)
    assert capsys.readouterr().out == "a\\x1b\\nb\na\nb\n"


def test_what_is_stored_is_measured_without_torch_and_what_replays_asks_for_it(tmp_path):
    code = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name in ('torch', 'torchvision', 'safetensors'):\n"
        "            raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from posthoc.cli import main; main(sys.argv[1:])"
    )

    def without_torch(*words):
        return subprocess.run(
            [sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, check=False
        )

    done = without_torch("metrics", FIXTURES / "activations.h5", "--nulls", 0, "-o", tmp_path / "metrics.json")
    assert done.returncode == 0, done.stderr
    assert without_torch("compare", tmp_path / "metrics.json").returncode == 0
    (tmp_path / "run").mkdir()
    save_file({"fc.weight": np.zeros((10, 3), "f4")}, tmp_path / "run" / "epoch_1.safetensors")
    refused = without_torch("extract", tmp_path / "run", "--probe", "digits", "-o", tmp_path / "activations.h5")
    assert refused.returncode == 1
    assert refused.stderr == (
        "posthoc: this command reads or runs networks and needs torch: pip install torch torchvision safetensors.\n"
    )
