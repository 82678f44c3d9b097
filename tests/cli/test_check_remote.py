"""posthoc check of series that lie elsewhere, on a server of this machine."""

import http.server
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from posthoc.cli import main
from posthoc.errors import PosthocError
from posthoc.replay.series.remote import mirrored
from posthoc.replay.series.share import Share

COUNT, SIDE = 8, 384


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder by ranges, unless `ranges` is off; counts the bytes of bodies."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path, server = Path(self.translate_path(self.path)), self.server
        if server.hold and "Range" in self.headers:
            server.asked.set()
            server.goes_on.wait(60)
        if self.path.startswith("/moved/"):
            return self.answer(302, {"Location": self.path.replace("/moved/", "/there/")})
        if self.path.startswith("/loop/"):
            return self.answer(302, {"Location": self.path})
        if path.is_dir() and server.index is not None:
            return self.answer(200, {"Content-Type": "text/html"}, server.index)
        if not path.is_file():
            return super().do_GET()
        content, asked = path.read_bytes(), re.match(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if server.length is not None:
            content = content[: server.length]
        if not (asked and server.ranges):
            return self.answer(200, {}, content)
        start, end = int(asked[1]), min(int(asked[2]) + 1, len(content))
        place = {"Content-Range": f"bytes {start}-{end - 1}/{len(content)}"}
        body = content[start : end - server.short] if end - start > 8 else content[start:end]
        return self.answer(206, place, body)

    do_HEAD = do_GET  # noqa: N815

    def answer(self, status, headers, body=b""):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
            self.server.sent += len(body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(tmp_path):
    (tmp_path / "there").mkdir()
    handler = lambda *arguments: Handler(*arguments, directory=str(tmp_path))  # noqa: E731
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as result:
        result.daemon_threads, result.handle_error = True, lambda *arguments: None
        result.ranges, result.sent, result.short, result.length, result.index = True, 0, 0, None, None
        result.hold, result.asked, result.goes_on = False, threading.Event(), threading.Event()
        result.folder, result.url = tmp_path / "there", f"http://127.0.0.1:{result.server_address[1]}"
        thread = threading.Thread(target=result.serve_forever, args=(0.05,))
        thread.start()
        yield result
        result.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def nothing_left(tmp_path, monkeypatch):
    """The temporary folder is empty after each test."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    yield
    assert list(place.iterdir()) == []


def states(seed=0, count=COUNT):
    """A random walk of two matrices and a bias."""
    torch.manual_seed(seed)
    state = {f"{name}.weight": torch.randn(SIDE, SIDE) for name in "ab"} | {"a.bias": torch.randn(SIDE)}
    result = []
    for _ in range(count):
        result.append(state)
        state = {name: tensor + 0.05 * torch.randn(tensor.shape) for name, tensor in state.items()}
    return result


def planted():
    """Checkpoint 2 holds the last's weights, 4 has the last's first matrix, 5 is another seed's."""
    series = states()
    series[2], series[4] = series[-1], {**series[4], "a.weight": series[-1]["a.weight"]}
    series[5] = states(1, 1)[0]
    return series


def write(folder, series, form="files"):
    for step, state in enumerate(series):
        place = folder / f"step{1000 * step}"
        if form == "files":
            save_file(state, folder / f"epoch={step}.safetensors")
        elif form == "folders":
            place.mkdir()
            save_file(state, place / "model.safetensors")
            (place / "pytorch_model.bin").write_bytes(b"not looked at")
        else:
            place.mkdir()
            parts = {name: f"model-0000{k}-of-00003.safetensors" for k, name in enumerate(state)}
            for name, part in parts.items():
                save_file({name: state[name]}, place / part)
            (place / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def check(*arguments):
    return CliRunner().invoke(main, ["check", *map(str, arguments)])


def findings(*arguments):
    content = json.loads(check(*arguments, "--json").stdout)
    return [(f["kind"], f["severity"], f["checkpoints"], f["tensors"]) for f in content["findings"]]


@pytest.mark.parametrize("form", ["files", "folders", "shards"])
def test_a_share_of_a_series_shows_what_the_whole_does(server, form):
    size = write(server.folder, planted(), form)
    place = f"{server.url}/there/"
    remote = findings(place)
    assert server.sent < 0.2 * size
    assert remote == findings(server.folder)
    assert [(kind, names[0]) for kind, _, names, _ in remote if kind == "unrelated weights"]
    assert {kind for kind, *_ in remote} >= {"equal weights", "partly equal weights"}
    assert remote == findings(f"file://{server.folder}")


def test_what_is_printed(server):
    write(server.folder, planted())
    result = check(f"{server.url}/there")
    assert result.exit_code == 3
    assert f"{server.url}/there, 8 checkpoints, epoch 0 to epoch 7" in result.output
    assert "only the first 5 % of each tensor (or 4,096 numbers, where that is more)" in result.output
    assert "MB were fetched" in result.output
    assert "Cannot tell whether what lies behind the first 5 % of each tensor" in result.output
    assert "posthoc-check-" not in result.output


def test_several_addresses_and_redirects(server):
    """Where nothing lists them: a file each, or the index of shards."""
    write(server.folder, planted(), "folders")
    urls = [f"{server.url}/moved/step{1000 * step}/model.safetensors?key=1" for step in range(COUNT)]
    kinds = [(kind, rows) for kind, _, rows, _ in findings(*urls)]
    assert ("unrelated weights", ["step5000"]) in kinds
    assert "key=1" not in check(*urls).output


def test_shards_by_their_index(server):
    write(server.folder, planted(), "shards")
    urls = [f"{server.url}/there/step{1000 * step}/model.safetensors.index.json" for step in range(COUNT)]
    assert ("unrelated weights", "error", ["step5000"], []) in findings(*urls)


def test_the_whole_is_read_where_asked(server):
    """A tensor that is wrong at its end only."""
    series = states()
    series[3]["b.weight"][-1, -1] = float("nan")
    size = write(server.folder, series)
    assert findings(f"{server.url}/there/") == []
    assert [kind for kind, *_ in findings(f"{server.url}/there/", "--share", 1)] == ["not finite"]
    assert server.sent > size
    assert findings(server.folder, "--share", 0.05) == []


def test_against_a_series_elsewhere(server):
    write(server.folder, states())
    result = check(server.folder, "--against", f"{server.url}/there/")
    assert result.exit_code == 0
    assert "Every checkpoint of the second is one of the first: a copy." in result.output


@pytest.mark.parametrize(
    ("settings", "path", "message"),
    [
        ({"ranges": False}, "there/", "The server does not send parts of http"),
        ({"short": 5}, "there/", "bytes where .* were asked for; did it change"),
        ({"length": 100}, "there/", r"is damaged or cut short"),
        ({}, "absent/", "There is nothing at http"),
        ({}, "there/epoch=9.safetensors", "There is nothing at http"),
        ({}, "loop/epoch=1.safetensors", "Cannot read http.*TooManyRedirects"),
        ({"index": b"<a href='a%2f..%2f..%2fepoch=1.safetensors'>"}, "there/", "is no name of a file"),
        ({"index": b"<a href='%2e%2e/epoch=1.safetensors'>"}, "there/", "No files of safetensors at"),
        ({"index": b"nothing"}, "there/", "No files of safetensors at"),
        ({"index": b"<a href='epoch=1.pt'>"}, "there/", "no safetensors but epoch=1.pt, of which no ranges can be read: download"),
        ({}, "there/epoch=1.pt", "no safetensors but epoch=1.pt"),
    ],
)  # fmt: skip
def test_a_sentence_for_whatever_is_wrong(server, settings, path, message):
    write(server.folder, states(count=2))
    vars(server).update(settings)
    result = check(f"{server.url}/{path}")
    assert result.exit_code == 1
    assert re.search(message, result.output)
    assert result.output.count("\n") == 1
    assert "posthoc-check-" not in result.output


MESSAGES = {"long": "is damaged or cut short", "deep": "nests values", "page": "is an HTML or XML page"}


def test_hostile_headers(server):
    """A header said to be long is fetched no further than the file goes, and one that nests is refused."""
    deep = b'{"a":' + b"[" * 4000 + b"]" * 4000 + b"}"
    for name, content in {
        "long": (1 << 40).to_bytes(8, "little") + b"{" + bytes(1 << 17),
        "deep": len(deep).to_bytes(8, "little") + deep,
        "page": b"<!doctype html><html>not found</html>",
    }.items():
        for path in server.folder.iterdir():
            path.unlink()
        (server.folder / "epoch=1.safetensors").write_bytes(content)
        result = check(f"{server.url}/there/")
        assert result.exit_code == 1
        assert re.match(f"posthoc: {server.url}/there/epoch=1.safetensors .*{MESSAGES[name]}", result.output), (
            result.output
        )
    assert server.sent < 1 << 19


def test_names_do_not_leave_the_folder(tmp_path):
    """Of a file system whose listing says what it likes."""
    from fsspec.implementations.memory import MemoryFileSystem

    system = MemoryFileSystem()
    system.pipe("/series/a/../../../evil.safetensors", b"12345678")
    try:
        with pytest.raises(PosthocError), mirrored(["memory://series"], Share(0.05)):
            pass
    finally:
        system.store.clear()
    assert not list(tmp_path.rglob("evil*"))


def test_names_in_capitals_and_pickles_beside(server):
    write(server.folder, planted())
    expected = findings(f"{server.url}/there/")
    for path in list(server.folder.iterdir()):
        path.rename(path.with_name(path.name.upper()))
    (server.folder / "EPOCH=8.PT").write_bytes(b"not looked at")
    (server.folder / "optimizer.pt").write_bytes(b"not looked at")
    capitals = server.url.replace("http", "HTTP")
    assert [(kind, len(rows)) for kind, _, rows, _ in findings(f"{capitals}/there/")] == [
        (kind, len(rows)) for kind, _, rows, _ in expected
    ]
    assert "pickles are not read from elsewhere: EPOCH=8.PT\n" in check(f"{server.url}/there/").output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["http://me:secret@[::1/run?key=1"], "http://[::1/run is no address (ValueError: Invalid IPv6 URL)"),
        (["http://host/run", "--share", "nan"], "--share nan: give a part of each tensor"),
    ],
)
def test_what_is_no_address_and_no_share(words, message):
    result = check(*words)
    assert (result.exit_code, result.output.count("\n")) == (2, 1)
    assert message in result.output
    assert "secret" not in result.output


def test_usage(server, tmp_path):
    write(server.folder, states(count=2))
    assert check(f"{server.url}/there/", server.folder).exit_code == 2
    assert check(f"{server.url}/there/", f"{server.url}/there/").exit_code == 2
    assert check(f"simplecache::{server.url}/there/").exit_code in (1, 2)
    result = check("nowhere://host/run")
    assert result.exit_code == 1


def test_the_extra_is_named_where_it_is_not_installed(server):
    program = "import sys; sys.modules['fsspec'] = None; from posthoc.__main__ import main; main()"
    words = [sys.executable, "-c", program, "check", f"{server.url}/there/"]
    result = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "NO_COLOR": "1"})
    assert result.returncode == 1
    assert "install the extra `remote`: pip install 'posthoc[remote]'" in result.stderr
    assert "Traceback" not in result.stderr


def test_nothing_is_left_where_it_is_stopped(server):
    """While it waits for an answer."""
    write(server.folder, states(count=2))
    server.hold = True
    words = [sys.executable, "-m", "posthoc", "check", f"{server.url}/there/"]
    environment = {**os.environ, "TMPDIR": tempfile.gettempdir()}
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert server.asked.wait(60)
        assert [place.name[:14] for place in Path(tempfile.gettempdir()).iterdir()] == ["posthoc-check-"]
        process.terminate()
        _, errors = process.communicate(timeout=60)
    server.goes_on.set()
    assert (process.returncode, errors) == (143, "posthoc: stopped.\n")


def test_a_server_that_says_nothing_is_given_up(server, monkeypatch):
    monkeypatch.setattr("posthoc.replay.series.remote.SILENCE", 0.3)
    write(server.folder, states(count=2))
    server.hold = True
    try:
        with (
            pytest.raises(PosthocError, match=r"epoch%3D\d.safetensors: the server said nothing for 0.3 s"),
            mirrored([f"{server.url}/there/"], Share(0.05)),
        ):
            pass
    finally:
        server.goes_on.set()
