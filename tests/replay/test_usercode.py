"""The user's own model file: whatever it does when it is run, and what the rest of the program keeps."""

import importlib
import os
import pickle
import py_compile
import random
import subprocess
import sys
import textwrap
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import nn

import posthoc
from posthoc.errors import PosthocError, UsageError
from posthoc.replay.checkpoint import Header
from posthoc.replay.models import resolve_model
from posthoc.replay.probes.fitting import fit_images
from posthoc.replay.request import parse_arguments
from posthoc.usercode import UserCode

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        return self.head(self.conv(x).relu().mean((2, 3)))
"""
SHAPES = {"conv.weight": (8, 3, 3, 3), "conv.bias": (8,), "head.weight": (10, 8), "head.bias": (10,)}


@pytest.fixture
def resolve(tmp_path, monkeypatch):
    """Write a model file of this text, in a folder of its own, and resolve it."""
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)

    def resolve(text, said="mine/nets.py", shapes=SHAPES, **arguments):
        path = tmp_path / said.partition(":")[0]
        path.write_text(textwrap.dedent(text))
        before = list(sys.path), list(sys.argv), Path.cwd()
        try:
            return resolve_model(Header(None, None, shapes), said, arguments=arguments)
        finally:
            assert (sys.path, sys.argv, Path.cwd()) == before

    return resolve


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import sys; sys.exit(0)", r"mine/nets\.py cannot be imported \(it ends the program, with 0\); put what is not"),
        ("import os; os._exit(0)", r"cannot be imported \(it ends the program, with 0\)"),
        ("import sys; sys.stderr = None; raise ValueError(3)", r"cannot be imported \(ValueError: 3"),
        ("raise SystemExit", r"cannot be imported \(it ends the program, with None\)"),
        ("exit('no data')", r"cannot be imported \(it ends the program, with 'no data'\)"),
        ("import argparse; p = argparse.ArgumentParser(); p.add_argument('data'); p.parse_args()", "ends the program, with 2"),
        ("raise GeneratorExit", r"cannot be imported \(GeneratorExit\)"),
        ("class Stop(BaseException): pass\nraise Stop('now')", r"cannot be imported \(Stop: now\)"),
        ("class E(Exception):\n  def __str__(self): raise ValueError\nraise E", r"cannot be imported \(E\)"),
        ("def f(:", r"cannot be imported \(SyntaxError: .*nets\.py, line \d"),
        ("import no_such_library", r"\(ModuleNotFoundError: No module named 'no_such_library'\)"),
        ("x = 3", r"mine/nets\.py defines no model that needs no arguments"),
        (NET + "\nclass Net(Net):\n    def __init__(self):\n        raise RuntimeError('No CUDA GPUs\\nare available')",
         r"^nets\.py:Net failed \(RuntimeError: No CUDA GPUs are available\)\.$"),
        (NET + "\nclass Net(Net):\n    def __init__(self):\n        raise SystemExit(0)", r"Net failed \(it ends the program, with 0\)"),
        (NET + "\ndef net():\n    import missing_one\n    return Net()\ndel Net", r"nets\.py:net failed \(ModuleNotFoundError"),
        (NET + "    def state_dict(self):\n        return {}\n", r"Net failed \(TypeError: .*keep_vars"),
        (NET + "    def eval(self):\n        raise ValueError('never')\n", r"Net failed \(ValueError: never\)"),
        (NET.replace("width=8", "width"), r"not tried without arguments: Net\(width\); --model mine/nets\.py:NAME --model-arg"),
    ],
)  # fmt: skip
def test_a_file_that_breaks_says_why_and_is_the_users_mistake(resolve, text, message):
    with pytest.raises(UsageError, match=message) as caught:
        resolve(text)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_ctrl_c_is_not_taken_for_a_fault_of_the_file(resolve):
    with pytest.raises(KeyboardInterrupt):
        resolve("raise KeyboardInterrupt")


def test_a_file_sees_no_arguments_of_ours_and_leaves_the_program_as_it_was(resolve, tmp_path, capfd):
    """Its argparse has its defaults; what it and its children print goes to stderr; random numbers stay the same."""
    text = """
        import argparse, os, subprocess, sys
        p = argparse.ArgumentParser()
        p.add_argument("--width", type=int, default=8)
        args = p.parse_args()
        assert sys.argv == ["mine/nets.py"], sys.argv
        print("printed"); os.system("echo by a shell"); subprocess.run(["echo", "by a child"]); os.write(1, b"written\\n")
        sys.path.insert(0, "elsewhere"); sys.argv.append("--more"); os.chdir("/")
        torch.manual_seed(5)
        def net():
            print("made")
            assert "elsewhere" in sys.path
            return Net(args.width)
    """
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    model = resolve(NET + textwrap.dedent(text), "mine/nets.py:net")
    assert torch.rand(1) == expected
    assert model.module.head.in_features == 8
    out, err = capfd.readouterr()
    assert out == ""
    assert err.split() == ["printed", "by", "a", "shell", "by", "a", "child", "written", "made"]


def test_files_beside_it_are_found_and_stand_in_no_librarys_way(resolve, tmp_path):
    for name in ("click", "random", "rich"):
        (tmp_path / "mine" / f"{name}.py").write_text("raise SystemExit('imported')")
    for name in ("beside", "at_making", "at_running"):
        (tmp_path / "mine" / f"{name}_8.py").write_text("WIDTH = 8")
    text = NET.replace("super()", "import at_making_8, random, rich.text\n        super()")
    text = text.replace("return ", "import at_running_8\n        return ")
    model = resolve(f"import click, beside_8\n{text}")
    assert fit_images(model, None, 32)[1] == 3
    beside = {"nets", "beside_8", "at_making_8", "at_running_8"}
    with model.at_work():
        assert beside <= sys.modules.keys()
    assert not beside & sys.modules.keys()
    with pytest.raises(ModuleNotFoundError):
        __import__("nothing_beside_8")
    assert not any("mine" in place for place in sys.path)
    # In the working directory, for a module.
    (tmp_path / "package_8").mkdir()
    (tmp_path / "package_8" / "nets.py").write_text("from . import parts_8\nimport top_8\n" + NET)
    (tmp_path / "package_8" / "parts_8.py").touch()
    (tmp_path / "top_8.py").touch()
    found = resolve_model(Header(None, None, SHAPES), "package_8.nets:Net")
    assert (found.name, found.left_out) == ("package_8.nets:Net", ())
    with pytest.raises(UsageError, match=r"part of a package: in /\S+ pass --model mine\.nets:FACTORY\.$"):
        resolve("from . import beside_8")
    (tmp_path / "__init__.py").touch()
    (tmp_path / "mine" / "__init__.py").touch()
    with pytest.raises(UsageError, match=rf"in {tmp_path.parent} pass --model {tmp_path.name}\.mine\.nets:FACTORY"):
        resolve("from . import beside_8")
    # One that a library hides says so.
    (tmp_path / "mine" / "safetensors.py").write_text("WIDTH = 8")
    with pytest.raises(UsageError, match=r"safetensors is .*__init__\.py, for libraries come first: rename your own"):
        resolve("from safetensors import WIDTH")


@pytest.mark.parametrize("name", ["random", "torch", "timeit", "_weird-name.v2", "posthoc"])
def test_a_file_may_have_a_librarys_name(resolve, tmp_path, name):
    """It replaces nothing in sys.modules, and its own classes are found under the name that it was given instead."""
    before = dict(sys.modules)
    text = (
        "from dataclasses import dataclass, field\nimport typing\n@dataclass\nclass Config:\n    width: 'int' = 8\n"
        "    sizes: 'typing.ClassVar[list]' = [1]\n" + NET
    )
    made = resolve(text, f"mine/{name}.py:Net")
    assert {key for key, value in before.items() if sys.modules.get(key) is not value} == set()
    again = resolve(text, f"mine/{name}.py:Net")
    assert type(again.module) is not type(made.module)
    for model in (made, again):
        net = type(model.module)
        with model.at_work():
            assert sys.modules[net.__module__].Net is net
            assert pickle.loads(pickle.dumps(net)) is net
    assert random.Random(0).random() == 0.8444218515250481
    if name == "timeit":
        import timeit

        assert timeit.default_timer() > 0


def test_two_files_of_one_name_are_two(resolve, tmp_path):
    (tmp_path / "other").mkdir()
    first = resolve(NET, "mine/same_8.py:Net")
    second = resolve(NET + "    other = True\n", "other/same_8.py:Net")
    assert second.module.other
    for model in (first, second, first):
        net = type(model.module)
        with model.at_work():
            assert importlib.import_module("same_8").Net is net
            assert pickle.loads(pickle.dumps(net)) is net
    (tmp_path / "same_8.py").write_text(NET + "    third = True\n")
    assert resolve_model(Header(None, None, SHAPES), "same_8:Net").module.third


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))
    return path


def test_a_module_beside_a_file_is_its_own(tmp_path):
    """Modules, packages and what is imported when it is called, of two folders; one of them on a path of its own."""
    for k, folder in enumerate(("pa", "pb", "pc")):
        write(tmp_path / folder / "utils.py", f"VALUE = {k}\n")
        write(tmp_path / folder / "parts" / "__init__.py", f"FIRST = {k}\n")
        write(tmp_path / folder / "parts" / "late.py", f"LATE = {k}\n")
        write(tmp_path / folder / "bare" / "inner.py", f"INNER = {k}\n")
    text = """
        from utils import VALUE
        def numbers():
            from parts import FIRST
            from parts.late import LATE
            from bare.inner import INNER
            import utils
            return VALUE, utils.VALUE, FIRST, LATE, INNER
    """
    path = "import sys\nsys.path.insert(0, __file__.replace('pd/m.py', 'pc'))\n"
    write(tmp_path / "pd" / "m.py", path + textwrap.dedent(text))
    codes = [UserCode(write(tmp_path / folder / "m.py", text)) for folder in ("pa", "pb")]
    codes.append(UserCode(tmp_path / "pd" / "m.py"))
    before = dict(sys.modules)
    for _ in range(2):
        for k, code in enumerate(codes):
            with code.at_work():
                assert code.module.numbers() == (k,) * 5
    with codes[0].at_work():
        with codes[1].at_work():
            assert codes[1].module.numbers() == (1,) * 5
        assert codes[0].module.numbers() == (0,) * 5
        assert sys.modules["utils"].VALUE == 0
    assert dict(sys.modules) == before
    assert list(sys.modules) == list(before)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("utils")


def test_files_of_one_folder_share_what_lies_there(tmp_path):
    """However they come by it, so that their classes are one; so do files elsewhere that look for it there."""
    write(tmp_path / "shared" / "layers_8" / "__init__.py", "from layers_8.block import Block\n")
    write(tmp_path / "shared" / "layers_8" / "block.py", "class Block: pass\n")
    write(tmp_path / "shared" / "net_8.py", "from layers_8 import Block\nclass Net(Block): pass\n")
    write(tmp_path / "shared" / "probe_8.py", "from layers_8.block import Block\nfrom net_8 import Net\n")
    text = "import sys\nsys.path.append('SHARED')\nfrom layers_8.block import Block\nfrom net_8 import Net\n"
    write(tmp_path / "other" / "far_8.py", text.replace("SHARED", str(tmp_path / "shared")))
    net, probe, far = (UserCode(tmp_path / name) for name in ("shared/net_8.py", "shared/probe_8.py", "other/far_8.py"))
    for code in (probe, far):
        assert code.module.Block is net.module.Block
        assert code.module.Net is net.module.Net
        with code.at_work():
            assert pickle.loads(pickle.dumps(net.module.Block())).__class__ is net.module.Block
            assert importlib.import_module("layers_8.block").__spec__.name == "layers_8.block"
            assert importlib.import_module("layers_8").__spec__.loader.path.endswith("__init__.py")


def test_a_networks_own_loading_finds_what_lies_beside_it(tmp_path):
    """When it is asked for its names, and for every checkpoint."""
    write(
        tmp_path / "older_8.py",
        "def renamed(state):\n    return {name.replace('body', 'conv'): x for name, x in state.items()}\n",
    )
    loading = """
    def load_state_dict(self, state, *rest, **options):
        from older_8 import renamed
        return super().load_state_dict(renamed(state), *rest, **options)
"""
    write(tmp_path / "nets_8.py", NET + loading)
    torch.manual_seed(0)
    x, y, expected = torch.rand(16, 3, 12, 12), torch.arange(16) % 10, []
    for epoch in range(3):
        state = {name: torch.randn(shape) for name, shape in SHAPES.items()}
        hidden = nn.functional.conv2d(x, state["conv.weight"], state["conv.bias"]).relu().mean((2, 3))
        outputs = nn.functional.linear(hidden, state["head.weight"], state["head.bias"])
        expected.append(nn.functional.cross_entropy(outputs, y).item())
        older = {name.replace("conv", "body"): tensor for name, tensor in state.items()}
        torch.save({"epoch": epoch, "state_dict": older}, write(tmp_path / "run" / f"epoch_{epoch}.pt", ""))
    for k, model in enumerate(("nets_8.py:Net", "nets_8.py")):
        options = {"model": str(tmp_path / model), "layers": ["head"]}
        posthoc.extract(tmp_path / "run", posthoc.Probe(x, y), tmp_path / f"{k}.h5", **options)
        with h5py.File(tmp_path / f"{k}.h5") as file:
            np.testing.assert_allclose(file["probe/loss"][:], expected, rtol=1e-5)


def test_an_edited_file_beside_it_is_read_again(tmp_path, monkeypatch):
    """Also where the folder is one that the session itself imports from, and by what was not edited."""
    monkeypatch.syspath_prepend(tmp_path)
    helper, through = write(tmp_path / "scale_8.py", "SCALE = 1\n"), "from scale_8 import SCALE\n"
    write(tmp_path / "through_8.py", through)
    place = write(
        tmp_path / "mine_8.py",
        "from through_8 import SCALE\ndef late():\n    import scale_8\n    return scale_8.SCALE\n",
    )
    first = UserCode(place)
    helper.write_text("SCALE = 1000\n")
    second = UserCode(place)
    for code, scale in ((first, 1), (second, 1000)):
        with code.at_work():
            assert (code.module.SCALE, code.module.late()) == (scale, scale)


def test_what_the_session_imported_itself_stays_the_same_object(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    write(tmp_path / "own_8.py", "class Own: pass\n")
    own = importlib.import_module("own_8")
    code = UserCode(write(tmp_path / "user_8.py", "import own_8, posthoc.errors, colorsys\n"))
    assert code.module.own_8 is own
    assert sys.modules["own_8"] is own
    assert "colorsys" in sys.modules  # a library's is everyone's
    del sys.modules["own_8"]


def test_the_source_is_run_and_no_compiled_copy_beside_it(resolve, tmp_path):
    """A compiled file that claims to be the source's, as long and as old."""
    path = tmp_path / "mine" / "nets.py"
    path.write_text("raise SystemExit('the copy was run')")
    py_compile.compile(str(path), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    assert resolve(NET).name == "nets.py:Net"


def test_only_what_can_be_a_model_is_called(resolve, tmp_path):
    """Not the script's main or its training; a ready model and a lambda count."""
    text = """
        def main():
            raise SystemExit("it trains")
        def train(model=None):
            for _ in range(3):
                raise SystemExit("it trains")
            return
        def batches():
            yield Net()
        async def later():
            return Net()
        ready = Net(16)
        short = lambda: Net(24)
        def net32():
            if torch.cuda.is_available():
                return Net(32).cuda()
            return Net(32)
    """
    for width, name in ((8, "Net"), (16, "ready"), (24, "short"), (32, "net32")):
        shapes = {key: tuple(width if side == 8 else side for side in shape) for key, shape in SHAPES.items()}
        assert resolve(NET + textwrap.dedent(text), shapes=shapes).name == f"nets.py:{name}"
    with pytest.raises(PosthocError, match=r"tried: Net, ready, short, net32\); from Net they differ in of another"):
        resolve(NET + textwrap.dedent(text), shapes=SHAPES | {"head.bias": (11,)})
    with pytest.raises(PosthocError, match=r"from Net they .*; nets\.py:bad failed \(ValueError: no\)\.$"):
        resolve(
            NET + "def bad(net=None):\n    if not net: raise ValueError('no')\n    return net\n",
            shapes=SHAPES | {"head.bias": (11,)},
        )


def test_arguments_are_literals_that_json_holds():
    assert parse_arguments(["a=1e3", "b=[1, (2,)]", "c=None", "d=relu", "e=" + "(" * 100_000]) == {
        "a": 1000.0, "b": [1, (2,)], "c": None, "d": "relu", "e": "(" * 100_000,
    }  # fmt: skip
    for odd in ("a={1, 2}", "a=b'x'", "a=1j", "a=...", "a={(1, 2): 3}"):
        with pytest.raises(UsageError, match="give a number, text, a list or a dictionary"):
            parse_arguments([odd])
    with pytest.raises(UsageError, match="is not KEY=VALUE"):
        parse_arguments(["=3"])


def test_the_command_ends_with_2_and_says_why(tmp_path):
    """As a user meets it: exit code, one sentence on stderr, nothing on stdout."""
    (tmp_path / "net.py").write_text(NET + "import sys\nprint('hello')\nsys.exit(0)\n")
    (tmp_path / "run").mkdir()
    torch.save(nn.Linear(3, 3).state_dict(), tmp_path / "run" / "epoch_1.pth")
    command = [sys.executable, "-m", "posthoc", "extract", "run", "--probe", "digits", "--model", "net.py", "--dry-run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("hello\nposthoc: net.py cannot be imported (it ends the program, with 0); put what")


def test_a_small_network_is_replayed_without_torchs_compiler(tmp_path):
    (tmp_path / "run").mkdir()
    norm = NET.replace("(x).relu()", "(x).relu())").replace("self.head(self", "self.head(self.norm(self")
    norm = norm.replace("self.head = ", "self.norm = nn.BatchNorm2d(width)\n        self.head = ")
    (tmp_path / "nets.py").write_text(norm)
    ones = {name: torch.ones(8) for name in ("weight", "bias", "running_mean", "running_var")}
    state = {name: torch.rand(shape) for name, shape in SHAPES.items()} | {f"norm.{k}": v for k, v in ones.items()}
    torch.save({"epoch": 1, "state_dict": state}, tmp_path / "run" / "epoch_1.pt")
    words = ["extract", "run", "--model", "nets.py:Net", "--probe", "digits", "--images", "16", "-o", "a.h5"]
    words += ["--normalize", "none", "--device", "cpu"]
    slow = {"sympy", "torch._dynamo", "torch._inductor", "torchvision", "transformers", "timm", "scipy", "numba", "PIL"}
    code = (
        f"import sys\nfrom posthoc.cli import main\nmain({words}, standalone_mode=False)\n"
        f"print(sorted({slow} & sys.modules.keys()), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (done.stdout.splitlines()[-1:], done.returncode) == (["[] True"], 0), done.stderr
    assert (tmp_path / "a.h5").exists()
