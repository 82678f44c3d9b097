"""A small run to try everything on: a network trained on the bundled digits, its checkpoints saved as anybody's loop saves them."""

from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from torch.nn import functional as F

from posthoc.files import replacing
from posthoc.replay.probes.images import NORMALIZATIONS, load_images

NETWORK = "shufflenet_v2_x0_5"
BATCH, RATE, DECAY = 50, 0.05, 5e-4


def train_digits(folder: Path, epochs: int, progress: Callable[[int, int, object], None] | None = None) -> None:
    """Train and save the weights before training and after every epoch, as FOLDER/epoch_0.pt, epoch_1.pt, ...

    By stochastic gradient descent on the first 1,000 digits; the probe `digits` has the others.
    """
    data = load_images("digits", "train")
    mean, std = (torch.tensor(row).view(3, 1, 1) for row in NORMALIZATIONS["digits"])
    x = (torch.from_numpy(data.images).permute(0, 3, 1, 2).float() / 255 - mean) / std
    y = torch.from_numpy(data.labels)
    torch.manual_seed(0)
    network = torchvision.models.get_model(NETWORK, num_classes=data.classes)
    optimizer = torch.optim.SGD(network.parameters(), RATE, momentum=0.9, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for epoch in range(epochs + 1):
        total = 0.0
        for rows in torch.randperm(len(x)).split(BATCH) if epoch else ():
            loss = F.cross_entropy(network(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(rows)
        if epoch:
            schedule.step()
        numbers = {"train_loss": total / len(x)} if epoch else {}
        with replacing(folder / f"epoch_{epoch}.pt") as temporary:
            torch.save(
                {"epoch": epoch, "step": epoch * len(x) // BATCH, "state_dict": network.state_dict(), **numbers},
                temporary,
            )
        if progress:
            progress(epoch + 1, epochs + 1, f"epoch {epoch}")
