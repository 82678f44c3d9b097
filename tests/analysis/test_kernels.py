"""The kernels' cache of machine code: kept, shared safely, and done without where it cannot be."""

import os
import platform
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from posthoc.analysis.axes.image import image_series
from posthoc.analysis.dfa import dfa
from posthoc.analysis.kernels import cache_folder, config, thread_count
from posthoc.analysis.kuramoto import kuramoto, phase_locking

pytestmark = pytest.mark.skipif(os.environ.get("NUMBA_DISABLE_JIT") == "1", reason="nothing is compiled")

CODE = """
import numpy as np
from posthoc.analysis.kernels import cache_folder
from posthoc.analysis.kernels.differences import used_bits  # the smallest kernel
used_bits(np.arange(9, dtype=np.uint32))
print(cache_folder(), sum(used_bits.stats.cache_hits.values()))
"""


def measure(code=CODE, **environment):
    kept = {name: value for name, value in os.environ.items() if name not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME")}
    command = [sys.executable, "-c", code]
    return subprocess.Popen(command, env=kept | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def printed(process):
    out, err = process.communicate()
    assert process.returncode == 0, err
    folder, hits = out.split()
    return folder, int(hits)


def test_compiled_once_and_found_again_even_by_processes_that_start_together(tmp_path):
    first = [measure(XDG_CACHE_HOME=str(tmp_path)) for _ in range(3)]
    folders = {printed(process)[0] for process in first}
    assert len(folders) == 1
    assert folders.pop().startswith(str(tmp_path / "posthoc" / "kernels"))
    assert printed(measure(XDG_CACHE_HOME=str(tmp_path)))[1] == 1


def test_nothing_is_kept_where_it_cannot_be_or_should_not_be(tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert printed(measure(XDG_CACHE_HOME=str(tmp_path / "file"))) == ("None", 0)
    assert printed(measure(XDG_CACHE_HOME=str(tmp_path), POSTHOC_KERNEL_CACHE="off")) == ("None", 0)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_user_without_a_home_keeps_nothing(monkeypatch):
    for name in ("HOME", "USERPROFILE", "NUMBA_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as where nobody of that number is known
    assert cache_folder() is None


def test_numbas_own_setting_wins(tmp_path):
    assert printed(measure(NUMBA_CACHE_DIR=str(tmp_path)))[0] == str(tmp_path)


def test_numbas_settings_are_not_taken_from_the_working_directory(tmp_path, monkeypatch):
    """Nor are those changed that the user's own functions are compiled with, by Numba's rules."""
    (tmp_path / ".numba_config.yaml").write_text("disable_jit: 1\ncache_dir: here\n")
    monkeypatch.chdir(tmp_path)
    settings = "assert (numba.config.CACHE_DIR, int(numba.config.DISABLE_JIT)) == ('here', 1)\n"
    code = f"import numba\n{settings}{CODE}{settings}"
    assert printed(measure(code, XDG_CACHE_HOME=str(tmp_path)))[0].startswith(str(tmp_path / "posthoc"))
    assert list(tmp_path.rglob("differences.used_bits-*.nbi"))
    assert not (tmp_path / "here").exists()


@pytest.mark.parametrize("fault", ["is a link", "belongs to another user", "others can write to ", "inside"])
@pytest.mark.parametrize("by_variable", [True, False])
def test_a_cache_that_others_can_fill_is_not_used(tmp_path, fault, by_variable):
    place = tmp_path / "posthoc" / "kernels" / f"{platform.node()}-{platform.machine()}"
    (place / "inside").mkdir(parents=True)
    if fault == "is a link":
        place.rename(tmp_path / "elsewhere")
        place.symlink_to(tmp_path / "elsewhere")
    elif fault == "belongs to another user":
        if os.geteuid() != 0:
            pytest.skip("only root can give a folder away")
        os.chown(place, 4321, -1)
    else:
        (place / "inside" if fault == "inside" else place).chmod(0o775)
    process = measure(WHERE, **({"NUMBA_CACHE_DIR": str(place)} if by_variable else {"XDG_CACHE_HOME": str(tmp_path)}))
    out, err = process.communicate()
    assert out == "None\n"
    assert "Compiled kernels are not kept, for " in err
    assert (fault if fault != "inside" else f"others can write to {place}/inside; remove it") in err
    assert not list(tmp_path.rglob("*.nb?"))


def test_a_new_cache_is_nobody_elses(tmp_path):
    process = measure(WHERE, XDG_CACHE_HOME=str(tmp_path))
    out, err = process.communicate()
    assert err == ""
    assert stat.S_IMODE(Path(out.strip()).stat().st_mode) == 0o700


WHERE = "from posthoc.analysis.kernels import cache_folder; print(cache_folder())"


SETTINGS = """
import numba
numba.config.SLP_VECTORIZE, numba.config.CACHE_DIR = 7, "mine"
import numpy as np
from posthoc.analysis.kernels.differences import used_bits
numba.config.BOUNDSCHECK = 0
used_bits(np.arange(9, dtype=np.uint32))
print((numba.config.SLP_VECTORIZE, numba.config.CACHE_DIR, numba.config.BOUNDSCHECK))
"""


@pytest.mark.parametrize("file", [False, True])
def test_settings_made_in_code_stay(tmp_path, monkeypatch, file):
    if file:
        (tmp_path / ".numba_config.yaml").write_text("cache_dir: here\n")
    monkeypatch.chdir(tmp_path)
    out, err = measure(SETTINGS, XDG_CACHE_HOME=str(tmp_path)).communicate()
    assert out.strip() == "(7, 'mine', 0)", err


def test_the_threads_change_no_bit(monkeypatch):
    x = np.random.default_rng(0).standard_normal((37, 1500))
    digests = set()
    for threads in (1, 2, 3, 8):
        monkeypatch.setenv("NUMBA_NUM_THREADS", str(threads))
        monkeypatch.setattr(config, "NUMBA_NUM_THREADS", threads)
        assert thread_count() == threads
        series = image_series(x, np.arange(1500) % 7, 5)
        numbers = [dfa(series).fluctuation, kuramoto(series).order_parameter]
        numbers.append(phase_locking(series, np.arange(37) % 3).ppc)
        digests.add(b"".join(number.tobytes() for number in numbers))
    assert len(digests) == 1


IMPORTED = """
import os, sys
sys.modules["fcntl"] = None
written = []
def watch(event, arguments):
    if event in ("os.mkdir", "os.rename", "os.link", "os.symlink") or (
        event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        and arguments[0] != os.devnull
    ):
        written.append((event, arguments[0]))
import numpy as np, numba, scipy.stats  # what they do is theirs
sys.addaudithook(watch)
import posthoc
functions = [getattr(posthoc, name) for name in posthoc._HOMES if name != "extract"]
assert not written, written
"""
COMPUTED = """
print(*posthoc.hurst(np.random.default_rng(0).standard_normal((2, 25))).H)
"""


@pytest.mark.parametrize("home", ["read-only", "writable"])
def test_importing_writes_nothing_and_needs_no_locks(tmp_path, home):
    """A platform without fcntl, and a home that cannot be written."""
    (tmp_path / "file").touch()
    place = str(tmp_path / ("file/home" if home == "read-only" else "home"))
    process = measure(IMPORTED + (COMPUTED if home == "read-only" else CODE), HOME=place, PYTHONDONTWRITEBYTECODE="1")
    out, err = process.communicate()
    assert process.returncode == 0, err
    if home == "read-only":
        assert np.isfinite([float(number) for number in out.split()]).tolist() == [True, True]
    else:
        assert out.startswith(place)
