"""A small VGG-like network for digits, for those who draw them as well as for those who scanned MNIST.

| stage | kernel | output (N, C, H, W) | parameters |
| --- | --- | --- | --- |
| grey | mean of the channels, the outermost two pixels cut off | N, 1, 28, 28 | |
| block 1 | 5 × 5, pool 2 | N, 24, 14, 14 | 648 |
| block 2 | 3 × 3, 3 × 3, pool 2 | N, 48, 7, 7 | 31,296 |
| block 3 | 3 × 3, 3 × 3, pool 2 | N, 96, 3, 3 | 124,800 |
| head | linear | N, 10 | 8,650 |

Each convolution is followed by batch normalisation and ReLU, as in Simonyan and Zisserman (2015) with Ioffe and Szegedy
(2015). 165,394 parameters and 12.7 million multiply-adds an image.
"""

import math

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from models.letters import letters
from models.network import Network
from models.recipe import Recipe, Schedule, Strangers

WIDTHS = (24, 48, 96)
# Where service.digits never puts ink.
BORDER = 2
# Of the displacement by which a drawing is bent, in pixels.
BEND_SD = 1.0


class DigitVGG(Network):
    """Normalised pixels (N, 3, 32, 32), light on dark → logits (N, classes)."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        fine, middle, coarse = WIDTHS
        self.blocks = nn.Sequential(
            *_convolution(1, fine, 5),
            nn.MaxPool2d(2),
            *_convolution(fine, middle),
            *_convolution(middle, middle),
            nn.MaxPool2d(2),
            *_convolution(middle, coarse),
            *_convolution(coarse, coarse),
            nn.MaxPool2d(2),
        )
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(9 * coarse, classes)

    def features(self, x: Tensor) -> Tensor:
        grey = x.mean(1, keepdim=True)[..., BORDER:-BORDER, BORDER:-BORDER]
        return self.blocks(grey).flatten(1)

    def classify(self, features: Tensor) -> Tensor:
        return self.head(self.dropout(features))


def _convolution(channels: int, width: int, kernel: int = 3) -> list[nn.Module]:
    return [
        nn.Conv2d(channels, width, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    ]


def optimizers(net: nn.Module, schedule: Schedule) -> list[tuple[Optimizer, LRScheduler]]:
    """AdamW under one cycle of the learning rate (Smith 2018)."""
    adamw = torch.optim.AdamW(net.parameters(), lr=6e-3, weight_decay=0.05)
    return [(adamw, OneCycleLR(adamw, max_lr=6e-3, total_steps=schedule.total_steps, pct_start=0.2))]


def augment(images: Tensor, epoch: int, order: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a digit anew: placed and bent otherwise, now and then with another pen. (B, 3, H, W), grey → the same."""
    drawn = _redrawn(images[:, :1], generator)
    return _inked(drawn, generator).expand(-1, 3, -1, -1)


def _redrawn(images: Tensor, generator: torch.Generator) -> Tensor:
    """Turn up to 15°, scale up to 15 %, slant up to 0.25, shift up to 2 pixels, and bend (Simard et al. 2003)."""
    n, _, side, _ = images.shape

    def uniform(limit: float) -> Tensor:
        return (2 * torch.rand(n, generator=generator) - 1) * limit

    angle, slant = uniform(math.radians(15)), uniform(0.25)
    wide, high = 1 + uniform(0.15), 1 + uniform(0.15)
    pixel = 2 / side  # in grid units: the whole image is 2
    across, down = uniform(2 * pixel), uniform(2 * pixel)
    rows = [
        torch.stack((wide * angle.cos(), slant - angle.sin(), across), 1),
        torch.stack((angle.sin(), high * angle.cos(), down), 1),
    ]
    grid = nn.functional.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    # Smooth, for it is known at 5 × 5 places only.
    bend = torch.randn((n, 2, 5, 5), generator=generator) * (BEND_SD * pixel)
    smooth = nn.functional.interpolate(bend, (side, side), mode="bicubic", align_corners=True)
    # The border is background, so repeating it adds none.
    placed = grid + smooth.permute(0, 2, 3, 1)
    return nn.functional.grid_sample(images, placed, padding_mode="border", align_corners=False)


def _inked(images: Tensor, generator: torch.Generator) -> Tensor:
    """One in five with bolder strokes, one in ten with thinner ones."""
    kind, much = torch.rand((2, len(images), 1, 1, 1), generator=generator)
    bold = nn.functional.max_pool2d(images, 3, 1, 1)
    thin = -nn.functional.max_pool2d(-images, 3, 1, 1)
    bolder, thinner = images + 0.7 * much * (bold - images), images + 0.4 * much * (thin - images)
    return torch.where(kind < 0.2, bolder, torch.where(kind < 0.3, thinner, images))


DIGITS = Recipe(
    source="after Simonyan & Zisserman 2015",
    dataset="mnist",
    build=DigitVGG,
    optimizers=optimizers,
    augment=augment,
    epochs=64,
    batch_size=250,
    strangers=Strangers(letters, per_batch=50, weight=0.5),
    bf16=True,
)
