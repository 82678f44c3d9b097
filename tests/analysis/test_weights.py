"""The path of the weights, beside a loop over the checkpoints' tensors."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from posthoc.analysis.metrics import compute_metrics
from posthoc.analysis.records import load_metrics
from posthoc.analysis.weights import ALL, MOST_GROUPS, group_of, weight_paths
from posthoc.sketches import WIDTH
from posthoc.store import open_activations


def by_hand(states, names):
    """Norm, step, distance from the start and cosine of successive steps, in double precision."""
    rows = [torch.cat([state[name].double().reshape(-1) for name in names]) for state in states]
    steps = [b - a for a, b in itertools.pairwise(rows)]
    cosines = [float(a @ b / a.norm() / b.norm()) for a, b in itertools.pairwise(steps)]
    return (
        [float(row.norm()) for row in rows],
        [np.nan, *(float(step.norm()) for step in steps)],
        [float((row - rows[0]).norm()) for row in rows],
        [np.nan, *cosines, np.nan],
    )


@pytest.fixture
def paths(activations_file):
    with open_activations(activations_file) as file:
        return file.weights, weight_paths(file)


def test_parameters_and_no_buffers(paths, states):
    weights, _ = paths
    import torchvision

    model = torchvision.models.shufflenet_v2_x0_5(num_classes=10)
    assert weights == {name: parameter.numel() for name, parameter in model.named_parameters()}


def test_all_weights_are_those_of_the_loop(paths, states):
    weights, found = paths
    path, (norm, step, start, cosine) = found[ALL], by_hand(states, weights)
    np.testing.assert_allclose(path.norm, norm, rtol=1e-6)
    assert 0 < path.error < 0.011
    np.testing.assert_allclose(path.step, step, rtol=4 * path.error)
    np.testing.assert_allclose(path.start, start, rtol=4 * path.error)
    np.testing.assert_allclose(path.cosine, cosine, atol=0.05)


def test_layers_are_those_of_the_loop(paths, states):
    weights, found = paths
    assert list(found)[:3] == ["conv1.0", "conv1.1", "stage2.0"]
    for group, path in found.items():
        names = [name for name in weights if group in (group_of(name), ALL)]
        norm, step, start, _ = by_hand(states, names)
        small = all(weights[name] <= WIDTH for name in names)
        assert (path.error == 0) == (small or np.nanmax(path.step) == 0), group
        assert path.error <= np.sqrt(1 / 2 / WIDTH) + 1e-9
        np.testing.assert_allclose(path.norm, norm, rtol=1e-6)
        for values, expected in ((path.step, step), (path.start, start)):
            np.testing.assert_allclose(values, expected, rtol=max(5 * path.error, 1e-4), err_msg=group)


def test_measures_and_paths_come_back_from_metrics_json(activations_file, paths, tmp_path):
    with open_activations(activations_file) as file:
        metrics = replace(compute_metrics(file), skipped={"e.pt": "it is damaged"})
    metrics.save(tmp_path / "metrics.json")
    again = load_metrics(tmp_path / "metrics.json")
    assert again.skipped == {"e.pt": "it is damaged"}
    assert again.weights.keys() == paths[1].keys()
    for name in ("norm", "step", "start", "cosine"):
        np.testing.assert_array_equal(getattr(again.weights["fc"], name), getattr(paths[1]["fc"], name))
        np.testing.assert_array_equal(again.column(f"weights_{name}"), getattr(paths[1][ALL], name))
        assert not again.measures[f"weights_{name}"].nulls
        assert f"weights_{name}" in again.flat()


def test_layers_of_large_networks_are_put_together(tmp_path):
    from test_store import frame, plan

    from posthoc.writing import write

    names = [f"{part}.{k}.weight" for part in ("encoder", "decoder") for k in range(MOST_GROUPS)]
    layout = replace(plan(), weights=dict.fromkeys(names, 2))
    frames = [
        replace(frame(e), weights={"norm": np.full(128, 5.0), "sketch": np.tile(np.array([3, 4], "f4") * e, 128)})
        for e in (1, 2, 4)
    ]
    write(tmp_path / "a.h5", layout, frames)
    with open_activations(tmp_path / "a.h5") as file:
        found = weight_paths(file)
    assert list(found) == ["encoder", "decoder", ALL]
    np.testing.assert_allclose(found["encoder"].step, [np.nan, 40, 80])
    np.testing.assert_allclose(found["decoder"].start, [0, 40, 120])
    np.testing.assert_allclose(found[ALL].cosine, [np.nan, 1, np.nan])
    assert found[ALL].error == 0


@pytest.mark.filterwarnings("error")
def test_weights_that_are_not_finite_have_no_steps_beside_them(tmp_path):
    """And nothing is warned of: it is said elsewhere."""
    from test_store import frame, plan

    from posthoc.writing import write

    numbers = {1: [3, 4], 2: [np.inf, -np.inf], 3: [np.inf, 4], 4: [6, 8], 5: [12, 16]}
    frames = [
        replace(frame(e), weights={"norm": np.hypot(*np.abs(row))[None], "sketch": np.array(row, "f4")})
        for e, row in numbers.items()
    ]
    write(tmp_path / "a.h5", replace(plan(), weights={"fc.weight": 2}), frames)
    with open_activations(tmp_path / "a.h5") as file:
        path = weight_paths(file)[ALL]
    np.testing.assert_allclose(path.norm, [5, np.inf, np.inf, 10, 20])
    np.testing.assert_allclose(path.step, [np.nan, np.inf, np.nan, np.inf, 10])
    np.testing.assert_allclose(path.start, [0, np.inf, np.inf, 5, 15])


def test_files_without_have_none(tmp_path):
    from test_store import frame, plan

    from posthoc.writing import write

    write(tmp_path / "a.h5", plan(), [frame(1)])
    with open_activations(tmp_path / "a.h5") as file:
        assert weight_paths(file) == {}
        assert file.weights == {}
