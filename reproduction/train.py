"""Train one network by a named recipe and save nothing but checkpoints.

Writes OUT/run.json (what was trained, on what, how) and one OUT/epoch-NNN.safetensors per epoch, epoch 0 being the
untrained weights, each with its epoch, step, train_loss, val_loss and val_acc as metadata. Started again on the same
OUT it goes on after the last complete checkpoint and ends in the same weights.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from safetensors import safe_open
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor, nn
from torch.nn import functional as F

from posthoc.errors import PosthocError
from posthoc.files import replacing
from posthoc.replay.checkpoint import read_weights
from posthoc.replay.plan import find_device
from posthoc.replay.probes.images import NORMALIZATIONS, Images, load_images
from posthoc.shown import shown


@dataclass(frozen=True)
class Recipe:
    """How one network is trained; every recipe is SGD with momentum 0.9, validated on the test images."""

    model: str
    dataset: str
    lr: float
    weight_decay: float
    batch: int = 512
    flip: bool = True
    crop: bool = False  # reflect-pad by 4, then a random crop of the original size
    plateau: bool = True  # halve lr when the validation loss has not improved for 5 epochs
    patience: int = 10  # stop when it has not improved for so many
    epochs: int = 100
    image_size: int | None = None  # None: as stored
    pretrained: bool = False
    mixed_precision: bool = False


# The nine runs of arXiv 2604.09716, and a small one on the bundled digits.
RECIPES = {
    "resnet18-cifar10": Recipe("resnet18", "cifar10", 0.1, 5e-4),
    "resnet34-cifar10": Recipe("resnet34", "cifar10", 0.1, 5e-4),
    "resnet152-cifar10": Recipe("resnet152", "cifar10", 0.1, 5e-4),
    "densenet121-cifar10": Recipe("densenet121", "cifar10", 0.1, 1e-4),
    "mobilenet_v2-cifar10": Recipe("mobilenet_v2", "cifar10", 0.05, 4e-5),
    "vit_b_16-cifar10": Recipe(
        "vit_b_16", "cifar10", 1e-4, 1e-4,
        batch=256, plateau=False, patience=7, image_size=224, pretrained=True, mixed_precision=True,
    ),
    "resnet18-cifar100": Recipe("resnet18", "cifar100", 0.1, 5e-4, crop=True),
    "resnet50-cifar100": Recipe("resnet50", "cifar100", 0.1, 5e-4, crop=True),
    "resnet101-cifar100": Recipe("resnet101", "cifar100", 0.1, 5e-4, crop=True),
    "vgg16_bn-cifar100": Recipe("vgg16_bn", "cifar100", 0.01, 5e-4, crop=True),
    "digits": Recipe("shufflenet_v2_x1_0", "digits", 0.05, 5e-4, batch=50, flip=False, epochs=12),
}  # fmt: skip

MOMENTUM = 0.9
RESUME = ".resume.pt"


class Batches:
    """One split on the device: uint8 pixels stay there, each batch is augmented and normalised there."""

    def __init__(self, data: Images, recipe: Recipe, device: torch.device) -> None:
        self.images = torch.from_numpy(data.images).to(device).permute(0, 3, 1, 2).contiguous()
        self.labels = torch.from_numpy(data.labels).to(device)
        self.recipe = recipe
        statistics = NORMALIZATIONS[recipe.dataset]
        self.mean, self.std = (torch.tensor(row, device=device).view(3, 1, 1) for row in statistics)

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Images [B, 3, S, S] and labels [B]; augmented where a generator is given."""
        x = (self.images[rows].float().div_(255) - self.mean) / self.std
        if generator is not None and self.recipe.crop:
            x = random_crop(x, generator)
        if generator is not None and self.recipe.flip:
            mask = torch.rand(len(x), generator=generator).to(x.device) < 0.5
            x = torch.where(mask.view(-1, 1, 1, 1), x.flip(3), x)
        if self.recipe.image_size:
            x = F.interpolate(x, size=(self.recipe.image_size,) * 2, mode="bilinear", antialias=True)
        return x.contiguous(memory_format=torch.channels_last), self.labels[rows]


def random_crop(x: Tensor, generator: torch.Generator, pad: int = 4) -> Tensor:
    """Reflect-pad by `pad`, then cut each image at an offset of its own."""
    count, _, height, width = x.shape
    padded = F.pad(x, (pad,) * 4, mode="reflect")
    down, right = torch.randint(2 * pad + 1, (2, count, 1), generator=generator).to(x.device)
    rows = (down + torch.arange(height, device=x.device)).view(count, 1, height, 1)
    columns = (right + torch.arange(width, device=x.device)).view(count, 1, 1, width)
    image = torch.arange(count, device=x.device).view(count, 1, 1, 1)
    channel = torch.arange(3, device=x.device).view(1, 3, 1, 1)
    return padded[image, channel, rows, columns]


def build(recipe: Recipe, classes: int, download: bool, given: Path | None) -> nn.Module:
    """The recipe's torchvision model with `classes` outputs; pretrained weights keep all but the last layer."""
    if given:
        return with_new_head(load_given(recipe, given), classes)
    if not recipe.pretrained:
        fresh: nn.Module = torchvision.models.get_model(recipe.model, weights=None, num_classes=classes)
        return fresh
    weights = torchvision.models.get_model_weights(recipe.model).DEFAULT
    cached = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rsplit("/", 1)[1]
    if not (download or cached.is_file()):
        raise PosthocError(
            f"The recipe starts from ImageNet weights: put {weights.url} at {cached}, or pass --download or --weights."
        )
    return with_new_head(torchvision.models.get_model(recipe.model, weights=weights), classes)


def load_given(recipe: Recipe, path: Path) -> nn.Module:
    """The recipe's model with the weights of a checkpoint in any form that posthoc reads."""
    weights = read_weights(path)
    outputs = [tensor.shape[0] for name, tensor in weights.items() if name.endswith(".weight") and tensor.ndim == 2][-1]
    model: nn.Module = torchvision.models.get_model(recipe.model, weights=None, num_classes=outputs)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise PosthocError(f"{path} holds no {recipe.model}: {str(error).splitlines()[1].strip()}") from error
    return model


def with_new_head(model: nn.Module, classes: int) -> nn.Module:
    """The model with a fresh last layer of `classes` outputs."""
    name, head = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)][-1]
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, nn.Linear(head.in_features, classes))
    return model


def evaluate(model: nn.Module, data: Batches, recipe: Recipe) -> tuple[float, float]:
    """Mean loss and accuracy (0..1) over all of `data`."""
    model.eval()
    loss = right = 0.0
    with torch.inference_mode(), precision(recipe, data.labels.device):
        for rows in torch.arange(len(data)).split(recipe.batch):
            x, y = data.take(rows)
            scores = model(x).float()
            loss += F.cross_entropy(scores, y, reduction="sum").item()
            right += (scores.argmax(1) == y).sum().item()
    return loss / len(data), right / len(data)


def precision(recipe: Recipe, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=recipe.mixed_precision)


def train_epoch(model: nn.Module, optimizer: torch.optim.Optimizer, data: Batches, recipe: Recipe, seed: int) -> float:
    """One pass in an order drawn from `seed`; the mean training loss."""
    model.train()
    torch.manual_seed(seed)  # dropout
    generator = torch.Generator().manual_seed(seed)
    total = 0.0
    for rows in torch.randperm(len(data), generator=generator).split(recipe.batch):
        x, y = data.take(rows, generator)
        with precision(recipe, data.labels.device):
            scores = model(x)
        loss = F.cross_entropy(scores.float(), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item() * len(rows)
    return total / len(data)


def save(model: nn.Module, out: Path, epoch: int, numbers: dict[str, float]) -> None:
    metadata = {"format": "pt", "epoch": str(epoch)} | {name: repr(value) for name, value in numbers.items()}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with replacing(checkpoint(out, epoch)) as path:
        path.write_bytes(to_bytes(tensors, metadata))  # save_file would leave it readable by its owner alone


def checkpoint(out: Path, epoch: int) -> Path:
    return out / f"epoch-{epoch:03d}.safetensors"


def claim(out: Path, run: dict[str, Any]) -> None:
    """Write run.json, or check that the one there describes this very run."""
    path = out / "run.json"
    if not path.exists():
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(run, indent=2) + "\n")
        return
    there = json.loads(path.read_text())
    different = [key for key in run if run[key] != there.get(key) and key != "versions"]
    if different:
        what = ", ".join(f"{key} {there.get(key)!r} there, {run[key]!r} asked" for key in different)
        raise PosthocError(f"{out} holds another run ({what}); choose another --out.")


@dataclasses.dataclass
class Progress:
    """How far a training is: epochs done, the optimiser's steps, the best validation loss, and for how many epochs it
    has been that."""

    epoch: int = 0
    step: int = 0
    best: float = float("inf")
    since_best: int = 0


def train(name: str, recipe: Recipe, args: argparse.Namespace) -> None:
    """Train a recipe in `args.out`, from the start or from where it was interrupted."""
    device = find_device(args.device)
    options = {"root": args.data_root, "download": args.download, "size": recipe.image_size}
    data = {split: load_images(args.data or recipe.dataset, split, **options) for split in ("train", "test")}
    claim(args.out, description(name, recipe, data["train"], args))
    training, test = (Batches(data[split], recipe, device) for split in ("train", "test"))

    torch.manual_seed(args.seed)
    classes = data["train"].classes
    model = build(recipe, classes, args.download, args.weights).to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), recipe.lr, MOMENTUM, weight_decay=recipe.weight_decay)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=5)
    if (args.out / RESUME).exists():
        progress = resume(args.out, model, optimizer, scheduler, device)
    else:
        progress = Progress()
        val_loss, val_acc = evaluate(model, test, recipe)
        save(model, args.out, 0, {"step": 0, "val_loss": val_loss, "val_acc": val_acc})
        print(f"epoch   0  val_loss {val_loss:.4f}  val_acc {val_acc:.4f}", flush=True)

    for epoch in range(progress.epoch + 1, args.epochs + 1):
        if progress.since_best >= recipe.patience:
            print(f"stopped: the validation loss has not improved for {recipe.patience} epochs")
            break
        train_loss = train_epoch(model, optimizer, training, recipe, seed=args.seed * 1_000_003 + epoch)
        val_loss, val_acc = evaluate(model, test, recipe)
        if recipe.plateau:
            scheduler.step(val_loss)
        since_best = 0 if val_loss < progress.best else progress.since_best + 1
        step = progress.step + -(-len(training) // recipe.batch)
        progress = Progress(epoch, step, min(progress.best, val_loss), since_best)
        numbers = {"step": step, "train_loss": train_loss, "val_loss": val_loss, "val_acc": val_acc}
        save(model, args.out, epoch, numbers)
        # After the checkpoint: killed in between, the epoch is trained again from the one before, to the same weights.
        with replacing(args.out / RESUME) as path:
            state: dict[str, Any] = {"epoch": epoch, "best": progress.best, "since_best": since_best}
            state |= {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
            torch.save(state, path)
        losses = f"train_loss {train_loss:.4f}  val_loss {val_loss:.4f}"
        print(f"epoch {epoch:3d}  {losses}  val_acc {val_acc:.4f}", flush=True)


def description(name: str, recipe: Recipe, images: Images, args: argparse.Namespace) -> dict[str, Any]:
    """What run.json says of a run."""
    statistics = NORMALIZATIONS[recipe.dataset]
    return {
        "recipe": name,
        **dataclasses.asdict(recipe),
        "dataset": args.data or recipe.dataset,
        "num_classes": images.classes,
        "normalization": {"mean": list(statistics.mean), "std": list(statistics.std)},
        "train_images": len(images),
        "train_sha256": images.sha256,
        "seed": args.seed,
        **({"weights": str(args.weights)} if args.weights else {}),
        "versions": {"torch": torch.__version__, "torchvision": torchvision.__version__},
    }


def resume(
    out: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.ReduceLROnPlateau,
    device: torch.device,
) -> Progress:
    """Put everything back to where the last epoch ended."""
    state = torch.load(out / RESUME, map_location=device, weights_only=True)
    last = checkpoint(out, state["epoch"])
    model.load_state_dict(load_file(last, device=str(device)))
    optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    with safe_open(last, "pt") as file:
        step = int(file.metadata()["step"])
    print(f"{out}: going on after epoch {state['epoch']}", flush=True)
    return Progress(state["epoch"], step, state["best"], state["since_best"])


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=RECIPES, help="which run")
    parser.add_argument("--data", help="cifar10, cifar100, digits, npz:FILE or imagefolder:DIR (default: the recipe's)")
    parser.add_argument("--data-root", type=Path, help="where data sets lie (default: POSTHOC_DATA, else data/)")
    parser.add_argument("--download", action="store_true", help="fetch the data set (and pretrained weights) if absent")
    parser.add_argument(
        "--weights", type=Path, help="start from the weights of this checkpoint, but for the last layer"
    )
    parser.add_argument("--bfloat16", action="store_true", help="train in bfloat16 where that is safe (autocast)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoints")
    parser.add_argument("--seed", type=int, default=42, help="default: 42")
    parser.add_argument("--epochs", type=int, help="at most so many (default: the recipe's)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    args = parser.parse_args(words)
    recipe = RECIPES[args.recipe]
    if args.bfloat16:
        recipe = dataclasses.replace(recipe, mixed_precision=True)
    args.epochs = recipe.epochs if args.epochs is None else args.epochs
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    try:
        train(args.recipe, recipe, args)
    except PosthocError as error:
        print(f"train.py: {shown(error)}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
