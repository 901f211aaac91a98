"""LeNet-5 as the course notes draw it for colour input (Ng, Deep Learning, course 4; LeCun et al. 1998, section II.B).

| layer | kernel | output (N, C, H, W) | parameters |
| --- | --- | --- | --- |
| conv1 + ReLU | 6 @ 5 × 5 | N, 6, 28, 28 | 456 |
| max pool | 2 × 2 | N, 6, 14, 14 | |
| conv2 + ReLU | 16 @ 5 × 5 | N, 16, 10, 10 | 2,416 |
| max pool | 2 × 2 | N, 16, 5, 5 | |
| fc1 + ReLU | 400 → 120 | N, 120 | 48,120 |
| fc2 + ReLU | 120 → 84 | N, 84 | 10,164 |
| fc3 | 84 → 10 | N, 10 | 850 |

62,006 parameters and 0.65 million multiply-adds an image.
"""

import math

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from models.network import Network
from models.recipe import Recipe, Schedule


class LeNet5(Network):
    """Normalised pixels (N, 3, 32, 32) → logits (N, classes)."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.pool = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(400, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, classes)
        self.activation = nn.ReLU()

    def features(self, x: Tensor) -> Tensor:
        x = self.pool(self.activation(self.conv1(x)))
        x = self.pool(self.activation(self.conv2(x)))
        x = self.activation(self.fc1(x.flatten(1)))
        return self.activation(self.fc2(x))

    def classify(self, features: Tensor) -> Tensor:
        return self.fc3(features)


def optimizers(net: nn.Module, schedule: Schedule) -> list[tuple[Optimizer, LRScheduler]]:
    """AdamW under one cycle of the learning rate (Smith 2018)."""
    adamw = torch.optim.AdamW(net.parameters(), lr=4e-3, weight_decay=0.02)
    return [(adamw, OneCycleLR(adamw, max_lr=4e-3, total_steps=schedule.total_steps, pct_start=0.2))]


def augment(images: Tensor, epoch: int, order: Tensor, generator: torch.Generator) -> Tensor:
    """Turn up to 12°, scale up to 12 %, slant up to 0.2 and shift up to 1.5 pixels. (B, 3, H, W) → the same."""

    def uniform(limit: float) -> Tensor:
        return (2 * torch.rand(len(images), generator=generator) - 1) * limit

    angle, slant = uniform(math.radians(12)), uniform(0.2)
    wide, high = 1 + uniform(0.12), 1 + uniform(0.12)
    across, down = uniform(1.5 / 16), uniform(1.5 / 16)  # grid units: half the image is 1
    rows = [
        torch.stack((wide * angle.cos(), slant - angle.sin(), across), 1),
        torch.stack((angle.sin(), high * angle.cos(), down), 1),
    ]
    grid = nn.functional.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    # The border is background, so repeating it adds none.
    return nn.functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


LENET5 = Recipe(
    source="LeCun et al. 1998",
    dataset="mnist",
    build=LeNet5,
    optimizers=optimizers,
    augment=augment,
    epochs=30,
    batch_size=250,
)
