"""Hostile files: nothing in them runs, nothing absurd is allocated, and the answer is one sentence."""

import io
import os
import pickle
import pickletools
import resource
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from posthoc.errors import PosthocError
from posthoc.replay.budget import Budget
from posthoc.replay.checkpoint import read_header, read_weights
from posthoc.replay.formats import FORMATS
from posthoc.replay.pickles import Global, Record, unpickle

ROOT = Path(__file__).parents[2]


def plain(data, construct=None):
    return unpickle(
        io.BytesIO(data), construct or {}, lambda key: ("persistent", key), Budget(Path("a.pkl"), len(data))
    )


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
keys = st.text() | st.integers(-1000, 1000) | st.tuples(st.text(), st.integers(0, 9))
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(keys, inner) | st.tuples(inner),
    max_leaves=20,
)


@given(values, st.integers(0, 5))
def test_plain_values_come_out_as_they_went_in(value, protocol):
    data = pickle.dumps(value, protocol=protocol)
    known = {Global("_codecs", "encode"): lambda text, encoding: text.encode(encoding)}
    for module in ("builtins", "__builtin__"):
        known[Global(module, "bytes")] = lambda *arguments: bytes(*arguments)
    assert plain(data, known) == value


def test_two_pickles_in_a_row_are_read_one_after_the_other():
    file = io.BytesIO(pickle.dumps([1, 2]) + pickle.dumps({"a": 1}) + b"rest")
    budget = Budget(Path("a.pkl"))
    assert [unpickle(file, {}, id, budget), unpickle(file, {}, id, budget), file.read()] == [[1, 2], {"a": 1}, b"rest"]


class Touch:
    """Makes a file when it is unpickled, in each of the ways there are."""

    def __init__(self, path, way):
        self.path, self.way = str(path), way

    def __reduce__(self):
        code = f"open({self.path!r}, 'w').close()"
        if self.way == "system":
            return os.system, (f"touch {self.path}",)
        if self.way == "exec":
            return exec, (code,)
        if self.way == "popen":
            return subprocess.Popen, (["touch", self.path],)
        if self.way == "torch.load":
            return torch.load, (self.path,)
        if self.way == "nested storage":
            return torch.storage._load_from_bytes, (pickle.dumps(Touch(self.path, "exec")),)
        if self.way == "from type":
            return torch._tensor._rebuild_from_type_v2, (os.system, int, (f"touch {self.path}",), {})
        return getattr, (Touch(self.path, "exec"), "anything")


WAYS = ["system", "exec", "popen", "torch.load", "nested storage", "from type", "getattr"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("form", ["zip", "older", "pickle", "protocol 0"])
def test_nothing_in_a_file_runs(tmp_path, way, form):
    touched, path = tmp_path / "touched", tmp_path / "1.pt"
    content = {"state_dict": {"fc.weight": torch.ones(2, 3)}, "epoch": Touch(touched, way), "args": Touch(touched, way)}
    if form in ("zip", "older"):
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    else:
        path.write_bytes(pickle.dumps(content, protocol=0 if form == "protocol 0" else 4))
    # The reader itself, and the codec of the texts of protocol 0.
    loaded = set(sys.modules) | {"posthoc.replay.loading", "encodings.raw_unicode_escape"}
    try:
        assert torch.equal(read_weights(path)["fc.weight"], torch.ones(2, 3))
        assert read_header(path).epoch is None
    except PosthocError:  # a storage that is none
        assert way == "nested storage"
    assert not touched.exists()
    assert set(sys.modules) <= loaded
    # The file does run elsewhere, so that the test shows something.
    if way in ("system", "exec") and form == "pickle":
        pickle.loads(path.read_bytes())
        assert touched.exists()


def test_opcodes_by_hand_run_nothing_either(tmp_path):
    call = f"touch {tmp_path}/touched".encode()
    for data in (
        b"cos\nsystem\n(S'" + call + b"'\ntR.",  # REDUCE
        b"(S'" + call + b"'\nios\nsystem\n.",  # INST
        b"(cos\nsystem\nS'" + call + b"'\no.",  # OBJ
        b"\x80\x02cos\nsystem\nU" + bytes([len(call)]) + call + b"\x85\x81.",  # NEWOBJ
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c" + bytes([len(call)]) + call + b"\x85R.",  # STACK_GLOBAL
    ):
        found = plain(data)
        assert isinstance(found, Record)
        assert (str(found.kind), found.args) == ("os.system", (call.decode(),))
    assert not (tmp_path / "touched").exists()


def absurd():
    """Small files that ask for much: memory, depth or time."""
    deep = b"]" * 100_000 + b"a" * 99_999 + b"."
    yield "deep", deep
    yield "memo", b"\x80\x02]r\xff\xff\xff\x7f."
    yield "bytes", b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"x."
    yield "bytearray", b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b"x."
    yield "text", b"\x80\x04\x8d" + struct.pack("<Q", 1 << 62) + b"x."
    yield "long", b"\x80\x02\x8b" + struct.pack("<i", 1 << 30) + b"x."
    yield "negative", b"\x80\x02\x8b" + struct.pack("<i", -1) + b"x."
    yield "line", b"I" + b"1" * 5_000_000
    yield "digits", b"L" + b"9" * 100_000 + b"L\n."
    doubling = b")" + b"".join(b"q%cq%c\x86" % (0, 0) for _ in range(0))
    doubling = b"\x80\x02)" + b"2\x86" * 60  # a tuple of twice the one before, sixty times
    yield "hash", b"\x80\x02}" + doubling[2:] + b"Ns."
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(%s%s%s%s\x89Nt R.".replace(b" ", b"")
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
    big = b"\x8a\x06" + (1 << 40).to_bytes(6, "little")
    for name, size, stride in (("huge", big, b"K\x01"), ("expanded", big, b"K\x00"), ("wide", b"K\x02", big)):
        body = tensor % (storage, b"K\x00", size + b"\x85", stride + b"\x85")
        yield name, b"\x80\x02}X\x01\x00\x00\x00a" + body + b"s."
    for name, at in (("before", b"J\xff\xff\xff\xff"), ("after", b"K\x05")):
        body = tensor % (storage, at, b"K\x01\x85", b"K\x01\x85")
        yield name, b"\x80\x02}X\x01\x00\x00\x00a" + body + b"s."


def nested(depth):
    """A tuple of twice the one before, `depth` times, as opcodes of protocol 2."""
    return b")" + b"2\x86" * depth


def storage_key(name, *rest):
    return (
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
        + name
        + b"X\x03\x00\x00\x00cpuK\x01"
        + b"".join(rest)
        + b"tQ"
    )


def test_names_from_the_file_are_not_looked_up_in_torch(tmp_path):
    """torch imports half of itself, or calls what is deprecated, when asked for some of its attributes."""
    for name in (b"_inductor", b"onnx", b"has_mps", b"load"):
        tensor = b"ctorch._utils\n_rebuild_tensor_v3\n(" + storage_key(b"X\x01\x00\x00\x000")
        tensor += b"K\x00K\x01\x85K\x01\x85\x89Nctorch\n" + name + b"\ntR"
        (tmp_path / "a.pkl").write_bytes(b"\x80\x02}X\x01\x00\x00\x00a" + tensor + b"s.")
        loaded = set(sys.modules)
        with pytest.raises(PosthocError, match="no type of numbers"):
            read_weights(tmp_path / "a.pkl")
        assert set(sys.modules) == loaded


def test_nothing_nested_is_written_down(tmp_path):
    start = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}."
    view = storage_key(b"X\x01\x00\x00\x000", b"(K\x00" + nested(60) + b"K\x00t")
    for name, rest in (
        ("view", view + b"."),
        ("keys", b"}.\x80\x02](" + nested(60) + b"e."),
        ("name", storage_key(nested(60)) + b"."),
    ):
        (tmp_path / f"{name}.pt").write_bytes(start + b"\x80\x02" + rest)
        with pytest.raises(PosthocError, match=r"damaged|a view of another"):
            read_header(tmp_path / f"{name}.pt")


def test_views_that_torch_computes_on_reading_are_refused(tmp_path):
    x = torch.randn(4, dtype=torch.complex64)
    torch.save({"a": x.conj(), "b": torch.ones(3)}, tmp_path / "a.pt")
    with pytest.raises(PosthocError, match="conjugate"):
        read_weights(tmp_path / "a.pt")


def test_many_small_tensors_that_repeat_their_storage_are_refused(tmp_path):
    torch.save({f"{k}": torch.ones(1).expand(1 << 23) for k in range(5)}, tmp_path / "a.pt")
    with pytest.raises(PosthocError, match="claims 101 MB of tensors"):
        read_weights(tmp_path / "a.pt")


def in_zip(data, path, compressed=False):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/data/0", bytes(16))


@pytest.fixture(scope="module")
def absurd_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("absurd")
    for name, data in absurd():
        (folder / f"{name}.pkl").write_bytes(data)
        in_zip(data, folder / f"{name}.pt")
    in_zip(bytes(1 << 28), folder / "bomb.pt", compressed=True)
    cycle = b"\x80\x02cm\nN\n)\x81q\x00}(X\x0b\x00\x00\x00_parameters}X\x08\x00\x00\x00_modules}(X\x01\x00\x00\x00ah\x00X\x01\x00\x00\x00bh\x00uub."
    (folder / "cycle.pkl").write_bytes(cycle)
    assert pickletools.dis(cycle, io.StringIO()) is None
    (folder / "a.safetensors").write_bytes(struct.pack("<Q", 1 << 40) + b"{}")
    header = b'{"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}'
    (folder / "b.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    return folder


READ_ALL = """
import resource, sys, time
from pathlib import Path
from posthoc.errors import PosthocError
from posthoc.replay.checkpoint import read_header, read_weights
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sorted(Path(sys.argv[1]).iterdir()):
    for read in (read_header, read_weights):
        try:
            read(path)
        except PosthocError as error:
            print(error)
        else:
            sys.exit(f"{path} was read")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024, file=sys.stderr)
"""


def test_files_that_ask_for_absurd_amounts_are_refused(absurd_files):
    """In a process of their own, whose peak memory is looked at."""
    done = subprocess.run([sys.executable, "-c", READ_ALL, absurd_files], capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 2 * len(list(absurd_files.iterdir()))
    assert int(done.stderr) < 100  # MB
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > 0


@pytest.mark.parametrize("shard", ["../secret.safetensors", "/etc/passwd", "index.json", 3])
def test_an_index_names_files_beside_it_only(tmp_path, shard):
    path = tmp_path / "model.safetensors.index.json"
    path.write_text('{"weight_map": {"a": %s}}' % (f'"{shard}"' if isinstance(shard, str) else shard))
    with pytest.raises(PosthocError, match=r"no file beside it"):
        read_header(path)


@pytest.mark.parametrize(
    ("of", "files", "count"),
    [
        ("checkpoints", 25, 8),
        pytest.param("checkpoints", 25, 250, marks=pytest.mark.slow),
        pytest.param("probes", 8, 40, marks=pytest.mark.slow),
        pytest.param("results", 4, 30, marks=pytest.mark.slow),
    ],
)
def test_mutated_files_of_every_format(of, files, count):
    """Short runs and long ones, of thousands of mutants, of scripts/fuzz.py: through the commands, under an audit hook."""
    command = [sys.executable, ROOT / "scripts" / "fuzz.py", "--of", of, "--count", str(count), "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("slowest") == files
    formats = [form.name for form in FORMATS.values() if form.write and form.open.__module__.startswith("posthoc.")]
    assert of != "checkpoints" or all(f"\n{name}, " in f"\n{done.stdout}" for name in formats)


def test_tensors_of_every_kind_are_those_of_torch_load(tmp_path):
    base = torch.arange(24.0)
    state = {
        "slice": base[3:7],
        "transposed": base.reshape(4, 6).T,
        "expanded": base[:1].expand(5, 2),
        "strided": base.as_strided((3, 2), (7, 2), 1),
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(2.5),
        "parameter": torch.nn.Parameter(base.reshape(2, 12)),
        "half": base.half(),
        "bfloat": base.bfloat16(),
        "double": base.double(),
        "long": base.long(),
        "small": base.to(torch.int8),
        "byte": base.byte(),
        "bool": base > 3,
        "complex": torch.complex(base, base),
        "float8": base.to(torch.float8_e4m3fn),
        "unsigned": torch.arange(5).to(torch.uint16),
    }
    for name in ("zip.pt", "older.pt", "plain.pkl"):
        path = tmp_path / name
        kept = {key: t for key, t in state.items() if name == "zip.pt" or key not in ("float8", "unsigned")}
        if name == "plain.pkl":
            path.write_bytes(pickle.dumps(kept))
        else:
            torch.save(kept, path, _use_new_zipfile_serialization=name == "zip.pt")
        weights = read_weights(path)
        assert weights.keys() == kept.keys()
        for key, tensor in kept.items():
            assert weights[key].dtype == tensor.dtype
            assert weights[key].shape == tensor.shape
            assert torch.equal(weights[key].float(), tensor.detach().float())


def test_numbers_of_numpy_and_torch_are_recorded(tmp_path):
    import numpy as np

    content = {
        "state_dict": {"a": torch.ones(2)}, "epoch": np.int64(4), "best_acc1": torch.tensor(0.5), "acc": np.float32(0.25),
        "history": [1, 2], "note": "warm", "huge": 10**400, "flag": True, "when": np.datetime64("2026-01-01"),
    }  # fmt: skip
    for protocol in (2, 4):
        torch.save(content, tmp_path / "a.pt", pickle_protocol=protocol)
        header = read_header(tmp_path / "a.pt")
        assert (header.epoch, header.recorded) == (4, {"best_acc1": 0.5, "acc": 0.25})
    arrays = {"w": np.arange(6.0).reshape(2, 3).T, "b": np.float32([1, 2])}
    for protocol in (2, 4, 5):
        (tmp_path / "arrays.pkl").write_bytes(pickle.dumps(arrays, protocol))
        weights = read_weights(tmp_path / "arrays.pkl")
        assert torch.equal(weights["w"], torch.arange(6.0).double().reshape(2, 3).T)
        assert torch.equal(weights["b"], torch.tensor([1.0, 2.0]))
