"""Small versions of the tables in docs/statistics.md: tests reject no more than they say, each under its own null."""

import importlib.util
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from posthoc.analysis.axes.epoch import EpochMaterial
from posthoc.analysis.axes.image import ImageMaterial

SCRIPT = Path(__file__).parents[2] / "scripts" / "size_and_power.py"
compiled = pytest.mark.skipif(os.environ.get("NUMBA_DISABLE_JIT") == "1", reason="many draws, compiled")


@pytest.fixture(scope="module")
def tables():
    spec = importlib.util.spec_from_file_location("size_and_power", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shares(tables, axis_of, null, replicates):
    p = [tables.p_values(axis_of(np.random.default_rng([replicate, 7])), (null,), 39, replicate)
             for replicate in range(replicates)]  # fmt: skip
    return (np.array(p) <= 0.05).mean(axis=0)


@compiled
@pytest.mark.parametrize("kind", ["rho 0.5", "rank 3"])
def test_channels_that_share_noise_are_no_order_in_time(tables, kind):
    """The deciding null keeps its size, which `white`, a reference, does not."""
    labels = np.arange(128) % 4

    def image(random):
        return ImageMaterial(tables.noise(kind, 128, random).astype(np.float32), labels, 3)

    limit = 0.05 + 3 * np.sqrt(0.05 * 0.95 / 100)
    assert (shares(tables, image, "order", 100) <= limit).all()
    assert shares(tables, image, "white", 60)[1] > 0.5
    assert (shares(tables, lambda random: EpochMaterial(tables.noise(kind, 40, random)), "time", 100) <= limit).all()


@compiled
def test_order_in_time_is_found(tables):
    def past(random):
        x = tables.noise("rho 0.5", 140, random)
        for t in range(1, 140):
            x[:, t] += 0.6 * x[:, t - 1]
        return EpochMaterial(np.ascontiguousarray(x[:, 100:]))

    assert shares(tables, past, "time", 40)[0] > 0.9


@pytest.mark.parametrize("table", ["p", "families", "groups", "audit"])
def test_the_tables_come_out(tables, table, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), table, "--replicates", "10"])
    tables.main()
    header, rule, *rows = capsys.readouterr().out.splitlines()
    assert set(rule) <= set("|-")
    assert len(rows) >= 6
    assert {row.count(" | ") for row in (header, *rows)} == {header.count(" | ")}
