"""What images a network takes, and what is said of one that takes none."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from posthoc.errors import PosthocError
from posthoc.replay.models import Model
from posthoc.replay.probes.fitting import fit_images


def fitted(module, wanted=None, height=32):
    return fit_images(Model("net", "given", module.eval()), wanted, height)[:2]


class Attention(nn.Module):
    """Its convolution of two channels is declared first, and runs on what it made itself."""

    def __init__(self, channels=3):
        super().__init__()
        self.att = nn.Conv2d(2, 1, 7, padding=3)
        self.conv = nn.Conv2d(channels, 8, 3)
        self.fc = nn.Linear(8, 10)

    def forward(self, x):
        x = x * torch.sigmoid(self.att(torch.cat([x.mean(1, True), x.amax(1, True)], 1)))
        return self.fc(F.relu(self.conv(x)).mean((2, 3)))


class Without(nn.Module):
    """Neither convolution nor linear layer."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return self.norm(x).mean((2, 3)) * self.scale


class Rows(nn.Module):
    """A recurrent network that reads an image row by row, and says so itself."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(28, 16, batch_first=True)
        self.fc = nn.Linear(16, 10)

    def forward(self, x):
        return self.fc(self.rnn(x.squeeze(1))[0][:, -1])


def flat(features):
    return nn.Sequential(nn.Flatten(), nn.Linear(features, 20), nn.ReLU(), nn.Linear(20, 10))


def cnn(features, channels=3):
    return nn.Sequential(
        nn.Conv2d(channels, 8, 5), nn.MaxPool2d(2), nn.Conv2d(8, 4, 5), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(features, 10)
    )  # fmt: skip


@pytest.mark.parametrize(
    ("module", "height", "takes"),
    [
        (Attention(), 32, (32, 3)),
        (Attention(1), 32, (32, 1)),
        (Without(), 32, (32, 3)),
        (Rows(), 28, (28, 1)),
        (flat(3072), 32, (32, 3)),
        (flat(784), 32, (28, 1)),
        (flat(300), 32, (10, 3)),
        (cnn(100), 32, (32, 3)),
        (cnn(64, 1), 32, (28, 1)),
        (cnn(4 * 21 * 21), 32, (96, 3)),
        (cnn(4 * 17 * 17), 32, (80, 3)),
    ],
)
def test_size_and_channels_are_those_that_it_runs_on(module, height, takes):
    side, channels = fitted(module, height=height)
    assert channels == takes[1]
    assert side == takes[0] or (side // 4 == takes[0] // 4 and takes[0] == 80)


class TwoInputs(nn.Module):
    def forward(self, x, t):
        return x + t


class Fixed(nn.Module):
    """Made for batches of 64."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3072, 10)

    def forward(self, x):
        return self.fc(x.view(64, 3072))


class Own(nn.Module):
    """A linear layer of the user's own, of 60 features."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(5, 60))

    def forward(self, x):
        return x @ self.weight.T


TABULAR = nn.Sequential(nn.Linear(60, 45), nn.Tanh(), nn.Linear(45, 5))


@pytest.mark.parametrize(
    ("module", "wanted", "message"),
    [
        (TABULAR, None, "takes vectors of 60 features; an image of 32 x 32 x 3 has 3072 pixels"),
        (TABULAR, 60, "takes vectors of 60 features; an image of 60 x 60 x 3 has 10800 pixels"),
        (nn.Sequential(nn.LayerNorm(60), nn.Linear(60, 5)), 60, "takes vectors of 60 features"),
        (nn.Sequential(Own(), nn.ReLU()), 60, "takes vectors; an image of 60 x 60 x 3"),
        (flat(61), None, "takes 61 numbers, as many as no square image in colour or grey has pixels"),
        (TwoInputs(), None, r"takes 2 inputs \(x, t\); pass --probe npz:FILE with arrays of these names"),
        (nn.Sequential(nn.Embedding(50, 8), nn.Flatten(), nn.Linear(8, 2)), None, "takes tokens"),
        (nn.Sequential(nn.Conv1d(4, 8, 3), nn.ReLU()), None, "takes sequences of 4 channels"),
        (nn.Sequential(nn.Conv3d(1, 8, 3), nn.ReLU()), None, "takes volumes of 1 channel"),
        (nn.Sequential(nn.LSTM(12, 8)), None, "takes sequences of 12 features"),
        (nn.Sequential(nn.Conv2d(5, 8, 3), nn.ReLU()), None, "takes images of 5 channels; pictures have 3, or 1 as grey: pass --probe npz:FILE"),
        (Fixed(), None, r"cannot take images of 32 x 32 x 3: RuntimeError: shape '\[64, 3072\]' is invalid"),
        (cnn(7), None, "cannot take images of 32 x 32 x 3 in 5 .*if it was trained on images of another size, pass --image-size"),
    ],
)  # fmt: skip
def test_what_takes_no_images_is_refused_in_its_own_terms(module, wanted, message):
    with pytest.raises(PosthocError, match=message) as raised:
        fitted(module, wanted)
    assert ("--image-size" in str(raised.value)) == ("--image-size" in message)
