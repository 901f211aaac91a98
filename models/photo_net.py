"""A small network for images of any size from 16 × 16 on, to be trained from scratch on images of one's own.

For 32 × 32 pixels:

| layer | kernel | output (N, C, H, W) | parameters |
| --- | --- | --- | --- |
| block 1 | 24 @ 5 × 5, stride 2 | N, 24, 16, 16 | 1,848 |
| block 2, pool 2 | 48 @ 3 × 3 | N, 48, 8, 8 | 10,464 |
| block 3, pool 2 | 96 @ 3 × 3 | N, 96, 4, 4 | 41,664 |
| block 4 | 192 @ 3 × 3 | N, 192, 4, 4 | 166,272 |
| mean over all places | | N, 192 | |
| head | 192 → classes | N, classes | 193 each |

A block is convolution, batch normalisation, ReLU. 222,178 parameters for ten classes and 8.4 million multiply-adds.
"""

from functools import partial

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

from models.network import Network
from models.progress import Stepped
from models.recipe import Recipe, Schedule

WIDTHS = (24, 48, 96, 192)
SMALLEST = 16
PEAK_RATE, DECAY = 4e-3, 0.05
# So many images are looked at, each as often as that takes, within bounds.
LOOKS, EPOCHS = 100_000, (10, 60)


class PhotoNet(Network):
    """Normalised pixels (N, 3, H, W) → logits (N, classes)."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        first, *others = WIDTHS
        last = len(others) - 1
        self.blocks = nn.Sequential(
            _block(3, first, 5, stride=2),
            *(_block(*each, 3, pooled=i < last) for i, each in enumerate(zip(WIDTHS[:-1], others, strict=True))),
        )
        self.head = nn.Linear(WIDTHS[-1], classes)

    def features(self, x: Tensor) -> Tensor:
        seen: Tensor = self.blocks(x).mean((2, 3))
        return seen

    def classify(self, features: Tensor) -> Tensor:
        return self.head(features)


def _block(channels: int, width: int, kernel: int, stride: int = 1, pooled: bool = False) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.MaxPool2d(2) if pooled else nn.Identity(),
    )


def optimizers(net: nn.Module, schedule: Schedule) -> Stepped:
    """AdamW under one cycle of the learning rate (Smith 2018)."""
    adamw = torch.optim.AdamW(net.parameters(), lr=PEAK_RATE, weight_decay=DECAY)
    return [(adamw, OneCycleLR(adamw, max_lr=PEAK_RATE, total_steps=schedule.total_steps, pct_start=0.25))]


def augment(images: Tensor, epoch: int, order: Tensor, generator: torch.Generator, mirror: bool = True) -> Tensor:
    """Shift by up to an eighth of the side, edges reflected, and, where `mirror`, mirror one in two.

    images: (B, 3, H, W) → the same.
    """
    count, _, height, width = images.shape
    if mirror:
        flipped = torch.rand(count, generator=generator) < 0.5
        images = torch.where(flipped[:, None, None, None], images.flip(3), images)
    down, across = height // 8, width // 8
    padded = nn.functional.pad(images, (across, across, down, down), mode="reflect")
    rows = torch.randint(2 * down + 1, (count, 1), generator=generator) + torch.arange(height)
    columns = torch.randint(2 * across + 1, (count, 1), generator=generator) + torch.arange(width)
    which = torch.arange(count)[:, None, None]
    return padded[which, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def recipe(classes: int, images: int, mirror: bool) -> Recipe:
    """For so many classes and training images."""
    low, high = EPOCHS
    return Recipe(
        dataset="",
        build=partial(PhotoNet, classes),
        optimizers=optimizers,
        augment=partial(augment, mirror=mirror),
        epochs=max(low, min(high, LOOKS // images)),
        batch_size=batch_size(images),
    )


def batch_size(images: int) -> int:
    """Eight batches an epoch at least, for as few images as there may be."""
    return max(2, min(64, images // 8))
