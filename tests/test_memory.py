"""What is free: of the machine, and within the limits of a container or a job."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from posthoc.memory import available_memory

STAT = "cache 900\ninactive_file 30\nactive_file 20\ntotal_inactive_file 300\ntotal_active_file 200\n"


def write(root, files):
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(content))
    return root


def machine(free):
    return {"proc/meminfo": f"MemTotal:  999 kB\nMemAvailable:   {free} kB\nHugePages_Total:  0\n"}


def unified(folder, limit, used):
    folder = f"sys/fs/cgroup/{folder}".rstrip("/")
    return {f"{folder}/memory.max": limit, f"{folder}/memory.current": used, f"{folder}/memory.stat": STAT}


def legacy(folder, limit, used):
    folder = f"sys/fs/cgroup/memory/{folder}".rstrip("/")
    names = "limit_in_bytes", "usage_in_bytes", "stat"
    return {f"{folder}/memory.{name}": value for name, value in zip(names, (limit, used, STAT), strict=True)}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        (machine(5), 5 * 1024),
        ({"proc/meminfo": "MemAvailable:\n"}, None),
        (machine(5) | {"proc/self/cgroup": "0::/job/step\n"} | unified("job/step", 3000, 1000), 2050),
        (machine(5) | {"proc/self/cgroup": "0::/job/step\n"} | unified("job/step", "max\n", 1000), 5 * 1024),
        (machine(5) | {"proc/self/cgroup": "0::/job/step\n"} | unified("job", 3000, 2000), 1050),
        (machine(1) | {"proc/self/cgroup": "0::/job/step\n"} | unified("job", 3000, 2000), 1024),
        (machine(5) | {"proc/self/cgroup": "0::/\n"} | unified("", 3000, 3500), 0),
        (machine(5) | {"proc/self/cgroup": "0::/gone\n"} | unified("", 3000, 2900), 150),
        (machine(5) | {"proc/self/cgroup": "9:cpu:/a\n4:memory:/a\n0::/\n"} | legacy("a", 3000, 2000), 1500),
        (machine(5) | {"proc/self/cgroup": "4:cpu,memory:/a/b\n"} | legacy("a", 3000, 2500), 1000),
        (machine(5) | {"proc/self/cgroup": "4:memory:/a\n"} | legacy("a", 2**63 - 4096, 2500), 5 * 1024),
        (machine(5) | {"proc/self/cgroup": "no colons\n"}, 5 * 1024),
        (machine(5) | {"proc/self/cgroup": "no colons\n0::/a\n"} | unified("a", 3000, 2000), 1050),
        (machine(5) | {"proc/self/cgroup": "4:memory:/a\n"} | legacy("a", -1, 2500), 5 * 1024),
    ],
)  # fmt: skip
def test_the_tightest_limit_counts(tmp_path, files, expected):
    assert available_memory(write(tmp_path, files)) == expected


def test_a_process_in_a_real_group():
    groups = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    inside = next((path.lstrip("/") for _, names, path in groups if names == "memory"), None)
    group = Path("/sys/fs/cgroup/memory", inside or "", f"posthoc-test-{os.getpid()}")
    if inside is None or not os.access(group.parent, os.W_OK):
        pytest.skip("there is no hierarchy of memory groups here that this user may write to")
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(1 << 28))
        code = (
            f"import os; open({str(group / 'cgroup.procs')!r}, 'w').write(str(os.getpid()))\n"
            "from posthoc.memory import available_memory; held = bytearray(1 << 26); print(available_memory())"
        )
        free = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
        assert (1 << 27) < free <= (1 << 28) - (1 << 26)
    finally:
        group.rmdir()
