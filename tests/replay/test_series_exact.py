"""What equal bytes, counts and headers show of a series of checkpoints."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from posthoc.analysis.kernels.differences import SUMS, add_sums, fingerprint, used_bits
from posthoc.errors import PosthocError
from posthoc.replay.layout import find_run
from posthoc.replay.series.grid import recognise
from posthoc.replay.series.records import Kind, Severity
from posthoc.replay.series.result import check_series
from posthoc.replay.series.words import sentence, verdict

STEPS = [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000, 2000, 3000]


def walk(count, seed=0, width=48):
    """State dicts of a small network, each a random step from the one before."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(32, width), nn.BatchNorm1d(width), nn.Linear(width, 10))
    states = []
    for k in range(count):
        states.append({name: tensor.clone() for name, tensor in net.state_dict().items()})
        states[-1]["1.num_batches_tracked"] += 100 * k
        with torch.no_grad():
            for parameter in net.parameters():
                parameter += 0.01 * torch.randn_like(parameter)
    return states


def write(folder, states, steps, inside=None):
    folder.mkdir(exist_ok=True)
    for k, (state, step) in enumerate(zip(states, steps, strict=True)):
        metadata = {"step": str(inside[k])} if inside else None
        save_file({n: t.contiguous() for n, t in state.items()}, folder / f"step-{step}.safetensors", metadata)
    return folder


def check(folder, **options):
    return check_series(folder, **options)


def kinds(result, least=Severity.WARNING):
    return [finding.kind for finding in result.findings if finding.severity >= least]


def only(result, kind):
    (finding,) = [finding for finding in result.findings if finding.kind is kind]
    return finding


def test_a_sound_series_has_no_findings(tmp_path):
    result = check(write(tmp_path / "run", walk(14), STEPS))
    assert kinds(result) == []
    assert result.sound
    assert result.unit == "epoch" or result.label(3) == "4"


def test_the_statistics_are_those_of_the_numbers(tmp_path):
    states = walk(6)
    result = check(write(tmp_path / "run", states, range(6)))
    series = result.series
    for t, name in enumerate(series.tensors):
        values = np.stack([state[name].double().numpy().ravel() for state in states])
        if name.endswith("tracked"):
            assert np.isnan(series.squares[:, t]).all()
            continue
        assert series.squares[:, t] == pytest.approx((values**2).sum(1), rel=1e-12)
        assert series.step[1:, t] == pytest.approx(((values[1:] - values[:-1]) ** 2).sum(1), rel=1e-12, abs=1e-30)
        assert series.stride[2:, t] == pytest.approx(((values[2:] - values[:-2]) ** 2).sum(1), rel=1e-12, abs=1e-30)
        assert series.start[:, t] == pytest.approx(((values - values[0]) ** 2).sum(1), rel=1e-12, abs=1e-30)
        assert (series.zeros[:, t] == (values == 0).sum(1)).all()
        assert (series.sample[t] == values.astype(np.float32)).all()
    assert np.isnan(series.step[0]).all()
    assert np.isnan(series.stride[:2]).all()


@pytest.mark.parametrize("kind", ["zip", "half", "double", "transposed", "shards"])
def test_every_form_of_file_gives_the_same(tmp_path, kind):
    states = walk(5)
    folder = tmp_path / "run"
    folder.mkdir()
    for k, state in enumerate(states):
        if kind == "shards":
            place = folder / f"step-{k}"
            place.mkdir()
            names = list(state)
            weight_map = {}
            for part, some in enumerate((names[:3], names[3:])):
                save_file({name: state[name] for name in some}, place / f"part-{part}.safetensors")
                weight_map |= dict.fromkeys(some, f"part-{part}.safetensors")
            import json

            (place / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
            continue
        if kind == "half":
            state = {
                name: tensor.bfloat16() if tensor.is_floating_point() else tensor for name, tensor in state.items()
            }
        if kind == "double":
            state = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
        if kind == "transposed":
            state = {
                name: tensor.t().contiguous().t() if tensor.ndim == 2 else tensor for name, tensor in state.items()
            }
        torch.save({"model": state, "step": k}, folder / f"step-{k}.pt")
    series = check(folder).series
    t = series.tensors.index("2.weight")
    values = np.stack([state["2.weight"].double().numpy().ravel() for state in states])
    within = 0.02 if kind == "half" else 1e-9
    assert series.step[1:, t] == pytest.approx(((values[1:] - values[:-1]) ** 2).sum(1), rel=within)


def test_a_tensor_of_many_pieces(tmp_path, monkeypatch):
    whole = check(write(tmp_path / "run", walk(5), range(5))).series
    monkeypatch.setattr("posthoc.replay.series.reading.PIECE", 101)
    cut = check(tmp_path / "run").series
    for name in ("squares", "step", "stride", "start"):
        assert getattr(cut, name) == pytest.approx(getattr(whole, name), rel=1e-12, nan_ok=True)
    assert all((a == b).all() or np.isnan(a).all() for a, b in zip(cut.sample, whole.sample, strict=True))
    equal = whole.digest[:, None] == whole.digest[None]
    assert (equal == (cut.digest[:, None] == cut.digest[None])).all()


def test_a_copy_under_another_step(tmp_path):
    states = walk(14)
    states[5] = states[12]
    finding = only(check(write(tmp_path / "run", states, STEPS)), Kind.EQUAL)
    assert (finding.severity, finding.checkpoints) == (Severity.ERROR, (5, 12))


def test_two_checkpoints_of_one_step(tmp_path):
    """A finding, not an end; which of the two comes first is not judged, and the grid is that of the rest."""
    folder = write(tmp_path / "run", walk(9), [1, 2, 3, "03", 4, 5, 6, 7, 8])
    result = check(folder)
    finding = only(result, Kind.DUPLICATE_STEPS)
    assert (finding.severity, finding.checkpoints) == (Severity.ERROR, (2, 3))
    assert kinds(result) == [Kind.DUPLICATE_STEPS]
    with pytest.raises(PosthocError, match="both step 3"):
        find_run(folder)


def test_equal_fingerprints_are_compared_byte_by_byte(tmp_path, monkeypatch):
    """With fingerprints that are all the same only what is the same is named."""
    states = walk(14)
    states[5] = states[12]
    states[9] |= {"0.weight": states[2]["0.weight"]}
    folder = write(tmp_path / "run", states, STEPS)
    monkeypatch.setattr("posthoc.replay.series.reading.fingerprint", lambda words: np.uint64(7))
    result = check(folder)
    assert sorted(only(result, Kind.EQUAL).checkpoints) == [5, 12]
    assert sorted(only(result, Kind.PARTLY_EQUAL).checkpoints) == [2, 9]
    assert only(result, Kind.PARTLY_EQUAL).tensors == ("0.weight",)


def test_a_first_step_that_changes_nothing_is_a_note(tmp_path):
    states = walk(14)
    states[1] = states[0]
    result = check(write(tmp_path / "run", states, STEPS))
    assert only(result, Kind.EQUAL).severity is Severity.NOTE
    assert result.sound


@pytest.mark.parametrize(
    ("name", "first", "severity"),
    [
        ("epoch_{}.pt", 1, Severity.WARNING), ("epoch_{}.pt", 0, Severity.NOTE), ("step_{}.pt", 1, Severity.NOTE),
        ("step_{}00.pt", 1, Severity.WARNING), ("step_{}00.pt", 0, Severity.NOTE),
    ],
)  # fmt: skip
def test_two_equal_ones_at_the_start_are_a_note_where_a_single_step_is_between(tmp_path, name, first, severity):
    """After an epoch of training they are a copy."""
    states = walk(8)
    for k, state in enumerate([states[0], *states]):
        torch.save(state, tmp_path / name.format(first + k))
    result = check(tmp_path)
    assert only(result, Kind.EQUAL).severity is severity
    assert result.sound == (severity is Severity.NOTE)


def test_parameters_that_stand_still_while_statistics_move_are_named(tmp_path):
    """A rate of zero, at which a normalisation goes on to count; an early copy with statistics of its own is one, too."""
    states = walk(14)
    for state in states[9:]:
        state |= {name: value for name, value in states[9].items() if "running" not in name}
    for state in states:
        state["1.running_mean"] = torch.randn(48)
    result = check(write(tmp_path / "still", states, range(14)))
    finding = only(result, Kind.EQUAL)
    assert (finding.severity, finding.checkpoints) == (Severity.WARNING, (9, 10, 11, 12, 13))
    assert kinds(result) == [Kind.EQUAL]
    said = "the same parameters one after the other, only running statistics differ: nothing was learned"
    assert sentence(finding, result) == said
    states = [state | {"1.running_mean": torch.randn(48)} for state in walk(14)]
    states[13] = states[12] | {"1.running_mean": torch.randn(48)}
    result = check(write(tmp_path / "end", states, range(14)))
    assert (only(result, Kind.EQUAL).severity, result.sound) == (Severity.NOTE, True)
    assert sentence(only(result, Kind.EQUAL), result).endswith("nothing was learned, as at a rate of zero")
    states = [state | {"1.running_mean": torch.randn(48)} for state in walk(14)]
    states[3] = states[10] | {"1.running_mean": torch.randn(48)}
    result = check(write(tmp_path / "copy", states, range(14)))
    assert (only(result, Kind.EQUAL).checkpoints, kinds(result)) == ((3, 10), [Kind.EQUAL])
    assert "only running statistics differ: they are of 10, not of 3" in sentence(only(result, Kind.EQUAL), result)


def test_a_part_of_the_final_weights(tmp_path):
    states = walk(14)
    states[4] |= {name: states[13][name] for name in ("0.weight", "0.bias")}
    finding = only(check(write(tmp_path / "run", states, STEPS)), Kind.PARTLY_EQUAL)
    assert finding.checkpoints == (4, 13)
    assert finding.tensors == ("0.weight",)  # of 48 biases alone nothing would be said
    assert finding.severity is Severity.ERROR


def test_layers_that_are_frozen_at_first_are_no_copies(tmp_path):
    states = walk(10)
    for state in states[1:5]:
        state["0.weight"] = states[0]["0.weight"]
    for state in states:
        state["2.bias"] = states[0]["2.bias"]
    result = check(write(tmp_path / "run", states, range(10)))
    assert kinds(result) == []
    assert only(result, Kind.UNCHANGED).tensors == ("1.running_mean", "1.running_var", "2.bias")


def test_numbers_that_are_not_finite_or_all_zero(tmp_path):
    states = walk(6)
    states[3]["0.weight"][0, :5] = float("nan")
    states[3]["2.weight"][0, 0] = float("inf")
    states[4]["0.weight"].zero_()
    result = check(write(tmp_path / "run", states, range(6)))
    finding = only(result, Kind.NOT_FINITE)
    assert finding.checkpoints == (3,)
    assert finding.evidence == {"nan": 5, "infinite": 1}
    assert only(result, Kind.ZERO).checkpoints == (4,)
    assert np.isfinite(result.series.step[1:, result.series.tensors.index("0.weight")]).all()


def test_a_run_that_diverges_is_not_finite_and_nothing_else(tmp_path):
    states = walk(12)
    for name in ("0.weight", "2.weight", "2.bias"):
        states[8][name] = 30 * torch.randn_like(states[8][name])  # blown up, before anything is NaN
    for state in states[9:]:
        for tensor in state.values():
            if tensor.is_floating_point():
                tensor.fill_(float("nan"))
    result = check(write(tmp_path / "run", states, range(12)))
    assert [(finding.kind, finding.checkpoints) for finding in result.findings] == [(Kind.NOT_FINITE, (9, 10, 11))]
    assert verdict(result) == "This series holds weights that are not finite: 1 error, 3 checkpoints of 12 concerned."
    assert repr(result) == f"<Result: {verdict(result)}>"


@pytest.mark.parametrize("share", ["all", "part"])
def test_a_run_that_had_diverged_before_its_first_checkpoint_is_not_finite_and_nothing_else(tmp_path, share):
    states = walk(5)
    for state in states:
        for tensor in state.values():
            if tensor.is_floating_point():
                tensor[... if share == "all" else slice(1)] = float("nan")
    finding = only(result := check(write(tmp_path / "run", states, range(5))), Kind.NOT_FINITE)
    assert (finding.severity, finding.checkpoints) == (Severity.ERROR, (0, 1, 2, 3, 4))
    assert kinds(result) == [Kind.NOT_FINITE]
    assert verdict(result) == "This series holds weights that are not finite: 1 error, 5 checkpoints of 5 concerned."


def test_a_mask_that_is_not_finite_hides_nothing(tmp_path):
    states = walk(12)
    for state in states:
        state["mask"] = torch.full((4, 4), -torch.inf).triu(1)
    states[4], states[5] = states[5], states[4]
    states[7]["1.running_var"][:3] = torch.inf
    result = check(write(tmp_path / "run", states, range(12)))
    assert only(result, Kind.SWAPPED).checkpoints == (5, 4)
    assert [f.checkpoints for f in result.findings if f.severity is Severity.ERROR and f.kind is Kind.NOT_FINITE] == [
        (7,)
    ]


def test_tensors_shapes_and_types_that_change(tmp_path):
    states = walk(8)
    del states[2]["2.bias"]
    states[5]["2.weight"] = torch.zeros(12, 48)
    states[6] = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in states[6].items()}
    states[7] = {
        name: tensor.half().float() if tensor.is_floating_point() else tensor for name, tensor in states[7].items()
    }
    result = check(write(tmp_path / "run", states, range(8)))
    assert only(result, Kind.TENSORS).checkpoints == (2,)
    assert only(result, Kind.TENSORS).tensors == ("2.bias",)
    shape = only(result, Kind.SHAPES)
    assert (shape.checkpoints, shape.evidence["vocabulary"]) == ((5,), 2)
    assert only(result, Kind.TYPES).checkpoints == (6,)
    assert only(result, Kind.PRECISION).checkpoints == (7,)


def test_labels_inside_against_those_in_the_names(tmp_path):
    states = walk(8)
    result = check(write(tmp_path / "a", states, range(1, 9), inside=[1, 2, 3, 5, 6, 7, 8, 9]))
    finding = only(result, Kind.LABELS)
    assert finding.severity is Severity.WARNING
    assert finding.checkpoints in ((0, 1, 2), (3, 4, 5, 6, 7))
    shifted = only(check(write(tmp_path / "b", states, range(1, 9), inside=range(8))), Kind.LABELS)
    assert (shifted.severity, shifted.evidence["shift"]) == (Severity.NOTE, 1)


@pytest.mark.parametrize(("wrong", "concerned"), [({}, None), ({15: 18}, (4,))], ids=["right", "one wrong"])
def test_a_trainers_bare_numbers_are_steps_where_those_agree(tmp_path, wrong, concerned):
    """`checkpoint-3`, saved after an epoch of three steps; the Trainer writes both down."""
    for epoch, state in enumerate(walk(8), 1):
        folder = tmp_path / f"checkpoint-{3 * epoch}"
        folder.mkdir()
        save_file(state, folder / "model.safetensors")
        said = {"epoch": float(epoch), "global_step": wrong.get(3 * epoch, 3 * epoch)}
        (folder / "trainer_state.json").write_text(json.dumps(said))
    findings = [finding for finding in check(tmp_path).findings if finding.kind is Kind.LABELS]
    assert [finding.checkpoints for finding in findings] == ([concerned] if concerned else [])


def test_steps_missing_from_a_grid(tmp_path):
    steps = [step for step in STEPS if step not in (16, 2000)]
    finding = only(check(write(tmp_path / "run", walk(12), steps)), Kind.MISSING_STEPS)
    assert finding.evidence["missing"] == 2
    assert {value for name, value in finding.evidence.items() if name.startswith("step")} == {16, 2000}


@pytest.mark.parametrize("steps", [
    range(0, 1000, 50),
    [1, *range(50, 1000, 50), 978],
    STEPS,
    [0, *(2**k for k in range(14))],
    [0, 1, 10, 100, 1000, 10000],
    [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 384, 512, 768, 1024, 1300, 1600],
    [3, 8, 21, 30, 77, 102],
])  # fmt: skip
def test_usual_grids_lack_nothing(steps):
    grid = recognise(list(steps))
    assert grid is None or grid.missing == ()


@pytest.mark.parametrize("gone", [[3], [1], [10, 11], [5, 12, 17]])
def test_what_is_gone_from_a_grid_is_named(gone):
    for steps in (list(range(0, 1000, 50)), [0, *(2**k for k in range(10)), *range(1000, 20000, 1000)]):
        assert recognise([s for k, s in enumerate(steps) if k not in gone]).missing == tuple(steps[k] for k in gone)


def test_kernels_give_what_they_say():
    rng = np.random.default_rng(0)
    x, a, b, c = rng.standard_normal((4, 1003)).astype(np.float32)
    x[:7] = 0
    sums = np.ones(SUMS)
    add_sums(x, a, b, c, sums)
    exact = [np.sum((x.astype(float) - y) ** 2) for y in (0, a, b, c)]
    assert sums == pytest.approx([*(1 + value for value in exact), 8], rel=1e-12)
    words = x.view(np.uint32)
    assert used_bits(words) == np.bitwise_or.reduce(words)
    prints = {int(fingerprint(words))}
    for k in range(len(words)):
        other = words.copy()
        other[k] ^= 1
        prints.add(int(fingerprint(other)))
    swapped = words.copy()
    swapped[[20, 30]] = swapped[[30, 20]]
    prints |= {int(fingerprint(swapped)), int(fingerprint(words[:-1]))}
    assert len(prints) == len(words) + 3
