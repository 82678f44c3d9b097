"""What hostile files cost: seconds and memory above the import, at two sizes, to be looked at for their growth."""

import importlib
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
READ = """
import sys, time
from pathlib import Path
from posthoc.errors import PosthocError
from posthoc.replay.checkpoint import read_checkpoint
def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1e3
before, start, outcome = peak(), time.process_time(), "read"
try:
    read_checkpoint(Path(sys.argv[1]))
except PosthocError as error:
    outcome = str(error).removeprefix(sys.argv[1]).strip(" :")[:60]
print(f"{time.process_time() - start:.2f}|{peak() - before:.0f}|{outcome}")
"""


def hostile_table(sizes: tuple[int, int] = (250_000, 1_000_000)) -> None:
    """One row for each kind of file in tests/hostile.py, each read in a process of its own."""
    sys.path.insert(0, str(ROOT / "tests"))
    kinds = importlib.import_module("hostile").KINDS
    small, large = (f"{size / 1e6:g} MB" for size in sizes)
    print(f"| kind | bytes | s, {small} | s, {large} | MB, {small} | MB, {large} | what is said |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for kind, (make, _) in kinds.items():
            rows: list[list[str]] = []
            for size in sizes:
                path = Path(folder) / "a.pt"
                path.write_bytes(make(size))
                done = subprocess.run([sys.executable, "-c", READ, path], capture_output=True, text=True, check=True)
                rows.append([f"{path.stat().st_size:,}", *done.stdout.strip().split("|")])
            (_, seconds, memory, _), (count, more_seconds, more_memory, outcome) = rows
            cells = (kind, count, seconds, more_seconds, memory, more_memory, outcome)
            print(f"| {' | '.join(cells)} |", flush=True)
