"""A network that sees its images otherwise than in training is found out, and nothing else is."""

import json
import math
import shutil
from dataclasses import replace
from types import SimpleNamespace

import noise
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from scipy.stats import binomtest
from torch import nn
from torch.nn import functional as F

import posthoc
from posthoc.chance import better_than_chance, doubt, ends, largest_share
from posthoc.cli import main
from posthoc.errors import UsageError
from posthoc.parts import merge
from posthoc.recording import Misfit, Scaling, image_words
from posthoc.replay.planning import plan_extraction
from posthoc.replay.probes.images import load_images
from posthoc.replay.request import parse_settings
from posthoc.replay.run import run_extraction
from posthoc.replay.scaling import try_scaling
from posthoc.shards import Shard
from posthoc.store import open_activations

LABELS = np.repeat(np.arange(10), 20)
RECORDING = noise.recording(["a"])
RECORDING = replace(
    RECORDING, provenance=replace(RECORDING.provenance, preparation=image_words([0.5] * 3, [0.25] * 3, 32, 3))
)


def run(accuracy, epochs=None, steps=None, labels=LABELS, **recorded):
    E = len(accuracy)
    return SimpleNamespace(
        accuracy=np.array(accuracy, float),
        loss=np.ones(E),
        epochs=np.arange(1, E + 1) if epochs is None else np.array(epochs),
        steps=np.full(E, -1) if steps is None else np.array(steps),
        labels=labels,
        nonfinite_weights=np.zeros(E, int),
        recorded={name: np.array(values, float) for name, values in recorded.items()},
        recording=RECORDING,
    )


def test_the_best_checkpoint_of_a_language_model_is_that_of_the_least_loss():
    made = run([0.06, 0.05, 0.04], steps=[1, 2, 4], epochs=[-1, -1, -1])
    made.loss, made.scores = np.array([7.5, 6.25, 6.5]), {}
    output = replace(RECORDING.identity.output, score="tokens")
    made.recording = replace(RECORDING, identity=replace(RECORDING.identity, output=output))
    assert ends(made)[1] == ("best", "step 2: loss 6.2500, accuracy 0.0500")
    made.recording = RECORDING
    assert ends(made)[1] == ("best", "step 1: loss 7.5000, accuracy 0.0600")


@pytest.mark.parametrize("labels", [LABELS, np.repeat([0, 1, 2], [70, 20, 10])])
def test_better_than_chance_is_the_exact_binomial_test(labels):
    share, N = largest_share(labels), len(labels)
    for right in range(0, N + 1, 3):
        expected = binomtest(right, N, share, alternative="greater").pvalue < 0.01
        assert better_than_chance(right / N, labels) == expected
    assert not better_than_chance(math.nan, labels)


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (run([0.1, 0.12, 0.11]), "probe accuracy 0.11 at epoch 3, chance 0.10: the images are probably not scaled"),
        (run([0.1, 0.5, 0.6]), None),
        (run([0.6, 0.1]), None),  # it has forgotten, which no scaling does
        (run([0.1, 0.1], epochs=[-1, -1], steps=[0, 500]), "at step 500"),
        (run([0.1], steps=[0]), None),  # untrained
        (run([0.1, 0.7], epochs=[0, 1]), None),
        (run([0.7, 0.1], epochs=[0, 1]), "probably not"),
        (run([math.nan, math.nan]), None),
        (run([0.7, 0.7], labels=np.repeat([0, 1], [140, 60])), "chance 0.70"),
        (run([0.4, 0.5], val_acc=[0.6, 0.92]), "where val_acc was recorded as 0.92: the images may not be scaled"),
        (run([0.4, 0.5], test_top1_acc=[60, 92]), "where test_top1_acc was recorded as 0.92"),
        (run([0.4, 0.5], train_acc=[0.6, 0.99], best_acc=[0.9, 0.9]), None),
        (run([0.4, 0.85], val_acc=[0.6, 0.92]), None),
        (run([0.4, 0.5], val_acc=[math.nan, math.nan]), None),
        (run([1.0, 1.0], labels=np.zeros(80, int)), None),  # of one class nothing is better than chance
        (run([0.9, 1.0], labels=np.repeat([0, 1], [76, 4])), None),
        (run([1.0, 1.0], labels=np.arange(3)), None),
    ],
)
def test_what_is_said(made, says):
    told = doubt(made)
    assert told is None if says is None else says in told
    if says:
        assert "(assumed: mean 0.5, 0.5, 0.5, std 0.25, 0.25, 0.25, 32 x 32, colour;" in told


def test_scores_that_are_not_finite_are_not_blamed_on_the_scaling():
    made = run([0.1, 0.1])
    made.loss[:] = math.nan
    assert doubt(made) == "no score at epoch 2: the network's outputs for some or all of the images are not finite"
    made.accuracy[1], made.nonfinite_weights[1] = math.nan, 1
    assert doubt(made) == (
        "no score at epoch 2: 1 weight is not finite, and the network's outputs for some or all of the images are not either"
    )
    made.accuracy[1], made.nonfinite_weights[1] = 0.1, 0
    made.loss[:] = [math.nan, 2.3]  # it came back
    assert doubt(made).endswith("or nothing was learned")
    made.nonfinite_weights[1] = 1600
    assert doubt(made) == (
        "probe accuracy 0.10 at epoch 2, chance 0.10: 1,600 weights are not finite, which no scaling of the images mends"
    )


def test_a_training_that_broke_down_is_not_blamed_on_the_scaling():
    assert doubt(run([0.1, 0.55, 0.1])) == (
        "probe accuracy 0.10 at epoch 3, chance 0.10, after 0.55 at epoch 2: the training broke down in between"
    )
    assert doubt(run([0.1, 0.25, 0.1])).endswith("or nothing was learned")


def test_what_speaks_against_the_preparation_is_said_above_chance():
    made = run([0.4, 0.6])
    scaling = Scaling(Misfit("bn1", 4.2, 1.7), "--normalize none", 0.95, 0.6, 697, "epoch_2.pt")
    made.recording = replace(RECORDING, provenance=replace(RECORDING.provenance, scaling=scaling))
    assert doubt(made).endswith(
        "options of extract: --normalize, --image-size): --normalize none gives 0.95 instead of 0.60 at "
        "epoch_2.pt, over 697 images; the batch norm bn1 is given 4.2 times the standard deviation that it recorded in "
        "training, and means 1.7 of these away"
    )


def test_a_run_that_did_as_well_before_is_not_blamed_on_the_preparation():
    made = run([0.5, 0.3])
    scaling = Scaling(None, "--normalize none", 0.52, 0.3, 100)
    made.recording = replace(RECORDING, provenance=replace(RECORDING.provenance, scaling=scaling))
    assert doubt(made) is None


def test_a_batch_norm_says_nothing_against_a_preparation_that_was_right():
    def told(*accuracy, **recorded):
        made = run(accuracy, **recorded)
        scaling = Scaling(Misfit("bn1", 4.2, 1.7))
        made.recording = replace(RECORDING, provenance=replace(RECORDING.provenance, scaling=scaling))
        return doubt(made)

    assert "the batch norm bn1" in told(0.7, 0.8)
    assert "the batch norm bn1" in told(0.7, 0.6, val_acc=[0.8, 0.92])
    assert told(0.7, 0.9, val_acc=[0.8, 0.92]) is None  # as well as it recorded
    assert told(0.7, 0.9, 0.3) is None  # what it was given before was right


@pytest.mark.parametrize("name", [
    "accumulate_grad_batches", "val_accumulation", "data_accesses", "val_loss", "grad_acc_steps", "val_acc5", "top5_acc",
    "Acc@5", "training_accuracy",
])  # fmt: skip
def test_what_is_no_accuracy_is_not_taken_for_one(name):
    assert doubt(run([0.4, 0.5], **{name: [1, 1]})) is None


@pytest.mark.parametrize(
    "name", ["val_acc", "eval_accuracy", "Acc@1", "test_top1", "val_top_1", "valid_acc1", "Accuracy"]
)
def test_an_accuracy_is_known_by_its_name(name):
    assert "was recorded as 0.92" in doubt(run([0.4, 0.5], **{name: [0.92, 0.92]}))


@pytest.fixture(scope="module")
def normed(tmp_path_factory):
    """A network with a batch norm, and one without, trained on digits of 8 x 8 pixels in 0..1."""
    folder = tmp_path_factory.mktemp("normed")
    data = load_images("digits", "train")
    x, y = torch.from_numpy(data.images[:, ::4, ::4, 0])[:, None].float() / 255, torch.from_numpy(data.labels)
    for kind in ("with", "without"):
        torch.manual_seed(1)
        norm = nn.BatchNorm2d(16) if kind == "with" else nn.Identity()
        model = nn.Sequential(nn.Conv2d(1, 16, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(576, 10))
        optimiser = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(6):
            for rows in torch.randperm(len(x)).split(20):
                optimiser.zero_grad()
                F.cross_entropy(model(x[rows]), y[rows]).backward()
                optimiser.step()
        torch.save(model, folder / f"{kind}.pt")
    tested = load_images("digits")
    pixels = tested.images[:, ::4, ::4, 0]
    np.savez(folder / "bytes.npz", images=pixels, labels=tested.labels)
    np.savez(folder / "floats.npz", x=(pixels[:, None] / 255 - 0.5) / 0.1, y=tested.labels)
    (folder / "net.py").write_text(
        "from torch import nn\n"
        "def make(norm):\n"
        "    norm = nn.BatchNorm2d(16) if norm else nn.Identity()\n"
        "    return nn.Sequential(nn.Conv2d(1, 16, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(576, 10))\n"
    )
    return folder


@pytest.mark.parametrize("kind", ["with", "without"])
def test_another_scaling_that_does_better_is_found_above_chance(normed, kind):
    def scaling(probe, normalize=None):
        arguments = {"model": f"{normed}/net.py:make", "model_arg": [f"norm={kind == 'with'}"], "normalize": normalize}
        return try_scaling(plan_extraction(normed / f"{kind}.pt", f"npz:{normed}/{probe}.npz", **arguments))

    assert scaling("bytes", "none") is None
    wrong = scaling("bytes", "0.8/0.1")
    assert wrong.better == "--normalize none"
    assert wrong.accuracy - 0.05 > wrong.usual > 0.2
    assert (wrong.samples, wrong.checkpoint) == (697, f"{kind}.pt")
    assert (wrong.misfit is not None) == (kind == "with")
    if kind == "with":  # the first batch norm sees ten times the contrast, whatever is known of other preparations
        assert wrong.misfit.layer == "1"
        assert wrong.misfit.spread == pytest.approx(10, rel=0.1)
        assert scaling("floats").misfit.spread == pytest.approx(10, rel=0.1)


def test_of_shards_that_with_the_last_checkpoint_tries_other_scalings(normed, tmp_path):
    for epoch in (1, 2):
        shutil.copy(normed / "without.pt", tmp_path / f"epoch_{epoch}.pt")
    options = {
        "model": f"{normed}/net.py:make",
        "model_arg": ["norm=False"],
        "normalize": "0.8/0.1",
        "on_duplicate": "keep",
    }
    plan = plan_extraction(tmp_path, f"npz:{normed}/bytes.npz", **options)
    for index in (1, 2):
        run_extraction(plan, tmp_path / "a.h5", shard=Shard(index, 2))
        (part,) = tmp_path.glob(f"a.h5.parts/epoch{index}*.h5")
        with open_activations(part) as file:
            assert (file.recording.provenance.scaling is not None) == (index == 2)
    merge(tmp_path / "a.h5")
    with open_activations(tmp_path / "a.h5") as file:
        assert file.recording.provenance.scaling.better == "--normalize none"


def test_hyperparameters_are_recorded_from_both_places(normed, tmp_path):
    copy = tmp_path / "epoch_1.pt"
    copy.write_bytes((normed / "with.pt").read_bytes())
    (tmp_path / "run.json").write_text(
        json.dumps({"seed": 1, "settings": {"lr": 0.1, "recipe": "plain", "schedule": "cosine"}})
    )
    options = {"model": f"{normed}/net.py:make", "model_arg": ["norm=True"], "trial": False}
    given = ["lr=1e-3", "seed=3", "nesterov=True"]
    plan = plan_extraction(tmp_path, f"npz:{normed}/floats.npz", settings=given, **options)
    provenance = plan.stored.recording.provenance
    assert provenance.settings == {"lr": 0.001, "schedule": "cosine", "nesterov": True}
    assert (provenance.training_seed, provenance.recipe) == (3, "plain")
    shown = CliRunner().invoke(main, ["inspect", str(tmp_path)]).stdout
    assert " ".join(shown.split("settings", 1)[1].splitlines()[0].split()) == "lr 0.1, recipe plain, schedule cosine"
    (tmp_path / "run.json").write_text(json.dumps({"settings": {"lr": [1]}}))
    with pytest.raises(UsageError, match=r"run\.json: the setting lr is no number"):
        plan_extraction(tmp_path, f"npz:{normed}/floats.npz", **options)
    with pytest.raises(UsageError, match="--set model: that is given by --model"):
        parse_settings(["model=a"])


NET = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.c1 = nn.Conv2d(3, 8, 3, padding=1); self.c2 = nn.Conv2d(8, 16, 3, padding=1); self.fc = nn.Linear(1024, 10)
    def forward(self, x):
        x = torch.relu(self.c2(torch.relu(self.c1(x))))
        return self.fc(nn.functional.adaptive_avg_pool2d(x, 8).flatten(1))
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two checkpoints of a network trained on digits of 8 x 8 pixels in 0..255, as many do."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "net.py").write_text(NET)
    names = {}
    exec(NET, names)
    data = load_images("digits", "train")
    x = torch.from_numpy(data.images[:, ::4, ::4]).permute(0, 3, 1, 2).float()
    y = torch.from_numpy(data.labels)
    torch.manual_seed(0)
    model = names["Net"]()
    optimiser = torch.optim.Adam(model.parameters(), 1e-3)
    (folder / "run").mkdir()
    for epoch in range(1, 41):
        for rows in torch.randperm(len(x)).split(100):
            optimiser.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimiser.step()
        if epoch in (1, 40):
            torch.save(model.state_dict(), folder / "run" / f"epoch_{epoch}.pth")
    return folder


def test_said_first_by_extract_and_again_by_all_that_follows(trained, tmp_path):
    def cli(*words):
        done = CliRunner().invoke(main, list(map(str, words)))
        assert done.exit_code == 0, done.output
        return done.stdout

    def extract(name, *more):
        (tmp_path / name).mkdir()
        words = ["--probe", "digits", "--model", trained / "net.py", "-o", tmp_path / name / "activations.h5", *more]
        said = cli("extract", trained / "run", *words).splitlines()
        assert said[-1] == str(tmp_path / name / "activations.h5")
        measured = cli("metrics", tmp_path / name / "activations.h5", "--nulls", 0)
        return said[:-1], measured

    wrong, measured = extract("wrong", "--normalize", "100/0.01")
    caution = "chance 0.1" in wrong[0] and "the images are probably not scaled as in training" in wrong[0]
    assert wrong[0].startswith("caution")
    assert caution
    assert "--normalize 0/0.00392157 --image-size 8 gives 0.9" in wrong[0]
    assert "probably not scaled" in measured
    right, measured = extract("right", "--normalize", "0/0.00392157", "--image-size", 8)
    assert [line.split()[0] for line in right] == ["result", "first", "best", "last"]
    assert "caution" not in measured
    with posthoc.open_activations(tmp_path / "right" / "activations.h5") as file:
        assert file.accuracy[1] > 0.85
        assert right[0].startswith(
            f"result  probe accuracy {file.accuracy[1]:.4f} at the last checkpoint (epoch 40); chance 0.1"
        )
        assert right[3] == f"last    epoch 40: loss {file.loss[1]:.4f}, accuracy {file.accuracy[1]:.4f}"
    side_by_side = cli("compare", tmp_path / "*" / "metrics.json")
    assert "wrong: probe accuracy" in side_by_side
    assert "saw the same probe scaled otherwise: mean 0, 0, 0, std 0.003922" in side_by_side
    told = json.loads(cli("compare", "--json", tmp_path / "*" / "metrics.json"))["runs"]
    assert [row["doubt"] is None for row in told] == [True, False]
    page = tmp_path / "report.html"
    cli("report", tmp_path / "wrong" / "metrics.json", "-o", page)
    assert "Caution: probe accuracy" in page.read_text()


def test_shards_say_it_when_they_are_merged(trained, tmp_path):
    words = ["extract", trained / "run", "--probe", "digits", "--model", trained / "net.py", "--normalize", "100/0.01"]
    for k in (1, 2):
        done = CliRunner().invoke(main, list(map(str, [*words, "-o", tmp_path / "a.h5", "--shard", f"{k}/2"])))
        assert done.stdout == f"{tmp_path}/a.h5.parts\n"
    assert "caution" in CliRunner().invoke(main, ["merge", str(tmp_path / "a.h5")]).stdout


def test_the_share_of_a_class_whose_label_is_a_huge_number():
    assert largest_share(np.array([2**62, 0, 0, -1])) == 0.5
