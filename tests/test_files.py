"""What is read of files that others made, and what is written in their place."""

import os
import socket

import pytest

from posthoc.errors import PosthocError
from posthoc.files import open_regular, read_json, sha256


def test_a_file_and_a_link_to_one_are_opened(tmp_path):
    (tmp_path / "a").write_bytes(b"content")
    (tmp_path / "b").symlink_to("a")
    for name in ("a", "b"):
        with open_regular(tmp_path / name) as file:
            assert file.read() == b"content"


@pytest.mark.parametrize("kind", ["pipe", "socket", "folder", "device"])
def test_nothing_else_is_opened_or_waited_for(tmp_path, kind, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the name of a socket may not be long
    path = tmp_path / "x"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("x")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    for read in (open_regular, read_json, sha256):
        with pytest.raises(PosthocError, match=f"x is a {kind}; give a file"):
            read(path)


@pytest.mark.parametrize("name", ["none", "nul\0inside", "lone\ud812surrogate"])
def test_what_is_not_there_is_one_sentence(tmp_path, name):
    with pytest.raises(PosthocError, match="Cannot read"):
        open_regular(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{", "is not valid JSON"),
        (b"\xff\xfe\x00", "is not valid JSON"),
        (b"[" * 200_000, "nested too deep"),
        (b"1" * 5000, "is not valid JSON"),
        (b" " * 1001, "is larger than"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "is an activations file; run posthoc metrics"),
    ],
)
def test_what_is_no_json_is_one_sentence(tmp_path, content, says):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(PosthocError, match=says):
        read_json(tmp_path / "a.json", 1000 if "larger" in says else 10**6)
    (tmp_path / "a.json").write_text('{"a": NaN, "a": 2}')
    assert read_json(tmp_path / "a.json") == {"a": 2}
