"""What targets are taken for: masks and the places of no class, whole numbers that are no classes, and what the network is given."""

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from networks import T5
from torch.nn import functional as F

import posthoc
from posthoc.cli import main
from posthoc.errors import PosthocError
from posthoc.replay.planning import plan_extraction
from posthoc.replay.probes.arrays import with_target

N = 24
NETS = """
import torch
from torch import nn

class Filter(nn.Module):
    def __init__(self, classes=1):
        super().__init__()
        self.seen = nn.Conv2d(1, 4, 3, padding=1); self.head = nn.Conv2d(4, classes, 1)
    def forward(self, x):
        return self.head(self.seen(x).relu())

class Classes(Filter):
    def __init__(self):
        super().__init__(3)

class One(nn.Module):
    def __init__(self, outputs=1):
        super().__init__()
        self.seen = nn.Linear(7, 9); self.head = nn.Linear(9, outputs)
    def forward(self, x):
        return self.head(self.seen(x).relu())

class Three(One):
    def __init__(self):
        super().__init__(3)

class Grey(nn.Module):
    def __init__(self):
        super().__init__()
        self.seen = nn.Conv2d(3, 4, 3); self.head = nn.Linear(4, 1)
    def forward(self, x):
        return self.head(self.seen(x).mean((2, 3)))

class Free(nn.Module):
    def __init__(self):
        super().__init__()
        self.inside = nn.Conv2d(1, 8, 3, padding=1); self.time = nn.Embedding(100, 8); self.kind = nn.Embedding(5, 8)
        self.seen = nn.Conv2d(8, 8, 3, padding=1); self.out = nn.Conv2d(8, 1, 3, padding=1)
    def forward(self, x, t, y=None):
        h = self.inside(x) + self.time(t)[:, :, None, None]
        if y is not None:
            h = h + self.kind(y)[:, :, None, None]
        return self.out(self.seen(h.relu()))

class Bound(Free):
    def forward(self, x, t, y):
        return super().forward(x, t, y)

class WithLoss(One):
    def forward(self, x, labels):
        scores = super().forward(x)[:, 0]
        return nn.functional.mse_loss(scores, labels), scores + 0 * labels

class Shifted(One):
    def forward(self, x, y=None):
        return super().forward(x if y is None else x + y[:, None])

class Alone(One):
    def forward(self, y):
        return super().forward(y)
"""
RANDOM = np.random.default_rng(0)
MAPS, VECTORS = RANDOM.normal(size=(N, 1, 6, 6)).astype("f4"), RANDOM.normal(size=(N, 7)).astype("f4")
AS_NUMBERS = "an output has the shape of the targets: --score regression compares them as numbers"


@pytest.fixture
def nets(tmp_path):
    """Two checkpoints of a network, where they lie, and its name; in a folder with arrays as its probe."""
    space = {"__name__": "nets"}
    exec(NETS, space)
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "run").mkdir()

    def of(name, **arrays):
        made = []
        for epoch in range(2):
            torch.manual_seed(epoch)
            made.append(space[name]().eval())
            torch.save(made[-1].state_dict(), tmp_path / "run" / f"epoch_{epoch}.pt")
        np.savez(tmp_path / "a.npz", **arrays)
        options = {"model": f"{tmp_path / 'nets.py'}:{name}", "layers": ["seen"]}
        return made, (tmp_path / "run", f"npz:{tmp_path / 'a.npz'}"), options

    return of


def scores_in(place, options, path, **more):
    return posthoc.open_activations(posthoc.extract(*place, path, **options, **more))


@pytest.mark.parametrize("shape", [(N, 6, 6), (N, 1, 6, 6)])
def test_masks_of_0_and_255_are_refused_for_255_is_no_class(shape, nets, tmp_path):
    y = (RANDOM.random(shape) > 0.6).astype("u1")
    _, place, options = nets("Filter", x=MAPS, masks=255 * y)
    command = ["extract", str(place[0]), "--probe", place[1], "--model", options["model"], "-o", str(tmp_path / "a.h5")]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 1
    assert (
        "npz:a.npz: the masks hold nothing but 0 and 255, which means no class; save them as 0 and 1; or give "
        "--score regression, which compares targets as numbers, or --score none."
    ) in " ".join(result.stderr.split())
    with scores_in(place, options, tmp_path / "none.h5", score="none") as file:
        assert np.isnan(file.loss).all()
    made, place, options = nets("Filter", x=MAPS, masks=y)
    with scores_in(place, options, tmp_path / "b.h5") as file, torch.no_grad():
        for e, net in enumerate(made):
            expected = F.binary_cross_entropy_with_logits(
                net(torch.from_numpy(MAPS)).view(shape), torch.tensor(y).float()
            )
            assert file.loss[e] == pytest.approx(expected.item(), rel=1e-5)


def test_masks_of_0_and_255_whose_classes_are_known_are_masks(nets, tmp_path):
    y = 255 * (RANDOM.random((N, 6, 6)) > 0.6)
    made, (run, _), options = nets("Classes")
    probe = posthoc.Probe(MAPS, y, classes=3)
    share = f"{100 * (y == 255).mean():.3g} % of the places are left out, of class 255 or below 0"
    assert ("score", share) in plan_extraction(run, probe, **options).notes
    with scores_in((run, probe), options, tmp_path / "a.h5") as file, torch.no_grad():
        for e, net in enumerate(made):
            loss = F.cross_entropy(net(torch.from_numpy(MAPS)), torch.from_numpy(y), ignore_index=255)
            assert file.loss[e] == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize(("first", "says"), [(255, "16.7 %"), (-1, "16.7 %"), (2, None)])
def test_the_share_of_places_that_are_left_out_is_said(first, says, nets):
    y = RANDOM.integers(0, 3, (N, 6, 6))
    y[:, 0] = first
    _, place, options = nets("Classes", x=MAPS, masks=y)
    notes = [text for _, text in plan_extraction(*place, **options).notes if "left out, of class" in text]
    assert notes == ([] if says is None else [f"{says} of the places are left out, of class 255 or below 0"])


@pytest.mark.parametrize("name", ["One", "Three"])
@pytest.mark.parametrize("numbers", ["ages", "negative", "prices"])
def test_whole_numbers_are_compared_as_numbers_where_that_is_asked_for(name, numbers, nets, tmp_path):
    low, high = {"ages": (18, 90), "negative": (-9, 9), "prices": (100_000, 9_000_000)}[numbers]
    y = RANDOM.integers(low, high, N if name == "One" else (N, 3))
    made, place, options = nets(name, x=VECTORS, y=y)
    with scores_in(place, options, tmp_path / "a.h5", score="regression") as file, torch.no_grad():
        assert file.recording.identity.output.score == "regression"
        assert file.labelled == (name == "One" and numbers == "ages")
        for e, net in enumerate(made):
            error = (net(torch.from_numpy(VECTORS)).double().view(y.shape) - torch.from_numpy(y)) ** 2
            spread = ((y - y.mean(0)) ** 2).mean()
            assert file.loss[e] == pytest.approx(error.mean().item(), rel=1e-6)
            assert file.scores["R2"][e] == pytest.approx(1 - error.mean().item() / spread, rel=1e-5)


def test_whole_numbers_of_an_outputs_shape_are_said_to_be_comparable(nets):
    _, place, options = nets("One", x=VECTORS, y=RANDOM.integers(18, 90, N))
    assert dict(plan_extraction(*place, **options).notes)["score"].endswith(f"(the output 8 x 1); {AS_NUMBERS}")
    _, place, options = nets("Three", x=VECTORS, y=RANDOM.integers(-9, 90, (N, 3)))
    assert dict(plan_extraction(*place, **options).notes)["score"].endswith(f"(the output 8 x 3); {AS_NUMBERS}")
    _, place, options = nets("Three", x=VECTORS, y=RANDOM.integers(0, 9, N))
    assert AS_NUMBERS not in str(plan_extraction(*place, **options).notes)
    for numbers, why in (
        (np.arange(N) - 9, "label -9 is negative; labels count from 0"),
        (np.arange(N) * 10**6, "label 23000000 is no class; labels count from 0 to fewer than 1,000,000"),
    ):
        _, place, options = nets("One", x=VECTORS, y=numbers)
        with pytest.raises(PosthocError) as error:
            plan_extraction(*place, **options)
        advice = "or give --score regression, which compares targets as numbers, or --score none"
        assert str(error.value) == f"npz:a.npz: {why}; {advice}."
        notes = dict(plan_extraction(*place, **options, score="none").notes)
        assert notes["probe"].endswith("targets of one number")


def test_whole_numbers_of_images_and_those_for_a_function(nets, tmp_path):
    images, y = RANDOM.integers(0, 256, (N, 8, 8, 3), dtype=np.uint8), RANDOM.integers(10**6, 10**7, N)
    made, place, options = nets("Grey", images=images, labels=y)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    with scores_in(place, options, tmp_path / "a.h5", score="regression", normalize="none") as file, torch.no_grad():
        for e, net in enumerate(made):
            assert file.loss[e] == pytest.approx(((net(x)[:, 0].double() - torch.from_numpy(y)) ** 2).mean().item())
    made, (run, _), options = nets("One")
    probe = posthoc.Probe(VECTORS, y - 10**7, score=lambda output, targets: {"loss": (output[:, 0] - targets).abs()})
    with scores_in((run, probe), options, tmp_path / "b.h5") as file, torch.no_grad():
        for e, net in enumerate(made):
            expected = (net(torch.from_numpy(VECTORS))[:, 0] - torch.from_numpy(y - 10**7)).abs().mean().item()
            assert file.loss[e] == pytest.approx(expected, rel=1e-5)


CONDITIONED = {"x": MAPS, "t": RANDOM.integers(0, 100, N), "y": RANDOM.integers(0, 5, N)}
FUNCTION = """
import numpy, posthoc
arrays = dict(numpy.load({path!r}))
class Rows:
    def __len__(self):
        return len(arrays["x"])
    def __getitem__(self, row):
        return {{name: array[row] for name, array in arrays.items()}}
def mapping():
    return arrays
def rows():
    return Rows()
def probe():
    return posthoc.Probe(arrays)
"""


def means_of(net, *inputs):
    """The mean over the places of what the layer `seen` gives, [C, N]."""
    kept = []
    handle = net.seen.register_forward_hook(lambda module, given, output: kept.append(output))
    with torch.no_grad():
        net(*map(torch.from_numpy, inputs))
    handle.remove()
    return kept[0].flatten(2).mean(2).T if kept[0].ndim > 2 else kept[0].T


@pytest.mark.parametrize("form", ["npz", "mapping", "rows"])
@pytest.mark.parametrize("name", ["Bound", "Free"])
def test_targets_of_the_name_of_an_argument_are_given_where_it_is_needed(name, form, nets, tmp_path):
    made, (run, probe), options = nets(name, **CONDITIONED)
    (tmp_path / "probe.py").write_text(FUNCTION.format(path=str(tmp_path / "a.npz")))
    probe = probe if form == "npz" else f"{tmp_path / 'probe.py'}:{form}"
    given = [*CONDITIONED] if name == "Bound" else ["x", "t"]
    notes = dict(plan_extraction(run, probe, **options).notes)
    assert notes["targets"] == (
        "y, which the network needs and is given, too"
        if name == "Bound"
        else "y, which the network can do without and is not given; a function that returns "
        'posthoc.Probe({"x": ..., "t": ..., "y": ...}) gives it'
    )
    assert notes["score"].startswith("none: no output has a column for each of the probe's 5 classes")
    with scores_in((run, probe), options, tmp_path / "a.h5", channels=None) as file:
        np.testing.assert_array_equal(file.labels, CONDITIONED["y"])
        for e, net in enumerate(made):
            expected = means_of(net, *(CONDITIONED[key] for key in given))
            np.testing.assert_allclose(file.read("mean", e), expected, rtol=1e-4, atol=1e-6)


def test_what_the_note_says_gives_it(nets, tmp_path):
    made, (run, _), options = nets("Free", **CONDITIONED)
    (tmp_path / "probe.py").write_text(FUNCTION.format(path=str(tmp_path / "a.npz")))
    place = run, f"{tmp_path / 'probe.py'}:probe"
    assert "targets" not in dict(plan_extraction(*place, **options).notes)
    with scores_in(place, options, tmp_path / "a.h5", channels=None) as file:
        for e, net in enumerate(made):
            expected = means_of(net, *CONDITIONED.values())
            np.testing.assert_allclose(file.read("mean", e), expected, rtol=1e-4, atol=1e-6)


def test_the_note_has_the_name_under_which_the_only_input_is_given(nets, tmp_path):
    y = RANDOM.normal(size=N).astype("f4")
    made, place, options = nets("Shifted", data=VECTORS, y=y)
    note = dict(plan_extraction(*place, **options).notes)["targets"]
    assert note.endswith('a function that returns posthoc.Probe({"x": ..., "y": ...}) gives it')
    for probe, given in ((place[1], [VECTORS]), (posthoc.Probe({"x": VECTORS, "y": y}), [VECTORS, y])):
        with scores_in((place[0], probe), options, tmp_path / f"{len(given)}.h5", channels=None) as file:
            for e, net in enumerate(made):
                np.testing.assert_allclose(file.read("mean", e), means_of(net, *given), rtol=1e-4, atol=1e-6)


def test_targets_that_are_given_are_the_targets_too_where_an_output_fits_them(nets, tmp_path):
    y = RANDOM.normal(size=N).astype("f4")
    made, place, options = nets("WithLoss", features=VECTORS, labels=y)
    with scores_in(place, options, tmp_path / "a.h5", channels=None) as file, torch.no_grad():
        assert file.recording.identity.output.score == "regression"
        for e, net in enumerate(made):
            np.testing.assert_allclose(file.read("mean", e), means_of(net, VECTORS, y), rtol=1e-4, atol=1e-6)
            assert file.loss[e] == pytest.approx(
                net(torch.from_numpy(VECTORS), torch.from_numpy(y))[0].item(), rel=1e-5
            )


def test_of_one_argument_the_input_has_the_place_whatever_it_is_called(nets, tmp_path):
    y = np.arange(N) % 2
    made, place, options = nets("Alone", x=VECTORS, y=y)
    assert "targets" not in dict(plan_extraction(*place, **options).notes)
    with scores_in(place, options, tmp_path / "a.h5") as file, torch.no_grad():
        for e, net in enumerate(made):
            given = net(torch.from_numpy(VECTORS))[:, 0]
            expected = F.binary_cross_entropy_with_logits(given, torch.from_numpy(y).float()).item()
            assert file.loss[e] == pytest.approx(expected, rel=1e-5)


def test_labels_that_networks_of_transformers_take_for_a_loss_are_no_matter_of_a_note():
    transformers = pytest.importorskip("transformers")
    sides = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = transformers.BertConfig(vocab_size=20, **sides)
    inputs = {"input_ids": np.zeros((N, 5), int)}
    for module in (transformers.BertForSequenceClassification(config), transformers.BertForMaskedLM(config)):
        assert with_target(inputs, "labels", np.zeros(N, int), module) == (inputs, [])


BART = {
    "vocab_size": 64, "d_model": 16, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "max_position_embeddings": 32,
    "init_std": 0.5,
}  # fmt: skip
SUMMARISERS = {
    "BartForConditionalGeneration": ("BartConfig", BART, "model.decoder.layers.1"),
    "MBartForConditionalGeneration": ("MBartConfig", BART, "model.decoder.layers.1"),
    "T5ForConditionalGeneration": ("T5Config", T5 | {"decoder_start_token_id": 0}, "decoder.block.1"),
}


def summariser(name, tmp_path):
    """A network that reads rows of 9 tokens and says rows of 7, of which the last are padding; its folder, and an archive."""
    transformers = pytest.importorskip("transformers")
    kind, options, layer = SUMMARISERS[name]
    torch.manual_seed(0)
    net = getattr(transformers, name)(getattr(transformers, kind)(**options)).eval()
    net.save_pretrained(tmp_path / "run" / "checkpoint-1")
    random = np.random.default_rng(1)
    ids, labels = random.integers(3, 64, (N, 9)), random.integers(3, 64, (N, 7))
    labels[: N // 2, -2:] = -100
    np.savez(tmp_path / "rows.npz", input_ids=ids, labels=labels)
    return net, ids, labels, layer


@pytest.mark.parametrize("name", SUMMARISERS)
@pytest.mark.parametrize("given", ["archive", "probe", "pair"])
def test_a_decoder_reads_the_targets_moved_by_one_place(name, given, tmp_path):
    net, ids, labels, layer = summariser(name, tmp_path)
    whole = {"archive": f"npz:{tmp_path / 'rows.npz'}", "probe": posthoc.Probe({"input_ids": ids}, labels)}
    probe = whole.get(given, (ids, labels))
    plan = plan_extraction(tmp_path / "run", probe, layers=(layer,), channels=None)
    moved = f"decoder_input_ids, the targets as {name} moves them by one place"
    assert dict(plan.notes)["decoder"] == f"{moved}; what it says is scored at their own places"
    path = posthoc.extract(tmp_path / "run", output=tmp_path / "a.h5", probe=probe, layers=(layer,), channels=None)
    with torch.no_grad():
        expected = net(torch.from_numpy(ids), labels=torch.from_numpy(labels), output_hidden_states=True)
    with posthoc.open_activations(path) as file:
        assert file.loss[0] == pytest.approx(expected.loss.item(), rel=1e-5)
        if name.startswith("Bart"):  # the others have one more norm before what is said of the last
            states = expected.decoder_hidden_states[2].mean(1).T
            np.testing.assert_allclose(file.read("mean", 0), states, rtol=1e-4, atol=1e-5)


def test_what_the_decoder_reads_may_be_given(tmp_path):
    net, ids, labels, layer = summariser("BartForConditionalGeneration", tmp_path)
    other = np.random.default_rng(5).integers(3, 64, labels.shape)
    probe = posthoc.Probe({"input_ids": ids, "decoder_input_ids": other}, labels)
    path = posthoc.extract(tmp_path / "run", output=tmp_path / "a.h5", probe=probe, layers=(layer,))
    with torch.no_grad(), posthoc.open_activations(path) as file:
        rows = (torch.from_numpy(x) for x in (ids, other, labels))
        expected = net(**dict(zip(("input_ids", "decoder_input_ids", "labels"), rows, strict=True))).loss.item()
        assert file.loss[0] == pytest.approx(expected, rel=1e-5)


def test_without_anything_for_the_decoder_the_error_says_what_it_takes(tmp_path):
    _, ids, _, _ = summariser("T5ForConditionalGeneration", tmp_path)
    with pytest.raises(PosthocError, match=r"give arrays that its forward pass takes, decoder_input_ids among them\.$"):
        plan_extraction(tmp_path / "run", posthoc.Probe({"input_ids": ids}))


def test_targets_that_cannot_be_moved_are_said(tmp_path):
    transformers = pytest.importorskip("transformers")
    net = transformers.T5ForConditionalGeneration(transformers.T5Config(**T5, decoder_start_token_id=None))
    net.config.decoder_start_token_id = None
    net.save_pretrained(tmp_path / "run" / "checkpoint-1")
    rows = np.ones((N, 5), int)
    with pytest.raises(
        PosthocError, match=r"cannot make decoder_input_ids of the targets .*; give them in the probe\.$"
    ):
        plan_extraction(tmp_path / "run", posthoc.Probe({"input_ids": rows}, rows))
