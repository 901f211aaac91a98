"""Train a network of the zoo: `python -m models.train <name>`. Interrupt it at any time; the same command resumes.

Every epoch draws its randomness from the seed and its own number, so an interrupted run ends in the same weights as
an uninterrupted one.
"""

import argparse
import json
import platform
import shlex
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from models import MODELS, weights_path
from models.datasets import DATASETS, Splits, load, normalise, pixels, splits
from models.evaluate import Score, score
from models.formats import DAMAGE, DataError
from models.recipe import Recipe, Schedule

RUNS = Path("runs")


@dataclass
class Progress:
    """How far a run has come. `seconds` counts training time across interruptions."""

    epoch: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Images:
    """Normalised images (N, 3, H, W) float32 and labels (N,) int64."""

    images: Tensor
    labels: Tensor


def main(argv: list[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    try:
        train(arguments.name, arguments.seed, arguments.epochs, torch.device(arguments.device))
    except DataError as error:
        print(f"models.train: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\ninterrupted; the same command resumes from {RUNS / arguments.name}", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m models.train", description=__doc__)
    parser.add_argument("name", choices=sorted(MODELS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=_positive, help="train for longer or shorter than the recipe says")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def train(name: str, seed: int, epochs: int | None, device: torch.device) -> None:
    """Train, checkpoint after every epoch, and write the weights and a record of the run to models/weights."""
    recipe = MODELS[name]
    epochs = epochs or recipe.epochs

    # Data.
    data = load(recipe.dataset)
    split = splits(recipe.dataset)
    training = _images(recipe, data.train_images[split.train], data.train_labels[split.train])
    held_out = _images(recipe, data.train_images[split.fit], data.train_labels[split.fit])
    strangers = _strangers(recipe)

    # Network.
    torch.manual_seed(seed)
    net = recipe.build()
    recipe.prepare(net, training.images)
    net.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    # Optimisers.
    schedule = Schedule(epochs, len(training.images) // recipe.batch_size, recipe.batch_size)
    stepped = recipe.optimizers(net, schedule)

    # Training.
    checkpoint = Checkpoint(RUNS / name / f"seed{seed}-epochs{epochs}.pt", net, stepped)
    progress = checkpoint.restore()
    while progress.epoch < epochs:
        started = time.perf_counter()
        loss = _epoch(net, recipe, training, strangers, stepped, schedule, progress.epoch, seed, device)
        progress.seconds += time.perf_counter() - started
        progress.epoch += 1
        held = score(net, held_out.images, held_out.labels, device)
        progress.history.append({"loss": loss, "accuracy": held.accuracy, "nll": held.nll})
        tqdm.write(f"epoch {progress.epoch}/{epochs}  loss {loss:.4f}  held-out {held}")
        checkpoint.save(progress)

    # Evaluation.
    test = _images(recipe, data.test_images, data.test_labels)
    result = score(net, test.images, test.labels, device)
    print(f"test {result}  ({progress.seconds / 60:.1f} minutes of training)")
    _write_weights(name, net, _record(name, seed, epochs, split, progress, result, device))


def _epoch(
    net: nn.Module,
    recipe: Recipe,
    data: Images,
    strangers: Tensor | None,
    stepped: list[tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]],
    schedule: Schedule,
    epoch: int,
    seed: int,
    device: torch.device,
) -> float:
    """One pass over the training set; the incomplete last batch is left out. Returns the mean loss."""
    generator = torch.Generator().manual_seed(seed * 100_003 + epoch)
    order = torch.randperm(len(data.images), generator=generator)
    net.train()
    total = 0.0
    bar = tqdm(range(schedule.steps_per_epoch), desc=f"epoch {epoch + 1}/{schedule.epochs}", leave=False)
    for step in bar:
        chosen = order[step * schedule.batch_size : (step + 1) * schedule.batch_size]
        images = recipe.augment(data.images[chosen], epoch, chosen, generator)
        if recipe.strangers and strangers is not None:
            invited = torch.randint(len(strangers), (recipe.strangers.per_batch,), generator=generator)
            images = torch.cat((images, recipe.augment(strangers[invited], epoch, invited, generator)))
        images = images.to(device).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.bf16):
            logits = net(images).float()
        known, strange = logits[: len(chosen)], logits[len(chosen) :]
        labels = data.labels[chosen].to(device)
        loss = nn.functional.cross_entropy(known, labels, label_smoothing=recipe.label_smoothing)
        total += loss.item()
        if recipe.strangers:
            loss = loss - recipe.strangers.weight * nn.functional.log_softmax(strange, 1).mean()
        net.zero_grad(set_to_none=True)
        loss.backward()
        for optimizer, rate in stepped:
            optimizer.step()
            rate.step()
        bar.set_postfix(loss=f"{total / (step + 1):.3f}")
    return total / schedule.steps_per_epoch


def _images(recipe: Recipe, images: Any, labels: Any) -> Images:
    return Images(normalise(recipe.dataset, pixels(recipe.dataset, images)), torch.from_numpy(labels))


def _strangers(recipe: Recipe) -> Tensor | None:
    """Normalised images of no class, (N, 3, H, W)."""
    if recipe.strangers is None:
        return None
    return normalise(recipe.dataset, recipe.strangers.images(DATASETS[recipe.dataset].input))


@dataclass(frozen=True)
class Checkpoint:
    """The whole state of a run on disk, replaced atomically."""

    path: Path
    net: nn.Module
    stepped: list[tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]]

    def save(self, progress: Progress) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "net": self.net.state_dict(),
            "stepped": [(optimizer.state_dict(), rate.state_dict()) for optimizer, rate in self.stepped],
            "progress": vars(progress),
        }
        partial = self.path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.path)

    def restore(self) -> Progress:
        """The progress on disk, loaded into network and optimisers; a fresh one if there is none. Raises DataError."""
        if not self.path.exists():
            return Progress()
        try:
            state = torch.load(self.path, weights_only=True)
            self.net.load_state_dict(state["net"])
            for (optimizer, rate), (optimizer_state, rate_state) in zip(self.stepped, state["stepped"], strict=True):
                optimizer.load_state_dict(optimizer_state)
                rate.load_state_dict(rate_state)
            progress = Progress(**state["progress"])
        except DAMAGE as error:
            raise DataError(f"{self.path} is damaged or of another network; delete it to start again") from error
        print(f"resuming {self.path} after epoch {progress.epoch}")
        return progress


def _record(
    name: str, seed: int, epochs: int, split: Splits, progress: Progress, result: Score, device: torch.device
) -> dict[str, Any]:
    return {
        "command": shlex.join(["python", "-m", "models.train", name, "--seed", str(seed), "--epochs", str(epochs)]),
        "dataset": MODELS[name].dataset,
        "splits": split.digests(),
        "seed": seed,
        "epochs": epochs,
        "minutes": round(progress.seconds / 60, 1),
        "hardware": _hardware(device),
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__)},
        "test": {"n": result.n, "accuracy": result.accuracy, "nll": result.nll},
        "history": progress.history,
    }


def _hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    models = (line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name"))
    return f"{torch.get_num_threads()} cores of {next(models, platform.processor() or platform.machine())}"


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def _write_weights(name: str, net: nn.Module, record: dict[str, Any]) -> None:
    path = weights_path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save({key: value.detach().cpu().contiguous() for key, value in net.state_dict().items()}, partial)
    partial.replace(path)
    partial.write_text(json.dumps(record, indent=1) + "\n")
    partial.replace(path.with_suffix(".json"))
    print(f"wrote {path} and {path.with_suffix('.json')}")


if __name__ == "__main__":
    sys.exit(main())
