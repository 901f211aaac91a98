"""A lesson that takes a second: `python -m tests.lesson OPTION …` is the training command on noise with a tendency.

With KILL_AT=n in the environment it is killed at the n-th event, as by `kill -9`: an event is a batch, or the moment
before or after a file takes another's place. With KILL_AT=n,m it is started again and then killed at the m-th; 0 is
never.
"""

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

from models import train
from models.network import Network
from models.progress import Stepped
from models.recipe import Recipe, Schedule
from models.task import Part, Split, Task
from service.images import InputSpec

SPEC = InputSpec("photo", 8, 8, mean=(0.5,) * 3, std=(0.25,) * 3)
LABELS = ("low", "middle", "high")
SIZES: dict[Split, int] = {"train": 70, "fit": 30, "conformal": 30, "test": 30}
BATCH, EPOCHS = 16, 3


class Little(Network):
    """All that has a state or draws numbers: a convolution, batch normalisation, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2)
        self.norm = nn.BatchNorm2d(4)
        self.activation = nn.ReLU()
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(36, len(LABELS))

    def features(self, x: Tensor) -> Tensor:
        seen: Tensor = self.drop(self.activation(self.norm(self.conv(x))).flatten(1))
        return seen

    def classify(self, features: Tensor) -> Tensor:
        logits: Tensor = self.head(features)
        return logits


def optimizers(net: nn.Module, schedule: Schedule) -> Stepped:
    adam = torch.optim.Adam(net.parameters(), lr=1e-2)
    return [(adam, OneCycleLR(adam, max_lr=1e-2, total_steps=schedule.total_steps))]


def augment(images: Tensor, epoch: int, order: Tensor, generator: torch.Generator) -> Tensor:
    return images + 0.1 * torch.randn(images.shape, generator=generator)


RECIPE = Recipe("noise", Little, optimizers, augment, epochs=EPOCHS, batch_size=BATCH)


def part(split: Split) -> Part:
    """Noise, the brighter the higher the class."""
    rng = np.random.default_rng(list(SIZES).index(split))
    labels = np.arange(SIZES[split]) % len(LABELS)
    brightness = (50 * labels).astype(np.uint8)
    return Part(rng.integers(0, 156, (SIZES[split], 8, 8, 3), np.uint8) + brightness[:, None, None, None], labels)


def task(recipe: Recipe = RECIPE) -> Task:
    return Task("digits", recipe, "noise", SPEC, LABELS, part, {split: f"sha256 of {split}" for split in SIZES})


def main() -> int:
    """In a process of its own for each number of KILL_AT; importing torch takes longer than the lesson."""
    # The first optimiser imports half of torch.
    optimizers(Little(), Schedule(1, 1, 1))
    for at in map(int, os.environ.get("KILL_AT", "0").split(",")):
        child = os.fork()
        if child == 0:
            os._exit(_learn(at))
        _, status = os.waitpid(child, 0)
        print(f"ended {os.waitstatus_to_exitcode(status)}", flush=True)
    return 0


def _learn(at: int) -> int:
    happened = 0

    def event() -> None:
        nonlocal happened
        happened += 1
        if happened == at:
            os.kill(os.getpid(), signal.SIGKILL)

    def noted(images: Tensor, epoch: int, order: Tensor, generator: torch.Generator) -> Tensor:
        event()
        return augment(images, epoch, order, generator)

    replaced: Callable[[Path, Path], Path] = Path.replace

    def noting(self: Path, target: Path) -> Path:
        event()
        path = replaced(self, target)
        event()
        return path

    train.zoo = lambda name: task(replace(RECIPE, augment=noted))  # type: ignore[attr-defined]
    train.weights_path = lambda name: Path("weights") / f"{name}.pt"  # type: ignore[attr-defined]
    Path.replace = noting  # type: ignore[assignment,method-assign]
    status = train.main(["digits", "--device", "cpu", "--epochs", str(EPOCHS), *sys.argv[1:]])
    print(f"{happened} events", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
