"""Small training runs of many kinds, seconds each: what `posthoc check` must be silent about, and what faults are planted in."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

State = dict[str, Tensor]
LINEAR = tuple(range(0, 241, 12))
EVERY_TENTH = tuple(range(0, 301, 10))
LOG = (0, *(2**k for k in range(9)), 384)
PYTHIA = (0, *(2**k for k in range(5)), *range(25, 276, 25))
LATE = (0, 1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256, 384)


@dataclass
class Run:
    """Checkpoints of one training: steps, weights, and the exponential moving average of the weights at the same steps."""

    steps: list[int] = field(default_factory=list)
    states: list[State] = field(default_factory=list)
    averages: list[State] = field(default_factory=list)


@cache
def digits() -> tuple[Tensor, Tensor]:
    """The bundled digits, 797 images of 8 x 8 in [0, 1], and their labels."""
    with np.load(Path(__file__).resolve().parent.parent / "data" / "digits.npz") as file:
        names = {name.lower(): name for name in file.files}
        x, y = (
            file[next(names[key] for key in keys if key in names)]
            for keys in (("x_test", "images", "x"), ("y_test", "labels", "y"))
        )
    images = torch.as_tensor(np.asarray(x, np.float32)) / float(np.max(x))
    images = images.reshape(len(images), *images.shape[1:3], -1).mean(-1)
    return F.adaptive_avg_pool2d(images[:, None], 8), torch.as_tensor(np.asarray(y, np.int64))


@cache
def text() -> Tensor:
    """A text of 64 letters, made by a Markov chain with rare letters, the same every time."""
    random = np.random.default_rng(0)
    table = random.dirichlet(np.full(64, 0.05), 64) * 0.9 + 0.1 * (1 / np.arange(1, 65)) / np.sum(1 / np.arange(1, 65))
    sums = np.cumsum(table / table.sum(1, keepdims=True), 1)
    letters = [0]
    for draw in random.random(20_000):
        letters.append(min(int(np.searchsorted(sums[letters[-1]], draw)), 63))
    return torch.tensor(letters)


class Letters(nn.Module):
    """A language model of letters: embedding, layers, and a linear layer onto the letters."""

    def __init__(self, body: str, width: int = 24) -> None:
        super().__init__()
        self.embed = nn.Embedding(64, width)
        self.place = nn.Parameter(0.02 * torch.randn(32, width))
        self.body: Any
        if body == "attention":
            layer = nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, batch_first=True, norm_first=True)
            self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        else:
            recurrent = {"gru": nn.GRU, "lstm": nn.LSTM, "rnn": nn.RNN}.get(body)
            self.body = (
                recurrent(width, width, batch_first=True)
                if recurrent
                else nn.Sequential(nn.Linear(width, width), nn.Tanh())
            )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 64)

    def forward(self, letters: Tensor) -> Tensor:
        x = self.embed(letters) + self.place[: letters.shape[1]]
        if isinstance(self.body, nn.TransformerEncoder):
            x = self.body(x, mask=nn.Transformer.generate_square_subsequent_mask(x.shape[1]))
        else:
            x = self.body(x)
            x = x[0] if isinstance(x, tuple) else x
        logits: Tensor = self.head(self.norm(x))
        return logits


def mlp(width: int = 48, dropout: float = 0.0) -> nn.Module:
    """Two hidden layers."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
    )  # fmt: skip


def cnn(normalise: bool = False) -> nn.Module:
    """Three convolutions, with batch normalisation or without."""
    layers: list[nn.Module] = []
    for inside, outside in ((1, 12), (12, 24), (24, 24)):
        layers += [nn.Conv2d(inside, outside, 3, padding=1, bias=not normalise)]
        layers += [nn.BatchNorm2d(outside)] if normalise else []
        layers += [nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(96, 10))


class Autoencoder(nn.Module):
    """Images through 12 numbers and back."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 40), nn.GELU(), nn.Linear(40, 12))
        self.decoder = nn.Sequential(nn.Linear(12, 40), nn.GELU(), nn.Linear(40, 64))

    def forward(self, images: Tensor) -> Tensor:
        values: Tensor = self.decoder(self.encoder(images))
        return values


class Residual(nn.Module):
    """Convolutions around which the input goes, with group or layer normalisation."""

    def __init__(self, width: int = 16, blocks: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.GroupNorm(4, width), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1))
            for _ in range(blocks)
        )
        self.head = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        for block in self.blocks:
            x = x + block(x)
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def depthwise() -> nn.Module:
    """Convolutions in each channel by itself, then between channels, with batch normalisation."""
    layers: list[nn.Module] = [nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    for inside, outside in ((16, 24), (24, 32)):
        layers += [nn.Conv2d(inside, inside, 3, padding=1, groups=inside, bias=False), nn.BatchNorm2d(inside)]
        layers += [nn.ReLU(), nn.Conv2d(inside, outside, 1, bias=False), nn.BatchNorm2d(outside), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def normalised() -> nn.Module:
    """Three hidden layers with layer normalisation."""
    layers: list[nn.Module] = [nn.Flatten()]
    for inside, outside in ((64, 40), (40, 40), (40, 40)):
        layers += [nn.Linear(inside, outside), nn.LayerNorm(outside), nn.SiLU()]
    return nn.Sequential(*layers, nn.Linear(40, 10))


@dataclass(frozen=True)
class Recipe:
    """How a run is trained. rate: at a share of the training; kept: what is saved of weights and average.

    noise: the share of labels drawn at random; clip: the largest norm of gradients; warm: steps of AdamW that are
    trained before the first that is saved, as before a fine-tuning.
    """

    network: Callable[[], nn.Module]
    optimiser: Callable[[list[nn.Parameter]], torch.optim.Optimizer]
    rate: Callable[[float], float] = lambda share: 1.0
    steps: tuple[int, ...] = LINEAR
    batch: int = 32
    decay: float = 0.98
    kept: str = "weights"
    unfreezing: bool = False
    half: bool = False
    noise: float = 0.0
    clip: float = 0.0
    warm: int = 0


def cosine(share: float) -> float:
    """Down to zero."""
    return 0.5 * (1 + float(np.cos(np.pi * share)))


def warm(share: float) -> float:
    """Up from zero over the first twentieth, then down as a cosine."""
    return share / 0.05 if share < 0.05 else cosine((share - 0.05) / 0.95)


def restarts(share: float) -> float:
    """Four cosines."""
    return cosine((4 * share) % 1)


def stairs(share: float) -> float:
    """A tenth at a half, a hundredth at three quarters."""
    return 1.0 if share < 0.5 else 0.1 if share < 0.75 else 0.01


def cycles(share: float) -> float:
    """Five triangles."""
    place = (5 * share) % 1
    return 0.05 + 1.9 * min(place, 1 - place)


def plateau(share: float) -> float:
    """Up over a tenth, constant, then down to zero over the last fifth."""
    return min(share / 0.1, 1.0, (1 - share) / 0.2)


def falling(share: float) -> float:
    """As the inverse square root of the step, after a warm-up."""
    return float(min(share / 0.04, (0.04 / max(share, 1e-9)) ** 0.5))


def decaying(share: float) -> float:
    """Exponentially to a fiftieth."""
    return float(0.02**share)


def one_cycle(share: float) -> float:
    """From a twenty-fifth up over three tenths, then down to nothing."""
    return 0.04 + 0.96 * share / 0.3 if share < 0.3 else cosine((share - 0.3) / 0.7)


def sgd(rate: float, momentum: float = 0.0, weight_decay: float = 0.0, nesterov: bool = False) -> Any:
    """Stochastic gradient descent."""
    return lambda p: torch.optim.SGD(p, rate, momentum, weight_decay=weight_decay, nesterov=nesterov, foreach=True)


def named(name: str, rate: float, **options: Any) -> Any:
    """Another of torch's optimisers."""
    return lambda p: getattr(torch.optim, name)(p, rate, **options)


def adamw(rate: float, weight_decay: float = 0.01) -> Any:
    """Adam with decoupled weight decay."""
    return lambda p: torch.optim.AdamW(p, rate, weight_decay=weight_decay, foreach=True)


def letters(body: str) -> Callable[[], nn.Module]:
    """A language model."""
    return lambda: Letters(body)


CALIBRATION = {
    "mlp sgd": Recipe(mlp, sgd(0.1)),
    "mlp momentum cosine": Recipe(mlp, sgd(0.05, 0.9), cosine),
    "cnn adamw cosine": Recipe(cnn, adamw(3e-3), cosine),
    "cnn batch norm momentum stairs": Recipe(lambda: cnn(True), sgd(0.05, 0.9, 5e-4), stairs),
    "transformer adamw warm pythia": Recipe(letters("attention"), adamw(3e-3), warm, PYTHIA, 8),
    "transformer adamw constant log": Recipe(letters("attention"), adamw(2e-3), steps=LOG, batch=8),
    "gru adamw": Recipe(letters("gru"), adamw(5e-3), cosine, batch=8),
    "mlp adamw restarts": Recipe(mlp, adamw(5e-3), restarts),
    "mlp average": Recipe(mlp, sgd(0.1), kept="average"),
    "mlp plateau": Recipe(mlp, sgd(0.5), batch=4),
    "bag sgd": Recipe(letters("bag"), sgd(0.5), batch=8),
    "cnn full batch": Recipe(cnn, sgd(0.1, 0.9), batch=797),
    "cnn sgd": Recipe(cnn, sgd(0.1)),
    "cnn momentum cosine": Recipe(cnn, sgd(0.05, 0.9), cosine),
    "mlp adamw constant": Recipe(mlp, adamw(2e-3)),
    "mlp dropout adamw warm": Recipe(lambda: mlp(64, 0.3), adamw(4e-3, 0.1), warm),
    "transformer adamw cosine log": Recipe(letters("attention"), adamw(3e-3), warm, LOG, 8),
    "transformer sgd momentum": Recipe(letters("attention"), sgd(0.1, 0.9), warm, PYTHIA, 8),
    "transformer adamw late steps": Recipe(letters("attention"), adamw(2e-3), steps=LATE, batch=8),
    "gru momentum": Recipe(letters("gru"), sgd(0.3, 0.9), batch=8),
    "cnn adamw restarts": Recipe(cnn, adamw(4e-3), restarts),
    "cnn momentum cycles": Recipe(cnn, sgd(0.05, 0.9), cycles),
    "cnn batch norm adamw cosine": Recipe(lambda: cnn(True), adamw(5e-3), cosine),
    "cnn batch norm large rate": Recipe(lambda: cnn(True), sgd(0.3, 0.9, 5e-4), cosine),
    "transformer average": Recipe(letters("attention"), adamw(3e-3), warm, PYTHIA, 8, kept="average"),
    "cnn mean of all": Recipe(cnn, sgd(0.1, 0.9), kept="mean"),
    "cnn unfreezing": Recipe(cnn, adamw(2e-3), unfreezing=True),
    "bag adamw": Recipe(letters("bag"), adamw(3e-3), batch=8),
    "mlp rmsprop": Recipe(mlp, lambda p: torch.optim.RMSprop(p, 1e-3), cosine),
    "cnn bfloat16": Recipe(cnn, sgd(0.05, 0.9), cosine, half=True),
    "mlp full batch": Recipe(mlp, sgd(0.2, 0.9), batch=797),
}  # fmt: skip
"""By which the thresholds were chosen."""
REPORTED = {
    "autoencoder adam": Recipe(Autoencoder, named("Adam", 3e-3)),
    "residual nesterov cosine": Recipe(Residual, sgd(0.05, 0.9, nesterov=True), cosine),
    "mlp nadam": Recipe(mlp, named("NAdam", 1e-3), steps=EVERY_TENTH),
    "mlp adagrad": Recipe(mlp, named("Adagrad", 2e-2), steps=LOG),
    "lstm adamw one cycle": Recipe(letters("lstm"), adamw(1e-2), one_cycle, batch=8),
    "transformer adamw falling pythia": Recipe(letters("attention"), adamw(4e-3, 0.1), falling, PYTHIA, 8),
    "cnn sgd heavy decay": Recipe(cnn, sgd(0.1, 0.9, 5e-3), stairs),
    "mlp layer norm large momentum": Recipe(normalised, sgd(0.05, 0.97), steps=EVERY_TENTH),
    "depthwise rmsprop decaying": Recipe(depthwise, named("RMSprop", 2e-3), decaying),
    "rnn sgd clipped": Recipe(letters("rnn"), sgd(0.5), batch=8, clip=1.0),
    "residual adamw bfloat16": Recipe(Residual, adamw(2e-3), half=True),
    "transformer mean log": Recipe(letters("attention"), adamw(2e-3), steps=LOG, batch=8, kept="mean"),
    "mlp noisy labels": Recipe(mlp, sgd(0.1, 0.9), noise=0.5, steps=EVERY_TENTH),
    "cnn radam late steps": Recipe(cnn, named("RAdam", 3e-3), steps=LATE),
    "gru sgd stairs": Recipe(letters("gru"), sgd(0.5, 0.9), stairs, PYTHIA, 8),
    "mlp adamw plateau": Recipe(lambda: mlp(64), adamw(3e-3, 0.1), plateau),
    "cnn fine-tuned": Recipe(cnn, sgd(0.01, 0.9), cosine, warm=100),
    "autoencoder average": Recipe(Autoencoder, named("Adam", 3e-3), cosine, EVERY_TENTH, kept="average", decay=0.9),
}  # fmt: skip
"""Of other networks, optimisers and rates; looked at once, when the rates were measured."""


def train(recipe: Recipe, seed: int, first: int | None = None) -> Run:
    """One run; `first`: the seed of its initial weights, where that is another than that of its batches."""
    torch.manual_seed(seed if first is None else first)
    network = recipe.network()
    if recipe.warm:
        _prepare(network, recipe)
    torch.manual_seed(1000 + seed)
    optimiser = recipe.optimiser(list(network.parameters()))
    base = [group["lr"] for group in optimiser.param_groups]
    state = network.state_dict()
    names = [name for name, tensor in state.items() if tensor.is_floating_point()]
    weights = [state[name] for name in names]
    average = [tensor.clone() for tensor in weights]
    run, last = Run(), recipe.steps[-1]
    for step in range(last + 1):
        share = 1 / (step + 1) if recipe.kept == "mean" or not step else 1 - recipe.decay
        torch._foreach_lerp_(average, weights, share)
        if step in recipe.steps:
            averaged = {**state, **dict(zip(names, average, strict=True))}
            run.steps.append(step)
            run.states.append(_saved(state if recipe.kept == "weights" else averaged, recipe.half))
            run.averages.append(_saved(averaged, recipe.half))
        for group, rate in zip(optimiser.param_groups, base, strict=True):
            group["lr"] = rate * recipe.rate(step / last)
        if recipe.unfreezing:
            parts = list(network.parameters())
            thawed = 2 + int(4 * step / last) * 2
            for number, parameter in enumerate(parts):
                parameter.requires_grad_(number >= len(parts) - thawed)
        optimiser.zero_grad()
        _loss(network, recipe.batch, recipe.noise).backward()
        if recipe.clip:
            nn.utils.clip_grad_norm_(network.parameters(), recipe.clip)
        optimiser.step()
    return run


def _prepare(network: nn.Module, recipe: Recipe) -> None:
    """Train before anything is saved."""
    optimiser = torch.optim.AdamW(network.parameters(), 3e-3)
    for _ in range(recipe.warm):
        optimiser.zero_grad()
        _loss(network, recipe.batch).backward()
        optimiser.step()


def _saved(state: dict[str, Tensor], half: bool) -> State:
    kind = torch.bfloat16 if half else torch.float32
    return {
        name: tensor.to(kind if tensor.is_floating_point() else tensor.dtype).clone().contiguous()
        for name, tensor in state.items()
    }


def _loss(network: nn.Module, batch: int, noise: float = 0.0) -> Tensor:
    if isinstance(network, Letters):
        starts = torch.randint(len(text()) - 25, (batch,))
        rows = text()[starts[:, None] + torch.arange(25)]
        return F.cross_entropy(network(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
    images, labels = digits()
    chosen = torch.randperm(len(images))[:batch]
    if isinstance(network, Autoencoder):
        return F.mse_loss(network(images[chosen]), images[chosen].flatten(1))
    targets = labels[chosen]
    if noise:
        targets = torch.where(torch.rand(len(chosen)) < noise, torch.randint(10, targets.shape), targets)
    return F.cross_entropy(network(images[chosen]), targets)
