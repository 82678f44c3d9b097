"""The examples for other engines in docs/cluster.md, as far as they run without a cluster: what a pod or a worker is given."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from cluster.test_cluster import make_run
from contents import assert_same

from posthoc.cli import main

PAGE = Path(__file__).parents[2] / "docs" / "cluster.md"
ENVIRONMENT = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}


def example(language, folder, of=""):
    """The page's example that names `of`, with /data in a folder."""
    (text,) = (text for text in re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL) if of in text)
    return text.replace("/data", str(folder))


def by_kubernetes(folder):
    """Each index of the job, as its pod is started."""
    job = yaml.safe_load(example("yaml", folder))
    assert (job["apiVersion"], job["kind"], job["spec"]["completionMode"]) == ("batch/v1", "Job", "Indexed")
    (container,) = job["spec"]["template"]["spec"]["containers"]
    (mount,), (volume,) = container["volumeMounts"], job["spec"]["template"]["spec"]["volumes"]
    assert (mount["name"], mount["mountPath"]) == (volume["name"], str(folder))
    for index in range(job["spec"]["completions"]):
        environment = {**ENVIRONMENT, "JOB_COMPLETION_INDEX": str(index)}
        subprocess.run([*container["command"], *container["args"]], env=environment, check=True)


def by_dask(folder):
    """A scheduler and two workers on this machine."""
    (folder / "replay.py").write_text(example("python", folder, "dask"))
    subprocess.run([sys.executable, folder / "replay.py"], env=ENVIRONMENT, check=True, timeout=600)


def by_ray(folder):
    """Two workers on this machine."""
    pytest.importorskip("ray", reason="ray, of 240 MB, is not installed: pip install ray")
    text = example("python", folder, "ray").replace("ray.init()", "ray.init(num_cpus=2, include_dashboard=False)")
    (folder / "replay.py").write_text(text)
    environment = {**ENVIRONMENT, "RAY_USAGE_STATS_ENABLED": "0"}
    subprocess.run([sys.executable, folder / "replay.py"], env=environment, check=True, timeout=600)


@pytest.mark.slow
@pytest.mark.parametrize("engine", [by_kubernetes, by_dask, by_ray])
def test_an_engine_replays_the_shards_that_merge_puts_together(tmp_path, engine):
    make_run(tmp_path / "run", 6)
    (tmp_path / "slow.py").rename(tmp_path / "nets.py")
    (tmp_path / "out").mkdir()
    engine(tmp_path)
    main(["merge", str(tmp_path / "out" / "activations.h5")], standalone_mode=False)
    words = [
        "extract",
        tmp_path / "run",
        "--model",
        tmp_path / "nets.py",
        "--probe",
        "digits",
        "-o",
        tmp_path / "whole.h5",
    ]
    main(list(map(str, words)), standalone_mode=False)
    assert_same(tmp_path / "out" / "activations.h5", tmp_path / "whole.h5")
